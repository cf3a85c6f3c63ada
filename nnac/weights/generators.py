"""Generators of codebooks: which levels a table of 2**bits int8 values may hold, up to one common factor.

A generator proposes shapes, ascending levels whose factor is still open; the fit takes the shape and the factor of
least squared error. `lloyd_max` proposes none: its levels come from the weights alone. The names and sources:

- `uniform`: evenly spaced; symmetric with zero, one level more on either side, or symmetric without zero.
- `lloyd_max`: the least squared error there is (Lloyd 1982; Max 1960).
- `mu_law`: evenly spaced behind y = sgn(x) ln(1 + mu |x|) / ln(1 + mu), a reconstruction of GQ's mu-law constrained
  space (Zhen et al., arXiv 2210.09188); the fixed grid that its training starts from.
- `power`: evenly spaced behind y = sgn(x) |x|**a, a reconstruction of NUPES and PowerQuant (Yvinec et al.).
- `power_of_sqrt2`: 2**(-k/2), a reconstruction of POST in ASQ (adaptive step, power-of-square-root-of-two levels).
- `fp4`: E2M1 (LLM-FP4, Liu et al. 2023) times two: integers up to 12, exact.
- `ternary`: -1, 0, 1 at the median of |w| (BitNet b1.58 Reloaded).
- `binary`: -1, 1 at the mean of |w|, which is the least-squares factor (XNOR-Net).
- `gaussian_median`: medians of the cells of N(0, 1), at the deviation and mean of the weights (1-bit
  adapters, Jie et al. 2023).
- `double_rounding`: int8 weights rounded again to fewer bits (Double Rounding): views of one int8 tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from nnac.errors import ModelError
from nnac.types import Array

Float64 = NDArray[np.float64]
Shapes = Callable[[int, float | None], list[Float64]]
Norm = Callable[[Array, Array], Float64]

MU = 5.0
EXPONENTS = tuple(np.arange(6, 21) / 20)
BISECTIONS = 200


@dataclass(frozen=True, slots=True)
class Generator:
    """How a codebook comes about.

    Args:
        name: as in `encode`.
        bits: index widths that it has a table for.
        shapes: from bits and a parameter to proposals; None takes the levels from the weights.
        norm: from rows (R, K) and their importance to the size of each row: the unit of the shape where it is fixed.
        unit: the shape's value of one norm; None takes its largest level.
        integral: the shape holds integers in the proportions that matter.
        ruled: the scale is norm / unit, by definition, unless a refit is asked for.
        centered: the shape moves with the mean of the weights.
    """

    name: str
    bits: tuple[int, ...]
    shapes: Shapes | None
    norm: Norm
    unit: float | None = None
    integral: bool = False
    ruled: bool = False
    centered: bool = False

    def propose(self, bits: int, zero: bool, parameter: float | None) -> list[Float64]:
        """Return the shapes of `bits` bits that hold a zero if `zero`.

        Raises:
            ModelError: there is none.
        """
        if bits not in self.bits:
            widths = f"{self.bits[0]} to {self.bits[-1]}" if len(self.bits) > 1 else f"only {self.bits[0]}"
            raise ModelError(f"generator {self.name!r} has no table of {bits} bits; it supports {widths}")
        shapes = self.shapes(bits, parameter) if self.shapes else []
        found = [shape for shape in shapes if not zero or 0.0 in shape]
        if self.shapes and not found:
            raise ModelError(
                f"generator {self.name!r} has no level at zero with {bits} bits; leave zero=False, or use "
                f"another generator, as lloyd_max"
            )
        return found

    def holds_zero(self, bits: int) -> bool:
        """Return whether a table of this width can have a level at zero."""
        return self.shapes is None or any(0.0 in shape for shape in self.shapes(bits, None))


# -- norms ---------------------------------------------------------------------------------------------------------


def peak(rows: Array, importance: Array) -> Float64:
    """Return the largest magnitude of each row."""
    return np.asarray(np.maximum(rows.max(axis=1), -rows.min(axis=1)), np.float64)


def root_mean_square(rows: Array, importance: Array) -> Float64:
    """Return the weighted root of the mean square of each row."""
    wide = rows.astype(np.float64)
    return np.asarray(np.sqrt(_mean(wide * wide, importance)))


def mean_magnitude(rows: Array, importance: Array) -> Float64:
    """Return the weighted mean of the magnitudes of each row."""
    return _mean(np.abs(rows.astype(np.float64)), importance)


def median_magnitude(rows: Array, importance: Array) -> Float64:
    """Return the median of the magnitudes of each row; their mean where more than half of the weights are zero."""
    median = np.median(np.abs(rows.astype(np.float64)), axis=1)
    return np.asarray(np.where(median > 0, median, mean_magnitude(rows, importance)))


def deviation(rows: Array, importance: Array) -> Float64:
    """Return the weighted standard deviation of each row; its root mean square where all weights are the same."""
    wide = rows.astype(np.float64)
    spread = np.sqrt(_mean((wide - _mean(wide, importance)[:, None]) ** 2, importance))
    size = root_mean_square(rows, importance)
    return np.asarray(np.where(spread > 1e-6 * size, spread, size))


def _mean(values: Float64, importance: Array) -> Float64:
    weight = importance.sum(axis=1, dtype=np.float64)
    plain = values.mean(axis=1)
    return np.asarray(np.divide(np.einsum("rk,rk->r", values, importance), weight, out=plain, where=weight > 0))


# -- shapes --------------------------------------------------------------------------------------------------------


def _uniform(bits: int, parameter: float | None) -> list[Float64]:
    half = 2 ** (bits - 1)
    even = [np.arange(1 - half, half)] if bits > 1 else []
    uneven = [np.arange(-half, half), np.arange(1 - half, half + 1)] if bits < 8 else []
    without_zero = [np.arange(1 - 2 * half, 2 * half, 2)] if bits < 8 else []
    return [shape.astype(np.float64) for shape in (*even, *without_zero, *uneven)]


def _companded(bits: int, expand: Callable[[Float64], Float64]) -> list[Float64]:
    """Return levels that are even behind a compander, with zero and without."""
    evens = [np.linspace(-1, 1, n) for n in (2**bits, 2**bits - 1) if n > 1]
    return [np.sign(y) * expand(np.abs(y)) for y in evens]


def _mu_law(bits: int, parameter: float | None) -> list[Float64]:
    mu = MU if parameter is None else parameter
    if not mu > 0:
        raise ModelError(f"mu_law with mu = {mu}: mu is positive, 5 as a rule")
    return _companded(bits, lambda y: np.asarray(np.expm1(y * np.log1p(mu)) / mu))


def _power(bits: int, parameter: float | None) -> list[Float64]:
    if parameter is not None and not parameter > 0:
        raise ModelError(f"power with exponent {parameter}: the exponent is positive, 0.3 to 1 as a rule")
    exponents = EXPONENTS if parameter is None else (parameter,)
    return [shape for a in exponents for shape in _companded(bits, partial(_root, exponent=float(a)))]


def _root(y: Float64, exponent: float) -> Float64:
    return np.asarray(y ** (1 / exponent))


def _power_of_sqrt2(bits: int, parameter: float | None) -> list[Float64]:
    half = 2 ** (bits - 1)
    steps = [2.0 ** (-np.arange(n - 1, -1, -1) / 2) for n in (half, half - 1) if n > 0]
    return [np.concatenate([-side[::-1], [0.0] if side.size < half else [], side]) for side in steps]


def _fp4(bits: int, parameter: float | None) -> list[Float64]:
    side = np.array([1, 2, 3, 4, 6, 8, 12], np.float64)
    return [np.concatenate([-side[::-1], [0.0], side])]


def _ternary(bits: int, parameter: float | None) -> list[Float64]:
    return [np.array([-1.0, 0.0, 1.0])]


def _binary(bits: int, parameter: float | None) -> list[Float64]:
    return [np.array([-1.0, 1.0])]


def _double_rounding(bits: int, parameter: float | None) -> list[Float64]:
    return [np.arange(1 - 2 ** (bits - 1), 2 ** (bits - 1)) * 2.0 ** (8 - bits)]


def _gaussian_median(bits: int, parameter: float | None) -> list[Float64]:
    return [np.array(gaussian_medians(bits))]


@cache
def gaussian_medians(bits: int) -> tuple[float, ...]:
    """Return the 2**bits levels of N(0, 1) that are medians of their cells, cells ending halfway between levels.

    The positive side follows from its first level: P(t) = 2 P(level) - P(t before), level after = 2 t - level. The
    first level is bisected until the last cell ends at probability 1.
    """
    count = 2 ** (bits - 1)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if len(_medians(middle, count)) == count else (low, middle)
    side = _medians(low, count)
    return (*(-level for level in reversed(side)), *side)


def _medians(first: float, count: int) -> list[float]:
    """Return the positive levels from the first on; none where it is too large and the probability runs out."""
    normal, levels, tail = NormalDist(), [first], 0.5
    while True:
        tail = 2 * normal.cdf(-levels[-1]) - tail
        if len(levels) == count:
            return levels if tail >= 0 else []
        if tail <= 0 or -2 * normal.inv_cdf(tail) - levels[-1] <= levels[-1]:
            return []
        levels.append(-2 * normal.inv_cdf(tail) - levels[-1])


ALL = tuple(range(1, 9))
GENERATORS = {
    generator.name: generator
    for generator in (
        Generator("uniform", ALL, _uniform, peak, integral=True),
        Generator("lloyd_max", ALL, None, peak),
        Generator("mu_law", ALL, _mu_law, peak),
        Generator("power", ALL, _power, peak),
        Generator("power_of_sqrt2", ALL[:5], _power_of_sqrt2, peak),
        Generator("fp4", (4,), _fp4, peak, integral=True),
        Generator("ternary", (2,), _ternary, median_magnitude, 1.0, integral=True, ruled=True),
        Generator("binary", (1,), _binary, mean_magnitude, 1.0, integral=True, ruled=True),
        Generator("gaussian_median", ALL, _gaussian_median, deviation, 1.0, ruled=True, centered=True),
        Generator("double_rounding", ALL[1:], _double_rounding, peak, 127.0, integral=True, ruled=True),
    )
}


def find(name: str) -> Generator:
    """Return the generator of this name.

    Raises:
        ModelError: there is none.
    """
    if name not in GENERATORS:
        raise ModelError(f"generator {name!r} does not exist; there are {', '.join(GENERATORS)}")
    return GENERATORS[name]
