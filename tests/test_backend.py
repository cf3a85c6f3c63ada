"""ONNX's own node tests through `nnac.backend`: integers bit for bit, moves entry for entry."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nnac.backend import NnacBackend
from nnac.errors import ModelError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other cases divide by zero on purpose
    from onnx.backend.test.case.node import collect_testcases

    with np.errstate(all="ignore"):
        CASES: dict[str, Any] = {case.name: case for case in collect_testcases()}

WANTED = re.compile(
    "test_(qlinearconv|qlinearmatmul|matmulinteger|convinteger|quantizelinear|dequantizelinear|dynamicquantizelinear"
    "|reshape|squeeze|unsqueeze|transpose|flatten|concat|slice|split|identity)(_|$)"
)
REFUSED = re.compile(".*(e4m3|e5m2|float4e2m1|_sequence|_expanded|identity_opt)")
"""8- and 4-bit floats, sequences, optionals, and models of many nodes."""
NAMES = [name for name in CASES if WANTED.match(name)]


def test_the_cases_are_there() -> None:
    """Each operator brings its cases; few are refused."""
    refused = [name for name in NAMES if REFUSED.match(name)]
    assert len(NAMES) - len(refused) >= 90
    assert {name for name in NAMES if not NnacBackend.is_compatible(CASES[name].model)} == set(refused)


@pytest.mark.parametrize("name", [name for name in NAMES if not REFUSED.match(name)])
def test_node(name: str) -> None:
    """Outputs have the expected types, shapes and bits."""
    case = CASES[name]
    rep = NnacBackend.prepare(case.model)
    for inputs, outputs in case.data_sets:
        found = rep.run(inputs)
        assert len(found) == len(outputs)
        for array, expected in zip(found, outputs, strict=True):
            if isinstance(expected, onnx.TensorProto):
                expected = onnx.numpy_helper.to_array(expected)
            assert array.dtype == expected.dtype and array.shape == expected.shape
            np.testing.assert_array_equal(array, expected)


def test_others_are_refused() -> None:
    """A model of another operator is not compatible, and preparing it says what is."""
    info: Any = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, (2, 2))],
        [info("y", TensorProto.FLOAT, ())],
    )
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    assert not NnacBackend.is_compatible(model)
    assert not NnacBackend.supports_device("CUDA")
    with pytest.raises(ModelError, match="one of QLinearConv"):
        NnacBackend.prepare(model)
