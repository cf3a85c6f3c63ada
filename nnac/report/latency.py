"""The one screen: how long a program takes, what bounds it, what it occupies and moves; and the tables behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nnac import array as mac_array
from nnac import isa, liveness, timing
from nnac.isa import Space
from nnac.program import Program
from nnac.report.host import host_account
from nnac.report.parts import (
    BUFFER,
    Cell,
    calibration,
    columns,
    count_text,
    facts,
    machine,
    name_text,
    printable,
    short,
    text,
    value_text,
)
from nnac.report.program import layers_at
from nnac.targets import Target, target_to_dict
from nnac.timing import OUTSIDE, LayerTime, Timeline

Changes = Mapping[str, tuple[Any, Any]]
"""Figures of a target by dotted name: (when compiled, now)."""
LINES = 24
"""Of the one screen."""
WORST = 5
"""Layers on the one screen, or fewer where the rest needs the lines."""
MEANINGS = {
    "MAC": "the array computes",
    "weights": "they are loaded",
    "vector": "the vector unit computes",
    "activations": "they are moved",
    "issue": "instructions are started",
    "host": "operators run beside the NNA",
    "port": "the bytes of one memory take longest",
}
"""What it means when a `timing.BOUND` bounds."""


def screen(timeline: Timeline, blob_bytes: int, blob: str = "", changes: Changes | None = None) -> Group:
    """Return the answer on one screen: latency, what bounds it, memory, work, worst layers, traffic.

    Args:
        blob_bytes: size of the `.nna` file; `blob`: its name.
        changes: figures that are not those that the program was compiled for.
    """
    answers, moved = facts(_answers(timeline, blob_bytes, blob, changes or {})), traffic(timeline)
    lines = len(text(answers, Text(), Text(), moved).splitlines()) + 1
    return Group(answers, Text(), layers(timeline, max(1, min(WORST, LINES - lines))), Text(), moved)


def _answers(timeline: Timeline, blob_bytes: int, blob: str, changes: Changes) -> dict[str, str | Text]:
    program, target = timeline.program, timeline.program.target
    changed = Text(
        printable("; ".join(f"{name} {value_text(a)} -> {value_text(b)}" for name, (a, b) in changes.items()))
    )
    return {
        "model": program.name,
        "target": machine(target),
        **({"changed": changed} if changes else {}),
        "calibration": calibration(program),
        **_latency(timeline),
        **_host(timeline),
        "bound by": f"{bound(timeline.bound)}; busy: {busy(timeline)}",
        "scratchpad": _scratchpad(program),
        **_weights(program),
        "blob": f"{blob_bytes:,} bytes{f': {blob}' if blob else ''}",
        "work": f"{program.macs:,} MACs; {timeline.utilisation:.1%} of the array's peak",
        **energy(timeline),
    }


def _latency(timeline: Timeline) -> dict[str, str]:
    """Return the time of the inference, and of those after it where they are faster."""
    rows = {"latency": f"{_time(timeline)}; {short(timeline.inferences_per_second)} inferences per second"}
    if timeline.warm:
        return rows | {"warm": "an inference after the first: weights stay in the weight buffer"}
    if timing.is_resident(timeline.program):
        warm = timing.simulate(timeline.program, warm=True)
        if warm.cycles < timeline.cycles:
            rows["next"] = f"{_time(warm)}: weights stay in the weight buffer"
    return rows


def _host(timeline: Timeline) -> dict[str, str]:
    """Return how much of the model runs on the host, or nothing where none does."""
    rows = host_account(timeline)
    if not rows:
        return {}
    count, share = sum(len(row.nodes) for row in rows), sum(row.cycles for row in rows) / timeline.cycles
    nna = sum(row.nna_cycles for row in rows)
    return {"host": f"{count_text(count, 'operator')}, {share:.1%} of the latency; {nna:,} cycles if the NNA had them"}


def _time(timeline: Timeline) -> str:
    return f"{timeline.cycles:,} cycles = {short(timeline.milliseconds)} ms"


def _weights(program: Program) -> dict[str, Text]:
    """Return what the weights take: fewer bytes where they are packed, fewer cycles where the array skips zeros."""
    raw = sum(layer.weight_bytes for layer in program.layers)
    packed = sum(layer.encoding.nbytes for layer in program.layers if layer.encoding)
    rest = f"; all constants {program.constants.size:,} bytes"
    if 0 < packed < raw:
        rest = f" packed into {packed:,} ({8 * packed / raw:.2f} bits each); constants {program.constants.size:,}"
    rows = {"weights": Text(f"{raw:,} bytes{rest}")}
    dense, taken = _skipping(program)
    if taken < dense:
        rows["zeros"] = Text(f"the array skips {1 - taken / dense:.0%} of its cycles: {taken:,} of {dense:,}")
    return rows


def _skipping(program: Program) -> tuple[int, int]:
    """Return the array's cycles without and with skipping of zero weights."""
    mac, convs = program.target.mac, [i for i in program.instructions if isinstance(i, isa.Conv) and i.taps]
    dense = sum(mac_array.array_cycles(replace(i, taps=0), mac) for i in convs)
    return dense, sum(mac_array.array_cycles(i, mac) for i in convs)


def _scratchpad(program: Program) -> str:
    size, used = program.target.memory["sram"].bytes, program.used.get(Space.SRAM, 0)
    where = layers_at(program, liveness.peak(liveness.moments(program)))
    return f"{used:,} of {size:,} bytes ({used / size:.0%}); lower bound {program.lower_bound:,}; at {where}"


def changed(before: Target, after: Target) -> dict[str, tuple[Any, Any]]:
    """Return the figures that differ between two targets of the same sections: (before, after) by dotted name."""
    old, new = _flat(target_to_dict(before), ""), _flat(target_to_dict(after), "")
    return {name: (old.get(name), value) for name, value in new.items() if old.get(name) != value}


def _flat(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def bound(by: str) -> str:
    """Return what bounds, in words."""
    return f"{by} ({MEANINGS[by]})" if by in MEANINGS else by


def busy(timeline: Timeline) -> str:
    """Return the share of the time that each engine is occupied, the busiest first; idle ones are left out."""
    shares = sorted(
        ((cycles / timeline.cycles, engine.label) for engine, cycles in timeline.busy.items() if cycles), reverse=True
    )
    return ", ".join(f"{label} {share:.0%}" for share, label in shares) or "nothing"


def energy(timeline: Timeline) -> dict[str, str]:
    """Return the energy of one inference and where its figures come from, or nothing where the target has none."""
    total, table = sum(timeline.energy.values()), timeline.program.target.energy
    if not total or table is None:
        return {}
    parts = ", ".join(f"{part} {count / total:.0%}" for part, count in timeline.energy.items() if count)
    return {"energy": f"{short(total / 1e6)} uJ: {parts}", "energy from": f"{table.node}; {table.source}"}


def layers(timeline: Timeline, limit: int) -> Table:
    """Return the layers that the program waits longest for."""
    rows = sorted(timeline.layers, key=lambda row: -row.critical)[:limit]
    table = columns("worst layers", "op", ">cycles", ">share", "<bound by", ">utilisation")
    for row in rows:
        table.add_row(*_layer(row, timeline.cycles))
    return table


def _layer(row: LayerTime, cycles: int) -> tuple[Cell, ...]:
    return (
        name_text(row.layer.name),
        name_text(row.layer.op),
        f"{row.critical:,}",
        f"{row.critical / cycles:.1%}",
        row.bound,
        f"{row.utilisation:.1%}",
    )


def all_layers(timeline: Timeline) -> Group:
    """Return every layer in program order: its time, then its bytes, each with a total."""
    table = columns("layer", "op", ">cycles", ">share", "<bound by", ">utilisation")
    for row in timeline.layers:
        table.add_row(*_layer(row, timeline.cycles))
    share = sum(row.critical for row in timeline.layers) / timeline.cycles
    table.add_row("total", "", f"{timeline.cycles:,}", f"{share:.1%}", timeline.bound, f"{timeline.utilisation:.1%}")
    return Group(table, Text(), layer_traffic(timeline))


def layer_traffic(timeline: Timeline) -> Table:
    """Return the bytes of every layer by memory, and what those outside the chip are for."""
    memories = list(by_memory(timeline.traffic))
    outside = {space.label for space in OUTSIDE}
    table = columns("layer", *(f">{BUFFER.get(memory, memory)}" for memory in memories), "~outside the chip")
    rows: list[tuple[Cell, Mapping[tuple[str, str], int]]] = [
        (name_text(r.layer.name), r.traffic) for r in timeline.layers
    ]
    for name, found in (*rows, ("total", timeline.traffic)):
        sums = {memory: sum(purposes.values()) for memory, purposes in by_memory(found).items()}
        parts = ", ".join(f"{purpose} {n:,}" for (memory, purpose), n in found.items() if memory in outside and n)
        table.add_row(name, *(f"{sums.get(memory, 0):,}" for memory in memories), parts)
    return table


def traffic(timeline: Timeline) -> Table:
    """Return the bytes that cross the port of each memory, and what for."""
    table = columns("<traffic", ">bytes", "~of which")
    for memory, purposes in by_memory(timeline.traffic).items():
        parts = ", ".join(f"{purpose} {count:,}" for purpose, count in purposes.items())
        table.add_row(BUFFER.get(memory, memory), f"{sum(purposes.values()):,}", parts)
    return table


def by_memory(found: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """Return traffic as memory -> purpose -> bytes."""
    result: dict[str, dict[str, int]] = {}
    for (memory, purpose), count in found.items():
        result.setdefault(memory, {})[purpose] = count
    return result
