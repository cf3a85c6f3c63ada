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
    ("divided", "a = Exp (z)\ny = Div (x, a)", (7, 13), {**X3, "z": (9,)}, {}, ["Activation", "Activation", "Mul"]),
    ("one over", "a = Exp (x)\ny = Div (c, a)", (13,), X3, {"c": np.float32(2)}, ["Activation"] * 3),
    ("mean", "y = Mean (x, z, c)", (8, 13), {**X3, "z": (6, 1)}, {"c": random(9)}, ["Sum", "Activation"]),
    ("max", "y = Max (x, z)", (8, 12), {**X3, "z": (6, 1)}, {}, ["Take", "Concat", "MaxPool"]),
    (
        "min",
        "y = Min (x, z, c)",
        (8, 13, 18),
        {**X3, "z": (2, 6, 9)},
        {"c": np.float32(0.5)},
        ["Concat", "Activation", "MaxPool", "Activation", "Activation"],
    ),
    ("max with a number", "y = Max (c, x)", (8, 13), X2, {"c": random(1, 1, 1)}, ["Activation"]),
    ("max with a tensor", "y = Max (c, x)", (8, 13), X2, {"c": random(6)}, ["Concat", "MaxPool"]),
    ("max of one", "y = Max (x)", (13,), X2, {}, []),
    ("where", "y = Where (m, x, c)", (9, 16), X2, {"m": ints(1, 0, 0, 1, 1, 0) > 0, "c": random(6)}, ["Mul", "Sum"]),
    ("triangle", "y = Trilu <upper=0> (x, k)", (14,), X3, {"k": np.int64(2)}, ["Mul"]),
    ("upper triangle", "y = Trilu (x)", (14,), X3, {}, ["Mul"]),
    ("sum of space", "y = ReduceSum <axes=[2,3]> (x)", (7, 11), X4, {}, ["AveragePool", "Activation"]),
    ("sum of middle", "y = ReduceSum <keepdims=0> (x, a)", (13, 18), X3, {"a": ints(1)}, ["AveragePool", "Activation"]),
    ("sum of none", "y = ReduceSum <noop_with_empty_axes=1> (x)", (13,), X3, {}, []),
    ("least", "y = ReduceMin (x)", (13, 18), X3, {}, ["Activation", "MaxPool", "Activation"]),
    ("L1", "y = ReduceL1 <axes=[-1]> (x)", (13,), X3, {}, ["Activation", "AveragePool", "Activation"]),
    ("L2", "y = ReduceL2 <axes=[1]> (x)", (13,), X3, {}, ["Mul", "AveragePool", "Activation", "Activation"]),
    ("squares", "y = ReduceSumSquare <axes=[1]> (x)", (13,), X3, {}, ["Mul", "AveragePool", "Activation"]),
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

CASES = [*REWRITTEN, *FUNCTIONS, *PLACES, *UPSCALING]
