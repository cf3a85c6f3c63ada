"""What the weight buffer holds while a program runs in its own order, and which convolutions are one in that order.

Only the order of the program says which `Load` filled a range that an instruction reads; in any other order the bytes
of the buffer have to tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from nnac.isa import AnyInstruction, Conv, Load, Range, Space

Source = tuple[int, int, int]
"""Bytes of a `Load`: its index, the first one, and the one behind the last."""


@dataclass(slots=True)
class Contents:
    """The weight buffer, by the Loads that filled it."""

    _filled: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(start, end, index of the Load, its target), apart from each other, in order."""

    def fill(self, index: int, load: Load) -> None:
        """Take note of a Load."""
        start, end = load.target, load.target + load.target_bytes
        kept = [(start, end, index, start)]
        for first, last, number, target in self._filled:
            kept += [(first, min(last, start), number, target)] if first < start else []
            kept += [(max(first, end), last, number, target)] if last > end else []
        self._filled = sorted(kept)

    def within(self, wanted: Range) -> tuple[Source, ...]:
        """Return where the bytes of a range came from, in order."""
        return tuple(
            (index, max(start, wanted.start) - target, min(end, wanted.end) - target)
            for start, end, index, target in self._filled
            if start < wanted.end and wanted.start < end
        )


def continues(last: Conv, conv: Conv) -> bool:
    """Tell that a convolution makes the channels next to those of another one from the same input, with nothing else."""
    moved = {
        "target": last.target + last.out_c * last.out_bits // 8,
        "channel": last.channel + last.out_c,
        "out_c": conv.out_c,
        "weights": conv.weights,
        "params": conv.params,
        "taps": conv.taps,
        "waits": conv.waits,
    }
    return conv == replace(last, **moved) and not _meet(last.writes()[0], conv.reads()[0])


def _meet(a: Range, b: Range) -> bool:
    return a.space == b.space and a.start < b.end and b.start < a.end


def constants(instruction: AnyInstruction) -> Iterator[Range]:
    """Yield the ranges of the weight buffer that an instruction reads."""
    return (r for r in instruction.reads() if r.space == Space.WEIGHTS)


def same_bytes(instructions: Sequence[AnyInstruction]) -> dict[int, int]:
    """Return, for the index of each Load, the first one that brings the same bytes."""
    first: dict[tuple[int, ...], int] = {}
    found = {}
    for index, load in enumerate(instructions):
        if isinstance(load, Load):
            place = (load.space, load.source, load.source_bytes, load.target_bytes, load.packer, load.table)
            found[index] = first.setdefault((*place, load.table_bytes), index)
    return found
