"""Verify: quantized models against onnxruntime, and that it finds what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from nnac import compiler, isa
from nnac import verify as verifier
from nnac.compiler import integer_graph
from nnac.emulator import Emulator
from nnac.errors import ModelError
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare
from nnac.graph import Graph
from nnac.ops import REGISTRY, Activation, AveragePool, MatMul, Mul, Softmax, Sum
from nnac.ops.base import bind
from nnac.ops.conv import BIAS
from nnac.program import Program
from nnac.targets import load_target
from nnac.types import Array
from nnac.verify import Verdict, Verification, verify
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
    counted = counts(result)
    return counted[Verdict.TIE], counted[Verdict.RULE], counted[Verdict.FAULT]


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
    net = RandomQdq(rng, wide=float(rng.choice([0.0, 0.3])))
    model = net.model(int(rng.integers(4, 14)))
    for target, engine in ENGINES:
        result = verify(model, random_samples(model, rng, 2), target, against=engine)
        assert result.faults == 0, [row for row in result.rows if row.faults]
    return Counter(net.kinds)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_models_have_no_faults(seed: int) -> None:
    """Odd shapes, extreme scales and zero points, of 8 bits and of 16."""
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


def random_models(steps: int) -> Iterator[tuple[onnx.ModelProto, list[str]]]:
    """Yield models and the kinds of their operators."""
    for seed in count():
        net = RandomQdq(np.random.default_rng(seed))
        yield net.model(steps), net.kinds


def small_model() -> onnx.ModelProto:
    """Return a random model that has a convolution."""
    return next(model for model, kinds in random_models(6) if "ConvRelu" in kinds)


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


def softened(counted: Counter[Verdict]) -> int:
    """Return how many differences are excused."""
    return counted.total() - counted[Verdict.FAULT]


def counts(result: Verification) -> Counter[Verdict]:
    """Return the elements that differ by verdict."""
    return sum((row.counts for row in result.rows), Counter[Verdict]())


def mutated(program: Program, kind: type[Any], change: Callable[[Any], dict[str, Any]]) -> Program:
    """Return a program with some fields of all its instructions of a kind changed."""
    return replace(
        program,
        instructions=tuple(replace(i, **change(i)) if isinstance(i, kind) else i for i in program.instructions),
    )


QUICK = ("a sum's zero point", "a product's end", "Mul")
SLIPS: Mapping[str, Callable[[Program], Program]] = {
    "a sum's zero point": lambda p: mutated(p, isa.Sum, lambda i: {"zeros": (i.zeros[0] + 1, *i.zeros[1:])}),
    "a sum's multiplier": lambda p: mutated(
        p, isa.Sum, lambda i: {"multipliers": (i.multipliers[0] + (i.multipliers[0] >> 8), *i.multipliers[1:])}
    ),
    "a product's zero point": lambda p: mutated(p, isa.Mul, lambda i: {"zeros": (i.zeros[0] - 1, i.zeros[1])}),
    "a product's end": lambda p: mutated(p, isa.Mul, lambda i: {"high": i.high - 1}),
    "an average's taps": lambda p: mutated(p, isa.Pool, lambda i: {"in_zero": i.in_zero + 1}),
    "an average's multiplier": lambda p: mutated(
        p, isa.Pool, lambda i: {"multiplier": i.multiplier - (i.multiplier >> 9)}
    ),
    "a softmax's multiplier": lambda p: mutated(
        p, isa.Softmax, lambda i: {"multiplier": i.multiplier - (i.multiplier >> 9)}
    ),
    "a convolution's padding": lambda p: mutated(p, isa.Conv, lambda i: {"in_zero": i.in_zero + 1}),
    "a convolution's end": lambda p: mutated(p, isa.Conv, lambda i: {"high": i.high - 1}),
    "a lookup's source": lambda p: mutated(
        p, isa.Lookup, lambda i: {"source": i.source + int(i.count > 1), "count": max(1, i.count - 1)}
    ),
}
"""Faults of programs: what an emitter could get wrong by a little."""


@cache
def verified(seed: int) -> tuple[onnx.ModelProto, list[dict[str, Array]], Counter[Verdict]]:
    """Return a random model, samples, and the differences of the right program."""
    model = RandomQdq(np.random.default_rng(seed)).model(8)
    samples = random_samples(model, np.random.default_rng(seed), 2)
    return model, samples, counts(verify(model, samples))


def slip(name: str, seeds: Iterable[int], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return faults that a slip makes, and differences that are excused beyond those of the right program."""
    found, excused = 0, 0
    for seed in seeds:
        model, samples, right = verified(seed)
        with monkeypatch.context() as patch:
            if name == "an accumulator":
                patch.setattr(compiler, "integer_graph", with_biases_off)
            else:
                patch.setattr(verifier, "lower", lambda *a: SLIPS[name](compiler.lower(*a)))
            wrong = counts(verify(model, samples))
        found, excused = found + wrong[Verdict.FAULT], excused + softened(wrong) - softened(right)
    return found, excused


def with_biases_off(*arguments: Any) -> Graph:
    """Return what `integer_graph` does, with one more in every accumulator of what is executed."""
    integer = integer_graph(*arguments)
    draft = integer.draft()
    for node in integer.nodes:
        if node.op.weighted:
            draft.constants[node.inputs[BIAS]] = draft.constants[node.inputs[BIAS]] + np.int32(1)
    return draft.freeze()


def quick(names: Iterable[str]) -> list[Any]:
    """Return cases for a test, of which all but the quick ones are slow: each compiles fourteen models."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", quick([*SLIPS, "an accumulator"]))
def test_a_slip_is_a_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a wrong program makes different is a fault, next to a tie as well: nothing more is excused."""
    found, excused = slip(name, range(40, 54), monkeypatch)
    assert found > 0 and excused <= 0


def scaled(found: tuple[int, int]) -> tuple[int, int]:
    """Return a multiplier that is one part in 512 too large."""
    return found[0] + (found[0] >> 9), found[1]


ERRORS: Mapping[str, tuple[type[Any], str, Callable[[Any], Any]]] = {
    "ReduceMean": (AveragePool, "_ratio", scaled),
    "Mul": (Mul, "_ratio", scaled),
    "Product": (MatMul, "_ratio", scaled),
    "Softmax": (Softmax, "_table", lambda found: found + np.int32(512) * (found < found.max())),
    "Tanh": (Activation, "tables", lambda found: np.roll(found, 1, axis=1)),
    "Sum": (Sum, "_ratios", lambda found: ((-found[0][0], *found[0][1:]), found[1])),
}
"""Errors of the law as operators have it, by a kind of node: reference and program are wrong alike."""


@pytest.mark.parametrize("name", quick(ERRORS))
def test_an_error_of_the_law_is_a_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact value is found apart from the reference: both being wrong is no excuse."""
    kind, method, change = ERRORS[name]
    right = getattr(kind, method)
    monkeypatch.setattr(kind, method, lambda op, bound: change(right(op, bound)))
    models = islice((model for model, kinds in random_models(8) if name in kinds), 20)
    samples = np.random.default_rng(0)
    assert sum(verify(model, random_samples(model, samples, 2)).faults for model in models) > 0


def test_an_error_of_the_other_engine_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where onnxruntime were off by one, next to no element would be excused."""
    model, rng = small_model(), np.random.default_rng(0)
    samples = random_samples(model, rng, 1)
    run = FloatModel.run

    def off(self: FloatModel, inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = run(self, inputs)
        info = {name: np.iinfo(array.dtype) for name, array in found.items()}
        return {name: np.where(a < info[name].max, a + 1, a - 1).astype(a.dtype) for name, a in found.items()}

    monkeypatch.setattr(FloatModel, "run", off)
    result = verify(model, samples, "nna8-onnx")
    assert result.faults > 0.97 * counts(result).total() > 0


def test_reals_between_integers_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor without a scale is calibrated and judged; what it does to the next one is bounded, not excused."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 3, 8, 8] x) => (int8[1, 3, 8, 8] y)
        <float s = {0.02}, int8 z = {3}, float t = {0.05}> {
            q = QuantizeLinear (x, s, z) r = DequantizeLinear (q, s, z) a = Sigmoid (r) b = Mul (a, r)
            c = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b)
            d = Add (c, r) y = QuantizeLinear (d, t, z) }"""
    )
    samples = random_samples(model, np.random.default_rng(0), 3)
    right = verify(model, samples)
    assert right.faults == 0 and "without scales" in right.calibration
    assert {"q", "y"} < {row.tensor for row in right.rows}
    change = SLIPS["a sum's zero point"]
    monkeypatch.setattr(verifier, "lower", lambda *a: change(compiler.lower(*a)))
    assert verify(model, samples).faults > 0


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
    assert broken.exit_code == 1 and "(fault)" in broken.output
