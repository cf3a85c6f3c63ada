"""Straight-through steps between reals and the accelerator's integers, as autograd functions.

Inside a twin a tensor holds the accelerator's integers less their zero point, as float32: what stands for the real zero
is 0, so that padding, concatenation and the largest of a window need no thought. Gradients are those of the real
function, in units of the integers: straight through every rounding, zero where a value saturated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnac.norms import GAIN_BITS, encode_epsilon, encode_gains, encode_offsets
from nnac.numerics import average_bits, encode_ratio, encode_ratios, softmax_table
from nnac.ops import Activation
from nnac.ops.base import Bound, activation, clamp_limits
from nnac.targets import Arithmetic
from nnac.train.law import (
    EXACT,
    Ratio,
    blocks,
    channel_ratios,
    narrowed,
    normalized,
    one_ratio,
    requantized,
    round_divide,
)
from nnac.train.scales import Scale
from nnac.types import Quant

UNBOUNDED = (-inf, inf)
BIAS_LIMIT = 2.0**30


def limits(quant: Quant, clamp: tuple[float, float] = UNBOUNDED) -> tuple[int, int]:
    """Return the smallest and largest integer less the zero point, within a real clamp."""
    low, high = clamp_limits(clamp, quant)
    return low - quant.zero_point, high - quant.zero_point


# -- in and out ----------------------------------------------------------------------------------------------------


class _Exact(torch.autograd.Function):
    """The accelerator's integers in the place of the reals that they stand for; straight through, or saturated."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, near: Tensor, stretch: Tensor | None, low: int, high: int) -> Tensor:
        whole = near.clamp(low, high)
        inside, out = whole == near, whole.float()
        ctx.save_for_backward(inside, out - places * inside if stretch is not None else None)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        inside, slack = ctx.saved_tensors
        return grad * inside, None, _stretched(grad, slack), None, None


def enter(x: Tensor, quant: Quant, stretch: Tensor | None = None) -> Tensor:
    """Return the integers of reals, as the accelerator's border makes them: ONNX QuantizeLinear in float32."""
    places = x.float() / torch.tensor(quant.scale, dtype=torch.float32, device=x.device)
    return _Exact.apply(places, places.detach().round(), stretch, *limits(quant))


def leave(c: Tensor, quant: Quant) -> Tensor:
    """Return the reals that integers stand for."""
    return c * quant.scale


def _stretched(grad: Tensor, slack: Tensor | None) -> Tensor | None:
    """Return the gradient of the logarithm of a step (LSQ: Esser et al. 2020), damped by the number of values."""
    return None if slack is None else (grad * slack).sum() / (slack.numel() * 127) ** 0.5


# -- requantization ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finish:
    """How sums become outputs: ratio of scales, limits less the zero point, and the machine's arithmetic."""

    ratio: Ratio
    low: int
    high: int
    law: Arithmetic
    two_step: bool = True


class _Requantize(torch.autograd.Function):
    """Sums to outputs; see `Finish`."""

    @staticmethod
    def forward(ctx: Any, acc: Tensor, stretch: Tensor | None, finish: Finish) -> Tensor:
        out = torch.empty(acc.shape, dtype=torch.float32, device=acc.device)
        inside = torch.empty(acc.shape, dtype=torch.bool, device=acc.device)
        for part, rows, kept in blocks(acc, out, inside):
            near = requantized(part, finish.ratio, finish.law, finish.low, finish.high, finish.two_step)
            rows.copy_(near.clamp(finish.low, finish.high))
            torch.eq(rows, near, out=kept)
        slack = out - acc * finish.ratio.factor * inside if stretch is not None else None
        ctx.save_for_backward(inside, slack, finish.ratio.factor)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        inside, slack, factor = ctx.saved_tensors
        return grad * inside * factor.float(), _stretched(grad, slack), None


def requantize(acc: Tensor, finish: Finish, stretch: Tensor | None = None) -> Tensor:
    """Return the outputs of integer sums (float32, or float64 where they may reach 2**24)."""
    return _Requantize.apply(acc, stretch, finish)


# -- layers --------------------------------------------------------------------------------------------------------


class _Levels(torch.autograd.Function):
    """Weights in units of their scales (O,): int8 in [-127, 127], rounded half to even in float64."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        shaped = scale.double().reshape(-1, *(1,) * (weight.dim() - 1))
        out = torch.empty_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)
        for part, rows, steps in blocks(weight, out, shaped.expand(weight.shape)):
            rows.copy_(part.double().div_(steps[(slice(None), *(slice(0, 1),) * (weight.dim() - 1))]).round_())
        ctx.save_for_backward(shaped)
        return out.clamp_(-127, 127)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad / ctx.saved_tensors[0].float(), None


class _Steps(torch.autograd.Function):
    """Biases in units of input scale * weight scale, float64 integers."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, units: Tensor) -> Tensor:
        ctx.save_for_backward(units)
        return (bias.double() / units).round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (grad / ctx.saved_tensors[0]).float(), None


def weight_scales(weight: Tensor, bias: Tensor, input_scale: float, law: Arithmetic) -> Tensor:
    """Return float32 scales (O,) of weights (O, ...), as `passes.quantize.weight_scales` finds them."""
    rows = weight.detach().flatten(1)  # amax and amin are each many times faster than a norm
    peak = torch.maximum(rows.amax(1), -rows.amin(1)).double() / 127
    scale = torch.maximum(peak, bias.detach().abs().double() / (BIAS_LIMIT * input_scale))
    if not law.per_channel:
        scale = scale.max().expand_as(scale)
    scale = torch.where(scale > 0, scale, 1.0).clamp(min=2.0**-100)
    if not law.power_of_two_scales:
        return scale.float()
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int()).float()


@dataclass(frozen=True, slots=True)
class Integers:
    """A layer's constants.

    Attributes:
        weight: levels, float32; gradients pass to the reals.
        bias: float64 integers.
        scale: float32 (O,), of the weights.
        bound: what no sum of products and bias exceeds, of which products alone are `products`.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    bound: float
    products: float


def layer_integers(weight: Tensor, bias: Tensor, scale: Tensor | None, quant: Quant, law: Arithmetic) -> Integers:
    """Return the integer constants of a layer that reads values of `quant`.

    Args:
        weight: reals (O, ...).
        bias: reals (O,).
        scale: of clustered weights, float32 (O,); None takes the largest weight of every channel.
        quant: of the input.
        law: the machine's.
    """
    scale = weight_scales(weight, bias, quant.scale, law) if scale is None else scale
    levels = _Levels.apply(weight, scale)
    steps = _Steps.apply(bias, scale.double() * quant.scale)
    reach = max(abs(end) for end in limits(quant))
    with torch.no_grad():
        products = levels.flatten(1).abs().sum(1).max() * reach
        found = torch.stack([products.double(), steps.abs().max()]).tolist()
    return Integers(levels, steps, scale, found[0] * (1 + 2**-10) + found[1], found[0] * (1 + 2**-10))


def layer_finish(
    parts: Integers, quant: Quant, out: Quant, law: Arithmetic, clamp: tuple[float, float] = UNBOUNDED
) -> Finish:
    """Return how the layer's sums become outputs of `out`."""
    ratio = parts.scale.double() * (quant.scale / out.scale)
    return Finish(channel_ratios(ratio), *limits(out, clamp), law)


def dense(c: Tensor, parts: Integers, law: Arithmetic) -> Tensor:
    """Return the exact sums of a dense layer on (..., K)."""
    if parts.bound < EXACT:
        return narrowed(F.linear(c, parts.weight, parts.bias.float()), law)
    if parts.products < EXACT:
        return narrowed(F.linear(c, parts.weight).double() + parts.bias, law)
    count = -(-int(parts.products) // (EXACT // 2))
    chunk = max(1, min(EXACT // (255 * 127), parts.weight.shape[1] // count))
    pairs = zip(c.split(chunk, -1), parts.weight.split(chunk, 1), strict=True)
    return narrowed(sum((F.linear(x, w).double() for x, w in pairs), parts.bias), law)


def convolution(c: Tensor, parts: Integers, law: Arithmetic, options: dict[str, Any]) -> Tensor:
    """Return the exact sums of a convolution on (N, C, L) or (N, C, H, W).

    On a CPU without NNPACK, whose transformed products are not exact; elsewhere in float64, rounded.
    """
    run = F.conv1d if c.dim() == 3 else F.conv2d
    shape = (-1, *(1,) * (c.dim() - 2))
    if c.device.type != "cpu" or parts.products >= EXACT:
        acc = _Whole.apply(run(c.double(), parts.weight.double(), **options)) + parts.bias.reshape(shape)
        return narrowed(acc, law)
    with torch.backends.nnpack.flags(enabled=False):
        if parts.bound < EXACT:
            return narrowed(run(c, parts.weight, parts.bias.float(), **options), law)
        return narrowed(run(c, parts.weight, **options).double() + parts.bias.reshape(shape), law)


class _Whole(torch.autograd.Function):
    """The nearest integer, straight through: removes what a library's algorithm leaves beside exact sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


# -- sums, products, means -----------------------------------------------------------------------------------------


def add(
    operands: list[Tensor], signs: tuple[int, ...], quants: list[Quant], out: Quant, law: Arithmetic, clamp: Any
) -> tuple[Tensor, Finish]:
    """Return the exact sum of operands on a common step, float64, and how it becomes `out`."""
    multipliers, shift = encode_ratios([quant.scale / out.scale for quant in quants])
    step = 2.0**-shift
    total = sum(c.double() * (m * s * step) for c, m, s in zip(operands, multipliers, signs, strict=True))
    one = one_ratio(1.0, law, operands[0].device)
    assert isinstance(total, Tensor)
    return total, Finish(one, *limits(out, clamp), law, two_step=False)


def multiply(
    a: Tensor, b: Tensor, quants: list[Quant], out: Quant, law: Arithmetic, clamp: Any
) -> tuple[Tensor, Finish]:
    """Return the exact product, and how it becomes `out`."""
    ratio = quants[0].scale * quants[1].scale / out.scale
    return a * b, Finish(one_ratio(ratio, law, a.device), *limits(out, clamp), law)


def average(
    total: Tensor, counts: Tensor, taps: int, quant: Quant, out: Quant, law: Arithmetic, clamp: Any = UNBOUNDED
) -> Tensor:
    """Return the means of windows.

    Args:
        total: sums of every window, float32 integers.
        counts: int64, the divisor of each, to broadcast.
        taps: of a whole window.
        quant, out: of input and output.
        law: the machine's.
        clamp: real limits of the output.
    """
    bits = average_bits(taps, quant.bits)
    multiplier, shift = encode_ratio(quant.scale / out.scale, law.power_of_two_scales, bits)
    near = round_divide(total.detach().to(torch.int64) * multiplier, counts, shift, law.mode)
    return _Exact.apply(total.float() * (multiplier * 2.0**-shift / counts), near, None, *limits(out, clamp))


# -- rows ----------------------------------------------------------------------------------------------------------


def normalize(c: Tensor, module: nn.LayerNorm, quant: Quant, scale: Scale, law: Arithmetic, clamp: Any) -> Tensor:
    """Return a layer norm over the last axes; the gradient is the float function's.

    Args:
        c: of the input.
        module: gains, offsets and epsilon.
        quant: of the input.
        scale: of the output.
        law: the machine's.
        clamp: real limits of the output.
    """
    shape, out = list(module.normalized_shape), scale.quant
    epsilon = float(np.float32(module.eps))  # as ONNX's attribute holds it
    places = F.layer_norm(c * quant.scale, shape, module.weight, module.bias, epsilon) / out.scale
    with torch.no_grad():
        ones = torch.ones(shape, device=c.device)
        gains, gain_shift = _fixed(ones if module.weight is None else module.weight, out, encode_gains)
        offset = torch.zeros_like(ones) if module.bias is None else module.bias
        offsets, offset_shift = _fixed(offset, out, lambda peak: encode_offsets(peak, gain_shift))
        multiplier, shift = encode_epsilon(epsilon, quant.scale, gains.numel())
        x = c.flatten(c.dim() - len(shape)).to(torch.int64)
        near = normalized(x, multiplier << shift, gains, gain_shift, offsets, offset_shift, law.mode)
    return _Exact.apply(places, near.reshape(c.shape), scale.stretch, *limits(out, clamp))


def _fixed(values: Tensor, out: Quant, encode: Any) -> tuple[Tensor, int]:
    """Return reals over the output's scale as integers (n,) with the shift that `encode` finds for the largest."""
    steps = values.double().flatten() / out.scale
    shift = encode([float(steps.abs().max())])[1]
    limit = float((1 << GAIN_BITS) - 1)
    return torch.ldexp(steps, torch.tensor(shift)).round().clamp(-limit, limit).to(torch.int64), shift


def softmax(c: Tensor, axis: int, quant: Quant, out: Quant, law: Arithmetic) -> Tensor:
    """Return a softmax along an axis; the gradient is the float function's."""
    places = F.softmax(c * quant.scale, axis) / out.scale
    with torch.no_grad():
        table = _exponentials(quant.scale, str(c.device))
        found = table.take((c.amax(axis, keepdim=True) - c).long())
        multiplier, shift = encode_ratio(1.0 / out.scale, law.power_of_two_scales)
        near = round_divide(found * multiplier, found.sum(axis, keepdim=True), shift, law.mode)
    return _Exact.apply(places, near, None, *limits(out))


@cache
def _exponentials(scale: float, device: str) -> Tensor:
    """Return `numerics.softmax_table`, int64."""
    return torch.tensor(softmax_table(scale), dtype=torch.int64, device=device)


# -- tables --------------------------------------------------------------------------------------------------------


class _Lookup(torch.autograd.Function):
    """A table of 256 entries; its gradient is another table."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, table: Tensor, slopes: Tensor, offset: int) -> Tensor:
        index = (c + offset).to(torch.int32)
        ctx.save_for_backward(index.to(torch.uint8), slopes)
        return table.take(index.long())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        index, slopes = ctx.saved_tensors
        return grad * slopes.take(index.long()), None, None, None


def lookup(c: Tensor, kind: str, params: tuple[float, ...], quant: Quant, out: Quant, law: Arithmetic) -> Tensor:
    """Return a function of int8 values as the accelerator's table has it; the gradient is the float function's."""
    table, slopes = _tables(kind, params, quant, out, law, str(c.device))
    return _Lookup.apply(c, table, slopes, quant.zero_point + 128)


@cache
def _tables(
    kind: str, params: tuple[float, ...], quant: Quant, out: Quant, law: Arithmetic, device: str
) -> tuple[Tensor, Tensor]:
    """Return outputs less the zero point and slopes, float32, for the entries -128..127."""
    bound = Bound((activation((1,), quant),), activation((1,), out), {}, law)
    table = Activation(kind, params).tables(bound)[0].astype(np.float32) - out.zero_point
    x = (torch.arange(-128, 128, dtype=torch.float64) - quant.zero_point) * quant.scale
    with torch.enable_grad():
        x.requires_grad_(True)
        y = TORCH_FUNCTIONS[kind](x, *params)
        (slope,) = torch.autograd.grad(y.sum(), x)
    places = (y.detach() / out.scale).round()
    low, high = limits(out)
    inside = (places >= low) & (places <= high)
    slopes = (slope * inside * (quant.scale / out.scale)).float()
    return torch.from_numpy(table).to(device), slopes.to(device)


TORCH_FUNCTIONS: dict[str, Any] = {
    "relu": F.relu,
    "clip": lambda x, low, high: x.clamp(low, high),
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, alpha),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hard_sigmoid": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "hard_swish": F.hardswish,
    "swish": lambda x, alpha: x * torch.sigmoid(alpha * x),
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu": lambda x, alpha: F.elu(x, alpha),
    "softplus": F.softplus,
    "softsign": F.softsign,
    "affine": lambda x, scale, offset: x * scale + offset,
}
"""The float functions whose slopes are the gradients, by the kinds of `nnac.ops.functions`."""
