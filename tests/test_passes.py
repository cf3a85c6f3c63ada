"""Rules of single passes on graphs made by hand (whole nets are in test_compiler.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import nnac
from nnac import reference, stages
from nnac.calibration import Range
from nnac.contracts import WIDE_TAPS
from nnac.emulator import Emulator
from nnac.errors import CapacityError, ModelError, TargetError
from nnac.graph import Draft, Graph, Node, Origin, Value, sort_nodes
from nnac.isa import Space
from nnac.ops import Activation, AveragePool, Concat, Dense, MaxPool, Pad, Sum
from nnac.ops.base import random_quant
from nnac.ops.conv import mac_sample
from nnac.passes.emit import emit
from nnac.passes.legalize import legalize
from nnac.passes.order import order
from nnac.passes.place import _Item as Item
from nnac.passes.place import allocate, lower_bound, place
from nnac.passes.quantize import activation_quant, quantize, weight_scales
from nnac.passes.tile import tile
from nnac.program import KnownAnswer
from nnac.targets import load_target
from nnac.types import Quant, TensorType
from tests.graphs import graph_of, random_inputs, with_memory
from tests.nets import net

NNA8 = load_target("nna8")


def pool_graph(op: AveragePool | MaxPool, shape: tuple[int, ...]) -> Graph:
    """Return an integer graph of one pool."""
    quant = random_quant(np.random.default_rng(1))
    values = {
        "x": Value("x", TensorType(shape, "int8", quant), Origin("x")),
        "y": Value("y", TensorType(op.infer([shape]), "int8", quant), Origin("y")),
    }
    return Graph("pool", (Node("pool", op, ("x",), "y"),), values, {}, ("x",), ("y",))


def test_a_known_graph_is_not_checked_again_but_what_changed_is() -> None:
    """Another value, another operator: both are seen, though the graph they replace was legal."""
    graph = stages.check(pool_graph(MaxPool((3, 3)), (1, 9, 9, 4)), stages.INTEGER)
    assert stages.check(graph.draft().freeze(), stages.INTEGER, known=graph).nodes == graph.nodes
    wide = replace(graph.values["y"], type=replace(graph.values["y"].type, shape=(1, 9, 9, 4)))
    changes: list[Callable[[Draft], object]] = [
        lambda draft: draft.values.update(y=wide),
        lambda draft: draft.update(draft.nodes["pool"], op=MaxPool((4, 4))),
    ]
    for change in changes:
        change(draft := graph.draft())
        with pytest.raises(ModelError, match="makes shape"):
            stages.check(draft.freeze(), stages.INTEGER, known=graph)


@pytest.mark.parametrize("op", [AveragePool((9, 9)), MaxPool((9, 9))], ids=["average", "max"])
def test_legalize_splits_a_pool_that_does_not_fit(op: AveragePool | MaxPool) -> None:
    """A global pool larger than the scratchpad works on slices of channels, with the same bits."""
    target = with_memory(NNA8, sram=4096)
    graph = pool_graph(op, (1, 9, 9, 64))
    legal = stages.check(legalize(graph, target), stages.INTEGER)
    assert any(isinstance(node.op, Concat) for node in legal.nodes)
    inputs = random_inputs(graph, np.random.default_rng(2))
    expected = reference.run(graph, inputs, target.arithmetic)["y"]
    np.testing.assert_array_equal(reference.run(legal, inputs, target.arithmetic)["y"], expected)
    program = emit(place(tile(legal, target, 4096)), "test", KnownAnswer(0, {}))
    assert program.used[Space.SRAM] <= 4096
    np.testing.assert_array_equal(Emulator(program).run(inputs)["y"], expected)


def test_legalize_leaves_what_fits() -> None:
    """A pool that fits is not touched."""
    graph = pool_graph(AveragePool((9, 9)), (1, 9, 9, 64))
    assert legalize(graph, NNA8).nodes == graph.nodes


def test_long_sums_of_16_bits_are_refused() -> None:
    """A layer of 16-bit activations names itself where an output has more weights than the kernels sum exactly."""
    quant, depth = Quant(2.0**-8, 0, 16), WIDE_TAPS
    kind = TensorType((1, depth), "int16", quant)
    sample = mac_sample(Dense(), kind, (1, depth), np.random.default_rng(0))
    with pytest.raises(ModelError, match=r"node 'node' .Dense.: 131,072 weights .* int8 activations"):
        legalize(graph_of(sample), NNA8)


def test_capacity_error_names_node_tensor_and_figures() -> None:
    """What cannot be tiled enough says required, available, excess, and which tensor."""
    graph = pool_graph(MaxPool((2, 2)), (1, 2, 5000, 4))
    with pytest.raises(CapacityError, match=r"node 'pool'.*'x' of 40,000 bytes: required .* available 1,024, excess"):
        tile(graph, NNA8, 1024)


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 6.0), (-3.0, 0.0), (-1e-20, 1e-20), (0.0, 0.0), (-5.0, 1e6)])
@pytest.mark.parametrize("power", [False, True])
def test_activation_quant_covers_the_range(low: float, high: float, power: bool) -> None:
    """Zero is exact, the scale legal, and both ends lie within half a step of what int8 can say."""
    quant = activation_quant(low, high, power)
    reach = quant.dequantize(np.array([-128, 127], np.int8)).astype(np.float64)
    assert quant.dequantize(np.array([quant.zero_point], np.int8))[0] == 0.0
    assert reach[0] <= low + 0.51 * quant.scale and reach[1] >= high - 0.51 * quant.scale
    assert not power or np.log2(quant.scale) == int(np.log2(quant.scale))


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 6.0), (-3.0, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("power", [False, True])
def test_activation_quant_of_16_bits_is_symmetric(low: float, high: float, power: bool) -> None:
    """The larger end lies within the range, at its end unless scales are powers of two."""
    quant, peak = activation_quant(low, high, power, 16), max(-low, high)
    assert (quant.zero_point, quant.bits, quant.dtype) == (0, 16, "int16")
    assert quant.scale * 32767 >= peak * (1 - 2**-23)
    assert peak == 0 or quant.scale * 32767 <= peak * (2 if power else 1 + 2**-23)
    assert not power or np.log2(quant.scale) == int(np.log2(quant.scale))


def test_weight_scale_grows_for_a_large_bias() -> None:
    """A bias beyond 30 bits in units of the product's scale enlarges its channel's weight scale."""
    scale = weight_scales(np.full((2, 3), 1e-6), np.array([1e3, 0.0]), 0.01, NNA8.arithmetic)
    assert abs(1e3 / (scale[0] * 0.01)) <= 2**30 * 1.001
    assert scale[1] == np.float32(1e-6 / 127)


def test_quantize_wants_a_range() -> None:
    """A tensor without a calibrated range is an error that names it."""
    values = {n: Value(n, TensorType((2,)), Origin(n)) for n in "xy"}
    graph = Graph("g", (Node("n", Activation("relu"), ("x",), "y"),), values, {}, ("x",), ("y",))
    with pytest.raises(ModelError, match="'y' has no calibrated range"):
        quantize(graph, {"x": Range(-1.0, 1.0)}, NNA8.arithmetic)


def test_sharing_operators_have_one_quant() -> None:
    """Operands and output of a concat share the union of their ranges."""
    values = {n: Value(n, TensorType(s), Origin(n)) for n, s in (("a", (2,)), ("b", (3,)), ("y", (5,)))}
    graph = Graph("g", (Node("n", Concat(0), ("a", "b"), "y"),), values, {}, ("a", "b"), ("y",))
    ranges = {"a": Range(-1.0, 1.0), "b": Range(-2.0, 0.5), "y": Range(-2.0, 1.0)}
    integer = quantize(graph, ranges, NNA8.arithmetic)
    stages.check(integer, stages.INTEGER)
    quants = {value.type.quant for value in integer.values.values()}
    assert quants == {Quant(float(np.float32(3 / 255)), 42)}


def test_cycle_is_an_error() -> None:
    """Sorting a cyclic graph names a node on the cycle."""
    nodes = [Node("a", Activation(), ("y",), "x"), Node("b", Activation(), ("x",), "y")]
    with pytest.raises(ModelError, match="cycle through node"):
        sort_nodes(nodes)


def test_allocate_never_overlaps() -> None:
    """Items alive at the same time never share bytes; the top is the highest end."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        first = rng.integers(0, 20, 40)
        items = [
            Item(("t", i), int(rng.integers(1, 100)) * 16, int(f), int(f + rng.integers(0, 6)))
            for i, f in enumerate(first)
        ]
        at, top = allocate(items)
        spans = [(i, at[i.key], at[i.key] + i.nbytes) for i in items]
        assert top == max(end for _, _, end in spans)
        for a, start, end in spans:
            assert all(b is a or b.last < a.first or a.last < b.first or e <= start or end <= s for b, s, e in spans)


def test_concat_spares_a_narrow_tensor_that_others_read() -> None:
    """A narrow operand with another reader keeps its own scale; the concat reads a rescaled copy."""
    shapes = (("a", (4,)), ("b", (4,)), ("s", (4,)), ("y", (8,)), ("z", (4,)))
    values = {n: Value(n, TensorType(s), Origin(n)) for n, s in shapes}
    nodes = (
        Node("sigmoid", Activation("sigmoid"), ("a",), "s"),
        Node("concat", Concat(0), ("s", "b"), "y"),
        Node("relu", Activation("relu"), ("s",), "z"),
    )
    graph = Graph("g", nodes, values, {}, ("a", "b"), ("y", "z"))
    ranges = {
        "a": Range(-1.0, 1.0),
        "b": Range(-50.0, 50.0),
        "s": Range(0.0, 1.0),
        "y": Range(-50.0, 50.0),
        "z": Range(0.0, 1.0),
    }
    integer = stages.check(quantize(graph, ranges, NNA8.arithmetic), stages.INTEGER)
    assert integer.values["s"].type.quant == Quant(1 / 256, -128)
    assert [node.op for node in integer.nodes if node.name == "concat.rescale"] == [Activation()]
    narrow = quantize(graph, ranges | {"b": Range(-1.0, 1.0), "y": Range(-1.0, 1.0)}, NNA8.arithmetic)
    assert len(narrow.nodes) == 3


def branching() -> Graph:
    """Return a graph whose given order makes two large tensors before either is reduced."""
    quant = Quant(0.5, 0)
    shapes = {
        "x": (1, 8, 8, 2),
        "a": (1, 64, 8, 2),
        "b": (1, 64, 8, 2),
        "p": (1, 1, 1, 2),
        "q": (1, 1, 1, 2),
        "y": (1, 2, 1, 2),
    }
    values = {n: Value(n, TensorType(s, "int8", quant), Origin(n)) for n, s in shapes.items()}
    grow, shrink = Pad((0, 28, 0, 0), (0, 28, 0, 0)), MaxPool((64, 8))
    nodes = (
        Node("grow a", grow, ("x",), "a"),
        Node("grow b", grow, ("x",), "b"),
        Node("shrink a", shrink, ("a",), "p"),
        Node("shrink b", shrink, ("b",), "q"),
        Node("join", Concat(1), ("p", "q"), "y"),
    )
    return Graph("branching", nodes, values, {}, ("x",), ("y",))


def test_order_lowers_the_peak() -> None:
    """One branch is finished before the other begins; the bits stay."""
    graph = branching()
    ordered = stages.check(order(graph), stages.INTEGER)
    assert [node.name for node in ordered.nodes] == ["grow a", "shrink a", "grow b", "shrink b", "join"]
    peaks = [place(tile(g, NNA8, 1 << 19)).used[Space.SRAM] for g in (graph, ordered)]
    assert peaks[1] < 0.6 * peaks[0]
    inputs = random_inputs(graph, np.random.default_rng(4))
    expected = reference.run(graph, inputs, NNA8.arithmetic)
    np.testing.assert_array_equal(reference.run(ordered, inputs, NNA8.arithmetic)["y"], expected["y"])
    assert order(ordered) is ordered


def test_allocate_is_never_above_first_fit() -> None:
    """Placing in the order of birth, each at the lowest free address, is one of the orders that are tried."""
    rng = np.random.default_rng(6)
    for _ in range(20):
        first = np.sort(rng.integers(0, 30, 50))
        items = [
            Item(("t", i), int(rng.integers(1, 200)) * 16, int(f), int(f + rng.integers(0, 9)))
            for i, f in enumerate(first)
        ]
        at: dict[int, int] = {}
        for i, item in enumerate(items):
            busy = sorted((at[j], at[j] + items[j].nbytes) for j in at if items[j].last >= item.first)
            address = 0
            for start, end in busy:
                if address + item.nbytes <= start:
                    break
                address = max(address, end)
            at[i] = address
        top = allocate(items)[1]
        assert lower_bound(items) <= top <= max(at[i] + item.nbytes for i, item in enumerate(items))


# -- int16 ---------------------------------------------------------------------------------------------------------


class Narrow(Activation):
    """A tanh that takes and makes int8 only."""

    def widths(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return ((8,),) * (operands + 1)


class Wide(Activation):
    """A tanh that takes and makes int16 only."""

    def widths(self, operands: int) -> tuple[tuple[int, ...], ...]:
        return ((16,),) * (operands + 1)


def chain(*ops: Activation) -> Graph:
    """Return a float graph of functions one behind the other, from x0 on."""
    names = [f"x{i}" for i in range(len(ops) + 1)]
    values = {n: Value(n, TensorType((2, 3)), Origin(n)) for n in names}
    nodes = tuple(Node(f"n{i}", op, (names[i],), names[i + 1]) for i, op in enumerate(ops))
    return Graph("chain", nodes, values, {}, (names[0],), (names[-1],))


def quantized_chain(activations: str | tuple[str, ...], *ops: Activation) -> Graph:
    """Return the integer graph of a chain, after it has run bit-exactly."""
    graph = chain(*ops)
    ranges = {name: Range(-2.0, 2.0) for name in graph.values}
    integer = stages.check(quantize(graph, ranges, NNA8.arithmetic, activations), stages.INTEGER)
    program = emit(place(tile(integer, NNA8, 4096)), "test", KnownAnswer(0, {}))
    inputs = random_inputs(integer, np.random.default_rng(1))
    expected = reference.run(integer, inputs, NNA8.arithmetic)
    for name, array in Emulator(program).trace(inputs).items():
        np.testing.assert_array_equal(array, expected[name])
    return integer


def test_operators_demand_int16() -> None:
    """What an operator takes and makes as int16 only is int16, and nothing else is."""
    graph = quantized_chain("int8", Activation("tanh"), Wide("tanh"), Activation("tanh"))
    assert [graph.values[f"x{i}"].type.dtype for i in range(4)] == ["int8", "int16", "int16", "int8"]
    assert graph.values["x2"].type.quant == Quant(2.0**-15, 0, 16)
    assert [type(node.op) for node in graph.nodes] == [Activation, Wide, Activation]


def test_operators_that_want_int8_get_copies() -> None:
    """Around an operator of int8 int16 tensors are requantized by sums of one operand."""
    graph = quantized_chain("int16", Activation("tanh"), Narrow("tanh"), Wide("tanh"))
    assert all(graph.values[f"x{i}"].type.dtype == "int16" for i in range(4))
    assert [type(node.op) for node in graph.nodes] == [Activation, Sum, Narrow, Sum, Wide]
    narrow = next(node for node in graph.nodes if isinstance(node.op, Narrow))
    assert [graph.values[name].type.dtype for name in (*narrow.inputs, narrow.output)] == ["int8", "int8"]


def test_clamps_of_int16_are_sums() -> None:
    """Identity, relu and clip round once instead of going through knots."""
    kinds = (Activation("relu"), Activation("clip", (-0.5, 0.9)), Activation("tanh"))
    graph = quantized_chain(("x1", "x2"), *kinds)
    assert [node.op for node in graph.nodes[:2]] == [Sum((0.0, np.inf), (1,)), Sum((-0.5, 0.9), (1,))]
    assert [type(node.op) for node in quantized_chain("int8", *kinds).nodes] == [Activation] * 3


def test_a_group_takes_the_widest() -> None:
    """One int16 operand makes a concat int16."""
    values = {n: Value(n, TensorType(s), Origin(n)) for n, s in (("a", (2,)), ("b", (3,)), ("y", (5,)))}
    graph = Graph("g", (Node("n", Concat(0), ("a", "b"), "y"),), values, {}, ("a", "b"), ("y",))
    ranges = {"a": Range(-1.0, 1.0), "b": Range(-2.0, 0.5), "y": Range(-2.0, 1.0)}
    integer = stages.check(quantize(graph, ranges, NNA8.arithmetic, ("b",)), stages.INTEGER)
    assert {integer.values[n].type.quant for n in "aby"} == {Quant(float(np.float32(2 / 32767)), 0, 16)}


@pytest.mark.parametrize(("activations", "words"), [(("x0", "no"), "no tensor 'no'"), ("int4", "'int4': unknown")])
def test_int16_wants_known_tensors(activations: str | tuple[str, ...], words: str) -> None:
    """A name that is no tensor is an error that names it."""
    with pytest.raises(ModelError, match=words):
        quantized_chain(activations, Activation("tanh"))


def test_an_array_without_16_bits_is_refused() -> None:
    """The message names the machine, the figure and the layer."""
    sample = next(
        s for seed in range(99) if (s := Dense.sample(np.random.default_rng(seed))).inputs[0].dtype == "int16"
    )
    graph, machine = graph_of(sample), replace(NNA8, mac=replace(NNA8.mac, int16=0))
    assert legalize(graph, NNA8).nodes == graph.nodes
    with pytest.raises(TargetError, match=r"'nna8'.*mac\.int16 = 0.*1 of 1 layers.*'node'"):
        legalize(graph, machine)


def test_auto_widens_what_int8_keeps_too_little_of() -> None:
    """Features of one loud and many quiet entries become int16; a tensor of even power, and what shares it, stays."""
    model = net("h = MatMul (x, w)\ny = Relu (h)", {"x": (1, 8)}, w=(8, 6))
    rng = np.random.default_rng(0)
    even = [{"x": x} for x in rng.uniform(-1, 1, (64, 1, 8)).astype(np.float32)]
    uneven = [{"x": sample["x"] * np.where(np.arange(8) == 0, 100, 1)} for sample in even]
    for samples, dtype in ((even, "int8"), (uneven, "int16")):
        program = nnac.compile(model, "nna8", samples, activations="auto", check=True).program
        assert program.tensor("x").type.dtype == dtype


def test_unknown_widths_are_refused() -> None:
    model = net("y = Relu (x)", {"x": (1, 8)})
    with pytest.raises(ModelError, match="allowed: int8, int16, auto, or names of tensors"):
        nnac.compile(model, "nna8", [{"x": np.ones((1, 8), np.float32)}], activations="int4")
