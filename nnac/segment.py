"""Host segments: pieces of ONNX that the NNA cannot run, executed by onnxruntime between quantized borders.

A segment is the bytes of an ONNX model whose inputs and outputs are float32 tensors of fixed shapes. It means: every
operand is dequantized (`Quant.dequantize`), onnxruntime runs the model with one thread and without optimizations, every
result is quantized (`Quant.quantize`); a result that is not a number becomes real zero. The same bytes, operands and
onnxruntime give the same bits. Reference and emulator call the same function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from nnac.errors import ModelError
from nnac.types import Array, Quant

if TYPE_CHECKING:
    import onnx

    from nnac.floatmodel import FloatModel

Shape = tuple[int, ...]
SESSIONS = 64
"""Segments that onnxruntime keeps open."""
_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3, "LSTM": 1, "GRU": 1, "RNN": 1}
"""Which input of a layer on the host holds its weights."""
_PRODUCTS = ("MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "QGemm", "MatMulNBits")


@dataclass(frozen=True, slots=True)
class Ports:
    """Shapes of a segment's inputs and outputs, and what one run costs: multiply-accumulates, other elements."""

    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    macs: int
    elements: int


@dataclass(frozen=True, slots=True)
class HostNode:
    """One ONNX node of a segment; `reason` says why it is there, "" for what only hangs on the others."""

    name: str
    op: str
    reason: str


def parse(model: bytes) -> onnx.ModelProto:
    """Return the model of a segment's bytes."""
    import onnx

    found = onnx.ModelProto()
    found.ParseFromString(model)
    return found


def execute(model: bytes, operands: Sequence[Array], quants: Sequence[Quant], results: Sequence[Quant]) -> list[Array]:
    """Return the integers of a segment's results, in its shapes.

    Args:
        model: the segment.
        operands: integers, one array per input, in any shape of as many elements.
        quants: of the operands.
        results: quantizations of the results.

    Raises:
        ModelError: onnxruntime cannot run it, or makes other shapes than the segment says.
    """
    runner, names, ports = _runner(model)
    feeds = {
        name: quant.dequantize(array).reshape(shape)
        for name, array, quant, shape in zip(names, operands, quants, ports.inputs, strict=True)
    }
    found = list(runner.run(feeds).values())
    wrong = [(f.shape, s) for f, s in zip(found, ports.outputs, strict=True) if f.shape != s]
    if wrong:
        raise ModelError(f"a host segment made shape {list(wrong[0][0])}, it says {list(wrong[0][1])}")
    return [_quantized(array, quant) for array, quant in zip(found, results, strict=True)]


def _quantized(array: Array, quant: Quant) -> Array:
    return quant.quantize(np.where(np.isnan(array), np.float32(0), array))


@lru_cache(SESSIONS)
def _runner(model: bytes) -> tuple[FloatModel, tuple[str, ...], Ports]:
    from nnac.floatmodel import FloatModel

    proto = parse(model)
    return FloatModel(proto), tuple(info.name for info in proto.graph.input), ports_of(proto)


@lru_cache(SESSIONS)
def ports(model: bytes) -> Ports:
    """Return what a segment reads, makes and costs."""
    return ports_of(parse(model))


def ports_of(model: onnx.ModelProto) -> Ports:
    """Return what a segment reads, makes and costs."""
    shapes = dict(_shapes(model.graph))
    costs = [_cost(node, shapes) for node in model.graph.node]
    return Ports(
        tuple(shapes[info.name] for info in model.graph.input),
        tuple(shapes[info.name] for info in model.graph.output),
        sum(macs for macs, _ in costs),
        sum(elements for _, elements in costs),
    )


def host_nodes(model: bytes) -> list[HostNode]:
    """Return the operators of a segment with the reasons why they are there."""
    return [HostNode(node.name, node.op_type, node.doc_string) for node in parse(model).graph.node]


def _shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, Shape]]:
    """Yield the fixed shapes that a graph says."""
    for tensor in graph.initializer:
        yield tensor.name, tuple(tensor.dims)
    for info in (*graph.value_info, *graph.input, *graph.output):
        kind = info.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            yield info.name, tuple(dim.dim_value for dim in kind.shape.dim)


def _cost(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Return multiply-accumulates and other elements of one node: products by their depth, else what is largest."""
    taken, made = ([prod(shapes.get(name, ())) for name in names if name] for names in (node.input, node.output))
    if not taken or not made:
        return 0, max((*taken, *made), default=1)
    first = shapes.get(node.input[0], ())
    if node.op_type in _PRODUCTS and first:
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        return made[0] * first[0 if turned else -1], 0
    if node.op_type in _WEIGHTS and len(node.input) > _WEIGHTS[node.op_type]:
        return _layer(node, shapes, taken[0], made[0]), 0
    if node.op_type == "Attention" and first and len(node.input) > 1:
        return taken[0] // max(first[-1], 1) * prod(shapes.get(node.input[1], ())), made[0]
    return 0, max(*taken, *made)


def _layer(node: onnx.NodeProto, shapes: Mapping[str, Shape], taken: int, made: int) -> int:
    """Return the multiply-accumulates of a convolution or a recurrent layer."""
    place = _WEIGHTS[node.op_type]
    weights = shapes.get(node.input[place], ())
    if node.op_type in ("LSTM", "GRU", "RNN"):
        first = shapes.get(node.input[0], ())
        return prod(first[:2]) * (prod(weights) + prod(shapes.get(node.input[place + 1], ())))
    return (taken if node.op_type == "ConvTranspose" else made) * prod(weights[1:])
