"""Verify: quantized models against onnxruntime, and that it finds what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from nnac.emulator import Emulator
from nnac.errors import ModelError
from nnac.frontend import prepare
from nnac.ops import REGISTRY
from nnac.ops.base import bind
from nnac.targets import load_target
from nnac.types import Array
from nnac.verify import Verification, verify
from nnac.verify.rationals import exact
from tests.graphs import graph_of, random_inputs
from tests.qdqnets import KINDS, RandomQdq, random_samples

SHOWN = ("arm_kws_ds_cnn_s_qdq", "arm_kws_ds_cnn_s_qoperator", "tflm_micro_speech_int8", "ultraface_slim_320_qdq")
ENGINES = (("nna8", "onnxruntime"), ("nna8-onnx", "onnxruntime-integer"), ("u55-128-like", "onnxruntime"))


def samples_of(assets: Path, name: str, count: int) -> list[dict[str, Array]]:
    """Return inputs of a shared model: speech features where we have them, else random ones."""
    if "kws" in name:
        with np.load(assets / "data/kws_mfcc/kws_mfcc_calib.npz") as data:
            return [{"Reshape:0": row[None]} for row in data["mfcc_w640_s320"][:count]]
    model = prepare(onnx.load(assets / "models" / name / f"{name}.onnx"))
    return random_samples(model, np.random.default_rng(1), count)


def sums(result: Verification) -> tuple[int, int, int]:
    """Return ties, rules and faults."""
    rows = result.rows
    return sum(row.ties for row in rows), sum(row.rules for row in rows), sum(row.faults for row in rows)


@pytest.mark.parametrize("name", SHOWN)
def test_arithmetic_onnx_is_onnxruntime(name: str, assets: Path) -> None:
    """0 differing integers at every tensor against onnxruntime's integer operators, optimizer off."""
    path = assets / "models" / name / f"{name}.onnx"
    result = verify(path, samples_of(assets, name, 2 if "ultra" in name else 10), "nna8-onnx", against=ENGINES[1][1])
    assert len(result.rows) >= 5 and result.calibration == ""
    assert [row for row in result.rows if row.differing] == []


@pytest.mark.parametrize("target", ["nna8", "nna8-onnx"])
@pytest.mark.parametrize("name", SHOWN)
def test_as_written_there_are_ties_alone(name: str, target: str, assets: Path) -> None:
    """QDQ in float32: what differs is where float32 cannot tell the two integers apart, and it is little."""
    path = assets / "models" / name / f"{name}.onnx"
    result = verify(path, samples_of(assets, name, 1 if "ultra" in name else 10), target)
    ties, rules, faults = sums(result)
    assert (rules, faults) == (0, 0) and ties <= 2 + 1e-5 * sum(row.elements for row in result.rows)


def check_random(seed: int) -> Counter[str]:
    """Verify one random QDQ model on all engines; return the kinds of its operators."""
    rng = np.random.default_rng(seed)
    net = RandomQdq(rng)
    model = net.model(int(rng.integers(4, 14)))
    for target, engine in ENGINES:
        result = verify(model, random_samples(model, rng, 2), target, against=engine)
        assert result.faults == 0, [row for row in result.rows if row.faults]
    return Counter(net.kinds)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_models_have_no_faults(seed: int) -> None:
    """Odd shapes, extreme scales and zero points, int8 and uint8."""
    check_random(seed)


@pytest.mark.slow
def test_many_random_models_have_no_faults() -> None:
    """A sweep that sees every kind of operator."""
    seen = sum((check_random(seed) for seed in range(200)), Counter[str]())
    assert len(KINDS) >= 30 and set(seen) == set(KINDS)


class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
    """Hands onnxruntime's quantizer its samples."""

    def __init__(self, samples: list[dict[str, Array]]) -> None:
        self.left = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next sample."""
        return next(self.left, None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("types", ["QUInt8 QUInt8", "QUInt8 QInt8", "QInt8 QInt8"])
def test_what_onnxruntime_quantizes(form: str, types: str, assets: Path, tmp_path: Path) -> None:
    """Its quantizer's models, per channel or with zero points in the weights: 0 integers differ from its own."""
    with np.load(assets / "data/kws_mfcc/kws_mfcc_calib.npz") as data:
        samples = [{"Reshape:0": row[None]} for row in data["mfcc_w640_s640"][:8]]
    activations, weights = (getattr(QuantType, name) for name in types.split())
    path = tmp_path / "quantized.onnx"
    quantize_static(
        assets / "models/arm_kws_dnn_s/arm_kws_dnn_s.onnx",
        path,
        Reader(samples),
        quant_format=getattr(QuantFormat, form),
        activation_type=activations,
        weight_type=weights,
        per_channel=types.endswith(" QInt8"),
    )
    result = verify(path, samples[:4], "nna8-onnx", against="onnxruntime-integer")
    assert result.calibration == "" and len(result.rows) >= 5
    assert [row for row in result.rows if row.differing] == []


# -- what is wrong is found ----------------------------------------------------------------------------------------


def small_model() -> onnx.ModelProto:
    """Return a random model that has a convolution."""
    for seed in range(100):
        net = RandomQdq(np.random.default_rng(seed))
        model = net.model(6)
        if "ConvRelu" in net.kinds:
            return model
    raise AssertionError("no convolution in 100 models")


@pytest.mark.parametrize("step", [1, -3])
def test_a_wrong_bit_is_a_fault(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One element of one tensor off by a step: found, named, and nothing else is blamed."""
    model, rng = small_model(), np.random.default_rng(0)
    trace = Emulator.trace

    def broken(self: Emulator, *arguments: Any) -> dict[str, Array]:
        found = trace(self, *arguments)
        layer = next(layer for layer in self.program.layers if layer.op == "Conv")
        place = found[layer.output].reshape(-1)[:1]
        place[:] = place + step if -128 <= int(place[0]) + step <= 127 else place - step
        return found

    monkeypatch.setattr(Emulator, "trace", broken)
    result = verify(model, random_samples(model, rng, 1), "nna8-onnx")
    assert result.faults == 1 and result.first is not None
    assert (result.first.op, result.first.faults) == ("Conv", 1)
    assert result.first.example is not None and result.first.example.value is not None


def test_exact_values_are_what_the_reference_rounds() -> None:
    """For every operator with a rule: the integer reference is nearest to the exact rational value."""
    law, checked = load_target("nna8").arithmetic, set()
    for op in REGISTRY:
        for seed in range(8):
            rng = np.random.default_rng(seed)
            graph = graph_of(op.sample(rng))
            (node,) = graph.nodes
            types = graph.types((*graph.operands(node), node.output))
            if any(kind.quant is None or kind.quant.bits != 8 for kind in types):
                continue
            values: Mapping[str, Array] = {**graph.constants, **random_inputs(graph, rng)}
            bound, inputs = bind(graph, node, law), [values[name] for name in node.inputs]
            expected = node.op.reference(bound, inputs)
            index = tuple(int(rng.integers(side)) for side in expected.shape)
            found = exact(node, bound, inputs, index)
            if found is not None:
                value = min(max(found.value, Fraction(-128)), Fraction(127))
                assert abs(value - int(expected[index])) <= Fraction(1, 2) + found.coarse, (node.op, seed)
                checked.add(op.name)
    assert checked >= {"Conv", "Dense", "Sum", "Mul", "AveragePool", "Activation", "Softmax"}


def test_problems_are_said() -> None:
    """Another engine, a float model, no samples."""
    model = small_model()
    with pytest.raises(ModelError, match="allowed: onnxruntime, onnxruntime-integer"):
        verify(model, [], against="tensorrt")
    with pytest.raises(ModelError, match="no samples"):
        verify(model, [])
    plain = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }'
    )
    with pytest.raises(ModelError, match="no quantized tensors"):
        verify(plain, [{"x": np.ones((1, 4), np.float32)}])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nnac verify`: a table and exit code 0; faults are exit code 1 and named."""
    from click.testing import CliRunner

    from nnac.cli import cli

    model, path, data = small_model(), tmp_path / "m.onnx", tmp_path / "x.npz"
    onnx.save(model, path)
    sample = random_samples(model, np.random.default_rng(0), 1)[0]
    np.savez(data, allow_pickle=False, **{name: array[None] for name, array in sample.items()})
    arguments = ["verify", str(path), "--input", str(data), "--target", "nna8-onnx", "--all"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0 and "0 faults" in result.output.replace("\n", " ") and "Conv" in result.output
    trace = Emulator.trace
    monkeypatch.setattr(Emulator, "trace", lambda *a: {k: v ^ 64 for k, v in trace(*a).items()})
    broken = CliRunner().invoke(cli, arguments)
    assert broken.exit_code == 1 and "first to differ" in broken.output
