"""A verification as a table for people: which tensors differ, why, and an element to look at."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nnac.report import printable
from nnac.verify import Row, Verification

COLUMNS = ("elements", "ties", "rules", "faults")


def table(result: Verification, everything: bool = False) -> RenderableType:
    """Return the tensors that differ (or all), the first of them in words, and the sums."""
    rows = [row for row in result.rows if everything or row.differing]
    parts: list[RenderableType] = [_rows(rows), Text()] if rows else []
    if result.first is not None:
        parts += [Text(_first(result.first)), Text()]
    return Group(*parts, Text(_sums(result)))


def _rows(rows: list[Row]) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    found.add_column("tensor")
    found.add_column("op", no_wrap=True)
    for title in COLUMNS:
        found.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        figures = (row.elements, row.ties, row.rules, row.faults)
        found.add_row(Text(printable(row.tensor)), Text(printable(row.op)), *(f"{figure:,}" for figure in figures))
    return found


def _first(row: Row) -> str:
    """Return the first difference as a sentence."""
    example = row.example
    assert example is not None
    exact = "" if example.value is None else f", exact value {example.value:.9g}"
    return (
        f"first to differ: {printable(row.tensor)!s} of {printable(row.layer)!s} ({row.op}), at {list(example.index)}: "
        f"{example.ours} here, {example.theirs} there{exact}"
    )


def _sums(result: Verification) -> str:
    elements = sum(row.elements for row in result.rows)
    ties, rules = (sum(getattr(row, name) for row in result.rows) for name in ("ties", "rules"))
    calibrated = f"; scales by {result.calibration}" if result.calibration else ""
    return (
        f"{len(result.rows)} tensors, {elements:,} integers, {result.samples} samples: {ties:,} rounding ties, "
        f"{rules:,} by another rule, {result.faults:,} faults{calibrated}"
    )
