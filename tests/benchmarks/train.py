"""What a training step costs with the accelerator, or a quantizer of weights, in it, against the float step.

Both models step in turn, in one process, on one thread; the figure is the median of the ratios of processor time.
Run: python -m tests.benchmarks.train
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nnac.train import GQ, compress, emulate

STEPS = 25
PROGRESS = 0.3
"""Share of a training at which its steps are looked at."""


class Convolutions(nn.Module):
    """Four convolutions and a head on 32 x 32 pictures."""

    def __init__(self) -> None:
        super().__init__()
        sides = ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2))
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, stride, 1) for i, o, stride in sides)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(128, 10)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(self.pool(x).flatten(1))


class Dense(nn.Module):
    """Four dense layers of 512."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(4))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class Listening(nn.Module):
    """The encoder of a small transducer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(120, 192, 2, batch_first=True), nn.Linear(192, 11)

    def forward(self, x: Any) -> Any:
        return self.head(self.lstm(x)[0])


Hook = Callable[[float], None]
"""What follows an optimizer's step."""
Put = Callable[[nn.Module, Any], tuple[nn.Module, Hook]]


def plain(model: nn.Module, x: Any) -> tuple[nn.Module, Hook]:
    """Return a model as it is."""
    return model, lambda progress: None


def twin(model: nn.Module, x: Any) -> tuple[nn.Module, Hook]:
    """Return a model's twin."""
    return emulate(model, "nna8", [x]), lambda progress: None


def quantized(anneal: float) -> Put:
    """Return what puts GQ of 5 bits on a model: soft, or hard where annealing takes no time."""

    def put(model: nn.Module, x: Any) -> tuple[nn.Module, Hook]:
        found = compress(model, {"*": lambda w: GQ(w, 5, anneal=anneal) if w.numel() > 999 else None})
        return model, found.step

    return put


def both(model: nn.Module, x: Any) -> tuple[nn.Module, Hook]:
    """Return the twin of a model with soft GQ."""
    model, hook = quantized(0.7)(model, x)
    return twin(model, x)[0], hook


WITH: dict[str, Put] = {"twin": twin, "GQ, soft": quantized(0.7), "GQ, hard": quantized(0.0), "GQ and twin": both}
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions, batch 32": (Convolutions, (32, 3, 32, 32)),
    "dense 4 x 512, batch 256": (Dense, (256, 512)),
    "dense 4 x 512, batch 32": (Dense, (32, 512)),
    "LSTM 2 x 192, batch 32, 60 frames": (Listening, (32, 60, 120)),
}


def step(model: nn.Module, hook: Hook, optimizer: torch.optim.Optimizer, x: Any) -> float:
    """Return the processor seconds of one step."""
    begin = time.process_time()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    hook(PROGRESS)
    return time.process_time() - begin


def measure(make: Callable[[], nn.Module], shape: tuple[int, ...], put: Put) -> float:
    """Return the median ratio of steps with and without."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    models = [plain(make(), x), put(make(), x)]
    given = [(model, hook, torch.optim.Adam(model.parameters(), 1e-3)) for model, hook in models]
    pairs = [[step(*each, x) for each in given] for _ in range(STEPS + 2)]
    return statistics.median(other / plain for plain, other in pairs[2:])


def main() -> None:
    """Print a line per case."""
    torch.set_num_threads(1)
    for case, (make, shape) in CASES.items():
        found = ", ".join(f"{name} {measure(make, shape, put):.2f}" for name, put in WITH.items())
        print(f"{case}: {found}", flush=True)


if __name__ == "__main__":
    main()
