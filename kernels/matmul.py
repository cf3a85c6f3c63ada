"""Products of two matrices of activations.

Where the right one is of int8, it is packed like weights, in every run, and the tiles make sums (`nnac.kernels.conv`)
that `ending` requantizes, or `end_planes` those of the high and the low bytes of int16. Of int16, `matmul` does it all.
"""

from typing import Any

import numpy as np
from numba import types
from numpy.lib.stride_tricks import as_strided

from nnac.kernels import machine
from nnac.kernels.calls import Call
from nnac.kernels.conv import Filters, Layer, is_tieless, lifted_zero
from nnac.kernels.finish import TIELESS
from nnac.kernels.jit import INT, Int8, Int16, Int32, Int64, Integer, inner, kernel, sink, source
from nnac.kernels.lines import piece
from nnac.kernels.panels import pack, padded, steps_of
from nnac.kernels.requantize import HALF_EVEN, TFLITE, lift, narrow, saturate, scale_once
from nnac.kernels.vectors import address, call_address
from nnac.kernels.wide import LOWEST

Law = tuple[int, int, int, int, int, int, int, int]
"""Multiplier, shift, zero point, low, high, rounding, accumulator's bits, wraps."""


@inner
def _weave(rows: tuple[Int8, Int8, Int8, Int8], keep: tuple[Any, Any, Any, Any], words: Int32, totals: Int32) -> None:
    """Bytes of four rows to words, and to their totals; of rows that do not count, which `keep` tells, zeros."""
    a, b, c, d = rows
    for n in range(words.size):
        p, q = np.int32(np.int32(a[n]) & keep[0]), np.int32(np.int32(b[n]) & keep[1])
        r, s = np.int32(np.int32(c[n]) & keep[2]), np.int32(np.int32(d[n]) & keep[3])
        totals[n] = np.int32(totals[n] + np.int32(np.int32(p + q) + np.int32(r + s)))
        low, high = np.int32(p & 255) | np.int32((q & 255) << 8), np.int32((r & 255) << 16) | np.int32(s << 24)
        words[n] = np.int32(low | high)


@inner
def _pack_rows(w: Int8, zero: int, width: int, words: Int32) -> None:
    """`panels.pack` of a (K, N) matrix without biases."""
    depth, columns = w.shape
    for first in range(0, columns, width):
        last, across = min(first + width, columns), min(width, padded(columns) - first)
        panel = words[first * (steps_of(depth) + 1) :]
        starts = panel[: last - first]
        starts[:] = 0
        for k in range(0, depth, 4):
            b, c, d = min(k + 1, depth - 1), min(k + 2, depth - 1), min(k + 3, depth - 1)
            rows = w[k, first:last], w[b, first:last], w[c, first:last], w[d, first:last]
            keep = np.int32(-1), np.int32(k - b), np.int32(-(c > b)), np.int32(-(d > c))
            at = (k // 4 + 1) * across
            _weave(rows, keep, panel[at : at + starts.size], starts)
        for n in range(starts.size):
            starts[n] = np.int32(-zero * starts[n])


@kernel(source(types.int8, 2), source(types.int32, 1), sink(types.int32, 1, "C"), *[INT] * 3)
def _pack(w: Int8, bias: Int32, words: Int32, turned: int, zero: int, width: int) -> None:
    """`packing`; `bias` is (N,), zeros."""
    if turned:
        pack(w, bias, (0, w.shape[0]), w.shape[0], zero, width, w.shape[1], words, 0)
    else:
        _pack_rows(w, zero, width, words)


def packing(right: Int8, turned: int, filters: Filters, layer: Layer) -> Call:
    """Returns the call that packs the right matrix.

    Args:
        right: (K, N), or (N, K) where it is `turned`.
        turned: whether each of its rows is a column of the product.
        filters: room for it, from `conv.empty_filters`.
        layer: from `layer_of`.
    """
    bias = np.zeros(layer.group_out, np.int32)
    return Call(_pack, (right, bias, filters.packed.view(np.int32), turned, lifted_zero(layer), machine.width()))


@inner
def _lessen(sums: Int32, less: int) -> None:
    """A row of sums less so much."""
    for n in range(sums.size):
        sums[n] = np.int32(sums[n] - np.int32(less))


@kernel(
    source(types.int8, 2),
    *[INT] * 2,
    sink(types.int32, 2),
    sink(types.int32, 1, "C"),
    sink(types.int64, 1, "C"),
    sink(types.int8, 2),
    *[INT] * 10,
)
def _end(
    x: Int8,
    x_zero: int,
    w_zero: int,
    sums: Int32,
    multipliers: Int32,
    shifts: Int64,
    y: Int8,
    finish: int,
    y_bytes: int,
    multiplier: int,
    shift: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
    acc_bits: int,
    acc_wraps: int,
) -> None:
    """`ending`: the zero point of the right matrix first, then as the sums of a convolution (`finish.finish`)."""
    for m in range(x.shape[0]):
        row, total = piece(x, (m,), 0, x.shape[1]), np.int32(0)
        for k in range(row.size):
            total = np.int32(total + row[k])
        _lessen(piece(sums, (m,), 0, sums.shape[1]), w_zero * (total - row.size * x_zero))
    tieless = rounding != TFLITE and is_tieless(255 * 255 * x.shape[1], multiplier, shift)
    multipliers[:], shifts[:] = lift(multiplier, shift, rounding)
    if tieless:
        shifts[:] += TIELESS
    scale, target = (address(multipliers), address(shifts)), (address(y), y.strides[0], y_bytes)
    law = (y_zero, low, high, rounding, acc_bits, acc_wraps)
    call_address(finish, (address(sums), x.shape[0], sums.strides[0], sums.shape[1], *scale, *target, *law))


def ending(x: Int8, x_zero: int, w_zero: int, sums: Int32, y: Int8 | Int16, filters: Filters, *law: int) -> Call:
    """Returns the call of ``y = requantize(narrow((x - x_zero) @ (w - w_zero)))`` from ``sums = (x - x_zero) @ w``.

    Args:
        x: (M, K).
        x_zero: zero point of x.
        w_zero: zero point of w.
        sums: (M, N), N side by side, and finish.LANES behind; they are changed.
        y: (M, N) of int8 or int16, N side by side.
        filters: of the right matrix.
        law: as `Law`: a multiplier whose product with the narrowed sum is within 2**62; TFLITE is two steps.
    """
    target = as_strided(y.view(np.int8), y.shape, y.strides)
    arrays = (sums, filters.multipliers, filters.shifts, target)
    return Call(_end, (x, x_zero, w_zero, *arrays, machine.finish(), y.itemsize, *law))


@inner
def _ended(total: Integer, law: Law) -> Integer:
    """A sum, requantized in one step."""
    multiplier, shift, y_zero, low, high, rounding, acc_bits, acc_wraps = law
    scaled = scale_once(narrow(total, acc_bits, acc_wraps), multiplier, shift, rounding)
    return saturate(scaled + y_zero, low, high)


@inner
def _joined(high: Int32, low: Int32, columns: Int32, less: Integer, y: Int16, law: Law) -> None:
    """`end_planes` of a row."""
    for n in range(y.size):
        y[n] = _ended(256 * np.int64(high[n]) + low[n] + LOWEST * np.int64(columns[n]) - less, law)


@kernel(source(types.int16, 2), INT, *[source(types.int32, 2, "A")] * 2, sink(types.int16, 2), *[INT] * 8)
def end_planes(
    x: Int16,
    w_zero: int,
    high: Int32,
    low: Int32,
    y: Int16,
    multiplier: int,
    shift: int,
    y_zero: int,
    least: int,
    most: int,
    rounding: int,
    acc_bits: int,
    acc_wraps: int,
) -> None:
    """``y = requantize(narrow(x @ (w - w_zero)))`` from the sums of both bytes of x (`wide.split`) with w.

    Args:
        x: (M, K).
        w_zero: zero point of w.
        high: (M, N), N side by side.
        low: (M + 1, N), N side by side; the last row are the sums of the columns of w.
        y: (M, N), N side by side.
        multiplier, shift, y_zero, rounding, acc_bits, acc_wraps: as for `matmul`.
        least: smallest output.
        most: largest output.
    """
    law = (multiplier, shift, y_zero, least, most, rounding, acc_bits, acc_wraps)
    count, columns = y.shape[1], piece(low, (x.shape[0],), 0, y.shape[1])
    for m in range(x.shape[0]):
        row, total = piece(x, (m,), 0, x.shape[1]), np.int64(0)
        for k in range(row.size):
            total += row[k]
        those = piece(high, (m,), 0, count), piece(low, (m,), 0, count), columns
        _joined(*those, w_zero * total, piece(y, (m,), 0, count), law)


@kernel(
    source(types.int16, 2),
    INT,
    source(types.int16, 2),
    INT,
    sink(types.int64, 1, "C"),
    sink(types.int16, 2),
    *[INT] * 8,
)
def matmul(
    x: Int16,
    x_zero: int,
    w: Int16,
    w_zero: int,
    acc: Int64,
    y: Int16,
    multiplier: int,
    shift: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
    acc_bits: int,
    acc_wraps: int,
) -> None:
    """``y = requantize(narrow((x - x_zero) @ (w - w_zero)))``.

    Args:
        x: (M, K).
        x_zero: zero point of x.
        w: (K, N).
        w_zero: zero point of w.
        acc: (N,), working memory.
        y: (M, N), N side by side.
        multiplier: with `shift` the ratio of scales; product with the narrowed sum within 2**62.
        shift: 0..62.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`; one step.
        acc_bits: of the accumulator.
        acc_wraps: whether it wraps (else it saturates).
    """
    law = (multiplier, shift, y_zero, low, high, rounding, acc_bits, acc_wraps)
    for m in range(x.shape[0]):
        acc[:] = 0
        for k in range(x.shape[1]):
            value, row = np.int64(x[m, k]) - x_zero, piece(w, (k,), 0, acc.size)
            for n in range(acc.size):
                acc[n] += value * (row[n] - w_zero)
        made = piece(y, (m,), 0, acc.size)
        for n in range(acc.size):
            made[n] = _ended(acc[n], law)


def layer_of(depth: int, columns: int, x_zero: int) -> Layer:
    """Returns the layer whose sums `ending` takes: a dense one, whose weights are (columns, depth).

    Its group is larger than a depthwise layer's, which a single column of depth 1 would be.
    """
    group = max(columns, 2)
    return Layer(1, 1, depth, depth, 1, 1, 1, 1, 0, 0, group, 0, x_zero, 0, 0, 0, HALF_EVEN, 32, 0)
