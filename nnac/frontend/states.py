"""States: which graph outputs a device keeps for the next call, and the graph inputs where they are found then."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx

from nnac.errors import ModelError, raise_all

_ENDING = re.compile(
    r"[_.\-/]?(?:in|out|input|output|init|initial|prev|previous|old|next|new|cur|past|present|[0ntN])$"
)

Described = dict[str, tuple[int, tuple[int, ...]]]


def find_states(graph: onnx.GraphProto, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return state input -> output of a prepared model's main graph.

    An input and an output are a state where their types are equal and their names are, but for an ending that says
    which of both it is (h0 and hn, cache and cache_out, state and stateN), nothing else would fit as well, and some
    input remains that is no state.

    Args:
        graph: with static shapes.
        given: pairs instead; empty for a model without states.

    Raises:
        ModelError: a given pair does not exist, differs in type, or a tensor is in two pairs.
    """
    inputs, outputs = _described(graph.input), _described(graph.output)
    if given is None:
        return _guessed(inputs, outputs)
    raise_all(ModelError, "the states do not fit the model:", list(_problems(given, inputs, outputs)))
    return dict(given)


def _described(infos: object) -> Described:
    return {
        info.name: (
            info.type.tensor_type.elem_type,
            tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim),
        )
        for info in infos  # type: ignore[attr-defined]
    }


def _guessed(inputs: Described, outputs: Described) -> dict[str, str]:
    found = {}
    for name, kind in inputs.items():
        partners = [other for other, type_ in outputs.items() if type_ == kind and root(other) == root(name)]
        rivals = [other for other, type_ in inputs.items() if type_ == kind and root(other) == root(name)]
        if root(name) and len(partners) == len(rivals) == 1:
            found[name] = partners[0]
    return found if len(found) < len(inputs) else {}


def root(name: str) -> str:
    """Return a tensor's name without the ending that tells a state's old value from its new one."""
    return _ENDING.sub("", name.removesuffix(":0"))


def _problems(given: Mapping[str, str], inputs: Described, outputs: Described) -> Iterator[str]:
    for source, result in given.items():
        if source not in inputs:
            yield f"{source!r} is no input (the model has {', '.join(map(repr, inputs))})"
        if result not in outputs:
            yield f"{result!r} is no output (the model has {', '.join(map(repr, outputs))})"
        if source in inputs and result in outputs and inputs[source] != outputs[result]:
            shapes = f"{list(inputs[source][1])} and {list(outputs[result][1])}"
            yield f"{source!r} and {result!r} differ in type: shapes {shapes}"
    for result in outputs:
        if (count := list(given.values()).count(result)) > 1:
            yield f"{result!r} is the next value of {count} states"
