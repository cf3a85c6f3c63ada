"""Sound through a network, in float and on the emulated blob, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.enhance.networks import DENOISERS, DETECTORS, Network
from examples.enhance.quality import Opinion, opinion, si_sdr
from examples.enhance.signals import RATE, Floats, read_wav
from examples.enhance.steps import Recorder, Samples
from nnac.compiled import CompiledModel

MIXTURE = "data/enhance/gtcrn_mix_16k.wav"
SPEECH = "data/speech/silero_test_60s.wav"
NOISE = "data/speech_commands/noise_1000ms.wav"
RATIOS = (0.0, 5.0, 10.0)
"""Signal to noise in dB of what denoisers are calibrated along."""
SECONDS = 4
"""Of each of these ratios."""
THRESHOLD = 0.5
"""Probability over which a chunk counts as speech."""


@dataclass(frozen=True, slots=True)
class Run:
    """What float and the blob make of the same sound."""

    network: Network
    compiled: tuple[CompiledModel, ...]
    truth: Floats
    found: Floats


@dataclass(frozen=True, slots=True)
class Denoised:
    """How near the enhanced sound is to float's, in dB, and how well both sound."""

    si_sdr: float
    truth: Opinion
    found: Opinion


def in_float(assets: Path, network: Network, sound: Floats) -> tuple[Floats, list[Samples]]:
    """Return what a network makes of sound in float, and what each of its parts was given."""
    recorders = [Recorder(part.float_step(assets)) for part in network.parts]
    return network.run(sound, recorders), [recorder.samples for recorder in recorders]


def compiled(assets: Path, network: Network, sound: Floats, **options: Any) -> tuple[CompiledModel, ...]:
    """Return the parts of a network, calibrated along sound; options as of `nnac.compile`."""
    _, given = in_float(assets, network, sound)
    pairs = zip(network.parts, given, strict=True)
    return tuple(part.compiled(assets, samples, **options) for part, samples in pairs)


def compare(assets: Path, network: Network, blobs: Sequence[CompiledModel], sound: Floats) -> Run:
    """Run the sound through float and through new sessions of the blobs."""
    truth, _ = in_float(assets, network, sound)
    found = network.run(sound, [blob.session().step for blob in blobs])
    return Run(network, tuple(blobs), truth, found)


def noisy_speech(assets: Path) -> Floats:
    """Return speech of one recording with the noise of another, some seconds at each ratio."""
    speech, noise, length = read_wav(assets / SPEECH), read_wav(assets / NOISE), SECONDS * RATE
    parts = []
    for number, ratio in enumerate(RATIOS):
        clean = speech[number * length : (number + 1) * length]
        other = np.resize(noise, length)
        parts.append(clean + other * (clean.std() / other.std() * 10 ** (-ratio / 20)))
    return np.concatenate(parts).astype(np.float32)


def denoise(assets: Path, name: str, seconds: float | None = None, **options: Any) -> tuple[Run, Denoised]:
    """Enhance the noisy recording, or its first seconds; calibrated along noisy speech of other recordings."""
    sound = read_wav(assets / MIXTURE)[: int(seconds * RATE) if seconds else None]
    network = DENOISERS[name]
    run = compare(assets, network, compiled(assets, network, noisy_speech(assets), **options), sound)
    return run, Denoised(si_sdr(run.found, run.truth), opinion(assets, run.truth), opinion(assets, run.found))


def detect(assets: Path, name: str, seconds: float | None = None, **options: Any) -> tuple[Run, float]:
    """Look for speech in a recording, or in its first seconds; return the share of chunks decided as by float.

    It is calibrated along another recording, the noisy one.
    """
    network = DETECTORS[name]
    blobs = compiled(assets, network, read_wav(assets / MIXTURE), **options)
    sound = read_wav(assets / SPEECH)[: int(seconds * RATE) if seconds else None]
    run = compare(assets, network, blobs, sound)
    return run, float(np.mean((run.truth >= THRESHOLD) == (run.found >= THRESHOLD)))
