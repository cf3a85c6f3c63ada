"""The border: real arrays in ONNX shape outside, integers in device layout inside."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nnac.errors import ModelError, raise_all
from nnac.program import Program, Tensor
from nnac.types import Array


def free_inputs(program: Program) -> dict[str, tuple[int, ...]]:
    """Return ONNX names and shapes of the inputs that are no states."""
    kept = dict(program.states)
    return {t.onnx_name: t.onnx_shape for t in map(program.tensor, program.inputs) if t.name not in kept}


def quantized(program: Program, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return integers in device layout by tensor name, for arrays by ONNX input name; states may be left out.

    Raises:
        ModelError: all that does not fit.
    """
    tensors, states = {t.onnx_name: t for t in map(program.tensor, program.inputs)}, dict(program.states)
    missing = [name for name, t in tensors.items() if name not in inputs and t.name not in states]
    problems = [f"input {name!r} is missing" for name in missing]
    problems += [
        f"input {name!r} is unknown; the model has {', '.join(map(repr, tensors))}"
        for name in inputs
        if name not in tensors
    ]
    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    problems += [p for name, t in tensors.items() if name in arrays for p in _problems(name, t, arrays[name])]
    raise_all(ModelError, "the inputs do not fit the model:", problems)
    return {t.name: _to_device(t, arrays[name]) for name, t in tensors.items() if name in arrays}


def _problems(name: str, tensor: Tensor, array: Array) -> list[str]:
    if array.shape != tensor.onnx_shape:
        return [f"input {name!r} has shape {array.shape}, expected {tensor.onnx_shape}"]
    dtype = tensor.type.dtype
    if _stands_for_itself(tensor, array):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        inside = array.size == 0 or (low <= int(array.min()) and int(array.max()) <= high)
        return [] if inside else [f"input {name!r} has integers outside of {low} to {high}"]
    if array.dtype.kind != "f" and array.dtype not in (dtype, f"u{dtype}"):
        return [
            f"input {name!r} has dtype {array.dtype}, expected floats, or {dtype} for values that are quantized already"
            f" (u{dtype}: the same plus {1 << tensor.type.itemsize * 8 - 1})"
        ]
    return [f"input {name!r} has NaN or infinite values"] if not np.isfinite(array).all() else []


def _to_device(tensor: Tensor, array: Array) -> Array:
    quant = tensor.type.quant
    assert quant is not None
    if array.dtype.kind == "f":
        integers = quant.quantize(array)
    elif _stands_for_itself(tensor, array):
        integers = array.astype(tensor.type.dtype)
    else:
        integers = signed(array)
    return tensor.origin.from_onnx(integers, tensor.type.shape) if tensor.origin else integers


def signed(integers: Array) -> Array:
    """Return unsigned integers as the machine has them, of which it has none: half their range lower."""
    if integers.dtype.kind != "u":
        return integers
    bits = 8 * integers.itemsize
    return np.asarray((integers ^ (1 << bits - 1)).view(f"int{bits}"))


def _stands_for_itself(tensor: Tensor, array: Array) -> bool:
    """Tell whether integers (or truth values) are given for an int16 in steps of one, as host segments read them."""
    return tensor.type.quant is not None and tensor.type.quant.is_whole and array.dtype.kind in "iub"


def present(tensor: Tensor, array: Array, raw: bool = False) -> Array:
    """Return a device array in ONNX shape, as reals unless `raw`."""
    shaped = tensor.origin.to_onnx(array) if tensor.origin else array
    assert tensor.type.quant is not None
    return np.ascontiguousarray(shaped) if raw else tensor.type.quant.dequantize(shaped)
