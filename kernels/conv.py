"""Convolution of int8 tensors with channels last: dense, 1-D, grouped, dilated and depthwise layers all come here.

Two steps: `packing` brings the constants of a layer into the form that this machine multiplies fastest,
`products.product` uses them, once or many times.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd
from typing import Any, NamedTuple

import numpy as np
from numba import types

from nnac.kernels import codes, machine
from nnac.kernels.calls import Call
from nnac.kernels.finish import LANES, TIELESS, TIELESS_FIRST, TIELESS_LAST
from nnac.kernels.jit import INT, Int8, Int32, Int64, Integer, inner, kernel, sink, source
from nnac.kernels.panels import Slabs, pack, packed_bytes, packed_words, room, steps_of
from nnac.kernels.requantize import FLOAT32, TFLITE, lift
from nnac.kernels.tile import COLUMNS


class Layer(NamedTuple):
    """All about a convolution but its arrays.

    Attributes:
        kernel_h, kernel_w: taps down and right.
        depth: input channels of a group.
        channels: of x.
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
    channels: int
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
    def run(self) -> int:
        """Weights whose values lie side by side, in lifted rows: they are packed in whole steps."""
        if self.is_depthwise:
            return self.taps
        return self.kernel_w * self.depth if self.depth == self.channels and self.dilation_w == 1 else self.depth

    @property
    def taps(self) -> int:
        """Weights of a channel."""
        return self.kernel_h * self.kernel_w * self.depth

    @property
    def is_depthwise(self) -> bool:
        """One input channel per output channel."""
        return self.depth == 1 and self.group_out == 1

    @property
    def form(self) -> tuple[int, ...]:
        """What decides how constants are packed: layers that are alike in this may share them."""
        place = (self.group_out, self.channel_offset)
        return (self.taps, self.run, int(self.is_depthwise), *place, self.x_zero, self.rounding)


@dataclass(frozen=True, slots=True)
class Filters:
    """The constants of a layer, ready for products on this machine.

    Attributes:
        packed: panels of weights with biases, one matrix per group behind each other.
        multipliers: lifted, with LANES more behind the last.
        shifts: the same, with TIELESS (`nnac.kernels.finish`) where it can be; behind the last too.
        table: (128,) of the codes' values, repeated.
        bits: of the weights' codes; 0 where the weights are as they are.
        offsets: what the sums of 16-bit activations begin with (`nnac.kernels.wide.planed`).
    """

    packed: Int8
    multipliers: Int32
    shifts: Int64
    table: Int8
    bits: int
    offsets: Int64


@inner
def group_end(first: int, channels: int, group_out: int, offset: int) -> int:
    """The channel behind the last one of the group that `first` is of."""
    return min(((offset + first) // group_out + 1) * group_out - offset, channels)


@inner
def is_tieless(reach: Integer, multiplier: int, shift: int) -> Any:
    """Whether `finish` can take the shortest way: no sum within `reach` but zero is a multiple of what a tie needs."""
    within = TIELESS_FIRST <= shift <= TIELESS_LAST
    return within and min(reach, 1 << 31) * (multiplier & -multiplier) < 1 << (shift - 1)


@inner
def _reach(weights: Int8, bias: int) -> Integer:
    """What no sum of a channel leaves."""
    reach: Integer = abs(np.int64(bias))
    for n in range(weights.size):
        reach += 255 * abs(np.int64(weights[n]))
    return reach


@kernel(
    source(types.int8, 2),
    source(types.int32, 1),
    source(types.int32, 1),
    source(types.int8, 1),
    sink(types.int32, 1, "C"),
    sink(types.int32, 1, "C"),
    sink(types.int64, 1, "C"),
    *[INT] * 7,
)
def _pack_filters(
    weights: Int8,
    bias: Int32,
    multiplier: Int32,
    shift: Int8,
    packed: Int32,
    multipliers: Int32,
    shifts: Int64,
    group_out: int,
    offset: int,
    rounding: int,
    zero: int,
    width: int,
    run: int,
    own: int,
) -> None:
    """`packing`; `own` is the width of a block where every channel is a group, which share one panel then, or 0."""
    channels, depth = weights.shape
    for n in range(channels):
        multipliers[n], shifts[n] = lift(multiplier[n], shift[n], rounding)
        if rounding not in (TFLITE, FLOAT32) and is_tieless(_reach(weights[n], bias[n]), multiplier[n], shift[n]):
            shifts[n] += TIELESS
    packed[:] = 0
    first, at = 0, 0
    while first < channels:
        last = channels if own else group_end(first, channels, group_out, offset)
        count, across = (own, own) if own else (last - first, width)
        pack(weights, bias, (first, last), count, zero, across, run, packed, at)
        at += packed_words(last - first, depth // run * steps_of(run))
        first = last


def lifted_zero(layer: Layer) -> int:
    """Returns the zero point of x as the tiles read it."""
    return layer.x_zero + machine.flip()


def filled(channels: int) -> int:
    """Returns channels with those that fill the last vector."""
    return -(-channels // COLUMNS) * COLUMNS


def own_width(channels: int) -> int:
    """Returns the values of a block of a depthwise layer: pixels next to each other that fill whole tiles."""
    return filled(channels) * 4 // gcd(filled(channels) // COLUMNS, 4)


def empty_filters(channels: int, layer: Layer, slabs: Slabs | None = None) -> Filters:
    """Returns room for what `packing` makes of so many channels, in slabs if given."""
    ends, steps = [0], layer.taps // layer.run * -(-layer.run // 4)
    while ends[-1] < channels:
        step = layer.group_out - (layer.channel_offset + ends[-1]) % layer.group_out
        ends.append(min(ends[-1] + step, channels))
    size = sum(packed_bytes(last - first, steps) for first, last in pairwise(ends))
    if layer.is_depthwise:
        size = packed_bytes(own_width(channels), steps)
    multipliers = room(4 * (channels + LANES)).view(np.int32)
    shifts = room(8 * (channels + LANES)).view(np.int64)
    shifts[:] = TIELESS + TIELESS_FIRST
    packed, offsets = (slabs or Slabs(0)).room(size), np.zeros(channels, np.int64)
    return Filters(packed, multipliers, shifts, np.zeros(0, np.int8), 0, offsets)


def packing(weights: Int8, bias: Int32, multiplier: Int32, shift: Int8, filters: Filters, layer: Layer) -> Call:
    """Returns the call that packs the constants of a layer.

    Args:
        weights: (N, KH * KW * C per group); after decoding.
        bias: (N,), on the scale of the products.
        multiplier: (N,), >= 0; with `shift` the ratio of scales.
        shift: (N,), 0..62.
        filters: from `empty_filters`.
        layer: its `form` counts.
    """
    packed = filters.packed.view(np.int32)
    arrays = (weights, bias, multiplier, shift, packed, filters.multipliers, filters.shifts)
    own = own_width(len(weights)) if layer.is_depthwise else 0
    law = (layer.group_out, layer.channel_offset, layer.rounding, lifted_zero(layer), machine.width(), layer.run, own)
    return Call(_pack_filters, (*arrays, *law))


def _values(weights: Int8) -> Any:
    """Returns the different values of weights, as bytes without a sign."""
    return np.flatnonzero(np.bincount(weights.reshape(-1).view(np.uint8), minlength=256)).astype(np.uint8)


def is_narrow(weights: Int8) -> bool:
    """Whether weights fit narrow codes, and those are faster here where there are few rows."""
    return codes.narrow_tile() != 0 and _values(weights).size <= 1 << codes.BITS


def narrowed(weights: Int8, bias: Int32, filters: Filters, layer: Layer, slabs: Slabs | None = None) -> Filters:
    """Returns the packed constants with weights in the narrowest codes; they are as `is_narrow` asks.

    Args:
        weights: (N, K), of one group.
        bias: (N,).
        filters: the same constants, packed.
        layer: its x_zero counts.
        slabs: where the codes shall lie.
    """
    values = _values(weights)
    bits = max(int(values.size - 1).bit_length(), 1)
    table, indices = np.zeros(1 << bits, np.int8), np.zeros(256, np.uint8)
    table[: values.size] = values.view(np.int8)
    indices[values] = np.arange(values.size)
    coded = codes.pack_codes(indices[weights.view(np.uint8)], table, bits, bias, lifted_zero(layer), slabs)
    return replace(filters, packed=coded.data, table=coded.table, bits=bits)
