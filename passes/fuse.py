"""Fuse: a Relu or Clip becomes the clamp of the operator in front of it.

Rules, on the float graph:

1. the producer is one of `CLAMPING`, and nothing else reads its output (but moves, up
   to the activation);
2. its clamp and the activation's interval intersect; the producer then makes the activation's output value;
3. an identity activation and a clamp that is idle behind a narrower one vanish the same way;
4. a value whose quantization is pinned stays, unless the activation's output is pinned alike.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from nnac.graph import Draft, Graph, Node, sort_nodes
from nnac.ops import (
    Activation,
    AveragePool,
    Conv,
    Dense,
    Div,
    Extreme,
    MatMul,
    MaxPool,
    Mul,
    Norm,
    Select,
    Sum,
)
from nnac.passes.through import alone, give, maker

CLAMPING = Conv | Dense | MatMul | Norm | Sum | Mul | Div | Extreme | Select | AveragePool | MaxPool


def fuse(graph: Graph) -> Graph:
    """Return the graph with clamping activations fused into their producers."""
    draft = graph.draft()
    made, users = draft.producers(), draft.users()
    for node in sort_nodes(list(draft.nodes.values())):
        limits = interval(node)
        pin = draft.values[node.output].type.quant
        if limits is None or not alone(draft, node.inputs[0], users, pin):
            continue
        producer, moves = maker(draft, node.inputs[0], made, users, pin)
        if producer is None or not isinstance(producer.op, CLAMPING):
            continue
        clamp = _intersect(producer.op.clamp, limits)
        if clamp is not None:
            _absorb(draft, producer, moves, node, clamp)
            made = draft.producers()
    return draft.freeze()


def interval(node: Node) -> tuple[float, float] | None:
    """Return the interval that an activation clamps to, if that is all it does."""
    match node.op:
        case Activation(kind="relu"):
            return 0.0, inf
        case Activation(kind="clip", params=(low, high)):
            return low, high
        case Activation(kind="identity"):
            return -inf, inf
    return None


def _intersect(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float] | None:
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return (low, high) if low <= high else None


def _absorb(draft: Draft, producer: Node, moves: list[Node], node: Node, clamp: tuple[float, float]) -> None:
    del draft.nodes[node.name]
    producer = give(draft, producer, moves, draft.values[node.output])
    draft.update(producer, op=replace(producer.op, clamp=clamp))
