"""Kernels of 16-bit activations against the law, one value at a time in Python integers."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnac import numerics
from nnac.kernels import conv, machine, move, products, wide
from nnac.kernels.panels import room
from nnac.kernels.vectors import WINDOW
from nnac.numerics import Rounding
from tests.test_kernels import (
    DENSE,
    DEPTHWISE,
    GROUPED,
    MODE,
    SEED,
    SHAPE4,
    STEP,
    convolutions,
    inside,
    operand,
    windows,
)

Int16 = npt.NDArray[np.int16]
LOW, HIGH = -(1 << 15), (1 << 15) - 1
LIMITS = st.sampled_from([(LOW, HIGH), (LOW, HIGH), (-128, 127), (-40, 9000), (5, 5)])
PAIR = st.one_of(
    st.tuples(st.sampled_from([1, 2, 8]), st.integers(0, 12)),
    st.tuples(st.integers(2**22, 2**23 - 1), st.integers(23, 48)),
    st.tuples(st.integers(0, 2**23 - 1), st.integers(0, 62)),
)
ONE_STEP = st.sampled_from([Rounding.HALF_EVEN, Rounding.HALF_UP, Rounding.HALF_AWAY])


def values(rng: np.random.Generator, *shape: int) -> Int16:
    """int16 values, some arrays of extremes only."""
    if rng.integers(0, 4) == 0:
        return rng.choice(np.array([LOW, HIGH], np.int16), shape)
    return rng.integers(LOW, HIGH + 1, shape).astype(np.int16)


def conv2d(x: Int16, w: Any, bias: Any, multiplier: Any, shift: Any, y: Int16, *rest: int) -> None:
    """A convolution from its constants on: of high and of low bytes, then both together."""
    layer, planes = conv.Layer(*map(int, (*w.shape[1:], x.shape[2], *rest))), [room(x.size) for _ in range(2)]
    filters, weights = conv.empty_filters(len(w), layer), np.ascontiguousarray(w).reshape(len(w), -1)
    for call in wide.packing(weights, bias, multiplier, shift, filters, layer):
        call.run()
    wide.split(np.ascontiguousarray(x).reshape(-1), *planes)
    workspace, sums = room(products.workspace_bytes(layer, y.shape)), []
    for plane, part in zip(planes, wide.planed(layer), strict=True):
        sums.append(np.empty(wide.sums_room(y.shape), np.int32)[:, :, : len(w)])
        products.product(plane.reshape(x.shape), filters, sums[-1], workspace, part).run()
    wide.join(*sums, filters.offsets, filters.multipliers, filters.shifts, y, layer[-6:])


def law_of_convolution(x: Int16, w: Any, bias: Any, pairs: Any, out: Any, geometry: Any, rest: Any) -> list[int]:
    """conv2d over int16, value by value."""
    stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left, group_out, offset, _ = geometry
    low, high, mode, bits, wraps = rest
    found = []
    for row, column, n in product(range(out[0]), range(out[1]), range(len(w))):
        first, acc = (offset + n) // group_out * w.shape[3], int(bias[n])
        for kh, h in inside(row * stride_h - pad_top, w.shape[1], dilation_h, x.shape[0]):
            for kw, v in inside(column * stride_w - pad_left, w.shape[2], dilation_w, x.shape[1]):
                taps = zip(x[h, v, first : first + w.shape[3]].tolist(), w[n, kh, kw].tolist(), strict=True)
                acc += sum(value * weight for value, weight in taps)
        acc = numerics.narrow(acc, bits, wraps)
        found.append(numerics.requantize_wide(acc, int(pairs[n][0]), int(pairs[n][1]), 0, mode, low, high))
    return found


@pytest.mark.parametrize("shapes", [DENSE, GROUPED, DEPTHWISE], ids=["dense", "grouped", "depthwise"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_convolution(shapes: Any, data: st.DataObject) -> None:
    """Any geometry, accumulators of 40 bits and fewer, one rounding, on the loops of every processor."""
    x8, w, bias, _, out, geometry, _ = data.draw(convolutions(shapes))
    rng = np.random.default_rng(data.draw(SEED))
    x, geometry = values(rng, *x8.shape), (*geometry[:-1], 0)
    choices = data.draw(st.lists(PAIR, min_size=1, max_size=4))
    pairs = [choices[n % len(choices)] for n in range(len(w))]
    bits, wraps = data.draw(st.sampled_from([(40, False), (40, True), (28, True), (24, False), (20, True)]))
    rest = (*data.draw(LIMITS), data.draw(ONE_STEP), bits, wraps)
    multiplier, shift = np.array([p[0] for p in pairs], np.int32), np.array([p[1] for p in pairs], np.int8)
    y = np.empty((*out, len(w)), np.int16)
    with machine.forced(data.draw(st.sampled_from(machine.runnable()))):
        conv2d(x, w, bias, multiplier, shift, y, *[*geometry, 0, *rest])
    assert y.ravel().tolist() == law_of_convolution(x, w, bias, pairs, out, geometry, rest)


@pytest.mark.parametrize("processor", machine.runnable())
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("depth", [255, 256, 257, 131_000])
def test_long_sums_stay_exact(depth: int, sign: int, processor: str) -> None:
    """Extremes of all operands, longer than what 32 bits hold, up to the end of 40."""
    x, w = np.full((1, 1, depth), LOW, np.int16), np.full((1, 1, 1, depth), sign * 127, np.int8)
    bias, pair = np.array([-sign * 12345], np.int32), ((1 << 23) - 1, 46)
    y = np.empty((1, 1, 1), np.int16)
    geometry = (1, 1, 1, 1, 0, 0, 1, 0, 0)
    arguments = (np.array(pair[:1], np.int32), np.array(pair[1:], np.int8), y)
    for mode in (Rounding.HALF_EVEN, Rounding.HALF_UP, Rounding.HALF_AWAY):
        rest = (LOW, HIGH, mode, 40, False)
        with machine.forced(processor):
            conv2d(x, w, bias, *arguments, *geometry, 0, *rest)
        assert y.ravel().tolist() == law_of_convolution(x, w, bias, [pair], (1, 1), geometry, rest)


@settings(max_examples=200, deadline=None)
@given(SHAPE4, st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]), SEED)
def test_copies(shape: Any, widths: tuple[int, int], seed: int) -> None:
    """From one width to another, in rows of any strides or dense ones."""
    rng, kernels = np.random.default_rng(seed), {(1, 1): move.copy} | wide.copies
    x, y = operand(rng, shape), np.full((*shape[:-1], 2 * shape[-1]), 77, f"<i{widths[1]}")
    target = y[..., ::2] if rng.integers(2) else y[..., : shape[-1]]
    kernels[widths](*move.views(x.astype(f"<i{widths[0]}") if widths[0] == 2 else x, target))
    np.testing.assert_array_equal(target, x)
    assert (y == 77).sum() >= y.size // 2


@settings(max_examples=200, deadline=None)
@given(windows(STEP), windows(STEP), st.integers(1, 5), LIMITS, SEED)
def test_max_pool(rows: Any, columns: Any, channels: int, limits: Any, seed: int) -> None:
    """The largest of each window."""
    x = values(np.random.default_rng(seed), rows[0], columns[0], channels)
    y = np.empty((rows[5], columns[5], channels), np.int16)
    wide.max_pool(x, y, *[item for axis in zip(rows[1:5], columns[1:5], strict=True) for item in axis], *limits)
    for i, j, n in product(range(rows[5]), range(columns[5]), range(channels)):
        in_h = inside(i * rows[2] - rows[4], rows[1], rows[3], rows[0])
        in_w = inside(j * columns[2] - columns[4], columns[1], columns[3], columns[0])
        assert y[i, j, n] == numerics.saturate(max(int(x[h, v, n]) for _, h in in_h for _, v in in_w), *limits)


@settings(max_examples=200, deadline=None)
@given(windows(st.just(1)), windows(st.just(1)), st.integers(0, 2**31 - 1), st.integers(0, 62), LIMITS, MODE, SEED)
def test_average_pool(
    rows: Any, columns: Any, multiplier: int, shift: int, limits: Any, mode: Rounding, seed: int
) -> None:
    """The mean of each window's values, with multipliers of 31 bits."""
    x = room(2 * rows[0] * columns[0] * 3).view(np.int16).reshape(rows[0], columns[0], 3)
    x[...] = values(np.random.default_rng(seed), *x.shape)
    y = np.empty((rows[5], columns[5], 3), np.int16)
    geometry = [item for axis in zip((*rows[1:3], rows[4]), (*columns[1:3], columns[4]), strict=True) for item in axis]
    sums = np.empty(3 + WINDOW, np.int64)
    wide.average_pool(x, y, sums, (*geometry, 99, 99, 0), 0, (multiplier, shift, 0, *limits, mode))
    for i, j, n in product(range(rows[5]), range(columns[5]), range(3)):
        in_h = inside(i * rows[2] - rows[4], rows[1], 1, rows[0])
        in_w = inside(j * columns[2] - columns[4], columns[1], 1, columns[0])
        total = sum(int(x[h, v, n]) for _, h in in_h for _, v in in_w)
        assert y[i, j, n] == numerics.average(total, len(in_h) * len(in_w), multiplier, shift, 0, mode, *limits)


@settings(max_examples=200, deadline=None)
@given(SHAPE4, st.integers(1, 4), st.integers(0, 62), LIMITS, MODE, SEED)
def test_sums(shape: Any, count: int, shift: int, limits: Any, mode: Rounding, seed: int) -> None:
    """One operand and more, multipliers of 31 bits of both signs."""
    rng = np.random.default_rng(seed)
    operands, acc = [values(rng, *shape) for _ in range(count)], np.zeros(shape, np.int64)
    multipliers = [int(m) for m in rng.integers(-(2**31) + 1, 2**31, count)]
    for x, multiplier in zip(operands, multipliers, strict=True):
        wide.accumulate(acc, x, 0, multiplier, 1)
    y = np.empty(shape, np.int16)
    wide.requantize_wide(acc, y, (shift, 0, *limits, mode))
    terms = [x.ravel().astype(object) * m for x, m in zip(operands, multipliers, strict=True)]
    totals = np.sum(terms, axis=0).tolist()
    assert y.ravel().tolist() == [numerics.saturate(numerics.round_shift(t, shift, mode), *limits) for t in totals]


@settings(max_examples=200, deadline=None)
@given(SHAPE4, st.integers(0, 2**31 - 1), st.integers(0, 62), LIMITS, MODE, SEED)
def test_products(shape: Any, multiplier: int, shift: int, limits: Any, mode: Rounding, seed: int) -> None:
    """The product of two int16 is an int32: the law of requantization holds with all its multipliers."""
    rng = np.random.default_rng(seed)
    a, b, y = values(rng, *shape), values(rng, *shape), np.empty(shape, np.int16)
    wide.multiply(a, 0, b, 0, y, (multiplier, shift, 0, *limits, mode))
    pairs = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    assert y.ravel().tolist() == [numerics.requantize(p * q, multiplier, shift, 0, mode, *limits) for p, q in pairs]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(7, 20), st.integers(-128, 127), LIMITS, MODE, SEED)
def test_interpolation(rows: int, tables: int, shift: int, zero: int, limits: Any, mode: Rounding, seed: int) -> None:
    """Every column through its own knots, at equal distances and by octaves."""
    rng = np.random.default_rng(seed)
    x, y = values(rng, rows, tables), np.empty((rows, tables), np.int16)
    for kernel, law, entries in (
        (wide.interpolate, numerics.interpolate, 513),
        (wide.interpolate_octaves, numerics.interpolate_octaves, 385),
    ):
        knots = values(rng, tables, entries)
        kernel(x, knots, y, (shift, zero, *limits, mode))
        for row, n in product(range(rows), range(tables)):
            assert y[row, n] == law(int(x[row, n]), knots[n].tolist(), mode, *[*limits, shift, zero])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.floats(0, 0.01), PAIR, MODE, SEED)
def test_softmax(rows: int, n: int, scale: float, pair: Any, mode: Rounding, seed: int) -> None:
    """The product of two tables' entries per value."""
    x, table = values(np.random.default_rng(seed), rows, n), numerics.softmax_table(scale, 16)
    for multiplier, shift in (pair, (1 << 15, 0), (2**31 - 1, 16)):
        y = np.empty(x.shape, np.int16)
        wide.softmax(x, np.array(table, np.int32), y, (multiplier, shift, 0, LOW, HIGH, mode))
        for i in range(rows):
            assert y[i].tolist() == numerics.softmax(x[i].tolist(), table, multiplier, shift, 0, mode, LOW, HIGH)
