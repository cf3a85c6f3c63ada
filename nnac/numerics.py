"""The law of arithmetic: what every number in nnac means, one value at a time, in Python integers.

Everything that executes (operators' references in numpy, kernels in numba, the training twin in torch) is tested
against the functions of this file. They favour being read over being fast and know no array library.

A quantized value q stands for the real value ``scale * (q - zero_point)`` (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"). A ratio of scales reaches the machine as
a pair (multiplier, shift) of integers with ``ratio ~= multiplier * 2**-shift``, ``0 <= multiplier < 2**31`` and ``0 <=
shift <= 62``.

Activations are int8, or int16 with a zero point of 0. The multipliers of int16 have the bits that keep every product
inside 2**62, so that 64-bit machines meet the law:

- sums: |x - z| <= 2**15, multipliers under 2**31, up to 2**16 operands;
- products: |x * y| <= 2**30 is still an int32, so that `requantize` holds with multipliers under 2**31;
- magnitudes: up to 16 squares, whose sum has a root of less than 2**31 with its fraction;
- averages: as many bits as the window leaves (`average_bits`), 31 up to 2**16 taps;
- convolutions: sums of int16 x int8 in an accumulator of 8 more bits (40 for 32), multipliers under 2**23
  (`requantize_wide`).
"""

import enum
import functools
import math
import struct
from collections.abc import Sequence
from fractions import Fraction

INT8_LOW, INT8_HIGH = -128, 127
INT16_LOW, INT16_HIGH = -(1 << 15), (1 << 15) - 1
INT32_LOW, INT32_HIGH = -(1 << 31), (1 << 31) - 1
SHIFT_MAX = 62
MULTIPLIER_BITS = 31
MULTIPLIER_LIMIT = 1 << MULTIPLIER_BITS
WIDE_BITS = 8
"""Bits that an accumulator of int16 activations has more."""
WIDE_MULTIPLIER_BITS = 23
WIDE_MULTIPLIER_LIMIT = 1 << WIDE_MULTIPLIER_BITS
SOFTMAX_ENTRIES = 256
SOFTMAX_ONE = 1 << 16
SOFTMAX_WIDE_ONE = 1 << 15
SOFTMAX_FINE_ONE = 1 << 30
INTERPOLATION_ENTRIES = 513
OCTAVE_ENTRIES = 385
OCTAVE_ZERO = 192
"""Entry of the value 0 among knots by octaves."""
GATE_BITS = 12
"""Fractional bits of a gate's pre-activation: int16, Q3.12."""
UNIT_BITS = 15
"""Fractional bits of a gate's output and of a GRU's state: int16, Q0.15."""
INTERPOLATION_SHIFT = 7
OCTAVE_SHIFT = 11
ROOT_FRACTION = 13
"""Fractional bits of a root before it is requantized."""
SQUARES_LIMIT = 1 << 35


class Rounding(enum.IntEnum):
    """What becomes of the half: the numbers are the ones that instructions and kernels carry."""

    HALF_EVEN = 0
    """Ties go to the even neighbour (IEEE 754, ONNX)."""
    HALF_UP = 1
    """Ties go towards plus infinity: add half, shift."""
    HALF_AWAY = 2
    """Ties go away from zero (C's round)."""
    TFLITE = 3
    """gemmlowp's two steps, see `requantize`; every expression without a two-step form rounds HALF_AWAY."""
    ONNX = 4
    """onnxruntime's integer operators: on int8 the float32 forms of `nnac.float32`; all else rounds HALF_EVEN."""

    @classmethod
    def parse(cls, label: str) -> "Rounding":
        """The mode of a name such as 'half_even'; raises ValueError that lists the names."""
        for mode in cls:
            if mode.label == label:
                return mode
        raise ValueError(f"unknown rounding {label!r}: use one of {', '.join(mode.label for mode in cls)}")

    @property
    def label(self) -> str:
        """The name that target files use: 'half_even', 'half_up', 'half_away', 'tflite' or 'onnx'."""
        return self.name.lower()


def saturate(value: int, low: int = INT8_LOW, high: int = INT8_HIGH) -> int:
    """The nearest value inside [low, high]."""
    return max(low, min(high, value))


def round_divide(numerator: int, denominator: int, rounding: Rounding) -> int:
    """The exact quotient, rounded once to an integer.

    Args:
        numerator: any integer.
        denominator: any positive integer.
        rounding: what becomes of ties; TFLITE counts as HALF_AWAY.

    Raises:
        ValueError: the denominator is not positive.
    """
    if denominator <= 0:
        raise ValueError(f"denominator {denominator} is not positive")
    floor, rest = divmod(numerator, denominator)
    if 2 * rest != denominator:
        return floor + (2 * rest > denominator)
    if rounding in (Rounding.HALF_EVEN, Rounding.ONNX):
        return floor + floor % 2
    if rounding == Rounding.HALF_UP:
        return floor + 1
    return floor + (numerator >= 0)


def round_shift(value: int, shift: int, rounding: Rounding) -> int:
    """``value * 2**-shift``, rounded once. TFLITE counts as HALF_AWAY: wide expressions have no two-step form.

    Raises:
        ValueError: the shift is outside 0..62.
    """
    if not 0 <= shift <= SHIFT_MAX:
        raise ValueError(f"shift {shift} is outside 0..{SHIFT_MAX}")
    return round_divide(value, 1 << shift, rounding)


def requantize(
    acc: int,
    multiplier: int,
    shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
) -> int:
    """An accumulator on the scale of the output: ``saturate(round(acc * multiplier * 2**-shift) + zero_point)``.

    Args:
        acc: the int32 accumulator.
        multiplier: 0 .. 2**31 - 1.
        shift: 0..62, counted from the integer product.
        zero_point: of the output.
        rounding: one rounding, except TFLITE, which rounds twice (`_two_step`).
        low: smallest output; also where a fused activation clips.
        high: largest output.

    Raises:
        ValueError: the multiplier or the shift is out of range.
    """
    if not 0 <= multiplier < MULTIPLIER_LIMIT:
        raise ValueError(f"multiplier {multiplier} is outside 0..2**31-1")
    if not 0 <= shift <= SHIFT_MAX:
        raise ValueError(f"shift {shift} is outside 0..{SHIFT_MAX}")
    if rounding == Rounding.TFLITE:
        return saturate(_two_step(acc, multiplier, shift) + zero_point, low, high)
    return saturate(round_shift(acc * multiplier, shift, rounding) + zero_point, low, high)


def requantize_wide(
    acc: int,
    multiplier: int,
    shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT16_LOW,
    high: int = INT16_HIGH,
) -> int:
    """`requantize` of a sum over int16 activations: always one rounding.

    Args:
        acc: the accumulator of up to 40 bits.
        multiplier: 0 .. 2**23 - 1.
        shift: 0..62.
        zero_point: of the output.
        rounding: TFLITE counts as HALF_AWAY.
        low: smallest output.
        high: largest output.

    Raises:
        ValueError: the multiplier or the shift is out of range.
    """
    if not 0 <= multiplier < WIDE_MULTIPLIER_LIMIT:
        raise ValueError(f"multiplier {multiplier} is outside 0..2**{WIDE_MULTIPLIER_BITS}-1")
    return saturate(round_shift(acc * multiplier, shift, rounding) + zero_point, low, high)


def magnitude(
    values: Sequence[int],
    offset: int,
    multiplier: int,
    shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
) -> int:
    """The root of a sum of squares: `requantize` of ``floor(sqrt(offset + sum of squares) * 2**13)``.

    Args:
        values: x - zero point of x, up to 16 on one scale; the squares and the offset sum up to less than 2**35.
        offset: what is added to the squares, on their scale.
        multiplier: 0 .. 2**31 - 1.
        shift: 0..62.
        zero_point: of the output.
        rounding: as for `requantize`.
        low: smallest output.
        high: largest output.

    Raises:
        ValueError: the sum, the multiplier or the shift is out of range.
    """
    total = offset + sum(value * value for value in values)
    if not 0 <= total < SQUARES_LIMIT:
        raise ValueError(f"the sum of squares {total} is outside 0..2**35-1")
    root = math.isqrt(total << 2 * ROOT_FRACTION)
    return requantize(root, multiplier, shift, zero_point, rounding, low, high)


def _two_step(acc: int, multiplier: int, shift: int) -> int:
    """TFLite's MultiplyByQuantizedMultiplier: gemmlowp's doubling high multiply, then its rounding division by 2**n.

    The pair is first brought to TFLite's own form, multiplier in [2**30, 2**31), which leaves its value as it is (the
    small form of a power of two, (1, k), becomes (2**30, k + 30)). The total shift is then 31 + right shift, or 31 -
    left shift.

    A left shift that leaves int32 is undefined in TFLite's C++ (the vector units wrap); here it saturates. Since the
    multiplier is at least 2**30, the int8 and int16 outputs are then those of the unlimited product.
    """
    if multiplier == 0:
        return 0
    lift = 31 - multiplier.bit_length()
    multiplier, shift = multiplier << lift, shift + lift
    left, right = max(31 - shift, 0), max(shift - 31, 0)
    doubled = _saturating_rounding_doubling_high_mul(saturate(acc << left, INT32_LOW, INT32_HIGH), multiplier)
    return round_divide(doubled, 1 << right, Rounding.HALF_AWAY)  # RoundingDivideByPOT: ties away from zero


def _saturating_rounding_doubling_high_mul(a: int, b: int) -> int:
    """gemmlowp fixedpoint.h: the high half of 2ab. Its nudge of 2**30 or 1 - 2**30 with truncation sends ties upwards.

    The one product that saturates there, (-2**31)**2, cannot occur: b is a non-negative int32.
    """
    return round_divide(a * b, 1 << 31, Rounding.HALF_UP)


@functools.lru_cache(maxsize=1 << 16)
def encode_ratio(ratio: float, power_of_two: bool = False, bits: int = MULTIPLIER_BITS) -> tuple[int, int]:
    """A real ratio of scales as (multiplier, shift), as TFLite's QuantizeMultiplier finds it.

    An exact power of two takes its smallest form, (1, k) or (2**k, 0), and is exact. Any other ratio gets a multiplier
    of all bits, in [2**30, 2**31) by default, relative error at most 2**-bits; where the shift would have to exceed 62
    it stays there, and the absolute error is at most 2**-63.

    Args:
        ratio: 0 <= ratio < 2**bits.
        power_of_two: the target has shifters only; any other ratio is an error.
        bits: of the multiplier, 1 to 31.

    Raises:
        ValueError: negative, not finite, too large; or no power of two from 2**-62 to 2**(bits-1) though demanded.
    """
    _check_ratio(ratio, bits)
    exponent = _exponent(ratio)
    if exponent is not None and -SHIFT_MAX <= exponent:
        return 1 << max(exponent, 0), max(-exponent, 0)
    if power_of_two and ratio != 0:
        raise ValueError(f"ratio {ratio!r} is not a power of two from 2**-{SHIFT_MAX} to 2**{bits - 1}")
    multipliers, shift = _encode_with_common_shift([ratio], bits)
    return multipliers[0], shift


def encode_ratios(ratios: Sequence[float]) -> tuple[tuple[int, ...], int]:
    """Integers m_i and one shift for a sum over operands, ``sum(m_i * (x_i - z_i)) * 2**-shift``.

    Powers of two (and zeros) that fit take the smallest exact form. Otherwise the largest m_i lies in [2**30, 2**31),
    so that every ratio is met to 2**-31 of the largest.

    Raises:
        ValueError: no ratio at all; one is negative, not finite or too large.
    """
    if not ratios:
        raise ValueError("no ratio to encode")
    for ratio in ratios:
        _check_ratio(ratio)
    exponents = [_exponent(ratio) for ratio in ratios if ratio != 0]
    known = [exponent for exponent in exponents if exponent is not None]
    if len(known) == len(exponents):
        shift = max(0, -min(known, default=0))
        if shift <= SHIFT_MAX and max(known, default=0) + shift <= 30:
            return tuple(int(Fraction(ratio) * (1 << shift)) for ratio in ratios), shift
    return _encode_with_common_shift(ratios)


def _encode_with_common_shift(ratios: Sequence[float], bits: int = MULTIPLIER_BITS) -> tuple[tuple[int, ...], int]:
    """The largest ratio with a multiplier of all bits where the shift allows, the others on its shift; ties away."""
    largest = max(ratios)
    shift = min(bits - math.frexp(largest)[1], SHIFT_MAX)
    if _scaled(largest, shift) == 1 << bits:  # rounded up to the next power of two
        shift -= 1
    if shift < 0:
        raise ValueError(f"ratio {largest!r} is too large: the limit is 2**{bits}")
    multipliers = tuple(_scaled(ratio, shift) for ratio in ratios)
    return multipliers, shift if any(multipliers) else 0


def _scaled(ratio: float, shift: int) -> int:
    """``ratio * 2**shift`` to the nearest integer, ties away from zero; the shift may be negative."""
    scaled = Fraction(ratio) * Fraction(2) ** shift
    return round_divide(scaled.numerator, scaled.denominator, Rounding.HALF_AWAY)


def _check_ratio(ratio: float, bits: int = MULTIPLIER_BITS) -> None:
    """Refuses what no multiplier can hold."""
    if not math.isfinite(ratio) or ratio < 0:
        raise ValueError(f"ratio {ratio!r} is not a finite non-negative number")
    if ratio >= 1 << bits:
        raise ValueError(f"ratio {ratio!r} is too large: the limit is 2**{bits}")


def _exponent(ratio: float) -> int | None:
    """k where the ratio is exactly 2**k, else None."""
    mantissa, exponent = math.frexp(ratio)
    return exponent - 1 if mantissa == 0.5 else None


def narrow(acc: int, bits: int, wraps: bool) -> int:
    """A sum in an accumulator of fewer bits; applied once, after the whole sum with its bias.

    For a wrapping accumulator that equals wrapping at every step. For a saturating one it is this project's definition
    (the order of partial sums then has no influence).

    Raises:
        ValueError: bits is under 1.
    """
    if bits < 1:
        raise ValueError(f"an accumulator of {bits} bits holds nothing")
    half = 1 << (bits - 1)
    if wraps:
        return (acc + half) % (2 * half) - half
    return saturate(acc, -half, half - 1)


def average(
    total: int,
    count: int,
    multiplier: int,
    shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
) -> int:
    """The mean of `count` values on the scale of the output: exact division and scaling, one rounding.

    Args:
        total: sum of (x - zero point of x).
        count: taps that count, positive.
        multiplier: with `shift`, the ratio of the input's scale to the output's.
        shift: 0..62.
        zero_point: of the output.
        rounding: TFLITE counts as HALF_AWAY.
        low: smallest output.
        high: largest output.
    """
    return saturate(round_divide(total * multiplier, count << shift, rounding) + zero_point, low, high)


def average_bits(taps: int, bits: int) -> int:
    """Bits that the multiplier of a mean may have, so that window sum times multiplier stays within 2**62.

    Args:
        taps: most values of a window.
        bits: of an input value; |x - zero point| is at most 255 of 8, 2**15 of 16.
    """
    reach = 8 if bits == 8 else 15
    return max(1, min(MULTIPLIER_BITS, 62 - reach - (taps - 1).bit_length()))


@functools.lru_cache(maxsize=256)
def softmax_table(scale: float, bits: int = 8, fine: bool = False) -> tuple[int, ...]:
    """exp(-scale * d), rounded half to even, as `softmax` looks it up.

    For int8: d = 0..255 in Q0.16; the first entry is 65536. For int16: d = 0, 256, ..., 65280 and then d = 0..255,
    both in Q0.15: the exponential of a distance is the product of the entries of its high and low byte.

    Args:
        scale: of the softmax input (times the softmax's own factor, if any); non-negative and finite.
        bits: of the input, 8 or 16.
        fine: for int8 in Q0.30, near what float32 gives (machines of rounding ONNX).

    Raises:
        ValueError: the scale is negative or not finite.
    """
    if not math.isfinite(scale) or scale < 0:
        raise ValueError(f"softmax scale {scale!r} is not a finite non-negative number")
    if bits == 8:
        one = SOFTMAX_FINE_ONE if fine else SOFTMAX_ONE
        return tuple(round(math.exp(-scale * distance) * one) for distance in range(SOFTMAX_ENTRIES))
    steps = [*range(0, SOFTMAX_ENTRIES**2, SOFTMAX_ENTRIES), *range(SOFTMAX_ENTRIES)]
    return tuple(round(math.exp(-scale * distance) * SOFTMAX_WIDE_ONE) for distance in steps)


def softmax(
    x: Sequence[int],
    exp_table: Sequence[int],
    multiplier: int,
    shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
) -> list[int]:
    """Softmax: exponentials from a table, exact sum, one division and one rounding per output.

    Args:
        x: int8 or int16 values, at least one; their zero point cancels.
        exp_table: of `softmax_table`, 256 entries for int8, 512 for int16; non-negative, exp(0) positive.
        multiplier: with `shift`, 1 / scale of the output (256 and 0 for the usual scale of 1/256).
        shift: 0..62.
        zero_point: of the output.
        rounding: TFLITE counts as HALF_AWAY.
        low: smallest output.
        high: largest output.
    """
    peak = max(x)
    exponentials = [_exponential(exp_table, peak - value) for value in x]
    denominator = sum(exponentials) << shift
    return [saturate(round_divide(e * multiplier, denominator, rounding) + zero_point, low, high) for e in exponentials]


def _exponential(table: Sequence[int], distance: int) -> int:
    """exp(0) minus a distance: an entry in Q0.16, or the product of two in Q0.30."""
    if len(table) == SOFTMAX_ENTRIES:
        return table[distance]
    coarse, fine = divmod(distance, SOFTMAX_ENTRIES)
    return table[coarse] * table[SOFTMAX_ENTRIES + fine]


def interpolate(
    x: int,
    table: Sequence[int],
    rounding: Rounding,
    low: int = INT16_LOW,
    high: int = INT16_HIGH,
    shift: int = INTERPOLATION_SHIFT,
    zero_point: int = 0,
) -> int:
    """A function of an int16 value from 513 knots, 128 apart, linear between them; one rounding.

    Args:
        x: int16.
        table: 513 int16 values; entry i belongs to x = 128 * i - 32768 (the last to 32768, one past the range).
        rounding: TFLITE counts as HALF_AWAY.
        low: smallest output.
        high: largest output.
        shift: 7, and as many more as the knots are finer than the output: in units of its scale * 2**(7 - shift).
        zero_point: of the output.
    """
    index, fraction = divmod(x - INT16_LOW, 128)
    blend = table[index] * (128 - fraction) + table[index + 1] * fraction
    return saturate(round_shift(blend, shift, rounding) + zero_point, low, high)


def interpolate_octaves(
    x: int,
    table: Sequence[int],
    rounding: Rounding,
    low: int = INT16_LOW,
    high: int = INT16_HIGH,
    shift: int = OCTAVE_SHIFT,
    zero_point: int = 0,
) -> int:
    """As `interpolate` from 385 knots, 16 per octave on either side of 0, for functions that bend there.

    Args:
        x: int16.
        table: 385 int16 values; entry 192 belongs to 0, entries 192 + k and 192 - k to `octave_place(k)` and its
            negative.
        rounding, low, high, zero_point: as of `interpolate`.
        shift: 11, and as many more as the knots are finer than the output.
    """
    size, sign = abs(x), -1 if x < 0 else 1
    width = max(size.bit_length() - 5, 0)
    index, fraction = (width << 4) + (size >> width), size & (1 << width) - 1
    near, far = (table[OCTAVE_ZERO + sign * min(k, OCTAVE_ZERO)] for k in (index, index + 1))
    blend = (near * ((1 << width) - fraction) + far * fraction) << OCTAVE_SHIFT - width
    return saturate(round_shift(blend, shift, rounding) + zero_point, low, high)


def octave_place(k: int) -> int:
    """Return the value of knot 0 <= k <= 192 of `interpolate_octaves`: each up to 32, 16 per octave up to 2**15."""
    width = max((k >> 4) - 1, 0)
    return (k - (width << 4)) << width


def rescale(
    value: int,
    multiplier: int,
    shift: int,
    zero_point: int,
    rounding: Rounding,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
) -> int:
    """`requantize` of a wide expression: always one rounding, TFLITE counts as HALF_AWAY."""
    return saturate(round_shift(value * multiplier, shift, rounding) + zero_point, low, high)


def quantize(x: float, scale: float, zero_point: int, low: int = INT8_LOW, high: int = INT8_HIGH) -> int:
    """ONNX QuantizeLinear: the float32 quotient, half to even, plus the zero point, saturated.

    Args:
        x: real value, taken as float32; infinities saturate.
        scale: positive and finite as float32.
        zero_point: added after rounding.
        low: smallest output (-32768 for int16).
        high: largest output.

    Raises:
        ValueError: x is NaN, or the scale is not positive and finite.
    """
    step = _positive_float32(scale)
    if math.isnan(x):
        raise ValueError("NaN has no quantized value")
    quotient = _float32(_float32(x) / step)  # the double quotient of two float32 rounds to the float32 quotient
    if math.isinf(quotient):
        return high if quotient > 0 else low
    return saturate(round(quotient) + zero_point, low, high)


def dequantize(q: int, scale: float, zero_point: int) -> float:
    """ONNX DequantizeLinear: ``(q - zero_point) * scale`` in float32.

    Raises:
        ValueError: the scale is not positive and finite.
    """
    return _float32((q - zero_point) * _positive_float32(scale))


def _positive_float32(scale: float) -> float:
    """The scale as float32."""
    step = _float32(scale)
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"scale {scale!r} is not positive and finite in float32")
    return step


def _float32(value: float) -> float:
    """The nearest float32, infinite where it overflows."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)
