"""Bytes from here to there: strided copies, and int8 values through tables."""

import numpy as np
from numba import types

from nnac.kernels.jit import Int8, kernel, sink, source

AXES = 6
"""Of a copy."""


@kernel(source(types.int8, AXES, "A"), sink(types.int8, AXES))
def copy(x: Int8, y: Int8) -> None:
    """``y = x``.

    Args:
        x: six axes, any strides.
        y: the same shape, any strides; no two places share a byte.
    """
    shape = x.shape
    for i in range(shape[0]):
        for j in range(shape[1]):
            for k in range(shape[2]):
                for m in range(shape[3]):
                    for n in range(shape[4]):
                        here, there = x[i, j, k, m, n], y[i, j, k, m, n]
                        for p in range(shape[5]):
                            there[p] = here[p]


@kernel(source(types.int8, 2), source(types.int8, 2), sink(types.int8, 2))
def look_up(x: Int8, tables: Int8, y: Int8) -> None:
    """Each column through its table.

    Args:
        x: (rows, tables).
        tables: (tables, 256): entry x + 128.
        y: (rows, tables), any strides.
    """
    for row in range(x.shape[0]):
        for n in range(x.shape[1]):
            y[row, n] = tables[n, np.int64(x[row, n]) + 128]
