"""Products of few rows with weights in narrow codes, which are read packed and looked up in registers.

A matrix-vector product is as fast as memory gives the weights: fewer bits are faster. Codes are indices of 1 to 7 bits
into a table of int8 values. Processors with AVX-512 VBMI pick the bits (vpermb, vpmultishiftqb) and look them up
(vpermb) on the way into vpdpbusd; others have no such form.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from nnac.kernels import machine
from nnac.kernels.jit import INT, Int8, Int32, inner, kernel, microkernel, sink, source
from nnac.kernels.panels import Slabs
from nnac.kernels.tile import AVX512
from nnac.kernels.vectors import (
    BYTE,
    LONG,
    WORD,
    Builder,
    Value,
    advance,
    call,
    choose,
    load,
    loop,
    routine,
    splat,
    store,
    variables,
    vector,
)
from nnac.kernels.vectors import microkernel as emitted

UInt8 = npt.NDArray[np.uint8]

WIDTH = 64
"""Channels of a panel: four vectors of sixteen."""
VECTORS = 4
BITS = 7
"""Of a code at most."""
ROWS = 4
"""Rows of a product at most; more are faster on weights of 8 bits."""
_BYTES, _WORDS = vector(BYTE, 64), vector(WORD, 16)


def _together(bits: int) -> int:
    """Groups of 64 codes that one load brings: as many as 64 bits hold of eight codes, where they fill them."""
    return 8 // bits if bits in (2, 4) else 1


def _emit(
    builder: Builder,
    x: Value,
    pitch: Value,
    rows: Value,
    panel: Value,
    steps: Value,
    bits: Value,
    table: Value,
    sums: Value,
    sums_pitch: Value,
) -> None:
    """At most ROWS rows against one panel, as `Tile.multiply`; `table` is the address of 128 values, repeated."""
    rest = (x, pitch, panel, steps, table, sums, sums_pitch)

    def narrow(width: int) -> None:
        choose(builder, rows, range(1, ROWS + 1), lambda count: routine_of(width, count))

    def routine_of(width: int, count: int) -> None:
        routine(builder, f"codes_{width}_{count}", partial(_tile, width, count), *rest)

    choose(builder, bits, range(1, BITS + 1), narrow)


def _tile(
    bits: int,
    rows: int,
    builder: Builder,
    x: Value,
    pitch: Value,
    panel: Value,
    steps: Value,
    table: Value,
    sums: Value,
    sums_pitch: Value,
) -> None:
    """All sums in registers, one step after the other."""
    tables = [load(builder, builder.add(table, LONG(at)), _BYTES) for at in (0, 64)]
    tile = [(i, j) for i in range(rows) for j in range(VECTORS)]
    totals = dict(zip(tile, variables(builder, _WORDS, len(tile)), strict=True))
    starts = [advance(builder, x, LONG(i), pitch) for i in range(rows)]
    first = builder.add(panel, LONG(4 * WIDTH))
    with loop(builder, steps) as step:
        here = advance(builder, first, step, 8 * bits * VECTORS)
        weights = [_look_up(builder, bits, tables, code) for code in _codes(builder, bits, here)]
        for i in range(rows):
            patch = AVX512.patch(builder, load(builder, advance(builder, starts[i], step, 4), WORD))
            for j in range(VECTORS):
                total = totals[i, j]
                builder.store(AVX512.step(builder, builder.load(total), patch, weights[j]), total)
    for i, j in tile:
        start = AVX512.start(builder, panel, j)
        target = builder.add(advance(builder, sums, LONG(i), sums_pitch), LONG(64 * j))
        store(builder, builder.add(builder.load(totals[i, j]), start), target)


def _codes(builder: Builder, bits: int, here: Value) -> list[Value]:
    """The codes of one step, one per byte, with garbage above their bits."""
    groups = _together(bits)
    found = []
    for j in range(VECTORS // groups):
        raw = load(builder, builder.add(here, LONG(8 * bits * groups * j)), _BYTES)
        if groups == 1:
            order = [min(bits * (lane // 8) + lane % 8, 63) for lane in range(64)]
            raw = _permute(builder, raw, _constant(order))
        for group in range(groups):
            fields = [(bits * (8 * group + lane % 8)) % 64 for lane in range(64)]
            found.append(call(builder, "llvm.x86.avx512.pmultishift.qb.512", _BYTES, _constant(fields), raw))
    return found


def _constant(values: list[int]) -> Value:
    """A constant vector of 64 bytes."""
    constant: Any = type(splat(_BYTES, 0))
    return constant(_BYTES, values)


def _look_up(builder: Builder, bits: int, tables: list[Value], codes: Value) -> Value:
    """The table's values; a permutation reads six bits of its indices (of two tables: seven)."""
    if bits < 7:
        values = _permute(builder, tables[0], codes)
    else:
        values = call(builder, "llvm.x86.avx512.vpermi2var.qi.512", _BYTES, tables[0], codes, tables[1])
    return builder.bitcast(values, _WORDS)


def _permute(builder: Builder, values: Value, order: Value) -> Value:
    """vpermb."""
    return call(builder, "llvm.x86.avx512.permvar.qi.512", _BYTES, values, order)


_emitted = emitted(_emit, 9)


@microkernel
def _narrow_tile(arguments: int) -> None:
    _emitted(arguments)


def narrow_tile() -> int:
    """The address of the compiled form, or 0 where the processor in use has none."""
    return _narrow_tile() if machine.processor() == "avx512" and machine.has("avx512vbmi") else 0


@dataclass(frozen=True, slots=True)
class Coded:
    """The weights of one layer in narrow codes, ready for products."""

    data: Int8
    """Opaque: panels of 64 channels (starts of sums, steps of codes)."""
    table: Int8
    """(128,): the values, repeated."""
    channels: int
    depth: int
    bits: int


@inner
def panel_size(steps: int, bits: int) -> int:
    """Bytes of a panel: starts of sums, then the codes of 64 channels."""
    return WIDTH * 4 + steps * bits * WIDTH // 2


def panel_bytes(steps: int, bits: int) -> int:
    """`panel_size` for Python."""
    return WIDTH * 4 + steps * bits * WIDTH // 2


@inner
def _place(n: int, k: int, bits: int) -> tuple[int, int]:
    """Byte and bit of a code inside its panel, after the head."""
    groups = 8 // bits if bits in (2, 4) else 1
    group = k // 4 * VECTORS + n // 16
    lane = n % 16 * 4 + k % 4
    field = (group % groups * 8 + lane % 8) * bits
    return group // groups * groups * 8 * bits + lane // 8 * bits * groups + field // 8, field % 8


@kernel(source(types.uint8, 2), source(types.int8, 1), source(types.int32, 1), sink(types.int8, 1, "C"), INT, INT)
def _pack(codes: UInt8, table: Int8, bias: Int32, data: Int8, bits: int, zero: int) -> None:
    """`pack_codes` into zeroed bytes."""
    channels, depth = codes.shape
    size = panel_size((depth + 3) // 4, bits)
    for n in range(channels):
        panel = data[n // WIDTH * size :]
        head = panel[: 4 * WIDTH].view(np.int32)
        total = (-depth % 4) * np.int64(table[0])  # what fills the last step
        for k in range(depth):
            total += table[codes[n, k]]
            byte, bit = _place(n % WIDTH, k, bits)
            wide = np.int64(codes[n, k]) << bit
            panel[4 * WIDTH + byte] |= np.int8(wide & 255)
            if wide > 255:
                panel[4 * WIDTH + byte + 1] |= np.int8(wide >> 8)
        head[n % WIDTH] = np.int32(bias[n] - zero * total)


def pack_codes(codes: UInt8, table: Int8, bits: int, bias: Int32, zero: int, slabs: Slabs | None = None) -> Coded:
    """Packs (N, K) codes of 1 to 7 bits, their table of ``2**bits`` int8 values and (N,) int32 biases.

    `zero` is the zero point of what is multiplied, as the tiles read it.
    """
    channels, depth = codes.shape
    size = -(-channels // WIDTH) * panel_bytes(-(-depth // 4), bits)
    coded = Coded((slabs or Slabs(0)).room(size), np.tile(table, 128 >> bits), channels, depth, bits)
    _pack(codes, coded.table, bias, coded.data, bits, zero)
    return coded
