"""Stretches: instructions behind each other that one kernel call executes (`nnac.kernels.stretch`).

Loads, and dense layers of few int8 rows: what a step of a recurrent net consists of but for its cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np

from nnac import isa
from nnac.isa import AnyInstruction, Space
from nnac.numerics import Rounding
from nnac.program import Program
from nnac.types import Array

FEW = 16
"""Rows from which packing the weights pays (`nnac.kernels.conv`)."""
Plan = tuple[list[AnyInstruction | Array], Array]
"""What to execute, in order: single instructions, or the lines of a stretch; and the weights that lines name."""
Unpack = Callable[[isa.Load], Array]


def plan(program: Program, unpack: Unpack) -> Plan:
    """Return how to execute a program; `unpack` gives the weights of a packed load, int8."""
    decoded = _Decoded(unpack)
    steps = list(_steps(program, decoded))
    return steps, np.concatenate([np.zeros(0, np.int8), *decoded.parts])


class _Decoded:
    """Packed weights, each once, behind each other."""

    def __init__(self, unpack: Unpack) -> None:
        self.unpack, self.size, self.parts = unpack, 0, list[Array]()
        self.places: dict[tuple[int, ...], int] = {}

    def place(self, i: isa.Load) -> int:
        """Return where the weights of a load begin."""
        key = (i.packer, i.table, i.source, i.target_bytes)
        if key not in self.places:
            self.places[key] = self.size
            self.parts.append(self.unpack(i))
            self.size += i.target_bytes
        return self.places[key]


def _steps(program: Program, decoded: _Decoded) -> Iterator[AnyInstruction | Array]:
    for together, run in groupby(program.instructions, lambda i: _fits(program, i)):
        if together:
            yield np.array([_line(i, decoded) for i in run], np.int64)
        else:
            yield from run


def _fits(program: Program, i: AnyInstruction) -> bool:
    """Tell whether a line can say what an instruction does."""
    from nnac.kernels.stretch import DEEPEST

    if isinstance(i, isa.Load):
        return Space(i.space) == program.constants_space
    if not isinstance(i, isa.Conv) or i.in_bits != 8 or program.target.arithmetic.mode == Rounding.ONNX:
        return False
    plain = (i.kernel_h, i.kernel_w, i.stride_h, i.pad_top, i.pad_left, i.groups, i.in_w, i.out_w)
    return plain == (1, 1, 1, 0, 0, 1, 1, 1) and i.out_h == i.in_h < FEW and i.in_c <= DEEPEST


def _line(i: AnyInstruction, decoded: _Decoded) -> list[int]:
    from nnac.kernels import stretch

    if isinstance(i, isa.Load):
        source = decoded.place(i) if i.packer else i.source
        line = [stretch.LOAD, source, i.target_bytes, i.target, int(i.packer > 0)]
    else:
        assert isinstance(i, isa.Conv)
        sides, places = (i.out_h, i.in_c, i.out_c), (i.weights, i.params, i.target, i.pitch)
        line = [stretch.DENSE, i.source, *sides, *places, i.out_bits // 8, i.in_zero, i.out_zero, i.low, i.high]
    return line + [0] * (stretch.FIELDS - len(line))
