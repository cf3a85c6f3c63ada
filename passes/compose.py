"""Compose: what depends on one value only, entry by entry, becomes one function of it; overwritten slots join.

Rules, on the float graph:

1. an elementwise operator whose operands all come from one value, entry by entry, is a function of that value, however
   they come from it: Gelu written with Erf or Tanh, Swish, HardSwish, Mish, 1 / sqrt(x + epsilon), chains of scalar
   constants. What is read from outside of such a group becomes one table, rounded once, instead of many (a value whose
   quantization is pinned is a root for those that read it);
2. an Insert into the result of an Insert that nothing else reads becomes one with more boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnac.graph import Draft, Graph, Node, sort_nodes
from nnac.ops import Activation, Div, Extreme, Insert, Mul, Sum
from nnac.ops.base import UNBOUNDED
from nnac.ops.functions import Part

MOST_PARTS = 64


@dataclass(frozen=True, slots=True)
class _Formula:
    """A value as a function of `root`, entry by entry."""

    root: str
    parts: tuple[Part, ...] = ()


def compose(graph: Graph) -> Graph:
    """Return the graph with functions of functions composed and inserts joined."""
    draft = graph.draft()
    formulas = _formulas(draft)
    inside = {node.output: node for node in draft.nodes.values() if formulas[node.output].parts}
    for name, readers in draft.users().items():
        formula = formulas.get(name)
        if formula is None or len(formula.parts) < 2:
            continue
        outside = [r for r in readers if r.output not in inside or formulas[r.output].root != formula.root]
        if outside or name in draft.outputs or draft.values[name].type.quant is not None:
            draft.update(inside[name], op=Activation("composed", formula.parts), inputs=(formula.root,))
    _join(draft)
    return draft.freeze()


# -- functions of one value ----------------------------------------------------------------------------------------


def _formulas(draft: Draft) -> dict[str, _Formula]:
    """Return each value as a function of the value that it ultimately depends on; others of themselves."""
    formulas = {name: _Formula(name) for name in draft.values}
    for node in sort_nodes(list(draft.nodes.values())):
        formula = _formula(draft, node, formulas)
        if formula is not None and len(formula.parts) <= MOST_PARTS:
            formulas[node.output] = formula
    return formulas


def _formula(draft: Draft, node: Node, formulas: dict[str, _Formula]) -> _Formula | None:
    """Return the node's result as a function of one value, or None."""
    step = _step(node)
    operands = [formulas[n] if draft.values[n].type.quant is None else _Formula(n) for n in node.inputs]
    shapes = {draft.values[name].shape for name in (*node.inputs, node.output)}
    if step is None or len({o.root for o in operands}) != 1 or len(shapes) > 1 or operands[0].root in draft.constants:
        return None
    parts: list[Part] = []
    places = [_append(parts, operand.parts) for operand in operands]
    parts.append((step[0], step[1], tuple(places)))
    clamp = getattr(node.op, "clamp", UNBOUNDED)
    return _Formula(operands[0].root, (*parts, *([("clip", clamp, (len(parts),))] if clamp != UNBOUNDED else [])))


def _step(node: Node) -> tuple[str, tuple[object, ...]] | None:
    """Return kind and parameters of an elementwise operator as a part of a composition."""
    match node.op:
        case Activation(kind="composed" | "prelu" | "identity"):
            return None
        case Activation(kind, params):
            return kind, params
        case Sum(signs=signs):
            return "sum", (signs,)
        case Mul():
            return "mul", ()
        case Div():
            return "div", ()
        case Extreme(least=least):
            return "min" if least else "max", ()
    return None


def _append(parts: list[Part], more: tuple[Part, ...]) -> int:
    """Add the parts that are not there yet; return the place of the last one's result (0: the root itself)."""
    places = [0]
    for kind, params, reads in more:
        part = (kind, params, tuple(places[i] for i in reads))
        if part not in parts:
            parts.append(part)
        places.append(parts.index(part) + 1)
    return places[-1]


# -- slots ---------------------------------------------------------------------------------------------------------


def _join(draft: Draft) -> None:
    made, users = draft.producers(), draft.users()
    for node in sort_nodes(list(draft.nodes.values())):
        above = made.get(node.inputs[0])
        if not isinstance(node.op, Insert) or above is None or not isinstance(above.op, Insert):
            continue
        if len(users[above.output]) == 1 and above.output not in draft.outputs:
            inputs = (*above.inputs, *node.inputs[1:])
            del draft.nodes[above.name]
            made[node.output] = draft.update(node, op=Insert((*above.op.boxes, *node.op.boxes)), inputs=inputs)
