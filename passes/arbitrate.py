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
from heapq import heappop, heappush
from operator import gt

from nnac.hazards import Counts
from nnac.isa import Engine, Loop, Space
from nnac.targets import Target
from nnac.timing import OUTSIDE, Cost, by_engine


def arbitrate(
    engines: Sequence[Engine],
    tokens: Sequence[Counts],
    costs: Sequence[Cost],
    target: Target,
    loops: Sequence[Loop],
) -> list[Counts]:
    """Return the wait tokens of instructions and those that serialize every port outside the chip."""
    ports = [_ports(engine, cost, target) for engine, cost in zip(engines, costs, strict=True)]
    if any(ports[index] for loop in loops for index in range(loop.start, loop.start + loop.body)):
        order = [index for index, used in enumerate(ports) if used]
    else:
        order = _service_order(engines, tokens, ports, [cost.cycles for cost in costs])
    result, count, held = list(tokens), _counts(engines), dict[Space, int]()
    for index in order:
        for port in ports[index]:
            before = held.get(port, index)
            if engines[before] != engines[index]:
                result[index] = _with(result[index], engines[before], count[before])
            held[port] = index
    return result


def _ports(engine: Engine, cost: Cost, target: Target) -> Sequence[Space]:
    if engine == Engine.HOST:  # it has a bus of its own
        return ()
    spaces = [space for space in OUTSIDE if space in cost.moved]
    return [Space.DRAM] if spaces and target.memory_mode.shared_bus else spaces


def _counts(engines: Sequence[Engine]) -> list[int]:
    """Return each instruction's number in its engine's queue, from 1."""
    seen, counts = [0] * len(Engine), []
    for engine in engines:
        seen[engine] += 1
        counts.append(seen[engine])
    return counts


def _with(waits: Counts, engine: Engine, count: int) -> Counts:
    """Return wait tokens that wait for `count` instructions of `engine`, too."""
    return tuple(max(n, count) if e == engine else n for e, n in enumerate(waits))


def _service_order(
    engines: Sequence[Engine], tokens: Sequence[Counts], ports: Sequence[Sequence[Space]], cycles: Sequence[int]
) -> list[int]:
    """Return the transfers in the order in which their ports serve them."""
    waiting = [iter(queue) for queue in by_engine(engines)]
    heads = [next(queue, None) for queue in waiting]
    done, taken, ends = [0] * len(Engine), set[Space](), list[tuple[int, int]]()
    order, now = [], 0
    while True:
        for index in sorted([index for index in heads if index is not None]):
            if taken.isdisjoint(ports[index]) and not any(map(gt, tokens[index], done)):
                heads[engines[index]] = None  # its engine is busy
                taken.update(ports[index])
                order += [index] if ports[index] else []
                heappush(ends, (now + cycles[index], index))
        if not ends:
            return order
        now, index = heappop(ends)
        engine = engines[index]
        heads[engine] = next(waiting[engine], None)
        taken.difference_update(ports[index])
        done[engine] += 1
