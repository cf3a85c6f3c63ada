"""Kernels of 16-bit activations; those that only differ in the type are second forms of the 8-bit kernels.

A tensor of 8 bits that meets one of 16 comes here widened, and a result of 8 bits is narrowed by whoever calls: its
limits have made it fit.
"""

import numpy as np
from numba import types

from nnac.kernels import elementwise, pool
from nnac.kernels import softmax as rows
from nnac.kernels.jit import INT, Int8, Int16, Int32, Integer, also, inner, kernel, sink, source
from nnac.kernels.requantize import TFLITE, lift, round_shift, saturate, scale_once, scale_twice

Window = tuple[int, int, int, int, int, int]
"""Stride, dilation, padding before: each down, then right."""
CHUNK = 256
"""Products of int16 and int8 whose sum stays inside 2**30: they are added up in 32 bits, the chunks in 64."""

_OPERAND, _RESULT = source(types.int16, 4, "A"), sink(types.int16, 4)

accumulate = also(elementwise.accumulate, sink(types.int64, 4, "C"), _OPERAND, INT, INT)
requantize_wide = also(elementwise.requantize_wide, source(types.int64, 4), _RESULT, *[INT] * 5)
multiply = also(elementwise.multiply, _OPERAND, INT, _OPERAND, INT, _RESULT, *[INT] * 6)
max_pool = also(pool.max_pool, source(types.int16, 3), sink(types.int16, 3), *[INT] * 10)
average_pool = also(pool.average_pool, source(types.int16, 3), sink(types.int16, 3), *[INT] * 16)
softmax = also(rows.softmax, source(types.int16, 2), source(types.int32, 1), sink(types.int16, 2), *[INT] * 6)


@kernel(source(types.int16, 2), source(types.int16, 2), sink(types.int16, 2), *[INT] * 5)
def interpolate(x: Int16, tables: Int16, y: Int16, shift: int, y_zero: int, low: int, high: int, rounding: int) -> None:
    """Each column through its table of knots, as `numerics.interpolate` defines it.

    Args:
        x: (rows, tables).
        tables: (tables, 513).
        y: (rows, tables), any strides.
        shift: 0..62.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`; TFLITE counts as HALF_AWAY.
    """
    for row in range(x.shape[0]):
        for n in range(x.shape[1]):
            offset = np.int64(x[row, n]) + 32768
            index, fraction = offset >> 7, offset & 127
            blend = tables[n, index] * (128 - fraction) + tables[n, index + 1] * fraction
            y[row, n] = saturate(round_shift(blend, shift, rounding) + y_zero, low, high)


@inner
def _patch(x: Int16, first: int, taps: tuple[int, int, int, int], place: tuple[int, int], window: Window) -> Int16:
    """The values (KH, KW, C) that one output pixel reads; zero outside of x."""
    stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left = window
    patch = np.zeros(taps[1:], np.int16)
    for kh in range(taps[1]):
        h = place[0] * stride_h - pad_top + kh * dilation_h
        for kw in range(taps[2]):
            v = place[1] * stride_w - pad_left + kw * dilation_w
            if 0 <= h < x.shape[0] and 0 <= v < x.shape[1]:
                for c in range(taps[3]):
                    patch[kh, kw, c] = x[h, v, first + c]
    return patch


@inner
def _dot(patch: Int16, weights: Int16) -> Integer:
    """The exact sum of products."""
    total = np.int64(0)
    for start in range(0, patch.size, CHUNK):
        part = np.int32(0)
        for k in range(start, min(start + CHUNK, patch.size)):
            part = np.int32(part + np.int32(patch[k]) * np.int32(weights[k]))
        total += part
    return total


@inner
def _narrow(acc: Integer, bits: int, wraps: int) -> Integer:
    """`numerics.narrow`."""
    half = np.int64(1) << (bits - 1)
    return ((acc + half) & (2 * half - 1)) - half if wraps else saturate(acc, -half, half - 1)


@kernel(
    source(types.int16, 3),
    source(types.int8, 4),
    source(types.int32, 1),
    source(types.int32, 1),
    source(types.int8, 1),
    sink(types.int16, 3),
    *[INT] * 15,
)
def conv2d(
    x: Int16,
    w: Int8,
    bias: Int32,
    multiplier: Int32,
    shift: Int8,
    y: Int16,
    stride_h: int,
    stride_w: int,
    dilation_h: int,
    dilation_w: int,
    pad_top: int,
    pad_left: int,
    group_out: int,
    channel_offset: int,
    x_zero: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
    acc_bits: int,
    acc_wraps: int,
) -> None:
    """As `conv.conv2d`, with sums in 64 bits that are narrowed to `acc_bits`, at most 40.

    Args:
        x: (H, W, C), the input or a stripe of its rows.
        w: (N, KH, KW, C per group); after decoding.
        bias: (N,), on the scale of the products.
        multiplier: (N,), >= 0; with `shift` the ratio of scales; product with the narrowed sum within 2**62.
        shift: (N,), 0..62.
        y: (OH, OW, N), any strides; all of it is written.
        stride_h: rows of x from one output row to the next.
        stride_w: the same for columns.
        dilation_h: rows of x from one tap to the next.
        dilation_w: the same for columns.
        pad_top: y[0] starts this many rows above x[0]; negative where the stripe holds rows before its first.
        pad_left: the same for columns.
        group_out: output channels of one group (of the whole layer, not of this stripe).
        channel_offset: of w[0] among the output channels of the layer; x always holds all channels.
        x_zero: zero point of x.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`; TFLITE in two steps, for sums of 32 bits only.
        acc_bits: of the accumulator.
        acc_wraps: whether it wraps (else it saturates).
    """
    window = (stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left)
    values = np.empty(x.shape, np.int16)
    for h in range(x.shape[0]):
        for v in range(x.shape[1]):
            for c in range(x.shape[2]):
                values[h, v, c] = x[h, v, c] - x_zero
    weights = w.reshape(w.shape[0], -1).astype(np.int16)
    first = 0
    while first < w.shape[0]:
        group = (channel_offset + first) // group_out
        last = min((group + 1) * group_out - channel_offset, w.shape[0])
        for row in range(y.shape[0]):
            for column in range(y.shape[1]):
                patch = _patch(values, group * w.shape[3], w.shape, (row, column), window).reshape(-1)
                for n in range(first, last):
                    acc = _narrow(_dot(patch, weights[n]) + bias[n], acc_bits, acc_wraps)
                    factor, places = lift(multiplier[n], shift[n], rounding)
                    if rounding == TFLITE:
                        scaled = scale_twice(acc, factor, places)
                    else:
                        scaled = scale_once(acc, factor, places, rounding)
                    y[row, column, n] = saturate(scaled + y_zero, low, high)
        first = last
