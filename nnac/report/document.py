"""A timeline as JSON, and the contract of its cycles."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nnac import __version__, liveness, timing
from nnac import array as mac_array
from nnac.isa import Space
from nnac.liveness import Moment
from nnac.program import Program
from nnac.report.host import host_account
from nnac.report.latency import Changes, by_memory
from nnac.report.program import tensor_names
from nnac.targets import target_digest
from nnac.timing import LayerTime, Timeline

SCHEMA = 2
"""Version of the JSON report; it rises when an entry changes its meaning or goes."""


def to_json(timeline: Timeline, blob_bytes: int, changes: Changes | None = None) -> dict[str, Any]:
    """Return the whole report as a dict for JSON; times in cycles of the target's clock unless their name says else."""
    program, sizes, moments = timeline.program, timeline.program.target.memory, liveness.moments(timeline.program)
    alive = {place: moment.nbytes for moment in moments for place in moment.layers}
    return {
        "schema": SCHEMA,
        "nnac": __version__,
        "model": program.name,
        "calibration": program.calibration,
        "target": {
            "name": program.target.name,
            "digest": target_digest(program.target),
            "clock_mhz": program.target.clock_mhz,
        },
        "changed": {name: {"compiled": old, "now": new} for name, (old, new) in (changes or {}).items()},
        "cycles": timeline.cycles,
        "milliseconds": timeline.milliseconds,
        "inferences_per_second": timeline.inferences_per_second,
        "bound": timeline.bound,
        "warm": timeline.warm,
        "weights_stay": timing.is_resident(program),
        "macs": program.macs,
        "utilisation": timeline.utilisation,
        "instructions": len(program.instructions),
        "weight_bytes": sum(layer.weight_bytes for layer in program.layers),
        "constants_bytes": int(program.constants.size),
        "blob_bytes": blob_bytes,
        "memory": {
            space.label: {"used": program.used.get(space, 0), "available": sizes[space.label].bytes}
            for space in Space
            if space.label in sizes
        },
        "scratchpad_lower_bound": program.lower_bound,
        "scratchpad_peak": _peak_json(program, liveness.peak(moments)),
        "busy": {engine.label: cycles for engine, cycles in timeline.busy.items()},
        "traffic": by_memory(timeline.traffic),
        "energy_pj": dict(timeline.energy),
        "energy_from": _energy_json(program),
        "host": [asdict(row) for row in host_account(timeline)],
        "layers": [_layer_json(row, timeline.cycles, alive[n]) for n, row in enumerate(timeline.layers)],
        "contract": contract(),
    }


def contract() -> str:
    """Return what the timing model counts, in words, the array included."""
    return "\n\n".join((module.__doc__ or "").strip() for module in (timing, mac_array))


def _peak_json(program: Program, moment: Moment) -> dict[str, Any]:
    names = tensor_names(program)
    return {
        "bytes": moment.nbytes,
        "layers": [program.layers[place].name for place in moment.layers],
        "alive": [
            {"tensor": names.get(r.name, r.name), "as": r.kind, "bytes": r.nbytes, "address": r.buffers[0].start}
            for r in moment.alive
        ],
    }


def _energy_json(program: Program) -> dict[str, str] | None:
    table = program.target.energy
    return {"node": table.node, "source": table.source} if table else None


def _layer_json(row: LayerTime, cycles: int, alive: int) -> dict[str, Any]:
    return {
        "name": row.layer.name,
        "op": row.layer.op,
        "start": row.start,
        "end": row.end,
        "critical": row.critical,
        "share": row.critical / cycles,
        "bound": row.bound,
        "utilisation": row.utilisation,
        "macs": row.layer.macs,
        "weight_bytes": row.layer.weight_bytes,
        "traffic": by_memory(row.traffic),
        "scratchpad_alive": alive,
    }
