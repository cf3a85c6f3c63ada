"""Second moments of layers' inputs over calibration samples: what GPTQ and automatic bit choice weigh errors with.

For a layer that multiplies patches x (K values) with weights (O, K), H = mean of x x^T; an error D of the weights costs
trace(D H D^T) at the output (Frantar et al. 2022, "GPTQ", up to the factor 2). Recurrent weights multiply hidden
values, which the float model does not show; they are computed beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nnac.floatmodel import FloatModel
from nnac.graph import Graph, Node, onnx_states
from nnac.innerstates import seen_hidden
from nnac.ops import Dense, Recurrent
from nnac.ops.conv import INPUT, WEIGHT
from nnac.types import Array

if TYPE_CHECKING:
    import onnx

ROWS = 4096
"""Patches of one sample that are used at most; more are thinned out evenly."""


def second_moments(
    model: onnx.ModelProto, graph: Graph, samples: Iterable[Mapping[str, Array]], layers: Iterable[str]
) -> dict[str, Array]:
    """Return float64 (groups, K, K) mean outer products of the inputs of the named float layers.

    A layer whose input has no float twin in the model is left out.
    """
    wanted = set(layers)
    nodes = [node for node in graph.nodes if node.name in wanted]
    twin = FloatModel(model, _observed(graph, nodes), onnx_states(graph))
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for sample in samples:
        for name, patches in _seen(graph, nodes, twin.run(sample)):
            sums[name] = sums.get(name, 0.0) + np.einsum("gnk,gnl->gkl", patches, patches, optimize=True)
            counts[name] = counts.get(name, 0) + patches.shape[1]
    return {name: total / counts[name] for name, total in sums.items()}


def _observed(graph: Graph, nodes: Sequence[Node]) -> list[str]:
    """Return the ONNX tensors that tell what the layers see: their inputs, or all, from which hidden values follow."""
    everything = any(isinstance(node.op, Recurrent) for node in nodes)
    names = graph.values if everything else [node.inputs[INPUT] for node in nodes]
    return sorted({origin.name for name in names if (origin := graph.values[name].origin) is not None})


def _seen(graph: Graph, nodes: Sequence[Node], values: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Yield the name of each layer and (groups, patches, K) values that its weights multiply, as far as they show."""
    hidden = seen_hidden(graph, values) if any(isinstance(node.op, Recurrent) for node in nodes) else {}
    for node in nodes:
        value = graph.values[node.inputs[INPUT]]
        if node.name in hidden:
            yield node.name, _thinned(hidden[node.name])
        elif value.origin is not None:
            yield node.name, _patches(graph, node, value.origin.from_onnx(values[value.origin.name], value.shape))


def _patches(graph: Graph, node: Node, x: Array) -> Array:
    """Return (groups, patches, K) inputs as the weights' columns see them, thinned to at most `ROWS`."""
    weight = graph.values[node.inputs[WEIGHT]].shape
    x = x.astype(np.float64)
    if isinstance(node.op, Dense):
        return _thinned(x.reshape(1, -1, weight[1]))
    taps = node.op.patches(x, weight[1:3], graph.values[node.output].shape)
    groups, depth = node.op.groups, weight[3]
    flat = taps.reshape(-1, taps.shape[3], groups, depth).transpose(2, 0, 1, 3)
    return _thinned(flat.reshape(groups, flat.shape[1], -1))


def _thinned(patches: Array) -> Array:
    step = -(-patches.shape[1] // ROWS)
    return patches[:, ::step]
