"""Normalisation: layer, group, instance and root-mean-square norm as one operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from nnac import isa
from nnac.norms import GROUP_LIMITS, encode_epsilon, encode_gains, encode_offsets
from nnac.ops import exact
from nnac.ops.base import UNBOUNDED, Block, Bound, Constraint, Op, Sample, Shape, Step, clamp_limits, random_type
from nnac.types import Array, TensorType

INPUT, GAIN, OFFSET = range(3)


@dataclass(frozen=True, slots=True)
class Norm(Op):
    """``gain * (x - mean) / sqrt(variance + epsilon) + offset`` over groups of values (see `norms.normalize`).

    The leading axes count rows, each normalised on its own. The last axis of a row is cut into groups, each of which
    has its own mean and variance over all other axes of the row. Inputs are x, and float32 gains and offsets
    (channels,); value i of a row takes number i % channels.

    Attributes:
        lead: leading axes that count rows.
        groups: of the last axis: 1 for a layer norm, its length for an instance norm.
        epsilon: added to the variance.
        centered: whether the mean is subtracted; if not, the variance is the mean square.
        clamp: real interval that the result is clamped to.
    """

    lead: int = 1
    groups: int = 1
    epsilon: float = 1e-5
    centered: bool = True
    clamp: tuple[float, float] = UNBOUNDED

    name: ClassVar[str] = "Norm"
    layout: ClassVar[str] = "normalised axes last, channels last of all"
    operands: ClassVar[int | None] = 1
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(lambda op, s: 0 <= op.lead < len(s[INPUT]), "at least one axis is normalised"),
        Constraint(lambda op, s: op.groups >= 1 and s[INPUT][-1] % op.groups == 0, "groups divide the channels"),
        Constraint(
            lambda op, s: len(s) == 3 and len(s[GAIN]) == 1 and s[GAIN] == s[OFFSET] and op.fits(s[INPUT], s[GAIN][0]),
            "gains and offsets have one value per channel, or per value of a row",
        ),
        Constraint(
            lambda op, s: op.group(s[INPUT]) <= GROUP_LIMITS[16],
            f"at most {GROUP_LIMITS[16]} values are normalised together",
        ),
        Constraint(lambda op, s: 0 <= op.epsilon < np.inf, "epsilon is not negative"),
    )

    def fits(self, shape: Shape, channels: int) -> bool:
        """Tell whether so many gains serve a row."""
        return channels in (shape[-1], prod(shape[self.lead :]))

    def group(self, shape: Shape) -> int:
        """Return the values of one group."""
        return prod(shape[self.lead :]) // self.groups

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(shapes[INPUT])

    def _grouped(self, shape: Shape) -> Shape:
        """Return (rows, positions, groups, depth)."""
        depth = shape[-1] // self.groups
        return prod(shape[: self.lead]), prod(shape[self.lead : -1]), self.groups, depth

    def _params(self, bound: Bound) -> tuple[Array, int, Array, int]:
        """Return gains and offsets, int32, with their shifts."""
        gain, offset = (bound.constants[i].astype(np.float64) / bound.quant.scale for i in (GAIN, OFFSET))
        gains, gain_shift = encode_gains(gain.tolist())
        offsets, offset_shift = encode_offsets(offset.tolist(), gain_shift)
        return np.array(gains, "<i4"), gain_shift, np.array(offsets, "<i4"), offset_shift

    def _epsilon(self, bound: Bound) -> tuple[int, int]:
        return encode_epsilon(self.epsilon, bound.input_quant(INPUT).scale, self.group(bound.inputs[INPUT].shape))

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        gains, gain_shift, offsets, offset_shift = self._params(bound)
        rows, positions, groups, depth = self._grouped(bound.output.shape)
        x = _together(inputs[INPUT].reshape(rows, positions, groups, depth))
        repeats = positions * groups * depth // len(gains)
        gain, offset = (
            _together(np.tile(each, repeats).reshape(1, positions, groups, depth)) for each in (gains, offsets)
        )
        epsilon, shift = self._epsilon(bound)
        zeros, limits = (bound.input_quant(INPUT).zero_point, bound.quant.zero_point), self._limits(bound)
        scaled = (epsilon << shift, gain, gain_shift, offset, offset_shift)
        y = exact.normalize(x, zeros[0], self.centered, *scaled, zeros[1], bound.law.mode, *limits)
        return bound.result(y.reshape(rows, groups, positions, depth).swapaxes(1, 2).reshape(bound.output.shape))

    def _limits(self, bound: Bound) -> tuple[int, int]:
        return clamp_limits(self.clamp, bound.quant)

    def rows(self, bound: Bound) -> tuple[int, int]:
        count = prod(bound.output.shape[: self.lead])
        return count, count

    def blocks(self, bound: Bound, limit: int, granule: int) -> list[Block]:
        gains, _, offsets, _ = self._params(bound)
        return [Block(0, 1, gains.tobytes() + offsets.tobytes(), np.zeros(0, np.int8))]

    def lower(self, bound: Bound, step: Step) -> Iterator[isa.AnyInstruction]:
        gains, gain_shift, _, offset_shift = self._params(bound)
        _, positions, groups, depth = self._grouped(bound.output.shape)
        epsilon, epsilon_shift = self._epsilon(bound)
        low, high = self._limits(bound)
        yield isa.Norm(
            source=step.inputs[INPUT].address,
            target=step.output.address,
            rows=step.output.hi - step.output.lo,
            positions=positions,
            groups=groups,
            depth=depth,
            channels=len(gains),
            params=step.params,
            centered=int(self.centered),
            epsilon=epsilon,
            epsilon_shift=epsilon_shift,
            gain_shift=gain_shift,
            offset_shift=offset_shift,
            in_zero=bound.input_quant(INPUT).zero_point,
            out_zero=bound.quant.zero_point,
            low=low,
            high=high,
            in_bits=bound.input_quant(INPUT).bits,
            out_bits=bound.quant.bits,
        )

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        shape = tuple(int(v) for v in rng.integers(1, 9, int(rng.integers(1, 5))))
        divisors = [n for n in range(1, shape[-1] + 1) if shape[-1] % n == 0]
        clamp = (0.0, 6.0) if rng.random() < 0.3 else UNBOUNDED
        op = cls(int(rng.integers(len(shape))), int(rng.choice(divisors)), float(rng.choice([0.0, 1e-5, 1.0])))
        op = cls(op.lead, op.groups, op.epsilon, bool(rng.integers(2)), clamp)
        each = prod(shape[op.lead :])
        channels = int(rng.choice([shape[-1], each if each <= 512 else shape[-1]]))
        gain, offset = (rng.normal(size=channels).astype(np.float32) for _ in range(2))
        types = (random_type(rng, shape), *(TensorType(a.shape, "float32") for a in (gain, offset)))
        return Sample(op, types, random_type(rng, shape), {GAIN: gain, OFFSET: offset})


def _together(x: Array) -> Array:
    """Return (rows, positions, groups, depth) as (rows, groups, positions * depth)."""
    rows, positions, groups, depth = x.shape
    return x.swapaxes(1, 2).reshape(rows, groups, positions * depth)
