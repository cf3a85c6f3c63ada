"""Hostile models through the command line, each in a process of its own: refused within 5 s and 1 GB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.nets import net

ROOT = Path(__file__).resolve().parent.parent
SECONDS, KIBIBYTES, ENDLESS = 5, 1 << 20, 60
SIDE = 1 << 20
HUGE = np.array([SIDE, SIDE])
X: dict[str, tuple[int, ...]] = {"x": (1, 1)}
IMAGE = {"x": (1, 4, 6, 6)}
DET = "\ny = Det (a)"
"""No accelerator has it: the host is allowed, and must not be asked to run what is hostile."""


def huge(line: str, inputs: dict[str, tuple[int, ...]] = X, **constants: Any) -> onnx.ModelProto:
    """Return a model that makes 2^40 entries, from its input or from constants."""
    return net(f"{line}\na = Add (x, w)\ny = ReduceSum (a)", inputs, **constants)


def stored(**fields: Any) -> onnx.ModelProto:
    """Return a model with one stored tensor of that kind."""
    model = net("y = Add (x, w)", {"x": (1, 4)})
    model.graph.initializer.append(TensorProto(**{"name": "w", "data_type": TensorProto.FLOAT, "dims": [4], **fields}))
    return model


def outside(dims: int = 4, **entries: str) -> onnx.ModelProto:
    """Return a model whose weights lie in another file."""
    model = stored(dims=[dims], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)
    return model


def poisoned(value: float, line: str = "a = Conv (x, w)") -> onnx.ModelProto:
    """Return a model with one weight that is no number."""
    weights = np.ones((4, 4, 3, 3), np.float32)
    weights[1, 2, 0, 1] = value
    return net(line + DET, IMAGE, w=weights)


def loop(steps: int, line: str) -> onnx.ModelProto:
    """Return a loop of constant trip count over a value."""
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("v", "next")}
    goes_on = {name: helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "still")}
    nodes = [onnx.parser.parse_node(each) for each in (line, "still = Identity (on)")]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(nodes, "body", [count, goes_on["on"], values["v"]], [goes_on["still"], values["next"]])
    model = net("first = Relu (x)", X, "y", steps=np.int64(steps), true=np.bool_(True))
    model.graph.node.append(helper.make_node("Loop", ["steps", "true", "first"], ["y"], name="loop", body=body))
    return model


def nested(depth: int) -> onnx.ModelProto:
    """Return choices inside of choices, of which the innermost reads what nothing makes."""
    out = [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    inner = helper.make_graph([onnx.parser.parse_node("o = Relu (nobody)")], "inner", [], out)
    last = inner
    for _ in range(depth):
        choice = helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=last)
        inner = helper.make_graph([choice], "outer", [], out)
    model = net("y = Add (x, o)", X, c=np.bool_(True))
    model.graph.node.insert(0, inner.node[0])
    return model


def doubled(operand: str, **constants: Any) -> onnx.ModelProto:
    """Return a value joined with itself sixty times."""
    lines = [f"h{i} = Concat <axis = 0> ({2 * f'h{i - 1}, ' if i else 2 * f'{operand}, '}".rstrip(", ") + ")"
             for i in range(60)]  # fmt: skip
    return net("\n".join([*lines, "a = Add (x, h59)", "y = ReduceSum (a)"]), {"x": (1,)}, **constants)


def recursive() -> onnx.ModelProto:
    """Return a model whose function calls itself."""
    model = net("y = my.F (x)", X)
    model.graph.node[0].domain, model.graph.node[0].op_type = "my", "F"
    model.opset_import.append(helper.make_opsetid("my", 1))
    call = helper.make_node("F", ["p"], ["q"], domain="my")
    model.functions.append(helper.make_function("my", "F", ["p"], ["q"], [call], model.opset_import))
    return model


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "cyclic": (lambda: net("a = Det (y)\ny = Relu (a)", IMAGE), "cycle"),
    "wrong shapes": (lambda: net("a = Conv (x, w)" + DET, {"x": (1, 3, 6, 6)}, w=(4, 4, 3, 3)), "as many channels"),
    "wrong shapes of a product": (lambda: net("y = MatMul (x, w)", {"x": (1, 4)}, w=(5, 3)), "do not fit"),
    "wrong shapes of a view": (lambda: net("y = Reshape (x, s)", X, s=np.array([3, 7])), "Reshape 'y': input_shape"),
    "wrong index": (lambda: net("y = Gather (x, i)", X, i=np.array([7])), "Gather 'y': indices element out of data"),
    "missing initializer": (lambda: net("a = Conv (x, w)" + DET, IMAGE), "'w', which nothing makes"),
    "2^40 elements": (lambda: net("y = Det (x)", {"x": (SIDE, SIDE, 2, 2)}), "elements"),
    "2^40 elements stored": (lambda: stored(dims=[SIDE, SIDE], raw_data=b"1234"), "elements"),
    "2^64 elements stored": (lambda: stored(dims=[1 << 62, 4]), "every dimension"),
    "2^40 elements on the host": (
        lambda: net("a = Expand (x, s)" + DET, X, s=np.array([SIDE, SIDE, 2, 2])),
        "elements",
    ),
    "ConstantOfShape": (lambda: huge("w = ConstantOfShape (s)", s=HUGE), "would make a constant"),
    "Expand": (lambda: huge("w = Expand (c, s)", c=np.float32(1), s=HUGE), "would make a constant"),
    "Tile": (lambda: huge("w = Tile (x, s)", s=HUGE), "elements"),
    "Range": (
        lambda: huge("w = Range (b, e, d)", b=np.float32(0), e=np.float32(2**40), d=np.float32(1)),
        "would make a constant",
    ),
    "Resize": (
        lambda: huge('w = Resize <mode = "nearest"> (x, , , s)', {"x": (1, 1, 1, 1)}, s=np.array([1, 1, SIDE, SIDE])),
        "elements",
    ),
    "Pad": (lambda: huge("w = Pad (x, s)", s=np.array([0, 0, SIDE, SIDE])), "elements"),
    "OneHot": (
        lambda: huge("w = OneHot (i, d, v)", i=np.arange(2), d=np.int64(1 << 40), v=np.array([0, 1], np.float32)),
        "would make a constant",
    ),
    "doubled input": (lambda: doubled("x"), "every dimension"),
    "doubled constant": (lambda: doubled("k", k=np.ones(1, np.float32)), "would make a constant"),
    "endless loop": (lambda: loop(1 << 40, "next = Relu (v)"), "at most 64"),
    "doubling loop": (lambda: loop(40, "next = Concat <axis = 1> (v, v)"), "every dimension"),
    "NaN": (lambda: poisoned(np.nan), "not finite"),
    "infinity": (lambda: poisoned(-np.inf), "not finite"),
    "zero size": (lambda: net("y = Det (x)", {"x": (1, 0, 6, 6)}), "fixed shapes"),
    "zero size inside": (
        lambda: net("y = Slice (x, b, b, one)", IMAGE, b=np.array([2]), one=np.array([1])),
        "every dimension must be 1 to",
    ),
    "duplicate names": (lambda: net("y = Det (x)\ny = Relu (x)", IMAGE), "exists already"),
    "external data above": (lambda: outside(location="../../etc/passwd"), "not a relative path"),
    "external data anywhere": (lambda: outside(location="/etc/passwd"), "not a relative path"),
    "external data by a link": (lambda: outside(location="link"), "leaves the model's folder"),
    "external data too short": (lambda: outside(location="short"), "needs 16 bytes of data, found 8"),
    "external data too long": (lambda: outside(location="long"), "at most 16 are allowed"),
    "external data of 2^40 elements": (lambda: outside(1 << 40, location="long"), "every dimension"),
    "nested choices": (lambda: nested(25), "'nobody', which nothing makes"),
    "recursion": (recursive, "calls itself"),
}
FILES = {
    "empty": (b"", "is empty"),
    "noise": (np.random.default_rng(0).bytes(1 << 16), "not an ONNX model"),
    "a field of noise": (b"\x3a" + np.random.default_rng(0).bytes(1 << 16), "not an ONNX model"),
}
SPARSE = {"2 GB of nothing": "not an ONNX model"}
WORDS = {name: words for cases in (MODELS, FILES) for name, (_, words) in cases.items()} | SPARSE

SCRIPT = f"""
import json, os, signal, sys, time
import nnac.cli, nnac.compiler, nnac.frontend, onnx, onnxruntime
for path in sys.argv[1:]:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(write, stream)
        signal.alarm({ENDLESS})
        sys.argv = ["nnac", "compile", path, "--calibrate", "random", "-o", path + ".nna"]
        try:
            nnac.cli.main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code)
    os.close(write)
    text = open(read, errors="replace").read()
    _, status, used = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss, text]))
"""
"""Runs the command once per file in a fork, which has the imports; prints exit code, processor time, peak and text."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, float, int, str]]:
    """Return what became of every hostile file: exit code, seconds, KiB at the peak, and what was said."""
    folder = tmp_path_factory.mktemp("hostile")
    files = {name: make().SerializeToString() for name, (make, _) in MODELS.items()}
    files |= {name: data for name, (data, _) in FILES.items()} | dict.fromkeys(SPARSE, b"")
    paths = [folder / f"{number}.onnx" for number in range(len(files))]
    for path, data in zip(paths, files.values(), strict=True):
        path.write_bytes(data)
    os.truncate(paths[-1], (1 << 31) - 1)
    (folder / "short").write_bytes(bytes(8))
    (folder / "long").touch()
    os.truncate(folder / "long", 3 << 30)
    (folder / "link").symlink_to("/etc/passwd")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return {name: tuple(json.loads(line)) for name, line in zip(files, done.stdout.splitlines(), strict=True)}


@pytest.mark.parametrize("name", WORDS)
def test_hostile_models(name: str, outcomes: dict[str, tuple[int, float, int, str]]) -> None:
    """Exit code 1 and one message that says why, no traceback, in little time and memory."""
    code, seconds, peak, text = outcomes[name]
    assert code == 1 and WORDS[name] in " ".join(text.split()) and "Traceback" not in text, text
    assert seconds < SECONDS and peak < KIBIBYTES
