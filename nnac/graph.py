"""The graph: one immutable class for every stage, from float ONNX semantics to integers ready for lowering."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from nnac.errors import ModelError
from nnac.types import Array, Quant, TensorType


class Operator(Protocol):
    """What a graph asks of an operator (the classes live in `nnac.ops`)."""

    @property
    def name(self) -> str: ...

    @property
    def operands(self) -> int | None: ...

    def infer(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]: ...

    def shapes(self, shapes: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """How a device tensor maps back to the ONNX tensor that it stands for.

    Attributes:
        name: the ONNX tensor.
        steps: ("transpose", perm) and ("reshape", shape) applied in order to the device array give the ONNX array.
    """

    name: str
    steps: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def to_onnx(self, array: Array) -> Array:
        """Return the device `array` in ONNX's shape and axis order."""
        for step, arg in self.steps:
            array = array.transpose(arg) if step == "transpose" else array.reshape(arg)
        return array

    def from_onnx(self, array: Array, device_shape: tuple[int, ...]) -> Array:
        """Return an ONNX `array` in the device's shape and axis order (the inverse of `to_onnx`)."""
        index = np.arange(array.size).reshape(device_shape)
        flat = np.empty(array.size, dtype=array.dtype)
        flat[self.to_onnx(index).ravel()] = array.ravel()
        return flat.reshape(device_shape)

    def after(self, step: str, arg: tuple[int, ...]) -> Origin:
        """Return the origin of a tensor that becomes this one by one more `step`."""
        return replace(self, steps=((step, arg), *self.steps))

    def onnx_shape(self, device_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ONNX shape of a device tensor."""
        for step, arg in self.steps:
            device_shape = tuple(device_shape[i] for i in arg) if step == "transpose" else arg
        return device_shape


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the graph; constants have their array in `Graph.constants` under the same name."""

    name: str
    type: TensorType
    origin: Origin | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape


@dataclass(frozen=True, slots=True)
class Node:
    """One operator at work: values in, values out; the name is the ONNX node's.

    Attributes:
        output: the value that it makes; for an operator that makes several, the first.
        more: the other values that it makes.
    """

    name: str
    op: Any  # an Operator; Any lets passes match on concrete classes without a cast
    inputs: tuple[str, ...]
    output: str
    more: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """All values that it makes."""
        return (self.output, *self.more)


@dataclass(frozen=True, slots=True)
class Graph:
    """A network: nodes in topological order, typed values, constant arrays.

    Attributes:
        states: pairs (input, output) of values that a device keeps between calls: what a call writes to the output, the
            next one finds in the input.
    """

    name: str
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    states: tuple[tuple[str, str], ...] = ()

    def types(self, names: Iterable[str]) -> tuple[TensorType, ...]:
        """Return the types of the named values."""
        return tuple(self.values[name].type for name in names)

    def operands(self, node: Node) -> tuple[str, ...]:
        """Return the inputs of `node` that lie in the scratchpad when it runs."""
        return node.inputs[: node.op.operands]

    def draft(self) -> Draft:
        """Return a mutable copy for one pass."""
        return Draft(self)


def onnx_states(graph: Graph) -> dict[str, str]:
    """Return the states by their ONNX names: input -> output."""
    origins = [[graph.values[name].origin for name in pair] for pair in graph.states]
    return {source.name: result.name for source, result in origins if source is not None and result is not None}


class Draft:
    """A graph under change inside one pass; `freeze` sorts, prunes and checks it."""

    def __init__(self, graph: Graph) -> None:
        self.name = graph.name
        self.nodes: dict[str, Node] = {node.name: node for node in graph.nodes}
        self.values: dict[str, Value] = dict(graph.values)
        self.constants: dict[str, Array] = dict(graph.constants)
        self.inputs, self.outputs = list(graph.inputs), list(graph.outputs)
        self.states = dict(graph.states)

    def producers(self) -> dict[str, Node]:
        """Return the node that makes each computed value."""
        return {name: node for node in self.nodes.values() for name in node.outputs}

    def users(self) -> dict[str, list[Node]]:
        """Return the nodes that read each value (outputs of the graph are not listed)."""
        users: dict[str, list[Node]] = {name: [] for name in self.values}
        for node in self.nodes.values():
            for name in dict.fromkeys(node.inputs):
                users[name].append(node)
        return users

    def fresh(self, stem: str) -> str:
        """Return a value or node name that is not taken yet."""
        name, count = stem, 1
        while name in self.values or name in self.nodes:
            count += 1
            name = f"{stem}.{count}"
        return name

    def add_constant(self, stem: str, array: Array, quant: Quant | None = None) -> str:
        """Add a constant under a fresh name and return the name; `quant` is that of a pinned one."""
        name = self.fresh(stem)
        self.values[name] = Value(name, TensorType(array.shape, array.dtype.name, quant))
        self.constants[name] = array
        return name

    def add_node(self, name: str, op: Operator, inputs: Sequence[str], output: Value, *more: Value) -> Node:
        """Add a node with its output values; a value that stands already gets its new description."""
        made = self.fresh(name) if name in self.nodes else name
        node = Node(made, op, tuple(inputs), output.name, tuple(value.name for value in more))
        self.nodes[node.name] = node
        self.values |= {value.name: value for value in (output, *more)}
        return node

    def update(self, node: Node, **changes: Any) -> Node:
        """Replace fields of a node in place of the old one."""
        self.nodes[node.name] = changed = replace(node, **changes)
        return changed

    def redirect(self, old: str, new: str) -> None:
        """Let every reader of value `old`, the graph's outputs included, read `new`."""
        for node in list(self.nodes.values()):
            if old in node.inputs:
                self.update(node, inputs=tuple(new if name == old else name for name in node.inputs))
        self.outputs = [new if name == old else name for name in self.outputs]
        self.states = {source: new if name == old else name for source, name in self.states.items()}

    def freeze(self) -> Graph:
        """Return the sorted, pruned graph.

        Raises:
            ModelError: the graph has a cycle.
        """
        nodes = sort_nodes(list(self.nodes.values()))
        live = _live(nodes, self.outputs)
        kept = tuple(node for node in nodes if not live.isdisjoint(node.outputs))
        names = live | set(self.inputs)
        values = {name: value for name, value in self.values.items() if name in names}
        constants = {name: array for name, array in self.constants.items() if name in names}
        return Graph(
            self.name,
            kept,
            MappingProxyType(values),
            MappingProxyType(constants),
            tuple(self.inputs),
            tuple(self.outputs),
            tuple(self.states.items()),
        )


def sort_nodes(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes in topological order, stable with respect to the given order."""
    made = {name: i for i, node in enumerate(nodes) for name in node.outputs}
    if all(made.get(name, -1) < i for i, node in enumerate(nodes) for name in node.inputs):
        return list(nodes)
    waits = [len({made[name] for name in node.inputs if name in made}) for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        for j in {made[name] for name in node.inputs if name in made}:
            readers[j].append(i)
    return _drain(nodes, waits, readers)


def _drain(nodes: Sequence[Node], waits: list[int], readers: list[list[int]]) -> list[Node]:
    ready = [i for i, count in enumerate(waits) if count == 0]
    heapq.heapify(ready)
    order: list[Node] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(nodes[i])
        for j in readers[i]:
            waits[j] -= 1
            if waits[j] == 0:
                heapq.heappush(ready, j)
    if len(order) < len(nodes):
        stuck = next(node.name for node, count in zip(nodes, waits, strict=True) if count > 0)
        raise ModelError(f"the graph has a cycle through node {stuck!r}; a network must be acyclic")
    return order


def _live(nodes: Sequence[Node], outputs: Iterable[str]) -> set[str]:
    live = set(outputs)
    for node in reversed(nodes):
        if not live.isdisjoint(node.outputs):
            live.update((*node.inputs, *node.more, node.output))
    return live
