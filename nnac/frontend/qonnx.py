"""QONNX: quantizers of constant weights (`Quant`, `BipolarQuant`) spelled out in standard operators, which are folded.

Rules:

1. a node of one of the domains, all of whose inputs are constants, becomes the chain that QONNX defines: divide by the
   scale, add the zero point, clip to the width, round, and back; its output keeps its name;
2. a node on a computed value stays, and the import reports it; so does one with an unknown width or rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnac.types import Array

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
ROUNDINGS = {"ROUND": "Round", "CEIL": "Ceil", "FLOOR": "Floor"}
OPSET = 11
"""`Round` exists from here."""


def spell_out_weights(model: onnx.ModelProto) -> None:
    """Replace quantizers of constants in the main graph, in place."""
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 1)
    if opset < OPSET or not any(node.domain in DOMAINS for node in model.graph.node):
        return
    values = dict(_stored(model.graph))
    constant, nodes = {*values}, list[onnx.NodeProto]()
    for node in model.graph.node:
        if all(name in constant for name in node.input if name) and not _holds_graph(node):
            constant.update(node.output)
            nodes += _chain(model.graph, node, values) or [node]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _stored(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield what is constant as it stands, by name."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant" and node.domain == "":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value" and a.HasField("t"))


def _holds_graph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _chain(graph: onnx.GraphProto, node: onnx.NodeProto, values: dict[str, onnx.TensorProto]
           ) -> list[onnx.NodeProto] | None:
    """Return the standard nodes of a quantizer, or None where it is none or not known."""
    if node.domain in DOMAINS and node.op_type == "Quant" and len(node.input) == 4:
        width = _number(values.get(node.input[3]))
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        rounding = ROUNDINGS.get(attributes.get("rounding_mode", b"ROUND").decode())
        if width is not None and rounding is not None:
            low, high = _limits(width, bool(attributes.get("signed", 1)), bool(attributes.get("narrow", 0)))
            return _quantizer(graph, node, low, high, rounding)
    if node.domain in DOMAINS and node.op_type == "BipolarQuant" and len(node.input) == 2:
        return _bipolar(graph, node)
    return None


def _number(tensor: onnx.TensorProto | None) -> int | None:
    """Return the whole number that a tensor of one entry holds, from 1 to 32."""
    if tensor is None:
        return None
    array = numpy_helper.to_array(tensor).ravel()
    return int(array[0]) if array.size == 1 and array[0] in range(1, 33) else None


def _limits(width: int, signed: bool, narrow: bool) -> tuple[float, float]:
    """Return the smallest and the largest integer of a width; `narrow` leaves one out."""
    if signed:
        return float(-(2 ** (width - 1)) + narrow), float(2 ** (width - 1) - 1)
    return 0.0, float(2**width - 1 - narrow)


def _quantizer(graph: onnx.GraphProto, node: onnx.NodeProto, low: float, high: float, rounding: str
               ) -> list[onnx.NodeProto]:
    x, scale, zero, _ = node.input
    step = [f"{node.output[0]}/quant{i}" for i in range(6)]
    limits = [_constant(graph, node, name, np.float32(value)) for name, value in (("low", low), ("high", high))]
    return [
        helper.make_node("Div", [x, scale], [step[0]]), helper.make_node("Add", [step[0], zero], [step[1]]),
        helper.make_node("Max", [step[1], limits[0]], [step[2]]),
        helper.make_node("Min", [step[2], limits[1]], [step[3]]),
        helper.make_node(rounding, [step[3]], [step[4]]), helper.make_node("Sub", [step[4], zero], [step[5]]),
        helper.make_node("Mul", [step[5], scale], [node.output[0]], node.name)]


def _bipolar(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return 1 for zero and above, else -1, times the scale."""
    x, scale = node.input
    step = [f"{node.output[0]}/quant{i}" for i in range(2)]
    zero, one, minus = (_constant(graph, node, name, np.float32(value))
                        for name, value in (("zero", 0), ("one", 1), ("minus", -1)))
    return [helper.make_node("Less", [x, zero], [step[0]]), helper.make_node("Where", [step[0], minus, one], [step[1]]),
            helper.make_node("Mul", [step[1], scale], [node.output[0]], node.name)]


def _constant(graph: onnx.GraphProto, node: onnx.NodeProto, name: str, value: Array | np.float32) -> str:
    """Add a float32 constant and return its name."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{node.output[0]}/{name}"))
    return graph.initializer[-1].name
