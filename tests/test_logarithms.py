"""What a logarithm reads: knots by octaves, ranges that keep what is small, widths along the way to it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import nnac
from nnac.calibration import calibrate
from nnac.compiler import float_graph
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare
from nnac.isa import Lookup
from nnac.ops import Activation
from nnac.ops.activation import EVEN, OCTAVES
from nnac.ops.base import Bound
from nnac.passes.logarithms import behind
from nnac.targets import load_target
from nnac.types import Array, Quant, TensorType
from tests.nets import net

LOUD, QUIET = 1.0, 3e-4
"""Of frames: 70 dB apart."""


def spectrum(more: str = "", outputs: str = "y") -> onnx.ModelProto:
    """Return the net of log(1 + 2**20 |X|) of 32 samples in 16 bins."""
    phase = 2 * np.pi * np.outer(np.arange(32), np.arange(16)) / 32
    basis = np.concatenate([np.cos(phase), np.sin(phase)], axis=1) * np.hanning(32)[:, None]
    lines = """
        s = MatMul (x, w)
        re, im = Split <axis = 1> (s, halves)
        a = Mul (re, re)
        b = Mul (im, im)
        c = Add (a, b)
        m = Sqrt (c)
        n = Mul (m, factor)
        p = Add (n, one)
        y = Log (p)
        """
    constants = {"w": basis.astype(np.float32), "factor": np.float32(2**20), "one": np.float32(1)}
    return net(lines.strip() + more, {"x": (1, 32)}, outputs, halves=np.array([16, 16]), **constants)


def frames(seed: int, loudness: float, count: int = 40) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": (loudness * rng.normal(size=(1, 32))).astype(np.float32)} for _ in range(count)]


SAMPLES = frames(0, LOUD, 4) + frames(1, QUIET)


def test_auto_keeps_quiet_frames() -> None:
    """The logarithm of frames 70 dB under the peak is near to float (6.4 off without), and so is that of the loud."""
    model = spectrum()
    compiled, exact = nnac.compile(model, "nna8", SAMPLES, activations="auto", check=True), FloatModel(prepare(model))
    assert compiled.program.tensor("x").type.dtype == "int16"
    for loudness, allowed in ((QUIET, 0.6), (LOUD, 0.3)):
        errors = [compiled.run(each)["y"] - exact.run(each)["y"] for each in frames(2, loudness)]
        assert np.sqrt(np.mean(np.square(errors))) < allowed
    assert any(isinstance(i, Lookup) and i.octaves for i in compiled.program.instructions)


def test_diff_shows_the_layer_and_not_its_move() -> None:
    """The row of a tensor that is turned behind its layer is the layer's, so that its local error is not hidden."""
    model = net(
        "h = Conv (x, w)\na = Log (h)\ny = ReduceMean <axes = [1], keepdims = 0> (a)", {"x": (1, 2, 6)}, w=(4, 2, 1)
    )
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)) + np.float32(0.1), tensor.name))
    samples = [{"x": np.random.default_rng(k).uniform(0.1, 1, (1, 2, 6)).astype(np.float32)} for k in range(8)]
    rows = nnac.diff(model, nnac.compile(model, "nna8", samples), samples).rows
    assert {row.tensor: row.op for row in rows}["a"] == "Activation"


def test_what_others_read_is_not_cut() -> None:
    """With the magnitudes as an output, too, they and what they are made of keep their peaks."""
    peaks: dict[str, list[float]] = {"m": [], "s": []}
    for outputs in ("y", "y m"):
        program = nnac.compile(spectrum(outputs=outputs), "nna8", SAMPLES, activations="int16").program
        for name, found in peaks.items():
            quant = program.tensor(name).type.quant
            assert quant is not None
            found.append(quant.scale * quant.high)
    exact = FloatModel(prepare(spectrum(outputs="m s")))
    for name, (cut, whole) in peaks.items():
        loudest = max(float(np.abs(exact.run(sample)[name]).max()) for sample in SAMPLES)
        assert cut < 0.7 * loudest
        assert whole == pytest.approx(loudest, rel=1e-3)


def test_what_a_logarithm_comes_from() -> None:
    """Back through magnitude, moves and the layer up to the input; softplus written out is no such function."""
    graph = float_graph(prepare(spectrum()))
    assert set(graph.inputs) <= set(behind(graph))
    graph = float_graph(prepare(net("a = Exp (x)\nb = Add (a, one)\ny = Log (b)", {"x": (1, 4)}, one=np.float32(1))))
    assert not list(behind(graph))


def test_reach_is_where_the_function_is_nearest() -> None:
    """A function that is equal to its input wants the peak, a logarithm of mostly small values less."""
    model = net("y = Relu (x)", {"x": (1, 32)})
    functions = {"plain": lambda x: x, "log": lambda x: np.log1p(2**20 * np.abs(x))}
    found = {n: calibrate(model, SAMPLES, ["x"], through={"x": f})["x"] for n, f in functions.items()}
    peak = max(-found["plain"].low, found["plain"].high)
    assert found["plain"].reach == peak
    reach = found["log"].reach
    assert reach is not None and 0 < reach < 0.7 * peak
    assert calibrate(model, SAMPLES, ["x"])["x"].reach is None
    nowhere = calibrate(model, SAMPLES, ["x"], through={"x": lambda x: np.full_like(x, -np.inf)})["x"]
    assert nowhere.reach == peak


@pytest.mark.parametrize(
    ("kind", "scale", "places"),
    [("log", 2.0**-10, OCTAVES), ("sqrt", 1.0, OCTAVES), ("tanh", 2.0**-12, EVEN), ("identity", 1.0, EVEN)],
)
def test_knots_lie_where_the_function_bends(kind: str, scale: float, places: Array) -> None:
    """By octaves for what bends near zero, at equal distances for what does not."""
    x, y = (TensorType((4,), "int16", Quant(each, bits=16)) for each in (scale, max(scale, 2.0**-8)))
    assert Activation(kind).tables(Bound((x,), y, {}, load_target("nna8").arithmetic)).shape == (1, len(places))
