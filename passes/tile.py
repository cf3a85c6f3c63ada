"""Tile: which tensors live in the scratchpad, and in which stripes an operator works on those that do not.

Rules:

1. every activation starts in the scratchpad, alive from its writer to its last reader; a reshape shares the bytes;
2. while a task needs more than there is, a tensor alive there moves to the spill memory (which one, the strategy says);
   a task that touches such a tensor stages it in stripes of rows through two buffers in turn, so that transfer and work
   overlap;
3. a stripe is as high as the free room and the strategy allow; operands that broadcast, and moves (which copy from home
   to home), are never cut;
4. where a layer's constants exceed the weight buffer and its tensors are staged, either the constants are loaded again
   per stripe or the operands per block of constants: what moves fewer bytes;
5. constants that an operator reads like an activation are staged from the constants memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from nnac.errors import CapacityError
from nnac.graph import Graph
from nnac.isa import Space
from nnac.ops import Move, Reshape
from nnac.ops.base import aligned, bind
from nnac.plan import BLOCKS, Storage, Strategy, Task, Tiling
from nnac.targets import Target

def tile(graph: Graph, target: Target, budget: int, strategy: Strategy | None = None) -> Tiling:
    """Return the tiling of an integer graph into `budget` bytes of scratchpad.

    Raises:
        CapacityError: a task does not fit even with everything else spilled and single-row stripes.
    """
    strategy = strategy or Strategy()
    root = _roots(graph)
    tasks = _tasks(graph, target, root)
    storages = _storages(graph, tasks, root)
    homes = _homes(tasks, storages, target, budget, strategy)
    free = _free(tasks, storages, homes, budget)
    tasks = tuple(_stripe(task, homes, storages, room, strategy) for task, room in zip(tasks, free, strict=True))
    tasks = tuple(replace(task, blocks_outer=_blocks_outer(task, homes, storages, target)) for task in tasks)
    return Tiling(graph, target, tasks, storages, root, homes)


def _roots(graph: Graph) -> dict[str, str]:
    """Return the value that owns each value's bytes: a reshape's output lies where its input lies."""
    root = {name: name for name in graph.values}
    for node in graph.nodes:
        if isinstance(node.op, Reshape):
            root[node.output] = root[node.inputs[0]]
    return root


def _tasks(graph: Graph, target: Target, root: Mapping[str, str]) -> tuple[Task, ...]:
    return tuple(
        Task(node, bind(graph, node, target.arithmetic), tuple(root[n] for n in graph.operands(node)), root[node.output])
        for node in graph.nodes if not isinstance(node.op, Reshape)
    )


def _storages(graph: Graph, tasks: tuple[Task, ...], root: Mapping[str, str]) -> dict[str, Storage]:
    storages = {name: Storage(name, graph.values[name].type.nbytes, -1, -1) for name in graph.inputs}
    for index, task in enumerate(tasks):
        for name in task.operands:
            constant = name in graph.constants
            known = storages.get(name) or Storage(name, graph.values[name].type.nbytes, index, index, constant)
            storages[name] = replace(known, last=index)
        storages[task.output] = Storage(task.output, graph.values[task.output].type.nbytes, index, index)
    for name in graph.outputs:
        storages[root[name]] = replace(storages[root[name]], last=len(tasks))
    return storages


def _homes(
    tasks: tuple[Task, ...], storages: Mapping[str, Storage], target: Target, budget: int, strategy: Strategy
) -> dict[str, Space]:
    """Return the memory of each storage; spills a tensor alive at the worst task until all tasks fit."""
    mode = target.memory_mode
    constants, spill = Space[mode.constants.upper()], Space[mode.spill.upper()]
    homes = {name: constants if s.constant else Space.SRAM for name, s in storages.items()}
    uses = Counter(name for task in tasks for name in (*task.operands, task.output))
    needs = [_need(tasks, t, storages, homes) for t in range(len(tasks))]
    while needs and max(needs) > budget:
        worst = needs.index(max(needs))
        victim = _victim(_live(storages, homes, worst), uses, strategy)
        if victim is None:
            raise _too_large(tasks[worst], storages, needs[worst], budget)
        homes[victim.name] = spill
        for t in range(max(victim.first, 0), min(victim.last, len(tasks) - 1) + 1):
            needs[t] = _need(tasks, t, storages, homes)
    return homes


def _too_large(task: Task, storages: Mapping[str, Storage], need: int, budget: int) -> CapacityError:
    largest = max((storages[name] for name in (*task.operands, task.output)), key=lambda s: s.nbytes)
    return CapacityError(f"scratchpad: node {task.node.name!r} ({task.node.op.name}) on single rows of its tensors, the "
                         f"largest {largest.name!r} of {largest.nbytes:,} bytes", need, budget,
                         advice="use a machine with a larger memory.sram, or a smaller --shape")


def _live(storages: Mapping[str, Storage], homes: Mapping[str, Space], t: int) -> list[Storage]:
    return [s for s in storages.values() if homes[s.name] == Space.SRAM and s.first <= t <= s.last]


def _need(tasks: tuple[Task, ...], t: int, storages: Mapping[str, Storage], homes: Mapping[str, Space]) -> int:
    """Return the bytes that task `t` needs at least: all that lives there, and staging of single rows."""
    staging = _buffers(tasks[t], homes, storages, 1)
    return sum(aligned(s.nbytes) for s in _live(storages, homes, t)) + _staged(staging)


def _victim(live: list[Storage], uses: Counter[str], strategy: Strategy) -> Storage | None:
    """Return the tensor to spill: the largest, or the one whose bytes move the fewest times (then the largest)."""
    if strategy.victim == "largest":
        return max(live, key=lambda s: (s.nbytes, s.name), default=None)
    return max(live, key=lambda s: (-uses[s.name], s.nbytes, s.name), default=None)


def _staged(buffers: list[tuple[int, int]]) -> int:
    return sum(nbytes * copies for nbytes, copies in buffers)


def _buffers(task: Task, homes: Mapping[str, Space], storages: Mapping[str, Storage], rows: int) -> list[tuple[int, int]]:
    """Return (bytes, copies) of the staging buffer of every operand and the output for stripes of `rows` rows."""
    if isinstance(task.node.op, Move):
        return [(0, 0)] * (len(task.operands) + 1)
    op, bound = task.node.op, task.bound
    total, period = op.rows(bound)
    rows = min(rows, period)
    buffers = []
    for name, count, taken in zip(task.operands, op.operand_rows(bound), op.most_rows(bound, rows), strict=True):
        whole = taken is None or taken >= count
        nbytes = storages[name].nbytes if taken is None else -(-storages[name].nbytes * taken // count)
        buffers.append((0, 0) if homes[name] == Space.SRAM else (aligned(nbytes), 1 if whole else 2))
    nbytes = storages[task.output].nbytes // total * rows
    buffers.append((0, 0) if homes[task.output] == Space.SRAM else (aligned(nbytes), 1 if rows == total else 2))
    return buffers


def _free(tasks: tuple[Task, ...], storages: Mapping[str, Storage], homes: Mapping[str, Space], budget: int) -> list[int]:
    return [budget - sum(aligned(s.nbytes) for s in _live(storages, homes, t)) for t in range(len(tasks))]


def _stripe(task: Task, homes: Mapping[str, Space], storages: Mapping[str, Storage], room: int,
            strategy: Strategy) -> Task:
    """Choose the stripe height: the highest that fits `room`, by bisection (staging grows with the height)."""
    if isinstance(task.node.op, Move):
        empty = (0,) * (len(task.operands) + 1)
        return replace(task, buffers=empty, copies=empty)
    total, period = task.node.op.rows(task.bound)
    staged = any(homes[name] != Space.SRAM for name in (*task.operands, task.output))
    low, high = 1, max(1, -(-period // strategy.stripes)) if staged else period
    while low < high:
        middle = (low + high + 1) // 2
        fits = _staged(_buffers(task, homes, storages, middle)) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    buffers = _buffers(task, homes, storages, low)
    return replace(task, stripe=low, buffers=tuple(b for b, _ in buffers), copies=tuple(c for _, c in buffers))


def _blocks_outer(task: Task, homes: Mapping[str, Space], storages: Mapping[str, Storage], target: Target) -> bool:
    """Tell whether loading operands once per block moves fewer bytes than loading constants once per stripe."""
    constants = sum(array.size for i, array in task.bound.constants.items() if i >= len(task.operands))
    if not task.stripe or constants <= target.memory["weights"].bytes:
        return False
    total, period = task.node.op.rows(task.bound)
    stripes = total // period * -(-period // task.stripe)
    blocks = -(-constants * BLOCKS // target.memory["weights"].bytes)
    staged = sum(storages[name].nbytes for name in task.operands if homes[name] != Space.SRAM)
    return constants + staged * blocks < constants * stripes + staged
