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

from nnac.kernels import knots as kernels
from nnac.passes.centroid_folding import MOST_BITS
from nnac.train.compressors import Compressor, check_room

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
    return torch.expm1(y.abs() * log(1 + mu)).copysign(y) / mu


def _largest(weight: Tensor) -> Tensor:
    low, high = weight.detach().aminmax()
    return torch.maximum(high, -low).clamp(min=2.0**-100)


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


class _Annealed(torch.autograd.Function):
    """Weights as mixtures of the two centroids beside each, or as the nearer one where `alpha` is None.

    Gradients pass to the centroids, and to the weights by the slope; straight through where that is of steps.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, table: Tensor, places: Tensor, size: Tensor, mu: float, alpha: Any) -> Tensor:
        low = torch.bucketize(places, table[1:-1], out_int32=True)
        ends = table.index_select(0, low), table.index_select(0, low + 1)
        nearer = (places - ends[0]).abs_() - (places - ends[1]).abs_()
        share = (nearer > 0).to(table.dtype) if alpha is None else nearer.mul_(alpha).sigmoid_()
        knots = expand(torch.lerp(*ends, share), mu) * size
        ctx.save_for_backward(weight, places, low, *ends, share, knots, size)
        ctx.mu, ctx.alpha, ctx.count = mu, alpha, len(table)
        return read(weight, knots, float(size))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, *_, knots, size = ctx.saved_tensors
        (slopes,) = torch.gradient(knots, spacing=1 / _rate(KNOTS, float(size)))
        slopes = torch.ones_like(knots) if ctx.alpha is None else slopes
        passed, sums = pull(weight, grad, slopes, float(size))
        return passed, _to_centroids(ctx, sums), None, None, None, None


def _to_centroids(ctx: Any, sums: Tensor) -> Tensor:
    """Return the gradient of the centroids, given that of what all places become."""
    _, places, low, one, other, share, knots, size = ctx.saved_tensors
    force = (knots.abs() + size / ctx.mu).mul_(sums).mul_(log(1 + ctx.mu))  # through the companding
    to_one, to_other = (1 - share).mul_(force), share * force
    if ctx.alpha is not None:
        bend = (to_one * share).mul_(other - one).mul_(ctx.alpha)
        to_one.addcmul_(bend, (places - one).sign_(), value=-1)
        to_other.addcmul_(bend, (other - places).sign_(), value=-1)
    return torch.bincount(low, to_one, ctx.count) + torch.bincount(low + 1, to_other, ctx.count)


def read(x: Tensor, knots: Tensor, reach: float) -> Tensor:
    """Return a function that is known at equally distant places over [-reach, reach], at the one nearest to each x."""
    if not _is_plain(x):
        return knots.index_select(0, _places(x, len(knots), reach)).reshape(x.shape)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    kernels.read(_flat(x), _flat(knots), _rate(len(knots), reach), _flat(out))
    return out


def pull(x: Tensor, force: Tensor, slopes: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the knots, given that of what `read` returns."""
    if not _is_plain(x):
        index = _places(x, len(slopes), reach)
        sums = torch.bincount(index, force.flatten(), len(slopes))
        return slopes.index_select(0, index).reshape(x.shape) * force, sums
    passed, sums = torch.empty_like(x, memory_format=torch.contiguous_format), torch.zeros_like(slopes)
    kernels.pull(_flat(x), _flat(force), _flat(slopes), _rate(len(slopes), reach), _flat(passed), _flat(sums))
    return passed, sums


def _is_plain(x: Tensor) -> bool:
    """Whether a loop over memory does it, several times faster than torch's passes."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _flat(x: Tensor) -> Any:
    return x.detach().numpy().ravel()


def _rate(count: int, reach: float) -> float:
    return (count - 1) / (2 * reach)


def _places(x: Tensor, count: int, reach: float) -> Tensor:
    return (x.flatten() * _rate(count, reach) + count / 2).clamp_(0, count - 1).int()


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
        self.register_buffer("size", _largest(weight))
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
        spacing = max(float(self.table().detach().diff().min()), 1e-3)
        return SOFTEST * (HARDEST / SOFTEST) ** share / spacing

    def forward(self, weight: Tensor) -> Tensor:
        if float(self.settled):
            return weight
        if self.training and self.every > 1 and self.count % self.every:
            return weight
        return self._read(weight, self.alpha())

    def _read(self, weight: Tensor, alpha: float | None) -> Tensor:
        return _Annealed.apply(weight, self.table(), self.places, self.size, self.mu, alpha)

    def step(self, weight: Tensor, progress: float, count: int) -> None:
        self.progress.fill_(progress)
        self.count = count
        self.size.copy_(_largest(weight))

    def hard(self, weight: Tensor) -> Tensor:
        return self._read(weight, None)

    def peak(self) -> Tensor | None:
        if self.bits > MOST_BITS:  # plain int8 weights: no table
            return None
        return self.levels().detach().abs().max()
