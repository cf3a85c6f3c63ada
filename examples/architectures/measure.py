"""The four networks through both exporters: what they cost on an accelerator and how near they come to float.

For every export: compiled without a host segment, calibrated on seeded random steps, scored on others. The first SQNR
is of the outputs, the second of what varies in them (their mean over the scored steps taken out), the third of the
worst state.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import nnac
from examples.architectures.export import EXPORTERS, NETWORKS, build, export, parameters
from nnac.calibration import METHODS
from nnac.compare import decibel
from nnac.compiled import CompiledModel
from nnac.errors import NnacError
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare
from nnac.program import dumps
from nnac.types import First

Array = NDArray[Any]
ROW = "{:10} {:11} {:>10} {:>12} {:>8} {:>8} {:>8} {:>11} {:>8} {:>11}"
HEADER = ("network", "exporter", "parameters", "MACs", "SQNR dB", "varying", "states", "cycles", "ms", "blob bytes")


@dataclass(frozen=True, slots=True)
class Row:
    """One export, compiled; cycles and MACs are of one step."""

    network: str
    exporter: str
    parameters: int
    macs: int
    sqnr: float
    varying: float
    states: float
    cycles: int
    milliseconds: float
    nbytes: int

    def text(self) -> str:
        """Return the row under `HEADER`."""
        levels = (f"{level:.1f}" for level in (self.sqnr, self.varying, self.states))
        last = f"{self.cycles:,}", f"{self.milliseconds:.3f}", f"{self.nbytes:,}"
        return ROW.format(self.network, self.exporter, f"{self.parameters:,}", f"{self.macs:,}", *levels, *last)


def steps(network: nn.Module, count: int, seed: int) -> Iterator[dict[str, Array]]:
    """Yield one sequence of random inputs: normal, but one-hot where a network takes a token."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        step = {name: draw.standard_normal(shape, np.float32) for name, shape in network.inputs().items()}
        if "token" in step:
            tokens = step["token"].shape[-1]
            step["token"] = np.eye(tokens, dtype=np.float32)[None, None, draw.integers(tokens)]
        yield step if number else First(step)


def outputs(network: nn.Module, path: Path, compiled: CompiledModel, count: int) -> Iterator[tuple[str, Array, Array]]:
    """Yield every output with its float and its emulated values over one sequence, (steps, values) each.

    States that the compiler keeps in parts, as those of stacked layers, have no output as a whole.
    """
    pairs = {f"{name}_in": f"{name}_out" for name in network.states()}
    truth, session = FloatModel(prepare(path), states=pairs), compiled.session()
    runs = [(truth.run(step), session.step(step)) for step in steps(network, count, seed=1)]
    for name in (name for name in runs[0][0] if name in runs[0][1]):
        yield name, *(np.stack([run[i][name].astype(np.float64).ravel() for run in runs]) for i in (0, 1))


def sqnr(exact: Array, found: Array) -> float:
    """Return the signal-to-quantization-noise ratio in dB."""
    return decibel(float((exact**2).sum()), float(((found - exact) ** 2).sum()))


def measure(network: str, exporter: str, path: Path, arguments: argparse.Namespace) -> Row:
    """Export, compile and score one network."""
    module = build(network, arguments.kept)
    export(module, exporter, path)
    learned = list(steps(module, arguments.steps, seed=0))
    compiled = nnac.compile(path, arguments.target, learned, method=arguments.method, host="forbid")
    found = {name: pair for name, *pair in outputs(module, path, compiled, arguments.steps)}
    named = [found[name] for name in module.outputs()]
    held = [pair for name, pair in found.items() if name not in module.outputs()]
    timeline = compiled.simulate()
    return Row(
        network,
        exporter,
        parameters(module),
        compiled.program.macs,
        min(sqnr(*pair) for pair in named),
        min(sqnr(exact - exact.mean(0), rough - exact.mean(0)) for exact, rough in named),
        min((sqnr(*pair) for pair in held), default=np.inf),
        timeline.cycles,
        timeline.milliseconds,
        len(dumps(compiled.program)),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"some of {', '.join(NETWORKS)}")
    parser.add_argument("--exporter", choices=EXPORTERS, action="append", help="one only (both)")
    parser.add_argument("--target", default="nna8")
    parser.add_argument("--method", choices=METHODS, default="mse", help="calibration (mse)")
    parser.add_argument("--steps", type=int, default=32, help="of the calibration, and of the score (32)")
    parser.add_argument("--kept", action="store_true", help="weights that keep the variance, instead of torch's own")
    arguments = parser.parse_args()
    print(ROW.format(*HEADER), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for network in arguments.networks:
            for exporter in arguments.exporter or EXPORTERS:
                path = Path(folder) / f"{network}.onnx"
                try:
                    print(measure(network, exporter, path, arguments).text(), flush=True)
                except NnacError as error:
                    print(f"{network} {exporter}: {error}", flush=True)


if __name__ == "__main__":
    main()
