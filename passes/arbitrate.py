"""Arbitrate: more wait tokens, so that transfers on one port outside the chip stand in a row.

Rules:

1. the order is found by running the program once at the target's own rates with each port (or the shared bus) as an
   exclusive resource: when it is free, the first instruction in program order that is ready gets it;
2. where a loop uses such a port, the order is that of the program: all rounds of a loop wait for the same;
3. a transfer then waits for the one before it on the same port, if that one runs on another engine and no token says so
   already.

The machine needs no arbiter then, and timing stays a longest path: nothing gets slower when a rate grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import heappop, heappush

from nnac.isa import AnyInstruction, Engine, Loop, Space
from nnac.targets import Target
from nnac.timing import OUTSIDE, cost, ports_of

Port = Space


def arbitrate(
    instructions: Sequence[AnyInstruction], target: Target, loops: Sequence[Loop] = ()
) -> tuple[AnyInstruction, ...]:
    """Return the instructions with tokens that serialize every port outside the chip."""
    ports = [_ports(i, target) for i in instructions]
    if any(ports[index] for loop in loops for index in range(loop.start, loop.start + loop.body)):
        order = [index for index, used in enumerate(ports) if used]
    else:
        order = _service_order(instructions, ports, [cost(i, target).cycles for i in instructions])
    result, count, held = list(instructions), _counts(instructions), dict[Port, int]()
    for index in order:
        for port in ports[index]:
            if port in held:
                _wait(result, index, held[port], count)
            held[port] = index
    return tuple(result)


def _ports(i: AnyInstruction, target: Target) -> frozenset[Port]:
    if i.engine == Engine.HOST:  # it has a bus of its own
        return frozenset()
    spaces = {space for space, _, _ in ports_of(i) if space in OUTSIDE}
    return frozenset({Space.DRAM} if spaces and target.memory_mode.shared_bus else spaces)


def _counts(instructions: Sequence[AnyInstruction]) -> list[int]:
    """Return each instruction's number in its engine's queue, from 1."""
    seen, counts = [0] * len(Engine), []
    for i in instructions:
        seen[i.engine] += 1
        counts.append(seen[i.engine])
    return counts


def _wait(result: list[AnyInstruction], index: int, before: int, count: list[int]) -> None:
    engine, waits = result[before].engine, list(result[index].waits)
    if engine != result[index].engine and waits[engine] < count[before]:
        waits[engine] = count[before]
        result[index] = replace(result[index], waits=tuple(waits))


def _service_order(
    instructions: Sequence[AnyInstruction], ports: Sequence[frozenset[Port]], cycles: Sequence[int]
) -> list[int]:
    """Return the transfers in the order in which their ports serve them."""
    queues: dict[Engine, list[int]] = {engine: [] for engine in Engine}
    for index in reversed(range(len(instructions))):
        queues[instructions[index].engine].append(index)
    done, busy, taken = [0] * len(Engine), set[Engine](), set[Port]()
    ends: list[tuple[int, int]] = []
    order, now = [], 0
    while True:
        heads = sorted(q[-1] for e, q in queues.items() if q and e not in busy)
        for index in heads:
            i = instructions[index]
            if ports[index] & taken or any(done[e] < n for e, n in enumerate(i.waits)):
                continue
            queues[i.engine].pop()
            busy.add(i.engine)
            taken |= ports[index]
            order += [index] if ports[index] else []
            heappush(ends, (now + cycles[index], index))
        if not ends:
            return order
        now, index = heappop(ends)
        busy.discard(instructions[index].engine)
        taken -= ports[index]
        done[instructions[index].engine] += 1
