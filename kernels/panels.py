"""Packed weights: panels of output channels as the register tiles read them (`nnac.kernels.tile`).

A panel holds `width` channels (the machine's, the last one of fewer whole COLUMNS): what their sums start from (int32),
then steps of four weights per channel, run by run; zero where channels or runs end early.
"""

import numpy as np

from nnac.kernels.jit import Int8, Int32, inner
from nnac.kernels.tile import COLUMNS
from nnac.kernels.vectors import address, word_at

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
def packed_words(channels: int, steps: int) -> int:
    """Words of packed weights of so many steps in all."""
    return padded(channels) * (steps + 1)


def packed_bytes(channels: int, steps: int) -> int:
    """Bytes of packed weights of so many steps in all, for Python."""
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
def pack(
    weights: Int8,
    bias: Int32,
    part: tuple[int, int],
    count: int,
    zero: int,
    width: int,
    run: int,
    words: Int32,
    at: int,
) -> None:
    """Channels of (N, K) weights, with their biases, into words that are zero.

    Args:
        weights: int8.
        bias: (N,), unaligned too.
        part: first channel and the one behind the last.
        count: of packed channels; more than there are begin again, behind those that fill the last COLUMNS.
        zero: zero point of x as the tiles read it.
        width: channels of a panel, a multiple of COLUMNS.
        run: weights of a run; K is a multiple.
        words: of which `packed_words` are taken.
        at: the first word.
    """
    depth, period = weights.shape[1], padded(part[1] - part[0])
    steps = depth // run * steps_of(run)
    for n in range(count):
        source, panel = part[0] + n % period, n // width * width
        if source >= part[1]:
            continue
        columns = min(width, padded(count) - panel)
        head = at + panel * (steps + 1) + n - panel
        row, total, step = weights[source], np.int32(0), 1
        for k in range(depth):
            total = np.int32(total + row[k])
        for first in range(0, depth, run):
            for k in range(first, first + run - 3, 4):
                words[head + step * columns] = word_at(address(weights) + source * depth + k)
                step += 1
            if run % 4:
                word, last = np.int64(0), first + run - run % 4
                for k in range(last, first + run):
                    word |= (np.int64(row[k]) & 255) << 8 * (k - last)
                words[head + step * columns] = np.int32(word)
                step += 1
        words[head] = np.int32(bias[source] - zero * total)
