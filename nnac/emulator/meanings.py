"""Meanings: what each instruction does to the memories, as calls of the numba kernels.

Kernels have no bounds checks; only validated programs may come here (`nnac.validate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
from numpy.lib.stride_tricks import as_strided

from nnac import float32, isa
from nnac.emulator.memories import Memories, call_of, moved, raw
from nnac.isa import AnyInstruction, Space
from nnac.numerics import INTERPOLATION_ENTRIES, WIDE_BITS, Rounding
from nnac.program import Program
from nnac.types import Array

if TYPE_CHECKING:
    from nnac.kernels.calls import Call, Together
    from nnac.kernels.conv import Filters, Layer

FLOAT32 = 5
"""The rounding of kernels that have a form in `nnac.float32` (see `nnac.kernels.requantize`)."""
NARROW = 16
"""Channels whose bytes are too few to be read column by column."""

Calls = Iterator["Call | Together"]


class Meanings(Memories):
    """What instructions do to the memories."""

    def __init__(self, program: Program, threads: int = 1) -> None:
        super().__init__(program)
        self.threads, self.law = threads, program.target.arithmetic
        mode = self.law.mode
        self.mode, self.wide_mode = int(mode), int(Rounding.HALF_AWAY if mode == Rounding.TFLITE else mode)
        self.single_mode = FLOAT32 if mode == Rounding.ONNX else int(mode)
        """Of convolutions and averages of int8."""
        self.decoded: dict[tuple[object, ...], Array] = {}
        self._right: dict[tuple[int, int], Filters] = {}
        """Room of packed right matrices by columns and depth."""

    def calls(self, instruction: AnyInstruction) -> Calls:
        """Return the kernel calls that do what one instruction says."""
        match instruction:
            case isa.Load():
                return self._load(instruction)
            case isa.Copy():
                return self._copy(instruction)
            case isa.Fill():
                return self._fill(instruction)
            case isa.Conv():
                return self._conv(instruction)
            case isa.Pool():
                return self._pool(instruction)
            case isa.Sum():
                return self._sum(instruction)
            case isa.Mul():
                return self._mul(instruction)
            case isa.Magnitude():
                return self._magnitude(instruction)
            case isa.Lookup():
                return self._lookup(instruction)
            case isa.Softmax():
                return self._softmax(instruction)
            case isa.Lstm():
                return self._lstm(instruction)
            case isa.Gru():
                return self._gru(instruction)
            case isa.Host():
                return self._host(instruction)
            case isa.Div():
                return self._div(instruction)
            case isa.Extreme():
                return self._extreme(instruction)
            case isa.Select():
                return self._select(instruction)
            case isa.MatMul():
                return self._matmul(instruction)
            case isa.Norm():
                return self._norm(instruction)
            case _:
                assert_never(instruction)

    def _load(self, i: isa.Load) -> Calls:
        if not i.packer:
            source = self.signed[Space(i.space)][i.source : i.source + i.source_bytes]
        else:
            if i.content not in self.decoded:
                self.decoded[i.content] = self.expand(i)
            source = self.decoded[i.content]
        yield moved(source, self.signed[Space.WEIGHTS][i.target : i.target + i.target_bytes])

    def expand(self, i: isa.Load) -> Array:
        """Return the int8 values that a Load brings."""
        from nnac.weights.packers import unpack

        memory = self.memory[Space(i.space)]
        source = memory[i.source : i.source + i.source_bytes]
        if not i.packer:
            return source.view(np.int8)
        out = np.empty(i.target_bytes, np.int8)
        unpack(i.packer, memory[i.table : i.table + i.table_bytes].tobytes(), source, out)
        return out

    def _copy(self, i: isa.Copy) -> Calls:
        source, target = (
            self._behind(Space(space), address, i.width)
            for space, address in ((i.source_space, i.source), (i.target_space, i.target))
        )
        yield moved(as_strided(source, i.shape, i.source_strides), as_strided(target, i.shape, i.target_strides))

    def _fill(self, i: isa.Fill) -> Calls:
        value = np.array([i.value], f"<i{i.width}")
        target = self._behind(Space(i.space), i.target, i.width)[: i.count]
        yield moved(as_strided(value, (i.count,), (0,)), target)

    def _conv(self, i: isa.Conv) -> Calls:
        from nnac.kernels.conv import empty_filters

        layer, taps = self.layer(i), i.kernel_h * i.kernel_w * i.depth
        weights = self.signed[Space.WEIGHTS][i.weights : i.weights + i.out_c * taps].reshape(i.out_c, taps)
        filters = empty_filters(i.out_c, layer)
        yield from self.packing(i, weights, *self._params(i), filters)
        yield from self.product(i, i.out_c, filters)

    def _params(self, i: isa.Conv) -> tuple[Array, Array, Array]:
        """Return bias, multiplier and shift as they lie in the weight buffer."""
        shift = self.signed[Space.WEIGHTS][i.params + 8 * i.out_c : i.params + 9 * i.out_c]
        return self._words(i.params, i.out_c), self._words(i.params + 4 * i.out_c, i.out_c), shift

    def packing(
        self, i: isa.Conv, weights: Array, bias: Array, multiplier: Array, shift: Array, filters: Filters
    ) -> list[Call]:
        """Return the calls that pack the constants of a convolution."""
        from nnac.kernels import conv, wide

        constants = (weights, bias, multiplier, shift, filters, self.layer(i))
        return [conv.packing(*constants)] if i.in_bits == 8 else wide.packing(*constants)

    def layer(self, i: isa.Conv) -> Layer:
        """Return a convolution as its kernel sees it."""
        from nnac.kernels.conv import Layer

        i, wide = _along_a_row(i), i.in_bits == 16
        narrow_mode = self.single_mode if i.out_bits == 8 else self.mode
        return Layer(
            i.kernel_h,
            i.kernel_w,
            i.depth,
            i.in_c,
            *_window(i),
            i.channels // i.groups,
            i.channel,
            i.in_zero,
            i.out_zero,
            i.low,
            i.high,
            self.wide_mode if wide else narrow_mode,
            self.law.accumulator_bits + WIDE_BITS * wide,
            int(self.law.wraps),
        )

    def product(self, i: isa.Conv, channels: int, filters: Filters) -> list[Call | Together]:
        """Return the calls of a convolution with packed constants, for `channels` from its own first one on."""
        i, layer = _along_a_row(i), self.layer(i)
        if i.in_bits == 16:
            return self._wide_product(i, channels, filters, layer)
        return [self._product(self._tile(i.source, i.in_h, i.in_w, i.in_c), self._pixels(i, channels), filters, layer)]

    def _product(self, x: Array, y: Array, filters: Filters, layer: Layer) -> Call | Together:
        from nnac.kernels.calls import Together
        from nnac.kernels.products import product, split, workspace_bytes

        calls = []
        for n, part in enumerate(split(filters, y, layer, self.threads)):
            workspace = self._room(f"workspace{n}", (workspace_bytes(part.layer, part.y.shape),), np.int8)
            calls.append(product(x, part.filters, part.y, workspace, part.layer))
        return calls[0] if len(calls) == 1 else Together(tuple(calls))

    def _wide_product(self, i: isa.Conv, channels: int, filters: Filters, layer: Layer) -> list[Call | Together]:
        """Return the calls of a convolution of int16: its bytes apart, as two of int8, and both sums together."""
        from nnac.kernels.panels import SLACK
        from nnac.kernels.wide import join, planed, split, sums_room

        shape, count = (i.in_h, i.in_w, i.in_c), i.in_h * i.in_w * i.in_c
        planes = [self._room(f"plane{n}", (count + SLACK,), np.int8)[:count] for n in range(2)]
        room = sums_room((i.out_h, i.out_w, channels))
        sums = [self._room(f"sums{n}", room, np.int32)[:, :, :channels] for n in range(2)]
        calls: list[Call | Together] = [call_of(split, self._tile(i.source, count, bits=16), *planes)]
        for plane, made, part in zip(planes, sums, planed(layer), strict=True):
            calls.append(self._product(plane.reshape(shape), made, filters, part))
        y, narrow = self._result(self._pixels(i, channels), True)
        scale = (filters.offsets, filters.multipliers, filters.shifts)
        return [*calls, call_of(join, *sums, *scale, y, layer[-6:]), *narrow]

    def _pixels(self, i: isa.Conv, channels: int) -> Array:
        """Return the outputs of a convolution, a view."""
        width = i.out_bits // 8
        strides = (i.out_w * i.pitch * width, i.pitch * width, width)
        return as_strided(self._behind(Space.SRAM, i.target, width), (i.out_h, i.out_w, channels), strides)

    def _pool(self, i: isa.Pool) -> Calls:
        from nnac.kernels.pool import LONG, average_pool, average_reals, long_average_pool, max_pool
        from nnac.kernels.vectors import WINDOW

        wide, long = max(i.in_bits, i.out_bits) == 16, i.kernel_h * i.kernel_w > LONG
        if wide:
            from nnac.kernels.wide import average_pool, max_pool

        x, widen = self._operand(self._tile(i.source, i.in_h, i.in_w, i.channels, bits=i.in_bits), "operand", wide)
        y, narrow = self._result(self._tile(i.target, i.out_h, i.out_w, i.channels, bits=i.out_bits), wide)
        yield from widen
        if i.kind == 0:
            yield call_of(max_pool, x, y, i.kernel_h, i.kernel_w, *_window(i), i.low, i.high)
        else:
            stride_h, stride_w, _, _, *pads = _window(i)
            window = (i.kernel_h, i.kernel_w, stride_h, stride_w, *pads, i.padded_h, i.padded_w, i.count_pads)
            if i.over and not wide:
                law = (i.multiplier, i.over, float32.lift_of(i.shift), i.out_zero, i.low, i.high)
                yield call_of(average_reals, x, y, window, i.in_zero, *law)
            else:
                mode = self.mode if wide else self.single_mode
                scale = (i.multiplier, i.shift, i.out_zero, i.low, i.high, mode)
                kernel = long_average_pool if long and not wide else average_pool
                total = self._room("sums", (i.channels + WINDOW,), np.int64 if long or wide else np.int32)
                yield call_of(kernel, x, y, total, window, i.in_zero, scale)
        yield from narrow

    def _nested(self, i: isa.Elementwise, index: int) -> Array:
        """Return an operand of a loop nest."""
        memory = self._behind(Space.SRAM, i.sources[index], i.bits[index] // 8)
        return as_strided(memory, i.shape, i.operand_strides(index))

    def _operands(self, i: isa.Elementwise, wide: bool) -> tuple[list[Array], list[Call]]:
        """Return all operands of a loop nest as the kernels of one width take them, and the calls that make them so."""
        found = [self._operand(self._nested(i, n), f"operand{n}", wide) for n in range(len(i.sources))]
        return [x for x, _ in found], [call for _, calls in found for call in calls]

    def _ending(self, i: isa.Elementwise) -> tuple[int, ...]:
        """Return how results of a loop nest end (`nnac.kernels.requantize.Ending`)."""
        return i.shift, i.out_zero, i.low, i.high, self.mode

    def _sum(self, i: isa.Sum) -> Calls:
        wide = max(*i.bits, i.out_bits) == 16
        if self.law.mode == Rounding.ONNX and not wide:
            return self._add_float32(i)
        return self._add(i) if len(i.sources) == 2 and not wide else self._add_any(i, wide)

    def _add_any(self, i: isa.Sum, wide: bool) -> Calls:
        if wide:
            from nnac.kernels.wide import accumulate, requantize_wide
        else:
            from nnac.kernels.elementwise import accumulate, requantize_wide

        laws = [(zero, i.multipliers[n], int(n > 0)) for n, zero in enumerate(i.zeros)]
        return self._one_by_one(i, wide, accumulate, laws, (requantize_wide, self._ending(i)))

    def _one_by_one(
        self,
        i: isa.Elementwise,
        wide: bool,
        take: Any,
        laws: Sequence[tuple[int, ...]],
        end: tuple[Any, tuple[int, ...]],
    ) -> Calls:
        """Yield the calls that take one operand after the other into wide values, each by its law, and end those."""
        values, (kernel, ending) = self._room("sums", i.shape, np.int64), end
        for n, law in enumerate(laws):
            x, widen = self._operand(self._nested(i, n), "operand", wide)
            yield from (*widen, call_of(take, values, x, *law))
        y, narrow = self._result(self._tile(i.target, *i.shape, bits=i.out_bits), wide)
        yield from (call_of(kernel, values, y, ending), *narrow)

    def _add_float32(self, i: isa.Sum) -> Calls:
        from nnac.kernels.single import fuse_product, round_sum, start

        total, lift = self._room("sums", i.shape, np.float32), float32.lift_of(i.shift)
        first = np.array(float32.sum_start(i.zeros, i.multipliers, i.out_zero, lift), np.float32)
        yield call_of(start, total, int(first.view(np.int32)))
        for n in reversed(range(len(i.sources))):
            yield call_of(fuse_product, total, self._nested(i, n), i.multipliers[n], lift)
        yield call_of(round_sum, total, self._tile(i.target, *i.shape), i.low, i.high, lift)

    def _add(self, i: isa.Sum) -> Calls:
        from nnac.kernels.elementwise import add2

        (a, b), y = (self._nested(i, n) for n in range(2)), self._tile(i.target, *i.shape)
        first, second = zip(i.zeros, i.multipliers, strict=True)
        yield call_of(add2, a, *first, b, *second, y, self._ending(i))

    def _mul(self, i: isa.Mul) -> Calls:
        from nnac.kernels import elementwise, wide

        if max(*i.bits, i.out_bits) == 16:
            return self._pair(i, wide.multiply)
        if self.law.mode == Rounding.ONNX:
            return iter([self._multiply_float32(i)])
        return self._pair(i, elementwise.multiply)

    def _multiply_float32(self, i: isa.Mul) -> Call:
        from nnac.kernels.single import multiply

        a, b = (self._nested(i, n) for n in range(2))
        scale = (i.multiplier, i.out_zero, i.low, i.high, float32.lift_of(i.shift))
        return call_of(multiply, a, i.zeros[0], b, i.zeros[1], self._tile(i.target, *i.shape), *scale)

    def _div(self, i: isa.Div) -> Calls:
        from nnac.kernels import pairs, wide

        return self._pair(i, wide.divide if max(*i.bits, i.out_bits) == 16 else pairs.divide)

    def _pair(self, i: isa.Mul | isa.Div, kernel: Any) -> Calls:
        wide = max(*i.bits, i.out_bits) == 16
        (a, b), widen = self._operands(i, wide)
        y, narrow = self._result(self._tile(i.target, *i.shape, bits=i.out_bits), wide)
        yield from widen
        yield call_of(kernel, a, i.zeros[0], b, i.zeros[1], y, (i.multiplier, *self._ending(i)))
        yield from narrow

    def _extreme(self, i: isa.Extreme) -> Calls:
        wide = max(*i.bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import extreme, requantize_wide
        else:
            from nnac.kernels.elementwise import requantize_wide
            from nnac.kernels.pairs import extreme

        laws = [(zero, i.multipliers[n], i.least, int(n > 0)) for n, zero in enumerate(i.zeros)]
        return self._one_by_one(i, wide, extreme, laws, (requantize_wide, self._ending(i)))

    def _select(self, i: isa.Select) -> Calls:
        wide = max(*i.bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import choose
        else:
            from nnac.kernels.pairs import choose

        operands, widen = self._operands(i, wide)
        y, narrow = self._result(self._tile(i.target, *i.shape, bits=i.out_bits), wide)
        yield from widen
        scales = (np.array(i.zeros, np.int64), np.array(i.multipliers, np.int64))
        yield call_of(choose, *operands, *scales, y, i.relation, self._ending(i))
        yield from narrow

    def _matmul(self, i: isa.MatMul) -> Calls:
        scale = (i.multiplier, i.shift, i.out_zero, i.low, i.high, self.wide_mode if i.wide else self.mode)
        law = (*scale, self.law.accumulator_bits + i.wide * WIDE_BITS, int(self.law.wraps))
        if i.right_bits == 8:
            return self._planed_matmul(i, law) if i.wide else self._narrow_matmul(i, law)
        return self._wide_matmul(i, law)

    def _packed_right(self, i: isa.MatMul) -> tuple[Call, Filters, Layer]:
        """Return the call that packs a right matrix of int8 as weights are, and what it makes."""
        from nnac.kernels.conv import empty_filters
        from nnac.kernels.matmul import layer_of, packing

        layer, sides = layer_of(i.depth, i.columns, i.in_zero), (i.columns, i.depth)
        if sides not in self._right:
            self._right[sides] = empty_filters(i.columns, layer)
        right = self._tile(i.right, *(sides if i.turned else sides[::-1]))
        return packing(right, i.turned, self._right[sides], layer), self._right[sides], layer

    def _narrow_matmul(self, i: isa.MatMul, law: tuple[int, ...]) -> Calls:
        """A product of int8."""
        from nnac.kernels.matmul import ending
        from nnac.kernels.wide import sums_room

        pack, filters, layer = self._packed_right(i)
        x = self._tile(i.source, i.rows, i.depth)
        sums = self._room("sums", sums_room((i.rows, 1, i.columns)), np.int32)[:, :, : i.columns]
        y = self._tile(i.target, i.rows, i.columns, bits=i.out_bits)
        yield pack
        yield self._product(x[:, None], sums, filters, layer)
        yield ending(x, i.in_zero, i.right_zero, sums[:, 0], y, filters, *law)

    def _planed_matmul(self, i: isa.MatMul, law: tuple[int, ...]) -> Calls:
        """A product of int16 and int8: the bytes of the left one apart; a row of ones sums up the columns."""
        from nnac.kernels.matmul import end_planes
        from nnac.kernels.panels import SLACK
        from nnac.kernels.wide import split, sums_room

        (pack, filters, layer), count = self._packed_right(i), i.rows * i.depth
        x, more = self._tile(i.source, i.rows, i.depth, bits=16), (0, i.depth)
        planes = [self._room(f"plane{n}", (count + more[n] + SLACK,), np.int8) for n in range(2)]
        yield pack
        yield call_of(split, x.reshape(-1), planes[0][:count], planes[1][:count])
        yield moved(np.ones(i.depth, np.int8), planes[1][count : count + i.depth])
        made = []
        for n, plane in enumerate(planes):
            sums = self._room(f"sums{n}", sums_room((i.rows + n, 1, i.columns)), np.int32)[:, :, : i.columns]
            yield self._product(plane[: count + more[n]].reshape(-1, 1, i.depth), sums, filters, layer)
            made.append(sums[:, 0])
        y, narrow = self._result(self._tile(i.target, i.rows, i.columns, bits=i.out_bits), True)
        yield call_of(end_planes, x, i.right_zero, *made, y, *law)
        yield from narrow

    def _wide_matmul(self, i: isa.MatMul, law: tuple[int, ...]) -> Calls:
        """A product whose right matrix is of int16."""
        from nnac.kernels.matmul import matmul

        right = self._tile(i.right, i.depth, i.columns, bits=16)
        move: tuple[Call, ...] = ()
        if i.turned:
            right = self._room("turned", (i.depth, i.columns), np.int16)
            move = (moved(self._tile(i.right, i.columns, i.depth, bits=16).T, right),)
        x, widen = self._operand(self._tile(i.source, i.rows, i.depth, bits=i.in_bits), "operand", True)
        y, narrow = self._result(self._tile(i.target, i.rows, i.columns, bits=i.out_bits), True)
        acc = self._room("sums", (i.columns,), np.int64)
        yield from (*move, *widen)
        yield call_of(matmul, x, i.in_zero, right, i.right_zero, acc, y, *law)
        yield from narrow

    def _norm(self, i: isa.Norm) -> Calls:
        from nnac.kernels.norm import columns, normalize, wide_normalize

        wide, shape = max(i.in_bits, i.out_bits) == 16, (i.rows, i.positions, i.groups, i.depth)
        x, widen = self._operand(self._tile(i.source, *shape, bits=i.in_bits), "operand", wide)
        y, narrow = self._result(self._tile(i.target, *shape, bits=i.out_bits), wide)
        params = (self._words(i.params, i.channels), self._words(i.params + 4 * i.channels, i.channels))
        start = (i.in_zero, i.centered, i.epsilon << i.epsilon_shift, i.gain_shift, i.offset_shift)
        work = self._room("sums", (3, columns(i.groups, i.depth)), np.int64)
        yield from widen
        limits = (i.out_zero, i.low, i.high, self.mode, i.channels)
        yield call_of(wide_normalize if wide else normalize, x, *params, y, work, *start, *limits)
        yield from narrow

    def _magnitude(self, i: isa.Magnitude) -> Calls:
        wide = max(*i.bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import accumulate_squares, root
        else:
            from nnac.kernels.elementwise import accumulate_squares, root

        laws = [(zero, int(n > 0), 0 if n else i.offset) for n, zero in enumerate(i.zeros)]
        return self._one_by_one(i, wide, accumulate_squares, laws, (root, (i.multiplier, *self._ending(i))))

    def _host(self, i: isa.Host) -> Calls:
        from nnac.segment import execute

        taken, made = i.quants()
        operands = [
            self.memory[r.space][r.start : r.end].view(quant.dtype) for r, quant in zip(i.reads(), taken, strict=True)
        ]

        def segment() -> None:
            results = execute(self.program.segments[i.model], operands, taken, made)
            for r, result in zip(i.writes(), results, strict=True):
                self.memory[r.space][r.start : r.end] = raw(result)

        yield call_of(segment)

    def _lookup(self, i: isa.Lookup) -> Calls:
        shape = (i.count // i.tables, i.tables)
        x = self._tile(i.source, *shape, bits=i.in_bits)
        target = self._tile(i.target, *shape, bits=i.out_bits)
        entries = self._behind(Space.WEIGHTS, i.table, i.entry_bits // 8)
        tables = entries[: i.tables * i.entries].reshape(i.tables, i.entries)
        if i.in_bits == 8:
            from nnac.kernels import move, wide

            yield call_of(move.look_up if i.out_bits == 8 else wide.look_up, x, tables, target)
            return
        from nnac.kernels.wide import interpolate, interpolate_octaves

        half = 1 << i.out_bits - 1
        y, narrow = self._result(target, True)
        kernel = interpolate_octaves if i.octaves else interpolate
        yield call_of(kernel, x, tables, y, (i.shift, i.out_zero, -half, half - 1, self.mode))
        yield from narrow

    def _softmax(self, i: isa.Softmax) -> Calls:
        wide = max(i.in_bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import softmax
        else:
            from nnac.kernels.softmax import softmax

        half = 1 << i.out_bits - 1
        x, widen = self._operand(self._tile(i.source, i.rows, i.length, bits=i.in_bits), "operand", wide)
        y, narrow = self._result(self._tile(i.target, i.rows, i.length, bits=i.out_bits), wide)
        scale = (i.multiplier, i.shift, i.out_zero, -half, half - 1, self.mode)
        yield from widen
        yield call_of(softmax, x, self._words(i.table, i.entries), y, scale)
        yield from narrow

    def _shorts(self, space: Space, address: int, rows: int, columns: int) -> Array:
        return self.memory[space][address : address + 2 * rows * columns].view(np.int16).reshape(rows, columns)

    def _lstm(self, i: isa.Lstm) -> Calls:
        from nnac.kernels.cells import lstm_cell

        behind = i.tables + 6 * INTERPOLATION_ENTRIES
        peepholes = self._shorts(Space.WEIGHTS, behind, 3, i.hidden) if i.peepholes else np.zeros((3, 0), np.int16)
        hidden, narrow = self._result(self._tile(i.target, i.batch, i.hidden, bits=i.out_bits), True)
        operands = (
            self._shorts(Space.SRAM, i.gates, i.batch, 4 * i.hidden),
            self._shorts(Space.SRAM, i.recurrent, i.batch, 4 * i.hidden),
            self._shorts(Space.SRAM, i.cell, i.batch, i.hidden),
            self._shorts(Space.WEIGHTS, i.tables, 3, INTERPOLATION_ENTRIES),
            peepholes,
        )
        new = self._shorts(Space.SRAM, i.cell_out, i.batch, i.hidden)
        law = (i.cell_bits, i.coupled, i.peephole_shift, *self._cell_law(i))
        yield call_of(lstm_cell, *operands, new, hidden, self._room("cell", (4, i.hidden), np.int32), *law)
        yield from narrow

    def _gru(self, i: isa.Gru) -> Calls:
        from nnac.kernels.cells import gru_cell, gru_reset

        hidden, narrow = self._result(self._tile(i.target, i.batch, i.hidden, bits=i.out_bits), True)
        operands = (
            self._shorts(Space.SRAM, i.gates, i.batch, 3 * i.hidden),
            self._shorts(Space.SRAM, i.recurrent, i.batch, 3 * i.hidden),
            self._shorts(Space.SRAM, i.state, i.batch, i.hidden),
            self._shorts(Space.WEIGHTS, i.tables, 2, INTERPOLATION_ENTRIES),
        )
        if i.phase == isa.RESET:
            yield call_of(gru_reset, *operands, hidden, *self._cell_law(i))
        else:
            new = self._shorts(Space.SRAM, i.state_out, i.batch, i.hidden)
            yield call_of(gru_cell, *operands, new, hidden, int(i.phase == isa.WHOLE), *self._cell_law(i))
        yield from narrow

    def _cell_law(self, i: isa.Cell) -> tuple[int, tuple[int, ...]]:
        """Return how gates are clipped and hidden values made: the last arguments of every cell kernel."""
        half = 1 << (i.out_bits - 1)
        return i.clip, (i.multiplier, i.shift, i.out_zero, -half, half - 1, self.mode)


def _along_a_row(i: isa.Conv) -> isa.Conv:
    """Return a convolution along one column of few channels as one along a row, where its taps lie side by side."""
    if i.kernel_h == 1 or i.in_w * i.out_w * i.kernel_w > 1 or i.pad_left or i.in_c >= NARROW:
        return i
    turned: dict[str, Any] = {
        f"{name}_{here}": getattr(i, f"{name}_{there}")
        for name in ("in", "out", "kernel", "stride", "dilation")
        for here, there in ("hw", "wh")
    }
    return replace(i, **turned, pad_top=0, pad_left=i.pad_top)


def _window(i: isa.Conv | isa.Pool) -> tuple[int, int, int, int, int, int]:
    """Return stride, dilation and padding before, each down, then right."""
    return i.stride_h, i.stride_w, i.dilation_h, i.dilation_w, i.pad_top, i.pad_left
