"""Liveness: what lies in the scratchpad while each layer works, read from the instructions of a program.

- A tensor that lives in the scratchpad holds its bytes, rounded up to the alignment of placement, from the layer that
  writes it (an input: from the start) to the last that reads it (an output: to the end); a reshape shares the bytes.
- A tensor that lives elsewhere holds what its copies bring in or take out there, while the layer works: all of its
  staging buffers together.
- A tensor that a cascade streams holds one stripe while the layers of the cascade work, which is one moment for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from nnac import isa
from nnac.isa import AnyInstruction, Range, Space
from nnac.program import Layer, Program, Tensor
from nnac.types import aligned

WHOLE, STAGED, STRIPE = "whole", "staged", "stripe"
CONSTANTS = "constants"
"""What is staged from the image of constants: it has no name in a program."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes [start, end) of the scratchpad, and the instructions that read or write them, ascending."""

    start: int
    end: int
    touched: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Resident:
    """Something that holds bytes of the scratchpad.

    Attributes:
        name: the tensor; of several that share the bytes, the one that is written.
        kind: "whole", "staged" (buffers of a tensor that lives elsewhere), or "stripe" (of one that is never whole).
        buffers: one, or those that a staged tensor uses in turn; ascending, without a common byte.
        first, last: moments, inclusive, while it is alive: -1 before the first layer, `len(moments)` after the last.
    """

    name: str
    kind: str
    buffers: tuple[Buffer, ...]
    first: int
    last: int

    @property
    def nbytes(self) -> int:
        return sum(buffer.end - buffer.start for buffer in self.buffers)


@dataclass(frozen=True, slots=True)
class Moment:
    """The scratchpad while one layer works, or the layers of a cascade in turn.

    Attributes:
        layers: their places in `Program.layers`.
        alive: the largest first.
    """

    layers: tuple[int, ...]
    alive: tuple[Resident, ...]

    @property
    def nbytes(self) -> int:
        return sum(resident.nbytes for resident in self.alive)


def moments(program: Program) -> tuple[Moment, ...]:
    """Return the moments of a validated program in order; each of its layers belongs to exactly one."""
    groups = _groups(program.layers)
    turn = {layer: g for g, group in enumerate(groups) for layer in group}
    found = [*_whole(program, turn), *_stripes(program, turn), *_staged(program, turn)]
    order = sorted(found, key=lambda r: (-r.nbytes, r.buffers[0].start, r.name))
    return tuple(Moment(group, tuple(r for r in order if r.first <= g <= r.last)) for g, group in enumerate(groups))


def peak(found: Sequence[Moment]) -> Moment:
    """Return the first moment with the most bytes alive."""
    return max(found, key=lambda moment: moment.nbytes, default=Moment((), ()))


def residents(found: Iterable[Moment]) -> list[Resident]:
    """Return everything that is alive at some moment, once."""
    return list(dict.fromkeys(resident for moment in found for resident in moment.alive))


# -- what there is -------------------------------------------------------------------------------------------------


def _groups(layers: Sequence[Layer]) -> list[tuple[int, ...]]:
    """Return the layers in order, those together whose instructions lie between each other's."""
    groups: list[tuple[int, ...]] = []
    reach = -1
    for place, layer in enumerate(layers):
        first, end = (layer.runs[0][0], layer.runs[-1][1]) if layer.runs else (reach, reach)
        groups.append((*groups.pop(), place) if groups and first < reach else (place,))
        reach = max(reach, end)
    return groups


def _storages(program: Program) -> Iterator[list[Tensor]]:
    """Yield the tensors that share bytes; the first of each is the one that is written."""

    def place(tensor: Tensor) -> tuple[int, ...]:
        return (tensor.space, tensor.address, tensor.ready, *(p.ready for p in tensor.pieces))

    for _, same in groupby(sorted(program.tensors, key=place), key=place):
        yield list(same)


def _lifetime(program: Program, names: set[str], turn: Mapping[int, int]) -> tuple[int, int]:
    writers = [turn[place] for place, layer in enumerate(program.layers) if names & set(layer.outputs)]
    readers = [turn[place] for place, layer in enumerate(program.layers) if names & set(layer.inputs)]
    ends = [max(turn.values(), default=-1) + 1] if names & set(program.outputs) else []
    first = min(writers, default=-1)
    return first, max((*readers, *ends), default=first)


def _whole(program: Program, turn: Mapping[int, int]) -> Iterator[Resident]:
    for same in _storages(program):
        if same[0].space == Space.SRAM and not same[0].pieces:
            names = {tensor.name for tensor in same}
            span = same[0].address, same[0].address + aligned(same[0].type.nbytes)
            first, last = _lifetime(program, names, turn)
            users = [
                layer
                for place, layer in enumerate(program.layers)
                if first <= turn[place] <= last and names & {*layer.inputs, *layer.outputs}
            ]
            yield Resident(same[0].name, WHOLE, _buffers(program, users, [span]), first, last)


def _stripes(program: Program, turn: Mapping[int, int]) -> Iterator[Resident]:
    for same in _storages(program):
        if same[0].pieces:
            names = {tensor.name for tensor in same}
            spans = [(p.address, p.address + p.nbytes) for p in same[0].pieces]
            users = [layer for layer in program.layers if names & {*layer.inputs, *layer.outputs}]
            first, last = _lifetime(program, names, turn)
            yield Resident(same[0].name, STRIPE, _buffers(program, users, spans), first, last)


def _staged(program: Program, turn: Mapping[int, int]) -> Iterator[Resident]:
    """Yield one resident per layer and tensor that copies bring in from outside or take there."""
    for place, layer in enumerate(program.layers):
        homes, buffers = list(_homes(program, layer)), dict[str, list[tuple[int, int]]]()
        for index in layer.indices():
            for name, span in _staging(program, layer, program.instructions[index]):
                if not any(start <= span[0] and span[1] <= end for start, end in homes):
                    buffers.setdefault(name, []).append(span)
        for name, found in buffers.items():
            yield Resident(name, STAGED, _buffers(program, [layer], found), turn[place], turn[place])


def _homes(program: Program, layer: Layer) -> Iterator[tuple[int, int]]:
    """Yield the ranges of the layer's own tensors that live in the scratchpad: copies from home to home end there."""
    for name in (*layer.inputs, *layer.outputs):
        tensor = program.tensor(name)
        if tensor.space == Space.SRAM and not tensor.pieces:
            yield tensor.address, tensor.address + tensor.type.nbytes


def _staging(program: Program, layer: Layer, i: AnyInstruction) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (tensor, range of the scratchpad) of a copy between there and another memory."""
    if not isinstance(i, isa.Copy) or i.source_space == i.target_space:
        return
    (source,), (target,) = i.reads(), i.writes()
    if target.space == Space.SRAM:
        yield _name(program, layer.inputs, source), (target.start, target.end)
    elif source.space == Space.SRAM:
        yield layer.output, (source.start, source.end)


def _name(program: Program, names: Iterable[str], found: Range) -> str:
    """Return which of some tensors lies at a range."""
    for tensor in map(program.tensor, names):
        if tensor.space == found.space and tensor.address <= found.start < tensor.address + tensor.type.nbytes:
            return tensor.name
    return CONSTANTS


def _buffers(program: Program, layers: Iterable[Layer], spans: Iterable[tuple[int, int]]) -> tuple[Buffer, ...]:
    """Return ranges of the scratchpad, those with common bytes as one, with the instructions of some layers in them."""
    ranges = [
        (n, r)
        for layer in layers
        for n in layer.indices()
        for i in (program.instructions[n],)
        for r in (*i.reads(), *i.writes())
        if r.space == Space.SRAM
    ]
    return tuple(
        Buffer(start, end, tuple(sorted({n for n, r in ranges if r.start < end and start < r.end})))
        for start, end in merged(spans)
    )


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges as few, ascending ones without a common byte; ranges that only touch stay two."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found
