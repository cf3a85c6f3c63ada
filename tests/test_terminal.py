"""The command line as a program on a terminal: help, every kind of error, streams, exit codes, interruptions."""

from __future__ import annotations

import errno
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

import nnac
from nnac import compiler
from nnac.cli import cli
from nnac.validate import load
from tests.commands import COMPILE, ROOT, Nnac, Result, finish, small_model, spawn

HEAVY = ("numpy", "numba", "onnx", "onnxruntime", "onnxscript", "rich", "safetensors", "networkx")
HELP_SECONDS = 0.3
SLACK = 2


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
    emulate = ["run", "m.nna", "--input", "x.npz"]
    finish(spawn(*emulate, cwd=here))  # which says so where it is the first to need the kernels
    for command in (emulate, COMPILE):
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
    assert shown in _seen(here, command)


def test_a_bar_says_that_kernels_are_compiled(here: Path) -> None:
    """The one of each kernel is taken away again; what is compiled already shows none."""
    seen = [_seen(here, COMPILE, NUMBA_CACHE_DIR=str(here / "cache")) for _ in range(2)]
    for name in (b"histogram", b"share_states", b"pack_states"):
        assert b"compiling " + name in seen[0]
    assert seen[0].count(b"first use") == 1 and b"compiling" not in seen[1]


def _seen(here: Path, command: Sequence[str], **environment: str) -> bytes:
    """Return what a command shows on the terminal that its stderr is."""
    leader, follower = pty.openpty()
    process = spawn(*command, cwd=here, stderr=follower, env={"TERM": "xterm-256color"} | environment)
    os.close(follower)
    seen = b""
    while chunk := _read(leader):
        seen += chunk
    os.close(leader)
    assert finish(process).code == 0
    return seen


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
