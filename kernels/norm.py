"""Normalisation of groups of values."""

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int8, Int32, Integer, also, inner, kernel, sink, source
from nnac.kernels.requantize import round_shift, saturate

PART = 31
"""Bits of the low part of a product that is formed in two parts, and of an inverse root."""


@inner
def _inverse_root(value: Integer) -> tuple[Integer, Integer]:
    """`norms.inverse_root`: Newton's iteration from above for the square root, then one division."""
    lift = 0
    while value < np.int64(1) << 60:
        value <<= 2
        lift += 1
    root, better = np.int64(1) << 31, np.int64(1) << 30
    while True:
        better = (root + value // root) >> 1
        if better >= root:
            break
        root = better
    return (np.int64(1) << 61) // root, lift


@inner
def _scaled(product: Integer, root: Integer, shift: Integer) -> Integer:
    """Twice the floor of ``product * root * 2**-(31 + shift)``, and one more where something was cut off."""
    low = (product & ((np.int64(1) << PART) - 1)) * root
    high = (product >> PART) * root + (low >> PART)
    floor = high >> shift
    cut = (low & ((np.int64(1) << PART) - 1)) != 0 or (floor << shift) != high
    return 2 * floor + np.int64(cut)


@kernel(source(types.int8, 4), source(types.int32, 1), source(types.int32, 1), sink(types.int8, 4, "C"), *[INT] * 10)
def normalize(
    x: Int8,
    gains: Int32,
    offsets: Int32,
    y: Int8,
    x_zero: int,
    centered: int,
    epsilon: int,
    gain_shift: int,
    offset_shift: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
    channels: int,
) -> None:
    """Each group of each row as `norms.normalize` defines it.

    Args:
        x: (rows, positions, groups, depth); a group is positions * depth values of a row.
        gains: (channels,); value i of a row takes number i % channels.
        offsets: (channels,).
        y: as x.
        x_zero: zero point of x.
        centered: whether the mean is subtracted.
        epsilon: in units of the squared input times the group's values squared; at least 1.
        gain_shift: 0..32.
        offset_shift: 0..gain_shift.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`; TFLITE counts as HALF_AWAY.
        channels: of gains and offsets.
    """
    count = x.shape[1] * x.shape[3]
    for row in range(x.shape[0]):
        for group in range(x.shape[2]):
            total, square = np.int64(0), np.int64(0)
            for p in range(x.shape[1]):
                for d in range(x.shape[3]):
                    value = np.int64(x[row, p, group, d]) - x_zero
                    total += value
                    square += value * value
            total *= centered
            root, lift = _inverse_root(count * square - total * total + epsilon)
            shift = 30 + gain_shift - lift - offset_shift
            for p in range(x.shape[1]):
                for d in range(x.shape[3]):
                    channel = ((p * x.shape[2] + group) * x.shape[3] + d) % channels
                    value = np.int64(x[row, p, group, d]) - x_zero
                    doubled = _scaled(gains[channel] * (count * value - total), root, shift) + 2 * offsets[channel]
                    result = round_shift(doubled, offset_shift + 1, rounding) + y_zero
                    y[row, p, group, d] = saturate(result, low, high)


_WIDE = (source(types.int16, 4), source(types.int32, 1), source(types.int32, 1), sink(types.int16, 4, "C"))
wide_normalize = also(normalize, *_WIDE, *[INT] * 10)
