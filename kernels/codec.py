"""Bit packing of int8 weights: fixed-width indices, bitmaps, zero runs, and an order-0 entropy coder (tANS).

A stream of bits is an array of 64-bit words: bit i is bit i % 64 of word i // 64, which is least significant bit first
in little-endian bytes. Writers get zeroed words, two more than the bits fill. Readers get three more: they look for
`limit`, the number of bits that there are, before each step and not within it, and so no stream, however damaged, leads
out of an array. Readers report the bits that they read, or -1 for a fault.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from nnac.kernels.jit import INT, Int8, Int16, Int32, Int64, inner, kernel, sink, source

Words = npt.NDArray[np.uint64]
Integer = Any

LANES = 4
"""Interleaved states of the entropy coder: symbol i belongs to state i % LANES."""

RUN = 16
"""Symbols of which `share_states` remembers the one that gains most."""

_WORDS = source(types.uint64, 1)
_VALUES = source(types.int8, 1)
_CODES = source(types.int16, 1)
_STEPS = source(types.int32, 1)
_LONGS = source(types.int64, 1)
_NEW_WORDS = sink(types.uint64, 1, "C")
_NEW_VALUES = sink(types.int8, 1, "C")
_NEW_LONGS = sink(types.int64, 1, "C")


@inner
def take(words: Words, position: int) -> Integer:
    """The 63 bits from `position` on, as a number that is not negative."""
    i, shift = np.uint64(position >> 6), np.uint64(position & 63)
    low = words[i] >> shift
    high = (words[i + np.uint64(1)] << np.uint64(1)) << (np.uint64(63) - shift)
    return np.int64((low | high) & np.uint64(0x7FFF_FFFF_FFFF_FFFF))


@inner
def put(words: Words, position: int, value: int) -> None:
    """Writes a number of at most 63 bits at `position`, where all bits are zero yet."""
    i, shift = np.uint64(position >> 6), np.uint64(position & 63)
    bits = np.uint64(value)
    words[i] |= bits << shift
    words[i + np.uint64(1)] |= (bits >> np.uint64(1)) >> (np.uint64(63) - shift)


@kernel(_VALUES, _NEW_LONGS)
def histogram(values: Int8, counts: Int64) -> None:
    """Adds to ``counts[value + 128]``, 256 of them, how often each value occurs."""
    for i in range(values.size):
        counts[np.int64(values[i]) + 128] += 1


@kernel(_VALUES, _NEW_LONGS)
def run_escapes(values: Int8, counts: Int64) -> None:
    """Adds to ``counts[w]``, w = 1..8, how many fields for a full run of ``2**w - 1`` zeros `pack_runs` writes."""
    length = 0
    for i in range(values.size):
        if values[i] == 0:
            length += 1
            continue
        width = 1
        while width <= 8 and length >= (1 << width) - 1:
            counts[width] += length // ((1 << width) - 1)
            width += 1
        length = 0
    for width in range(1, 9):
        counts[width] += length // ((1 << width) - 1)


@kernel(_VALUES, _CODES, INT, _NEW_WORDS)
def pack_fixed(values: Int8, codes: Int16, width: int, words: Words) -> None:
    """One field of `width` bits per value.

    Args:
        values: what to pack.
        codes: the index of value v at v + 128.
        width: 1..8.
        words: zeros, for n * width bits.
    """
    word, filled, place = np.uint64(0), 0, 0
    for i in range(values.size):
        code = np.uint64(codes[np.int64(values[i]) + 128])
        word |= code << np.uint64(filled)
        filled += width
        if filled >= 64:
            words[place] = word
            place, filled = place + 1, filled - 64
            word = code >> np.uint64(width - filled)
    words[place] = word


@kernel(_WORDS, _VALUES, INT, INT, _NEW_VALUES, _NEW_LONGS)
def unpack_fixed(words: Words, palette: Int8, known: int, width: int, out: Int8, report: Int64) -> None:
    """Inverse of `pack_fixed`; an index that the palette does not know is a fault.

    Args:
        words: at least n * width bits.
        palette: 2**width values or more, of which the first `known` count.
        known: how many indices are legal.
        width: 1..8.
        out: n values.
        report: as the module says.
    """
    worst: Integer = 0
    mask = (1 << width) - 1
    position = 0
    for i in range(out.size):
        index = take(words, position) & mask
        worst = max(worst, index)
        out[i] = palette[index]
        position += width
    report[0] = position if worst < known or out.size == 0 else -1


@kernel(_VALUES, _CODES, INT, _NEW_WORDS, _NEW_LONGS)
def pack_bitmap(values: Int8, codes: Int16, width: int, words: Words, report: Int64) -> None:
    """A bit per value, 1 for non-zero, then the non-zeros as fields of `width` bits.

    Args:
        values: what to pack.
        codes: the index of the non-zero value v at v + 128.
        width: 0..8; 0 where there is one non-zero value at most.
        words: zeros, for n * (1 + width) bits.
        report: bits written.
    """
    position = values.size
    for i in range(values.size):
        if values[i] != 0:
            put(words, i, 1)
            put(words, position, codes[np.int64(values[i]) + 128])
            position += width
    report[0] = position


@kernel(_WORDS, INT, _VALUES, INT, INT, _NEW_VALUES, _NEW_LONGS)
def unpack_bitmap(words: Words, limit: int, palette: Int8, known: int, width: int, out: Int8, report: Int64) -> None:
    """Inverse of `pack_bitmap`; faults are fields behind `limit`, unknown indices and a zero among the non-zeros.

    Args:
        words: `limit` bits and three words.
        limit: bits that there are, at least n.
        palette: 256 values, of which the first `known` count.
        known: how many indices are legal.
        width: 0..8.
        out: n values.
        report: as the module says.
    """
    worst: Integer = 0
    zeros = 0
    mask = (1 << width) - 1
    position: Integer = out.size
    for i in range(out.size):
        bit = np.int64((words[i >> 6] >> np.uint64(i & 63)) & np.uint64(1))
        if position > limit:
            break
        index = take(words, position) & mask & -bit
        worst = max(worst, index + bit)
        value: Integer = palette[index] * bit
        zeros += bit & (value == 0)
        out[i] = value
        position += width & -bit
    report[0] = position if worst <= known and zeros == 0 and position <= limit else -1


@kernel(_VALUES, _CODES, INT, INT, _NEW_WORDS, _NEW_LONGS)
def pack_runs(values: Int8, codes: Int16, run_width: int, width: int, words: Words, report: Int64) -> None:
    """Fields of `run_width` bits, each followed by a non-zero of `width` bits except where no non-zero follows.

    A field of all ones stands for that many zeros and nothing behind them; a smaller field for that many zeros and then
    a non-zero, or, where they reach the end of the values, no more.

    Args:
        values: what to pack.
        codes: the index of the non-zero value v at v + 128.
        run_width: 1..8.
        width: 0..8.
        words: zeros, for n * (run_width + width) bits.
        report: bits written.
    """
    full = (1 << run_width) - 1
    position = 0
    length = 0
    for i in range(values.size):
        if values[i] == 0:
            length += 1
            if length == full:
                put(words, position, full)
                position += run_width
                length = 0
        else:
            index: Integer = np.int64(codes[np.int64(values[i]) + 128])
            put(words, position, length | index << run_width)
            position += run_width + width
            length = 0
    if length:
        put(words, position, length)
        position += run_width
    report[0] = position


@kernel(_WORDS, INT, _VALUES, INT, INT, INT, _NEW_VALUES, _NEW_LONGS)
def unpack_runs(
    words: Words, limit: int, palette: Int8, known: int, run_width: int, width: int, out: Int8, report: Int64
) -> None:
    """Inverse of `pack_runs`; faults are fields behind `limit` or `out`, unknown indices and a zero for a non-zero.

    Args:
        words: `limit` bits and three words.
        limit: bits that there are.
        palette: 256 values, of which the first `known` count.
        known: how many indices are legal.
        run_width: 1..8.
        width: 0..8.
        out: n values.
        report: as the module says.
    """
    full, mask = (1 << run_width) - 1, (1 << width) - 1
    out[:] = 0
    report[0] = -1
    worst: Integer = 0
    zeros = 0
    position: Integer = 0
    i: Integer = 0
    while i < out.size:
        if position > limit:
            return
        window = take(words, position)
        length = window & full
        i += length
        position += run_width
        if i >= out.size:
            break
        has = np.int64(length != full)  # no branch: in dense streams a coin decides
        index = (window >> run_width) & mask & -has
        worst = max(worst, index + has)
        value: Integer = palette[index] * has
        zeros += has & (value == 0)
        out[i] = value
        i += has
        position += width & -has
    if i == out.size and worst <= known and zeros == 0 and position <= limit:
        report[0] = position


@kernel(source(types.int64, 2), _LONGS, _LONGS, sink(types.int64, 2))
def share_states(counts: Int64, logs: Int64, states: Int64, shares: Int64) -> None:
    """Shares states out over symbols, each at least one, so that the sum of ``counts * -log2(share)`` is smallest.

    Starts from the proportional shares rounded down and moves one state at a time where it gains most or costs least.

    Args:
        counts: [n, m], of m symbols in n cases, in sum below 2**31; 0 is no symbol.
        logs: fixed-point log2 of 0..states, at most 2**31.
        states: of each case, at least as many as its symbols.
        shares: [n, m].
    """
    gains = np.empty(counts.shape[1], np.int64)
    highest = np.empty(-(-counts.shape[1] // RUN), np.int64)
    for case in range(counts.shape[0]):
        count, share = counts[case], shares[case]
        total = count.sum()
        rest = states[case]
        for s in range(count.size):
            share[s] = max(min(count[s], 1), count[s] * states[case] // total)
            rest -= share[s]
        step = 1 if rest > 0 else -1
        for s in range(count.size):
            gains[s] = move(logs, count[s], share[s], step)
        for run in range(highest.size):
            highest[run] = first_highest(gains, run)
        while rest != 0:
            best = highest[0]
            for s in highest:
                best = s if gains[s] > gains[best] else best
            share[best] += step
            gains[best] = move(logs, count[best], share[best], step)
            highest[best // RUN] = first_highest(gains, best // RUN)
            rest -= step


@inner
def first_highest(gains: Int64, run: int) -> Integer:
    """The first symbol of a run that gains most."""
    best = run * RUN
    for s in range(best, min(best + RUN, gains.size)):
        best = s if gains[s] > gains[best] else best
    return best


@inner
def move(logs: Int64, count: int, share: int, step: int) -> Integer:
    """What one state more or fewer gains a symbol that needs at least one."""
    if count == 0 or share + step == 0:
        return -(1 << 62)
    return count * (logs[share + step] - logs[share])


@kernel(source(types.int64, 2), _LONGS, INT, _NEW_LONGS)
def golomb_lengths(shares: Int64, floors: Int64, orders: int, lengths: Int64) -> None:
    """Bits of exponential Golomb codes of all shares less one, in the order that makes a case's shortest.

    Args:
        shares: [n, m], of m symbols in n cases; 0 is no symbol.
        floors: floor(log2) of 1.. the largest share, at their place.
        orders: 0..orders - 1 are allowed.
        lengths: per case.
    """
    for case in range(shares.shape[0]):
        lengths[case] = 1 << 62
        for order in range(orders):
            bits: Integer = 0
            for share in shares[case]:
                if share > 0:
                    bits += 2 * floors[((share - 1) >> order) + 1] + 1 + order
            lengths[case] = min(lengths[case], bits)


UNKNOWN = 1 << 28
"""Set in the entry of a value that the entropy coder's table does not know."""


@inner
def retreat(entry: int, places: Int16, state: int) -> Any:
    """One value: the state before it, what it writes, and how many bits."""
    count = (state + (entry >> 32)) >> 16
    field = (state & ((1 << count) - 1)) | ((entry >> 20) & 0xFF) << count
    place = np.uint64((entry + (state >> count)) & 0xFFF)
    return np.int64(places[place]), field, count + ((entry >> 16) & 15)


@kernel(_VALUES, _LONGS, _CODES, INT, _NEW_WORDS, _NEW_LONGS)
def pack_states(values: Int8, entries: Int64, places: Int16, bits: int, words: Words, report: Int64) -> None:
    """Runs the entropy coder backwards over the values: the states that decoding begins with, then each value's bits.

    It writes from the end of the words towards their begin, and then moves the stream to where it belongs.

    Args:
        values: what to pack.
        entries: 256, of value v at v & 255: ``t << 32 | plain bits << 20 | how many << 16 | begin & 0xFFF``, of its
            symbol t = ``(longest << 16) - (share << longest)`` and where its places begin less its share.
        places: per symbol and rank, the state, a one in front of its bits.
        bits: log2 of the number of states, 0..12.
        words: zeros, for n * 8 + 128 bits.
        report: bits of it all; -1 where a value is unknown or the words are too few.
    """
    report[0] = -1
    whole = values.size & ~(LANES - 1)
    end = (words.size - 2) * 64
    position: Integer = end
    seen: Integer = 0
    a: Integer = 1 << bits
    b, c, d = a, a, a
    for i in range(values.size - 1, whole - 1, -1):
        entry = entries[np.uint8(values[i])]
        first, low, count = retreat(entry, places, 1 << bits)
        a, b, c = first, a, b
        position -= count
        put(words, position, low)
        seen |= entry
    for left in range(whole, 0, -LANES):
        if position < 128:
            return
        pair, next_pair = np.uint64(left - 4), np.uint64(left - 2)
        first, second = entries[np.uint8(values[pair])], entries[np.uint8(values[pair + np.uint64(1)])]
        third, fourth = entries[np.uint8(values[next_pair])], entries[np.uint8(values[next_pair + np.uint64(1)])]
        a, low, count = retreat(first, places, a)
        b, field, more = retreat(second, places, b)
        low, few = low | field << count, count + more
        c, high, count = retreat(third, places, c)
        d, field, more = retreat(fourth, places, d)
        high, many = high | field << count, count + more
        position -= few + many
        if few + many <= 63:
            put(words, position, low | high << few)
        else:
            put(words, position, low)
            put(words, position + few, high)
        seen |= first | second | third | fourth
    if seen & UNKNOWN:
        return
    mask = (1 << bits) - 1
    position -= LANES * bits
    put(words, position, a & mask | (b & mask) << bits | (c & mask) << 2 * bits | (d & mask) << 3 * bits)
    report[0] = end - position
    shift = np.uint64(position & 63)
    for i in range((end - position + 63) >> 6):
        j = (position >> 6) + i
        words[i] = words[j] >> shift | (words[j + 1] << np.uint64(1)) << (np.uint64(63) - shift)


@inner
def advance(steps: Int32, palette: Int8, state: int, window: int) -> Any:
    """One symbol: the next state, the value, and how many bits of the window were used.

    Unsigned indices: of others numba first asks whether they count from the end.
    """
    step = np.int64(steps[np.uint64(state)])
    count = (step >> 12) & 15
    extra = (step >> 16) & 15
    value = palette[np.uint64((step >> 20) + ((window >> count) & ((1 << extra) - 1)))]
    return (step & 0xFFF) + (window & ((1 << count) - 1)), value, count + extra


@kernel(_WORDS, INT, INT, _STEPS, _VALUES, _NEW_VALUES, _NEW_LONGS)
def unpack_states(words: Words, limit: int, bits: int, steps: Int32, palette: Int8, out: Int8, report: Int64) -> None:
    """Inverse of `pack_states`; faults are symbols behind `limit` and last states other than 0.

    Args:
        words: `limit` bits and three words.
        limit: bits that there are.
        bits: of a state, 0..12.
        steps: per state, ``next | bits << 12 | plain bits << 16 | index << 20``: bits are added to next, plain bits to
            the index of the value.
        palette: the values.
        out: n values.
        report: as the module says.
    """
    report[0] = -1
    mask = (1 << bits) - 1
    window = take(words, 0)
    a, b = window & mask, (window >> bits) & mask
    c, d = (window >> 2 * bits) & mask, (window >> 3 * bits) & mask
    position = LANES * bits
    for i in range(0, out.size - 3, LANES):
        if position > limit:
            return
        window = take(words, position)
        a, out[i], used = advance(steps, palette, a, window)
        b, out[i + 1], more = advance(steps, palette, b, window >> used)
        position += used + more
        window = take(words, position)
        c, out[i + 2], used = advance(steps, palette, c, window)
        d, out[i + 3], more = advance(steps, palette, d, window >> used)
        position += used + more
    for i in range(out.size & ~3, out.size):
        if position > limit:
            return
        last, out[i], used = advance(steps, palette, a, take(words, position))
        a, b, c, d = b, c, d, last
        position += used
    if position <= limit and a | b | c | d == 0:
        report[0] = position
