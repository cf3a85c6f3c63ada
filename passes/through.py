"""Looking through moves: values that an operator makes, behind reshapes, transposes, slices and takes of them alone.

What is done to every entry, or to every channel, behind such moves can as well be done before them, by the operator
itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from nnac.graph import Draft, Node, Value
from nnac.ops import Reshape, Slice, Take, Transpose
from nnac.types import Array, Quant

MOVES = Reshape | Transpose | Slice | Take


def maker(
    draft: Draft, name: str, made: Mapping[str, Node], users: Mapping[str, list[Node]], pin: Quant | None = None
) -> tuple[Node | None, list[Node]]:
    """Return what computes a value, and the moves from there to it; the tensors between may vanish (see `alone`)."""
    moves: list[Node] = []
    node = made.get(name)
    while node is not None and isinstance(node.op, MOVES) and alone(draft, node.inputs[0], users, pin):
        moves.insert(0, node)
        node = made.get(node.inputs[0])
    return node, moves


def alone(draft: Draft, name: str, users: Mapping[str, list[Node]], pin: Quant | None = None) -> bool:
    """Tell whether a value may vanish: one reader, no output, and no pinned quantization other than `pin`."""
    return len(users[name]) == 1 and name not in draft.outputs and draft.values[name].type.quant in (None, pin)


def moved(array: Array, moves: Sequence[Node]) -> Array:
    """Return an array after the moves."""
    for move in moves:
        match move.op:
            case Reshape(shape):
                array = array.reshape(shape)
            case Transpose(perm):
                array = array.transpose(perm)
            case Slice(starts, steps, sizes):
                cuts = zip(starts, steps, sizes, strict=True)
                array = array[np.ix_(*(start + step * np.arange(n) for start, step, n in cuts))]
            case Take(picks):
                array = array[np.ix_(*(p or range(n) for p, n in zip(picks, array.shape, strict=True)))]
    return array


def channels_behind(shape: Sequence[int], moves: Sequence[Node]) -> Array | None:
    """Return, per entry of the last axis of a tensor of `shape`, where on the last axis it ends behind the moves.

    None where one channel ends in several. What the moves drop counts as the first channel.
    """
    ends = moved(np.broadcast_to(np.arange(shape[-1]), tuple(shape)), moves)
    places = np.broadcast_to(np.arange(ends.shape[-1]), ends.shape)
    found = np.zeros(shape[-1], dtype=np.int64)
    found[ends.ravel()] = places.ravel()
    return found if np.array_equal(found[ends], places) else None


def give(draft: Draft, producer: Node, moves: Sequence[Node], result: Value) -> Node:
    """Let the moves (or the producer, if there are none) make `result`; return the producer.

    The tensors between stand for what `result` stands for.
    """
    for move in reversed(moves):
        draft.update(move, output=result.name)
        between = draft.values[move.inputs[0]]
        step = ("transpose", move.op.perm) if isinstance(move.op, Transpose) else ("reshape", result.shape)
        known = result.origin is not None and isinstance(move.op, Transpose | Reshape)
        origin = result.origin.after(*step) if known and result.origin is not None else None
        kind = replace(between.type, quant=result.type.quant)
        result = draft.values[between.name] = replace(between, type=kind, origin=origin)
    return producer if moves else draft.update(producer, output=result.name)
