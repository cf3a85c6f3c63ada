"""Softmax of rows."""

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int8, Int32, Integer, inner, kernel, sink, source
from nnac.kernels.requantize import round_divide, saturate


@inner
def _exponential(table: Int32, distance: Integer) -> Integer:
    """An entry of a table of 256, or the product of the entries of both bytes."""
    if table.size == 256:
        return np.int64(table[distance])
    return np.int64(table[distance >> 8]) * np.int64(table[256 + (distance & 255)])


@kernel(source(types.int8, 2), source(types.int32, 1), sink(types.int8, 2), *[INT] * 6)
def softmax(
    x: Int8,
    exp_table: Int32,
    y: Int8,
    multiplier: int,
    shift: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
) -> None:
    """Softmax along each row as `numerics.softmax` defines it.

    Args:
        x: (rows, n), n at least 1.
        exp_table: of `numerics.softmax_table`: (256,) where distances under the maximum have 8 bits, (512,) for 16.
        y: (rows, n), any strides.
        multiplier: with `shift`, 1 / scale of y.
        shift: 0..62.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`.
    """
    for row in range(x.shape[0]):
        values = x[row]
        peak = np.int64(values[0])
        for n in range(values.size):
            peak = max(peak, np.int64(values[n]))
        total = np.int64(0)
        for n in range(values.size):
            total += _exponential(exp_table, peak - values[n])
        for n in range(values.size):
            share = round_divide(_exponential(exp_table, peak - values[n]) * multiplier, total, shift, rounding)
            y[row, n] = saturate(share + y_zero, low, high)
