"""Drift of a streaming 2x512 LSTM: logits SQNR against float onnxruntime, step by step, the state always fed back.

    NNAC_ASSETS=/path/to/assets python measure.py weights.npz [--streams 16] [--steps 1000] [--seed 2]

`weights.npz` comes from `train.py`. Each stream is clips of the test split one behind the other, from silence; neither
side is ever reset or corrected on the way. Calibration sees 512 frames of the training split. A cell is the ratio over
all streams, and that of the worst stream. The first rows differ in one quantizer at a time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac.compare import decibel
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare
from nnac.session import Session
from nnac.types import First

sys.path.insert(0, str(Path(__file__).parent.parent / "digits"))
from features import log_mel, place, read_wav

Array = NDArray[Any]
SHOWN = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
FRAMES, BANDS = 64, 32
LOGITS, INPUT, HIDDEN = ("logits",), ("x",), ("h0_out", "h1_out")
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("int8: weights, hidden, input, logits", {}),
    ("int8: weights, hidden, input", {"activations": LOGITS}),
    ("int8: weights, hidden", {"activations": LOGITS + INPUT}),
    ("int8: weights, input", {"activations": LOGITS + HIDDEN}),
    ("int8: weights", {"activations": "int16"}),
    ("5-bit weights; int8: hidden, input", {"weights": "5", "activations": LOGITS}),
    ("4-bit weights; int8: hidden, input", {"weights": "4", "activations": LOGITS}),
)
ORDER = (0, 3, 1, 2)
"""PyTorch's gates i, f, g, o in ONNX's order i, o, f, c."""


def step_model(path: str) -> onnx.ModelProto:
    """Return one step of the network: x, h0, c0, h1, c1 in; logits and the new states out."""
    with np.load(path) as data:
        weights = {name: data[name] for name in data.files}
    units = weights["cells.weight_hh_l0"].shape[1]
    stored, nodes, x = [], [], "x"
    for layer in (0, 1):
        w, r, bw, br = (
            _gates(weights[f"cells.{kind}_l{layer}"]) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        for name, array in (("W", w), ("R", r), ("B", np.concatenate([bw, br]))):
            stored.append(numpy_helper.from_array(array[None], f"{name}{layer}"))
        read = [x, f"W{layer}", f"R{layer}", f"B{layer}", "", f"h{layer}_in", f"c{layer}_in"]
        made = [f"y{layer}", f"h{layer}_out", f"c{layer}_out"]
        nodes.append(helper.make_node("LSTM", read, made, f"lstm{layer}", hidden_size=units))
        nodes.append(helper.make_node("Reshape", [f"y{layer}", "row"], [f"x{layer}"], f"row{layer}"))
        x = f"x{layer}"
    stored.append(numpy_helper.from_array(np.array([1, 1, units]), "row"))
    stored += [
        numpy_helper.from_array(weights["head.weight"].T.copy(), "head"),
        numpy_helper.from_array(weights["head.bias"], "bias"),
    ]
    nodes.append(helper.make_node("MatMul", [x, "head"], ["scores"], "scores"))
    nodes.append(helper.make_node("Add", ["scores", "bias"], ["logits"], "head"))
    states = [f"{kind}{layer}" for layer in (0, 1) for kind in "hc"]
    inputs = [_info("x", BANDS), *(_info(f"{name}_in", units) for name in states)]
    outputs = [_info("logits", len(weights["head.bias"])), *(_info(f"{name}_out", units) for name in states)]
    graph = helper.make_graph(nodes, "stream", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _gates(array: Array) -> Array:
    return np.concatenate([np.split(array, 4)[gate] for gate in ORDER])


def _info(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, width))


def streams(assets: Path, test: bool, count: int, steps: int, seed: int = 1) -> Array:
    """Return features (streams, steps, bands): clips of one split in random order."""
    paths = sorted((assets / "data/fsdd/recordings").glob("*.wav"))
    chosen = [path for path in paths if (int(path.stem.split("_")[2]) < 5) == test]
    clips = -(-steps // FRAMES)
    picked = np.random.default_rng(seed).choice(len(chosen), count * clips, replace=count * clips > len(chosen))
    features = log_mel(np.stack([place(read_wav(chosen[index])) for index in picked]))
    return np.asarray(features).reshape(count, clips * FRAMES, BANDS)[:, :steps]


def samples(x: Array) -> Iterator[dict[str, Array]]:
    """Yield the steps of all streams; states start anew with each stream."""
    for stream in x:
        for step, frame in enumerate(stream):
            sample = {"x": frame.reshape(1, 1, BANDS)}
            yield First(sample) if step == 0 else sample


def logits_of(run: Callable[[dict[str, Array]], dict[str, Array]], x: Array, begin: Callable[[], None]) -> Array:
    """Return logits (streams, steps, digits), float64."""
    found = []
    for sample in samples(x):
        if isinstance(sample, First):
            begin()
        found.append(run(sample)["logits"].reshape(-1))
    return np.array(found, np.float64).reshape(*x.shape[:2], -1)


def drift(exact: Array, found: Array) -> list[float]:
    """Return the SQNR in dB at every step, over all streams."""
    signal, noise = (exact**2).sum((0, 2)), ((exact - found) ** 2).sum((0, 2))
    return [decibel(float(s), float(n)) for s, n in zip(signal, noise, strict=True)]


def worst(exact: Array, found: Array) -> list[float]:
    """Return the SQNR in dB at every step of the stream where it is least."""
    each = [drift(exact[s : s + 1], found[s : s + 1]) for s in range(len(exact))]
    return [min(found) for found in zip(*each, strict=True)]


def main() -> None:
    """Print the drift of all variants as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=2, help="of the order of clips")
    args = parser.parse_args()
    assets, model = Path(os.environ["NNAC_ASSETS"]), step_model(args.weights)
    calibration = list(samples(streams(assets, False, 4, 2 * FRAMES)))
    x = streams(assets, True, args.streams, args.steps, args.seed)
    states = {f"{name}_in": f"{name}_out" for name in ("h0", "c0", "h1", "c1")}
    twin = FloatModel(prepare(model), [], states)
    exact = logits_of(twin.run, x, lambda: None)
    shown = [step for step in SHOWN if step <= args.steps]
    print("| | " + " | ".join(f"step {step}" for step in shown) + " | median | worst | same digit |")
    for label, options in VARIANTS:
        program = nnac.compile(model, "nna8", calibration, **options).program
        session, begin = Session(program), time.perf_counter()
        found = logits_of(session.step, x, session.reset)
        took = (time.perf_counter() - begin) / (x.shape[0] * x.shape[1])
        curve, least = drift(exact, found), worst(exact, found)
        agree = (exact.argmax(2) == found.argmax(2)).mean()
        cells = [f"{curve[step - 1]:.1f} ({least[step - 1]:.1f})" for step in shown]
        cells += [f"{np.median(curve):.1f}", f"{min(curve):.1f}", f"{100 * agree:.2f} %"]
        print(f"| {label} | {' | '.join(cells)} |", f"<!-- {1000 * took:.1f} ms a step -->", flush=True)


if __name__ == "__main__":
    main()
