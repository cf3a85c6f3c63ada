"""An `onnx.backend.base.Backend` for single integer and shape operators, so that ONNX's own node tests run on nnac.

- QLinearConv and QLinearMatMul are compiled for the machine `nna8-onnx` and run from the blob on the emulator;
- ConvInteger and MatMulInteger give the accumulators, which no instruction stores: the operators' exact sums do it;
- QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear are what happens at the border, in float32;
- shape operators are imported like any model, and move the entries' numbers: they hold for every type.

Inputs but the first (and the data inputs of Concat) are constants of the model, as they are for the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.backend.base import Backend, BackendRep

from nnac.border import signed
from nnac.compiler import compile as compile_model
from nnac.errors import ModelError
from nnac.frontend import evaluate, import_graph, prepare
from nnac.graph import Graph
from nnac.ops import Conv, Dense
from nnac.ops.base import bind
from nnac.ops.conv import INPUT, WEIGHT
from nnac.targets import load_target
from nnac.types import Array

MACHINE = "nna8-onnx"
COMPILED = ("QLinearConv", "QLinearMatMul")
SUMS = ("ConvInteger", "MatMulInteger")
BORDER = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
MOVES = ("Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
INTEGERS = ("INT8", "UINT8", "INT16", "UINT16", "INT32", "INT64", "INT4", "UINT4", "INT2", "UINT2")
TYPES = (*FLOATS, *(code for name, code in onnx.TensorProto.DataType.items() if name in INTEGERS))


class NnacBackendRep(BackendRep):
    """One operator, ready to run."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Array, ...]:
        """Return the outputs for arrays, one per graph input (or a mapping by name)."""
        del kwargs
        names = [info.name for info in self.model.graph.input]
        arrays = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=False))
        arrays = {name: _array(value) for name, value in arrays.items()}
        op_type = self.model.graph.node[0].op_type
        if op_type in BORDER:
            return _border(self.model, arrays)
        if op_type in COMPILED:
            return (_compiled(self.model, arrays),)
        return _sums(self.model, arrays) if op_type in SUMS else _moved(self.model, arrays)


class NnacBackend(Backend):
    """Runs models of one node of the operators named above."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Tell whether a model is one node of an operator and of types that run here."""
        del kwargs
        graph = model.graph
        known = (*COMPILED, *SUMS, *BORDER, *MOVES)
        infos = (*graph.input, *graph.output)
        typed = all(info.type.WhichOneof("value") == "tensor_type" for info in infos)
        return (
            cls.supports_device(device)
            and len(graph.node) == 1
            and graph.node[0].op_type in known
            and typed
            and all(info.type.tensor_type.elem_type in TYPES for info in infos)
        )

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> NnacBackendRep:
        """Return the model ready to run.

        Raises:
            ModelError: it is not one node of an operator and of types that run here.
        """
        if not cls.is_compatible(model, device):
            known = ", ".join((*COMPILED, *SUMS, *BORDER, *MOVES))
            raise ModelError(f"the backend runs models of one node on the CPU, one of {known}, on 8 and 16 bit types")
        return NnacBackendRep(model)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Tell whether a device is the emulator's: the CPU."""
        return device.split(":")[0] == "CPU"


def _array(value: Any) -> Array:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _bound(model: onnx.ModelProto, arrays: Mapping[str, Array], data: Sequence[str], kind: int = 0) -> onnx.ModelProto:
    """Return the model with all inputs but `data` stored, and with inputs and outputs of type `kind` if given."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items() if name not in data
    )
    kinds = {info.name: kind or info.type.tensor_type.elem_type for info in model.graph.input}
    infos = [helper.make_tensor_value_info(name, kinds[name], arrays[name].shape) for name in data]
    del copy.graph.input[:]
    copy.graph.input.extend(infos)
    for info in copy.graph.output:
        info.type.tensor_type.ClearField("shape")
        info.type.tensor_type.elem_type = kind or info.type.tensor_type.elem_type
    return copy


# -- the machine ---------------------------------------------------------------------------------------------------


def _compiled(model: onnx.ModelProto, arrays: Mapping[str, Array]) -> Array:
    """Run the operator from a blob; a product of two stacks of matrices goes matrix by matrix."""
    node = model.graph.node[0]
    x, w = arrays[node.input[0]], arrays[node.input[3]]
    if node.op_type == "QLinearMatMul" and w.ndim > 2:
        shape = np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
        stacks = [np.broadcast_to(a, (*shape, *a.shape[-2:])).reshape(-1, *a.shape[-2:]) for a in (x, w)]
        names = (node.input[0], node.input[3])
        parts = [
            _compiled(model, {**arrays, **dict(zip(names, pair, strict=True))}) for pair in zip(*stacks, strict=True)
        ]
        return np.stack(parts).reshape(*shape, *parts[0].shape)
    bound = _bound(model, arrays, [node.input[0]])
    (found,) = compile_model(bound, MACHINE).run({node.input[0]: x}, raw=True).values()
    unsigned = arrays[node.input[7]].dtype == np.uint8
    return found.view(np.uint8) ^ np.uint8(0x80) if unsigned else found


# -- exact integers ------------------------------------------------------------------------------------------------


def _sums(model: onnx.ModelProto, arrays: Mapping[str, Array]) -> tuple[Array, ...]:
    name = model.graph.node[0].input[0]
    copy = _bound(model, arrays, [name])
    copy.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    graph = import_graph(prepare(copy))
    x = arrays[name]
    return tuple(found.astype(np.int32) for found in _walk(graph, {name: signed(x).astype(np.int64)}))


def _moved(model: onnx.ModelProto, arrays: Mapping[str, Array]) -> tuple[Array, ...]:
    """Move the entries' numbers, then take the entries."""
    node = model.graph.node[0]
    data = list(node.input) if node.op_type == "Concat" else [node.input[0]]
    flat = np.concatenate([arrays[name].reshape(-1) for name in data])
    copy = _bound(model, arrays, data, onnx.TensorProto.FLOAT)
    empty = _empty(copy, flat.dtype)
    if empty is not None:
        return empty
    starts = np.cumsum([0, *(arrays[name].size for name in data)])
    numbers = {
        name: np.arange(arrays[name].size).reshape(arrays[name].shape) + start
        for name, start in zip(data, starts, strict=False)
    }
    return tuple(flat[found] for found in _walk(import_graph(prepare(copy)), numbers))


def _empty(model: onnx.ModelProto, dtype: Any) -> tuple[Array, ...] | None:
    """Return the outputs of a model that has nothing to move, or None."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
    shapes = [tuple(d.dim_value for d in info.type.tensor_type.shape.dim) for info in inferred]
    known = all(info.type.tensor_type.HasField("shape") for info in inferred)
    return tuple(np.empty(s, dtype) for s in shapes) if known and all(0 in s for s in shapes) else None


def _walk(graph: Graph, inputs: Mapping[str, Array]) -> list[Array]:
    """Return the outputs of an imported graph on exact integers; layers give their sums."""
    law, values = load_target(MACHINE).arithmetic, {**graph.constants, **inputs}
    for node in graph.nodes:
        bound, operands = bind(graph, node, law), [values[name] for name in node.inputs]
        if isinstance(node.op, Conv | Dense):
            x = operands[INPUT] - bound.input_quant(INPUT).zero_point
            values[node.output] = node.op.sums(x, operands[WEIGHT], bound.output.shape)
        else:
            values[node.output] = node.op.reference(bound, operands)
    return [values[name] for name in graph.outputs]


# -- the border ----------------------------------------------------------------------------------------------------


def _border(model: onnx.ModelProto, arrays: Mapping[str, Array]) -> tuple[Array, ...]:
    node = model.graph.node[0]
    if node.op_type == "DynamicQuantizeLinear":
        return _dynamic(arrays[node.input[0]])
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return (evaluate(node, arrays, version),)


def _dynamic(x: Array) -> tuple[Array, ...]:
    """DynamicQuantizeLinear as ONNX defines it: uint8 over the extremes and zero, all in float32."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
    y = np.clip(np.rint(x / scale) + np.float32(zero), 0, 255).astype(np.uint8)
    return np.asarray(y), np.asarray(scale), np.asarray(zero)
