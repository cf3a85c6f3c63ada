"""Conditions made of several: And, Or, Xor and Not become choices inside choices, each by one comparison.

Rules, for a Where (or a Cast of truth values to float32, which is a Where of 1 and 0):

1. Where(not c, x, y) is Where(c, y, x);
2. Where(a and b, x, y) is Where(a, Where(b, x, y), y), and Where(a or b, x, y) is Where(a, x, Where(b, x, y));
3. a xor b is that their numbers, 0 and 1, are not equal (of float32, since opset 11).
"""

from __future__ import annotations

from collections.abc import Iterator, Set

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnac.frontend.rewriter import drop_unread
from nnac.frontend.walk import stem

SPLIT = frozenset({"And", "Or", "Xor", "Not"})
EQUAL_FLOATS = 11
"""Opset since which Equal compares float32."""
MOST = 4096
"""Nodes that may come to those of the model: conditions that share their parts could double with every operator."""


def split_conditions(model: onnx.ModelProto) -> None:
    """Rewrite choices by conditions of conditions; results keep their names. The import reports what is left."""
    graph = model.graph
    if all(node.op_type not in ("And", "Or", "Xor") for node in graph.node):
        return
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 1)
    splitter, limit = _Splitter(graph, SPLIT if opset >= EQUAL_FLOATS else SPLIT - {"Xor"}), len(graph.node) + MOST
    waiting, done = list(reversed(graph.node)), list[onnx.NodeProto]()
    while waiting:
        node = waiting.pop()
        parts = list(splitter.parts(node)) if len(waiting) + len(done) < limit else []
        waiting += reversed(parts)
        done += [] if parts else [onnx.NodeProto.FromString(node.SerializeToString())]
    del graph.node[:]
    graph.node.extend(done)
    drop_unread(graph)


class _Splitter:
    """Knows what makes each tensor, and stores constants."""

    def __init__(self, graph: onnx.GraphProto, known: Set[str]) -> None:
        self.graph, self.known = graph, known
        self.made = {node.output[0]: node for node in graph.node if node.output}
        self.count = 0

    def parts(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Yield what stands for a node, in order; nothing if it stays."""
        condition = self.made.get(node.input[0]) if node.input else None
        if condition is None or condition.op_type not in self.known:
            return
        if node.op_type == "Cast" and helper.get_attribute_value(node.attribute[0]) == onnx.TensorProto.FLOAT:
            sides = [self._number(node, value) for value in (1.0, 0.0)]
            yield helper.make_node("Where", [node.input[0], *sides], node.output, stem(node))
        elif node.op_type == "Where":
            yield from self._choice(node, condition)

    def _choice(self, node: onnx.NodeProto, condition: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        _, x, y = node.input
        if condition.op_type == "Not":
            yield self._where(node, condition.input[0], y, x)
            return
        if condition.op_type == "Xor":
            numbers = [self._fresh(node) for _ in condition.input]
            for source, number in zip(condition.input, numbers, strict=True):
                yield helper.make_node("Cast", [source], [number], number, to=onnx.TensorProto.FLOAT)
            same = self._fresh(node)
            yield helper.make_node("Equal", numbers, [same], same)
            yield self._where(node, same, y, x)
            return
        a, b = condition.input
        inner = self._fresh(node)
        yield helper.make_node("Where", [b, x, y], [inner], inner)
        yield self._where(node, a, *((inner, y) if condition.op_type == "And" else (x, inner)))

    def _where(self, node: onnx.NodeProto, condition: str, x: str, y: str) -> onnx.NodeProto:
        return helper.make_node("Where", [condition, x, y], node.output, stem(node))

    def _fresh(self, node: onnx.NodeProto) -> str:
        self.count += 1
        return f"{node.output[0]}.part{self.count}"

    def _number(self, node: onnx.NodeProto, value: float) -> str:
        name = self._fresh(node)
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name
