"""The instruction set: frozen dataclasses of plain integers, their fields' widths, their engines and address ranges.

What an instruction *means* lives in its readers (emulator, timing, disassembler). Compute engines read activations
from the scratchpad (`sram`) and constants from the weight buffer (`weights`); `Copy` and `Load` move bytes between
memories. Engines take their instructions in order and run beside each other; `waits` holds, per engine, how many of
its instructions must have finished before this one may start.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

from nnac.numerics import INTERPOLATION_ENTRIES
from nnac.types import Quant

AXES = 6
"""Axes of a strided copy."""
PACKERS = ("raw", "fixed", "bitmap", "runs", "entropy")
"""How a Load expands its bytes, by the number in `Load.packer`; `nnac.packers` says what each one means."""
WHOLE, RESET, FINISH = range(3)
"""Phases of a GRU's step."""
LOOPS = 4
"""Axes of an elementwise operand."""


class Engine(IntEnum):
    """In-order queues that run beside each other."""

    DMA_IN = 0
    DMA_OUT = 1
    DECODER = 2
    MAC = 3
    VECTOR = 4
    HOST = 5

    @property
    def label(self) -> str:
        return self.name.lower()


class Space(IntEnum):
    """Address spaces, named as in a target's [memory.*] sections."""

    SRAM = 0
    WEIGHTS = 1
    DRAM = 2
    FLASH = 3

    @property
    def label(self) -> str:
        return self.name.lower()


class Range(NamedTuple):
    """Bytes [start, end) of one memory."""

    space: Space
    start: int
    end: int


CODES = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "u64": "Q"}


def _field(code: str, count: int = 1, default: Any = None) -> Any:
    """Declare a field: its width, and how many values it holds (0: any number up to 255, with a length byte)."""
    metadata = {"code": code, "count": count}
    return field(metadata=metadata) if default is None else field(metadata=metadata, default=default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction(ABC):
    """Base: the wait tokens, and the ranges that the subclass reads and writes."""

    opcode: ClassVar[int]
    waits: tuple[int, ...] = _field("u32", len(Engine), (0,) * len(Engine))

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """Who executes it."""

    @abstractmethod
    def reads(self) -> tuple[Range, ...]:
        """Return the bytes that it may read."""

    @abstractmethod
    def writes(self) -> tuple[Range, ...]:
        """Return the bytes that it may write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Instruction):
    """Constants from `space` into the weight buffer, expanded by `packer` (an index into `PACKERS`).

    `table` are the bytes in `space` that the packer's streams of this tensor share.
    """

    opcode: ClassVar[int] = 1
    space: int = _field("u8")
    source: int = _field("u32")
    source_bytes: int = _field("u32")
    target: int = _field("u32")
    target_bytes: int = _field("u32")
    packer: int = _field("u8")
    table: int = _field("u32", default=0)
    table_bytes: int = _field("u32", default=0)

    @property
    def engine(self) -> Engine:
        return Engine.DECODER

    def reads(self) -> tuple[Range, ...]:
        space = Space(self.space)
        return (
            Range(space, self.source, self.source + self.source_bytes),
            Range(space, self.table, self.table + self.table_bytes),
        )

    def writes(self) -> tuple[Range, ...]:
        return (Range(Space.WEIGHTS, self.target, self.target + self.target_bytes),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Instruction):
    """Strided copy between any two activation memories; strides in bytes, outermost axis first.

    Elements have `width` bytes, 1 or 2.
    """

    opcode: ClassVar[int] = 2
    source_space: int = _field("u8")
    source: int = _field("u32")
    source_strides: tuple[int, ...] = _field("i32", AXES)
    target_space: int = _field("u8")
    target: int = _field("u32")
    target_strides: tuple[int, ...] = _field("i32", AXES)
    shape: tuple[int, ...] = _field("u32", AXES)
    width: int = _field("u8", default=1)

    @property
    def engine(self) -> Engine:
        return copy_engine(Space(self.source_space), Space(self.target_space))

    def reads(self) -> tuple[Range, ...]:
        return (strided(Space(self.source_space), self.source, self.shape, self.source_strides, self.width),)

    def writes(self) -> tuple[Range, ...]:
        return (strided(Space(self.target_space), self.target, self.shape, self.target_strides, self.width),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill(Instruction):
    """Write `value` to a contiguous run of `count` elements of `width` bytes, 1 or 2."""

    opcode: ClassVar[int] = 3
    space: int = _field("u8")
    target: int = _field("u32")
    count: int = _field("u32")
    value: int = _field("i16")
    width: int = _field("u8", default=1)

    @property
    def engine(self) -> Engine:
        return copy_engine(Space(self.space), Space(self.space))

    def reads(self) -> tuple[Range, ...]:
        return ()

    def writes(self) -> tuple[Range, ...]:
        return (Range(Space(self.space), self.target, self.target + self.count * self.width),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv(Instruction):
    """Convolution of a stripe (in_h, in_w, in_c) with `out_c` kernels, requantized into a channel slice of the output.

    Params: int32 bias, int32 multiplier, int8 shift, each `out_c` long, behind each other. Taps outside the stripe
    contribute nothing. Output channel c of the layer belongs to group c // (channels // groups). A dense layer is a
    1x1 convolution with in_w = 1. `pitch` counts elements. `taps` is how many folds an array that skips zero weights
    really takes (0: it skips none; see `nnac.array.taken_folds`); it has no influence on values. Activations of 16 bits
    have no zero point; those of the input are summed in an accumulator of 8 more bits (`numerics.requantize_wide`).
    """

    opcode: ClassVar[int] = 4
    source: int = _field("u32")
    in_h: int = _field("u32")
    in_w: int = _field("u32")
    in_c: int = _field("u32")
    target: int = _field("u32")
    out_h: int = _field("u32")
    out_w: int = _field("u32")
    out_c: int = _field("u32")
    pitch: int = _field("u32")
    channel: int = _field("u32")
    channels: int = _field("u32")
    kernel_h: int = _field("u16")
    kernel_w: int = _field("u16")
    stride_h: int = _field("u16")
    stride_w: int = _field("u16")
    dilation_h: int = _field("u16")
    dilation_w: int = _field("u16")
    pad_top: int = _field("i32")
    pad_left: int = _field("i32")
    groups: int = _field("u32")
    weights: int = _field("u32")
    params: int = _field("u32")
    taps: int = _field("u32", default=0)
    in_zero: int = _field("i16")
    out_zero: int = _field("i16")
    low: int = _field("i16")
    high: int = _field("i16")
    in_bits: int = _field("u8", default=8)
    out_bits: int = _field("u8", default=8)

    @property
    def engine(self) -> Engine:
        return Engine.MAC

    @property
    def depth(self) -> int:
        """Input channels per group."""
        return self.in_c // self.groups

    @property
    def macs(self) -> int:
        return self.out_h * self.out_w * self.out_c * self.kernel_h * self.kernel_w * self.depth

    def reads(self) -> tuple[Range, ...]:
        taps = self.kernel_h * self.kernel_w * self.depth
        return (
            _row(self.source, self.in_h * self.in_w * self.in_c, self.in_bits),
            Range(Space.WEIGHTS, self.weights, self.weights + self.out_c * taps),
            Range(Space.WEIGHTS, self.params, self.params + 9 * self.out_c),
        )

    def writes(self) -> tuple[Range, ...]:
        return (_row(self.target, (self.out_h * self.out_w - 1) * self.pitch + self.out_c, self.out_bits),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool(Instruction):
    """Max (kind 0) or average (kind 1) over windows of a stripe (in_h, in_w, channels).

    An average divides by the number of taps inside the stripe, or, with `count_pads`, by those inside the padded area
    that begins at the first window and has `padded_h` x `padded_w` places.
    """

    opcode: ClassVar[int] = 5
    kind: int = _field("u8")
    source: int = _field("u32")
    in_h: int = _field("u32")
    in_w: int = _field("u32")
    channels: int = _field("u32")
    target: int = _field("u32")
    out_h: int = _field("u32")
    out_w: int = _field("u32")
    kernel_h: int = _field("u32")
    kernel_w: int = _field("u32")
    stride_h: int = _field("u32")
    stride_w: int = _field("u32")
    dilation_h: int = _field("u32")
    dilation_w: int = _field("u32")
    pad_top: int = _field("i32")
    pad_left: int = _field("i32")
    count_pads: int = _field("u8")
    padded_h: int = _field("u32")
    padded_w: int = _field("u32")
    in_zero: int = _field("i16")
    out_zero: int = _field("i16")
    multiplier: int = _field("u32")
    shift: int = _field("u8")
    low: int = _field("i16")
    high: int = _field("i16")
    in_bits: int = _field("u8", default=8)
    out_bits: int = _field("u8", default=8)

    @property
    def engine(self) -> Engine:
        return Engine.VECTOR

    def reads(self) -> tuple[Range, ...]:
        return (_row(self.source, self.in_h * self.in_w * self.channels, self.in_bits),)

    def writes(self) -> tuple[Range, ...]:
        return (_row(self.target, self.out_h * self.out_w * self.channels, self.out_bits),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise(Instruction):
    """Base of instructions on broadcasting operands: a loop nest, and per operand its bits and LOOPS byte strides.

    A stride of 0 broadcasts.
    """

    shape: tuple[int, ...] = _field("u32", LOOPS)
    sources: tuple[int, ...] = _field("u32", 0)
    strides: tuple[int, ...] = _field("i32", 0)
    zeros: tuple[int, ...] = _field("i16", 0)
    bits: tuple[int, ...] = _field("u8", 0)
    target: int = _field("u32")
    shift: int = _field("u8")
    out_zero: int = _field("i16")
    low: int = _field("i16")
    high: int = _field("i16")
    out_bits: int = _field("u8", default=8)

    @property
    def engine(self) -> Engine:
        return Engine.VECTOR

    def operand_strides(self, index: int) -> tuple[int, ...]:
        return self.strides[index * LOOPS : (index + 1) * LOOPS]

    def reads(self) -> tuple[Range, ...]:
        return tuple(
            strided(Space.SRAM, source, self.shape, self.operand_strides(i), bits // 8)
            for i, (source, bits) in enumerate(zip(self.sources, self.bits, strict=True))
        )

    def writes(self) -> tuple[Range, ...]:
        return (_row(self.target, volume(self.shape), self.out_bits),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum(Elementwise):
    """sum_i multiplier_i * (x_i - zero_i), one rounding shift."""

    opcode: ClassVar[int] = 6
    multipliers: tuple[int, ...] = _field("i32", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mul(Elementwise):
    """(x_0 - zero_0) * (x_1 - zero_1), requantized."""

    opcode: ClassVar[int] = 7
    multiplier: int = _field("u32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude(Elementwise):
    """sqrt(offset + sum_i (x_i - zero_i)**2), requantized (`numerics.magnitude`); operands on one scale."""

    opcode: ClassVar[int] = 12
    offset: int = _field("u32")
    multiplier: int = _field("u32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup(Instruction):
    """Every element through a table in the weight buffer; element i uses table i % tables.

    An int8 input takes entry x + 128 of 256, which have the width of the output. An int16 input is interpolated between
    513 int16 knots (`numerics.interpolate`).
    """

    opcode: ClassVar[int] = 8
    source: int = _field("u32")
    target: int = _field("u32")
    count: int = _field("u32")
    table: int = _field("u32")
    tables: int = _field("u32")
    shift: int = _field("u8", default=0)
    out_zero: int = _field("i16", default=0)
    in_bits: int = _field("u8", default=8)
    out_bits: int = _field("u8", default=8)

    @property
    def engine(self) -> Engine:
        return Engine.VECTOR

    @property
    def entries(self) -> int:
        """Entries of one table."""
        return 256 if self.in_bits == 8 else 513

    @property
    def entry_bits(self) -> int:
        return self.out_bits if self.in_bits == 8 else 16

    def reads(self) -> tuple[Range, ...]:
        size = self.entries * self.tables * self.entry_bits // 8
        return (_row(self.source, self.count, self.in_bits), Range(Space.WEIGHTS, self.table, self.table + size))

    def writes(self) -> tuple[Range, ...]:
        return (_row(self.target, self.count, self.out_bits),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(Instruction):
    """Softmax of each row; the weight buffer holds 256 int32 exponentials, or 512 for an input of 16 bits.

    Both are those of `numerics.softmax_table`.
    """

    opcode: ClassVar[int] = 9
    source: int = _field("u32")
    target: int = _field("u32")
    rows: int = _field("u32")
    length: int = _field("u32")
    table: int = _field("u32")
    multiplier: int = _field("u32")
    shift: int = _field("u8")
    out_zero: int = _field("i16")
    in_bits: int = _field("u8", default=8)
    out_bits: int = _field("u8", default=8)

    @property
    def engine(self) -> Engine:
        return Engine.VECTOR

    @property
    def entries(self) -> int:
        """Entries of the table."""
        return 256 if self.in_bits == 8 else 512

    def reads(self) -> tuple[Range, ...]:
        return (
            _row(self.source, self.rows * self.length, self.in_bits),
            Range(Space.WEIGHTS, self.table, self.table + 4 * self.entries),
        )

    def writes(self) -> tuple[Range, ...]:
        return (_row(self.target, self.rows * self.length, self.out_bits),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell(Instruction):
    """Base of the updates of recurrent cells: one step of `hidden` units for each of `batch` rows, row-major.

    Gates and their recurrent parts are int16 in Q3.12, beside each other in ONNX order; tables of 513 int16 knots lie
    behind each other in the weight buffer. `clip` bounds the pre-activations (32767: the whole range). The target is
    int8 or, with `out_bits` 16, int16.
    """

    gates: int = _field("u32")
    recurrent: int = _field("u32")
    target: int = _field("u32")
    batch: int = _field("u32")
    hidden: int = _field("u32")
    tables: int = _field("u32")
    clip: int = _field("i16")
    multiplier: int = _field("u32")
    shift: int = _field("u8")
    out_zero: int = _field("i16")
    out_bits: int = _field("u8")

    @property
    def engine(self) -> Engine:
        return Engine.VECTOR

    @property
    def units(self) -> int:
        return self.batch * self.hidden

    def _short(self, address: int, values: int = 1) -> Range:
        """Return the range of so many int16 values per unit."""
        return Range(Space.SRAM, address, address + 2 * values * self.units)

    def _constants(self, tables: int, rows: int = 0) -> Range:
        """Return the range of tables, and of rows of one int16 per hidden unit behind them."""
        count = tables * INTERPOLATION_ENTRIES + rows * self.hidden
        return Range(Space.WEIGHTS, self.tables, self.tables + 2 * count)

    def _result(self) -> Range:
        return Range(Space.SRAM, self.target, self.target + self.units * self.out_bits // 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lstm(Cell):
    """One step of LSTM cells (`numerics.lstm_cell`): gates i, o, f, c; cells int16 in steps of 2**-cell_bits.

    The tables are f, g, h, then, with `peepholes`, int16 (3, hidden) of i, o, f. `coupled`: f is one minus i. The cell
    may be updated in place.
    """

    opcode: ClassVar[int] = 10
    cell: int = _field("u32")
    cell_out: int = _field("u32")
    cell_bits: int = _field("u8")
    coupled: int = _field("u8")
    peepholes: int = _field("u8")
    peephole_shift: int = _field("u8")

    def reads(self) -> tuple[Range, ...]:
        constants = self._constants(3, 3 if self.peepholes else 0)
        return self._short(self.gates, 4), self._short(self.recurrent, 4), self._short(self.cell), constants

    def writes(self) -> tuple[Range, ...]:
        return self._short(self.cell_out), self._result()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gru(Cell):
    """One step of GRU cells (`numerics.gru_cell`): gates z, r, h; tables f, g; state int16 in Q0.15.

    Phase 0 is a whole step with the reset behind the recurrent weights (ONNX, linear_before_reset = 1). With the reset
    before them, phase 1 writes reset times state to the target, for the weights to see, and phase 2 ends the step. The
    state may be updated in place; phase 1 leaves it alone.
    """

    opcode: ClassVar[int] = 11
    phase: int = _field("u8")
    state: int = _field("u32")
    state_out: int = _field("u32")

    def reads(self) -> tuple[Range, ...]:
        gates, recurrent = self._short(self.gates, 3), self._short(self.recurrent, 3)
        return gates, recurrent, self._short(self.state), self._constants(2)

    def writes(self) -> tuple[Range, ...]:
        return (self._result(),) if self.phase == RESET else (self._short(self.state_out), self._result())


@dataclass(frozen=True, slots=True, kw_only=True)
class Host(Instruction):
    """Segment `model` of the program in float, by onnxruntime (`nnac.segment`), on whole tensors wherever they lie.

    Per operand and per result: memory, address, elements, the bits of the float32 scale, zero point, bits. `macs` and
    `elements` say what the segment costs; they have no influence on values.
    """

    opcode: ClassVar[int] = 13
    model: int = _field("u16")
    macs: int = _field("u64")
    elements: int = _field("u64")
    source_spaces: tuple[int, ...] = _field("u8", 0)
    sources: tuple[int, ...] = _field("u32", 0)
    source_counts: tuple[int, ...] = _field("u32", 0)
    source_scales: tuple[int, ...] = _field("u32", 0)
    source_zeros: tuple[int, ...] = _field("i16", 0)
    source_bits: tuple[int, ...] = _field("u8", 0)
    target_spaces: tuple[int, ...] = _field("u8", 0)
    targets: tuple[int, ...] = _field("u32", 0)
    target_counts: tuple[int, ...] = _field("u32", 0)
    target_scales: tuple[int, ...] = _field("u32", 0)
    target_zeros: tuple[int, ...] = _field("i16", 0)
    target_bits: tuple[int, ...] = _field("u8", 0)

    @property
    def engine(self) -> Engine:
        return Engine.HOST

    @property
    def operations(self) -> int:
        """Float operations: two per multiply-accumulate, one per other element."""
        return 2 * self.macs + self.elements

    @property
    def nbytes(self) -> int:
        """Bytes that go to the host and come back."""
        return sum(r.end - r.start for r in (*self.reads(), *self.writes()))

    def quants(self) -> tuple[list[Quant], list[Quant]]:
        """Return the quantizations of operands and results."""
        taken = zip(self.source_scales, self.source_zeros, self.source_bits, strict=True)
        made = zip(self.target_scales, self.target_zeros, self.target_bits, strict=True)
        return [Quant(scale_of(s), z, b) for s, z, b in taken], [Quant(scale_of(s), z, b) for s, z, b in made]

    def reads(self) -> tuple[Range, ...]:
        return _whole(self.source_spaces, self.sources, self.source_counts, self.source_bits)

    def writes(self) -> tuple[Range, ...]:
        return _whole(self.target_spaces, self.targets, self.target_counts, self.target_bits)


AnyInstruction = Load | Copy | Fill | Conv | Pool | Sum | Mul | Magnitude | Lookup | Softmax | Lstm | Gru | Host
OPCODES: dict[int, type[AnyInstruction]] = {
    kind.opcode: kind for kind in (Load, Copy, Fill, Conv, Pool, Sum, Mul, Magnitude, Lookup, Softmax, Lstm, Gru, Host)
}


def copy_engine(source: Space, target: Space) -> Engine:
    """Return who copies: the vector unit inside the scratchpad, else a DMA by direction."""
    if target != Space.SRAM:
        return Engine.DMA_OUT
    return Engine.VECTOR if source == Space.SRAM else Engine.DMA_IN


def volume(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a shape."""
    count = 1
    for side in shape:
        count *= side
    return count


def _row(start: int, count: int, bits: int) -> Range:
    """Return the scratchpad bytes of `count` elements behind each other."""
    return Range(Space.SRAM, start, start + count * bits // 8)


def _whole(
    spaces: tuple[int, ...], addresses: tuple[int, ...], counts: tuple[int, ...], bits: tuple[int, ...]
) -> tuple[Range, ...]:
    """Return the bytes of whole tensors."""
    tensors = zip(spaces, addresses, counts, bits, strict=True)
    return tuple(Range(Space(space), start, start + count * width // 8) for space, start, count, width in tensors)


def scale_bits(scale: float) -> int:
    """Return the bits of a scale, which is a float32 number."""
    return int(struct.unpack("<I", struct.pack("<f", scale))[0])


def scale_of(bits: int) -> float:
    """Return the scale that has these bits as float32."""
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def strided(space: Space, start: int, shape: tuple[int, ...], strides: tuple[int, ...], width: int = 1) -> Range:
    """Return the smallest range that holds every byte of a strided view of elements of `width` bytes."""
    spans = [(side - 1) * stride for side, stride in zip(shape, strides, strict=True)]
    return Range(space, start + sum(min(s, 0) for s in spans), start + sum(max(s, 0) for s in spans) + width)


@dataclass(frozen=True, slots=True)
class Loop:
    """Instructions [start, start + body * count) are `count` rounds of `body` instructions.

    A round differs from the one before it by a constant step per field (addresses, and the counts in wait tokens). The
    byte stream holds the first round and the steps; `decode` unrolls it, so that readers see what is executed.
    """

    start: int
    body: int
    count: int
