"""Measures the digit network: in float by onnxruntime, and compiled and emulated by nnac.

On FSDD's official test split, which lies in `$NNAC_ASSETS/data/fsdd/recordings` (300 recordings), and on `clips/`.
Agreement is the share of clips to which both give the same digit, right or wrong.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from examples.digits.features import FloatArray, read_features

HERE: Final = Path(__file__).parent
INPUT_NAME: Final = "features"
TEST_RECORDINGS: Final = 5  # index 0..4 of each speaker and digit: FSDD's own split
Classifier = Callable[[FloatArray], int]


@dataclass(frozen=True, slots=True)
class Clip:
    """Features of one clip, shape (1, 1, FRAMES, BANDS) float32, and the digit that is spoken."""

    features: FloatArray
    digit: int


def read_clips(paths: list[Path]) -> list[Clip]:
    """The wav files as clips; a file's name begins with its digit."""
    return [Clip(read_features(path), int(path.name[0])) for path in paths]


def official_test_split(assets: Path) -> list[Path]:
    """FSDD's official test split: the recordings `digit_speaker_index.wav` with an index below five."""
    paths = sorted((assets / "data/fsdd/recordings").glob("*_*_*.wav"))
    return [path for path in paths if int(path.stem.split("_")[2]) < TEST_RECORDINGS]


def float_classifier() -> Classifier:
    """The network in float32, by onnxruntime."""
    session = onnxruntime.InferenceSession(HERE / "digits.onnx", providers=["CPUExecutionProvider"])
    return lambda features: int(np.argmax(session.run(None, {INPUT_NAME: features})[0]))


def emulated_classifier(target: str) -> Classifier | None:
    """The network compiled for the target and emulated bit by bit; None where nnac is not installed."""
    if importlib.util.find_spec("nnac") is None:
        return None
    nnac: Any = importlib.import_module("nnac")
    program = nnac.compile(str(HERE / "digits.onnx"), target=target, calibration=str(HERE / "calibration.npz"))
    return lambda features: int(np.argmax(next(iter(program.run({INPUT_NAME: features}).values()))))


def classify(classifier: Classifier, clips: list[Clip]) -> NDArray[np.int64]:
    """The digit found in each clip."""
    return np.array([classifier(clip.features) for clip in clips], dtype=np.int64)


def table_row(name: str, clips: list[Clip], exact: Classifier, emulated: Classifier | None) -> str:
    """One line: float accuracy, emulated accuracy, their difference in points, agreement."""
    digits = np.array([clip.digit for clip in clips])
    found = classify(exact, clips)
    correct = float((found == digits).mean())
    start = f"{name:<14}{len(clips):>6}{correct:>10.2%}"
    if emulated is None:
        return f"{start}{'-':>11}{'-':>12}{'-':>11}"
    emulated_found = classify(emulated, clips)
    emulated_correct = float((emulated_found == digits).mean())
    points = 100 * (emulated_correct - correct)
    return f"{start}{emulated_correct:>11.2%}{points:>+12.2f}{float((found == emulated_found).mean()):>11.2%}"


def main() -> int:
    """Prints the table; exit code 1 where there is nothing to measure on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="nna8", help="machine to compile for (default: nna8)")
    target: str = parser.parse_args().target
    if "NNAC_ASSETS" not in os.environ:
        print("measure: NNAC_ASSETS is not set; it names the folder that holds data/fsdd/recordings", file=sys.stderr)
        return 1
    recordings = official_test_split(Path(os.environ["NNAC_ASSETS"]))
    if not recordings:
        print(f"measure: no recordings in {os.environ['NNAC_ASSETS']}/data/fsdd/recordings", file=sys.stderr)
        return 1
    exact, emulated = float_classifier(), emulated_classifier(target)
    if emulated is None:
        print("nnac is not installed: float only")
    print(f"{'clips':<14}{'count':>6}{'float':>10}{'emulated':>11}{'difference':>12}{'agreement':>11}")
    print(table_row("FSDD test", read_clips(recordings), exact, emulated))
    print(table_row("synthesized", read_clips(sorted((HERE / "clips").glob("*.wav"))), exact, emulated))
    return 0


if __name__ == "__main__":
    sys.exit(main())
