"""The digit network: a small depthwise-separable conv net in PyTorch, and its ONNX form written node by node."""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from examples.digits.features import BANDS, FRAMES

INPUT_NAME: Final = "features"
OUTPUT_NAME: Final = "probabilities"
DIGITS: Final = 10
FIRST_CHANNELS: Final = 32
FIRST_KERNEL: Final = 5
BLOCKS: Final = ((64, 1), (64, 2), (96, 1), (96, 2), (128, 1))  # output channels, stride of the depthwise conv
OPSET: Final = 17
IR_VERSION: Final = 8


def conv_norm(channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Conv without bias, BatchNorm, ReLU; 'same' padding at stride one."""
    conv = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


def build_network() -> nn.Sequential:
    """The layers in order: (N, 1, FRAMES, BANDS) float32 features in, (N, DIGITS) logits out."""
    layers = conv_norm(1, FIRST_CHANNELS, FIRST_KERNEL, stride=2)
    channels = FIRST_CHANNELS
    for out_channels, stride in BLOCKS:
        layers += conv_norm(channels, channels, 3, stride, groups=channels)
        layers += conv_norm(channels, out_channels, 1)
        channels = out_channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, DIGITS))


@dataclass(slots=True)
class GraphWriter:
    """Collects ONNX nodes in a chain: each takes what the one before it gave.

    Attributes:
        last: name of the tensor that the next node takes.
    """

    last: str = INPUT_NAME
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, name: str, weights: dict[str, torch.Tensor] | None = None, **attributes: Any) -> None:
        """Appends a node `name` with its weights as initializers `name.key`."""
        weights = weights or {}
        names = [f"{name}.{key}" for key in weights]
        for full_name, weight in zip(names, weights.values(), strict=True):
            values: NDArray[np.float32] = weight.detach().numpy().astype(np.float32)
            self.initializers.append(numpy_helper.from_array(values, full_name))
        self.nodes.append(helper.make_node(op, [self.last, *names], [name], name=name, **attributes))
        self.last = name


def add_layer(writer: GraphWriter, layer: nn.Module, number: int) -> None:
    """Writes one PyTorch layer; dropout writes nothing. `number` makes its name unique."""
    match layer:
        case nn.Conv2d():
            add_conv(writer, layer, number)
        case nn.BatchNorm2d():
            add_norm(writer, layer, number)
        case nn.ReLU():
            writer.add("Relu", f"relu{number}")
        case nn.AdaptiveAvgPool2d():
            writer.add("GlobalAveragePool", "pool")
        case nn.Flatten():
            writer.add("Flatten", "flatten", axis=1)
        case nn.Linear():
            writer.add("Gemm", "logits", {"weight": layer.weight, "bias": layer.bias}, transB=1)


def add_conv(writer: GraphWriter, conv: nn.Conv2d, number: int) -> None:
    """Writes a conv; its name says whether it is depthwise, pointwise or full."""
    rows, columns = conv.kernel_size
    kind = "depthwise" if conv.groups > 1 else "pointwise" if rows == 1 else "conv"
    pads = [int(pad) for pad in conv.padding] * 2
    shape = {"kernel_shape": [rows, columns], "strides": list(conv.stride), "pads": pads, "group": conv.groups}
    writer.add("Conv", f"{kind}{number}", {"weight": conv.weight}, **shape)


def add_norm(writer: GraphWriter, norm: nn.BatchNorm2d, number: int) -> None:
    """Writes a batch normalization with its running statistics."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a batch normalization without running statistics has no inference form")
    weights = {"scale": norm.weight, "bias": norm.bias, "mean": mean, "variance": variance}
    writer.add("BatchNormalization", f"norm{number}", weights, epsilon=norm.eps)


def export(network: nn.Sequential) -> onnx.ModelProto:
    """The trained network as a checked ONNX model: one clip of features in, softmax over the digits out."""
    writer = GraphWriter()
    number = -1
    for layer in network:
        number += isinstance(layer, nn.Conv2d)
        add_layer(writer, layer, number)
    writer.add("Softmax", OUTPUT_NAME, axis=1)
    features = helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [1, 1, FRAMES, BANDS])
    result = helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [1, DIGITS])
    graph = helper.make_graph(writer.nodes, "digits", [features], [result], writer.initializers)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="nnac-digits")
    onnx.checker.check_model(model, full_check=True)
    return model
