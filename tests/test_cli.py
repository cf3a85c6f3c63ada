"""The command line: every command, every kind of error, streams, exit codes, interruptions."""

from __future__ import annotations

import errno
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac import compiler, kernels
from nnac.cli import cli
from nnac.program import dumps
from nnac.validate import load

ROOT = Path(nnac.__file__).resolve().parent.parent
COMMAND = [sys.executable, "-c", "from nnac.cli import main; main()"]
HEAVY = ("numpy", "numba", "onnx", "onnxruntime", "onnxscript", "rich", "safetensors", "networkx")
COMPILE = ["compile", "m.onnx", "--calibrate", "random", "-o", "out/o.nna"]
HELP_SECONDS = 0.3
SLACK = 2
Nnac = Callable[..., "Result"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


def small_model(layer: str = "conv", batch: int | str = 1) -> onnx.ModelProto:
    """Return conv, relu, global average pool, dense, softmax."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(size=(8, 3, 3, 3)), "b": rng.normal(size=8), "v": rng.normal(size=(8, 4))}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], layer, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "v"], ["g"], "dense"),
        helper.make_node("Softmax", ["g"], ["y"], "softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 12, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(5).normal(size=(count, 1, 3, 12, 10)).astype(np.float32)


@pytest.fixture(scope="session")
def assets_of_cli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, a program, samples and files that are wrong in some way."""
    folder = tmp_path_factory.mktemp("cli")
    onnx.save(small_model(), folder / "m.onnx")
    onnx.save(small_model(batch="N"), folder / "dynamic.onnx")
    compiled = compiler.compile(folder / "m.onnx", "nna8", list({"x": x} for x in samples(8)))
    compiled.save(folder / "m.nna")
    blob = (folder / "m.nna").read_bytes()
    (folder / "damaged.nna").write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    (folder / "cut.nna").write_bytes(blob[:100])
    (folder / "text.onnx").write_text("this is no model\n")
    (folder / "bad.toml").write_text("name = 3\n")
    tight = (ROOT / "targets" / "nna8.toml").read_text().replace("bytes = 131_072", "bytes = 1_024")
    (folder / "small.toml").write_text(tight)
    np.savez(folder / "x.npz", x=samples(8))
    np.savez(folder / "one.npz", x=samples(1)[0])
    np.savez(folder / "names.npz", wrong=samples(8))
    np.savez(folder / "shapes.npz", x=samples(8)[..., :5])
    np.savez(folder / "nan.npz", x=samples(1)[0] * np.nan)
    np.savez(folder / "objects.npz", x=np.array([{}, 1], dtype=object))
    return folder


@pytest.fixture
def here(assets_of_cli: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder beside links to the assets."""
    for path in assets_of_cli.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Nnac:
    """Return a function that runs a command in this process."""

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = 0
        try:
            cli.main(list(arguments), prog_name="nnac")
        except SystemExit as left:
            code = int(left.code or 0)
        return Result(code, *capsys.readouterr())

    return call


def spawn(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own, both streams in pipes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def finish(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


# -- the frame -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["compile", "--help"], ["--version"], ["frob"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom nnac.cli import main\nsys.argv[1:] = " + repr(arguments) + "\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert not set(found.stdout.splitlines()[-1].split()) & set(HEAVY)


def test_help_is_instant() -> None:
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        assert finish(spawn("--help")).code == 0
        durations.append(time.perf_counter() - start)
    assert min(durations) < HELP_SECONDS * SLACK


def test_version(run: Nnac) -> None:
    assert run("--version") == Result(0, f"nnac {nnac.__version__}\n", "")


def test_every_command_explains_itself(run: Nnac) -> None:
    for name in cli.commands:
        result = run(name, "--help")
        assert result.code == 0 and result.out.startswith(f"Usage: nnac {name}") and not result.err


def test_interruption_is_one_line(run: Nnac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "compile", _raising(KeyboardInterrupt()))
    assert run(*COMPILE) == Result(130, "", "nnac: interrupted\n")


def _raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_a_fault_of_nnac_says_so_and_where_the_traceback_is(run: Nnac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "compile", _raising(KeyError("x\x1b[31m")))
    result = run(*COMPILE)
    assert result.code == 1 and not result.out and len(result.err.splitlines()) == 1
    assert "fault of nnac" in result.err and "NNAC_DEBUG=1" in result.err and "KeyError" in result.err
    assert "\x1b" not in result.err
    monkeypatch.setenv("NNAC_DEBUG", "1")
    assert "Traceback" in run(*COMPILE).err


@pytest.mark.parametrize(
    "error, text",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "nnac: error: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), "nnac: error: 'f': Permission denied\n"),
        (MemoryError(), "nnac: error: out of memory\n"),
    ],
)
def test_errors_of_the_system_are_one_line(
    run: Nnac, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    monkeypatch.setattr(compiler, "compile", _raising(error))
    assert run(*COMPILE) == Result(1, "", text)


def test_broken_pipe_is_quiet() -> None:
    process = spawn("ops", "--markdown")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode != 0


def test_output_survives_a_poor_terminal(here: Path) -> None:
    onnx.save(small_model("schöne_日本_schicht" * 9), here / "wide.onnx")
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = finish(spawn("compile", "wide.onnx", "--calibrate", "random", cwd=here, env=ascii_only))
    assert result.code == 0 and result.err == "" and "\nsch" in result.out


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


# -- errors --------------------------------------------------------------------------------------------------------

ERRORS: list[tuple[list[str], int, list[str]]] = [
    (["compile", "missing.onnx", "--calibrate", "random"], 1, ["missing.onnx", "No such file"]),
    (["compile", "text.onnx", "--calibrate", "random"], 1, ["text.onnx", "not an ONNX model"]),
    (["compile", "out", "--calibrate", "random"], 1, ["out", "regular file"]),
    (["compile", "m.onnx"], 1, ["no calibration", "--calibrate samples.npz", "--calibrate random"]),
    (["compile", "m.onnx", "--calibrate", "missing.npz"], 1, ["missing.npz"]),
    (["compile", "m.onnx", "--calibrate", "names.npz"], 1, ["'wrong'", "'x'"]),
    (["compile", "m.onnx", "--calibrate", "shapes.npz"], 1, ["[1, 3, 12, 5]", "[1, 3, 12, 10]"]),
    (["compile", "m.onnx", "--calibrate", "objects.npz"], 1, ["object"]),
    (["compile", "dynamic.onnx", "--calibrate", "random"], 1, ["'x'", "--shape"]),
    ([*COMPILE, "--method", "magic"], 1, ["magic", "minmax, percentile, mse"]),
    ([*COMPILE, "--target", "nosuch"], 1, ["nosuch", "nna8-tiny"]),
    ([*COMPILE, "--target", "bad.toml"], 1, ["bad.toml", "name", "memory.sram"]),
    ([*COMPILE, "--shape", "z=1,2"], 1, ["'z'"]),
    ([*COMPILE, "--shape", "x"], 2, ["--shape", "image=1,3,224,224"]),
    ([*COMPILE, "--shape", "x=1,-3"], 2, ["--shape"]),
    ([*COMPILE, "--shape", "x=1,0"], 2, ["--shape"]),
    ([*COMPILE, "--max-sram", "12G"], 2, ["--max-sram", "K or M"]),
    ([*COMPILE, "--max-cycles", "-5"], 2, ["--max-cycles"]),
    ([*COMPILE, "--max-flash", "1.5K"], 2, ["--max-flash"]),
    ([*COMPILE[:-1], "nowhere/o.nna"], 1, ["nowhere/o.nna", "folder does not exist"]),
    ([*COMPILE[:-1], "out"], 1, ["'out'", "not a regular file"]),
    ([*COMPILE[:-1], os.devnull], 1, [os.devnull, "not a regular file"]),
    ([*COMPILE[:-1], "m.onnx"], 1, ["read by the same command"]),
    (["run", "missing.nna", "--input", "x.npz"], 1, ["missing.nna", "No such file"]),
    (["run", "damaged.nna", "--input", "x.npz"], 1, ["damaged.nna", "damaged"]),
    (["run", "cut.nna", "--input", "x.npz"], 1, ["cut.nna", "cut short"]),
    (["run", "m.onnx", "--input", "x.npz"], 1, ["m.onnx", ".nna file"]),
    (["run", "m.nna"], 2, ["--input"]),
    (["run", "m.nna", "--input", "missing.npz"], 1, ["missing.npz"]),
    (["run", "m.nna", "--input", "names.npz"], 1, ["'wrong'", "'x'"]),
    (["run", "m.nna", "--input", "shapes.npz"], 1, ["[1, 3, 12, 5]"]),
    (["run", "m.nna", "--input", "text.onnx"], 1, ["text.onnx", "zip"]),
    (["run", "m.nna", "--input", "objects.npz"], 1, ["object"]),
    (["run", "m.nna", "--input", "nan.npz"], 1, ["NaN"]),
    (["run", "m.nna", "--input", "x.npz", "-o", "x.npz"], 1, ["read by the same command"]),
    (["run", "m.nna", "--input", "x.npz", "-o", "nowhere/y.npz"], 1, ["folder does not exist"]),
    (["simulate", "damaged.nna"], 1, ["damaged"]),
    (["simulate", "m.nna", "--json", "nowhere/r.json"], 1, ["folder does not exist"]),
    (["simulate", "m.nna", "--trace", "m.nna"], 1, ["read by the same command"]),
    (["simulate", "m.nna", "--set", "mac.rows=16"], 1, ["mac.rows", "compile the model again"]),
    (["simulate", "m.nna", "--set", "memory.sram.bytes=1024"], 1, ["memory.sram.bytes", "compile the model again"]),
    (["simulate", "m.nna", "--set", "memory.sram.speed=3"], 1, ["'memory.sram.speed'", "nnac targets nna8"]),
    (["simulate", "m.nna", "--set", "clock_mhz"], 1, ["'clock_mhz'", "name=value"]),
    (["simulate", "m.nna", "--set", "clock_mhz=fast"], 1, ["clock_mhz", "'fast'"]),
    (["simulate", "m.nna", "--set", "clock_mhz=nan"], 1, ["clock_mhz"]),
    (["simulate", "m.nna", "--set", "vector.lanes=1", "--set", "vector.lanes=2"], 1, ["'vector.lanes'", "than once"]),
    (["sweep", "m.onnx"], 2, ["--vary"]),
    (["sweep", "missing.onnx", "--vary", "mac.rows=1,2"], 1, ["missing.onnx"]),
    (["sweep", "m.onnx", "--vary", "mac.rows"], 1, ["'mac.rows'", "mac.rows=16,32,64"]),
    (["sweep", "m.onnx", "--vary", "mac.rows=1,,2"], 1, ["name=value,value"]),
    (["sweep", "m.onnx", "--vary", "mac.rows=0"], 1, ["mac.rows", "found 0"]),
    (["sweep", "m.onnx", "--vary", "mac.rows=1", "--vary", "mac.rows=2"], 1, ["'mac.rows'", "than once"]),
    (["sweep", "m.onnx", "--vary", "mac.rows=1", "--csv", "nowhere/s.csv"], 1, ["folder does not exist"]),
    (["sweep", "m.onnx", "--vary", "mac.rows=1", "--csv", "m.onnx"], 1, ["read by the same command"]),
    (["inspect", "out"], 1, ["'out'"]),
    (["inspect", "text.onnx"], 1, ["text.onnx"]),
    (["diff", "missing.onnx", "m.nna", "--input", "x.npz"], 1, ["missing.onnx"]),
    (["diff", "m.onnx", "m.nna", "--input", "names.npz"], 1, ["'wrong'"]),
    (["diff", "m.onnx", "m.nna", "--input", "x.npz", "--min-sqnr", "much"], 2, ["--min-sqnr"]),
    (["targets", "nosuch"], 1, ["nosuch", "nna8"]),
    (["targets", "bad.toml"], 1, ["clock_mhz"]),
    (["demo", "--target", "nosuch"], 1, ["nosuch"]),
    (["run", "x.nna", "--input", "x.npz", "--threads", "0"], 2, ["--threads"]),
    (["frob"], 2, ["frob"]),
    (["compile"], 2, ["MODEL"]),
]


@pytest.mark.parametrize(
    "arguments, code, words", ERRORS, ids=lambda value: " ".join(value) if (isinstance(value, list)) else str(value)
)
def test_errors_name_the_cause_and_leave_nothing(
    run: Nnac, here: Path, arguments: Sequence[str], code: int, words: Sequence[str]
) -> None:
    before = sorted(os.listdir(here))
    result = run(*arguments)
    assert result.code == code
    assert result.out == "" and result.err != "" and "Traceback" not in result.err and "fault of nnac" not in result.err
    assert result.err.startswith("nnac: error: " if code == 1 else "Usage: nnac")
    missing = [word for word in words if word not in result.err]
    assert not missing, result.err
    assert sorted(os.listdir(here)) == before and os.listdir(here / "out") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_found_before_the_work(run: Nnac, here: Path) -> None:
    (here / "out").chmod(0o500)
    result = run(*COMPILE)
    assert result.code == 1 and "not writable" in result.err


def test_a_device_is_never_replaced(run: Nnac) -> None:
    run("run", "m.nna", "--input", "x.npz", "-o", os.devnull)
    assert not Path(os.devnull).is_file()


# -- streams -------------------------------------------------------------------------------------------------------


def test_there_is_no_progress_bar_in_a_pipe(here: Path) -> None:
    for command in (["run", "m.nna", "--input", "x.npz"], COMPILE):
        result = finish(spawn(*command, cwd=here, env={"TERM": "xterm-256color"}))
        assert (result.code, result.err) == (0, "") and "\r" not in result.out and "\x1b" not in result.out


@pytest.mark.parametrize(
    "command, shown",
    [
        (["compile", "m.onnx", "--calibrate", "x.npz", "-o", "out/o.nna"], b"calibrating"),
        (["sweep", "m.onnx", "--vary", "mac.rows=8,16,32"], b"sweeping"),
    ],
)
def test_there_is_a_progress_bar_on_a_terminal(here: Path, command: Sequence[str], shown: bytes) -> None:
    leader, follower = pty.openpty()
    process = spawn(*command, cwd=here, stderr=follower, env={"TERM": "xterm-256color"})
    os.close(follower)
    seen = b""
    while chunk := _read(leader):
        seen += chunk
    os.close(leader)
    assert finish(process).code == 0 and shown in seen


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 1 << 16)
    except OSError:  # what Linux says when the other end is closed
        return b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_on_stdout_is_an_error(here: Path) -> None:
    with open("/dev/full", "w") as full:
        result = finish(spawn("simulate", "m.nna", cwd=here, stdout=full))
    assert result.code == 1 and "No space left" in result.err and "Traceback" not in result.err


# -- interruptions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_compilation_leaves_nothing_half(here: Path, kind: signal.Signals) -> None:
    target, moments = here / "out/o.nna", random.Random(int(kind))
    for _ in range(5):
        target.unlink(missing_ok=True)
        process = spawn("compile", "m.onnx", "--calibrate", "x.npz", "-o", str(target), cwd=here)
        time.sleep(moments.uniform(0.1, 1.3))
        process.send_signal(kind)
        result = finish(process)
        assert "fault of nnac" not in result.err
        if target.exists():
            load(target)
        if kind == signal.SIGINT:
            assert set(os.listdir(here / "out")) <= {"o.nna"}


def test_an_interrupted_write_keeps_the_old_file(run: Nnac, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "out/o.nna").write_text("old")
    monkeypatch.setattr(os, "replace", _raising(KeyboardInterrupt()))
    assert run(*COMPILE).code == 130
    assert (here / "out/o.nna").read_text() == "old" and os.listdir(here / "out") == ["o.nna"]
