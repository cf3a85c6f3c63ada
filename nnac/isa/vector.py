"""Instructions of the vector unit on one operand: pools, tables, softmax, norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnac.isa.instruction import Engine, Instruction, Range, Space, address, entry, row
from nnac.numerics import INTERPOLATION_ENTRIES, OCTAVE_ENTRIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool(Instruction):
    """Max (kind 0) or average (kind 1) over windows of a stripe (in_h, in_w, channels).

    An average divides by the number of taps inside the stripe, or, with `count_pads`, by those inside the padded area
    that begins at the first window and has `padded_h` x `padded_w` places.

    Attributes:
        over: on machines of rounding ONNX the bits of the float32 scale of the output where the average is that of
            `float32.window`, else 0; the multiplier is then that of the input.
    """

    opcode: ClassVar[int] = 5
    kind: int = entry("u8")
    source: int = address()
    in_h: int = entry("u32")
    in_w: int = entry("u32")
    channels: int = entry("u32")
    target: int = address()
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
    over: int = entry("u32", default=0)

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
    513 int16 knots (`numerics.interpolate`), or between 385 by octaves (`numerics.interpolate_octaves`).
    """

    opcode: ClassVar[int] = 8
    source: int = address()
    target: int = address()
    count: int = entry("u32")
    table: int = address()
    tables: int = entry("u32")
    shift: int = entry("u8", default=0)
    out_zero: int = entry("i16", default=0)
    octaves: int = entry("u8", default=0)
    in_bits: int = entry("u8", default=8)
    out_bits: int = entry("u8", default=8)

    @property
    def engine(self) -> Engine:
        return Engine.VECTOR

    @property
    def entries(self) -> int:
        """Entries of one table."""
        if self.in_bits == 8:
            return 256
        return OCTAVE_ENTRIES if self.octaves else INTERPOLATION_ENTRIES

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
    source: int = address()
    target: int = address()
    rows: int = entry("u32")
    length: int = entry("u32")
    table: int = address()
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
class Norm(Instruction):
    """Normalisation of each of `groups` interleaved groups in each of `rows` (`norms.normalize`).

    A row is (positions, groups, depth); a group has positions * depth values. Gains and offsets, int32 and `channels`
    each, lie behind each other in the weight buffer; value i of a row takes number i % channels. Epsilon is shifted
    left by `epsilon_shift`.
    """

    opcode: ClassVar[int] = 17
    source: int = address()
    target: int = address()
    rows: int = entry("u32")
    positions: int = entry("u32")
    groups: int = entry("u32")
    depth: int = entry("u32")
    channels: int = entry("u32")
    params: int = address()
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
