"""Networks of published shapes with seeded random weights, for timing studies.

The shapes are those of wav2letter, DS-CNN large and MobileNetV2 1.0 224 (1001 classes) in Arm's model zoo, and of the
four networks of MLPerf Tiny. Shapes and work are real, values are noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(slots=True)
class Net:
    """An ONNX graph under construction, a chain with the occasional branch; `at` is the last tensor and its shape."""

    name: str
    shape: tuple[int, ...]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    at: str = "x"
    source: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.source = self.shape

    def add(self, kind: str, inputs: tuple[str, ...], shape: tuple[int, ...], **attributes: Any) -> str:
        """Append a node and return its output."""
        self.at, self.shape = f"{kind.lower()}{len(self.nodes)}", shape
        self.nodes.append(helper.make_node(kind, list(inputs), [self.at], name=self.at, **attributes))
        return self.at

    def constant(self, shape: tuple[int, ...]) -> str:
        """Return a new initializer of He-normal values (rank 2 and more) or zeros (a bias)."""
        spread = (2 / prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.0
        values = self.rng.normal(0, spread, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def conv(self, channels: int, kernel: tuple[int, ...], strides: tuple[int, ...] = (), groups: int = 1) -> str:
        """Append a convolution with SAME padding (TensorFlow's: the odd one goes below and to the right)."""
        sides, strides = self.shape[2:], strides or (1,) * len(kernel)
        outs = tuple(ceil(side / stride) for side, stride in zip(sides, strides, strict=True))
        total = [max((o - 1) * s + k - side, 0) for o, s, k, side in zip(outs, strides, kernel, sides, strict=True)]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
        inputs = (self.at, self.constant((channels, self.shape[1] // groups, *kernel)), self.constant((channels,)))
        return self.add(
            "Conv", inputs, (1, channels, *outs), kernel_shape=kernel, strides=strides, pads=pads, group=groups
        )

    def dense(self, units: int) -> str:
        """Append a dense layer."""
        inputs = (self.at, self.constant((units, self.shape[1])), self.constant((units,)))
        return self.add("Gemm", inputs, (1, units), transB=1)

    def relu(self) -> str:
        """Append a ReLU."""
        return self.add("Relu", (self.at,), self.shape)

    def relu6(self) -> str:
        """Append a clip to [0, 6]."""
        if not any(w.name == "six" for w in self.weights):
            self.weights += [numpy_helper.from_array(np.array(v, np.float32), n) for v, n in ((0, "zero"), (6, "six"))]
        return self.add("Clip", (self.at, "zero", "six"), self.shape)

    def classifier(self, classes: int) -> str:
        """Append the mean over all pixels, a dense layer and a softmax."""
        channels = self.shape[1]
        self.add("AveragePool", (self.at,), (1, channels, 1, 1), kernel_shape=self.shape[2:])
        self.add("Flatten", (self.at,), (1, channels))
        self.dense(classes)
        return self.add("Softmax", (self.at,), (1, classes), axis=1)

    def model(self) -> onnx.ModelProto:
        """Return the model."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.source)
        y = helper.make_tensor_value_info(self.at, TensorProto.FLOAT, self.shape)
        graph = helper.make_graph(self.nodes, self.name, [x], [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def wav2letter() -> onnx.ModelProto:
    """Return 1-D convolutions from 296 frames of 39 features to 148 frames of 29 letters, 3.49 G MACs."""
    net = Net("wav2letter", (1, 39, 296))
    layers = [(250, 48, 2), *[(250, 7, 1)] * 7, (2000, 32, 1), (2000, 1, 1)]
    for channels, kernel, stride in layers:
        net.conv(channels, (kernel,), (stride,))
        net.add("LeakyRelu", (net.at,), net.shape, alpha=0.2)
    net.conv(29, (1,))
    net.add("Softmax", (net.at,), net.shape, axis=1)
    return net.model()


def ds_cnn_large() -> onnx.ModelProto:
    """Return keyword spotting on 49 x 10 features: one convolution, five separable blocks of 276 channels."""
    net = Net("ds_cnn_large", (1, 1, 49, 10))
    net.conv(276, (10, 4), (2, 1))
    net.relu()
    for block in range(5):
        _separable(net, 276, 2 if block == 0 else 1)
    return _classified(net, 12)


STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNetV2's stages: expansion, channels, repeats, first stride (Sandler et al. 2018, table 2)."""


def mobilenet_v2() -> onnx.ModelProto:
    """Return MobileNetV2 1.0 on 224 x 224 pixels with 1001 classes, 301 M MACs."""
    net = Net("mobilenet_v2", (1, 3, 224, 224))
    net.conv(32, (3, 3), (2, 2))
    net.relu6()
    for expansion, channels, repeats, stride in STAGES:
        for repeat in range(repeats):
            _bottleneck(net, expansion, channels, stride if repeat == 0 else 1)
    net.conv(1280, (1, 1))
    net.relu6()
    return _classified(net, 1001)


def _bottleneck(net: Net, expansion: int, channels: int, stride: int) -> None:
    """Append expansion, depthwise convolution, projection, and the sum with the input where shapes agree."""
    entry, before = net.at, net.shape
    wide = expansion * before[1]
    if expansion > 1:
        net.conv(wide, (1, 1))
        net.relu6()
    net.conv(wide, (3, 3), (stride, stride), groups=wide)
    net.relu6()
    net.conv(channels, (1, 1))
    if net.shape == before:
        net.add("Add", (entry, net.at), net.shape)


def keyword_spotting() -> onnx.ModelProto:
    """Return DS-CNN on 49 x 10 features: one convolution, four separable blocks of 64 channels."""
    net = Net("kws_ds_cnn", (1, 1, 49, 10))
    net.conv(64, (10, 4), (2, 2))
    net.relu()
    for _ in range(4):
        _separable(net, 64, 1)
    return _classified(net, 12)


def image_classification() -> onnx.ModelProto:
    """Return ResNet-8 on 32 x 32 pixels: three residual blocks of 16, 32 and 64 channels."""
    net = Net("ic_resnet8", (1, 3, 32, 32))
    net.conv(16, (3, 3))
    net.relu()
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        _residual(net, channels, stride)
    return _classified(net, 10)


def _residual(net: Net, channels: int, stride: int) -> None:
    """Append two convolutions and the sum with the input, which a 1 x 1 convolution takes to a smaller shape."""
    entry, before = net.at, net.shape
    net.conv(channels, (3, 3), (stride, stride))
    net.relu()
    inner = net.conv(channels, (3, 3))
    if stride > 1:
        after, net.at, net.shape = net.shape, entry, before
        entry = net.conv(channels, (1, 1), (stride, stride))
        assert net.shape == after
    net.add("Add", (entry, inner), net.shape)
    net.relu()


def visual_wake_words() -> onnx.ModelProto:
    """Return MobileNetV1 0.25 on 96 x 96 pixels with two classes."""
    net = Net("vww_mobilenet", (1, 3, 96, 96))
    net.conv(8, (3, 3), (2, 2))
    net.relu()
    for channels, stride in (
        (16, 1),
        (32, 2),
        (32, 1),
        (64, 2),
        (64, 1),
        (128, 2),
        *[(128, 1)] * 5,
        (256, 2),
        (256, 1),
    ):
        _separable(net, channels, stride)
    return _classified(net, 2)


def _separable(net: Net, channels: int, stride: int) -> None:
    """Append a depthwise and a pointwise convolution."""
    net.conv(net.shape[1], (3, 3), (stride, stride), groups=net.shape[1])
    net.relu()
    net.conv(channels, (1, 1))
    net.relu()


def _classified(net: Net, classes: int) -> onnx.ModelProto:
    net.classifier(classes)
    return net.model()


def anomaly_detection() -> onnx.ModelProto:
    """Return the autoencoder on 5 frames of 128 bands: nine layers of 128 units (the middle one 8), then 640."""
    net = Net("ad_autoencoder", (1, 640))
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        net.dense(units)
        net.relu()
    net.dense(640)
    return net.model()


TINY: dict[str, Callable[[], onnx.ModelProto]] = {
    "kws_ds_cnn": keyword_spotting,
    "ic_resnet8": image_classification,
    "vww_mobilenet": visual_wake_words,
    "ad_autoencoder": anomaly_detection,
}
"""Those of MLPerf Tiny."""
NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "wav2letter": wav2letter,
    "ds_cnn_large": ds_cnn_large,
    "mobilenet_v2": mobilenet_v2,
}
