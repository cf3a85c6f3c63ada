"""Finished sums to int8 or int16, sixteen channels at a time: narrowing and requantization as `nnac.numerics` defines them.

The vectors are LLVM's portable ones: one form serves all processors. The formulas are those of
`nnac.kernels.requantize`; what depends on the channel alone is made once per block of rows.
"""

from collections.abc import Callable
from functools import partial

from nnac.kernels.requantize import FLOAT32, HALF_EVEN, HALF_UP, ONNX, TFLITE
from nnac.kernels.vectors import (
    BYTE,
    HALF,
    LONG,
    SINGLE,
    WORD,
    Builder,
    Value,
    advance,
    choose,
    load,
    loop,
    microkernel,
    routine,
    splat,
    spread,
    store,
    store_first,
    vector,
)

LANES = 16
"""Sums, multipliers and shifts are read in whole vectors."""
_SUMS, _WIDE, _BYTES = vector(WORD, LANES), vector(LONG, LANES), vector(BYTE, LANES)
_HALVES = vector(HALF, LANES)
_FLOATS = vector(SINGLE, LANES)
_WHOLE = 1.5 * 2**23
"""A float32 of this size has no fraction: to add it rounds half to even, to subtract it again leaves the integer."""
_FAR = 1024.0
"""Beyond all that is saturated, and small enough for `_WHOLE`."""
_ONE, _ZERO = splat(_WIDE, 1), splat(_WIDE, 0)

Scale = Callable[[Builder, Value], Value]
"""Code that scales a vector of wide sums."""


def finish(
    builder: Builder,
    sums: Value,
    rows: Value,
    pitch: Value,
    channels: Value,
    multiplier: Value,
    shift: Value,
    y: Value,
    y_pitch: Value,
    y_bytes: Value,
    zero: Value,
    low: Value,
    high: Value,
    rounding: Value,
    bits: Value,
    wraps: Value,
) -> None:
    """Rows of sums to rows of int8 or int16.

    Args:
        builder: where the code goes; all others are 64-bit integers.
        sums: address of int32 rows.
        rows: of sums and y.
        pitch: bytes from one row of sums to the next.
        channels: of a row.
        multiplier: address of int32, lifted (`requantize.lift`).
        shift: address of int64.
        y: address of rows of integers behind each other.
        y_pitch: bytes from one row of y to the next.
        y_bytes: of an integer of y, 1 or 2.
        zero: zero point of y.
        low: smallest output.
        high: largest output.
        rounding: as `nnac.numerics.Rounding`, or `requantize.FLOAT32`.
        bits: of the accumulator.
        wraps: whether a narrower accumulator wraps.
    """
    rounding = builder.select(builder.icmp_signed("==", rounding, LONG(ONNX)), LONG(HALF_EVEN), rounding)
    form = builder.zext(builder.icmp_signed("==", rounding, LONG(TFLITE)), LONG)
    form = builder.select(builder.icmp_signed("==", rounding, LONG(FLOAT32)), LONG(2), form)
    limits = (y_bytes, zero, builder.sub(low, zero), builder.sub(high, zero), rounding, bits, wraps)
    blocks = builder.udiv(builder.add(channels, LONG(LANES - 1)), LONG(LANES))
    with loop(builder, blocks) as block:
        first = builder.mul(block, LONG(LANES))
        left = builder.sub(channels, first)
        scale = (advance(builder, multiplier, first, 4), advance(builder, shift, first, 8))
        rest = (advance(builder, sums, first, 4), rows, pitch, left, *scale, advance(builder, y, first, y_bytes), y_pitch, *limits)
        choose(builder, form, range(3), partial(_call, builder, rest))


def _call(builder: Builder, rest: tuple[Value, ...], form: int) -> None:
    routine(builder, f"finish_{form}", partial(_block, form), *rest)


def _block(
    form: int,
    builder: Builder,
    sums: Value,
    rows: Value,
    pitch: Value,
    left: Value,
    multiplier: Value,
    shift: Value,
    y: Value,
    y_pitch: Value,
    y_bytes: Value,
    zero: Value,
    low: Value,
    high: Value,
    rounding: Value,
    bits: Value,
    wraps: Value,
) -> None:
    """All rows of sixteen channels; `low` and `high` are less the zero point."""
    patterns, shifts = load(builder, multiplier, _SUMS), load(builder, shift, _WIDE)
    factors = builder.sext(patterns, _WIDE)
    if form == 2:
        scale = _single(builder, builder.bitcast(patterns, _FLOATS))
    else:
        scale = _twice(builder, factors, shifts) if form else _once(builder, factors, shifts, rounding)
    narrow = _narrowing(builder, bits, wraps)
    lowest, highest = spread(builder, low, LANES), spread(builder, high, LANES)
    zeros = spread(builder, builder.trunc(zero, HALF), LANES)
    whole = builder.icmp_signed(">=", left, LONG(LANES))
    form = builder.select(whole, y_bytes, LONG(0))
    with loop(builder, rows) as row:
        acc = narrow(builder, load(builder, advance(builder, sums, row, pitch), _SUMS))
        scaled = _clamp(builder, scale(builder, builder.sext(acc, _WIDE)), lowest, highest)
        result = builder.add(builder.trunc(scaled, _HALVES), zeros)
        target = advance(builder, y, row, y_pitch)
        choose(builder, form, range(3), partial(_store, builder, result, target, left, y_bytes))


def _store(builder: Builder, result: Value, target: Value, left: Value, y_bytes: Value, form: int) -> None:
    """All lanes, as bytes (1) or halves (2), or the first ones only (0)."""
    if form == 0:
        store_first(builder, result, target, left, y_bytes)
    else:
        store(builder, result if form == 2 else builder.trunc(result, _BYTES), target)


def _clamp(builder: Builder, value: Value, low: Value, high: Value) -> Value:
    """The nearest value inside [low, high]."""
    raised = builder.select(builder.icmp_signed("<", value, low), low, value)
    return builder.select(builder.icmp_signed(">", raised, high), high, raised)


def _narrowing(builder: Builder, bits: Value, wraps: Value) -> Scale:
    """`numerics.narrow` for all widths at once: shifts that wrap, limits that saturate; for 32 bits neither does."""
    spare = builder.trunc(builder.sub(LONG(32), bits), WORD)
    wrapping = builder.icmp_signed("!=", wraps, LONG(0))
    shift = spread(builder, builder.select(wrapping, spare, WORD(0)), LANES)
    clamp = spread(builder, builder.select(wrapping, WORD(0), spare), LANES)
    high = builder.lshr(splat(_SUMS, (1 << 31) - 1), clamp)
    low = builder.ashr(splat(_SUMS, -(1 << 31)), clamp)

    def narrow(builder: Builder, acc: Value) -> Value:
        return _clamp(builder, builder.ashr(builder.shl(acc, shift), shift), low, high)

    return narrow


def _once(builder: Builder, factors: Value, shifts: Value, rounding: Value) -> Scale:
    """`requantize.scale_once`: the bit that decides a tie is bit 0 of the floor, or the sign."""
    even = _flag(builder, "==", rounding, HALF_EVEN)
    away = _flag(builder, ">", rounding, HALF_UP)
    rounds = builder.zext(builder.icmp_signed("!=", shifts, _ZERO), _WIDE)
    half = builder.lshr(builder.shl(_ONE, shifts), _ONE)
    odd = builder.and_(rounds, even)
    nudge = builder.sub(half, odd)
    pick = builder.select(builder.icmp_signed("!=", away, _ZERO), splat(_WIDE, 63), shifts)
    mask = builder.or_(odd, builder.sub(_ZERO, builder.and_(rounds, away)))

    def scale(builder: Builder, acc: Value) -> Value:
        product = builder.mul(acc, factors)
        tie = builder.and_(builder.ashr(product, pick), mask)
        return builder.ashr(builder.add(builder.add(product, nudge), tie), shifts)

    return scale


def _flag(builder: Builder, relation: str, value: Value, other: int) -> Value:
    """1 or 0 in all lanes."""
    return spread(builder, builder.zext(builder.icmp_signed(relation, value, LONG(other)), LONG), LANES)


def _twice(builder: Builder, factors: Value, shifts: Value) -> Scale:
    """`requantize.scale_twice`."""
    thirty_one = splat(_WIDE, 31)
    left = _clamp(builder, builder.sub(thirty_one, shifts), _ZERO, thirty_one)
    right = _clamp(builder, builder.sub(shifts, thirty_one), _ZERO, splat(_WIDE, 62))
    half = builder.lshr(builder.shl(_ONE, right), _ONE)
    rounds = builder.sub(_ZERO, builder.zext(builder.icmp_signed("!=", right, _ZERO), _WIDE))
    low, high = splat(_WIDE, -(1 << 31)), splat(_WIDE, (1 << 31) - 1)

    def scale(builder: Builder, acc: Value) -> Value:
        shifted = _clamp(builder, builder.shl(acc, left), low, high)
        nudged = builder.add(builder.mul(shifted, factors), splat(_WIDE, 1 << 30))
        doubled = builder.ashr(nudged, thirty_one)
        sign = builder.and_(builder.ashr(doubled, splat(_WIDE, 63)), rounds)
        return builder.ashr(builder.add(builder.add(doubled, half), sign), right)

    return scale


def _single(builder: Builder, ratios: Value) -> Scale:
    """`float32.requantize`: the float32 product, rounded half to even."""
    low, high, whole = splat(_FLOATS, -_FAR), splat(_FLOATS, _FAR), splat(_FLOATS, _WHOLE)

    def scale(builder: Builder, acc: Value) -> Value:
        product = builder.fmul(builder.sitofp(acc, _FLOATS), ratios)
        raised = builder.select(builder.fcmp_ordered("<", product, low), low, product)
        inside = builder.select(builder.fcmp_ordered(">", raised, high), high, raised)
        return builder.fptosi(builder.fsub(builder.fadd(inside, whole), whole), _WIDE)

    return scale


finish_rows = microkernel(finish, 15)
