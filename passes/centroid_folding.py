"""Centroid folding: weights that training has clustered already become int8 levels with a scale.

Rules, on the float graph (constant folding has turned codebook gathers, dequantized small integers and one-hot chains
into plain float weights by then):

1. a layer whose weights, or the weights of each output channel up to a factor, take at most 128 values, and at
   least four weights per value, is folded (scaled channels only where they repeat values, or where the plan says so);
2. where the values fit one int8 grid nothing is lost; else scale and levels are searched together for the least loss
   (the account of weights, `nnac inspect --weights`, says how much);
3. a layer that the plan calls clustered and that is not is an error with its number of distinct values;
4. a machine with power-of-two scales, or with one scale per tensor, only gets folds that keep to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nnac.errors import ModelError, raise_all
from nnac.graph import Draft, Graph, Node
from nnac.ops.base import layer_constants
from nnac.targets import Arithmetic
from nnac.types import Array
from nnac.weights.choice import WeightPlan

if TYPE_CHECKING:
    from nnac.weights.codebooks import Encoded

MOST_BITS = 7
SHARE = 4
"""A value must stand for this many weights on average, or the tensor is small rather than clustered."""
PARTS = 16
"""Channels are looked at in so many parts, since the answer may be known early."""


def centroid_folding(graph: Graph, plan: WeightPlan, law: Arithmetic) -> Graph:
    """Return the graph with clustered weights folded.

    Raises:
        ModelError: a rule of the plan matches no layer, or layers that should be clustered are not (all are listed).
    """
    plan.check([(node.name, node.op.name) for node in weighted_layers(graph)])
    draft, problems = graph.draft(), []
    for node in weighted_layers(graph):
        weight, choice = graph.constants[layer_constants(node)[0]], plan.choice(node.name, node.op.name)
        bits = choice.bits if choice.clustered else MOST_BITS
        encoded = None
        if not _has_more(weight[0], 2**bits):  # one channel alone
            encoded = _folded(weight, bits, law, law.per_channel and (choice.clustered or _repeats(weight)))
        if encoded is None and choice.clustered:
            problems.append(
                f"{node.name!r}: {len(np.unique(weight)):,} distinct values, allowed {2**choice.bits} for "
                f"{choice.bits} bits"
            )
        if encoded is not None:
            put_encoded(draft, node, encoded)
    raise_all(ModelError, "weights that should be clustered are not:", problems)
    return draft.freeze()


def weighted_layers(graph: Graph) -> list[Node]:
    """Return the layers whose weights are still real."""
    return [node for node in graph.nodes if len(layer_constants(node)) == 2]


def _repeats(weight: Array) -> bool:
    """Tell whether channels repeat their values: else to look for scaled copies of one table is not worth the time."""
    distinct = 0
    for rows in np.array_split(weight.reshape(len(weight), -1), PARTS):
        distinct += len(rows) + int(np.count_nonzero(np.diff(np.sort(rows, axis=1))))
        if distinct * 2 > weight.size:
            return False
    return True


def _has_more(weight: Array, count: int) -> bool:
    """Tell whether there are more than `count` distinct values; a few of them mostly say so."""
    values = weight.reshape(-1)
    return any(len(np.unique(some)) > count for some in (values[: count * SHARE], values))


def _folded(weight: Array, bits: int, law: Arithmetic, per_channel: bool) -> Encoded | None:
    if weight.size < SHARE * 2 or (not per_channel and _has_more(weight, min(2**bits, weight.size // SHARE))):
        return None
    from nnac.weights.folding import fold_centroids  # compiles kernels, which most networks do not need

    encoded = fold_centroids(weight, bits, per_channel=per_channel, power_of_two=law.power_of_two_scales)
    scarce = encoded is not None and sum(len(table) for table in encoded.tables) * SHARE > weight.size
    return None if scarce else encoded


def put_encoded(draft: Draft, node: Node, encoded: Encoded) -> None:
    """Give a float layer its int8 weights and their scales; `passes.quantize` leaves them as they are."""
    name, bias = layer_constants(node)
    weight = draft.add_constant(f"{name}.int8", encoded.weights)
    scale = draft.add_constant(f"{name}.scale", encoded.scale)
    draft.update(node, inputs=(*node.inputs[: node.op.operands], weight, bias, scale))
