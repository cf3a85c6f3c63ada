"""Instructions that update recurrent cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnac.isa.instruction import Engine, Instruction, Range, Space, address, entry
from nnac.numerics import INTERPOLATION_ENTRIES

WHOLE, RESET, FINISH = range(3)
"""Phases of a GRU's step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell(Instruction):
    """Base of the updates of recurrent cells: one step of `hidden` units for each of `batch` rows, row-major.

    Gates and their recurrent parts are int16 in Q3.12, beside each other in ONNX order; tables of 513 int16 knots lie
    behind each other in the weight buffer. `clip` bounds the pre-activations (32767: the whole range). The target is
    int8 or, with `out_bits` 16, int16.
    """

    gates: int = address()
    recurrent: int = address()
    target: int = address()
    batch: int = entry("u32")
    hidden: int = entry("u32")
    tables: int = address()
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
    """One step of LSTM cells (`nnac.cells.lstm_cell`): gates i, o, f, c; cells int16 in steps of 2**-cell_bits.

    The tables are f, g, h, then, with `peepholes`, int16 (3, hidden) of i, o, f. `coupled`: f is one minus i. The cell
    may be updated in place.
    """

    opcode: ClassVar[int] = 10
    cell: int = address()
    cell_out: int = address()
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
    """One step of GRU cells (`nnac.cells.gru_cell`): gates z, r, h; tables f, g; state int16 in Q0.15.

    Phase 0 is a whole step with the reset behind the recurrent weights (ONNX, linear_before_reset = 1). With the reset
    before them, phase 1 writes reset times state to the target, for the weights to see, and phase 2 ends the step. The
    state may be updated in place; phase 1 leaves it alone.
    """

    opcode: ClassVar[int] = 11
    phase: int = entry("u8")
    state: int = address()
    state_out: int = address()

    def reads(self) -> tuple[Range, ...]:
        gates, recurrent = self._short(self.gates, 3), self._short(self.recurrent, 3)
        return gates, recurrent, self._short(self.state), self._constants(2)

    def writes(self) -> tuple[Range, ...]:
        return (self._result(),) if self.phase == RESET else (self._short(self.state_out), self._result())
