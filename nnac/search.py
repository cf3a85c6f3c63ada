"""The search for the fastest program: planner strategies ranked by the timing model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from nnac.errors import CapacityError
from nnac.graph import Graph
from nnac.isa import Space
from nnac.passes.emit import Packings, emit
from nnac.passes.place import place
from nnac.passes.tile import tile
from nnac.plan import BLOCKS, SHARES, STRATEGIES, STRIPES, Plan, Strategy
from nnac.program import KnownAnswer, Program
from nnac.targets import Target
from nnac.timing import latency

ATTEMPTS = 24
"""Budgets that a strategy tries when fragmentation defeats its tiling."""
PATIENCE = 45_000
"""Instructions that the search emits before it is content with what it has."""


def best_program(
    graph: Graph, machine: Target, note: str, answer: KnownAnswer, sqnr: Mapping[str, float] | None = None
) -> Program:
    """Return the fastest program by the timing model, of those that the strategies give.

    Raises:
        CapacityError: no strategy fits (the first one's reason).
    """
    programs: dict[Strategy, Program] = {}
    cycles: dict[Strategy, int] = {}
    packings: Packings = {}
    plans: list[tuple[Plan, Strategy]] = []

    def attempt(strategy: Strategy) -> Plan | CapacityError:
        found = _attempt(graph, machine, strategy)
        if isinstance(found, Plan):
            key = _essence(found)
            known = next((other for seen, other in plans if seen == key), None)
            if known is None:
                plans.append((key, strategy))
                programs[strategy] = emit(found, note, answer, packings, sqnr)
                cycles[strategy] = latency(programs[strategy])
            else:
                programs[strategy], cycles[strategy] = programs[known], cycles[known]
        return found

    def patient() -> bool:
        return sum(len(program.instructions) for program in programs.values()) < PATIENCE

    def fastest(count: int) -> list[Strategy]:
        return sorted(cycles, key=lambda s: cycles[s])[:count]

    def try_all(strategies: Iterable[Strategy]) -> None:
        for strategy in strategies:
            if strategy not in programs and patient():
                attempt(strategy)

    first = attempt(STRATEGIES[0])
    spills = isinstance(first, CapacityError) or first.tiling.spills
    if spills:
        for strategy in STRATEGIES[1:]:
            attempt(strategy)
        try_all([replace(s, stripes=n) for s in fastest(2) for n in STRIPES])
    if not programs:
        assert isinstance(first, CapacityError)
        raise first
    try_all([replace(s, blocks=n) for s in fastest(1) for n in BLOCKS])
    if spills:
        less = [replace(s, share=x) for s in (*fastest(2), *STRATEGIES) for x in SHARES]
        try_all(less)
        try_all([replace(s, share=1.0, used=s.share) for s in less])
        try_all([replace(s, stripes=n) for s in fastest(1) for n in STRIPES])
        try_all([replace(s, blocks=n) for s in fastest(1) for n in BLOCKS])
    return programs[fastest(1)[0]]


def _essence(found: Plan) -> Plan:
    """Return a plan without what emission does not read of its strategy: many strategies make the same plan."""
    return replace(found, tiling=replace(found.tiling, strategy=Strategy(blocks=found.tiling.strategy.blocks)))


def _attempt(graph: Graph, machine: Target, strategy: Strategy) -> Plan | CapacityError:
    try:
        return plan(graph, machine, strategy)
    except CapacityError as error:
        return error


def plan(graph: Graph, machine: Target, strategy: Strategy) -> Plan:
    """Return a plan that fits: where fragmentation defeats a tiling, the next one gets a smaller budget."""
    size = machine.memory["sram"].bytes
    budget = int(size * strategy.used)
    for _ in range(ATTEMPTS):
        candidate = place(tile(graph, machine, budget, strategy))
        excess = candidate.used[Space.SRAM] - size
        if excess <= 0:
            return candidate
        budget -= max(excess // 2, size // 64)
    raise CapacityError(
        "scratchpad after placement", candidate.used[Space.SRAM], size, advice="use a machine with a larger memory.sram"
    )
