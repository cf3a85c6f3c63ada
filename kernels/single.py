"""The law of `nnac.float32` on int8 tensors: sums and products as onnxruntime's integer operators round them."""

import numpy as np
import numpy.typing as npt
from numba import types

from nnac.kernels.jit import INT, Int8, kernel, sink, source
from nnac.kernels.requantize import float_of, nearest

Float32 = npt.NDArray[np.float32]


@kernel(sink(types.float32, 4, "C"), INT)
def start(total: Float32, pattern: int) -> None:
    """Sets a sum to the float32 with these bits."""
    total[:] = float_of(pattern)


@kernel(sink(types.float32, 4, "C"), source(types.int8, 4, "A"), INT, INT)
def fuse_product(total: Float32, x: Int8, pattern: int, lift: int) -> None:
    """``total = (x + lift) * ratio + total`` in one rounding, one operand of `float32.add`.

    Args:
        total: any shape of four axes.
        x: the same shape, any strides.
        pattern: the bits of the float32 ratio.
        lift: 128 for uint8, else 0.
    """
    ratio = np.float64(float_of(pattern))
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            for k in range(total.shape[2]):
                for n in range(total.shape[3]):
                    total[i, j, k, n] = np.float32((x[i, j, k, n] + lift) * ratio + np.float64(total[i, j, k, n]))


@kernel(source(types.float32, 4), sink(types.int8, 4), INT, INT, INT)
def round_sum(total: Float32, y: Int8, low: int, high: int, lift: int) -> None:
    """``y = saturate(rint(total) - lift)``: ends a sum of `fuse_product`.

    Args:
        total: any shape of four axes.
        y: the same shape, any strides.
        low: smallest output.
        high: largest output.
        lift: 128 for uint8, else 0.
    """
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            for k in range(total.shape[2]):
                for n in range(total.shape[3]):
                    y[i, j, k, n] = nearest(total[i, j, k, n], -lift, low, high)


@kernel(source(types.int8, 4, "A"), INT, source(types.int8, 4, "A"), INT, sink(types.int8, 4), *[INT] * 5)
def multiply(
    a: Int8, a_zero: int, b: Int8, b_zero: int, y: Int8, pattern: int, y_zero: int, low: int, high: int, lift: int
) -> None:
    """``y = float32.multiply((a - a_zero) * (b - b_zero))``.

    Args:
        a: the shape of y, any strides.
        a_zero: zero point of a.
        b: the shape of y, any strides.
        b_zero: zero point of b.
        y: any shape of four axes, any strides.
        pattern: the bits of the float32 ratio of scales.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        lift: 128 for uint8, else 0.
    """
    ratio = float_of(pattern)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            for k in range(y.shape[2]):
                for n in range(y.shape[3]):
                    product = np.float32((a[i, j, k, n] - a_zero) * (b[i, j, k, n] - b_zero))
                    real = np.float32(np.float32(product * ratio) + np.float32(y_zero + lift))
                    y[i, j, k, n] = nearest(real, -lift, low, high)
