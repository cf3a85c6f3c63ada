"""The fence: everything that emulator, kernels, timing and reports take for granted about a program is checked here.

Kernels have no bounds checks, so only a validated program may run. What holds afterwards:

1. every record has its types, names are unique, printable and short, shapes are positive, addresses lie in memory;
2. every instruction's values fit their fields, keep the kernels' contracts (`nnac.contracts`), touch used bytes only;
3. constants never change, and weight-buffer bytes are read only after a Load of this program has filled them, with
   multipliers, shifts and exponentials of legal value;
4. no instruction overwrites what it still reads; in place, byte for byte, work only tables, sums, products and the
   states of recurrent cells;
5. host segments are models that the host may run (`nnac.frontend.hosted`), called with tensors of their sizes;
6. no wait can block for ever, no two accesses to the same bytes are left without an order when one writes, and the
   whole program is a bounded amount of work.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from nnac import isa, segment
from nnac.array import NO_INT16, taken_folds
from nnac.contracts import SHIFT_MAX, field_problem, rule_problem, scratch_of, work_of
from nnac.errors import ProgramError, raise_all
from nnac.graph import Origin
from nnac.hazards import dependencies, known_before
from nnac.isa import AnyInstruction, Engine, Range, Space
from nnac.isa.stream import loop_steps
from nnac.norms import GAIN_BITS
from nnac.numerics import SOFTMAX_WIDE_ONE, WIDE_MULTIPLIER_LIMIT
from nnac.program import KnownAnswer, Layer, Limits, Program, Tensor, loads
from nnac.targets import Target
from nnac.types import DTYPES, Array, Quant, TensorType

SHOWN = 10
"""Problems that an error lists; the rest is counted."""
CELL_OPERAND = 2
"""Which of the ranges that a recurrent cell reads is its state; hidden values and new state are apart by contract."""


def load(path: str | os.PathLike[str], limits: Limits | None = None, runs: bool = True) -> Program:
    """Return the program of a `.nna` file, which is read once, into memory, validated (see `validate`).

    Raises:
        ProgramError: not a regular file, unreadable, too large, damaged, or not valid (see `validate`).
    """
    limits = limits or Limits()
    return validate(loads(_read(path, limits), repr(os.fspath(path)), limits), limits, runs)


def _read(path: str | os.PathLike[str], limits: Limits) -> bytes:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ProgramError(f"{str(path)!r} is not a regular file")
            if found.st_size > limits.file_bytes:
                raise ProgramError(f"{str(path)!r}: {found.st_size:,} bytes, allowed {limits.file_bytes:,}")
            return file.read(limits.file_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ProgramError(f"{str(Path(path))!r} cannot be read: {reason}") from None


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for a writer, should the path be a FIFO."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def validate(program: Program, limits: Limits | None = None, runs: bool = True) -> Program:
    """Return the program, which is safe to emulate and to time.

    Args:
        program: all of it is checked.
        limits: what is accepted at most.
        runs: False where it is timed only: weights that time does not depend on are not decoded, and what is in the
            weight buffer is not looked at.

    Raises:
        ProgramError: it is not; all problems are collected, one per instruction.
    """
    limits = limits or Limits()
    _raise(program, _frame(program, limits))
    _raise(program, _tensors(program, limits))
    _raise(program, chain(_ports(program), _loops(program), _layers(program, limits), _answer(program)))
    _raise(program, _Stream(program, limits, runs).problems())
    return program


def _raise(program: Program, found: Iterator[str]) -> None:
    problems = list(islice(found, 1 << 16))
    listed = problems[:SHOWN]
    if len(problems) > SHOWN:
        listed.append(f"and {len(problems) - SHOWN:,} more")
    raise_all(ProgramError, f"program {str(program.name)[:80]!r} cannot be run:", listed)


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


def _frame(program: Program, limits: Limits) -> Iterator[str]:
    """What all other checks rest on."""
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


def _tensors(program: Program, limits: Limits) -> Iterator[str]:
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


# -- the stream ----------------------------------------------------------------------------------------------------


class _Stream:
    """One walk over the instructions, with the weight buffer as the Loads fill it."""

    def __init__(self, program: Program, limits: Limits, runs: bool) -> None:
        self.program, self.limits = program, limits
        self.looks = runs or program.target.mac.zero_skip != "none"
        """At values: an array that skips zero weights takes as long as they say."""
        self.work = 0
        self.buffer = np.zeros(program.used[Space.WEIGHTS], np.uint8)
        self.filled = np.zeros(self.buffer.size, np.bool_)
        self.unpacked: dict[tuple[object, ...], Array] = {}
        self.seen: set[tuple[object, ...]] = set()
        self.sure = True
        """All ranges so far were legal, so that order and the weight buffer's contents can be told."""

    def problems(self) -> Iterator[str]:
        for index, instruction in enumerate(self.program.instructions):
            problem = self._problem(instruction)
            if problem is not None:
                yield f"{_where(index, instruction)}: {problem}"
            if self.work > self.limits.work:
                yield f"instruction {index}: more work than {self.limits.work:,} elements and products up to here"
                return
        if self.sure:
            yield from list(_wait_problems(self.program.instructions)) or _order_problems(self.program.instructions)

    def _problem(self, i: AnyInstruction) -> str | None:
        problem = field_problem(i) or rule_problem(i) or self._range_problem(i)
        if problem is not None:
            self.sure = False
            return problem
        self.work += work_of(i)
        if self.work > self.limits.work or not self.sure:
            return None
        return self._content_problem(i)

    def _range_problem(self, i: AnyInstruction) -> str | None:
        """Return what is wrong with the bytes that a legal instruction touches."""
        reads, writes = i.reads(), i.writes()
        for way, ranges in (("reads", reads), ("writes", writes)):
            for r in ranges:
                if r.start < 0 or r.end > self.program.used.get(r.space, 0):
                    return f"{way} {_show(r)}, used {self.program.used.get(r.space, 0):#x} bytes"
        return self._constants_problem(i, reads, writes) or _overlap_problem(i, reads, writes)

    def _constants_problem(self, i: AnyInstruction, reads: Sequence[Range], writes: Sequence[Range]) -> str | None:
        space, size = self.program.constants_space, self.program.constants.size
        for r in writes:
            if r.space == space and r.start < size:
                return f"writes {_show(r)}, where the constants lie"
        for r in reads if isinstance(i, isa.Load) else ():
            if r.space != space or r.end > size:
                return f"loads {_show(r)}, constants end at {size:#x} of {space.label}"
        return None

    # -- the weight buffer's contents ------------------------------------------------------------------------------

    def _content_problem(self, i: AnyInstruction) -> str | None:
        """Return what is wrong with the constants that the instruction finds in the weight buffer."""
        if isinstance(i, isa.Load):
            return self._fill(i)
        if isinstance(i, isa.Host):
            return self._host_problem(i)
        if isinstance(i, isa.Conv | isa.MatMul) and (problem := self._array_problem(i)):
            return problem
        ranges = tuple(r for r in i.reads() if r.space == Space.WEIGHTS)
        key = (type(i), ranges, (i.in_bits, i.taps, i.groups) if isinstance(i, isa.Conv) else ())
        if not ranges or key in self.seen:  # stripes share their constants: one look is enough
            return None
        self.seen.add(key)
        return self._unfilled(i) or self._values_problem(i)

    def _array_problem(self, i: isa.Conv | isa.MatMul) -> str | None:
        """Return what keeps an instruction from the array, or from the emulator's memory, whatever its constants."""
        if (i.wide if isinstance(i, isa.MatMul) else i.in_bits == 16) and not self.program.target.mac.int16:
            return NO_INT16
        scratch = scratch_of(i) if isinstance(i, isa.Conv) else 0
        if scratch > self.limits.memory_bytes:
            return f"needs {scratch:,} bytes of working memory, allowed {self.limits.memory_bytes:,}"
        return None

    def _fill(self, i: isa.Load) -> str | None:
        """Replay a load; return what is wrong with its bytes."""
        self.filled[i.target : i.target + i.target_bytes] = True
        self.seen.clear()
        if i.packer and not getattr(self.program.target.decoder, isa.PACKERS[i.packer]):
            return f"the target's decoder does not know packer {isa.PACKERS[i.packer]!r}"
        if not self.looks:
            return None
        data = self.program.constants[i.source : i.source + i.source_bytes]
        if i.packer:
            try:
                data = self._decoded(i, data)
            except ProgramError as error:
                return str(error)
        self.buffer[i.target : i.target + i.target_bytes] = data
        return None

    def _decoded(self, i: isa.Load, data: Array) -> Array:
        """Return the bytes that a packed load writes; decoding the same bytes twice costs once."""
        from nnac.weights.packers import unpack

        if i.content not in self.unpacked:
            out = np.empty(i.target_bytes, np.int8)
            table = self.program.constants[i.table : i.table + i.table_bytes].tobytes()
            unpack(i.packer, table, np.ascontiguousarray(data), out)
            self.unpacked[i.content] = out.view(np.uint8)
        return self.unpacked[i.content]

    def _unfilled(self, i: AnyInstruction) -> str | None:
        for r in i.reads():
            if r.space == Space.WEIGHTS and not self.filled[r.start : r.end].all():
                return f"reads {_show(r)}, which no Load has filled"
        return None

    def _host_problem(self, i: isa.Host) -> str | None:
        """Return what is wrong with a call: the segment exists, and has these tensors and this cost."""
        if i.model >= len(self.program.segments):
            return f"runs host segment {i.model}, but there are {len(self.program.segments)}"
        ports = segment.ports(self.program.segments[i.model])
        counts = [tuple(map(isa.volume, shapes)) for shapes in (ports.inputs, ports.outputs)]
        if [i.source_counts, i.target_counts] != counts:
            return f"its tensors have other sizes than host segment {i.model}, which has {counts!r:.120}"
        if (i.macs, i.elements) != (ports.macs, ports.elements):
            return f"says that it costs {i.macs} MACs and {i.elements} elements, host segment {i.model} says other"
        return None

    def _values_problem(self, i: AnyInstruction) -> str | None:
        if isinstance(i, isa.Conv):
            return self._conv_problem(i)
        if not self.looks:
            return None
        if isinstance(i, isa.Softmax):
            return self._softmax_problem(i)
        if isinstance(i, isa.Norm):
            limit = 1 << GAIN_BITS
            words = self._words(i.params, 2 * i.channels).astype(np.int64)
            return "a gain or offset is 2**30 or more" if np.abs(words).max() >= limit else None
        return None

    def _softmax_problem(self, i: isa.Softmax) -> str | None:
        """Return what is wrong with exponentials: they are not negative, exp(0) is positive, products stay small."""
        table = self._words(i.table, i.entries)
        firsts, most = table[:: len(table) if i.in_bits == 8 else 256], 1 << 31 if i.in_bits == 8 else SOFTMAX_WIDE_ONE
        legal = table.min() >= 0 and firsts.min() > 0 and table.max() <= most
        return None if legal else "the table of exponentials has illegal entries"

    def _conv_problem(self, i: isa.Conv) -> str | None:
        if i.taps != self._folds(i):
            return f"says that it takes {i.taps} folds of taps, its weights say {self._folds(i)}"
        if not self.looks:
            return None
        shifts = self.buffer[i.params + 8 * i.out_c : i.params + 9 * i.out_c].view(np.int8)
        if shifts.min() < 0 or shifts.max() > SHIFT_MAX:
            return f"a shift is outside of 0 to {SHIFT_MAX}"
        multipliers = self._words(i.params + 4 * i.out_c, i.out_c)
        if i.in_bits == 16 and multipliers.max() >= WIDE_MULTIPLIER_LIMIT:
            return f"a multiplier is {multipliers.max():,}, allowed under 2**23 for 16-bit activations"
        return "a multiplier is negative" if multipliers.min() < 0 else None

    def _folds(self, i: isa.Conv) -> int:
        """Return the folds that the array takes, where it skips zero weights."""
        mac, taps = self.program.target.mac, i.kernel_h * i.kernel_w * i.depth
        if mac.zero_skip == "none" or i.groups > 1:
            return 0
        weights = self.buffer[i.weights : i.weights + i.out_c * taps].reshape(i.out_c, taps)
        return taken_folds(weights, mac)

    def _words(self, address: int, count: int) -> Any:
        return self.buffer[address : address + 4 * count].view("<i4")


def _overlap_problem(i: AnyInstruction, reads: Sequence[Range], writes: Sequence[Range]) -> str | None:
    for w in writes:
        for k, r in enumerate(reads):
            if r.space == w.space and r.start < w.end and w.start < r.end and not _in_place(i, k):
                return f"reads {_show(r)} and writes {_show(w)}, which overlap"
    return None


def _in_place(i: AnyInstruction, operand: int) -> bool:
    """Tell that each element of an operand is read for the one that is written over it, and for no other."""
    if isinstance(i, isa.Lookup):
        return i.source == i.target and i.in_bits == i.out_bits
    if isinstance(i, isa.Lstm):
        return operand == CELL_OPERAND and i.cell == i.cell_out
    if isinstance(i, isa.Gru):
        return operand == CELL_OPERAND and i.state == i.state_out and i.phase != isa.RESET
    if not isinstance(i, isa.Elementwise) or i.sources[operand] != i.target or i.bits[operand] != i.out_bits:
        return False
    step = i.out_bits // 8
    for side, stride in zip(reversed(i.shape), reversed(i.operand_strides(operand)), strict=True):
        if side != 1 and stride != step:
            return False
        step *= side
    return True


def _wait_problems(instructions: Sequence[AnyInstruction]) -> Iterator[str]:
    """Yield where a token names its own engine, or more instructions than an engine has."""
    queued = Counter(i.engine for i in instructions)
    for index, i in enumerate(instructions):
        if i.waits[i.engine]:
            yield f"{_where(index, i)}: waits for its own engine, {i.engine.label}"
        for other in Engine:
            if i.waits[other] > queued[other]:
                yield (
                    f"{_where(index, i)}: waits for {i.waits[other]} instructions of {other.label}, "
                    f"which has {queued[other]}"
                )


def _order_problems(instructions: Sequence[AnyInstruction]) -> Iterator[str]:
    """Yield where tokens block for ever, or leave two accesses to the same bytes without an order."""
    for index, (needs, known) in enumerate(zip(dependencies(instructions), known_before(instructions), strict=True)):
        where = _where(index, instructions[index])
        if known is None:
            yield f"{where}: can never start: its wait tokens go round in a circle"
        elif missing := [Engine(e).label for e, (n, k) in enumerate(zip(needs, known, strict=True)) if n > k]:
            yield f"{where}: touches bytes that {' and '.join(missing)} may still use; a wait token is missing"


def _where(index: int, i: AnyInstruction) -> str:
    return f"instruction {index} ({type(i).__name__})"


def _show(r: Range) -> str:
    return f"bytes {r.start:#x} to {r.end:#x} of {r.space.label}"
