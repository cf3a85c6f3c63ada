"""The law of arithmetic, continued: products, quotients, extremes, choices and normalisation of activations.

Like `nnac.numerics`, one value or one group at a time, in Python integers; what executes is tested against it.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from nnac.numerics import (
    INT8_HIGH,
    INT8_LOW,
    MULTIPLIER_BITS,
    WIDE_BITS,
    Rounding,
    narrow,
    requantize,
    requantize_wide,
    round_divide,
    round_shift,
    saturate,
)

ROOT_BITS = 61
"""`inverse_root` gives 2**61 over the square root of what it has shifted to 62 bits."""
GAIN_BITS = 30
"""Bits of a gain's magnitude, and of an offset's."""
GAIN_SHIFT_MAX = 32
EPSILON_MAX = 1 << 60
GROUP_LIMITS = {8: 1 << 22, 16: 1 << 15}
"""Values that a normalised group may have, by their bits: the squared deviations then sum up to 2**60 at most."""
DEPTH_MAX = 1 << 15
"""Largest inner side of a product of activations: as many products of 255 by 255 stay inside 32 bits."""
LESS, LESS_OR_EQUAL, EQUAL = range(3)
"""Relations of `choose`, as instructions carry them."""


def product_bits(wide: int) -> int:
    """Bits of the multiplier of a product of matrices, of which `wide` have 16 bits: 31, 23 or 15.

    Its sums have as many bits more, 32, 40 or 48, so that sum times multiplier stays within 2**62.
    """
    return MULTIPLIER_BITS - WIDE_BITS * wide


def product(
    x: Sequence[int],
    w: Sequence[int],
    wide: int,
    multiplier: int,
    shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
    bits: int = 32,
    wraps: bool = False,
) -> int:
    """One entry of a product of two matrices of activations: exact sum, `numerics.narrow`, one requantization.

    Args:
        x: row of the left matrix, zero point subtracted; at most `DEPTH_MAX` values.
        w: column of the right matrix, zero point subtracted.
        wide: how many of both have 16 bits.
        multiplier: with `shift` the ratio of scales, under ``2**product_bits(wide)``.
        shift: 0..62.
        zero_point: of the output.
        rounding: TFLITE rounds twice where both have 8 bits.
        low: smallest output.
        high: largest output.
        bits: of the accumulator for operands of 8 bits.
        wraps: whether the accumulator wraps.
    """
    acc = narrow(sum(a * b for a, b in zip(x, w, strict=True)), bits + WIDE_BITS * wide, wraps)
    scaled = requantize_wide if wide else requantize
    return scaled(acc, multiplier, shift, zero_point, rounding, low, high)


def quotient(
    numerator: int,
    divisor: int,
    multiplier: int,
    shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
) -> int:
    """``saturate(round(numerator * multiplier / (divisor * 2**shift)) + zero_point)``, exact, one rounding.

    A divisor of zero gives the end of the range on the numerator's side, and the real zero for 0 / 0.

    Args:
        numerator: x - zero point of x.
        divisor: y - zero point of y, of either sign.
        multiplier: with `shift`, scale of x over scale of y and of the output; 0 .. 2**31 - 1.
        shift: 0..62.
        zero_point: of the output.
        rounding: TFLITE counts as HALF_AWAY.
        low: smallest output.
        high: largest output.
    """
    if divisor == 0:
        return saturate(zero_point, low, high) if numerator == 0 else (high if numerator > 0 else low)
    signed = numerator * multiplier * (1 if divisor > 0 else -1)
    return saturate(round_divide(signed, abs(divisor) << shift, rounding) + zero_point, low, high)


def extreme(
    values: Sequence[int],
    multipliers: Sequence[int],
    least: bool,
    shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
) -> int:
    """The largest (or smallest) of values on several scales: compared as exact products, then rounded once.

    Args:
        values: x - zero point of x, one per operand.
        multipliers: on a common shift, see `numerics.encode_ratios`.
        least: the smallest instead.
        shift: 0..62.
        zero_point: of the output.
        rounding: TFLITE counts as HALF_AWAY.
        low: smallest output.
        high: largest output.
    """
    products = [value * multiplier for value, multiplier in zip(values, multipliers, strict=True)]
    chosen = min(products) if least else max(products)
    return saturate(round_shift(chosen, shift, rounding) + zero_point, low, high)


def choose(
    values: Sequence[int],
    multipliers: Sequence[int],
    relation: int,
    shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
) -> int:
    """The third of four values where the first and the second compare as `relation` says, else the fourth.

    Args:
        values: x - zero point of x, four of them.
        multipliers: the first two on a common shift of their own, the last two on that of the output.
        relation: LESS, LESS_OR_EQUAL or EQUAL; exact.
        shift: 0..62, of what is chosen.
        zero_point: of the output.
        rounding: TFLITE counts as HALF_AWAY.
        low: smallest output.
        high: largest output.
    """
    first, second, yes, no = (value * multiplier for value, multiplier in zip(values, multipliers, strict=True))
    holds = (first < second, first <= second, first == second)[relation]
    return saturate(round_shift(yes if holds else no, shift, rounding) + zero_point, low, high)


def inverse_root(value: int) -> tuple[int, int]:
    """The pair (root, lift) with ``1 / sqrt(value) ~= root * 2**(lift - 61)``, relative error under 2**-30.

    The value is shifted by `lift` times two bits into [2**60, 2**62). Its square root has 31 bits and is cut off, which
    makes its inverse less than one part of 2**30 too large; root is 2**61 divided by that, cut off, which makes it less
    than one part of 2**30 too small.

    Args:
        value: 1 .. 2**62 - 1.

    Raises:
        ValueError: the value is out of range.
    """
    if not 1 <= value < 1 << 62:
        raise ValueError(f"the square root of {value} is not defined here: 1 to 2**62 - 1 are allowed")
    lift = (62 - value.bit_length()) // 2
    return (1 << ROOT_BITS) // math.isqrt(value << 2 * lift), lift


def normalize(
    x: Sequence[int],
    zero: int,
    centered: bool,
    epsilon: int,
    gains: Sequence[int],
    gain_shift: int,
    offsets: Sequence[int],
    offset_shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
) -> list[int]:
    """One group normalised: ``gain * (n * x - sum) / sqrt(n * sum(x**2) - sum**2 + epsilon) + offset``.

    Numerator and radicand are exact, so that the mean is subtracted exactly; the inverse root has a relative error
    under 2**-30; the product of gain, numerator and root and its sum with the offset are exact and rounded once.

    Args:
        x: n int8 or int16 values, at most `GROUP_LIMITS`.
        zero: their zero point.
        centered: whether the mean is subtracted (layer, group and instance norm); if not, `sum` is 0 (RMS norm).
        epsilon: in units of the squared input times n**2; 1 .. 2**60.
        gains: per value, magnitude under 2**30; in units of the output's scale * 2**-gain_shift.
        gain_shift: 0..32.
        offsets: per value, magnitude under 2**30; in units of the output's scale * 2**-offset_shift.
        offset_shift: 0..gain_shift.
        zero_point: of the output.
        rounding: TFLITE counts as HALF_AWAY.
        low: smallest output.
        high: largest output.
    """
    values = [value - zero for value in x]
    total = sum(values) if centered else 0
    root, lift = inverse_root(len(values) * sum(value * value for value in values) - total * total + epsilon)
    shift = ROOT_BITS + gain_shift - lift
    results = []
    for value, gain, offset in zip(values, gains, offsets, strict=True):
        scaled = gain * (len(values) * value - total) * root + (offset << (shift - offset_shift))
        results.append(saturate(round_divide(scaled, 1 << shift, rounding) + zero_point, low, high))
    return results


def encode_gains(gains: Sequence[float]) -> tuple[tuple[int, ...], int]:
    """Integers and the shift of `normalize` for real gains over the output's scale; the largest gets 30 bits.

    Raises:
        ValueError: one is not finite, or 2**30 or more.
    """
    peak = max((abs(gain) for gain in gains), default=0.0)
    if not math.isfinite(peak) or peak >= 1 << GAIN_BITS:
        raise ValueError(f"a gain of {peak:g} output steps is too large: the limit is 2**{GAIN_BITS}")
    shift = min(GAIN_SHIFT_MAX, GAIN_BITS - math.frexp(peak)[1])
    return _fixed(gains, shift), shift


def encode_offsets(offsets: Sequence[float], most: int) -> tuple[tuple[int, ...], int]:
    """The same for offsets, with a shift of at most `most`, that of the gains; too large ones saturate."""
    peak = max((abs(offset) for offset in offsets), default=0.0)
    shift = max(0, min(most, GAIN_BITS - math.frexp(peak)[1]))
    return _fixed(offsets, shift), shift


def _fixed(values: Sequence[float], shift: int) -> tuple[int, ...]:
    """Each value times 2**shift (exact in float64, as none gets past 2**30), to the nearest integer of 30 bits."""
    limit = (1 << GAIN_BITS) - 1
    return tuple(saturate(round(math.ldexp(value, shift)), -limit, limit) for value in values)


def encode_epsilon(epsilon: float, scale: float, count: int) -> tuple[int, int]:
    """A real epsilon as (multiplier, left shift) in the units of `normalize`; at least one, at most 2**60.

    Args:
        epsilon: non-negative, finite.
        scale: of the input.
        count: values of a group.
    """
    units = Fraction(epsilon) * count * count / Fraction(scale) ** 2
    if units < 1 << MULTIPLIER_BITS:
        return max(1, min(round(units), (1 << MULTIPLIER_BITS) - 1)), 0
    shift = 0
    whole = min(round(units), EPSILON_MAX)
    while whole >> shift >= 1 << MULTIPLIER_BITS:
        shift += 1
    return whole >> shift, shift
