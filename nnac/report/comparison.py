"""A program against its float model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nnac.report.parts import columns, count_text, decibel_text, name_text

if TYPE_CHECKING:
    from nnac.compare import Comparison, Row


def comparison(result: Comparison, limit: int | None = None) -> Group:
    """Return outputs, then the layers with the largest error of their own first, all or at most `limit`."""
    rows = result.worst()[:limit]
    shown = f"; {len(rows)} of {len(result.rows)} rows" if len(rows) < len(result.rows) else ""
    note = Text(
        f"SQNR in dB over {count_text(result.samples, 'sample')}{shown}.\n"
        "local: the layer alone, its inputs taken from float."
    )
    return Group(_outputs(result), Text(), _rows(rows), Text(), note)


def _outputs(result: Comparison) -> Table:
    table = columns("output", ">SQNR", ">max steps")
    for row in (row for row in result.rows if row.output):
        table.add_row(name_text(row.tensor), decibel_text(row.sqnr), f"{row.max_steps:.1f}")
    return table


def _rows(rows: Sequence[Row]) -> Table:
    table = columns("worst layers", "op", ">local", ">SQNR", ">max steps", ">saturated", ">share")
    for row in rows:
        table.add_row(
            name_text(row.layer or row.tensor),
            name_text(row.op),
            decibel_text(row.local_sqnr),
            decibel_text(row.sqnr),
            f"{row.max_steps:.1f}",
            f"{row.saturated:,}",
            f"{row.saturated / max(1, row.elements):.2%}",
        )
    return table
