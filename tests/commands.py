"""The command line under test: its fixtures, a folder to work in, and commands in this process or another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nnac
from nnac import compiler
from nnac.cli import cli

ROOT = Path(nnac.__file__).resolve().parent.parent
COMMAND = [sys.executable, "-c", "from nnac.cli import main; main()"]
COMPILE = ["compile", "m.onnx", "--calibrate", "random", "-o", "out/o.nna"]
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
