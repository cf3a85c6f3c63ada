"""Roots of sums of squares: the law against exact numbers, what executes against the law, and where they are found."""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnac
from nnac import numerics
from nnac.compiler import diff, float_graph
from nnac.frontend import prepare
from nnac.kernels import elementwise, wide
from nnac.numerics import ROOT_FRACTION, SQUARES_LIMIT, Rounding
from nnac.ops import Magnitude, exact
from tests.nets import net

SQUARES = st.one_of(
    st.integers(0, SQUARES_LIMIT - 1),
    st.integers(0, isqrt(SQUARES_LIMIT - 1)).map(lambda n: n * n),
    st.integers(1, isqrt(SQUARES_LIMIT - 1)).map(lambda n: n * n - 1),
)
PAIR = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 62))


@settings(max_examples=300, deadline=None)
@given(
    squares=st.lists(SQUARES, min_size=1, max_size=8), pair=PAIR, mode=st.sampled_from(Rounding), narrow=st.booleans()
)
def test_all_executions_follow_the_law(squares: list[int], pair: tuple[int, int], mode: Rounding, narrow: bool) -> None:
    """Reference and kernels of both widths, value by value; squares and their neighbours come often."""
    limits = (-128, 127) if narrow else (-(1 << 15), (1 << 15) - 1)
    zero = -128 if narrow else 0
    law = [numerics.magnitude([], n, *pair, zero, mode, *limits) for n in squares]
    acc = np.array(squares, np.int64)
    assert exact.magnitude(acc, *pair, zero, mode, *limits).tolist() == law
    found = np.empty((1, 1, 1, len(squares)), np.int8 if narrow else np.int16)
    (elementwise if narrow else wide).root(acc.reshape(found.shape), found, (*pair, zero, *limits, int(mode)))
    assert found.ravel().tolist() == law


@given(values=st.lists(st.integers(-(1 << 15), (1 << 15) - 1), min_size=1, max_size=16))
def test_the_law_is_the_root(values: list[int]) -> None:
    """Within half a step of the exact root, up to the fraction that is cut off."""
    found = numerics.magnitude(values, 0, 1, ROOT_FRACTION, 0, Rounding.HALF_EVEN, 0, 1 << 18)
    total = sum(value * value for value in values)
    assert max(2 * found - 1, 0) ** 2 <= 4 * total  # found - 1/2 <= root
    assert 4 * total <= (2 * found + 1 + 2**-10) ** 2


def test_the_law_refuses_more() -> None:
    with pytest.raises(ValueError, match="the sum of squares"):
        numerics.magnitude([1 << 15] * 16, SQUARES_LIMIT, 1, 0, 0, Rounding.HALF_EVEN)


FORMS = {
    "pow": ("p = Pow (x, two)\nq = Pow (z, two)\ns = Add (p, q)\ny = Sqrt (s)", 0.0),
    "mul": ("p = Mul (x, x)\nq = Mul (z, z)\ns = Add (p, q)\ny = Sqrt (s)", 0.0),
    "with a constant": ("p = Pow (x, two)\nq = Mul (z, z)\ns = Add (p, q)\nt = Add (s, e)\ny = Sqrt (t)", 0.25),
}
OTHERS = {
    "difference": "p = Pow (x, two)\nq = Pow (z, two)\ns = Sub (p, q)\ny = Sqrt (s)",
    "cube": "p = Pow (x, two)\nq = Pow (z, three)\ns = Add (p, q)\ny = Sqrt (s)",
    "product": "p = Mul (x, z)\nq = Mul (z, z)\ns = Add (p, q)\ny = Sqrt (s)",
}
SHAPES = {"x": (1, 4, 5, 6), "z": (1, 4, 5, 6)}
NUMBERS: dict[str, Any] = {"two": np.float32(2), "three": np.float32(3), "e": np.float32(0.25)}


@pytest.mark.parametrize("form", FORMS)
def test_magnitudes_are_found(form: str) -> None:
    """Whatever the squares are written as; the offset comes along."""
    text, offset = FORMS[form]
    model = net(text, SHAPES, **{name: v for name, v in NUMBERS.items() if f"{name})" in text})
    assert [node.op for node in float_graph(prepare(model)).nodes] == [Magnitude(offset=offset)]


@pytest.mark.parametrize("form", OTHERS)
def test_what_is_no_magnitude_stays(form: str) -> None:
    model = net(OTHERS[form], SHAPES, **{name: v for name, v in NUMBERS.items() if f"{name})" in OTHERS[form]})
    assert not any(isinstance(node.op, Magnitude) for node in float_graph(prepare(model)).nodes)


@pytest.mark.parametrize(("activations", "least"), [("int8", 40.0), ("int16", 84.0)])
def test_quiet_places_keep_their_magnitude(activations: str, least: float) -> None:
    """Where one frequency is ten times louder than the others: 41.9 and 85.8 dB from float.

    With squares as tensors of their own it would be 21.6 and 28.9 dB (seen).
    """
    rng = np.random.default_rng(0)
    loud = np.where(np.arange(6) == 0, 1.0, 0.1)
    samples = [{name: (rng.normal(size=shape) * loud).astype(np.float32) for name, shape in SHAPES.items()}] * 3
    model = net(FORMS["pow"][0], SHAPES, two=NUMBERS["two"])
    compiled = nnac.compile(model, "nna8", samples, activations=activations, check=True)
    assert diff(model, compiled, samples).outputs()["y"] > least
