"""Finished sums to int8 or int16, sixteen channels at a time: narrowing and requantization as in `nnac.numerics`.

The vectors are LLVM's portable ones: one form serves all processors. The formulas are those of
`nnac.kernels.requantize`; what depends on the channel alone is made once per block of rows.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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
    move,
    routine,
    shuffle,
    splat,
    spread,
    store,
    store_first,
    vector,
)

LANES = 16
"""Sums, multipliers and shifts are read in whole vectors."""
TIELESS = 128
"""Is added to the shift of a channel where no sum can be a tie: all roundings in one step are one then."""
TIELESS_FIRST, TIELESS_LAST = 32, 45
"""Its smallest and largest shift: what is left of a product fits 32 bits, and a shifted zero point of 16 bits 64."""
_SUMS, _WIDE, _BYTES = vector(WORD, LANES), vector(LONG, LANES), vector(BYTE, LANES)
_HALVES, _PAIRS = vector(HALF, LANES), vector(LONG, LANES // 2)
_FLOATS = vector(SINGLE, LANES)
_WHOLE = 1.5 * 2**23
"""A float32 of this size has no fraction: to add it rounds half to even, to subtract it again leaves the integer."""
_FAR = 1024.0
"""Beyond all that is saturated, and small enough for `_WHOLE`."""
_ONE, _ZERO = splat(_WIDE, 1), splat(_WIDE, 0)

Scale = Callable[[Builder, Value], Value]
"""Code that scales a vector of wide sums."""


class Rows(NamedTuple):
    """Rows of sums and what becomes of them, 64-bit integers in the code that is made.

    Attributes:
        sums: address of int32 rows.
        rows: of sums and y.
        pitch: bytes from one row of sums to the next.
        channels: of a row.
        multiplier: address of int32, lifted (`requantize.lift`).
        shift: address of int64; TIELESS or more are for one step from whole accumulators or less.
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

    sums: Value
    rows: Value
    pitch: Value
    channels: Value
    multiplier: Value
    shift: Value
    y: Value
    y_pitch: Value
    y_bytes: Value
    zero: Value
    low: Value
    high: Value
    rounding: Value
    bits: Value
    wraps: Value


def finish(builder: Builder, *given: Value) -> None:
    """Rows of sums to rows of int8 or int16, given as `Rows`."""
    rows = Rows(*given)
    rounding = builder.select(builder.icmp_signed("==", rows.rounding, LONG(ONNX)), LONG(HALF_EVEN), rows.rounding)
    form = builder.zext(builder.icmp_signed("==", rounding, LONG(TFLITE)), LONG)
    form = builder.select(builder.icmp_signed("==", rounding, LONG(FLOAT32)), LONG(2), form)
    low, high = (builder.sub(limit, rows.zero) for limit in (rows.low, rows.high))
    blocks = builder.udiv(builder.add(rows.channels, LONG(LANES - 1)), LONG(LANES))
    with loop(builder, blocks) as block:
        first = builder.mul(block, LONG(LANES))
        part = rows._replace(
            sums=advance(builder, rows.sums, first, 4),
            channels=builder.sub(rows.channels, first),
            multiplier=advance(builder, rows.multiplier, first, 4),
            shift=advance(builder, rows.shift, first, 8),
            y=advance(builder, rows.y, first, rows.y_bytes),
            low=low,
            high=high,
            rounding=rounding,
        )
        choose(builder, _fastest(builder, form, part.shift, part.bits), range(5), partial(_call, builder, part))


def keep(builder: Builder, *given: Value) -> None:
    """As `finish`, for sums that stay as they are; behind each row of y up to RUN bytes more are written."""
    rows = Rows(*given)
    with loop(builder, rows.rows) as row:
        here, there = advance(builder, rows.sums, row, rows.pitch), advance(builder, rows.y, row, rows.y_pitch)
        move(builder, there, here, builder.mul(rows.channels, LONG(4)), LONG(0))


def _fastest(builder: Builder, form: Value, shift: Value, bits: Value) -> Value:
    """The form for sixteen channels: for one step from whole accumulators 4 without ties, 3 by shifts of 31 or more."""
    shifts = load(builder, shift, _WIDE)
    plain = builder.and_(builder.icmp_signed("==", form, LONG(0)), builder.icmp_signed("==", bits, LONG(32)))
    for better, least in ((3, 31), (4, TIELESS)):
        less = builder.bitcast(builder.icmp_signed("<", shifts, splat(_WIDE, least)), HALF)
        none = builder.icmp_unsigned("==", less, HALF(0))
        form = builder.select(builder.and_(none, plain), LONG(better), form)
    return form


def _call(builder: Builder, part: Rows, form: int) -> None:
    routine(builder, f"finish_{form}", partial(_block, form), *part)


def _block(form: int, builder: Builder, *given: Value) -> None:
    """All rows of sixteen channels, given as `Rows`; `low` and `high` are less the zero point."""
    part = Rows(*given)
    shifts = builder.and_(load(builder, part.shift, _WIDE), splat(_WIDE, TIELESS - 1))
    limits = [spread(builder, builder.trunc(limit, WORD), LANES) for limit in (part.low, part.high, part.zero)]
    if form == 4:
        scale = _tieless(builder, part.multiplier, shifts, part.zero)
    elif form == 3:
        scale = _ending(_halves(builder, part.multiplier, shifts, part.rounding), limits)
    else:
        scale = _ending(_whole(builder, form, part, shifts), limits)
    whole = builder.zext(builder.icmp_signed(">=", part.channels, LONG(LANES)), LONG)
    ending = builder.add(builder.add(whole, whole), builder.sub(part.y_bytes, LONG(1)))
    bounds = [builder.add(limit, limits[2]) for limit in limits[:2]]
    with loop(builder, part.rows) as row:
        result = scale(builder, load(builder, advance(builder, part.sums, row, part.pitch), _SUMS))
        target = advance(builder, part.y, row, part.y_pitch)
        choose(builder, ending, range(4), partial(_store, builder, result, bounds, target, part.channels))


def _ending(scale: Scale, limits: list[Value]) -> Scale:
    """Scaled, inside the limits, and on the zero point."""
    low, high, zero = limits
    return lambda builder, acc: builder.add(_clamp(builder, scale(builder, acc), low, high), zero)


def _store(builder: Builder, result: Value, bounds: list[Value], target: Value, left: Value, form: int) -> None:
    """As bytes (even forms) or halves, inside the bounds; the first lanes only (0, 1) or all of them."""
    kind, half = (_HALVES, 1 << 15) if form % 2 else (_BYTES, 1 << 7)
    narrow = builder.trunc(_clamp(builder, result, splat(_SUMS, -half), splat(_SUMS, half - 1)), kind)
    inside = _clamp(builder, narrow, *(builder.trunc(bound, kind) for bound in bounds))
    if form < 2:
        store_first(builder, inside, target, left)
    else:
        store(builder, inside, target)


def _whole(builder: Builder, form: int, part: Rows, shifts: Value) -> Scale:
    """Narrowed sums scaled in 64 bits, and clamped there, so that they fit 32."""
    patterns = load(builder, part.multiplier, _SUMS)
    factors = builder.sext(patterns, _WIDE)
    if form == 2:
        scale = _single(builder, builder.bitcast(patterns, _FLOATS))
    else:
        scale = _twice(builder, factors, shifts) if form else _once(builder, factors, shifts, part.rounding)
    narrow = _narrowing(builder, part.bits, part.wraps)
    low, high = (spread(builder, limit, LANES) for limit in (part.low, part.high))

    def scaled(builder: Builder, acc: Value) -> Value:
        wide = scale(builder, builder.sext(narrow(builder, acc), _WIDE))
        return builder.trunc(_clamp(builder, wide, low, high), _SUMS)

    return scaled


def _halves(builder: Builder, multiplier: Value, shifts: Value, rounding: Value) -> Scale:
    """`_once` for shifts of 31 and more, even lanes and odd lanes apart: each product comes from the low halves.

    The multipliers are loaded for every row: LLVM takes the instruction for low halves only where it sees them.
    """
    lanes = [shuffle(builder, shifts, shifts, list(range(part, LANES, 2))) for part in range(2)]
    rounds = [_rounding(builder, part, rounding) for part in lanes]

    def scaled(builder: Builder, acc: Value) -> Value:
        factors = builder.bitcast(load(builder, multiplier, _SUMS), _PAIRS)
        sums, found = builder.bitcast(acc, _PAIRS), []
        for part, rounded in enumerate(rounds):
            product = builder.mul(_half(builder, sums, part), _half(builder, factors, part))
            found.append(rounded(builder, product))
        low = builder.and_(found[0], splat(_PAIRS, 0xFFFFFFFF))
        return builder.bitcast(builder.or_(low, builder.shl(found[1], splat(_PAIRS, 32))), _SUMS)

    return scaled


def _tieless(builder: Builder, multiplier: Value, shifts: Value, zero: Value) -> Scale:
    """Products, half a step and the zero point, shifted: by 32, which is to take high halves, then by what is left."""
    lanes = [shuffle(builder, shifts, shifts, list(range(part, LANES, 2))) for part in range(2)]
    doubled = spread(builder, builder.or_(builder.shl(zero, LONG(1)), LONG(1)), LANES // 2)
    halves = [builder.ashr(builder.shl(doubled, part), splat(_PAIRS, 1)) for part in lanes]
    left = builder.trunc(builder.sub(shifts, splat(_WIDE, 32)), _SUMS)

    def scaled(builder: Builder, acc: Value) -> Value:
        sums, found = builder.bitcast(acc, _PAIRS), []
        for part, half in enumerate(halves):
            factors = load(builder, builder.add(multiplier, LONG(4 * part)), _PAIRS)
            product = builder.mul(_half(builder, sums, part), _half(builder, factors, 0))
            found.append(builder.bitcast(builder.add(product, half), _SUMS))
        high = shuffle(
            builder, found[0], found[1], [lane + 1 if lane % 2 == 0 else LANES + lane for lane in range(LANES)]
        )
        return builder.ashr(high, left)

    return scaled


def _half(builder: Builder, pairs: Value, part: int) -> Value:
    """The low or the high 32 bits, sign-extended."""
    places = splat(_PAIRS, 32)
    return builder.ashr(pairs if part else builder.shl(pairs, places), places)


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
    """`requantize.scale_once`."""
    rounded = _rounding(builder, shifts, rounding)

    def scale(builder: Builder, acc: Value) -> Value:
        return rounded(builder, builder.mul(acc, factors))

    return scale


def _rounding(builder: Builder, shifts: Value, rounding: Value) -> Scale:
    """`requantize.round_shift` of products: bit 0 of the floor, or the sign, says what is added before the shift."""
    kind = shifts.type
    one, nothing = splat(kind, 1), splat(kind, 0)
    rounds = builder.zext(builder.icmp_signed("!=", shifts, nothing), kind)
    half = builder.lshr(builder.shl(one, shifts), one)
    even = builder.and_(rounds, _flag(builder, "==", rounding, HALF_EVEN, kind.count))
    away = builder.and_(rounds, _flag(builder, ">", rounding, HALF_UP, kind.count))
    unset, set_ = builder.sub(half, even), builder.sub(half, away)
    asked = builder.or_(builder.shl(even, shifts), builder.shl(away, splat(kind, 63)))

    def rounded(builder: Builder, product: Value) -> Value:
        is_set = builder.icmp_signed("!=", builder.and_(product, asked), nothing)
        return builder.ashr(builder.add(product, builder.select(is_set, set_, unset)), shifts)

    return rounded


def _flag(builder: Builder, relation: str, value: Value, other: int, lanes: int) -> Value:
    """1 or 0 in all lanes."""
    return spread(builder, builder.zext(builder.icmp_signed(relation, value, LONG(other)), LONG), lanes)


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


finish_rows, keep_rows = (microkernel(emit, len(Rows._fields)) for emit in (finish, keep))
