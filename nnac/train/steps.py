"""Steps of a twin: what an operator of a traced model is on the accelerator, one class per kind.

A step takes integers less their zero point (see `nnac.train.integers`) and gives such integers; which scale each value
has was decided before (`nnac.train.plan`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnac.ops.recurrent import GATES
from nnac.targets import Arithmetic
from nnac.train import cells, integers
from nnac.train.compressors import clustered_scale
from nnac.train.integers import UNBOUNDED
from nnac.train.scales import Scale

Clamp = tuple[float, float]
Scales = Mapping[str, Scale]


def zeros_of(weight: Tensor) -> Tensor:
    """Return a bias of zeros for weights (O, ...)."""
    return weight.new_zeros(weight.shape[0])


def _layer(weight: Tensor, bias: Tensor | None, source: Any, law: Arithmetic, owner: nn.Module, name: str) -> Any:
    """Return the integer constants of a layer; weights that a compressor clusters keep its scale."""
    scale = clustered_scale(owner, name)
    return integers.layer_integers(weight, zeros_of(weight) if bias is None else bias, scale, source, law)


@dataclass(slots=True)
class Enter:
    """A real input becomes integers."""

    scale: Scale

    def __call__(self, law: Arithmetic, x: Tensor) -> Tensor:
        return integers.enter(x, self.scale.quant, self.scale.stretch)


@dataclass(slots=True)
class Embed:
    """Rows of a table, which the host looks up and the accelerator's border quantizes."""

    module: nn.Embedding
    scale: Scale

    def __call__(self, law: Arithmetic, ids: Tensor) -> Tensor:
        return integers.enter(self.module(ids), self.scale.quant, self.scale.stretch)


@dataclass(slots=True)
class Affine:
    """Linear and convolution, with the clamp of an activation behind them."""

    module: Any
    source: Scale
    result: Scale
    clamp: Clamp = UNBOUNDED

    def __call__(self, law: Arithmetic, c: Tensor) -> Tensor:
        source, result = self.source.quant, self.result.quant
        parts = _layer(self.module.weight, self.module.bias, source, law, self.module, "weight")
        finish = integers.layer_finish(parts, source, result, law, self.clamp)
        if isinstance(self.module, nn.Linear):
            acc = integers.dense(c, parts, law)
        else:
            acc = integers.convolution(c, parts, law, self.options())
            shape = (-1, *(1,) * (c.dim() - 2))
            finish = integers.Finish(finish.ratio.shaped(*shape), finish.low, finish.high, law)
        return integers.requantize(acc, finish, self.result.stretch)

    def options(self) -> dict[str, Any]:
        """Return the convolution's arguments."""
        module = self.module
        return {
            "stride": module.stride,
            "padding": module.padding,
            "dilation": module.dilation,
            "groups": module.groups,
        }


@dataclass(slots=True)
class Sum:
    """Sums and differences."""

    signs: tuple[int, ...]
    sources: tuple[Scale, ...]
    result: Scale
    clamp: Clamp = UNBOUNDED

    def __call__(self, law: Arithmetic, *operands: Tensor) -> Tensor:
        quants = [scale.quant for scale in self.sources]
        found = integers.add(list(operands), self.signs, quants, self.result.quant, law, self.clamp)
        return integers.requantize(*found, self.result.stretch)


@dataclass(slots=True)
class Product:
    """Products of two tensors."""

    sources: tuple[Scale, ...]
    result: Scale
    clamp: Clamp = UNBOUNDED

    def __call__(self, law: Arithmetic, *operands: Tensor) -> Tensor:
        quants = [scale.quant for scale in self.sources]
        found = integers.multiply(operands[0], operands[1], quants, self.result.quant, law, self.clamp)
        return integers.requantize(*found, self.result.stretch)


@dataclass(slots=True)
class Function:
    """A function of one value: a table."""

    kind: str
    params: tuple[float, ...]
    source: Scale
    result: Scale

    def __call__(self, law: Arithmetic, c: Tensor) -> Tensor:
        return integers.lookup(c, self.kind, self.params, self.source.quant, self.result.quant, law)


@dataclass(slots=True)
class Norm:
    """Layer norm, with the clamp of an activation behind it."""

    module: nn.LayerNorm
    source: Scale
    result: Scale
    clamp: Clamp = UNBOUNDED

    def __call__(self, law: Arithmetic, c: Tensor) -> Tensor:
        return integers.normalize(c, self.module, self.source.quant, self.result, law, self.clamp)


@dataclass(slots=True)
class Softmax:
    """Softmax along an axis."""

    axis: int
    source: Scale
    result: Scale

    def __call__(self, law: Arithmetic, c: Tensor) -> Tensor:
        return integers.softmax(c, self.axis, self.source.quant, self.result.quant, law)


@dataclass(slots=True)
class Clip:
    """A clamp inside one quantization, behind a largest value of a window."""

    scale: Scale
    clamp: Clamp

    def __call__(self, law: Arithmetic, c: Tensor) -> Tensor:
        return c.clamp(*integers.limits(self.scale.quant, self.clamp))


@dataclass(slots=True)
class Mean:
    """Average over windows, or over all places."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    count_pads: bool
    rank: int
    source: Scale
    result: Scale
    clamp: Clamp = UNBOUNDED

    def __call__(self, law: Arithmetic, c: Tensor) -> Tensor:
        kernel = self.kernel or tuple(c.shape[2:])
        pads, stride = self.padding or (0,) * self.rank, self.stride or kernel
        taps = prod(kernel)
        ones = torch.ones((1, 1, *c.shape[2:]), device=c.device)
        counts = self._sums(ones, kernel, stride, pads).round().long()
        if self.count_pads:
            counts = torch.full_like(counts, taps)
        total = self._sums(c, kernel, stride, pads)
        source, result = self.source.quant, self.result.quant
        return integers.average(total, counts, taps, source, result, law, self.clamp)

    def _sums(self, c: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], pads: tuple[int, ...]) -> Tensor:
        """Return the sum of every window, exact: a convolution with ones."""
        run = F.conv1d if self.rank == 1 else F.conv2d
        ones = torch.ones((c.shape[1], 1, *kernel), device=c.device, dtype=torch.float64)
        found: Tensor = run(c.double(), ones, stride=stride, padding=pads, groups=c.shape[1])
        return found


@dataclass(slots=True)
class Move:
    """What changes no value: the operator itself, on integers."""

    run: Any

    def __call__(self, law: Arithmetic, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


@dataclass(slots=True)
class Layer:
    """One direction of one layer of a recurrent module.

    Attributes:
        suffix: of its parameters, as "l0" or "l1_reverse".
        source, hidden, cell: scales; a GRU has no cell.
    """

    suffix: str
    source: Scale
    hidden: Scale
    cell: Scale | None

    @property
    def reverse(self) -> bool:
        return self.suffix.endswith("_reverse")

    def weights(self, module: Any) -> tuple[Tensor, ...]:
        """Return weights of input and hidden values and both biases, reals in torch's order of gates."""
        w_x, w_h = (getattr(module, f"weight_{part}_{self.suffix}") for part in ("ih", "hh"))
        if not module.bias:
            return w_x, w_h, zeros_of(w_x), zeros_of(w_h)
        return w_x, w_h, *(getattr(module, f"bias_{part}_{self.suffix}") for part in ("ih", "hh"))


@dataclass(slots=True)
class Recurrent:
    """An LSTM or GRU of any number of layers and directions."""

    module: Any
    layers: tuple[tuple[Layer, ...], ...]
    given: bool = field(default=False)
    """Whether initial states are given: the integers of hidden values and cells."""

    def __call__(self, law: Arithmetic, c: Tensor, states: Any = None) -> Any:
        c = c.transpose(0, 1) if self.module.batch_first else c
        known = _rows(states)
        hidden: list[Tensor] = []
        inner: list[Tensor] = []
        for layers in self.layers:
            found = [self._run(law, layer, c, known, len(hidden) + i) for i, layer in enumerate(layers)]
            c = torch.cat([y for y, _, _ in found], -1)
            hidden += [last for _, last, _ in found]
            inner += [state for _, _, state in found]
        y = c.transpose(0, 1) if self.module.batch_first else c
        last = torch.stack(hidden) if self.lstm else torch.stack(inner)
        return (y, (last, torch.stack(inner))) if self.lstm else (y, last)

    @property
    def lstm(self) -> bool:
        return isinstance(self.module, nn.LSTM)

    def _run(
        self, law: Arithmetic, layer: Layer, c: Tensor, known: list[Tensor], index: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden values (T, B, H), the last of them, and the last inner state."""
        zero = c.new_zeros(c.shape[1], self.module.hidden_size)
        states = [part[index] for part in known] or [zero, zero]
        c = c.flip(0) if layer.reverse else c
        run = self._lstm if self.lstm else self._gru
        y, inner = run(law, layer, c, states)
        return y.flip(0) if layer.reverse else y, y[-1], inner

    def _gates(self, law: Arithmetic, layer: Layer, c: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        source = layer.source.quant
        parts = _layer(weight, bias, source, law, self.module, f"weight_ih_{layer.suffix}")
        finish = integers.layer_finish(parts, source, GATES, law)
        return integers.requantize(integers.dense(c, parts, law), finish)

    def _lstm(self, law: Arithmetic, layer: Layer, c: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor]:
        assert layer.cell is not None
        w_x, w_h, b_x, b_h = layer.weights(self.module)
        gates, hidden = self._gates(law, layer, c, w_x, b_x + b_h), layer.hidden.quant
        parts = _layer(w_h, None, hidden, law, self.module, f"weight_hh_{layer.suffix}")
        return cells.lstm(gates, states[0], states[1], cells.Cell(parts, hidden, layer.cell.bits, law))

    def _gru(self, law: Arithmetic, layer: Layer, c: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor]:
        w_x, w_h, b_x, b_h = layer.weights(self.module)
        both = 2 * self.module.hidden_size
        own = torch.cat([b_x[:both] + b_h[:both], b_x[both:]])
        inner = torch.cat([torch.zeros_like(b_h[:both]), b_h[both:]])
        gates, hidden = self._gates(law, layer, c, w_x, own), layer.hidden.quant
        parts = _layer(w_h, inner, hidden, law, self.module, f"weight_hh_{layer.suffix}")
        return cells.gru(gates, states[0], cells.Cell(parts, hidden, 0, law))

    # -- float -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, x: Tensor, states: Any, momentum: float) -> None:
        """Let the scales inside see what the float module's values reach."""
        x = x.transpose(0, 1) if self.module.batch_first else x
        known, count = _rows(states), 0
        for layers in self.layers:
            found = []
            for layer in layers:
                zero = x.new_zeros(x.shape[1], self.module.hidden_size)
                own = [part[count] for part in known] or [zero, zero]
                found.append(self._observed(layer, x, own, momentum))
                count += 1
            x = torch.cat(found, -1)

    def _observed(self, layer: Layer, x: Tensor, states: list[Tensor], momentum: float) -> Tensor:
        x, weights = x.flip(0) if layer.reverse else x, layer.weights(self.module)
        if layer.cell is None:
            y, _ = cells.gru_states(x, weights, states[0])
        else:
            y, inner, _ = cells.lstm_states(x, weights, states[0], states[1])
            layer.cell.observe(inner, momentum)
        layer.hidden.observe(y, momentum)
        return y.flip(0) if layer.reverse else y


def _rows(states: Any) -> list[Tensor]:
    """Return given initial states, each (layers, B, H)."""
    return [] if states is None else [states] if isinstance(states, Tensor) else list(states)
