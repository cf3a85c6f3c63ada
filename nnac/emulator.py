"""The emulator: executes a program's instructions on one byte array per memory, with the numba kernels.

It knows addresses and nothing of the graph: a planner's mistake shows as a wrong bit. Kernels have no bounds checks;
only validated programs may come here (`nnac.validate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, assert_never

import numpy as np
from numpy.lib.stride_tricks import as_strided

from nnac import float32, isa
from nnac.contracts import PRODUCT_MAX
from nnac.isa import AnyInstruction, Space
from nnac.numerics import INTERPOLATION_ENTRIES, WIDE_BITS, Rounding
from nnac.program import Piece, Program, Tensor
from nnac.stretches import Plan, plan
from nnac.types import DTYPES, Array

FLOAT32 = 5
"""The rounding of kernels that have a form in `nnac.float32` (see `nnac.kernels.requantize`)."""
POISON = 0xA5
"""Every memory starts full of this byte, so that reading what nobody wrote gives noise, not zeros."""

Watch = Callable[[int], None]


class Emulator:
    """A machine with a program in it. Not thread-safe; one per thread."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.law = program.target.arithmetic
        self.memory = {space: np.full(size, POISON, np.uint8) for space, size in program.used.items()}
        self.signed = {space: array.view(np.int8) for space, array in self.memory.items()}
        mode = self.law.mode
        self.mode, self.wide_mode = int(mode), int(Rounding.HALF_AWAY if mode == Rounding.TFLITE else mode)
        self.single_mode = FLOAT32 if mode == Rounding.ONNX else int(mode)
        """Of convolutions and averages of int8."""
        self.decoded: dict[tuple[int, ...], Array] = {}
        self.plan: Plan | None = None
        """The program, stretch by stretch; made by the first run that nobody watches."""
        self.memory[program.constants_space][: program.constants.size] = program.constants

    def run(
        self,
        inputs: Mapping[str, Array],
        before: Watch | None = None,
        after: Watch | None = None,
        order: Sequence[int] | None = None,
    ) -> dict[str, Array]:
        """Execute the program once.

        Args:
            inputs: integer arrays in device layout, one per program input.
            before, after: called with the index of each instruction around its execution; `before` first with -1, when
                the inputs are in place.
            order: all instructions in an order that the tokens allow (`nnac.orders`); program order by default.

        Returns:
            integer arrays in device layout, one per program output.
        """
        for name, array in inputs.items():
            self.write(self.program.tensor(name), array)
        if before is None and after is None and order is None:
            self._run_in_stretches()
            return self._outputs()
        if before is not None:
            before(-1)
        instructions = self.program.instructions
        for index in range(len(instructions)) if order is None else order:
            if before is not None:
                before(index)
            self.execute(instructions[index])
            if after is not None:
                after(index)
        return self._outputs()

    def _outputs(self) -> dict[str, Array]:
        return {name: self.read(self.program.tensor(name)) for name in self.program.outputs}

    def _run_in_stretches(self) -> None:
        """Execute the program in program order."""
        from nnac.kernels.stretch import run_stretch

        if self.plan is None:
            self.plan = plan(self.program, self._decode)
        steps, decoded = self.plan
        law = self.law.accumulator_bits, int(self.law.wraps), self.mode
        for step in steps:
            if isinstance(step, np.ndarray):
                spaces = self.program.constants_space, Space.WEIGHTS, Space.SRAM
                constants, buffer, sram = (self.signed[space] for space in spaces)
                run_stretch(step, constants, decoded, buffer, sram, *law)
            else:
                self.execute(step)

    def trace(self, inputs: Mapping[str, Array], truth: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Return every tensor of the program as its instructions made it.

        Args:
            inputs: as for `run`.
            truth: by tensor name, in device layout; once such a tensor (or a piece of it) has been made and seen, it is
                overwritten with this, so that what comes after starts from the truth.
        """
        done: dict[int, list[tuple[Tensor, Piece]]] = {}
        for tensor in self.program.tensors:
            for piece in tensor.pieces or (Piece(tensor.ready, tensor.address, 0, tensor.type.nbytes),):
                done.setdefault(piece.ready, []).append((tensor, piece))
        seen = {t.name: np.empty(t.type.nbytes, np.uint8) for t in self.program.tensors}
        known = {name: _raw(array) for name, array in (truth or {}).items()}

        def look(index: int) -> None:
            for tensor, piece in done.get(index, ()):
                here = self.memory[tensor.space][piece.address : piece.address + piece.nbytes]
                there = slice(piece.offset, piece.offset + piece.nbytes)
                seen[tensor.name][there] = here
                if tensor.name in known:
                    here[:] = known[tensor.name][there]

        self.run(inputs, lambda index: look(index) if index < 0 else None, look)
        return {t.name: seen[t.name].view(DTYPES[t.type.dtype]).reshape(t.type.shape) for t in self.program.tensors}

    def read(self, tensor: Tensor) -> Array:
        """Return a copy of a tensor from its home."""
        raw = self.memory[tensor.space][tensor.address : tensor.address + tensor.type.nbytes]
        return raw.view(DTYPES[tensor.type.dtype]).reshape(tensor.type.shape).copy()

    def clear_states(self) -> None:
        """Set all states to real zero."""
        for tensor in (self.program.tensor(source) for source, _ in self.program.states):
            quant = tensor.type.quant
            assert quant is not None
            self.write(tensor, np.full(tensor.type.shape, quant.zero_point, tensor.type.dtype))

    def write(self, tensor: Tensor, array: Array) -> None:
        """Put a tensor into its home."""
        raw = _raw(array)
        self.memory[tensor.space][tensor.address : tensor.address + raw.size] = raw

    # -- meanings --------------------------------------------------------------------------------------------------

    def execute(self, instruction: AnyInstruction) -> None:
        """Do what one instruction says."""
        match instruction:
            case isa.Load():
                self._load(instruction)
            case isa.Copy():
                self._copy(instruction)
            case isa.Fill():
                target = self._behind(Space(instruction.space), instruction.target, instruction.width)
                target[: instruction.count] = instruction.value
            case isa.Conv():
                self._conv(instruction)
            case isa.Pool():
                self._pool(instruction)
            case isa.Sum():
                self._sum(instruction)
            case isa.Mul():
                self._mul(instruction)
            case isa.Magnitude():
                self._magnitude(instruction)
            case isa.Lookup():
                self._lookup(instruction)
            case isa.Softmax():
                self._softmax(instruction)
            case isa.Lstm():
                self._lstm(instruction)
            case isa.Gru():
                self._gru(instruction)
            case isa.Host():
                self._host(instruction)
            case isa.Div():
                self._div(instruction)
            case isa.Extreme():
                self._extreme(instruction)
            case isa.Select():
                self._select(instruction)
            case isa.MatMul():
                self._matmul(instruction)
            case isa.Norm():
                self._norm(instruction)
            case _:
                assert_never(instruction)

    def _load(self, i: isa.Load) -> None:
        source = self.signed[Space(i.space)][i.source : i.source + i.source_bytes]
        if i.packer:
            key = (i.packer, i.table, i.source, i.target_bytes)
            if key not in self.decoded:
                self.decoded[key] = self._decode(i)
            source = self.decoded[key]
        self.signed[Space.WEIGHTS][i.target : i.target + i.target_bytes] = source

    def _decode(self, i: isa.Load) -> Array:
        """Return the weights of a packed load, int8."""
        from nnac.packers import unpack

        memory, out = self.memory[Space(i.space)], np.empty(i.target_bytes, np.int8)
        source = memory[i.source : i.source + i.source_bytes]
        unpack(i.packer, memory[i.table : i.table + i.table_bytes].tobytes(), source, out)
        return out

    def _copy(self, i: isa.Copy) -> None:
        source, target = (
            self._behind(Space(space), address, i.width)
            for space, address in ((i.source_space, i.source), (i.target_space, i.target))
        )
        as_strided(target, i.shape, i.target_strides)[...] = as_strided(source, i.shape, i.source_strides)

    def _behind(self, space: Space, address: int, width: int) -> Array:
        """Return what lies behind an address as signed elements of `width` bytes, a view."""
        if width == 1:
            return self.signed[space][address:]
        rest = self.memory[space][address:]
        return rest[: rest.size // width * width].view(f"<i{width}")

    def _tile(self, address: int, *shape: int, bits: int = 8) -> Array:
        return self._behind(Space.SRAM, address, bits // 8)[: isa.volume(shape)].reshape(shape)

    def _words(self, address: int, count: int) -> Array:
        return self.memory[Space.WEIGHTS][address : address + 4 * count].view(np.int32)

    def _conv(self, i: isa.Conv) -> None:
        conv2d: Any
        wide = max(i.in_bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import conv2d
        else:
            from nnac.kernels.conv import conv2d

        taps, buffer = i.kernel_h * i.kernel_w * i.depth, self.signed[Space.WEIGHTS]
        weights = buffer[i.weights : i.weights + i.out_c * taps].reshape(i.out_c, i.kernel_h, i.kernel_w, i.depth)
        shift = buffer[i.params + 8 * i.out_c : i.params + 9 * i.out_c]
        width, sums = i.out_bits // 8, i.in_bits == 16
        target = as_strided(
            self._behind(Space.SRAM, i.target, width),
            (i.out_h, i.out_w, i.out_c),
            (i.out_w * i.pitch * width, i.pitch * width, width),
        )
        with _result(target, wide) as y:
            conv2d(
                _operand(self._tile(i.source, i.in_h, i.in_w, i.in_c, bits=i.in_bits), wide),
                weights,
                self._words(i.params, i.out_c),
                self._words(i.params + 4 * i.out_c, i.out_c),
                shift,
                y,
                i.stride_h,
                i.stride_w,
                i.dilation_h,
                i.dilation_w,
                i.pad_top,
                i.pad_left,
                i.channels // i.groups,
                i.channel,
                i.in_zero,
                i.out_zero,
                i.low,
                i.high,
                self.wide_mode if sums else self.mode if wide else self.single_mode,
                self.law.accumulator_bits + sums * WIDE_BITS,
                int(self.law.wraps),
            )

    def _pool(self, i: isa.Pool) -> None:
        wide = max(i.in_bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import average_pool, max_pool
        else:
            from nnac.kernels.pool import average_pool, max_pool

        x = _operand(self._tile(i.source, i.in_h, i.in_w, i.channels, bits=i.in_bits), wide)
        with _result(self._tile(i.target, i.out_h, i.out_w, i.channels, bits=i.out_bits), wide) as y:
            if i.kind == 0:
                max_pool(
                    x,
                    y,
                    i.kernel_h,
                    i.kernel_w,
                    i.stride_h,
                    i.stride_w,
                    i.dilation_h,
                    i.dilation_w,
                    i.pad_top,
                    i.pad_left,
                    i.low,
                    i.high,
                )
                return
            average_pool(
                x,
                y,
                i.kernel_h,
                i.kernel_w,
                i.stride_h,
                i.stride_w,
                i.pad_top,
                i.pad_left,
                i.padded_h,
                i.padded_w,
                i.count_pads,
                i.in_zero,
                i.multiplier,
                i.shift,
                i.out_zero,
                i.low,
                i.high,
                self.mode if wide else self.single_mode,
            )

    def _nested(self, i: isa.Elementwise, index: int, wide: bool) -> Array:
        """Return an operand of a loop nest."""
        memory = self._behind(Space.SRAM, i.sources[index], i.bits[index] // 8)
        return _operand(as_strided(memory, i.shape, i.operand_strides(index), writeable=False), wide)

    def _sum(self, i: isa.Sum) -> None:
        wide = max(*i.bits, i.out_bits) == 16
        target = self._tile(i.target, *i.shape, bits=i.out_bits)
        if self.law.mode == Rounding.ONNX and not wide:
            self._add_float32(i, target)
            return
        if len(i.sources) == 2 and not wide:
            self._add(i, target)
            return
        if wide:
            from nnac.kernels.wide import accumulate, requantize_wide
        else:
            from nnac.kernels.elementwise import accumulate, requantize_wide

        acc = np.zeros(i.shape, np.int64)
        for n, zero in enumerate(i.zeros):
            accumulate(acc, self._nested(i, n, wide), zero, i.multipliers[n])
        with _result(target, wide) as y:
            requantize_wide(acc, y, i.shift, i.out_zero, i.low, i.high, self.mode)

    def _add_float32(self, i: isa.Sum, y: Array) -> None:
        from nnac.kernels.single import fuse_product, round_sum

        total = np.full(i.shape, float32.sum_start(i.zeros, i.multipliers, i.out_zero), np.float32)
        for n in reversed(range(len(i.sources))):
            fuse_product(total, self._nested(i, n, False), i.multipliers[n])
        round_sum(total, y, i.low, i.high)

    def _add(self, i: isa.Sum, y: Array) -> None:
        from nnac.kernels.elementwise import add2

        add2(
            self._nested(i, 0, False),
            i.zeros[0],
            i.multipliers[0],
            self._nested(i, 1, False),
            i.zeros[1],
            i.multipliers[1],
            y,
            i.shift,
            i.out_zero,
            i.low,
            i.high,
            self.mode,
        )

    def _mul(self, i: isa.Mul) -> None:
        wide = max(*i.bits, i.out_bits) == 16
        if self.law.mode == Rounding.ONNX and not wide:
            self._multiply_float32(i)
            return
        if wide:
            from nnac.kernels.wide import multiply
        else:
            from nnac.kernels.elementwise import multiply

        with _result(self._tile(i.target, *i.shape, bits=i.out_bits), wide) as y:
            multiply(
                self._nested(i, 0, wide),
                i.zeros[0],
                self._nested(i, 1, wide),
                i.zeros[1],
                y,
                i.multiplier,
                i.shift,
                i.out_zero,
                i.low,
                i.high,
                self.mode,
            )

    def _div(self, i: isa.Div) -> None:
        wide = max(*i.bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import divide
        else:
            from nnac.kernels.pairs import divide

        with _result(self._tile(i.target, *i.shape, bits=i.out_bits), wide) as y:
            divide(
                self._nested(i, 0, wide),
                i.zeros[0],
                self._nested(i, 1, wide),
                i.zeros[1],
                y,
                i.multiplier,
                i.shift,
                i.out_zero,
                i.low,
                i.high,
                self.mode,
            )

    def _extreme(self, i: isa.Extreme) -> None:
        wide = max(*i.bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import extreme, requantize_wide
        else:
            from nnac.kernels.elementwise import requantize_wide
            from nnac.kernels.pairs import extreme

        found = np.full(i.shape, PRODUCT_MAX if i.least else -PRODUCT_MAX, np.int64)
        for n, zero in enumerate(i.zeros):
            extreme(found, self._nested(i, n, wide), zero, i.multipliers[n], i.least)
        with _result(self._tile(i.target, *i.shape, bits=i.out_bits), wide) as y:
            requantize_wide(found, y, i.shift, i.out_zero, i.low, i.high, self.mode)

    def _select(self, i: isa.Select) -> None:
        wide = max(*i.bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import choose
        else:
            from nnac.kernels.pairs import choose

        zeros, multipliers = np.array(i.zeros, np.int64), np.array(i.multipliers, np.int64)
        operands = [self._nested(i, n, wide) for n in range(4)]
        with _result(self._tile(i.target, *i.shape, bits=i.out_bits), wide) as y:
            choose(*operands, zeros, multipliers, y, i.relation, i.shift, i.out_zero, i.low, i.high, self.mode)

    def _matmul(self, i: isa.MatMul) -> None:
        from nnac.kernels.matmul import matmul, wide_matmul

        wide = max(i.in_bits, i.right_bits, i.out_bits) == 16
        sides = (i.columns, i.depth) if i.turned else (i.depth, i.columns)
        right = self._tile(i.right, *sides, bits=i.right_bits)
        with _result(self._tile(i.target, i.rows, i.columns, bits=i.out_bits), wide) as y:
            (wide_matmul if wide else matmul)(
                _operand(self._tile(i.source, i.rows, i.depth, bits=i.in_bits), wide),
                i.in_zero,
                _operand(np.ascontiguousarray(right.T if i.turned else right), wide),
                i.right_zero,
                np.empty(i.columns, np.int64 if wide else np.int32),
                y,
                i.multiplier,
                i.shift,
                i.out_zero,
                i.low,
                i.high,
                self.wide_mode if i.wide else self.mode,
                self.law.accumulator_bits + i.wide * WIDE_BITS,
                int(self.law.wraps),
            )

    def _norm(self, i: isa.Norm) -> None:
        from nnac.kernels.norm import normalize, wide_normalize

        wide, shape = max(i.in_bits, i.out_bits) == 16, (i.rows, i.positions, i.groups, i.depth)
        with _result(self._tile(i.target, *shape, bits=i.out_bits), wide) as y:
            (wide_normalize if wide else normalize)(
                _operand(self._tile(i.source, *shape, bits=i.in_bits), wide),
                self._words(i.params, i.channels),
                self._words(i.params + 4 * i.channels, i.channels),
                y,
                i.in_zero,
                i.centered,
                i.epsilon << i.epsilon_shift,
                i.gain_shift,
                i.offset_shift,
                i.out_zero,
                i.low,
                i.high,
                self.mode,
                i.channels,
            )

    def _multiply_float32(self, i: isa.Mul) -> None:
        from nnac.kernels.single import multiply

        multiply(
            self._nested(i, 0, False),
            i.zeros[0],
            self._nested(i, 1, False),
            i.zeros[1],
            self._tile(i.target, *i.shape, bits=i.out_bits),
            i.multiplier,
            i.out_zero,
            i.low,
            i.high,
        )

    def _magnitude(self, i: isa.Magnitude) -> None:
        wide = max(*i.bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import accumulate_squares, root
        else:
            from nnac.kernels.elementwise import accumulate_squares, root

        acc = np.full(i.shape, i.offset, np.int64)
        for n, zero in enumerate(i.zeros):
            accumulate_squares(acc, self._nested(i, n, wide), zero)
        with _result(self._tile(i.target, *i.shape, bits=i.out_bits), wide) as y:
            root(acc, y, i.multiplier, i.shift, i.out_zero, i.low, i.high, self.mode)

    def _lookup(self, i: isa.Lookup) -> None:
        shape = (i.count // i.tables, i.tables)
        x = self._tile(i.source, *shape, bits=i.in_bits)
        target = self._tile(i.target, *shape, bits=i.out_bits)
        entries = self._behind(Space.WEIGHTS, i.table, i.entry_bits // 8)
        tables = entries[: i.tables * i.entries].reshape(i.tables, i.entries)
        if i.in_bits == 8:
            target[...] = tables[np.arange(i.tables), x.astype(np.int16) + 128]
            return
        from nnac.kernels.wide import interpolate

        half = 1 << i.out_bits - 1
        with _result(target, True) as y:
            interpolate(x, tables, y, i.shift, i.out_zero, -half, half - 1, self.mode)

    def _softmax(self, i: isa.Softmax) -> None:
        wide = max(i.in_bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import softmax
        else:
            from nnac.kernels.softmax import softmax

        half = 1 << i.out_bits - 1
        with _result(self._tile(i.target, i.rows, i.length, bits=i.out_bits), wide) as y:
            softmax(
                _operand(self._tile(i.source, i.rows, i.length, bits=i.in_bits), wide),
                self._words(i.table, i.entries),
                y,
                i.multiplier,
                i.shift,
                i.out_zero,
                -half,
                half - 1,
                self.mode,
            )

    def _shorts(self, space: Space, address: int, rows: int, columns: int) -> Array:
        return self.memory[space][address : address + 2 * rows * columns].view(np.int16).reshape(rows, columns)

    def _lstm(self, i: isa.Lstm) -> None:
        from nnac.kernels.cells import lstm_cell

        behind = i.tables + 6 * INTERPOLATION_ENTRIES
        peepholes = (
            self._shorts(Space.WEIGHTS, behind, 3, i.hidden) if i.peepholes else np.zeros((3, i.hidden), np.int16)
        )
        hidden = np.empty((i.batch, i.hidden), np.int16)
        lstm_cell(
            self._shorts(Space.SRAM, i.gates, i.batch, 4 * i.hidden),
            self._shorts(Space.SRAM, i.recurrent, i.batch, 4 * i.hidden),
            self._shorts(Space.SRAM, i.cell, i.batch, i.hidden),
            self._shorts(Space.WEIGHTS, i.tables, 3, INTERPOLATION_ENTRIES),
            peepholes,
            self._shorts(Space.SRAM, i.cell_out, i.batch, i.hidden),
            hidden,
            i.cell_bits,
            i.coupled,
            i.peephole_shift,
            *self._cell_law(i),
        )
        self._put_hidden(i, hidden)

    def _gru(self, i: isa.Gru) -> None:
        from nnac.kernels.cells import gru_cell, gru_reset

        hidden = np.empty((i.batch, i.hidden), np.int16)
        operands = (
            self._shorts(Space.SRAM, i.gates, i.batch, 3 * i.hidden),
            self._shorts(Space.SRAM, i.recurrent, i.batch, 3 * i.hidden),
            self._shorts(Space.SRAM, i.state, i.batch, i.hidden),
            self._shorts(Space.WEIGHTS, i.tables, 2, INTERPOLATION_ENTRIES),
        )
        if i.phase == isa.RESET:
            gru_reset(*operands, hidden, *self._cell_law(i))
        else:
            new = self._shorts(Space.SRAM, i.state_out, i.batch, i.hidden)
            gru_cell(*operands, new, hidden, int(i.phase == isa.WHOLE), *self._cell_law(i))
        self._put_hidden(i, hidden)

    def _host(self, i: isa.Host) -> None:
        from nnac.segment import execute

        taken, made = i.quants()
        operands = [
            self.memory[r.space][r.start : r.end].view(quant.dtype) for r, quant in zip(i.reads(), taken, strict=True)
        ]
        for r, result in zip(i.writes(), execute(self.program.segments[i.model], operands, taken, made), strict=True):
            self.memory[r.space][r.start : r.end] = _raw(result)

    def _cell_law(self, i: isa.Cell) -> tuple[int, ...]:
        """Return how gates are clipped and hidden values made: the last arguments of every cell kernel."""
        half = 1 << (i.out_bits - 1)
        return i.clip, i.multiplier, i.shift, i.out_zero, -half, half - 1, int(self.law.mode)

    def _put_hidden(self, i: isa.Cell, hidden: Array) -> None:
        """Write hidden values, which are within their width."""
        raw = _raw(hidden.astype(np.int8) if i.out_bits == 8 else hidden)
        self.memory[Space.SRAM][i.target : i.target + raw.size] = raw


def _operand(x: Array, wide: bool) -> Array:
    """Return an operand as the kernels of one width take it."""
    return x.astype(np.int16) if wide and x.dtype != np.int16 else x


@contextmanager
def _result(target: Array, wide: bool) -> Iterator[Array]:
    """Give the array that a kernel of one width fills: the target, or one that is narrowed into it afterwards."""
    if not wide or target.dtype == np.int16:
        yield target
        return
    filled = np.empty(target.shape, np.int16)
    yield filled
    target[...] = filled


def _raw(array: Array) -> Array:
    """Return the bytes of an array in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
