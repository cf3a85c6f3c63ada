"""Softmax along the last axis in integers: a table of exponentials, one exact quotient per element."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from nnac import isa
from nnac.numerics import encode_ratio, softmax_table
from nnac.ops import exact
from nnac.ops.base import Block, Bound, Constraint, Op, Sample, Shape, Step, random_type
from nnac.types import Array

FIXED_RANGE = (0.0, 255 / 256)
"""The output's range: scale 1/256 and zero point -128."""


@dataclass(frozen=True, slots=True)
class Softmax(Op):
    """exp(x - max) / sum over the last axis (see `numerics.softmax`)."""

    name: ClassVar[str] = "Softmax"
    layout: ClassVar[str] = "normalised axis last"
    operands: ClassVar[int | None] = 1
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: len(s[0]) >= 1 and 1 <= s[0][-1] <= 1 << 20, "the axis has 1 to 1048576 entries"),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(shapes[0])

    def _ratio(self, bound: Bound) -> tuple[int, int]:
        return encode_ratio(1.0 / bound.quant.scale, bound.law.power_of_two_scales)

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        quant = bound.quant
        return bound.result(
            exact.softmax(
                inputs[0],
                self._table(bound),
                *self._ratio(bound),
                quant.zero_point,
                bound.law.mode,
                quant.low,
                quant.high,
            )
        )

    def _table(self, bound: Bound) -> Array:
        quant = bound.input_quant(0)
        return np.array(softmax_table(quant.scale, quant.bits, fine=bound.single), dtype="<i4")

    def rows(self, bound: Bound) -> tuple[int, int]:
        count = prod(bound.output.shape[:-1])
        return count, count

    def blocks(self, bound: Bound, limit: int, granule: int) -> list[Block]:
        return [Block(0, 1, self._table(bound).tobytes(), np.zeros(0, np.int8))]

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        multiplier, shift = self._ratio(bound)
        yield isa.Softmax(
            source=step.inputs[0].address,
            target=step.output.address,
            rows=step.output.hi - step.output.lo,
            length=bound.output.shape[-1],
            table=step.params,
            multiplier=multiplier,
            shift=shift,
            out_zero=bound.quant.zero_point,
            in_bits=bound.input_quant(0).bits,
            out_bits=bound.quant.bits,
        )

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        shape = tuple(int(v) for v in rng.integers(1, 20, int(rng.integers(1, 4))))
        return Sample(cls(), (random_type(rng, shape),), random_type(rng, shape, 1 / 128), {})
