"""A streaming Conformer block stack (Gulati et al., 2020, arXiv 2005.08100), the widths of its small model.

A step takes a chunk of frames. Its frames see each other and `LEFT` frames before the chunk, whose keys and values are
states; the causal depthwise convolutions keep the frames that they look back at. Positions are relative, as in
Transformer-XL (Dai et al., 2019, arXiv 1901.02860). Norms are over the features everywhere: a batch norm would fold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

MELS, WIDTH, HEADS, HIDDEN, KERNEL = 80, 144, 4, 576, 15
BLOCKS, CHUNK, LEFT = 4, 8, 24


def sinusoids(distances: Tensor, width: int) -> Tensor:
    """Return sine and cosine codes (distances, width) of relative distances."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = distances[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)


class FeedForward(nn.Sequential):
    """Norm, expansion, Swish, projection."""

    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, WIDTH))


class Attention(nn.Module):
    """Multi-head self-attention with relative positions over a chunk and the frames before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.position = nn.Linear(WIDTH, WIDTH, bias=False)
        self.content_bias = nn.Parameter(0.1 * torch.randn(HEADS, 1, WIDTH // HEADS))
        self.position_bias = nn.Parameter(0.1 * torch.randn(HEADS, 1, WIDTH // HEADS))
        self.out = nn.Linear(WIDTH, WIDTH)
        distances = torch.arange(LEFT + CHUNK - 1, -CHUNK, -1.0)
        self.register_buffer("codes", sinusoids(distances, WIDTH)[None])

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take (1, CHUNK, WIDTH) and keys and values before it, (1, LEFT, WIDTH); return the same of the next step."""
        x = self.norm(x)
        keys, values = torch.cat((keys, self.key(x)), 1), torch.cat((values, self.value(x)), 1)
        query, key, value, code = (_heads(t) for t in (self.query(x), keys, values, self.position(self.codes)))
        content = (query + self.content_bias) @ key.transpose(-1, -2)
        place = _shifted((query + self.position_bias) @ code.transpose(-1, -2))
        weights = functional.softmax((content + place) / math.sqrt(WIDTH // HEADS), -1)
        mixed = (weights @ value).transpose(1, 2).reshape(1, CHUNK, WIDTH)
        return self.out(mixed), keys[:, CHUNK:], values[:, CHUNK:]


def _heads(x: Tensor) -> Tensor:
    """Return (1, frames, WIDTH) as (1, HEADS, frames, WIDTH // HEADS)."""
    return x.reshape(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2)


def _shifted(scores: Tensor) -> Tensor:
    """Return scores (1, HEADS, CHUNK, distances), farthest first, as scores (1, HEADS, CHUNK, keys)."""
    distances = LEFT + 2 * CHUNK - 1
    padded = functional.pad(scores, (1, 0)).reshape(1, HEADS, distances + 1, CHUNK)
    return padded[:, :, 1:].reshape(1, HEADS, CHUNK, distances)[..., : LEFT + CHUNK]


class Convolution(nn.Module):
    """Gated pointwise, causal depthwise and pointwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.gated = nn.Conv1d(WIDTH, 2 * WIDTH, 1)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, KERNEL, groups=WIDTH)
        self.inner = nn.LayerNorm(WIDTH)
        self.out = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Take (1, CHUNK, WIDTH) and the frames before, (1, WIDTH, KERNEL - 1)."""
        x = functional.glu(self.gated(self.norm(x).transpose(1, 2)), 1)
        x = torch.cat((past, x), 2)
        y = self.inner(self.depthwise(x).transpose(1, 2))
        return self.out(functional.silu(y).transpose(1, 2)).transpose(1, 2), x[:, :, -(KERNEL - 1) :]


class Block(nn.Module):
    """Half a feed-forward layer, attention, convolution, half a feed-forward layer, norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.convolution, self.last = (
            FeedForward(),
            Attention(),
            Convolution(),
            FeedForward(),
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take a chunk and three states; return the same."""
        x = x + 0.5 * self.first(x)
        y, keys, values = self.attention(x, keys, values)
        x = x + y
        y, past = self.convolution(x, past)
        x = x + y
        return self.norm(x + 0.5 * self.last(x)), keys, values, past


class Conformer(nn.Module):
    """Log-mel features to encoded frames."""

    def __init__(self, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.front = nn.Linear(MELS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, features: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Take (1, CHUNK, MELS) and three states per block; return (1, CHUNK, WIDTH) and the next states."""
        x, after = self.front(features), []
        for i, block in enumerate(self.blocks):
            x, *new = block(x, *states[3 * i : 3 * i + 3])
            after += new
        return x, *after

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the inputs that are no states."""
        return {"features": (1, CHUNK, MELS)}

    def states(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the states."""
        shapes = {"keys": (1, LEFT, WIDTH), "values": (1, LEFT, WIDTH), "past": (1, WIDTH, KERNEL - 1)}
        return {f"block{i}.{name}": shape for i in range(len(self.blocks)) for name, shape in shapes.items()}

    def outputs(self) -> list[str]:
        """Return the names of the outputs that are no states."""
        return ["encoded"]
