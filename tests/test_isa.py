"""The encoding: what goes in comes out, and what does not fit or is cut short is refused."""

from __future__ import annotations

from dataclasses import Field, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnac import isa
from nnac.errors import ProgramError
from nnac.isa import AnyInstruction, Engine, Range, Space
from nnac.isa.stream import LOOP, decode, encode

KINDS = tuple(isa.OPCODES.values())
FIELDS = [(kind, f.name) for kind in KINDS for f in fields(kind)]


def bounds(f: Field[Any]) -> tuple[int, int]:
    """Return the lowest and highest value of a field, from its declared width."""
    bits, signed = int(f.metadata["code"][1:]), f.metadata["code"].startswith("i")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def values(f: Field[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy of a field's legal values; both ends come often."""
    low, high = bounds(f)
    single = st.sampled_from([low, high]) | st.integers(low, high)
    count = f.metadata["count"]
    if count == 1:
        return single
    return st.lists(single, min_size=count, max_size=count or 255).map(tuple)


def instructions() -> st.SearchStrategy[AnyInstruction]:
    """Return a strategy of instructions of every kind whose fields fit, but which need not make sense."""
    return st.one_of(*(st.builds(kind, **{f.name: values(f) for f in fields(kind)}) for kind in KINDS))


def smallest(kind: type[AnyInstruction]) -> AnyInstruction:
    """Return an instruction with zeros in every field."""
    zeros: dict[str, Any] = {}
    for f in fields(kind):
        count = f.metadata["count"]
        zeros[f.name] = 0 if count == 1 else (0,) * (count or 1)
    return kind(**zeros)


def changed(instruction: AnyInstruction, name: str, value: Any) -> AnyInstruction:
    """Return the instruction with another value in one field."""
    changes: dict[str, Any] = {name: value}
    return replace(instruction, **changes)


def with_entry(instruction: AnyInstruction, name: str, value: int) -> AnyInstruction:
    """Return the instruction with `value` in the field, in its last place if it has several."""
    old = getattr(instruction, name)
    return changed(instruction, name, (*old[:-1], value) if isinstance(old, tuple) else value)


@settings(max_examples=300, deadline=None)
@given(st.lists(instructions(), max_size=5))
def test_decode_inverts_encode(program: list[AnyInstruction]) -> None:
    """A stream comes back as it was, in any company."""
    assert decode(encode(tuple(program)))[0] == tuple(program)


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_field_ends_where_declared(kind: type[AnyInstruction], name: str) -> None:
    """The extremes of each field survive; one step further is refused with the field's name."""
    low, high = bounds(next(f for f in fields(kind) if f.name == name))
    for value in (low, high):
        instruction = with_entry(smallest(kind), name, value)
        assert decode(encode((instruction,)))[0] == (instruction,)
    for value in (low - 1, high + 1):
        with pytest.raises(ProgramError, match=f"{kind.__name__}.{name} "):
            encode((with_entry(smallest(kind), name, value),))


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_field_holds_its_count(kind: type[AnyInstruction], name: str) -> None:
    """A tuple of another length, or longer than its length byte can say, is refused."""
    count = next(f for f in fields(kind) if f.name == name).metadata["count"]
    if count == 1:
        return
    for length in (256,) if count == 0 else (count - 1, count + 1):
        with pytest.raises(ProgramError, match=f"{kind.__name__}.{name} "):
            encode((changed(smallest(kind), name, (0,) * length),))


@pytest.mark.parametrize("value", [1.0, "1", None, 1.5])
def test_field_holds_integers_only(value: Any) -> None:
    """What is no integer does not reach the stream."""
    with pytest.raises(ProgramError, match=r"Fill\.target"):
        encode((isa.Fill(space=0, target=value, count=1, value=0),))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_truncation_is_noticed_at_every_byte(kind: type[AnyInstruction]) -> None:
    """A stream that ends inside an instruction is refused, wherever it ends."""
    first, last = encode((smallest(isa.Fill),)), encode((smallest(kind),))
    for length in range(1, len(last)):
        with pytest.raises(ProgramError, match=f"cut short inside {kind.__name__} at byte {len(first)}"):
            decode(first + last[:length])
    assert len(decode(first)[0]) == 1


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - {LOOP, *isa.OPCODES}))
def test_unknown_opcode_is_refused(opcode: int) -> None:
    """An opcode that stands for nothing is named with its place."""
    first = encode((smallest(isa.Load),))
    with pytest.raises(ProgramError, match=f"unknown opcode {opcode} at byte {len(first)}"):
        decode(first + bytes([opcode]))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(stream: bytes) -> None:
    """Noise is a program that encodes to the same bytes, or a ProgramError; nothing else comes out."""
    try:
        program, _ = decode(stream)
    except ProgramError:
        return
    assert encode(program) == stream


def test_decode_counts() -> None:
    """A promised number of instructions is held, and no more than that is decoded."""
    stream = encode((smallest(isa.Fill),) * 3)
    assert len(decode(stream, 3)[0]) == 3
    for count in (0, 2, 4):
        with pytest.raises(ProgramError, match=f"expected {count} instructions"):
            decode(stream, count)
    with pytest.raises(ProgramError, match="expected 3 instructions, found more"):
        decode(stream * 2 + b"\xff", 3)


@pytest.mark.parametrize(
    ("source", "target", "engine"),
    [
        (Space.DRAM, Space.SRAM, Engine.DMA_IN),
        (Space.FLASH, Space.SRAM, Engine.DMA_IN),
        (Space.SRAM, Space.DRAM, Engine.DMA_OUT),
        (Space.FLASH, Space.DRAM, Engine.DMA_OUT),
        (Space.DRAM, Space.DRAM, Engine.DMA_OUT),
        (Space.SRAM, Space.SRAM, Engine.VECTOR),
    ],
)
def test_copy_engine(source: Space, target: Space, engine: Engine) -> None:
    """The vector unit copies inside the scratchpad, a DMA by direction elsewhere."""
    assert isa.copy_engine(source, target) == engine


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(-9, 9)), min_size=1, max_size=4), st.integers(0, 50))
def test_strided_range_is_the_hull(axes: list[tuple[int, int]], start: int) -> None:
    """The range of a strided view runs from its lowest to its highest byte."""
    places = [start]
    for side, stride in axes:
        places = [p + k * stride for p in places for k in range(side)]
    shape, strides = tuple(side for side, _ in axes), tuple(stride for _, stride in axes)
    assert isa.strided(Space.DRAM, start, shape, strides) == Range(Space.DRAM, min(places), max(places) + 1)
