"""Bytes from here to there: strided copies, and int8 values through tables."""

from typing import Any

import numpy as np
from numba import types
from numpy.lib.stride_tricks import as_strided

from nnac.kernels.jit import Int8, inner, kernel, sink, source
from nnac.kernels.lines import is_dense, piece

AXES = 6
"""Of a copy."""


@inner
def _move(x: Int8, y: Int8) -> None:
    """`copy` of a row."""
    for n in range(y.size):
        y[n] = x[n]


@kernel(source(types.int8, AXES, "A"), sink(types.int8, AXES))
def copy(x: Int8, y: Int8) -> None:
    """``y = x``.

    Args:
        x: six axes, any strides.
        y: the same shape, any strides; no two places share a byte.
    """
    shape, fast = x.shape, is_dense(x) and is_dense(y)
    for i in range(shape[0]):
        for j in range(shape[1]):
            for k in range(shape[2]):
                for m in range(shape[3]):
                    for n in range(shape[4]):
                        place = (i, j, k, m, n)
                        if fast:
                            _move(piece(x, place, 0, shape[5]), piece(y, place, 0, shape[5]))
                        else:
                            _move(x[place], y[place])


@kernel(source(types.int8, 2), source(types.int8, 2), sink(types.int8, 2))
def look_up(x: Int8, tables: Int8, y: Int8) -> None:
    """Each column through its table.

    Args:
        x: (rows, tables).
        tables: (tables, 256): entry x + 128.
        y: (rows, tables), any strides.
    """
    if x.shape[1] == 1:
        for row in range(x.shape[0]):
            y[row, 0] = tables[0, np.int64(x[row, 0]) + 128]
        return
    for row in range(x.shape[0]):
        for n in range(x.shape[1]):
            y[row, n] = tables[n, np.int64(x[row, n]) + 128]


def views(x: Any, y: Any) -> tuple[Any, Any]:
    """Returns two arrays of a shape with the axes of `copy`, as few of them as walk the same places."""
    axes: list[tuple[int, int, int]] = []
    for side, here, there in zip(x.shape, x.strides, y.strides, strict=True):
        if side == 1:
            continue
        if axes and axes[-1][1:] == (side * here, side * there):
            side *= axes.pop()[0]
        axes.append((side, here, there))
    axes = [(1, 0, 0)] * (AXES - len(axes)) + axes
    shape, *strides = zip(*axes, strict=True)
    return as_strided(x, shape, strides[0]), as_strided(y, shape, strides[1])
