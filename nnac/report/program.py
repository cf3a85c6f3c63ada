"""What is in a program: its interface, states, memories, weights and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nnac import liveness
from nnac.isa import Space
from nnac.isa.stream import encode
from nnac.liveness import Moment, Resident
from nnac.program import FORMAT, Program, Tensor
from nnac.report.parts import BUFFER, Cell, calibration, columns, decibel_text, facts, machine, name_text, shape_text
from nnac.types import Array

if TYPE_CHECKING:
    from nnac.report.account import BlobBytes, WeightRow


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
            name_text(tensor.onnx_name),
            name_text(program.tensor(result).onnx_name),
            shape_text(tensor.type.shape),
            tensor.type.dtype,
            f"{tensor.type.nbytes:,}",
            f"{tensor.space.label} {tensor.address:#x}",
        )
    return table


def _port(tensor: Tensor) -> tuple[Cell, ...]:
    return (name_text(tensor.onnx_name), shape_text(tensor.onnx_shape), shape_text(tensor.type.shape), *_quant(tensor))


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
            name_text(layers_at(program, moment)),
            name_text(", ".join(ops)),
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
    table, names = columns("tensor", "<as", ">bytes", "<address", "from", "to"), tensor_names(program)
    for resident in moment.alive:
        table.add_row(
            name_text(names.get(resident.name, resident.name)),
            resident.kind,
            f"{resident.nbytes:,}",
            f"{resident.buffers[0].start:#x}",
            *_life(program, found, resident),
        )
    return table


def _life(program: Program, found: Sequence[Moment], resident: Resident) -> tuple[Text, Text]:
    first = layers_at(program, found[resident.first]) if resident.first >= 0 else "start"
    last = layers_at(program, found[resident.last]) if resident.last < len(found) else "end"
    return name_text(first), name_text(last)


def tensor_names(program: Program) -> dict[str, str]:
    """Return ONNX names by tensor."""
    return {tensor.name: tensor.onnx_name for tensor in program.tensors}


def layers_at(program: Program, moment: Moment) -> str:
    """Return the names of the layers of a moment, the first and the last."""
    names = [program.layers[place].name for place in moment.layers] or ["nothing"]
    return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"


def weights(rows: Sequence[WeightRow], blob: BlobBytes) -> Group:
    """Return what every layer's weights take against their entropy, how they are packed, and the file's parts."""
    table = columns("weights of", "<shape", ">int8", ">blob", ">index", ">bits each", ">entropy", ">zeros", ">SQNR")
    packers = columns("layer", ">levels", ">table", "<packer", "~others, bytes")
    for row in rows:
        table.add_row(
            name_text(row.name),
            shape_text(row.shape),
            f"{row.raw_bytes:,}",
            f"{row.encoded_bytes:,}",
            str(row.bits),
            f"{row.bits_per_weight:.2f}",
            f"{row.entropy_bits:.2f}",
            f"{row.zeros:.0%}",
            "exact" if row.sqnr_db is None else decibel_text(row.sqnr_db),
        )
        others = ", ".join(f"{name} {size:,}" for name, size in row.runners_up)
        packers.add_row(name_text(row.name), str(row.levels), f"{row.table_bytes:,}", row.packer, others)
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
        table.add_row(name_text(tensor.name), name_text(origin), shape_text(tensor.type.shape), *_quant(tensor))
    return table


def arrays(found: Mapping[str, Array]) -> Table:
    """Return name, shape, dtype and range of arrays."""
    table = columns("output", "<shape", "<dtype", ">min", ">max")
    for name, array in found.items():
        table.add_row(
            name_text(name), shape_text(array.shape), str(array.dtype), f"{array.min():.6g}", f"{array.max():.6g}"
        )
    return table
