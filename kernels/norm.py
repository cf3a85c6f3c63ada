"""Normalisation of groups of values."""

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int8, Int32, Int64, Integer, also, inner, kernel, sink, source
from nnac.kernels.requantize import round_shift, saturate

PART = 31
"""Bits of the low part of a product that is formed in two parts, and of an inverse root."""

Law = tuple[int, int, int, int, int, int, int]
"""Values of a group, shift of the offsets, and zero points of input and output, limits and rounding."""
COLUMNS = 2048
"""Columns, groups times depth, that are normalised together, so that their sums stay in a near cache."""


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


@inner
def _sums(x: Int8, x_zero: int, totals: Int64, squares: Int64) -> None:
    """Sums of each column of (positions, columns)."""
    totals[:], squares[:] = 0, 0
    for p in range(x.shape[0]):
        values = x[p]
        for n in range(totals.size):
            value = np.int64(values[n]) - x_zero
            totals[n] += value
            squares[n] += value * value


@inner
def _row(x: Int8, gains: Int32, offsets: Int32, y: Int8, totals: Int64, roots: Int64, shifts: Int64, law: Law) -> None:
    """Values of one position, with the mean, the inverse root and the shift of each one's group."""
    count, offset_shift, x_zero, y_zero, low, high, rounding = law
    for n in range(y.size):
        doubled = 2 * gains[n] * (count * (x[n] - x_zero) - totals[n])  # so that what is cut off is less than a half
        total = _scaled(doubled, roots[n], shifts[n]) + 4 * np.int64(offsets[n])
        y[n] = saturate(round_shift(total, offset_shift + 2, rounding) + y_zero, low, high)


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
    depth, width = x.shape[3], x.shape[2] * x.shape[3]
    count, step = x.shape[1] * depth, depth * max(COLUMNS // depth, 1)
    law = (count, offset_shift, x_zero, y_zero, low, high, rounding)
    work = np.empty((3, min(step, width)), np.int64)
    for row in range(x.shape[0]):
        values, made = x[row].reshape(x.shape[1], width), y[row].reshape(x.shape[1], width)
        for begin in range(0, width, step):
            end = min(begin + step, width)
            totals, roots, shifts = work[0, : end - begin], work[1, : end - begin], work[2, : end - begin]
            _sums(values[:, begin:end], x_zero, totals, roots)
            for first in range(0, totals.size, depth):
                last = first + depth
                total = totals[first:last].sum() * centered
                root, lift = _inverse_root(count * roots[first:last].sum() - total * total + epsilon)
                totals[first:last], roots[first:last] = total, root
                shifts[first:last] = 30 + gain_shift - lift - offset_shift
            for p in range(x.shape[1]):
                at = begin
                while at < end:  # channels begin anew where the row is longer than they are
                    channel, here = (p * width + at) % channels, at - begin
                    stop = min(at + channels - channel, end)
                    _row(
                        values[p, at:stop],
                        gains[channel:],
                        offsets[channel:],
                        made[p, at:stop],
                        totals[here:],
                        roots[here:],
                        shifts[here:],
                        law,
                    )
                    at = stop


_WIDE = (source(types.int16, 4), source(types.int32, 1), source(types.int32, 1), sink(types.int16, 4, "C"))
wide_normalize = also(normalize, *_WIDE, *[INT] * 10)
