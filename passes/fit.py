"""Fit: whether the machine can compute with the scales of an integer graph, those that the model brings above all.

Rules:

1. no product of input scales over the output's scale reaches 2**31, what multipliers hold; machines of arithmetic onnx
   hold what float32 does;
2. a machine of power-of-two scales gets nothing else; one without scales per channel gets one scale per layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import frexp, prod

import numpy as np

from nnac.errors import ModelError, raise_all
from nnac.graph import Graph, Node
from nnac.numerics import MULTIPLIER_LIMIT, Rounding
from nnac.ops import AveragePool, Conv, Dense, Extreme, MatMul, Mul, Select, Sum
from nnac.ops.conv import INPUT, SCALE
from nnac.stages import SHARING
from nnac.targets import Arithmetic

PRODUCTS = Conv | Dense | MatMul | Mul
"""Operators whose ratio is the product of their operands' scales over the result's."""
TERMS = AveragePool | Extreme | Select | Sum
"""Operators that have a ratio per operand."""
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
    if node.op.name in SHARING or not isinstance(node.op, PRODUCTS | TERMS):
        return
    where, scales = f"node {node.name!r} ({node.op.name})", _scales(graph, node)
    output = graph.values[node.output].type.quant
    assert output is not None
    products = [prod(scales)] if isinstance(node.op, PRODUCTS) else scales
    ratios = [product / output.scale for product in products]
    single = law.mode == Rounding.ONNX
    low, high = SINGLE if single else (0.0, float(MULTIPLIER_LIMIT))
    if not all(low <= ratio < high for ratio in ratios):
        yield f"{where}: input scales {_listed(scales)} over the output's {output.scale:g}"
    odd = [scale for scale in (*scales, output.scale) if law.power_of_two_scales and frexp(scale)[0] != 0.5]
    if odd:
        yield f"{where}: scales {_listed(odd)}; this machine's are powers of two"
    if len(node.inputs) > SCALE and isinstance(node.op, Conv | Dense) and not law.per_channel:
        weights = graph.constants[node.inputs[SCALE]]
        if (weights != weights[0]).any():
            yield f"{where}: {len(np.unique(weights))} weight scales; this machine has one per layer"


def _scales(graph: Graph, node: Node) -> list[float]:
    """Return the scales of the operands; of a layer that of the input and the largest of the weights."""
    names = [node.inputs[INPUT]] if isinstance(node.op, Conv | Dense) else list(graph.operands(node))
    quants = [graph.values[name].type.quant for name in names]
    found = [quant.scale for quant in quants if quant is not None]
    return found + ([float(graph.constants[node.inputs[SCALE]].max())] if isinstance(node.op, Conv | Dense) else [])


def _listed(scales: list[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in scales)
