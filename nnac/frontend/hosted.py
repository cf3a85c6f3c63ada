"""Host segments: what no row of the table can import is cut out of the model, in as few pieces as possible.

Rules:

1. a node goes to the host where the import refuses it, or where it reads from there what cannot cross the border;
2. a reshape whose neighbours are all on the host goes along;
3. the level of a node counts the changes between NNA and host on the longest path to it; host nodes of one level are
   one segment. So no path leaves a segment and comes back, and no cut has fewer segments than that path has changes;
4. only float32 tensors of fixed shapes cross a border. Where a segment reads anything else (indices, masks) that an
   earlier segment or the NNA makes, the nodes that make it are repeated inside, back to tensors that may cross;
5. inputs and outputs of the whole model that have another type cross as float32 and are cast inside; integers among
   them cross as int16 that stand for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from nnac import segment
from nnac.errors import ModelError, NnacError, one_line, raise_all
from nnac.frontend.check import captured, check_structure
from nnac.frontend.limits import LIMITS
from nnac.frontend.shapes import infer
from nnac.frontend.use import Tensors
from nnac.frontend.walk import label, nodes, stored_tensors, walk

DOMAINS = ("", "com.microsoft")
"""Of operators that onnxruntime has."""
NOT_ON_HOST = {
    "Loop": "a loop may run for ever",
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
        "its results are random",
    ),
}
ALONG = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
WHOLE = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
"""Integer types at the model's own border."""
REAL = ("float32", "float64", "float16")
_POSITIVE = ("group", "strides", "dilations", "kernel_shape", "num_heads", "blocksize", "num_groups")
_LARGEST = 1 << 31


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment as it is cut out.

    Attributes:
        name: of the first node that made it necessary.
        level: its place in the order of execution.
        model: its bytes (see `nnac.segment`).
        inputs, outputs: ONNX tensors, in the order of the model's own.
    """

    name: str
    level: int
    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a model is cut.

    Attributes:
        levels: of every node; NNA nodes have even levels, host nodes odd ones.
        segments: by ascending level.
    """

    levels: tuple[int, ...]
    segments: tuple[Segment, ...]


def cut(model: onnx.ModelProto, tensors: Tensors, reasons: Mapping[int, str]) -> Cut:
    """Return the cut of a prepared model whose nodes in `reasons` cannot stay.

    Raises:
        ModelError: a segment is not sound (all of them at once).
    """
    own = [list(dict.fromkeys((*node.input, *captured(node)))) for node in model.graph.node]
    reasons = _with_readers(model.graph, tensors, own, reasons)
    hosted = _with_reshapes(model.graph, own, reasons)
    levels = _levels(model.graph, own, hosted)
    segments = tuple(_segments(model, tensors, reasons, own, hosted, levels))
    problems = [f"host segment {each.name!r}: {text}" for each in segments for text in segment_problems(each.model)]
    raise_all(ModelError, "the model cannot be compiled:", problems)
    return Cut(tuple(levels), segments)


def refusals(model: onnx.ModelProto, reasons: Mapping[int, str]) -> Iterator[str]:
    """Yield the nodes in `reasons` that the host cannot run either."""
    for i, reason in sorted(reasons.items()):
        if why := _refusal(model.graph.node[i], _opset(model)):
            yield f"{label(model.graph.node[i])}: {reason}; on the host neither: {why}"


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if not entry.domain), 1)


def _with_readers(
    graph: onnx.GraphProto, tensors: Tensors, reads: Sequence[Sequence[str]], reasons: Mapping[int, str]
) -> dict[int, str]:
    """Return the reasons with those of the nodes that read from the host what cannot cross the border."""
    made, found = _makers(graph), dict(reasons)
    for i, names in enumerate(reads):
        foreign = [name for name in names if made.get(name) in found and not crosses(tensors, name)]
        if foreign and i not in found:
            kind = tensors.dtypes.get(foreign[0], "of no fixed shape")
            found[i] = f"reads {foreign[0]!r}, which is {kind} and comes from the host"
    return found


def _with_reshapes(graph: onnx.GraphProto, reads: Sequence[Sequence[str]], reasons: Mapping[int, str]) -> set[int]:
    """Return the nodes in `reasons` and those that rule 2 adds."""
    made, readers = _makers(graph), _readers(reads)
    outputs = {info.name for info in graph.output}
    along = {i for i, node in enumerate(graph.node) if node.op_type in ALONG and node.domain == ""} - set(reasons)

    def stays(i: int) -> bool:
        node, inside = graph.node[i], along | set(reasons)
        after = [reader for name in node.output for reader in readers.get(name, ())]
        return (
            node.input[0] in made
            and made[node.input[0]] in inside
            and bool(after)
            and inside.issuperset(after)
            and outputs.isdisjoint(node.output)
        )

    while gone := {i for i in along if not stays(i)}:
        along -= gone
    return along | set(reasons)


def _makers(graph: onnx.GraphProto) -> dict[str, int]:
    return {name: i for i, node in enumerate(graph.node) for name in node.output if name}


def _readers(reads: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    readers: dict[str, list[int]] = {}
    for i, names in enumerate(reads):
        for name in names:
            readers.setdefault(name, []).append(i)
    return readers


def _levels(graph: onnx.GraphProto, reads: Sequence[Sequence[str]], hosted: set[int]) -> list[int]:
    """Return the level of every node; the nodes are in topological order."""
    made, levels = _makers(graph), list[int]()
    for i, names in enumerate(reads):
        before = [made[name] for name in names if name in made]
        levels.append(max((levels[j] + ((i in hosted) != (j in hosted)) for j in before), default=int(i in hosted)))
    return levels


def _segments(
    model: onnx.ModelProto,
    tensors: Tensors,
    reasons: Mapping[int, str],
    reads: Sequence[Sequence[str]],
    hosted: set[int],
    levels: Sequence[int],
) -> list[Segment]:
    """Return the segments, found from the last level to the first: what each one reads, earlier ones must make."""
    graph, found = model.graph, list[Segment]()
    wanted = {info.name for info in graph.output} | {
        name for i, names in enumerate(reads) if i not in hosted for name in names
    }
    for level in sorted({levels[i] for i in hosted}, reverse=True):
        own = [i for i in sorted(hosted) if levels[i] == level]
        outputs = [name for i in own for name in graph.node[i].output if name in wanted]
        if not outputs:
            continue
        members, inputs = _members(graph, tensors, reads, set(own), outputs)
        wanted.update(inputs)
        first = next((i for i in members if i in reasons), members[0])
        data = _extracted(model, tensors, reasons, members, inputs, outputs)
        found.append(Segment(graph.node[first].name, level, data, tuple(inputs), tuple(outputs)))
    return found[::-1]


def crosses(tensors: Tensors, name: str) -> bool:
    """Tell whether a tensor is a float32 of a fixed shape."""
    return name in tensors.shapes and tensors.dtypes.get(name) == "float32"


def _members(
    graph: onnx.GraphProto,
    tensors: Tensors,
    reads: Sequence[Sequence[str]],
    own: set[int],
    outputs: Sequence[str],
) -> tuple[list[int], list[str]]:
    """Return the nodes that make `outputs`, back to the border, and the tensors that come in over it."""
    made, members, inputs = _makers(graph), set[int](), dict[str, None]()
    stored = {tensor.name for tensor in graph.initializer}
    waiting = [made[name] for name in outputs]
    while waiting:
        i = waiting.pop()
        if i in members:
            continue
        members.add(i)
        for name in reads[i]:
            computed = name in tensors.constants and name not in stored  # from constants, by the import
            if name in made and (made[name] in own or computed or not crosses(tensors, name)):
                waiting.append(made[name])
            elif name and name not in tensors.constants:
                inputs[name] = None
    return sorted(members), sorted(inputs)


# -- one segment ---------------------------------------------------------------------------------------------------


def _extracted(
    model: onnx.ModelProto,
    tensors: Tensors,
    reasons: Mapping[int, str],
    members: Sequence[int],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> bytes:
    """Return the bytes of a segment; what is no float32 is cast at its border."""
    taken, casts_in = _border(tensors, inputs, True)
    made, casts_out = _border(tensors, outputs, False)
    own = [_copied(model.graph.node[i], reasons.get(i, "")) for i in members]
    inside = {name for node in own for name in node.output} - set(outputs)
    used = {name for node in own for name in (*node.input, *captured(node))}
    graph = helper.make_graph(
        [*casts_in, *own, *casts_out],
        "segment",
        taken,
        made,
        [tensor for tensor in model.graph.initializer if tensor.name in used],
        value_info=[info for info in model.graph.value_info if info.name in inside],
    )
    domains = {node.domain for node in walk(graph.node)} | {""}
    imports = [entry for entry in model.opset_import if entry.domain in domains]
    found = helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)
    return bytes(found.SerializeToString(deterministic=True))


def _copied(node: onnx.NodeProto, reason: str) -> onnx.NodeProto:
    """Return a node with the reason why it is here as its documentation, and nothing else that does not matter."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("metadata_props")
    copy.doc_string = one_line(reason) if reason else ""
    return copy


def _border(
    tensors: Tensors, names: Sequence[str], incoming: bool
) -> tuple[list[onnx.ValueInfoProto], list[onnx.NodeProto]]:
    """Return the float32 ports of tensors, and the casts between them and the tensors."""
    infos, casts = [], []
    for name in names:
        port = name
        if tensors.dtypes.get(name) != "float32":
            port = f"{name}.float32"
            inner = helper.np_dtype_to_tensor_dtype(np.dtype(tensors.dtypes[name]))
            kind = inner if incoming else TensorProto.FLOAT
            ends = ([port], [name]) if incoming else ([name], [port])
            casts.append(helper.make_node("Cast", *ends, name=f"{port}.cast", to=kind))
        infos.append(helper.make_tensor_value_info(port, TensorProto.FLOAT, list(tensors.shapes[name])))
    return infos, casts


# -- what the host may run -----------------------------------------------------------------------------------------


def _refusal(node: onnx.NodeProto, opset: int) -> str:
    """Return why the host cannot run a node, "" where it can."""
    for each in walk([node]):
        if each.domain not in DOMAINS:
            return f"onnxruntime has no operators of domain {each.domain!r}"
        if each.op_type in NOT_ON_HOST:
            return f"{each.op_type}: {NOT_ON_HOST[each.op_type]}"
        if not each.domain and not onnx.defs.has(each.op_type, opset, ""):
            return f"{each.op_type} is no operator of ONNX's opset {opset}"
        if each.domain and any(a.HasField("g") or a.graphs for a in each.attribute):
            return f"{each.op_type} runs a graph of its own"
    return ""


def segment_problems(data: bytes) -> list[str]:
    """Return what is wrong with a segment of unknown origin: it is canonical, sound, bounded and may run here."""
    try:
        model = segment.parse(data)
        model.DiscardUnknownFields()
        if model.SerializeToString(deterministic=True) != data:
            return ["it is not in canonical form"]
        check_structure(model, LIMITS)
        problems = list(_model_problems(model))
        return problems or list(_inferred_problems(model))
    except NnacError as error:
        return [str(error)]
    except Exception as error:  # protobuf and onnx raise about anything on a hostile model
        return [f"it is damaged: {type(error).__name__}: {one_line(error)}"]


def _model_problems(model: onnx.ModelProto) -> Iterator[str]:
    if model.functions:
        yield "it has functions"
    if any(t.data_location == TensorProto.EXTERNAL or t.external_data for t in stored_tensors(model)):
        yield "it has data outside"
    yield from (f"{label(node)}: {why}" for node in model.graph.node if (why := _refusal(node, _opset(model))))
    yield from (f"{label(node)}: {text}" for node in nodes(model) for text in _attribute_problems(node))
    for info in (*model.graph.input, *model.graph.output):
        kind = info.type.tensor_type
        fixed = kind.HasField("shape") and all(0 < dim.dim_value < _LARGEST for dim in kind.shape.dim)
        if kind.elem_type != TensorProto.FLOAT or not fixed:
            yield f"tensor {info.name!r} at its border is no float32 of a fixed shape"


def _attribute_problems(node: onnx.NodeProto) -> Iterator[str]:
    """Yield attributes that onnxruntime may not survive."""
    for a in node.attribute:
        values = [a.i] if a.type == onnx.AttributeProto.INT else list(a.ints)
        lowest = 1 if a.name in _POSITIVE else -_LARGEST
        if node.op_type != "Slice" and not all(lowest <= value < _LARGEST for value in values):
            yield f"attribute {a.name} = {one_line(values, 60)}; allowed {lowest} to {_LARGEST - 1}"


def _inferred_problems(model: onnx.ModelProto) -> Iterator[str]:
    """Yield outputs that have other shapes than ONNX's inference says; what is in between stays within the limits."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    said = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in model.graph.output}
    bare.graph.ClearField("value_info")
    for info in bare.graph.output:
        info.type.tensor_type.ClearField("shape")
    infer(bare, LIMITS)
    for info in bare.graph.output:
        found = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        known = info.type.tensor_type.HasField("shape") and all(found)
        if known and found != said[info.name]:
            yield f"tensor {info.name!r} has shape {found}, it says {said[info.name]}"
