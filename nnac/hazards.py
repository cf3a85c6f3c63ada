"""Hazards: which instruction must have finished before which, so that memory looks as if in program order.

An instruction depends on the last writer of every byte that it reads or writes, and on the readers since then of every
byte that it writes. `passes.schedule` turns dependencies into wait tokens; `nnac.validate` proves that they suffice.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from nnac.errors import ProgramError
from nnac.isa import AnyInstruction, Engine, Range, Space

MAX_VISITS = 1 << 26
"""Segments that the search may look at: a stream that cuts memory into dust is refused, not followed for hours."""
Counts = tuple[int, ...]
"""Per engine: how many of its instructions."""


@dataclass(slots=True)
class _Segment:
    """Bytes with one history: who wrote last and who has read since, as (engine, count of its instructions)."""

    writer: tuple[int, int] | None = None
    readers: dict[int, int] = field(default_factory=dict)


class _Memory:
    """One address space cut into segments; `starts[i]` begins `segments[i]`, which ends where the next begins."""

    def __init__(self) -> None:
        self.starts = [0]
        self.segments = [_Segment()]

    def split(self, at: int) -> int:
        """Return the index of the segment that begins at `at`, cutting one if needed."""
        index = bisect_right(self.starts, at) - 1
        if self.starts[index] == at:
            return index
        old = self.segments[index]
        self.starts.insert(index + 1, at)
        self.segments.insert(index + 1, _Segment(old.writer, dict(old.readers)))
        return index + 1

    def touched(self, start: int, end: int) -> list[_Segment]:
        """Return the segments that have bytes of [start, end)."""
        return self.segments[bisect_right(self.starts, start) - 1 : bisect_left(self.starts, end)]

    def span(self, start: int, end: int) -> list[_Segment]:
        """Return the segments that cover [start, end) exactly."""
        first = self.split(start)
        self.split(end)
        return self.segments[first : bisect_left(self.starts, end)]

    def overwrite(self, start: int, end: int, writer: tuple[int, int]) -> list[tuple[int, int]]:
        """Forget the history of [start, end), which `writer` holds now; return who had read there."""
        first, last = self.split(start), self.split(end)
        readers = [reader for segment in self.segments[first:last] for reader in segment.readers.items()]
        self.starts[first:last] = [start]
        self.segments[first:last] = [_Segment(writer)]
        return readers


def dependencies(instructions: Sequence[AnyInstruction]) -> list[Counts]:
    """Return, per instruction, how many of each engine's instructions must have finished before it starts.

    Raises:
        ProgramError: the ranges cut memory into so many pieces that the search would take too long.
    """
    memories = [_Memory() for _ in Space]
    issued, result, visits = [0] * len(Engine), [], 0
    for index, instruction in enumerate(instructions):
        issued[instruction.engine] += 1
        result.append(tuple(_needs(memories, instruction, (instruction.engine, issued[instruction.engine]))))
        visits += sum([len(memory.starts) for memory in memories]) >> 4
        if visits > MAX_VISITS:
            raise ProgramError(
                f"instruction {index}: the instructions cut memory into too many pieces to check their order"
            )
    return result


def _needs(memories: Sequence[_Memory], instruction: AnyInstruction, me: tuple[int, int]) -> list[int]:
    """Return the counts that one instruction needs, and enter it into the history."""
    needs = [0] * len(Engine)
    reads, writes = _filled(instruction.reads()), _filled(instruction.writes())
    for space, start, end in (*reads, *writes):
        for segment in memories[space].touched(start, end):
            if segment.writer is not None and segment.writer[1] > needs[segment.writer[0]]:
                needs[segment.writer[0]] = segment.writer[1]
    for space, start, end in writes:
        for engine, count in memories[space].overwrite(start, end, me):
            needs[engine] = max(needs[engine], count)
    for space, start, end in reads:
        for segment in memories[space].span(start, end):
            segment.readers[me[0]] = me[1]
    return needs


def _filled(ranges: Sequence[Range]) -> list[Range]:
    return [r for r in ranges if r.end > r.start]


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
