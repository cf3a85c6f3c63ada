"""Packers: lossless, near the entropy, never above raw, each stripe alone, and safe against any bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from examples.weights import codec_table
from nnac.errors import ProgramError
from nnac.kernels.codec import LANES
from nnac.weights import states
from nnac.weights.packers import (
    PACKERS,
    STRIPE,
    Codec,
    Packer,
    candidates,
    entropy_bits,
    fit,
    smallest,
    unpack,
)
from nnac.weights.shares import golomb_order, read_shares

Int8 = NDArray[np.int8]
Int64 = NDArray[np.int64]

ROOT = Path(__file__).parent.parent
CODED = [packer for packer in Packer if packer != Packer.RAW]
SEED = st.integers(0, 2**32 - 1)
LENGTH = st.one_of(st.integers(0, 20), st.integers(21, 700), st.sampled_from([1023, 1024, 4096, 4097]))
LOGS = np.rint(np.log2(np.maximum(np.arange(4098), 1)) * (1 << 20)).astype(int).tolist()
"""log2 of shares, in 2**-20."""
COMMON = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def weights(seed: int, length: int) -> Int8:
    """Weights of one of many kinds: few or many values, sparse or dense, flat or peaked, any sign."""
    rng = np.random.default_rng(seed)
    known = rng.permutation(256)[: rng.choice([1, 2, 3, 4, 5, 16, 17, 100, 127, 128, 129, 255, 256])] - 128
    chance = np.sort(rng.random(known.size) ** rng.choice([0, 1, 8, 40])) + 1e-9
    values = rng.choice(known, length, p=chance / chance.sum())
    return np.where(rng.random(length) < rng.choice([0, 0, 0.3, 0.6, 0.95, 1]), 0, values).astype(np.int8)


def of_width(bits: int, length: int = 5000) -> Int8:
    """Weights with exactly 2**bits values."""
    rng = np.random.default_rng(bits)
    known = np.sort(rng.permutation(256)[: 1 << bits]) - 128
    return np.concatenate([known, rng.choice(known, length - known.size)]).astype(np.int8)


def fitted(values: Int8) -> Iterator[Codec]:
    """Every codec that can represent these values."""
    yield from (codec for packer in Packer if (codec := fit(values, packer)))


def assert_same(codec: Codec, values: Int8) -> bytes:
    """Pack and unpack without loss, within raw and a byte, with nothing written beside the values."""
    data = codec.pack(values)
    assert len(data) <= values.size + (codec.packer != Packer.RAW)
    whole = np.full(values.size + 64, 77, np.int8)
    unpack(codec.packer, codec.table, np.frombuffer(data, np.uint8), whole[32 : values.size + 32])
    np.testing.assert_array_equal(whole[32 : values.size + 32], values)
    assert (whole[:32] == 77).all() and (whole[values.size + 32 :] == 77).all()
    return data


# Lossless


@given(SEED, LENGTH)
@settings(COMMON, max_examples=250)
def test_round_trip(seed: int, length: int) -> None:
    """Every packer, any values."""
    values = weights(seed, length)
    for codec in fitted(values):
        assert_same(codec, values)


@given(SEED, LENGTH, SEED)
@settings(COMMON, max_examples=60)
def test_foreign_stripes(seed: int, length: int, other: int) -> None:
    """A codec packs values that it was not fitted to, too: as they are if need be."""
    for codec in fitted(weights(seed, 300)):
        assert_same(codec, weights(other, length))


@pytest.mark.parametrize("bits", range(9))
@pytest.mark.parametrize("packer", Packer)
def test_widths(bits: int, packer: Packer) -> None:
    """1 to 256 values; fixed-width indices take as many bits as they need and end at 7."""
    values = of_width(bits)
    codec = fit(values, packer)
    assert (codec is None) == (packer == Packer.FIXED and bits == 8)
    if codec:
        data = assert_same(codec, values)
        if packer == Packer.FIXED:
            assert len(data) == 1 + (max(bits, 1) * values.size + 7) // 8


@pytest.mark.parametrize("packer", Packer)
def test_lengths(packer: Packer) -> None:
    """Nothing, one, odd; and the empty tensor has a codec."""
    for length in (0, 1, 2, 3, 5, 7, 63, 64, 65, 1021):
        assert_same(Codec(packer, fit(np.zeros(0, np.int8), packer).table), np.zeros(length, np.int8))  # type: ignore[union-attr]
        values = weights(3, max(length, 4096))
        if codec := fit(values, packer):
            assert_same(codec, values[:length])


@pytest.mark.parametrize("packer", Packer)
def test_huge_stripe(packer: Packer) -> None:
    """Ten million weights in one stripe."""
    rng = np.random.default_rng(1)
    values = np.where(rng.random(10_000_001) < 0.5, 0, rng.integers(-8, 8, 10_000_001)).astype(np.int8)
    codec = fit(values, packer)
    assert codec
    assert_same(codec, values)


@pytest.mark.parametrize("packer", Packer)
def test_every_stripe_alone(packer: Packer) -> None:
    """Stripes of uneven length decode in any order, each from nothing but table and bytes."""
    values = of_width(5, 30_000)
    codec = fit(values, packer)
    assert codec
    cuts = [0, 1, 2, 1000, 1003, 5099, 20_000, 30_000]
    pieces = [(values[a:b], codec.pack(values[a:b])) for a, b in pairwise(cuts)]
    for piece, data in reversed(pieces):
        np.testing.assert_array_equal(codec.unpack(data, piece.size), piece)


def test_explicit_palette() -> None:
    """A codebook keeps its order, doubles fall out, and layouts that have zero apart leave it out."""
    palette = np.array([9, 0, -3, 9, 100], np.int8)
    values = np.array([0, 9, 100, 9, 0, 0, 0, 9], np.int8)
    tables = {p: codec.table for p in Packer if (codec := fit(values, p, palette))}
    assert tables[Packer.FIXED] == bytes([9, 0, 253, 100])
    assert tables[Packer.BITMAP] == bytes([2, 9, 253, 100])
    assert tables[Packer.RUNS][1:] == bytes([9, 253, 100])
    assert fit(np.array([1], np.int8), Packer.FIXED, palette) is None
    assert fit(np.array([1], np.int8), Packer.FIXED, np.arange(-64, 65, dtype=np.int8)) is None
    for codec in fitted(values):
        assert_same(codec, values)


def test_refuses_other_arrays() -> None:
    """Packers take vectors of int8."""
    for wrong in (np.zeros(3, np.uint8), np.zeros((2, 2), np.int8)):
        with pytest.raises(ValueError, match="vector of int8"):
            fit(wrong, Packer.ENTROPY)  # type: ignore[arg-type]


def test_names() -> None:
    """Ids and names are part of the blob and of targets."""
    assert PACKERS == {"raw": 0, "fixed": 1, "bitmap": 2, "runs": 3, "entropy": 4}


# Sizes


@pytest.mark.parametrize("row", list(codec_table.rows()), ids=lambda row: row.name)
def test_codec_table(row: codec_table.Row) -> None:
    """The codec table on half its weights: 1 % above entropy, below mlw, never above raw."""
    count = codec_table.WEIGHTS // 2
    values = row.make(count)
    packed = smallest(values)
    found = [codec_table.Measured(one.codec.packer, 8 * one.nbytes / count, 0, 0) for one in packed]
    assert list(codec_table.misses(row, entropy_bits(values), found, count)) == []
    for one in packed:
        assert one.nbytes <= count + len(one.codec.table) + len(one.stripes)
        parts = [one.codec.unpack(data, STRIPE) for data in one.stripes]
        np.testing.assert_array_equal(np.concatenate(parts), values)


@given(SEED, LENGTH)
@settings(COMMON, max_examples=50)
def test_entropy_takes_the_best_states(seed: int, length: int) -> None:
    """States are shared out as by hand, one after the other, and no choice of their number takes fewer bits."""
    known, counts = np.unique(weights(seed, length).astype(np.int64), return_counts=True)
    if not known.size:
        known, counts = np.zeros(1, np.int64), np.zeros(1, np.int64)
    codec = fit(weights(seed, length), Packer.ENTROPY)
    assert codec is not None
    model = read_shares(codec.table)
    found = [_bits(counts, *_by_hand(counts, *choice)) for choice in states.choices_for(int((counts > 0).sum()))]
    assert _bits(counts, model.bits, model.plain, [*model.shares, model.common]) == min(found)


def _by_hand(counts: Int64, bits: int, plain: int) -> tuple[int, int, list[int]]:
    """Return bits, plain bits and the states of each value, 0 for the rarest 2**plain, then the common states."""
    rare = np.argsort(counts, kind="stable")[: 1 << plain if plain else 0]
    tally = [*(max(1, int(c)) for c in counts), max(1, int(counts[rare].sum())) if plain else 0]
    for i in rare:
        tally[i] = 0
    shares = [max(1, (c << bits) // sum(tally)) if c else 0 for c in tally]
    while rest := (1 << bits) - sum(shares):
        step = 1 if rest > 0 else -1
        movable = [s for s, c in enumerate(tally) if c and shares[s] + step > 0]
        best = max(movable, key=lambda s: tally[s] * (LOGS[shares[s] + step] - LOGS[shares[s]]))
        shares[best] += step
    return bits, plain, shares


def _bits(counts: Int64, bits: int, plain: int, shares: Sequence[int]) -> float:
    """Return what weights and states take by `states`' account."""
    rare = int(sum(c for c, share in zip(counts, shares[:-1], strict=True) if share == 0))
    tally = [*(int(c) if share else 0 for c, share in zip(counts, shares[:-1], strict=True)), rare]
    total = sum(tally)
    coded = (
        total * bits - sum(c * LOGS[share] for c, share in zip(tally, shares, strict=True)) / (1 << 20) + rare * plain
    )
    stripes = -(-total // STRIPE) * LANES * bits + (total * 4.0 ** (6 - bits) if bits else 0.0)
    return float(coded + stripes + golomb_order([share - 1 for share in shares if share])[1])


def test_entropy_of_nothing() -> None:
    """One value carries nothing, and neither do none."""
    assert entropy_bits(np.zeros(0, np.int8)) == entropy_bits(np.full(9, -7, np.int8)) == 0
    assert entropy_bits(np.array([1, 2, 3, -4], np.int8)) == 2


def test_one_value_takes_no_bits() -> None:
    """The entropy coder keeps the byte that says so."""
    values = np.full(9999, -7, np.int8)
    assert fit(values, Packer.ENTROPY).pack(values) == b"\1"  # type: ignore[union-attr]


@pytest.mark.parametrize("sigma", [1.5, 8, 40])
def test_headers(sigma: float) -> None:
    """At 4096 weights everything beside the bits themselves stays under 1 % of raw, and tables are small."""
    values = np.clip(np.rint(np.random.default_rng(2).normal(0, sigma, 4096)), -127, 127).astype(np.int8)
    codec = fit(values, Packer.ENTROPY)
    assert codec
    assert 8 * len(codec.pack(values)) <= 4096 * entropy_bits(values) * 1.005 + 0.01 * 8 * 4096
    assert len(codec.table) <= 4 + np.unique(values).size * 1.5


def test_smallest_first() -> None:
    """Candidates come by size; equal ones by the simpler layout; only what is allowed."""
    values = weights(5, 50_000)
    found = smallest(values, [Packer.ENTROPY, Packer.RAW, Packer.BITMAP], stripe=4096)
    assert [len(one.stripes) for one in found] == [13] * 3
    sizes = [one.nbytes for one in found]
    assert sizes == sorted(sizes)
    assert {one.codec.packer for one in found} == {Packer.RAW, Packer.BITMAP, Packer.ENTROPY}
    assert candidates([])[0].codec.packer == Packer.RAW


def test_deterministic() -> None:
    """The same weights give the same bytes in another process, with another hash seed."""
    program = (
        "import hashlib; from tests.test_packers import *; h = hashlib.sha256()\n"
        "for seed in range(12):\n    for one in smallest(weights(seed, 3000)):\n"
        "        h.update(one.codec.table + b''.join(one.stripes))\nprint(h.hexdigest())"
    )
    digests = {
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
                       check=True, capture_output=True, text=True).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1


# The layouts as the docstrings say them, read bit by bit


class Bits:
    """Bits of bytes, least significant first."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.at = int.from_bytes(data, "little"), 0

    def take(self, width: int) -> int:
        value = self.bits >> self.at & ((1 << width) - 1)
        self.at += width
        return value

    def golomb(self, order: int) -> int:
        size = 0
        while self.take(1):
            size += 1
        return ((1 << size) - 1 + self.take(size) << order) + self.take(order)


def spelled_fixed(table: bytes, data: bytes, count: int) -> Iterator[int]:
    """`fixed`, by the book."""
    bits, width = Bits(data), max(1, (len(table) - 1).bit_length())
    yield from (table[bits.take(width)] for _ in range(count))


def spelled_bitmap(table: bytes, data: bytes, count: int) -> Iterator[int]:
    """`bitmap`, by the book."""
    bits, palette = Bits(data), table[1:] or bytes(range(256))
    mask = [bits.take(1) for _ in range(count)]
    yield from (palette[bits.take(table[0])] if one else 0 for one in mask)


def spelled_runs(table: bytes, data: bytes, count: int) -> Iterator[int]:
    """`runs`, by the book."""
    bits, palette = Bits(data), table[1:] or bytes(range(256))
    width, run_width = table[0] & 15, table[0] >> 4
    while count:
        run = bits.take(run_width)
        yield from [0] * run
        count -= run
        if count and run < (1 << run_width) - 1:
            yield palette[bits.take(width)]
            count -= 1


def spelled_entropy(table: bytes, data: bytes, count: int) -> Iterator[int]:
    """`entropy`, by the book: the table, the states it means, the walk through them."""
    head = Bits(table)
    size, plain, known, gap_order, order = (head.take(width) for width in (4, 4, 8, 4, 4))
    shares = {-1: head.golomb(order) + 1} if plain else {}
    value, rare = -129, []
    for _ in range(known + 1):
        value += 1 + head.golomb(gap_order)
        if plain and head.take(1):
            rare.append(value)
        else:
            shares[value + 256] = head.golomb(order) + 1
    symbols = [*(s for s in shares if s != -1), *([-1] if plain else [])]
    ranked = [(((2 * y + 1) << 20) // shares[s], i, y, s) for i, s in enumerate(symbols)
              for y in range(shares[s], 2 * shares[s])]  # fmt: skip
    states = [(y, s) for _, _, y, s in sorted(ranked)]
    bits = Bits(data)
    lanes = [bits.take(size) for _ in range(4)]
    for i in range(count):
        rank, symbol = states[lanes[i % 4]]
        width = size + 1 - rank.bit_length()
        lanes[i % 4] = (rank << width) - (1 << size) + bits.take(width)
        yield symbol & 255 if symbol != -1 else rare[bits.take(plain)] & 255
    assert lanes == [0] * 4


SPELLED = {Packer.FIXED: spelled_fixed, Packer.BITMAP: spelled_bitmap,
           Packer.RUNS: spelled_runs, Packer.ENTROPY: spelled_entropy}  # fmt: skip


@pytest.mark.parametrize("packer", CODED)
def test_layout(packer: Packer) -> None:
    """The bytes mean what the docstring says."""
    tried = 0
    for seed in range(60):
        values = weights(seed, 1500)
        codec = fit(values, packer)
        data = codec.pack(values) if codec else b"\0"
        if codec and data[0]:
            tried += 1
            assert [v & 255 for v in values.tolist()] == list(SPELLED[packer](codec.table, data[1:], values.size))
    assert tried > 15


# Hostile bytes


def survives(packer: int, table: bytes, data: bytes, count: int) -> Int8 | None:
    """Unpack: values, or None for a ProgramError; nothing else may come out, nothing beside the values change."""
    whole = np.full(count + 32, 77, np.int8)
    out = whole[16 : count + 16]
    try:
        unpack(packer, table, np.frombuffer(data, np.uint8), out)
    except ProgramError as error:
        assert len(str(error).splitlines()) == 1
        return None
    finally:
        assert (whole[:16] == 77).all() and (whole[count + 16 :] == 77).all()
    return out


@given(st.sampled_from(CODED), st.binary(max_size=40), st.sampled_from([b"", b"\0", b"\1", b"\2"]),
       st.binary(max_size=200), st.integers(0, 300))  # fmt: skip
@settings(COMMON, max_examples=400)
def test_hostile_anything(packer: Packer, table: bytes, kind: bytes, data: bytes, count: int) -> None:
    """Random tables and stripes."""
    survives(packer, table, kind + data, count)


@given(st.sampled_from(CODED), SEED, SEED, st.binary(max_size=400), st.integers(0, 3000))
@settings(COMMON, max_examples=300)
def test_hostile_stripe(packer: Packer, seed: int, noise: int, data: bytes, count: int) -> None:
    """Sound tables, random stripes of about the right length, every count."""
    codec = fit(weights(seed, 2000), packer)
    assume(codec)
    assert codec
    survives(packer, codec.table, b"\1" + data, count)
    survives(packer, codec.table, b"\1" + np.random.default_rng(noise).bytes(count), count)


@given(st.sampled_from(CODED), SEED, st.integers(0, 600), SEED)
@settings(COMMON, max_examples=300)
def test_hostile_damage(packer: Packer, seed: int, count: int, where: int) -> None:
    """A flipped bit of stripe or table, a stripe cut short or made longer, a wrong count."""
    values = weights(seed, count)
    codec = fit(values, packer)
    assume(codec)
    assert codec
    data = codec.pack(values)
    survives(packer, codec.table, flipped(data, where), count)
    survives(packer, flipped(codec.table, where), data, count)
    survives(packer, codec.table, data, where % 2000)
    assert survives(packer, codec.table, data[: where % len(data)], count) is None
    assert survives(packer, codec.table, data + b"\0", count) is None


def flipped(data: bytes, where: int) -> bytes:
    """Bytes with one bit changed."""
    changed = bytearray(data)
    changed[where // 8 % len(data)] ^= 1 << where % 8
    return bytes(changed)


def test_hostile_ends() -> None:
    """Long stripes that say nothing end, whatever the count."""
    codec = fit(weights(1, 4000), Packer.ENTROPY)
    assert codec
    for packer, table in ((Packer.RUNS, b"\x80"), (Packer.RUNS, b"\x10"), (Packer.BITMAP, b"\x08"), (4, codec.table)):
        for byte in (0, 255):
            survives(packer, table, b"\1" + bytes([byte]) * 100_000, 1_000_000)


@pytest.mark.parametrize("packer", CODED)
def test_padding_bits(packer: Packer) -> None:
    """Every unused bit of the last byte is refused when set: two blobs would have one meaning."""
    tried = 0
    for count in range(400, 440):
        values = (np.arange(count) * 7 % 11 % 3).astype(np.int8)
        codec = fit(values, packer)
        assert codec
        data = codec.pack(values)
        assert data[0] == 1
        spare = spare_bits(codec, data, values)
        for bit in range(8 - spare, 8):
            tried += 1
            assert survives(packer, codec.table, data[:-1] + bytes([data[-1] | 1 << bit]), count) is None
    assert tried > 20


def spare_bits(codec: Codec, data: bytes, values: Int8) -> int:
    """How many bits of the last byte the layout leaves over, by its spelled reader."""
    bits: list[Bits] = []
    original = Bits.__init__

    def watch(self: Bits, content: bytes) -> None:
        bits.append(self)
        original(self, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bits, "__init__", watch)
        list(SPELLED[codec.packer](codec.table, data[1:], values.size))
    return -bits[-1].at % 8


def test_wrong_tables() -> None:
    """Each malformed table is refused with what is wrong with it."""
    data = np.frombuffer(b"\0\1\2", np.uint8)
    for packer, table, message in (
        (Packer.RAW, b"x", "it has none"),
        (Packer.FIXED, b"", "empty"),
        (Packer.FIXED, bytes(range(129)), "129 values, at most 128"),
        (Packer.FIXED, b"\1\2\1", "twice"),
        (Packer.BITMAP, b"", "empty"),
        (Packer.BITMAP, b"\0\0", "zero among"),
        (Packer.BITMAP, b"\2\1\2", "indexed by 2 bits"),
        (Packer.BITMAP, b"\x08\1", "no palette"),
        (Packer.BITMAP, b"\x09", "9 bits"),
        (Packer.BITMAP, b"\x10", "runs of 1 bits"),
        (Packer.RUNS, b"\0", "runs of 0 bits"),
        (Packer.RUNS, b"\x90", "runs of 9 bits"),
        (Packer.ENTROPY, b"", "add up"),
        (Packer.ENTROPY, bytes(5000), "5000 bytes"),
        (Packer.ENTROPY, b"\x0d\0\0\0", "13 bits of state"),
    ):
        with pytest.raises(ProgramError, match=message):
            unpack(packer, table, data, np.empty(2, np.int8))
    with pytest.raises(ProgramError, match="packer 5"):
        unpack(5, b"", data, np.empty(2, np.int8))


def test_bounds_fence(tmp_path: Path) -> None:
    """The hostile tests once more with numba's bounds checks compiled in: no access leaves an array."""
    env = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "hostile or round_trip or padding",
               "-p", "no:cacheprovider", str(Path(__file__).relative_to(ROOT))]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
