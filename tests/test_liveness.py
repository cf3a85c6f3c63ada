"""Liveness as read from instructions, against what the planner meant and what the emulator does."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnac import liveness
from nnac.emulator import Emulator
from nnac.errors import CapacityError
from nnac.isa import Space
from nnac.liveness import CONSTANTS, STAGED, STRIPE, WHOLE, Resident, merged
from nnac.passes.emit import emit
from nnac.passes.legalize import legalize
from nnac.passes.place import place
from nnac.passes.quantize import quantize
from nnac.passes.tile import tile
from nnac.plan import Strategy
from nnac.program import Program
from nnac.search import best_program
from nnac.targets import load_target
from tests.graphs import random_inputs, with_memory
from tests.test_schedule import SEEDS, network
from tests.test_timing import ANSWER, PROGRAMS, compiled_net, measured, random_program


def kinds(program: Program) -> set[str]:
    return {resident.kind for resident in liveness.residents(liveness.moments(program))}


def shared(a: Resident, b: Resident) -> bool:
    """Tell whether two residents have a byte in common."""
    return any(x.start < y.end and y.start < x.end for x in a.buffers for y in b.buffers)


WORKING = ("Lstm", "Gru", "Rnn")
"""Operators with working memory, which the planner counts and no tensor fills."""


@settings(max_examples=60, deadline=None)
@given(PROGRAMS)
def test_never_more_than_the_planner_counts(seed: int) -> None:
    """The peak is the planner's lower bound where all lives in the scratchpad, and never above it with buffers."""
    program = random_program(seed)
    found = liveness.moments(program)
    most = liveness.peak(found).nbytes
    assert most <= program.lower_bound <= program.used[Space.SRAM]
    if kinds(program) == {WHOLE} and not any(layer.op in WORKING for layer in program.layers):
        assert most == program.lower_bound
    assert sorted(place for moment in found for place in moment.layers) == [*range(len(program.layers))]
    names = {tensor.name for tensor in program.tensors} | {CONSTANTS}
    assert all(resident.name in names and resident.nbytes > 0 for resident in liveness.residents(found))


@settings(max_examples=60, deadline=None)
@given(PROGRAMS)
def test_what_is_alive_shares_no_byte(seed: int) -> None:
    """Two residents of one moment lie apart, inside the bytes that are used."""
    program = random_program(seed)
    for moment in liveness.moments(program):
        assert not any(shared(a, b) for a, b in combinations(moment.alive, 2))
        assert all(
            0 <= buffer.start < buffer.end <= program.used[Space.SRAM]
            for resident in moment.alive
            for buffer in resident.buffers
        )


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_bytes_that_nobody_holds_do_not_matter(seed: int) -> None:
    """Noise written before each layer over all bytes that are not alive then leaves the output as it is."""
    rng = np.random.default_rng(seed)
    graph, target = network(rng), with_memory(load_target("nna8-tiny"), weights=2048, sram=int(2 ** rng.uniform(8, 12)))
    try:
        program = best_program(graph, target, "test", ANSWER)
    except CapacityError:
        return
    found = liveness.moments(program)
    inputs = random_inputs(graph, rng)
    expected = Emulator(program).run(inputs)["y"]
    emulator = Emulator(program)
    emulator.write(program.tensor("x"), inputs["x"])
    for moment in found:
        held = np.zeros(emulator.memory[Space.SRAM].size, bool)
        for buffer in (buffer for resident in moment.alive for buffer in resident.buffers):
            held[buffer.start : buffer.end] = True
        memory = emulator.memory[Space.SRAM]
        memory[~held] = rng.integers(0, 256, int((~held).sum()))
        indices = sorted(i for place in moment.layers for i in program.layers[place].indices())
        for index in indices:
            emulator.execute(program.instructions[index])
    np.testing.assert_array_equal(emulator.read(program.tensor("y")), expected)


def test_every_kind_is_met() -> None:
    """Whole tensors, staging buffers and the stripes of a cascade, each with its name."""
    target = with_memory(load_target("nna8-tiny"), weights=65536)
    graph, ranges, _ = measured(1)
    legal = legalize(quantize(graph, ranges, target.arithmetic), target)
    plan = place(tile(legal, target, 20_000, Strategy(cascade=True, stripes=4)))
    assert [len(group) for group in plan.tiling.groups if len(group) > 1] == [2, 2]
    program = emit(plan, "test", ANSWER)
    found = liveness.moments(program)
    assert kinds(program) == {WHOLE, STAGED, STRIPE}
    assert [len(moment.layers) for moment in found if len(moment.layers) > 1] == [2, 2]
    streamed = {tensor.name for tensor in program.tensors if tensor.pieces}
    assert {r.name for r in liveness.residents(found) if r.kind == STRIPE} == streamed
    assert liveness.peak(found).nbytes == program.lower_bound


def test_inputs_live_from_the_start_and_outputs_to_the_end() -> None:
    program = compiled_net(0, load_target("nna8"))
    found = liveness.moments(program)
    lives = {resident.name: (resident.first, resident.last) for resident in liveness.residents(found)}
    assert all(lives[name][0] == -1 for name in program.inputs)
    assert all(lives[name][1] == len(found) for name in program.outputs if name in lives)
    assert [r.nbytes for r in found[0].alive] == sorted((r.nbytes for r in found[0].alive), reverse=True)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], []),
        ([(3, 5)], [(3, 5)]),
        ([(2, 6), (0, 3)], [(0, 6)]),
        ([(2, 4), (0, 2)], [(0, 2), (2, 4)]),
        ([(5, 9), (0, 3), (1, 2)], [(0, 3), (5, 9)]),
    ],
)
def test_merged(spans: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    assert merged(spans) == expected


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9))))
def test_merged_keeps_every_byte(raw: list[tuple[int, int]]) -> None:
    spans = [(start, start + length) for start, length in raw]
    found = merged(spans)
    assert {b for s, e in spans for b in range(s, e)} == {b for s, e in found for b in range(s, e)}
    assert all(a[1] <= b[0] for a, b in pairwise(found))
