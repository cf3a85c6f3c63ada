"""Functions inlined, constants folded: onnx-ir holds the model, onnxscript's folder computes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx

from nnac.errors import ModelError, one_line
from nnac.frontend.check import raw_bytes, report
from nnac.frontend.limits import Limits

if TYPE_CHECKING:
    import onnx_ir

ROUNDS = 4
_WIDEST = 8  # bytes of an element of unknown type

FOLDABLE = frozenset(
    """
    Abs Add And ArgMax ArgMin Cast CastLike Ceil Clip Concat ConstantOfShape Cos CumSum DequantizeLinear Div Equal Erf
    Exp Expand EyeLike
    Flatten Floor Gather Gemm Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN
    LeakyRelu Less LessOrEqual Log MatMul Max Mean Min Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow Range Reciprocal
    ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round
    ScatterND Shape Sigmoid Sign Sin Size Slice Softmax Softplus Sqrt Squeeze Sub Sum Tan Tanh Tile
    Transpose Trilu Unsqueeze Where Xor
""".split()
)
"""Operators that are computed ahead when all inputs are constants; their time is in line with their size."""

SLOW = {"Erf": 1 << 22, "ScatterND": 1 << 20}
"""Entries of the output up to which operators that the tools loop over in Python are computed."""

MOST_PRODUCTS = 1 << 32
"""Products up to which a MatMul or Gemm of constants is computed."""

INTEGER_READERS = frozenset({"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Sum", "Concat"})
MOVES = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
"""Readers of a dequantized constant that take its integers, and what may stand between; for others it is a real one."""

BOUNDED_BY_INPUT = frozenset({"NonZero"})
"""Their output's size is not inferred, but is at most rank times the input's."""


@dataclass(slots=True)
class _Gate:
    """Decides what may be folded, and keeps the account of the bytes, of which there are `limit`."""

    limits: Limits
    limit: int
    spent: int = 0
    refused: list[str] = field(default_factory=list)

    def __call__(self, node: onnx_ir.Node) -> bool:
        if node.domain not in ("", "ai.onnx") or node.op_type not in FOLDABLE or len(node.outputs) != 1:
            return False
        if node.op_type == "DequantizeLinear" and _keeps_integers(node):
            return False
        size = _output_bytes(node)
        if size is None or _takes_long(node):
            return False
        if self.spent + size > self.limit:
            self.refused.append(
                f"{node.op_type} {node.outputs[0].name!r} would make a constant of {size:,} bytes; "
                f"at most {self.limit:,} may be made in all"
            )
            return False
        self.spent += size
        return True


def _keeps_integers(node: onnx_ir.Node) -> bool:
    """Tell whether an operator that works on integers reads a dequantized constant, perhaps through moves of it."""
    readers = [use.node for use in node.outputs[0].uses()]
    return any(r.op_type in INTEGER_READERS or (r.op_type in MOVES and _keeps_integers(r)) for r in readers)


def _output_bytes(node: onnx_ir.Node) -> int | None:
    """Return the size of a node's result, or None if it is not known beforehand."""
    if node.op_type in BOUNDED_BY_INPUT:
        held = node.inputs[0].const_value if node.inputs[0] is not None else None
        return None if held is None else held.size * max(len(held.shape), 1) * _WIDEST
    shape = node.outputs[0].shape
    if shape is None or not shape.is_static():
        return None
    dtype = node.outputs[0].dtype
    return prod(shape.numpy()) * (_WIDEST if dtype is None else max(int(dtype.itemsize), 1))


def _takes_long(node: onnx_ir.Node) -> bool:
    """Tell whether computing a node (of known shape) is out of proportion."""
    shape, first = node.outputs[0].shape, node.inputs[0] if node.inputs else None
    if shape is None or not shape.is_static() or first is None or first.shape is None:
        return False
    entries, inner = prod(shape.numpy()), prod(first.shape.numpy())
    if node.op_type in ("MatMul", "Gemm"):  # entries of the output times the inner side, from above
        return entries * min(inner, max(first.shape.numpy(), default=1)) > MOST_PRODUCTS
    return entries > SLOW.get(node.op_type, entries)


WEIGHTED = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul"})
"""Operators that take no empty tensor."""
CUTTING = frozenset({"Gather", "Pad", "Slice", "Split"})
"""Operators that may make an empty tensor of one that is not."""

LEFT_ALONE = frozenset(
    """
    Add AveragePool BatchNormalization Clip Div Elu Exp Flatten GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish
    LeakyRelu Log Max MaxPool Min Mul Neg PRelu Pow ReduceMax ReduceMean ReduceSum Relu Sigmoid Softmax Softplus Sqrt
    Squeeze Sub Tanh Transpose Unsqueeze
""".split()
).union(WEIGHTED, CUTTING)
"""Operators that the tools change only where all inputs are constants."""


def _is_folded(model: onnx.ModelProto) -> bool:
    """Tell that the tools, which take half a second to load, would find nothing to do in a float model."""
    ports = (*model.graph.input, *model.graph.output)
    if any(value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT for value in ports):
        return False
    made = {value.name for value in model.graph.input} - {tensor.name for tensor in model.graph.initializer}
    wanted = {name for node in model.graph.node for name in node.input} | {out.name for out in model.graph.output}
    ranks, solid = _ranks(model.graph), made.copy()
    for node in model.graph.node:
        plain = node.op_type in LEFT_ALONE or _stays(node, solid, ranks)
        plain &= node.domain == "" and wanted.issuperset(filter(None, node.output))
        plain &= node.op_type != "MaxPool" or len(node.output) == 1  # indices are integers
        if not plain or made.isdisjoint(node.input):
            return False
        made.update(node.output)
        if node.op_type in WEIGHTED or (node.op_type not in CUTTING and made.intersection(node.input) <= solid):
            solid.update(node.output)
    unused = any(tensor.name not in wanted for tensor in model.graph.initializer)
    return not (unused or model.functions or model.graph.sparse_initializer)


def _stays(node: onnx.NodeProto, solid: set[str], ranks: Mapping[str, int]) -> bool:
    """Tell whether a node is a Concat of several computed tensors, none of them empty, or a Reshape to another rank."""
    if node.op_type == "Concat":
        return len(node.input) > 1 and solid.issuperset(node.input)
    known = [ranks.get(name) for name in node.input] if node.op_type == "Reshape" else [None]
    return None not in known and known[0] != known[1]


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the ranks of inputs and of what Transpose makes, and the lengths of stored vectors: shapes have them."""
    lengths = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 1}
    inputs = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input}
    turned = [node for node in graph.node if node.op_type == "Transpose" and node.attribute]
    return lengths | inputs | {node.output[0]: len(node.attribute[0].ints) for node in turned}


def fold(model: onnx.ModelProto, limits: Limits) -> onnx.ModelProto:
    """Return the model with functions inlined and everything that is constant stored as an initializer.

    1. Computed values keep their names; only values that become constants, copies of others, or unused vanish.
    2. Nodes that quantize are kept; so are those that dequantize the integers of layers and sums, which the import
       takes as they are; other dequantized constants become float constants, exactly.
    3. A constant that would be too large is refused before it is made.

    Raises:
        ModelError: the tools fail on the model, or the constants get too large.
    """
    if _is_folded(model):
        return model
    stored = sum(map(raw_bytes, model.graph.initializer))
    gate = _Gate(limits, limits.folded_bytes + limits.folds * stored)
    try:
        with _quiet():
            folded = _run(model, gate)
    except Exception as error:
        cause = error.__cause__ or error
        raise ModelError(f"the model's functions and constants cannot be resolved: {one_line(cause)}") from error
    report(dict.fromkeys(gate.refused))
    return folded


def _run(model: onnx.ModelProto, gate: _Gate) -> onnx.ModelProto:
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript import optimizer

    held, everything = onnx_ir.serde.deserialize_model(model), gate.limits.elements
    common.InlinePass()(held)
    for _ in range(ROUNDS):
        for value in held.graph.initializers.values():
            if value.const_value is not None:  # a folded NonZero still has its open shape
                value.shape = onnx_ir.Shape(value.const_value.shape.numpy())
        result = optimizer.fold_constants(
            held, onnx_shape_inference=True, input_size_limit=everything, output_size_limit=everything, should_fold=gate
        )
        common.RemoveUnusedNodesPass()(held)
        if not result.modified:
            break
    constants = [node for node in held.graph if node.op_type == "Constant"]
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(held)
    common.RemoveUnusedNodesPass()(held)
    common.RemoveUnusedFunctionsPass()(held)  # type: ignore[no-untyped-call]
    result = onnx_ir.serde.serialize_model(held)
    for node in constants:  # nodes and values refer to each other: numbers would wait for Python's collector
        node.attributes.clear()
    for value in (*held.graph.initializers.values(), *(node.outputs[0] for node in constants)):
        value.const_value = None
    return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tools' remarks on what they leave alone off the terminal."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
