"""Convolution of int8 tensors with channels last: dense, 1-D, grouped, dilated and depthwise layers all come here."""

import numpy as np
from numba import types

from nnac.kernels import machine
from nnac.kernels.finish import LANES
from nnac.kernels.jit import INT, Int8, Int32, Int64, inner, kernel, sink, source
from nnac.kernels.panels import aligned, multiply, pack, packed_size, padded, steps_of
from nnac.kernels.requantize import lift
from nnac.kernels.vectors import address, call_address

Window = tuple[int, int, int, int, int, int]
"""Stride, dilation, padding before: each down, then right."""

Ends = tuple[int, int, int, int, int, int, int]
"""How sums end: address of `finish.finish`, zero point, low, high, rounding, accumulator's bits, whether it wraps."""

FEW = 16
"""Pixels under which packing the weights takes longer than it saves."""
PANEL = 192 * 1024
"""Bytes of a panel of input patches, which stays in a near cache while all weights pass."""
PANEL_ROWS = 96
"""Patches of a panel at most."""


@inner
def _lifted(multiplier: Int32, shift: Int8, rounding: int) -> tuple[Int32, Int64]:
    """The pairs of all channels as `requantize.finish_row` wants them."""
    multipliers = np.zeros(multiplier.size + LANES, np.int32)
    shifts = np.zeros(multiplier.size + LANES, np.int64)
    for n in range(multiplier.size):
        multipliers[n], shifts[n] = lift(multiplier[n], shift[n], rounding)
    return multipliers, shifts


@inner
def _group(
    x: Int8,
    channel: int,
    w: Int8,
    bias: Int32,
    multiplier: Int32,
    shift: Int64,
    y: Int8,
    window: Window,
    x_zero: int,
    ends: Ends,
    tile: int,
    width: int,
) -> None:
    """The outputs of one group: panels of patches (im2col) against all its weights, then rows of sums to int8."""
    weights = w.reshape(w.shape[0], -1)
    pixels = y.shape[0] * y.shape[1]
    if pixels < FEW:
        _few(x, channel, w, bias, multiplier, shift, y, window, x_zero, ends)
        return
    packed = aligned(packed_size(w.shape[0], weights.shape[1]))
    pack(weights, bias, width, packed)
    _panels(x, channel, w.shape, packed, multiplier, shift, y, window, x_zero, ends, tile, width)


@inner
def _panels(
    x: Int8,
    channel: int,
    taps: tuple[int, int, int, int],
    packed: Int8,
    multiplier: Int32,
    shift: Int64,
    y: Int8,
    window: Window,
    x_zero: int,
    ends: Ends,
    tile: int,
    width: int,
) -> None:
    """Stripes of patches, each against all panels of weights while it lies in a near cache."""
    depth = taps[1] * taps[2] * taps[3]
    pixels = y.shape[0] * y.shape[1]
    pitch = 4 * steps_of(depth)
    rows = min(max(PANEL // pitch, 1), PANEL_ROWS, pixels)
    reach = _reach(x.shape, taps, y.shape, window)
    patches = aligned(1 if reach else rows * pitch).reshape(-1)
    sums = np.empty(rows * width, np.int32)
    for start in range(0, pixels, rows):
        count = min(rows, pixels - start)
        if not reach:
            for i in range(count):
                patch = patches[i * pitch : i * pitch + depth]
                _gather(x, channel, taps, (start + i) // y.shape[1], (start + i) % y.shape[1], window, x_zero, patch)
        for first in range(0, taps[0], width):
            columns = min(width, padded(taps[0]) - first)
            at = address(x) + channel + start * reach if reach else address(patches)
            panel = (first, columns)
            multiply(tile, at, reach if reach else pitch, count, depth, packed, panel, x_zero, address(sums), columns)
            last = min(first + width, taps[0])
            _finish(sums, start, count, columns, multiplier[first:], shift[first:], y[:, :, first:last], ends)


@inner
def _finish(
    sums: Int32, start: int, count: int, columns: int, multiplier: Int32, shift: Int64, y: Int8, ends: Ends
) -> None:
    """Sums of `count` pixels from number `start` on to int8, in runs of pixels at equal distances."""
    ending, zero, low, high, rounding, bits, wraps = ends
    even = y.strides[0] == y.shape[1] * y.strides[1]
    done = 0
    while done < count:
        row, column = (start + done) // y.shape[1], (start + done) % y.shape[1]
        run = count - done if even else min(count - done, y.shape[1] - column)
        call_address(
            ending,
            (
                address(sums) + done * columns * 4,
                run,
                columns * 4,
                y.shape[2],
                address(multiplier),
                address(shift),
                address(y) + row * y.strides[0] + column * y.strides[1],
                y.strides[1],
                zero,
                low,
                high,
                rounding,
                bits,
                wraps,
            ),
        )
        done += run


@inner
def _reach(
    shape: tuple[int, int, int], taps: tuple[int, int, int, int], out: tuple[int, int, int], window: Window
) -> int:
    """Bytes from a patch to the next where patches lie in x as they are, at equal distances and in whole steps; else 0.

    Dense layers, 1x1 convolutions, and convolutions along one axis without padding.
    """
    stride_h, stride_w, _, dilation_w, pad_top, pad_left = window
    height, width, channels = shape
    whole = taps[2] == 1 or (dilation_w == 1 and taps[3] == channels)
    if taps[1] != 1 or not whole or taps[2] * taps[3] % 4 != 0 or pad_top != 0 or pad_left != 0:
        return 0
    if (out[0] - 1) * stride_h >= height or (out[1] - 1) * stride_w + taps[2] > width:
        return 0
    if out[0] == 1:
        return stride_w * channels
    if out[1] == 1:
        return stride_h * width * channels
    return channels if taps[2] == 1 and stride_h == 1 and stride_w == 1 and out[1] == width else 0


@inner
def _few(
    x: Int8,
    channel: int,
    w: Int8,
    bias: Int32,
    multiplier: Int32,
    shift: Int64,
    y: Int8,
    window: Window,
    x_zero: int,
    ends: Ends,
) -> None:
    """Very few patches: the weights are read once, where they lie."""
    weights = w.reshape(w.shape[0], -1)
    patch = np.empty(weights.shape[1], np.int8)
    sums = np.empty(padded(w.shape[0]), np.int32)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            _gather(x, channel, w.shape, i, j, window, x_zero, patch)
            _multiply_rows(patch, x_zero, weights, bias, sums)
            _finish(sums, i * y.shape[1] + j, 1, w.shape[0], multiplier, shift, y, ends)


@inner
def _gather(
    x: Int8,
    channel: int,
    taps: tuple[int, int, int, int],
    row: int,
    column: int,
    window: Window,
    x_zero: int,
    patch: Int8,
) -> None:
    """The values that one output pixel reads, in the order of its weights; the zero point outside x."""
    stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left = window
    height, width, channels = x.shape
    left = column * stride_w - pad_left
    together = channels == taps[3] and dilation_w == 1 and left >= 0 and left + taps[2] <= width
    run, runs = (taps[2] * taps[3], 1) if together else (taps[3], taps[2])
    flat, zero = x.reshape(-1), np.int8(x_zero)
    k = np.uint64(0)  # unsigned: no wrap-around of a negative index to check, so that the copies vectorize
    for kh in range(taps[1]):
        h = row * stride_h - pad_top + kh * dilation_h
        for kw in range(runs):
            v = left + kw * dilation_w
            base = np.uint64((h * width + v) * channels + channel)
            inside = 0 <= h < height and 0 <= v < width
            for i in range(run):
                patch[k + np.uint64(i)] = flat[base + np.uint64(i)] if inside else zero
            k += np.uint64(run)


@inner
def _multiply_rows(patch: Int8, zero: int, weights: Int8, bias: Int32, sums: Int32) -> None:
    """The sums of one patch."""
    values = np.empty(patch.size, np.int16)
    for k in range(patch.size):
        values[k] = np.int16(patch[k]) - np.int16(zero)
    for n in range(weights.shape[0]):
        row = weights[n]
        total = np.int32(bias[n])
        for k in range(row.size):
            total = np.int32(total + np.int32(values[k]) * np.int32(row[k]))
        sums[n] = total


@inner
def _depthwise(
    x: Int8,
    w: Int8,
    bias: Int32,
    multiplier: Int32,
    shift: Int64,
    y: Int8,
    window: Window,
    channel: int,
    x_zero: int,
    ends: Ends,
) -> None:
    """One input channel per output channel: taps outside, channels inside."""
    channels = w.shape[0]
    weights = w.reshape(channels, -1)
    taps = np.empty((weights.shape[1], channels), np.int32)
    for n in range(channels):
        for k in range(weights.shape[1]):
            taps[k, n] = weights[n, k]
    flat = np.empty(y.shape[1] * channels + LANES, np.int32)
    acc = flat[: y.shape[1] * channels].reshape(y.shape[1], channels)
    for row in range(y.shape[0]):
        acc[:] = bias
        _depthwise_row(x, channel, taps, w.shape, row, window, x_zero, acc)
        _finish(flat, row * y.shape[1], y.shape[1], channels, multiplier, shift, y, ends)


@inner
def _depthwise_row(
    x: Int8,
    channel: int,
    taps: Int32,
    shape: tuple[int, int, int, int],
    row: int,
    window: Window,
    x_zero: int,
    acc: Int32,
) -> None:
    """Sums of one output row, tap by tap."""
    stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left = window
    first = np.uint64(channel)  # unsigned: no wrap-around of a negative index to check, so that the sums vectorize
    zero = np.int32(x_zero)
    for kh in range(shape[1]):
        h = row * stride_h - pad_top + kh * dilation_h
        if not 0 <= h < x.shape[0]:
            continue
        for kw in range(shape[2]):
            weights = taps[kh * shape[2] + kw]
            for column in range(acc.shape[0]):
                v = column * stride_w - pad_left + kw * dilation_w
                if 0 <= v < x.shape[1]:
                    for n in range(weights.size):
                        value = np.int32(np.int32(x[h, v, first + np.uint64(n)]) - zero)
                        acc[column, n] = np.int32(acc[column, n] + value * weights[n])


@kernel(
    source(types.int8, 3),
    source(types.int8, 4),
    source(types.int32, 1),
    source(types.int32, 1),
    source(types.int8, 1),
    sink(types.int8, 3),
    *[INT] * 18,
)
def _conv2d(
    x: Int8,
    w: Int8,
    bias: Int32,
    multiplier: Int32,
    shift: Int8,
    y: Int8,
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
    tile: int,
    width: int,
    finish: int,
) -> None:
    """`conv2d` on the machine's tiles."""
    window = (stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left)
    ends = (finish, y_zero, low, high, rounding, acc_bits, acc_wraps)
    multipliers, shifts = _lifted(multiplier, shift, rounding)
    if w.shape[3] == 1 and group_out == 1:
        _depthwise(x, w, bias, multipliers, shifts, y, window, channel_offset, x_zero, ends)
        return
    first = 0
    while first < w.shape[0]:
        group = (channel_offset + first) // group_out
        last = min((group + 1) * group_out - channel_offset, w.shape[0])
        _group(
            x,
            group * w.shape[3],
            w[first:last],
            bias[first:last],
            multipliers[first:],
            shifts[first:],
            y[:, :, first:last],
            window,
            x_zero,
            ends,
            tile,
            width,
        )
        first = last


def conv2d(
    x: Int8,
    w: Int8,
    bias: Int32,
    multiplier: Int32,
    shift: Int8,
    y: Int8,
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
    """``y = requantize(narrow(sum(w * (x - x_zero)) + bias))``; taps outside the input add nothing.

    A dense layer of M rows is H = M, W = 1 with a 1x1 window; a 1-D convolution has H = 1.

    Args:
        x: (H, W, C), the input or a stripe of its rows.
        w: (N, KH, KW, C per group); after decoding.
        bias: (N,), on the scale of the products.
        multiplier: (N,), >= 0; with `shift` the ratio of scales.
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
        rounding: as `nnac.numerics.Rounding`.
        acc_bits: of the accumulator; sums, bias included, have to fit 32 bits.
        acc_wraps: whether a narrower accumulator wraps (else it saturates).
    """
    _conv2d(
        x,
        w,
        bias,
        multiplier,
        shift,
        y,
        stride_h,
        stride_w,
        dilation_h,
        dilation_w,
        pad_top,
        pad_left,
        group_out,
        channel_offset,
        x_zero,
        y_zero,
        low,
        high,
        rounding,
        acc_bits,
        acc_wraps,
        machine.tile(),
        machine.width(),
        machine.finish(),
    )
