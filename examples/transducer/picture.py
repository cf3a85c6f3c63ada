"""Word error rate against what a row costs, as SVG: a dot per row at the mean of its seeds, a line over their range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import mean
from typing import Final

SIDE, EDGE, LINE = 560, 44, 12
CHARACTER = 5.6
"""Width of one, in pixels."""
COLOURS: Final = {
    "emu": "#d62728",
    "s8bqat": "#9467bd",
    "csp": "#ff7f0e",
    "gq": "#2ca02c",
    "gradual": "#8c564b",
    "l1": "#7f7f7f",
    "8": "#1f77b4",
}
"""By what a row's name holds; the first that fits."""
Points = Mapping[str, tuple[float, Sequence[float]]]
"""What a row costs and the error rates of its seeds in per cent, by name."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Values on a logarithmic scale, zero at its lower end; `start` and `end` are pixels."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, room: float) -> Axis:
        """Return an axis that leaves some room behind the largest value."""
        least = min((value for value in values if value > 0), default=1.0)
        return cls(0.85 * least, room * max(least, *values), start, end)

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (self.end - self.start) * log(max(value, self.low) / self.low) / log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Return round values."""
        every = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 1.5, 2, 3, 4, 5, 6, 8)]
        return [value for value in every if self.low <= value <= self.high]


def picture(panels: Mapping[str, Points]) -> str:
    """Return panels beside each other, by the title of the horizontal axis."""
    head = f'width="{SIDE * max(1, len(panels))}" height="{SIDE}" font-family="sans-serif" font-size="10"'
    drawn = [_panel(title, points, SIDE * i) for i, (title, points) in enumerate(panels.items()) if points]
    return f'<svg xmlns="http://www.w3.org/2000/svg" {head}>\n{"".join(drawn)}</svg>\n'


def _panel(title: str, points: Points, left: int) -> str:
    across = Axis.over([x for x, _ in points.values()], left + EDGE, left + SIDE - 8, 1.6)
    up = Axis.over([y for _, errors in points.values() for y in errors], SIDE - EDGE, 24, 1.1)
    parts = [
        f'<text x="{left + 8}" y="14">word error rate, %</text>',
        f'<text x="{across.end:.1f}" y="{SIDE - 8}" text-anchor="end">{title}</text>',
        *(_rule(across.at(v), up.start, across.at(v), up.end, f"{v:g}", 0, 14, "middle") for v in across.ticks()),
        *(_rule(across.start, up.at(v), across.end, up.at(v), f"{v:g}", -4, 3, "end") for v in up.ticks()),
    ]
    ordered = sorted(points.items(), key=lambda item: -mean(item[1][1]))
    taken = [(across.at(x) - 5, across.at(x) + 5, up.at(mean(errors)) + 3) for _, (x, errors) in ordered]
    for name, (x, errors) in ordered:
        parts.append(_dot(name, across.at(x), [up.at(y) for y in (min(errors), mean(errors), max(errors))], taken))
    return "\n".join(parts) + "\n"


def _rule(x: float, y: float, x_end: float, y_end: float, label: str, right: int, down: int, anchor: str) -> str:
    """Return a line of the grid with its value."""
    return (
        f'<path d="M{x:.1f} {y:.1f}L{x_end:.1f} {y_end:.1f}" stroke="#ddd"/>'
        f'<text x="{x + right:.1f}" y="{y + down:.1f}" text-anchor="{anchor}" fill="#666">{label}</text>'
    )


def _dot(name: str, x: float, heights: Sequence[float], taken: list[tuple[float, float, float]]) -> str:
    """Return a row's dot, its line, and its name where nothing else stands; that place is then taken."""
    colour = next(colour for part, colour in COLOURS.items() if part in name)
    low, y, high = heights
    begin, end, line = x + 10, x + 10 + CHARACTER * len(name), y + 3
    while any(begin < e and b < end and abs(line - other) < LINE for b, e, other in taken):
        line += 1
    taken.append((begin, end, line))
    return (
        f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-opacity="0.4" stroke-width="2"/>'
        f'<path d="M{x:.1f} {y:.1f}L{begin - 1:.1f} {line - 3:.1f}" stroke="{colour}" stroke-opacity="0.6"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
        f'<text x="{begin:.1f}" y="{line:.1f}" fill="{colour}">{name}</text>'
    )
