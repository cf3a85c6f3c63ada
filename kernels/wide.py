"""Kernels of 16-bit activations; those that only differ in the type are second forms of the 8-bit kernels.

A tensor of 8 bits that meets one of 16 comes here widened, and a result of 8 bits is narrowed by whoever calls: its
limits have made it fit.
"""

import numpy as np
from numba import types

from nnac.kernels import conv, elementwise, move, pairs, pool
from nnac.kernels import softmax as rows
from nnac.kernels.calls import Call
from nnac.kernels.conv import Filters, Layer
from nnac.kernels.elementwise import ended
from nnac.kernels.finish import TIELESS
from nnac.kernels.jit import INT, Int8, Int16, Int32, Int64, also, inner, integers, kernel, sink, source
from nnac.kernels.lines import dense, is_dense
from nnac.kernels.requantize import ENDING, SCALE, Ending, narrow, rescale
from nnac.kernels.vectors import RUN, address, fetch_words

Law = tuple[int, int, int, int, int, int]
"""How sums end: zero point, smallest and largest result, rounding in one step as `nnac.numerics.Rounding`, bits of the
accumulator, and whether it wraps (else it saturates)."""
LOWEST = 128
"""The smallest low byte stands for 0: bytes have signs where they are multiplied."""

OCTAVE_ZERO, OCTAVE_SHIFT = 192, 11
"""As in `nnac.numerics`."""
PART = 512
"""Values that go through tables together, so that what they become on the way stays in the nearest cache."""

_INTEGERS = {8: types.int8, 16: types.int16}
_OPERAND, _RESULT = source(types.int16, 4, "A"), sink(types.int16, 4)

copies = {
    (have // 8, want // 8): also(move.copy, source(_INTEGERS[have], move.AXES, "A"), sink(_INTEGERS[want], move.AXES))
    for have, want in ((8, 16), (16, 8), (16, 16))
}
"""Copies by the bytes of an element there and here."""
look_up = also(move.look_up, source(types.int8, 2), source(types.int16, 2), sink(types.int16, 2))
accumulate = also(elementwise.accumulate, sink(types.int64, 4, "C"), _OPERAND, INT, INT, INT)
requantize_wide = also(elementwise.requantize_wide, source(types.int64, 4), _RESULT, ENDING)
accumulate_squares = also(elementwise.accumulate_squares, sink(types.int64, 4, "C"), _OPERAND, INT, INT, INT)
root = also(elementwise.root, source(types.int64, 4), _RESULT, SCALE)
multiply = also(elementwise.multiply, _OPERAND, INT, _OPERAND, INT, _RESULT, SCALE)
divide = also(pairs.divide, _OPERAND, INT, _OPERAND, INT, _RESULT, SCALE)
extreme = also(pairs.extreme, sink(types.int64, 4, "C"), _OPERAND, INT, INT, INT, INT)
choose = also(pairs.choose, *[_OPERAND] * 4, *[source(types.int64, 1)] * 2, _RESULT, INT, ENDING)
max_pool = also(pool.max_pool, source(types.int16, 3), sink(types.int16, 3), *[INT] * 10)
average_pool = also(
    pool.average_pool, source(types.int16, 3), sink(types.int16, 3), sink(types.int64, 1, "C"), integers(9), INT, SCALE
)
softmax = also(rows.softmax, source(types.int16, 2), source(types.int32, 1), sink(types.int16, 2), SCALE)


@inner
def _between(x: Int16, at: int, tables: Int16, knots: Int32, blends: Int32) -> None:
    """What lies between the knots of each value's own table; the table of the first one is number `at`."""
    step = 2 * tables.shape[1] if tables.shape[0] > 1 else 0
    for n in range(x.size):
        knots[n] = np.int32((at + n) * step + ((np.int64(x[n]) + 32768) >> 7 << 1))
    fetch_words(address(tables), address(knots), x.size)
    for n in range(x.size):
        fraction = np.int32(x[n] & 127)
        left, right = np.int32(np.int32(knots[n] << 16) >> 16), np.int32(knots[n] >> 16)
        blends[n] = np.int32((left << 7) + (right - left) * fraction)


@inner
def _between_octaves(x: Int16, at: int, tables: Int16, knots: Int32, blends: Int32) -> None:
    """The same with knots in octaves; on the negative side the nearer one of two neighbours is the second."""
    step = 2 * tables.shape[1] if tables.shape[0] > 1 else 0
    for n in range(x.size):
        size, width = np.int32(abs(np.int32(x[n]))), np.int32(0)
        for octave in range(OCTAVE_SHIFT):
            width = np.int32(width + np.int32(size >= 32 << octave))
        index, back = np.int32((width << 4) + (size >> width)), np.int32(x[n] < 0)
        first = max(np.int32(OCTAVE_ZERO + (-index - 1 if back else index)), np.int32(0))
        blends[n] = width
        knots[n] = np.int32((at + n) * step + 2 * first)
    fetch_words(address(tables), address(knots), x.size)
    for n in range(x.size):
        size, width, back = np.int32(abs(np.int32(x[n]))), blends[n], x[n] < 0 and x[n] > -32768
        left, right = np.int32(np.int32(knots[n] << 16) >> 16), np.int32(knots[n] >> 16)
        near, far = right if back else left, left if back else right
        fraction = np.int32(size & np.int32((1 << width) - 1))
        blends[n] = np.int32((near << width) + (far - near) * fraction) << np.int32(OCTAVE_SHIFT - width)


@inner
def _through(x: Int16, tables: Int16, y: Int16, octaves: bool, ending: Ending) -> None:
    """Each value of a row through the table of its column, or all through the same."""
    knots, blends, fast = np.empty(PART, np.int32), np.empty(PART, np.int32), is_dense(y)
    for first in range(0, x.size, PART):
        part, made = x[first : first + PART], y[first : first + PART]
        if octaves:
            _between_octaves(part, first, tables, knots, blends)
        else:
            _between(part, first, tables, knots, blends)
        if fast:
            ended(blends, dense(made), ending)
        else:
            ended(blends, made, ending)


@inner
def _rows_through(x: Int16, tables: Int16, y: Int16, octaves: bool, ending: Ending) -> None:
    if tables.shape[0] == 1:
        _through(x.reshape(-1), tables, y[:, 0], octaves, ending)
        return
    for row in range(x.shape[0]):
        _through(x[row], tables, y[row], octaves, ending)


@kernel(source(types.int16, 2), source(types.int16, 2), sink(types.int16, 2), ENDING)
def interpolate(x: Int16, tables: Int16, y: Int16, ending: Ending) -> None:
    """Each column through its table of knots, as `numerics.interpolate` defines it.

    Args:
        x: (rows, tables).
        tables: (tables, 513).
        y: (rows, tables), any strides.
        ending: as `requantize.Ending`.
    """
    _rows_through(x, tables, y, False, ending)


@kernel(source(types.int16, 2), source(types.int16, 2), sink(types.int16, 2), ENDING)
def interpolate_octaves(x: Int16, tables: Int16, y: Int16, ending: Ending) -> None:
    """As `interpolate` with tables (tables, 385), as `numerics.interpolate_octaves` defines it."""
    _rows_through(x, tables, y, True, ending)


@kernel(source(types.int16, 1), sink(types.int8, 1, "C"), sink(types.int8, 1, "C"))
def split(x: Int16, high: Int8, low: Int8) -> None:
    """High and low bytes: x is ``256 * high + low + LOWEST``."""
    for n in range(x.size):
        high[n], low[n] = x[n] >> 8, (x[n] & 255) - LOWEST


@kernel(source(types.int8, 2), source(types.int32, 1), sink(types.int64, 1, "C"))
def _begin(weights: Int8, bias: Int32, offsets: Int64) -> None:
    """What `join` adds to the sums of both bytes."""
    for n in range(offsets.size):
        row, total = weights[n], np.int64(0)
        for k in range(row.size):
            total += row[k]
        offsets[n] = bias[n] + LOWEST * total


@inner
def _joined(high: Int32, low: Int32, offsets: Int64, multiplier: Int32, shift: Int64, y: Int16, law: Law) -> None:
    """`join` of a pixel."""
    y_zero, least, most, rounding, acc_bits, acc_wraps = law
    for n in range(y.size):
        total = narrow(256 * np.int64(high[n]) + low[n] + offsets[n], acc_bits, acc_wraps)
        y[n] = rescale(total, (multiplier[n], shift[n] & (TIELESS - 1), y_zero, least, most, rounding))


@kernel(
    source(types.int32, 3, "A"),
    source(types.int32, 3, "A"),
    source(types.int64, 1),
    source(types.int32, 1),
    source(types.int64, 1),
    sink(types.int16, 3),
    integers(6),
)
def join(high: Int32, low: Int32, offsets: Int64, multiplier: Int32, shift: Int64, y: Int16, law: Law) -> None:
    """``y = requantize(narrow(256 * high + low + offsets))``, as `numerics.requantize_wide` defines it.

    Args:
        high: (OH, OW, N), sums over high bytes, N side by side.
        low: the same over low bytes.
        offsets: (N,).
        multiplier: (N,) or more, 0 .. 2**23 - 1.
        shift: (N,) or more, 0..62, and TIELESS or not.
        y: (OH, OW, N), N side by side.
        law: as `Law`; an accumulator has at most 40 bits.
    """
    for row in range(y.shape[0]):
        for column in range(y.shape[1]):
            sums, more, made = dense(high[row, column]), dense(low[row, column]), dense(y[row, column])
            _joined(sums, more, offsets, multiplier, shift, made, law)


def packing(weights: Int8, bias: Int32, multiplier: Int32, shift: Int8, filters: Filters, layer: Layer) -> list[Call]:
    """Returns the calls that pack the constants of a layer of 16-bit activations: `conv.packing`, with biases apart."""
    alone = conv.packing(weights, np.zeros_like(bias), multiplier, shift, filters, layer)
    return [alone, Call(_begin, (weights, bias, filters.offsets))]


def sums_room(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the shape of the int32 that sums of a shape lie in; what is more of a pixel may be written too."""
    return (*shape[:2], shape[2] + RUN // 4)


def planed(layer: Layer) -> tuple[Layer, Layer]:
    """Returns the layers of the high and of the low bytes of 16-bit activations, which have no zero point.

    Both have the same packed weights; LOWEST times their sum goes to the offsets, so that around x, where it is zero,
    the low byte is -LOWEST.
    """
    return layer, layer._replace(x_zero=-LOWEST)
