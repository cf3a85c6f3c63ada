"""Functions of one value: a table of 256 entries on int8; on int16 knots with lines between them.

There are 513 knots at equal distances, or 385 by octaves where these come nearer to the function, by the largest error
halfway between knots: a logarithm or a root bends near zero, a sigmoid does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from nnac import isa
from nnac.numerics import (
    INT16_HIGH,
    INT16_LOW,
    INTERPOLATION_ENTRIES,
    INTERPOLATION_SHIFT,
    OCTAVE_ENTRIES,
    OCTAVE_SHIFT,
    OCTAVE_ZERO,
    octave_place,
)
from nnac.ops import exact
from nnac.ops.base import Block, Bound, Constraint, Op, Sample, Shape, Step, random_type
from nnac.ops.functions import EXAMPLES, FUNCTIONS
from nnac.types import Array, TensorType

FIXED_RANGES = {"sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128), "hard_sigmoid": (0.0, 255 / 256)}
"""Output ranges that a function has by nature."""
EVEN = 128 * np.arange(INTERPOLATION_ENTRIES, dtype=np.int64) + INT16_LOW
_UP = np.array([octave_place(k) for k in range(OCTAVE_ZERO + 1)])
OCTAVES = np.concatenate([-_UP[:0:-1], _UP])
"""Inputs of the knots of `numerics.interpolate` and `numerics.interpolate_octaves`."""
HALFWAY = np.concatenate([(places[1:] + places[:-1]) // 2 for places in (EVEN, OCTAVES)])


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
        """Return (tables, 256) outputs for input entry - 128, or (tables, 513) or (tables, 385) knots."""
        quant = bound.quant
        if bound.input_quant(0).bits == 8:
            reals = self._reals(bound, np.arange(-128, 128, dtype=np.int64))
            if bound.single:  # float32 to the end, as QuantizeLinear behind a float operator
                return quant.quantize(reals)
            y = reals / quant.scale + quant.zero_point
            return bound.result(np.clip(np.rint(y), quant.low, quant.high))  # y may be infinite
        even, octaves = (self._knots(bound, places) for places in (EVEN, OCTAVES))
        return octaves if self._error(bound, octaves) < self._error(bound, even) else even

    def _knots(self, bound: Bound, places: Array) -> Array:
        """Return the int16 knots (tables, places) at int16 inputs."""
        y = self._reals(bound, places) / bound.quant.scale * 2.0 ** _finer(bound)
        return np.clip(np.rint(y), INT16_LOW, INT16_HIGH).astype(np.int16)

    def _error(self, bound: Bound, knots: Array) -> float:
        """Return the largest error of the interpolated function halfway between knots, in steps of the output."""
        quant = bound.quant
        exact_y = np.clip(self._reals(bound, HALFWAY) / quant.scale + quant.zero_point, quant.low, quant.high)
        found = np.stack([self._interpolated(bound, HALFWAY, row) for row in knots])
        return float(np.abs(found - exact_y).max())

    def _interpolated(self, bound: Bound, x: Array, knots: Array) -> Array:
        """Return the exact integers for int16 inputs, by one table or by one per entry of the last axis."""
        quant, finer = bound.quant, _finer(bound)
        law = bound.law.mode, quant.low, quant.high
        if knots.shape[-1] == OCTAVE_ENTRIES:
            return exact.interpolate_octaves(x, knots, *law, OCTAVE_SHIFT + finer, quant.zero_point)
        return exact.interpolate(x, knots, *law, INTERPOLATION_SHIFT + finer, quant.zero_point)

    def _reals(self, bound: Bound, x: Array) -> Array:
        """Return the function of quantized inputs (entries,), in float64 (tables, entries)."""
        real = bound.input_quant(0).dequantize(x).astype(np.float64)
        if self.kind == "prelu":
            slopes = bound.constants[1].astype(np.float64).reshape(-1, 1)
            return np.where(real < 0, slopes * real, real)
        return FUNCTIONS[self.kind](real, *self.params)[None, :]

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        tables = self.tables(bound)
        if bound.input_quant(0).bits == 16:
            return bound.result(self._interpolated(bound, inputs[0], tables[0] if len(tables) == 1 else tables))
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
        tables, wide = self.tables(bound), bound.input_quant(0).bits == 16
        octaves = wide and tables.shape[1] == OCTAVE_ENTRIES
        base = OCTAVE_SHIFT if octaves else INTERPOLATION_SHIFT
        yield isa.Lookup(
            source=step.inputs[0].address,
            target=step.output.address,
            count=count,
            table=step.params,
            tables=len(tables),
            shift=base + _finer(bound) if wide else 0,
            out_zero=bound.quant.zero_point if wide else 0,
            octaves=int(octaves),
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


def _finer(bound: Bound) -> int:
    """Return how many bits the knots of an int16 input have more than the output."""
    return 7 if bound.quant.bits == 8 else 0
