"""Small integer graphs for tests: one operator alone, as a graph of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nnac.graph import Graph, Node, Origin, Value
from nnac.isa import AnyInstruction
from nnac.ops import Sample
from nnac.passes.schedule import schedule, with_tokens
from nnac.reference import whole_range
from nnac.targets import Memory, Target
from nnac.types import Array, TensorType


def graph_of(sample: Sample) -> Graph:
    """Return the graph of one node: its run-time operands are graph inputs."""
    names = tuple(f"x{i}" for i in range(len(sample.inputs)))
    values = {n: Value(n, t, Origin(n)) for n, t in zip(names, sample.inputs, strict=True)}
    results = {f"y{i or ''}": kind for i, kind in enumerate((sample.output, *sample.more))}
    values |= {n: Value(n, t, Origin(n)) for n, t in results.items()}
    constants = {names[i]: array for i, array in sample.constants.items()}
    inputs = tuple(n for n in names if n not in constants)
    node = Node("node", sample.op, names, "y", tuple(results)[1:])
    return Graph("sample", (node,), values, constants, inputs, node.outputs)


def random_inputs(graph: Graph, rng: np.random.Generator) -> dict[str, Array]:
    """Return integer inputs with both ends of the range well represented."""

    def draw(kind: TensorType) -> Array:
        limits, ends = np.iinfo(kind.dtype), rng.random(kind.shape)
        x = whole_range(rng, kind)
        return np.where(ends < 0.1, limits.min, np.where(ends > 0.9, limits.max, x)).astype(kind.dtype)

    return {name: draw(graph.values[name].type) for name in graph.inputs}


def scheduled(instructions: Sequence[AnyInstruction]) -> tuple[AnyInstruction, ...]:
    """Return the instructions with the wait tokens that program order demands."""
    return with_tokens(instructions, schedule(instructions))


def with_memory(target: Target, **sizes: int) -> Target:
    """Return the target with other memory sizes, in bytes."""
    memory: dict[str, Memory] = {**target.memory}
    for name, size in sizes.items():
        memory[name] = replace(memory[name], bytes=size)
    return replace(target, memory=memory)
