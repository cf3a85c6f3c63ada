"""The container: same program, same bytes; a damaged, foreign or hostile file is a ProgramError and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnac import isa
from nnac.disasm import disassemble
from nnac.errors import ProgramError
from nnac.graph import Origin
from nnac.isa import AnyInstruction, Space
from nnac.numerics import softmax_table
from nnac.program import FORMAT, KnownAnswer, Layer, Limits, Program, Tensor, dumps, loads, write_file
from nnac.targets import load_target
from nnac.types import Quant, TensorType
from nnac.validate import load, validate
from tests.graphs import scheduled


def constants() -> Any:
    """Return an image: parameters of 4 channels at 0, 72 weights at 64, a table at 256, exponentials at 1024."""
    rng = np.random.default_rng(1)
    image = np.zeros(2048, np.uint8)
    image[:16] = np.array([100, -100, 7, 0], "<i4").view(np.uint8)
    image[16:32] = np.array([1 << 30, 1, 3, 0], "<i4").view(np.uint8)
    image[32:36] = [38, 6, 0, 62]
    image[64:136] = rng.integers(0, 256, 72)
    image[256:512] = rng.integers(0, 256, 256)
    image[1024:2048] = np.array(softmax_table(0.1), "<i4").view(np.uint8)
    return image


def instructions() -> tuple[AnyInstruction, ...]:
    """Return a stream with every kind of instruction; the input lies at dram[4096], the output at dram[5120]."""
    clamp: dict[str, Any] = {"out_zero": 3, "low": -128, "high": 127}
    window: dict[str, Any] = {
        "stride_h": 1,
        "stride_w": 1,
        "dilation_h": 1,
        "dilation_w": 1,
        "kernel_h": 3,
        "kernel_w": 3,
        "pad_top": 1,
        "pad_left": 1,
        "in_zero": -5,
    }
    pool = window | {"in_h": 4, "in_w": 4, "channels": 4, "source": 64, "padded_h": 6, "padded_w": 6, "shift": 30}
    near, flat = (0, 16, 4, 1), (0, 0, 0, 1)
    return scheduled(
        [
            *(
                isa.Load(space=2, source=at, source_bytes=n, target=at, target_bytes=n, packer=0)
                for at, n in ((0, 36), (64, 72), (256, 256), (1024, 1024))
            ),
            isa.Copy(
                source_space=2,
                source=4096,
                source_strides=(0,) * 5 + (1,),
                target_space=0,
                target=0,
                target_strides=(0,) * 5 + (1,),
                shape=(1,) * 5 + (32,),
            ),
            isa.Fill(space=0, target=512, count=16, value=-7),
            isa.Conv(
                source=0,
                in_h=4,
                in_w=4,
                in_c=2,
                target=64,
                out_h=4,
                out_w=4,
                out_c=4,
                pitch=4,
                channel=0,
                channels=4,
                groups=1,
                weights=64,
                params=0,
                **window,
                **clamp,
            ),
            isa.Pool(kind=0, target=256, out_h=4, out_w=4, count_pads=0, multiplier=1, **pool, **clamp),
            isa.Pool(kind=1, target=320, out_h=4, out_w=4, count_pads=1, multiplier=1 << 30, **pool, **clamp),
            isa.Sum(
                shape=(1, 4, 4, 4),
                sources=(64, 320, 512),
                strides=near * 2 + flat,
                zeros=(3, 3, -7),
                bits=(8, 8, 8),
                multipliers=(1 << 20, -(1 << 20), 5),
                target=576,
                shift=20,
                **clamp,
            ),
            isa.Mul(
                shape=(1, 4, 4, 4),
                sources=(256, 512),
                strides=near + flat,
                zeros=(3, 0),
                bits=(8, 8),
                target=640,
                multiplier=1 << 30,
                shift=33,
                **clamp,
            ),
            isa.Lookup(source=640, target=768, count=64, table=256, tables=1),
            isa.Softmax(source=768, target=896, rows=16, length=4, table=1024, multiplier=256, shift=0, out_zero=-128),
            isa.Copy(
                source_space=0,
                source=896,
                source_strides=(0,) * 5 + (1,),
                target_space=2,
                target=5120,
                target_strides=(0,) * 5 + (1,),
                shape=(1,) * 5 + (64,),
            ),
        ]
    )


def legal() -> Program:
    """Return a small program by hand in which every kind of instruction works."""
    quant = Quant(0.5, -5)
    x = Tensor(
        "x",
        TensorType((1, 4, 4, 2), "int8", quant),
        Origin("in/x", (("transpose", (0, 3, 1, 2)),)),
        Space.DRAM,
        4096,
        -1,
    )
    c = Tensor("c", TensorType((1, 4, 4, 4), "int8", quant), None, Space.SRAM, 64, 6)
    y = Tensor(
        "y",
        TensorType((16, 4), "int8", Quant(1 / 256, -128)),
        Origin("y", (("reshape", (1, 64)),)),
        Space.DRAM,
        5120,
        13,
    )
    layers = (
        Layer("conv", "Conv", ((0, 7),), ("x",), "c", 1152, 72),
        Layer("rest", "Softmax", ((7, 14),), ("c",), "y", 0, 0),
    )
    return Program(
        name="by hand",
        target=load_target("nna8"),
        instructions=instructions(),
        constants=constants(),
        tensors=(x, c, y),
        inputs=("x",),
        outputs=("y",),
        layers=layers,
        used={Space.SRAM: 1024, Space.WEIGHTS: 2048, Space.DRAM: 6144},
        lower_bound=200,
        calibration="random",
        known_answer=KnownAnswer(7, {"y": "0" * 64}),
    )


def same(a: Program, b: Program) -> bool:
    """Tell whether two programs are equal in every part."""
    return bool(np.array_equal(a.constants, b.constants)) and replace(a, constants=b.constants) == b


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return a file's safetensors header, the program's header inside of it, and the sections' bytes."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    head = json.loads(json.loads(header["__metadata__"]["nnac"])["program"])
    return header, head, data[8 + length :]


def file_of(header: str | dict[str, Any], body: bytes) -> bytes:
    """Return a safetensors file of a header, given as text or object, and bytes."""
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text.encode() + body


def signed(header: dict[str, Any], head: dict[str, Any], body: bytes) -> bytes:
    """Return the file with another program header that has a right digest."""
    text = json.dumps(head, sort_keys=True, separators=(",", ":"))
    outer = json.dumps({"digest": hashlib.sha256(text.encode()).hexdigest(), "program": text}, sort_keys=True)
    return file_of(header | {"__metadata__": {"nnac": outer}}, body)


# -- round trip ----------------------------------------------------------------------------------------------------


def test_round_trip() -> None:
    """A program comes back equal, and writes the same bytes again, however often."""
    program = validate(legal())
    data = dumps(program)
    assert same(validate(loads(data)), program)
    assert dumps(loads(data)) == data == dumps(legal())
    assert program.digest() == loads(data).digest() == hashlib.sha256(data).hexdigest()


def test_helpers_rebuild_the_file() -> None:
    """The tests' own writer gives a legal file back unchanged: what they refuse below is refused for its change."""
    data = dumps(legal())
    assert signed(*parts(data)) == data


def test_empty_program() -> None:
    """No instructions, no constants: still a file."""
    empty = replace(
        legal(),
        instructions=(),
        constants=np.zeros(0, np.uint8),
        tensors=(),
        inputs=(),
        outputs=(),
        layers=(),
        known_answer=KnownAnswer(0, {}),
    )
    assert same(validate(loads(dumps(empty))), empty)


def test_file_on_disk(tmp_path: Path) -> None:
    """Written, then loaded and validated in one go; the path may be text."""
    path = tmp_path / "model.nna"
    write_file(path, dumps(legal()))
    assert same(load(path), legal()) and same(load(str(path)), legal())


# -- damage --------------------------------------------------------------------------------------------------------


def test_every_bit_is_guarded() -> None:
    """Whatever single bit flips, the file is refused, or it means the same program."""
    data = dumps(legal())
    damaged = bytearray(data)
    for at in range(len(data)):
        for bit in range(8):
            damaged[at] ^= 1 << bit
            refused_or_same(bytes(damaged), data)
            damaged[at] = data[at]


def refused_or_same(damaged: bytes, data: bytes) -> None:
    """Check that damaged bytes do not load as another program."""
    try:
        program = loads(damaged)
    except ProgramError as error:
        assert str(error).startswith("program: ")
        return
    assert same(program, loads(data))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 3))
def test_scattered_damage(changes: list[tuple[int, int]], tail: int) -> None:
    """Several bytes replaced, the tail cut."""
    data = dumps(legal())
    damaged = bytearray(data[: len(data) - tail])
    for at, value in changes:
        damaged[at % len(damaged)] = value
    refused_or_same(bytes(damaged), data)


def test_truncation_at_every_length() -> None:
    """A file that ends early is refused at any length, the empty file too."""
    data = dumps(legal())
    for length in (*range(0, len(data), 7), len(data) - 1):
        with pytest.raises(ProgramError):
            loads(data[:length])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    """Noise is no program, with a plausible header length or without."""
    for noise in (data, struct.pack("<Q", len(data)) + data):
        with pytest.raises(ProgramError):
            loads(noise)


@pytest.mark.parametrize("tail", [b"\0", b" ", b"abc" * 100])
def test_appended_bytes(tail: bytes) -> None:
    """What stands behind the sections makes it another file."""
    with pytest.raises(ProgramError, match="canonical"):
        loads(dumps(legal()) + tail)


# -- hostile headers -----------------------------------------------------------------------------------------------


def duplicate(header: dict[str, Any]) -> str:
    text = json.dumps(header, separators=(",", ":"))
    return text[:-1] + ',"constants":' + json.dumps(header["constants"]) + "}"


OUTER: dict[str, Callable[[dict[str, Any]], str | dict[str, Any]]] = {
    "duplicate names": duplicate,
    "unknown field": lambda h: h | {"constants": h["constants"] | {"extra": 1}},
    "unknown tensor": lambda h: h | {"more": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
    "zero-size huge shape": lambda h: h | {"more": {"dtype": "U8", "shape": [2**60, 0], "data_offsets": [0, 0]}},
    "absurd rank": lambda h: h | {"constants": h["constants"] | {"shape": [1] * 4000 + h["constants"]["shape"]}},
    "other shape": lambda h: h | {"constants": h["constants"] | {"shape": [2, 1024]}},
    "other dtype": lambda h: h | {"constants": h["constants"] | {"dtype": "I8"}},
    "overlap": lambda h: h | {"constants": h["instructions"]},
    "behind the end": lambda h: h | {"constants": h["constants"] | {"data_offsets": [0, 2**60]}},
    "negative offset": lambda h: h | {"constants": h["constants"] | {"data_offsets": [-8, 2040]}},
    "backwards": lambda h: h | {"constants": h["constants"] | {"data_offsets": [2048, 0]}},
    "offsets are no numbers": lambda h: h | {"constants": h["constants"] | {"data_offsets": ["0", [1]]}},
    "a missing section": lambda h: {k: v for k, v in h.items() if k != "constants"},
    "control characters": lambda h: h | {"\x1b[2J\0": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
    "more metadata": lambda h: h | {"__metadata__": h["__metadata__"] | {"more": "x"}},
    "no metadata": lambda h: {k: v for k, v in h.items() if k != "__metadata__"},
    "metadata is a list": lambda h: h | {"__metadata__": [1, 2]},
    "metadata is no JSON": lambda h: h | {"__metadata__": {"nnac": "{"}},
    "deep nesting": lambda h: "[" * 200_000,
    "a list": lambda h: "[]",
    "leading blank": lambda h: " " + json.dumps(h, separators=(",", ":")),
    "not UTF-8 text": lambda h: "\x7f\x7f",
}


@pytest.mark.parametrize("case", OUTER)
def test_hostile_container(case: str) -> None:
    """safetensors files that upstream accepts, or that are no such files at all."""
    header, _, body = parts(dumps(legal()))
    with pytest.raises(ProgramError):
        loads(file_of(OUTER[case](header), body))


@pytest.mark.parametrize("length", [0, 1, 7, 2**26 + 1, 2**31, 2**63, 2**64 - 1])
def test_header_length_lies(length: int) -> None:
    """The first eight bytes promise another header."""
    with pytest.raises(ProgramError):
        loads(struct.pack("<Q", length) + dumps(legal())[8:])


INNER: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newer version": (lambda h: h.update(format=FORMAT + 1), f"format version {FORMAT + 1}"),
    "no version": (lambda h: h.pop("format"), "KeyError"),
    "version of another type": (lambda h: h.update(format="1"), "format version '1'"),
    "count too low": (lambda h: h.update(instruction_count=1), "expected 1 instructions, found more"),
    "count too high": (lambda h: h.update(instruction_count=99), "expected 99 instructions, found 14"),
    "count is absurd": (lambda h: h.update(instruction_count=10**30), "allowed"),
    "count is negative": (lambda h: h.update(instruction_count=-1), "allowed"),
    "count is no number": (lambda h: h.update(instruction_count=[3]), "damaged header"),
    "wrong section digest": (lambda h: h["digests"].update(constants="0" * 64), "does not match its digest"),
    "wrong target digest": (lambda h: h.update(target_digest="0" * 64), "embedded target"),
    "another target": (lambda h: h["target"]["mac"].update(rows=1), "embedded target"),
    "illegal target": (lambda h: h["target"]["mac"].update(rows=0), "mac.rows"),
    "target is a list": (lambda h: h.update(target=[]), ""),
    "unknown entry": (lambda h: h.update(more=1), "canonical"),
    "unknown memory": (lambda h: h["used"].update(cache=1), "KeyError"),
    "tensors is a number": (lambda h: h.update(tensors=3), "damaged header"),
    "tensors is text": (lambda h: h.update(tensors="abc"), "damaged header"),
    "a tensor lacks its shape": (lambda h: h["tensors"][0].pop("shape"), "KeyError"),
    "unknown dtype": (lambda h: h["tensors"][0].update(dtype="int3"), "unknown dtype 'int3'"),
    "scale is infinite": (lambda h: h["tensors"][0].update(quant=[1e999, 0]), "scale inf"),
    "scale is negative": (lambda h: h["tensors"][0].update(quant=[-1.0, 0]), "scale -1.0"),
    "scale is no number": (lambda h: h["tensors"][0].update(quant=[float("nan"), 0]), "scale nan"),
    "zero point too large": (lambda h: h["tensors"][0].update(quant=[1.0, 128]), "zero point 128"),
    "lower bound is no number": (lambda h: h.update(lower_bound=float("nan")), "damaged header"),
    "layer with more entries": (lambda h: h["layers"][0].update(extra=1), "layer record"),
    "layer with fewer entries": (lambda h: h["layers"][0].pop("macs"), "layer record"),
    "a file that is no object": (lambda h: h.clear(), "KeyError"),
}


@pytest.mark.parametrize("case", INNER)
def test_hostile_header(case: str) -> None:
    """Headers with right digests whose content is not what this version writes."""
    header, head, body = parts(dumps(legal()))
    change, words = INNER[case]
    change(head)
    with pytest.raises(ProgramError) as caught:
        loads(signed(header, head, body), "evil.nna")
    assert words in str(caught.value) and str(caught.value).startswith("evil.nna: ")


VALUES: list[Any] = [None, -1, 2**70, 1.5, "text", [], [1], {}, True, "\x1b[2J", "x" * 2000]
PATHS: list[tuple[Any, ...]] = [
    ("name",),
    ("calibration",),
    ("lower_bound",),
    ("inputs",),
    ("outputs",),
    ("inputs", 0),
    ("outputs", 0),
    ("used",),
    ("used", "sram"),
    ("known_answer",),
    ("known_answer", "seed"),
    ("known_answer", "digests"),
    ("known_answer", "digests", "y"),
    ("tensors", 0),
    ("tensors", 0, "name"),
    ("tensors", 0, "shape"),
    ("tensors", 0, "shape", 1),
    ("tensors", 0, "address"),
    ("tensors", 0, "ready"),
    ("tensors", 0, "space"),
    ("tensors", 0, "quant"),
    ("tensors", 0, "quant", 1),
    ("tensors", 0, "origin", 0),
    ("tensors", 0, "origin", 1),
    ("tensors", 0, "origin", 1, 0),
    ("tensors", 0, "origin", 1, 0, 0),
    ("tensors", 0, "origin", 1, 0, 1),
    ("tensors", 0, "origin", 1, 0, 1, 2),
    ("tensors", 2, "origin", 1, 0, 1, 1),
    ("layers", 0),
    ("layers", 0, "name"),
    ("layers", 0, "first"),
    ("layers", 0, "end"),
    ("layers", 0, "inputs"),
    ("layers", 0, "inputs", 0),
    ("layers", 0, "output"),
    ("layers", 0, "macs"),
    ("layers", 0, "weight_bytes"),
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_header_of_any_types(path: tuple[Any, ...]) -> None:
    """Any value in any place of a signed header is refused, or the program is printable and keeps its types."""
    for value in VALUES:
        header, head, body = parts(dumps(legal()))
        place = head
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        try:
            program = validate(loads(signed(header, head, body)))
        except ProgramError as error:
            assert "\x1b" not in str(error)
            continue
        assert all(line.isprintable() for line in disassemble(program))


def test_limits() -> None:
    """A loader's limits are kept, each on its own."""
    data = dumps(legal())
    for limits in (
        Limits(file_bytes=len(data) - 1),
        Limits(header_bytes=100),
        Limits(tensors=2),
        Limits(instructions=13),
    ):
        with pytest.raises(ProgramError):
            loads(data, limits=limits)
    assert same(loads(data, limits=Limits(file_bytes=len(data), tensors=3, instructions=14)), legal())


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_failed_write_leaves_the_old_file(
    moment: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong while writing: the old file stands, and nothing else is left in the folder."""
    path = tmp_path / "model.nna"
    write_file(path, b"old")

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(ProgramError if isinstance(error, OSError) else type(error)):
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["model.nna"]


def test_write_replaces(tmp_path: Path) -> None:
    """The new file is there as a whole and readable for all."""
    path = tmp_path / "model.nna"
    write_file(path, b"a longer old file")
    write_file(str(path), b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["model.nna"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["missing/model.nna", "file/model.nna", "", "a\0b", "n" * 300])
def test_unwritable_path(name: str, tmp_path: Path) -> None:
    """A folder that is not there or is a file, a folder as the path, names that no system takes."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ProgramError, match="cannot be written"):
        write_file(tmp_path / name, b"data")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    """Renaming over a device or a pipe would put a file in its place, which root may do."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", tmp_path / "null", tmp_path):
        with pytest.raises(ProgramError, match="not a regular file"):
            write_file(path, b"data")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "null").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["null", "pipe"]


def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without the right to write says so."""

    def fail(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", fail)
    with pytest.raises(ProgramError, match="cannot be written: Permission denied"):
        write_file(tmp_path / "model.nna", b"data")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_fifo_is_refused_at_once(tmp_path: Path) -> None:
    """Nobody writes into it: opening must not wait."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ProgramError, match="not a regular file"):
        load(tmp_path / "pipe")


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", ".", "/no/such/file", "a\0b", "", "n" * 5000])
def test_unreadable_path(path: str) -> None:
    """Devices, folders, missing files and impossible names end in one line."""
    with pytest.raises(ProgramError) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_file_larger_than_allowed(tmp_path: Path) -> None:
    """The size is looked at before the content."""
    write_file(tmp_path / "model.nna", dumps(legal()))
    with pytest.raises(ProgramError, match="allowed 1,000"):
        load(tmp_path / "model.nna", Limits(file_bytes=1000))


# -- disassembly ---------------------------------------------------------------------------------------------------


def test_disassembly_of_every_instruction() -> None:
    """One line each, in order, with memory, shape and waits where a reader looks for them."""
    lines = list(disassemble(legal()))
    code = [line for line in lines if not line.startswith(";")]
    mnemonics = "load load load load copy fill conv pool pool sum mul lookup softmax copy"
    assert [line.split()[2] for line in code] == mnemonics.split()
    assert [int(line.split()[0]) for line in code] == list(range(14))
    assert code[0] == "     0  decoder  load     weights[0x0] 36 bytes <- dram[0x0] 36 bytes, packer 0"
    assert code[5] == "     5  vector   fill     sram[0x200] 16 bytes, value -7"
    assert code[6] == (
        "     6  mac      conv     sram[0x40] 4x4x4 pitch 4 channel 0 of 4 <- sram[0x0] 4x4x2 zero -5, "
        "kernels weights[0x40], params weights[0x0], window 3x3 stride 1x1 dilation 1x1 pad 1,1 groups 1, "
        "zero 3 clamp -128..127  wait dma_in>=1 decoder>=2"
    )
    assert code[13] == (
        "    13  dma_out  copy     dram[0x1400](0,0,0,0,0,1) <- sram[0x380](0,0,0,0,0,1) 1x1x1x1x1x64  wait vector>=7"
    )


def test_disassembly_has_layers_and_ports() -> None:
    """Comments say where layers begin and what goes in and out."""
    lines = list(disassemble(legal()))
    assert "; layer 'conv' (Conv): 'x' -> 'c', 1152 MACs, 72 bytes of weights" in lines
    assert (
        lines.index("; layer 'rest' (Softmax): 'c' -> 'y', 0 MACs, 0 bytes of weights")
        == next(n for n, line in enumerate(lines) if line.startswith("     7 ")) - 1
    )
    assert "; input 'x' int8 1x4x4x2 scale 0.5 zero -5 at dram[0x1000]" in lines
    assert lines == list(disassemble(loads(dumps(legal()))))


def test_disassembly_escapes_names() -> None:
    """Terminal escapes, line ends and marks of writing direction arrive as text."""
    nasty = "\x1b[2J\n\u202e'"
    program = replace(legal(), name=nasty, layers=(replace(legal().layers[0], name=nasty, op=nasty),))
    text = "".join(disassemble(program))
    assert text.isprintable() and text.isascii() and r"\x1b[2J\n\u202e" in text
