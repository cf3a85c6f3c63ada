"""What stands around each network: from sound to its inputs, and from its outputs to sound or a probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from examples.enhance.signals import RATE, Floats, blocks, from_spectra, overlap_add, spectra
from examples.enhance.steps import Part, Step

BLOCK, SHIFT = 512, 128
"""Samples that DTLN sees at once, and by which it goes on."""
CHUNK, CONTEXT = 512, 64
"""Samples that Silero VAD v5 takes in one step, and those before them that it sees again."""
LONG_CHUNK = 1536


@dataclass(frozen=True, slots=True)
class Network:
    """Models that are run together, one step after the other.

    Attributes:
        parts: the models, each of which runs once in every step.
        period: seconds of sound per step.
        run: sound and one step function per model -> what comes out.
    """

    parts: tuple[Part, ...]
    period: float
    run: Callable[[Floats, Sequence[Step]], Floats]


def _dtln(sound: Floats, steps: Sequence[Step]) -> Floats:
    """Return the sound without noise: a mask on the magnitudes, then a learnt transform, block by block."""
    mask, filtered = steps
    padded = np.pad(sound, (BLOCK - SHIFT, 0))
    parts = []
    for block in blocks(padded, BLOCK, SHIFT):
        spectrum = np.fft.rfft(block)
        magnitude = np.abs(spectrum).astype(np.float32)
        kept = mask({"input_2": magnitude.reshape(1, 1, -1)})["activation_2"].reshape(-1)
        estimate = np.fft.irfft(kept * spectrum).astype(np.float32)
        parts.append(filtered({"input_4": estimate.reshape(1, 1, -1)})["conv1d_3"].reshape(-1))
    return overlap_add(np.stack(parts), SHIFT)[BLOCK - SHIFT :]


def _gtcrn(sound: Floats, steps: Sequence[Step]) -> Floats:
    """Return the sound without noise: one complex spectrum in, one out."""
    frames = [steps[0]({"mix": frame[None, :, None]})["enh"][0, :, 0] for frame in spectra(sound)]
    return from_spectra(np.stack(frames))


def _silero_v5(sound: Floats, steps: Sequence[Step]) -> Floats:
    """Return the probability of speech in every chunk."""
    padded = np.pad(sound, (CONTEXT, 0))
    chunks = blocks(padded, CONTEXT + CHUNK, CHUNK)
    return np.array([steps[0]({"input": chunk[None]})["output"].reshape(-1)[0] for chunk in chunks])


def _silero_v3(sound: Floats, steps: Sequence[Step]) -> Floats:
    """Return the probability of speech in every chunk."""
    chunks = blocks(sound, LONG_CHUNK, LONG_CHUNK)
    return np.array([steps[0]({"input": chunk[None]})["output"][0, 1, 0] for chunk in chunks])


_CACHES = {name: f"{name}_out" for name in ("conv_cache", "tra_cache", "inter_cache")}

DENOISERS = {
    "dtln": Network(
        (
            Part("dtln_1", {"input_3": "tf_op_layer_stack_2"}),
            Part("dtln_2", {"input_5": "tf_op_layer_stack_5"}, {"input_4": (1, 1, 512), "input_5": (1, 2, 128, 2)}),
        ),
        SHIFT / RATE,
        _dtln,
    ),
    "gtcrn_simple": Network((Part("gtcrn_simple", _CACHES),), 256 / RATE, _gtcrn),
}
DETECTORS = {
    "silero_vad_v5_static": Network((Part("silero_vad_v5_static", {"state": "stateN"}),), CHUNK / RATE, _silero_v5),
    "silero_vad_v3": Network(
        (Part("silero_vad_v3", {"h0": "hn", "c0": "cn"}, {"input": (1, LONG_CHUNK)}),), LONG_CHUNK / RATE, _silero_v3
    ),
}
