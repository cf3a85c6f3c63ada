"""States that a model packs into one tensor are kept apart.

Exporters stack hidden values and cells of several layers into one state. One tensor has one scale: beside cells that
reach into the hundreds, hidden values would have a few steps left. So a state becomes as many states as its next value
is joined from, if it is only read in pieces that are whole tensors of these. Their inputs are named after the packed
one (`state.0`, `state.1`, ...), their outputs are the tensors that were joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from nnac.types import Array

CUTTING = frozenset({"Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "Reshape", "Identity"})
JOINING = frozenset({"Concat", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Identity"})


@dataclass(frozen=True, slots=True)
class _Packed:
    """A state that can be kept apart.

    Attributes:
        source, result: its input and its output.
        parts: what the output is joined from.
        reads: by tensor that is cut from the input: the part that it is, and its shape.
    """

    source: str
    result: str
    parts: tuple[onnx.ValueInfoProto, ...]
    reads: Mapping[str, tuple[int, tuple[int, ...]]]


def unpack_states(model: onnx.ModelProto, states: Mapping[str, str]) -> dict[str, str]:
    """Keep packed states of a model apart, in place, and return its states (input -> output).

    Args:
        model: as `prepare` has returned it.
        states: pairs of graph inputs and outputs.
    """
    kept = dict[str, str]()
    for source, result in states.items():
        packed = _packed(model, source, result)
        kept |= {source: result} if packed is None else _split(model.graph, packed)
    return kept


def _packed(model: onnx.ModelProto, source: str, result: str) -> _Packed | None:
    """Return how a state can be kept apart, or None."""
    graph = model.graph
    known = {info.name: info for info in (*graph.value_info, *graph.output)}
    made = {name: node for node in graph.node for name in node.output}
    joins, leaves = _joining(result, made)
    if len(leaves) < 2 or any(leaf not in made or leaf not in known for leaf in leaves):
        return None
    cuts = [node for node in graph.node if source in node.input]
    if not cuts or any(node.op_type not in CUTTING or node.input[0] != source for node in cuts):
        return None
    starts, at = list[Array](), 0
    for shape in (_shape(known[leaf]) for leaf in leaves):
        starts.append(np.arange(at, at + prod(shape)).reshape(shape))
        at += prod(shape)
    joined = _run(model, joins, dict(zip(leaves, starts, strict=True)), [result])[0]
    read = [name for node in cuts for name in node.output]
    pieces = _run(model, cuts, {source: joined}, read)
    owners = [next((n for n, s in enumerate(starts) if np.array_equal(s.ravel(), p.ravel())), None) for p in pieces]
    found = {name: (n, p.shape) for name, n, p in zip(read, owners, pieces, strict=True) if n is not None}
    parts = tuple(known[leaf] for leaf in leaves)
    return _Packed(source, result, parts, found) if len(found) == len(read) else None


def _joining(result: str, made: Mapping[str, onnx.NodeProto]) -> tuple[list[onnx.NodeProto], list[str]]:
    """Return the nodes that join a tensor from others, in the order of execution, and these others."""
    nodes, leaves, waiting = list[onnx.NodeProto](), list[str](), [result]
    while waiting:
        name = waiting.pop(0)
        node = made.get(name)
        if node is None or node.op_type not in JOINING:
            leaves += [name] if name not in leaves else []
            continue
        nodes.insert(0, node)
        waiting += node.input if node.op_type == "Concat" else node.input[:1]
    return nodes, leaves


def _run(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], feeds: Mapping[str, Array], wanted: Sequence[str]
) -> list[Array]:
    """Return what nodes that only move make of numbered entries."""
    read = {name for node in nodes for name in node.input}
    stored = [tensor for tensor in model.graph.initializer if tensor.name in read]
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, array.shape) for name, array in feeds.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
    moves = helper.make_model(
        helper.make_graph(nodes, "moves", infos, outputs, stored), opset_imports=model.opset_import
    )
    return [np.asarray(array) for array in ReferenceEvaluator(moves).run(list(wanted), dict(feeds))]


def _split(graph: onnx.GraphProto, packed: _Packed) -> dict[str, str]:
    """Let the parts of a packed state be states; return them."""
    inputs = [onnx.ValueInfoProto.FromString(part.SerializeToString()) for part in packed.parts]
    for number, info in enumerate(inputs):
        info.name = f"{packed.source}.{number}"
    nodes = list[onnx.NodeProto]()
    for name, (number, shape) in packed.reads.items():
        wanted = numpy_helper.from_array(np.array(shape, np.int64), f"{name}.unpacked")
        graph.initializer.append(wanted)
        nodes.append(helper.make_node("Reshape", [inputs[number].name, wanted.name], [name], wanted.name))
    nodes += [node for node in graph.node if packed.source not in node.input]
    _replace(graph.node, nodes)
    _replace(graph.input, [*(info for info in graph.input if info.name != packed.source), *inputs])
    shown = [info for info in graph.output if info.name != packed.result]
    names = {info.name for info in shown}
    _replace(graph.output, [*shown, *(part for part in packed.parts if part.name not in names)])
    _drop_unused(graph)
    return {info.name: part.name for info, part in zip(inputs, packed.parts, strict=True)}


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the nodes that no output depends on."""
    needed, kept = {info.name for info in graph.output}, list[onnx.NodeProto]()
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            kept.insert(0, node)
    _replace(graph.node, kept)


def _replace(field: object, entries: Sequence[object]) -> None:
    """Let a repeated field of a protobuf hold other entries."""
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]  # type: ignore[attr-defined]
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]


def _shape(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
