"""The search for the fastest program: plans ranked by the timing model, so that more scratchpad costs no time.

The search goes down a ladder of scratchpad sizes, the same for all machines that differ in the scratchpad only: from
one with room for everything over the eighths between powers of two, no larger than the machine's own, to what the net
needs at least. What it tries on a rung does not depend on the machine's own size, so a larger scratchpad chooses
among the plans of a smaller one and more. A rung is skipped when all its plans move more bytes through a port than
the fastest program so far has cycles for. Nets with many instructions end the search before the lowest rung
(`FURTHER`): for them a program of a larger scratchpad is as a rule, but not always, the faster one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf

from nnac import stages
from nnac.bounds import Bounds
from nnac.errors import CapacityError, ProgramError
from nnac.graph import Graph
from nnac.isa import Space
from nnac.passes.constants import Cuts
from nnac.passes.emit import Draft
from nnac.passes.legalize import legalize, slices
from nnac.passes.order import order
from nnac.passes.place import place
from nnac.passes.tile import Homes, Work, settle, survey
from nnac.plan import CHOICES, STRATEGIES, Plan, Strategy, Tiling
from nnac.program import KnownAnswer, Program
from nnac.targets import Target
from nnac.timing import Costs

STEPS = 8
"""Rungs from a power of two to the next."""
EVERYTHING = 1 << 40
"""Bytes of the highest rung."""
NEARLY = 1.01
"""How much slower a change may make a program, compared with the fastest of its kind, and the next one be tried."""
ATTEMPTS = 24
"""Budgets that stripes are cut for when fragmentation defeats a tiling."""
PATIENCE = 15_000
"""Instructions after which the search is content with what it has, as many packed weights as take so long included."""
PACKED = 4_000
"""Weights whose packing takes about as long as an instruction."""
FURTHER = 5_000
"""Instructions after which it goes down no further rung."""

_Works = dict[tuple[tuple[str, int], ...], tuple[Work, int]]
"""Works, and the least bytes of scratchpad that each needs, by the slices of their pools."""


def best_program(
    graph: Graph,
    machine: Target,
    note: str,
    answer: KnownAnswer,
    sqnr: Mapping[str, float] | None = None,
    quick: bool = False,
) -> Program:
    """Return the fastest program of an integer graph by the timing model, of those that the strategies give.

    Args:
        graph, machine: what runs on what.
        note, answer, sqnr: for the record.
        quick: return the first one that fits.

    Raises:
        CapacityError: none fits (the first reason).
    """
    search, whole, works = _Search(machine, graph, 0 if quick else PATIENCE), 0, _Works()
    for size, work in _rungs(graph, machine, works):
        if search.best is None:
            _climb(search, size, work)
            whole = search.best.used[Space.SRAM] if search.best and size == EVERYTHING else size
        elif search.emitted > FURTHER or search.content:
            break
        elif size < whole and search.bounds.of_rung(size, work, search.cycles) < search.cycles:
            _climb(search, size, work)
    for work, _ in works.values():
        work.descents.clear()  # which refer to their work: memory comes free at once
    if search.best is None:
        raise search.reasons[0]
    return search.best.program(note, answer, sqnr or {})


def _rungs(graph: Graph, machine: Target, works: _Works) -> Iterator[tuple[int, Work]]:
    """Yield (bytes of scratchpad, the work as it is legal in so many), the largest first."""
    size = machine.memory["sram"].bytes
    for rung in (EVERYTHING, *_ladder(size)):
        sliced = tuple(slices(graph, machine, rung).items())
        if sliced not in works:
            first = next(iter(works.values()), (None, 0))[0]
            work = survey(order(legalize(graph, machine, rung)), machine, like=first)
            works[sliced] = work, work.least
        work, least = works[sliced]
        if least > rung:
            yield min(least, size), work
            return
        if rung < EVERYTHING or work.most <= size:
            yield rung, work


def _ladder(size: int) -> Iterator[int]:
    """Yield the rungs up to `size`, descending."""
    for exponent in range(size.bit_length(), -1, -1):
        for step in reversed(range(STEPS)):
            rung = (STEPS + step << exponent) // STEPS
            if rung <= size:
                yield rung


def _climb(search: _Search, size: int, work: Work) -> None:
    """Try what the strategies give for a scratchpad of `size`, then change one choice after the other.

    Strategies begin with coarse cuts, which take few instructions; a choice changes as long as that is hardly slower.
    Only what happens here decides which plans are tried: not what other rungs have found, so that each machine that
    comes to a rung finds the same there.
    """
    stages.check(work.graph, stages.INTEGER, known=search.graph)
    cycles: dict[Strategy, float] = {}
    inside = inf if any(storage.constant for storage in work.storages.values()) else work.most

    def time(strategy: Strategy) -> float:
        if inside <= int(size * strategy.share):  # nothing is staged
            strategy = Strategy(blocks=strategy.blocks)
        if strategy not in cycles:
            cycles[strategy] = search.time(size, work, strategy, min(cycles.values(), default=inf))
        return cycles[strategy]

    def fastest(count: int) -> list[Strategy]:
        return sorted((s for s in cycles if cycles[s] < inf), key=lambda s: cycles[s])[:count]

    def vary(strategy: Strategy, choice: str, nearly: float = NEARLY) -> None:
        """Go through the values below a strategy's own, and if that is no faster, above."""
        values, before = CHOICES[choice], time(strategy)
        own, best = values.index(getattr(strategy, choice)), before
        for side in (values[:own][::-1], values[own + 1 :]):
            for value in side if best == before else ():
                found = time(replace(strategy, **{choice: value}))
                if found > nearly * best:
                    break
                best = min(best, found)

    for strategy in sorted(STRATEGIES, key=lambda s: search.least(size, work, s)):
        time(strategy)
    for count, choice in ((2, "stripes"), (1, "blocks")):
        for strategy in fastest(count):
            vary(strategy, choice)
    for best, kind in product(fastest(1), STRATEGIES):
        vary(replace(kind, stripes=best.stripes, blocks=best.blocks), "share")
    for choice in ("stripes", "blocks"):
        for strategy in fastest(1):
            vary(strategy, choice, 1)


@dataclass(slots=True)
class _Search:
    """The fastest program so far, and what is remembered from plan to plan.

    Attributes:
        graph: all that there is to do; legal.
        patience: instructions after which it is content with what it has.
        cuts: how constants are cut and packed.
        costs: of instructions.
        bounds: what transfers alone take.
        reasons: why plans did not fit.
        emitted: instructions.
        known: cycles of tilings.
        places: their plans.
    """

    machine: Target
    graph: Graph
    patience: int = PATIENCE
    cuts: Cuts = field(init=False)
    costs: Costs = field(init=False)
    bounds: Bounds = field(init=False)
    best: Draft | None = None
    cycles: float = inf
    reasons: list[CapacityError | ProgramError] = field(default_factory=list)
    emitted: int = 0
    known: dict[object, float] = field(default_factory=dict)
    places: dict[object, Plan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cuts, self.costs = Cuts(self.machine), Costs(self.machine)
        self.bounds = Bounds(self.cuts)

    @property
    def content(self) -> bool:
        """Whether it has something, and has taken so long that this will do."""
        return self.best is not None and self.emitted + self.cuts.packed // PACKED > self.patience

    def least(self, size: int, work: Work, strategy: Strategy) -> float:
        """Return cycles that no program of a strategy for a scratchpad of `size` undercuts, however it is cut."""
        try:
            return self.bounds.of_homes(settle(work, size, strategy))
        except CapacityError:
            return inf

    def time(self, size: int, work: Work, strategy: Strategy, enough: float) -> float:
        """Return the cycles of a strategy's program for a scratchpad of `size`.

        Inf where none fits, where its transfers alone take `enough`, and where its stripes are so many that no loader
        would follow their order (`hazards`).
        """
        if self.content:
            return inf
        try:
            homes, room = settle(work, size, strategy), min(size, self.machine.memory["sram"].bytes)
            if enough <= self.bounds.of_homes(homes):
                return inf
            tiling = homes.tiling(room)
            if enough <= self.bounds.of_tiling(homes, tiling):
                return inf
            plan = self._placed(homes, tiling, room)
            key = plan.tiling.key, self.cuts.key(tiling)
            if key not in self.known:
                self.known[key] = self._timed(plan)
            return self.known[key]
        except (CapacityError, ProgramError) as error:
            self.reasons.append(error.with_traceback(None))  # whose frames hold all of this
            return inf

    def _placed(self, homes: Homes, tiling: Tiling, room: int) -> Plan:
        """Return a plan that fits: where fragmentation defeats a tiling, the next one gets a smaller budget."""
        budget = room
        for _ in range(ATTEMPTS):
            plan = self._place(tiling)
            excess = plan.used[Space.SRAM] - room
            if excess <= 0:
                return plan
            budget -= max(excess // 2, room // 64)
            tiling = homes.tiling(budget)
        advice = "use a machine with a larger memory.sram"
        raise CapacityError("scratchpad after placement", excess + room, room, advice=advice)

    def _place(self, tiling: Tiling) -> Plan:
        key = tiling.key
        if key not in self.places:
            self.places[key] = place(tiling)
        return replace(self.places[key], tiling=tiling)

    def _timed(self, plan: Plan) -> float:
        draft = Draft(plan, self.cuts, self.costs)
        self.emitted += len(draft.instructions)
        if draft.cycles < self.cycles:
            self.best, self.cycles = draft, draft.cycles
        return draft.cycles
