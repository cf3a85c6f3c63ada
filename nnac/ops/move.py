"""Operators that move elements and change none: reshape, transpose, slice, concat, pad.

Input and output share their quantization. Reshape costs nothing (the planner gives both the same address); the others
are strided copies between the tensors' homes, wherever those are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import numpy as np

from nnac import isa
from nnac.ops.base import Bound, Constraint, Op, Sample, Shape, Work, random_type
from nnac.types import Array, TensorType

Home = tuple[isa.Space, int]


class Move(Op):
    """Base of the movers that copy; they are lowered from home to home, not in stripes."""

    @abstractmethod
    def copies(self, bound: Bound, sources: Sequence[Home], target: Home) -> Iterator[isa.AnyInstruction]:
        """Yield the copies from the operands' homes to the output's home."""

    def work(self, bound: Bound) -> Work:
        return Work()


@dataclass(frozen=True, slots=True)
class Reshape(Op):
    """The same bytes under another shape."""

    shape: tuple[int, ...] = ()

    name: ClassVar[str] = "Reshape"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: prod(s[0]) == prod(op.shape), "input and output have the same number of elements"),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return self.shape

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        return inputs[0].reshape(self.shape)

    def work(self, bound: Bound) -> Work:
        return Work()

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        x = random_tensor(rng)
        shape = tuple(int(v) for v in rng.permutation(x.shape))
        return Sample(cls(shape), (x,), replace(x, shape=shape), {})


@dataclass(frozen=True, slots=True)
class Transpose(Move):
    """Axes in another order."""

    perm: tuple[int, ...] = ()

    name: ClassVar[str] = "Transpose"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: sorted(op.perm) == list(range(len(s[0]))), "perm is a permutation of the axes"),
        Constraint(lambda op, s: len(s[0]) <= isa.AXES, f"at most {isa.AXES} axes"),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(shapes[0][i] for i in self.perm)

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        return np.ascontiguousarray(inputs[0].transpose(self.perm))

    def copies(self, bound: Bound, sources: Sequence[Home], target: Home) -> Iterator[isa.AnyInstruction]:
        strides = dense_strides(bound.inputs[0])
        taken, out = tuple(strides[i] for i in self.perm), bound.output
        yield copy(sources[0], taken, target, dense_strides(out), out.shape, out.itemsize)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        x = random_tensor(rng)
        op = cls(tuple(int(v) for v in rng.permutation(len(x.shape))))
        return Sample(op, (x,), replace(x, shape=op.infer([x.shape])), {})


@dataclass(frozen=True, slots=True)
class Slice(Move):
    """A strided box: per axis a first index, a step (may be negative) and a count."""

    starts: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    name: ClassVar[str] = "Slice"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: len(s[0]) <= isa.AXES, f"at most {isa.AXES} axes"),
        Constraint(
            lambda op, s: all(
                n >= 1 and 0 <= a < side and 0 <= a + (n - 1) * step < side
                for a, step, n, side in zip(op.starts, op.steps, op.sizes, s[0], strict=True)
            ),
            "the slice is not empty and lies inside the tensor",
        ),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return self.sizes

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        index = [a + step * np.arange(n) for a, step, n in zip(self.starts, self.steps, self.sizes, strict=True)]
        return inputs[0][np.ix_(*index)]

    def copies(self, bound: Bound, sources: Sequence[Home], target: Home) -> Iterator[isa.AnyInstruction]:
        strides = dense_strides(bound.inputs[0])
        offset = sum(a * s for a, s in zip(self.starts, strides, strict=True))
        taken = tuple(step * s for step, s in zip(self.steps, strides, strict=True))
        (space, address), out = sources[0], bound.output
        yield copy((space, address + offset), taken, target, dense_strides(out), out.shape, out.itemsize)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        x = random_tensor(rng)
        cuts = [random_cut(rng, side) for side in x.shape]
        starts, steps, sizes = (tuple(c[i] for c in cuts) for i in range(3))
        return Sample(cls(starts, steps, sizes), (x,), replace(x, shape=sizes), {})


@dataclass(frozen=True, slots=True)
class Concat(Move):
    """Operands one behind the other along `axis`."""

    axis: int = 0

    name: ClassVar[str] = "Concat"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: len(s[0]) <= isa.AXES, f"at most {isa.AXES} axes"),
        Constraint(
            lambda op, s: (
                0 <= op.axis < len(s[0])
                and all(t[: op.axis] + t[op.axis + 1 :] == s[0][: op.axis] + s[0][op.axis + 1 :] for t in s)
            ),
            "all operands have the same shape but for the axis",
        ),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        first = shapes[0]
        return (*first[: self.axis], sum(s[self.axis] for s in shapes), *first[self.axis + 1 :])

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        return np.concatenate(list(inputs), axis=self.axis)

    def copies(self, bound: Bound, sources: Sequence[Home], target: Home) -> Iterator[isa.AnyInstruction]:
        strides, at = dense_strides(bound.output), target[1]
        for home, t in zip(sources, bound.inputs, strict=True):
            yield copy(home, dense_strides(t), (target[0], at), strides, t.shape, t.itemsize)
            at += t.shape[self.axis] * strides[self.axis]

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        x = random_tensor(rng)
        axis = int(rng.integers(len(x.shape)))
        sides = [int(v) for v in rng.integers(1, 5, int(rng.integers(1, 4)))]
        types = tuple(replace(x, shape=(*x.shape[:axis], side, *x.shape[axis + 1 :])) for side in sides)
        op = cls(axis)
        return Sample(op, types, replace(x, shape=op.infer([t.shape for t in types])), {})


@dataclass(frozen=True, slots=True)
class Pad(Move):
    """Constant real `value` around the tensor."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    value: float = 0.0

    name: ClassVar[str] = "Pad"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: len(s[0]) <= isa.AXES, f"at most {isa.AXES} axes"),
        Constraint(lambda op, s: all(v >= 0 for v in (*op.before, *op.after)), "pads are not negative"),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(b + s + a for b, s, a in zip(self.before, shapes[0], self.after, strict=True))

    def _fill(self, bound: Bound) -> int:
        return int(bound.quant.quantize(np.array([self.value]))[0])

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        widths = tuple(zip(self.before, self.after, strict=True))
        return np.pad(inputs[0], widths, constant_values=self._fill(bound))

    def copies(self, bound: Bound, sources: Sequence[Home], target: Home) -> Iterator[isa.AnyInstruction]:
        source, out, strides = bound.inputs[0], bound.output, dense_strides(bound.output)
        offset = sum(b * s for b, s in zip(self.before, strides, strict=True))
        space, address = target
        yield isa.Fill(space=space, target=address, count=out.elements, value=self._fill(bound), width=out.itemsize)
        yield copy(sources[0], dense_strides(source), (space, address + offset), strides, source.shape, out.itemsize)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        x = random_tensor(rng)
        before, after = (tuple(int(v) for v in rng.integers(0, 3, len(x.shape))) for _ in range(2))
        op = cls(before, after, float(rng.normal()))
        return Sample(op, (x,), replace(x, shape=op.infer([x.shape])), {})


def dense_strides(tensor: TensorType) -> tuple[int, ...]:
    """Return the byte strides of a dense tensor."""
    return tuple(prod(tensor.shape[i + 1 :]) * tensor.itemsize for i in range(len(tensor.shape)))


def copies(
    source: Home, source_strides: Shape, target: Home, target_strides: Shape, shape: Shape, width: int = 1
) -> Iterator[isa.Copy]:
    """Yield one copy, or as many as it takes where the axes are more than an instruction has."""
    axes = _merged(source_strides, target_strides, shape)
    if len(axes) <= isa.AXES:
        yield copy(source, source_strides, target, target_strides, shape, width)
        return
    (side, s, t), rest = axes[0], tuple(zip(*axes[1:], strict=True))
    for i in range(side):
        first, place = (source[0], source[1] + i * s), (target[0], target[1] + i * t)
        yield from copies(first, rest[1], place, rest[2], rest[0], width)


def copy(
    source: Home, source_strides: Shape, target: Home, target_strides: Shape, shape: Shape, width: int = 1
) -> isa.Copy:
    """Return the copy of elements of `width` bytes: adjoining axes merged, then padded to the instruction's axes."""
    axes = _merged(source_strides, target_strides, shape)
    axes = [(1, 0, 0)] * (isa.AXES - len(axes)) + axes
    return isa.Copy(
        source_space=source[0],
        source=source[1],
        source_strides=tuple(s for _, s, _ in axes),
        target_space=target[0],
        target=target[1],
        target_strides=tuple(t for _, _, t in axes),
        shape=tuple(side for side, _, _ in axes),
        width=width,
    )


def _merged(source_strides: Shape, target_strides: Shape, shape: Shape) -> list[tuple[int, int, int]]:
    """Return (side, source stride, target stride) of the axes, those merged that adjoin on both sides."""
    axes: list[tuple[int, int, int]] = []
    for side, s, t in zip(shape, source_strides, target_strides, strict=True):
        if side == 1:
            continue
        if axes and axes[-1][1] == s * side and axes[-1][2] == t * side:
            axes[-1] = (axes[-1][0] * side, s, t)
        else:
            axes.append((side, s, t))
    return axes


def random_tensor(rng: np.random.Generator) -> TensorType:
    """Return a random activation of 1 to 4 axes."""
    return random_type(rng, tuple(int(v) for v in rng.integers(1, 6, int(rng.integers(1, 5)))))


def random_cut(rng: np.random.Generator, side: int) -> tuple[int, int, int]:
    """Return a random (start, step, count) inside an axis."""
    start, step = int(rng.integers(side)), int(rng.choice([1, 1, 2, -1, -2]))
    reach = (side - 1 - start) // step if step > 0 else start // -step
    return start, step, int(rng.integers(1, reach + 2))
