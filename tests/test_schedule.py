"""Wait tokens, checked by other means than they are made: all pairs of accesses, vector clocks, paths, executions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnac import isa, stages
from nnac.emulator import Emulator
from nnac.errors import CapacityError, ProgramError
from nnac.graph import Graph, Node, Value
from nnac.isa import AnyInstruction, Engine, Range, Space
from nnac.ops.conv import Conv, Dense, mac_sample
from nnac.ops.elementwise import Sum
from nnac.ops.move import Concat, Reshape
from nnac.ops.pool import AveragePool
from nnac.ops.softmax import Softmax
from nnac.passes.arbitrate import arbitrate
from nnac.passes.emit import emit
from nnac.passes.place import place
from nnac.passes.schedule import with_tokens
from nnac.passes.tile import tile
from nnac.program import KnownAnswer, Program
from nnac.targets import load_target
from nnac.timing import cost, simulate
from nnac.types import Array, Quant, TensorType
from nnac.validate import validate
from tests.graphs import random_inputs, scheduled, with_memory
from tests.test_program import legal

SIZE = 96
"""Bytes of each small memory of a random stream: so few that nearly everything collides."""
Pair = tuple[int, int]


# -- the oracles ---------------------------------------------------------------------------------------------------


def overlaps(some: Sequence[Range], others: Sequence[Range]) -> bool:
    """Tell whether two lists of ranges share a byte."""
    return any(a.space == b.space and a.start < b.end and b.start < a.end for a in some for b in others)


def conflicts(code: Sequence[AnyInstruction]) -> Iterator[Pair]:
    """Yield every pair in program order, on different engines, of which one writes what the other touches."""
    touched = [(i.reads(), i.writes()) for i in code]
    for first, second in combinations(range(len(code)), 2):
        (reads, writes), (later_reads, later_writes) = touched[first], touched[second]
        if code[first].engine != code[second].engine and (
            overlaps(writes, later_reads) or overlaps(writes, later_writes) or overlaps(reads, later_writes)
        ):
            yield first, second


def queue_of(code: Sequence[AnyInstruction], engine: Engine) -> list[int]:
    """Return the indices of an engine's instructions."""
    return [index for index, i in enumerate(code) if i.engine == engine]


def clocks(code: Sequence[AnyInstruction]) -> list[list[int]]:
    """Return, per instruction, how many of each engine's instructions have finished for sure when it starts.

    Tokens must look back in program order only.
    """
    queues, known = {engine: queue_of(code, engine) for engine in Engine}, list[list[int]]()
    for index, i in enumerate(code):
        turn = queues[i.engine].index(index)
        clock = [0] * len(Engine)
        for engine, count in (*((e, i.waits[e]) for e in Engine), (i.engine, turn)):
            if count:
                last = queues[engine][count - 1]
                assert last < index, f"instruction {index} waits for a later one"
                clock = [max(a, b) for a, b in zip(clock, known[last], strict=True)]
                clock[engine] = max(clock[engine], count)
        known.append(clock)
    return known


def races(code: Sequence[AnyInstruction]) -> set[Pair]:
    """Return the conflicts that tokens leave without an order, by vector clocks."""
    known, position = clocks(code), {i: p for e in Engine for p, i in enumerate(queue_of(code, e))}
    return {(a, b) for a, b in conflicts(code) if known[b][code[a].engine] <= position[a]}


def order_graph(code: Sequence[AnyInstruction]) -> nx.DiGraph:
    """Return who starts after whose end: queues and tokens as edges."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(code)))
    for engine in Engine:
        queue = queue_of(code, engine)
        nx.add_path(graph, queue)
        for index, i in enumerate(code):
            if i.waits[engine]:
                graph.add_edge(queue[i.waits[engine] - 1], index)
    return graph


def unordered(code: Sequence[AnyInstruction]) -> set[Pair]:
    """Return the conflicts that tokens leave without an order, by paths in a graph."""
    closure = nx.transitive_closure_dag(order_graph(code))
    return {(a, b) for a, b in conflicts(code) if not closure.has_edge(a, b)}


def without(code: Sequence[AnyInstruction], index: int, engine: int) -> tuple[AnyInstruction, ...]:
    """Return the stream with one token removed."""
    waits = tuple(0 if e == engine else n for e, n in enumerate(code[index].waits))
    return tuple(replace(i, waits=waits) if n == index else i for n, i in enumerate(code))


def tokens(code: Sequence[AnyInstruction]) -> Iterator[Pair]:
    """Yield (instruction, engine) of every token."""
    for index, i in enumerate(code):
        yield from ((index, engine) for engine, count in enumerate(i.waits) if count)


def random_order(code: Sequence[AnyInstruction], rng: np.random.Generator) -> list[int]:
    """Return an order that the tokens allow, by always taking any engine that can go on; fails on a deadlock."""
    queues, done, order = [queue_of(code, engine) for engine in Engine], [0] * len(Engine), list[int]()
    while len(order) < len(code):
        heads = [queues[e][done[e]] for e in Engine if done[e] < len(queues[e])]
        ready = [h for h in heads if all(n <= done[e] for e, n in enumerate(code[h].waits))]
        assert ready, "deadlock"
        order.append(int(rng.choice(ready)))
        done[code[order[-1]].engine] += 1
    return order


def run(code: Sequence[AnyInstruction], order: Sequence[int], seed: int) -> dict[Space, Array]:
    """Return all memories after executing a stream in some order on memories full of noise."""
    used = {Space.SRAM: SIZE, Space.WEIGHTS: SIZE, Space.DRAM: SIZE}
    machine = Emulator(replace(legal(), used=used, constants=np.zeros(0, np.uint8)))
    rng = np.random.default_rng(seed)
    for memory in machine.memory.values():
        memory[:] = rng.integers(0, 256, memory.size)
    for index in order:
        machine.execute(code[index])
    return machine.memory


def same(some: dict[Space, Array], others: dict[Space, Array]) -> bool:
    return all(np.array_equal(some[space], others[space]) for space in some)


# -- random streams ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draw:
    """A source of random instructions over the small memories."""

    rng: np.random.Generator

    def number(self, high: int) -> int:
        return int(self.rng.integers(high))

    def instruction(self) -> AnyInstruction:
        """Return a load, a copy in any direction, a fill, a convolution or a sum."""
        makers = (self.load, self.copy, self.copy, self.copy, self.fill, self.conv, self.sum)
        return makers[self.number(len(makers))]()

    def load(self) -> AnyInstruction:
        count = 1 + self.number(24)
        return isa.Load(
            space=2,
            source=self.number(SIZE - count),
            source_bytes=count,
            target=self.number(SIZE - count),
            target_bytes=count,
            packer=0,
        )

    def copy(self) -> AnyInstruction:
        """Return a copy whose source and target lie in different halves, one of them perhaps with gaps or backwards."""
        rows, row = 1 + self.number(3), 1 + self.number(4)
        pitch, swap = row + self.number(4), self.number(2)
        step = int(self.rng.choice([-1, 1]))
        low, high = (rows - 1) * pitch, SIZE // 2
        source, target = self.number(high - low - row), high + low + self.number(high - 2 * low - row)
        spaces = int(self.rng.choice([0, 2])), int(self.rng.choice([0, 2]))
        dense, gaps = (0, 0, 0, 0, row, 1), (0, 0, 0, 0, step * pitch, 1)
        at, to = (target, source) if swap else (source, target)
        return isa.Copy(
            source_space=spaces[0],
            source=at,
            source_strides=gaps if at == target else dense,
            target_space=spaces[1],
            target=to,
            target_strides=gaps if to == target else dense,
            shape=(1, 1, 1, 1, rows, row),
        )

    def fill(self) -> AnyInstruction:
        count = 1 + self.number(16)
        return isa.Fill(
            space=int(self.rng.choice([0, 2])),
            target=self.number(SIZE - count),
            count=count,
            value=self.number(256) - 128,
        )

    def conv(self) -> AnyInstruction:
        """Return a dense layer of one row whose parameters may be any bytes."""
        return isa.Conv(
            source=self.number(SIZE // 2 - 4),
            in_h=1,
            in_w=1,
            in_c=4,
            target=SIZE // 2 + self.number(SIZE // 2 - 2),
            out_h=1,
            out_w=1,
            out_c=2,
            pitch=2,
            channel=0,
            channels=2,
            groups=1,
            weights=self.number(SIZE - 8),
            params=4 * self.number((SIZE - 18) // 4),
            kernel_h=1,
            kernel_w=1,
            stride_h=1,
            stride_w=1,
            dilation_h=1,
            dilation_w=1,
            pad_top=0,
            pad_left=0,
            in_zero=1,
            out_zero=-3,
            low=-128,
            high=127,
        )

    def sum(self) -> AnyInstruction:
        half, side = SIZE // 2, 1 + self.number(8)
        return isa.Sum(
            shape=(1, 1, 1, side),
            sources=(self.number(half - side), self.number(half - side)),
            strides=(0, 0, 0, 1, 0, 0, 0, 0),
            zeros=(1, 2),
            bits=(8, 8),
            multipliers=(3, -5),
            target=half + self.number(half - side),
            shift=1,
            out_zero=0,
            low=-128,
            high=127,
        )


def stream(seed: int, count: int) -> tuple[AnyInstruction, ...]:
    """Return a scheduled random stream."""
    draw = Draw(np.random.default_rng(seed))
    return scheduled([draw.instruction() for _ in range(count)])


SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=120, deadline=None)
@given(SEEDS, st.integers(0, 60))
def test_no_race_in_random_streams(seed: int, count: int) -> None:
    """Every conflict between engines is ordered, by clocks and by paths; tokens look back, at other engines only."""
    code = stream(seed, count)
    assert not races(code) and not unordered(code)
    assert all(i.waits[i.engine] == 0 for i in code)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_any_allowed_order_gives_the_same_memory(seed: int) -> None:
    """Executions in any order that the tokens allow leave every byte of every memory as program order does."""
    code, rng = stream(seed, 40), np.random.default_rng(seed)
    expected = run(code, range(len(code)), seed)
    for _ in range(4):
        assert same(run(code, random_order(code, rng), seed), expected)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_a_removed_token_is_noticed_or_implied(seed: int) -> None:
    """Both oracles agree on each removal; what neither notices follows from other tokens, so it changes no bit."""
    code, rng = stream(seed, 25), np.random.default_rng(seed)
    expected = run(code, range(len(code)), seed)
    for index, engine in tokens(code):
        less = without(code, index, engine)
        assert races(less) == unordered(less)
        if not races(less):
            assert same(run(less, random_order(less, rng), seed), expected)


def test_most_tokens_are_needed() -> None:
    """The schedule is not merely safe: taking out a token leaves a race more often than not."""
    code = stream(3, 80)
    all_tokens = list(tokens(code))
    needed = [token for token in all_tokens if unordered(without(code, *token))]
    assert len(all_tokens) > 40 and len(needed) > 0.5 * len(all_tokens)


def test_a_race_shows_in_an_execution() -> None:
    """Without any tokens at all, some allowed order gives other bits: the executions above are able to notice."""
    code = tuple(replace(i, waits=(0,) * len(Engine)) for i in stream(5, 40))
    rng, expected = np.random.default_rng(0), run(code, range(40), 5)
    assert any(not same(run(code, random_order(code, rng), 5), expected) for _ in range(20))


@pytest.mark.parametrize(("first", "second"), [("write", "read"), ("read", "write"), ("write", "write")])
def test_each_kind_of_hazard(first: str, second: str) -> None:
    """Read after write, write after read, write after write: one token each, and none when bytes only touch ends."""

    def access(kind: str, address: int, engine: Engine) -> AnyInstruction:
        away = 80 if engine == Engine.VECTOR else 0
        outside = Space.SRAM if engine == Engine.VECTOR else Space.DRAM
        places = ((outside, away), (Space.SRAM, address))
        (source_space, source), (target_space, target) = places if kind == "write" else reversed(places)
        strides = (0,) * 5 + (1,)
        return isa.Copy(
            source_space=source_space,
            source=source,
            source_strides=strides,
            target_space=target_space,
            target=target,
            target_strides=strides,
            shape=(1,) * 5 + (8,),
        )

    before = access(first, 8, Engine.DMA_IN)
    assert scheduled([before, access(second, 15, Engine.VECTOR)])[1].waits[before.engine] == 1
    assert not any(scheduled([before, access(second, 16, Engine.VECTOR)])[1].waits)
    assert not any(scheduled([before, access(second, 0, Engine.VECTOR)])[1].waits)


def test_readers_need_no_order() -> None:
    """Two engines may read the same bytes at the same time."""
    draw = Draw(np.random.default_rng(0))
    out = replace(draw.copy(), waits=(0,) * len(Engine))
    assert isinstance(out, isa.Copy)
    reader = replace(out, source_space=0, target_space=2)
    inside = replace(out, source_space=0, target_space=0)
    assert scheduled([reader, inside])[1].waits == (0,) * len(Engine)


def test_waits_known_already_are_left_out() -> None:
    """A second reader on the same engine needs no token of its own."""
    draw = Draw(np.random.default_rng(1))
    load, conv = replace_load(draw.load()), draw.conv()
    assert [i.waits[Engine.DECODER] for i in scheduled([load, conv, conv, load, conv])] == [0, 1, 0, 0, 2]


def replace_load(load: AnyInstruction) -> AnyInstruction:
    """Return a load that fills the whole weight buffer."""
    assert isinstance(load, isa.Load)
    return replace(load, source=0, source_bytes=SIZE, target=0, target_bytes=SIZE)


# -- whole programs ------------------------------------------------------------------------------------------------


def network(rng: np.random.Generator) -> Graph:
    """Return a chain with a residual: convolutions, sum, average, concat, dense, softmax."""
    quant, side, channels = Quant(0.05, 3), int(rng.integers(4, 9)), int(rng.integers(1, 7))
    picture = TensorType((1, side, side, channels), "int8", quant)
    values, constants, nodes = {"x": Value("x", picture)}, dict[str, Array](), list[Node]()

    def add(name: str, op: object, inputs: tuple[str, ...], shape: tuple[int, ...], given: dict[int, Array]) -> str:
        names = list(inputs)
        for position, array in sorted(given.items()):
            names.append(f"{name}.{position}")
            constants[names[-1]] = array
            values[names[-1]] = Value(names[-1], TensorType(array.shape, array.dtype.name))
        values[name] = Value(name, TensorType(shape, "int8", quant))
        nodes.append(Node(name, op, tuple(names), name))
        return name

    conv = Conv(pads=(1, 1, 1, 1))
    for name, source in (("a", "x"), ("b", "a")):
        given = mac_sample(conv, picture, (channels, 3, 3, channels), rng).constants
        add(name, conv, (source,), picture.shape, given)
    add("s", Sum(), ("x", "b"), picture.shape, {})
    add("p", AveragePool(kernel=(2, 2), strides=(1, 1)), ("s",), (1, side - 1, side - 1, channels), {})
    add("c", Concat(3), ("p", "p"), (1, side - 1, side - 1, 2 * channels), {})
    flat = (1, (side - 1) ** 2 * 2 * channels)
    add("r", Reshape(flat), ("c",), flat, {})
    dense = mac_sample(Dense(), TensorType(flat, "int8", quant), (5, flat[1]), rng)
    add("d", dense.op, ("r",), (1, 5), dense.constants)
    add("y", Softmax(), ("d",), (1, 5), {})
    return Graph("network", tuple(nodes), values, constants, ("x",), ("y",))


def compiled(seed: int) -> tuple[Program, Graph]:
    """Return the program of a random network in a scratchpad of random tightness."""
    rng = np.random.default_rng(seed)
    graph = network(rng)
    stages.check(graph, stages.INTEGER)
    target = with_memory(load_target(("nna8", "nna8-tiny")[seed % 2]), weights=2048)
    for budget in (int(2 ** rng.uniform(8, 12)), target.memory["sram"].bytes):
        try:
            return emit(place(tile(graph, target, budget)), "test", KnownAnswer(0, {})), graph
        except CapacityError:
            continue
    raise AssertionError("the network fits")


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_no_race_in_networks(seed: int) -> None:
    """Stripes, spills and a weight buffer used as a ring: no conflict without an order, whatever tokens are added."""
    program, _ = compiled(seed)
    validate(program)
    assert not unordered(program.instructions)
    plain = scheduled(program.instructions)
    assert not races(plain)
    costs = [cost(i, program.target) for i in plain]
    tokens = arbitrate([i.engine for i in plain], [i.waits for i in plain], costs, program.target, program.loops)
    assert not unordered(with_tokens(plain, tokens))


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_networks_never_block_and_keep_their_bits(seed: int) -> None:
    """Any order that the tokens allow comes to an end, with the output of program order; timing gets there too."""
    program, graph = compiled(seed)
    rng = np.random.default_rng(seed)
    inputs = random_inputs(graph, rng)
    expected = Emulator(program).run(inputs)["y"]
    machine = Emulator(program)
    machine.write(program.tensor("x"), inputs["x"])
    for index in random_order(program.instructions, rng):
        machine.execute(program.instructions[index])
    np.testing.assert_array_equal(machine.read(program.tensor("y")), expected)
    assert all(span.end > span.start for span in simulate(program).spans)


@settings(max_examples=8, deadline=None)
@given(SEEDS)
def test_the_validator_agrees_with_the_oracle(seed: int) -> None:
    """A token removed from a network is refused exactly when a path is missing."""
    program, _ = compiled(seed)
    found = list(tokens(program.instructions))
    for index, engine in found[:: max(1, len(found) // 12)]:
        less = replace(program, instructions=without(program.instructions, index, engine))
        pairs = unordered(less.instructions)
        if not pairs:
            validate(less)
            continue
        with pytest.raises(ProgramError, match="a wait token is missing") as caught:
            validate(less)
        assert f"instruction {min(b for _, b in pairs)} " in str(caught.value)
