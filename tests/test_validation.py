"""Whole networks against published cycles of an Ethos-U55 with 128 MACs, all on one description of the machine."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

import nnac
from examples.timing.nets import NETS
from examples.timing.validate import OCCUPIED, PUBLISHED, TARGET, measure, megabytes, occupied, published_macs
from nnac.isa import Space
from nnac.targets import Target, load_target
from nnac.timing import Timeline, simulate

# FVP (Corstone-300) cycles from the documents of Arm's ML evaluation kit: asr.md and kws.md (2021), img_class.md.
FVP = {"wav2letter": 28_451_172, "ds_cnn_large": 681_172, "mobilenet_v2": 7_346_172}
BOUND = {"wav2letter": 0.10, "ds_cnn_large": 0.10, "mobilenet_v2": 0.15}
MACS = {"wav2letter": 3_491_106_584, "ds_cnn_large": 28_345_776, "mobilenet_v2": 300_840_274}
FLASH_MB = {"ds_cnn_large": 0.477, "mobilenet_v2": 3.459}
"""Read from flash in the FVP; wav2letter's weights were pruned there."""


@cache
def timeline(name: str) -> Timeline:
    """Return the timeline of a network; compiled once."""
    return measure(name)


@pytest.mark.parametrize("name", FVP)
def test_cycles(name: str) -> None:
    """The cycles lie within the bound, never under what the array or the flash needs."""
    found, machine = timeline(name), load_target(TARGET)
    assert found.cycles == pytest.approx(FVP[name], rel=BOUND[name])
    assert found.cycles >= found.program.macs / machine.mac.peak
    assert found.cycles >= megabytes(found, "flash") * 1e6 / machine.memory["flash"].bytes_per_cycle
    assert machine.mac.peak == 128


@pytest.mark.parametrize("name", MACS)
def test_work(name: str) -> None:
    """The networks do exactly the published work."""
    assert published_macs(timeline(name).program) == MACS[name]


@pytest.mark.parametrize("name", FLASH_MB)
def test_flash_traffic(name: str) -> None:
    """Each weight crosses the port to flash once."""
    assert megabytes(timeline(name), "flash") == pytest.approx(FLASH_MB[name], rel=0.10)


def test_the_example_prints_the_same_figures() -> None:
    """The table of the example and the tests agree on what was published."""
    assert {name: (known.cycles, known.macs, known.bound) for name, known in PUBLISHED.items()} == {
        name: (FVP[name], MACS[name], BOUND[name]) for name in FVP
    }


def compiled(name: str, ahead: int) -> Timeline:
    """Return the timeline of a network compiled for a machine whose loads run that far ahead."""
    machine = load_target(TARGET)
    other = replace(machine, decoder=replace(machine.decoder, ahead=ahead))
    return nnac.compile(NETS[name](), target=other, calibration="random").simulate()


def test_loads_far_ahead_never_cost() -> None:
    """The further loads may run ahead of the array the faster; unlimited prefetch would be too fast for the FVP."""
    cycles = [compiled("ds_cnn_large", ahead).cycles for ahead in (1, 2, 8, 0)]
    assert cycles == sorted(cycles, reverse=True) and cycles[0] > cycles[-1]
    assert cycles[-1] / FVP["ds_cnn_large"] - 1 < -0.10


def test_without_the_structure_the_figures_are_off() -> None:
    """Each structural figure is needed: packed taps and a free output stage are each too fast."""
    machine = load_target(TARGET)
    free = replace(machine, mac=replace(machine.mac, outputs=0.0))
    packed = replace(machine, mac=replace(machine.mac, outputs=0.0, step=1))

    def error(name: str, target: Target) -> float:
        return simulate(timeline(name).program, target).cycles / FVP[name] - 1

    assert error("mobilenet_v2", free) < -0.05
    assert error("mobilenet_v2", packed) < -0.10


TINY_MACS = {"kws_ds_cnn": 2_664_792, "ic_resnet8": 12_505_748, "vww_mobilenet": 7_491_972, "ad_autoencoder": 264_192}
"""As Vela 5.2.0 counts them in TFLite files of the same shapes."""


@pytest.mark.parametrize("name", OCCUPIED)
def test_memory_beside_vela(name: str) -> None:
    """The same work; with room for everything no more scratchpad and flash than Vela; it also runs in Vela's least."""
    vela, (whole, least) = OCCUPIED[name], occupied(name)
    assert published_macs(whole.program) == TINY_MACS[name]
    assert whole.program.used[Space.SRAM] == whole.program.lower_bound <= vela.fast
    assert whole.program.constants.size <= vela.flash
    assert least.program.used[Space.SRAM] <= vela.size and least.cycles >= whole.cycles
