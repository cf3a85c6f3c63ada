"""Bounds: cycles that no program of a plan undercuts, because the transfers on its ports outside alone take them.

A bound counts bytes in one piece and a latency per transfer, so it is never above what the timing model says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from math import inf

from nnac.errors import CapacityError
from nnac.isa import Space
from nnac.passes.constants import Cuts
from nnac.passes.tile import Homes, Work, descend, moved, settle, transfers
from nnac.plan import CHOICES, STRATEGIES, Tiling
from nnac.timing import OUTSIDE, transfer_cycles


class Bounds:
    """What transfers take at least on one machine."""

    def __init__(self, cuts: Cuts) -> None:
        self.cuts, self.machine = cuts, cuts.target
        self._constants = Space[self.machine.memory_mode.constants.upper()]
        self._fewest: int | None = None
        self._floors = dict[int, float]()

    def of_homes(self, homes: Homes) -> int:
        """Return cycles that no program with tensors in these homes undercuts, however it is cut."""
        return self._through(moved(homes))

    def of_tiling(self, homes: Homes, tiling: Tiling) -> int:
        """Return cycles that no program of a tiling undercuts; raises as `Cuts.cut`."""
        loaded, loads = self.cuts.loads(tiling)
        nbytes, counts = Counter({self._constants: loaded}), Counter({self._constants: loads})
        return self._through(moved(homes) + nbytes, transfers(tiling) + counts)

    def of_rung(self, size: int, work: Work, enough: float) -> float:
        """Return cycles that no program for a scratchpad of `size` undercuts, or some of them that are `enough`.

        Bytes only grow from rung to rung while the work is the same: what leaves the scratchpad stays outside.
        """
        floor = self._floors.get(id(work), 0)
        if floor < enough:
            floor = self._floor(size, work, enough)
        if floor < enough and self._fewest is None:  # packed constants take longer to know
            self._fewest = self._packed(work)
            floor = self._floor(size, work, enough)
        self._floors[id(work)] = floor
        if floor >= enough:
            return floor
        found, stripes = dict[object, Homes](), min(CHOICES["stripes"])
        for strategy in (replace(s, share=x, stripes=stripes) for s in STRATEGIES for x in CHOICES["share"]):
            with suppress(CapacityError):
                homes = settle(work, size, strategy)
                found[tuple(homes.homes.items())] = homes
        outside = [moved(homes) + self._loaded for homes in found.values()]
        counts = [transfers(homes.tiling(size)) for homes in found.values()]
        return min(map(self._through, outside, counts), default=0)

    def _floor(self, size: int, work: Work, enough: float) -> float:
        """Return what a rung costs whatever leaves the scratchpad; a smaller share of it makes more tensors leave."""
        return min(self._leaving(descend(work, size, strategy), enough) for strategy in STRATEGIES)

    def _leaving(self, descent: Iterator[Homes], enough: float) -> float:
        """Return what the last homes of a descent cost, or those on the way there as soon as it is enough."""
        cycles: float = inf
        try:
            for homes in descent:
                cycles = self._through(moved(homes) + self._loaded)
                if cycles >= enough:
                    break
        except CapacityError:
            return inf
        return cycles

    @property
    def _loaded(self) -> Counter[Space]:
        """The bytes of constants that every program loads at least, as far as they are known."""
        return Counter({self._constants: self._fewest or 0})

    def _packed(self, work: Work) -> int:
        """Return the bytes of all packed constants at least, however they are cut; they are the same in all works."""
        with suppress(CapacityError):
            return min(self.cuts.nbytes(work.tasks, parts) for parts in CHOICES["blocks"])
        return 0  # nothing fits then, at any speed

    def _through(self, nbytes: Mapping[Space, int], counts: Mapping[Space, int] | None = None) -> int:
        """Return the cycles of the port that takes longest, or of the shared bus, for bytes in so many transfers."""
        cycles = [0]
        for space in OUTSIDE:
            if nbytes[space]:
                memory = self.machine.memory[space.label]
                moving = transfer_cycles(memory, [(nbytes[space], nbytes[space])])
                cycles.append(moving + (max(1, counts[space]) - 1 if counts else 0) * memory.latency)
        return sum(cycles) if self.machine.memory_mode.shared_bus else max(cycles)
