"""The trace: a timeline as Chrome trace events (Perfetto), in microseconds.

One track per engine with one event per instruction, and counters: bytes alive in the scratchpad, and bytes per cycle
through the port of each memory outside the chip (a transfer's bytes over its whole duration, latency included).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from nnac import __version__, isa, liveness
from nnac.isa import AnyInstruction, Engine
from nnac.report import SCHEMA, printable
from nnac.timing import OUTSIDE, Timeline, ports_of

Event = dict[str, Any]


def to_trace(timeline: Timeline) -> dict[str, Any]:
    """Return the trace of a timeline."""
    program = timeline.program
    process = _meta("process_name", 0, f"{printable(program.name)} on {printable(program.target.name)}")
    tracks = [event for engine in Engine for event in _track(engine)]
    return {
        "displayTimeUnit": "ns",
        "otherData": {
            "schema": SCHEMA,
            "nnac": __version__,
            "cycles": timeline.cycles,
            "clock_mhz": program.target.clock_mhz,
        },
        "traceEvents": [process, *tracks, *_events(timeline), *_scratchpad(timeline), *_bandwidth(timeline)],
    }


def _track(engine: Engine) -> tuple[Event, Event]:
    order = _meta("thread_sort_index", engine.value, "")
    return _meta("thread_name", engine.value, engine.label), order | {"args": {"sort_index": engine.value}}


def _meta(kind: str, track: int, name: str) -> Event:
    return {"name": kind, "ph": "M", "pid": 1, "tid": track, "args": {"name": name}}


def _nanoseconds(timeline: Timeline, cycle: int) -> int:
    """Return a whole number, so that neighbours never overlap by a rounding."""
    return round(cycle * 1e3 / timeline.program.target.clock_mhz)


# -- tracks --------------------------------------------------------------------------------------------------------


def _events(timeline: Timeline) -> Iterator[Event]:
    """Yield one complete event per instruction."""
    program = timeline.program
    owners = {index: layer.name for layer in program.layers for index in layer.indices()}
    for index, (instruction, span) in enumerate(zip(program.instructions, timeline.spans, strict=True)):
        start, end = (_nanoseconds(timeline, cycle) for cycle in (span.start, span.end))
        layer, kind = printable(owners.get(index, "")), type(instruction).__name__
        yield {
            "name": f"{kind} {layer}".rstrip(),
            "cat": kind,
            "ph": "X",
            "pid": 1,
            "tid": instruction.engine.value,
            "ts": start / 1e3,
            "dur": (end - start) / 1e3,
            "args": {
                "index": index,
                "layer": layer,
                "start_cycle": span.start,
                "end_cycle": span.end,
                **_amount(instruction),
            },
        }


def _amount(instruction: AnyInstruction) -> dict[str, int]:
    if isinstance(instruction, isa.Conv | isa.MatMul):
        return {"macs": instruction.macs}
    return {"bytes": sum(count for _, count, _ in ports_of(instruction))}


# -- counters ------------------------------------------------------------------------------------------------------


def _scratchpad(timeline: Timeline) -> Iterator[Event]:
    """Yield the bytes in use whenever they change: a buffer from its first writer's start to its last reader's end.

    While a tensor is written stripe by stripe where another one is still read, their common bytes count once.
    """
    alive, value = list[tuple[int, int]](), -1
    for cycle, changes in sorted(_lives(timeline).items()):
        for span, begins in changes:
            alive.append(span) if begins else alive.remove(span)
        used = sum(end - start for start, end in liveness.merged(alive))
        if used != value:
            value = used
            yield _counted(timeline, "scratchpad bytes", cycle, used)


def _lives(timeline: Timeline) -> dict[int, list[tuple[tuple[int, int], bool]]]:
    """Return, by cycle, the ranges that begin (True) or end (False) to be in use."""
    changes: dict[int, list[tuple[tuple[int, int], bool]]] = {}
    moments = liveness.moments(timeline.program)
    for resident, buffer in ((r, b) for r in liveness.residents(moments) for b in r.buffers):
        spans = [timeline.spans[index] for index in buffer.touched]
        start = 0 if resident.first < 0 else min((span.start for span in spans), default=0)
        end = timeline.cycles if resident.last >= len(moments) else max((span.end for span in spans), default=start)
        changes.setdefault(start, []).append(((buffer.start, buffer.end), True))
        changes.setdefault(end, []).append(((buffer.start, buffer.end), False))
    return changes


def _bandwidth(timeline: Timeline) -> Iterator[Event]:
    """Yield, per memory outside the chip, the bytes per cycle that its transfers take from its port."""
    for space in (space for space in OUTSIDE if space.label in timeline.program.target.memory):
        steps: dict[int, Fraction] = {}
        for instruction, span in zip(timeline.program.instructions, timeline.spans, strict=True):
            moved = sum(count for place, count, _ in ports_of(instruction) if place == space)
            if moved and span.end > span.start:
                rate = Fraction(moved, span.end - span.start)
                steps[span.start] = steps.get(span.start, Fraction()) + rate
                steps[span.end] = steps.get(span.end, Fraction()) - rate
        value = Fraction()
        for cycle, step in sorted((cycle, step) for cycle, step in steps.items() if step):
            value += step
            yield _counted(timeline, f"{space.label} bytes per cycle", cycle, float(value))


def _counted(timeline: Timeline, name: str, cycle: int, value: float) -> Event:
    return {
        "name": name,
        "ph": "C",
        "pid": 1,
        "tid": 0,
        "ts": _nanoseconds(timeline, cycle) / 1e3,
        "args": {"value": value},
    }
