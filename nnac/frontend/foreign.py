"""Shapes of what operators outside of ONNX make: onnxruntime infers those of its own ones (com.microsoft)."""

from __future__ import annotations

import onnx
from onnx import helper

from nnac.errors import ModelError
from nnac.floatmodel import FloatModel

DOMAIN = "com.microsoft"


def infer_foreign(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give tensors behind operators of onnxruntime's domain the fixed shapes that it infers, in place.

    A model that onnxruntime does not load stays as it is: the import says why it cannot be compiled.
    """
    graph = model.graph
    if not any(node.domain == DOMAIN for node in graph.node):
        return model
    known = {info.name for info in (*graph.value_info, *graph.output, *graph.input) if _is_fixed(info)}
    unknown = [name for node in graph.node for name in node.output if name and name not in known]
    if not unknown:
        return model
    try:
        found = FloatModel(model, unknown).described()
    except ModelError:
        return model
    outputs = {info.name: info for info in graph.output}
    for name in unknown:
        if name not in found:
            continue
        info = helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(found[name][0]), found[name][1])
        if name in outputs:
            outputs[name].CopyFrom(info)
        else:
            graph.value_info.append(info)
    return model


def _is_fixed(info: onnx.ValueInfoProto) -> bool:
    kind = info.type.tensor_type
    return kind.HasField("shape") and all(dim.dim_value > 0 for dim in kind.shape.dim)
