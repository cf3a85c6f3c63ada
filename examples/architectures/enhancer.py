"""A speech enhancer of densely connected convolutions and a GRU, after Zhen et al. (2019, arXiv 1908.06468).

The paper's layer table is not public; this network has its parts and nearly its size, which is 1.38 M parameters there:
dense blocks of dilated convolutions, a GRU along time whose state lives on from segment to segment, and the noisy input
added at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SEGMENT, WIDTH, GROWTH, LAYERS, STRIDE = 512, 64, 32, 4, 4
HIDDEN = 232


class Dense(nn.Module):
    """Convolutions, each of which reads everything before it, then a pointwise one to the old width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(width + i * GROWTH, GROWTH, 5, padding=2 << i, dilation=1 << i) for i in range(LAYERS)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(GROWTH) for _ in range(LAYERS))
        self.out = nn.Conv1d(width + LAYERS * GROWTH, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (1, width, length)."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.cat((x, functional.elu(norm(layer(x)))), 1)
        return self.out(x)


class Enhancer(nn.Module):
    """A segment of noisy waveform to clean waveform."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, WIDTH, 15, padding=7)
        self.first = Dense(WIDTH)
        self.down = nn.Conv1d(WIDTH, 2 * WIDTH, 8, stride=STRIDE, padding=2)
        self.second = Dense(2 * WIDTH)
        self.deeper = nn.Conv1d(2 * WIDTH, HIDDEN, 8, stride=STRIDE, padding=2)
        self.gru = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.up = nn.ConvTranspose1d(HIDDEN, 2 * WIDTH, 8, stride=STRIDE, padding=2)
        self.third = Dense(2 * WIDTH)
        self.upper = nn.ConvTranspose1d(2 * WIDTH, WIDTH, 8, stride=STRIDE, padding=2)
        self.last = Dense(WIDTH)
        self.out = nn.Conv1d(WIDTH, 1, 15, padding=7)

    def forward(self, noisy: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Take (1, 1, SEGMENT) and the GRU's state (1, 1, HIDDEN)."""
        near = self.first(functional.elu(self.front(noisy)))
        far = self.second(functional.elu(self.down(near)))
        deep, hidden = self.gru(functional.elu(self.deeper(far)).transpose(1, 2), hidden)
        x = self.third(functional.elu(self.up(deep.transpose(1, 2))) + far)
        x = self.last(functional.elu(self.upper(x)) + near)
        return noisy + self.out(x), hidden

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the inputs that are no states."""
        return {"noisy": (1, 1, SEGMENT)}

    def states(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the states."""
        return {"gru": (1, 1, HIDDEN)}

    def outputs(self) -> list[str]:
        """Return the names of the outputs that are no states."""
        return ["clean"]
