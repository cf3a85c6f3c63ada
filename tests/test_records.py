"""The fence on a program's records: memory map, constants, names, tensors, ports, layers and the known answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nnac.graph import Origin
from nnac.isa import Space
from nnac.program import KnownAnswer, Layer, Piece
from nnac.types import Quant, TensorType
from nnac.validate import validate
from tests.test_program import legal
from tests.test_validate import refuse

USED = {Space.SRAM: 1024, Space.WEIGHTS: 2048, Space.DRAM: 6144}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"used": {}}, "memory.sram: not in the program's memory map"),
        ({"used": {Space.SRAM: 1024, Space.DRAM: 6144}}, "memory.weights: not in the program's memory map"),
        ({"used": {Space.SRAM: 1024, Space.WEIGHTS: 2048}}, "memory.dram: not in the program's memory map"),
        ({"used": USED | {Space.FLASH: 0}}, "memory.flash: used, but the target has none"),
        ({"used": USED | {Space.SRAM: 524_289}}, "memory.sram: 524289 bytes used, allowed 0 to 524,288"),
        ({"used": USED | {Space.SRAM: -1}}, "memory.sram: -1 bytes used"),
        ({"used": USED | {Space.SRAM: 1024.0}}, "memory.sram: 1024.0 bytes used"),
        ({"used": USED | {Space.DRAM: 2**28 + 1}}, "memory.dram"),
        ({"used": USED | {Space.DRAM: 2047}}, "constants: 2,048 bytes, but only 2,047 used in memory.dram"),
        ({"constants": np.zeros(10, np.int8)}, "one row of bytes"),
        ({"constants": np.zeros((10, 10), np.uint8)}, "one row of bytes"),
        ({"constants": b"abc"}, "one row of bytes"),
        ({"constants": np.zeros(0, np.uint8)}, "constants end at 0x0"),
        ({"lower_bound": -1}, "lower_bound"),
        ({"lower_bound": 1025}, "lower_bound"),
        ({"lower_bound": True}, "lower_bound"),
        ({"name": "a\x1b[2Jb"}, r"program's name 'a\x1b[2Jb': a character in it cannot be printed"),
        ({"name": 7}, "found 7, expected text"),
        ({"name": "x" * 1025}, "1,025 characters, allowed 1,024"),
        ({"calibration": "a\nb"}, "calibration"),
        ({"inputs": ("x", "z")}, "input 'z': no such tensor"),
        ({"outputs": ("z",)}, "output 'z': no such tensor"),
        ({"inputs": (["x"],)}, "expected text"),
        ({"inputs": ("y",)}, "input 'y': ready after instruction 13, expected -1"),
        ({"inputs": ("x", "x")}, "inputs 'x' and 'x': they share bytes"),
        ({"known_answer": KnownAnswer(-1, {})}, "seed -1"),
        ({"known_answer": KnownAnswer(0, {"z": "0" * 64})}, "'z' is no output"),
        ({"known_answer": KnownAnswer(0, {"y": "0" * 63})}, "64 hexadecimal digits"),
        ({"known_answer": KnownAnswer(0, {"y": "G" * 64})}, "64 hexadecimal digits"),
    ],
)
def test_broken_frame(values: dict[str, Any], words: str) -> None:
    """Memory map, constants, names, ports and the known answer."""
    refuse(replace(legal(), **values), "program ", words)


QUANT = Quant(0.5, -5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": ""}, "layer 0: no tensor is called 'c'"),
        ({"name": "y"}, "2 tensors have this name"),
        ({"name": "a\nb"}, "cannot be printed"),
        ({"name": "a\u202eb"}, "cannot be printed"),
        ({"name": None}, "expected text"),
        ({"address": 1024 - 63}, "bytes 0x3c1 to 0x401 of memory.sram, used 0x400"),
        ({"address": -1}, "address -1"),
        ({"address": 2**70}, "address"),
        ({"space": Space.FLASH}, "of memory.flash, used 0x0"),
        ({"ready": 14}, "ready after instruction 14, but there are 14"),
        ({"ready": -2}, "ready after instruction -2"),
        ({"ready": 1.0}, "ready after instruction 1.0"),
        ({"type": TensorType((64,), "int3", QUANT)}, "unknown dtype 'int3'"),
        ({"type": TensorType((64,), "int8", None)}, "without a quantization"),
        ({"type": TensorType((0, 2**60), "int8", QUANT)}, "sides are at least 1"),
        ({"type": TensorType((-1, -1), "int8", QUANT)}, "sides are at least 1"),
        ({"type": TensorType((1,) * 9, "int8", QUANT)}, "9 axes, allowed 8"),
        ({"type": TensorType((2**40,), "int8", QUANT)}, "used 0x400"),
        ({"type": TensorType((241,), "int32")}, "used 0x400"),
        ({"type": TensorType((64,), "int8", Quant(0.0))}, "scale 0.0 is not a positive float32"),
        ({"type": TensorType((64,), "int8", Quant(float("nan")))}, "scale nan"),
        ({"type": TensorType((64,), "int8", Quant(float("inf")))}, "scale inf"),
        ({"type": TensorType((64,), "int8", Quant(1e-60))}, "scale 1e-60"),
        ({"type": TensorType((64,), "int8", Quant(1e60))}, "scale 1e+60"),
        ({"type": TensorType((64,), "int8", Quant(1.0, 128))}, "zero point 128"),
        ({"origin": Origin("a\x07")}, "ONNX name"),
        ({"origin": Origin("a", (("transpose", (0, 1, 2)),))}, "origin step 0: (0, 1, 2) is no permutation of 4 axes"),
        ({"origin": Origin("a", (("transpose", (0, 1, 2, 2)),))}, "is no permutation of 4 axes"),
        ({"origin": Origin("a", (("transpose", (0, -1, 2, 1)),))}, "is no permutation of 4 axes"),
        ({"origin": Origin("a", (("reshape", (65,)),))}, "changes the number of elements"),
        ({"origin": Origin("a", (("reshape", (-1, -64)),))}, "sides are at least 1"),
        ({"origin": Origin("a", (("reshape", (64,)), ("transpose", (0, 1, 2, 3))))}, "origin step 1"),
        ({"origin": Origin("a", (("flip", (0,)),))}, "unknown step 'flip'"),
    ],
)
def test_broken_tensor(values: dict[str, Any], words: str) -> None:
    """Name, type, home, time and the way back to ONNX."""
    program = legal()
    x, c, y = program.tensors
    refuse(replace(program, tensors=(x, replace(c, **values), y)), words)


def test_inputs_keep_apart() -> None:
    """The host may write inputs in any order, and never into the constants."""
    program = legal()
    x, *others = program.tensors
    low = replace(x, address=2047)
    refuse(replace(program, tensors=(low, *others)), "input 'x': lies in the constants")
    second = replace(x, name="x2", address=x.address + 31)
    refuse(replace(program, tensors=(x, second, *others), inputs=("x", "x2")), "'x' and 'x2': they share bytes")
    apart = replace(x, name="x2", address=x.address + 32)
    validate(replace(program, tensors=(x, apart, *others), inputs=("x", "x2")))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"runs": ((-1, 14),)}, "layer 1: instructions -1 to 14"),
        ({"runs": ((6, 14),)}, "instructions 6 to 14 are no range of its own among 14"),
        ({"runs": ((14, 13),)}, "layer 1"),
        ({"runs": ((7, 15),)}, "among 14"),
        ({"runs": ((7, "14"),)}, "layer 1"),
        ({"runs": ((7, 14), (7, 14))}, "layer 1"),
        ({"inputs": ("c", "z")}, "no tensor is called 'z'"),
        ({"inputs": (["c"],)}, "no tensor is called"),
        ({"output": "z"}, "no tensor is called 'z'"),
        ({"macs": -1}, "are not negative"),
        ({"macs": 10**400}, "are not negative"),
        ({"weight_bytes": 0.5}, "are not negative"),
        ({"name": "a\0"}, "cannot be printed"),
        ({"op": "\x9b"}, "cannot be printed"),
    ],
)
def test_broken_layer(values: dict[str, Any], words: str) -> None:
    """Ranges in order and inside, tensors that exist, counts that are counts."""
    program = legal()
    refuse(replace(program, layers=(program.layers[0], replace(program.layers[1], **values))), words)


def test_layers_share_the_instructions() -> None:
    """A layer may be empty or in several runs; every instruction belongs to one layer, or the accounts would lie."""
    cascade = (
        Layer("a", "Conv", ((0, 3), (5, 9)), ("x",), "c", 0, 0),
        Layer("b", "Conv", ((3, 5), (9, 14)), ("c",), "y", 0, 0),
    )
    validate(replace(legal(), layers=(*cascade, Layer("", "Reshape", (), (), "y", 0, 0))))
    refuse(replace(legal(), layers=cascade[:1]), "instruction 3 belongs to no layer")


def test_pieces_cover_a_streamed_tensor() -> None:
    """The pieces of a tensor that is never whole follow each other from its first byte to its last."""
    program = legal()
    x, c, y = program.tensors
    whole = (Piece(5, 64, 0, 40), Piece(6, 100, 32, 32))
    validate(replace(program, tensors=(x, replace(c, pieces=whole), y)))
    for pieces in ((whole[0],), (whole[1],), (Piece(5, 64, 0, 65),), (Piece(5, 1000, 0, 64),), (Piece(99, 64, 0, 64),)):
        refuse(replace(program, tensors=(x, replace(c, pieces=pieces), y)), "'c'")
