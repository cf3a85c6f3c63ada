"""Collapse: several moves in a row become one copy, or none.

A chain of reshapes, transposes, slices and takes is a fixed choice of places, whatever it is written as. Where that
choice is one of indices along each axis of the tensor at the chain's head (a channel shuffle and split of channels last
is the picture of it: reshape, transpose, reshape, slice, transpose), one slice or take does it, from the farthest head
for which this holds. A head that others read too stays, and so does a tensor between that alone is known to the model:
its range is measured. The pass is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from nnac.graph import Draft, Graph, Node
from nnac.ops import Reshape, Slice, Take
from nnac.ops.take import mover, separable
from nnac.passes.through import MOVES, moved

LONGEST = 8


def collapse(graph: Graph) -> Graph:
    """Return the graph with chains of moves collapsed."""
    draft, made = graph.draft(), {node.output: node for node in graph.nodes}
    for node in graph.nodes:
        if isinstance(node.op, MOVES):
            _collapse(draft, node, made)
    return draft.freeze()


def _collapse(draft: Draft, node: Node, made: Mapping[str, Node]) -> None:
    moves = [node]
    while (above := made.get(moves[0].inputs[0])) is not None and isinstance(above.op, MOVES) and len(moves) < LONGEST:
        moves.insert(0, above)
    for first in range(len(moves) - 1):
        found = _one_for(draft, moves[first:])
        if found is not None and not _forgets(draft, moves[first:]):
            draft.update(node, op=found, inputs=moves[first].inputs)
            return


def _forgets(draft: Draft, moves: list[Node]) -> bool:
    """Tell whether what the moves' tensors stand for, and so their range, is known between their ends only."""
    head, *between, last = (draft.values[n].origin for n in (moves[0].inputs[0], *(move.output for move in moves)))
    return head is None and last is None and any(origin is not None for origin in between)


def _one_for(draft: Draft, moves: list[Node]) -> Reshape | Slice | Take | None:
    """Return the one move that does what several do, if that copies less often."""
    shape = draft.values[moves[0].inputs[0]].shape
    if len(shape) != len(draft.values[moves[-1].output].shape):
        return None
    picks = separable(moved(np.arange(prod(shape)).reshape(shape), moves), shape)
    if picks is None:
        return None
    op = mover(picks, shape)
    copied = sum(not isinstance(move.op, Reshape) for move in moves)
    return op if not op.problems([shape]) and int(not isinstance(op, Reshape)) < copied else None
