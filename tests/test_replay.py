"""A prepared run against the same instructions one by one, and what only the latter can see."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac import isa
from nnac.emulator import Emulator
from nnac.emulator.meanings import _along_a_row
from nnac.emulator.replay import Replay
from nnac.errors import ProgramError
from nnac.kernels.calls import Together
from nnac.program import Program, dumps, loads
from nnac.reference import seeded
from nnac.targets import load_target, with_settings
from nnac.types import Array
from nnac.validate import validate
from tests.nets import net
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
    """Return the outputs of two runs in a row, prepared and instruction by instruction."""
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


def reloaded() -> tuple[Program, dict[str, Array]]:
    """Return a program whose weights go through a small buffer in turns, and inputs."""
    machine = with_settings(load_target("nna8"), {"memory.weights.bytes": 4096})
    shapes = {"frames": (5, 1, 6)}
    program = nnac.compile(recurrent(hidden=40), machine, "random", shapes=shapes, weights="4").program
    return program, seeded({name: program.tensor(name).type for name in program.inputs}, 1)


def test_weights_are_packed_once() -> None:
    """Rounds of a loop that load the same bytes share their packed weights, and leave the loads out."""
    program, _ = reloaded()
    replay = Replay(Emulator(program), program)
    calls = replay.calls()
    loads = [i for i in program.instructions if isinstance(i, isa.Load)]
    convs = [i for i in program.instructions if isinstance(i, isa.Conv)]
    assert len(calls) < len(program.instructions) - len(loads) + len(replay.loads) + 10
    assert len(replay.loads) < len(loads) and 0 < len(replay.filters) < len(convs)


def wide(activations: str, **settings: Any) -> Program:
    """Return a program with a constant that is an operand, of layers whose tensors are of some 100 kB."""
    lines = """
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        b = Relu (a)
        c = Add (b, t)
        d = Conv <pads = [1, 1, 1, 1], group = 32> (c, v)
        y = Softmax <axis = 1> (d)
        """
    model = net(lines, {"x": (1, 3, 64, 64)}, w=(32, 3, 3, 3), t=(1, 32, 64, 64), v=(32, 1, 3, 3))
    machine = with_settings(load_target("nna8"), settings)
    return nnac.compile(model, machine, "random", activations=activations).program


@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_constants_that_lie_alone_are_not_copied(activations: str) -> None:
    """They are the program's own bytes, wherever a file has put them, odd addresses too; nobody can write them."""
    program = wide(activations, **{"memory.sram.bytes": 1 << 21})
    shifted = np.frombuffer(b"x" + program.constants.tobytes(), np.uint8, offset=1)
    assert program.used[program.constants_space] == shifted.size and shifted.ctypes.data % 2
    assert any(isinstance(i, isa.Copy) and i.source_space == program.constants_space for i in program.instructions)
    expected, _ = both_ways(program)
    for given in (program, loads(dumps(program)), replace(program, constants=shifted)):
        memory = Emulator(given).memory[given.constants_space]
        assert np.shares_memory(memory, given.constants) and not memory.flags.writeable
        for found in both_ways(given):
            np.testing.assert_array_equal(found[program.outputs[0]], expected[program.outputs[0]])


def test_constants_beside_spilled_tensors_are_copied() -> None:
    """What is written there must not reach the program, which other emulators run, too."""
    program = wide("int8", **{"memory.sram.bytes": 1 << 16})
    before = program.constants.tobytes()
    assert program.used[program.constants_space] > program.constants.size
    found, expected = both_ways(program)
    np.testing.assert_array_equal(found[program.outputs[0]], expected[program.outputs[0]])
    assert program.constants.tobytes() == before
    assert not np.shares_memory(Emulator(program).memory[program.constants_space], program.constants)


def test_a_run_allocates_its_outputs_alone() -> None:
    """Once it is prepared, of memory that numpy or Python hand out; kernels take a row at most on their own."""
    program = wide("int8")
    inputs = seeded({name: program.tensor(name).type for name in program.inputs}, 1)
    emulator = Emulator(program)
    outputs = sum(array.nbytes for array in emulator.run(inputs).values())
    emulator.run(inputs)
    tracemalloc.start()
    try:
        emulator.run(inputs)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outputs <= peak < outputs + 8192


def test_beyond_its_room_weights_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that may keep little makes the same bits."""
    program, inputs = reloaded()
    expected = Emulator(program).run(inputs)
    monkeypatch.setattr("nnac.emulator.replay.KEPT_BYTES", 3000)
    found = Emulator(program).run(inputs)
    for name in program.outputs:
        np.testing.assert_array_equal(found[name], expected[name])


def test_convolutions_that_share_constants_need_not_pack_them_alike() -> None:
    """Taps side by side and taps apart, out of the same bytes of the weight buffer: a program by another hand."""
    lines = """
        a = Conv <pads = [0, 1, 0, 1]> (x, w)
        b = Conv <pads = [0, 2, 0, 2], dilations = [1, 2]> (x, w)
        y = Concat <axis = 1> (a, b)
        """
    program = nnac.compile(net(lines, {"x": (1, 3, 5, 9)}, w=(6, 3, 1, 3)), "nna8", "random").program
    code = list(program.instructions)
    first, second = (n for n, i in enumerate(code) if isinstance(i, isa.Conv))
    one, other = code[first], code[second]
    assert isinstance(one, isa.Conv) and isinstance(other, isa.Conv) and other.dilation_w == 2
    code[second] = replace(other, weights=one.weights, params=one.params)
    shared = validate(replace(program, instructions=tuple(code)))
    found, expected = both_ways(shared)
    np.testing.assert_array_equal(found[program.outputs[0]], expected[program.outputs[0]])


def test_a_load_of_other_bytes_shows_in_both_ways() -> None:
    """A wrong address in a Load changes the outputs of a prepared run as it does those of an exact one."""
    program, inputs = reloaded()
    before = Emulator(program).run(inputs)
    raw = [n for n, i in enumerate(program.instructions) if isinstance(i, isa.Load) and not i.packer]
    code = list(program.instructions)
    last = code[raw[-1]]
    assert isinstance(last, isa.Load)
    other = next(i for n in raw if isinstance(i := code[n], isa.Load) and i.source != last.source)
    code[raw[-1]] = replace(last, source=other.source)
    wrong = replace(program, instructions=tuple(code))
    found, expected = both_ways(wrong)
    for name in program.outputs:
        np.testing.assert_array_equal(found[name], expected[name])
    assert any((before[name] != Emulator(wrong).run(inputs)[name]).any() for name in program.outputs)


def test_a_second_load_may_not_have_another_table() -> None:
    """The fence decodes the bytes of a table's new length, though it has decoded the same stream before."""
    program, _ = reloaded()
    code, known = list(program.instructions), set[int]()
    for n, load in enumerate(code):
        if isinstance(load, isa.Load) and load.packer:
            if load.source in known:
                code[n] = replace(load, table_bytes=load.table_bytes - 1)
                break
            known.add(load.source)
    with pytest.raises(ProgramError, match="table of packed weights"):
        validate(replace(program, instructions=tuple(code), loops=()))


def test_a_load_that_does_not_wait_shows() -> None:
    """A run in another order reads what lies in the weight buffer: a Load that comes too early spoils its reader."""
    program, inputs = reloaded()
    expected = Emulator(program).run(inputs)
    order = sorted(range(len(program.instructions)), key=lambda n: not isinstance(program.instructions[n], isa.Load))
    found = Emulator(program).run(inputs, order=order)
    assert any((found[name] != expected[name]).any() for name in program.outputs)


def layers(rng: np.random.Generator) -> onnx.ModelProto:
    """Return rows and panels to share: a convolution, a depthwise and a grouped one, and two dense layers."""
    shapes = {"a": (24, 3, 3, 3), "b": (24, 1, 3, 3), "c": (32, 6, 1, 1), "d": (300, 32), "e": (64, 300)}
    weights = [numpy_helper.from_array(rng.normal(0, 0.2, s).astype(np.float32), f"w{n}") for n, s in shapes.items()]
    weights += [numpy_helper.from_array(np.zeros(n, np.float32), f"z{n}") for n in (24, 32)]
    nodes = [
        helper.make_node("Conv", ["x", "wa", "z24"], ["a"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Conv", ["a", "wb", "z24"], ["b"], group=24, pads=[1] * 4),
        helper.make_node("Conv", ["b", "wc", "z32"], ["c"], group=4),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "wd"], ["d"], transB=1),
        helper.make_node("Gemm", ["d", "we"], ["y"], transB=1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (1, 3, 17, 19)), ("y", (1, 64)))]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("weights", [None, "4"])
def test_threads_change_no_bit(weights: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnac.kernels.products.WORTH", 1)
    model = nnac.compile(layers(np.random.default_rng(4)), "nna8", "random", weights=weights)
    inputs = seeded({name: model.program.tensor(name).type for name in model.program.inputs}, 1)
    alone = Emulator(model.program).trace(inputs)
    for threads in (2, 3):
        emulator = Emulator(model.program, threads)
        assert any(isinstance(call, Together) for call in Replay(emulator, model.program).calls())
        for name, array in emulator.trace(inputs).items():
            np.testing.assert_array_equal(array, alone[name])
        for name, array in emulator.run(inputs).items():
            np.testing.assert_array_equal(array, alone[name])


@pytest.mark.parametrize("stride, dilation, pads", [(1, 1, (2, 1)), (3, 1, (0, 0)), (2, 2, (4, 0))])
def test_a_convolution_along_a_column_is_one_along_a_row(stride: int, dilation: int, pads: tuple[int, int]) -> None:
    """Few channels and a single column: against the reference of the operator."""
    rng = np.random.default_rng(stride)
    weights = numpy_helper.from_array(rng.normal(size=(5, 3, 4, 1)).astype(np.float32), "w")
    given = {"strides": [stride, 1], "dilations": [dilation, 1], "pads": [pads[0], 0, pads[1], 0]}
    node = helper.make_node("Conv", ["x", "w"], ["y"], **given)  # type: ignore[arg-type]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 20, 1]), ("y", None))]
    graph = helper.make_graph([node], "column", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    program = nnac.compile(model, "nna8", "random", check=True).program
    (conv,) = (i for i in program.instructions if isinstance(i, isa.Conv))
    assert conv.kernel_h == 4 and _along_a_row(conv).kernel_w == 4
    found, expected = both_ways(program)
    np.testing.assert_array_equal(found[program.outputs[0]], expected[program.outputs[0]])
