"""Quotients, extremes and choices of tensors: exact on wide integers, one rounding at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nnac import isa
from nnac.numerics import encode_ratio, encode_ratios
from nnac.ops import exact
from nnac.ops.base import UNBOUNDED, Bound, Constraint, Sample, Step, clamp_limits, random_type
from nnac.ops.elementwise import Elementwise
from nnac.types import Array

WIDE = (16,)


@dataclass(frozen=True, slots=True)
class Div(Elementwise):
    """Quotient of two operands; by zero it saturates, with the numerator's sign (`norms.quotient`)."""

    name: ClassVar[str] = "Div"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        *Elementwise.constraints[1:],
        Constraint(lambda op, s: len(s) == 2, "two operands"),
    )

    def widths(self, operands: int) -> tuple[tuple[int, ...], ...]:
        """The divisor is int16: its relative error is the result's."""
        numerator, _, result = super(Div, self).widths(operands)
        return numerator, WIDE, result

    def _ratio(self, bound: Bound) -> tuple[int, int]:
        ratio = bound.input_quant(0).scale / bound.input_quant(1).scale / bound.quant.scale
        return encode_ratio(ratio, bound.law.power_of_two_scales)

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        a, b = (inputs[i].astype(np.int64) - bound.input_quant(i).zero_point for i in (0, 1))
        low, high = clamp_limits(self.clamp, bound.quant)
        out = exact.quotient(a, b, *self._ratio(bound), bound.quant.zero_point, bound.law.mode, low, high)
        return bound.result(out)

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        multiplier, shift = self._ratio(bound)
        yield isa.Div(**self.nest(bound, step), multiplier=multiplier, shift=shift)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        types = cls._random(rng, 2, bits=(None, 16))
        op = cls((0.0, 6.0) if rng.random() < 0.3 else UNBOUNDED)
        return Sample(op, types, random_type(rng, op.infer([t.shape for t in types])), {})


@dataclass(frozen=True, slots=True)
class Extreme(Elementwise):
    """The largest of its operands, or the smallest, entry by entry (Max, Min).

    Attributes:
        least: the smallest.
    """

    least: bool = False

    name: ClassVar[str] = "Extreme"

    def _ratios(self, bound: Bound) -> tuple[tuple[int, ...], int]:
        return encode_ratios([bound.input_quant(i).scale / bound.quant.scale for i in range(len(bound.inputs))])

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        ratios, shift = self._ratios(bound)
        products = [
            (x.astype(np.int64) - bound.input_quant(i).zero_point) * ratios[i] + np.zeros(bound.output.shape, np.int64)
            for i, x in enumerate(inputs)
        ]
        chosen = np.min(products, axis=0) if self.least else np.max(products, axis=0)
        low, high = clamp_limits(self.clamp, bound.quant)
        rounded = exact.round_shift(chosen, shift, bound.law.mode) + bound.quant.zero_point
        return bound.result(exact.saturate(rounded, low, high))

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        ratios, shift = self._ratios(bound)
        yield isa.Extreme(**self.nest(bound, step), multipliers=ratios, shift=shift, least=int(self.least))

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        types = cls._random(rng, int(rng.integers(1, 5)))
        op = cls((0.0, 6.0) if rng.random() < 0.3 else UNBOUNDED, bool(rng.integers(2)))
        return Sample(op, types, random_type(rng, op.infer([t.shape for t in types])), {})


@dataclass(frozen=True, slots=True)
class Select(Elementwise):
    """The third of four operands where the first and the second compare as `relation` says, else the fourth.

    Attributes:
        relation: index into `isa.RELATIONS`.
    """

    relation: int = 0

    name: ClassVar[str] = "Select"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        *Elementwise.constraints[1:],
        Constraint(lambda op, s: len(s) == 4, "two tensors that are compared, and two that are chosen from"),
        Constraint(lambda op, s: 0 <= op.relation < len(isa.RELATIONS), "the relation is <, <= or =="),
    )

    def _ratios(self, bound: Bound) -> tuple[tuple[int, ...], int]:
        scales = [bound.input_quant(i).scale for i in range(4)]
        compared, _ = encode_ratios([scale / max(scales[:2]) for scale in scales[:2]])
        chosen, shift = encode_ratios([scale / bound.quant.scale for scale in scales[2:]])
        return (*compared, *chosen), shift

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        ratios, shift = self._ratios(bound)
        a, b, yes, no = (
            (x.astype(np.int64) - bound.input_quant(i).zero_point) * ratios[i] for i, x in enumerate(inputs)
        )
        holds = (a < b, a <= b, a == b)[self.relation]
        low, high = clamp_limits(self.clamp, bound.quant)
        rounded = exact.round_shift(np.where(holds, yes, no), shift, bound.law.mode) + bound.quant.zero_point
        return bound.result(exact.saturate(rounded, low, high))

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        ratios, shift = self._ratios(bound)
        yield isa.Select(**self.nest(bound, step), multipliers=ratios, shift=shift, relation=self.relation)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        op = cls((0.0, 6.0) if rng.random() < 0.3 else UNBOUNDED, int(rng.integers(3)))
        types = cls._random(rng, 4)
        while op.problems([t.shape for t in types]):
            types = cls._random(rng, 4)
        return Sample(op, types, random_type(rng, op.infer([t.shape for t in types])), {})
