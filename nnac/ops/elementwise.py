"""Sums, products and magnitudes of tensors: exact wide integers, one rounding at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from nnac import float32, isa
from nnac.graph import Node
from nnac.numerics import ROOT_FRACTION, encode_ratio, encode_ratios
from nnac.ops import exact, single
from nnac.ops.base import (
    UNBOUNDED,
    Bound,
    Constraint,
    Op,
    Rows,
    Sample,
    Shape,
    Step,
    activation,
    clamp_limits,
    random_type,
)
from nnac.types import Array, TensorType

MAX_OPERANDS = 16
OFFSET_MAX = (1 << 32) - 1
Loops = list[tuple[int, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Elementwise(Op):
    """Operands that broadcast by numpy's rule; a row spans the axes behind the last one that all operands agree on."""

    clamp: tuple[float, float] = UNBOUNDED

    layout: ClassVar[str] = "any, broadcasting"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: 1 <= len(s) <= MAX_OPERANDS, f"1 to {MAX_OPERANDS} operands"),
        Constraint(lambda op, s: broadcasts(s), "the shapes broadcast against each other (numpy's rule)"),
        Constraint(
            lambda op, s: not broadcasts(s) or len(loop_nest(s)) <= isa.LOOPS,
            f"the broadcast needs at most {isa.LOOPS} nested loops",
        ),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(int(v) for v in np.broadcast_shapes(*shapes))

    def _cut(self, bound: Bound) -> int:
        """Return how many leading axes form the rows: along them each operand is whole or a single entry."""
        out = bound.output.shape
        shapes = [padded(t.shape, len(out)) for t in bound.inputs]
        fits = [all(s[:cut] == out[:cut] or prod(s[:cut]) == 1 for s in shapes) for cut in range(len(out) + 1)]
        return fits.index(False) - 1 if False in fits else len(out)

    def rows(self, bound: Bound) -> tuple[int, int]:
        count = prod(bound.output.shape[: self._cut(bound)])
        return count, count

    def input_rows(self, bound: Bound, rows: Rows) -> tuple[Rows | None, ...]:
        cut, out = self._cut(bound), bound.output.shape
        whole = [padded(t.shape, len(out))[:cut] == out[:cut] for t in bound.inputs]
        return tuple(rows if full else None for full in whole)

    def nest(self, bound: Bound, step: Step) -> dict[str, Any]:
        """Return the instruction fields that sums and products share: the loop nest of a stripe, operands, result."""
        cut, out = self._cut(bound), bound.output.shape
        stripe = (step.output.hi - step.output.lo, *out[cut:])
        shapes = [padded(t.shape, len(out)) for t in bound.inputs]
        locals_ = [(stripe[0] if s[:cut] == out[:cut] else 1, *s[cut:]) for s in shapes]
        loops = loop_nest([stripe, *locals_])
        fill = isa.LOOPS - len(loops)
        strides = [
            (0,) * fill + tuple(steps[i + 1] * t.itemsize for _, steps in loops) for i, t in enumerate(bound.inputs)
        ]
        quants = [bound.input_quant(i) for i in range(len(shapes))]
        low, high = clamp_limits(self.clamp, bound.quant)
        return {
            "shape": (1,) * fill + tuple(side for side, _ in loops),
            "target": step.output.address,
            "sources": tuple(slab.address for slab in step.inputs),
            "strides": sum(strides, ()),
            "zeros": tuple(quant.zero_point for quant in quants),
            "bits": tuple(quant.bits for quant in quants),
            "out_zero": bound.quant.zero_point,
            "low": low,
            "high": high,
            "out_bits": bound.quant.bits,
        }

    @classmethod
    def _random(cls, rng: np.random.Generator, count: int, bits: Sequence[int | None] = ()) -> tuple[TensorType, ...]:
        """Return operands that broadcast, the first ones with so many bits if not None."""
        shape = tuple(int(v) for v in rng.integers(1, 6, int(rng.integers(1, 5))))
        shapes = [shape]
        for _ in range(count - 1):
            start = int(rng.integers(0, len(shape)))
            keep = rng.random(len(shape)) < 0.7
            shapes.append(tuple(s if k else 1 for s, k in zip(shape, keep, strict=True))[start:])
        order = rng.permutation(count)
        wanted = (*bits, *(None,) * (count - len(bits)))
        return tuple(random_type(rng, shapes[int(i)], bits=n) for i, n in zip(order, wanted, strict=True))


@dataclass(frozen=True, slots=True)
class Sum(Elementwise):
    """Sum of operands with a sign each (Add, Sub, Sum); of one operand, its requantization.

    Attributes:
        signs: +1 or -1 per operand.
    """

    signs: tuple[int, ...] = (1, 1)

    name: ClassVar[str] = "Sum"

    def _ratios(self, bound: Bound) -> tuple[tuple[int, ...], int]:
        if bound.single:
            return self._patterns(bound), bound.lifted
        scales = [bound.input_quant(i).scale / bound.quant.scale for i in range(len(bound.inputs))]
        values, shift = encode_ratios(scales)
        return tuple(v * sign for v, sign in zip(values, self.signs, strict=True)), shift

    def _patterns(self, bound: Bound) -> tuple[int, ...]:
        """Return the bits of the float32 ratios, signs included."""
        scales = [bound.input_quant(i).scale for i in range(len(bound.inputs))]
        found = [float32.float_of(float32.ratio((scale,), bound.quant.scale)[0]) for scale in scales]
        return tuple(float32.pattern_of(sign * ratio) for sign, ratio in zip(self.signs, found, strict=True))

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        ratios, shift = self._ratios(bound)
        if bound.single:
            zeros = [bound.input_quant(i).zero_point for i in range(len(inputs))]
            limits = clamp_limits(self.clamp, bound.quant)
            lift = float32.lift_of(shift)
            return bound.result(single.add(inputs, zeros, ratios, bound.quant.zero_point, *limits, lift))
        acc = np.zeros(bound.output.shape, dtype=np.int64)
        for i, x in enumerate(inputs):
            acc += (x.astype(np.int64) - bound.input_quant(i).zero_point) * ratios[i]
        low, high = clamp_limits(self.clamp, bound.quant)
        rounded = exact.round_shift(acc, shift, bound.law.mode) + bound.quant.zero_point
        return bound.result(exact.saturate(rounded, low, high))

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        ratios, shift = self._ratios(bound)
        yield isa.Sum(**self.nest(bound, step), multipliers=ratios, shift=shift)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        count = int(rng.integers(1, 5))
        types = cls._random(rng, count)
        op = cls((0.0, 6.0) if rng.random() < 0.3 else UNBOUNDED, tuple(int(v) for v in rng.choice([1, -1], count)))
        return Sample(op, types, random_type(rng, op.infer([t.shape for t in types])), {})


@dataclass(frozen=True, slots=True)
class Mul(Elementwise):
    """Product of two operands."""

    name: ClassVar[str] = "Mul"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        *Elementwise.constraints[1:],
        Constraint(lambda op, s: len(s) == 2, "two operands"),
    )

    def _ratio(self, bound: Bound) -> tuple[int, int]:
        if bound.single:
            scales = (bound.input_quant(0).scale, bound.input_quant(1).scale)
            return float32.ratio(scales, bound.quant.scale)[0], bound.lifted
        ratio = bound.input_quant(0).scale * bound.input_quant(1).scale / bound.quant.scale
        return encode_ratio(ratio, bound.law.power_of_two_scales)

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        a, b = (inputs[i].astype(np.int64) - bound.input_quant(i).zero_point for i in (0, 1))
        low, high = clamp_limits(self.clamp, bound.quant)
        if bound.single:
            pattern, shift = self._ratio(bound)
            lift = float32.lift_of(shift)
            return bound.result(single.multiply(a * b, pattern, bound.quant.zero_point, low, high, lift))
        out = exact.requantize(a * b, *self._ratio(bound), bound.quant.zero_point, bound.law.mode, low, high)
        return bound.result(out)

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        multiplier, shift = self._ratio(bound)
        yield isa.Mul(**self.nest(bound, step), multiplier=multiplier, shift=shift)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        types, op = cls._random(rng, 2), cls()
        return Sample(op, types, random_type(rng, op.infer([t.shape for t in types])), {})


@dataclass(frozen=True, slots=True)
class Magnitude(Elementwise):
    """The root of a sum of squares and a constant; operands share their quantization.

    Attributes:
        offset: real number that is added to the squares.
    """

    offset: float = 0.0

    name: ClassVar[str] = "Magnitude"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        *Elementwise.constraints,
        Constraint(lambda op, s: op.offset >= 0, "what is added to the squares is not negative"),
    )

    def ties(self, node: Node) -> tuple[tuple[str, str], ...]:
        return tuple((node.inputs[0], name) for name in node.inputs[1:])

    def _parameters(self, bound: Bound) -> dict[str, Any]:
        scale = bound.input_quant(0).scale
        ratio = scale / bound.quant.scale / (1 << ROOT_FRACTION)
        multiplier, shift = encode_ratio(ratio, bound.law.power_of_two_scales)
        return {"offset": min(round(self.offset / scale**2), OFFSET_MAX), "multiplier": multiplier, "shift": shift}

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        given, quant = self._parameters(bound), bound.quant
        squares = np.full(bound.output.shape, given["offset"], np.int64)
        for i, x in enumerate(inputs):
            squares += (x.astype(np.int64) - bound.input_quant(i).zero_point) ** 2
        limits = clamp_limits(self.clamp, quant)
        scaling = given["multiplier"], given["shift"], quant.zero_point
        return bound.result(exact.magnitude(squares, *scaling, bound.law.mode, *limits))

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        yield isa.Magnitude(**self.nest(bound, step), **self._parameters(bound))

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        types = cls._random(rng, int(rng.integers(1, 5)))
        quant = types[0].quant
        assert quant is not None
        shared = tuple(activation(t.shape, quant) for t in types)
        op = cls(offset=float(rng.choice([0.0, 1e-12, 0.5, 1e9])))
        return Sample(op, shared, random_type(rng, op.infer([t.shape for t in types])), {})


def broadcasts(shapes: Sequence[Shape]) -> bool:
    """Tell whether the shapes broadcast by numpy's rule."""
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


def padded(shape: Shape, rank: int) -> Shape:
    """Return `shape` with leading ones up to `rank`."""
    return (1,) * (rank - len(shape)) + tuple(shape)


def _strides(shape: Shape, out: Shape) -> tuple[int, ...]:
    strides, step = [], 1
    for side, full in zip(reversed(shape), reversed(out), strict=True):
        strides.append(0 if side == 1 and full != 1 else step)
        step *= side
    return tuple(reversed(strides))


def loop_nest(shapes: Sequence[Shape]) -> Loops:
    """Return the shortest loop nest over the broadcast of `shapes`: (trips, stride per shape), outermost first."""
    out = tuple(int(v) for v in np.broadcast_shapes(*shapes))
    strides = [_strides(padded(shape, len(out)), out) for shape in shapes]
    loops: Loops = []
    for axis, side in enumerate(out):
        steps = tuple(s[axis] for s in strides)
        if side == 1:
            continue
        if loops and loops[-1][1] == tuple(s * side for s in steps):
            loops[-1] = (loops[-1][0] * side, steps)
        else:
            loops.append((side, steps))
    return loops or [(1, (0,) * len(shapes))]
