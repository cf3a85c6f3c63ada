"""A streaming ConvRNN-T (Radfar et al., 2022, arXiv 2209.14868) in the widths of a public recipe.

A step takes eight feature frames, which become two encoder frames, and one token. The convolutions are causal and keep
the frames that they look back at; LSTM states live on. The squeeze of squeeze-and-excitation, in the paper a mean over
the utterance, is a running mean (a state), since a stream has no end.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

MELS, FRAMES, STEPS = 80, 8, 2
WIDTH, LOCAL, KERNEL = 512, (1, 100, 100, 64, 64), 5
DILATIONS = (2, 4, 8, 16, 32, 64)
SQUEEZE, FORGET = WIDTH // 16, 1 / 32
"""Channels inside squeeze-and-excitation; share of the newest chunk in its running mean."""
LAYERS, HIDDEN = 7, 640
TOKENS, EMBEDDED, PREDICTION, JOINT = 500, 256, 640, 512

Shapes = dict[str, tuple[int, ...]]


class Subsampling(nn.Module):
    """Two strided convolutions: a quarter of the frames and of the mel bands."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, 2, padding=(1, 0))
        self.second = nn.Conv2d(8, 32, 3, 2, padding=(1, 0))
        self.out = nn.Linear(32 * MELS // 4, WIDTH)

    def forward(self, features: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take (1, FRAMES, MELS) and one frame of the past per layer; return (1, STEPS, WIDTH) and the next ones."""
        x = torch.cat((first, features.transpose(1, 2)[:, None]), 3)
        y = torch.cat((second, self.first(x).relu()), 3)
        z = self.second(y).relu().flatten(1, 2).transpose(1, 2)
        return self.out(z), x[..., -1:], y[..., -1:]


class Local(nn.Module):
    """Four two-dimensional convolutions, causal in time, then one channel again."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(a, b, KERNEL, padding=(KERNEL // 2, 0)) for a, b in pairwise(LOCAL))
        self.out = nn.Conv2d(LOCAL[-1], 1, 1)

    def forward(self, x: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """Take (1, STEPS, WIDTH) and four frames of the past per layer."""
        x, after = x.transpose(1, 2)[:, None], []
        for layer, before in zip(self.layers, past, strict=True):
            x = torch.cat((before, x), 3)
            after.append(x[..., -(KERNEL - 1) :])
            x = layer(x).relu()
        return self.out(x)[:, 0].transpose(1, 2), after


class Global(nn.Module):
    """Pointwise, dilated and pointwise convolution, squeeze-and-excitation, and the input again."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.reach = 2 * dilation
        self.wide, self.wide_norm = nn.Conv1d(WIDTH, 2 * WIDTH, 1), nn.BatchNorm1d(2 * WIDTH)
        self.dilated = nn.Conv1d(2 * WIDTH, WIDTH, 3, dilation=dilation, groups=WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.narrow = nn.Conv1d(WIDTH, WIDTH, 1)
        self.squeeze, self.excite = nn.Conv1d(WIDTH, SQUEEZE, 1), nn.Conv1d(SQUEEZE, WIDTH, 1)

    def forward(self, x: Tensor, past: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take (1, WIDTH, STEPS), (1, 2 WIDTH, 2 dilation) and the running mean (1, WIDTH, 1)."""
        y = torch.cat((past, self.wide_norm(self.wide(x).relu())), 2)
        z = self.narrow(self.norm(self.dilated(y).relu()))
        mean = (1 - FORGET) * mean + FORGET * z.mean(2, keepdim=True)
        gate = self.excite(self.squeeze(mean).relu()).sigmoid()
        return x + z * gate, y[..., -self.reach :], mean


class ConvRNNT(nn.Module):
    """Log-mel features and the last token to logits of the next token, for each encoder frame."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.front, self.local = Subsampling(), Local()
        self.blocks = nn.ModuleList(Global(dilation) for dilation in DILATIONS)
        self.join = nn.Linear(2 * WIDTH, WIDTH)
        self.encoder = nn.LSTM(WIDTH, HIDDEN, layers, batch_first=True)
        self.embedding = nn.Linear(TOKENS, EMBEDDED, bias=False)
        self.prediction = nn.LSTM(EMBEDDED, PREDICTION, 2, batch_first=True)
        self.heard, self.said = nn.Linear(HIDDEN, JOINT), nn.Linear(PREDICTION, JOINT)
        self.logits = nn.Linear(JOINT, TOKENS)

    def forward(self, features: Tensor, token: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Take (1, FRAMES, MELS), a one-hot token (1, 1, TOKENS), and states; return (1, STEPS, TOKENS) and states."""
        given = dict(zip(self.states(), states, strict=True))
        x, first, second = self.front(features, given["front.first"], given["front.second"])
        after = {"front.first": first, "front.second": second}
        near, past = self.local(x, tuple(given[f"local{i}.past"] for i in range(len(LOCAL) - 1)))
        after |= {f"local{i}.past": state for i, state in enumerate(past)}
        far = x.transpose(1, 2)
        for i, block in enumerate(self.blocks):
            names = f"global{i}.past", f"global{i}.mean"
            far, *new = block(far, *(given[name] for name in names))
            after |= dict(zip(names, new, strict=True))
        y = self.join(torch.cat((near, far.transpose(1, 2)), 2))
        y, (after["encoder.hidden"], after["encoder.cell"]) = self.encoder(
            y, (given["encoder.hidden"], given["encoder.cell"])
        )
        z, (after["prediction.hidden"], after["prediction.cell"]) = self.prediction(
            self.embedding(token), (given["prediction.hidden"], given["prediction.cell"])
        )
        logits = self.logits(functional.tanh(self.heard(y) + self.said(z)))
        return logits, *(after[name] for name in self.states())

    def inputs(self) -> Shapes:
        """Return the shapes of the inputs that are no states."""
        return {"features": (1, FRAMES, MELS), "token": (1, 1, TOKENS)}

    def states(self) -> Shapes:
        """Return the shapes of the states."""
        shapes: Shapes = {"front.first": (1, 1, MELS, 1), "front.second": (1, 8, MELS // 2, 1)}
        shapes |= {f"local{i}.past": (1, c, WIDTH, KERNEL - 1) for i, c in enumerate(LOCAL[:-1])}
        for i, dilation in enumerate(DILATIONS):
            shapes |= {f"global{i}.past": (1, 2 * WIDTH, 2 * dilation), f"global{i}.mean": (1, WIDTH, 1)}
        for name, lstm in (("encoder", self.encoder), ("prediction", self.prediction)):
            shapes |= {f"{name}.{part}": (lstm.num_layers, 1, lstm.hidden_size) for part in ("hidden", "cell")}
        return shapes

    def outputs(self) -> list[str]:
        """Return the names of the outputs that are no states."""
        return ["logits"]
