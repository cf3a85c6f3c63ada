"""Loops with a known, small number of steps are written out: copies of the body one after the other.

What is a recurrent layer has become one before (see `nnac.frontend.scans`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnac.frontend.cells import attributes
from nnac.frontend.walk import subgraphs
from nnac.types import Array

LOOPS = ("Scan", "Loop")
STEPS = 64
"""Longer loops stay, and are refused."""
AXES_ARE_INPUTS = 13
"""Opset since which Unsqueeze takes its axes as an input."""


def unroll(model: onnx.ModelProto) -> bool:
    """Write out the loops of the main graph of a model whose shapes are known; tell whether there was one."""
    graph = model.graph
    if not any(node.op_type in LOOPS for node in graph.node):
        return False
    writer = _Writer(
        {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer},
        {i.name: i.type.tensor_type.shape for i in (*graph.input, *graph.value_info)},
        next((entry.version for entry in model.opset_import if entry.domain == ""), 1),
    )
    before = len(graph.node)
    for node in graph.node:
        steps = {"Scan": writer.scan_steps, "Loop": writer.loop_steps}.get(node.op_type, lambda _: 0)(node)
        if not 0 < steps <= STEPS or any(True for inner in _body(node).node for _ in subgraphs(inner)):
            writer.nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        writer.write(node, steps)
    if not writer.changed:
        return False
    del graph.node[:before]
    graph.node.extend(writer.nodes)
    graph.initializer.extend(writer.stored)
    return True


def _body(node: onnx.NodeProto) -> onnx.GraphProto:
    return attributes(node)["body"]  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Writer:
    """The main graph under change."""

    constants: Mapping[str, Array]
    shapes: Mapping[str, onnx.TensorShapeProto]
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    changed: bool = False

    # -- how many steps --------------------------------------------------------------------------------------------

    def scan_steps(self, node: onnx.NodeProto) -> int:
        """Return the steps of a Scan along first axes, forwards; 0 for another, or where they are not known."""
        given = attributes(node)
        if any(
            any(given.get(f"scan_{side}_{what}", ())) for side in ("input", "output") for what in ("axes", "directions")
        ):
            return 0
        first = node.input[len(node.input) - given["num_scan_inputs"]]
        if first in self.constants:
            return len(self.constants[first])
        return self.shapes[first].dim[0].dim_value if first in self.shapes and self.shapes[first].dim else 0

    def loop_steps(self, node: onnx.NodeProto) -> int:
        """Return the steps of a Loop that always goes on until its count is reached; 0 for another."""
        body, (count, condition) = _body(node), node.input[:2]
        held = self.constants.get(count)
        goes_on = not condition or bool(np.all(self.constants.get(condition, False)))
        made = {inner.output[0]: inner for inner in body.node if len(inner.output) == 1}
        result = body.output[0].name
        while (inner := made.get(result)) is not None and inner.op_type == "Identity":
            result = inner.input[0]
        kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in body.initializer}
        if inner is not None and inner.op_type == "Constant" and "value" in attributes(inner):
            kept[result] = numpy_helper.to_array(attributes(inner)["value"])
        always = result == body.input[1].name or bool(np.all({**self.constants, **kept}.get(result, False)))
        return int(held.reshape(-1)[0]) if held is not None and held.size == 1 and goes_on and always else 0

    # -- copies ----------------------------------------------------------------------------------------------------

    def write(self, node: onnx.NodeProto, steps: int) -> None:
        """Add the copies of a body, and what they have made under the names of the node's outputs."""
        body, loop = _body(node), node.op_type == "Loop"
        self.changed = True
        scanned = [] if loop else list(node.input[len(node.input) - attributes(node)["num_scan_inputs"] :])
        states = list(node.input[2:] if loop else node.input[: len(node.input) - len(scanned)])
        fixed = {tensor.name: f"{node.name}.{tensor.name}" for tensor in body.initializer}
        for tensor in body.initializer:
            self.stored.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
            self.stored[-1].name = fixed[tensor.name]
        collected: list[list[str]] = []
        for step in range(steps):
            stem = f"{node.name}.{step}"
            given = [self._constant(f"{stem}.count", step), node.input[1]] if loop else []
            given += states + [self._at(name, step, f"{stem}.{name}") for name in scanned]
            inside = dict(zip((i.name for i in body.input), given, strict=True)) | fixed
            made = self._copy(body, inside, stem)[1 if loop else 0 :]
            states = made[: len(states)]
            collected.append(made[len(states) :])
        for source, output in zip(states, node.output, strict=False):
            self._add("Identity", [source], output)
        for parts, output in zip(zip(*collected, strict=True), node.output[len(states) :], strict=False):
            self._add("Concat", [self._unsqueezed(part) for part in parts], output, axis=0)

    def _copy(self, body: onnx.GraphProto, names: dict[str, str], stem: str) -> list[str]:
        """Add a copy of a body whose inputs are `names`; return the names of its outputs."""
        for inner in body.node:
            copy = onnx.NodeProto.FromString(inner.SerializeToString())
            names |= {name: f"{stem}.{name}" for name in inner.output if name}
            for side in (copy.input, copy.output):
                side[:] = [names.get(name, name) for name in side]
            copy.name = f"{stem}.{inner.name or inner.output[0]}"
            self.nodes.append(copy)
        return [names.get(info.name, info.name) for info in body.output]

    def _at(self, name: str, step: int, output: str) -> str:
        return self._add("Gather", [name, self._constant(f"{output}.index", step)], output, axis=0)

    def _unsqueezed(self, name: str) -> str:
        output = f"{name}.stacked"
        if self.opset < AXES_ARE_INPUTS:
            return self._add("Unsqueeze", [name], output, axes=[0])
        return self._add("Unsqueeze", [name, self._constant(f"{output}.axes", [0])], output)

    def _constant(self, name: str, value: int | Sequence[int]) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
        return name

    def _add(self, op_type: str, inputs: Sequence[str], output: str, **given: Any) -> str:
        if output:
            self.nodes.append(helper.make_node(op_type, inputs, [output], f"{output}.node", **given))
        return output
