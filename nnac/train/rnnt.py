"""The loss of transducers: minus the logarithm of the sum over all alignments (Graves 2012), in log space.

The lattice of times t and labels u is worked through by its diagonals t + u, all cells of one at once; gradients come
from the backward sums, so that no step of the recursion is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnac.errors import ModelError

NEVER = float("-inf")


class _Transducer(torch.autograd.Function):
    """Losses (B,) from log probabilities of blank (B, T, U + 1) and of the next label (B, T, U)."""

    @staticmethod
    def forward(ctx: Any, blank: Tensor, label: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        lattice = _Lattice(blank, label, times, labels)
        alpha = lattice.forward_sums()
        batch = torch.arange(len(times), device=blank.device)
        total = alpha[times - 1 + labels, batch, labels] + blank[batch, times - 1, labels]
        ctx.save_for_backward(blank, label, times, labels, alpha, total)
        return -total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        blank, label, times, labels, alpha, total = ctx.saved_tensors
        lattice = _Lattice(blank, label, times, labels)
        beta = lattice.backward_sums()
        scaled, none = -grad[:, None], torch.full_like(beta[:1], NEVER)
        later = torch.cat([beta[1:], none])
        after_blank = torch.where(lattice.ends, 0.0, later)
        after_label = torch.cat([later[..., 1:], none[..., :1].expand(len(later), -1, -1)], -1)
        reached = torch.where(lattice.inside, alpha - total[:, None], NEVER)
        by_blank = (reached + lattice.blank + after_blank).exp() * scaled
        by_label = (reached + lattice.label + after_label).exp() * scaled
        return lattice.straight(by_blank), lattice.straight(by_label)[..., :-1], None, None


class _Lattice:
    """Log probabilities by diagonals: (T + U, B, U + 1), cell (d, b, u) stands for time d - u."""

    def __init__(self, blank: Tensor, label: Tensor, times: Tensor, labels: Tensor) -> None:
        batch, self.time, self.width = blank.shape
        count = torch.arange(self.width, device=blank.device)
        self.places = torch.arange(self.time + self.width - 1, device=blank.device)[:, None] - count  # (D, U + 1)
        self.blank = self._skewed(blank)
        self.label = self._skewed(torch.cat([label, label.new_full((batch, self.time, 1), NEVER)], -1))
        at = self.places[:, None]
        self.inside = (at >= 0) & (at < times[:, None]) & (count <= labels[:, None])
        self.ends = (at == times[:, None] - 1) & (count == labels[:, None])

    def _skewed(self, values: Tensor) -> Tensor:
        index = self.places.clamp(0, self.time - 1)
        return values.gather(1, index.expand(len(values), -1, -1)).transpose(0, 1)

    def straight(self, values: Tensor) -> Tensor:
        """Return values by diagonals as (B, T, U + 1)."""
        count = torch.arange(self.width, device=values.device)
        index = torch.arange(self.time, device=values.device)[:, None] + count
        return values.transpose(0, 1).gather(1, index.expand(values.shape[1], -1, -1))

    def forward_sums(self) -> Tensor:
        """Return the log probability of reaching each cell."""
        start = torch.full_like(self.blank[0], NEVER)
        start[:, 0] = 0
        found, none = [start], start.new_full((len(start), 1), NEVER)
        for blank, label in zip(self.blank[:-1], self.label[:-1], strict=True):
            up = torch.cat([none, (found[-1] + label)[:, :-1]], -1)
            found.append(torch.logaddexp(found[-1] + blank, up))
        return torch.stack(found)

    def backward_sums(self) -> Tensor:
        """Return the log probability of what follows each cell."""
        found = [torch.full_like(self.blank[0], NEVER)]
        none = found[0][:, :1]
        parts = zip(self.blank.flip(0), self.label.flip(0), self.inside.flip(0), self.ends.flip(0), strict=True)
        for blank, label, inside, ends in parts:
            up = torch.cat([found[-1][:, 1:], none], -1)
            going = torch.where(inside, torch.logaddexp(blank + found[-1], label + up), NEVER)
            found.append(torch.where(ends, blank, going))
        return torch.stack(found[:0:-1])


def transducer_loss(log_probs: Tensor, labels: Tensor, times: Tensor, lengths: Tensor, blank: int = 0) -> Tensor:
    """Return the loss of every sequence, (B,).

    Args:
        log_probs: (B, T, U + 1, classes), normalized over the classes.
        labels: (B, U) integers, none of them `blank`; what stands behind a sequence's length does not matter.
        times: (B,) frames of each sequence, 1..T.
        lengths: (B,) labels of each sequence, 0..U.
        blank: the class that moves on in time.

    Raises:
        ModelError: shapes or lengths do not fit.
    """
    batch, time, width = log_probs.shape[:3]
    fits = labels.shape == (batch, width - 1) and times.shape == lengths.shape == (batch,)
    if not fits or not (1 <= int(times.min()) and int(times.max()) <= time and int(lengths.max()) < width):
        raise ModelError(
            f"transducer: log_probs (B, T, U + 1, classes) = {tuple(log_probs.shape)} need labels (B, U), found "
            f"{tuple(labels.shape)}, times in 1..T and lengths in 0..U"
        )
    index = labels.long()[:, None, :, None].expand(batch, time, width - 1, 1)
    chosen = log_probs[:, :, :-1].gather(-1, index)[..., 0]
    losses: Tensor = _Transducer.apply(log_probs[..., blank], chosen, times.long(), lengths.long())
    return losses
