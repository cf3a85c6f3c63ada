"""Operators that are rewritten into simpler ones before import, in ONNX itself: their parts get names, and so ranges.

Every part is calibrated in onnxruntime like any other tensor; functions of one value among the parts are composed into
one table again by the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnac.frontend import decompose_layers
from nnac.frontend.rewriter import Rewrite, Rewriter, Shape, attributes, drop_unread, names_read
from nnac.frontend.unroll import STEPS
from nnac.types import Array

AXES_ARE_CONSTANTS = "axes are constants"


def decompose(model: onnx.ModelProto) -> bool:
    """Rewrite the main graph of a model whose shapes are known; tell whether anything has changed.

    Computed tensors keep their names.
    """
    graph = model.graph
    if not any(_rule(node) for node in graph.node):
        return False
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rewriter = Rewriter(_opset(model), _shapes(graph, constants), constants, _names(graph), names_read(graph))
    changed = False
    for node in graph.node:
        changed |= _rewrite(rewriter, node)
    if changed:
        kept = list(rewriter.nodes)
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.extend(rewriter.stored)
        drop_unread(graph)
    return changed


def _rewrite(r: Rewriter, node: onnx.NodeProto) -> bool:
    """Add a node, or its parts with the last one under its names; tell whether it was rewritten."""
    rule = _rule(node)
    start, r.stem = len(r.nodes), next(filter(None, node.output), node.name)
    result = rule.apply(r, node) if rule is not None and all(name in r.shapes for name in node.input if name) else None
    if result is None:
        del r.nodes[start:]
        r.nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        return False
    last = r.nodes[-1]
    last.output[0], last.name = node.output[0], node.name
    return True


def _rule(node: onnx.NodeProto) -> Rewrite | None:
    return REWRITES.get(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain == ""), 1)


def _shapes(graph: onnx.GraphProto, constants: Mapping[str, Array]) -> dict[str, Shape]:
    """Return the shapes of what is float32 and fixed, and those of the constants."""
    shapes = {name: array.shape for name, array in constants.items()}
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        dims = tuple(dim.dim_value for dim in tensor.shape.dim)
        if tensor.HasField("shape") and all(dim >= 1 for dim in dims) and tensor.elem_type == onnx.TensorProto.FLOAT:
            shapes[info.name] = dims
    return shapes


def _names(graph: onnx.GraphProto) -> set[str]:
    values = {name for node in graph.node for name in (*node.output, node.name)}
    return values | {each.name for each in (*graph.input, *graph.initializer)}


# -- arithmetic ----------------------------------------------------------------------------------------------------


def _div(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """c / y = c * (1 / y) for one constant number and a computed y, which is a function of y."""
    if node.input[1] in r.constants or r.constants.get(node.input[0], np.zeros(2)).size != 1:
        return None
    return r.add("Mul", node.input[0], r.add("Reciprocal", node.input[1]))


def _mean(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """The mean of n tensors is their sum times 1 / n."""
    return r.add("Mul", r.add("Sum", *node.input), r.constant(1 / len(node.input)))


def _trilu(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """A triangle of a computed tensor is its product with ones and zeros."""
    shift = r.constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else np.zeros(1)
    if shift is None or len(shape := r.shapes[node.input[0]]) < 2:
        return None
    keep = np.triu if attributes(node).get("upper", 1) else np.tril
    return r.add("Mul", node.input[0], r.constant(keep(np.ones(shape[-2:]), int(shift.reshape(-1)[0]))))


# -- recurrent layers ----------------------------------------------------------------------------------------------

_STATE_INPUTS = (5, 6)


def _time_first(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """A recurrent layer with the batch in front (which onnxruntime has not) is one with time in front, transposed."""
    given = attributes(node)
    if given.pop("layout", 0) != 1:
        return None
    inputs = list(node.input)
    for index, name in enumerate(node.input):
        if name and (index == 0 or index in _STATE_INPUTS):
            held = r.constants.get(name)
            turned = held is not None and r.constant(held.transpose(1, 0, 2))
            inputs[index] = turned or r.add("Transpose", name, perm=(1, 0, 2))
    made = [r.fresh(f"{node.op_type.lower()}{i}") for i in range(len(node.output))]
    r.nodes.append(helper.make_node(node.op_type, inputs, made, made[0], **given))
    for name, state in zip(node.output[1:], made[1:], strict=True):
        if name:
            r.nodes.append(helper.make_node("Transpose", [state], [name], name, perm=(1, 0, 2)))
    node.output[0] = node.output[0] or r.fresh("all")
    return r.add("Transpose", made[0], perm=(2, 0, 1, 3))


# -- reductions ----------------------------------------------------------------------------------------------------


def _reduction(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """Sums of what is computed first; the least is the largest of the negated."""
    given, rank = attributes(node), len(r.shapes[node.input[0]])
    held = r.constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    if len(node.input) > 1 and node.input[1] and held is None:
        return None
    axes = sorted({int(a) % rank for a in (held if held is not None else given.get("axes", ()))}) if rank else []
    if not axes and given.get("noop_with_empty_axes", 0):
        return r.add("Identity", node.input[0])
    axes, keepdims = axes or list(range(rank)), int(given.get("keepdims", 1))
    x = node.input[0]
    if node.op_type == "ReduceMin":
        return r.add("Neg", r.reduce("ReduceMax", r.add("Neg", x), axes, keepdims))
    if node.op_type == "ReduceL1":
        x = r.add("Abs", x)
    elif node.op_type in ("ReduceL2", "ReduceSumSquare"):
        x = r.add("Mul", x, x)
    total = r.reduce("ReduceSum", x, axes, keepdims)
    return r.add("Sqrt", total) if node.op_type == "ReduceL2" else total


# -- functions of other domains ------------------------------------------------------------------------------------


def _gelu(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """Gelu and BiasGelu: x * (1 + erf(x / sqrt(2))) / 2."""
    x = r.add("Add", *node.input) if len(node.input) > 1 else node.input[0]
    half = r.add("Mul", x, r.constant(0.5))
    grown = r.add("Erf", r.add("Mul", x, r.constant(1 / sqrt(2))))
    return r.add("Mul", half, r.add("Add", grown, r.constant(1.0)))


def _fast_gelu(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """Gelu by a hyperbolic tangent, perhaps of x + bias."""
    x = r.add("Add", *node.input) if len(node.input) > 1 and node.input[1] else node.input[0]
    cubic = r.add("Mul", r.add("Mul", r.add("Mul", x, x), x), r.constant(0.044715))
    inner = r.add("Mul", r.add("Add", x, cubic), r.constant(sqrt(2 / np.pi)))
    return r.add("Mul", r.add("Mul", x, r.constant(0.5)), r.add("Add", r.add("Tanh", inner), r.constant(1.0)))


def _quick_gelu(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """x * sigmoid(alpha * x)."""
    x = node.input[0]
    return r.add("Mul", x, r.add("Sigmoid", r.add("Mul", x, r.constant(float(attributes(node).get("alpha", 1.702))))))


def _loop(r: Rewriter, node: onnx.NodeProto) -> str | None:
    """A loop that is still one is refused: see `nnac.frontend.scans` and `nnac.frontend.unroll`."""
    return None


_GELU = ("Erf", "Mul", "Add")
_LOOPS = f"runs forwards along first axes, and its number of steps is fixed and at most {STEPS}"

REWRITES: dict[str, Rewrite] = {
    "Div": Rewrite(_div, ("Mul", "Reciprocal")),
    "Mean": Rewrite(_mean, ("Sum", "Mul")),
    "Trilu": Rewrite(_trilu, ("Mul",), "the diagonal is a constant"),
    **{name: Rewrite(_time_first, (name, "Transpose")) for name in ("LSTM", "GRU", "RNN")},
    "Scan": Rewrite(_loop, ("LSTM",), f"the body is an LSTM cell; or it {_LOOPS}"),
    "Loop": Rewrite(_loop, ("LSTM",), f"it {_LOOPS}"),
    "ReduceMin": Rewrite(_reduction, ("Neg", "ReduceMax"), AXES_ARE_CONSTANTS),
    "ReduceL1": Rewrite(_reduction, ("Abs", "ReduceSum"), AXES_ARE_CONSTANTS),
    "ReduceL2": Rewrite(_reduction, ("Mul", "ReduceSum", "Sqrt"), AXES_ARE_CONSTANTS),
    "ReduceSumSquare": Rewrite(_reduction, ("Mul", "ReduceSum"), AXES_ARE_CONSTANTS),
    "com.microsoft.Gelu": Rewrite(_gelu, _GELU),
    "com.microsoft.BiasGelu": Rewrite(_gelu, _GELU),
    "com.microsoft.FastGelu": Rewrite(_fast_gelu, ("Tanh", "Mul", "Add")),
    "com.microsoft.QuickGelu": Rewrite(_quick_gelu, ("Sigmoid", "Mul")),
    **decompose_layers.REWRITES,
}
"""By the name that messages use: the operator's, with its domain in front unless that is ONNX's own."""
