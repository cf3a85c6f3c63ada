"""Convolution of int8 tensors with channels last: dense, 1-D, grouped, dilated and depthwise layers all come here.

Two steps: `packing` brings the constants of a layer into the form that this machine multiplies fastest, `product` uses
them, once or many times.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.lib.stride_tricks import as_strided

from nnac.kernels import codes, machine
from nnac.kernels.calls import Call
from nnac.kernels.finish import LANES, TIELESS, TIELESS_FIRST, TIELESS_LAST
from nnac.kernels.jit import INT, Int8, Int32, Int64, Integer, inner, kernel, sink, source
from nnac.kernels.panels import Slabs, multiply, pack, packed_bytes, packed_size, padded, steps_of
from nnac.kernels.requantize import FLOAT32, TFLITE, lift
from nnac.kernels.vectors import address, call_address, move_run

Taps = tuple[int, int, int]
"""Rows, columns, and input channels per group."""
Window = tuple[int, int, int, int, int, int]
"""Stride, dilation, padding before: each down, then right."""
Tile = tuple[int, int, int, int]
"""Address of a tile function, channels of a panel, and for weights in codes their bits (else 0) and table's address."""
Ends = tuple[int, int, int, int, int, int, int, int]
"""How sums end: `finish.finish`'s address, bytes of y, zero point, low, high, rounding, accumulator's bits, wraps."""

PANEL = 192 * 1024
"""Bytes of a panel of input patches, which stays in a near cache while all weights pass."""
PANEL_ROWS = 96
"""Patches of a panel at most."""
SUMS = 64 * 1024
"""Bytes of sums of a depthwise layer that are made before they are finished."""


class Layer(NamedTuple):
    """All about a convolution but its arrays.

    Attributes:
        kernel_h, kernel_w: taps down and right.
        depth: input channels of a group.
        stride_h, stride_w: rows and columns of x from one output to the next.
        dilation_h, dilation_w: the same from one tap to the next.
        pad_top, pad_left: y[0] starts this many rows above x[0]; negative where the stripe holds rows before its first.
        group_out: output channels of one group (of the whole layer, not of this stripe).
        channel_offset: of y's first channel among the output channels of the layer; x always holds all channels.
        x_zero, y_zero: zero points.
        low, high: smallest and largest output.
        rounding: as `nnac.numerics.Rounding`, or `requantize.FLOAT32`.
        acc_bits: of the accumulator; sums, bias included, have to fit 32 bits.
        acc_wraps: whether a narrower accumulator wraps (else it saturates).
    """

    kernel_h: int
    kernel_w: int
    depth: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    pad_top: int
    pad_left: int
    group_out: int
    channel_offset: int
    x_zero: int
    y_zero: int
    low: int
    high: int
    rounding: int
    acc_bits: int
    acc_wraps: int

    @property
    def taps(self) -> int:
        """Weights of a channel."""
        return self.kernel_h * self.kernel_w * self.depth

    @property
    def is_depthwise(self) -> bool:
        """One input channel per output channel."""
        return self.depth == 1 and self.group_out == 1


@dataclass(frozen=True, slots=True)
class Filters:
    """The constants of a layer, ready for products on this machine.

    Attributes:
        packed: panels of weights with biases, one matrix per group behind each other.
        multipliers: lifted, with LANES more behind the last.
        shifts: the same, with TIELESS (`nnac.kernels.finish`) where it can be; behind the last too.
        table: (128,) of the codes' values, repeated.
        bits: of the weights' codes; 0 where the weights are as they are.
    """

    packed: Int8
    multipliers: Int32
    shifts: Int64
    table: Int8
    bits: int = 0


@inner
def _group_end(first: int, channels: int, group_out: int, offset: int) -> int:
    """The channel behind the last one of the group that `first` is of."""
    return min(((offset + first) // group_out + 1) * group_out - offset, channels)


@inner
def _is_tieless(weights: Int8, bias: int, multiplier: int, shift: int) -> Any:
    """Whether `finish` can take the shortest way: no sum but zero is a multiple of what a tie needs one to be."""
    if not TIELESS_FIRST <= shift <= TIELESS_LAST:
        return False
    reach: Integer = abs(np.int64(bias))
    for n in range(weights.size):
        reach += 255 * abs(np.int64(weights[n]))
    needed = 1 << (shift - 1)
    return min(reach, np.int64(1 << 31)) * (multiplier & -multiplier) < needed


@kernel(
    source(types.int8, 2),
    source(types.int32, 1),
    source(types.int32, 1),
    source(types.int8, 1),
    sink(types.int8, 1, "C"),
    sink(types.int32, 1, "C"),
    sink(types.int64, 1, "C"),
    *[INT] * 5,
)
def _pack_filters(
    weights: Int8,
    bias: Int32,
    multiplier: Int32,
    shift: Int8,
    packed: Int8,
    multipliers: Int32,
    shifts: Int64,
    group_out: int,
    offset: int,
    rounding: int,
    width: int,
    own: int,
) -> None:
    """`packing`; `own` where every channel is a group, which share one panel then."""
    channels, depth = weights.shape
    for n in range(channels):
        multipliers[n], shifts[n] = lift(multiplier[n], shift[n], rounding)
        if rounding not in (TFLITE, FLOAT32) and _is_tieless(weights[n], bias[n], multiplier[n], shift[n]):
            shifts[n] += TIELESS
    packed[:] = 0
    if own:
        pack(weights, bias, padded(channels), packed)
        return
    first, at = 0, 0
    while first < channels:
        last = _group_end(first, channels, group_out, offset)
        pack(weights[first:last], bias[first:last], width, packed[at:])
        at += packed_size(last - first, depth)
        first = last


@inner
def _dense(
    x: Int8,
    channel: int,
    taps: Taps,
    channels: int,
    packed: int,
    multiplier: Int32,
    shift: Int64,
    y: Int8,
    y_first: int,
    window: Window,
    x_zero: int,
    ends: Ends,
    tile: Tile,
    workspace: Int8,
) -> None:
    """One group: stripes of patches (im2col), each against all panels of weights while it lies in a near cache."""
    depth = taps[0] * taps[1] * taps[2]
    pixels, width = y.shape[0] * y.shape[1], tile[1]
    pitch = 4 * steps_of(depth)
    rows = min(max(PANEL // pitch, 1), PANEL_ROWS, pixels)
    reach = _reach(x.shape, taps, y.shape, window)
    sums = workspace[: 4 * rows * width].view(np.int32)
    patches = workspace[4 * rows * width :]
    for start in range(0, pixels, rows):
        count = min(rows, pixels - start)
        if not reach:
            row, column = start // y.shape[1], start % y.shape[1]
            for i in range(count):
                _gather(x, channel, taps, row, column, window, x_zero, patches[i * pitch : (i + 1) * pitch])
                column += 1
                if column == y.shape[1]:
                    row, column = row + 1, 0
        at = address(x) + channel + start * reach if reach else address(patches)
        for first in range(0, channels, width):
            columns = width if tile[2] else min(width, padded(channels) - first)
            _product(tile, at, reach if reach else pitch, count, depth, packed, (first, columns), x_zero, address(sums))
            last = min(first + width, channels)
            part = (y_first + first, last - first)
            _finish(sums, start, count, columns, multiplier[first:], shift[first:], y, part, ends)


@inner
def _product(
    tile: Tile, x: int, pitch: int, rows: int, depth: int, packed: int, panel: tuple[int, int], zero: int, sums: int
) -> None:
    """Rows of x against one panel, of weights as they are or in codes."""
    function, width, bits, table = tile
    if bits == 0:
        multiply(function, x, pitch, rows, depth, packed, panel, zero, sums, panel[1])
        return
    steps = steps_of(depth)
    at = packed + panel[0] // width * codes.panel_size(steps, bits)
    for row in range(0, rows, codes.ROWS):
        count = min(codes.ROWS, rows - row)
        there = sums + 4 * width * row
        call_address(function, (x + row * pitch, pitch, count, at, steps, bits, table, zero, there, 4 * width))


@inner
def _finish(
    sums: Int32,
    start: int,
    count: int,
    columns: int,
    multiplier: Int32,
    shift: Int64,
    y: Int8,
    part: tuple[int, int],
    ends: Ends,
) -> None:
    """Sums of `count` pixels from number `start` on to a part of y's channels, in runs at equal distances."""
    ending, y_bytes, zero, low, high, rounding, bits, wraps = ends
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
                part[1],
                address(multiplier),
                address(shift),
                address(y) + row * y.strides[0] + column * y.strides[1] + part[0] * y_bytes,
                y.strides[1],
                y_bytes,
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
def _reach(shape: tuple[int, int, int], taps: Taps, out: tuple[int, int, int], window: Window) -> int:
    """Bytes from a patch to the next where patches lie in x as they are, at equal distances and in whole steps; else 0.

    Dense layers, 1x1 convolutions, and convolutions along one axis without padding.
    """
    stride_h, stride_w, _, dilation_w, pad_top, pad_left = window
    height, width, channels = shape
    whole = taps[1] == 1 or (dilation_w == 1 and taps[2] == channels)
    if taps[0] != 1 or not whole or taps[1] * taps[2] % 4 != 0 or pad_top != 0 or pad_left != 0:
        return 0
    if (out[0] - 1) * stride_h >= height or (out[1] - 1) * stride_w + taps[1] > width:
        return 0
    if out[0] == 1:
        return stride_w * channels
    if out[1] == 1:
        return stride_h * width * channels
    return channels if taps[1] == 1 and stride_h == 1 and stride_w == 1 and out[1] == width else 0


@inner
def _gather(x: Int8, channel: int, taps: Taps, row: int, column: int, window: Window, x_zero: int, patch: Int8) -> None:
    """The values that one output pixel reads, in the order of its weights; the zero point outside x."""
    stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left = window
    height, width, channels = x.shape
    left, k = column * stride_w - pad_left, 0
    top, together = row * stride_h - pad_top, channels == taps[2] and dilation_w == 1
    runs, first = 1 if together else taps[1], max(-left, 0)
    inside = 0 <= top and top + (taps[0] - 1) * dilation_h < height and 0 <= left and left + taps[1] <= width
    if together and inside:
        at, run = address(x) + (top * width + left) * channels, taps[1] * channels
        for _ in range(taps[0]):
            move_run(address(patch) + k, at, run)
            at, k = at + dilation_h * width * channels, k + run
    for kh in range(0 if together and inside else taps[0]):
        h = top + kh * dilation_h
        for kw in range(runs):
            v = left + kw * dilation_w
            before, behind = (first, min(width - left, taps[1])) if together else (0, int(0 <= v < width))
            if not 0 <= h < height or behind <= before:
                before, behind = 0, 0
            k = _fill(patch, k, before * taps[2], x_zero)
            if behind > before:
                at = address(x) + (h * width + v + before) * channels + channel
                move_run(address(patch) + k, at, (behind - before) * taps[2])
                k += (behind - before) * taps[2]
            k = _fill(patch, k, ((taps[1] if together else 1) - behind) * taps[2], x_zero)
    for i in range(3):  # what fills the last step
        if k + i < patch.size:
            patch[k + i] = x_zero


@inner
def _fill(patch: Int8, first: int, count: int, value: int) -> int:
    """So many equal values; returns where they end."""
    for i in range(first, first + count):
        patch[np.uint64(i)] = value
    return first + count


@inner
def _depthwise(
    x: Int8,
    channel: int,
    taps: Taps,
    packed: int,
    multiplier: Int32,
    shift: Int64,
    y: Int8,
    window: Window,
    x_zero: int,
    ends: Ends,
    tile: int,
    workspace: Int8,
) -> None:
    """One input channel per output channel: pixels of a row, each from the places of its taps."""
    columns, whole = padded(y.shape[2]), 4 * steps_of(taps[0] * taps[1])
    across = min(max(SUMS // (4 * columns), 1), y.shape[1])
    down = min(max(SUMS // (4 * columns * across), 1), y.shape[0]) if across == y.shape[1] else 1
    sums = workspace[: 4 * across * down * columns].view(np.int32)
    outside = workspace[4 * sums.size : 4 * sums.size + columns]
    outside[:] = x_zero
    rest = workspace[4 * sums.size + columns :].view(np.int64)
    bases, steps, places = rest[: across * whole], rest[across * whole : 2 * across * whole], rest[2 * across * whole :]
    for column in range(0, y.shape[1], across):
        count = min(across, y.shape[1] - column)
        _columns(x, channel, taps, column, count, window, address(outside), bases, steps)
        for row in range(0, y.shape[0], down):
            rows = min(down, y.shape[0] - row)
            for i in range(rows):
                here = places[i * count * whole : (i + 1) * count * whole]
                _places(x.shape[0], taps, row + i, window, address(outside), bases, steps, here)
            block = (address(places), rows * count, packed, whole // 4, columns)
            call_address(tile, (*block, x_zero, address(sums), 4 * columns))
            first = row * y.shape[1] + column
            _finish(sums, first, rows * count, columns, multiplier, shift, y, (0, y.shape[2]), ends)


@inner
def _columns(
    x: Int8,
    channel: int,
    taps: Taps,
    column: int,
    count: int,
    window: Window,
    outside: int,
    bases: Int64,
    steps: Int64,
) -> None:
    """The address of every tap of some pixels of the first row, and what leads to the next row; no step outside x.

    Taps that fill the last step have weights of zero.
    """
    stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left = window
    width, channels = x.shape[1:]
    whole = 4 * steps_of(taps[0] * taps[1])
    for i in range(count):
        left = (column + i) * stride_w - pad_left
        for t in range(whole):
            v, h = left + t % taps[1] * dilation_w, t // taps[1] * dilation_h - pad_top
            inside = 0 <= v < width and t < taps[0] * taps[1]
            bases[i * whole + t] = address(x) + channel + (h * width + v) * channels if inside else outside
            steps[i * whole + t] = stride_h * width * channels if inside else 0


@inner
def _places(
    height: int, taps: Taps, row: int, window: Window, outside: int, bases: Int64, steps: Int64, places: Int64
) -> None:
    """The address of every tap of some pixels of a row."""
    stride_h, _, dilation_h, _, pad_top, _ = window
    whole = 4 * steps_of(taps[0] * taps[1])
    for n in range(places.size):
        places[n] = bases[n] + row * steps[n]
    for kh in range(taps[0]):
        if not 0 <= row * stride_h - pad_top + kh * dilation_h < height:
            for first in range(kh * taps[1], places.size, whole):
                places[first : first + taps[1]] = outside


@kernel(
    source(types.int8, 3),
    source(types.int8, 1),
    source(types.int32, 1),
    source(types.int64, 1),
    source(types.int8, 1),
    sink(types.int8, 3),
    sink(types.int8, 1, "C"),
    *[INT] * 24,
)
def _conv2d(
    x: Int8,
    packed: Int8,
    multipliers: Int32,
    shifts: Int64,
    table: Int8,
    y: Int8,
    workspace: Int8,
    kernel_h: int,
    kernel_w: int,
    depth: int,
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
    y_bytes: int,
    bits: int,
    tile: int,
    width: int,
    own: int,
    finish: int,
) -> None:
    """`product` on the machine's tiles; `own` is the address of that for depthwise layers, or 0."""
    window = (stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left)
    taps = (kernel_h, kernel_w, depth)
    ends = (finish, y_bytes, y_zero, low, high, rounding, acc_bits, acc_wraps)
    at = address(packed)
    if own:
        _depthwise(x, channel_offset, taps, at, multipliers, shifts, y, window, x_zero, ends, own, workspace)
        return
    first, channels = 0, y.shape[2]
    while first < channels:
        last = _group_end(first, channels, group_out, channel_offset)
        channel = (channel_offset + first) // group_out * depth
        rest = (window, x_zero, ends, (tile, width, bits, address(table)), workspace)
        _dense(x, channel, taps, last - first, at, multipliers[first:], shifts[first:], y, first, *rest)
        at += packed_size(last - first, kernel_h * kernel_w * depth)
        first = last


def empty_filters(channels: int, layer: Layer, slabs: Slabs | None = None) -> Filters:
    """Returns room for what `packing` makes of so many channels, in slabs if given."""
    ends = [0]
    while ends[-1] < channels:
        step = layer.group_out - (layer.channel_offset + ends[-1]) % layer.group_out
        ends.append(channels if layer.is_depthwise else min(ends[-1] + step, channels))
    size = sum(packed_bytes(last - first, layer.taps) for first, last in pairwise(ends))
    scales = np.zeros(channels + LANES, np.int32), np.full(channels + LANES, TIELESS + TIELESS_FIRST, np.int64)
    return Filters((slabs or Slabs(0)).room(size), *scales, np.zeros(0, np.int8))


def packing(weights: Int8, bias: Int32, multiplier: Int32, shift: Int8, filters: Filters, layer: Layer) -> Call:
    """Returns the call that packs the constants of a layer.

    Args:
        weights: (N, KH * KW * C per group); after decoding.
        bias: (N,), on the scale of the products.
        multiplier: (N,), >= 0; with `shift` the ratio of scales.
        shift: (N,), 0..62.
        filters: from `empty_filters`.
        layer: group_out, channel_offset and rounding count.
    """
    arrays = (weights, bias, multiplier, shift, filters.packed, filters.multipliers, filters.shifts)
    law = (layer.group_out, layer.channel_offset, layer.rounding)
    return Call(_pack_filters, (*arrays, *law, machine.width(), int(layer.is_depthwise)))


def _values(weights: Int8) -> Any:
    """Returns the different values of weights, as bytes without a sign."""
    return np.flatnonzero(np.bincount(weights.reshape(-1).view(np.uint8), minlength=256)).astype(np.uint8)


def is_narrow(weights: Int8) -> bool:
    """Whether weights fit narrow codes, and those are faster here where there are few rows."""
    return codes.narrow_tile() != 0 and _values(weights).size <= 1 << codes.BITS


def narrowed(weights: Int8, bias: Int32, filters: Filters, slabs: Slabs | None = None) -> Filters:
    """Returns the packed constants with weights in the narrowest codes; they are as `is_narrow` asks.

    Args:
        weights: (N, K), of one group.
        bias: (N,).
        filters: the same constants, packed.
        slabs: where the codes shall lie.
    """
    values = _values(weights)
    bits = max(int(values.size - 1).bit_length(), 1)
    table, indices = np.zeros(1 << bits, np.int8), np.zeros(256, np.uint8)
    table[: values.size] = values.view(np.int8)
    indices[values] = np.arange(values.size)
    coded = codes.pack_codes(indices[weights.view(np.uint8)], table, bits, bias, slabs)
    return Filters(coded.data, filters.multipliers, filters.shifts, coded.table, bits)


def workspace_bytes(layer: Layer, shape: tuple[int, int, int]) -> int:
    """Returns the working memory of a product with outputs of a shape (OH, OW, N)."""
    if layer.is_depthwise:
        columns, whole = packed_bytes(shape[2], 0) // 8, 4 * -(-layer.taps // 4)
        across = min(max(SUMS // (4 * columns), 1), shape[1])
        pixels = across * (min(max(SUMS // (4 * columns * across), 1), shape[0]) if across == shape[1] else 1)
        return (4 * pixels + 1) * columns + 8 * (2 * across + pixels) * whole
    pitch = 4 * -(-layer.taps // 4)
    rows = min(max(PANEL // pitch, 1), PANEL_ROWS, shape[0] * shape[1])
    return rows * (4 * max(machine.width(), codes.WIDTH) + pitch)


def product(x: Int8, filters: Filters, y: Any, workspace: Int8, layer: Layer) -> Call:
    """Returns the call of ``y = requantize(narrow(sum(w * (x - x_zero)) + bias))``; taps outside x add nothing.

    A dense layer of M rows is H = M, W = 1 with a 1x1 window; a 1-D convolution has H = 1.

    Args:
        x: (H, W, C), the input or a stripe of its rows, with SLACK bytes behind it that can be read.
        filters: packed for the same layer.
        y: (OH, OW, N) of int8 or int16, N side by side; all of it is written.
        workspace: `workspace_bytes` of it, at a multiple of ALIGNMENT.
        layer: all of it.
    """
    form = (machine.tile(), machine.width(), machine.own_tile() if layer.is_depthwise else 0)
    if filters.bits:
        form = (codes.narrow_tile(), codes.WIDTH, 0)
    target = as_strided(y.view(np.int8), y.shape, y.strides)
    arrays = (x, filters.packed, filters.multipliers, filters.shifts, filters.table, target, workspace)
    return Call(_conv2d, (*arrays, *layer, y.itemsize, filters.bits, *form, machine.finish()))
