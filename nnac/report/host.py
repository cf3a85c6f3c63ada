"""Host segments: what runs beside the NNA, why, and at what cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from rich.table import Table
from rich.text import Text

from nnac import isa
from nnac.report.parts import columns, printable
from nnac.segment import HostNode, host_nodes
from nnac.timing import Timeline


@dataclass(frozen=True, slots=True)
class HostRow:
    """One call of a host segment.

    Attributes:
        layer: its name.
        nodes: the ONNX nodes that it runs.
        macs, elements: what they compute.
        cycles: that the host is busy with it.
        nna_cycles: a guess at the least that the NNA would take, had it these operators: MACs at the array's peak, and
            every other element through the vector unit once.
    """

    layer: str
    nodes: tuple[HostNode, ...]
    macs: int
    elements: int
    cycles: int
    nna_cycles: int

    @property
    def reasons(self) -> tuple[HostNode, ...]:
        """The nodes that made the segment necessary."""
        return tuple(node for node in self.nodes if node.reason)


def host_account(timeline: Timeline) -> list[HostRow]:
    """Return one row per call of a host segment, in program order."""
    program, target = timeline.program, timeline.program.target
    rows = []
    for layer in program.layers:
        for index in layer.indices():
            i, span = program.instructions[index], timeline.spans[index]
            if isinstance(i, isa.Host):
                nna = ceil(i.macs / target.mac.peak) + ceil(i.elements / target.vector.lanes)
                nodes = tuple(host_nodes(program.segments[i.model]))
                rows.append(HostRow(layer.name, nodes, i.macs, i.elements, span.end - span.start, nna))
    return rows


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
