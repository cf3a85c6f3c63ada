"""Integer operators of quantized models become DequantizeLinear, the float operator, QuantizeLinear: one form for all.

Rules:

1. an operator whose scales and zero points are stored is rewritten; its integer tensors keep their names; any other
   node stays, and the import reports it;
2. an int32 bias is dequantized with the product of the scales of input and weights, as the operator defines it;
3. MatMulInteger and ConvInteger stand for the real product of their input and of the weights less their zero point;
   behind DynamicQuantizeLinear, whose scale is only known at run time, they take its real input, and the scale is one;
4. a model older than the opset that has all that is needed is converted to it;
5. QuantizeLinear and DequantizeLinear of com.microsoft are ONNX's own; a width under 8 bits is a Clip and 8 bits; a
   Clip of the integers (Brevitas) is one of the reals in front of the only QuantizeLinear that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from onnx import helper, numpy_helper

from nnac.frontend.qonnx import computed_quantizer
from nnac.frontend.walk import stem, stored_arrays
from nnac.types import Array

MICROSOFT = "com.microsoft"
OPSET = 13
"""QuantizeLinear with an axis, and Clip with limits that are inputs, are there from here on."""
NARROW: dict[int, tuple[int, int]] = {onnx.TensorProto.INT4: (-8, 7), onnx.TensorProto.UINT4: (0, 15)}
_WIDE: dict[int, type[np.generic]] = {onnx.TensorProto.INT4: np.int8, onnx.TensorProto.UINT4: np.uint8}


def rewrite_quantized(model: onnx.ModelProto) -> bool:
    """Rewrite the integer operators of the main graph in place; tell if there were any."""
    if not any(_has_rule(node) for node in model.graph.node):
        return False
    modernize(model)
    rewriter = _Rewriter(model.graph)
    nodes = [new for node in model.graph.node for new in rewriter.node(node)]
    if not rewriter.changed:
        return False
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    model.graph.initializer.extend(rewriter.initializers)
    return True


def _has_rule(node: onnx.NodeProto) -> bool:
    """Tell whether a node shows that the model is quantized; Clip has a rule too, and does not."""
    return node.op_type != "Clip" and ((node.domain, node.op_type) in RULES or _other_rule(node) is not None)


def modernize(model: onnx.ModelProto, opset: int = 0) -> None:
    """Convert a model to `opset`, or to `OPSET`, if it is older.

    Operators of other domains stand aside as identities meanwhile.
    """
    (found,) = (entry for entry in model.opset_import if entry.domain == "")
    wanted = max(opset, OPSET)
    if found.version >= wanted:
        return
    aside = {node.output[0]: onnx.NodeProto.FromString(node.SerializeToString()) for node in _foreign(model.graph)}
    for node in _foreign(model.graph):
        identity = helper.make_node("Identity", [node.input[0]], [node.output[0]], node.name)
        node.CopyFrom(identity)
    model.CopyFrom(onnx.version_converter.convert_version(model, wanted))
    for node in model.graph.node:
        if node.op_type == "Identity" and node.output[0] in aside:
            node.CopyFrom(aside[node.output[0]])
    known = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(helper.make_opsetid(d, 1) for d in {n.domain for n in aside.values()} - known)


def _foreign(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.domain]


@dataclass(slots=True)
class _Rewriter:
    """The nodes and initializers that take the place of others."""

    graph: onnx.GraphProto
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    changed: bool = False
    _stored: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _dynamic: dict[str, str] = field(default_factory=dict)
    _pending: list[onnx.NodeProto] = field(default_factory=list)
    _quantizers: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stored = stored_arrays(self.graph)
        self._quantizers = {node.output[0]: node for node in self.graph.node if node.op_type == "QuantizeLinear"}
        self._taken = {name for node in self.graph.node for name in (*node.input, *node.output)} | set(self._stored)

    def node(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Yield what stands for a node: itself, or others."""
        rule = RULES.get((node.domain, node.op_type)) or _other_rule(node)
        self._pending = []
        if rule is None or not rule(self, node):
            yield node
            return
        self.changed = True
        for i, new in enumerate(self._pending):
            new.name = stem(node) if i == len(self._pending) - 1 else f"{stem(node)}.{new.op_type}.{i}"
        yield from self._pending

    # -- reading ---------------------------------------------------------------------------------------------------

    def array(self, node: onnx.NodeProto, index: int) -> Array | None:
        """Return the stored array at an input, or None."""
        name = node.input[index] if index < len(node.input) else ""
        return numpy_helper.to_array(self._stored[name]) if name in self._stored else None

    def quantizer(self, name: str) -> onnx.NodeProto | None:
        """Return the QuantizeLinear that makes a computed tensor, or None."""
        return self._quantizers.get(name)

    def fixed(self, node: onnx.NodeProto, *indices: int) -> bool:
        """Tell whether these inputs are stored or left out."""
        given = [node.input[i] for i in indices if i < len(node.input) and node.input[i]]
        return all(name in self._stored for name in given)

    # -- writing ---------------------------------------------------------------------------------------------------

    def add(self, op_type: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node and return its output."""
        output = output or self._fresh(f"{inputs[0]}.{op_type}")
        self._pending.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, array: Any) -> str:
        """Add an initializer and return its name."""
        name = self._fresh(name)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        self._stored[name] = self.initializers[-1]
        return name

    def real(self, node: onnx.NodeProto, index: int, axis: int = 0) -> str:
        """Dequantize input `index`, whose scale and zero point follow it; `axis` is that of a scale per channel."""
        names = [node.input[index], *self.parameters(node, index + 1)]
        scale = self.array(node, index + 1)
        attributes = _axis(axis, scale is not None and scale.size > 1)
        return self.add("DequantizeLinear", names, **attributes)

    def parameters(self, node: onnx.NodeProto, index: int) -> list[str]:
        """Return the names of a scale, as float32, and of the zero point behind it if there is one."""
        scale, zero = self.array(node, index), node.input[index + 1] if index + 1 < len(node.input) else ""
        name = node.input[index]
        if scale is not None and scale.dtype != np.float32:
            name = self.constant(name, scale.astype(np.float32))
        return [name, zero] if zero else [name]

    def bias(self, node: onnx.NodeProto, index: int, x: int, weight: int, factor: float = 1.0) -> list[str]:
        """Return the dequantized int32 bias, or nothing where there is none."""
        if index >= len(node.input) or not node.input[index]:
            return []
        scales = [self.array(node, i + 1) for i in (x, weight)]
        if scales[0] is None or scales[1] is None:
            return [""]
        scale = np.float32(factor) * scales[0].astype(np.float32) * scales[1].astype(np.float32)
        name = self.constant(f"{node.input[index]}.scale", scale.reshape(-1) if scale.size > 1 else scale.reshape(()))
        return [self.add("DequantizeLinear", [node.input[index], name], **_axis(0, scale.size > 1))]

    def quantized(self, node: onnx.NodeProto, y: str, scale: int) -> bool:
        """Quantize the result `y` into the node's output; always true."""
        self.add("QuantizeLinear", [y, *self.parameters(node, scale)], node.output[0])
        return True

    def dynamic(self, name: str, source: str | None = None) -> str | None:
        """Return (or remember) the real tensor behind an output of DynamicQuantizeLinear."""
        if source is not None:
            self._dynamic[name] = source
        return self._dynamic.get(name)

    def _fresh(self, stem: str) -> str:
        name, count = stem, 1
        while name in self._taken:
            count += 1
            name = f"{stem}.{count}"
        self._taken.add(name)
        return name


Rule = Callable[[_Rewriter, onnx.NodeProto], bool]


def _axis(axis: int, wanted: bool) -> dict[str, Any]:
    """Return the attribute of a scale per channel."""
    return {"axis": axis} if wanted else {}


def _attributes(node: onnx.NodeProto, *dropped: str) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name not in dropped}


def _conv(r: _Rewriter, node: onnx.NodeProto) -> bool:
    if not r.fixed(node, 1, 2, 4, 5, 6, 7):
        return False
    inputs = [r.real(node, 0), r.real(node, 3), *r.bias(node, 8, 0, 3)]
    return r.quantized(node, r.add("Conv", inputs, **_attributes(node)), 6)


def _matmul(r: _Rewriter, node: onnx.NodeProto) -> bool:
    matrix = r.array(node, 3)
    if not r.fixed(node, 1, 2, 4, 5, 6, 7):
        return False
    product = r.add("MatMul", [r.real(node, 0), r.real(node, 3, matrix.ndim - 1 if matrix is not None else 0)])
    return r.quantized(node, product, 6)


def _gemm(r: _Rewriter, node: onnx.NodeProto) -> bool:
    if not r.fixed(node, 1, 2, 4, 5, 7, 8) or len(node.input) < 8:
        return False
    attributes = _attributes(node)
    weights = r.real(node, 3, 0 if attributes.get("transB", 0) else 1)
    inputs = [r.real(node, 0), weights, *r.bias(node, 6, 0, 3, attributes.get("alpha", 1.0))]
    return r.quantized(node, r.add("Gemm", inputs, **attributes), 7)


def _binary(op_type: str) -> Rule:
    def rewrite(r: _Rewriter, node: onnx.NodeProto) -> bool:
        if not r.fixed(node, 1, 2, 4, 5, 6, 7):
            return False
        return r.quantized(node, r.add(op_type, [r.real(node, 0), r.real(node, 3)]), 6)

    return rewrite


def _unary(op_type: str, *dropped: str) -> Rule:
    def rewrite(r: _Rewriter, node: onnx.NodeProto) -> bool:
        found = _attributes(node)
        old = op_type == "Softmax" and found.get("opset", 13) < 13 and found.get("axis", -1) != -1
        if not r.fixed(node, 1, 2, 3, 4) or found.get("channels_last", 0) or old:
            return False
        return r.quantized(node, r.add(op_type, [r.real(node, 0)], **_attributes(node, *dropped)), 3)

    return rewrite


def _concat(r: _Rewriter, node: onnx.NodeProto) -> bool:
    starts = range(2, len(node.input), 3)
    if not r.fixed(node, 0, 1, *(i for start in starts for i in (start + 1, start + 2))):
        return False
    return r.quantized(node, r.add("Concat", [r.real(node, i) for i in starts], **_attributes(node)), 0)


def _dynamic(r: _Rewriter, node: onnx.NodeProto) -> bool:
    for name in node.output[:1]:
        r.dynamic(name, node.input[0])
    r.add("Identity", [r.constant(f"{node.output[1]}.one", np.ones((), np.float32))], node.output[1])
    r.add("Identity", [r.constant(f"{node.output[2]}.zero", np.zeros((), np.uint8))], node.output[2])
    return True


def _product(op_type: str) -> Rule:
    def rewrite(r: _Rewriter, node: onnx.NodeProto) -> bool:
        real = r.dynamic(node.input[0])
        if not r.fixed(node, 3) or (real is None and not r.fixed(node, 2)):
            return False
        one = r.constant(f"{node.output[0]}.one", np.ones((), np.float32))
        zeros = [node.input[i] if i < len(node.input) else "" for i in (2, 3)]
        x = real or r.add("DequantizeLinear", [node.input[0], one, *filter(None, zeros[:1])])
        matrix, offset = r.array(node, 1), r.array(node, 3)
        per_row = offset is not None and offset.size > 1
        channel = _axis(0 if op_type == "Conv" or matrix is None else matrix.ndim - 1, per_row)
        if per_row and offset is not None:
            one = r.constant(f"{node.output[0]}.ones", np.ones(offset.size, np.float32))
        w = r.add("DequantizeLinear", [node.input[1], one, *filter(None, zeros[1:])], **channel)
        r.add(op_type, [x, w], node.output[0], **_attributes(node))
        return True

    return rewrite


def _microsoft(r: _Rewriter, node: onnx.NodeProto) -> bool:
    r.add(node.op_type, node.input, node.output[0], **_attributes(node))
    return True


def _narrow(r: _Rewriter, node: onnx.NodeProto) -> bool:
    """Write a quantizer of fewer than 8 bits as a Clip and a quantizer of 8."""
    scale, zero = r.array(node, 1), r._stored.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or scale.size != 1 or zero is None or zero.data_type not in NARROW:
        return False
    offset = numpy_helper.to_array(zero).astype(_WIDE[zero.data_type])
    limits = [(v - int(offset.reshape(-1)[0])) * float(scale.reshape(-1)[0]) for v in NARROW[zero.data_type]]
    _clipped(r, node.input[0], limits, [node.input[1], r.constant(f"{node.input[2]}.wide", offset)], node.output[0])
    return True


def _clipping(r: _Rewriter, node: onnx.NodeProto) -> bool:
    """Write a Clip of integers behind a quantizer as a Clip of the reals in front of it."""
    maker = r.quantizer(node.input[0])
    if maker is None or not r.fixed(node, 1, 2) or len(node.input) < 3 or not all(node.input[1:]):
        return False
    scale, zero = (r.array(maker, i) for i in (1, 2))
    if scale is None or zero is None or scale.size != 1:
        return False
    ends = [int(numpy_helper.to_array(r._stored[name]).reshape(-1)[0]) for name in node.input[1:]]
    limits = [(end - int(zero.reshape(-1)[0])) * float(scale.reshape(-1)[0]) for end in ends]
    _clipped(r, maker.input[0], limits, maker.input[1:], node.output[0])
    return True


def _widened(r: _Rewriter, node: onnx.NodeProto) -> bool:
    """Dequantize the 8 bits that `_narrow` makes."""
    zero = r._stored.get(node.input[2]) if len(node.input) > 2 else None
    if node.input[0] in r._stored or zero is None or zero.data_type not in NARROW:
        return False
    offset = numpy_helper.to_array(zero).astype(_WIDE[zero.data_type])
    wide = r.constant(f"{node.input[2]}.wide", offset)
    r.add("DequantizeLinear", [node.input[0], node.input[1], wide], node.output[0], **_attributes(node))
    return True


def _clipped(r: _Rewriter, x: str, limits: Sequence[float], parameters: Sequence[str], output: str) -> str:
    """Add Clip to real limits and QuantizeLinear."""
    ends = [r.constant(f"{output}.limit", np.float32(limit)) for limit in limits]
    return r.add("QuantizeLinear", [r.add("Clip", [x, *ends]), *parameters], output)


def _quantizer(r: _Rewriter, node: onnx.NodeProto) -> bool:
    """Write a QONNX quantizer of a computed tensor as Clip (under 8 bits), QuantizeLinear, DequantizeLinear."""
    found = computed_quantizer(node, [r.array(node, i) for i in range(1, len(node.input))])
    if found is None or node.input[0] in r._stored:
        return False
    dtype = np.int8 if found.low < 0 else np.uint8
    parameters = [
        r.constant(f"{node.output[0]}.scale", np.float32(found.scale)),
        r.constant(f"{node.output[0]}.zero", np.array(found.zero_point, dtype)),
    ]
    limits = [(v - found.zero_point) * found.scale for v in (found.low, found.high)]
    quantized = _clipped(r, node.input[0], limits, parameters, f"{node.output[0]}.quantized")
    r.add("DequantizeLinear", [quantized, *parameters], node.output[0])
    return True


def _other_rule(node: onnx.NodeProto) -> Rule | None:
    """Return the rule of a quantizer of whatever domain."""
    if node.op_type in ("Quant", "IntQuant"):
        return _quantizer
    plain: dict[str, Rule] = {"QuantizeLinear": _narrow, "DequantizeLinear": _widened, "Clip": _clipping}
    return plain.get(node.op_type) if node.domain == "" else None


QUANTIZERS = ("Quant", "IntQuant", "BipolarQuant")
"""QONNX's operators, in whatever domain."""

RULES: Mapping[tuple[str, str], Rule] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
    ("", "MatMulInteger"): _product("MatMul"),
    ("", "ConvInteger"): _product("Conv"),
    ("", "DynamicQuantizeLinear"): _dynamic,
    (MICROSOFT, "QGemm"): _gemm,
    (MICROSOFT, "QLinearAdd"): _binary("Add"),
    (MICROSOFT, "QLinearMul"): _binary("Mul"),
    (MICROSOFT, "QLinearAveragePool"): _unary("AveragePool", "channels_last"),
    (MICROSOFT, "QLinearGlobalAveragePool"): _unary("GlobalAveragePool", "channels_last"),
    (MICROSOFT, "QLinearLeakyRelu"): _unary("LeakyRelu"),
    (MICROSOFT, "QLinearSigmoid"): _unary("Sigmoid"),
    (MICROSOFT, "QLinearSoftmax"): _unary("Softmax", "opset"),
    (MICROSOFT, "QLinearConcat"): _concat,
    (MICROSOFT, "QuantizeLinear"): _microsoft,
    (MICROSOFT, "DequantizeLinear"): _microsoft,
}
"""Rewriting by domain and operator; a rule tells whether it applied."""

ON_REALS: Mapping[str, str] = {
    "QLinearConv": "Conv",
    "QLinearMatMul": "MatMul",
    "MatMulInteger": "MatMul",
    "ConvInteger": "Conv",
    "DynamicQuantizeLinear": "QuantizeLinear",
    "QGemm": "Gemm",
    "QLinearAdd": "Add",
    "QLinearMul": "Mul",
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearSigmoid": "Sigmoid",
    "QLinearSoftmax": "Softmax",
    "QLinearConcat": "Concat",
    "QuantizeLinear": "QuantizeLinear",
    "DequantizeLinear": "DequantizeLinear",
}
"""The operator on reals that each of them becomes."""
