"""The tool of rewrites in ONNX itself: nodes that are replaced by simpler ones, whose tensors get names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnac.frontend.walk import subgraphs, walk
from nnac.types import Array

Shape = tuple[int, ...]
AXES_ARE_INPUTS = {"ReduceSum": 13, "ReduceMean": 18, "ReduceMax": 18}
"""Opset since which reductions take their axes as an input."""


@dataclass(slots=True)
class Rewriter:
    """The main graph while single nodes of it are replaced; new tensors are named after the node's first output.

    Attributes:
        opset: of the default domain.
        shapes, constants: what is known of the tensors by name.
        taken: names that new tensors must not have.
        read: tensors that nodes read, and the graph's outputs.
        nodes, stored: what the graph will have.
        stem: what new names begin with.
    """

    opset: int
    shapes: Mapping[str, Shape]
    constants: Mapping[str, Array]
    taken: set[str]
    read: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    stem: str = ""

    def add(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return its output, which is `output` where that is an output of the node that is rewritten."""
        name = output or self.fresh(op_type.lower())
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def constant(self, array: Any, dtype: str = "float32") -> str:
        """Return the name of a new constant."""
        name = self.fresh("constant")
        self.stored.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def reduce(self, op_type: str, x: str, axes: Sequence[int], keepdims: int) -> str:
        """Add a reduction over some axes."""
        if self.opset >= AXES_ARE_INPUTS[op_type]:
            return self.add(op_type, x, self.constant(axes, "int64"), keepdims=keepdims)
        return self.add(op_type, x, axes=list(axes), keepdims=keepdims)

    def unused(self, names: Iterable[str]) -> bool:
        """Tell whether nothing reads these tensors."""
        return self.read.isdisjoint(names)

    def fresh(self, label: str) -> str:
        name, count = f"{self.stem}.{label}", 1
        while name in self.taken:
            count += 1
            name = f"{self.stem}.{label}.{count}"
        self.taken.add(name)
        return name


@dataclass(frozen=True, slots=True)
class Rewrite:
    """How one operator is rewritten.

    Attributes:
        apply: adds the parts, the last of which computes the output, and tells its name; None leaves the node alone.
        parts: the operators that it becomes.
        sentence: what a use must be so that it can be rewritten; empty if that is always possible.
    """

    apply: Callable[[Rewriter, onnx.NodeProto], str | None]
    parts: tuple[str, ...]
    sentence: str = ""


def names_read(graph: onnx.GraphProto) -> set[str]:
    """Return what nodes read, those of subgraphs too, and the outputs."""
    inner = {info.name for node in walk(graph.node) for each in subgraphs(node) for info in each.output}
    return inner | {name for node in walk(graph.node) for name in node.input} | {info.name for info in graph.output}


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the stored tensors of a main graph that nothing reads."""
    read = names_read(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
