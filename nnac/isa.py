"""The instruction set: frozen dataclasses of plain integers, their fields' widths, their engines and address ranges.

What an instruction *means* lives in its readers (emulator, timing, disassembler). Compute engines read activations
from the scratchpad (`sram`) and constants from the weight buffer (`weights`); `Copy` and `Load` move bytes between
memories. Engines take their instructions in order and run beside each other; `waits` holds, per engine, how many of
its instructions must have finished before this one may start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from nnac.instruction import CODES, Engine, Instruction, Range, Space, entry, row, strided, volume
from nnac.isa_elementwise import LOOPS, RELATIONS, Div, Elementwise, Extreme, Magnitude, Mul, Select, Sum
from nnac.isa_host import Host, scale_bits, scale_of
from nnac.numerics import INTERPOLATION_ENTRIES

__all__ = [
    "AXES",
    "CODES",
    "FINISH",
    "LOOPS",
    "OPCODES",
    "PACKERS",
    "RELATIONS",
    "RESET",
    "WHOLE",
    "AnyInstruction",
    "Cell",
    "Conv",
    "Copy",
    "Div",
    "Elementwise",
    "Engine",
    "Extreme",
    "Fill",
    "Gru",
    "Host",
    "Instruction",
    "Load",
    "Lookup",
    "Loop",
    "Lstm",
    "Magnitude",
    "MatMul",
    "Mul",
    "Norm",
    "Pool",
    "Range",
    "Select",
    "Softmax",
    "Space",
    "Sum",
    "copy_engine",
    "scale_bits",
    "scale_of",
    "strided",
    "volume",
]

AXES = 6
"""Axes of a strided copy."""
PACKERS = ("raw", "fixed", "bitmap", "runs", "entropy")
"""How a Load expands its bytes, by the number in `Load.packer`; `nnac.packers` says what each one means."""
WHOLE, RESET, FINISH = range(3)
"""Phases of a GRU's step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Instruction):
    """Constants from `space` into the weight buffer, expanded by `packer` (an index into `PACKERS`).

    `table` are the bytes in `space` that the packer's streams of this tensor share.
    """

    opcode: ClassVar[int] = 1
    space: int = entry("u8")
    source: int = entry("u32")
    source_bytes: int = entry("u32")
    target: int = entry("u32")
    target_bytes: int = entry("u32")
    packer: int = entry("u8")
    table: int = entry("u32", default=0)
    table_bytes: int = entry("u32", default=0)

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
    source_space: int = entry("u8")
    source: int = entry("u32")
    source_strides: tuple[int, ...] = entry("i32", AXES)
    target_space: int = entry("u8")
    target: int = entry("u32")
    target_strides: tuple[int, ...] = entry("i32", AXES)
    shape: tuple[int, ...] = entry("u32", AXES)
    width: int = entry("u8", default=1)

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
    space: int = entry("u8")
    target: int = entry("u32")
    count: int = entry("u32")
    value: int = entry("i16")
    width: int = entry("u8", default=1)

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
    source: int = entry("u32")
    in_h: int = entry("u32")
    in_w: int = entry("u32")
    in_c: int = entry("u32")
    target: int = entry("u32")
    out_h: int = entry("u32")
    out_w: int = entry("u32")
    out_c: int = entry("u32")
    pitch: int = entry("u32")
    channel: int = entry("u32")
    channels: int = entry("u32")
    kernel_h: int = entry("u16")
    kernel_w: int = entry("u16")
    stride_h: int = entry("u16")
    stride_w: int = entry("u16")
    dilation_h: int = entry("u16")
    dilation_w: int = entry("u16")
    pad_top: int = entry("i32")
    pad_left: int = entry("i32")
    groups: int = entry("u32")
    weights: int = entry("u32")
    params: int = entry("u32")
    taps: int = entry("u32", default=0)
    in_zero: int = entry("i16")
    out_zero: int = entry("i16")
    low: int = entry("i16")
    high: int = entry("i16")
    in_bits: int = entry("u8", default=8)
    out_bits: int = entry("u8", default=8)

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
            row(self.source, self.in_h * self.in_w * self.in_c, self.in_bits),
            Range(Space.WEIGHTS, self.weights, self.weights + self.out_c * taps),
            Range(Space.WEIGHTS, self.params, self.params + 9 * self.out_c),
        )

    def writes(self) -> tuple[Range, ...]:
        return (row(self.target, (self.out_h * self.out_w - 1) * self.pitch + self.out_c, self.out_bits),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool(Instruction):
    """Max (kind 0) or average (kind 1) over windows of a stripe (in_h, in_w, channels).

    An average divides by the number of taps inside the stripe, or, with `count_pads`, by those inside the padded area
    that begins at the first window and has `padded_h` x `padded_w` places.
    """

    opcode: ClassVar[int] = 5
    kind: int = entry("u8")
    source: int = entry("u32")
    in_h: int = entry("u32")
    in_w: int = entry("u32")
    channels: int = entry("u32")
    target: int = entry("u32")
    out_h: int = entry("u32")
    out_w: int = entry("u32")
    kernel_h: int = entry("u32")
    kernel_w: int = entry("u32")
    stride_h: int = entry("u32")
    stride_w: int = entry("u32")
    dilation_h: int = entry("u32")
    dilation_w: int = entry("u32")
    pad_top: int = entry("i32")
    pad_left: int = entry("i32")
    count_pads: int = entry("u8")
    padded_h: int = entry("u32")
    padded_w: int = entry("u32")
    in_zero: int = entry("i16")
    out_zero: int = entry("i16")
    multiplier: int = entry("u32")
    shift: int = entry("u8")
    low: int = entry("i16")
    high: int = entry("i16")
    in_bits: int = entry("u8", default=8)
    out_bits: int = entry("u8", default=8)

    @property
    def engine(self) -> Engine:
        return Engine.VECTOR

    def reads(self) -> tuple[Range, ...]:
        return (row(self.source, self.in_h * self.in_w * self.channels, self.in_bits),)

    def writes(self) -> tuple[Range, ...]:
        return (row(self.target, self.out_h * self.out_w * self.channels, self.out_bits),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup(Instruction):
    """Every element through a table in the weight buffer; element i uses table i % tables.

    An int8 input takes entry x + 128 of 256, which have the width of the output. An int16 input is interpolated between
    513 int16 knots (`numerics.interpolate`).
    """

    opcode: ClassVar[int] = 8
    source: int = entry("u32")
    target: int = entry("u32")
    count: int = entry("u32")
    table: int = entry("u32")
    tables: int = entry("u32")
    shift: int = entry("u8", default=0)
    out_zero: int = entry("i16", default=0)
    in_bits: int = entry("u8", default=8)
    out_bits: int = entry("u8", default=8)

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
        return (row(self.source, self.count, self.in_bits), Range(Space.WEIGHTS, self.table, self.table + size))

    def writes(self) -> tuple[Range, ...]:
        return (row(self.target, self.count, self.out_bits),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(Instruction):
    """Softmax of each row; the weight buffer holds 256 int32 exponentials, or 512 for an input of 16 bits.

    Both are those of `numerics.softmax_table`.
    """

    opcode: ClassVar[int] = 9
    source: int = entry("u32")
    target: int = entry("u32")
    rows: int = entry("u32")
    length: int = entry("u32")
    table: int = entry("u32")
    multiplier: int = entry("u32")
    shift: int = entry("u8")
    out_zero: int = entry("i16")
    in_bits: int = entry("u8", default=8)
    out_bits: int = entry("u8", default=8)

    @property
    def engine(self) -> Engine:
        return Engine.VECTOR

    @property
    def entries(self) -> int:
        """Entries of the table."""
        return 256 if self.in_bits == 8 else 512

    def reads(self) -> tuple[Range, ...]:
        return (
            row(self.source, self.rows * self.length, self.in_bits),
            Range(Space.WEIGHTS, self.table, self.table + 4 * self.entries),
        )

    def writes(self) -> tuple[Range, ...]:
        return (row(self.target, self.rows * self.length, self.out_bits),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell(Instruction):
    """Base of the updates of recurrent cells: one step of `hidden` units for each of `batch` rows, row-major.

    Gates and their recurrent parts are int16 in Q3.12, beside each other in ONNX order; tables of 513 int16 knots lie
    behind each other in the weight buffer. `clip` bounds the pre-activations (32767: the whole range). The target is
    int8 or, with `out_bits` 16, int16.
    """

    gates: int = entry("u32")
    recurrent: int = entry("u32")
    target: int = entry("u32")
    batch: int = entry("u32")
    hidden: int = entry("u32")
    tables: int = entry("u32")
    clip: int = entry("i16")
    multiplier: int = entry("u32")
    shift: int = entry("u8")
    out_zero: int = entry("i16")
    out_bits: int = entry("u8")

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
    cell: int = entry("u32")
    cell_out: int = entry("u32")
    cell_bits: int = entry("u8")
    coupled: int = entry("u8")
    peepholes: int = entry("u8")
    peephole_shift: int = entry("u8")

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
    phase: int = entry("u8")
    state: int = entry("u32")
    state_out: int = entry("u32")

    def reads(self) -> tuple[Range, ...]:
        gates, recurrent = self._short(self.gates, 3), self._short(self.recurrent, 3)
        return gates, recurrent, self._short(self.state), self._constants(2)

    def writes(self) -> tuple[Range, ...]:
        return (self._result(),) if self.phase == RESET else (self._short(self.state_out), self._result())


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMul(Instruction):
    """Product of two matrices of activations, (rows, depth) by (depth, columns), requantized as a whole.

    `turned`: the right matrix lies as (columns, depth). Its values stream into the array like weights. Sums have 8 more
    bits for each operand of 16 bits (`numerics.requantize_wide`).
    """

    opcode: ClassVar[int] = 16
    source: int = entry("u32")
    right: int = entry("u32")
    target: int = entry("u32")
    rows: int = entry("u32")
    columns: int = entry("u32")
    depth: int = entry("u32")
    turned: int = entry("u8")
    in_zero: int = entry("i16")
    right_zero: int = entry("i16")
    out_zero: int = entry("i16")
    multiplier: int = entry("u32")
    shift: int = entry("u8")
    low: int = entry("i16")
    high: int = entry("i16")
    in_bits: int = entry("u8", default=8)
    right_bits: int = entry("u8", default=8)
    out_bits: int = entry("u8", default=8)

    @property
    def engine(self) -> Engine:
        return Engine.MAC

    @property
    def macs(self) -> int:
        return self.rows * self.columns * self.depth

    @property
    def wide(self) -> int:
        """How many operands have 16 bits."""
        return (self.in_bits == 16) + (self.right_bits == 16)

    def reads(self) -> tuple[Range, ...]:
        return (
            row(self.source, self.rows * self.depth, self.in_bits),
            row(self.right, self.depth * self.columns, self.right_bits),
        )

    def writes(self) -> tuple[Range, ...]:
        return (row(self.target, self.rows * self.columns, self.out_bits),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm(Instruction):
    """Normalisation of each of `groups` interleaved groups in each of `rows` (`norms.normalize`).

    A row is (positions, groups, depth); a group has positions * depth values. Gains and offsets, int32 and `channels`
    each, lie behind each other in the weight buffer; value i of a row takes number i % channels. Epsilon is shifted
    left by `epsilon_shift`.
    """

    opcode: ClassVar[int] = 17
    source: int = entry("u32")
    target: int = entry("u32")
    rows: int = entry("u32")
    positions: int = entry("u32")
    groups: int = entry("u32")
    depth: int = entry("u32")
    channels: int = entry("u32")
    params: int = entry("u32")
    centered: int = entry("u8")
    epsilon: int = entry("u32")
    epsilon_shift: int = entry("u8")
    gain_shift: int = entry("u8")
    offset_shift: int = entry("u8")
    in_zero: int = entry("i16")
    out_zero: int = entry("i16")
    low: int = entry("i16")
    high: int = entry("i16")
    in_bits: int = entry("u8", default=8)
    out_bits: int = entry("u8", default=8)

    @property
    def engine(self) -> Engine:
        return Engine.VECTOR

    @property
    def count(self) -> int:
        """Values of one row."""
        return self.positions * self.groups * self.depth

    def reads(self) -> tuple[Range, ...]:
        constants = Range(Space.WEIGHTS, self.params, self.params + 8 * self.channels)
        return row(self.source, self.rows * self.count, self.in_bits), constants

    def writes(self) -> tuple[Range, ...]:
        return (row(self.target, self.rows * self.count, self.out_bits),)


AnyInstruction = (
    Load
    | Copy
    | Fill
    | Conv
    | Pool
    | Sum
    | Mul
    | Magnitude
    | Lookup
    | Softmax
    | Lstm
    | Gru
    | Div
    | Extreme
    | Select
    | MatMul
    | Norm
    | Host
)
OPCODES: dict[int, type[AnyInstruction]] = {kind.opcode: kind for kind in get_args(AnyInstruction)}


def copy_engine(source: Space, target: Space) -> Engine:
    """Return who copies: the vector unit inside the scratchpad, else a DMA by direction."""
    if target != Space.SRAM:
        return Engine.DMA_OUT
    return Engine.VECTOR if source == Space.SRAM else Engine.DMA_IN


@dataclass(frozen=True, slots=True)
class Loop:
    """Instructions [start, start + body * count) are `count` rounds of `body` instructions.

    A round differs from the one before it by a constant step per field (addresses, and the counts in wait tokens). The
    byte stream holds the first round and the steps; `decode` unrolls it, so that readers see what is executed.
    """

    start: int
    body: int
    count: int
