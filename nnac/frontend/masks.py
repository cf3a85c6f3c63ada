"""Masks in front of a softmax, finite and added: what exporters write as minus infinity, or choose by Where."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from nnac.frontend.rewriter import drop_unread
from nnac.types import Array

MASKED = -1e4
"""What a masked score is lowered by; any softmax makes it 0. Calibration needs finite numbers."""


def add_masks(graph: onnx.GraphProto) -> None:
    """Rewrite sums with and choices of constants that only softmaxes read: the constant is added, at least `MASKED`.

    The results keep their names, and all that a softmax makes of them keeps its value.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(_masking(graph)):
        if node.op_type == "Add":
            _bound(graph, node, constants)
        else:
            _choice_to_sum(graph, node, constants)
    drop_unread(graph)


def _masking(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the sums and choices whose result nothing but softmaxes read."""
    readers: dict[str, set[str]] = {info.name: {"output"} for info in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for node in graph.node:
        if node.op_type in ("Add", "Where") and readers.get(node.output[0]) == {"Softmax"}:
            yield node


def _bound(graph: onnx.GraphProto, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    for index, name in enumerate(node.input):
        if name in constants and constants[name].data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(constants[name])
            if array.size and array.min() < MASKED:
                node.input[index] = _store(graph, node, np.maximum(array, np.float32(MASKED)))


def _choice_to_sum(graph: onnx.GraphProto, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    """Where(c, x, -inf) is x + (0 where c, else -inf) for a softmax."""
    condition, *sides = node.input
    fixed = [side for side in sides if side in constants]
    if condition not in constants or len(fixed) != 1 or constants[fixed[0]].data_type != onnx.TensorProto.FLOAT:
        return
    mask, chosen = numpy_helper.to_array(constants[fixed[0]]), numpy_helper.to_array(constants[condition])
    if not mask.size or mask.max() > MASKED:
        return
    added = np.where(chosen, *(np.maximum(mask, MASKED) if side == fixed[0] else 0.0 for side in sides))
    kept = sides[1 - sides.index(fixed[0])]
    node.op_type = "Add"
    del node.input[:]
    node.input.extend((kept, _store(graph, node, added.astype(np.float32))))


def _store(graph: onnx.GraphProto, node: onnx.NodeProto, array: Array) -> str:
    name = f"{node.output[0]}.mask"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name
