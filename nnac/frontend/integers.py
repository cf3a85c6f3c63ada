"""Constants that a model stores as integers, as the machine's integers: none of them is rounded again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nnac.frontend.use import Stored
from nnac.types import Array, Quant

INT8 = (-128, 127)
PARTS = 8
"""Blocks may be multiples of the smallest scale over one of 1 to 8."""
BIAS_TOLERANCE = 2.0**-20
"""A bias is in units of input scale * weight scale when its own scale is that product but for float32 rounding."""


def int8_quant(stored: Stored) -> Quant | None:
    """Return the int8 quantization that holds all of a stored constant as it is, or None."""
    if not stored.scale.size or (stored.scale != stored.scale.flat[0]).any():
        return None
    zero = int(stored.zero.flat[0]) if (stored.zero == stored.zero.flat[0]).all() else None
    if zero is None:
        return None
    shift = 128 if stored.integers.min() >= 0 and stored.integers.max() > INT8[1] else 0
    integers = stored.integers.astype(np.int64) - shift
    fits = INT8[0] <= integers.min() and integers.max() <= INT8[1] and INT8[0] <= zero - shift <= INT8[1]
    return Quant(float(stored.scale.flat[0]), zero - shift) if fits else None


def layer_weights(
    stored: Stored, move: Callable[[Array], Array], factor: float = 1.0
) -> tuple[list[Array], Array] | None:
    """Return the weights (O, ...) of a layer in pieces of int8 that add up to them, and float32 scales (O,).

    Pieces are more than one where a zero point moves weights out of int8. Scales that differ inside a channel (blocked
    quantization) must be multiples of one; else there are no such integers, and None is returned.

    Args:
        stored: the constant.
        move: from ONNX's axis order to the device's, outputs first.
        factor: a positive number that the weights are multiplied by.
    """
    moved = stored.mapped(move)
    shape = moved.integers.shape
    integers = (moved.integers.astype(np.int64) - moved.zero).reshape(shape[0], -1)
    scales = moved.scale.astype(np.float64).reshape(shape[0], -1)
    if not factor > 0 or not integers.size:
        return None
    unit = _unit(scales)
    if unit is None:
        return None
    pieces = _pieces((integers * np.rint(scales / unit)).astype(np.int64).reshape(shape))
    return None if pieces is None else (pieces, (unit[:, 0] * factor).astype(np.float32))


def _unit(scales: Array) -> Array | None:
    """Return per row (a column) the scale that all others are multiples of: the smallest, or a small part of it."""
    for part in range(1, PARTS + 1):
        unit = scales.min(axis=1, keepdims=True) / part
        if (np.rint(scales / unit) * unit == scales).all() and (unit.astype(np.float32) == unit).all():
            return np.asarray(unit)
    return None


def _pieces(integers: Array) -> list[Array] | None:
    """Return one to three int8 arrays that add up to the integers, or None if that takes more."""
    for count in (1, 2, 3):
        parts = [(integers + i) // count for i in range(count)]
        if all(part.min() >= INT8[0] and part.max() <= INT8[1] for part in parts):
            return [part.astype(np.int8) for part in parts]
    return None


def layer_bias(stored: Stored, units: Array) -> Array | None:
    """Return an int32 bias (O,) in `units` (O,) of input scale * weight scale, or None where its own are others."""
    integers = (stored.integers.astype(np.int64) - stored.zero).reshape(-1)
    scales = stored.scale.astype(np.float64).reshape(-1)
    if integers.shape != units.shape or np.abs(integers).max(initial=0) >= 2**31:
        return None
    matching = np.abs(scales - units) <= BIAS_TOLERANCE * units
    return integers.astype(np.int32) if (matching | (integers == 0)).all() else None
