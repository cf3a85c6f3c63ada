"""Convolution and dense layers: the work of the MAC array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import ClassVar

import numpy as np

from nnac import float32, isa
from nnac.numerics import MULTIPLIER_BITS, WIDE_BITS, WIDE_MULTIPLIER_BITS
from nnac.ops import exact, single
from nnac.ops.base import (
    UNBOUNDED,
    Block,
    Bound,
    Constraint,
    Op,
    Rows,
    Sample,
    Shape,
    Step,
    Work,
    clamp_limits,
    random_pair,
    random_type,
)
from nnac.types import Array, Quant, TensorType

PAD_LIMIT = 1 << 24
SHALLOW = 128
"""Products that a slice of an exact sum has at least."""
IN_CACHE = 1 << 15
"""Sums that are requantized at one time, so that what lies between stays near."""
INPUT, WEIGHT, BIAS, SCALE = range(4)
"""Input positions: activation; weights; bias; and, once quantized, float32 weight scales per output channel."""


def window_out(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """Return how many windows fit along one axis (ONNX's floor formula)."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def window_rows(rows: Rows, out_h: int, in_h: int, kernel: int, stride: int, dilation: int, before: int) -> Rows:
    """Return the input rows (over all of the batch) that windows of output `rows` of one batch entry touch."""
    batch = rows[0] // out_h
    first = (rows[0] - batch * out_h) * stride - before
    last = (rows[1] - 1 - batch * out_h) * stride - before + dilation * (kernel - 1)
    low, high = min(max(first, 0), in_h - 1), max(min(last, in_h - 1), 0)
    return batch * in_h + low, batch * in_h + high + 1


def window_reach(rows: int, kernel: int, stride: int, dilation: int) -> int:
    """Return the input rows from the first to the last tap of `rows` neighbouring windows."""
    return (rows - 1) * stride + dilation * (kernel - 1) + 1


@dataclass(frozen=True, slots=True)
class Conv(Op):
    """2-D convolution on (N, H, W, C) with weights (O, KH, KW, C / groups); 1-D runs along H with W = 1.

    Attributes:
        strides, dilations: (height, width).
        pads: (top, left, bottom, right), of real zeros.
        groups: channel groups; C for a depthwise convolution.
        clamp: real interval that the result is clamped to (a fused Relu is (0, inf)).
    """

    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    clamp: tuple[float, float] = UNBOUNDED

    name: ClassVar[str] = "Conv"
    layout: ClassVar[str] = "NHWC"
    operands: ClassVar[int | None] = 1
    weighted: ClassVar[bool] = True
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: len(s[0]) == 4 and len(s[1]) == 4, "the input is 1-D or 2-D (rank 3 or 4 in ONNX)"),
        Constraint(
            lambda op, s: 1 <= op.groups <= s[1][0] and s[1][0] % op.groups == 0 and s[1][3] * op.groups == s[0][3],
            "group divides input and output channels",
        ),
        Constraint(lambda op, s: all(1 <= v <= 65535 for v in s[1][1:3]), "kernel sides are 1 to 65535"),
        Constraint(
            lambda op, s: all(1 <= v <= 65535 for v in (*op.strides, *op.dilations)),
            "strides and dilations are 1 to 65535",
        ),
        Constraint(lambda op, s: all(0 <= v <= PAD_LIMIT for v in op.pads), f"pads are 0 to {PAD_LIMIT}"),
        Constraint(lambda op, s: min(op.infer(s)) >= 1, "the kernel fits into the padded input"),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        (n, h, w, _), (o, kh, kw, _) = shapes[INPUT], shapes[WEIGHT]
        top, left, bottom, right = self.pads
        return (
            n,
            window_out(h, kh, self.strides[0], self.dilations[0], top, bottom),
            window_out(w, kw, self.strides[1], self.dilations[1], left, right),
            o,
        )

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        return finish(bound, _accumulated(self, bound, inputs), self.clamp)

    def sums(self, x: Array, w: Array, out: Shape) -> Array:
        """Return the exact int64 sums of products, without bias, of integers less their zero point."""
        x, w, depth = _as_floats(x, w)
        return _grouped_product(self.patches(x, w.shape[1:3], out), w, self.groups, depth)

    def patches(self, x: Array, kernel: Shape, out: Shape) -> Array:
        """Return (N, OH, OW, KH * KW, C) windows of an input without zero point, integers or reals; padding is 0."""
        top, left, bottom, right = self.pads
        x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0))) if any(self.pads) else x
        taps = []
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                i0, j0 = i * self.dilations[0], j * self.dilations[1]
                taps.append(
                    x[
                        :,
                        i0 : i0 + (out[1] - 1) * self.strides[0] + 1 : self.strides[0],
                        j0 : j0 + (out[2] - 1) * self.strides[1] + 1 : self.strides[1],
                    ]
                )
        return np.stack(taps, axis=3) if len(taps) > 1 else taps[0][:, :, :, None]

    def work(self, bound: Bound) -> Work:
        return Work(macs=bound.output.elements * prod(bound.inputs[WEIGHT].shape[1:]))

    def rows(self, bound: Bound) -> tuple[int, int]:
        n, h, _, _ = bound.output.shape
        return n * h, h

    def operand_rows(self, bound: Bound) -> tuple[int, ...]:
        n, h, _, _ = bound.inputs[0].shape
        return (n * h,)

    def input_rows(self, bound: Bound, rows: Rows) -> tuple[Rows | None, ...]:
        kernel, in_h, out_h = bound.inputs[WEIGHT].shape[1], bound.inputs[INPUT].shape[1], bound.output.shape[1]
        return (window_rows(rows, out_h, in_h, kernel, self.strides[0], self.dilations[0], self.pads[0]),)

    def most_rows(self, bound: Bound, rows: int) -> tuple[int | None, ...]:
        in_h, kernel = bound.inputs[INPUT].shape[1], bound.inputs[WEIGHT].shape[1]
        return (min(in_h, window_reach(rows, kernel, self.strides[0], self.dilations[0])),)

    def blocks(self, bound: Bound, limit: int, granule: int) -> list[Block]:
        return channel_blocks(bound, limit, granule)

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        assert step.block is not None
        _, in_h, in_w, in_c = bound.inputs[INPUT].shape
        _, out_h, out_w, out_c = bound.output.shape
        _, kernel_h, kernel_w, _ = bound.inputs[WEIGHT].shape
        source, target = step.inputs[0], step.output
        first_window = (target.lo % out_h) * self.strides[0] - self.pads[0]
        low, high = clamp_limits(self.clamp, bound.quant)
        yield isa.Conv(
            source=source.address,
            in_h=source.hi - source.lo,
            in_w=in_w,
            in_c=in_c,
            target=target.address + step.block.lo * bound.output.itemsize,
            out_h=target.hi - target.lo,
            out_w=out_w,
            out_c=step.block.hi - step.block.lo,
            pitch=out_c,
            channel=step.block.lo,
            channels=out_c,
            kernel_h=kernel_h,
            kernel_w=kernel_w,
            stride_h=self.strides[0],
            stride_w=self.strides[1],
            dilation_h=self.dilations[0],
            dilation_w=self.dilations[1],
            pad_top=source.lo % in_h - first_window,
            pad_left=self.pads[1],
            groups=self.groups,
            weights=step.weights,
            params=step.params,
            in_zero=bound.input_quant(INPUT).zero_point,
            out_zero=bound.quant.zero_point,
            low=low,
            high=high,
            in_bits=bound.input_quant(INPUT).bits,
            out_bits=bound.quant.bits,
        )

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        groups = int(rng.choice([1, 1, 2, 3]))
        depth, out = (1, groups) if rng.random() < 0.3 else (int(rng.integers(1, 9)), groups * int(rng.integers(1, 7)))
        kernel, dilations = random_pair(rng, 1, 5), random_pair(rng, 1, 3)
        top, left, bottom, right = (int(v) for v in rng.integers(0, 4, 4))
        clamp = (0.0, 6.0) if rng.random() < 0.3 else UNBOUNDED
        op = cls(random_pair(rng, 1, 4), (top, left, bottom, right), dilations, groups, clamp)
        size = [dilations[i] * (kernel[i] - 1) + int(rng.integers(1, 9)) for i in (0, 1)]
        x = random_type(rng, (int(rng.integers(1, 3)), *size, groups * depth))
        return mac_sample(op, x, (out, *kernel, depth), rng)


@dataclass(frozen=True, slots=True)
class Dense(Op):
    """Fully connected layer on (..., K) with weights (O, K): Gemm, and MatMul with a constant."""

    clamp: tuple[float, float] = UNBOUNDED

    name: ClassVar[str] = "Dense"
    layout: ClassVar[str] = "features last"
    operands: ClassVar[int | None] = 1
    weighted: ClassVar[bool] = True
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(
            lambda op, s: len(s[0]) >= 1 and len(s[1]) == 2 and s[0][-1] == s[1][1],
            "the weights are a constant matrix that matches the last axis of the input",
        ),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return (*shapes[INPUT][:-1], shapes[WEIGHT][0])

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        return finish(bound, _accumulated(self, bound, inputs), self.clamp)

    def sums(self, x: Array, w: Array, out: Shape) -> Array:
        """Return the exact int64 sums of products, without bias, of integers less their zero point."""
        return _product(*_as_floats(x, w)).reshape(out)

    def work(self, bound: Bound) -> Work:
        return Work(macs=bound.output.elements * bound.inputs[WEIGHT].shape[1])

    def rows(self, bound: Bound) -> tuple[int, int]:
        count = prod(bound.output.shape[:-1])
        return count, count

    def blocks(self, bound: Bound, limit: int, granule: int) -> list[Block]:
        return channel_blocks(bound, limit, granule)

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        assert step.block is not None
        out_c, in_c = bound.inputs[WEIGHT].shape
        low, high = clamp_limits(self.clamp, bound.quant)
        rows = step.output.hi - step.output.lo
        yield isa.Conv(
            source=step.inputs[0].address,
            in_h=rows,
            in_w=1,
            in_c=in_c,
            target=step.output.address + step.block.lo * bound.output.itemsize,
            out_h=rows,
            out_w=1,
            out_c=step.block.hi - step.block.lo,
            pitch=out_c,
            channel=step.block.lo,
            channels=out_c,
            kernel_h=1,
            kernel_w=1,
            stride_h=1,
            stride_w=1,
            dilation_h=1,
            dilation_w=1,
            pad_top=0,
            pad_left=0,
            groups=1,
            weights=step.weights,
            params=step.params,
            in_zero=bound.input_quant(INPUT).zero_point,
            out_zero=bound.quant.zero_point,
            low=low,
            high=high,
            in_bits=bound.input_quant(INPUT).bits,
            out_bits=bound.quant.bits,
        )

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        depth, out = int(rng.integers(1, 70)), int(rng.integers(1, 40))
        lead = tuple(int(v) for v in rng.integers(1, 5, int(rng.integers(0, 3))))
        x = random_type(rng, (*lead, depth))
        return mac_sample(cls(), x, (out, depth), rng)


def _accumulated(op: Conv | Dense, bound: Bound, inputs: Sequence[Array]) -> Array:
    """Return a layer's exact int64 sums, with bias."""
    x = inputs[INPUT].astype(np.float32)  # integers of 17 bits, once their zero point is gone
    x -= bound.input_quant(INPUT).zero_point
    acc = op.sums(x, inputs[WEIGHT], bound.output.shape)
    acc += inputs[BIAS]
    return acc


def _as_floats(x: Array, w: Array) -> tuple[Array, Array, int]:
    """Return integers as floats, and of how many products these hold every partial sum without rounding.

    All sums of magnitudes up to 2**24 are exact in float32, whatever the order; where that is of few, float64 it is.
    """
    reach = max(1, int(x.max()), -int(x.min())) * max(1, int(w.max()), -int(w.min()))
    kind, limit = (np.float32, 1 << 24) if reach * SHALLOW <= 1 << 24 else (np.float64, 1 << 53)
    return x.astype(kind, copy=False), w.astype(kind), limit // reach


def _product(x: Array, w: Array, depth: int) -> Array:
    """Return x @ w.T exactly, int64: sums over slices of `depth`."""
    return reduce(np.add, ((x[..., part] @ w[:, part].T).astype(np.int64) for part in _slices(x.shape[-1], depth)))


def _slices(size: int, depth: int) -> list[slice]:
    return [slice(start, start + depth) for start in range(0, size, depth)]


def _grouped_product(patches: Array, w: Array, groups: int, depth: int) -> Array:
    """Return (N, OH, OW, O) sums of patches (N, OH, OW, taps, C) against weights (O, KH, KW, C / groups)."""
    *lead, taps, channels = patches.shape
    width, out = channels // groups, w.shape[0] // groups
    if width == 1 and out == 1:
        kernel = np.ascontiguousarray(w.reshape(channels, taps).T)
        parts = (np.einsum("...tc,tc->...c", patches[..., p, :], kernel[p]) for p in _slices(taps, depth))
        return reduce(np.add, (part.astype(np.int64) for part in parts))
    sums = []
    for g in range(groups):
        part = patches[..., g * width : (g + 1) * width].reshape(*lead, taps * width)
        sums.append(_product(part, w[g * out : (g + 1) * out].reshape(out, -1), depth))
    return np.concatenate(sums, axis=-1) if groups > 1 else sums[0]


def real_bias(bias: Array, scale: Array, quant: Quant | None) -> Array:
    """Return the reals of a bias (O,): an int32 one counts in steps of input scale * weight scale."""
    if bias.dtype != np.int32 or quant is None:
        return bias.astype(np.float64)
    return np.asarray(bias.astype(np.float64) * scale * quant.scale)


def multipliers(bound: Bound) -> tuple[Array, Array]:
    """Return int32 multipliers and int8 shifts per output channel: input scale * weight scale / output scale."""
    if not bound.ratios:
        bound.ratios.append(_multipliers(bound))
    return bound.ratios[0]


def _multipliers(bound: Bound) -> tuple[Array, Array]:
    if bound.single:
        source, target = bound.input_quant(INPUT).scale, bound.quant.scale
        patterns = [float32.ratio((source, float(scale)), target)[0] for scale in bound.constants[SCALE]]
        return np.array(patterns, np.int32), np.zeros(len(patterns), np.int8)
    ratio = bound.input_quant(INPUT).scale / bound.quant.scale
    power = bound.law.power_of_two_scales
    bits = WIDE_MULTIPLIER_BITS if bound.input_quant(INPUT).bits == 16 else MULTIPLIER_BITS
    multiplier, shift = exact.encode_ratio(bound.constants[SCALE].astype(np.float64) * ratio, power, bits)
    return multiplier.astype(np.int32), shift.astype(np.int8)


def finish(bound: Bound, acc: Array, clamp: tuple[float, float]) -> Array:
    """Return the output of int64 sums (channels last): narrow accumulator, then one requantization per channel."""
    law, (multiplier, shift) = bound.law, multipliers(bound)
    wide = bound.input_quant(INPUT).bits == 16
    acc = exact.narrow(acc, law.accumulator_bits + wide * WIDE_BITS, law.wraps)
    limits = clamp_limits(clamp, bound.quant)
    if bound.single:
        return bound.result(single.requantize(acc, multiplier, bound.quant.zero_point, *limits))
    scaled = exact.requantize_wide if wide else exact.requantize
    rows, height = acc.reshape(-1, acc.shape[-1]), max(1, IN_CACHE // acc.shape[-1])
    out = np.empty(rows.shape, bound.output.dtype)
    for lo in range(0, len(rows), height):
        part = rows[lo : lo + height]
        out[lo : lo + height] = scaled(part, multiplier, shift, bound.quant.zero_point, law.mode, *limits)
    return out.reshape(acc.shape)


def channel_blocks(bound: Bound, limit: int, granule: int) -> list[Block]:
    """Cut output channels into blocks of at most `limit` bytes, at multiples of `granule` channels where they fit."""
    weights, bias = bound.constants[WEIGHT], bound.constants[BIAS]
    multiplier, shift = multipliers(bound)
    count = _block_channels(len(weights), max(1, (limit - 64) // (weights[0].size + 9)), granule)
    blocks = []
    for lo in range(0, weights.shape[0], count):
        cut = slice(lo, min(lo + count, weights.shape[0]))
        params = bias[cut].astype("<i4").tobytes() + multiplier[cut].astype("<i4").tobytes() + shift[cut].tobytes()
        blocks.append(Block(cut.start, cut.stop, params, weights[cut].reshape(-1)))
    return blocks


def _block_channels(channels: int, most: int, granule: int) -> int:
    """Return channels per block: as few blocks as `most` allows, of equal size, full granules where more than one."""
    if channels <= most:
        return channels
    if most >= granule:
        most -= most % granule
    even = -(-channels // -(-channels // most))
    return min(most, -(-even // granule) * granule)


def mac_sample(op: Conv | Dense, x: TensorType, weight_shape: Shape, rng: np.random.Generator) -> Sample:
    """Return a sample with random weights, bias and per-channel scales around a useful output range."""
    weight = rng.integers(-127, 128, weight_shape).astype(np.int8)
    bias = rng.integers(-20000, 20000, weight_shape[0]).astype(np.int32)
    scale = (2.0 ** rng.uniform(-10, -6, weight_shape[0])).astype(np.float32)
    types = tuple(TensorType(a.shape, a.dtype.name) for a in (weight, bias, scale))
    out = random_type(rng, op.infer([x.shape, weight.shape]))
    return Sample(op, (x, *types), out, {WEIGHT: weight, BIAS: bias, SCALE: scale})
