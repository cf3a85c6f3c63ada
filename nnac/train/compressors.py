"""Compressors of weights: one small interface, and those that work with a fixed rule or a table of levels.

A compressor is a parametrization of a weight (`forward`), an optional regularizer (`penalty`), a hook behind the
optimizer's step (`step`) and an end (`hard`). They combine: `compress` puts several behind each other on one weight.
What a compressor makes stands on a grid of int8 levels times `scale`, which a twin and the compiler find again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil, log2, pi
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nnac.errors import ModelError
from nnac.passes.centroid_folding import SHARE
from nnac.weights.codebooks import check_bits, encode
from nnac.weights.folding import lossless_scale

LEVELS = 127


class Compressor(nn.Module):
    """Base: changes nothing.

    Attributes:
        power_of_two: the grid's step is a power of two, for machines that have such scales only.
    """

    settled: Tensor
    memory: ClassVar[tuple[str, ...]] = ()
    """Attributes beside tensors that a checkpoint keeps."""

    def __init__(self, power_of_two: bool = False) -> None:
        super().__init__()
        self.power_of_two = power_of_two
        self.register_buffer("settled", torch.zeros(()))

    def get_extra_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.memory}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for name in self.memory:
            setattr(self, name, state[name])

    def forward(self, weight: Tensor) -> Tensor:
        """Return what the layer computes with while it trains."""
        return weight

    def penalty(self, weight: Tensor) -> Tensor | None:
        """Return what is added to the loss, a scalar."""
        return None

    def step(self, weight: Tensor, progress: float, count: int) -> None:
        """Do what follows an optimizer's step, in place.

        Args:
            weight: the trained parameter.
            progress: share of the training that is done, 0..1.
            count: steps done.
        """

    def hard(self, weight: Tensor) -> Tensor:
        """Return the weight that is deployed."""
        return self(weight)

    def peak(self) -> Tensor | None:
        """Return the largest magnitude of the levels, or None where there is no table."""
        return None

    def scale(self) -> Tensor | None:
        """Return the step of the int8 grid on which the levels stand; None without one."""
        if float(self.settled) > 0:
            return self.settled
        peak = self.peak()
        return None if peak is None else grid_step(peak, self.power_of_two)

    def settle(self, weight: Tensor) -> Tensor:
        """Return a hard weight with its levels on an int8 grid, whose step stays from now on."""
        step = self.scale()
        if step is None:
            return weight
        levels = (weight.double() / step.double()).round().clamp(-LEVELS, LEVELS)
        values = levels.float() * step.float()
        found = lossless_scale(np.unique(values.cpu().numpy()), self.power_of_two)
        self.settled.fill_(float(step) if found is None else found)
        return values


def grid_step(peak: Tensor, power_of_two: bool) -> Tensor:
    """Return the float32 step that puts the largest magnitude on level 127, or under it where steps are powers of 2."""
    value = max(float(peak) / LEVELS, 2.0**-100)
    return torch.tensor(2.0 ** ceil(log2(value)) if power_of_two else value, dtype=torch.float32, device=peak.device)


def clustered_scale(owner: nn.Module, name: str) -> Tensor | None:
    """Return the scales (O,) of a weight that a compressor has put on a grid, or None."""
    if not parametrize.is_parametrized(owner, name):
        return None
    parts: Any = owner.parametrizations[name]  # type: ignore[index, union-attr]
    found = [step for part in parts if isinstance(part, Compressor) and (step := part.scale()) is not None]
    return found[-1].detach().expand(parts.original.shape[0]) if found else None


# -- many weights --------------------------------------------------------------------------------------------------

Factory = Callable[[Tensor], "Compressor | Sequence[Compressor] | None"]


@dataclass(frozen=True, slots=True)
class Compressed:
    """One weight and its compressors, in order."""

    name: str
    owner: nn.Module
    tensor: str

    @property
    def chain(self) -> list[Compressor]:
        return [part for part in self.owner.parametrizations[self.tensor] if isinstance(part, Compressor)]  # type: ignore[index, union-attr]

    @property
    def original(self) -> Tensor:
        found: Tensor = self.owner.parametrizations[self.tensor].original  # type: ignore[index, union-attr, assignment]
        return found


class Compression:
    """All compressed weights of a model, as one: what a training loop calls."""

    def __init__(self, weights: Sequence[Compressed]) -> None:
        self.weights, self.count = tuple(weights), 0

    def penalty(self) -> Tensor | float:
        """Return the sum of all regularizers."""
        return sum(self._penalties(), 0.0)

    def _penalties(self) -> Iterator[Tensor]:
        for each in self.weights:
            value = each.original
            for part in each.chain:
                found = part.penalty(value)
                if found is not None:
                    yield found

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Follow an optimizer's step; see `Compressor.step`."""
        self.count += 1
        for each in self.weights:
            for part in each.chain:
                part.step(each.original, progress, self.count)

    @torch.no_grad()
    def harden(self) -> None:
        """Make the weights what is deployed: what the compressors' ends make of them, on int8 grids."""
        for each in self.weights:
            value = each.original.clone()
            for part in each.chain:
                value = part.settle(part.hard(value))
            each.original.copy_(value)


def compress(model: nn.Module, rules: Mapping[str, Factory]) -> Compression:
    """Put compressors on a model's weights.

    Args:
        model: its parameters of two and more dimensions are weights.
        rules: from patterns of parameter names ("encoder.*", "*.weight_hh_l0") to what makes the compressors of a
            weight: one, several that follow each other, or None. The first pattern that fits decides.

    Raises:
        ModelError: a pattern fits no weight.
    """
    found, used = [], set()
    for name, weight in list(model.named_parameters()):
        pattern = next((p for p in rules if fnmatchcase(name, p)), None)
        if pattern is None or weight.dim() < 2 or "parametrizations" in name:
            continue
        used.add(pattern)
        made = rules[pattern](weight.detach())
        chain = [made] if isinstance(made, Compressor) else list(made or ())
        if chain:
            found.append(_attach(model, name, chain))
    missing = [repr(pattern) for pattern in rules if pattern not in used]
    if missing:
        raise ModelError(f"no weight has a name like {', '.join(missing)}, or another rule took all that have")
    return Compression(found)


def _attach(model: nn.Module, name: str, chain: Sequence[Compressor]) -> Compressed:
    path, _, tensor = name.rpartition(".")
    owner = model.get_submodule(path)
    device = owner.get_parameter(tensor).device
    for part in chain:
        parametrize.register_parametrization(owner, tensor, part.to(device), unsafe=True)
    if isinstance(owner, nn.RNNBase) and not getattr(owner, "_follows", False):
        owner.register_forward_pre_hook(_refresh)
        owner._follows = True  # type: ignore[assignment]
    return Compressed(name, owner, tensor)


def _refresh(module: Any, inputs: Any) -> None:
    """Let torch's recurrent layers, which keep a list of their weights, see what the compressors make of them."""
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


# -- straight through ----------------------------------------------------------------------------------------------


class _Straight(torch.autograd.Function):
    """The second value, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None


def straight_through(weight: Tensor, value: Tensor) -> Tensor:
    """Return `value`, of no gradient of its own, as if it were `weight`."""
    return _Straight.apply(weight, value.detach())


class FakeQuant(Compressor):
    """Weights rounded to `bits` bits, symmetric, a step per output channel or per tensor: the usual QAT."""

    def __init__(self, bits: int = 8, per_channel: bool = True) -> None:
        super().__init__()
        self.limit, self.per_channel = (1 << bits - 1) - 1, per_channel

    def forward(self, weight: Tensor) -> Tensor:
        value = weight.detach()
        axes = list(range(1, value.dim())) if self.per_channel else list(range(value.dim()))
        step = (value.abs().amax(axes, keepdim=True) / self.limit).clamp(min=2.0**-100)
        return straight_through(weight, (value / step).round() * step)


class DoubleRounding(Compressor):
    """int8 weights rounded again to fewer bits, so that one int8 tensor holds all widths.

    The format of Double Rounding (q = round(round(w / s) / 2**(8 - bits))), at one width per training; its learning
    rates per width and its search of widths are not here.

    Args:
        weight: whose largest magnitude is level 127.
        bits: 2 to 8.
    """

    def __init__(self, weight: Tensor, bits: int, power_of_two: bool = False) -> None:
        super().__init__(power_of_two)
        if not 2 <= bits <= 8:
            raise ModelError(f"bits = {bits}: an int8 weight is rounded again to 2 to 8 bits")
        self.drop = 1 << 8 - bits
        self.limit = (1 << bits - 1) - 1
        self.register_buffer("largest", weight.abs().max())

    largest: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        value, step = weight.detach(), grid_step(self.largest, self.power_of_two)
        first = (value / step).round().clamp(-LEVELS, LEVELS)
        levels = (first / self.drop).round().clamp(-self.limit, self.limit) * self.drop
        return straight_through(weight, levels * step)

    def step(self, weight: Tensor, progress: float, count: int) -> None:
        self.largest.copy_(weight.abs().max())

    def scale(self) -> Tensor | None:
        return self.settled if float(self.settled) > 0 else grid_step(self.largest, self.power_of_two)


class Ternary(Compressor):
    """-1, 0, 1 times the mean (BitNet b1.58) or the median (b1.58 Reloaded) magnitude of the weights.

    Args:
        weight: whose magnitudes decide the first unit; it follows the training.
        median: the median instead of the mean.
    """

    def __init__(self, weight: Tensor, median: bool = False, power_of_two: bool = False) -> None:
        super().__init__(power_of_two)
        self.median = median
        self.register_buffer("unit", self._unit(weight))

    unit: Tensor

    def _unit(self, weight: Tensor) -> Tensor:
        sizes = weight.detach().abs()
        found = sizes.median() if self.median else sizes.mean()
        found = found.clamp(min=2.0**-100)
        return torch.exp2(found.log2().round()) if self.power_of_two else found

    def forward(self, weight: Tensor) -> Tensor:
        if not float(self.settled):
            self.unit.copy_(self._unit(weight))
        return straight_through(weight, (weight.detach() / self.unit).round().clamp(-1, 1) * self.unit)

    def peak(self) -> Tensor | None:
        return self.unit


# -- tables --------------------------------------------------------------------------------------------------------


def check_room(weight: Tensor, bits: int) -> None:
    """Raise ModelError where the compiler would not look for a table: in a weight with few entries for its levels."""
    check_bits(bits)
    if weight.numel() < SHARE << bits:
        raise ModelError(
            f"a weight of shape {tuple(weight.shape)} is too small for a table of {bits} bits, which needs "
            f"{SHARE << bits} entries; leave it at eight bits (a rule that returns None), or take fewer"
        )


def lloyd_max(weight: Tensor, bits: int, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """Return the levels of least squared error, int8 values times a step, ascending, and the step.

    Args:
        weight: any shape.
        bits: 1 to 7.
        power_of_two: the step is a power of two.

    Raises:
        ModelError: the weight is too small for a table.
    """
    check_room(weight, bits)
    values = weight.detach().float().cpu().numpy().reshape(1, -1)
    encoded = encode(values, bits, "lloyd_max", per_channel=False, power_of_two=power_of_two)
    step = torch.tensor(float(encoded.scale[0]), dtype=torch.float32)
    table = torch.from_numpy(encoded.tables[0].astype(np.float32)) * step
    return table.to(weight.device), step.to(weight.device)


def nearest(weight: Tensor, table: Tensor) -> Tensor:
    """Return the places (int64) of the nearest entries of an ascending table."""
    return torch.bucketize(weight.detach(), (table[1:] + table[:-1]) / 2)


def mracos(weight: Tensor, table: Tensor) -> Tensor:
    """Return, per weight, 0 at every level, 1 half-way between two, and a straight line outside of all.

    A reconstruction of S8BQAT's regularizer (Zhen et al., arXiv 2206.15408): |cos(pi (w - m) / D)| between neighbouring
    levels of distance D around m; outside, pi times the distance to the last level over the last D, for the cosine has
    zeros there that are no levels. Periodic regularizers of this kind are the subject of a patent (US 11,468,313 B1):
    nothing turns this one on but its user.

    Args:
        weight: any shape; gradients pass.
        table: ascending, two levels or more.
    """
    right = torch.bucketize(weight.detach(), table).clamp(1, len(table) - 1)
    low, width = table[right - 1], table[right] - table[right - 1]
    place = (weight - low) / width
    inside = torch.sin(pi * place.clamp(0, 1))
    return inside + pi * (F.relu(-place) + F.relu(place - 1))


class S8BQAT(Compressor):
    """Lloyd-Max levels of the trained weights, and weights that training brings to them.

    A reconstruction of S8BQAT (Zhen et al., arXiv 2206.15408). The levels come from the float baseline and stay; every
    `every` steps, and at the end, each weight moves to its nearest level; a regularizer may pull between these times.

    Args:
        weight: of the float baseline.
        bits: of an index.
        every: steps between two hard compressions; 0: only at the end.
        strength: of `mracos`, per layer; 0 leaves it out, and it is the user who turns it on (see there).
        warm: share of the training over which the strength grows to what it shall be.
    """

    table: Tensor
    memory = ("progress",)

    def __init__(
        self,
        weight: Tensor,
        bits: int = 5,
        every: int = 50,
        strength: float = 0.0,
        warm: float = 0.2,
        power_of_two: bool = False,
    ) -> None:
        super().__init__(power_of_two)
        table, step = lloyd_max(weight, bits, power_of_two)
        self.register_buffer("table", table)
        self.settled.fill_(float(step))
        self.every, self.strength, self.warm, self.progress = every, strength, warm, 0.0

    def penalty(self, weight: Tensor) -> Tensor | None:
        if not self.strength:
            return None
        return self.strength * min(1.0, self.progress / self.warm) * mracos(weight, self.table).mean()

    def step(self, weight: Tensor, progress: float, count: int) -> None:
        self.progress = progress
        if self.every and count % self.every == 0:
            weight.copy_(self.hard(weight))

    def hard(self, weight: Tensor) -> Tensor:
        return self.table[nearest(weight, self.table)]


class Centroids(Compressor):
    """Levels that the loss trains, every weight bound to its first one (Polino et al. 2018, differentiable
    quantization).

    Args:
        weight: of the float baseline, which decides the levels and who belongs to which.
        bits: of an index.
    """

    places: Tensor

    def __init__(self, weight: Tensor, bits: int = 4, power_of_two: bool = False) -> None:
        super().__init__(power_of_two)
        table, _ = lloyd_max(weight, bits, power_of_two)
        self.table = nn.Parameter(table.clone())
        self.register_buffer("places", nearest(weight, table).to(torch.uint8))

    def forward(self, weight: Tensor) -> Tensor:
        if float(self.settled):
            return weight
        return self.table.index_select(0, self.places.int().flatten()).reshape(weight.shape)

    def peak(self) -> Tensor | None:
        return self.table.detach().abs().max()


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Return the divergence of softened predictions, times the squared temperature (Hinton et al. 2015).

    With a compressed student this is quantized distillation (Polino et al. 2018).

    Args:
        student, teacher: logits (..., classes); the teacher's get no gradient.
        temperature: above 0.
    """
    soft = F.log_softmax(teacher.detach() / temperature, -1)
    own = F.log_softmax(student / temperature, -1)
    return F.kl_div(own.flatten(0, -2), soft.flatten(0, -2), log_target=True, reduction="batchmean") * temperature**2
