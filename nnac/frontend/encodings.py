"""AIMET's `.encodings` beside a float model: the quantizers that it describes are written into the model.

Rules:

1. both published forms of the JSON are read: names to lists (0.x), and lists of entries with a name (1.0);
2. an encoding stands for ``real = scale * (q + offset)`` with q of `bitwidth` bits from zero; 2 to 8 bits, and 16 for
   symmetric activations;
3. an activation gets QuantizeLinear and DequantizeLinear behind it (under 8 bits a Clip too); a parameter becomes
   integers with DequantizeLinear, per channel where there are several encodings; biases (32 bits) stay real;
4. an encoding of a tensor that the model does not have is an error: the file belongs to another model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnac.errors import ModelError, one_line, raise_all
from nnac.frontend.limits import LIMITS, Limits
from nnac.frontend.loader import Source, read_file
from nnac.frontend.prepare import opened
from nnac.frontend.qoperator import modernize
from nnac.frontend.shapes import drop_constant_inputs
from nnac.ops import exact
from nnac.types import Array

BYTES = 1 << 26
"""Most that a file of encodings may have."""
BIAS_BITS = 32
OPSET_16 = 21
"""From here on the quantizing operators have 16-bit integers."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One tensor's quantizer: bits, and a scale and an offset per channel, or one of each."""

    name: str
    bits: int
    scales: tuple[float, ...]
    offsets: tuple[int, ...]

    @property
    def problem(self) -> str:
        """Why the encoding cannot be used; empty where it can."""
        lowest = -(1 << self.bits) if self.bits <= 16 else 0
        if self.bits not in (*range(2, 9), 16, BIAS_BITS):
            return f"{self.name!r} has {self.bits} bits; allowed: 2 to 8, 16 for activations, 32 for biases"
        if not self.scales or not all(isfinite(scale) and scale > 0 for scale in self.scales):
            return f"{self.name!r} has a scale that is not positive and finite"
        if self.bits != BIAS_BITS and not all(lowest < offset <= 0 for offset in self.offsets):
            return f"{self.name!r} has an offset outside {lowest + 1}..0"
        return ""


def with_encodings(source: Source, encodings: str | os.PathLike[str], limits: Limits = LIMITS) -> onnx.ModelProto:
    """Return a float model with the quantizers of an `.encodings` file in it.

    Raises:
        ModelError: the model or the file cannot be used, or the file belongs to another model.
    """
    model = opened(source, limits)
    drop_constant_inputs(model.graph)
    activations, parameters = _read(Path(encodings))
    modernize(model, OPSET_16 if any(each.bits == 16 for each in activations) else 0)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    computed = {info.name for info in model.graph.input} | {name for node in model.graph.node for name in node.output}
    unknown = [each.name for each in activations if each.name not in computed and each.name not in stored]
    unknown += [each.name for each in parameters if each.name not in stored]
    problems = [f"the model has no tensor {name!r}" for name in unknown]
    raise_all(ModelError, f"the encodings {str(encodings)!r} do not belong to the model:", problems[:20])
    for each in parameters:
        if each.bits != BIAS_BITS:
            _parameter(model.graph, each, stored[each.name])
    for each in activations:
        if each.name in computed:
            _activation(model.graph, each)
    return model


# -- the file ------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[list[Encoding], list[Encoding]]:
    """Return the encodings of activations and of parameters."""
    try:
        content = json.loads(read_file(path, BYTES))
        found = tuple([*_entries(content[key])] for key in ("activation_encodings", "param_encodings"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{str(path)!r} is no AIMET encodings file: {one_line(repr(error))}") from None
    problems = [each.problem for each in (*found[0], *found[1]) if each.problem]
    raise_all(ModelError, f"the encodings {str(path)!r} cannot be used:", problems[:20])
    return found[0], found[1]


def _entries(section: Any) -> Iterator[Encoding]:
    if isinstance(section, Mapping):
        for name, parts in section.items():
            if all(str(part.get("dtype", "int")).lower() == "int" for part in parts):
                scales, offsets = [float(part["scale"]) for part in parts], [int(part["offset"]) for part in parts]
                yield Encoding(str(name), int(parts[0]["bitwidth"]), tuple(scales), tuple(offsets))
        return
    for entry in section:
        if str(entry.get("dtype", "INT")).upper() == "INT":
            scales, offsets = list(map(float, entry["scale"])), list(map(int, entry["offset"]))
            yield Encoding(str(entry["name"]), int(entry["bw"]), tuple(scales), tuple(offsets))


# -- the model -----------------------------------------------------------------------------------------------------


def _parameter(graph: onnx.GraphProto, encoding: Encoding, tensor: onnx.TensorProto) -> None:
    """Store a parameter as int8 and dequantize it under its own name."""
    array, count = numpy_helper.to_array(tensor), len(encoding.scales)
    axis = _channel_axis(graph, tensor.name, array) if count > 1 else 0
    if count not in (1, array.shape[axis] if array.ndim else 1) or encoding.bits > 8:
        raise ModelError(f"{tensor.name!r} of shape {list(array.shape)} has {count} encodings of {encoding.bits} bits")
    half = 1 << encoding.bits - 1
    scale = np.array(encoding.scales, np.float32)
    zero = -np.array(encoding.offsets, np.int64) - half
    along = (-1, *(1,) * (array.ndim - axis - 1)) if count > 1 else ()
    integers = exact.quantize(array, scale.reshape(along), zero.reshape(along), -half, half - 1)
    graph.initializer.remove(tensor)
    shape = scale.shape if count > 1 else ()
    quantizer = (scale.reshape(shape), zero.astype(np.int8).reshape(shape))
    names = _store(graph, encoding.name, integers.astype(np.int8), *quantizer)
    attributes: dict[str, Any] = {"axis": axis} if count > 1 else {}
    node = helper.make_node("DequantizeLinear", names, [encoding.name], f"{encoding.name}.dequantize", **attributes)
    graph.node.insert(0, node)


def _channel_axis(graph: onnx.GraphProto, name: str, array: Array) -> int:
    """Return the axis of a weight that its layer's output channels lie along."""
    reader = next((node for node in graph.node if name in node.input), None)
    transposed = reader is not None and any(a.name == "transB" and a.i for a in reader.attribute)
    if reader is None or reader.op_type not in ("Gemm", "MatMul", "ConvTranspose"):
        return 0
    return 1 if reader.op_type == "ConvTranspose" else 0 if transposed else array.ndim - 1


def _activation(graph: onnx.GraphProto, encoding: Encoding) -> None:
    """Quantize and dequantize a computed tensor; a graph output keeps its name behind them."""
    if len(encoding.scales) != 1:
        raise ModelError(f"activation {encoding.name!r} has {len(encoding.scales)} encodings; one is allowed")
    name, is_output = encoding.name, any(info.name == encoding.name for info in graph.output)
    source, target = (f"{name}.unquantized", name) if is_output else (name, f"{name}.dequantized")
    for node in graph.node:
        names = node.output if is_output else node.input
        for i in range(len(names)):
            if names[i] == name:
                names[i] = source if is_output else target
    maker = next((i for i, node in enumerate(graph.node) if source in node.output), -1)
    for i, node in enumerate(_quantizers(graph, encoding, source, target)):
        graph.node.insert(maker + 1 + i, node)


def _quantizers(graph: onnx.GraphProto, encoding: Encoding, source: str, target: str) -> list[onnx.NodeProto]:
    scale, offset = np.float32(encoding.scales[0]), encoding.offsets[0]
    dtype = np.uint16 if encoding.bits == 16 else np.uint8
    nodes = []
    if encoding.bits < 8:
        ends = [np.float32(q + offset) * scale for q in (0, (1 << encoding.bits) - 1)]
        limits = _store(graph, f"{source}.limit", *ends)
        nodes.append(helper.make_node("Clip", [source, *limits], [f"{source}.clipped"]))
        source = f"{source}.clipped"
    names = _store(graph, f"{target}.quantizer", scale, np.array(-offset, dtype))
    quantized = f"{target}.quantized"
    nodes.append(helper.make_node("QuantizeLinear", [source, *names], [quantized], f"{target}.quantize"))
    nodes.append(helper.make_node("DequantizeLinear", [quantized, *names], [target], f"{target}.dequantize"))
    return nodes


def _store(graph: onnx.GraphProto, stem: str, *arrays: Any) -> list[str]:
    names = [f"{stem}.{i}" for i in range(len(arrays))]
    graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for a, n in zip(arrays, names, strict=True))
    return names
