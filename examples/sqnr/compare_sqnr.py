"""Output SQNR against float onnxruntime: onnxruntime's static quantizer and nnac on the same calibration samples.

Both sides quantize activations and weights to int8 with a scale per output channel of the weights. The same samples
calibrate and score, unless `--held-out`: then the even ones calibrate and the odd ones score.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

import nnac
from nnac.calibration import METHODS
from nnac.compare import decibel
from nnac.errors import NnacError
from nnac.floatmodel import MAX_IR_VERSION
from nnac.frontend import prepare

Array = NDArray[Any]
Sample = dict[str, Array]
Run = Callable[[Sample], dict[str, Array]]

PER_CHANNEL_OPSET = 13


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the samples that calibrate it and score it."""

    name: str
    model: Path
    samples: list[Sample]


def kws(assets: Path) -> Case:
    """Return ARM's DS-CNN with the MFCC of 100 spoken words."""
    name = "arm_kws_ds_cnn_s"
    with np.load(assets / "data" / "kws_mfcc" / "kws_mfcc_calib.npz") as data:
        samples = [{"Reshape:0": row[None]} for row in data["mfcc_w640_s320"]]
    return Case(name, assets / "models" / name / f"{name}.onnx", samples)


def faces(assets: Path) -> Case:
    """Return the face detector with six photos: RGB, 240 x 320, (x - 127) / 128, channels first."""
    name = "ultraface_slim_320"
    samples = []
    for path in sorted((assets / "data" / "images").glob("*.jpg")):
        pixels = np.asarray(Image.open(path).convert("RGB").resize((320, 240)), np.float32)
        samples.append({"input": (pixels.transpose(2, 0, 1)[None] - 127) / 128})
    return Case(name, assets / "models" / name / f"{name}.onnx", samples)


def session(model: str | bytes, optimize: bool) -> Run:
    """Return a function that runs a model in onnxruntime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    runner = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in runner.get_outputs()]
    return lambda sample: dict(zip(names, runner.run(names, sample), strict=True))


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The samples in the form that onnxruntime's quantizer reads."""

    def __init__(self, samples: list[Sample]) -> None:
        self._next: Iterator[Sample] = iter(samples)

    def get_next(self) -> Sample | None:
        """Return the next sample, or None at the end."""
        return next(self._next, None)


def per_channel_model(path: Path) -> onnx.ModelProto:
    """Return the model with initializers that are no inputs, in an opset that knows scales per channel."""
    model = prepare(path)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    return onnx.version_converter.convert_version(model, PER_CHANNEL_OPSET) if opset < PER_CHANNEL_OPSET else model


def by_onnxruntime(case: Case, samples: list[Sample], optimize: bool) -> Run:
    """Quantize with onnxruntime: preprocessing, then QDQ, int8, per channel, MinMax."""
    with tempfile.TemporaryDirectory() as folder:
        ready, quantized = (str(Path(folder) / name) for name in ("ready.onnx", "quantized.onnx"))
        onnx.save(per_channel_model(case.model), ready)
        quant_pre_process(ready, ready, auto_merge=True)
        quantize_static(
            ready,
            quantized,
            Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        model = onnx.load(quantized)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    return session(model.SerializeToString(), optimize)


def by_nnac(case: Case, samples: list[Sample], method: str) -> Run:
    """Compile for the target `nna8` and run on the emulator."""
    return nnac.compile(case.model, "nna8", samples, method=method).run


def sqnr(truth: Run, found: Run, samples: list[Sample]) -> dict[str, float]:
    """Return the SQNR in dB of each output over all samples."""
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for sample in samples:
        exact, rough = truth(sample), found(sample)
        for name, array in exact.items():
            wide = array.astype(np.float64)
            signal[name] = signal.get(name, 0.0) + float((wide**2).sum())
            noise[name] = noise.get(name, 0.0) + float(((rough[name] - wide) ** 2).sum())
    return {name: decibel(signal[name], noise[name]) for name in signal}


def report(case: Case, method: str, held_out: bool) -> None:
    """Print one line per output."""
    learn, score = (case.samples[::2], case.samples[1::2]) if held_out else (case.samples, case.samples)
    truth = session(prepare(case.model).SerializeToString(), optimize=False)
    columns = [sqnr(truth, by_onnxruntime(case, learn, optimize), score) for optimize in (True, False)]
    columns.append(sqnr(truth, by_nnac(case, learn, method), score))
    for name in columns[0]:
        on, off, ours = (column[name] for column in columns)
        print(
            f"{case.name:20} {name:20} {len(learn):5} {len(score):5} {on:10.2f} {off:10.2f} {ours:8.2f} "
            f"{ours - max(on, off):+8.2f}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--assets", type=Path, default=os.environ.get("NNAC_ASSETS"), help="folder of models and data")
    parser.add_argument("--method", choices=METHODS, default="minmax", help="nnac's calibration (onnxruntime: MinMax)")
    parser.add_argument("--held-out", action="store_true", help="calibrate on half of the samples, score on the rest")
    arguments = parser.parse_args()
    onnxruntime.set_default_logger_severity(4)
    if arguments.assets is None:
        raise NnacError("name the folder with `models` and `data`: --assets, or NNAC_ASSETS")
    where = "held-out samples" if arguments.held_out else "the calibration samples"
    print(
        f"output SQNR in dB on {where}; nnac: nna8, {arguments.method}; onnxruntime {onnxruntime.__version__}: "
        f"quantize_static, QDQ, MinMax, its optimizer on and off\n"
    )
    print(
        f"{'model':20} {'output':20} {'learn':>5} {'score':>5} {'ort, on':>10} {'ort, off':>10} {'nnac':>8} {'gain':>8}"
    )
    for case in (kws(arguments.assets), faces(arguments.assets)):
        report(case, arguments.method, arguments.held_out)


if __name__ == "__main__":
    main()
