"""The machine: frozen dataclasses that a target TOML is read into, every figure with its unit and meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nnac.numerics import Rounding


def figure(
    unit: str, text: str, low: float = 1, high: float = 2**40, default: Any = None, compiled: bool = False
) -> Any:
    """Declare one figure of a target: its unit, what it says, and the closed interval that is allowed.

    `compiled` marks figures that a program is compiled for: a what-if cannot change them.
    """
    metadata = {"unit": unit, "text": text, "low": low, "high": high, "compiled": compiled}
    return field(metadata=metadata) if default is None else field(metadata=metadata, default=default)


def choice(text: str, allowed: tuple[Any, ...] | None, default: Any = None, compiled: bool = False) -> Any:
    """Declare one choice of a target and the values it may take (None: any text); `compiled` as in `figure`."""
    metadata = {"unit": "", "text": text, "allowed": allowed, "compiled": compiled}
    return field(metadata=metadata) if default is None else field(metadata=metadata, default=default)


ZERO_SKIPS = ("none", "row", "row_group", "2:4")
DATAFLOWS = ("weight_stationary", "output_stationary", "input_stationary", "dot_product")


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The law that this machine follows (see `nnac.numerics`)."""

    rounding: str = choice("how a requantization rounds", tuple(r.label for r in Rounding), "half_even", True)
    accumulator_bits: int = figure("bits", "width of the MAC accumulator, two's complement", 16, 32, 32, True)
    accumulator_overflow: str = choice(
        "what a sum outside the accumulator does", ("wrap", "saturate"), "saturate", True
    )
    power_of_two_scales: bool = choice("every scale must be a power of two (multiplier 1)", (True, False), False, True)
    per_channel: bool = choice("weights may have a scale per output channel", (True, False), True, True)

    @property
    def mode(self) -> Rounding:
        return Rounding.parse(self.rounding)

    @property
    def wraps(self) -> bool:
        return self.accumulator_overflow == "wrap"


@dataclass(frozen=True, slots=True)
class Mac:
    """The multiply-accumulate array (see `nnac.array` for what the figures mean in cycles)."""

    rows: int = figure("MACs", "rows of the array; products summed side by side", 1, 4096, compiled=True)
    cols: int = figure("MACs", "columns of the array; output channels side by side", 1, 4096, compiled=True)
    issue_cycles: int = figure("cycles", "fixed cost of starting one instruction", 0, 1 << 20)
    dataflow: str = choice("what stays in the array while the rest streams through", DATAFLOWS, "weight_stationary")
    preload: bool = choice("the next fold fills while this one streams", (True, False), True)
    pixels: int = figure("MACs", "output columns side by side (dot_product only)", 1, 64, 1)
    step: int = figure(
        "cycles",
        "input comes in steps of so many groups of `rows` channels, or so many taps of one group (dot_product only)",
        1,
        64,
        1,
    )
    outputs: float = figure("elements/cycle", "results through the output stage; 0: as many as come", 0, 65536, 0)
    depthwise: str = choice("how a depthwise convolution lies in a systolic array", ("columns", "single"), "columns")
    int16: int = figure(
        "steps", "cycles of the array with 16-bit activations for one with 8; 0: it takes none", 0, 16, 2
    )
    zero_skip: str = choice("folds of zero weights that a weight-stationary array leaves out", ZERO_SKIPS, "none", True)
    accumulators: int = figure("bytes", "partial sums that stay on chip, 4 bytes each; 0: enough for all", 0, 2**32, 0)

    @property
    def peak(self) -> int:
        """MACs per cycle when every cell works."""
        return self.rows * self.cols * self.pixels


@dataclass(frozen=True, slots=True)
class Vector:
    """The vector unit: elementwise, tables, pooling, softmax, copies inside the scratchpad."""

    lanes: int = figure(
        "elements/cycle", "elements of 8 bits (or half as many of 16) that an operation handles", 1, 4096
    )
    issue_cycles: int = figure("cycles", "fixed cost of starting one instruction", 0, 1 << 20)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Loads weights into the weight buffer, expanding their encoding by one of the packers that it knows."""

    bytes_per_cycle: int = figure("bytes/cycle", "decoded bytes written to the weight buffer per cycle", 1, 4096)
    issue_cycles: int = figure("cycles", "fixed cost of starting one instruction", 0, 1 << 20)
    fixed: int = figure("weights/cycle", "expanding fixed-width indices; 0: not known", 0, 4096, 0, True)
    bitmap: int = figure("weights/cycle", "expanding bitmaps with non-zeros; 0: not known", 0, 4096, 0, True)
    runs: int = figure("weights/cycle", "expanding zero runs; 0: not known", 0, 4096, 0, True)
    entropy: int = figure("weights/cycle", "expanding entropy-coded weights; 0: not known", 0, 4096, 0, True)
    ahead: int = figure(
        "instructions",
        "most of the array's that may be unfinished when a load behind them starts: 1 "
        "is double buffering; 0: no limit but room",
        0,
        1 << 20,
        0,
        True,
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """One memory: size and port."""

    bytes: int = figure("bytes", "size", 64, 2**32, compiled=True)
    bytes_per_cycle: float = figure("bytes/cycle", "bandwidth, shared by all engines that use it", 0.001, 65536)
    latency: int = figure("cycles", "from a transfer's start to its first byte", 0, 1 << 20)
    burst: int = figure("bytes", "smallest transfer; shorter runs cost a whole burst", 1, 65536)
    banks: int = figure("banks", "one instruction uses the port of one; all together use as many ports", 1, 1024, 1)
    outstanding: int = figure(
        "bursts",
        "in flight at once: one transfer gets at most outstanding * burst / latency bytes per cycle; 0: no such limit",
        0,
        65536,
        0,
    )

    @property
    def rate(self) -> float:
        """Bytes per cycle that one transfer gets at most."""
        if not (self.outstanding and self.latency):
            return self.bytes_per_cycle
        return min(self.bytes_per_cycle, self.outstanding * self.burst / self.latency)


@dataclass(frozen=True, slots=True)
class Host:
    """The processor beside the machine, which runs in float what the machine cannot."""

    operations_per_cycle: float = figure(
        "operations/cycle", "float operations (2 per multiply-accumulate) per cycle of the machine's clock", 1e-6, 1e6
    )
    call_cycles: int = figure("cycles", "of the machine's clock: interrupt, call of a segment, and return", 0, 2**32)
    bytes_per_cycle: float = figure("bytes/cycle", "activations to and from the host over its bus", 1e-6, 65536)


@dataclass(frozen=True, slots=True)
class Energy:
    """What a MAC and a byte cost; name the node and where the figures come from."""

    node: str = choice("process node and supply", None)
    source: str = choice("where the figures come from", None)
    mac_pj: float = figure("pJ", "one int8 multiply-accumulate", 0, 1e6)
    sram_pj_per_byte: float = figure("pJ/byte", "scratchpad and weight buffer", 0, 1e6)
    dram_pj_per_byte: float = figure("pJ/byte", "memories outside the chip", 0, 1e6)


@dataclass(frozen=True, slots=True)
class MemoryMode:
    """Which memory holds what."""

    constants: str = choice("where weights and tables lie", ("dram", "flash"), "dram", True)
    spill: str = choice("where activations go that do not fit the scratchpad", ("dram",), "dram", True)
    shared_bus: bool = choice(
        "dram and flash share one bus, so that their transfers exclude each other", (True, False), False, True
    )


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
    energy: Energy | None = None
    host: Host | None = None

    def milliseconds(self, cycles: int) -> float:
        """Return `cycles` of this machine's clock in milliseconds."""
        return cycles / (self.clock_mhz * 1e3)
