"""Every operator of the registry on random legal samples: its reference, and the emulator on its instructions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnac import reference, stages
from nnac.emulator import Emulator
from nnac.errors import CapacityError
from nnac.ops import REGISTRY, Conv, Dense, Op, conv
from nnac.passes.emit import emit
from nnac.passes.place import place
from nnac.passes.tile import tile
from nnac.program import KnownAnswer
from nnac.targets import load_target
from tests.graphs import graph_of, random_inputs, with_memory

ROUNDINGS = ("half_even", "half_up", "half_away", "tflite", "onnx")


@pytest.mark.parametrize("op", REGISTRY, ids=lambda op: op.name)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_emulator_equals_reference(op: type[Op], seed: int) -> None:
    """Lowered into a tight scratchpad (stripes, spills, staged constants), an operator keeps every bit."""
    rng = np.random.default_rng(seed)
    graph = graph_of(op.sample(rng))
    base = load_target(str(rng.choice(["nna8", "nna8-tiny"])))
    law = replace(
        base.arithmetic,
        rounding=str(rng.choice(ROUNDINGS)),
        accumulator_bits=int(rng.choice([32, 32, 20, 16])),
        accumulator_overflow=str(rng.choice(["wrap", "saturate"])),
    )
    target = replace(with_memory(base, weights=int(rng.choice([6144, 16384]))), arithmetic=law)
    stages.check(graph, stages.INTEGER)
    budget = int(2 ** rng.uniform(4, 14))
    try:
        program = emit(place(tile(graph, target, budget)), "test", KnownAnswer(0, {}))
    except CapacityError:
        program = emit(place(tile(graph, target, target.memory["sram"].bytes)), "test", KnownAnswer(0, {}))
    inputs = random_inputs(graph, rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "IN_CACHE", int(rng.choice([1, 40, conv.IN_CACHE])))
        expected = reference.run(graph, inputs, law)
    found = Emulator(program).trace(inputs)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=f"{graph.nodes[0].op}: {name}")


@pytest.mark.parametrize("reach", [255, 65535])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_deep_sums_are_exact(reach: int, seed: int) -> None:
    """Sums beyond what float32 holds, of the largest products and of any, are those of integers."""
    rng = np.random.default_rng(seed)
    low, depth = int(rng.choice([-reach, reach])), int(rng.integers(400, 5000))
    x, w = rng.integers(low, reach + 1, (2, depth)), rng.choice([-127, 127], (3, depth))
    w = (np.abs(w) if rng.random() < 0.5 else w).astype(np.int8)
    np.testing.assert_array_equal(Dense().sums(x, w, (2, 3)), x @ w.astype(np.int64).T)
    side = int(rng.integers(20, 30))
    x, w = rng.integers(low, reach + 1, (1, side, side, 2)), rng.integers(100, 128, (2, side, side, 1)).astype(np.int8)
    found = Conv(groups=2).sums(x, w, (1, 1, 1, 2))
    np.testing.assert_array_equal(found.ravel(), (x[0] * w[..., 0].transpose(1, 2, 0)).sum(axis=(0, 1)))
