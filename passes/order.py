"""Order: in which order the nodes run, so that less has to be kept at one time.

Rules, on the integer graph, bit-exact:

1. the given order is compared with a greedy one: of the nodes that are ready, the one runs next after which the fewest
   bytes are alive (then the earliest in the given order);
2. the order with the lower peak wins, the given one in a tie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from graphlib import TopologicalSorter

from nnac.graph import Graph, Node
from nnac.ops import Reshape


def order(graph: Graph) -> Graph:
    """Return the graph with its nodes in the order that keeps less."""
    greedy = tuple(_greedy(graph))
    if greedy == graph.nodes or _peak(graph, greedy) >= _peak(graph, graph.nodes):
        return graph
    return replace(graph, nodes=greedy)


def _roots(graph: Graph) -> dict[str, str]:
    """Return the value whose bytes each computed value or input shares."""
    root = {name: name for name in (*graph.inputs, *graph.values)}
    for node in graph.nodes:
        if isinstance(node.op, Reshape):
            root[node.output] = root[node.inputs[0]]
    return root


class _Live:
    """Bytes alive while nodes run one after the other.

    Attributes:
        bytes: alive now.
    """

    def __init__(self, graph: Graph) -> None:
        root = _roots(graph)
        made = [node for node in graph.nodes if not isinstance(node.op, Reshape)]
        self.sizes = {name: value.type.nbytes for name, value in graph.values.items() if name not in graph.constants}
        self.adds = {node.name: sum(self.sizes[name] for name in node.outputs) for node in made}
        self.taken = {node.name: {root[name] for name in graph.operands(node)} for node in graph.nodes}
        self.left = Counter([root[name] for name in graph.outputs])  # read once more, at the end
        for names in self.taken.values():
            self.left.update(names)
        self.bytes = sum(self.sizes[name] for name in graph.inputs)

    def change(self, node: str) -> tuple[int, int]:
        """Return (bytes that the node adds, bytes that are free after it)."""
        if node not in self.adds:
            return 0, 0
        return self.adds[node], sum([self.sizes.get(n, 0) for n in self.taken[node] if self.left[n] == 1])

    def run(self, node: str) -> int:
        """Run a node; return the bytes alive during it."""
        new, freed = self.change(node)
        during = self.bytes + new
        self.bytes = during - freed
        for name in self.taken[node]:
            self.left[name] -= 1
        return during


def _peak(graph: Graph, nodes: Sequence[Node]) -> int:
    live = _Live(graph)
    return max((live.run(node.name) for node in nodes), default=0)


def _greedy(graph: Graph) -> list[Node]:
    """Return the nodes, always the ready one that leaves the fewest bytes alive."""
    place = {node.name: i for i, node in enumerate(graph.nodes)}
    made = {name: node.name for node in graph.nodes for name in node.outputs}
    sorter = TopologicalSorter({node.name: [made[n] for n in node.inputs if n in made] for node in graph.nodes})
    sorter.prepare()
    ready, live, result = [*sorter.get_ready()], _Live(graph), []

    def cost(name: str) -> tuple[int, int]:
        new, freed = live.change(name)
        return new - freed, place[name]

    while ready:
        name = min(ready, key=cost)
        ready.remove(name)
        live.run(name)
        result.append(graph.nodes[place[name]])
        sorter.done(name)
        ready += sorter.get_ready()
    return result
