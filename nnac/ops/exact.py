"""The law (`nnac.numerics`, `nnac.cells`, `nnac.norms`) over numpy arrays of int64, for the operators' references.

Same names, same order of arguments, same bits; every result is int64. Arguments broadcast. Nothing is approximated:
within the stated bounds no intermediate leaves int64. Outside them numpy would wrap in silence, so keep to them: an
accumulator (or total) and a multiplier 0 <= m < 2**31 whose product stays within 2**62, a shift 0 <= s <= 62, zero
points and limits of int16 size.
"""

import numpy as np
import numpy.typing as npt

from nnac.norms import ROOT_BITS
from nnac.numerics import (
    GATE_BITS,
    INT8_HIGH,
    INT8_LOW,
    INT16_HIGH,
    INT16_LOW,
    INT32_HIGH,
    INT32_LOW,
    INTERPOLATION_SHIFT,
    MULTIPLIER_BITS,
    OCTAVE_SHIFT,
    OCTAVE_ZERO,
    ROOT_FRACTION,
    SHIFT_MAX,
    SOFTMAX_ENTRIES,
    UNIT_BITS,
    Rounding,
)
from nnac.numerics import encode_ratio as encode_one

Int64 = npt.NDArray[np.int64]
Integers = npt.NDArray[np.integer] | int
"""Any integer array or number; converted to int64 on entry."""


def saturate(value: Integers, low: Integers = INT8_LOW, high: Integers = INT8_HIGH) -> Int64:
    """The nearest value inside [low, high]."""
    return np.minimum(np.maximum(_int64(value), _int64(low)), _int64(high))


def round_shift(value: Integers, shift: Integers, rounding: Rounding) -> Int64:
    """``value * 2**-shift``, rounded once; TFLITE counts as HALF_AWAY. Bounds: any int64 value."""
    value, shift = _int64(value), _checked_shift(shift)
    floor = value >> shift
    rest = value & (np.int64(1) << shift) - 1
    half = (np.int64(1) << shift) >> 1 | (shift == 0)  # of nothing cut off, more than there is
    return _int64(floor + (rest + _ties_up(floor, value, rounding) > half))


def round_divide(numerator: Integers, denominator: Integers, rounding: Rounding, shift: Integers = 0) -> Int64:
    """``numerator / (denominator << shift)``, exact and rounded once; TFLITE counts as HALF_AWAY.

    Bounds: any int64 numerator, 0 < denominator < 2**62. The shifted denominator itself may leave int64: it is never
    formed.

    Raises:
        ValueError: a denominator is not positive, or a shift is outside 0..62.
    """
    numerator, denominator, shift = _int64(numerator), _int64(denominator), _checked_shift(shift)
    if np.any(denominator <= 0):
        raise ValueError("a denominator is not positive")
    high = numerator >> shift
    low_bits = numerator - (high << shift)
    floor = high // denominator
    # The rest is (high - floor * denominator) * 2**shift + low_bits; twice that against denominator * 2**shift:
    excess = 2 * (high - floor * denominator) - denominator
    against_half = np.sign(2 * low_bits - (np.int64(1) << shift))
    compared = np.where(excess == -1, against_half, np.where(excess < 0, -1, np.sign(excess | low_bits)))
    return floor + (compared + _ties_up(floor, numerator, rounding) > 0)


def _ties_up(floor: Int64, value: Int64, rounding: Rounding) -> Int64:
    """1 where a value half a step above `floor` rounds up, else 0."""
    if rounding in (Rounding.HALF_EVEN, Rounding.ONNX):
        return floor & 1
    return _int64(1 if rounding == Rounding.HALF_UP else value >= 0)


def requantize(
    acc: Integers,
    multiplier: Integers,
    shift: Integers,
    zero_point: Integers,
    rounding: Rounding,
    low: Integers = INT8_LOW,
    high: Integers = INT8_HIGH,
) -> Int64:
    """``saturate(round(acc * multiplier * 2**-shift) + zero_point)``; two steps for TFLITE. Bounds: see the module.

    Raises:
        ValueError: a shift is outside 0..62.
    """
    acc, multiplier, shift = _int64(acc), _int64(multiplier), _checked_shift(shift)
    scaled = _two_step if rounding == Rounding.TFLITE else _one_step
    return saturate(scaled(acc, multiplier, shift, rounding) + zero_point, low, high)


def requantize_wide(
    acc: Integers,
    multiplier: Integers,
    shift: Integers,
    zero_point: Integers,
    rounding: Rounding,
    low: Integers = INT16_LOW,
    high: Integers = INT16_HIGH,
) -> Int64:
    """`requantize` in one step whatever the rounding. Bounds: |acc| <= 2**39, 0 <= multiplier < 2**23.

    Raises:
        ValueError: a shift is outside 0..62.
    """
    scaled = _one_step(_int64(acc), _int64(multiplier), _checked_shift(shift), rounding)
    return saturate(scaled + zero_point, low, high)


def magnitude(
    squares: Integers,
    multiplier: Integers,
    shift: Integers,
    zero_point: Integers,
    rounding: Rounding,
    low: Integers = INT8_LOW,
    high: Integers = INT8_HIGH,
) -> Int64:
    """`numerics.magnitude` of sums of squares. Bounds: 0 <= squares < 2**35."""
    total = _int64(squares) << 2 * ROOT_FRACTION
    root = np.sqrt(total.astype(np.float64)).astype(np.int64)  # off by one at most
    root -= root * root > total
    root += (root + 1) ** 2 <= total
    return requantize(root, multiplier, shift, zero_point, rounding, low, high)


def _one_step(acc: Int64, multiplier: Int64, shift: Int64, rounding: Rounding) -> Int64:
    """The exact product, rounded once."""
    return round_shift(acc * multiplier, shift, rounding)


def _two_step(acc: Int64, multiplier: Int64, shift: Int64, rounding: Rounding) -> Int64:
    """As `numerics.requantize` defines TFLITE; `rounding` is known here and unused.

    The left shift saturates to int32. It is limited first, to a shift of at most 31, since any non-zero acc << 31 is
    outside.
    """
    del rounding
    lift = 31 - np.frexp(multiplier.astype(np.float64))[1].astype(np.int64)  # exact under 2**53; 31 for 0
    lift = np.where(multiplier == 0, 0, lift)
    total = shift + lift
    left = np.maximum(31 - total, 0)
    right = np.minimum(np.maximum(total - 31, 0), SHIFT_MAX)
    shifted = saturate(acc << left, INT32_LOW, INT32_HIGH)
    doubled = round_shift(shifted * (multiplier << lift), 31, Rounding.HALF_UP)
    return round_shift(doubled, right, Rounding.HALF_AWAY)


def quantize(x: npt.NDArray[np.floating], scale: npt.ArrayLike, zero_point: Integers, low: int, high: int) -> Int64:
    """`numerics.quantize` of reals without NaN: the float32 quotient, half to even, plus the zero point, saturated."""
    with np.errstate(over="ignore"):
        steps = np.rint(x.astype(np.float32) / np.asarray(scale, np.float32)).astype(np.float64)
    return _int64(np.clip(steps + _int64(zero_point), low, high))


def encode_ratio(
    ratio: npt.NDArray[np.floating], power_of_two: bool = False, bits: int = MULTIPLIER_BITS
) -> tuple[Int64, Int64]:
    """Real ratios of scales, a vector of float64, each as (multiplier, shift).

    Raises:
        ValueError: as `nnac.numerics.encode_ratio`, about one of the ratios that it refuses.
    """
    mantissa, exponent = np.frexp(ratio)
    power = (mantissa == 0.5) & (exponent > -SHIFT_MAX)
    legal = (ratio >= 0) & (ratio < 2.0**bits)
    _refuse(ratio[~(legal & (power | (ratio == 0))) if power_of_two else ~legal], power_of_two, bits)
    shift = np.minimum(bits - exponent, SHIFT_MAX)
    scaled = np.ldexp(ratio, shift)  # exact
    multiplier = _int64(scaled)
    multiplier += scaled - multiplier >= 0.5
    carried = multiplier >> bits  # rounded up to the next power of two
    multiplier, shift = multiplier >> carried, shift - carried
    _refuse(ratio[shift < 0], power_of_two, bits)
    shift[multiplier == 0] = 0
    if power.any():
        multiplier = np.where(power, np.int64(1) << np.maximum(exponent - 1, 0), multiplier)
        shift = np.where(power, np.maximum(1 - exponent, 0), shift)
    return multiplier, shift


def _refuse(ratios: npt.NDArray[np.floating], power_of_two: bool, bits: int) -> None:
    """Raise what the law says of ratios that it does not encode."""
    for ratio in ratios.tolist():
        encode_one(ratio, power_of_two, bits)


def narrow(acc: Integers, bits: int, wraps: bool) -> Int64:
    """A sum in an accumulator of `bits` bits, 1..62: wrapped modulo 2**bits, or saturated. Bounds: |acc| < 2**62."""
    half = 1 << (bits - 1)
    if wraps:
        return _int64((_int64(acc) + half) % (2 * half) - half)
    return saturate(acc, -half, half - 1)


def average(
    total: Integers,
    count: Integers,
    multiplier: Integers,
    shift: Integers,
    zero_point: Integers,
    rounding: Rounding,
    low: Integers = INT8_LOW,
    high: Integers = INT8_HIGH,
) -> Int64:
    """``saturate(round(total * multiplier / (count << shift)) + zero_point)``, one rounding. Bounds: see the module."""
    product = _int64(total) * _int64(multiplier)
    return saturate(round_divide(product, count, rounding, shift) + zero_point, low, high)


def softmax(
    x: npt.NDArray[np.integer],
    exp_table: npt.ArrayLike,
    multiplier: Integers,
    shift: Integers,
    zero_point: Integers,
    rounding: Rounding,
    low: Integers = INT8_LOW,
    high: Integers = INT8_HIGH,
) -> Int64:
    """Softmax along the last, non-empty axis; the table is one of `numerics.softmax_table`, see `numerics.softmax`."""
    values, table = _int64(x), _int64(exp_table)
    distance = values.max(axis=-1, keepdims=True) - values
    if table.size == SOFTMAX_ENTRIES:
        exponentials = table[distance]
    else:
        exponentials = table[distance >> 8] * table[SOFTMAX_ENTRIES + (distance & 255)]
    total = exponentials.sum(axis=-1, keepdims=True)
    return saturate(round_divide(exponentials * _int64(multiplier), total, rounding, shift) + zero_point, low, high)


def interpolate(
    x: npt.NDArray[np.integer],
    table: npt.ArrayLike,
    rounding: Rounding,
    low: Integers = INT16_LOW,
    high: Integers = INT16_HIGH,
    shift: Integers = INTERPOLATION_SHIFT,
    zero_point: Integers = 0,
) -> Int64:
    """513-entry int16 tables (one, or one per entry of the last axis) over int16 values; see `numerics.interpolate`."""
    knots = _int64(table)
    offset = _int64(x) - INT16_LOW
    index, fraction = offset >> 7, offset & 127
    if knots.ndim == 1:
        left, right = knots[index], knots[index + 1]
    else:
        own = np.arange(len(knots))
        left, right = knots[own, index], knots[own, index + 1]
    blend = left * (128 - fraction) + right * fraction
    return saturate(round_shift(blend, shift, rounding) + zero_point, low, high)


def interpolate_octaves(
    x: npt.NDArray[np.integer],
    table: npt.ArrayLike,
    rounding: Rounding,
    low: Integers = INT16_LOW,
    high: Integers = INT16_HIGH,
    shift: Integers = OCTAVE_SHIFT,
    zero_point: Integers = 0,
) -> Int64:
    """385-entry int16 tables (one, or one per entry of the last axis) over int16 values; see the law's."""
    knots = np.atleast_2d(_int64(table))
    size, sign = np.abs(_int64(x)), np.where(x < 0, -1, 1)
    width = np.maximum(np.frexp(size.astype(np.float64))[1].astype(np.int64) - 5, 0)
    index, fraction = (width << 4) + (size >> width), size & (1 << width) - 1
    own = np.arange(len(knots)) if len(knots) > 1 else 0
    near, far = (knots[own, OCTAVE_ZERO + sign * np.minimum(k, OCTAVE_ZERO)] for k in (index, index + 1))
    blend = (near * ((1 << width) - fraction) + far * fraction) << OCTAVE_SHIFT - width
    return saturate(round_shift(blend, shift, rounding) + zero_point, low, high)


def rescale(
    value: Integers,
    multiplier: Integers,
    shift: Integers,
    zero_point: Integers,
    rounding: Rounding,
    low: Integers = INT8_LOW,
    high: Integers = INT8_HIGH,
) -> Int64:
    """``saturate(round_shift(value * multiplier, shift) + zero_point)``; TFLITE counts as HALF_AWAY. |value| <= 2**31.

    Raises:
        ValueError: a shift is outside 0..62.
    """
    return saturate(round_shift(_int64(value) * _int64(multiplier), shift, rounding) + zero_point, low, high)


def gate(
    x: Integers,
    r: Integers,
    limit: int,
    rounding: Rounding,
    weight: Integers = 0,
    cell: Integers = 0,
    peephole_shift: int = 0,
) -> Int64:
    """Pre-activations of gates; see `nnac.cells.gate`. Bounds: int16 operands, a shift of at most 30."""
    total = ((_int64(x) + _int64(r)) << peephole_shift) + _int64(weight) * _int64(cell)
    return saturate(round_shift(total, peephole_shift, rounding), -limit, limit)


def lstm_cell(
    x: npt.NDArray[np.integer],
    r: npt.NDArray[np.integer],
    cell: npt.NDArray[np.integer],
    functions: npt.NDArray[np.integer],
    cell_bits: int,
    coupled: bool,
    limit: int,
    rounding: Rounding,
    peepholes: npt.ArrayLike = ((0,), (0,), (0,)),
    peephole_shift: int = 0,
) -> tuple[Int64, Int64]:
    """One step of an LSTM: the new cells, and the hidden values in Q1.30; see `nnac.cells.lstm_cell`.

    Args:
        x, r: (..., 4 * hidden), the gates i, o, f, c beside each other.
        cell: (..., hidden).
        functions: (3, 513).
        cell_bits, coupled, limit, rounding, peephole_shift: as in the law.
        peepholes: (3, hidden), or zeros that broadcast to it.
    """
    parts = list(zip(np.split(_int64(x), 4, -1), np.split(_int64(r), 4, -1), strict=True))
    weights = _int64(peepholes)
    cell = _int64(cell)

    def activated(k: int, function: int, weight: Integers = 0, seen: Integers = 0) -> Int64:
        return interpolate(
            gate(*parts[k], limit, rounding, weight, seen, peephole_shift), functions[function], rounding
        )

    i = activated(0, 0, weights[0], cell)
    f = (1 << UNIT_BITS) - i if coupled else activated(2, 0, weights[2], cell)
    g = activated(3, 1)
    total = ((f * cell) << (UNIT_BITS - cell_bits)) + i * g
    new = saturate(round_shift(total, 2 * UNIT_BITS - cell_bits, rounding), INT16_LOW, INT16_HIGH)
    o = activated(1, 0, weights[1], new)
    seen = saturate(new << max(0, GATE_BITS - cell_bits), INT16_LOW, INT16_HIGH)
    return new, o * interpolate(seen, functions[2], rounding)


def gru_reset(
    x: npt.NDArray[np.integer],
    r: npt.NDArray[np.integer],
    state: npt.NDArray[np.integer],
    function: npt.ArrayLike,
    limit: int,
    rounding: Rounding,
) -> Int64:
    """The reset gate, of which x and r are the parts, times the state in Q1.30; see `nnac.cells.gru_reset`."""
    return interpolate(gate(x, r, limit, rounding), function, rounding) * _int64(state)


def gru_cell(
    x: npt.NDArray[np.integer],
    r: npt.NDArray[np.integer],
    state: npt.NDArray[np.integer],
    functions: npt.NDArray[np.integer],
    after: bool,
    limit: int,
    rounding: Rounding,
) -> Int64:
    """One step of a GRU: the new states; see `nnac.cells.gru_cell`.

    Args:
        x, r: (..., 3 * hidden), the gates z, r, h beside each other.
        state: (..., hidden).
        functions: (2, 513).
        after, limit, rounding: as in the law.
    """
    (x_z, x_r, x_h), (r_z, r_r, r_h) = np.split(_int64(x), 3, -1), np.split(_int64(r), 3, -1)
    z = interpolate(gate(x_z, r_z, limit, rounding), functions[0], rounding)
    if after:
        reset = interpolate(gate(x_r, r_r, limit, rounding), functions[0], rounding)
        candidate = gate(x_h, 0, limit, rounding, reset, r_h, UNIT_BITS)
    else:
        candidate = gate(x_h, r_h, limit, rounding)
    n = interpolate(candidate, functions[1], rounding)
    total = ((1 << UNIT_BITS) - z) * n + z * _int64(state)
    return saturate(round_shift(total, UNIT_BITS, rounding), INT16_LOW, INT16_HIGH)


def quotient(
    numerator: Integers,
    divisor: Integers,
    multiplier: int,
    shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
) -> Int64:
    """Exact quotients, rounded once; see `norms.quotient`. Bounds: |numerator|, |divisor| <= 2**16."""
    above, below = _int64(numerator), _int64(divisor)
    signed, positive = above * multiplier * np.where(below < 0, -1, 1), np.where(below == 0, 1, np.abs(below))
    rounded = saturate(round_divide(signed, positive, rounding, shift) + zero_point, low, high)
    ends = np.where(above > 0, high, np.where(above < 0, low, saturate(zero_point, low, high)))
    return np.where(below == 0, ends, rounded)


def inverse_root(value: Integers) -> tuple[Int64, Int64]:
    """(root, lift) of values in 1 .. 2**62 - 1; see `norms.inverse_root`."""
    value = _int64(value)
    lift = np.zeros_like(value)
    for step in (16, 8, 4, 2, 1):
        fits = (value << 2 * lift) >> (62 - 2 * step) == 0
        lift = np.where(fits, lift + step, lift)
    square = value << 2 * lift
    root = np.sqrt(square.astype(np.float64)).astype(np.int64)  # off by one at most
    root -= root * root > square
    root += (root + 1) * (root + 1) <= square
    return (np.int64(1) << ROOT_BITS) // root, lift


def normalize(
    x: Integers,
    zero: int,
    centered: bool,
    epsilon: int,
    gains: Integers,
    gain_shift: int,
    offsets: Integers,
    offset_shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
) -> Int64:
    """Groups along the last axis normalised; gains and offsets broadcast to x; see `norms.normalize`.

    The product of three is formed in two parts of 31 bits and doubled, so that a last bit, which stands for all that
    was cut off, is less than a half.
    """
    values = _int64(x) - zero
    count = values.shape[-1]
    total = values.sum(axis=-1, keepdims=True) * centered
    root, lift = inverse_root(count * (values * values).sum(axis=-1, keepdims=True) - total * total + epsilon)
    product = 2 * _int64(gains) * (count * values - total)
    part = (np.int64(1) << MULTIPLIER_BITS) - 1
    under = (product & part) * root
    above = (product >> MULTIPLIER_BITS) * root + (under >> MULTIPLIER_BITS)
    shift = ROOT_BITS - MULTIPLIER_BITS + gain_shift - lift - offset_shift
    floor = above >> shift
    cut = ((under & part) != 0) | (floor << shift != above)
    result = round_shift(2 * (floor + 2 * _int64(offsets)) + cut, offset_shift + 2, rounding)
    return saturate(result + zero_point, low, high)


def _int64(value: npt.ArrayLike) -> Int64:
    """The value as an int64 array (of no dimension for a number)."""
    return np.asarray(value, dtype=np.int64)


def _checked_shift(shift: Integers) -> Int64:
    """The shift as int64; raises ValueError outside 0..62."""
    checked = _int64(shift)
    if np.any((checked < 0) | (checked > SHIFT_MAX)):
        raise ValueError(f"a shift is outside 0..{SHIFT_MAX}")
    return checked
