"""The cell updates of LSTM and GRU on int16, unit by unit, as `nnac.numerics` defines them.

No intermediate leaves int64: with |values| up to 2**15, a peephole's sum stays under 2**(17 + 30), a new cell's under
2**(31 + 15) + 2**30, and what is rescaled is at most 2**30 times a multiplier under 2**31. A state may be updated in
place: each unit reads its old value before it writes the new one. Hidden values are written as int16 whatever their
width; `low` and `high` bound them.
"""

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int16, Integer, inner, kernel, sink, source
from nnac.kernels.requantize import interpolate, round_shift, saturate

_SOURCE, _SINK = source(types.int16, 2), sink(types.int16, 2, "C")
_LOW, _HIGH = -(1 << 15), (1 << 15) - 1
_ONE = 1 << 15


@inner
def _gate(
    x: Integer, r: Integer, limit: Integer, rounding: Integer, weight: Integer, cell: Integer, shift: Integer
) -> Integer:
    """`numerics.gate`."""
    total = ((np.int64(x) + r) << shift) + np.int64(weight) * cell
    return saturate(round_shift(total, shift, rounding), -limit, limit)


@inner
def _rescale(
    value: Integer, multiplier: Integer, shift: Integer, zero: Integer, low: Integer, high: Integer, rounding: Integer
) -> Integer:
    """`numerics.rescale`."""
    return saturate(round_shift(value * multiplier, shift, rounding) + zero, low, high)


@kernel(*[_SOURCE] * 5, *[_SINK] * 2, *[INT] * 10)
def lstm_cell(
    x: Int16,
    r: Int16,
    cell: Int16,
    functions: Int16,
    peepholes: Int16,
    cell_out: Int16,
    y: Int16,
    cell_bits: int,
    coupled: int,
    peephole_shift: int,
    limit: int,
    multiplier: int,
    shift: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
) -> None:
    """One step of an LSTM, `numerics.lstm_cell` and `numerics.rescale` for each unit.

    Args:
        x: (batch, 4 * hidden), input parts of the gates i, o, f, c, Q3.12.
        r: the same of the recurrent parts.
        cell: (batch, hidden), steps of 2**-cell_bits.
        functions: (3, 513), tables f, g, h.
        peepholes: (3, hidden) of i, o, f; zeros without.
        cell_out: as cell; may be the same array.
        y: (batch, hidden), the hidden values.
        cell_bits: 0..15.
        coupled: 1 where the forget gate is one minus the input gate.
        peephole_shift: 0..30.
        limit: of the gates' pre-activations, 1..32767.
        multiplier: with `shift`, 2**-30 over the scale of y.
        shift: 0..62.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`; TFLITE counts as HALF_AWAY.
    """
    lift, hidden, k = max(0, 12 - cell_bits), cell.shape[1], peephole_shift
    for b in range(cell.shape[0]):
        for n in range(hidden):
            o, f, g, old = n + hidden, n + 2 * hidden, n + 3 * hidden, np.int64(cell[b, n])
            entry = interpolate(
                _gate(x[b, n], r[b, n], limit, rounding, peepholes[0, n], old, k), functions[0], rounding
            )
            if coupled:
                kept = _ONE - entry
            else:
                total = _gate(x[b, f], r[b, f], limit, rounding, peepholes[2, n], old, k)
                kept = interpolate(total, functions[0], rounding)
            candidate = interpolate(_gate(x[b, g], r[b, g], limit, rounding, 0, 0, 0), functions[1], rounding)
            total = ((kept * old) << (15 - cell_bits)) + entry * candidate
            new = saturate(round_shift(total, 30 - cell_bits, rounding), _LOW, _HIGH)
            leave = interpolate(
                _gate(x[b, o], r[b, o], limit, rounding, peepholes[1, n], new, k), functions[0], rounding
            )
            shown = interpolate(saturate(new << lift, _LOW, _HIGH), functions[2], rounding)
            cell_out[b, n] = new
            y[b, n] = _rescale(leave * shown, multiplier, shift, y_zero, low, high, rounding)


@kernel(*[_SOURCE] * 4, _SINK, *[INT] * 7)
def gru_reset(
    x: Int16,
    r: Int16,
    state: Int16,
    functions: Int16,
    y: Int16,
    limit: int,
    multiplier: int,
    shift: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
) -> None:
    """The state behind the reset gate, `numerics.gru_reset` and `numerics.rescale` for each unit.

    Args:
        x: (batch, 3 * hidden), input parts of the gates z, r, h, Q3.12.
        r: the same of the recurrent parts; that of h is not read.
        state: (batch, hidden), Q0.15.
        functions: (2, 513), tables f, g.
        y: (batch, hidden).
        limit: of the gates' pre-activations, 1..32767.
        multiplier: with `shift`, 2**-30 over the scale of y.
        shift: 0..62.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`; TFLITE counts as HALF_AWAY.
    """
    hidden = state.shape[1]
    for b in range(state.shape[0]):
        for n in range(hidden):
            total = _gate(x[b, n + hidden], r[b, n + hidden], limit, rounding, 0, 0, 0)
            reset = interpolate(total, functions[0], rounding)
            y[b, n] = _rescale(reset * state[b, n], multiplier, shift, y_zero, low, high, rounding)


@kernel(*[_SOURCE] * 4, *[_SINK] * 2, *[INT] * 8)
def gru_cell(
    x: Int16,
    r: Int16,
    state: Int16,
    functions: Int16,
    state_out: Int16,
    y: Int16,
    after: int,
    limit: int,
    multiplier: int,
    shift: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
) -> None:
    """One step of a GRU, `numerics.gru_cell` and `numerics.rescale` for each unit.

    Args:
        x: (batch, 3 * hidden), input parts of the gates z, r, h, Q3.12.
        r: the same of the recurrent parts.
        state: (batch, hidden), Q0.15.
        functions: (2, 513), tables f, g.
        state_out: as state; may be the same array.
        y: (batch, hidden), the hidden values.
        after: 1 where the reset gate acts on r, 0 where r has seen it.
        limit: of the gates' pre-activations, 1..32767.
        multiplier: with `shift`, 2**-30 over the scale of y.
        shift: 0..62.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`; TFLITE counts as HALF_AWAY.
    """
    hidden = state.shape[1]
    for b in range(state.shape[0]):
        for n in range(hidden):
            m, h = n + hidden, n + 2 * hidden
            z = interpolate(_gate(x[b, n], r[b, n], limit, rounding, 0, 0, 0), functions[0], rounding)
            if after:
                reset = interpolate(_gate(x[b, m], r[b, m], limit, rounding, 0, 0, 0), functions[0], rounding)
                total = _gate(x[b, h], 0, limit, rounding, reset, r[b, h], 15)
            else:
                total = _gate(x[b, h], r[b, h], limit, rounding, 0, 0, 0)
            candidate = interpolate(total, functions[1], rounding)
            mixed = (_ONE - z) * candidate + z * state[b, n]
            new = saturate(round_shift(mixed, 15, rounding), _LOW, _HIGH)
            state_out[b, n] = new
            y[b, n] = _rescale(new << 15, multiplier, shift, y_zero, low, high, rounding)
