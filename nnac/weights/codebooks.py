"""Codebooks: a weight tensor as indices of b bits into a table of int8 values, times a float32 scale.

Decoded weight = table[index] * scale[output channel]; the accelerator computes with the int8 values. A generator
proposes the table, an assigner chooses the indices (`nearest`, or `gptq` with a Hessian of calibration data); both are
free to combine. Tables belong to the whole tensor or to equal runs of output channels. A reconstruction of the weight
side of S8BQAT (arXiv 2206.15408: Lloyd-Max codebooks of fewer than eight bits on an int8 accelerator).

Scales and levels are searched together: rows are brought to one size, one table is fitted to all of them with int8
levels from the start, then each row's scale is refitted to the table and the table to the scales, as long as the
squared error falls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, log10

import numpy as np
from numpy.typing import NDArray

from nnac.errors import ModelError
from nnac.kernels.cluster import HALVES, nearest, search_scales
from nnac.types import Array
from nnac.weights import generators, histogram
from nnac.weights.feedback import assign_with_feedback
from nnac.weights.generators import Generator
from nnac.weights.histogram import LIMIT, Fit, Histogram

Int8 = NDArray[np.int8]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

ASSIGNERS = ("nearest", "gptq")
TINY = 2.0**-100
"""No scale is smaller."""
FAINT = 2.0**-20
"""A row of zeros gets this part of the smallest other scale where the table has no zero."""
FACTORS = 2.0 ** (np.arange(-4, 9) / 4)
SMALL_FACTORS = 2.0 ** (np.arange(-2, 3) / 12)
OCTAVES = 2.0 ** np.arange(-12, 3)
NEIGHBOURS = np.array([1.0, 0.5, 2.0])
STAY = np.ones(1)
ROUNDS = 3
SHARES = 2.0 ** -np.linspace(0, 7, 96)


@dataclass(frozen=True, slots=True)
class Codebook:
    """A table of int8 levels, ascending, and the width of its indices.

    Args:
        table: at most 2**bits distinct int8 values in -127..127.
        bits: 1 to 8.
    """

    table: Int8
    bits: int

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if not 1 <= self.table.size <= 2**self.bits or self.table.dtype != np.int8 or self.table.ndim != 1:
            raise ModelError(
                f"a codebook of {self.bits} bits holds 1 to {2**self.bits} int8 values, not "
                f"{self.table.size} of {self.table.dtype}"
            )
        if self.table[0] < -LIMIT or (np.diff(self.table.astype(np.int16)) <= 0).any():
            raise ModelError("the levels of a codebook ascend from -127 to 127, each once")

    def indices(self, levels: Int8) -> NDArray[np.uint8]:
        """Return the index of each level, all of which are in the table."""
        return np.searchsorted(self.table, levels).astype(np.uint8)

    def nearest_levels(self) -> Int8:
        """Return the (512,) nearest level of each half step from -128: what kernels look up."""
        table = self.table.astype(np.float64)
        middles = np.arange(HALVES) / 2 - 128 + 0.25
        return np.ascontiguousarray(self.table[np.searchsorted((table[1:] + table[:-1]) / 2, middles)])


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded weight tensor, decoded.

    Args:
        weights: int8 levels, of the shape of the tensor.
        scale: (O,) float32 per output channel; all the same where the scale is per tensor.
        codebooks: one per group of output channels, in order; groups are equal runs as `group_bounds` says.
        sqnr_db: power of the float32 weights over that of their error; infinite where nothing is lost.
    """

    weights: Int8
    scale: Float32
    codebooks: tuple[Codebook, ...]
    sqnr_db: float

    @property
    def tables(self) -> tuple[Int8, ...]:
        """The table of each group."""
        return tuple(codebook.table for codebook in self.codebooks)

    @property
    def groups(self) -> int:
        """How many groups of output channels have a table of their own."""
        return len(self.codebooks)

    @property
    def bits(self) -> int:
        """Width of an index."""
        return self.codebooks[0].bits

    def indices(self) -> NDArray[np.uint8]:
        """Return the index of each weight into the table of its group."""
        bounds = group_bounds(len(self.weights), self.groups)
        parts = [book.indices(self.weights[a:b]) for book, (a, b) in zip(self.codebooks, pairwise(bounds), strict=True)]
        return np.concatenate(parts)

    def dequantized(self) -> Float32:
        """Return the float32 weights that the levels stand for."""
        return np.asarray(self.weights.astype(np.float32) * self.scale.reshape(-1, *(1,) * (self.weights.ndim - 1)))


@dataclass(frozen=True, slots=True)
class Task:
    """What one table is fitted to.

    Args:
        rows: (R, K) float32; each row has a scale.
        importance: (R, K) float32 weights of the squared errors.
        generator: proposes the levels.
        bits: width of an index.
        zero: whether 0 is one of the levels.
        parameter: mu or exponent of the generator.
        refit: whether scales are searched; else the generator's rule gives them.
        power_of_two: whether scales are powers of two.
        scale: (R,) given scales, or None.
    """

    rows: Float32
    importance: Float32
    generator: Generator
    bits: int
    zero: bool = False
    parameter: float | None = None
    refit: bool = True
    power_of_two: bool = False
    scale: Float64 | None = None

    @property
    def factors(self) -> Float64:
        """Changes of a row's scale that are worth a try."""
        if self.scale is not None or not self.refit:
            return STAY
        return NEIGHBOURS if self.power_of_two else FACTORS

    @property
    def rounds(self) -> int:
        """Least-squares refits of a row's scale."""
        return 0 if self.scale is not None or self.power_of_two or not self.refit else ROUNDS


@dataclass(frozen=True, slots=True)
class Solution:
    """A table with a scale for each row, and its squared error."""

    table: Int8
    scale: Float64
    error: float


def encode(
    weights: Array,
    bits: int,
    generator: str = "lloyd_max",
    assigner: str = "nearest",
    *,
    groups: int = 1,
    per_channel: bool = True,
    zero: bool = False,
    importance: Array | None = None,
    hessian: Array | None = None,
    power_of_two: bool = False,
    scale: Array | None = None,
    parameter: float | None = None,
    refit: bool | None = None,
) -> Encoded:
    """Encode float weights with a table of at most 2**bits int8 levels per group of output channels.

    Args:
        weights: (O, ...) finite reals.
        bits: 1 to 8.
        generator: a name of `nnac.weights.generators.GENERATORS`.
        assigner: `nearest`, or `gptq`.
        groups: equal runs of output channels with a table each.
        per_channel: a scale per output channel, else one for the tensor.
        zero: one of the levels is 0.
        importance: weights of the squared errors: one per weight, or per input (the shape of weights[0], or flat).
        hessian: for `gptq`, the sum of x x^T over calibration inputs: (K, K) with K = weights[0].size; (G, K, K) for
            grouped convolutions, each for an equal run of output channels. A common factor does not matter.
        power_of_two: scales are powers of two.
        scale: given scales, (O,) or one.
        parameter: mu of `mu_law` (default 5), exponent of `power` (default: the best of 0.3 to 1).
        refit: search the scales for the least squared error; False takes the generator's own: the largest weight at the
            largest level, or its rule. Default: False for `ternary`, `binary`, `gaussian_median` and `double_rounding`,
            whose rule is part of their definition (a constraint on the scales overrides the rules of the first three).

    Raises:
        ModelError: an argument outside what is said here.
    """
    chosen = generators.find(generator)
    matrix = _matrix(weights, bits, groups)
    if assigner not in ASSIGNERS or (assigner == "gptq") != (hessian is not None):
        raise ModelError(
            f"assigner {assigner!r} {'with' if hessian is not None else 'without'} a Hessian: there are "
            f"'nearest', without one, and 'gptq', with one"
        )
    task = Task(
        matrix,
        _importance(importance, weights, matrix),
        chosen,
        bits,
        zero,
        parameter,
        _refits(chosen, refit),
        power_of_two,
        _given(scale, len(matrix), per_channel),
    )
    books, scales = _fit_groups(task, groups, per_channel)
    tables = np.repeat([book.nearest_levels() for book in books], np.diff(group_bounds(len(matrix), groups)), axis=0)
    levels = np.empty(matrix.shape, np.int8)
    if hessian is None:
        _assign(_once_rounded(task, scales), scales, tables, levels)
    else:
        _assign(matrix, scales, tables, levels)
        levels = assign_with_feedback(matrix, hessian, scales, tables, levels)
    return finish(weights, levels, scales, books, zero)


def check_bits(bits: int) -> None:
    """Raise ModelError unless an index may have this width."""
    if bits not in range(1, 9):
        raise ModelError(f"bits = {bits}: an index into a codebook has 1 to 8 bits")


def group_bounds(channels: int, groups: int) -> list[int]:
    """Return where groups of output channels begin, and the end: runs as equal as can be.

    Raises:
        ModelError: there are fewer channels than groups.
    """
    if not 1 <= groups <= channels:
        raise ModelError(f"groups = {groups}: a tensor of {channels} output channels has 1 to {channels} groups")
    return [group * channels // groups for group in range(groups + 1)]


def finish(weights: Array, levels: Int8, scales: Float64, books: list[Codebook], zero: bool = False) -> Encoded:
    """Return the encoded tensor; tables keep the levels that are used (and 0 if `zero`)."""
    bounds = group_bounds(len(levels), len(books))
    pinned = [0] if zero else []
    used = [np.union1d(levels[a:b], pinned).astype(np.int8) for a, b in pairwise(bounds)]
    books = [Codebook(table, book.bits) for table, book in zip(used, books, strict=True)]
    shaped = levels.reshape(np.shape(weights))
    return Encoded(shaped, scales.astype(np.float32), tuple(books), _sqnr(weights, levels, scales))


def _sqnr(weights: Array, levels: Int8, scales: Float64) -> float:
    """Return the signal-to-noise ratio of float32(level) * float32(scale) in dB."""
    real = np.asarray(weights, np.float32).astype(np.float64).reshape(levels.shape)
    decoded = levels.astype(np.float32) * scales.astype(np.float32)[:, None]
    unit = float(np.abs(real).max()) or 1.0
    noise = float((((real - decoded) / unit) ** 2).sum())
    signal = float(((real / unit) ** 2).sum())
    if noise == 0:
        return inf
    return 10 * log10(signal / noise) if signal > 0 else -inf


# -- arguments -----------------------------------------------------------------------------------------------------


def _matrix(weights: Array, bits: int, groups: int) -> Float32:
    """Return the weights as float32 rows, one per output channel."""
    check_bits(bits)
    if np.ndim(weights) < 1 or not np.size(weights):
        raise ModelError(f"weights of shape {np.shape(weights)}: there is nothing to encode")
    group_bounds(len(weights), groups)
    matrix = np.ascontiguousarray(np.asarray(weights).reshape(len(weights), -1), np.float32)
    if not np.isfinite(matrix).all():
        raise ModelError("weights hold values that are not finite in float32")
    return matrix


def _importance(importance: Array | None, weights: Array, matrix: Float32) -> Float32:
    """Return the importance of every weight, as a view where it repeats."""
    if importance is None:
        return np.broadcast_to(np.ones((1, 1), np.float32), matrix.shape)
    found = np.asarray(importance, np.float32)
    if found.shape not in (np.shape(weights), np.shape(weights)[1:], matrix.shape, matrix.shape[1:]):
        raise ModelError(
            f"importance of shape {found.shape}: weights of shape {np.shape(weights)} take one per weight "
            f"or one per input, {np.shape(weights)[1:]}"
        )
    if not np.isfinite(found).all() or found.min() < 0 or found.max() == 0:
        raise ModelError("importance is finite, not negative, and somewhere positive")
    return np.broadcast_to(found.reshape(-1, matrix.shape[1]), matrix.shape)


def _refits(generator: Generator, refit: bool | None) -> bool:
    return not generator.ruled if refit is None else refit


def _given(scale: Array | None, channels: int, per_channel: bool) -> Float64 | None:
    """Return given scales, one per output channel, at float32 precision."""
    if scale is None:
        return None
    found = np.asarray(scale, np.float32).astype(np.float64).reshape(-1)
    if found.size not in (1, channels) or not (np.isfinite(found) & (found > 0)).all():
        raise ModelError(f"scale of shape {np.shape(scale)}: it is positive and finite, one or one per output channel")
    if not per_channel and (found != found[0]).any():
        raise ModelError("scales differ between output channels, with per_channel=False")
    return np.broadcast_to(found, (channels,)).copy()


# -- tables and scales ---------------------------------------------------------------------------------------------


def _fit_groups(task: Task, groups: int, per_channel: bool) -> tuple[list[Codebook], Float64]:
    """Return the codebook of each group and the scale of each output channel, float32 values."""
    if not per_channel and task.scale is None:
        whole = replace(task, rows=task.rows.reshape(1, -1), importance=task.importance.reshape(1, -1))
        solution = _fit(whole)
        scale = np.repeat(_legal(solution, whole.rows), len(task.rows))
        if groups == 1:
            return [Codebook(solution.table, task.bits)], scale
        task = replace(task, scale=scale)
    bounds = group_bounds(len(task.rows), groups)
    solutions = [_fit(_part(task, a, b)) for a, b in pairwise(bounds)]
    scales = [_legal(s, task.rows[a:b]) for s, (a, b) in zip(solutions, pairwise(bounds), strict=True)]
    return [Codebook(s.table, task.bits) for s in solutions], np.concatenate(scales)


def _part(task: Task, first: int, last: int) -> Task:
    scale = None if task.scale is None else task.scale[first:last]
    return replace(task, rows=task.rows[first:last], importance=task.importance[first:last], scale=scale)


def _legal(solution: Solution, rows: Float32) -> Float64:
    """Return float32 scales; rows of zeros get one under which they stay zeros, or almost."""
    scale, alive = np.maximum(solution.scale, TINY), rows.any(axis=1)
    if alive.any() and not alive.all() and 0 not in solution.table:
        scale = np.where(alive, scale, max(TINY, float(scale[alive].min()) * FAINT))
    return scale.astype(np.float32).astype(np.float64)


def _fit(task: Task) -> Solution:
    """Return the best solution over the ways to bring rows to one size."""
    shapes = task.generator.propose(task.bits, task.zero, task.parameter)
    if not task.rows.any() and (task.scale is None or 0.0 in task.rows):
        return Solution(np.zeros(1, np.int8), np.ones(len(task.rows)) if task.scale is None else task.scale, 0.0)
    if not task.refit and task.scale is None and not task.power_of_two:
        return _ruled(task, shapes)
    return min((_search(task, shapes, norm) for norm in _norms(task)), key=lambda found: found.error)


def _norms(task: Task) -> list[Float64]:
    """Return sizes of the rows to start from; rows of zeros have size 1."""
    if task.scale is not None:
        return [task.scale]
    functions = (generators.root_mean_square, generators.peak) if len(task.rows) > 1 else (generators.peak,)
    sizes = [function(task.rows, task.importance) for function in functions]
    sizes = [np.where(size > 0, size, 1.0) for size in sizes]
    return [2.0 ** np.rint(np.log2(size)) for size in sizes[:1]] if task.power_of_two else sizes


def _histogram(task: Task, norm: Float64) -> Histogram:
    """Return the histogram of rows / norm; errors count in the units of the rows, those of rows of zeros not at all."""
    weight = np.where(task.rows.any(axis=1), norm / norm.max(), 0.0) ** 2
    return histogram.of_rows(task.rows, norm, weight, task.importance)


def _search(task: Task, shapes: list[Float64], norm: Float64) -> Solution:
    """Return the table and the scales that alternate to the least squared error from these sizes of the rows."""
    fit = _fit_table(task, shapes, _histogram(task, norm))
    solution = _rescale(task, fit.levels, norm * fit.step, task.factors)
    if task.generator.shapes is not None or len(task.rows) == 1 or task.factors is STAY:
        return solution
    for _ in range(ROUNDS):
        hist = _histogram(task, solution.scale)
        levels = histogram.fit_levels(hist, 2**task.bits, task.zero, STAY).levels
        factors = NEIGHBOURS if task.power_of_two else SMALL_FACTORS
        better = _rescale(task, levels, solution.scale, factors)
        if better.error >= solution.error * (1 - 1e-4):
            break
        solution = better
    return solution


def _rescale(task: Task, levels: NDArray[np.int64], scale: Float64, factors: Float64) -> Solution:
    """Return the solution with these levels and each row's best scale near the given one."""
    table, found, errors = levels.astype(np.int8), scale.copy(), np.zeros(len(scale))
    lookup = Codebook(table, 8).nearest_levels()
    several = len(task.rows) > 1
    search_scales(
        task.rows, task.importance, lookup, factors if several else STAY, task.rounds if several else 0, found, errors
    )
    return Solution(table, found, float(errors.sum()))


def _fit_table(task: Task, shapes: list[Float64], hist: Histogram) -> Fit:
    """Return integer levels and a step for rows of one size."""
    steps = STAY if task.scale is not None else None
    if task.power_of_two and steps is None:
        steps = 2.0 ** np.rint(np.log2(hist.reach / LIMIT)) * OCTAVES
    if task.generator.shapes is None:
        return histogram.fit_levels(hist, 2**task.bits, task.zero, steps)
    tables = [table for shape in _moved(task, shapes, hist) for table in _integers(task, shape, steps is not None)]
    return min((histogram.fit_shape(hist, table, steps) for table in tables), key=lambda fit: fit.error)


def _moved(task: Task, shapes: list[Float64], hist: Histogram) -> list[Float64]:
    """Return the shapes, in units of the histogram where they move with its mean and deviation."""
    return [shape * hist.deviation + hist.mean for shape in shapes] if task.generator.centered else shapes


def _integers(task: Task, shape: Float64, fixed: bool) -> list[NDArray[np.int64]]:
    """Return integer levels in the shape's proportions: the finest ones, or many sizes where the step is fixed."""
    largest = float(np.abs(shape).max())
    if task.generator.integral:
        sizes = np.arange(1, LIMIT // largest + 1) if fixed else STAY
    else:
        sizes = LIMIT / largest * (SHARES if fixed else STAY)
    return list({table.tobytes(): table for size in sizes for table in [_snap(shape * size)]}.values())


def _snap(levels: Float64) -> NDArray[np.int64]:
    return np.unique(np.clip(np.rint(levels), -LIMIT, LIMIT)).astype(np.int64)


# -- rules ---------------------------------------------------------------------------------------------------------


def _ruled(task: Task, shapes: list[Float64]) -> Solution:
    """Return the best table under the generator's own scale: nothing is searched but the proposals."""
    size = task.generator.norm(task.rows, task.importance)
    norm = np.where(size > 0, size, 1.0)
    if task.generator.shapes is None:
        return _search(replace(task, scale=norm / LIMIT), shapes, norm / LIMIT)
    hist = _histogram(task, norm)
    found = []
    for shape in _moved(task, shapes, hist):
        largest = float(np.abs(shape).max())
        unit = largest if task.generator.unit is None else task.generator.unit
        grain = 1.0 if task.generator.integral else largest / LIMIT
        found.append(histogram.fit_shape(hist, _snap(shape / grain), np.array([grain / unit])))
    best = min(found, key=lambda fit: fit.error)
    return Solution(best.levels.astype(np.int8), norm * best.step, best.error)


def double_round(levels: Int8, bits: int) -> Int8:
    """Return int8 weights rounded a second time to `bits` bits, times 2**(8 - bits): still weights of the same scale.

    q8 -> clip(round(q8 / 2**(8 - bits))), half to even, symmetric so that products stay in -127..127 (Double Rounding).

    Raises:
        ModelError: bits outside 2..8.
    """
    generators.find("double_rounding").propose(bits, False, None)
    step, limit = 2 ** (8 - bits), 2 ** (bits - 1) - 1
    return np.asarray((np.clip(np.rint(levels / step), -limit, limit) * step).astype(np.int8))


def _once_rounded(task: Task, scales: Float64) -> Float32:
    """Return the rows as they are; for double rounding, the float values of their int8 form."""
    if task.generator.name != "double_rounding":
        return task.rows
    integers = np.clip(np.rint(task.rows / scales[:, None]), -LIMIT, LIMIT).astype(np.int8)
    return np.asarray((double_round(integers, task.bits) * scales[:, None]).astype(np.float32))


def _assign(rows: Float32, scales: Float64, tables: Int8, levels: Int8) -> None:
    """Write the nearest levels; runs of rows with one table go together."""
    changes = np.flatnonzero((np.diff(tables, axis=0) != 0).any(axis=1)) + 1
    bounds = [0, *changes.tolist(), len(rows)]
    for a, b in pairwise(bounds):
        nearest(rows[a:b], scales[a:b], tables[a], levels[a:b])
