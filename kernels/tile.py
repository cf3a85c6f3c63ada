"""The register tiles of matrix products, one form per kind of processor: ``start + x @ weights.T`` in int32.

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
    spread,
    store,
    variables,
    vector,
    zipped,
)

COLUMNS = 16
"""Panels are this wide, or a multiple."""
ARGUMENTS = 9
"""Of a tile function: see `Tile.multiply`."""
OWN_ARGUMENTS = 10
"""Of the same for depthwise layers: see `Tile.depthwise`."""


@dataclass(frozen=True)
class Tile(ABC):
    """A tile of `rows` patches times `vectors` of weights, each for `columns` output channels."""

    rows: int
    vectors: int
    columns: int
    offset: int = 0
    """What is added to the values of x before they come here, as bytes."""

    @property
    @abstractmethod
    def sums(self) -> Any:
        """The type of a vector of sums: `columns` times a whole number of lanes."""

    @abstractmethod
    def patch(self, builder: Builder, word: Value) -> Value:
        """Four values of x for all columns."""

    @abstractmethod
    def weights(self, builder: Builder, raw: Value) -> Value:
        """Four bytes of each column, weights or values of x, ready for `step`."""

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
        places: Value,
        rows: Value,
        runs: Value,
        count: Value,
        panel: Value,
        steps: Value,
        width: Value,
        sums: Value,
        sums_pitch: Value,
    ) -> None:
        """Rows of x against one panel; a row is what one output reads, runs of values here and there.

        Args:
            builder: where the code goes; all others are 64-bit integers.
            places: address of the address of each row.
            rows: at least 1.
            runs: address of the distance in bytes from there to each run; runs are read in whole steps.
            count: of runs.
            panel: address: `width` starts of sums (int32), then steps of `width` times four int8 weights.
            steps: of a run, of four values each.
            width: columns of the panel, a multiple of COLUMNS.
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
                lambda n: self._rows(builder, n, rows, places, there, runs, count, here, steps, stride, sums_pitch),
            )

    def _rows(self, builder: Builder, vectors: int, rows: Value, places: Value, sums: Value, *rest: Value) -> None:
        """All rows, in tiles of about the same size; `rest` is as for `_tile`."""
        tiles = builder.udiv(builder.add(rows, LONG(self.rows - 1)), LONG(self.rows))
        least, more = builder.udiv(rows, tiles), builder.urem(rows, tiles)
        with loop(builder, tiles) as tile:
            is_more = builder.icmp_unsigned("<", tile, more)
            first = builder.add(builder.mul(tile, least), builder.select(is_more, tile, more))
            count = builder.add(least, builder.zext(is_more, LONG))
            here, there = advance(builder, places, first, 8), advance(builder, sums, first, rest[-1])
            found = range(1, self.rows + 1)
            choose(builder, count, found, partial(self._call, builder, vectors, (here, there, *rest)))

    def _call(self, builder: Builder, vectors: int, rest: tuple[Value, ...], rows: int) -> None:
        routine(builder, f"tile_{rows}_{vectors}", partial(self._tile, rows, vectors), *rest)

    def _tile(
        self,
        rows: int,
        vectors: int,
        builder: Builder,
        places: Value,
        sums: Value,
        runs: Value,
        count: Value,
        panel: Value,
        steps: Value,
        stride: Value,
        sums_pitch: Value,
    ) -> None:
        """All sums in registers, one step after the other."""
        tile = [(i, j) for i in range(rows) for j in range(vectors)]
        totals = dict(zip(tile, variables(builder, self.sums, len(tile)), strict=True))
        starts = [load(builder, builder.add(places, LONG(8 * i)), LONG) for i in range(rows)]
        first = builder.add(panel, stride)
        with loop(builder, count) as run:
            behind = load(builder, advance(builder, runs, run, 8), LONG)
            before = builder.mul(run, steps)
            with loop(builder, steps) as step:
                here = advance(builder, first, builder.add(before, step), stride)
                weights = [self._load(builder, here, j) for j in range(vectors)]
                at = advance(builder, behind, step, 4)
                for i in range(rows):
                    patch = self.patch(builder, load(builder, builder.add(starts[i], at), WORD))
                    for j in range(vectors):
                        total = totals[i, j]
                        builder.store(self.step(builder, builder.load(total), patch, weights[j]), total)
        for j in range(vectors):
            start = self.start(builder, panel, j)
            for i in range(rows):
                target = advance(builder, advance(builder, sums, LONG(i), sums_pitch), LONG(j), 4 * self.columns)
                store(builder, builder.add(self.fold(builder, builder.load(totals[i, j])), start), target)

    def depthwise(
        self,
        builder: Builder,
        x: Value,
        rows: Value,
        pitch: Value,
        blocks: Value,
        taps: Value,
        panel: Value,
        steps: Value,
        width: Value,
        sums: Value,
        sums_pitch: Value,
    ) -> None:
        """Each channel against its own weights; channels of pixels next to each other make a block.

        Args:
            builder: where the code goes; all others are 64-bit integers.
            x: address of the first block that the first tap reads; blocks are `width` values, one behind the other.
            rows: of outputs.
            pitch: bytes from one row of x to the next.
            blocks: of a row, at least 1.
            taps: address of the distance in bytes from the first tap to each, four per step.
            panel: as for `multiply`.
            steps: of four taps each.
            width: columns of the panel, a multiple of COLUMNS and of `vectors` times `columns`.
            sums: address of the first row of sums, int32; blocks lie one behind the other.
            sums_pitch: bytes from one row of sums to the next; what a row has too many, the next one writes anew.
        """
        with loop(builder, rows) as row:
            here, there = advance(builder, x, row, pitch), advance(builder, sums, row, sums_pitch)
            rest = (here, blocks, taps, panel, steps, width, there)
            across = LONG(self.vectors * self.columns)
            with loop(builder, builder.udiv(width, across)) as part:
                routine(builder, "own", self._own, builder.mul(part, across), *rest)

    def _own(
        self,
        builder: Builder,
        column: Value,
        x: Value,
        blocks: Value,
        taps: Value,
        panel: Value,
        steps: Value,
        width: Value,
        sums: Value,
    ) -> None:
        """Some vectors of channels in all blocks of a row."""
        here, there = (advance(builder, at, column, 4) for at in (panel, sums))
        stride = builder.mul(width, LONG(4))
        first = builder.add(here, stride)
        starts = [self.start(builder, here, j) for j in range(self.vectors)]
        totals = [cgutils.alloca_once(builder, self.sums) for _ in range(self.vectors)]
        with loop(builder, blocks) as block:
            for total in totals:
                builder.store(ir.Constant(self.sums, None), total)
            place = builder.add(advance(builder, x, block, width), column)
            with loop(builder, steps) as step:
                at = advance(builder, taps, step, 32)
                near = [builder.add(load(builder, builder.add(at, LONG(8 * n)), LONG), place) for n in range(4)]
                weights = advance(builder, first, step, stride)
                for j, (total, values) in enumerate(zip(totals, self._woven(builder, near), strict=True)):
                    values, factors = self.weights(builder, values), self._load(builder, weights, j)
                    builder.store(self.step(builder, builder.load(total), values, factors), total)
            target = advance(builder, there, block, stride)
            for j, total in enumerate(totals):
                found = builder.add(self.fold(builder, builder.load(total)), starts[j])
                store(builder, found, builder.add(target, LONG(4 * self.columns * j)))

    def _woven(self, builder: Builder, taps: list[Value]) -> list[Value]:
        """The bytes of all vectors of channels at four places, those of a channel side by side."""
        lanes = vector(BYTE, self.vectors * self.columns)
        a, b, c, d = (load(builder, tap, lanes) for tap in taps)
        pairs = vector(HALF, lanes.count // 2)
        near, far = ([builder.bitcast(part, pairs) for part in zipped(builder, *two)] for two in ((a, b), (c, d)))
        found = [builder.bitcast(part, lanes) for two in zip(near, far, strict=True) for part in zipped(builder, *two)]
        whole = list(range(2 * lanes.count))
        return found if self.vectors == 4 else [shuffle(builder, found[n], found[n + 1], whole) for n in (0, 2)]

    def _load(self, builder: Builder, address: Value, j: int) -> Value:
        """One step of the vector's weights."""
        kind = vector(BYTE, 4 * self.columns)
        return self.weights(builder, load(builder, builder.add(address, LONG(4 * self.columns * j)), kind))

    def start(self, builder: Builder, panel: Value, j: int) -> Value:
        """What a vector of sums starts from."""
        return load(builder, builder.add(panel, LONG(4 * self.columns * j)), vector(WORD, self.columns))


@dataclass(frozen=True)
class Vnni(Tile):
    """x86's vpdpbusd: unsigned times signed bytes, so x is lifted by 128. `columns` are 16 (AVX-512) or 8 (AVX)."""

    offset: int = 128

    @property
    def sums(self) -> Any:
        return vector(WORD, self.columns)

    def patch(self, builder: Builder, word: Value) -> Value:
        return spread(builder, word, self.columns)

    def weights(self, builder: Builder, raw: Value) -> Value:
        return builder.bitcast(raw, self.sums)

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
