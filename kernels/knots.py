"""Functions that are known at equally distant places, as training reads them and learns through them."""

import numpy as np
import numpy.typing as npt
from numba import types

from nnac.kernels.jit import Integer, inner, kernel, sink, source

Float32 = npt.NDArray[np.float32]
F32 = types.float32


@inner
def _place(x: float, rate: float, count: int) -> Integer:
    """The nearest of `count` places, the middle one at zero; what is no number goes to the first."""
    place = x * rate + np.float32(count * 0.5)
    place = place if place > np.float32(0) else np.float32(0)
    last = np.float32(count - 1)
    return np.int32(place if place < last else last)


@kernel(source(F32, 1), source(F32, 1), F32, sink(F32, 1, "C"))
def read(x: Float32, knots: Float32, rate: float, y: Float32) -> None:
    """``y = f(x)`` at the place nearest to each x.

    Args:
        x: (N,) reals.
        knots: (K,) values of f, K odd.
        rate: places per unit of x.
        y: (N,).
    """
    for i in range(x.size):
        y[i] = knots[_place(x[i], rate, knots.size)]


@kernel(source(F32, 1), source(F32, 1), source(F32, 1), F32, sink(F32, 1, "C"), sink(F32, 1, "C"))
def pull(x: Float32, force: Float32, slopes: Float32, rate: float, passed: Float32, sums: Float32) -> None:
    """Gradients of what `read` gives: of x, ``passed = force * slope``, and of the knots, added to `sums`.

    Args:
        x: (N,) as for `read`; force: (N,) gradient of y.
        slopes: (K,) of f.
        rate: as for `read`.
        passed: (N,).
        sums: (K,).
    """
    for i in range(x.size):
        place = _place(x[i], rate, slopes.size)
        sums[place] += force[i]
        passed[i] = slopes[place] * force[i]
