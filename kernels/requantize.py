"""The roundings of `nnac.numerics` in int64, for kernels to inline. Scaling never branches on values: it vectorizes.

Bounds as in `nnac.ops.exact`: products of magnitude up to 2**62, shifts 0..62.

The form FLOAT32 alone computes in float32, because it stands for machines that do as onnxruntime's integer operators.
"""

from typing import Any

import numpy as np

from nnac.kernels.jit import Integer, inner, integers

HALF_EVEN, HALF_UP, TFLITE, ONNX = 0, 1, 3, 4
"""As `nnac.numerics.Rounding`; in wide expressions ONNX rounds half to even, what is neither that nor HALF_UP away."""
FLOAT32 = 5
"""Takes the place of ONNX where `nnac.float32` has a form: multipliers are the bits of float32 ratios."""

Ending = tuple[int, int, int, int, int]
"""How wide expressions become results: shift (0..62), zero point, smallest and largest result, and rounding as
`nnac.numerics.Rounding`, of which TFLITE counts as HALF_AWAY where there is no two-step form."""
Scale = tuple[int, int, int, int, int, int]
"""A multiplier, which with the shift stands for a ratio of scales, and an `Ending`."""
ENDING, SCALE = integers(5), integers(6)
"""The same as types of a kernel's argument."""


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
    """`numerics.round_divide(numerator, denominator << shift)`, without forming a denominator that may leave int64.

    The quotient is within 2**50: a float64 gets its floor to within one.
    """
    high = numerator >> shift
    low_bits = numerator - (high << shift)
    near = np.int64(np.float64(high) / np.float64(denominator))
    left = high - near * denominator
    floor = near - np.int64(left < 0) + np.int64(left >= denominator)
    excess = 2 * (high - floor * denominator) - denominator
    low_excess = 2 * low_bits - (np.int64(1) << shift)
    compared = low_excess if excess == -1 else (excess if excess < 0 else excess | low_bits)
    tie = np.int64(rounding == HALF_UP) | np.int64(numerator >= 0)
    if rounding % ONNX == HALF_EVEN:
        tie = floor & 1
    return floor + (np.int64(compared > 0) | (np.int64(compared == 0) & tie))


@inner
def end(value: Integer, ending: Ending) -> Integer:
    """Rounds a wide expression to a result."""
    shift, y_zero, low, high, rounding = ending
    return saturate(round_shift(value, shift, rounding) + y_zero, low, high)


@inner
def rescale(value: Integer, scale: Scale) -> Integer:
    """`numerics.rescale`."""
    return end(value * scale[0], scale[1:])


@inner
def requantize(acc: Integer, scale: Scale) -> Integer:
    """`numerics.requantize` of a scale that is `lifted`."""
    multiplier, shift, y_zero, low, high, rounding = scale
    if rounding == TFLITE:
        scaled = scale_twice(acc, multiplier, shift)
    else:
        scaled = scale_once(acc, multiplier, shift, rounding)
    return saturate(scaled + y_zero, low, high)


@inner
def share(numerator: Integer, denominator: Integer, scale: Scale) -> Integer:
    """A quotient on the scale of the result, in one rounding."""
    multiplier, shift, y_zero, low, high, rounding = scale
    return saturate(round_divide(numerator * multiplier, denominator, shift, rounding) + y_zero, low, high)


@inner
def lifted(scale: Scale) -> Scale:
    """The scale as `requantize` wants it."""
    multiplier, shift, y_zero, low, high, rounding = scale
    multiplier, shift = lift(multiplier, shift, rounding)
    return multiplier, shift, y_zero, low, high, rounding


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
def narrow(acc: Integer, bits: int, wraps: int) -> Integer:
    """`numerics.narrow`."""
    half = np.int64(1) << (bits - 1)
    return ((acc + half) & (2 * half - 1)) - half if wraps else saturate(acc, -half, half - 1)


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
def float_of(pattern: Integer) -> Any:
    """The float32 with these bits."""
    return np.int32(pattern).view(np.float32)


@inner
def nearest(value: Any, zero_point: Integer, low: Integer, high: Integer) -> Integer:
    """A float32 rounded half to even, plus the zero point, saturated."""
    inside = min(max(value, np.float32(low - zero_point)), np.float32(high - zero_point))
    return np.int64(np.rint(inside)) + zero_point
