"""The codec table: bits per weight and speed of every packer on seeded streams, beside two other codecs' figures.

    python -m examples.weights.codec_table

Exit code 1 and a line per miss where a bound does not hold: at most 1 % above the order-0 entropy (or 64 bits per
stripe, where that is more), below mlw, never above raw and a byte per stripe, encode above 20, decode above 110 MB/s.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nnac.weights.packers import STRIPE, Codec, Packer, entropy_bits, fit, unpack

Int8 = NDArray[np.int8]
Result = TypeVar("Result")

WEIGHTS = 1 << 20
REPEATS = 3
MIN_ENCODE, MIN_DECODE = 20.0, 110.0
SLACK_BITS = 64


@dataclass(frozen=True, slots=True)
class Row:
    """A stream and what others reach on it.

    Attributes:
        name: what the weights are.
        make: number of weights -> weights; the same each time.
        mlw: bits per weight of Arm Vela 5.2.0's codec, as measured elsewhere on the same kind of stream.
        huffman: the same of a Huffman code, where it was measured.
    """

    name: str
    make: Callable[[int], Int8]
    mlw: float
    huffman: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One packer on one stream: bits per weight, table and headers included, and MB of weights per second."""

    packer: Packer
    bits: float
    encode: float
    decode: float


def _normal(sigma: float, n: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(0, sigma, n)


def _int8(reals: NDArray[np.float64]) -> Int8:
    return np.clip(np.rint(reals), -127, 127).astype(np.int8)


def clustered(values: Int8, levels: int) -> Int8:
    """Return values snapped to this many levels: 15 rounds of Lloyd's algorithm that begins at quantiles."""
    counts = np.bincount(values.astype(np.int64) + 128, minlength=256).astype(np.float64)
    grid = np.arange(-128.0, 128.0)
    centers = np.interp((np.arange(levels) + 0.5) / levels, np.cumsum(counts) / max(1, values.size), grid)
    for _ in range(15):
        nearest = np.searchsorted((centers[1:] + centers[:-1]) / 2, grid)
        weight, total = (np.bincount(nearest, part, levels) for part in (counts, counts * grid))
        centers = np.sort(np.where(weight > 0, total / np.maximum(weight, 1), centers))
    nearest = np.searchsorted((centers[1:] + centers[:-1]) / 2, grid)
    return np.asarray(np.rint(centers)[nearest][values.astype(np.int64) + 128], np.int8)


def pruned(share: float, levels: int | None, n: int) -> Int8:
    """Return gaussian weights with the smallest `share` of them zero and the others snapped to so many levels."""
    reals = _normal(32, n)
    kept = np.abs(reals) >= np.quantile(np.abs(reals), share)
    values = np.where(kept, _int8(reals), 0).astype(np.int8)
    if levels:
        values[kept] = clustered(values[kept], levels)
    return values


def _gaussian(sigma: float, n: int) -> Int8:
    return _int8(_normal(sigma, n))


def _clustered_gaussian(levels: int, n: int) -> Int8:
    return clustered(_gaussian(32, n), levels)


def rows() -> Iterator[Row]:
    """Yield the streams; columns of others from the project's list of what peers reach."""
    for sigma, mlw, huffman in (8, 5.321, None), (20, 6.981, None), (32, 7.154, 7.089), (42, 7.644, None):
        yield Row(f"gaussian, sigma {sigma}", partial(_gaussian, sigma), mlw, huffman)
    yield Row("uniform int8", lambda n: np.random.default_rng(0).integers(-128, 128, n).astype(np.int8), 9.001, 8.0)
    yield Row("laplace, b 12", lambda n: _int8(np.random.default_rng(0).laplace(0, 12, n)), 6.592)
    for k, mlw, huffman in (64, 6.69, None), (32, 5.001, 4.973), (16, 4.001, 3.956), (8, 3.001, None), (4, 2.001, None):
        yield Row(f"k-means {k}", partial(_clustered_gaussian, k), mlw, huffman)
    yield Row("2 values", lambda n: np.random.default_rng(0).choice(np.array([-5, 5], np.int8), n), 1.001, 1.0)
    for share, mlw, huffman in (0.5, 4.690, 4.346), (0.75, 2.690, 2.616), (0.9, 1.222, 1.621):
        yield Row(f"{share:.0%} zeros", partial(pruned, share, None), mlw, huffman)
    for share, mlw, huffman in (0.5, 2.997, 2.87), (0.75, 1.822, 1.955), (0.9, 0.874, 1.384):
        yield Row(f"{share:.0%} zeros, 16 values", partial(pruned, share, 15), mlw, huffman)
    yield Row("all zero", lambda n: np.zeros(n, np.int8), 0.125, 0.0)


def measure(values: Int8, packer: Packer) -> Measured | None:
    """Return size and speed of a packer on a stream, decoded and compared; None where it cannot represent it."""
    codec = fit(values, packer)
    if codec is None:
        return None
    stripes = [values[i : i + STRIPE] for i in range(0, values.size, STRIPE)]
    encode, packed = _fastest(lambda: [codec.pack(stripe) for stripe in stripes])
    assert all(len(data) <= stripe.size + 1 for data, stripe in zip(packed, stripes, strict=True)), "above raw"
    decode, decoded = _fastest(lambda: _decode(codec, packed, values.size))
    assert (decoded == values).all(), "not lossless"
    bits = 8 * (len(codec.table) + sum(map(len, packed))) / values.size
    return Measured(packer, bits, values.size / encode / 1e6, values.size / decode / 1e6)


def _decode(codec: Codec, packed: list[bytes], count: int) -> Int8:
    out = np.empty(count, np.int8)
    for i, data in enumerate(packed):
        unpack(codec.packer, codec.table, np.frombuffer(data, np.uint8), out[i * STRIPE : (i + 1) * STRIPE])
    return out


def _fastest(run: Callable[[], Result]) -> tuple[float, Result]:
    """Return seconds of the fastest of some runs, and its result."""
    best, result = float("inf"), run()
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    return best, result


def bound(entropy: float, count: int) -> float:
    """Return the bits per weight that the smallest packer must keep: 1 % above entropy or 64 bits per stripe."""
    return max(entropy * 1.01, entropy + SLACK_BITS / min(count, STRIPE))


def misses(row: Row, entropy: float, found: list[Measured], count: int) -> Iterator[str]:
    """Yield what does not hold on a stream, speed aside."""
    best = min(one.bits for one in found)
    if best > bound(entropy, count):
        yield f"{row.name}: {best:.4f} bits, allowed {bound(entropy, count):.4f}"
    if best >= row.mlw:
        yield f"{row.name}: {best:.4f} bits, mlw {row.mlw}"
    if best > 8:
        yield f"{row.name}: {best:.4f} bits, raw 8"


def slow(row: Row, found: list[Measured]) -> Iterator[str]:
    """Yield the packers that are too slow on a stream."""
    for one in found:
        if one.encode < MIN_ENCODE or one.decode < MIN_DECODE:
            yield f"{row.name}: {one.packer.name.lower()} {one.encode:.0f} / {one.decode:.0f} MB/s"


def _line(row: Row, entropy: float, found: list[Measured]) -> str:
    bits = {one.packer: f"{one.bits:.3f}" for one in found}
    best = min(found, key=lambda one: (one.bits, one.packer))
    cells = [f"{entropy:.3f}", *(bits.get(packer, "-") for packer in Packer)]
    cells += [f"{best.bits:.4f}", f"{best.bits / entropy - 1:+.2%}" if entropy else "-"]
    cells += [f"{row.mlw:.3f}", "-" if row.huffman is None else f"{row.huffman:.3f}"]
    cells += [f"{best.encode:.0f} / {best.decode:.0f}", best.packer.name.lower()]
    return _cells(row.name, cells)


def _cells(first: str, cells: list[str]) -> str:
    widths = (6, *[7] * len(Packer), 8, 7, 6, 7, 12, 7)
    return f"| {first:22} | " + " | ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)) + " |"


def main() -> int:
    """Print the table, the slowest of each packer, and what does not hold."""
    names = [packer.name.lower() for packer in Packer]
    print(f"{WEIGHTS:,} weights in stripes of {STRIPE:,}; bits per weight with headers and table; MB/s on one core\n")
    print(_cells("stream", ["H0", *names, "best", "over H0", "mlw", "Huffman", "enc / dec", "packer"]))
    print(_cells("---", ["---"] * (7 + len(Packer))))
    failures, speeds = [], []
    for row in rows():
        values = row.make(WEIGHTS)
        entropy = entropy_bits(values)
        found = [one for one in (measure(values, packer) for packer in Packer) if one]
        failures += [*misses(row, entropy, found, WEIGHTS), *slow(row, found)]
        speeds += found
        print(_line(row, entropy, found), flush=True)
    print()
    for packer in Packer:
        mine = [one for one in speeds if one.packer == packer]
        encode, decode = min(one.encode for one in mine), min(one.decode for one in mine)
        print(f"{packer.name.lower():8} slowest stream: encode {encode:,.0f} MB/s, decode {decode:,.0f} MB/s")
    print("\n".join(["", *(f"MISSED {failure}" for failure in failures)]) if failures else "\nall bounds hold")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
