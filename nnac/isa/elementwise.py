"""Instructions that work entry by entry on operands that broadcast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnac.isa.instruction import Engine, Instruction, Range, Space, address, entry, row, strided, volume

LOOPS = 4
"""Axes of an elementwise operand."""
RELATIONS = ("less", "less or equal", "equal")
"""How `Select` compares, by the number in `Select.relation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise(Instruction):
    """Base of instructions on broadcasting operands: a loop nest, and per operand its bits and LOOPS byte strides.

    A stride of 0 broadcasts.
    """

    shape: tuple[int, ...] = entry("u32", LOOPS)
    sources: tuple[int, ...] = address(0)
    strides: tuple[int, ...] = entry("i32", 0)
    zeros: tuple[int, ...] = entry("i16", 0)
    bits: tuple[int, ...] = entry("u8", 0)
    target: int = address()
    shift: int = entry("u8")
    out_zero: int = entry("i16")
    low: int = entry("i16")
    high: int = entry("i16")
    out_bits: int = entry("u8", default=8)

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
        return (row(self.target, volume(self.shape), self.out_bits),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum(Elementwise):
    """sum_i multiplier_i * (x_i - zero_i), one rounding shift."""

    opcode: ClassVar[int] = 6
    multipliers: tuple[int, ...] = entry("i32", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mul(Elementwise):
    """(x_0 - zero_0) * (x_1 - zero_1), requantized."""

    opcode: ClassVar[int] = 7
    multiplier: int = entry("u32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude(Elementwise):
    """sqrt(offset + sum_i (x_i - zero_i)**2), requantized (`numerics.magnitude`); operands on one scale."""

    opcode: ClassVar[int] = 12
    offset: int = entry("u32")
    multiplier: int = entry("u32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Div(Elementwise):
    """(x_0 - zero_0) * multiplier / (x_1 - zero_1), exact and rounded once (`norms.quotient`)."""

    opcode: ClassVar[int] = 13
    multiplier: int = entry("u32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extreme(Elementwise):
    """The largest, or with `least` the smallest, of multiplier_i * (x_i - zero_i), one rounding shift."""

    opcode: ClassVar[int] = 14
    least: int = entry("u8")
    multipliers: tuple[int, ...] = entry("i32", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Select(Elementwise):
    """x_2 where x_0 and x_1 compare as `relation` says, else x_3; zero points, multipliers and the shift as in a sum.

    All four are taken times their multipliers; the shift and its rounding are for what is chosen only.
    """

    opcode: ClassVar[int] = 15
    relation: int = entry("u8")
    multipliers: tuple[int, ...] = entry("i32", 0)
