"""The command line: every command."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

import nnac
from nnac import kernels
from nnac.program import dumps
from nnac.timing import latency
from nnac.validate import load
from tests.commands import COMPILE, ROOT, Nnac, finish, samples, small_model, spawn

# -- compile -------------------------------------------------------------------------------------------------------


def test_compile_answers_on_one_plain_screen(here: Path) -> None:
    result = finish(
        spawn(
            "compile",
            "m.onnx",
            "--calibrate",
            "x.npz",
            "-o",
            "out/y.nna",
            cwd=here,
            env={"FORCE_COLOR": "1", "COLUMNS": "300"},
        )
    )
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert len(lines) <= 24 and all(len(line) <= 80 and line.isprintable() for line in lines)
    assert "minmax, 8 samples" in result.out and "out/y.nna" in result.out
    assert os.listdir(here / "out") == ["y.nna"]
    assert load(here / "out" / "y.nna").name == "small"


def test_compile_writes_beside_the_caller_by_default(run: Nnac, here: Path) -> None:
    (here / "m.nna").unlink()
    assert run("compile", "m.onnx", "--calibrate", "random").code == 0
    assert load(here / "m.nna").calibration == "random"


def test_equal_compilations_give_equal_bytes(run: Nnac, here: Path) -> None:
    for name in ("a", "b"):
        assert run("compile", "m.onnx", "--calibrate", "x.npz", "-o", f"out/{name}.nna").code == 0
    assert (here / "out/a.nna").read_bytes() == (here / "out/b.nna").read_bytes()


def test_a_quick_compilation_gives_the_same_outputs(run: Nnac, here: Path) -> None:
    own = (ROOT / "targets" / "u55-128-like.toml").read_text()
    (here / "own.toml").write_text(re.sub(r"(?<=memory.sram]\n)bytes = [\d_]+", "bytes = 1024", own))
    for name, options in (("a", ()), ("b", ("--quick",))):
        command = ("compile", "m.onnx", "--calibrate", "x.npz", "--target", "own.toml", "-o", f"out/{name}.nna")
        assert run(*command, *options).code == 0
    searched, first = (load(here / f"out/{name}.nna") for name in "ab")
    assert searched.known_answer == first.known_answer and latency(searched) < latency(first)


def test_activations_are_int16_where_asked(run: Nnac, here: Path) -> None:
    def dtypes(option: str) -> set[str]:
        result = run("compile", "m.onnx", "--calibrate", "x.npz", "-o", "out/w.nna", "--activations", option, "--check")
        assert result.code == 0, result.err
        return {tensor.type.dtype for tensor in load(here / "out/w.nna").tensors}

    name = load(here / "m.nna").tensor(load(here / "m.nna").inputs[0]).onnx_name
    (here / "names.txt").write_text(f"{name}\n\n")
    assert dtypes("int16") == {"int16"}
    assert dtypes(name) == dtypes("@names.txt") == {"int8", "int16"}
    assert run("inspect", "out/w.nna", "--selftest").code == 0
    assert "no tensor 'nowhere'" in run("compile", "m.onnx", "--calibrate", "x.npz", "--activations", "nowhere").err
    assert "cannot be read" in run("compile", "m.onnx", "--calibrate", "x.npz", "--activations", "@nowhere").err


def test_random_calibration_is_marked_everywhere(run: Nnac) -> None:
    assert "random: timing only" in run("compile", "m.onnx", "--calibrate", "random", "-o", "out/r.nna").out
    assert "random: timing only" in run("simulate", "out/r.nna").out
    assert "random: timing only" in run("inspect", "out/r.nna").out
    assert "only timing" in run("run", "out/r.nna", "--input", "x.npz").err
    assert "only timing" in run("diff", "m.onnx", "out/r.nna", "--input", "x.npz").err


def test_compile_options_reach_the_compiler(run: Nnac, here: Path) -> None:
    result = run(
        "compile",
        "dynamic.onnx",
        "--calibrate",
        "x.npz",
        "-o",
        "out/d.nna",
        "--shape",
        "x=1,3,12,10",
        "--method",
        "mse",
        "--target",
        "nna8-tiny",
        "--check",
        "--max-sram",
        "128K",
        "--max-flash",
        "1m",
        "--max-cycles",
        "1000000",
    )
    assert (result.code, result.err) == (0, "")
    program = load(here / "out/d.nna")
    assert (program.target.name, program.calibration) == ("nna8-tiny", "mse, 8 samples")


@pytest.mark.parametrize("budget", ["--max-sram", "--max-flash", "--max-cycles"])
def test_a_budget_that_is_exceeded_writes_nothing(run: Nnac, here: Path, budget: str) -> None:
    (here / "out/m.nna").write_text("old")
    result = run("compile", "m.onnx", "--calibrate", "random", "-o", "out/m.nna", budget, "7")
    assert result.code == 1 and not result.out
    for word in (budget, "required", "available 7", "excess"):
        assert word in result.err
    assert (here / "out/m.nna").read_text() == "old" and os.listdir(here / "out") == ["m.nna"]


@pytest.mark.parametrize("name", ["[red]x[/red] [/]", ":smile:[bold", "a\x1b[31mb", "\u202eabc", "a\x9bb"])
def test_names_are_never_interpreted(run: Nnac, here: Path, name: str) -> None:
    onnx.save(small_model(name), here / "odd.onnx")
    result = run("compile", "odd.onnx", "--calibrate", "random", "-o", "out/o.nna")
    text = result.out + result.err
    assert all(c.isprintable() or c == "\n" for c in text)
    if result.code == 0:
        inspected = run("inspect", "out/o.nna", "--tensors", "--disasm")
        assert inspected.code == 0 and all(c.isprintable() or c == "\n" for c in inspected.out)
    if name.isprintable():
        assert result.code == 0 and name.split()[0] in text


# -- run -----------------------------------------------------------------------------------------------------------


def test_run_stacks_samples(run: Nnac, here: Path) -> None:
    result = run("run", "m.nna", "--input", "x.npz", "-o", "out/y.npz")
    assert (result.code, result.err) == (0, "") and "8x1x4" in result.out and "float32" in result.out
    with np.load(here / "out/y.npz", allow_pickle=False) as found:
        assert found.files == ["y"] and found["y"].shape == (8, 1, 4)
        expected = nnac.load("m.nna").run({"x": samples(8)[3]})["y"]
        np.testing.assert_array_equal(found["y"][3], expected)


def test_run_takes_one_sample_as_it_is(run: Nnac, here: Path) -> None:
    result = run("run", "m.nna", "--input", "one.npz", "-o", "out/y.npz", "--raw")
    assert (result.code, result.err) == (0, "") and "int8" in result.out
    with np.load(here / "out/y.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["y"], nnac.load("m.nna").run({"x": samples(1)[0]}, raw=True)["y"])


def test_run_takes_integers_as_they_are(run: Nnac, here: Path) -> None:
    integers = np.random.default_rng(1).integers(-128, 128, (1, 3, 12, 10)).astype(np.int8)
    np.savez(here / "out/i.npz", x=integers)
    assert run("run", "m.nna", "--input", "out/i.npz", "-o", "out/y.npz", "--raw").code == 0
    with np.load(here / "out/y.npz") as found:
        np.testing.assert_array_equal(found["y"], nnac.load("m.nna").run({"x": integers}, raw=True)["y"])


def test_run_gives_equal_bytes_twice(run: Nnac, here: Path) -> None:
    for name in ("a", "b"):
        assert run("run", "m.nna", "--input", "x.npz", "-o", f"out/{name}.npz").code == 0
        time.sleep(0.01)
    assert (here / "out/a.npz").read_bytes() == (here / "out/b.npz").read_bytes()


def test_cold_kernels_are_announced(run: Nnac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_cold", lambda module: True)
    for command in (
        ("run", "m.nna", "--input", "x.npz"),
        ("inspect", "m.nna", "--selftest"),
        ("diff", "m.onnx", "m.nna", "--input", "x.npz"),
        (*COMPILE, "--check"),
    ):
        result = run(*command)
        assert result.code == 0 and str(kernels.cache_folder()) in result.err
        assert result.err.count("compiling kernels for this machine (first use, cached in ") == 1
    assert "compiling kernels" not in run("simulate", "m.nna").err  # it decodes no weights


def test_warmup_compiles_everything(run: Nnac) -> None:
    result = run("warmup")
    assert result.code == 0 and not kernels.is_cold("conv") and not kernels.is_cold("cells")
    modules = {path.stem for path in (Path(kernels.__file__).parent).glob("*.py")} - {"__init__"}
    told = {part.split()[0] for part in result.err.split("kernels: ")[1:]}
    assert told == modules | {"loops"}
    assert str(kernels.cache_folder()) in result.err


# -- simulate ------------------------------------------------------------------------------------------------------


def test_simulate_writes_json_and_trace(run: Nnac, here: Path) -> None:
    result = run("simulate", "m.nna", "--json", "out/r.json", "--trace", "out/t.json")
    assert (result.code, result.err) == (0, "") and len(result.out.splitlines()) <= 24
    data, trace = (json.loads((here / "out" / name).read_text()) for name in ("r.json", "t.json"))
    assert data["schema"] == 2 and data["blob_bytes"] == (here / "m.nna").stat().st_size
    assert f"{data['cycles']:,} cycles" in result.out and trace["otherData"]["cycles"] == data["cycles"]
    tracks: dict[int, list[tuple[int, int]]] = {}
    for event in (e for e in trace["traceEvents"] if e["ph"] == "X"):
        span = round(event["ts"] * 1e3), round((event["ts"] + event["dur"]) * 1e3)
        tracks.setdefault(event["tid"], []).append(span)
    assert all(a[1] <= b[0] for spans in tracks.values() for a, b in pairwise(sorted(spans)))
    assert max(end for spans in tracks.values() for _, end in spans) == round(data["milliseconds"] * 1e6)


def test_simulate_gives_json_alone_on_stdout(run: Nnac) -> None:
    assert json.loads(run("simulate", "m.nna", "--json", "-").out)["model"] == "small"


def test_simulate_explains_its_contract(run: Nnac) -> None:
    result = run("simulate", "m.nna", "--explain").out
    assert "The timing model" in result and "Cycles of MAC arrays" in result and "weight-stationary" in result


def test_simulate_asks_what_if(run: Nnac, here: Path) -> None:
    """Changed figures stand on the screen and in the JSON, and the time is that of the changed machine."""
    result = run(
        "simulate",
        "m.nna",
        "--set",
        "memory.dram.bytes_per_cycle=0.5",
        "--set",
        "clock_mhz=800",
        "--json",
        "out/r.json",
    )
    assert (result.code, result.err) == (0, "") and len(result.out.splitlines()) <= 24
    assert "changed      clock_mhz 500 -> 800; memory.dram.bytes_per_cycle 4 -> 0.5\n" in result.out
    data = json.loads((here / "out/r.json").read_text())
    before = json.loads(run("simulate", "m.nna", "--json", "-").out)
    assert data["changed"]["clock_mhz"] == {"compiled": 500.0, "now": 800.0} and not before["changed"]
    assert data["cycles"] > before["cycles"]
    assert data["milliseconds"] == pytest.approx(data["cycles"] / 800e3)
    same = run("simulate", "m.nna", "--set", "clock_mhz=500")
    assert same.code == 0 and "changed" not in same.out and "what the program was compiled for" in same.err


def test_simulate_times_the_next_inference(run: Nnac) -> None:
    cold, warm = run("simulate", "m.nna"), run("simulate", "m.nna", "--warm")
    assert warm.code == 0 and not warm.err and "\nwarm " in warm.out and "\nnext" not in warm.out
    (line,) = [line for line in cold.out.splitlines() if line.startswith("next ")]
    assert line.split()[1] == next(row for row in warm.out.splitlines() if row.startswith("latency")).split()[1]
    assert run("compile", "m.onnx", "--calibrate", "random", "-o", "out/s.nna", "--target", "small.toml").code == 0
    result = run("simulate", "out/s.nna", "--warm")
    assert result.code == 0 and "do not stay" in result.err and "\nnext" not in result.out


def test_simulate_lists_all_layers(run: Nnac) -> None:
    result = run("simulate", "m.nna", "--layers")
    assert result.code == 0 and all(len(line) <= 80 for line in result.out.splitlines())
    assert result.out.count("\ntotal ") == 2 and "outside the chip" in result.out


# -- sweep ---------------------------------------------------------------------------------------------------------

SWEEP = ["sweep", "m.onnx", "--vary", "mac.rows=16,32", "--vary", "memory.sram.bytes=64,65536"]


def test_sweep_prints_a_table_and_writes_csv(run: Nnac, here: Path) -> None:
    result = run(*SWEEP, "--csv", "out/s.csv", "--calibrate", "x.npz")
    assert (result.code, result.err) == (0, "") and all(len(line) <= 80 for line in result.out.splitlines())
    assert result.out.count("does not fit") == 2
    assert "\nmac.rows=16, memory.sram.bytes=64: needs " in result.out
    lines = (here / "out/s.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("mac.rows,memory.sram.bytes,cycles,")
    assert os.listdir(here / "out") == ["s.csv"]
    alone = run(*SWEEP, "--csv", "-", "--calibrate", "x.npz")
    assert alone.out.splitlines() == lines


def test_sweep_takes_shapes_and_targets(run: Nnac) -> None:
    result = run(
        "sweep",
        "dynamic.onnx",
        "--shape",
        "x=1,3,12,10",
        "--target",
        "nna8-tiny",
        "--vary",
        "mac.dataflow=weight_stationary,output_stationary",
    )
    assert result.code == 0 and "output_stationary" in result.out and "mac." in result.out


# -- diff ----------------------------------------------------------------------------------------------------------


def test_diff_lists_layers_and_outputs(run: Nnac) -> None:
    result = run("diff", "m.onnx", "m.nna", "--input", "x.npz", "--min-sqnr", "5")
    assert (result.code, result.err) == (0, "")
    assert all(len(line) <= 80 for line in result.out.splitlines())
    for name in ("conv", "pool", "dense", "softmax", "8 samples"):
        assert name in result.out
    single = run("diff", "m.onnx", "m.nna", "--input", "one.npz", "--all")
    assert single.code == 0 and "1 sample." in single.out


def test_diff_fails_below_the_wanted_quality(run: Nnac) -> None:
    result = run("diff", "m.onnx", "m.nna", "--input", "x.npz", "--min-sqnr", "300")
    assert result.code == 1 and "conv" in result.out
    assert "'y'" in result.err and "below --min-sqnr 300" in result.err


def test_diff_of_a_dynamic_model_takes_the_shapes_of_the_program(run: Nnac) -> None:
    assert run("diff", "dynamic.onnx", "m.nna", "--input", "x.npz").code == 0
    assert run("diff", "dynamic.onnx", "m.nna", "--input", "x.npz", "--shape", "x=1,3,12,10").code == 0


# -- inspect -------------------------------------------------------------------------------------------------------


def test_inspect_shows_header_interface_and_memory(run: Nnac) -> None:
    result = run("inspect", "m.nna", "--tensors", "--disasm")
    assert (result.code, result.err) == (0, "")
    program = load("m.nna")
    for what in (program.digest(), "small", "1x3x12x10", "1x12x10x3", "metadata", "weight buffer", "conv"):
        assert what in result.out


def test_inspect_shows_what_is_alive(run: Nnac) -> None:
    result = run("inspect", "m.nna", "--memory")
    assert (result.code, result.err) == (0, "") and all(len(line) <= 80 for line in result.out.splitlines())
    assert f"alive at the peak: {load('m.nna').lower_bound:,} bytes" in result.out and " whole " in result.out


def test_selftest_runs_the_known_answer(run: Nnac, here: Path) -> None:
    result = run("inspect", "m.nna", "--selftest")
    assert result.code == 0 and "selftest: 1 of 1" in result.out
    program = load("m.nna")
    wrong = replace(program, known_answer=replace(program.known_answer, digests={program.outputs[0]: "0" * 64}))
    (here / "out/wrong.nna").write_bytes(dumps(wrong))
    result = run("inspect", "out/wrong.nna", "--selftest")
    assert result.code == 1 and "known answer" in result.err and "'y'" in result.err


# -- what there is -------------------------------------------------------------------------------------------------


def test_targets_are_listed_and_explained(run: Nnac, here: Path) -> None:
    result = run("targets")
    assert result.code == 0 and "nna8-tiny" in result.out
    result = run("targets", "nna8")
    assert result.code == 0 and "memory.sram.bytes" in result.out and "524,288 bytes" in result.out
    own = (ROOT / "targets" / "nna8.toml").read_text().replace("clock_mhz = 500", "clock_mhz = 77")
    (here / "own.toml").write_text(own)
    assert "77 MHz" in run("targets", "own.toml").out


def test_operators_are_listed(run: Nnac) -> None:
    assert "\nConv " in run("ops").out
    assert "| `Conv` | Conv |" in run("ops", "--markdown").out


def test_demo_hears_digits(run: Nnac) -> None:
    result = run("demo")
    assert (result.code, result.err) == (0, "")
    assert len([line for line in result.out.splitlines() if ".wav" in line and "spoken" in line]) == 20
    assert "of 20 clips heard right" in result.out and "latency" in result.out


def test_demo_hears_sequences(run: Nnac) -> None:
    result = run("demo", "--transducer", "--target", "nna8-tiny")
    assert (result.code, result.err) == (0, "")
    heard = [line.split() for line in result.out.splitlines() if ".wav" in line]
    assert len(heard) == 6 and sum(words[2] == words[4] for words in heard) >= 5
    assert "GQ, 5-bit weights" in result.out and "word error rate" in result.out


def test_demo_without_the_repository(run: Nnac, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nnac, "__file__", str(tmp_path / "nnac" / "__init__.py"))
    for command in (["demo"], ["demo", "--transducer"]):
        result = run(*command)
        assert result.code == 1 and "clone of the repository" in result.err
