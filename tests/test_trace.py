"""Traces: one event per instruction on its engine's track; counters that agree with program and timeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings

from nnac import compiler
from nnac.isa import Engine, Space
from nnac.program import Program
from nnac.report.trace import to_trace
from nnac.timing import Timeline, simulate
from tests.test_report import DIGITS, HOSTILE, LITERAL
from tests.test_timing import PROGRAMS, random_program


@pytest.fixture(scope="module")
def program() -> Program:
    return compiler.compile(DIGITS, "nna8", "random").program


@pytest.fixture(scope="module")
def timeline(program: Program) -> Timeline:
    return simulate(program)


def complete(trace: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Return the complete events by track."""
    tracks: dict[int, list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            tracks.setdefault(event["tid"], []).append(event)
    return tracks


def counters(trace: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return (microseconds, value) by counter."""
    found: dict[str, list[tuple[float, float]]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "C":
            found.setdefault(event["name"], []).append((event["ts"], event["args"]["value"]))
    return found


@pytest.mark.parametrize("mhz", [500.0, 333.3, 1000.0, 0.7])
def test_one_event_per_instruction_that_never_overlap(program: Program, mhz: float) -> None:
    timeline = simulate(replace(program, target=replace(program.target, clock_mhz=mhz)))
    trace = json.loads(json.dumps(to_trace(timeline), allow_nan=False))
    tracks = complete(trace)
    assert sorted(e["args"]["index"] for events in tracks.values() for e in events) == [
        *range(len(program.instructions))
    ]
    for events in tracks.values():
        spans = [(round(e["ts"] * 1e3), round((e["ts"] + e["dur"]) * 1e3)) for e in events]
        assert all(start <= end for start, end in spans) and all(a[1] <= b[0] for a, b in pairwise(spans))
    everything = [e for events in tracks.values() for e in events]
    assert max(e["args"]["end_cycle"] for e in everything) <= timeline.cycles == trace["otherData"]["cycles"]
    end = max(e["ts"] + e["dur"] for e in everything)
    assert end == pytest.approx(max(s.end for s in timeline.spans) / mhz, abs=1e-3)


def test_tracks_layers_and_amounts_have_names(timeline: Timeline) -> None:
    trace = to_trace(timeline)
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert names == {engine.value: engine.label for engine in Engine}
    conv = next(e for e in trace["traceEvents"] if e.get("cat") == "Conv")
    assert conv["name"] == "Conv conv0" and conv["args"]["layer"] == "conv0" and conv["args"]["macs"] > 0
    load = next(e for e in trace["traceEvents"] if e.get("cat") == "Load")
    assert load["args"]["bytes"] > 0


def test_names_are_escaped(program: Program) -> None:
    layers = tuple(replace(layer, name=HOSTILE) for layer in program.layers)
    trace = json.dumps(to_trace(simulate(replace(program, layers=layers))), ensure_ascii=False)
    assert "\x1b" not in trace and "\u202e" not in trace and json.dumps(LITERAL)[1:-1] in trace


def test_scratchpad_counter_of_a_program_that_fits(timeline: Timeline) -> None:
    """From the inputs at the start to nothing at the end, with the peak that placement has reached."""
    found = counters(to_trace(timeline))["scratchpad bytes"]
    assert found[0] == (0, 2048) and found[-1] == (timeline.milliseconds * 1e3, 0)
    assert max(value for _, value in found) == timeline.program.lower_bound


@settings(max_examples=50, deadline=None)
@given(PROGRAMS)
def test_counters_agree_with_program_and_timeline(seed: int) -> None:
    """Never more bytes alive than placed; a port's bytes per cycle, summed over time, are its traffic."""
    program = random_program(seed)
    timeline = simulate(program)
    found = counters(to_trace(timeline))
    alive = [value for _, value in found.pop("scratchpad bytes")]
    assert min(alive) >= 0 == alive[-1] and max(alive) <= program.used[Space.SRAM]
    clock = program.target.clock_mhz
    for name, steps in found.items():
        moved = sum(n for (memory, _), n in timeline.traffic.items() if name == f"{memory} bytes per cycle")
        area = sum(value * (b[0] - ts) * clock for (ts, value), b in pairwise(steps))
        slack = 0.002 * clock * sum(value for _, value in steps)  # events stand on whole nanoseconds
        assert abs(area - moved) <= slack + 1e-6 * moved and steps[-1][1] == 0
