"""Train one row of the table, export it, compile it, and measure it on the emulator.

    python -m examples.transducer.train --row gq5 --seed 0 --folder FOLDER

Every row of a size starts from that size's float baseline of the same seed, made by the first row that needs it, and
trains some steps more (`COURSES`), the float row too. Broken off, the same command goes on from the last checkpoint; a
row that is finished is not done again. FOLDER/ROW-SEED/ then holds the three parts as ONNX with their scales, the
curves of the training, and `result.json`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from examples.transducer import measure
from examples.transducer.data import Pool, Utterance, pools
from examples.transducer.features import WIDTH
from examples.transducer.network import Network, Twins, greedy
from examples.transducer.rows import ROWS, Row
from nnac.train import Schedule, compress, export, train, transducer_loss
from nnac.train.emulate import DEVICE, FLOAT
from nnac.transducer import PARTS, word_error_rate

PLACE: Final = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True)
class Course:
    """How a size is trained.

    Attributes:
        steps: of the float baseline; rate: its highest learning rate.
        framewise: share of these steps in which only the encoder learns, step by step.
        row_steps: of a row behind it.
        batch: utterances of a step.
    """

    steps: int
    rate: float = 3e-3
    framewise: float = 0.3
    row_steps: int = 300
    batch: int = 32


COURSES: Final = {
    "micro": Course(2500),
    "small": Course(2500),
    "base": Course(2000),
    "large": Course(2000),
    "deep": Course(1500, 2e-3, 0.4, 200, 16),
}
RATE = 1e-3
WINDOW = 256
"""Utterances of similar length among which a batch is drawn."""
SIDE_BY_SIDE = 200
"""Utterances that are decoded at once."""
TAIL = 6
"""Steps of a digit's end by which it is known."""
OBSERVE = 100
"""Steps after which the ranges of activations widen to what a batch reaches."""
CALIBRATION = 8
"""Batches that decide the ranges at the start."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Utterances side by side, zeros behind the end of each.

    Attributes:
        x: (B, T, WIDTH); times: (B,).
        tokens: (B, U), digits from 1 on; lengths: (B,).
        said: (B, T) the token whose digit is being spoken in each step, near its end; else 0.
    """

    x: Tensor
    times: Tensor
    tokens: Tensor
    lengths: Tensor
    said: Tensor

    @classmethod
    def of(cls, pool: Pool, chosen: Iterable[int]) -> Batch:
        """Return the chosen utterances."""
        each = [pool[int(i)] for i in chosen]
        tokens = _padded([torch.tensor(u.digits) + 1 for u in each])
        x = _padded([torch.from_numpy(u.features) for u in each])
        said = torch.zeros(x.shape[:2], dtype=torch.long)
        for row, u in enumerate(each):
            for digit, last, end in zip(u.digits, [-1, *u.ends], u.ends, strict=False):
                said[row, max(last, end - TAIL) + 1 : end + 1] = digit + 1
        times, lengths = (torch.tensor(counts) for counts in _sizes(each))
        return cls(*(part.to(PLACE) for part in (x, times, tokens, lengths, said)))

    @classmethod
    def drawn(cls, pool: Pool, rng: np.random.Generator, size: int) -> Batch:
        """Return a random batch of `size` utterances of similar length."""
        window = min(WINDOW, len(pool))
        first = int(rng.integers(0, len(pool) - window + 1))
        return cls.of(pool, first + rng.choice(window, min(size, window), replace=False))

    def loss(self, network: Network) -> Tensor:
        """Return the mean loss."""
        scores = network(self.x, self.tokens).log_softmax(-1)
        return transducer_loss(scores, self.tokens, self.times, self.lengths).mean()

    def framewise_loss(self, network: Network) -> Tensor:
        """Return the mean loss per step of an encoder that says at once which digit is being spoken.

        A start for the sum over alignments (Hu et al., "Exploring pre-training with alignments for RNN transducer based
        end-to-end speech recognition", ICASSP 2020).
        """
        inside = torch.arange(self.x.shape[1], device=self.x.device) < self.times[:, None]
        scores = network(self.x, self.tokens[:, :0])[:, :, 0]
        return torch.nn.functional.cross_entropy(scores[inside], self.said[inside])


def _padded(parts: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def _sizes(utterances: Sequence[Utterance]) -> tuple[list[int], list[int]]:
    return [len(each.features) for each in utterances], [len(each.digits) for each in utterances]


def heard(network: Network, pool: Pool) -> list[tuple[int, ...]]:
    """Return the tokens of all utterances of a pool, greedily."""
    found = []
    for first in range(0, len(pool), SIDE_BY_SIDE):
        batch = Batch.of(pool, range(first, min(first + SIDE_BY_SIDE, len(pool))))
        found += greedy(network, batch.x, batch.times)
    return found


def errors(network: Network, pool: Pool) -> float:
    """Return the word error rate on a pool: what choices are made on is the validation."""
    spoken = [[digit + 1 for digit in each.digits] for each in pool]
    return word_error_rate(spoken, heard(network, pool))


def schedule(optimizer: torch.optim.Optimizer, rate: float, steps: int) -> Any:
    """Return a learning rate that rises and falls once."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)


def baseline(size: str, seed: int, folder: Path, course: Course, data: Any) -> Network:
    """Return the float baseline, trained where it is not yet."""
    torch.manual_seed(seed)
    network = Network.of(size).to(PLACE)
    optimizer = torch.optim.Adam(network.parameters(), course.rate)

    def loss(step: int, rng: np.random.Generator) -> Tensor:
        batch, framewise = Batch.drawn(data["train"], rng, course.batch), step < course.framewise * course.steps
        return batch.framewise_loss(network) if framewise else batch.loss(network)

    train(
        network,
        loss,
        optimizer,
        Schedule(course.steps, seed, folder / f"baseline-{size}-{seed}", save_every=max(1, course.steps // 5)),
        scheduler=schedule(optimizer, course.rate, course.steps),
    )
    return network


def calibrated(network: Network, seed: int, course: Course, data: Any) -> Twins:
    """Return a network's twins, in evaluation mode, whose ranges are those of some training utterances."""
    twins, rng = Twins(network, measure.TARGETS[0]), np.random.default_rng(seed)
    for _ in range(CALIBRATION):
        batch = Batch.drawn(data["train"], rng, course.batch)
        twins.observe(batch.x, batch.tokens)
    return twins.eval()


def fine_tuned(row: Row, network: Network, seed: int, folder: Path, course: Course, data: Any) -> Twins:
    """Return the twins of a network after a row's training, which changes the network, too."""
    compression = compress(network, row.rules) if row.rules else None
    twins = calibrated(network, seed, course, data).train()
    optimizer = torch.optim.Adam(twins.parameters(), RATE)

    def loss(step: int, rng: np.random.Generator) -> Tensor:
        batch = Batch.drawn(data["train"], rng, course.batch)
        if step % OBSERVE == 0:
            twins.observe(batch.x, batch.tokens)
        with twins.computing(row.mode):
            return batch.loss(twins)

    train(
        twins,
        loss,
        optimizer,
        Schedule(course.row_steps, seed, folder, save_every=max(1, course.row_steps // 2)),
        compression=compression,
        scheduler=schedule(optimizer, RATE, course.row_steps),
    )
    return twins.eval()


def write_parts(twins: Twins, folder: Path) -> None:
    """Write the three parts with their scales, one step each, and the embedding's rows."""
    frame, token = torch.zeros(1, 1, WIDTH, device=PLACE), torch.zeros(1, 1, dtype=torch.long, device=PLACE)
    with torch.no_grad():
        rows = twins.encoder(frame), twins.predictor(token)
        embedding = twins.predictor.model.embedding.weight.cpu().numpy()
    folder.mkdir(parents=True, exist_ok=True)
    for part, example in zip(PARTS, ((frame,), (token,), rows), strict=True):
        export(getattr(twins, part), folder / f"{part}.onnx", example, states=True)
    np.save(folder / measure.EMBEDDING, embedding, allow_pickle=False)


def run(name: str, seed: int, folder: Path, course: Course | None = None) -> dict[str, Any]:
    """Return the result of a row; its course, if not given, is that of its size."""
    row, data, begin = ROWS[name], pools(folder), time.monotonic()
    own = folder / f"{name}-{seed}"
    course = course or COURSES[row.size]
    network = baseline(row.size, seed, folder, course, data)
    trained = row.origin or name
    twins = fine_tuned(ROWS[trained], network, seed, folder / f"{trained}-{seed}", course, data)
    if row.origin:
        twins = calibrated(network, seed, course, data)
    found: dict[str, Any] = {"row": name, "title": row.title, "size": row.size, "seed": seed}
    found["seconds"] = time.monotonic() - begin
    with twins.computing(FLOAT):
        found["float_wer"] = errors(twins, data["test"])
    with twins.computing(FLOAT if row.mode == FLOAT else DEVICE):
        found["validation_wer"] = errors(twins, data["validation"])
    if row.mode == FLOAT:
        return measure.save(own, {**found, "wer": found["float_wer"]})
    write_parts(twins, own)
    return measure.write(own, data["test"], found, heard(twins, data["test"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", required=True, choices=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = arguments.folder / f"{arguments.row}-{arguments.seed}" / measure.RESULT
    print(path.read_text() if path.exists() else run(arguments.row, arguments.seed, arguments.folder))


if __name__ == "__main__":
    main()
