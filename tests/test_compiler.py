"""The pipeline on small networks: every bit on every machine, close to float, pure passes, moves gone, clear errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import nnac
from nnac import reference, stages
from nnac.calibration import Range, calibrate, random_samples
from nnac.compare import compare
from nnac.compiled import CompiledModel
from nnac.compiler import Budgets, float_graph, input_shapes, lower
from nnac.emulator import Emulator
from nnac.errors import CapacityError, ModelError, TargetError
from nnac.frontend import import_graph, prepare
from nnac.graph import Graph
from nnac.ops import Dense
from nnac.passes.centroid_folding import centroid_folding
from nnac.passes.collapse import collapse
from nnac.passes.compose import compose
from nnac.passes.fold import fold
from nnac.passes.fuse import fuse
from nnac.passes.layout import layout
from nnac.passes.legalize import legalize
from nnac.passes.quantize import quantize
from nnac.program import Program, dumps, loads
from nnac.targets import Target, load_target
from nnac.types import Array
from nnac.weights.choice import WeightPlan
from tests.graphs import with_memory
from tests.nets import RandomNet, net

Samples = list[dict[str, Array]]
KIB = 1024


NETS = {
    "residual": net(
        """
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        r = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (r, v)
        s = Add (c, x)
        y = Relu (s)
        """,
        {"x": (1, 6, 9, 7)},
        w=(6, 6, 3, 3),
        b=(6,),
        v=(6, 6, 3, 3),
    ),
    "branches": net(
        """
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        b = Conv (x, v)
        c = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)
        d = Concat <axis = 1> (a, b, c)
        e = Conv <strides = [2, 2]> (d, u)
        y = Clip (e, low, high)
        """,
        {"x": (1, 3, 11, 8)},
        w=(5, 3, 3, 3),
        v=(4, 3, 1, 1),
        u=(7, 12, 2, 3),
        low=np.float32(-0.4),
        high=np.float32(0.9),
    ),
    "sequence": net(
        """
        a = Conv <pads = [2, 2]> (x, w, b)
        c = Relu (a)
        d = MaxPool <kernel_shape = [2], strides = [2]> (c)
        e = Conv <dilations = [2], pads = [2, 2], group = 8> (d, v)
        f = HardSwish (e)
        g = GlobalAveragePool (f)
        h = Flatten (g)
        y = Gemm <transB = 1> (h, u, t)
        """,
        {"x": (2, 4, 33)},
        w=(8, 4, 5),
        b=(8,),
        v=(8, 1, 3),
        u=(5, 8),
        t=(5,),
    ),
    "two_inputs_two_outputs": net(
        """
        a = Conv (x, w)
        b = Conv (z, w)
        y = Sub (a, b)
        m = Mul (a, b)
        q = AveragePool <kernel_shape = [3, 3], strides = [2, 1]> (m)
        """,
        {"x": (1, 4, 8, 8), "z": (1, 4, 8, 8)},
        "y q",
        w=(4, 4, 3, 3),
    ),
    "shared_input": net(
        """
        a = Sigmoid (x)
        b = Mul (a, x)
        c = Add (b, x)
        y = Tanh (c)
        """,
        {"x": (3, 5, 4)},
        "y c",
    ),
    "batch": net(
        """
        a = Conv <strides = [2, 1], pads = [0, 1, 2, 0]> (x, w)
        b = LeakyRelu <alpha = 0.2> (a)
        c = Flatten (b)
        d = Gemm <transB = 1> (c, v)
        y = Softmax (d)
        """,
        {"x": (3, 2, 7, 5)},
        w=(3, 2, 3, 2),
        v=(6, 60),
    ),
    "channels_last": net(
        """
        a = Transpose <perm = [0, 3, 1, 2]> (x)
        b = Conv <group = 4> (a, w)
        c = Transpose <perm = [0, 2, 3, 1]> (b)
        d = Add (c, t)
        e = Relu (d)
        f = ReduceMean <axes = [1, 2], keepdims = 0> (e)
        y = Softmax (f)
        """,
        {"x": (1, 6, 5, 4)},
        w=(4, 1, 2, 2),
        t=(4,),
    ),
    "normalized": net(
        """
        a = Conv (x, w)
        b = BatchNormalization (a, scale, shift, mean, var)
        c = Relu (b)
        d = Conv <group = 5> (c, v)
        e = PRelu (d, slope)
        f = Mul (e, gain)
        y = Add (f, offset)
        """,
        {"x": (1, 3, 6, 6)},
        w=(5, 3, 1, 1),
        v=(5, 1, 3, 3),
        slope=(5, 1, 1),
        scale=(5,),
        shift=(5,),
        mean=(5,),
        var=np.linspace(0.3, 3, 5, dtype=np.float32),
        gain=np.float32(1.7),
        offset=(1, 5, 1, 1),
    ),
    "attention_pieces": net(
        """
        a = MatMul (x, w)
        b = Transpose <perm = [0, 2, 1]> (a)
        c = Softmax <axis = 1> (b)
        d, e = Split <axis = 2> (c)
        f = Concat <axis = 2> (e, d)
        g = Slice (f, starts, ends, axes, steps)
        y = Pad (g, pads, fill)
        """,
        {"x": (2, 6, 5)},
        w=(5, 7),
        starts=np.array([5]),
        ends=np.array([-7]),
        axes=np.array([1]),
        steps=np.array([-2]),
        pads=np.array([0, 1, 0, 0, 0, 2]),
        fill=np.float32(0.25),
    ),
}


# -- one network through everything --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A prepared model with its float graph, samples and ranges."""

    model: onnx.ModelProto
    graph: Graph
    samples: Samples
    ranges: dict[str, Range]
    activations: str | tuple[str, ...] = "int8"

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Case:
        """Prepare and calibrate on four random samples."""
        prepared = prepare(model)
        graph = float_graph(prepared)
        samples = list(random_samples(input_shapes(graph)))
        names = sorted({v.origin.name for v in graph.values.values() if v.origin})
        return cls(prepared, graph, samples, calibrate(prepared, samples, names))

    def build(self, machine: Target) -> Program:
        """Compile with all checks, on a larger scratchpad where this one is too small (the error says how much)."""
        try:
            return lower(self.graph, self.ranges, machine, "test", check=True, activations=self.activations)
        except CapacityError as error:
            assert error.excess == error.required - error.available > 0
            memory = {name: 2 * machine.memory[name].bytes for name in ("sram", "weights")}
            return self.build(with_memory(machine, **memory))

    def check(self, program: Program) -> None:
        """Compare reference and emulator at every tensor, on samples and on noise; the blob survives a round trip."""
        law = program.target.arithmetic
        integer = quantize(centroid_folding(self.graph, WeightPlan(), law), self.ranges, law, self.activations)
        for inputs in (reference.probe(integer, 1), reference.probe(integer, 2), self.quantized(integer)):
            expected, found = reference.run(integer, inputs, law), Emulator(program).trace(inputs)
            assert expected.keys() <= found.keys()  # parts of pools that were split to fit are more
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert dumps(loads(dumps(program))) == dumps(program)

    def quantized(self, graph: Graph) -> dict[str, Array]:
        """Return the first sample as integers in device layout."""
        values = [graph.values[name] for name in graph.inputs]
        return {
            v.name: v.origin.from_onnx(v.type.quant.quantize(self.samples[0][v.origin.name]), v.shape)
            for v in values
            if v.origin is not None and v.type.quant is not None
        }


MACHINES = {
    "nna8": load_target("nna8"),
    "nna8-pow2": load_target("nna8-pow2"),
    "tiny, 8 KiB": with_memory(load_target("nna8-tiny"), sram=8 * KIB, weights=2 * KIB),
    "tiny, 1 KiB": with_memory(load_target("nna8-tiny"), sram=KIB, weights=KIB),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", NETS)
def test_every_bit(name: str, machine: str) -> None:
    """Reference and emulator agree at every tensor; each output is close to float."""
    case = Case.of(NETS[name])
    program = case.build(MACHINES[machine])
    case.check(program)
    floor = 14.0 if machine == "nna8-pow2" else 22.0
    assert min(compare(case.model, program, case.samples).outputs().values()) > floor


@pytest.mark.parametrize("name", NETS)
def test_outputs_in_onnx_shape(name: str) -> None:
    """`run` gives every output under its name, in float's shape; raw integers are those of the reals."""
    case = Case.of(NETS[name])
    compiled = CompiledModel(case.build(MACHINES["nna8"]))
    reals, raw = compiled.run(case.samples[0]), compiled.run(case.samples[0], raw=True)
    shapes = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in case.model.graph.output}
    assert {name: list(array.shape) for name, array in reals.items()} == shapes
    for tensor in map(compiled.program.tensor, compiled.program.outputs):
        quant, name = tensor.type.quant, tensor.onnx_name
        assert quant is not None and raw[name].dtype == np.int8
        np.testing.assert_array_equal(quant.dequantize(raw[name]), reals[name])


class FullNet(RandomNet):
    """Random nets of (almost) all that the frontend takes."""

    kinds: ClassVar[tuple[str, ...]] = (
        *RandomNet.kinds,
        "function",
        "softmax",
        "normalize",
        "pad",
        "cut",
        "transpose",
        "flat",
        "mean",
        "prelu",
    )

    def function(self, x: str) -> None:
        """Add a function of one value."""
        kind, attributes = self.pick(
            ("Sigmoid", {}),
            ("Tanh", {}),
            ("HardSwish", {}),
            ("HardSigmoid", {}),
            ("LeakyRelu", {"alpha": 0.3}),
            ("Neg", {}),
        )
        self.put(kind, [x], **attributes)

    def softmax(self, x: str) -> None:
        """Add a softmax along any axis."""
        self.put("Softmax", [x], axis=self.pick(1, 2, 3, -1))

    def normalize(self, x: str) -> None:
        """Add a batch normalization."""
        channels = self.tensors[x][1]
        vectors = [self.weight(self.rng.normal(size=channels)) for _ in range(3)]
        self.put("BatchNormalization", [x, *vectors, self.weight(self.rng.uniform(0.5, 2, channels))])

    def prelu(self, x: str) -> None:
        """Add a PRelu with a slope per channel."""
        self.put("PRelu", [x, self.weight(self.rng.normal(size=(self.tensors[x][1], 1, 1)))])

    def pad(self, x: str) -> None:
        """Add constant pads, of channels too."""
        pads = [0, *self.rng.integers(0, 2, 3), 0, *self.rng.integers(0, 3, 3)]
        self.put("Pad", [x, self._ints(pads), self.weight(np.float32(self.pick(0.0, 0.4)))])

    def cut(self, x: str) -> None:
        """Add a strided slice, perhaps backwards."""
        axis = self.pick(1, 2, 3)
        side = self.tensors[x][axis]
        start, stop, step = self.pick((0, side, 2), (side // 3, side, 1), (side - 1, -side - 1, -1))
        self.put("Slice", [x, *(self._ints([v]) for v in (start, stop, axis, step))])

    def transpose(self, x: str) -> None:
        """Add a transpose."""
        self.put("Transpose", [x], perm=[0, *(int(v) for v in self.rng.permutation([1, 2, 3]))])

    def flat(self, x: str) -> None:
        """Add a reshape that joins height and width."""
        _, channels, height, width = self.tensors[x]
        self.put("Reshape", [x, self._ints([1, channels, height * width, 1])])

    def mean(self, x: str) -> None:
        """Add a mean over some axes."""
        self.put("ReduceMean", [x], axes=self.pick([2, 3], [1], [3], [1, 3]), keepdims=1)

    def _ints(self, values: Sequence[int]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name


def random_case(seed: int) -> Case:
    """Return a random network of one to eleven steps and its dense head."""
    rng = np.random.default_rng(seed)
    return Case.of(FullNet(rng).model(int(rng.integers(1, 12))))


def widened(case: Case, rng: np.random.Generator) -> Case:
    """Return the case with int16 activations: all, or some."""
    made = {*case.graph.inputs, *(node.output for node in case.graph.nodes)}
    names = sorted({v.origin.name for name in made if (v := case.graph.values[name]).origin is not None})
    some = tuple(name for name in names if rng.random() < 0.4)
    return replace(case, activations=some if rng.random() < 0.6 else "int16")


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), machine=st.sampled_from(sorted(MACHINES)), wide=st.booleans())
def test_random_networks(seed: int, machine: str, wide: bool) -> None:
    """Any network of supported operators, on any machine, with int16 anywhere: every bit."""
    case = random_case(seed)
    case = widened(case, np.random.default_rng(seed)) if wide else case
    case.check(case.build(MACHINES[machine]))


@pytest.mark.parametrize("seed", range(60))
def test_random_networks_are_close_to_float(seed: int) -> None:
    """Whatever the passes have moved, folded and fused, the outputs are float's.

    Fixed seeds: int8 has no floor for every network. A sigmoid behind an eighth power sees one step or two, and concat
    gives all its operands the scale of the widest, also for their other readers (5 dB seen with seed 1030318260).
    """
    case = random_case(seed)
    assert min(compare(case.model, case.build(MACHINES["nna8"]), case.samples).outputs().values()) > 25.0


@pytest.mark.parametrize("name", NETS)
def test_int16_is_closer_to_float(name: str) -> None:
    """With int16 activations what remains is the error of int8 weights."""
    case = Case.of(NETS[name])
    programs = [replace(case, activations=chosen).build(MACHINES["nna8"]) for chosen in ("int8", "int16")]
    narrow, wide = (min(compare(case.model, p, case.samples).outputs().values()) for p in programs)
    assert wide > max(narrow, 35.0)
    assert all(t.type.dtype == "int16" for t in programs[1].tensors)


# -- passes --------------------------------------------------------------------------------------------------------


def frozen(graph: Graph) -> tuple[Any, ...]:
    """Return everything in a graph as values that compare."""
    arrays = {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in graph.constants.items()}
    return graph.name, graph.nodes, dict(graph.values), arrays, graph.inputs, graph.outputs


@pytest.mark.parametrize("name", NETS)
def test_passes_are_pure(name: str) -> None:
    """No pass changes the graph that it is given, and each gives the same result again."""
    machine = MACHINES["tiny, 1 KiB"]
    case = Case.of(NETS[name])
    graph = import_graph(case.model)
    for step in (
        collapse,
        layout,
        collapse,
        fold,
        fuse,
        compose,
        lambda g: quantize(g, case.ranges, machine.arithmetic),
        lambda g: legalize(g, machine),
    ):
        before = frozen(graph)
        result = step(graph)
        assert frozen(graph) == before
        assert frozen(step(graph)) == frozen(result)
        graph = result
    stages.check(graph, stages.INTEGER)


def kinds(graph: Graph) -> Counter[str]:
    """Return how often each operator occurs."""
    return Counter(node.op.name for node in graph.nodes)


@pytest.mark.parametrize("name", NETS)
def test_no_transpose_is_left(name: str) -> None:
    """Channels-last and channels-first parts, residuals, 1-D convolutions: every transpose meets its inverse."""
    assert kinds(float_graph(prepare(NETS[name])))["Transpose"] == 0


@pytest.mark.parametrize(
    "lines, shape",
    [
        ("a = Div (x, c)\nb = Conv (a, w)\ny = Softmax <axis = 1> (b)", (1, 4, 6, 5)),
        ("a = Mul (x, c)\nb = Pad (a, pads)\nd = Add (b, b)\ny = Conv (d, w)", (1, 4, 6, 5)),
        ("a = Conv <pads = [1, 1]> (x, v)\nr = Relu (a)\nb = Conv <pads = [1, 1]> (r, v)\ny = Add (x, b)", (1, 4, 9)),
        (
            "a = Conv <pads = [1, 1]> (x, v)\nb = Sub (x, c)\nd = Concat <axis = 1> (a, b)\n"
            "y = MaxPool <kernel_shape = [2]> (d)",
            (1, 4, 9),
        ),
    ],
    ids=["scaled", "padded", "residual", "concat"],
)
def test_an_input_that_meets_elementwise_operators_first(lines: str, shape: tuple[int, ...]) -> None:
    """The host writes it channels last, so that the machine moves nothing."""
    model = net(lines, {"x": shape}, w=(4, 4, 3, 3), v=(4, 4, 3), c=np.float32(2), pads=np.array([0, 0, 1, 1] * 2))
    case = Case.of(model)
    assert kinds(case.graph)["Transpose"] == 0
    case.check(case.build(MACHINES["nna8"]))


def test_a_transpose_of_the_model_stays() -> None:
    """What the model itself turns between two readers of different order cannot vanish."""
    model = net(
        "a = Conv (x, w)\nb = Transpose <perm = [0, 1, 3, 2]> (a)\ny = Conv (b, v)",
        {"x": (1, 3, 6, 7)},
        w=(4, 3, 2, 1),
        v=(2, 4, 3, 2),
    )
    assert kinds(float_graph(prepare(model)))["Transpose"] == 1


def test_dense_weights_are_permuted_instead_of_the_picture() -> None:
    """Behind a flattened convolution the columns of a dense layer follow (H, W, C), and the result is float's."""
    model = net(
        "a = Conv (x, w)\nf = Flatten (a)\ny = Gemm <transB = 1> (f, v)", {"x": (1, 2, 5, 4)}, w=(3, 2, 2, 2), v=(6, 36)
    )
    case = Case.of(model)
    assert kinds(case.graph) == {"Conv": 1, "Reshape": 1, "Dense": 1}
    (given_,) = (numpy_helper.to_array(t) for t in case.model.graph.initializer if t.name == "v")
    (dense,) = (node for node in case.graph.nodes if isinstance(node.op, Dense))
    found = case.graph.constants[dense.inputs[1]]
    np.testing.assert_array_equal(found.reshape(6, 4, 3, 3), given_.reshape(6, 3, 4, 3).transpose(0, 2, 3, 1))
    compiled = CompiledModel(case.build(MACHINES["nna8"]))
    assert compare(case.model, compiled.program, case.samples).outputs()["y"] > 30


@pytest.mark.parametrize(
    "name, expected",
    [
        ("residual", {"Conv": 2, "Sum": 1}),
        ("branches", {"Conv": 3, "MaxPool": 1, "Concat": 1}),
        ("normalized", {"Conv": 3, "Activation": 2}),
        ("channels_last", {"Conv": 1, "AveragePool": 1, "Softmax": 1}),
    ],
)
def test_folded_and_fused(name: str, expected: dict[str, int]) -> None:
    """Normalizations and constant sums end in weights, Relu and Clip in clamps; that the values are right SQNR says."""
    found = kinds(float_graph(prepare(NETS[name])))
    del found["Reshape"]
    assert found == expected


def test_what_two_nodes_read_is_not_fused() -> None:
    """A convolution whose raw result is also an output keeps it; the Relu stays a table."""
    graph = float_graph(prepare(net("y = Conv (x, w)\nz = Relu (y)", {"x": (1, 2, 4, 4)}, "y z", w=(3, 2, 2, 2))))
    assert kinds(graph) == {"Conv": 1, "Activation": 1}
    case = Case.of(NETS["shared_input"])
    assert [output.split(".")[0] for output in case.graph.outputs] == ["y", "c"]


def test_nodes_keep_their_names() -> None:
    """Layers are named after ONNX nodes, their tensors after ONNX tensors."""
    model = net("y = Conv (x, w)", {"x": (1, 2, 4, 4)}, w=(3, 2, 2, 2))
    model.graph.node[0].name = "first"
    program = Case.of(model).build(MACHINES["nna8"])
    assert [layer.name for layer in program.layers] == ["first"]
    assert [program.tensor(name).onnx_name for name in (*program.inputs, *program.outputs)] == ["x", "y"]


# -- errors --------------------------------------------------------------------------------------------------------

SMALL = net("y = Conv (x, w)", {"x": (1, 2, 8, 8)}, w=(3, 2, 3, 3))
ONE = [{"x": np.ones((1, 2, 8, 8), np.float32)}]


@pytest.mark.parametrize(
    "calibration, text",
    [
        (None, "no calibration: pass samples"),
        ([], "no calibration samples"),
        ([{"z": ONE[0]["x"]}], r"arrays 'z'; the model's inputs are 'x'"),
        ([{"x": np.ones((2, 2), np.float32)}], r"shape \[2, 2\]"),
        ([{"x": np.full((1, 2, 8, 8), np.nan, np.float32)}], r"(?s)sample 1.*'x'.*NaN"),
        ("/nowhere.npz", "'/nowhere.npz' is not there"),
        (3, "found int"),
    ],
)
def test_calibration_errors(calibration: Any, text: str) -> None:
    """What is wrong with the samples is said."""
    with pytest.raises(ModelError, match=text):
        nnac.compile(SMALL, "nna8", calibration)


def test_unknown_method_lists_the_known() -> None:
    """An unknown method is an error that names those that exist."""
    with pytest.raises(ModelError, match=r"'median': unknown; allowed: minmax, percentile, mse"):
        nnac.compile(SMALL, "nna8", ONE, method="median")


def test_unknown_target() -> None:
    """An unknown target is an error."""
    with pytest.raises(TargetError):
        nnac.compile(SMALL, "nna9", ONE)


def test_random_calibration_is_marked() -> None:
    """A blob for timing studies says so; a calibrated one says how."""
    assert nnac.compile(SMALL, "nna8", "random").program.calibration == "random"
    assert nnac.compile(SMALL, "nna8", ONE).program.calibration == "minmax, 1 samples"


@pytest.mark.parametrize(
    "budgets, unit", [(Budgets(sram=64), "bytes"), (Budgets(flash=16), "bytes"), (Budgets(cycles=1), "cycles")]
)
def test_budgets(budgets: Budgets, unit: str) -> None:
    """A program above a budget is refused with figures; a budget that is kept is none."""
    text = rf"budget --max-.*: required [\d,]+ {unit}, available [\d,]+, excess"
    with pytest.raises(CapacityError, match=text) as caught:
        nnac.compile(SMALL, "nna8", ONE, budgets=budgets)
    assert caught.value.excess == caught.value.required - caught.value.available > 0
    nnac.compile(SMALL, "nna8", ONE, budgets=Budgets(1 << 20, 1 << 20, 1 << 30))


def test_a_machine_that_is_too_small() -> None:
    """Required, available and excess, and which node does not fit."""
    machine = with_memory(load_target("nna8"), sram=64)
    with pytest.raises(CapacityError, match=r"'y'|y \(Conv\)") as caught:
        nnac.compile(SMALL, machine, ONE)
    assert caught.value.available == 64 and caught.value.excess == caught.value.required - 64 > 0


def test_unsupported_operators_are_all_named() -> None:
    """One error names every node that cannot be compiled."""
    model = net("a = Shrink (x)\nb = Conv (a, w)\ny = Hardmax (b)", {"x": (1, 2, 8, 8)}, w=(3, 2, 3, 3))
    with pytest.raises(ModelError, match=r"(?s)Shrink.*Hardmax"):
        nnac.compile(model, "nna8", ONE, host="forbid")


def test_progress_is_told() -> None:
    """One call per sample, with the total."""
    calls: list[tuple[str, int, int | None]] = []
    nnac.compile(SMALL, "nna8", ONE * 3, progress=lambda *step: calls.append(step))
    assert calls == [("calibrating", n, 3) for n in (1, 2, 3)]
