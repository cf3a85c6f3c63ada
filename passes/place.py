"""Place: addresses for every tensor and staging buffer.

Rules:

1. a tensor occupies its bytes from its first to its last task, a staging buffer during its task;
2. the largest goes first, to the lowest address where nothing that lives at the same time is in the way;
3. constant operands lie at the start of the constants memory; where spills share that memory, they lie behind all
   constants;
4. inputs are placed like any other tensor: the host writes them where the plan says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nnac.isa import Space
from nnac.ops.base import aligned
from nnac.plan import Plan, Storage, Tiling


@dataclass(frozen=True, slots=True)
class _Item:
    """Something that needs bytes during tasks [first, last]."""

    key: tuple[object, ...]
    nbytes: int
    first: int
    last: int


def place(tiling: Tiling) -> Plan:
    """Return the plan; `Plan.used[SRAM]` may exceed the scratchpad when fragmentation defeats the tiling."""
    live = list(tiling.storages.values())
    scratch = [_Item(("tensor", s.name), aligned(s.nbytes), s.first, s.last) for s in live
               if tiling.homes[s.name] == Space.SRAM]
    scratch += _staging_items(tiling)
    at, top = allocate(scratch)
    addresses = {str(key[1]): address for key, address in at.items() if key[0] == "tensor"}
    constants, constant_top = _constants(live)
    spills, spill_top = allocate([_Item(("tensor", s.name), aligned(s.nbytes), s.first, s.last) for s in live
                                  if not s.constant and tiling.homes[s.name] != Space.SRAM])
    addresses |= constants | {str(key[1]): address for key, address in spills.items()}
    staging = tuple(
        tuple(tuple(at["stage", t, i, c] for c in range(copies)) for i, copies in enumerate(task.copies))
        for t, task in enumerate(tiling.tasks)
    )
    used = {Space.SRAM: top, Space.DRAM: spill_top}
    return Plan(tiling, addresses, staging, used, constant_top)


def _staging_items(tiling: Tiling) -> list[_Item]:
    return [
        _Item(("stage", t, i, c), task.buffers[i], t, t)
        for t, task in enumerate(tiling.tasks) for i, copies in enumerate(task.copies) for c in range(copies)
    ]


def _constants(storages: list[Storage]) -> tuple[dict[str, int], int]:
    addresses, top = {}, 0
    for storage in storages:
        if storage.constant:
            addresses[storage.name], top = top, top + aligned(storage.nbytes)
    return addresses, top


def allocate(items: list[_Item]) -> tuple[Mapping[tuple[object, ...], int], int]:
    """Return an address per item key and the highest end: largest first, lowest gap that is free all its life."""
    placed: list[tuple[_Item, int]] = []
    for item in sorted(items, key=lambda i: (-i.nbytes, i.first, str(i.key))):
        rivals = sorted((start, start + other.nbytes) for other, start in placed
                        if other.first <= item.last and item.first <= other.last)
        address = 0
        for start, end in rivals:
            if address + item.nbytes <= start:
                break
            address = max(address, end)
        placed.append((item, address))
    top = max((start + item.nbytes for item, start in placed), default=0)
    return {item.key: start for item, start in placed}, top
