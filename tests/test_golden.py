"""Golden disassembly of one small net: a change of the command stream is seen, and meant (`make golden` rewrites)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac.disasm import disassemble
from nnac.targets import load_target
from tests.graphs import with_memory

GOLDEN = Path(__file__).parent / "golden"


def small_net() -> onnx.ModelProto:
    """Return a residual convolution block with a classifier; weights are simple numbers, no generator involved."""

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        values = (np.arange(np.prod(shape), dtype=np.float32) * 37 % 101 - 50) / 100
        return numpy_helper.from_array(values.reshape(shape), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1], group=8),
        helper.make_node("Add", ["c2", "r1"], ["s"], "add"),
        helper.make_node("GlobalAveragePool", ["s"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["l"], "logits", transB=1),
        helper.make_node("Softmax", ["l"], ["y"], "softmax"),
    ]
    tensors = [
        weights("w1", 8, 2, 3, 3),
        weights("b1", 8),
        weights("w2", 8, 1, 3, 3),
        weights("w3", 4, 8),
        weights("b3", 4),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (1, 2, 12, 10)), ("y", (1, 4))))
    return helper.make_model(
        helper.make_graph(nodes, "small", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def samples() -> list[dict[str, np.ndarray]]:
    """Return two inputs of simple numbers."""
    ramp = (np.arange(240, dtype=np.float32) * 17 % 61 - 30) / 30
    return [{"x": ramp.reshape(1, 2, 12, 10)}, {"x": -ramp.reshape(1, 2, 12, 10)}]


@pytest.mark.parametrize("sram", [524_288, 1_536], ids=["resident", "striped"])
def test_disassembly(sram: int, request: pytest.FixtureRequest) -> None:
    """The text of the program is the one that is committed."""
    target = with_memory(load_target("nna8"), sram=sram)
    program = nnac.compile(small_net(), target=target, calibration=samples(), check=True).program
    text = "\n".join(disassemble(program)) + "\n"
    path = GOLDEN / f"{request.node.callspec.id}.txt"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8"), "the command stream changed; if that is meant: make golden"
