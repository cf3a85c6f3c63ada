"""Weights that do not fit the inputs that they meet: shape inference lets them pass, and no engine can run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any

import onnx
from onnx import helper

from nnac.frontend.walk import label

Shapes = tuple[tuple[int, ...], ...]
Condition = tuple[Callable[[Shapes, Mapping[str, Any]], bool], str]


def _recurrent(gates: int) -> tuple[Condition, ...]:
    return (
        (
            lambda s, a: s[1][2] == s[0][2] and s[2][1] == gates * s[2][2] == s[1][1],
            f"the weights are (directions, {gates} * hidden, inputs) and (directions, {gates} * hidden, hidden)",
        ),
    )


def _per_channel(s: Shapes, a: Mapping[str, Any]) -> bool:
    return all(prod(shape) == s[0][1] for shape in s[1:])


RECURRENT = ("LSTM", "GRU", "RNN")
CONDITIONS: Mapping[str, tuple[Condition, ...]] = {
    "Conv": (
        (
            lambda s, a: s[0][1] == s[1][1] * a.get("group", 1) and s[1][0] % a.get("group", 1) == 0,
            "the input has group times as many channels as a kernel, and group divides the kernels",
        ),
        (lambda s, a: tuple(a.get("kernel_shape", s[1][2:])) == s[1][2:], "kernel_shape is that of the weights"),
        (lambda s, a: len(s) < 3 or s[2] == s[1][:1], "the bias has one value per output channel"),
    ),
    "ConvTranspose": (
        (
            lambda s, a: s[0][1] == s[1][0] and s[1][0] % a.get("group", 1) == 0,
            "weights have one kernel per input channel",
        ),
        (
            lambda s, a: len(s) < 3 or s[2] == (s[1][1] * a.get("group", 1),),
            "the bias has one value per output channel",
        ),
    ),
    "InstanceNormalization": ((_per_channel, "scale and bias have one value per channel"),),
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
}


def misfits(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the nodes of a graph with inferred shapes whose weights or initial states do not fit."""
    infos = (*graph.input, *graph.value_info, *graph.output)
    shapes = {info.name: tuple(d.dim_value for d in info.type.tensor_type.shape.dim) for info in infos}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in (node for node in graph.node if not node.domain and node.op_type in CONDITIONS):
        yield from (f"{label(node)}: {text}" for text in (*_weights(node, shapes), *_states(node, shapes)))


def _weights(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    names = [name for name in node.input[:3] if name]
    if not all(0 not in shapes.get(name, (0,)) for name in names):
        return
    found = tuple(shapes[name] for name in names)
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    yield from (f"{text} (found {_listed(found, given)})" for text in _broken(node, found, given))


def _states(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield initial states of another width: what `torch.onnx.export(dynamo=True)` makes of an LSTM with proj_size."""
    if node.op_type not in RECURRENT or not shapes.get(node.input[2]):
        return
    hidden, found = shapes[node.input[2]][-1], [shapes[name] for name in node.input[5:7] if shapes.get(name)]
    if any(shape[-1] != hidden for shape in found):
        yield (
            f"its initial states have shapes {_shown(found)}, allowed: (directions, batch, {hidden}); an LSTM that "
            "lost its projection on export (torch's proj_size) is written as LSTMCell and Linear"
        )


def _broken(node: onnx.NodeProto, found: Shapes, given: Mapping[str, Any]) -> Iterator[str]:
    for holds, sentence in CONDITIONS[node.op_type]:
        try:
            fits = holds(found, given)
        except (ArithmeticError, LookupError, TypeError):
            fits = False
        if not fits:
            yield sentence
            return


def _listed(found: Shapes, given: Mapping[str, Any]) -> str:
    group = f"group={given['group']}, " if "group" in given else ""
    return f"{group}input shapes {_shown(found)}"


def _shown(shapes: Iterable[tuple[int, ...]]) -> str:
    return " ".join(str(list(shape)) for shape in shapes)
