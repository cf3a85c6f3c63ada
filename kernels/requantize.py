"""The roundings of `nnac.numerics` in int64, for kernels to inline. Scaling never branches on values: it vectorizes.

Bounds as in `nnac.ops.exact`: products of magnitude up to 2**62, shifts 0..62.

The form FLOAT32 alone computes in float32, because it stands for machines that do as onnxruntime's integer operators.
"""

from typing import Any

import numpy as np

from nnac.kernels.jit import Int16, Integer, inner

HALF_EVEN, HALF_UP, TFLITE, ONNX = 0, 1, 3, 4
"""As `nnac.numerics.Rounding`; in wide expressions ONNX rounds half to even, what is neither that nor HALF_UP away."""
FLOAT32 = 5
"""Takes the place of ONNX where `nnac.float32` has a form: multipliers are the bits of float32 ratios."""


@inner
def round_shift(value: Integer, shift: Integer, rounding: Integer) -> Integer:
    """`numerics.round_shift`: the nudge is half, less one where the tie has to fall."""
    half = (np.int64(1) << shift) >> 1
    odd = (value >> shift) & 1
    tie_falls = (np.int64(rounding % ONNX == HALF_EVEN) & ~odd) | (
        np.int64(rounding % ONNX > HALF_UP) & np.int64(value < 0)
    )
    return (value + half - (np.int64(shift > 0) & tie_falls)) >> shift


@inner
def round_divide(numerator: Integer, denominator: Integer, shift: Integer, rounding: Integer) -> Integer:
    """`numerics.round_divide(numerator, denominator << shift)`, without forming a denominator that may leave int64."""
    high = numerator >> shift
    low_bits = numerator - (high << shift)
    floor = high // denominator
    excess = 2 * (high - floor * denominator) - denominator
    if excess == -1:
        compared = 2 * low_bits - (np.int64(1) << shift)
    elif excess < 0:
        compared = excess
    else:
        compared = excess | low_bits
    if compared != 0:
        return floor + np.int64(compared > 0)
    if rounding % ONNX == HALF_EVEN:
        return floor + (floor & 1)
    return floor + np.int64(rounding == HALF_UP or numerator >= 0)


@inner
def lift(multiplier: Integer, shift: Integer, rounding: Integer) -> tuple[Integer, Integer]:
    """The pair as `requantize` wants it: for TFLITE the multiplier doubled into [2**30, 2**31), else as it is."""
    multiplier, shift = np.int64(multiplier), np.int64(shift)
    if rounding == TFLITE and multiplier > 0:
        while multiplier < 1 << 30:
            multiplier <<= 1
            shift += 1
    return multiplier, shift


@inner
def saturate(value: Integer, low: Integer, high: Integer) -> Integer:
    """The nearest value inside [low, high]."""
    return min(max(value, low), high)


@inner
def scale_once(acc: Integer, multiplier: Integer, shift: Integer, rounding: Integer) -> Integer:
    """One rounding of the exact product."""
    return round_shift(np.int64(acc) * multiplier, shift, rounding)


@inner
def scale_twice(acc: Integer, multiplier: Integer, shift: Integer) -> Integer:
    """TFLITE's two roundings; the pair is lifted. A zero multiplier needs no care: the product is zero."""
    shifted = saturate(np.int64(acc) << max(31 - shift, 0), -(1 << 31), (1 << 31) - 1)
    doubled = (shifted * multiplier + (1 << 30)) >> 31
    return round_shift(doubled, max(shift - 31, 0), TFLITE)


@inner
def interpolate(x: Integer, table: Int16, rounding: Integer) -> Integer:
    """`numerics.interpolate` of an int16 value: between two int16 knots, so that nothing saturates."""
    offset = np.int64(x) + (1 << 15)
    index, fraction = offset >> 7, offset & 127
    return round_shift(table[index] * (128 - fraction) + table[index + 1] * fraction, 7, rounding)


@inner
def float_of(pattern: Integer) -> Any:
    """The float32 with these bits."""
    return np.int32(pattern).view(np.float32)


@inner
def nearest(value: Any, zero_point: Integer, low: Integer, high: Integer) -> Integer:
    """A float32 rounded half to even, plus the zero point, saturated."""
    inside = min(max(value, np.float32(low - zero_point)), np.float32(high - zero_point))
    return np.int64(np.rint(inside)) + zero_point
