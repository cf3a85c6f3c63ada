"""General quantizer: self-adjusting centroids in mu-law space, annealed from soft to hard.

A reconstruction of GQ (Zhen et al., arXiv 2210.09188). Weights are companded, y = sgn(w) ln(1 + mu |w| / s) / ln(1 +
mu); each becomes a mixture of centroids with the weights softmax(-alpha |y - c|), alpha grows, and at the end the
nearest centroid remains. The centroids are parameters of the task loss.

Two things make a step cost O(n), not O(n k), in time and in memory:

1. only the two centroids on both sides of a value enter the mixture. A third one is farther by at least one spacing, so
   that its share is under exp(-alpha * spacing): under 2 % where annealing starts, and nothing where it ends;
2. what a weight becomes is one function for the whole tensor. It is computed at `KNOTS` equally distant places, 1/16 of
   an int8 step apart, and every weight takes what belongs to the place nearest to it, and the slope there.
"""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor, nn

from nnac.passes.centroid_folding import MOST_BITS
from nnac.train.compressors import Compressor, check_room
from nnac.train.law import blocks

SOFTEST, HARDEST = 4.0, 200.0
"""alpha * spacing where annealing starts and where it ends."""
KNOTS = 4097
LLOYD_STEPS = 1000
STILL = 1e-9


def compand(x: Tensor, mu: float) -> Tensor:
    """Return mu-law companded values of [-1, 1]."""
    return (torch.log1p(mu * x.abs()) / log(1 + mu)).copysign(x)


def expand(y: Tensor, mu: float) -> Tensor:
    """Return the inverse of `compand`."""
    return torch.expm1(y.abs() * log(1 + mu)) * (y.sign() / mu)


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


class _Read(torch.autograd.Function):
    """A function that is known at equally distant places over [-reach, reach], read at the nearest one.

    Gradients pass to its values, and by its slope to where it is read; straight through if it is steps.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, knots: Tensor, reach: float, steps: bool) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, found in blocks(x, out):
            torch.index_select(knots, 0, _places(part, len(knots), reach), out=found.view(-1))
        ctx.save_for_backward(x, knots)
        ctx.reach, ctx.steps = reach, steps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, knots = ctx.saved_tensors
        out = grad if ctx.steps else torch.empty_like(x, memory_format=torch.contiguous_format)
        (slopes,) = torch.gradient(knots, spacing=2 * ctx.reach / (len(knots) - 1))
        sums = torch.zeros_like(knots)
        for part, force, found in blocks(x, grad, out):
            index, force = _places(part, len(knots), ctx.reach), force.flatten()
            sums += torch.bincount(index, force, len(knots))
            if not ctx.steps:
                torch.mul(slopes.index_select(0, index), force, out=found.view(-1))
        return out, sums, None, None


def _places(x: Tensor, count: int, reach: float) -> Tensor:
    """Return the nearest of `count` equally distant places over [-reach, reach], int32, flat."""
    rate = (count - 1) / (2 * reach)
    return (x.flatten() + (reach + 0.5 / rate)).mul_(rate).clamp_(0, count - 1).int()


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
    places: Tensor
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
        knots = torch.linspace(-1, 1, KNOTS, dtype=weight.dtype, device=weight.device)
        self.register_buffer("places", compand(knots, mu), persistent=False)

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
        return self._read(weight, self.alpha())

    def _read(self, weight: Tensor, alpha: float | None) -> Tensor:
        knots = expand(self._nearest() if alpha is None else self._mixed(alpha), self.mu) * self.size
        return _Read.apply(weight, knots, float(self.size), alpha is None)

    def _nearest(self) -> Tensor:
        """Return the centroid of every place."""
        table = self.table()
        cuts = (table.detach()[1:] + table.detach()[:-1]) / 2
        return table.gather(0, torch.bucketize(self.places, cuts))

    def _mixed(self, alpha: float) -> Tensor:
        """Return the mixture of every place; those outside of all centroids stand at the last one."""
        table = self.table()
        y = self.places.clamp(table[0], table[-1])
        index = torch.bucketize(self.places, table.detach()[1:-1])
        low, high = table.gather(0, index), table.gather(0, index + 1)
        return torch.lerp(low, high, torch.sigmoid(alpha * (2 * y - low - high)))

    def step(self, weight: Tensor, progress: float, count: int) -> None:
        self.progress.fill_(progress)
        self.count = count
        self.size.copy_(weight.abs().max().clamp(min=2.0**-100))

    def hard(self, weight: Tensor) -> Tensor:
        return self._read(weight, None)

    def peak(self) -> Tensor | None:
        if self.bits > MOST_BITS:  # plain int8 weights: no table
            return None
        return self.levels().detach().abs().max()
