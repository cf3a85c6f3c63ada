"""Fit: whether the machine can compute with the scales of an integer graph, those that the model brings above all.

Rules:

1. no ratio that an operator multiplies with (a product of input scales over the output's scale, for most) reaches
   what multipliers hold, 2**31 for most; machines of arithmetic onnx hold what float32 does;
2. a machine of power-of-two scales gets nothing else; one without scales per channel gets one scale per layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import frexp, prod

import numpy as np

from nnac.errors import ModelError, raise_all
from nnac.graph import Graph, Node
from nnac.norms import GAIN_BITS, product_bits
from nnac.numerics import MULTIPLIER_LIMIT, Rounding
from nnac.ops import Activation, Conv, Dense, Div, Extreme, MatMul, Mul, Norm, Recurrent, Select, Softmax
from nnac.ops.conv import INPUT, SCALE
from nnac.ops.norm import GAIN
from nnac.stages import SHARING
from nnac.targets import Arithmetic

INTEGER = MatMul | Norm | Div | Extreme | Select
"""Operators that have no float32 form in any arithmetic."""
SHOWN = 8
SINGLE = (2.0**-126, 2.0**127)
"""What a float32 ratio may be, without loss and overflow."""


def fit(graph: Graph, law: Arithmetic) -> Graph:
    """Return the integer graph unchanged.

    Raises:
        ModelError: with the nodes whose scales the machine cannot compute with.
    """
    problems = [problem for node in graph.nodes for problem in _problems(graph, node, law)]
    raise_all(ModelError, "the machine cannot compute with these scales:", problems[:SHOWN])
    return graph


def _problems(graph: Graph, node: Node, law: Arithmetic) -> Iterator[str]:
    if node.op.name in SHARING or isinstance(node.op, Activation | Recurrent):
        return
    where, scales = f"node {node.name!r} ({node.op.name})", _scales(graph, node)
    output = graph.values[node.output].type.quant
    assert output is not None
    ratios = _ratios(graph, node, scales, output.scale)
    single = law.mode == Rounding.ONNX and not isinstance(node.op, INTEGER)
    low, high = SINGLE if single else (0.0, _limit(graph, node))
    if not all(low <= ratio < high for ratio in ratios):
        yield f"{where}: input scales {_listed(scales)} over the output's {output.scale:g}"
    odd = [scale for scale in (*scales, output.scale) if law.power_of_two_scales and frexp(scale)[0] != 0.5]
    if odd:
        yield f"{where}: scales {_listed(odd)}; this machine's are powers of two"
    if len(node.inputs) > SCALE and isinstance(node.op, Conv | Dense) and not law.per_channel:
        weights = graph.constants[node.inputs[SCALE]]
        if (weights != weights[0]).any():
            yield f"{where}: {len(np.unique(weights))} weight scales; this machine has one per layer"


def _ratios(graph: Graph, node: Node, scales: list[float], output: float) -> list[float]:
    """Return what the machine multiplies with."""
    match node.op:
        case Conv() | Dense() | Mul():
            return [prod(scales) / output]
        case MatMul(factor=factor):
            return [factor * prod(scales) / output]
        case Div():
            return [scales[0] / scales[1] / output]
        case Select():
            return [scale / output for scale in scales[2:]]
        case Softmax():
            return [1 / output]
        case Norm():
            return [float(np.abs(graph.constants[node.inputs[GAIN]]).max()) / output]
    return [scale / output for scale in scales]


def _limit(graph: Graph, node: Node) -> float:
    """Return what no ratio of a node may reach."""
    if isinstance(node.op, MatMul):
        wide = sum(graph.values[name].type.dtype == "int16" for name in node.inputs)
        return float(1 << product_bits(wide))
    return float(1 << GAIN_BITS if isinstance(node.op, Norm) else MULTIPLIER_LIMIT)


def _scales(graph: Graph, node: Node) -> list[float]:
    """Return the scales of the operands; of a layer that of the input and the largest of the weights."""
    names = [node.inputs[INPUT]] if isinstance(node.op, Conv | Dense) else list(graph.operands(node))
    quants = [graph.values[name].type.quant for name in names]
    found = [quant.scale for quant in quants if quant is not None]
    return found + ([float(graph.constants[node.inputs[SCALE]].max())] if isinstance(node.op, Conv | Dense) else [])


def _listed(scales: list[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in scales)
