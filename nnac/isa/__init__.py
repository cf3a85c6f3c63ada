"""The instruction set: frozen dataclasses of plain integers, their fields' widths, their engines and address ranges.

What an instruction *means* lives in its readers (emulator, timing, disassembler). Compute engines read activations
from the scratchpad (`sram`) and constants from the weight buffer (`weights`); `Copy` and `Load` move bytes between
memories. Engines take their instructions in order and run beside each other; `waits` holds, per engine, how many of
its instructions must have finished before this one may start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from nnac.isa.cells import FINISH, RESET, WHOLE, Cell, Gru, Lstm
from nnac.isa.elementwise import LOOPS, RELATIONS, Div, Elementwise, Extreme, Magnitude, Mul, Select, Sum
from nnac.isa.host import Host, scale_bits, scale_of
from nnac.isa.instruction import CODES, Engine, Instruction, Range, Space, strided, volume
from nnac.isa.mac import Conv, MatMul
from nnac.isa.transfer import AXES, PACKERS, Copy, Fill, Load, copy_engine
from nnac.isa.vector import Lookup, Norm, Pool, Softmax

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


@dataclass(frozen=True, slots=True)
class Loop:
    """Instructions [start, start + body * count) are `count` rounds of `body` instructions.

    A round differs from the one before it by a constant step per field (addresses, and the counts in wait tokens). The
    byte stream holds the first round and the steps; `decode` unrolls it, so that readers see what is executed.
    """

    start: int
    body: int
    count: int
