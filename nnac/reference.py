"""The reference execution: an integer graph run node by node with the operators' exact numpy meanings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nnac.graph import Graph
from nnac.ops.base import bind
from nnac.targets import Arithmetic
from nnac.types import Array, TensorType


def run(graph: Graph, inputs: Mapping[str, Array], law: Arithmetic) -> dict[str, Array]:
    """Return every computed value of an integer graph for its inputs, all of them integers in device layout."""
    values: dict[str, Array] = {**graph.constants, **inputs}
    for node in graph.nodes:
        made = node.op.results(bind(graph, node, law), [values[name] for name in node.inputs])
        values.update(zip(node.outputs, made, strict=True))
    return {name: array for name, array in values.items() if name not in graph.constants}


def probe(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """Return seeded random inputs over the whole range."""
    return seeded({name: graph.values[name].type for name in graph.inputs}, seed)


def seeded(types: Mapping[str, TensorType], seed: int) -> dict[str, Array]:
    """Return the integers (device layout) that a known answer's seed stands for, drawn in the order of `types`."""
    rng = np.random.default_rng(seed)
    return {name: whole_range(rng, kind) for name, kind in types.items()}


def whole_range(rng: np.random.Generator, kind: TensorType) -> Array:
    """Return random integers of a type, all values alike; of those that stand for themselves 0 and 1, valid indices."""
    if kind.quant is not None and kind.quant.is_whole:
        return rng.integers(0, 2, kind.shape).astype(kind.dtype)
    limits = np.iinfo(kind.dtype)
    return rng.integers(limits.min, limits.max + 1, kind.shape).astype(kind.dtype)
