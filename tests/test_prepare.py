"""What comes through the door: what is refused and in which words, files, open shapes, constants, real models."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from nnac.errors import ModelError
from nnac.frontend import Limits, import_graph, prepare
from nnac.frontend.fold import _Gate, _run, fold
from tests.reading import FLOAT, agree, feeds_of, interpret, ints, model, ort, random
from tests.test_frontend import CASES, X2, X3, X4


def refusal(source: Any, shapes: Mapping[str, tuple[int, ...]] | None = None, **limits: int) -> str:
    """Return what the door says of a model that it does not let in."""
    with pytest.raises(ModelError) as caught:
        import_graph(prepare(source, shapes, Limits(**limits)))
    assert str(caught.value).isprintable() or "\n  - " in str(caught.value)
    return str(caught.value)


def small(**changes: Any) -> onnx.ModelProto:
    return model("y = Relu (x)", 13, {"x": (1, 4)})


def edited(proto: onnx.ModelProto, change: Callable[[onnx.ModelProto], Any]) -> onnx.ModelProto:
    change(proto)
    return proto


def with_attribute(proto: onnx.ModelProto, name: str, value: Any) -> onnx.ModelProto:
    node = proto.graph.node[0]
    kept = [a for a in node.attribute if a.name != name]
    node.ClearField("attribute")
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    return proto


CONV = "y = Conv (x, w)"
ADDED = 'y = ScatterND <reduction="add"> (x, i, u)'
W: dict[str, Any] = {"w": random(4, 6, 3, 2)}
NUL: dict[str, Any] = {"w\0": random(2)}
NAN = np.array([[np.nan, 1.0]], np.float32)

UNSUPPORTED = [  # name, model, words that the refusal has
    ("unknown operator", model("y = Hardmax (x)", 13, X3), ["Hardmax 'y'", "not supported", "HardSwish"]),
    ("foreign domain", model("y = my.Thing (x)", 13, X3), ["my.Thing 'y'", "not supported"]),
    ("several", model("a = Hardmax (x)\nb = Hardmax (a)\ny = Shrink (b)", 13, X3), ["Hardmax 'a', 'b'", "Shrink 'y'"]),
    (
        "conv 3-D",
        model(CONV, 13, {"x": (1, 2, 4, 4, 4)}, w=random(3, 2, 1, 1, 1)),
        ["Conv 'y'", "rank 3 or 4", "[1, 2, 4, 4, 4]"],
    ),
    ("group", with_attribute(model(CONV, 13, X4, **W), "group", 0), ["group divides", "group=0"]),
    ("pads", model("y = Conv <pads=[0,-1,0,0]> (x, w)", 13, X4, **W), ["Conv 'y'", "negative"]),
    ("both paddings", model('y = Conv <pads=[1,1,1,1], auto_pad="VALID"> (x, w)', 13, X4, **W), ["auto_pad NOTSET"]),
    ("auto pad", model('y = Conv <auto_pad="SOME"> (x, w)', 13, X4, **W), ["auto_pad is one of", "SOME"]),
    ("kernel shape", model("y = Conv <kernel_shape=[2,2]> (x, w)", 13, X4, **W), ["Conv"]),
    ("computed weights", model(CONV, 13, {**X4, "w": (4, 6, 3, 2)}), ["weights and bias are constants"]),
    ("indices", model("y, i = MaxPool <kernel_shape=[2,2]> (x)", 13, X4, "y i"), ["MaxPool 'y'", "int64"]),
    ("storage order", model("y = MaxPool <kernel_shape=[2,2], storage_order=1> (x)", 13, X4), ["storage_order is 0"]),
    ("dilated average", model("y = AveragePool <kernel_shape=[2,2], dilations=[2,3]> (x)", 19, X4), ["not dilated"]),
    (
        "training",
        model("y = BatchNormalization <training_mode=1> (x, s, s, s, s)", 15, X4, s=np.ones(6, np.float32)),
        ["BatchNormalization 'y'", "Training_mode"],
    ),
    (
        "spatial",
        model("y = BatchNormalization <spatial=0> (x, s, s, s, s)", 7, X4, s=np.ones((6, 9, 7), np.float32)),
        ["spatial is 1"],
    ),
    ("norm of a computed gain", model("y = LayerNormalization (x, x)", 17, {"x": (9,)}), ["scale and bias are const"]),
    (
        "comparison alone",
        model("a = Less (x, x)\nb = Xor (a, a)\ny = Cast <to=1> (b)", 9, X3),
        ["condition of a Where"],
    ),
    ("choice", model("m = IsNaN (x)\ny = Where (m, x, x)", 13, X3), ["IsNaN 'm': the operator is not supported"]),
    ("zero divisor", model("y = Div (x, c)", 13, X3, c=np.arange(9, dtype=np.float32)), ["no zero"]),
    ("slope", model("y = PRelu (x, s)", 13, X4, s=random(9, 1)), ["one, or one per channel"]),
    ("clip", model("y = Clip <min=2.0, max=1.0> (x)", 9, X3), ["min is not above max", "2 and 1"]),
    ("cast", model("y = Cast <to=10> (x)", 13, X3), ["Cast 'y'", "float16"]),
    (
        "reflect too far",
        model('y = Pad <mode="reflect"> (x, p)', 13, X3, p=ints(0, 0, 9, 0, 0, 1)),
        ["smaller than its axis", "[2, 6, 9]"],
    ),
    ("gather beyond", model("y = Gather (x, i)", 13, X3, i=ints(2)), ["inside the axis of 2"]),
    ("scatter twice", model("y = ScatterND (x, i, u)", 13, {**X2, "u": (2, 6)}, i=ints([1], [1])), ["each entry once"]),
    ("scatter added", model(ADDED, 16, {**X2, "u": (1, 6)}, i=ints([1])), ["no reduction"]),
    ("pow of two", model("y = Pow (x, x)", 13, X3), ["the exponent is one constant"]),
    (
        "einsum of batches",
        model('y = Einsum <equation="ab,ab->ab"> (x, w)', 13, X2, w=random(3, 6)),
        ["both operands have is summed over"],
    ),
    ("einsum of two", model('y = Einsum <equation="ab,cb->a"> (x, x)', 13, X2), ["one operand only is in the result"]),
    ("cubic", model('y = Resize <mode="cubic"> (x, , s)', 13, X4, s=np.ones(4, np.float32)), ["nearest or linear"]),
    (
        "bilinear by ratios",
        model('y = Resize <mode="linear"> (x, , s)', 13, X4, s=np.array([1, 1, 1.5, 2], np.float32)),
        ["by whole factors", "half_pixel or asymmetric"],
    ),
    (
        "transposed 3-D",
        model("y = ConvTranspose (x, w)", 13, {"x": (1, 2, 4, 4, 4)}, w=random(2, 3, 1, 1, 1)),
        ["rank 3"],
    ),
    ("negative pad", model("y = Pad (x, p)", 13, X3, p=ints(0, 0, -1, 0, 0, 1)), ["pads are not negative"]),
    ("split", model("a, y = Split <axis=2> (x)", 13, X3), ["Split 'a'", "evenly"]),
    ("output is input", model("y = Relu (x)", 13, X3, "y x"), ["graph output 'x' is a graph input"]),
    ("all is constant", model("c = Abs (w)\ny = Relu (c)", 13, X3, w=random(2)), ["graph output 'y' is a constant"]),
    ("output is constant", model("y = Relu (x)", 13, X3, "y w", w=random(2)), ["graph output 'w' is a constant"]),
    (
        "integer input",
        edited(
            model("y = Relu (x)", 14, X3),
            lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.INT32),
        ),
        ["graph input 'x' is int32", "float32"],
    ),
    ("shape from data", model("s = NonZero (x)\ny = Relu (x)\nz = Cast <to=1> (s)", 13, X3, "y z"), ["NonZero"]),
]


@pytest.mark.parametrize(("proto", "words"), [case[1:] for case in UNSUPPORTED], ids=[case[0] for case in UNSUPPORTED])
def test_what_is_unsupported_is_named(proto: onnx.ModelProto, words: list[str]) -> None:
    text = refusal(proto)
    assert all(word in text for word in words), text


def tensor(raw: bytes = b"", **fields: Any) -> onnx.TensorProto:
    return TensorProto(name="w", data_type=FLOAT, dims=[1, 4], raw_data=raw, **fields)


def functions(depth: int, recursive: bool = False) -> onnx.ModelProto:
    """Return a model whose functions call each other twice, down to `depth`, or in a circle."""
    proto = model("y = my.F0 (x)", 13, X3)
    for i in range(depth):
        callee = f"my.F{(i + 1) % depth}" if recursive or i + 1 < depth else "Relu"
        nodes = [onnx.parser.parse_node(f"h = {callee} (x)"), onnx.parser.parse_node(f"y = {callee} (h)")]
        proto.functions.append(helper.make_function("my", f"F{i}", ["x"], ["y"], nodes, proto.opset_import))
    proto.opset_import.append(helper.make_opsetid("my", 1))
    return proto


SOUND = small().SerializeToString()
HOSTILE = [  # name, source, words
    ("empty", b"", ["empty"]),
    ("text", b"hello, this is no model at all\n" * 20, ["not an ONNX model"]),
    ("truncated", SOUND[:-7], ["not an ONNX model"]),
    ("no graph", onnx.ModelProto(ir_version=8).SerializeToString(), ["no graph"]),
    ("no nodes", edited(small(), lambda m: m.graph.ClearField("node")), ["no nodes"]),
    ("no outputs", edited(small(), lambda m: m.graph.ClearField("output")), ["no outputs"]),
    ("opset 6", model("y = Relu (x)", 6, X3), ["opset 6", "7 to"]),
    ("opset 99", model("y = Relu (x)", 99, X3), ["opset 99"]),
    ("no opset", edited(small(), lambda m: m.ClearField("opset_import")), ["0 times"]),
    ("pads of 2^40", model(f"y = Conv <pads=[{2**40},0,0,0]> (x, w)", 13, X4, **W), ["tensor 'y'"]),
    ("stride 0", model("y = Conv <strides=[0,1]> (x, w)", 13, X4, **W), ["Conv"]),
    ("NaN", model("y = Add (x, w)", 13, {"x": (1, 2)}, w=NAN), ["'w'", "not finite", "[0, 0]"]),
    ("infinity", model("y = Add (x, w)", 13, {"x": (1, 2)}, w=np.array([1, np.inf], np.float32)), ["'w'", "[1]"]),
    ("infinite scalar", model("y = Add (x, w)", 13, {"x": (1, 2)}, w=np.float32(np.inf)), ["Add 'y'", "finite"]),
    ("folded NaN", model("w = Log (c)\ny = Add (x, w)", 13, {"x": (1, 2)}, c=np.array([-1, 2], np.float32)), ["'w'"]),
    (
        "cycle",
        model("a = Add (x, b)\nb = Relu (a)\ny = Relu (b)", 13, X3),
        ["Add 'a' reads 'b' before Relu 'b'", "cycle"],
    ),
    ("reads nothing", model("y = Add (x, b)", 13, X3), ["reads 'b', which nothing makes"]),
    ("made twice", model("y = Relu (x)\ny = Tanh (x)", 13, X3), ["makes 'y', which exists already"]),
    ("two inputs", edited(small(), lambda m: m.graph.input.append(m.graph.input[0])), ["'x' appears twice"]),
    ("no such output", edited(small(), lambda m: setattr(m.graph.output[0], "name", "q")), ["'q' is made by nothing"]),
    (
        "escape in a name",
        edited(small(), lambda m: setattr(m.graph.node[0], "name", "\x1b[2Jx")),
        ["cannot be printed"],
    ),
    ("NUL in a name", model("y = Relu (x)", 13, {"x": (1, 2)}, **NUL), ["cannot be printed"]),
    ("long name", edited(small(), lambda m: setattr(m.graph.node[0], "name", "n" * 2000)), ["2,000 characters"]),
    (
        "bytes too few",
        edited(small(), lambda m: m.graph.initializer.append(tensor(b"1234"))),
        ["needs 16 bytes", "found 4"],
    ),
    ("bytes too many", edited(small(), lambda m: m.graph.initializer.append(tensor(b"1" * 20))), ["found 20"]),
    (
        "no data",
        edited(small(), lambda m: m.graph.initializer.append(TensorProto(name="w", data_type=FLOAT, dims=[2**40]))),
        ["'w'", "every dimension"],
    ),
    (
        "negative dimension",
        edited(small(), lambda m: m.graph.initializer.append(TensorProto(name="w", data_type=FLOAT, dims=[-1]))),
        ["every dimension"],
    ),
    (
        "unknown type",
        edited(small(), lambda m: m.graph.initializer.append(TensorProto(name="w", data_type=99, dims=[1]))),
        ["unknown data type 99"],
    ),
    (
        "data twice",
        edited(small(), lambda m: m.graph.initializer.append(tensor(b"1" * 16, float_data=[1.0] * 4))),
        ["more than once"],
    ),
    (
        "external in bytes",
        edited(
            small(),
            lambda m: m.graph.initializer.append(
                tensor(data_location=TensorProto.EXTERNAL, external_data=[{"key": "location", "value": "w"}])
            ),
        ),
        ["as a path"],
    ),
    ("unknown attribute", with_attribute(small(), "speed", 3), ["Relu 'y'", "speed"]),
    ("wrong attribute", with_attribute(model(CONV, 13, X4, **W), "group", "many"), ["Conv 'y'", "group"]),
    ("short strides", model("y = Conv <strides=[1]> (x, w)", 13, X4, **W), ["Conv"]),
    ("rank 9", model("y = Relu (x)", 13, {"x": (1,) * 9}), ["rank 9"]),
    ("zero size", model("y = Relu (x)", 13, {"x": (2, 0)}), ["'x'"]),
    ("too many entries", model("y = Relu (x)", 13, {"x": (2**20, 2**12)}), ["'x'", "elements"]),
    (
        "huge constant",
        model("w = ConstantOfShape (s)\ny = Add (x, w)", 13, {"x": (1,)}, s=ints(2**30, 2)),
        ["'w'", "bytes"],
    ),
    (
        "huge expand",
        model("w = Expand (c, s)\ny = Add (x, w)", 13, {"x": (1,)}, c=np.float32(1), s=ints(2**40)),
        ["'w'"],
    ),
    (
        "huge range",
        model(
            "w = Range (a, b, d)\ny = Add (x, w)", 13, {"x": (1,)}, a=np.float32(0), b=np.float32(1e18), d=np.float32(1)
        ),
        ["'w'"],
    ),
    ("function in a circle", functions(3, recursive=True), ["calls itself"]),
    ("functions in heaps", functions(60), ["nodes", "inlined"]),
    ("split in fewer", model("a, y = Split <num_outputs=1> (x)", 18, X3), ["Split 'a'", "num_outputs"]),
    ("not UTF-8", SOUND.replace(b"Relu", b"Re\xff\xfe"), ["Re", "not UTF-8"]),
    ("channels", model(CONV, 13, X4, w=random(4, 5, 3, 2)), ["Conv"]),
    ("shapes do not fit", model("y = Add (x, w)", 13, X3, w=random(4)), ["do not fit"]),
]


@pytest.mark.parametrize(("source", "words"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_hostile_models_are_refused(source: Any, words: list[str]) -> None:
    """Every refusal is one ModelError, quick, and names what is wrong."""
    start = time.perf_counter()
    text = refusal(source)
    assert all(word in text for word in words), text
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("text", "constants", "skipped"),
    [
        ("t = Transpose <perm=[1,0]> (x)\nr = Reshape (t, s)\ny = Concat <axis=0> (r, r)", {"s": ints(1, 2, 3)}, True),
        ("r = Reshape (x, s)\nq = Squeeze (r, a)\ny = Clip (q)", {"s": ints(1, 2, 3), "a": ints(0)}, True),
        ("r = Reshape (x, s)\ny = Add (r, r)", {"s": ints(2, 3)}, False),
        ("t = Neg (x)\nr = Reshape (t, s)\ny = Mul (r, r)", {"s": ints(6)}, False),
        ("y = Concat <axis=1> (x, e)", {"e": np.zeros((2, 0), np.float32)}, False),
        (
            "c = Slice (x, i, j, a)\nu = Unsqueeze (c, a)\np = Pow (u, t)\nq = Sqrt (p)\ny = ReduceMean <axes=[1]> (q)",
            {"i": ints(1), "j": ints(2), "a": ints(0), "t": np.float32(2)},
            True,
        ),
        (
            "g = Gather <axis=1> (x, i)\nd = MatMul (g, w)\ny = Concat <axis=0> (d, d)",
            {"i": ints(0, 2), "w": random(2, 3)},
            True,
        ),
        ("c = Slice (x, i, j)\nr = Relu (c)\ny = Concat <axis=0> (x, r)", {"i": ints(2), "j": ints(9)}, False),
        (
            'a, b = Split <axis=1> (x, s)\nm = Max (a, b)\ny = Pad <mode="reflect"> (m, p)',
            {"s": ints(1, 2), "p": ints(0, 0, 0, 0)},
            True,
        ),
        ("y = Concat <axis=1> (x)", {}, False),
    ],
)
def test_folding_is_skipped_where_it_finds_nothing(text: str, constants: dict[str, Any], skipped: bool) -> None:
    """A model that the tools do not see is one that they leave as it is."""
    proto = model(text, 13, {"x": (2, 3)}, **constants)
    before = [(node.op_type, *node.input, *node.output) for node in proto.graph.node]
    assert (fold(proto, Limits()) is proto) == skipped
    tools = _run(proto, _Gate(Limits(), 1 << 20))
    assert not skipped or before == [(node.op_type, *node.input, *node.output) for node in tools.graph.node]


def test_folding_has_a_budget() -> None:
    proto = model("w = ConstantOfShape (s)\nv = ConstantOfShape (s)\ny = Sum (x, w, v)", 13, {"x": (1,)}, s=ints(100))
    assert "'v' would make a constant of 400 bytes; at most 700" in refusal(proto, folded_bytes=700, folds=0)
    prepare(proto, limits=Limits(folded_bytes=800))
    stored = model("a = Neg (w)\nb = Abs (a)\ny = Add (x, b)", 13, {"x": (1,)}, w=random(100))
    prepare(stored, limits=Limits(folded_bytes=0, folds=2))
    assert "'b' would make a constant of 400 bytes" in refusal(stored, folded_bytes=0, folds=1)


RICH = model(
    CASES[1][1] + "\nz = ReduceMean <axes=[2]> (y)\na, b = Split <axis=1, split=[4,5]> (z)\n"
    "k = ConstantOfShape (s)\nq = Add (a, k)",
    11,
    X4,
    "q",
    **CASES[1][4],
    s=ints(1, 4, 1, 1),
).SerializeToString()


@settings(max_examples=300, deadline=None)
@given(
    at=st.lists(st.tuples(st.integers(0, len(RICH) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, len(RICH) * 3),
)
def test_damaged_bytes_never_give_a_traceback(at: list[tuple[int, int]], cut: int) -> None:
    """Random damage is read as another model, or refused by a ModelError."""
    data = bytearray(RICH)
    for index, byte in at:
        data[index] = byte
    try:
        import_graph(prepare(bytes(data[:cut] if cut else data)))
    except ModelError:
        pass


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert "No such file" in refusal(path)
    assert "not a regular file" in refusal(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    path.write_bytes(SOUND)
    assert "at most 10" in refusal(path, file_bytes=10)
    assert import_graph(prepare(str(path))).outputs == import_graph(prepare(SOUND)).outputs == ("y",)
    assert "nodes" in refusal(path, nodes=0)


def external(tmp_path: Path, **entries: str) -> Path:
    """Return a model whose tensor `w` has its data elsewhere."""
    proto = model("y = Add (x, w)", 13, {"x": (1, 4)}, w=random(1, 4))
    stored = proto.graph.initializer[0]
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        stored.external_data.add(key=key, value=value)
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def test_external_data(tmp_path: Path) -> None:
    """Weights beside the model are read; nothing outside its folder is."""
    path, w = external(tmp_path, location="sub/w.bin", offset="4", length="16"), random(1, 4)
    (path.parent / "sub").mkdir()
    (path.parent / "sub" / "w.bin").write_bytes(b"head" + w.tobytes())
    graph = import_graph(prepare(path))
    assert np.array_equal(graph.constants["w"], w)
    (tmp_path / "secret").write_bytes(w.tobytes())
    (path.parent / "link").symlink_to(tmp_path / "secret")
    (path.parent / "up").symlink_to(tmp_path)
    for location in (
        "../secret",
        str(tmp_path / "secret"),
        "sub/../../secret",
        "link",
        "up/secret",
        "",
        "..\\secret",
        "C:\\x",
    ):
        text = refusal(external(tmp_path, location=location))
        assert "tensor 'w'" in text and "folder" in text, text
    for entries, words in [
        ({"location": "gone"}, "No such file"),
        ({"location": "sub"}, "regular"),
        ({"location": "sub/w.bin", "offset": "-8"}, "offset"),
        ({"location": "sub/w.bin", "length": str(2**50)}, "bytes"),
        ({"location": "sub/w.bin", "offset": "8", "length": "16"}, "are due"),
        ({"location": "sub/w.bin", "speed": "1"}, "malformed"),
        ({"location": "sub/w.bin"}, "at most 16"),
    ]:
        assert words in refusal(external(tmp_path, **entries))


def test_open_shapes() -> None:
    """Open dimensions are fixed by name, symbols together, and contradictions are refused."""
    proto = model("y = Add (x, z)", 13, {"x": ("N", 3), "z": ("N", 1)})
    text = refusal(proto)
    assert "'x'" in text and "[N, 3]" in text and "--shape x=1,3" in text and "--shape z=1,1" in text
    graph = agree(proto, {"x": (5, 3)})
    assert graph.values["z"].shape == (5, 1) and graph.values["y"].shape == (5, 3)
    wrong: list[tuple[dict[str, tuple[int, ...]], str]] = [
        ({"q": (1,)}, "'q'"),
        ({"x": (5,)}, "contradicts"),
        ({"x": (5, 4)}, "[N, 3]"),
        ({"x": (5, 3), "z": (4, 1)}, "'N' is given as 5 and as 4"),
        ({"x": (0, 3)}, "every dimension"),
        ({"x": (-1, 3)}, "every dimension"),
        ({"x": (2**27, 3)}, "elements"),
    ]
    for shapes, words in wrong:
        assert words in refusal(proto, shapes)


def test_constants_wherever_they_hide() -> None:
    """Old-style inputs, Constant nodes, shape arithmetic, casts, identities and functions are all resolved."""
    proto = model(
        """
        s = Shape (x)
        n = Gather (s, first)
        u = Unsqueeze (n, zero)
        t = Concat <axis=0> (u, rest)
        c = Constant <value = float[1] {2.0}> ()
        i = Identity (w)
        z = NonZero (wide)
        d = Cast <to=1> (z)
        k = ConstantOfShape (four)
        a = my.Scaled (x, i)
        b = Add (a, d)
        e = Add (b, k)
        f = Mul (e, c)
        y = Reshape (f, t)
    """,
        13,
        {"x": (3, 4), "w": (4,)},
        w=random(4),
        wide=np.ones(4),
        zero=ints(0),
        first=np.int64(0),
        rest=ints(2, 2),
        four=ints(4),
    )
    proto.functions.append(
        helper.make_function(
            "my",
            "Scaled",
            ["p", "q"],
            ["r"],
            [onnx.parser.parse_node("h = Mul (p, q)"), onnx.parser.parse_node("r = Relu (h)")],
            proto.opset_import,
        )
    )
    proto.opset_import.append(helper.make_opsetid("my", 1))
    prepared = prepare(proto)
    assert [node.op_type for node in prepared.graph.node] == ["Mul", "Relu", "Add", "Add", "Mul", "Reshape"]
    assert [info.name for info in prepared.graph.input] == ["x"]
    assert {"a", "b", "e", "f", "y"} <= {name for node in prepared.graph.node for name in node.output}
    graph, x = import_graph(prepared), random(3, 4)
    expected = 2 * (np.maximum(x * numpy_helper.to_array(proto.graph.initializer[0]), 0) + np.arange(4))
    np.testing.assert_allclose(interpret(graph, {"x": x})["y"].reshape(3, 4), expected, rtol=1e-5)
    np.testing.assert_allclose(ort(prepared, {"x": x})["y"].reshape(3, 4), expected, rtol=1e-5)


def test_the_source_is_not_changed_and_names_are_kept() -> None:
    proto = model("h = Relu (x)\ny = Identity (h)\nz = Tanh (h)", 13, X3, "y z")
    proto.graph.node[0].name = "y"
    before = proto.SerializeToString(deterministic=True)
    graph = agree(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert graph.inputs == ("x",) and graph.outputs == ("y", "z")
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)


def test_views_of_one_tensor_are_shared() -> None:
    graph = agree(model("a = Conv (x, w)\nb = Conv (x, w)\ny = Add (a, b)", 13, X4, **W))
    assert [node.op.name for node in graph.nodes].count("Transpose") == 3
    assert graph.values["x.nhwc"].origin is not None and graph.values["a.nhwc"].shape == (2, 7, 6, 4)
    assert sorted(graph.constants) == ["a.bias", "b.bias", "w.ohwi"]


def test_a_long_chain_is_quick() -> None:
    lines = "\n".join(f"h{i} = Relu ({f'h{i - 1}' if i else 'x'})" for i in range(3000)) + "\ny = Relu (h2999)"
    start = time.perf_counter()
    assert len(import_graph(prepare(model(lines, 13, X2))).nodes) == 3001
    assert time.perf_counter() - start < 8


REAL = {  # name: (nodes of the graph without layout moves, outputs)
    "arm_kws_ds_cnn_s": 1,
    "arm_kws_cnn_s": 1,
    "arm_kws_dnn_s": 1,
    "ort_mnist": 1,
    "ultraface_slim_320": 2,
    "light_squeezenet": 1,
    "light_resnet50": 1,
}


@pytest.mark.parametrize("name", REAL)
def test_real_models(name: str) -> None:
    """The real models come in whole; the trained ones compute what onnxruntime computes."""
    assets = os.environ.get("NNAC_ASSETS")
    if not assets:
        pytest.skip("NNAC_ASSETS is not set: no real models")
    path = Path(assets) / "models" / name / f"{name}.onnx"
    prepared = prepare(path)
    graph = import_graph(prepared)
    assert len(graph.outputs) == REAL[name]
    convs = sum(prod(a.shape) > 0 for a in graph.constants.values())
    assert convs >= 4
    if not name.startswith("light"):
        feeds = feeds_of(graph)
        values, original = interpret(graph, feeds), ort(onnx.load(path), feeds)
        for output in graph.outputs:
            np.testing.assert_allclose(values[output], original[output], rtol=1e-3, atol=1e-4)
