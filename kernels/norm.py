"""Normalisation of groups of values."""

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int8, Int32, Int64, Integer, also, inner, kernel, sink, source
from nnac.kernels.lines import piece
from nnac.kernels.requantize import round_shift, saturate

PART = 31
"""Bits of the low part of a product that is formed in two parts, and of an inverse root."""

Law = tuple[int, int, int, int, int, int, int]
"""Values of a group, shift of the offsets, and zero points of input and output, limits and rounding."""
Known = tuple[Integer, Integer, Integer]
"""Sum of a group, inverse root, and bits that the shares lose behind PART."""
ALONE = 16
"""Groups of so many values side by side come one by one; others together, with what is known of each value's group."""
RUN = 1 << 15
"""Values of int8 whose squares sum up in 32 bits."""
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
def _known(total: Integer, squares: Integer, start: tuple[int, int, int, int]) -> Known:
    """From sum and sum of squares; `start`: values of the group, whether they are centered, epsilon, bits of a gain."""
    count, centered, epsilon, bits = start
    total *= centered
    root, lift = _inverse_root(count * squares - total * total + epsilon)
    return total, root, bits - lift


@inner
def _sums(x: Int8, rows: tuple[int, int], part: tuple[int, int], x_zero: int) -> tuple[Integer, Integer]:
    """Sum and sum of squares of rows, in part; runs of int8 are summed in 32 bits."""
    total, squares = np.int64(0), np.int64(0)
    for p in range(rows[0], rows[1]):
        for first in range(part[0], part[1], RUN):
            values, found, short = piece(x, (p,), first, min(first + RUN, part[1])), np.int32(0), np.int32(0)
            for n in range(values.size):
                value = np.int32(values[n] - x_zero)
                found = np.int32(found + value)
                if x.itemsize == 1:
                    short = np.int32(short + np.int32(value * value))
                else:
                    squares += np.int32(value * value)
            total += found
            squares += short
    return total, squares


@inner
def _column_sums(
    x: Int8, rows: tuple[int, int], part: tuple[int, int], x_zero: int, totals: Int64, squares: Int64
) -> None:
    """The same of each column."""
    totals[:], squares[:] = 0, 0
    for p in range(rows[0], rows[1]):
        values = piece(x, (p,), part[0], part[1])
        for n in range(totals.size):
            value = np.int64(values[n]) - x_zero
            totals[n] += value
            squares[n] += value * value


@inner
def _row(x: Int8, gains: Int32, offsets: Int32, y: Int8, totals: Int64, roots: Int64, shifts: Int64, law: Law) -> None:
    """Values of one position, with what is known of each one's group."""
    count, offset_shift, x_zero, y_zero, low, high, rounding = law
    for n in range(y.size):
        doubled = 2 * gains[n] * (count * (x[n] - x_zero) - totals[n])  # so that what is cut off is less than a half
        total = _scaled(doubled, roots[n], shifts[n]) + 4 * np.int64(offsets[n])
        y[n] = saturate(round_shift(total, offset_shift + 2, rounding) + y_zero, low, high)


def columns(groups: int, depth: int) -> int:
    """Returns how many columns of working memory `normalize` takes."""
    return min(depth * max(COLUMNS // depth, 1), groups * depth)


_FORM, _ROOM = (source(types.int32, 1), source(types.int32, 1)), sink(types.int64, 2, "C")


@kernel(source(types.int8, 4), *_FORM, sink(types.int8, 4, "C"), _ROOM, *[INT] * 10)
def normalize(
    x: Int8,
    gains: Int32,
    offsets: Int32,
    y: Int8,
    work: Int64,
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
        work: (3, `columns`), working memory.
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
    positions, depth, width = x.shape[1], x.shape[3], x.shape[2] * x.shape[3]
    count, alone = positions * depth, depth >= ALONE
    law, step = (count, offset_shift, x_zero, y_zero, low, high, rounding), depth if alone else work.shape[1]
    start = (count, centered, epsilon, 30 + gain_shift - offset_shift)
    values, made = x.reshape(x.shape[0] * positions, width), y.reshape(x.shape[0] * positions, width)
    for row in range(0, values.shape[0], positions):
        for begin in range(0, width, step):
            rows, part = (row, row + positions), (begin, min(begin + step, width))
            size = part[1] - begin
            totals, roots, shifts = piece(work, (0,), 0, size), piece(work, (1,), 0, size), piece(work, (2,), 0, size)
            if alone:
                totals[:], roots[:], shifts[:] = _known(*_sums(values, rows, part, x_zero), start)
            else:
                _column_sums(values, rows, part, x_zero, totals, roots)
                for first in range(0, size, depth):
                    last = first + depth
                    found = _known(totals[first:last].sum(), roots[first:last].sum(), start)
                    totals[first:last], roots[first:last], shifts[first:last] = found
            for p in range(positions):
                at = begin
                while at < part[1]:  # channels begin anew where the row is longer than they are
                    channel, here = (p * width + at) % channels, at - begin
                    stop = min(at + channels - channel, part[1])
                    those, out = piece(values, (row + p,), at, stop), piece(made, (row + p,), at, stop)
                    known = totals[here:], roots[here:], shifts[here:]
                    _row(those, gains[channel:], offsets[channel:], out, *known, law)
                    at = stop


wide_normalize = also(normalize, source(types.int16, 4), *_FORM, sink(types.int16, 4, "C"), _ROOM, *[INT] * 10)
