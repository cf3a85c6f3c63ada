"""Instructions that bring bytes from one memory to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnac.isa.instruction import Engine, Instruction, Range, Space, address, entry, strided

AXES = 6
"""Axes of a strided copy."""
PACKERS = ("raw", "fixed", "bitmap", "runs", "entropy")
"""How a Load expands its bytes, by the number in `Load.packer`; `nnac.weights.packers` says what each one means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Instruction):
    """Constants from `space` into the weight buffer, expanded by `packer` (an index into `PACKERS`).

    `table` are the bytes in `space` that the packer's streams of this tensor share.
    """

    opcode: ClassVar[int] = 1
    space: int = entry("u8")
    source: int = address()
    source_bytes: int = entry("u32")
    target: int = address()
    target_bytes: int = entry("u32")
    packer: int = entry("u8")
    table: int = address(default=0)
    table_bytes: int = entry("u32", default=0)

    @property
    def engine(self) -> Engine:
        return Engine.DECODER

    @property
    def content(self) -> tuple[object, ...]:
        """What decides which bytes it brings: Loads that are alike in this bring the same."""
        return (*self.reads(), self.packer, self.target_bytes)

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
    source: int = address()
    source_strides: tuple[int, ...] = entry("i32", AXES)
    target_space: int = entry("u8")
    target: int = address()
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
    target: int = address()
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


def copy_engine(source: Space, target: Space) -> Engine:
    """Return who copies: the vector unit inside the scratchpad, else a DMA by direction."""
    if target != Space.SRAM:
        return Engine.DMA_OUT
    return Engine.VECTOR if source == Space.SRAM else Engine.DMA_IN
