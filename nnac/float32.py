"""onnxruntime's integer operators: the named forms of rounding ONNX, one value at a time.

This is the one arithmetic of nnac with a float in it: machines that are declared to requantize as onnxruntime's
QLinearConv, QLinearMatMul, QGemm, QLinearAdd, QLinearMul and QLinearGlobalAveragePool do. Every step is a float32 that
is rounded half to even, as IEEE 754 says, so that any two executions agree in every bit. It holds for int8; operators
that onnxruntime has no integer form of stay exact and round once, half to even.

Ratios of scales travel as the bits of a float32 in the place of a multiplier; the shift is 0.
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


def multiply(product: int, pattern: int, zero_point: int, low: int = INT8_LOW, high: int = INT8_HIGH) -> int:
    """QLinearMul: as `requantize`, but the zero point is added, in float32, before rounding."""
    return _rounded(float32(float32(float32(product) * float_of(pattern)) + zero_point), 0, low, high)


def add(
    x: Sequence[int],
    zeros: Sequence[int],
    patterns: Sequence[int],
    zero_point: int,
    low: int = INT8_LOW,
    high: int = INT8_HIGH,
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
    """
    total = sum_start(zeros, patterns, zero_point)
    for value, pattern in reversed(list(zip(x, patterns, strict=True))):
        total = float32(value * float_of(pattern) + total)
    return _rounded(total, 0, low, high)


def sum_start(zeros: Sequence[int], patterns: Sequence[int], zero_point: int) -> float:
    """What all zero points together contribute to `add`."""
    offset = 0.0
    for zero, pattern in reversed(list(zip(zeros, patterns, strict=True))):
        offset = float32(float_of(pattern) * zero + offset)
    return float32(zero_point - offset)


def average(total: int, count: int, pattern: int, zero_point: int, low: int = INT8_LOW, high: int = INT8_HIGH) -> int:
    """QLinearGlobalAveragePool: ``rint(float32(total) * (ratio / count)) + zero_point``, saturated."""
    share = float32(float_of(pattern) / count)
    return _rounded(float32(float32(total) * share), zero_point, low, high)


def _rounded(value: float, zero_point: int, low: int, high: int) -> int:
    """The float32 rounded half to even, plus the zero point, saturated; infinities too."""
    return round(min(max(value, low - zero_point), high - zero_point)) + zero_point


def float32(value: float) -> float:
    """The nearest float32, infinite where it overflows."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)
