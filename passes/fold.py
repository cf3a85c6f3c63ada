"""Fold: constant arithmetic of neighbours goes into the weights and biases of a convolution or dense layer.

Rules, on the float graph, each for a producer that nothing else reads (but moves, up to the reader: `through`):

1. a depthwise 1x1 convolution without pads and clamp (what the frontend makes of BatchNormalization and of Mul and
   Add by a constant per channel) behind a Conv or Dense scales its weights and replaces its bias;
2. a scalar affine activation behind a Conv or Dense does the same;
3. a Sum with a constant vector along the last axis behind a Conv or Dense adds to its bias;
4. an affine without offset, of positive scale, in front of or behind a MatMul becomes its factor;
5. a zero Pad of height and width in front of a Conv becomes its pads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from nnac.graph import Draft, Graph, Node, sort_nodes
from nnac.ops import Activation, Conv, Dense, MatMul, Pad, Sum
from nnac.ops.base import UNBOUNDED
from nnac.ops.conv import BIAS, INPUT, SCALE, WEIGHT, real_bias
from nnac.passes.through import alone, channels_behind, give, maker
from nnac.types import Array


def fold(graph: Graph) -> Graph:
    """Return the graph with foldable neighbours merged."""
    draft = graph.draft()
    users = draft.users()  # stays true: a merged node's readers become the layer's
    for name in [node.name for node in sort_nodes(list(draft.nodes.values()))]:
        node = draft.nodes[name]
        if not _fold_affine(draft, node, users) and not _fold_factor(draft, node, users):
            _fold_pad(draft, node, users)
    return draft.freeze()


def _fold_affine(draft: Draft, node: Node, users: Mapping[str, list[Node]]) -> bool:
    affine = _as_affine(draft, node)
    if affine is None:
        return False
    source, scale, offset = affine
    layer, moves = maker(draft, source, draft.producers(), users)
    if layer is None or not isinstance(layer.op, Conv | Dense) or layer.op.clamp != UNBOUNDED:
        return False
    if not alone(draft, source, users) or draft.values[layer.output].type.quant is not None:
        return False
    if len(layer.inputs) > SCALE and not _keeps_integers(draft.constants[layer.inputs[WEIGHT]], scale):
        return False
    if moves and (scale.size > 1 or offset.size > 1):
        ends = channels_behind(draft.values[layer.output].shape, moves)
        if ends is None:
            return False
        scale, offset = (v[ends] if v.size > 1 else v for v in (scale, offset))
    _merge(draft, node, layer, moves, scale, offset)
    return True


def _as_affine(draft: Draft, node: Node) -> tuple[str, Array, Array] | None:
    """Return (input, scale, offset) of a node that computes x * scale + offset with constants, per channel or not."""
    match node.op:
        case Conv(strides=(1, 1), pads=(0, 0, 0, 0), clamp=clamp) if clamp == UNBOUNDED and len(node.inputs) <= SCALE:
            weight = draft.constants[node.inputs[WEIGHT]]
            if weight.shape[1:] == (1, 1, 1) and node.op.groups == weight.shape[0]:
                return node.inputs[INPUT], weight.reshape(-1), draft.constants[node.inputs[BIAS]]
        case Activation(kind="affine", params=(scale, offset)):
            return node.inputs[0], np.array([scale], np.float32), np.array([offset], np.float32)
        case Sum(clamp=clamp, signs=signs) if len(node.inputs) == 2 and clamp == UNBOUNDED:
            return _as_offset(draft, node, signs)
    return None


def _as_offset(draft: Draft, node: Node, signs: tuple[int, ...]) -> tuple[str, Array, Array] | None:
    fixed = [i for i in (0, 1) if node.inputs[i] in draft.constants]
    if len(fixed) != 1:
        return None
    array, source = draft.constants[node.inputs[fixed[0]]], node.inputs[1 - fixed[0]]
    shape = draft.values[source].shape
    if (
        draft.values[node.output].shape != shape
        or array.size not in (1, shape[-1])
        or array.shape[-1:] != (array.size,)
    ):
        return None
    sign = np.array([signs[1 - fixed[0]]], np.float32)
    return source, sign, (array.reshape(-1) * signs[fixed[0]]).astype(np.float32)


def _merge(draft: Draft, node: Node, layer: Node, moves: list[Node], scale: Array, offset: Array) -> None:
    names = _folded(draft, layer, scale.astype(np.float64), offset.astype(np.float64))
    del draft.nodes[node.name]
    layer = give(draft, layer, moves, draft.values[node.output])
    draft.update(layer, inputs=(layer.inputs[INPUT], *names))


def _fold_factor(draft: Draft, node: Node, users: Mapping[str, list[Node]]) -> bool:
    """Let a factor behind or in front of a product of activations be its own."""
    if isinstance(node.op, MatMul):
        for name in dict.fromkeys(node.inputs):
            _take_factor(draft, draft.nodes[node.name], name, users)
        return True
    factor = _as_factor(node)
    if factor is None or not alone(draft, node.inputs[0], users):
        return False
    product, moves = maker(draft, node.inputs[0], draft.producers(), users)
    if product is None or not isinstance(product.op, MatMul) or product.op.clamp != UNBOUNDED:
        return False
    if draft.values[product.output].type.quant is not None:
        return False
    del draft.nodes[node.name]
    product = give(draft, product, moves, draft.values[node.output])
    draft.update(product, op=replace(product.op, factor=product.op.factor * factor))
    return True


def _take_factor(draft: Draft, product: Node, name: str, users: Mapping[str, list[Node]]) -> None:
    """Let a product take over the factor of what only it reads; what lies between stands for nothing in ONNX."""
    affine, moves = maker(draft, name, draft.producers(), users)
    factor = _as_factor(affine) if affine is not None else None
    if affine is None or factor is None or not alone(draft, affine.output, users) or product.inputs.count(name) > 1:
        return
    if any(draft.values[node.output].type.quant is not None for node in (affine, *moves)):
        return
    if moves:
        draft.update(moves[0], inputs=affine.inputs)
        for move in moves:
            draft.values[move.output] = replace(draft.values[move.output], origin=None)
        names = product.inputs
    else:
        names = tuple(affine.inputs[0] if each == name else each for each in product.inputs)
    draft.update(product, op=replace(product.op, factor=product.op.factor * factor), inputs=names)


def _as_factor(node: Node) -> float | None:
    """Return the scale of an affine function without offset, if it is positive."""
    match node.op:
        case Activation(kind="affine", params=(scale, offset)) if offset == 0 and scale > 0:
            return float(scale)
    return None


def _folded(draft: Draft, layer: Node, scale: Array, offset: Array) -> list[str]:
    """Return the constants of a layer behind which something scales and shifts; integers keep, their scales change."""
    weight, bias = (draft.constants[layer.inputs[i]] for i in (WEIGHT, BIAS))
    folded = {}
    if len(layer.inputs) > SCALE:
        units = draft.constants[layer.inputs[SCALE]].astype(np.float64)
        bias = real_bias(bias, units, draft.values[layer.inputs[INPUT]].type.quant)
        folded[SCALE] = units * np.abs(scale)
        folded[WEIGHT] = weight * np.sign(scale).reshape(-1, *(1,) * (weight.ndim - 1))
    else:
        folded[WEIGHT] = weight.astype(np.float64) * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    folded[BIAS] = bias.astype(np.float64) * scale + offset
    new = {i: draft.add_constant(layer.inputs[i], array.astype(_dtype(weight, i))) for i, array in folded.items()}
    return [new.get(i, name) for i, name in enumerate(layer.inputs) if i != INPUT]


def _keeps_integers(weight: Array, scale: Array) -> bool:
    """Tell whether integer weights take a factor per channel in their scales and signs alone."""
    return bool((scale != 0).all() and ((scale > 0).all() or weight.min() > -128))


def _dtype(weight: Array, index: int) -> type[np.generic]:
    return np.int8 if index == WEIGHT and weight.dtype == np.int8 else np.float32


def _fold_pad(draft: Draft, node: Node, users: Mapping[str, list[Node]]) -> None:
    if not isinstance(node.op, Conv):
        return
    pad = draft.producers().get(node.inputs[INPUT])
    if pad is None or not isinstance(pad.op, Pad) or pad.op.value != 0.0:
        return
    before, after, pin = pad.op.before, pad.op.after, draft.values[pad.inputs[0]].type.quant
    if before[0] or after[0] or before[3] or after[3] or not alone(draft, pad.output, users, pin):
        return
    top, left, bottom, right = node.op.pads
    pads = (top + before[1], left + before[2], bottom + after[1], right + after[2])
    draft.update(node, op=replace(node.op, pads=pads), inputs=(pad.inputs[0], *node.inputs[1:]))
