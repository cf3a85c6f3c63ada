"""Random QDQ models: every operator between DequantizeLinear and QuantizeLinear, any scales and zero points."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nnac.types import Array

OPSET, IR_VERSION = 21, 10
FUNCTIONS = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish", "Neg")
KINDS = (
    *FUNCTIONS,
    "Conv",
    "GroupedConv",
    "DepthwiseConv",
    "ConvRelu",
    "ConvClip",
    "MatMul",
    "Product",
    "Add",
    "AddConstant",
    "Sub",
    "Mul",
    "Div",
    "Max",
    "Min",
    "Sum",
    "AveragePool",
    "GlobalAveragePool",
    "ReduceMean",
    "ReduceSum",
    "LayerNormalization",
    "MaxPool",
    "Clip",
    "PRelu",
    "Softmax",
    "Concat",
    "Transpose",
    "Reshape",
    "Slice",
    "Pad",
    "Split",
)
TYPES = {
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int16): TensorProto.INT16,
    np.dtype(np.uint16): TensorProto.UINT16,
}


@dataclass(frozen=True, slots=True)
class Quantized:
    """An integer tensor of the model and how it stands for reals."""

    name: str
    shape: tuple[int, ...]
    scale: float
    dtype: Any

    @property
    def reach(self) -> float:
        """About its largest real value."""
        return self.scale * float(1 << 8 * np.dtype(self.dtype).itemsize - 1)


@dataclass(slots=True)
class RandomQdq:
    """A QDQ model under construction; every step reads tensors that are there.

    Attributes:
        rng: where all choices come from.
        wide: share of the tensors that have 16 bits.
    """

    rng: np.random.Generator
    wide: float = 0.0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    tensors: list[Quantized] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def model(self, steps: int) -> onnx.ModelProto:
        """Return a model of `steps` random operators; its outputs are the integers that nothing reads."""
        shape = (1, self.pick(1, 3, 4, 6), self.pick(1, 5, 7, 12), self.pick(1, 4, 9))
        inputs = [self._input("x", shape), self._input("z", shape)]
        for _ in range(steps):
            kind = self.pick(*KINDS)
            if self._step(kind, self.pick(*self.tensors[-3:])):
                self.kinds.append(kind)
        read = {name for node in self.nodes for name in node.input}
        outputs = [t for t in self.tensors if t.name not in read and t.name not in ("x", "z")]
        infos = [helper.make_tensor_value_info(t.name, TYPES[np.dtype(t.dtype)], t.shape) for t in outputs]
        return helper.make_model(
            helper.make_graph(self.nodes, "random", [i for i in inputs if i.name in read], infos, self.initializers),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )

    # -- steps -----------------------------------------------------------------------------------------------------

    def _step(self, kind: str, x: Quantized) -> bool:
        """Add one operator; tell if that was possible on this tensor."""
        if kind in FUNCTIONS:
            return self._put(kind, [x], x.shape, 1.0 if kind in ("Sigmoid", "Tanh", "HardSigmoid") else x.reach)
        spatial = len(x.shape) == 4
        match kind:
            case "Conv" | "ConvRelu" | "ConvClip":
                return spatial and self._conv(x, 1, self.pick(1, 2, 5), kind[4:])
            case "GroupedConv":
                return spatial and x.shape[1] % 2 == 0 and self._conv(x, 2, 4, "")
            case "DepthwiseConv":
                return spatial and self._conv(x, x.shape[1], x.shape[1], "Relu")
            case "MatMul":
                return self._matmul(x)
            case "Product":
                return self._product(x)
            case "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Sum" | "Concat":
                return self._several(kind, x)
            case "AddConstant":
                constant = self._constant_operand((*(1 for _ in x.shape[1:]), x.shape[-1]), x.scale)
                return self._put("Add", [x], x.shape, 2 * x.reach, extra=[constant])
            case "AveragePool" | "MaxPool":
                return spatial and self._pool(kind, x)
            case "GlobalAveragePool":
                return spatial and self._put(kind, [x], (*x.shape[:2], 1, 1), x.reach / 2)
            case "ReduceMean" | "ReduceSum":
                axes, reach = self._stored(np.array([-1])), x.reach * (0.5 if kind == "ReduceMean" else x.shape[-1] / 4)
                return self._put(kind, [x], (*x.shape[:-1], 1), reach, extra=[axes])
            case "LayerNormalization":
                extra = [self._stored(self.rng.normal(1, 0.3, x.shape[-1]).astype(np.float32)) for _ in range(2)]
                return self._put(kind, [x], x.shape, 4.0, extra=extra)
            case "Clip":
                ends = [self._stored(np.float32(v * x.scale)) for v in (-20.3, 31.7)]
                return self._put(kind, [x], x.shape, x.reach / 4, extra=ends)
            case "PRelu":
                return self._put(kind, [x], x.shape, x.reach, extra=[self._stored(np.array([0.37], np.float32))])
            case "Softmax":
                return self._put(kind, [x], x.shape, 1.0, axis=-1)
            case _:
                return self._move(kind, x)

    def _conv(self, x: Quantized, groups: int, out: int, clamp: str) -> bool:
        depth, kernel = x.shape[1] // groups, [min(self.pick(1, 2, 3), side) for side in x.shape[2:]]
        strides, pads = [self.pick(1, 2), self.pick(1, 2)], [self.pick(0, (side - 1)) for side in (*kernel, *kernel)]
        weights, scale = self._weights((out, depth, *kernel), 0)
        reach = x.reach * scale.mean() * 60 * (depth * kernel[0] * kernel[1]) ** 0.5
        bias = self._bias(x, scale, out)
        sides = [(s + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i, s in enumerate(x.shape[2:])]
        attributes = {"group": groups, "strides": strides, "pads": pads}
        y = self._add("Conv", [self._real(x), weights, *bias], **attributes)
        if clamp == "Relu":
            y = self._add("Relu", [y])
        if clamp == "Clip":
            y = self._add("Clip", [y, self._stored(np.float32(-reach / 3)), self._stored(np.float32(reach / 2))])
        return self._quantize(y, (x.shape[0], out, *sides), float(reach))

    def _matmul(self, x: Quantized) -> bool:
        depth, out = x.shape[-1], self.pick(1, 3, 8)
        weights, scale = self._weights((depth, out), 1)
        y = self._add("MatMul", [self._real(x), weights])
        if self.rng.random() < 0.5:
            y = self._add("Add", [y, *self._bias(x, scale, out, True)])
        return self._quantize(y, (*x.shape[:-1], out), float(x.reach * scale.mean() * 60 * depth**0.5))

    def _product(self, x: Quantized) -> bool:
        turned = self._add(
            "Transpose", [self._real(x)], perm=[*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
        )
        y = self._add("MatMul", [self._real(x), turned])
        return self._quantize(y, (*x.shape[:-1], x.shape[-2]), x.reach**2 * x.shape[-1] / 8)

    def _several(self, kind: str, x: Quantized) -> bool:
        others = [t for t in self.tensors if t.shape == x.shape]
        operands = [x, *(self.pick(*others) for _ in range(2 if kind == "Sum" else 1))]
        reach = max(t.reach for t in operands)
        if kind == "Mul":
            reach = operands[0].reach * operands[1].reach / 2
        if kind == "Div":
            reach = 3 * operands[0].reach / operands[1].reach
        if kind == "Concat":
            shape = (*x.shape[:-1], x.shape[-1] * 2)
            return shape[-1] <= 32 and self._put(kind, operands, shape, reach, axis=-1)
        return self._put(kind, operands, x.shape, reach)

    def _pool(self, kind: str, x: Quantized) -> bool:
        kernel = [min(self.pick(1, 2, 3, 5), side) for side in x.shape[2:]]
        pads = [self.pick(0, (side - 1) // 2) for side in (*kernel, *kernel)]
        strides = [self.pick(1, 2), self.pick(1, 3)]
        sides = [(s + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i, s in enumerate(x.shape[2:])]
        attributes: dict[str, Any] = {"kernel_shape": kernel, "pads": pads, "strides": strides}
        if kind == "AveragePool":
            attributes["count_include_pad"] = self.pick(0, 1)
        return self._put(kind, [x], (*x.shape[:2], *sides), x.reach, **attributes)

    def _move(self, kind: str, x: Quantized) -> bool:
        rank = len(x.shape)
        if kind == "Transpose":
            perm = [int(v) for v in self.rng.permutation(rank)]
            return self._put(kind, [x], tuple(x.shape[i] for i in perm), x.reach, perm=perm)
        if kind == "Reshape":
            shape: tuple[int, ...] = (x.shape[0], int(np.prod(x.shape[1:-1])), x.shape[-1])
            return self._put(kind, [x], shape, x.reach, extra=[self._stored(np.array(shape, np.int64))])
        if kind == "Pad":
            pads = [self.pick(0, 1, 2) if i % rank else 0 for i in range(2 * rank)]
            shape = tuple(s + pads[i] + pads[i + rank] for i, s in enumerate(x.shape))
            extra = [self._stored(np.array(pads, np.int64)), self._stored(np.float32(x.scale * 17.4))]
            return max(shape) <= 40 and self._put(kind, [x], shape, x.reach, extra=extra)
        if x.shape[-1] < 2:
            return False
        if kind == "Split":
            sizes = self._stored(np.array([1, x.shape[-1] - 1], np.int64))
            name = f"split{len(self.nodes)}"
            self.nodes.append(helper.make_node("Split", [self._real(x), sizes], [f"{name}.a", f"{name}.b"], axis=-1))
            self._quantize(f"{name}.a", (*x.shape[:-1], 1), x.reach)
            return self._quantize(f"{name}.b", (*x.shape[:-1], x.shape[-1] - 1), x.reach)
        ends = [self._stored(np.array([v], np.int64)) for v in (x.shape[-1] - 1, 0, rank - 1, -1)]
        return self._put("Slice", [x], (*x.shape[:-1], x.shape[-1] - 1), x.reach, extra=ends)

    # -- quantization ----------------------------------------------------------------------------------------------

    def _input(self, name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        """Add a float input with its quantizer, or an integer input."""
        if self.rng.random() < 0.5:
            self._quantize(name, shape, 2.0)
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        dtype = self._dtype()
        self.tensors.append(Quantized(name, shape, self._scale(2.0, dtype), dtype))
        return helper.make_tensor_value_info(name, TYPES[np.dtype(dtype)], shape)

    def _dtype(self) -> Any:
        return self.pick(np.int16, np.uint16) if self.rng.random() < self.wide else self.pick(np.int8, np.uint8)

    def _scale(self, reach: float, dtype: Any) -> float:
        """Return a scale about which `reach` fits into the type; now and then much too coarse or too fine."""
        spread = self.rng.uniform(-8, 8) if self.rng.random() < 0.1 else self.rng.uniform(-2, 2)
        return float(np.float32(max(reach, 1e-9) / (1 << 8 * np.dtype(dtype).itemsize - 1) * 2.0**spread))

    def _zero(self, dtype: Any) -> Array:
        info = np.iinfo(dtype)
        if info.bits == 16:
            return np.array((int(info.min) + int(info.max) + 1) // 2, dtype)
        middle = (int(info.min) + int(info.max) + 1) // 2
        return np.array(self.pick(info.min, info.max, middle, int(self.rng.integers(info.min, info.max + 1))), dtype)

    def _put(
        self,
        op: str,
        operands: list[Quantized],
        shape: tuple[int, ...],
        reach: float,
        extra: Any = (),
        **attributes: Any,
    ) -> bool:
        y = self._add(op, [*map(self._real, operands), *extra], **attributes)
        return self._quantize(y, shape, reach)

    def _quantize(self, y: str, shape: tuple[int, ...], reach: float) -> bool:
        dtype = self._dtype()
        scale = self._scale(reach, dtype)
        name = self._add("QuantizeLinear", [y, self._stored(np.float32(scale)), self._stored(self._zero(dtype))])
        self.tensors.append(Quantized(name, shape, scale, dtype))
        return True

    def _real(self, x: Quantized) -> str:
        maker = next((node for node in self.nodes if x.name in node.output), None)
        zero = maker.input[2] if maker is not None else self._input_zero(x)
        scale = maker.input[1] if maker is not None else f"{x.name}.scale"
        return self._add("DequantizeLinear", [x.name, scale, zero])

    def _input_zero(self, x: Quantized) -> str:
        if all(t.name != f"{x.name}.zero" for t in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.asarray(np.float32(x.scale)), f"{x.name}.scale"))
            self.initializers.append(numpy_helper.from_array(self._zero(x.dtype), f"{x.name}.zero"))
        return f"{x.name}.zero"

    def _weights(self, shape: tuple[int, ...], axis: int) -> tuple[str, Array]:
        """Return dequantized weights: int8 per channel or per tensor, or uint8 with any zero point."""
        channels, signed = shape[axis], self.rng.random() < 0.7
        count = channels if signed and self.rng.random() < 0.6 else 1
        scale = (2.0 ** self.rng.uniform(-9, -5, count)).astype(np.float32)
        info = np.iinfo(np.int8 if signed else np.uint8)
        integers = self.rng.integers(info.min, info.max + 1, shape).astype(info.dtype)
        zero = np.zeros(count, np.int8) if signed else np.array([self._zero(np.uint8)])
        if count == 1:
            names = [self._stored(v) for v in (integers, scale.reshape(()), zero.reshape(()))]
            return self._add("DequantizeLinear", names), np.broadcast_to(scale, channels)
        return self._add("DequantizeLinear", [self._stored(v) for v in (integers, scale, zero)], axis=axis), scale

    def _bias(self, x: Quantized, scale: Array, out: int, needed: bool = False) -> list[str]:
        if not needed and self.rng.random() < 0.3:
            return []
        integers = self.rng.integers(-9000, 9000, out).astype(np.int32)
        units = np.float32(x.scale) * scale.astype(np.float32)
        return [self._add("DequantizeLinear", [self._stored(integers), self._stored(units)], axis=0)]

    def _constant_operand(self, shape: tuple[int, ...], scale: float) -> str:
        integers = self.rng.integers(-128, 128, shape).astype(np.int8)
        zero = np.asarray(self.rng.integers(-128, 128), np.int8)
        return self._add("DequantizeLinear", [self._stored(v) for v in (integers, np.float32(scale * 0.7), zero)])

    # -- small things ----------------------------------------------------------------------------------------------

    def _add(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op_type}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], f"n{len(self.nodes)}", **attributes))
        return name

    def _stored(self, array: Any) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def pick(self, *choices: Any) -> Any:
        """Return one of the choices."""
        return choices[int(self.rng.integers(len(choices)))]


def random_samples(model: onnx.ModelProto, rng: np.random.Generator, count: int) -> list[dict[str, Array]]:
    """Return inputs of a model, floats a little wider than what they are quantized to."""

    def draw(info: onnx.ValueInfoProto) -> Array:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        kind = info.type.tensor_type.elem_type
        if kind == TensorProto.FLOAT:
            return rng.normal(0, 1.2, shape).astype(np.float32)
        limits = np.iinfo(onnx.helper.tensor_dtype_to_np_dtype(kind))
        return rng.integers(limits.min, limits.max + 1, shape).astype(limits.dtype)

    return [{info.name: draw(info) for info in model.graph.input} for _ in range(count)]
