"""The byte stream of a program's instructions, generated from the fields that they declare.

An instruction is its opcode and its fields, little-endian; a field of any number of values begins with their count. A
loop is the byte `LOOP`, the counts of body instructions, rounds and steps, the steps, and the first round.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any

from nnac.errors import ProgramError
from nnac.isa import CODES, OPCODES, AnyInstruction, Loop

LOOP = 255
"""Stands where an opcode does; behind it counts of body instructions, rounds and steps, the steps, the body."""
_LOOP_HEAD, _LOOP_STEP = "<III", "<IBBi"
Step = tuple[int, int, int, int]
"""Instruction in the body, field, value in the field, and what each round adds to it."""


def encode(instructions: Sequence[AnyInstruction], loops: Sequence[Loop] = ()) -> bytes:
    """Return the byte stream of a program.

    Args:
        instructions: as they are executed, loops unrolled.
        loops: ascending, not nested.

    Raises:
        ProgramError: a value does not fit its field, or the rounds of a loop differ by more than constant steps.
    """
    parts, at = [], 0
    for loop in loops:
        end = loop.start + loop.body * loop.count
        steps = loop_steps(instructions[at:end], replace(loop, start=loop.start - at))
        parts += [_encode_one(i) for i in instructions[at : loop.start]]
        parts.append(bytes([LOOP]) + struct.pack(_LOOP_HEAD, loop.body, loop.count, len(steps)))
        parts += [struct.pack(_LOOP_STEP, *step) for step in steps]
        parts += [_encode_one(i) for i in instructions[loop.start : loop.start + loop.body]]
        at = end
    return b"".join([*parts, *(_encode_one(i) for i in instructions[at:])])


def loop_steps(instructions: Sequence[AnyInstruction], loop: Loop) -> list[Step]:
    """Return what changes from round to round of a loop.

    Raises:
        ProgramError: the rounds do not differ by the same steps each time.
    """
    first, second = (instructions[loop.start + n * loop.body : loop.start + (n + 1) * loop.body] for n in (0, 1))
    steps = [step for at, pair in enumerate(zip(first, second, strict=True)) for step in _differences(at, *pair)]
    for count in range(2, loop.count):
        start = loop.start + count * loop.body
        if tuple(instructions[start : start + loop.body]) != _round(first, steps, count):
            raise ProgramError(f"loop at instruction {loop.start}: round {count} does not continue the ones before it")
    return steps


def _differences(at: int, a: AnyInstruction, b: AnyInstruction) -> Iterator[Step]:
    if type(a) is not type(b):
        raise ProgramError(f"loop: {type(a).__name__} becomes {type(b).__name__} in the second round")
    for number, f in enumerate(fields(a)):
        old, new = getattr(a, f.name), getattr(b, f.name)
        if old == new:
            continue
        pair = ((old,), (new,)) if isinstance(old, int) else (old, new)
        for element, (x, y) in enumerate(zip(*pair, strict=True)):
            if x != y:
                yield at, number, element, y - x


def _round(body: Sequence[AnyInstruction], steps: Sequence[Step], count: int) -> tuple[AnyInstruction, ...]:
    """Return round `count` of a loop whose round 0 is `body`."""
    changes: dict[int, dict[str, Any]] = {}
    for at, number, element, step in steps:
        name = fields(body[at])[number].name
        value = changes.setdefault(at, {}).get(name, getattr(body[at], name))
        if isinstance(value, int):
            changes[at][name] = value + step * count
        else:
            changes[at][name] = (*value[:element], value[element] + step * count, *value[element + 1 :])
    return tuple(replace(i, **changes[at]) if at in changes else i for at, i in enumerate(body))


def _encode_one(instruction: AnyInstruction) -> bytes:
    return bytes([instruction.opcode]) + b"".join(_encode_field(instruction, f) for f in fields(instruction))


def _encode_field(instruction: AnyInstruction, f: Any) -> bytes:
    value, code, count = getattr(instruction, f.name), CODES[f.metadata["code"]], f.metadata["count"]
    values = value if isinstance(value, tuple) else (value,)
    try:
        if count and len(values) != count:
            raise struct.error(f"{len(values)} values for {count} places")
        head = b"" if count else struct.pack("<B", len(values))
        return head + struct.pack(f"<{len(values)}{code}", *values)
    except struct.error as error:
        kind = type(instruction).__name__
        raise ProgramError(
            f"{kind}.{f.name} = {value!r} does not fit its field ({f.metadata['code']}): {error}"
        ) from None


def decode(stream: bytes, count: int | None = None) -> tuple[tuple[AnyInstruction, ...], tuple[Loop, ...]]:
    """Return the instructions of a byte stream, loops unrolled, and the loops; the inverse of `encode`.

    Args:
        stream: the bytes.
        count: how many instructions there are, if that is known; no more are unrolled.

    Raises:
        ProgramError: unknown opcode, the stream ends inside an instruction, a loop is no loop, or there is another
            number of instructions.
    """
    loops: list[Loop] = []
    unrolled = _decode(stream, loops)
    found = tuple(unrolled if count is None else islice(unrolled, count + 1))
    if count is not None and len(found) != count:
        more = "more" if len(found) > count else f"{len(found):,}"
        raise ProgramError(f"instruction stream: expected {count:,} instructions, found {more}")
    return found, tuple(loops)


def _decode(stream: bytes, loops: list[Loop]) -> Iterator[AnyInstruction]:
    """Yield the instructions as they are executed, and enter the loops."""
    at = number = 0
    while at < len(stream):
        if stream[at] != LOOP:
            instruction, at = _decode_one(stream, at)
            number += 1
            yield instruction
            continue
        loop, steps, body, at = _decode_loop(stream, at, number)
        loops.append(loop)
        number += loop.body * loop.count
        yield from body
        for count in range(1, loop.count):
            yield from _round(body, steps, count)


def _decode_loop(stream: bytes, at: int, start: int) -> tuple[Loop, list[Step], list[AnyInstruction], int]:
    """Return a loop that begins with instruction `start`, its steps, its first round, and where the stream goes on."""
    first, head, one = at, struct.calcsize(_LOOP_HEAD), struct.calcsize(_LOOP_STEP)
    try:
        body, count, many = struct.unpack_from(_LOOP_HEAD, stream, at + 1)
        at += 1 + head
        if at + many * one > len(stream) or not body or count < 2:
            raise struct.error
        steps = [struct.unpack_from(_LOOP_STEP, stream, at + n * one) for n in range(many)]
    except struct.error:
        raise ProgramError(f"instruction stream: the loop at byte {first} is cut short or empty") from None
    at += many * one
    instructions: list[AnyInstruction] = []
    while len(instructions) < body:
        if at >= len(stream) or stream[at] == LOOP:
            raise ProgramError(f"instruction stream: the loop at byte {first} is cut short or holds another loop")
        instruction, at = _decode_one(stream, at)
        instructions.append(instruction)
    if any(not _fits(step, instructions) for step in steps):
        raise ProgramError(f"instruction stream: the loop at byte {first} steps through a value that is not there")
    return Loop(start, body, count), steps, instructions, at


def _fits(step: Step, body: Sequence[AnyInstruction]) -> bool:
    """Tell whether a step names a value of the body."""
    at, number, element, _ = step
    if at >= len(body) or number >= len(fields(body[at])):
        return False
    value = getattr(body[at], fields(body[at])[number].name)
    return element < (1 if isinstance(value, int) else len(value))


def _decode_one(stream: bytes, at: int) -> tuple[AnyInstruction, int]:
    """Return the instruction at byte `at`, and where the next one begins."""
    kind = OPCODES.get(stream[at])
    if kind is None:
        raise ProgramError(f"instruction stream: unknown opcode {stream[at]} at byte {at}")
    start, at, values = at, at + 1, {}
    try:
        for f in fields(kind):
            values[f.name], at = _decode_field(stream, at, f)
    except struct.error:
        raise ProgramError(f"instruction stream: cut short inside {kind.__name__} at byte {start}") from None
    return kind(**values), at


def _decode_field(stream: bytes, at: int, f: Any) -> tuple[Any, int]:
    code, count = CODES[f.metadata["code"]], f.metadata["count"]
    if count == 0:
        (count,), at = struct.unpack_from("<B", stream, at), at + 1
    layout = f"<{count}{code}"
    values = struct.unpack_from(layout, stream, at)
    single = f.metadata["count"] == 1
    return (values[0] if single else values), at + struct.calcsize(layout)
