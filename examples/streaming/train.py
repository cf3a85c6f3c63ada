"""Train the streaming digit network: two LSTM layers of 512 units over log-mel frames, the digit at every frame.

    NNAC_ASSETS=/path/to/assets python train.py weights.npz

Needs PyTorch; about four minutes on one core. The stored weights are what `measure.py` builds its model of.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "digits"))
from features import log_mel, place, read_wav

UNITS, BANDS, DIGITS, FRAMES = 512, 32, 10, 64
EPOCHS, BATCH, CLIPS, RATE = 4, 32, 1200, 1e-3
LATE = 24
"""Frames of a clip before its digit can be known."""


class Network(nn.Module):
    """Frames (T, B, bands) to logits (T, B, digits)."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(BANDS, UNITS, 2)
        self.head = nn.Linear(UNITS, DIGITS)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(frames)[0])


def clips(assets: Path, test: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return features (clips, frames, bands) and digits of one split of the Free Spoken Digit Dataset."""
    paths = sorted((assets / "data/fsdd/recordings").glob("*.wav"))
    chosen = [path for path in paths if (int(path.stem.split("_")[2]) < 5) == test]
    features = log_mel(np.stack([place(read_wav(path)) for path in chosen]))
    return features.reshape(len(chosen), FRAMES, BANDS), np.array([int(path.name[0]) for path in chosen])


def streams(x: np.ndarray, digits: np.ndarray, order: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pairs of clips one behind the other, (2 T, B, bands), and the digit of each clip (2, B)."""
    pairs = order.reshape(2, -1)
    frames = np.concatenate([x[pairs[0]], x[pairs[1]]], 1).transpose(1, 0, 2)
    return torch.from_numpy(np.ascontiguousarray(frames)), torch.from_numpy(digits[pairs])


def loss_of(logits: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy over the late frames of both clips."""
    late = torch.cat([logits[LATE:FRAMES], logits[FRAMES + LATE :]])
    wanted = digits.repeat_interleave(FRAMES - LATE, 0)
    return nn.functional.cross_entropy(late.reshape(-1, DIGITS), wanted.reshape(-1))


def main() -> None:
    """Train, print the accuracy on the test split, write the weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng, assets = np.random.default_rng(0), Path(os.environ["NNAC_ASSETS"])
    x, digits = clips(assets, test=False)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    for epoch in range(EPOCHS):
        chosen = rng.permutation(len(x))[:CLIPS]
        for start in range(0, CLIPS, 2 * BATCH):
            frames, wanted = streams(x, digits, chosen[start : start + 2 * BATCH][: CLIPS - start])
            loss = loss_of(network(frames), wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}", flush=True)
    x, digits = clips(assets, test=True)
    with torch.no_grad():
        found = network(torch.from_numpy(x.transpose(1, 0, 2).copy()))[-1].argmax(-1).numpy()
    print(f"test accuracy at the last frame: {(found == digits).mean():.3f}")
    np.savez(sys.argv[1], **{name: tensor.numpy() for name, tensor in network.state_dict().items()})


if __name__ == "__main__":
    main()
