"""What networks for speech streams are made of, small: relative attention, gated convolution, running means."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest

import nnac
from nnac.compare import decibel
from nnac.compiled import CompiledModel
from nnac.compiler import float_graph
from nnac.errors import ModelError
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare
from nnac.ops import MatMul, Norm, Softmax
from nnac.types import Array, First
from tests.nets import net

CHUNK, LEFT, HEADS, WIDTH, KERNEL = 2, 4, 2, 8, 3
SEEN = LEFT + CHUNK
DISTANCES = SEEN + CHUNK - 1

ATTENTION = """
n = LayerNormalization (x, g, o)
q = MatMul (n, wq)
k = MatMul (n, wk)
v = MatMul (n, wv)
ks = Concat <axis = 1> (k_in, k)
vs = Concat <axis = 1> (v_in, v)
k_out = Slice (ks, start, end, one)
v_out = Slice (vs, start, end, one)
q4 = Reshape (q, heads)
k4 = Reshape (ks, heads)
v4 = Reshape (vs, heads)
qh = Transpose <perm = [0, 2, 1, 3]> (q4)
kh = Transpose <perm = [0, 2, 3, 1]> (k4)
vh = Transpose <perm = [0, 2, 1, 3]> (v4)
content = MatMul (qh, kh)
places = MatMul (qh, codes)
padded = Pad (places, pads)
rows = Reshape (padded, by_row)
later = Slice (rows, one, far, two)
flat = Reshape (later, by_distance)
place = Slice (flat, zero, keys, three)
sum = Add (content, place)
scores = Mul (sum, factor)
w = Softmax <axis = -1> (scores)
mixed = MatMul (w, vh)
m = Transpose <perm = [0, 2, 1, 3]> (mixed)
joined = Reshape (m, back)
y = MatMul (joined, wo)
r = Add (x, y)
"""

CONVOLUTION = """cn = LayerNormalization (r, g, o)
ct = Transpose <perm = [0, 2, 1]> (cn)
both = Conv (ct, gated)
a, b = Split <axis = 1> (both)
sb = Sigmoid (b)
glu = Mul (a, sb)
buffer = Concat <axis = 2> (c_in, glu)
c_out = Slice (buffer, chunk, far, two)
d = Conv <group = 8> (buffer, depthwise)
dt = Transpose <perm = [0, 2, 1]> (d)
dn = LayerNormalization (dt, g, o)
ds = Sigmoid (dn)
swish = Mul (dn, ds)
p = MatMul (swish, wo)
r2 = Add (r, p)
encoded = LayerNormalization (r2, g, o)
"""

MEAN = """
old = Mul (mean_in, keep)
new = Mul (x, share)
mean_out = Add (old, new)
y = Mul (x, mean_out)
"""


def conformer() -> onnx.ModelProto:
    """Return attention and convolution of one streaming block as exporters write them."""
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> Array:
        return np.asarray(rng.normal(size=shape) * shape[-2] ** -0.5, np.float32)

    width = WIDTH // HEADS
    shapes = {
        "x": (1, CHUNK, WIDTH),
        **dict.fromkeys(("k_in", "v_in"), (1, LEFT, WIDTH)),
        "c_in": (1, WIDTH, KERNEL - 1),
    }
    sizes = {"start": [CHUNK], "end": [SEEN], "zero": [0], "one": [1], "two": [2], "three": [3], "chunk": [CHUNK]}
    sizes |= {"far": [DISTANCES + 9], "keys": [SEEN], "heads": [1, -1, HEADS, width], "back": [1, CHUNK, WIDTH]}
    sizes |= {"pads": [0, 0, 0, 1, 0, 0, 0, 0], "by_row": [1, HEADS, DISTANCES + 1, CHUNK]}
    sizes |= {"by_distance": [1, HEADS, CHUNK, DISTANCES]}
    return net(
        ATTENTION + CONVOLUTION,
        shapes,
        "encoded k_out v_out c_out",
        **{name: np.array(value, np.int64) for name, value in sizes.items()},
        **{name: draw(WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo")},
        codes=draw(1, HEADS, width, DISTANCES),
        factor=np.float32(width**-0.5),
        gated=draw(2 * WIDTH, WIDTH, 1),
        depthwise=draw(WIDTH, 1, KERNEL),
        g=np.ones(WIDTH, np.float32),
        o=np.zeros(WIDTH, np.float32),
    )


def steps(count: int, seed: int, *shape: int) -> list[dict[str, Array]]:
    """Return one sequence of normal inputs."""
    rng = np.random.default_rng(seed)
    drawn = [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(count)]
    return [First(drawn[0]), *drawn[1:]]


def sqnr(source: onnx.ModelProto, compiled: CompiledModel, states: dict[str, str], name: str) -> float:
    """Return the SQNR of an output over a sequence that was not calibrated on."""
    truth, session = FloatModel(prepare(source), states=states), compiled.session()
    shape = next(tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in source.graph.input if i.name == "x")
    pairs = [(truth.run(step)[name], session.step(step)[name]) for step in steps(12, 1, *shape)]
    exact, found = (np.stack(each).astype(np.float64) for each in zip(*pairs, strict=True))
    return decibel(float((exact**2).sum()), float(((exact - found) ** 2).sum()))


def dtypes(compiled: CompiledModel) -> dict[str, str]:
    """Return the type of every tensor by its ONNX name."""
    return {t.onnx_name: t.type.dtype for t in compiled.program.tensors}


@pytest.fixture(scope="module")
def block() -> tuple[onnx.ModelProto, CompiledModel]:
    source = conformer()
    return source, nnac.compile(source, "nna8", steps(200, 0, 1, CHUNK, WIDTH), check=True, host="forbid")


def test_a_streaming_block_keeps_every_bit_and_comes_near(block: tuple[onnx.ModelProto, CompiledModel]) -> None:
    """Caches are states, relative positions a constant batch of matrices; check=True has compared every tensor."""
    source, compiled = block
    assert len(compiled.program.states) == 3
    states = {f"{name}_in": f"{name}_out" for name in "kvc"}
    assert sqnr(source, compiled, states, "encoded") > 30


def test_scores_and_the_residual_stream_are_wide(block: tuple[onnx.ModelProto, CompiledModel]) -> None:
    """Rules 12 and 13 of quantize, by name; what multiplies and what is kept stays int8."""
    found = dtypes(block[1])
    assert {found[name] for name in ("content", "places", "sum", "scores", "r", "r2")} == {"int16"}
    assert {found[name] for name in ("n", "cn", "both", "glu", "k_out", "v_out", "c_out", "encoded")} == {"int8"}


def test_operators_of_a_streaming_block() -> None:
    """Three products of activations, one of them with a constant batch; Swish and Sigmoid are functions."""
    ops = [node.op for node in float_graph(prepare(conformer())).nodes]
    assert [sum(isinstance(op, kind) for op in ops) for kind in (MatMul, Softmax, Norm)] == [3, 1, 4]


def test_a_running_mean_is_heard_out() -> None:
    """In int8 a share of 1/64 of anything under half the range would be rounded away; in int16 the mean arrives."""
    constants = {"keep": np.float32(63 / 64), "share": np.float32(1 / 64)}
    source = net(MEAN, {"x": (1, 4), "mean_in": (1, 4)}, "y mean_out", **constants)
    step = {"x": np.array([[0.1, 0.5, -0.3, 1.0]], np.float32)}
    compiled = nnac.compile(source, "nna8", [First(step)] + [step] * 399)
    assert dtypes(compiled)["mean_in"] == dtypes(compiled)["mean_out"] == "int16"
    session = compiled.session()
    for _ in range(400):
        found = session.step(step)["mean_out"]
    np.testing.assert_allclose(found, step["x"], rtol=0.03)


def test_a_buffer_stays_narrow() -> None:
    """A state that is moved along is no running sum, even if a sum reads it."""
    lines = "j = Concat <axis = 1> (b_in, x)\nb_out = Slice (j, one, five, one)\ny = Add (j, c)"
    constants = {"one": np.array([1]), "five": np.array([5]), "c": np.arange(5, dtype=np.float32)}
    source = net(lines, {"x": (1, 1), "b_in": (1, 4)}, "y b_out", **constants)
    compiled = nnac.compile(source, "nna8", steps(8, 0, 1, 1))
    assert dtypes(compiled)["b_in"] == dtypes(compiled)["b_out"] == "int8"


@pytest.mark.parametrize("spread, scale", [(0.1, 0.2 / 255), (3.0, 1 / 128)])
def test_a_tanh_that_reaches_little_of_its_range(spread: float, scale: float) -> None:
    """Where samples leave more than half of it empty, their range counts; else the natural one."""
    source = net("t = Tanh (x)\ny = Relu (t)", {"x": (1, 8)}, "t")
    samples = [{"x": np.linspace(-spread, spread, 8, dtype=np.float32)[None]}]
    quant = next(t.type.quant for t in nnac.compile(source, "nna8", samples).program.tensors if t.onnx_name == "t")
    assert quant is not None and quant.scale == pytest.approx(scale, rel=0.01)


def test_an_unsupported_operator_is_described() -> None:
    """Operator, name, attributes found, what comes near, where all are listed."""
    lines = "y = MaxUnpool <kernel_shape = [2, 2]> (x, i)"
    source = net(lines, {"x": (1, 1, 2, 2)}, "y", i=np.zeros((1, 1, 2, 2), np.int64))
    with pytest.raises(ModelError, match=r"MaxUnpool 'y'.*MaxPool.*found kernel_shape=\[2, 2\].*`nnac ops`"):
        nnac.compile(source, "nna8", "random", host="forbid")


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("network", ["conformer", "convrnnt", "codec", "enhancer"])
def test_exported_networks(network: str, exporter: str, tmp_path: Path) -> None:
    """The networks of `examples/architectures` as measured there: no host segment, and 30 dB at the worst output."""
    pytest.importorskip("torch", reason="exports the networks")
    found = importlib.import_module("examples.architectures.measure")
    settings = argparse.Namespace(kept=False, target="nna8", method="mse", steps=32)
    row = found.measure(network, exporter, tmp_path / "network.onnx", settings)
    assert row.sqnr > 30
    if network == "codec":
        assert row.parameters == 350_185
