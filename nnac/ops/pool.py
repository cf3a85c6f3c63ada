"""Pooling over windows of (N, H, W, C)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nnac import float32, isa
from nnac.numerics import average_bits, encode_ratio
from nnac.ops import exact, single
from nnac.ops.base import (
    UNBOUNDED,
    Bound,
    Constraint,
    Op,
    Rows,
    Sample,
    Shape,
    Step,
    Work,
    activation,
    clamp_limits,
    random_pair,
    random_type,
)
from nnac.ops.conv import PAD_LIMIT, window_out, window_reach, window_rows
from nnac.types import Array, TensorType

MAX, AVERAGE = 0, 1


@dataclass(frozen=True, slots=True)
class _Pool(Op):
    """Windows shared by both kinds; see the subclasses."""

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    clamp: tuple[float, float] = UNBOUNDED

    layout: ClassVar[str] = "NHWC"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: len(s[0]) == 4, "the input is 1-D or 2-D (rank 3 or 4 in ONNX)"),
        Constraint(
            lambda op, s: all(1 <= v <= PAD_LIMIT for v in (*op.kernel, *op.strides, *op.dilations)),
            f"kernel, strides and dilations are 1 to {PAD_LIMIT}",
        ),
        Constraint(
            lambda op, s: (
                all(0 <= op.pads[i] <= op.dilations[i % 2] * (op.kernel[i % 2] - 1) for i in (0, 1))
                and all(0 <= p <= PAD_LIMIT for p in op.pads)
            ),
            "top and left pads are smaller than the kernel, so that each window has a real tap",
        ),
        Constraint(lambda op, s: min(op.infer(s)) >= 1, "the kernel fits into the padded input"),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        n, h, w, c = shapes[0]
        top, left, bottom, right = self.pads
        return (
            n,
            window_out(h, self.kernel[0], self.strides[0], self.dilations[0], top, bottom),
            window_out(w, self.kernel[1], self.strides[1], self.dilations[1], left, right),
            c,
        )

    def windows(self, x: Array, out: Shape, fill: int) -> Array:
        """Return (N, OH, OW, C, taps) windows of `x` with padding `fill`."""
        top, left, _, _ = self.pads
        need = [(out[1 + i] - 1) * self.strides[i] + self.dilations[i] * (self.kernel[i] - 1) + 1 for i in (0, 1)]
        grown = [(top, max(need[0] - top - x.shape[1], 0)), (left, max(need[1] - left - x.shape[2], 0))]
        x = np.pad(x, ((0, 0), *grown, (0, 0)), constant_values=fill)
        taps = [
            x[:, i * self.dilations[0] :, j * self.dilations[1] :][:, :: self.strides[0], :: self.strides[1]][
                :, : out[1], : out[2]
            ]
            for i in range(self.kernel[0])
            for j in range(self.kernel[1])
        ]
        return np.stack(taps, axis=-1)

    def work(self, bound: Bound) -> Work:
        return Work(elements=bound.output.elements * self.kernel[0] * self.kernel[1])

    def rows(self, bound: Bound) -> tuple[int, int]:
        n, h, _, _ = bound.output.shape
        return n * h, h

    def operand_rows(self, bound: Bound) -> tuple[int, ...]:
        n, h, _, _ = bound.inputs[0].shape
        return (n * h,)

    def input_rows(self, bound: Bound, rows: Rows) -> tuple[Rows | None, ...]:
        out_h, in_h = bound.output.shape[1], bound.inputs[0].shape[1]
        return (window_rows(rows, out_h, in_h, self.kernel[0], self.strides[0], self.dilations[0], self.pads[0]),)

    def most_rows(self, bound: Bound, rows: int) -> tuple[int | None, ...]:
        reach = window_reach(rows, self.kernel[0], self.strides[0], self.dilations[0])
        return (min(bound.inputs[0].shape[1], reach),)

    def instruction(
        self, bound: Bound, step: Step, kind: int, counted: Shape, ratio: tuple[int, int], over: int = 0
    ) -> isa.Pool:
        """Return the instruction of one stripe; `counted` is as in `AveragePool`."""
        _, in_h, in_w, channels = bound.inputs[0].shape
        _, out_h, out_w, _ = bound.output.shape
        source, target = step.inputs[0], step.output
        first_window = (target.lo % out_h) * self.strides[0] - self.pads[0]
        low, high = clamp_limits(self.clamp, bound.quant)
        return isa.Pool(
            kind=kind,
            source=source.address,
            in_h=source.hi - source.lo,
            in_w=in_w,
            channels=channels,
            target=target.address,
            out_h=target.hi - target.lo,
            out_w=out_w,
            kernel_h=self.kernel[0],
            kernel_w=self.kernel[1],
            stride_h=self.strides[0],
            stride_w=self.strides[1],
            dilation_h=self.dilations[0],
            dilation_w=self.dilations[1],
            pad_top=source.lo % in_h - first_window,
            pad_left=self.pads[1],
            count_pads=int(any(counted)),
            padded_h=in_h + counted[2] - first_window,
            padded_w=in_w + counted[3] + self.pads[1],
            in_zero=bound.input_quant(0).zero_point,
            out_zero=bound.quant.zero_point,
            multiplier=ratio[0],
            shift=ratio[1],
            over=over,
            low=low,
            high=high,
            in_bits=bound.input_quant(0).bits,
            out_bits=bound.quant.bits,
        )


@dataclass(frozen=True, slots=True)
class MaxPool(_Pool):
    """Largest value of each window; padding never wins. Input and output share their quantization."""

    name: ClassVar[str] = "MaxPool"

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        low, high = clamp_limits(self.clamp, bound.quant)
        windows = self.windows(inputs[0].astype(np.int64), bound.output.shape, bound.quant.low)
        return bound.result(exact.saturate(windows.max(axis=-1), low, high))

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        yield self.instruction(bound, step, MAX, (0, 0, 0, 0), (1, 0))

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        op, x = _random(cls, rng, dilate=True)
        assert x.quant is not None
        return Sample(op, (x,), activation(op.infer([x.shape]), x.quant), {})


@dataclass(frozen=True, slots=True)
class AveragePool(_Pool):
    """Mean of each window (or a multiple of it: the sum), as an exact quotient rounded once.

    Attributes:
        counted: the part of `pads` that counts as zeros in the divisor: nothing, or all of it but what ceil mode added
            below and to the right.
        factor: positive; what the mean is multiplied with.
    """

    counted: tuple[int, int, int, int] = (0, 0, 0, 0)
    factor: float = 1.0

    name: ClassVar[str] = "AveragePool"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        *_Pool.constraints,
        Constraint(lambda op, s: op.dilations == (1, 1), "an average is not dilated"),
    )

    def _ratio(self, bound: Bound) -> tuple[int, int]:
        quant = bound.input_quant(0)
        if bound.single:
            scales = (quant.scale, self.factor)
            return float32.ratio(scales, bound.quant.scale if self._whole(bound) else 1.0)[0], bound.lifted
        bits = average_bits(self.kernel[0] * self.kernel[1], quant.bits)
        if not bound.law.power_of_two_scales:
            return encode_ratio(self.factor * quant.scale / bound.quant.scale, False, bits)
        multiplier, shift = encode_ratio(quant.scale / bound.quant.scale, True, bits)
        return multiplier * int(self.factor), shift  # a sum is not divided: its factor cancels the mean's divisor

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        x = inputs[0].astype(np.int64) - bound.input_quant(0).zero_point
        taps, counts = self.windows(x, bound.output.shape, 0), self.counts(bound)
        (multiplier, shift), zero_point = self._ratio(bound), bound.quant.zero_point
        limits = clamp_limits(self.clamp, bound.quant)
        over = self._over(bound)
        if over:
            lift = float32.lift_of(shift)
            return bound.result(single.window(taps, counts, multiplier, over, zero_point, *limits, lift))
        total = taps.sum(axis=-1)
        if bound.single:
            return bound.result(single.average(total, counts, multiplier, zero_point, *limits))
        return bound.result(exact.average(total, counts, multiplier, shift, zero_point, bound.law.mode, *limits))

    def _whole(self, bound: Bound) -> bool:
        """Tell whether there is one window, the whole input, as in a global average."""
        return self.kernel == bound.inputs[0].shape[1:3] and not any(self.pads)

    def _over(self, bound: Bound) -> int:
        """Return the bits of the output's scale where `float32.window` holds, else 0."""
        return 0 if not bound.single or self._whole(bound) else float32.pattern_of(bound.quant.scale)

    def counts(self, bound: Bound) -> Array:
        """Return (1, OH, OW, 1): by how many taps each window is divided."""
        sides = []
        for axis in (0, 1):
            size, out = bound.inputs[0].shape[1 + axis], bound.output.shape[1 + axis]
            taps = (
                np.arange(out)[:, None] * self.strides[axis]
                - self.pads[axis]
                + np.arange(self.kernel[axis]) * self.dilations[axis]
            )
            inside = (taps >= -self.counted[axis]) & (taps < size + self.counted[axis + 2])
            sides.append(inside.sum(axis=1))
        return np.asarray(sides[0][:, None] * sides[1])[None, :, :, None]

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        yield self.instruction(bound, step, AVERAGE, self.counted, self._ratio(bound), self._over(bound))

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        op, x = _random(cls, rng, dilate=False)
        if rng.random() < 0.5:
            factor = float(rng.choice([1.0, op.kernel[0] * op.kernel[1]]))
            op = cls(op.kernel, op.strides, op.pads, op.dilations, op.clamp, op.pads, factor)
        return Sample(op, (x,), random_type(rng, op.infer([x.shape])), {})


def _random(cls: type[_Pool], rng: np.random.Generator, dilate: bool) -> tuple[_Pool, TensorType]:
    kernel, dilations = random_pair(rng, 1, 5), random_pair(rng, 1, 3) if dilate else (1, 1)
    reach = [dilations[i] * (kernel[i] - 1) for i in (0, 1)]
    top, left, bottom, right = (int(rng.integers(0, reach[i % 2] + 1)) for i in range(4))
    clamp = (0.0, 1.0) if rng.random() < 0.2 else UNBOUNDED
    op = cls(kernel, random_pair(rng, 1, 4), (top, left, bottom, right), dilations, clamp)
    size = [int(rng.integers(reach[i] + 1, reach[i] + 8)) for i in (0, 1)]
    return op, random_type(rng, (int(rng.integers(1, 3)), *size, int(rng.integers(1, 9))))
