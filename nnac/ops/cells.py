"""The recurrent cells: LSTM, GRU and the plain net, each with what one step of it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import floor, log2
from typing import ClassVar

import numpy as np

from nnac import isa
from nnac.errors import ModelError
from nnac.graph import Node
from nnac.numerics import GATE_BITS, INT16_HIGH, UNIT_BITS, encode_ratio
from nnac.ops import exact
from nnac.ops.activation import Activation
from nnac.ops.base import Bound, Constraint, Sample, Shape, Slab, Step, Turn, activation
from nnac.ops.elementwise import Sum
from nnac.ops.functions import FUNCTIONS
from nnac.ops.recurrent import BOUNDED, CELL, GATES, UNIT, Product, Reals, Recurrent, Stripe
from nnac.ops.tables import knots
from nnac.types import Array, Quant, TensorType


def _table(kind: str, step: float) -> Array:
    """Return the knots of a function named with its parameters, as "hard_sigmoid 0.2 0.5"."""
    name, *params = kind.split()
    return knots(name, step, tuple(map(float, params)))


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
        self, bound: Bound, stripe: Stripe, time: int, first: bool, params: int, phase: int
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

    def begin(self, bound: Bound, stripe: Stripe) -> Iterator[Turn]:
        if stripe.first:
            source, target = stripe.place.inputs[1].address, stripe.carry
            step = Step((Slab(source, 0, stripe.units),), Slab(target, 0, stripe.units))
            yield Turn(tuple(Sum(signs=(1,)).lower(self._first_hidden(bound), step)), CELL)

    def update(
        self, bound: Bound, stripe: Stripe, time: int, first: bool, params: int, phase: int
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
        self, bound: Bound, stripe: Stripe, time: int, first: bool, params: int, phase: int
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
