"""Products of two matrices of activations.

Of int8, the right one is packed like weights, in every run, and the tiles make sums (`nnac.kernels.conv`) that `end`
requantizes. Of int16, `matmul` does it all.
"""

import numpy as np
from numba import types

from nnac.kernels.conv import Layer
from nnac.kernels.jit import INT, Int8, Int16, Int32, Int64, also, inner, kernel, sink, source
from nnac.kernels.lines import dense
from nnac.kernels.requantize import HALF_EVEN, TFLITE, lift, narrow, saturate, scale_once, scale_twice

Law = tuple[int, int, int, int, int, int, int, int]
"""Multiplier, shift, zero point, low, high, rounding, accumulator's bits, wraps."""


@inner
def _ended(sums: Int64, less: int, y: Int16, law: Law) -> None:
    """A row of sums, each less so much, requantized."""
    multiplier, shift, y_zero, low, high, rounding, acc_bits, acc_wraps = law
    multiplier, shift = lift(multiplier, shift, rounding)
    for n in range(y.size):
        total = narrow(np.int64(sums[n]) - less, acc_bits, acc_wraps)
        if rounding == TFLITE:
            scaled = scale_twice(total, multiplier, shift)
        else:
            scaled = scale_once(total, multiplier, shift, rounding)
        y[n] = saturate(scaled + y_zero, low, high)


@kernel(source(types.int8, 2), INT, INT, source(types.int32, 2, "A"), sink(types.int8, 2), *[INT] * 8)
def end(
    x: Int8,
    x_zero: int,
    w_zero: int,
    sums: Int32,
    y: Int8,
    multiplier: int,
    shift: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
    acc_bits: int,
    acc_wraps: int,
) -> None:
    """``y = requantize(narrow((x - x_zero) @ (w - w_zero)))`` from ``sums = (x - x_zero) @ w``.

    Args:
        x: (M, K).
        x_zero: zero point of x.
        w_zero: zero point of w.
        sums: (M, N), N side by side.
        y: (M, N), N side by side.
        multiplier: with `shift` the ratio of scales; product with the narrowed sum within 2**62.
        shift: 0..62.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`; TFLITE in two steps, for sums of 32 bits only.
        acc_bits: of the accumulator.
        acc_wraps: whether it wraps (else it saturates).
    """
    law = (multiplier, shift, y_zero, low, high, rounding, acc_bits, acc_wraps)
    for m in range(x.shape[0]):
        row, total = x[m], np.int64(0)
        for k in range(row.size):
            total += row[k]
        _ended(dense(sums[m]), w_zero * (total - row.size * x_zero), dense(y[m]), law)


end_wide = also(end, source(types.int8, 2), INT, INT, source(types.int32, 2, "A"), sink(types.int16, 2), *[INT] * 8)


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
    """As `end`, from x and w on.

    Args:
        x: (M, K).
        x_zero: zero point of x.
        w: (K, N).
        w_zero: zero point of w.
        acc: (N,), working memory.
        y: (M, N), N side by side.
        multiplier, shift, y_zero, low, high, rounding, acc_bits, acc_wraps: as for `end`.
    """
    law = (multiplier, shift, y_zero, low, high, rounding, acc_bits, acc_wraps)
    for m in range(x.shape[0]):
        acc[:] = 0
        for k in range(x.shape[1]):
            value, row = np.int64(x[m, k]) - x_zero, w[k]
            for n in range(acc.size):
                acc[n] += value * (row[n] - w_zero)
        _ended(acc, 0, dense(y[m]), law)


def layer_of(depth: int, columns: int, x_zero: int) -> Layer:
    """Returns the layer whose sums `end` takes: a dense one, whose weights are (columns, depth)."""
    return Layer(1, 1, depth, depth, 1, 1, 1, 1, 0, 0, columns, 0, x_zero, 0, 0, 0, HALF_EVEN, 32, 0)
