"""What an operator's output would be without any rounding: one element of an integer graph, as an exact rational.

Values are in steps of the output, its zero point included: the correct integer is the nearest one. Functions that have
no rational value (tables, softmax) are given in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from nnac.graph import Node
from nnac.numerics import SOFTMAX_ONE, SOFTMAX_WIDE_ONE
from nnac.ops import Activation, AveragePool, Conv, Dense, Mul, Softmax, Sum
from nnac.ops.base import Bound, clamp_limits
from nnac.ops.conv import BIAS, INPUT, SCALE, WEIGHT
from nnac.ops.functions import FUNCTIONS
from nnac.types import Array

FLOAT32 = Fraction(1, 1 << 24)
"""Relative error of one float32 rounding."""
ROUNDINGS = 8
"""Of a float32 operator outside its sums: dequantize, scale, divide, with room."""
FUNCTION = Fraction(1, 1 << 12)
"""Absolute error, in steps, that an implementation of a function (exponential, tanh) in float32 may have."""
ENCODED = Fraction(1, 1 << 20)
"""What multipliers of 31 bits may lose, in steps of 8 bits."""
MULTIPLIER_16 = 1 << 22
"""Sums over int16 have multipliers of 23 bits at least 22 of which count: the share of the value that they may lose."""
Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exact:
    """One element of an output.

    Attributes:
        value: in steps of the output, clamped as the operator clamps, not saturated.
        blur: how far off, in steps, the same computed in float32 may be.
        coarse: how far off, in steps, the integer algorithm may be before it rounds.
    """

    value: Fraction
    blur: Fraction
    coarse: Fraction = ENCODED


def exact(node: Node, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact | None:
    """Return the exact element of a node's output for integer inputs, or None for an operator without a rule here."""
    rule = _RULES.get(type(node.op))
    if rule is None:
        return None
    found = rule(node.op, bound, inputs, index)
    low, high = clamp_limits(getattr(node.op, "clamp", (-np.inf, np.inf)), bound.quant)
    return replace(found, value=min(max(found.value, Fraction(low)), Fraction(high)))


def _conv(op: Conv, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    n, row, column, channel = index
    x, weights = inputs[INPUT][n].astype(np.int64) - bound.input_quant(INPUT).zero_point, inputs[WEIGHT][channel]
    depth = weights.shape[-1]
    group = channel // (len(inputs[WEIGHT]) // op.groups)
    terms = []
    for i in range(weights.shape[0]):
        for j in range(weights.shape[1]):
            h = row * op.strides[0] - op.pads[0] + i * op.dilations[0]
            w = column * op.strides[1] - op.pads[1] + j * op.dilations[1]
            if 0 <= h < x.shape[0] and 0 <= w < x.shape[1]:
                terms.append(x[h, w, group * depth : (group + 1) * depth] * weights[i, j].astype(np.int64))
    return _sum_of_products(bound, np.concatenate(terms or [np.zeros(1, np.int64)]), channel)


def _dense(op: Dense, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    x = inputs[INPUT][index[:-1]].astype(np.int64) - bound.input_quant(INPUT).zero_point
    return _sum_of_products(bound, x * inputs[WEIGHT][index[-1]].astype(np.int64), index[-1])


def _sum_of_products(bound: Bound, terms: Array, channel: int) -> Exact:
    bias = int(bound.constants[BIAS][channel])
    ratio = _scale(bound, INPUT) * Fraction(float(bound.constants[SCALE][channel])) / Fraction(bound.quant.scale)
    spread = (int(np.abs(terms).sum()) + abs(bias)) * ratio
    rounded = ROUNDINGS + Fraction(terms.size, 8)  # sums run in 8 lanes or more
    return _element(bound, (int(terms.sum()) + bias) * ratio, spread * rounded * FLOAT32)


def _sum(op: Sum, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    terms = [sign * _operand(bound, inputs, i, index) for i, sign in enumerate(op.signs)]
    return _element(bound, sum(terms, Fraction()), sum(map(abs, terms), Fraction()) * ROUNDINGS * FLOAT32)


def _mul(op: Mul, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    product = _operand(bound, inputs, 0, index) * _operand(bound, inputs, 1, index) * Fraction(bound.quant.scale)
    return _element(bound, product, abs(product) * ROUNDINGS * FLOAT32)


def _average(op: AveragePool, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    x = inputs[0].astype(np.int64) - bound.input_quant(0).zero_point
    taps = op.windows(x, bound.output.shape, 0)[index]
    ratio = _scale(bound, 0) / Fraction(bound.quant.scale) / int(op.counts(bound)[0, index[1], index[2], 0])
    spread = int(np.abs(taps).sum()) * ratio
    return _element(bound, int(taps.sum()) * ratio, spread * (ROUNDINGS + taps.size) * FLOAT32)


def _activation(op: Activation, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    real = (int(inputs[0][index]) - bound.input_quant(0).zero_point) * _scale(bound, 0)
    if op.kind == "identity":
        value = real / Fraction(bound.quant.scale)
        return _element(bound, value, abs(value) * ROUNDINGS * FLOAT32)
    if op.kind == "prelu":
        slopes = bound.constants[1].reshape(-1)
        slope = Fraction(float(slopes[index[-1] if slopes.size > 1 else 0]))
        value = (real * slope if real < 0 else real) / Fraction(bound.quant.scale)
    else:
        value = Fraction(float(FUNCTIONS[op.kind](np.float64(real), *op.params))) / Fraction(bound.quant.scale)
    return _element(bound, value, _function_blur(value))


def _softmax(op: Softmax, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    row = inputs[0][index[:-1]].astype(np.float64)
    powers = np.exp((row - row.max()) * bound.input_quant(0).scale)
    share = Fraction(float(powers[index[-1]] / powers.sum()))
    value = share / Fraction(bound.quant.scale)
    found = _element(bound, value, _function_blur(value))
    wide = bound.input_quant(0).bits == 16  # an exponential is then a product of two entries
    error = Fraction(1, SOFTMAX_WIDE_ONE) if wide else Fraction(1, 2 * SOFTMAX_ONE)
    return replace(found, coarse=found.coarse + (1 + row.size * share) * error / Fraction(bound.quant.scale))


def _function_blur(value: Fraction) -> Fraction:
    """Return how far off a function in float32 may be: an absolute error, or a relative one of large values."""
    return max(FUNCTION, abs(value) * 32 * FLOAT32)


def _element(bound: Bound, value: Fraction, blur: Fraction) -> Exact:
    """Return an element from its value without zero point, which float32 may have added too."""
    zero = bound.quant.zero_point
    coarse = ENCODED + (abs(value) / MULTIPLIER_16 if max(bound.quant.bits, bound.input_quant(0).bits) == 16 else 0)
    return Exact(value + zero, blur + (abs(value) + abs(zero)) * 2 * FLOAT32, coarse)


def _operand(bound: Bound, inputs: Sequence[Array], which: int, index: Index) -> Fraction:
    """Return an operand's entry, which broadcasts, in steps of the output."""
    entry = int(np.broadcast_to(inputs[which], bound.output.shape)[index])
    return (entry - bound.input_quant(which).zero_point) * _scale(bound, which) / Fraction(bound.quant.scale)


def _scale(bound: Bound, which: int) -> Fraction:
    return Fraction(bound.input_quant(which).scale)


_RULES: dict[type, Callable[..., Exact]] = {
    Conv: _conv,
    Dense: _dense,
    Sum: _sum,
    Mul: _mul,
    AveragePool: _average,
    Activation: _activation,
    Softmax: _softmax,
}
