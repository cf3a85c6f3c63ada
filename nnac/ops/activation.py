"""Functions of one value: on int8 every one of them is a table of 256 entries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from nnac import isa
from nnac.ops.base import Block, Bound, Constraint, Op, Sample, Shape, Step, random_quant
from nnac.ops.functions import EXAMPLES, FUNCTIONS
from nnac.types import Array, TensorType

FIXED_RANGES = {"sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128), "hard_sigmoid": (0.0, 255 / 256)}
"""Output ranges that a function has by nature; calibration does not narrow them."""


@dataclass(frozen=True, slots=True)
class Activation(Op):
    """An elementwise function; quantized, a table computed in float64 and rounded once, half to even.

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
        """Return int8 (tables, 256): output for input entry - 128."""
        x = bound.input_quant(0).dequantize(np.arange(-128, 128, dtype=np.int64)).astype(np.float64)
        if self.kind == "prelu":
            slopes = bound.constants[1].astype(np.float64).reshape(-1, 1)
            y = np.where(x < 0, slopes * x, x)
        else:
            y = FUNCTIONS[self.kind](x, *self.params)[None, :]
        quant = bound.quant
        return np.asarray(np.clip(np.rint(y / quant.scale) + quant.zero_point, -128, 127)).astype(np.int8)

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        tables, x = self.tables(bound), inputs[0].astype(np.int64) + 128
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
        )

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        kind = str(rng.choice([*FUNCTIONS, "prelu"]))
        shape = tuple(int(v) for v in rng.integers(1, 6, int(rng.integers(1, 5))))
        inputs, constants = [TensorType(shape, "int8", random_quant(rng))], {}
        if kind == "prelu":
            slopes = rng.normal(size=int(rng.choice([1, shape[-1]]))).astype(np.float32)
            inputs.append(TensorType(slopes.shape, "float32"))
            constants[1] = slopes
        op = cls(kind, EXAMPLES.get(kind, ()))
        return Sample(op, tuple(inputs), TensorType(shape, "int8", random_quant(rng)), constants)
