"""Recurrent layers: LSTM, GRU and the plain recurrent net, as loops over time with their states on the device.

The input's part of the gates is a dense layer in front, over all steps at once; what remains per step is the product of
the hidden values with the recurrent weights, on the array, and the update of the cells, on the vector unit. Gate
pre-activations are int16 in Q3.12, cells int16 with a power-of-two scale, hidden values int8 (or int16); see
`nnac.cells.lstm_cell` and `nnac.cells.gru_cell`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np

from nnac import isa
from nnac.graph import Node
from nnac.numerics import GATE_BITS, INT16_HIGH, UNIT_BITS
from nnac.ops.base import (
    EITHER,
    Block,
    Bound,
    Constraint,
    Fetch,
    Op,
    Rows,
    Sample,
    Shape,
    Slab,
    Step,
    Turn,
    Work,
    activation,
    random_quant,
)
from nnac.ops.conv import Dense, channel_blocks
from nnac.ops.move import copy
from nnac.types import Array, Quant, TensorType, aligned

GATES = Quant(2.0**-GATE_BITS, 0, 16)
"""Pre-activations of gates."""
UNIT = Quant(2.0**-UNIT_BITS, 0, 16)
"""State of a GRU."""
BOUNDED = ("sigmoid", "tanh", "hard_sigmoid", "softsign")
"""Functions whose values Q0.15 holds."""
GATE, CELL = range(2)
"""Parts."""
Reals = Array
Product = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class _Matrix:
    """Recurrent weights of neighbouring gates, as a dense layer from the hidden values to their pre-activations.

    Attributes:
        first: the first row of the gates' pre-activations that they make.
        bound: of the dense layer.
    """

    first: int
    bound: Bound

    def product(self, hidden: Array) -> Array:
        """Return the exact pre-activations (batch, rows), int16."""
        return Dense().reference(self.bound, [hidden, *(self.bound.constants[i] for i in (1, 2, 3))])

    def lower(self, step: Step, pitch: int) -> tuple[isa.AnyInstruction, ...]:
        """Return the product of one block, written to rows of `pitch` values."""
        target = step.output.address + self.first * self.bound.output.itemsize
        moved = replace(step, output=replace(step.output, address=target))
        return tuple(replace(i, pitch=pitch) for i in Dense().lower(self.bound, moved) if isinstance(i, isa.Conv))


@dataclass(frozen=True, slots=True)
class Recurrent(Op):
    """Base: inputs are the gates' input part (T, B, G * H), the initial states (B, H), then constants of `Dense`.

    Those are the recurrent weights (G * H, H), their bias (G * H,) and, once quantized, scales. The result is
    (T, B, H), behind it the last inner state, if there is one. A stripe is a run of steps.

    Attributes:
        reverse: time runs from the last row to the first.
        clip: magnitude that pre-activations are clipped to; 0: none.
    """

    reverse: bool = False
    clip: float = 0.0

    layout: ClassVar[str] = "time, batch, gates"
    gates: ClassVar[int] = 1
    weighted: ClassVar[bool] = True
    inner: ClassVar[bool] = True
    """Whether there is an inner state beside the hidden values: the last operand, and the second output."""
    parts: ClassVar[tuple[str, ...]] = ("recurrent gates", "cell")
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: len(s[0]) == 3, "the gates are (time, batch, gates * hidden)"),
        Constraint(lambda op, s: len(s) >= op.operands + 2, "weights and bias are given"),
        Constraint(
            lambda op, s: all(shape == (s[0][1], s[0][2] // op.gates) for shape in s[1 : op.operands]),
            "states are (batch, hidden)",
        ),
        Constraint(
            lambda op, s: s[op.operands] == (s[0][2], s[0][2] // op.gates) and s[0][2] % op.gates == 0,
            "recurrent weights are (gates * hidden, hidden)",
        ),
    )

    # -- shapes ----------------------------------------------------------------------------------------------------

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        time, batch, gates = shapes[0]
        return time, batch, gates // self.gates

    def work(self, bound: Bound) -> Work:
        hidden, rows = bound.output.shape[-1], bound.output.elements
        return Work(macs=rows * self.gates * hidden, elements=rows)

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        time, *state = self.infer(shapes)
        return ((time, *state), tuple(state)) if self.inner else ((time, *state),)

    def pins(self, node: Node) -> dict[str, Quant]:
        return {node.inputs[0]: GATES}

    def reach(self, node: Node) -> dict[str, float]:
        """Return the largest magnitudes of values of `node` beyond which integers would not stand for the float net."""
        return {}

    def hidden_ties(self, node: Node) -> tuple[tuple[str, str], ...]:
        """Return the pair of initial and resulting hidden values, where they share a quantization."""
        return tuple(pair for pair in self.ties(node) if node.output in pair)

    def widths(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return ((16,), *(EITHER,) * operands)

    def rows(self, bound: Bound) -> tuple[int, int]:
        return bound.output.shape[0], bound.output.shape[0]

    def input_rows(self, bound: Bound, rows: Rows) -> tuple[Rows | None, ...]:
        assert self.operands is not None
        return (rows, *(None,) * (self.operands - 1))

    def times(self, first: int, end: int) -> range:
        """Return the steps of rows [first, end) in the order of time."""
        return range(end - 1, first - 1, -1) if self.reverse else range(first, end)

    # -- constants -------------------------------------------------------------------------------------------------

    def cuts(self, hidden: int) -> tuple[int, ...]:
        """Return where the rows of the weights fall into matrices that see different hidden values."""
        return (0, self.gates * hidden)

    def matrices(self, bound: Bound) -> list[_Matrix]:
        """Return the recurrent weights as dense layers."""
        assert self.operands is not None
        weight, bias, scale = (bound.constants[self.operands + i] for i in range(3))
        _, batch, hidden = bound.output.shape
        seen, cuts, found = replace(bound.output, shape=(batch, hidden)), self.cuts(hidden), []
        for lo, hi in pairwise(cuts):
            constants = {1: weight[lo:hi], 2: bias[lo:hi], 3: scale[lo:hi]}
            types = tuple(TensorType(a.shape, a.dtype.name) for a in constants.values())
            found.append(_Matrix(lo, Bound((seen, *types), activation((batch, hi - lo), GATES), constants, bound.law)))
        return found

    @abstractmethod
    def table(self, bound: Bound) -> bytes:
        """Return the constants of the cell's update."""

    def blocks(self, bound: Bound, limit: int, granule: int) -> list[Block]:
        """Return the constants of the update, and then, per matrix, its channels in blocks."""
        found = [Block(0, 1, self.table(bound), np.zeros(0, np.int8))]
        for matrix in self.matrices(bound):
            found += channel_blocks(matrix.bound, limit, granule)
        return found

    def kept(self, bound: Bound) -> int:
        return aligned(len(self.table(bound)))

    def limit(self) -> int:
        """Return the magnitude that pre-activations are clipped to, in Q3.12."""
        return min(INT16_HIGH, max(1, round(self.clip * 2**GATE_BITS))) if self.clip else INT16_HIGH

    # -- a stripe --------------------------------------------------------------------------------------------------

    def scratch(self, bound: Bound) -> int:
        """Recurrent parts of the gates, int16, and two rows of hidden values."""
        _, batch, hidden = bound.output.shape
        return batch * hidden * (2 * self.gates + 2 * bound.output.itemsize)

    def turns(self, bound: Bound, step: Step, blocks: Sequence[Block], fetch: Fetch) -> Iterator[Turn]:
        steps = self.times(step.output.lo, step.output.hi)
        whole = self.times(0, bound.output.shape[0])
        stripe = Stripe(self.gates, bound, step, steps[0] == whole[0])
        yield from self.begin(bound, stripe)
        matrices = self.matrices(bound)
        cut = [index for index, block in enumerate(blocks) if block.lo == 0]
        for number, time in enumerate(steps):
            for phase, (matrix, first, end) in enumerate(zip(matrices, cut[1:], (*cut[2:], len(blocks)), strict=True)):
                seen = stripe.hidden(number, steps) if phase == 0 else stripe.masked
                for index in range(first, end):
                    loads, (params, weights) = fetch(index)
                    slabs = (Slab(seen, 0, stripe.batch),), Slab(stripe.parts, 0, stripe.batch)
                    block = Step(*slabs, block=blocks[index], params=params, weights=weights)
                    yield Turn((*loads, *matrix.lower(block, stripe.width)), GATE, number)
                loads, (params, _) = fetch(0)
                update = self.update(bound, stripe, time, stripe.first and number == 0, params, phase)
                yield Turn((*loads, *update), CELL, number)
        if steps[-1] != whole[-1]:
            yield Turn((stripe.carry_over(steps[-1]),), CELL)

    def begin(self, bound: Bound, stripe: Stripe) -> Iterator[Turn]:
        """Yield what prepares the hidden values that the first step sees."""
        return iter(())

    @abstractmethod
    def update(
        self, bound: Bound, stripe: Stripe, time: int, first: bool, params: int, phase: int
    ) -> tuple[isa.AnyInstruction, ...]:
        """Return the update of the cells at `time`; `first` of the sequence, behind matrix `phase`."""

    # -- meaning ---------------------------------------------------------------------------------------------------

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        return self.results(bound, inputs)[0]

    def results(self, bound: Bound, inputs: Sequence[Array]) -> tuple[Array, ...]:
        products, states = [m.product for m in self.matrices(bound)], list(inputs[1 : self.operands])
        y = np.empty(bound.output.shape, bound.output.dtype)
        for time in self.times(0, len(y)):
            y[time], states = self.step(bound, inputs[0][time], states, products)
        more = [np.asarray(s).astype(t.dtype) for s, t in zip(states[-len(bound.more) :], bound.more, strict=False)]
        return (y, *more) if bound.more else (y,)

    @abstractmethod
    def step(
        self, bound: Bound, x: Array, states: list[Array], products: Sequence[Product]
    ) -> tuple[Array, list[Array]]:
        """Return the hidden values of one step and the states behind it, exact integers."""

    @abstractmethod
    def real_step(self, x: Reals, states: list[Reals], weight: Reals, bias: Reals) -> tuple[Reals, list[Reals]]:
        """Return one step of the float net."""

    def real(self, inputs: Sequence[Reals]) -> tuple[Reals, Reals]:
        """Return (T, B, H) hidden values and last states at every step of the float net, for calibration."""
        assert self.operands is not None
        states = [np.asarray(s, np.float64) for s in inputs[1 : self.operands]]
        weight, bias = (np.asarray(inputs[self.operands + i], np.float64) for i in (0, 1))
        hidden, inner = {}, {}
        for time in self.times(0, len(inputs[0])):
            hidden[time], states = self.real_step(np.asarray(inputs[0][time], np.float64), states, weight, bias)
            inner[time] = states[-1]
        order = sorted(hidden)
        return np.stack([hidden[t] for t in order]), np.stack([inner[t] for t in order])

    def seen(self, inputs: Sequence[Reals], hidden: Reals) -> Reals:
        """Return (groups, T * B, H) hidden values of the float net that equal runs of its weights multiply.

        Args:
            inputs: all of them.
            hidden: (T, B, H), as `real` returns them.
        """
        times = self.times(0, len(hidden))
        before = np.empty_like(hidden)
        before[times[0]] = inputs[1]
        for earlier, time in pairwise(times):
            before[time] = hidden[earlier]
        return before.reshape(1, -1, hidden.shape[-1])

    def clipped(self, x: Reals) -> Reals:
        """Return real pre-activations as the net clips them."""
        return np.clip(x, -self.clip, self.clip) if self.clip else x

    # -- samples ---------------------------------------------------------------------------------------------------

    @classmethod
    def sampled(
        cls, op: Recurrent, rng: np.random.Generator, states: Callable[[Shape, Quant], list[TensorType]]
    ) -> Sample:
        """Return a sample of `op` with random sides, weights and scales."""
        time, batch, hidden = (int(v) for v in rng.integers(1, (7, 4, 14)))
        rows, quant = op.gates * hidden, random_quant(rng, 1 / 4)
        weight = rng.integers(-127, 128, (rows, hidden)).astype(np.int8)
        bias = rng.integers(-20000, 20000, rows).astype(np.int32)
        scale = (2.0 ** rng.uniform(-10, -5, rows)).astype(np.float32)
        operands = [activation((time, batch, rows), GATES), *states((batch, hidden), quant)]
        constants: dict[int, Array] = dict(enumerate((weight, bias, scale), len(operands)))
        types = [TensorType(a.shape, a.dtype.name) for a in constants.values()]
        more = tuple(operands[-1:]) if op.inner else ()
        return Sample(op, (*operands, *types), activation((time, batch, hidden), quant), constants, more)


@dataclass(frozen=True, slots=True)
class Stripe:
    """Addresses of one stripe: `parts` the recurrent parts of the gates, `carry` and `masked` rows of hidden values."""

    gates: int
    bound: Bound
    place: Step
    first: bool

    @property
    def batch(self) -> int:
        return self.bound.output.shape[1]

    @property
    def units(self) -> int:
        return self.batch * self.bound.output.shape[2]

    @property
    def width(self) -> int:
        return self.gates * self.bound.output.shape[2]

    @property
    def row(self) -> int:
        """Bytes of hidden values of one step."""
        return self.units * self.bound.output.itemsize

    @property
    def parts(self) -> int:
        return self.place.scratch

    @property
    def carry(self) -> int:
        return self.place.scratch + 2 * self.gates * self.units

    @property
    def masked(self) -> int:
        return self.carry + self.row

    def inputs(self, time: int) -> int:
        """Return where the input's part of the gates lies."""
        slab = self.place.inputs[0]
        return slab.address + 2 * self.gates * self.units * (time - slab.lo)

    def output(self, time: int) -> int:
        """Return where the hidden values of a step go."""
        return self.place.output.address + self.row * (time - self.place.output.lo)

    def hidden(self, number: int, steps: range) -> int:
        """Return where the hidden values lie that the step of that number sees."""
        if number:
            return self.output(steps[number - 1])
        return self.place.inputs[1].address if self.first and self._as_given() else self.carry

    def _as_given(self) -> bool:
        """Tell whether the initial hidden values are what the weights multiply."""
        return self.bound.inputs[1].quant == self.bound.output.quant

    def inner(self, first: bool) -> int:
        """Return where the inner state lies that a step reads."""
        return self.place.inputs[-1].address if first else self.place.more[0]

    def carry_over(self, time: int) -> isa.AnyInstruction:
        """Return the copy that keeps the hidden values of a step for the next stripe."""
        here, there = (isa.Space.SRAM, self.output(time)), (isa.Space.SRAM, self.carry)
        return copy(here, (1,), there, (1,), (self.row,))
