"""Float runs by onnxruntime: what they give, and what is wrong with a model or its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from nnac.calibration import (
    random_samples,
)
from nnac.errors import ModelError
from nnac.floatmodel import FloatModel
from tests.test_calibration import GOOD, SHAPES, identity_model, model_of, two_input_model


def test_intermediates_equal_the_reference_evaluator() -> None:
    model, sample = two_input_model(), next(iter(random_samples(SHAPES)))
    names = ["x", "w", "wide", "bent", "narrow", "size", "total"]
    found = FloatModel(model, names).run(sample)
    assert list(found) == ["y", *names]
    expected = ReferenceEvaluator(model).run(["y", *names], sample)
    for name, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        assert found[name].dtype == np.asarray(value).dtype


def test_only_graph_outputs_without_names_and_the_same_bits_again() -> None:
    model, sample = two_input_model(), next(iter(random_samples(SHAPES)))
    first, again = FloatModel(model).run(sample), FloatModel(model, ["bent", "y", "bent"]).run(sample)
    assert list(first) == ["y"] and list(again) == ["y", "bent"]
    assert first["y"].tobytes() == again["y"].tobytes()


def test_a_new_ir_version_runs_and_the_model_is_not_changed() -> None:
    model = two_input_model(ir_version=14)
    before = model.SerializeToString(deterministic=True)
    FloatModel(model, ["bent"]).run(next(iter(random_samples(SHAPES))))
    assert model.ir_version == 14 and model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int64", "uint8", ">f4", ">i2"])
def test_numbers_are_cast_for_float_inputs(dtype: str) -> None:
    sample = {"x": np.array([[1, 2, 3, 4]], dtype), "h": np.ones((3, 1, 1), dtype).T}
    cast = {name: value.astype(np.float32) for name, value in sample.items()}
    runner = FloatModel(two_input_model())
    assert runner.run(sample)["y"].tobytes() == runner.run(cast)["y"].tobytes()


def test_symbolic_dimensions_and_defaults() -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    inputs: dict[str, tuple[int, list[int | str]]] = {"x": (1, ["n", 2]), "w": (1, [2])}
    runner = FloatModel(model_of(nodes, inputs, ["y"], {"w": np.array([1, 2], np.float32)}))
    assert runner.run({"x": np.zeros((5, 2))})["y"].shape == (5, 2)
    assert runner.run({"x": np.zeros((1, 2)), "w": np.array([7, 8])})["y"].tolist() == [[7, 8]]
    with pytest.raises(ModelError, match=r"found shape \[5, 3\], expected \[n, 2\]"):
        runner.run({"x": np.zeros((5, 3))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "'x' is missing (given: 'h')"),
        ({"z": np.zeros(1)}, "'z' is unknown (the model has: 'x', 'h')"),
        ({"x": np.zeros((2, 4))}, "'x': found shape [2, 4], expected [1, 4]"),
        ({"x": np.zeros(4)}, "'x': found shape [4], expected [1, 4]"),
        ({"x": np.zeros((1, 4), bool)}, "'x': found dtype bool, expected float32"),
        ({"x": np.zeros((1, 4), complex)}, "'x': found dtype complex128, expected float32"),
        ({"x": np.array([["a"] * 4])}, "expected float32"),
        ({"x": np.array([[None] * 4])}, "found dtype object"),
        ({"x": [[1, 2], [3]]}, "'x': is no array"),
        ({"x": np.array([[0, 0, 0, np.nan]])}, "'x': found NaN or infinite values"),
        ({"x": np.array([[0, 0, 0, -np.inf]])}, "'x': found NaN or infinite values"),
        ({"x": np.full((1, 4), 1e39)}, "'x': found NaN or infinite values (as float32)"),
    ],
)
def test_bad_inputs(change: dict[str, Any], message: str) -> None:
    inputs = {name: value for name, value in (GOOD | change).items() if value is not None}
    with pytest.raises(ModelError) as caught:
        FloatModel(two_input_model()).run(inputs)
    assert message in str(caught.value)


def test_all_bad_inputs_are_named_at_once() -> None:
    with pytest.raises(ModelError) as caught:
        FloatModel(two_input_model()).run({"x": np.zeros(3), "z": np.zeros(1)})
    assert all(f"input '{name}'" in str(caught.value) for name in "xhz")


def test_integer_inputs_want_their_dtype() -> None:
    nodes = [helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]
    runner = FloatModel(model_of(nodes, {"i": (TensorProto.INT32, [2])}, ["y"]))
    assert runner.run({"i": np.array([1, 2], ">i4")})["y"].tolist() == [1, 2]
    for wrong in ("int64", "float32"):
        with pytest.raises(ModelError, match=f"found dtype {wrong}, expected int32"):
            runner.run({"i": np.array([1, 2], wrong)})


def broken_models() -> dict[str, tuple[onnx.ModelProto, str]]:
    """Models that cannot be loaded, each with a part of the message."""
    vector: dict[str, tuple[int, list[int | str]]] = {"x": (TensorProto.FLOAT, [4])}
    external = identity_model(4)
    weight = external.graph.initializer.add(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="/etc/passwd")
    nested = model_of([helper.make_node("Constant", [], ["y"], value=weight)], vector, ["y"])
    escape = model_of([helper.make_node("No\x1b[31mpe", ["x"], ["y"])], vector, ["y"])
    return {
        "empty": (onnx.ModelProto(), "onnxruntime cannot load"),
        "unknown operator": (escape, "No?[31mpe"),
        "external": (external, "external files"),
        "external constant": (nested, "external files"),
        "undefined": (model_of([helper.make_node("Relu", ["q"], ["y"])], vector, ["y"]), "onnxruntime cannot load"),
    }


@pytest.mark.parametrize("case", list(broken_models()))
def test_broken_models(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, message = broken_models()[case]
    with pytest.raises(ModelError) as caught:
        FloatModel(model)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_unknown_tensor_and_failing_run(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"no tensor 'q', '' in its main graph"):
        FloatModel(two_input_model(), ["x", "q", ""])
    nodes = [helper.make_node("Reshape", ["x", "w"], ["y"])]
    reshape = model_of(nodes, {"x": (TensorProto.FLOAT, ["n"])}, ["y"], {"w": np.array([7])})
    with pytest.raises(ModelError, match=r"onnxruntime cannot run the model: .*Reshape") as caught:
        FloatModel(reshape).run({"x": np.zeros(3)})
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_only_tensors_can_be_read() -> None:
    nodes = [helper.make_node("SplitToSequence", ["x"], ["parts"]), helper.make_node("Relu", ["x"], ["y"])]
    runner = FloatModel(model_of(nodes, {"x": (TensorProto.FLOAT, [3])}, ["y"]), ["parts"])
    with pytest.raises(ModelError, match="'parts' is a list"):
        runner.run({"x": np.zeros(3)})
