"""What a model must be before any tool is let loose on it; every problem is collected and shown at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from math import prod

import numpy as np
import onnx

from nnac.errors import ModelError, one_line, raise_all
from nnac.frontend.limits import Limits
from nnac.frontend.walk import graphs, label, nodes, stored_tensors, subgraphs, walk

OLDEST_OPSET = 7
DOMAINS = ("", "ai.onnx")
_SHOWN = 20
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_PER_ENTRY: dict[int, int] = {onnx.TensorProto.COMPLEX64: 2, onnx.TensorProto.COMPLEX128: 2}


def _split_counts(node: onnx.NodeProto) -> bool:
    return all(a.i == len(node.output) for a in node.attribute if a.name == "num_outputs")


_FATAL: dict[str, tuple[tuple[Callable[[onnx.NodeProto], bool], str], ...]] = {
    "Split": ((_split_counts, "num_outputs is the number of outputs"),),
}
"""What onnx 1.23's shape inference does not survive: it would end the process."""


def check_structure(model: onnx.ModelProto, limits: Limits) -> None:
    """Raise ModelError for counts, names, versions, tensor sizes and wiring that a sound model does not have."""
    _check_counts(model, limits)
    for problems in (
        _name_problems(model, limits),
        _version_problems(model),
        _tensor_problems(model, limits),
        _wiring_problems(model),
        _node_problems(model),
    ):
        report(problems)


def report(problems: Iterable[str]) -> None:
    """Raise one ModelError with the first problems of a list that may be long, or return."""
    shown = list(islice(problems, _SHOWN + 1))
    if len(shown) > _SHOWN:
        shown[-1] = "and more"
    raise_all(ModelError, "the model is not usable:", shown)


def _check_counts(model: onnx.ModelProto, limits: Limits) -> None:
    if not model.graph.node:
        raise ModelError("the model has no nodes")
    if model.graph.sparse_initializer or any(graph.sparse_initializer for graph in graphs(model)):
        raise ModelError("sparse initializers are not supported; store the weights as dense tensors")
    count = inlined_nodes(model)
    if count > limits.nodes:
        raise ModelError(f"the model has {count:,} nodes, functions inlined; at most {limits.nodes:,} are allowed")
    tensors = sum(1 for _ in stored_tensors(model))
    if tensors > limits.tensors:
        raise ModelError(f"the model stores {tensors:,} tensors; at most {limits.tensors:,} are allowed")


def inlined_nodes(model: onnx.ModelProto) -> int:
    """Return how many nodes the model has once its functions are inlined.

    Raises:
        ModelError: a function calls itself, directly or through others.
    """
    bodies = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}
    waiting = list(bodies)
    active: set[tuple[str, str, str]] = set()
    while waiting:
        key = waiting[-1]
        calls = [(n.domain, n.op_type, n.overload) for n in walk(bodies[key].node)]
        missing = [c for c in calls if c in bodies and c not in sizes]
        if key in sizes or not missing:
            waiting.pop()
            active.discard(key)
            sizes[key] = sum(sizes.get(c, 1) for c in calls)
            continue
        if key in active and active.intersection(missing):
            raise ModelError(f"function {one_line(key[1])!r} calls itself")
        active.add(key)
        waiting.extend(dict.fromkeys(missing))
    return sum(sizes.get((n.domain, n.op_type, n.overload), 1) for n in walk(model.graph.node))


def _names(model: onnx.ModelProto) -> Iterator[tuple[str, str | bytes]]:
    """Yield (kind, name) of everything that has a name."""
    for graph in graphs(model):
        yield "graph", graph.name
        yield from (("tensor", tensor.name) for tensor in graph.initializer)
        for info in (*graph.input, *graph.output, *graph.value_info):
            yield "tensor", info.name
            yield from (("dimension", dim.dim_param) for dim in info.type.tensor_type.shape.dim)
    for node in nodes(model):
        yield from (("node", node.name), ("operator", node.op_type), ("domain", node.domain))
        yield from (("tensor", name) for name in (*node.input, *node.output))
        yield from (("attribute", attribute.name) for attribute in node.attribute)


def _name_problems(model: onnx.ModelProto, limits: Limits) -> Iterator[str]:
    for kind, name in _names(model):
        if isinstance(name, bytes):  # protobuf hands out what is not UTF-8 as bytes
            yield f"{kind} name {name[:80]!a} is not UTF-8 text"
        elif len(name) > limits.name_length:
            yield f"{kind} name {one_line(name, 60)!r} has {len(name):,} characters; at most {limits.name_length:,}"
        elif not name.isprintable():
            yield f"{kind} name {name[:80]!a} holds characters that cannot be printed"


def _version_problems(model: onnx.ModelProto) -> Iterator[str]:
    versions = [entry.version for entry in model.opset_import if entry.domain in DOMAINS]
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1:
        yield f"the model imports the ONNX operators {len(versions)} times; once is needed"
    elif not OLDEST_OPSET <= versions[0] <= newest:
        yield f"the model has opset {versions[0]}; {OLDEST_OPSET} to {newest} are supported"


def _tensor_problems(model: onnx.ModelProto, limits: Limits) -> Iterator[str]:
    for tensor in stored_tensors(model):
        for problem in _stored_problems(tensor, limits):
            yield f"tensor {tensor.name!r} {problem}"


def _stored_problems(tensor: onnx.TensorProto, limits: Limits) -> Iterator[str]:
    """Yield what is wrong with a stored tensor; its bytes must be as many as its shape and type say."""
    declared = list(declared_problems(tensor, limits))
    yield from declared
    held = [name for name in _FIELDS if len(getattr(tensor, name))] + ["raw_data"] * tensor.HasField("raw_data")
    if len(held) > 1:
        yield f"holds its data more than once ({', '.join(held)})"
    elif not declared:
        yield from _size_problems(tensor, held[0] if held else None)


def declared_problems(tensor: onnx.TensorProto, limits: Limits) -> Iterator[str]:
    """Yield what is wrong with the shape and type of a stored tensor, whatever its data."""
    yield from shape_problems(tuple(tensor.dims), limits, smallest=0)
    if tensor.data_type not in onnx.TensorProto.DataType.values() or tensor.data_type == onnx.TensorProto.UNDEFINED:
        yield f"has the unknown data type {tensor.data_type}"


def _size_problems(tensor: onnx.TensorProto, field: str | None) -> Iterator[str]:
    if field == "raw_data":
        need, found, unit = raw_bytes(tensor), len(tensor.raw_data), "bytes"
    else:
        entries, per_entry = prod(tensor.dims), _PER_ENTRY.get(tensor.data_type, 1)
        need, unit = (raw_bytes(tensor) if _bits(tensor.data_type) < 8 else entries * per_entry), "values"
        found = len(getattr(tensor, field)) if field else 0
    if need != found:
        yield f"of shape {list(tensor.dims)} needs {need:,} {unit} of data, found {found:,}"


def raw_bytes(tensor: onnx.TensorProto) -> int:
    """Return how many bytes a stored tensor of known type has."""
    return -(-prod(map(int, tensor.dims)) * _bits(tensor.data_type) // 8)


def _bits(code: int) -> int:
    if code == onnx.TensorProto.STRING:
        return 8
    name = onnx.TensorProto.DataType.Name(code)
    for bits in (2, 4):
        if name.endswith(f"INT{bits}") or name.startswith(f"FLOAT{bits}E"):
            return bits
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)).itemsize) * 8


def shape_problems(dims: tuple[int, ...], limits: Limits, smallest: int = 1) -> Iterator[str]:
    """Yield what is wrong with a fixed shape."""
    if len(dims) > limits.rank:
        yield f"has rank {len(dims)}; at most {limits.rank} is allowed"
    elif any(not smallest <= dim <= limits.elements for dim in dims):
        yield f"has shape {list(dims)}; every dimension must be {smallest} to {limits.elements:,}"
    elif prod(dims) > limits.elements:
        yield f"of shape {list(dims)} has {prod(dims):,} elements; at most {limits.elements:,} are allowed"


def _wiring_problems(model: onnx.ModelProto) -> Iterator[str]:
    """Yield names of the main graph that are made twice, never, or after they are read."""
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output if name}
    ready = [*(i.name for i in graph.input), *(t.name for t in graph.initializer)]
    yield from _twice("graph input", [i.name for i in graph.input])
    yield from _twice("initializer", [t.name for t in graph.initializer])
    yield from _twice("graph output", [i.name for i in graph.output])
    known = {"", *ready}
    for node in graph.node:
        for name in (*node.input, *captured(node)):
            if name not in known and name in made:
                yield (
                    f"{label(node)} reads {name!r} before {label(made[name])} makes it: "
                    "the graph has a cycle, or its nodes are not in order"
                )
            elif name not in known:
                yield f"{label(node)} reads {name!r}, which nothing makes"
        yield from (
            f"{label(node)} makes {name!r}, which exists already" for name in node.output if name and name in known
        )
        known.update(node.output)
    yield from (f"graph output {i.name!r} is made by nothing" for i in graph.output if i.name not in known)
    if not graph.output:
        yield "the graph has no outputs"


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the outer names that the subgraphs of a node read (an over-estimate of what they define is left out)."""
    inside = [each for graph in subgraphs(node) for each in walk(graph.node)]
    if not inside:
        return
    held = [*subgraphs(node), *(graph for each in inside for graph in subgraphs(each))]
    inner = {"", *(each.name for graph in held for each in (*graph.input, *graph.initializer))}
    inner.update(name for each in inside for name in each.output)
    read = [name for each in inside for name in each.input]
    yield from (name for name in dict.fromkeys(read) if name not in inner)


def _twice(kind: str, names: list[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen or not name:
            yield f"{kind} {name!r} appears twice" if name else f"a {kind} has no name"
        seen.add(name)


def _node_problems(model: onnx.ModelProto) -> Iterator[str]:
    """Yield what ONNX's checker says of each node of the standard operators; others are reported by the import."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {
        entry.domain if entry.domain not in DOMAINS else "": entry.version for entry in model.opset_import
    }
    version = context.opset_imports[""]
    for node in nodes(model):
        yield from (f"{label(node)}: {sentence}" for holds, sentence in _FATAL.get(node.op_type, ()) if not holds(node))
        if any(subgraphs(node)) or any(attribute.ref_attr_name for attribute in node.attribute):
            continue
        if node.domain not in DOMAINS or not onnx.defs.has(node.op_type, version, ""):
            continue
        try:
            onnx.checker.check_node(node, context)
        except Exception as error:
            yield f"{label(node)}: {one_line(error)}"
