"""Magnitude: the root of a sum of squares becomes one operator.

A square spans twice the range of what is squared, in decibels: kept as an integer of its own, it loses all but the
loudest. The operator sums the squares exactly and rounds the root once.

Rules, on the float graph:

1. the root is a Sqrt, perhaps of the sum plus a number that is not negative (one function of both, see `compose`);
2. each operand of the sum, which has no clamp and no minus, is a square: Pow with exponent 2, or a value times itself;
3. the sum may have one operand: then the root is that of its square.
"""

from __future__ import annotations

from nnac.graph import Graph, Node
from nnac.ops import Activation, Magnitude, Mul, Sum
from nnac.ops.base import UNBOUNDED


def magnitude(graph: Graph) -> Graph:
    """Return the graph with magnitudes recognised."""
    draft, made = graph.draft(), {node.output: node for node in graph.nodes}
    for node in graph.nodes:
        offset = _root_of(node)
        above = made.get(node.inputs[0])
        if offset is None or above is None:
            continue
        squared = [_squared(made.get(name)) for name in _summed(above)]
        op = Magnitude(offset=offset)
        inputs = tuple(name for name in squared if name is not None and name not in graph.constants)
        if len(inputs) == len(squared) and not op.problems([graph.values[name].shape for name in inputs]):
            draft.update(node, op=op, inputs=inputs)
    return draft.freeze()


def _root_of(node: Node) -> float | None:
    """Return what is added before the root is taken, if the node takes a root."""
    match node.op:
        case Activation(kind="sqrt"):
            return 0.0
        case Activation(kind="composed", params=(("affine", (1.0, offset), (0,)), ("sqrt", (), (1,)))):
            return float(offset) if offset >= 0 else None
    return None


def _summed(node: Node) -> tuple[str, ...]:
    """Return what a sum adds up; of anything else, its result."""
    match node.op:
        case Sum(clamp=clamp, signs=signs) if clamp == UNBOUNDED and min(signs) > 0:
            return node.inputs
    return (node.output,)


def _squared(node: Node | None) -> str | None:
    """Return the value that a node squares."""
    match node:
        case Node(op=Activation(kind="pow", params=(2.0,)), inputs=(name,)):
            return name
        case Node(op=Mul(clamp=clamp), inputs=(name, other)) if name == other and clamp == UNBOUNDED:
            return name
    return None
