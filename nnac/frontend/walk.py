"""Walks over everything that a model holds, subgraphs and functions included; no recursion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds directly."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def walk(start: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the given nodes and those of their subgraphs, at any depth."""
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        yield node
        for graph in subgraphs(node):
            waiting.extend(graph.node)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of all graphs and functions."""
    yield from walk(model.graph.node)
    for function in model.functions:
        yield from walk(function.node)


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the main graph and all subgraphs, those of functions too."""
    yield model.graph
    for node in nodes(model):
        yield from subgraphs(node)


def label(node: onnx.NodeProto) -> str:
    """Return how messages name a node: its operator, and its name or that of its first output."""
    return f"{node.op_type} {stem(node)!r}"


def stem(node: onnx.NodeProto) -> str:
    """Return a node's name, or that of its first output."""
    return node.name or next((name for name in node.output if name), node.op_type)


def stored_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor: initializers and attributes, in subgraphs and functions too."""
    for graph in graphs(model):
        yield from graph.initializer
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def stored_arrays(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the stored tensors of a graph by name, those of Constant nodes too."""
    constants = {
        node.output[0]: a.t
        for node in graph.node
        if node.op_type == "Constant" and node.domain == ""
        for a in node.attribute
        if a.name == "value" and a.HasField("t")
    }
    return {tensor.name: tensor for tensor in graph.initializer} | constants
