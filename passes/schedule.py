"""Schedule: wait tokens, so that engines may run beside each other and still see memory as if in program order.

Rules:

1. an instruction waits for the last writer of every byte that it reads or writes, and for the readers since then of
   every byte that it writes, when they run on another engine;
2. a wait that an earlier instruction of the same engine has done already is left out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nnac.isa import AnyInstruction, Engine, Range, Space


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

    def span(self, start: int, end: int) -> list[_Segment]:
        """Return the segments that cover [start, end) exactly."""
        first = self.split(start)
        self.split(end)
        return self.segments[first:bisect_left(self.starts, end)]

    def overwrite(self, start: int, end: int, writer: tuple[int, int]) -> None:
        """Forget the history of [start, end): `writer` holds it now."""
        first, last = self.split(start), self.split(end)
        self.starts[first:last] = [start]
        self.segments[first:last] = [_Segment(writer)]


def schedule(instructions: Sequence[AnyInstruction]) -> tuple[AnyInstruction, ...]:
    """Return the instructions with the wait tokens that program order demands."""
    memories = {space: _Memory() for space in Space}
    issued = [0] * len(Engine)
    waited = [[0] * len(Engine) for _ in Engine]
    scheduled = []
    for instruction in instructions:
        engine = instruction.engine
        issued[engine] += 1
        needs = _hazards(memories, instruction, (engine, issued[engine]))
        done = waited[engine]
        waits = tuple(n if e != engine and n > done[e] else 0 for e, n in enumerate(needs))
        waited[engine] = [max(a, b) for a, b in zip(done, waits, strict=True)]
        scheduled.append(replace(instruction, waits=waits))
    return tuple(scheduled)


def _hazards(memories: dict[Space, _Memory], instruction: AnyInstruction, me: tuple[int, int]) -> list[int]:
    """Return, per engine, how many of its instructions must be done; enters the instruction into the history."""
    needs = [0] * len(Engine)

    def need(engine: int, count: int) -> None:
        needs[engine] = max(needs[engine], count)

    reads, writes = _joined(instruction.reads()), _joined(instruction.writes())
    for r in (*reads, *writes):
        for segment in memories[r.space].span(r.start, r.end):
            if segment.writer is not None:
                need(*segment.writer)
    for r in writes:
        for segment in memories[r.space].span(r.start, r.end):
            for engine, count in segment.readers.items():
                need(engine, count)
        memories[r.space].overwrite(r.start, r.end, me)
    for r in reads:
        for segment in memories[r.space].span(r.start, r.end):
            segment.readers[me[0]] = me[1]
    return needs


def _joined(ranges: Sequence[Range]) -> list[Range]:
    return [r for r in ranges if r.end > r.start]
