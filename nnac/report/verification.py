"""A verification as a table for people: which tensors differ, why, and an element to look at."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nnac.report import printable
from nnac.verify import Difference, Row, Verdict, Verification

COLUMNS = ("elements", *(f"{verdict.value}s" for verdict in Verdict))


def table(result: Verification, everything: bool = False) -> RenderableType:
    """Return the tensors that differ, the first of them in words, and the sums; or all of them, and what differs."""
    rows = [row for row in result.rows if everything or row.differing]
    parts: list[RenderableType] = [_rows(rows), Text()] if rows else []
    if everything:
        lines = [_line(row, found) for row in rows for found in row.examples]
        parts += [Text("\n".join(lines)), Text()] if lines else []
    elif result.first is not None:
        parts += [Text(f"first to differ: {_line(result.first, result.first.gravest)}"), Text()]
    return Group(*parts, Text(_sums(result)))


def _rows(rows: list[Row]) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    found.add_column("tensor")
    found.add_column("op", no_wrap=True)
    for title in COLUMNS:
        found.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        figures = (row.elements, *(row.counts[verdict] for verdict in Verdict))
        found.add_row(Text(printable(row.tensor)), Text(printable(row.op)), *(f"{figure:,}" for figure in figures))
    return found


def _line(row: Row, found: Difference) -> str:
    """Return a difference as a sentence."""
    exact = "" if found.value is None else f", exact value {found.value:.9g}"
    return (
        f"{printable(row.tensor)!s} of {printable(row.layer)!s} ({row.op}), at {list(found.index)}: "
        f"{found.ours} here, {found.theirs} there{exact} ({found.verdict.value})"
    )


def _sums(result: Verification) -> str:
    elements = sum(row.elements for row in result.rows)
    ties, rules, faults = (sum(row.counts[verdict] for row in result.rows) for verdict in Verdict)
    calibrated = f"; scales by {result.calibration}" if result.calibration else ""
    return (
        f"{len(result.rows)} tensors, {elements:,} integers, {result.samples} samples: {ties:,} rounding ties, "
        f"{rules:,} by another rule, {faults:,} faults{calibrated}"
    )
