"""Products, quotients, extremes, choices and norms of activations: law, exact numpy and kernels give the same bits."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnac import norms
from nnac.kernels import conv, elementwise, matmul, pairs, products, wide
from nnac.kernels.machine import forced, runnable
from nnac.kernels.norm import columns, normalize, wide_normalize
from nnac.kernels.panels import room
from nnac.numerics import Rounding
from nnac.ops import exact
from nnac.types import Array

SEED = st.integers(0, 2**32 - 1)
MODE = st.sampled_from(Rounding)
BITS = st.sampled_from([8, 16])
LIMITS = {8: (-128, 127), 16: (-(1 << 15), (1 << 15) - 1)}


def values(rng: np.random.Generator, bits: int, *shape: int) -> Array:
    """Return activations; both ends of the range come often."""
    low, high = LIMITS[bits]
    drawn, ends = rng.integers(low, high + 1, shape), rng.random(shape)
    return np.where(ends < 0.1, low, np.where(ends > 0.9, high, drawn)).astype(np.int8 if bits == 8 else np.int16)


def zero(rng: np.random.Generator, bits: int) -> int:
    """Return a legal zero point."""
    return int(rng.choice([-128, 127, 0, 5])) if bits == 8 else 0


def multiplied(x: Array, x_zero: int, w: Array, w_zero: int, y: Array, *law: int) -> None:
    """The product of int8, through the tiles; from the turned matrix, of int16 outputs, the same."""
    (m, k), n = x.shape, w.shape[1]
    layer, left, again = matmul.layer_of(k, n, x_zero), room(x.size).reshape(m, 1, k), np.empty(y.shape, np.int16)
    left[:, 0] = x
    for right, turned, made in ((w, 0, y), (np.ascontiguousarray(w.T), 1, again)):
        filters, sums = conv.empty_filters(n, layer), np.empty(wide.sums_room((m, 1, n)), np.int32)[:, :, :n]
        matmul.packing(right, turned, filters, layer).run()
        products.product(left, filters, sums, room(products.workspace_bytes(layer, sums.shape)), layer).run()
        matmul.ending(x, x_zero, w_zero, sums[:, 0], made, filters, *law).run()
    np.testing.assert_array_equal(again, y)


def multiplied_wide(x: Array, x_zero: int, w: Array, w_zero: int, y: Array, *law: int) -> None:
    """The product of int16; with a right matrix of int8 from both bytes of the left one too."""
    wide_w = w.astype(np.int16)
    matmul.matmul(x, x_zero, wide_w, w_zero, np.empty(w.shape[1], np.int64), y, *law)
    if w.dtype == np.int16:
        return
    (m, k), n, again = x.shape, w.shape[1], np.empty_like(y)
    layer, planes = matmul.layer_of(k, n, 0), [room((m + more) * k) for more in range(2)]
    wide.split(x.reshape(-1), planes[0], planes[1][: m * k])
    planes[1][m * k :] = 1
    filters, made = conv.empty_filters(n, layer), []
    matmul.packing(w, 0, filters, layer).run()
    for plane in planes:
        left = plane.reshape(-1, 1, k)
        sums = np.empty(wide.sums_room((len(left), 1, n)), np.int32)[:, :, :n]
        products.product(left, filters, sums, room(products.workspace_bytes(layer, sums.shape)), layer).run()
        made.append(sums[:, 0])
    matmul.end_planes(x, w_zero, *made, again, *law)
    np.testing.assert_array_equal(again, y)


@settings(max_examples=200, deadline=None)
@given(SEED, BITS, st.booleans(), st.integers(0, 62), MODE, st.sampled_from([(32, 0), (16, 1), (20, 0)]))
def test_product(seed: int, bits: int, both: bool, shift: int, mode: Rounding, narrow: tuple[int, int]) -> None:
    """Two operands of 8 bits, of 16, or one of each."""
    rng = np.random.default_rng(seed)
    m, k, n = (int(v) for v in rng.integers(1, 9, 3))
    right = bits if both else 8
    x, w = values(rng, bits, m, k), values(rng, right, k, n)
    zeros, count = (zero(rng, bits), zero(rng, right)), (bits == 16) + (right == 16)
    multiplier = int(rng.integers(0, 1 << norms.product_bits(count)))
    y = np.empty((m, n), np.int8 if bits == 8 else np.int16)
    tail = (0, *LIMITS[bits], Rounding.HALF_AWAY if count and mode == Rounding.TFLITE else mode, narrow[0] + 8 * count)
    run = multiplied if bits == 8 else multiplied_wide
    run(x, zeros[0], w, zeros[1], y, multiplier, shift, *tail, narrow[1])
    for i in range(m):
        for j in range(n):
            row, column = (x[i].astype(int) - zeros[0]).tolist(), (w[:, j].astype(int) - zeros[1]).tolist()
            law = norms.product(
                row, column, count, multiplier, shift, 0, mode, *LIMITS[bits], narrow[0], bool(narrow[1])
            )
            assert y[i, j] == law


@settings(max_examples=100, deadline=None)
@given(SEED, MODE, st.sampled_from([(1, 7), (1 << 30, 44), (0x5A5A5A5B, 41), (3, 0)]), st.sampled_from(runnable()))
def test_product_of_panels(seed: int, mode: Rounding, scale: tuple[int, int], processor: str) -> None:
    """Several panels and steps, the last ones not full; ties, and sums that reach their ends."""
    rng = np.random.default_rng(seed)
    (m, k), n = (int(v) for v in rng.integers(1, 8, 2)), int(rng.integers(1, 140))
    x, w, zeros = values(rng, 8, m, k), values(rng, 8, k, n), (zero(rng, 8), zero(rng, 8))
    x, w = (np.full_like(a, rng.choice([-128, 127])) if rng.random() < 0.2 else a for a in (x, w))
    y, limits = np.empty((m, n), np.int8), (-40, 90)
    with forced(processor):
        multiplied(x, zeros[0], w, zeros[1], y, *scale, 3, *limits, mode, 32, 0)
    left, right = x.astype(int) - zeros[0], w.astype(int) - zeros[1]
    law = [[norms.product(row, col, 0, *scale, 3, mode, *limits) for col in right.T.tolist()] for row in left.tolist()]
    assert y.tolist() == law


RATIO = st.one_of(
    st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 62)),
    st.tuples(st.sampled_from([1, 2, 3, 16, 1 << 20]), st.integers(0, 16)),  # many ties
    st.tuples(st.integers(2**30, 2**31 - 1), st.integers(16, 30)),
)


@settings(max_examples=400, deadline=None)
@given(SEED, BITS, RATIO, st.sampled_from([(-(1 << 15), (1 << 15) - 1), (-40, 90), (7, 7)]), MODE)
def test_quotient(seed: int, bits: int, ratio: tuple[int, int], limits: tuple[int, int], mode: Rounding) -> None:
    """Divisors of both signs, small ones and zero; quotients of all sizes, in short and long rows."""
    rng = np.random.default_rng(seed)
    shape = (1, 1, 2, int(rng.choice([1, 5, 600])))
    (a, b), (za, zb, zy) = (values(rng, bits, *shape) for _ in range(2)), (zero(rng, bits) for _ in range(3))
    low, high = max(limits[0], LIMITS[bits][0]), min(limits[1], LIMITS[bits][1])
    near = np.clip(zb + rng.integers(-40, 41, shape), *LIMITS[bits])
    b = np.where(rng.random(shape) < 0.5, near, b).astype(b.dtype)
    y, run = np.empty(a.shape, a.dtype), pairs.divide if bits == 8 else wide.divide
    given = (*ratio, zy, low, high, mode)
    run(a, za, b, zb, y, given)
    again = np.empty((*shape[:-1], 2 * shape[-1]), a.dtype)[..., ::2]
    run(a, za, b, zb, again, given)
    np.testing.assert_array_equal(again, y)
    above, below = a.astype(np.int64) - za, b.astype(np.int64) - zb
    law = [
        norms.quotient(p, q, *ratio, zy, mode, low, high)
        for p, q in zip(above.ravel().tolist(), below.ravel().tolist(), strict=True)
    ]
    assert y.ravel().tolist() == law
    assert exact.quotient(above, below, *ratio, zy, mode, low, high).ravel().tolist() == law


def test_quotient_by_zero() -> None:
    """It saturates on the numerator's side; 0 / 0 is the real zero."""
    assert [norms.quotient(n, 0, 1, 0, 3, Rounding.HALF_EVEN) for n in (-1, 0, 1)] == [-128, 3, 127]


@settings(max_examples=200, deadline=None)
@given(SEED, BITS, st.integers(1, 4), st.booleans(), st.integers(0, 62), MODE)
def test_extreme(seed: int, bits: int, count: int, least: bool, shift: int, mode: Rounding) -> None:
    """Operands on several scales."""
    rng = np.random.default_rng(seed)
    operands = [values(rng, bits, 2, 1, 2, 3) for _ in range(count)]
    zeros, multipliers = [zero(rng, bits) for _ in operands], [int(m) for m in rng.integers(0, 2**31, count)]
    found = np.empty(operands[0].shape, np.int64)
    y, take, finish = np.empty(found.shape, operands[0].dtype), pairs.extreme, elementwise.requantize_wide
    if bits == 16:
        take, finish = wide.extreme, wide.requantize_wide
    for n, (x, z, m) in enumerate(zip(operands, zeros, multipliers, strict=True)):
        take(found, x, z, m, int(least), int(n > 0))
    finish(found, y, (shift, 0, *LIMITS[bits], mode))
    columns = np.stack([x.astype(np.int64).ravel() - z for x, z in zip(operands, zeros, strict=True)], axis=1)
    law = [norms.extreme(row, multipliers, least, shift, 0, mode, *LIMITS[bits]) for row in columns.tolist()]
    assert y.ravel().tolist() == law


@settings(max_examples=200, deadline=None)
@given(SEED, BITS, st.integers(0, 2), st.integers(0, 62), MODE)
def test_choice(seed: int, bits: int, relation: int, shift: int, mode: Rounding) -> None:
    """Each relation, with equal values among what is compared."""
    rng = np.random.default_rng(seed)
    operands = [values(rng, bits, 1, 3, 1, 4) for _ in range(4)]
    a, b, yes, no = operands
    operands[1][..., 0] = operands[0][..., 0]
    zeros, multipliers = [zero(rng, bits) for _ in operands], [int(m) for m in rng.integers(0, 2**31, 4)]
    zeros[1], multipliers[1] = zeros[0], multipliers[0]
    y, run = np.empty(operands[0].shape, operands[0].dtype), pairs.choose if bits == 8 else wide.choose
    run(a, b, yes, no, np.array(zeros), np.array(multipliers), y, relation, (shift, 0, *LIMITS[bits], mode))
    columns = np.stack([x.astype(np.int64).ravel() - z for x, z in zip(operands, zeros, strict=True)], axis=1)
    law = [norms.choose(row, multipliers, relation, shift, 0, mode, *LIMITS[bits]) for row in columns.tolist()]
    assert y.ravel().tolist() == law


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 2**62 - 1) | st.integers(0, 61).map(lambda n: 1 << n) | st.integers(1, 2**20))
def test_inverse_root(value: int) -> None:
    """Its relative error stays under 2**-30; numpy finds the same."""
    root, lift = norms.inverse_root(value)
    assert tuple(int(v) for v in exact.inverse_root(value)) == (root, lift)
    square = Fraction(root * root) * Fraction(4) ** (lift - norms.ROOT_BITS) * value  # (root * sqrt(value))**2
    assert (1 - Fraction(1, 1 << 30)) ** 2 < square < (1 + Fraction(1, 1 << 30)) ** 2


@pytest.mark.parametrize("value", [0, -1, 1 << 62])
def test_no_inverse_root(value: int) -> None:
    """Outside its range it is refused."""
    with pytest.raises(ValueError, match="square root"):
        norms.inverse_root(value)


def normalized(x: Array, gains: Array, offsets: Array, y: Array, *law: int) -> None:
    """The norm of int8 or int16."""
    run, work = normalize if x.dtype == np.int8 else wide_normalize, np.empty((3, columns(*x.shape[2:])), np.int64)
    run(x, gains, offsets, y, work, *law)


@settings(max_examples=300, deadline=None)
@given(SEED, BITS, st.booleans(), st.integers(0, 32), st.integers(0, 32), st.integers(1, 2**60), MODE)
def test_norm(
    seed: int, bits: int, centered: bool, gain_shift: int, offset_shift: int, epsilon: int, mode: Rounding
) -> None:
    """Groups interleaved with others, gains and offsets of up to 30 bits, constant groups among them."""
    rng = np.random.default_rng(seed)
    rows, positions, groups, depth = (int(v) for v in rng.integers(1, 5, 4))
    x, zx, zy = values(rng, bits, rows, positions, groups, depth), zero(rng, bits), zero(rng, bits)
    x[0] = x[0, 0, 0, 0] if rng.random() < 0.3 else x[0]
    epsilon = epsilon >> int(rng.integers(0, 60)) or 1
    channels = groups * depth * (positions if rng.random() < 0.5 else 1)
    most = rng.integers(1, 31, 2)
    gains, offsets = (rng.integers(-(1 << b) + 1, 1 << b, channels).astype(np.int32) for b in most)
    offset_shift = min(offset_shift, gain_shift)
    y = np.empty_like(x)
    shifts, tail = (gain_shift, offset_shift), (zy, mode, *LIMITS[bits])
    normalized(x, gains, offsets, y, zx, int(centered), epsilon, *shifts, zy, *LIMITS[bits], mode, channels)
    index = np.arange(positions * groups * depth).reshape(positions, groups, depth) % channels
    for row in range(rows):
        for group in range(groups):
            places = index[:, group].ravel()
            data, gain, offset = x[row, :, group].ravel(), gains[places], offsets[places]
            scaled = (gain.tolist(), gain_shift, offset.tolist(), offset_shift)
            law = norms.normalize(data.astype(int).tolist(), zx, centered, epsilon, *scaled, *tail)
            assert y[row, :, group].ravel().tolist() == law
            twin = exact.normalize(data, zx, centered, epsilon, gain, gain_shift, offset, offset_shift, *tail)
            assert twin.tolist() == law


@settings(max_examples=200, deadline=None)
@given(SEED, BITS, st.booleans(), st.integers(20, 24), st.sampled_from([(-128, 127), (-7, 90), (-300, 700)]), MODE)
def test_norm_within_limits(
    seed: int, bits: int, centered: bool, shift: int, limits: tuple[int, int], mode: Rounding
) -> None:
    """Values of all sizes between the limits, wide groups, and ties: offsets of a half where a gain is zero."""
    rng = np.random.default_rng(seed)
    rows, positions, depth = 3, int(rng.integers(1, 3)), int(rng.integers(1, 70))
    low, high = (max(limits[0], -128), min(limits[1], 127)) if bits == 8 else limits
    x, zx, zy = values(rng, bits, rows, positions, 1, depth), zero(rng, bits), zero(rng, bits)
    gains = (rng.uniform(-60, 60, depth) * (1 << shift) * (rng.random(depth) < 0.9)).astype(np.int32)
    offsets = (rng.integers(-100, 100, depth) << (shift - 1)).astype(np.int32)
    offsets += (rng.integers(-1, 2, depth) * (rng.random(depth) < 0.5)).astype(np.int32)
    y = np.empty_like(x)
    normalized(x, gains, offsets, y, zx, int(centered), 1, shift, shift, zy, low, high, mode, depth)
    for data, made in zip(x.reshape(rows, -1), y.reshape(rows, -1), strict=True):
        scaled = ((*gains.tolist(),) * positions, shift, (*offsets.tolist(),) * positions, shift)
        law = norms.normalize(data.astype(int).tolist(), zx, centered, 1, *scaled, zy, mode, low, high)
        assert made.tolist() == law


@pytest.mark.parametrize(("bits", "count"), [(8, 1 << 22), (16, 1 << 15)])
def test_largest_group(bits: int, count: int) -> None:
    """At the limit nothing leaves 64 bits: half of the values at either end of the range."""
    low, high = LIMITS[bits]
    x: Array = np.where(np.arange(count) % 2, low, high).astype(np.int8 if bits == 8 else np.int16)
    x = x.reshape(1, count, 1, 1)
    gains, offsets, y = np.array([(1 << 30) - 1], np.int32), np.array([5], np.int32), np.empty_like(x)
    epsilon = norms.EPSILON_MAX if bits == 8 else 1
    normalized(x, gains, offsets, y, 0, 1, epsilon, 24, 0, 0, low, high, 0, 1)
    mean, square = (low + high) / 2, ((low - high) / 2) ** 2
    expected = (high - mean) / sqrt(square + epsilon / count**2) * ((1 << 30) - 1) / (1 << 24) + 5
    assert abs(y[0, 0, 0, 0] - min(round(expected), high)) <= 1


@pytest.mark.parametrize("peak", [1e-12, 0.3, 1.0, 127.9, 2.0**29])
def test_gains_keep_their_bits(peak: float) -> None:
    """The largest gain has 30 bits unless its shift would exceed 32."""
    gains, shift = norms.encode_gains([peak, -peak / 3, 0.0])
    assert abs(gains[0] - peak * 2.0**shift) <= 0.5
    assert shift == norms.GAIN_SHIFT_MAX or gains[0] >= 1 << 29
    offsets, less = norms.encode_offsets([3.0, -1e9], shift)
    assert 0 <= less <= shift
    assert offsets[0] == round(3.0 * 2**less)


def test_too_large_gain_is_refused() -> None:
    """2**30 output steps are the limit."""
    with pytest.raises(ValueError, match="too large"):
        norms.encode_gains([2.0**30])


@pytest.mark.parametrize(
    ("epsilon", "scale", "count"), [(0.0, 1.0, 4), (1e-5, 0.02, 16), (1e-5, 1e-4, 512), (1e3, 1e-9, 9)]
)
def test_epsilon(epsilon: float, scale: float, count: int) -> None:
    """At least one unit, at most 2**60, and 30 significant bits between."""
    units, shift = norms.encode_epsilon(epsilon, scale, count)
    wanted = min(max(Fraction(epsilon) * count**2 / Fraction(scale) ** 2, Fraction(1)), Fraction(norms.EPSILON_MAX))
    assert abs((units << shift) - wanted) <= max(Fraction(1, 2), wanted / (1 << 30))
    assert isqrt(units << shift) <= 1 << 30
