"""What weights below eight bits cost and save on real networks: accuracy, bytes, latency; and where skipping pays off.

For each network: output SQNR against float, bytes of the blob, and latency on two machines, by bits, generator and
assigner. Then, for the digits network with the smallest weights of each layer pruned: cycles of the array that skips
zeros against the dense one, and the density of non-zeros below which skipping takes fewer.

    NNAC_ASSETS=/path/to/assets python -m examples.weights.models_table [--model NAME]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

import nnac
from nnac import isa
from nnac.array import array_cycles, taken_folds
from nnac.compiler import diff
from nnac.program import Program, dumps
from nnac.targets import Mac, load_target, with_settings
from nnac.timing import simulate

Samples = list[dict[str, NDArray[np.float32]]]

BITS = (8, 6, 5, 4, 3, 2)
WAYS = (("lloyd_max", "nearest"), ("lloyd_max", "gptq"), ("uniform", "nearest"), ("uniform", "gptq"))
MACHINES = ("nna8", "nna8-tiny")
NAMES = ("digits", "arm_kws_ds_cnn_s", "ultraface_slim_320")
DIGITS = Path(__file__).parent.parent / "digits"
PRUNED = (0.5, 0.75, 0.9)
COMPARED = 16
"""Samples that the SQNR is over, at most."""


@dataclass(frozen=True, slots=True)
class Network:
    """A model and the samples that calibrate it; `evaluated` of them say how well it does."""

    name: str
    path: Path
    samples: Samples

    @property
    def evaluated(self) -> Samples:
        return self.samples[:: -(-len(self.samples) // COMPARED)]


def network(name: str) -> Network | None:
    """Return a network by name, or None where its files are not there."""
    if name == "digits":
        with np.load(DIGITS / "calibration.npz") as archive:
            return Network(name, DIGITS / "digits.onnx", [{"features": x} for x in archive["features"]])
    assets = Path(os.environ.get("NNAC_ASSETS", ""))
    path = assets / "models" / name / f"{name}.onnx"
    if not os.environ.get("NNAC_ASSETS") or not path.is_file():
        return None
    return Network(name, path, keywords(assets) if name.startswith("arm_kws") else photos(assets))


def keywords(assets: Path) -> Samples:
    """Return the features of spoken words."""
    with np.load(assets / "data" / "kws_mfcc" / "kws_mfcc_calib.npz") as data:
        return [{"Reshape:0": row[None]} for row in data["mfcc_w640_s320"]]


def photos(assets: Path) -> Samples:
    """Return photos as the face detector takes them: (1, 3, 240, 320), RGB, (x - 127) / 128."""
    from PIL import Image

    files = sorted((assets / "data" / "images").glob("*.jpg"))
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((320, 240)), np.float32) for file in files]
    return [{"input": ((p - 127) / 128).transpose(2, 0, 1)[None]} for p in pixels]


# -- bits ----------------------------------------------------------------------------------------------------------


def cases() -> Iterator[str]:
    """Yield the specifications of weights; eight bits are plain int8 whatever the generator."""
    yield "8"
    for bits in BITS[1:]:
        yield from (f"{bits}:{generator}:{assigner}" for generator, assigner in WAYS)


def by_bits(net: Network) -> Table:
    """Return SQNR, bytes and latency of one network."""
    heads = (f"{machine}\n{figure}" for machine in MACHINES for figure in ("blob bytes", "ms"))
    table = Table("bits", "generator", "assigner", "SQNR dB", "weight\nbytes", *heads, title=net.name)
    for spec in cases():
        programs = [nnac.compile(net.path, machine, net.samples, weights=spec).program for machine in MACHINES]
        sqnr = min(diff(net.path, programs[0], net.evaluated).outputs().values())
        packed = sum(layer.encoding.nbytes for layer in programs[0].layers if layer.encoding)
        bits, generator, assigner = (*spec.split(":"), "", "")[:3]
        table.add_row(bits, generator, assigner, f"{sqnr:.2f}", f"{packed:,}", *figures(programs))
    return table


def figures(programs: list[Program]) -> Iterator[str]:
    """Yield bytes and milliseconds of each program."""
    for program in programs:
        yield f"{len(dumps(program)):,}"
        yield f"{simulate(program).milliseconds:.4f}"


# -- zeros ---------------------------------------------------------------------------------------------------------


def pruned_model(share: float) -> onnx.ModelProto:
    """Return the digits network with the smallest of each layer's weights zero."""
    model = onnx.load(DIGITS / "digits.onnx")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim >= 2 and array.size > 64:
            small = np.abs(array) < np.quantile(np.abs(array), share)
            tensor.CopyFrom(numpy_helper.from_array(np.where(small, 0, array).astype(np.float32), tensor.name))
    return model


def by_density(net: Network) -> Table:
    """Return per layer: cycles of the array dense and by share of zeros that it skips, and the break-even density."""
    skipping = with_settings(load_target("nna8"), {"mac.zero_skip": "row_group"})
    found = [layer_cycles(nnac.compile(pruned_model(share), skipping, net.samples).program) for share in PRUNED]
    heads = (f"{share:.0%} zeros" for share in PRUNED)
    table = Table("layer", "dense\ncycles", *heads, "break-even\ndensity", title="digits on nna8, zeros skipped")
    for name, (dense, _, conv) in found[0].items():
        even = break_even(conv, skipping.mac)
        table.add_row(
            name,
            f"{dense:,}",
            *(f"{layers[name][1]:,}" for layers in found),
            "skips nothing" if even is None else f"{even:.0%}",
        )
    return table


def layer_cycles(program: Program) -> dict[str, tuple[int, int, isa.Conv]]:
    """Return by layer with weights: cycles of the array without and with skipping, and one of its convolutions."""
    found = {}
    for layer in program.layers:
        convs = [i for i in map(program.instructions.__getitem__, layer.indices()) if isinstance(i, isa.Conv)]
        if convs:
            dense, taken = (
                sum(array_cycles(i, program.target.mac) for i in part)
                for part in ([replace(i, taps=0) for i in convs], convs)
            )
            found[layer.name] = dense, taken, convs[0]
    return found


def break_even(conv: isa.Conv, mac: Mac) -> float | None:
    """Return the largest density of non-zeros, spread at random, at which the array takes fewer cycles than dense."""
    rng, taps = np.random.default_rng(0), conv.kernel_h * conv.kernel_w * conv.depth
    if conv.groups > 1:
        return None
    order, dense = rng.random((conv.out_c, taps)), array_cycles(replace(conv, taps=0), mac)
    for density in np.arange(1.0, 0.0, -0.01):
        weights = (order < density).astype(np.int8)
        if array_cycles(replace(conv, taps=taken_folds(weights, mac)), mac) < dense:
            return float(density)
    return None


# -- all -----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NAMES, help="only this network; default: all")
    chosen, console = parser.parse_args().model, Console(width=None if Console().is_terminal else 110)
    for name in NAMES if chosen is None else (chosen,):
        net = network(name)
        if net is None:
            console.print(f"{name}: left out, NNAC_ASSETS is not the folder with `models` and `data`")
            continue
        console.print(by_bits(net))
        if name == "digits":
            console.print(by_density(net))


if __name__ == "__main__":
    main()
