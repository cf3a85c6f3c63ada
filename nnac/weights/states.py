"""The states of the entropy coder shared out over values: how many there are, and which value owns how many.

The choice is of the number of states and of plain bits, with which the rarest values are told apart behind a common
symbol: fewest bits for weights, states of stripes and table together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nnac.kernels import codec as kernels
from nnac.weights.shares import FLOORS, MAX_BITS, Shares

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_ONE = 1 << 20  # fixed point of logarithms


def share_out(values: Int64, counts: Int64, stripe: int) -> Shares:
    """Return the best shares.

    Args:
        values: (N,) int8 values that occur, ascending, at least one.
        counts: (N,) how often.
        stripe: weights in a stripe, each of which begins with the states of all lanes.
    """
    bits, plain = _choices(int((counts > 0).sum()))
    tallies = _tallies(counts, plain)
    found = np.zeros(tallies.shape, np.int64)
    kernels.share_states(tallies, _logs(), 1 << bits, found)
    best = int(_weigh(tallies * (counts.sum() > 0), found, bits, plain, stripe).argmin())
    shares, common = found[best, :-1], int(found[best, -1])
    return Shares(int(bits[best]), int(plain[best]), tuple(values.tolist()), tuple(shares.tolist()), common)


@functools.cache
def _choices(known: int) -> tuple[Int64, Int64]:
    """Return `choices_for` as two vectors."""
    bits, plain = np.array(list(choices_for(known)), np.int64).T
    return bits, plain


def choices_for(known: int) -> Iterator[tuple[int, int]]:
    """Yield (bits of a state, plain bits) that can represent this many values."""
    for bits in (0, 8, 10, 11, 12):
        for plain in range(9):
            rare = 1 << plain if plain else 0
            if rare <= max(known, 1) and max(known, 1) - rare + bool(rare) <= 1 << bits:
                yield bits, plain


def _tallies(counts: Int64, plain: Int64) -> Int64:
    """Return, per number of plain bits, how often the symbols of N values occur and, in column N, the common one.

    The 2**plain rarest have none of their own, where plain is not 0, and the common one is theirs.
    """
    rank = np.argsort(np.argsort(counts, kind="stable"))
    own = (rank >= (1 << plain)[:, None]) | (plain == 0)[:, None]
    common = (counts * ~own).sum(axis=1, keepdims=True)
    return np.hstack([np.maximum(counts, 1) * own, np.maximum(common, 1) * (plain > 0)[:, None]])


def _weigh(tallies: Int64, shares: Int64, bits: Int64, plain: Int64, stripe: int) -> Float64:
    """Return about how many bits a tensor takes in each case, the states in its table included.

    Placing the states is seen to lose under 4**(6 - R) of a bit per weight.
    """
    weights = tallies.sum(axis=1)
    coded = weights * bits - (tallies * _logs()[shares]).sum(axis=1) / _ONE + tallies[:, -1] * plain
    stripes = -(-weights // stripe) * kernels.LANES * bits + np.where(bits, weights * 4.0 ** (6 - bits), 0.0)
    lengths = np.empty(bits.size, np.int64)
    kernels.golomb_lengths(shares, FLOORS, MAX_BITS, lengths)
    return np.asarray(coded + stripes + lengths)


@functools.cache
def _logs() -> Int64:
    """Return fixed-point log2 of 1..4096, at their place; integers, so that no machine rounds another way."""
    logs = np.log2(np.maximum(np.arange((1 << MAX_BITS) + 1), 1))
    return np.asarray(np.rint(logs * _ONE), np.int64)
