"""Laws of the timing model over random programs and machines; residence, what-ifs, and what a transfer costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import islice, pairwise
from math import inf
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from nnac import isa, reference, search
from nnac.compiler import lower, measured_graph
from nnac.emulator import Emulator
from nnac.errors import CapacityError, TargetError
from nnac.isa import Engine, Space
from nnac.orders import adversarial_order
from nnac.passes.emit import Draft
from nnac.passes.tile import settle
from nnac.plan import STRATEGIES
from nnac.program import KnownAnswer, Program
from nnac.search import best_program
from nnac.targets import Memory, Target, load_target, with_settings
from nnac.targets.machine import DATAFLOWS
from nnac.timing import (
    BOUND,
    OUTSIDE,
    PORT,
    Costs,
    cost,
    is_resident,
    latency,
    ports_of,
    simulate,
    transfer_cycles,
    what_if,
    work_cycles,
)
from nnac.validate import validate
from tests.graphs import random_inputs
from tests.test_orders import STRIPED, striped_program
from tests.test_program import legal
from tests.test_schedule import SEEDS, network
from tests.test_validate import AVERAGE, FILL, LOOKUP, MAXIMUM, MUL, SOFTMAX, SUM, altered

NETS = 6
Rng = np.random.Generator
ANSWER = KnownAnswer(0, {})


# -- random programs -----------------------------------------------------------------------------------------------


def random_net(rng: Rng) -> onnx.ModelProto:
    """Return a float chain of convolutions (full and depthwise), pools and sums with a dense head."""
    channels, side = int(rng.choice([3, 8, 12])), int(rng.integers(10, 25))
    source, weights, nodes = (1, channels, side, side), dict[str, Any](), list[onnx.NodeProto]()
    at = "x"

    def add(kind: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"t{len(nodes)}"], f"n{len(nodes)}", **attributes))
        return f"t{len(nodes) - 1}"

    def constant(*shape: int) -> str:
        name = f"w{len(weights)}"
        weights[name] = numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        return name

    for kind in rng.choice(["wide", "wide", "depthwise", "pool", "residual"], int(rng.integers(3, 8))):
        match kind:
            case "wide":
                out = int(rng.choice([8, 16, 32, 48]))
                at = add("Conv", [at, constant(out, channels, 3, 3)], pads=[1, 1, 1, 1])
                channels = out
            case "depthwise":
                at = add("Conv", [at, constant(channels, 1, 3, 3)], pads=[1, 1, 1, 1], group=channels)
            case "pool":
                at = add("MaxPool", [at], kernel_shape=[2, 2], pads=[0, 0, 1, 1])
            case _:
                at = add("Add", [at, add("Relu", [add("Conv", [at, constant(channels, channels, 1, 1)])])])
    pooled = add("Flatten", [add("GlobalAveragePool", [at])])
    nodes.append(helper.make_node("Softmax", [add("Gemm", [pooled, constant(channels, 10)])], ["y"], "head"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, source)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        list(weights.values()),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@cache
def measured(index: int) -> Any:
    """Return one of the random nets, with its ranges."""
    return measured_graph(random_net(np.random.default_rng(index)), "random", "minmax", None, None, None)


def compiled_net(index: int, target: Target, quick: bool = False) -> Program:
    graph, ranges, note = measured(index)
    return lower(graph, ranges, target, note, quick=quick)


def random_machine(rng: Rng) -> Target:
    """Return a target with random rates, latencies, array and sizes: small memories, so that all paths are taken."""

    def rate(low: float, high: float) -> float:
        return float(2 ** rng.uniform(np.log2(low), np.log2(high)))

    base = load_target(str(rng.choice(["nna8", "nna8-tiny"])))
    found: dict[str, Any] = {
        "clock_mhz": rate(10, 2000),
        "vector.lanes": int(rate(1, 64)),
        "vector.issue_cycles": int(rate(1, 64)) - 1,
        "decoder.bytes_per_cycle": int(rate(1, 64)),
        "decoder.issue_cycles": int(rate(1, 64)) - 1,
        "decoder.ahead": int(rng.integers(4)),
        "mac.issue_cycles": int(rate(1, 128)) - 1,
        "mac.rows": int(rate(1, 64)),
        "mac.cols": int(rate(1, 64)),
        "mac.dataflow": str(rng.choice(DATAFLOWS)),
        "mac.preload": bool(rng.integers(2)),
        "mac.depthwise": str(rng.choice(["columns", "single"])),
        "mac.step": int(rng.integers(1, 5)),
        "mac.outputs": float(rng.choice([0, rate(0.5, 32)])),
        "mac.accumulators": int(rng.choice([0, rate(256, 65536)])),
        "memory.sram.bytes": int(rate(256, 32768)),
        "memory.weights.bytes": int(rate(1024, 32768)),
        "memory_mode.shared_bus": bool(rng.integers(2)),
    }
    for name in base.memory:
        found |= {f"memory.{name}.{figure}": value for figure, value in random_port(rng).items()}
    if found["mac.dataflow"] == "dot_product":
        found["mac.pixels"] = int(rng.integers(1, 5))
    return with_settings(base, found)


def random_port(rng: Rng) -> dict[str, Any]:
    return {
        "bytes_per_cycle": float(2 ** rng.uniform(-3, 7)),
        "latency": int(2 ** rng.uniform(0, 8)) - 1,
        "burst": int(2 ** rng.integers(0, 8)),
        "outstanding": int(rng.integers(0, 5)),
    }


def random_rates(rng: Rng, target: Target) -> dict[str, Any]:
    """Return what a what-if may change, at random."""
    other = random_machine(rng)
    rates: dict[str, Any] = {
        "clock_mhz": other.clock_mhz,
        "vector.lanes": other.vector.lanes,
        "mac.issue_cycles": other.mac.issue_cycles,
        "decoder.bytes_per_cycle": other.decoder.bytes_per_cycle,
    }
    for name in target.memory:
        rates |= {f"memory.{name}.{figure}": value for figure, value in random_port(rng).items()}
    return rates


PROGRAMS = st.integers(0, 63)
"""Seeds of random programs: so few that all tests share them, for compiling takes longer than looking at the result."""


@cache
def random_program(seed: int) -> Program:
    """Return an operator alone, an integer network, or a compiled net, on a random machine."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.4:
        program, _ = striped_program(STRIPED[int(rng.integers(len(STRIPED)))], rng)
        return replace(program, target=what_if(program, random_rates(rng, program.target)))
    while True:
        machine = random_machine(rng)
        try:
            if rng.random() < 0.6:
                return best_program(network(rng), machine, "test", ANSWER)
            return compiled_net(int(rng.integers(NETS)), machine)
        except CapacityError:
            continue


def moved_outside(program: Program) -> dict[str, int]:
    """Return bytes through the ports outside the chip, counted from the instructions alone."""
    found = {space.label: 0 for space in OUTSIDE}
    for i in program.instructions:
        match i:
            case isa.Load():
                found[Space(i.space).label] += i.source_bytes + i.table_bytes
            case isa.Copy():
                for space in (i.source_space, i.target_space):
                    if Space(space) in OUTSIDE:
                        found[Space(space).label] += isa.volume(i.shape) * i.width
            case isa.Fill() if Space(i.space) in OUTSIDE:
                found[Space(i.space).label] += i.count * i.width
            case isa.Host():
                for r in (*i.reads(), *i.writes()):
                    if r.space in OUTSIDE:
                        found[r.space.label] += r.end - r.start
    return found


# -- bounds --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(PROGRAMS)
def test_never_faster_than_array_or_memory(seed: int) -> None:
    """cycles >= MACs / peak; cycles >= bytes / bandwidth per memory; no utilisation above 1."""
    program = random_program(seed)
    timeline, target = simulate(program), program.target
    assert timeline.cycles * target.mac.peak >= program.macs
    assert 0 <= timeline.utilisation <= 1 and all(0 <= row.utilisation <= 1 for row in timeline.layers)
    for name, memory in target.memory.items():
        moved = sum(n for (m, _), n in timeline.traffic.items() if m == name)
        assert timeline.cycles * memory.bytes_per_cycle >= moved * (1 - 1e-9)
    outside = moved_outside(program)
    found = {name: sum(n for (m, _), n in timeline.traffic.items() if m == name) for name in outside}
    assert found == outside


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_compulsory_bytes_move(seed: int) -> None:
    """Constants come in once or more; what lives outside is written whole, and read by each layer that needs it."""
    rng = np.random.default_rng(seed)
    machine, program = random_machine(rng), None
    while program is None:
        try:
            program = best_program(network(rng), machine, "test", ANSWER)
        except CapacityError:
            machine = random_machine(rng)
    moved = moved_outside(program)
    need = dict.fromkeys(moved, 0)
    need[program.constants_space.label] += sum(
        {(i.source, i.source_bytes): i.source_bytes for i in program.instructions if isinstance(i, isa.Load)}.values()
    )
    for layer in program.layers:
        for tensor in map(program.tensor, (*layer.inputs, layer.output)):
            if tensor.space in OUTSIDE and not tensor.pieces:
                need[tensor.space.label] += tensor.type.nbytes
    assert all(moved[name] >= need[name] for name in need)


@settings(max_examples=60, deadline=None)
@given(PROGRAMS)
def test_accounts_add_up(seed: int) -> None:
    """Layers' critical cycles and bytes sum to the totals; no engine is busy for longer; some engine always works."""
    program = random_program(seed)
    timeline = simulate(program)
    end = max(span.end for span in timeline.spans)
    assert sum(row.critical for row in timeline.layers) == timeline.cycles >= end
    assert (timeline.bound == PORT) == (timeline.cycles > end) and timeline.bound in {*BOUND.values(), "issue", PORT}
    assert all(row.critical >= 0 and 0 <= row.start <= row.end <= end for row in timeline.layers)
    assert all(cycles <= end for cycles in timeline.busy.values()) and end <= sum(timeline.busy.values())
    for engine in Engine:
        spans = [s for i, s in zip(program.instructions, timeline.spans, strict=True) if i.engine == engine]
        assert timeline.busy[engine] == sum(s.end - s.start for s in spans)
        assert all(a.end <= b.start for a, b in pairwise(spans))
    parts = {key: sum(row.traffic.get(key, 0) for row in timeline.layers) for key in timeline.traffic}
    assert parts == timeline.traffic


@settings(max_examples=60, deadline=None)
@given(PROGRAMS)
def test_transfers_on_a_port_stand_in_a_row(seed: int) -> None:
    """Nothing overlaps on a port outside the chip (or on the shared bus), whatever the rates, cold or warm."""
    program, rng = random_program(seed), np.random.default_rng(seed)
    for machine in (program.target, what_if(program, random_rates(rng, program.target))):
        for timeline in (simulate(program, machine), simulate(program, machine, warm=True)):
            ports: dict[Space, list[tuple[int, int]]] = {}
            for i, span in zip(program.instructions, timeline.spans, strict=True):
                spaces = {space for space, _, _ in ports_of(i)} & set(OUTSIDE)
                for port in {Space.DRAM} if spaces and machine.memory_mode.shared_bus else spaces:
                    ports.setdefault(port, []).append((span.start, span.end))
            for spans in ports.values():
                assert all(a[1] <= b[0] for a, b in pairwise(sorted(s for s in spans if s[0] < s[1])))


# -- what-ifs ------------------------------------------------------------------------------------------------------


def better(target: Target, rng: Rng) -> Iterator[tuple[str, Any]]:
    """Yield every rate that the contract speaks of, raised, and every latency and issue cost, lowered."""
    factor = float(2 ** rng.uniform(0, 5))
    yield "clock_mhz", min(1e5, target.clock_mhz * factor)
    yield "vector.lanes", min(4096, round(target.vector.lanes * factor))
    yield "decoder.bytes_per_cycle", min(4096, round(target.decoder.bytes_per_cycle * factor))
    if target.mac.outputs:
        yield "mac.outputs", 0.0 if rng.integers(2) else min(65536.0, target.mac.outputs * factor)
    for section in ("mac", "vector", "decoder"):
        yield f"{section}.issue_cycles", int(getattr(target, section).issue_cycles / factor)
    for name, memory in target.memory.items():
        yield f"memory.{name}.bytes_per_cycle", min(65536.0, memory.bytes_per_cycle * factor)
        yield f"memory.{name}.latency", int(memory.latency / factor)
        if memory.outstanding:
            yield f"memory.{name}.outstanding", memory.outstanding + int(rng.integers(8)) if rng.integers(2) else 0


@settings(max_examples=60, deadline=None)
@given(PROGRAMS)
def test_no_rate_makes_anything_slower(seed: int) -> None:
    """With the same program, a better figure never costs time; all of them together neither."""
    program, rng = random_program(seed), np.random.default_rng(seed)
    before, changes = simulate(program), dict(better(program.target, rng))
    for change in (*({name: value} for name, value in changes.items()), changes):
        after = simulate(program, what_if(program, change))
        assert after.milliseconds <= before.milliseconds * (1 + 1e-12), change
        assert after.cycles <= before.cycles, change


def test_a_what_if_changes_what_it_says() -> None:
    """The timeline is that of the other machine: clock, cycles and bandwidth."""
    program = compiled_net(0, load_target("nna8"))
    before, double = simulate(program), what_if(program, {"clock_mhz": program.target.clock_mhz * 2})
    after = simulate(program, double)
    assert after.cycles == before.cycles and after.milliseconds == before.milliseconds / 2
    assert after.program.target == double and before.program.target == program.target
    slow = simulate(program, what_if(program, {"memory.dram.bytes_per_cycle": 0.01}))
    assert slow.cycles > 50 * before.cycles and slow.bound == "weights"
    assert simulate(program, what_if(program, {})) == before


def compiled_figures(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, another legal value) of every figure that a program is compiled for."""
    for f in fields(section):
        value, name = getattr(section, f.name), f"{prefix}{f.name}"
        if is_dataclass(value):
            yield from compiled_figures(value, f"{name}.")
        elif isinstance(value, dict):
            for key, part in value.items():
                yield from compiled_figures(part, f"{name}.{key}.")
        elif f.metadata.get("compiled"):
            allowed = [v for v in f.metadata.get("allowed", ()) if v != value]
            if "allowed" not in f.metadata or allowed:
                yield name, allowed[0] if allowed else value + (1 if value < f.metadata["high"] else -1)


FIGURES = dict(compiled_figures(load_target("nna8-tiny")))


@pytest.mark.parametrize("name", FIGURES)
def test_sizes_need_compiling(name: str) -> None:
    """Every figure that the planner has used is refused, by name."""
    base = load_target("nna8-tiny")
    program = replace(compiled_net(0, load_target("nna8")), target=base)
    with pytest.raises(TargetError, match=f"{name}.*compile the model again"):
        what_if(program, {name: FIGURES[name]})


def test_sizes_are_found() -> None:
    assert {
        "mac.rows",
        "mac.cols",
        "memory.sram.bytes",
        "memory.weights.bytes",
        "memory_mode.shared_bus",
        "arithmetic.rounding",
        "decoder.ahead",
    } <= set(FIGURES)
    assert not {"clock_mhz", "vector.lanes", "memory.sram.bytes_per_cycle"} & set(FIGURES)


# -- residence -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(PROGRAMS)
def test_warm_is_never_slower(seed: int) -> None:
    """An inference after the first: no slower, and without a byte of loads exactly where constants stay."""
    program = random_program(seed)
    cold, warm = simulate(program), simulate(program, warm=True)
    assert warm.cycles <= cold.cycles and not cold.warm and warm.warm == is_resident(program)
    if not is_resident(program):
        assert replace(warm, warm=False) == cold
    else:
        assert not any(purpose in ("weights", "tables") for _, purpose in warm.traffic)
        assert sum(row.critical for row in warm.layers) == warm.cycles


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_constants_that_stay_are_still_there(seed: int) -> None:
    """Where `is_resident`, a second inference without any load gives the bits of a first one."""
    rng = np.random.default_rng(seed)
    machine = replace(random_machine(rng), memory=load_target("nna8-tiny").memory)
    graph = network(rng)
    program = best_program(graph, with_settings(machine, {"memory.weights.bytes": 1 << 16}), "test", ANSWER)
    assert is_resident(program)
    first, second = random_inputs(graph, rng), random_inputs(graph, rng)
    emulator = Emulator(program)
    emulator.run(first, order=range(len(program.instructions)))  # a prepared run leaves loads out
    emulator.write(program.tensor("x"), second["x"])
    for instruction in program.instructions:
        if not isinstance(instruction, isa.Load):
            emulator.execute(instruction)
    np.testing.assert_array_equal(emulator.read(program.tensor("y")), Emulator(program).run(second)["y"])


def test_a_ring_that_wraps_keeps_nothing() -> None:
    """A weight buffer that is smaller than the constants is filled over again: each inference loads everything."""
    program = compiled_net(0, with_settings(load_target("nna8"), {"memory.weights.bytes": 4096}))
    assert not is_resident(program) and program.used[Space.WEIGHTS] <= 4096 < program.constants.size
    assert is_resident(compiled_net(0, load_target("nna8")))


# -- compile time --------------------------------------------------------------------------------------------------


NETS_ON_MACHINES = [(index, name) for index in range(NETS) for name in ("nna8", "nna8-tiny")]
SIZES = 4
"""Random scratchpads to compile for, from a tenth of what the net needs whole to a third more."""


def latencies(index: int, machine: Target, rng: Rng) -> list[tuple[int, int]]:
    """Return (scratchpad bytes, cycles) of a net, ascending, from the smallest size that it fits."""
    whole = compiled_net(index, with_settings(machine, {"memory.sram.bytes": 1 << 20})).used[Space.SRAM]
    found: list[tuple[int, int]] = []
    for size in sorted(int(whole * share) for share in np.exp(rng.uniform(np.log(0.1), np.log(1.3), SIZES))):
        try:
            program = compiled_net(index, with_settings(machine, {"memory.sram.bytes": size}))
        except CapacityError:
            assert not found, f"{size} bytes do not fit, {found[-1][0]} do"
            continue
        found.append((size, simulate(program).cycles))
    return found


@pytest.mark.parametrize(("index", "name"), NETS_ON_MACHINES)
def test_a_larger_scratchpad_is_never_slower(index: int, name: str) -> None:
    """Of programs compiled for machines that differ in the scratchpad only, a larger one's takes no longer."""
    rng = np.random.default_rng(index)
    machine = with_settings(load_target(name), {"memory.weights.bytes": int(2 ** rng.uniform(12, 16))})
    found = latencies(index, machine, rng)
    assert all(a[1] >= b[1] for a, b in pairwise(found)), found


def test_the_first_plan_means_the_same_and_is_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the only one that is drafted."""
    drafts = Counter[int]()

    def counted(*arguments: Any) -> Draft:
        drafts[index] += 1
        return Draft(*arguments)

    gained = 0
    for index in range(NETS):
        machine = with_settings(load_target("nna8-tiny"), {"memory.sram.bytes": 16384})
        searched = compiled_net(index, machine)
        with monkeypatch.context() as patch:
            patch.setattr(search, "Draft", counted)
            first = compiled_net(index, machine, quick=True)
        assert first.known_answer == searched.known_answer
        inputs = {name: np.ones(first.tensor(name).type.shape, np.int8) for name in first.inputs}
        for name, values in Emulator(first).run(inputs).items():
            np.testing.assert_array_equal(values, Emulator(searched).run(inputs)[name])
        gained += latency(first) - latency(searched)
        assert latency(searched) <= latency(first)
    assert set(drafts.values()) == {1} and gained > 0


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_every_plan_that_the_search_tries_means_the_same(seed: int) -> None:
    """Not the fastest alone: with `quick`, or where patience ends, any of them may become the program."""
    rng, drafts = np.random.default_rng(seed), list[Draft]()
    machine, graph = random_machine(rng), network(rng)

    def kept(*arguments: Any) -> Draft:
        drafts.append(Draft(*arguments))
        return drafts[-1]

    with pytest.MonkeyPatch.context() as patch, suppress(CapacityError):
        patch.setattr(search, "Draft", kept)
        best_program(graph, machine, "test", ANSWER)
    probe = reference.probe(graph)
    expected = reference.run(graph, probe, machine.arithmetic)
    for index in rng.permutation(len(drafts))[:5]:
        program = validate(drafts[index].program("test", ANSWER, {}))
        for order in (None, adversarial_order(program.instructions, seed)):
            np.testing.assert_array_equal(Emulator(program).run(probe, order=order)["y"], expected["y"])


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_what_the_search_leaves_out_is_no_faster(seed: int) -> None:
    """A strategy or a rung left out for its transfers has no program that takes fewer cycles than they were said to."""
    rng = np.random.default_rng(seed)
    machine, graph = random_machine(rng), network(rng)
    searching = search._Search(machine, graph)
    for size, work in islice(search._rungs(graph, machine, {}), 6):
        for strategy in (*STRATEGIES, replace(STRATEGIES[-1], share=0.6, stripes=4, blocks=4)):
            cycles = searching.time(size, work, strategy, inf)
            assert cycles >= searching.least(size, work, strategy)
            assert cycles >= searching.bounds.of_rung(size, work, 1)  # what a rung above has found
            assert cycles >= searching.bounds.of_rung(size, work, inf)
            if cycles < inf:
                homes = settle(work, size, strategy)
                tiling = homes.tiling(min(size, machine.memory["sram"].bytes))
                assert cycles >= searching.bounds.of_tiling(homes, tiling)


@pytest.mark.parametrize(
    ("index", "machine", "weights", "smaller", "larger"),
    [(6, "nna8", 10_424, 24_194, 28_447), (1, "nna8-tiny", 7_354, 31_080, 40_721), (2, "nna8", 11_773, 1_980, 2_073)],
)
def test_where_a_larger_scratchpad_was_slower(
    index: int, machine: str, weights: int, smaller: int, larger: int
) -> None:
    """Cases of a planner that tried each size on its own: 4, 3 and 1 % slower."""
    base = with_settings(load_target(machine), {"memory.weights.bytes": weights})
    before, after = (
        simulate(compiled_net(index, with_settings(base, {"memory.sram.bytes": size}))).cycles
        for size in (smaller, larger)
    )
    assert after <= before


@pytest.mark.parametrize(
    ("index", "wide"),
    [
        (FILL, {"width": 2}),
        (MAXIMUM, {"in_bits": 16, "out_bits": 16}),
        (AVERAGE, {"out_bits": 16}),
        (SUM, {"bits": (8, 16, 8)}),
        (MUL, {"out_bits": 16}),
        (LOOKUP, {"in_bits": 16}),
        (SOFTMAX, {"in_bits": 16, "out_bits": 16}),
    ],
)
def test_16_bits_take_two_lanes(index: int, wide: dict[str, Any]) -> None:
    """One operand or result of 16 bits doubles the elements, not the issue cycles; the bytes follow the widths."""
    target = load_target("nna8")
    target = replace(target, vector=replace(target.vector, lanes=1))
    narrow = legal().instructions[index]
    wider = altered(narrow, **wide)
    assert work_cycles(wider, target) == 2 * work_cycles(narrow, target)
    assert cost(wider, target).issue == cost(narrow, target).issue
    moved = [sum(n for space, n, _ in ports_of(i) if space == Space.SRAM) for i in (narrow, wider)]
    assert moved[0] < moved[1] <= 2 * moved[0]


@settings(max_examples=10, deadline=None)
@given(PROGRAMS)
def test_costs_do_not_depend_on_addresses(seed: int) -> None:
    """What is remembered of an instruction holds wherever its bytes lie, for each of its addresses."""
    program = random_program(seed)
    for i in program.instructions:
        for f in (f for f in fields(i) if "address" in f.metadata):
            at = getattr(i, f.name)
            elsewhere: dict[str, Any] = {f.name: tuple(a + 64 for a in at) if isinstance(at, tuple) else at + 64}
            assert cost(replace(i, **elsewhere), program.target) == cost(i, program.target)
    assert Costs(program.target).of(program.instructions) == [cost(i, program.target) for i in program.instructions]


def test_transfer_by_hand() -> None:
    """The four-parameter model: latency, then whole bursts at a rate that the bursts in flight cap."""
    port = Memory(bytes=1024, bytes_per_cycle=2, latency=100, burst=64)
    assert transfer_cycles(port, [(64, 64)]) == 100 + 32
    assert transfer_cycles(port, [(65, 65)]) == 100 + 64
    assert transfer_cycles(port, [(64, 8)]) == 100 + 8 * 32
    assert transfer_cycles(replace(port, outstanding=2), [(6400, 6400)]) == 100 + 6400 / 1.28
    assert transfer_cycles(replace(port, outstanding=9), [(6400, 6400)]) == 100 + 3200
