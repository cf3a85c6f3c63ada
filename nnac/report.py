"""Reports: programs, timelines and comparisons as text tables, as JSON and as Chrome trace events.

Pure functions. Figures come from their readers (`nnac.timing`, `nnac.program`, `nnac.compare`); here they are only
arranged. Names come from models that nobody vouched for: they are shown through `printable` and never interpreted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from math import inf
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from nnac import __version__, isa, timing
from nnac.isa import Engine, Space
from nnac.program import FORMAT, Program, Tensor
from nnac.targets import Target, explain, target_digest
from nnac.timing import LayerTime, Timeline
from nnac.types import Array

if TYPE_CHECKING:
    from nnac.compare import Comparison, Row

Cell = str | Text

SCHEMA = 1
"""Version of the JSON report; it rises when an entry changes its meaning or goes."""
PLAIN_WIDTH = 80
WORST = 5
"""Layers on the one screen."""
BUFFER = {"weights": "weight buffer"}
"""Memories whose name would be taken for what they hold."""
SHORT = 20
"""Characters of a target's figure that stands in its own column."""
MEANINGS = {"MAC": "the array computes", "weights": "they are loaded", "vector": "the vector unit computes",
            "activations": "they are moved", "issue": "instructions are started"}
"""What it means when a `timing.BOUND` bounds."""


def printable(text: object) -> str:
    """Return text of unknown origin with control, bidi and other invisible characters written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def text(*parts: RenderableType, width: int | None = None) -> str:
    """Return what the parts look like: on a terminal of `width` columns, or (None) plain and 80 columns wide."""
    file, terminal = StringIO(), width is not None
    console = Console(file=file, width=width or PLAIN_WIDTH, force_terminal=terminal, markup=False, highlight=False,
                      emoji=False, color_system="auto" if terminal else None)
    for part in parts:
        console.print(part)
    lines = file.getvalue().split("\n")
    return "\n".join(lines if terminal else map(str.rstrip, lines))


# -- one screen ----------------------------------------------------------------------------------------------------


def screen(timeline: Timeline, blob_bytes: int, blob: str = "") -> Group:
    """Return the answer on one screen: latency, what bounds it, memory, work, worst layers, traffic.

    Args:
        blob_bytes: size of the `.nna` file; `blob`: its name.
    """
    answers = facts(_answers(timeline, blob_bytes, blob))
    return Group(answers, Text(), layers(timeline, WORST), Text(), traffic(timeline))


def _answers(timeline: Timeline, blob_bytes: int, blob: str) -> dict[str, str]:
    program, target = timeline.program, timeline.program.target
    sram, used = target.memory["sram"].bytes, program.used.get(Space.SRAM, 0)
    return {
        "model": program.name,
        "target": machine(target),
        "calibration": calibration(program),
        "latency": f"{timeline.cycles:,} cycles = {_short(timeline.milliseconds)} ms; "
                   f"{_short(timeline.inferences_per_second)} inferences per second",
        "bound by": f"{bound(timeline.bound)}; busy: {busy(timeline)}",
        "scratchpad": f"{used:,} of {sram:,} bytes ({used / sram:.0%}) at the peak; "
                      f"lower bound {program.lower_bound:,}",
        "weights": f"{sum(layer.weight_bytes for layer in program.layers):,} bytes; all constants "
                   f"{program.constants.size:,} bytes",
        "blob": f"{blob_bytes:,} bytes{f': {blob}' if blob else ''}",
        "work": f"{program.macs:,} MACs; {timeline.utilisation:.1%} of the array's peak",
        **energy(timeline),
    }


def machine(target: Target) -> str:
    """Return one line that names a target."""
    return f"{target.name}: {target.clock_mhz:g} MHz, {target.mac.rows} x {target.mac.cols} MACs"


def bound(by: str) -> str:
    """Return what bounds, in words."""
    return f"{by} ({MEANINGS[by]})" if by in MEANINGS else by


def busy(timeline: Timeline) -> str:
    """Return the share of the time that each engine is occupied, the busiest first; idle ones are left out."""
    shares = sorted(((cycles / timeline.cycles, engine.label) for engine, cycles in timeline.busy.items() if cycles),
                    reverse=True)
    return ", ".join(f"{label} {share:.0%}" for share, label in shares) or "nothing"


def energy(timeline: Timeline) -> dict[str, str]:
    """Return the energy of one inference, or nothing where the target has no figures."""
    total = sum(timeline.energy.values())
    parts = ", ".join(f"{part} {count / total:.0%}" for part, count in timeline.energy.items() if count)
    return {"energy": f"{_short(total / 1e6)} uJ: {parts}"} if total else {}


def calibration(program: Program) -> str:
    """Return how the program was calibrated, and what random calibration means."""
    return "random: timing only" if program.calibration == "random" else program.calibration


def facts(rows: Mapping[str, object]) -> Table:
    """Return pairs of name and text, one line each."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, _name(value))
    return table


def layers(timeline: Timeline, limit: int) -> Table:
    """Return the layers that the program waits longest for."""
    rows = sorted(timeline.layers, key=lambda row: -row.critical)[:limit]
    table = _table("worst layers", "op", ">cycles", ">share", "<bound by", ">utilisation")
    for row in rows:
        table.add_row(*_layer(row, timeline.cycles))
    return table


def _layer(row: LayerTime, cycles: int) -> tuple[Cell, ...]:
    return (_name(row.layer.name), _name(row.layer.op), f"{row.critical:,}", f"{row.critical / cycles:.1%}", row.bound,
            f"{row.utilisation:.1%}")


def traffic(timeline: Timeline) -> Table:
    """Return the bytes that cross the port of each memory, and what for."""
    table = _table("<traffic", ">bytes", "~of which")
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


# -- one program ---------------------------------------------------------------------------------------------------


def header(program: Program, blob_bytes: int, digest: str) -> Table:
    """Return what a program is: model, target, calibration, sizes, digest (SHA-256 of the file)."""
    instructions = len(isa.encode(program.instructions))
    rest = blob_bytes - instructions - program.constants.size
    outputs = ", ".join(program.tensor(name).onnx_name for name in program.known_answer.digests)
    return facts({
        "model": program.name, "format": FORMAT, "target": machine(program.target),
        "calibration": calibration(program), "digest": digest,
        "blob": f"{blob_bytes:,} bytes: instructions {instructions:,}, constants {program.constants.size:,}, "
                f"metadata {rest:,}",
        "program": f"{len(program.instructions):,} instructions, {len(program.layers):,} layers, {program.macs:,} MACs",
        "known answer": f"seed {program.known_answer.seed}; {outputs}",
    })


def interface(program: Program) -> Table:
    """Return inputs and outputs with their quantization and their homes."""
    table = _table("inputs", "<ONNX shape", "<device shape", ">scale", ">zero", "<address")
    for name in program.inputs:
        table.add_row(*_port(program.tensor(name)))
    table.add_row(Text("outputs", "bold"))
    for name in program.outputs:
        table.add_row(*_port(program.tensor(name)))
    return table


def _port(tensor: Tensor) -> tuple[Cell, ...]:
    return (_name(tensor.onnx_name), _shape(onnx_shape(tensor)), _shape(tensor.type.shape), *_quant(tensor))


def _quant(tensor: Tensor) -> tuple[str, str, str]:
    quant = tensor.type.quant
    scale, zero = (f"{quant.scale:.9g}", str(quant.zero_point)) if quant else ("", "")
    return scale, zero, f"{tensor.space.label} {tensor.address:#x}"


def onnx_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape that the tensor has in the model."""
    return tensor.origin.onnx_shape(tensor.type.shape) if tensor.origin else tensor.type.shape


def memory_map(program: Program) -> Table:
    """Return used and available bytes of every memory."""
    table = _table("<memory", ">used", ">available", ">share")
    for space in (space for space in Space if space.label in program.target.memory):
        used, available = program.used.get(space, 0), program.target.memory[space.label].bytes
        table.add_row(BUFFER.get(space.label, space.label), f"{used:,}", f"{available:,}", f"{used / available:.1%}")
    return table


def tensors(program: Program) -> Table:
    """Return all tensors of the program in their homes."""
    table = _table("tensor", "ONNX tensor", "<shape", ">scale", ">zero", "<address")
    for tensor in program.tensors:
        origin = tensor.origin.name if tensor.origin else ""
        table.add_row(_name(tensor.name), _name(origin), _shape(tensor.type.shape), *_quant(tensor))
    return table


def arrays(found: Mapping[str, Array]) -> Table:
    """Return name, shape, dtype and range of arrays."""
    table = _table("output", "<shape", "<dtype", ">min", ">max")
    for name, array in found.items():
        table.add_row(_name(name), _shape(array.shape), str(array.dtype), f"{array.min():.6g}", f"{array.max():.6g}")
    return table


# -- against float -------------------------------------------------------------------------------------------------


def comparison(result: Comparison, limit: int | None = None) -> Group:
    """Return outputs, then the layers with the largest error of their own first, all or at most `limit`."""
    rows = result.worst()[:limit]
    shown = f"; {len(rows)} of {len(result.rows)} rows" if len(rows) < len(result.rows) else ""
    note = Text(f"SQNR in dB over {_count(result.samples, 'sample')}{shown}.\n"
                "local: the layer alone, its inputs taken from float.")
    return Group(_outputs(result), Text(), _rows(rows), Text(), note)


def _outputs(result: Comparison) -> Table:
    table = _table("output", ">SQNR", ">max steps")
    for row in (row for row in result.rows if row.output):
        table.add_row(_name(row.tensor), _decibel(row.sqnr), f"{row.max_steps:.1f}")
    return table


def _rows(rows: Sequence[Row]) -> Table:
    table = _table("worst layers", "op", ">local", ">SQNR", ">max steps", ">saturated", ">share")
    for row in rows:
        table.add_row(_name(row.layer or row.tensor), _name(row.op), _decibel(row.local_sqnr), _decibel(row.sqnr),
                      f"{row.max_steps:.1f}", f"{row.saturated:,}", f"{row.saturated / max(1, row.elements):.2%}")
    return table


def _decibel(value: float) -> str:
    return "exact" if value == inf else f"{value:.1f}"


# -- machines and operators ----------------------------------------------------------------------------------------


def targets(known: Iterable[Target]) -> Table:
    """Return names and descriptions of targets."""
    table = _table("<target", "~")
    for target in known:
        table.add_row(_name(target.name), Text(printable(target.description)))
    return table


def figures(target: Target) -> Group:
    """Return every figure of a target with its unit and meaning."""
    table = _table("<figure", "<value", "~meaning")
    for entry, value, unit, meaning in explain(target):
        shown = printable(f"{value} {unit}".rstrip())
        table.add_row(entry, *((shown, meaning) if len(shown) <= SHORT else ("", f"{meaning}: {shown}")))
    return Group(Text(printable(f"{target.name}: {target.description}")), Text(), table)


def operators(rows: Iterable[tuple[str, str, tuple[str, ...]]]) -> Table:
    """Return the supported operators: ONNX name, what it becomes, what is supported."""
    table = _table("<ONNX operator", "~becomes", "~supported if")
    for name, becomes, sentences in rows:
        table.add_row(name, becomes, "; ".join(sentences))
    return table


def operators_markdown(rows: Iterable[tuple[str, str, tuple[str, ...]]]) -> str:
    """Return the supported operators as a Markdown table."""
    cells = ((f"`{name}`", becomes, "; ".join(sentences).replace("|", r"\|")) for name, becomes, sentences in rows)
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join(["| ONNX operator | becomes | supported if |", "| --- | --- | --- |", *lines])


# -- for programs that read ----------------------------------------------------------------------------------------


def to_json(timeline: Timeline, blob_bytes: int) -> dict[str, Any]:
    """Return the whole report as a dict for JSON; times in cycles of the target's clock unless their name says else."""
    program, sizes = timeline.program, timeline.program.target.memory
    return {
        "schema": SCHEMA, "nnac": __version__, "model": program.name, "calibration": program.calibration,
        "target": {"name": program.target.name, "digest": target_digest(program.target),
                   "clock_mhz": program.target.clock_mhz},
        "cycles": timeline.cycles, "milliseconds": timeline.milliseconds,
        "inferences_per_second": timeline.inferences_per_second, "bound": timeline.bound,
        "macs": program.macs, "utilisation": timeline.utilisation, "instructions": len(program.instructions),
        "weight_bytes": sum(layer.weight_bytes for layer in program.layers),
        "constants_bytes": int(program.constants.size), "blob_bytes": blob_bytes,
        "memory": {space.label: {"used": program.used.get(space, 0), "available": sizes[space.label].bytes}
                   for space in Space if space.label in sizes},
        "scratchpad_lower_bound": program.lower_bound,
        "busy": {engine.label: cycles for engine, cycles in timeline.busy.items()},
        "traffic": by_memory(timeline.traffic), "energy_pj": dict(timeline.energy),
        "layers": [_layer_json(row, timeline.cycles) for row in timeline.layers],
        "contract": timing.__doc__,
    }


def _layer_json(row: LayerTime, cycles: int) -> dict[str, Any]:
    return {"name": row.layer.name, "op": row.layer.op, "start": row.start, "end": row.end, "critical": row.critical,
            "share": row.critical / cycles, "bound": row.bound, "utilisation": row.utilisation, "macs": row.layer.macs,
            "weight_bytes": row.layer.weight_bytes, "traffic": by_memory(row.traffic)}


def to_trace(timeline: Timeline) -> dict[str, Any]:
    """Return Chrome trace events (Perfetto): one track per engine, one event per instruction, in microseconds."""
    program = timeline.program
    process = _meta("process_name", 0, f"{printable(program.name)} on {printable(program.target.name)}")
    tracks = [event for engine in Engine for event in _track(engine)]
    return {
        "displayTimeUnit": "ns",
        "otherData": {"schema": SCHEMA, "nnac": __version__, "cycles": timeline.cycles,
                      "clock_mhz": program.target.clock_mhz},
        "traceEvents": [process, *tracks, *_events(timeline)],
    }


def _track(engine: Engine) -> tuple[dict[str, Any], ...]:
    order = _meta("thread_sort_index", engine.value, "")
    return _meta("thread_name", engine.value, engine.label), order | {"args": {"sort_index": engine.value}}


def _meta(kind: str, track: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": track, "args": {"name": name}}


def _events(timeline: Timeline) -> Iterable[dict[str, Any]]:
    """Yield one complete event per instruction, on whole nanoseconds so that neighbours never overlap by a rounding."""
    program = timeline.program
    owners = {index: layer.name for layer in program.layers for index in layer.indices()}
    for index, (instruction, span) in enumerate(zip(program.instructions, timeline.spans, strict=True)):
        start, end = (round(cycle * 1e3 / program.target.clock_mhz) for cycle in (span.start, span.end))
        layer, kind = printable(owners.get(index, "")), type(instruction).__name__
        yield {"name": f"{kind} {layer}".rstrip(), "cat": kind, "ph": "X", "pid": 1, "tid": instruction.engine.value,
               "ts": start / 1e3, "dur": (end - start) / 1e3,
               "args": {"index": index, "layer": layer, "start_cycle": span.start, "end_cycle": span.end,
                        **_amount(instruction)}}


def _amount(instruction: isa.AnyInstruction) -> dict[str, int]:
    if isinstance(instruction, isa.Conv):
        return {"macs": instruction.macs}
    return {"bytes": sum(count for _, count, _ in timing.ports_of(instruction))}


# -- parts ---------------------------------------------------------------------------------------------------------


def _table(*titles: str) -> Table:
    """Return an empty table of columns titled "<..." or ">..." (figures, aligned left or right, never cut), or without
    a mark (names, cut where the table is too wide), or "~..." (running text, that goes on in the next line).
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title.lstrip("<>~"), justify="right" if title.startswith(">") else "left",
                         no_wrap=title.startswith(("<", ">")))
    return table


def _name(name: object) -> Text:
    return Text(printable(name), no_wrap=True, overflow="ellipsis")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
