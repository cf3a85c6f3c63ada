"""Packed weights: panels of output channels as the register tiles read them (`nnac.kernels.tile`), and the product.

A panel holds `width` channels (the machine's, the last one of fewer whole COLUMNS): their biases and the sums of their
weights (int32 each), then steps of four weights per channel; zero where channels or weights end early.
"""

from dataclasses import dataclass

import numpy as np
from numba import types

from nnac.kernels import machine
from nnac.kernels.jit import INT, Int8, Int32, inner, kernel, sink, source
from nnac.kernels.tile import COLUMNS
from nnac.kernels.vectors import address, call_address

Panel = tuple[int, int]
"""First channel, channels with those that fill it."""
ALIGNMENT = 64
"""Of packed weights and working memory: loads that cross cache lines cost twice."""
SLACK = 64
"""Bytes behind the values of an array that a kernel may read, without influence."""


@inner
def steps_of(depth: int) -> int:
    """Steps of four values."""
    return (depth + 3) // 4


@inner
def padded(channels: int) -> int:
    """Channels with those that fill the last panel."""
    return (channels + COLUMNS - 1) // COLUMNS * COLUMNS


@inner
def packed_size(channels: int, depth: int) -> int:
    """Bytes of packed weights."""
    return padded(channels) * 4 * (steps_of(depth) + 2)


def packed_bytes(channels: int, depth: int) -> int:
    """`packed_size` for Python."""
    return -(-channels // COLUMNS) * COLUMNS * 4 * (-(-depth // 4) + 2)


def room(size: int) -> Int8:
    """Returns so many bytes, zero, from a full cache line on, with SLACK behind them."""
    return Slabs(0).room(size)


class Slabs:
    """Rooms out of few large pieces of memory, for which the system takes large pages: streams miss fewer of them."""

    def __init__(self, size: int = 1 << 25) -> None:
        self._size = size
        self._rest: Int8 = np.zeros(0, np.int8)

    def room(self, size: int) -> Int8:
        """Returns so many bytes, zero, from a full cache line on, with SLACK behind them."""
        need = size + SLACK + ALIGNMENT
        if self._rest.size < need:
            self._rest = np.zeros(max(need, self._size), np.int8)
        first = -self._rest.ctypes.data % ALIGNMENT
        found, self._rest = self._rest[first : first + size], self._rest[first + size + SLACK :]
        return found


@inner
def pack(weights: Int8, bias: Int32, width: int, packed: Int8) -> None:
    """(N, K) weights and (N,) biases into zeroed bytes, `packed_size` of them.

    Args:
        weights: int8.
        bias: int32, unaligned too.
        width: channels of a panel, a multiple of COLUMNS.
        packed: from a full cache line on; written where there are weights.
    """
    count, depth = weights.shape
    for first in range(0, count, width):
        columns = min(width, padded(count) - first)
        panel = packed[first * 4 * (steps_of(depth) + 2) :]
        head = panel[: 8 * columns].view(np.int32)
        rest = panel[8 * columns :]
        for n in range(min(columns, count - first)):
            _pack_channel(weights[first + n], bias[first + n], n, columns, head, rest)


@inner
def _pack_channel(row: Int8, bias: int, n: int, columns: int, head: Int32, rest: Int8) -> None:
    """One channel of a panel."""
    total = np.int32(0)
    for k in range(row.size):
        total = np.int32(total + row[k])
    head[n] = bias
    head[columns + n] = total
    whole = row.size // 4
    source, target = row[: 4 * whole].view(np.int32), rest.view(np.int32)
    for k in range(whole):
        target[k * columns + n] = source[k]
    for k in range(4 * whole, row.size):
        rest[(whole * columns + n) * 4 + k % 4] = row[k]


@inner
def multiply(
    tile: int, x: int, pitch: int, rows: int, depth: int, packed: int, panel: Panel, zero: int, sums: int, width: int
) -> None:
    """``sums = (x - zero) @ weights.T + bias`` for the channels of one panel.

    Args:
        tile: address of the machine's tile function.
        x: address of the first row; rows are read in whole steps.
        pitch: bytes from one row to the next.
        rows: at least 1.
        depth: K.
        packed: address of what `pack` made.
        panel: its first channel and its channels.
        zero: zero point of x.
        sums: address of the first row of sums, int32.
        width: sums from one row to the next.
    """
    steps = steps_of(depth)
    first, columns = panel
    at = packed + first * 4 * (steps + 2)
    call_address(tile, (x, pitch, rows, at, steps, columns, zero, sums, 4 * width))


@dataclass(frozen=True, slots=True)
class Packed:
    """The weights of one layer, ready for products on this machine."""

    data: Int8
    """Opaque."""
    channels: int
    depth: int
    width: int


@kernel(source(types.int8, 2), source(types.int32, 1), sink(types.int8, 1, "C"), INT)
def _pack(weights: Int8, bias: Int32, packed: Int8, width: int) -> None:
    """`pack` for Python."""
    pack(weights, bias, width, packed)


@kernel(source(types.int8, 2), source(types.int8, 1), sink(types.int32, 2, "C"), *[INT] * 4)
def _matmul(x: Int8, packed: Int8, y: Int32, depth: int, width: int, zero: int, tile: int) -> None:
    """`matmul` on the machine's tiles."""
    for first in range(0, y.shape[1], width):
        panel = (first, min(width, y.shape[1] - first))
        at = address(y) + 4 * first
        multiply(tile, address(x), x.shape[1], x.shape[0], depth, address(packed), panel, zero, at, y.shape[1])


def pack_matrix(weights: Int8, bias: Int32) -> Packed:
    """Packs (N, K) int8 weights with their (N,) int32 biases, to be kept for any number of products."""
    channels, depth = weights.shape
    packed = Packed(room(packed_bytes(channels, depth)), channels, depth, machine.width())
    _pack(weights, bias, packed.data, packed.width)
    return packed


def matmul(x: Int8, packed: Packed, zero: int, y: Int32) -> None:
    """``y = (x - zero) @ weights.T + bias``, exact modulo 2**32.

    Args:
        x: (M, K in whole steps of four), C-contiguous; what lies behind K has no influence.
        packed: from `pack_matrix`.
        zero: zero point of x.
        y: (M, N in whole COLUMNS), C-contiguous; all of it is written, what lies behind N with anything.
    """
    _matmul(x, packed.data, y, packed.depth, packed.width, zero, machine.tile())
