"""Real inputs of the models, where the assets hold what they were made for: one half to calibrate, the other to score.

Photographs need Pillow; without it, and for all other models, inputs are random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from examples.enhance.networks import BLOCK, CHUNK, CONTEXT, SHIFT
from examples.enhance.signals import RATE, Floats, blocks, read_wav, spectra
from nnac.types import Array

Samples = list[dict[str, Array]]
MIXTURE, SPEECH = "data/enhance/gtcrn_mix_16k.wav", "data/speech/silero_test_60s.wav"
STEPS = 250
"""Of a stream, per half."""
SOURCES = ("examples", "nnac", "tests")
"""Folders of this repository whose files the classifier of files is given."""


def _features(assets: Path, length: int, name: str) -> tuple[Samples, Samples]:
    """Return MFCC of clips, every other one for each half."""
    with np.load(assets / "data/kws_mfcc/kws_mfcc_calib.npz") as data:
        rows = next(data[key] for key in ("mfcc_w640_s320", "mfcc_w640_s640") if data[key].shape[1] == length)
    samples = [{name: row[None]} for row in rows]
    return samples[::2], samples[1::2]


def _stream(frames: Iterable[Array], name: str) -> tuple[Samples, Samples]:
    """Return two stretches of a stream, one behind the other."""
    samples = [{name: np.asarray(frame, np.float32)} for frame in frames][: 2 * STEPS]
    return samples[:STEPS], samples[STEPS:]


def _chunks(assets: Path, context: int, name: str) -> tuple[Samples, Samples]:
    """Return chunks of speech: calibration on another recording than the score."""
    halves = []
    for file in (MIXTURE, SPEECH):
        padded = np.pad(read_wav(assets / file)[2 * RATE :], (context, 0))
        halves.append([{name: chunk[None]} for chunk in blocks(padded, context + CHUNK, CHUNK)[:STEPS]])
    return halves[0], halves[1]


def _magnitudes(sound: Floats) -> Array:
    return np.abs(np.fft.rfft(blocks(sound, BLOCK, SHIFT), axis=1))[:, None, None]


def _images(
    assets: Path, size: tuple[int, int], scaled: Callable[[Array], Array], name: str
) -> tuple[Samples, Samples] | None:
    """Return photographs in (1, 3, height, width), half of them each; None without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        return None
    samples = []
    for path in sorted((assets / "data/images").glob("*.jpg")):
        pixels = np.asarray(Image.open(path).convert("RGB").resize(size), np.float32)
        samples.append({name: scaled(pixels).transpose(2, 0, 1)[None].astype(np.float32)})
    return samples[::2], samples[1::2]


def _faces(assets: Path, name: str) -> tuple[Samples, Samples] | None:
    return _images(assets, (320, 240), lambda pixels: (pixels - 127) / 128, name)


def _files(name: str, length: int = 2048) -> tuple[Samples, Samples]:
    """Return beginnings and ends of source files, padded with 256 as the classifier's own tool does."""
    samples, root = [], Path(__file__).parents[2]
    for path in sorted(p for folder in SOURCES for p in (root / folder).glob("*.*"))[:16]:
        content = np.frombuffer(path.read_bytes().strip(), np.uint8).astype(np.int32)
        ends = content[: length // 2], content[-length // 2 :]
        padded = [np.pad(ends[0], (0, length // 2 - len(ends[0])), constant_values=256)]
        padded += [np.pad(ends[1], (length // 2 - len(ends[1]), 0), constant_values=256)]
        samples.append({name: np.concatenate(padded)[None]})
    return samples[::2], samples[1::2]


REAL: Mapping[str, tuple[str, Callable[[Path], Any]]] = {
    **{
        f"arm_kws_{kind}": ("mfcc", partial(_features, length=length, name=name))
        for kind, length, name in (
            *((kind, 490, "Reshape:0") for kind in ("cnn_s", "ds_cnn_s", "ds_cnn_s_qdq", "ds_cnn_s_qoperator")),
            ("dnn_s", 250, "Reshape:0"),
            ("gru_s_native", 250, "mfcc"),
            ("basic_lstm_s_native", 490, "mfcc"),
        )
    },
    **{
        f"silero_vad_{kind}": ("speech", partial(_chunks, context=context, name="input"))
        for kind, context in (("v3", 0), ("v5_16k", CONTEXT), ("v5_ifless", CONTEXT), ("v5_static", CONTEXT))
    },
    **{
        name: ("speech", lambda a: _stream((f[None, :, None] for f in spectra(read_wav(a / MIXTURE))), "mix"))
        for name in ("gtcrn", "gtcrn_simple")
    },
    "dtln_1": ("speech", lambda a: _stream(_magnitudes(read_wav(a / MIXTURE)), "input_2")),
    "dtln_2": ("speech", lambda a: _stream(blocks(read_wav(a / MIXTURE), BLOCK, SHIFT)[:, None, None], "input_4")),
    **{
        f"ultraface_{kind}": ("photos", lambda a: _faces(a, "input"))
        for kind in ("rfb_320", "slim_320", "slim_320_qdq")
    },
    "fastestdet": (
        "photos",
        lambda a: _images(a, (352, 352), lambda pixels: pixels[..., ::-1] / 255, "input.1"),
    ),
    "magika_v3_3": ("files", lambda a: _files("bytes")),
}
"""By model: what it is given, and the function that returns the halves."""


def real_samples(assets: Path, name: str) -> tuple[str, Samples, Samples] | None:
    """Return what a model is given, samples to calibrate on and others to score, or None where there are none."""
    if name not in REAL:
        return None
    label, halves = REAL[name][0], REAL[name][1](assets)
    return None if halves is None else (label, *halves)
