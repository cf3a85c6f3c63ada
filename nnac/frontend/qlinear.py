"""A QDQ model with onnxruntime's integer operators in it: the form that machines of arithmetic onnx reproduce.

Rules, for every QuantizeLinear behind an operator of `FORMS` whose operands come out of DequantizeLinear:

1. the three become the integer operator, with the same scales; the quantized tensor keeps its name;
2. a Relu or Clip between becomes Max and Min of the integers;
3. a bias has to be int32 in units of input scale * weight scale, operands of 8 bits, scales per tensor or channel;
   anything else stays as written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnac.frontend.integers import BIAS_TOLERANCE
from nnac.frontend.walk import stored_arrays
from nnac.types import Array

MICROSOFT = "com.microsoft"
FORMS = {
    "Conv": ("QLinearConv", ""),
    "MatMul": ("QLinearMatMul", ""),
    "Gemm": ("QGemm", MICROSOFT),
    "Add": ("QLinearAdd", MICROSOFT),
    "Mul": ("QLinearMul", MICROSOFT),
    "AveragePool": ("QLinearAveragePool", MICROSOFT),
    "GlobalAveragePool": ("QLinearGlobalAveragePool", MICROSOFT),
}
BYTES = (np.int8, np.uint8)
POOLS = ("AveragePool", "GlobalAveragePool")
WITH_BIAS = ("Conv", "Gemm")


def integer_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a checked model with integer operators where they say the same."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    writer = _Writer(copy.graph)
    nodes = [new for node in copy.graph.node for new in writer.node(node)]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    copy.graph.initializer.extend(writer.initializers)
    if all(entry.domain != MICROSOFT for entry in copy.opset_import):
        copy.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return copy


@dataclass(slots=True)
class _Writer:
    """The graph that is read, and what is added to it."""

    graph: onnx.GraphProto
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    stored: dict[str, onnx.TensorProto] = field(default_factory=dict)
    made: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.stored = stored_arrays(self.graph)
        self.made = {name: node for node in self.graph.node for name in node.output}
        self.readers = Counter(name for node in self.graph.node for name in node.input)

    def node(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return what stands for a node."""
        if node.op_type != "QuantizeLinear" or not self._known(node.input[1:3]):
            return [node]
        clamp, source = None, self.made.get(node.input[0])
        if source is not None and source.op_type in ("Relu", "Clip") and self._known(source.input[1:]):
            clamp, source = source, self.made.get(source.input[0])
        inputs = self._inputs(source) if source is not None and source.op_type in FORMS else None
        if source is None or inputs is None:
            return [node]
        output = [node.input[1], self._zero(node)]
        if not self._same_types(source.op_type, [*inputs[2::3][:2], output[1]]):
            return [node]
        target = f"{node.output[0]}.unclamped" if clamp is not None else node.output[0]
        made = [_operator(source, inputs, output, target)]
        return made + (self._clamped(node, clamp, target) if clamp is not None else [])

    def _known(self, names: Sequence[str]) -> bool:
        return all(name in self.stored for name in names if name)

    def _same_types(self, op_type: str, zeros: Sequence[str]) -> bool:
        """Tell whether onnxruntime has the operator for these types: all alike, or uint8 with int8 weights."""
        first, *middle, last = (self._array(name).dtype for name in zeros)
        mixed = op_type in ("Conv", "MatMul", "Gemm") and first == np.uint8
        return first == last and first in BYTES and all(m == first or (mixed and m in BYTES) for m in middle)

    def _array(self, name: str) -> Array:
        return np.asarray(numpy_helper.to_array(self.stored[name]))

    def _constant(self, name: str, array: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        self.stored[name] = self.initializers[-1]
        return name

    def _zero(self, node: onnx.NodeProto) -> str:
        """Return the zero point of a quantizing node; a missing one is uint8."""
        if len(node.input) > 2 and node.input[2]:
            return str(node.input[2])
        return self._constant(f"{node.output[0]}.zero", np.zeros(self._array(node.input[1]).shape, np.uint8))

    def _inputs(self, source: onnx.NodeProto) -> list[str] | None:
        """Return the integer operands, each with scale and zero point, and the bias; None where there are no such."""
        count = 1 if source.op_type in POOLS else 2
        parts = [self.made.get(name) for name in source.input[:count]]
        found: list[str] = []
        for part in parts:
            if part is None or part.op_type != "DequantizeLinear" or not self._known(part.input[1:]):
                return None
            if self._array(part.input[1]).ndim > 1:  # a scale per block
                return None
            found += [part.input[0], part.input[1], self._zero(part)]
        if any(a.name == "beta" and a.f != 1 for a in source.attribute):
            return None
        if source.op_type in POOLS and any(a.name in ("dilations", "ceil_mode") for a in source.attribute):
            return None  # its QLinearAveragePool refuses the one, and counts otherwise with the other
        if source.op_type in WITH_BIAS and len(source.input) > 2 and source.input[2]:
            bias = self._bias(self.made.get(source.input[2]), found)
            return None if bias is None else [*found, bias]
        return found

    def _bias(self, node: onnx.NodeProto | None, operands: Sequence[str]) -> str | None:
        if node is None or node.op_type != "DequantizeLinear" or not self._known(node.input):
            return None
        units = self._array(operands[1]).astype(np.float64) * self._array(operands[4])
        scale = self._array(node.input[1]).astype(np.float64)
        zero = self._array(node.input[2]).any() if len(node.input) > 2 and node.input[2] else False
        close = np.abs(scale - units) <= BIAS_TOLERANCE * units
        usable = self._array(node.input[0]).dtype == np.int32 and close.all() and not zero
        return str(node.input[0]) if usable else None

    def _clamped(self, node: onnx.NodeProto, clamp: onnx.NodeProto, source: str) -> list[onnx.NodeProto]:
        """Return Max and Min of the integers for a Relu or Clip of the reals."""
        low, high = self._limits(clamp)
        made: list[onnx.NodeProto] = []
        for op_type, limit in (("Max", low), ("Min", high)):
            if limit is not None:
                name = self._constant(f"{node.output[0]}.{op_type}", self._quantized(node, limit))
                made.append(helper.make_node(op_type, [source, name], [f"{node.output[0]}.{op_type}.out"]))
                source = made[-1].output[0]
        if not made:
            return [helper.make_node("Identity", [source], [node.output[0]])]
        made[-1].output[0] = node.output[0]
        return made

    def _limits(self, clamp: onnx.NodeProto) -> tuple[float | None, float | None]:
        if clamp.op_type == "Relu":
            return 0.0, None
        by_name = {a.name: a.f for a in clamp.attribute}
        names = [clamp.input[i] if i < len(clamp.input) else "" for i in (1, 2)]
        low, high = (float(self._array(n).reshape(-1)[0]) if n else None for n in names)
        return by_name.get("min", low), by_name.get("max", high)

    def _quantized(self, node: onnx.NodeProto, limit: float) -> Array:
        zero = self._array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros((), np.uint8)
        info = np.iinfo(zero.dtype)
        steps = np.rint(np.float32(limit) / self._array(node.input[1]).astype(np.float32))
        return np.asarray(np.clip(steps + zero, info.min, info.max), zero.dtype).reshape(())


def _operator(source: onnx.NodeProto, inputs: Sequence[str], output: Sequence[str], target: str) -> onnx.NodeProto:
    """Return the integer operator; a bias comes last for QLinearConv, and before the output's scale for QGemm."""
    op_type, domain = FORMS[source.op_type]
    operands, bias = list(inputs[: len(inputs) // 3 * 3]), list(inputs[len(inputs) // 3 * 3 :])
    if source.op_type == "Gemm":
        names = [*operands, *(bias or [""]), *output]
    else:
        names = [*operands, *output, *bias]
    attributes = {a.name: helper.get_attribute_value(a) for a in source.attribute if a.name != "beta"}
    if source.op_type in POOLS:
        attributes["channels_last"] = 0
    return helper.make_node(op_type, names, [target], f"{target}.integer", domain=domain, **attributes)
