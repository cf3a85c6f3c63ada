"""Recurrent layers: LSTM, GRU and the plain recurrent net, as loops over time with their states on the device.

The input's part of the gates is a dense layer in front, over all steps at once; what remains per step is the product of
the hidden values with the recurrent weights, on the array, and the update of the cells, on the vector unit. Gate
pre-activations are int16 in Q3.12, cells int16 with a power-of-two scale, hidden values int8 (or int16); see
`numerics.lstm_cell` and `numerics.gru_cell`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import floor, log2
from typing import ClassVar

import numpy as np

from nnac import isa
from nnac.errors import ModelError
from nnac.graph import Node
from nnac.numerics import GATE_BITS, INT16_HIGH, UNIT_BITS, encode_ratio
from nnac.ops import exact
from nnac.ops.activation import Activation
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
    aligned,
    random_quant,
)
from nnac.ops.conv import Dense, channel_blocks
from nnac.ops.elementwise import Sum
from nnac.ops.functions import FUNCTIONS
from nnac.ops.move import copy
from nnac.ops.tables import knots
from nnac.types import Array, Quant, TensorType

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
            found += channel_blocks(matrix.bound, limit, granule, 1)
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
        stripe = _Stripe(self.gates, bound, step, steps[0] == whole[0])
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

    def begin(self, bound: Bound, stripe: _Stripe) -> Iterator[Turn]:
        """Yield what prepares the hidden values that the first step sees."""
        return iter(())

    @abstractmethod
    def update(
        self, bound: Bound, stripe: _Stripe, time: int, first: bool, params: int, phase: int
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
class _Stripe:
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


def _table(kind: str, step: float) -> Array:
    """Return the knots of a function named with its parameters, as "hard_sigmoid 0.2 0.5"."""
    name, *params = kind.split()
    return knots(name, step, [float(p) for p in params])


def _real(kind: str, x: Reals) -> Reals:
    name, *params = kind.split()
    return np.asarray(FUNCTIONS[name](x, *map(float, params)))


def _is_bounded(kinds: Sequence[str]) -> bool:
    return all(kind.split()[0] in BOUNDED for kind in kinds)


@dataclass(frozen=True, slots=True)
class Lstm(Recurrent):
    """LSTM; gates i, o, f, c, states hidden and cell (ONNX, "LSTM").

    Attributes:
        functions: f of the gates, g of the candidate, h of the cell; with parameters behind the name.
        coupled: the forget gate is one minus the input gate.
        peepholes: weights of i, o, f on the cell, H each; empty without.
    """

    functions: tuple[str, str, str] = ("sigmoid", "tanh", "tanh")
    coupled: bool = False
    peepholes: tuple[float, ...] = ()

    name: ClassVar[str] = "Lstm"
    gates: ClassVar[int] = 4
    operands: ClassVar[int | None] = 3
    constraints: ClassVar[tuple[Constraint, ...]] = (
        *Recurrent.constraints,
        Constraint(lambda op, s: _is_bounded(op.functions), f"the functions are among {', '.join(BOUNDED)}"),
        Constraint(lambda op, s: len(op.peepholes) in (0, 3 * s[0][2] // 4), "peepholes are three per unit"),
    )

    def ties(self, node: Node) -> tuple[tuple[str, str], ...]:
        return (node.inputs[1], node.output), (node.inputs[2], node.more[0])

    def stepped(self, node: Node) -> tuple[str, ...]:
        return node.inputs[2], node.more[0]

    def _cell_bits(self, bound: Bound) -> int:
        return -round(log2(bound.input_quant(2).scale))

    def _peephole_shift(self, bound: Bound) -> tuple[int, int]:
        """Return the fractional bits of the peepholes, and what their product with a cell is shifted by."""
        largest, cell = max(map(abs, self.peepholes), default=0.0), self._cell_bits(bound)
        bits = min(UNIT_BITS, floor(log2(INT16_HIGH / largest))) if largest else UNIT_BITS
        if self.peepholes and bits < GATE_BITS - cell:
            raise ModelError(f"a peephole of {largest:g} is too large for a cell in steps of 2**-{cell}")
        return bits, bits + cell - GATE_BITS

    def _peepholes(self, bound: Bound) -> Array:
        """Return int16 (3, H), or zeros that broadcast to it."""
        if not self.peepholes:
            return np.zeros((3, 1), np.int16)
        bits, _ = self._peephole_shift(bound)
        return np.rint(np.array(self.peepholes).reshape(3, -1) * 2.0**bits).astype(np.int16)

    def _tables(self, bound: Bound) -> Array:
        f, g, h = self.functions
        gate = GATES.scale
        cell = 2.0 ** -max(self._cell_bits(bound), GATE_BITS)
        return np.stack([_table(f, gate), _table(g, gate), _table(h, cell)])

    def table(self, bound: Bound) -> bytes:
        peepholes = self._peepholes(bound).astype("<i2").tobytes() if self.peepholes else b""
        return self._tables(bound).astype("<i2").tobytes() + peepholes

    def update(
        self, bound: Bound, stripe: _Stripe, time: int, first: bool, params: int, phase: int
    ) -> tuple[isa.AnyInstruction, ...]:
        multiplier, shift = encode_ratio(2.0**-30 / bound.quant.scale, bound.law.power_of_two_scales)
        _, batch, hidden = bound.output.shape
        return (
            isa.Lstm(
                gates=stripe.inputs(time),
                recurrent=stripe.parts,
                target=stripe.output(time),
                batch=batch,
                hidden=hidden,
                tables=params,
                clip=self.limit(),
                multiplier=multiplier,
                shift=shift,
                out_zero=bound.quant.zero_point,
                out_bits=bound.quant.bits,
                cell=stripe.inner(first),
                cell_out=stripe.place.more[0],
                cell_bits=self._cell_bits(bound),
                coupled=int(self.coupled),
                peepholes=int(bool(self.peepholes)),
                peephole_shift=self._peephole_shift(bound)[1] if self.peepholes else 0,
            ),
        )

    def step(
        self, bound: Bound, x: Array, states: list[Array], products: Sequence[Product]
    ) -> tuple[Array, list[Array]]:
        hidden, cell = states
        shift = self._peephole_shift(bound)[1] if self.peepholes else 0
        cell, wide = exact.lstm_cell(
            x,
            products[0](hidden),
            cell,
            self._tables(bound),
            self._cell_bits(bound),
            self.coupled,
            self.limit(),
            bound.law.mode,
            self._peepholes(bound),
            shift,
        )
        return (hidden := _hidden(bound, wide)), [hidden, cell]

    def real_step(self, x: Reals, states: list[Reals], weight: Reals, bias: Reals) -> tuple[Reals, list[Reals]]:
        hidden, cell = states
        f, g, h = (partial(_real, kind) for kind in self.functions)
        i, o, forget, c = np.split(x + hidden @ weight.T + bias, 4, -1)
        p = np.array(self.peepholes).reshape(3, -1) if self.peepholes else np.zeros((3, 1))
        entry = f(self.clipped(i + p[0] * cell))
        kept = 1 - entry if self.coupled else f(self.clipped(forget + p[2] * cell))
        cell = kept * cell + entry * g(self.clipped(c))
        hidden = f(self.clipped(o + p[1] * cell)) * h(cell)
        return hidden, [hidden, cell]

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        def states(shape: Shape, quant: Quant) -> list[TensorType]:
            cell = Quant(2.0 ** -int(rng.integers(5, 15)), 0, 16)
            return [activation(shape, quant), activation(shape, cell)]

        kinds = [str(rng.choice(["sigmoid", "tanh", "softsign"])) for _ in range(3)]
        options = bool(rng.random() < 0.3), float(rng.choice([0.0, 1.5])), bool(rng.random() < 0.2)
        found = cls.sampled(cls(*options[:2], (kinds[0], kinds[1], kinds[2]), options[2]), rng, states)
        if rng.random() < 0.7:
            return found
        peepholes = tuple(float(v) for v in rng.normal(size=3 * found.output.shape[-1]))
        return replace(found, op=replace(found.op, peepholes=peepholes))


@dataclass(frozen=True, slots=True)
class Gru(Recurrent):
    """GRU; gates z, r, h (ONNX, "GRU"). The state is int16 in Q0.15, the hidden values are its requantization.

    Attributes:
        functions: f of the gates, g of the candidate.
        reset_first: the reset gate acts before the recurrent weights (linear_before_reset = 0), else behind them.
    """

    functions: tuple[str, str] = ("sigmoid", "tanh")
    reset_first: bool = False

    name: ClassVar[str] = "Gru"
    gates: ClassVar[int] = 3
    operands: ClassVar[int | None] = 2
    constraints: ClassVar[tuple[Constraint, ...]] = (
        *Recurrent.constraints,
        Constraint(lambda op, s: _is_bounded(op.functions), f"the functions are among {', '.join(BOUNDED)}"),
    )

    def pins(self, node: Node) -> dict[str, Quant]:
        return {node.inputs[0]: GATES, node.inputs[1]: UNIT, node.more[0]: UNIT}

    def reach(self, node: Node) -> dict[str, float]:
        return {node.inputs[1]: 1.0, node.more[0]: 1.0}

    def cuts(self, hidden: int) -> tuple[int, ...]:
        return (0, 2 * hidden, 3 * hidden) if self.reset_first else (0, 3 * hidden)

    def _tables(self) -> Array:
        return np.stack([_table(kind, GATES.scale) for kind in self.functions])

    def table(self, bound: Bound) -> bytes:
        return self._tables().astype("<i2").tobytes()

    def _first_hidden(self, bound: Bound) -> Bound:
        """Return the requantization of the initial state to hidden values, as a `Sum` of one operand."""
        shape = bound.output.shape[1:]
        return Bound((activation(shape, UNIT),), replace(bound.output, shape=shape), {}, bound.law)

    def begin(self, bound: Bound, stripe: _Stripe) -> Iterator[Turn]:
        if stripe.first:
            source, target = stripe.place.inputs[1].address, stripe.carry
            step = Step((Slab(source, 0, stripe.units),), Slab(target, 0, stripe.units))
            yield Turn(tuple(Sum(signs=(1,)).lower(self._first_hidden(bound), step)), CELL)

    def update(
        self, bound: Bound, stripe: _Stripe, time: int, first: bool, params: int, phase: int
    ) -> tuple[isa.AnyInstruction, ...]:
        multiplier, shift = encode_ratio(2.0**-30 / bound.quant.scale, bound.law.power_of_two_scales)
        _, batch, hidden = bound.output.shape
        reset = self.reset_first and phase == 0
        return (
            isa.Gru(
                gates=stripe.inputs(time),
                recurrent=stripe.parts,
                target=stripe.masked if reset else stripe.output(time),
                batch=batch,
                hidden=hidden,
                tables=params,
                clip=self.limit(),
                multiplier=multiplier,
                shift=shift,
                out_zero=bound.quant.zero_point,
                out_bits=bound.quant.bits,
                phase=isa.RESET if reset else isa.FINISH if self.reset_first else isa.WHOLE,
                state=stripe.inner(first),
                state_out=stripe.place.more[0],
            ),
        )

    def step(
        self, bound: Bound, x: Array, states: list[Array], products: Sequence[Product]
    ) -> tuple[Array, list[Array]]:
        tables, state, law = self._tables(), states[-1], bound.law
        if len(states) == 1:
            states = [Sum(signs=(1,)).reference(self._first_hidden(bound), [state]), state]
        recurrent = products[0](states[0])
        if self.reset_first:
            _, x_r, _ = np.split(x, 3, -1)
            r_r = np.split(recurrent, 2, -1)[1]
            masked = _hidden(bound, exact.gru_reset(x_r, r_r, state, tables[0], self.limit(), law.mode))
            recurrent = np.concatenate([recurrent, products[1](masked)], -1)
        state = exact.gru_cell(x, recurrent, state, tables, not self.reset_first, self.limit(), law.mode)
        return (hidden := _hidden(bound, state << UNIT_BITS)), [hidden, state]

    def real_step(self, x: Reals, states: list[Reals], weight: Reals, bias: Reals) -> tuple[Reals, list[Reals]]:
        state, (f, g) = states[-1], (partial(_real, kind) for kind in self.functions)
        (x_z, x_r, x_h), (w_z, w_r, w_h) = np.split(x, 3, -1), np.split(weight, 3)
        b_z, b_r, b_h = np.split(bias, 3)
        z = f(self.clipped(x_z + state @ w_z.T + b_z))
        r = f(self.clipped(x_r + state @ w_r.T + b_r))
        part = (r * state) @ w_h.T + b_h if self.reset_first else r * (state @ w_h.T + b_h)
        state = (1 - z) * g(self.clipped(x_h + part)) + z * state
        return state, [state]

    def seen(self, inputs: Sequence[Reals], hidden: Reals) -> Reals:
        before = Recurrent.seen(self, inputs, hidden)
        if not self.reset_first:
            return before
        gates, _, weight, bias = (np.asarray(i, np.float64) for i in inputs)
        x_r, w_r, b_r = np.split(gates, 3, -1)[1], np.split(weight, 3)[1], np.split(bias, 3)[1]
        reset = _real(self.functions[0], self.clipped(x_r.reshape(before.shape) + before @ w_r.T + b_r))
        return np.concatenate([before, before, reset * before])

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        options = bool(rng.random() < 0.3), float(rng.choice([0.0, 1.5])), ("sigmoid", "tanh"), bool(rng.random() < 0.5)
        return cls.sampled(cls(*options), rng, lambda shape, quant: [activation(shape, UNIT)])


@dataclass(frozen=True, slots=True)
class Rnn(Recurrent):
    """The plain recurrent net, h = function(x + R h + b) (ONNX, "RNN").

    Attributes:
        function: with its parameters behind the name.
    """

    function: str = "tanh"

    name: ClassVar[str] = "Rnn"
    operands: ClassVar[int | None] = 2
    inner: ClassVar[bool] = False
    constraints: ClassVar[tuple[Constraint, ...]] = (
        *Recurrent.constraints,
        Constraint(lambda op, s: op.function.split()[0] in FUNCTIONS, f"the function is among {', '.join(FUNCTIONS)}"),
    )

    def ties(self, node: Node) -> tuple[tuple[str, str], ...]:
        return ((node.inputs[1], node.output),)

    def reach(self, node: Node) -> dict[str, float]:
        return {} if _is_bounded([self.function]) else {node.output: INT16_HIGH * GATES.scale}

    def _activation(self, bound: Bound) -> tuple[Activation, Bound]:
        """Return the function as an operator, and its place behind the sum of both parts."""
        kind, *params = self.function.split()
        _, batch, hidden = bound.output.shape
        inner = replace(bound.output, shape=(batch, hidden))
        place = Bound((activation((batch, hidden), GATES),), inner, {}, bound.law)
        return Activation(kind, tuple(map(float, params))), place

    def _sum(self, bound: Bound) -> tuple[Sum, Bound]:
        gate = self._activation(bound)[1].inputs[0]
        clamp = (-self.clip, self.clip) if self.clip else (-np.inf, np.inf)
        return Sum(clamp), Bound((gate, gate), gate, {}, bound.law)

    def table(self, bound: Bound) -> bytes:
        op, place = self._activation(bound)
        return op.blocks(place, 0, 0)[0].params

    def update(
        self, bound: Bound, stripe: _Stripe, time: int, first: bool, params: int, phase: int
    ) -> tuple[isa.AnyInstruction, ...]:
        (total, both), (op, place), count = self._sum(bound), self._activation(bound), stripe.units
        gates, parts = Slab(stripe.inputs(time), 0, count), Slab(stripe.parts, 0, count)
        return (
            *total.lower(both, Step((gates, parts), parts)),
            *op.lower(place, Step((parts,), Slab(stripe.output(time), 0, count), params=params)),
        )

    def step(
        self, bound: Bound, x: Array, states: list[Array], products: Sequence[Product]
    ) -> tuple[Array, list[Array]]:
        (total, both), (op, place) = self._sum(bound), self._activation(bound)
        hidden = op.reference(place, [total.reference(both, [x, products[0](states[0])])])
        return hidden, [hidden]

    def real_step(self, x: Reals, states: list[Reals], weight: Reals, bias: Reals) -> tuple[Reals, list[Reals]]:
        hidden = _real(self.function, self.clipped(x + states[0] @ weight.T + bias))
        return hidden, [hidden]

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        op = cls(bool(rng.random() < 0.3), float(rng.choice([0.0, 1.5])), str(rng.choice(["tanh", "relu", "sigmoid"])))
        return cls.sampled(op, rng, lambda shape, quant: [activation(shape, quant)])


def _hidden(bound: Bound, wide: Array) -> Array:
    """Return hidden values of Q1.30 products."""
    quant, law = bound.quant, bound.law
    ratio = encode_ratio(2.0**-30 / quant.scale, law.power_of_two_scales)
    return bound.result(exact.rescale(wide, *ratio, quant.zero_point, law.mode, quant.low, quant.high))
