"""Machines and what they run: sweeps over them, their figures, the operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nnac.report.parts import columns, name_text, printable, short, value_text
from nnac.targets import Target, explain

if TYPE_CHECKING:
    from nnac.sweep import Point

SHORT = 20
"""Characters of a target's figure that stands in its own column."""


def points(found: Sequence[Point]) -> Group:
    """Return the points of a sweep, one line each, and below them why some do not fit."""
    figures = list(found[0].settings) if found else []
    table = columns(
        *(f">{_stacked(name)}" for name in figures),
        ">cycles",
        ">ms",
        ">DRAM, flash\nbytes",
        ">scratchpad\npeak",
        ">MACs",
        ">on-chip\nKiB",
    )
    for point in found:
        reached = (
            ("does not fit", "", "", "")
            if point.problem
            else (f"{point.cycles:,}", short(point.milliseconds), f"{point.outside_bytes:,}", f"{point.sram_used:,}")
        )
        table.add_row(
            *map(value_text, point.settings.values()), *reached, f"{point.macs:,}", f"{point.on_chip_bytes / 1024:,.4g}"
        )
    problems = [name_text(f"{_settings(point)}: {point.problem}") for point in found if point.problem]
    return Group(table, *((Text(), *problems) if problems else ()))


def _settings(point: Point) -> str:
    return ", ".join(f"{name}={value}" for name, value in point.settings.items())


def _stacked(name: str) -> str:
    """Return a dotted name on several lines, for the head of a narrow column."""
    return name.replace(".", ".\n")


def targets(known: Iterable[Target]) -> Table:
    """Return names and descriptions of targets."""
    table = columns("<target", "~")
    for target in known:
        table.add_row(name_text(target.name), Text(printable(target.description)))
    return table


def figures(target: Target) -> Group:
    """Return every figure of a target with its unit and meaning."""
    table = columns("<figure", "<value", "~meaning")
    for entry, value, unit, meaning in explain(target):
        shown = printable(f"{value} {unit}".rstrip())
        table.add_row(entry, *((shown, meaning) if len(shown) <= SHORT else ("", f"{meaning}: {shown}")))
    return Group(Text(printable(f"{target.name}: {target.description}")), Text(), table)


def operators(rows: Iterable[tuple[str, str, tuple[str, ...]]]) -> Group:
    """Return the supported operators: ONNX name, what it becomes, what is supported."""
    table = columns("<ONNX operator", "~becomes", "~supported if")
    for name, becomes, sentences in rows:
        table.add_row(name, becomes, _supported(sentences))
    return Group(table, Text(), Text("Everywhere: tensors are float32 (or constants) and of a fixed shape."))


def _supported(sentences: tuple[str, ...]) -> str:
    return "; ".join(sentences) or "always"


def operators_markdown(rows: Iterable[tuple[str, str, tuple[str, ...]]]) -> str:
    """Return the supported operators as a Markdown table."""
    cells = ((f"`{name}`", becomes, _supported(sentences).replace("|", r"\|")) for name, becomes, sentences in rows)
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join(["| ONNX operator | becomes | supported if |", "| --- | --- | --- |", *lines])
