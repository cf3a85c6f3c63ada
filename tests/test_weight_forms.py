"""The forms in which graphs hold weights of few values: each is found, and encoded in few bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac import compiler
from nnac.errors import ModelError
from nnac.frontend import prepare
from nnac.ops.conv import WEIGHT
from nnac.passes.centroid_folding import weighted_layers
from nnac.types import Array
from tests.nets import net
from tests.test_weights import GRID, gaussian, rows_of, samples_of

CODEBOOK = np.sort(np.random.default_rng(7).permutation(np.arange(-126, 127, 4))[:15]).astype(np.float32)
CODEBOOK = np.append(CODEBOOK, np.float32(127)) * GRID
INDICES = np.random.default_rng(8).integers(0, 16, (32, 8, 3, 3))
FORMS = {
    "gather": "w = Gather (book, index)",
    "one-hot": """
        h = OneHot (index, depth, ends)
        p = MatMul (h, column)
        w = Squeeze (p, last)
        """,
    "where": """
        g0 = Less (index, four)
        g1 = Less (index, eight)
        w0 = Where (g1, c1, c2)
        w = Where (g0, c0, w0)
        """,
    "mu-law": """
        y = Gather (uniform, index)
        a = Abs (y)
        e = Pow (base, a)
        m = Sub (e, one)
        n = Mul (m, scale)
        s = Sign (y)
        w = Mul (s, n)
        """,
    "mu-law by Exp": """
        y = Gather (uniform, index)
        a = Abs (y)
        l = Mul (a, log)
        e = Exp (l)
        m = Sub (e, one)
        n = Mul (m, scale)
        s = Sign (y)
        w = Mul (s, n)
        """,
}
FROZEN: dict[str, Any] = {
    "book": CODEBOOK,
    "index": INDICES,
    "depth": np.array(16),
    "ends": np.array([0, 1], np.float32),
    "column": CODEBOOK[:, None],
    "last": np.array([4]),
    "four": np.array(4),
    "eight": np.array(8),
    "c0": CODEBOOK[0],
    "c1": CODEBOOK[5],
    "c2": CODEBOOK[15],
    "uniform": np.linspace(-1, 1, 16, dtype=np.float32),
    "base": np.float32(6),
    "log": np.log(np.float32(6)),
    "one": np.float32(1),
    "scale": np.float32(0.05),
}
LOSS = {"mu-law": 40.0, "mu-law by Exp": 40.0}
"""Companded levels lie on no grid: dB that their int8 form keeps at least. All others lose nothing."""


@pytest.mark.parametrize("form", FORMS)
def test_frozen_quantizers_are_found(form: str) -> None:
    """What trainers export as chains of constants becomes a table of the same values."""
    lines = f"{FORMS[form].strip()}\nz = Conv (x, w)"
    used = {
        name: array
        for name, array in FROZEN.items()
        if any(name in line.partition("(")[2].strip(" )").split(", ") for line in lines.splitlines())
    }
    model = nnac.compile(net(lines, {"x": (1, 8, 16, 16)}, "z", **used), "nna8", samples_of(), check=True)
    (row,) = rows_of(model)
    assert row.shape == (32, 3, 3, 8) and row.levels == (3 if form == "where" else 16)
    assert row.sqnr_db is None if form not in LOSS else row.sqnr_db is not None and row.sqnr_db > LOSS[form]
    assert row.encoded_bytes < 0.6 * row.raw_bytes


INTEGERS = {
    "int4": (TensorProto.INT4, -8, 8),
    "uint4": (TensorProto.UINT4, 0, 16),
    "int8": (TensorProto.INT8, -12, 12),
    "uint8": (TensorProto.UINT8, 64, 88),
}
SCALES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "tensor": ((), {}),
    "channel": ((32,), {"axis": 0}),
    "blocked": ((32, 2, 3, 3), {"axis": 1, "block_size": 4}),
}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("kind", INTEGERS)
def test_dequantized_integers_are_found(kind: str, scales: str, zero: bool) -> None:
    """A scale per tensor or channel loses nothing; blocks of a channel share one int8 scale, and the account says."""
    code, low, high = INTEGERS[kind]
    shape, attributes = SCALES[scales]
    rng = np.random.default_rng(2)
    values, points = rng.integers(low, high, (32, 8, 3, 3)), rng.integers(max(low, 0) + 1, max(low, 0) + 3, shape)
    scale = (rng.random(shape) * 0.05 + 0.01).astype(np.float32)
    constants = [helper.make_tensor("q", code, values.shape, values.ravel().tolist())]
    constants += [numpy_helper.from_array(scale, "s")]
    constants += [helper.make_tensor("z", code, shape, np.ravel(points).tolist())] if zero else []
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"][: 2 + zero], ["w"], **attributes),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (row,) = rows_of(nnac.compile(model, "nna8", samples_of(), check=True))
    assert row.shape == (32, 3, 3, 8)
    if scales == "blocked":
        assert row.sqnr_db is not None and row.sqnr_db > 35
        return
    assert row.sqnr_db is None and row.levels <= high - low + zero and row.encoded_bytes < 0.75 * row.raw_bytes


def qonnx_quant(x: Array, scale: Array, zero: float, limits: tuple[int, int], rounding: Any = np.rint) -> Array:
    """Return what QONNX's Quant gives, in float32."""
    low, high = map(np.float32, limits)
    integers = rounding(np.clip(x / scale + np.float32(zero), low, high))
    return np.asarray((integers - np.float32(zero)) * scale, np.float32)


def qonnx_model(
    op: str, domain: str, x: str = "v", attributes: Mapping[str, Any] | None = None, **constants: Any
) -> onnx.ModelProto:
    """Return a convolution by quantized weights, or (`x` = "x") of a quantized input."""
    inputs = [x, "scale", "zero", "width"] if op == "Quant" else [x, "scale"]
    quantizer = helper.make_node(op, inputs, ["q"], domain=domain, **(attributes or {}))
    conv = helper.make_node("Conv", ["x", "q"] if x == "v" else ["q", "v"], ["y"])
    arrays = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()]
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 16, 16])
    graph = helper.make_graph(
        [quantizer, conv], "g", [info], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 14, 14])], arrays
    )
    return helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    )


QUANTS: dict[str, tuple[dict[str, Any], float, tuple[int, int], Any]] = {
    "signed": ({"signed": 1, "narrow": 0}, 0, (-8, 7), np.rint),
    "narrow": ({"narrow": 1}, 0, (-7, 7), np.rint),
    "unsigned": ({"signed": 0}, 5, (0, 15), np.rint),
    "floor": ({"rounding_mode": "FLOOR"}, 0, (-8, 7), np.floor),
}


@pytest.mark.parametrize("domain", ["qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"])
@pytest.mark.parametrize("case", QUANTS)
def test_qonnx_quantizers_of_weights_are_found(case: str, domain: str) -> None:
    """The weights are those of QONNX's definition to the bit, a scale per channel, nothing lost."""
    attributes, zero, limits, rounding = QUANTS[case]
    v, scale = gaussian()["w"], (np.random.default_rng(1).random((32, 1, 1, 1)) * 0.02 + 0.01).astype(np.float32)
    model = qonnx_model("Quant", domain, attributes=attributes, v=v, scale=scale, zero=zero, width=4)
    (node,) = weighted_layers(graph := compiler.float_graph(prepare(model)))
    found = np.moveaxis(graph.constants[node.inputs[WEIGHT]], -1, 1)
    np.testing.assert_array_equal(found, qonnx_quant(v, scale, zero, limits, rounding))
    (row,) = rows_of(nnac.compile(model, "nna8", samples_of(), check=True))
    assert row.levels <= 16 and row.sqnr_db is None and row.encoded_bytes < 0.6 * row.raw_bytes


def test_qonnx_binary_weights_are_found() -> None:
    v = gaussian()["w"]
    model = qonnx_model("BipolarQuant", "qonnx.custom_op.general", v=v, scale=0.05)
    (row,) = rows_of(nnac.compile(model, "nna8", samples_of(), check=True))
    assert (row.levels, row.bits, row.sqnr_db, row.zeros) == (2, 1, None, 0)
    assert row.encoded_bytes < 0.14 * row.raw_bytes


def test_a_qonnx_quantizer_of_computed_constants_is_found() -> None:
    v = gaussian()["w"]
    model = qonnx_model("Quant", "qonnx.custom_op.general", v=v, n=-v, scale=1 / 32, zero=0, width=1)
    model.graph.node.insert(0, helper.make_node("Neg", ["n"], ["m"]))
    model.graph.node[1].input[0] = "m"
    (row,) = rows_of(nnac.compile(model, "nna8", samples_of(), check=True))
    assert (row.levels, row.sqnr_db) == (2, None)


@pytest.mark.parametrize("changes", [{"width": 40}, {"attributes": {"rounding_mode": "DICE"}}])
def test_other_qonnx_quantizers_are_reported(changes: dict[str, Any]) -> None:
    """Of an unknown width or rounding."""
    given: dict[str, Any] = {"v": gaussian()["w"], "scale": 0.1, "zero": 0, "width": 4} | changes
    with pytest.raises(ModelError, match=r"Quant.*not supported"):
        nnac.compile(qonnx_model("Quant", "qonnx.custom_op.general", **given), "nna8", samples_of(), host="forbid")
