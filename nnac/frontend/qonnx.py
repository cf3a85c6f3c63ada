"""QONNX: quantizers of constant weights (`Quant`, `BipolarQuant`) are computed, those of activations are read.

Rules:

1. a node of one of the domains, all of whose inputs are stored, becomes its value: clip x / scale + zero point to the
   width, round, and back, in float32 as QONNX defines it; one signed bit is the sign;
2. scale and zero point fit into the shape of x;
3. a node on a computed value that rounds to nearest, of at most 8 bits and with one scale, is read as its levels
   (`computed_quantizer`); any other stays, and the import reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnac.frontend.walk import stored_arrays
from nnac.types import Array

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "DOWN": np.trunc,
}


def fold_quantizers(model: onnx.ModelProto) -> bool:
    """Replace quantizers of stored tensors in the main graph by their values, in place; tell if there were any."""
    if not any(node.domain in DOMAINS for node in model.graph.node):
        return False
    stored = stored_arrays(model.graph)
    kept, folded = [], dict[str, Array]()
    for node in model.graph.node:
        value = _value(node, stored)
        if value is None:
            kept.append(node)
        else:
            folded[node.output[0]] = value
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in folded.items())
    return bool(folded)


def _value(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> Array | None:
    """Return what a quantizer of stored tensors gives, or None for any other node."""
    if node.domain not in DOMAINS or len(node.output) != 1 or any(name not in stored for name in node.input):
        return None
    inputs = [numpy_helper.to_array(stored[name]) for name in node.input]
    if any(array.dtype != np.float32 for array in inputs[:3]) or not _fits(inputs[:3]):
        return None
    with np.errstate(all="ignore"):
        match node.op_type, inputs:
            case (("Quant" | "IntQuant"), [x, scale, zero, width]):
                return _quantized(node, x, scale, zero, width)
            case "BipolarQuant", [x, scale]:
                return _float32(np.where(x >= 0, 1, -1) * scale)
    return None


def _fits(inputs: list[Array]) -> bool:
    """Tell whether the first input's shape takes in all others."""
    try:
        return np.broadcast_shapes(*(array.shape for array in inputs)) == inputs[0].shape
    except ValueError:
        return False


def _quantized(node: onnx.NodeProto, x: Array, scale: Array, zero: Array, width: Array) -> Array | None:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    rounding = ROUNDINGS.get(attributes.get("rounding_mode", b"ROUND").decode().upper())
    bits = int(width.ravel()[0]) if width.size == 1 and width.ravel()[0] in range(1, 33) else None
    if rounding is None or bits is None:
        return None
    signed, steps = bool(attributes.get("signed", 1)), x / scale + zero
    if signed and bits == 1:
        return _float32((np.where(steps >= 0, 1, -1) - zero) * scale)
    low, high = limits(bits, signed, bool(attributes.get("narrow", 0)))
    return _float32((rounding(np.clip(steps, np.float32(low), np.float32(high))) - zero) * scale)


@dataclass(frozen=True, slots=True)
class Levels:
    """The integers low..high of a quantizer, with the scale and the zero point that make them real."""

    scale: float
    zero_point: int
    low: int
    high: int


def computed_quantizer(node: onnx.NodeProto, parameters: Sequence[Array | None]) -> Levels | None:
    """Return the levels of a `Quant` node with stored scale, zero point and width, or None if int8 has no such."""
    if node.domain not in DOMAINS or len(parameters) != 3 or any(p is None or p.size != 1 for p in parameters):
        return None
    scale, zero, width = (float(p.reshape(-1)[0]) for p in parameters if p is not None)
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    nearest = attributes.get("rounding_mode", b"ROUND").decode().upper() in ("ROUND", "HALF_EVEN")
    signed = bool(attributes.get("signed", 1))
    if not nearest or zero != round(zero) or width not in range(1 + signed, 9) or not scale > 0:
        return None
    low, high = limits(int(width), signed, bool(attributes.get("narrow", 0)))
    return Levels(scale, int(zero), low, high) if low <= zero <= high else None


def limits(bits: int, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """Return the smallest and the largest integer of a width; `narrow` leaves one out."""
    if signed:
        return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - narrow


def _float32(array: Array) -> Array:
    return np.ascontiguousarray(array, np.float32)
