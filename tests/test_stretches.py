"""Stretches: one kernel call against the same instructions one by one, and against the law."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac import isa
from nnac.emulator import Emulator
from nnac.kernels import stretch
from nnac.numerics import Rounding, narrow, requantize
from nnac.program import Program
from nnac.reference import seeded
from nnac.stretches import plan
from nnac.targets import load_target, with_settings
from nnac.types import Array
from tests.test_streaming import recurrent


def chain(rows: int, seed: int) -> onnx.ModelProto:
    """Return two dense layers on `rows` rows, with a function between them that the array cannot do."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=shape).astype(np.float32) * 0.3 for shape in ((13, 9), (13,), (7, 13), (7,))]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "w1"], ["a"], transB=1),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w2", "w3"], ["y"], transB=1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, k]) for n, k in (("x", 9), ("y", 7))]
    named = [numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], named)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def both_ways(program: Program) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the outputs of two runs in a row, in stretches and instruction by instruction."""
    inputs = seeded({name: program.tensor(name).type for name in program.inputs}, 1)
    machines = Emulator(program), Emulator(program)
    for _ in range(2):
        found = machines[0].run(inputs)
        expected = machines[1].run(inputs, before=lambda index: None)
    return found, expected


MACHINES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "half_up": {"arithmetic.rounding": "half_up"},
    "half_away": {"arithmetic.rounding": "half_away"},
    "tflite": {"arithmetic.rounding": "tflite"},
    "onnx": {"arithmetic.rounding": "onnx"},
    "wraps": {"arithmetic.accumulator_bits": 16, "arithmetic.accumulator_overflow": "wrap"},
    "saturates": {"arithmetic.accumulator_bits": 16},
    "blocks": {"memory.weights.bytes": 4096},
}


@pytest.mark.parametrize("settings", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize(("rows", "activations"), [(1, "int8"), (5, "int8"), (15, "int8"), (16, "int8"), (2, "int16")])
def test_dense_layers(settings: dict[str, Any], rows: int, activations: str) -> None:
    """Every law, few rows and too many, int8 and int16: the bits of the instructions one by one."""
    machine = with_settings(load_target("nna8"), settings)
    program = nnac.compile(chain(rows, 3), machine, "random", activations=activations).program
    found, expected = both_ways(program)
    assert len(np.unique(expected[program.outputs[0]])) > 3
    np.testing.assert_array_equal(found[program.outputs[0]], expected[program.outputs[0]])


@pytest.mark.parametrize("weights", [None, "4"])
@pytest.mark.parametrize("buffer", [4096, 131_072])
def test_recurrent_layers(weights: str | None, buffer: int) -> None:
    """Packed weights that are decoded once, loaded again in every round of a loop; states after two runs."""
    machine = with_settings(load_target("nna8"), {"memory.weights.bytes": buffer})
    model, shapes = recurrent(hidden=40), {"frames": (5, 1, 6)}
    program = nnac.compile(model, machine, "random", shapes=shapes, weights=weights).program
    found, expected = both_ways(program)
    for name in program.outputs:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_plan_keeps_the_order() -> None:
    """All instructions are there, in stretches or alone, and loads of the same weights share their place."""
    machine = with_settings(load_target("nna8"), {"memory.weights.bytes": 4096})
    shapes = {"frames": (5, 1, 6)}
    program = nnac.compile(recurrent(hidden=40), machine, "random", shapes=shapes, weights="4").program
    asked: list[isa.Load] = []

    def unpack(i: isa.Load) -> Array:
        asked.append(i)
        return np.zeros(i.target_bytes, np.int8)

    steps, decoded = plan(program, unpack)
    lines = [1 if not isinstance(step, np.ndarray) else len(step) for step in steps]
    assert sum(lines) == len(program.instructions)
    assert max(lines) > 1
    kinds = {True: stretch.LOAD, False: stretch.DENSE}
    at = 0
    for step, count in zip(steps, lines, strict=True):
        own = program.instructions[at : at + count]
        if isinstance(step, np.ndarray):
            assert [kinds[isinstance(i, isa.Load)] for i in own] == step[:, stretch.KIND].tolist()
        at += count
    packed = [i for i in program.instructions if isinstance(i, isa.Load) and i.packer]
    assert len(asked) < len(packed)
    assert decoded.size == sum(i.target_bytes for i in asked)


@pytest.mark.parametrize("rounding", [r for r in Rounding if r != Rounding.ONNX])
@pytest.mark.parametrize(("bits", "wraps", "width"), [(32, False, 1), (20, True, 2), (20, False, 1), (32, True, 2)])
def test_a_product_is_the_law(rounding: Rounding, bits: int, wraps: bool, width: int) -> None:
    """The kernel against scalar integers, value by value."""
    rng, rows, depth, channels, pitch = np.random.default_rng(bits + width), 3, 37, 11, 17
    sram = rng.integers(-128, 128, 512).astype(np.int8)
    weights = rng.integers(-128, 128, (channels, depth)).astype(np.int8)
    bias = rng.integers(-(2**17), 2**17, channels).astype(np.int32)
    multiplier = rng.integers(1 << 30, (1 << 31) - 1, channels).astype(np.int32)
    shift = rng.integers(38, 44, channels).astype(np.int8)
    params = np.concatenate([bias.view(np.int8), multiplier.view(np.int8), shift])
    buffer = np.concatenate([weights.ravel(), np.zeros(1, np.int8), params])
    low, high = (-100, 90) if width == 1 else (-3000, 2900)
    at, target = 8, 256
    sides = (at, rows, depth, channels, 0, weights.size + 1, target, pitch, width)
    line = [stretch.DENSE, *sides, -5, 3, low, high]
    lines, expected = np.array([line + [0] * (stretch.FIELDS - len(line))]), sram.copy()
    x = sram[at : at + rows * depth].reshape(rows, depth).astype(np.int64)
    for row in range(rows):
        for n in range(channels):
            exact = int((x[row] + 5) @ weights[n].astype(np.int64)) + int(bias[n])
            total = narrow(exact, bits, wraps)
            value = requantize(total, int(multiplier[n]), int(shift[n]), 3, rounding, low, high)
            first = target + (row * pitch + n) * width
            expected[first : first + width] = np.array([value], f"<i{width}").view(np.int8)
    empty = np.zeros(0, np.int8)
    stretch.run_stretch(lines, empty, empty, buffer, sram, bits, int(wraps), int(rounding))
    np.testing.assert_array_equal(sram, expected)


def test_loads_copy() -> None:
    """Bytes of the constants, or of decoded weights."""
    constants, decoded, buffer = np.arange(9, dtype=np.int8), -np.arange(9, dtype=np.int8), np.zeros(12, np.int8)
    lines = np.zeros((2, stretch.FIELDS), np.int64)
    lines[:, :5] = [[stretch.LOAD, 1, 3, 2, 0], [stretch.LOAD, 2, 4, 7, 1]]
    stretch.run_stretch(lines, constants, decoded, buffer, np.zeros(0, np.int8), 32, 0, 0)
    assert buffer.tolist() == [0, 0, 1, 2, 3, 0, 0, -2, -3, -4, -5, 0]
