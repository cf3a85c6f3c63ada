"""Write recurrent transducers of full size with seeded random weights: for time and memory, not for words.

    python examples/transducer_size/generate.py FOLDER [--size typical|mlperf] [--zeros 0.6]

Three step models (one call is one step, states go in and out): `encoder.onnx`, `predictor.onnx`, `joiner.onnx`, and
`embedding.npy`, whose row of a token is the predictor's input.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 9


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of a transducer.

    Attributes:
        features: values of one frame.
        encoder: hidden values of the layers on every frame, then of those on `stack` frames at a time.
        stack: frames of one call of the encoder.
        embedding: values of a token.
        predictor: hidden values of its layers.
        joint: values in the middle of the joiner.
        outputs: tokens, blank included.
    """

    features: int
    encoder: tuple[tuple[int, ...], tuple[int, ...]]
    stack: int
    embedding: int
    predictor: tuple[int, ...]
    joint: int
    outputs: int


SIZES = {
    "typical": Size(192, ((1024,) * 5, ()), 1, 512, (1024, 1024), 512, 4001),
    "digits": Size(96, ((512,) * 4, ()), 1, 32, (64,), 96, 11),
    "mlperf": Size(240, ((1024,) * 2, (1024,) * 3), 2, 320, (320, 320), 512, 29),
}
"""58.4 M parameters (64 energies of 3 frames; word pieces), those of examples/transducer with an encoder of 4 x 512,
and the shape of MLPerf inference's RNN-T, 45.3 M."""


class Net:
    """A step model under construction."""

    def __init__(self, name: str, rng: np.random.Generator, zeros: float) -> None:
        self.name, self.rng, self.zeros = name, rng, zeros
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.parameters = 0

    def input(self, name: str, *shape: int) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def output(self, name: str, *shape: int) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def weight(self, name: str, *shape: int) -> str:
        """Add weights: Laplace, as trained ones nearly are, of variance 1 / fan-in, the smallest set to zero."""
        array = self.rng.laplace(size=shape).astype(np.float32) / np.float32((2 * shape[-1]) ** 0.5)
        if self.zeros:
            array[np.abs(array) < np.quantile(np.abs(array), self.zeros)] = 0
        return self.constant(name, array)

    def bias(self, name: str, *shape: int) -> str:
        return self.constant(name, (self.rng.normal(size=shape) * 0.1).astype(np.float32))

    def constant(self, name: str, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(array, name))
        self.parameters += array.size if array.dtype == np.float32 else 0
        return name

    def node(self, kind: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def lstm(self, x: str, stem: str, width: int, hidden: int) -> str:
        """Add an LSTM layer (T, 1, width) -> (T, 1, hidden); states go in as `<stem>_h`, out as `<stem>_h_out`."""
        states = [self.input(f"{stem}_{s}", 1, 1, hidden) for s in "hc"]
        w, r = self.weight(f"{stem}_W", 1, 4 * hidden, width), self.weight(f"{stem}_R", 1, 4 * hidden, hidden)
        b = self.bias(f"{stem}_B", 1, 8 * hidden)
        made = (f"{stem}_y", f"{stem}_h_out", f"{stem}_c_out")
        y = self.node("LSTM", [x, w, r, b, "", *states], *made, hidden_size=hidden)
        for name in made[1:]:
            self.output(name, 1, 1, hidden)
        axes = self.constant(f"{stem}_axis", np.array([1], np.int64))
        return self.node("Squeeze", [y, axes], f"{stem}_out")

    def stacked(self, x: str, stem: str, width: int, layers: Sequence[int]) -> tuple[str, int]:
        for n, hidden in enumerate(layers):
            x, width = self.lstm(x, f"{stem}{n}", width, hidden), hidden
        return x, width

    def reshape(self, x: str, name: str, *shape: int) -> str:
        return self.node("Reshape", [x, self.constant(f"{name}_shape", np.array(shape, np.int64))], name)

    def linear(self, x: str, stem: str, width: int, rows: int) -> str:
        w, b = self.weight(f"{stem}_W", rows, width), self.bias(f"{stem}_b", rows)
        return self.node("Gemm", [x, w, b], stem, transB=1)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model


def encoder(size: Size, rng: np.random.Generator, zeros: float = 0.0) -> Net:
    """Return the encoder: frames (T, 1, features) -> encoded (T / stack, width); T is a multiple of `stack`."""
    net = Net("encoder", rng, zeros)
    net.inputs.append(helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["T", 1, size.features]))
    x, width = net.stacked("frames", "first", size.features, size.encoder[0])
    if size.stack > 1:
        x, width = net.reshape(x, "pairs", -1, 1, size.stack * width), size.stack * width
    x, width = net.stacked(x, "second", width, size.encoder[1])
    net.reshape(x, "encoded", -1, width)
    net.outputs.append(helper.make_tensor_value_info("encoded", TensorProto.FLOAT, ["N", width]))
    return net


def predictor(size: Size, rng: np.random.Generator, zeros: float = 0.0) -> Net:
    """Return the predictor: one token's row of the embedding (1, E) -> predicted (1, width)."""
    net = Net("predictor", rng, zeros)
    x = net.reshape(net.input("token", 1, size.embedding), "step", 1, 1, size.embedding)
    x, width = net.stacked(x, "layer", size.embedding, size.predictor)
    net.reshape(x, "predicted", 1, width)
    net.output("predicted", 1, width)
    return net


def joiner(size: Size, rng: np.random.Generator, zeros: float = 0.0) -> Net:
    """Return the joiner: encoded (1, width), predicted (1, width) -> logits (1, outputs)."""
    net, widths = Net("joiner", rng, zeros), ((size.encoder[1] or size.encoder[0])[-1], size.predictor[-1])
    parts = [net.input(name, 1, width) for name, width in zip(("encoded", "predicted"), widths, strict=True)]
    both = net.node("Concat", parts, "both", axis=1)
    middle = net.node("Tanh", [net.linear(both, "joint", sum(widths), size.joint)], "active")
    net.linear(middle, "logits", size.joint, size.outputs)
    net.output("logits", 1, size.outputs)
    return net


def transducer(size: Size, zeros: float = 0.0, seed: int = 0) -> Iterator[Net]:
    """Yield encoder, predictor and joiner."""
    for number, make in enumerate((encoder, predictor, joiner)):
        yield make(size, np.random.default_rng([seed, number]), zeros)


def embedding(size: Size, seed: int = 0) -> Any:
    """Return float32 (outputs, E): the predictor's input for every token."""
    shape = (size.outputs, size.embedding)
    return np.random.default_rng([seed, 3]).normal(size=shape).astype(np.float32)


def parameters(size: Size, nets: Sequence[Net]) -> int:
    """Return the number of trained values, the embedding included."""
    return sum(net.parameters for net in nets) + size.outputs * size.embedding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="typical")
    parser.add_argument("--zeros", type=float, default=0.0)
    arguments = parser.parse_args()
    size, folder = SIZES[arguments.size], arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    nets = list(transducer(size, arguments.zeros))
    for net in nets:
        onnx.save(net.model(), folder / f"{net.name}.onnx")
        print(f"{net.name:<10} {net.parameters:>12,} parameters")
    np.save(folder / "embedding.npy", embedding(size), allow_pickle=False)
    print(f"{'total':<10} {parameters(size, nets):>12,} parameters, {size.outputs * size.embedding:,} of the embedding")


if __name__ == "__main__":
    main()
