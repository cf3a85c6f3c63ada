"""The plan: where every tensor of an integer graph lives and in which stripes every operator works.

`passes.tile` decides homes and stripes, `passes.place` gives addresses, `passes.emit` turns the plan into
instructions. A *storage* is a run of bytes that one or more values (a value and its reshapes) share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nnac.graph import Graph, Node
from nnac.isa import Space
from nnac.ops import Bound
from nnac.targets import Target


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of one tensor (with all its reshapes), alive from the task that writes first to the last that reads.

    Attributes:
        name: the value that owns the bytes.
        first, last: task indices; -1 is before the first task.
        constant: the bytes come from the blob's constants.
    """

    name: str
    nbytes: int
    first: int
    last: int
    constant: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One node at work.

    Attributes:
        operands: storages of the scratchpad operands.
        output: storage of the output.
        stripe: output rows per stripe (0 for a move, which is not striped).
        buffers: bytes of the staging buffers in the scratchpad, one entry per operand and then the output; 0 where the
            tensor lies in the scratchpad itself. A staged tensor that is cut has two such buffers, used in turn.
        copies: 1 or 2, per entry of `buffers`.
    """

    node: Node
    bound: Bound
    operands: tuple[str, ...]
    output: str
    stripe: int = 0
    buffers: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tiling:
    """Homes and stripes, still without addresses."""

    graph: Graph
    target: Target
    tasks: tuple[Task, ...]
    storages: Mapping[str, Storage]
    root: Mapping[str, str]
    homes: Mapping[str, Space]


@dataclass(frozen=True, slots=True)
class Plan:
    """A tiling with addresses.

    Attributes:
        addresses: byte address of every storage in its home.
        staging: per task, per entry of `Task.buffers`, the addresses of its staging buffers.
        constants: bytes at the start of the constants memory that hold constant operands; weights follow.
        used: bytes used per memory.
    """

    tiling: Tiling
    addresses: Mapping[str, int]
    staging: tuple[tuple[tuple[int, ...], ...], ...]
    used: Mapping[Space, int]
    constants: int
