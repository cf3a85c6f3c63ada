"""Reports of streams: one program per period, chunks of several frames, pipelines; as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nnac import streaming
from nnac.chunks import Chunk
from nnac.pipeline import Pipeline, costs, play, schedule
from nnac.report import SCHEMA, by_memory, columns, facts, machine, printable, short, traffic
from nnac.streaming import Streaming
from nnac.timing import Timeline


def stream_screen(found: Streaming) -> Group:
    """Return latency, real-time factor, deadlines, and what crosses each port per call."""
    steady, program = found.steady, found.steady.program
    stay = "stay in the weight buffer" if found.resident else "are loaded again by every call"
    rows = {
        "model": program.name,
        "target": machine(program.target),
        "states": states_line(program.states),
        "first call": _time(found.first),
        "later calls": _time(steady),
        "weights": stay,
        "period": f"{short(found.period_ms)} ms; real-time factor {short(found.real_time_factor)}",
        "deadlines": _deadlines(found),
        **_energy(found),
    }
    return Group(facts(rows), Text(), traffic(steady))


def states_line(states: Sequence[tuple[str, str]]) -> str:
    """Return how many states there are."""
    return f"{len(states)} kept between calls" if states else "none: every call stands alone"


def _time(timeline: Timeline) -> str:
    return f"{timeline.cycles:,} cycles = {short(timeline.milliseconds)} ms"


def _deadlines(found: Streaming) -> str:
    calls, worst = len(found.waits_ms), max(found.waits_ms)
    if found.real_time_factor > 1:
        behind = found.steady.milliseconds - found.period_ms
        return f"{found.misses} of {calls} calls late; each call falls {short(behind)} ms further behind"
    return f"{found.misses} of {calls} calls late; longest wait {short(worst)} ms"


def _energy(found: Streaming) -> dict[str, str]:
    return {"energy": f"{short(found.microwatts)} uJ per second of signal"} if found.steady.energy else {}


def stream_json(found: Streaming) -> dict[str, Any]:
    """Return the report as a dict for JSON."""
    return {
        "schema": SCHEMA,
        "model": found.steady.program.name,
        "target": found.steady.program.target.name,
        "calibration": found.steady.program.calibration,
        "states": len(found.steady.program.states),
        "period_ms": found.period_ms,
        "first": _call_json(found.first),
        "later": _call_json(found.steady),
        "weights_stay": found.resident,
        "real_time_factor": found.real_time_factor,
        "calls": len(found.waits_ms),
        "late_calls": found.misses,
        "longest_wait_ms": max(found.waits_ms),
        "energy_uj_per_second": found.microwatts if found.steady.energy else None,
        "contract": stream_contract(),
    }


def chunk_table(found: Sequence[Chunk]) -> Table:
    """Return one row per number of frames per call."""
    table = columns(
        ">frames",
        ">ms",
        ">ms per\nframe",
        ">real-time\nfactor",
        ">first frame\nwaits, ms",
        ">DRAM, flash\nbytes per frame",
    )
    for chunk in found:
        steady = chunk.streaming
        table.add_row(
            str(chunk.frames),
            short(steady.steady.milliseconds),
            short(chunk.frame_ms),
            short(steady.real_time_factor),
            short(chunk.delay_ms),
            f"{chunk.frame_bytes:,.0f}",
        )
    return table


def pipeline_screen(pipeline: Pipeline, frames: int) -> Group:
    """Return what each part of a pipeline takes of the machine while so many frames arrive."""
    calls, parts = schedule(pipeline, frames), {name: costs(p.program) for name, p in pipeline.parts.items()}
    played, length = play(calls, parts, pipeline.period_ms), frames * pipeline.period_ms
    table = columns("part", ">calls", ">cold, ms", ">warm, ms", ">states, ms", ">of the time")
    for name, cost in parts.items():
        times = (short(c.ms) for c in (cost.cold, cost.warm, cost.swap))
        count = sum(call.part == name for call in calls)
        table.add_row(Text(printable(name)), f"{count:,}", *times, f"{played.busy_ms[name] / length:.1%}")
    rows = {
        "signal": f"{frames:,} frames of {short(pipeline.period_ms)} ms",
        "real-time factor": short(sum(played.busy_ms.values()) / length),
        "behind at the end": f"{short(max(0.0, played.ends_ms[-1] - length))} ms after the last frame",
        "outside the chip": f"{played.nbytes / length * 1e3:,.0f} bytes per second of signal",
    }
    return Group(facts(rows), Text(), table)


def _call_json(timeline: Timeline) -> dict[str, Any]:
    return {
        "cycles": timeline.cycles,
        "milliseconds": timeline.milliseconds,
        "bound": timeline.bound,
        "traffic": by_memory(timeline.traffic),
        "energy_pj": dict(timeline.energy),
    }


def stream_contract() -> str:
    """Return what streaming counts, in words."""
    return (streaming.__doc__ or "").strip()
