"""Small value types that every floor shares: dtypes, quantization parameters, tensor types."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DTYPES = {name: np.dtype(name) for name in ("float32", "int8", "int16", "int32", "int64", "uint8", "bool")}


class First(dict[str, Array]):
    """The first inputs of a sequence: states start from zeros."""


@dataclass(frozen=True, slots=True)
class Quant:
    """Per-tensor affine quantization: real = scale * (integer - zero_point).

    The scale is a float32 value, so that every reader (onnxruntime too) computes with the same number. Integers have 8
    bits, or 16 with a zero point of 0.

    Attributes:
        unsigned: the model has it as uint8, 128 higher; only `nnac.float32` sees a difference.
    """

    scale: float
    zero_point: int = 0
    bits: int = 8
    unsigned: bool = field(default=False, compare=False)

    @property
    def low(self) -> int:
        """Smallest integer."""
        return -(1 << self.bits - 1)

    @property
    def high(self) -> int:
        """Largest integer."""
        return (1 << self.bits - 1) - 1

    @property
    def dtype(self) -> str:
        """Name of the integers' dtype."""
        return f"int{self.bits}"

    @property
    def is_whole(self) -> bool:
        """Whether it is the one in which ONNX's integers enter or leave a host segment: they stand for themselves."""
        return self.scale == 1.0 and self.bits == 16

    def quantize(self, x: Array) -> Array:
        """Return the integers of real `x`, rounded half to even in float32 as ONNX QuantizeLinear does, saturated."""
        scaled = np.rint(x.astype(np.float32) / np.float32(self.scale)) + np.float32(self.zero_point)
        return np.asarray(np.clip(scaled, self.low, self.high).astype(self.dtype))

    def dequantize(self, q: Array) -> Array:
        """Return float32 values of the integers `q`."""
        return np.asarray((q.astype(np.int32) - self.zero_point).astype(np.float32) * np.float32(self.scale))


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape (row-major, channels last on the device), dtype name, and quantization when the values stand for reals."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    quant: Quant | None = None

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        return self.elements * self.itemsize


def aligned(nbytes: int, to: int = 16) -> int:
    """Return `nbytes` rounded up to a multiple of `to`."""
    return -(-nbytes // to) * to
