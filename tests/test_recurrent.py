"""Recurrent layers end to end: ONNX to bits, loops in the blob, weights below eight bits, states across calls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac import compiler
from nnac.border import quantized
from nnac.compare import decibel
from nnac.disasm import disassemble
from nnac.emulator import Emulator
from nnac.errors import ModelError, ProgramError
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare
from nnac.innerstates import inner_states
from nnac.isa import Engine, Load
from nnac.isa.stream import decode, encode
from nnac.ops import Lstm, Recurrent
from nnac.passes.emit import emit
from nnac.passes.place import place
from nnac.passes.tile import tile
from nnac.program import KnownAnswer, Program, dumps, loads
from nnac.report.account import weight_account
from nnac.session import Session, State
from nnac.targets import Target, load_target, with_settings
from nnac.timing import simulate
from nnac.types import Array
from nnac.validate import validate
from nnac.weights.moments import second_moments
from tests.graphs import graph_of
from tests.test_models import path_of, samples_of

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
OTHERS = ("HardSigmoid", "Softsign", "Sigmoid", "Tanh")


@dataclass(frozen=True, slots=True)
class Layer:
    """One ONNX node and all that it allows.

    Attributes:
        initial: "none", "input" or "constant".
        functions: of one direction; empty for ONNX's defaults.
        option: linear_before_reset, input_forget.
    """

    kind: str = "LSTM"
    time: int = 5
    batch: int = 1
    width: int = 6
    hidden: int = 12
    direction: str = "forward"
    layout: int = 0
    initial: str = "none"
    bias: bool = True
    lengths: bool = False
    peepholes: bool = False
    clip: float = 0.0
    functions: tuple[str, ...] = ()
    option: int = 0
    seed: int = 0

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def arrays(self) -> dict[str, Array]:
        """Return the stored tensors, by the names of ONNX's inputs."""
        rng, rows, d = np.random.default_rng(self.seed), GATES[self.kind] * self.hidden, self.directions
        shapes: dict[str, tuple[int, ...]] = {"W": (d, rows, self.width), "R": (d, rows, self.hidden)}
        shapes |= {"B": (d, 2 * rows)} if self.bias else {}
        shapes |= {"P": (d, 3 * self.hidden)} if self.peepholes else {}
        shapes |= dict.fromkeys(self.states(), self.state_shape()) if self.initial == "constant" else {}
        found: dict[str, Array] = {
            name: (np.tanh(rng.normal(size=shape)) / np.sqrt(shape[-1] if name in "WR" else 2)).astype(np.float32)
            for name, shape in shapes.items()
        }
        return found | ({"lengths": np.full(self.batch, self.time, np.int32)} if self.lengths else {})

    def states(self) -> tuple[str, ...]:
        return ("h_in", "c_in") if self.kind == "LSTM" else ("h_in",)

    def state_shape(self) -> tuple[int, ...]:
        sides = (self.batch, self.directions) if self.layout else (self.directions, self.batch)
        return (*sides, self.hidden)

    def inputs(self) -> dict[str, tuple[int, ...]]:
        x = (self.batch, self.time, self.width) if self.layout else (self.time, self.batch, self.width)
        return {"x": x} | (dict.fromkeys(self.states(), self.state_shape()) if self.initial == "input" else {})

    def attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {"hidden_size": self.hidden, "direction": self.direction}
        found |= {"layout": 1} if self.layout else {}
        found |= {"clip": self.clip} if self.clip else {}
        found |= {"activations": list(self.functions) * self.directions} if self.functions else {}
        option = {"LSTM": "input_forget", "GRU": "linear_before_reset"}.get(self.kind)
        return found | ({option: 1} if option and self.option else {})

    def model(self) -> onnx.ModelProto:
        """Return the node as a model."""
        stored, inputs = self.arrays(), self.inputs()
        names = [*("x", "W", "R", "B", "lengths"), *self.states(), *(["P"] if self.kind == "LSTM" else [])]
        made = ["y", *(name.replace("in", "out") for name in self.states())]
        node = helper.make_node(
            self.kind, [n if n in stored or n in inputs else "" for n in names], made, "cells", **self.attributes()
        )
        d, h = self.directions, self.hidden
        y = (self.batch, self.time, d, h) if self.layout else (self.time, d, self.batch, h)
        results = {"y": y} | dict.fromkeys(made[1:], self.state_shape())
        graph = helper.make_graph(
            [node],
            "recurrent",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in results.items()],
            [numpy_helper.from_array(a, n) for n, a in stored.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def samples(self, count: int = 3, only: tuple[str, ...] = ()) -> list[dict[str, Array]]:
        rng, inputs = np.random.default_rng(self.seed + 1), self.inputs()
        return [
            {n: np.tanh(rng.normal(size=s)).astype(np.float32) for n, s in inputs.items() if not only or n in only}
            for _ in range(count)
        ]


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Return a random node of anything that ONNX allows and onnxruntime runs."""
    kind = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    function, gate = st.sampled_from(OTHERS), st.sampled_from(OTHERS[::2])  # others make nets that run away
    return Layer(
        kind,
        time=draw(st.integers(1, 8)),
        batch=draw(st.integers(1, 3)),
        width=draw(st.integers(1, 9)),
        hidden=draw(st.integers(1, 20)),
        direction=draw(st.sampled_from(["forward", "reverse", "bidirectional"])),
        layout=draw(st.integers(0, 1)),
        initial=draw(st.sampled_from(["none", "input", "constant"])),
        bias=draw(st.booleans()),
        lengths=draw(st.booleans()),
        peepholes=kind == "LSTM" and draw(st.booleans()),
        clip=draw(st.sampled_from([0.0, 0.0, 1.5])),
        functions=(draw(gate), *(draw(function) for _ in FUNCTIONS[kind][1:])) if draw(st.booleans()) else (),
        option=draw(st.integers(0, 1)),
        seed=draw(st.integers(0, 2**16)),
    )


def machine(name: str = "nna8", **sizes: int) -> Target:
    """Return a target with other memory sizes in bytes."""
    return with_settings(load_target(name), {f"memory.{memory}.bytes": size for memory, size in sizes.items()})


MACHINES = (
    machine(),
    machine("nna8-tiny"),
    machine("nna8-pow2"),
    machine(sram=4096, weights=4096),
    machine(weights=5120),
)


def compiled(layer: Layer, target: Target | None = None, spec: Any = None) -> Program:
    """Return the checked program of a layer: its bits are those of the reference in several orders."""
    model, samples = layer.model(), layer.samples()
    return nnac.compile(model, target or machine(), samples, states={}, weights=spec, check=True).program


# -- meaning -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(layers())
def test_the_float_net_is_onnxruntimes(layer: Layer) -> None:
    """What calibration takes for the inside of a layer is what onnxruntime computes, clips and peepholes included."""
    model = prepare(layer.model())
    graph = compiler.float_graph(model, {})
    names = sorted({value.origin.name for value in graph.values.values() if value.origin})
    values = FloatModel(model, names).run(layer.samples(1)[0])
    inner = inner_states(graph, values)
    hidden = [inner[node.output] for node in graph.nodes if isinstance(node.op, Recurrent)]
    y = values["y"].transpose(1, 2, 0, 3) if layer.layout else values["y"]
    np.testing.assert_allclose(np.stack(hidden, 1), y, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(layers(), st.integers(0, len(MACHINES) - 1))
def test_random_layers(layer: Layer, place: int) -> None:
    """Every execution has the same bits, and they stand for the float net: scales of int8 alone cost up to 20 dB."""
    target = MACHINES[place]
    program = compiled(layer, target)
    sample = layer.samples()[0]
    twin = FloatModel(prepare(layer.model())).run(sample)
    got = Emulator(program).run(quantized(program, sample))
    for tensor in map(program.tensor, program.outputs):
        assert tensor.origin is not None and tensor.type.quant is not None
        real = tensor.origin.to_onnx(tensor.type.quant.dequantize(got[tensor.name]))
        exact = twin[tensor.onnx_name].astype(np.float64)
        error = exact - real
        if exact.size >= 16 and not target.arithmetic.power_of_two_scales:
            assert decibel(float((exact**2).sum()), float((error**2).sum())) > 20, tensor.onnx_name
        assert np.abs(error).max() <= 0.15 * max(1.0, float(np.abs(exact).max())), tensor.onnx_name


def test_a_state_beyond_its_integers_is_refused() -> None:
    """A GRU's state is within one, and so are its initial values; gates of a plain net with relu reach eight."""
    layer = Layer("GRU", initial="input")
    loud = [{name: 3 * array for name, array in sample.items()} for sample in layer.samples()]
    with pytest.raises(ModelError, match=r"'cells' \(Gru\): 'h_in' reaches [12]\.\d+, allowed is 1 at most"):
        nnac.compile(layer.model(), machine(), loud, states={})
    layer = Layer("RNN", width=300, functions=("Relu",))
    with pytest.raises(ModelError, match=r"\(Rnn\): .* reaches \d+\.\d+, allowed is 7\.99976 at most"):
        nnac.compile(layer.model(), machine(), [{"x": np.full((5, 1, 300), 9, np.float32)}])


# -- loops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("weights", [131072, 9216, 5120])
def test_sequences_are_loops(kind: str, weights: int) -> None:
    """The blob holds one body for all steps but the first, whether the weights fit the weight buffer or not."""
    lengths = {}
    for time in (9, 90):
        program = compiled(Layer(kind, time, hidden=44, width=8), machine(weights=weights))
        assert [loop.count for loop in program.loops] == [time - 1]
        lengths[time] = len(encode(program.instructions, program.loops))
        assert decode(encode(program.instructions, program.loops)) == (program.instructions, program.loops)
        assert dumps(loads(dumps(program))) == dumps(program)
    assert lengths[9] == lengths[90]


def _body_loads(program: Program) -> list[Load]:
    loop = program.loops[0]
    return [i for i in program.instructions[loop.start : loop.start + loop.body] if isinstance(i, Load)]


def test_what_fits_stays_in_the_weight_buffer() -> None:
    """A step loads no weights if all fit; else as few as do not, and never the cell's tables."""
    layer = Layer(time=6, hidden=60, width=8)  # 14,400 bytes of recurrent weights, 2,160 of biases, 3,088 of tables
    assert not _body_loads(compiled(layer, machine(weights=32768)))
    moved = {}
    for weights in (16384, 12288, 8192):
        program = compiled(layer, machine(weights=weights))
        moved[weights] = sum(load.source_bytes for load in _body_loads(program))
        tables = [i.source for i in program.instructions if isinstance(i, Load) and i.source_bytes == 3 * 513 * 2]
        assert len(tables) == 1
    assert 0 < moved[16384] < moved[12288] < moved[8192] <= 14400 + 2160


def test_weights_come_while_the_array_works() -> None:
    """In the steady state of a loop the decoder loads ahead, over the border between two steps too."""
    program = compiled(Layer(time=12, hidden=96, width=8), machine(weights=16384))
    loop, timeline = program.loops[0], simulate(program)
    last = loop.start + loop.body * (loop.count - 1)
    first = next(n for n in range(last, last + loop.body) if isinstance(program.instructions[n], Load))
    array = [n for n in range(last - loop.body, last) if program.instructions[n].engine == Engine.MAC]
    assert timeline.spans[first].start < timeline.spans[array[-1]].end


def test_a_damaged_loop_is_refused_or_harmless() -> None:
    """Every third bit flipped of the instructions of a blob with a loop is found, or gives a program that runs."""
    program = compiled(Layer("RNN", time=4, hidden=4, width=3), machine("nna8-tiny"))
    stream, count = encode(program.instructions, program.loops), len(program.instructions)
    refused = 0
    for bit in range(0, 8 * len(stream), 3):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            instructions, loops = decode(bytes(damaged), count)
            survivor = validate(replace(program, instructions=instructions, loops=loops))
        except ProgramError:
            refused += 1
            continue
        inputs = {name: np.zeros(program.tensor(name).type.shape, np.int8) for name in program.inputs}
        assert set(Emulator(survivor).run(inputs, order=range(count))) == set(program.outputs)
    assert refused > len(stream)


def test_damaged_blobs_with_a_loop_are_refused() -> None:
    """A file with any byte changed says so: a digest covers it."""
    blob = dumps(compiled(Layer("RNN", time=4, hidden=4, width=3), machine("nna8-tiny")))
    for at in range(0, len(blob), 7):
        damaged = bytearray(blob)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(ProgramError):
            loads(bytes(damaged))


# -- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [4, "4:lloyd_max:gptq", "auto:30dB"])
@pytest.mark.parametrize("layer", [Layer(), Layer("GRU"), Layer("GRU", option=1), Layer("RNN"), Layer(time=1)])
def test_recurrent_weights_are_encoded(layer: Layer, spec: Any) -> None:
    """Recurrent weights get tables like all others, bits and order checked."""
    layer = replace(layer, hidden=24, width=12, direction="bidirectional")
    rows = {row.name: row for row in weight_account(compiled(layer, spec=spec))}
    assert [name for name in rows if "(recurrent gates)" in name] and len(rows) == 4
    for row in rows.values():
        assert row.levels <= (16 if spec != "auto:30dB" else 127)
        assert row.sqnr_db is not None and row.sqnr_db > 12


def test_a_real_network_with_recurrent_weights_of_four_bits(assets: Path) -> None:
    """Every layer of the keyword spotter is encoded, its program checked bit for bit."""
    name = "arm_kws_basic_lstm_s_native"
    rows = weight_account(
        nnac.compile(path_of(assets, name), "nna8", samples_of(assets, name), weights=4, check=True).program
    )
    assert {row.levels <= 16 for row in rows} == {True}
    assert any("recurrent" in row.name for row in rows)


@pytest.mark.parametrize("layer", [Layer(), Layer("GRU"), Layer("GRU", option=1), Layer(direction="reverse")])
def test_moments_are_of_what_the_weights_multiply(layer: Layer) -> None:
    """Hidden values one step late, initial state first; masked by the reset gate where that acts before."""
    layer = replace(layer, initial="constant", width=5, hidden=4)
    model = prepare(layer.model())
    graph, sample = compiler.float_graph(model), layer.samples(1)
    y = FloatModel(model).run(sample[0])["y"][:, 0].astype(np.float64)
    y = y[::-1] if layer.direction == "reverse" else y
    before = np.concatenate([layer.arrays()["h_in"], y[:-1]]).reshape(-1, 4)
    found = second_moments(model, graph, sample, ["cells"])["cells"]
    np.testing.assert_allclose(found[0], before.T @ before / len(before), atol=1e-6)
    assert len(found) == (3 if layer.kind == "GRU" and not layer.option else 1)
    assert len(found) == 1 or np.trace(found[2]) < np.trace(found[0])


# -- states across calls -------------------------------------------------------------------------------------------


def _lowered(layer: Layer, ranges: Any) -> Program:
    graph = compiler.float_graph(prepare(layer.model()))
    return compiler.lower(graph, ranges, machine(), "ranges of the sequence")


@pytest.mark.parametrize("layer", [Layer(), Layer("GRU"), Layer("GRU", option=1), Layer("RNN", hidden=40)])
def test_a_sequence_is_its_steps(layer: Layer) -> None:
    """A thousand steps in one call and in a thousand calls give the same bits, outputs and states."""
    sequence = replace(layer, time=1000, initial="input")
    sample = sequence.samples(1)[0] | {n: np.zeros(sequence.state_shape(), np.float32) for n in sequence.states()}
    graph = compiler.float_graph(prepare(sequence.model()))
    ranges, _ = compiler._calibrate(prepare(sequence.model()), graph, [{"x": sample["x"]}], None, "minmax", None)
    whole, step = (Session(_lowered(each, ranges)) for each in (sequence, replace(sequence, time=1)))
    at_once = whole.step({"x": sample["x"]}, raw=True)
    singly = step.run({"x": sample["x"][:, None]}, raw=True)
    np.testing.assert_array_equal(singly["y"][:, 0], at_once["y"])
    for name, array in step.state().arrays.items():
        np.testing.assert_array_equal(whole.state().arrays[name], array)


def streaming() -> Program:
    layer = Layer(time=1, initial="input")
    return nnac.compile(layer.model(), "nna8", layer.samples(8, only=("x",))).program


MISUSE: list[tuple[dict[str, Any], str]] = [
    ({}, "'x' is missing"),
    ({"x": np.zeros((2, 1, 6), np.float32)}, "'x'.*shape"),
    ({"x": np.zeros((1, 1, 6), np.complex64)}, "'x'"),
    ({"x": np.full((1, 1, 6), np.nan, np.float32)}, "'x'.*finite"),
    ({"x": np.zeros((1, 1, 6), np.float32), "h_in": np.zeros((1, 2, 12), np.float32)}, "'h_in'.*shape"),
    ({"x": np.zeros((1, 1, 6), np.float32), "z": np.zeros(1)}, "'z'"),
]


@pytest.mark.parametrize(("inputs", "words"), MISUSE, ids=range(len(MISUSE)))
def test_a_wrong_step_leaves_the_states_alone(inputs: dict[str, Any], words: str) -> None:
    """The message names the input; the next step goes on as if nothing had been."""
    session = Session(streaming())
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 1, 6)
    session.step({"x": x})
    before = session.state().arrays
    with pytest.raises(ModelError, match=words):
        session.step(inputs)
    assert all(np.array_equal(session.state().arrays[name], array) for name, array in before.items())
    assert any(array.any() for array in before.values())


def test_states_of_others_are_refused(tmp_path: Path) -> None:
    """A state of another program, of other shapes or dtypes, or a damaged file: refused, the session unharmed."""
    session, x = Session(streaming()), np.ones((1, 1, 6), np.float32)
    session.step({"x": x})
    mine = session.state()
    other = nnac.compile(
        Layer(time=1, initial="input", seed=9).model(), "nna8", Layer(time=1).samples(4), states=None
    ).program
    wrong = {
        "another program": Session(other).state(),
        "is missing": State(mine.program, {"h_in": mine.arrays["h_in"]}),
        "is unknown": State(mine.program, {**mine.arrays, "z": np.zeros(1, np.int8)}),
        "expected int8": State(mine.program, {**mine.arrays, "h_in": mine.arrays["h_in"].astype(np.int16)}),
        r"expected int16 \(1, 1, 12\)": State(mine.program, {**mine.arrays, "c_in": mine.arrays["c_in"][..., :3]}),
    }
    for words, state in wrong.items():
        with pytest.raises(ProgramError, match=words):
            session.load_state(state)
        assert all(np.array_equal(session.state().arrays[name], array) for name, array in mine.arrays.items())
    path = tmp_path / "state.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(ProgramError, match=r"state\.npz"):
        State.load(path)


def test_states_are_saved_and_taken_up(tmp_path: Path) -> None:
    """A saved state goes on where it was, in another session; `reset` begins again."""
    program, path = streaming(), tmp_path / "state.npz"
    xs = np.random.default_rng(0).normal(size=(9, 1, 1, 6)).astype(np.float32)
    session = Session(program)
    whole = session.run({"x": xs}, raw=True)["y"]
    session.reset()
    first = session.run({"x": xs[:4]}, raw=True)["y"]
    session.state().save(path)
    resumed = Session(loads(dumps(program)))
    resumed.load_state(State.load(path))
    second = resumed.run({"x": xs[4:]}, raw=True)["y"]
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)


def test_a_listing_shows_the_first_round_and_what_the_others_add() -> None:
    """As many lines for a thousand steps as for ten."""
    rng = np.random.default_rng(0)
    sample = next(s for s in (Lstm.sample(rng) for _ in range(1000)) if s.output.shape[0] >= 5)
    machine = load_target("nna8")
    program = emit(place(tile(graph_of(sample), machine, machine.memory["sram"].bytes)), "test", KnownAnswer(0, {}))
    (loop,) = program.loops
    lines = list(disassemble(program))
    assert f"; loop of {loop.count} rounds, {loop.body} instructions each" in lines
    assert sum(not line.startswith(";") for line in lines) == len(program.instructions) - loop.body * (loop.count - 1)
    assert any(line.startswith(f";   each round, {loop.start}:") and "source" in line for line in lines)
    wrong = replace(program, loops=(replace(loop, count=loop.count + 1),))
    with pytest.raises(ProgramError, match="loop at instruction"):
        validate(wrong)
