"""Products of int8 matrices: our tiles and onnxruntime's, one process, one thread, interleaved.

``python -m tests.benchmarks.gemm [--rounds 60] [--json gemm.json]``. A ratio is the time of onnxruntime's MatMulInteger
(unsigned activations, its faster form) over ours: above 1 we are faster. Weights are packed before on both sides; both
make int32 sums, which are compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from nnac.kernels import machine
from nnac.kernels.panels import matmul, pack_matrix
from nnac.types import Array

SHAPES = ((128, 1024, 1024), (16, 4096, 1024), (1, 4096, 1024), (1, 20480, 2048))
"""Rows, units, depth."""


def session(rows: int, weights: Array, threads: int) -> onnxruntime.InferenceSession:
    """Return onnxruntime's product with those weights (depth, units)."""
    depth, units = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [rows, depth])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [rows, units])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def seconds(run: Callable[[], object]) -> float:
    """Time one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(rows: int, units: int, depth: int, rounds: int, processor: str) -> dict[str, object]:
    """Time both, in turns, on the same numbers."""
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (rows, depth), dtype=np.int8)
    weights = rng.integers(-127, 128, (units, depth), dtype=np.int8)
    theirs = session(rows, np.ascontiguousarray(weights.T), 1)
    lifted = (x.astype(np.int16) + 128).astype(np.uint8)
    with machine.forced(processor):
        packed, sums = pack_matrix(weights, np.zeros(units, np.int32)), np.empty((rows, units), np.int32)
        expected = theirs.run(None, {"x": lifted})[0]
        matmul(x, packed, -128, sums)
        if not np.array_equal(sums, expected):
            raise SystemExit(f"{rows}x{units}x{depth}: the sums differ from onnxruntime's")
        times = [
            (seconds(lambda: matmul(x, packed, -128, sums)), seconds(lambda: theirs.run(None, {"x": lifted})))
            for _ in range(rounds)
        ]
    ours, other = (median(column) for column in zip(*times, strict=True))
    products = rows * units * depth / 1e9
    return {
        "shape": [rows, units, depth],
        "processor": processor,
        "nnac_ms": ours * 1e3,
        "onnxruntime_ms": other * 1e3,
        "nnac_gmac_s": products / ours,
        "onnxruntime_gmac_s": products / other,
        "ratio": other / ours,
    }


def main() -> None:
    """Print the table and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--processor", default=machine.processor(), choices=machine.runnable())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = [compare(*shape, arguments.rounds, arguments.processor) for shape in SHAPES]
    print(f"{'rows x units x depth':>22}  nnac GMAC/s  onnxruntime GMAC/s  ratio  ({arguments.processor})")
    for r in results:
        name = "x".join(map(str, r["shape"]))  # type: ignore[call-overload]
        print(f"{name:>22}  {r['nnac_gmac_s']:11.1f}  {r['onnxruntime_gmac_s']:18.1f}  {r['ratio']:5.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"onnx": onnx.__version__, "results": results}, indent=1))


if __name__ == "__main__":
    main()
