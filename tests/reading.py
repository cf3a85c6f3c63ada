"""A float64 reading of graphs, each operator's definition written a second time, and onnxruntime beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

from nnac import ops
from nnac.frontend import import_graph, prepare
from nnac.graph import Graph, Node
from nnac.ops.functions import FUNCTIONS
from nnac.types import Array

RNG = np.random.default_rng(7)
FLOAT = TensorProto.FLOAT


def random(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: Any) -> Array:
    return np.array(values, dtype=np.int64)


def model(
    lines: str, opset: int, inputs: Mapping[str, Sequence[int | str]], outputs: str = "y", **constants: Any
) -> onnx.ModelProto:
    """Return a model of nodes in ONNX's text syntax, one per line."""
    nodes = [onnx.parser.parse_node(line) for line in lines.strip().splitlines()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def ort(proto: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
    """Return tensors by name from onnxruntime, not optimized."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    present = [info.name for info in copy.graph.output]
    names = present if names is None else list(names)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def windows(x: Array, kernel: Sequence[int], op: Any, fill: float) -> Array:
    """Return (N, OH, OW, C, KH, KW) windows of (N, H, W, C)."""
    top, left, bottom, right = op.pads
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, op.dilations, strict=True)]
    view = sliding_window_view(x, reach, axis=(1, 2))
    return view[:, :: op.strides[0], :: op.strides[1], :, :: op.dilations[0], :: op.dilations[1]]


def counts(op: Any, shape: tuple[int, ...]) -> Array:
    """Return how many taps of each window count in the mean."""
    t, left, b, r = op.counted
    mask = np.ones((1, shape[1] + t + b, shape[2] + left + r, 1))
    rest = [max(p - c, 0) for p, c in zip(op.pads, op.counted, strict=True)]
    mask = np.pad(mask, ((0, 0), (rest[0], rest[2]), (rest[1], rest[3]), (0, 0)))
    zero = type(op)(op.kernel, op.strides, (0, 0, 0, 0), op.dilations)
    return np.asarray(windows(mask, op.kernel, zero, 0).sum((-2, -1)))


def evaluate(node: Node, x: list[Array]) -> Array:
    """Return the value of one operator in float64: its definition, written a second time."""
    op = node.op
    match op:
        case ops.Conv():
            taps = windows(x[0], x[1].shape[1:3], op, 0.0)
            groups = zip(np.split(taps, op.groups, axis=3), np.split(x[1], op.groups), strict=True)
            return np.concatenate([np.einsum("nhwcij,oijc->nhwo", t, w) for t, w in groups], axis=-1) + x[2]
        case ops.Dense():
            return np.asarray(x[0] @ x[1].T + x[2])
        case ops.MaxPool():
            return np.asarray(windows(x[0], op.kernel, op, -np.inf).max((-2, -1)))
        case ops.AveragePool():
            return np.asarray(windows(x[0], op.kernel, op, 0.0).sum((-2, -1)) / counts(op, x[0].shape) * op.factor)
        case ops.Sum():
            return np.asarray(sum(sign * each for sign, each in zip(op.signs, x, strict=True)))
        case ops.Mul():
            return x[0] * x[1]
        case ops.Activation(kind="prelu"):
            return np.where(x[0] < 0, x[0] * x[1], x[0])
        case ops.Activation():
            return np.asarray(FUNCTIONS[op.kind](x[0], *op.params))
        case ops.Softmax():
            e = np.exp(x[0] - x[0].max(-1, keepdims=True))
            return np.asarray(e / e.sum(-1, keepdims=True))
        case ops.Reshape():
            return x[0].reshape(op.shape)
        case ops.Transpose():
            return x[0].transpose(op.perm)
        case ops.Slice():
            cuts = zip(op.starts, op.steps, op.sizes, strict=True)
            return x[0][np.ix_(*(start + step * np.arange(size) for start, step, size in cuts))]
        case ops.Concat():
            return np.concatenate(x, op.axis)
        case ops.Pad():
            return np.pad(x[0], list(zip(op.before, op.after, strict=True)), constant_values=op.value)
        case ops.Take():
            for axis, picks in enumerate(op.picks):
                x[0] = np.take(x[0], picks, axis) if picks else x[0]
            return x[0]
        case ops.Insert():
            out = x[0].copy()
            for (starts, steps), part in zip(op.boxes, x[1:], strict=True):
                ends = (a + (n - 1) * step + 1 for a, step, n in zip(starts, steps, part.shape, strict=True))
                out[tuple(map(slice, starts, ends, steps))] = part
            return out
    return evaluate_pair(op, x)


def evaluate_pair(op: Any, x: list[Array]) -> Array:
    """Return the value of an operator on several activations, or of a norm."""
    match op:
        case ops.MatMul():
            return np.asarray(op.factor * (x[0] @ (x[1].swapaxes(-1, -2) if op.turned else x[1])))
        case ops.Norm():
            rows = x[0].reshape(*x[0].shape[: op.lead], -1, op.groups, x[0].shape[-1] // op.groups)
            axes = (-3, -1)
            rows = rows - rows.mean(axes, keepdims=True) * op.centered
            y: Array = (rows / np.sqrt((rows**2).mean(axes, keepdims=True) + op.epsilon)).reshape(-1, len(x[1]))
            return np.asarray((y * x[1] + x[2]).reshape(x[0].shape))
        case ops.Div():
            return np.asarray(x[0] / x[1])
        case ops.Extreme():
            joined = np.stack(np.broadcast_arrays(*x))
            return np.asarray(np.clip(joined.min(0) if op.least else joined.max(0), *op.clamp))
        case ops.Select():
            return np.where((x[0] < x[1], x[0] <= x[1], x[0] == x[1])[op.relation], x[2], x[3])
    raise AssertionError(f"the float interpreter does not know {op}")


def interpret(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return every value of a float graph in float64, checking each declared shape."""
    values = {name: np.asarray(a, dtype=np.float64) for name, a in {**graph.constants, **feeds}.items()}
    for node in graph.nodes:
        values[node.output] = out = evaluate(node, [values[name] for name in node.inputs])
        assert out.shape == graph.values[node.output].shape, node
    return values


def feeds_of(graph: Graph) -> dict[str, Array]:
    return {name: random(*graph.values[name].shape) for name in graph.inputs}


def agree(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Graph:
    """Check that the imported graph means what onnxruntime computes, at every tensor that has an origin."""
    prepared = prepare(proto, shapes)
    onnx.checker.check_model(prepared)
    graph = import_graph(prepared)
    feeds = feeds_of(graph)
    values, asked = interpret(graph, feeds), sorted({v.origin.name for v in graph.values.values() if v.origin})
    original, found = ort(proto, feeds), ort(prepared, feeds, asked)
    for name in graph.outputs:
        np.testing.assert_allclose(values[name], original[name], rtol=1e-4, atol=1e-4)
    for value in graph.values.values():
        if value.origin is not None:
            seen = value.origin.to_onnx(values[value.name])
            assert seen.shape == found[value.origin.name].shape
            np.testing.assert_allclose(seen, found[value.origin.name], rtol=1e-4, atol=1e-4)
    names = {*graph.inputs, *(name for node in proto.graph.node for name in node.output)}
    assert all(v.origin.name.split(".")[0] in names for v in graph.values.values() if v.origin)
    return graph


def kinds(graph: Graph) -> list[str]:
    """Return the operators that are no mere moves of layout."""
    return [node.op.name for node in graph.nodes if node.op.name not in ("Transpose", "Reshape")]
