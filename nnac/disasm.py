"""The command stream as text: one line per instruction, layers between them; equal programs give equal text.

A line holds index, engine, mnemonic, operands in a fixed order, and the waits. Memory is written as space[address];
shapes as 1x2x3; an operand's strides stand in parentheses behind it; elements are bytes unless int16 is said. Of a loop
the first round stands there, behind it what every further round adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import assert_never

from nnac import isa
from nnac.isa import AnyInstruction, Engine, Loop, Space
from nnac.isa.stream import loop_steps
from nnac.program import Layer, Program, Tensor
from nnac.types import Quant

POOLS = {0: "max", 1: "average"}
PHASES = {isa.WHOLE: "whole", isa.RESET: "reset", isa.FINISH: "finish"}


def disassemble(program: Program) -> Iterator[str]:
    """Yield the lines of a validated program, without line ends."""
    yield from _header(program)
    starts: dict[int, list[Layer]] = {}
    for layer in program.layers:
        for first, end in layer.runs:
            if end > first:
                starts.setdefault(first, []).append(layer)
    loops, shown = {loop.start: loop for loop in program.loops}, 0
    for index, instruction in enumerate(program.instructions):
        if index < shown:
            continue
        if index in loops:
            yield f"; loop of {loops[index].count} rounds, {loops[index].body} instructions each"
        yield from (_layer(layer) for layer in starts.get(index, ()))
        yield _line(index, instruction)
        for loop in (each for each in loops.values() if each.start + each.body == index + 1):
            yield from _steps(program, loop)
            shown = loop.start + loop.body * loop.count


def _header(program: Program) -> Iterator[str]:
    names = (program.name, program.target.name, program.calibration)
    yield "; program {}, target {}, calibration {}".format(*map(_text, names))
    counts = (len(program.instructions), program.macs, program.constants.size)
    yield "; {} instructions, {} MACs, {} bytes of constants".format(*counts)
    for space, used in sorted(program.used.items()):
        yield f"; memory {space.label}: {used} of {program.target.memory[space.label].bytes} bytes"
    tensors = {t.name: t for t in program.tensors}
    yield from (f"; input {_tensor(tensors[name])}" for name in program.inputs)
    yield from (f"; output {_tensor(tensors[name])}" for name in program.outputs)


def _steps(program: Program, loop: Loop) -> Iterator[str]:
    """Yield what a round of a loop adds to the one before, a line per instruction that changes."""
    changes: dict[int, list[str]] = {}
    for at, number, element, step in loop_steps(program.instructions, loop):
        name = fields(program.instructions[loop.start + at])[number].name
        value = getattr(program.instructions[loop.start + at], name)
        place = "" if isinstance(value, int) else f"[{element}]"
        changes.setdefault(at, []).append(f"{name}{place} {step:+d}")
    for at, texts in sorted(changes.items()):
        yield f";   each round, {loop.start + at}: {', '.join(texts)}"
    yield f"; end of the loop, {loop.start + loop.body * loop.count} instructions so far"


def _tensor(tensor: Tensor) -> str:
    quant = tensor.type.quant
    real = f" scale {quant.scale!r} zero {quant.zero_point}" if quant else ""
    home = f"{len(tensor.pieces)} pieces" if tensor.pieces else _at(tensor.space, tensor.address)
    return f"{_text(tensor.name)} {tensor.type.dtype} {_sides(tensor.type.shape)}{real} at {home}"


def _layer(layer: Layer) -> str:
    inputs = ", ".join(map(_text, layer.inputs)) or "nothing"
    return (
        f"; layer {_text(layer.name)} ({_text(layer.op)[1:-1]}): {inputs} -> {_text(layer.output)}, "
        f"{layer.macs} MACs, {layer.weight_bytes} bytes of weights"
    )


def _line(index: int, i: AnyInstruction) -> str:
    mnemonic = f"{index:6d}  {i.engine.label:7s}  {type(i).__name__.lower():7s}  "
    return mnemonic + "  ".join((operands(i), *_waits(i.waits)))


def _waits(waits: Sequence[int]) -> Iterator[str]:
    needs = [f"{Engine(engine).label}>={count}" for engine, count in enumerate(waits) if count]
    if needs:
        yield f"wait {' '.join(needs)}"


def operands(i: AnyInstruction) -> str:
    """Return an instruction's operands: what it writes, what it reads, its attributes."""
    match i:
        case isa.Load():
            return _load(i)
        case isa.Copy():
            return _copy(i)
        case isa.Fill():
            return f"{_at(Space(i.space), i.target)} {i.count} {_units(8 * i.width)}, value {i.value}"
        case isa.Conv():
            return _conv(i)
        case isa.Pool():
            return _pool(i)
        case isa.Sum():
            return _sum(i)
        case isa.Mul():
            return f"{_nest(i)}, {_scaled(i.multiplier, i.shift)}, {_result(i.out_zero, i.low, i.high)}"
        case isa.Div():
            return f"{_nest(i)}, {_scaled(i.multiplier, i.shift)}, {_result(i.out_zero, i.low, i.high)}"
        case isa.Extreme():
            return f"{'min' if i.least else 'max'} {_sum(i)}"
        case isa.Select():
            return f"{isa.RELATIONS[i.relation]}: {_sum(i)}"
        case isa.MatMul():
            return _matmul(i)
        case isa.Norm():
            return _norm(i)
        case isa.Magnitude():
            scaled = f"offset {i.offset}, {_scaled(i.multiplier, i.shift)}"
            return f"{_nest(i)}, {scaled}, {_result(i.out_zero, i.low, i.high)}"
        case isa.Lookup():
            return _lookup(i)
        case isa.Softmax():
            return (
                f"{_sram(i.target)}{_wide(i.out_bits)} <- {_sram(i.source)} {_sides((i.rows, i.length))}"
                f"{_wide(i.in_bits)}, table {_buffer(i.table)}, "
                f"{_scaled(i.multiplier, i.shift)}, zero {i.out_zero}"
            )
        case isa.Lstm():
            return _lstm(i)
        case isa.Gru():
            return _gru(i)
        case isa.Host():
            return _host(i)
        case _:
            assert_never(i)


def _load(i: isa.Load) -> str:
    source = _at(Space(i.space), i.source)
    return f"{_buffer(i.target)} {i.target_bytes} bytes <- {source} {i.source_bytes} bytes, packer {i.packer}"


def _copy(i: isa.Copy) -> str:
    target, source = _at(Space(i.target_space), i.target), _at(Space(i.source_space), i.source)
    places = f"{target}({_list(i.target_strides)}) <- {source}({_list(i.source_strides)})"
    return f"{places} {_sides(i.shape)}{_wide(8 * i.width)}"


def _lookup(i: isa.Lookup) -> str:
    tables = f"tables {_buffer(i.table)} {i.tables}x{i.entries}"
    text = f"{_sram(i.target)}{_wide(i.out_bits)} <- {_sram(i.source)} {i.count} {_units(i.in_bits)}, {tables}"
    return text if i.in_bits == 8 else f"{text}, shift {i.shift} zero {i.out_zero}"


def _conv(i: isa.Conv) -> str:
    place = f"pitch {i.pitch} channel {i.channel} of {i.channels}"
    return (
        f"{_sram(i.target)} {_sides((i.out_h, i.out_w, i.out_c))}{_wide(i.out_bits)} {place}"
        f" <- {_sram(i.source)} {_sides((i.in_h, i.in_w, i.in_c))}{_wide(i.in_bits)} zero {i.in_zero}, "
        f"kernels {_buffer(i.weights)}, params {_buffer(i.params)}, {_window(i)} groups {i.groups}, "
        f"{_result(i.out_zero, i.low, i.high)}"
    )


def _pool(i: isa.Pool) -> str:
    counted = f" of {i.padded_h}x{i.padded_w} padded" if i.count_pads else ""
    return (
        f"{POOLS[i.kind]} {_sram(i.target)} {_sides((i.out_h, i.out_w, i.channels))}{_wide(i.out_bits)}"
        f" <- {_sram(i.source)} {_sides((i.in_h, i.in_w, i.channels))}{_wide(i.in_bits)} zero {i.in_zero}, "
        f"{_window(i)}{counted}, {_scaled(i.multiplier, i.shift)}, {_result(i.out_zero, i.low, i.high)}"
    )


def _window(i: isa.Conv | isa.Pool) -> str:
    return (
        f"window {i.kernel_h}x{i.kernel_w} stride {i.stride_h}x{i.stride_w} "
        f"dilation {i.dilation_h}x{i.dilation_w} pad {i.pad_top},{i.pad_left}"
    )


def _sum(i: isa.Sum | isa.Extreme | isa.Select) -> str:
    return f"{_nest(i, i.multipliers)}, shift {i.shift}, {_result(i.out_zero, i.low, i.high)}"


def _nest(i: isa.Elementwise, multipliers: Sequence[int] = ()) -> str:
    """Return target, shape and operands of an elementwise instruction."""
    terms = []
    for n, (source, zero) in enumerate(zip(i.sources, i.zeros, strict=True)):
        factor = f" times {multipliers[n]}" if multipliers else ""
        terms.append(f"{_sram(source)}({_list(i.operand_strides(n))}){_wide(i.bits[n])} zero {zero}{factor}")
    return f"{_sram(i.target)} {_sides(i.shape)}{_wide(i.out_bits)} <- {', '.join(terms)}"


def _matmul(i: isa.MatMul) -> str:
    sides = (i.columns, i.depth) if i.turned else (i.depth, i.columns)
    return (
        f"{_sram(i.target)} {_sides((i.rows, i.columns))}{_wide(i.out_bits)}"
        f" <- {_sram(i.source)} {_sides((i.rows, i.depth))}{_wide(i.in_bits)} zero {i.in_zero}, "
        f"{_sram(i.right)} {_sides(sides)}{_wide(i.right_bits)}{' turned' if i.turned else ''} zero {i.right_zero}, "
        f"{_scaled(i.multiplier, i.shift)}, {_result(i.out_zero, i.low, i.high)}"
    )


def _norm(i: isa.Norm) -> str:
    sides = _sides((i.rows, i.positions, i.groups, i.depth))
    return (
        f"{'centered' if i.centered else 'plain'} {_sram(i.target)}{_wide(i.out_bits)} <- {_sram(i.source)} {sides}"
        f"{_wide(i.in_bits)} zero {i.in_zero}, params {_buffer(i.params)} {i.channels} shifts {i.gain_shift},"
        f"{i.offset_shift}, epsilon {i.epsilon << i.epsilon_shift}, {_result(i.out_zero, i.low, i.high)}"
    )


def _lstm(i: isa.Lstm) -> str:
    peepholes = f", peepholes shift {i.peephole_shift}" if i.peepholes else ""
    state = f"cell {_sram(i.cell_out)} <- {_sram(i.cell)} bits {i.cell_bits}"
    return f"{_cell(i, state)}{peepholes}{', coupled' if i.coupled else ''}"


def _gru(i: isa.Gru) -> str:
    new = "" if i.phase == isa.RESET else f"{_sram(i.state_out)} <- "
    return f"{PHASES[i.phase]} {_cell(i, f'state {new}{_sram(i.state)}')}"


def _host(i: isa.Host) -> str:
    taken, made = i.quants()
    targets = ", ".join(map(_bordering, i.writes(), i.target_counts, made))
    sources = ", ".join(map(_bordering, i.reads(), i.source_counts, taken))
    return f"{targets} <- segment {i.model} of {sources}, {i.macs} MACs, {i.elements} elements"


def _bordering(place: isa.Range, count: int, quant: Quant) -> str:
    """Return one tensor at a host segment's border."""
    return f"{_at(place.space, place.start)} {count} {_units(quant.bits)} scale {quant.scale!r} zero {quant.zero_point}"


def _cell(i: isa.Lstm | isa.Gru, state: str) -> str:
    """Return what the updates of all recurrent cells have."""
    return (
        f"{_sram(i.target)} int{i.out_bits} {_sides((i.batch, i.hidden))} <- gates {_sram(i.gates)} "
        f"recurrent {_sram(i.recurrent)}, {state}, tables {_buffer(i.tables)}, clip {i.clip}, "
        f"{_scaled(i.multiplier, i.shift)}, zero {i.out_zero}"
    )


def _result(zero: int, low: int, high: int) -> str:
    return f"zero {zero} clamp {low}..{high}"


def _wide(bits: int) -> str:
    """Return what stands behind elements of 16 bits."""
    return " int16" if bits == 16 else ""


def _units(bits: int) -> str:
    return "int16" if bits == 16 else "bytes"


def _scaled(multiplier: int, shift: int) -> str:
    return f"times {multiplier} shift {shift}"


def _at(space: Space, address: int) -> str:
    return f"{space.label}[{address:#x}]"


def _sram(address: int) -> str:
    return _at(Space.SRAM, address)


def _buffer(address: int) -> str:
    return _at(Space.WEIGHTS, address)


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _list(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def _text(name: str) -> str:
    """Return a name in quotes; what is no printable ASCII is escaped, so that a terminal shows it and does nothing."""
    return ascii(name)
