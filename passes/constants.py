"""Constants: every layer's constants in the image, cut into blocks, and the blocks' turns in the weight buffer.

Rules:

1. constants travel in blocks of output channels through the weight buffer, which is filled as a ring: the decoder
   loads ahead of the array as far as there is room; how large a block is at most, the strategy says;
2. when all blocks of a layer fit the buffer together, each is loaded once; else once per stripe;
3. where the constants of a sequence do not fit the weight buffer together, those of the cells' update and some weights
   stay at its bottom, and each other block has one address for all steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nnac import isa
from nnac.array import taken_folds
from nnac.errors import CapacityError
from nnac.graph import Node
from nnac.isa import AnyInstruction, Space
from nnac.ops import Block, Recurrent
from nnac.passes.sparse_packing import Packing, fit_weights, pack_weights
from nnac.plan import Task, Tiling
from nnac.targets import Target
from nnac.types import aligned

if TYPE_CHECKING:
    from nnac.weights.packers import Codec


@dataclass(frozen=True, slots=True)
class Placed:
    """A block in the constants image: addresses of its params, of its packed weights and their table, and lengths."""

    block: Block
    params: int
    weights: int
    packed: int
    packer: int
    table: int
    table_bytes: int

    def loads(self, base: int, space: Space) -> tuple[tuple[int, int], list[AnyInstruction]]:
        """Return the addresses of params and weights in the weight buffer from `base` on, and what loads them."""
        size, count, loads = len(self.block.params), self.block.weights.size, list[AnyInstruction]()
        weights = base + aligned(size)
        if size:
            loads.append(
                isa.Load(space=space, source=self.params, source_bytes=size, target=base, target_bytes=size, packer=0)
            )
        if count:
            loads.append(
                isa.Load(
                    space=space,
                    source=self.weights,
                    source_bytes=self.packed,
                    target=weights,
                    target_bytes=count,
                    packer=self.packer,
                    table=self.table,
                    table_bytes=self.table_bytes,
                )
            )
        return (base, weights), loads


@dataclass(slots=True)
class Cuts:
    """How the nodes of a network were cut and packed for one machine, remembered from one plan to the next.

    Attributes:
        blocks: by node and the parts of the weight buffer.
        codecs: of packers, by the node's name.
        packings: by the node's name and where its blocks begin.
        counted: blocks, their bytes in the weight buffer and in memory, and their loads, by the node and the parts.
        packed: weights so far, those of different cuts apart.
        folds: of a convolution's block, that the array takes, by the node's name and the block's channels.
    """

    target: Target
    blocks: dict[tuple[Node, int], list[Block]] = field(default_factory=dict)
    codecs: dict[str, Sequence[Codec]] = field(default_factory=dict)
    packings: dict[tuple[object, ...], Packing] = field(default_factory=dict)
    folds: dict[tuple[str, int, int], int] = field(default_factory=dict)
    counted: dict[tuple[Node, int], tuple[int, int, int, int]] = field(default_factory=dict)
    packed: int = 0

    def cut(self, task: Task, parts: int) -> list[Block]:
        """Return a task's blocks: each takes a part of the weight buffer, or all of it where a channel needs it.

        Raises:
            CapacityError: one output channel exceeds it.
        """
        key = task.node, parts
        if key not in self.blocks:
            self.blocks[key] = self._cut(task, parts)
        return self.blocks[key]

    def _cut(self, task: Task, parts: int) -> list[Block]:
        size, kept = self.target.memory["weights"].bytes, task.node.op.kept(task.bound)
        room = max(0, size - kept)
        for limit in (room // parts, room // 2, room):
            blocks: list[Block] = task.node.op.blocks(task.bound, limit, self.target.mac.cols)
            if all(block.nbytes <= limit for block in blocks if block.weights.size or not kept):
                return blocks
        raise CapacityError(
            f"weight buffer, node {task.node.name!r} ({task.node.op.name}), one output channel",
            kept + max(block.nbytes for block in blocks if block.weights.size or not kept),
            size,
            advice="use a machine with a larger memory.weights",
        )

    def packing(self, task: Task, blocks: Sequence[Block]) -> Packing:
        """Return the weights of all blocks as bytes."""
        name = task.node.name
        if name not in self.codecs:
            self.codecs[name] = fit_weights(blocks, self.target)
        key = (name, *(block.lo for block in blocks))
        if key not in self.packings:
            self.packings[key] = pack_weights(blocks, self.target, self.codecs[name])
            self.packed += sum([block.weights.size for block in blocks])
        return self.packings[key]

    def key(self, tiling: Tiling) -> object:
        """Return what a tiling's blocks are, for comparison."""
        return tuple([block.lo for task in tiling.tasks for block in self.cut(task, tiling.strategy.blocks)])

    def loads(self, tiling: Tiling) -> tuple[int, int]:
        """Return the bytes and the count of the loads that a tiling takes at least (see `Loader`); raises as `cut`."""
        nbytes, count, size = 0, 0, self.target.memory["weights"].bytes
        for group in tiling.groups:
            cuts = [self._counted(tiling.tasks[t], tiling.strategy.blocks) for t in group]
            blocks, used, loaded, loads = map(sum, zip(*cuts, strict=True))
            last = tiling.tasks[group[-1]]
            again = used > size and blocks > 1 and not last.blocks_outer and not isinstance(last.node.op, Recurrent)
            nbytes += loaded * (last.rounds if again else 1)
            count += loads * (last.rounds if again else 1)
        return nbytes, count

    def _counted(self, task: Task, parts: int) -> tuple[int, int, int, int]:
        """Return a task's blocks, their bytes in the weight buffer and in memory, and the loads that bring them."""
        key = task.node, parts
        if key not in self.counted:
            blocks = self.cut(task, parts)
            packed = [len(data) for data in self.packing(task, blocks).stripes]
            params = [len(block.params) for block in blocks]
            loads = sum(map(bool, packed)) + sum(map(bool, params))
            nbytes = sum([block.nbytes for block in blocks])
            self.counted[key] = len(blocks), nbytes, sum(packed) + sum(params), loads
        return self.counted[key]

    def nbytes(self, tasks: Iterable[Task], parts: int) -> int:
        """Return the bytes that the blocks of some tasks take in memory, without tables; raises as `cut`."""
        cuts = [(task, self.cut(task, parts)) for task in tasks]
        weights = sum(len(data) for task, blocks in cuts for data in self.packing(task, blocks).stripes)
        return weights + sum(len(block.params) for _, blocks in cuts for block in blocks)

    def taken(self, task: Task, block: Block) -> int:
        """Return the folds of a convolution's block that the array takes."""
        key = task.node.name, block.lo, block.hi
        if key not in self.folds:
            self.folds[key] = taken_folds(block.weights.reshape(block.hi - block.lo, -1), self.target.mac)
        return self.folds[key]


@dataclass(slots=True)
class Image:
    """The constants image under construction."""

    parts: list[bytes] = field(default_factory=list)
    top: int = 0

    def add(self, data: bytes) -> int:
        """Return the address of `data`."""
        address = self.top
        padding = aligned(len(data)) - len(data)
        self.parts += [data, bytes(padding)]
        self.top += len(data) + padding
        return address

    def add_blocks(self, blocks: Sequence[Block], packing: Packing) -> list[Placed]:
        """Return where the blocks of a layer lie, their table in front of them."""
        table = self.add(packing.table) if packing.table else 0
        return [
            Placed(
                block,
                self.add(block.params),
                self.add(data),
                len(data),
                packing.packer,
                table,
                len(packing.table),
            )
            for block, data in zip(blocks, packing.stripes, strict=True)
        ]

    def array(self) -> Any:
        """Return all bytes."""
        return np.frombuffer(b"".join(self.parts), dtype=np.uint8)


@dataclass(slots=True)
class Ring:
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


Key = tuple[int, int]
"""A block: its task, and its number there."""


class Loader:
    """Blocks of one task or cascade in the weight buffer: each is loaded when needed, once if all fit together.

    Attributes:
        stay: blocks that are loaded once.
        places: addresses of those that lie at the same one whenever they are loaded.
    """

    def __init__(self, ring: Ring, space: Space, blocks: Mapping[Key, Placed], rounds: Collection[Key]) -> None:
        self.ring, self.space, self.blocks = ring, space, blocks
        total = sum(p.block.nbytes for p in blocks.values())
        self.ring.reserve(total)
        self.at: dict[Key, tuple[int, int]] = {}
        self.last: Key | None = None
        self.stay: Collection[Key] = blocks
        self.places: dict[Key, int] = {}
        if total > self.ring.size:
            self.stay = self._keep(sorted(rounds, key=lambda key: blocks[key].block.weights.size > 0))
            self._fix([key for key in rounds if key not in self.stay])

    def _keep(self, keys: Sequence[Key]) -> Collection[Key]:
        """Give the first blocks the bottom of the buffer and return them; two of the largest fit above weights."""
        largest = max(p.block.nbytes for p in self.blocks.values())
        for count, key in enumerate(keys):
            block = self.blocks[key].block
            if self.ring.bottom + block.nbytes + largest * (2 if block.weights.size else 1) > self.ring.size:
                return keys[:count]
            self.places[key] = self.ring.keep(block.nbytes)
        return keys

    def _fix(self, keys: Sequence[Key]) -> None:
        """Give blocks places round and round; the last one lies beside the first, which comes behind it again."""
        for key in keys:
            nbytes, first = self.blocks[key].block.nbytes, keys[0]
            if key == keys[-1] != first and self.ring.top + nbytes > self.ring.size:
                self.ring.top = self.places[first] + self.blocks[first].block.nbytes
            self.places[key] = self.ring.take(nbytes)

    def need(self, key: Key) -> tuple[tuple[AnyInstruction, ...], tuple[int, int]]:
        """Return the loads that make a block present, and its addresses."""
        if key == self.last or (key in self.stay and key in self.at):
            return (), self.at[key]
        placed = self.blocks[key]
        base = self.places[key] if key in self.places else self.ring.take(placed.block.nbytes)
        self.at[key], loads = placed.loads(base, self.space)
        self.last = self.last if key in self.stay else key
        return tuple(loads), self.at[key]
