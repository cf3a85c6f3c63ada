"""The transducer in PyTorch: LSTM encoder, LSTM predictor, joint network, and the three as one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from examples.transducer.features import WIDTH
from nnac.train import emulate
from nnac.train.emulate import FLOAT
from nnac.transducer import MAX_SYMBOLS

TOKENS: Final = 11  # the blank and ten digits
EMBEDDING: Final = 32


@dataclass(frozen=True, slots=True)
class Size:
    """Widths of the hidden layers; `layers` of the encoder."""

    encoder: int
    predictor: int
    joint: int
    layers: int = 2


SIZES: Final = {
    "micro": Size(32, 16, 16),
    "small": Size(64, 32, 32),
    "base": Size(192, 64, 96),
    "large": Size(232, 72, 112),
    "deep": Size(512, 64, 96, layers=4),
}


class Encoder(nn.Module):
    """Features (B, T, WIDTH) to rows (B, T, width)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, size.encoder, size.layers, batch_first=True)
        if size.layers > 2:
            self._begin()

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]

    @torch.no_grad()
    def _begin(self) -> None:
        """Set weights to what keeps signals alive through many layers, and forget gates open: it learns twice as fast.

        Inputs by Glorot and Bengio (2010), recurrent weights orthogonal (Saxe et al., 2014), gates as by Jozefowicz et
        al. (2015).
        """
        for name, weights in self.lstm.named_parameters():
            for gate, part in enumerate(weights.chunk(4)):
                if name.startswith("weight_hh"):
                    nn.init.orthogonal_(part)
                elif name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(part)
                else:
                    part.fill_(float(name.startswith("bias_ih") and gate == 1))


class Predictor(nn.Module):
    """Tokens (B, U) to rows (B, U, width)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, size.predictor, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lstm(self.embedding(tokens))[0]


class Joiner(nn.Module):
    """Rows (B, T, encoder) and (B, U, predictor) to logits (B, T, U, TOKENS)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.encoded = nn.Linear(size.encoder, size.joint)
        self.predicted = nn.Linear(size.predictor, size.joint)
        self.logits = nn.Linear(size.joint, TOKENS)

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        return self.logits(torch.tanh(self.encoded(encoded).unsqueeze(2) + self.predicted(predicted).unsqueeze(1)))


class Network(nn.Module):
    """The three parts."""

    def __init__(self, encoder: nn.Module, predictor: nn.Module, joiner: nn.Module) -> None:
        super().__init__()
        self.encoder, self.predictor, self.joiner = encoder, predictor, joiner

    @classmethod
    def of(cls, size: str) -> Network:
        """Return an untrained network."""
        widths = SIZES[size]
        return cls(Encoder(widths), Predictor(widths), Joiner(widths))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, T, U + 1, TOKENS) of features (B, T, WIDTH) and tokens (B, U)."""
        return self.joiner(self.encoder(x), self.predictor(behind_blank(tokens)))


class Twins(Network):
    """The three parts on the accelerator, each a program of its own."""

    def __init__(self, network: Network, target: str) -> None:
        super().__init__(*(emulate(part, target) for part in network.children()))

    @contextmanager
    def computing(self, mode: str) -> Iterator[None]:
        """Compute in another way inside this context; see `nnac.train.Twin.computing`."""
        with ExitStack() as stack:
            for part in self.children():
                stack.enter_context(part.computing(mode))
            yield

    @torch.no_grad()
    def observe(self, x: Tensor, tokens: Tensor) -> None:
        """Let the scales see what a batch reaches."""
        tokens = behind_blank(tokens)
        self.encoder.observe([x])
        self.predictor.observe([tokens])
        with self.computing(FLOAT):
            rows = self.encoder(x), self.predictor(tokens)
        self.joiner.observe([rows])


def behind_blank(tokens: Tensor) -> Tensor:
    """Return what the predictor hears (B, U + 1): the blank, then the tokens."""
    return torch.cat([tokens.new_zeros(len(tokens), 1), tokens], 1)


@torch.no_grad()
def greedy(network: Network, x: Tensor, times: Tensor) -> list[tuple[int, ...]]:
    """Return the tokens of a batch of utterances: what `nnac.transducer` does, all utterances side by side.

    The predictor hears all tokens again for every new one, since a twin keeps no states.

    Args:
        x: (B, T, WIDTH).
        times: (B,) steps of each.
    """
    rows, count = network.encoder(x), len(x)
    tokens = times.new_zeros(count, 1)  # behind an utterance's last one stand zeros
    lengths, batch = times.new_zeros(count), torch.arange(count, device=x.device)
    predicted = network.predictor(tokens)[:, 0]
    for t in range(x.shape[1]):
        open_ = times > t
        for _ in range(MAX_SYMBOLS):
            best = network.joiner(rows[:, t : t + 1], predicted[:, None])[:, 0, 0].argmax(-1)
            open_ = open_ & (best != 0)
            if not bool(open_.any()):
                break
            lengths += open_
            if int(lengths.max()) >= tokens.shape[1]:
                tokens = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], 1)
            tokens[batch[open_], lengths[open_]] = best[open_]
            predicted = network.predictor(tokens)[batch, lengths]
    return [tuple(row[1 : n + 1].tolist()) for row, n in zip(tokens, lengths.tolist(), strict=True)]
