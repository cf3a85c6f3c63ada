"""Products of two matrices of activations."""

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int8, Int32, also, kernel, sink, source
from nnac.kernels.requantize import TFLITE, lift, narrow, saturate, scale_once, scale_twice


@kernel(source(types.int8, 2), INT, source(types.int8, 2), INT, sink(types.int32, 1), sink(types.int8, 2), *[INT] * 8)
def matmul(
    x: Int8,
    x_zero: int,
    w: Int8,
    w_zero: int,
    acc: Int32,
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
    """``y = requantize(narrow((x - x_zero) @ (w - w_zero)))``.

    Args:
        x: (M, K).
        x_zero: zero point of x.
        w: (K, N).
        w_zero: zero point of w.
        acc: (N,), working memory for sums that its type holds: K is at most 32768 for int32.
        y: (M, N), any strides.
        multiplier: with `shift` the ratio of scales; product with the narrowed sum within 2**62.
        shift: 0..62.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`; TFLITE in two steps, for sums of 32 bits only.
        acc_bits: of the accumulator.
        acc_wraps: whether it wraps (else it saturates).
    """
    multiplier, shift = lift(multiplier, shift, rounding)
    for m in range(x.shape[0]):
        acc[:] = 0
        for k in range(x.shape[1]):
            value, row = acc.dtype.type(x[m, k] - x_zero), w[k]
            for n in range(acc.size):
                acc[n] += value * acc.dtype.type(row[n] - w_zero)
        for n in range(acc.size):
            total = narrow(np.int64(acc[n]), acc_bits, acc_wraps)
            if rounding == TFLITE:
                scaled = scale_twice(total, multiplier, shift)
            else:
                scaled = scale_once(total, multiplier, shift, rounding)
            y[m, n] = saturate(scaled + y_zero, low, high)


_LONG = (source(types.int16, 2), INT, source(types.int16, 2), INT, sink(types.int64, 1), sink(types.int16, 2))
wide_matmul = also(matmul, *_LONG, *[INT] * 8)
