"""Stages of a graph: which operators and types are legal after which step; checked after every pass."""

from __future__ import annotations

from dataclasses import dataclass

from nnac.errors import ModelError, raise_all
from nnac.graph import Graph, Node
from nnac.types import TensorType

SHARING = frozenset({"Reshape", "Transpose", "Slice", "Concat", "Pad", "Take", "Insert", "MaxPool"})
"""Operators that change no value: their operands and their output have one quantization."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What holds at one stage: the dtype of computed values, and whether they carry a quantization."""

    name: str
    dtype: str
    quantized: bool


FLOAT = Stage("float", "float32", False)
INTEGER = Stage("integer", "int8", True)


def check(graph: Graph, stage: Stage) -> Graph:
    """Return the graph unchanged if it is legal at `stage`.

    Raises:
        ModelError: with every node whose shape, dtype or quantization is not what the stage demands.
    """
    problems = [problem for node in graph.nodes for problem in _problems(graph, node, stage)]
    made = {*graph.inputs, *graph.constants, *(node.output for node in graph.nodes)}
    problems += [f"output {name!r} is not computed" for name in graph.outputs if name not in made]
    raise_all(ModelError, f"graph {graph.name!r} is not legal at stage {stage.name!r}:", problems)
    return graph


def _problems(graph: Graph, node: Node, stage: Stage) -> list[str]:
    types = graph.types(node.inputs)
    shapes = [t.shape for t in types]
    where = f"node {node.name!r} ({node.op.name})"
    problems = [f"{where}: needs: {sentence}" for sentence in node.op.problems(shapes)]
    if problems:
        return problems
    output = graph.values[node.output].type
    if node.op.infer(shapes) != output.shape:
        problems.append(f"{where}: makes shape {node.op.infer(shapes)}, its value says {output.shape}")
    operands = [graph.values[name].type for name in graph.operands(node)]
    if any(t.dtype != stage.dtype or (t.quant is not None) != stage.quantized for t in (*operands, output)):
        problems.append(f"{where}: operands and output must be {stage.dtype}")
    elif stage.quantized and node.op.name in SHARING and not _one_quant([*operands, output]):
        problems.append(f"{where}: operands and output must have one quantization")
    return problems


def _one_quant(types: list[TensorType]) -> bool:
    return len({t.quant for t in types}) == 1
