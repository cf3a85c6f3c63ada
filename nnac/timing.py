"""The timing model: one event-driven reading of a program's instructions on its target.

Contract. Every engine takes its instructions in program order; one starts when its engine is free and its wait tokens
are there. Nothing else serializes: transfers, decoding, array and vector work overlap.

- array (`Conv`), weight-stationary R x C: each fold holds R taps of the dot product for C output channels and streams
  the output pixels; weights of the next fold are preloaded meanwhile, so a fold costs max(pixels, R) cycles, and the
  instruction pays fill and drain (R + C cycles) once. Groups are folded one by one; a depthwise convolution lays C
  channels side by side and fills only its taps' rows.
- vector unit: elements (window taps for pooling, twice for softmax, once per operand for sums) over lanes.
- memories: every instruction moves its operands and results once through the ports of the memories that they lie in,
  after the slowest port's latency, in whole bursts (a strided access pays bursts per contiguous run); what uses a port
  at the same time shares its bandwidth equally. Work and its transfers overlap: an instruction ends when both are done.
- the weight decoder writes at its own rate; each instruction costs its engine's issue cycles.

Costs are in cycles of the target's clock; a result is never under MACs / peak nor under bytes / bandwidth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import assert_never

from nnac import isa
from nnac.isa import AnyInstruction, Engine, Space
from nnac.program import Layer, Program
from nnac.targets import Target


@dataclass(frozen=True, slots=True)
class Cost:
    """What an instruction asks for: engine cycles that nothing can shorten, and bytes through each memory's port.

    Attributes:
        cycles: of the engine itself (work, issue); transfers start after `latency` and overlap with them.
        latency: before the first byte moves.
        traffic: bytes per memory, in whole bursts.
    """

    cycles: int
    latency: int = 0
    traffic: tuple[tuple[Space, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """When an instruction ran, in cycles."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One layer on the timeline.

    Attributes:
        start, end: cycles of its first start and last end.
        critical: cycles during which this layer was the one that the program waited for; they sum to the total.
        bound: the engine that was busiest for it.
        utilisation: share of the array's peak during `critical` cycles.
    """

    layer: Layer
    start: int
    end: int
    critical: int
    bound: str
    utilisation: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The result of timing a program once."""

    program: Program
    spans: tuple[Span, ...]
    cycles: int
    busy: Mapping[Engine, int]
    traffic: Mapping[str, int]
    layers: tuple[LayerTime, ...]

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

    @property
    def bound(self) -> str:
        """The engine that is busy for the longest time."""
        return max(self.busy, key=lambda engine: self.busy[engine]).label


def simulate(program: Program) -> Timeline:
    """Return the timeline of one inference of a validated program."""
    costs = [cost(instruction, program.target) for instruction in program.instructions]
    spans = tuple(_Events(program, costs).run())
    cycles = max(1, ceil(max((span.end for span in spans), default=0)))
    busy = {engine: 0 for engine in Engine}
    for instruction, span in zip(program.instructions, spans, strict=True):
        busy[instruction.engine] += round(span.end - span.start)
    return Timeline(program, spans, cycles, busy, _traffic(program), _layers(program, spans, cycles))


# -- what one instruction costs ------------------------------------------------------------------------------------


def cost(i: AnyInstruction, target: Target) -> Cost:
    """Return the cost of one instruction on `target`, alone."""
    issue = {Engine.MAC: target.mac.issue_cycles, Engine.DECODER: target.decoder.issue_cycles}
    cycles = issue.get(i.engine, target.vector.issue_cycles) + work_cycles(i, target)
    ports = list(ports_of(i))
    latency = max((target.memory[space.label].latency for space, _, _ in ports), default=0)
    traffic: Counter[Space] = Counter()
    for space, nbytes, run in ports:
        burst = target.memory[space.label].burst
        traffic[space] += nbytes // run * _over(run, burst) * burst
    return Cost(cycles, latency, tuple(traffic.items()))


def work_cycles(i: AnyInstruction, target: Target) -> int:
    """Return the cycles that the instruction's engine works, however fast the memories are."""
    lanes = target.vector.lanes
    match i:
        case isa.Load():
            return _over(i.target_bytes, target.decoder.bytes_per_cycle)
        case isa.Copy():
            return _over(isa.volume(i.shape), lanes) if i.engine == Engine.VECTOR else 0
        case isa.Fill():
            return _over(i.count, lanes) if i.engine == Engine.VECTOR else 0
        case isa.Conv():
            return array_cycles(i, target)
        case isa.Pool():
            return _over(i.out_h * i.out_w * i.channels, lanes) * i.kernel_h * i.kernel_w
        case isa.Sum() | isa.Mul():
            return _over(isa.volume(i.shape), lanes) * len(i.sources)
        case isa.Lookup():
            return _over(i.count, lanes)
        case isa.Softmax():
            return 2 * i.rows * _over(i.length, lanes)
        case _:
            assert_never(i)


def ports_of(i: AnyInstruction) -> Iterator[tuple[Space, int, int]]:
    """Yield (memory, bytes, bytes of one contiguous run) for everything that crosses a memory's port once."""
    match i:
        case isa.Copy():
            yield Space(i.source_space), *_runs(i.shape, i.source_strides)
            yield Space(i.target_space), *_runs(i.shape, i.target_strides)
        case isa.Conv():
            for space, start, end in i.reads():
                yield space, end - start, end - start
            pixels = i.out_h * i.out_w
            yield Space.SRAM, pixels * i.out_c, i.out_c if i.out_c < i.pitch else pixels * i.out_c
        case _:
            for space, start, end in (*i.reads(), *i.writes()):
                if end > start:
                    yield space, end - start, end - start


def array_cycles(i: isa.Conv, target: Target) -> int:
    """Return the cycles of the array for one convolution: folds, each streaming the output pixels."""
    rows, cols, pixels = target.mac.rows, target.mac.cols, i.out_h * i.out_w
    taps, per_group = i.kernel_h * i.kernel_w * i.depth, i.channels // i.groups
    if i.depth == 1 and per_group == 1:
        folds = _over(taps, rows) * _over(i.out_c, cols)
    else:
        groups = _over(i.out_c, per_group)
        folds = groups * _over(taps, rows) * _over(min(i.out_c, per_group), cols)
    return folds * max(pixels, rows) + rows + cols


def _over(amount: int, rate: int) -> int:
    return -(-amount // rate)


def _runs(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """Return (bytes, bytes of one contiguous run) of a strided view."""
    run = 1
    for side, stride in reversed(list(zip(shape, strides, strict=True))):
        if side != 1 and stride != run:
            break
        run *= side
    return isa.volume(shape), run


# -- events --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Job:
    """An instruction in flight: bytes still to move per memory, and the time before which it cannot end."""

    index: int
    opens: float
    earliest: float
    left: dict[Space, float]


class _Events:
    """Engines as queues; memory ports as fluids that the transfers in flight share equally."""

    def __init__(self, program: Program, costs: list[Cost]) -> None:
        self.instructions, self.costs = program.instructions, costs
        self.rate = {space: program.target.memory[space.label].bytes_per_cycle for space in Space
                     if space.label in program.target.memory}
        self.queue: dict[Engine, list[int]] = {engine: [] for engine in Engine}
        for index, instruction in reversed(list(enumerate(program.instructions))):
            self.queue[instruction.engine].append(index)
        self.done = [0] * len(Engine)
        self.active: dict[Engine, _Job] = {}
        self.spans: list[Span] = [Span(0.0, 0.0)] * len(costs)
        self.now = 0.0

    def run(self) -> list[Span]:
        """Advance from event to event until every queue is empty."""
        self._start()
        while self.active:
            self._advance(self._next())
            for engine in [e for e, job in self.active.items() if self._finished(job)]:
                self._finish(engine)
            self._start()
        return self.spans

    def _start(self) -> None:
        for engine, queue in self.queue.items():
            if engine in self.active or not queue:
                continue
            instruction, cost_ = self.instructions[queue[-1]], self.costs[queue[-1]]
            if any(self.done[e] < count for e, count in enumerate(instruction.waits)):
                continue
            left = {space: float(count) for space, count in cost_.traffic}
            opens = self.now + cost_.latency
            self.active[engine] = _Job(queue.pop(), opens, max(self.now + cost_.cycles, opens), left)
            self.spans[self.active[engine].index] = Span(self.now, self.now)

    def _shares(self) -> Counter[Space]:
        return Counter(space for job in self.active.values() if job.opens <= self.now for space in job.left)

    def _next(self) -> float:
        """Return the time of the next event: a port opens, a transfer ends, or an engine is done."""
        shares = self._shares()
        return min(time for job in self.active.values() for time in self._moments(job, shares))

    def _moments(self, job: _Job, shares: Counter[Space]) -> Iterator[float]:
        if job.left and job.opens > self.now:
            yield job.opens
        elif job.left:
            yield min(self.now + left * shares[space] / self.rate[space] for space, left in job.left.items())
        else:
            yield max(job.earliest, self.now)

    def _advance(self, time: float) -> None:
        shares, step = self._shares(), time - self.now
        for job in self.active.values():
            if job.opens <= self.now:
                job.left = {space: rest for space, left in job.left.items()
                            if (rest := left - step * self.rate[space] / shares[space]) > 1e-6 * self.rate[space]}
        self.now = time

    def _finished(self, job: _Job) -> bool:
        return not job.left and job.earliest <= self.now

    def _finish(self, engine: Engine) -> None:
        job = self.active.pop(engine)
        self.spans[job.index] = Span(self.spans[job.index].start, self.now)
        self.done[engine] += 1


# -- accounts ------------------------------------------------------------------------------------------------------


def _traffic(program: Program) -> dict[str, int]:
    """Return bytes that cross each memory's port, by memory and direction."""
    traffic: Counter[str] = Counter()
    for i in program.instructions:
        match i:
            case isa.Load():
                traffic[f"{Space(i.space).label} read (constants)"] += i.source_bytes
            case isa.Copy():
                for space, way in ((i.source_space, "read"), (i.target_space, "write")):
                    if space in (Space.DRAM, Space.FLASH):
                        traffic[f"{Space(space).label} {way} (activations)"] += isa.volume(i.shape)
            case isa.Fill() if i.space == Space.DRAM:
                traffic["dram write (activations)"] += i.count
    return dict(sorted(traffic.items()))


def _layers(program: Program, spans: tuple[Span, ...], cycles: int) -> tuple[LayerTime, ...]:
    """Return the layers with the share of the total that each one is charged: the progress of the latest end."""
    result, reached = [], 0
    for layer in program.layers:
        own = spans[layer.first:layer.end]
        start = round(min((s.start for s in own), default=reached))
        end = ceil(max((s.end for s in own), default=reached))
        critical, reached = max(0, end - reached), max(reached, end)
        result.append(LayerTime(layer, start, end, critical, _busiest(program, layer, spans),
                                layer.macs / (critical * program.target.mac.peak) if critical else 0.0))
    return tuple(result)


def _busiest(program: Program, layer: Layer, spans: tuple[Span, ...]) -> str:
    busy: Counter[Engine] = Counter()
    for index in range(layer.first, layer.end):
        busy[program.instructions[index].engine] += round(spans[index].end - spans[index].start)
    return busy.most_common(1)[0][0].label if busy else ""
