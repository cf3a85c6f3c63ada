"""Compile the transducers of `generate.py` at several weight widths and say what they take on a machine.

    python -m examples.transducer_size.measure [--size typical|digits|mlperf] [--target nna8] [--folder FOLDER] [--step]

Every part is compiled in a process of its own, whose peak memory is read when it ends. Utterances are made up: seeded
lengths and token times at the pace of speech, the last token on the last step, decoding as greedy search would call the
parts. `--step` times one emulated step of the 8-bit encoder against onnxruntime on the float model, one thread each, in
turns; the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import resource
import statistics
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import nnac
from examples.transducer_size import generate
from nnac.pipeline import costs
from nnac.transducer import PARTS, as_if, percentiles, waiting

PERIOD_MS = 30
VARIANTS = {"8 bits": ("", 0.0), "5 bits": ("5", 0.0), "4 bits": ("4", 0.0), "4 bits, 60 % zeros": ("4", 0.6)}
TITLES = (
    "weights",
    "encoder / predictor / joiner, ms",
    "ms per frame",
    "real-time factor",
    "DRAM, MB per second of speech",
    "blobs, MB",
    "last token after the end of speech P50 / P90 / P99, ms",
    "compiled in",
    "peak memory",
)
UTTERANCES = 200
SECONDS = 1.0, 6.0
PIECES_PER_SECOND = 3.5
STEPS = 30


@dataclass(frozen=True, slots=True)
class Compiled:
    """A part, how long its compilation took, and the peak memory of the process."""

    path: Path
    seconds: float
    peak_bytes: int


def compile_part(size: str, variant: str, number: int, target: str, folder: Path) -> Compiled:
    """Write a part's program (and float model) to a folder."""
    shape, (weights, zeros) = generate.SIZES[size], VARIANTS[variant]
    net = (generate.encoder, generate.predictor, generate.joiner)[number](
        shape, np.random.default_rng([0, number]), zeros
    )
    model = net.model()
    shapes = {"frames": (shape.stack, 1, shape.features)} if number == 0 else None
    start = time.perf_counter()
    compiled = nnac.compile(model, target, "random", shapes=shapes, weights=weights or None)
    seconds = time.perf_counter() - start
    path = folder / f"{net.name}_{variant.replace(' ', '_').replace('%', 'percent').replace(',', '')}.nna"
    compiled.save(path)
    if not weights and number == 0:
        path.with_suffix(".onnx").write_bytes(model.SerializeToString())
    return Compiled(path, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)


def in_own_process(*arguments: object) -> Compiled:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(compile_part, *arguments).result()  # type: ignore[arg-type]


def utterances(steps_per_second: float) -> Iterator[tuple[int, list[int]]]:
    """Yield the encoder's steps of an utterance and the steps at which its tokens come."""
    rng = np.random.default_rng(0)
    for _ in range(UTTERANCES):
        seconds = rng.uniform(*SECONDS)
        steps, tokens = round(seconds * steps_per_second), max(1, round(seconds * PIECES_PER_SECOND))
        yield steps, [*rng.integers(0, steps, tokens - 1).tolist(), steps - 1]


def row(variant: str, parts: Mapping[str, Compiled], stack: int) -> str:
    programs = {name: nnac.load(part.path).program for name, part in parts.items()}
    table = {name: costs(program) for name, program in programs.items()}
    step_ms = stack * PERIOD_MS
    decodings = [as_if(steps, tokens) for steps, tokens in utterances(1e3 / step_ms)]
    waits = [waiting(decoding, table, PERIOD_MS, stack) for decoding in decodings]
    speech = sum(decoding.steps for decoding in decodings) * step_ms / 1e3
    busy = sum(sum(w.busy_ms.values()) for w in waits) / 1e3
    waited = percentiles([w.emission_ms for w in waits])
    cells = (
        variant,
        " / ".join(f"{table[name].cold.ms:.2f}" for name in PARTS),
        f"{(table['encoder'].cold.ms + table['joiner'].cold.ms) / stack:.2f}",
        f"{busy / speech:.2f}",
        f"{sum(w.nbytes for w in waits) / speech / 1e6:,.0f}",
        f"{sum(part.path.stat().st_size for part in parts.values()) / 1e6:.1f}",
        " / ".join(f"{waited[p]:.0f}" for p in waited),
        f"{sum(part.seconds for part in parts.values()):.0f} s",
        f"{max(part.peak_bytes for part in parts.values()) / 1e9:.1f} GB",
    )
    return f"| {' | '.join(cells)} |"


def show_table(size: str, target: str, folder: Path) -> None:
    """Print one row per width."""
    print(f"| {' | '.join(TITLES)} |")
    print(f"|{' --- |' * len(TITLES)}")
    for variant in VARIANTS:
        parts = {name: in_own_process(size, variant, n, target, folder) for n, name in enumerate(PARTS)}
        print(row(variant, parts, generate.SIZES[size].stack), flush=True)


def show_step(encoder: Path, frames: tuple[int, int, int]) -> None:
    """Print how long one streaming step takes on the emulator and in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    real = onnxruntime.InferenceSession(encoder.with_suffix(".onnx"), options, providers=["CPUExecutionProvider"])
    states = {i.name: np.zeros(i.shape, np.float32) for i in real.get_inputs() if i.name != "frames"}
    session, times = nnac.load(encoder).session(), ([], [])
    x = np.random.default_rng(0).normal(size=frames).astype(np.float32)
    for step in range(STEPS + 3):
        start = time.perf_counter()
        session.step({"frames": x})
        middle = time.perf_counter()
        real.run(None, {"frames": x, **states})
        if step >= 3:
            times[0].append(middle - start)
            times[1].append(time.perf_counter() - middle)
    ours, theirs = (1e3 * statistics.median(each) for each in times)
    print(
        f"one step of the encoder: emulated {ours:.1f} ms, onnxruntime float {theirs:.1f} ms, ratio {ours / theirs:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=generate.SIZES, default="typical")
    parser.add_argument("--target", default="nna8")
    parser.add_argument("--folder", type=Path, help="where programs go; a temporary folder without it")
    parser.add_argument("--step", action="store_true")
    arguments = parser.parse_args()
    shape = generate.SIZES[arguments.size]
    with TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.step:
            encoder = in_own_process(arguments.size, "8 bits", 0, arguments.target, folder).path
            show_step(encoder, (shape.stack, 1, shape.features))
        else:
            show_table(arguments.size, arguments.target, folder)


if __name__ == "__main__":
    main()
