"""The emulator: executes a program's instructions on one byte array per memory, with the numba kernels.

It knows addresses and nothing of the graph: a planner's mistake shows as a wrong bit. Kernels have no bounds checks;
only validated programs may come here (`nnac.validate`).

There are two ways through a program. `execute` does what one instruction says with the bytes that lie in the memories
at that moment: a missing wait or a wrong address in a Load shows. Watched runs, traces, and runs in any given order go
this way. A run in program order without a watcher is prepared at its first time (`nnac.replay`): it reads the weights
of a convolution where the Loads before it found them, packs them once for good, joins neighbouring convolutions, and
leaves out the Loads that nobody else reads; the weight buffer does not hold those then. Every activation still goes
through the memories. Both ways make the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
from numpy.lib.stride_tricks import as_strided

from nnac import float32, isa, replay
from nnac.isa import AnyInstruction, Range, Space
from nnac.numerics import INTERPOLATION_ENTRIES, WIDE_BITS, Rounding
from nnac.program import Piece, Program, Tensor
from nnac.types import DTYPES, Array

if TYPE_CHECKING:
    from nnac.kernels.calls import Call, Prepared
    from nnac.kernels.conv import Filters, Layer

FLOAT32 = 5
"""The rounding of kernels that have a form in `nnac.float32` (see `nnac.kernels.requantize`)."""
POISON = 0xA5
"""Every memory starts full of this byte, so that reading what nobody wrote gives noise, not zeros."""
SLACK = 64
"""Bytes behind a memory that vector loads may touch, without influence."""
KEPT_BYTES = 1 << 30
"""Of packed weights that a prepared run keeps; convolutions beyond pack theirs in every run."""
FEW = 4
"""Rows of a product up to which memory limits it, so that weights in narrow codes are faster."""

Watch = Callable[[int], None]
Calls = Iterator["Call"]


@dataclass(slots=True)
class _Joined:
    """Convolutions that are executed as one, and where their weights and parameters came from."""

    convs: list[isa.Conv] = field(default_factory=list)
    sources: list[tuple[tuple[replay.Source, ...], ...]] = field(default_factory=list)


class Emulator:
    """A machine with a program in it. Not thread-safe; one per thread."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.law = program.target.arithmetic
        self.memory = {space: np.full(size + SLACK, POISON, np.uint8)[:size] for space, size in program.used.items()}
        self.signed = {space: array.view(np.int8) for space, array in self.memory.items()}
        mode = self.law.mode
        self.mode, self.wide_mode = int(mode), int(Rounding.HALF_AWAY if mode == Rounding.TFLITE else mode)
        self.single_mode = FLOAT32 if mode == Rounding.ONNX else int(mode)
        """Of convolutions and averages of int8."""
        self.decoded: dict[tuple[int, ...], Array] = {}
        self.memory[program.constants_space][: program.constants.size] = program.constants
        self._tensors = {t.name: t for t in program.tensors}
        self._homes: dict[str, Array] = {}
        self._rooms: dict[str, Array] = {}
        self._prepared: Prepared | None = None

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
            self.write(self._tensors[name], array)
        if before is None and after is None and order is None:
            self._prepared = self._prepared or self._prepare()
            self._prepared.run()
        else:
            self._execute_all(before or _ignore, after or _ignore, order)
        return {name: self.read(self._tensors[name]) for name in self.program.outputs}

    def _execute_all(self, before: Watch, after: Watch, order: Sequence[int] | None) -> None:
        before(-1)
        instructions = self.program.instructions
        for index in range(len(instructions)) if order is None else order:
            before(index)
            self.execute(instructions[index])
            after(index)

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

    def _home(self, tensor: Tensor) -> Array:
        """Return the bytes of a tensor where it lives, a view."""
        if tensor.name not in self._homes:
            memory = self.memory[tensor.space]
            self._homes[tensor.name] = memory[tensor.address : tensor.address + tensor.type.nbytes]
        return self._homes[tensor.name]

    def read(self, tensor: Tensor) -> Array:
        """Return a copy of a tensor from its home."""
        return self._home(tensor).view(DTYPES[tensor.type.dtype]).reshape(tensor.type.shape).copy()

    def clear_states(self) -> None:
        """Set all states to real zero."""
        for tensor in (self.program.tensor(source) for source, _ in self.program.states):
            quant = tensor.type.quant
            assert quant is not None
            self.write(tensor, np.full(tensor.type.shape, quant.zero_point, tensor.type.dtype))

    def write(self, tensor: Tensor, array: Array) -> None:
        """Put a tensor into its home."""
        self._home(tensor)[:] = _raw(array)

    # -- program order -----------------------------------------------------------------------------------------------

    def _prepare(self) -> Prepared:
        """Return the calls of a run in program order."""
        from nnac.kernels.calls import Prepared

        return Prepared([call for calls in _Replay(self).calls() for call in calls])

    # -- meanings --------------------------------------------------------------------------------------------------

    def execute(self, instruction: AnyInstruction) -> None:
        """Do what one instruction says."""
        for call in self.calls(instruction):
            call.run()

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
            case isa.Lookup():
                return self._lookup(instruction)
            case isa.Softmax():
                return self._softmax(instruction)
            case isa.Lstm():
                return self._lstm(instruction)
            case isa.Gru():
                return self._gru(instruction)
            case _:
                assert_never(instruction)

    def _load(self, i: isa.Load) -> Calls:
        if not i.packer:
            source = self.signed[Space(i.space)][i.source : i.source + i.source_bytes]
        else:
            key = (i.packer, i.table, i.source, i.target_bytes)
            if key not in self.decoded:
                self.decoded[key] = self.expand(i)
            source = self.decoded[key]
        yield _moved(source, self.signed[Space.WEIGHTS][i.target : i.target + i.target_bytes])

    def expand(self, i: isa.Load) -> Array:
        """Return the int8 values that a Load brings."""
        from nnac.packers import unpack

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
        shape, *strides = _merged(i.shape, i.source_strides, i.target_strides)
        yield _moved(as_strided(source, shape, strides[0]), as_strided(target, shape, strides[1]))

    def _fill(self, i: isa.Fill) -> Calls:
        value = np.array([i.value], f"<i{i.width}")
        target = self._behind(Space(i.space), i.target, i.width)[: i.count]
        yield _moved(as_strided(value, (i.count,), (0,)), target)

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

    def _room(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return working memory of a kernel; the same for all instructions, so that it holds nothing for long."""
        from nnac.kernels.panels import room

        count = isa.volume(shape) * np.dtype(dtype).itemsize
        if name not in self._rooms or self._rooms[name].size < count:
            self._rooms[name] = room(max(count, 2 * self._rooms[name].size if name in self._rooms else 0))
        return self._rooms[name][:count].view(dtype).reshape(shape)

    def _operand(self, x: Array, name: str, wide: bool) -> tuple[Array, tuple[Call, ...]]:
        """Return an operand as the kernels of one width take it, and the calls that make it so."""
        if not wide or x.dtype == np.int16:
            return x, ()
        widened = self._room(name, x.shape, np.int16)
        return widened, (_moved(x, widened),)

    def _result(self, target: Array, wide: bool) -> tuple[Array, tuple[Call, ...]]:
        """Return what a kernel of one width fills, and the calls that narrow it into the target afterwards."""
        if not wide or target.dtype == np.int16:
            return target, ()
        filled = self._room("result", target.shape, np.int16)
        return filled, (_moved(filled, target),)

    def _conv(self, i: isa.Conv) -> Calls:
        if i.in_bits == 16:
            yield from self._wide_conv(i)
            return
        from nnac.kernels.conv import empty_filters, packing

        layer, taps = self.layer(i), i.kernel_h * i.kernel_w * i.depth
        weights = self.signed[Space.WEIGHTS][i.weights : i.weights + i.out_c * taps].reshape(i.out_c, taps)
        filters = empty_filters(i.out_c, layer)
        yield packing(weights, *self._params(i), filters, layer)
        yield self.product(i, i.out_c, filters)

    def _params(self, i: isa.Conv) -> tuple[Array, Array, Array]:
        """Return bias, multiplier and shift as they lie in the weight buffer."""
        shift = self.signed[Space.WEIGHTS][i.params + 8 * i.out_c : i.params + 9 * i.out_c]
        return self._words(i.params, i.out_c), self._words(i.params + 4 * i.out_c, i.out_c), shift

    def layer(self, i: isa.Conv) -> Layer:
        """Return a convolution as its kernel sees it."""
        from nnac.kernels.conv import Layer

        return Layer(
            i.kernel_h,
            i.kernel_w,
            i.depth,
            *_window(i),
            i.channels // i.groups,
            i.channel,
            i.in_zero,
            i.out_zero,
            i.low,
            i.high,
            self.single_mode if i.out_bits == 8 else self.mode,
            self.law.accumulator_bits,
            int(self.law.wraps),
        )

    def product(self, i: isa.Conv, channels: int, filters: Filters) -> Call:
        """Return the call of a convolution of int8 with packed constants, for `channels` from its own first one on."""
        from nnac.kernels.conv import product, workspace_bytes

        layer, shape = self.layer(i), (i.out_h, i.out_w, channels)
        workspace = self._room("workspace", (workspace_bytes(layer, shape),), np.int8)
        x = self._tile(i.source, i.in_h, i.in_w, i.in_c)
        return product(x, filters, self._pixels(i, channels), workspace, layer)

    def _pixels(self, i: isa.Conv, channels: int) -> Array:
        """Return the outputs of a convolution, a view."""
        width = i.out_bits // 8
        strides = (i.out_w * i.pitch * width, i.pitch * width, width)
        return as_strided(self._behind(Space.SRAM, i.target, width), (i.out_h, i.out_w, channels), strides)

    def _wide_conv(self, i: isa.Conv) -> Calls:
        from nnac.kernels.calls import Call
        from nnac.kernels.wide import conv2d

        taps, buffer = i.kernel_h * i.kernel_w * i.depth, self.signed[Space.WEIGHTS]
        weights = buffer[i.weights : i.weights + i.out_c * taps].reshape(i.out_c, i.kernel_h, i.kernel_w, i.depth)
        y, narrow = self._result(self._pixels(i, i.out_c), True)
        x = self._tile(i.source, i.in_h, i.in_w, i.in_c, bits=16)
        law = (self.wide_mode, self.law.accumulator_bits + WIDE_BITS, int(self.law.wraps))
        place = (*_window(i), i.channels // i.groups, i.channel)
        limits = (i.in_zero, i.out_zero, i.low, i.high)
        yield Call(conv2d, (x, weights, *self._params(i), y, *place, *limits, *law))
        yield from narrow

    def _pool(self, i: isa.Pool) -> Calls:
        from nnac.kernels.calls import Call

        wide = max(i.in_bits, i.out_bits) == 16
        if wide:
            from nnac.kernels.wide import average_pool, max_pool
        else:
            from nnac.kernels.pool import average_pool, max_pool

        x, widen = self._operand(self._tile(i.source, i.in_h, i.in_w, i.channels, bits=i.in_bits), "operand", wide)
        y, narrow = self._result(self._tile(i.target, i.out_h, i.out_w, i.channels, bits=i.out_bits), wide)
        yield from widen
        if i.kind == 0:
            yield Call(max_pool, (x, y, i.kernel_h, i.kernel_w, *_window(i), i.low, i.high))
        else:
            stride_h, stride_w, _, _, *pads = _window(i)
            place = (i.kernel_h, i.kernel_w, stride_h, stride_w, *pads, i.padded_h, i.padded_w, i.count_pads)
            scale = (i.in_zero, i.multiplier, i.shift, i.out_zero, i.low, i.high)
            yield Call(average_pool, (x, y, *place, *scale, self.mode if wide else self.single_mode))
        yield from narrow

    def _nested(self, i: isa.Sum | isa.Mul, index: int) -> Array:
        """Return an operand of a loop nest."""
        memory = self._behind(Space.SRAM, i.sources[index], i.bits[index] // 8)
        return as_strided(memory, i.shape, i.operand_strides(index))

    def _sum(self, i: isa.Sum) -> Calls:
        wide = max(*i.bits, i.out_bits) == 16
        if self.law.mode == Rounding.ONNX and not wide:
            return self._add_float32(i)
        return self._add(i) if len(i.sources) == 2 and not wide else self._add_any(i, wide)

    def _add_any(self, i: isa.Sum, wide: bool) -> Calls:
        from nnac.kernels.calls import Call

        if wide:
            from nnac.kernels.wide import accumulate, requantize_wide
        else:
            from nnac.kernels.elementwise import accumulate, requantize_wide

        acc = self._room("sums", i.shape, np.int64)
        for n, zero in enumerate(i.zeros):
            x, widen = self._operand(self._nested(i, n), "operand", wide)
            yield from widen
            yield Call(accumulate, (acc, x, zero, i.multipliers[n], int(n > 0)))
        y, narrow = self._result(self._tile(i.target, *i.shape, bits=i.out_bits), wide)
        yield Call(requantize_wide, (acc, y, i.shift, i.out_zero, i.low, i.high, self.mode))
        yield from narrow

    def _add_float32(self, i: isa.Sum) -> Calls:
        from nnac.kernels.calls import Call
        from nnac.kernels.single import fuse_product, round_sum, start

        total = self._room("sums", i.shape, np.float32)
        first = np.array(float32.sum_start(i.zeros, i.multipliers, i.out_zero), np.float32)
        yield Call(start, (total, int(first.view(np.int32))))
        for n in reversed(range(len(i.sources))):
            yield Call(fuse_product, (total, self._nested(i, n), i.multipliers[n]))
        yield Call(round_sum, (total, self._tile(i.target, *i.shape), i.low, i.high))

    def _add(self, i: isa.Sum) -> Calls:
        from nnac.kernels.calls import Call
        from nnac.kernels.elementwise import add2

        (a, b), y = (self._nested(i, n) for n in range(2)), self._tile(i.target, *i.shape)
        first, second = zip(i.zeros, i.multipliers, strict=True)
        yield Call(add2, (a, *first, b, *second, y, i.shift, i.out_zero, i.low, i.high, self.mode))

    def _mul(self, i: isa.Mul) -> Calls:
        from nnac.kernels.calls import Call

        wide = max(*i.bits, i.out_bits) == 16
        if self.law.mode == Rounding.ONNX and not wide:
            yield self._multiply_float32(i)
            return
        if wide:
            from nnac.kernels.wide import multiply
        else:
            from nnac.kernels.elementwise import multiply

        (a, widen_a), (b, widen_b) = (self._operand(self._nested(i, n), f"operand{n}", wide) for n in range(2))
        y, narrow = self._result(self._tile(i.target, *i.shape, bits=i.out_bits), wide)
        yield from (*widen_a, *widen_b)
        scale = (i.multiplier, i.shift, i.out_zero, i.low, i.high)
        yield Call(multiply, (a, i.zeros[0], b, i.zeros[1], y, *scale, self.mode))
        yield from narrow

    def _multiply_float32(self, i: isa.Mul) -> Call:
        from nnac.kernels.calls import Call
        from nnac.kernels.single import multiply

        a, b = (self._nested(i, n) for n in range(2))
        scale = (i.multiplier, i.out_zero, i.low, i.high)
        return Call(multiply, (a, i.zeros[0], b, i.zeros[1], self._tile(i.target, *i.shape), *scale))

    def _lookup(self, i: isa.Lookup) -> Calls:
        from nnac.kernels.calls import Call

        shape = (i.count // i.tables, i.tables)
        x = self._tile(i.source, *shape, bits=i.in_bits)
        target = self._tile(i.target, *shape, bits=i.out_bits)
        entries = self._behind(Space.WEIGHTS, i.table, i.entry_bits // 8)
        tables = entries[: i.tables * i.entries].reshape(i.tables, i.entries)
        if i.in_bits == 8:
            from nnac.kernels import move, wide

            yield Call(move.look_up if i.out_bits == 8 else wide.look_up, (x, tables, target))
            return
        from nnac.kernels.wide import interpolate

        half = 1 << i.out_bits - 1
        y, narrow = self._result(target, True)
        yield Call(interpolate, (x, tables, y, i.shift, i.out_zero, -half, half - 1, self.mode))
        yield from narrow

    def _softmax(self, i: isa.Softmax) -> Calls:
        from nnac.kernels.calls import Call

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
        yield Call(softmax, (x, self._words(i.table, i.entries), y, *scale))
        yield from narrow

    def _shorts(self, space: Space, address: int, rows: int, columns: int) -> Array:
        return self.memory[space][address : address + 2 * rows * columns].view(np.int16).reshape(rows, columns)

    def _lstm(self, i: isa.Lstm) -> Calls:
        from nnac.kernels.calls import Call
        from nnac.kernels.cells import lstm_cell

        behind = i.tables + 6 * INTERPOLATION_ENTRIES
        peepholes = (
            self._shorts(Space.WEIGHTS, behind, 3, i.hidden) if i.peepholes else np.zeros((3, 0), np.int16)
        )
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
        yield Call(lstm_cell, (*operands, new, hidden, self._room("cell", (3, i.hidden), np.int32), *law))
        yield from narrow

    def _gru(self, i: isa.Gru) -> Calls:
        from nnac.kernels.calls import Call
        from nnac.kernels.cells import gru_cell, gru_reset

        hidden, narrow = self._result(self._tile(i.target, i.batch, i.hidden, bits=i.out_bits), True)
        operands = (
            self._shorts(Space.SRAM, i.gates, i.batch, 3 * i.hidden),
            self._shorts(Space.SRAM, i.recurrent, i.batch, 3 * i.hidden),
            self._shorts(Space.SRAM, i.state, i.batch, i.hidden),
            self._shorts(Space.WEIGHTS, i.tables, 2, INTERPOLATION_ENTRIES),
        )
        if i.phase == isa.RESET:
            yield Call(gru_reset, (*operands, hidden, *self._cell_law(i)))
        else:
            new = self._shorts(Space.SRAM, i.state_out, i.batch, i.hidden)
            yield Call(gru_cell, (*operands, new, hidden, int(i.phase == isa.WHOLE), *self._cell_law(i)))
        yield from narrow

    def _cell_law(self, i: isa.Cell) -> tuple[int, ...]:
        """Return how gates are clipped and hidden values made: the last arguments of every cell kernel."""
        half = 1 << (i.out_bits - 1)
        return i.clip, i.multiplier, i.shift, i.out_zero, -half, half - 1, int(self.law.mode)


class _Replay:
    """The calls of a program in its own order, with the weights of convolutions packed once for good."""

    def __init__(self, emulator: Emulator) -> None:
        from nnac.kernels.panels import Slabs

        self.emulator, self.program, self.slabs = emulator, emulator.program, Slabs()
        self.contents, self.same = replay.Contents(), replay.same_bytes(self.program.instructions)
        self.filters: dict[tuple[Any, ...], Filters] = {}
        self.left = KEPT_BYTES
        self.loads: dict[int, tuple[Call, ...]] = {}
        """Of Loads that somebody reads; the others stay empty."""
        self.joined = _Joined()

    def calls(self) -> Iterator[Sequence[Call]]:
        """Return the calls, instruction by instruction."""
        parts = list(self._parts())
        return (self.loads.get(part, ()) if isinstance(part, int) else part for part in parts)

    def _parts(self) -> Iterator[int | Sequence[Call]]:
        """Yield the calls of each instruction, of a Load its index."""
        for index, instruction in enumerate(self.program.instructions):
            if isinstance(instruction, isa.Load):
                self.contents.fill(index, instruction)
                yield index
                continue
            if isinstance(instruction, isa.Conv) and self._can_keep(instruction):
                if self.joined.convs and not replay.continues(self.joined.convs[-1], instruction):
                    yield self._join()
                self.joined.convs.append(instruction)
                self.joined.sources.append(tuple(map(self.contents.within, replay.constants(instruction))))
                continue
            yield self._join()
            self._need(instruction)
            yield tuple(self.emulator.calls(instruction))
        yield self._join()

    def _can_keep(self, conv: isa.Conv) -> bool:
        """Tell that there is room for the packed weights of a convolution, and count it as taken."""
        self.left -= conv.out_c * conv.kernel_h * conv.kernel_w * conv.depth
        return conv.in_bits == 8 and self.left >= 0

    def _need(self, instruction: AnyInstruction) -> None:
        """Let the Loads be executed whose bytes an instruction reads."""
        for index in (source[0] for r in replay.constants(instruction) for source in self.contents.within(r)):
            if index not in self.loads:
                self.loads[index] = tuple(self.emulator.calls(self.program.instructions[index]))

    def _join(self) -> tuple[Call, ...]:
        """Return the call of the convolutions that have come together, if any."""
        joined, self.joined = self.joined, _Joined()
        if not joined.convs:
            return ()
        first, channels = joined.convs[0], sum(conv.out_c for conv in joined.convs)
        layer, few = self.emulator.layer(first), first.out_h * first.out_w <= FEW
        bytes_of = tuple((self.same[n], *rest) for pieces in joined.sources for piece in pieces for n, *rest in piece)
        key = (bytes_of, channels, layer.taps, layer.group_out, layer.channel_offset, few)
        if key not in self.filters:
            self.filters[key] = self._packed(joined, layer, few)
        return (self.emulator.product(first, channels, self.filters[key]),)

    def _packed(self, joined: _Joined, layer: Layer, few: bool) -> Filters:
        """Return the constants of joined convolutions, ready for products."""
        from nnac.kernels.conv import empty_filters, is_narrow, narrowed, packing

        parts = [[self._bytes(source) for source in sources] for sources in joined.sources]
        weights = np.concatenate([weights for weights, _ in parts]).reshape(-1, layer.taps)
        params = [(p[: p.size // 9 * 8].view(np.int32).reshape(2, -1), p[p.size // 9 * 8 :]) for _, p in parts]
        bias, multiplier = np.ascontiguousarray(np.concatenate([words for words, _ in params], axis=1))
        shift = np.concatenate([shift for _, shift in params])
        alone = len(weights) + layer.channel_offset <= layer.group_out and not layer.is_depthwise
        if few and alone and is_narrow(weights):
            filters = empty_filters(len(weights), layer)
            packing(weights, bias, multiplier, shift, filters, layer).run()
            return narrowed(weights, bias, filters, self.slabs)
        filters = empty_filters(len(weights), layer, self.slabs)
        packing(weights, bias, multiplier, shift, filters, layer).run()
        return filters

    def _bytes(self, source: Sequence[replay.Source]) -> Array:
        """Return the bytes of a range of the weight buffer, from the Loads that brought them."""
        loads = self.program.instructions
        parts = [(loads[index], first, last) for index, first, last in source]
        return np.concatenate([self.emulator.expand(load)[a:b] for load, a, b in parts if isinstance(load, isa.Load)])


def _ignore(index: int) -> None:
    """Watch nothing."""


def _window(i: isa.Conv | isa.Pool) -> tuple[int, ...]:
    """Return stride, dilation and padding before, each down, then right."""
    return i.stride_h, i.stride_w, i.dilation_h, i.dilation_w, i.pad_top, i.pad_left


def _merged(shape: Sequence[int], *strides: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return a loop nest with as few axes as walk the same places: the shape, and the strides of each operand."""
    axes: list[tuple[int, ...]] = []
    for side, *steps in zip(shape, *strides, strict=True):
        if side == 1:
            continue
        if axes and all(outer == side * step for outer, step in zip(axes[-1][1:], steps, strict=True)):
            side *= axes.pop()[0]
        axes.append((side, *steps))
    if not axes:
        return ((1,), *((0,) for _ in strides))
    return tuple(zip(*axes, strict=True))


def _moved(source: Array, target: Array) -> Call:
    """Return the call that copies one array into another of its shape, int8 or int16 each."""
    from nnac.kernels.calls import Call
    from nnac.kernels.move import AXES, copy

    kernel: Any = copy
    if max(source.itemsize, target.itemsize) == 2:
        from nnac.kernels.wide import copies

        kernel = copies[source.itemsize, target.itemsize]
    outer = (1,) * (AXES - source.ndim)
    views = (as_strided(a, (*outer, *a.shape), (*(0 for _ in outer), *a.strides)) for a in (source, target))
    return Call(kernel, tuple(views))


def _raw(array: Array) -> Array:
    """Return the bytes of an array in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
