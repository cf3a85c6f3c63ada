"""The table of the entropy coder: how many of its states each value owns, and how that is written.

Layout: R 4 bits, plain 4, values less one 8, orders of gaps and shares 4 + 4; then numbers in exponential Golomb code:
the common share less one where plain > 0; per value the gap from the value before it (from -129), less one; where
plain > 0 a bit, 1 for rare; the share less one, unless rare. Bits go least significant first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnac.errors import ProgramError

Int64 = NDArray[np.int64]

MAX_BITS = 12
"""Largest log2 of the number of states."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What an entropy table says.

    Attributes:
        bits: log2 of the number of states.
        plain: plain bits behind the common symbol of the rare values; 0: there are none.
        values: all values, ascending.
        shares: states per value; 0 for a rare one.
        common: states of the common symbol.
    """

    bits: int
    plain: int
    values: tuple[int, ...]
    shares: tuple[int, ...]
    common: int

    @property
    def is_sound(self) -> bool:
        """Whether the states are given away exactly, and plain bits tell exactly the rare values apart."""
        rare = self.shares.count(0)
        full = rare == 1 << self.plain and self.common > 0 if self.plain else rare == self.common == 0
        return full and sum(self.shares) + self.common == 1 << self.bits and self.values[-1] < 128


FLOORS = np.searchsorted(1 << np.arange(14), np.arange(1 << 13), side="right") - 1
"""floor(log2) of 1..8191, at their place."""
_ORDERS = np.arange(MAX_BITS)[:, None]


def log2_floor(values: Int64) -> Int64:
    """Return floor(log2) of integers 1..8191."""
    return FLOORS[values]


class BitReader:
    """Bits, least significant first; those behind the end are zero, which `is_at_end` tells."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.size, self.count = int.from_bytes(data, "little"), len(data), 0

    def take(self, width: int) -> int:
        value = self.bits >> self.count & ((1 << width) - 1)
        self.count += width
        return value

    def golomb(self, order: int) -> int:
        """Return a number; ones without an end are cut at 16, which is more than any share has."""
        size = 0
        while size < 16 and self.take(1):
            size += 1
        high = (1 << size) - 1 + self.take(size)
        return high << order | self.take(order)

    @property
    def is_at_end(self) -> bool:
        """Whether all bytes are used and what is left of the last is zero."""
        return (self.count + 7) // 8 == self.size and self.bits >> self.count == 0


def golomb_order(numbers: ArrayLike) -> tuple[int, int]:
    """Return the order that makes the exponential Golomb codes of these numbers shortest, and their bits."""
    lengths = 2 * log2_floor((np.asarray(numbers, np.int64) >> _ORDERS) + 1) + 1 + _ORDERS
    bits = lengths.sum(axis=1)
    return int(bits.argmin()), int(bits.min())


def gaps(values: ArrayLike) -> Int64:
    """Return gaps between ascending int8 values, each less one, as they are written."""
    ends = np.append(np.int64(-129), values)
    return np.asarray(ends[1:] - ends[:-1] - 1, np.int64)


def _golomb(numbers: Int64, order: int) -> tuple[Int64, Int64]:
    """Return codes and their widths: as many ones as a number has bits beyond its order, a zero, those bits, the rest.

    The rest are `order` bits; the first of those beyond is always set and left out.
    """
    high, rest = (numbers >> order) + 1, numbers & ((1 << order) - 1)
    size = log2_floor(high)
    ones = (1 << size) - 1
    return ones | (high & ones | rest << size) << size + 1, 2 * size + 1 + order


def write_shares(model: Shares) -> bytes:
    """Return the table that `read_shares` reads."""
    between, rare = gaps(model.values), np.array(model.shares) == 0
    owned = np.array([model.common, *model.shares]) - 1
    orders = golomb_order(between)[0], golomb_order(owned[owned >= 0])[0]
    fields = [(np.array([model.bits, model.plain, len(between) - 1, *orders]), np.array([4, 4, 8, 4, 4]))]
    (gap, gap_width), (share, share_width) = _golomb(between, orders[0]), _golomb(np.maximum(owned, 0), orders[1])
    fields.append((share[:1], share_width[:1] * bool(model.plain)))
    widths = np.stack([gap_width, np.full(rare.size, bool(model.plain)), share_width[1:] * ~rare], axis=1)
    fields.append((np.stack([gap, rare, share[1:]], axis=1).ravel(), widths.ravel()))
    return _joined(*(np.concatenate(column) for column in zip(*fields, strict=True)))


def _joined(values: Int64, widths: Int64) -> bytes:
    """Return fields one behind the other, least significant bits first."""
    place = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)
    return np.packbits((np.repeat(values, widths) >> place & 1).astype(np.uint8), bitorder="little").tobytes()


def read_shares(table: bytes) -> Shares:
    """Return the shares of an entropy table, checked."""
    _check(len(table) <= 4096, f"{len(table)} bytes, at most 4096")
    reader = BitReader(table)
    bits, plain, known, gap_order, share_order = (reader.take(width) for width in (4, 4, 8, 4, 4))
    _check(bits <= MAX_BITS and plain <= 8, f"{bits} bits of state, {plain} plain bits")
    common = reader.golomb(share_order) + 1 if plain else 0
    values, shares = [-129], []
    for _ in range(known + 1):
        values.append(values[-1] + 1 + reader.golomb(gap_order))
        shares.append(0 if plain and reader.take(1) else reader.golomb(share_order) + 1)
    model = Shares(bits, plain, tuple(values[1:]), tuple(shares), common)
    _check(reader.is_at_end and model.is_sound, "its shares do not add up")
    return model


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ProgramError(f"table of packed weights (entropy) is wrong: {what}")
