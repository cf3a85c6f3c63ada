"""Recurrent layers end to end: ONNX to bits, loops in the blob, weights below eight bits, states across calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac import compiler
from nnac.compare import decibel
from nnac.emulator import Emulator
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare
from nnac.innerstates import inner_states
from nnac.ops import Recurrent
from nnac.program import Program
from nnac.targets import Target, load_target, with_settings
from nnac.types import Array

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
    function = st.sampled_from(OTHERS)
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
        functions=tuple(draw(function) for _ in FUNCTIONS[kind]) if draw(st.booleans()) else (),
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
    """Every execution has the same bits, and they stand for the float net."""
    target = MACHINES[place]
    program = compiled(layer, target)
    sample = layer.samples()[0]
    twin = FloatModel(prepare(layer.model())).run(sample)
    got = Emulator(program).run(_quantized(program, sample))
    for tensor in map(program.tensor, program.outputs):
        assert tensor.origin is not None and tensor.type.quant is not None
        real = tensor.origin.to_onnx(tensor.type.quant.dequantize(got[tensor.name]))
        exact = twin[tensor.onnx_name].astype(np.float64)
        error = exact - real
        if exact.size >= 16 and not target.arithmetic.power_of_two_scales:
            assert decibel(float((exact**2).sum()), float((error**2).sum())) > 20, tensor.onnx_name
        assert np.abs(error).max() <= 0.15 * max(1.0, float(np.abs(exact).max())), tensor.onnx_name


def _quantized(program: Program, sample: dict[str, Array]) -> dict[str, Array]:
    from nnac.border import quantized

    return quantized(program, sample)
