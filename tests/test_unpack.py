"""Packed states: kept apart where they are cut and joined in whole parts, and left alone where they are not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac.compiler import diff
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare, unpack_states
from nnac.types import Array

UNITS, STEPS = 8, 40


def packed_lstm(cut: str = "Slice", loose: bool = False, swapped: bool = False) -> onnx.ModelProto:
    """Return one LSTM with hidden values and cell in one state (1, UNITS, 2).

    Args:
        cut: the operator that takes them apart.
        loose: the packed state is read as a whole, too.
        swapped: halves of both change places when they are joined.
    """
    rng = np.random.default_rng(0)
    stored: dict[str, Array] = {
        "w": rng.normal(0, 0.5, (1, 4 * UNITS, 4)).astype(np.float32),
        "r": rng.normal(0, 0.5, (1, 4 * UNITS, UNITS)).astype(np.float32),
        "two": np.array([2], np.int64),
        "form": np.array([1, 1, UNITS], np.int64),
        **{f"at{n}": np.array([n], np.int64) for n in (0, 1, 2)},
        **{f"index{n}": np.array(n, np.int64) for n in (0, 1)},
    }
    cuts = {
        "Slice": [helper.make_node("Slice", ["s", f"at{n}", f"at{n + 1}", "two"], [f"piece{n}"]) for n in (0, 1)],
        "Gather": [helper.make_node("Gather", ["s", f"index{n}"], [f"piece{n}"], axis=2) for n in (0, 1)],
        "Split": [helper.make_node("Split", ["s"], ["piece0", "piece1"], axis=2)],
    }[cut]
    parts = ["h1", "c1"]
    nodes = [
        *cuts,
        *(helper.make_node("Reshape", [f"piece{n}", "form"], [name]) for n, name in enumerate(("h0", "c0"))),
        helper.make_node("LSTM", ["x", "w", "r", "", "", "h0", "c0"], ["y", "h1", "c1"], hidden_size=UNITS),
    ]
    if swapped:
        nodes += [helper.make_node("Split", [name], [f"{name}a", f"{name}b"], axis=2) for name in parts]
        nodes += [helper.make_node("Concat", [f"h1{e}", f"c1{e}"], [f"part{e}"], axis=2) for e in "ab"]
        parts = ["parta", "partb"]
    nodes += [helper.make_node("Unsqueeze", [name, "three"], [f"{name}.up"]) for name in parts]
    nodes += [helper.make_node("Concat", [f"{name}.up" for name in parts], ["joined"], axis=3)]
    nodes += [helper.make_node("Squeeze", ["joined", "zero"], ["s_out"])]
    nodes += [helper.make_node("ReduceMean", ["s"], ["mean"])] if loose else []
    stored |= {"three": np.array([3], np.int64), "zero": np.array([0], np.int64)}
    shapes = {"x": (1, 1, 4), "s": (1, UNITS, 2)}
    results = {"y": (1, 1, 1, UNITS), "s_out": (1, UNITS, 2)} | ({"mean": (1, 1, 1)} if loose else {})
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in each.items()]
        for each in (shapes, results)
    )
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "packed", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def samples() -> list[dict[str, Array]]:
    """Return a sequence of inputs."""
    return [{"x": x} for x in np.random.default_rng(1).normal(size=(STEPS, 1, 1, 4)).astype(np.float32)]


@pytest.mark.parametrize("cut", ["Slice", "Gather", "Split"])
def test_packed_states_are_kept_apart(cut: str) -> None:
    """Two states instead of one; along a sequence the model's other outputs are the same."""
    model, apart = (prepare(packed_lstm(cut)) for _ in range(2))
    states = unpack_states(apart, {"s": "s_out"})
    assert states == {"s.0": "h1", "s.1": "c1"}
    whole, parts = FloatModel(model, states={"s": "s_out"}), FloatModel(apart, states=states)
    for sample in samples():
        assert np.array_equal(whole.run(sample)["y"], parts.run(sample)["y"])


@pytest.mark.parametrize("kind", ["loose", "swapped"])
def test_other_states_are_left_alone(kind: str) -> None:
    """A state that is also read as a whole, or whose pieces are no whole parts, stays one."""
    model, apart = (prepare(packed_lstm(loose=kind == "loose", swapped=kind == "swapped")) for _ in range(2))
    states = unpack_states(apart, {"s": "s_out"})
    assert states == {"s": "s_out"}
    assert apart == model


def test_hidden_values_keep_their_scale() -> None:
    """Cells that reach far leave hidden values all their steps: int8 from -1 to 1."""
    model = packed_lstm()
    bias = np.zeros((1, 8 * UNITS), np.float32)
    bias[0, UNITS * 2 : UNITS * 3] = 6.0  # cells forget nothing and grow
    model.graph.initializer.append(numpy_helper.from_array(bias, "b"))
    next(node for node in model.graph.node if node.op_type == "LSTM").input[3] = "b"
    compiled = nnac.compile(model, "nna8", samples(), check=True)
    scales = {t.onnx_name: t.type.quant.scale for t in compiled.program.tensors if t.type.quant is not None}
    assert scales["s.0"] < 2 / 250
    assert scales["s.1"] * 2**15 > 4
    found = diff(model, compiled, samples())
    assert found.outputs()["y"] > 25
    assert min(row.local_sqnr for row in found.rows) > 25  # states among them
