"""Graph inputs that the user fixes to a value: they become constants, and what depends on them alone is folded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from nnac.errors import one_line
from nnac.frontend.check import report, shape_problems
from nnac.frontend.limits import Limits
from nnac.types import Array

Shape = tuple[int, ...]
Frozen = Mapping[str, Any]
"""Numbers or arrays by input name; one number fills the whole input."""


def freeze_inputs(graph: onnx.GraphProto, frozen: Frozen, shapes: Mapping[str, Shape], limits: Limits) -> None:
    """Store the values of `frozen` as initializers, which turns their inputs into constants.

    Raises:
        ModelError: a name is no input, or a value does not fit the input's type and shape (all at once).
    """
    inputs = {info.name: info for info in graph.input}
    report(problem for name in frozen for problem in _problems(name, inputs.get(name), frozen[name], inputs))
    for name, value in frozen.items():
        dtype = _dtype(inputs[name])
        shape = shapes.get(name) or _declared(inputs[name])
        given = np.asarray(value)
        target = given.shape if shape is None else shape
        report(f"input {name!r} {text}" for text in shape_problems(target, limits, smallest=0))
        report(_misfits(name, given, target, dtype))
        array = np.ascontiguousarray(np.broadcast_to(given.astype(dtype), target)).reshape(target)
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))


def _problems(
    name: str, info: onnx.ValueInfoProto | None, value: Any, inputs: Mapping[str, onnx.ValueInfoProto]
) -> Iterator[str]:
    if info is None:
        yield f"--freeze names {one_line(name)!r}, which is no graph input (inputs: {', '.join(map(repr, inputs))})"
    elif not info.type.HasField("tensor_type"):
        yield f"graph input {name!r} is no tensor; it cannot be frozen"
    elif np.asarray(value).dtype.kind not in "fiub":
        yield f"--freeze {name}: expected numbers, found {one_line(value, 60)!r}"


def _dtype(info: onnx.ValueInfoProto) -> np.dtype[Any]:
    return onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)


def _declared(info: onnx.ValueInfoProto) -> Shape | None:
    """Return the fixed shape that the model says, or None while a dimension is open."""
    if not info.type.tensor_type.HasField("shape"):
        return None
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in info.type.tensor_type.shape.dim)
    return dims if all(dim >= 0 for dim in dims) else None


def _misfits(name: str, given: Array, target: Shape, dtype: np.dtype[Any]) -> Iterator[str]:
    if given.ndim and given.shape != target:
        yield f"--freeze {name}: has shape {list(given.shape)}, the input has {list(target)}"
    elif not np.array_equal(given.astype(dtype), given) and dtype.kind != "f":
        yield f"--freeze {name}: {one_line(given, 60)} is no value of type {dtype.name}"
