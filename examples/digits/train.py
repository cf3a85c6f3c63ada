"""Trains the digit network and writes `digits.onnx` and `calibration.npz`.

Real speech is the Free Spoken Digit Dataset in `$NNAC_ASSETS/data/fsdd/recordings`: recordings 0..4 of each speaker and
digit are its official test split and only measure the end result; the rest trains. Synthesized speech comes from
espeak-ng (synthesize.py). One thread and one seed: a second run with the same libraries writes the same bytes.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from examples.digits.features import (
    BANDS,
    CLIP_LENGTH,
    FRAMES,
    LOG_DEVIATION,
    LOG_MEAN,
    POWER_FLOOR,
    FloatArray,
    log_mel,
    place,
    read_wav,
)
from examples.digits.network import INPUT_NAME, build_network, export
from examples.digits.synthesize import HELD_OUT_SPEAKERS, TRAINING_SPEAKERS, Utterance, synthesize, utterances

HERE: Final = Path(__file__).parent
TEST_RECORDINGS: Final = 5  # index 0..4 of each speaker and digit: FSDD's own split
CALIBRATION_CLIPS: Final = 64
BATCH: Final = 64
SILENT_FEATURE: Final = (float(np.log(POWER_FLOOR)) - LOG_MEAN) / LOG_DEVIATION


@dataclass(frozen=True, slots=True)
class Clips:
    """Clips of any length, float32 at 8 kHz, with their digits, int64."""

    samples: list[FloatArray]
    digits: NDArray[np.int64]

    def features(self) -> FloatArray:
        """Features without augmentation, shape (clips, 1, FRAMES, BANDS)."""
        return log_mel(np.stack([place(clip) for clip in self.samples]))


def fsdd(assets: Path, test: bool) -> Clips:
    """One split of the recordings `digit_speaker_index.wav`."""
    paths = sorted((assets / "data/fsdd/recordings").glob("*.wav"))
    chosen = [path for path in paths if (int(path.stem.split("_")[2]) < TEST_RECORDINGS) == test]
    return Clips([read_wav(path) for path in chosen], np.array([int(path.name[0]) for path in chosen]))


def synthesized(spoken: list[Utterance]) -> Clips:
    """The utterances as clips."""
    return Clips([synthesize(utterance) for utterance in spoken], np.array([each.digit for each in spoken]))


def augment(clip: FloatArray, chance: np.random.Generator) -> FloatArray:
    """The clip at 0.85 to 1.15 of its speed, anywhere in the window, in noise; shape (CLIP_LENGTH,)."""
    length = int(clip.size * chance.uniform(0.87, 1.17))
    slower = np.interp(np.linspace(0, clip.size - 1, length), np.arange(clip.size), clip).astype(np.float32)
    spare = CLIP_LENGTH - length
    start = int(chance.integers(0, spare + 1)) if spare > 0 else 0
    placed = np.pad(slower, (start, spare - start)) if spare > 0 else place(slower)
    noise = chance.standard_normal(CLIP_LENGTH, dtype=np.float32)
    if chance.random() < 0.5:  # a falling spectrum, as of a room
        noise = np.convolve(noise, 0.9 ** np.arange(32, dtype=np.float32), mode="same") * np.float32(0.5)
    level = np.abs(placed).max() * 10 ** chance.uniform(-4.0, -1.6)
    return np.asarray(placed + noise * np.float32(level), dtype=np.float32)


def colour(features: FloatArray, chance: np.random.Generator) -> FloatArray:
    """Another gain and microphone (an offset and a tilt over the bands), then masks over time and bands; in place."""
    count = len(features)
    slope = chance.uniform(-0.5, 0.5, (count, 1, 1, 1)) * np.linspace(-1, 1, BANDS)
    features += slope + chance.uniform(-0.4, 0.4, (count, 1, 1, 1))
    np.maximum(features, SILENT_FEATURE, out=features)
    for picture in features[:, 0]:
        first, bands = chance.integers(0, BANDS - 5), chance.integers(0, 6)
        picture[:, first : first + bands] = SILENT_FEATURE
        start, frames = chance.integers(0, FRAMES - 6), chance.integers(0, 7)
        picture[start : start + frames] = SILENT_FEATURE
    return features


def batches(real: Clips, spoken: Clips, chance: np.random.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch: all real clips and as many synthesized ones, augmented and shuffled."""
    some = chance.choice(len(spoken.samples), min(len(real.samples), len(spoken.samples)), replace=False)
    samples = real.samples + [spoken.samples[index] for index in some]
    digits = np.concatenate((real.digits, spoken.digits[some]))
    order = chance.permutation(len(samples))
    result = []
    for rows in np.array_split(order, len(samples) // BATCH):
        features = colour(log_mel(np.stack([augment(samples[row], chance) for row in rows])), chance)
        result.append((torch.from_numpy(features), torch.from_numpy(digits[rows])))
    return result


def train(network: nn.Sequential, real: Clips, spoken: Clips, epochs: int, seed: int) -> None:
    """AdamW with one cosine cycle of the learning rate; the last epoch's weights stay."""
    chance = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    steps = epochs * ((len(real.samples) + min(len(real.samples), len(spoken.samples))) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.004, total_steps=steps)
    objective = nn.CrossEntropyLoss(label_smoothing=0.05)
    network.train()
    for epoch in range(epochs):
        losses = []
        for features, digits in batches(real, spoken, chance):
            optimizer.zero_grad()
            loss = objective(network(features), digits)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:3d} of {epochs}: loss {np.mean(losses):.4f}", flush=True)
    network.eval()


def accuracy(network: nn.Sequential, clips: Clips) -> float:
    """Share of the clips whose digit is found."""
    with torch.no_grad():
        found = network(torch.from_numpy(clips.features())).argmax(dim=1).numpy()
    return float((found == clips.digits).mean())


def calibration(spoken: Clips, seed: int) -> FloatArray:
    """Features of synthesized clips in light noise, rounded to float16 values so that they compress."""
    chance = np.random.default_rng(seed)
    rows = chance.choice(len(spoken.samples), CALIBRATION_CLIPS, replace=False)
    features = log_mel(np.stack([augment(spoken.samples[row], chance) for row in rows]))
    return features.astype(np.float16).astype(np.float32)


def report_range(real: Clips, spoken: Clips) -> None:
    """Prints mean and deviation of the log-mel values: LOG_MEAN and LOG_DEVIATION of features.py are these, rounded."""
    for name, clips in (("recorded", real), ("synthesized", spoken)):
        values = clips.features() * LOG_DEVIATION + LOG_MEAN
        print(f"{name}: {len(clips.samples)} clips, log-mel mean {values.mean():.2f}, deviation {values.std():.2f}")


def settle(seed: int) -> None:
    """Makes PyTorch repeatable: its seed, one thread, deterministic kernels only."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def save(network: nn.Sequential, samples: FloatArray, folder: Path) -> None:
    """Writes `digits.onnx` and `calibration.npz`, the latter with one array named like the network's input."""
    onnx.save(export(network), folder / "digits.onnx")
    np.savez_compressed(folder / "calibration.npz", allow_pickle=False, **{INPUT_NAME: samples})


def report_accuracy(network: nn.Sequential, assets: Path, seed: int) -> None:
    """Prints the accuracy on synthesized voices and on recordings that did not train."""
    held_out = synthesized(list(utterances(HELD_OUT_SPEAKERS, seed)))
    print(f"held-out voices: {accuracy(network, held_out):.2%} of {len(held_out.samples)}")
    print(f"FSDD test: {accuracy(network, fsdd(assets, test=True)):.2%}")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=45)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE)
    return parser.parse_args()


def main() -> int:
    """Trains, writes and reports; see the module's docstring."""
    chosen = options()
    if "NNAC_ASSETS" not in os.environ:
        print("train: NNAC_ASSETS is not set; it names the folder that holds data/fsdd", file=sys.stderr)
        return 1
    assets = Path(os.environ["NNAC_ASSETS"])
    settle(chosen.seed)
    real, spoken = fsdd(assets, test=False), synthesized(list(utterances(TRAINING_SPEAKERS, chosen.seed)))
    report_range(real, spoken)
    network = build_network()
    train(network, real, spoken, chosen.epochs, chosen.seed)
    save(network, calibration(spoken, chosen.seed), chosen.output)
    report_accuracy(network, assets, chosen.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
