"""Quotients, extremes and choices of int8 tensors of four axes; a broadcast operand is a view with strides of zero."""

from numba import types

from nnac.kernels.jit import INT, Int8, Int64, kernel, sink, source
from nnac.kernels.requantize import round_divide, round_shift, saturate


@kernel(source(types.int8, 4, "A"), INT, source(types.int8, 4, "A"), INT, sink(types.int8, 4), *[INT] * 6)
def divide(
    a: Int8,
    a_zero: int,
    b: Int8,
    b_zero: int,
    y: Int8,
    multiplier: int,
    shift: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
) -> None:
    """``y = quotient(a - a_zero, b - b_zero)`` as `norms.quotient` defines it.

    Args:
        a: the shape of y, any strides.
        a_zero: zero point of a.
        b: the shape of y, any strides; may hold b_zero.
        b_zero: zero point of b.
        y: any shape of four axes, any strides.
        multiplier: with `shift`, scale of a over scale of b and of y.
        shift: 0..62.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`; TFLITE counts as HALF_AWAY.
    """
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            for k in range(y.shape[2]):
                for n in range(y.shape[3]):
                    above, below = a[i, j, k, n] - a_zero, b[i, j, k, n] - b_zero
                    if below == 0:
                        share = low - y_zero if above < 0 else (high - y_zero if above > 0 else 0)
                    elif below < 0:
                        share = round_divide(-above * multiplier, -below, shift, rounding)
                    else:
                        share = round_divide(above * multiplier, below, shift, rounding)
                    y[i, j, k, n] = saturate(share + y_zero, low, high)


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


@kernel(
    source(types.int8, 4, "A"),
    source(types.int8, 4, "A"),
    source(types.int8, 4, "A"),
    source(types.int8, 4, "A"),
    source(types.int64, 1),
    source(types.int64, 1),
    sink(types.int8, 4),
    *[INT] * 6,
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
    shift: int,
    y_zero: int,
    low: int,
    high: int,
    rounding: int,
) -> None:
    """``y = yes if a relation b else no``, as `norms.choose` defines it.

    Args:
        a: compared with b; the shape of y, any strides, like all four.
        b: compared with a.
        yes: taken where the relation holds.
        no: taken elsewhere.
        zeros: (4,), zero points.
        multipliers: (4,), of a and b on one common shift, of `yes` and `no` on `shift`.
        y: any shape of four axes, any strides.
        relation: as `nnac.norms.LESS` and its neighbours.
        shift: 0..62.
        y_zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`; TFLITE counts as HALF_AWAY.
    """
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            for k in range(y.shape[2]):
                for n in range(y.shape[3]):
                    first = (a[i, j, k, n] - zeros[0]) * multipliers[0]
                    second = (b[i, j, k, n] - zeros[1]) * multipliers[1]
                    holds = (first < second and relation != 2) or (first == second and relation != 0)
                    if holds:
                        chosen = (yes[i, j, k, n] - zeros[2]) * multipliers[2]
                    else:
                        chosen = (no[i, j, k, n] - zeros[3]) * multipliers[3]
                    y[i, j, k, n] = saturate(round_shift(chosen, shift, rounding) + y_zero, low, high)
