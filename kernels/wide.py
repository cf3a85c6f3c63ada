"""Kernels of 16-bit activations; those that only differ in the type are second forms of the 8-bit kernels.

A tensor of 8 bits that meets one of 16 comes here widened, and a result of 8 bits is narrowed by whoever calls: its
limits have made it fit.
"""

import numpy as np
from numba import types

from nnac.kernels import elementwise, move, pairs, pool
from nnac.kernels import softmax as rows
from nnac.kernels.jit import INT, Int8, Int16, Int32, Int64, Integer, also, inner, kernel, sink, source
from nnac.kernels.lines import dense, is_dense
from nnac.kernels.requantize import TFLITE, Scale, lift, round_shift, saturate, scale_once, scale_twice
from nnac.kernels.vectors import address, fetch_words

Window = tuple[int, int, int, int, int, int]
"""Stride, dilation, padding before: each down, then right."""
CHUNK = 256
"""Products of int16 and int8 whose sum stays inside 2**30: they are added up in 32 bits, the chunks in 64."""

OCTAVE_ZERO, OCTAVE_SHIFT = 192, 11
"""As in `nnac.numerics`."""
PART = 512
"""Values that go through tables together, so that what they become on the way stays in the nearest cache."""

BLOCK = 64
"""Rows that are transposed together, so that what is read and written stays in a near cache."""

_INTEGERS = {8: types.int8, 16: types.int16}
_OPERAND, _RESULT = source(types.int16, 4, "A"), sink(types.int16, 4)

copies = {
    (have // 8, want // 8): also(move.copy, source(_INTEGERS[have], move.AXES, "A"), sink(_INTEGERS[want], move.AXES))
    for have, want in ((8, 16), (16, 8), (16, 16))
}
"""Copies by the bytes of an element there and here."""
look_up = also(move.look_up, source(types.int8, 2), source(types.int16, 2), sink(types.int16, 2))
accumulate = also(elementwise.accumulate, sink(types.int64, 4, "C"), _OPERAND, INT, INT, INT)
requantize_wide = also(elementwise.requantize_wide, source(types.int64, 4), _RESULT, *[INT] * 5)
accumulate_squares = also(elementwise.accumulate_squares, sink(types.int64, 4, "C"), _OPERAND, INT, INT, INT)
root = also(elementwise.root, source(types.int64, 4), _RESULT, *[INT] * 6)
multiply = also(elementwise.multiply, _OPERAND, INT, _OPERAND, INT, _RESULT, *[INT] * 6)
divide = also(pairs.divide, _OPERAND, INT, _OPERAND, INT, _RESULT, *[INT] * 6)
extreme = also(pairs.extreme, sink(types.int64, 4, "C"), _OPERAND, INT, INT, INT, INT)
choose = also(pairs.choose, *[_OPERAND] * 4, *[source(types.int64, 1)] * 2, _RESULT, *[INT] * 6)
max_pool = also(pool.max_pool, source(types.int16, 3), sink(types.int16, 3), *[INT] * 10)
average_pool = also(pool.average_pool, source(types.int16, 3), sink(types.int16, 3), *[INT] * 16)
softmax = also(rows.softmax, source(types.int16, 2), source(types.int32, 1), sink(types.int16, 2), *[INT] * 6)


@inner
def _between(x: Int16, at: int, tables: Int16, knots: Int32, blends: Int32) -> None:
    """What lies between the knots of each value's own table; the table of the first one is number `at`."""
    step = 2 * tables.shape[1] if tables.shape[0] > 1 else 0
    for n in range(x.size):
        knots[n] = np.int32((at + n) * step + ((np.int64(x[n]) + 32768) >> 7 << 1))
    fetch_words(address(tables), address(knots), x.size)
    for n in range(x.size):
        fraction = np.int32(x[n] & 127)
        left, right = np.int32(np.int32(knots[n] << 16) >> 16), np.int32(knots[n] >> 16)
        blends[n] = np.int32((left << 7) + (right - left) * fraction)


@inner
def _between_octaves(x: Int16, at: int, tables: Int16, knots: Int32, blends: Int32) -> None:
    """The same with knots in octaves; on the negative side the nearer one of two neighbours is the second."""
    step = 2 * tables.shape[1] if tables.shape[0] > 1 else 0
    for n in range(x.size):
        size, width = np.int32(abs(np.int32(x[n]))), np.int32(0)
        for octave in range(OCTAVE_SHIFT):
            width = np.int32(width + np.int32(size >= 32 << octave))
        index, back = np.int32((width << 4) + (size >> width)), np.int32(x[n] < 0)
        first = max(np.int32(OCTAVE_ZERO + (-index - 1 if back else index)), np.int32(0))
        blends[n] = width
        knots[n] = np.int32((at + n) * step + 2 * first)
    fetch_words(address(tables), address(knots), x.size)
    for n in range(x.size):
        size, width, back = np.int32(abs(np.int32(x[n]))), blends[n], x[n] < 0 and x[n] > -32768
        left, right = np.int32(np.int32(knots[n] << 16) >> 16), np.int32(knots[n] >> 16)
        near, far = right if back else left, left if back else right
        fraction = np.int32(size & np.int32((1 << width) - 1))
        blends[n] = np.int32((near << width) + (far - near) * fraction) << np.int32(OCTAVE_SHIFT - width)


@inner
def _settle(blends: Int32, y: Int16, law: Scale) -> None:
    """Rounds and saturates."""
    _, shift, y_zero, low, high, rounding = law
    for n in range(y.size):
        y[n] = saturate(round_shift(np.int64(blends[n]), shift, rounding) + y_zero, low, high)


@inner
def _through(x: Int16, tables: Int16, y: Int16, octaves: bool, law: Scale) -> None:
    """Each value of a row through the table of its column, or all through the same."""
    knots, blends, fast = np.empty(PART, np.int32), np.empty(PART, np.int32), is_dense(y)
    for first in range(0, x.size, PART):
        part, made = x[first : first + PART], y[first : first + PART]
        if octaves:
            _between_octaves(part, first, tables, knots, blends)
        else:
            _between(part, first, tables, knots, blends)
        if fast:
            _settle(blends, dense(made), law)
        else:
            _settle(blends, made, law)


@inner
def _rows_through(x: Int16, tables: Int16, y: Int16, octaves: bool, law: Scale) -> None:
    if tables.shape[0] == 1:
        _through(x.reshape(-1), tables, y[:, 0], octaves, law)
        return
    for row in range(x.shape[0]):
        _through(x[row], tables, y[row], octaves, law)


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
    _rows_through(x, tables, y, False, (1, shift, y_zero, low, high, rounding))


@kernel(source(types.int16, 2), source(types.int16, 2), sink(types.int16, 2), *[INT] * 5)
def interpolate_octaves(
    x: Int16, tables: Int16, y: Int16, shift: int, y_zero: int, low: int, high: int, rounding: int
) -> None:
    """As `interpolate` with tables (tables, 385), as `numerics.interpolate_octaves` defines it."""
    _rows_through(x, tables, y, True, (1, shift, y_zero, low, high, rounding))


@inner
def _transposed(w: Int8) -> Int32:
    """(N, KH, KW, C) weights as (KH * KW * C, N): a lane is an output channel."""
    weights = w.reshape(w.shape[0], -1)
    taps = np.empty((weights.shape[1], weights.shape[0]), np.int32)
    for block in range(0, weights.shape[0], BLOCK):
        for k in range(weights.shape[1]):
            for n in range(block, min(block + BLOCK, weights.shape[0])):
                taps[k, n] = weights[n, k]
    return taps


@inner
def _flush(part: Int32, acc: Int64) -> None:
    """Adds the sums of a chunk to the whole sums and starts the next."""
    for n in range(part.size):
        acc[n] += part[n]
        part[n] = 0


@inner
def _dense(
    x: Int16,
    first: int,
    taps: Int32,
    shape: tuple[int, int, int, int],
    place: tuple[int, int],
    window: Window,
    x_zero: int,
    part: Int32,
    acc: Int64,
) -> None:
    """Sums of one output pixel: taps and input channels outside, output channels inside."""
    stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left = window
    count = 0
    for kh in range(shape[1]):
        h = place[0] * stride_h - pad_top + kh * dilation_h
        for kw in range(shape[2]):
            v = place[1] * stride_w - pad_left + kw * dilation_w
            if not (0 <= h < x.shape[0] and 0 <= v < x.shape[1]):
                continue
            for c in range(shape[3]):
                value = np.int32(x[h, v, first + c] - x_zero)
                weights = taps[(kh * shape[2] + kw) * shape[3] + c]
                for n in range(part.size):
                    part[n] = np.int32(part[n] + value * weights[n])
                count += 1
                if count % CHUNK == 0:
                    _flush(part, acc)
    _flush(part, acc)


@inner
def _depthwise(
    x: Int16,
    first: int,
    taps: Int32,
    shape: tuple[int, int, int, int],
    place: tuple[int, int],
    window: Window,
    x_zero: int,
    part: Int32,
    acc: Int64,
) -> None:
    """The same for one input channel per output channel."""
    stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left = window
    zero, channel, count = np.int32(x_zero), np.uint64(first), 0  # unsigned: no negative index, so that it vectorizes
    for kh in range(shape[1]):
        h = place[0] * stride_h - pad_top + kh * dilation_h
        for kw in range(shape[2]):
            v = place[1] * stride_w - pad_left + kw * dilation_w
            if not (0 <= h < x.shape[0] and 0 <= v < x.shape[1]):
                continue
            values, weights = x[h, v], taps[kh * shape[2] + kw]
            for n in range(part.size):
                value = np.int32(np.int32(values[channel + np.uint64(n)]) - zero)
                part[n] = np.int32(part[n] + value * weights[n])
            count += 1
            if count % CHUNK == 0:
                _flush(part, acc)
    _flush(part, acc)


@inner
def narrow(acc: Integer, bits: int, wraps: int) -> Integer:
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
    alone = w.shape[3] == 1 and group_out == 1
    first = 0
    while first < w.shape[0]:
        group = channel_offset if alone else (channel_offset + first) // group_out * w.shape[3]
        last = w.shape[0]
        if not alone:
            last = min((group // w.shape[3] + 1) * group_out - channel_offset, last)
        taps = _transposed(w[first:last])
        part, acc = np.zeros(last - first, np.int32), np.empty(last - first, np.int64)
        for row in range(y.shape[0]):
            for column in range(y.shape[1]):
                acc[:] = bias[first:last]
                if alone:
                    _depthwise(x, group, taps, w.shape, (row, column), window, x_zero, part, acc)
                else:
                    _dense(x, group, taps, w.shape, (row, column), window, x_zero, part, acc)
                for n in range(acc.size):
                    total = narrow(acc[n], acc_bits, acc_wraps)
                    factor, places = lift(multiplier[first + n], shift[first + n], rounding)
                    if rounding == TFLITE:
                        scaled = scale_twice(total, factor, places)
                    else:
                        scaled = scale_once(total, factor, places, rounding)
                    y[row, column, first + n] = saturate(scaled + y_zero, low, high)
        first = last
