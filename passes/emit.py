"""Emit: a plan becomes a program: the image of constants, the instructions layer by layer, the records for readers.

Rules:

1. constants travel in blocks of output channels through the weight buffer, which is filled as a ring: the decoder
   loads ahead of the array as far as there is room;
2. when all blocks of a layer fit the buffer together, each is loaded once; else once per stripe;
3. a staged operand is copied in before, a staged output copied out after each stripe;
4. spills lie behind the constants where both share a memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nnac import isa
from nnac.errors import CapacityError
from nnac.graph import Graph
from nnac.isa import AnyInstruction, Space
from nnac.ops import Block, Move, Slab, Step
from nnac.ops.base import aligned
from nnac.ops.move import Home, copy
from nnac.passes.arbitrate import arbitrate
from nnac.passes.schedule import schedule
from nnac.plan import BLOCKS, Plan, Storage, Task
from nnac.program import KnownAnswer, Layer, Program, Tensor

@dataclass(frozen=True, slots=True)
class _Placed:
    """A block with its bytes' addresses in the constants image."""

    block: Block
    params: int
    weights: int


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
    """The weight buffer: addresses handed out round and round."""

    size: int
    top: int = 0
    high: int = 0

    def take(self, nbytes: int) -> int:
        """Return the address of the next `nbytes`, from 0 again when the end is too near."""
        address = self.top if self.top + nbytes <= self.size else 0
        self.top = address + nbytes
        self.high = max(self.high, self.top)
        return address


@dataclass(frozen=True, slots=True)
class _Stripe:
    """A stripe ready for work: slabs of operands and output, and the copies that bring the operands in."""

    inputs: tuple[Slab, ...]
    output: Slab
    copies: tuple[AnyInstruction, ...]


class _Loader:
    """The blocks of one task in the weight buffer: each is loaded when needed, once if all fit together."""

    def __init__(self, emitter: _Emitter, blocks: list[_Placed]) -> None:
        self.emitter, self.blocks = emitter, blocks
        self.resident = sum(p.block.nbytes for p in blocks) <= emitter.ring.size
        self.at: dict[int, tuple[int, int]] = {}
        self.last = -1

    def need(self, b: int) -> list[AnyInstruction]:
        """Return the loads that make block `b` present; its addresses are in `at` then."""
        if b == self.last or (self.resident and b in self.at):
            return []
        self.at[b], loads = self.emitter.load(self.blocks[b])
        self.last = b
        return loads


def emit(plan: Plan, calibration: str, known_answer: KnownAnswer) -> Program:
    """Return the program of a plan.

    Raises:
        CapacityError: one output channel's weights exceed the weight buffer, or a memory is too small.
    """
    return _Emitter(plan).program(calibration, known_answer)


class _Emitter:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.tiling = plan, plan.tiling
        self.target = plan.tiling.target
        self.graph: Graph = plan.tiling.graph
        self.image, self.ring = _Image(), _Ring(self.target.memory["weights"].bytes)
        self.instructions: list[AnyInstruction] = []
        self.layers: list[Layer] = []
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
        size, granule = self.ring.size, self.target.mac.cols
        for limit in (size // BLOCKS, size // 2, size):
            blocks = task.node.op.blocks(task.bound, limit, granule)
            if all(block.nbytes <= limit for block in blocks):
                break
        else:
            need = max(block.nbytes for block in blocks)
            raise CapacityError(f"weight buffer, node {task.node.name!r} ({task.node.op.name}), one output channel",
                                need, size, advice="use a machine with a larger memory.weights")
        return [_Placed(b, self.image.add(b.params), self.image.add(b.weights.tobytes())) for b in blocks]

    # -- instructions ----------------------------------------------------------------------------------------------

    def _task(self, task: Task, index: int) -> None:
        first = len(self.instructions)
        if isinstance(task.node.op, Move):
            homes = [self._home(name) for name in task.operands]
            self.instructions += task.node.op.copies(task.bound, homes, self._home(task.output))
        else:
            self.instructions += self._stripes(task, index)
        self.ready[task.output] = len(self.instructions) - 1
        weights = sum(p.block.weights.size for p in self.blocks[index])
        inputs = tuple(name for name in self.graph.operands(task.node) if name not in self.graph.constants)
        self.layers.append(Layer(task.node.name, task.node.op.name, first, len(self.instructions), inputs,
                                 task.node.output, task.node.op.work(task.bound).macs, weights))

    def _stripes(self, task: Task, index: int) -> Iterator[AnyInstruction]:
        """Yield the instructions of a striped task, for each pair of a stripe and a block in the task's order."""
        op, bound, blocks = task.node.op, task.bound, self.blocks[index]
        total, period = op.rows(bound)
        spans = [(base + lo, base + min(lo + task.stripe, period))
                 for base in range(0, total, period) for lo in range(0, period, task.stripe)]
        loader = _Loader(self, blocks)
        whole: dict[int, Slab] = {}
        if task.blocks_outer:
            for b, placed in enumerate(blocks):
                for count, rows in enumerate(spans):
                    step = self._stage(task, index, rows, b * len(spans) + count, whole)
                    yield from self._one(task, step, loader, b)
                    yield from self._home_copies(task, step, (placed.block.lo, placed.block.hi))
            return
        for count, rows in enumerate(spans):
            step = self._stage(task, index, rows, count, whole)
            for b in range(len(blocks)):
                yield from self._one(task, step, loader, b)
                step = replace(step, copies=())
            if not blocks:
                yield from (*step.copies, *op.lower(bound, Step(step.inputs, step.output)))
            yield from self._home_copies(task, step, None)

    def _stage(self, task: Task, index: int, rows: tuple[int, int], count: int, whole: dict[int, Slab]) -> _Stripe:
        """Return where a stripe's operands and output lie, and the copies that bring the operands in."""
        slabs, copies = [], list[AnyInstruction]()
        for i, wanted in enumerate(task.node.op.input_rows(task.bound, rows)):
            slab, moves = self._operand(task, index, i, wanted, count, whole)
            slabs.append(slab)
            copies += moves
        return _Stripe(tuple(slabs), self._result(task, index, rows, count), tuple(copies))

    def _one(self, task: Task, step: _Stripe, loader: _Loader, b: int) -> Iterator[AnyInstruction]:
        """Yield one stripe against one block: copies in, loads, work."""
        placed = loader.blocks[b]
        yield from step.copies
        yield from loader.need(b)
        yield from task.node.op.lower(task.bound, Step(step.inputs, step.output, placed.block, *loader.at[b]))

    def _operand(self, task: Task, index: int, i: int, wanted: tuple[int, int] | None, count: int,
                 whole: dict[int, Slab]) -> tuple[Slab, list[AnyInstruction]]:
        """Return where rows `wanted` of operand `i` lie, and the copy that brings them there."""
        name, rows = task.operands[i], task.node.op.operand_rows(task.bound)[i]
        lo, hi = wanted or (0, rows)
        pitch = self.tiling.storages[name].nbytes // rows
        space, address = self._home(name)
        if space == Space.SRAM:
            return Slab(address + lo * pitch, lo, hi), []
        if i in whole and (whole[i].lo, whole[i].hi) == (lo, hi):
            return whole[i], []
        buffers = self.plan.staging[index][i]
        buffer = buffers[count % len(buffers)]
        assert (hi - lo) * pitch <= task.buffers[i], f"staging buffer of {name} is too small"
        slab = Slab(buffer, lo, hi)
        if len(buffers) == 1:
            whole[i] = slab
        return slab, [self._flat_copy((space, address + lo * pitch), (Space.SRAM, buffer), (hi - lo) * pitch)]

    def _result(self, task: Task, index: int, rows: tuple[int, int], count: int) -> Slab:
        """Return where to write output `rows`."""
        space, address = self._home(task.output)
        pitch = self._pitch(task)
        if space == Space.SRAM:
            return Slab(address + rows[0] * pitch, *rows)
        assert (rows[1] - rows[0]) * pitch <= task.buffers[-1], f"staging buffer of {task.output} is too small"
        buffers = self.plan.staging[index][-1]
        return Slab(buffers[count % len(buffers)], *rows)

    def _pitch(self, task: Task) -> int:
        """Return the bytes of one output row."""
        return self.tiling.storages[task.output].nbytes // task.node.op.rows(task.bound)[0]

    def _home_copies(self, task: Task, step: _Stripe, channels: tuple[int, int] | None) -> Iterator[AnyInstruction]:
        """Yield the copy that takes a staged stripe home: whole rows, or a slice of their channels."""
        space, address = self._home(task.output)
        if space == Space.SRAM:
            return
        pitch, slab = self._pitch(task), step.output
        home, nbytes = address + slab.lo * pitch, (slab.hi - slab.lo) * pitch
        if channels is None:
            yield self._flat_copy((Space.SRAM, slab.address), (space, home), nbytes)
            return
        lo, hi = channels
        depth = task.bound.output.shape[-1]
        yield copy((Space.SRAM, slab.address + lo), (depth, 1), (space, home + lo), (depth, 1), (nbytes // depth, hi - lo))

    def load(self, placed: _Placed) -> tuple[tuple[int, int], list[AnyInstruction]]:
        """Return the weight-buffer addresses of a block's params and weights, and the loads."""
        block, loads = placed.block, []
        base = self.ring.take(block.nbytes)
        weights = base + aligned(len(block.params))
        for source, target, nbytes in ((placed.params, base, len(block.params)), (placed.weights, weights, block.weights.size)):
            if nbytes:
                loads.append(isa.Load(space=self.constants_space, source=source, source_bytes=nbytes,
                                      target=target, target_bytes=nbytes, packer=0))
        return (base, weights), list(loads)

    def _flat_copy(self, source: Home, target: Home, nbytes: int) -> AnyInstruction:
        return copy(source, (1,), target, (1,), (nbytes,))

    def _home(self, name: str) -> Home:
        space, address = self.tiling.homes[name], self.plan.addresses[name]
        if self.tiling.storages[name].constant or space == Space.SRAM:
            return space, address
        return space, address + self.spill_base

    # -- records ---------------------------------------------------------------------------------------------------

    def program(self, calibration: str, known_answer: KnownAnswer) -> Program:
        for index, task in enumerate(self.tiling.tasks):
            self._task(task, index)
        used = self._used()
        self._check_capacity(used)
        tensors = tuple(self._tensor(name) for name in (*self.graph.inputs, *(n.output for n in self.graph.nodes)))
        return Program(
            name=self.graph.name, target=self.target, instructions=arbitrate(schedule(self.instructions), self.target),
            constants=self.image.array(), tensors=tensors, inputs=self.graph.inputs, outputs=self.graph.outputs,
            layers=tuple(self.layers), used=used, lower_bound=self._lower_bound(), calibration=calibration,
            known_answer=known_answer,
        )

    def _tensor(self, name: str) -> Tensor:
        value, root = self.graph.values[name], self.tiling.root[name]
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

    def _lower_bound(self) -> int:
        """Return the largest sum of scratchpad bytes that live during one task."""
        return max((self._live(t) for t in range(len(self.tiling.tasks))), default=0)

    def _live(self, t: int) -> int:
        task = self.tiling.tasks[t]
        staged = sum(b * c for b, c in zip(task.buffers, task.copies, strict=True))
        return staged + sum(aligned(s.nbytes) for s in self._scratch() if s.first <= t <= s.last)

    def _scratch(self) -> Sequence[Storage]:
        return [s for s in self.tiling.storages.values() if self.tiling.homes[s.name] == Space.SRAM]
