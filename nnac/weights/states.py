"""The states of the entropy coder shared out over values: how many there are, and which value owns how many.

The choice is of the number of states and of plain bits, with which the rarest values are told apart behind a common
symbol: fewest bits for weights, states of stripes and table together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from nnac.kernels import codec as kernels
from nnac.weights.shares import MAX_BITS, Shares, gaps, golomb_order

Int64 = NDArray[np.int64]

_ONE = 1 << 20  # fixed point of logarithms


def share_out(values: Int64, counts: Int64, stripe: int) -> Shares:
    """Return the best shares.

    The most promising choice comes first; those that cannot take fewer bits than the best one are left out.

    Args:
        values: (N,) int8 values that occur, ascending, at least one.
        counts: (N,) how often.
        stripe: weights in a stripe, each of which begins with the states of all lanes.
    """
    choices, table = list(choices_for(int((counts > 0).sum()))), golomb_order(gaps(values))[1]
    bounds = least(counts, choices, stripe) + table
    best, found = (inf, 0), Division.of(counts, *choices[0])
    for index in np.argsort(bounds, kind="stable").tolist():
        if bounds[index] > best[0]:
            break
        division = Division.of(counts, *choices[index])
        bits = division.weigh(stripe) + table, index
        if bits < best:
            best, found = bits, division
    return found.shares(values)


def choices_for(known: int) -> Iterator[tuple[int, int]]:
    """Yield (bits of a state, plain bits) that can represent this many values."""
    for bits in (0, 8, 10, 11, 12):
        for plain in range(9):
            rare = 1 << plain if plain else 0
            if rare <= max(known, 1) and max(known, 1) - rare + bool(rare) <= 1 << bits:
                yield bits, plain


def least(counts: Int64, choices: Sequence[tuple[int, int]], stripe: int) -> NDArray[np.float64]:
    """Return bits that each choice weighs at least: as if shares were any fractions, and took a bit each."""
    ascending = np.sort(counts[counts > 0]).astype(np.float64)
    weights = ascending.sum()
    alone = ascending * np.log2(weights / ascending) + 1
    found = np.empty(len(choices))
    for i, (bits, plain) in enumerate(choices):
        rare = ascending[: 1 << plain if plain else 0].sum()
        together = rare * (np.log2(weights / rare) + plain) if plain else 0.0
        found[i] = alone[1 << plain if plain else 0 :].sum() + together + _overhead(int(weights), bits, stripe)
    return np.asarray(found - weights * 1e-6)  # its logarithms have 20 bits


@dataclass(frozen=True, slots=True)
class Division:
    """How `1 << bits` states are shared out over values, with the 2**plain rarest behind a common symbol.

    Attributes:
        kept: indices of the values with states of their own, ascending.
        counts: how often these occur, then the common symbol, if there is one; found: their states.
    """

    bits: int
    plain: int
    kept: Int64
    counts: Int64
    found: Int64

    @classmethod
    def of(cls, counts: Int64, bits: int, plain: int) -> Division:
        """Return the best one for values, at least one, that occur `counts` times."""
        by_count, rare = np.argsort(counts, kind="stable"), 1 << plain if plain else 0
        kept = np.sort(by_count[rare:])
        tally = np.append(counts[kept], counts[by_count[:rare]].sum() if plain else counts[:0])
        found = np.zeros(tally.size, np.int64)
        kernels.share_states(np.maximum(tally, 1), _logs(), 1 << bits, found)
        return cls(bits, plain, kept, tally, found)

    def weigh(self, stripe: int) -> float:
        """Return about how many bits a tensor takes, and the states in its table."""
        weights, rare = int(self.counts.sum()), int(self.counts[-1]) if self.plain else 0
        coded = weights * self.bits - int((self.counts * _logs()[self.found]).sum()) / _ONE + rare * self.plain
        return coded + _overhead(weights, self.bits, stripe) + golomb_order(self.found - 1)[1]

    def shares(self, values: Int64) -> Shares:
        """Return what a table says about these values."""
        shares = np.zeros(values.size, np.int64)
        shares[self.kept] = self.found[: self.kept.size]
        common = int(self.found[-1]) if self.plain else 0
        return Shares(self.bits, self.plain, tuple(values.tolist()), tuple(shares.tolist()), common)


def _overhead(weights: int, bits: int, stripe: int) -> float:
    """Return bits for the states of stripes, and the loss of placing them, seen to stay under 4**(6 - R) a weight."""
    return -(-weights // stripe) * kernels.LANES * bits + (weights * 4.0 ** (6 - bits) if bits else 0.0)


@functools.cache
def _logs() -> Int64:
    """Return fixed-point log2 of 1..4096, at their place; integers, so that no machine rounds another way."""
    logs = np.log2(np.maximum(np.arange((1 << MAX_BITS) + 1), 1))
    return np.asarray(np.rint(logs * _ONE), np.int64)
