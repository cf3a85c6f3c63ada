"""Recurrent layers that exporters wrote out become LSTM and GRU nodes again, ONNX to ONNX, so that they stay loops.

Rules:

1. a Scan whose body is one LSTM cell (see `nnac.frontend.cells`) becomes an LSTM over all its steps; a projection of
   the hidden values is folded into the recurrent weights (gates = R (P m) = (R P) m) and done for all steps behind it;
2. a cell outside of a loop becomes an LSTM of one step;
3. GRU cells likewise, without projection;
4. tensors that the graph reads afterwards keep their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnac.frontend.cells import Cell, GruCell, Scope, attributes
from nnac.frontend.walk import walk
from nnac.types import Array

Shape = tuple[int, ...]
VIEWS = ("Squeeze", "Unsqueeze", "Reshape", "Transpose", "Slice", "Gather", "Split", "Identity", "Flatten")
"""Operators that pass on parts of a tensor as they are."""
SIGNS = ("Scan", "Sigmoid")
"""Without one of these there is no layer that was written out."""


def restore_layers(model: onnx.ModelProto) -> bool:
    """Rewrite the main graph of a model whose shapes are known; tell whether anything has changed."""
    if not any(node.op_type in SIGNS for node in model.graph.node):
        return False
    graph, writer = model.graph, _Writer.of(model.graph)
    for node in graph.node:
        if node.op_type != "Scan" or not _scan(writer, node):
            writer.nodes.append(node)
    _single_steps(writer)
    if not writer.changed:
        return False
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in _needed(writer.nodes, graph)]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(writer.stored)
    return True


def _needed(nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that the graph's outputs depend on."""
    live, kept = {info.name for info in graph.output}, []
    for node in reversed(nodes):
        if not live.isdisjoint(node.output):
            live |= _read([node])
            kept.append(node)
    return kept[::-1]


def _read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the names that nodes and their subgraphs read."""
    return {name for node in walk(nodes) for name in node.input if name}


@dataclass(slots=True)
class _Writer:
    """The main graph under change."""

    constants: dict[str, Array]
    shapes: Mapping[str, Shape]
    inputs: frozenset[str]
    used: frozenset[str]
    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    changed: bool = False

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Writer:
        """Return a writer without nodes."""
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        infos = (*graph.input, *graph.value_info, *graph.output)
        shapes = {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in infos}
        taken = {name for node in graph.node for name in (*node.output, node.name)} | {*shapes, *constants}
        inputs = frozenset(info.name for info in graph.input) - constants.keys()
        used = frozenset(_read(graph.node) | {info.name for info in graph.output})
        return cls(constants, shapes | {n: a.shape for n, a in constants.items()}, inputs, used, taken)

    def fresh(self, stem: str) -> str:
        """Return a name that is not taken."""
        name, count = stem, 1
        while name in self.taken:
            count += 1
            name = f"{stem}.{count}"
        self.taken.add(name)
        return name

    def constant(self, stem: str, array: Any, dtype: str = "float32") -> str:
        """Store an array and return its name."""
        name = self.fresh(stem)
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype), name))
        return name

    def add(self, op_type: str, inputs: Sequence[str], output: str = "", **given: Any) -> str:
        """Add a node of one output and return that."""
        output = output or self.fresh(f"{inputs[0]}.{op_type.lower()}")
        self.nodes.append(helper.make_node(op_type, inputs, [output], self.fresh(f"{output}.node"), **given))
        return output

    def reshape(self, x: str, shape: Shape, output: str = "") -> str:
        """Add a Reshape and return its output."""
        return self.add("Reshape", [x, self.constant(f"{output or x}.shape", shape, "int64")], output)

    def lstm(
        self, name: str, cell: Cell, x: str, leaves: tuple[str, Array], states: Sequence[str], **given: Any
    ) -> str:
        """Add an LSTM; return the stem of its outputs `.all`, `.hidden` and `.cell`.

        Args:
            name: of the node, and of its outputs.
            cell: with the weights on `leaves[0]` and the recurrent weights `leaves[1]`.
            x: name of the input (T, B, I).
            leaves: name of the leaf that the input stands for, recurrent weights (4 H, H).
            states: names of the initial states (1, B, H), empty for zeros.
        """
        bias, looks = cell.bias(), cell.peepholes()
        arrays = (cell.weights(leaves[0]), leaves[1], np.concatenate([bias, np.zeros_like(bias)]))
        inputs = [x, *(self.constant(f"{name}.{label}", a[None]) for label, a in zip("WRB", arrays, strict=True))]
        inputs += ["", *states, "" if looks is None else self.constant(f"{name}.P", looks[None])]
        while not inputs[-1]:
            inputs.pop()
        made = [f"{name}.{label}" for label in ("all", "hidden", "cell")]
        self.nodes.append(helper.make_node("LSTM", inputs, made, name, hidden_size=cell.width, **given))
        self.changed = True
        return name

    def gru(self, name: str, cell: GruCell, x: str, state: str, **given: Any) -> str:
        """Add a GRU; return the stem of its outputs `.all` and `.hidden` (arguments as of `lstm`)."""
        arrays = zip("WRB", cell.arrays(), strict=True)
        inputs = [
            x,
            *(self.constant(f"{name}.{label}", a[None]) for label, a in arrays),
            *(["", state] if state else []),
        ]
        made = [f"{name}.{label}" for label in ("all", "hidden")]
        size = len(cell.own.bias)
        self.nodes.append(helper.make_node("GRU", inputs, made, name, hidden_size=size, linear_before_reset=1, **given))
        self.changed = True
        return name

    def initial(self, name: str, shape: Shape) -> str:
        """Return a state (B, H) as (1, B, H), empty for one of zeros."""
        held = self.constants.get(name)
        if held is None:
            return self.reshape(name, (1, *shape))
        return self.constant(f"{name}.initial", held.reshape(1, *shape)) if held.any() else ""


# -- cells outside of loops ----------------------------------------------------------------------------------------


def _single_steps(writer: _Writer) -> None:
    """Rewrite the cells of the main graph whose hidden values can be told from their input."""
    nodes, writer.nodes = writer.nodes, []
    scope = Scope(nodes, writer.constants, {n: s[-1] for n, s in writer.shapes.items() if s})
    cells: dict[str, tuple[Cell, str, str]] = {}
    for cell in scope.cells():
        hidden = _hidden_leaf(scope, writer, cell, {known.hidden for known, *_ in cells.values()})
        others = [leaf for leaf in cell.leaves if leaf != hidden]
        flat = all(len(writer.shapes.get(name, ())) == 2 for name in (*cell.leaves, cell.before))
        if hidden and len(others) == 1 and flat and cell.gates["i"].matrices.keys() == {*cell.leaves}:
            cells[cell.cell] = (cell, others[0], hidden)
    replaced = {cell.hidden for cell, *_ in cells.values()}
    grus = {cell.hidden: cell for cell in scope.gru_cells() if len(writer.shapes.get(cell.x, ())) == 2}
    for node in nodes:
        if node.output[0] in cells:
            _single_step(writer, node.name, *cells[node.output[0]])
        elif node.output[0] in grus:
            _single_gru(writer, node.name, grus[node.output[0]])
        elif node.output[0] not in replaced:
            writer.nodes.append(node)


def _hidden_leaf(scope: Scope, writer: _Writer, cell: Cell, hidden: set[str]) -> str:
    """Return the leaf that holds the hidden values of the step before: those of a cell, or from where c comes."""
    wide = [leaf for leaf in cell.leaves if writer.shapes.get(leaf, ())[-1:] == (cell.width,)]
    known = [leaf for leaf in wide if leaf in hidden] if cell.before not in writer.inputs else []
    sources = {leaf: _source(scope, leaf) for leaf in wide}
    near = [leaf for leaf, source in sources.items() if source == _source(scope, cell.before)]
    given = [leaf for leaf, source in sources.items() if source in writer.inputs]
    return next((found[0] for found in (near, known, given) if len(found) == 1), "")


def _source(scope: Scope, name: str) -> str:
    """Return the tensor that `name` is a part of."""
    while (node := scope.made.get(name)) is not None and node.op_type in VIEWS:
        name = node.input[0]
    return name


def _single_step(writer: _Writer, name: str, cell: Cell, x: str, hidden: str) -> None:
    batch = writer.shapes[cell.before][0]
    shape = (batch, cell.width)
    states = [writer.initial(state, shape) for state in (hidden, cell.before)]
    step = writer.reshape(x, (1, batch, writer.shapes[x][1]))
    stem = writer.lstm(writer.fresh(f"{name}.lstm"), cell, step, (x, cell.weights(hidden)), states)
    writer.reshape(f"{stem}.hidden", shape, cell.hidden)
    writer.reshape(f"{stem}.cell", shape, cell.cell)


def _single_gru(writer: _Writer, name: str, cell: GruCell) -> None:
    batch, width = writer.shapes[cell.x]
    shape = (batch, len(cell.own.bias))
    state, step = writer.initial(cell.before, shape), writer.reshape(cell.x, (1, batch, width))
    stem = writer.gru(writer.fresh(f"{name}.gru"), cell, step, state)
    writer.reshape(f"{stem}.hidden", shape, cell.hidden)


# -- Scan ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Loop:
    """A Scan taken apart: pairs of names outside and inside of the body; results that nothing reads are empty names.

    Attributes:
        states: (initial, inside before, inside behind, final) of each state.
        scanned: (outside, inside) of each sequence that it reads.
        collected: (inside, outside) of each sequence that it makes.
    """

    states: tuple[tuple[str, str, str, str], ...]
    scanned: tuple[tuple[str, str], ...]
    collected: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, node: onnx.NodeProto, used: frozenset[str]) -> _Loop:
        """Return the parts of a node whose graph reads the names in `used`."""
        given = attributes(node)
        body, sequences = given["body"], given["num_scan_inputs"]
        count = len(node.input) - sequences
        before, behind = [i.name for i in body.input], [o.name for o in body.output]
        outside = [name if name in used else "" for name in node.output]
        outside += [""] * (len(behind) - len(outside))
        return cls(
            tuple(zip(node.input[:count], before[:count], behind[:count], outside[:count], strict=True)),
            tuple(zip(node.input[count:], before[count:], strict=True)),
            tuple(zip(behind[count:], outside[count:], strict=True)),
        )


def _scan(writer: _Writer, node: onnx.NodeProto) -> bool:
    """Write a Scan as an LSTM or a GRU; tell whether its body is one."""
    given, loop = attributes(node), _Loop.of(node, writer.used)
    axes = [*given.get("scan_input_axes", ()), *given.get("scan_output_axes", ())]
    directions = {*given.get("scan_input_directions", (0,)), *given.get("scan_output_directions", (0,))}
    if any(axes) or len(directions) > 1 or len(loop.scanned) != 1:
        return False
    if len(writer.shapes.get(loop.scanned[0][0], ())) != 3:
        return False
    body = given["body"]
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in body.initializer}
    scope = Scope(body.node, {**writer.constants, **held}, _widths(body))
    direction = "reverse" if directions == {1} else "forward"
    for gru in scope.gru_cells():
        return _gru_scan(writer, node.name, scope, loop, gru, direction)
    cells = list(scope.cells())
    layer = _Layer.of(scope, loop, cells[0]) if len(cells) == 1 else None
    if layer is None or (layer.projection is not None and not _zeros(writer, layer.initial_hidden)):
        return False
    layer.write(writer, node.name, loop.scanned[0], direction)
    return True


def _gru_scan(writer: _Writer, name: str, scope: Scope, loop: _Loop, cell: GruCell, direction: str) -> bool:
    """Write a Scan over a GRU cell as a GRU; tell whether it is no more than that."""
    (x, inside), states = loop.scanned[0], {before: (start, behind, end) for start, before, behind, end in loop.states}
    start, behind, end = states.pop(cell.before, ("", "", ""))
    collected = [(scope.plain(name), outside) for name, outside in loop.collected if outside]
    made = {scope.plain(behind), *(name for name, _ in collected)}
    if inside != cell.x or made != {cell.hidden} or any(final for _, _, final in states.values()):
        return False
    time, batch, _ = writer.shapes[x]
    shape = (batch, len(cell.own.bias))
    stem = writer.gru(name, cell, x, writer.initial(start, shape), direction=direction)
    if end:
        writer.reshape(f"{stem}.hidden", shape, end)
    for _, outside in collected:
        writer.reshape(f"{stem}.all", (time, *shape), outside)
    return True


def _zeros(writer: _Writer, name: str) -> bool:
    return name in writer.constants and not writer.constants[name].any()


def _widths(graph: onnx.GraphProto) -> dict[str, int]:
    infos = ((i.name, i.type.tensor_type.shape.dim) for i in (*graph.input, *graph.value_info))
    return {name: dims[-1].dim_value for name, dims in infos if len(dims) and dims[-1].dim_value}


@dataclass(frozen=True, slots=True)
class _Layer:
    """The cell of a Scan's body, and what its names mean outside.

    Attributes:
        recurrent: (4 H, H) weights, the projection folded in.
        projection: (H, P), of the hidden values, or None.
        initial_hidden, initial_cell, final_hidden, final_cell: names outside, the last two perhaps empty.
        collected: names outside of the sequence of hidden values.
    """

    cell: Cell
    recurrent: Array
    projection: Array | None
    initial_hidden: str
    initial_cell: str
    final_hidden: str
    final_cell: str
    collected: tuple[str, ...]

    @classmethod
    def of(cls, scope: Scope, loop: _Loop, cell: Cell) -> _Layer | None:
        """Return the layer, or None where a result is neither hidden value nor cell."""
        shown, projection = _shown(scope, cell.hidden)
        x, found = loop.scanned[0][1], {before: (start, behind, end) for start, before, behind, end in loop.states}
        hidden = [leaf for leaf in cell.leaves if leaf != x]
        if len(hidden) != 1 or x not in cell.leaves or {cell.before, hidden[0]} - found.keys():
            return None
        start, behind, end = found.pop(hidden[0])
        cell_start, cell_behind, cell_end = found.pop(cell.before)
        made = [name for name, outside in loop.collected if outside]
        if (scope.plain(behind), scope.plain(cell_behind)) != (shown, cell.cell) or any(
            scope.plain(name) != shown for name in made
        ):
            return None
        if any(end for _, _, end in found.values()):
            return None
        weights = cell.weights(hidden[0])
        recurrent = weights if projection is None else weights @ projection.T
        outside = tuple(name for _, name in loop.collected if name)
        return cls(cell, recurrent, projection, start, cell_start, end, cell_end, outside)

    def write(self, writer: _Writer, name: str, scanned: tuple[str, str], direction: str) -> None:
        """Add the LSTM, the projection of what it makes, and all results under their names."""
        x, inside = scanned
        time, batch, _ = writer.shapes[x]
        shape = (batch, self.cell.width)
        states = [writer.initial(self.initial_hidden, shape) if self.projection is None else ""]
        states.append(writer.initial(self.initial_cell, shape))
        stem = writer.lstm(name, self.cell, x, (inside, self.recurrent), states, direction=direction)
        if self.final_cell:
            writer.reshape(f"{stem}.cell", shape, self.final_cell)
        if self.final_hidden:
            self._show(writer, f"{stem}.hidden", shape, self.final_hidden)
        for output in self.collected:
            self._show(writer, f"{stem}.all", (time, *shape), output)

    def _show(self, writer: _Writer, source: str, shape: Shape, output: str) -> None:
        if self.projection is None:
            writer.reshape(source, shape, output)
            return
        weight = writer.constant(f"{output}.projection", self.projection)
        writer.add("MatMul", [writer.reshape(source, shape), weight], output)


def _shown(scope: Scope, hidden: str) -> tuple[str, Array | None]:
    """Return the name of the hidden values that are fed back, and the weights that project them."""
    for node in scope.nodes:
        if node.op_type == "MatMul" and scope.plain(node.input[0]) == hidden and node.input[1] in scope.constants:
            return node.output[0], scope.constants[node.input[1]].astype(np.float64)
    return hidden, None
