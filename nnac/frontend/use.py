"""One ONNX node as the importing rows see it: attributes, shapes, constants, and what a row is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from nnac.errors import one_line
from nnac.ops import Op
from nnac.ops.base import Constraint
from nnac.types import Array

Shape = tuple[int, ...]


class Refused(Exception):
    """A use of an operator that is not supported; the text is the sentence for the user."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A constant that the model stores as integers: the real array is (integers - zero) * scale.

    All three arrays have the shape of the real one: what moves that moves them.
    """

    integers: Array
    zero: Array
    scale: Array

    def mapped(self, move: Callable[[Array], Array]) -> Stored:
        """Return the constant after a move of its entries."""
        return Stored(move(self.integers), move(self.zero), move(self.scale))

    def real(self) -> Array:
        """Return the float32 array, as DequantizeLinear computes it."""
        return np.asarray((self.integers.astype(np.int64) - self.zero).astype(np.float32) * self.scale)


@dataclass(frozen=True, slots=True)
class Tensors:
    """What is known of the model's tensors by name: shapes, dtype names, constant arrays.

    Attributes:
        stored: the constants that came out of DequantizeLinear; their real arrays are among `constants` too.
        private: computed tensors that one node reads, or several that quantize alike, and that are no graph outputs.
    """

    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    constants: dict[str, Array]
    stored: dict[str, Stored] = field(default_factory=dict)
    private: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Use:
    """One node of the main graph.

    Attributes:
        name: the node's name, unique.
        inputs, outputs: tensor names; "" stands for one that is left out.
        attributes: Python values; tensors as arrays.
        opset: version of the default domain.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    tensors: Tensors

    @classmethod
    def of(cls, node: onnx.NodeProto, name: str, opset: int, tensors: Tensors) -> Use:
        """Return the view of one NodeProto."""
        attributes = {a.name: _attribute(a) for a in node.attribute}
        op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        return cls(name, op_type, tuple(node.input), tuple(node.output), attributes, opset, tensors)

    def given(self, index: int) -> bool:
        """Tell whether input `index` is there."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def shape(self, index: int = 0) -> Shape:
        """Return the ONNX shape of input `index`."""
        return self.tensors.shapes[self.inputs[index]]

    def out(self, index: int = 0) -> Shape:
        """Return the ONNX shape of output `index`."""
        return self.tensors.shapes[self.outputs[index]]

    def constant(self, index: int) -> Array | None:
        """Return the array of input `index`, or None if it is computed or missing."""
        return self.tensors.constants.get(self.inputs[index]) if self.given(index) else None

    def fixed(self, index: int) -> bool:
        """Tell whether input `index` is a constant or left out."""
        return not self.given(index) or self.inputs[index] in self.tensors.constants

    def array(self, index: int) -> Array:
        """Return the array of input `index`, which a rule has found to be a constant."""
        array = self.constant(index)
        if array is None:
            raise Refused(f"input {index} must be a constant")
        return array

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute or its default."""
        return self.attributes.get(name, default)

    def ints(self, name: str, default: Iterable[int]) -> Shape:
        """Return an attribute of as many integers as `default` has."""
        default = tuple(default)
        found = tuple(self.attributes.get(name, default))
        if len(found) != len(default):
            raise Refused(f"attribute {name} has {len(default)} values")
        return found

    def numbers(self, name: str, index: int) -> Shape | None:
        """Return integers from the attribute `name` (old opsets) or the constant input `index` (newer ones)."""
        if self.given(index):
            return tuple(int(v) for v in self.array(index).reshape(-1))
        found = self.attributes.get(name)
        return None if found is None else tuple(int(v) for v in found)

    def axis(self, default: int, rank: int) -> int:
        """Return the attribute `axis`, counted from the front."""
        return normalized(self.get("axis", default), rank)

    def unused(self, first: int) -> bool:
        """Tell whether the outputs from `first` on are left out (or read by nobody: folding has dropped them)."""
        return not any(self.outputs[first:])

    def described(self) -> str:
        """Return what was found, for an error message."""
        attributes = [f"{k}={one_line(v, 60)}" for k, v in self.attributes.items()]
        shapes = [str(list(self.tensors.shapes.get(name, ()))) for name in self.inputs if name]
        return one_line(", ".join([*attributes, f"input shapes {' '.join(shapes)}"]), 250)


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on the ONNX side, with the sentence that a user reads."""

    holds: Callable[[Use], bool]
    sentence: str


@dataclass(frozen=True, slots=True)
class Row:
    """How one ONNX operator is imported.

    Attributes:
        handler: adds the node to the graph; takes the `Builder` and the use.
        ops: the operators that it can become.
        attributes: the ONNX attributes that are implemented; any other is reported.
        rules: conditions, checked in this order up to the first that fails.
        limits: those constraints of the first operator that depend on the model; the import itself meets the others.
    """

    handler: Callable[[Any, Use], None]
    ops: tuple[type[Op], ...]
    attributes: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    limits: tuple[Constraint, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is supported, for a user, each thing once."""
        return tuple(dict.fromkeys([*(rule.sentence for rule in self.rules), *(c.sentence for c in self.limits)]))


def normalized(axis: int, rank: int) -> int:
    """Return `axis` counted from the front.

    Raises:
        Refused: there is no such axis.
    """
    if not -rank <= axis < max(rank, 1):
        raise Refused(f"axis {axis} is not an axis of a tensor of rank {rank}")
    return int(axis) % max(rank, 1)


def real(array: Array) -> Array:
    """Return `array` in float64, for computing with weights."""
    return np.asarray(array, dtype=np.float64)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [each.decode("utf-8", "replace") for each in value]
    return value
