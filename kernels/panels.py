"""Packed weights: panels of output channels as the register tiles read them (`nnac.kernels.tile`).

A panel holds `width` channels (the machine's, the last one of fewer whole COLUMNS): what their sums start from (int32),
then steps of four weights per channel, run by run; zero where channels or runs end early.
"""

import numpy as np

from nnac.kernels.jit import Int8, Int32, inner
from nnac.kernels.tile import COLUMNS

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
def packed_size(channels: int, steps: int) -> int:
    """Bytes of packed weights of so many steps in all."""
    return padded(channels) * 4 * (steps + 1)


def packed_bytes(channels: int, steps: int) -> int:
    """`packed_size` for Python."""
    return -(-channels // COLUMNS) * COLUMNS * 4 * (steps + 1)


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
def pack(weights: Int8, bias: Int32, zero: int, width: int, run: int, packed: Int8) -> None:
    """(N, K) weights and (N,) biases into zeroed bytes, `packed_size` of them.

    Args:
        weights: int8.
        bias: int32, unaligned too.
        zero: zero point of x as the tiles read it.
        width: channels of a panel, a multiple of COLUMNS.
        run: weights of a run; K is a multiple.
        packed: from a full cache line on; written where there are weights.
    """
    count, depth = weights.shape
    steps = depth // run * steps_of(run)
    for first in range(0, count, width):
        columns = min(width, padded(count) - first)
        panel = packed[first * 4 * (steps + 1) :]
        head = panel[: 4 * columns].view(np.int32)
        rest = panel[4 * columns :]
        for n in range(min(columns, count - first)):
            _pack_channel(weights[first + n], bias[first + n], zero, n, columns, run, head, rest)


@inner
def _pack_channel(row: Int8, bias: int, zero: int, n: int, columns: int, run: int, head: Int32, rest: Int8) -> None:
    """One channel of a panel."""
    total = np.int64(0)
    for k in range(row.size):
        total += row[k]
    head[n] = np.int32(bias - zero * total)
    if run % 4 == 0:
        source, target = row.view(np.int32), rest.view(np.int32)
        for k in range(source.size):
            target[k * columns + n] = source[k]
        return
    for k in range(row.size):
        step = k // run * steps_of(run) + k % run // 4
        rest[(step * columns + n) * 4 + k % run % 4] = row[k]
