"""The inside of recurrent layers in float: what their states reach between the first step and the last.

A float model shows the last state only; calibration needs them all. They follow from tensors that it does show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from nnac.errors import ModelError
from nnac.graph import Graph, Node
from nnac.ops import Dense, Recurrent, Reshape, Slice, Transpose
from nnac.ops.conv import BIAS, INPUT, WEIGHT
from nnac.types import Array


def inner_states(graph: Graph, values: Mapping[str, Array]) -> dict[str, Array]:
    """Return, by graph value name, hidden values and inner states (T, B, H) of every recurrent layer at every step.

    Args:
        graph: a float graph.
        values: ONNX tensors of one run, by name.

    Raises:
        ModelError: a layer reads something that does not follow from them.
    """
    found: dict[str, Array] = {}
    for node, _, hidden, inner in _unrolled(graph, values):
        found |= {node.output: hidden} | dict.fromkeys(node.more, inner)
    return found


def seen_hidden(graph: Graph, values: Mapping[str, Array]) -> dict[str, Array]:
    """Return, by node name, the hidden values (groups, T * B, H) that every recurrent layer's weights multiply.

    Args and Raises: as for `inner_states`.
    """
    return {node.name: node.op.seen(inputs, hidden) for node, inputs, hidden, _ in _unrolled(graph, values)}


def _unrolled(graph: Graph, values: Mapping[str, Array]) -> Iterator[tuple[Node, list[Array], Array, Array]]:
    """Yield every recurrent layer with its inputs, and its hidden values and inner states at every step."""
    evaluation = _Evaluation(graph, values)
    for node in graph.nodes:
        if isinstance(node.op, Recurrent):
            inputs = [evaluation.value(name) for name in node.inputs]
            hidden, inner = node.op.real(inputs)
            evaluation.known |= {node.output: hidden}
            evaluation.known |= {name: inner[0 if node.op.reverse else -1] for name in node.more}
            yield node, inputs, hidden, inner


class _Evaluation:
    """Float values in device layout, as far as they are needed."""

    def __init__(self, graph: Graph, values: Mapping[str, Array]) -> None:
        self.graph, self.values = graph, values
        self.made = {name: node for node in graph.nodes for name in node.outputs}
        self.known: dict[str, Array] = {}

    def value(self, name: str) -> Array:
        if name in self.graph.constants:
            return self.graph.constants[name]
        if name not in self.known:
            self.known[name] = self._found(name)
        return self.known[name]

    def _found(self, name: str) -> Array:
        value = self.graph.values[name]
        if value.origin is not None and value.origin.name in self.values:
            return value.origin.from_onnx(self.values[value.origin.name], value.shape)
        return self._computed(self.made[name], name)

    def _computed(self, node: Node, name: str) -> Array:
        match node.op:
            case Dense():
                x, weight, bias = (self.value(node.inputs[i]) for i in (INPUT, WEIGHT, BIAS))
                return np.asarray(x @ weight.T + bias)
            case Reshape(shape=shape):
                return self.value(node.inputs[0]).reshape(shape)
            case Transpose(perm=perm):
                return self.value(node.inputs[0]).transpose(perm)
            case Slice():
                return np.asarray(node.op.reference(None, [self.value(node.inputs[0])]))  # type: ignore[arg-type]
        raise ModelError(f"node {node.name!r} ({node.op.name}): its result {name!r} cannot be observed in float")
