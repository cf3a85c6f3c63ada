"""Real functions of one value that become tables, and functions composed of others.

All of them take and give float64 arrays. What a table holds where a function is not defined follows one rule: the
function's limit where it has one, for it saturates to the nearest end of int8, and never NaN.

- `log` is -inf for x <= 0; `sqrt` is 0 for x < 0; `reciprocal` is +inf at 0 (the limit from above);
- `pow` with an exponent that is no integer takes the value of its limit at 0 for x < 0: 0, or +inf if the exponent is
  negative; with a negative integer exponent it is +inf at 0;
- a composition counts an undefined intermediate result (0 * inf, inf - inf) as 0.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erf as _erf
from math import pi, sqrt
from typing import Any

import numpy as np

from nnac.types import Array

Function = Callable[..., Array]
Part = tuple[str, tuple[Any, ...], tuple[int, ...]]
"""Of a composition: a kind or a joint, its parameters, and what it reads: 0 is x, i the result of part i."""


def gelu(x: Array) -> Array:
    """Return x * P(N(0, 1) <= x)."""
    return np.asarray(0.5 * x * (1.0 + erf(x / sqrt(2.0))))


def gelu_tanh(x: Array) -> Array:
    """Return Gelu's approximation by a hyperbolic tangent."""
    with np.errstate(over="ignore"):
        return np.asarray(0.5 * x * (1.0 + np.tanh(sqrt(2.0 / pi) * (x + 0.044715 * x**3))))


def erf(x: Array) -> Array:
    """Return the error function."""
    return np.asarray(np.vectorize(_erf, otypes=[np.float64])(x))


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), which never overflows in this form."""
    return np.asarray(0.5 * (np.tanh(0.5 * x) + 1.0))


def softplus(x: Array) -> Array:
    """Return log(1 + exp(x))."""
    return np.asarray(np.logaddexp(0.0, x))


def elu(x: Array, alpha: float, gamma: float = 1.0, slope: float = 1.0) -> Array:
    """Return gamma * x for x > 0, else gamma * alpha * (exp(x / slope) - 1): Elu, Selu (gamma) and Celu (slope)."""
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0) / slope))


def exp(x: Array) -> Array:
    """Return exp(x), +inf where it overflows."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(x))


def log(x: Array) -> Array:
    """Return the natural logarithm, -inf for x <= 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.maximum(x, 0.0)))


def reciprocal(x: Array) -> Array:
    """Return 1 / x, +inf at 0 of either sign."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(x == 0, np.inf, 1.0 / x)


def power(x: Array, exponent: float) -> Array:
    """Return x ** exponent; the module says what holds where that is not defined."""
    x = x if float(exponent).is_integer() else np.maximum(x, 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(np.where(x == 0, 0.0, x) ** exponent)


def composed(x: Array, *parts: Part) -> Array:
    """Return the last of `parts`, each a function of `x` and of earlier results; see `Part`."""
    results = [x]
    for kind, params, reads in parts:
        with np.errstate(all="ignore"):
            result = {**FUNCTIONS, **JOINTS}[kind](*(results[i] for i in reads), *params)
        results.append(np.where(np.isnan(result), 0.0, result))
    return results[-1]


JOINTS: dict[str, Function] = {
    "div": lambda a, b: a / b,
    "max": lambda *operands: np.max(operands, axis=0),
    "min": lambda *operands: np.min(operands, axis=0),
    "mul": lambda a, b: a * b,
    "sum": lambda *operands: sum(sign * x for sign, x in zip(operands[-1], operands[:-1], strict=True)),
}
"""What joins results in a composition; the parameter of a sum is the tuple of signs."""

FUNCTIONS: dict[str, Function] = {
    "identity": lambda x: x,
    "affine": lambda x, scale, offset: x * scale + offset,
    "relu": lambda x: np.maximum(x, 0.0),
    "clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "leaky_relu": lambda x, alpha: np.where(x < 0, alpha * x, x),
    "thresholded_relu": lambda x, alpha: np.where(x > alpha, x, 0.0),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0.0, 1.0),
    "hard_swish": lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "swish": lambda x, alpha: x * sigmoid(alpha * x),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "elu": elu,
    "softplus": softplus,
    "softsign": lambda x: x / (1.0 + np.abs(x)),
    "erf": erf,
    "exp": exp,
    "log": log,
    "sqrt": lambda x: np.sqrt(np.maximum(x, 0.0)),
    "reciprocal": reciprocal,
    "pow": power,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "sin": np.sin,
    "cos": np.cos,
    "composed": composed,
}
"""Real functions by kind; the arguments after `x` are `Activation.params`. None gives NaN for a finite `x`."""

EXAMPLES: dict[str, tuple[Any, ...]] = {
    "affine": (0.7, -0.3),
    "clip": (-0.5, 0.9),
    "leaky_relu": (0.1,),
    "thresholded_relu": (0.4,),
    "hard_sigmoid": (0.2, 0.5),
    "swish": (1.702,),
    "elu": (1.67, 1.05, 0.9),
    "pow": (-1.5,),
    "composed": (
        ("affine", (2.0, 1.0), (0,)),
        ("reciprocal", (), (1,)),
        ("mul", (), (0, 2)),
        ("sum", ((1, -1),), (3, 0)),
    ),
}
"""Parameters for the kinds that have some."""
