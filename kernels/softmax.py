"""Softmax of rows."""

import numpy as np
from numba import types

from nnac.kernels.jit import Int8, Int32, Int64, Integer, inner, kernel, sink, source
from nnac.kernels.lines import dense, is_dense
from nnac.kernels.requantize import SCALE, Scale, share


@inner
def _exponentials(table: Int32, peak: Integer, values: Int8, parts: Int64) -> None:
    """For each distance under the peak an entry of a table of 256, or the product of the entries of both bytes."""
    if table.size == 256:
        for n in range(values.size):
            parts[n] = table[np.uint32(peak - values[n])]
    else:
        for n in range(values.size):
            distance = np.uint32(peak - values[n])
            parts[n] = np.int64(table[distance >> 8]) * table[256 + (distance & np.uint32(255))]


@inner
def _shares(parts: Int64, y: Int8, scale: Scale) -> None:
    """What each part is of their sum."""
    total = parts.sum()
    for n in range(y.size):
        y[n] = share(parts[n], total, scale)


@kernel(source(types.int8, 2), source(types.int32, 1), sink(types.int8, 2), SCALE)
def softmax(x: Int8, exp_table: Int32, y: Int8, scale: Scale) -> None:
    """Softmax along each row as `numerics.softmax` defines it.

    Args:
        x: (rows, n), n at least 1.
        exp_table: of `numerics.softmax_table`: (256,) where distances under the maximum have 8 bits, (512,) for 16.
        y: (rows, n), any strides.
        scale: as `requantize.Scale`, of 1 over y.
    """
    parts, fast = np.empty(x.shape[1], np.int64), is_dense(y)
    for row in range(x.shape[0]):
        values = x[row]
        peak = np.int64(values[0])
        for n in range(values.size):
            peak = max(peak, np.int64(values[n]))
        _exponentials(exp_table, peak, values, parts)
        if fast:
            _shares(parts, dense(y[row]), scale)
        else:
            _shares(parts, y[row], scale)
