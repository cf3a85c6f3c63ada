"""The timing model: a program's instructions on its target, as one longest path.

Contract. Every engine takes its instructions in program order; an instruction starts when its engine is free and its
wait tokens are there, and nothing else serializes: transfers, decoding, array, vector and host work overlap. Transfers
that share a memory port (or the bus) outside the chip never overlap, because the compiler's tokens put them in a row;
the host has a bus of its own. Tokens also hold loads back where the target says how far they run ahead of the array
(`decoder.ahead`). An instruction lasts as long as the slowest of

- its engine's issue cycles plus its work: the array's closed form with fill, skew, drain, edge tiles and output stage
  (`nnac.array`; the right matrix of a product of activations streams in from the scratchpad); the vector unit's
  elements over lanes (times window taps for pooling, operands for sums, products, quotients, extremes and choices, 2
  for softmax, 3 for a norm: moments, products, rounding; `cell_passes` for a recurrent cell; elements take two lanes
  where an operand or the result has 16 bits);
  the decoder's bytes over its rate;
- the host's call, its float operations over their rate, and the bytes of its operands and results over its own bus,
  one after the other (`target.host`);
- its transfers: for each memory that it touches, latency + bytes in whole bursts over the bandwidth, which is capped
  at outstanding * burst / latency (a strided access pays bursts per contiguous run). Operands and results cross the
  port of the scratchpad or weight buffer once per instruction, one after the other; partial sums stay in the
  accumulators.

The total is the end of the last instruction, and at least the bytes of each memory over the bandwidth of its banks;
what that adds is shared out to the layers by their bytes. All durations are whole cycles of the target's clock, so the
total falls, or stays, when any rate grows. Energy counts MACs and bytes through each port by the target's table; it
leaves out leakage, clocks and the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import ceil
from typing import Any, NamedTuple, assert_never

from nnac import isa
from nnac.array import array_cycles, matmul_cycles, over
from nnac.errors import ProgramError, TargetError
from nnac.hazards import Counts
from nnac.isa import AnyInstruction, Engine, Space
from nnac.program import Layer, Program
from nnac.targets import Memory, Target, needs_compiling, with_settings

OUTSIDE = (Space.DRAM, Space.FLASH)
"""Memories outside the chip: their ports are what transfers share."""
BOUND = {
    Engine.MAC: "MAC",
    Engine.DECODER: "weights",
    Engine.VECTOR: "vector",
    Engine.DMA_IN: "activations",
    Engine.DMA_OUT: "activations",
    Engine.HOST: "host",
}
"""What an engine's time is called when it bounds a layer."""
PORT = "port"
"""What bounds where the bytes of one memory alone take longer than the critical path."""


class Cost(NamedTuple):
    """What one instruction costs, alone.

    Attributes:
        issue: fixed cycles of its engine.
        work: cycles that its engine works.
        transfer: cycles of its slowest transfer, latency included.
        moved: bytes through the port of each memory.
    """

    issue: int
    work: int
    transfer: int
    moved: Mapping[Space, int]

    @property
    def cycles(self) -> int:
        return max(self.issue + self.work, self.transfer)


FREE = Cost(0, 0, 0, {})
"""What loading constants costs that are there already."""


@dataclass(frozen=True, slots=True)
class Span:
    """When an instruction ran: cycles [start, end), and the instruction whose end it waited for (-1: none)."""

    start: int
    end: int
    after: int


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One layer on the timeline.

    Attributes:
        start, end: cycles of its first start and last end.
        critical: cycles of the critical path inside this layer; over all layers they sum to the total.
        bound: what most of its critical (or else busy) cycles are spent on: a value of `BOUND`, "issue" or "port".
        utilisation: its MACs over the array's peak while the array works on it; 0 without MACs.
        traffic: bytes by (memory, purpose).
    """

    layer: Layer
    start: int
    end: int
    critical: int
    bound: str
    utilisation: float
    traffic: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Timeline:
    """The result of timing a program once.

    Attributes:
        program: what was timed, with the machine that it was timed for.
        spans: per instruction.
        cycles: of one inference.
        busy: cycles that each engine is occupied.
        traffic: bytes by (memory, purpose); purposes are weights, tables, constants, input, output, spill, operands.
        layers: in program order.
        energy: picojoules by part, or empty when the target has no energy table.
        bound: what most of the critical path is spent on: a value of `BOUND`, "issue", or "port" where the bytes of one
            memory alone take longer than the path.
        warm: whether constants were taken as loaded by an inference before.
    """

    program: Program
    spans: tuple[Span, ...]
    cycles: int
    busy: Mapping[Engine, int]
    traffic: Mapping[tuple[str, str], int]
    layers: tuple[LayerTime, ...]
    energy: Mapping[str, float]
    bound: str
    warm: bool = False

    @property
    def milliseconds(self) -> float:
        return self.program.target.milliseconds(self.cycles)

    @property
    def inferences_per_second(self) -> float:
        return 1e3 / self.milliseconds

    @property
    def utilisation(self) -> float:
        """Share of the array's peak MACs."""
        return self.program.macs / (self.cycles * self.program.target.mac.peak)


def what_if(program: Program, settings: Mapping[str, Any]) -> Target:
    """Return the program's target with other rates.

    Raises:
        TargetError: an unknown figure, an illegal value, or a figure that the program was compiled for.
    """
    target = with_settings(program.target, settings)
    fixed = needs_compiling(program.target, target)
    if fixed:
        raise TargetError(
            f"{', '.join(fixed)}: the program was compiled for the old value; compile the model again "
            "with a target that says so (what-ifs change rates, not sizes)"
        )
    return target


def is_resident(program: Program) -> bool:
    """Tell whether all constants stay in the weight buffer, so that only the first inference loads them."""
    loads = sorted(
        {(i.target, i.target + i.target_bytes, i.source) for i in program.instructions if isinstance(i, isa.Load)}
    )
    return all(a[1] <= b[0] for a, b in pairwise(loads))


def latency(program: Program) -> int:
    """Return the cycles of one inference, without the accounts."""
    return duration(*_order(program), Costs(program.target).of(program.instructions), program.target)


def _order(program: Program) -> tuple[list[Engine], list[Counts]]:
    """Return the engine and the wait tokens of each instruction."""
    return [i.engine for i in program.instructions], [i.waits for i in program.instructions]


def duration(engines: Sequence[Engine], tokens: Sequence[Counts], costs: Sequence[Cost], target: Target) -> int:
    """Return the cycles of instructions of which engine, wait tokens and cost are given."""
    moved = dict.fromkeys(Space, 0)
    for each in costs:
        for space, nbytes in each.moved.items():
            moved[space] += nbytes
    ends, _ = longest_path(engines, tokens, [each.cycles for each in costs])
    return max(1, _fullest({(space.label, ""): n for space, n in moved.items()}, target)[0], *ends)


def simulate(program: Program, target: Target | None = None, warm: bool = False) -> Timeline:
    """Return the timeline of one inference of a validated program.

    Args:
        program: what to time.
        target: another machine of the same sizes and law, with other rates (see `what_if`); its own by default.
        warm: an inference after the first one: where `is_resident`, loading constants takes no time and moves nothing.
    """
    machine = target or program.target
    program, skip = replace(program, target=machine), warm and is_resident(program)
    spent = Costs(machine).of(program.instructions)
    spent = [FREE if skip and isinstance(i, isa.Load) else c for i, c in zip(program.instructions, spent, strict=True)]
    ends, afters = longest_path(*_order(program), [c.cycles for c in spent])
    spans = [Span(end - c.cycles, end, after) for end, c, after in zip(ends, spent, afters, strict=True)]
    last = max(range(len(spans)), key=lambda i: spans[i].end, default=-1)
    end = spans[last].end if spans else 0
    busy = {engine: 0 for engine in Engine}
    for instruction, span in zip(program.instructions, spans, strict=True):
        busy[instruction.engine] += span.end - span.start
    path = _critical(spans, last)
    layers, bound = tuple(_layers(program, spans, spent, path)), _most(program, spans, spent, path)
    traffic = sum((Counter(layer.traffic) for layer in layers), Counter[tuple[str, str]]())
    floor, port = _fullest(traffic, machine)
    if floor > end:
        layers, bound = tuple(_shared_out(layers, floor - end, port)), PORT
    return Timeline(
        program,
        tuple(spans),
        max(1, end, floor),
        busy,
        dict(sorted(traffic.items())),
        layers,
        _energy(program, traffic, machine),
        bound,
        skip,
    )


# -- what one instruction costs ------------------------------------------------------------------------------------


class Costs:
    """What instructions cost on a machine, alone; those that differ only in where their bytes lie cost the same."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._issue = [_issue_cycles(engine, target) for engine in Engine]
        self._memories = {space: target.memory[space.label] for space in Space if space.label in target.memory}
        self._known = dict[object, Cost]()

    def of(self, instructions: Iterable[AnyInstruction]) -> list[Cost]:
        """Return the cost of each instruction."""
        return [self._of(i) for i in instructions]

    def _of(self, i: AnyInstruction) -> Cost:
        form = i.form
        if form not in self._known:
            self._known[form] = Cost(self._issue[i.engine], work_cycles(i, self.target), *_transfers(i, self._memories))
        return self._known[form]


def cost(i: AnyInstruction, target: Target) -> Cost:
    """Return the cost of one instruction on `target`, alone."""
    return Costs(target).of([i])[0]


def _transfers(i: AnyInstruction, memories: Mapping[Space, Memory]) -> tuple[int, dict[Space, int]]:
    """Return the cycles of an instruction's slowest transfer, and the bytes through the port of each memory."""
    moved, bursts = dict[Space, int](), dict[Space, int]()
    for space, nbytes, run in ports_of(i):
        moved[space] = moved.get(space, 0) + nbytes
        bursts[space] = bursts.get(space, 0) + _in_bursts(nbytes, run, memories[space].burst)
    return max([_moving(memories[space], nbytes) for space, nbytes in bursts.items()], default=0), moved


def _issue_cycles(engine: Engine, target: Target) -> int:
    match engine:
        case Engine.MAC:
            return target.mac.issue_cycles
        case Engine.DECODER:
            return target.decoder.issue_cycles
        case Engine.HOST:
            return target.host.call_cycles if target.host else 0
        case _:
            return target.vector.issue_cycles


def transfer_cycles(memory: Memory, runs: Iterable[tuple[int, int]]) -> int:
    """Return latency + bursts over bandwidth for (bytes, bytes of one contiguous run) through one port."""
    return _moving(memory, sum([_in_bursts(nbytes, run, memory.burst) for nbytes, run in runs]))


def _in_bursts(nbytes: int, run: int, burst: int) -> int:
    return nbytes // run * -(-run // burst) * burst


def _moving(memory: Memory, nbytes: int) -> int:
    return memory.latency + ceil(nbytes / memory.rate)


def work_cycles(i: AnyInstruction, target: Target) -> int:
    """Return the cycles that the instruction's engine works, however fast the memories are."""
    if isinstance(i, isa.Conv):
        return array_cycles(i, target.mac)
    if isinstance(i, isa.Load):
        rate = getattr(target.decoder, isa.PACKERS[i.packer]) if i.packer else target.decoder.bytes_per_cycle
        return over(i.target_bytes, rate)
    lanes, wide = target.vector.lanes, elements_lanes(i)
    match i:
        case isa.Copy():
            return over(isa.volume(i.shape) * wide, lanes) if i.engine == Engine.VECTOR else 0
        case isa.Fill():
            return over(i.count * wide, lanes) if i.engine == Engine.VECTOR else 0
        case isa.Pool():
            return over(i.out_h * i.out_w * i.channels * wide, lanes) * i.kernel_h * i.kernel_w
        case isa.Sum() | isa.Mul() | isa.Magnitude() | isa.Div() | isa.Extreme() | isa.Select():
            return over(isa.volume(i.shape) * wide, lanes) * len(i.sources)
        case isa.MatMul():
            return matmul_cycles(i, target.mac)
        case isa.Norm():
            return 3 * i.rows * over(i.count * wide, lanes)
        case isa.Lookup():
            return over(i.count * wide, lanes)
        case isa.Softmax():
            return 2 * i.rows * over(i.length * wide, lanes)
        case isa.Lstm() | isa.Gru():
            return cell_passes(i) * over(2 * i.units, lanes)
        case isa.Host():
            return _host_cycles(i, target)
        case _:
            assert_never(i)


def _host_cycles(i: isa.Host, target: Target) -> int:
    """Return the cycles of a host segment without its call.

    Raises:
        ProgramError: the machine has no host.
    """
    if target.host is None:
        raise ProgramError(f"target {target.name!r} has no section [host], but the program has host segments")
    return ceil(i.operations / target.host.operations_per_cycle) + ceil(i.nbytes / target.host.bytes_per_cycle)


def cell_passes(i: isa.Lstm | isa.Gru) -> int:
    """Return how often the vector unit goes over the units of a recurrent cell.

    A table with the sum and the clip in front of it is one pass, a product with its sum or its rounding is one: five
    tables and three products for an LSTM (a coupled gate saves a table, peepholes add three products), three tables
    and three products for a GRU, of which one each belong to the reset.
    """
    if isinstance(i, isa.Lstm):
        return 8 - i.coupled + 3 * i.peepholes
    return {isa.WHOLE: 6, isa.RESET: 2, isa.FINISH: 4}[i.phase]


def elements_lanes(i: AnyInstruction) -> int:
    """Return the lanes that one element of a vector instruction takes: a byte each of its widest operand or result."""
    match i:
        case isa.Copy() | isa.Fill():
            return i.width
        case isa.Sum() | isa.Mul() | isa.Magnitude() | isa.Div() | isa.Extreme() | isa.Select():
            return max(*i.bits, i.out_bits) // 8
        case isa.Pool() | isa.Lookup() | isa.Softmax() | isa.Norm():
            return max(i.in_bits, i.out_bits) // 8
        case _:
            return 1


def ports_of(i: AnyInstruction) -> Iterator[tuple[Space, int, int]]:
    """Yield (memory, bytes, bytes of one contiguous run) for everything that crosses a memory's port once."""
    match i:
        case isa.Conv():
            for space, start, end in i.reads():
                yield space, end - start, end - start
            pixels, run = i.out_h * i.out_w, i.out_c * i.out_bits // 8
            yield Space.SRAM, pixels * run, run if i.out_c < i.pitch else pixels * run
        case isa.Copy():
            yield Space(i.source_space), *_runs(i.shape, i.source_strides, i.width)
            yield Space(i.target_space), *_runs(i.shape, i.target_strides, i.width)
        case isa.Sum() | isa.Mul() | isa.Magnitude() | isa.Div() | isa.Extreme() | isa.Select():
            for index, bits in enumerate(i.bits):
                strides = i.operand_strides(index)
                sides = tuple(n if step else 1 for n, step in zip(i.shape, strides, strict=True))
                distinct = isa.volume(sides) * bits // 8
                yield Space.SRAM, distinct, distinct
            written = isa.volume(i.shape) * i.out_bits // 8
            yield Space.SRAM, written, written
        case _:
            for space, start, end in (*i.reads(), *i.writes()):
                if end > start:
                    yield space, end - start, end - start


def _runs(shape: tuple[int, ...], strides: tuple[int, ...], width: int) -> tuple[int, int]:
    """Return (bytes, bytes of one contiguous run) of a strided view of elements of `width` bytes."""
    run = width
    for side, stride in reversed(list(zip(shape, strides, strict=True))):
        if side != 1 and stride != run:
            break
        run *= side
    return isa.volume(shape) * width, run


# -- the longest path ----------------------------------------------------------------------------------------------


def longest_path(
    engines: Sequence[Engine], tokens: Sequence[Counts], cycles: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return when each instruction ends, given its duration, and for whose end it waited (-1: none).

    Engines take theirs in order, tokens are kept, nothing else.

    Raises:
        ProgramError: the instructions wait for each other (`nnac.validate` refuses such a program earlier).
    """
    queues = by_engine(engines)
    ends, afters, done, moved = [0] * len(engines), [-1] * len(engines), [0] * len(Engine), True
    while moved:
        moved = False
        for engine, queue in enumerate(queues):
            while done[engine] < len(queue):
                index = queue[done[engine]]
                after = _latest(tokens[index], queues, done, ends)
                if after is None:
                    break
                before = queue[done[engine] - 1] if done[engine] else -1
                after = before if before >= 0 and (after < 0 or ends[before] > ends[after]) else after
                afters[index], ends[index] = after, (ends[after] if after >= 0 else 0) + cycles[index]
                done[engine], moved = done[engine] + 1, True
    if sum(done) < len(engines):
        raise ProgramError("timing: instructions wait for each other for ever")
    return ends, afters


def _latest(waits: Counts, queues: Sequence[Sequence[int]], done: Sequence[int], ends: Sequence[int]) -> int | None:
    """Return which instruction that `waits` name ends last (-1: they name none); None if one has not run yet."""
    latest = -1
    for engine, count in enumerate(waits):
        if count > done[engine]:
            return None
        if count and (latest < 0 or ends[queues[engine][count - 1]] > ends[latest]):
            latest = queues[engine][count - 1]
    return latest


def by_engine(engines: Sequence[Engine]) -> list[list[int]]:
    """Return the indices of each engine's instructions."""
    queues: list[list[int]] = [[] for _ in Engine]
    for index, engine in enumerate(engines):
        queues[engine].append(index)
    return queues


def _critical(spans: Sequence[Span], last: int) -> set[int]:
    """Return the instructions on the critical path that ends with `last`."""
    path = set()
    while last >= 0:
        path.add(last)
        last = spans[last].after
    return path


# -- accounts ------------------------------------------------------------------------------------------------------

Traffic = Counter[tuple[str, str]]


def _layers(program: Program, spans: Sequence[Span], costs: Sequence[Cost], path: set[int]) -> Iterator[LayerTime]:
    """Yield the layers with the part of the critical path that each one is charged."""
    peak = program.target.mac.peak
    for layer in program.layers:
        own = list(layer.indices())
        on_path = [i for i in own if i in path]
        critical = sum(spans[i].end - spans[i].start for i in on_path)
        array = sum(spans[i].end - spans[i].start for i in own if program.instructions[i].engine == Engine.MAC)
        yield LayerTime(
            layer,
            min((spans[i].start for i in own), default=0),
            max((spans[i].end for i in own), default=0),
            critical,
            _most(program, spans, costs, on_path or own),
            layer.macs / (array * peak) if array else 0.0,
            dict(sorted(_traffic(program, layer, costs).items())),
        )


def _fullest(traffic: Mapping[tuple[str, str], int], target: Target) -> tuple[int, str]:
    """Return the cycles that the bytes of one memory take at least, and its name: the memory with the most."""
    through = {name: sum(n for (m, _), n in traffic.items() if m == name) for name in target.memory}
    return max(
        (ceil(through[name] / (memory.bytes_per_cycle * memory.banks)), name) for name, memory in target.memory.items()
    )


def _shared_out(layers: Iterable[LayerTime], cycles: int, port: str) -> Iterator[LayerTime]:
    """Yield the layers with the cycles that a full port adds, by the bytes that each one sends through it."""
    rows = list(layers)
    through = [sum(n for (memory, _), n in row.traffic.items() if memory == port) for row in rows]
    marks = [cycles * part // max(1, sum(through)) for part in accumulate(through, initial=0)]
    for row, (before, after) in zip(rows, pairwise(marks), strict=True):
        more = after - before
        yield replace(row, critical=row.critical + more, bound=PORT if more > row.critical else row.bound)


def _most(program: Program, spans: Sequence[Span], costs: Sequence[Cost], which: Iterable[int]) -> str:
    """Return what most cycles of some instructions are spent on."""
    share: Counter[str] = Counter()
    for i in which:
        share[_bound(program.instructions[i], costs[i])] += spans[i].end - spans[i].start
    return max(share, key=lambda name: (share[name], name), default="nothing")


def _bound(instruction: AnyInstruction, c: Cost) -> str:
    if instruction.engine == Engine.HOST:  # its call too
        return BOUND[Engine.HOST]
    return "issue" if c.issue > max(c.work, c.transfer) else BOUND[instruction.engine]


def _traffic(program: Program, layer: Layer, costs: Sequence[Cost]) -> Traffic:
    """Return a layer's bytes through each memory's port, by (memory, purpose)."""
    traffic: Traffic = Counter()
    for index in layer.indices():
        for space, nbytes in costs[index].moved.items():
            traffic[space.label, _purpose(program, layer, program.instructions[index], space)] += nbytes
    return traffic


def _purpose(program: Program, layer: Layer, i: AnyInstruction, space: Space) -> str:
    if isinstance(i, isa.Load):
        return "weights" if layer.macs else "tables"
    if space not in OUTSIDE:
        return "operands"
    if (
        isinstance(i, isa.Copy)
        and i.source_space == space
        and i.source_space == program.constants_space
        and (i.source < program.constants.size)
    ):
        return "constants"
    names = {name for name in (*layer.inputs, *layer.outputs) if program.tensor(name).space == space}
    if names & set(program.inputs):
        return "input"
    return "output" if names & set(program.outputs) else "spill"


def _energy(program: Program, traffic: Traffic, target: Target) -> dict[str, float]:
    """Return picojoules by part."""
    table = target.energy
    if table is None:
        return {}
    outside = {space.label for space in OUTSIDE}
    inner = sum(n for (memory, _), n in traffic.items() if memory not in outside)
    outer = sum(n for (memory, _), n in traffic.items() if memory in outside)
    return {
        "MACs": program.macs * table.mac_pj,
        "on-chip memory": inner * table.sram_pj_per_byte,
        "off-chip memory": outer * table.dram_pj_per_byte,
    }
