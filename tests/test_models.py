"""Real networks end to end: compiled, every bit compared, labels, times, and the same bytes from every process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import nnac
from examples.models.table import measure
from nnac import reference, stages
from nnac.calibration import calibrate, random_samples
from nnac.compiler import float_graph, input_shapes, lower
from nnac.emulator import Emulator
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare
from nnac.graph import Graph
from nnac.isa import Space
from nnac.passes.legalize import legalize
from nnac.passes.quantize import quantize
from nnac.program import Program, dumps
from nnac.targets import Target, load_target
from nnac.testing import assert_close_to_float, with_random_weights
from nnac.types import Array

ROOT = Path(__file__).parent.parent
KEYWORDS = ("arm_kws_ds_cnn_s", "arm_kws_cnn_s", "arm_kws_dnn_s")
SMALL, LARGE = (*KEYWORDS, "ort_mnist"), ("ultraface_slim_320", "light_squeezenet", "light_resnet50")
TARGETS = ("nna8", "nna8-tiny", "nna8-pow2")
COMPILE_SECONDS = 3.0
SLACK = 2.0
"""Shared CI machines run at about half the speed of the one that the limit is stated for, and two tests at a time."""

Samples = list[dict[str, Array]]


def path_of(assets: Path, name: str) -> Path:
    """Return the path of a model."""
    return assets / "models" / name / f"{name}.onnx"


def model_of(assets: Path, name: str) -> onnx.ModelProto:
    """Return a prepared model; stubbed weights become random ones."""
    model = prepare(path_of(assets, name))
    return with_random_weights(model) if name.startswith("light_") else model


def samples_of(assets: Path, name: str) -> Samples:
    """Return what calibrates a model: features of words, photos, or random numbers."""
    if name in KEYWORDS:
        with np.load(assets / "data" / "kws_mfcc" / "kws_mfcc_calib.npz") as data:
            features = data["mfcc_w640_s640" if name == "arm_kws_dnn_s" else "mfcc_w640_s320"]
        return [{"Reshape:0": row[None]} for row in features]
    if name == "ultraface_slim_320":
        return [{"input": photo} for photo in photos(assets)]
    return list(random_samples(input_shapes(float_graph(model_of(assets, name))), 2))


def photos(assets: Path) -> list[Array]:
    """Return six photos as the face detector takes them: (1, 3, 240, 320), RGB, (x - 127) / 128."""
    image = pytest.importorskip("PIL.Image", reason="photos are read with pillow")
    files = sorted((assets / "data" / "images").glob("*.jpg"))
    pixels = [np.asarray(image.open(file).convert("RGB").resize((320, 240)), np.float32) for file in files]
    return [((p - 127) / 128).transpose(2, 0, 1)[None] for p in pixels]


@dataclass(frozen=True, slots=True)
class Built:
    """A network as the reference sees it (integer graph) and as the machine does (program)."""

    graph: Graph
    program: Program

    def differing(self, inputs: dict[str, Array]) -> int:
        """Return how many elements of all tensors differ between reference and emulator."""
        expected = reference.run(self.graph, inputs, self.program.target.arithmetic)
        found = Emulator(self.program).trace(inputs)
        assert expected.keys() == found.keys()
        return sum(int((found[name] != array).sum()) for name, array in expected.items())


def build(model: onnx.ModelProto, samples: Samples, machine: Target) -> Built:
    """Compile step by step, keeping the integer graph."""
    graph = float_graph(model)
    ranges = calibrate(model, samples, sorted({v.origin.name for v in graph.values.values() if v.origin}))
    integer = legalize(quantize(graph, ranges, machine.arithmetic), machine)
    return Built(stages.check(integer, stages.INTEGER), lower(graph, ranges, machine, "test", check=True))


def quantized(graph: Graph, sample: dict[str, Array]) -> dict[str, Array]:
    """Return a sample as the graph's int8 inputs in device layout."""
    values = [graph.values[name] for name in graph.inputs]
    return {
        v.name: v.origin.from_onnx(v.type.quant.quantize(sample[v.origin.name]), v.shape)
        for v in values
        if v.origin is not None and v.type.quant is not None
    }


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SMALL)
def test_small_networks_keep_every_bit(name: str, target: str, assets: Path) -> None:
    """Reference and emulator: 0 differing elements in any tensor."""
    check_bits(assets, name, load_target(target), 4)


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_keep_every_bit(name: str, assets: Path) -> None:
    """The same for pictures on nna8; residual and wide networks among them."""
    check_bits(assets, name, load_target("nna8"), 1)


def check_bits(assets: Path, name: str, machine: Target, count: int) -> None:
    """Compare a network's executions on noise over the whole range and on some of its samples."""
    samples = samples_of(assets, name)
    built = build(model_of(assets, name), samples, machine)
    chosen = samples[:: max(1, len(samples) // count)][:count]
    cases = [reference.probe(built.graph, seed=1), *(quantized(built.graph, sample) for sample in chosen)]
    assert [built.differing(case) for case in cases] == [0] * len(cases)


@pytest.mark.parametrize("name", SMALL)
def test_public_interface(name: str, assets: Path) -> None:
    """`compile` with its checks, `run` and `simulate`: outputs in ONNX shape, cycles never under MACs by peak."""
    samples = samples_of(assets, name)
    model = model_of(assets, name)
    compiled = nnac.compile(model, "nna8", samples, check=True)
    outputs = compiled.run(samples[0])
    shapes = {info.name: tuple(d.dim_value for d in info.type.tensor_type.shape.dim) for info in model.graph.output}
    assert {output: array.shape for output, array in outputs.items()} == shapes
    timeline = compiled.simulate()
    assert timeline.cycles >= compiled.program.macs / compiled.program.target.mac.peak > 0


@pytest.mark.parametrize(("target", "sure", "every"), [("nna8", 0.98, 0.82), ("nna8-pow2", 0.93, 0.85)])
@pytest.mark.parametrize("name", KEYWORDS)
def test_labels_agree_with_float(name: str, target: str, sure: float, every: float, assets: Path) -> None:
    """The word that is heard is float's, on the calibration set.

    96 of its 100 clips are digits, which these networks never learnt: float itself is torn between words on many. So
    the strict limit is on the clips of which float is more than 60 % sure (71, 83 and 91 of them). Measured, nna8: all
    of them, 98.8 %, 98.9 %; onnxruntime's own quantization: the same.
    """
    samples, runner = samples_of(assets, name), FloatModel(model_of(assets, name))
    compiled = nnac.compile(path_of(assets, name), target, samples)
    truth, found = (np.stack([next(iter(run(s).values()))[0] for s in samples]) for run in (runner.run, compiled.run))
    same = truth.argmax(axis=1) == found.argmax(axis=1)
    assert same[truth.max(axis=1) > 0.6].mean() >= sure
    assert same.mean() >= every


@pytest.mark.parametrize(
    ("name", "least"),
    [("arm_kws_ds_cnn_s", 14.0), ("arm_kws_cnn_s", 15.0), ("arm_kws_dnn_s", 16.0), ("ultraface_slim_320", 15.0)],
)
def test_close_to_float(name: str, least: float, assets: Path) -> None:
    """Output SQNR on the calibration samples; floors a little below what was measured."""
    samples = samples_of(assets, name)
    assert_close_to_float(model_of(assets, name), nnac.compile(path_of(assets, name), "nna8", samples), samples, least)


@pytest.mark.parametrize(("name", "least"), [("arm_kws_ds_cnn_s", 44.0), ("ultraface_slim_320", 18.0)])
def test_int16_activations(name: str, least: float, assets: Path) -> None:
    """With int16 everywhere, every bit; the error that remains is that of int8 weights, for more time."""
    samples = samples_of(assets, name)
    narrow, wide = (
        nnac.compile(path_of(assets, name), "nna8", samples, activations=width, check=True)
        for width in ("int8", "int16")
    )
    assert {t.type.dtype for t in wide.program.tensors} == {"int16"}
    assert_close_to_float(model_of(assets, name), wide, samples[:4], least)
    assert narrow.simulate().cycles < wide.simulate().cycles


def test_int16_leaves_the_error_of_weights(assets: Path) -> None:
    """Where int8 holds the weights exactly, int16 activations are 60 dB from float, int8 ones 16."""
    model = model_of(assets, "ultraface_slim_320")
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            weights = numpy_helper.to_array(tensor)
            scale = (np.abs(weights.reshape(len(weights), -1)).max(axis=1) / 127).astype(np.float32)
            scale = scale.reshape(-1, 1, 1, 1)
            tensor.CopyFrom(numpy_helper.from_array(np.rint(weights / scale) * scale, tensor.name))
    samples = samples_of(assets, "ultraface_slim_320")
    compiled = nnac.compile(model, "nna8", samples, activations="int16")
    assert_close_to_float(model, compiled, samples[:2], 58.0)


# -- time and bytes ------------------------------------------------------------------------------------------------

SCRIPT = """
import hashlib, sys
import nnac, numpy
from nnac.program import dumps
rows = numpy.load(sys.argv[2])["mfcc_w640_s320"]
compiled = nnac.compile(sys.argv[1], "nna8", [{"Reshape:0": row[None]} for row in rows])
print(hashlib.sha256(dumps(compiled.program)).hexdigest())
"""


def compiled_elsewhere(assets: Path, folder: Path, seed: int) -> tuple[str, float]:
    """Compile in a process of its own; return the blob's digest and the processor's seconds, imports included."""
    arguments = [path_of(assets, "arm_kws_ds_cnn_s"), assets / "data" / "kws_mfcc" / "kws_mfcc_calib.npz"]
    environment = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)}
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout.strip(), spent


def test_compiling_is_fast_and_repeatable(assets: Path, tmp_path: Path) -> None:
    """Processes with other hash seeds and folders give the same bytes, the fastest within the limit."""
    runs = [compiled_elsewhere(assets, folder, seed) for folder, seed in ((tmp_path, 1), (ROOT, 2), (Path("/"), 3))]
    here = nnac.compile(path_of(assets, "arm_kws_ds_cnn_s"), "nna8", samples_of(assets, "arm_kws_ds_cnn_s"))
    assert {digest for digest, _ in runs} == {hashlib.sha256(dumps(here.program)).hexdigest()}
    assert min(seconds for _, seconds in runs) < COMPILE_SECONDS * SLACK


@pytest.mark.parametrize("name", SMALL)
def test_two_compiles_give_the_same_bytes(name: str, assets: Path) -> None:
    """Nothing of one compile is left for the next."""
    samples = samples_of(assets, name)
    first, second = (nnac.compile(path_of(assets, name), "nna8-tiny", samples).program for _ in range(2))
    assert dumps(first) == dumps(second) and first.digest() == second.digest()


OPEN = (*KEYWORDS, "ort_mnist", "ultraface_slim_320", "light_squeezenet", "light_shufflenet")


@pytest.mark.parametrize("target", ["nna8", "nna8-tiny"])
@pytest.mark.parametrize("name", OPEN)
def test_the_planner_reaches_the_lower_bound(name: str, target: str, assets: Path) -> None:
    """Peak scratchpad within 5 % of the largest set of bytes alive at one time (the search mostly meets it)."""
    program = nnac.compile(model_of(assets, name), target, "random").program
    assert program.lower_bound <= program.used[Space.SRAM] <= 1.05 * program.lower_bound


def test_a_large_network_is_quick(assets: Path) -> None:
    """ResNet-50: compiled in under 20 s, timed in under 1 s of processor time, at the planner's lower bound."""
    model = model_of(assets, "light_resnet50")
    start = time.process_time()
    compiled = nnac.compile(model, "nna8", "random")
    middle = time.process_time()
    compiled.simulate()
    assert middle - start < 20
    assert time.process_time() - middle < 1
    assert compiled.program.used[Space.SRAM] <= 1.05 * compiled.program.lower_bound


# -- every model of the assets -------------------------------------------------------------------------------------

HOSTED = ("magika_v3_3", "tiny_random_gpt2")
MODELS = sorted(Path(os.environ.get("NNAC_ASSETS", "/nowhere"), "models").glob("*/*.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=[path.stem for path in MODELS])
def test_every_model(path: Path) -> None:
    """The table of `examples/models`: every bit compared, two with a host segment, at most 5 % of the MACs outside."""
    found = measure(path, "nna8")
    assert (found.segments > 0) == (path.stem in HOSTED)
    assert found.share >= 0.95 and (found.inputs == "stub" or found.sqnr > 9)


@pytest.mark.slow
def test_a_net_of_many_layers_is_planned(assets: Path) -> None:
    """DenseNet-121 with weights that do not shrink: of its plans, one of over 32,000 pieces is passed over."""
    program = nnac.compile(model_of(assets, "light_densenet121"), "nna8", "random").program
    assert len(program.instructions) < 5000
