"""Fixed shapes for every value: the inputs' from the caller, the rest from ONNX's inference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx

from nnac.errors import ModelError, one_line
from nnac.floatmodel import lightened
from nnac.frontend.check import report, shape_problems
from nnac.frontend.limits import Limits
from nnac.frontend.weights import misfits

Shape = tuple[int, ...]


def drop_constant_inputs(graph: onnx.GraphProto) -> None:
    """Remove the graph inputs that have an initializer: IR version 3 lists all weights so, and newer ones defaults."""
    stored = {tensor.name for tensor in graph.initializer}
    kept = [info for info in graph.input if info.name not in stored]
    if len(kept) < len(graph.input):
        copies = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in kept]
        del graph.input[:]
        graph.input.extend(copies)


def fix_inputs(graph: onnx.GraphProto, shapes: Mapping[str, Shape], limits: Limits) -> None:
    """Give every graph input its shape; dimensions of one symbolic name are fixed together.

    Raises:
        ModelError: a name is unknown, a shape contradicts the model, or a dimension stays open (all at once).
    """
    report(_mismatches(graph, shapes))
    known = _symbols(graph, shapes)
    problems = []
    for info in graph.input:
        dims = _fixed(info, shapes.get(info.name), known)
        if dims is None:
            problems.append(_open_problem(info, known))
        else:
            problems += [f"graph input {info.name!r} {text}" for text in shape_problems(dims, limits)]
            _set_shape(info, dims)
    report(problems)


def _mismatches(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> Iterator[str]:
    inputs = {info.name: info for info in graph.input}
    for name in shapes:
        if name not in inputs:
            yield f"--shape names {one_line(name)!r}, which is no graph input (inputs: {', '.join(map(repr, inputs))})"
    for name, info in inputs.items():
        if not info.type.HasField("tensor_type"):
            yield f"graph input {name!r} is a {info.type.WhichOneof('value') or 'value without a type'}, not a tensor"
        elif name in shapes and not _agrees(info, shapes[name]):
            yield f"--shape {name}={_listed(shapes[name])} contradicts the model, which says {_declared(info)}"


def _agrees(info: onnx.ValueInfoProto, shape: Shape) -> bool:
    if not info.type.tensor_type.HasField("shape"):
        return True
    dims = info.type.tensor_type.shape.dim
    return len(dims) == len(shape) and all(
        d.dim_value in (0, -1, s) or d.dim_value < 0 for d, s in zip(dims, shape, strict=True)
    )


def _symbols(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return the values that the given shapes assign to symbolic dimensions."""
    known: dict[str, int] = {}
    for info in graph.input:
        for dim, size in zip(info.type.tensor_type.shape.dim, shapes.get(info.name, ()), strict=False):
            if dim.dim_param and known.setdefault(dim.dim_param, size) != size:
                raise ModelError(f"dimension {dim.dim_param!r} is given as {known[dim.dim_param]} and as {size}")
    return known


def _fixed(info: onnx.ValueInfoProto, given: Shape | None, known: Mapping[str, int]) -> Shape | None:
    """Return the whole shape of an input, or None while a dimension is open."""
    if given is not None:
        return tuple(int(size) for size in given)
    if not info.type.tensor_type.HasField("shape"):
        return None
    dims = [known.get(d.dim_param, 0) if d.dim_param else d.dim_value for d in info.type.tensor_type.shape.dim]
    return tuple(dims) if all(dim > 0 for dim in dims) else None


def _open_problem(info: onnx.ValueInfoProto, known: Mapping[str, int]) -> str:
    dims = info.type.tensor_type.shape.dim
    example = _listed(tuple(d.dim_value if d.dim_value > 0 else known.get(d.dim_param, 1) for d in dims))
    example = example or "1,3,224,224"
    return (
        f"graph input {info.name!r} has the open shape {_declared(info)}; a compiled model has fixed shapes: "
        f"give one, for example --shape {info.name}={example}"
    )


def _declared(info: onnx.ValueInfoProto) -> str:
    if not info.type.tensor_type.HasField("shape"):
        return "of unknown rank"
    dims = info.type.tensor_type.shape.dim
    return f"[{', '.join(str(d.dim_value) if d.dim_value > 0 else d.dim_param or '?' for d in dims)}]"


def _listed(shape: Shape) -> str:
    return ",".join(str(size) for size in shape)


def _set_shape(info: onnx.ValueInfoProto, dims: Shape) -> None:
    shape = info.type.tensor_type.shape
    shape.ClearField("dim")
    shape.SetInParent()
    for size in dims:
        shape.dim.add().dim_value = size


def forget_inferred(graph: onnx.GraphProto) -> None:
    """Drop what the file says of computed values: it may be stale or symbolic."""
    graph.ClearField("value_info")
    for info in graph.output:
        info.type.tensor_type.ClearField("shape")


def _inference_problems(text: str) -> list[str]:
    """Return the nodes and sentences of the inference's message, without its decoration."""
    found = re.findall(r"\(op_type:(\w+)(?:, node name: ([^)]*))?\): (.*?)(?=\(op_type:|$)", text, re.DOTALL)
    clean = [(op_type, name, re.sub(r"\[\w+Error\]", "", sentence)) for op_type, name, sentence in found]
    return [f"{op_type} {name!r}: {one_line(sentence)}" for op_type, name, sentence in clean] or [one_line(text)]


def _fill(graph: onnx.GraphProto) -> bool:
    """Give outputs the shape that the inference has missed, where `_missed` knows it; tell whether one had none."""
    known = {info.name: _dims(info) for info in (*graph.input, *graph.value_info, *graph.output)}
    known |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    infos, filled = {info.name: info for info in (*graph.value_info, *graph.output)}, False
    for node in graph.node:
        dims = _missed(node, known)
        for name in node.output[::2] if dims is not None else ():  # an embedding's third is the sum before its norm
            if name and dims is not None and known.get(name) is None:
                info = infos.get(name) or graph.value_info.add(name=name)
                info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
                _set_shape(info, tuple(dims))
                known[name], filled = dims, True
    return filled


def _dims(info: onnx.ValueInfoProto) -> list[int] | None:
    """Return the fixed shape of a value, or None."""
    tensor = info.type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]
    return dims if tensor.HasField("shape") and all(dim > 0 for dim in dims) else None


def _missed(node: onnx.NodeProto, known: Mapping[str, list[int] | None]) -> list[int] | None:
    """Return the shape of a node's first and third output, of operators that onnx 1.23 does not know it of."""
    shapes = [known.get(name) for name in node.input]
    if node.op_type == "GroupNormalization":
        return shapes[0]
    if node.op_type == "EmbedLayerNormalization" and shapes[0] and len(shapes) > 2 and shapes[2]:
        return [*shapes[0], shapes[2][-1]]
    return None


def infer(model: onnx.ModelProto, limits: Limits) -> None:
    """Give every value of a model the shape that ONNX's inference knows, in place.

    Raises:
        ModelError: the inference finds a contradiction, or a shape beyond the limits.
    """
    found, _ = lightened(model)  # no shape depends on a large weight, and the inference would copy it twice
    try:
        found = onnx.shape_inference.infer_shapes(found, check_type=True, strict_mode=True)
        while _fill(found.graph):
            found = onnx.shape_inference.infer_shapes(found, check_type=True, strict_mode=True)
    except Exception as error:
        told = _inference_problems(str(error))
        raise ModelError("\n  - ".join(["the shapes do not fit together:", *told])) from error
    for field in ("node", "value_info", "output"):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(getattr(found.graph, field))
    problems = []
    for info in (*model.graph.value_info, *model.graph.output):
        dims = tuple(d.dim_value for d in info.type.tensor_type.shape.dim if d.HasField("dim_value"))
        if len(dims) == len(info.type.tensor_type.shape.dim):
            problems += [f"tensor {info.name!r} {text}" for text in shape_problems(dims, limits)]
    report(problems)
    report(misfits(model.graph))
