"""Tile: which tensors live in the scratchpad, and in which stripes an operator works on those that do not.

Rules:

1. every activation starts in the scratchpad, alive from its writer to its last reader; a reshape shares the bytes;
2. while a task needs more than there is, a tensor alive there leaves (which one, the strategy says): where the strategy
   cascades and only the next task reads it, all of it, it is streamed: both tasks work on one stripe after the other,
   and only a stripe of it ever exists (rows that two stripes share are computed twice); else it moves to the spill
   memory;
3. a task that touches a spilled tensor stages it in stripes of rows through two buffers in turn, so that transfer and
   work overlap;
4. a stripe is as high as the free room and the strategy allow; operands that broadcast, and moves and host segments
   (which work from home to home), are never cut;
5. where a layer's constants exceed the weight buffer and its tensors are staged, either the constants are loaded again
   per stripe or the operands per block of constants: what moves fewer bytes; a cascade keeps its constants resident;
6. constants that an operator reads like an activation are staged from the constants memory;
7. a recurrent operator takes its stripes in the order of time; it may end a cascade, but no task behind it joins one,
   since rows of a sequence cannot be computed twice;
8. states live through the whole program, and a state's result to its end, where it replaces the old state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from nnac.errors import CapacityError
from nnac.graph import Graph, Node
from nnac.isa import Space
from nnac.ops import UNSTRIPED, Host, Recurrent, Reshape
from nnac.ops.base import bind
from nnac.plan import Storage, Strategy, Task, Tiling
from nnac.targets import Target
from nnac.types import aligned

Buffers = list[tuple[int, int]]
"""(bytes, copies) of the staging buffer of every operand and the output."""


def tile(graph: Graph, target: Target, budget: int, strategy: Strategy | None = None) -> Tiling:
    """Return the tiling of an integer graph into `budget` bytes of scratchpad.

    Raises:
        CapacityError: a task does not fit even with everything else spilled and single-row stripes.
    """
    chosen = strategy or Strategy()
    return settle(survey(graph, target), budget, chosen).tiling(budget)


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do, without a word on where: tasks in order, and the storages that they touch.

    Attributes:
        root: the value that owns each value's bytes.
        alive, buffers, cuts, descents, moved: what was found once and is asked for again by every strategy.
    """

    graph: Graph
    target: Target
    root: Mapping[str, str]
    tasks: tuple[Task, ...]
    storages: Mapping[str, Storage]
    alive: dict[range, list[Storage]] = field(default_factory=dict)
    buffers: dict[tuple[object, ...], Buffers] = field(default_factory=dict)
    cuts: dict[tuple[object, ...], Sequence[Task]] = field(default_factory=dict)
    descents: dict[tuple[str, bool], _Descent] = field(default_factory=dict)
    moved: Counter[str] = field(default_factory=Counter)

    @property
    def least(self) -> int:
        """Bytes of scratchpad that the tasks need where every tensor is staged in single rows."""
        return Homes(self, Strategy(), dict.fromkeys(self.storages, _outside(self.target))).most

    @property
    def most(self) -> int:
        """Bytes of scratchpad in which all tensors can live that live at one time."""
        return _inside(self, Strategy()).most

    def living(self, group: range) -> list[Storage]:
        """Return the storages whose bytes are needed, wherever they are, while `group` works."""
        if group not in self.alive:
            self.alive[group] = [s for s in self.storages.values() if s.first < group.stop and s.last >= group.start]
        return self.alive[group]


def survey(graph: Graph, target: Target, like: Work | None = None) -> Work:
    """Return the tasks and storages of an integer graph; those of nodes that are in `like`, too, are found there."""
    root = _roots(graph)
    known = {id(task.node): task for task in like.tasks} if like else {}
    nodes = [node for node in graph.nodes if not isinstance(node.op, Reshape)]
    tasks = tuple([known.get(id(node)) or _task(graph, node, target, root) for node in nodes])
    return Work(graph, target, root, tasks, _storages(graph, tasks, root), buffers=like.buffers if like else {})


def settle(work: Work, budget: int, strategy: Strategy) -> Homes:
    """Return homes with which every group fits the strategy's share of `budget` bytes of scratchpad.

    Raises:
        CapacityError: a task does not fit even with everything else spilled and single-row stripes.
    """
    for homes in descend(work, budget, strategy):
        fitting = homes
    return replace(fitting, strategy=strategy)


def descend(work: Work, budget: int, strategy: Strategy) -> Iterator[Homes]:
    """Yield homes with ever less in the scratchpad, up to those that `settle` returns; raises as it does."""
    key = strategy.victim, strategy.cascade
    if key not in work.descents:
        work.descents[key] = _Descent(_inside(work, strategy).descend())
    room = int(budget * strategy.share)
    for step in work.descents[key]:
        need, worst, homes = step
        yield homes
        if need <= room:
            return
    raise homes.too_large(worst, need, room)


@dataclass(slots=True)
class _Descent:
    """Homes with ever less in the scratchpad: which tensor leaves next does not depend on the room there is.

    Attributes:
        steps: (bytes that the group needs which needs most, that group, homes), found one after the other.
        known: those that were found so far.
    """

    steps: Iterator[tuple[int, range, Homes]]
    known: list[tuple[int, range, Homes]] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[int, range, Homes]]:
        yield from self.known
        for step in self.steps:
            self.known.append(step)
            yield step


def _inside(work: Work, strategy: Strategy) -> Homes:
    """Return homes with everything in the scratchpad but constants."""
    constants = Space[work.target.memory_mode.constants.upper()]
    homes = {name: constants if s.constant else Space.SRAM for name, s in work.storages.items()}
    return Homes(work, strategy, homes)


def _outside(target: Target) -> Space:
    """Return the memory of the tensors that leave the scratchpad."""
    return Space[target.memory_mode.spill.upper()]


def _roots(graph: Graph) -> dict[str, str]:
    """Return the value that owns each value's bytes: a reshape's output lies where its input lies."""
    root = {name: name for name in graph.values}
    for node in graph.nodes:
        if isinstance(node.op, Reshape):
            root[node.output] = root[node.inputs[0]]
    return root


def _task(graph: Graph, node: Node, target: Target, root: Mapping[str, str]) -> Task:
    return Task(
        node,
        bind(graph, node, target.arithmetic),
        tuple(root[n] for n in graph.operands(node)),
        root[node.output],
        tuple(root[n] for n in node.more),
    )


def _storages(graph: Graph, tasks: tuple[Task, ...], root: Mapping[str, str]) -> dict[str, Storage]:
    def fresh(name: str, task: int) -> Storage:
        value = graph.values[name]
        label = value.origin.name if value.origin else name
        return Storage(name, label, value.type.nbytes, task, task, constant=name in graph.constants)

    storages = {name: fresh(name, -1) for name in graph.inputs}
    for index, task in enumerate(tasks):
        for name in task.operands:
            known = storages.get(name) or fresh(name, index)
            storages[name] = replace(known, last=index, readers=known.readers + 1)
        storages |= {name: fresh(name, index) for name in (task.output, *task.more)}
    for name in (*graph.outputs, *(source for source, _ in graph.states)):
        storages[root[name]] = replace(storages[root[name]], last=len(tasks))
    return storages


@dataclass(frozen=True, slots=True)
class Homes:
    """Where tensors live: `homes` of those that are whole somewhere, `streamed` those that never are."""

    work: Work
    strategy: Strategy
    homes: Mapping[str, Space]
    streamed: Set[str] = frozenset()

    # -- rooms -----------------------------------------------------------------------------------------------------

    def descend(self) -> Iterator[tuple[int, range, Homes]]:
        """Yield (bytes needed at least, the group that needs them, homes), while one tensor after the other leaves."""
        homes, groups = self, self.groups()
        lying = {group: self.lying(group) for group in groups}
        needs = {group: self.need(group) for group in groups}
        while True:
            worst = max(groups, key=needs.__getitem__, default=range(0))
            yield needs.get(worst, 0), worst, homes
            live = homes.live(worst)
            if not live:
                return
            victim = homes._victim(live)
            homes = homes._without(victim)
            groups = homes.groups() if victim.name in homes.streamed else groups
            for group in groups:
                if group not in lying:
                    lying[group] = homes.lying(group)
                elif group.stop > victim.first and group.start <= victim.last:
                    lying[group] -= aligned(victim.nbytes)
                else:
                    continue
                needs[group] = lying[group] + _staged(homes.buffers(group, 1))

    @property
    def most(self) -> int:
        """What the group that needs most needs."""
        return max(map(self.need, self.groups()), default=0)

    def groups(self) -> list[range]:
        """Return the tasks in order, those that a streamed tensor joins together."""
        groups: list[range] = []
        for index in range(len(self.work.tasks)):
            joined = index > 0 and self.work.tasks[index - 1].output in self.streamed
            groups.append(range(groups.pop().start, index + 1) if joined else range(index, index + 1))
        return groups

    def live(self, group: range) -> list[Storage]:
        """Return the storages in the scratchpad while `group` works."""
        return [s for s in self.work.living(group) if self.homes.get(s.name) == Space.SRAM]

    def need(self, group: range) -> int:
        """Return the bytes that a group needs at least: all that lives there, and staging for single rows."""
        return self.lying(group) + _staged(self.buffers(group, 1))

    def lying(self, group: range) -> int:
        """Return the bytes of the tensors in the scratchpad while a group works."""
        return sum(aligned(s.nbytes) for s in self.live(group))

    def _victim(self, live: list[Storage]) -> Storage:
        """Return the tensor to send away: the largest, or the largest of those that move the fewest times."""
        if self.strategy.victim == "largest":
            return max(live, key=lambda s: (s.nbytes, s.name))
        return max(live, key=lambda s: (-s.readers, s.nbytes, s.name))

    def _without(self, victim: Storage) -> Homes:
        """Return the homes after a tensor has left the scratchpad."""
        if self.strategy.cascade and self._streamable(victim):
            rest = {name: space for name, space in self.homes.items() if name != victim.name}
            return Homes(self.work, self.strategy, rest, self.streamed | {victim.name})
        homes = {**self.homes, victim.name: _outside(self.work.target)}
        return Homes(self.work, self.strategy, homes, self.streamed)

    def _streamable(self, victim: Storage) -> bool:
        """Tell whether writer and reader are neighbours that can work in step, with all their constants resident."""
        first, last = victim.first, victim.last
        if victim.readers != 1 or first < 0 or last != first + 1 or last >= len(self.work.tasks):
            return False
        writer, reader = self.work.tasks[first], self.work.tasks[last]
        if isinstance(writer.node.op, (*UNSTRIPED, Recurrent)) or isinstance(reader.node.op, UNSTRIPED):
            return False
        if isinstance(reader.node.op, Recurrent) and reader.node.op.reverse:
            return False
        if writer.node.output not in reader.node.inputs or not (_one_period(writer) and _one_period(reader)):
            return False
        if not _reads_on(reader, reader.operands.index(victim.name)):
            return False
        tasks = self.work.tasks
        while first and tasks[first - 1].output in self.streamed:
            first -= 1
        while last + 1 < len(tasks) and tasks[last].output in self.streamed:
            last += 1
        return sum(map(_constant_bytes, tasks[first : last + 1])) <= self.work.target.memory["weights"].bytes

    def too_large(self, group: range, need: int, room: int) -> CapacityError:
        """Return the error that says what does not fit."""
        task = self.work.tasks[group.start]
        largest = max((self.work.storages[name] for name in task.storages), key=lambda s: s.nbytes)
        return CapacityError(
            f"scratchpad: node {task.node.name!r} ({task.node.op.name}) on single rows of its tensors, "
            f"the largest {largest.label!r} of {largest.nbytes:,} bytes",
            need,
            room,
            advice="use a machine with a larger memory.sram, or a smaller --shape",
        )

    # -- stripes ---------------------------------------------------------------------------------------------------

    def tiling(self, budget: int) -> Tiling:
        """Return the tiling into `budget` bytes."""
        groups, work = self.groups(), self.work
        cut = tuple(task for group in groups for task in self.cut(group, budget))
        return Tiling(work.graph, work.target, cut, work.storages, work.root, self.homes, tuple(groups), self.strategy)

    def cut(self, group: range, budget: int) -> Sequence[Task]:
        """Return the group's tasks with stripes and buffers."""
        tasks = [self.work.tasks[t] for t in group]
        homes = [self.homes.get(name) for task in tasks for name in task.storages]
        inside = all(home == Space.SRAM for home in homes) and not any(t.node.op.scratch(t.bound) for t in tasks)
        room = 0 if inside else budget - self.lying(group)
        key = (group, *homes, self.strategy.stripes, self.strategy.blocks, room)
        if key not in self.work.cuts:
            self.work.cuts[key] = self._highest(group, room)
        return self.work.cuts[key]

    def _highest(self, group: range, room: int) -> Sequence[Task]:
        """Return the group's tasks with the highest stripes whose staging fits, by bisection."""
        last = self.work.tasks[group[-1]]
        if isinstance(last.node.op, UNSTRIPED):
            empty = (0,) * (len(last.storages) + 1)
            return [replace(last, buffers=empty, copies=empty)]
        _, period = last.node.op.rows(last.bound)
        staged = len(group) > 1 or any(self.homes[name] != Space.SRAM for name in _cut(last))
        low, high = 1, max(1, -(-period // self.strategy.stripes)) if staged else period
        middle = high
        while low < high:
            fits = _staged(self.buffers(group, middle)) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
            middle = (low + high + 1) // 2
        return [
            self._finished(self.work.tasks[t], b, low) for t, b in zip(group, self.buffers(group, low), strict=True)
        ]

    def _finished(self, task: Task, buffers: Buffers, stripe: int) -> Task:
        sizes, copies = zip(*buffers, strict=True)
        return replace(task, stripe=stripe, buffers=sizes, copies=copies, blocks_outer=self._blocks_outer(task, stripe))

    def buffers(self, group: range, rows: int) -> list[Buffers]:
        """Return the staging of each task of a group whose last task makes `rows` rows at a time."""
        result: list[Buffers] = []
        for t in reversed(group):
            task = self.work.tasks[t]
            if isinstance(task.node.op, UNSTRIPED):
                result.append([(0, 0)] * (len(task.storages) + 1))
                continue
            rows = min(rows, task.node.op.rows(task.bound)[1])
            result.append(self._task_buffers(t, rows))
            rows = self._rows_before(t, rows) if t > group.start else rows
        return result[::-1]

    def _rows_before(self, t: int, rows: int) -> int:
        """Return the most rows of task t - 1 that `rows` rows of task t need."""
        task, before = self.work.tasks[t], self.work.tasks[t - 1]
        i = task.operands.index(before.output)
        taken, count = task.node.op.most_rows(task.bound, rows)[i], task.node.op.operand_rows(task.bound)[i]
        total = before.node.op.rows(before.bound)[0]
        assert taken is not None
        ragged = int(count > total) + int(bool(count % total and total % count))
        return int(min(total, -(-taken * total // count) + ragged))

    def _task_buffers(self, t: int, rows: int) -> Buffers:
        """Return the staging of one task that makes `rows` rows at a time."""
        task = self.work.tasks[t]
        key = (id(task.node), rows, *map(self.homes.get, task.storages))
        if key not in self.work.buffers:
            self.work.buffers[key] = self._found_buffers(task, rows)
        return self.work.buffers[key]

    def _found_buffers(self, task: Task, rows: int) -> Buffers:
        op, bound = task.node.op, task.bound
        total = op.rows(bound)[0]
        buffers: Buffers = []
        for name, count, taken in zip(task.operands, op.operand_rows(bound), op.most_rows(bound, rows), strict=True):
            whole = taken is None or taken >= count
            nbytes = (
                self.work.storages[name].nbytes
                if taken is None
                else -(-self.work.storages[name].nbytes * taken // count)
            )
            inside = name in self.streamed or self.homes[name] == Space.SRAM
            buffers.append((0, 0) if inside else (aligned(nbytes), 1 if whole else 2))
        nbytes = aligned(self.work.storages[task.output].nbytes // total * rows)
        if task.output in self.streamed:
            buffers.append((nbytes, 1))
        else:
            buffers.append((0, 0) if self.homes[task.output] == Space.SRAM else (nbytes, 1 if rows == total else 2))
        more = [(aligned(self.work.storages[name].nbytes), self.homes[name]) for name in task.more]
        buffers += [(0, 0) if home == Space.SRAM else (size, 1) for size, home in more]
        scratch = aligned(op.scratch(bound))
        return [*buffers, (scratch, 1 if scratch else 0)]

    def _blocks_outer(self, task: Task, stripe: int) -> bool:
        """Tell whether loading operands once per block moves fewer bytes than loading constants once per stripe."""
        constants = _constant_bytes(task)
        if isinstance(task.node.op, Recurrent):
            return False
        if constants <= self.work.target.memory["weights"].bytes or {*task.operands, task.output} & self.streamed:
            return False
        total, period = task.node.op.rows(task.bound)
        stripes = total // period * -(-period // stripe)
        blocks = -(-constants * self.strategy.blocks // self.work.target.memory["weights"].bytes)
        staged = sum(self.work.storages[name].nbytes for name in task.operands if self.homes[name] != Space.SRAM)
        return bool(constants + staged * blocks < constants * stripes + staged)


def _staged(group: list[Buffers]) -> int:
    return sum(nbytes * copies for buffers in group for nbytes, copies in buffers)


def _cut(task: Task) -> list[str]:
    """Return the tensors of which a stripe takes or makes a part; others are staged once, whatever its height."""
    taken = task.node.op.most_rows(task.bound, 1)
    return [name for name, rows in zip(task.operands, taken, strict=True) if rows is not None] + [task.output]


def _one_period(task: Task) -> bool:
    total, period = task.node.op.rows(task.bound)
    return bool(total == period)


def _reads_on(task: Task, operand: int) -> bool:
    """Tell whether all rows of an operand are read, one after the other; large strides leave some out."""
    op, bound = task.node.op, task.bound
    if op.most_rows(bound, 1)[operand] is None:
        return False
    total, count = op.rows(bound)[0], op.operand_rows(bound)[operand]
    (_, end), (_, last) = (op.input_rows(bound, (row, row + 1))[operand] for row in (0, total - 1))
    start = op.input_rows(bound, (1, 2))[operand][0] if total > 1 else end
    return bool(start <= end and last == count)


def moved(homes: Homes) -> Counter[Space]:
    """Return the bytes that homes cost at least between the scratchpad and each memory outside, weights apart."""
    each, total = homes.work.moved, Counter[Space]()
    if not each:
        each.update(_moved(homes.work))
    for name, space in homes.homes.items():
        if space != Space.SRAM:
            total[space] += each[name]
    return total


def _moved(work: Work) -> Counter[str]:
    """Return the bytes that each tensor costs at least where it lies outside."""
    total = Counter[str]()
    for task in work.tasks:
        for index, name in _touched(task):
            read = index < len(task.operands)
            total[name] += work.storages[name].nbytes if not read or _reads_all(task, index) else 0
    return total


def transfers(tiling: Tiling) -> Counter[Space]:
    """Return the transfers that a tiling costs at least between the scratchpad and each memory outside."""
    counts = Counter[Space]()
    for group in tiling.groups:
        stripes = tiling.tasks[group[-1]].rounds
        for task in [tiling.tasks[t] for t in group]:
            for index, name in _touched(task):
                space = tiling.homes.get(name, Space.SRAM)
                if space != Space.SRAM:
                    counts[space] += stripes if index == len(task.operands) or task.copies[index] == 2 else 1
    return counts


def _touched(task: Task) -> Iterator[tuple[int, str]]:
    """Yield (place among its storages, name) of what a task on the machine touches, each once."""
    names = task.storages
    for name in () if isinstance(task.node.op, Host) else set(names):
        yield names.index(name), name


def _reads_all(task: Task, operand: int) -> bool:
    """Tell whether an operand is staged whole, at once or stripe by stripe."""
    if isinstance(task.node.op, UNSTRIPED):
        return False
    return task.node.op.most_rows(task.bound, 1)[operand] is None or _reads_on(task, operand)


def _constant_bytes(task: Task) -> int:
    return sum(array.nbytes for i, array in task.bound.constants.items() if i >= len(task.operands))
