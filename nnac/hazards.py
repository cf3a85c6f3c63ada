"""Hazards: which instruction must have finished before which, so that memory looks as if in program order.

An instruction depends on the last writer of every byte that it reads or writes, and on the readers since then of every
byte that it writes. `passes.schedule` turns dependencies into wait tokens; `nnac.validate` proves that they suffice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from nnac.errors import ProgramError
from nnac.isa import AnyInstruction, Engine, Space

MAX_VISITS = 1 << 26
"""Segments that the search may look at: a stream that cuts memory into dust is refused, not followed for hours."""
SAMPLE = 16
"""Every so many instructions, the segments are counted."""
Counts = tuple[int, ...]
"""Per engine: how many of its instructions."""


@dataclass(slots=True)
class _Segment:
    """Bytes with one history: engine and count of the instruction that wrote last, and per engine the last reader."""

    engine: int = 0
    count: int = 0
    readers: dict[int, int] = field(default_factory=dict)


class _Memory:
    """One address space cut into segments; `starts[i]` begins `segments[i]`, which ends where the next begins."""

    def __init__(self) -> None:
        self.starts = [0]
        self.segments = [_Segment()]

    def cut(self, start: int, end: int) -> tuple[int, int]:
        """Return the indices of the first segment of [start, end) and of the one behind it, which begin there now."""
        first = bisect_left(self.starts, start)
        if first == len(self.starts) or self.starts[first] != start:
            self._insert(first, start)
        last = bisect_left(self.starts, end, first)
        if last == len(self.starts) or self.starts[last] != end:
            self._insert(last, end)
        return first, last

    def _insert(self, index: int, start: int) -> None:
        """Cut the segment in front of `index` at `start`."""
        old = self.segments[index - 1]
        self.starts.insert(index, start)
        self.segments.insert(index, _Segment(old.engine, old.count, dict(old.readers)))

    def read(self, start: int, end: int, engine: int, count: int, needs: list[int]) -> None:
        """Enter an instruction that reads [start, end); raise what it needs."""
        first, last = self.cut(start, end)
        for segment in self.segments[first:last]:
            if segment.count > needs[segment.engine]:
                needs[segment.engine] = segment.count
            segment.readers[engine] = count

    def write(self, start: int, end: int, engine: int, count: int, needs: list[int]) -> None:
        """Enter an instruction that writes [start, end), whose history ends there; raise what it needs."""
        first, last = self.cut(start, end)
        for segment in self.segments[first:last]:
            if segment.count > needs[segment.engine]:
                needs[segment.engine] = segment.count
            for reader, read in segment.readers.items():
                if read > needs[reader]:
                    needs[reader] = read
        self.starts[first:last] = [start]
        self.segments[first:last] = [_Segment(engine, count)]


def dependencies(instructions: Sequence[AnyInstruction]) -> list[list[int]]:
    """Return, per instruction, how many of each other engine's instructions must have finished before it starts.

    Raises:
        ProgramError: the ranges cut memory into so many pieces that the search would take too long.
    """
    memories = [_Memory() for _ in Space]
    issued, result, visits = [0] * len(Engine), [], 0
    for index, instruction in enumerate(instructions):
        engine, needs = instruction.engine, [0] * len(Engine)
        issued[engine] += 1
        for space, start, end in instruction.reads():
            if end > start:
                memories[space].read(start, end, engine, issued[engine], needs)
        for space, start, end in instruction.writes():
            if end > start:
                memories[space].write(start, end, engine, issued[engine], needs)
        needs[engine] = 0  # what is ahead in its own queue has finished anyway
        result.append(needs)
        if index % SAMPLE == 0:
            visits += sum([len(memory.starts) for memory in memories])
        if visits > MAX_VISITS:
            raise ProgramError(
                f"instruction {index}: the instructions cut memory into too many pieces to check their order"
            )
    return result


def known_before(instructions: Sequence[AnyInstruction]) -> list[Counts | None]:
    """Return, per instruction, how many of each engine's instructions have surely finished when it starts.

    Follows wait tokens and the order inside engines, transitively; None for an instruction that can never start.
    """
    queues: dict[Engine, list[int]] = {engine: [] for engine in Engine}
    for index, instruction in enumerate(instructions):
        queues[instruction.engine].append(index)
    known: list[Counts | None] = [None] * len(instructions)
    done = [0] * len(Engine)
    moved = True
    while moved:
        moved = False
        for engine, queue in queues.items():
            while done[engine] < len(queue) and _ready(instructions[queue[done[engine]]], done):
                _know(instructions, queues, known, queue[done[engine]], done[engine])
                done[engine], moved = done[engine] + 1, True
    return known


def _ready(instruction: AnyInstruction, done: Sequence[int]) -> bool:
    return all(have >= need for have, need in zip(done, instruction.waits, strict=True))


def _know(
    instructions: Sequence[AnyInstruction],
    queues: dict[Engine, list[int]],
    known: list[Counts | None],
    index: int,
    turn: int,
) -> None:
    """Fill `known[index]`: what its tokens and its predecessor in the queue bring along."""
    instruction, clock = instructions[index], [0] * len(Engine)
    sources = [(e, count) for e, count in zip(Engine, instruction.waits, strict=True) if count]
    sources += [(instruction.engine, turn)] if turn else []
    for engine, count in sources:
        before = known[queues[engine][count - 1]] or (0,) * len(Engine)
        clock = [max(a, b) for a, b in zip(clock, before, strict=True)]
        clock[engine] = max(clock[engine], count)
    known[index] = tuple(clock)
