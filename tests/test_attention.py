"""Attention end to end: products of activations, masks, sixteen bits where eight would lose; norms beside float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from nnac import isa
from nnac.array import gemm_cycles, matmul_cycles
from nnac.compiler import compile as compile_model
from nnac.errors import TargetError
from nnac.frontend import prepare
from nnac.targets import load_target
from nnac.timing import work_cycles
from nnac.types import Array

BATCH, LENGTH, WIDTH, HEADS = 1, 24, 32, 4
SIDE = WIDTH // HEADS
MATMUL = isa.MatMul(
    source=0, right=4096, target=8192, rows=20, columns=9, depth=40, turned=1, in_zero=0, right_zero=0, out_zero=0,
    multiplier=1, shift=0, low=-128, high=127,
)  # fmt: skip


class Net:
    """An ONNX graph under construction with seeded random weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def add(self, op_type: str, *inputs: Any, output: str = "", **attributes: Any) -> str:
        """Add a node; inputs that are no names become constants."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        output = output or f"{op_type}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, names, [output], output, **attributes))
        return output

    def constant(self, array: Array) -> str:
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weights(self, *shape: int) -> Array:
        return (self.rng.normal(size=shape) / sqrt(shape[0])).astype(np.float32)

    def dense(self, x: str, output: str = "") -> str:
        return self.add("Add", self.add("MatMul", x, self.weights(WIDTH, WIDTH)), self.weights(WIDTH), output=output)

    def heads(self, x: str, perm: Sequence[int]) -> str:
        split = self.add("Reshape", self.dense(x), np.array([BATCH, LENGTH, HEADS, SIDE]))
        return self.add("Transpose", split, perm=list(perm))

    def model(self) -> onnx.ModelProto:
        shape = [BATCH, LENGTH, WIDTH]
        x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y"))
        graph = helper.make_graph(self.nodes, "attention", [x], [y], self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def attention(mask: str) -> onnx.ModelProto:
    """Return attention of several heads with a causal mask: none, added as minus infinity, or chosen by Where."""
    net = Net()
    query, key, value = (net.heads("x", perm) for perm in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)))
    scores = net.add("Div", net.add("MatMul", query, key), np.float32(sqrt(SIDE)))
    seen = np.tri(LENGTH, dtype=bool)
    if mask == "added":
        scores = net.add("Add", scores, np.where(seen, 0, -np.inf).astype(np.float32))
    elif mask == "chosen":
        scores = net.add("Where", seen, scores, np.float32(-3.4e38))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), value)
    together = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), np.array([BATCH, LENGTH, WIDTH]))
    net.dense(together, "y")
    return net.model()


def samples(count: int = 4) -> list[dict[str, Array]]:
    rng = np.random.default_rng(5)
    return [{"x": rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)} for _ in range(count)]


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feeds)[0])


def sqnr(model: onnx.ModelProto, compiled: Any, feeds: Sequence[dict[str, Array]]) -> float:
    """Return dB of the output against onnxruntime's."""
    pairs = [(run(model, each), compiled.run(each)["y"]) for each in feeds]
    signal, noise = (
        sum(float((a**2).sum()) for a in found) for found in zip(*((p, p - q) for p, q in pairs), strict=True)
    )
    return float(10 * np.log10(signal / noise))


@pytest.mark.parametrize("mask", ["none", "added", "chosen"])
def test_attention_keeps_close(mask: str) -> None:
    """Int8 weights and activations; with borders of 16 bits more than 30 dB."""
    model, data = attention(mask), samples()
    plain = compile_model(model, "nna8", data, check=True)
    found = {layer.op for layer in plain.program.layers}
    assert {"MatMul", "Softmax"} <= found and "Activation" not in found  # 1 / sqrt(side) is a factor
    assert sqnr(model, plain, data) > 26
    assert sqnr(model, compile_model(model, "nna8", data, activations=["x", "y"]), data) > 30


def test_scores_have_sixteen_bits() -> None:
    """Scores and the weights made of them; keys lie as they were projected, and are read turned."""
    program = compile_model(attention("added"), "nna8", samples()).program
    first, *_, last = (i for i in program.instructions if isinstance(i, isa.MatMul))
    assert (first.in_bits, first.right_bits, first.out_bits, first.turned) == (8, 8, 16, 1)
    assert (last.in_bits, last.right_bits, last.turned) == (16, 8, 0)
    (softmax, *_) = [i for i in program.instructions if isinstance(i, isa.Softmax)]
    assert (softmax.in_bits, softmax.out_bits) == (16, 16)


def test_narrow_array_weighs_with_eight_bits() -> None:
    """A machine whose array takes no 16 bits gets int8 weights of attention, and refuses 16-bit operands by name."""
    narrow = replace(load_target("nna8"), mac=replace(load_target("nna8").mac, int16=0))
    program = compile_model(attention("none"), narrow, samples(), check=True).program
    assert all(i.wide == 0 for i in program.instructions if isinstance(i, isa.MatMul))
    with pytest.raises(TargetError, match="16-bit activations"):
        compile_model(attention("none"), narrow, samples(), activations="int16")


@pytest.mark.parametrize("mask", ["added", "chosen"])
def test_masks_become_finite_sums(mask: str) -> None:
    """All that a softmax makes of them stays."""
    model, (feeds,) = attention(mask), samples(1)
    prepared = prepare(model)
    assert all(np.isfinite(numpy_helper.to_array(t)).all() for t in prepared.graph.initializer)
    assert not any(node.op_type == "Where" for node in prepared.graph.node)
    np.testing.assert_allclose(run(prepared, feeds), run(model, feeds), rtol=1e-6, atol=1e-6)


def test_norms_keep_close() -> None:
    """Layer norm, quotient, largest of two and a choice on one path, in int8 and in int16."""
    net = Net()
    gain, offset = net.weights(WIDTH), net.weights(WIDTH)
    normed = net.add("LayerNormalization", net.dense("x"), gain, offset)
    share = net.add("Div", normed, net.add("Add", net.add("Exp", net.add("Tanh", "x")), np.float32(0.5)))
    chosen = net.add("Where", net.add("Less", "x", share), share, "x")
    net.add("Max", chosen, normed, output="y")
    model, data = net.model(), samples()
    plain = compile_model(model, "nna8", data, check=True)
    assert {"Norm", "Div", "Select", "Extreme"} <= {layer.op for layer in plain.program.layers}
    assert sqnr(model, plain, data) > 25
    assert sqnr(model, compile_model(model, "nna8", data, activations="int16", check=True), data) > 38


def test_product_takes_the_array() -> None:
    """A product of activations costs as one of matrices, and one pass per 16-bit operand more where that is so."""
    target = load_target("nna8")
    alone = work_cycles(MATMUL, target)
    leaving = 0 if not target.mac.outputs else -(-20 * 9 // int(target.mac.outputs))
    assert alone == max(leaving, gemm_cycles(20, 9, 40, target.mac))
    double = replace(target.mac, int16=2, outputs=0)
    wide = replace(MATMUL, in_bits=16, right_bits=16)
    assert matmul_cycles(wide, double) == 4 * gemm_cycles(20, 9, 40, double)
    with pytest.raises(TargetError):
        matmul_cycles(wide, replace(double, int16=0))
