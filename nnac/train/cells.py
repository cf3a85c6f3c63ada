"""LSTM and GRU sequences of a twin: the integer loop of `nnac.numerics` forward, back-propagation through time behind.

Gates stand in torch's order (i, f, g, o of an LSTM; r, z, n of a GRU): what they compute does not depend on it. The
backward pass treats every rounding as straight through, every saturation as a stop, and tables as the functions that
they hold; the coefficients of all steps are computed at once, so that a step costs three small products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnac.numerics import GATE_BITS, INT16_HIGH, INT16_LOW, UNIT_BITS
from nnac.ops.recurrent import GATES, UNIT
from nnac.targets import Arithmetic
from nnac.train.integers import Finish, Integers, dense, layer_finish, limits
from nnac.train.law import one_ratio, requantized, rounded, wide_table
from nnac.types import Quant

ENTRIES = 1 << 16
HALF = float(1 << 15)
ONE = float(1 << UNIT_BITS)
SLOPE = 2.0 ** (UNIT_BITS - GATE_BITS)
"""Steps of a gate's output for one of its input, where the function's slope is one."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What the loop over a sequence needs beside tensors.

    Attributes:
        recurrent: integer constants of the recurrent weights.
        hidden: quantization of the hidden values.
        cell_bits: fractional bits of an LSTM's cell.
        law: the machine's.
    """

    recurrent: Integers
    hidden: Quant
    cell_bits: int
    law: Arithmetic

    @property
    def gates(self) -> Finish:
        """How recurrent sums become parts of pre-activations."""
        return layer_finish(self.recurrent, self.hidden, GATES, self.law)

    def shown(self, device: torch.device) -> Finish:
        """Return how Q1.30 becomes hidden values."""
        ratio = one_ratio(2.0**-30 / self.hidden.scale, self.law, device)
        return Finish(ratio, *limits(self.hidden), self.law, two_step=False)


def _table(step_bits: tuple[int, ...], kinds: tuple[str, ...], law: Arithmetic, device: torch.device) -> Tensor:
    """Return tables one behind the other, float64."""
    pairs = zip(kinds, step_bits, strict=True)
    return torch.cat([wide_table(kind, 2.0**-bits, law.mode, str(device)) for kind, bits in pairs]).double()


def _places(size: int, hidden: int, tanh: int, device: torch.device) -> Tensor:
    """Return what a gate's pre-activation is added to, to look it up: sigmoid's table, or tanh's for one gate."""
    offsets = torch.full((size * hidden,), HALF, dtype=torch.float64, device=device)
    offsets[tanh * hidden : (tanh + 1) * hidden] += ENTRIES
    return offsets


def _finished(acc: Tensor, finish: Finish) -> tuple[Tensor, Tensor]:
    """Return sums before and behind saturation, float64."""
    near = requantized(acc, finish.ratio, finish.law, finish.low, finish.high, finish.two_step)
    return near, near.clamp(finish.low, finish.high)


def _clipped(x: Tensor) -> Tensor:
    return x.clamp(-INT16_HIGH, INT16_HIGH)


class _Lstm(torch.autograd.Function):
    """Hidden values (T, B, H) and last cells (B, H) from gates' input parts (T, B, 4H) and initial states (B, H)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, spec: Cell) -> tuple[Tensor, Tensor]:
        law, bits, device = spec.law, spec.cell_bits, x.device
        time, batch, width = x.shape
        size = width // 4
        gate, shown = spec.gates, spec.shown(device)
        table = _table((GATE_BITS, GATE_BITS), ("sigmoid", "tanh"), law, device)
        seen_table = _table((max(bits, GATE_BITS),), ("tanh",), law, device)
        offsets, lift = _places(4, size, 2, device), 2.0 ** max(0, GATE_BITS - bits)
        raw = x.double()  # becomes the pre-activations before they are clipped
        values = torch.empty_like(raw)
        cells, seen = raw.new_empty(time + 1, batch, size), raw.new_empty(time, batch, size)
        states = x.new_empty(time + 1, batch, size)
        parts, kept = torch.empty_like(raw, dtype=torch.bool), torch.empty_like(seen, dtype=torch.bool)
        stayed = torch.empty_like(kept)
        states[0], cells[0] = hidden, cell
        for t in range(time):
            near, part = _finished(dense(states[t], spec.recurrent, law), gate)
            torch.eq(near, part, out=parts[t])
            places = _clipped(raw[t].add_(part)) + offsets
            torch.take(table, places.long(), out=values[t])
            i, f, g, o = values[t].chunk(4, -1)
            total = f * cells[t] * 2.0 ** (UNIT_BITS - bits) + i * g
            near = rounded(total * 2.0 ** (bits - 2 * UNIT_BITS), law.mode)
            torch.clamp(near, INT16_LOW, INT16_HIGH, out=cells[t + 1])
            torch.eq(near, cells[t + 1], out=stayed[t])
            places = (cells[t + 1] * lift).clamp(INT16_LOW, INT16_HIGH) + HALF
            torch.take(seen_table, places.long(), out=seen[t])
            near, part = _finished(o * seen[t], shown)
            torch.eq(near, part, out=kept[t])
            states[t + 1] = part
        ctx.spec = spec
        ctx.save_for_backward(weight, raw, values, cells, seen, states, parts, kept, stayed, gate.ratio.factor)
        return states[1:].clone(), cells[time].float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_cell: Tensor) -> tuple[Any, ...]:
        weight, raw, values, cells, seen, states, parts, kept, stayed, factor = ctx.saved_tensors
        bits, scaled = ctx.spec.cell_bits, weight * factor.float()[:, None]
        i, f, g, o = (v.float() / ONE for v in values.chunk(4, -1))
        tanh = seen.float() / ONE
        show = kept / (ONE * ctx.spec.hidden.scale)  # hidden steps for a step of o or tanh, at a partner of one
        rate = 2.0 ** (bits - UNIT_BITS)  # cell steps for a step of i or g, at a partner of one
        lift = 2.0 ** (UNIT_BITS - bits) * (((cells[1:] * 2.0**-bits).abs()) < 8)
        curve = SLOPE * (raw.abs() <= INT16_HIGH)
        old = cells[:-1].float() / ONE
        shares = [rate * g * i * (1 - i) * stayed, old * f * (1 - f) * stayed, rate * i * (1 - g * g) * stayed]
        slopes = torch.cat([*shares, show * tanh * o * (1 - o)], -1) * curve
        through, keep = show * o * (1 - tanh * tanh) * lift, f * stayed
        grads = torch.empty_like(slopes)
        down, cell, open_ = torch.zeros_like(grad_cell), grad_cell, bool(parts.all())
        for t in range(len(grad) - 1, -1, -1):
            hidden = grad[t] + down
            cell = torch.addcmul(cell, hidden, through[t])
            torch.mul(torch.cat([cell, cell, cell, hidden], -1), slopes[t], out=grads[t])
            down = (grads[t] if open_ else grads[t] * parts[t]) @ scaled
            cell = cell * keep[t]
        sums = (grads if open_ else grads * parts) * factor.float()
        product = sums.flatten(0, 1).T @ states[:-1].flatten(0, 1)
        return grads, down, cell, product, None


class _Gru(torch.autograd.Function):
    """Hidden values (T, B, H) and the last state (B, H) from gates' input parts (T, B, 3H) and the initial state."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor, spec: Cell) -> tuple[Tensor, Tensor]:
        law, device = spec.law, x.device
        time, batch, width = x.shape
        size = width // 3
        gate, shown = spec.gates, spec.shown(device)
        table, offsets = _table((GATE_BITS, GATE_BITS), ("sigmoid", "tanh"), law, device), _places(3, size, 2, device)
        raw = x.double()
        values, inner = torch.empty_like(raw), raw.new_empty(time, batch, size)
        units, states = raw.new_empty(time + 1, batch, size), x.new_empty(time + 1, batch, size)
        parts, kept = torch.empty_like(raw, dtype=torch.bool), torch.empty_like(inner, dtype=torch.bool)
        units[0] = state
        first = one_ratio(UNIT.scale / spec.hidden.scale, law, device)
        states[0] = _finished(units[0], Finish(first, *limits(spec.hidden), law, two_step=False))[1]
        for t in range(time):
            near, part = _finished(dense(states[t], spec.recurrent, law), gate)
            torch.eq(near, part, out=parts[t])
            inner[t] = part[:, 2 * size :]
            both = raw[t, :, : 2 * size].add_(part[:, : 2 * size])
            values[t, :, : 2 * size] = table.take((_clipped(both) + HALF).long())
            r, z, n = values[t].chunk(3, -1)
            candidate = raw[t, :, 2 * size :]
            candidate.copy_(rounded(candidate + r * inner[t] / ONE, law.mode))
            n.copy_(table.take((_clipped(candidate) + offsets[2 * size :]).long()))
            units[t + 1] = rounded(((ONE - z) * n + z * units[t]) / ONE, law.mode).clamp(INT16_LOW, INT16_HIGH)
            near, part = _finished(units[t + 1] * ONE, shown)
            torch.eq(near, part, out=kept[t])
            states[t + 1] = part
        ctx.spec = spec
        ctx.save_for_backward(weight, raw, values, inner, units, states, parts, kept, gate.ratio.factor)
        return states[1:].clone(), units[time].float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_state: Tensor) -> tuple[Any, ...]:
        weight, raw, values, inner, units, states, parts, kept, factor = ctx.saved_tensors
        size, scaled = inner.shape[-1], weight * factor.float()[:, None]
        r, z, n = (v.float() / ONE for v in values.chunk(3, -1))
        curve = SLOPE * (raw.abs() <= INT16_HIGH)
        curve_r, curve_z, curve_n = curve.float().chunk(3, -1)
        show = kept / (ONE * ctx.spec.hidden.scale)
        to_n, to_z = (1 - z) * (1 - n * n) * curve_n, (units[:-1].float() / ONE - n) * z * (1 - z) * curve_z
        to_r = inner.float() / ONE * r * (1 - r) * curve_r
        grads, sums = torch.empty_like(raw, dtype=torch.float32), torch.empty_like(raw, dtype=torch.float32)
        state, down = grad_state, torch.zeros_like(grad_state)
        for t in range(len(grad) - 1, -1, -1):
            state = torch.addcmul(state, grad[t] + down, show[t])
            candidate = state * to_n[t]
            torch.cat([candidate * to_r[t], state * to_z[t], candidate], -1, out=grads[t])
            torch.mul(grads[t], parts[t], out=sums[t])
            sums[t, :, 2 * size :] *= r[t]
            down = sums[t] @ scaled
            state = state * z[t]
        state = state + down * (UNIT.scale / ctx.spec.hidden.scale)
        sums *= factor.float()
        flat = sums.flatten(0, 1)
        return grads, state, flat.T @ states[:-1].flatten(0, 1), flat.sum(0).double(), None


def lstm(x: Tensor, hidden: Tensor, cell: Tensor, spec: Cell) -> tuple[Tensor, Tensor]:
    """Return hidden values (T, B, H) and last cells (B, H), integers; see `nnac.cells.lstm_cell`."""
    return _Lstm.apply(x, hidden, cell, spec.recurrent.weight, spec)


def gru(x: Tensor, state: Tensor, spec: Cell) -> tuple[Tensor, Tensor]:
    """Return hidden values (T, B, H) and the last state (B, H), integers; see `nnac.cells.gru_cell`."""
    return _Gru.apply(x, state, spec.recurrent.weight, spec.recurrent.bias, spec)


# -- float ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def lstm_states(x: Tensor, weights: tuple[Tensor, ...], hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden values (T, B, H), cells (T, B, H) and the last hidden of a float LSTM, for observation.

    Args:
        x: (T, B, K).
        weights: of input and hidden values, with both biases, in torch's order of gates.
        hidden, cell: (B, H).
    """
    w_x, w_h, b_x, b_h = weights
    gates, shown, inner = F.linear(x, w_x, b_x + b_h), [], []
    for part in gates:
        i, f, g, o = (part + hidden @ w_h.T).chunk(4, -1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        shown.append(hidden)
        inner.append(cell)
    return torch.stack(shown), torch.stack(inner), hidden


@torch.no_grad()
def gru_states(x: Tensor, weights: tuple[Tensor, ...], hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return hidden values (T, B, H) and the last of them of a float GRU; arguments as for `lstm_states`."""
    w_x, w_h, b_x, b_h = weights
    gates, shown = F.linear(x, w_x, b_x), []
    for part in gates:
        (x_r, x_z, x_n), (h_r, h_z, h_n) = part.chunk(3, -1), F.linear(hidden, w_h, b_h).chunk(3, -1)
        z = torch.sigmoid(x_z + h_z)
        hidden = (1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n) + z * hidden
        shown.append(hidden)
    return torch.stack(shown), hidden
