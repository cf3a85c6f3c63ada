"""Recurrent cells: the law against float, numpy and kernels against the law, instructions against the fence."""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnac import cells as cell_law
from nnac import isa, numerics
from nnac.disasm import disassemble, operands
from nnac.emulator import Emulator
from nnac.errors import ProgramError
from nnac.isa import Space
from nnac.kernels.cells import gru_cell, gru_reset, lstm_cell
from nnac.numerics import INTERPOLATION_ENTRIES, Rounding
from nnac.ops import exact
from nnac.ops.functions import FUNCTIONS
from nnac.ops.tables import knots
from nnac.program import KnownAnswer, Layer, Program, Tensor
from nnac.report.account import blob_account
from nnac.targets import load_target
from nnac.timing import simulate, work_cycles
from nnac.types import Array, Quant, TensorType
from nnac.validate import validate
from tests.graphs import scheduled
from tests.test_guarded import SMALL, mutated, run_guarded
from tests.test_numerics import nearest
from tests.test_validate import altered, refuse, with_code

Int16 = npt.NDArray[np.int16]
Rng = np.random.Generator

MODE = st.sampled_from(list(Rounding))
SEED = st.integers(0, 2**32 - 1)
SIDE = st.integers(1, 5)
LIMIT = st.sampled_from([1, 4096, 32766, 32767])
PAIR = st.one_of(
    st.tuples(st.sampled_from([1, 2, 8]), st.integers(0, 24)),  # exact powers of two: many ties
    st.tuples(st.integers(2**30, 2**31 - 1), st.integers(45, 56)),
    st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 62)),
)
ENDING = st.sampled_from([(-128, -128, 127), (5, -128, 127), (0, -(2**15), 2**15 - 1)])
"""Zero point, low, high."""


def shorts(rng: Rng, *shape: int) -> Int16:
    """Return int16 values: anything, small ones, or extremes only."""
    ends = np.array([-(2**15), 1 - 2**15, -1, 0, 1, 2**15 - 1], np.int16)
    kind = rng.integers(0, 3)
    if kind == 0:
        return rng.choice(ends, shape)
    return rng.integers(-300, 300, shape).astype(np.int16) if kind == 1 else any_short(rng, *shape)


def any_short(rng: Rng, *shape: int) -> Int16:
    return rng.integers(-(2**15), 2**15, shape).astype(np.int16)


def functions(rng: Rng, count: int) -> Int16:
    """Return tables: the usual ones, or any."""
    if rng.integers(0, 2):
        return np.stack([shorts(rng, INTERPOLATION_ENTRIES) for _ in range(count)])
    return np.stack([knots(kind, 2**-12) for kind in ("sigmoid", "tanh", "tanh")[:count]])


# -- three executions of one law -----------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(SIDE, SIDE, st.integers(0, 15), st.booleans(), st.none() | st.integers(0, 30), LIMIT, PAIR, ENDING, MODE, SEED)
def test_lstm(
    batch: int,
    hidden: int,
    bits: int,
    coupled: bool,
    look: int | None,
    limit: int,
    pair: tuple[int, int],
    ending: tuple[int, int, int],
    mode: Rounding,
    seed: int,
) -> None:
    """Kernel, numpy and law agree in every bit, the new cell in place or not."""
    rng = np.random.default_rng(seed)
    x, r, cell = shorts(rng, batch, 4 * hidden), shorts(rng, batch, 4 * hidden), shorts(rng, batch, hidden)
    tables, zero, low, high = functions(rng, 3), *ending
    peepholes = np.zeros((3, hidden), np.int16) if look is None else shorts(rng, 3, hidden)
    shift = look or 0
    new, wide = exact.lstm_cell(x, r, cell, tables, bits, coupled, limit, mode, peepholes, shift)
    shown = exact.rescale(wide, *pair, zero, mode, low, high)
    for b in range(batch):
        for n in range(hidden):
            law, product = cell_law.lstm_cell(
                x[b, n::hidden].tolist(),
                r[b, n::hidden].tolist(),
                int(cell[b, n]),
                tables.tolist(),
                bits,
                coupled,
                limit,
                mode,
                peepholes[:, n].tolist(),
                shift,
            )
            assert (law, product) == (new[b, n], wide[b, n])
            assert numerics.rescale(product, *pair, zero, mode, low, high) == shown[b, n]
    for out in (np.empty_like(cell), cell):
        y = np.empty((batch, hidden), np.int16)
        looks = peepholes if look is not None else np.zeros((3, 0), np.int16)
        law_of = (bits, int(coupled), shift, limit, (*pair, zero, low, high, mode))
        lstm_cell(x, r, cell, tables, looks, out, y, np.empty((4, hidden), np.int32), *law_of)
        np.testing.assert_array_equal(out, new)
        np.testing.assert_array_equal(y, shown)


@settings(max_examples=200, deadline=None)
@given(SIDE, SIDE, st.booleans(), LIMIT, PAIR, ENDING, MODE, SEED)
def test_gru(
    batch: int,
    hidden: int,
    after: bool,
    limit: int,
    pair: tuple[int, int],
    ending: tuple[int, int, int],
    mode: Rounding,
    seed: int,
) -> None:
    """Kernels, numpy and law agree in every bit, in whole steps and in those of two phases."""
    rng = np.random.default_rng(seed)
    x, r, state = shorts(rng, batch, 3 * hidden), shorts(rng, batch, 3 * hidden), shorts(rng, batch, hidden)
    tables, zero, low, high = functions(rng, 2), *ending
    reset = slice(hidden, 2 * hidden)
    wide = exact.gru_reset(x[:, reset], r[:, reset], state, tables[0], limit, mode)
    new = exact.gru_cell(x, r, state, tables, after, limit, mode)
    kept = exact.rescale(wide, *pair, zero, mode, low, high)
    shown = exact.rescale(new << 15, *pair, zero, mode, low, high)
    for b in range(batch):
        for n in range(hidden):
            parts, recurrent, old = x[b, n::hidden].tolist(), r[b, n::hidden].tolist(), int(state[b, n])
            law = cell_law.gru_cell(parts, recurrent, old, tables.tolist(), after, limit, mode)
            product = cell_law.gru_reset(parts[1], recurrent[1], old, tables[0].tolist(), limit, mode)
            assert (law, product) == (new[b, n], wide[b, n])
            assert numerics.rescale(product, *pair, zero, mode, low, high) == kept[b, n]
            assert numerics.rescale(law << 15, *pair, zero, mode, low, high) == shown[b, n]
    law_of = (limit, (*pair, zero, low, high, mode))
    y = np.empty((batch, hidden), np.int16)
    gru_reset(x, r, state, tables, y, *law_of)
    np.testing.assert_array_equal(y, kept)
    for out in (np.empty_like(state), state):
        gru_cell(x, r, state, tables, out, y, int(after), *law_of)
        np.testing.assert_array_equal(out, new)
        np.testing.assert_array_equal(y, shown)


SHORT = st.integers(-(2**15), 2**15 - 1) | st.sampled_from([-(2**15), -1, 0, 1, 2**14, 2**15 - 1])


def clamp(value: int, limit: int = 2**15 - 1, low: int = -(2**15)) -> int:
    return min(max(value, low), limit)


@settings(max_examples=300, deadline=None)
@given(st.lists(SHORT, min_size=10, max_size=10), st.integers(0, 15), st.integers(0, 30), LIMIT, MODE)
def test_every_expression_is_rounded_once(q: list[int], bits: int, shift: int, limit: int, mode: Rounding) -> None:
    """The law's gate, cell and states are the exact real values, rounded once, with constant functions at hand."""
    x, r, c, w = q[:4]
    seen = clamp(nearest(x + r + Fraction(w * c, 2**shift), mode), limit, -limit)
    assert cell_law.gate(x, r, limit, mode, w, c, shift) == seen
    f, g, h = ([value] * INTERPOLATION_ENTRIES for value in q[4:7])
    i_real, g_real = Fraction(f[0], 2**15), Fraction(g[0], 2**15)
    for coupled in (False, True):
        new, hidden = cell_law.lstm_cell(q[:4], q[4:8], c, (f, g, h), bits, coupled, limit, mode)
        kept = 1 - i_real if coupled else i_real
        assert new == clamp(nearest(kept * c + i_real * g_real * 2**bits, mode))
        assert hidden == f[0] * h[0]
    state = clamp(nearest((1 - i_real) * g[0] + i_real * c, mode))
    assert cell_law.gru_cell(q[:3], q[3:6], c, (f, g), True, limit, mode) == state


def test_the_law_refuses_other_cells() -> None:
    """A cell has 0 to 15 fractional bits."""
    table = [0] * INTERPOLATION_ENTRIES
    for bits in (-1, 16):
        with pytest.raises(ValueError, match="fractional bits"):
            cell_law.lstm_cell([0] * 4, [0] * 4, 0, [table] * 3, bits, False, 32767, Rounding.HALF_EVEN)


# -- close to what it stands for -----------------------------------------------------------------------------------

UNIT = 2.0**-15


def real(rng: Rng, *shape: int) -> tuple[Int16, Array]:
    """Return pre-activation parts in Q3.12 within about -2..2, and what they stand for."""
    q = rng.normal(0, 3000, shape).astype(np.int16)
    return q, q / 4096


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("bits", [9, 12, 14])
def test_lstm_stands_for_the_formula(bits: int, coupled: bool) -> None:
    """Sixty steps with peepholes and a clip stay within a few steps of ONNX's float formula."""
    rng, hidden, limit = np.random.default_rng(bits), 64, 2.5
    tables = np.stack([knots("sigmoid", 2**-12), knots("tanh", 2**-12), knots("tanh", 2.0 ** -max(bits, 12))])
    weights = rng.integers(-(2**14), 2**14, (3, hidden)).astype(np.int16)
    p, shift = weights * 2.0**-15, 15 + bits - 12
    cell, c = np.zeros((1, hidden), np.int64), np.zeros((1, hidden))
    sigmoid, tanh = FUNCTIONS["sigmoid"], np.tanh
    for _ in range(60):
        (x, a), (r, b) = real(rng, 1, 4 * hidden), real(rng, 1, 4 * hidden)
        cell, wide = exact.lstm_cell(
            x, r, cell, tables, bits, coupled, int(limit * 4096), Rounding.HALF_EVEN, weights, shift
        )
        i, o, f, g = np.split(a + b, 4, -1)
        i = sigmoid(np.clip(i + p[0] * c, -limit, limit))
        f = 1 - i if coupled else sigmoid(np.clip(f + p[2] * c, -limit, limit))
        c = f * c + i * tanh(np.clip(g, -limit, limit))
        h = sigmoid(np.clip(o + p[1] * c, -limit, limit)) * tanh(c)
        assert np.abs(cell * 2.0**-bits - c).max() < 2.0**-bits * 3 + 2e-3
        assert np.abs(wide * UNIT**2 - h).max() < 2.0**-bits * 3 + 2e-3


@pytest.mark.parametrize("after", [False, True])
def test_gru_stands_for_the_formula(after: bool) -> None:
    """Sixty steps stay within a thousandth of ONNX's float formula."""
    rng, hidden = np.random.default_rng(int(after)), 64
    tables = np.stack([knots("sigmoid", 2**-12), knots("tanh", 2**-12)])
    state, s = np.zeros((1, hidden), np.int64), np.zeros((1, hidden))
    for _ in range(60):
        (x, a), (r, b) = real(rng, 1, 3 * hidden), real(rng, 1, 3 * hidden)
        reset = slice(hidden, 2 * hidden)
        wide = exact.gru_reset(x[:, reset], r[:, reset], state, tables[0], 32767, Rounding.HALF_EVEN)
        state = exact.gru_cell(x, r, state, tables, after, 32767, Rounding.HALF_EVEN)
        (a_z, a_r, a_h), (b_z, b_r, b_h) = np.split(a, 3, -1), np.split(b, 3, -1)
        z, gate = (FUNCTIONS["sigmoid"](v) for v in (a_z + b_z, a_r + b_r))
        assert np.abs(wide * UNIT**2 - gate * s).max() < 1e-3
        s = (1 - z) * np.tanh(a_h + (gate * b_h if after else b_h)) + z * s
        assert np.abs(state * UNIT - s).max() < 1e-3


@pytest.mark.parametrize(
    ("kind", "params", "error"),
    [
        ("sigmoid", (), 2),
        ("tanh", (), 4),
        ("softsign", (), 9),
        ("hard_sigmoid", (0.2, 0.5), 2),
        ("hard_sigmoid", (0.3, 0.5), 70),  # its corners lie between knots
    ],
)
@pytest.mark.parametrize("step", [2.0**-12, 2.0**-15])
def test_knots_stand_for_the_function(kind: str, params: tuple[float, ...], error: int, step: float) -> None:
    """Interpolated, a table is within a few steps of 2**-15 of its function."""
    x = np.arange(-(2**15), 2**15)
    got = exact.interpolate(x, knots(kind, step, params), Rounding.HALF_EVEN)
    true = np.minimum(FUNCTIONS[kind](x * step, *params) * 2**15, 2**15 - 1)
    assert np.abs(got - true).max() < error


# -- instructions --------------------------------------------------------------------------------------------------

BATCH, HIDDEN = 2, 3
TABLES, PEEPHOLES = 0, 6 * INTERPOLATION_ENTRIES
IMAGE = PEEPHOLES + 6 * HIDDEN
LOAD, COPY, LSTM, WHOLE, RESET, FINISH, OUT = range(7)
"""Where `cells` has its instructions."""
GATES, RECURRENT, CELL, STATE, TARGETS = 0, 48, 96, 108, 120
"""Where the scratchpad of `cells` has its operands."""


def cells() -> Program:
    """Return a program by hand with every form of a recurrent cell, states in place; 128 input bytes at dram[4096]."""
    rng = np.random.default_rng(3)
    image = np.zeros(IMAGE, np.uint8)
    tables = np.stack([knots("sigmoid", 2**-12), knots("tanh", 2**-12), knots("tanh", 2**-13)])
    image[TABLES:PEEPHOLES] = tables.reshape(-1).view(np.uint8)
    image[PEEPHOLES:] = any_short(rng, 3 * HIDDEN).view(np.uint8)
    common: dict[str, Any] = {
        "gates": GATES,
        "recurrent": RECURRENT,
        "batch": BATCH,
        "hidden": HIDDEN,
        "tables": TABLES,
        "clip": 32767,
        "multiplier": 1 << 30,
        "shift": 53,
        "out_zero": -3,
        "out_bits": 8,
    }
    gru = common | {"state": STATE, "state_out": STATE}
    wide = {"out_bits": 16, "out_zero": 0, "shift": 45}
    lstm: dict[str, Any] = {"cell_bits": 13, "coupled": 0, "peepholes": 1, "peephole_shift": 16}
    flat: dict[str, Any] = {"source_strides": (0,) * 5 + (1,), "target_strides": (0,) * 5 + (1,)}
    code = scheduled(
        [
            isa.Load(space=2, source=0, source_bytes=IMAGE, target=0, target_bytes=IMAGE, packer=0),
            isa.Copy(source_space=2, source=4096, target_space=0, target=0, shape=(1,) * 5 + (128,), **flat),
            isa.Lstm(cell=CELL, cell_out=CELL, target=TARGETS, **lstm, **common),
            isa.Gru(phase=0, target=TARGETS + 6, **gru),
            isa.Gru(phase=1, target=TARGETS + 12, **gru),
            isa.Gru(phase=2, target=TARGETS + 18, **gru | wide),
            isa.Copy(source_space=0, source=TARGETS, target_space=2, target=6000, shape=(1,) * 5 + (30,), **flat),
        ]
    )
    quant = Quant(2.0**-7)
    x = Tensor("x", TensorType((128,), "int8", quant), None, Space.DRAM, 4096, -1)
    y = Tensor("y", TensorType((30,), "int8", quant), None, Space.DRAM, 6000, OUT)
    return Program(
        name="cells",
        target=load_target("nna8"),
        instructions=code,
        constants=image,
        tensors=(x, y),
        inputs=("x",),
        outputs=("y",),
        layers=(Layer("cells", "LSTM", ((0, 7),), ("x",), "y", 0, 0),),
        used={Space.SRAM: 256, Space.WEIGHTS: 4096, Space.DRAM: 6144},
        lower_bound=150,
        calibration="random",
        known_answer=KnownAnswer(0, {}),
    )


def changed(index: int, **values: Any) -> Program:
    """Return the legal program with other values in the fields of one instruction."""
    program = cells()
    code = list(program.instructions)
    code[index] = altered(code[index], **values)
    return replace(program, instructions=tuple(code))


def test_emulator_follows_the_law() -> None:
    """What the instructions leave in memory is what numpy makes of the same bytes."""
    program = validate(cells())
    x = np.random.default_rng(5).integers(-128, 128, 128).astype(np.int8)
    got = Emulator(program).run({"x": x})["y"]
    mode = program.target.arithmetic.mode
    sram = x[:120].view(np.int16).astype(np.int64)
    image = program.constants[TABLES:].view(np.int16)
    tables, peepholes = image[: 3 * INTERPOLATION_ENTRIES].reshape(3, -1), image[3 * INTERPOLATION_ENTRIES :]
    gates, recurrent = sram[:24].reshape(BATCH, -1), sram[24:48].reshape(BATCH, -1)
    cell, state = sram[48:54].reshape(BATCH, -1), sram[54:60].reshape(BATCH, -1)
    _, wide = exact.lstm_cell(gates, recurrent, cell, tables, 13, False, 32767, mode, peepholes.reshape(3, HIDDEN), 16)
    gates, recurrent = sram[:18].reshape(BATCH, -1), sram[24:42].reshape(BATCH, -1)
    first = exact.gru_cell(gates, recurrent, state, tables, True, 32767, mode)
    reset = slice(HIDDEN, 2 * HIDDEN)
    kept = exact.gru_reset(gates[:, reset], recurrent[:, reset], first, tables[0], 32767, mode)
    last = exact.gru_cell(gates, recurrent, first, tables, False, 32767, mode)
    for n, value in enumerate((wide, first << 15, kept)):
        expected = exact.rescale(value, 1 << 30, 53, -3, mode)
        np.testing.assert_array_equal(got[6 * n : 6 * n + 6], expected.reshape(-1))
    np.testing.assert_array_equal(got[18:].view(np.int16), last.reshape(-1))


BOTH = (LSTM, WHOLE, RESET, FINISH)
BROKEN: list[tuple[int, dict[str, Any], str]] = [
    *((k, {name: 0}, "at least 1") for k in BOTH for name in ("batch", "hidden", "clip")),
    *((k, {"clip": -5}, "at least 1") for k in BOTH),
    *((k, {"shift": 63}, "the shift at most 62") for k in BOTH),
    *((k, {"multiplier": 1 << 31}, "the multiplier is under 2**31") for k in BOTH),
    *((k, {"out_bits": bits}, "8 or 16 bits") for k in BOTH for bits in (0, 7, 32)),
    *((k, {"out_zero": 128, "out_bits": 8}, "the zero point fits int8") for k in BOTH),
    *((k, {"out_zero": 1, "out_bits": 16}, "it is 0 for int16") for k in BOTH),
    *((k, {name: 65}, "even addresses") for k in BOTH for name in ("gates", "recurrent", "tables")),
    *((LSTM, {name: 97}, "even addresses (found cell") for name in ("cell", "cell_out")),
    *((k, {name: 109}, "even addresses (found state") for k in BOTH[1:] for name in ("state", "state_out")),
    *((k, {"target": 151, "out_bits": 16, "out_zero": 0}, "at an even address") for k in BOTH),
    (LSTM, {"cell_bits": 16}, "at most 15 fractional bits"),
    (LSTM, {"peephole_shift": 31}, "shift is at most 30"),
    (LSTM, {"coupled": 2}, "these are 0 or 1"),
    (LSTM, {"peepholes": 2}, "these are 0 or 1"),
    (WHOLE, {"phase": 3}, "the phase is"),
    (LSTM, {"target": CELL}, "cell_out and target share no bytes"),
    (LSTM, {"cell_out": TARGETS + 4}, "cell_out and target share no bytes"),
    (WHOLE, {"target": STATE + 11}, "state_out and target share no bytes"),
    (FINISH, {"state_out": TARGETS + 28}, "state_out and target share no bytes"),
    (LSTM, {"cell_out": CELL + 2}, "which overlap"),
    (LSTM, {"cell_out": 200, "target": CELL}, "which overlap"),
    (LSTM, {"target": RECURRENT}, "which overlap"),
    (LSTM, {"cell": GATES, "cell_out": GATES}, "which overlap"),
    (WHOLE, {"state_out": STATE - 2}, "which overlap"),
    (RESET, {"target": STATE}, "which overlap"),
    (RESET, {"target": GATES}, "which overlap"),
    (FINISH, {"target": RECURRENT + 34}, "which overlap"),
    (LSTM, {"gates": 256 - 46}, "reads bytes 0xd2 to 0x102 of sram"),
    (WHOLE, {"recurrent": 256 - 34}, "reads bytes 0xde to 0x102 of sram"),
    (LSTM, {"cell_out": 246}, "writes bytes 0xf6 to 0x102 of sram"),
    (FINISH, {"target": 246}, "writes bytes 0xf6 to 0x102 of sram"),
    (LSTM, {"tables": TABLES + 2}, "which no Load has filled"),
    (LSTM, {"tables": 4096 - 6 * INTERPOLATION_ENTRIES}, "of weights, used 0x1000"),
    (WHOLE, {"tables": IMAGE - 4 * INTERPOLATION_ENTRIES + 2}, "which no Load has filled"),
    (RESET, {"batch": 2**32 - 1, "hidden": 2**32 - 1}, "reads bytes"),
]


@pytest.mark.parametrize(("index", "values", "words"), BROKEN, ids=range(len(BROKEN)))
def test_broken_cell_is_named(index: int, values: dict[str, Any], words: str) -> None:
    """One wrong value: the instruction is named with what it breaks."""
    program = changed(index, **values)
    refuse(program, f"instruction {index} ({type(program.instructions[index]).__name__}): ", words)


FINE: list[tuple[int, dict[str, Any]]] = [
    (LSTM, {}),
    (LSTM, {"cell_out": 200, "coupled": 1, "cell_bits": 0}),
    (LSTM, {"cell_out": 200, "target": CELL + 12 + 36, "cell_bits": 15, "peephole_shift": 30}),
    (LSTM, {"peepholes": 0, "tables": TABLES + 18, "clip": 1}),
    (LSTM, {"batch": 1, "hidden": 1, "out_bits": 16, "out_zero": 0}),
    (WHOLE, {"state_out": 200, "multiplier": 2**31 - 1, "shift": 0}),
    (RESET, {"state_out": TARGETS + 12, "out_zero": 127}),
    (RESET, {"state_out": GATES}),
    (FINISH, {"target": 244, "shift": 62, "clip": 4096}),
    (FINISH, {"tables": IMAGE - 4 * INTERPOLATION_ENTRIES}),
]


@pytest.mark.parametrize(("index", "values"), FINE, ids=range(len(FINE)))
def test_cells_keep_to_their_bytes(index: int, values: dict[str, Any]) -> None:
    """What is legal depends on its declared bytes and changes no others."""
    program = changed(index, **values)
    code = scheduled([replace(i, waits=(0,) * len(isa.Engine)) for i in program.instructions])
    run_guarded(validate(with_code(program, code)), seed=index)


@st.composite
def mutations(draw: st.DrawFn) -> Program:
    """Return the program with one or two field entries of its cells changed."""
    code = list(cells().instructions)
    for _ in range(draw(st.integers(1, 2))):
        index = draw(st.sampled_from(BOTH))
        code[index] = mutated(draw, code[index])
    return replace(cells(), instructions=tuple(code))


@settings(max_examples=200, deadline=None)
@given(mutations(), SEED)
def test_mutated_cells_are_refused_or_harmless(program: Program, seed: int) -> None:
    """The fence lets no cell through that leaves its bytes; every reader survives what it lets through."""
    try:
        validate(program, SMALL)
    except ProgramError as error:
        assert "instruction " in str(error)
        return
    run_guarded(program, seed)
    assert simulate(program).cycles >= 1
    assert all(line.isprintable() for line in disassemble(program))


@pytest.mark.parametrize(
    ("index", "values", "passes"),
    [
        (LSTM, {"peepholes": 0}, 8),
        (LSTM, {}, 11),
        (LSTM, {"peepholes": 0, "coupled": 1}, 7),
        (WHOLE, {}, 6),
        (RESET, {}, 2),
        (FINISH, {}, 4),
    ],
)
def test_a_cell_takes_its_passes(index: int, values: dict[str, Any], passes: int) -> None:
    """Tables and products over the units, two lanes each."""
    program = changed(index, **values | {"batch": 3, "hidden": 50})
    target = program.target
    assert work_cycles(program.instructions[index], target) == passes * -(-300 // target.vector.lanes)


def test_cells_as_text() -> None:
    """A line names what is written, what is read and all attributes."""
    lstm, whole, reset, _ = (operands(cells().instructions[k]) for k in BOTH)
    assert lstm == (
        "sram[0x78] int8 2x3 <- gates sram[0x0] recurrent sram[0x30], cell sram[0x60] <- sram[0x60] bits 13, "
        "tables weights[0x0], clip 32767, times 1073741824 shift 53, zero -3, peepholes shift 16"
    )
    assert whole.startswith("whole sram[0x7e] int8 2x3 <- gates sram[0x0] recurrent sram[0x30], state sram[0x6c] <- ")
    assert "state sram[0x6c], tables" in reset and reset.startswith("reset sram[0x84]")
    coupled = operands(changed(LSTM, coupled=1, peepholes=0).instructions[LSTM])
    assert coupled.endswith("zero -3, coupled")


def test_every_field_shows_in_the_text() -> None:
    """Two cells that differ in a field that matters to values give different text."""
    for index in BOTH:
        i = cells().instructions[index]
        for f in fields(i):
            if f.name in ("waits", "phase") or (index == RESET and f.name == "state_out"):
                continue
            other = altered(i, **{f.name: getattr(i, f.name) ^ 1})
            assert operands(other) != operands(i), f.name


def test_the_account_knows_the_tables() -> None:
    """Tables of cells, with their peepholes, count as tables of functions."""
    assert blob_account(cells(), (), 10_000).functions == IMAGE
