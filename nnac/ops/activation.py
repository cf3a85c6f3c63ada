"""Functions of one value: a table of 256 entries on int8, of 513 knots with lines between them on int16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from nnac import isa
from nnac.numerics import INT16_HIGH, INT16_LOW, INTERPOLATION_ENTRIES, INTERPOLATION_SHIFT
from nnac.ops import exact
from nnac.ops.base import Block, Bound, Constraint, Op, Sample, Shape, Step, random_type
from nnac.ops.functions import EXAMPLES, FUNCTIONS
from nnac.types import Array, TensorType

FIXED_RANGES = {"sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128), "hard_sigmoid": (0.0, 255 / 256)}
"""Output ranges that a function has by nature."""


@dataclass(frozen=True, slots=True)
class Activation(Op):
    """An elementwise function; quantized, a table computed in float64 and rounded once, half to even.

    Knots have 7 more bits than an int8 output, so that the interpolation decides how it rounds.

    The kind "prelu" has a second input: float32 slopes, one, or one per entry of the last axis (a table each).

    Attributes:
        kind: a key of `FUNCTIONS`, or "prelu".
        params: the function's parameters, numbers (of "composed", steps: see `nnac.ops.functions.composed`).
    """

    kind: str = "identity"
    params: tuple[Any, ...] = ()

    name: ClassVar[str] = "Activation"
    operands: ClassVar[int | None] = 1
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(
            lambda op, s: op.kind in FUNCTIONS or op.kind == "prelu",
            f"the function is one of {', '.join(FUNCTIONS)}, prelu",
        ),
        Constraint(
            lambda op, s: op.kind != "prelu" or (len(s) == 2 and prod(s[1]) in (1, s[0][-1])),
            "PRelu has one slope, or one per channel",
        ),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(shapes[0])

    def tables(self, bound: Bound) -> Array:
        """Return (tables, 256) outputs for input entry - 128, or (tables, 513) knots for input 128 * entry - 32768."""
        quant = bound.quant
        if bound.input_quant(0).bits == 8:
            reals = self._reals(bound, np.arange(-128, 128, dtype=np.int64))
            if bound.single:  # float32 to the end, as QuantizeLinear behind a float operator
                return quant.quantize(reals)
            y = reals / quant.scale + quant.zero_point
            return bound.result(np.clip(np.rint(y), quant.low, quant.high))  # y may be infinite
        knots = 128 * np.arange(INTERPOLATION_ENTRIES, dtype=np.int64) + INT16_LOW
        y = self._reals(bound, knots) / quant.scale * 2.0 ** (self._shift(bound) - INTERPOLATION_SHIFT)
        return np.clip(np.rint(y), INT16_LOW, INT16_HIGH).astype(np.int16)

    def _shift(self, bound: Bound) -> int:
        """Return the shift of `numerics.interpolate`."""
        return INTERPOLATION_SHIFT + (7 if bound.quant.bits == 8 else 0)

    def _reals(self, bound: Bound, x: Array) -> Array:
        """Return the function of quantized inputs (entries,), in float64 (tables, entries)."""
        real = bound.input_quant(0).dequantize(x).astype(np.float64)
        if self.kind == "prelu":
            slopes = bound.constants[1].astype(np.float64).reshape(-1, 1)
            return np.where(real < 0, slopes * real, real)
        return FUNCTIONS[self.kind](real, *self.params)[None, :]

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        tables, quant = self.tables(bound), bound.quant
        if bound.input_quant(0).bits == 16:
            table = tables[0] if len(tables) == 1 else tables
            shift, law = self._shift(bound), bound.law
            out = exact.interpolate(inputs[0], table, law.mode, quant.low, quant.high, shift, quant.zero_point)
            return bound.result(out)
        x = inputs[0].astype(np.int64) + 128
        if len(tables) == 1:
            return np.asarray(tables[0][x])
        return np.asarray(tables[np.arange(x.shape[-1]), x])

    def rows(self, bound: Bound) -> tuple[int, int]:
        last = bound.output.shape[-1] if self.kind == "prelu" else 1
        count = bound.output.elements // max(last, 1)
        return count, count

    def blocks(self, bound: Bound, limit: int, granule: int) -> list[Block]:
        return [Block(0, 1, self.tables(bound).tobytes(), np.zeros(0, np.int8))]

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        rows, _ = self.rows(bound)
        count = (step.output.hi - step.output.lo) * (bound.output.elements // rows)
        yield isa.Lookup(
            source=step.inputs[0].address,
            target=step.output.address,
            count=count,
            table=step.params,
            tables=len(self.tables(bound)),
            shift=self._shift(bound) if bound.input_quant(0).bits == 16 else 0,
            out_zero=bound.quant.zero_point if bound.input_quant(0).bits == 16 else 0,
            in_bits=bound.input_quant(0).bits,
            out_bits=bound.quant.bits,
        )

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        kind = str(rng.choice([*FUNCTIONS, "prelu"]))
        shape = tuple(int(v) for v in rng.integers(1, 6, int(rng.integers(1, 5))))
        inputs, constants = [random_type(rng, shape)], {}
        if kind == "prelu":
            slopes = rng.normal(size=int(rng.choice([1, shape[-1]]))).astype(np.float32)
            inputs.append(TensorType(slopes.shape, "float32"))
            constants[1] = slopes
        op = cls(kind, EXAMPLES.get(kind, ()))
        return Sample(op, tuple(inputs), random_type(rng, shape), constants)
