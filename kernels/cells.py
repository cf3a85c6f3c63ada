"""The cell updates of LSTM and GRU on int16, as `nnac.numerics` defines them.

No intermediate leaves int64: with |values| up to 2**15, a peephole's sum stays under 2**(17 + 30), a new cell's under
2**(31 + 15) + 2**30, and what is rescaled is at most 2**30 times a multiplier under 2**31. A state may be updated in
place: each unit reads its old value before it writes the new one. Hidden values are written as int16 whatever their
width; the scale's limits bound them.
"""

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int16, Int32, Integer, inner, kernel, sink, source
from nnac.kernels.requantize import HALF_EVEN, HALF_UP, ONNX, SCALE, Scale, rescale, round_shift, saturate
from nnac.kernels.vectors import address, fetch_words

_SOURCE, _SINK = source(types.int16, 2), sink(types.int16, 2, "C")
_LOW, _HIGH = -(1 << 15), (1 << 15) - 1
_ONE = 1 << 15


@inner
def _gate(
    x: Integer, r: Integer, limit: Integer, rounding: Integer, weight: Integer, cell: Integer, shift: Integer
) -> Integer:
    """`nnac.cells.gate`."""
    total = ((np.int64(x) + r) << shift) + np.int64(weight) * cell
    return saturate(round_shift(total, shift, rounding), -limit, limit)


@inner
def _sums(x: Int16, r: Int16, limit: int, out: Int32) -> None:
    """`nnac.cells.gate` of each unit without more."""
    low, high = np.int32(-limit), np.int32(limit)
    for n in range(out.size):
        out[n] = min(max(np.int32(np.int32(x[n]) + np.int32(r[n])), low), high)


@inner
def _peep(
    x: Int16, r: Int16, limit: int, weights: Int16, row: int, cell: Int16, shift: int, rounding: int, out: Int32
) -> None:
    """A gate of an LSTM; without peepholes, `weights` has no columns."""
    if not weights.shape[1]:
        _sums(x, r, limit, out)
    else:
        for n in range(out.size):
            out[n] = _gate(x[n], r[n], limit, rounding, weights[row, n], cell[n], shift)


@inner
def _through(values: Int32, table: Int16, rounding: int, knots: Int32) -> None:
    """`numerics.interpolate` of each int16 value, in place; between two int16 knots nothing saturates."""
    even, away = np.int32(rounding % ONNX == HALF_EVEN), np.int32(rounding % ONNX > HALF_UP)
    for n in range(values.size):
        knots[n] = np.int32(np.int32(values[n] + 32768) >> 7) << 1
    fetch_words(address(table), address(knots), values.size)
    for n in range(values.size):
        fraction = np.int32(values[n] & 127)
        left, right = np.int32(np.int32(knots[n] << 16) >> 16), np.int32(knots[n] >> 16)
        blend = np.int32((left << 7) + (right - left) * fraction)
        falls = np.int32((even & ~(blend >> 7)) | (away & (blend >> 31))) & np.int32(1)
        values[n] = np.int32(blend + 64 - falls) >> 7


@kernel(*[_SOURCE] * 5, *[_SINK] * 2, sink(types.int32, 2, "C"), *[INT] * 4, SCALE)
def lstm_cell(
    x: Int16,
    r: Int16,
    cell: Int16,
    functions: Int16,
    peepholes: Int16,
    cell_out: Int16,
    y: Int16,
    work: Int32,
    cell_bits: int,
    coupled: int,
    peephole_shift: int,
    limit: int,
    scale: Scale,
) -> None:
    """One step of an LSTM, `nnac.cells.lstm_cell` and `numerics.rescale` for each unit.

    Args:
        x: (batch, 4 * hidden), input parts of the gates i, o, f, c, Q3.12.
        r: the same of the recurrent parts.
        cell: (batch, hidden), steps of 2**-cell_bits.
        functions: (3, 513), tables f, g, h.
        peepholes: (3, hidden) of i, o, f; (3, 0) without.
        cell_out: as cell; may be the same array.
        y: (batch, hidden), the hidden values.
        work: (4, hidden), working memory.
        cell_bits: 0..15.
        coupled: 1 where the forget gate is one minus the input gate.
        peephole_shift: 0..30.
        limit: of the gates' pre-activations, 1..32767.
        scale: as `requantize.Scale`, of 2**-30 over y.
    """
    lift, hidden, k, rounding = max(0, 12 - cell_bits), cell.shape[1], peephole_shift, scale[5]
    entry, kept, candidate, knots = work[0], work[1], work[2], work[3]
    for b in range(cell.shape[0]):
        old, new, h = cell[b], cell_out[b], hidden
        _peep(x[b, :h], r[b, :h], limit, peepholes, 0, old, k, rounding, entry)
        _through(entry, functions[0], rounding, knots)
        _peep(x[b, 2 * h : 3 * h], r[b, 2 * h : 3 * h], limit, peepholes, 2, old, k, rounding, kept)
        _through(kept, functions[0], rounding, knots)
        _sums(x[b, 3 * h :], r[b, 3 * h :], limit, candidate)
        _through(candidate, functions[1], rounding, knots)
        if coupled:
            for n in range(hidden):
                kept[n] = np.int32(_ONE - entry[n])
        for n in range(hidden):
            total = ((np.int64(kept[n]) * old[n]) << (15 - cell_bits)) + np.int64(entry[n]) * candidate[n]
            kept[n] = saturate(round_shift(total, 30 - cell_bits, rounding), _LOW, _HIGH)
        for n in range(hidden):  # apart: where new is old, LLVM would do one unit at a time
            new[n] = kept[n]
        leave, shown = entry, kept
        _peep(x[b, h : 2 * h], r[b, h : 2 * h], limit, peepholes, 1, new, k, rounding, leave)
        _through(leave, functions[0], rounding, knots)
        for n in range(hidden):
            shown[n] = saturate(np.int64(kept[n]) << lift, _LOW, _HIGH)
        _through(shown, functions[2], rounding, knots)
        for n in range(hidden):
            value = np.int64(leave[n]) * shown[n]
            y[b, n] = rescale(value, scale)


@kernel(*[_SOURCE] * 4, _SINK, INT, SCALE)
def gru_reset(
    x: Int16,
    r: Int16,
    state: Int16,
    functions: Int16,
    y: Int16,
    limit: int,
    scale: Scale,
) -> None:
    """The state behind the reset gate, `nnac.cells.gru_reset` and `numerics.rescale` for each unit.

    Args:
        x: (batch, 3 * hidden), input parts of the gates z, r, h, Q3.12.
        r: the same of the recurrent parts; that of h is not read.
        state: (batch, hidden), Q0.15.
        functions: (2, 513), tables f, g.
        y: (batch, hidden).
        limit: of the gates' pre-activations, 1..32767.
        scale: as `requantize.Scale`, of 2**-30 over y.
    """
    hidden, rounding = state.shape[1], scale[5]
    reset, knots = np.empty(hidden, np.int32), np.empty(hidden, np.int32)
    for b in range(state.shape[0]):
        _sums(x[b, hidden : 2 * hidden], r[b, hidden : 2 * hidden], limit, reset)
        _through(reset, functions[0], rounding, knots)
        for n in range(hidden):
            value = np.int64(reset[n]) * state[b, n]
            y[b, n] = rescale(value, scale)


@kernel(*[_SOURCE] * 4, *[_SINK] * 2, INT, INT, SCALE)
def gru_cell(
    x: Int16,
    r: Int16,
    state: Int16,
    functions: Int16,
    state_out: Int16,
    y: Int16,
    after: int,
    limit: int,
    scale: Scale,
) -> None:
    """One step of a GRU, `nnac.cells.gru_cell` and `numerics.rescale` for each unit.

    Args:
        x: (batch, 3 * hidden), input parts of the gates z, r, h, Q3.12.
        r: the same of the recurrent parts.
        state: (batch, hidden), Q0.15.
        functions: (2, 513), tables f, g.
        state_out: as state; may be the same array.
        y: (batch, hidden), the hidden values.
        after: 1 where the reset gate acts on r, 0 where r has seen it.
        limit: of the gates' pre-activations, 1..32767.
        scale: as `requantize.Scale`, of 2**-30 over y.
    """
    hidden, rounding = state.shape[1], scale[5]
    work = np.empty((3, hidden), np.int32)
    update, candidate, knots = work[0], work[1], work[2]
    for b in range(state.shape[0]):
        h, last, was = hidden, r[b, 2 * hidden :], state[b]
        if after:
            reset = update
            _sums(x[b, h : 2 * h], r[b, h : 2 * h], limit, reset)
            _through(reset, functions[0], rounding, knots)
            for n in range(hidden):
                candidate[n] = _gate(x[b, n + 2 * h], 0, limit, rounding, reset[n], last[n], 15)
        else:
            _sums(x[b, 2 * h :], last, limit, candidate)
        _through(candidate, functions[1], rounding, knots)
        _sums(x[b, :h], r[b, :h], limit, update)
        _through(update, functions[0], rounding, knots)
        for n in range(hidden):
            z = np.int64(update[n])
            mixed = (_ONE - z) * candidate[n] + z * was[n]
            update[n] = saturate(round_shift(mixed, 15, rounding), _LOW, _HIGH)
        for n in range(hidden):  # apart, as in `lstm_cell`
            state_out[b, n] = update[n]
            y[b, n] = rescale(np.int64(update[n]) << 15, scale)
