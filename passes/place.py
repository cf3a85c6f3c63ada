"""Place: addresses for every tensor and staging buffer.

Rules:

1. a tensor occupies its bytes from its first to its last task (or cascade of tasks), a staging buffer during its own;
2. one after the other they go to the lowest address where nothing that lives at the same time is in the way: the
   largest first, then by other orders, then by random changes of the best order so far, which bring forward something
   that lies at the top; the search ends at the lower bound, the largest sum of bytes that live at one time;
3. constant operands lie at the start of the constants memory; where spills share that memory, they lie behind all
   constants;
4. inputs are placed like any other tensor: the host writes them where the plan says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nnac.isa import Space
from nnac.plan import Plan, Storage, Tiling
from nnac.types import aligned

SEARCH = 400
"""Most random changes that the search tries."""
WORK = 4_000_000
"""Bounds the search of large programs: about this many comparisons."""


@dataclass(frozen=True, slots=True)
class _Item:
    """Something that needs bytes during groups of tasks [first, last]."""

    key: tuple[object, ...]
    nbytes: int
    first: int
    last: int


def place(tiling: Tiling) -> Plan:
    """Return the plan; `Plan.used[SRAM]` may exceed the scratchpad when fragmentation defeats the tiling."""
    inside = _tensors(tiling, lambda space: space == Space.SRAM) + _staging(tiling)
    outside = _tensors(tiling, lambda space: space not in (None, Space.SRAM))
    at, top = allocate(inside)
    spills, spill_top = allocate(outside)
    addresses, constant_top = _constants(list(tiling.storages.values()))
    addresses |= {str(key[1]): address for key, address in (at | spills).items() if key[0] == "tensor"}
    staging = tuple(
        tuple(tuple(at["stage", t, i, c] for c in range(copies)) for i, copies in enumerate(task.copies))
        for t, task in enumerate(tiling.tasks)
    )
    used = {Space.SRAM: top, Space.DRAM: spill_top}
    return Plan(tiling, addresses, staging, used, constant_top, lower_bound(inside))


def _tensors(tiling: Tiling, where: Callable[[Space | None], bool]) -> list[_Item]:
    alive = tiling.lifetimes()
    return [
        _Item(("tensor", s.name), aligned(s.nbytes), *alive[s.name])
        for s in tiling.storages.values()
        if not s.constant and where(tiling.homes.get(s.name))
    ]


def _staging(tiling: Tiling) -> list[_Item]:
    return [
        _Item(("stage", t, i, c), tiling.tasks[t].buffers[i], g, g)
        for g, group in enumerate(tiling.groups)
        for t in group
        for i, copies in enumerate(tiling.tasks[t].copies)
        for c in range(copies)
    ]


def _constants(storages: list[Storage]) -> tuple[dict[str, int], int]:
    addresses, top = {}, 0
    for storage in storages:
        if storage.constant:
            addresses[storage.name], top = top, top + aligned(storage.nbytes)
    return addresses, top


def allocate(items: list[_Item]) -> tuple[dict[tuple[object, ...], int], int]:
    """Return an address per item key, and the highest end that the search could reach."""
    rivals = [
        [j for j, b in enumerate(items) if i != j and a.first <= b.last and b.first <= a.last]
        for i, a in enumerate(items)
    ]
    bound = lower_bound(items)
    orders = [
        sorted(range(len(items)), key=key)
        for key in (
            lambda i: (-items[i].nbytes, items[i].first, i),
            lambda i: (items[i].first, -items[i].nbytes, i),
            lambda i: (items[i].first - items[i].last, -items[i].nbytes, i),
            lambda i: (-items[i].nbytes * (items[i].last - items[i].first + 1), i),
        )
    ]
    top, at, order = min((_fill(items, rivals, o) for o in orders), key=lambda found: found[0])
    rng, tries = np.random.default_rng(0), min(SEARCH, WORK // max(1, len(items)) ** 2)
    for _ in range(tries):
        if top <= bound:
            break
        candidate = _fill(items, rivals, _changed(items, rivals, at, top, order, rng))
        if candidate[0] <= top:
            top, at, order = candidate
    return {item.key: start for item, start in zip(items, at, strict=True)}, top


def lower_bound(items: list[_Item]) -> int:
    """Return the largest sum of bytes alive at one time: no placement needs less."""
    times = {item.first for item in items}
    return max((sum(i.nbytes for i in items if i.first <= t <= i.last) for t in times), default=0)


def _fill(items: list[_Item], rivals: list[list[int]], order: list[int]) -> tuple[int, list[int], list[int]]:
    """Return (top, addresses, order) of placing the items in `order`, each in its lowest free gap."""
    at, top = [-1] * len(items), 0
    for i in order:
        address = 0
        for start, end in sorted((at[j], at[j] + items[j].nbytes) for j in rivals[i] if at[j] >= 0):
            if address + items[i].nbytes <= start:
                break
            address = max(address, end)
        at[i], top = address, max(top, address + items[i].nbytes)
    return top, at, order


def _changed(
    items: list[_Item], rivals: list[list[int]], at: list[int], top: int, order: list[int], rng: np.random.Generator
) -> list[int]:
    """Return the order with an item at the top, or a rival of it, moved forward to a random place."""
    high = [i for i in range(len(items)) if at[i] + items[i].nbytes == top]
    pick = high[int(rng.integers(len(high)))]
    if rivals[pick] and rng.random() < 0.5:
        pick = rivals[pick][int(rng.integers(len(rivals[pick])))]
    place = order.index(pick)
    rest = order[:place] + order[place + 1 :]
    goal = int(rng.integers(place + 1))
    return [*rest[:goal], pick, *rest[goal:]]
