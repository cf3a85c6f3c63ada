"""Products of two activations on the MAC array: attention's scores and sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from nnac import isa
from nnac.norms import DEPTH_MAX, product_bits
from nnac.numerics import WIDE_BITS, encode_ratio
from nnac.ops import exact
from nnac.ops.base import (
    UNBOUNDED,
    Bound,
    Constraint,
    Op,
    Rows,
    Sample,
    Shape,
    Step,
    Work,
    clamp_limits,
    random_type,
)
from nnac.ops.elementwise import broadcasts
from nnac.types import Array

LEFT, RIGHT = 0, 1


@dataclass(frozen=True, slots=True)
class MatMul(Op):
    """Product of (..., M, K) and (..., K, N), whose leading axes broadcast; one rounding per entry.

    Attributes:
        turned: the right operand is (..., N, K).
        factor: positive; what the product is multiplied with, as 1 / sqrt(K) in attention.
        clamp: real interval that the result is clamped to.
    """

    turned: bool = False
    factor: float = 1.0
    clamp: tuple[float, float] = UNBOUNDED

    name: ClassVar[str] = "MatMul"
    layout: ClassVar[str] = "matrices last"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: len(s) == 2 and min(map(len, s)) >= 2, "two tensors of rank 2 or more"),
        Constraint(lambda op, s: s[LEFT][-1] == op.inner(s[RIGHT]), "the inner sides of the matrices are equal"),
        Constraint(lambda op, s: broadcasts([t[:-2] for t in s]), "the leading axes broadcast (numpy's rule)"),
        Constraint(lambda op, s: s[LEFT][-1] <= DEPTH_MAX, f"the inner side is at most {DEPTH_MAX}"),
        Constraint(lambda op, s: op.factor > 0, "the factor is positive"),
    )

    def inner(self, right: Shape) -> int:
        """Return the side of the right operand that is summed over."""
        return right[-1 if self.turned else -2]

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        lead = np.broadcast_shapes(*(shape[:-2] for shape in shapes))
        return (*map(int, lead), shapes[LEFT][-2], shapes[RIGHT][-2 if self.turned else -1])

    def _ratio(self, bound: Bound) -> tuple[int, int]:
        ratio = self.factor * bound.input_quant(LEFT).scale * bound.input_quant(RIGHT).scale / bound.quant.scale
        return encode_ratio(ratio, bound.law.power_of_two_scales, product_bits(self._wide(bound)))

    def _wide(self, bound: Bound) -> int:
        """Return how many operands have 16 bits."""
        return sum(bound.input_quant(i).bits == 16 for i in (LEFT, RIGHT))

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        x, w = (inputs[i].astype(np.int64) - bound.input_quant(i).zero_point for i in (LEFT, RIGHT))
        acc = x @ (w.swapaxes(-1, -2) if self.turned else w)
        law, wide = bound.law, self._wide(bound)
        acc = exact.narrow(acc, law.accumulator_bits + wide * WIDE_BITS, law.wraps)
        scaled, limits = exact.requantize_wide if wide else exact.requantize, clamp_limits(self.clamp, bound.quant)
        return bound.result(scaled(acc, *self._ratio(bound), bound.quant.zero_point, law.mode, *limits))

    def work(self, bound: Bound) -> Work:
        return Work(macs=bound.output.elements * bound.inputs[LEFT].shape[-1])

    def rows(self, bound: Bound) -> tuple[int, int]:
        return prod(bound.output.shape[:-1]), bound.output.shape[-2]

    def operand_rows(self, bound: Bound) -> tuple[int, ...]:
        left, right = (t.shape for t in bound.inputs)
        return prod(left[:-1]), prod(right[:-2])

    def input_rows(self, bound: Bound, rows: Rows) -> tuple[Rows | None, ...]:
        height, batch = bound.output.shape[-2], rows[0] // bound.output.shape[-2]
        left, right = (_entry(t.shape[:-2], bound.output.shape[:-2], batch) for t in bound.inputs)
        whole = prod(bound.inputs[RIGHT].shape[:-2]) == 1
        first = (left - batch) * height
        return (rows[0] + first, rows[1] + first), None if whole else (right, right + 1)

    def most_rows(self, bound: Bound, rows: int) -> tuple[int | None, ...]:
        return rows, None if prod(bound.inputs[RIGHT].shape[:-2]) == 1 else 1

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        multiplier, shift = self._ratio(bound)
        left, right = bound.input_quant(LEFT), bound.input_quant(RIGHT)
        low, high = clamp_limits(self.clamp, bound.quant)
        yield isa.MatMul(
            source=step.inputs[LEFT].address,
            right=step.inputs[RIGHT].address,
            target=step.output.address,
            rows=step.output.hi - step.output.lo,
            columns=bound.output.shape[-1],
            depth=bound.inputs[LEFT].shape[-1],
            turned=int(self.turned),
            in_zero=left.zero_point,
            right_zero=right.zero_point,
            out_zero=bound.quant.zero_point,
            multiplier=multiplier,
            shift=shift,
            low=low,
            high=high,
            in_bits=left.bits,
            right_bits=right.bits,
            out_bits=bound.quant.bits,
        )

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        rows, depth, columns = (int(v) for v in rng.integers(1, 20, 3))
        op = cls(bool(rng.integers(2)), float(rng.choice([1.0, 0.125, 0.3])))
        lead = tuple(int(v) for v in rng.integers(1, 4, int(rng.integers(0, 3))))
        leads = [
            tuple(side if rng.random() < 0.7 else 1 for side in lead)[int(rng.integers(len(lead) + 1)) :]
            for _ in range(2)
        ]
        turned = (columns, depth) if op.turned else (depth, columns)
        types = tuple(random_type(rng, (*a, *b)) for a, b in zip(leads, ((rows, depth), turned), strict=True))
        spread = 2.0 ** int(rng.integers(0, 8))
        return Sample(op, types, random_type(rng, op.infer([t.shape for t in types]), spread), {})


def _entry(lead: Shape, out: Shape, batch: int) -> int:
    """Return which matrix of an operand with leading axes `lead` belongs to matrix `batch` of the result."""
    lead = (1,) * (len(out) - len(lead)) + lead
    place = np.unravel_index(batch, out) if out else ()
    index = 0
    for side, at in zip(lead, place, strict=True):
        index = index * side + (int(at) if side > 1 else 0)
    return index
