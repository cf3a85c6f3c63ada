"""onnxruntime's integer operators: the named forms of rounding ONNX, one value at a time.

This is the one arithmetic of nnac with a float in it: machines that are declared to requantize as onnxruntime's
QLinearConv, QLinearMatMul, QGemm, QLinearAdd, QLinearMul, QLinearAveragePool and QLinearGlobalAveragePool do. Every
step is a float32 that is rounded half to even, as IEEE 754 says, so that any two executions agree in every bit. It
holds for int8; operators that onnxruntime has no integer form of stay exact and round once, half to even.

Where a form adds zero points in float32, its bits depend on whether the model has int8 or uint8, which is int8 on the
machine with everything 128 lower: `lift` is how much higher the model's integers are.

Ratios of scales travel as the bits of a float32 in the place of a multiplier; in the place of the shift stands 7 for
a lift of 128, or 0 for none.
"""

import math
import struct
from collections.abc import Sequence

from nnac.numerics import INT8_HIGH, INT8_LOW


def ratio(factors: Sequence[float], over: float) -> tuple[int, int]:
    """A ratio of scales as onnxruntime forms it: the float32 product, then the float32 quotient.

    Returns:
        the pair (multiplier, shift) of rounding ONNX: the bits of the float32 as an int32, and 0.

    Raises:
        ValueError: it is not positive and finite.
    """
    found = float32(factors[0])
    for factor in factors[1:]:
        found = float32(found * float32(factor))
    found = float32(found / float32(over))
    if not (math.isfinite(found) and found > 0):
        raise ValueError(f"the ratio of scales {factors} over {over!r} is not positive and finite in float32")
    return pattern_of(found), 0


def pattern_of(value: float) -> int:
    """The bits of a float32 as an int32."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def float_of(pattern: int) -> float:
    """The float32 with these bits."""
    return float(struct.unpack("<f", struct.pack("<i", pattern))[0])


def requantize(acc: int, pattern: int, zero_point: int, low: int = INT8_LOW, high: int = INT8_HIGH) -> int:
    """QLinearConv, QLinearMatMul, QGemm: ``saturate(rint(float32(acc) * ratio) + zero_point)``.

    Args:
        acc: the int32 accumulator.
        pattern: of the ratio, see `ratio`.
        zero_point: of the output, added after rounding.
        low: smallest output.
        high: largest output.
    """
    return _rounded(float32(float32(acc) * float_of(pattern)), zero_point, low, high)


def lift_of(shift: int) -> int:
    """How much higher the model's own integers are than the machine's, for the number in the place of a shift."""
    return 1 << shift if shift else 0


def multiply(
    product: int, pattern: int, zero_point: int, low: int = INT8_LOW, high: int = INT8_HIGH, lift: int = 0
) -> int:
    """QLinearMul: as `requantize`, but the zero point is added, in float32, before rounding."""
    real = float32(float32(product) * float_of(pattern))
    return _rounded(float32(real + (zero_point + lift)), -lift, low, high)


def add(
    x: Sequence[int],
    zeros: Sequence[int],
    patterns: Sequence[int],
    zero_point: int,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
    lift: int = 0,
) -> int:
    """QLinearAdd on processors with fused multiply-add; any number of operands.

    ``f = zero_point - (r_0 * z_0 + r_1 * z_1)``, then from the last operand to the first ``f = x_i * r_i + f``. A
    product and its sum, from the last operand to the first, are in float64 and round to float32: what a fused operation
    gives.

    Args:
        x: int8 values.
        zeros: their zero points.
        patterns: of the ratios input scale / output scale, negative for an operand that is subtracted.
        zero_point: of the output.
        low: smallest output.
        high: largest output.
        lift: of all operands and the output.
    """
    total = sum_start(zeros, patterns, zero_point, lift)
    for value, pattern in reversed(list(zip(x, patterns, strict=True))):
        total = float32((value + lift) * float_of(pattern) + total)
    return _rounded(total, -lift, low, high)


def sum_start(zeros: Sequence[int], patterns: Sequence[int], zero_point: int, lift: int = 0) -> float:
    """What all zero points together contribute to `add`."""
    offset = 0.0
    for zero, pattern in reversed(list(zip(zeros, patterns, strict=True))):
        offset = float32(float_of(pattern) * (zero + lift) + offset)
    return float32(zero_point + lift - offset)


def average(total: int, count: int, pattern: int, zero_point: int, low: int = INT8_LOW, high: int = INT8_HIGH) -> int:
    """QLinearGlobalAveragePool: ``rint(float32(total) * (ratio / count)) + zero_point``, saturated."""
    share = float32(float_of(pattern) / count)
    return _rounded(float32(float32(total) * share), zero_point, low, high)


def window(
    values: Sequence[int],
    count: int,
    pattern: int,
    over: int,
    zero_point: int,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
    lift: int = 0,
) -> int:
    """QLinearAveragePool: reals summed one after the other, then divided twice; the zero point comes before rounding.

    Args:
        values: x - zero point of x, row by row.
        count: what their sum is divided by.
        pattern: of the scale of x.
        over: of the scale of the output.
        zero_point: of the output.
        low: smallest output.
        high: largest output.
        lift: of the output.
    """
    total = 0.0
    for value in values:
        total = float32(total + float32(value * float_of(pattern)))
    mean = float32(float32(total / count) / float_of(over))
    return _rounded(float32(mean + (zero_point + lift)), -lift, low, high)


def _rounded(value: float, zero_point: int, low: int, high: int) -> int:
    """The float32 rounded half to even, plus the zero point, saturated; infinities too."""
    return round(min(max(value, low - zero_point), high - zero_point)) + zero_point


def float32(value: float) -> float:
    """The nearest float32, infinite where it overflows."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)
