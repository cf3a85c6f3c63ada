"""Bounds: cycles that no program of a plan undercuts, because the transfers on its ports outside alone take them.

A bound counts bytes in one piece and a latency per transfer, so it is never above what the timing model says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from nnac.errors import CapacityError
from nnac.isa import Space
from nnac.passes.constants import Cuts
from nnac.passes.tile import Homes, Work, moved, settle, transfers
from nnac.plan import CHOICES, STRATEGIES, Tiling
from nnac.timing import OUTSIDE, transfer_cycles


class Bounds:
    """What transfers take at least on one machine."""

    def __init__(self, cuts: Cuts) -> None:
        self.cuts, self.machine = cuts, cuts.target
        self._constants = Space[self.machine.memory_mode.constants.upper()]
        self._fewest = dict[int, int]()
        self._floors = dict[int, int]()

    def of_homes(self, homes: Homes) -> int:
        """Return cycles that no program with tensors in these homes undercuts, however it is cut."""
        return self._through(moved(homes))

    def of_tiling(self, homes: Homes, tiling: Tiling) -> int:
        """Return cycles that no program of a tiling undercuts; raises as `Cuts.cut`."""
        loaded, loads = self.cuts.loads(tiling)
        nbytes, counts = Counter({self._constants: loaded}), Counter({self._constants: loads})
        return self._through(moved(homes) + nbytes, transfers(tiling) + counts)

    def of_rung(self, size: int, work: Work, enough: float) -> int:
        """Return cycles that no program for a scratchpad of `size` undercuts, or some of them that are `enough`.

        Bytes only grow from rung to rung while the work is the same: what leaves the scratchpad stays outside.
        """
        if self._floors.get(id(work), 0) >= enough:
            return self._floors[id(work)]
        found, stripes = dict[object, Homes](), min(CHOICES["stripes"])
        for strategy in (replace(s, share=x, stripes=stripes) for s in STRATEGIES for x in CHOICES["share"]):
            with suppress(CapacityError):
                homes = settle(work, size, strategy)
                found[tuple(homes.homes.items())] = homes
        outside = [moved(homes) for homes in found.values()]
        least = min(map(self._through, outside), default=0)
        if least < enough:  # packed constants take longer to know, and stripes, too
            outside = [nbytes + self._loaded(work) for nbytes in outside]
            least = min(map(self._through, outside), default=0)
        self._floors[id(work)] = least
        if least < enough:
            counts = [transfers(homes.tiling(size)) for homes in found.values()]
            least = min(map(self._through, outside, counts), default=0)
        return least

    def _loaded(self, work: Work) -> Counter[Space]:
        """Return the bytes of constants that every program loads at least, however they are cut."""
        if id(work) not in self._fewest:
            self._fewest[id(work)] = 0
            with suppress(CapacityError):  # nothing fits then, at any speed
                self._fewest[id(work)] = min(self.cuts.nbytes(work.tasks, parts) for parts in CHOICES["blocks"])
        return Counter({self._constants: self._fewest[id(work)]})

    def _through(self, nbytes: Mapping[Space, int], counts: Mapping[Space, int] | None = None) -> int:
        """Return the cycles of the port that takes longest, or of the shared bus, for bytes in so many transfers."""
        cycles = [0]
        for space in OUTSIDE:
            if nbytes[space]:
                memory = self.machine.memory[space.label]
                moving = transfer_cycles(memory, [(nbytes[space], nbytes[space])])
                cycles.append(moving + (max(1, counts[space]) - 1 if counts else 0) * memory.latency)
        return sum(cycles) if self.machine.memory_mode.shared_bus else max(cycles)
