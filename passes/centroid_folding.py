"""Centroid folding: weights that training has clustered already become int8 levels with a scale.

Rules, on the float graph (constant folding has turned codebook gathers, dequantized small integers and one-hot chains
into plain float weights by then):

1. a Conv or Dense whose weights, or the weights of each output channel up to a factor, take at most 128 values, and at
   least four weights per value, is folded;
2. where the values fit one int8 grid nothing is lost; else scale and levels are searched together for the least loss,
   and the finding says how much;
3. a layer that the plan calls clustered and that is not is an error with its number of distinct values;
4. a machine with power-of-two scales, or with one scale per tensor, only gets folds that keep to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp

import numpy as np

from nnac.codebooks import Encoded, fold_centroids
from nnac.errors import ModelError, raise_all
from nnac.graph import Draft, Graph, Node
from nnac.ops import Conv, Dense
from nnac.ops.conv import BIAS, INPUT, SCALE, WEIGHT
from nnac.targets import Arithmetic
from nnac.types import Array
from nnac.weightplan import WeightPlan

MOST_BITS = 7
SHARE = 4
"""A value must stand for this many weights on average, or the tensor is small rather than clustered."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What an encoding pass did to one layer's weights.

    Attributes:
        method: "centroids", or generator and assigner.
        levels: int8 levels per table, at most.
        sqnr_db: of the decoded weights against the float ones; inf: nothing lost.
    """

    layer: str
    method: str
    bits: int
    levels: int
    sqnr_db: float


def centroid_folding(graph: Graph, plan: WeightPlan, law: Arithmetic) -> tuple[Graph, tuple[Finding, ...]]:
    """Return the graph with clustered weights folded, and what was found.

    Raises:
        ModelError: layers that should be clustered are not (all of them are listed).
    """
    draft, findings, problems = graph.draft(), [], []
    for node in weighted_layers(graph):
        weight, choice = graph.constants[node.inputs[WEIGHT]], plan.choice(node.name, node.op.name)
        bits = choice.bits if choice.clustered else MOST_BITS
        encoded = _folded(weight, bits, law)
        if encoded is None and choice.clustered:
            problems.append(f"{node.name!r}: {len(np.unique(weight)):,} distinct values, allowed {2**choice.bits} for "
                            f"{choice.bits} bits")
        if encoded is not None:
            put_encoded(draft, node, encoded)
            findings.append(finding(node, "centroids", encoded))
    raise_all(ModelError, "weights that should be clustered are not:", problems)
    return draft.freeze(), tuple(findings)


def weighted_layers(graph: Graph) -> list[Node]:
    """Return the layers whose weights are still real."""
    return [node for node in graph.nodes if isinstance(node.op, Conv | Dense) and len(node.inputs) <= SCALE]


def _folded(weight: Array, bits: int, law: Arithmetic) -> Encoded | None:
    if weight.size < SHARE * 2:
        return None
    encoded = fold_centroids(weight, bits)
    if encoded is None or sum(len(t) for t in encoded.tables) * SHARE > weight.size or not _obeys(encoded.scale, law):
        return None
    return encoded


def _obeys(scale: Array, law: Arithmetic) -> bool:
    powers = all(frexp(float(s))[0] == 0.5 for s in scale)
    return (powers or not law.power_of_two_scales) and (law.per_channel or len(np.unique(scale)) == 1)


def put_encoded(draft: Draft, node: Node, encoded: Encoded) -> None:
    """Give a float layer its int8 weights and their scales; `passes.quantize` leaves them as they are."""
    weight = draft.add_constant(f"{node.inputs[WEIGHT]}.int8", encoded.weights)
    scale = draft.add_constant(f"{node.inputs[WEIGHT]}.scale", encoded.scale)
    draft.update(node, inputs=(node.inputs[INPUT], weight, node.inputs[BIAS], scale))


def finding(node: Node, method: str, encoded: Encoded) -> Finding:
    """Return the record of one encoded layer."""
    levels = max(len(table) for table in encoded.tables)
    return Finding(node.name, method, max(1, int(levels - 1).bit_length()), levels, encoded.sqnr_db)
