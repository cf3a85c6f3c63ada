"""What an operator's output would be without any rounding: one element of an integer graph, as an exact rational.

Values are in steps of the output, its zero point included: the correct integer is the nearest one. Functions that have
no rational value (tables, softmax, norms) are given in float64.

How far the integer algorithm may be off before it rounds follows from the law (`numerics`, `norms`):

- a multiplier of b bits meets its ratio to one part in 2**b (`encode_ratio`), a sum's to 2**-31 of the largest ratio;
- softmax: entries of the table are off by d_i, at most half a unit each (less where the exponential is below that, and
  nothing for exp(0)). A quotient p / S becomes (p + d) / (S + D) with D the sum of all d, which is off by
  (d - p / S * D) / (S + D); for int16 an exponential is the product of two entries;
- lines between knots: the distance of the line from the function, and half a unit for the rounding of the knots;
- a norm: 2**-30 for the inverse root and a half unit each for gain and offset; a root is cut off at 2**-13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor, prod, sqrt

import numpy as np

from nnac.graph import Node
from nnac.norms import product_bits
from nnac.numerics import (
    INT16_HIGH,
    INT16_LOW,
    MULTIPLIER_BITS,
    ROOT_FRACTION,
    SOFTMAX_FINE_ONE,
    SOFTMAX_ONE,
    SOFTMAX_WIDE_ONE,
    WIDE_MULTIPLIER_BITS,
    average_bits,
)
from nnac.ops import Activation, AveragePool, Conv, Dense, Div, Extreme, Magnitude, MatMul, Mul, Norm, Softmax, Sum
from nnac.ops.base import Bound, clamp_limits
from nnac.ops.conv import BIAS, INPUT, SCALE, WEIGHT
from nnac.ops.functions import FUNCTIONS
from nnac.ops.norm import GAIN, OFFSET
from nnac.types import Array

FLOAT32 = Fraction(1, 1 << 24)
"""Relative error of one float32 rounding."""
ROUNDINGS = 8
"""Of a float32 operator outside its sums: dequantize, scale, divide, with room."""
FUNCTION = Fraction(1, 1 << 12)
"""Absolute error, in steps, that an implementation of a function (exponential, tanh) in float32 may have."""
TINY = Fraction(1, 1 << 30)
"""Steps that a multiplier behind a shift of 62, or float64 here, may lose."""
FAR = 1 << 100
"""Takes any real number far behind the largest integer."""
LANES = 8
"""A float32 sum of n terms runs in as many lanes or more: n / 8 roundings."""
Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exact:
    """One element of an output.

    Attributes:
        value: in steps of the output, clamped as the operator clamps, not saturated.
        blur: how far off, in steps, the same computed in float32 may be.
        coarse: how far off, in steps, the integer algorithm may be before it rounds.
        gains: per input, by how many steps the value moves at most for each step that the input is off.
        other: the value by onnxruntime's integer operator, where that is another.
        defined: whether the reals have a value at all (0 / 0 has none).
    """

    value: Fraction
    blur: Fraction
    coarse: Fraction
    gains: tuple[Fraction, ...]
    other: Fraction | None = None
    defined: bool = True


def exact(node: Node, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact | None:
    """Return the exact element of a node's output for integer inputs, or None where there is none."""
    rule = _RULES.get(type(node.op))
    found = rule(node.op, bound, inputs, index) if rule is not None else None
    if found is None:
        return None
    low, high = clamp_limits(getattr(node.op, "clamp", (-np.inf, np.inf)), bound.quant)
    return replace(found, value=min(max(found.value, Fraction(low)), Fraction(high)))


def _element(
    bound: Bound, value: Fraction, blur: Fraction, coarse: Fraction, gains: Sequence[Fraction | int] = ()
) -> Exact:
    """Return an element from its value without zero point, which float32 may have added too."""
    zero = bound.quant.zero_point
    return Exact(
        value + zero, blur + (abs(value) + abs(zero)) * 2 * FLOAT32, coarse + TINY, tuple(map(Fraction, gains))
    )


def _met(value: Fraction, bits: int = MULTIPLIER_BITS) -> Fraction:
    """Return what a multiplier of so many bits may lose of a value."""
    return abs(value) / (1 << bits)


# -- sums of products ----------------------------------------------------------------------------------------------


def _conv(op: Conv, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    n, row, column, channel = index
    x, weights = _entries(bound, inputs, INPUT)[n], inputs[WEIGHT][channel].astype(np.int64)
    depth = weights.shape[-1]
    group = channel // (len(inputs[WEIGHT]) // op.groups)
    terms = []
    for i in range(weights.shape[0]):
        for j in range(weights.shape[1]):
            h = row * op.strides[0] - op.pads[0] + i * op.dilations[0]
            w = column * op.strides[1] - op.pads[1] + j * op.dilations[1]
            if 0 <= h < x.shape[0] and 0 <= w < x.shape[1]:
                terms.append((x[h, w, group * depth : (group + 1) * depth], weights[i, j]))
    pairs = [np.concatenate([term[i] for term in terms] or [np.zeros(1, np.int64)]) for i in (0, 1)]
    return _layer(bound, pairs[0], pairs[1], channel)


def _dense(op: Dense, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    weights = inputs[WEIGHT][index[-1]].astype(np.int64)
    return _layer(bound, _entries(bound, inputs, INPUT)[index[:-1]], weights, index[-1])


def _layer(bound: Bound, x: Array, weights: Array, channel: int) -> Exact:
    bias, bits = int(bound.constants[BIAS][channel]), bound.input_quant(INPUT).bits
    ratio = _ratio(bound, INPUT) * Fraction(float(bound.constants[SCALE][channel]))
    multiplier = MULTIPLIER_BITS if bits == 8 else WIDE_MULTIPLIER_BITS
    gains = [int(np.abs(weights).sum()) * ratio, int(np.abs(x).sum()) * ratio, ratio]
    return _products(bound, x * weights, bias, ratio, multiplier, gains)


def _products(
    bound: Bound, terms: Array, bias: int, ratio: Fraction, bits: int, gains: Sequence[Fraction | int]
) -> Exact:
    """Return a sum of products of integers and a bias, times a ratio that a multiplier of so many bits stands for."""
    value, spread = (int(terms.sum()) + bias) * ratio, (int(np.abs(terms).sum()) + abs(bias)) * ratio
    return _element(
        bound, value, spread * (ROUNDINGS + Fraction(terms.size, LANES)) * FLOAT32, _met(value, bits), gains
    )


def _matmul(op: MatMul, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    x, w = (_entries(bound, inputs, i) for i in (0, 1))
    w = w if op.turned else w.swapaxes(-1, -2)
    lead = bound.output.shape[:-2]
    row = np.broadcast_to(x, (*lead, *x.shape[-2:]))[index[:-1]]
    column = np.broadcast_to(w, (*lead, *w.shape[-2:]))[(*index[:-2], index[-1])]
    ratio = Fraction(op.factor) * _ratio(bound, 0) * _scale(bound, 1)
    bits = product_bits(sum(bound.input_quant(i).bits == 16 for i in (0, 1)))
    gains = [(int(np.abs(other).sum()) + Fraction(other.size, 4)) * ratio for other in (column, row)]
    return _products(bound, row * column, 0, ratio, bits, gains)


def _sum(op: Sum, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    terms = [sign * _operand(bound, inputs, i, index) for i, sign in enumerate(op.signs)]
    ratios = [_ratio(bound, i) for i in range(len(terms))]
    apart = sum((256 + abs(bound.input_quant(i).zero_point)) * ratio for i, ratio in enumerate(ratios))
    spread = sum(map(abs, terms), Fraction()) + apart  # QLinearAdd scales entries and zero points apart
    return _element(bound, sum(terms, Fraction()), spread * ROUNDINGS * FLOAT32, _shared(terms, ratios), ratios)


def _shared(terms: Sequence[Fraction], ratios: Sequence[Fraction]) -> Fraction:
    """Return what multipliers on one shift may lose: each is met to a part of the largest."""
    entries = (abs(term) / ratio for term, ratio in zip(terms, ratios, strict=True))
    return _met(sum(entries, Fraction()) * max(ratios))


def _average(op: AveragePool, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    taps = op.windows(_entries(bound, inputs, 0), bound.output.shape, 0)[index]
    ratio = Fraction(op.factor) * _ratio(bound, 0) / int(op.counts(bound)[0, index[1], index[2], 0])
    bits = average_bits(prod(op.kernel), bound.input_quant(0).bits)
    value, spread = int(taps.sum()) * ratio, int(np.abs(taps).sum()) * ratio
    return _element(
        bound, value, spread * (ROUNDINGS + taps.size) * FLOAT32, _met(value, bits), [int(taps.size) * ratio]
    )


# -- element by element --------------------------------------------------------------------------------------------


def _mul(op: Mul, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    a, b = (_operand(bound, inputs, i, index) for i in (0, 1))
    value = a * b * Fraction(bound.quant.scale)
    gains = [(abs(other) + _ratio(bound, i) / 2) * _scale(bound, 1 - i) for i, other in ((1, b), (0, a))]
    return _element(bound, value, abs(value) * ROUNDINGS * FLOAT32, _met(value), gains)


def _div(op: Div, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    a, b = (_operand(bound, inputs, i, index) for i in (0, 1))
    if b == 0:
        return replace(_element(bound, a * FAR, Fraction(), Fraction()), defined=a != 0)
    value = a / b / Fraction(bound.quant.scale)
    gains = [_scale(bound, 0) / abs(b) / Fraction(bound.quant.scale) ** 2, 2 * abs(value / b) * _ratio(bound, 1)]
    return _element(bound, value, abs(value) * ROUNDINGS * FLOAT32, _met(value), gains)


def _extreme(op: Extreme, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    terms = [_operand(bound, inputs, i, index) for i in range(len(inputs))]
    ratios = [_ratio(bound, i) for i in range(len(terms))]
    value = min(terms) if op.least else max(terms)
    return _element(bound, value, abs(value) * ROUNDINGS * FLOAT32, _shared(terms, ratios), ratios)


def _magnitude(op: Magnitude, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    entries = [_operand(bound, inputs, i, index) / _ratio(bound, 0) for i in range(len(inputs))]
    squares, offset = sum(entry * entry for entry in entries), Fraction(op.offset) / _scale(bound, 0) ** 2
    root, rounded = sqrt(squares + offset), sqrt(squares + round(offset))
    value, lost = Fraction(root) * _ratio(bound, 0), Fraction(abs(root - rounded)) + Fraction(1, 1 << ROOT_FRACTION)
    gains = [_ratio(bound, 0)] * len(inputs)
    return _element(bound, value, abs(value) * ROUNDINGS * FLOAT32, _met(value) + lost * _ratio(bound, 0), gains)


def _activation(op: Activation, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    entry = int(inputs[0][index])
    if op.kind == "identity":
        value = (entry - bound.input_quant(0).zero_point) * _ratio(bound, 0)
        return _element(bound, value, abs(value) * ROUNDINGS * FLOAT32, _met(value), [_ratio(bound, 0)])
    near = _function(op, bound, index, np.array([entry, entry - 0.5, entry + 0.5]))
    value = Fraction(near[0])
    lost = _line(op, bound, index, entry, near[0]) if bound.input_quant(0).bits == 16 else Fraction()
    gain = 2 * Fraction(float(np.abs(near - near[0]).max()))
    return _element(bound, value, _function_blur(value), lost, [gain])


def _function(op: Activation, bound: Bound, index: Index, entries: Array) -> Array:
    """Return the function of entries of the input, in steps of the output, in float64; where infinite, far off."""
    quant = bound.input_quant(0)
    real = ((entries - quant.zero_point) * quant.scale).astype(np.float32).astype(np.float64)
    if op.kind == "prelu":
        slopes = bound.constants[1].reshape(-1)
        found = np.where(real < 0, real * float(slopes[index[-1] if slopes.size > 1 else 0]), real)
    else:
        found = FUNCTIONS[op.kind](real, *op.params)
    return np.clip(np.asarray(found, np.float64) / bound.quant.scale, -(2.0**31), 2.0**31)


def _line(op: Activation, bound: Bound, index: Index, entry: int, value: float) -> Fraction:
    """Return how far off the line between two knots is, whose own units are 2**-7 steps of an int8 output."""
    unit = 1.0 if bound.quant.bits == 16 else 2.0**-7
    place, fraction = divmod(entry, 128)
    knots = np.clip(
        _function(op, bound, index, np.array([place, place + 1]) * 128), INT16_LOW * unit, INT16_HIGH * unit
    )
    line = (knots[0] * (128 - fraction) + knots[1] * fraction) / 128
    return Fraction(abs(float(line) - value) + unit / 2)


def _function_blur(value: Fraction) -> Fraction:
    """Return how far off a function in float32 may be: an absolute error, or a relative one of large values."""
    return max(FUNCTION, abs(value) * 32 * FLOAT32)


# -- rows and groups -----------------------------------------------------------------------------------------------


def _softmax(op: Softmax, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    row, quant = inputs[0][index[:-1]].astype(np.int64), bound.input_quant(0)
    distance = row.max() - row
    powers, lost = np.exp(-distance * quant.scale), _table_loss(bound, distance)
    share, place = powers[index[-1]] / powers.sum(), index[-1]
    off = (lost[place] + share * lost.sum()) / max(powers.sum() - lost.sum(), 1.0)  # exp(0) is exact
    value, moved = Fraction(float(share / bound.quant.scale)), np.expm1(min(quant.scale, 80.0))
    coarse = Fraction(float(off / bound.quant.scale)) + _met(value)
    found = _element(bound, value, _function_blur(value), coarse, [2 * value * Fraction(float(moved))])
    cut = floor(np.float32(1.0) / np.float32(bound.quant.scale))  # QLinearSoftmax multiplies with a whole number
    return replace(found, other=Fraction(float(share * cut)) + bound.quant.zero_point)


def _table_loss(bound: Bound, distance: Array) -> Array:
    """Return by how much the exponentials of distances may be off as the table has them."""
    scale = bound.input_quant(0).scale
    if bound.input_quant(0).bits == 8:
        return _entry_loss(distance, scale, SOFTMAX_FINE_ONE if bound.single else SOFTMAX_ONE)
    coarse, fine = distance // 256 * 256, distance % 256
    first, second = (_entry_loss(part, scale, SOFTMAX_WIDE_ONE) for part in (coarse, fine))
    return np.asarray(np.exp(-coarse * scale) * second + np.exp(-fine * scale) * first + first * second)


def _entry_loss(distance: Array, scale: float, one: int) -> Array:
    """Return by how much a table's entries in units of 1 / one are off: half a unit, less for those rounded to zero."""
    return np.where(distance == 0, 0.0, np.minimum(0.5 / one, np.exp(-distance * scale)))


def _norm(op: Norm, bound: Bound, inputs: Sequence[Array], index: Index) -> Exact:
    shape, quant = bound.inputs[0].shape, bound.input_quant(0)
    x = (_entries(bound, inputs, 0) * quant.scale)[index[: op.lead]]
    depth = shape[-1] // op.groups
    group = x[..., index[-1] // depth * depth : (index[-1] // depth + 1) * depth]
    mean = group.mean() if op.centered else 0.0
    deviation = sqrt(((group - mean) ** 2).mean() + op.epsilon) or 1.0
    place = int(np.ravel_multi_index(index[op.lead :], shape[op.lead :])) % len(bound.constants[GAIN])
    gain, offset = (float(bound.constants[i][place]) / bound.quant.scale for i in (GAIN, OFFSET))
    normal, reach = float(x[index[op.lead :]] - mean) / deviation, float(np.abs(group).max()) / deviation
    rounded = (ROUNDINGS + Fraction(group.size, LANES)) * FLOAT32
    blur = Fraction(abs(gain) * (reach + abs(normal) * reach**2)) * rounded + Fraction(abs(offset)) * 2 * FLOAT32
    moved = abs(gain) * quant.scale / deviation * (2 + abs(normal) * reach)
    lost = _norm_loss(op, bound, normal, gain, deviation)
    return _element(bound, Fraction(normal * gain + offset), blur, lost, [Fraction(moved)])


def _norm_loss(op: Norm, bound: Bound, normal: float, gain: float, deviation: float) -> Fraction:
    """Return what the law loses: the inverse root, an epsilon of whole units, gains and offsets of 30 bits."""
    _, gain_shift, _, offset_shift = op._params(bound)
    units = (deviation * op.group(bound.inputs[0].shape) / bound.input_quant(0).scale) ** 2
    root = abs(normal * gain) * (2.0**-30 + 0.5 / max(units, 1.0))
    return Fraction(root + abs(normal) * 2.0 ** -(gain_shift + 1) + 2.0 ** -(offset_shift + 1))


# -- operands ------------------------------------------------------------------------------------------------------


def _entries(bound: Bound, inputs: Sequence[Array], which: int) -> Array:
    """Return an operand's integers less their zero point."""
    return np.asarray(inputs[which].astype(np.int64) - bound.input_quant(which).zero_point)


def _operand(bound: Bound, inputs: Sequence[Array], which: int, index: Index) -> Fraction:
    """Return an operand's entry, which broadcasts, in steps of the output."""
    entry = int(np.broadcast_to(inputs[which], bound.output.shape)[index])
    return (entry - bound.input_quant(which).zero_point) * _ratio(bound, which)


def _scale(bound: Bound, which: int) -> Fraction:
    return Fraction(bound.input_quant(which).scale)


def _ratio(bound: Bound, which: int) -> Fraction:
    """Return an operand's step in steps of the output."""
    return _scale(bound, which) / Fraction(bound.quant.scale)


_RULES: dict[type, Callable[..., Exact | None]] = {
    Conv: _conv,
    Dense: _dense,
    MatMul: _matmul,
    Sum: _sum,
    Mul: _mul,
    Div: _div,
    Extreme: _extreme,
    Magnitude: _magnitude,
    AveragePool: _average,
    Activation: _activation,
    Softmax: _softmax,
    Norm: _norm,
}
