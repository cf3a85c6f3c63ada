"""What other tools write for quantized networks, node by node as seen in their exports: read with their own scales.

The forms were taken from real exports, all of which verified without a fault: torchao 0.18.0 (pt2e, torch 2.13.0,
dynamo exporter), Brevitas 0.13.4 (QCDQ) and TensorFlow 2.21.0 (TFLite, int8) through tf2onnx 1.17.0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nnac.errors import ModelError
from nnac.frontend import prepare
from nnac.types import Array
from nnac.verify import Verdict, verify
from tests.qdqnets import random_samples

RNG = np.random.default_rng(0)


class Writer:
    """A model under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.scales = np.zeros(0, np.float32)

    def const(self, array: Any) -> str:
        """Store a constant and return its name."""
        self.stored.append(numpy_helper.from_array(np.asarray(array), f"c{len(self.stored)}"))
        return self.stored[-1].name

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return its output."""
        self.nodes.append(helper.make_node(op_type, inputs, [f"{op_type}{len(self.nodes)}"], **attributes))
        return str(self.nodes[-1].output[0])

    def requantized(self, x: str, scale: float, zero: Any, **attributes: Any) -> str:
        """Add QuantizeLinear and DequantizeLinear."""
        parameters = self.const(np.float32(scale)), self.const(zero)
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, *parameters, **attributes), *parameters)

    def weights(self, shape: tuple[int, ...], clip: bool = False, axis: int = 0) -> str:
        """Add dequantized weights with a scale per output channel, clipped first as Brevitas does."""
        integers = self.const(RNG.integers(-127, 128, shape).astype(np.int8))
        if clip:
            integers = self.add("Clip", integers, self.const(np.int8(-127)), self.const(np.int8(127)))
        self.scales = RNG.uniform(0.002, 0.01, shape[axis]).astype(np.float32)
        parameters = self.const(self.scales), self.const(np.zeros(shape[axis], np.int8))
        return self.add("DequantizeLinear", integers, *parameters, axis=axis)

    def bias(self, scale: float) -> str:
        """Add the dequantized bias of the last weights, for an input of that scale."""
        integers, units = RNG.integers(-900, 900, len(self.scales)), np.float32(scale) * self.scales
        return self.add("DequantizeLinear", self.const(integers.astype(np.int32)), self.const(units), axis=0)

    def model(self, shape: tuple[int, ...], opset: int, output: str) -> onnx.ModelProto:
        """Return the model, whose input is x."""
        info = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "net", [info], [onnx.ValueInfoProto(name=output)], self.stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def pt2e() -> onnx.ModelProto:
    """Return what the XNNPACK quantizer makes: biases stay in float, operators that keep a scale requantize with it."""
    w = Writer()
    x = w.requantized("x", 0.03, np.int8(4), axis=1)
    x = w.add("Conv", x, w.weights((8, 3, 3, 3)), w.const(random(8)), pads=[1, 1, 1, 1], auto_pad="NOTSET", group=1)
    x = w.requantized(w.add("Relu", x), 0.02, np.int8(-128), axis=1)
    mean = w.add("ReduceMean", x, w.const(np.array([2, 3])), keepdims=1, noop_with_empty_axes=0)
    x = w.requantized(w.add("Add", x, w.requantized(mean, 0.02, np.int8(-128), axis=1)), 0.03, np.int8(-128), axis=1)
    x = w.add("ReduceMean", x, w.const(np.array([-1, -2])), keepdims=1)
    x = w.requantized(x, 0.03, np.int8(-128), axis=1)
    x = w.requantized(w.add("Reshape", x, w.const(np.array([1, 8])), allowzero=1), 0.03, np.int8(-128), axis=1)
    x = w.add("Gemm", x, w.weights((5, 8)), w.const(random(5)), transB=1)
    return w.model((1, 3, 10, 10), 20, w.requantized(x, 0.01, np.int8(7), axis=1))


def brevitas() -> onnx.ModelProto:
    """Return Quantize, Clip, Dequantize: weights of 4 bits are clipped int8, activations of 4 bits clipped uint8."""
    w, units = Writer(), np.float32(0.03 * 0.004)
    x = w.requantized("x", 0.03, np.int8(0))
    bias = w.add("DequantizeLinear", w.const(RNG.integers(-900, 900, 8).astype(np.int32)), w.const(units))
    integers = w.const(RNG.integers(-7, 8, (8, 3, 3, 3)).astype(np.int8))
    clipped = w.add("Clip", integers, w.const(np.int8(-7)), w.const(np.int8(7)))
    kernel = w.add("DequantizeLinear", clipped, w.const(np.float32(0.004)), w.const(np.int8(0)))
    x = w.add("Relu", w.add("Conv", x, kernel, bias, strides=[2, 2]))
    scale, zero = w.const(np.float32(0.02)), w.const(np.uint8(0))
    x = w.add("Clip", w.add("QuantizeLinear", x, scale, zero), zero, w.const(np.uint8(15)))
    x = w.add("Flatten", w.add("DequantizeLinear", x, scale, zero), axis=1)
    x = w.add("Gemm", x, w.weights((5, 8 * 16), clip=True), transB=1)
    return w.model((1, 3, 10, 10), 17, w.requantized(x, 0.01, np.int8(0)))


def tflite() -> onnx.ModelProto:
    """Return channels last outside and transposes inside, depthwise kernels, Relu6 as Clip, the softmax's own scale."""
    w = Writer()
    x = w.add("Transpose", w.requantized("x", 0.03, np.int8(2)), perm=[0, 3, 1, 2])
    x = w.add("Conv", x, w.weights((8, 3, 3, 3)), w.bias(0.03), pads=[1, 1, 1, 1])
    x = w.requantized(w.add("Clip", x, w.const(np.float32(0)), w.const(np.float32(6))), 6 / 255, np.int8(-128))
    y = w.add("Relu", w.add("Conv", x, w.weights((8, 1, 3, 3)), w.bias(6 / 255), group=8, pads=[1, 1, 1, 1]))
    y = w.requantized(y, 0.05, np.int8(-128))
    x = w.requantized(w.add("Add", x, y), 0.06, np.int8(-128))
    x = w.requantized(w.add("Concat", x, w.requantized(y, 0.06, np.int8(-128)), axis=1), 0.06, np.int8(-128))
    x = w.requantized(w.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), 0.06, np.int8(-128))
    x = w.add("Transpose", w.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), perm=[0, 2, 3, 1])
    x = w.add("Reshape", w.requantized(x, 0.06, np.int8(-128)), w.const(np.array([-1, 64])))
    x = w.requantized(w.add("MatMul", x, w.weights((64, 5), axis=1)), 0.04, np.int8(11))
    return w.model((1, 8, 8, 3), 17, w.requantized(w.add("Softmax", x, axis=-1), 1 / 256, np.int8(-128)))


def random(count: int) -> Array:
    return RNG.normal(0, 0.1, count).astype(np.float32)


@pytest.mark.parametrize("engine", ["onnxruntime", "onnxruntime-integer", "onnxruntime-optimized"])
@pytest.mark.parametrize("export", [pt2e, brevitas, tflite])
def test_their_scales_are_kept(export: Any, engine: str) -> None:
    """No calibration and no fault; with onnxruntime's integer operators not one integer differs but at float biases."""
    model = export()
    result = verify(model, random_samples(prepare(model), np.random.default_rng(1), 4), "nna8-onnx", against=engine)
    assert result.calibration == "" and len(result.rows) >= 4 and result.faults == 0
    if engine == "onnxruntime-integer":
        counts = {verdict for row in result.rows for verdict in row.counts}
        assert counts <= ({Verdict.TIE, Verdict.RULE} if export is pt2e else set())


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT16"])
@pytest.mark.parametrize("block", [0, 4])
def test_weights_that_no_integer_operator_takes(kind: str, block: int) -> None:
    """4 and 16 bits, and scales per block: onnxruntime runs the layer as it is written, and no fault is seen."""
    w, code = Writer(), TensorProto.DataType.Value(kind)
    low, high = {"INT4": (-8, 8), "UINT4": (0, 16), "INT16": (-300, 300)}[kind]
    shapes = ((16, 8), (16 // block, 8) if block else (8,))
    integers, zeros = (RNG.integers(low, high, shape).ravel() for shape in shapes)
    for name, shape, array in zip("qz", shapes, (integers, zeros // 2 if block else 0 * zeros), strict=True):
        w.stored.append(helper.make_tensor(name, code, shape, array))
    scales = w.const(RNG.uniform(0.01, 0.05, shapes[1]).astype(np.float32))
    placed = {"axis": 0, "block_size": block} if block else {"axis": 1}
    real = w.add("DequantizeLinear", "q", scales, "z", **placed)
    product = w.add("MatMul", w.requantized("x", 0.03, np.int8(4)), real)
    model = w.model((3, 16), 21, w.requantized(product, 0.05, np.int8(7)))
    samples = random_samples(prepare(model), np.random.default_rng(1), 4)
    result = verify(model, samples, "nna8-onnx", against="onnxruntime-integer")
    assert len(result.rows) == 2 and result.faults == 0


def test_clipped_integers_are_clipped() -> None:
    """The clip of four bits is seen: the tensor never leaves 0 to 15."""
    model = brevitas()
    result = verify(model, random_samples(prepare(model), np.random.default_rng(1), 4), "nna8")
    clipped = next(n.output[0] for n in model.graph.node if n.op_type == "Clip" and "Quant" in n.input[0])
    assert clipped in {row.tensor for row in result.rows} and result.faults == 0


def test_sixteen_bits_with_another_zero_point_are_refused() -> None:
    """The message says why, and what helps."""
    w = Writer()
    output = w.requantized(w.requantized("x", 0.01, np.uint16(1000)), 0.02, np.uint16(1 << 15))
    with pytest.raises(ModelError, match="the zero point of uint16 is 32768, found 1000: 16 bits are symmetric"):
        verify(w.model((1, 4), 21, output), [{"x": np.ones((1, 4), np.float32)}])
