"""The fence: each contract has a program that breaks it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from nnac import isa
from nnac.contracts import RULES
from nnac.emulator import Emulator
from nnac.errors import CapacityError, ProgramError
from nnac.isa import AnyInstruction, Engine
from nnac.ops import REGISTRY, Op
from nnac.passes.emit import emit
from nnac.passes.place import place
from nnac.passes.tile import tile
from nnac.program import KnownAnswer, Layer, Limits, Program
from nnac.targets import load_target
from nnac.timing import simulate
from nnac.validate import SHOWN, validate
from tests.graphs import graph_of, scheduled, with_memory
from tests.test_program import legal

LOAD, LOAD_WEIGHTS, LOAD_TABLE, LOAD_EXP, COPY, FILL, CONV, MAXIMUM, AVERAGE, SUM, MUL, LOOKUP, SOFTMAX, OUT = range(14)
"""Where `legal` has its instructions."""
HUGE = 2**32 - 1


def altered(instruction: AnyInstruction, **values: Any) -> AnyInstruction:
    """Return the instruction with other values in some fields."""
    return replace(instruction, **values)


def changed(index: int, **values: Any) -> Program:
    """Return the legal program with other values in the fields of one instruction."""
    program = legal()
    code = list(program.instructions)
    code[index] = altered(code[index], **values)
    return replace(program, instructions=tuple(code))


def with_code(program: Program, code: Sequence[Any]) -> Program:
    """Return the program with other instructions, all of them its first layer's."""
    return replace(program, instructions=tuple(code), layers=(replace(program.layers[0], runs=((0, len(code)),)),))


def refuse(program: Program, *words: str, limits: Limits | None = None) -> None:
    """Check that a program is refused in these words."""
    with pytest.raises(ProgramError) as caught:
        validate(program, limits)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, str(caught.value)


def compiled(op: type[Op], seed: int) -> Program:
    """Return the program of a random use of one operator, mostly in a tight scratchpad."""
    rng = np.random.default_rng(seed)
    graph = graph_of(op.sample(rng))
    target = with_memory(load_target(("nna8", "nna8-tiny")[seed % 2]), weights=6144)
    try:
        return emit(place(tile(graph, target, int(2 ** rng.uniform(4, 14)))), "test", KnownAnswer(0, {}))
    except CapacityError:
        return emit(place(tile(graph, target, target.memory["sram"].bytes)), "test", KnownAnswer(0, {}))


# -- what is legal -------------------------------------------------------------------------------------------------


def test_legal_program_passes() -> None:
    """The program that all cases below start from is legal, and comes back as it is."""
    program = legal()
    assert validate(program) is program


@pytest.mark.parametrize("op", REGISTRY, ids=lambda op: op.name)
def test_compiled_programs_pass(op: type[Op]) -> None:
    """What the compiler emits is legal: stripes, spills, staged constants."""
    for seed in range(40):
        validate(compiled(op, seed))


def test_every_instruction_has_rules() -> None:
    """A new instruction cannot be forgotten."""
    assert set(RULES) == set(get_args(AnyInstruction)) == set(isa.OPCODES.values())


def test_validation_is_fast() -> None:
    """Five thousand instructions are a matter of a fraction of a second (generous here, for a busy machine)."""
    program = legal()
    code = scheduled(program.instructions * 400)
    start = time.process_time()
    validate(with_code(program, code))
    assert time.process_time() - start < 2


def test_no_wait_blocks() -> None:
    """The timing model, which honours waits, gets to the end of the legal program on every engine but the host."""
    spans = simulate(legal()).spans
    assert all(span.end > 0 for span in spans) and len(spans) == 14
    assert {i.engine for i in legal().instructions} == set(Engine) - {Engine.HOST}


def test_emulator_traces_the_legal_program() -> None:
    """Every tensor is read from its home in its shape."""
    x = np.arange(32, dtype=np.int8).reshape(1, 4, 4, 2)
    seen = Emulator(validate(legal())).trace({"x": x})
    shapes = {name: array.shape for name, array in seen.items()}
    assert shapes == {"x": (1, 4, 4, 2), "c": (1, 4, 4, 4), "y": (16, 4)}


# -- instructions --------------------------------------------------------------------------------------------------

AXIS = (0,) * 5
BROKEN: list[tuple[int, dict[str, Any], str]] = [
    (LOAD, {"space": 0}, "dram (2) or flash (3)"),
    (LOAD, {"space": 1}, "dram (2) or flash (3)"),
    (LOAD, {"space": 3}, "reads bytes 0x0 to 0x24 of flash, used 0x0"),
    (LOAD, {"space": 9}, "dram (2) or flash (3)"),
    (LOAD, {"packer": 1}, "packed weights (fixed) are damaged"),
    (LOAD, {"packer": 5}, "the packer is one of 0 to 4"),
    (LOAD, {"source_bytes": 0}, "at least 1"),
    (LOAD, {"target_bytes": 35}, "raw bytes keep their number and have no table"),
    (LOAD, {"source": 2048 - 35}, "loads bytes 0x7dd to 0x801 of dram, constants end at 0x800"),
    (LOAD, {"source": HUGE}, "used 0x1800 bytes"),
    (LOAD, {"target": 2048 - 35}, "writes bytes 0x7dd to 0x801 of weights, used 0x800"),
    (LOAD, {"target": HUGE}, "of weights"),
    (COPY, {"source_space": 1}, "the source is"),
    (COPY, {"source_space": 4}, "the source is"),
    (COPY, {"target_space": 1}, "the target is"),
    (COPY, {"target_space": 3}, "the target is"),
    (COPY, {"target_space": 255}, "the target is"),
    (COPY, {"shape": (1,) * 5 + (0,)}, "sides are at least 1"),
    (COPY, {"shape": (HUGE,) * 6}, "no byte is written twice"),
    (COPY, {"shape": (2,) + (1,) * 4 + (32,)}, "no byte is written twice"),
    (COPY, {"target_strides": (*AXIS, 0)}, "no byte is written twice"),
    (COPY, {"source": 6144 - 31}, "reads bytes 0x17e1 to 0x1801 of dram, used 0x1800"),
    (COPY, {"source": 30, "source_strides": (*AXIS, -1)}, "reads bytes -0x1 to 0x1f of dram"),
    (COPY, {"target": 1024 - 31}, "writes bytes 0x3e1 to 0x401 of sram, used 0x400"),
    (COPY, {"target": 30, "target_strides": (*AXIS, -1)}, "writes bytes -0x1"),
    (COPY, {"target_strides": (*AXIS, 2**31 - 1)}, "used 0x400"),
    (COPY, {"source_space": 0, "source": 31}, "which overlap"),
    (COPY, {"source_space": 0, "source": 0}, "which overlap"),
    (OUT, {"target": 2047}, "where the constants lie"),
    (OUT, {"target": 2048 - 64}, "where the constants lie"),
    (FILL, {"space": 1}, "the target is"),
    (FILL, {"space": 3}, "the target is"),
    (FILL, {"space": 200}, "the target is"),
    (FILL, {"count": 0}, "at least 1"),
    (FILL, {"count": HUGE}, "writes bytes"),
    (FILL, {"target": 1024 - 15}, "writes bytes 0x3f1 to 0x401 of sram"),
    (FILL, {"space": 2, "target": 100}, "where the constants lie"),
    *(
        (CONV, {name: 0}, "at least 1")
        for name in (
            "in_h",
            "in_w",
            "in_c",
            "out_h",
            "out_w",
            "out_c",
            "kernel_h",
            "kernel_w",
            "stride_h",
            "stride_w",
            "dilation_h",
            "dilation_w",
            "groups",
        )
    ),
    (CONV, {"channels": 0}, "the slice ends within the channels"),
    (CONV, {"channel": 1}, "the slice ends within the channels (found channel 1, out_c 4, channels 4)"),
    (CONV, {"channel": HUGE}, "the slice ends within the channels"),
    (CONV, {"groups": 3}, "groups divide channels and in_c (found groups 3, channels 4, in_c 2)"),
    (CONV, {"groups": 4}, "groups divide channels and in_c"),
    (CONV, {"groups": HUGE}, "groups divide channels and in_c"),
    (CONV, {"channels": 5, "groups": 2}, "groups divide channels and in_c"),
    (CONV, {"pitch": 3}, "the pitch is at least out_c"),
    (CONV, {"in_bits": 16, "in_zero": 0, "kernel_h": 1 << 15, "kernel_w": 4}, "under 2**17 for each output"),
    (CONV, {"params": 2}, "aligned to 4 bytes"),
    (CONV, {"params": 4}, "reads bytes 0x4 to 0x28 of weights, which no Load has filled"),
    (CONV, {"weights": 65}, "which no Load has filled"),
    (CONV, {"params": 2048 - 32}, "used 0x800"),
    (CONV, {"weights": 2048 - 71}, "used 0x800"),
    (CONV, {"params": 32, "out_c": 1, "pitch": 1, "weights": 64}, "which no Load has filled"),
    (CONV, {"params": 256}, "a shift is outside of 0 to 62"),
    (CONV, {"low": 1, "high": 0}, "low is at most high"),
    (CONV, {"in_h": HUGE}, "reads bytes"),
    (CONV, {"source": 1024 - 31}, "reads bytes 0x3e1 to 0x401 of sram"),
    (CONV, {"target": 1024 - 63}, "writes bytes 0x3c1 to 0x401 of sram"),
    (CONV, {"pitch": HUGE}, "writes bytes"),
    (CONV, {"target": 31}, "which overlap"),
    (CONV, {"out_h": HUGE, "out_w": HUGE}, "writes bytes"),
    (MAXIMUM, {"kind": 2}, "the kind is"),
    (MAXIMUM, {"count_pads": 2}, "count_pads is 0 or 1"),
    *(
        (kind, {name: 0}, "at least 1")
        for kind in (MAXIMUM, AVERAGE)
        for name in (
            "in_h",
            "in_w",
            "channels",
            "out_h",
            "out_w",
            "kernel_h",
            "kernel_w",
            "stride_h",
            "stride_w",
            "dilation_h",
            "dilation_w",
        )
    ),
    *((kind, {"multiplier": 1 << 31}, "multiplier is under 2**31") for kind in (MAXIMUM, AVERAGE, MUL, SOFTMAX)),
    *((kind, {"shift": 63}, "62") for kind in (MAXIMUM, AVERAGE, SUM, MUL, SOFTMAX)),
    *(
        (kind, {"low": 5, "high": 4}, "low is at most high (found low 5, high 4)")
        for kind in (MAXIMUM, AVERAGE, SUM, MUL)
    ),
    (MAXIMUM, {"pad_top": 3}, "every window has a tap inside the stripe"),
    (MAXIMUM, {"pad_left": 3}, "every window has a tap inside the stripe"),
    (MAXIMUM, {"pad_top": -2}, "every window has a tap inside the stripe"),
    (MAXIMUM, {"stride_w": 2}, "every window has a tap inside the stripe"),
    (MAXIMUM, {"in_h": 1, "pad_top": 5, "kernel_h": 3, "dilation_h": 4}, "every window has a tap inside the stripe"),
    (MAXIMUM, {"dilation_h": 5, "pad_top": 4, "out_h": 1, "kernel_h": 1}, "every window has a tap inside the stripe"),
    (AVERAGE, {"pad_top": 3}, "every window overlaps the stripe"),
    (AVERAGE, {"pad_left": 3}, "every window overlaps the stripe"),
    (AVERAGE, {"stride_h": 2}, "every window overlaps the stripe"),
    (AVERAGE, {"pad_left": -32768}, "every window overlaps the stripe"),
    (AVERAGE, {"dilation_h": 2}, "an average has no dilation"),
    (AVERAGE, {"padded_h": 3}, "every window begins within the padded area"),
    (AVERAGE, {"padded_w": 0}, "every window begins within the padded area"),
    (AVERAGE, {"kernel_h": HUGE}, "stays within 2**62"),
    (AVERAGE, {"kernel_h": HUGE, "kernel_w": HUGE, "multiplier": 0}, "stays within 2**62"),
    (MAXIMUM, {"target": 127}, "which overlap"),
    (MAXIMUM, {"source": 1024}, "reads bytes"),
    (AVERAGE, {"source": 320}, "which overlap"),
    (SUM, {"shape": (1, 4, 0, 4)}, "sides are at least 1"),
    (SUM, {"sources": (), "zeros": (), "bits": (), "multipliers": (), "strides": ()}, "at least one operand"),
    (SUM, {"bits": (8, 8)}, "each operand has a zero point"),
    (MUL, {"bits": (8, 8, 8)}, "two operands"),
    (SUM, {"zeros": (0, 0)}, "each operand has a zero point"),
    (SUM, {"multipliers": (1,)}, "each operand has a zero point"),
    (SUM, {"strides": (0,) * 11}, "each operand has a zero point"),
    (SUM, {"sources": (0, 0)}, "each operand has a zero point"),
    (SUM, {"multipliers": (1, 1, -(2**31))}, "multipliers are over -2**31"),
    (SUM, {"strides": (0, 16, 4, -1) * 3, "sources": (2, 320, 512)}, "reads bytes -0x1 to 0x3f of sram"),
    (SUM, {"strides": (0, 2**31 - 1, 0, 0) * 3}, "reads bytes"),
    (SUM, {"strides": (0, -(2**31), 0, 0) * 3}, "reads bytes"),
    (SUM, {"sources": (64, 320, HUGE)}, "reads bytes"),
    (SUM, {"target": 1024 - 63}, "writes bytes"),
    (SUM, {"target": 321}, "which overlap"),
    (SUM, {"target": 512}, "which overlap"),
    (MUL, {"shape": (HUGE, 4, 4, 4)}, "writes bytes"),
    (MUL, {"shape": (0, 4, 4, 4)}, "sides are at least 1"),
    (MUL, {"sources": (256, 1024)}, "reads bytes"),
    (MUL, {"strides": (0, 16, 4, 1, 0, 0, 0, -1), "sources": (256, 2)}, "reads bytes -0x1 to 0x3 of sram"),
    (MUL, {"strides": (0, 4, 16, 1, 0, 0, 0, 1), "target": 256}, "which overlap"),
    (LOOKUP, {"count": 0}, "at least 1"),
    (LOOKUP, {"tables": 0}, "at least 1"),
    (LOOKUP, {"tables": 3}, "the tables divide the count (found count 64, tables 3)"),
    (LOOKUP, {"tables": 2}, "which no Load has filled"),
    (LOOKUP, {"tables": 64}, "used 0x800"),
    (LOOKUP, {"table": 1024 - 255}, "which no Load has filled"),
    (LOOKUP, {"source": 1024 - 63}, "reads bytes"),
    (LOOKUP, {"target": 1024 - 63}, "writes bytes"),
    (LOOKUP, {"target": 641}, "which overlap"),
    (SOFTMAX, {"rows": 0}, "at least 1"),
    (SOFTMAX, {"length": 0}, "at least 1"),
    (SOFTMAX, {"rows": HUGE, "length": HUGE}, "reads bytes"),
    (SOFTMAX, {"table": 1026}, "aligned to 4 bytes"),
    (SOFTMAX, {"table": 1020}, "which no Load has filled"),
    (SOFTMAX, {"table": 1028}, "used 0x800"),
    (SOFTMAX, {"target": 768}, "which overlap"),
    (SOFTMAX, {"target": 1024}, "writes bytes"),
    # 16 bits
    (FILL, {"width": 3}, "elements have 1 or 2 bytes"),
    (FILL, {"width": 2, "target": 513}, "those of 2 at even addresses"),
    (FILL, {"width": 2, "target": 1024 - 30}, "writes bytes"),
    (FILL, {"value": 128}, "the value fits the width"),
    (COPY, {"width": 2}, "even addresses and strides"),
    (COPY, {"width": 2, "source_strides": (0,) * 5 + (2,), "target_strides": (0,) * 6}, "no byte is written twice"),
    (CONV, {"in_bits": 12}, "elements have 8 or 16 bits"),
    (CONV, {"in_bits": 16}, "zero points are int8 values, and 0 in 16 bits"),
    (CONV, {"out_bits": 16, "out_zero": 0, "target": 65}, "those of 16 at even addresses"),
    (CONV, {"in_bits": 16, "in_zero": 0}, "multiplier is"),
    (CONV, {"out_bits": 16, "out_zero": 0, "target": 1024 - 64}, "writes bytes"),
    (CONV, {"in_zero": 128}, "zero points are int8 values"),
    (CONV, {"low": -129}, "limits are values of the output"),
    (MAXIMUM, {"in_bits": 16, "in_zero": 0}, "a maximum keeps its width"),
    (AVERAGE, {"in_bits": 16, "in_zero": 0, "kernel_h": 1 << 17, "multiplier": (1 << 31) - 1}, "within 2**62"),
    (SUM, {"bits": (8, 8, 16)}, "zero point 0"),
    (SUM, {"bits": (16, 8, 8), "zeros": (0, 3, -7)}, "even address and strides"),
    (SUM, {"out_bits": 16, "out_zero": 3}, "a zero point is an int8 value, and 0 in 16 bits"),
    (SUM, {"high": 128}, "limits are values of the output"),
    (MUL, {"out_bits": 9}, "elements have 8 or 16 bits"),
    (MUL, {"target": 256, "out_bits": 16, "out_zero": 0}, "which overlap"),
    (LOOKUP, {"in_bits": 16}, "which no Load has filled"),
    (LOOKUP, {"in_bits": 16, "source": 641}, "those of 16 at even addresses"),
    (LOOKUP, {"out_bits": 16, "table": 257}, "entries of 16 bits lie at even addresses"),
    (LOOKUP, {"out_bits": 16, "target": 640}, "which overlap"),
    (LOOKUP, {"shift": 63}, "the shift is at most 62"),
    (SOFTMAX, {"in_bits": 16, "table": 0}, "which no Load has filled"),
    (SOFTMAX, {"out_bits": 16}, "and 0 in 16 bits"),
    # values that no field can hold
    (FILL, {"value": 1 << 15}, "value = 32768 does not fit its field"),
    (FILL, {"target": -1}, "target = -1 does not fit its field"),
    (FILL, {"target": 2**32}, "target = 4294967296 does not fit its field"),
    (FILL, {"count": 1.0}, "count = 1.0 does not fit its field"),
    (FILL, {"count": None}, "count = None does not fit its field"),
    (COPY, {"shape": (1, 2)}, "shape = (1, 2) does not fit its field"),
    (COPY, {"shape": 7}, "shape = 7 does not fit its field"),
    (SUM, {"sources": (0,) * 256}, "does not fit its field"),
    (CONV, {"kernel_h": 65536}, "kernel_h = 65536 does not fit its field"),
    # waits
    (CONV, {"waits": (1, 0, 5, 0, 0, 0)}, "waits for 5 instructions of decoder, which has 4"),
    (LOAD, {"waits": (0, 0, 0, 1, 0, 0)}, "can never start: its wait tokens go round in a circle"),
    (CONV, {"waits": (1, 0, 1, 0, 0, 0)}, "touches bytes that decoder may still use; a wait token is missing"),
    (OUT, {"waits": (0, 0, 0, 0, 6, 0)}, "touches bytes that vector may still use; a wait token is missing"),
    (MAXIMUM, {"waits": (0, 0, 0, 0, 0, 0)}, "touches bytes that mac may still use; a wait token is missing"),
    (CONV, {"waits": (0, 0, 0, 1, 0, 0)}, "waits for its own engine, mac"),
    (SUM, {"waits": (0, 0, 0, 0, 2, 0)}, "waits for its own engine, vector"),
    (OUT, {"waits": (0, 0, 0, 0, HUGE, 0)}, "waits for 4294967295 instructions of vector"),
    (OUT, {"waits": (0, 0, 0, 0)}, "does not fit its field"),
    (OUT, {"waits": (0, 0, 0, 0, -1)}, "does not fit its field"),
]


@pytest.mark.parametrize(("index", "values", "words"), BROKEN, ids=range(len(BROKEN)))
def test_broken_instruction_is_named(index: int, values: dict[str, Any], words: str) -> None:
    """One wrong value: the instruction is named with its number, its kind and what it breaks."""
    program = changed(index, **values)
    kind = type(program.instructions[index]).__name__
    refuse(program, "program 'by hand' cannot be run", f"instruction {index} ({kind}): ", words)


def test_average_needs_its_product() -> None:
    """The largest window that the kernels' integers take, and one more row."""
    wide = {"kernel_h": 2**31 // 255 // 2, "kernel_w": 4, "multiplier": 1 << 30, "count_pads": 0}
    validate(changed(AVERAGE, **wide))
    refuse(changed(AVERAGE, **wide | {"kernel_h": 2**31 // 255 // 2 + 2}), "instruction 8 (Pool)", "2**62")


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (19, 0x80, "instruction 6 (Conv): a multiplier is negative"),
        (31, 0xFF, "instruction 6 (Conv): a multiplier is negative"),
        (35, 63, "instruction 6 (Conv): a shift is outside of 0 to 62"),
        (32, 0xFF, "instruction 6 (Conv): a shift is outside of 0 to 62"),
        (1026, 0, "instruction 12 (Softmax): the table of exponentials"),
        (2047, 0x80, "instruction 12 (Softmax): the table of exponentials"),
    ],
)
def test_constants_are_looked_at(at: int, value: int, words: str) -> None:
    """Multipliers, shifts and exponentials are checked where an instruction will find them."""
    program = legal()
    image = program.constants.copy()
    image[at] = value
    refuse(replace(program, constants=image), words)


def test_a_later_load_counts() -> None:
    """Contents are those of the moment: a table overwritten in between is looked at again."""
    program = legal()
    again = altered(program.instructions[LOAD_EXP], source=0, target=1024, target_bytes=1000, source_bytes=1000)
    code = scheduled((*program.instructions[:OUT], again, program.instructions[SOFTMAX], program.instructions[OUT]))
    refuse(with_code(program, code), "instruction 14 (Softmax): the table of exponentials")
    undone = scheduled((*code[:14], program.instructions[LOAD_EXP], *code[14:]))
    validate(with_code(program, undone))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"in_bits": 16, "in_zero": 0}, "a multiplier is 1,073,741,824, allowed under 2**23"),
        ({"taps": 5}, "says that it takes 5 folds of taps, its weights say 0"),
        ({"dilation_h": 60_000, "dilation_w": 60_000}, "needs 288,014,401,540 bytes of working memory"),
    ],
)
def test_constants_are_judged_by_who_reads_them(values: dict[str, Any], words: str) -> None:
    """A convolution that finds what a legal one has found before it is looked at all the same."""
    code = legal().instructions
    second = altered(code[CONV], **values)
    refuse(with_code(legal(), scheduled((*code[: CONV + 1], second, *code[CONV + 1 :]))), "instruction 7 (Conv)", words)


def test_problems_are_collected() -> None:
    """All broken instructions are named, up to a number; the rest is counted."""
    program = legal()
    broken = [altered(program.instructions[FILL], count=0)] * (SHOWN + 5)
    with pytest.raises(ProgramError) as caught:
        validate(with_code(program, (*program.instructions, *broken)))
    lines = str(caught.value).splitlines()
    assert len(lines) == SHOWN + 2 and lines[-1].endswith("and 5 more")
    assert [f"instruction {14 + n} (Fill)" in lines[1 + n] for n in range(SHOWN)] == [True] * SHOWN


def test_foreign_object_is_no_instruction() -> None:
    """A stream built by hand may hold anything."""
    odd: Any = "fill"
    refuse(
        replace(
            legal(),
            instructions=(odd,),
            tensors=legal().tensors[:1],
            outputs=(),
            layers=(Layer("all", "Fill", ((0, 1),), ("x",), "x", 0, 0),),
            known_answer=KnownAnswer(0, {}),
        ),
        "instruction 0 (str): not an instruction",
    )


# -- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(work=4000), "instruction 10: more work than 4,000"),
        (Limits(instructions=13), "14 instructions, allowed 13"),
        (Limits(tensors=2), "3 tensors, allowed 2"),
        (Limits(buffer_bytes=2047), "memory.weights: 2048 bytes used, allowed 0 to 2,047"),
        (Limits(memory_bytes=6143), "memory.dram: 6144 bytes used, allowed 0 to 6,143"),
        (Limits(rank=3), "tensor 'x': 4 axes, allowed 3"),
        (Limits(name=6), "the program's name: 7 characters, allowed 6"),
    ],
)
def test_limits(limits: Limits, words: str) -> None:
    """Whoever runs foreign programs sets bounds on size and work."""
    refuse(legal(), words, limits=limits)


def test_working_memory_is_limited() -> None:
    """A single output channel with very many taps would be packed 32 times wider."""
    code = legal().instructions
    deep = altered(
        code[CONV],
        in_c=1000,
        in_h=1,
        in_w=1,
        out_h=1,
        out_w=1,
        out_c=1,
        pitch=1,
        kernel_h=1,
        kernel_w=1,
        source=0,
        target=1000,
        weights=1024,
        params=16,
    )
    program = replace(
        legal(),
        instructions=scheduled((*code[:CONV], deep)),
        tensors=legal().tensors[:1],
        outputs=(),
        layers=(Layer("all", "Conv", ((0, CONV + 1),), ("x",), "x", 0, 0),),
        known_answer=KnownAnswer(0, {}),
    )
    validate(program, Limits(memory_bytes=70_032))
    refuse(program, "needs 70,032 bytes of working memory", limits=Limits(memory_bytes=70_031))
