"""Every kernel against the law, one value at a time in Python integers, on random legal inputs."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llvmlite import binding, ir  # type: ignore[import-untyped, unused-ignore]

from nnac import kernels, numerics
from nnac.kernels import conv, machine, products, vectors
from nnac.kernels.elementwise import accumulate, add2, multiply, requantize_wide
from nnac.kernels.panels import room
from nnac.kernels.pool import average_pool, long_average_pool, max_pool
from nnac.kernels.softmax import softmax
from nnac.kernels.tile import ARGUMENTS, NEON, OWN_ARGUMENTS
from nnac.kernels.vectors import LONG
from nnac.numerics import Rounding

Int8 = npt.NDArray[np.int8]
UNTOUCHED = 77

MODE = st.sampled_from(list(Rounding))
SEED = st.integers(0, 2**32 - 1)
ZERO = st.sampled_from([-128, -5, 0, 3, 127])
LIMITS = st.sampled_from([(-128, 127), (-128, 127), (-40, 90), (5, 5)])
EXTENT = st.integers(1, 7)
STEP = st.integers(1, 3)
WINDOW = st.integers(1, 4)
PAIR = st.one_of(
    st.tuples(st.sampled_from([1, 2, 8]), st.integers(0, 12)),  # exact powers of two: many ties
    st.tuples(st.integers(2**30, 2**31 - 1), st.integers(31, 48)),
    st.tuples(st.integers(1, 7), st.integers(18, 28), st.integers(32, 46)).map(lambda p: (p[0] << p[1], p[2])),
    st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 62)),
)


def values(rng: np.random.Generator, *shape: int) -> Int8:
    """int8 values, some arrays of extremes only."""
    if rng.integers(0, 4) == 0:
        return rng.choice(np.array([-128, 127], np.int8), shape)
    return rng.integers(-128, 128, shape).astype(np.int8)


def channel_slice(*shape: int) -> tuple[Int8, Int8]:
    """A tensor with more channels, and the slice of it that a kernel shall write."""
    whole = np.full((*shape[:-1], shape[-1] + 3), UNTOUCHED, np.int8)
    return whole, whole[..., 1:-2]


def assert_same(whole: Int8, y: Int8, expected: Any) -> None:
    """The kernel wrote what is expected, and nothing beside its slice."""
    np.testing.assert_array_equal(y, np.asarray(expected).reshape(y.shape))
    assert (whole[..., :1] == UNTOUCHED).all()
    assert (whole[..., -2:] == UNTOUCHED).all()


def conv2d(x: Int8, w: Int8, bias: Any, multiplier: Any, shift: Any, y: Any, *rest: int) -> None:
    """A convolution from its constants on; where it can be, with weights in codes too."""
    layer = conv.Layer(*map(int, (*w.shape[1:], x.shape[2], *rest)))
    read = room(x.size).reshape(x.shape)
    read[...] = x
    filters, weights = conv.empty_filters(len(w), layer), np.ascontiguousarray(w).reshape(len(w), -1)
    conv.packing(weights, bias, multiplier, shift, filters, layer).run()
    workspace = room(products.workspace_bytes(layer, y.shape))
    products.product(read, filters, y, workspace, layer).run()
    alone = layer.group_out >= layer.channel_offset + len(w) and not layer.is_depthwise
    if alone and conv.is_narrow(weights):
        again = y.copy()
        products.product(read, conv.narrowed(weights, bias, filters, layer), again, workspace, layer).run()
        np.testing.assert_array_equal(again, y)


def inside(start: int, taps: int, dilation: int, extent: int) -> list[tuple[int, int]]:
    """(tap, index) of the taps of a window that fall into the input."""
    return [(tap, start + tap * dilation) for tap in range(taps) if 0 <= start + tap * dilation < extent]


def convolve(x: Int8, w: Int8, bias: Any, pairs: Any, out: tuple[int, int], geometry: Any, rest: Any) -> Iterator[int]:
    """conv2d, value by value."""
    stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left, group_out, offset, x_zero = geometry
    y_zero, low, high, mode, bits, wraps = rest
    for row, column, n in product(range(out[0]), range(out[1]), range(len(w))):
        first = (offset + n) // group_out * w.shape[3]
        acc = int(bias[n])
        for kh, h in inside(row * stride_h - pad_top, w.shape[1], dilation_h, x.shape[0]):
            for kw, v in inside(column * stride_w - pad_left, w.shape[2], dilation_w, x.shape[1]):
                taps = zip(x[h, v, first : first + w.shape[3]].tolist(), w[n, kh, kw].tolist(), strict=True)
                acc += sum((value - x_zero) * weight for value, weight in taps)
        acc = numerics.narrow(acc, bits, wraps)
        yield numerics.requantize(acc, int(pairs[n][0]), int(pairs[n][1]), y_zero, mode, low, high)


@st.composite
def convolutions(draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, int, int]]) -> Any:
    """Arguments of conv2d for a slice of the channels of a layer; `shapes` gives groups and channels per group."""
    groups, in_group, out_group = draw(shapes)
    rng = np.random.default_rng(draw(SEED))
    offset = draw(st.integers(0, groups * out_group - 1))
    count = draw(st.integers(1, groups * out_group - offset))
    x = values(rng, draw(EXTENT), draw(EXTENT), groups * in_group)
    w = values(rng, count, draw(WINDOW), draw(WINDOW), in_group)
    bias = rng.integers(-(2**14), 2**14, count).astype(np.int32)
    choices = draw(st.lists(PAIR, min_size=1, max_size=4))
    pairs = [choices[n % len(choices)] for n in range(count)]
    pads = (draw(st.integers(-1, 4)), draw(st.integers(-1, 4)))
    geometry = (draw(STEP), draw(STEP), draw(STEP), draw(STEP), *pads, out_group, offset, draw(ZERO))
    bits, wraps = draw(st.sampled_from([(32, False), (32, True), (20, True), (16, False), (12, True), (12, False)]))
    rest = (draw(ZERO), *draw(LIMITS), draw(MODE), bits, wraps)
    return x, w, bias, pairs, (draw(st.integers(1, 5)), draw(st.integers(1, 5))), geometry, rest


def check_convolution(case: Any) -> None:
    """Runs the kernel into a channel slice and compares."""
    x, w, bias, pairs, out, geometry, rest = case
    whole, y = channel_slice(*out, len(w))
    multiplier = np.array([pair[0] for pair in pairs], np.int32)
    shift = np.array([pair[1] for pair in pairs], np.int8)
    conv2d(x, w, bias, multiplier, shift, y, *geometry, *rest)
    assert_same(whole, y, list(convolve(*case)))


DENSE = st.tuples(st.just(1), st.sampled_from([1, 2, 3, 8, 32, 33]), st.integers(1, 9))
GROUPED = st.tuples(st.integers(2, 4), st.integers(1, 5), st.integers(1, 6))
DEPTHWISE = st.tuples(st.integers(1, 40), st.just(1), st.just(1))


@settings(max_examples=400, deadline=None)
@given(convolutions(DENSE), st.sampled_from(machine.runnable()))
def test_convolution(case: Any, processor: str) -> None:
    with machine.forced(processor):
        check_convolution(case)


@settings(max_examples=300, deadline=None)
@given(convolutions(GROUPED), st.sampled_from(machine.runnable()))
def test_grouped_convolution(case: Any, processor: str) -> None:
    with machine.forced(processor):
        check_convolution(case)


@settings(max_examples=300, deadline=None)
@given(convolutions(DEPTHWISE), st.sampled_from(machine.runnable()))
def test_depthwise_convolution(case: Any, processor: str) -> None:
    with machine.forced(processor):
        check_convolution(case)


@pytest.mark.parametrize("processor", machine.runnable())
@pytest.mark.parametrize("rows", [1, 3, 15, 16, 17, 130])
@pytest.mark.parametrize(("depth", "units"), [(1, 1), (31, 3), (64, 32), (65, 70), (1000, 7)])
def test_dense_layers(rows: int, depth: int, units: int, processor: str) -> None:
    rng = np.random.default_rng(rows)
    x, w = values(rng, rows, 1, depth), values(rng, units, 1, 1, depth)
    bias = rng.integers(-(2**20), 2**20, units).astype(np.int32)
    pairs = [(2**30 + 12345 * n, 44) for n in range(units)]
    rest = (3, -128, 127, Rounding.HALF_EVEN, 32, False)
    with machine.forced(processor):
        check_convolution((x, w, bias, pairs, (rows, 1), (1, 1, 1, 1, 0, 0, units, 0, -7), rest))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 14),
    st.integers(1, 150),
    st.integers(1, 70),
    st.integers(1, 8),
    SEED,
    st.sampled_from(machine.runnable()),
)
def test_dense_layers_of_few_values(rows: int, units: int, depth: int, bits: int, seed: int, processor: str) -> None:
    """Of weights with few values too, which go through codes where the processor has a form for them."""
    rng = np.random.default_rng(seed)
    table = rng.permutation(np.arange(-128, 128))[: 1 << bits].astype(np.int8)
    x, w = values(rng, rows, 1, depth), rng.choice(table, (units, 1, 1, depth))
    bias = rng.integers(-(2**20), 2**20, units).astype(np.int32)
    pairs = [(int(rng.integers(2**30, 2**31)), 40)] * units
    rest = (0, -128, 127, Rounding.HALF_EVEN, 32, False)
    with machine.forced(processor):
        check_convolution((x, w, bias, pairs, (rows, 1), (1, 1, 1, 1, 0, 0, units, 0, -7), rest))


def test_the_tiles_of_arm_compile_to_its_dot_product() -> None:
    """Another processor's code cannot run here, but LLVM can make it: one `sdot` per sum of every tile."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module("arm")
    for name, emit, count in (("multiply", NEON.multiply, ARGUMENTS), ("depthwise", NEON.depthwise, OWN_ARGUMENTS)):
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [LONG] * count), name)
        builder = ir.IRBuilder(function.append_basic_block())
        emit(builder, *function.args)
        builder.ret_void()
    try:
        target = binding.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM knows no aarch64")
    arm = target.create_target_machine(cpu="neoverse-n1", features="+neon,+dotprod")
    code = arm.emit_assembly(binding.parse_assembly(str(module)))
    tiles = sum(rows * NEON.vectors for rows in range(1, NEON.rows + 1))
    assert code.count("sdot") == tiles + NEON.vectors


def test_a_processor_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNAC_PROCESSOR", "portable")
    assert machine.processor() == "portable"
    monkeypatch.setenv("NNAC_PROCESSOR", "z80")
    with pytest.raises(ValueError, match=r"'z80'.*portable"):
        machine.processor()


def test_convolution_reaches_the_ends_of_the_accumulator() -> None:
    x, w = np.full((1, 1, 66000), -128, np.int8), np.full((2, 1, 1, 66000), -127, np.int8)
    w[1] = 127
    bias = np.array([2**31 - 1 - 255 * 127 * 66000, 255 * 127 * 66000 - 2**31], np.int32)
    pairs = [(2**31 - 1, 55), (2**31 - 1, 55)]
    geometry = (1, 1, 1, 1, 0, 0, 2, 0, 127)
    for mode, processor in product(Rounding, machine.runnable()):
        with machine.forced(processor):
            check_convolution((x, w, bias, pairs, (1, 1), geometry, (0, -128, 127, mode, 32, False)))


def test_stripes_of_rows_and_channels_make_the_whole() -> None:
    rng = np.random.default_rng(3)
    x, w = values(rng, 12, 9, 8), values(rng, 12, 3, 3, 4)
    bias, multiplier, shift = np.arange(12, dtype=np.int32), np.full(12, 2**30, np.int32), np.full(12, 38, np.int8)
    whole, striped = np.zeros((12, 9, 12), np.int8), np.zeros((12, 9, 12), np.int8)
    rest = (1, -128, 127, Rounding.HALF_EVEN, 32, False)
    conv2d(x, w, bias, multiplier, shift, whole, 1, 1, 1, 1, 1, 1, 6, 0, -3, *rest)
    for top, bottom in ((0, 5), (5, 8), (8, 12)):
        first = max(top - 1, 0)
        rows = x[first : bottom + 1]
        for lo, hi in ((0, 4), (4, 11), (11, 12)):
            part = (w[lo:hi], bias[lo:hi], multiplier[lo:hi], shift[lo:hi], striped[top:bottom, :, lo:hi])
            conv2d(rows, *part, 1, 1, 1, 1, first - top + 1, 1, 6, lo, -3, *rest)
    np.testing.assert_array_equal(striped, whole)


def test_parameters_may_lie_unaligned_behind_each_other() -> None:
    packed = np.zeros(3 + 9 * 2, np.uint8)
    bias, multiplier, shift = packed[3:11].view(np.int32), packed[11:19].view(np.int32), packed[19:].view(np.int8)
    bias[:], multiplier[:], shift[:] = (10, -20), (3, 5), (1, 2)
    packed.flags.writeable = False
    x, w, y = np.zeros((1, 1, 1), np.int8), np.zeros((2, 1, 1, 1), np.int8), np.zeros((1, 1, 2), np.int8)
    conv2d(x, w, bias, multiplier, shift, y, 1, 1, 1, 1, 0, 0, 2, 0, 0, 0, -128, 127, Rounding.HALF_EVEN, 32, False)
    assert y.tolist() == [[[15, -25]]]


def test_kernels_read_what_must_not_be_written_and_refuse_other_types() -> None:
    x, table, y = np.zeros((1, 4), np.int8), np.array(numerics.softmax_table(0.1), np.int32), np.zeros((1, 4), np.int8)
    x.flags.writeable = table.flags.writeable = False
    softmax(x, table, y, (256, 0, -128, -128, 127, Rounding.HALF_EVEN))
    assert y.tolist() == [[-64] * 4]
    with pytest.raises(TypeError):
        softmax(x.astype(np.int16), table, y, (256, 0, -128, -128, 127, 0))


@st.composite
def windows(draw: st.DrawFn, dilations: st.SearchStrategy[int]) -> tuple[int, int, int, int, int, int]:
    """One axis of a pooling: extent, taps, stride, dilation, pad before, outputs; each window holds an input value."""
    extent, taps, stride, dilation = draw(EXTENT), draw(WINDOW), draw(STEP), draw(dilations)
    pad = draw(st.integers(-1, (taps - 1) * dilation))
    outputs = 0
    while outputs < 5 and inside(outputs * stride - pad, taps, dilation, extent):
        outputs += 1
    assume(outputs > 0)
    return extent, taps, stride, dilation, pad, outputs


@settings(max_examples=300, deadline=None)
@given(windows(STEP), windows(STEP), st.integers(1, 5), LIMITS, SEED)
def test_max_pool(rows: Any, columns: Any, channels: int, limits: Any, seed: int) -> None:
    x = values(np.random.default_rng(seed), rows[0], columns[0], channels)
    whole, y = channel_slice(rows[5], columns[5], channels)
    arguments = [item for axis in zip(rows[1:5], columns[1:5], strict=True) for item in axis]
    max_pool(x, y, *arguments, *limits)
    expected = [
        numerics.saturate(max(int(x[h, v, n]) for _, h in in_h for _, v in in_w), *limits)
        for in_h in (inside(i * rows[2] - rows[4], rows[1], rows[3], rows[0]) for i in range(rows[5]))
        for in_w in (inside(j * columns[2] - columns[4], columns[1], columns[3], columns[0]) for j in range(columns[5]))
        for n in range(channels)
    ]
    assert_same(whole, y, expected)


@settings(max_examples=400, deadline=None)
@given(
    windows(st.just(1)),
    windows(st.just(1)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.booleans(),
    PAIR,
    st.tuples(ZERO, ZERO, LIMITS, MODE),
    SEED,
)
def test_average_pool(rows: Any, columns: Any, after: Any, pads: bool, pair: Any, rest: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels = int(rng.choice([1, 3, 5, 32, 37]))
    x = room(rows[0] * columns[0] * channels).reshape(rows[0], columns[0], channels)
    x[...] = values(rng, *x.shape)
    whole, y = channel_slice(rows[5], columns[5], channels)
    padded = (rows[4] + rows[0] + after[0], columns[4] + columns[0] + after[1])
    arguments = [item for axis in zip((*rows[1:3], rows[4]), (*columns[1:3], columns[4]), strict=True) for item in axis]
    x_zero, y_zero, limits, mode = rest
    law, again = ((*arguments, *padded, pads), x_zero, (*pair, y_zero, *limits, mode)), np.empty_like(y)
    average_pool(x, y, np.empty(channels + vectors.WINDOW, np.int32), *law)
    long_average_pool(x, again, np.empty(channels + vectors.WINDOW, np.int64), *law)
    np.testing.assert_array_equal(again, y)
    expected = []
    for i, j, n in product(range(rows[5]), range(columns[5]), range(channels)):
        in_h = inside(i * rows[2] - rows[4], rows[1], 1, rows[0])
        in_w = inside(j * columns[2] - columns[4], columns[1], 1, columns[0])
        total = sum(int(x[h, v, n]) - x_zero for _, h in in_h for _, v in in_w)
        count = len(in_h) * len(in_w)
        if pads:
            in_h, in_w = inside(i * rows[2], rows[1], 1, padded[0]), inside(j * columns[2], columns[1], 1, padded[1])
            count = len(in_h) * len(in_w)
        expected.append(numerics.average(total, count, *[*pair, y_zero, mode, *limits]))
    assert_same(whole, y, expected)


SHAPE4 = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 20))


def operand(rng: np.random.Generator, shape: tuple[int, ...]) -> Int8:
    """A tensor of that shape: broadcast along some axes, transposed in memory, or a slice of a bigger one."""
    kind = rng.integers(0, 3)
    if kind == 0:
        kept = tuple(extent if rng.integers(0, 2) else 1 for extent in shape)
        return np.broadcast_to(values(rng, *kept), shape)
    if kind == 1:
        return values(rng, *shape[::-1]).transpose()
    return values(rng, *shape[:-1], 2 * shape[-1] + 1)[..., 1::2]


@settings(max_examples=300, deadline=None)
@given(SHAPE4, st.integers(2, 4), st.integers(0, 62), ZERO, LIMITS, MODE, SEED)
def test_sums(shape: Any, count: int, shift: int, zero: int, limits: Any, mode: Rounding, seed: int) -> None:
    rng = np.random.default_rng(seed)
    operands = [operand(rng, shape) for _ in range(count)]
    zeros = [int(z) for z in rng.choice([-128, 0, 7, 127], count)]
    multipliers = [int(m) for m in rng.integers(-(2 ** min(shift, 31)), 2 ** min(shift, 31), count, endpoint=True)]
    acc = np.zeros(shape, np.int64)
    for x, z, m in zip(operands, zeros, multipliers, strict=True):
        accumulate(acc, x, z, m, 1)
    terms = zip(operands, zeros, multipliers, strict=True)
    products = [(x.astype(np.int64) - z).ravel().astype(object) * m for x, z, m in terms]
    totals = np.sum(products, axis=0).tolist()
    assert acc.ravel().tolist() == totals
    expected = [numerics.saturate(numerics.round_shift(t, shift, mode) + zero, *limits) for t in totals]
    whole, y = channel_slice(*shape)
    requantize_wide(acc, y, (shift, zero, *limits, mode))
    assert_same(whole, y, expected)
    if count == 2:
        (a, b), (a_zero, b_zero), (a_multiplier, b_multiplier) = operands, zeros, multipliers
        whole, y = channel_slice(*shape)
        add2(a, a_zero, a_multiplier, b, b_zero, b_multiplier, y, (shift, zero, *limits, mode))
        assert_same(whole, y, expected)


@settings(max_examples=300, deadline=None)
@given(SHAPE4, ZERO, ZERO, ZERO, PAIR, LIMITS, MODE, SEED)
def test_products(
    shape: Any, a_zero: int, b_zero: int, zero: int, pair: Any, limits: Any, mode: Rounding, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = operand(rng, shape), operand(rng, shape)
    whole, y = channel_slice(*shape)
    multiply(a, a_zero, b, b_zero, y, (*pair, zero, *limits, mode))
    factors = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    expected = [numerics.requantize((p - a_zero) * (q - b_zero), *[*pair, zero, mode, *limits]) for p, q in factors]
    assert_same(whole, y, expected)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.integers(1, 50), st.floats(0, 2), PAIR, ZERO, MODE, SEED)
def test_softmax(rows: int, n: int, scale: float, pair: Any, zero: int, mode: Rounding, seed: int) -> None:
    x = values(np.random.default_rng(seed), rows, n)
    table = numerics.softmax_table(scale)
    for multiplier, shift in (pair, (256, 0)):
        whole, y = channel_slice(rows, n)
        softmax(x, np.array(table, np.int32), y, (multiplier, shift, zero, -128, 127, mode))
        assert_same(whole, y, [numerics.softmax(row.tolist(), table, multiplier, shift, zero, mode) for row in x])


def test_the_cache_folder_follows_the_environment_and_names_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    assert kernels.cache_folder().parent == tmp_path / "numba"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernels.cache_folder().parent == tmp_path / "xdg" / "nnac"
    assert kernels.is_cold()
    (kernels.cache_folder() / "some.nbi").touch()
    assert not kernels.is_cold()
    before = kernels.cache_folder().name
    source = tmp_path / "kernels" / "__init__.py"
    source.parent.mkdir()
    source.write_text("changed")
    monkeypatch.setattr(kernels, "__file__", str(source))
    digest: Callable[[], str] = kernels._digest.__wrapped__
    assert before != f"kernels-{digest()}"


def test_the_cache_folder_falls_back_to_a_private_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kernels._temporary_home.cache_clear()
    try:
        home = kernels.cache_folder().parent
        assert home.parent == tmp_path
        home.chmod(0o777)  # somebody else could write there: not trusted any more
        kernels._temporary_home.cache_clear()
        assert kernels.cache_folder().parent != home
    finally:
        kernels._temporary_home.cache_clear()


def test_importing_the_package_leaves_numba_alone() -> None:
    code = "import sys, nnac.kernels; nnac.kernels.is_cold(); sys.exit('numba' in sys.modules)"
    root = str(Path(numerics.__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": root})


def test_kernels_leave_numbas_own_cache_folder_as_it_was() -> None:
    numba = importlib.import_module("numba")
    before = numba.config.CACHE_DIR
    importlib.import_module("nnac.kernels.conv")
    assert numba.config.CACHE_DIR == before
