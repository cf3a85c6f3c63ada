"""Rows that normalise: layer, group, instance and root-mean-square norm, by name or recognised where written out."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from nnac.frontend import views
from nnac.frontend.builder import Builder
from nnac.frontend.use import Refused, Row, Rule, Shape, Use, normalized, real
from nnac.ops import Norm
from nnac.types import Array

CHANNELS_FIRST = Rule(lambda u: 3 <= len(u.shape()) <= 4, "the input is 1-D or 2-D with channels (rank 3 or 4)")
FIXED_SCALE = Rule(lambda u: all(map(u.fixed, range(1, len(u.inputs)))), "scale and bias are constants")
ALONE = Rule(lambda u: u.unused(1), "the outputs behind the first are not used")


def layer(b: Builder, use: Use) -> None:
    """Import LayerNormalization, or RMSNormalization, over the axes from `axis` on."""
    rank = len(use.shape())
    axes = tuple(range(use.axis(-1, rank), rank))
    offset = real(use.array(2)) if use.given(2) else None
    centered = use.op_type == "LayerNormalization"
    over(b, use, axes, float(use.get("epsilon", 1e-5)), real(use.array(1)), offset, centered)


def instance(b: Builder, use: Use) -> None:
    """Import InstanceNormalization."""
    _spatial(b, use, use.shape()[1], real(use.array(1)), real(use.array(2)))


def group(b: Builder, use: Use) -> None:
    """Import GroupNormalization."""
    count, channels = int(use.get("num_groups", 0)), use.shape()[1]
    if count < 1 or channels % count:
        raise Refused("num_groups divides the channels")
    _spatial(b, use, count, real(use.array(1)), real(use.array(2)))


def _spatial(b: Builder, use: Use, groups: int, scale: Array, bias: Array) -> None:
    """Add a norm of groups of channels over all of space."""
    epsilon, channels = float(use.get("epsilon", 1e-5)), use.shape()[1]
    if scale.shape != (channels,) or bias.shape != (channels,):
        raise Refused("scale and bias have one value per channel")
    _put(b, use, Norm(1, groups, epsilon), views.channels_last(use.shape()), scale, bias)


def mean_variance(b: Builder, use: Use) -> None:
    """Import MeanVarianceNormalization."""
    rank = len(use.shape())
    axes = tuple(sorted(normalized(int(axis), rank) for axis in use.get("axes", (0, 2, 3))))
    over(b, use, axes, 1e-18, None, None, True)


def unit(b: Builder, use: Use) -> None:
    """Import LpNormalization by the square norm."""
    axis = use.axis(-1, len(use.shape()))
    over(b, use, (axis,), 0.0, np.full(1, 1 / sqrt(use.shape()[axis])), None, False)


def written_out(b: Builder, use: Use) -> None:
    """Import what `recognise` has found."""
    given = use.attributes
    over(b, use, given["axes"], given["epsilon"], given["gain"], given["offset"], given["centered"])


def over(
    b: Builder,
    use: Use,
    axes: Shape,
    epsilon: float,
    gain: Array | None,
    offset: Array | None,
    centered: bool,
) -> None:
    """Add a norm over `axes` of the first input, with gain and offset that `fits`."""
    shape = use.shape()
    gain, offset = (_full(each, default) for each, default in ((gain, 1.0), (offset, 0.0)))
    if (
        per_channel(shape, axes, gain.shape)
        and per_channel(shape, axes, offset.shape)
        and max(gain.size, offset.size) > 1
    ):
        op, steps = Norm(1, shape[1], epsilon, centered), views.channels_last(shape)
        sides: Shape = (shape[1],)
        gain, offset = gain.reshape(-1), offset.reshape(-1)
    else:
        kept = tuple(axis for axis in range(len(shape)) if axis not in axes)
        op, sides = Norm(len(kept), 1, epsilon, centered), tuple(shape[axis] for axis in axes)
        steps = views.transpose((*kept, *axes))
        gain, offset = (_reduced(each, shape, axes) for each in (gain, offset))
    _put(b, use, op, steps, *(np.broadcast_to(each, sides).reshape(-1) for each in (gain, offset)))


def fits(shape: Shape, axes: Shape, array: Array) -> bool:
    """Tell whether a gain or offset depends on the normalised axes only, or is one per channel of a norm over space."""
    sides = _padded(array.shape, len(shape))
    if array.ndim > len(shape) or any(side not in (1, full) for side, full in zip(sides, shape, strict=True)):
        return False
    return all(side == 1 or axis in axes for axis, side in enumerate(sides)) or per_channel(shape, axes, array.shape)


def per_channel(shape: Shape, axes: Shape, sides: Shape) -> bool:
    """Tell whether a norm over all of space has such a gain: one per channel, or one."""
    if len(shape) not in (3, 4) or axes != tuple(range(2, len(shape))):
        return False
    return all(side == 1 or axis == 1 for axis, side in enumerate(_padded(sides, len(shape))))


def _full(array: Array | None, default: float) -> Array:
    return np.full(1, default) if array is None else array


def _padded(sides: Shape, rank: int) -> Shape:
    return (1,) * (rank - len(sides)) + sides


def _reduced(array: Array, shape: Shape, axes: Sequence[int]) -> Array:
    """Return a gain or offset over the normalised axes alone."""
    sides = _padded(array.shape, len(shape))
    if any(side != 1 for axis, side in enumerate(sides) if axis not in axes):
        raise Refused("scale and bias vary along the normalised axes only")
    return array.reshape([sides[axis] for axis in axes])


def _put(b: Builder, use: Use, op: Norm, steps: views.Steps, gain: Array, offset: Array) -> None:
    names = [
        b.view(use.inputs[0], steps, "nhwc"),
        b.constant(f"{use.name}.gain", gain),
        b.constant(f"{use.name}.offset", offset),
    ]
    b.put(use, op, names, steps, suffix="nhwc")


ROWS = {
    "LayerNormalization": Row(
        layer,
        (Norm,),
        ("axis", "epsilon", "stash_type"),
        (Rule(lambda u: len(u.shape()) >= 1, "the input has at least one axis"), FIXED_SCALE, ALONE),
        Norm.constraints[3:4],
    ),
    "RMSNormalization": Row(
        layer, (Norm,), ("axis", "epsilon", "stash_type"), (FIXED_SCALE, ALONE), Norm.constraints[3:4]
    ),
    "InstanceNormalization": Row(instance, (Norm,), ("epsilon",), (CHANNELS_FIRST, FIXED_SCALE), Norm.constraints[3:4]),
    "GroupNormalization": Row(
        group, (Norm,), ("epsilon", "num_groups", "stash_type"), (CHANNELS_FIRST, FIXED_SCALE), Norm.constraints[3:4]
    ),
    "MeanVarianceNormalization": Row(mean_variance, (Norm,), ("axes",), (), Norm.constraints[3:4]),
    "LpNormalization": Row(
        unit, (Norm,), ("axis", "p"), (Rule(lambda u: u.get("p", 2) == 2, "p is 2"),), Norm.constraints[3:4]
    ),
}
WRITTEN_OUT = Row(written_out, (Norm,), ("axes", "epsilon", "gain", "offset", "centered"))
