"""Whole models: the emulator and onnxruntime's int8 forms, one process, one thread, interleaved.

``python -m tests.benchmarks.models [NAME ...] [--seconds 6] [--threads 1] [--json models.json]``. A ratio is
onnxruntime's time over ours: above 1 we are faster; of its int8 forms the faster one counts. Medians; with one thread
the processor's time of that thread counts, which others on the machine disturb less than the time on the wall.
NNAC_ASSETS names the folder with `models`. Ours is one call of the emulator, inputs written and outputs read; it is
compared with an exact run, instruction by instruction.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import nnac
from nnac.border import quantized
from nnac.emulator import Emulator
from tests.benchmarks import works
from tests.benchmarks.works import Work

ROUNDS = 400
"""Turns at most."""


def known(assets: Path) -> dict[str, Callable[[], Work]]:
    """Return the works by name."""
    return {
        "arm_kws_ds_cnn_s": lambda: works.open_model(assets, "arm_kws_ds_cnn_s"),
        "ultraface_slim_320": lambda: works.open_model(assets, "ultraface_slim_320", count=4),
        "mobilenet_v2": works.mobilenet,
        "light_resnet50": lambda: works.open_model(assets, "light_resnet50", count=2),
        "dtln_1": lambda: works.open_model(assets, "dtln_1", {"input_3": "tf_op_layer_stack_2"}),
        "silero_vad_v5_static": lambda: works.open_model(assets, "silero_vad_v5_static", {"state": "stateN"}),
        "lstm_5x1024_8bit": works.lstm,
        "lstm_5x1024_5bit": lambda: works.lstm(5),
        "lstm_5x1024_4bit": lambda: works.lstm(4),
    }


def seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Time one run."""
    start = clock()
    run()
    return clock() - start


def compiled(work: Work, threads: int = 1) -> tuple[Emulator, dict[str, Any], float]:
    """Return the emulator of a work, its integer inputs, and the seconds of compiling."""
    start = time.perf_counter()
    model = nnac.compile(work.model, "nna8", work.fed, states=work.states, weights=work.weights)
    took = time.perf_counter() - start
    return Emulator(model.program, threads), quantized(model.program, work.fed[0]), took


def check(emulator: Emulator, inputs: dict[str, Any]) -> None:
    """Compare two steps of a prepared run with those of an exact one."""
    exact = Emulator(emulator.program)
    for machine in (emulator, exact):
        machine.clear_states()
    for _ in range(2):
        ours = emulator.run(inputs)
        expected = exact.run(inputs, order=range(len(emulator.program.instructions)))
        if any(not np.array_equal(ours[name], array) for name, array in expected.items()):
            raise SystemExit(f"{emulator.program.name}: a prepared run differs from an exact one")


def compare(work: Work, limit: float, threads: int) -> dict[str, Any]:
    """Time all forms in turns."""
    emulator, inputs, compiling = compiled(work, threads)
    check(emulator, inputs)
    runs: dict[str, Callable[[], object]] = {"nnac": lambda: emulator.run(inputs)}
    for name, session in works.opened(work, threads).items():
        runs[name] = lambda session=session: session.run(None, work.samples[0])  # type: ignore[misc]
    for run in runs.values():
        run()
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    while len(times["nnac"]) < 3 or (time.perf_counter() - start < limit and len(times["nnac"]) < ROUNDS):
        for name, run in runs.items():
            times[name].append(seconds(run, clock))
    found = {name: median(column) for name, column in times.items()}
    rivals = [name for name in found if name not in ("nnac", "float")]
    best = min(rivals, key=found.__getitem__)
    return {
        "work": work.name,
        "rounds": len(times["nnac"]),
        "compile_s": compiling,
        "ms": {name: value * 1e3 for name, value in found.items()},
        "best": best,
        "ratio": found[best] / found["nnac"],
        "ratio_float": found["float"] / found["nnac"],
    }


def main() -> None:
    """Print the table and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--operators", action="store_true", help="networks of one operator instead")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    makers: dict[str, Callable[[], Work]] = {name: partial(works.operator, name) for name in works.OPERATORS}
    if not arguments.operators:
        makers = known(Path(os.environ["NNAC_ASSETS"]))
    results = []
    print(f"{'work':>22}  {'nnac ms':>9}  {'int8 ms':>9}  {'float ms':>9}  ratio  to float  (best int8 form)")
    for name in arguments.names or makers:
        r = compare(makers[name](), arguments.seconds, arguments.threads)
        results.append(r)
        ms, best = r["ms"], r["best"]
        print(
            f"{r['work']:>22}  {ms['nnac']:9.3f}  {ms[best]:9.3f}  {ms['float']:9.3f}  {r['ratio']:5.2f}"
            f"  {r['ratio_float']:8.2f}  ({best}, {r['rounds']} turns)",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
