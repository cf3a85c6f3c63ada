"""The plan: where every tensor of an integer graph lives and in which stripes every operator works.

`passes.tile` decides homes and stripes, `passes.place` gives addresses, `passes.emit` turns the plan into
instructions. A *storage* is a run of bytes that one or more values (a value and its reshapes) share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnac.graph import Graph, Node
from nnac.isa import Space
from nnac.ops import UNSTRIPED, Bound
from nnac.targets import Target


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of one tensor (with all its reshapes), alive from the task that writes first to the last that reads.

    Attributes:
        name: the value that owns the bytes.
        label: the ONNX tensor, for messages.
        first, last: task indices; -1 is before the first task.
        readers: how many operands read it.
        constant: the bytes come from the blob's constants.
    """

    name: str
    label: str
    nbytes: int
    first: int
    last: int
    readers: int = 0
    constant: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One node at work.

    Attributes:
        operands: storages of the scratchpad operands.
        output: storage of the output.
        more: storages of the other outputs.
        stripe: output rows per stripe (0 for a move, which is not striped; in a cascade that of the last task counts).
        buffers: bytes of the staging buffers in the scratchpad, one entry per operand, then the output, the other
            outputs, and the operator's working memory; 0 where the tensor lies in the scratchpad itself. A staged
            tensor that is cut has two such buffers, used in turn; the output of a task inside a cascade has one, which
            the next task reads.
        copies: 1 or 2, per entry of `buffers`.
        blocks_outer: the outer loop runs over blocks of constants, the inner over stripes (else the other way round).
    """

    node: Node
    bound: Bound
    operands: tuple[str, ...]
    output: str
    more: tuple[str, ...] = ()
    stripe: int = 0
    buffers: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()
    blocks_outer: bool = False

    @property
    def rounds(self) -> int:
        """How many stripes it takes; 1 for one that works from home to home."""
        if isinstance(self.node.op, UNSTRIPED):
            return 1
        total, period = self.node.op.rows(self.bound)
        return int(total // period * -(-period // self.stripe))

    @property
    def storages(self) -> tuple[str, ...]:
        """All storages that it touches, in the order of `buffers`."""
        return (*self.operands, self.output, *self.more)


@dataclass(frozen=True, slots=True)
class Strategy:
    """Choices of the planner that only the timing of the whole program can rank.

    Attributes:
        victim: what leaves the scratchpad first: the "largest" tensor, or the "cheapest", which moves the fewest bytes
            for its size.
        cascade: a tensor that only the next task reads may go through the scratchpad stripe by stripe, never whole,
            instead of leaving it.
        stripes: a staged tensor is cut into at least this many stripes, so that its transfer can hide behind work.
        blocks: a block of constants takes at most this part of the weight buffer (more where one channel needs it), so
            that its load can hide behind work.
        share: part of the scratchpad that decides which tensors stay; less leaves more room for stripes.
    """

    victim: str = "largest"
    cascade: bool = False
    stripes: int = 2
    blocks: int = 2
    share: float = 1.0


STRATEGIES = (Strategy(), Strategy("cheapest"), Strategy(cascade=True))
"""What the compiler tries first."""
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "stripes": (2, 4, 8, 16),
    "blocks": (1, 2, 4, 8, 16),
    "share": (0.6, 0.8, 1.0),
}
"""What it then tries for the fastest ones."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Homes and stripes, still without addresses.

    Attributes:
        root: the value that owns each value's bytes.
        homes: the memory of every storage but the streamed ones, which are never whole.
        groups: ranges of tasks that work stripe by stripe together: cascades, and single tasks.
    """

    graph: Graph
    target: Target
    tasks: tuple[Task, ...]
    storages: Mapping[str, Storage]
    root: Mapping[str, str]
    homes: Mapping[str, Space]
    groups: tuple[range, ...]
    strategy: Strategy

    @property
    def key(self) -> object:
        """What the placement depends on."""
        cut = tuple([(t.stripe, t.buffers, t.copies, t.blocks_outer) for t in self.tasks])
        return cut, tuple(self.homes.items()), self.groups

    def lifetimes(self) -> dict[str, tuple[int, int]]:
        """Return the first and last group during which each storage is alive; one past the last for outputs."""
        turn = {t: g for g, group in enumerate(self.groups) for t in group}
        end = len(self.groups)
        return {
            s.name: (turn.get(s.first, -1), turn.get(s.last, end if s.last >= 0 else -1))
            for s in self.storages.values()
        }

    @property
    def spills(self) -> bool:
        """Whether any tensor is staged through the scratchpad instead of living there."""
        return any(self.homes.get(s.name) != Space.SRAM for s in self.storages.values() if not s.constant)


@dataclass(frozen=True, slots=True)
class Plan:
    """A tiling with addresses.

    Attributes:
        addresses: byte address of every storage in its home.
        staging: per task, per entry of `Task.buffers`, the addresses of its staging buffers.
        constants: bytes at the start of the constants memory that hold constant operands; weights follow.
        used: bytes used per memory.
        lower_bound: bytes of the largest set of scratchpad tensors and buffers that live at one time.
    """

    tiling: Tiling
    addresses: Mapping[str, int]
    staging: tuple[tuple[tuple[int, ...], ...], ...]
    used: Mapping[Space, int]
    constants: int
    lower_bound: int
