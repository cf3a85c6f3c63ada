"""The machine: frozen dataclasses that a target TOML is read into, every figure with its unit and meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nnac.numerics import Rounding


def figure(unit: str, text: str, low: float = 1, high: float = 2**40, default: Any = None) -> Any:
    """Declare one figure of a target: its unit, what it says, and the closed interval that is allowed."""
    metadata = {"unit": unit, "text": text, "low": low, "high": high}
    return field(metadata=metadata) if default is None else field(metadata=metadata, default=default)


def choice(text: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
    """Declare one choice of a target and the values it may take."""
    metadata = {"unit": "", "text": text, "allowed": allowed}
    return field(metadata=metadata) if default is None else field(metadata=metadata, default=default)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The law that this machine follows (see `nnac.numerics`)."""

    rounding: str = choice("how a requantization rounds", tuple(r.label for r in Rounding), "half_even")
    accumulator_bits: int = figure("bits", "width of the MAC accumulator, two's complement", 16, 32, 32)
    accumulator_overflow: str = choice("what a sum outside the accumulator does", ("wrap", "saturate"), "saturate")
    power_of_two_scales: bool = choice("every scale must be a power of two (multiplier 1)", (True, False), False)
    per_channel: bool = choice("weights may have a scale per output channel", (True, False), True)

    @property
    def mode(self) -> Rounding:
        return Rounding.parse(self.rounding)

    @property
    def wraps(self) -> bool:
        return self.accumulator_overflow == "wrap"


@dataclass(frozen=True, slots=True)
class Mac:
    """The multiply-accumulate array."""

    rows: int = figure("MACs", "rows of the array: input channels (or kernel taps) taken side by side", 1, 4096)
    cols: int = figure("MACs", "columns of the array: output channels computed side by side", 1, 4096)
    issue_cycles: int = figure("cycles", "fixed cost of starting one instruction", 0, 1 << 20)

    @property
    def peak(self) -> int:
        """MACs per cycle when every cell works."""
        return self.rows * self.cols


@dataclass(frozen=True, slots=True)
class Vector:
    """The vector unit: elementwise, tables, pooling, softmax, copies inside the scratchpad."""

    lanes: int = figure("elements/cycle", "elements that one operation handles per cycle", 1, 4096)
    issue_cycles: int = figure("cycles", "fixed cost of starting one instruction", 0, 1 << 20)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Loads weights into the weight buffer, expanding their encoding."""

    bytes_per_cycle: int = figure("bytes/cycle", "decoded bytes written to the weight buffer per cycle", 1, 4096)
    issue_cycles: int = figure("cycles", "fixed cost of starting one instruction", 0, 1 << 20)


@dataclass(frozen=True, slots=True)
class Memory:
    """One memory: size and port."""

    bytes: int = figure("bytes", "size", 64, 2**32)
    bytes_per_cycle: float = figure("bytes/cycle", "bandwidth, shared by all engines that use it", 0.001, 65536)
    latency: int = figure("cycles", "from a transfer's start to its first byte", 0, 1 << 20)
    burst: int = figure("bytes", "smallest transfer; shorter runs cost a whole burst", 1, 65536)


@dataclass(frozen=True, slots=True)
class MemoryMode:
    """Which memory holds what."""

    constants: str = choice("where weights and tables lie", ("dram", "flash"), "dram")
    spill: str = choice("where activations go that do not fit the scratchpad", ("dram",), "dram")


@dataclass(frozen=True, slots=True)
class Target:
    """One machine with its law, engines and memories.

    `memory` has the entries `sram` (scratchpad) and `weights` (weight buffer), and at least those that
    `memory_mode` names among `dram` and `flash`.
    """

    name: str
    description: str
    clock_mhz: float
    arithmetic: Arithmetic
    mac: Mac
    vector: Vector
    decoder: Decoder
    memory: dict[str, Memory]
    memory_mode: MemoryMode

    def milliseconds(self, cycles: int) -> float:
        """Return `cycles` of this machine's clock in milliseconds."""
        return cycles / (self.clock_mhz * 1e3)
