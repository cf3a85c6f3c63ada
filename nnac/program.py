"""The program: instructions, constants and everything that a reader needs to know; its `.nna` container.

A `.nna` file is a safetensors file with the tensors `instructions`, `constants` and one per host segment (`host.0`,
`host.1`, ...), and one metadata entry, JSON. It is
canonical: a loaded program writes the very same bytes again, and a file that does not is refused, so that no two
files differ and mean the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from nnac import isa
from nnac.errors import NnacError, ProgramError
from nnac.graph import Origin
from nnac.isa import AnyInstruction, Space
from nnac.isa.stream import decode, encode
from nnac.targets import Target, target_digest, target_from_dict, target_to_dict
from nnac.types import DTYPES, Array, Quant, TensorType

FORMAT = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What a loader accepts at most; whoever trusts a file more may pass larger ones.

    Attributes:
        name: characters of a name.
        segments: models for the host.
        memory_bytes: used in DRAM or flash, and working memory of one kernel call.
        buffer_bytes: used in the scratchpad or the weight buffer.
        work: elements, taps and products of the whole program.
    """

    file_bytes: int = 1 << 32
    header_bytes: int = 1 << 26
    tensors: int = 1 << 16
    rank: int = 8
    instructions: int = 1 << 20
    segments: int = 1 << 12
    name: int = 1024
    memory_bytes: int = 1 << 31
    buffer_bytes: int = 1 << 28
    work: int = 1 << 40


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [offset, offset + nbytes) of a tensor that is never whole, at `address` after instruction `ready`."""

    ready: int
    address: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the program in its home.

    Attributes:
        name: of the value in the compiled graph; unique.
        type: device shape, dtype, quantization.
        origin: the ONNX tensor that it stands for, or None for a helper.
        space, address: its home.
        ready: index of the last instruction that writes it, -1 for an input.
        pieces: of a tensor that goes through a cascade stripe by stripe and is nowhere whole; else empty.
    """

    name: str
    type: TensorType
    origin: Origin | None
    space: Space
    address: int
    ready: int
    pieces: tuple[Piece, ...] = ()

    @property
    def onnx_name(self) -> str:
        return self.origin.name if self.origin else self.name

    @property
    def onnx_shape(self) -> tuple[int, ...]:
        return self.origin.onnx_shape(self.type.shape) if self.origin else self.type.shape


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a layer's weights are encoded.

    Attributes:
        levels: distinct int8 values.
        sqnr_db: of the decoded weights against the float model's, dB; None: nothing lost.
        packer: the layout that was chosen (a name of `isa.PACKERS`).
        sizes: bytes by layout, shared table included, for all that could be chosen; smallest first.
    """

    levels: int
    sqnr_db: float | None
    packer: str
    sizes: tuple[tuple[str, int], ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the layout that was chosen."""
        return dict(self.sizes).get(self.packer, 0)


@dataclass(frozen=True, slots=True)
class Layer:
    """The instructions that came from one node; what reports group by.

    Attributes:
        name, op: of the node.
        runs: half-open ranges of instructions, ascending; one, or one per stripe in a cascade of layers.
        inputs, output: tensors of the program (operands that are constants are left out).
        more: the other tensors that it makes.
        macs: multiply-accumulates; `weight_bytes`: int8 weights before encoding.
        encoding: of the weights; None without weights.
    """

    name: str
    op: str
    runs: tuple[tuple[int, int], ...]
    inputs: tuple[str, ...]
    output: str
    macs: int
    weight_bytes: int
    encoding: Encoding | None = None
    more: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """All tensors that it makes."""
        return (self.output, *self.more)

    def indices(self) -> Iterator[int]:
        """Yield the layer's instructions."""
        return chain.from_iterable(range(first, end) for first, end in self.runs)


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """Outputs that the reference gave for seeded random inputs: SHA-256 per output."""

    seed: int
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled network for one target. Inputs and outputs are named by tensor.

    Attributes:
        constants: uint8 image that lies at address 0 of the target's constants memory.
        states: pairs (input, output) of tensors that the device keeps: an inference finds in the input what the one
            before it left in the output; the program's last instructions copy it there.
        loops: rounds of instructions that differ by constant steps; the file holds each loop's first round only.
        segments: ONNX models that the host runs (`nnac.segment`), by the number in `isa.Host.model`.
        used: bytes used per memory (scratchpad peak, weight buffer, spills with constants, ...).
        lower_bound: bytes of the largest set of scratchpad tensors alive at once; no placement needs less.
        calibration: how the ranges were found, e.g. "minmax, 100 samples"; "random" marks a blob for timing only.
    """

    name: str
    target: Target
    instructions: tuple[AnyInstruction, ...]
    constants: Array
    tensors: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    used: Mapping[Space, int]
    lower_bound: int
    calibration: str
    known_answer: KnownAnswer
    states: tuple[tuple[str, str], ...] = ()
    loops: tuple[isa.Loop, ...] = ()
    segments: tuple[bytes, ...] = ()

    def tensor(self, name: str) -> Tensor:
        """Return the tensor called `name`."""
        return next(t for t in self.tensors if t.name == name)

    @property
    def constants_space(self) -> Space:
        return Space[self.target.memory_mode.constants.upper()]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    def digest(self) -> str:
        """Return the SHA-256 of the file that `dumps` gives."""
        return hashlib.sha256(dumps(self)).hexdigest()


# -- writing -------------------------------------------------------------------------------------------------------


def dumps(program: Program) -> bytes:
    """Return the bytes of the program's `.nna` file; equal programs give equal bytes."""
    from safetensors.numpy import save

    stream = np.frombuffer(encode(program.instructions, program.loops), dtype=np.uint8)
    sections = {"instructions": stream, "constants": np.ascontiguousarray(program.constants)}
    sections |= {_segment_name(n): np.frombuffer(model, np.uint8) for n, model in enumerate(program.segments)}
    head = _head(program) | {"digests": {name: _sha(array) for name, array in sections.items()}}
    text = json.dumps(head, sort_keys=True, separators=(",", ":"), allow_nan=False)
    outer = json.dumps({"digest": _sha(text.encode()), "program": text}, sort_keys=True)
    return bytes(save(sections, metadata={"nnac": outer}))


def _segment_name(number: int) -> str:
    return f"host.{number}"


def _head(program: Program) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": program.name,
        "calibration": program.calibration,
        "target": target_to_dict(program.target),
        "target_digest": target_digest(program.target),
        "inputs": list(program.inputs),
        "outputs": list(program.outputs),
        "states": [list(pair) for pair in program.states],
        "tensors": [_tensor_to_dict(t) for t in program.tensors],
        "layers": [_layer_to_dict(layer) for layer in program.layers],
        "used": {space.label: count for space, count in program.used.items()},
        "lower_bound": program.lower_bound,
        "known_answer": {"seed": program.known_answer.seed, "digests": dict(program.known_answer.digests)},
        "instruction_count": len(program.instructions),
        "segment_count": len(program.segments),
    }


def _layer_to_dict(layer: Layer) -> dict[str, Any]:
    encoding = layer.encoding and {f.name: getattr(layer.encoding, f.name) for f in fields(layer.encoding)}
    return {f.name: getattr(layer, f.name) for f in fields(layer)} | {"encoding": encoding}


def _tensor_to_dict(t: Tensor) -> dict[str, Any]:
    quant, origin = t.type.quant, t.origin
    return {
        "name": t.name,
        "shape": list(t.type.shape),
        "dtype": t.type.dtype,
        "quant": [quant.scale, quant.zero_point] if quant else None,
        "origin": [origin.name, [[step, list(arg)] for step, arg in origin.steps]] if origin else None,
        "space": t.space.label,
        "address": t.address,
        "ready": t.ready,
        "pieces": [[p.ready, p.address, p.offset, p.nbytes] for p in t.pieces],
    }


def _sha(data: bytes | Array) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).hexdigest()


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` beside `path` and rename it there, so that `path` is the old file or the whole new one.

    Raises:
        ProgramError: the folder does not exist or cannot be written, or `path` is a folder, a device or a pipe (which
            the renaming would replace).
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise ProgramError(f"{str(path)!r} cannot be written: it is not a regular file")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ProgramError(f"{str(path)!r} cannot be written: {getattr(error, 'strerror', error)}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise ProgramError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# -- reading -------------------------------------------------------------------------------------------------------


def loads(data: bytes, where: str = "program", limits: Limits | None = None) -> Program:
    """Return the program of a `.nna` file's bytes, decoded but not yet validated (see `nnac.validate`).

    Raises:
        ProgramError: not a `.nna` file, cut short, damaged, of another version, or not canonical.
    """
    limits = limits or Limits()
    try:
        head, sections = _open(data, limits)
        _check_head(head, sections, limits)
        program = _program(head, sections)
        if dumps(program) != data:
            raise ProgramError("not in canonical form, so it was not written by nnac; compile the model again")
    except NnacError as error:  # a TargetError too: an embedded target is the blob's fault
        raise ProgramError(f"{where}: {error}") from None
    except Exception as error:  # whatever a hostile header makes the parsers say
        raise ProgramError(f"{where}: damaged header: {type(error).__name__}: {str(error)[:200]!r}") from None
    return program


def _open(data: bytes, limits: Limits) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the metadata and the sections of a safetensors file, after checking every length."""
    if len(data) > limits.file_bytes:
        raise ProgramError(f"{len(data):,} bytes, allowed {limits.file_bytes:,}")
    if len(data) < 8:
        raise ProgramError(f"only {len(data)} bytes: not a .nna file")
    (length,) = struct.unpack_from("<Q", data)
    if length > min(limits.header_bytes, len(data) - 8):
        raise ProgramError("the header is longer than the file: cut short, or not a .nna file")
    header = json.loads(data[8 : 8 + length].decode())
    outer = json.loads(header["__metadata__"]["nnac"])
    if _sha(outer["program"].encode()) != outer["digest"]:
        raise ProgramError("the header's digest is wrong: the file is damaged")
    head = json.loads(outer["program"])
    count = head.get("segment_count", 0)
    if not (type(count) is int and 0 <= count <= limits.segments):
        raise ProgramError(f"{count!r:.80} host segments, allowed {limits.segments:,}")
    names = ("instructions", "constants", *map(_segment_name, range(count)))
    return head, {name: _section(data, header[name], 8 + length) for name in names}


def _section(data: bytes, entry: dict[str, Any], base: int) -> Array:
    begin, end = entry["data_offsets"]
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end <= len(data) - base):
        raise ProgramError("a section ends behind the end of the file: cut short")
    return np.frombuffer(data, dtype=np.uint8, count=end - begin, offset=base + begin)


def _check_head(head: dict[str, Any], sections: Mapping[str, Array], limits: Limits) -> None:
    if head["format"] != FORMAT:
        raise ProgramError(f"format version {head['format']!r}, this nnac reads {FORMAT}; compile the model again")
    for name, array in sections.items():
        if _sha(array) != head["digests"][name]:
            raise ProgramError(f"section {name!r} does not match its digest: the file is damaged")
    counts = {
        "tensors": (len(head["tensors"]), limits.tensors),
        "instructions": (head["instruction_count"], limits.instructions),
    }
    for what, (found, allowed) in counts.items():
        if not 0 <= found <= allowed:
            raise ProgramError(f"{found:,} {what}, allowed {allowed:,}")


def _program(head: dict[str, Any], sections: Mapping[str, Array]) -> Program:
    target = target_from_dict(head["target"], "embedded target")
    if target_digest(target) != head["target_digest"]:
        raise ProgramError("the embedded target does not match its digest")
    answer = head["known_answer"]
    instructions, loops = decode(sections["instructions"].tobytes(), head["instruction_count"])
    return Program(
        name=head["name"],
        target=target,
        instructions=instructions,
        constants=sections["constants"],
        tensors=tuple(_tensor(t) for t in head["tensors"]),
        inputs=tuple(head["inputs"]),
        outputs=tuple(head["outputs"]),
        layers=tuple(_layer(raw) for raw in head["layers"]),
        used={Space[name.upper()]: int(count) for name, count in head["used"].items()},
        lower_bound=head["lower_bound"],
        calibration=head["calibration"],
        known_answer=KnownAnswer(answer["seed"], dict(answer["digests"])),
        states=tuple((source, result) for source, result in head["states"]),
        loops=loops,
        segments=tuple(sections[_segment_name(n)].tobytes() for n in range(head["segment_count"])),
    )


def _tensor(raw: dict[str, Any]) -> Tensor:
    if raw["dtype"] not in DTYPES:
        raise ProgramError(f"tensor {raw['name']!r}: unknown dtype {raw['dtype']!r}")
    bits = 8 * DTYPES[raw["dtype"]].itemsize
    quant = Quant(float(raw["quant"][0]), int(raw["quant"][1]), bits) if raw["quant"] else None
    if quant and not (isfinite(quant.scale) and quant.scale > 0 and -128 <= quant.zero_point <= 127):
        raise ProgramError(f"tensor {raw['name']!r}: scale {quant.scale!r} or zero point {quant.zero_point!r} is wrong")
    origin = raw["origin"] and Origin(raw["origin"][0], tuple((step, tuple(arg)) for step, arg in raw["origin"][1]))
    kind = TensorType(tuple(raw["shape"]), raw["dtype"], quant)
    return Tensor(
        raw["name"],
        kind,
        origin,
        Space[raw["space"].upper()],
        raw["address"],
        raw["ready"],
        tuple(Piece(*piece) for piece in raw["pieces"]),
    )


def _layer(raw: dict[str, Any]) -> Layer:
    known = {f.name for f in fields(Layer)}
    if set(raw) != known:
        raise ProgramError("a layer record has unknown or missing entries")
    runs = tuple((first, end) for first, end in raw["runs"])
    encoding = None if raw["encoding"] is None else _encoding(raw["encoding"])
    names = {key: tuple(raw[key]) for key in ("inputs", "more")}
    return Layer(**raw | names | {"runs": runs, "encoding": encoding})


def _encoding(raw: dict[str, Any]) -> Encoding:
    found = Encoding(raw["levels"], raw["sqnr_db"], raw["packer"], tuple((name, size) for name, size in raw["sizes"]))
    sizes, sqnr = dict(found.sizes), found.sqnr_db
    right = (
        set(raw) == {f.name for f in fields(Encoding)}
        and found.packer in sizes
        and set(sizes) <= set(isa.PACKERS)
        and all(type(n) is int and 0 <= n < 1 << 40 for n in (*sizes.values(), found.levels))
        and (sqnr is None or (type(sqnr) is float and isfinite(sqnr)))
    )
    if not right:
        raise ProgramError("the record of how a layer's weights are encoded is wrong")
    return found
