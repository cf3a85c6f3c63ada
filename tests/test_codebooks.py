"""Codebooks: levels against brute force, every generator at every width, error feedback, folding, bad input."""

from __future__ import annotations

import time
from itertools import combinations
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nnac.errors import ModelError
from nnac.weights import histogram
from nnac.weights.codebooks import Codebook, Encoded, double_round, encode, group_bounds
from nnac.weights.feedback import output_errors
from nnac.weights.folding import distinct_levels, fold_centroids, lossless_scale
from nnac.weights.generators import GENERATORS, gaussian_medians
from nnac.weights.histogram import lloyd_max_levels

Array = NDArray[Any]

SEED = st.integers(0, 2**32 - 1)
REAL = st.floats(-100, 100, width=32).map(lambda x: round(x, 3))
CASES = [(name, bits) for name, generator in GENERATORS.items() for bits in generator.bits]
GAUSS = np.random.default_rng(7).normal(size=(24, 96)).astype(np.float32) * 0.05
LAPLACE = (np.random.default_rng(0).laplace(size=(1024, 4096)) * 0.02).astype(np.float32)


def squared_error(x: Array, levels: Array, weights: Array | float = 1.0) -> float:
    """Return the error of every value at its nearest level."""
    return float((weights * np.abs(np.asarray(x, np.float64)[:, None] - levels).min(axis=1) ** 2).sum())


def brute_force(x: Array, k: int, weights: Array, zero: bool) -> float:
    """Return the least error over all ways to cut the sorted values into k runs, one of them at 0 if `zero`."""
    order = np.argsort(x)
    x, weights, best = x[order], weights[order], inf
    for cuts in combinations(range(x.size + 1), min(k - 1, x.size + 1)):
        runs = [slice(a, b) for a, b in zip((0, *cuts), (*cuts, x.size), strict=True)]
        means = [np.average(x[r], weights=weights[r]) if weights[r].sum() > 0 else 0.0 for r in runs]
        pins = range(len(runs)) if zero else [-1]
        best = min(
            best,
            *(
                squared_error(x, np.array([0.0 if i == pin else m for i, m in enumerate(means)]), weights)
                for pin in pins
            ),
        )
    return best


def decibel(weights: Array, encoded: Encoded) -> float:
    """Return the ratio of weight power to error power, computed anew."""
    shape = (-1, *(1,) * (weights.ndim - 1))
    error = weights.astype(np.float32) - encoded.weights.astype(np.float64) * encoded.scale.reshape(shape)
    with np.errstate(divide="ignore"):
        return float(10 * np.log10((weights.astype(np.float64) ** 2).sum() / (error**2).sum()))


def assert_legal(encoded: Encoded, weights: Array, bits: int) -> None:
    """Shapes, types, ranges, and indices that decode to the weights."""
    assert encoded.weights.shape == weights.shape
    assert encoded.weights.dtype == np.int8
    assert encoded.weights.min() >= -127
    assert encoded.scale.shape == (len(weights),)
    assert encoded.scale.dtype == np.float32
    assert (np.isfinite(encoded.scale) & (encoded.scale > 0)).all()
    bounds, indices = group_bounds(len(weights), encoded.groups), encoded.indices()
    for table, a, b in zip(encoded.tables, bounds, bounds[1:], strict=False):
        assert table.dtype == np.int8
        assert 1 <= table.size <= 2**bits
        assert (np.diff(table.astype(int)) > 0).all()
        np.testing.assert_array_equal(table[indices[a:b]], encoded.weights[a:b])


# -- levels --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(REAL, min_size=1, max_size=9), st.integers(1, 4), st.booleans(), SEED)
def test_levels_are_optimal(x: list[float], k: int, zero: bool, seed: int) -> None:
    """The dynamic program finds what brute force finds, with weights and a pinned zero."""
    values = np.array(x)
    weights = np.random.default_rng(seed).integers(0, 4, values.size).astype(float)
    assume(weights.sum() > 0)
    levels = lloyd_max_levels(values, k, weights, zero)
    assert 1 <= levels.size <= k
    assert not zero or 0.0 in levels
    found, best = squared_error(values, levels, weights), brute_force(values, k, weights, zero)
    assert found == pytest.approx(best, rel=1e-9, abs=1e-9 * (1 + (values**2).sum()))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(-20, 20), st.booleans(), SEED)
def test_int8_levels_are_optimal_for_a_step(k: int, offset: int, zero: bool, seed: int) -> None:
    """The shortest path over the grid finds the best k of 255 levels (brute force over a small part of them)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-5, 5, 12) + offset * (not zero)
    hist = histogram.of_values(x)
    fit = histogram.fit_levels(hist, k, zero, np.ones(1))
    places = np.arange(np.floor(x.min()), np.ceil(x.max()) + 1)
    pinned = [chosen for chosen in combinations(places, min(k, places.size)) if not zero or 0.0 in chosen]
    best = min((squared_error(x, np.array(chosen)) for chosen in pinned), default=squared_error(x, np.zeros(1)))
    assert squared_error(x, fit.levels) == pytest.approx(fit.error, abs=1e-9)
    assert fit.error <= best + 1e-9
    assert fit.levels.size == k
    assert not zero or 0 in fit.levels


@pytest.mark.parametrize(("k", "expected"), [(4, 7.541), (16, 18.104), (64, 29.746), (256, 41.746)])
def test_anchor_matrix(k: int, expected: float) -> None:
    """Float levels of the Laplace matrix: the exact optimum, within 1.5 s of one core."""
    lloyd_max_levels(LAPLACE[:8], 4)
    start = time.process_time()
    levels = lloyd_max_levels(LAPLACE, k)
    assert time.process_time() - start < 1.5
    x = LAPLACE.ravel().astype(np.float64)
    error = x - levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]
    assert 10 * np.log10((x @ x) / (error @ error)) > expected - 0.001


def test_anchor_int8() -> None:
    """Levels and scale searched together beat snapping afterwards (29.17 dB) by far."""
    encode(LAPLACE[:8], 6, per_channel=False)
    start = time.process_time()
    encoded = encode(LAPLACE, 6, per_channel=False)
    assert time.process_time() - start < 1.5
    assert encoded.sqnr_db > 29.44
    assert encoded.tables[0].size == 64
    assert encoded.sqnr_db == pytest.approx(decibel(LAPLACE, encoded))


@pytest.mark.parametrize(
    ("bits", "mse", "first"),
    [(1, 0.36338, 0.7979), (2, 0.11748, 0.4528), (3, 0.03455, 0.2451), (4, 0.00950, 0.1284), (5, 0.00250, 0.0659)],
)
def test_gaussian_table(bits: int, mse: float, first: float) -> None:
    """The Lloyd-Max quantizer of N(0, 1), from its quantiles weighted by its density."""
    x = np.linspace(-7, 7, 200_001)
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    levels = lloyd_max_levels(x, 2**bits, density)
    error = (density * (x - levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]) ** 2).sum()
    assert error == pytest.approx(mse, rel=0.01)
    assert levels[2 ** (bits - 1)] == pytest.approx(first, rel=0.01)


def test_many_values_are_as_good_as_few() -> None:
    """Bins cost next to nothing, whatever the range and however many zeros."""
    rng = np.random.default_rng(1)
    for x in (
        rng.normal(size=40_000),
        np.append(rng.normal(size=40_000), 1e6),
        rng.normal(size=40_000) ** 9,
        rng.normal(size=40_000) * (rng.random(40_000) < 0.1),
    ):
        few = histogram._exact(x[None], np.ones((1, x.size)))
        exact = histogram.optimal_levels(few, 16)
        assert squared_error(x, lloyd_max_levels(x, 16)) <= squared_error(x, exact) * 1.001


def test_gaussian_medians() -> None:
    """The levels of 1-bit adapters."""
    assert gaussian_medians(1) == pytest.approx((-0.6745, 0.6745), abs=1e-4)
    assert gaussian_medians(2)[2:] == pytest.approx((0.3778, 1.2657), abs=1e-4)
    found = (0.1056, 0.3190, 0.5401, 0.7752, 1.034, 1.3331, 1.7077, 2.2655)
    assert gaussian_medians(4)[8:] == pytest.approx(found, abs=1e-4)


# -- generators ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_every_generator(name: str, bits: int) -> None:
    """Legal encodings under every kind of scale, with SQNR as reported, twice the same."""
    scale = np.abs(GAUSS).max(axis=1) / 127
    settings: list[dict[str, Any]] = [
        {},
        {"per_channel": False},
        {"groups": 5},
        {"per_channel": False, "groups": 3},
        {"power_of_two": True},
        {"scale": scale},
        {"refit": True},
        {"refit": False},
    ]
    for options in settings:
        encoded = encode(GAUSS, bits, name, **options)
        assert_legal(encoded, GAUSS, bits)
        assert encoded.groups == options.get("groups", 1)
        assert encoded.sqnr_db == pytest.approx(decibel(GAUSS, encoded), rel=1e-6)
        if "per_channel" in options:
            assert np.unique(encoded.scale).size == 1
        if "power_of_two" in options:
            assert (np.frexp(encoded.scale)[0] == 0.5).all()
        if "scale" in options:
            np.testing.assert_array_equal(encoded.scale, scale)
    again = encode(GAUSS, bits, name)
    np.testing.assert_array_equal(again.weights, encode(GAUSS, bits, name).weights)
    assert again.sqnr_db > 3


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_pinned_zero(name: str, bits: int) -> None:
    """Zeros stay zeros, or the generator says that it has none."""
    sparse = GAUSS * (np.random.default_rng(3).random(GAUSS.shape) < 0.4)
    if not GENERATORS[name].holds_zero(bits):
        with pytest.raises(ModelError, match="no level at zero"):
            encode(sparse, bits, name, zero=True)
        return
    encoded = encode(sparse, bits, name, zero=True)
    assert_legal(encoded, sparse, bits)
    assert 0 in encoded.tables[0]
    assert (encoded.weights[sparse == 0] == 0).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_unsupported_widths(bits: int) -> None:
    """What a generator has no table for is refused with what it has."""
    for name, generator in GENERATORS.items():
        if bits not in generator.bits:
            with pytest.raises(ModelError, match=f"{name}.*no table of {bits} bits; it supports"):
                encode(GAUSS, bits, name)


@pytest.mark.parametrize("bits", range(1, 9))
def test_lloyd_max_is_the_best(bits: int) -> None:
    """No generator has a smaller error under one scale."""
    best = encode(GAUSS, bits, per_channel=False).sqnr_db
    for name, generator in GENERATORS.items():
        if bits in generator.bits:
            assert encode(GAUSS, bits, name, per_channel=False).sqnr_db <= best + 0.02, name


def test_more_freedom_is_better() -> None:
    """Scales per channel, and tables per group, lose less."""
    spread = GAUSS * np.geomspace(0.1, 10, len(GAUSS)).astype(np.float32)[:, None]
    for bits in (2, 4, 6):
        one, channels = encode(spread, bits, per_channel=False), encode(spread, bits)
        groups = encode(spread, bits, groups=4)
        assert one.sqnr_db < channels.sqnr_db < groups.sqnr_db + 0.05


def test_importance() -> None:
    """What counts more is represented better; per input and per weight say the same."""
    importance = np.where(np.arange(GAUSS.shape[1]) < 20, 100.0, 1.0)
    plain, weighted = encode(GAUSS, 3), encode(GAUSS, 3, importance=importance)
    full = encode(GAUSS, 3, importance=np.broadcast_to(importance, GAUSS.shape))
    np.testing.assert_array_equal(weighted.weights, full.weights)
    errors = [((GAUSS - e.dequantized()) ** 2 * importance).sum() for e in (plain, weighted)]
    assert errors[1] < errors[0]


def test_known_rules() -> None:
    """Ternary, binary, FP4 and mu-law tables as their sources define them."""
    ternary = encode(GAUSS, 2, "ternary")
    median = np.median(np.abs(GAUSS), axis=1)
    np.testing.assert_allclose(ternary.scale, median, rtol=1e-6)
    np.testing.assert_array_equal(ternary.weights, np.clip(np.rint(GAUSS / median[:, None]), -1, 1))
    binary = encode(GAUSS, 1, "binary")
    np.testing.assert_allclose(binary.scale, np.abs(GAUSS).mean(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(binary.weights, np.where(GAUSS >= 0, 1, -1))
    fp4 = encode(GAUSS, 4, "fp4")
    assert set(np.abs(fp4.tables[0]).tolist()) == {0, 1, 2, 3, 4, 6, 8, 12}
    x = np.random.default_rng(0).normal(size=200_000)
    x[0] = 4.66
    mse = [1 / 10 ** (encode(x[None], 4, "mu_law", parameter=mu, refit=False).sqnr_db / 10) for mu in (5, 20, 255)]
    assert mse == pytest.approx([0.0160, 0.0198, 0.0486], rel=0.15)


@pytest.mark.parametrize("bits", range(2, 8))
def test_double_rounding(bits: int) -> None:
    """A view of one int8 tensor, of the same scale; better than to cut bits off."""
    whole, view = encode(GAUSS, 8, "double_rounding"), encode(GAUSS, bits, "double_rounding")
    np.testing.assert_array_equal(whole.scale, view.scale)
    np.testing.assert_array_equal(view.weights, double_round(whole.weights, bits))
    assert (view.weights % 2 ** (8 - bits) == 0).all()
    cut = (whole.weights >> (8 - bits) << (8 - bits)) * whole.scale[:, None]
    assert ((GAUSS - view.dequantized()) ** 2).mean() < ((GAUSS - cut) ** 2).mean()
    with pytest.raises(ModelError, match="2 to 8"):
        double_round(whole.weights, 1)


# -- gptq ----------------------------------------------------------------------------------------------------------


def correlated(rng: np.random.Generator, inputs: int, samples: int) -> Array:
    """Return inputs (K, N) that share factors."""
    factors = rng.normal(size=(inputs, max(2, inputs // 4))) @ rng.normal(size=(max(2, inputs // 4), samples))
    return factors + 0.3 * rng.normal(size=(inputs, samples))


@pytest.mark.parametrize(("name", "bits"), [(n, b) for n, b in CASES if b in (1, 2, 3, 4, 8)])
def test_feedback_beats_nearest(name: str, bits: int) -> None:
    """The output error on correlated inputs falls, for every table and scale."""
    rng = np.random.default_rng(bits)
    for shape, options in (((8, 16), {}), ((16, 150), {"per_channel": False}), ((12, 5, 3, 3), {"groups": 2})):
        weights = rng.normal(size=shape).astype(np.float32)
        x = correlated(rng, weights[0].size, 4 * weights[0].size)
        near = encode(weights, bits, name, **options)
        fed = encode(weights, bits, name, "gptq", hessian=2 * x @ x.T, **options)
        assert_legal(fed, weights, bits)
        np.testing.assert_array_equal(near.scale, fed.scale)
        errors = [((weights - e.dequantized()).reshape(len(weights), -1) @ x) ** 2 for e in (near, fed)]
        assert (errors[1].sum(axis=1) <= errors[0].sum(axis=1) * (1 + 1e-6)).all()
        assert errors[1].sum() < errors[0].sum()


def test_feedback_without_correlation_is_nearest() -> None:
    """With an identity Hessian there is nothing to feed back."""
    near, fed = encode(GAUSS, 3), encode(GAUSS, 3, assigner="gptq", hessian=np.eye(96))
    np.testing.assert_array_equal(near.weights, fed.weights)


def test_feedback_is_gptq() -> None:
    """The same levels as the paper's loop over the Cholesky factor of the inverse Hessian."""
    rng = np.random.default_rng(5)
    weights, x = rng.normal(size=(6, 40)).astype(np.float32), correlated(rng, 40, 200)
    hessian = 2 * x @ x.T
    fed = encode(weights, 4, assigner="gptq", hessian=hessian)
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    damped = hessian[np.ix_(order, order)] + 0.01 * np.diagonal(hessian).mean() * np.eye(40)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    lookup = encode(weights, 4).tables[0].astype(np.float64)
    moved, levels = weights[:, order].astype(np.float64), np.zeros(weights.shape)
    for j in range(40):
        scaled = moved[:, j] / fed.scale
        levels[:, j] = lookup[np.abs(scaled[:, None] - lookup).argmin(axis=1)]
        error = (moved[:, j] - levels[:, j] * fed.scale) / upper[j, j]
        moved[:, j:] -= error[:, None] * upper[j, j:]
    expected = np.empty_like(levels)
    expected[:, order] = levels
    np.testing.assert_array_equal(fed.weights, expected)


def test_feedback_of_a_hessian_per_group() -> None:
    """Grouped convolutions: each run of channels sees its own inputs; dead inputs are allowed."""
    rng = np.random.default_rng(6)
    weights = rng.normal(size=(8, 3, 3, 1)).astype(np.float32)
    inputs = [correlated(rng, 9, 50) for _ in range(4)]
    inputs[2][4] = 0
    inputs[3][:] = 0
    hessian = np.stack([x @ x.T for x in inputs])
    near, fed = encode(weights, 2), encode(weights, 2, assigner="gptq", hessian=hessian)
    for i in range(4):
        channels = slice(2 * i, 2 * i + 2)
        error = [(weights - e.dequantized())[channels].reshape(2, 9).astype(np.float64) for e in (near, fed)]
        assert (output_errors(error[1], hessian[i]) <= output_errors(error[0], hessian[i])).all()


# -- folding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "bits"), [(32, 5), (16, 4), (2, 1)])
@settings(max_examples=15, deadline=None)
@given(seed=SEED)
def test_fold_without_loss(count: int, bits: int, seed: int) -> None:
    """Levels times one scale, or times a scale per channel, come back bit for bit."""
    rng = np.random.default_rng(seed)
    table = np.append(rng.choice(np.arange(-127, 127), count - 1, replace=False), 127).astype(np.float32)
    indices = rng.integers(0, count, (12, 40))
    indices[:, 0], indices[:, 1] = count - 1, 0
    one = table[indices] * np.float32(rng.uniform(1e-3, 1))
    each = table[indices] * rng.uniform(1e-3, 1, (12, 1)).astype(np.float32)
    for weights in (one, each):
        encoded = fold_centroids(weights, bits)
        assert encoded is not None
        assert_legal(encoded, weights, bits)
        assert encoded.sqnr_db == inf
        np.testing.assert_array_equal(encoded.dequantized(), weights)
        np.testing.assert_array_equal(encoded.weights, table[indices].astype(np.int8))


@pytest.mark.parametrize(("count", "bits", "least"), [(32, 5, 40), (16, 4, 43), (2, 1, 60)])
def test_fold_off_the_grid(count: int, bits: int, least: float) -> None:
    """Levels that fit no grid lose little, less than plain int8, and the loss is told; scaled copies too."""
    rng = np.random.default_rng(count)
    table, indices = rng.normal(size=count), rng.integers(0, count, (16, 400))
    scales = rng.uniform(0.1, 1, (16, 1))
    plain = np.abs(table).max() / 127
    for weights in (table[indices].astype(np.float32), (table[indices] * scales).astype(np.float32)):
        encoded = fold_centroids(weights, bits)
        assert encoded is not None
        assert_legal(encoded, weights, bits)
        assert least < encoded.sqnr_db < inf
    rounded = np.rint(table[indices] / plain) * plain
    one = fold_centroids(table[indices].astype(np.float32), bits)
    assert one is not None
    assert one.sqnr_db >= 10 * np.log10((table[indices] ** 2).sum() / ((table[indices] - rounded) ** 2).sum()) - 1e-3


def test_fold_groups_and_scales() -> None:
    """A table per group, one scale for all, powers of two."""
    rng = np.random.default_rng(2)
    tables = rng.permutation(np.arange(-127, 128))[:8].reshape(2, 4).astype(np.float32)
    weights = np.concatenate([tables[i][rng.integers(0, 4, (6, 50))] for i in range(2)]) * np.float32(0.01)
    assert fold_centroids(weights, 2) is None
    for options in ({}, {"per_channel": False}):
        encoded = fold_centroids(weights, 2, groups=2, **options)
        assert encoded is not None
        assert encoded.groups == 2
        assert encoded.sqnr_db == inf
    powers = fold_centroids(np.array([[-0.5, 0.25], [0.75, 0.0]], np.float32), 2, power_of_two=True)
    assert powers is not None
    assert powers.sqnr_db == inf
    assert (np.frexp(powers.scale)[0] == 0.5).all()
    signs = rng.choice([-1, 1], (64, 30)) * rng.uniform(0.1, 1, (64, 1)).astype(np.float32)
    assert fold_centroids(signs, 1, per_channel=False) is None
    ternary = fold_centroids(np.where(np.arange(30) % 3, signs, 0), 2)
    assert ternary is not None
    assert ternary.tables[0].size == 3
    assert ternary.sqnr_db == inf


def test_fold_leaves_free_weights_alone() -> None:
    """Weights that are not clustered are not folded; distinct values are counted up to a limit."""
    assert fold_centroids(GAUSS, 5) is None
    assert distinct_levels(GAUSS, 100) is None
    found = distinct_levels(np.array([3, -1, 3, 0, -0.0], np.float32))
    assert found is not None
    assert found.tolist() == [-1, 0, 3]
    assert lossless_scale(np.array([np.pi, np.e, 1], np.float32)) is None


# -- what can come in ----------------------------------------------------------------------------------------------


OPTIONS: list[dict[str, Any]] = [{}, {"per_channel": False}, {"power_of_two": True}]
DEGENERATE = {
    "zeros": np.zeros((3, 4)),
    "constant": np.full((3, 4), 0.3),
    "one": np.array([[-2.5]]),
    "vector": np.array([1, -2]),
    "huge range": np.array([[1e-30, 1e30], [1.0, -1e-20]]),
    "outlier": np.append(GAUSS.ravel(), 1e4).reshape(1, -1),
    "few": np.tile([-1.0, 0.0, 2.0], (4, 5)),
    "a dead channel": np.vstack([np.zeros(96), GAUSS[:3]]),
    "tiny": GAUSS * 1e-40,
    "positive": np.abs(GAUSS) + 1,
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_weights(case: str) -> None:
    """No generator stumbles, and few values are exact."""
    weights = DEGENERATE[case]
    for name, bits in CASES:
        if bits in (1, 2, 4, 8):
            for options in OPTIONS:
                assert_legal(encode(weights, bits, name, **options), weights, bits)
    if case in ("zeros", "constant", "one", "vector", "few"):
        assert encode(weights, 2).sqnr_db > 100
        folded = fold_centroids(weights, 2)
        assert folded is not None
        assert folded.sqnr_db > 100
    if case == "a dead channel":
        assert encode(weights, 1).sqnr_db > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "1 to 8 bits"),
        ({"bits": 9}, "1 to 8 bits"),
        ({"generator": "kmeans"}, "there are uniform"),
        ({"assigner": "best"}, "there are 'nearest'"),
        ({"assigner": "gptq"}, "without a Hessian"),
        ({"hessian": np.eye(96)}, "with a Hessian"),
        ({"groups": 25}, "1 to 24 groups"),
        ({"groups": 0}, "1 to 24 groups"),
        ({"importance": np.ones(5)}, "one per weight"),
        ({"importance": -np.ones(96)}, "not negative"),
        ({"scale": np.zeros(24)}, "positive and finite"),
        ({"scale": np.ones(7)}, "one per output channel"),
        ({"scale": np.arange(1.0, 25), "per_channel": False}, "differ"),
        ({"assigner": "gptq", "hessian": np.eye(5)}, r"take \(96, 96\)"),
        ({"assigner": "gptq", "hessian": -np.eye(96)}, "negative diagonal"),
        ({"assigner": "gptq", "hessian": np.eye(96) - 1}, "not positive semidefinite|negative"),
        ({"generator": "mu_law", "parameter": -1.0}, "positive"),
        ({"generator": "power", "parameter": 0.0}, "positive"),
        ({"weights": np.full((2, 2), np.nan)}, "not finite"),
        ({"weights": np.zeros((0, 3))}, "nothing to encode"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    """Each wrong argument has one clear message."""
    with pytest.raises(ModelError, match=message):
        encode(**{"weights": GAUSS, "bits": 4, **options})


def test_codebook_checks_itself() -> None:
    """A table that an accelerator could not hold does not become a codebook."""
    for table in ([], [1, 1], [2, 1], [-128, 0], [0, 1, 2]):
        with pytest.raises(ModelError):
            Codebook(np.array(table, np.int8), 1)
