"""Connected digits: recordings and synthesized words put together, with pauses and noise, by a seeded generator.

    python -m examples.transducer.data FOLDER
    python -m examples.transducer.data examples/transducer/clips --clips

The first computes the features of all utterances once, the second writes the clips of the demo. Recordings are the Free
Spoken Digit Dataset's in `$NNAC_ASSETS/data/fsdd/recordings`: 0..4 of every speaker and digit are its official test
split, which nothing but the table sees; 5..9 are validation, on which every choice was made; the rest trains. Every
fourth training utterance is synthesized by espeak-ng (see examples/digits). An utterance ends with its last digit.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from examples.digits.features import read_wav
from examples.digits.synthesize import DEMO_VOICES, TRAINING_SPEAKERS, synthesize, utterances, write_wav
from examples.digits.synthesize import Utterance as Spoken
from examples.transducer.features import SAMPLE_RATE, STEP, STEP_MS, WIDTH, FloatArray, log_mel

SPLITS: Final = {"test": range(5), "validation": range(5, 10), "train": range(10, 50)}
COUNTS: Final = {"train": 6000, "validation": 200, "test": 400}
DIGITS: Final = 2, 7  # per utterance
PAUSE: Final = 0.05, 0.4  # seconds
LEAD: Final = 0.1, 0.3  # seconds of noise before the first digit
LEVEL: Final = 0.01, 0.06  # root mean square of a digit
SNR: Final = 3.0, 18.0  # dB of an utterance
SYNTHESIZED: Final = 4
CLIPS: Final = 6

Voice = Sequence[tuple[FloatArray, int]]
"""Clips of one speaker with their digits."""


def recordings(split: str) -> list[Voice]:
    """Return a split's recordings, by speaker."""
    found: dict[str, list[tuple[FloatArray, int]]] = {}
    for path in sorted((Path(os.environ["NNAC_ASSETS"]) / "data/fsdd/recordings").glob("*.wav")):
        digit, speaker, number = path.stem.split("_")
        if int(number) in SPLITS[split]:
            found.setdefault(speaker, []).append((read_wav(path), int(digit)))
    return list(found.values())


def synthesized() -> list[Voice]:
    """Return espeak-ng's words, by voice."""
    found: dict[str, list[tuple[FloatArray, int]]] = {}
    for each in utterances(TRAINING_SPEAKERS, seed=1):
        found.setdefault(each.voice, []).append((synthesize(each), each.digit))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Utterance:
    """Digits and the step of the features in which each ends.

    Attributes:
        features: (steps, WIDTH).
    """

    features: NDArray[np.floating]
    digits: Sequence[int]
    ends: Sequence[int]


def speech(voices: Sequence[Voice], rng: np.random.Generator) -> tuple[FloatArray, list[int], list[int]]:
    """Return samples, a whole number of steps, digits, and the step in which each ends, of one of the voices."""
    voice = voices[int(rng.integers(len(voices)))]
    chosen = [voice[int(i)] for i in rng.integers(0, len(voice), rng.integers(DIGITS[0], DIGITS[1] + 1))]
    parts, gaps = [], [_silence(rng, *LEAD), *(_silence(rng, *PAUSE) for _ in chosen[1:])]
    for gap, (clip, _) in zip(gaps, chosen, strict=True):
        level = rng.uniform(*LEVEL) / max(float(np.sqrt((clip**2).mean())), 1e-4)
        parts += [gap, clip * np.float32(level)]
    lengths = np.cumsum([part.size for part in parts])
    missing = -int(lengths[-1]) % STEP
    samples = noisy(np.pad(np.concatenate(parts), (missing, 0)), rng)
    ends = -(-(missing + lengths[1::2]) // STEP) - 1
    return samples, [digit for _, digit in chosen], ends.tolist()


def utterance(voices: Sequence[Voice], rng: np.random.Generator) -> Utterance:
    """Return the features of `speech`."""
    samples, digits, ends = speech(voices, rng)
    return Utterance(log_mel(samples).reshape(-1, WIDTH), digits, ends)


def _silence(rng: np.random.Generator, low: float, high: float) -> FloatArray:
    return np.zeros(round(SAMPLE_RATE * rng.uniform(low, high)), np.float32)


def noisy(speech: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return speech in noise, white or of a falling spectrum, at a signal-to-noise ratio of `SNR`."""
    noise = rng.standard_normal(speech.size, dtype=np.float32)
    if rng.random() < 0.5:
        noise = np.convolve(noise, 0.9 ** np.arange(32, dtype=np.float32), mode="same")
    power = float((speech**2).mean() / (noise**2).mean()) * 10 ** (-rng.uniform(*SNR) / 10)
    return (speech + noise * np.float32(np.sqrt(power))).clip(-1, 1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Pool:
    """Many utterances, in order of their length.

    Attributes:
        features: (steps of all, WIDTH) float16.
        steps: where each utterance ends among them.
        digits: of all; `ends`: the step, counted within the utterance, in which each ends.
        counts: where each utterance's digits end.
    """

    features: NDArray[np.float16]
    steps: NDArray[np.int64]
    digits: NDArray[np.int64]
    ends: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, utterances: Sequence[Utterance]) -> Pool:
        """Return the utterances by their length."""
        ordered = sorted(utterances, key=lambda each: len(each.features))
        return cls(
            np.concatenate([each.features for each in ordered]).astype(np.float16),
            np.cumsum([len(each.features) for each in ordered]),
            np.concatenate([each.digits for each in ordered]),
            np.concatenate([each.ends for each in ordered]),
            np.cumsum([len(each.digits) for each in ordered]),
        )

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Utterance]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Utterance:
        (first, last), (start, stop) = (
            (int(ends[index - 1]) if index else 0, int(ends[index])) for ends in (self.steps, self.counts)
        )
        features = self.features[first:last].astype(np.float32)
        return Utterance(features, self.digits[start:stop].tolist(), self.ends[start:stop].tolist())

    def save(self, path: Path) -> None:
        """Write an `.npz`."""
        np.savez(path, **{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, path: Path) -> Pool:
        """Return what `save` wrote."""
        with np.load(path) as file:
            return cls(**{name: file[name] for name in cls.__slots__})


def pool(split: str) -> Pool:
    """Return the utterances of a split."""
    voices, spoken = recordings(split), synthesized() if split == "train" else []
    made = []
    for number in range(COUNTS[split]):
        rng = np.random.default_rng([list(SPLITS).index(split), number])
        made.append(utterance(spoken if spoken and number % SYNTHESIZED == 0 else voices, rng))
    return Pool.of(made)


def pools(folder: Path, splits: Sequence[str] = tuple(SPLITS)) -> Mapping[str, Pool]:
    """Return the splits, made where the folder does not hold them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        if not (folder / f"{split}.npz").exists():
            pool(split).save(folder / f"{split}.npz")
    return {split: Pool.load(folder / f"{split}.npz") for split in splits}


def write_clips(folder: Path) -> None:
    """Write the demo's clips, in the voices that training never hears; their names begin with the digits."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(CLIPS):
        voice = DEMO_VOICES[number % len(DEMO_VOICES)]
        clips = [(synthesize(Spoken(digit, voice, speed=150, pitch=50)), digit) for digit in range(10)]
        samples, digits, _ = speech([clips], np.random.default_rng([len(SPLITS), number]))
        write_wav(folder / f"{''.join(map(str, digits))}_{voice.replace('+', '-')}.wav", samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", action="store_true", help="write the clips of the demo instead")
    arguments = parser.parse_args()
    if arguments.clips:
        return write_clips(arguments.folder)
    for split, each in pools(arguments.folder).items():
        values = each.features.astype(np.float32)
        print(
            f"{split}: {len(each)} utterances, {len(each.digits)} digits, {len(each.features) * STEP_MS / 1000:.0f} s, "
            f"features' mean {values.mean():.2f}, deviation {values.std():.2f}"
        )


if __name__ == "__main__":
    main()
