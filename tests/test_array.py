"""Cycles of MAC arrays: every row of an outside simulator, and the laws of the closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnac
from examples.timing.nets import NETS
from nnac import isa
from nnac.array import array_cycles, taken_folds
from nnac.errors import TargetError
from nnac.targets import Mac, load_target
from nnac.targets.machine import DATAFLOWS
from nnac.timing import cost, simulate, what_if

SYSTOLIC = DATAFLOWS[:3]

# SCALE-Sim v3.0.0, 8-bit words, stall-free: input (height, width, channels) with padding, kernel, stride, output.
# Products of matrices are 1 x 1 convolutions over a column of pixels.
SHAPES = {
    "g1_4096_640": ((1, 1, 640), 1, 1, (1, 1, 4096)),
    "g1_4096_1024": ((1, 1, 1024), 1, 1, (1, 1, 4096)),
    "g16_4096_1024": ((16, 1, 1024), 1, 1, (16, 1, 4096)),
    "g128_1024_1024": ((128, 1, 1024), 1, 1, (128, 1, 1024)),
    "g100_4096_1024": ((100, 1, 1024), 1, 1, (100, 1, 4096)),
    "g33_65_70_ragged": ((33, 1, 70), 1, 1, (33, 1, 65)),
    "rn50_s4_3x3_512": ((9, 9, 512), 3, 1, (7, 7, 512)),
    "rn50_s3_1x1_1024_256": ((14, 14, 1024), 1, 1, (14, 14, 256)),
    "rn50_s3_3x3_256": ((16, 16, 256), 3, 1, (14, 14, 256)),
    "rn50_s2_3x3_128": ((30, 30, 128), 3, 1, (28, 28, 128)),
    "rn50_s1_1x1_64_256": ((56, 56, 64), 1, 1, (56, 56, 256)),
    "rn50_s1_3x3_64": ((58, 58, 64), 3, 1, (56, 56, 64)),
    "rn50_conv1_7x7s2": ((229, 229, 3), 7, 2, (112, 112, 64)),
}
MACS = {
    "g1_4096_640": 2_621_440,
    "g100_4096_1024": 419_430_400,
    "g33_65_70_ragged": 150_150,
    "rn50_s3_3x3_256": 115_605_504,
    "rn50_conv1_7x7s2": 118_013_952,
}
CYCLES = {
    ("ws", 32): {
        "g1_4096_640": 243_199,
        "g1_4096_1024": 389_119,
        "g16_4096_1024": 450_559,
        "g128_1024_1024": 227_327,
        "g100_4096_1024": 794_623,
        "rn50_s4_3x3_512": 329_471,
        "rn50_s3_1x1_1024_256": 74_239,
        "rn50_s3_3x3_256": 167_039,
        "rn50_s2_3x3_128": 126_431,
        "rn50_s1_1x1_64_256": 51_679,
        "rn50_s1_3x3_64": 116_279,
        "rn50_conv1_7x7s2": 126_379,
        "g33_65_70_ragged": 1_142,
    },
    ("os", 32): {
        "g1_4096_640": 89_855,
        "g1_4096_1024": 139_007,
        "g16_4096_1024": 139_007,
        "g128_1024_1024": 139_007,
        "rn50_s4_3x3_512": 149_439,
        "rn50_s3_1x1_1024_256": 60_815,
        "rn50_s3_3x3_256": 132_495,
        "rn50_s2_3x3_128": 121_399,
        "rn50_s1_1x1_64_256": 98_783,
        "rn50_s1_3x3_64": 125_047,
        "rn50_conv1_7x7s2": 163_855,
        "g33_65_70_ragged": 791,
    },
    ("ws", 8): {"g1_4096_640": 942_079, "g1_4096_1024": 1_507_327, "g33_65_70_ragged": 4_454},
    ("os", 8): {"g33_65_70_ragged": 3_779},
    ("is", 32): {"g33_65_70_ragged": 953},
}
"""SCALE-Sim's compute cycles by dataflow and array side; its last cycle is counted from 0."""


def conv(
    source: tuple[int, int, int], kernel: tuple[int, int], stride: int, out: tuple[int, int, int], groups: int = 1
) -> isa.Conv:
    """Return the instruction of a convolution without padding (addresses do not matter here)."""
    return isa.Conv(
        source=0,
        in_h=source[0],
        in_w=source[1],
        in_c=source[2],
        target=0,
        out_h=out[0],
        out_w=out[1],
        out_c=out[2],
        pitch=out[2],
        channel=0,
        channels=out[2],
        kernel_h=kernel[0],
        kernel_w=kernel[1],
        stride_h=stride,
        stride_w=stride,
        dilation_h=1,
        dilation_w=1,
        pad_top=0,
        pad_left=0,
        groups=groups,
        weights=0,
        params=0,
        in_zero=0,
        out_zero=0,
        low=-128,
        high=127,
    )


@pytest.mark.parametrize(("dataflow", "side", "case"), [(d, s, c) for (d, s), rows in CYCLES.items() for c in rows])
def test_scalesim(dataflow: str, side: int, case: str) -> None:
    """The presets give the simulator's figure, and no memory or issue cost hides behind it."""
    target = load_target(f"scalesim-{dataflow}")
    target = replace(target, mac=replace(target.mac, rows=side, cols=side))
    source, kernel, stride, out = SHAPES[case]
    instruction = conv(source, (kernel, kernel), stride, out)
    assert instruction.macs == MACS.get(case, instruction.macs)
    assert array_cycles(instruction, target.mac) - 1 == CYCLES[dataflow, side][case]
    assert cost(instruction, target).cycles == array_cycles(instruction, target.mac)


# -- laws ----------------------------------------------------------------------------------------------------------

FLAGS, SIDES = st.booleans(), st.integers(1, 40)


@st.composite
def macs(draw: st.DrawFn, dataflows: tuple[str, ...] = DATAFLOWS) -> Mac:
    """Draw an array."""
    return Mac(
        rows=draw(SIDES),
        cols=draw(SIDES),
        issue_cycles=0,
        dataflow=draw(st.sampled_from(dataflows)),
        preload=draw(FLAGS),
        pixels=draw(st.integers(1, 4)),
        step=draw(st.integers(1, 4)),
        outputs=draw(st.sampled_from([0, 0, 0.75, 2, 8])),
        depthwise=draw(st.sampled_from(["columns", "single"])),
        accumulators=draw(st.sampled_from([0, 0, 64, 1024, 32_768])),
    )


@st.composite
def convs(draw: st.DrawFn) -> isa.Conv:
    """Draw a convolution: dense, grouped or depthwise."""
    groups = draw(st.sampled_from([1, 1, 2, 3, 8, 33]))
    depth, per_group = (1, 1) if draw(FLAGS) else (draw(st.integers(1, 70)), draw(st.integers(1, 50)))
    kernel = (draw(st.integers(1, 9)), draw(st.integers(1, 5)))
    out = (draw(st.integers(1, 30)), draw(st.integers(1, 12)), groups * per_group)
    source = (out[0] + kernel[0] - 1, out[1] + kernel[1] - 1, groups * depth)
    return conv(source, kernel, 1, out, groups)


@settings(max_examples=400, deadline=None)
@given(convs(), macs())
def test_never_above_the_peak(i: isa.Conv, mac: Mac) -> None:
    """Cycles are at least MACs over peak, and results over the rate of the output stage: utilisation stays under 1."""
    cycles = array_cycles(i, mac)
    assert cycles >= 1
    assert cycles * mac.peak >= i.macs
    assert not mac.outputs or cycles * mac.outputs >= i.out_h * i.out_w * i.out_c


@settings(max_examples=300, deadline=None)
@given(convs(), macs(), st.integers(1, 4))
def test_16_bits_work_at_their_rate(i: isa.Conv, mac: Mac, rate: int) -> None:
    """The peak falls by the rate; the output stage does not slow down; the width of the result changes nothing."""
    mac = replace(mac, int16=rate)
    cycles = array_cycles(replace(i, in_bits=16), mac)
    assert cycles * mac.peak >= i.macs * rate
    assert array_cycles(i, mac) <= cycles <= rate * array_cycles(i, mac)
    assert array_cycles(replace(i, in_bits=16), replace(mac, outputs=0.0)) == rate * array_cycles(
        i, replace(mac, outputs=0.0)
    )
    assert array_cycles(replace(i, out_bits=16), mac) == array_cycles(i, mac)


def test_a_machine_may_have_no_16_bits() -> None:
    """Timing refuses what the array cannot do."""
    i, mac = conv((4, 4, 8), (1, 1), 1, (4, 4, 8)), Mac(rows=8, cols=8, issue_cycles=0, int16=0)
    assert array_cycles(i, mac) > 0
    with pytest.raises(TargetError, match=r"mac\.int16 = 0"):
        array_cycles(replace(i, in_bits=16), mac)


@settings(max_examples=300, deadline=None)
@given(convs(), macs())
def test_what_never_makes_it_faster(i: isa.Conv, mac: Mac) -> None:
    """No preload, small accumulators, a slow output stage, one channel at a time: each costs or changes nothing."""
    cycles = array_cycles(i, mac)
    assert array_cycles(i, replace(mac, preload=False)) >= array_cycles(i, replace(mac, preload=True))
    assert array_cycles(i, replace(mac, accumulators=0)) <= cycles
    assert array_cycles(i, replace(mac, outputs=0.0)) <= cycles
    assert array_cycles(i, replace(mac, depthwise="single")) >= array_cycles(i, replace(mac, depthwise="columns"))


@settings(max_examples=400, deadline=None)
@given(convs(), macs(), st.sampled_from(["out_h", "out_w", "kernel_h", "kernel_w"]))
def test_more_work_takes_no_less(i: isa.Conv, mac: Mac, field: str) -> None:
    """One more row, column or tap never makes it faster."""
    assert array_cycles(replace(i, **{field: getattr(i, field) + 1}), mac) >= array_cycles(i, mac)


@settings(max_examples=400, deadline=None)
@given(convs(), macs(), st.integers(1, 20), FLAGS)
def test_more_channels_take_no_less(i: isa.Conv, mac: Mac, more: int, deeper: bool) -> None:
    """More input or output channels of a dense convolution never make it faster."""
    dense = replace(i, groups=1)
    grown = (
        replace(dense, in_c=dense.in_c + more)
        if deeper
        else replace(dense, out_c=dense.out_c + more, channels=dense.channels + more)
    )
    assert array_cycles(grown, mac) >= array_cycles(dense, mac)


@settings(max_examples=300, deadline=None)
@given(convs(), macs(("dot_product",)), st.sampled_from(["rows", "cols", "pixels"]))
def test_larger_dot_products_are_no_slower(i: isa.Conv, mac: Mac, side: str) -> None:
    """Without skew a larger array never loses. (A systolic one can: it takes longer to fill and to drain.)"""
    assert array_cycles(i, replace(mac, **{side: getattr(mac, side) + 1})) <= array_cycles(i, mac)


def test_a_larger_systolic_array_may_be_slower() -> None:
    """One pixel: filling 64 rows costs more than the folds that they save."""
    mac = Mac(rows=32, cols=32, issue_cycles=0, preload=False)
    i = conv((1, 1, 40), (1, 1), 1, (1, 1, 32))
    assert array_cycles(i, replace(mac, rows=400)) > array_cycles(i, mac)


@settings(max_examples=300, deadline=None)
@given(convs(), macs())
def test_groups_are_convolutions_of_their_own(i: isa.Conv, mac: Mac) -> None:
    """A grouped convolution takes as long as its groups in a row; with preload, never longer."""
    mac = replace(mac, depthwise="single", outputs=0.0)
    alone = replace(i, in_c=i.depth, out_c=i.out_c // i.groups, channels=i.out_c // i.groups, groups=1)
    together, apart = array_cycles(i, mac), i.groups * array_cycles(alone, mac)
    if mac.dataflow == "dot_product" and i.depth == 1 and alone.out_c == 1:
        assert apart >= together >= array_cycles(alone, mac)
        return
    assert together <= apart
    if mac.dataflow == "dot_product" or not mac.preload:
        assert together == apart


@settings(max_examples=200, deadline=None)
@given(macs(), st.integers(1, 100), st.integers(1, 5), st.integers(1, 20))
def test_depthwise_cannot_fill_the_array(mac: Mac, channels: int, kernel: int, side: int) -> None:
    """Depthwise work uses a row per tap in a weight-stationary array, and one product of `rows` in a dot product."""
    i = conv((side + kernel - 1, side + kernel - 1, channels), (kernel, kernel), 1, (side, side, channels), channels)
    cycles = array_cycles(i, mac)
    if mac.dataflow == "weight_stationary":
        assert cycles * min(mac.rows, kernel * kernel) * mac.cols >= i.macs
    if mac.dataflow == "dot_product":
        assert cycles * mac.cols * mac.pixels >= i.macs


@settings(max_examples=200, deadline=None)
@given(convs(), macs(SYSTOLIC))
def test_preload_is_worth_less_than_fill_and_drain(i: isa.Conv, mac: Mac) -> None:
    """With preload a fold still takes at least its stream: the gain is bounded by the fill of every fold."""
    mac = replace(mac, outputs=0.0, accumulators=0)
    with_preload = array_cycles(i, replace(mac, preload=True))
    without = array_cycles(i, replace(mac, preload=False))
    assert with_preload * (2 * mac.rows + mac.cols) >= without


def test_steps_of_a_dot_product() -> None:
    """8 deep x 8 channels x 2 columns in steps of 4: a tap of 32 channels, or 4 taps of 8 channels, per step."""
    mac = Mac(rows=8, cols=8, issue_cycles=0, dataflow="dot_product", pixels=2, step=4)
    cases = (((4, 4, 32), (1, 1), 4), ((4, 4, 33), (1, 1), 8), ((6, 6, 3), (3, 3), 12), ((6, 6, 64), (3, 3), 72))
    for source, kernel, steps in cases:
        assert array_cycles(conv(source, kernel, 1, (4, 4, 8)), mac) == 8 * steps
    assert array_cycles(conv((6, 6, 8), (3, 3), 1, (4, 4, 8), groups=8), mac) == 8 * 12
    assert array_cycles(conv((6, 1, 8), (1, 1), 1, (6, 1, 8)), mac) == 3 * 4, "a sequence lies along the columns"
    slow = replace(mac, outputs=2.0)
    assert array_cycles(conv((4, 4, 16), (1, 1), 1, (4, 4, 8)), slow) == 4 * 4 * 8 // 2


def test_zero_channels_and_rows_take_no_folds() -> None:
    """Channels without weights take no column, taps that a whole block lacks no row; what is full is never less."""
    machine = replace(load_target("nna8").mac, rows=8, cols=4)
    weights = np.ones((16, 64), np.int8)
    for skip, empty_channels, empty_rows in (("row", 16, 16), ("row_group", 16, 16), ("2:4", 16, 32)):
        mac = replace(machine, zero_skip=skip)
        assert taken_folds(weights, mac) == 4 * 8
        thin = weights.copy()
        thin[1::2] = 0
        assert taken_folds(thin, mac) == empty_channels
        sparse = weights.copy()
        sparse[:, 32:] = 0
        assert taken_folds(sparse, mac) == empty_rows
    assert taken_folds(np.zeros((16, 64), np.int8), replace(machine, zero_skip="row")) == 1


def test_banks_only_widen_what_all_share() -> None:
    """One instruction sees one bank; the sum over all of them is held against every bank."""
    program = nnac.compile(NETS["ds_cnn_large"](), target="nna8", calibration="random").program
    narrow = what_if(program, {"memory.sram.bytes_per_cycle": 0.5})
    wide = what_if(program, {"memory.sram.bytes_per_cycle": 0.5, "memory.sram.banks": 8})
    assert simulate(program, wide).cycles <= simulate(program, narrow).cycles
    assert simulate(program, wide).busy == simulate(program, narrow).busy
