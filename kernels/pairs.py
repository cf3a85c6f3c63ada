"""Quotients, extremes and choices of int8 tensors of four axes; a broadcast operand is a view with strides of zero."""

from numba import types

from nnac.kernels.jit import INT, Int8, Int64, inner, kernel, sink, source
from nnac.kernels.lines import dense, is_dense
from nnac.kernels.requantize import ENDING, SCALE, Ending, Scale, end, share


@inner
def _quotients(p: Int8, p_zero: int, q: Int8, q_zero: int, y: Int8, scale: Scale) -> None:
    """`divide` of a row."""
    low, high = scale[3], scale[4]
    for n in range(y.size):
        above, below = p[n] - p_zero, q[n] - q_zero
        if below < 0:
            above, below = -above, -below
        found = share(above, max(below, 1), scale)
        if below == 0 and above != 0:
            found = low if above < 0 else high
        y[n] = found


@kernel(source(types.int8, 4, "A"), INT, source(types.int8, 4, "A"), INT, sink(types.int8, 4), SCALE)
def divide(a: Int8, a_zero: int, b: Int8, b_zero: int, y: Int8, scale: Scale) -> None:
    """``y = quotient(a - a_zero, b - b_zero)`` as `norms.quotient` defines it.

    Args:
        a: the shape of y, any strides.
        a_zero: zero point of a.
        b: the shape of y, any strides; may hold b_zero.
        b_zero: zero point of b.
        y: any shape of four axes, any strides.
        scale: as `requantize.Scale`, of a over b and y.
    """
    fast = is_dense(a) and is_dense(b) and is_dense(y)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            for k in range(y.shape[2]):
                if fast:
                    _quotients(dense(a[i, j, k]), a_zero, dense(b[i, j, k]), b_zero, dense(y[i, j, k]), scale)
                else:
                    _quotients(a[i, j, k], a_zero, b[i, j, k], b_zero, y[i, j, k], scale)


@kernel(sink(types.int64, 4, "C"), source(types.int8, 4, "A"), INT, INT, INT, INT)
def extreme(found: Int64, x: Int8, zero: int, multiplier: int, least: int, more: int) -> None:
    """``found = max(found, (x - zero) * multiplier)``, or min with `least`: one operand of `norms.extreme`.

    Args:
        found: any shape of four axes; what is in it counts where `more` is 1, not where it is 0.
        x: the same shape, any strides.
        zero: zero point of x.
        multiplier: of x, on the common shift.
        least: whether the smallest is looked for.
        more: 0 for the first operand, 1 for the others.
    """
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            for k in range(found.shape[2]):
                for n in range(found.shape[3]):
                    value = (x[i, j, k, n] - zero) * multiplier
                    if more == 0 or (value < found[i, j, k, n]) == (least == 1):
                        found[i, j, k, n] = value


@inner
def _choices(
    a: Int8, b: Int8, yes: Int8, no: Int8, zeros: Int64, multipliers: Int64, y: Int8, relation: int, ending: Ending
) -> None:
    """`choose` of a row."""
    less, equal = relation != 2, relation != 0
    zero_a, zero_b, zero_yes, zero_no = zeros[0], zeros[1], zeros[2], zeros[3]
    scale_a, scale_b, scale_yes, scale_no = multipliers[0], multipliers[1], multipliers[2], multipliers[3]
    for n in range(y.size):
        first, second = (a[n] - zero_a) * scale_a, (b[n] - zero_b) * scale_b
        one, other = (yes[n] - zero_yes) * scale_yes, (no[n] - zero_no) * scale_no
        holds = (first < second) & less | (first == second) & equal
        y[n] = end(one if holds else other, ending)


@kernel(
    source(types.int8, 4, "A"),
    source(types.int8, 4, "A"),
    source(types.int8, 4, "A"),
    source(types.int8, 4, "A"),
    source(types.int64, 1),
    source(types.int64, 1),
    sink(types.int8, 4),
    INT,
    ENDING,
)
def choose(
    a: Int8,
    b: Int8,
    yes: Int8,
    no: Int8,
    zeros: Int64,
    multipliers: Int64,
    y: Int8,
    relation: int,
    ending: Ending,
) -> None:
    """``y = yes if a relation b else no``, as `norms.choose` defines it.

    Args:
        a: compared with b; the shape of y, any strides, like all four.
        b: compared with a.
        yes: taken where the relation holds.
        no: taken elsewhere.
        zeros: (4,), zero points.
        multipliers: (4,), of a and b on one common shift, of `yes` and `no` on that of the ending.
        y: any shape of four axes, any strides.
        relation: as `nnac.norms.LESS` and its neighbours.
        ending: as `requantize.Ending`.
    """
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            for k in range(y.shape[2]):
                four = a[i, j, k], b[i, j, k], yes[i, j, k], no[i, j, k]
                _choices(*four, zeros, multipliers, y[i, j, k], relation, ending)
