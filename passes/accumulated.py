"""Values into which one rounding after another would go: residual streams, and states that run.

In a pre-norm network (Conformer, Transformer) each block reads a stream through a norm and adds its result to it. Every
sum rounds, and what one rounds away is missing in all blocks behind it. Int16 costs no products: norms and sums alone
read the stream. A running mean adds a small share of what is new to a large share of itself, step after step; in int8
what is under half a step of it is never heard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from nnac.graph import Graph, Node
from nnac.ops import Activation, Conv, Dense, MatMul, Norm, Sum
from nnac.stages import SHARING

KEEPING = frozenset({"Reshape", "Transpose"})
"""Moves that keep every entry: a slice and a concat of a state are a buffer, which nothing is added to."""


def residual_streams(graph: Graph) -> Iterator[str]:
    """Yield the values of residual streams, and what layers make only to be added to one.

    A stream is read, perhaps through moves, by norms and sums only, by at least one of each, and is no output.
    """
    draft = graph.draft()
    users, made = draft.users(), draft.producers()
    readers = {name: list(_readers(graph, name, users)) for name in made}
    for name, found in readers.items():
        if not _private(found) or not any(isinstance(node.op, Norm) for node in found if node is not None):
            continue
        for node in found:
            if node is not None and isinstance(node.op, Sum):
                yield name
                yield from (node.output,) if _private(readers[node.output]) else ()
                yield from (each for each in node.inputs if _added(each, readers, made))


def running_states(graph: Graph) -> Iterator[str]:
    """Yield the values from a state to its own next value, where only sums, factors and moves lie between."""
    made = graph.draft().producers()
    for source, result in graph.states:
        yield from _path(source, result, made)


def _path(source: str, result: str, made: Mapping[str, Node]) -> list[str]:
    """Return the values from `source` to `result` by way of sums, with both ends, or none."""
    waiting, behind = [result], {result: ""}
    while waiting:
        name = waiting.pop()
        node = made.get(name)
        if node is None or not (isinstance(node.op, Sum) or is_factor(node) or node.op.name in KEEPING):
            continue
        new = [each for each in node.inputs if each not in behind]
        behind.update(dict.fromkeys(new, name))
        waiting += new
    path = [source] if source in behind else []
    while path and behind[path[-1]]:
        path.append(behind[path[-1]])
    return path if any(isinstance(made[name].op, Sum) for name in path[1:]) else []


def is_factor(node: Node) -> bool:
    """Tell whether a node multiplies by one number, and perhaps adds one."""
    return isinstance(node.op, Activation) and node.op.kind == "affine"


def _readers(graph: Graph, name: str, users: Mapping[str, list[Node]]) -> Iterator[Node | None]:
    """Yield who reads a value, perhaps through moves; None stands for the world outside."""
    if name in graph.outputs:
        yield None
    for node in users[name]:
        if node.op.name in SHARING:
            yield from _readers(graph, node.output, users)
        else:
            yield node


def _private(readers: Sequence[Node | None]) -> bool:
    return all(node is not None and isinstance(node.op, Norm | Sum) for node in readers)


def _added(name: str, readers: Mapping[str, Sequence[Node | None]], made: Mapping[str, Node]) -> bool:
    """Tell whether a layer makes a value, perhaps through moves, for one sum only."""
    if len(readers.get(name, ())) != 1:
        return False
    while made[name].op.name in SHARING and len(made[name].inputs) == 1:
        name = made[name].inputs[0]
        if name not in made or len(readers[name]) != 1:
            return False
    return isinstance(made[name].op, Conv | Dense | MatMul)
