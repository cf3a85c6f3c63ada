"""What operators mean: every row against onnxruntime, through a float64 reading of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnac.errors import ModelError
from nnac.frontend import TABLE, prepare, supported_operators
from nnac.frontend.decompose import REWRITES
from nnac.frontend.fold import FOLDABLE
from nnac.frontend.logic import SPLIT
from nnac.frontend.qoperator import ON_REALS, QUANTIZERS, RULES
from nnac.frontend.recognise import COMPARING
from tests import rows
from tests.reading import agree, ints, kinds, model, ort, random

X4, X3, X2 = {"x": (2, 6, 9, 7)}, {"x": (2, 6, 9)}, {"x": (3, 6)}
C4 = random(6, 1, 1)
ALL = (7, 9, 11, 13, 18, 21, 23)
OLD, MID, NEW = (7, 9), (11,), (13, 18, 21, 23)
CASES: list[rows.Case] = [
    # name, nodes, opsets, inputs, constants, operators
    ("conv", "y = Conv (x, w, b)", ALL, X4, {"w": random(4, 6, 3, 2), "b": random(4)}, ["Conv"]),
    (
        "conv groups",
        "y = Conv <group=3, pads=[1,0,2,1], strides=[2,1], dilations=[1,2]> (x, w)",
        ALL,
        X4,
        {"w": random(9, 2, 3, 2)},
        ["Conv"],
    ),
    (
        "conv 1-D",
        "y = Conv <kernel_shape=[3], pads=[2,1], strides=[2]> (x, w)",
        ALL,
        X3,
        {"w": random(4, 6, 3)},
        ["Conv"],
    ),
    (
        "conv same",
        'y = Conv <auto_pad="SAME_LOWER", strides=[2,2]> (x, w)',
        ALL,
        X4,
        {"w": random(4, 6, 4, 3)},
        ["Conv"],
    ),
    ("conv valid", 'y = Conv <auto_pad="VALID"> (x, w)', ALL, X4, {"w": random(4, 6, 4, 3)}, ["Conv"]),
    (
        "conv twice",
        "h = Conv (x, w)\nz = Relu (h)\ny = Conv (z, v)",
        ALL,
        X4,
        {"w": random(4, 6, 3, 2), "v": random(3, 4, 1, 1)},
        ["Conv", "Activation", "Conv"],
    ),
    ("max pool", "y = MaxPool <kernel_shape=[3,2], strides=[2,2], pads=[1,1,0,0]> (x)", ALL, X4, {}, ["MaxPool"]),
    ("max pool dilated", "y = MaxPool <kernel_shape=[3,2], dilations=[2,3]> (x)", (11, 13, 22), X4, {}, ["MaxPool"]),
    ("max pool 1-D", "y = MaxPool <kernel_shape=[3], ceil_mode=1, strides=[2]> (x)", (11, 13, 22), X3, {}, ["MaxPool"]),
    ("average pool", "y = AveragePool <kernel_shape=[3,2], pads=[1,1,1,0]> (x)", ALL, X4, {}, ["AveragePool"]),
    (
        "average pool counted",
        "y = AveragePool <kernel_shape=[3,2], pads=[1,1,1,0], count_include_pad=1> (x)",
        ALL,
        X4,
        {},
        ["AveragePool"],
    ),
    (
        "global pools",
        "a = GlobalAveragePool (x)\nm = GlobalMaxPool (x)\ny = Add (a, m)",
        ALL,
        X4,
        {},
        ["AveragePool", "MaxPool", "Sum"],
    ),
    (
        "global pools 1-D",
        "a = GlobalAveragePool (x)\nm = GlobalMaxPool (x)\ny = Mul (a, m)",
        ALL,
        X3,
        {},
        ["AveragePool", "MaxPool", "Mul"],
    ),
    ("mean of space", "y = ReduceMean <axes=[2,3]> (x)", (7, 11, 13), X4, {}, ["AveragePool"]),
    ("mean of space flat", "y = ReduceMean <axes=[-1,-2], keepdims=0> (x)", (11, 13), X4, {}, ["AveragePool"]),
    ("mean of last", "y = ReduceMean <axes=[-1]> (x)", (7, 13), X3, {}, ["AveragePool"]),
    ("mean of middle", "y = ReduceMean <axes=[1], keepdims=0> (x)", (7, 13), X3, {}, ["AveragePool"]),
    ("mean of apart", "y = ReduceMean <keepdims=0> (x, a)", (18, 23), X4, {"a": ints(0, -1)}, ["AveragePool"]),
    ("mean of all", "y = ReduceMean (x)", (7, 13, 18), X4, {}, ["AveragePool"]),
    ("mean of none", "y = ReduceMean <noop_with_empty_axes=1> (x)", (18, 23), X4, {}, []),
    ("gemm", "y = Gemm (x, w, b)", ALL, X2, {"w": random(6, 5), "b": random(5)}, ["Dense"]),
    (
        "gemm turned",
        "y = Gemm <alpha=0.5, beta=2.0, transA=1, transB=1> (x, w, b)",
        ALL,
        {"x": (6, 3)},
        {"w": random(5, 6), "b": random(1, 5)},
        ["Dense"],
    ),
    ("gemm scalar bias", "y = Gemm (x, w, b)", ALL, X2, {"w": random(6, 5), "b": random(1)}, ["Dense"]),
    ("gemm without bias", "y = Gemm (x, w)", (11, 13), X2, {"w": random(6, 5)}, ["Dense"]),
    (
        "gemm matrix added",
        "y = Gemm <beta=0.5> (x, w, b)",
        ALL,
        X2,
        {"w": random(6, 5), "b": random(3, 1)},
        ["Dense", "Sum"],
    ),
    (
        "gemm computed added",
        "y = Gemm <beta=0.5> (x, w, c)",
        ALL,
        {**X2, "c": (5,)},
        {"w": random(6, 5)},
        ["Dense", "Activation", "Sum"],
    ),
    ("matmul", "y = MatMul (x, w)", ALL, X3, {"w": random(9, 5)}, ["Dense"]),
    ("matmul vector", "y = MatMul (x, w)", ALL, X3, {"w": random(9)}, ["Dense"]),
    ("matmul of a vector", "y = MatMul (x, w)", ALL, {"x": (6,)}, {"w": random(6, 4)}, ["Dense"]),
    ("matmul batch of one", "y = MatMul (x, w)", ALL, X2, {"w": random(1, 1, 6, 4)}, ["Dense"]),
    ("matmul left", "y = MatMul (w, x)", ALL, X3, {"w": random(5, 6)}, ["Dense"]),
    ("matmul left vector", "y = MatMul (w, x)", ALL, X3, {"w": random(6)}, ["Dense"]),
    ("matmul left of a vector", "y = MatMul (w, x)", ALL, {"x": (6,)}, {"w": random(4, 6)}, ["Dense"]),
    (
        "batch norm",
        "y = BatchNormalization <epsilon=0.01> (x, s, b, m, v)",
        (7, 9, 14, 15),
        X4,
        {"s": random(6), "b": random(6), "m": random(6), "v": np.abs(random(6))},
        ["Conv"],
    ),
    (
        "batch norm 1-D",
        "y = BatchNormalization (x, s, b, m, v)",
        (9, 15),
        X3,
        {"s": random(6), "b": random(6), "m": random(6), "v": np.abs(random(6))},
        ["Conv"],
    ),
    (
        "batch norm dense",
        "y = BatchNormalization (x, s, b, m, v)",
        (9, 15),
        X2,
        {"s": random(6), "b": random(6), "m": random(6), "v": np.abs(random(6))},
        ["Conv"],
    ),
    (
        "scalars",
        "a = Add (x, c)\nb = Sub (a, c)\nd = Sub (c, b)\ne = Mul (c, d)\ny = Div (e, c)",
        ALL,
        X4,
        {"c": np.float32(1.7)},
        ["Activation"] * 5,
    ),
    ("scalar of more axes", "y = Mul (x, c)", ALL, X2, {"c": random(1, 1, 1)}, ["Activation"]),
    (
        "channels",
        "a = Add (x, c)\nb = Sub (a, c)\nd = Sub (c, b)\ne = Mul (c, d)\ny = Div (e, c)",
        ALL,
        X4,
        {"c": C4},
        ["Conv"] * 5,
    ),
    ("channels 1-D", "a = Add (x, c)\ny = Mul (c, a)", ALL, X3, {"c": random(1, 6, 1)}, ["Conv"] * 2),
    (
        "constants",
        "a = Add (x, c)\nb = Sub (a, c)\nd = Sub (c, b)\ne = Mul (c, d)\ny = Div (e, c)",
        ALL,
        X3,
        {"c": random(6, 9)},
        ["Sum", "Sum", "Sum", "Mul", "Mul"],
    ),
    (
        "bias behind dense",
        "h = MatMul (x, w)\ny = Add (h, c)",
        ALL,
        X2,
        {"w": random(6, 4), "c": random(4)},
        ["Dense", "Sum"],
    ),
    ("constant that grows x", "y = Add (x, c)", ALL, X2, {"c": random(2, 3, 6)}, ["Sum"]),
    (
        "two tensors",
        "a = Add (x, z)\nb = Mul (a, z)\ny = Sub (b, x)",
        ALL,
        {**X4, "z": (1, 6, 1, 7)},
        {},
        ["Sum", "Mul", "Sum"],
    ),
    ("square", "y = Mul (x, x)", ALL, X3, {}, ["Mul"]),
    ("sum", "y = Sum (x, z, c)", ALL[1:], {**X3, "z": (6, 1)}, {"c": random(9)}, ["Sum"]),
    ("sum of one", "y = Sum (x)", ALL, X3, {}, []),
    (
        "functions",
        "a = Relu (x)\nb = LeakyRelu <alpha=0.3> (x)\nc = Sigmoid (b)\nd = Tanh (a)\ny = Mul (c, d)",
        ALL,
        X3,
        {},
        ["Activation"] * 4 + ["Mul"],
    ),
    (
        "hard functions",
        "a = HardSigmoid <alpha=0.3> (x)\nb = HardSwish (x)\nc = Neg (b)\ny = Add (a, c)",
        (14, 21),
        X3,
        {},
        ["Activation"] * 3 + ["Sum"],
    ),
    ("prelu scalar", "y = PRelu (x, s)", ALL, X4, {"s": random(1)}, ["Activation"]),
    ("prelu channels", "y = PRelu (x, s)", ALL, X4, {"s": C4}, ["Activation"]),
    ("prelu 1-D", "y = PRelu (x, s)", ALL, X3, {"s": random(6, 1)}, ["Activation"]),
    ("prelu last", "y = PRelu (x, s)", ALL, X2, {"s": random(6)}, ["Activation"]),
    ("clip attributes", "a = Clip <min=-0.5, max=0.7> (x)\ny = Clip <max=0.1> (a)", OLD, X3, {}, ["Activation"] * 2),
    (
        "clip inputs",
        "a = Clip (x, l, h)\ny = Clip (a, , m)",
        MID + NEW,
        X3,
        {"l": np.float32(-0.5), "h": np.float32(0.7), "m": np.float32(0.1)},
        ["Activation"] * 2,
    ),
    ("softmax", "y = Softmax (x)", ALL, X2, {}, ["Softmax"]),
    ("softmax axis", "y = Softmax <axis=1> (x)", ALL, X4, {}, ["Softmax"]),
    ("softmax first", "y = Softmax <axis=0> (x)", ALL, X3, {}, ["Softmax"]),
    ("softmax last", "y = Softmax <axis=-1> (x)", (11, 13), X3, {}, ["Softmax"]),
    ("concat", "y = Concat <axis=-2> (x, c, x)", (11, 13), X3, {"c": random(2, 1, 9)}, ["Concat"]),
    (
        "split attribute",
        "a, b = Split <axis=1, split=[2,4]> (x)\ny = Concat <axis=1> (b, a)",
        (7, 11),
        X3,
        {},
        ["Slice", "Slice", "Concat"],
    ),
    (
        "split input",
        "a, b = Split <axis=-1> (x, s)\ny = Concat <axis=2> (b, a)",
        (13, 18, 23),
        X3,
        {"s": ints(5, 4)},
        ["Slice", "Slice", "Concat"],
    ),
    ("split equal", "a, b, c = Split <axis=1> (x)\ny = Add (c, a)", (7, 11, 13), X3, {}, ["Slice", "Slice", "Sum"]),
    (
        "split uneven",
        "a, b = Split <axis=2, num_outputs=2> (x)\ny = Relu (b)",
        (18, 23),
        X3,
        {},
        ["Slice", "Activation"],
    ),
    ("slice attributes", "y = Slice <axes=[1,2], starts=[1,-5], ends=[1000,-1]> (x)", OLD, X3, {}, ["Slice"]),
    (
        "slice inputs",
        "y = Slice (x, s, e, a, t)",
        (11, 13, 23),
        X3,
        {"s": ints(-1, 7), "e": ints(-100, 2), "a": ints(1, -1), "t": ints(-2, -1)},
        ["Slice"],
    ),
    ("slice plain", "y = Slice (x, s, e)", (11, 13), X3, {"s": ints(0, 2), "e": ints(1, 2**63 - 1)}, ["Slice"]),
    (
        "reshape",
        "a = Reshape (x, s)\nb = Flatten <axis=2> (a)\ny = Relu (b)",
        ALL,
        X3,
        {"s": ints(0, 3, 2, -1)},
        ["Activation"],
    ),
    ("squeeze attributes", "a = Unsqueeze <axes=[0,3]> (x)\ny = Squeeze <axes=[0]> (a)", (7, 11), X3, {}, []),
    (
        "squeeze inputs",
        "a = Unsqueeze (x, u)\nb = Squeeze (a, s)\ny = Squeeze (b)",
        (13, 23),
        X3,
        {"u": ints(-1, 0), "s": ints(0)},
        [],
    ),
    ("transpose", "a = Transpose (x)\nb = Relu (a)\ny = Transpose <perm=[1,2,0,3]> (b)", ALL, X4, {}, ["Activation"]),
    ("pad attributes", "y = Pad <pads=[0,1,2,0,0,3], value=0.5> (x)", OLD, X3, {}, ["Pad"]),
    ("pad inputs", "y = Pad (x, p, v)", MID + NEW, X3, {"p": ints(0, 1, 2, 0, 0, 3), "v": np.float32(0.5)}, ["Pad"]),
    ("pad axes", "y = Pad (x, p, , a)", (18, 23), X3, {"p": ints(1, 2), "a": ints(-2)}, ["Pad"]),
    (
        "identities",
        "a = Identity (x)\nb = Dropout (a)\nc = Cast <to=1> (b)\nd = Relu (c)\ny = Identity (d)",
        ALL,
        X3,
        {},
        ["Activation"],
    ),
    (
        "dropout input",
        "a = Relu (x)\nb = Dropout (a, r, t)\ny = Relu (b)",
        (13, 22),
        X3,
        {"r": np.float32(0.5), "t": np.array(False)},
        ["Activation"] * 2,
    ),
]
CASES += rows.CASES


@pytest.mark.parametrize(("name", "opset"), [(c[0], opset) for c in CASES for opset in c[2]])
def test_rows(name: str, opset: int) -> None:
    """Each row computes what onnxruntime computes, and becomes the operators that it should."""
    _, lines, _, inputs, constants, expected = next(c for c in CASES if c[0] == name)
    assert kinds(agree(model(lines, opset, inputs, **constants))) == expected


RECURRENT = {"GRU", "LSTM", "Loop", "RNN", "Scan"}
"""Rows with tests of their own, in `test_cells`."""


QUANTIZED = {f"{domain}.{name}" if domain else name for domain, name in RULES} | set(QUANTIZERS)
AHEAD = QUANTIZED | (set(FOLDABLE) | {"If"}) - set(TABLE) - set(REWRITES) - {*COMPARING, *SPLIT}
"""What is gone before rows are looked up: operators on integers (`test_quantized`), and what is computed (`fold`)."""


def test_the_list_of_operators_is_complete() -> None:
    """What rows, rewritings, conditions, integer forms and folding accept, and nothing else."""
    listed = {name: becomes for name, becomes, _ in supported_operators()}
    assert set(listed) == {*TABLE, *REWRITES, *COMPARING, *SPLIT} | AHEAD
    assert set(ON_REALS) == {name for _, name in RULES}
    assert all(listed[name] for name in {*TABLE, *REWRITES})
    assert listed["com.microsoft.QGemm"] == listed["Gemm"] and listed["And"] == "Select"


def test_every_row_has_a_case() -> None:
    nodes = [node for case in CASES for node in model(case[1], 13, case[3], **case[4]).graph.node]
    seen = {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes}
    listed = {name: (becomes, sentences) for name, becomes, sentences in supported_operators()}
    elsewhere = RECURRENT | AHEAD | {"QuantizeLinear", "DequantizeLinear"}
    assert seen == set(listed) - elsewhere and set(TABLE) - elsewhere < seen
    assert list(listed) == sorted(listed) and listed["Conv"][0] == "Conv"
    assert "kernel sides are 1 to 65535" in listed["Conv"][1] and "pads are not negative" in listed["Conv"][1]


def test_sentences_do_not_contradict_each_other() -> None:
    """Each thing once, and nothing about operators that only the import chooses."""
    listed = {name: sentences for name, _, sentences in supported_operators()}
    for name in ("Relu", "Tanh", "Neg", "Identity", "Flatten"):
        assert listed[name] == ()
    assert "1 to 16 operands" in listed["Sum"]
    for name in ("Add", "Sub", "Mul", "Div"):
        assert "two operands" in listed[name] and "1 to 16 operands" not in listed[name]
    for sentences in listed.values():
        assert len(set(sentences)) == len(sentences) and sum("rank 3 or 4" in text for text in sentences) <= 1
        assert not any("the function is one of" in text for text in sentences)


AXIS = st.tuples(
    st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3)
)  # size, kernel, stride, dilation, pad before, pad after
AUTO = st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])


def geometry(axes: Sequence[tuple[int, ...]], auto: str, dilate: bool) -> tuple[str, list[int]]:
    """Return the window attributes as text, and the sizes, grown so that a kernel fits without padding."""
    size, kernel, stride, dilation, before, after = ([axis[i] for axis in axes] for i in range(6))
    dilation = dilation if dilate else [1] * len(axes)
    sizes = [max(s, d * (k - 1) + 1) for s, k, d in zip(size, kernel, dilation, strict=True)]
    if auto.startswith("SAME"):  # onnxruntime's pools refuse the negative padding that follows otherwise
        stride = [min(s, k) for s, k in zip(stride, kernel, strict=True)]
    pads = [min(p, k - 1) for p, k in zip(before + after, kernel * 2, strict=True)]
    padding = f"pads={pads}" if auto == "NOTSET" else f'auto_pad="{auto}"'
    return f"kernel_shape={kernel}, strides={stride}, {padding}" + f", dilations={dilation}" * dilate, sizes


@settings(max_examples=60, deadline=None)
@given(
    axes=st.lists(AXIS, min_size=1, max_size=2),
    auto=AUTO,
    groups=st.integers(1, 3),
    depth=st.integers(1, 2),
    out=st.integers(1, 2),
    opset=st.sampled_from(ALL),
)
def test_conv_geometry(axes: list[tuple[int, ...]], auto: str, groups: int, depth: int, out: int, opset: int) -> None:
    text, sizes = geometry(axes, auto, auto in ("NOTSET", "VALID"))
    weights = random(groups * out, depth, *(axis[1] for axis in axes))
    agree(model(f"y = Conv <group={groups}, {text}> (x, w)", opset, {"x": (2, groups * depth, *sizes)}, w=weights))


@settings(max_examples=100, deadline=None)
@given(
    axes=st.lists(AXIS, min_size=1, max_size=2),
    extra=st.integers(0, 2),
    groups=st.integers(1, 3),
    depth=st.integers(1, 2),
    out=st.integers(1, 2),
)
def test_conv_transpose_geometry(axes: list[tuple[int, ...]], extra: int, groups: int, depth: int, out: int) -> None:
    """Any stride, dilation, padding on each side, and output padding."""
    size, kernel, stride, dilation, before, after = ([axis[i] for axis in axes] for i in range(6))
    full = [s * (n - 1) + d * (k - 1) + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)]
    pads = [min(p, (f - 1) // 2) for p, f in zip(before + after, full * 2, strict=True)]
    more = [min(extra, s - 1) for s in stride]
    text = f"strides={stride}, dilations={dilation}, pads={pads}, output_padding={more}, group={groups}"
    weights = random(groups * depth, out, *kernel)
    agree(model(f"y = ConvTranspose <{text}> (x, w)", 11, {"x": (2, groups * depth, *size)}, w=weights))


def agree_or_drop(proto: onnx.ModelProto, ceil: bool) -> None:
    """Check a pool, or that it is refused since its last window starts behind the input."""
    try:
        agree(proto)
    except ModelError as error:
        assert ceil and "the last window starts before the input ends" in str(error)


@settings(max_examples=60, deadline=None)
@given(axes=st.lists(AXIS, min_size=1, max_size=2), auto=AUTO, ceil=st.booleans(), opset=st.sampled_from((11, 18, 22)))
def test_max_pool_geometry(axes: list[tuple[int, ...]], auto: str, ceil: bool, opset: int) -> None:
    text, sizes = geometry(axes, auto, auto == "NOTSET")
    agree_or_drop(model(f"y = MaxPool <{text}, ceil_mode={int(ceil)}> (x)", opset, {"x": (1, 3, *sizes)}), ceil)


@settings(max_examples=60, deadline=None)
@given(
    axes=st.lists(AXIS, min_size=1, max_size=2),
    auto=AUTO,
    ceil=st.booleans(),
    counted=st.booleans(),
    opset=st.sampled_from((11, 19, 22)),
)
def test_average_pool_geometry(axes: list[tuple[int, ...]], auto: str, ceil: bool, counted: bool, opset: int) -> None:
    text, sizes = geometry(axes, auto, False)
    attributes = f"{text}, ceil_mode={int(ceil)}, count_include_pad={int(counted)}"
    agree_or_drop(model(f"y = AveragePool <{attributes}> (x)", opset, {"x": (1, 3, *sizes)}), ceil)


@settings(max_examples=60, deadline=None)
@given(
    low=st.integers(-9, 9), high=st.integers(-9, 9), step=st.sampled_from([1, 1, 2, 3, -1, -2]), side=st.integers(1, 6)
)
def test_slice_bounds(low: int, high: int, step: int, side: int) -> None:
    proto = model("y = Slice (x, s, e, a, t)", 13, {"x": (2, side)}, s=ints(low), e=ints(high), a=ints(1), t=ints(step))
    if ort(proto, {"x": random(2, side)})["y"].size:
        agree(proto)
    else:
        with pytest.raises(ModelError, match="'y' has shape"):
            prepare(proto)
