"""Logarithms: they turn ratios into differences, so that small values count as much as large ones.

A spectrum in int16 spans 96 dB from its loudest moment down; in a quiet one most bins are under half a step, where a
logarithm makes them differ by any amount. What is cut at the top instead costs a few dB of the loudest bins. So, where
widths are chosen by calibration:

1. what a logarithm comes from, through magnitudes, layers, sums, factors and moves, is int16;
2. what logarithms alone read, directly or through magnitudes, is quantized up to where the logarithm of all samples is
   nearest in the mean square (`calibration.Range.reach`), which may be less than their peak.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

from nnac.calibration import Range
from nnac.graph import Graph, Node
from nnac.ops import Activation, Conv, Dense, Magnitude, Sum
from nnac.ops.functions import FUNCTIONS
from nnac.passes.accumulated import is_factor
from nnac.stages import SHARING
from nnac.types import Array

PLAIN = frozenset({"affine", "abs", "sqrt", "pow", "clip", "max"})
"""What may lie in front of a logarithm inside one function."""


def logarithms(graph: Graph) -> list[Node]:
    """Return the functions of one value that begin with a logarithm, perhaps of a power of it with an offset."""
    return [node for node in graph.nodes if isinstance(node.op, Activation) and _begins_with_log(node.op)]


def through(graph: Graph) -> Mapping[str, Callable[[Array], Array]]:
    """Return, by ONNX name, the function of each tensor that a logarithm reads."""
    found = {}
    for node in logarithms(graph):
        origin = graph.values[node.inputs[0]].origin
        if origin is not None:
            found[origin.name] = partial(_apply, node.op)
    return found


def behind(graph: Graph) -> Iterator[str]:
    """Yield the values that logarithms come from (rule 1)."""
    made = {node.output: node for node in graph.nodes}
    waiting = [node.inputs[0] for node in logarithms(graph)]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        yield name
        node = made.get(name)
        if node is None or not (isinstance(node.op, Magnitude | Conv | Dense | Sum) or _moves(node) or is_factor(node)):
            continue
        new = {each for each in graph.operands(node) if each not in graph.constants} - seen
        seen |= new
        waiting += sorted(new)


def cut(graph: Graph, group: Mapping[str, str], ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return the ranges, those of rule 2 as far as they reach.

    Args:
        graph: float.
        group: representative of the values that share a quantization, by value.
        ranges: by ONNX name.
    """
    reach: dict[str, float] = {}
    logs = logarithms(graph)
    for node in logs:
        root = group[node.inputs[0]]
        span = ranges.get(_known_as(graph, node.inputs[0]))
        if span is None or span.reach is None or not _only_readers(graph, group, root, logs):
            continue
        makers = [each for each in graph.nodes if isinstance(each.op, Magnitude) and group[each.output] == root]
        squared = {group[name] for maker in makers for name in maker.inputs}
        for cut_root in (root, *(each for each in squared if _only_readers(graph, group, each, makers))):
            reach[cut_root] = max(span.reach, reach.get(cut_root, 0.0))
    names = {_known_as(graph, name): reach[root] for name, root in group.items() if root in reach}
    return {name: _bounded(span, names[name]) if name in names else span for name, span in ranges.items()}


def _known_as(graph: Graph, name: str) -> str:
    origin = graph.values[name].origin
    return origin.name if origin is not None else name


def _bounded(span: Range, reach: float) -> Range:
    return Range.of(max(span.low, -reach), min(span.high, reach), span.power)


def _only_readers(graph: Graph, group: Mapping[str, str], root: str, readers: Collection[Node]) -> bool:
    """Tell whether a group is read by these nodes and moves only, and leaves the graph nowhere."""
    kept = {*graph.outputs, *(name for pair in graph.states for name in pair)}
    if any(group.get(name) == root for name in kept):
        return False
    users = (node for node in graph.nodes if any(group.get(name) == root for name in node.inputs))
    return all(node in readers or _moves(node) for node in users)


def _moves(node: Node) -> bool:
    return node.op.name in SHARING


def _begins_with_log(op: Activation) -> bool:
    kinds = [part[0] for part in op.params] if op.kind == "composed" else [op.kind]
    return "log" in kinds and PLAIN.issuperset(kinds[: kinds.index("log")])


def _apply(op: Activation, x: Array) -> Array:
    return FUNCTIONS[op.kind](x, *op.params)
