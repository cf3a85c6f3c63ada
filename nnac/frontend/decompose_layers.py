"""Rewrites of whole layers: com.microsoft's norms and attention, LRN, pools of a norm, LogSoftmax.

Sources: onnxruntime, docs/ContribOperators.md; ONNX, docs/Operators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import numpy as np
import onnx

from nnac.frontend.masks import MASKED
from nnac.frontend.rewriter import Rewrite, Rewriter, attributes
from nnac.types import Array

_NORM = ("Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div")
ATTENTION = (
    "weights and bias are constants, a mask too (one number per key, 0 where it is masked), query, key and value have "
    "equal sides, and there is no rotary embedding"
)


def _input(node: onnx.NodeProto, index: int) -> str:
    """Return the name of an input, or nothing."""
    return node.input[index] if index < len(node.input) else ""


def _output(node: onnx.NodeProto, index: int) -> str:
    return node.output[index] if index < len(node.output) else ""


def _normalized(r: Rewriter, x: str, rank: int, gain: str, offset: str, epsilon: float, centered: bool) -> str:
    """Add a norm over the last axis, written out."""
    if centered:
        x = r.add("Sub", x, r.reduce("ReduceMean", x, [rank - 1], 1))
    variance = r.reduce("ReduceMean", r.add("Mul", x, x), [rank - 1], 1)
    root = r.add("Sqrt", r.add("Add", variance, r.constant(epsilon)))
    scaled = r.add("Mul", r.add("Div", x, root), gain)
    return r.add("Add", scaled, offset) if offset else scaled


def _simplified(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """SimplifiedLayerNormalization: root-mean-square norm over the last axis."""
    given, rank = attributes(node), len(r.shapes[node.input[0]])
    if given.get("axis", -1) not in (-1, rank - 1) or not r.unused(node.output[1:]):
        return None
    return _normalized(r, node.input[0], rank, node.input[1], "", given.get("epsilon", 1e-5), False)


def _skip(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """A norm of a sum, which may be the fourth output."""
    simplified, rank = node.op_type.startswith("SkipSimplified"), len(r.shapes[node.input[0]])
    offset, bias = ("", _input(node, 3)) if simplified else (_input(node, 3), _input(node, 4))
    if not r.unused(node.output[1:3]):
        return None
    total, shown = list(node.input[:2]), _output(node, 3)
    x = r.add("Add", *total, output="" if bias else shown)
    x = r.add("Add", x, bias, output=shown) if bias else x
    return _normalized(r, x, rank, node.input[2], offset, attributes(node).get("epsilon", 1e-12), not simplified)


# -- attention -----------------------------------------------------------------------------------------------------


def _attention(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """Attention of several heads over its own input, perhaps causal, perhaps with keys and values of the past."""
    given, (batch, length, _) = attributes(node), r.shapes[node.input[0]]
    weights, bias = (r.constants.get(_input(node, i)) for i in (1, 2))
    if weights is None or bias is None or not _plain(r, node, given, weights):
        return None
    heads, side = int(given["num_heads"]), weights.shape[1] // 3
    split = (batch, length, heads, side // heads)
    query, key, value = (
        r.add("Transpose", _projected(r, node.input[0], weights, bias, part, split), perm=[0, 2, 1, 3])
        for part in range(3)
    )
    past = _input(node, 4)
    if past:
        key, value = (
            r.add("Concat", r.add("Gather", past, r.constant(index, "int64"), axis=0), each, axis=2)
            for index, each in enumerate((key, value))
        )
    total = length + (r.shapes[past][3] if past else 0)
    if _output(node, 1):
        stacked = (r.add("Reshape", each, _sides(r, (1, batch, heads, total, split[3]))) for each in (key, value))
        r.add("Concat", *stacked, axis=0, output=node.output[1])
    scores = r.add("MatMul", query, r.add("Transpose", key, perm=[0, 1, 3, 2]))
    scores = r.add("Mul", scores, r.constant(given.get("scale") or 1 / sqrt(split[3])))
    mask = _mask(r, node, given, length, total)
    scores = r.add("Add", scores, r.constant(mask)) if mask.any() else scores
    mixed = r.add("MatMul", r.add("Softmax", scores, axis=3), value)
    return r.add("Reshape", r.add("Transpose", mixed, perm=[0, 2, 1, 3]), _sides(r, (batch, length, side)))


def _plain(r: Rewriter, node: onnx.NodeProto, given: dict[str, Any], weights: Array) -> bool:
    """Tell whether the attention is of the form that is rewritten."""
    mask, heads = _input(node, 3), int(given.get("num_heads", 0))
    sizes = given.get("qkv_hidden_sizes") or [weights.shape[1] // 3] * 3
    if heads < 1 or weights.shape[1] % (3 * heads) or len(set(sizes)) > 1 or given.get("do_rotary", 0):
        return False
    if mask and (mask not in r.constants or r.constants[mask].ndim != 2):
        return False
    return not any(_input(node, i) for i in (5, 6))


def _projected(r: Rewriter, x: str, weights: Array, bias: Array, part: int, split: Sequence[int]) -> str:
    """Add the projection to queries, keys or values (batch, length, heads, side)."""
    side = weights.shape[1] // 3
    cut = slice(part * side, (part + 1) * side)
    made = r.add("Add", r.add("MatMul", x, r.constant(weights[:, cut])), r.constant(bias[cut]))
    return r.add("Reshape", made, _sides(r, split))


def _sides(r: Rewriter, shape: Sequence[int]) -> str:
    return r.constant(list(shape), "int64")


def _mask(r: Rewriter, node: onnx.NodeProto, given: dict[str, Any], length: int, total: int) -> Array:
    """Return what is added to the scores (1 or batch, 1, length, total)."""
    masked = max(float(given.get("mask_filter_value", MASKED)), MASKED)
    mask = np.zeros((1, 1, length, total), np.float32)
    if given.get("unidirectional", 0):
        mask += np.triu(np.full((length, total), masked, np.float32), total - length + 1)
    keys = r.constants.get(_input(node, 3))
    if keys is not None:
        mask = np.maximum(mask + np.where(keys[:, None, None, :] == 0, masked, 0), masked)
    return mask.astype(np.float32)


# -- others --------------------------------------------------------------------------------------------------------


def _lrn(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """x * (bias + alpha / size * sum of squares of neighbouring channels) ** -beta."""
    given, shape = attributes(node), r.shapes[node.input[0]]
    if len(shape) not in (3, 4):
        return None
    size, channels = int(given["size"]), shape[1]
    places = np.arange(channels)
    distance = places[None, :] - places[:, None]  # from an output channel to an input channel
    band = (distance >= -((size - 1) // 2)) & (distance <= size // 2)
    kernel = (band * (given.get("alpha", 1e-4) / size)).reshape(channels, channels, *(1,) * (len(shape) - 2))
    x = node.input[0]
    total = r.add("Conv", r.add("Mul", x, x), r.constant(kernel))
    shifted = r.add("Add", total, r.constant(given.get("bias", 1.0)))
    return r.add("Mul", x, r.add("Pow", shifted, r.constant(-given.get("beta", 0.75))))


def _norm_pool(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """LpPool: the mean of absolute values, or of squares, times the window's taps."""
    given = attributes(node)
    order = given.pop("p", 2)
    if order not in (1, 2) or given.get("ceil_mode", 0) or any(d != 1 for d in given.pop("dilations", [])):
        return None
    given.pop("ceil_mode", None)
    mean = r.add("AveragePool", _power(r, node.input[0], order), count_include_pad=1, **given)
    return _root(r, r.add("Mul", mean, r.constant(prod(given["kernel_shape"]))), order)


def _global_norm_pool(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """GlobalLpPool: the same over all of space."""
    order, rank = attributes(node).get("p", 2), len(r.shapes[node.input[0]])
    if order not in (1, 2):
        return None
    return _root(r, r.reduce("ReduceSum", _power(r, node.input[0], order), range(2, rank), 1), order)


def _power(r: Rewriter, x: str, order: int) -> str:
    return r.add("Abs", x) if order == 1 else r.add("Mul", x, x)


def _root(r: Rewriter, x: str, order: int) -> str:
    return x if order == 1 else r.add("Sqrt", x)


def _log_softmax(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """d - log(sum(exp(d))) with d = x - max(x)."""
    rank = len(r.shapes[node.input[0]])
    axis = int(attributes(node).get("axis", -1 if r.opset >= 13 else 1)) % rank
    if r.opset < 13 and axis != rank - 1:
        return None
    distance = r.add("Sub", node.input[0], r.reduce("ReduceMax", node.input[0], [axis], 1))
    total = r.reduce("ReduceSum", r.add("Exp", distance), [axis], 1)
    return r.add("Sub", distance, r.add("Log", total))


REWRITES: dict[str, Rewrite] = {
    "SimplifiedLayerNormalization": Rewrite(_simplified, _NORM, "the last axis is normalised, for one output"),
    "com.microsoft.SkipLayerNormalization": Rewrite(_skip, _NORM, "mean and deviation are not used"),
    "com.microsoft.SkipSimplifiedLayerNormalization": Rewrite(_skip, _NORM, "mean and deviation are not used"),
    "com.microsoft.Attention": Rewrite(_attention, ("MatMul", "Softmax", "Transpose"), ATTENTION),
    "LRN": Rewrite(_lrn, ("Mul", "Conv", "Pow"), "the input is 1-D or 2-D with channels (rank 3 or 4)"),
    "LpPool": Rewrite(_norm_pool, ("AveragePool", "Abs", "Sqrt"), "p is 1 or 2, without dilations and ceil_mode"),
    "GlobalLpPool": Rewrite(_global_norm_pool, ("ReduceSum", "Abs", "Sqrt"), "p is 1 or 2"),
    "LogSoftmax": Rewrite(_log_softmax, ("Sub", "Exp", "ReduceSum", "Log"), "since opset 13, or along the last axis"),
}
"""By the name that messages use."""
