"""Host segments: where models are cut, that every execution agrees on them, what they cost, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac import isa, reference, segment
from nnac.calibration import calibrate, random_samples
from nnac.cli import cli
from nnac.compiler import float_graph, input_shapes, lower
from nnac.emulator import Emulator
from nnac.errors import ModelError, NnacError, ProgramError, TargetError
from nnac.frontend import prepare
from nnac.graph import Graph
from nnac.isa import Engine
from nnac.ops import Host
from nnac.ops.host import WHOLE_NUMBERS
from nnac.orders import adversarial_order, completion_order
from nnac.program import Program, dumps, loads
from nnac.report import screen, text
from nnac.report.host import hosted
from nnac.targets import load_target
from nnac.timing import simulate, what_if
from nnac.types import Array, Quant
from nnac.validate import validate
from tests.graphs import with_memory
from tests.nets import RandomNet

WEIGHT = np.random.default_rng(3).normal(0, 0.2, (4, 4, 3, 3)).astype(np.float32)
DET = "c = Det (a)"
"""An operator that no accelerator has."""


def net(
    lines: str,
    inputs: Mapping[str, Sequence[int]] | None = None,
    outputs: str = "y",
    types: Mapping[str, int] | None = None,
    **constants: Any,
) -> onnx.ModelProto:
    """Return a model of nodes in ONNX's text syntax; tensors are float32 unless `types` says else."""
    kinds, shapes = types or {}, inputs or {"x": (1, 4, 6, 6)}
    nodes = [onnx.parser.parse_node(line) for line in lines.strip().splitlines()]
    for node in nodes:
        node.name = node.output[0]
    arrays = {"w": WEIGHT} | constants
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), list(s)) for n, s in shapes.items()],
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), None) for n in outputs.split()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items() if any(n in x.input for x in nodes)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def program_of(model: onnx.ModelProto, **options: Any) -> Program:
    """Return the checked program of a model."""
    return nnac.compile(model, calibration="random", check=True, **options).program


def cuts(model: onnx.ModelProto, forced: str = "") -> list[set[str]]:
    """Return the names of the nodes of each host segment, those in `forced` (single letters) sent there."""
    graph = float_graph(prepare(model), host=True, forced=lambda use: use.name in forced.split())
    found = [node.op for node in graph.nodes if isinstance(node.op, Host)]
    return [{node.name for node in segment.host_nodes(op.model)} for op in found]


SMALL = net(
    """
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    c = Det (a)
    d = Unsqueeze (c, axes)
    e = Mul (d, a)
    y = Conv <pads = [1, 1, 1, 1]> (e, w)
    """,
    axes=np.array([2, 3]),
)


# -- executions agree ----------------------------------------------------------------------------------------------


def lowered(model: onnx.ModelProto, forced: Callable[[Any], bool], target: Any, width: str) -> tuple[Graph, Program]:
    """Return float graph and program of a model with some operators forced onto the host."""
    prepared = prepare(model)
    graph = float_graph(prepared, host=True, forced=forced)
    names = sorted({v.origin.name for v in graph.values.values() if v.origin})
    ranges = calibrate(prepared, random_samples(input_shapes(graph), 2), names)
    return graph, lower(graph, ranges, target, "random", check=True, activations=width)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_cuts_keep_every_bit(seed: int) -> None:
    """Random operators on the host: reference, program, completion and adversarial order agree; so does the file."""
    rng = np.random.default_rng(seed)
    model = RandomNet(rng).model(int(rng.integers(2, 9)))
    chosen = {node.output[0] for node in model.graph.node if rng.random() < 0.4}
    base = load_target(str(rng.choice(["nna8", "nna8-tiny"])))
    machine = with_memory(base, sram=int(rng.choice([16384, base.memory["sram"].bytes])))
    width = str(rng.choice(["int8", "int8", "int16"]))
    _, program = lowered(model, lambda use: bool(chosen & set(use.outputs)), machine, width)
    again = validate(loads(dumps(program)))
    assert again.segments == program.segments and dumps(again) == dumps(program)
    x = random_inputs_of(program, rng)
    expected = Emulator(program).run(x)
    orders = [completion_order(simulate(program)), *(adversarial_order(program.instructions, s) for s in range(3))]
    for order in orders:
        found = Emulator(again).run(x, order=order)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def random_inputs_of(program: Program, rng: np.random.Generator) -> dict[str, Array]:
    """Return random integers for a program's inputs."""
    return {name: reference.whole_range(rng, program.tensor(name).type) for name in program.inputs}


def test_the_host_does_what_its_definition_says() -> None:
    """Dequantize, run in float, quantize: against numpy."""
    program = program_of(net("a = Conv <pads = [1, 1, 1, 1]> (x, w)\ny = Det (a)"))
    x = random_inputs_of(program, np.random.default_rng(0))
    seen = Emulator(program).trace(x)
    layer = next(layer for layer in program.layers if layer.op == "Host")
    source, result = program.tensor(layer.inputs[0]), program.tensor("y")
    assert source.type.quant is not None and result.type.quant is not None
    real = np.linalg.det(source.type.quant.dequantize(seen[source.name]).astype(np.float64))
    steps = seen["y"] - result.type.quant.quantize(real).astype(np.int64)
    assert np.abs(steps).max() <= 1 and (steps == 0).mean() > 0.7


def test_what_is_no_number_becomes_zero() -> None:
    """Logarithms of negative numbers, of zero and of one: real zero, the lowest value, real zero."""
    model = net("y = Log (x)", {"x": (3,)})
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 3
    quant = Quant(0.5, -3)
    data = model.SerializeToString(deterministic=True)
    (found,) = segment.execute(data, [np.array([-4, 0, 2], np.int8)], [Quant(0.5)], [quant])
    assert found.tolist() == [-3, -128, -3]


def test_states_live_across_the_border() -> None:
    """A state that the host updates is kept from step to step."""
    lines = "s = Add (x, h)\nc = Det (s)\nd = Unsqueeze (c, axes)\nm = Mul (d, s)\nhn = Tanh (m)\ny = Relu (hn)"
    model = net(lines, {"x": (1, 2, 3, 3), "h": (1, 2, 3, 3)}, "y hn", axes=np.array([2, 3]))
    compiled = nnac.compile(model, calibration="random", check=True)
    assert compiled.program.states and compiled.program.segments
    session, x = compiled.session(), {"x": np.random.default_rng(2).normal(size=(1, 2, 3, 3)).astype(np.float32)}
    outputs = [session.step(x)["y"] for _ in range(3)]
    assert not np.array_equal(outputs[0], outputs[1])
    session.reset()
    assert np.array_equal(session.step(x)["y"], outputs[0])


def test_diff_works_across_the_border() -> None:
    """Against float: every output is close, host segments are rows with an error of their own."""
    samples = list(random_samples({"x": (1, 4, 6, 6)}, 3))
    compiled = nnac.compile(SMALL, calibration=samples)
    found = nnac.diff(SMALL, compiled, samples)
    assert min(found.outputs().values()) > 20
    assert any(row.op == "Host" and row.local_sqnr > 20 for row in found.rows)


# -- where a model is cut ------------------------------------------------------------------------------------------

DIAMOND = net("a = Relu (x)\nb = Tanh (a)\nc = Sigmoid (a)\ny = Add (b, c)")


@pytest.mark.parametrize(
    ("forced", "expected"),
    [
        ("a b y", [{"a", "b"}, {"y"}]),
        ("b c", [{"b", "c"}]),
        ("a b c y", [{"a", "b", "c", "y"}]),
        ("a y", [{"a"}, {"y"}]),
        ("b y", [{"b", "y"}]),
        ("a", [{"a"}]),
        ("", []),
    ],
)
def test_diamonds(forced: str, expected: list[set[str]]) -> None:
    """No path leaves a segment and comes back: what the NNA runs in between stays on the NNA."""
    assert sorted(map(sorted, cuts(DIAMOND, forced))) == sorted(map(sorted, expected))


def test_segments_are_as_few_as_the_longest_path_demands() -> None:
    """Branches whose host operators stand at different depths share segments; so do independent branches."""
    lines = "a = Tanh (x)\nb = Relu (a)\nc = Tanh (b)\nd = Tanh (x)\ne = Relu (d)\ny = Add (c, e)\nz = Tanh (x)"
    assert [sorted(names) for names in cuts(net(lines, outputs="y z"), "a d z c")] == [["a", "d", "z"], ["c"]]


def test_reshapes_between_host_operators_go_along() -> None:
    """A reshape does not cut a segment in two; one that the NNA reads too does not go."""
    lines = "a = Det (x)\nb = Unsqueeze (a, axes)\nc = Det (b)\ny = Relu (c)"
    assert cuts(net(lines, axes=np.array([2, 3]))) == [{"a", "b", "c"}]
    both = net(f"{lines}\nz = Relu (b)", outputs="y z", axes=np.array([2, 3]))
    assert cuts(both) == [{"a"}, {"c"}]


def test_indices_stay_inside() -> None:
    """An int64 between two host operators is no port; the model's own integers are, as int16."""
    model = net("a = ArgMax <axis = 1> (x)\nb = Cast <to = 1> (a)\ny = Relu (b)", outputs="y a", types={"a": 7})
    program = program_of(model)
    (call,) = [i for i in program.instructions if isinstance(i, isa.Host)]
    assert program.tensor("a").type.quant == WHOLE_NUMBERS and len(call.targets) == 2
    x = np.random.default_rng(1).normal(size=(1, 4, 6, 6)).astype(np.float32)
    compiled = nnac.compile(model, calibration=[{"x": x}])
    found = compiled.run({"x": x})
    assert np.mean(found["a"] == x.argmax(1, keepdims=True)) > 0.9 and np.all(found["a"] == np.rint(found["a"]))


def test_masks_are_made_again_where_they_are_read() -> None:
    """A bool that two segments read, with NNA work in between: its maker is repeated, the work stays on the NNA."""
    model = net(
        """
        m = IsInf (x)
        a = Where (m, x, z)
        b = Conv <pads = [1, 1, 1, 1]> (a, w)
        y = Where (m, b, z)
        """,
        z=np.float32(0.5),
    )
    assert cuts(model) == [{"m", "a"}, {"m", "y"}]
    program = program_of(model)
    assert any(isinstance(i, isa.Conv) for i in program.instructions)


def test_integer_inputs() -> None:
    """Indices come in as they are; what int16 does not hold is refused; so is what the host refuses."""
    table = np.random.default_rng(5).normal(size=(7, 8)).astype(np.float32)
    model = net("a = Gather (t, i)\ny = Relu (a)", {"i": (1, 5)}, types={"i": 7}, t=table)
    ids = np.array([[0, 6, 3, 3, 1]], np.int64)
    compiled = nnac.compile(model, calibration=[{"i": ids}], check=True)
    found = compiled.run({"i": ids})["y"]
    assert np.abs(found - np.maximum(table[ids], 0)).max() < 0.02
    with pytest.raises(ModelError, match="integers outside of -32768 to 32767"):
        compiled.run({"i": ids + 40000})
    with pytest.raises(NnacError, match="onnxruntime cannot run the model"):
        compiled.run({"i": ids + 7})


# -- what is refused -----------------------------------------------------------------------------------------------


def test_forbid() -> None:
    """`host = "forbid"` lists all operators with their reasons."""
    with pytest.raises(ModelError, match="Det 'c': the operator is not supported"):
        nnac.compile(SMALL, calibration="random", host="forbid")
    with pytest.raises(ModelError, match="host 'maybe': unknown; allowed: allow, forbid"):
        nnac.compile(SMALL, calibration="random", host="maybe")


def test_operators_that_are_sent_there(tmp_path: Path) -> None:
    """By name or by type; one that the model has not is an error."""
    compiled = nnac.compile(SMALL, calibration="random", host=["Conv"])
    assert {node.op: node.reason for node in segment.host_nodes(compiled.program.segments[0])}["Conv"] == "as asked for"
    with pytest.raises(ModelError, match="no operator 'Gru', by name or type"):
        nnac.compile(SMALL, calibration="random", host=["Conv", "Gru"])
    (tmp_path / "m.onnx").write_bytes(SMALL.SerializeToString())
    command = ["compile", str(tmp_path / "m.onnx"), "--calibrate", "random", "-o", str(tmp_path / "m.nna")]
    done = CliRunner().invoke(cli, [*command, "--host", "Conv"])
    assert done.exit_code == 0 and "as asked for" in done.output


def test_forbid_on_the_command_line(tmp_path: Path) -> None:
    """Exit code 1 with reasons, or the screen with reasons and the share of the latency."""
    (tmp_path / "m.onnx").write_bytes(SMALL.SerializeToString())
    command = ["compile", str(tmp_path / "m.onnx"), "--calibrate", "random", "-o", str(tmp_path / "m.nna")]
    failed = CliRunner().invoke(cli, [*command, "--host", "forbid"])
    assert failed.exit_code == 1 and "the operator is not supported" in failed.output
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "of the latency" in done.output and "Det" in done.output


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a = RandomNormalLike (x)\ny = Add (a, x)", "its results are random"),
        ("y = foreign.Thing (x)", "no operators of domain 'foreign'"),
    ],
)
def test_what_the_host_cannot_run_either(lines: str, words: str) -> None:
    """Both reasons are given."""
    model = net(lines)
    for node in model.graph.node:
        if "." in node.op_type:
            node.domain, node.op_type = node.op_type.split(".")
    with pytest.raises(ModelError, match=words):
        nnac.compile(model, calibration="random")


def test_a_machine_without_a_host() -> None:
    """The target says whether there is one; a blob with segments needs one."""
    machine = replace(load_target("nna8"), host=None)
    with pytest.raises(TargetError, match=r"no section \[host\]"):
        nnac.compile(SMALL, machine, "random")
    with pytest.raises(ProgramError, match=r"no section \[host\]"):
        validate(replace(program_of(SMALL), target=machine))


def hostile(change: Callable[[onnx.ModelProto], None]) -> bytes:
    """Return the segment of the small model after a change."""
    model = segment.parse(program_of(SMALL).segments[0])
    change(model)
    return bytes(model.SerializeToString(deterministic=True))


def _external(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="../secret")


HOSTILE: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "random": (lambda m: m.graph.node.append(helper.make_node("RandomNormal", [], ["r"], shape=[2])), "random"),
    "huge": (
        lambda m: m.graph.node.append(helper.make_node("RandomNormalLike", ["a"], ["r"], dtype=1)),
        "its results are random",
    ),
    "foreign": (lambda m: m.graph.node.append(helper.make_node("Mul", ["a", "a"], ["r"], domain="evil")), "evil"),
    "unknown": (lambda m: m.graph.node.append(helper.make_node("Nothing", ["a"], ["r"])), "no operator of ONNX"),
    "cycle": (lambda m: m.graph.node.insert(0, helper.make_node("Relu", ["c"], ["r"])), "before"),
    "missing": (lambda m: m.graph.node.append(helper.make_node("Relu", ["nobody"], ["r"])), "nothing makes"),
    "twice": (lambda m: m.graph.node.append(helper.make_node("Relu", ["a"], ["c"])), "exists already"),
    "shape": (lambda m: _set(m.graph.output[0], 7), "it says"),
    "large": (lambda m: _set(m.graph.output[0], 1 << 40), "no float32 of a fixed shape"),
    "negative": (lambda m: _set(m.graph.output[0], -1), "no float32 of a fixed shape"),
    "type": (
        lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", TensorProto.INT64),
        "no float32 of a fixed shape",
    ),
    "group": (
        lambda m: m.graph.node.append(helper.make_node("Conv", ["a", "a"], ["r"], group=0)),
        "attribute group",
    ),
    "pads": (
        lambda m: m.graph.node.append(
            helper.make_node("MaxPool", ["a"], ["r"], kernel_shape=[1, 1], pads=[1 << 40] * 4)
        ),
        "attribute pads",
    ),
}


def _set(info: onnx.ValueInfoProto, side: int) -> None:
    info.type.tensor_type.shape.dim[0].dim_value = side


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_segments(case: str) -> None:
    """A blob's segments are checked before anything runs them."""
    change, words = HOSTILE[case]
    with pytest.raises(ProgramError, match=words):
        validate(replace(program_of(SMALL), segments=(hostile(change),)))


@pytest.mark.parametrize("data", [b"", b"\x00", b"not onnx", bytes(100), b"\xff" * 50])
def test_segments_of_noise(data: bytes) -> None:
    """Bytes that are no model are refused."""
    with pytest.raises(ProgramError, match="host segment 0"):
        validate(replace(program_of(SMALL), segments=(data,)))


def test_unknown_fields_are_refused() -> None:
    """A segment has one form: bytes that no reader sees are not carried along."""
    (data,) = program_of(SMALL).segments
    with pytest.raises(ProgramError, match="canonical"):
        validate(replace(program_of(SMALL), segments=(data + b"\xfa\x7f\x01x",)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": 1}, "runs host segment 1, but there are 1"),
        ({"source_counts": (143,)}, "other sizes"),
        ({"elements": 0}, "says that it costs"),
        ({"source_scales": (0x7F800000,)}, "scales are positive"),
        ({"source_scales": (0,)}, "scales are positive"),
        ({"source_zeros": (200,)}, "an int8 zero point"),
        ({"source_spaces": (1,)}, "sources are in"),
        ({"target_spaces": (3,)}, "targets in sram or dram"),
        ({"sources": (1 << 31,)}, "reads bytes"),
        ({"targets": ()}, "at least one operand and one result"),
        ({"target_bits": (12,)}, "tensors have 8 bits"),
    ],
)
def test_broken_calls(values: dict[str, Any], words: str) -> None:
    """A call that does not fit its segment or the memories is named."""
    program = program_of(SMALL)
    code = tuple(replace(i, **values) if isinstance(i, isa.Host) else i for i in program.instructions)
    with pytest.raises(ProgramError, match=words):
        validate(replace(program, instructions=code))


def test_flipped_bits() -> None:
    """A damaged file is refused, wherever the damage is."""
    data = dumps(program_of(SMALL))
    rng = np.random.default_rng(11)
    for place in rng.integers(0, len(data), 300):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(ProgramError):
            validate(loads(bytes(damaged)))


# -- cost ----------------------------------------------------------------------------------------------------------


def test_cost() -> None:
    """A call costs its overhead, its operations and its bytes; faster hosts are never slower."""
    program = program_of(SMALL)
    (call,) = [i for i in program.instructions if isinstance(i, isa.Host)]
    busy = simulate(program).busy[Engine.HOST]
    assert busy == 5000 + -(-call.operations // 4) + -(-call.nbytes // 4)
    for name, better in (("operations_per_cycle", 8), ("call_cycles", 100), ("bytes_per_cycle", 8)):
        faster = simulate(program, what_if(program, {f"host.{name}": better}))
        assert faster.cycles <= simulate(program).cycles and faster.busy[Engine.HOST] < busy
    rows = simulate(program).layers
    assert sum(row.critical for row in rows) == simulate(program).cycles
    assert next(row for row in rows if row.layer.op == "Host").bound == "host"


def test_products_are_counted() -> None:
    """MACs of matrix products, convolutions and dense layers on the host are those of the NNA."""
    lines = "a = Conv (x, w)\nf = Flatten (a)\ny = Gemm <transB = 1> (f, g)"
    model = net(lines, g=np.ones((5, 64), np.float32))
    graph = float_graph(prepare(model), host=True, forced=lambda use: True)
    (op,) = [node.op for node in graph.nodes if isinstance(node.op, Host)]
    assert segment.ports(op.model).macs == 4 * 4 * 4 * 4 * 9 + 64 * 5


def test_report_says_why() -> None:
    """The screen has the share and what the NNA would take; the table has every reason."""
    timeline = simulate(program_of(SMALL))
    assert "1 operator" in text(screen(timeline, 1)) or "operators" in text(screen(timeline, 1))
    assert "the operator is not supported" in " ".join(text(hosted(timeline)).split())
