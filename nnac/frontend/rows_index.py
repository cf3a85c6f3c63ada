"""Rows that pick, repeat or overwrite entries at fixed places: Gather, Scatter and their kind, Expand, Tile."""

from __future__ import annotations

from math import prod

import numpy as np

from nnac.frontend import views
from nnac.frontend.builder import Builder
from nnac.frontend.use import Refused, Row, Rule, Shape, Use
from nnac.ops import Insert, Slice, Take
from nnac.ops.take import mover, separable
from nnac.types import Array

# -- picking -------------------------------------------------------------------------------------------------------


def pick_flat(b: Builder, use: Use, places: Array, shape: Shape) -> None:
    """Import `output = input.ravel()[places]`: along the axes where that is possible, else over the flat tensor."""
    picks = separable(places, shape)
    if picks is not None:
        b.put(use, mover(picks, shape), [b.value(use.inputs[0])])
        return
    flat = b.view(use.inputs[0], views.reshape(shape, (prod(shape),)))
    op = mover((tuple(places.ravel().tolist()),), (prod(shape),))
    b.put(use, op, [flat], views.reshape(use.out(), (places.size,)))


def gather(b: Builder, use: Use) -> None:
    """Import Gather; the shape of the indices replaces the axis."""
    shape = use.shape()
    axis = use.axis(0, len(shape))
    indices = _indices(use, 1, shape[axis]).reshape(-1)
    picks = tuple(tuple(indices.tolist()) if i == axis else () for i in range(len(shape)))
    picked = (*shape[:axis], len(indices), *shape[axis + 1 :])
    b.put(use, mover(picks, shape), [b.value(use.inputs[0])], views.reshape(use.out(), picked))


def _indices(use: Use, index: int, side: int) -> Array:
    """Return constant indices into an axis, counted from its front."""
    found = use.array(index).astype(np.int64)
    if ((found < -side) | (found >= side)).any():
        raise Refused(f"the indices lie inside the axis of {side}")
    return np.asarray(np.where(found < 0, found + side, found))


def gather_elements(b: Builder, use: Use) -> None:
    """Import GatherElements."""
    shape = use.shape()
    pick_flat(b, use, _along(use, shape), shape)


def _along(use: Use, shape: Shape) -> Array:
    """Return the flat places that GatherElements reads and ScatterElements writes."""
    axis = use.axis(0, len(shape))
    indices = _indices(use, 1, shape[axis])
    grid = np.indices(indices.shape)
    grid[axis] = indices
    return np.asarray(np.ravel_multi_index(tuple(grid), shape))


def gather_nd(b: Builder, use: Use) -> None:
    """Import GatherND without batch axes."""
    shape = use.shape()
    pick_flat(b, use, _points(use, shape), shape)


def _points(use: Use, shape: Shape) -> Array:
    """Return the flat places of the slices that the last axis of input 1 points at."""
    points = np.moveaxis(use.array(1).astype(np.int64), -1, 0)
    sides = np.array(shape[: len(points)]).reshape(-1, *(1,) * (points.ndim - 1))
    if len(points) > len(shape) or ((points < -sides) | (points >= sides)).any():
        raise Refused(f"the indices lie inside the shape {list(shape)}")
    return np.asarray(np.arange(prod(shape)).reshape(shape)[tuple(np.where(points < 0, points + sides, points))])


def expand(b: Builder, use: Use) -> None:
    """Import Expand and Tile: every axis is repeated as a whole."""
    shape, out = use.shape(), use.out()
    full = (1,) * (len(out) - len(shape)) + shape
    picks = tuple(tuple(range(n)) * (m // n) for n, m in zip(full, out, strict=True))
    b.put(use, mover(picks, full), [b.view(use.inputs[0], views.reshape(shape, full))])


# -- overwriting ---------------------------------------------------------------------------------------------------


def scatter_nd(b: Builder, use: Use) -> None:
    """Import ScatterND."""
    _write(b, use, _points(use, use.shape()))


def scatter_elements(b: Builder, use: Use) -> None:
    """Import ScatterElements (and Scatter, its old name)."""
    _write(b, use, _along(use, use.shape()))


def _write(b: Builder, use: Use, places: Array) -> None:
    """Import the overwriting of flat `places`, which must be a box in the order of its entries."""
    shape = use.shape()
    box = _box(places.ravel(), shape)
    if box is None:
        raise Refused("the indices write a box, at even steps along each axis, each entry once and in order")
    starts, steps, sizes = box
    updates = b.view(use.inputs[2], views.reshape(use.shape(2), sizes))
    b.put(use, Insert(((starts, steps),)), [b.value(use.inputs[0]), updates])


def _box(places: Array, shape: Shape) -> tuple[Shape, Shape, Shape] | None:
    """Return starts, steps and sizes of the box whose entries in order are `places`, or None."""
    lines = [np.unique(axis) for axis in np.unravel_index(places, shape)]
    steps = [int(line[1] - line[0]) if len(line) > 1 else 1 for line in lines]
    if any((np.diff(line) != step).any() for line, step in zip(lines, steps, strict=True)):
        return None
    inside = np.arange(prod(shape)).reshape(shape)[np.ix_(*lines)].ravel()
    if not np.array_equal(inside, places):
        return None
    return tuple(int(line[0]) for line in lines), tuple(steps), tuple(len(line) for line in lines)


_INDICES = Rule(lambda u: u.constant(1) is not None and u.constant(0) is None, "the indices are constants")
_NO_REDUCTION = Rule(lambda u: u.get("reduction", "none") == "none", "entries are overwritten (no reduction)")
_SCATTER = (
    Rule(lambda u: u.constant(1) is not None, "the indices are constants"),
    _NO_REDUCTION,
    Rule(lambda u: u.given(2), "there are updates"),
)
ROWS = {
    "Gather": Row(gather, (Slice, Take), ("axis",), (_INDICES,), Take.constraints),
    "GatherElements": Row(gather_elements, (Take, Slice), ("axis",), (_INDICES,), Take.constraints),
    "GatherND": Row(
        gather_nd,
        (Take, Slice),
        ("batch_dims",),
        (_INDICES, Rule(lambda u: u.get("batch_dims", 0) == 0, "batch_dims is 0")),
        Take.constraints,
    ),
    "ScatterND": Row(scatter_nd, (Insert,), ("reduction",), _SCATTER, Insert.constraints),
    "ScatterElements": Row(scatter_elements, (Insert,), ("axis", "reduction"), _SCATTER, Insert.constraints),
    "Scatter": Row(scatter_elements, (Insert,), ("axis",), _SCATTER, Insert.constraints),
    "Expand": Row(expand, (Take,), (), (Rule(lambda u: u.fixed(1), "the shape is a constant"),)),
    "Tile": Row(expand, (Take,), (), (Rule(lambda u: u.fixed(1), "the repeats are constants"),)),
}
