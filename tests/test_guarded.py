"""What passes the fence keeps to its declared bytes: legal edges, compiled programs, and whatever mutations leave."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnac.disasm import disassemble
from nnac.emulator import Emulator
from nnac.errors import ProgramError
from nnac.isa import AnyInstruction, Range, Space
from nnac.ops import REGISTRY, Op
from nnac.program import Limits, Program
from nnac.timing import simulate
from nnac.types import Array
from nnac.validate import validate
from tests.test_program import legal
from tests.test_validate import (
    AVERAGE,
    CONV,
    COPY,
    FILL,
    LOOKUP,
    MAXIMUM,
    MUL,
    OUT,
    SOFTMAX,
    SUM,
    altered,
    changed,
    compiled,
)

GUARD = 1 << 12
SMALL = Limits(work=1 << 22, memory_bytes=1 << 26, buffer_bytes=1 << 20)


class Guarded(Emulator):
    """An emulator whose memories lie amid noise of their own, so that a stray access is seen."""

    def __init__(self, program: Program, noise: np.random.Generator) -> None:
        super().__init__(program)
        self.noise = noise
        self.whole: dict[Space, Array] = {}
        for space, memory in self.memory.items():
            self.whole[space] = self.draw(memory.size + 2 * GUARD)
            self.whole[space][GUARD : GUARD + memory.size] = memory
            self.memory[space] = self.whole[space][GUARD : GUARD + memory.size]
            self.signed[space] = self.memory[space].view(np.int8)

    def draw(self, size: int) -> Array:
        return self.noise.integers(0, 256, size).astype(np.uint8)

    def scramble(self, kept: tuple[Range, ...]) -> None:
        """Put noise everywhere but into the kept ranges."""
        for space, whole in self.whole.items():
            fresh = self.draw(whole.size)
            for r in kept:
                if r.space == space:
                    fresh[GUARD + r.start : GUARD + r.end] = whole[GUARD + r.start : GUARD + r.end]
            whole[:] = fresh

    def snapshot(self) -> dict[Space, Array]:
        return {space: whole.copy() for space, whole in self.whole.items()}


def run_guarded(program: Program, seed: int) -> None:
    """Execute a program on two machines that differ wherever an instruction does not read; check what it changes."""
    first, second = (Guarded(program, np.random.default_rng([seed, side])) for side in (1, 2))
    for instruction in program.instructions:
        for space, whole in first.whole.items():
            second.whole[space][:] = whole
        second.scramble(instruction.reads())
        before = first.snapshot(), second.snapshot()
        first.execute(instruction)
        second.execute(instruction)
        for space in first.whole:
            check_bytes(instruction, space, before, (first, second))


def check_bytes(
    i: AnyInstruction,
    space: Space,
    before: tuple[dict[Space, Array], dict[Space, Array]],
    after: tuple[Guarded, Guarded],
) -> None:
    """Only declared bytes change, and what they become depends on declared bytes alone."""
    (old_a, old_b), (a, b) = (before[n][space] for n in (0, 1)), (after[n].whole[space] for n in (0, 1))
    kept = (a == old_a) & (b == old_b)
    declared = np.zeros(a.size, np.bool_)
    for r in i.writes():
        if r.space == space:
            declared[GUARD + r.start : GUARD + r.end] = True
    assert np.all(kept | declared), f"{i} writes undeclared bytes of {space.label}"
    assert np.all(kept | (a == b)), f"{i} depends on undeclared bytes"


FINE: list[tuple[int, dict[str, Any]]] = [
    (COPY, {"shape": (2, 1, 1, 1, 1, 16), "target_strides": (-16, 0, 0, 0, 0, 1), "target": 16}),
    (COPY, {"shape": (2, 1, 1, 1, 1, 16), "target_strides": (1, 0, 0, 0, 0, 2)}),
    (COPY, {"source_strides": (0,) * 6}),
    (CONV, {"pad_top": -100, "pad_left": 32767}),
    (CONV, {"stride_h": 255, "dilation_w": 255}),
    (CONV, {"out_h": 2, "pitch": 20}),
    (CONV, {"groups": 2, "kernel_h": 1}),
    (MAXIMUM, {"kernel_h": 1000, "kernel_w": 1000}),
    (MAXIMUM, {"pad_top": 2, "kernel_h": 2, "dilation_h": 2, "out_h": 5, "out_w": 1, "target": 700}),
    (MAXIMUM, {"count_pads": 1, "padded_h": 0}),
    (AVERAGE, {"padded_h": 4, "padded_w": 4}),
    (AVERAGE, {"padded_h": 0, "padded_w": 0, "count_pads": 0}),
    (AVERAGE, {"kernel_h": 1000, "kernel_w": 1000}),
    (SUM, {"target": 64}),
    (SUM, {"target": 320}),
    (SUM, {"sources": (64,), "zeros": (0,), "bits": (8,), "multipliers": (2**31 - 1,), "strides": (0, 16, 4, 1)}),
    (SUM, {"low": 4, "high": 4, "shift": 62}),
    (MUL, {"target": 256}),
    (MUL, {"multiplier": 0, "shift": 0}),
    (LOOKUP, {"target": 640}),
    (LOOKUP, {"tables": 1, "count": 1, "target": 1023}),
    (SOFTMAX, {"rows": 1, "length": 64}),
    (COPY, {"width": 2, "source_strides": (0,) * 5 + (2,), "target_strides": (0,) * 5 + (2,)}),
    (FILL, {"width": 2, "value": -(1 << 15)}),
    (SUM, {"out_bits": 16, "out_zero": 0, "low": -(1 << 15), "high": (1 << 15) - 1}),
    (SUM, {"bits": (8, 8, 16), "zeros": (3, 3, 0), "strides": (0, 16, 4, 1) * 2 + (0, 0, 0, 2)}),
    (SOFTMAX, {"rows": 1, "out_bits": 16, "out_zero": 0}),
    (OUT, {"waits": (1, 0, 4, 1, 7, 0)}),
]


@pytest.mark.parametrize(("index", "values"), FINE, ids=range(len(FINE)))
def test_edge_of_the_legal(index: int, values: dict[str, Any]) -> None:
    """What lies just inside: legal, and it runs within its declared bytes."""
    run_guarded(validate(changed(index, **values)), seed=index)


@pytest.mark.parametrize("op", REGISTRY, ids=lambda op: op.name)
def test_compiled_programs_keep_to_their_bytes(op: type[Op]) -> None:
    """The declared ranges of what the compiler emits are the whole truth."""
    for seed in range(6):
        run_guarded(validate(compiled(op, seed)), seed)


def entries(f: Any) -> st.SearchStrategy[int]:
    """Return a strategy of one value of a field: ends, small values, and anything."""
    signed, bits = f.metadata["code"][0] == "i", int(f.metadata["code"][1:])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    small = st.integers(max(low, -8), min(high, 70)) | st.sampled_from([64, 100, 127])
    return small | small | st.sampled_from([low, high, min(high, 1024), min(high, 2048)]) | st.integers(low, high)


@st.composite
def mutations(draw: st.DrawFn) -> Program:
    """Return a legal program with one to three field entries of one or two instructions changed."""
    if draw(st.booleans()):
        program = legal()
    else:
        program = compiled(draw(st.sampled_from(REGISTRY)), draw(st.integers(0, 200)))
    code = list(program.instructions)
    for _ in range(draw(st.integers(1, 3)) if code else 0):
        index = draw(st.integers(0, len(code) - 1))
        code[index] = mutated(draw, code[index])
    image = program.constants.copy()
    if image.size and draw(st.integers(0, 3)) == 0:
        image[draw(st.integers(0, image.size - 1))] = draw(st.integers(0, 255))
    return replace(program, instructions=tuple(code), constants=image)


def mutated(draw: st.DrawFn, instruction: AnyInstruction) -> AnyInstruction:
    """Return the instruction with one entry changed: near its value, or to any other that the field holds."""
    f = draw(st.sampled_from(fields(instruction)))
    old = getattr(instruction, f.name)
    values = list(old) if isinstance(old, tuple) else [old]
    at = draw(st.integers(0, max(len(values) - 1, 0)))
    if values:
        step = st.sampled_from([-16, -4, -1, 1, 4, 16]).map(lambda step: values[at] + step)
        values[at] = draw(step | entries(f) | st.just(values[at] * 2))
    changes: dict[str, Any] = {f.name: tuple(values) if isinstance(old, tuple) else values[0]}
    return altered(instruction, **changes)


@settings(max_examples=700, deadline=None)
@given(mutations(), st.integers(0, 2**32 - 1))
def test_mutations_are_refused_or_harmless(program: Program, seed: int) -> None:
    """The fence lets nothing through that leaves its bytes; every reader survives what it lets through."""
    try:
        validate(program, SMALL)
    except ProgramError as error:
        assert "instruction " in str(error)
        return
    run_guarded(program, seed)
    rng = np.random.default_rng(seed)
    inputs = {
        t.name: rng.integers(-128, 128, t.type.shape).astype(t.type.dtype) for t in map(program.tensor, program.inputs)
    }
    assert set(Emulator(program).run(inputs)) == set(program.outputs)
    assert simulate(program).cycles >= 1
    assert all(line.isprintable() for line in disassemble(program))
