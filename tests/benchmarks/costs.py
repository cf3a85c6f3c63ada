"""What everything around a run costs: ``python -m tests.benchmarks.costs [NAME ...] [--rounds 3] [--json costs.json]``.

NAME is one of `tests.benchmarks.models`, or any model of the assets; then it gets four random samples.

Compiling, for the fastest plan and for the first one (`quick`), against onnxruntime's `quantize_static` (QDQ, per
channel), which plans nothing, on the same calibration samples, all to a file; ratios are its time over ours;
`nnac simulate`; importing; the demos with empty and with filled kernel cache. Each figure comes from processes of its
own, in turns, which also say the most memory that they held; Python keeps what it compiles, as users have it. Seconds
of compiling are the processor's, of all threads, from the second to the fourth time in a process (medians), which
leaves out what is loaded once, and passes of Python's collector, which come when they come; those of commands are all
that they take, the least of the rounds, on the wall and of the processor.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import onnx
from onnxruntime.quantization import QuantFormat

import nnac
from tests.benchmarks import models, works

FORMS = ("compile", "quick", "quantize")


def child(form: str, name: str, folder: Path) -> None:
    """Do one thing with one model, and print what it cost."""
    assets = Path(os.environ["NNAC_ASSETS"])
    known = models.known(assets)
    work = known[name]() if name in known else works.open_model(assets, name, count=4)
    source, target = folder / f"{name}.onnx", folder / f"{name}.{form}"
    if form == "quantize":
        onnx.save(works.upgraded(work.model), source)
    spent = []
    for _ in range(4):
        before = time.process_time()
        if form == "quantize":
            works.statically(work, QuantFormat.QDQ)(source, target)
        else:
            nnac.compile(work.model, "nna8", work.fed, states=work.states, quick=form == "quick").save(target)
        spent.append(time.process_time() - before)
    print(
        json.dumps({"seconds": median(spent[1:]), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
    )


def started(*arguments: str, **environment: str) -> tuple[str, dict[str, float]]:
    """Run a module; return what it printed, its seconds on the wall and of the processor, and its most megabytes."""
    command, start = [sys.executable, "-m", *arguments], time.perf_counter()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | environment
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    assert process.stdout is not None
    printed = process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)}: exit status {status}")
    spent = {"wall_s": time.perf_counter() - start, "cpu_s": used.ru_utime + used.ru_stime}
    return printed, spent | {"peak_mb": used.ru_maxrss / 1024}


def least(costs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the smallest of each."""
    return {name: min(cost[name] for cost in costs) for name in costs[0]}


def of_model(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Compile, quantize and simulate one model, and print a row."""
    found: dict[str, Any] = {"work": name}
    runs: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    for _ in range(rounds):
        for form in FORMS:
            runs[form].append(json.loads(started("tests.benchmarks.costs", "--child", form, name, str(folder))[0]))
    for form in FORMS:
        found[form] = {key: median(run[key] for run in runs[form]) for key in ("seconds", "peak_mb")}
    found["simulate"] = least([started("nnac", "simulate", str(folder / f"{name}.compile"))[1] for _ in range(rounds)])
    ours, quick, theirs, timing = *(found[form] for form in FORMS), found["simulate"]
    found["ratio"], found["quick_ratio"] = (theirs["seconds"] / one["seconds"] for one in (ours, quick))
    print(
        f"{name:>22}  {ours['seconds']:9.3f}  {quick['seconds']:7.3f}  {theirs['seconds']:17.3f}  {found['ratio']:5.2f}"
        f"  {found['quick_ratio']:8.2f}  {ours['peak_mb']:7.0f}  {theirs['peak_mb']:15.0f}"
        f"  {timing['wall_s']:10.2f}  {timing['cpu_s']:12.2f}  {timing['peak_mb']:11.0f}",
        flush=True,
    )
    return found


def of_commands(rounds: int) -> dict[str, dict[str, float]]:
    """Time what users wait for, and print a row each."""
    found = {}
    print(f"{'command':>22}  seconds  of processor  peak MB")
    with tempfile.TemporaryDirectory() as cache:
        wanted: dict[str, tuple[Sequence[str], dict[str, str]]] = {
            "demo, cold": (("nnac", "demo"), {"NUMBA_CACHE_DIR": cache}),
            "demo, warm": (("nnac", "demo"), {"NUMBA_CACHE_DIR": cache}),
            "transducer, cold": (("nnac", "demo", "--transducer"), {"NUMBA_CACHE_DIR": f"{cache}/transducer"}),
            "transducer, warm": (("nnac", "demo", "--transducer"), {"NUMBA_CACHE_DIR": f"{cache}/transducer"}),
            "nnac --help": (("nnac", "--help"), {}),
            "nnac --version": (("nnac", "--version"), {}),
        }
        for name, (arguments, environment) in wanted.items():
            cost = least([started(*arguments, **environment)[1] for _ in range(1 if "cold" in name else rounds)])
            print(f"{name:>22}  {cost['wall_s']:9.2f}  {cost['cpu_s']:11.2f}  {cost['peak_mb']:7.0f}", flush=True)
            found[name] = cost
    return found


def main() -> None:
    """Print the tables and keep them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=FORMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    if arguments.child:
        child(arguments.child, arguments.names[0], Path(arguments.names[1]))
        return
    kept: dict[str, Any] = {"commands": of_commands(arguments.rounds), "models": []}
    heads: tuple[str, ...] = (
        "compile s",
        "quick s",
        "quantize_static s",
        "ratio",
        "of quick",
        "peak MB",
        "its peak MB",
        "simulate s",
        "of processor",
        "its peak MB",
    )
    print(f"\n{'work':>22}  {'  '.join(head.rjust(15) if head == heads[6] else head for head in heads)}")
    names = [name for name in models.known(Path(os.environ["NNAC_ASSETS"])) if not name.startswith("lstm")]
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or names:
            kept["models"].append(of_model(name, arguments.rounds, Path(folder)))
    if arguments.json:
        arguments.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
