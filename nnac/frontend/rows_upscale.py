"""Rows that make more or fewer places: ConvTranspose, Resize, Upsample, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, prod
from typing import Any

import numpy as np

from nnac.frontend import views
from nnac.frontend.builder import Builder
from nnac.frontend.rows_window import AUTO_PAD, NO_NEGATIVE_PADS, ONE_PADDING, SPATIAL
from nnac.frontend.upscale import interpolate, phases, spread, transposed_kernel
from nnac.frontend.use import Refused, Row, Rule, Shape, Use, real
from nnac.ops import Conv, Dense, Reshape, Slice, Take
from nnac.ops.take import mover

# -- transposed convolution ----------------------------------------------------------------------------------------


def conv_transpose(b: Builder, use: Use) -> None:
    """Import ConvTranspose: weights (C, O / groups, KH, KW) -> (O, KH, KW, C / groups), phases as channels."""
    weights, groups, spatial = real(use.array(1)), use.get("group", 1), len(use.shape()) - 2
    kernel, ones = weights.shape[2:], (1,) * spatial
    if weights.ndim != spatial + 2 or tuple(use.get("kernel_shape", kernel)) != kernel:
        raise Refused("weights and input have the same rank, and kernel_shape is that of the weights")
    if len(weights) != use.shape()[1] or groups < 1 or len(weights) % groups:
        raise Refused("weights have one kernel per input channel, and group divides these")
    strides, dilations = use.ints("strides", ones), use.ints("dilations", ones)
    if min(*strides, *dilations) < 1:
        raise Refused("strides and dilations are at least 1")
    sides = zip(use.shape()[2:], use.out()[2:], kernel, strides, dilations, _before(use, kernel), strict=True)
    axes = [phases(*side) for side in sides] + [phases(1, 1, 1, 1, 1, 0)] * (2 - spatial)
    weights = weights.reshape(groups, -1, weights.shape[1], *(*kernel, 1)[:2])
    weights = weights.transpose(0, 2, 3, 4, 1).reshape(-1, *weights.shape[3:], weights.shape[1])
    bias = real(use.array(2)) if use.given(2) else np.zeros(len(weights))
    if bias.shape != (len(weights),):
        raise Refused("the bias has one value per output channel")
    x = b.view(use.inputs[0], views.channels_last(use.shape()), "nhwc")
    spread(b, use, x, (axes[0], axes[1]), transposed_kernel(weights, axes[0], axes[1]), bias, groups)


def _before(use: Use, kernel: Shape) -> Sequence[int]:
    """Return how many places are cut off in front of each axis of the full result."""
    spatial, mode = use.shape()[2:], use.get("auto_pad", "NOTSET")
    ones = (1,) * len(spatial)
    if mode == "VALID":
        return (0,) * len(spatial)
    if mode in ("NOTSET", "") and not use.get("output_shape"):
        return use.ints("pads", (0,) * 2 * len(spatial))[: len(spatial)]
    given = zip(spatial, use.out()[2:], kernel, use.ints("strides", ones), use.ints("dilations", ones), strict=True)
    extra = use.ints("output_padding", (0,) * len(spatial))
    total = [max(s * (n - 1) + e + d * (k - 1) + 1 - m, 0) for (n, m, k, s, d), e in zip(given, extra, strict=True)]
    return [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total]


# -- resizing ------------------------------------------------------------------------------------------------------


MODES: dict[str, Callable[[np.float32, np.float32, int, int], Any]] = {
    "half_pixel": lambda i, scale, size, out: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, size, out: (i + 0.5) / scale - 0.5 if out > 1 else 0.0,
    "half_pixel_symmetric": lambda i, scale, size, out: size / 2 * (1 - out / (size * scale)) + (i + 0.5) / scale - 0.5,
    "asymmetric": lambda i, scale, size, out: i / scale,
    "align_corners": lambda i, scale, size, out: i * (size - 1) / (out - 1) if out > 1 else 0.0,
}
"""Place in the input of an output place, by `coordinate_transformation_mode`; in float32, as onnxruntime rounds it."""

NEAREST: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda x: ceil(x - 0.5),
    "round_prefer_ceil": lambda x: floor(x + 0.5),
    "floor": floor,
    "ceil": ceil,
}


def resize(b: Builder, use: Use) -> None:
    """Import Resize and Upsample: nearest as a take; linear as the convolution or the dense layer that it is."""
    shape, out = use.shape(), use.out()
    mode = use.get("coordinate_transformation_mode", "half_pixel" if use.opset > 10 else "asymmetric")
    scales = _scales(use)
    lines = [
        [float(MODES[mode](np.float32(i), np.float32(scale), n, m)) for i in range(m)]
        for scale, n, m in zip(scales, shape, out, strict=True)
    ]
    if use.get("mode", "nearest") == "linear":
        interpolate(b, use, lines)
        return
    named = use.get("nearest_mode", "round_prefer_floor")
    rounding = [named if use.opset > 10 else "floor" if scale >= 1 else "ceil" for scale in scales]
    picks = tuple(
        tuple(min(max(NEAREST[name](x), 0), n - 1) for x in line)
        for name, line, n in zip(rounding, lines, shape, strict=True)
    )
    b.put(use, mover(picks, shape), [b.value(use.inputs[0])])


def _scales(use: Use) -> Sequence[float]:
    """Return the scales that the node gives, else those between its shapes."""
    given = use.get("scales")
    for index in (1,) if use.opset < 11 else (2,):
        found = use.constant(index)
        given = found.tolist() if found is not None and found.size else given
    if given is None or len(given) != len(use.shape()):
        return [m / n for n, m in zip(use.shape(), use.out(), strict=True)]
    return [float(scale) for scale in given]


# -- blocks of space and channels ----------------------------------------------------------------------------------


def depth_to_space(b: Builder, use: Use) -> None:
    """Import DepthToSpace on channels last: block rows and columns move between the axes of space."""
    size, shape = int(use.get("blocksize", 1)), use.shape()
    n, c, h, w = shape
    depth = c // (size * size)
    split = (n, h, w, depth, size, size) if use.get("mode", "DCR") == "CRD" else (n, h, w, size, size, depth)
    perm = (0, 1, 4, 2, 5, 3) if use.get("mode", "DCR") == "CRD" else (0, 1, 3, 2, 4, 5)
    steps = (*views.channels_last(shape), ("reshape", split), *views.transpose(perm))
    x = b.view(use.inputs[0], steps)
    b.put(use, Reshape((n, h * size, w * size, depth)), [x], views.channels_last(use.out()), suffix="nhwc")


def space_to_depth(b: Builder, use: Use) -> None:
    """Import SpaceToDepth on channels last."""
    size, shape = int(use.get("blocksize", 1)), use.shape()
    n, c, h, w = shape
    split = (n, h // size, size, w // size, size, c)
    steps = (*views.channels_last(shape), ("reshape", split), *views.transpose((0, 1, 3, 2, 4, 5)))
    out = (n, h // size, w // size, size * size * c)
    b.put(use, Reshape(out), [b.view(use.inputs[0], steps)], views.channels_last(use.out()), suffix="nhwc")


_BLOCKS = Rule(
    lambda u: len(u.shape()) == 4 and prod(u.shape()) == prod(u.out()) and u.get("blocksize", 0) >= 1,
    "the input has rank 4 and divides into blocks",
)
_RESIZE = (
    Rule(lambda u: all(u.fixed(i) for i in range(1, 4)), "roi, scales and sizes are constants"),
    Rule(lambda u: u.get("mode", "nearest") in ("nearest", "linear"), "the mode is nearest or linear"),
    Rule(
        lambda u: u.get("coordinate_transformation_mode", "asymmetric") in MODES,
        f"coordinate_transformation_mode is one of {', '.join(MODES)}",
    ),
    Rule(lambda u: not u.get("antialias", 0), "antialias is 0"),
    Rule(lambda u: not u.get("exclude_outside", 0), "exclude_outside is 0"),
    Rule(lambda u: u.get("keep_aspect_ratio_policy", "stretch") == "stretch", "keep_aspect_ratio_policy is stretch"),
)

ROWS = {
    "ConvTranspose": Row(
        conv_transpose,
        (Conv, Slice),
        ("auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"),
        (
            SPATIAL,
            AUTO_PAD,
            ONE_PADDING,
            NO_NEGATIVE_PADS,
            Rule(lambda u: u.given(1) and u.fixed(1) and u.fixed(2), "weights and bias are constants"),
        ),
    ),
    "Resize": Row(
        resize,
        (Take, Conv, Dense),
        (
            "antialias",
            "axes",
            "coordinate_transformation_mode",
            "cubic_coeff_a",
            "exclude_outside",
            "extrapolation_value",
            "keep_aspect_ratio_policy",
            "mode",
            "nearest_mode",
        ),
        _RESIZE,
    ),
    "Upsample": Row(resize, (Take, Conv, Dense), ("mode", "scales"), _RESIZE[:2]),
    "DepthToSpace": Row(depth_to_space, (Reshape,), ("blocksize", "mode"), (_BLOCKS,)),
    "SpaceToDepth": Row(space_to_depth, (Reshape,), ("blocksize",), (_BLOCKS,)),
}
