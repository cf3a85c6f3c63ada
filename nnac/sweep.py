"""Sweep: one model on many machines that differ in a few figures; calibrated once, compiled for each."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnac.compiler import Progress, lower, measured_graph
from nnac.errors import CapacityError, TargetError
from nnac.isa import Space
from nnac.targets import Target, load_target, with_settings
from nnac.timing import OUTSIDE, simulate

MAX_POINTS = 4096


@dataclass(frozen=True, slots=True)
class Point:
    """One machine of a sweep and what it reaches.

    Attributes:
        settings: the figures that vary, by dotted name.
        cycles, milliseconds: of one inference; 0 where it does not fit.
        outside_bytes: through the ports of the memories outside the chip.
        sram_used: peak scratchpad bytes.
        macs, on_chip_bytes: area proxies: cells of the array, bytes of scratchpad and weight buffer.
        problem: why it does not fit, or "".
    """

    settings: Mapping[str, Any]
    cycles: int
    milliseconds: float
    outside_bytes: int
    sram_used: int
    macs: int
    on_chip_bytes: int
    problem: str = ""


def sweep(
    model: Any,
    target: str | Path | Target,
    vary: Mapping[str, Sequence[Any]],
    calibration: Any = "random",
    *,
    method: str = "minmax",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    states: Mapping[str, str] | None = None,
    freeze: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[Point]:
    """Return one point per combination of the figures in `vary`, the last figure varying fastest.

    Args:
        model, target, calibration, method, shapes, states, freeze, progress: as for `nnac.compile`.
        vary: values per figure, by dotted name as `nnac targets NAME` lists them.

    Raises:
        TargetError: an unknown figure, an illegal value, or more than `MAX_POINTS` combinations.
        ModelError: the model cannot be compiled.
    """
    machines = list(_machines(load_target(target), vary))
    graph, ranges, note = measured_graph(model, calibration, method, shapes, freeze, progress, states)
    points = []
    for done, (settings, machine) in enumerate(machines, 1):
        try:
            points.append(_point(settings, machine, lower(graph, ranges, machine, note)))
        except CapacityError as error:
            why = f"needs {error.required:,} of {error.available:,} bytes: {error.what}"
            points.append(Point(settings, 0, 0.0, 0, 0, machine.mac.peak, _on_chip(machine), why))
        if progress is not None:
            progress("sweeping", done, len(machines))
    return points


def _machines(base: Target, vary: Mapping[str, Sequence[Any]]) -> Iterator[tuple[dict[str, Any], Target]]:
    count = 1
    for values in vary.values():
        count *= len(values)
    if not 1 <= count <= MAX_POINTS:
        raise TargetError(f"the sweep has {count:,} points, allowed 1 to {MAX_POINTS:,}")
    for values in itertools.product(*vary.values()):
        settings = dict(zip(vary, values, strict=True))
        yield settings, with_settings(base, settings)


def _point(settings: Mapping[str, Any], machine: Target, program: Any) -> Point:
    timeline, outside = simulate(program), {space.label for space in OUTSIDE}
    moved = sum(n for (memory, _), n in timeline.traffic.items() if memory in outside)
    return Point(
        settings,
        timeline.cycles,
        timeline.milliseconds,
        moved,
        program.used[Space.SRAM],
        machine.mac.peak,
        _on_chip(machine),
    )


def _on_chip(machine: Target) -> int:
    return machine.memory["sram"].bytes + machine.memory["weights"].bytes


def to_csv(points: Sequence[Point]) -> str:
    """Return the points as CSV text; an apostrophe quotes a cell that a spreadsheet would take for a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = list(points[0].settings) if points else []
    writer.writerow(
        [*names, "cycles", "milliseconds", "outside_bytes", "sram_used", "macs", "on_chip_bytes", "problem"]
    )
    for p in points:
        cells = [
            *p.settings.values(),
            p.cycles,
            p.milliseconds,
            p.outside_bytes,
            p.sram_used,
            p.macs,
            p.on_chip_bytes,
            p.problem,
        ]
        writer.writerow([f"'{c}" if isinstance(c, str) and c[:1] in "=+-@" and c else c for c in cells])
    return out.getvalue()
