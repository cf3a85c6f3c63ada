"""Quantize: a float graph and the ranges of its tensors become an integer graph.

Rules:

1. values joined by an operator that changes none (reshape, transpose, slice, concat, pad, max pooling) share one
   quantization, over the union of their ranges; that saves a requantization at no cost in operators;
2. an activation is int8 with scale (high - low) / 255 and the zero point that makes real zero exact, or int16 with
   scale max(|low|, |high|) / 32767 and zero point 0; functions with a natural range (softmax, sigmoid, tanh) use that,
   in int16 a scale of 2**-15, but an int8 sigmoid or tanh not if the samples leave more than half of it empty;
   under power-of-two scales the scale is rounded up to one and the zero point is even, so that ties fall alike whether
   the zero point is added after rounding (ONNX's definition, and ours) or before (onnxruntime's fused QLinearAdd,
   QLinearMul and QLinearAveragePool);
   a quantization that the model brings (a pinned value) is taken as it is, whatever the range; so are weights, scales
   and biases that are integers already;
3. weights are int8 in [-127, 127], symmetric, with a scale per output channel (per tensor if the machine demands it);
4. biases are int32 in units of input scale * weight scale; a channel whose bias would not fit gets a larger scale;
5. where a concat would make a tensor much coarser that others read too, the concat gets a rescaled copy of it;
6. a constant operand of sum and product is quantized over its own range and as wide as the result, one of concat with
   its group;
7. int16 are the tensors that the user names (or all), those that an operator takes or makes as int16 only, and what
   shares a quantization with one of these; an operator that does not allow a tensor's width gets, or makes, a copy of
   another width, by a sum of one operand;
8. an identity, relu or clip of int16 is a sum of one operand, which rounds once, instead of a table with lines;
9. values that an operator pins have its quantization, and those that it wants in steps of a power of two are int16 with
   such a scale, with all that shares theirs: gates and states of recurrent layers; a state going out has the
   quantization of the state coming in; results have room for the initial states, and what a layer
   reaches beyond a pinned range is refused;
10. convolutions and dense layers read what is int16 for such a reason only as an int8 copy, and hidden values that come
    from or go to such a tensor are requantized there;
11. with "auto", what int8 would keep too little of is int16: where the mean square of the median entry, by calibration,
    is less than 36 dB over the square of int8's rounding error. So spectra and features whose entries differ in power
    keep the quiet ones; so is what logarithms come from, which with "int16", too, may be cut (`passes.logarithms`);
12. the scores of attention, from a product of activations through sums, factors and moves to a softmax, are int16; a
    mask that is added to them is cut where it has no influence (`passes.scores`); where the array takes 16 bits, so are
    the weights that the softmax makes of them, whose largest may be a small part of 1;
13. residual streams that only norms and sums read are int16, with what is added to them, and so are states that are
    added to themselves, as running means are (`passes.accumulated`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, log2

import numpy as np

from nnac.calibration import Range
from nnac.errors import ModelError, raise_all
from nnac.graph import Draft, Graph, Node, Value
from nnac.numerics import INT16_HIGH, WIDE_BITS
from nnac.ops import Activation, Concat, Conv, Dense, Recurrent, Softmax, Sum
from nnac.ops.activation import FIXED_RANGES
from nnac.ops.conv import INPUT
from nnac.ops.softmax import FIXED_RANGE
from nnac.passes.accumulated import residual_streams, running_states
from nnac.passes.fuse import interval
from nnac.passes.logarithms import behind, cut
from nnac.passes.scores import attention_scores, attention_weights, bound_masks
from nnac.stages import SHARING
from nnac.targets import Arithmetic
from nnac.types import Array, Quant, TensorType

WIDTHS = ("int8", "int16", "auto")
FAITHFUL = 10.0**3.6
"""Power of the median entry over that of int8's rounding error, below which a tensor is int16."""
BIAS_LIMIT = 2**30
TINY = 2.0**-100
WIDE_SCALE = 2.0**-15
"""Of functions with a natural range, in int16."""
ROUNDED = 2.0**-15
"""Share by which float's rounding may carry a state over its limit, a step of int16: 1.0000001 for 1."""
COARSER = 4
"""A concat may make the scale of a tensor that others read this many times larger."""


def quantize(
    graph: Graph,
    ranges: Mapping[str, Range],
    law: Arithmetic,
    activations: str | Collection[str] = "int8",
    products: bool = False,
) -> Graph:
    """Return the integer graph.

    Args:
        graph: with float values.
        ranges: by ONNX tensor name.
        law: the machine's arithmetic.
        activations: "int8", "int16", "auto" (rule 11), or the ONNX names of the tensors that shall be int16.
        products: whether the machine's array takes 16 bits, so that attention weighs with int16.

    Raises:
        ModelError: a tensor has no range or is not known, or sums would not fit the accumulator.
    """
    graph, ranges = bound_masks(graph, ranges)
    if activations in ("auto", "int16"):
        ranges = cut(graph, _groups(graph), ranges)
    graph, ranges = _apart(_spare_narrow(graph, ranges), ranges, activations)
    weighing = frozenset(attention_weights(graph) if products else ())
    quants = _quants(graph, ranges, law, activations, weighing)
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


def _apart(
    graph: Graph, ranges: Mapping[str, Range], activations: str | Collection[str]
) -> tuple[Graph, Mapping[str, Range]]:
    """Return the graph with hidden values requantized where they meet what is int16 for another reason (rule 10).

    The ranges of the values that this makes come along. What the model pins is int16 for no other reason than that.
    """
    if activations == "int16":
        return graph, ranges
    draft, group = graph.draft(), _groups(graph, hidden=False)
    forced = {group[name] for name in _forced(graph) if name in group} - _brought(graph, group).keys()
    for node in graph.nodes:
        if not isinstance(node.op, Recurrent) or not node.op.hidden_ties(node):
            continue
        if group.get(node.inputs[1]) in forced:
            hidden = Value(draft.fresh(f"{node.inputs[1]}.hidden"), graph.values[node.inputs[1]].type)
            draft.add_node(f"{node.name}.hidden", Sum(signs=(1,)), [node.inputs[1]], hidden)
            draft.update(draft.nodes[node.name], inputs=(node.inputs[0], hidden.name, *node.inputs[2:]))
        if group[node.output] in forced:
            made = replace(graph.values[node.output], name=draft.fresh(f"{node.output}.hidden"), origin=None)
            draft.add_node(f"{node.name}.shown", Sum(signs=(1,)), [made.name], graph.values[node.output])
            draft.values[made.name] = made
            draft.update(draft.nodes[node.name], output=made.name)
            ranges = {**ranges, made.name: ranges[node.output]}
    return draft.freeze(), ranges


def _forced(graph: Graph) -> Iterator[str]:
    """Yield the values that an operator pins, steps or takes in int16 only, and those of rules 12 and 13."""
    yield from attention_scores(graph)
    yield from residual_streams(graph)
    yield from running_states(graph)
    for node in graph.nodes:
        yield from node.op.stepped(node)
        yield from (name for name, quant in node.op.pins(node).items() if quant.bits == 16)
    yield from _only_wide(graph)


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
        pinned: quantization by representative, where an operator says it.
        stepped: representatives whose scale is a power of two for an operator's sake.
        forced: representatives that are int16 though nobody asked.
    """

    roots: Mapping[str, str]
    spans: Mapping[str, Range]
    wide: Collection[str]
    power_of_two: bool
    pinned: Mapping[str, Quant]
    stepped: Collection[str]
    forced: Collection[str]

    def of(self, name: str, bits: int | None = None) -> Quant:
        """Return the quantization of a value, by default of its own width."""
        root = self.roots[name]
        pin = self.pinned.get(root)
        if pin is not None and bits in (None, pin.bits):
            return pin
        span = self.spans[root]
        bits = bits or (16 if root in self.wide else 8)
        if root in self.stepped and bits == 16:
            return Quant(max(activation_quant(span.low, span.high, True, 16).scale, WIDE_SCALE), bits=16)
        return activation_quant(span.low, span.high, self.power_of_two, bits)

    def allowed(self, node: Node, name: str, bits: tuple[int, ...]) -> tuple[int, ...]:
        """Return in which widths a node reads a value, given those that its operator takes (rule 10)."""
        return (8,) if isinstance(node.op, Conv | Dense) and self.roots[name] in self.forced else bits


def _quants(
    graph: Graph,
    ranges: Mapping[str, Range],
    law: Arithmetic,
    activations: str | Collection[str],
    weighing: Collection[str],
) -> _Quants:
    """Return what decides the quantization of every activation: one per group of values."""
    group = _groups(graph)
    asked, forced = (
        {group[name] for name in names if name in group}
        for names in (_asked_wide(graph, group, activations), (*_forced(graph), *weighing))
    )
    if activations == "auto":
        asked |= {*_lossy(graph, group, ranges), *(group[name] for name in behind(graph))}
    brought = _brought(graph, group)
    asked |= {root for root, quant in brought.items() if quant.bits == 16}
    wide, pinned = asked | forced, {**brought, **_pinned(graph, group)}
    stepped = {group[name] for node in graph.nodes for name in node.op.stepped(node) if name in group}
    made = {node.output: node for node in graph.nodes}
    spans: dict[str, list[Range]] = {}
    for name, root in group.items():
        origin = graph.values[name].origin
        seen = [ranges[n] for n in (origin.name if origin is not None else "", name) if n in ranges]
        natural = _natural(made[name], root in wide, seen) if name in made else None
        spans.setdefault(root, []).extend([natural] if natural is not None else seen)
    for result, span in _initial_spans(graph, ranges):
        spans[group[result]].append(span)
    merged = {root: _merge(graph, root, found, pinned.get(root)) for root, found in spans.items()}
    raise_all(ModelError, "recurrent layers leave the range of their integers:", list(_beyond(graph, group, merged)))
    return _Quants(group, merged, wide, law.power_of_two_scales, pinned, stepped, forced - asked)


def unpinned(graph: Graph) -> list[str]:
    """Return the ONNX tensors, sorted, whose ranges decide about scales: the model pins no scale of theirs."""
    group = _groups(graph)
    pins = _brought(graph, group)
    open_ = [graph.values[name].origin for name, root in group.items() if root not in pins]
    return sorted({origin.name for origin in open_ if origin is not None})


def _brought(graph: Graph, group: Mapping[str, str]) -> dict[str, Quant]:
    """Return the quantization of the groups that the model itself pins."""
    found = [(root, graph.values[name].type.quant) for name, root in group.items()]
    return {root: quant for root, quant in found if quant is not None}


def _initial_spans(graph: Graph, ranges: Mapping[str, Range]) -> Iterator[tuple[str, Range]]:
    """Yield results of recurrent layers with the range of the initial state that must fit into their integers too."""
    for node in graph.nodes:
        for name, result in zip(node.inputs[1 : node.op.operands], node.outputs, strict=False):
            if not isinstance(node.op, Recurrent):
                continue
            held, origin = graph.constants.get(name), graph.values[name].origin
            if held is not None:
                yield result, Range(min(0.0, float(held.min())), max(0.0, float(held.max())))
            elif origin is not None and origin.name in ranges:
                yield result, ranges[origin.name]


def _beyond(graph: Graph, group: Mapping[str, str], spans: Mapping[str, Range]) -> Iterator[str]:
    """Yield what recurrent layers reach in float and their integers cannot."""
    layers = [layer for layer in graph.nodes if isinstance(layer.op, Recurrent)]
    for node, name, limit in ((layer, *pair) for layer in layers for pair in layer.op.reach(layer).items()):
        held, span = graph.constants.get(name), spans.get(group.get(name, ""))
        peak = float(np.abs(held).max()) if held is not None else max(-span.low, span.high) if span is not None else 0.0
        if peak > limit * (1 + ROUNDED):
            yield f"{node.name!r} ({node.op.name}): {name!r} reaches {peak:g}, allowed is {limit:g} at most"


def _pinned(graph: Graph, group: Mapping[str, str]) -> dict[str, Quant]:
    """Return the quantization of the groups that operators pin.

    Raises:
        ModelError: two operators want another one.
    """
    found: dict[str, Quant] = {}
    for node in graph.nodes:
        for name, quant in node.op.pins(node).items():
            if name in group and found.setdefault(group[name], quant) != quant:
                raise ModelError(
                    f"node {node.name!r} ({node.op.name}): {name!r} has steps of {quant.scale:g}, but shares its bytes "
                    f"with a tensor that another operator has in steps of {found[group[name]].scale:g}"
                )
    return found


def _asked_wide(graph: Graph, group: Mapping[str, str], activations: str | Collection[str]) -> list[str]:
    """Return the values that the user wants as int16."""
    if isinstance(activations, str):
        if activations not in WIDTHS:
            raise ModelError(f"activations {activations!r}: unknown; allowed: {', '.join(WIDTHS)}, or names of tensors")
        return list(group) if activations == "int16" else []
    known = {origin.name: name for name in group if (origin := graph.values[name].origin) is not None}
    missing = [f"{name!r}" for name in activations if name not in known]
    if missing:
        raise ModelError(
            f"activations: no tensor {', '.join(missing)} in the compiled graph (what is fused or folded is not one); "
            f"`nnac diff --all` lists those that are"
        )
    return [known[name] for name in activations]


def _lossy(graph: Graph, group: Mapping[str, str], ranges: Mapping[str, Range]) -> Iterator[str]:
    """Yield the groups that hold a value of which int8 would keep too little (rule 11)."""
    found: dict[str, list[Range]] = {}
    for name, root in group.items():
        origin = graph.values[name].origin
        span = ranges.get(origin.name if origin is not None else name)
        if span is not None:
            found.setdefault(root, []).append(span)
    for root, spans in found.items():
        scale = (max(r.high for r in spans) - min(r.low for r in spans)) / 255
        if any(r.power is not None and r.power < FAITHFUL * scale**2 / 12 for r in spans):
            yield root


def _only_wide(graph: Graph) -> Iterator[str]:
    """Yield the values that an operator takes or makes as int16 only."""
    for node in graph.nodes:
        names = (*graph.operands(node), node.output)
        yield from (n for n, bits in zip(names, node.op.widths(len(names) - 1), strict=True) if bits == (16,))


def _groups(graph: Graph, hidden: bool = True) -> dict[str, str]:
    """Return a representative per value: union-find over the operators that change no value, states, and other ties.

    Without `hidden`, the hidden values that go into a recurrent layer are not tied to those that come out.
    """
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
    ties = [*graph.states, *(pair for node in graph.nodes for pair in node.op.ties(node))]
    loose = {pair for node in graph.nodes if isinstance(node.op, Recurrent) for pair in node.op.hidden_ties(node)}
    for source, result in ties if hidden else (pair for pair in ties if pair not in loose):
        if source in parent:
            parent[find(source)] = find(result)
    return {name: find(name) for name in parent}


def _natural(node: Node, wide: bool, seen: Sequence[Range]) -> Range | None:
    """Return the range that a function's values have by nature, if that is what they are quantized over."""
    if isinstance(node.op, Softmax):
        span = FIXED_RANGE
    elif isinstance(node.op, Activation) and node.op.kind in FIXED_RANGES:
        span = FIXED_RANGES[node.op.kind]
        if not wide and seen and max(r.high for r in seen) - min(r.low for r in seen) < (span[1] - span[0]) / 2:
            return None
    else:
        return None
    return Range(0.0, INT16_HIGH * WIDE_SCALE) if wide else Range(*span)


def _merge(graph: Graph, root: str, found: list[Range], pin: Quant | None) -> Range:
    if pin is not None and not found:
        return Range(pin.scale * (pin.low - pin.zero_point), pin.scale * (pin.high - pin.zero_point))
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
        if names[i] not in quants.roots:
            continue
        allowed = quants.allowed(node, names[i], allowed)
        if quants.of(names[i]).bits not in allowed:
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
        return _layer(draft, node, draft.values[node.inputs[INPUT]].type.quant, law)
    if isinstance(node.op, Recurrent):
        return _layer(draft, _initial(draft, node), draft.values[node.output].type.quant, law)
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
        quant = draft.values[name].type.quant or activation_quant(low, high, law.power_of_two_scales, bits)
    new = draft.add_constant(f"{name}.{quant.dtype}", quant.quantize(array))
    draft.values[new] = _typed(draft.values[new], quant)
    return new


def _initial(draft: Draft, node: Node) -> Node:
    """Quantize the constant initial states of a recurrent layer as the states themselves."""
    inputs = list(node.inputs)
    for i, name in enumerate(inputs[: node.op.operands]):
        if name in draft.constants:
            quant = node.op.pins(node).get(name) or draft.values[node.outputs[i - 1]].type.quant
            assert quant is not None
            inputs[i] = draft.add_constant(f"{name}.{quant.dtype}", quant.quantize(draft.constants[name]))
            draft.values[inputs[i]] = _typed(draft.values[inputs[i]], quant)
    return draft.update(node, inputs=tuple(inputs))


def _layer(draft: Draft, node: Node, quant: Quant | None, law: Arithmetic) -> None:
    """Quantize weights and bias of a layer, which stand behind its operands, for an input of `quant`."""
    assert quant is not None
    operands, layer = node.inputs[: node.op.operands], node.inputs[node.op.operands :]
    weight, bias = (draft.constants[name] for name in layer[:2])
    if len(layer) > 2:  # an encoding pass has chosen integers and scales already
        scale, integer = draft.constants[layer[2]], draft.constants[layer[0]]
    else:
        bias = bias.astype(np.float64)
        scale = weight_scales(weight, bias, quant.scale, law)
        integer = int8_weights(weight, scale)
    units = scale.astype(np.float64) * quant.scale
    steps = np.rint(bias / units if bias.dtype != np.int32 else bias).astype(np.int64)
    _prove(node, integer, steps, quant)
    names = (
        draft.add_constant(f"{layer[0]}.int8", integer),
        draft.add_constant(f"{layer[1]}.int32", steps.astype(np.int32)),
        draft.add_constant(f"{layer[0]}.scale", scale),
    )
    draft.update(node, inputs=(*operands, *names))


def int8_weights(weight: Array, scale: Array) -> Array:
    """Return int8 weights in [-127, 127] of reals (O, ...) for float32 scales (O,), rounded half to even."""
    steps = np.asarray(weight / scale.astype(np.float64).reshape(-1, *(1,) * (weight.ndim - 1)))
    np.clip(np.rint(steps, out=steps), -127, 127, out=steps)
    return steps.astype(np.int8)


def weight_scales(weight: Array, bias: Array, input_scale: float, law: Arithmetic) -> Array:
    """Return float32 scales per output channel for weights (O, ...) and biases (O,), reals."""
    peak = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float64) / 127
    needed = np.abs(bias) / (BIAS_LIMIT * input_scale)
    scale = np.maximum(peak, needed)
    if not law.per_channel:
        scale = np.full_like(scale, scale.max())
    scale = np.where(scale > 0, scale, 1.0)
    if law.power_of_two_scales:
        return np.array([_scale(float(s), True) for s in scale], dtype=np.float32)
    return np.maximum(scale, TINY).astype(np.float32)


def _prove(node: Node, weight: Array, bias: Array, quant: Quant) -> None:
    """Prove that the sum of every output channel fits 32 bits (40 over int16), whatever the input."""
    reach = max(quant.low - quant.zero_point, quant.high - quant.zero_point, key=abs)
    bits = 32 + WIDE_BITS if quant.bits == 16 else 32
    total = np.abs(weight.astype(np.int16)).reshape(len(weight), -1).sum(axis=1, dtype=np.int64)
    worst = total * abs(reach) + np.abs(bias)
    if worst.max() >= 2 ** (bits - 1):
        channel = int(worst.argmax())
        raise ModelError(
            f"node {node.name!r}: the sum of output channel {channel} can reach {int(worst.max()):,}, "
            f"outside {bits} bits; split the layer along its inputs"
        )
