"""Instructions of the MAC array: convolutions and products of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnac.isa.instruction import Engine, Instruction, Range, Space, address, entry, row


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
    source: int = address()
    in_h: int = entry("u32")
    in_w: int = entry("u32")
    in_c: int = entry("u32")
    target: int = address()
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
    weights: int = address()
    params: int = address()
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
class MatMul(Instruction):
    """Product of two matrices of activations, (rows, depth) by (depth, columns), requantized as a whole.

    `turned`: the right matrix lies as (columns, depth). Its values stream into the array like weights. Sums have 8 more
    bits for each operand of 16 bits (`numerics.requantize_wide`).
    """

    opcode: ClassVar[int] = 16
    source: int = address()
    right: int = address()
    target: int = address()
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
