"""Contracts: what the values of every kind of instruction keep, so that kernels without bounds checks may run it.

Each contract is a predicate with the sentence that a user reads. Contracts know one instruction at a time; addresses in
used memory, the contents of the weight buffer and the order of accesses are the business of `nnac.validate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, NamedTuple, assert_never

import numpy as np

from nnac import isa
from nnac.isa import AnyInstruction, Space
from nnac.norms import DEPTH_MAX, EPSILON_MAX, GAIN_SHIFT_MAX, GROUP_LIMITS, product_bits
from nnac.numerics import UNIT_BITS

SHIFT_MAX = 62
VECTOR = 16
"""Channels that the emulator's kernels fill up to a multiple of."""
PRODUCT_MAX = 1 << 62
"""Largest magnitude that the kernels' int64 arithmetic takes (see `nnac.kernels.requantize`)."""
MAX, AVERAGE = 0, 1
WIDE_TAPS = 1 << 17
"""Products of bytes of 16-bit activations with weights, summed in 32 bits (see `nnac.kernels.wide`)."""
REACH = {8: 255, 16: 1 << 15}
"""Largest |x - zero point| by bits."""


class Rule(NamedTuple):
    """A contract of an instruction: the predicate, the sentence that a user reads, and the fields it is about."""

    holds: Callable[[Any], bool]
    sentence: str
    shown: str


def _positive(*names: str) -> Rule:
    def holds(i: Any) -> bool:
        return all(getattr(i, name) >= 1 for name in names)

    return Rule(holds, "all of these are at least 1", " ".join(names))


def _injective(shape: tuple[int, ...], strides: tuple[int, ...], width: int) -> bool:
    """Tell that no two places of a strided view share a byte: each axis steps over all that lies inside of it."""
    reach = width
    for stride, side in sorted((abs(t), s) for s, t in zip(shape, strides, strict=True) if s > 1):
        if stride < reach:
            return False
        reach += (side - 1) * stride
    return True


def _aligned(bits: int, address: int, strides: tuple[int, ...]) -> bool:
    """Tell that an operand has 8 bits, or 16 and only even addresses."""
    return bits == 8 or (bits == 16 and all(step % 2 == 0 for step in (address, *strides)))


def _windows_filled(i: isa.Pool) -> bool:
    """Tell that every window of a maximum has a tap inside the stripe (along each axis on its own)."""
    return _axis_filled(i.in_h, i.out_h, i.kernel_h, i.stride_h, i.dilation_h, i.pad_top) and _axis_filled(
        i.in_w, i.out_w, i.kernel_w, i.stride_w, i.dilation_w, i.pad_left
    )


def _axis_filled(size: int, out: int, kernel: int, stride: int, dilation: int, pad: int) -> bool:
    if (out - 1) * stride - pad >= size:
        return False
    early = min(out, -(-pad // stride))  # windows that begin before the stripe; a pad has 16 bits, so they are few
    if early <= 0:
        return True
    starts = np.arange(early) * stride - pad
    taps = -(starts // dilation)  # the first tap at 0 or behind
    return bool(np.all((taps < kernel) & (starts + taps * dilation < size)))


def _averages_filled(i: isa.Pool) -> bool:
    """Tell that every window of an average overlaps the stripe."""
    return (
        i.kernel_h > i.pad_top
        and i.kernel_w > i.pad_left
        and (i.out_h - 1) * i.stride_h - i.pad_top < i.in_h
        and (i.out_w - 1) * i.stride_w - i.pad_left < i.in_w
    )


def _divisors_positive(i: isa.Pool) -> bool:
    return i.padded_h > (i.out_h - 1) * i.stride_h and i.padded_w > (i.out_w - 1) * i.stride_w


def _widths(*names: str) -> Rule:
    """Bits of 8 or 16, and what lies in 16 bits is aligned; names as "in_bits:source"."""
    pairs = [name.split(":") for name in names]

    def holds(i: Any) -> bool:
        found = [(getattr(i, bits), getattr(i, address)) for bits, address in pairs]
        return all(bits in (8, 16) and address * 8 % bits == 0 for bits, address in found)

    return Rule(
        holds, "elements have 8 or 16 bits, those of 16 at even addresses", " ".join(" ".join(p) for p in pairs)
    )


def _moved(*addresses: str) -> Rule:
    """Elements of 1 or 2 bytes, those of 2 at even addresses and strides."""

    def holds(i: Any) -> bool:
        found = [getattr(i, name) for name in addresses]
        flat = [step for value in found for step in (value if isinstance(value, tuple) else (value,))]
        return i.width in (1, 2) and all(step % i.width == 0 for step in flat)

    shown = " ".join(("width", *addresses))
    return Rule(holds, "elements have 1 or 2 bytes, those of 2 at even addresses and strides", shown)


def _zero(zero: int, bits: int) -> bool:
    return -128 <= zero <= 127 if bits == 8 else zero == 0


def _fits(bits: int, *values: int) -> bool:
    return all(-(1 << bits - 1) <= value < 1 << bits - 1 for value in values)


ACTIVATIONS = (Space.SRAM, Space.DRAM)
"""Memories that instructions other than a Load may write."""
SCALED = Rule(
    lambda i: i.multiplier < 1 << 31 and i.shift <= SHIFT_MAX,
    f"the multiplier is under 2**31, the shift at most {SHIFT_MAX}",
    "multiplier shift",
)
SHIFTED = Rule(lambda i: i.shift <= SHIFT_MAX, f"the shift is at most {SHIFT_MAX}", "shift")
CLAMPED = Rule(lambda i: i.low <= i.high, "low is at most high", "low high")
LIMITED = Rule(lambda i: _fits(i.out_bits, i.low, i.high), "limits are values of the output", "low high out_bits")
ZEROED = Rule(
    lambda i: _zero(i.in_zero, i.in_bits) and _zero(i.out_zero, i.out_bits),
    "zero points are int8 values, and 0 in 16 bits",
    "in_zero in_bits out_zero out_bits",
)
RESULT_ZEROED = Rule(
    lambda i: _zero(i.out_zero, i.out_bits), "a zero point is an int8 value, and 0 in 16 bits", "out_zero out_bits"
)
MIXED = Rule(
    lambda i: (
        all(map(_aligned, i.bits, i.sources, (i.operand_strides(n) for n in range(len(i.bits)))))
        and all(map(_zero, i.zeros, i.bits))
    ),
    "each operand has 8 bits and an int8 zero point, or 16, even address and strides, and zero point 0",
    "bits zeros sources strides",
)
NESTED = Rule(lambda i: min(i.shape) >= 1, "all sides are at least 1", "shape")

MANY = (
    NESTED,
    Rule(lambda i: len(i.sources) >= 1, "there is at least one operand", "sources"),
    Rule(
        lambda i: (
            len(i.zeros) == len(i.bits) == len(i.multipliers) == len(i.sources)
            and len(i.strides) == isa.LOOPS * len(i.sources)
        ),
        f"each operand has a zero point, bits, a multiplier and {isa.LOOPS} strides",
        "sources zeros bits multipliers strides",
    ),
    Rule(lambda i: min(i.multipliers) > -(1 << 31), "multipliers are over -2**31", "multipliers"),
)
"""Elementwise on any number of operands with a multiplier each."""
PAIR = (
    NESTED,
    Rule(
        lambda i: len(i.sources) == len(i.zeros) == len(i.bits) == 2 and len(i.strides) == isa.LOOPS * 2,
        f"there are two operands, each with a zero point, bits and {isa.LOOPS} strides",
        "sources zeros bits strides",
    ),
)
"""Elementwise on two operands with one multiplier."""
SCALED_NEST = (MIXED, _widths("out_bits:target"), RESULT_ZEROED, LIMITED, SHIFTED, CLAMPED)
"""What all elementwise instructions keep."""

PEEPHOLE_SHIFT_MAX = 30
HOST_SCALE = 2.0**100
"""Largest scale at a host segment's border: dequantized values stay finite."""


def _even(*names: str) -> Rule:
    return Rule(
        lambda i: all(getattr(i, n) % 2 == 0 for n in names), "int16 data lie at even addresses", " ".join(names)
    )


def _apart(i: isa.Lstm | isa.Gru) -> bool:
    """Tell that the new state and the hidden values share no bytes."""
    writes = i.writes()
    return len(writes) == 1 or writes[0].end <= writes[1].start or writes[1].end <= writes[0].start


CELL = (
    _positive("batch", "hidden", "clip"),
    SCALED,
    Rule(lambda i: i.out_bits in (8, 16), "hidden values have 8 or 16 bits", "out_bits"),
    Rule(
        lambda i: -128 <= i.out_zero <= 127 if i.out_bits == 8 else i.out_zero == 0,
        "the zero point fits int8; it is 0 for int16",
        "out_zero out_bits",
    ),
    _even("gates", "recurrent", "tables"),
    Rule(lambda i: i.out_bits == 8 or i.target % 2 == 0, "an int16 target lies at an even address", "target"),
)
"""What all cell updates keep; multipliers under 2**31 times Q1.30 stay within 2**61."""


def _sides(*lists: tuple[int, ...]) -> bool:
    """Tell that lists that describe the same tensors are equally long and not empty."""
    return len({len(each) for each in lists}) == 1 and len(lists[0]) >= 1


RULES: dict[type[AnyInstruction], tuple[Rule, ...]] = {
    isa.Load: (
        Rule(lambda i: i.space in (Space.DRAM, Space.FLASH), "constants come from dram (2) or flash (3)", "space"),
        Rule(lambda i: i.packer < len(isa.PACKERS), f"the packer is one of 0 to {len(isa.PACKERS) - 1}", "packer"),
        _positive("source_bytes", "target_bytes"),
        Rule(
            lambda i: i.packer or (i.source_bytes == i.target_bytes and not i.table_bytes),
            "raw bytes keep their number and have no table",
            "source_bytes target_bytes table_bytes",
        ),
    ),
    isa.Copy: (
        Rule(
            lambda i: i.source_space in (*ACTIVATIONS, Space.FLASH),
            "the source is sram (0), dram (2) or flash (3)",
            "source_space",
        ),
        Rule(lambda i: i.target_space in ACTIVATIONS, "the target is sram (0) or dram (2)", "target_space"),
        NESTED,
        _moved("source", "target", "source_strides", "target_strides"),
        Rule(
            lambda i: _injective(i.shape, i.target_strides, i.width), "no byte is written twice", "shape target_strides"
        ),
    ),
    isa.Fill: (
        Rule(lambda i: i.space in ACTIVATIONS, "the target is sram (0) or dram (2)", "space"),
        _positive("count"),
        _moved("target"),
        Rule(lambda i: _fits(8 * i.width, i.value), "the value fits the width", "value width"),
    ),
    isa.Conv: (
        _positive(
            "in_h",
            "in_w",
            "in_c",
            "out_h",
            "out_w",
            "out_c",
            "kernel_h",
            "kernel_w",
            "stride_h",
            "stride_w",
            "dilation_h",
            "dilation_w",
            "groups",
        ),
        Rule(
            lambda i: i.channel + i.out_c <= i.channels, "the slice ends within the channels", "channel out_c channels"
        ),
        Rule(
            lambda i: i.channels % i.groups == 0 and i.in_c % i.groups == 0,
            "groups divide channels and in_c",
            "groups channels in_c",
        ),
        Rule(lambda i: i.pitch >= i.out_c, "the pitch is at least out_c", "pitch out_c"),
        Rule(lambda i: i.params % 4 == 0, "params are aligned to 4 bytes", "params"),
        _widths("in_bits:source", "out_bits:target"),
        Rule(
            lambda i: i.in_bits == 8 or i.kernel_h * i.kernel_w * i.depth < WIDE_TAPS,
            "weights of 16-bit activations are under 2**17 for each output",
            "kernel_h kernel_w in_c groups",
        ),
        ZEROED,
        LIMITED,
        CLAMPED,
    ),
    isa.Pool: (
        Rule(lambda i: i.kind in (MAX, AVERAGE), "the kind is 0 (max) or 1 (average)", "kind"),
        Rule(lambda i: i.count_pads in (0, 1), "count_pads is 0 or 1", "count_pads"),
        _positive(
            "in_h",
            "in_w",
            "channels",
            "out_h",
            "out_w",
            "kernel_h",
            "kernel_w",
            "stride_h",
            "stride_w",
            "dilation_h",
            "dilation_w",
        ),
        _widths("in_bits:source", "out_bits:target"),
        ZEROED,
        LIMITED,
        SCALED,
        CLAMPED,
        Rule(
            lambda i: i.kind != MAX or i.in_bits == i.out_bits,
            "a maximum keeps its width",
            "in_bits out_bits",
        ),
        Rule(
            lambda i: i.kind != MAX or _windows_filled(i),
            "every window has a tap inside the stripe",
            "in_h in_w out_h out_w pad_top pad_left",
        ),
        Rule(
            lambda i: i.kind != AVERAGE or i.dilation_h == i.dilation_w == 1,
            "an average has no dilation",
            "dilation_h dilation_w",
        ),
        Rule(
            lambda i: i.kind != AVERAGE or _averages_filled(i),
            "every window overlaps the stripe",
            "in_h in_w out_h out_w pad_top pad_left",
        ),
        Rule(
            lambda i: i.kind != AVERAGE or not i.count_pads or _divisors_positive(i),
            "every window begins within the padded area",
            "padded_h padded_w",
        ),
        Rule(
            lambda i: (
                i.kind != AVERAGE or REACH[i.in_bits] * i.kernel_h * i.kernel_w * max(i.multiplier, 1) <= PRODUCT_MAX
            ),
            "a window's sum times the multiplier stays within 2**62",
            "kernel_h kernel_w multiplier",
        ),
    ),
    isa.Sum: (*MANY, *SCALED_NEST),
    isa.Mul: (*PAIR, SCALED, *SCALED_NEST),
    isa.Div: (*PAIR, SCALED, *SCALED_NEST),
    isa.Extreme: (*MANY, *SCALED_NEST, Rule(lambda i: i.least in (0, 1), "least is 0 or 1", "least")),
    isa.Select: (
        *MANY,
        *SCALED_NEST,
        Rule(lambda i: len(i.sources) == 4, "there are four operands", "sources"),
        Rule(lambda i: i.relation < len(isa.RELATIONS), "the relation is 0, 1 or 2", "relation"),
    ),
    isa.MatMul: (
        _positive("rows", "columns", "depth"),
        _widths("in_bits:source", "right_bits:right", "out_bits:target"),
        ZEROED,
        Rule(lambda i: _zero(i.right_zero, i.right_bits), "so is the right matrix's", "right_zero right_bits"),
        Rule(lambda i: i.turned in (0, 1), "turned is 0 or 1", "turned"),
        Rule(lambda i: i.depth <= DEPTH_MAX, f"the depth is at most {DEPTH_MAX}", "depth"),
        LIMITED,
        CLAMPED,
        Rule(
            lambda i: i.multiplier < 1 << product_bits(i.wide) and i.shift <= SHIFT_MAX,
            f"the multiplier is under 2**31, 2**23 or 2**15 for none, one or two of 16 bits, the shift at most "
            f"{SHIFT_MAX}",
            "multiplier shift in_bits right_bits",
        ),
    ),
    isa.Norm: (
        _positive("rows", "positions", "groups", "depth", "channels", "epsilon"),
        _widths("in_bits:source", "out_bits:target"),
        ZEROED,
        LIMITED,
        CLAMPED,
        Rule(lambda i: i.params % 4 == 0, "params are aligned to 4 bytes", "params"),
        Rule(lambda i: i.centered in (0, 1), "centered is 0 or 1", "centered"),
        Rule(
            lambda i: i.positions * i.depth <= GROUP_LIMITS[i.in_bits],
            f"a group has at most {GROUP_LIMITS[8]:,} values of 8 bits, {GROUP_LIMITS[16]:,} of 16",
            "positions depth in_bits",
        ),
        Rule(
            lambda i: i.epsilon_shift <= SHIFT_MAX and i.epsilon << i.epsilon_shift <= EPSILON_MAX,
            "epsilon is at most 2**60",
            "epsilon epsilon_shift",
        ),
        Rule(
            lambda i: i.offset_shift <= i.gain_shift <= GAIN_SHIFT_MAX,
            f"the gains' shift is at most {GAIN_SHIFT_MAX}, the offsets' at most that",
            "offset_shift gain_shift",
        ),
    ),
    isa.Magnitude: (
        NESTED,
        Rule(lambda i: 1 <= len(i.sources) <= 16, "there are 1 to 16 operands", "sources"),
        Rule(
            lambda i: len(i.zeros) == len(i.bits) == len(i.sources) and len(i.strides) == isa.LOOPS * len(i.sources),
            f"each operand has a zero point, bits and {isa.LOOPS} strides",
            "sources zeros bits strides",
        ),
        MIXED,
        _widths("out_bits:target"),
        RESULT_ZEROED,
        LIMITED,
        SCALED,
        CLAMPED,
    ),
    isa.Lookup: (
        _positive("count", "tables"),
        Rule(lambda i: i.count % i.tables == 0, "the tables divide the count", "count tables"),
        _widths("in_bits:source", "out_bits:target"),
        Rule(lambda i: i.entry_bits == 8 or i.table % 2 == 0, "entries of 16 bits lie at even addresses", "table"),
        Rule(lambda i: i.octaves <= (i.in_bits == 16), "octaves is 0, or 1 where in_bits is 16", "octaves in_bits"),
        RESULT_ZEROED,
        SHIFTED,
    ),
    isa.Softmax: (
        _positive("rows", "length"),
        _widths("in_bits:source", "out_bits:target"),
        RESULT_ZEROED,
        SCALED,
        Rule(lambda i: i.table % 4 == 0, "the table is aligned to 4 bytes", "table"),
    ),
    isa.Lstm: (
        *CELL,
        _even("cell", "cell_out"),
        Rule(lambda i: i.cell_bits <= UNIT_BITS, f"a cell has at most {UNIT_BITS} fractional bits", "cell_bits"),
        Rule(
            lambda i: i.peephole_shift <= PEEPHOLE_SHIFT_MAX,
            f"the peepholes' shift is at most {PEEPHOLE_SHIFT_MAX}",
            "peephole_shift",
        ),
        Rule(lambda i: i.coupled in (0, 1) and i.peepholes in (0, 1), "these are 0 or 1", "coupled peepholes"),
        Rule(_apart, "cell_out and target share no bytes", "cell_out target"),
    ),
    isa.Gru: (
        *CELL,
        _even("state", "state_out"),
        Rule(lambda i: i.phase <= isa.FINISH, "the phase is 0 (whole), 1 (reset) or 2 (finish)", "phase"),
        Rule(_apart, "state_out and target share no bytes", "state_out target"),
    ),
    isa.Host: (
        Rule(
            lambda i: (
                _sides(i.source_spaces, i.sources, i.source_counts, i.source_scales, i.source_zeros, i.source_bits)
                and _sides(i.target_spaces, i.targets, i.target_counts, i.target_scales, i.target_zeros, i.target_bits)
            ),
            "each of at least one operand and one result has memory, address, count, scale, zero point and bits",
            "sources targets",
        ),
        Rule(
            lambda i: (
                all(space in (*ACTIVATIONS, Space.FLASH) for space in i.source_spaces)
                and all(space in ACTIVATIONS for space in i.target_spaces)
            ),
            "sources are in sram (0), dram (2) or flash (3), targets in sram or dram",
            "source_spaces target_spaces",
        ),
        Rule(
            lambda i: min(*i.source_counts, *i.target_counts) >= 1,
            "there are no empty tensors",
            "source_counts target_counts",
        ),
        Rule(
            lambda i: all(
                bits in (8, 16) and address * 8 % bits == 0 and _zero(zero, bits)
                for bits, address, zero in zip(
                    (*i.source_bits, *i.target_bits),
                    (*i.sources, *i.targets),
                    (*i.source_zeros, *i.target_zeros),
                    strict=True,
                )
            ),
            "tensors have 8 bits and an int8 zero point, or 16, even addresses and zero point 0",
            "source_bits target_bits source_zeros target_zeros",
        ),
        Rule(
            lambda i: all(0 < isa.scale_of(bits) <= HOST_SCALE for bits in (*i.source_scales, *i.target_scales)),
            f"scales are positive and at most {HOST_SCALE:g}",
            "source_scales target_scales",
        ),
        Rule(
            lambda i: all(
                a.space != b.space or a.end <= b.start or b.end <= a.start for a, b in combinations(i.writes(), 2)
            ),
            "results share no bytes",
            "targets",
        ),
    ),
}
"""Contracts by instruction; of a kind's rules each may rely on those before it."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field's values: lowest, highest, and how many (0: any number up to 255)."""

    name: str
    low: int
    high: int
    count: int

    def holds(self, value: object) -> bool:
        if self.count == 1:
            return isinstance(value, int) and self.low <= value <= self.high
        if not isinstance(value, tuple) or len(value) > 255 or self.count not in (0, len(value)):
            return False
        return all(isinstance(v, int) and self.low <= v <= self.high for v in value)


def _layout(kind: type[AnyInstruction]) -> tuple[Field, ...]:
    result = []
    for f in fields(kind):
        signed, bits = f.metadata["code"][0] == "i", int(f.metadata["code"][1:])
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        result.append(Field(f.name, low, high, f.metadata["count"]))
    return tuple(result)


LAYOUTS = {kind: _layout(kind) for kind in isa.OPCODES.values()}


def scratch_of(i: isa.Conv) -> int:
    """Return the bytes that the emulator needs for a convolution, from above: packed weights, and lifted rows.

    Channels are filled up to whole vectors; where single taps lie apart, each takes the room of four. Of 16-bit
    activations the bytes lie apart, and the sums of both.
    """
    rows, span = (i.kernel_h - 1) * i.dilation_h + 1, (i.kernel_w - 1) * i.dilation_w + 1 + i.out_w * i.stride_w
    packed = 4 * i.kernel_h * i.kernel_w * i.depth * (i.out_c + VECTOR)
    apart = 2 * i.in_h * i.in_w * i.in_c + 8 * i.out_h * i.out_w * (i.out_c + VECTOR) if i.in_bits == 16 else 0
    return packed + rows * span * (max(i.in_c, i.out_c) + VECTOR) + apart


def work_of(i: AnyInstruction) -> int:
    """Return the elements, taps or products that the emulator goes through for one instruction."""
    match i:
        case isa.Load():
            return i.target_bytes
        case isa.Copy():
            return isa.volume(i.shape)
        case isa.Fill():
            return i.count
        case isa.Conv():
            return i.out_h * i.out_w * i.out_c * (i.kernel_h * i.kernel_w * i.depth + 1)
        case isa.Pool():
            return i.out_h * i.out_w * i.channels * i.kernel_h * i.kernel_w
        case isa.Sum() | isa.Mul() | isa.Magnitude() | isa.Div() | isa.Extreme() | isa.Select():
            return isa.volume(i.shape) * len(i.sources)
        case isa.MatMul():
            return i.macs + i.rows * i.columns + i.columns * i.depth
        case isa.Norm():
            return 3 * i.rows * i.count
        case isa.Lookup():
            return i.count
        case isa.Softmax():
            return 3 * i.rows * i.length
        case isa.Lstm() | isa.Gru():
            return 8 * i.units
        case isa.Host():
            return i.operations + sum((*i.source_counts, *i.target_counts))
        case _:
            assert_never(i)


def field_problem(i: AnyInstruction) -> str | None:
    """Return which value does not fit its field, if one does not."""
    layout = LAYOUTS.get(type(i))
    if layout is None:
        return "not an instruction"
    for f in layout:
        if not f.holds(getattr(i, f.name)):
            return f"{f.name} = {getattr(i, f.name)!r:.80} does not fit its field"
    return None


def rule_problem(i: AnyInstruction) -> str | None:
    """Return which contract an instruction breaks, if it breaks one."""
    for rule in RULES[type(i)]:
        if not rule.holds(i):
            found = ", ".join(f"{name} {getattr(i, name)!r:.80}" for name in rule.shown.split())
            return f"{rule.sentence} (found {found})"
    return None
