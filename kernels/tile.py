"""The register tiles of matrix products, one form per kind of processor: ``bias + (x - zero) @ weights.T`` in int32.

All forms read the same packed weights (`nnac.kernels.panels`) and make the same bits: sums are exact modulo 2**32.
A lane is an output channel (column); a step takes four values of the reduction axis.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]

from nnac.kernels.vectors import (
    BYTE,
    HALF,
    LONG,
    WORD,
    Builder,
    Value,
    advance,
    call,
    cgutils,
    choose,
    load,
    loop,
    microkernel,
    routine,
    shuffle,
    splat,
    spread,
    store,
    variables,
    vector,
)

COLUMNS = 16
"""Panels are this wide, or a multiple."""
ARGUMENTS = 9
"""Of a tile function: see `Tile.multiply`."""
OWN_ARGUMENTS = 8
"""Of the same for depthwise layers: see `Tile.depthwise`."""


@dataclass(frozen=True)
class Tile(ABC):
    """A tile of `rows` patches times `vectors` of weights, each for `columns` output channels."""

    rows: int
    vectors: int
    columns: int
    offset: int = 0
    """What `patch` adds to the values of x."""

    @property
    @abstractmethod
    def sums(self) -> Any:
        """The type of a vector of sums: `columns` times a whole number of lanes."""

    @abstractmethod
    def patch(self, builder: Builder, word: Value) -> Value:
        """Four values of x (plus `offset`) for all columns."""

    @abstractmethod
    def weights(self, builder: Builder, raw: Value) -> Value:
        """Four int8 weights of each column, ready for `step`."""

    def own(self, builder: Builder, raw: Value) -> Value:
        """Four values of x (plus `offset`) of each column's own."""
        return self.weights(builder, raw)

    @abstractmethod
    def step(self, builder: Builder, sums: Value, x: Value, weights: Value) -> Value:
        """The sums with four more products in each column."""

    def fold(self, builder: Builder, sums: Value) -> Value:
        """One sum per column: the lanes of a column lie side by side."""
        lanes, total = self.sums.count // self.columns, None
        for lane in range(lanes):
            part = shuffle(builder, sums, sums, list(range(lane, self.sums.count, lanes)))
            total = part if total is None else builder.add(total, part)
        return total

    def multiply(
        self,
        builder: Builder,
        x: Value,
        pitch: Value,
        rows: Value,
        panel: Value,
        steps: Value,
        width: Value,
        zero: Value,
        sums: Value,
        sums_pitch: Value,
    ) -> None:
        """Rows of x against one panel.

        Args:
            builder: where the code goes; all others are 64-bit integers.
            x: address of the first row, int8; a row is read in whole steps.
            pitch: bytes from one row to the next.
            rows: at least 1.
            panel: address: bias, column sums (int32, `width` each), then steps of `width` times four int8 weights.
            steps: of four values each.
            width: columns of the panel, a multiple of COLUMNS, at most `nnac.kernels.panels.WIDTH`.
            zero: zero point of x.
            sums: address of the first row of sums, int32.
            sums_pitch: bytes from one row of sums to the next.
        """
        across = self.vectors * self.columns
        blocks = builder.udiv(builder.add(width, LONG(across - 1)), LONG(across))
        with loop(builder, blocks) as block:
            column = builder.mul(block, LONG(across))
            left = builder.udiv(builder.sub(width, column), LONG(self.columns))
            full = builder.icmp_unsigned(">", left, LONG(self.vectors))
            vectors = builder.select(full, LONG(self.vectors), left)
            cases = range(1 if across > COLUMNS else self.vectors, self.vectors + 1)
            here, there = (advance(builder, at, column, 4) for at in (panel, sums))
            stride = builder.mul(width, LONG(4))
            choose(
                builder,
                vectors,
                cases,
                lambda count: self._rows(builder, count, x, pitch, rows, here, steps, stride, zero, there, sums_pitch),
            )

    def _rows(
        self,
        builder: Builder,
        vectors: int,
        x: Value,
        pitch: Value,
        rows: Value,
        panel: Value,
        steps: Value,
        stride: Value,
        zero: Value,
        sums: Value,
        sums_pitch: Value,
    ) -> None:
        """All rows, in tiles of about the same size."""
        tiles = builder.udiv(builder.add(rows, LONG(self.rows - 1)), LONG(self.rows))
        with loop(builder, tiles) as tile:
            first = builder.udiv(builder.mul(tile, rows), tiles)
            last = builder.udiv(builder.mul(builder.add(tile, LONG(1)), rows), tiles)
            here, there = advance(builder, x, first, pitch), advance(builder, sums, first, sums_pitch)
            rest = (here, pitch, panel, steps, stride, zero, there, sums_pitch)
            choose(
                builder, builder.sub(last, first), range(1, self.rows + 1), partial(self._call, builder, vectors, rest)
            )

    def _call(self, builder: Builder, vectors: int, rest: tuple[Value, ...], rows: int) -> None:
        routine(builder, f"tile_{rows}_{vectors}", partial(self._tile, rows, vectors), *rest)

    def _tile(
        self,
        rows: int,
        vectors: int,
        builder: Builder,
        x: Value,
        pitch: Value,
        panel: Value,
        steps: Value,
        stride: Value,
        zero: Value,
        sums: Value,
        sums_pitch: Value,
    ) -> None:
        """All sums in registers, one step after the other."""
        tile = [(i, j) for i in range(rows) for j in range(vectors)]
        totals = dict(zip(tile, variables(builder, self.sums, len(tile)), strict=True))
        starts = [advance(builder, x, LONG(i), pitch) for i in range(rows)]
        first = advance(builder, panel, LONG(2), stride)
        with loop(builder, steps) as step:
            here = advance(builder, first, step, stride)
            weights = [self._load(builder, here, j) for j in range(vectors)]
            for i in range(rows):
                patch = self.patch(builder, load(builder, advance(builder, starts[i], step, 4), WORD))
                for j in range(vectors):
                    total = totals[i, j]
                    builder.store(self.step(builder, builder.load(total), patch, weights[j]), total)
        for j in range(vectors):
            start = self.start(builder, panel, stride, zero, j)
            for i in range(rows):
                target = advance(builder, advance(builder, sums, LONG(i), sums_pitch), LONG(j), 4 * self.columns)
                store(builder, builder.add(self.fold(builder, builder.load(totals[i, j])), start), target)

    def depthwise(
        self,
        builder: Builder,
        places: Value,
        pixels: Value,
        panel: Value,
        steps: Value,
        width: Value,
        zero: Value,
        sums: Value,
        sums_pitch: Value,
    ) -> None:
        """Each channel against its own weights.

        Args:
            builder: where the code goes; all others are 64-bit integers.
            places: address of the addresses of the first channel of every tap, four per step, for every pixel; from
                each of them on, `width` channels are read.
            pixels: at least 1.
            panel: as for `multiply`.
            steps: of four taps each.
            width: columns of the panel, a multiple of COLUMNS.
            zero: zero point of x.
            sums: address of the first row of sums, int32.
            sums_pitch: bytes from one row of sums to the next.
        """
        rest = (places, pixels, panel, steps, width, zero, sums, sums_pitch)
        across = LONG(self.vectors * self.columns)
        blocks = builder.udiv(width, across)
        with loop(builder, blocks) as block:
            routine(builder, "own_block", partial(self._own, self.vectors), builder.mul(block, across), *rest)
        done = builder.mul(blocks, across)
        with loop(builder, builder.udiv(builder.sub(width, done), LONG(self.columns))) as block:
            column = builder.add(done, builder.mul(block, LONG(self.columns)))
            routine(builder, "own_vector", partial(self._own, 1), column, *rest)

    def _own(
        self,
        vectors: int,
        builder: Builder,
        column: Value,
        places: Value,
        pixels: Value,
        panel: Value,
        steps: Value,
        width: Value,
        zero: Value,
        sums: Value,
        sums_pitch: Value,
    ) -> None:
        """All pixels of some vectors of channels."""
        here, there = (advance(builder, at, column, 4) for at in (panel, sums))
        stride, pixel_bytes = builder.mul(width, LONG(4)), builder.mul(steps, LONG(32))
        first = advance(builder, here, LONG(2), stride)
        starts = [self.start(builder, here, stride, zero, j) for j in range(vectors)]
        totals = [cgutils.alloca_once(builder, self.sums) for _ in range(vectors)]
        with loop(builder, pixels) as pixel:
            for total in totals:
                builder.store(ir.Constant(self.sums, None), total)
            place = advance(builder, places, pixel, pixel_bytes)
            with loop(builder, steps) as step:
                at = advance(builder, place, step, 32)
                taps = [builder.add(load(builder, builder.add(at, LONG(8 * n)), LONG), column) for n in range(4)]
                weights = advance(builder, first, step, stride)
                for j, total in enumerate(totals):
                    values = self.own(builder, self._woven(builder, taps, j))
                    stepped = self.step(builder, builder.load(total), values, self._load(builder, weights, j))
                    builder.store(stepped, total)
            target = advance(builder, there, pixel, sums_pitch)
            for j, total in enumerate(totals):
                found = builder.add(self.fold(builder, builder.load(total)), starts[j])
                store(builder, found, builder.add(target, LONG(4 * self.columns * j)))

    def _woven(self, builder: Builder, taps: list[Value], j: int) -> Value:
        """The bytes of a vector of channels at four places, those of a channel side by side."""
        kind = vector(BYTE, self.columns)
        a, b, c, d = (load(builder, builder.add(tap, LONG(self.columns * j)), kind) for tap in taps)
        whole = list(range(2 * self.columns))
        near, far = shuffle(builder, a, b, whole), shuffle(builder, c, d, whole)
        return shuffle(builder, near, far, [n * self.columns + lane for lane in range(self.columns) for n in range(4)])

    def _load(self, builder: Builder, address: Value, j: int) -> Value:
        """One step of the vector's weights."""
        kind = vector(BYTE, 4 * self.columns)
        return self.weights(builder, load(builder, builder.add(address, LONG(4 * self.columns * j)), kind))

    def start(self, builder: Builder, panel: Value, stride: Value, zero: Value, j: int) -> Value:
        """What the zero point and the bias add to a column's products."""
        kind, at = vector(WORD, self.columns), builder.add(panel, LONG(4 * self.columns * j))
        bias, column_sums = load(builder, at, kind), load(builder, builder.add(at, stride), kind)
        lifted = spread(builder, builder.trunc(builder.add(zero, LONG(self.offset)), WORD), self.columns)
        return builder.sub(bias, builder.mul(lifted, column_sums))


@dataclass(frozen=True)
class Vnni(Tile):
    """x86's vpdpbusd: unsigned times signed bytes, so x is lifted by 128. `columns` are 16 (AVX-512) or 8 (AVX)."""

    offset: int = 128

    @property
    def sums(self) -> Any:
        return vector(WORD, self.columns)

    def patch(self, builder: Builder, word: Value) -> Value:
        return spread(builder, builder.xor(word, WORD(-0x7F7F7F80)), self.columns)

    def weights(self, builder: Builder, raw: Value) -> Value:
        return builder.bitcast(raw, self.sums)

    def own(self, builder: Builder, raw: Value) -> Value:
        return builder.bitcast(builder.xor(raw, splat(raw.type, -128)), self.sums)

    def step(self, builder: Builder, sums: Value, x: Value, weights: Value) -> Value:
        return call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * self.columns}", self.sums, sums, x, weights)


@dataclass(frozen=True)
class Sdot(Tile):
    """ARM's dot product of signed bytes."""

    @property
    def sums(self) -> Any:
        return vector(WORD, 4)

    def patch(self, builder: Builder, word: Value) -> Value:
        return builder.bitcast(spread(builder, word, 4), vector(BYTE, 16))

    def weights(self, builder: Builder, raw: Value) -> Value:
        return raw

    def step(self, builder: Builder, sums: Value, x: Value, weights: Value) -> Value:
        return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", self.sums, sums, x, weights)


@dataclass(frozen=True)
class Widened(Tile):
    """Products of int16 values in portable vectors, for every processor."""

    @property
    def sums(self) -> Any:
        return vector(WORD, 16)

    def patch(self, builder: Builder, word: Value) -> Value:
        return self.weights(builder, builder.bitcast(spread(builder, word, 4), vector(BYTE, 16)))

    def weights(self, builder: Builder, raw: Value) -> Value:
        return builder.sext(raw, vector(HALF, 16))

    def step(self, builder: Builder, sums: Value, x: Value, weights: Value) -> Value:
        return builder.add(sums, builder.sext(builder.mul(x, weights), self.sums))


@dataclass(frozen=True)
class Madd(Widened):
    """x86's vpmaddwd: int16 products, summed in pairs; no saturation as in vpmaddubsw."""

    @property
    def sums(self) -> Any:
        return vector(WORD, 8)

    def step(self, builder: Builder, sums: Value, x: Value, weights: Value) -> Value:
        return builder.add(sums, call(builder, "llvm.x86.avx2.pmadd.wd", self.sums, x, weights))


AVX512 = Vnni(6, 4, 16)

AVXVNNI, AVX2, NEON, PORTABLE = Vnni(6, 2, 8), Madd(4, 2, 4), Sdot(6, 4, 4), Widened(2, 2, 4)

avx512_tile = microkernel(AVX512.multiply, ARGUMENTS)
avxvnni_tile = microkernel(AVXVNNI.multiply, ARGUMENTS)
avx2_tile = microkernel(AVX2.multiply, ARGUMENTS)
neon_tile = microkernel(NEON.multiply, ARGUMENTS)
portable_tile = microkernel(PORTABLE.multiply, ARGUMENTS)

avx512_own = microkernel(AVX512.depthwise, OWN_ARGUMENTS)
avxvnni_own = microkernel(AVXVNNI.depthwise, OWN_ARGUMENTS)
avx2_own = microkernel(AVX2.depthwise, OWN_ARGUMENTS)
neon_own = microkernel(NEON.depthwise, OWN_ARGUMENTS)
portable_own = microkernel(PORTABLE.depthwise, OWN_ARGUMENTS)
