"""An integer graph as an ONNX QDQ model with the same scales and zero points, for onnxruntime to run.

Every computed tensor of the graph is an int8 tensor of the same name, shape and axis order in the model: the float
operator stands between DequantizeLinear and QuantizeLinear, the moves (reshape, transpose, ...) work on the int8 tensor
itself. Spatial operators are bracketed by transposes of int8 tensors, since ONNX has the channels in front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from nnac.graph import Graph, Node
from nnac.ops import Activation, AveragePool, Concat, Conv, Dense, MaxPool, Mul, Pad, Reshape, Slice, Sum, Transpose
from nnac.ops.conv import BIAS, INPUT, SCALE, WEIGHT
from nnac.types import Array, Quant

OPSET, IR_VERSION = 17, 8
FLOAT_OPS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "identity": "Identity", "hard_swish": "HardSwish"}
MODES = {
    "off": (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, "0"),
    "on": (onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, "0"),
    "integer": (onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, "1"),
}
"""How onnxruntime may run: as written; optimized; optimized, int8 activations into integer convolutions on x86 too."""
TO_FRONT, TO_BACK = (0, 3, 1, 2), (0, 2, 3, 1)


def qdq_model(graph: Graph, every: bool = True) -> onnx.ModelProto:
    """Return the QDQ model of an integer graph.

    Args:
        graph: int8 values, as after `nnac.passes.quantize`.
        every: make every computed tensor an output, not only the graph's.

    Raises:
        ValueError: an operator whose integer meaning is not that of a float operator (softmax).
    """
    writer = _Writer(graph)
    for node in graph.nodes:
        writer.node(node)
    names = [node.output for node in graph.nodes] if every else list(graph.outputs)
    model = helper.make_model(
        helper.make_graph(
            writer.nodes,
            graph.name,
            [writer.info(name) for name in graph.inputs],
            [writer.info(name) for name in names],
            writer.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, inputs: Mapping[str, Array], mode: str) -> dict[str, Array]:
    """Return the outputs of a model in onnxruntime."""
    runner = session(model, mode)
    names = [info.name for info in model.graph.output]
    return dict(zip(names, runner.run(names, dict(inputs)), strict=True))


def session(model: onnx.ModelProto, mode: str, save: Path | None = None) -> Any:
    """Return an onnxruntime session on one thread.

    Args:
        model: the model.
        mode: a key of `MODES`.
        save: where to write the optimized model.
    """
    level, allowed = MODES[mode]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = level
    options.add_session_config_entry("session.qdqisint8allowed", allowed)
    if save is not None:
        options.optimized_model_filepath = str(save)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class _Writer:
    """The ONNX nodes and initializers under construction."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.names: set[str] = {*graph.values}
        for name, array in graph.constants.items():
            if array.dtype == np.int8 and graph.values[name].type.quant is not None:
                self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))

    def info(self, name: str) -> onnx.ValueInfoProto:
        """Return the declaration of an int8 tensor."""
        return helper.make_tensor_value_info(name, TensorProto.INT8, list(self.graph.values[name].shape))

    def node(self, node: Node) -> None:
        """Write one node of the graph."""
        match node.op:
            case Conv() | MaxPool() | AveragePool():
                self._spatial(node)
            case Dense():
                self._dense(node)
            case Sum() | Mul() | Activation():
                inputs = [self._real(name) for name in self.graph.operands(node)]
                self._quantize(self._clamped(node, self._elementwise(node, inputs)), node.output, node.output)
            case Reshape() | Transpose() | Slice() | Concat() | Pad():
                self._move(node)
            case _:
                raise ValueError(f"{node.op.name} has no float twin with the same integers")

    # -- operators -------------------------------------------------------------------------------------------------

    def _spatial(self, node: Node) -> None:
        op, source = node.op, self._add("Transpose", [node.inputs[INPUT]], perm=TO_FRONT)
        x = self._dequantize(source, self._quant(node.inputs[INPUT]))
        common = {"strides": op.strides, "pads": op.pads}
        if op.dilations != (1, 1):  # onnxruntime 1.31's fused QLinearAveragePool refuses the mere attribute
            common["dilations"] = op.dilations
        if isinstance(op, Conv):
            weights = np.moveaxis(self.graph.constants[node.inputs[WEIGHT]], 3, 1)
            y = self._add("Conv", [x, *self._parameters(node, weights)], group=op.groups, **common)
        elif isinstance(op, MaxPool):
            y = self._add("MaxPool", [x], kernel_shape=op.kernel, **common)
        else:
            assert op.counted in (op.pads, (0, 0, 0, 0)), "ceil mode has no simple ONNX form"
            y = self._add("AveragePool", [x], kernel_shape=op.kernel, count_include_pad=int(any(op.counted)), **common)
        quantized = self._quantize(self._clamped(node, y), self._fresh(node.output), node.output)
        self._add("Transpose", [quantized], node.output, perm=TO_BACK)

    def _dense(self, node: Node) -> None:
        """Write Gemm on a matrix; other ranks are reshaped as integers."""
        shape, out = (self.graph.values[name].shape for name in (node.inputs[INPUT], node.output))
        flat = len(shape) == 2
        source = node.inputs[INPUT] if flat else self._reshape(node.inputs[INPUT], (-1, shape[-1]))
        x = self._dequantize(source, self._quant(node.inputs[INPUT]))
        parameters = self._parameters(node, self.graph.constants[node.inputs[WEIGHT]])
        y = self._clamped(node, self._add("Gemm", [x, *parameters], transB=1))
        quantized = self._quantize(y, node.output if flat else self._fresh(node.output), node.output)
        if not flat:
            self._reshape(quantized, out, node.output)

    def _parameters(self, node: Node, weights: Array) -> list[str]:
        """Return the dequantized weights (int8) and bias (int32) of a layer, both with a scale per output channel."""
        scale = self.graph.constants[node.inputs[SCALE]].astype(np.float32)
        zeros = self._constant(np.zeros(len(scale), np.int8))
        stored = self._constant(np.ascontiguousarray(weights))
        bias = self._constant(self.graph.constants[node.inputs[BIAS]])
        unit = self._constant(scale * np.float32(self._quant(node.inputs[INPUT]).scale))
        return [
            self._add("DequantizeLinear", [stored, self._constant(scale), zeros], axis=0),
            self._add("DequantizeLinear", [bias, unit], axis=0),
        ]

    def _elementwise(self, node: Node, inputs: Sequence[str]) -> str:
        match node.op:
            case Mul():
                return self._add("Mul", inputs)
            case Sum(signs=(1, -1)):
                return self._add("Sub", inputs)
            case Sum(signs=signs):
                signed = [x if s > 0 else self._add("Neg", [x]) for x, s in zip(inputs, signs, strict=True)]
                return self._add("Add" if len(signed) == 2 else "Sum", signed)
            case Activation(kind="clip", params=(low, high)):
                return self._clip(inputs[0], low, high)
            case Activation(kind="affine", params=(scale, offset)):
                product = self._add("Mul", [inputs[0], self._constant(np.float32(scale))])
                return self._add("Add", [product, self._constant(np.float32(offset))])
            case Activation(kind="leaky_relu", params=(alpha,)):
                return self._add("LeakyRelu", inputs, alpha=alpha)
            case Activation(kind=kind) if kind in FLOAT_OPS:
                return self._add(FLOAT_OPS[kind], inputs)
        raise ValueError(f"{node.op} has no float twin here")

    def _clamped(self, node: Node, x: str) -> str:
        low, high = getattr(node.op, "clamp", (-np.inf, np.inf))
        if (low, high) == (0.0, np.inf):
            return self._add("Relu", [x])
        return x if (low, high) == (-np.inf, np.inf) else self._clip(x, low, high)

    def _clip(self, x: str, low: float, high: float) -> str:
        limits = [self._constant(np.float32(v)) if np.isfinite(v) else "" for v in (low, high)]
        return self._add("Clip", [x, *limits])

    def _move(self, node: Node) -> None:
        op, x = node.op, node.inputs[0]
        match op:
            case Reshape(shape):
                self._reshape(x, shape, node.output)
            case Transpose(perm):
                self._add("Transpose", [x], node.output, perm=perm)
            case Slice(starts, steps, sizes):
                stops = [a + n * s for a, s, n in zip(starts, steps, sizes, strict=True)]
                stops = [stop if stop >= 0 else -(2**31) for stop in stops]
                lists = [self._constant(np.array(v, np.int64)) for v in (starts, stops, range(len(starts)), steps)]
                self._add("Slice", [x, *lists], node.output)
            case Concat(axis):
                y = self._add("Concat", [self._real(name) for name in node.inputs], axis=axis)
                self._quantize(y, node.output, node.output)
            case Pad(before, after, value):
                fill = self._quant(node.output).quantize(np.array(value, np.float32))
                self._add(
                    "Pad", [x, self._constant(np.array([*before, *after], np.int64)), self._constant(fill)], node.output
                )

    # -- small things ----------------------------------------------------------------------------------------------

    def _reshape(self, x: str, shape: Sequence[int], output: str | None = None) -> str:
        return self._add("Reshape", [x, self._constant(np.array(shape, np.int64))], output)

    def _quant(self, name: str) -> Quant:
        quant = self.graph.values[name].type.quant
        assert quant is not None
        return quant

    def _real(self, name: str) -> str:
        return self._dequantize(name, self._quant(name))

    def _dequantize(self, x: str, quant: Quant) -> str:
        return self._add("DequantizeLinear", [x, *self._scales(quant)])

    def _quantize(self, x: str, output: str, like: str) -> str:
        return self._add("QuantizeLinear", [x, *self._scales(self._quant(like))], output)

    def _scales(self, quant: Quant) -> list[str]:
        return [self._constant(np.float32(quant.scale)), self._constant(np.int8(quant.zero_point))]

    def _constant(self, array: Any) -> str:
        name = self._fresh("constant")
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _add(self, op_type: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        output = self._fresh(op_type) if output is None else output
        name = f"{op_type}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name, **attributes))
        return output

    def _fresh(self, stem: str) -> str:
        name = f"{stem}.{len(self.names)}"
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name
