"""Reports: programs, timelines, sweeps and comparisons as text tables, and a timeline as JSON.

Pure functions. Figures come from their readers (`nnac.timing`, `nnac.liveness`, `nnac.program`, `nnac.compare`); here
they are only arranged. Names come from models that nobody vouched for: they are shown through `printable` and never
interpreted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from io import StringIO
from math import inf
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from nnac import __version__, isa, liveness, timing
from nnac import array as mac_array
from nnac.isa import Space
from nnac.isa.stream import encode
from nnac.liveness import Moment, Resident
from nnac.program import FORMAT, Program, Tensor
from nnac.report.account import host_account
from nnac.targets import Target, explain, target_digest, target_to_dict
from nnac.timing import OUTSIDE, LayerTime, Timeline
from nnac.types import Array

if TYPE_CHECKING:
    from nnac.compare import Comparison, Row
    from nnac.report.account import BlobBytes, WeightRow
    from nnac.sweep import Point

Cell = str | Text
Changes = Mapping[str, tuple[Any, Any]]
"""Figures of a target by dotted name: (when compiled, now)."""

SCHEMA = 2
"""Version of the JSON report; it rises when an entry changes its meaning or goes."""
PLAIN_WIDTH = 80
LINES = 24
"""Of the one screen."""
WORST = 5
"""Layers on the one screen, or fewer where the rest needs the lines."""
BUFFER = {"sram": "scratchpad", "weights": "weight buffer"}
"""Memories whose name would be taken for what they hold, or says little."""
SHORT = 20
"""Characters of a target's figure that stands in its own column."""
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


# -- one screen ----------------------------------------------------------------------------------------------------


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
    changed = Text(printable("; ".join(f"{name} {_value(a)} -> {_value(b)}" for name, (a, b) in changes.items())))
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


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.9g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


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
    return {"host": f"{_count(count, 'operator')}, {share:.1%} of the latency; {nna:,} cycles if the NNA had them"}


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
    where = _layers_of(program, liveness.peak(liveness.moments(program)))
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


def machine(target: Target) -> str:
    """Return one line that names a target."""
    return f"{target.name}: {target.clock_mhz:g} MHz, {target.mac.rows} x {target.mac.cols} MACs"


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


def calibration(program: Program) -> str:
    """Return how the program was calibrated, and what random calibration means."""
    return "random: timing only" if program.calibration == "random" else program.calibration


def facts(rows: Mapping[str, object]) -> Table:
    """Return pairs of name and text, one line each."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value if isinstance(value, Text) else _name(value))
    return table


def layers(timeline: Timeline, limit: int) -> Table:
    """Return the layers that the program waits longest for."""
    rows = sorted(timeline.layers, key=lambda row: -row.critical)[:limit]
    table = columns("worst layers", "op", ">cycles", ">share", "<bound by", ">utilisation")
    for row in rows:
        table.add_row(*_layer(row, timeline.cycles))
    return table


def _layer(row: LayerTime, cycles: int) -> tuple[Cell, ...]:
    return (
        _name(row.layer.name),
        _name(row.layer.op),
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
    rows: list[tuple[Cell, Mapping[tuple[str, str], int]]] = [(_name(r.layer.name), r.traffic) for r in timeline.layers]
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


# -- one program ---------------------------------------------------------------------------------------------------


def header(program: Program, blob_bytes: int, digest: str) -> Table:
    """Return what a program is: model, target, calibration, sizes, digest (SHA-256 of the file)."""
    instructions = len(encode(program.instructions, program.loops))
    rest = blob_bytes - instructions - program.constants.size
    outputs = ", ".join(program.tensor(name).onnx_name for name in program.known_answer.digests)
    return facts(
        {
            "model": program.name,
            "format": FORMAT,
            "target": machine(program.target),
            "calibration": calibration(program),
            "digest": digest,
            "blob": Text(
                f"{blob_bytes:,} bytes: instructions {instructions:,}, constants {program.constants.size:,}, "
                f"metadata {rest:,}"
            ),
            "program": f"{len(program.instructions):,} instructions, {len(program.layers):,} layers, "
            f"{program.macs:,} MACs",
            "known answer": f"seed {program.known_answer.seed}; {outputs}",
        }
    )


def interface(program: Program) -> Table:
    """Return inputs and outputs with their quantization and their homes."""
    table = columns("inputs", "<ONNX shape", "<device shape", ">scale", ">zero", "<address")
    for name in program.inputs:
        table.add_row(*_port(program.tensor(name)))
    table.add_row(Text("outputs", "bold"))
    for name in program.outputs:
        table.add_row(*_port(program.tensor(name)))
    return table


def states(program: Program) -> Table:
    """Return what the device keeps between calls, where, and which output becomes it."""
    table = columns("states", "<next value", "<device shape", "<dtype", ">bytes", "<address")
    for source, result in program.states:
        tensor = program.tensor(source)
        table.add_row(
            _name(tensor.onnx_name),
            _name(program.tensor(result).onnx_name),
            _shape(tensor.type.shape),
            tensor.type.dtype,
            f"{tensor.type.nbytes:,}",
            f"{tensor.space.label} {tensor.address:#x}",
        )
    return table


def _port(tensor: Tensor) -> tuple[Cell, ...]:
    return (_name(tensor.onnx_name), _shape(tensor.onnx_shape), _shape(tensor.type.shape), *_quant(tensor))


def _quant(tensor: Tensor) -> tuple[str, str, str]:
    quant = tensor.type.quant
    scale, zero = (f"{quant.scale:.9g}", str(quant.zero_point)) if quant else ("", "")
    return scale, zero, f"{tensor.space.label} {tensor.address:#x}"


def memory_map(program: Program) -> Table:
    """Return used and available bytes of every memory."""
    table = columns("<memory", ">used", ">available", ">share")
    for space in (space for space in Space if space.label in program.target.memory):
        used, available = program.used.get(space, 0), program.target.memory[space.label].bytes
        table.add_row(BUFFER.get(space.label, space.label), f"{used:,}", f"{available:,}", f"{used / available:.1%}")
    return table


def scratchpad(program: Program) -> Group:
    """Return the bytes alive while each layer works, and what is alive at the peak."""
    size, found = program.target.memory["sram"].bytes, liveness.moments(program)
    table = columns("layer", "op", ">alive", ">of scratchpad", ">tensors")
    for moment in found:
        ops = dict.fromkeys(program.layers[place].op for place in moment.layers)
        table.add_row(
            _name(_layers_of(program, moment)),
            _name(", ".join(ops)),
            f"{moment.nbytes:,}",
            f"{moment.nbytes / size:.1%}",
            str(len(moment.alive)),
        )
    most = liveness.peak(found)
    note = (
        f"alive at the peak: {most.nbytes:,} bytes; placed {program.used.get(Space.SRAM, 0):,}, lower bound "
        f"{program.lower_bound:,}"
    )
    return Group(table, Text(), Text(note), _alive(program, found, most))


def _alive(program: Program, found: Sequence[Moment], moment: Moment) -> Table:
    table, names = columns("tensor", "<as", ">bytes", "<address", "from", "to"), _names(program)
    for resident in moment.alive:
        table.add_row(
            _name(names.get(resident.name, resident.name)),
            resident.kind,
            f"{resident.nbytes:,}",
            f"{resident.buffers[0].start:#x}",
            *_life(program, found, resident),
        )
    return table


def _life(program: Program, found: Sequence[Moment], resident: Resident) -> tuple[Text, Text]:
    first = _layers_of(program, found[resident.first]) if resident.first >= 0 else "start"
    last = _layers_of(program, found[resident.last]) if resident.last < len(found) else "end"
    return _name(first), _name(last)


def _names(program: Program) -> dict[str, str]:
    """Return ONNX names by tensor."""
    return {tensor.name: tensor.onnx_name for tensor in program.tensors}


def _layers_of(program: Program, moment: Moment) -> str:
    """Return the names of the layers of a moment, the first and the last."""
    names = [program.layers[place].name for place in moment.layers] or ["nothing"]
    return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"


def weights(rows: Sequence[WeightRow], blob: BlobBytes) -> Group:
    """Return what every layer's weights take against their entropy, how they are packed, and the file's parts."""
    table = columns("weights of", "<shape", ">int8", ">blob", ">index", ">bits each", ">entropy", ">zeros", ">SQNR")
    packers = columns("layer", ">levels", ">table", "<packer", "~others, bytes")
    for row in rows:
        table.add_row(
            _name(row.name),
            _shape(row.shape),
            f"{row.raw_bytes:,}",
            f"{row.encoded_bytes:,}",
            str(row.bits),
            f"{row.bits_per_weight:.2f}",
            f"{row.entropy_bits:.2f}",
            f"{row.zeros:.0%}",
            "exact" if row.sqnr_db is None else _decibel(row.sqnr_db),
        )
        others = ", ".join(f"{name} {size:,}" for name, size in row.runners_up)
        packers.add_row(_name(row.name), str(row.levels), f"{row.table_bytes:,}", row.packer, others)
    raw, packed = sum(row.raw_bytes for row in rows), sum(row.encoded_bytes for row in rows)
    table.add_row("total", "", f"{raw:,}", f"{packed:,}", "", f"{8 * packed / raw:.2f}" if raw else "")
    return Group(table, Text(), packers, Text(), _blob_parts(blob))


def _blob_parts(blob: BlobBytes) -> Table:
    table = columns("<blob", ">bytes", ">share")
    for name, nbytes in blob.parts().items():
        table.add_row(name, f"{nbytes:,}", f"{nbytes / blob.blob:.1%}")
    table.add_row("total", f"{blob.blob:,}", "")
    table.add_row("with int8 weights", f"{blob.all_int8:,}", f"{blob.blob / blob.all_int8:.1%}")
    share = f"{blob.blob / blob.float32:.1%}" if blob.float32 else ""
    table.add_row("float32 weights, bias", f"{blob.float32:,}", share)
    return table


def tensors(program: Program) -> Table:
    """Return all tensors of the program in their homes."""
    table = columns("tensor", "ONNX tensor", "<shape", ">scale", ">zero", "<address")
    for tensor in program.tensors:
        origin = tensor.origin.name if tensor.origin else ""
        table.add_row(_name(tensor.name), _name(origin), _shape(tensor.type.shape), *_quant(tensor))
    return table


def arrays(found: Mapping[str, Array]) -> Table:
    """Return name, shape, dtype and range of arrays."""
    table = columns("output", "<shape", "<dtype", ">min", ">max")
    for name, array in found.items():
        table.add_row(_name(name), _shape(array.shape), str(array.dtype), f"{array.min():.6g}", f"{array.max():.6g}")
    return table


# -- against float -------------------------------------------------------------------------------------------------


def comparison(result: Comparison, limit: int | None = None) -> Group:
    """Return outputs, then the layers with the largest error of their own first, all or at most `limit`."""
    rows = result.worst()[:limit]
    shown = f"; {len(rows)} of {len(result.rows)} rows" if len(rows) < len(result.rows) else ""
    note = Text(
        f"SQNR in dB over {_count(result.samples, 'sample')}{shown}.\n"
        "local: the layer alone, its inputs taken from float."
    )
    return Group(_outputs(result), Text(), _rows(rows), Text(), note)


def _outputs(result: Comparison) -> Table:
    table = columns("output", ">SQNR", ">max steps")
    for row in (row for row in result.rows if row.output):
        table.add_row(_name(row.tensor), _decibel(row.sqnr), f"{row.max_steps:.1f}")
    return table


def _rows(rows: Sequence[Row]) -> Table:
    table = columns("worst layers", "op", ">local", ">SQNR", ">max steps", ">saturated", ">share")
    for row in rows:
        table.add_row(
            _name(row.layer or row.tensor),
            _name(row.op),
            _decibel(row.local_sqnr),
            _decibel(row.sqnr),
            f"{row.max_steps:.1f}",
            f"{row.saturated:,}",
            f"{row.saturated / max(1, row.elements):.2%}",
        )
    return table


def _decibel(value: float) -> str:
    return "exact" if value == inf else f"{value:.1f}"


# -- many machines -------------------------------------------------------------------------------------------------


def points(found: Sequence[Point]) -> Group:
    """Return the points of a sweep, one line each, and below them why some do not fit."""
    figures = list(found[0].settings) if found else []
    table = columns(
        *(f">{_stacked(name)}" for name in figures),
        ">cycles",
        ">ms",
        ">DRAM, flash\nbytes",
        ">scratchpad\npeak",
        ">MACs",
        ">on-chip\nKiB",
    )
    for point in found:
        reached = (
            ("does not fit", "", "", "")
            if point.problem
            else (f"{point.cycles:,}", short(point.milliseconds), f"{point.outside_bytes:,}", f"{point.sram_used:,}")
        )
        table.add_row(
            *map(_value, point.settings.values()), *reached, f"{point.macs:,}", f"{point.on_chip_bytes / 1024:,.4g}"
        )
    problems = [_name(f"{_settings(point)}: {point.problem}") for point in found if point.problem]
    return Group(table, *((Text(), *problems) if problems else ()))


def _settings(point: Point) -> str:
    return ", ".join(f"{name}={value}" for name, value in point.settings.items())


def _stacked(name: str) -> str:
    """Return a dotted name on several lines, for the head of a narrow column."""
    return name.replace(".", ".\n")


# -- machines and operators ----------------------------------------------------------------------------------------


def targets(known: Iterable[Target]) -> Table:
    """Return names and descriptions of targets."""
    table = columns("<target", "~")
    for target in known:
        table.add_row(_name(target.name), Text(printable(target.description)))
    return table


def figures(target: Target) -> Group:
    """Return every figure of a target with its unit and meaning."""
    table = columns("<figure", "<value", "~meaning")
    for entry, value, unit, meaning in explain(target):
        shown = printable(f"{value} {unit}".rstrip())
        table.add_row(entry, *((shown, meaning) if len(shown) <= SHORT else ("", f"{meaning}: {shown}")))
    return Group(Text(printable(f"{target.name}: {target.description}")), Text(), table)


def operators(rows: Iterable[tuple[str, str, tuple[str, ...]]]) -> Group:
    """Return the supported operators: ONNX name, what it becomes, what is supported."""
    table = columns("<ONNX operator", "~becomes", "~supported if")
    for name, becomes, sentences in rows:
        table.add_row(name, becomes, _supported(sentences))
    return Group(table, Text(), Text("Everywhere: tensors are float32 (or constants) and of a fixed shape."))


def _supported(sentences: tuple[str, ...]) -> str:
    return "; ".join(sentences) or "always"


def operators_markdown(rows: Iterable[tuple[str, str, tuple[str, ...]]]) -> str:
    """Return the supported operators as a Markdown table."""
    cells = ((f"`{name}`", becomes, _supported(sentences).replace("|", r"\|")) for name, becomes, sentences in rows)
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join(["| ONNX operator | becomes | supported if |", "| --- | --- | --- |", *lines])


# -- for programs that read ----------------------------------------------------------------------------------------


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
    names = _names(program)
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


# -- parts ---------------------------------------------------------------------------------------------------------


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


def _name(name: object) -> Text:
    return Text(printable(name), no_wrap=True, overflow="ellipsis")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def short(value: float) -> str:
    """Return a figure with four digits, or whole from a thousand on."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
