"""The emulator: executes a program's instructions on one byte array per memory, with the numba kernels.

It knows addresses and nothing of the graph: a planner's mistake shows as a wrong bit. Kernels have no bounds checks;
only validated programs may come here (`nnac.validate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

import numpy as np
from numpy.lib.stride_tricks import as_strided

from nnac import isa
from nnac.isa import AnyInstruction, Space
from nnac.numerics import INTERPOLATION_ENTRIES
from nnac.program import Piece, Program, Tensor
from nnac.types import DTYPES, Array

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
        self.decoded: dict[tuple[int, ...], Array] = {}
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
            inputs: int8 arrays in device layout, one per program input.
            before, after: called with the index of each instruction around its execution; `before` first with -1, when
                the inputs are in place.
            order: all instructions in an order that the tokens allow (`nnac.orders`); program order by default.

        Returns:
            int8 arrays in device layout, one per program output.
        """
        for name, array in inputs.items():
            self.write(self.program.tensor(name), array)
        if before is not None:
            before(-1)
        instructions = self.program.instructions
        for index in range(len(instructions)) if order is None else order:
            if before is not None:
                before(index)
            self.execute(instructions[index])
            if after is not None:
                after(index)
        return {name: self.read(self.program.tensor(name)) for name in self.program.outputs}

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
                target = self.signed[Space(instruction.space)]
                target[instruction.target : instruction.target + instruction.count] = instruction.value
            case isa.Conv():
                self._conv(instruction)
            case isa.Pool():
                self._pool(instruction)
            case isa.Sum():
                self._sum(instruction)
            case isa.Mul():
                self._mul(instruction)
            case isa.Lookup():
                self._lookup(instruction)
            case isa.Softmax():
                self._softmax(instruction)
            case isa.Lstm():
                self._lstm(instruction)
            case isa.Gru():
                self._gru(instruction)
            case _:
                assert_never(instruction)

    def _load(self, i: isa.Load) -> None:
        memory = self.memory[Space(i.space)]
        source = memory[i.source : i.source + i.source_bytes]
        if i.packer:
            key = (i.packer, i.table, i.source, i.target_bytes)
            if key not in self.decoded:
                self.decoded[key] = self._unpack(i, memory, source)
            source = self.decoded[key]
        self.memory[Space.WEIGHTS][i.target : i.target + i.target_bytes] = source

    def _unpack(self, i: isa.Load, memory: Array, source: Array) -> Array:
        from nnac.packers import unpack

        out = np.empty(i.target_bytes, np.int8)
        unpack(i.packer, memory[i.table : i.table + i.table_bytes].tobytes(), source, out)
        return out.view(np.uint8)

    def _copy(self, i: isa.Copy) -> None:
        source = as_strided(self.memory[Space(i.source_space)][i.source :], i.shape, i.source_strides, writeable=False)
        target = as_strided(self.memory[Space(i.target_space)][i.target :], i.shape, i.target_strides)
        target[...] = source

    def _tile(self, address: int, *shape: int) -> Array:
        count = isa.volume(shape)
        return self.signed[Space.SRAM][address : address + count].reshape(shape)

    def _words(self, address: int, count: int) -> Array:
        return self.memory[Space.WEIGHTS][address : address + 4 * count].view(np.int32)

    def _conv(self, i: isa.Conv) -> None:
        from nnac.kernels.conv import conv2d

        taps, buffer = i.kernel_h * i.kernel_w * i.depth, self.signed[Space.WEIGHTS]
        weights = buffer[i.weights : i.weights + i.out_c * taps].reshape(i.out_c, i.kernel_h, i.kernel_w, i.depth)
        shift = buffer[i.params + 8 * i.out_c : i.params + 9 * i.out_c]
        target = as_strided(
            self.signed[Space.SRAM][i.target :], (i.out_h, i.out_w, i.out_c), (i.out_w * i.pitch, i.pitch, 1)
        )
        conv2d(
            self._tile(i.source, i.in_h, i.in_w, i.in_c),
            weights,
            self._words(i.params, i.out_c),
            self._words(i.params + 4 * i.out_c, i.out_c),
            shift,
            target,
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
            int(self.law.mode),
            self.law.accumulator_bits,
            int(self.law.wraps),
        )

    def _pool(self, i: isa.Pool) -> None:
        from nnac.kernels.pool import average_pool, max_pool

        x, y = self._tile(i.source, i.in_h, i.in_w, i.channels), self._tile(i.target, i.out_h, i.out_w, i.channels)
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
            int(self.law.mode),
        )

    def _operand(self, i: isa.Sum | isa.Mul, index: int) -> Array:
        memory = self.signed[Space.SRAM]
        return as_strided(memory[i.sources[index] :], i.shape, i.operand_strides(index), writeable=False)

    def _sum(self, i: isa.Sum) -> None:
        from nnac.kernels.elementwise import accumulate, add2, requantize_wide

        y, mode = self._tile(i.target, *i.shape), int(self.law.mode)
        if len(i.sources) == 2:
            add2(
                self._operand(i, 0),
                i.zeros[0],
                i.multipliers[0],
                self._operand(i, 1),
                i.zeros[1],
                i.multipliers[1],
                y,
                i.shift,
                i.out_zero,
                i.low,
                i.high,
                mode,
            )
            return
        acc = np.zeros(i.shape, np.int64)
        for n, zero in enumerate(i.zeros):
            accumulate(acc, self._operand(i, n), zero, i.multipliers[n])
        requantize_wide(acc, y, i.shift, i.out_zero, i.low, i.high, mode)

    def _mul(self, i: isa.Mul) -> None:
        from nnac.kernels.elementwise import multiply

        multiply(
            self._operand(i, 0),
            i.zeros[0],
            self._operand(i, 1),
            i.zeros[1],
            self._tile(i.target, *i.shape),
            i.multiplier,
            i.shift,
            i.out_zero,
            i.low,
            i.high,
            int(self.law.mode),
        )

    def _lookup(self, i: isa.Lookup) -> None:
        tables = self.signed[Space.WEIGHTS][i.table : i.table + 256 * i.tables].reshape(i.tables, 256)
        x = self._tile(i.source, i.count // i.tables, i.tables).astype(np.int16) + 128
        self._tile(i.target, i.count // i.tables, i.tables)[...] = tables[np.arange(i.tables), x]

    def _softmax(self, i: isa.Softmax) -> None:
        from nnac.kernels.softmax import softmax

        softmax(
            self._tile(i.source, i.rows, i.length),
            self._words(i.table, 256),
            self._tile(i.target, i.rows, i.length),
            i.multiplier,
            i.shift,
            i.out_zero,
            int(self.law.mode),
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

    def _cell_law(self, i: isa.Cell) -> tuple[int, ...]:
        """Return how gates are clipped and hidden values made: the last arguments of every cell kernel."""
        half = 1 << (i.out_bits - 1)
        return i.clip, i.multiplier, i.shift, i.out_zero, -half, half - 1, int(self.law.mode)

    def _put_hidden(self, i: isa.Cell, hidden: Array) -> None:
        """Write hidden values, which are within their width."""
        raw = _raw(hidden.astype(np.int8) if i.out_bits == 8 else hidden)
        self.memory[Space.SRAM][i.target : i.target + raw.size] = raw


def _raw(array: Array) -> Array:
    """Return the bytes of an array in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
