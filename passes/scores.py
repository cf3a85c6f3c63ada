"""Scores: what a softmax reads in attention, and the masks that are added to it.

A softmax sees differences only, and what lies more than `VANISHED` under the largest value of its row has no part in
the result. So a mask need not reach farther than that under the smallest score, and scores with a mask fit 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from nnac.calibration import Range
from nnac.graph import Draft, Graph, Node
from nnac.ops import MatMul, Softmax, Sum
from nnac.stages import SHARING
from nnac.types import Array

VANISHED = 20.0
"""exp(-20) is 2e-9, under half a step of any output."""


def attention_scores(graph: Graph) -> Iterator[str]:
    """Yield the values between a product of activations and the softmax that reads it, through sums and moves."""
    made = {node.output: node for node in graph.nodes}
    for node in graph.nodes:
        if isinstance(node.op, Softmax):
            seen = _above(node.inputs[0], made)
            if any(name in made and isinstance(made[name].op, MatMul) for name in seen):
                yield from (name for name in seen if name in made)


def attention_weights(graph: Graph) -> Iterator[str]:
    """Yield what softmaxes make for a product of activations, through moves."""
    made = {node.output: node for node in graph.nodes}
    for node in graph.nodes:
        for name in node.inputs if isinstance(node.op, MatMul) else ():
            while (above := made.get(name)) is not None and above.op.name in SHARING:
                name = above.inputs[0]
            if above is not None and isinstance(above.op, Softmax):
                yield name


def _above(name: str, made: Mapping[str, Node]) -> list[str]:
    """Return a value and those that it comes from through sums and moves."""
    waiting, seen = [name], dict.fromkeys([name])
    while waiting:
        node = made.get(waiting.pop())
        if node is not None and (isinstance(node.op, Sum) or node.op.name in SHARING):
            waiting += [each for each in node.inputs if each not in seen]
            seen.update(dict.fromkeys(node.inputs))
    return list(seen)


def bound_masks(graph: Graph, ranges: Mapping[str, Range]) -> tuple[Graph, Mapping[str, Range]]:
    """Return the graph with masks cut where they have no influence, and the ranges of what they are added to."""
    draft, users, known = graph.draft(), graph.draft().users(), dict(ranges)
    for node in graph.nodes:
        reach = _reach(graph, node, known)
        only_softmax = all(isinstance(reader.op, Softmax) for reader in users[node.output])
        if reach is None or not users[node.output] or not only_softmax or node.output in graph.outputs:
            continue
        place, mask, scores = reach
        floor = scores.low - scores.high - VANISHED
        origin = graph.values[node.output].origin
        if float(mask.min()) < floor and origin is not None:
            bounded = np.maximum(mask, np.float32(floor))
            _replace(draft, node, place, bounded)
            known[origin.name] = Range(scores.low + floor, scores.high + max(0.0, float(bounded.max())))
    return draft.freeze(), known


def _reach(graph: Graph, node: Node, ranges: Mapping[str, Range]) -> tuple[int, Array, Range] | None:
    """Return of a sum of scores and a constant: where the constant stands, the constant, the range of the scores."""
    fixed = [i for i, name in enumerate(node.inputs) if name in graph.constants]
    if not isinstance(node.op, Sum) or node.op.signs != (1, 1) or len(fixed) != 1:
        return None
    origin = graph.values[node.inputs[1 - fixed[0]]].origin
    if origin is None or origin.name not in ranges:
        return None
    return fixed[0], graph.constants[node.inputs[fixed[0]]], ranges[origin.name]


def _replace(draft: Draft, node: Node, place: int, mask: Array) -> None:
    inputs = list(node.inputs)
    inputs[place] = draft.add_constant(f"{inputs[place]}.bounded", mask)
    draft.nodes[node.name] = replace(node, inputs=tuple(inputs))
