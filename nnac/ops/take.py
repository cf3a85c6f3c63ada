"""Operators that pick and overwrite fixed places: gathers, repeats, shuffles, nearest resizing; slots of a state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import product
from math import prod
from typing import ClassVar, NamedTuple

import numpy as np

from nnac import isa
from nnac.ops.base import Bound, Constraint, Sample, Shape
from nnac.ops.move import Home, Move, Reshape, Slice, copies, copy, dense_strides, random_cut, random_tensor
from nnac.types import Array

MOST_COPIES = 1024
Picks = tuple[tuple[int, ...], ...]


class Run(NamedTuple):
    """Indices first + i * outer + j * inner for i < outers, j < inners, in this order."""

    first: int
    outers: int
    outer: int
    inners: int
    inner: int


@lru_cache(maxsize=256)
def runs(picks: tuple[int, ...]) -> tuple[Run, ...]:
    """Return the indices as few regular runs: neighbours of one step first, then equal runs at one distance."""
    result: list[Run] = []
    for first, count, step in _lines(picks):
        last = result[-1] if result else None
        if last is not None and (last.inners, last.inner) == (count, step):
            outer = last.outer if last.outers > 1 else first - last.first
            if first == last.first + last.outers * outer:
                result[-1] = last._replace(outers=last.outers + 1, outer=outer)
                continue
        result.append(Run(first, 1, 0, count, step))
    return tuple(result)


def _lines(picks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (first, count, step) of stretches with one step between neighbours."""
    at = 0
    while at < len(picks):
        step = picks[at + 1] - picks[at] if at + 1 < len(picks) else 1
        end = at + 1
        while end < len(picks) and picks[end] - picks[end - 1] == step:
            end += 1
        yield picks[at], end - at, step if end - at > 1 else 1
        at = end


@dataclass(frozen=True, slots=True)
class Take(Move):
    """Entries at fixed places: output[i, j, ...] = input[picks[0][i], picks[1][j], ...], as numpy's `ix_`.

    Attributes:
        picks: the indices along each axis; an empty tuple keeps an axis as it is.
    """

    picks: Picks = ()

    name: ClassVar[str] = "Take"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(
            lambda op, s: (
                len(op.picks) == len(s[0])
                and all(min(p) >= 0 and max(p) < n for p, n in zip(op.picks, s[0], strict=True) if p)
            ),
            "the indices lie inside the tensor",
        ),
        Constraint(
            lambda op, s: prod(len(runs(p)) for p in op.picks if p) <= MOST_COPIES,
            f"the indices form at most {MOST_COPIES} regular patterns (strided copies)",
        ),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(len(picks) or side for picks, side in zip(self.picks, shapes[0], strict=True))

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        sides = inputs[0].shape
        return inputs[0][np.ix_(*(picks or range(side) for picks, side in zip(self.picks, sides, strict=True)))]

    def copies(self, bound: Bound, sources: Sequence[Home], target: Home) -> Iterator[isa.AnyInstruction]:
        shape, width = bound.inputs[0].shape, bound.output.itemsize
        steps = dense_strides(bound.inputs[0]), dense_strides(bound.output)
        whole = [[Run(0, 1, 0, side, 1)] for side in shape]
        parts = [runs(picks) if picks else all_ for picks, all_ in zip(self.picks, whole, strict=True)]
        for chosen in product(*(_placed(part) for part in parts)):
            yield from _box(chosen, steps, sources[0], target, width)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        x = random_tensor(rng)
        op = cls(tuple(_random_picks(rng, side) for side in x.shape))
        return Sample(op, (x,), replace(x, shape=op.infer([x.shape])), {})


def mover(picks: Picks, shape: Shape) -> Reshape | Slice | Take:
    """Return the cheapest operator that picks indices along each axis: a reshape, a slice or a take."""
    found = [picked or tuple(range(side)) for picked, side in zip(picks, shape, strict=True)]
    if all(picked == tuple(range(side)) for picked, side in zip(found, shape, strict=True)):
        return Reshape(shape)
    patterns = [runs(picked) for picked in found]
    if all(len(p) == 1 and p[0].outers == 1 and p[0].inner for p in patterns):
        firsts = [p[0] for p in patterns]
        starts, steps, sizes = zip(*((run.first, run.inner, run.inners) for run in firsts), strict=True)
        return Slice(starts, steps, sizes)
    whole = (picked == tuple(range(side)) for picked, side in zip(found, shape, strict=True))
    return Take(tuple(() if full else picked for full, picked in zip(whole, found, strict=True)))


def separable(places: Array, shape: Shape) -> Picks | None:
    """Return indices per axis that pick `places` of a flat tensor of `shape`, or None if there are none."""
    if places.ndim != len(shape) or not shape:
        return None
    axes = range(places.ndim)
    lines = [places[tuple(slice(None) if a == axis else 0 for a in axes)] for axis in axes]
    picks = [np.unravel_index(line, shape)[axis] for axis, line in enumerate(lines)]
    if not (places == reduce(np.add.outer, (pick * prod(shape[a + 1 :]) for a, pick in enumerate(picks)))).all():
        return None
    return tuple(tuple(line.tolist()) for line in picks)


def _placed(parts: Sequence[Run]) -> list[tuple[int, Run]]:
    """Return each run with the place of its first entry in the output."""
    at = np.cumsum([0, *(run.outers * run.inners for run in parts)])
    return [(int(place), run) for place, run in zip(at, parts, strict=False)]


def _box(
    chosen: Sequence[tuple[int, Run]], strides: tuple[Shape, Shape], source: Home, target: Home, width: int
) -> Iterator[isa.Copy]:
    """Yield the copies of one run per axis: two loops for each of them."""
    loops: list[tuple[int, int, int]] = []
    for (_, run), s, t in zip(chosen, *strides, strict=True):
        loops += [(run.outers, run.outer * s, run.inners * t), (run.inners, run.inner * s, t)]
    first = sum(run.first * s for (_, run), s in zip(chosen, strides[0], strict=True))
    place = sum(at * t for (at, _), t in zip(chosen, strides[1], strict=True))
    shape, taken, put = (tuple(loop[i] for loop in loops) for i in range(3))
    yield from copies((source[0], source[1] + first), taken, (target[0], target[1] + place), put, shape, width)


@dataclass(frozen=True, slots=True)
class Insert(Move):
    """A copy of the first operand in which the others overwrite strided boxes, one after the other.

    Attributes:
        boxes: per further operand the first index and the step along each axis.
    """

    boxes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()

    name: ClassVar[str] = "Insert"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: len(s[0]) <= isa.AXES, f"at most {isa.AXES} axes"),
        Constraint(
            lambda op, s: (
                len(op.boxes) == len(s) - 1
                and all(
                    step >= 1 and 0 <= start and start + (n - 1) * step < side
                    for (starts, steps), box in zip(op.boxes, s[1:], strict=True)
                    for start, step, n, side in zip(starts, steps, box, s[0], strict=True)
                )
            ),
            "what is written lies inside the tensor",
        ),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(shapes[0])

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        out = inputs[0].copy()
        for (starts, steps), part in zip(self.boxes, inputs[1:], strict=True):
            axes = [a + step * np.arange(n) for a, step, n in zip(starts, steps, part.shape, strict=True)]
            out[np.ix_(*axes)] = part
        return out

    def copies(self, bound: Bound, sources: Sequence[Home], target: Home) -> Iterator[isa.AnyInstruction]:
        strides, width = dense_strides(bound.output), bound.output.itemsize
        yield copy(sources[0], strides, target, strides, bound.output.shape, width)
        for (starts, steps), source, part in zip(self.boxes, sources[1:], bound.inputs[1:], strict=True):
            place = (target[0], target[1] + sum(a * s for a, s in zip(starts, strides, strict=True)))
            put = tuple(step * s for step, s in zip(steps, strides, strict=True))
            yield copy(source, dense_strides(part), place, put, part.shape, width)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        x = random_tensor(rng)
        boxes, parts = [], []
        for _ in range(int(rng.integers(1, 4))):
            cuts = [random_cut(rng, side) for side in x.shape]
            cuts = [(a + (n - 1) * step, -step, n) if step < 0 else (a, step, n) for a, step, n in cuts]
            boxes.append((tuple(c[0] for c in cuts), tuple(c[1] for c in cuts)))
            parts.append(replace(x, shape=tuple(c[2] for c in cuts)))
        return Sample(cls(tuple(boxes)), (x, *parts), x, {})


def _random_picks(rng: np.random.Generator, side: int) -> tuple[int, ...]:
    """Return any indices, repeats and rounds of all of them, or none."""
    times = int(rng.integers(1, 4))
    everything = np.arange(side)
    found = (
        np.repeat(everything, times),
        np.tile(everything, times),
        rng.integers(0, side, times + 2),
        rng.permutation(side),
        everything[:0],
    )[int(rng.integers(5))]
    return tuple(int(i) for i in found)
