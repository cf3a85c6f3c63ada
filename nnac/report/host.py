"""Reports of host segments: what runs beside the NNA, why, and at what cost."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from nnac.report import columns, printable
from nnac.report.account import host_account
from nnac.timing import Timeline


def hosted(timeline: Timeline, limit: int | None = None) -> Table:
    """Return why operators run on the host, the slowest segments first, and what that costs; at most `limit` rows.

    Figures stand in the first row of each segment.
    """
    table, left = columns("on the host", "op", ">cycles", ">share", ">on NNA", "~why"), limit
    for row in sorted(host_account(timeline), key=lambda row: -row.cycles):
        figures = (f"{row.cycles:,}", f"{row.cycles / timeline.cycles:.1%}", f"{row.nna_cycles:,}")
        for number, node in enumerate(row.reasons[:left]):
            cells = ("", "", "") if number else figures
            table.add_row(_cut(node.name), _cut(node.op), *cells, Text(printable(node.reason)))
        left = None if left is None else max(0, left - len(row.reasons))
    more = sum(len(row.reasons) for row in host_account(timeline)) - table.row_count
    if more:
        table.add_row(Text(f"and {more:,} more"))
    return table


def _cut(name: str) -> Text:
    """Return a name that is cut where the table is too wide."""
    return Text(printable(name), no_wrap=True, overflow="ellipsis")
