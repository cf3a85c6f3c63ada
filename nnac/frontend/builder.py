"""The float graph under construction, value by value."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

import numpy as np

from nnac.frontend import views
from nnac.frontend.integers import int8_quant
from nnac.frontend.use import Refused, Tensors, Use
from nnac.frontend.views import AS_IS, Shape, Step, Steps
from nnac.graph import Draft, Graph, Origin, Value
from nnac.ops import Op, Reshape, Transpose
from nnac.types import Array, Quant, TensorType


class Builder:
    """Adds nodes to a draft; ONNX tensors keep their names, helpers get names like `x.nhwc`.

    Args:
        name: the graph's name.
        inputs: the ONNX graph inputs, float32.
        tensors: what is known of the ONNX tensors.
        reserved: node names of the ONNX model, which helpers do not take.
    """

    def __init__(self, name: str, inputs: Iterable[str], tensors: Tensors, reserved: Iterable[str] = ()) -> None:
        self.draft = Draft(Graph(name, (), {}, {}, (), ()))
        self.tensors = tensors
        self._taken = set(tensors.shapes)
        self._reserved = set(reserved)
        self._views: dict[tuple[str, Step], str] = {}
        self._aliases: dict[str, str] = {}
        for each in inputs:
            self.draft.inputs.append(each)
            self._add_value(each, tensors.shapes[each], Origin(each))

    def value(self, name: str) -> str:
        """Return the graph value of an ONNX tensor; a constant is added when it is first asked for."""
        name = self._aliases.get(name, name)
        if name not in self.draft.values:
            array = self.tensors.constants[name].astype(np.float32)
            stored = self.tensors.stored.get(name)
            quant = int8_quant(stored) if stored is not None else None
            self.draft.values[name] = Value(name, TensorType(array.shape, quant=quant))
            self.draft.constants[name] = array
        return name

    def alias(self, name: str, value: str) -> None:
        """Let an ONNX tensor be the graph value that stands already."""
        self._aliases[name] = value

    def pin(self, name: str, quant: Quant) -> None:
        """Fix the quantization of a graph value."""
        value = self.draft.values[name]
        self.draft.values[name] = replace(value, type=replace(value.type, quant=quant))

    def integers(self, stem: str, array: Array) -> str:
        """Return the name of a constant that keeps its integer type."""
        name = self._fresh(stem)
        self.draft.values[name] = Value(name, TensorType(array.shape, array.dtype.name))
        self.draft.constants[name] = np.ascontiguousarray(array)
        return name

    def outputs(self, names: Iterable[str]) -> None:
        """Name the graph's outputs; a value that several stand for, or an input, is copied."""
        for name in names:
            value = self.draft.values[self.value(name)]
            if value.name in (*self.draft.outputs, *self.draft.inputs):
                copy = Value(self._fresh(name), value.type, Origin(name))
                value = self.draft.values[
                    self.draft.add_node(self._fresh_node(name), Reshape(value.shape), [value.name], copy).output
                ]
            elif value.name != name and value.origin is not None:
                value = replace(value, origin=replace(value.origin, name=name))
                self.draft.values[value.name] = value
            self.draft.outputs.append(value.name)

    def constant(self, name: str, array: Array) -> str:
        """Return the name of a float32 constant, `name` unless that is taken by other numbers."""
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(array).all():
            raise Refused(f"the constant {name!r} that follows from the inputs is not finite in float32")
        known = self.draft.constants.get(name)
        if known is not None and known.shape == array.shape and np.array_equal(known, array):
            return name
        name = self._fresh(name)
        self.draft.values[name] = Value(name, TensorType(array.shape))
        self.draft.constants[name] = array
        return name

    def view(self, name: str, steps: Steps, suffix: str = "view") -> str:
        """Return the value of ONNX tensor `name` (or any graph value) after `steps`; equal views are made once."""
        name = self.value(name)
        for i, step in enumerate(steps):
            source = self.draft.values[name]
            key = (name, step)
            if key not in self._views:
                stem = source.origin.name if source.origin is not None else name
                label = suffix if i == len(steps) - 1 else "view"
                back = views.invert((step,), source.shape)[0]
                origin = source.origin.after(*back) if source.origin is not None else None
                self._views[key] = self._move(source.name, step, self._fresh(f"{stem}.{label}"), origin)
            name = self._views[key]
        return name

    def put(
        self, use: Use, op: Op, inputs: Sequence[str], steps: Steps = AS_IS, output: int = 0, suffix: str = "view"
    ) -> None:
        """Add `op`, whose result is ONNX output `output` of `use` seen through `steps`, and the steps back."""
        name, shape = use.outputs[output], use.out(output)
        back = views.invert(steps, shape)
        result = self.emit(
            use, op, inputs, f"{name}.{suffix}" if back else name, Origin(name, back), views.apply(steps, shape)
        )
        self._move_back(result, name, back)

    def deliver(self, value: str, use: Use, output: int, back: Steps) -> None:
        """Let ONNX output `output` of `use` be `value` after the steps `back`, of which there is at least one."""
        name, made = use.outputs[output], self.draft.values[value]
        if made.origin is None:
            self.draft.values[value] = replace(made, origin=Origin(name, back))
        self._move_back(value, name, back)

    def _move_back(self, value: str, name: str, back: Steps) -> None:
        """Add the moves from a device value to ONNX tensor `name`."""
        for i, step in enumerate(back):
            rest = back[i + 1 :]
            target = self._fresh(f"{name}.view") if rest else name
            value = self._move(value, step, target, Origin(name, rest))

    def emit(
        self,
        use: Use,
        op: Op,
        inputs: Sequence[str],
        name: str,
        origin: Origin | None,
        expected: Shape | None = None,
        node: str = "",
    ) -> str:
        """Add `op` after checking its constraints; return the name of its result.

        Args:
            use: where it comes from; its name is the node's, unless `node` says another.
            op, inputs: the operator and the values that it reads.
            name, origin: of its result.
            expected: the shape that ONNX's inference found.
            node: the node's name.

        Raises:
            Refused: a constraint is broken, or the shape differs from what ONNX's inference says.
        """
        shapes = [self.draft.values[each].shape for each in inputs]
        check(op, shapes)
        shape = op.infer(shapes)
        if expected is not None and shape != expected:
            raise Refused(
                f"the output shape is {list(expected)} after shape inference but {list(shape)} by the "
                f"rules of {op.name}"
            )
        name = name if origin is not None and name == origin.name else self._fresh(name)
        node = node or use.name
        node = node if node not in self.draft.nodes else self._fresh_node(node)
        self.draft.add_node(node, op, inputs, Value(name, TensorType(shape), origin))
        return name

    def emit_all(self, op: Op, inputs: Sequence[str], names: Sequence[str], node: str) -> list[str]:
        """Add an operator with several results under `node`, as far as it has them; return their names.

        Raises:
            Refused: a constraint is broken.
        """
        shapes = [self.draft.values[each].shape for each in inputs]
        check(op, shapes)
        made = [Value(self._fresh(n), TensorType(s)) for n, s in zip(names, op.shapes(shapes), strict=False)]
        node = node if node not in self.draft.nodes else self._fresh_node(node)
        self.draft.add_node(node, op, inputs, *made)
        return [value.name for value in made]

    def stub(self, use: Use) -> None:
        """Give the outputs of a node that could not be imported a value, so that the check of the rest goes on."""
        for name in use.outputs:
            if name and name not in self.draft.values and name in self.tensors.shapes:
                self._add_value(name, self.tensors.shapes[name], Origin(name))

    def _add_value(self, name: str, shape: Shape, origin: Origin | None) -> None:
        self.draft.values[name] = Value(name, TensorType(shape), origin)

    def _move(self, source: str, step: Step, target: str, origin: Origin | None) -> str:
        shape, quant = self.draft.values[source].shape, self.draft.values[source].type.quant
        op: Op = Transpose(step[1]) if step[0] == "transpose" else Reshape(step[1])
        check(op, [shape])
        node = self._fresh_node(f"{target}.view" if target in self._taken else target)
        self.draft.add_node(node, op, [source], Value(target, TensorType(op.infer([shape]), quant=quant), origin))
        return target

    def _fresh(self, stem: str) -> str:
        return _numbered(stem, (self._taken, self.draft.values))

    def _fresh_node(self, stem: str) -> str:
        return _numbered(stem, (self._reserved, self.draft.nodes))


def _numbered(stem: str, taken: Sequence[Container[str]]) -> str:
    name, count = stem, 1
    while any(name in names for names in taken):
        count += 1
        name = f"{stem}.{count}"
    return name


def check(op: Op, shapes: Sequence[Shape]) -> None:
    """Raise Refused with the first constraint of `op` that this use breaks."""
    for sentence in op.problems(shapes):
        raise Refused(sentence)
