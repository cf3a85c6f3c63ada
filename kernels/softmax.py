"""Softmax of int8 rows."""

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int8, Int32, kernel, sink, source
from nnac.kernels.requantize import round_divide, saturate


@kernel(source(types.int8, 2), source(types.int32, 1), sink(types.int8, 2), *[INT] * 4)
def softmax(x: Int8, exp_table: Int32, y: Int8, multiplier: int, shift: int, y_zero: int, rounding: int) -> None:
    """Softmax along each row as `numerics.softmax` defines it.

    Args:
        x: (rows, n), n at least 1.
        exp_table: (256,), from 65536 down, of the distance under the maximum.
        y: (rows, n), any strides.
        multiplier: with `shift`, 1 / scale of y.
        shift: 0..62.
        y_zero: zero point of y.
        rounding: as `nnac.numerics.Rounding`.
    """
    for row in range(x.shape[0]):
        values = x[row]
        peak = np.int64(-128)
        for n in range(values.size):
            peak = max(peak, np.int64(values[n]))
        total = np.int64(0)
        for n in range(values.size):
            total += exp_table[peak - values[n]]
        for n in range(values.size):
            share = round_divide(exp_table[peak - values[n]] * multiplier, total, shift, rounding)
            y[row, n] = saturate(share + y_zero, -128, 127)
