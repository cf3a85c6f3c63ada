"""From a path, bytes or a ModelProto to a ModelProto that holds all its weights itself."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import onnx

from nnac.errors import ModelError, one_line, raise_all
from nnac.frontend.check import declared_problems, raw_bytes
from nnac.frontend.limits import Limits
from nnac.frontend.walk import stored_tensors

STARTS = frozenset(field.number << 3 | wire for field in onnx.ModelProto.DESCRIPTOR.fields for wire in (0, 2))
"""What a model's first byte may be: the number of a field of it, and how the field is stored."""
FEW = 1 << 23
"""Numbers that may be held twice for a while."""
EXTERNAL_KEYS = ("location", "offset", "length", "checksum", "basepath")
Source = str | Path | bytes | onnx.ModelProto


def load(source: Source, limits: Limits) -> onnx.ModelProto:
    """Return a copy of the model of `source`, not yet checked; external data stays outside.

    Raises:
        ModelError: the file cannot be read, is too large, or is no ONNX model.
    """
    if isinstance(source, onnx.ModelProto):
        return _copied(source)
    what = "the model" if isinstance(source, bytes) else repr(os.fspath(source))
    data = source if isinstance(source, bytes) else _model_file(Path(source), limits.file_bytes)
    if len(data) > limits.file_bytes:
        raise ModelError(f"{what} has {len(data):,} bytes; at most {limits.file_bytes:,} are allowed")
    if not data:
        raise ModelError(f"{what} is empty; an ONNX model is expected")
    return _parsed(data, what)


def _copied(source: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy; through bytes where weights are stored as numbers, which CopyFrom takes one by one."""
    model = onnx.ModelProto()
    if 0 < sum(len(tensor.float_data) for tensor in source.graph.initializer) < FEW:
        model.ParseFromString(source.SerializeToString())
    else:
        model.CopyFrom(source)
    return model


def _model_file(path: Path, limit: int) -> bytes:
    """Return a model's file; gigabytes that do not begin like a model are not read."""
    with suppress(OSError, ValueError):  # which reading it whole then describes
        if path.is_file():
            with path.open("rb") as file:
                first = file.read(1)
            if first and first[0] not in STARTS:
                raise ModelError(f"{os.fspath(path)!r} is not an ONNX model: it begins with byte {first[0]:#04x}")
    return read_file(path, limit)


def _parsed(data: bytes, what: str) -> onnx.ModelProto:
    try:
        model = onnx.ModelProto()
        model.ParseFromString(data)
    except Exception as error:  # protobuf raises its own class
        raise ModelError(f"{what} is not an ONNX model, or is cut off or damaged: {one_line(error)}") from error
    if not model.HasField("graph") or not model.ir_version:
        raise ModelError(f"{what} is not an ONNX model: it has no {'graph' if model.ir_version else 'IR version'}")
    return model


def read_file(path: Path, limit: int, offset: int = 0, length: int | None = None) -> bytes:
    """Return `length` bytes (None: all) of a regular file from `offset`, at most `limit`.

    Raises:
        ModelError: the file is missing, unreadable, no regular file, too large or too short.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before open: a FIFO would block
            raise ModelError(f"{os.fspath(path)!r} is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            count = size - offset if length is None else length
            if count > limit:
                raise ModelError(f"{os.fspath(path)!r} has {count:,} bytes; at most {limit:,} are allowed")
            if count < 0 or offset + count > size:
                raise ModelError(f"{os.fspath(path)!r} has {size:,} bytes; {length or 0:,} from {offset:,} on are due")
            file.seek(offset)
            data = file.read(count)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ModelError(f"{os.fspath(path)!r} cannot be read: {reason}") from error
    if len(data) != count:
        raise ModelError(f"{os.fspath(path)!r} became shorter while it was read")
    return data


def embed_external_data(model: onnx.ModelProto, source: Source, limits: Limits) -> None:
    """Read the weights that lie in other files into `model`; only files inside the model's folder are opened.

    Raises:
        ModelError: a location leaves the folder, a file is missing or too short, or a size does not fit (all at once).
    """
    outside = [t for t in stored_tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL or t.external_data]
    if not outside:
        return
    if isinstance(source, bytes | onnx.ModelProto):
        raise ModelError(f"tensor {outside[0].name!r} has its data in another file: give the model as a path")
    folder, problems, room = Path(source).parent, [], limits.file_bytes
    for tensor in outside:
        try:
            room -= _embed(tensor, folder, room, limits)
        except ModelError as error:
            problems.append(f"tensor {tensor.name!r}: {error}")
    raise_all(ModelError, "external data cannot be loaded:", problems)


def _embed(tensor: onnx.TensorProto, folder: Path, room: int, limits: Limits) -> int:
    """Read one tensor's bytes into it and return how many; nothing is read that its shape and type do not need."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    unknown = [key for key in entries if key not in EXTERNAL_KEYS]
    if unknown or tensor.data_location != onnx.TensorProto.EXTERNAL or len(entries) < len(tensor.external_data):
        raise ModelError(f"the external data entry is malformed (keys {', '.join(map(one_line, entries)) or 'none'})")
    offset, length = (_number(entries, key) for key in ("offset", "length"))
    path = resolve(folder, entries.get("location", ""))
    for problem in declared_problems(tensor, limits):
        raise ModelError(problem)
    data = read_file(path, min(room, raw_bytes(tensor)), offset or 0, length)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = data
    return len(data)


def _number(entries: dict[str, str], key: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise ModelError(f"{key} is a number of bytes from 0 up, found {one_line(text, 40)!r}")
    return int(text)


def resolve(folder: Path, location: str) -> Path:
    """Return the file at `location`, which is relative to `folder` and lies inside of it, links followed.

    Raises:
        ModelError: the location is absolute, goes up, leaves the folder through a link, or does not exist.
    """
    shown = repr(one_line(location, 120))
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location or Path(location).is_absolute() or parts[0].endswith(":") or ".." in parts:
        raise ModelError(f"location {shown} is not a relative path inside the model's folder")
    try:
        real, root = (folder / location).resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ModelError(f"location {shown} cannot be read: {reason}") from error
    if not real.is_relative_to(root):
        raise ModelError(f"location {shown} leaves the model's folder through a link")
    return real
