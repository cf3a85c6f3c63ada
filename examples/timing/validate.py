"""Compares nnac's cycles for three networks with what Arm's FVP of an Ethos-U55 measured on the same shapes.

Run from the repository's root: `python -m examples.timing.validate`. With `--memory`: what the four networks of MLPerf
Tiny occupy, beside what Vela, Arm's compiler for that machine, says of the same shapes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import nnac
from examples.timing.nets import NETS, TINY
from nnac import isa
from nnac.compiler import lower, measured_graph
from nnac.isa import Space
from nnac.program import Program
from nnac.targets import load_target, with_settings
from nnac.timing import Timeline, simulate

TARGET = "u55-128-like"


@dataclass(frozen=True, slots=True)
class Published:
    """What is known of one network on an Ethos-U55 with 128 MACs, weights in flash, feature maps in SRAM.

    Attributes:
        macs: as Vela counts them.
        cycles: NPU cycles of the FVP (Corstone-300), from the logs in the documents of Arm's ML evaluation kit.
        vela: cycles that Vela 5.2.0 estimates for the same shapes with random weights.
        flash: MB that the FVP read through the port to flash.
        sram: MB that the FVP read and wrote through the port to SRAM.
        bound: the largest error of ours that the tests allow.
    """

    macs: int
    cycles: int
    vela: int
    flash: float
    sram: float
    bound: float


PUBLISHED = {
    # MLEK docs/use_cases/asr.md (2021); its weights were pruned: 6.7 MB of flash, where 23.7 MB are raw
    "wav2letter": Published(3_491_106_584, 28_451_172, 28_408_012, 6.734, 59.95, 0.10),
    # MLEK docs/use_cases/kws.md (2021)
    "ds_cnn_large": Published(28_345_776, 681_172, 680_565, 0.477, 2.400, 0.10),
    # MLEK docs/use_cases/img_class.md
    "mobilenet_v2": Published(300_840_274, 7_346_172, 7_910_539, 3.459, 28.96, 0.15),
}


def measure(name: str, target: str = TARGET) -> Timeline:
    """Return the timeline of one network, compiled with made-up ranges (they do not change the time)."""
    return simulate(nnac.compile(NETS[name](), target, "random").program)


def published_macs(program: Program) -> int:
    """Return the work as Vela counts it: a tap of an average is a MAC, and an element of a softmax two."""
    pools = (
        i.out_h * i.out_w * i.channels * i.kernel_h * i.kernel_w
        for i in program.instructions
        if isinstance(i, isa.Pool)
    )
    softmax = (2 * i.rows * i.length for i in program.instructions if isinstance(i, isa.Softmax))
    return program.macs + sum(pools) + sum(softmax)


def megabytes(timeline: Timeline, *memories: str) -> float:
    """Return the traffic through the ports of some memories."""
    return sum(n for (memory, _), n in timeline.traffic.items() if memory in memories) / 1e6


def rows() -> Iterator[tuple[str, ...]]:
    """Yield the table, its head first."""
    yield (
        "model",
        "MACs",
        "FVP cycles",
        "nnac",
        "error",
        "Vela 5.2",
        "error",
        "flash MB FVP / nnac",
        "SRAM MB FVP / nnac",
    )
    for name, known in PUBLISHED.items():
        timeline = measure(name)
        yield (
            name,
            f"{published_macs(timeline.program):,}",
            f"{known.cycles:,}",
            f"{timeline.cycles:,}",
            f"{timeline.cycles / known.cycles - 1:+.1%}",
            f"{known.vela:,}",
            f"{known.vela / known.cycles - 1:+.1%}",
            f"{known.flash:.2f} / {megabytes(timeline, 'flash'):.2f}",
            f"{known.sram:.2f} / {megabytes(timeline, 'sram', 'weights'):.2f}",
        )


@dataclass(frozen=True, slots=True)
class Occupied:
    """What Vela 5.2.0 says that a network occupies on an Ethos-U55 with 128 MACs, in bytes.

    Seen with TFLite files of the same shapes (tensorflow-cpu 2.21.0, Keras layers with random weights, batch 1, int8
    throughout, made by the converter) and `vela NET.tflite --accelerator-config ethos-u55-128 --config Arm/vela.ini
    --system-config Ethos_U55_High_End_Embedded --memory-mode Shared_Sram --optimise Size` or `Performance`: columns
    `sram_memory_used`, `off_chip_flash_memory_used` and `cycles_total` of its summary. All operators ran on the NPU.

    Attributes:
        size: SRAM with `--optimise Size`: feature maps, in cascades; weights come straight from flash.
        fast: SRAM with `--optimise Performance`: feature maps, and weights buffered for the next layer.
        flash: weights in Vela's coding, scales and biases.
        size_cycles, fast_cycles: estimated.
    """

    size: int
    fast: int
    flash: int
    size_cycles: int
    fast_cycles: int


OCCUPIED = {
    "kws_ds_cnn": Occupied(16_000, 22_208, 31_168, 123_148, 89_900),
    "ic_resnet8": Occupied(35_840, 52_000, 84_112, 355_241, 205_475),
    "vww_mobilenet": Occupied(49_152, 74_496, 239_584, 374_266, 366_184),
    "ad_autoencoder": Occupied(768, 768, 281_520, 281_520, 281_520),
}


def occupied(name: str) -> tuple[Timeline, Timeline]:
    """Return one of the small networks with all the scratchpad there is, and with as little as Vela needs at least."""
    graph, ranges, note = measured_graph(TINY[name](), "random", "minmax", None, None, None)
    machine = load_target(TARGET)
    smaller = with_settings(machine, {"memory.sram.bytes": OCCUPIED[name].size})
    whole, least = (simulate(lower(graph, ranges, target, note)) for target in (machine, smaller))
    return whole, least


def memory_rows() -> Iterator[tuple[str, ...]]:
    """Yield the table of what the small networks occupy, its head first."""
    yield (
        "model",
        "SRAM Vela fast",
        "nnac",
        "lower bound",
        "SRAM Vela size",
        "nnac in so much",
        "its spills",
        "weight buffer",
        "flash Vela",
        "nnac",
        "cycles Vela fast / size",
        "nnac / in so much",
    )
    for name, vela in OCCUPIED.items():
        whole, least = occupied(name)
        used, spilled = whole.program.used, sum(n for (_, purpose), n in least.traffic.items() if purpose == "spill")
        sizes = (vela.fast, used[Space.SRAM], whole.program.lower_bound, vela.size, least.program.used[Space.SRAM])
        others = (spilled, used[Space.WEIGHTS], vela.flash, whole.program.constants.size)
        cycles = ((vela.fast_cycles, vela.size_cycles), (whole.cycles, least.cycles))
        yield (name, *(f"{n:,}" for n in (*sizes, *others)), *(f"{a:,} / {b:,}" for a, b in cycles))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", action="store_true", help="what the networks of MLPerf Tiny occupy")
    table = list(memory_rows() if parser.parse_args().memory else rows())
    widths = [max(len(row[c]) for row in table) for c in range(len(table[0]))]
    for row in table:
        print(
            "  ".join(
                cell.ljust(w) if c == 0 else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )


if __name__ == "__main__":
    main()
