"""The search for the fastest program: plans ranked by the timing model, so that more scratchpad costs no time.

The search goes down a ladder of scratchpad sizes, the same for all machines that differ in the scratchpad only: from
one with room for everything over the eighths between powers of two, no larger than the machine's own, to what the net
needs at least. What it tries on a rung does not depend on the machine's own size, so a larger scratchpad chooses
among the plans of a smaller one and more. A rung is skipped when all its plans move more bytes through a port than
the fastest program so far has cycles for. Nets with many instructions end the search before the lowest rung
(`FURTHER`): for them a program of a larger scratchpad is as a rule, but not always, the faster one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf

from nnac import isa, stages
from nnac.errors import CapacityError, ProgramError
from nnac.graph import Graph
from nnac.isa import Space
from nnac.passes.constants import Cuts
from nnac.passes.emit import Draft
from nnac.passes.legalize import legalize
from nnac.passes.order import order
from nnac.passes.place import place
from nnac.passes.tile import Homes, Work, moved, settle, survey, transfers
from nnac.plan import BLOCKS, SHARES, STRATEGIES, STRIPES, Plan, Strategy, Tiling
from nnac.program import KnownAnswer, Program
from nnac.targets import Target
from nnac.timing import OUTSIDE, transfer_cycles

STEPS = 8
"""Rungs from a power of two to the next."""
EVERYTHING = 1 << 40
"""Bytes of the highest rung."""
ATTEMPTS = 24
"""Budgets that stripes are cut for when fragmentation defeats a tiling."""
PATIENCE = 45_000
"""Instructions after which the search is content with what it has."""
FURTHER = 20_000
"""Instructions after which it goes down no further rung."""


def best_program(
    graph: Graph, machine: Target, note: str, answer: KnownAnswer, sqnr: Mapping[str, float] | None = None
) -> Program:
    """Return the fastest program of an integer graph by the timing model, of those that the strategies give.

    Raises:
        CapacityError: none fits (the first reason).
    """
    search, whole = _Search(machine, Cuts(machine)), 0
    for size, work in _rungs(graph, machine):
        if search.best is None:
            _climb(search, size, work)
            whole = search.best.used[Space.SRAM] if search.best and size == EVERYTHING else size
        elif search.emitted > FURTHER:
            break
        elif size < whole and search.bound(size, work) < search.cycles:
            _climb(search, size, work)
    if search.best is None:
        raise search.reasons[0]
    return search.best.program(note, answer, sqnr or {})


def _rungs(graph: Graph, machine: Target) -> Iterator[tuple[int, Work]]:
    """Yield (bytes of scratchpad, the work as it is legal in so many), the largest first."""
    size, works = machine.memory["sram"].bytes, dict[tuple[str, ...], Work]()
    for rung in (EVERYTHING, *_ladder(size)):
        legal = legalize(graph, machine, rung)
        names = tuple(node.name for node in legal.nodes)
        if names not in works:
            works[names] = survey(stages.check(order(legal), stages.INTEGER), machine)
        least, most = works[names].least, works[names].most
        if least > rung:
            yield min(least, size), works[names]
            return
        if rung < EVERYTHING or most <= size:
            yield rung, works[names]


def _ladder(size: int) -> Iterator[int]:
    """Yield the rungs up to `size`, descending."""
    for exponent in range(size.bit_length(), -1, -1):
        for step in reversed(range(STEPS)):
            rung = (STEPS + step << exponent) // STEPS
            if rung <= size:
                yield rung


def _climb(search: _Search, size: int, work: Work) -> None:
    """Try what the strategies give for a scratchpad of `size`: variations of the fastest ones."""
    cycles: dict[Strategy, float] = {}

    def fastest(count: int) -> list[Strategy]:
        return sorted((s for s in cycles if cycles[s] < inf), key=lambda s: cycles[s])[:count]

    def attempt(strategies: Iterable[Strategy]) -> None:
        for strategy in strategies:
            if strategy not in cycles and search.patient():
                cycles[strategy] = search.time(size, work, strategy)

    attempt(STRATEGIES)
    attempt([replace(s, stripes=n) for s in fastest(2) for n in STRIPES])
    attempt([replace(s, blocks=n) for s in fastest(1) for n in BLOCKS])
    attempt([replace(s, share=x) for s in (*fastest(2), *STRATEGIES) for x in SHARES])
    attempt([replace(s, stripes=n) for s in fastest(1) for n in STRIPES])
    attempt([replace(s, blocks=n) for s in fastest(1) for n in BLOCKS])


@dataclass(slots=True)
class _Search:
    """The fastest program so far, and what is remembered from plan to plan.

    Attributes:
        reasons: why plans did not fit.
        emitted: instructions.
        known: cycles of tilings.
        places: their plans.
        cuts: how constants are cut and packed.
        loaded: per way of cutting, the bytes of constants that every program loads at least.
    """

    machine: Target
    cuts: Cuts
    best: Draft | None = None
    cycles: float = inf
    reasons: list[CapacityError | ProgramError] = field(default_factory=list)
    emitted: int = 0
    known: dict[object, float] = field(default_factory=dict)
    places: dict[object, Plan] = field(default_factory=dict)
    loaded: dict[int, Mapping[Space, int]] = field(default_factory=dict)

    def patient(self) -> bool:
        """Tell whether the search goes on."""
        return self.emitted < PATIENCE

    def bound(self, size: int, work: Work) -> int:
        """Return cycles that no program for a scratchpad of `size` undercuts: what its transfers take."""
        found = dict[object, Homes]()
        for strategy in (replace(s, share=x, stripes=min(STRIPES)) for s in STRATEGIES for x in (1.0, *SHARES)):
            with suppress(CapacityError):
                homes = settle(work, size, strategy)
                found[tuple(homes.homes.items())] = homes
        least = min((self._transfers(moved(homes), {}) for homes in found.values()), default=0)
        if least >= self.cycles:  # that says enough, without stripes
            return least
        counted = ((moved(homes), transfers(homes.tiling(size))) for homes in found.values())
        return min((self._transfers(*each) for each in counted), default=0)

    def _transfers(self, staged: Mapping[Space, int], counts: Mapping[Space, int]) -> int:
        """Return the cycles of the port that takes longest, or of the shared bus, with the fewest constants."""
        ways = [self.loaded.get(blocks, {}) for blocks in {Strategy().blocks, *BLOCKS}]
        return min(self._through(Counter(staged) + Counter(loaded), counts) for loaded in ways)

    def _through(self, nbytes: Mapping[Space, int], counts: Mapping[Space, int]) -> int:
        cycles = [0]
        for space in OUTSIDE:
            if nbytes[space]:
                memory = self.machine.memory[space.label]
                moving = transfer_cycles(memory, [(nbytes[space], nbytes[space])])
                cycles.append(moving + (counts.get(space, 1) - 1) * memory.latency)
        return sum(cycles) if self.machine.memory_mode.shared_bus else max(cycles)

    def time(self, size: int, work: Work, strategy: Strategy) -> float:
        """Return the cycles of a strategy's program for a scratchpad of `size`, inf if it does not fit.

        Stripes may be so many that no loader would follow their order (`hazards`): no program either.
        """
        try:
            plan = self._placed(settle(work, size, strategy), size)
            key = plan.tiling.key, strategy.blocks
            if key not in self.known:
                self.known[key] = self._timed(plan)
            return self.known[key]
        except (CapacityError, ProgramError) as error:
            self.reasons.append(error)
            return inf

    def _placed(self, homes: Homes, size: int) -> Plan:
        """Return a plan that fits: where fragmentation defeats a tiling, the next one gets a smaller budget."""
        budget = limit = min(size, self.machine.memory["sram"].bytes)
        for _ in range(ATTEMPTS):
            plan = self._place(homes.tiling(budget))
            excess = plan.used[Space.SRAM] - limit
            if excess <= 0:
                return plan
            budget -= max(excess // 2, limit // 64)
        advice = "use a machine with a larger memory.sram"
        raise CapacityError("scratchpad after placement", excess + limit, limit, advice=advice)

    def _place(self, tiling: Tiling) -> Plan:
        key = tiling.key
        if key not in self.places:
            self.places[key] = place(tiling)
        return replace(self.places[key], tiling=tiling)

    def _timed(self, plan: Plan) -> float:
        draft = Draft(plan, self.cuts)
        self.emitted += len(draft.instructions)
        self.loaded.setdefault(plan.tiling.strategy.blocks, _loaded(draft))
        if draft.cycles < self.cycles:
            self.best, self.cycles = draft, draft.cycles
        return draft.cycles


def _loaded(draft: Draft) -> dict[Space, int]:
    """Return the bytes of a program's constants that come through the weight buffer, each once, by memory."""
    loads = {(i.space, i.source, i.source_bytes, i.table_bytes) for i in draft.instructions if isinstance(i, isa.Load)}
    return {space: sum(nbytes for s, _, nbytes, _ in loads if s == space) for space in OUTSIDE}
