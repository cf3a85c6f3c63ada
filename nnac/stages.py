"""Stages of a graph: which operators and types are legal after which step; checked after every pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nnac.errors import ModelError, raise_all
from nnac.graph import Graph, Node
from nnac.types import TensorType

SHARING = frozenset({"Reshape", "Transpose", "Slice", "Concat", "Pad", "Take", "Insert", "MaxPool"})
"""Operators that change no value: their operands and their output have one quantization."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What holds at one stage: the dtypes of computed values, and whether all of them carry a quantization.

    A real value that carries one is pinned: it will be quantized so, whatever its range.
    """

    name: str
    dtypes: tuple[str, ...]
    quantized: bool

    def admits(self, kind: TensorType) -> bool:
        """Tell whether a computed value may have this type."""
        if kind.dtype not in self.dtypes or (self.quantized and kind.quant is None):
            return False
        return (
            not self.quantized
            or kind.quant is None
            or (kind.dtype == kind.quant.dtype and (kind.quant.bits == 8 or not kind.quant.zero_point))
        )


FLOAT = Stage("float", ("float32",), False)
INTEGER = Stage("integer", ("int8", "int16"), True)


def check(graph: Graph, stage: Stage, known: Graph | None = None) -> Graph:
    """Return the graph unchanged if it is legal at `stage`; so is `known`, whose nodes and values need no second look.

    Raises:
        ModelError: with every node whose shape, dtype or quantization is not what the stage demands.
    """
    problems = [problem for node in _unseen(graph, known) for problem in _problems(graph, node, stage)]
    made = {*graph.inputs, *graph.constants, *(name for node in graph.nodes for name in node.outputs)}
    problems += [f"output {name!r} is not computed" for name in graph.outputs if name not in made]
    raise_all(ModelError, f"graph {graph.name!r} is not legal at stage {stage.name!r}:", problems)
    return graph


def _unseen(graph: Graph, known: Graph | None) -> Iterable[Node]:
    """Return the nodes that are not the same objects, with the same values, in a known graph."""
    if known is None:
        return graph.nodes
    nodes = set(map(id, known.nodes))
    values = {name for name, value in graph.values.items() if known.values.get(name) is not value}
    return [node for node in graph.nodes if id(node) not in nodes or not values.isdisjoint(node.inputs + node.outputs)]


def _problems(graph: Graph, node: Node, stage: Stage) -> list[str]:
    types = graph.types(node.inputs)
    shapes = [t.shape for t in types]
    where = f"node {node.name!r} ({node.op.name})"
    problems = [f"{where}: needs: {sentence}" for sentence in node.op.problems(shapes)]
    if problems:
        return problems
    outputs = graph.types(node.outputs)
    for shape, output in zip(node.op.shapes(shapes), outputs, strict=True):
        if shape != output.shape:
            problems.append(f"{where}: makes shape {shape}, its value says {output.shape}")
    operands = [graph.values[name].type for name in graph.operands(node)]
    if not all(stage.admits(t) for t in (*operands, *outputs)):
        problems.append(f"{where}: operands and output must be {' or '.join(stage.dtypes)}")
    elif stage.quantized and not _allowed_widths(node, [*operands, outputs[0]]):
        problems.append(f"{where}: operands and output must have bits of {node.op.widths(len(operands))}")
    elif stage.quantized and node.op.name in SHARING and not _one_quant([*operands, *outputs]):
        problems.append(f"{where}: operands and output must have one quantization")
    return problems


def _allowed_widths(node: Node, types: list[TensorType]) -> bool:
    widths = node.op.widths(len(types) - 1)
    return all(t.quant is not None and t.quant.bits in bits for t, bits in zip(types, widths, strict=True))


def _one_quant(types: list[TensorType]) -> bool:
    return len({t.quant for t in types}) == 1
