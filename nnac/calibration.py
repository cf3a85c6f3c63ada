"""Calibration: the range of every float tensor over sample inputs, read one sample at a time.

Whatever the number of samples, a tensor costs two floats (minmax) or a histogram of 65536 fixed bins (percentile, mse);
extremes and integer counts do not depend on the order of the samples, so the ranges do not either, bit for bit.
"""

from __future__ import annotations

import operator
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import ceil, isfinite, prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from nnac.errors import ModelError, one_line, raise_all
from nnac.floatmodel import FloatModel
from nnac.numerics import INT16_HIGH
from nnac.types import Array, First

METHODS = ("minmax", "percentile", "mse")

Function = Callable[[Array], Array]
Sample = dict[str, Array]
Shape = tuple[int, ...]
Source = str | os.PathLike[str] | Iterable[Mapping[str, Array]]

BINS = 1 << 16  # one per upper half of a float32 pattern: sign, exponent, 7 of 23 mantissa bits; up to 1/128 wide
_STEPS = 255  # of the int8 quantizer between its ends
_SMALLEST_SHRINK = 1 / 32  # mse cuts no end to much less than this share of its extreme
_COARSE = np.geomspace(1, _SMALLEST_SHRINK, 26)  # shares of the extremes
_FINE, _FINER = np.geomspace(1.14, 1 / 1.14, 13), np.geomspace(1.02, 1 / 1.02, 9)  # shares of the last result
_SHARES = 2.0 ** (-np.arange(25) / 2)  # of the peak, what int16 may reach to
_POINTS = (0.125, 0.375, 0.625, 0.875)  # where mse reads a bin, as shares of its width
_ENTRIES = 4096  # of a tensor that the power of the median one is taken from, at most (evenly spread)
_CLEAR_GAIN = 0.98  # mse keeps minmax unless the error falls below this share: less is within a bin's resolution


@dataclass(frozen=True, slots=True)
class Range:
    """What a quantizer has to cover: finite low <= 0 <= high. `Range.of` widens any two numbers to that.

    Attributes:
        power: mean square over the samples of the median entry (of those that are not always zero); None if not known.
        reach: largest magnitude that int16 best represents, judged behind the function that reads it; None: all.
    """

    low: float
    high: float
    power: float | None = field(default=None, compare=False)
    reach: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low <= 0 <= self.high):
            raise ValueError(f"a range is finite and includes zero, found [{self.low}, {self.high}]")

    @classmethod
    def of(cls, low: float, high: float, power: float | None = None) -> Range:
        """Return the smallest range that holds both numbers and zero (never a negative zero)."""
        return cls(min(float(low), 0.0) + 0.0, max(float(high), 0.0) + 0.0, power)


def calibrate(
    model: onnx.ModelProto,
    samples: Iterable[Mapping[str, Array]],
    tensors: Sequence[str],
    method: str = "minmax",
    progress: Callable[[int], None] | None = None,
    percentile: float = 99.99,
    states: Mapping[str, str] | None = None,
    derive: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None,
    through: Mapping[str, Function] | None = None,
) -> dict[str, Range]:
    """Run the float model on the samples and return the range of each named float tensor.

    Args:
        model: the float model, with its weights inside.
        samples: inputs by name, one mapping per run; any order gives the same ends, bit for bit.
        tensors: names of graph inputs, outputs or intermediate tensors; those that are not float are left out.
        method: minmax covers every value; percentile cuts (100 - percentile) % of the values at each end;
            mse takes the ends that minimise the expected squared error of the int8 asymmetric quantizer.
        progress: called with the number of samples done, after each.
        percentile: for that method alone, in (50, 100]; within one bin (1/128), never cutting more than it says.
        states: as for `FloatModel`; the samples are steps of sequences then.
        derive: returns more tensors, under names of their own, from those of one run; their ranges come too.
        through: functions by the name of the tensor that they read, whose ranges come with a `reach`.

    Raises:
        ModelError: unknown method or tensor, no samples, a sample that does not fit the model, a value that is not
            finite (the message names tensor and sample).
    """
    if method not in METHODS:
        raise ModelError(f"calibration method {method!r} is unknown, choose one of {', '.join(METHODS)}")
    if not 50 < percentile <= 100:
        raise ModelError(f"calibration percentile is {percentile}, expected more than 50, at most 100")
    runner = FloatModel(model, tensors, states)
    fresh, functions = _Extremes if method == "minmax" else _Histogram, through or {}
    wanted: dict[str, _Extremes] = {name: _Histogram() if name in functions else fresh() for name in tensors}
    seen: dict[str, _Extremes] = {}
    done = 0
    for done, sample in enumerate(samples, 1):
        try:
            values = runner.run(sample)
            if derive is not None:
                more = derive(values)
                wanted |= {name: fresh() for name in more if name not in wanted}
                values |= more
            seen.update(_collect(wanted, values))
        except ModelError as error:
            raise ModelError(f"calibration sample {done}: {error}") from error
        if progress is not None:
            progress(done)
    if not done:
        raise ModelError("there are no calibration samples, at least one is needed")
    found = {name: _range(seen[name], method, percentile) for name in wanted if name in seen}
    return found | {n: replace(found[n], reach=_reach(seen[n], f)) for n, f in functions.items() if n in found}


def count(samples: Iterable[object]) -> int | None:
    """Return the number of samples where it is known beforehand (for a progress bar), else None."""
    hint = operator.length_hint(samples, -1)
    return None if hint < 0 else hint


# Collectors


class _Extremes:
    """The exact smallest and largest value seen, zero included; and the squares of some entries, summed up."""

    __slots__ = ("high", "low", "runs", "squares")

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.squares, self.runs = np.zeros(0), 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in float32 values of any shape; raise ModelError, without the tensor's name, for NaN and infinity."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (isfinite(low) and isfinite(high)):
            raise ModelError("has NaN or infinite values")
        self.low, self.high = min(self.low, low), max(self.high, high)
        some = values.reshape(-1)[:: -(-values.size // _ENTRIES)].astype(np.float64) ** 2
        if some.size != self.squares.size:  # another shape: begin anew
            self.squares, self.runs = np.zeros(some.size), 0
        self.squares += some
        self.runs += 1

    def power(self) -> float | None:
        """Return the mean square of the median entry, of those that were not always zero."""
        found = self.squares[self.squares > 0]
        return float(np.median(found)) / self.runs if found.size else None


class _Histogram(_Extremes):
    """Extremes, and how many values fell into each fixed bin (int64 counts, index: upper half of the pattern)."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        super().__init__()
        self.counts = np.zeros(BINS, np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in float32 values of any shape, as `_Extremes.add`."""
        super().add(values)
        patterns = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
        self.counts += np.bincount(patterns >> 16, minlength=BINS)


def _collect(wanted: Mapping[str, _Extremes], values: Mapping[str, Array]) -> dict[str, _Extremes]:
    """Add one run's float tensors to their collectors and return those that took something."""
    floats = {name: collector for name, collector in wanted.items() if values[name].dtype.kind == "f"}
    for name, collector in floats.items():
        try:
            with np.errstate(over="ignore"):
                collector.add(values[name].astype(np.float32, copy=False))
        except ModelError as error:
            raise ModelError(f"tensor {name!r} {error}") from error
    return floats


# From a collector to a range


def _range(collector: _Extremes, method: str, percentile: float) -> Range:
    """Return the range that the method chooses from what was collected."""
    if method == "minmax" or not isinstance(collector, _Histogram):
        return Range.of(collector.low, collector.high, collector.power())
    found = _percentile_range(collector, percentile) if method == "percentile" else _mse_range(collector)
    return replace(found, power=collector.power())


def _edges(bins: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each bin's ends, the one nearer to zero first, as float64 (the last finite bin ends at 2^128)."""
    magnitudes = np.arange(BINS // 2 + 1, dtype=np.uint32) << 16
    ends = magnitudes[:0x7F81].view(np.float32).astype(np.float64)
    ends[0x7F80] = 2.0**128
    index, sign = bins & 0x7FFF, np.where(bins >> 15, -1.0, 1.0)
    return sign * ends[index], sign * ends[index + 1]


def _percentile_range(histogram: _Histogram, percentile: float) -> Range:
    """Return the outer ends of the bins that hold the two percentiles, no wider than the extremes."""
    total = int(histogram.counts.sum())
    if not total:
        return Range(0.0, 0.0)
    rank = min(ceil(total * (percentile / 100)), total)
    ascending = np.concatenate([np.arange(BINS - 1, BINS // 2 - 1, -1), np.arange(BINS // 2)])
    high = ascending[np.searchsorted(np.cumsum(histogram.counts[ascending]), rank)]
    low = ascending[::-1][np.searchsorted(np.cumsum(histogram.counts[ascending[::-1]]), rank)]
    _, outer = _edges(np.array([low, high]))
    return Range.of(max(float(outer[0]), histogram.low), min(float(outer[1]), histogram.high))


def _mse_range(histogram: _Histogram) -> Range:
    """Return the range with the least expected squared error, or minmax where nothing is clearly better.

    Both ends shrink together over a coarse grid, then one at a time over the coarse and ever finer grids: but for the
    rounding of the zero point the error is convex in the two ends, so this ends near its least value.
    """
    values, weights = _points(histogram)
    low, high = _least(values, weights, histogram.low * _COARSE, histogram.high * _COARSE)
    for factors in (_COARSE, _FINE, _FINER):
        lows = (histogram.low if factors is _COARSE else low) * factors
        low, high = _least(values, weights, np.append(low, lows.clip(histogram.low)), np.array([high]))
        highs = (histogram.high if factors is _COARSE else high) * factors
        low, high = _least(values, weights, np.array([low]), np.append(high, highs.clip(None, histogram.high)))
    error, plain = (_squared_error(values, weights, *ends) for ends in ((low, high), (histogram.low, histogram.high)))
    return Range.of(low, high) if error < plain * _CLEAR_GAIN else Range.of(histogram.low, histogram.high)


def _reach(histogram: _Extremes, function: Function) -> float:
    """Return the magnitude up to which int16 makes the least squared error behind a function of the values."""
    assert isinstance(histogram, _Histogram)
    bins = np.flatnonzero(histogram.counts)
    inner, outer = _edges(bins)
    values, peak = (inner + outer) / 2, max(-histogram.low, histogram.high)
    defined = np.isfinite(function(values))
    values, counts = values[defined], histogram.counts[bins][defined]
    exact = function(values)

    def error(reach: float) -> float:
        step = reach / INT16_HIGH
        found = function(np.rint(values / step).clip(-INT16_HIGH, INT16_HIGH) * step)
        return float(np.dot(counts, (found.clip(exact.min(), exact.max()) - exact) ** 2))

    return min((peak * float(share) for share in _SHARES), key=error) if peak > 0 and values.size else peak


def _points(histogram: _Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points that stand for the values seen, and their weights.

    Every occupied bin is read at some points between its ends (within the extremes), as one bin may be two steps wide.
    Bins so near to zero that every candidate rounds them to zero add the same to each, and are left out.
    """
    bins = np.flatnonzero(histogram.counts)
    inner, outer = _edges(bins)
    smallest_step = (histogram.high - histogram.low) * _SMALLEST_SHRINK / _STEPS
    kept = np.abs(outer) > smallest_step / 2
    bins, inner, outer = bins[kept], inner[kept], outer[kept]
    values = np.concatenate([inner + (outer - inner) * share for share in _POINTS])
    weights = np.tile(histogram.counts[bins] / len(_POINTS), len(_POINTS))
    return values.clip(histogram.low, histogram.high), weights


def _least(
    values: NDArray[np.float64], weights: NDArray[np.float64], lows: NDArray[np.float64], highs: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the pair of ends (the two lists broadcast) with the least error; the first one among equals."""
    pairs = [(float(low), float(high)) for low, high in np.broadcast(lows, highs)]
    return min(pairs, key=lambda pair: _squared_error(values, weights, *pair))


def _squared_error(values: NDArray[np.float64], weights: NDArray[np.float64], low: float, high: float) -> float:
    """Return the weighted squared error of the int8 quantizer over [low, high], zero represented exactly."""
    scale = (high - low) / _STEPS
    if scale == 0:
        return float(np.dot(weights, values * values))
    first = np.rint(low / scale)
    steps = np.rint(values / scale).clip(first, first + _STEPS)
    error = values - steps * scale
    return float(np.dot(weights, error * error))


# Samples


def load_samples(source: Source, inputs: Mapping[str, Shape]) -> Iterable[Sample]:
    """Return the samples of a source, each array in exactly the shape of the model's input, dtypes as they come.

    The result can be iterated again (where the source can) and holds one sample at a time, but for .npz arrays in
    column-major order, which are read whole. Files are checked (names, headers, shapes) before this returns, their
    contents while they are read. Nothing is ever unpickled.

    Args:
        source: a .npz file (one array per input, first axis: samples), a folder of such files (taken in the order of
            their names), or any iterable of mappings from input name to array.
        inputs: the model's inputs: name -> fixed shape. Leading dimensions of 1 may be absent in a sample.

    Raises:
        ModelError: nothing there, unreadable or foreign files, arrays whose names, shapes, dtypes or numbers of
            samples do not fit the inputs; for iterables, when the sample is reached.
    """
    hollow = [f"input {name!r} has shape {list(shape)}" for name, shape in inputs.items() if min(shape, default=1) < 1]
    raise_all(ModelError, "calibration needs fixed input shapes without empty dimensions:", hollow)
    if isinstance(source, str | os.PathLike):
        return _FileSamples(_files(Path(source)), inputs)
    if not isinstance(source, Iterable):
        raise ModelError(f"samples come from a path or an iterable of mappings, found {type(source).__name__}")
    return _GivenSamples(source, inputs)


def random_samples(
    inputs: Mapping[str, Shape], count: int = 4, seed: int = 0, dtypes: Mapping[str, str] | None = None
) -> Iterable[Sample]:
    """Return `count` samples of normal data, the same for the same seed: for shape and timing studies only.

    Args:
        inputs: shapes by name.
        count, seed: how many, and which.
        dtypes: of the inputs, where they are not float32; integers are 0 or 1, which index what has any entries.
    """
    return _RandomSamples(dict(inputs), count, seed, dict(dtypes or {}))


@dataclass(frozen=True, slots=True)
class _RandomSamples:
    """Normal data, drawn anew in each iteration."""

    inputs: dict[str, Shape]
    count: int
    seed: int
    dtypes: dict[str, str]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sample]:
        draw = np.random.default_rng(self.seed)
        for number in range(self.count):
            sample = {name: self._typed(name, draw.standard_normal(s, np.float32)) for name, s in self.inputs.items()}
            yield sample if number else First(sample)

    def _typed(self, name: str, values: Array) -> Array:
        dtype = np.dtype(self.dtypes.get(name, "float32"))
        return (values if dtype.kind == "f" else values > 0).astype(dtype)


class _GivenSamples:
    """Mappings that the caller made, brought to the model's input shapes."""

    __slots__ = ("_inputs", "_source")

    def __init__(self, source: Iterable[Mapping[str, Array]], inputs: Mapping[str, Shape]) -> None:
        self._source, self._inputs = source, dict(inputs)

    def __length_hint__(self) -> Any:
        known = count(self._source)
        return NotImplemented if known is None else known

    def __iter__(self) -> Iterator[Sample]:
        for number, sample in enumerate(self._source, 1):
            fitted = self._fitted(f"calibration sample {number}", sample)
            yield First(fitted) if number == 1 or isinstance(sample, First) else fitted

    def _fitted(self, where: str, sample: Mapping[str, Array]) -> Sample:
        if not isinstance(sample, Mapping):
            raise ModelError(f"{where} is a {type(sample).__name__}, expected a mapping from input name to array")
        _check_names(where, sample, self._inputs)
        with _reading(where):
            arrays = {name: np.asarray(sample[name]) for name in self._inputs}
        misfits = [_misfit(name, arrays[name].shape, shape) for name, shape in self._inputs.items()]
        raise_all(ModelError, f"{where} does not fit the model:", [text for text in misfits if text])
        return {name: arrays[name].reshape(shape) for name, shape in self._inputs.items()}


class _FileSamples:
    """The samples of .npz files, one file after the other, one sample in memory at a time; a file is a sequence."""

    __slots__ = ("_files", "_inputs", "_length")

    def __init__(self, files: Sequence[Path], inputs: Mapping[str, Shape]) -> None:
        self._files, self._inputs, self._length = files, dict(inputs), 0
        problems = []
        for file in files:
            try:
                self._length += _length(file, self._inputs)
            except ModelError as error:
                problems.append(str(error).replace("\n", "\n  "))
        raise_all(ModelError, "the samples do not fit the model:", problems)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sample]:
        for file in self._files:
            with ExitStack() as stack:
                columns = _columns(stack, file, self._inputs)
                rows = zip(*(column.rows() for column in columns), strict=True)
                for number, arrays in enumerate(rows):
                    sample = dict(zip(self._inputs, arrays, strict=True))
                    yield sample if number else First(sample)


# .npz files


@dataclass(frozen=True, slots=True)
class _Column:
    """One array of an open .npz file, its stream standing behind the header: `shape[0]` samples of shape `target`."""

    where: str
    stream: IO[bytes]
    shape: Shape
    column_major: bool
    dtype: np.dtype[Any]
    target: Shape

    def rows(self) -> Iterator[Array]:
        """Yield the samples; raises ModelError at the first that cannot be read, or for a wrong checksum at the end."""
        if self.column_major:
            yield from (row.reshape(self.target) for row in self._read(self.shape[0]).reshape(self.shape[::-1]).T)
        else:
            yield from (self._read(1).reshape(self.target) for _ in range(self.shape[0]))
        with _reading(self.where):
            self.stream.read(1)  # nothing is left (the header was checked): only the end compares the checksum

    def _read(self, rows: int) -> Array:
        size = rows * prod(self.target) * self.dtype.itemsize
        with _reading(self.where):
            data = self.stream.read(size)
        if len(data) != size:
            raise ModelError(f"{self.where} is truncated")
        return np.frombuffer(data, self.dtype)


def _files(path: Path) -> list[Path]:
    """Return the .npz files that a path means: itself, or those in the folder, sorted by name."""
    with _reading(f"{str(path)!r}"):
        files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        irregular = [file for file in files if not file.is_file()]
    if not files:
        raise ModelError(f"{str(path)!r} holds no .npz files")
    problems = [f"{str(file)!r} is not there, or no regular file" for file in irregular]
    raise_all(ModelError, "samples come from .npz files:", problems)
    return files


def _length(file: Path, inputs: Mapping[str, Shape]) -> int:
    """Return the number of samples in a file, from its headers."""
    with ExitStack() as stack:
        return max((column.shape[0] for column in _columns(stack, file, inputs)), default=0)


def _columns(stack: ExitStack, file: Path, inputs: Mapping[str, Shape]) -> list[_Column]:
    """Return the file's arrays in the order of the inputs, left open until the stack closes.

    Raises:
        ModelError: with all problems of the file.
    """
    where = f"file {str(file)!r}"
    with _reading(where):
        archive = stack.enter_context(zipfile.ZipFile(file))
    members = {member.removesuffix(".npy"): member for member in archive.namelist()}
    if len(members) != len(archive.namelist()):
        raise ModelError(f"{where} has two arrays of one name")
    _check_names(where, members, inputs)
    columns, problems = [], []
    for name, shape in inputs.items():
        try:
            columns.append(_column(stack, archive, members[name], f"array {name!r}", shape))
        except ModelError as error:
            problems.append(str(error))
    if len({column.shape[0] for column in columns}) > 1:
        counts = ", ".join(f"{name!r} {column.shape[0]}" for name, column in zip(inputs, columns, strict=False))
        problems.append(f"the arrays differ in the number of samples: {counts}")
    raise_all(ModelError, f"{where} cannot be used:", problems)
    return columns


def _column(stack: ExitStack, archive: zipfile.ZipFile, member: str, where: str, target: Shape) -> _Column:
    """Open one array, read its header and check it against the input's shape and the bytes that are there."""
    with _reading(where):
        stream = stack.enter_context(archive.open(member))
        shape, column_major, dtype = _header(stream)
        present = archive.getinfo(member).file_size - stream.tell()
    if dtype.kind not in "fiub":
        raise ModelError(f"{where} has dtype {dtype}, expected numbers")
    if not shape or min(shape) < 0:
        raise ModelError(f"{where} has shape {list(shape)}, expected a first axis that counts samples")
    misfit = _misfit("a sample", shape[1:], target)
    if misfit:
        raise ModelError(f"{where} of shape {list(shape)} (first axis: samples): {misfit}")
    if present != prod(shape) * dtype.itemsize:
        raise ModelError(f"{where} should have {prod(shape) * dtype.itemsize:,} bytes by its header, found {present:,}")
    return _Column(f"file {archive.filename!r}, {where}", stream, shape, column_major, dtype, target)


def _header(stream: IO[bytes]) -> tuple[Shape, bool, np.dtype[Any]]:
    """Read a .npy header: shape, whether column-major, dtype. Raises whatever numpy raises."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f".npy version {version} is not supported")


# Checks


def _check_names(where: str, found: Iterable[str], inputs: Mapping[str, Shape]) -> None:
    """Raise ModelError unless `found` are exactly the inputs' names: which array was meant is not guessed."""
    if set(found) != set(inputs):
        names, wanted = (", ".join(map(repr, each)) or "none" for each in (found, inputs))
        raise ModelError(f"{where} has the arrays {names}; the model's inputs are {wanted}")


def _misfit(what: str, found: Shape, target: Shape) -> str:
    """Return why a sample's shape is not the input's, with or without its leading ones; empty when it fits."""
    ones = next((axis for axis, size in enumerate(target) if size != 1), len(target))
    allowed = [target[axis:] for axis in range(ones + 1)]
    if found in allowed:
        return ""
    return f"{what} has shape {list(found)}, allowed: {' or '.join(str(list(shape)) for shape in allowed)}"


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn whatever file formats raise (bad zips, checksums, headers, ragged lists) into one ModelError."""
    try:
        yield
    except Exception as error:
        raise ModelError(f"{where} cannot be read: {one_line(error)}") from error
