"""Legalize: rewrite what the machine cannot do in one piece into pieces that it can.

Rules, on the integer graph, bit-exact:

1. a pool whose single output row needs more scratchpad than there is works on slices of channels, concatenated again;
2. a layer of 16-bit activations is refused on a machine whose array takes none, or with 2**17 weights or more for an
   output; host segments are refused where there is no host.
"""

from __future__ import annotations

from dataclasses import replace

from nnac.array import NO_INT16
from nnac.contracts import WIDE_TAPS
from nnac.errors import ModelError, TargetError
from nnac.graph import Draft, Graph, Node, Value
from nnac.ops import AveragePool, Concat, Host, MatMul, MaxPool, Recurrent, Slice
from nnac.ops.base import bind, layer_constants
from nnac.targets import Target
from nnac.types import Array, aligned


def legalize(graph: Graph, target: Target, room: int | None = None) -> Graph:
    """Return the graph with oversized pools split along their channels, for `room` bytes of the scratchpad or all.

    Raises:
        TargetError: the array takes no 16-bit activations, but layers have them; or there is no host for segments.
        ModelError: a layer of 16-bit activations has too many weights for an output.
    """
    _refuse_int16(graph, target)
    _refuse_host(graph, target)
    parts = slices(graph, target, room or target.memory["sram"].bytes)
    if not parts:
        return graph
    draft = graph.draft()
    for name, count in parts.items():
        _split(draft, draft.nodes[name], count)
    return draft.freeze()


def slices(graph: Graph, target: Target, room: int) -> dict[str, int]:
    """Return the pools that are too large for `room` bytes of the scratchpad, by name, and their slices of channels."""
    pools = [node for node in graph.nodes if isinstance(node.op, AveragePool | MaxPool)]
    counts = {node.name: _parts(graph, node, target, room) for node in pools}
    return {name: count for name, count in counts.items() if count > 1}


def _refuse_int16(graph: Graph, target: Target) -> None:
    layers = [node for node in graph.nodes if node.op.weighted or isinstance(node.op, MatMul)]
    wide = [n for n in layers if any(graph.values[name].type.dtype == "int16" for name in _array_operands(n))]
    if wide and not target.mac.int16:
        raise TargetError(
            f"target {target.name!r}: {NO_INT16}, but {len(wide)} of {len(layers)} layers have them, {wide[0].name!r} "
            f"the first; compile with int8 activations, or for a machine with mac.int16 = 1 or 2"
        )
    for node in wide:
        taps = max((_taps(graph.constants[name]) for name in layer_constants(node)[:1]), default=0)
        if taps >= WIDE_TAPS:
            raise ModelError(
                f"node {node.name!r} ({node.op.name}): {taps:,} weights for each output; with 16-bit activations fewer "
                f"than {WIDE_TAPS:,} are allowed; compile it with int8 activations"
            )


def _taps(weights: Array) -> int:
    """Return the weights of one output."""
    return int(weights.size // len(weights))


def _refuse_host(graph: Graph, target: Target) -> None:
    names = [node.name for node in graph.nodes if isinstance(node.op, Host)]
    if names and target.host is None:
        raise TargetError(
            f"target {target.name!r} has no section [host], but {len(names)} parts of the model need one, {names[0]!r} "
            f"the first; add it (`nnac targets nna8` shows one), or see with --host forbid what would have to change"
        )


def _array_operands(node: Node) -> tuple[str, ...]:
    """Return the activations that the array multiplies; a recurrent layer's have the width of its result."""
    if isinstance(node.op, Recurrent):
        return (node.output,)
    return node.inputs[: node.op.operands]


def _parts(graph: Graph, node: Node, target: Target, room: int) -> int:
    """Return into how many slices of channels the pool must fall so that input and output of one row fit."""
    bound = bind(graph, node, target.arithmetic)
    _, height, width, channels = bound.inputs[0].shape
    taken, made = width * bound.inputs[0].itemsize, bound.output.shape[2] * bound.output.itemsize
    rows = min(height, node.op.dilations[0] * (node.op.kernel[0] - 1) + 1)
    for parts in range(1, channels + 1):
        share = -(-channels // parts)
        staged = min(2 * aligned(rows * taken * share), aligned(height * taken * share))
        if staged + 2 * aligned(made * share) <= (room if parts == 1 else room // 2):
            return parts
    return 1


def _split(draft: Draft, node: Node, parts: int) -> None:
    source, result = draft.values[node.inputs[0]], draft.values[node.output]
    channels, pieces = source.shape[3], []
    for index, first in enumerate(range(0, channels, -(-channels // parts))):
        count = min(-(-channels // parts), channels - first)
        cut = Slice((0, 0, 0, first), (1, 1, 1, 1), (*source.shape[:3], count))
        taken = _like(draft, source, f"{node.output}.in{index}", (*source.shape[:3], count))
        made = _like(draft, result, f"{node.output}.out{index}", (*result.shape[:3], count))
        draft.add_node(f"{node.name}.slice{index}", cut, [source.name], taken)
        draft.add_node(f"{node.name}.part{index}", node.op, [taken.name], made)
        pieces.append(made.name)
    draft.update(node, op=Concat(3), inputs=tuple(pieces))


def _like(draft: Draft, value: Value, stem: str, shape: tuple[int, ...]) -> Value:
    return Value(draft.fresh(stem), replace(value.type, shape=shape))
