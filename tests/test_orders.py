"""Three readings of one program agree: program, completion and adversarial order. Missing tokens are caught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnac.emulator import Emulator
from nnac.errors import CapacityError, ProgramError
from nnac.hazards import known_before
from nnac.ops import REGISTRY, Move, Op
from nnac.orders import adversarial_order, completion_order
from nnac.passes.emit import emit
from nnac.passes.place import place
from nnac.passes.tile import tile
from nnac.program import KnownAnswer, Program
from nnac.targets import load_target
from nnac.timing import simulate
from nnac.validate import validate
from tests.graphs import graph_of, random_inputs, with_memory

STRIPED = [op for op in REGISTRY if not issubclass(op, Move) and op.name != "Reshape"]


def striped_program(op: type[Op], rng: np.random.Generator) -> tuple[Program, dict[str, np.ndarray]]:
    """Return a validated program of one operator in a scratchpad that forces stripes, and inputs for it."""
    target = with_memory(load_target("nna8-tiny"), weights=6144)
    while True:
        graph = graph_of(op.sample(rng))
        try:
            program = emit(place(tile(graph, target, int(2 ** rng.uniform(5, 9)))), "test", KnownAnswer(0, {}))
        except CapacityError:
            continue
        return validate(program), random_inputs(graph, rng)


@pytest.mark.parametrize("op", STRIPED, ids=lambda op: op.name)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_allowed_order_gives_the_same_bits(op: type[Op], seed: int) -> None:
    """Completion order and token-respecting random orders equal program order."""
    program, inputs = striped_program(op, np.random.default_rng(seed))
    expected = Emulator(program).run(inputs)["y"]
    orders = [completion_order(simulate(program)), *(adversarial_order(program.instructions, s) for s in range(3))]
    for order in orders:
        assert sorted(order) == list(range(len(program.instructions)))
        np.testing.assert_array_equal(Emulator(program).run(inputs, order=order)["y"], expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_removing_a_needed_token_is_caught(seed: int) -> None:
    """A token that nothing else implies cannot be taken out of a program: the validator names the instruction."""
    rng = np.random.default_rng(seed)
    program, _ = striped_program(STRIPED[int(rng.integers(len(STRIPED)))], rng)
    program = replace(program, loops=())  # as executed: one round of a loop is about to differ from the others
    before = known_before(program.instructions)
    for index, instruction in enumerate(program.instructions):
        for engine, count in enumerate(instruction.waits):
            if not count:
                continue
            waits = tuple(0 if e == engine else n for e, n in enumerate(instruction.waits))
            changed = list(program.instructions)
            changed[index] = replace(instruction, waits=waits)
            after = known_before(changed)
            try:
                validate(replace(program, instructions=tuple(changed)))
            except ProgramError as error:
                assert "a wait token is missing" in str(error)
            else:  # harmless for the data: the token was there for a port, or another one implies it
                assert after[index] is not None and before[index] is not None


def test_a_circle_of_tokens_is_refused() -> None:
    """Two engines that wait for each other never start."""
    rng = np.random.default_rng(5)
    program, _ = striped_program(REGISTRY[0], rng)
    first = program.instructions[0]
    waits = tuple(sum(i.engine == e for i in program.instructions) if e == 3 else n for e, n in enumerate(first.waits))
    changed = (replace(first, waits=waits), *program.instructions[1:])
    with pytest.raises(ProgramError, match="can never start"):
        validate(replace(program, instructions=changed))
