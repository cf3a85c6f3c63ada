"""Calibration: the same ranges in any order, near what raw data say, and clear errors."""

from __future__ import annotations

import random
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from nnac.calibration import (
    BINS,
    METHODS,
    Range,
    _edges,
    _Histogram,
    _mse_range,
    _percentile_range,
    calibrate,
    count,
    load_samples,
    random_samples,
)
from nnac.errors import ModelError
from nnac.floatmodel import FloatModel
from nnac.types import Array

SHAPES = {"x": (1, 4), "h": (1, 1, 3)}
GOOD = {"x": np.zeros((1, 4), np.float32), "h": np.zeros((1, 1, 3), np.float32)}


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[int | str]]],
    outputs: list[str],
    weights: Mapping[str, Array] | None = None,
    ir_version: int = 10,
) -> onnx.ModelProto:
    """Build a small model: inputs as (element type, shape), float outputs without shapes."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version)


def two_input_model(ir_version: int = 10) -> onnx.ModelProto:
    """tanh(x @ w) @ v * sum(h), and an int64 shape on the side."""
    draw = np.random.default_rng(1)
    weights = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in (("w", (4, 6)), ("v", (6, 2)))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"]),
        helper.make_node("Tanh", ["wide"], ["bent"]),
        helper.make_node("MatMul", ["bent", "v"], ["narrow"]),
        helper.make_node("Shape", ["narrow"], ["size"]),
        helper.make_node("ReduceSum", ["h"], ["total"], keepdims=0),
        helper.make_node("Mul", ["narrow", "total"], ["y"]),
    ]
    inputs: dict[str, tuple[int, list[int | str]]] = {
        "x": (TensorProto.FLOAT, [1, 4]),
        "h": (TensorProto.FLOAT, [1, 1, 3]),
    }
    return model_of(nodes, inputs, ["y"], weights, ir_version)


def identity_model(size: int) -> onnx.ModelProto:
    """y = x, for calibration of data that the test chooses."""
    return model_of([helper.make_node("Identity", ["x"], ["y"])], {"x": (TensorProto.FLOAT, [size])}, ["y"])


def ranges_of(values: Array, method: str, **options: Any) -> Range:
    """Calibrate one tensor that holds the values."""
    samples = [{"x": values.astype(np.float32)}]
    return calibrate(identity_model(values.size), samples, ["y"], method, **options)["y"]


def quantization_error(values: Array, low: float, high: float) -> float:
    """Mean squared error of the int8 asymmetric quantizer over raw values, in float64 (brute force)."""
    scale = (high - low) / 255
    zero_point = np.rint(-128 - low / scale)
    integers = np.clip(np.rint(values / scale) + zero_point, -128, 127)
    return float(np.mean((values - (integers - zero_point) * scale) ** 2))


@pytest.mark.parametrize("method", METHODS)
def test_any_order_gives_the_same_ranges(method: str) -> None:
    samples = list(random_samples(SHAPES, count=40))
    tensors = ["x", "h", "wide", "bent", "y"]
    expected = calibrate(two_input_model(), samples, tensors, method, percentile=95)
    for seed in range(3):
        random.Random(seed).shuffle(samples)
        assert calibrate(two_input_model(), iter(samples), tensors, method, percentile=95) == expected
    assert list(expected) == tensors


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.randoms(),
)
def test_any_order_and_grouping_gives_the_same_collector(values: Array, shuffler: random.Random) -> None:
    whole, single = _Histogram(), _Histogram()
    whole.add(values)
    order = list(range(values.size))
    shuffler.shuffle(order)
    for index in order:
        single.add(values[index : index + 1])
    np.testing.assert_array_equal(whole.counts, single.counts)
    assert repr(Range.of(whole.low, whole.high)) == repr(Range.of(single.low, single.high))
    for choose in (_mse_range, lambda histogram: _percentile_range(histogram, 90)):
        assert repr(choose(whole)) == repr(choose(single))
        assert whole.low <= choose(whole).low <= 0 <= choose(whole).high <= whole.high


def test_minmax_is_exact_and_skips_what_is_not_float() -> None:
    model, samples = two_input_model(), list(random_samples(SHAPES, count=5))
    ranges = calibrate(model, samples, ["size", "wide", "x"])
    wide = np.concatenate([FloatModel(model, ["wide"]).run(sample)["wide"] for sample in samples])
    assert list(ranges) == ["wide", "x"]
    assert ranges["wide"] == Range(float(wide.min()), float(wide.max()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [([2.0, 3.0], (0, 3)), ([-2.0, -3.0], (-3, 0)), ([0.0], (0, 0)), ([-0.0], (0, 0)), ([1e-42], (0, 1e-42))],
)
def test_zero_is_included(method: str, values: list[float], expected: tuple[float, float]) -> None:
    found = ranges_of(np.array(values), method)
    low, high = (float(np.float32(end)) for end in expected)
    assert (repr(found.low), repr(found.high)) == (repr(low), repr(high))


def test_memory_does_not_grow_with_the_samples() -> None:
    few, many = _Histogram(), _Histogram()
    draw = np.random.default_rng(0)
    few.add(draw.standard_normal(10, np.float32))
    for _ in range(200):
        many.add(draw.standard_normal((10, 10), np.float32))
    assert few.counts.nbytes == many.counts.nbytes == 8 * BINS and few.counts.dtype == np.int64
    assert many.counts.sum() == 20_000 and many.squares.size <= 4096
    assert not hasattr(many, "__dict__")


def test_samples_are_read_one_at_a_time() -> None:
    alive: list[int] = []

    def stream() -> Iterator[dict[str, Array]]:
        for index in range(5):
            alive.append(index)
            yield {"x": np.full(3, float(index))}

    done: list[tuple[int, int]] = []
    calibrate(identity_model(3), stream(), ["y"], "mse", lambda number: done.append((number, len(alive))))
    assert done == [(number, number) for number in range(1, 6)]


def test_every_finite_bin_holds_its_values() -> None:
    bins = np.concatenate([np.arange(0x7F80), np.arange(0x8000, 0xFF80)])
    inner, outer = _edges(bins)
    first, last = ((bins << 16 | low).astype(np.uint32).view(np.float32).astype(float) for low in (0, 0xFFFF))
    assert (np.abs(inner) == np.abs(first)).all() and (np.abs(last) < np.abs(outer)).all()
    normal = (bins & 0x7FFF) >= 0x80
    assert (np.abs(outer - inner)[normal] <= np.abs(inner)[normal] / 128).all()


def distributions() -> dict[str, Array]:
    """Shapes of activations that networks have."""
    draw = np.random.default_rng(7)
    normal, size = draw.standard_normal(30_000), 30_000
    return {
        "gaussian": normal,
        "few": normal[:100],
        "laplace": draw.laplace(size=size),
        "uniform": draw.uniform(-1, 3, size),
        "relu": np.maximum(normal, 0),
        "relu of laplace": np.maximum(draw.laplace(size=size), 0),
        "relu6": np.clip(normal * 4, 0, 6),
        "gelu": normal / (1 + np.exp(-1.702 * normal)),
        "sigmoid": 1 / (1 + np.exp(-3 * normal)),
        "outlier": np.append(normal, [-100.0]),
        "negative": -np.abs(normal) - 1,
        "integers": draw.integers(-3, 9, size) * 1.0,
        "grid": draw.integers(0, 256, size) * (6 / 255),
        "small": normal * 1e-30,
        "large": normal * 3e37,
    }


@pytest.mark.parametrize("name", list(distributions()))
def test_mse_is_never_worse_than_minmax_on_the_raw_data(name: str) -> None:
    values = distributions()[name].astype(np.float32).astype(np.float64)
    found, plain = (ranges_of(values, method) for method in ("mse", "minmax"))
    chosen, whole = (quantization_error(values, each.low, each.high) for each in (found, plain))
    assert plain.low <= found.low <= found.high <= plain.high
    assert chosen <= whole * 1.005 + 1e-90


@pytest.mark.parametrize("name", ["gaussian", "laplace", "uniform", "relu", "relu of laplace", "gelu", "outlier"])
def test_mse_is_near_the_best_of_a_brute_force_search(name: str) -> None:
    values = distributions()[name].astype(np.float32).astype(np.float64)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    shares = np.linspace(1, 0.2, 17)
    best = min(quantization_error(values, low * a, high * b) for a in (shares if low else shares[:1]) for b in shares)
    found = ranges_of(values, "mse")
    assert quantization_error(values, found.low, found.high) <= best * 1.03


def test_mse_takes_little_time() -> None:
    histogram = _Histogram()
    histogram.add(np.random.default_rng(0).standard_normal(1_000_000, np.float32))
    times = []
    for _ in range(5):
        start = time.process_time()
        _mse_range(histogram)
        times.append(time.process_time() - start)
    assert min(times) < 0.06  # 4 ms where this was written


@pytest.mark.parametrize("name", list(distributions()))
@pytest.mark.parametrize("percent", [75, 99, 99.9, 99.99, 100])
def test_percentile_is_within_a_bin_of_the_raw_percentile(name: str, percent: float) -> None:
    values = distributions()[name].astype(np.float32).astype(np.float64)
    found = ranges_of(values, "percentile", percentile=percent)
    high = max(np.percentile(values, percent, method="inverted_cdf"), 0.0)
    low = min(-np.percentile(-values, percent, method="inverted_cdf"), 0.0)
    assert high <= found.high <= high * (1 + 1 / 128) and low * (1 + 1 / 128) <= found.low <= low
    assert np.mean(values <= found.high) >= percent / 100 and np.mean(values >= found.low) >= percent / 100


def test_percentile_100_is_minmax() -> None:
    values = distributions()["gaussian"]
    assert ranges_of(values, "percentile", percentile=100) == ranges_of(values, "minmax")


def overflowing() -> onnx.ModelProto:
    """y = exp(x), infinite from 89 on."""
    return model_of([helper.make_node("Exp", ["x"], ["y"])], {"x": (TensorProto.FLOAT, [1])}, ["y"])


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], {}, "no calibration samples"),
        ([{"x": np.ones(1)}], {"method": "entropy"}, "'entropy' is unknown, choose one of minmax, percentile, mse"),
        ([{"x": np.ones(1)}], {"percentile": 50}, "percentile is 50"),
        ([{"x": np.ones(1)}], {"percentile": 100.1}, "percentile is 100.1"),
        ([{"x": np.ones(1)}], {"percentile": float("nan")}, "percentile is nan"),
        ([{"x": np.ones(1)}, {"x": np.array([89.0])}], {}, "sample 2: tensor 'y' has NaN or infinite values"),
        ([{"x": np.ones(1)}, {"x": np.array([np.nan])}], {}, "input 'x': found NaN"),
        ([{"q": np.ones(1)}], {}, "input 'x' is missing"),
    ],
)
def test_calibrate_errors(samples: list[dict[str, Array]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        calibrate(overflowing(), samples, ["y"], **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("ends", [(1.0, 2.0), (-2.0, -1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_range_is_finite_and_includes_zero(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="finite and includes zero"):
        Range(*ends)


def test_a_range_has_no_negative_zero() -> None:
    assert str(Range.of(-0.0, -0.0)).startswith("Range(low=0.0, high=0.0,")


# Samples


def write(path: Path, seed: int = 0, number: int = 3) -> dict[str, Array]:
    """Write a good file for SHAPES, one of its inputs without the leading ones, and return its arrays."""
    draw = np.random.default_rng(seed)
    arrays = {"x": draw.standard_normal((number, 4)), "h": draw.standard_normal((number, 1, 1, 3))}
    np.savez(path, x=arrays["x"], h=arrays["h"])
    return arrays


def test_a_file_gives_its_rows_in_the_inputs_shapes(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.npz")
    samples = load_samples(tmp_path / "a.npz", SHAPES)
    assert count(samples) == 3
    for _ in range(2):
        for index, sample in enumerate(samples):
            assert {name: value.shape for name, value in sample.items()} == SHAPES
            assert all((sample[name].reshape(-1) == arrays[name][index].reshape(-1)).all() for name in SHAPES)
    assert len(list(samples)) == 3


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    arrays = [write(tmp_path / f"{name}.npz", seed, 2) for seed, name in enumerate("cab")]
    (tmp_path / "notes.txt").write_text("not data")
    samples = load_samples(str(tmp_path), SHAPES)
    expected = np.concatenate([arrays[index]["x"] for index in (1, 2, 0)])
    assert count(samples) == 6 and (np.concatenate([sample["x"] for sample in samples]) == expected).all()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["float32", "float16", ">f8", "int16", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts_and_dtypes(tmp_path: Path, save: Callable[..., None], dtype: str, order: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, (5, 2, 3)).astype(dtype)
    save(tmp_path / "a.npz", **{"in/x": np.asarray(values, order=order)})  # type: ignore[call-overload]
    samples = [sample["in/x"] for sample in load_samples(tmp_path / "a.npz", {"in/x": (1, 2, 3)})]
    assert [sample.shape for sample in samples] == [(1, 2, 3)] * 5
    assert (np.concatenate(samples) == values).all() and samples[0].dtype == values.dtype


@pytest.mark.parametrize(
    ("target", "row", "fits"),
    [
        ((1, 4), (4,), True),
        ((1, 4), (1, 4), True),
        ((1, 1, 4), (1, 4), True),
        ((1, 1, 4), (4,), True),
        ((1,), (), True),
        ((), (), True),
        ((1, 4, 1), (4, 1), True),
        ((1, 4, 1), (4,), False),
        ((1, 4), (2, 2), False),
        ((4, 1), (1, 4), False),
        ((4,), (1, 4), False),
        ((2, 4), (4,), False),
    ],
)
def test_which_shapes_fit(tmp_path: Path, target: tuple[int, ...], row: tuple[int, ...], fits: bool) -> None:
    values = np.arange(2.0 * prod(row)).reshape(2, *row)
    np.savez(tmp_path / "a.npz", x=values)
    for source in (tmp_path / "a.npz", [{"x": value} for value in values]):
        if fits:
            assert [sample["x"].shape for sample in load_samples(source, {"x": target})] == [target] * 2
            continue
        with pytest.raises(ModelError, match="allowed: ") as caught:
            list(load_samples(source, {"x": target}))
        assert str(list(row)) in str(caught.value) and str(list(target)) in str(caught.value)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write one file per kind of damage; returns its path and a part of the message."""
    x, h = np.zeros((3, 4)), np.zeros((3, 3))
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "missing": ({"x": x}, "has the arrays 'x'; the model's inputs are 'x', 'h'"),
        "extra": ({"x": x, "h": h, "label": x}, "has the arrays 'x', 'h', 'label'"),
        "shape": ({"x": np.zeros((3, 5)), "h": h}, "array 'x' of shape [3, 5] (first axis: samples): a sample has"),
        "no sample axis": ({"x": np.float32(1), "h": h}, "expected a first axis that counts samples"),
        "counts": ({"x": np.zeros((2, 4)), "h": h}, "differ in the number of samples: 'x' 2, 'h' 3"),
        "objects": ({"x": np.array([[None] * 4] * 3), "h": h}, "array 'x' has dtype object, expected numbers"),
        "text": ({"x": np.array([["a"] * 4] * 3), "h": h}, "has dtype <U1, expected numbers"),
        "records": ({"x": np.zeros((3, 4), "f4,f4"), "h": h}, "expected numbers"),
    }
    found = {}
    for name, (arrays, message) in cases.items():
        np.savez(folder / f"{name}.npz", **arrays)
        found[name] = (folder / f"{name}.npz", message)
    write(folder / "good")
    good = (folder / "good.npz").read_bytes()
    raw = {"empty": b"", "not a zip": b"hello" * 50, "truncated": good[: len(good) // 2], "no end": good[:-4]}
    for name, content in raw.items():
        (folder / f"{name}.npz").write_bytes(content)
        found[name] = (folder / f"{name}.npz", f"{name}.npz' cannot be read")
    return found


BAD = ("missing", "extra", "shape", "no sample axis", "counts", "objects", "text", "records")
BAD_BYTES = ("empty", "not a zip", "truncated", "no end")


@pytest.mark.parametrize("case", BAD + BAD_BYTES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    path, message = bad_files(tmp_path)[case]
    with pytest.raises(ModelError) as caught:
        load_samples(path, SHAPES)
    assert message in str(caught.value) and f"{path.name}" in str(caught.value)


def test_all_bad_files_of_a_folder_are_named_at_once(tmp_path: Path) -> None:
    bad_files(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_samples(tmp_path, SHAPES)
    assert all(f"{case}.npz" in str(caught.value) for case in BAD + BAD_BYTES)
    assert "good.npz" not in str(caught.value)


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.npy", HEADER, 47)], "should have 48 bytes by its header, found 47"),
        ([("x.npy", HEADER, 49)], "should have 48 bytes by its header, found 49"),
        ([("x.npy", HEADER.replace("3", str(2**60)), 48)], "by its header, found 48"),
        ([("x.npy", HEADER.replace("3", "-3"), 48)], "expected a first axis that counts samples"),
        ([("x.npy", HEADER.replace("<f4", "|O"), 48)], "expected numbers"),
        ([("x.npy", HEADER.replace("'shape'", "'form'"), 48)], "cannot be read"),
        ([("x.npy", "{" * 200, 48)], "cannot be read"),
        ([("x.npy", HEADER, 48), ("x", HEADER, 48)], "two arrays of one name"),
        ([("../x.npy", HEADER, 48)], "has the arrays '../x'"),
        ([], "has the arrays none"),
    ],
)
def test_hostile_archives(tmp_path: Path, members: list[tuple[str, str, int]], message: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, header, size in members:
            text = header.encode() + b"\n"
            archive.writestr(name, b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(size))
    with pytest.raises(ModelError) as caught:
        load_samples(tmp_path / "a.npz", {"x": (1, 4)})
    assert message in str(caught.value)


def test_a_wrong_checksum_is_found_while_reading(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.npz", number=2000)
    content = (tmp_path / "a.npz").read_bytes()
    one, other = arrays["x"][1].tobytes(), arrays["x"][2].tobytes()
    (tmp_path / "a.npz").write_bytes(content.replace(one, other))
    samples = load_samples(tmp_path / "a.npz", SHAPES)
    with pytest.raises(ModelError, match=r"file '.*a.npz', array 'x' cannot be read: Bad CRC"):
        calibrate(two_input_model(), samples, ["y"])


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 2000), flip=st.integers(1, 255), compressed=st.booleans())
def test_a_flipped_byte_is_an_error_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int, compressed: bool
) -> None:
    path = tmp_path_factory.mktemp("flip") / "a.npz"
    values = np.random.default_rng(0).standard_normal((3, 4))
    (np.savez_compressed if compressed else np.savez)(path, x=values)
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= flip
    path.write_bytes(content)
    try:
        found = [sample["x"] for sample in load_samples(path, {"x": (4,)})]
    except ModelError:
        return
    assert (np.stack(found) == values).all()


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "holds no .npz files"), (tmp_path / "gone.npz", "not there"), ("\0", "not there")):
        with pytest.raises(ModelError, match=message):
            load_samples(path, SHAPES)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ModelError, match="no regular file"):
        load_samples(tmp_path, SHAPES)


@pytest.mark.parametrize("shape", [(0, 4), (-1, 4)])
def test_inputs_need_fixed_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="fixed input shapes"):
        load_samples([], {"x": shape})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([{"x": np.zeros(4)}], "sample 1 has the arrays 'x'; the model's inputs are 'x', 'h'"),
        ({"x": np.zeros(4), "h": np.zeros(3)}, "sample 1 is a str, expected a mapping"),
        ([GOOD, {"x": np.zeros(4), "h": np.zeros(4)}], "sample 2 does not fit the model:\n  - h has shape [4]"),
        ([{"x": [[1], [2, 3]], "h": np.zeros(3)}], "cannot be read"),
        (5, "found int"),
    ],
)
def test_bad_mappings(source: Any, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        list(load_samples(source, SHAPES))
    assert message in str(caught.value)


def test_counts() -> None:
    assert count(random_samples(SHAPES, 7)) == 7
    assert count(load_samples([GOOD, GOOD], SHAPES)) == 2
    assert count(load_samples((sample for sample in [GOOD]), SHAPES)) is None
    assert count(sample for sample in [GOOD]) is None


def test_random_samples_repeat_with_their_seed() -> None:
    first, again, other = (list(random_samples(SHAPES, 3, seed)) for seed in (1, 1, 2))
    assert all((a[name] == b[name]).all() for a, b in zip(first, again, strict=True) for name in SHAPES)
    assert any((a[name] != b[name]).any() for a, b in zip(first, other, strict=True) for name in SHAPES)
    assert first[0]["x"].shape == (1, 4) and first[0]["x"].dtype == np.float32


def test_files_calibrate_a_model(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.npz", number=20)
    samples = load_samples(tmp_path, SHAPES)
    ranges = calibrate(two_input_model(), samples, ["x", "h", "y"])
    assert ranges["x"] == Range.of(*(float(np.float32(f(arrays["x"]))) for f in (np.min, np.max)))


def test_power_of_the_median_entry() -> None:
    """The mean square over the samples, of the entry in the middle; what is always zero does not count."""
    samples = [{"x": np.array([[0, 1, 2, 30, 0]], np.float32) * sign} for sign in (1, -1, 1)]
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> main (float[1, 5] x) => (float[1, 5] y) { y = Relu (x) }'
    )
    found = calibrate(model, samples, ["x", "y"])
    assert found["x"].power == 4.0
    assert found["y"].power == pytest.approx(4.0 * 2 / 3)
