"""Emit: a plan becomes a program: the image of constants, the instructions layer by layer, the records for readers.

Rules:

1. blocks of constants come through the weight buffer as `passes.constants` says;
2. a staged operand is copied in before, a staged output copied out after each stripe;
3. in a cascade each stripe goes through all its tasks before the next stripe begins;
4. spills lie behind the constants where both share a memory;
5. the steps of a sequence become a loop where they differ by constant address steps only: all but the first one, which
   may load constants and reads the initial states;
6. at the end, every state is copied from where it was made to where the next call looks for it;
7. tokens are those that `passes.schedule` demands, and those with which `passes.arbitrate` puts transfers in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

from nnac import isa
from nnac.errors import CapacityError
from nnac.graph import Graph
from nnac.isa import PACKERS, AnyInstruction, Space
from nnac.ops import UNSTRIPED, Move, Recurrent, Slab, Step
from nnac.ops.base import Turn
from nnac.ops.move import Home, copy
from nnac.passes.arbitrate import arbitrate
from nnac.passes.constants import Cuts, Image, Loader, Placed, Ring
from nnac.passes.schedule import periodic, schedule, with_tokens
from nnac.passes.sparse_packing import Packing, levels
from nnac.plan import Plan, Task
from nnac.program import Encoding, KnownAnswer, Layer, Piece, Program, Tensor
from nnac.timing import Costs, duration


@dataclass(frozen=True, slots=True)
class _Stripe:
    """A stripe ready for work: slabs of operands and output, and the copies that bring the operands in."""

    inputs: tuple[Slab, ...]
    output: Slab
    copies: tuple[AnyInstruction, ...]


def emit(plan: Plan, calibration: str, known_answer: KnownAnswer) -> Program:
    """Return the program of a plan.

    Args:
        plan: homes, stripes, addresses.
        calibration, known_answer: for the record.

    Raises:
        CapacityError: one output channel's weights exceed the weight buffer, or a memory is too small.
    """
    target = plan.tiling.target
    return Draft(plan, Cuts(target), Costs(target)).program(calibration, known_answer, {})


class Draft:
    """What a plan becomes, short of its records.

    Attributes:
        instructions: without tokens; `waits` are those.
        used: bytes used per memory.
        cycles: of one inference by the timing model.
    """

    def __init__(self, plan: Plan, cuts: Cuts, costs: Costs) -> None:
        """Emit a plan; raises CapacityError as `emit`."""
        self.plan, self.tiling, self.cuts, self.costs = plan, plan.tiling, cuts, costs
        self.target = plan.tiling.target
        self.graph: Graph = plan.tiling.graph
        self.image, self.ring = Image(), Ring(self.target.memory["weights"].bytes)
        self.instructions: list[AnyInstruction] = []
        self.loops: list[isa.Loop] = []
        self.segments: list[bytes] = []
        self.runs: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self.pieces: dict[str, list[Piece]] = {}
        self.constants_space = Space[self.target.memory_mode.constants.upper()]
        self.spill_space = Space[self.target.memory_mode.spill.upper()]
        self._operand_constants()
        self.packings: list[Packing] = []
        self.blocks = [self._place_blocks(task) for task in self.tiling.tasks]
        self.spill_base = self.image.top if self.spill_space == self.constants_space else 0
        for group in self.tiling.groups:
            self._group(group)
        self.kept = self._keep_states()
        self.used = self._used()
        self._check_capacity()
        self._time()

    def _time(self) -> None:
        """Find tokens and cycles."""
        engines = [i.engine for i in self.instructions]
        spent = self.costs.of(self.instructions)
        waits = schedule(self.instructions, self.target.decoder.ahead)
        waits = periodic(engines, arbitrate(engines, waits, spent, self.target, self.loops), self.loops)
        self.waits, self.cycles = waits, duration(engines, waits, spent, self.target)

    # -- constants -------------------------------------------------------------------------------------------------

    def _operand_constants(self) -> None:
        for storage in self.tiling.storages.values():
            if storage.constant:
                address = self.image.add(self.graph.constants[storage.name].tobytes())
                assert address == self.plan.addresses[storage.name]

    def _place_blocks(self, task: Task) -> list[Placed]:
        blocks = self.cuts.cut(task, self.tiling.strategy.blocks)
        self.packings.append(self.cuts.packing(task, blocks))
        return self.image.add_blocks(blocks, self.packings[-1])

    # -- instructions ----------------------------------------------------------------------------------------------

    def _group(self, group: range) -> None:
        """Emit one task, or the tasks of a cascade stripe by stripe, and note what each of them is made of."""
        self.runs |= {(t, part): [] for t in group for part in range(len(self.tiling.tasks[t].node.op.parts))}
        rounds: list[int] = []
        for t, turn in self._turns(group):
            first = len(self.instructions)
            if turn.step != len(rounds):
                rounds = [*rounds, first] if turn.step else self._roll(rounds, first)
            self.instructions += turn.instructions
            own = self.runs[t, turn.part]
            if own and own[-1][1] == first:
                first = own.pop()[0]
            own.append((first, len(self.instructions)))
        self._roll(rounds, len(self.instructions))

    def _roll(self, rounds: list[int], end: int) -> list[int]:
        """Enter the rounds of a sequence that begin at `rounds` and end at `end` as a loop; return no rounds."""
        body = end - rounds[-1] if rounds else 0
        if len(rounds) > 1 and all(b - a == body for a, b in pairwise(rounds)):
            self.loops.append(isa.Loop(rounds[0], body, len(rounds)))
        return []

    def _turns(self, group: range) -> Iterator[tuple[int, Turn]]:
        """Yield (task, instructions) in the order of execution."""
        last = self.tiling.tasks[group[-1]]
        if isinstance(last.node.op, UNSTRIPED):
            yield group[-1], Turn(tuple(self._whole(last)))
            return
        total, period = last.node.op.rows(last.bound)
        spans = [
            (base + lo, base + min(lo + last.stripe, period))
            for base in range(0, total, period)
            for lo in range(0, period, last.stripe)
        ]
        if isinstance(last.node.op, Recurrent) and last.node.op.reverse:
            spans.reverse()
        if last.blocks_outer:
            yield group[-1], Turn(tuple(self._block_by_block(last, group[-1], spans)))
            return
        placed = {(t, b): p for t in group for b, p in enumerate(self.blocks[t])}
        recurrent = [key for key in placed if isinstance(self.tiling.tasks[key[0]].node.op, Recurrent)]
        loader = Loader(self.ring, self.constants_space, placed, recurrent)
        whole: dict[tuple[int, int], Slab] = {}
        for count, rows in enumerate(spans):
            above: Slab | None = None
            for t, wanted in zip(group, self._wanted(group, rows), strict=True):
                task = self.tiling.tasks[t]
                stripe = self._stage(task, t, wanted, count, whole, above)
                for turn in self._stripe(task, t, stripe, loader):
                    yield t, turn
                above = stripe.output
                if t != group[-1]:
                    self._record_piece(task, stripe.output)
        if copies := self._more_home(last, group[-1]):
            yield group[-1], Turn(copies, len(last.node.op.parts) - 1)

    def _whole(self, task: Task) -> Iterator[AnyInstruction]:
        """Yield a task from home to home: a move's copies, or the call of a host segment, which is stored once."""
        op, sources = task.node.op, [self._home(name) for name in task.operands]
        targets = [self._home(name) for name in (task.output, *task.more)]
        if isinstance(op, Move):
            yield from op.copies(task.bound, sources, targets[0])
            return
        if op.model not in self.segments:
            self.segments.append(op.model)
        yield op.call(task.bound, self.segments.index(op.model), sources, targets)

    def _wanted(self, group: range, rows: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the output rows of each task of a group that `rows` of the last one need."""
        wanted = [rows]
        for t in reversed(group[1:]):
            task, before = self.tiling.tasks[t], self.tiling.tasks[t - 1]
            i = task.operands.index(before.output)
            span = task.node.op.input_rows(task.bound, wanted[0])[i]
            nbytes = self.tiling.storages[before.output].nbytes
            taken, made = nbytes // task.node.op.operand_rows(task.bound)[i], self._pitch(before)
            wanted.insert(0, (span[0] * taken // made, -(-span[1] * taken // made)))
        return wanted

    def _record_piece(self, task: Task, slab: Slab) -> None:
        pitch = self._pitch(task)
        piece = Piece(len(self.instructions) - 1, slab.address, slab.lo * pitch, (slab.hi - slab.lo) * pitch)
        self.pieces.setdefault(task.output, []).append(piece)

    def _stripe(self, task: Task, t: int, stripe: _Stripe, loader: Loader) -> Iterator[Turn]:
        """Yield one stripe of a task: copies in, the work, the copy home."""
        op, blocks = task.node.op, [placed.block for placed in self.blocks[t]]
        if stripe.copies:
            yield Turn(stripe.copies)
        step, latest = Step(stripe.inputs, stripe.output, self._more(task, t), self._scratch(t)), 0

        def fetch(block: int) -> tuple[tuple[AnyInstruction, ...], tuple[int, int]]:
            nonlocal latest
            latest = block
            return loader.need((t, block))

        for turn in op.turns(task.bound, step, blocks, fetch):
            yield Turn(self._counted(t, latest, turn.instructions), turn.part, turn.step)
        if copies := tuple(self._home_copies(task, stripe, None)):
            yield Turn(copies, len(op.parts) - 1)

    def _more(self, task: Task, t: int) -> tuple[int, ...]:
        """Return where the other outputs lie while the task works: in their homes, or staged."""
        staged = self.plan.staging[t][len(task.operands) + 1 :] if task.more else ()
        return tuple(at[0] if at else self._home(name)[1] for name, at in zip(task.more, staged, strict=False))

    def _more_home(self, task: Task, t: int) -> tuple[AnyInstruction, ...]:
        """Return the copies that take the other outputs of a task home at its end."""
        copies = []
        for name, address in zip(task.more, self._more(task, t), strict=True):
            home = self._home(name)
            if home[0] != Space.SRAM:
                copies.append(self._flat_copy((Space.SRAM, address), home, self.tiling.storages[name].nbytes))
        return tuple(copies)

    def _scratch(self, t: int) -> int:
        at = self.plan.staging[t][-1]
        return at[0] if at else 0

    def _block_by_block(self, task: Task, t: int, spans: list[tuple[int, int]]) -> Iterator[AnyInstruction]:
        """Yield a task whose outer loop runs over its blocks: operands are staged again for each."""
        whole: dict[tuple[int, int], Slab] = {}
        self.ring.reserve(0)
        for b, placed in enumerate(self.blocks[t]):
            at, loads = placed.loads(self.ring.take(placed.block.nbytes), self.constants_space)
            yield from loads
            for count, rows in enumerate(spans):
                step = self._stage(task, t, rows, b * len(spans) + count, whole, None)
                yield from step.copies
                one = Step(step.inputs, step.output, block=placed.block, params=at[0], weights=at[1])
                yield from self._counted(t, b, tuple(task.node.op.lower(task.bound, one)))
                yield from self._home_copies(task, step, (placed.block.lo, placed.block.hi))

    def _stage(
        self,
        task: Task,
        t: int,
        rows: tuple[int, int],
        count: int,
        whole: dict[tuple[int, int], Slab],
        above: Slab | None,
    ) -> _Stripe:
        """Return where a stripe's operands and output lie, and the copies that bring the operands in.

        `above` is the stripe that the task before has just made, in a cascade.
        """
        slabs, copies = [], list[AnyInstruction]()
        for i, wanted in enumerate(task.node.op.input_rows(task.bound, rows)):
            if above is not None and task.operands[i] == self.tiling.tasks[t - 1].output:
                slabs.append(self._from_above(task, t, i, wanted, above))
                continue
            slab, moves = self._operand(task, t, i, wanted, count, whole)
            slabs.append(slab)
            copies += moves
        return _Stripe(tuple(slabs), self._result(task, t, rows, count), tuple(copies))

    def _from_above(self, task: Task, t: int, i: int, wanted: tuple[int, int], above: Slab) -> Slab:
        """Return rows `wanted` of operand `i` inside the stripe `above`, whose rows may have another length."""
        pitch = self.tiling.storages[task.operands[i]].nbytes // task.node.op.operand_rows(task.bound)[i]
        return Slab(above.address + wanted[0] * pitch - above.lo * self._pitch(self.tiling.tasks[t - 1]), *wanted)

    def _operand(
        self,
        task: Task,
        index: int,
        i: int,
        wanted: tuple[int, int] | None,
        count: int,
        whole: dict[tuple[int, int], Slab],
    ) -> tuple[Slab, list[AnyInstruction]]:
        """Return where rows `wanted` of operand `i` lie, and the copy that brings them there."""
        name, rows = task.operands[i], task.node.op.operand_rows(task.bound)[i]
        lo, hi = wanted or (0, rows)
        pitch = self.tiling.storages[name].nbytes // rows
        space, address = self._home(name)
        if space == Space.SRAM:
            return Slab(address + lo * pitch, lo, hi), []
        if (known := whole.get((index, i))) and (known.lo, known.hi) == (lo, hi):
            return known, []
        buffers = self.plan.staging[index][i]
        buffer = buffers[count % len(buffers)]
        assert (hi - lo) * pitch <= task.buffers[i], f"staging buffer of {name} is too small"
        slab = Slab(buffer, lo, hi)
        if len(buffers) == 1:
            whole[index, i] = slab
        return slab, [self._flat_copy((space, address + lo * pitch), (Space.SRAM, buffer), (hi - lo) * pitch)]

    def _result(self, task: Task, index: int, rows: tuple[int, int], count: int) -> Slab:
        """Return where to write output `rows`."""
        pitch = self._pitch(task)
        if task.output in self.tiling.homes and self._home(task.output)[0] == Space.SRAM:
            return Slab(self._home(task.output)[1] + rows[0] * pitch, *rows)
        place = len(task.operands)
        assert (rows[1] - rows[0]) * pitch <= task.buffers[place], f"staging buffer of {task.output} is too small"
        buffers = self.plan.staging[index][place]
        return Slab(buffers[count % len(buffers)], *rows)

    def _pitch(self, task: Task) -> int:
        """Return the bytes of one output row."""
        return int(self.tiling.storages[task.output].nbytes // task.node.op.rows(task.bound)[0])

    def _home_copies(self, task: Task, step: _Stripe, channels: tuple[int, int] | None) -> Iterator[AnyInstruction]:
        """Yield the copy that takes a staged stripe home: whole rows, or a slice of their channels."""
        if task.output not in self.tiling.homes or self._home(task.output)[0] == Space.SRAM:
            return
        space, address = self._home(task.output)
        pitch, slab = self._pitch(task), step.output
        home, nbytes = address + slab.lo * pitch, (slab.hi - slab.lo) * pitch
        if channels is None:
            yield self._flat_copy((Space.SRAM, slab.address), (space, home), nbytes)
            return
        lo, hi = (end * task.bound.output.itemsize for end in channels)
        row = task.bound.output.shape[-1] * task.bound.output.itemsize
        yield copy((Space.SRAM, slab.address + lo), (row, 1), (space, home + lo), (row, 1), (nbytes // row, hi - lo))

    def _counted(self, t: int, b: int, instructions: tuple[AnyInstruction, ...]) -> tuple[AnyInstruction, ...]:
        """Return instructions that work with block `b`; convolutions carry the folds that the array takes."""
        if self.target.mac.zero_skip == "none":
            return instructions

        def taken(i: AnyInstruction) -> AnyInstruction:
            if not isinstance(i, isa.Conv) or i.groups > 1:
                return i
            return replace(i, taps=self.cuts.taken(self.tiling.tasks[t], self.blocks[t][b].block))

        return tuple(map(taken, instructions))

    def _flat_copy(self, source: Home, target: Home, nbytes: int) -> AnyInstruction:
        return copy(source, (1,), target, (1,), (nbytes,))

    def _home(self, name: str) -> Home:
        space, address = self.tiling.homes[name], self.plan.addresses[name]
        if self.tiling.storages[name].constant or space == Space.SRAM:
            return space, address
        return space, address + self.spill_base

    # -- records ---------------------------------------------------------------------------------------------------

    def program(self, calibration: str, known_answer: KnownAnswer, sqnr: Mapping[str, float]) -> Program:
        """Return the program; `sqnr` are dB of the int8 weights against the float ones, by node, for the record."""
        names = (*self.graph.inputs, *(name for node in self.graph.nodes for name in node.outputs))
        ready = self._ready()
        return Program(
            name=self.graph.name,
            target=self.target,
            instructions=with_tokens(self.instructions, self.waits),
            constants=self.image.array(),
            tensors=tuple(self._tensor(name, ready) for name in names),
            inputs=self.graph.inputs,
            outputs=self.graph.outputs,
            states=self.graph.states,
            loops=tuple(self.loops),
            segments=tuple(self.segments),
            layers=(*(self._layer(t, part, sqnr) for t, part in self.runs), *self.kept),
            used=self.used,
            lower_bound=self.plan.lower_bound,
            calibration=calibration,
            known_answer=known_answer,
        )

    def _keep_states(self) -> list[Layer]:
        """Emit rule 6; a state that is its own result stays where it is."""
        layers = []
        for source, result in self.graph.states:
            homes = [self._home(self.tiling.root[name]) for name in (result, source)]
            if homes[0] == homes[1]:
                continue
            first = len(self.instructions)
            self.instructions.append(self._flat_copy(homes[0], homes[1], self.graph.values[source].type.nbytes))
            runs = ((first, first + 1),)
            layers.append(Layer(f"{source} (keep)", "State", runs, (result,), source, 0, 0))
        return layers

    def _layer(self, t: int, part: int, sqnr: Mapping[str, float]) -> Layer:
        task, first = self.tiling.tasks[t], part == 0
        node, label = task.node, task.node.op.parts[part]
        return Layer(
            f"{node.name} ({label})" if label else node.name,
            node.op.name,
            tuple(self.runs[t, part]),
            tuple(name for name in self.graph.operands(node) if name not in self.graph.constants),
            node.output,
            node.op.work(task.bound).macs if first else 0,
            sum(p.block.weights.size for p in self.blocks[t]) if first else 0,
            self._encoding(t, sqnr.get(node.name, inf)) if first else None,
            node.more,
        )

    def _encoding(self, t: int, sqnr: float) -> Encoding | None:
        blocks, packing = [p.block for p in self.blocks[t]], self.packings[t]
        if not any(block.weights.size for block in blocks):
            return None
        return Encoding(levels(blocks), sqnr if sqnr < inf else None, PACKERS[packing.packer], packing.sizes)

    def _ready(self) -> dict[str, int]:
        """Return the last instruction that writes each storage; -1 for inputs."""
        ready = dict.fromkeys(self.graph.inputs, -1)
        for (t, _), runs in self.runs.items():
            for name in (self.tiling.tasks[t].output, *self.tiling.tasks[t].more):
                ready[name] = max(ready.get(name, -1), runs[-1][1] - 1)
        return ready

    def _tensor(self, name: str, ready: Mapping[str, int]) -> Tensor:
        value, root = self.graph.values[name], self.tiling.root[name]
        if root in self.pieces:
            return Tensor(name, value.type, value.origin, Space.SRAM, 0, ready[root], tuple(self.pieces[root]))
        return Tensor(name, value.type, value.origin, *self._home(root), ready[root])

    def _used(self) -> dict[Space, int]:
        used = {Space.SRAM: self.plan.used[Space.SRAM], Space.WEIGHTS: self.ring.high}
        spill = self.plan.used[Space.DRAM]
        used[self.spill_space] = self.spill_base + spill
        used[self.constants_space] = max(used.get(self.constants_space, 0), self.image.top)
        return {space: used[space] for space in Space if space in used}

    def _check_capacity(self) -> None:
        for space, need in self.used.items():
            available = self.target.memory[space.label].bytes
            if need > available:
                raise CapacityError(f"memory.{space.label}", need, available, advice="use a machine with more")
