"""The law of arithmetic, continued: one step of one unit of a recurrent cell.

Gate pre-activations are int16 in Q3.12, what gates give is Q0.15, cells are int16 in a power of two.
"""

from __future__ import annotations

from collections.abc import Sequence

from nnac.numerics import (
    GATE_BITS,
    INT16_HIGH,
    INT16_LOW,
    UNIT_BITS,
    Rounding,
    interpolate,
    round_shift,
    saturate,
)


def gate(
    x: int, r: int, limit: int, rounding: Rounding, weight: int = 0, cell: int = 0, peephole_shift: int = 0
) -> int:
    """A gate's pre-activation in Q3.12: ``x + r + weight * cell * 2**-peephole_shift``, one rounding, clipped.

    Args:
        x: the input's part, int16.
        r: the recurrent part, int16.
        limit: 1..32767, of magnitude: the net's clip, or 32767.
        rounding: TFLITE counts as HALF_AWAY.
        weight: the peephole, int16; 0 without one.
        cell: what it looks at, int16.
        peephole_shift: 0..30.
    """
    total = ((x + r) << peephole_shift) + weight * cell
    return saturate(round_shift(total, peephole_shift, rounding), -limit, limit)


def lstm_cell(
    x: Sequence[int],
    r: Sequence[int],
    cell: int,
    functions: Sequence[Sequence[int]],
    cell_bits: int,
    coupled: bool,
    limit: int,
    rounding: Rounding,
    peepholes: Sequence[int] = (0, 0, 0),
    peephole_shift: int = 0,
) -> tuple[int, int]:
    """One step of one LSTM unit: the new cell, and the hidden value in Q1.30 for `rescale`.

    The cell is int16 with a step of ``2**-cell_bits`` and takes one rounding per step: ``f * cell + i * g`` is exact.
    Peepholes of i and f see the old cell, that of o the new one (ONNX, "LSTM").

    Args:
        x: the input's parts of the gates i, o, f, c, as for `gate`.
        r: their recurrent parts.
        cell: the old cell.
        functions: tables for `interpolate`: f for the gates i, o, f and g for the candidate, both from Q3.12; h for
            the cell in steps of ``2**-max(cell_bits, 12)``. All give Q0.15.
        cell_bits: 0..15.
        coupled: whether the forget gate is one minus the input gate (ONNX, "input_forget").
        limit: as for `gate`.
        rounding: TFLITE counts as HALF_AWAY.
        peepholes: of i, o, f.
        peephole_shift: as for `gate`.

    Raises:
        ValueError: the cell's bits or the peepholes' shift are out of range.
    """
    if not 0 <= cell_bits <= UNIT_BITS:
        raise ValueError(f"a cell of {cell_bits} fractional bits is outside 0..{UNIT_BITS}")

    def activated(k: int, function: Sequence[int], weight: int = 0, seen: int = 0) -> int:
        return interpolate(gate(x[k], r[k], limit, rounding, weight, seen, peephole_shift), function, rounding)

    i = activated(0, functions[0], peepholes[0], cell)
    f = (1 << UNIT_BITS) - i if coupled else activated(2, functions[0], peepholes[2], cell)
    g = activated(3, functions[1])
    total = ((f * cell) << (UNIT_BITS - cell_bits)) + i * g
    new = saturate(round_shift(total, 2 * UNIT_BITS - cell_bits, rounding), INT16_LOW, INT16_HIGH)
    o = activated(1, functions[0], peepholes[1], new)
    seen = saturate(new << max(0, GATE_BITS - cell_bits), INT16_LOW, INT16_HIGH)
    return new, o * interpolate(seen, functions[2], rounding)


def gru_reset(x: int, r: int, state: int, function: Sequence[int], limit: int, rounding: Rounding) -> int:
    """The reset gate times the state, in Q1.30 for `rescale`: what the recurrent weights of the candidate see.

    Args:
        x: the input's part of the reset gate, as for `gate`.
        r: its recurrent part.
        state: Q0.15.
        function: the gates' table for `interpolate`, Q3.12 to Q0.15.
        limit: as for `gate`.
        rounding: TFLITE counts as HALF_AWAY.
    """
    return interpolate(gate(x, r, limit, rounding), function, rounding) * state


def gru_cell(
    x: Sequence[int],
    r: Sequence[int],
    state: int,
    functions: Sequence[Sequence[int]],
    after: bool,
    limit: int,
    rounding: Rounding,
) -> int:
    """One step of one GRU unit: the new state in Q0.15, ``(1 - z) * n + z * state`` with one rounding.

    Args:
        x: the input's parts of the gates z, r, h, as for `gate`.
        r: their recurrent parts.
        state: the old state, Q0.15.
        functions: tables for `interpolate`, Q3.12 to Q0.15: f for the gates z and r, g for the candidate.
        after: whether the reset gate acts on the recurrent part of the candidate (ONNX, "linear_before_reset"); if
            not, that part has already seen it (`gru_reset`).
        limit: as for `gate`.
        rounding: TFLITE counts as HALF_AWAY.
    """
    z = interpolate(gate(x[0], r[0], limit, rounding), functions[0], rounding)
    part = r[2]
    if after:
        reset = interpolate(gate(x[1], r[1], limit, rounding), functions[0], rounding)
        candidate = gate(x[2], 0, limit, rounding, reset, part, UNIT_BITS)
    else:
        candidate = gate(x[2], part, limit, rounding)
    n = interpolate(candidate, functions[1], rounding)
    total = ((1 << UNIT_BITS) - z) * n + z * state
    return saturate(round_shift(total, UNIT_BITS, rounding), INT16_LOW, INT16_HIGH)
