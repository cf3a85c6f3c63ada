"""Cases for the rows of functions, fixed places and upscaling: what `test_frontend` runs against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnac.types import Array

RNG = np.random.default_rng(11)
X4, X3, X2 = {"x": (2, 6, 9, 7)}, {"x": (2, 6, 9)}, {"x": (3, 6)}
Case = tuple[str, str, tuple[int, ...], Mapping[str, Sequence[int]], dict[str, Any], list[str]]


def random(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: Any) -> Array:
    return np.array(values, dtype=np.int64)


def floats(values: Sequence[float]) -> Array:
    return np.array(values, dtype=np.float32)


def _function(text: str, opset: int) -> Case:
    return text.lower(), f"y = {text} (x)", (opset,), X3, {}, ["Activation"]


PLAIN = ("Abs", "Ceil", "Cos", "Elu <alpha=1.5>", "Erf", "Exp", "Floor", "Round", "Selu", "Sign", "Sin", "Softplus")
FUNCTIONS: list[Case] = [
    *(_function(text, 13) for text in (*PLAIN, "Softsign", "Celu <alpha=0.7>", "ThresholdedRelu <alpha=0.3>")),
    _function("Swish <alpha=1.3>", 24),
    *(_function(text, 20) for text in ("Mish", "Gelu", 'Gelu <approximate="tanh">')),
    ("selu by hand", "y = Selu <alpha=2.0, gamma=1.5> (x)", (7, 22), X3, {}, ["Activation"]),
    ("log", "a = Abs (x)\ny = Log (a)", (13,), X3, {}, ["Activation"] * 2),
    ("sqrt", "a = Abs (x)\ny = Sqrt (a)", (7, 13), X3, {}, ["Activation"] * 2),
    ("reciprocal", "a = Exp (x)\ny = Reciprocal (a)", (7, 13), X3, {}, ["Activation"] * 2),
    ("square by Pow", "y = Pow (x, e)", (7, 13), X3, {"e": np.float32(2)}, ["Activation"]),
    ("cube in more axes", "y = Pow (x, e)", (13,), X2, {"e": np.full((1, 1, 1), 3.0, np.float32)}, ["Activation"]),
    ("root by Pow", "a = Exp (x)\ny = Pow (a, e)", (13,), X3, {"e": np.float32(-0.5)}, ["Activation"] * 2),
]

PLACES: list[Case] = [
    ("gather one", "y = Gather <axis=-1> (x, i)", (7, 13), X3, {"i": np.int64(-2)}, ["Slice"]),
    ("gather some", "y = Gather <axis=1> (x, i)", (7, 13), X4, {"i": ints(5, 0, 1, 1)}, ["Take"]),
    ("gather steps", "y = Gather (x, i)", (13,), X3, {"i": np.array([1, 0], np.int32)}, ["Slice"]),
    ("gather matrix", "y = Gather <axis=1> (x, i)", (13,), X3, {"i": ints([0, 3], [5, 1])}, ["Take"]),
    ("gather all", "y = Gather <axis=1> (x, i)", (13,), X3, {"i": ints(0, 1, 2, 3, 4, 5)}, []),
    ("shuffle", "y = Gather <axis=1> (x, i)", (13,), X4, {"i": ints(0, 3, 1, 4, 2, 5)}, ["Take"]),
    (
        "gather elements",
        "y = GatherElements <axis=1> (x, i)",
        (11, 13),
        X2,
        {"i": ints([0, 2, 2], [1, -1, 0], [3, 0, 1])},
        ["Take"],
    ),
    ("gather elements box", "y = GatherElements (x, i)", (13,), X2, {"i": ints([2] * 4, [0] * 4)}, ["Slice"]),
    ("gather points", "y = GatherND (x, i)", (11, 13), X3, {"i": ints([0, 4], [1, -6])}, ["Take"]),
    ("gather rows", "y = GatherND (x, i)", (13,), X3, {"i": ints([1], [0])}, ["Slice"]),
    (
        "scatter points",
        "y = ScatterND (x, i, u)",
        (11, 16),
        {**X3, "u": (1, 2, 9)},
        {"i": ints([[1, 2], [1, 4]])},
        ["Insert"],
    ),
    (
        "scatter into a constant",
        "y = ScatterND (c, i, u)",
        (13,),
        {"u": (6,)},
        {"c": random(3, 6), "i": ints([1])[0]},
        ["Insert"],
    ),
    (
        "scatter elements",
        "y = ScatterElements <axis=1> (x, i, u)",
        (11, 16),
        {**X2, "u": (3, 2)},
        {"i": ints([1, 4], [1, 4], [1, 4])},
        ["Insert"],
    ),
    ("scatter", "y = Scatter <axis=1> (x, i, u)", (9,), {**X2, "u": (1, 2)}, {"i": ints([2, 3])}, ["Insert"]),
    ("expand", "y = Expand (x, s)", (8, 13), {"x": (3, 1, 4)}, {"s": ints(2, 1, 5, 1)}, ["Take"]),
    ("expand to itself", "y = Expand (x, s)", (13,), X3, {"s": ints(1)}, []),
    ("tile", "y = Tile (x, r)", (7, 13), X3, {"r": ints(1, 2, 3)}, ["Take"]),
    ("pad reflecting", 'y = Pad <mode="reflect"> (x, p)', (11, 13), X3, {"p": ints(0, 2, 4, 0, 0, 8)}, ["Take"]),
    ("pad by the edge", 'y = Pad <mode="edge"> (x, p)', (11, 18), X4, {"p": ints(0, 0, 1, 2, 0, 0, 3, 0)}, ["Take"]),
    ("pad around", 'y = Pad <mode="wrap"> (x, p)', (19,), X3, {"p": ints(0, 1, 2, 0, 0, 3)}, ["Take"]),
    ("einsum", 'y = Einsum <equation="abc,cd->abd"> (x, w)', (12, 13), X3, {"w": random(9, 4)}, ["Dense"]),
    ("einsum heads", 'y = Einsum <equation="hdc, bct -> bhtd"> (w, x)', (13,), X3, {"w": random(2, 3, 6)}, ["Dense"]),
    ("einsum of all", 'y = Einsum <equation="ab,bac->c"> (x, w)', (13,), X2, {"w": random(6, 3, 2)}, ["Dense"]),
    ("cumulative", "y = CumSum (x, a)", (11, 14), X3, {"a": np.int64(1)}, ["Dense"]),
    ("cumulative back", "y = CumSum <exclusive=1, reverse=1> (x, a)", (14,), X3, {"a": ints(-1)}, ["Dense"]),
    ("max of space", "y = ReduceMax <axes=[2,3]> (x)", (11, 13), X4, {}, ["MaxPool"]),
    ("max of middle", "y = ReduceMax <keepdims=0> (x, a)", (18, 20), X3, {"a": ints(1)}, ["MaxPool"]),
]

_NEAREST = 'mode="nearest", coordinate_transformation_mode='
UPSCALING: list[Case] = [
    ("up by 2", "y = Upsample (x, s)", (9,), X4, {"s": floats([1, 1, 2, 3])}, ["Take"]),
    ("up by attribute", "y = Upsample <scales=[1.0,1.0,2.0,1.0]> (x)", (7,), X4, {}, ["Take"]),
    ("up linear", 'y = Upsample <mode="linear"> (x, s)', (9,), X4, {"s": floats([1, 1, 2, 3])}, ["Take", "Conv"]),
    ("resize 10", "y = Resize (x, s)", (10,), X4, {"s": floats([1, 1, 2, 0.6])}, ["Take"]),
    (
        "resize sizes",
        f'y = Resize <{_NEAREST}"asymmetric", nearest_mode="floor"> (x, , , s)',
        (13, 19),
        X4,
        {"s": ints(2, 6, 18, 14)},
        ["Take"],
    ),
    *(
        (
            f"resize {coordinates} {rounding}",
            f'y = Resize <{_NEAREST}"{coordinates}", nearest_mode="{rounding}"> (x, , s)',
            (13,),
            X4,
            {"s": floats([1, 1, 1.7, 0.5])},
            ["Take"],
        )
        for coordinates in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    (
        "resize bilinear",
        'y = Resize <mode="linear"> (x, r, s)',
        (11, 19),
        X4,
        {"r": np.zeros(0, np.float32), "s": floats([1, 1, 2, 3])},
        ["Take", "Conv"],
    ),
    (
        "resize linear 1-D",
        'y = Resize <mode="linear", coordinate_transformation_mode="asymmetric"> (x, , s)',
        (13,),
        X3,
        {"s": floats([1, 1, 4])},
        ["Take", "Conv"],
    ),
    (
        "resize linear by a ratio",
        'y = Resize <mode="linear", coordinate_transformation_mode="align_corners"> (x, , , s)',
        (13,),
        X4,
        {"s": ints(2, 6, 4, 7)},
        ["Dense"],
    ),
    ("depth to space", "y = DepthToSpace <blocksize=2> (x)", (7, 13), {"x": (2, 12, 3, 5)}, {}, []),
    ("depth to space CRD", 'y = DepthToSpace <blocksize=2, mode="CRD"> (x)', (13,), {"x": (2, 12, 3, 5)}, {}, []),
    ("space to depth", "y = SpaceToDepth <blocksize=3> (x)", (7, 13), {"x": (2, 2, 9, 6)}, {}, []),
    ("conv transpose", "y = ConvTranspose (x, w, b)", (7, 22), X4, {"w": random(6, 4, 3, 2), "b": random(4)}, ["Conv"]),
    (
        "conv transpose groups",
        "y = ConvTranspose <group=3, strides=[2,3], pads=[1,0,1,2], output_padding=[1,2]> (x, w)",
        (11,),
        X4,
        {"w": random(6, 2, 3, 4)},
        ["Conv", "Slice"],
    ),
    (
        "conv transpose 1-D",
        "y = ConvTranspose <strides=[4], pads=[2,2]> (x, w)",
        (11,),
        X3,
        {"w": random(6, 3, 8)},
        ["Conv", "Slice"],
    ),
    (
        "conv transpose same",
        'y = ConvTranspose <auto_pad="SAME_UPPER", strides=[2,2]> (x, w)',
        (11,),
        X4,
        {"w": random(6, 3, 3, 3)},
        ["Conv"],
    ),
    (
        "conv transpose valid",
        'y = ConvTranspose <auto_pad="VALID", strides=[2,1]> (x, w)',
        (11,),
        X4,
        {"w": random(6, 3, 2, 3)},
        ["Conv"],
    ),
]

REWRITTEN: list[Case] = [
    ("divided", "a = Exp (z)\ny = Div (x, a)", (7, 13), {**X3, "z": (9,)}, {}, ["Activation", "Div"]),
    ("one over", "a = Exp (x)\ny = Div (c, a)", (13,), X3, {"c": np.float32(2)}, ["Activation"] * 3),
    ("constants over", "a = Exp (x)\ny = Div (c, a)", (13,), X3, {"c": random(9)}, ["Activation", "Div"]),
    ("mean", "y = Mean (x, z, c)", (8, 13), {**X3, "z": (6, 1)}, {"c": random(9)}, ["Sum", "Activation"]),
    ("max", "y = Max (x, z)", (8, 12), {**X3, "z": (6, 1)}, {}, ["Extreme"]),
    ("min", "y = Min (x, z, c)", (8, 13, 18), {**X3, "z": (2, 6, 9)}, {"c": np.float32(0.5)}, ["Extreme"]),
    ("max with a number", "y = Max (c, x)", (8, 13), X2, {"c": random(1, 1, 1)}, ["Activation"]),
    ("max with a tensor", "y = Max (c, x)", (8, 13), X2, {"c": random(6)}, ["Extreme"]),
    ("max of one", "y = Max (x)", (13,), X2, {}, []),
    ("where", "y = Where (m, x, c)", (9, 16), X2, {"m": ints(1, 0, 0, 1, 1, 0) > 0, "c": random(6)}, ["Select"]),
    ("triangle", "y = Trilu <upper=0> (x, k)", (14,), X3, {"k": np.int64(2)}, ["Mul"]),
    ("upper triangle", "y = Trilu (x)", (14,), X3, {}, ["Mul"]),
    ("sum of space", "y = ReduceSum <axes=[2,3]> (x)", (7, 11), X4, {}, ["AveragePool"]),
    ("sum of middle", "y = ReduceSum <keepdims=0> (x, a)", (13, 18), X3, {"a": ints(1)}, ["AveragePool"]),
    ("sum of none", "y = ReduceSum <noop_with_empty_axes=1> (x)", (13,), X3, {}, []),
    ("least", "y = ReduceMin (x)", (13, 18), X3, {}, ["Activation", "MaxPool", "Activation"]),
    ("L1", "y = ReduceL1 <axes=[-1]> (x)", (13,), X3, {}, ["Activation", "AveragePool"]),
    ("L2", "y = ReduceL2 <axes=[1]> (x)", (13,), X3, {}, ["Mul", "AveragePool", "Activation"]),
    ("squares", "y = ReduceSumSquare <axes=[1]> (x)", (13,), X3, {}, ["Mul", "AveragePool"]),
    *(
        (
            name,
            f"y = com.microsoft.{name} ({operands})",
            (13,),
            {"x": (3, 6)},
            {"b": random(6)} if ", b" in operands else {},
            expected,
        )
        for name, operands, expected in (
            ("Gelu", "x", ["Activation"] * 4 + ["Mul"]),
            ("BiasGelu", "x, b", ["Sum"] + ["Activation"] * 4 + ["Mul"]),
            ("FastGelu", "x", ["Mul"] * 2 + ["Activation", "Sum"] + ["Activation"] * 4 + ["Mul"]),
            ("FastGelu", "x, b", ["Sum"] + ["Mul"] * 2 + ["Activation", "Sum"] + ["Activation"] * 4 + ["Mul"]),
            ("QuickGelu", "x", ["Activation"] * 2 + ["Mul"]),
        )
    ),
]

_SIX, _NINE = {"g": random(6), "o": random(6)}, {"g": random(9), "o": random(9)}
_HALVES = "d = Sub (x, m)\nq = Mul (d, d)\nv = ReduceMean <axes=[-1]> (q)\ne = Add (v, k)\nr = Sqrt (e)"
_WRITTEN = f"m = ReduceMean <axes=[-1]> (x)\n{_HALVES}\nz = Div (d, r)"
_TINY = {"k": np.float32(1e-3)}
NORMS: list[Case] = [
    ("layer norm", "y = LayerNormalization (x, g, o)", (17, 23), X3, _NINE, ["Norm"]),
    (
        "layer norm bare",
        "y = LayerNormalization <axis=1, epsilon=0.1> (x, g)",
        (17,),
        X3,
        {"g": random(6, 9)},
        ["Norm"],
    ),
    ("rms norm", "y = RMSNormalization <axis=-1> (x, g)", (23,), X3, {"g": random(9)}, ["Norm"]),
    ("instance norm", "y = InstanceNormalization <epsilon=0.01> (x, g, o)", (7, 22), X4, _SIX, ["Norm"]),
    ("instance norm 1-D", "y = InstanceNormalization (x, g, o)", (13,), X3, _SIX, ["Norm"]),
    ("group norm", "y = GroupNormalization <num_groups=3> (x, g, o)", (21,), X4, _SIX, ["Norm"]),
    ("mean variance", "y = MeanVarianceNormalization <axes=[2,3]> (x)", (13,), X4, {}, ["Norm"]),
    ("unit", "y = LpNormalization <axis=1, p=2> (x)", (7, 22), X3, {}, ["Norm"]),
    (
        "layer norm written out",
        f"{_WRITTEN}\nh = Mul (z, g)\ny = Add (h, o)",
        (11,),
        X3,
        {**_NINE, **_TINY},
        ["Norm"],
    ),
    ("norm written out without gain", f"{_WRITTEN}\ny = Relu (z)", (11, 13), X3, _TINY, ["Norm", "Activation"]),
    (
        "norm whose gain varies elsewhere",
        f"{_WRITTEN}\ny = Mul (z, g)",
        (13,),
        X3,
        {"g": random(2, 1, 9), **_TINY},
        ["Norm", "Mul"],
    ),
    (
        "norm by a reciprocal",
        "m = ReduceMean <axes=[1]> (x)\nd = Sub (x, m)\nq = Pow (d, t)\nv = ReduceMean <axes=[1]> (q)\n"
        "e = Add (v, k)\nr = Sqrt (e)\ni = Reciprocal (r)\nj = Mul (i, g)\nh = Mul (d, j)\ny = Add (h, o)",
        (13,),
        X4,
        {"t": np.float32(2), "g": random(6, 1, 1), "o": random(1, 6, 1, 1), **_TINY},
        ["Norm"],
    ),
    (
        "norm by mean squares",
        "s = ReduceSum <keepdims=0> (x, a)\nm = Mul (s, n)\nw = Mul (x, x)\nu = ReduceSum <keepdims=0> (w, a)\n"
        "p = Div (u, c)\nf = Mul (m, m)\nv = Sub (p, f)\nl = Relu (v)\nb = Reshape (l, z)\ne = Add (b, k)\n"
        "i = Pow (e, h)\nj = Reshape (m, z)\nd = Sub (x, j)\ny = Mul (d, i)",
        (13,),
        X3,
        {
            "a": ints(1),
            "n": np.float32(1 / 6),
            "c": np.float32(6),
            "z": ints(2, 1, 9),
            "h": np.float32(-0.5),
            **_TINY,
        },
        ["Norm"],
    ),
    (
        "rms norm written out",
        "q = Pow (x, t)\nv = ReduceMean <axes=[-1]> (q)\ne = Add (v, k)\nr = Sqrt (e)\nz = Div (x, r)\ny = Mul (g, z)",
        (13,),
        X3,
        {"t": np.float32(2), "g": random(9), **_TINY},
        ["Norm"],
    ),
    (
        "instance norm written out",
        "m = ReduceMean <axes=[2,3]> (x)\nd = Sub (x, m)\nq = Mul (d, d)\nv = ReduceMean <axes=[2,3]> (q)\n"
        "e = Add (v, k)\nr = Sqrt (e)\nz = Div (d, r)\nh = Mul (z, g)\ny = Add (h, o)",
        (13,),
        X4,
        {"g": random(6, 1, 1), "o": random(6, 1, 1), **_TINY},
        ["Norm"],
    ),
    (
        "quotient that is no norm",
        "m = ReduceMean <axes=[1]> (x)\nd = Sub (x, m)\nq = Mul (d, d)\nv = ReduceMean <axes=[2]> (q)\n"
        "e = Add (v, k)\nr = Sqrt (e)\ny = Div (d, r)",
        (13,),
        X3,
        _TINY,
        ["AveragePool", "Sum", "Mul", "AveragePool", "Activation", "Activation", "Div"],
    ),
]

_Y3 = {"x": (2, 6, 9), "z": (9, 4)}
PRODUCTS: list[Case] = [
    ("matmul of two", "y = MatMul (x, z)", (7, 13), {"x": (2, 3, 6, 9), "z": (3, 9, 4)}, {}, ["MatMul"]),
    (
        "matmul turned",
        "t = Transpose <perm=[0,2,1]> (z)\ny = MatMul (x, t)",
        (13,),
        {"x": (2, 6, 9), "z": (2, 4, 9)},
        {},
        ["MatMul"],
    ),
    (
        "matmul of heads",
        "t = Transpose <perm=[0,2,3,1]> (z)\ny = MatMul (x, t)",
        (13,),
        {"x": (2, 3, 5, 4), "z": (2, 6, 3, 4)},
        {},
        ["MatMul"],
    ),
    ("matmul by a batch", "y = MatMul (x, w)", (7, 13), {"x": (2, 3, 6, 9)}, {"w": random(3, 9, 4)}, ["MatMul"]),
    ("matmul of a batch", "y = MatMul (w, x)", (13,), {"x": (9, 4)}, {"w": random(3, 6, 9)}, ["MatMul"]),
    ("matmul of vectors", "y = MatMul (x, z)", (13,), {"x": (9,), "z": (9,)}, {}, ["MatMul"]),
    ("matmul by a vector", "y = MatMul (x, z)", (13,), {"x": (2, 6, 9), "z": (9,)}, {}, ["MatMul"]),
    (
        "gemm of two",
        "y = Gemm <alpha=0.5, transA=1, transB=1> (x, z, c)",
        (11, 13),
        {"x": (9, 3), "z": (4, 9)},
        {"c": random(4)},
        ["MatMul", "Sum"],
    ),
    ("gemm of two alone", "y = Gemm (x, z)", (13,), {"x": (3, 9), "z": (9, 4)}, {}, ["MatMul"]),
    (
        "einsum of two",
        'y = Einsum <equation="bqhd,bkhd->bhqk"> (x, z)',
        (13,),
        {"x": (2, 5, 3, 4), "z": (2, 6, 3, 4)},
        {},
        ["MatMul"],
    ),
    ("einsum outer", 'y = Einsum <equation="ab,ac->cab"> (x, z)', (13,), {"x": (3, 4), "z": (3, 5)}, {}, ["MatMul"]),
    *(
        (f"choice {name}", f"c = {name} (x, z)\ny = Where (c, z, x)", (9, 16), {**X3, "z": (6, 1)}, {}, ["Select"])
        for name in ("Less", "Greater")
    ),
    *(
        (
            f"choice by {name}",
            f"a = Less (x, z)\nb = GreaterOrEqual (x, k)\nc = {name} (a, b)\ny = Where (c, z, x)",
            (12, 16),
            {**X3, "z": (6, 1)},
            {"k": np.float32(0.2)},
            ["Select"] * (3 if name == "Xor" else 2),
        )
        for name in ("And", "Or", "Xor")
    ),
    (
        "choice by several",
        "a = Less (x, z)\nb = Greater (x, k)\nc = And (a, b)\nn = Not (c)\nd = Or (n, a)\ny = Cast <to=1> (d)",
        (13,),
        {**X3, "z": (6, 1)},
        {"k": np.float32(0.2)},
        ["Select"] * 3,
    ),
    ("choice equal", "c = Equal (x, z)\ny = Where (c, z, x)", (11, 13), {**X3, "z": (6, 1)}, {}, ["Select"]),
    (
        "choice negated",
        "c = GreaterOrEqual (x, k)\nn = Not (c)\ny = Where (n, k, x)",
        (12, 16),
        X3,
        {"k": np.float32(0.1)},
        ["Select"],
    ),
    (
        "comparison as numbers",
        "c = LessOrEqual (x, z)\ny = Cast <to=1> (c)",
        (12, 16),
        {**X3, "z": (9,)},
        {},
        ["Select"],
    ),
]

_HEADS: dict[str, Any] = {"w": random(8, 24), "b": random(24)}
_FULL = ["Dense", "Sum"] * 3
LAYERS: list[Case] = [
    (
        "LRN",
        "y = LRN <size=3, alpha=0.3, beta=0.75, bias=2.0> (x)",
        (7, 13),
        X4,
        {},
        ["Mul", "Conv", "Activation", "Activation", "Mul"],
    ),
    (
        "L2 pool",
        "y = LpPool <kernel_shape=[3,2], pads=[1,0,0,1]> (x)",
        (7, 22),
        X4,
        {},
        ["Mul", "AveragePool", "Activation", "Activation"],
    ),
    ("L1 pool", "y = LpPool <kernel_shape=[3], p=1> (x)", (13,), X3, {}, ["Activation", "AveragePool", "Activation"]),
    ("global L2 pool", "y = GlobalLpPool (x)", (13,), X4, {}, ["Mul", "AveragePool", "Activation"]),
    (
        "log softmax",
        "y = LogSoftmax <axis=-1> (x)",
        (11, 13),
        X3,
        {},
        ["MaxPool", "Sum", "Activation", "AveragePool", "Activation", "Sum"],
    ),
    (
        "softmax written out",
        "m = ReduceMax <axes=[1], keepdims=0> (x)\nr = Reshape (m, s)\nd = Sub (x, r)\ne = Exp (d)\n"
        "t = ReduceSum (e, a)\ny = Div (e, t)",
        (13,),
        X3,
        {"s": ints(2, 1, 9), "a": ints(1)},
        ["Softmax"],
    ),
    ("softmax by itself", "e = Exp (x)\nt = ReduceSum <axes=[2]> (e)\ny = Div (e, t)", (11,), X3, {}, ["Softmax"]),
    (
        "skip norm",
        "y = com.microsoft.SkipLayerNormalization <epsilon=0.01> (x, z, g, o, b)",
        (13,),
        {**X3, "z": (2, 6, 9)},
        {**_NINE, "b": random(9)},
        ["Sum", "Sum", "Norm"],
    ),
    (
        "skip norm with its sum",
        "h, , , s = com.microsoft.SkipLayerNormalization (x, z, g)\ny = Add (h, s)",
        (13,),
        {**X3, "z": (2, 6, 9)},
        {"g": random(9)},
        ["Sum", "Norm", "Sum"],
    ),
    (
        "skip simplified norm",
        "y = com.microsoft.SkipSimplifiedLayerNormalization (x, z, g)",
        (13,),
        {**X3, "z": (2, 6, 9)},
        {"g": random(9)},
        ["Sum", "Norm"],
    ),
    ("simplified norm", "y = SimplifiedLayerNormalization <axis=-1> (x, g)", (13,), X3, {"g": random(9)}, ["Norm"]),
    (
        "attention",
        "y = com.microsoft.Attention <num_heads=2> (x, w, b)",
        (13,),
        {"x": (2, 5, 8)},
        _HEADS,
        [*_FULL, "MatMul", "Activation", "Softmax", "MatMul"],
    ),
    (
        "causal attention with a past",
        "h, p = com.microsoft.Attention <num_heads=2, unidirectional=1> (x, w, b, m, z)\n"
        "q = Identity (p)\nk = Flatten (q)\nf = Flatten <axis=0> (h)\n"
        "s = ReduceSum <axes=[1]> (k)\nt = ReduceSum <axes=[0]> (s)\n"
        "y = Add (f, t)",
        (11,),
        {"x": (1, 5, 8), "z": (2, 1, 2, 3, 4)},
        {**_HEADS, "m": np.array([[0, 1, 1, 1, 1, 1, 1, 1]], np.int32)},
        [
            "Dense",
            "Sum",
            "Dense",
            "Sum",
            "Dense",
            "Sum",
            "Slice",
            "Concat",
            "Slice",
            "Concat",
            "Concat",
            "MatMul",
            "Activation",
            "Sum",
            "Softmax",
            "MatMul",
            "AveragePool",
            "AveragePool",
            "Sum",
        ],
    ),
]

CASES = [*NORMS, *PRODUCTS, *LAYERS, *REWRITTEN, *FUNCTIONS, *PLACES, *UPSCALING]
