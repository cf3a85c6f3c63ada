"""Quantize: a float graph and the ranges of its tensors become an integer graph.

Rules:

1. values joined by an operator that changes none (reshape, transpose, slice, concat, pad, max pooling) share one
   quantization, over the union of their ranges; that saves a requantization at no cost in operators;
2. an activation is int8 with scale (high - low) / 255 and the zero point that makes real zero exact, or int16 with
   scale max(|low|, |high|) / 32767 and zero point 0; functions with a natural range (softmax, sigmoid, tanh) use that,
   in int16 a scale of 2**-15; under power-of-two scales the scale is rounded up to one and the
   zero point is even, so that ties fall alike whether the zero point is added after rounding (ONNX's definition, and
   ours) or before (onnxruntime's fused QLinearAdd, QLinearMul and QLinearAveragePool);
3. weights are int8 in [-127, 127], symmetric, with a scale per output channel (per tensor if the machine demands it);
4. biases are int32 in units of input scale * weight scale; a channel whose bias would not fit gets a larger scale;
5. where a concat would make a tensor much coarser that others read too, the concat gets a rescaled copy of it;
6. a constant operand of sum and product is quantized over its own range and as wide as the result, one of concat with
   its group;
7. int16 are the tensors that the user names (or all), those that an operator takes or makes as int16 only, and what
   shares a quantization with one of these; an operator that does not allow a tensor's width gets, or makes, a copy of
   another width, by a sum of one operand;
8. an identity, relu or clip of int16 is a sum of one operand, which rounds once, instead of a table with lines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil, inf, log2

import numpy as np

from nnac.calibration import Range
from nnac.errors import ModelError
from nnac.graph import Draft, Graph, Node, Value
from nnac.numerics import INT16_HIGH, WIDE_BITS
from nnac.ops import Activation, Concat, Conv, Dense, Softmax, Sum
from nnac.ops.activation import FIXED_RANGES
from nnac.ops.conv import BIAS, INPUT, SCALE, WEIGHT
from nnac.ops.softmax import FIXED_RANGE
from nnac.passes.fuse import interval
from nnac.stages import SHARING
from nnac.targets import Arithmetic
from nnac.types import Array, Quant, TensorType

BIAS_LIMIT = 2**30
TINY = 2.0**-100
WIDE_SCALE = 2.0**-15
"""Of functions with a natural range, in int16."""
COARSER = 4
"""A concat may make the scale of a tensor that others read this many times larger."""


def quantize(
    graph: Graph, ranges: Mapping[str, Range], law: Arithmetic, activations: str | Collection[str] = "int8"
) -> Graph:
    """Return the integer graph.

    Args:
        graph: with float values.
        ranges: by ONNX tensor name.
        law: the machine's arithmetic.
        activations: "int8", "int16", or the ONNX names of the tensors that shall be int16.

    Raises:
        ModelError: a tensor has no range or is not known, or scales lie too far apart for the machine's multipliers.
    """
    graph = _spare_narrow(graph, ranges)
    quants = _quants(graph, ranges, law, activations)
    draft = graph.draft()
    for name in quants.roots:
        if name not in graph.constants:
            draft.values[name] = _typed(draft.values[name], quants.of(name))
    for node in graph.nodes:
        _constants(draft, _fitted(draft, _summed(draft, node), quants), law)
    return draft.freeze()


def _typed(value: Value, quant: Quant) -> Value:
    return replace(value, type=TensorType(value.shape, quant.dtype, quant))


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


@dataclass(frozen=True, slots=True)
class _Quants:
    """What decides the quantization of every activation.

    Attributes:
        roots: representative of its group, by value.
        spans: real range by representative.
        wide: representatives of groups that are int16.
        power_of_two: scales are powers of two.
    """

    roots: Mapping[str, str]
    spans: Mapping[str, Range]
    wide: Collection[str]
    power_of_two: bool

    def of(self, name: str, bits: int | None = None) -> Quant:
        """Return the quantization of a value, by default of its own width."""
        root = self.roots[name]
        span = self.spans[root]
        return activation_quant(span.low, span.high, self.power_of_two, bits or (16 if root in self.wide else 8))


def _quants(graph: Graph, ranges: Mapping[str, Range], law: Arithmetic, activations: str | Collection[str]) -> _Quants:
    """Return what decides the quantization of every activation: one per group of values."""
    group = _groups(graph)
    wide = {group[name] for name in (*_asked_wide(graph, group, activations), *_only_wide(graph)) if name in group}
    made = {node.output: node for node in graph.nodes}
    spans: dict[str, list[Range]] = {}
    for name, root in group.items():
        origin = graph.values[name].origin
        natural = _natural(made[name], root in wide) if name in made else None
        span = natural or (ranges.get(origin.name) if origin is not None else None)
        spans.setdefault(root, []).extend([span] if span is not None else [])
    merged = {root: _merge(graph, root, found) for root, found in spans.items()}
    return _Quants(group, merged, wide, law.power_of_two_scales)


def _asked_wide(graph: Graph, group: Mapping[str, str], activations: str | Collection[str]) -> list[str]:
    """Return the values that the user wants as int16."""
    if isinstance(activations, str):
        if activations not in ("int8", "int16"):
            raise ModelError(f"activations {activations!r}: unknown; allowed: int8, int16, or names of tensors")
        return list(group) if activations == "int16" else []
    known = {origin.name: name for name in group if (origin := graph.values[name].origin) is not None}
    missing = [f"{name!r}" for name in activations if name not in known]
    if missing:
        raise ModelError(
            f"activations: no tensor {', '.join(missing)} in the compiled graph (what is fused or folded is not one); "
            f"`nnac diff --all` lists those that are"
        )
    return [known[name] for name in activations]


def _only_wide(graph: Graph) -> Iterator[str]:
    """Yield the values that an operator takes or makes as int16 only."""
    for node in graph.nodes:
        names = (*graph.operands(node), node.output)
        yield from (n for n, bits in zip(names, node.op.widths(len(names) - 1), strict=True) if bits == (16,))


def _groups(graph: Graph) -> dict[str, str]:
    """Return a representative per value: union-find over the operators that change no value."""
    parent = {name: name for name in (*graph.inputs, *(node.output for node in graph.nodes))}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for node in graph.nodes:
        if node.op.name in SHARING:
            for name in (n for n in graph.operands(node) if n in parent):
                parent[find(name)] = find(node.output)
    return {name: find(name) for name in parent}


def _natural(node: Node, wide: bool) -> Range | None:
    """Return the range that a function's values have by nature."""
    if isinstance(node.op, Softmax):
        span = FIXED_RANGE
    elif isinstance(node.op, Activation) and node.op.kind in FIXED_RANGES:
        span = FIXED_RANGES[node.op.kind]
    else:
        return None
    return Range(0.0, INT16_HIGH * WIDE_SCALE) if wide else Range(*span)


def _merge(graph: Graph, root: str, found: list[Range]) -> Range:
    if not found:
        origin = graph.values[root].origin
        raise ModelError(f"tensor {origin.name if origin else root!r} has no calibrated range")
    return Range(min(r.low for r in found), max(r.high for r in found))


def activation_quant(low: float, high: float, power_of_two: bool, bits: int = 8) -> Quant:
    """Return the quantization of the real interval [low, high], which holds zero, to 8 or 16 bits."""
    if bits == 16:
        peak = max(-low, high)
        return Quant(_scale(peak / INT16_HIGH if peak > 0 else 1.0, power_of_two), bits=16)
    width = high - low
    scale = _scale(width / 255 if width > 0 else 1.0, power_of_two)
    lowest, highest = -128 - low / scale, 127 - high / scale
    if power_of_two:  # the even number nearest to the middle of what covers both ends, or to the first two steps of it
        return Quant(scale, int(np.clip(2 * np.rint((lowest + min(highest, lowest + 2)) / 4), -128, 126)))
    return Quant(scale, int(np.clip(np.rint(lowest), -128, 127)))


def _scale(value: float, power_of_two: bool) -> float:
    value = max(value, TINY)
    return 2.0 ** ceil(log2(value)) if power_of_two else float(np.float32(value))


# -- widths --------------------------------------------------------------------------------------------------------


def _summed(draft: Draft, node: Node) -> Node:
    """Return the node, as a sum of one operand where rule 8 says so."""
    limits = interval(node)
    types = [draft.values[name].type for name in (node.inputs[0], node.output)]
    if limits is None or all(kind.dtype == "int8" for kind in types):
        return node
    return draft.update(node, op=Sum(limits, (1,)))


def _fitted(draft: Draft, node: Node, quants: _Quants) -> Node:
    """Return the node between copies of another width where it does not allow a tensor's own (rule 7)."""
    names = list(node.inputs[: node.op.operands])
    *taken, made = node.op.widths(len(names))
    for i, allowed in enumerate(taken):
        if names[i] in quants.roots and quants.of(names[i]).bits not in allowed:
            names[i] = _copy(draft, node, names[i], quants.of(names[i], allowed[0]))
    output = node.output
    if quants.of(output).bits not in made:
        source = _typed(replace(draft.values[output], origin=None), quants.of(output, made[0]))
        source = replace(source, name=draft.fresh(f"{output}.{source.type.dtype}"))
        draft.values[source.name] = source
        draft.add_node(f"{node.name}.width", Sum(signs=(1,)), [source.name], draft.values[output])
        output = source.name
    return draft.update(node, inputs=(*names, *node.inputs[len(names) :]), output=output)


def _copy(draft: Draft, node: Node, name: str, quant: Quant) -> str:
    """Return a copy of a value in another quantization; readers of the same value share it."""
    new = f"{name}.{quant.dtype}"
    if new not in draft.values:
        value = _typed(replace(draft.values[name], name=new, origin=None), quant)
        draft.add_node(f"{node.name}.width", Sum(signs=(1,)), [name], value)
    return new


# -- constants -----------------------------------------------------------------------------------------------------


def _constants(draft: Draft, node: Node, law: Arithmetic) -> None:
    """Quantize the constant inputs of one node."""
    if isinstance(node.op, Conv | Dense):
        quant = draft.values[node.inputs[INPUT]].type.quant
        assert quant is not None
        return _layer(draft, node, quant, law)
    inputs = list(node.inputs)
    widths = node.op.widths(len(inputs[: node.op.operands]))
    for i in range(len(inputs[: node.op.operands])):
        if inputs[i] in draft.constants:
            inputs[i] = _operand(draft, node, inputs[i], widths[i], law)
    draft.update(node, inputs=tuple(inputs))


def _operand(draft: Draft, node: Node, name: str, allowed: tuple[int, ...], law: Arithmetic) -> str:
    """Quantize a constant: as the result if they share, else over its own range, in the result's bits if allowed."""
    array, quant = draft.constants[name], draft.values[node.output].type.quant
    assert quant is not None
    if node.op.name not in SHARING:
        low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
        bits = quant.bits if quant.bits in allowed else allowed[0]
        quant = activation_quant(low, high, law.power_of_two_scales, bits)
    new = draft.add_constant(f"{name}.{quant.dtype}", quant.quantize(array))
    draft.values[new] = _typed(draft.values[new], quant)
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
    """Prove that the sum of every output channel fits 32 bits (40 over int16), whatever the input."""
    reach = max(quant.low - quant.zero_point, quant.high - quant.zero_point, key=abs)
    bits = 32 + WIDE_BITS if quant.bits == 16 else 32
    worst = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(axis=1) * abs(reach) + np.abs(bias)
    if worst.max() >= 2 ** (bits - 1):
        channel = int(worst.argmax())
        raise ModelError(
            f"node {node.name!r}: the sum of output channel {channel} can reach {int(worst.max()):,}, "
            f"outside {bits} bits; split the layer along its inputs"
        )
