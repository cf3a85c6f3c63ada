"""Sums, products and magnitudes of int8 tensors of four axes; a broadcast operand is a view with strides of zero."""

from typing import Any

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int8, Int64, inner, kernel, sink, source
from nnac.kernels.lines import dense, is_dense
from nnac.kernels.requantize import ENDING, SCALE, Ending, Scale, end, lifted, requantize


@inner
def _add_products(acc: Int64, x: Int8, zero: int, multiplier: int, more: int) -> None:
    """`accumulate` of a row."""
    for n in range(acc.size):
        acc[n] = acc[n] * more + (x[n] - zero) * multiplier


@kernel(sink(types.int64, 4, "C"), source(types.int8, 4, "A"), INT, INT, INT)
def accumulate(acc: Int64, x: Int8, zero: int, multiplier: int, more: int) -> None:
    """``acc += (x - zero) * multiplier``, one operand of a wide sum; exact while |acc| stays within 2**62.

    Args:
        acc: any shape of four axes; what is in it counts where `more` is 1, not where it is 0.
        x: the same shape, any strides.
        zero: zero point of x.
        multiplier: of x, on the common shift of the sum.
        more: 0 for the first operand, 1 for the others.
    """
    fast = is_dense(x)
    for i in range(acc.shape[0]):
        for j in range(acc.shape[1]):
            for k in range(acc.shape[2]):
                if fast:
                    _add_products(acc[i, j, k], dense(x[i, j, k]), zero, multiplier, more)
                else:
                    _add_products(acc[i, j, k], x[i, j, k], zero, multiplier, more)


@inner
def ended(acc: Any, y: Any, ending: Ending) -> None:
    """`requantize_wide` of a row, or of as much of it as y has."""
    for n in range(y.size):
        y[n] = end(acc[n], ending)


@kernel(source(types.int64, 4), sink(types.int8, 4), ENDING)
def requantize_wide(acc: Int64, y: Int8, ending: Ending) -> None:
    """``y = saturate(round_shift(acc, shift) + y_zero)``: ends a wide sum.

    Args:
        acc: any shape of four axes, |acc| within 2**62.
        y: the same shape, any strides.
        ending: as `requantize.Ending`.
    """
    fast = is_dense(y)
    for i in range(acc.shape[0]):
        for j in range(acc.shape[1]):
            for k in range(acc.shape[2]):
                if fast:
                    ended(acc[i, j, k], dense(y[i, j, k]), ending)
                else:
                    ended(acc[i, j, k], y[i, j, k], ending)


@kernel(sink(types.int64, 4, "C"), source(types.int8, 4, "A"), INT, INT, INT)
def accumulate_squares(acc: Int64, x: Int8, zero: int, more: int, offset: int) -> None:
    """``acc += (x - zero)**2 + offset``, one operand of a magnitude.

    Args:
        acc: any shape of four axes; what is in it counts where `more` is 1, not where it is 0.
        x: the same shape, any strides.
        zero: zero point of x.
        more: 0 for the first operand, 1 for the others.
        offset: is added too.
    """
    for i in range(acc.shape[0]):
        for j in range(acc.shape[1]):
            for k in range(acc.shape[2]):
                for n in range(acc.shape[3]):
                    value = np.int64(x[i, j, k, n]) - zero
                    acc[i, j, k, n] = acc[i, j, k, n] * more + value * value + offset


@kernel(source(types.int64, 4), sink(types.int8, 4), SCALE)
def root(acc: Int64, y: Int8, scale: Scale) -> None:
    """Ends a magnitude: `numerics.magnitude` of sums of squares.

    Args:
        acc: any shape of four axes, 0 <= acc < 2**35.
        y: the same shape, any strides.
        scale: as `requantize.Scale`, of the operands over y and 2**13.
    """
    scale = lifted(scale)
    for i in range(acc.shape[0]):
        for j in range(acc.shape[1]):
            for k in range(acc.shape[2]):
                for n in range(acc.shape[3]):
                    total = acc[i, j, k, n] << 26
                    found = np.int64(np.sqrt(np.float64(total)))
                    found -= np.int64(found * found > total)
                    found += np.int64((found + 1) * (found + 1) <= total)
                    y[i, j, k, n] = requantize(found, scale)


@kernel(source(types.int8, 4, "A"), INT, INT, source(types.int8, 4, "A"), INT, INT, sink(types.int8, 4), ENDING)
def add2(
    a: Int8,
    a_zero: int,
    a_multiplier: int,
    b: Int8,
    b_zero: int,
    b_multiplier: int,
    y: Int8,
    ending: Ending,
) -> None:
    """Two operands in one go: `accumulate` twice, then `requantize_wide`. A negative multiplier subtracts.

    Args:
        a: the shape of y, any strides.
        a_zero: zero point of a.
        a_multiplier: of a, on the common shift.
        b: the shape of y, any strides.
        b_zero: zero point of b.
        b_multiplier: of b, on the common shift.
        y: any shape of four axes, any strides.
        ending: as `requantize.Ending`.
    """
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            for k in range(y.shape[2]):
                p, q, out = a[i, j, k], b[i, j, k], y[i, j, k]
                for n in range(out.size):
                    total = (p[n] - a_zero) * a_multiplier + (q[n] - b_zero) * b_multiplier
                    out[n] = end(total, ending)


@inner
def _products(p: Int8, p_zero: int, q: Int8, q_zero: int, y: Int8, scale: Scale) -> None:
    """`multiply` of a row."""
    for n in range(y.size):
        y[n] = requantize((p[n] - p_zero) * (q[n] - q_zero), scale)


@kernel(source(types.int8, 4, "A"), INT, source(types.int8, 4, "A"), INT, sink(types.int8, 4), SCALE)
def multiply(a: Int8, a_zero: int, b: Int8, b_zero: int, y: Int8, scale: Scale) -> None:
    """``y = requantize((a - a_zero) * (b - b_zero))``, in two steps for TFLITE.

    Args:
        a: the shape of y, any strides.
        a_zero: zero point of a.
        b: the shape of y, any strides.
        b_zero: zero point of b.
        y: any shape of four axes, any strides.
        scale: as `requantize.Scale`, of a times b over y.
    """
    fast, scale = is_dense(a) and is_dense(b) and is_dense(y), lifted(scale)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            for k in range(y.shape[2]):
                if fast:
                    _products(dense(a[i, j, k]), a_zero, dense(b[i, j, k]), b_zero, dense(y[i, j, k]), scale)
                else:
                    _products(a[i, j, k], a_zero, b[i, j, k], b_zero, y[i, j, k], scale)
