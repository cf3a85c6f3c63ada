"""Products of a convolution's input with its packed constants (`nnac.kernels.conv`).

A product goes over blocks of rows: it lifts the rows that a block reads into working memory, with the padding around
them and the bits turned over that the tiles want so; from there the tiles read what they need where it lies, without
im2col.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.lib.stride_tricks import as_strided

from nnac.kernels import codes, machine
from nnac.kernels.calls import Call
from nnac.kernels.conv import Filters, Layer, filled, group_end, own_width
from nnac.kernels.jit import INT, Int8, Int32, Int64, Integer, inner, kernel, sink, source
from nnac.kernels.panels import SLACK, packed_bytes, packed_words, padded, steps_of
from nnac.kernels.tile import COLUMNS
from nnac.kernels.vectors import address, call_address, move_run

Tile = tuple[int, int, int, int]
"""Address of a tile function, channels of a panel, and for weights in codes their bits (else 0) and table's address."""
Ends = tuple[int, int, int, int, int, int, int, int]
"""How sums end: `finish.finish`'s address, bytes of y, zero point, low, high, rounding, accumulator's bits, wraps."""
Block = tuple[int, int, int, int]
"""Address of lifted rows, rows of outputs, and bytes from what an output reads to the next one down and right."""

LIFTED = 128 * 1024
"""Bytes of lifted rows of a block, which stay in a near cache while all weights pass."""
OWN_LIFTED = 24 * 1024
"""The same for depthwise layers, which read them once per tap."""
WORTH = 1 << 14
"""Cycles of work, about, that are worth another thread."""
SUMS = 3 * 1024
"""Sums that are made before they are finished, so that they stay in the nearest cache."""


@inner
def _fill(target: Int8, first: int, count: int, value: Integer) -> int:
    """So many equal values; returns where they end."""
    for i in range(first, first + count):
        target[np.uint64(i)] = value
    return first + count


@inner
def _lift(
    x: Int8,
    part: tuple[int, int],
    place: tuple[int, int],
    rows: int,
    shape: tuple[int, int, int],
    x_zero: int,
    flip: int,
    lifted: Int8,
) -> None:
    """Rows from a place of x on, which may lie outside: the zero point is there.

    Args:
        x: (H, W, C).
        part: first channel and channels.
        place: row and column of x.
        rows: to lift.
        shape: of a lifted row: phases, pixels of a phase, bytes of a pixel; phase n has every so many-th pixel from
            number n on.
        x_zero: zero point of x.
        flip: bits that are turned over.
        lifted: behind each other, with what a move writes too much.
    """
    (height, width, channels), (phases, across, wide) = x.shape, shape
    zero = np.int8((x_zero & 255) ^ flip)
    together, k = phases == 1 and part[1] == channels and wide == channels, 0
    for h in range(place[0], place[0] + rows):
        is_inside = 0 <= h < height
        if together:
            first = min(max(-place[1], 0), across) if is_inside else across
            last = max(min(width - place[1], across), first)
            k = _fill(lifted, k, first * wide, zero)
            at = address(x) + (h * width + place[1] + first) * channels
            move_run(address(lifted) + k, at, (last - first) * wide, flip)
            k = _fill(lifted, k + (last - first) * wide, (across - last) * wide, zero)
            continue
        for phase in range(phases):
            for v in range(place[1] + phase, place[1] + phase + phases * across, phases):
                if is_inside and 0 <= v < width:
                    move_run(address(lifted) + k, address(x) + (h * width + v) * channels + part[0], part[1], flip)
                else:
                    _fill(lifted, k, wide, zero)
                k += wide


@inner
def _dense(
    block: Block,
    channels: int,
    run: int,
    runs: Int64,
    packed: int,
    scale: tuple[Int32, Int64],
    y: Int8,
    part: tuple[int, int],
    fill: Integer,
    ends: Ends,
    tile: Tile,
    work: tuple[Int64, Int32, Int8],
) -> None:
    """One group: outputs by outputs, each against all panels of weights."""
    places, sums, patches = work
    width, bits, whole = tile[1], tile[2], steps_of(run * runs.size)
    most, pixels = codes.ROWS if bits else SUMS // min(width, padded(channels)), block[1] * y.shape[1]
    for start in range(0, pixels, most):
        count = min(most, pixels - start)
        _locate(block, y.shape[1], start, count, places)
        if bits:
            _gather(count, run, runs, 4 * whole, fill, places, patches)
        target = address(y) + (part[0] * y.shape[1] + start) * y.strides[1] + part[1] * ends[1]
        for first in range(0, channels, width):
            columns = width if bits else min(width, padded(channels) - first)
            if bits:
                panel = packed + first // width * codes.panel_size(whole, bits)
                left = (4 * whole, count, panel, whole, bits, tile[3], address(sums), 4 * columns)
                call_address(tile[0], (address(patches), *left))
            else:
                panel = packed + first * 4 * (steps_of(run) * runs.size + 1)
                right = (count, address(runs), runs.size, panel, steps_of(run), columns, address(sums), 4 * columns)
                call_address(tile[0], (address(places), *right))
            those, there = (scale[0][first:], scale[1][first:]), target + first * ends[1]
            _finish(sums, count, columns, min(width, channels - first), those, there, y.strides[1], ends)


@inner
def _locate(block: Block, width: int, start: int, count: int, places: Int64) -> None:
    """The addresses of what outputs from number `start` on read; `width` of them make a row."""
    row, column = start // width, start % width
    for i in range(count):
        places[i] = block[0] + row * block[2] + column * block[3]
        column += 1
        if column == width:
            row, column = row + 1, 0


@inner
def _gather(count: int, run: int, runs: Int64, pitch: int, fill: int, places: Int64, patches: Int8) -> None:
    """What outputs read, in one piece each."""
    for i in range(count):
        k = i * pitch
        for n in range(runs.size):
            move_run(address(patches) + k, places[i] + runs[n], run, 0)
            k += run
        _fill(patches, k, (i + 1) * pitch - k, fill)


@inner
def _finish(
    sums: Int32,
    count: int,
    columns: int,
    channels: int,
    scale: tuple[Int32, Int64],
    target: int,
    pitch: int,
    ends: Ends,
) -> None:
    """Sums of so many outputs to some of y's channels."""
    rest = (address(scale[0]), address(scale[1]), target, pitch, *ends[1:])
    call_address(ends[0], (address(sums), count, 4 * columns, channels, *rest))


@inner
def _depthwise(
    block: Block,
    row: int,
    taps: Int64,
    steps: int,
    packed: int,
    scale: tuple[Int32, Int64],
    y: Int8,
    ends: Ends,
    own: tuple[int, int, int, int],
    sums: Int32,
) -> None:
    """One input channel per output channel; `own`: the tile's address, a block's width, rows and blocks at once."""
    tile, width, down, across = own
    across_all, columns = y.shape[1], padded(y.shape[2])
    pixels = width // columns
    blocks = (across_all + pixels - 1) // pixels
    for above in range(0, block[1], down):
        rows = min(down, block[1] - above)
        for first in range(0, blocks, across):
            here = block[0] + above * block[2] + first * width
            count = min(across, blocks - first)
            rest = (address(taps), packed, steps, width, address(sums), 4 * across_all * columns)
            call_address(tile, (here, rows, block[2], count, *rest))
            made = rows * across_all if count == blocks else min(count * pixels, across_all - first * pixels)
            target = address(y) + ((row + above) * across_all + first * pixels) * y.strides[1]
            _finish(sums, made, columns, y.shape[2], scale, target, y.strides[1], ends)


@kernel(
    source(types.int8, 3),
    source(types.int8, 1),
    source(types.int32, 1),
    source(types.int64, 1),
    source(types.int8, 1),
    source(types.int64, 1),
    sink(types.int8, 3),
    sink(types.int64, 1, "C"),
    sink(types.int32, 1, "C"),
    sink(types.int8, 1, "C"),
    sink(types.int8, 1, "C"),
    *[INT] * 30,
)
def _conv2d(
    x: Int8,
    packed: Int8,
    multipliers: Int32,
    shifts: Int64,
    table: Int8,
    runs: Int64,
    y: Int8,
    places: Int64,
    sums: Int32,
    patches: Int8,
    lifted: Int8,
    depth: int,
    run: int,
    stride_h: int,
    stride_w: int,
    pad_top: int,
    pad_left: int,
    group_out: int,
    offset: int,
    x_zero: int,
    flip: int,
    down: int,
    more: int,
    phases: int,
    across: int,
    wide: int,
    own: int,
    own_width: int,
    own_down: int,
    own_across: int,
    tile: int,
    width: int,
    bits: int,
    finish: int,
    y_bytes: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
    acc_bits: int,
    acc_wraps: int,
) -> None:
    """`product` on the machine's tiles; `own` is the address of that for depthwise layers, or 0."""
    ends = (finish, y_bytes, y_zero, low, high, rounding, acc_bits, acc_wraps)
    channels, pitch = y.shape[2], phases * across * wide
    part = (offset, channels) if own else (0, x.shape[2])
    fill = np.int64((x_zero & 255) ^ flip)
    for row in range(0, y.shape[0], down):
        rows = min(down, y.shape[0] - row)
        place = (row * stride_h - pad_top, -pad_left)
        _lift(x, part, place, (rows - 1) * stride_h + more, (phases, across, wide), x_zero, flip, lifted)
        block = (address(lifted), rows, stride_h * pitch, stride_w * wide)
        at, first = address(packed), 0
        if own:
            law = (own, own_width, own_down, own_across)
            _depthwise(block, row, runs, steps_of(run), at, (multipliers, shifts), y, ends, law, sums)
            first = channels
        while first < channels:
            last = group_end(first, channels, group_out, offset)
            group = (block[0] + (offset + first) // group_out * depth, *block[1:])
            scale, form = (multipliers[first:], shifts[first:]), (tile, width, bits, address(table))
            work = (places, sums, patches)
            _dense(group, last - first, run, runs, at, scale, y, (row, first), fill, ends, form, work)
            at += 4 * packed_words(last - first, runs.size * steps_of(run))
            first = last


class Plan(NamedTuple):
    """How a product is cut, for outputs of a shape.

    Attributes:
        down: rows of outputs of a block.
        more: rows that a block's last output row reads.
        phases, across, wide: shape of a lifted row.
        own_width, own_down, own_across: of a depthwise layer: values of its blocks, rows and blocks made at once.
    """

    down: int
    more: int
    phases: int
    across: int
    wide: int
    own_width: int
    own_down: int
    own_across: int

    @classmethod
    def of(cls, layer: Layer, shape: tuple[int, int, int]) -> "Plan":
        """Returns the plan for outputs of a shape (OH, OW, N)."""
        more = (layer.kernel_h - 1) * layer.dilation_h + 1
        span = (shape[1] - 1) * layer.stride_w + (layer.kernel_w - 1) * layer.dilation_w + 1
        own = layer.is_depthwise
        phases, wide = (layer.stride_w, filled(shape[2])) if own else (1, layer.channels)
        across = -(-span // phases)
        most = (OWN_LIFTED if own else LIFTED) // (phases * across * wide)
        down = min(max((most - more) // layer.stride_h + 1, 1), shape[0])
        if not own:
            return cls(down, more, phases, across, wide, 0, 0, 0)
        width, row = own_width(shape[2]), shape[1] * wide
        blocks = -(-shape[1] * wide // width)
        at_once = blocks if row <= SUMS else max(SUMS // width, 1)
        return cls(down, more, phases, across, wide, width, max(SUMS // row, 1), at_once)

    def sizes(self, layer: Layer, shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """Returns the bytes of places, sums, patches and lifted rows."""
        rows = (self.down - 1) * layer.stride_h + self.more
        lifted = rows * self.phases * self.across * self.wide + self.own_width + SLACK
        if layer.is_depthwise:
            return 0, 4 * (self.own_down * shape[1] * self.wide + self.own_across * self.own_width), 0, lifted
        sums = max(SUMS, codes.ROWS * codes.WIDTH)
        return 8 * SUMS // COLUMNS, 4 * sums, codes.ROWS * (4 * -(-layer.taps // 4)) + SLACK, lifted


def workspace_bytes(layer: Layer, shape: tuple[int, int, int]) -> int:
    """Returns the working memory of a product with outputs of a shape (OH, OW, N)."""
    return sum(-(-size // SLACK) * SLACK for size in Plan.of(layer, shape).sizes(layer, shape))


def _parts(workspace: Int8, sizes: tuple[int, ...]) -> Any:
    """Yields arrays of so many bytes, from full cache lines on."""
    first = 0
    for size in sizes:
        yield workspace[first : first + size]
        first += -(-size // SLACK) * SLACK


def _runs(layer: Layer, plan: Plan) -> Int64:
    """Returns the distances, from the first value that an output reads, of each run; of a depthwise layer each tap."""
    pitch = plan.phases * plan.across * plan.wide
    together = layer.run == layer.kernel_w * layer.depth and not layer.is_depthwise
    columns = [n * layer.dilation_w for n in range(1 if together else layer.kernel_w)]
    right = [(v % plan.phases * plan.across + v // plan.phases) * plan.wide for v in columns]
    found = [n * layer.dilation_h * pitch + v for n in range(layer.kernel_h) for v in right]
    return np.array(found + [0] * (-len(found) % 4 if layer.is_depthwise else 0), np.int64)


class Part(NamedTuple):
    """A part of a product: what `product` takes of it."""

    filters: Filters
    y: Any
    layer: Layer


def split(filters: Filters, y: Any, layer: Layer, count: int) -> list[Part]:
    """Returns up to `count` parts of a product that may be made at once: rows of y, or else panels of its channels.

    Where the work is not worth it, or y has neither, it stays whole; a part makes the same bits as the whole.
    """
    rows, channels = y.shape[0], y.shape[2]
    cycles = y.size // COLUMNS * (layer.taps // 4 + 12)
    count = min(count, max(cycles // WORTH, 1))
    if rows >= count:
        ends = [rows * n // count for n in range(count + 1)]
        moved = (layer._replace(pad_top=layer.pad_top - first * layer.stride_h) for first in ends)
        return [Part(filters, y[a:b], there) for (a, b), there in zip(pairwise(ends), moved, strict=False)]
    alone = channels + layer.channel_offset <= layer.group_out
    width = codes.WIDTH if filters.bits else machine.width()
    panels = -(-channels // width) if alone and not layer.is_depthwise else 1
    count = min(count, panels)
    ends = [min(panels * n // count * width, channels) for n in range(count + 1)]
    return [Part(_some(filters, layer, first), y[:, :, first:last], layer) for first, last in pairwise(ends)]


def _some(filters: Filters, layer: Layer, first: int) -> Filters:
    """Returns the constants from the first channel of a panel on."""
    steps = -(-layer.run // 4) * (layer.taps // layer.run)
    if filters.bits:
        at = first // codes.WIDTH * codes.panel_bytes(-(-layer.taps // 4), filters.bits)
    else:
        at = packed_bytes(first, steps)
    return replace(
        filters, packed=filters.packed[at:], multipliers=filters.multipliers[first:], shifts=filters.shifts[first:]
    )


def product(x: Int8, filters: Filters, y: Any, workspace: Int8, layer: Layer) -> Call:
    """Returns the call of ``y = requantize(narrow(sum(w * (x - x_zero)) + bias))``; taps outside x add nothing.

    A dense layer of M rows is H = M, W = 1 with a 1x1 window; a 1-D convolution has H = 1.

    Args:
        x: (H, W, C), the input or a stripe of its rows, with SLACK bytes behind it that can be read.
        filters: packed for the same layer.
        y: (OH, OW, N) of int8 or int16, N side by side, all pixels at equal distances; all of it is written. Of int32
            for sums as they are, with `finish.RUN` bytes behind each pixel that may be written too.
        workspace: `workspace_bytes` of it, at a multiple of ALIGNMENT.
        layer: all of it.
    """
    plan = Plan.of(layer, y.shape)
    places, sums, patches, lifted = _parts(workspace, plan.sizes(layer, y.shape))
    target = as_strided(y.view(np.int8), y.shape, y.strides)
    constants = (filters.packed, filters.multipliers, filters.shifts, filters.table, _runs(layer, plan))
    arrays = (x, *constants, target, places.view(np.int64), sums.view(np.int32), patches, lifted)
    window = (layer.depth, layer.run, layer.stride_h, layer.stride_w, layer.pad_top, layer.pad_left)
    cut = (layer.group_out, layer.channel_offset, layer.x_zero, machine.flip(), *plan[:5])
    own = (machine.own_tile() if layer.is_depthwise else 0, *plan[5:])
    tile = (codes.narrow_tile(), codes.WIDTH) if filters.bits else (machine.tile(), machine.width())
    end = machine.keep() if y.itemsize == 4 else machine.finish()
    return Call(_conv2d, (*arrays, *window, *cut, *own, *tile, filters.bits, end, y.itemsize, *layer[-6:]))
