"""Centroid folding: weights that training has already clustered become indices and an int8 table.

Lossless where every float weight is float32(level) * float32(scale): then decoding gives back the very bits. Any such
grid puts the largest weight on a level m in 1..127, so all scales near largest / m are tried, m from 127 down: the
first is the one that plain int8 quantization would take, and folding changes nothing there. What fits no grid gets the
int8 levels and the step of least squared error, and the result says in dB what that costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nnac.errors import ModelError
from nnac.kernels.cluster import distinct, fits_grid
from nnac.types import Array
from nnac.weights.codebooks import Codebook, Encoded, check_bits, finish, group_bounds
from nnac.weights.histogram import LIMIT

Int8 = NDArray[np.int8]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

ULPS = (0, -1, 1, -2, 2)
"""Neighbours of largest / m that may be the scale: the product was rounded once."""
SAME = 1e-5
"""Values nearer than this part of the largest are one level, times scales that were rounded."""
PLACES = np.linspace(LIMIT / 2, LIMIT + 0.49, 4096)
"""Where the largest value may lie on the grid: below half of it, a grid of half the step holds the same levels."""


def distinct_levels(weights: Array, limit: int = 256) -> Float32 | None:
    """Return the distinct float32 values, ascending, or None if there are more than `limit`; -0.0 is 0.0."""
    values = np.ascontiguousarray(weights, np.float32).ravel()
    found, count = np.empty(limit, np.float32), np.zeros(1, np.int64)
    distinct(values, found, count)
    return found[: count[0]] + np.float32(0) if count[0] <= limit else None


def fold_centroids(
    weights: Array, bits: int, *, groups: int = 1, per_channel: bool = True, power_of_two: bool = False
) -> Encoded | None:
    """Return the encoding of weights that are clustered already, or None where they are not.

    Each group of output channels holds at most 2**bits distinct values; or, with `per_channel`, its channels hold
    scaled copies of one such table: w = table[index] * scale[channel].

    Args:
        weights: (O, ...) finite reals.
        bits: 1 to 8.
        groups: equal runs of output channels with a table each.
        per_channel: whether the scale may differ between output channels.
        power_of_two: scales are powers of two.

    Raises:
        ModelError: bits outside 1..8, weights that are empty or not finite, more groups than channels.
    """
    check_bits(bits)
    if np.ndim(weights) < 1 or not np.size(weights) or not np.isfinite(np.asarray(weights, np.float32)).all():
        raise ModelError("weights to fold are neither empty nor infinite nor NaN")
    matrix = np.ascontiguousarray(np.asarray(weights).reshape(len(weights), -1), np.float32)
    bounds = group_bounds(len(matrix), groups)
    parts = _folded(matrix, bounds, bits, per_channel, power_of_two)
    if parts is None:
        return None
    scales = np.concatenate([part.scale for part in parts])
    books = [Codebook(np.unique(part.levels), bits) for part in parts]
    return finish(weights, np.concatenate([part.levels for part in parts]), scales, books)


@dataclass(frozen=True, slots=True)
class Folded:
    """Levels (R, K) of some rows, and the scale of each, float32 values."""

    levels: Int8
    scale: Float64


def _folded(
    matrix: Float32, bounds: list[int], bits: int, per_channel: bool, power_of_two: bool
) -> list[Folded] | None:
    """Return every group, or None if one of them is not clustered."""
    groups = [matrix[a:b] for a, b in pairwise(bounds)]
    values = [distinct_levels(rows, 2**bits) for rows in groups]
    if per_channel:
        found = [_fold(rows, own, bits, power_of_two) for rows, own in zip(groups, values, strict=True)]
        return [part for part in found if part is not None] if all(found) else None
    union = [own for own in values if own is not None]
    if len(union) < len(groups):
        return None
    whole = _one_scale(matrix, np.unique(np.concatenate(union)), power_of_two)
    return [Folded(whole.levels[a:b], whole.scale[a:b]) for a, b in pairwise(bounds)]


def _fold(rows: Float32, values: Float32 | None, bits: int, power_of_two: bool) -> Folded | None:
    """Return one group: one scale or one per row, without loss if there is a way, else with the least of one scale."""
    if values is not None and (scale := lossless_scale(values, power_of_two)) is not None:
        return _snapped(rows, np.full(len(rows), scale))
    exact = _exact_copies(rows, bits, power_of_two)
    if exact is not None:
        return exact
    if values is not None:
        return _one_scale(rows, values, power_of_two)
    return None if power_of_two else _near_copies(rows, bits)


def _snapped(rows: Float32, scale: Float64) -> Folded:
    """Return the rows on the grid of their scales."""
    levels = np.clip(np.rint(rows / scale[:, None]), -LIMIT, LIMIT).astype(np.int8)
    return Folded(levels, scale)


# -- one scale -----------------------------------------------------------------------------------------------------


def lossless_scale(values: Float32, power_of_two: bool = False) -> float | None:
    """Return the finest scale under which every value is float32(level) * scale, or None; 1 if all are zero."""
    found = _lossless_scales(values, power_of_two)
    return float(found[0]) if found.size else None


def _lossless_scales(values: Float32, power_of_two: bool) -> Float32:
    """Return all such scales, ascending in the order in which they are tried."""
    largest = np.float32(np.abs(values).max())
    if largest == 0:
        return np.ones(1, np.float32)
    scales = _scales(largest, power_of_two)
    fits = np.zeros(scales.size, np.uint8)
    fits_grid(values, scales, fits)
    return np.asarray(scales[fits.astype(bool)])


def _scales(largest: np.float32, power_of_two: bool) -> Float32:
    """Return the scales that put the largest value on a level, from level 127 down."""
    if power_of_two:
        finest = np.ceil(np.log2(np.float64(largest) / LIMIT))
        return (2.0 ** np.arange(finest, finest + 8)).astype(np.float32)
    near = (largest / np.arange(LIMIT, 0, -1).astype(np.float32)).astype(np.float32)
    bits = near.view(np.int32)[:, None] + np.array(ULPS, np.int32)
    scales = bits.astype(np.int32).view(np.float32).ravel()
    return np.ascontiguousarray(scales[np.isfinite(scales) & (scales >= np.finfo(np.float32).tiny)])


def _one_scale(rows: Float32, values: Float32, power_of_two: bool) -> Folded:
    """Return the rows under one scale: without loss if there is one, else the best."""
    exact = lossless_scale(values, power_of_two)
    if exact is not None:
        return _snapped(rows, np.full(len(rows), exact))
    places = np.searchsorted(values, rows.ravel())
    scale = _best_scale(values.astype(np.float64), np.bincount(places, minlength=values.size), power_of_two)
    return _snapped(rows, np.full(len(rows), scale))


def _best_scale(values: Float64, mass: Array, power_of_two: bool) -> float:
    """Return the scale of least squared error of the nearest levels, a float32 value; `mass` weighs the errors."""
    largest = float(np.abs(values).max())
    scales = _scales(np.float32(largest), True).astype(np.float64) if power_of_two else largest / PLACES
    for _ in range(1 if power_of_two else 2):
        levels = values / scales[:, None]
        np.clip(np.rint(levels, out=levels), -LIMIT, LIMIT, out=levels)
        errors = levels * scales[:, None]
        errors -= values
        errors *= errors
        best = int((errors @ mass).argmin())
        refit = float((values * levels[best]) @ mass / max(levels[best] ** 2 @ mass, 1e-300))
        scales = np.array([scales[best], refit]) if not power_of_two and refit > 0 else scales[[best]]
    return float(np.float32(scales[0 if power_of_two else best]))


# -- a scale per row -----------------------------------------------------------------------------------------------


def _exact_copies(rows: Float32, bits: int, power_of_two: bool) -> Folded | None:
    """Return rows that are scaled copies of one int8 table, without loss, or None.

    Rows with the fewest possible scales choose first; each takes the scale that adds the fewest levels to the table.
    """
    values = [distinct_levels(row, 2**bits) for row in rows]
    scales = [np.zeros(0, np.float32) if own is None else _lossless_scales(own, power_of_two) for own in values]
    if any(not found.size for found in scales):
        return None
    table, chosen = 0, np.ones(len(rows))
    for r in sorted(range(len(rows)), key=lambda r: scales[r].size if rows[r].any() else LIMIT * len(ULPS) + 1):
        masks = [_mask(values[r], scale) for scale in scales[r]]
        best = min(range(len(masks)), key=lambda i: (masks[i] & ~table).bit_count())
        table, chosen[r] = table | masks[best], float(scales[r][best])
        if table.bit_count() > 2**bits:
            return None
    return _snapped(rows, chosen)


def _mask(values: Float32 | None, scale: np.float32) -> int:
    """Return the levels of the values as bits of an integer."""
    levels = np.unique(np.rint(values / scale)) if values is not None else ()
    return sum(1 << int(level) + LIMIT for level in levels)


def _near_copies(rows: Float32, bits: int) -> Folded | None:
    """Return rows that are scaled copies of one table but for rounding, with the best int8 levels, or None."""
    values = [distinct_levels(row, 2**bits) for row in rows]
    known = [own.astype(np.float64) for own in values if own is not None]
    if len(known) < len(rows):
        return None
    table, norm = np.zeros(0), np.ones(len(rows))
    for r in sorted(range(len(rows)), key=lambda r: -known[r].size):
        if (largest := float(np.abs(known[r]).max())) > 0:
            share = _share(known[r] / largest, table)
            norm[r] = largest / share
            table = _merged(np.concatenate([table, known[r] / norm[r]]))
        if table.size > 2**bits:
            return None
    return _levelled(rows, norm, table)


def _share(values: Float64, table: Float64) -> float:
    """Return the largest entry that the largest value (1 or -1) may stand for so that all lie in the table; else 1."""
    for share in np.unique(np.abs(table[table != 0]))[::-1]:
        distance = np.abs(values[:, None] * share - table).min(axis=1)
        if distance.max() <= SAME:
            return float(share)
    return 1.0


def _merged(values: Float64) -> Float64:
    """Return the values, ascending, those that are the same but for rounding taken once."""
    ordered = np.unique(values)
    return np.asarray(ordered[np.concatenate([[True], np.diff(ordered) > SAME])])


def _levelled(rows: Float32, norm: Float64, table: Float64) -> Folded:
    """Return the rows with the best int8 levels for the table, and the best scale of each row."""
    places = np.searchsorted((table[1:] + table[:-1]) / 2, rows / norm[:, None])
    weight = np.broadcast_to((norm / norm.max())[:, None] ** 2, rows.shape)
    step = _best_scale(table, np.bincount(places.ravel(), weight.ravel(), minlength=table.size), False)
    levels = np.clip(np.rint(table / step), -LIMIT, LIMIT)[places]
    energy, cross = (levels * levels).sum(axis=1), (levels * rows).sum(axis=1)
    scale = np.where(cross > 0, cross / np.maximum(energy, 1.0), norm * step)
    return Folded(levels.astype(np.int8), scale.astype(np.float32).astype(np.float64))
