"""Pins: quantizations that a model brings spread over the operators that change no value.

Rules, on the float graph as imported:

1. the operand of moving operators, relus or clips that all have one pin, and that nothing else reads, takes the pin of
   their results: rounding before them is rounding after them;
2. the result of a move of one pinned operand has the operand's pin;
3. where operand and result are pinned differently, or differently pinned operands meet in one result, the operand is
   requantized by an identity in front of the move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nnac.graph import Draft, Graph, Node, Value
from nnac.ops import Activation
from nnac.stages import SHARING
from nnac.types import Quant, TensorType


def settle(graph: Graph) -> Graph:
    """Return the graph with the pins of moved values spread, and requantized where they meet others."""
    if not any(value.type.quant for value in graph.values.values()):
        return graph
    draft = graph.draft()
    moves = [node for node in graph.nodes if node.op.name in SHARING]
    readers = draft.users()
    for node in reversed([node for node in graph.nodes if _commutes(node)]):
        _backwards(draft, node, readers)
    for node in moves:
        _forwards(draft, node)
        _meet(draft, draft.nodes[node.name])
    return draft.freeze()


def _commutes(node: Node) -> bool:
    """Tell whether an operator may work on integers of its result's quantization."""
    return node.op.name in SHARING or (isinstance(node.op, Activation) and node.op.kind in ("relu", "clip"))


def _pin(draft: Draft, name: str) -> Quant | None:
    return draft.values[name].type.quant


def _set(draft: Draft, name: str, quant: Quant) -> None:
    value = draft.values[name]
    draft.values[name] = replace(value, type=replace(value.type, quant=quant))


def _backwards(draft: Draft, node: Node, readers: Mapping[str, list[Node]]) -> None:
    quant = _pin(draft, node.output)
    for name in node.inputs:
        computed = name not in draft.constants and name not in draft.outputs
        agreed = all(_commutes(reader) and _pin(draft, reader.output) == quant for reader in readers[name])
        if quant is not None and computed and agreed and _pin(draft, name) is None:
            _set(draft, name, quant)


def _forwards(draft: Draft, node: Node) -> None:
    pins = {_pin(draft, name) for name in node.inputs if name not in draft.constants}
    (pin, *others) = pins or {None}
    if _pin(draft, node.output) is None and pin is not None and not others:
        _set(draft, node.output, pin)


def _meet(draft: Draft, node: Node) -> None:
    wanted = _pin(draft, node.output)
    inputs = tuple(
        name if name in draft.constants or _pin(draft, name) in (None, wanted) else _copy(draft, node, name, wanted)
        for name in node.inputs
    )
    draft.update(node, inputs=inputs)


def _copy(draft: Draft, node: Node, name: str, quant: Quant | None) -> str:
    """Add an identity that requantizes a value for one reader."""
    shape = draft.values[name].shape
    copy = Value(draft.fresh(f"{name}.requantized"), TensorType(shape, quant=quant))
    draft.add_node(f"{node.name}.requantize", Activation(), [name], copy)
    return copy.name
