"""Sweeps: one point per combination, each the program that compiling for that machine gives; CSV that stays data."""

from __future__ import annotations

import csv
import io
from itertools import product
from pathlib import Path
from typing import Any

import onnx
import pytest

from nnac import compiler
from nnac.errors import ModelError, TargetError
from nnac.isa import Space
from nnac.sweep import MAX_POINTS, Point, sweep, to_csv
from nnac.targets import load_target, with_settings
from nnac.timing import OUTSIDE, simulate
from tests.commands import small_model

VARY = {"mac.rows": [4, 16], "memory.sram.bytes": [64, 2048, 65536]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "m.onnx"
    onnx.save(small_model(), path)
    return path


@pytest.fixture(scope="module")
def points(model: Path) -> list[Point]:
    return sweep(model, "nna8-tiny", VARY)


def test_every_combination_in_order(points: list[Point]) -> None:
    """The last figure varies fastest; area proxies are those of the machine, fit or not."""
    assert [tuple(point.settings.values()) for point in points] == list(product(*VARY.values()))
    weights = load_target("nna8-tiny").memory["weights"].bytes
    for point in points:
        assert point.macs == point.settings["mac.rows"] * 8
        assert point.on_chip_bytes == point.settings["memory.sram.bytes"] + weights


def test_a_point_is_what_compiling_gives(model: Path, points: list[Point]) -> None:
    fit = [point for point in points if not point.problem]
    assert len(fit) == 4
    for point in fit:
        machine = with_settings(load_target("nna8-tiny"), dict(point.settings))
        timeline = simulate(compiler.compile(model, machine, "random").program)
        outside = {space.label for space in OUTSIDE}
        assert (point.cycles, point.milliseconds) == (timeline.cycles, timeline.milliseconds)
        assert point.outside_bytes == sum(n for (memory, _), n in timeline.traffic.items() if memory in outside)
        assert point.sram_used == timeline.program.used[Space.SRAM] <= point.settings["memory.sram.bytes"]


def test_what_does_not_fit_says_why_in_one_line(points: list[Point]) -> None:
    bad = [point for point in points if point.problem]
    assert [point.settings["memory.sram.bytes"] for point in bad] == [64, 64]
    for point in bad:
        assert point.cycles == 0 and "\n" not in point.problem
        assert point.problem.startswith("needs ") and " of 64 bytes: scratchpad" in point.problem


def test_progress_counts_points(model: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    sweep(model, "nna8", {"clock_mhz": [100, 200]}, progress=lambda *step: seen.append(step))
    assert [step for step in seen if step[0] == "sweeping"] == [("sweeping", 1, 2), ("sweeping", 2, 2)]
    assert any(step[0] == "calibrating" for step in seen)


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ({"mac.rows": [0]}, "mac.rows"),
        ({"mac.rows": ["many"]}, "mac.rows"),
        ({"mac.height": [1]}, "mac.height"),
        ({"mac": [1]}, "'mac'"),
        ({"mac.rows": []}, "0 points"),
        ({}, "missing"),
        ({"mac.rows": [*range(1, 101)], "mac.cols": [*range(1, 101)]}, f"allowed 1 to {MAX_POINTS:,}"),
    ],
)
def test_wrong_figures_are_found_before_the_work(vary: dict[str, list[Any]], words: str) -> None:
    """The model is not even read."""
    with pytest.raises((TargetError, ModelError), match=words):
        sweep("missing.onnx", "nna8", vary)


def test_csv_holds_every_figure(points: list[Point]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(points))))
    assert len(rows) == len(points)
    for row, point in zip(rows, points, strict=True):
        assert row["mac.rows"] == str(point.settings["mac.rows"]) and row["cycles"] == str(point.cycles)
        assert float(row["milliseconds"]) == point.milliseconds and row["problem"] == point.problem
    assert to_csv([]).startswith("cycles,")


@pytest.mark.parametrize("text", ["=1+1", "+a", "-b", "@c", 'say "x", then\ny'])
def test_csv_cells_are_never_formulas(text: str) -> None:
    """A setting may be any text: no spreadsheet calculates it, and a reader gets it back."""
    point = Point({"name": text}, 0, 0.0, 0, 0, 1, 1, text)
    (row,) = csv.DictReader(io.StringIO(to_csv([point])))
    assert row["name"].removeprefix("'") == text and row["name"][0] not in "=+-@"
