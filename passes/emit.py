"""Emit: a plan becomes a program: the image of constants, the instructions layer by layer, the records for readers.

Rules:

1. constants travel in blocks of output channels through the weight buffer, which is filled as a ring: the decoder
   loads ahead of the array as far as there is room; how large a block is at most, the strategy says;
2. when all blocks of a layer fit the buffer together, each is loaded once; else once per stripe;
3. a staged operand is copied in before, a staged output copied out after each stripe;
4. in a cascade each stripe goes through all its tasks before the next stripe begins;
5. spills lie behind the constants where both share a memory;
6. the steps of a sequence become a loop where they differ by constant address steps only: all but the first one, which
   may load constants and reads the initial states; where its constants do not fit the weight buffer together, those of
   the cells' update and some weights stay at its bottom, and each other block has one address for all steps;
7. at the end, every state is copied from where it was made to where the next call looks for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np

from nnac import isa
from nnac.array import taken_folds
from nnac.errors import CapacityError
from nnac.graph import Graph
from nnac.isa import PACKERS, AnyInstruction, Space
from nnac.ops import UNSTRIPED, Block, Move, Recurrent, Slab, Step
from nnac.ops.base import Turn
from nnac.ops.move import Home, copy
from nnac.passes.arbitrate import arbitrate
from nnac.passes.schedule import periodic, schedule
from nnac.passes.sparse_packing import Packing, pack_weights
from nnac.plan import Plan, Task
from nnac.program import Encoding, KnownAnswer, Layer, Piece, Program, Tensor
from nnac.types import aligned


@dataclass(frozen=True, slots=True)
class _Placed:
    """A block in the constants image: addresses of its params, of its packed weights and their table, and lengths."""

    block: Block
    params: int
    weights: int
    packed: int
    packer: int
    table: int
    table_bytes: int


@dataclass(slots=True)
class _Image:
    """The constants image under construction."""

    parts: list[bytes] = field(default_factory=list)
    top: int = 0

    def add(self, data: bytes) -> int:
        address = self.top
        padding = aligned(len(data)) - len(data)
        self.parts += [data, bytes(padding)]
        self.top += len(data) + padding
        return address

    def array(self) -> Any:
        return np.frombuffer(b"".join(self.parts), dtype=np.uint8)


@dataclass(slots=True)
class _Ring:
    """The weight buffer: addresses handed out round and round, above what is kept at its bottom."""

    size: int
    bottom: int = 0
    top: int = 0
    high: int = 0

    def reserve(self, nbytes: int) -> None:
        """Keep nothing, and make the next `nbytes` in sum lie in one piece, none over another."""
        self.bottom = 0
        if self.top + nbytes > self.size:
            self.top = 0

    def keep(self, nbytes: int) -> int:
        """Return the address of `nbytes` that those taken from now on leave alone."""
        address = self.bottom
        self.bottom = self.top = address + nbytes
        return address

    def take(self, nbytes: int) -> int:
        """Return the address of the next `nbytes`, from the bottom again when the end is too near."""
        address = self.top if self.top + nbytes <= self.size else self.bottom
        self.top = address + nbytes
        self.high = max(self.high, self.top)
        return address


@dataclass(frozen=True, slots=True)
class _Stripe:
    """A stripe ready for work: slabs of operands and output, and the copies that bring the operands in."""

    inputs: tuple[Slab, ...]
    output: Slab
    copies: tuple[AnyInstruction, ...]


_Key = tuple[int, int]
"""A block: its task, and its number there."""


class _Loader:
    """Blocks of one task or cascade in the weight buffer: each is loaded when needed, once if all fit together.

    Attributes:
        stay: blocks that are loaded once.
        places: addresses of those that lie at the same one whenever they are loaded.
    """

    def __init__(self, emitter: _Emitter, blocks: Mapping[_Key, _Placed], rounds: Collection[_Key]) -> None:
        self.emitter, self.blocks, self.ring = emitter, blocks, emitter.ring
        total = sum(p.block.nbytes for p in blocks.values())
        self.ring.reserve(total)
        self.at: dict[_Key, tuple[int, int]] = {}
        self.last: _Key | None = None
        self.stay: Collection[_Key] = blocks
        self.places: dict[_Key, int] = {}
        if total > self.ring.size:
            self.stay = self._keep(sorted(rounds, key=lambda key: blocks[key].block.weights.size > 0))
            self._fix([key for key in rounds if key not in self.stay])

    def _keep(self, keys: Sequence[_Key]) -> Collection[_Key]:
        """Give the first blocks the bottom of the buffer and return them; two of the largest fit above weights."""
        largest = max(p.block.nbytes for p in self.blocks.values())
        for count, key in enumerate(keys):
            block = self.blocks[key].block
            if self.ring.bottom + block.nbytes + largest * (2 if block.weights.size else 1) > self.ring.size:
                return keys[:count]
            self.places[key] = self.ring.keep(block.nbytes)
        return keys

    def _fix(self, keys: Sequence[_Key]) -> None:
        """Give blocks places round and round; the last one lies beside the first, which comes behind it again."""
        for key in keys:
            nbytes, first = self.blocks[key].block.nbytes, keys[0]
            if key == keys[-1] != first and self.ring.top + nbytes > self.ring.size:
                self.ring.top = self.places[first] + self.blocks[first].block.nbytes
            self.places[key] = self.ring.take(nbytes)

    def need(self, key: _Key) -> tuple[tuple[AnyInstruction, ...], tuple[int, int]]:
        """Return the loads that make a block present, and its addresses."""
        if key == self.last or (key in self.stay and key in self.at):
            return (), self.at[key]
        placed = self.blocks[key]
        base = self.places[key] if key in self.places else self.ring.take(placed.block.nbytes)
        self.at[key], loads = self.emitter.load(placed, base)
        self.last = self.last if key in self.stay else key
        return tuple(loads), self.at[key]


Packings = dict[tuple[object, ...], Packing]


def emit(
    plan: Plan,
    calibration: str,
    known_answer: KnownAnswer,
    packings: Packings | None = None,
    sqnr: Mapping[str, float] | None = None,
) -> Program:
    """Return the program of a plan.

    Args:
        plan: homes, stripes, addresses.
        calibration, known_answer: for the record.
        packings: remembers packed weights from one plan of a network to the next.
        sqnr: dB of the int8 weights against the float ones, by node; for the record.

    Raises:
        CapacityError: one output channel's weights exceed the weight buffer, or a memory is too small.
    """
    return _Emitter(plan, {} if packings is None else packings, sqnr or {}).program(calibration, known_answer)


class _Emitter:
    def __init__(self, plan: Plan, packings: Packings, sqnr: Mapping[str, float]) -> None:
        self.plan, self.tiling, self.packings, self.sqnr = plan, plan.tiling, packings, sqnr
        self.chosen: dict[str, Packing] = {}
        self.target = plan.tiling.target
        self.graph: Graph = plan.tiling.graph
        self.image, self.ring = _Image(), _Ring(self.target.memory["weights"].bytes)
        self.instructions: list[AnyInstruction] = []
        self.loops: list[isa.Loop] = []
        self.segments: list[bytes] = []
        self.folds: dict[tuple[int, int], int] = {}
        self.layers: list[Layer] = []
        self.pieces: dict[str, list[Piece]] = {}
        self.ready: dict[str, int] = {name: -1 for name in self.graph.inputs}
        self.constants_space = Space[self.target.memory_mode.constants.upper()]
        self.spill_space = Space[self.target.memory_mode.spill.upper()]
        self._operand_constants()
        self.blocks = [self._place_blocks(task) for task in self.tiling.tasks]
        self.spill_base = self.image.top if self.spill_space == self.constants_space else 0

    # -- constants -------------------------------------------------------------------------------------------------

    def _operand_constants(self) -> None:
        for storage in self.tiling.storages.values():
            if storage.constant:
                address = self.image.add(self.graph.constants[storage.name].tobytes())
                assert address == self.plan.addresses[storage.name]

    def _place_blocks(self, task: Task) -> list[_Placed]:
        granule, kept = self.target.mac.cols, task.node.op.kept(task.bound)
        room = max(0, self.ring.size - kept)
        for limit in (room // self.tiling.strategy.blocks, room // 2, room):
            blocks = task.node.op.blocks(task.bound, limit, granule)
            if all(block.nbytes <= limit for block in blocks if block.weights.size or not kept):
                break
        else:
            need = kept + max(block.nbytes for block in blocks if block.weights.size or not kept)
            raise CapacityError(
                f"weight buffer, node {task.node.name!r} ({task.node.op.name}), one output channel",
                need,
                self.ring.size,
                advice="use a machine with a larger memory.weights",
            )
        return self._packed(task, blocks)

    def _packed(self, task: Task, blocks: list[Block]) -> list[_Placed]:
        """Pack the blocks' weights (once per way of cutting them) and put all their bytes into the image."""
        key = (task.node.name, *(block.lo for block in blocks))
        if key not in self.packings:
            self.packings[key] = pack_weights(blocks, self.target)
        packing = self.packings[key]
        self.chosen[task.node.name] = packing
        table = self.image.add(packing.table) if packing.table else 0
        return [
            _Placed(
                block,
                self.image.add(block.params),
                self.image.add(data),
                len(data),
                packing.packer,
                table,
                len(packing.table),
            )
            for block, data in zip(blocks, packing.stripes, strict=True)
        ]

    # -- instructions ----------------------------------------------------------------------------------------------

    def _group(self, group: range) -> None:
        """Emit one task, or the tasks of a cascade stripe by stripe, and record what each of them is made of."""
        runs: dict[tuple[int, int], list[tuple[int, int]]] = {
            (t, part): [] for t in group for part in range(len(self.tiling.tasks[t].node.op.parts))
        }
        rounds: list[int] = []
        for t, turn in self._turns(group):
            first = len(self.instructions)
            if turn.step != len(rounds):
                rounds = [*rounds, first] if turn.step else self._roll(rounds, first)
            self.instructions += turn.instructions
            own = runs[t, turn.part]
            if own and own[-1][1] == first:
                first = own.pop()[0]
            own.append((first, len(self.instructions)))
        self._roll(rounds, len(self.instructions))
        for (t, part), own in runs.items():
            self._record_layer(t, part, own)

    def _roll(self, rounds: list[int], end: int) -> list[int]:
        """Enter the rounds of a sequence that begin at `rounds` and end at `end` as a loop; return no rounds."""
        body = end - rounds[-1] if rounds else 0
        if len(rounds) > 1 and all(b - a == body for a, b in pairwise(rounds)):
            self.loops.append(isa.Loop(rounds[0], body, len(rounds)))
        return []

    def _record_layer(self, t: int, part: int, runs: list[tuple[int, int]]) -> None:
        task = self.tiling.tasks[t]
        node, label, first = task.node, task.node.op.parts[part], part == 0
        for name in (task.output, *task.more):
            self.ready[name] = max(self.ready.get(name, -1), runs[-1][1] - 1)
        self.layers.append(
            Layer(
                f"{node.name} ({label})" if label else node.name,
                node.op.name,
                tuple(runs),
                tuple(name for name in self.graph.operands(node) if name not in self.graph.constants),
                node.output,
                node.op.work(task.bound).macs if first else 0,
                sum(p.block.weights.size for p in self.blocks[t]) if first else 0,
                self._encoding(t) if first else None,
                node.more,
            )
        )

    def _encoding(self, t: int) -> Encoding | None:
        blocks, name = [p.block.weights for p in self.blocks[t]], self.tiling.tasks[t].node.name
        if not any(weights.size for weights in blocks):
            return None
        sqnr, packing = self.sqnr.get(name, inf), self.chosen[name]
        return Encoding(
            len(np.unique(np.concatenate(blocks))), sqnr if sqnr < inf else None, PACKERS[packing.packer], packing.sizes
        )

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
        loader = _Loader(self, placed, recurrent)
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

    def _stripe(self, task: Task, t: int, stripe: _Stripe, loader: _Loader) -> Iterator[Turn]:
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
            yield replace(turn, instructions=tuple(self._counted(t, latest, i) for i in turn.instructions))
        if copies := tuple(self._home_copies(task, stripe, None)):
            yield Turn(copies, len(op.parts) - 1)

    def _more(self, task: Task, t: int) -> tuple[int, ...]:
        """Return where the other outputs lie while the task works: in their homes, or staged."""
        staged = self.plan.staging[t][len(task.operands) + 1 :]
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
            at, loads = self.load(placed, self.ring.take(placed.block.nbytes))
            yield from loads
            for count, rows in enumerate(spans):
                step = self._stage(task, t, rows, b * len(spans) + count, whole, None)
                yield from step.copies
                one = Step(step.inputs, step.output, block=placed.block, params=at[0], weights=at[1])
                yield from (self._counted(t, b, i) for i in task.node.op.lower(task.bound, one))
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

    def load(self, placed: _Placed, base: int) -> tuple[tuple[int, int], list[AnyInstruction]]:
        """Return the weight-buffer addresses of a block's params and weights, and the loads, for a place."""
        block, loads, space = placed.block, list[AnyInstruction](), self.constants_space
        weights = base + aligned(len(block.params))
        if block.params:
            size = len(block.params)
            loads.append(
                isa.Load(space=space, source=placed.params, source_bytes=size, target=base, target_bytes=size, packer=0)
            )
        if block.weights.size:
            loads.append(
                isa.Load(
                    space=space,
                    source=placed.weights,
                    source_bytes=placed.packed,
                    target=weights,
                    target_bytes=block.weights.size,
                    packer=placed.packer,
                    table=placed.table,
                    table_bytes=placed.table_bytes,
                )
            )
        return (base, weights), loads

    def _counted(self, t: int, b: int, i: AnyInstruction) -> AnyInstruction:
        """Return an instruction that works with block `b`; a convolution carries the folds that the array takes."""
        if not isinstance(i, isa.Conv) or self.target.mac.zero_skip == "none" or i.groups > 1:
            return i
        if (t, b) not in self.folds:
            block = self.blocks[t][b].block
            self.folds[t, b] = taken_folds(block.weights.reshape(block.hi - block.lo, -1), self.target.mac)
        return replace(i, taps=self.folds[t, b])

    def _flat_copy(self, source: Home, target: Home, nbytes: int) -> AnyInstruction:
        return copy(source, (1,), target, (1,), (nbytes,))

    def _home(self, name: str) -> Home:
        space, address = self.tiling.homes[name], self.plan.addresses[name]
        if self.tiling.storages[name].constant or space == Space.SRAM:
            return space, address
        return space, address + self.spill_base

    # -- records ---------------------------------------------------------------------------------------------------

    def program(self, calibration: str, known_answer: KnownAnswer) -> Program:
        for group in self.tiling.groups:
            self._group(group)
        self._keep_states()
        used = self._used()
        self._check_capacity(used)
        names = (*self.graph.inputs, *(name for node in self.graph.nodes for name in node.outputs))
        scheduled = schedule(self.instructions, self.target.decoder.ahead)
        return Program(
            name=self.graph.name,
            target=self.target,
            instructions=periodic(arbitrate(scheduled, self.target, self.loops), self.loops),
            constants=self.image.array(),
            tensors=tuple(map(self._tensor, names)),
            inputs=self.graph.inputs,
            outputs=self.graph.outputs,
            states=self.graph.states,
            loops=tuple(self.loops),
            segments=tuple(self.segments),
            layers=tuple(self.layers),
            used=used,
            lower_bound=self.plan.lower_bound,
            calibration=calibration,
            known_answer=known_answer,
        )

    def _keep_states(self) -> None:
        """Emit rule 7; a state that is its own result stays where it is."""
        for source, result in self.graph.states:
            homes = [self._home(self.tiling.root[name]) for name in (result, source)]
            if homes[0] == homes[1]:
                continue
            first = len(self.instructions)
            self.instructions.append(self._flat_copy(homes[0], homes[1], self.graph.values[source].type.nbytes))
            runs = ((first, first + 1),)
            self.layers.append(Layer(f"{source} (keep)", "State", runs, (result,), source, 0, 0))

    def _tensor(self, name: str) -> Tensor:
        value, root = self.graph.values[name], self.tiling.root[name]
        if root in self.pieces:
            return Tensor(name, value.type, value.origin, Space.SRAM, 0, self.ready[root], tuple(self.pieces[root]))
        return Tensor(name, value.type, value.origin, *self._home(root), self.ready[root])

    def _used(self) -> dict[Space, int]:
        used = {Space.SRAM: self.plan.used[Space.SRAM], Space.WEIGHTS: self.ring.high}
        spill = self.plan.used[Space.DRAM]
        used[self.spill_space] = self.spill_base + spill
        used[self.constants_space] = max(used.get(self.constants_space, 0), self.image.top)
        return {space: used[space] for space in Space if space in used}

    def _check_capacity(self, used: dict[Space, int]) -> None:
        for space, need in used.items():
            available = self.target.memory[space.label].bytes
            if need > available:
                raise CapacityError(f"memory.{space.label}", need, available, advice="use a machine with more")
