"""Tables of functions for int16 values, computed in float64 and rounded once."""

from __future__ import annotations

import functools

import numpy as np

from nnac.numerics import INT16_HIGH, INT16_LOW, INTERPOLATION_ENTRIES, UNIT_BITS
from nnac.ops.functions import FUNCTIONS
from nnac.types import Array


@functools.lru_cache(64)
def knots(kind: str, step: float, params: tuple[float, ...] = ()) -> Array:
    """Return the 513 knots of a function for `numerics.interpolate`: int16 in Q0.15, half to even, saturated.

    They are found once, and are read-only.

    Args:
        kind: a key of `FUNCTIONS`.
        step: real value of one step of the int16 input: 2**-12 for gates.
        params: the function's parameters.
    """
    places = np.arange(INTERPOLATION_ENTRIES, dtype=np.float64) * 128 + INT16_LOW
    scaled = np.rint(FUNCTIONS[kind](places * step, *params) * (1 << UNIT_BITS))
    found = np.asarray(np.clip(scaled, INT16_LOW, INT16_HIGH)).astype(np.int16)
    found.flags.writeable = False
    return found
