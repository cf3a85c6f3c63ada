"""Fixed places, upscaling and composed functions through the whole compiler: every bit, and close to float."""

from __future__ import annotations

from math import inf, prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import nnac
from nnac.cli import cli
from nnac.compare import compare
from nnac.compiler import float_graph
from nnac.errors import ModelError
from nnac.frontend import prepare
from nnac.ops import Activation, Conv
from nnac.ops.base import Bound
from nnac.ops.functions import EXAMPLES, FUNCTIONS
from nnac.ops.take import Run, runs
from nnac.targets import load_target
from nnac.types import Array, Quant, TensorType
from tests.nets import net
from tests.test_compiler import MACHINES, Case, FullNet

X = {"x": (1, 6, 9, 7)}


# -- places --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picks", "expected"),
    [
        ((3,), (Run(3, 1, 0, 1, 1),)),
        ((4, 3, 2), (Run(4, 1, 0, 3, -1),)),
        ((0, 0, 1, 1, 2, 2), (Run(0, 3, 1, 2, 0),)),
        ((0, 1, 2, 0, 1, 2), (Run(0, 2, 0, 3, 1),)),
        ((0, 4, 1, 5, 2, 6, 3, 7), (Run(0, 4, 1, 2, 4),)),
        ((0, 0, 0, 1, 2), (Run(0, 1, 0, 3, 0), Run(1, 1, 0, 2, 1))),
    ],
)
def test_runs(picks: tuple[int, ...], expected: tuple[Run, ...]) -> None:
    """Repeats, rounds and shuffles are one pattern each."""
    assert runs(picks) == expected


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20).map(tuple))
def test_runs_say_the_indices(picks: tuple[int, ...]) -> None:
    said = [r.first + i * r.outer + j * r.inner for r in runs(picks) for i in range(r.outers) for j in range(r.inners)]
    assert tuple(said) == picks


def operators(model: onnx.ModelProto) -> list[Any]:
    """Return the operators of the float graph after all float passes."""
    return [node.op for node in float_graph(prepare(model)).nodes]


def test_slots_are_written_at_once() -> None:
    """Neighbouring overwrites become one operator, which copies the tensor once."""
    model = net(
        "a = ScatterND (x, i, u)\ny = ScatterND (a, j, u)",
        {**X, "u": (1, 6, 9, 7)},
        i=np.array([[0]]),
        j=np.array([[0]]),
    )
    assert [(op.name, len(op.boxes)) for op in operators(model)] == [("Insert", 2)]


def test_what_follows_a_transposed_convolution_goes_into_it() -> None:
    """Normalization and Relu behind the phases' moves: no layer of their own, whether the output is cut or not."""
    for pads, moves in (([0, 0, 0, 0], ["Transpose"]), ([1, 0, 1, 0], ["Transpose", "Slice"])):
        model = net(
            f"a = ConvTranspose <strides = [2, 2], pads = {pads}> (x, w, b)\n"
            "n = BatchNormalization (a, s, b, b, v)\ny = Relu (n)",
            X,
            w=(6, 4, 4, 4),
            b=(4,),
            s=(4,),
            v=np.ones(4, np.float32),
        )
        case = Case.of(model)
        ops = [node.op for node in case.graph.nodes if node.op.name != "Reshape"]
        assert [op.name for op in ops] == ["Conv", *moves] and ops[0].clamp == (0.0, inf)
        program = case.build(MACHINES["nna8"])
        case.check(program)
        assert min(compare(case.model, program, case.samples).outputs().values()) > 25.0


def test_a_transposed_convolution_multiplies_by_no_inserted_zeros() -> None:
    """Its work is that of the definition: every input place times every tap."""
    model = net("y = ConvTranspose <strides = [2, 2]> (x, w)", X, w=(6, 4, 4, 2))
    (conv,) = [layer for layer in Case.of(model).build(MACHINES["nna8"]).layers if layer.op == "Conv"]
    outer = 6 * 4 * 4 * 2
    assert conv.macs == (9 + 1) * 7 * outer  # one row of windows more than input rows: the last reach beyond the edge


# -- functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_no_table_holds_a_nan(kind: str) -> None:
    """Outside its domain a function saturates by its limit."""
    x = np.concatenate([np.linspace(-300, 300, 4801), [0.0, -0.0, 1e30, -1e30]])
    y = FUNCTIONS[kind](x, *EXAMPLES.get(kind, ()))
    assert y.shape == x.shape and not np.isnan(y).any()


@pytest.mark.parametrize(
    ("kind", "params", "at_zero", "below"),
    [
        ("log", (), -128, -128),
        ("sqrt", (), 0, 0),
        ("reciprocal", (), 127, -10),
        ("pow", (-2.0,), 127, 10),
        ("pow", (-0.5,), 127, 127),
        ("pow", (0.5,), 0, 0),
    ],
)
def test_limits_of_domains(kind: str, params: tuple[float, ...], at_zero: int, below: int) -> None:
    """At 0 and at -1 with output steps of 0.1."""
    x = TensorType((3,), "int8", Quant(1.0))
    bound = Bound((x,), TensorType((3,), "int8", Quant(0.1)), {}, load_target("nna8").arithmetic)
    table = Activation(kind, params).tables(bound)[0]
    assert (table[128], table[127]) == (at_zero, below)


FORMS = {
    "gelu": "d = Div (x, r)\ne = Erf (d)\nf = Add (e, o)\ng = Mul (x, f)\ny = Mul (g, h)",
    "gelu by tanh": "s = Mul (x, x)\nt = Mul (s, x)\nu = Mul (t, k)\nv = Add (x, u)\nm = Mul (v, r)\n"
    "n = Tanh (m)\np = Add (n, o)\nq = Mul (x, h)\ny = Mul (q, p)",
    "swish": "s = Sigmoid (x)\ny = Mul (x, s)",
    "hard swish": "a = Add (x, three)\nb = Clip (a, zero, six)\nc = Mul (x, b)\ny = Div (c, six)",
    "mish": "a = Softplus (x)\nb = Tanh (a)\ny = Mul (b, x)",
    "softsign": "a = Abs (x)\nb = Add (a, o)\ny = Div (x, b)",
    "inverse root": "a = Mul (x, x)\nb = Add (a, o)\nc = Sqrt (b)\ny = Div (o, c)",
    "chain": "a = Mul (x, three)\nb = Sin (a)\ny = Exp (b)",
}
NUMBERS = {"r": 2**0.5, "o": 1.0, "h": 0.5, "k": 0.044715, "three": 3.0, "zero": 0.0, "six": 6.0}


@pytest.mark.parametrize("form", FORMS)
def test_a_function_in_pieces_is_one_table(form: str) -> None:
    """However a function of one value is written, it is one lookup, and closer to float than the pieces."""
    used: dict[str, Any] = {
        name: np.float32(v) for name, v in NUMBERS.items() if f"{name}," in FORMS[form] or f"{name})" in FORMS[form]
    }
    case = Case.of(net(FORMS[form], X, **used))
    assert [(node.op.name, node.op.kind) for node in case.graph.nodes] == [("Activation", "composed")]
    program = case.build(MACHINES["nna8"])
    case.check(program)
    assert min(compare(case.model, program, case.samples).outputs().values()) > 34.0


def test_composition_stops_at_outputs_and_other_operands() -> None:
    """What is read elsewhere stays a tensor; operands of different origin are no function of one value."""
    read_twice = net("a = Exp (x)\nb = Sin (a)\ny = Cos (b)", X, "y b")
    assert [(op.kind, len(op.params)) for op in operators(read_twice)] == [("composed", 2), ("composed", 3)]
    two = net("a = Exp (x)\nb = Sin (a)\nc = Sin (z)\ny = Mul (b, c)", {**X, "z": (6, 1, 1)})
    assert [op.name for op in operators(two)] == ["Activation", "Activation", "Mul"]
    wide = net("a = Exp (x)\ny = Mul (a, z)", {**X, "z": (2, 6, 9, 7)})
    assert [op.name for op in operators(wide)] == ["Activation", "Mul"]
    assert [type(op) for op in operators(net("a = Conv (x, w)\ny = Relu (a)", X, w=(3, 6, 1, 1)))] == [Conv]


# -- frozen inputs -------------------------------------------------------------------------------------------------


def branching() -> onnx.ModelProto:
    """Return a model that takes another branch by an integer input of its rate."""
    branches = {
        name: onnx.helper.make_graph(
            [onnx.parser.parse_node(line)], name, [], [onnx.helper.make_tensor_value_info(out, 1, None)]
        )
        for name, line, out in (("then_branch", "p = Relu (x)", "p"), ("else_branch", "q = Tanh (x)", "q"))
    }
    model = net("is = Equal (sr, wide)", X, wide=np.int64(16000))
    model.graph.node.append(onnx.helper.make_node("If", ["is"], ["y"], "branch", **branches))
    model.graph.input.append(onnx.helper.make_tensor_value_info("sr", onnx.TensorProto.INT64, []))
    return model


def test_a_frozen_input_chooses_the_branch() -> None:
    for rate, kind in ((16000, "relu"), (8000, "tanh")):
        graph = float_graph(prepare(branching(), frozen={"sr": rate}))
        assert graph.inputs == ("x",) and [node.op.kind for node in graph.nodes] == [kind]
    compiled = nnac.compile(branching(), "nna8", "random", freeze={"sr": 16000})
    x = np.abs(np.random.default_rng(0).normal(size=X["x"])).astype(np.float32)
    assert np.abs(compiled.run({"x": x})["y"] - x).mean() < 0.2


@pytest.mark.parametrize(
    ("frozen", "words"),
    [
        ({"rate": 1}, "--freeze names 'rate', which is no graph input (inputs: 'x', 'sr')"),
        ({"sr": 1.5}, "1.5 is no value of type int64"),
        ({"sr": "many"}, "expected numbers"),
        ({"sr": [1, 2]}, "has shape [2], the input has []"),
    ],
)
def test_what_cannot_be_frozen(frozen: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        prepare(branching(), frozen=frozen)
    assert words in str(caught.value)


def test_freeze_on_the_command_line(tmp_path: Path) -> None:
    """The option makes an input a constant; what is no name and number is wrong usage."""
    (tmp_path / "m.onnx").write_bytes(branching().SerializeToString())
    words = ["compile", str(tmp_path / "m.onnx"), "--calibrate", "random", "-o", str(tmp_path / "m.nna")]
    done = CliRunner().invoke(cli, [*words, "--freeze", "sr=16000"])
    assert done.exit_code == 0, done.output
    assert nnac.load(tmp_path / "m.nna").program.inputs == ("x",)
    wrong = CliRunner().invoke(cli, [*words, "--freeze", "sr=fast"])
    assert wrong.exit_code == 2 and "'sr=fast' is not a name and its value" in wrong.output


# -- stripes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", ["kernel_shape=[2,1], strides=[2,2]", "kernel_shape=[1,1], strides=[3,1]"])
@pytest.mark.parametrize(("channels", "height"), [(4, 21), (6, 11), (8, 11)])
def test_rows_that_nobody_reads(window: str, channels: int, height: int) -> None:
    """A tensor whose reader leaves out rows, between windows or at the end, is whole all the same."""
    lines = f"a = AveragePool <kernel_shape=[3,1], pads=[1,0,0,0]> (x)\ny = AveragePool <{window}> (a)"
    case = Case.of(net(lines, {"x": (1, channels, height + 1, 11)}))
    case.check(case.build(MACHINES["tiny, 1 KiB"]))


# -- random networks -----------------------------------------------------------------------------------------------


class PlacesNet(FullNet):
    """Random nets that pick, repeat, overwrite and multiply places, and of any function."""

    kinds: ClassVar[tuple[str, ...]] = (
        "conv",
        "depthwise",
        "normalize",
        "relu",
        "add",
        "concat",
        "transpose",
        "gather",
        "repeat",
        "scatter",
        "resize",
        "linear",
        "blocks",
        "transposed",
        "transposed",
        "mirror",
        "anything",
        "gated",
        "extreme",
        "total",
    )

    def room(self, x: str, factor: int) -> bool:
        """Tell whether a tensor may still grow."""
        return prod(self.tensors[x]) * factor < 6000

    def gather(self, x: str) -> None:
        """Add a gather of any indices: a shuffle, repeats, a few."""
        axis = self.pick(1, 2, 3)
        side = self.tensors[x][axis]
        self.put("Gather", [x, self._ints(self.rng.integers(0, side, self.pick(1, 4, side)).tolist())], axis=axis)

    def repeat(self, x: str) -> None:
        """Add a tile."""
        times = [1, *self.rng.integers(1, 3, 3)]
        if self.room(x, prod(int(t) for t in times)):
            self.put("Tile", [x, self._ints(times)])

    def scatter(self, x: str) -> None:
        """Overwrite one channel by another, at every second row of its first column."""
        channel, rows = self.pick(*range(self.tensors[x][1])), range(0, self.tensors[x][2], 2)
        updates = self.put("Gather", [self.put("Gather", [x, self._ints([0])], axis=1), self._ints(list(rows))], axis=2)
        cut = self.put("Reshape", [self.put("Gather", [updates, self._ints([0])], axis=3), self._ints([len(rows)])])
        points = np.array([[0, channel, row, 0] for row in rows])
        self.put("ScatterND", [x, self._array(points), cut])
        del self.tensors[cut]

    def resize(self, x: str) -> None:
        """Add nearest resizing by any factors."""
        scales = self.weight([1, 1, self.pick(1, 2, 0.7), self.pick(1, 3, 0.5)])
        if self.room(x, 6) and min(self.tensors[x][2:]) > 1:
            self.put("Resize", [x, "", scales], mode="nearest", nearest_mode=self.pick("floor", "round_prefer_ceil"))

    def linear(self, x: str) -> None:
        """Add linear resizing by whole factors."""
        if self.room(x, 6):
            self.put("Resize", [x, "", self.weight([1, 1, self.pick(1, 2), self.pick(1, 3)])], mode="linear")

    def blocks(self, x: str) -> None:
        """Move blocks of channels into space, or back."""
        _, channels, height, width = self.tensors[x]
        if channels % 4 == 0:
            self.put("DepthToSpace", [x], blocksize=2, mode=self.pick("DCR", "CRD"))
        elif height % 2 == 0 and width % 2 == 0 and channels < 16:
            self.put("SpaceToDepth", [x], blocksize=2)

    def transposed(self, x: str) -> None:
        """Add a transposed convolution."""
        channels = self.tensors[x][1]
        groups = self.pick(*[g for g in (1, 2, channels) if channels % g == 0])
        kernel, strides = [self.pick(1, 2, 3, 4), self.pick(1, 3)], [self.pick(1, 2, 3), self.pick(1, 2)]
        pads = [self.pick(0, (side - 1) // 2) for side in (*kernel, *kernel)]
        weight = self.weight(self.rng.normal(size=(channels, self.pick(1, 2), *kernel)) / (channels / groups) ** 0.5)
        if self.room(x, 6):
            self.put("ConvTranspose", [x, weight], strides=strides, pads=pads, group=groups)

    def mirror(self, x: str) -> None:
        """Add a reflecting or repeating pad."""
        pads = [0, 0, self.pick(0, 1), 1, 0, 0, 0, self.pick(0, 1)]
        if min(self.tensors[x][2:]) > 1:
            self.put("Pad", [x, self._ints(pads)], mode=self.pick("reflect", "edge"))

    def anything(self, x: str) -> None:
        """Add one of the functions of one value."""
        kind, attributes = self.pick(
            *((name, {}) for name in ("Erf", "Softplus", "Softsign", "Abs", "Sin", "Selu")),
            *(("Elu", {"alpha": 0.7}), ("Celu", {"alpha": 1.3}), ("ThresholdedRelu", {"alpha": 0.2})),
        )
        self.put(kind, [x], **attributes)

    def gated(self, x: str) -> None:
        """Add a function written as several operators."""
        self.put("Mul", [x, self.put("Sigmoid", [self.put("Mul", [x, self.weight(1.7)])])])

    def extreme(self, x: str) -> None:
        """Add a minimum or maximum of two tensors."""
        if (partner := self.partner(x)) != x:
            self.put(self.pick("Max", "Min"), [x, partner])

    def total(self, x: str) -> None:
        """Add a sum or extreme over one axis."""
        axis = self.pick(1, 2, 3)
        self.put(self.pick("ReduceMax", "ReduceMin", "ReduceL1"), [x], axes=[axis], keepdims=1)

    def _array(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(array, name))
        return name


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    return Case.of(PlacesNet(rng).model(int(rng.integers(1, 9))))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), machine=st.sampled_from(sorted(MACHINES)))
def test_random_networks(seed: int, machine: str) -> None:
    """Any network of these operators, on any machine: every bit."""
    case = random_case(seed)
    case.check(case.build(MACHINES[machine]))


def test_a_cut_that_is_resized_at_once_keeps_its_range() -> None:
    """Between two operators that are several layers each, the one tensor that the model knows stays."""
    model = net(
        'a = ConvTranspose <strides = [1, 2], pads = [0, 1, 0, 0]> (x, w)\ny = Resize <mode = "linear"> (a, , s)',
        X,
        w=(6, 2, 1, 2),
        s=np.array([1, 1, 1, 3], np.float32),
    )
    case = Case.of(model)
    case.check(case.build(MACHINES["nna8"]))


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_are_close_to_float(seed: int) -> None:
    """Fixed seeds, as int8 has no floor for every network."""
    case = random_case(seed)
    assert min(compare(case.model, case.build(MACHINES["nna8"]), case.samples).outputs().values()) > 20.0
