"""Reports: the one screen, tables and JSON of the digits example; text of unknown origin stays text."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

import nnac
from nnac import compiler, report
from nnac.compare import Comparison, Row
from nnac.isa.stream import encode
from nnac.program import Program, dumps
from nnac.sweep import Point
from nnac.targets import Target, load_target, target_names
from nnac.timing import Timeline, simulate, what_if

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


@pytest.mark.parametrize(
    "raw, shown",
    [
        ("plain é 日本", "plain é 日本"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x00\x7f\x9b", r"\x00\x7f\x9b"),
        ("a\nb\r\t", r"a\nb\r\t"),
        ("\u202e\u2066\u200b", r"\u202e\u2066\u200b"),
        ("\ud800", r"\ud800"),
        ("[bold]", "[bold]"),
        (3, "3"),
    ],
)
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
    for figure in (
        f"{timeline.cycles:,} cycles",
        "12,345 bytes: small.nna",
        f"{timeline.program.macs:,} MACs",
        "random: timing only",
        "524,288 bytes",
        f"lower bound {timeline.program.lower_bound:,}",
    ):
        assert figure in text


def test_much_traffic_fits_too(timeline: Timeline) -> None:
    purposes = ("weights", "tables", "constants", "input", "output", "spill")
    busy = {("dram", purpose): 12_345_678 for purpose in purposes}
    busy |= {("sram", "operands"): 1, ("weights", "operands"): 1}
    full = replace(timeline, traffic=busy, layers=timeline.layers * 3, energy={"MACs": 1.0, "off-chip memory": 2.0})
    lines = report.text(report.screen(full, 1)).splitlines()
    assert len(lines) <= 24 and all(len(line) <= 80 for line in lines)
    assert " ".join(lines).count("12,345,678") == len(purposes)


def test_the_screen_names_what_was_changed(program: Program) -> None:
    """Every changed figure stands there whole, old and new, and the screen stays a screen."""
    settings = {f"memory.{name}.{figure}": 7 for name in ("sram", "weights", "dram") for figure in ("latency", "burst")}
    machine = what_if(program, settings | {"clock_mhz": 800})
    changed = report.changed(program.target, machine)
    text = report.text(report.screen(simulate(program, machine), 1, "p.nna", changed))
    assert is_plain(text) and len(text.splitlines()) <= 24
    words = " ".join(text.split())
    for name in settings:
        assert f"{name} {changed[name][0]} -> 7" in words
    assert "clock_mhz 500 -> 800" in words and "800 MHz" in words and report.changed(machine, machine) == {}


def test_the_screen_tells_of_the_next_inference(program: Program) -> None:
    cold, warm = simulate(program), simulate(program, warm=True)
    assert warm.cycles < cold.cycles
    text = report.text(report.screen(cold, 1))
    assert f"\nnext         {warm.cycles:,} cycles = " in text and "\nwarm" not in text
    text = report.text(report.screen(warm, 1))
    assert f"{warm.cycles:,} cycles" in text and "\nwarm " in text and "\nnext" not in text


def test_energy_names_node_and_source(timeline: Timeline) -> None:
    text = report.text(report.screen(timeline, 1))
    assert "\nenergy from  45 nm, 0.9 V; Horowitz, ISSCC 2014" in text


def test_names_of_a_model_are_shown_and_not_interpreted(program: Program) -> None:
    layers = tuple(replace(layer, name=HOSTILE) for layer in program.layers)
    hostile = simulate(replace(program, name=HOSTILE, calibration=HOSTILE, layers=layers))
    text = report.text(report.screen(hostile, 1, HOSTILE))
    assert is_plain(text)
    assert text.count(LITERAL) >= 3
    assert text.count(LITERAL[:15]) > 3 + 2


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


def test_all_layers_with_their_sums(timeline: Timeline) -> None:
    """Every layer once with its time and once with its bytes, and totals that are those of the timeline."""
    text = report.text(report.all_layers(timeline))
    assert is_plain(text)
    lines = [line.split() for line in text.splitlines()]
    assert [words[0] for words in lines if words].count("conv0") == 2
    totals = [words for words in lines if words[:1] == ["total"]]
    assert totals[0][1:3] == [f"{timeline.cycles:,}", "100.0%"]
    sums = [sum(purposes.values()) for purposes in report.by_memory(timeline.traffic).values()]
    assert totals[1][1:4] == [f"{count:,}" for count in sums]


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
    instructions = len(encode(program.instructions))
    rest = len(blob) - instructions - program.constants.size
    split = f"instructions {instructions:,}, constants {program.constants.size:,}, metadata {rest:,}"
    assert split in " ".join(text.split())
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


def test_scratchpad_shows_every_layer_and_the_peak(program: Program) -> None:
    text = report.text(report.scratchpad(program))
    assert is_plain(text) and all(f"\n{layer.name} " in text for layer in program.layers)
    assert f"alive at the peak: {program.lower_bound:,} bytes" in text
    assert "\nrelu2   whole  32,768" in text and "from" in text


def test_arrays_show_range() -> None:
    text = report.text(report.arrays({"y[/]": np.array([[-1.5, 2.0]], np.float32), "z": np.array(3, np.int8)}))
    assert "y[/]" in text and "-1.5" in text and "1x2" in text and "scalar" in text


# -- against float -------------------------------------------------------------------------------------------------


def rows(count: int) -> tuple[Row, ...]:
    return tuple(
        Row(f"layer{i}", "Conv", f"t{i}", 30.0 - i, 40.0 - i, 1.5, i, 100, i == count - 1) for i in range(count)
    )


def test_comparison_lists_worst_first_and_says_what_it_left_out() -> None:
    result = Comparison((*rows(20), Row("", "input", "x", inf, inf, 0.0, 0, 0, False)), 3)
    text = report.text(report.comparison(result, 15))
    assert is_plain(text) and "15 of 21 rows" in text and "3 samples" in text
    assert text.index("layer19") < text.index("layer18") and "layer0 " not in text and "19.00%" in text
    everything = report.text(report.comparison(result))
    assert "layer0 " in everything and "exact" in everything and "of 21" not in everything
    assert everything.splitlines()[1].split() == ["t19", "11.0", "1.5"]


# -- many machines -------------------------------------------------------------------------------------------------


def test_points_of_a_sweep() -> None:
    """One line per point, one line below per point that does not fit."""
    settings = [{"mac.rows": rows, "memory.sram.bytes": size} for rows in (8, 16) for size in (1024, 65536)]
    found = [
        Point(s, 12_345, 0.25, 777, 512, 64, 2048, "needs 9 of 3 bytes: a[b]" if i == 2 else "")
        for i, s in enumerate(settings)
    ]
    text = report.text(report.points(found))
    assert is_plain(text) and text.count("12,345") == 3 and text.count("does not fit") == 1
    assert "\nmac.rows=16, memory.sram.bytes=1024: needs 9 of 3 bytes: a[b]" in text
    assert "65,536" in text and "12,345  0.25" in text


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


# -- JSON ----------------------------------------------------------------------------------------------------------


def test_json_holds_the_whole_report(timeline: Timeline) -> None:
    data = json.loads(json.dumps(report.to_json(timeline, 4321), allow_nan=False))
    assert (data["schema"], data["cycles"], data["blob_bytes"]) == (2, timeline.cycles, 4321)
    assert [row["name"] for row in data["layers"]] == [row.layer.name for row in timeline.layers]
    assert sum(row["share"] for row in data["layers"]) == pytest.approx(1)
    assert data["busy"] == {engine.label: cycles for engine, cycles in timeline.busy.items()}
    assert sum(sum(p.values()) for p in data["traffic"].values()) == sum(timeline.traffic.values())
    assert data["memory"]["sram"]["available"] == 524_288
    assert data["contract"].startswith("The timing model")


def test_json_says_what_was_asked(program: Program) -> None:
    """What-ifs and warm inferences are marked; the energy's source and what is alive at the peak are there."""
    machine = what_if(program, {"clock_mhz": 800, "memory.dram.bytes_per_cycle": 2})
    data = report.to_json(simulate(program, machine, warm=True), 1, report.changed(program.target, machine))
    assert data["changed"] == {
        "clock_mhz": {"compiled": 500.0, "now": 800.0},
        "memory.dram.bytes_per_cycle": {"compiled": 4, "now": 2},
    }
    assert (data["warm"], data["weights_stay"], data["target"]["clock_mhz"]) == (True, True, 800.0)
    assert "Horowitz" in data["energy_from"]["source"] and "45 nm" in data["energy_from"]["node"]
    peak = data["scratchpad_peak"]
    assert peak["bytes"] == data["scratchpad_lower_bound"] == sum(entry["bytes"] for entry in peak["alive"])
    assert max(row["scratchpad_alive"] for row in data["layers"]) == peak["bytes"]
    assert "Cycles of MAC arrays" in data["contract"]


def test_json_without_an_energy_table(program: Program) -> None:
    bare = simulate(replace(program, target=replace(program.target, energy=None)))
    data = report.to_json(bare, 1)
    assert data["energy_pj"] == {} and data["energy_from"] is None
    assert "energy" not in report.text(report.screen(bare, 1))


def test_schema_does_not_change_unseen(timeline: Timeline) -> None:
    """Whoever changes these sets raises `report.SCHEMA` if an entry went or means something else."""
    data = report.to_json(timeline, 0)
    assert set(data) == {
        "schema",
        "nnac",
        "model",
        "calibration",
        "target",
        "cycles",
        "milliseconds",
        "inferences_per_second",
        "bound",
        "macs",
        "utilisation",
        "instructions",
        "weight_bytes",
        "constants_bytes",
        "blob_bytes",
        "memory",
        "scratchpad_lower_bound",
        "busy",
        "traffic",
        "energy_pj",
        "layers",
        "contract",
        "changed",
        "warm",
        "weights_stay",
        "scratchpad_peak",
        "energy_from",
        "host",
    }
    assert set(data["layers"][0]) == {
        "name",
        "op",
        "start",
        "end",
        "critical",
        "share",
        "bound",
        "utilisation",
        "macs",
        "weight_bytes",
        "traffic",
        "scratchpad_alive",
    }
    assert set(data["scratchpad_peak"]) == {"bytes", "layers", "alive"}
    assert set(data["scratchpad_peak"]["alive"][0]) == {"tensor", "as", "bytes", "address"}


def test_report_writes_nothing(capfd: pytest.CaptureFixture[str], timeline: Timeline, tmp_path: Path) -> None:
    report.text(report.screen(timeline, 0))
    assert capfd.readouterr() == ("", "")
