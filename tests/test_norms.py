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
from nnac.kernels.norm import normalize, wide_normalize
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
    """The product of int8, through the tiles; of int16 outputs the same."""
    (m, k), n = x.shape, w.shape[1]
    layer, zeros = matmul.layer_of(k, n, x_zero), np.zeros(n, np.int32)
    filters, left, sums = conv.empty_filters(n, layer), room(x.size).reshape(m, 1, k), wide.sums_room((m, 1, n))
    left[:, 0] = x
    conv.packing(np.ascontiguousarray(w.T), zeros, zeros, zeros.astype(np.int8), filters, layer).run()
    made, again = np.empty(sums, np.int32)[:, :, :n], np.empty(y.shape, np.int16)
    products.product(left, filters, made, room(products.workspace_bytes(layer, made.shape)), layer).run()
    matmul.end(x, x_zero, w_zero, made[:, 0], y, *law)
    matmul.end_wide(x, x_zero, w_zero, made[:, 0], again, *law)
    np.testing.assert_array_equal(again, y)


def multiplied_wide(x: Array, x_zero: int, w: Array, w_zero: int, y: Array, *law: int) -> None:
    """The product of int16."""
    matmul.matmul(x, x_zero, w, w_zero, np.empty(w.shape[1], np.int64), y, *law)


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
    run(x, zeros[0], w.astype(x.dtype), zeros[1], y, multiplier, shift, *tail, narrow[1])
    for i in range(m):
        for j in range(n):
            row, column = (x[i].astype(int) - zeros[0]).tolist(), (w[:, j].astype(int) - zeros[1]).tolist()
            law = norms.product(
                row, column, count, multiplier, shift, 0, mode, *LIMITS[bits], narrow[0], bool(narrow[1])
            )
            assert y[i, j] == law


@settings(max_examples=300, deadline=None)
@given(SEED, BITS, st.integers(0, 2**31 - 1), st.integers(0, 62), MODE)
def test_quotient(seed: int, bits: int, multiplier: int, shift: int, mode: Rounding) -> None:
    """Divisors of both signs, and zero."""
    rng = np.random.default_rng(seed)
    a, b = (values(rng, bits, 1, 2, 3, 4) for _ in range(2))
    za, zb, zy = (zero(rng, bits) for _ in range(3))
    b[0, 0, 0, :2] = zb
    y, run = np.empty(a.shape, a.dtype), pairs.divide if bits == 8 else wide.divide
    run(a, za, b, zb, y, (multiplier, shift, zy, *LIMITS[bits], mode))
    above, below = a.astype(np.int64) - za, b.astype(np.int64) - zb
    law = [
        norms.quotient(p, q, multiplier, shift, zy, mode, *LIMITS[bits])
        for p, q in zip(above.ravel().tolist(), below.ravel().tolist(), strict=True)
    ]
    assert y.ravel().tolist() == law
    assert exact.quotient(above, below, multiplier, shift, zy, mode, *LIMITS[bits]).ravel().tolist() == law


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
    y, run = np.empty_like(x), normalize if bits == 8 else wide_normalize
    shifts, tail = (gain_shift, offset_shift), (zy, mode, *LIMITS[bits])
    run(x, gains, offsets, y, zx, int(centered), epsilon, *shifts, zy, *LIMITS[bits], mode, channels)
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


@pytest.mark.parametrize(("bits", "count"), [(8, 1 << 22), (16, 1 << 15)])
def test_largest_group(bits: int, count: int) -> None:
    """At the limit nothing leaves 64 bits: half of the values at either end of the range."""
    low, high = LIMITS[bits]
    x: Array = np.where(np.arange(count) % 2, low, high).astype(np.int8 if bits == 8 else np.int16)
    x = x.reshape(1, count, 1, 1)
    gains, offsets, y = np.array([(1 << 30) - 1], np.int32), np.array([5], np.int32), np.empty_like(x)
    run, epsilon = (normalize, norms.EPSILON_MAX) if bits == 8 else (wide_normalize, 1)
    run(x, gains, offsets, y, 0, 1, epsilon, 24, 0, 0, low, high, 0, 1)
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
