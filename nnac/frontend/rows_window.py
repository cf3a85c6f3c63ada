"""Rows with windows over space: Conv, the pools, BatchNormalization, ReduceMean, ReduceMax."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import cast

import numpy as np

from nnac.frontend import views
from nnac.frontend.builder import Builder
from nnac.frontend.rows_quant import layer
from nnac.frontend.use import Refused, Row, Rule, Shape, Use, normalized, real
from nnac.frontend.views import Steps
from nnac.ops import AveragePool, Conv, MaxPool, Reshape
from nnac.types import Array

Pair = tuple[int, int]
Quad = tuple[int, int, int, int]

AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")

SPATIAL = Rule(lambda u: len(u.shape()) in (3, 4), "the input is 1-D or 2-D (rank 3 or 4 in ONNX)")
AUTO_PAD = Rule(lambda u: u.get("auto_pad", "NOTSET") in AUTO_PADS, f"auto_pad is one of {', '.join(AUTO_PADS)}")
ONE_PADDING = Rule(
    lambda u: u.get("auto_pad", "NOTSET") in ("NOTSET", "") or not any(u.get("pads", ())),
    "pads are given only with auto_pad NOTSET",
)
NO_NEGATIVE_PADS = Rule(lambda u: all(p >= 0 for p in u.get("pads", ())), "pads are not negative")
CEIL_WINDOW = "with ceil_mode the last window starts before the input ends (onnxruntime drops it, ONNX does not)"
WINDOW_RULES = (SPATIAL, AUTO_PAD, ONE_PADDING, NO_NEGATIVE_PADS)


@dataclass(frozen=True, slots=True)
class Window:
    """Kernel geometry in the device's two axes: a 1-D window runs along H, with W = 1."""

    kernel: Pair
    strides: Pair
    dilations: Pair
    pads: Quad
    ceil: Quad


def window(use: Use, kernel: Shape) -> Window:
    """Return the geometry of a use with `kernel`, its padding made explicit.

    `pads` are ONNX's; `ceil` are those with the bottom and right grown so that the floor formula gives the shape that
    ceil_mode asks for.
    """
    spatial = use.shape()[2:]
    ones = (1,) * len(spatial)
    if min((*kernel, *use.ints("strides", ones), *use.ints("dilations", ones))) < 1 or len(kernel) != len(spatial):
        raise Refused("kernel, strides and dilations are at least 1, one value per axis of space")
    strides, dilations = use.ints("strides", ones), use.ints("dilations", ones)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    before, after = _padding(use, reach, strides)
    grown = after
    if use.get("ceil_mode", 0):
        last = [(out - 1) * s for out, s in zip(use.out()[2:], strides, strict=True)]
        if any(start >= size + b for start, size, b in zip(last, spatial, before, strict=True)):
            raise Refused(CEIL_WINDOW)
        grown = [
            max(start + r - size - b, a)
            for start, r, size, b, a in zip(last, reach, spatial, before, after, strict=True)
        ]
    return Window(_pair(kernel, 1), _pair(strides, 1), _pair(dilations, 1), _quad(before, after), _quad(before, grown))


def _padding(use: Use, reach: list[int], strides: Shape) -> tuple[list[int], list[int]]:
    """Return the pads before and after each axis of space."""
    spatial, mode = use.shape()[2:], use.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * len(spatial), [0] * len(spatial)
    if mode in ("NOTSET", ""):
        pads = list(use.ints("pads", (0,) * 2 * len(spatial)))
        return pads[: len(spatial)], pads[len(spatial) :]
    total = [max((-(-size // s) - 1) * s + r - size, 0) for size, s, r in zip(spatial, strides, reach, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _pair(values: Shape, rest: int) -> Pair:
    return cast(Pair, (*values, rest)[:2])


def _quad(before: list[int], after: list[int]) -> Quad:
    return (*_pair(tuple(before), 0), *_pair(tuple(after), 0))


def conv(b: Builder, use: Use) -> None:
    """Import Conv: weights OIHW -> OHWI, a bias in any case."""
    weights = use.array(1)
    if weights.ndim != len(use.shape()):
        raise Refused("weights and input have the same rank")
    kernel = weights.shape[2:]
    if tuple(use.get("kernel_shape", kernel)) != kernel:
        raise Refused("kernel_shape is that of the weights")
    found, bias = window(use, kernel), use.constant(2)
    weights = weights.reshape(*weights.shape, 1) if weights.ndim == 3 else weights
    bias = np.zeros(len(weights)) if bias is None else bias
    if bias.shape != (len(weights),):
        raise Refused("the bias has one value per output channel")
    op = Conv(found.strides, found.pads, found.dilations, use.get("group", 1))
    x = b.view(use.inputs[0], views.channels_last(use.shape()), "nhwc")
    names = layer(b, use, x, (1, lambda w: w.reshape(weights.shape).transpose(0, 2, 3, 1)), 2, op.groups) or [
        x,
        b.constant(f"{use.inputs[1]}.ohwi", weights.transpose(0, 2, 3, 1)),
        b.constant(use.inputs[2] if use.given(2) else f"{use.name}.bias", bias),
    ]
    b.put(use, op, names, views.channels_last(use.out()), suffix="nhwc")


def depthwise(b: Builder, use: Use, scale: Array, shift: Array, source: str | None = None) -> None:
    """Add scale * x + shift per channel (axis 1) as a depthwise 1x1 convolution."""
    channels = len(scale)
    names = [
        b.view(source or use.inputs[0], views.channels_last(use.out()), "nhwc"),
        b.constant(f"{use.name}.scale", scale.reshape(channels, 1, 1, 1)),
        b.constant(f"{use.name}.shift", shift),
    ]
    b.put(use, Conv(groups=channels), names, views.channels_last(use.out()), suffix="nhwc")


def batch_normalization(b: Builder, use: Use) -> None:
    """Import BatchNormalization as scale and shift per channel."""
    scale, shift, mean, variance = (real(use.array(i)).reshape(-1) for i in range(1, 5))
    if not len(scale) == len(shift) == len(mean) == len(variance) == use.shape()[1]:
        raise Refused("scale, bias, mean and variance have one value per channel")
    spread = variance + use.get("epsilon", 1e-5)
    if (spread <= 0).any():
        raise Refused("variance + epsilon is positive")
    factor = scale / np.sqrt(spread)
    depthwise(b, use, factor, shift - mean * factor)


def max_pool(b: Builder, use: Use) -> None:
    """Import MaxPool."""
    found = window(use, tuple(use.get("kernel_shape", ())))
    op = MaxPool(found.kernel, found.strides, found.ceil, found.dilations)
    _put_pool(b, use, op)


def average_pool(b: Builder, use: Use) -> None:
    """Import AveragePool; the divisor counts ONNX's pads or none, never what ceil_mode adds."""
    found = window(use, tuple(use.get("kernel_shape", ())))
    counted = found.pads if use.get("count_include_pad", 0) else (0, 0, 0, 0)
    _put_pool(b, use, AveragePool(found.kernel, found.strides, found.ceil, found.dilations, counted=counted))


def global_max_pool(b: Builder, use: Use) -> None:
    """Import GlobalMaxPool: one window over the whole extent."""
    _put_pool(b, use, MaxPool(_pair(use.shape()[2:], 1)))


def global_average_pool(b: Builder, use: Use) -> None:
    """Import GlobalAveragePool: one window over the whole extent."""
    _put_pool(b, use, AveragePool(_pair(use.shape()[2:], 1)))


def _put_pool(b: Builder, use: Use, op: MaxPool | AveragePool) -> None:
    source = b.view(use.inputs[0], views.channels_last(use.shape()), "nhwc")
    b.put(use, op, [source], views.channels_last(use.out()), suffix="nhwc")


def reduce(b: Builder, use: Use) -> None:
    """Import ReduceMean, ReduceSum or ReduceMax as a pool over a view that has the reduced axes as H."""
    axes = _axes(use)
    if not axes:
        b.put(use, Reshape(use.shape()), [b.value(use.inputs[0])])
        return
    shape = use.shape()
    if len(shape) == 4 and axes == (2, 3):
        steps, kernel = views.channels_last(shape), _pair(shape[2:], 1)
        out: Shape = (shape[0], 1, 1, shape[1])
    else:
        steps, kernel, out = _reduction(shape, axes)
    pooled = views.reshape(use.out(), out)
    if len(shape) == 4 and axes == (2, 3) and len(use.out()) == 4:
        pooled = views.channels_last(use.out())
    op: MaxPool | AveragePool = MaxPool(kernel)
    if use.op_type != "ReduceMax":
        op = AveragePool(kernel, factor=float(prod(kernel)) if use.op_type == "ReduceSum" else 1.0)
    b.put(use, op, [b.view(use.inputs[0], steps, "nhwc")], pooled, suffix="nhwc")


def _axes(use: Use) -> Shape:
    """Return the reduced axes in order; none when the node is an identity."""
    rank, found = len(use.shape()), use.numbers("axes", 1)
    if not found:
        return () if use.get("noop_with_empty_axes", 0) else tuple(range(rank))
    axes = tuple(sorted(normalized(axis, rank) for axis in found))
    if len(set(axes)) < len(axes):
        raise Refused("axes name an axis once")
    return axes


def _reduction(shape: Shape, axes: Shape) -> tuple[Steps, Pair, Shape]:
    """Return the view, the kernel and the pooled shape: neighbouring axes need no transpose."""
    reduced = prod(shape[a] for a in axes)
    if axes == tuple(range(axes[0], axes[0] + len(axes))):
        lead, tail = prod(shape[: axes[0]]), prod(shape[axes[-1] + 1 :])
        return views.reshape(shape, (lead, reduced, 1, tail)), (reduced, 1), (lead, 1, 1, tail)
    kept = tuple(a for a in range(len(shape)) if a not in axes)
    steps = views.transpose((*axes, *kept))
    tail = prod(shape[a] for a in kept)
    view: Shape = (1, reduced, 1, tail)
    return (*steps, *views.reshape(views.apply(steps, shape), view)), (reduced, 1), (1, 1, 1, tail)


_POOL = ("auto_pad", "kernel_shape", "strides", "pads", "ceil_mode", "dilations")
_REDUCTION = (
    ("axes", "keepdims", "noop_with_empty_axes"),
    (
        Rule(lambda u: u.fixed(1), "axes are constants"),
        Rule(lambda u: len(u.shape()) >= 1, "the input has at least one axis"),
    ),
)

ROWS = {
    "Conv": Row(
        conv,
        (Conv,),
        ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"),
        (*WINDOW_RULES, Rule(lambda u: u.given(1) and u.fixed(1) and u.fixed(2), "weights and bias are constants")),
        Conv.constraints,
    ),
    "BatchNormalization": Row(
        batch_normalization,
        (Conv,),
        ("epsilon", "momentum", "spatial", "training_mode", "is_test"),
        (
            Rule(lambda u: 2 <= len(u.shape()) <= 4, "the input has rank 2, 3 or 4"),
            Rule(
                lambda u: all(u.given(i) and u.fixed(i) for i in range(1, 5)),
                "scale, bias, mean and variance are constants",
            ),
            Rule(lambda u: u.get("training_mode", 0) == 0 and u.unused(1), "inference only: training_mode is 0"),
            Rule(lambda u: u.get("spatial", 1) == 1, "spatial is 1"),
        ),
    ),
    "MaxPool": Row(
        max_pool,
        (MaxPool,),
        (*_POOL, "storage_order"),
        (
            *WINDOW_RULES,
            Rule(lambda u: u.unused(1), "the output Indices is not used"),
            Rule(lambda u: u.get("storage_order", 0) == 0, "storage_order is 0"),
        ),
        MaxPool.constraints,
    ),
    "AveragePool": Row(
        average_pool, (AveragePool,), (*_POOL, "count_include_pad"), WINDOW_RULES, AveragePool.constraints
    ),
    "GlobalMaxPool": Row(global_max_pool, (MaxPool,), (), (SPATIAL,)),
    "GlobalAveragePool": Row(global_average_pool, (AveragePool,), (), (SPATIAL,)),
    "ReduceMean": Row(reduce, (AveragePool,), *_REDUCTION),
    "ReduceSum": Row(reduce, (AveragePool,), *_REDUCTION),
    "ReduceMax": Row(reduce, (MaxPool,), *_REDUCTION),
}
