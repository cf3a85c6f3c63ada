"""Dense layers of int8: our tiles and onnxruntime's, one process, one thread, interleaved.

``python -m tests.benchmarks.gemm [--rounds 60] [--json gemm.json] [--profile]``. A ratio is onnxruntime's time over
ours: above 1 we are faster. Weights are packed before on both sides. Ours makes int8 outputs, requantized exactly; of
onnxruntime's forms, MatMulInteger (int32 sums only) and QLinearMatMul, both with its faster unsigned activations, the
faster one counts. Ours is compared with the law on onnxruntime's sums.

``--profile`` says where our time goes: all of a layer, its tiles alone on lifted rows, and one tile alone on operands
that stay in the nearest cache, against what the processor can issue at the clock that it has at that moment.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numba
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from nnac.kernels import conv, machine, products
from nnac.kernels.calls import Prepared
from nnac.kernels.panels import room
from nnac.kernels.vectors import address, call_address
from nnac.numerics import Rounding
from nnac.ops.exact import round_shift
from nnac.types import Array

SHAPES = ((128, 1024, 1024), (16, 4096, 1024), (1, 4096, 1024), (1, 20480, 2048))
"""Rows, units, depth."""
ZERO, MULTIPLIER, SHIFT = 5, 1518500250, 45
LANES = {"avx512": 16, "avxvnni": 8}
"""Sums that one instruction adds to; a processor that begins one such instruction per cycle is assumed."""


def sessions(rows: int, weights: Array) -> dict[str, onnxruntime.InferenceSession]:
    """Return onnxruntime's products with those weights (depth, units), by operator."""
    depth, units = weights.shape
    scalars = {"xs": np.float32(1), "xz": np.uint8(128), "ws": np.float32(1), "wz": np.int8(0), "yz": np.uint8(128)}
    scalars["ys"] = np.float32(2.0**SHIFT / MULTIPLIER)
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in scalars.items()]
    forms = {
        "MatMulInteger": (["x", "w"], TensorProto.INT32),
        "QLinearMatMul": (["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], TensorProto.UINT8),
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    found = {}
    for name, (inputs, kind) in forms.items():
        graph = helper.make_graph(
            [helper.make_node(name, inputs, ["y"])],
            "product",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, [rows, depth])],
            [helper.make_tensor_value_info("y", kind, [rows, units])],
            [numpy_helper.from_array(weights, "w"), *(c for c in constants if c.name in inputs)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
        found[name] = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return found


class Ours:
    """One dense layer, packed and prepared."""

    def __init__(self, x: Array, weights: Array) -> None:
        (rows, depth), units = x.shape, len(weights)
        law = (-128, ZERO, -128, 127, Rounding.HALF_EVEN, 32, 0)
        self.layer = conv.Layer(1, 1, depth, depth, 1, 1, 1, 1, 0, 0, units, 0, *map(int, law))
        self.x, self.y = room(x.size).reshape(rows, 1, depth), np.empty((rows, 1, units), np.int8)
        self.x[:, 0] = x
        self.filters = conv.empty_filters(units, self.layer)
        scale = np.full(units, MULTIPLIER, np.int32), np.full(units, SHIFT, np.int8)
        conv.packing(weights, np.zeros(units, np.int32), *scale, self.filters, self.layer).run()
        workspace = room(products.workspace_bytes(self.layer, self.y.shape))
        self.run = Prepared([products.product(self.x, self.filters, self.y, workspace, self.layer)]).run


def seconds(run: Callable[[], object]) -> float:
    """Time one run."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def compare(rows: int, units: int, depth: int, rounds: int, processor: str) -> dict[str, Any]:
    """Time all in turns, on the same numbers."""
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (rows, depth), dtype=np.int8)
    weights = rng.integers(-127, 128, (units, depth), dtype=np.int8)
    lifted, theirs = (x.astype(np.int16) + 128).astype(np.uint8), sessions(rows, np.ascontiguousarray(weights.T))
    with machine.forced(processor):
        ours = Ours(x, weights)
        ours.run()
    sums = theirs["MatMulInteger"].run(None, {"x": lifted})[0].astype(np.int64)
    expected = np.clip(round_shift(sums * MULTIPLIER, SHIFT, Rounding.HALF_EVEN) + ZERO, -128, 127)
    if not np.array_equal(ours.y[:, 0], expected):
        raise SystemExit(f"{rows}x{units}x{depth}: the outputs differ from the law on onnxruntime's sums")
    runs: dict[str, Callable[[], object]] = {"nnac": ours.run}
    for name, session in theirs.items():
        runs[name] = lambda session=session: session.run(None, {"x": lifted})  # type: ignore[misc]
    times = [[seconds(run) for run in runs.values()] for _ in range(rounds)]
    found = dict(zip(runs, map(median, zip(*times, strict=True)), strict=True))
    best, products = min(list(found)[1:], key=found.__getitem__), rows * units * depth / 1e9
    return {
        "shape": [rows, units, depth],
        "processor": processor,
        "ms": {name: value * 1e3 for name, value in found.items()},
        "gmac_s": {name: products / value for name, value in found.items()},
        "best": best,
        "ratio": found[best] / found["nnac"],
    }


# -- profile -------------------------------------------------------------------------------------------------------


@numba.njit(nogil=True)
def _tiles(
    tile: int, places: Any, runs: Any, packed: Any, steps: int, width: int, units: int, sums: Any, repeats: int
) -> None:
    """All panels of a layer on lifted rows, in the portions that `conv` takes; no requantization."""
    portion = sums.size // width
    for first in range(0, places.size * repeats, portion):
        first = first % places.size
        rows = min(portion, places.size - first)
        for unit in range(0, units, width):
            panel = address(packed) + unit * 4 * (steps + 1)
            row = (address(places) + 8 * first, rows, address(runs), 1, panel, steps, width, address(sums), 4 * width)
            call_address(tile, row)


@numba.njit(nogil=True)
def _chain(count: int, factor: int) -> Any:
    """Products and sums that wait for each other: four cycles each."""
    value = np.int64(1)
    for _ in range(count):
        value = value * factor + 1
    return value


def clock() -> float:
    """Return the cycles per second of this core at this moment."""
    _chain(10, 3)
    return 4 * 10**7 / min(seconds(lambda: _chain(10**7, 3)) for _ in range(9))


def tiles_alone(rows: int, units: int, depth: int, repeats: int = 1) -> Callable[[], None]:
    """Return what runs a layer's tiles on rows that are lifted already."""
    width, steps = machine.width(), -(-depth // 4)
    packed, x, sums = room(units * 4 * (steps + 1)), room(rows * depth), room(4 * products.SUMS).view(np.int32)
    packed[:] = 1
    places, runs = x.ctypes.data + depth * np.arange(rows, dtype=np.int64), np.zeros(1, np.int64)
    return lambda: _tiles(machine.tile(), places, runs, packed, steps, width, units, sums, repeats)


def profile(rounds: int) -> dict[str, Any]:
    """Print, and return, where our time goes; the shortest times count."""
    cycles, lanes, repeats = clock(), LANES.get(machine.processor(), 4), 1000
    peak, near = 4 * lanes * cycles / 1e9, tiles_alone(48, machine.width(), 128, repeats)
    near()
    rate = 48 * machine.width() * 128 * repeats / min(seconds(near) for _ in range(rounds)) / 1e9
    print(f"\nclock {cycles / 1e9:.2f} GHz: {peak:.1f} GMAC/s at one instruction of {4 * lanes} products per cycle")
    print(f"one panel in the nearest cache: {rate:.1f} GMAC/s, {rate / peak:.1%} of that")
    found: dict[str, Any] = {"clock_hz": cycles, "peak_gmac_s": peak, "near_gmac_s": rate, "layers": []}
    for rows, units, depth in SHAPES:
        runs = (
            Ours(np.zeros((rows, depth), np.int8), np.ones((units, depth), np.int8)).run,
            tiles_alone(rows, units, depth),
        )
        whole, alone = map(min, zip(*([seconds(run) for run in runs] for _ in range(rounds)), strict=True))
        rate = rows * units * depth / whole / 1e9
        print(
            f"{rows}x{units}x{depth}: {whole * 1e3:.3f} ms, {rate:.1f} GMAC/s, {rate / peak:.1%}; tiles"
            f" {alone / whole:.1%}, lift and requantization {1 - alone / whole:.1%}"
        )
        found["layers"].append({"shape": [rows, units, depth], "ms": whole * 1e3, "tiles_ms": alone * 1e3})
    return found


def main() -> None:
    """Print the table and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--processor", default=machine.processor(), choices=machine.runnable())
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = [compare(*shape, arguments.rounds, arguments.processor) for shape in SHAPES]
    print(f"{'rows x units x depth':>22}  nnac GMAC/s  onnxruntime GMAC/s  ratio  ({arguments.processor})")
    for r in results:
        name, rate = "x".join(map(str, r["shape"])), r["gmac_s"]
        print(f"{name:>22}  {rate['nnac']:11.1f}  {rate[r['best']]:18.1f}  {r['ratio']:5.2f}  ({r['best']})")
    kept: dict[str, Any] = {"onnx": onnx.__version__, "results": results}
    if arguments.profile:
        with machine.forced(arguments.processor):
            kept["profile"] = profile(arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
