"""The law of `nnac.numerics` over torch tensors: exact integers in float arithmetic where that is proven, else int64.

Integers travel as float32 (float64 where they may reach 2**24). A requantization ``round(acc * m * 2**-s)`` is computed
as one float64 product with the factor m * 2**-s, which is exact itself. The product is rounded correctly to 53 bits, so
a half stays a half. What is no half is a multiple of 2**-s and thus at least 2**-s away from one; where results beyond
2**k saturate, the rounding moves it by at most 2**(k - 54). So s < 54 - k proves the result; other shifts, and TFLite's
two steps, take int64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnac.norms import ROOT_BITS
from nnac.numerics import (
    INT16_HIGH,
    INT16_LOW,
    INT32_HIGH,
    INT32_LOW,
    MULTIPLIER_BITS,
    SHIFT_MAX,
    Rounding,
    encode_ratio,
)
from nnac.ops import exact
from nnac.ops.tables import knots
from nnac.targets import Arithmetic

EXACT = 1 << 24
"""Integers below this are float32 values, all of them."""
REACH_BITS = 54
BLOCK = 1 << 16
"""Elements that are worked on at once, so that float64 stays in a core's cache."""


def blocks(*tensors: Tensor) -> Any:
    """Return runs along the first axis of tensors of one shape, small enough for a cache; on a GPU, all at once."""
    first = tensors[0]
    count = first.numel() // BLOCK if first.device.type == "cpu" and first.dim() > 1 else 0
    if count < 2:
        return [tensors]
    rows = max(1, first.shape[0] // count)
    return zip(*(t.split(rows) for t in tensors), strict=True)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratios of scales as the machine has them: multiplier * 2**-shift, one or one per channel.

    Attributes:
        multiplier, shift: int64.
        factor: multiplier * 2**-shift, float64, exact.
        largest: the largest shift.
    """

    multiplier: Tensor
    shift: Tensor
    factor: Tensor
    largest: int

    def shaped(self, *shape: int) -> Ratio:
        """Return the same ratios in another shape, to broadcast."""
        parts = [part.reshape(shape) for part in (self.multiplier, self.shift, self.factor)]
        return Ratio(parts[0], parts[1], parts[2], self.largest)


def one_ratio(value: float, law: Arithmetic, device: torch.device | str = "cpu") -> Ratio:
    """Return one ratio; see `numerics.encode_ratio` for the errors."""
    multiplier, shift = encode_ratio(value, law.power_of_two_scales)
    pair = torch.tensor([multiplier, shift], dtype=torch.int64, device=device)
    factor = torch.tensor(float(multiplier) * 2.0**-shift, dtype=torch.float64, device=device)
    return Ratio(pair[0], pair[1], factor, shift)


def channel_ratios(values: Tensor) -> Ratio:
    """Return positive float64 ratios (O,) as `numerics.encode_ratio` finds each."""
    mantissa, exponent = torch.frexp(values)
    exponent = exponent.to(torch.int64)
    shift = (MULTIPLIER_BITS - exponent).clamp(max=SHIFT_MAX)
    multiplier = _half_away(torch.ldexp(values, shift))
    carried = multiplier == float(1 << MULTIPLIER_BITS)
    shift = torch.where(carried, shift - 1, shift)
    multiplier = torch.where(carried, _half_away(torch.ldexp(values, shift)), multiplier)
    power = exponent - 1
    small = (mantissa == 0.5) & (power >= -SHIFT_MAX)
    shift = torch.where(small, (-power).clamp(min=0), torch.where(multiplier == 0, 0, shift))
    multiplier = torch.where(small, torch.ldexp(torch.ones_like(values), power.clamp(min=0)), multiplier)
    return Ratio(multiplier.to(torch.int64), shift, torch.ldexp(multiplier, -shift), int(shift.max()))


def _half_away(values: Tensor) -> Tensor:
    """Return non-negative reals rounded to the nearest integer, ties up."""
    floor = values.floor()
    return floor + (values - floor >= 0.5)


# -- rounding ------------------------------------------------------------------------------------------------------


def rounded(values: Tensor, rounding: Rounding) -> Tensor:
    """Return float64 values rounded to integers, which they hold exactly; TFLITE counts as HALF_AWAY."""
    if rounding == Rounding.HALF_EVEN:
        return values.round()
    if rounding == Rounding.HALF_UP:
        return _half_away(values)
    return _half_away(values.abs()) * values.sign()


def requantized(acc: Tensor, ratio: Ratio, law: Arithmetic, low: int, high: int, two_step: bool = True) -> Tensor:
    """Return ``round(acc * ratio)`` before saturation to [low, high], float64; beyond them it may be a bit off.

    Args:
        acc: integers in a float dtype, at most 2**31.
        ratio: broadcasts against acc.
        law: the machine's.
        low, high: what results saturate to, less the zero point.
        two_step: whether the rounding "tflite" is TFLite's (`numerics.requantize`) or one rounding (`rescale`).
    """
    doubled = two_step and law.mode == Rounding.TFLITE
    if not doubled and ratio.largest < REACH_BITS - max(-low, high, 1).bit_length() - 1:
        return rounded(acc.double() * ratio.factor, law.mode)
    scaled = _two_step if doubled else _one_step
    return scaled(acc.to(torch.int64), ratio, law.mode).double()


def _one_step(acc: Tensor, ratio: Ratio, rounding: Rounding) -> Tensor:
    return round_shift(acc * ratio.multiplier, ratio.shift, rounding)


def _two_step(acc: Tensor, ratio: Ratio, rounding: Rounding) -> Tensor:
    """TFLite's two roundings, as `numerics.requantize` tells them; `rounding` is known here and unused."""
    del rounding
    lift = 31 - torch.frexp(ratio.multiplier.double())[1].to(torch.int64)
    lift = torch.where(ratio.multiplier == 0, 0, lift)
    total = ratio.shift + lift
    left, right = (31 - total).clamp(min=0), (total - 31).clamp(0, SHIFT_MAX)
    shifted = (acc << left).clamp(INT32_LOW, INT32_HIGH)
    doubled = round_shift(shifted * (ratio.multiplier << lift), torch.full_like(lift, 31), Rounding.HALF_UP)
    return round_shift(doubled, right, Rounding.HALF_AWAY)


def round_shift(value: Tensor, shift: Tensor, rounding: Rounding) -> Tensor:
    """Return ``value * 2**-shift`` of int64 tensors, rounded once; TFLITE counts as HALF_AWAY."""
    floor = value >> shift
    rest, half = value - (floor << shift), (torch.ones_like(shift) << shift) >> 1
    return floor + (((rest > half) | ((rest == half) & _tie_up(floor, value, rounding))) & (shift > 0))


def round_divide(numerator: Tensor, denominator: Tensor, shift: int, rounding: Rounding) -> Tensor:
    """Return ``numerator / (denominator << shift)`` of int64 tensors, exact and rounded once (see `exact`)."""
    high = numerator >> shift
    low_bits = numerator - (high << shift)
    floor = torch.div(high, denominator, rounding_mode="floor")
    excess = 2 * (high - floor * denominator) - denominator
    against_half = (2 * low_bits - (1 << shift)).sign()
    small = torch.where(excess < 0, -torch.ones_like(excess), (excess | low_bits).sign())
    compared = torch.where(excess == -1, against_half, small)
    return floor + ((compared > 0) | ((compared == 0) & _tie_up(floor, numerator, rounding)))


def _tie_up(floor: Tensor, value: Tensor, rounding: Rounding) -> Tensor:
    """Return where a tie goes up."""
    if rounding == Rounding.HALF_EVEN:
        return (floor & 1) == 1
    return torch.ones_like(value, dtype=torch.bool) if rounding == Rounding.HALF_UP else value >= 0


def normalized(
    x: Tensor, epsilon: int, gains: Tensor, gain_shift: int, offsets: Tensor, offset_shift: int, rounding: Rounding
) -> Tensor:
    """Return int64 groups along the last axis normalised, before saturation; see `exact.normalize`.

    Args:
        x: int64 (..., n), less the zero point.
        epsilon: in units of the squared input times n**2.
        gains, offsets: int64 (n,), in units of 2**-gain_shift and 2**-offset_shift.
        gain_shift, offset_shift: of `norms.encode_gains` and `norms.encode_offsets`.
        rounding: the machine's.
    """
    count, total = x.shape[-1], x.sum(-1, keepdim=True)
    root, lift = inverse_root(count * (x * x).sum(-1, keepdim=True) - total * total + epsilon)
    product, part = 2 * gains * (count * x - total), (1 << MULTIPLIER_BITS) - 1
    under = (product & part) * root
    above = (product >> MULTIPLIER_BITS) * root + (under >> MULTIPLIER_BITS)
    shift = ROOT_BITS - MULTIPLIER_BITS + gain_shift - lift - offset_shift
    floor = above >> shift
    cut = ((under & part) != 0) | (floor << shift != above)
    return round_shift(2 * (floor + 2 * offsets) + cut, lift.new_tensor(offset_shift + 2), rounding)


def inverse_root(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return (root, lift) of int64 values in 1 .. 2**62 - 1; see `norms.inverse_root`."""
    lift = torch.zeros_like(value)
    for step in (16, 8, 4, 2, 1):
        lift += step * ((value << 2 * lift) >> (62 - 2 * step) == 0)
    square = value << 2 * lift
    root = square.double().sqrt().long()  # off by one at most
    root -= (root * root > square).long()
    root += ((root + 1) * (root + 1) <= square).long()
    return torch.div(1 << ROOT_BITS, root, rounding_mode="floor"), lift


def narrowed(acc: Tensor, law: Arithmetic) -> Tensor:
    """Return sums in the machine's accumulator; 32 bits hold all that the compiler lets pass."""
    if law.accumulator_bits >= 32:
        return acc
    half = float(1 << (law.accumulator_bits - 1))
    return torch.remainder(acc + half, 2 * half) - half if law.wraps else acc.clamp(-half, half - 1)


# -- tables --------------------------------------------------------------------------------------------------------


@cache
def wide_table(kind: str, step: float, rounding: Rounding, device: str = "cpu") -> Tensor:
    """Return a function of all int16 values, as `numerics.interpolate` gives it from 513 knots: (65536,) float32.

    Args:
        kind: a key of `FUNCTIONS`.
        step: real value of one step of the input.
        rounding: the machine's.
        device: where the table shall lie.
    """
    places = np.arange(INT16_LOW, INT16_HIGH + 1)
    values = exact.interpolate(places, knots(kind, step), rounding)
    return torch.from_numpy(values.astype(np.float32)).to(device)
