"""Recurrent layers that exporters wrote out: found again, unrolled, or refused; always with the same float values."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper

import nnac
from nnac.errors import ModelError
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare
from nnac.isa import Gru
from nnac.types import Array
from tests.test_models import path_of

TIME, BATCH, WIDTH, HIDDEN, PROJECTED = 6, 2, 5, 7, 4
Nodes = list[onnx.NodeProto]


def node(op: str, inputs: str, outputs: str, **given: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), outputs.split()[0], **given)


def info(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def weights(**shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(3)
    return [numpy_helper.from_array(rng.normal(0, 0.5, s).astype(np.float32), n) for n, s in shapes.items()]


def cell(style: str, peepholes: bool = False, x: str = "x_t", h: str = "h", c: str = "c") -> Nodes:
    """Return the nodes of an LSTM cell as an exporter writes them; it makes h_next and c_next.

    Args:
        style: "concat" (TensorFlow 1), "matmul" (Keras), "gemm" (torch), "single" (a product per gate).
    """
    made = {
        "concat": [node("Concat", f"{x} {h}", "xh", axis=1), node("Gemm", "xh K b", "z")],
        "matmul": [
            node("MatMul", f"{x} W", "zx"),
            node("MatMul", f"{h} R", "zh"),
            node("Add", "zx zh", "zz"),
            node("Add", "b zz", "z"),
        ],
        "gemm": [
            node("Gemm", f"{x} Wt b", "zx", transB=1),
            node("Gemm", f"{h} Rt b", "zh", transB=1),
            node("Add", "zh zx", "z"),
        ],
    }[style]
    made += [node("Split", "z", "zi zg zf zo", axis=1), node("Add", "zf one", "zf1")]
    gates = {"i": "zi", "f": "zf1", "o": "zo"}
    late: Nodes = []
    for letter, name in gates.items() if peepholes else ():
        look = [node("Mul", f"p{letter} {'c_next' if letter == 'o' else c}", f"look_{letter}")]
        look.append(node("Add", f"look_{letter} {name}", f"z{letter}p"))
        gates[letter] = f"z{letter}p"
        late, made = (look, made) if letter == "o" else (late, made + look)
    made += [node("Sigmoid", gates["i"], "si"), node("Sigmoid", gates["f"], "sf"), node("Tanh", "zg", "tg")]
    made += [node("Mul", f"{c} sf", "kept"), node("Mul", "si tg", "fresh"), node("Add", "kept fresh", "c_next"), *late]
    made += [node("Sigmoid", gates["o"], "so"), node("Tanh", "c_next", "tc"), node("Mul", "tc so", "h_next")]
    return made


def stored(recurrent: int = HIDDEN) -> list[onnx.TensorProto]:
    rows = 4 * HIDDEN
    found = weights(W=(WIDTH, rows), R=(recurrent, rows), b=(rows,), pi=(HIDDEN,), pf=(HIDDEN,), po=(HIDDEN,))
    found += weights(P=(HIDDEN, PROJECTED))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in found}
    more = {"K": np.concatenate([arrays["W"], arrays["R"]]), "Wt": arrays["W"].T.copy(), "Rt": arrays["R"].T.copy()}
    more |= {"one": np.ones((), np.float32), "zeros": np.zeros((BATCH, recurrent), np.float32)}
    return found + [numpy_helper.from_array(array, name) for name, array in more.items()]


def model(
    nodes: Iterable[onnx.NodeProto], inputs: list[Any], outputs: list[Any], held: list[onnx.TensorProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "loop", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)


def scan(
    style: str, peepholes: bool = False, projected: bool = False, start: str = "h0", **given: Any
) -> onnx.ModelProto:
    """Return a Scan over a cell, its hidden values projected or not, with a count of the steps that nothing reads."""
    width, inside = (PROJECTED if projected else HIDDEN), cell(style, peepholes)
    inside += [node("MatMul", "h_next P", "shown") if projected else node("Identity", "h_next", "shown")]
    inside += [node("Identity", "shown", "all_h"), node("Add", "count one", "count_next")]
    body = helper.make_graph(
        inside,
        "body",
        [info("c", BATCH, HIDDEN), info("h", BATCH, width), info("count"), info("x_t", BATCH, WIDTH)],
        [info("c_next", BATCH, HIDDEN), info("shown", BATCH, width), info("count_next"), info("all_h", BATCH, width)],
    )
    loop = helper.make_node(
        "Scan",
        ["c0", start, "one", "x"],
        ["last_c", "last_h", "steps", "y"],
        "loop",
        body=body,
        num_scan_inputs=1,
        **given,
    )
    inputs = [info("x", TIME, BATCH, WIDTH), info("c0", BATCH, HIDDEN), info("h0", BATCH, width)]
    outputs = [info("y", TIME, BATCH, width), info("last_c", BATCH, HIDDEN), info("last_h", BATCH, width)]
    return model([loop], inputs if start == "h0" else inputs[:2], outputs, stored(width))


def samples(source: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    sides = {i.name: [dim.dim_value for dim in i.type.tensor_type.shape.dim] for i in source.graph.input}
    return {name: np.tanh(rng.normal(size=shape)).astype(np.float32) for name, shape in sides.items()}


def same(source: onnx.ModelProto) -> list[str]:
    """Compare the prepared model with the original in onnxruntime; return its operators."""
    prepared, feeds = prepare(source), samples(source)
    session = ort.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    for name, array in FloatModel(prepared).run(feeds).items():
        np.testing.assert_allclose(array, expected[name], atol=2e-6)
    return [each.op_type for each in prepared.graph.node]


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("style", ["concat", "matmul", "gemm"])
def test_a_scan_over_a_cell_is_an_lstm(style: str, peepholes: bool) -> None:
    """One LSTM with the same values and names, compiled as a loop, bits checked."""
    source = scan(style, peepholes)
    found = same(source)
    assert found.count("LSTM") == 1 and {*found} <= {"LSTM", "Reshape"}
    program = nnac.compile(source, "nna8", [samples(source, n) for n in range(3)], states={}, check=True).program
    assert [loop.count for loop in program.loops] == [TIME - 1]


def test_a_scan_backwards_is_a_reverse_lstm() -> None:
    """A Scan that reads and writes backwards."""
    source = scan("gemm", scan_input_directions=[1], scan_output_directions=[1])
    assert same(source).count("LSTM") == 1


def test_a_projection_goes_into_the_recurrent_weights() -> None:
    """From zeros; from other hidden values the loop is written out, since these need not be projections."""
    found = same(scan("concat", True, projected=True, start="zeros"))
    assert found.count("LSTM") == 1 and found.count("MatMul") == 2
    assert same(scan("concat", True, projected=True)).count("Sigmoid") == 3 * TIME


@pytest.mark.parametrize("style", ["concat", "matmul", "gemm"])
def test_a_single_cell_is_an_lstm(style: str) -> None:
    """One step, its states inputs and outputs of the graph."""
    states = [info("h", BATCH, HIDDEN), info("c", BATCH, HIDDEN)]
    x = [node("Tanh", "x", "x_t")]
    source = model(
        x + cell(style),
        [info("x", BATCH, WIDTH), *states],
        [info("h_next", BATCH, HIDDEN), info("c_next", BATCH, HIDDEN)],
        stored(),
    )
    found = same(source)
    assert found.count("LSTM") == 1 and "Split" not in found


def gru_cell() -> Nodes:
    """Return torch's GRUCell from x_t and h to h_next, as both of its exporters write it."""
    made = [helper.make_node("Gemm", ["x_t", "Wg", "bi"], ["gi"], "gi", transB=1)]
    made += [helper.make_node("Gemm", ["h", "Rg", "bh"], ["gh"], "gh", transB=1)]
    made += [helper.make_node("Split", [g], [f"{g}_{k}" for k in "rzn"], f"{g}s", axis=1) for g in ("gi", "gh")]
    made += [node("Add", f"gh_{k} gi_{k}", k) for k in "rz"] + [node("Sigmoid", k, f"s{k}") for k in "rz"]
    made += [node("Mul", "gh_n sr", "m"), node("Add", "gi_n m", "a"), node("Tanh", "a", "n"), node("Sub", "h n", "d")]
    return [*made, node("Mul", "d sz", "k"), node("Add", "k n", "h_next")]


def gru_weights() -> list[onnx.TensorProto]:
    rows = 3 * HIDDEN
    return weights(Wg=(rows, WIDTH), Rg=(rows, HIDDEN), bi=(rows,), bh=(rows,))


def test_a_single_gru_cell_is_a_gru() -> None:
    """One step, its state an input of the graph; a candidate that sees the state past its gate is left as it is."""
    inputs = [info("x_t", BATCH, WIDTH), info("h", BATCH, HIDDEN)]
    outputs = [info("h_next", BATCH, HIDDEN)]
    source = model(gru_cell(), inputs, outputs, gru_weights())
    found = same(source)
    assert found.count("GRU") == 1 and "Split" not in found
    program = nnac.compile(source, "nna8", "random", states={"h": "h_next"}, check=True).program
    assert any(isinstance(i, Gru) for i in program.instructions)
    other = [n if n.output[0] != "m" else node("Mul", "gh_n gi_r", "m") for n in gru_cell()]
    assert "GRU" not in same(model(other, inputs, outputs, gru_weights()))


@pytest.mark.parametrize("backwards", [0, 1])
def test_a_scan_over_a_gru_cell_is_a_gru(backwards: int) -> None:
    """Over all steps, either way, with the last state."""
    body = helper.make_graph(
        [*gru_cell(), node("Identity", "h_next", "y_t")],
        "body",
        [info("h", BATCH, HIDDEN), info("x_t", BATCH, WIDTH)],
        [info("h_next", BATCH, HIDDEN), info("y_t", BATCH, HIDDEN)],
    )
    way = [backwards]
    scan = helper.make_node(
        "Scan",
        ["h0", "x"],
        ["last", "y"],
        "scan",
        body=body,
        num_scan_inputs=1,
        scan_input_directions=way,
        scan_output_directions=way,
    )
    inputs = [info("h0", BATCH, HIDDEN), info("x", TIME, BATCH, WIDTH)]
    found = same(model([scan], inputs, [info("last", BATCH, HIDDEN), info("y", TIME, BATCH, HIDDEN)], gru_weights()))
    assert found.count("GRU") == 1 and "Sigmoid" not in found


def test_an_lstm_that_lost_its_projection_is_refused() -> None:
    """What torch.onnx.export(dynamo=True) writes for LSTM(5, 8, proj_size=3): hidden_size 3, and a cell of 8."""
    held = weights(W=(1, 12, 5), R=(1, 12, 3), B=(1, 24))
    held += [numpy_helper.from_array(np.zeros((1, 1, n), np.float32), name) for name, n in (("h0", 3), ("c0", 8))]
    inputs, outputs = ["x", "W", "R", "B", "", "h0", "c0"], ["y", "h", "c"]
    lstm = helper.make_node("LSTM", inputs, outputs, "lstm", hidden_size=3, input_forget=0, layout=0)
    source = model([lstm], [info("x", 4, 1, 5)], [info("y", 4, 1, 1, 3)], held)
    source.opset_import[0].version = 20
    with pytest.raises(ModelError, match=r"LSTM 'lstm': .*\[1, 1, 8\].*\(directions, batch, 3\).*proj_size"):
        nnac.compile(source, "nna8", "random")


def test_what_is_no_cell_stays() -> None:
    """A gate of another function, or hidden values that cannot be told from the input, are left as they are."""
    other = [n if n.output[0] != "tc" else node("Sigmoid", "c_next", "tc") for n in cell("gemm")]
    states = [info("h", BATCH, HIDDEN), info("c", BATCH, HIDDEN)]
    outputs = [info("h_next", BATCH, HIDDEN), info("c_next", BATCH, HIDDEN)]
    assert "LSTM" not in same(model(other, [info("x_t", BATCH, WIDTH), *states], outputs, stored()))


def body(iteration: bool) -> GraphProto:
    """Return the body of a loop whose state grows by half of itself, and by the number of the step."""
    nodes = [node("Mul", "s half", "grown"), node("Identity", "go", "go_on"), node("Identity", "grown", "seen")]
    nodes += [node("Cast", "n", "step", to=1), node("Add", "grown step", "s_next")] if iteration else []
    outputs = [info("go_on", kind=TensorProto.BOOL), info("s_next" if iteration else "grown", 3), info("seen", 3)]
    inputs = [info("n", kind=TensorProto.INT64), info("go", kind=TensorProto.BOOL), info("s", 3)]
    return helper.make_graph(
        nodes, "body", inputs, outputs, [numpy_helper.from_array(np.full(3, 0.5, np.float32), "half")]
    )


def counted(steps: int, goes_on: bool = True, iteration: bool = True) -> onnx.ModelProto:
    held = [numpy_helper.from_array(np.array(steps), "steps"), numpy_helper.from_array(np.array(goes_on), "go_in")]
    loop = helper.make_node("Loop", ["steps", "go_in", "x"], ["last", "all"], "loop", body=body(iteration))
    return model([node("Relu", "x0", "x"), loop], [info("x0", 3)], [info("last", 3), info("all", steps, 3)], held)


def test_short_loops_are_written_out() -> None:
    """A Loop with a count, and a Scan that is no cell."""
    assert same(counted(4)).count("Mul") == 4
    running = helper.make_graph(
        [node("Add", "s v", "t"), node("Identity", "t", "u")],
        "body",
        [info("s", 3), info("v", 3)],
        [info("t", 3), info("u", 3)],
    )
    total = helper.make_node("Scan", ["s0", "x"], ["last", "all"], "total", body=running, num_scan_inputs=1)
    source = model([total], [info("s0", 3), info("x", 5, 3)], [info("last", 3), info("all", 5, 3)], [])
    assert same(source).count("Add") == 5
    assert nnac.compile(source, "nna8", [samples(source)], states={}, check=True).program.layers


@pytest.mark.parametrize(
    ("source", "words"), [(counted(65), "Loop 'loop': it runs"), (counted(4, False), "Loop 'loop'")]
)
def test_other_loops_are_refused(source: onnx.ModelProto, words: str) -> None:
    """Too many steps, or a condition that is not true: the message says what is allowed."""
    with pytest.raises(ModelError, match=rf"{words}.*fixed and at most 64|{words}"):
        nnac.compile(source, "nna8", [{"x0": np.ones(3, np.float32)}])


@pytest.mark.parametrize(
    ("name", "cells", "given"),
    [
        ("arm_kws_lstm_s_scan", 1, {}),
        ("dtln_2", 2, {}),
        ("silero_vad_v5_ifless", 1, {"shapes": {"input": (1, 576), "state": (2, 1, 128)}, "frozen": {"sr": 16000}}),
    ],
)
def test_cells_of_real_models(assets: Path, name: str, cells: int, given: dict[str, Any]) -> None:
    """All are found, and the float values stay."""
    path = path_of(assets, name)
    prepared = prepare(path, **given)
    assert [each.op_type for each in prepared.graph.node].count("LSTM") == cells
    feeds = samples(prepared)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    constants = {key: np.array(value, np.int64) for key, value in given.get("frozen", {}).items()}
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds | constants), strict=True))
    for key, array in FloatModel(prepared).run(feeds).items():
        np.testing.assert_allclose(array, expected[key], atol=1e-5)
