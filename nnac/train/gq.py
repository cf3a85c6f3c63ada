"""General quantizer: self-adjusting centroids in mu-law space, annealed from soft to hard.

A reconstruction of GQ (Zhen et al., arXiv 2210.09188). Weights are companded, y = sgn(w) ln(1 + mu |w| / s) / ln(1 +
mu); each becomes a mixture of centroids with the weights softmax(-alpha |y - c|), alpha grows, and at the end the
nearest centroid remains. The centroids are parameters of the task loss. Only the two centroids on both sides of a value
enter the mixture: a third one is farther by at least one spacing, so that its share is under exp(-alpha * spacing),
under 2 % where annealing starts and nothing where it ends. That makes memory and time of a step O(n), not O(n k).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from nnac.passes.centroid_folding import MOST_BITS
from nnac.train.compressors import Compressor, check_room

SOFTEST, HARDEST = 4.0, 200.0
"""alpha * spacing where annealing starts and where it ends."""
LLOYD_STEPS = 1000
CELLS = 4096
STILL = 1e-9


def compand(x: Tensor, mu: float) -> Tensor:
    """Return mu-law companded values of [-1, 1]."""
    return (torch.log1p(mu * x.abs()) / log(1 + mu)).copysign(x)


def expand(y: Tensor, mu: float) -> Tensor:
    """Return the inverse of `compand`."""
    return (torch.expm1(y.abs() * log(1 + mu)) / mu).copysign(y)


def lloyd(values: Tensor, count: int) -> Tensor:
    """Return `count` centroids, ascending, that are the means of their cells (Lloyd 1982), float64.

    Args:
        values: any shape.
        count: centroids; fewer distinct values leave some where they started.
    """
    ordered = values.detach().double().flatten().sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    shares = (torch.arange(count, dtype=torch.float64, device=ordered.device) + 0.5) / count
    found = torch.lerp(ordered[0], ordered[-1], shares) + STILL * shares
    for _ in range(LLOYD_STEPS):
        cuts = torch.searchsorted(ordered, (found[1:] + found[:-1]) / 2)
        ends = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(ordered))])
        sizes = ends[1:] - ends[:-1]
        means = torch.where(sizes > 0, (sums[ends[1:]] - sums[ends[:-1]]) / sizes.clamp(min=1), found)
        moved, found = float((means - found).abs().max()), means
        if moved < STILL:
            break
    return found


def places(values: Tensor, cuts: Tensor) -> Tensor:
    """Return what `torch.bucketize` returns, int32 and flat, in a few passes instead of a binary search per value.

    A grid decides first. It is monotone, rounding included, so that cuts in a lower cell than a value's lie below the
    value and cuts in a higher one do not; those in the same cell are compared.
    """
    flat = values.detach().flatten()
    if not cuts.numel():
        return torch.zeros_like(flat, dtype=torch.int32)
    span = float(cuts[-1] - cuts[0])
    rate = CELLS / span if span > 0 else 1.0

    def cells(x: Tensor) -> Tensor:
        return ((x - cuts[0]) * rate).clamp_(0, CELLS - 1).to(torch.int32)

    counts = torch.bincount(cells(cuts), minlength=CELLS)
    found = (counts.cumsum(0) - counts).to(torch.int32).index_select(0, cells(flat))
    ends = torch.cat([cuts, cuts.new_full((1,), torch.inf)])
    for _ in range(int(counts.max())):
        found += flat > ends.index_select(0, found)
    return found


@dataclass(frozen=True, slots=True)
class _Space:
    """What maps weights to centroids: the largest magnitude, mu, alpha."""

    size: float
    mu: float
    alpha: float


class _Soft(torch.autograd.Function):
    """Weights as mixtures of the two centroids around them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, centroids: Tensor, space: _Space) -> Tensor:
        y = compand(weight / space.size, space.mu).clamp_(centroids[0], centroids[-1])
        left = places(y, centroids[1:-1])
        low, width = (t.index_select(0, left).reshape(y.shape) for t in (centroids[:-1], centroids.diff()))
        share = ((y - low) * 2).sub_(width).mul_(space.alpha).sigmoid_()
        mixed = torch.addcmul(low, width, share)
        out = expand(mixed, space.mu).mul_(space.size)
        ctx.save_for_backward(weight, centroids, left, share, out)
        ctx.space = space
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, centroids, left, share, out = ctx.saved_tensors
        space: _Space = ctx.space
        slope = space.size * log(1 + space.mu) / space.mu  # of expand, at zero; times 1 + mu |x| elsewhere
        grad = out.abs().mul_(space.mu / space.size).add_(1).mul_(slope).mul_(grad)
        width = centroids.diff().index_select(0, left).reshape(weight.shape)
        turn = (1 - share).mul_(share).mul_(width).mul_(space.alpha)
        rate = weight.abs().mul_(space.mu).add_(space.size).reciprocal_().mul_(2 * space.mu / log(1 + space.mu))
        limit = expand(centroids[[0, -1]], space.mu) * space.size
        below, above = weight < limit[0], weight > limit[1]  # a value there stands at the last centroid, and follows it
        index, count = left.long(), len(centroids)
        upper = (share - torch.where(above, -turn, turn)).mul_(grad)
        lower = grad - torch.where(below, share - turn, share + turn).mul_(grad)
        low, high = torch.bincount(index, lower.flatten(), count), torch.bincount(index, upper.flatten(), count)
        moved = rate.mul_(turn).mul_(grad).masked_fill_(below | above, 0.0)
        return moved, (low + high.roll(1)).to(centroids.dtype), None


class _Hard(torch.autograd.Function):
    """Weights as their nearest levels; gradients pass straight to them and add up in the levels."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, levels: Tensor, cuts: Tensor) -> Tensor:
        index = places(weight, cuts)
        ctx.save_for_backward(index.to(torch.uint8))
        ctx.count = len(levels)
        return levels.index_select(0, index).reshape(weight.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (index,) = ctx.saved_tensors
        return grad, torch.bincount(index.long(), grad.flatten(), ctx.count).to(grad.dtype), None


class GQ(Compressor):
    """Weights of 1 to 8 bits with centroids that training adjusts; see the module.

    Args:
        weight: of the float baseline, where the centroids start: means of their cells in companded space.
        bits: of an index.
        mu: of the companding; 5 suits bell-shaped weights (a grid at 255 is worse than none).
        anneal: share of the training after which the assignment is hard.
        every: only each of so many steps quantizes ("quantization frequency"); the others train float weights.
        zero: one centroid stays at zero, for weights that another compressor prunes.
    """

    size: Tensor
    progress: Tensor
    memory = ("count",)

    def __init__(
        self,
        weight: Tensor,
        bits: int = 5,
        mu: float = 5.0,
        anneal: float = 0.7,
        every: int = 1,
        zero: bool = False,
        power_of_two: bool = False,
    ) -> None:
        super().__init__(power_of_two)
        check_room(weight, bits)
        self.bits, self.mu, self.anneal, self.every, self.count = bits, mu, anneal, every, 0
        self.register_buffer("size", weight.abs().max().clamp(min=2.0**-100).clone())
        self.register_buffer("progress", torch.zeros(()))
        start = lloyd(compand(weight / self.size, mu), 1 << bits).to(weight.dtype)
        self.centroids = nn.Parameter(start)
        self.pinned = int(start.abs().argmin()) if zero else None

    def table(self) -> Tensor:
        """Return the centroids as they are used: ascending, one at zero if wanted."""
        if self.pinned is None:
            return self.centroids.sort().values
        keep = torch.ones_like(self.centroids)
        keep[self.pinned] = 0
        return (self.centroids * keep).sort().values

    def levels(self) -> Tensor:
        """Return the weights that the centroids stand for."""
        return expand(self.table(), self.mu) * self.size

    def alpha(self) -> float | None:
        """Return the sharpness of the softmax, or None where the assignment is hard."""
        share = float(self.progress) / self.anneal if self.anneal else 1.0
        if share >= 1 or not self.training:
            return None
        spacing = max(float(self.centroids.detach().sort().values.diff().min()), 1e-3)
        return SOFTEST * (HARDEST / SOFTEST) ** share / spacing

    def forward(self, weight: Tensor) -> Tensor:
        if float(self.settled):
            return weight
        if self.training and self.every > 1 and self.count % self.every:
            return weight
        alpha, size = self.alpha(), float(self.size)
        if alpha is not None:
            return _Soft.apply(weight, self.table(), _Space(size, self.mu, alpha))
        return _Hard.apply(weight, self.levels(), self._cuts())

    def _cuts(self) -> Tensor:
        """Return the weights half-way between centroids in companded space."""
        table = self.table().detach()
        return expand((table[1:] + table[:-1]) / 2, self.mu) * self.size

    def step(self, weight: Tensor, progress: float, count: int) -> None:
        self.progress.fill_(progress)
        self.count = count
        self.size.copy_(weight.abs().max().clamp(min=2.0**-100))

    def hard(self, weight: Tensor) -> Tensor:
        return self.levels()[torch.bucketize(weight, self._cuts())]

    def peak(self) -> Tensor | None:
        if self.bits > MOST_BITS:  # plain int8 weights: no table
            return None
        return self.levels().detach().abs().max()
