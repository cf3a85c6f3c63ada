"""Speech synthesized with espeak-ng: the training clips that need no recording, and the committed demo clips.

`python -m examples.digits.synthesize` writes `clips/`, two wav files per digit, in voices that training never hears.
espeak-ng 1.51 gives the same samples for the same words on every run; a windowed-sinc filter brings its 22.05 kHz to
8 kHz.
"""

import argparse
import io
import math
import random
import subprocess
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from examples.digits.features import SAMPLE_RATE, FloatArray

WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS: Final = (
    "en-us",
    "en-gb",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
    "en-us-nyc",
)
TRAINING_SPEAKERS: Final = tuple(
    "m1 m2 m3 m4 m6 m7 m8 f1 f2 f4 f5 Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee "
    "Marco Mario Mike adam anika antonio aunty belinda benjamin boris caleb david ed edward grandpa gustave john klatt "
    "klatt2 klatt4 linda marcelo max michel miguel norbert pablo paul pedro quincy rob robert sandro shelby steph2 "
    "travis victor zac".split()
)
HELD_OUT_SPEAKERS: Final = ("f3", "m5", "Michael", "steph")
DEMO_VOICES: Final = ("en-us+f3", "en-gb+m5")
FILTER_REACH: Final = 48  # input samples on either side of an output sample
CUTOFF: Final = 3700.0  # Hz
SILENCE: Final = 0.01  # of the peak: what is quieter at either end is cut


@dataclass(frozen=True, slots=True)
class Utterance:
    """One spoken digit.

    Attributes:
        digit: 0..9.
        voice: espeak-ng voice, `accent+speaker`.
        speed: words per minute.
        pitch: 0..99.
    """

    digit: int
    voice: str
    speed: int
    pitch: int


def utterances(speakers: tuple[str, ...], seed: int) -> Iterator[Utterance]:
    """Every digit by every speaker in every accent, once, each at a seeded speed and pitch."""
    chance = random.Random(seed)
    for speaker in speakers:
        for accent in ACCENTS:
            for digit in range(len(WORDS)):
                yield Utterance(digit, f"{accent}+{speaker}", chance.randint(105, 210), chance.randint(25, 75))


def synthesize(utterance: Utterance) -> FloatArray:
    """Samples of the utterance at SAMPLE_RATE, float32, ends trimmed, shape (samples,).

    Raises:
        FileNotFoundError: espeak-ng is not installed.
        subprocess.CalledProcessError: espeak-ng refuses the voice.
    """
    options = ["-v", utterance.voice, "-s", str(utterance.speed), "-p", str(utterance.pitch)]
    done = subprocess.run(["espeak-ng", *options, "--stdout", WORDS[utterance.digit]], check=True, capture_output=True)
    with wave.open(io.BytesIO(done.stdout), "rb") as clip:
        rate = clip.getframerate()
        samples = np.frombuffer(clip.readframes(clip.getnframes()), dtype="<i2") / np.float32(32768)
    return trim(resample(samples.astype(np.float32), rate))


def resample(samples: FloatArray, rate: int) -> FloatArray:
    """Samples at SAMPLE_RATE from samples at the higher `rate`, by a Blackman-windowed sinc with its edge at CUTOFF."""
    filters = phase_filters(rate)
    number = np.arange(samples.size * SAMPLE_RATE // rate)
    first = number * rate // SAMPLE_RATE + 1  # FILTER_REACH zeros stand before sample 0
    around = np.lib.stride_tricks.sliding_window_view(np.pad(samples, FILTER_REACH), 2 * FILTER_REACH)
    return np.asarray(np.einsum("nk,nk->n", around[first], filters[number % len(filters)]), dtype=np.float32)


@lru_cache
def phase_filters(rate: int) -> FloatArray:
    """One filter per position of an output sample between two input samples, shape (phases, 2 * FILTER_REACH)."""
    phases = SAMPLE_RATE // math.gcd(SAMPLE_RATE, rate)
    position = (np.arange(phases) * rate % SAMPLE_RATE) / SAMPLE_RATE
    distance = position[:, None] - np.arange(1 - FILTER_REACH, 1 + FILTER_REACH)
    turn = np.pi * distance / FILTER_REACH
    window = 0.42 + 0.5 * np.cos(turn) + 0.08 * np.cos(2 * turn)
    width = 2 * CUTOFF / rate
    return np.asarray(width * np.sinc(width * distance) * window, dtype=np.float32)


def trim(samples: FloatArray) -> FloatArray:
    """The samples without the silence before and after."""
    loud = np.flatnonzero(np.abs(samples) > SILENCE * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def write_wav(path: Path, samples: FloatArray) -> None:
    """Writes mono 16-bit samples at SAMPLE_RATE."""
    with wave.open(str(path), "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(SAMPLE_RATE)
        clip.writeframes(np.clip(np.rint(samples * 32767), -32768, 32767).astype("<i2").tobytes())


def main() -> None:
    """Writes the demo clips: every digit in each demo voice, named `digit_voice.wav`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "clips")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for voice in DEMO_VOICES:
        for digit in range(len(WORDS)):
            samples = synthesize(Utterance(digit, voice, speed=150, pitch=50))
            write_wav(folder / f"{digit}_{voice.replace('+', '-')}.wav", samples)


if __name__ == "__main__":
    main()
