"""From what the user gives to the checked, self-contained, static model that everything downstream reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from nnac.errors import ModelError, NnacError, one_line
from nnac.frontend.check import DOMAINS, check_structure, report
from nnac.frontend.decompose import decompose
from nnac.frontend.fold import fold
from nnac.frontend.foreign import infer_foreign
from nnac.frontend.freeze import Frozen, freeze_inputs
from nnac.frontend.limits import LIMITS, Limits
from nnac.frontend.loader import Source, embed_external_data, load
from nnac.frontend.logic import split_conditions
from nnac.frontend.masks import add_masks
from nnac.frontend.qonnx import fold_quantizers
from nnac.frontend.qoperator import rewrite_quantized
from nnac.frontend.scans import restore_layers
from nnac.frontend.shapes import Shape, drop_constant_inputs, fix_inputs, forget_inferred, infer
from nnac.frontend.unroll import unroll
from nnac.frontend.walk import nodes, stem

OLDEST_IR, NEWEST_IR = 8, 13  # initializers need not be inputs since 4; onnxruntime 1.31 reads up to 13


def prepare(
    source: Source,
    shapes: Mapping[str, Shape] | None = None,
    limits: Limits = LIMITS,
    frozen: Frozen | None = None,
) -> onnx.ModelProto:
    """Return the model of `source` with fixed shapes, its weights inside, constants folded, functions inlined.

    Computed tensors keep their names: runs of the result compare with the original by name.

    Args:
        source: a path, the bytes of a file, or a model (which is not changed).
        shapes: full shapes of graph inputs by name; needed for those with open dimensions.
        limits: what is refused for its size.
        frozen: numbers or arrays for graph inputs that become constants.

    Raises:
        ModelError: whatever is wrong with the file or the model.
    """
    try:
        return _prepare(source, shapes or {}, limits, frozen or {})
    except NnacError:
        raise
    except Exception as error:  # protobuf, onnx and onnx-ir raise about anything on a hostile model
        raise ModelError(f"the model is damaged: {type(error).__name__}: {one_line(error)}") from error


def as_given(source: Source, shapes: Mapping[str, Shape] | None = None, limits: Limits = LIMITS) -> onnx.ModelProto:
    """Return the checked model of `source` as another engine should run it: its nodes untouched, its inputs fixed.

    Raises:
        ModelError: whatever is wrong with the file or the model.
    """
    model = opened(source, limits)
    drop_constant_inputs(model.graph)
    fix_inputs(model.graph, shapes or {}, limits)
    return model


def opened(source: Source, limits: Limits = LIMITS) -> onnx.ModelProto:
    """Return the checked model of `source` with its weights inside and every node named.

    Raises:
        ModelError: whatever is wrong with the file or the model.
    """
    model = load(source, limits)
    embed_external_data(model, source, limits)
    check_structure(model, limits)
    _normalize_domains(model)
    _name_nodes(model.graph)
    return model


def _prepare(source: Source, shapes: Mapping[str, Shape], limits: Limits, frozen: Frozen) -> onnx.ModelProto:
    model = opened(source, limits)
    _store_as_bytes(model.graph)
    freeze_inputs(model.graph, frozen, shapes, limits)
    drop_constant_inputs(model.graph)
    fold_quantizers(model)
    rewrite_quantized(model)
    fix_inputs(model.graph, {name: shape for name, shape in shapes.items() if name not in frozen}, limits)
    forget_inferred(model.graph)
    model.ir_version = min(max(model.ir_version, OLDEST_IR), NEWEST_IR)
    model = fold(model, limits)
    if fold_quantizers(model) | rewrite_quantized(model):  # whose constants had to be computed first
        model = fold(model, limits)
    forget_inferred(model.graph)
    split_conditions(model)
    add_masks(model.graph)
    report(_number_problems(model.graph))
    infer(model, limits)
    while restore_layers(model) or unroll(model):
        forget_inferred(model.graph)
        model = fold(model, limits)
        infer(model, limits)
    while decompose(model):  # the parts of one may be rewritten again, and what follows has a shape now
        forget_inferred(model.graph)
        infer(model, limits)
    return infer_foreign(model)


def _normalize_domains(model: onnx.ModelProto) -> None:
    """Write the default domain as "" everywhere."""
    for entry in (*model.opset_import, *nodes(model), *(o for f in model.functions for o in f.opset_import)):
        if entry.domain in DOMAINS:
            entry.domain = ""
    known = {entry.domain for entry in model.opset_import}
    for domain in dict.fromkeys(node.domain for node in nodes(model)):
        if domain not in known:  # an operator that the import will report
            model.opset_import.add(domain=domain, version=1)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node of the main graph a unique name: its own, or that of its first output."""
    reserved = {node.name for node in graph.node}
    seen: set[str] = set()
    for node in graph.node:
        name, count = stem(node), 1
        while name in seen or (not node.name and name in reserved):
            count += 1
            name = f"{stem(node)}.{count}"
        seen.add(name)
        node.name = name


def _store_as_bytes(graph: onnx.GraphProto) -> None:
    """Store float initializers as bytes, which are copied and read as a whole."""
    for tensor in graph.initializer:
        if tensor.float_data and tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.raw_data = np.asarray(tensor.float_data, "<f4").tobytes()
            tensor.ClearField("float_data")


def _number_problems(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the stored tensors that are not finite; a single infinity is a limit and may stand."""
    for tensor in graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16):
            array = onnx.numpy_helper.to_array(tensor)
            bad = ~np.isfinite(array)
            if bad.any() and (array.size > 1 or np.isnan(array).any()):
                first = [int(i) for i in np.argwhere(bad)[0]]
                yield f"tensor {tensor.name!r} has {int(bad.sum()):,} values that are not finite, the first at {first}"
