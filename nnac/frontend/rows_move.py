"""Rows that only move data: reshapes, Transpose, Concat, Split, Slice, Pad; and what is an identity at inference."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import numpy as np

from nnac.frontend.builder import Builder
from nnac.frontend.use import Refused, Row, Rule, Shape, Use, normalized
from nnac.ops import Concat, Pad, Reshape, Slice, Take, Transpose
from nnac.ops.take import mover
from nnac.types import Array

INSIDE: dict[str, Callable[[Array, int], Array]] = {
    "reflect": lambda i, n: n - 1 - np.abs(n - 1 - np.abs(i)),
    "edge": lambda i, n: i.clip(0, n - 1),
    "wrap": lambda i, n: i % n,
}
"""Index inside an axis of n entries of a place that may lie outside, by Pad's mode."""


def reshape(b: Builder, use: Use) -> None:
    """Import any node that changes the shape only; the shape is what shape inference has found."""
    b.put(use, Reshape(use.out()), [b.value(use.inputs[0])])


def transpose(b: Builder, use: Use) -> None:
    """Import Transpose."""
    rank = len(use.shape())
    perm = use.ints("perm", reversed(range(rank)))
    b.put(use, Transpose(perm), [b.value(use.inputs[0])])


def concat(b: Builder, use: Use) -> None:
    """Import Concat."""
    axis = use.axis(1, len(use.out()))
    b.put(use, Concat(axis), [b.value(name) for name in use.inputs])


def split(b: Builder, use: Use) -> None:
    """Import Split as one slice per output that is used."""
    shape = use.shape()
    axis = use.axis(0, len(shape))
    sizes = _split_sizes(use, shape[axis])
    starts = [0, *accumulate(sizes)]
    for i, name in enumerate(use.outputs):
        if name:
            start, out = [0] * len(shape), list(shape)
            start[axis], out[axis] = starts[i], sizes[i]
            b.put(use, Slice(tuple(start), (1,) * len(shape), tuple(out)), [b.value(use.inputs[0])], output=i)


def _split_sizes(use: Use, side: int) -> Shape:
    sizes, count = use.numbers("split", 1), len(use.outputs)
    if sizes is None:
        chunk = -(-side // count)
        sizes = tuple(min(chunk, side - i * chunk) for i in range(count))
        if use.opset < 18 and side % count:
            raise Refused("the axis divides evenly when no sizes are given")
    if len(sizes) != count or sum(sizes) != side or min(sizes) < 1:
        raise Refused(f"one size per output, none of them empty, that add up to {side}")
    return sizes


def slice_(b: Builder, use: Use) -> None:
    """Import Slice."""
    shape, rank = use.shape(), len(use.shape())
    lows, highs = use.numbers("starts", 1) or (), use.numbers("ends", 2) or ()
    axes, strides = use.numbers("axes", 3) or tuple(range(len(lows))), use.numbers("steps", 4) or (1,) * len(lows)
    if not len(lows) == len(highs) == len(axes) == len(strides) or 0 in strides:
        raise Refused("starts, ends, axes and steps are of one length, and no step is 0")
    starts, steps, sizes = [0] * rank, [1] * rank, list(shape)
    for axis, low, high, step in zip((normalized(a, rank) for a in axes), lows, highs, strides, strict=True):
        found = range(*slice_bounds(low, high, step, shape[axis]))
        starts[axis], steps[axis], sizes[axis] = found.start, found.step, len(found)
    b.put(use, Slice(tuple(starts), tuple(steps), tuple(sizes)), [b.value(use.inputs[0])])


def slice_bounds(low: int, high: int, step: int, side: int) -> tuple[int, int, int]:
    """Return Python's (start, stop, step) of one axis by ONNX's clamping rules."""
    low, high = (v + side if v < 0 else v for v in (low, high))
    if step > 0:
        return min(max(low, 0), side), min(max(high, 0), side), step
    return min(max(low, 0), side - 1), min(max(high, -1), side - 1), step


def pad(b: Builder, use: Use) -> None:
    """Import Pad: with a constant, or with entries from inside (reflect, edge, wrap)."""
    rank = len(use.shape())
    pads, found = use.numbers("pads", 1), use.constant(2)
    axes = use.numbers("axes", 3) if use.given(3) else tuple(range(rank))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        raise Refused("pads have a begin and an end per axis")
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(normalized(a, rank) for a in axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    mode = use.get("mode", "constant")
    if mode != "constant":
        _pad_from_inside(b, use, mode, before, after)
        return
    value = float(found.reshape(-1)[0]) if found is not None and found.size else float(use.get("value", 0.0))
    b.put(use, Pad(tuple(before), tuple(after), value), [b.value(use.inputs[0])])


def _pad_from_inside(b: Builder, use: Use, mode: str, before: list[int], after: list[int]) -> None:
    shape = use.shape()
    if mode == "reflect" and any(max(ends) >= n for *ends, n in zip(before, after, shape, strict=True)):
        raise Refused("a reflecting pad is smaller than its axis")
    if min(*before, *after) < 0:
        raise Refused("pads are not negative")
    grids = (np.arange(-low, n + high) for low, high, n in zip(before, after, shape, strict=True))
    picks = tuple(tuple(INSIDE[mode](grid, n).tolist()) for grid, n in zip(grids, shape, strict=True))
    b.put(use, mover(picks, shape), [b.value(use.inputs[0])])


def _inference_dropout(use: Use) -> bool:
    mode = use.constant(2)
    return not use.given(2) or (mode is not None and not mode.any())


ROWS = {
    "Identity": Row(reshape, (Reshape,)),
    "Reshape": Row(reshape, (Reshape,), ("allowzero",), (Rule(lambda u: u.fixed(1), "the shape is a constant"),)),
    "Flatten": Row(reshape, (Reshape,), ("axis",)),
    "Squeeze": Row(reshape, (Reshape,), ("axes",), (Rule(lambda u: u.fixed(1), "axes are constants"),)),
    "Unsqueeze": Row(reshape, (Reshape,), ("axes",), (Rule(lambda u: u.fixed(1), "axes are constants"),)),
    "Dropout": Row(
        reshape,
        (Reshape,),
        ("ratio", "seed", "is_test"),
        (
            Rule(_inference_dropout, "inference only: training_mode is a constant false"),
            Rule(lambda u: u.unused(1), "the mask is not used"),
        ),
    ),
    "Cast": Row(
        reshape,
        (Reshape,),
        ("to", "saturate", "round_mode"),
        (Rule(lambda u: u.get("to") == 1, "float32 to float32 only (to = 1)"),),
    ),
    "Transpose": Row(transpose, (Transpose,), ("perm",), limits=Transpose.constraints),
    "Concat": Row(concat, (Concat,), ("axis",), limits=Concat.constraints),
    "Split": Row(
        split,
        (Slice,),
        ("axis", "split", "num_outputs"),
        (Rule(lambda u: u.fixed(1), "the sizes are constants"),),
        Slice.constraints,
    ),
    "Slice": Row(
        slice_,
        (Slice,),
        ("starts", "ends", "axes", "steps"),
        (Rule(lambda u: all(u.fixed(i) for i in (1, 2, 3, 4)), "starts, ends, axes and steps are constants"),),
        Slice.constraints,
    ),
    "Pad": Row(
        pad,
        (Pad, Take),
        ("mode", "pads", "value"),
        (
            Rule(
                lambda u: u.get("mode", "constant") in ("constant", *INSIDE),
                f"the mode is constant, {', '.join(INSIDE)}",
            ),
            Rule(lambda u: all(u.fixed(i) for i in (1, 2, 3)), "pads, value and axes are constants"),
        ),
        Pad.constraints,
    ),
}
