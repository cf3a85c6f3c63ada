"""The instruction of the processor beside the machine: a segment of the model in float."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from nnac.isa.instruction import Engine, Instruction, Range, Space, address, entry
from nnac.types import Quant


@dataclass(frozen=True, slots=True, kw_only=True)
class Host(Instruction):
    """Segment `model` of the program in float, by onnxruntime (`nnac.segment`), on whole tensors wherever they lie.

    Per operand and per result: memory, address, elements, the bits of the float32 scale, zero point, bits. `macs` and
    `elements` say what the segment costs; they have no influence on values.
    """

    opcode: ClassVar[int] = 18
    model: int = entry("u16")
    macs: int = entry("u64")
    elements: int = entry("u64")
    source_spaces: tuple[int, ...] = entry("u8", 0)
    sources: tuple[int, ...] = address(0)
    source_counts: tuple[int, ...] = entry("u32", 0)
    source_scales: tuple[int, ...] = entry("u32", 0)
    source_zeros: tuple[int, ...] = entry("i16", 0)
    source_bits: tuple[int, ...] = entry("u8", 0)
    target_spaces: tuple[int, ...] = entry("u8", 0)
    targets: tuple[int, ...] = address(0)
    target_counts: tuple[int, ...] = entry("u32", 0)
    target_scales: tuple[int, ...] = entry("u32", 0)
    target_zeros: tuple[int, ...] = entry("i16", 0)
    target_bits: tuple[int, ...] = entry("u8", 0)

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
