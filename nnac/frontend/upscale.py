"""Convolutions that make more places than they read: ConvTranspose, linear interpolation by whole factors.

Both are one ordinary convolution that computes all phases of the output as channels, and a move of these channels into
space: no multiplication by inserted zeros, one requantization, and the exact integers of the definition. Of a kernel
with K taps and stride s each phase has ceil(K / s) taps or one less; only such missing taps are zero weights. A
convolution per phase would save those, and cost s times as many passes over the input with s times fewer channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, gcd
from typing import NamedTuple

import numpy as np

from nnac.frontend import views
from nnac.frontend.builder import Builder
from nnac.frontend.rows_dense import along_axis
from nnac.frontend.use import Refused, Use
from nnac.frontend.views import Steps
from nnac.graph import Origin
from nnac.ops import Conv, Reshape, Slice, Take
from nnac.types import Array


class Phases(NamedTuple):
    """One axis of a transposed convolution as an ordinary one with `stride` outputs per place.

    Attributes:
        taps: (stride, taps of the ordinary kernel): the tap of the transposed kernel, -1 for none.
        dilation, before, after: of the ordinary convolution.
        first: place in the spread output where the wanted one begins.
    """

    stride: int
    taps: Array
    dilation: int
    before: int
    after: int
    first: int


def phases(size: int, out: int, kernel: int, stride: int, dilation: int, pad: int) -> Phases:
    """Return the phases of one axis.

    Output place o of the transposed convolution takes input place i through tap k where o + pad = i * stride +
    k * dilation. With o + pad = q * stride + r this is i = q - (k * dilation - r) / stride: a convolution over q per r.
    """
    backs = [divmod(k * dilation, stride) for k in range(kernel)]
    reach, step = backs[-1][0], gcd(*(back for back, _ in backs)) or 1
    taps = np.full((stride, reach // step + 1), -1)
    for k, (back, r) in enumerate(backs):
        taps[r, (reach - back) // step] = k
    first, last = min(reach, pad // stride), (pad + out - 1) // stride
    return Phases(stride, taps, step, reach - first, max(last - (size - 1), 0), pad - first * stride)


def transposed_kernel(weights: Array, rows: Phases, columns: Phases) -> Array:
    """Return (O, phase, KH, phase, KW, C / groups) of a transposed kernel (O, KH, KW, C / groups)."""
    padded = np.pad(weights, ((0, 0), (0, 1), (0, 1), (0, 0)))  # tap -1 is zero
    return np.asarray(padded[:, rows.taps][:, :, :, columns.taps])


def spread(b: Builder, use: Use, x: str, axes: tuple[Phases, Phases], kernel: Array, bias: Array, groups: int) -> None:
    """Add the convolution of all phases on `x` (N, H, W, C), and the move of the phases into space.

    Args:
        kernel: (O, phase, KH, phase, KW, C / groups).
        bias: (O,).
    """
    (rows, columns), each = axes, len(kernel) // groups
    weights = kernel.reshape(groups, each, *kernel.shape[1:]).transpose(0, 2, 4, 1, 3, 5, 6)
    biases = np.repeat(bias.reshape(groups, 1, each), rows.stride * columns.stride, axis=1)
    names = [
        x,
        b.constant(f"{use.name}.phases", weights.reshape(-1, *weights.shape[4:])),
        b.constant(f"{use.name}.bias", biases.reshape(-1)),
    ]
    pads = (rows.before, columns.before, rows.after, columns.after)
    op = Conv(pads=pads, dilations=(rows.dilation, columns.dilation), groups=groups)
    n, h, w, _ = op.infer([b.draft.values[name].shape for name in names])
    apart, turn = (n * h, w, groups, rows.stride, columns.stride, each), views.transpose((0, 3, 1, 4, 2, 5))
    placed = (n, h * rows.stride, w * columns.stride, len(kernel))
    steps = (("reshape", apart), *turn, ("reshape", placed))
    _place(b, use, op, names, steps, (rows.first, columns.first))


def _place(b: Builder, use: Use, op: Conv, names: list[str], steps: Steps, first: tuple[int, int]) -> None:
    """Add the convolution, the moves of its phases into space, and the cut of the wanted part."""
    last = views.channels_last(use.out())
    wanted = views.apply(last, use.out())
    whole = steps[-1][1] == wanted
    origin = Origin(use.outputs[0], (*steps, *views.invert(last, use.out()))) if whole else None
    spread_out = b.view(b.emit(use, op, names, f"{use.outputs[0]}.phases", origin), steps)
    cut = Reshape(wanted) if whole else Slice((0, *first, 0), (1,) * 4, wanted)
    b.put(use, cut, [spread_out], last, suffix="nhwc")


# -- interpolation -------------------------------------------------------------------------------------------------


def interpolate(b: Builder, use: Use, lines: Sequence[Sequence[float]]) -> None:
    """Import linear interpolation: `lines` has, per axis, the place in the input of every output place.

    By whole factors over space it is a depthwise convolution of the input with its edges repeated once; along a single
    axis by any factor it is a dense layer.
    """
    shape = use.shape()
    found = [_phase_weights(line, n) for line, n in zip(lines, shape, strict=True)]
    resized = [axis for axis, line in enumerate(lines) if list(line) != list(range(shape[axis]))]
    space = (*found[2:], np.array([[0.0, 1.0, 0.0]]))[:2]
    if len(shape) in (3, 4) and all(axis >= 2 and found[axis] is not None for axis in resized):
        _convolve(b, use, [weights for weights in space if weights is not None])
    elif len(resized) == 1:
        axis = resized[0]
        along_axis(b, use, axis, _matrix(lines[axis], shape[axis]))
    else:
        raise Refused(
            "linear interpolation is by whole factors over the axes of space (half_pixel or asymmetric), or along one "
            "axis"
        )


def _phase_weights(line: Sequence[float], size: int) -> Array | None:
    """Return (factor, 3) weights of the input places before, at and behind; None where the factor is not whole."""
    factor = len(line) // size
    if len(line) % size or not factor:
        return None
    ahead = np.array(line).reshape(size, factor) - np.arange(size)[:, None]
    if np.abs(ahead - ahead[0]).max() > 1e-6:
        return None
    weights = np.zeros((factor, 3))
    for phase, x in enumerate(ahead[0]):
        whole = floor(x)
        if not -1 <= whole <= 0:
            return None
        weights[phase, whole + 1 : whole + 3] = (1 - (x - whole), x - whole)
    return weights


def _convolve(b: Builder, use: Use, weights: Sequence[Array]) -> None:
    shape, channels = use.shape(), use.shape()[1]
    x = b.view(use.inputs[0], views.channels_last(shape), "nhwc")
    sides = b.draft.values[x].shape
    edges = [np.flatnonzero(each.any(axis=0)) - 1 for each in weights]
    picks = [
        tuple(np.arange(e.min(), n + e.max()).clip(0, n - 1).tolist()) for e, n in zip(edges, sides[1:3], strict=True)
    ]
    if any(e.min() or e.max() for e in edges):
        x = b.emit(use, Take(((), picks[0], picks[1], ())), [x], f"{use.outputs[0]}.edges", None)
    taps = [each[:, e.min() + 1 : e.max() + 2] for each, e in zip(weights, edges, strict=True)]
    kernel = np.einsum("ij,kl->ijkl", *taps)[None, ..., None].repeat(channels, axis=0)
    axes = [Phases(len(each), np.zeros((0, 0)), 1, 0, 0, 0) for each in weights]
    spread(b, use, x, (axes[0], axes[1]), kernel, np.zeros(channels), channels)


def _matrix(line: Sequence[float], size: int) -> Array:
    """Return (out, in) weights of the interpolation along one axis, edges repeated."""
    matrix = np.zeros((len(line), size))
    for i, x in enumerate(line):
        whole = floor(x)
        for place, weight in ((whole, 1 - (x - whole)), (whole + 1, x - whole)):
            matrix[i, min(max(place, 0), size - 1)] += weight
    return matrix
