"""What the fence checks of a program's records: memories, constants, tensors, ports, loops, layers, known answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from math import isfinite

import numpy as np

from nnac import isa
from nnac.errors import ProgramError
from nnac.graph import Origin
from nnac.isa import Space
from nnac.isa.stream import loop_steps
from nnac.program import KnownAnswer, Layer, Limits, Program, Tensor
from nnac.targets import Target
from nnac.types import DTYPES, Quant, TensorType

# -- types and names -----------------------------------------------------------------------------------------------


def _is_int(value: object, low: int = 0, high: int = 1 << 62) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _name_problem(what: str, name: object, limits: Limits) -> Iterator[str]:
    if not isinstance(name, str):
        yield f"{what}: found {name!r:.80}, expected text"
    elif len(name) > limits.name:
        yield f"{what}: {len(name):,} characters, allowed {limits.name:,}"
    elif not name.isprintable():
        yield f"{what} {name[:80]!a}: a character in it cannot be printed"


# -- the frame: target, memories, constants, counts ----------------------------------------------------------------


def frame_problems(program: Program, limits: Limits) -> Iterator[str]:
    """Yield what is wrong with what all other checks rest on."""
    yield from _name_problem("the program's name", program.name, limits)
    yield from _name_problem("calibration", program.calibration, limits)
    yield from _name_problem("the target's name", program.target.name, limits)
    yield from _memories(program, limits)
    yield from _constants(program)
    yield from _segments(program, limits)
    if not _is_int(program.lower_bound, 0, program.used.get(Space.SRAM, 0)):
        yield f"lower_bound: found {program.lower_bound!r:.80}, allowed 0 to the scratchpad's used bytes"
    counts = {"instructions": limits.instructions, "tensors": limits.tensors, "layers": limits.instructions}
    for what, allowed in counts.items():
        if len(getattr(program, what)) > allowed:
            yield f"{len(getattr(program, what)):,} {what}, allowed {allowed:,}"
    for name in chain(program.inputs, program.outputs):
        yield from _name_problem("input or output", name, limits)


def _memories(program: Program, limits: Limits) -> Iterator[str]:
    target: Target = program.target
    for space in (Space.SRAM, Space.WEIGHTS, program.constants_space):
        if space not in program.used:
            yield f"memory.{space.label}: not in the program's memory map"
    for space, used in program.used.items():
        size = target.memory[space.label].bytes if space.label in target.memory else -1
        on_chip = space in (Space.SRAM, Space.WEIGHTS)
        allowed = min(size, limits.buffer_bytes if on_chip else limits.memory_bytes)
        if size < 0:
            yield f"memory.{space.label}: used, but the target has none"
        elif not _is_int(used, 0, allowed):
            yield f"memory.{space.label}: {used!r:.80} bytes used, allowed 0 to {allowed:,}"


def _constants(program: Program) -> Iterator[str]:
    image, space = program.constants, program.constants_space
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 1:
        yield "constants: expected one row of bytes"
    elif image.size > program.used.get(space, 0):
        yield f"constants: {image.size:,} bytes, but only {program.used.get(space, 0):,} used in memory.{space.label}"


def _segments(program: Program, limits: Limits) -> Iterator[str]:
    """Host segments: there is a host, and each of them is a model that the host may run."""
    if not program.segments:
        return
    from nnac.frontend.hosted import segment_problems

    if program.target.host is None:
        yield "it has host segments, but the target has no section [host]"
    if len(program.segments) > limits.segments:
        yield f"{len(program.segments):,} host segments, allowed {limits.segments:,}"
        return
    for number, model in enumerate(program.segments):
        if not isinstance(model, bytes):
            yield f"host segment {number}: found {model!r:.80}, expected bytes"
            continue
        yield from (f"host segment {number}: {problem}" for problem in segment_problems(model))


# -- tensors -------------------------------------------------------------------------------------------------------


def tensor_problems(program: Program, limits: Limits) -> Iterator[str]:
    counts = Counter(t.name for t in program.tensors if isinstance(t.name, str))
    yield from (f"tensor {name!a}: {count} tensors have this name" for name, count in counts.items() if count > 1)
    for tensor in program.tensors:
        where = f"tensor {ascii(tensor.name)[:80]}"
        problem = next(
            chain(
                _name_problem("its name", tensor.name, limits),
                _type(tensor.type, limits),
                _home(tensor, program),
                _origin(tensor, limits),
            ),
            None,
        )
        if problem is not None:
            yield f"{where}: {problem}"


def _type(kind: TensorType, limits: Limits) -> Iterator[str]:
    if kind.dtype not in DTYPES:
        yield f"unknown dtype {kind.dtype!r:.80}"
    yield from _shape(kind.shape, limits)
    if kind.quant is None and kind.dtype == "int8":
        yield "int8, but without a quantization"
    if kind.quant is not None:
        yield from _quant(kind.quant)
        if kind.quant.bits not in (8, 16) or kind.dtype != kind.quant.dtype:
            yield f"{kind.dtype}, but quantized to {kind.quant.bits!r:.80} bits"


def _shape(shape: Sequence[int], limits: Limits) -> Iterator[str]:
    if len(shape) > limits.rank:
        yield f"{len(shape):,} axes, allowed {limits.rank}"
    elif not all(_is_int(side, 1) for side in shape):
        yield f"shape {shape!r:.80}: sides are at least 1"


def _quant(quant: Quant) -> Iterator[str]:
    if not isinstance(quant.scale, float) or not _float32_positive(quant.scale):
        yield f"scale {quant.scale!r:.80} is not a positive float32"
    low, high = (-128, 127) if quant.bits == 8 else (0, 0)
    if not _is_int(quant.zero_point, low, high):
        yield f"zero point {quant.zero_point!r:.80}, allowed {low} to {high}"


def _float32_positive(scale: float) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        rounded = float(np.float32(scale))
    return isfinite(rounded) and rounded > 0


def _home(tensor: Tensor, program: Program) -> Iterator[str]:
    count = len(program.instructions)
    if not _is_int(tensor.ready, -1, count - 1):
        yield f"ready after instruction {tensor.ready!r:.80}, but there are {count:,} instructions"
    used = program.used.get(tensor.space, 0)
    if tensor.pieces:
        yield from _pieces(tensor, used, count)
    elif not _is_int(tensor.address):
        yield f"address {tensor.address!r:.80} is not a number of bytes"
    elif tensor.address + tensor.type.nbytes > used:
        end = tensor.address + tensor.type.nbytes
        yield f"bytes {tensor.address:#x} to {end:#x} of memory.{tensor.space.label}, used {used:#x}"


def _pieces(tensor: Tensor, used: int, count: int) -> Iterator[str]:
    """Pieces lie in used memory and cover the tensor from its first byte to its last."""
    size, reached = tensor.type.nbytes, 0
    for p in tensor.pieces:
        if not (
            _is_int(p.ready, 0, count - 1)
            and _is_int(p.address)
            and _is_int(p.nbytes, 1)
            and p.address + p.nbytes <= used
            and _is_int(p.offset, 0, reached)
            and p.offset + p.nbytes <= size
        ):
            yield f"piece {p!r:.120} does not continue the tensor, or lies outside of used memory"
            return
        reached = max(reached, p.offset + p.nbytes)
    if reached != size:
        yield f"its pieces end at byte {reached}, the tensor has {size}"


def _origin(tensor: Tensor, limits: Limits) -> Iterator[str]:
    if tensor.origin is None:
        return
    yield from _name_problem("ONNX name", tensor.origin.name, limits)
    shape: tuple[int, ...] = tensor.type.shape
    for number, (step, arg) in enumerate(tensor.origin.steps):
        problem = next(_step(step, arg, shape, limits), None)
        if problem is not None:
            yield f"origin step {number}: {problem}"
            return
        shape = Origin("", ((step, arg),)).onnx_shape(shape)


def _step(step: str, arg: tuple[int, ...], shape: tuple[int, ...], limits: Limits) -> Iterator[str]:
    if step not in ("transpose", "reshape"):
        yield f"unknown step {step!r:.80}"
    elif step == "transpose" and not (all(_is_int(a) for a in arg) and sorted(arg) == list(range(len(shape)))):
        yield f"{arg!r:.80} is no permutation of {len(shape)} axes"
    elif step == "reshape":
        yield from _shape(arg, limits)
        if isa.volume(arg) != isa.volume(shape):
            yield f"reshape of {shape} to {arg!r:.80} changes the number of elements"


def record_problems(program: Program, limits: Limits) -> Iterator[str]:
    """Yield what is wrong with the records that name tensors and instructions, which are known to be sound."""
    yield from _ports(program)
    yield from _loops(program)
    yield from _layers(program, limits)
    yield from _answer(program)


def _ports(program: Program) -> Iterator[str]:
    """Inputs and outputs: they exist; inputs are there from the start, apart from each other and from constants."""
    known = {t.name: t for t in program.tensors if isinstance(t.name, str)}
    for way, names in (("input", program.inputs), ("output", program.outputs)):
        yield from (f"{way} {ascii(name)[:80]}: no such tensor" for name in names if name not in known)
    inputs = [known[name] for name in program.inputs if name in known]
    for t in inputs:
        if t.ready != -1:
            yield f"input {t.name!a}: ready after instruction {t.ready}, expected -1"
        if t.space == program.constants_space and t.address < program.constants.size:
            yield f"input {t.name!a}: lies in the constants"
    yield from _states(program, known)
    places = sorted((t.space, t.address, t.address + t.type.nbytes, t.name) for t in inputs)
    for (space, _, end, name), (other, start, _, second) in pairwise(places):
        if space == other and start < end:
            yield f"inputs {name!a} and {second!a}: they share bytes"


def _loops(program: Program) -> Iterator[str]:
    """Loops follow each other, and their rounds differ by constant steps."""
    reached = 0
    for loop in program.loops:
        end = loop.start + loop.body * loop.count
        if loop.start < reached or loop.body < 1 or loop.count < 2 or end > len(program.instructions):
            yield f"the loop at instruction {loop.start} is no range of its own among {len(program.instructions)}"
            return
        try:
            loop_steps(program.instructions, loop)
        except ProgramError as error:
            yield f"the loop at instruction {loop.start}: {error}"
        reached = end


def _states(program: Program, known: dict[str, Tensor]) -> Iterator[str]:
    """States: an input each, of the same type as the output that becomes it, no input twice."""
    for source, result in program.states:
        if source not in program.inputs or result not in program.outputs:
            yield f"state {source!a:.80}: no input whose next value is an output"
        elif _kind(known[source]) != _kind(known[result]):
            yield f"state {source!a:.80}: its next value {result!a:.80} has another type"
    if len({source for source, _ in program.states}) < len(program.states):
        yield "a state has two next values"


def _kind(tensor: Tensor) -> tuple[object, ...]:
    """Return what a state and its next value have in common; a reshape of the same bytes may lie between them."""
    return tensor.onnx_shape, tensor.type.dtype, tensor.type.quant


# -- layers and the known answer -----------------------------------------------------------------------------------


def _layers(program: Program, limits: Limits) -> Iterator[str]:
    known, owned = {t.name for t in program.tensors}, [False] * len(program.instructions)
    for number, layer in enumerate(program.layers):
        problem = next(_layer(layer, owned, known, limits), None)
        if problem is not None:
            yield f"layer {number}: {problem}"
            return
    if not all(owned):
        yield f"instruction {owned.index(False)} belongs to no layer"


def _layer(layer: Layer, owned: list[bool], known: set[str], limits: Limits) -> Iterator[str]:
    yield from _name_problem("name", layer.name, limits)
    yield from _name_problem("op", layer.op, limits)
    for first, end in layer.runs:
        if not (_is_int(first, 0, len(owned)) and _is_int(end, first, len(owned))) or any(owned[first:end]):
            yield f"instructions {first!r:.80} to {end!r:.80} are no range of its own among {len(owned)}"
            return
        owned[first:end] = [True] * (end - first)
    missing = [name for name in (*layer.inputs, *layer.outputs) if not isinstance(name, str) or name not in known]
    yield from (f"no tensor is called {ascii(name)[:80]}" for name in missing)
    if not (_is_int(layer.macs) and _is_int(layer.weight_bytes)):
        yield "macs and weight_bytes are not negative"


def _answer(program: Program) -> Iterator[str]:
    answer: KnownAnswer = program.known_answer
    if not _is_int(answer.seed):
        yield f"known answer: seed {answer.seed!r:.80} is not a non-negative integer"
    for name, digest in answer.digests.items():
        if name not in program.outputs:
            yield f"known answer: {ascii(name)[:80]} is no output"
        if not (isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
            yield f"known answer: the digest of {ascii(name)[:80]} is not 64 hexadecimal digits"
