"""Rows that become dense layers or products of activations: Gemm, MatMul, Einsum, CumSum."""

from __future__ import annotations

from math import prod

import numpy as np

from nnac.frontend import views
from nnac.frontend.builder import Builder
from nnac.frontend.rows_quant import layer
from nnac.frontend.use import Refused, Row, Rule, Shape, Use, normalized, real
from nnac.frontend.views import Steps
from nnac.ops import Activation, Dense, MatMul, Sum, Transpose
from nnac.types import Array


def gemm(b: Builder, use: Use) -> None:
    """Import Gemm: C joins the bias if it is a constant per output feature, else it is added behind."""
    if use.constant(1) is None:
        return _computed_gemm(b, use)
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


def _computed_gemm(b: Builder, use: Use) -> None:
    """Import Gemm of two computed matrices."""
    left = b.view(use.inputs[0], views.transpose((1, 0)) if use.get("transA", 0) else ())
    op = MatMul(bool(use.get("transB", 0)), float(use.get("alpha", 1.0)))
    names = [left, b.value(use.inputs[1])]
    if not use.given(2) or use.get("beta", 1.0) == 0:
        b.put(use, op, names)
    else:
        product = b.emit(use, op, names, f"{use.outputs[0]}.product", None)
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
    """Import MatMul: a dense layer where one matrix is a constant."""
    if use.constant(1) is not None:
        _right(b, use)
    elif use.constant(0) is not None:
        _left(b, use)
    else:
        _computed(b, use)


def _computed(b: Builder, use: Use) -> None:
    """Import a product of two computed tensors; a vector is a row on the left, a column on the right."""
    left, right = use.shape(0), use.shape(1)
    rows: Shape = left if len(left) > 1 else (1, *left)
    columns: Shape = right if len(right) > 1 else (*right, 1)
    source, turned = _right_matrix(b, use.inputs[1], views.reshape(right, columns))
    lead = tuple(int(side) for side in np.broadcast_shapes(rows[:-2], columns[:-2]))
    full: Shape = (*lead, rows[-2], columns[-1])
    names = [b.view(use.inputs[0], views.reshape(left, rows)), source]
    b.put(use, MatMul(turned), names, views.reshape(use.out(), full))


def _right_matrix(b: Builder, name: str, steps: Steps) -> tuple[str, bool]:
    """Return the right operand, and whether it lies turned: behind a transpose that is easier without its last swap."""
    made = None if steps else next((node for node in b.draft.nodes.values() if node.output == name), None)
    if made is None or not isinstance(made.op, Transpose) or made.op.perm[-2] != len(made.op.perm) - 1:
        return b.view(name, steps), False
    *lead, last, inner = made.op.perm
    return b.view(made.inputs[0], views.transpose((*lead, inner, last))), True


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
    """Import Einsum of two tensors, where it is a product of matrices."""
    terms, out = _equation(use)
    if not _one_constant(use):
        return _computed_einsum(b, use, terms, out)
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


def _computed_einsum(b: Builder, use: Use, terms: list[list[str]], out: list[str]) -> None:
    """Import Einsum of two computed tensors: labels in both and in the result count matrices."""
    x, w = terms
    sizes = dict(zip(x + w, (*use.shape(0), *use.shape(1)), strict=True))
    lead = [label for label in out if label in x and label in w]
    inner = [label for label in x if label in w and label not in out]
    rows, columns = ([label for label in term if label not in lead + inner] for term in terms)
    if sorted(lead + rows + columns) != sorted(out) or any(len(set(term)) < len(term) for term in terms):
        raise Refused("every label of one operand only is in the result")
    names = []
    for index, (term, own) in enumerate(((x, rows), (w, columns))):
        order = lead + own + inner
        sides = (*(sizes[i] for i in lead), prod(sizes[i] for i in own), prod(sizes[i] for i in inner))
        turned = views.transpose(tuple(term.index(label) for label in order))
        names.append(b.view(use.inputs[index], (*turned, ("reshape", sides))))
    sides = (*(sizes[i] for i in lead), prod(sizes[i] for i in rows), prod(sizes[i] for i in columns))
    steps = (*views.transpose(tuple(out.index(label) for label in lead + rows + columns)), ("reshape", sides))
    b.put(use, MatMul(turned=True), names, steps)


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
        (Dense, MatMul, Sum),
        ("alpha", "beta", "transA", "transB"),
        (
            Rule(
                lambda u: len(u.inputs) >= 2 and u.constant(0) is None,
                "A is computed",
            ),
            Rule(lambda u: len(u.shape()) == 2, "A is a matrix"),
        ),
    ),
    "MatMul": Row(
        matmul,
        (Dense, MatMul),
        (),
        (Rule(_single_matrix, "a constant is one matrix, not a batch of them"),),
        MatMul.constraints[3:4],
    ),
    "Einsum": Row(
        einsum,
        (Dense, MatMul),
        ("equation",),
        (Rule(lambda u: len(u.inputs) == 2, "two operands"),),
    ),
    "CumSum": Row(
        cumsum,
        (Dense,),
        ("exclusive", "reverse"),
        (Rule(lambda u: u.constant(1) is not None, "the axis is a constant"),),
    ),
}
