"""Quantized ONNX: integers and scales come in as they are, whatever the form that the model writes them in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac import float32, numerics
from nnac.compiler import OWN_SCALES, float_graph, integer_graph
from nnac.errors import ModelError
from nnac.frontend import integer_form, prepare, with_encodings
from nnac.frontend.integers import layer_weights
from nnac.frontend.use import Stored
from nnac.graph import Graph
from nnac.numerics import Rounding
from nnac.ops import Conv, Dense, single
from nnac.ops.conv import BIAS, SCALE, WEIGHT
from nnac.targets import load_target
from nnac.types import Array, Quant
from nnac.verify import verify
from tests import qdq

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def model_of(
    nodes: list[onnx.NodeProto], inputs: Mapping[str, tuple[int, tuple[int, ...]]], outputs: str, **stored: Any
) -> onnx.ModelProto:
    """Return a model of nodes with initializers; the outputs' types are inferred."""
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def op(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node; inputs are separated by spaces."""
    return helper.make_node(op_type, inputs.split(), [output], **attributes)


def layer_of(graph: Graph) -> dict[int, Array]:
    """Return the constants of the only layer of an integer graph."""
    (node,) = [node for node in graph.nodes if isinstance(node.op, Conv | Dense)]
    return {i: graph.constants[node.inputs[i]] for i in (WEIGHT, BIAS, SCALE)}


def integers_of(model: onnx.ModelProto) -> Graph:
    """Return the integer graph of a model that needs no calibration."""
    return integer_graph(float_graph(prepare(model)), {}, load_target("nna8"))


def gemm(weights: Array, scale: Any, zero: Any, bias: Array, **attributes: Any) -> onnx.ModelProto:
    """Return a QDQ Gemm over uint8 with weights (K, O)."""
    units = np.float32(0.5) * np.broadcast_to(scale, bias.shape).astype(np.float32)
    nodes = [
        op(DEQUANTIZE, "x xs xz", "xr"),
        op(DEQUANTIZE, "w ws wz", "wr", **attributes),
        op(DEQUANTIZE, "b bs", "br", axis=0),
        op("Gemm", "xr wr br", "yr"),
        op(QUANTIZE, "yr ys yz", "y"),
    ]
    x, y = np.array([0.5, 30], np.float32), np.array([7, 200], np.uint8)
    inputs = {"x": (TensorProto.UINT8, (2, len(weights)))}
    parameters = {"xs": x[0], "xz": y[0], "ys": x[1], "yz": y[1]}
    return model_of(nodes, inputs, "y", w=weights, ws=scale, wz=zero, b=bias, bs=units, **parameters)


RNG = np.random.default_rng(0)


def test_gemm_keeps_its_integers() -> None:
    """Weights, scales and int32 biases (beyond float32's 24 bits) are the model's, uint8 is 128 lower."""
    weights = RNG.integers(-128, 128, (6, 4)).astype(np.int8)
    scale, bias = np.array([0.1, 0.2, 0.3, 0.7], np.float32), np.array([2**30 + 1, -(2**29) - 3, 5, 0], np.int32)
    graph = integers_of(gemm(weights, scale, np.zeros(4, np.int8), bias, axis=1))
    found = layer_of(graph)
    np.testing.assert_array_equal(found[WEIGHT], weights.T)
    np.testing.assert_array_equal(found[BIAS], bias)
    np.testing.assert_array_equal(found[SCALE], scale)
    quants = [graph.values[name].type.quant for name in (*graph.inputs, *graph.outputs)]
    assert quants == [Quant(0.5, 7 - 128), Quant(30.0, 200 - 128)]


@pytest.mark.parametrize("dtype", ["int4", "uint4", "uint8"])
def test_other_weight_types_are_exact(dtype: str) -> None:
    """4 bits and zero points become int8; what does not fit goes in pieces. onnxruntime gives the same integers."""
    import ml_dtypes

    kind, (low, high) = (np.dtype(getattr(ml_dtypes, dtype, dtype)), (0, 255))
    low, high = {"int4": (-8, 7), "uint4": (0, 15), "uint8": (0, 255)}[dtype]
    weights = RNG.integers(low, high + 1, (6, 4))
    zero = np.array(3).astype(kind)
    model = gemm(weights.astype(kind), np.float32(0.25), zero, RNG.integers(-99, 99, 4).astype(np.int32))
    found = layer_of(integers_of(model))
    pieces = found[WEIGHT].astype(int).reshape(4, -1, 6).sum(axis=1)
    np.testing.assert_array_equal(pieces, weights.T - 3)
    x = RNG.integers(0, 256, (2, 6)).astype(np.uint8)
    result = verify(model, [{"x": x}], "nna8-onnx")
    assert sum(row.differing for row in result.rows) == 0


@given(
    integers=st.lists(st.integers(-255, 255), min_size=1, max_size=12),
    multiples=st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
def test_pieces_and_blocks_add_up(integers: list[int], multiples: list[int]) -> None:
    """Blocked scales that are multiples of one, and integers outside int8, are represented exactly or not at all."""
    count, zeros = len(integers), np.zeros((1, len(integers)), np.int64)
    scale = np.float32(0.25) * multiples_of(multiples, count).astype(np.float32)
    stored = Stored(np.array([integers]), zeros, scale)
    found = layer_weights(stored, lambda x: x)
    if found is None:
        assert np.abs(stored.integers * multiples_of(multiples, count)).max() > 127 * 3 - 3
        return
    pieces, unit = found
    assert all(piece.dtype == np.int8 for piece in pieces)
    np.testing.assert_array_equal(sum(p.astype(float) for p in pieces) * unit, stored.integers * scale)


def multiples_of(multiples: list[int], count: int) -> Array:
    """Return the multiple of every entry."""
    return np.resize(multiples, count)[None]


def test_uneven_blocks_have_no_integers() -> None:
    """Scales of one channel that are no multiples cannot be one scale per channel."""
    stored = Stored(np.array([[1, 2]]), np.zeros((1, 2), np.int64), np.array([[0.3, 0.5]], np.float32))
    assert layer_weights(stored, lambda x: x) is None


def test_moves_between_keep_the_scale_and_other_pins_are_requantized() -> None:
    """Reshape, Transpose, MaxPool on integers; a Concat of two scales requantizes each operand once, exactly."""
    nodes = [
        op("Transpose", "a", "t", perm=[0, 2, 1]),
        op(DEQUANTIZE, "t s0 z0", "tr"),
        op(DEQUANTIZE, "b s1 z1", "br"),
        op("Concat", "tr br", "cr", axis=2),
        op(QUANTIZE, "cr s2 z2", "c"),
    ]
    stored = {"s0": np.float32(0.1), "z0": np.int8(3), "s1": np.float32(0.37), "z1": np.int8(-128)}
    stored |= {"s2": np.float32(0.21), "z2": np.int8(-5)}
    inputs = {"a": (TensorProto.INT8, (1, 5, 256)), "b": (TensorProto.INT8, (1, 256, 5))}
    model = model_of(nodes, inputs, "c", **stored)
    graph = integers_of(model)
    kinds = [node.op.name for node in graph.nodes]
    assert kinds.count("Activation") == 2 and kinds.count("Concat") == 1
    every = np.arange(-128, 128).astype(np.int8)
    sample = {"a": np.broadcast_to(every, (1, 5, 256)), "b": np.broadcast_to(every[:, None], (1, 256, 5))}
    result = verify(model, [{name: np.ascontiguousarray(array) for name, array in sample.items()}], "nna8-onnx")
    assert {row.tensor for row in result.rows} >= {"a", "b", "c"} and all(not row.differing for row in result.rows)


def test_a_partly_quantized_model_lists_what_it_calibrates() -> None:
    """Without samples the message names the tensors; with them the program says how many."""
    nodes = [op(QUANTIZE, "x s z", "q"), op(DEQUANTIZE, "q s z", "r"), op("Sigmoid", "r", "y"), op("Mul", "y r", "p")]
    model = model_of(nodes, {"x": (TensorProto.FLOAT, (1, 8))}, "p", s=np.float32(0.1), z=np.int8(0))
    with pytest.raises(ModelError, match="the model gives these no scale: 'p'"):
        nnac.compile(model, "nna8")
    compiled = nnac.compile(model, "nna8", [{"x": np.ones((1, 8), np.float32)}])
    assert compiled.program.calibration.endswith("for tensors without scales of their own: 'p'")


def test_a_whole_model_needs_no_samples() -> None:
    """All scales are there: the blob says so, and takes integers of the model's own type."""
    weights = RNG.integers(-128, 128, (6, 4)).astype(np.int8)
    compiled = nnac.compile(gemm(weights, np.float32(0.1), np.int8(0), np.arange(4, dtype=np.int32)), "nna8")
    assert compiled.program.calibration == OWN_SCALES
    x = RNG.integers(0, 256, (2, 6)).astype(np.uint8)
    (a,), (b,) = (compiled.run({"x": v}, raw=True).values() for v in (x, (x ^ 0x80).view(np.int8)))
    np.testing.assert_array_equal(a, b)


ILL: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "another scale": ([op(QUANTIZE, "x s z", "q"), op(DEQUANTIZE, "q t z", "y")], "as they were quantized"),
    "no scale": ([op("Transpose", "i", "y", perm=[1, 0])], "nothing gives it a scale"),
    "several scales": ([op(QUANTIZE, "x v", "q"), op(DEQUANTIZE, "q v", "y")], "one scale and one zero point"),
    "arithmetic on integers": ([op("Add", "i i", "y")], "supported: float32"),
}


@pytest.mark.parametrize("name", ILL)
def test_what_has_no_meaning_is_refused(name: str) -> None:
    """One sentence that says what is wrong."""
    nodes, words = ILL[name]
    stored = {"s": np.float32(0.1), "t": np.float32(0.2), "z": np.int8(0), "v": np.array([0.1, 0.2], np.float32)}
    inputs = {"x": (TensorProto.FLOAT, (3, 2)), "i": (TensorProto.INT8, (3, 2))}
    used = {n for node in nodes for n in node.input}
    model = model_of(nodes, {k: v for k, v in inputs.items() if k in used}, "y", **stored)
    with pytest.raises(ModelError, match=words):
        nnac.compile(model, "nna8", host="forbid")


@pytest.mark.parametrize(
    ("target", "scale", "words"),
    [
        ("nna8", 1e30, "input scales 0.5, 1e.30 over the output's 30"),
        ("nna8-onnx", 1e-38, "input scales 0.5, 1e-38 over"),
        ("nna8-pow2", 0.1, "scales 0.1, 30; this machine's are powers of two"),
    ],
)
def test_scales_that_a_machine_cannot_have(target: str, scale: float, words: str) -> None:
    """The node and the scales are named."""
    weights = RNG.integers(-128, 128, (6, 4)).astype(np.int8)
    model = gemm(weights, np.float32(scale), np.int8(0), np.zeros(4, np.int32))
    with pytest.raises(ModelError, match=words):
        nnac.compile(model, target)


# -- other forms ---------------------------------------------------------------------------------------------------


def test_qlinear_operators_become_one_form() -> None:
    """QLinearAdd, QGemm, QLinearConcat, QLinearSoftmax of com.microsoft: onnxruntime's integers, every bit."""
    nodes = [
        op("QLinearAdd", "a s0 z0 b s1 z1 s2 z2", "c", domain="com.microsoft"),
        op("QLinearMul", "c s2 z2 a s0 z0 s3 z0", "d", domain="com.microsoft"),
        op("QLinearConcat", "s3 z3 d s3 z0 c s2 z2", "e", domain="com.microsoft", axis=1),
        op("QGemm", "e s3 z3 w ws wz bias s1 z1", "g", domain="com.microsoft"),
        op("QLinearSigmoid", "g s1 z1 s4 z4", "h", domain="com.microsoft"),
    ]
    scales = {f"s{i}": np.float32(v) for i, v in enumerate((0.1, 0.13, 0.2, 1.7, 1 / 256))}
    zeros = {f"z{i}": np.int8(v) for i, v in enumerate((3, -7, 11, -30, -128))}
    layer = {"w": RNG.integers(-128, 128, (16, 5)).astype(np.int8), "ws": np.float32(0.004), "wz": np.int8(0)}
    bias = {"bias": RNG.integers(-500, 500, 5).astype(np.int32)}
    inputs = {name: (TensorProto.INT8, (64, 8)) for name in "ab"}
    model = model_of(nodes, inputs, "h", **scales, **zeros, **layer, **bias)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    samples = [{name: RNG.integers(-128, 128, (64, 8)).astype(np.int8) for name in "ab"} for _ in range(4)]
    result = verify(model, samples, "nna8-onnx")
    assert [row.tensor for row in result.rows if row.differing] == []
    assert {"a", "b", "c", "d", "e", "g", "h"} <= {row.tensor for row in result.rows}


def test_dynamic_quantization_becomes_a_layer_on_reals() -> None:
    """DynamicQuantizeLinear, MatMulInteger, Cast, Mul: the weights stay; what is dynamic is calibrated."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        op("MatMulInteger", "q w z wz", "i"),
        op("Cast", "i", "f", to=1),
        op("Mul", "s ws", "m"),
        op("Mul", "f m", "y"),
    ]
    weights = RNG.integers(-128, 128, (6, 4)).astype(np.int8)
    stored = {"w": weights, "wz": np.int8(0), "ws": np.float32(0.01)}
    model = model_of(nodes, {"x": (TensorProto.FLOAT, (3, 6))}, "y", **stored)
    sample = {"x": RNG.normal(size=(3, 6)).astype(np.float32)}
    compiled = nnac.compile(model, "nna8", [sample])
    expected = sample["x"] @ (weights * np.float32(0.01))
    assert np.abs(compiled.run(sample)["y"] - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(("bits", "signed", "narrow"), [(2, 1, 0), (4, 0, 0), (4, 1, 1), (8, 1, 1), (8, 0, 0)])
def test_qonnx_quantizers_of_activations(bits: int, signed: int, narrow: int) -> None:
    """A `Quant` node is a clip and a quantizer: the integers are those of its definition."""
    quant = helper.make_node(
        "Quant", ["x", "s", "z", "b"], ["y"], domain="qonnx.custom_op.general", signed=signed, narrow=narrow
    )
    stored = {"s": np.float32(0.25), "z": np.float32(0), "b": np.float32(bits)}
    graph = helper.make_graph(
        [quant, op("Neg", "y", "n"), *[op(QUANTIZE, "n s q", "i"), op(DEQUANTIZE, "i s q", "o")]],
        "qonnx",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (64,))],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, (64,))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in {**stored, "q": np.int8(0)}.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("qonnx.custom_op.general", 1)]
    compiled = nnac.compile(helper.make_model(graph, opset_imports=opsets, ir_version=8), "nna8-onnx")
    x = RNG.normal(size=64).astype(np.float32) * 2**bits / 4
    low = -(2 ** (bits - 1)) + narrow if signed else 0
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    expected = -np.clip(np.rint(x / 0.25), low, high) * 0.25
    np.testing.assert_array_equal(compiled.run({"x": x})["o"], np.clip(expected, -128 * 0.25, 127 * 0.25))


# -- AIMET ---------------------------------------------------------------------------------------------------------


def float_model() -> onnx.ModelProto:
    """Return a float Gemm with a Relu."""
    weights, bias = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
    nodes = [op("Gemm", "x w b", "g", transB=1), op("Relu", "g", "y")]
    return model_of(nodes, {"x": (TensorProto.FLOAT, (2, 6))}, "y", w=weights, b=bias)


def entry(scale: float, offset: int, bits: int = 8) -> dict[str, Any]:
    """Return an encoding as AIMET 0.6 writes it."""
    symmetric = str(offset == -(1 << bits - 1))
    return {"bitwidth": bits, "dtype": "int", "is_symmetric": symmetric, "scale": scale, "offset": offset}


OLD = {
    "version": "0.6.1",
    "activation_encodings": {"x": [entry(0.02, -128)], "y": [entry(0.05, 0)]},
    "param_encodings": {"w": [entry(0.01 * (i + 1), -128) for i in range(4)]},
}
NEW = {
    "version": "1.0.0",
    "activation_encodings": [
        {"name": name, "bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR", "scale": [s], "offset": [o]}
        for name, s, o in (("x", 0.02, -128), ("y", 0.05, 0))
    ],
    "param_encodings": [
        {"name": "w", "bw": 8, "dtype": "INT", "scale": [0.01, 0.02, 0.03, 0.04], "offset": [-128] * 4}
    ],
}


@pytest.mark.parametrize("content", [OLD, NEW], ids=["0.6", "1.0"])
def test_aimet_encodings(content: Any, tmp_path: Path) -> None:
    """Scales per channel and zero points of the file are those of the blob, without samples."""
    path = tmp_path / "model.encodings"
    path.write_text(json.dumps(content))
    model = float_model()
    compiled = nnac.compile(model, "nna8", encodings=path)
    assert compiled.program.calibration == OWN_SCALES
    quants = [compiled.program.tensor(n).type.quant for n in (*compiled.program.inputs, *compiled.program.outputs)]
    assert quants == [Quant(float(np.float32(0.02)), 0), Quant(float(np.float32(0.05)), -128)]
    found = layer_of(integers_of(with_encodings(model, path)))
    weights = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w"))
    scale = np.array([0.01, 0.02, 0.03, 0.04], np.float32)
    np.testing.assert_array_equal(found[WEIGHT], np.clip(np.rint(weights / scale[:, None]), -128, 127))
    np.testing.assert_array_equal(found[SCALE], scale)


def test_states_with_scales_of_their_own(tmp_path: Path) -> None:
    """Recurrent states that the file gives scales stay states, and no tensor between them needs samples."""
    rng = np.random.default_rng(1)
    weights = {name: rng.normal(size=shape) for name, shape in (("w", (1, 20, 3)), ("r", (1, 20, 5)), ("b", (1, 40)))}
    inputs = {"x": (1, 1, 3), "h0": (1, 1, 5), "c0": (1, 1, 5)}
    node = helper.make_node("LSTM", ["x", "w", "r", "b", "", "h0", "c0"], ["y", "hn", "cn"], "lstm", hidden_size=5)
    model = model_of(
        [node],
        {name: (TensorProto.FLOAT, shape) for name, shape in inputs.items()},
        "y hn cn",
        **{name: array.astype(np.float32) for name, array in weights.items()},
    )
    cell, hidden = entry(2.0**-12, -(1 << 15), 16), entry(1 / 127, -128)
    scales = {"x": [entry(0.02, -128)], "y": [hidden], "hn": [hidden], "cn": [cell]}
    path = tmp_path / "model.encodings"
    path.write_text(json.dumps({"activation_encodings": scales, "param_encodings": {}}))
    program = nnac.compile(model, "nna8", encodings=path).program
    assert program.calibration == OWN_SCALES
    kept = {program.tensor(source).onnx_name: program.tensor(source).type.quant for source, _ in program.states}
    assert kept == {"h0": Quant(float(np.float32(1 / 127)), 0), "c0": Quant(2.0**-12, 0, 16)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "is no AIMET encodings file"),
        ("{}", "is no AIMET encodings file"),
        (json.dumps({**OLD, "activation_encodings": {"nosuch": [entry(0.1, 0)]}}), "no tensor 'nosuch'"),
        (json.dumps({**OLD, "activation_encodings": {"x": [entry(0.1, 0, 9)]}}), "has 9 bits"),
        (json.dumps({**OLD, "activation_encodings": {"x": [entry(-1.0, 0)]}}), "not positive"),
        (json.dumps({**OLD, "activation_encodings": {"x": [entry(1.0, 5)]}}), "offset outside"),
    ],
    ids=["no json", "empty", "other model", "bits", "scale", "offset"],
)
def test_foreign_encodings_are_refused(content: str, words: str, tmp_path: Path) -> None:
    """One sentence, no traceback."""
    path = tmp_path / "model.encodings"
    path.write_text(content)
    with pytest.raises(ModelError, match=words):
        with_encodings(float_model(), path)


# -- the law of arithmetic onnx ------------------------------------------------------------------------------------

FUSED = "fma" in Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else False
"""Where a processor has no fused multiply-add, onnxruntime's sums round once more."""
INT8 = st.integers(-128, 127)
SCALES = st.floats(2.0**-12, 8.0, width=32)


@given(acc=st.integers(-(2**31), 2**31 - 1), scales=st.tuples(SCALES, SCALES, SCALES), zero=INT8)
def test_float32_requantization(acc: int, scales: tuple[float, float, float], zero: int) -> None:
    """The scalar law is numpy's float32, and the array form is the law; infinities saturate."""
    pattern, shift = float32.ratio(scales[:2], scales[2])
    ratio = np.float32(scales[0]) * np.float32(scales[1]) / np.float32(scales[2])
    assert float32.float_of(pattern) == float(ratio) and shift == 0
    expected = int(np.clip(np.rint(np.float32(acc) * ratio) + np.float32(zero), -128, 127))
    assert float32.requantize(acc, pattern, zero) == expected
    assert int(single.requantize(np.array(acc), pattern, zero)) == expected
    assert int(single.multiply(np.array(acc), pattern, zero)) == float32.multiply(acc, pattern, zero)


@given(
    x=st.lists(st.tuples(INT8, INT8, SCALES), min_size=1, max_size=4),
    over=SCALES,
    zero=INT8,
    lift=st.sampled_from([0, 128]),
)
def test_float32_sums(x: list[tuple[int, int, float]], over: float, zero: int, lift: int) -> None:
    """Any number of operands: the array form is the law."""
    values, zeros = [v for v, _, _ in x], [z for _, z, _ in x]
    patterns = [float32.ratio((s,), over)[0] for _, _, s in x]
    found = single.add([np.array(v) for v in values], zeros, patterns, zero, lift=lift)
    assert int(found) == float32.add(values, zeros, patterns, zero, lift=lift)


@pytest.mark.parametrize("lift", [0, 128])
@pytest.mark.parametrize("name", ["QLinearAdd", "QLinearMul"])
@settings(max_examples=25, deadline=None)
@given(scales=st.tuples(SCALES, SCALES, SCALES), zeros=st.tuples(INT8, INT8, INT8))
def test_float32_law_is_onnxruntime(name: str, lift: int, scales: tuple[float, ...], zeros: tuple[int, ...]) -> None:
    """All 65,536 pairs of int8, and of uint8, through onnxruntime's own operator."""
    dtype, kind = (np.uint8, TensorProto.UINT8) if lift else (np.int8, TensorProto.INT8)
    pairs = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij")
    a, b = (side.reshape(-1) for side in pairs)
    stored: dict[str, Any] = {f"s{i}": np.float32(s) for i, s in enumerate(scales)}
    stored |= {f"z{i}": np.array(z + lift, dtype) for i, z in enumerate(zeros)}
    node = op(name, "a s0 z0 b s1 z1 s2 z2", "y", domain="com.microsoft")
    model = model_of([node], {"a": (kind, a.shape), "b": (kind, a.shape)}, "y", **stored)
    model.graph.output[0].type.tensor_type.elem_type = kind
    theirs = qdq.run(model, {"a": (a + lift).astype(dtype), "b": (b + lift).astype(dtype)}, "off")["y"]
    if name == "QLinearAdd":
        patterns = [float32.ratio((s,), scales[2])[0] for s in scales[:2]]
        ours = single.add([a, b], zeros[:2], patterns, zeros[2], lift=lift)
    else:
        product = (a - zeros[0]) * (b - zeros[1])
        ours = single.multiply(product, float32.ratio(scales[:2], scales[2])[0], zeros[2], lift=lift)
    wrong = int((ours + lift != theirs).sum())
    assert wrong <= (0 if FUSED else 2), f"{wrong} of {ours.size}"


@pytest.mark.parametrize("lift", [0, 128])
@pytest.mark.parametrize("name", ["QLinearAveragePool", "QLinearGlobalAveragePool"])
@settings(max_examples=25, deadline=None)
@given(scale=SCALES, over=st.sampled_from([0.5, 1.0, 2.0, 0.3]), zeros=st.tuples(INT8, INT8), seed=st.integers(0, 99))
def test_averages_are_onnxruntime(
    name: str, lift: int, scale: float, over: float, zeros: tuple[int, int], seed: int
) -> None:
    """Windows of 4 and 8 and scales that make ties of most: compiled, on the emulator, against its own operators."""
    dtype, kind = (np.uint8, TensorProto.UINT8) if lift else (np.int8, TensorProto.INT8)
    rng, whole = np.random.default_rng(seed), name == "QLinearGlobalAveragePool"
    x = rng.integers(0, 256, (1, 300, 2, 4) if whole else (1, 12, 9, 8)).astype(np.uint8).view(dtype)
    stored: dict[str, Any] = {"s0": np.float32(scale), "s1": np.float32(scale * over)}
    stored |= {f"z{i}": np.array(z + lift, dtype) for i, z in enumerate(zeros)}
    given = {} if whole else {"kernel_shape": [2, 2 + 2 * (seed % 2)], "count_include_pad": 1, "pads": [0, 0, 1, 1]}
    node = op(name, "x s0 z0 s1 z1", "y", domain="com.microsoft", channels_last=0, **given)
    model = model_of([node], {"x": (kind, x.shape)}, "y", **stored)
    shape = [1, 300, 1, 1] if whole else [1, 12, 9, 8 - 2 * (seed % 2)]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", kind, shape))
    theirs = qdq.run(model, {"x": x}, "off")["y"]
    ours = nnac.compile(model, "nna8-onnx", check=True).run({"x": x}, raw=True)["y"]
    assert ((ours.view(np.uint8) ^ np.uint8(lift)).view(dtype) == theirs).all()


@given(
    values=st.lists(st.integers(-255, 255), min_size=1, max_size=9),
    scales=st.tuples(SCALES, SCALES),
    zero=INT8,
    lift=st.sampled_from([0, 128]),
)
def test_float32_windows(values: list[int], scales: tuple[float, float], zero: int, lift: int) -> None:
    """The array form of a window's mean is the law."""
    pattern, over = (float32.pattern_of(float(np.float32(scale))) for scale in scales)
    arguments = (len(values), pattern, over, zero)
    expected = float32.window(values, *arguments, lift=lift)
    assert int(single.window(np.array(values), np.array(arguments[0]), *arguments[1:], lift=lift)) == expected


@given(
    x=st.integers(-(2**20), 2**20),
    mul=st.integers(1, 2**15),
    add=st.integers(-(2**20), 2**20),
    shift=st.integers(1, 30),
)
def test_half_up_is_the_requant_shift_form(x: int, mul: int, add: int, shift: int) -> None:
    """Integer nets that use ``clip(floor((x * mul + add + div / 2) / div))``, div a power of two, round half up."""
    div = 1 << shift
    expected = max(-128, min(127, (x * mul + add + div // 2) // div))
    assert numerics.saturate(numerics.round_shift(x * mul + add, shift, Rounding.HALF_UP)) == expected


def test_integer_form_keeps_what_it_cannot_say() -> None:
    """A bias in other units stays in float; the rest becomes QGemm, and both forms agree but for ties."""
    weights = RNG.integers(-128, 128, (6, 4)).astype(np.int8)
    model = gemm(weights, np.float32(0.1), np.int8(0), np.arange(4, dtype=np.int32))
    bias = next(t for t in model.graph.initializer if t.name == "bs")
    assert "QGemm" in {node.op_type for node in integer_form(model).graph.node}
    bias.CopyFrom(numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), "bs"))
    assert "QGemm" not in {node.op_type for node in integer_form(model).graph.node}
