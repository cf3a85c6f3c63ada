"""The law of `nnac.float32` over numpy arrays: same names, same order of arguments, same bits; results are int64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nnac.float32 import sum_start
from nnac.numerics import INT8_HIGH, INT8_LOW
from nnac.ops.exact import Int64, Integers

Float32 = npt.NDArray[np.float32]


def requantize(
    acc: Integers, pattern: Integers, zero_point: Integers, low: Integers = INT8_LOW, high: Integers = INT8_HIGH
) -> Int64:
    """``saturate(rint(float32(acc) * ratio) + zero_point)``."""
    return _rounded(_single(acc) * float_of(pattern), zero_point, low, high)


def multiply(
    product: Integers,
    pattern: Integers,
    zero_point: int,
    low: Integers = INT8_LOW,
    high: Integers = INT8_HIGH,
    lift: int = 0,
) -> Int64:
    """``saturate(rint(float32(product) * ratio + zero_point))``."""
    return _rounded(_single(product) * float_of(pattern) + np.float32(zero_point + lift), -lift, low, high)


def add(
    x: Sequence[npt.NDArray[np.integer]],
    zeros: Sequence[int],
    patterns: Sequence[int],
    zero_point: int,
    low: Integers = INT8_LOW,
    high: Integers = INT8_HIGH,
    lift: int = 0,
) -> Int64:
    """A chain of fused multiply-adds over operands that broadcast."""
    total: Float32 = np.asarray(sum_start(zeros, patterns, zero_point, lift), np.float32)
    for value, pattern in reversed(list(zip(x, patterns, strict=True))):
        product = (value.astype(np.float64) + lift) * float_of(pattern).astype(np.float64)
        total = (product + total.astype(np.float64)).astype(np.float32)
    return _rounded(total, -lift, low, high)


def average(
    total: Integers,
    count: Integers,
    pattern: Integers,
    zero_point: Integers,
    low: Integers = INT8_LOW,
    high: Integers = INT8_HIGH,
) -> Int64:
    """``saturate(rint(float32(total) * (ratio / count)) + zero_point)``."""
    return _rounded(_single(total) * (float_of(pattern) / _single(count)), zero_point, low, high)


def window(
    values: Integers,
    count: Integers,
    pattern: int,
    over: int,
    zero_point: int,
    low: Integers = INT8_LOW,
    high: Integers = INT8_HIGH,
    lift: int = 0,
) -> Int64:
    """Means over the last axis of values, one after the other."""
    reals = _single(values) * float_of(pattern)
    total = np.zeros(reals.shape[:-1], np.float32)
    for place in range(reals.shape[-1]):
        total = total + reals[..., place]
    return _rounded(total / _single(count) / float_of(over) + np.float32(zero_point + lift), -lift, low, high)


def float_of(pattern: Integers) -> Float32:
    """The float32 numbers with these bits."""
    return np.asarray(pattern, dtype=np.int32).view(np.float32)


def _single(value: Integers) -> Float32:
    """Integers to the nearest float32."""
    return np.asarray(value, dtype=np.int64).astype(np.float32)


def _rounded(value: Float32, zero_point: Integers, low: Integers, high: Integers) -> Int64:
    """Float32 numbers rounded half to even, plus the zero point, saturated."""
    zero = np.asarray(zero_point, dtype=np.int64)
    inside = np.clip(value, _single(low - zero), _single(high - zero))
    return np.asarray(np.rint(inside).astype(np.int64) + zero)
