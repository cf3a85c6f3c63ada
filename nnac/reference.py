"""The reference execution: an integer graph run node by node with the operators' exact numpy meanings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nnac.graph import Graph
from nnac.ops.base import bind
from nnac.targets import Arithmetic
from nnac.types import Array


def run(graph: Graph, inputs: Mapping[str, Array], law: Arithmetic) -> dict[str, Array]:
    """Return every computed value (int8, device layout) of an integer graph for int8 inputs (device layout)."""
    values: dict[str, Array] = {**graph.constants, **inputs}
    for node in graph.nodes:
        made = node.op.results(bind(graph, node, law), [values[name] for name in node.inputs])
        values.update(zip(node.outputs, made, strict=True))
    return {name: array for name, array in values.items() if name not in graph.constants}


def probe(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """Return seeded random int8 inputs over the whole range."""
    return seeded({name: graph.values[name].shape for name in graph.inputs}, seed)


def seeded(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """Return the int8 arrays (device layout) that a known answer's seed stands for, drawn in the order of `shapes`."""
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-128, 128, shape).astype(np.int8) for name, shape in shapes.items()}
