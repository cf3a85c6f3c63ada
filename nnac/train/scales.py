"""Scales of the twin: which values share a quantization, what they were seen to reach, and, if wanted, learned steps.

A scale belongs to a group of values that share it, by the same rules as in `nnac.passes.quantize`; the quantization
follows from the group's range by that pass's own function, so that the compiler finds the same one again.
"""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor, nn

from nnac.calibration import Range
from nnac.errors import ModelError
from nnac.numerics import UNIT_BITS
from nnac.passes.quantize import activation_quant
from nnac.types import Quant

INT8, INT16, CELL = "int8", "int16", "cell"
"""Kinds of groups: activations of 8 and of 16 bits; the inner state of an LSTM, int16 in steps of a power of two."""


class Scale(nn.Module):
    """The quantization of one group of values.

    Attributes:
        low, high: what the group was seen to reach, or a function's natural range; zero included.
        stretch: logarithm of what training made of the step since then; None where steps are not learned.
    """

    low: Tensor
    high: Tensor
    ready: Tensor

    def __init__(self, name: str, power_of_two: bool, kind: str = INT8, learned: bool = False) -> None:
        super().__init__()
        self.name, self.power_of_two, self.kind = name, power_of_two, kind
        for field in ("low", "high"):
            self.register_buffer(field, torch.zeros((), dtype=torch.float64))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        learns = learned and not power_of_two and kind == INT8
        self.stretch = nn.Parameter(torch.zeros(())) if learns else None
        self._quant: tuple[tuple[float, float, float], Quant] | None = None

    def observe(self, values: Tensor, momentum: float = 0.0) -> None:
        """Widen the range to the values; or, with a momentum, keep that share of the range and take the rest.

        Args:
            values: reals of any shape.
            momentum: 0 for the union of all that is seen, else 0..1 for a running range.
        """
        if not values.numel():
            return
        low, high = (float(v) for v in values.detach().aminmax())
        low, high = min(low, 0.0), max(high, 0.0)
        if momentum and bool(self.ready):
            low = momentum * float(self.low) + (1 - momentum) * low
            high = momentum * float(self.high) + (1 - momentum) * high
            self.set(Range(low, high))
        else:
            self.set(Range(min(low, float(self.low)), max(high, float(self.high))))

    def set(self, span: Range) -> None:
        """Take a range as it is."""
        self.low.fill_(span.low)
        self.high.fill_(span.high)
        self.ready.fill_(True)

    @property
    def quant(self) -> Quant:
        """The quantization as it is now.

        Raises:
            ModelError: nothing was observed.
        """
        stretch = 0.0 if self.stretch is None else float(self.stretch.detach())
        key = (float(self.low), float(self.high), stretch)
        if self._quant is None or self._quant[0] != key:
            if not bool(self.ready):
                raise ModelError(f"value {self.name!r} has no range: call `twin.observe(samples)` first")
            self._quant = (key, self._found(*key))
        return self._quant[1]

    def _found(self, low: float, high: float, stretch: float) -> Quant:
        if self.kind == CELL:
            return Quant(max(activation_quant(low, high, True, 16).scale, 2.0**-UNIT_BITS), bits=16)
        quant = activation_quant(low, high, self.power_of_two, 16 if self.kind == INT16 else 8)
        if not stretch:
            return quant
        factor = float(torch.exp(torch.tensor(stretch, dtype=torch.float64)))
        return Quant(float(torch.tensor(quant.scale * factor, dtype=torch.float32)), quant.zero_point)

    @property
    def bits(self) -> int:
        """Fractional bits of a cell."""
        return -round(log2(self.quant.scale))
