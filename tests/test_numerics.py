"""The law of arithmetic against exact fractions and gemmlowp's own words, and the numpy form against the law."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnac import numerics
from nnac.numerics import Rounding
from nnac.ops import exact

MODES = list(Rounding)
MODE = st.sampled_from(MODES)
SHIFT = st.integers(0, 62)
INT32 = st.integers(-(2**31), 2**31 - 1)
MULTIPLIER = st.one_of(
    st.integers(0, 2**31 - 1), st.integers(2**30, 2**31 - 1), st.integers(0, 30).map(lambda exponent: 1 << exponent)
)
ZERO = st.integers(-128, 127)


def nearest(value: Fraction, mode: Rounding) -> int:
    """The integer nearest to a fraction, ties as `mode` says; written from the definition of each tie."""
    below = math.floor(value)
    above = below + 1
    if value - below != above - value:
        return below if value - below < above - value else above
    if mode in (Rounding.HALF_EVEN, Rounding.ONNX):
        return below if below % 2 == 0 else above
    if mode == Rounding.HALF_UP:
        return above
    return below if value < 0 else above


def truncate(numerator: int, denominator: int) -> int:
    """C's integer division."""
    return int(math.copysign(1, numerator)) * (abs(numerator) // denominator)


def gemmlowp(acc: int, multiplier: int, shift: int) -> int:
    """MultiplyByQuantizedMultiplier as gemmlowp and TFLite print it; `shift` is theirs, positive to the left."""
    left, right = max(shift, 0), max(-shift, 0)
    a = acc * (1 << left)
    assert -(2**31) <= a < 2**31, "undefined in C++"
    ab = a * multiplier
    nudge = (1 << 30) if ab >= 0 else 1 - (1 << 30)
    high = truncate(ab + nudge, 1 << 31)
    mask = (1 << right) - 1
    remainder = high & mask
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    return (high >> right) + (1 if remainder > threshold else 0)


def test_rounding_names_go_there_and_back() -> None:
    assert [mode.label for mode in MODES] == ["half_even", "half_up", "half_away", "tflite", "onnx"]
    assert [Rounding.parse(mode.label) for mode in MODES] == MODES
    with pytest.raises(ValueError, match="half_even, half_up, half_away, tflite"):
        Rounding.parse("stochastic")


@pytest.mark.parametrize("mode", MODES)
def test_round_shift_and_divide_meet_the_fraction_everywhere_near_zero(mode: Rounding) -> None:
    for value in range(-130, 131):
        for shift in range(6):
            assert numerics.round_shift(value, shift, mode) == nearest(Fraction(value, 1 << shift), mode)
        for denominator in range(1, 12):
            assert numerics.round_divide(value, denominator, mode) == nearest(Fraction(value, denominator), mode)


@given(st.integers(-(2**80), 2**80), SHIFT, st.integers(1, 2**40), MODE)
def test_round_shift_and_divide_meet_the_fraction(value: int, shift: int, denominator: int, mode: Rounding) -> None:
    assert numerics.round_shift(value, shift, mode) == nearest(Fraction(value, 1 << shift), mode)
    assert numerics.round_divide(value, denominator, mode) == nearest(Fraction(value, denominator), mode)


@given(INT32, MULTIPLIER, SHIFT, ZERO, st.sampled_from(MODES[:3]))
def test_requantize_rounds_once(acc: int, multiplier: int, shift: int, zero: int, mode: Rounding) -> None:
    expected = nearest(Fraction(acc * multiplier, 1 << shift), mode) + zero
    assert numerics.requantize(acc, multiplier, shift, zero, mode) == min(max(expected, -128), 127)
    assert numerics.requantize(acc, multiplier, shift, zero, mode, -5, 6) == min(max(expected, -5), 6)


@given(INT32, st.integers(2**30, 2**31 - 1), st.integers(-31, 0), ZERO)
def test_tflite_is_gemmlowp(acc: int, multiplier: int, shift: int, zero: int) -> None:
    expected = gemmlowp(acc, multiplier, shift) + zero
    assert numerics.requantize(acc, multiplier, 31 - shift, zero, Rounding.TFLITE, -(2**40), 2**40) == expected


@given(st.integers(-(2**20), 2**20), st.integers(2**30, 2**31 - 1), st.integers(0, 11))
def test_tflite_is_gemmlowp_with_left_shifts(acc: int, multiplier: int, shift: int) -> None:
    acc = acc >> shift
    expected = gemmlowp(acc, multiplier, shift)
    assert numerics.requantize(acc, multiplier, 31 - shift, 0, Rounding.TFLITE, -(2**40), 2**40) == expected


def test_tflite_rounds_twice_where_gemmlowp_does() -> None:
    # 2.5 - 2**-32 becomes 2.5 in the first step (one bit to go), and 3 in the second.
    acc, multiplier, shift = 5, 2**31 - 1, 32
    assert numerics.requantize(acc, multiplier, shift, 0, Rounding.HALF_AWAY) == 2
    assert numerics.requantize(acc, multiplier, shift, 0, Rounding.TFLITE) == 3 == gemmlowp(acc, multiplier, -1)


@given(INT32, st.integers(0, 30), SHIFT)
def test_tflite_takes_the_small_form_of_a_power_of_two(acc: int, exponent: int, shift: int) -> None:
    small = numerics.requantize(acc, 1 << exponent, shift, 0, Rounding.TFLITE)
    if shift + 30 - exponent <= 62:
        assert small == numerics.requantize(acc, 1 << 30, shift + 30 - exponent, 0, Rounding.TFLITE)
    exact_value = Fraction(acc << exponent, 1 << shift)
    assert abs(small - min(max(exact_value, Fraction(-128)), Fraction(127))) <= 1


@given(INT32, MULTIPLIER, st.integers(0, 30))
def test_tflite_saturates_a_left_shift_that_leaves_int32(acc: int, multiplier: int, shift: int) -> None:
    if multiplier < 2**30 or acc == 0:
        return
    expected = 127 if acc > 0 else -128
    if abs(acc) << (31 - shift) >= 2**31:
        assert numerics.requantize(acc, multiplier, shift, 0, Rounding.TFLITE) == expected


@given(st.integers(-(2**39), 2**39 - 1), st.integers(0, 2**23 - 1), SHIFT, MODE)
def test_requantize_wide_rounds_once_whatever_the_mode(acc: int, multiplier: int, shift: int, mode: Rounding) -> None:
    expected = nearest(Fraction(acc * multiplier, 1 << shift), mode)
    assert numerics.requantize_wide(acc, multiplier, shift, 0, mode) == min(max(expected, -(2**15)), 2**15 - 1)
    assert numerics.requantize_wide(acc, multiplier, shift, 3, mode, -5, 6) == min(max(expected + 3, -5), 6)
    assert abs(acc * multiplier) <= 2**62


def test_requantize_wide_refuses_multipliers_of_more_than_23_bits() -> None:
    with pytest.raises(ValueError, match="outside"):
        numerics.requantize_wide(1, 1 << 23, 0, 0, Rounding.HALF_EVEN)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("taps", [1, 2, 49, 2**16, 2**16 + 1, 2**24])
def test_average_bits_keep_products_inside(bits: int, taps: int) -> None:
    reach, found = 255 if bits == 8 else 2**15, numerics.average_bits(taps, bits)
    assert taps * reach * 2**found <= 2**62
    assert found == 31 or taps * reach * 2 ** (found + 2) > 2**62


@pytest.mark.parametrize(("multiplier", "shift"), [(-1, 0), (1 << 31, 0), (1, -1), (1, 63)])
def test_requantize_refuses_what_no_field_holds(multiplier: int, shift: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        numerics.requantize(1, multiplier, shift, 0, Rounding.HALF_EVEN)


def test_round_divide_refuses_a_denominator_of_zero() -> None:
    with pytest.raises(ValueError, match="not positive"):
        numerics.round_divide(1, 0, Rounding.HALF_EVEN)


@given(st.floats(2.0**-32, 2.0**31 - 1))
def test_encode_ratio_is_as_near_as_31_bits_allow(ratio: float) -> None:
    multiplier, shift = numerics.encode_ratio(ratio)
    assert 0 < multiplier < 2**31
    assert 0 <= shift <= 62
    assert abs(Fraction(multiplier, 1 << shift) / Fraction(ratio) - 1) <= Fraction(1, 1 << 31)
    assert multiplier >= 2**30 or math.frexp(ratio)[0] == 0.5


@given(st.floats(0, 2.0**-32))
def test_encode_ratio_of_tiny_ratios_is_near_in_absolute_terms(ratio: float) -> None:
    multiplier, shift = numerics.encode_ratio(ratio)
    assert abs(Fraction(multiplier, 1 << shift) - Fraction(ratio)) <= Fraction(1, 1 << 63)


@given(st.floats(2.0**-32, 2.0**23 - 1))
def test_encode_ratio_with_fewer_bits(ratio: float) -> None:
    multiplier, shift = numerics.encode_ratio(ratio, bits=23)
    assert 0 < multiplier < 2**23
    assert abs(Fraction(multiplier, 1 << shift) / Fraction(ratio) - 1) <= Fraction(1, 1 << 23)
    assert multiplier >= 2**22 or math.frexp(ratio)[0] == 0.5


def test_encode_ratio_with_fewer_bits_refuses_more() -> None:
    assert numerics.encode_ratio(1 - 2.0**-40, bits=23) == (2**22, 22)
    assert numerics.encode_ratio(2.0**22, bits=23) == (2**22, 0)
    with pytest.raises(ValueError, match=r"the limit is 2\*\*23"):
        numerics.encode_ratio(2.0**23, bits=23)


def test_encode_ratio_rounds_up_into_the_next_octave() -> None:
    assert numerics.encode_ratio(1 - 2.0**-40) == (2**30, 30)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_encode_ratio_keeps_powers_of_two_small_and_exact(power_of_two: bool) -> None:
    assert [numerics.encode_ratio(2.0**-k, power_of_two) for k in range(63)] == [(1, k) for k in range(63)]
    assert [numerics.encode_ratio(2.0**k, power_of_two) for k in range(31)] == [(1 << k, 0) for k in range(31)]
    assert numerics.encode_ratio(0.0, power_of_two) == (0, 0)


@pytest.mark.parametrize("ratio", [-1.0, math.nan, math.inf, -math.inf, 2.0**31, 2.0**31 - 0.25])
def test_encode_ratio_refuses_what_it_cannot_hold(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio"):
        numerics.encode_ratio(ratio)
    with pytest.raises(ValueError, match="ratio"):
        numerics.encode_ratios([0.5, ratio])


@pytest.mark.parametrize("ratio", [0.3, 3.0, 2.0**-63, 1 + 2.0**-50])
def test_encode_ratio_refuses_a_ratio_that_shifters_cannot_scale(ratio: float) -> None:
    with pytest.raises(ValueError, match="power of two"):
        numerics.encode_ratio(ratio, power_of_two=True)


@given(st.lists(st.floats(0, 2.0**20), min_size=1, max_size=5))
def test_encode_ratios_share_a_shift(ratios: list[float]) -> None:
    multipliers, shift = numerics.encode_ratios(ratios)
    assert len(multipliers) == len(ratios)
    assert 0 <= shift <= 62
    assert all(0 <= multiplier < 2**31 for multiplier in multipliers)
    tolerance = max(Fraction(max(ratios)) / (1 << 31), Fraction(1, 1 << 63))
    for multiplier, ratio in zip(multipliers, ratios, strict=True):
        assert abs(Fraction(multiplier, 1 << shift) - Fraction(ratio)) <= tolerance


@given(st.lists(st.integers(-32, -2), min_size=1, max_size=5))
def test_encode_ratios_of_powers_of_two_are_exact_and_small(exponents: list[int]) -> None:
    multipliers, shift = numerics.encode_ratios([2.0**exponent for exponent in exponents])
    assert shift == -min(exponents)
    assert multipliers == tuple(1 << (exponent + shift) for exponent in exponents)


def test_encode_ratios_knows_zero_and_wide_spans() -> None:
    assert numerics.encode_ratios([0.0]) == ((0,), 0)
    assert numerics.encode_ratios([2.0, 0.0, 8.0]) == ((2, 0, 8), 0)
    assert numerics.encode_ratios([1.0, 2.0**-40]) == ((2**30, 0), 30)
    with pytest.raises(ValueError, match="no ratio"):
        numerics.encode_ratios([])


def test_narrow_wraps_or_saturates() -> None:
    for acc in range(-70, 71):
        assert numerics.narrow(acc, 4, wraps=False) == min(max(acc, -8), 7)
        wrapped = numerics.narrow(acc, 4, wraps=True)
        assert -8 <= wrapped <= 7
        assert (wrapped - acc) % 16 == 0
    with pytest.raises(ValueError, match="bits"):
        numerics.narrow(1, 0, wraps=True)


@given(INT32, st.integers(1, 10**6), MULTIPLIER, SHIFT, ZERO, MODE)
def test_average_rounds_once(total: int, count: int, multiplier: int, shift: int, zero: int, mode: Rounding) -> None:
    expected = nearest(Fraction(total * multiplier, count << shift), mode) + zero
    assert numerics.average(total, count, multiplier, shift, zero, mode) == min(max(expected, -128), 127)


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=40), st.floats(0, 2), MODE)
def test_softmax_is_near_the_real_one(x: list[int], scale: float, mode: Rounding) -> None:
    got = numerics.softmax(x, numerics.softmax_table(scale), 256, 0, -128, mode)
    exponentials = [math.exp(scale * (value - max(x))) for value in x]
    for y, e in zip(got, exponentials, strict=True):
        assert abs(y + 128 - min(256 * e / sum(exponentials), 255)) <= 0.51 + 256 * len(x) * 2.0**-17


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=40), st.floats(0, 0.01), MODE)
def test_softmax_of_16_bits_is_near_the_real_one(x: list[int], scale: float, mode: Rounding) -> None:
    got = numerics.softmax(x, numerics.softmax_table(scale, 16), 1 << 15, 0, 0, mode, 0, 2**15 - 1)
    exponentials = [math.exp(scale * (value - max(x))) for value in x]
    for y, e in zip(got, exponentials, strict=True):
        assert abs(y - min(2**15 * e / sum(exponentials), 2**15 - 1)) <= 2.0 + len(x)


def test_softmax_tables_of_16_bits_start_at_one_and_fall() -> None:
    table = numerics.softmax_table(1e-3, 16)
    assert len(table) == 512
    assert table[0] == table[256] == 2**15
    for part in (table[:256], table[256:]):
        assert list(part) == sorted(part, reverse=True)
    assert table[4] == round(math.exp(-1.024) * 2**15)


def test_softmax_table_starts_at_one_and_falls() -> None:
    table = numerics.softmax_table(0.05)
    assert len(table) == 256
    assert table[0] == 65536
    assert list(table) == sorted(table, reverse=True)
    assert table[20] == round(math.exp(-1) * 65536)
    for scale in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="softmax scale"):
            numerics.softmax_table(scale)


@given(st.integers(-(2**15), 2**15 - 1), MODE, st.integers(0, 2**32 - 1))
def test_interpolate_is_linear_between_knots(x: int, mode: Rounding, seed: int) -> None:
    table = [int(knot) for knot in np.random.default_rng(seed).integers(-(2**15), 2**15, 513)]
    index = (x + 2**15) // 128
    fraction = Fraction(x + 2**15, 128) - index
    expected = nearest(table[index] + (table[index + 1] - table[index]) * fraction, mode)
    assert numerics.interpolate(x, table, mode) == expected
    assert numerics.interpolate(x, table, mode, -9, 9) == min(max(expected, -9), 9)
    finer = nearest((table[index] + (table[index + 1] - table[index]) * fraction) / 128, mode) - 7
    assert numerics.interpolate(x, table, mode, -128, 127, 14, -7) == min(max(finer, -128), 127)


FLOAT32 = st.floats(width=32, allow_nan=False)
SCALE = st.floats(np.float32(1e-30).item(), np.float32(1e30).item(), width=32)


@given(FLOAT32, SCALE, ZERO)
def test_quantize_is_onnx(x: float, scale: float, zero: int) -> None:
    with np.errstate(over="ignore", under="ignore"):
        expected = np.rint(np.float32(x) / np.float32(scale)).astype(np.float64) + zero
    assert numerics.quantize(x, scale, zero) == min(max(expected, -128), 127)


@given(st.integers(-128, 127), SCALE, ZERO)
def test_dequantize_is_onnx_and_quantize_returns(q: int, scale: float, zero: int) -> None:
    x = numerics.dequantize(q, scale, zero)
    assert x == float(np.float32(q - zero) * np.float32(scale))
    assert numerics.quantize(x, scale, zero) == q


def test_quantize_ties_and_extremes() -> None:
    assert [numerics.quantize(x, 1.0, 0) for x in (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)] == [-2, -2, 0, 0, 2, 2]
    assert numerics.quantize(math.inf, 1.0, 0) == numerics.quantize(1e300, 1.0, -128) == 127
    assert numerics.quantize(-math.inf, 1.0, 127) == -128
    assert numerics.quantize(1e6, 1.0, 0, -(2**15), 2**15 - 1) == 2**15 - 1
    with pytest.raises(ValueError, match="NaN"):
        numerics.quantize(math.nan, 1.0, 0)
    for scale in (0.0, -1.0, math.nan, math.inf, 1e-60):
        with pytest.raises(ValueError, match="scale"):
            numerics.quantize(1.0, scale, 0)


def extremes(seed: int, bits: int, count: int = 4000) -> list[int]:
    """Integers of every magnitude up to 2**bits (int64 at most), both signs: powers of two, neighbours, random ones."""
    rng = random.Random(seed)
    limit = min(1 << bits, 2**63 - 1)
    powers = [1 << rng.randint(0, bits) for _ in range(count)]
    values = [rng.choice([power, power - 1, power + 1, rng.randrange(power)]) for power in powers]
    return [rng.choice([-1, 1]) * min(value, limit) for value in values]


def non_negative(seed: int, bits: int, lowest: int = 0) -> list[int]:
    """As `extremes`, from `lowest` to 2**bits - 1."""
    return [min(max(abs(value), lowest), (1 << bits) - 1) for value in extremes(seed, bits)]


@pytest.mark.parametrize("mode", MODES)
def test_numpy_roundings_are_the_law(mode: Rounding) -> None:
    value, denominator = extremes(1, 63), non_negative(2, 62, lowest=1)
    shift = [abs(s) % 63 for s in extremes(3, 20)]
    got = exact.round_shift(np.array(value), np.array(shift), mode)
    assert got.tolist() == [numerics.round_shift(*pair, mode) for pair in zip(value, shift, strict=True)]
    for divisor in (denominator, [d % 9 + 1 for d in denominator]):
        got = exact.round_divide(np.array(value), np.array(divisor), mode, np.array(shift))
        triples = zip(value, divisor, shift, strict=True)
        assert got.tolist() == [numerics.round_divide(n, d << s, mode) for n, d, s in triples]


@pytest.mark.parametrize("bits", [31, 23, 1])
def test_numpy_ratios_are_the_law(bits: int) -> None:
    rng = np.random.default_rng(bits)
    powers = 2.0 ** np.arange(-1074, bits)
    ratios = np.concatenate(
        [
            [0.0, 1 - 2.0**-40, np.nextafter(2.0**-62, 0), np.nextafter(2.0**-62, 1), np.nextafter(2.0**-64, 0)],
            powers,
            powers[-100:] * (1 - 2.0**-20),
            rng.uniform(0, 2.0 ** (bits - 1), 100),
            2.0 ** rng.uniform(-70, bits - 1, 400),
            rng.integers(1, 1 << 20, 100) * 2.0**-21,  # ties
        ]
    )
    multiplier, shift = exact.encode_ratio(ratios, False, bits)
    found = list(zip(multiplier.tolist(), shift.tolist(), strict=True))
    assert found == [numerics.encode_ratio(ratio, False, bits) for ratio in ratios.tolist()]
    small = powers[powers >= 2.0**-62]
    multiplier, shift = exact.encode_ratio(small, True, bits)
    assert list(zip(multiplier, shift, strict=True)) == [numerics.encode_ratio(r, True, bits) for r in small.tolist()]


@pytest.mark.parametrize("ratio", [-1.0, np.nan, np.inf, 2.0**31, 2.0**40, np.nextafter(2.0**31, 0)])
def test_numpy_ratios_refuse_what_the_law_refuses(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio") as of_law:
        numerics.encode_ratio(float(ratio))
    with pytest.raises(ValueError, match="ratio") as of_numpy:
        exact.encode_ratio(np.array([0.5, ratio, 1.5]))
    assert str(of_numpy.value) == str(of_law.value)


@pytest.mark.parametrize("ratio", [0.75, 2.0**-63])
def test_numpy_ratios_refuse_what_shifters_cannot_scale(ratio: float) -> None:
    with pytest.raises(ValueError, match="not a power of two"):
        exact.encode_ratio(np.array([1.0, ratio]), power_of_two=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("low", "high"), [(-128, 127), (-20, 30), (-(2**40), 2**40)])
def test_numpy_requantize_and_average_are_the_law(mode: Rounding, low: int, high: int) -> None:
    acc, multiplier = extremes(4, 31), non_negative(5, 31)
    shift = [abs(s) % 63 for s in extremes(6, 20)]
    zero = [abs(z) % 256 - 128 for z in extremes(7, 20)]
    count = non_negative(8, 20, lowest=1)
    got = exact.requantize(np.array(acc), np.array(multiplier), np.array(shift), np.array(zero), mode, low, high)
    rows = list(zip(acc, multiplier, shift, zero, count, strict=True))
    assert got.tolist() == [numerics.requantize(a, m, s, z, mode, low, high) for a, m, s, z, _ in rows]
    got = exact.average(
        np.array(acc), np.array(count), np.array(multiplier), np.array(shift), np.array(zero), mode, low, high
    )
    assert got.tolist() == [numerics.average(a, c, m, s, z, mode, low, high) for a, m, s, z, c in rows]


def test_numpy_requantize_broadcasts_channels() -> None:
    acc = np.array([[100, -100], [7, 9]])
    got = exact.requantize(acc, np.array([1, 3]), np.array([1, 2]), 5, Rounding.HALF_EVEN)
    assert got.dtype == np.int64
    assert got.tolist() == [[55, -70], [9, 12]]


@pytest.mark.parametrize("wraps", [False, True])
def test_numpy_narrow_is_the_law(wraps: bool) -> None:
    acc = extremes(9, 40)
    for bits in (1, 8, 17, 24, 32):
        assert exact.narrow(np.array(acc), bits, wraps).tolist() == [numerics.narrow(a, bits, wraps) for a in acc]


@given(st.integers(-(2**15), 2**15 - 1), MODE, st.integers(0, 2**32 - 1))
def test_interpolate_octaves_is_linear_between_knots(x: int, mode: Rounding, seed: int) -> None:
    """Between the knots' places, 16 per octave; rounded once."""
    table = [int(knot) for knot in np.random.default_rng(seed).integers(-(2**15), 2**15, 385)]
    places = [numerics.octave_place(k) for k in range(193)]
    places = [-place for place in places[:0:-1]] + places
    assert places == sorted(set(places)) and places[0] == -(2**15) and places[-1] == 2**15
    index = next(k for k in range(384) if places[k] <= x < places[k + 1])
    share = Fraction(x - places[index], places[index + 1] - places[index])
    exact_y = table[index] + (table[index + 1] - table[index]) * share
    assert numerics.interpolate_octaves(x, table, mode) == nearest(exact_y, mode)
    finer = nearest(exact_y / 128, mode) - 7
    assert numerics.interpolate_octaves(x, table, mode, -128, 127, 18, -7) == min(max(finer, -128), 127)


@pytest.mark.parametrize("mode", MODES)
def test_numpy_softmax_and_interpolate_are_the_law(mode: Rounding) -> None:
    rng = np.random.default_rng(10)
    table = numerics.softmax_table(0.07)
    for multiplier, shift in ((256, 0), (2**31 - 1, 25), (5, 62)):
        x = rng.integers(-128, 128, (3, 5, 17)).astype(np.int8)
        got = exact.softmax(x, table, multiplier, shift, -128, mode)
        rows = [numerics.softmax(row.tolist(), table, multiplier, shift, -128, mode) for row in x.reshape(-1, 17)]
        assert got.reshape(-1, 17).tolist() == rows
    knots = rng.integers(-(2**15), 2**15, 513)
    x16 = np.arange(-(2**15), 2**15, 7).astype(np.int16)
    got = exact.interpolate(x16, knots, mode)
    assert got.tolist() == [numerics.interpolate(x, knots.tolist(), mode) for x in x16.tolist()]
    got = exact.interpolate(x16, knots, mode, -128, 127, 14, -7)
    assert got.tolist() == [numerics.interpolate(x, knots.tolist(), mode, -128, 127, 14, -7) for x in x16.tolist()]
    all16 = np.arange(-(2**15), 2**15).astype(np.int16)
    got = exact.interpolate_octaves(all16, knots[:385], mode)
    assert got.tolist() == [numerics.interpolate_octaves(x, knots[:385].tolist(), mode) for x in all16.tolist()]
    wide = numerics.softmax_table(3e-4, 16)
    got = exact.softmax(x16[:51].reshape(3, 17), wide, 1 << 15, 0, 0, mode, 0, 2**15 - 1)
    rows = [numerics.softmax(r, wide, 1 << 15, 0, 0, mode, 0, 2**15 - 1) for r in x16[:51].reshape(3, 17).tolist()]
    assert got.tolist() == rows


@pytest.mark.parametrize("mode", MODES)
def test_numpy_requantize_wide_is_the_law(mode: Rounding) -> None:
    acc, multiplier, shift = extremes(11, 39), non_negative(12, 23), [abs(s) % 63 for s in extremes(13, 20)]
    got = exact.requantize_wide(np.array(acc), np.array(multiplier), np.array(shift), 0, mode)
    rows = zip(acc, multiplier, shift, strict=True)
    assert got.tolist() == [numerics.requantize_wide(a, m, s, 0, mode) for a, m, s in rows]


def test_numpy_refuses_what_it_cannot_compute() -> None:
    with pytest.raises(ValueError, match="shift"):
        exact.requantize(np.array([1]), np.array([1]), np.array([63]), 0, Rounding.HALF_EVEN)
    with pytest.raises(ValueError, match="denominator"):
        exact.round_divide(np.array([1]), np.array([0]), Rounding.HALF_EVEN)
