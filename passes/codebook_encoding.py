"""Codebook encoding: weights that are not clustered get at most 2 ** bits levels, as the plan says.

Rules, on the float graph:

1. a layer with 8 bits keeps its weights for `passes.quantize`; one that centroid folding has encoded stays as it is;
2. a table is fitted to the layer's weights (or to each group of output channels) by the generator, in int8 levels with
   the scale, and the assigner gives each weight a level; GPTQ weighs errors with the inputs' second moments;
3. exact zeros, where a tenth of the weights or more are zero, keep a level of their own;
4. under a budget, bits are taken from the layers where they cost least at the output, one at a time.

This pass changes values: it is the one step behind the float graph that is not exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf, log10
from typing import TYPE_CHECKING

import numpy as np

from nnac.errors import ModelError
from nnac.graph import Graph, Node
from nnac.ops.base import layer_constants
from nnac.passes.centroid_folding import put_encoded, weighted_layers
from nnac.targets import Arithmetic
from nnac.types import Array
from nnac.weights.choice import Choice, WeightPlan

if TYPE_CHECKING:
    from nnac.weights.codebooks import Encoded

ZEROS = 0.1
AUTO_BITS = (8, 7, 6, 5, 4, 3, 2)


def codebook_encoding(graph: Graph, plan: WeightPlan, law: Arithmetic, moments: Mapping[str, Array]) -> Graph:
    """Return the graph with encoded weights.

    Args:
        graph: float, after `centroid_folding`.
        plan: bits, generator and assigner per layer.
        law: the machine's arithmetic.
        moments: (groups, K, K) per layer name, for GPTQ and budgets (see `nnac.weights.moments`).

    Raises:
        ModelError: a generator does not offer the bits, or a budget cannot be met (says the closest).
    """
    draft = graph.draft()
    choices = _choices(graph, plan, law, moments)
    for node in weighted_layers(graph):
        choice = choices[node.name]
        if choice.bits < 8:
            put_encoded(draft, node, _encoded(graph, node, choice, law, moments.get(node.name)))
    return draft.freeze()


def needs_moments(graph: Graph, plan: WeightPlan) -> list[str]:
    """Return the layers whose inputs' second moments the plan asks for."""
    layers = weighted_layers(graph)
    if plan.budget:
        return [node.name for node in layers]
    return [node.name for node in layers if plan.choice(node.name, node.op.name).assigner == "gptq"]


def _encoded(graph: Graph, node: Node, choice: Choice, law: Arithmetic, moment: Array | None) -> Encoded:
    from nnac.weights.codebooks import encode  # compiles kernels, which plain int8 does not need
    from nnac.weights.generators import find

    weight = graph.constants[layer_constants(node)[0]]
    if choice.assigner == "gptq" and moment is None:
        raise ModelError(
            f"node {node.name!r}: gptq needs the layer's inputs, which the float model does not show; "
            f"use the assigner 'nearest'"
        )
    try:
        zero = bool((weight == 0).mean() >= ZEROS) and find(choice.generator).holds_zero(choice.bits)
        return encode(
            weight,
            choice.bits,
            choice.generator,
            choice.assigner,
            groups=choice.groups,
            per_channel=law.per_channel,
            zero=zero,
            hessian=moment if choice.assigner == "gptq" else None,
            power_of_two=law.power_of_two_scales,
        )
    except ModelError as error:
        raise ModelError(f"node {node.name!r}: {error}") from None


# -- budgets -------------------------------------------------------------------------------------------------------


def _choices(graph: Graph, plan: WeightPlan, law: Arithmetic, moments: Mapping[str, Array]) -> dict[str, Choice]:
    layers = weighted_layers(graph)
    choices = {node.name: plan.choice(node.name, node.op.name) for node in layers}
    return choices if plan.budget is None else _under_budget(graph, layers, choices, plan.budget, law, moments)


def _under_budget(
    graph: Graph,
    layers: list[Node],
    choices: dict[str, Choice],
    budget: tuple[str, float],
    law: Arithmetic,
    moments: Mapping[str, Array],
) -> dict[str, Choice]:
    """Return choices that keep the budget: greedily, the step that saves most bytes for the noise that it adds.

    Bytes are those of fixed-width indices with their table; layers that are encoded already count, too.
    """
    kind, limit = budget
    fixed = _encoded_bytes(graph)
    noise = {node.name: _noises(graph, node, choices[node.name], law, moments.get(node.name)) for node in layers}
    size = {node.name: graph.constants[layer_constants(node)[0]].size for node in layers}
    level = dict.fromkeys(noise, 0)

    def total_bytes() -> float:
        return fixed + sum(_nominal_bytes(size[name], AUTO_BITS[at]) for name, at in level.items())

    def total_db() -> float:
        total = sum(noise[name][at] for name, at in level.items())
        return -10 * log10(total) if total > 0 else inf

    while not (kind == "bytes" and total_bytes() <= limit):
        open_ = [name for name, at in level.items() if at + 1 < len(AUTO_BITS)]
        if not open_:
            break
        name = min(open_, key=lambda n: ((noise[n][level[n] + 1] - noise[n][level[n]]) / size[n], n))
        level[name] += 1
        if kind == "db" and total_db() < limit:
            level[name] -= 1
            break
    if kind == "bytes" and total_bytes() > limit:
        raise ModelError(
            f"weights auto:{limit:.0f}: the smallest that {AUTO_BITS[-1]} bits everywhere give is "
            f"{total_bytes():.0f} bytes"
        )
    if kind == "db" and total_db() < limit:
        raise ModelError(f"weights auto:{limit:g}dB: the closest is {total_db():.1f} dB, with 8 bits everywhere")
    return {name: replace(choices[name], bits=AUTO_BITS[at]) for name, at in level.items()}


def _nominal_bytes(weights: int, bits: int) -> int:
    """Return the bytes of indices of so many bits and their table; int8 has none."""
    return weights if bits == 8 else -(-weights * bits // 8) + 2**bits


def _encoded_bytes(graph: Graph) -> int:
    """Return the nominal bytes of the layers that are encoded already."""
    weights = [graph.constants[layer_constants(node)[0]] for node in graph.nodes if len(layer_constants(node)) > 2]
    return sum(_nominal_bytes(array.size, max(1, (len(np.unique(array)) - 1).bit_length())) for array in weights)


def _noises(graph: Graph, node: Node, choice: Choice, law: Arithmetic, moment: Array | None) -> list[float]:
    """Return the noise at the layer's output relative to its signal, for each number of `AUTO_BITS`."""
    weight = graph.constants[layer_constants(node)[0]].astype(np.float64)
    flat = weight.reshape(len(weight), -1)
    signal = _power(flat, moment)
    noises = []
    for bits in AUTO_BITS:
        plain = replace(choice, bits=bits, generator="lloyd_max", assigner="nearest")
        encoded = _encoded(graph, node, plain, law, None)
        decoded = encoded.weights.reshape(flat.shape) * encoded.scale.astype(np.float64)[:, None]
        noises.append(_power(flat - decoded, moment) / signal if signal > 0 else 0.0)
    return noises


def _power(weight: Array, moment: Array | None) -> float:
    """Return trace(W H W^T) for (O, K) weights; H is the identity where it is not known."""
    if moment is None:
        return float((weight**2).sum())
    per_group = weight.reshape(len(moment), -1, weight.shape[1])
    return float(np.einsum("gok,gkl,gol->", per_group, moment, per_group, optimize=True))
