"""Quantize: a float graph and the ranges of its tensors become an integer graph.

Rules:

1. values joined by an operator that changes none (reshape, transpose, slice, concat, pad, max pooling) share one
   quantization, over the union of their ranges; that saves a requantization at no cost in operators;
2. an activation is int8 with scale (high - low) / 255 and the zero point that makes real zero exact; functions with a
   natural range (softmax, sigmoid, tanh) use that; under power-of-two scales the scale is rounded up to one and the
   zero point is even, so that ties fall alike whether the zero point is added after rounding (ONNX's definition, and
   ours) or before (onnxruntime's fused QLinearAdd, QLinearMul and QLinearAveragePool);
3. weights are int8 in [-127, 127], symmetric, with a scale per output channel (per tensor if the machine demands it);
4. biases are int32 in units of input scale * weight scale; a channel whose bias would not fit gets a larger scale;
5. where a concat would make a tensor much coarser that others read too, the concat gets a rescaled copy of it;
6. a constant operand of sum and product is quantized over its own range, one of concat with its group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, inf, log2

import numpy as np

from nnac.calibration import Range
from nnac.errors import ModelError
from nnac.graph import Draft, Graph, Node, Value
from nnac.ops import Activation, Concat, Conv, Dense, Softmax
from nnac.ops.activation import FIXED_RANGES
from nnac.ops.conv import BIAS, INPUT, SCALE, WEIGHT
from nnac.ops.softmax import FIXED_RANGE
from nnac.stages import SHARING
from nnac.targets import Arithmetic
from nnac.types import Array, Quant, TensorType

BIAS_LIMIT = 2**30
TINY = 2.0**-100
COARSER = 4
"""A concat may make the scale of a tensor that others read this many times larger."""


def quantize(graph: Graph, ranges: Mapping[str, Range], law: Arithmetic) -> Graph:
    """Return the integer graph; `ranges` are by ONNX tensor name.

    Raises:
        ModelError: a tensor has no range, or scales lie too far apart for the machine's multipliers.
    """
    graph = _spare_narrow(graph, ranges)
    quants = _quants(graph, ranges, law)
    draft = graph.draft()
    for name, quant in quants.items():
        value = draft.values[name]
        if name not in graph.constants:
            draft.values[name] = replace(value, type=TensorType(value.shape, "int8", quant))
    for node in graph.nodes:
        _constants(draft, node, quants, law)
    return draft.freeze()


def _spare_narrow(graph: Graph, ranges: Mapping[str, Range]) -> Graph:
    """Return the graph with identity activations where rule 5 wants a rescaled copy."""
    draft, users = graph.draft(), graph.draft().users()
    for node in graph.nodes:
        if isinstance(node.op, Concat):
            inputs = tuple(
                _rescaled(draft, node, name)
                if (len(users[name]) > 1 or name in graph.outputs)
                and _width(graph, name, ranges) * COARSER < _width(graph, node.output, ranges)
                else name
                for name in node.inputs
            )
            draft.update(node, inputs=inputs)
    return draft.freeze()


def _rescaled(draft: Draft, node: Node, name: str) -> str:
    copy = Value(draft.fresh(f"{name}.rescaled"), draft.values[name].type)
    draft.add_node(f"{node.name}.rescale", Activation(), [name], copy)
    return copy.name


def _width(graph: Graph, name: str, ranges: Mapping[str, Range]) -> float:
    origin = graph.values[name].origin
    span = ranges.get(origin.name) if origin is not None else None
    return span.high - span.low if span is not None else inf


# -- activations ---------------------------------------------------------------------------------------------------


def _quants(graph: Graph, ranges: Mapping[str, Range], law: Arithmetic) -> dict[str, Quant]:
    """Return the quantization of every activation, shared inside a group of values."""
    group = _groups(graph)
    natural = {node.output: span for node in graph.nodes if (span := _natural(node)) is not None}
    spans: dict[str, list[Range]] = {}
    for name, root in group.items():
        origin = graph.values[name].origin
        span = natural.get(name) or (ranges.get(origin.name) if origin is not None else None)
        spans.setdefault(root, []).extend([span] if span is not None else [])
    chosen = {root: _merge(graph, root, found, law) for root, found in spans.items()}
    return {name: chosen[root] for name, root in group.items()}


def _groups(graph: Graph) -> dict[str, str]:
    """Return a representative per value: union-find over the operators that change no value."""
    parent = {name: name for name in (*graph.inputs, *(name for node in graph.nodes for name in node.outputs))}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for node in graph.nodes:
        if node.op.name in SHARING:
            for name in (n for n in graph.operands(node) if n in parent):
                parent[find(name)] = find(node.output)
    for source, result in graph.states:
        parent[find(source)] = find(result)
    return {name: find(name) for name in parent}


def _natural(node: Node) -> Range | None:
    if isinstance(node.op, Softmax):
        return Range(*FIXED_RANGE)
    if isinstance(node.op, Activation) and node.op.kind in FIXED_RANGES:
        return Range(*FIXED_RANGES[node.op.kind])
    return None


def _merge(graph: Graph, root: str, found: list[Range], law: Arithmetic) -> Quant:
    if not found:
        origin = graph.values[root].origin
        raise ModelError(f"tensor {origin.name if origin else root!r} has no calibrated range")
    return activation_quant(min(r.low for r in found), max(r.high for r in found), law.power_of_two_scales)


def activation_quant(low: float, high: float, power_of_two: bool) -> Quant:
    """Return the int8 quantization of the real interval [low, high], which holds zero."""
    width = high - low
    scale = _scale(width / 255 if width > 0 else 1.0, power_of_two)
    lowest, highest = -128 - low / scale, 127 - high / scale
    if power_of_two:  # the even number nearest to the middle of what covers both ends, or to the first two steps of it
        return Quant(scale, int(np.clip(2 * np.rint((lowest + min(highest, lowest + 2)) / 4), -128, 126)))
    return Quant(scale, int(np.clip(np.rint(lowest), -128, 127)))


def _scale(value: float, power_of_two: bool) -> float:
    value = max(value, TINY)
    return 2.0 ** ceil(log2(value)) if power_of_two else float(np.float32(value))


# -- constants -----------------------------------------------------------------------------------------------------


def _constants(draft: Draft, node: Node, quants: Mapping[str, Quant], law: Arithmetic) -> None:
    """Quantize the constant inputs of one node."""
    if isinstance(node.op, Conv | Dense):
        return _layer(draft, node, quants[node.inputs[INPUT]], law)
    inputs = list(node.inputs)
    for i in range(len(inputs[: node.op.operands])):
        if inputs[i] in draft.constants:
            shared = quants[node.output] if node.op.name in SHARING else None
            inputs[i] = _operand(draft, inputs[i], shared, law)
    draft.update(node, inputs=tuple(inputs))


def _operand(draft: Draft, name: str, shared: Quant | None, law: Arithmetic) -> str:
    array = draft.constants[name]
    quant = shared or activation_quant(
        min(0.0, float(array.min())), max(0.0, float(array.max())), law.power_of_two_scales
    )
    new = draft.add_constant(f"{name}.int8", quant.quantize(array))
    draft.values[new] = replace(draft.values[new], type=TensorType(array.shape, "int8", quant))
    return new


def _layer(draft: Draft, node: Node, quant: Quant, law: Arithmetic) -> None:
    weight, bias = (draft.constants[node.inputs[i]].astype(np.float64) for i in (WEIGHT, BIAS))
    if len(node.inputs) > SCALE:  # an encoding pass has chosen integers and scales already
        scale, integer = draft.constants[node.inputs[SCALE]], draft.constants[node.inputs[WEIGHT]]
    else:
        scale = weight_scales(weight, bias, quant.scale, law)
        integer = int8_weights(weight, scale)
    steps = np.rint(bias / (scale.astype(np.float64) * quant.scale)).astype(np.int64)
    _prove(node, integer, steps, quant, law)
    names = (
        draft.add_constant(f"{node.inputs[WEIGHT]}.int8", integer),
        draft.add_constant(f"{node.inputs[BIAS]}.int32", steps.astype(np.int32)),
        draft.add_constant(f"{node.inputs[WEIGHT]}.scale", scale),
    )
    draft.update(node, inputs=(node.inputs[INPUT], *names))


def int8_weights(weight: Array, scale: Array) -> Array:
    """Return int8 weights in [-127, 127] of reals (O, ...) for float32 scales (O,), rounded half to even."""
    shape = (-1, *(1,) * (weight.ndim - 1))
    return np.asarray(np.clip(np.rint(weight / scale.astype(np.float64).reshape(shape)), -127, 127)).astype(np.int8)


def weight_scales(weight: Array, bias: Array, input_scale: float, law: Arithmetic) -> Array:
    """Return float32 scales per output channel for weights (O, ...) and biases (O,), reals."""
    peak = np.abs(weight.reshape(len(weight), -1)).max(axis=1) / 127
    needed = np.abs(bias) / (BIAS_LIMIT * input_scale)
    scale = np.maximum(peak, needed)
    if not law.per_channel:
        scale = np.full_like(scale, scale.max())
    scale = np.where(scale > 0, scale, 1.0)
    return np.array([_scale(float(s), law.power_of_two_scales) for s in scale], dtype=np.float32)


def _prove(node: Node, weight: Array, bias: Array, quant: Quant, law: Arithmetic) -> None:
    """Prove that the sum of every output channel fits 32 bits, whatever the input."""
    reach = max(-128 - quant.zero_point, 127 - quant.zero_point, key=abs)
    worst = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(axis=1) * abs(reach) + np.abs(bias)
    if worst.max() >= 2**31:
        channel = int(worst.argmax())
        raise ModelError(
            f"node {node.name!r}: the sum of output channel {channel} can reach {int(worst.max()):,}, "
            f"outside 32 bits; split the layer along its inputs"
        )
