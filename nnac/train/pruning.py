"""Pruning while training: compressed-sensing pruning, and the baselines beside it.

All follow one schedule of sparsity (Zhu and Gupta 2017): s_t = s (1 - (1 - t)**3) while t runs from 0 to 1 between two
shares of the training; behind it the mask stays and the remaining weights go on training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnac.errors import ModelError
from nnac.train.compressors import Compressor

ITERATIONS = 30


class Pruner(Compressor):
    """Gradual magnitude pruning (Zhu and Gupta 2017), and the base of the others.

    Args:
        weight: to be pruned.
        sparsity: share of zeros at the end, 0 up to below 1.
        begin, end: shares of the training between which the sparsity grows.
        every: steps between two new masks.
    """

    mask: Tensor
    memory = ("fixed",)

    def __init__(self, weight: Tensor, sparsity: float, begin: float = 0.0, end: float = 0.7, every: int = 10) -> None:
        super().__init__()
        if not 0 <= sparsity < 1 or not 0 <= begin < end <= 1 or every < 1:
            raise ModelError("pruning: 0 <= sparsity < 1, 0 <= begin < end <= 1 and every >= 1")
        self.sparsity, self.begin, self.end, self.every = sparsity, begin, end, every
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.fixed = False

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def wanted(self, progress: float) -> float:
        """Return the sparsity at a share of the training."""
        ramp = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.sparsity * (1 - (1 - ramp) ** 3)

    def step(self, weight: Tensor, progress: float, count: int) -> None:
        if self.fixed or (count % self.every and progress < self.end):
            return
        self.fixed = progress >= self.end
        self.prune(weight, self.wanted(progress))

    def prune(self, weight: Tensor, sparsity: float) -> None:
        """Choose the mask anew."""
        self.mask.copy_(smallest(weight.abs(), sparsity))

    def hard(self, weight: Tensor) -> Tensor:
        if not self.fixed:
            self.fixed = True
            self.prune(weight, self.sparsity)
        return weight * self.mask


def smallest(sizes: Tensor, share: float) -> Tensor:
    """Return a mask that leaves out just that share of the entries, the smallest."""
    count = round(share * sizes.numel())
    mask = torch.ones(sizes.numel(), dtype=torch.bool, device=sizes.device)
    mask[sizes.flatten().topk(count, largest=False).indices] = False
    return mask.reshape(sizes.shape)


class L1(Pruner):
    """Sparsity from a penalty on magnitudes, weights pruned once, at the end of the schedule.

    Args:
        strength: of the penalty on the mean magnitude.
    """

    def __init__(self, weight: Tensor, sparsity: float, strength: float = 1e-2, end: float = 0.7) -> None:
        super().__init__(weight, sparsity, 0.0, end, 1)
        self.strength = strength

    def penalty(self, weight: Tensor) -> Tensor | None:
        return None if self.fixed else self.strength * weight.abs().mean()

    def step(self, weight: Tensor, progress: float, count: int) -> None:
        if not self.fixed and progress >= self.end:
            self.fixed = True
            self.prune(weight, self.sparsity)


class CSP(Pruner):
    """Pruning by compressed sensing: a sparse copy of the weights, and a loss that draws the weights to it.

    A reconstruction of CSP (Zhen et al., arXiv 2102.04932: sparsity inducing and compression-error reduction as a dual
    problem). For the weights W (rows of K), at every new mask theta = argmin 1/2 |A (W - theta)|^2 + gamma |theta|_1,
    by ISTA, where gamma follows the sparsity that the schedule wants; the loss gets strength / 2 |W - theta|^2; and
    W loses what theta has not.

    Args:
        strength: rho.
        sensing: A as (M, K): None is the identity; `random_sensing` for a Gaussian; calibration activations (samples,
            K) preserve a layer's outputs.
    """

    theta: Tensor
    gram: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        sparsity: float,
        strength: float = 1.0,
        sensing: Tensor | None = None,
        begin: float = 0.0,
        end: float = 0.7,
        every: int = 10,
    ) -> None:
        super().__init__(weight, sparsity, begin, end, every)
        self.strength = strength
        self.register_buffer("theta", weight.detach().clone())
        self.register_buffer("gram", None if sensing is None else normalized_gram(sensing, weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask if self.fixed else weight

    def penalty(self, weight: Tensor) -> Tensor | None:
        return None if self.fixed else 0.5 * self.strength * (weight - self.theta).square().sum()

    def prune(self, weight: Tensor, sparsity: float) -> None:
        self.theta.copy_(sparse_copy(weight, sparsity, self.gram))
        self.mask.copy_(self.theta != 0)
        weight.mul_(self.mask)


def random_sensing(width: int, rows: int, seed: int = 0) -> Tensor:
    """Return a Gaussian sensing matrix (rows, width)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator) / rows**0.5


def normalized_gram(sensing: Tensor, weight: Tensor) -> Tensor:
    """Return A^T A over its largest eigenvalue, for rows of the weight.

    Raises:
        ModelError: the matrix has another width.
    """
    width = weight.flatten(1).shape[1]
    if sensing.dim() != 2 or sensing.shape[1] != width:
        raise ModelError(f"a sensing matrix for this weight has {width} columns, found {tuple(sensing.shape)}")
    gram = sensing.detach().T @ sensing.detach()
    return gram / torch.linalg.eigvalsh(gram)[-1]


def sparse_copy(weight: Tensor, sparsity: float, gram: Tensor | None = None, iterations: int = ITERATIONS) -> Tensor:
    """Return theta of `CSP` with that share of zeros, by ISTA.

    Inside the iteration the threshold is the size below which the share of entries lies, so that a fixed point solves
    the problem for the gamma that belongs to the sparsity, without a search around it.
    """
    goal = weight.detach().flatten(1)
    if gram is None:
        return _shrunk(goal, sparsity).reshape(weight.shape)
    theta = goal.clone()
    for _ in range(iterations):
        theta = _shrunk(theta + (goal - theta) @ gram, sparsity)
    return theta.reshape(weight.shape)


def _shrunk(values: Tensor, sparsity: float) -> Tensor:
    """Return soft-thresholded values, the threshold where the share of the sizes lies under it."""
    sizes = values.abs()
    mask = smallest(sizes, sparsity)
    pruned = sizes[~mask]
    threshold = pruned.max() if pruned.numel() else sizes.new_zeros(())
    least = torch.finfo(values.dtype).tiny  # what stands on the threshold stays in the mask
    return torch.where(mask, (sizes - threshold).clamp(min=least).copysign(values), 0.0)
