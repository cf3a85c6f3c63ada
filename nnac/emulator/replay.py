"""A program in its own order: what the weight buffer holds at each instruction, and which convolutions are one.

Only the order of the program says which `Load` filled a range that an instruction reads; in any other order the bytes
of the buffer have to tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nnac.isa import AnyInstruction, Conv, Load, Range, Space
from nnac.program import Program
from nnac.types import Array

if TYPE_CHECKING:
    from nnac.kernels.calls import Call, Together
    from nnac.kernels.conv import Filters, Layer

KEPT_BYTES = 1 << 30
"""Of packed weights that a prepared run keeps; convolutions beyond pack theirs in every run."""
FEW = 4
"""Rows of a product up to which memory limits it, so that weights in narrow codes are faster."""

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
    """Tell that a convolution makes the channels next to those of another one, all else being the same."""
    moved: dict[str, Any] = {
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
    first: dict[tuple[object, ...], int] = {}
    loads = ((index, load) for index, load in enumerate(instructions) if isinstance(load, Load))
    return {index: first.setdefault(load.content, index) for index, load in loads}


class Machine(Protocol):
    """What turns instructions into calls of kernels (`nnac.emulator.Emulator`)."""

    def calls(self, instruction: AnyInstruction) -> Iterator[Call | Together]:
        """Return the calls that do what one instruction says."""

    def expand(self, i: Load) -> Array:
        """Return the int8 values that a Load brings."""

    def layer(self, i: Conv) -> Layer:
        """Return a convolution as its kernel sees it."""

    def packing(
        self, i: Conv, weights: Array, bias: Array, multiplier: Array, shift: Array, filters: Filters
    ) -> Sequence[Call]:
        """Return the calls that pack the constants of a convolution."""

    def product(self, i: Conv, channels: int, filters: Filters) -> Sequence[Call | Together]:
        """Return the calls of a convolution with packed constants, for `channels` from its own first one on."""


@dataclass(slots=True)
class _Joined:
    """Convolutions that are executed as one, and where their weights and parameters came from."""

    convs: list[Conv] = field(default_factory=list)
    sources: list[tuple[tuple[Source, ...], ...]] = field(default_factory=list)


class Replay:
    """The calls of a program in its own order, with the weights of convolutions packed once for good."""

    def __init__(self, machine: Machine, program: Program) -> None:
        from nnac.kernels.panels import Slabs

        self.machine, self.program, self.slabs = machine, program, Slabs()
        self.contents, self.same = Contents(), same_bytes(self.program.instructions)
        self.filters: dict[tuple[Any, ...], Filters] = {}
        self.left = KEPT_BYTES
        self.loads: dict[int, tuple[Call | Together, ...]] = {}
        """Of Loads that somebody reads; the others stay empty."""
        self.joined = _Joined()

    def calls(self) -> list[Call | Together]:
        """Return the calls, in order."""
        parts = list(self._parts())
        return [call for part in parts for call in (self.loads.get(part, ()) if isinstance(part, int) else part)]

    def _parts(self) -> Iterator[int | Sequence[Call | Together]]:
        """Yield the calls of each instruction, of a Load its index."""
        for index, instruction in enumerate(self.program.instructions):
            if isinstance(instruction, Load):
                self.contents.fill(index, instruction)
                yield index
                continue
            if isinstance(instruction, Conv) and self._can_keep(instruction):
                if self.joined.convs and not continues(self.joined.convs[-1], instruction):
                    yield self._join()
                self.joined.convs.append(instruction)
                self.joined.sources.append(tuple(map(self.contents.within, constants(instruction))))
                continue
            yield self._join()
            self._need(instruction)
            yield tuple(self.machine.calls(instruction))
        yield self._join()

    def _can_keep(self, conv: Conv) -> bool:
        """Tell that there is room for the packed weights of a convolution, and count it as taken."""
        self.left -= conv.out_c * conv.kernel_h * conv.kernel_w * conv.depth
        return self.left >= 0

    def _need(self, instruction: AnyInstruction) -> None:
        """Let the Loads be executed whose bytes an instruction reads."""
        for index in (source[0] for r in constants(instruction) for source in self.contents.within(r)):
            if index not in self.loads:
                self.loads[index] = tuple(self.machine.calls(self.program.instructions[index]))

    def _join(self) -> tuple[Call | Together, ...]:
        """Return the call of the convolutions that have come together, if any."""
        joined, self.joined = self.joined, _Joined()
        if not joined.convs:
            return ()
        first, channels = joined.convs[0], sum(conv.out_c for conv in joined.convs)
        layer, few = self.machine.layer(first), first.out_h * first.out_w <= FEW
        bytes_of = tuple((self.same[n], *rest) for pieces in joined.sources for piece in pieces for n, *rest in piece)
        key = (bytes_of, channels, layer.form, first.in_bits, few)
        if key not in self.filters:
            self.filters[key] = self._packed(joined, layer, few)
        return tuple(self.machine.product(first, channels, self.filters[key]))

    def _packed(self, joined: _Joined, layer: Layer, few: bool) -> Filters:
        """Return the constants of joined convolutions, ready for products."""
        from nnac.kernels.conv import empty_filters, is_narrow, narrowed

        parts = [[self._bytes(source) for source in sources] for sources in joined.sources]
        weights = np.concatenate([weights for weights, _ in parts]).reshape(-1, layer.taps)
        params = [(p[: p.size // 9 * 8].view(np.int32).reshape(2, -1), p[p.size // 9 * 8 :]) for _, p in parts]
        bias, multiplier = np.ascontiguousarray(np.concatenate([words for words, _ in params], axis=1))
        shift = np.concatenate([shift for _, shift in params])
        alone = len(weights) + layer.channel_offset <= layer.group_out and not layer.is_depthwise
        first = joined.convs[0]
        narrow = few and alone and first.in_bits == 8 and is_narrow(weights)
        filters = empty_filters(len(weights), layer, None if narrow else self.slabs)
        for call in self.machine.packing(first, weights, bias, multiplier, shift, filters):
            call.run()
        return narrowed(weights, bias, filters, layer, self.slabs) if narrow else filters

    def _bytes(self, source: Sequence[Source]) -> Array:
        """Return the bytes of a range of the weight buffer, from the Loads that brought them."""
        loads = self.program.instructions
        parts = [(loads[index], first, last) for index, first, last in source]
        return np.concatenate([self.machine.expand(load)[a:b] for load, a, b in parts if isinstance(load, Load)])
