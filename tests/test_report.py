"""Reports: the one screen, JSON and trace of the digits example; text of unknown origin stays text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnac
from nnac import compiler, isa, report
from nnac.compare import Comparison, Row
from nnac.isa import Engine
from nnac.program import Program, dumps
from nnac.targets import Target, load_target, target_names
from nnac.timing import Timeline, simulate

DIGITS = Path(nnac.__file__).resolve().parent.parent / "examples" / "digits" / "digits.onnx"
HOSTILE = "[red]a\x1b[31m\u202eb[/red]\n:smile:"
LITERAL = r"[red]a\x1b[31m\u202eb[/red]\n:smile:"


@pytest.fixture(scope="module")
def program() -> Program:
    return compiler.compile(DIGITS, "nna8", "random").program


@pytest.fixture(scope="module")
def timeline(program: Program) -> Timeline:
    return simulate(program)


def is_plain(text: str) -> bool:
    """Tell whether a text fits a pipe: printable lines of at most 80 columns, no blanks at their ends."""
    return all(line.isprintable() and len(line) <= 80 and line == line.rstrip() for line in text.split("\n"))


# -- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw, shown", [
    ("plain é 日本", "plain é 日本"), ("\x1b[31m", r"\x1b[31m"), ("\x00\x7f\x9b", r"\x00\x7f\x9b"),
    ("a\nb\r\t", r"a\nb\r\t"), ("\u202e\u2066\u200b", r"\u202e\u2066\u200b"), ("\ud800", r"\ud800"),
    ("[bold]", "[bold]"), (3, "3")])
def test_printable_escapes_what_is_invisible(raw: object, shown: str) -> None:
    assert report.printable(raw) == shown


def test_text_is_plain_in_a_pipe_and_coloured_on_a_terminal(
    timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = report.screen(timeline, 1000)
    assert is_plain(report.text(screen))
    coloured = report.text(screen, width=120)
    assert "\x1b[1m" in coloured
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    assert is_plain(report.text(screen))


def test_the_answer_fits_one_screen(timeline: Timeline) -> None:
    text = report.text(report.screen(timeline, 12_345, "small.nna"))
    assert len(text.splitlines()) <= 24
    for what in ("model", "target", "calibration", "latency", "bound by", "scratchpad", "weights", "work", "traffic"):
        assert f"\n{what}" in f"\n{text}"
    for figure in (f"{timeline.cycles:,} cycles", "12,345 bytes: small.nna", f"{timeline.program.macs:,} MACs",
                   "random: timing only", "524,288 bytes", f"lower bound {timeline.program.lower_bound:,}"):
        assert figure in text


def test_much_traffic_fits_too(timeline: Timeline) -> None:
    purposes = ("weights", "tables", "constants", "input", "output", "spill")
    busy = {("dram", purpose): 12_345_678 for purpose in purposes}
    busy |= {("sram", "operands"): 1, ("weights", "operands"): 1}
    full = replace(timeline, traffic=busy, layers=timeline.layers * 3, energy={"MACs": 1.0, "off-chip memory": 2.0})
    lines = report.text(report.screen(full, 1)).splitlines()
    assert len(lines) <= 24 and all(len(line) <= 80 for line in lines)
    assert " ".join(lines).count("12,345,678") == len(purposes)


def test_names_of_a_model_are_shown_and_not_interpreted(program: Program) -> None:
    layers = tuple(replace(layer, name=HOSTILE) for layer in program.layers)
    hostile = simulate(replace(program, name=HOSTILE, calibration=HOSTILE, layers=layers))
    text = report.text(report.screen(hostile, 1, HOSTILE))
    assert is_plain(text)
    assert text.count(LITERAL) >= 3
    assert text.count(LITERAL[:15]) == 3 + min(report.WORST, len(layers))


def test_long_names_are_cut_and_figures_are_not(program: Program) -> None:
    layers = tuple(replace(layer, name="n" * 500) for layer in program.layers)
    long = simulate(replace(program, name="m" * 500, layers=layers))
    text = report.text(report.screen(long, 1, "p" * 500))
    assert is_plain(text) and len(text.splitlines()) <= 24
    worst = max(long.layers, key=lambda row: row.critical)
    assert f"{worst.critical:,}" in text and f"{worst.critical / long.cycles:.1%}" in text


def test_layers_come_worst_first(timeline: Timeline) -> None:
    lines = report.text(report.layers(timeline, 3)).splitlines()
    order = sorted(timeline.layers, key=lambda row: -row.critical)[:3]
    assert [line.split()[0] for line in lines[1:]] == [row.layer.name for row in order]


def test_traffic_names_memory_and_purpose(timeline: Timeline) -> None:
    text = report.text(report.traffic(timeline))
    found = report.by_memory(timeline.traffic)
    assert sum(sum(purposes.values()) for purposes in found.values()) == sum(timeline.traffic.values())
    for purposes in found.values():
        assert f"{sum(purposes.values()):,}" in text


# -- a program -----------------------------------------------------------------------------------------------------


def test_header_splits_the_blob(program: Program) -> None:
    blob = dumps(program)
    text = report.text(report.header(program, len(blob), program.digest()))
    instructions = len(isa.encode(program.instructions))
    rest = len(blob) - instructions - program.constants.size
    assert f"instructions {instructions:,}, constants {program.constants.size:,}, metadata {rest:,}" in text
    assert program.digest() in text and rest > 0


def test_interface_shows_onnx_and_device_shapes(program: Program) -> None:
    text = report.text(report.interface(program))
    tensor = program.tensor(program.inputs[0])
    assert tensor.type.quant is not None
    assert "1x1x64x32" in text and "1x64x32x1" in text and "1x10" in text
    assert f"{tensor.type.quant.scale:.9g}" in text and f"{tensor.space.label} {tensor.address:#x}" in text


def test_memory_map_and_tensors_are_complete(program: Program) -> None:
    text = report.text(report.memory_map(program))
    assert all(f"{used:,}" in text for used in program.used.values())
    listing = report.text(report.tensors(program))
    assert len(listing.splitlines()) == 1 + len(program.tensors)


def test_arrays_show_range() -> None:
    text = report.text(report.arrays({"y[/]": np.array([[-1.5, 2.0]], np.float32), "z": np.array(3, np.int8)}))
    assert "y[/]" in text and "-1.5" in text and "1x2" in text and "scalar" in text


# -- against float -------------------------------------------------------------------------------------------------


def rows(count: int) -> tuple[Row, ...]:
    return tuple(Row(f"layer{i}", "Conv", f"t{i}", 30.0 - i, 40.0 - i, 1.5, i, 100, i == count - 1)
                 for i in range(count))


def test_comparison_lists_worst_first_and_says_what_it_left_out() -> None:
    result = Comparison((*rows(20), Row("", "input", "x", inf, inf, 0.0, 0, 0, False)), 3)
    text = report.text(report.comparison(result, 15))
    assert is_plain(text) and "15 of 21 rows" in text and "3 samples" in text
    assert text.index("layer19") < text.index("layer18") and "layer0 " not in text and "19.00%" in text
    everything = report.text(report.comparison(result))
    assert "layer0 " in everything and "exact" in everything and "of 21" not in everything
    assert everything.splitlines()[1].split() == ["t19", "11.0", "1.5"]


# -- machines and operators ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", target_names())
def test_figures_show_every_entry_with_its_meaning(name: str) -> None:
    target = load_target(name)
    text = report.text(report.figures(target))
    assert is_plain(text)
    assert "memory.sram.bytes_per_cycle" in text and f"{target.memory['sram'].bytes:,} bytes" in text
    assert "…" not in text


def test_targets_are_listed_with_descriptions() -> None:
    known: list[Target] = [load_target(name) for name in target_names()]
    text = report.text(report.targets(known))
    assert is_plain(text) and all(f"\n{target.name} " in text for target in known)


def test_operators_as_text_and_markdown() -> None:
    table = [("Conv", "Conv", ("weights are constants", "a | b")), ("Relu", "Activation", ())]
    assert "weights are constants; a | b" in report.text(report.operators(table))
    lines = report.operators_markdown(table).splitlines()
    assert len(lines) == 4 and lines[2] == r"| `Conv` | Conv | weights are constants; a \| b |"


# -- JSON and trace ------------------------------------------------------------------------------------------------


def test_json_holds_the_whole_report(timeline: Timeline) -> None:
    data = json.loads(json.dumps(report.to_json(timeline, 4321), allow_nan=False))
    assert (data["schema"], data["cycles"], data["blob_bytes"]) == (1, timeline.cycles, 4321)
    assert [row["name"] for row in data["layers"]] == [row.layer.name for row in timeline.layers]
    assert sum(row["share"] for row in data["layers"]) == pytest.approx(1)
    assert data["busy"] == {engine.label: cycles for engine, cycles in timeline.busy.items()}
    assert sum(sum(p.values()) for p in data["traffic"].values()) == sum(timeline.traffic.values())
    assert data["memory"]["sram"]["available"] == 524_288
    assert data["contract"].startswith("The timing model")


def complete(trace: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Return the complete events by track."""
    tracks: dict[int, list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            tracks.setdefault(event["tid"], []).append(event)
    return tracks


@pytest.mark.parametrize("mhz", [500.0, 333.3, 1000.0, 0.7])
def test_trace_has_one_event_per_instruction_that_never_overlap(program: Program, mhz: float) -> None:
    timeline = simulate(replace(program, target=replace(program.target, clock_mhz=mhz)))
    trace = json.loads(json.dumps(report.to_trace(timeline), allow_nan=False))
    tracks = complete(trace)
    assert sorted(e["args"]["index"] for events in tracks.values() for e in events) == [
        *range(len(program.instructions))]
    for events in tracks.values():
        spans = [(round(e["ts"] * 1e3), round((e["ts"] + e["dur"]) * 1e3)) for e in events]
        assert all(start <= end for start, end in spans) and all(a[1] <= b[0] for a, b in pairwise(spans))
    everything = [e for events in tracks.values() for e in events]
    assert max(e["args"]["end_cycle"] for e in everything) <= timeline.cycles == trace["otherData"]["cycles"]
    end = max(e["ts"] + e["dur"] for e in everything)
    assert end == pytest.approx(max(s.end for s in timeline.spans) / mhz, abs=1e-3)


def test_trace_names_tracks_layers_and_amounts(timeline: Timeline) -> None:
    trace = report.to_trace(timeline)
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert names == {engine.value: engine.label for engine in Engine}
    conv = next(e for e in trace["traceEvents"] if e.get("cat") == "Conv")
    assert conv["name"] == "Conv conv0" and conv["args"]["layer"] == "conv0" and conv["args"]["macs"] > 0
    load = next(e for e in trace["traceEvents"] if e.get("cat") == "Load")
    assert load["args"]["bytes"] > 0


def test_trace_escapes_names(program: Program) -> None:
    layers = tuple(replace(layer, name=HOSTILE) for layer in program.layers)
    trace = json.dumps(report.to_trace(simulate(replace(program, layers=layers))), ensure_ascii=False)
    assert "\x1b" not in trace and "\u202e" not in trace and json.dumps(LITERAL)[1:-1] in trace


def test_schema_does_not_change_unseen(timeline: Timeline) -> None:
    """Whoever changes these sets raises `report.SCHEMA` if an entry went or means something else."""
    data = report.to_json(timeline, 0)
    assert set(data) == {
        "schema", "nnac", "model", "calibration", "target", "cycles", "milliseconds", "inferences_per_second", "bound",
        "macs", "utilisation", "instructions", "weight_bytes", "constants_bytes", "blob_bytes", "memory",
        "scratchpad_lower_bound", "busy", "traffic", "energy_pj", "layers", "contract"}
    assert set(data["layers"][0]) == {"name", "op", "start", "end", "critical", "share", "bound", "utilisation", "macs",
                                      "weight_bytes", "traffic"}


def test_report_writes_nothing(capfd: pytest.CaptureFixture[str], timeline: Timeline, tmp_path: Path) -> None:
    report.text(report.screen(timeline, 0))
    assert capfd.readouterr() == ("", "")
