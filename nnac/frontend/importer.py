"""The table of ONNX operators, and the walk that turns a prepared model into a float graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import onnx

from nnac.errors import ModelError, one_line, raise_all
from nnac.frontend import (
    rows_dense,
    rows_elementwise,
    rows_index,
    rows_move,
    rows_norm,
    rows_pairs,
    rows_quant,
    rows_recurrent,
    rows_upscale,
    rows_window,
)
from nnac.frontend.builder import Builder
from nnac.frontend.decompose import REWRITES
from nnac.frontend.fold import FOLDABLE
from nnac.frontend.hosted import REAL, WHOLE, Cut, Segment, cut, refusals
from nnac.frontend.logic import SPLIT
from nnac.frontend.pins import settle
from nnac.frontend.qoperator import ON_REALS, QUANTIZERS, RULES
from nnac.frontend.recognise import COMPARED, COMPARING, PATTERNS, recognise
from nnac.frontend.states import find_states
from nnac.frontend.use import Refused, Row, Tensors, Use
from nnac.graph import Graph, Origin, Value
from nnac.ops import Host, Select
from nnac.ops.host import WHOLE_NUMBERS
from nnac.types import TensorType

_ROOMS = (
    rows_window,
    rows_upscale,
    rows_dense,
    rows_elementwise,
    rows_move,
    rows_index,
    rows_quant,
    rows_recurrent,
    rows_norm,
    rows_pairs,
)
TABLE: dict[str, Row] = dict(sorted((name, row) for room in _ROOMS for name, row in room.ROWS.items()))
KNOWN = TABLE | PATTERNS
"""The same with what `recognise` makes."""

EXPLAINED = (*REWRITES, *COMPARING)
"""Operators without a row of which there is more to say."""
HEADLINE = "the model cannot be compiled:"
_SHOWN = 4
INTEGER = "scales and zero points are constants; then as the operator on reals"
QONNX = "scale, zero point and width are constants, and int8 or uint8 holds the levels"
FOLDED = "what it reads is constant (of Shape and Size: has a fixed shape)"


def supported_operators() -> list[tuple[str, str, tuple[str, ...]]]:
    """Return, per ONNX operator: its name, the nnac operators that it becomes, the sentences of what is supported."""
    rows = {name: (name, ", ".join(op.name for op in row.ops), row.sentences) for name, row in TABLE.items()}
    for name, rewrite in REWRITES.items():
        made = dict.fromkeys(op.name for part in rewrite.parts for op in TABLE[part].ops)
        rows.setdefault(name, (name, ", ".join(made), (rewrite.sentence,) if rewrite.sentence else ()))
    rows |= {name: (name, Select.name, (COMPARED,)) for name in (*COMPARING, *SPLIT)}
    for domain, name in RULES:
        full = f"{domain}.{name}" if domain else name
        rows.setdefault(full, (full, rows[ON_REALS[name]][1], (INTEGER,)))
    rows |= {name: (name, "", (QONNX,)) for name in QUANTIZERS}
    rows["If"] = ("If", "", ("the condition is a constant",))
    for name in FOLDABLE:
        rows.setdefault(name, (name, "", (FOLDED,)))
    return [rows[name] for name in sorted(rows)]


def import_graph(
    model: onnx.ModelProto,
    states: Mapping[str, str] | None = None,
    host: bool = False,
    forced: Callable[[Use], bool] | None = None,
) -> Graph:
    """Return the float graph of a model that `prepare` has returned.

    Args:
        model: the prepared model.
        states: graph inputs and the outputs that become them in the next call; found by their names if left out.
        host: what is not supported becomes host segments (see `nnac.frontend.hosted`).
        forced: nodes that go to the host though they are supported.

    Raises:
        ModelError: what is not supported (with `host`: on the host neither), all at once.
    """
    tensors, uses, builder = _start(model)
    problems = _interface_problems(model.graph, tensors, host)
    refused = [list(_import(builder, use)) for use in uses]
    if not host:
        problems += _unsupported(uses)
        problems += [_named(use, text) for use, texts in zip(uses, refused, strict=True) for text in texts]
    elif any(_reason(use, texts, forced) for use, texts in zip(uses, refused, strict=True)):
        tensors, builder = _shared(model, problems, forced)
    raise_all(ModelError, HEADLINE, problems)
    outputs = [info.name for info in model.graph.output]
    builder.outputs(outputs)
    made = dict(zip(outputs, builder.draft.outputs, strict=True))
    builder.draft.states = {name: made[result] for name, result in find_states(model.graph, states).items()}
    graph = settle(builder.draft.freeze())
    raise_all(ModelError, HEADLINE, _open_integers(graph, tensors))
    return graph


def _start(model: onnx.ModelProto, apart: Collection[str] = ()) -> tuple[Tensors, list[Use], Builder]:
    """Return what is known of the tensors, the nodes with patterns joined (not those named `apart`), an empty graph."""
    tensors = _tensors(model.graph)
    uses = recognise(list(_uses(model, tensors)), [info.name for info in model.graph.output], apart)
    inputs = [info.name for info in model.graph.input if info.name in tensors.shapes]
    builder = Builder(one_line(model.graph.name) or "main", inputs, tensors, [use.name for use in uses])
    return tensors, uses, builder


def _shared(
    model: onnx.ModelProto, problems: list[str], forced: Callable[[Use], bool] | None
) -> tuple[Tensors, Builder]:
    """Return the graph of a model of which the host runs what the NNA cannot; a pattern that it cannot stays apart.

    Raises:
        ModelError: what neither can run, behind the `problems` that are known already.
    """
    apart: set[str] = set()
    while True:
        tensors, uses, builder = _start(model, apart)
        found = [(use, _reason(use, list(_import(builder, use)), forced)) for use in uses]
        patterns = {use.name for use, text in found if text and use.op_type in PATTERNS}
        if not patterns:
            break
        apart |= patterns
    place = {name: i for i, node in enumerate(model.graph.node) for name in node.output if name}
    reasons = {place[_first(use)]: text for use, text in found if text}
    raise_all(ModelError, HEADLINE, [*problems, *refusals(model, reasons)])
    tensors, uses, builder = _start(model, apart)  # without what the first attempt has computed
    if reasons:
        _divide(builder, uses, cut(model, tensors, reasons), place)
    else:
        raise_all(ModelError, HEADLINE, [_named(use, text) for use in uses for text in _import(builder, use)])
    return tensors, builder


def _first(use: Use) -> str:
    """Return the first output that a node has."""
    return next(filter(None, use.outputs))


def _divide(builder: Builder, uses: Sequence[Use], found: Cut, place: Mapping[str, int]) -> None:
    """Add a model that is cut: level by level, nodes to the NNA and segments to the host.

    Raises:
        ModelError: what the operators refuse.
    """
    problems: list[str] = []
    for level in sorted(set(found.levels)):
        for segment in (each for each in found.segments if each.level == level):
            problems += _add_segment(builder, segment)
        if level % 2 == 0:
            own = [use for use in uses if found.levels[place[_first(use)]] == level]
            problems += [_named(use, text) for use in own for text in _import(builder, use)]
    raise_all(ModelError, HEADLINE, problems)


def _add_segment(builder: Builder, segment: Segment) -> Iterator[str]:
    """Add a host segment to the graph, or yield why that is not possible; integers at its border are pinned."""
    op, known = Host(segment.model), builder.tensors
    made = [Value(name, TensorType(known.shapes[name]), Origin(name)) for name in segment.outputs]
    inputs = [builder.value(name) for name in segment.inputs]
    yield from op.problems([builder.draft.values[name].shape for name in inputs])
    builder.draft.add_node(segment.name, op, inputs, *made)
    for onnx_name, name in zip((*segment.inputs, *segment.outputs), (*inputs, *segment.outputs), strict=True):
        if known.dtypes[onnx_name] in WHOLE:
            builder.pin(name, WHOLE_NUMBERS)


def _reason(use: Use, refused: Sequence[str], forced: Callable[[Use], bool] | None) -> str:
    """Return why a node cannot stay on the NNA, "" if it can."""
    if use.op_type not in KNOWN:
        return _absent(use.op_type)
    if refused:
        return "; ".join(refused)
    if not _readable(use):
        name = next(name for name in use.inputs if name and not _is_readable(use, name))
        return f"reads {name!r}, which is {use.tensors.dtypes.get(name, 'of no fixed shape')}"
    return "as asked for" if forced is not None and forced(use) else ""


def _named(use: Use, text: str) -> str:
    return f"{use.op_type} {use.name!r}: {text}"


def _import(builder: Builder, use: Use) -> Iterator[str]:
    """Add one node to the graph, or yield why that is not possible."""
    row = KNOWN.get(use.op_type)
    if row is not None and _readable(use):
        problems: list[str] = []
        try:
            if rows_quant.evaluated(use):
                return
            problems += _problems(use, row)
            if not problems:
                row.handler(builder, use)
        except Refused as refused:
            problems.append(f"{refused} (found {use.described()})")
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # a malformed attribute
            problems.append(f"cannot be read: {one_line(error)} (found {use.described()})")
        yield from problems
    elif row is not None:
        yield from _integer_problems(use)
    builder.stub(use)


def _integer_problems(use: Use) -> Iterator[str]:
    """Yield the computed integers that a node reads though it works on reals."""
    for name in dict.fromkeys(filter(None, use.inputs)):
        dtype = use.tensors.dtypes.get(name)
        if dtype in rows_quant.ACTIVATIONS and name not in use.tensors.constants and dtype not in _dtypes(use):
            yield f"input {name!r} is {dtype}; supported: float32 (put DequantizeLinear in front)"


def _unsupported(uses: Sequence[Use]) -> Iterator[str]:
    """Yield one line per operator that has no row, with the nodes that need it."""
    by_type: dict[str, list[Use]] = {}
    for use in uses:
        by_type.setdefault(use.op_type, []).append(use)
    for op_type in (name for name in by_type if name not in KNOWN):
        first, names = by_type[op_type][0], [use.name for use in by_type[op_type]]
        shown = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else "")
        found = "" if op_type in EXPLAINED else f" (found {first.described()}; `nnac ops` lists all)"
        yield f"{op_type} {shown}: {_absent(op_type)}{found}"


def _absent(op_type: str) -> str:
    """Return what is to be said of an operator that has no row."""
    if op_type in REWRITES:
        return REWRITES[op_type].sentence or "the shapes of all inputs are known"
    if op_type in COMPARING:
        return COMPARED
    near = get_close_matches(op_type, TABLE, 3, 0.5)
    hint = f"; supported with a similar name: {', '.join(near)}" if near else ""
    return f"the operator is not supported{hint}"


def _readable(use: Use) -> bool:
    """Tell whether all inputs have a fixed shape and, if computed, a legal type; if not, that is reported elsewhere."""
    return all(_is_readable(use, name) for name in use.inputs if name)


def _is_readable(use: Use, name: str) -> bool:
    return name in use.tensors.constants or use.tensors.dtypes.get(name) in _dtypes(use)


def _dtypes(use: Use) -> tuple[str, ...]:
    """Return the types that computed tensors of a node may have."""
    return ("float32", *rows_quant.ACTIVATIONS) if use.op_type in rows_quant.INTEGER_OPS else ("float32",)


def _problems(use: Use, row: Row) -> Iterator[str]:
    """Yield what the rules of the row refuse, the first broken rule only: later ones may rely on it."""
    unknown = [name for name in use.attributes if name not in row.attributes]
    if unknown:
        known = ", ".join(row.attributes) or "none"
        yield f"attribute {', '.join(map(repr, unknown))} is not supported (known: {known})"
    typed = list(_type_problems(use))
    yield from typed
    for rule in () if typed else row.rules:
        try:
            holds = rule.holds(use)
        except (Refused, LookupError, ValueError):
            holds = False
        if not holds:
            yield f"{rule.sentence} (found {use.described()})"
            return


def _type_problems(use: Use) -> Iterator[str]:
    """Yield the outputs of a node without a static shape or of another type than float32."""
    if not use.inputs or not use.inputs[0]:
        yield "the first input is missing"
    for name in filter(None, use.outputs):
        if name not in use.tensors.shapes:
            yield f"output {name!r} has no fixed shape"
        elif use.tensors.dtypes[name] not in _dtypes(use):
            yield f"output {name!r} is {use.tensors.dtypes[name]}; supported: {', '.join(_dtypes(use))}"
    if use.inputs and all(not name or name in use.tensors.constants for name in use.inputs):
        yield "all inputs are constants, and this operator is not computed before run time"


def _interface_problems(graph: onnx.GraphProto, tensors: Tensors, host: bool) -> list[str]:
    """Return what is wrong with the inputs and outputs of the whole graph; the host can cast other numbers."""
    allowed = (*REAL, *WHOLE) if host else ("float32", *rows_quant.ACTIVATIONS)
    problems = [
        f"graph input {info.name!r} is {tensors.dtypes.get(info.name, 'no tensor')}; supported: {', '.join(allowed)}"
        for info in graph.input
        if tensors.dtypes.get(info.name) not in allowed
    ]
    inputs = {info.name for info in graph.input}
    for info in graph.output:
        if host and tensors.dtypes.get(info.name) not in allowed:
            problems.append(f"graph output {info.name!r} is no number of a fixed shape, which it must be")
        if info.name in inputs or info.name in tensors.constants:
            what = "a graph input" if info.name in inputs else "a constant"
            problems.append(f"graph output {info.name!r} is {what}; an output must be computed by a node")
    return problems


def _tensors(graph: onnx.GraphProto) -> Tensors:
    """Return shapes, dtypes and constants of the main graph."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = {name: tuple(array.shape) for name, array in constants.items()}
    dtypes = {name: array.dtype.name for name, array in constants.items()}
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        dims = tuple(dim.dim_value for dim in tensor.shape.dim)
        if tensor.HasField("shape") and all(dim >= 1 for dim in dims):
            shapes[info.name], dtypes[info.name] = dims, _dtype(tensor.elem_type)
    return Tensors(shapes, dtypes, constants, {}, _private(graph))


def _private(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the tensors that one node reads, or several that quantize alike, and that are no outputs."""
    readers: dict[str, set[tuple[str, ...]]] = {}
    for node in graph.node:
        key = tuple(node.input[1:]) if node.op_type == "QuantizeLinear" else (node.name, "")
        for name in node.input:
            readers.setdefault(name, set()).add(key)
    outputs = {info.name for info in graph.output}
    return frozenset(name for name, keys in readers.items() if len(keys) == 1 and name not in outputs)


def _open_integers(graph: Graph, tensors: Tensors) -> list[str]:
    """Return the integer tensors that nothing gives a scale."""
    names = {value.origin.name for value in graph.values.values() if value.origin and value.type.quant is None}
    open_ = [name for name in sorted(names) if tensors.dtypes.get(name) in rows_quant.ACTIVATIONS]
    return [f"tensor {name!r} is {tensors.dtypes[name]} and nothing gives it a scale" for name in open_]


def input_dtypes(model: onnx.ModelProto) -> dict[str, str]:
    """Return the dtypes of a prepared model's inputs by name."""
    return {info.name: _dtype(info.type.tensor_type.elem_type) for info in model.graph.input}


def _dtype(code: int) -> str:
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)).name)
    except (KeyError, TypeError):
        return f"of unknown type {code}"


def _uses(model: onnx.ModelProto, tensors: Tensors) -> Iterator[Use]:
    """Yield the nodes of the main graph; `prepare` has given them unique names."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    for node in model.graph.node:
        yield Use.of(node, node.name, opset, tensors)
