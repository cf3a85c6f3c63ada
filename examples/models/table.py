"""Every model of the assets on one machine: what runs on the NNA, how close to float, how long, how large.

Calibrated on one half of real inputs and compared with float on the other (`samples`) where the assets hold such; on
seeded random data else, where the column SQNR tells gross faults from sound programs only. "stub" stands for topologies
whose weights are constants: whatever they compute is the same number everywhere. How well a network does its task is
shown by the other examples.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import nnac
from examples.models.samples import real_samples
from nnac.border import free_inputs
from nnac.calibration import random_samples
from nnac.compiled import CompiledModel
from nnac.errors import NnacError
from nnac.frontend import input_dtypes, prepare
from nnac.isa import Host
from nnac.program import dumps


@dataclass(frozen=True, slots=True)
class Opening:
    """What a model needs besides its file: shapes of open inputs, frozen inputs, states that names do not tell."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    freeze: Mapping[str, Any] = field(default_factory=dict)
    states: Mapping[str, str] | None = None


VAD = Opening({"input": (1, 576), "state": (2, 1, 128)}, {"sr": 16000})
STUBS = "light_"
PAST = {f"past_{i}": (2, 1, 4, 1, 8) for i in range(5)}
OPENINGS = {
    "dnsmos_p808": Opening({"input_1": (1, 900, 120)}),
    "dnsmos_sig_bak_ovr": Opening({"input_1": (1, 144160)}),
    "dtln_1": Opening(states={"input_3": "tf_op_layer_stack_2"}),
    "dtln_2": Opening(states={"input_5": "tf_op_layer_stack_5"}),
    "magika_v3_3": Opening({"bytes": (1, 2048)}),
    "silero_vad_v3": Opening({"input": (1, 512)}),
    "silero_vad_v5_16k": VAD,
    "silero_vad_v5_ifless": VAD,
    "tiny_random_gpt2": Opening(
        {"input_ids": (1, 8), **PAST},
        {"position_ids": np.arange(1, 9)[None], "attention_mask": np.ones((1, 9), np.int64)},
        {},
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One model, compiled and checked; MACs on the NNA and on the host, dB of the worst output."""

    name: str
    macs: int
    outside: int
    segments: int
    sqnr: float
    inputs: str
    milliseconds: float
    nbytes: int
    seconds: float

    @property
    def share(self) -> float:
        """Return the part of the MACs that runs on the NNA."""
        return self.macs / max(1, self.macs + self.outside)

    def text(self) -> str:
        """Return the row under the header."""
        return (
            f"{self.name:28s} {self.macs:>14,} {100 * self.share:6.2f} % {self.segments:5d} {self.sqnr:7.1f} "
            f"{self.inputs:6s} {self.milliseconds:9.4f} {self.nbytes:>11,} {self.seconds:8.1f}"
        )


def measure(path: Path, target: str) -> Row:
    """Compile a model with all checks and compare it with float.

    Raises:
        NnacError: the model does not compile, or an execution differs from the reference in a bit.
    """
    opening, start = OPENINGS.get(path.stem, Opening()), time.perf_counter()
    given: dict[str, Any] = {"shapes": opening.shapes, "freeze": opening.freeze, "states": opening.states}
    real = real_samples(path.parents[2], path.stem)
    compiled = nnac.compile(path, target, real[1] if real else "random", check=True, **given)
    seconds, program = time.perf_counter() - start, compiled.program
    hosts = [i for i in program.instructions if isinstance(i, Host)]
    return Row(
        path.stem,
        program.macs,
        sum(i.macs for i in hosts),
        len(hosts),
        sqnr(path, compiled, given, real[2] if real else None),
        inputs(path, real),
        compiled.simulate().milliseconds,
        len(dumps(program)),
        seconds,
    )


def row(path: Path, target: str) -> str:
    """Return the model's line, or what is wrong."""
    try:
        return measure(path, target).text()
    except NnacError as error:
        return f"{path.stem:28s} {type(error).__name__}: {str(error).splitlines()[-1][:100]}"


def inputs(path: Path, real: Any) -> str:
    """Return what the SQNR was measured on."""
    return str(real[0]) if real else ("stub" if path.stem.startswith(STUBS) else "random")


def sqnr(path: Path, compiled: CompiledModel, given: Mapping[str, Any], samples: Any) -> float:
    """Return dB of the worst output but states, on samples or on two random ones."""
    if samples is None:
        dtypes = input_dtypes(prepare(path, given["shapes"], frozen=given["freeze"]))
        samples = random_samples(free_inputs(compiled.program), 2, seed=5, dtypes=dtypes)
    program = compiled.program
    states = {program.tensor(result).onnx_name for _, result in program.states}
    outputs = nnac.diff(path, compiled, samples, **given).outputs()
    return min(db for name, db in outputs.items() if name not in states)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models (all)")
    parser.add_argument("--target", default="nna8")
    options = parser.parse_args()
    assets = os.environ.get("NNAC_ASSETS")
    if not assets:
        print("set NNAC_ASSETS to the folder that holds models/")
        return 1
    print(
        f"{'model':28s} {'MACs on NNA':>14s} {'share':>8s} {'host':>5s} {'SQNR dB':>7s} {'inputs':6s} {'ms':>9s} "
        f"{'blob bytes':>11s} "
        f"{'compile s':>8s}"
    )
    for path in sorted(Path(assets, "models").glob("*/*.onnx")):
        if not options.names or path.stem in options.names:
            print(row(path, options.target), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
