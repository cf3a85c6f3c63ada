"""Parts of reports: text that is safe to print, tables, and how names, shapes and counts are written."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from math import inf

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from nnac.program import Program
from nnac.targets import Target

Cell = str | Text
PLAIN_WIDTH = 80
BUFFER = {"sram": "scratchpad", "weights": "weight buffer"}
"""Memories whose name would be taken for what they hold, or says little."""


def printable(text: object) -> str:
    """Return text of unknown origin with control, bidi and other invisible characters written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def text(*parts: RenderableType, width: int | None = None) -> str:
    """Return what the parts look like: on a terminal of `width` columns, or (None) plain and 80 columns wide."""
    file, terminal = StringIO(), width is not None
    console = Console(
        file=file,
        width=width or PLAIN_WIDTH,
        force_terminal=terminal,
        markup=False,
        highlight=False,
        emoji=False,
        color_system="auto" if terminal else None,
    )
    for part in parts:
        console.print(part)
    lines = file.getvalue().split("\n")
    return "\n".join(lines if terminal else map(str.rstrip, lines))


def value_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.9g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine(target: Target) -> str:
    """Return one line that names a target."""
    return f"{target.name}: {target.clock_mhz:g} MHz, {target.mac.rows} x {target.mac.cols} MACs"


def calibration(program: Program) -> str:
    """Return how the program was calibrated, and what random calibration means."""
    return "random: timing only" if program.calibration == "random" else program.calibration


def facts(rows: Mapping[str, object]) -> Table:
    """Return pairs of name and text, one line each."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value if isinstance(value, Text) else name_text(value))
    return table


def decibel_text(value: float) -> str:
    return "exact" if value == inf else f"{value:.1f}"


def columns(*titles: str) -> Table:
    """Return an empty table of columns titled "<..." or ">..." (figures, aligned left or right, never cut), or without
    a mark (names, cut where the table is too wide), or "~..." (running text, that goes on in the next line).
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(
            title.lstrip("<>~"),
            justify="right" if title.startswith(">") else "left",
            no_wrap=title.startswith(("<", ">")),
        )
    return table


def name_text(name: object) -> Text:
    return Text(printable(name), no_wrap=True, overflow="ellipsis")


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def count_text(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def short(value: float) -> str:
    """Return a figure with four digits, or whole from a thousand on."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
