"""Clustering of numbers on a line: histograms, optimal levels, nearest levels, scales, error feedback."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from nnac.kernels.jit import INT, Int8, Int32, Int64, inner, kernel, sink, source

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
F32, F64 = types.float32, types.float64

GRID = 255
"""Places that a level can take: -127..127."""
HALVES = 512
"""Entries of a nearest-level table: one per half step from -128 up. Between two integer levels the border lies on a
multiple of a half, so a half step has one nearest level."""


@kernel(source(F32, 2), source(F64, 1), source(F64, 1), source(F32, 2, "A"), F64, F64, sink(F64, 2))
def histogram(
    rows: Float32, norm: Float64, weight: Float64, importance: Float32, center: float, reach: float, bins: Float64
) -> None:
    """Adds z = row / norm to bins that grow with |z|: their widths are even in sgn(z) ln(1 + |z| / center).

    Args:
        rows: (R, K), finite.
        norm: (R,), positive.
        weight: (R,), factor of a row's importance.
        importance: (R, K), not negative.
        center: positive; bins are about even below it, and grow in proportion above.
        reach: positive, the largest |z|.
        bins: (3, B): sums of weight, of weight * z and of weight * z * z.
    """
    half = bins.shape[1] // 2
    density = half / np.log1p(reach / center)
    for r in range(rows.shape[0]):
        inverse = 1 / norm[r]
        for k in range(rows.shape[1]):
            z = rows[r, k] * inverse
            away = min(int(np.log1p(abs(z) / center) * density), half - 1)
            place = half + away if z >= 0 else half - 1 - away
            w = weight[r] * importance[r, k]
            bins[0, place] += w
            bins[1, place] += w * z
            bins[2, place] += w * z * z


@inner
def _best_split(sums: Float64, before: Float64, j: int, low: int, high: int, found: Float64) -> None:
    """Puts into `found` the least error of j bins whose last cluster starts in [low, high], and where it starts."""
    best, start = before[j], j
    for i in range(low, min(high, j - 1) + 1):
        s = sums[1, j] - sums[1, i]
        error = before[i] + (sums[2, j] - sums[2, i]) - s * s / (sums[0, j] - sums[0, i])
        if error < best:
            best, start = error, i
    found[0], found[1] = best, start


@kernel(source(F64, 2), sink(F64, 2, "C"), sink(types.int32, 2, "C"))
def optimal_clusters(sums: Float64, errors: Float64, starts: Int32) -> None:
    """The least squared error of every number of clusters over every prefix, by dynamic programming.

    The start of the last cluster moves right as the prefix grows (the errors are a Monge array), so prefixes are solved
    in order of falling strides, each between the starts of its solved neighbours: n log n per number of clusters.

    Args:
        sums: (3, n + 1), running sums over n bins in ascending order of weight (all positive), of weight * x and of
            weight * x * x.
        errors: (k + 1, n + 1), error of at most m clusters over the first j bins; row 0 is given.
        starts: (k + 1, n + 1), first bin of the last of these clusters; j where it is empty.
    """
    n = sums.shape[1] - 1
    found = np.empty(2)
    top = 1
    while top <= n:
        top *= 2
    for m in range(1, errors.shape[0]):
        before = errors[m - 1]
        errors[m, 0] = 0
        starts[m, 0] = 0
        stride = top
        while stride >= 1:
            for j in range(stride, n + 1, 2 * stride):
                high = starts[m, j + stride] if j + stride <= n else n
                _best_split(sums, before, j, starts[m, j - stride], high, found)
                errors[m, j] = found[0]
                starts[m, j] = int(found[1])
            stride //= 2


@inner
def _at_halves(sums: Float64, x: Float64, step: float, halves: Float64) -> None:
    """Running sums below each half step of the grid from -127 to 127: (2, 509)."""
    i = 0
    for m in range(halves.shape[1]):
        border = (m / 2 - 127) * step
        while i < x.size and x[i] < border:
            i += 1
        halves[0, m], halves[1, m] = sums[0, i], sums[1, i]


@inner
def _cost(halves: Float64, level: float, first: int, last: int) -> Any:
    """Squared error of what lies between two half steps against one level, less the part without the level."""
    w, s = halves[0, last] - halves[0, first], halves[1, last] - halves[1, first]
    return level * (level * w - 2 * s)


@inner
def _neighbour_costs(halves: Float64, step: float, zero: int, costs: Float64) -> None:
    """Cost of what lies between two chosen neighbours, each point at the nearer one: (255, 255)."""
    for a in range(GRID):
        for b in range(a + 1, GRID):
            left = _cost(halves, (a - 127) * step, 2 * a, a + b)
            right = _cost(halves, (b - 127) * step, a + b, 2 * b)
            costs[a, b] = np.inf if zero and a < 127 < b else left + right


@inner
def _relax(before: Float64, costs: Float64, after: Float64) -> None:
    """One more level: after[b] = min over a < b of before[a] + costs[a, b]."""
    after[:] = np.inf
    for a in range(GRID - 1):
        base, row = before[a], costs[a]
        for b in range(a + 1, GRID):
            total = base + row[b]
            after[b] = total if total < after[b] else after[b]


@inner
def _ends(halves: Float64, sums: Float64, step: float, zero: int, first: Float64, last: Float64) -> None:
    """Cost of what lies below the lowest level, and above the highest; infinite where zero would lie outside."""
    n, end = sums.shape[1] - 1, halves.shape[1] - 1
    for b in range(GRID):
        level = (b - 127) * step
        above = sums[0, n] - halves[0, end], sums[1, n] - halves[1, end]
        first[b] = level * (level * halves[0, 0] - 2 * halves[1, 0]) + _cost(halves, level, 0, 2 * b)
        last[b] = level * (level * above[0] - 2 * above[1]) + _cost(halves, level, 2 * b, end)
        if zero and b > 127:
            first[b] = np.inf
        if zero and b < 127:
            last[b] = np.inf


@inner
def _trace(paths: Float64, costs: Float64, last: Float64, levels: Int64) -> float:
    """Writes the best chain of levels, from the highest down, and gives its cost."""
    k = paths.shape[0]
    place = int(np.argmin(paths[k - 1] + last))
    best = paths[k - 1, place] + last[place]
    levels[k - 1] = place - 127
    for m in range(k - 2, -1, -1):
        place = int(np.argmin(paths[m, :place] + costs[:place, place]))
        levels[m] = place - 127
    return float(best)


@kernel(source(F64, 2), source(F64, 1), source(F64, 1), INT, sink(types.int64, 2, "C"), sink(F64, 1))
def grid_levels(sums: Float64, x: Float64, steps: Float64, zero: int, levels: Int64, errors: Float64) -> None:
    """The best k of the 255 levels -127..127 for each step: exact, a shortest path with k nodes over the grid.

    Args:
        sums: (3, n + 1), as for `optimal_clusters`.
        x: (n,), means of the bins, ascending.
        steps: (T,), positive: the value of level 1.
        zero: 1 if level 0 must be among them.
        levels: (T, k), ascending, 1 <= k <= 255.
        errors: (T,), squared errors.
    """
    k, n = levels.shape[1], x.size
    halves = np.empty((2, 2 * GRID - 1))
    costs = np.full((GRID, GRID), np.inf)
    paths = np.empty((k, GRID))
    last = np.empty(GRID)
    for t in range(steps.size):
        _at_halves(sums, x, steps[t], halves)
        _neighbour_costs(halves, steps[t], zero, costs)
        _ends(halves, sums, steps[t], zero, paths[0], last)
        for m in range(1, k):
            _relax(paths[m - 1], costs, paths[m])
        errors[t] = max(0.0, sums[2, n] + _trace(paths, costs, last, levels[t]))


@kernel(source(F64, 2), source(F64, 1), source(F64, 1), source(F64, 1), sink(F64, 1), sink(F64, 1))
def table_errors(sums: Float64, x: Float64, levels: Float64, steps: Float64, errors: Float64, refits: Float64) -> None:
    """Squared error of one table at several steps, each bin at its nearest level; and the step that refits it.

    Args:
        sums: (3, n + 1), as for `optimal_clusters`.
        x: (n,), means of the bins, ascending.
        levels: (k,), ascending.
        steps: (T,), positive factors of the levels.
        errors: (T,).
        refits: (T,), the step of least error for the assignment that the step makes; 0 where there is none.
    """
    n = x.size
    for t in range(steps.size):
        cross, energy, first = 0.0, 0.0, 0
        for i in range(levels.size):
            end = n
            if i + 1 < levels.size:
                end = first + np.searchsorted(x[first:], (levels[i] + levels[i + 1]) / 2 * steps[t])
            cross += levels[i] * (sums[1, end] - sums[1, first])
            energy += levels[i] * levels[i] * (sums[0, end] - sums[0, first])
            first = end
        errors[t] = max(0.0, sums[2, n] + steps[t] * (steps[t] * energy - 2 * cross))
        refits[t] = max(0.0, cross / energy) if energy > 0 else 0.0


@inner
def _half(value: float) -> int:
    """The entry of a nearest-level table for a value in steps."""
    return int(min(max(np.floor(2 * value) + 256, 0.0), HALVES - 1.0))


@kernel(source(F32, 2), source(F64, 1), source(types.int8, 1), sink(types.int8, 2))
def nearest(rows: Float32, scale: Float64, table: Int8, levels: Int8) -> None:
    """The level nearest to each row / scale; in the middle of two, the upper one.

    Args:
        rows: (R, K), finite.
        scale: (R,), positive.
        table: (512,), the nearest level of each half step from -128.
        levels: (R, K).
    """
    for r in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            levels[r, k] = table[_half(rows[r, k] / scale[r])]


@inner
def _row_error(row: Float32, importance: Float32, scale: float, table: Int8, found: Float64) -> None:
    """Puts into `found` the squared error of a row at a scale, and the scale that refits this assignment."""
    error, cross, energy = 0.0, 0.0, 0.0
    inverse = 1 / scale
    for k in range(row.size):
        level = float(table[_half(row[k] * inverse)])
        w, d = importance[k], row[k] - level * scale
        error += w * d * d
        cross += w * level * row[k]
        energy += w * level * level
    found[0] = error
    found[1] = cross / energy if cross > 0 else 0.0


@kernel(source(F32, 2), source(F32, 2, "A"), source(types.int8, 1), source(F64, 1), INT, sink(F64, 1), sink(F64, 1))
def search_scales(
    rows: Float32, importance: Float32, table: Int8, factors: Float64, rounds: int, scale: Float64, errors: Float64
) -> None:
    """The best scale of each row for a table: tries factors of the present scale, then refits by least squares.

    Args:
        rows: (R, K), finite.
        importance: (R, K), not negative.
        table: (512,), the nearest level of each half step from -128.
        factors: (F,), positive.
        rounds: refits, each kept only if it is better.
        scale: (R,), positive; changed in place.
        errors: (R,), squared error of each row.
    """
    found = np.empty(2)
    for r in range(rows.shape[0]):
        start, best, refit = scale[r], np.inf, 0.0
        for factor in factors:
            _row_error(rows[r], importance[r], start * factor, table, found)
            if found[0] < best:
                best, refit, scale[r] = found[0], found[1], start * factor
        for _ in range(rounds):
            if refit <= 0:
                break
            trial = refit
            _row_error(rows[r], importance[r], trial, table, found)
            if found[0] >= best:
                break
            best, refit, scale[r] = found[0], found[1], trial
        errors[r] = best


@kernel(
    source(F64, 2),
    source(F64, 2, "A"),
    source(F64, 2),
    source(F64, 1),
    source(types.int8, 2),
    sink(types.int8, 2),
    sink(F64, 2),
)
def feedback_block(
    target: Float64, weights: Float64, feedback: Float64, scale: Float64, tables: Int8, levels: Int8, error: Float64
) -> None:
    """Chooses levels column by column; each column's error moves the targets of the columns after it.

    Args:
        target: (R, B), the weights plus what columns before this block feed back.
        weights: (R, B), the weights.
        feedback: (B, B), how column i's error moves column j > i.
        scale: (R,), positive.
        tables: (R, 512), each row's nearest level of each half step from -128.
        levels: (R, B).
        error: (R, B), weights - levels * scale.
    """
    columns = target.shape[1]
    moved = np.empty(columns)
    for r in range(target.shape[0]):
        moved[:] = target[r]
        for j in range(columns):
            level = tables[r, _half(moved[j] / scale[r])]
            levels[r, j] = level
            d = weights[r, j] - level * scale[r]
            error[r, j] = d
            for i in range(j + 1, columns):
                moved[i] += d * feedback[j, i]


@kernel(source(F32, 1), sink(F32, 1, "C"), sink(types.int64, 1))
def distinct(values: Float32, found: Float32, count: Int64) -> None:
    """The distinct values, ascending; stops once there are more than `found` holds.

    Args:
        values: (n,), finite.
        found: (limit,).
        count: (1,), how many; limit + 1 when there are more.
    """
    size = 0
    for value in values:
        place = np.searchsorted(found[:size], value)
        if place < size and found[place] == value:
            continue
        if size == found.size:
            count[0] = size + 1
            return
        for i in range(size, place, -1):
            found[i] = found[i - 1]
        found[place] = value
        size += 1
    count[0] = size


@kernel(source(F32, 1), source(F32, 1), sink(types.uint8, 1))
def fits_grid(values: Float32, scales: Float32, fits: npt.NDArray[np.uint8]) -> None:
    """Whether every value is exactly float32(level) * scale for a level in -127..127.

    Args:
        values: (n,), finite.
        scales: (T,), positive.
        fits: (T,), 1 where all do.
    """
    for t in range(scales.size):
        fits[t] = 1
        for value in values:
            level = np.float32(np.rint(value / scales[t]))
            if abs(level) > 127 or level * scales[t] != value:
                fits[t] = 0
                break
