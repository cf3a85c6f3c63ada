"""The gated neural speech codec of Zhen et al. (2019 to 2021): a frame of waveform to 256 codes, and back.

Widths as in the authors' code, in which encoder, decoder and both with 32 centroids and a sharpness count 229,841,
120,311 and 350,185 parameters. The quantizer is their soft one: every code becomes the mean of the centroids, weighted
by the softmax of their distances.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FRAME, WIDTH, NARROW, CENTROIDS = 512, 100, 20, 32
SHARPNESS, SLOPE = 20.0, 0.2


def same(before: int, after: int, kernel: int, dilation: int = 1, **options: int) -> nn.Conv1d:
    """Return a convolution that keeps the length."""
    return nn.Conv1d(before, after, kernel, dilation=dilation, padding=dilation * (kernel // 2), **options)


class Gated(nn.Module):
    """A bottleneck of two dilated convolutions, one of which gates the other, and the input again."""

    def __init__(self, before: int, after: int, dilation: int) -> None:
        super().__init__()
        self.narrow = same(before, NARROW, 1)
        self.linear, self.gate = (same(NARROW, NARROW, 15, dilation) for _ in range(2))
        self.out = same(NARROW, after, 9)

    def forward(self, x: Tensor) -> Tensor:
        """Take (1, before, length); one channel is added to all of (1, after, length)."""
        y = functional.leaky_relu(self.narrow(x), SLOPE)
        return self.out(self.linear(y) * torch.tanh(self.gate(y))) + x


def blocks(before: int, after: int) -> list[nn.Module]:
    """Return two gated blocks, dilated by 1 and 2."""
    return [Gated(before, after, 1), Gated(after, after, 2)]


class Shuffle(nn.Module):
    """Depthwise-separable convolution, then half of the channels at twice the rate."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = same(WIDTH, WIDTH, 9, groups=WIDTH, bias=False)
        self.pointwise = same(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Take (1, WIDTH, length); return (1, WIDTH // 2, 2 length)."""
        y = functional.leaky_relu(self.pointwise(self.depthwise(x)), SLOPE)
        return y.reshape(1, 2, WIDTH // 2, -1).permute(0, 2, 3, 1).reshape(1, WIDTH // 2, -1)


class Codec(nn.Module):
    """A frame of waveform through encoder, quantizer and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            same(1, WIDTH, 55),
            nn.LeakyReLU(SLOPE),
            *blocks(WIDTH, WIDTH),
            nn.Conv1d(WIDTH, WIDTH, 9, stride=2, padding=4),
            nn.LeakyReLU(SLOPE),
            *blocks(WIDTH, WIDTH),
            same(WIDTH, 1, 55),
            nn.Tanh(),
        )
        self.centroids = nn.Parameter(torch.linspace(-1, 1, CENTROIDS))
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        self.decoder = nn.Sequential(
            *blocks(1, WIDTH), Shuffle(), *blocks(WIDTH // 2, WIDTH // 2), same(WIDTH // 2, 1, 55)
        )

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Take (1, 1, FRAME); return the frame that comes back, and the codes (1, 1, FRAME // 2)."""
        codes = self.encoder(frame)
        distances = (codes[..., None] - self.centroids).abs()
        weights = functional.softmax(-self.sharpness * distances, -1)
        return self.decoder(weights @ self.centroids), codes

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the inputs that are no states."""
        return {"frame": (1, 1, FRAME)}

    def states(self) -> dict[str, tuple[int, ...]]:
        """Return no states: every frame stands alone."""
        return {}

    def outputs(self) -> list[str]:
        """Return the names of the outputs that are no states."""
        return ["decoded", "codes"]
