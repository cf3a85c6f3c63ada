"""Weighted histograms of numbers on a line, and the levels that represent them with the least squared error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnac.errors import ModelError
from nnac.kernels.cluster import grid_levels, histogram, optimal_clusters, table_errors
from nnac.types import Array

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

BINS = 16384
"""Up to this many numbers keep their own bins."""
SAMPLE = 65536
"""Numbers that choose the width of bins."""
LIMIT = 127
GRID = 2 * LIMIT + 1
"""Levels of an int8 weight: -127..127."""
COARSE = 2.0 ** (-np.arange(-1, 24) / 2)
"""Steps to try, of the step that spreads the grid over the whole range: outliers may cost more than they are worth."""
FINER = (2.0 ** np.linspace(-0.5, 0.5, 17), 2.0 ** np.linspace(-1 / 16, 1 / 16, 9))
"""Steps to try around the best ones so far."""
BEST = 3
POLISH = 8
RATIOS = 2.0 ** (-np.arange(-8, 66) / 6)
CLOSE = 2.0 ** np.linspace(-1 / 6, 1 / 6, 33)
"""As COARSE and FINER, for levels that are given."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bins in ascending order.

    Args:
        sums: (3, n + 1), running sums of weight, weight * x and weight * x * x; every bin has weight.
        x: (n,), means of the bins.
    """

    sums: Float64
    x: Float64

    @property
    def mean(self) -> float:
        """The weighted mean, 0 where there are no bins."""
        return float(self.sums[1, -1] / self.sums[0, -1]) if self.x.size else 0.0

    @property
    def deviation(self) -> float:
        """The weighted standard deviation."""
        if not self.x.size:
            return 0.0
        return float(np.sqrt(max(0.0, self.sums[2, -1] / self.sums[0, -1] - self.mean**2)))

    @property
    def reach(self) -> float:
        """The largest magnitude."""
        return float(np.abs(self.x).max(initial=0.0))

    def side(self, sign: int) -> Histogram:
        """Return the bins left (-1) or right (1) of zero, from the outermost inwards, as if they were ascending."""
        bins = np.diff(self.sums)[:, np.sign(self.x) == sign]
        return _running(bins if sign < 0 else bins[:, ::-1])


@dataclass(frozen=True, slots=True)
class Fit:
    """Integer levels in -127..127, ascending, the value of level 1, and the squared error of the histogram."""

    levels: NDArray[np.int64]
    step: float
    error: float


def of_values(values: Array, weights: Array | None = None) -> Histogram:
    """Return the histogram of finite `values`, with a weight each if there are any."""
    rows = np.asarray(values).reshape(1, -1)
    weight = np.ones((1, 1), np.float32) if weights is None else np.asarray(weights, np.float32).reshape(1, -1)
    return of_rows(rows, np.ones(1), np.ones(1), np.broadcast_to(weight, rows.shape))


def of_rows(rows: Array, norm: Float64, weight: Float64, importance: Float32) -> Histogram:
    """Return the histogram of rows / norm, each row's importance times its weight.

    Args:
        rows: (R, K), finite.
        norm: (R,), positive.
        weight: (R,), not negative.
        importance: (R, K), not negative.
    """
    if rows.size <= BINS:
        return _exact(rows / norm[:, None], weight[:, None] * importance)
    narrow = np.ascontiguousarray(rows, np.float32)
    reach = float((np.maximum(narrow.max(axis=1), -narrow.min(axis=1)) / norm).max()) or 1.0
    bins = np.zeros((3, BINS))
    histogram(narrow, norm, weight, importance, _center(narrow, norm), reach, bins)
    return _running(bins)


def _exact(x: Float64, weight: Float64) -> Histogram:
    values, place = np.unique(x.ravel(), return_inverse=True)
    mass = np.bincount(place.ravel(), weights=weight.ravel(), minlength=values.size)
    return _running(np.stack([mass, mass * values, mass * values * values]))


def _running(bins: Float64) -> Histogram:
    """Return the histogram of bins (3, n), without the empty ones."""
    bins = bins[:, bins[0] > 0]
    sums = np.zeros((3, bins.shape[1] + 1))
    np.cumsum(bins, axis=1, out=sums[:, 1:])
    return Histogram(sums, np.ascontiguousarray(bins[1] / bins[0]))


def _center(rows: Float32, norm: Float64) -> float:
    """Return the median of the magnitudes of a sample, zeros left out."""
    places = np.arange(0, rows.size, -(-rows.size // SAMPLE))
    sample = np.abs(rows.ravel()[places] / norm[places // rows.shape[1]])
    found = sample[sample > 0]
    return float(np.median(found)) if found.size else 1.0


# -- float levels --------------------------------------------------------------------------------------------------


def lloyd_max_levels(values: Array, k: int, weights: Array | None = None, zero: bool = False) -> Float64:
    """Return at most k levels, ascending, with the least sum of weight * (value - nearest level)**2.

    Exact by dynamic programming (Wang and Song, "Ckmeans.1d.dp", The R Journal 3/2, 2011; the Monge property after
    Wu, "Optimal quantization by matrix searching", J. Algorithms 12, 1991) over the distinct values, or over 16384 bins
    where there are more values than that.

    Args:
        values: finite reals of any shape.
        k: 1 or more.
        weights: of the squared errors, same shape, not negative.
        zero: one of the levels is 0.

    Raises:
        ModelError: k is less than 1.
    """
    if k < 1:
        raise ModelError(f"{k} levels: a table has at least one")
    return optimal_levels(of_values(values, weights), k, zero)


def optimal_levels(hist: Histogram, k: int, zero: bool = False) -> Float64:
    """Return at most k levels of least squared error, ascending; one of them is 0 if `zero`."""
    return _around_zero(hist, k) if zero else _means(hist, _clusters(hist, k)[1], k, hist.x.size)


def _clusters(hist: Histogram, k: int) -> tuple[Float64, NDArray[np.int32]]:
    """Return errors and starts of `kernels.optimal_clusters` for 0..k clusters."""
    errors = np.full((k + 1, hist.sums.shape[1]), np.inf)
    errors[0, 0] = 0.0
    starts = np.zeros(errors.shape, np.int32)
    optimal_clusters(hist.sums, errors, starts)
    return errors, starts


def _means(hist: Histogram, starts: NDArray[np.int32], k: int, end: int) -> Float64:
    """Return the means of the k clusters over the first `end` bins; the empty ones are dropped."""
    levels: list[float] = []
    for m in range(k, 0, -1):
        start = int(starts[m, end])
        if start < end:
            weight, first, _ = hist.sums[:, end] - hist.sums[:, start]
            levels.append(float(first / weight))
        end = start
    return np.unique(np.array(levels, np.float64))


def _around_zero(hist: Histogram, k: int) -> Float64:
    """Return k levels with 0 among them: each side has its own clusters, and what lies inside them goes to 0."""
    sides = [hist.side(-1), hist.side(1)]
    solved = [_clusters(side, k - 1) for side in sides]
    tails = [errors + (side.sums[2, -1] - side.sums[2]) for side, (errors, _) in zip(sides, solved, strict=True)]
    best = [tail.min(axis=1) for tail in tails]
    left = int(np.argmin(best[0] + best[1][::-1]))
    parts = [
        _means(side, found[1], m, int(tail[m].argmin()))
        for side, found, tail, m in zip(sides, solved, tails, (left, k - 1 - left), strict=True)
    ]
    return np.unique(np.concatenate([parts[0], [0.0], parts[1]]))


# -- int8 levels ---------------------------------------------------------------------------------------------------


def fit_levels(hist: Histogram, k: int, zero: bool, steps: Float64 | None = None) -> Fit:
    """Return the best k levels of -127..127 together with the best step, or the best of the given steps.

    For one step the levels are exact (a shortest path over the grid); steps are searched from coarse to fine, then
    refitted by least squares as long as that helps.
    """
    if not hist.x.size or hist.reach == 0:
        return Fit(np.zeros(1, np.int64), 1.0 if steps is None else float(steps[0]), 0.0)
    if k >= GRID:
        return fit_shape(hist, np.arange(-LIMIT, LIMIT + 1), steps)
    if steps is not None:
        return _best_levels(hist, k, zero, steps)[0]
    best = _best_levels(hist, k, zero, hist.reach / LIMIT * COARSE)
    for factors in FINER:
        steps = np.unique(np.outer([fit.step for fit in best[:BEST]], factors))
        best = _best_levels(hist, k, zero, steps)
    return _polish(hist, best[0], zero)


def _best_levels(hist: Histogram, k: int, zero: bool, steps: Float64) -> list[Fit]:
    """Return a fit for each step, the best first."""
    levels, errors = np.zeros((steps.size, k), np.int64), np.zeros(steps.size)
    grid_levels(hist.sums, hist.x, steps, int(zero), levels, errors)
    return [Fit(levels[t], float(steps[t]), float(errors[t])) for t in np.argsort(errors, kind="stable")]


def _polish(hist: Histogram, fit: Fit, zero: bool) -> Fit:
    """Return the fit after alternating a least-squares step with the best levels for it."""
    for _ in range(POLISH):
        refit = _table_errors(hist, fit.levels.astype(np.float64), np.array([fit.step]))[1]
        better = _best_levels(hist, fit.levels.size, zero, refit)[0] if refit[0] > 0 else fit
        if better.error >= fit.error * (1 - 1e-6):
            break
        fit = better
    return fit


def fit_shape(hist: Histogram, levels: NDArray[np.int64], steps: Float64 | None = None) -> Fit:
    """Return the best step for these integer levels, or the best of the given steps."""
    table, tried = levels.astype(np.float64), steps
    if tried is None:
        widest = hist.reach / max(1.0, np.abs(table).max())
        tried = widest * RATIOS if widest > 0 else np.ones(1)
    errors, refits = _table_errors(hist, table, tried)
    best = int(errors.argmin())
    if steps is None and refits[best] > 0:
        tried = np.concatenate([tried[best] * CLOSE, refits[[best]]])
        errors, _ = _table_errors(hist, table, tried)
        best = int(errors.argmin())
    return Fit(levels, float(tried[best]), float(errors[best]))


def _table_errors(hist: Histogram, levels: Float64, steps: Float64) -> tuple[Float64, Float64]:
    errors, refits = np.zeros(steps.size), np.zeros(steps.size)
    table_errors(hist.sums, hist.x, levels, steps, errors, refits)
    return errors, refits
