"""Pooling of int8 tensors with channels last."""

from typing import Any

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int8, Int32, Int64, also, inner, integers, kernel, sink, source
from nnac.kernels.lines import piece
from nnac.kernels.requantize import FLOAT32, SCALE, Scale, float_of, nearest, rescale, share
from nnac.kernels.single import Float32
from nnac.kernels.vectors import add_window

Integers = Int32 | Int64
SHIFT_MAX = 62
LONG = 1 << 23
"""So many values of int8, each less a zero point, sum up in 32 bits."""


@inner
def _maximum(x: Int8, best: Int8) -> None:
    """Raises each channel's best to x."""
    for n in range(best.size):
        best[n] = max(best[n], x[n])


@inner
def _means(total: Integers, y: Int8, count: int, scale: Scale) -> None:
    """Each channel's mean as the law has it; to divide by a power of two is to shift."""
    multiplier, shift, y_zero, low, high, rounding = scale
    bits = 0
    while count >> bits > 1:
        bits += 1
    if count == 1 << bits and shift + bits <= SHIFT_MAX:
        for n in range(y.size):
            y[n] = rescale(np.int64(total[n]), (multiplier, shift + bits, y_zero, low, high, rounding))
    else:
        for n in range(y.size):
            y[n] = share(np.int64(total[n]), count, scale)


@inner
def _means_float32(total: Integers, y: Int8, factor: Any, scale: Scale) -> None:
    """Each channel's mean as `float32.average` has it."""
    _, _, y_zero, low, high, _ = scale
    for n in range(y.size):
        y[n] = nearest(np.float32(np.float32(total[n]) * factor), y_zero, low, high)


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


Window = tuple[int, int, int, int, int, int, int, int, int]
"""Windows of averages: rows and columns of one, rows and columns of x from one output to the next, where y[0] starts
(so many rows above x[0] and columns left of it; negative where the stripe holds rows before its first), rows and
columns from there to the end of the padded input (windows of ceil mode may reach beyond it; what lies there never
counts), and whether padding counts in the divisor, as the zeros that it is; else only values of x count."""


@inner
def _span(at: int, kernel: int, stride: int, pad: int, padded: int, extent: int) -> tuple[int, int, int]:
    """First value of x in a window along one axis, the one behind its last, and how many places count with padding."""
    start = at * stride - pad
    return max(start, 0), min(start + kernel, extent), min(kernel, padded - pad - start)


@kernel(source(types.int8, 3), sink(types.int8, 3), sink(types.int32, 1, "C"), integers(9), INT, SCALE)
def average_pool(x: Int8, y: Int8, total: Integers, window: Window, x_zero: int, scale: Scale) -> None:
    """The mean of each window as `numerics.average` defines it: one division, one rounding.

    Args:
        x: (H, W, C), the input or a stripe of its rows, with SLACK bytes behind it that can be read.
        y: (OH, OW, C), C side by side; every window holds at least one value of x.
        total: (C,) and WINDOW more, working memory, of bits enough for the sum of a window.
        window: as `Window`.
        x_zero: zero point of x.
        scale: as `requantize.Scale`, of x over y; of rounding FLOAT32 for `float32.average`.
    """
    kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, padded_h, padded_w, count_pads = window
    for row in range(y.shape[0]):
        first_h, last_h, tall = _span(row, kernel_h, stride_h, pad_top, padded_h, x.shape[0])
        for column in range(y.shape[1]):
            first_w, last_w, wide = _span(column, kernel_w, stride_w, pad_left, padded_w, x.shape[1])
            size, out = (last_h - first_h, last_w - first_w), piece(y, (row, column), 0, y.shape[2])
            add_window(x, (first_h, first_w), size, total)
            for n in range(x.shape[2]):
                total[n] -= x_zero * size[0] * size[1]
            count = tall * wide if count_pads else size[0] * size[1]
            if scale[5] == FLOAT32:
                _means_float32(total, out, np.float32(float_of(scale[0]) / np.float32(count)), scale)
            else:
                _means(total, out, count, scale)


long_average_pool = also(
    average_pool, source(types.int8, 3), sink(types.int8, 3), sink(types.int64, 1, "C"), integers(9), INT, SCALE
)
"""For windows of more than LONG values."""


@kernel(source(types.int8, 3), sink(types.int8, 3), integers(9), *[INT] * 7)
def average_reals(
    x: Int8,
    y: Int8,
    window: Window,
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
        x, y, window, x_zero: as for `average_pool`.
        multiplier: the bits of the float32 scale of x.
        over: of y.
        lift: 128 for uint8, else 0.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
    """
    kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, padded_h, padded_w, count_pads = window
    total = np.empty(x.shape[2], np.float32)
    for row in range(y.shape[0]):
        first_h, last_h, tall = _span(row, kernel_h, stride_h, pad_top, padded_h, x.shape[0])
        for column in range(y.shape[1]):
            first_w, last_w, wide = _span(column, kernel_w, stride_w, pad_left, padded_w, x.shape[1])
            total[:] = 0
            for h in range(first_h, last_h):
                for v in range(first_w, last_w):
                    _add_reals(x[h, v], x_zero, float_of(multiplier), total)
            count = np.float32(tall * wide if count_pads else (last_h - first_h) * (last_w - first_w))
            for n in range(total.size):
                mean = np.float32(np.float32(total[n] / count) / float_of(over))
                real = np.float32(mean + np.float32(y_zero + lift))
                y[row, column, n] = nearest(real, -lift, low, high)
