"""What the fence checks of a program's instructions, in one walk with the weight buffer as the Loads fill it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nnac import isa, segment
from nnac.array import NO_INT16, taken_folds
from nnac.contracts import SHIFT_MAX, field_problem, rule_problem, scratch_of, work_of
from nnac.errors import ProgramError
from nnac.hazards import dependencies, known_before
from nnac.isa import AnyInstruction, Engine, Range, Space
from nnac.norms import GAIN_BITS
from nnac.numerics import SOFTMAX_WIDE_ONE, WIDE_MULTIPLIER_LIMIT
from nnac.program import Limits, Program
from nnac.types import Array

CELL_OPERAND = 2
"""Which of the ranges that a recurrent cell reads is its state; hidden values and new state are apart by contract."""


class Stream:
    """One walk over the instructions, with the weight buffer as the Loads fill it."""

    def __init__(self, program: Program, limits: Limits, runs: bool) -> None:
        self.program, self.limits = program, limits
        self.looks = runs or program.target.mac.zero_skip != "none"
        """At values: an array that skips zero weights takes as long as they say."""
        self.work = 0
        self.buffer = np.zeros(program.used[Space.WEIGHTS], np.uint8)
        self.filled = np.zeros(self.buffer.size, np.bool_)
        self.unpacked: dict[tuple[object, ...], Array] = {}
        self.seen: set[tuple[object, ...]] = set()
        self.sure = True
        """All ranges so far were legal, so that order and the weight buffer's contents can be told."""

    def problems(self) -> Iterator[str]:
        for index, instruction in enumerate(self.program.instructions):
            problem = self._problem(instruction)
            if problem is not None:
                yield f"{_where(index, instruction)}: {problem}"
            if self.work > self.limits.work:
                yield f"instruction {index}: more work than {self.limits.work:,} elements and products up to here"
                return
        if self.sure:
            yield from list(_wait_problems(self.program.instructions)) or _order_problems(self.program.instructions)

    def _problem(self, i: AnyInstruction) -> str | None:
        problem = field_problem(i) or rule_problem(i) or self._range_problem(i)
        if problem is not None:
            self.sure = False
            return problem
        self.work += work_of(i)
        if self.work > self.limits.work or not self.sure:
            return None
        return self._content_problem(i)

    def _range_problem(self, i: AnyInstruction) -> str | None:
        """Return what is wrong with the bytes that a legal instruction touches."""
        reads, writes = i.reads(), i.writes()
        for way, ranges in (("reads", reads), ("writes", writes)):
            for r in ranges:
                if r.start < 0 or r.end > self.program.used.get(r.space, 0):
                    return f"{way} {_show(r)}, used {self.program.used.get(r.space, 0):#x} bytes"
        return self._constants_problem(i, reads, writes) or _overlap_problem(i, reads, writes)

    def _constants_problem(self, i: AnyInstruction, reads: Sequence[Range], writes: Sequence[Range]) -> str | None:
        space, size = self.program.constants_space, self.program.constants.size
        for r in writes:
            if r.space == space and r.start < size:
                return f"writes {_show(r)}, where the constants lie"
        for r in reads if isinstance(i, isa.Load) else ():
            if r.space != space or r.end > size:
                return f"loads {_show(r)}, constants end at {size:#x} of {space.label}"
        return None

    # -- the weight buffer's contents ------------------------------------------------------------------------------

    def _content_problem(self, i: AnyInstruction) -> str | None:
        """Return what is wrong with the constants that the instruction finds in the weight buffer."""
        if isinstance(i, isa.Load):
            return self._fill(i)
        if isinstance(i, isa.Host):
            return self._host_problem(i)
        if isinstance(i, isa.Conv | isa.MatMul) and (problem := self._array_problem(i)):
            return problem
        ranges = tuple(r for r in i.reads() if r.space == Space.WEIGHTS)
        key = (type(i), ranges, (i.in_bits, i.taps, i.groups) if isinstance(i, isa.Conv) else ())
        if not ranges or key in self.seen:  # stripes share their constants: one look is enough
            return None
        self.seen.add(key)
        return self._unfilled(i) or self._values_problem(i)

    def _array_problem(self, i: isa.Conv | isa.MatMul) -> str | None:
        """Return what keeps an instruction from the array, or from the emulator's memory, whatever its constants."""
        if (i.wide if isinstance(i, isa.MatMul) else i.in_bits == 16) and not self.program.target.mac.int16:
            return NO_INT16
        scratch = scratch_of(i) if isinstance(i, isa.Conv) else 0
        if scratch > self.limits.memory_bytes:
            return f"needs {scratch:,} bytes of working memory, allowed {self.limits.memory_bytes:,}"
        return None

    def _fill(self, i: isa.Load) -> str | None:
        """Replay a load; return what is wrong with its bytes."""
        self.filled[i.target : i.target + i.target_bytes] = True
        self.seen.clear()
        if i.packer and not getattr(self.program.target.decoder, isa.PACKERS[i.packer]):
            return f"the target's decoder does not know packer {isa.PACKERS[i.packer]!r}"
        if not self.looks:
            return None
        data = self.program.constants[i.source : i.source + i.source_bytes]
        if i.packer:
            try:
                data = self._decoded(i, data)
            except ProgramError as error:
                return str(error)
        self.buffer[i.target : i.target + i.target_bytes] = data
        return None

    def _decoded(self, i: isa.Load, data: Array) -> Array:
        """Return the bytes that a packed load writes; decoding the same bytes twice costs once."""
        from nnac.weights.packers import unpack

        if i.content not in self.unpacked:
            out = np.empty(i.target_bytes, np.int8)
            table = self.program.constants[i.table : i.table + i.table_bytes].tobytes()
            unpack(i.packer, table, np.ascontiguousarray(data), out)
            self.unpacked[i.content] = out.view(np.uint8)
        return self.unpacked[i.content]

    def _unfilled(self, i: AnyInstruction) -> str | None:
        for r in i.reads():
            if r.space == Space.WEIGHTS and not self.filled[r.start : r.end].all():
                return f"reads {_show(r)}, which no Load has filled"
        return None

    def _host_problem(self, i: isa.Host) -> str | None:
        """Return what is wrong with a call: the segment exists, and has these tensors and this cost."""
        if i.model >= len(self.program.segments):
            return f"runs host segment {i.model}, but there are {len(self.program.segments)}"
        ports = segment.ports(self.program.segments[i.model])
        counts = [tuple(map(isa.volume, shapes)) for shapes in (ports.inputs, ports.outputs)]
        if [i.source_counts, i.target_counts] != counts:
            return f"its tensors have other sizes than host segment {i.model}, which has {counts!r:.120}"
        if (i.macs, i.elements) != (ports.macs, ports.elements):
            return f"says that it costs {i.macs} MACs and {i.elements} elements, host segment {i.model} says other"
        return None

    def _values_problem(self, i: AnyInstruction) -> str | None:
        if isinstance(i, isa.Conv):
            return self._conv_problem(i)
        if not self.looks:
            return None
        if isinstance(i, isa.Softmax):
            return self._softmax_problem(i)
        if isinstance(i, isa.Norm):
            limit = 1 << GAIN_BITS
            words = self._words(i.params, 2 * i.channels).astype(np.int64)
            return "a gain or offset is 2**30 or more" if np.abs(words).max() >= limit else None
        return None

    def _softmax_problem(self, i: isa.Softmax) -> str | None:
        """Return what is wrong with exponentials: they are not negative, exp(0) is positive, products stay small."""
        table = self._words(i.table, i.entries)
        firsts, most = table[:: len(table) if i.in_bits == 8 else 256], 1 << 31 if i.in_bits == 8 else SOFTMAX_WIDE_ONE
        legal = table.min() >= 0 and firsts.min() > 0 and table.max() <= most
        return None if legal else "the table of exponentials has illegal entries"

    def _conv_problem(self, i: isa.Conv) -> str | None:
        if i.taps != self._folds(i):
            return f"says that it takes {i.taps} folds of taps, its weights say {self._folds(i)}"
        if not self.looks:
            return None
        shifts = self.buffer[i.params + 8 * i.out_c : i.params + 9 * i.out_c].view(np.int8)
        if shifts.min() < 0 or shifts.max() > SHIFT_MAX:
            return f"a shift is outside of 0 to {SHIFT_MAX}"
        multipliers = self._words(i.params + 4 * i.out_c, i.out_c)
        if i.in_bits == 16 and multipliers.max() >= WIDE_MULTIPLIER_LIMIT:
            return f"a multiplier is {multipliers.max():,}, allowed under 2**23 for 16-bit activations"
        return "a multiplier is negative" if multipliers.min() < 0 else None

    def _folds(self, i: isa.Conv) -> int:
        """Return the folds that the array takes, where it skips zero weights."""
        mac, taps = self.program.target.mac, i.kernel_h * i.kernel_w * i.depth
        if mac.zero_skip == "none" or i.groups > 1:
            return 0
        weights = self.buffer[i.weights : i.weights + i.out_c * taps].reshape(i.out_c, taps)
        return taken_folds(weights, mac)

    def _words(self, address: int, count: int) -> Any:
        return self.buffer[address : address + 4 * count].view("<i4")


def _overlap_problem(i: AnyInstruction, reads: Sequence[Range], writes: Sequence[Range]) -> str | None:
    for w in writes:
        for k, r in enumerate(reads):
            if r.space == w.space and r.start < w.end and w.start < r.end and not _in_place(i, k):
                return f"reads {_show(r)} and writes {_show(w)}, which overlap"
    return None


def _in_place(i: AnyInstruction, operand: int) -> bool:
    """Tell that each element of an operand is read for the one that is written over it, and for no other."""
    if isinstance(i, isa.Lookup):
        return i.source == i.target and i.in_bits == i.out_bits
    if isinstance(i, isa.Lstm):
        return operand == CELL_OPERAND and i.cell == i.cell_out
    if isinstance(i, isa.Gru):
        return operand == CELL_OPERAND and i.state == i.state_out and i.phase != isa.RESET
    if not isinstance(i, isa.Elementwise) or i.sources[operand] != i.target or i.bits[operand] != i.out_bits:
        return False
    step = i.out_bits // 8
    for side, stride in zip(reversed(i.shape), reversed(i.operand_strides(operand)), strict=True):
        if side != 1 and stride != step:
            return False
        step *= side
    return True


def _wait_problems(instructions: Sequence[AnyInstruction]) -> Iterator[str]:
    """Yield where a token names its own engine, or more instructions than an engine has."""
    queued = Counter(i.engine for i in instructions)
    for index, i in enumerate(instructions):
        if i.waits[i.engine]:
            yield f"{_where(index, i)}: waits for its own engine, {i.engine.label}"
        for other in Engine:
            if i.waits[other] > queued[other]:
                yield (
                    f"{_where(index, i)}: waits for {i.waits[other]} instructions of {other.label}, "
                    f"which has {queued[other]}"
                )


def _order_problems(instructions: Sequence[AnyInstruction]) -> Iterator[str]:
    """Yield where tokens block for ever, or leave two accesses to the same bytes without an order."""
    for index, (needs, known) in enumerate(zip(dependencies(instructions), known_before(instructions), strict=True)):
        where = _where(index, instructions[index])
        if known is None:
            yield f"{where}: can never start: its wait tokens go round in a circle"
        elif missing := [Engine(e).label for e, (n, k) in enumerate(zip(needs, known, strict=True)) if n > k]:
            yield f"{where}: touches bytes that {' and '.join(missing)} may still use; a wait token is missing"


def _where(index: int, i: AnyInstruction) -> str:
    return f"instruction {index} ({type(i).__name__})"


def _show(r: Range) -> str:
    return f"bytes {r.start:#x} to {r.end:#x} of {r.space.label}"
