"""Rows that work element by element: sums, products, functions, Softmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, isnan

import numpy as np

from nnac.frontend import views
from nnac.frontend.builder import Builder
from nnac.frontend.rows_window import depthwise
from nnac.frontend.use import Refused, Row, Rule, Use, real
from nnac.ops import Activation, Conv, Div, Mul, Op, Reshape, Softmax, Sum
from nnac.types import Array

FLOAT_MAX = float(np.finfo(np.float32).max)
SLOPES = "the slope is a constant: one, or one per channel"


def constant_side(use: Use) -> int | None:
    """Return which of two operands is a constant, or None."""
    return next((i for i in (0, 1) if use.constant(i) is not None), None)


def linear(b: Builder, use: Use, op: Op, coefficients: Callable[[Array], tuple[Array, Array]]) -> None:
    """Import an operator with one constant operand c as scale(c) * x + shift(c), if c is a scalar or per channel."""
    side = constant_side(use)
    if side is None:
        b.put(use, op, [b.value(name) for name in use.inputs])
        return
    c, x = real(use.array(side)), 1 - side
    scale, shift = (np.broadcast_to(v, c.shape) for v in coefficients(c))
    if not np.isfinite(np.float32(scale + shift)).all():
        raise Refused("the constant is finite in float32, and so is the reciprocal of a divisor")
    if c.size == 1:
        affine = Activation("affine", (float(scale.reshape(-1)[0]), float(shift.reshape(-1)[0])))
        b.put(use, affine, [b.view(use.inputs[x], views.reshape(use.shape(x), use.out()))])
    elif use.inputs[side] not in use.tensors.stored and per_channel(use, c) and use.shape(x) == use.out():
        depthwise(b, use, scale.reshape(-1), shift.reshape(-1), use.inputs[x])
    else:
        b.put(use, op, [b.value(name) for name in use.inputs])


def per_channel(use: Use, c: Array) -> bool:
    """Tell whether a constant that is no scalar has one entry per channel of the output (N, C, L) or (N, C, H, W)."""
    shape = (1,) * (len(use.out()) - c.ndim) + c.shape
    return len(shape) in (3, 4) and shape == (1, c.size, *(1,) * (len(shape) - 2))


def add(b: Builder, use: Use) -> None:
    """Import Add."""
    linear(b, use, Sum(), lambda c: (np.ones(()), c))


def sub(b: Builder, use: Use) -> None:
    """Import Sub."""
    if constant_side(use) == 0:
        linear(b, use, Sum(signs=(1, -1)), lambda c: (-np.ones(()), c))
    else:
        linear(b, use, Sum(signs=(1, -1)), lambda c: (np.ones(()), -c))


def mul(b: Builder, use: Use) -> None:
    """Import Mul."""
    linear(b, use, Mul(), lambda c: (c, np.zeros(())))


def div(b: Builder, use: Use) -> None:
    """Import Div; by a constant as a product with its reciprocal."""
    if use.constant(1) is None:
        b.put(use, Div(), [b.value(name) for name in use.inputs])
        return
    c = real(use.array(1))
    if c.size == 1 or (per_channel(use, c) and use.shape() == use.out()):
        linear(b, use, Mul(), lambda c: (1.0 / c, np.zeros(())))
    else:
        b.put(use, Mul(), [b.value(use.inputs[0]), b.constant(f"{use.inputs[1]}.reciprocal", 1.0 / c)])


def sum_(b: Builder, use: Use) -> None:
    """Import Sum of any number of operands."""
    if len(use.inputs) == 1:
        b.put(use, Reshape(use.out()), [b.value(use.inputs[0])])
    elif len(use.inputs) == 2:
        add(b, use)
    else:
        b.put(use, Sum(signs=(1,) * len(use.inputs)), [b.value(name) for name in use.inputs])


def function(kind: str, **defaults: float) -> Callable[[Builder, Use], None]:
    """Return the handler of a function whose parameters are attributes."""
    return partial(_function, kind=kind, defaults=defaults)


def _function(b: Builder, use: Use, kind: str, defaults: dict[str, float]) -> None:
    params = tuple(float(use.get(name, default)) for name, default in defaults.items())
    if not np.isfinite(params).all():
        raise Refused("the parameters are finite")
    b.put(use, Activation(kind, params), [b.value(use.inputs[0])])


def neg(b: Builder, use: Use) -> None:
    """Import Neg."""
    b.put(use, Activation("affine", (-1.0, 0.0)), [b.value(use.inputs[0])])


def power(b: Builder, use: Use) -> None:
    """Import Pow with one constant exponent."""
    exponent = float(use.array(1).reshape(-1)[0])
    if not np.isfinite(exponent):
        raise Refused("the exponent is finite")
    b.put(use, Activation("pow", (exponent,)), [b.view(use.inputs[0], views.reshape(use.shape(), use.out()))])


def celu(b: Builder, use: Use) -> None:
    """Import Celu: an Elu with the slope of its exponential side at 0 kept at one."""
    alpha = float(use.get("alpha", 1.0))
    if not np.isfinite(alpha) or alpha == 0:
        raise Refused("alpha is finite and not zero")
    b.put(use, Activation("elu", (alpha, 1.0, alpha)), [b.value(use.inputs[0])])


def gelu(b: Builder, use: Use) -> None:
    """Import Gelu, exact or approximated by Tanh."""
    kind = {"none": "gelu", "tanh": "gelu_tanh"}[use.get("approximate", "none")]
    b.put(use, Activation(kind), [b.value(use.inputs[0])])


def clip(b: Builder, use: Use) -> None:
    """Import Clip."""
    low, high = clip_limits(use)
    b.put(use, Activation("clip", (low, high)), [b.value(use.inputs[0])])


def clip_limits(use: Use) -> tuple[float, float]:
    """Return the limits; a missing one, and float32's largest number, mean infinity."""
    limits = []
    for index, name, default in ((1, "min", -inf), (2, "max", inf)):
        found = use.constant(index)
        value = float(found.reshape(-1)[0]) if found is not None and found.size else float(use.get(name, default))
        limits.append(default if abs(value) >= FLOAT_MAX and (value > 0) == (default > 0) else value)
    if isnan(limits[0]) or isnan(limits[1]) or limits[0] > limits[1]:
        raise Refused(f"min is not above max, found {limits[0]:g} and {limits[1]:g}")
    return limits[0], limits[1]


def prelu(b: Builder, use: Use) -> None:
    """Import PRelu; slopes per channel need the channels last."""
    slope, shape = use.array(1), use.shape()
    if slope.size == 1:
        steps = views.AS_IS
    elif slope.shape[-1:] == (slope.size,) == shape[-1:]:
        steps = views.AS_IS
    elif use.out() == shape and per_channel(use, slope):
        steps = views.channels_last(shape)
    else:
        raise Refused(SLOPES)
    names = [b.view(use.inputs[0], steps, "nhwc"), b.constant(f"{use.inputs[1]}.slopes", slope.reshape(-1))]
    b.put(use, Activation("prelu"), names, steps, suffix="nhwc")


def softmax(b: Builder, use: Use) -> None:
    """Import Softmax: over one axis since opset 13, over all axes from `axis` on before."""
    shape = use.shape()
    if use.opset >= 13:
        steps = views.axis_last(len(shape), use.axis(-1, len(shape)))
    else:
        axis = use.axis(1, len(shape))
        steps = views.flattened(shape, axis) if axis != len(shape) - 1 else views.AS_IS
    b.put(use, Softmax(), [b.view(use.inputs[0], steps)], steps)


_PLAIN = {
    kind.capitalize(): Row(function(kind), (Activation,))
    for kind in (
        *(
            "relu",
            "sigmoid",
            "tanh",
            "erf",
            "exp",
            "log",
            "sqrt",
            "abs",
            "sign",
            "floor",
            "ceil",
            "round",
            "sin",
            "cos",
        ),
        *("mish", "reciprocal", "softplus", "softsign"),
    )
}
"""Functions without parameters whose ONNX name is ours with a capital."""

_PAIR = (Rule(lambda u: len(u.inputs) == 2, "two operands"),)

ROWS = {
    "Add": Row(add, (Sum, Activation, Conv), (), _PAIR, Mul.constraints),
    "Sub": Row(sub, (Sum, Activation, Conv), (), _PAIR, Mul.constraints),
    "Mul": Row(mul, (Mul, Activation, Conv), (), _PAIR, Mul.constraints),
    "Div": Row(
        div,
        (Div, Mul, Activation, Conv),
        (),
        (
            *_PAIR,
            Rule(lambda u: u.constant(1) is None or bool(u.array(1).all()), "a constant divisor has no zero"),
        ),
        Mul.constraints,
    ),
    "Sum": Row(sum_, (Sum, Activation, Conv, Reshape), limits=Sum.constraints),
    "Neg": Row(neg, (Activation,)),
    **_PLAIN,
    "LeakyRelu": Row(function("leaky_relu", alpha=0.01), (Activation,), ("alpha",)),
    "ThresholdedRelu": Row(function("thresholded_relu", alpha=1.0), (Activation,), ("alpha",)),
    "Elu": Row(function("elu", alpha=1.0), (Activation,), ("alpha",)),
    "Selu": Row(function("elu", alpha=1.6732632423543772, gamma=1.0507009873554805), (Activation,), ("alpha", "gamma")),
    "Celu": Row(celu, (Activation,), ("alpha",)),
    "Swish": Row(function("swish", alpha=1.0), (Activation,), ("alpha",)),
    "Gelu": Row(
        gelu,
        (Activation,),
        ("approximate",),
        (Rule(lambda u: u.get("approximate", "none") in ("none", "tanh"), "approximate is none or tanh"),),
    ),
    "Pow": Row(
        power,
        (Activation,),
        (),
        (Rule(lambda u: (c := u.constant(1)) is not None and c.size == 1, "the exponent is one constant"),),
    ),
    "HardSigmoid": Row(function("hard_sigmoid", alpha=0.2, beta=0.5), (Activation,), ("alpha", "beta")),
    "HardSwish": Row(function("hard_swish"), (Activation,)),
    "Clip": Row(
        clip, (Activation,), ("min", "max"), (Rule(lambda u: u.fixed(1) and u.fixed(2), "min and max are constants"),)
    ),
    "PRelu": Row(prelu, (Activation,), (), (Rule(lambda u: u.constant(1) is not None, SLOPES),)),
    "Softmax": Row(
        softmax,
        (Softmax,),
        ("axis",),
        (Rule(lambda u: len(u.shape()) >= 1, "the input has at least one axis"),),
        Softmax.constraints,
    ),
}
