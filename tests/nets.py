"""Float ONNX models for tests: of lines of text, and random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nnac.types import Array


def net(lines: str, inputs: Mapping[str, Sequence[int]], outputs: str = "y", **constants: Any) -> onnx.ModelProto:
    """Return a model of nodes in ONNX's text syntax; a constant given as a shape is random."""
    rng = np.random.default_rng(len(lines))
    arrays = {name: _weights(rng, value) if isinstance(value, tuple) else value for name, value in constants.items()}
    graph = helper.make_graph(
        [onnx.parser.parse_node(line) for line in lines.strip().splitlines()],
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _weights(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    spread = max(1, prod(shape[1:])) ** -0.5
    return rng.normal(0.0, spread, shape).astype(np.float32)


@dataclass(slots=True)
class RandomNet:
    """A small float model under construction; every step reads tensors that are there and adds one.

    Attributes:
        rng: where every choice comes from.
        tensors: shape of each tensor by name, (N, C, H, W).
    """

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)

    kinds: ClassVar[tuple[str, ...]] = (
        "conv",
        "conv",
        "depthwise",
        "add",
        "sub",
        "mul",
        "average",
        "maximum",
        "relu",
        "clip",
        "concat",
    )

    def model(self, steps: int) -> onnx.ModelProto:
        """Return a model of `steps` random operators with a pooled dense head."""
        shape = (1, self.pick(2, 3, 4, 8), self.pick(7, 9, 12), self.pick(7, 8, 11))
        self.tensors["x"] = shape
        for _ in range(steps):
            getattr(self, self.pick(*self.kinds))(self.pick(*self.tensors))
        pooled = self.put("GlobalAveragePool", [list(self.tensors)[-1]])
        features = self.put("Flatten", [pooled])
        dense = self.gemm(features, self.tensors[pooled][1])
        outputs = [name for name in (*self.tensors, dense) if not any(name in node.input for node in self.nodes)]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs if name != "x"],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    # -- steps -----------------------------------------------------------------------------------------------------

    def conv(self, x: str) -> None:
        """Add a convolution: any kernel, stride, pads, groups."""
        channels = self.tensors[x][1]
        groups = self.pick(*[g for g in (1, 1, 2, 4) if channels % g == 0])
        self._conv(x, groups, groups * self.pick(1, 2, 3, 4))

    def depthwise(self, x: str) -> None:
        """Add a depthwise convolution."""
        self._conv(x, self.tensors[x][1], self.tensors[x][1])

    def add(self, x: str) -> None:
        """Add a sum with a tensor of the same shape, perhaps itself, or of one value per channel."""
        self.put("Add", [x, self.partner(x)])

    def sub(self, x: str) -> None:
        """Add a difference."""
        self.put("Sub", [x, self.partner(x)])

    def mul(self, x: str) -> None:
        """Add a product."""
        self.put("Mul", [x, self.partner(x)])

    def average(self, x: str) -> None:
        """Add an average over windows of 1 to 20 taps, with pads that count or do not."""
        kernel, pads = self._window(x)
        self.put(
            "AveragePool",
            [x],
            kernel_shape=kernel,
            pads=pads,
            strides=[self.pick(1, 2), self.pick(1, 2)],
            count_include_pad=self.pick(0, 1),
        )

    def maximum(self, x: str) -> None:
        """Add a maximum over windows."""
        kernel, pads = self._window(x)
        self.put("MaxPool", [x], kernel_shape=kernel, pads=pads, strides=[self.pick(1, 2), self.pick(1, 2)])

    def relu(self, x: str) -> None:
        """Add a Relu."""
        self.put("Relu", [x])

    def clip(self, x: str) -> None:
        """Add a Clip with limits that fall between steps."""
        self.put("Clip", [x, self.weight(np.float32(-0.3)), self.weight(np.float32(0.77))])

    def concat(self, x: str) -> None:
        """Add a concatenation along the channels."""
        others = [name for name, shape in self.tensors.items() if shape[2:] == self.tensors[x][2:]]
        parts = [x, self.pick(*others)]
        if sum(self.tensors[name][1] for name in parts) <= 32:
            self.put("Concat", parts, axis=1)

    def gemm(self, x: str, depth: int) -> str:
        """Add the dense head."""
        weight, bias = self.rng.normal(size=(5, depth)) / depth**0.5, self.rng.normal(size=5)
        return self.put("Gemm", [x, self.weight(weight), self.weight(bias)], transB=1)

    # -- small things ----------------------------------------------------------------------------------------------

    def _conv(self, x: str, groups: int, out: int) -> None:
        channels, height, width = self.tensors[x][1:]
        kernel = [min(self.pick(1, 3, 3, 5), height), min(self.pick(1, 3, 2), width)]
        pads = [self.pick(0, side // 2, side - 1) for side in (*kernel, *kernel)]
        depth = channels // groups
        weight = self.rng.normal(size=(out, depth, *kernel)) / (depth * kernel[0] * kernel[1]) ** 0.5
        bias = self.weight(self.rng.normal(size=out) * 0.3)
        strides = [self.pick(1, 1, 2), self.pick(1, 2)]
        self.put("Conv", [x, self.weight(weight), bias], pads=pads, group=groups, strides=strides)

    def _window(self, x: str) -> tuple[list[int], list[int]]:
        kernel = [min(self.pick(1, 2, 3, 5), side) for side in self.tensors[x][2:]]
        return kernel, [self.pick(0, (side - 1) // 2) for side in (*kernel, *kernel)]

    def partner(self, x: str) -> str:
        """Return a tensor of x's shape, or a constant per channel, or one of the whole shape."""
        others = [name for name, shape in self.tensors.items() if shape == self.tensors[x]]
        choice = self.pick("other", "other", "channel", "whole")
        if choice == "other":
            return str(self.pick(*others))
        shape = self.tensors[x] if choice == "whole" else (1, self.tensors[x][1], 1, 1)
        return self.weight(self.rng.normal(size=shape))

    def put(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node; its shape comes from ONNX's inference."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], f"{op_type}_{name}", **attributes))
        if op_type not in ("Flatten", "Gemm"):
            self.tensors[name] = self._inferred(self.nodes[-1])
        return name

    def _inferred(self, node: onnx.NodeProto) -> tuple[int, ...]:
        known = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.tensors.items()]
        result = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
        model = helper.make_model(
            helper.make_graph([node], "one", known, [result], self.weights), opset_imports=[helper.make_opsetid("", 17)]
        )
        found = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0]
        return tuple(dim.dim_value for dim in found.type.tensor_type.shape.dim)

    def weight(self, array: Any) -> str:
        """Add a float32 initializer and return its name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def pick(self, *choices: Any) -> Any:
        """Return one of the choices."""
        return choices[int(self.rng.integers(len(choices)))]
