"""Rows that become dense layers: Gemm, MatMul, Einsum, CumSum."""

from __future__ import annotations

from math import prod

import numpy as np

from nnac.frontend import views
from nnac.frontend.builder import Builder
from nnac.frontend.rows_quant import layer
from nnac.frontend.use import Refused, Row, Rule, Shape, Use, normalized, real
from nnac.ops import Activation, Dense, Sum
from nnac.types import Array


def gemm(b: Builder, use: Use) -> None:
    """Import Gemm: C joins the bias if it is a constant per output feature, else it is added behind."""
    weights = real(use.array(1)) * use.get("alpha", 1.0)
    weights = weights if use.get("transB", 0) else weights.T
    x = b.view(use.inputs[0], views.transpose((1, 0)) if use.get("transA", 0) else ())
    names = _integers(b, use, x)
    if names is not None:
        b.put(use, Dense(), names)
    elif not use.given(2) or use.get("beta", 1.0) == 0:
        b.put(use, Dense(), _operands(b, use, x, weights, None))
    elif (bias := _bias(use, len(weights))) is not None:
        b.put(use, Dense(), _operands(b, use, x, weights, bias))
    else:
        product = b.emit(use, Dense(), _operands(b, use, x, weights, None), f"{use.outputs[0]}.product", None)
        b.put(use, Sum(), [product, _addend(b, use)])


def _integers(b: Builder, use: Use, x: str) -> list[str] | None:
    """Return the inputs of a Gemm that the model stores as integers, or None."""
    if use.given(2) and (use.get("beta", 1.0) != 1 or _bias(use, use.out()[-1]) is None):
        return None

    def move(w: Array) -> Array:
        return w if use.get("transB", 0) else w.T

    return layer(b, use, x, (1, move), 2, factor=float(use.get("alpha", 1.0)))


def _bias(use: Use, features: int) -> Array | None:
    """Return beta * C as a vector, or None if C is no constant of one row."""
    c = use.constant(2)
    if c is None or c.size not in (1, features) or c.shape[-1:] not in ((), (1,), (features,)):
        return None
    return np.broadcast_to(real(c).reshape(-1) * use.get("beta", 1.0), (features,))


def _addend(b: Builder, use: Use) -> str:
    """Return the value beta * C."""
    beta, c = use.get("beta", 1.0), use.constant(2)
    if beta == 1:
        return b.value(use.inputs[2])
    if c is not None:
        return b.constant(f"{use.name}.addend", real(c) * beta)
    return b.emit(
        use, Activation("affine", (float(beta), 0.0)), [b.value(use.inputs[2])], f"{use.outputs[0]}.addend", None
    )


def _operands(b: Builder, use: Use, x: str, weights: Array, bias: Array | None, source: int = 1) -> list[str]:
    """Return the inputs of a Dense with weights (O, K); a bias of zeros where there is none."""
    original = use.constant(source)
    kept = original is not None and original.shape == weights.shape and np.array_equal(original, weights)
    stem = use.inputs[source] if kept else f"{use.inputs[source]}.ok"
    given = use.inputs[2] if bias is not None else f"{use.name}.bias"
    return [x, b.constant(stem, weights), b.constant(given, np.zeros(len(weights)) if bias is None else bias)]


def matmul(b: Builder, use: Use) -> None:
    """Import MatMul with one constant matrix."""
    if use.constant(1) is not None:
        _right(b, use)
    else:
        _left(b, use)


def _matrix(use: Use, index: int, column: bool) -> Array:
    """Return the constant as a matrix; a vector is a column or a row."""
    array = real(use.array(index))
    if array.ndim == 1:
        return array.reshape(-1, 1) if column else array.reshape(1, -1)
    return array.reshape(array.shape[-2:])


def _right(b: Builder, use: Use) -> None:
    """x @ W: features are last already."""
    weights = _matrix(use, 1, column=True).T
    shape = use.shape()
    if shape[-1] != weights.shape[1]:
        raise Refused("the inner sides of the matrices are equal")
    device, x = (*shape[:-1], len(weights)), b.value(use.inputs[0])
    names = layer(b, use, x, (1, lambda w: w.reshape(weights.T.shape).T), None)
    b.put(use, Dense(), names or _operands(b, use, x, weights, None), views.reshape(use.out(), device))


def _left(b: Builder, use: Use) -> None:
    """W @ x = (x' W')': the last two axes of x and of the result are swapped."""
    weights, shape = _matrix(use, 0, column=False), use.shape(1)
    matrix: Shape = shape if len(shape) > 1 else (shape[0], 1)
    swap = views.axis_last(len(matrix), len(matrix) - 2)
    source = (*views.reshape(shape, matrix), *swap)
    full: Shape = (*matrix[:-2], len(weights), matrix[-1])
    x = b.view(use.inputs[1], source)
    names = layer(b, use, x, (0, lambda w: w.reshape(weights.shape)), None)
    b.put(use, Dense(), names or _operands(b, use, x, weights, None, 0), (*views.reshape(use.out(), full), *swap))


def einsum(b: Builder, use: Use) -> None:
    """Import Einsum of a tensor with a constant, where it is a product of matrices."""
    terms, out = _equation(use)
    side = 0 if use.constant(1) is not None else 1
    x, w = terms[side], terms[1 - side]
    inner = [label for label in x if label in w]
    kept, new = [label for label in x if label not in w], [label for label in w if label not in x]
    if sorted(kept + new) != sorted(out) or any(len(set(term)) < len(term) for term in terms):
        raise Refused("every label that both operands have is summed over, and no other one")
    sizes = dict(zip(x + w, (*use.shape(side), *use.shape(1 - side)), strict=True))
    lead, depth, count = tuple(sizes[i] for i in kept), prod(sizes[i] for i in inner), prod(sizes[i] for i in new)
    turned = views.transpose(tuple(x.index(label) for label in kept + inner))
    source = b.view(use.inputs[side], (*turned, ("reshape", (*lead, depth))))
    weights = real(use.array(1 - side)).transpose([w.index(label) for label in new + inner]).reshape(count, depth)
    steps = (*views.transpose(tuple(out.index(label) for label in kept + new)), ("reshape", (*lead, count)))
    b.put(use, Dense(), _operands(b, use, source, weights, None, 1 - side), steps)


def _equation(use: Use) -> tuple[list[list[str]], list[str]]:
    """Return the labels of both operands and of the result."""
    left, _, right = str(use.get("equation", "")).replace(" ", "").partition("->")
    terms = [list(term) for term in left.split(",")]
    ranks = [len(use.shape(i)) for i in range(len(use.inputs))]
    if (
        not right
        or [len(term) for term in terms] != ranks
        or len(terms) != 2
        or not (left + right).replace(",", "").isalpha()
    ):
        raise Refused("the equation names every axis of two operands and, behind ->, of the result")
    return terms, list(right)


def cumsum(b: Builder, use: Use) -> None:
    """Import CumSum along one axis as a dense layer with a triangle of ones."""
    shape = use.shape()
    axis = normalized(int(use.array(1).reshape(-1)[0]), len(shape))
    ones = np.tri(shape[axis], k=-1 if use.get("exclusive", 0) else 0)
    along_axis(b, use, axis, ones[::-1, ::-1] if use.get("reverse", 0) else ones)


def along_axis(b: Builder, use: Use, axis: int, matrix: Array) -> None:
    """Import a product of `matrix` (out, in) with the input along one axis."""
    steps = views.axis_last(len(use.shape()), axis)
    names = [
        b.view(use.inputs[0], steps),
        b.constant(f"{use.name}.matrix", matrix),
        b.constant(f"{use.name}.bias", np.zeros(len(matrix))),
    ]
    b.put(use, Dense(), names, views.axis_last(len(use.out()), axis))


def _one_constant(use: Use) -> bool:
    return sum(use.constant(i) is not None for i in (0, 1)) == 1


def _single_matrix(use: Use) -> bool:
    return all(c is None or prod(c.shape[:-2]) == 1 for c in (use.constant(0), use.constant(1)))


ROWS = {
    "Gemm": Row(
        gemm,
        (Dense, Sum),
        ("alpha", "beta", "transA", "transB"),
        (
            Rule(
                lambda u: len(u.inputs) >= 2 and u.constant(1) is not None and u.constant(0) is None,
                "B is a constant and A is computed",
            ),
            Rule(lambda u: len(u.shape()) == 2, "A is a matrix"),
        ),
    ),
    "MatMul": Row(
        matmul,
        (Dense,),
        (),
        (
            Rule(_one_constant, "one of the matrices is a constant (a product of two computed ones is not supported)"),
            Rule(_single_matrix, "the constant is one matrix, not a batch of them"),
        ),
    ),
    "Einsum": Row(
        einsum,
        (Dense,),
        ("equation",),
        (Rule(lambda u: len(u.inputs) == 2 and _one_constant(u), "one of two operands is a constant"),),
    ),
    "CumSum": Row(
        cumsum,
        (Dense,),
        ("exclusive", "reverse"),
        (Rule(lambda u: u.constant(1) is not None, "the axis is a constant"),),
    ),
}
