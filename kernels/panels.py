"""Packed weights: panels of output channels as the register tiles read them (`nnac.kernels.tile`), and the product.

A panel holds `width` channels (the machine's, the last one of fewer whole COLUMNS): their biases and the sums of their
weights (int32 each), then steps of four weights per channel; zero where channels or weights end early.
"""

import numpy as np

from nnac.kernels.jit import Int8, Int32, inner
from nnac.kernels.tile import COLUMNS
from nnac.kernels.vectors import address, call_address

ALIGNMENT = 64
"""Of packed weights: loads that cross cache lines cost twice."""


@inner
def aligned(size: int) -> Int8:
    """So many bytes, zero, from a full cache line on."""
    raw = np.zeros(size + ALIGNMENT, np.int8)
    first = -address(raw) % ALIGNMENT
    return raw[first : first + size]


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


@inner
def pack(weights: Int8, bias: Int32, width: int, packed: Int8) -> None:
    """(N, K) weights and (N,) biases into zeroed bytes, `packed_size` of them.

    Args:
        weights: int8.
        bias: int32, unaligned too.
        width: channels of a panel, a multiple of COLUMNS.
        packed: `aligned`; written where there are weights.
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
        rest[(k // 4 * columns + n) * 4 + k % 4] = row[k]
    head[n] = bias
    head[columns + n] = total


@inner
def multiply(
    tile: int, x: int, pitch: int, rows: int, depth: int, packed: Int8, first: int, columns: int, zero: int, sums: Int32
) -> None:
    """``sums = (x - zero) @ weights.T + bias`` for the channels of one panel.

    Args:
        tile: address of the machine's tile function.
        x: address of the first row; rows are read in whole steps.
        pitch: bytes from one row to the next.
        rows: at least 1.
        depth: K.
        packed: from `pack`.
        first: first channel of the panel.
        columns: of the panel.
        zero: zero point of x.
        sums: (rows, columns) at least, C-contiguous, flat.
    """
    steps = steps_of(depth)
    panel = address(packed) + first * 4 * (steps + 2)
    call_address(tile, (x, pitch, rows, panel, steps, columns, zero, address(sums)))
