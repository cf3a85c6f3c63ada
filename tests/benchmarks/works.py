"""The works of the benchmarks: models with calibration samples, real ones and generated ones, and onnxruntime's forms.

Random weights where a model's own are stubs or there is no model: the work is the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from nnac.frontend import prepare
from nnac.testing import with_random_weights
from nnac.types import Array

Sample = dict[str, Array]
OPSET, IR_VERSION = 17, 10
LSTM_LAYERS, LSTM_HIDDEN, LSTM_FEATURES = 5, 1024, 208


@dataclass(frozen=True, slots=True)
class Work:
    """A model and what calibrates and feeds it.

    Attributes:
        name: of the row.
        model: prepared; every input, states too.
        samples: one array per input; the first one is what is timed.
        states: inputs that the compiled program keeps, and the outputs that become them.
        weights: bits of the compiled program's weights.
    """

    name: str
    model: onnx.ModelProto
    samples: Sequence[Sample]
    states: dict[str, str] | None = None
    weights: int | None = None

    @property
    def fed(self) -> list[Sample]:
        """The samples without the states."""
        kept = self.states or {}
        return [{name: array for name, array in sample.items() if name not in kept} for sample in self.samples]


def open_model(assets: Path, name: str, states: dict[str, str] | None = None, count: int = 8) -> Work:
    """Return a model of the collection with random samples; a stub gets random weights."""
    model = prepare(assets / "models" / name / f"{name}.onnx")
    if name.startswith("light_"):
        model = with_random_weights(model)
    return Work(name, model, random_samples(model, count), states)


def random_samples(model: onnx.ModelProto, count: int) -> list[Sample]:
    """Return seeded normal values for every input, states at a tenth of it."""
    rng, constants = np.random.default_rng(0), {tensor.name for tensor in model.graph.initializer}
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name not in constants
    }
    return [{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)]


# -- generated models ----------------------------------------------------------------------------------------------


class _Net:
    """A graph under construction with He-normal weights."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def random(self, shape: tuple[int, ...], fan_in: int) -> str:
        return self.constant(self.rng.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32))

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes))
        return name

    def conv(self, x: str, channels: int, units: int, side: int, stride: int, groups: int = 1, act: bool = True) -> str:
        depth, pad = channels // groups, side // 2
        weights = self.random((units, depth, side, side), depth * side * side)
        bias = self.constant(self.rng.normal(0, 0.1, units).astype(np.float32))
        y = self.add("Conv", [x, weights, bias], strides=[stride] * 2, pads=[pad] * 4, group=groups)
        limits = [self.constant(np.array(limit, np.float32)) for limit in (0, 6)] if act else []
        return self.add("Clip", [y, *limits]) if act else y

    def model(self, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
        values = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "generated", values[0], values[1], self.weights)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


def mobilenet() -> Work:
    """Return the published table of MobileNetV2 (arXiv 1801.04381, table 2) at 224 x 224 with random weights."""
    net, channels = _Net(), 32
    x = net.conv("x", 3, channels, 3, 2)
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for factor, units, count, first in rows:
        for n in range(count):
            stride, wide = first if n == 0 else 1, channels * factor
            y = net.conv(x, channels, wide, 1, 1) if factor > 1 else x
            y = net.conv(y, wide, wide, 3, stride, wide)
            y = net.conv(y, wide, units, 1, 1, act=False)
            x = net.add("Add", [x, y]) if stride == 1 and channels == units else y
            channels = units
    x = net.add("GlobalAveragePool", [net.conv(x, channels, 1280, 1, 1)])
    x = net.add("Flatten", [x])
    net.nodes.append(helper.make_node("Gemm", [x, net.random((1280, 1000), 1280)], ["y"], name="classes"))
    model = net.model({"x": (1, 3, 224, 224)}, {"y": (1, 1000)})
    return Work("mobilenet_v2", prepare(model), random_samples(model, 4))


OPERATORS: dict[str, tuple[str, tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "softmax": ("Softmax", ((8, 64, 64),), {"axis": -1}),
    "layer_norm": ("LayerNormalization", ((64, 256),), {"axis": -1}),
    "matmul": ("MatMul", ((8, 64, 64), (8, 64, 64)), {}),
    "add": ("Add", ((1, 64, 56, 56), (1, 64, 56, 56)), {}),
    "mul": ("Mul", ((1, 64, 56, 56), (1, 64, 56, 56)), {}),
    "div": ("Div", ((1, 64, 56, 56), (1, 64, 56, 56)), {}),
    "sigmoid": ("Sigmoid", ((1, 64, 56, 56),), {}),
    "max_pool": ("MaxPool", ((1, 64, 56, 56),), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
    "average_pool": ("AveragePool", ((1, 64, 56, 56),), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
}
"""Networks of one operator: its type, the shapes of its inputs, its attributes.

In onnxruntime's fastest int8 form division, layer norm and the average are those of float32, without conversions.
"""


def operator(name: str) -> Work:
    """Return a network of one operator."""
    net, (op, shapes, attributes) = _Net(), OPERATORS[name]
    inputs = {f"x{n}": shape for n, shape in enumerate(shapes)}
    constants = [net.constant(np.ones(shapes[0][-1], np.float32))] if op == "LayerNormalization" else []
    net.nodes.append(helper.make_node(op, [*inputs, *constants], ["y"], name=name, **attributes))
    side = [(size + 1) // 2 if "Pool" in op and n > 1 else size for n, size in enumerate(shapes[0])]
    model = prepare(net.model(inputs, {"y": tuple(side)}))
    return Work(name, model, [{k: abs(a) + 0.1 for k, a in sample.items()} for sample in random_samples(model, 4)])


def lstm(weights: int | None = None) -> Work:
    """Return one step of five LSTM layers of 1024 units whose states come in and go out."""
    net, hidden = _Net(), LSTM_HIDDEN
    inputs: dict[str, tuple[int, ...]] = {"x": (1, 1, LSTM_FEATURES)}
    outputs, states, x = dict[str, tuple[int, ...]](), dict[str, str](), "x"
    for n in range(LSTM_LAYERS):
        width = LSTM_FEATURES if n == 0 else hidden
        kernels = [net.random((1, 4 * hidden, width), 2 * width), net.random((1, 4 * hidden, hidden), 2 * hidden)]
        bias = net.constant(np.zeros((1, 8 * hidden), np.float32))
        states |= {f"h{n}": f"h{n}_out", f"c{n}": f"c{n}_out"}
        names = [x, *kernels, bias, "", f"h{n}", f"c{n}"]
        made = [f"y{n}", f"h{n}_out", f"c{n}_out"]
        net.nodes.append(helper.make_node("LSTM", names, made, name=f"lstm{n}", hidden_size=hidden))
        axis = net.constant(np.array([1], np.int64))
        x = net.add("Squeeze", [f"y{n}", axis])
        for name in (f"h{n}", f"c{n}"):
            inputs[name] = outputs[f"{name}_out"] = (1, 1, hidden)
    net.nodes.append(helper.make_node("Identity", [x], ["y"]))
    model = net.model(inputs, {"y": (1, 1, hidden)} | outputs)
    samples = random_samples(model, 4)
    return Work(f"lstm_5x1024_{weights or 8}bit", prepare(model), samples, states, weights)


# -- onnxruntime ---------------------------------------------------------------------------------------------------


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Samples for onnxruntime's calibration."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples: Iterator[Sample] = iter(samples)

    def get_next(self) -> Sample | None:
        return next(self.samples, None)


def session(model: onnx.ModelProto | Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return a session with all of onnxruntime's optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads hold up whose turn is next
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def statically(work: Work, form: QuantFormat) -> Callable[[Path, Path], None]:
    """Return what quantizes a file with the work's samples: int8 activations, int8 weights per channel."""

    def quantize(source: Path, target: Path) -> None:
        quantize_static(
            str(source),
            str(target),
            _Reader(work.samples),
            quant_format=form,
            per_channel=True,
            activation_type=QuantType.QUInt8 if form == QuantFormat.QOperator else QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )

    return quantize


def dynamically(source: Path, target: Path) -> None:
    """Quantize a file with scales that are found while it runs."""
    quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8, per_channel=False)


def rivals(work: Work) -> dict[str, Callable[[Path, Path], None]]:
    """Return onnxruntime's int8 forms of a work by name."""
    if work.states is not None:
        return {"dynamic": dynamically}
    return {"qdq": statically(work, QuantFormat.QDQ), "qoperator": statically(work, QuantFormat.QOperator)}


def upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in a version whose DequantizeLinear knows channels."""
    version = max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=1)
    return model if version >= 13 else version_converter.convert_version(model, OPSET)


def opened(work: Work, threads: int = 1) -> dict[str, onnxruntime.InferenceSession]:
    """Return a session of the float model and of each int8 form that onnxruntime makes of it."""
    found = {"float": session(work.model, threads)}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        onnx.save(upgraded(work.model), source)
        for name, quantize in rivals(work).items():
            target = Path(folder) / f"{name}.onnx"
            quantize(source, target)
            found[name] = session(target, threads)
    return found
