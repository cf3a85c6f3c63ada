"""Order: in which order the nodes run, so that less has to be kept at one time.

Rules, on the integer graph, bit-exact:

1. the given order is compared with a greedy one: of the nodes that are ready, the one runs next after which the fewest
   bytes are alive (then the earliest in the given order);
2. the order with the lower peak wins, the given one in a tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter

from nnac.graph import Graph, Node
from nnac.ops import Reshape


def order(graph: Graph) -> Graph:
    """Return the graph with its nodes in the order that keeps less."""
    greedy = _greedy(graph)
    return replace(graph, nodes=tuple(greedy)) if _peak(graph, greedy) < _peak(graph, graph.nodes) else graph


def _roots(graph: Graph) -> dict[str, str]:
    """Return the value whose bytes each computed value or input shares."""
    root = {name: name for name in (*graph.inputs, *graph.values)}
    for node in graph.nodes:
        if isinstance(node.op, Reshape):
            root[node.output] = root[node.inputs[0]]
    return root


def _readers(graph: Graph, root: Mapping[str, str]) -> dict[str, int]:
    """Return how many operands read each storage; an output of the graph is read once more, at the end."""
    count = dict.fromkeys(root.values(), 0)
    for node in graph.nodes:
        for name in {root[n] for n in graph.operands(node)}:
            count[name] += 1
    for name in graph.outputs:
        count[root[name]] += 1
    return count


class _Live:
    """Bytes alive while nodes run one after the other."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.root = graph, _roots(graph)
        self.left = _readers(graph, self.root)
        self.bytes = sum(graph.values[name].type.nbytes for name in graph.inputs)

    def change(self, node: Node) -> tuple[int, int]:
        """Return (bytes that the node adds, bytes that are free after it)."""
        new = 0 if isinstance(node.op, Reshape) else sum(t.nbytes for t in self.graph.types(node.outputs))
        dying = [n for n in {self.root[n] for n in self.graph.operands(node)} if self.left[n] == 1]
        freed = sum(self.graph.values[n].type.nbytes for n in dying if n not in self.graph.constants)
        return new, 0 if isinstance(node.op, Reshape) else freed

    def run(self, node: Node) -> int:
        """Run a node; return the bytes alive during it."""
        new, freed = self.change(node)
        during = self.bytes + new
        self.bytes = during - freed
        for name in {self.root[n] for n in self.graph.operands(node)}:
            self.left[name] -= 1
        return during


def _peak(graph: Graph, nodes: Sequence[Node]) -> int:
    live = _Live(graph)
    return max((live.run(node) for node in nodes), default=0)


def _greedy(graph: Graph) -> list[Node]:
    """Return the nodes, always the ready one that leaves the fewest bytes alive."""
    place = {node.name: i for i, node in enumerate(graph.nodes)}
    made = {name: node.name for node in graph.nodes for name in node.outputs}
    sorter = TopologicalSorter({node.name: [made[n] for n in node.inputs if n in made] for node in graph.nodes})
    sorter.prepare()
    ready, live, result = [*sorter.get_ready()], _Live(graph), []

    def cost(name: str) -> tuple[int, int]:
        new, freed = live.change(graph.nodes[place[name]])
        return new - freed, place[name]

    while ready:
        name = min(ready, key=cost)
        ready.remove(name)
        live.run(graph.nodes[place[name]])
        result.append(graph.nodes[place[name]])
        sorter.done(name)
        ready += sorter.get_ready()
    return result
