"""Packers lay out the decoded int8 weights of one stripe as bytes that decode on their own.

A *table* (bytes, one per tensor, shared by its stripes) says how; `Codec` holds packer and table. The caller knows how
many weights a stripe has. Bits go least significant first.

- ``raw``: the bytes themselves, no table.

All others begin a stripe with one byte: 0, and the weights follow as they are, or 1, and fewer bytes than weights
follow. What is unused of the last byte is zero. A stripe thus never takes more than raw and one byte.

- ``fixed``: an index of b = 1..7 bits per weight into the table, which is the palette: 1..128 different values; b is
  the least width that reaches them all.
- ``bitmap``: a bit per weight, 1 for non-zero; then an index of b bits per non-zero. Table: a byte b = 0..8, then the
  palette without zero; 8 means no palette, the non-zeros are plain bytes.
- ``runs``: a field of w = 1..8 bits, how many zeros, then an index as above, and so on; all ones: so many zeros and no
  index (`nnac.kernels.codec.pack_runs`). Table: a byte ``b | w << 4``, then the palette.
- ``entropy``: an order-0 coder (tANS) of 2**R states, R = 0..12, four of them interleaved: first their R bits each,
  then, for weight i, what state i % 4 asks for. A decoder holds 2**R steps of 12 + 4 + 4 + 9 bits (next state, bits to
  add to it, plain bits, index of the value) and up to 256 values, which `_model` expands from the shares in the table.
  Four steps are looked up in a cycle; their bit counts are known at once, so that a prefix sum of four and a shifter of
  80 bits hand each its bits. Values too rare for a share of 1/4096 sit behind one common symbol and are told apart by
  plain bits. All states must end at 0, which finds many damages. One value takes no bits: R = 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nnac.errors import ProgramError
from nnac.kernels import codec as kernels
from nnac.weights.shares import log2_floor, read_shares, write_shares
from nnac.weights.states import share_out

Int8 = NDArray[np.int8]
Int16 = NDArray[np.int16]
Int64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]

STRIPE = 16384
"""Weights in a stripe where nobody says otherwise."""

_STORED, _PACKED = b"\0", b"\1"
_MAX_PALETTE = 128


class Packer(IntEnum):
    """The layouts by id, as instructions name them."""

    RAW = 0
    FIXED = 1
    BITMAP = 2
    RUNS = 3
    ENTROPY = 4


PACKERS = {packer.name.lower(): packer for packer in Packer}
"""The layouts by name, as targets and reports name them."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A packer and the table of one tensor.

    Attributes:
        packer: the layout.
        table: what a decoder needs to know beside the stripes; empty for raw.
    """

    packer: Packer
    table: bytes = b""

    def pack(self, values: Int8) -> bytes:
        """Return a stripe of int8 values as bytes that `unpack` reads, never more than raw and one byte.

        Values that the table does not know are stored as they are.
        """
        values = _flat(values)
        if self.packer == Packer.RAW:
            return values.tobytes()
        payload = _PACK[self.packer](self.table, values)
        return _STORED + values.tobytes() if payload is None or len(payload) >= values.size else _PACKED + payload

    def unpack(self, data: bytes, count: int) -> Int8:
        """Return the `count` values of a stripe; see `unpack`."""
        out = np.empty(count, np.int8)
        unpack(self.packer, self.table, np.frombuffer(data, np.uint8), out)
        return out


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to pack a tensor.

    Attributes:
        codec: the packer and its table.
        stripes: the packed stripes, in the order in which they were given.
    """

    codec: Codec
    stripes: tuple[bytes, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of stripes and table."""
        return len(self.codec.table) + sum(map(len, self.stripes))


def fit(values: Int8, packer: Packer, palette: Int8 | None = None) -> Codec | None:
    """Return the codec of a packer for a tensor, or None where the packer cannot represent it.

    Args:
        values: int8 weights of the whole tensor; what the codec shall pack later, or at least like it.
        packer: the layout.
        palette: the values to index, in this order; default: those that occur, ascending. Doubles are dropped, and zero
            where the layout has it apart. Where a value is missing, `fixed` gives up and others take the default. Raw
            and the entropy coder do not use it.
    """
    return next(iter(fits([values], [packer], palette)), None)


def unpack(packer: int, table: bytes, data: Bytes, out: Int8) -> None:
    """Decode one stripe; `out` says how many weights it has. Whatever the bytes are, nothing else is touched.

    Args:
        packer: id of a `Packer`.
        table: the table of the tensor.
        data: uint8 bytes of the stripe, contiguous.
        out: int8 vector to fill, contiguous; undefined after an error.

    Raises:
        ProgramError: unknown packer, malformed table or stripe, bytes missing or left over, padding bits set.
    """
    if packer not in _FIT:
        raise ProgramError(f"weights are packed with packer {packer}; there are 0..{max(Packer)}")
    if packer == Packer.RAW:
        _check_table(not table, packer, "it has none")
        return _copy(packer, data, out)
    kind = int(data[0]) if data.size else -1
    if kind not in (_STORED[0], _PACKED[0]):
        raise _damaged(packer, f"the first byte is {kind}, allowed are 0 and 1" if data.size else "there is no byte")
    reader = _READER[Packer(packer)](table)
    return _copy(packer, data[1:], out) if kind == _STORED[0] else _read(reader, packer, data[1:], out)


def candidates(
    stripes: Sequence[Int8], packers: Iterable[Packer] = tuple(Packer), palette: Int8 | None = None
) -> list[Candidate]:
    """Return the tensor that consists of these stripes in every layout that can represent it, smallest first."""
    return packed(stripes, fits(stripes, packers, palette))


def fits(stripes: Sequence[Int8], packers: Iterable[Packer], palette: Int8 | None = None) -> list[Codec]:
    """Return the codecs of packers that can represent the tensor that consists of these stripes, however it is cut."""
    whole = np.concatenate([np.zeros(0, np.int8), *map(_flat, stripes)])
    counts, chosen = histogram(whole), None if palette is None else _distinct(palette)
    codecs = [_FIT[packer](whole, counts, chosen) for packer in sorted(set(packers))]
    return [codec for codec in codecs if codec]


def packed(stripes: Sequence[Int8], codecs: Iterable[Codec]) -> list[Candidate]:
    """Return the stripes as each codec packs them, smallest first."""
    found = [Candidate(codec, tuple(map(codec.pack, stripes))) for codec in codecs]
    return sorted(found, key=lambda one: (one.nbytes, one.codec.packer))


def smallest(
    values: Int8, packers: Iterable[Packer] = tuple(Packer), palette: Int8 | None = None, stripe: int = STRIPE
) -> list[Candidate]:
    """Return `candidates` of a tensor cut into stripes of `stripe` weights."""
    values = _flat(values)
    return candidates([values[i : i + stripe] for i in range(0, values.size, stripe)], packers, palette)


def entropy_bits(values: Int8) -> float:
    """Return the order-0 entropy of int8 values in bits per value; 0 for none."""
    counts = histogram(_flat(values))
    share = counts[counts > 0] / max(1, values.size)
    return float(abs((share * np.log2(share)).sum()))


# What all layouts share


def _flat(values: Int8) -> Int8:
    """Return contiguous int8 values of one axis, or refuse."""
    if values.dtype != np.int8 or values.ndim != 1:
        raise ValueError(f"packers take a vector of int8, found {values.ndim} axes of {values.dtype}")
    return np.ascontiguousarray(values)


def histogram(values: Int8) -> Int64:
    """Return how often each value occurs, at value + 128."""
    counts = np.zeros(256, np.int64)
    kernels.histogram(values, counts)
    return counts


def _distinct(palette: Int8) -> Int8:
    """Return a palette without doubles, in its order."""
    palette = _flat(palette)
    return palette[np.sort(np.unique(palette, return_index=True)[1])]


def _present(counts: Int64) -> Int8:
    """Return the values that occur, ascending; zero where none does."""
    values = np.flatnonzero(counts) - 128
    return values.astype(np.int8) if values.size else np.zeros(1, np.int8)


def _damaged(packer: int, what: str) -> ProgramError:
    return ProgramError(f"packed weights ({Packer(packer).name.lower()}) are damaged: {what}")


def _check_table(condition: bool, packer: int, what: str) -> None:
    if not condition:
        raise ProgramError(f"table of packed weights ({Packer(packer).name.lower()}) is wrong: {what}")


def _blank(bits: int) -> Words:
    """Return zeroed words for this many bits, and as many more as kernels ask for."""
    return np.zeros(bits // 64 + 3, np.uint64)


def _to_bytes(words: Words, bits: int) -> bytes:
    """Return the first bits of words in whole bytes."""
    return words.astype("<u8", copy=False).view(np.uint8)[: (bits + 7) // 8].tobytes()


def _to_words(data: Bytes) -> Words:
    """Return bytes as words with the zeros behind them that kernels ask for."""
    words = np.zeros(data.size // 8 + 4, "<u8")
    words.view(np.uint8)[: data.size] = data
    return words.astype(np.uint64, copy=False)


def _copy(packer: int, data: Bytes, out: Int8) -> None:
    """Fill `out` with bytes that were stored as they are."""
    if data.size != out.size:
        raise _damaged(packer, f"{data.size} bytes stored for {out.size} weights")
    out[:] = data.view(np.int8)


_Reader = Callable[[Words, int, Int8, Int64], None]
"""Decodes words of so many bits into values, and reports as kernels do."""


def _read(reader: _Reader, packer: int, data: Bytes, out: Int8) -> None:
    """Run a reader and refuse what it faults, what it leaves over, and padding other than zero."""
    if data.size >= out.size:
        raise _damaged(packer, f"{data.size} bytes for {out.size} weights, which would have been stored as they are")
    report = np.zeros(1, np.int64)
    reader(_to_words(data), data.size * 8, out, report)
    bits = int(report[0])
    if bits < 0:
        raise _damaged(packer, f"{data.size} bytes do not decode to {out.size} weights")
    if (bits + 7) // 8 != data.size:
        raise _damaged(packer, f"{data.size} bytes for {out.size} weights, which take {(bits + 7) // 8}")
    if bits % 8 and int(data[-1]) >> bits % 8:
        raise _damaged(packer, "padding bits are not zero")


# Palettes: fixed, bitmap, runs


@dataclass(frozen=True, slots=True)
class _Palette:
    """Values to index: `values` is padded to 256 of which `known` count; `codes` is the way back, -1 for unknown."""

    values: Int8
    known: int
    width: int
    codes: Int16

    @classmethod
    def of(cls, values: Int8, width: int) -> _Palette:
        padded, codes = np.zeros(256, np.int8), np.full(256, -1, np.int16)
        padded[: values.size] = values
        codes[values.astype(np.int64) + 128] = np.arange(values.size)
        return cls(padded, values.size, width, codes)

    def covers(self, counts: Int64, but_zero: bool) -> bool:
        """Return whether every value that occurs is known; zero need not be where the layout has it apart."""
        unknown = (counts > 0) & (self.codes < 0)
        return not (unknown[:128].any() or unknown[129:].any() or (unknown[128] and not but_zero))


def _width(known: int) -> int:
    """Return the bits of an index into this many values."""
    return max(known - 1, 0).bit_length()


def _read_palette(values: bytes, width: int, packer: Packer) -> _Palette:
    """Return the palette of a table, checked; width 8 stands for all values by their bytes."""
    if width == 8 and packer != Packer.FIXED:
        _check_table(not values, packer, "plain non-zeros have no palette")
        return _Palette.of(np.arange(256, dtype=np.uint8).view(np.int8), 8)
    palette = np.frombuffer(values, np.int8)
    _check_table(palette.size <= _MAX_PALETTE, packer, f"{palette.size} values, at most {_MAX_PALETTE}")
    _check_table(np.unique(palette).size == palette.size, packer, "a value occurs twice")
    _check_table(packer == Packer.FIXED or bool((palette != 0).all()), packer, "zero among the non-zeros")
    _check_table(width == _width(palette.size), packer, f"{palette.size} values indexed by {width} bits")
    return _Palette.of(palette, width)


@functools.lru_cache(maxsize=256)
def _fixed_palette(table: bytes) -> _Palette:
    """Return the palette of a `fixed` table; one value takes a bit, too."""
    _check_table(bool(table), Packer.FIXED, "it is empty")
    palette = _read_palette(table, _width(len(table)), Packer.FIXED)
    return _Palette(palette.values, palette.known, max(1, palette.width), palette.codes)


@functools.lru_cache(maxsize=256)
def _zero_palette(table: bytes, packer: Packer) -> tuple[_Palette, int]:
    """Return the palette of a `bitmap` or `runs` table, and the width of a run."""
    _check_table(bool(table), packer, "it is empty")
    width, run_width = table[0] & 15, table[0] >> 4
    _check_table(width <= 8, packer, f"indices of {width} bits, allowed are 0..8")
    allowed = range(1, 9) if packer == Packer.RUNS else range(1)
    _check_table(run_width in allowed, packer, f"runs of {run_width} bits, allowed are {allowed[0]}..{allowed[-1]}")
    return _read_palette(table[1:], width, packer), run_width


def _non_zeros(counts: Int64, palette: Int8 | None) -> Int8 | None:
    """Return the palette without zero of a tensor, or None where it is too long and plain bytes must do."""
    present = _present(counts)
    values = present if palette is None else palette
    if not np.isin(present[present != 0], values).all():
        values = present
    values = values[values != 0]
    return values if values.size <= _MAX_PALETTE else None


def _palette_table(values: Int8 | None, run_width: int) -> bytes:
    width = 8 if values is None else _width(values.size)
    return bytes([width | run_width << 4]) + (b"" if values is None else values.tobytes())


def _fit_fixed(values: Int8, counts: Int64, palette: Int8 | None) -> Codec | None:
    chosen = _present(counts) if palette is None else palette
    fits = 0 < chosen.size <= _MAX_PALETTE and (values.size == 0 or bool(np.isin(_present(counts), chosen).all()))
    return Codec(Packer.FIXED, chosen.tobytes()) if fits else None


def _fit_bitmap(values: Int8, counts: Int64, palette: Int8 | None) -> Codec | None:
    return Codec(Packer.BITMAP, _palette_table(_non_zeros(counts, palette), 0))


def _fit_runs(values: Int8, counts: Int64, palette: Int8 | None) -> Codec | None:
    """Take the width of a run with the fewest bits: each non-zero takes a field, and so does each full run."""
    escapes = np.zeros(9, np.int64)
    kernels.run_escapes(values, escapes)
    fields = escapes + (values.size - int(counts[128]))
    run_width = min(range(1, 9), key=lambda width: int(fields[width]) * width)
    return Codec(Packer.RUNS, _palette_table(_non_zeros(counts, palette), run_width))


def _pack_fixed(table: bytes, values: Int8) -> bytes | None:
    palette = _fixed_palette(table)
    if not palette.covers(histogram(values), but_zero=False):
        return None
    words = _blank(values.size * palette.width)
    kernels.pack_fixed(values, palette.codes, palette.width, words)
    return _to_bytes(words, values.size * palette.width)


def _pack_bitmap(table: bytes, values: Int8) -> bytes | None:
    (palette, _), counts = _zero_palette(table, Packer.BITMAP), histogram(values)
    if not palette.covers(counts, but_zero=True):
        return None
    bits = values.size + (values.size - int(counts[128])) * palette.width
    words, report = _blank(bits), np.zeros(1, np.int64)
    kernels.pack_bitmap(values, palette.codes, palette.width, words, report)
    return _to_bytes(words, int(report[0]))


def _pack_runs(table: bytes, values: Int8) -> bytes | None:
    palette, run_width = _zero_palette(table, Packer.RUNS)
    if not palette.covers(histogram(values), but_zero=True):
        return None
    words, report = _blank(values.size * (run_width + palette.width)), np.zeros(1, np.int64)
    kernels.pack_runs(values, palette.codes, run_width, palette.width, words, report)
    return _to_bytes(words, int(report[0]))


def _fixed_reader(table: bytes) -> _Reader:
    palette = _fixed_palette(table)

    def read(words: Words, limit: int, out: Int8, report: Int64) -> None:
        report[0] = -1
        if out.size * palette.width <= limit:
            kernels.unpack_fixed(words, palette.values, palette.known, palette.width, out, report)

    return read


def _bitmap_reader(table: bytes) -> _Reader:
    palette, _ = _zero_palette(table, Packer.BITMAP)

    def read(words: Words, limit: int, out: Int8, report: Int64) -> None:
        report[0] = -1
        if out.size <= limit:
            kernels.unpack_bitmap(words, limit, palette.values, palette.known, palette.width, out, report)

    return read


def _runs_reader(table: bytes) -> _Reader:
    palette, run_width = _zero_palette(table, Packer.RUNS)

    def read(words: Words, limit: int, out: Int8, report: Int64) -> None:
        kernels.unpack_runs(words, limit, palette.values, palette.known, run_width, palette.width, out, report)

    return read


# Entropy


@dataclass(frozen=True, slots=True)
class _Model:
    """Shares expanded for the kernels, see there: `steps` and `palette` decode, the rest encodes."""

    bits: int
    steps: NDArray[np.int32]
    palette: Int8
    entries: Int64
    places: Int16


@functools.lru_cache(maxsize=256)
def _model(table: bytes) -> _Model:
    """Expand an entropy table.

    Share f of a symbol becomes the ranks f..2f-1, and rank y wants to lie at the fraction (y + 1/2) / f of the states,
    where a state x is about as likely as 1/x; all ranks of all symbols in that order are the states.
    """
    model = read_shares(table)
    palette = [v for v, share in zip(model.values, model.shares, strict=True) if share]
    rare = [v for v, share in zip(model.values, model.shares, strict=True) if not share]
    shares = np.array([s for s in model.shares if s] + [model.common] * bool(rare), np.int64)
    begin = np.cumsum(shares) - shares
    owner = np.repeat(np.arange(shares.size), shares)
    ranks = np.arange(owner.size) - begin[owner] + shares[owner]
    order = np.argsort(((2 * ranks + 1) << 20) // shares[owner], kind="stable")
    places = np.empty(owner.size, np.int16)
    places[order] = np.arange(owner.size) + (1 << model.bits)
    longest = model.bits - log2_floor(shares)
    plain = model.plain * (owner >= len(palette))
    steps = _steps(ranks[order], plain[order], owner[order], model.bits)
    values = np.array(palette + rare, np.int8)
    symbols = (longest << 16) - (shares << longest) << 32 | begin - shares & 0xFFF
    return _Model(model.bits, steps, values, _entries(values, symbols, len(palette), model.plain), places)


def _steps(ranks: Int64, plain: Int64, owner: Int64, bits: int) -> NDArray[np.int32]:
    """Return what the decoder does in each state."""
    count = bits - log2_floor(ranks)
    steps = ((ranks << count) - (1 << bits)) | count << 12 | plain << 16 | owner << 20
    return np.asarray(steps, np.int32)


def _entries(values: Int8, symbols: Int64, known: int, plain: int) -> Int64:
    """Return what the encoder does for each value, at value & 255; values from `known` on share the last symbol."""
    index = np.arange(values.size)
    found = np.full(256, symbols[0] | kernels.UNKNOWN)
    rare = np.maximum(index - known, 0) << 20 | plain * (index >= known) << 16
    found[values.view(np.uint8)] = symbols[np.minimum(index, known)] | rare
    return found


def _fit_entropy(values: Int8, counts: Int64, palette: Int8 | None) -> Codec | None:
    present = _present(counts).astype(np.int64)
    return Codec(Packer.ENTROPY, write_shares(share_out(present, counts[present + 128], STRIPE)))


def _pack_entropy(table: bytes, values: Int8) -> bytes | None:
    model = _model(table)
    words, report = _blank(values.size * 8 + 128), np.zeros(1, np.int64)
    kernels.pack_states(values, model.entries, model.places, model.bits, words, report)
    return _to_bytes(words, int(report[0])) if 0 <= report[0] < values.size * 8 else None


def _entropy_reader(table: bytes) -> _Reader:
    model = _model(table)

    def read(words: Words, limit: int, out: Int8, report: Int64) -> None:
        kernels.unpack_states(words, limit, model.bits, model.steps, model.palette, out, report)

    return read


_FIT: dict[int, Callable[[Int8, Int64, Int8 | None], Codec | None]] = {
    Packer.RAW: lambda values, counts, palette: Codec(Packer.RAW),
    Packer.FIXED: _fit_fixed,
    Packer.BITMAP: _fit_bitmap,
    Packer.RUNS: _fit_runs,
    Packer.ENTROPY: _fit_entropy,
}
_PACK: dict[int, Callable[[bytes, Int8], bytes | None]] = {
    Packer.FIXED: _pack_fixed,
    Packer.BITMAP: _pack_bitmap,
    Packer.RUNS: _pack_runs,
    Packer.ENTROPY: _pack_entropy,
}
_READER: dict[int, Callable[[bytes], _Reader]] = {
    Packer.FIXED: _fixed_reader,
    Packer.BITMAP: _bitmap_reader,
    Packer.RUNS: _runs_reader,
    Packer.ENTROPY: _entropy_reader,
}
