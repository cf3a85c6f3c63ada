"""Pooling of int8 tensors with channels last."""

from typing import Any

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int8, Int64, inner, kernel, sink, source
from nnac.kernels.requantize import FLOAT32, SCALE, Scale, float_of, nearest, share
from nnac.kernels.single import Float32


@inner
def _maximum(x: Int8, best: Int8) -> None:
    """Raises each channel's best to x."""
    for n in range(best.size):
        best[n] = max(best[n], x[n])


@inner
def _add(x: Int8, total: Int64) -> None:
    """Adds x to each channel's total."""
    for n in range(total.size):
        total[n] += x[n]


@inner
def _add_reals(x: Int8, zero: int, scale: Any, total: Float32) -> None:
    """Adds what x stands for to each channel's total."""
    for n in range(total.size):
        total[n] += np.float32(np.float32(x[n] - zero) * scale)


@kernel(source(types.int8, 3), sink(types.int8, 3), *[INT] * 10)
def max_pool(
    x: Int8,
    y: Int8,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    dilation_h: int,
    dilation_w: int,
    pad_top: int,
    pad_left: int,
    low: int,
    high: int,
) -> None:
    """The largest value of each window, clamped to [low, high]; padding never wins.

    Args:
        x: (H, W, C), the input or a stripe of its rows.
        y: (OH, OW, C), any strides; every window holds at least one value of x.
        kernel_h: rows of a window.
        kernel_w: columns of a window.
        stride_h: rows of x from one output row to the next.
        stride_w: the same for columns.
        dilation_h: rows of x from one tap to the next.
        dilation_w: the same for columns.
        pad_top: y[0] starts this many rows above x[0]; negative where the stripe holds rows before its first.
        pad_left: the same for columns.
        low: smallest output.
        high: largest output.
    """
    best = np.empty(x.shape[2], x.dtype)
    for row in range(y.shape[0]):
        for column in range(y.shape[1]):
            best[:] = low
            for kh in range(kernel_h):
                h = row * stride_h - pad_top + kh * dilation_h
                for kw in range(kernel_w):
                    v = column * stride_w - pad_left + kw * dilation_w
                    if 0 <= h < x.shape[0] and 0 <= v < x.shape[1]:
                        _maximum(x[h, v], best)
            for n in range(best.size):
                y[row, column, n] = min(best[n], high)


@kernel(source(types.int8, 3), sink(types.int8, 3), *[INT] * 10, SCALE)
def average_pool(
    x: Int8,
    y: Int8,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_top: int,
    pad_left: int,
    padded_h: int,
    padded_w: int,
    count_include_pad: int,
    x_zero: int,
    scale: Scale,
) -> None:
    """The mean of each window as `numerics.average` defines it: one division, one rounding.

    Args:
        x: (H, W, C), the input or a stripe of its rows.
        y: (OH, OW, C), any strides; every window holds at least one value of x.
        kernel_h: rows of a window.
        kernel_w: columns of a window.
        stride_h: rows of x from one output row to the next.
        stride_w: the same for columns.
        pad_top: y[0] starts this many rows above x[0]; negative where the stripe holds rows before its first.
        pad_left: the same for columns.
        padded_h: rows from where y[0] starts to the end of the padded input: pad_top + H + padding below. Windows of
            ceil mode may reach beyond it; what lies there never counts.
        padded_w: the same for columns.
        count_include_pad: whether padding counts in the divisor, as the zeros that it is; else only values of x count.
        x_zero: zero point of x.
        scale: as `requantize.Scale`, of x over y; of rounding FLOAT32 for `float32.average`.
    """
    total, (multiplier, _, y_zero, low, high, rounding) = np.empty(x.shape[2], np.int64), scale
    for row in range(y.shape[0]):
        top = row * stride_h - pad_top
        first_h, last_h = max(top, 0), min(top + kernel_h, x.shape[0])
        for column in range(y.shape[1]):
            left = column * stride_w - pad_left
            first_w, last_w = max(left, 0), min(left + kernel_w, x.shape[1])
            values = (last_h - first_h) * (last_w - first_w)
            total[:] = -x_zero * values
            for h in range(first_h, last_h):
                for v in range(first_w, last_w):
                    _add(x[h, v], total)
            padded = min(kernel_h, padded_h - pad_top - top) * min(kernel_w, padded_w - pad_left - left)
            count = padded if count_include_pad else values
            if rounding == FLOAT32:
                factor = np.float32(float_of(multiplier) / np.float32(count))
                for n in range(total.size):
                    y[row, column, n] = nearest(np.float32(np.float32(total[n]) * factor), y_zero, low, high)
            else:
                for n in range(total.size):
                    y[row, column, n] = share(total[n], count, scale)


@kernel(source(types.int8, 3), sink(types.int8, 3), *[INT] * 16)
def average_reals(
    x: Int8,
    y: Int8,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_top: int,
    pad_left: int,
    padded_h: int,
    padded_w: int,
    count_include_pad: int,
    x_zero: int,
    multiplier: int,
    over: int,
    lift: int,
    y_zero: int,
    low: int,
    high: int,
) -> None:
    """The mean of each window as `float32.window` defines it.

    Args:
        x, y, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left: as for `average_pool`.
        padded_h, padded_w, count_include_pad, x_zero: as for `average_pool`.
        multiplier: the bits of the float32 scale of x.
        over: of y.
        lift: 128 for uint8, else 0.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
    """
    total = np.empty(x.shape[2], np.float32)
    for row in range(y.shape[0]):
        top = row * stride_h - pad_top
        first_h, last_h = max(top, 0), min(top + kernel_h, x.shape[0])
        for column in range(y.shape[1]):
            left = column * stride_w - pad_left
            first_w, last_w = max(left, 0), min(left + kernel_w, x.shape[1])
            total[:] = 0
            for h in range(first_h, last_h):
                for v in range(first_w, last_w):
                    _add_reals(x[h, v], x_zero, float_of(multiplier), total)
            values = (last_h - first_h) * (last_w - first_w)
            padded = min(kernel_h, padded_h - pad_top - top) * min(kernel_w, padded_w - pad_left - left)
            count = np.float32(padded if count_include_pad else values)
            for n in range(total.size):
                mean = np.float32(np.float32(total[n] / count) / float_of(over))
                real = np.float32(mean + np.float32(y_zero + lift))
                y[row, column, n] = nearest(real, -lift, low, high)
