"""An ONNX model in onnxruntime whose intermediate tensors can be read, on one thread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import uses_external_data

from nnac.errors import ModelError, one_line, raise_all
from nnac.types import Array, First

MAX_IR_VERSION = 13  # onnx 1.23 writes 14, onnxruntime 1.31 reads up to 13
_KINDS = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({kind})": kind for kind in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")},
}
"""numpy dtypes by onnxruntime's names."""
_LARGE = 1 << 12  # floats from which a weight is not copied with its model
_LOG_FATAL = 4  # lower levels print each error a second time, with the model's raw node names, on stderr


class FloatModel:
    """Runs a float model and returns its graph outputs and any named tensors of its main graph.

    The same inputs give the same bits in every run. The caller's model is not changed. The model must have passed the
    importer's checks: onnxruntime itself loads models with zero groups or absurd pads.

    Args:
        model: an ONNX model with its weights inside (external data already loaded).
        tensors: names of graph inputs, initializers or node outputs to return besides the graph outputs; each name
            once, in this order after the graph outputs; None for the graph outputs alone.
        states: graph inputs by name, and the graph output that becomes each in the next run. Left out of the inputs,
            they start from zeros, with the first run and with every `First`.
        optimized: whether onnxruntime may rewrite the graph.

    Raises:
        ModelError: a tensor name does not exist, the weights are outside the file, or onnxruntime refuses the model.
    """

    __slots__ = ("_held", "_kept", "_names", "_optional", "_session", "_specs", "_states")

    def __init__(
        self,
        model: onnx.ModelProto,
        tensors: Sequence[str] | None = None,
        states: Mapping[str, str] | None = None,
        optimized: bool = False,
    ) -> None:
        if any(uses_external_data(tensor) for tensor in _tensors_of(model)):
            raise ModelError("the model's weights are in external files: load them (onnx.load does) before running it")
        wanted = list(dict.fromkeys(tensors or ()))
        _check_names(model.graph, wanted)
        self._optional = frozenset(tensor.name for tensor in model.graph.initializer)
        self._specs = {info.name: info for info in model.graph.input}
        self._names = list(dict.fromkeys([*(info.name for info in model.graph.output), *wanted]))
        data, weights = _exposing(model, self._names)
        self._session, self._held = _start(data, weights, optimized)
        self._states, self._kept = dict(states or {}), dict[str, Array]()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return name -> array for the graph outputs, then the named tensors.

        Args:
            inputs: one array per graph input, of the declared shape (symbolic dimensions take any length) and dtype.
                Floats and integers are cast to the dtype of a float input; other inputs want their exact dtype.

        Raises:
            ModelError: an input is missing, unknown, of another shape or dtype, or not finite (all problems at once),
                or onnxruntime fails.
        """
        if isinstance(inputs, First) or not self._kept:
            self._kept = {name: _zeros(self._specs[name]) for name in self._states}
        feeds = self._feeds({**self._kept, **inputs})
        try:
            values = self._session.run(self._names, feeds)
        except Exception as error:
            raise ModelError(f"onnxruntime cannot run the model: {_reason(error)}") from error
        found = dict(zip(self._names, values, strict=True))
        odd = [f"{name!r} is a {type(value).__name__}" for name, value in found.items() if not _is_array(value)]
        raise_all(ModelError, "only tensors can be read:", odd)
        self._kept = {source: found[result] for source, result in self._states.items()}
        return found

    def described(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Return dtype and shape of those tensors for which onnxruntime knows both before a run."""
        found = {each.name: (_KINDS.get(each.type), tuple(each.shape)) for each in self._session.get_outputs()}
        return {
            name: (np.dtype(kind), shape)
            for name, (kind, shape) in found.items()
            if kind and all(isinstance(side, int) and side > 0 for side in shape)
        }

    def _feeds(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return `inputs` in the model's dtypes, or raise one ModelError that lists every problem."""
        missing = [name for name in self._specs if name not in inputs and name not in self._optional]
        unknown = [name for name in inputs if name not in self._specs]
        problems = [f"input {name!r} is missing (given: {_listed(inputs)})" for name in missing]
        problems += [f"input {name!r} is unknown (the model has: {_listed(self._specs)})" for name in unknown]
        feeds = {}
        for name in (name for name in inputs if name in self._specs):
            try:
                feeds[name] = _feed(self._specs[name], inputs[name])
            except ModelError as error:
                problems.append(f"input {name!r}: {error}")
        raise_all(ModelError, "the inputs do not fit the model:", problems)
        return feeds


def _zeros(info: onnx.ValueInfoProto) -> Array:
    """Return the array of zeros of a graph input with a fixed shape."""
    kind = info.type.tensor_type
    return np.zeros(tuple(dim.dim_value for dim in kind.shape.dim), _dtype(kind.elem_type))


def _is_array(value: object) -> bool:
    """Return whether onnxruntime gave a tensor (it gives lists, dicts and None for sequences, maps and optionals)."""
    return isinstance(value, np.ndarray)


def _reason(error: Exception) -> str:
    """Return which node failed and why, without the places in onnxruntime's sources."""
    found = re.search(r"running (\w+) node\. Name:'(.*?)' Status Message: (?:/\S+ .*?\) )?(.*)", str(error), re.DOTALL)
    return one_line("{} {!r}: {}".format(*found.groups()) if found else error)


def _check_names(graph: onnx.GraphProto, wanted: Iterable[str]) -> None:
    """Raise ModelError for wanted tensors that the main graph does not have."""
    known = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    known |= {name for node in graph.node for name in node.output}
    unknown = [repr(name) for name in wanted if not name or name not in known]
    if unknown:
        raise ModelError(f"the model has no tensor {', '.join(unknown)} in its main graph")


def _exposing(model: onnx.ModelProto, names: Iterable[str]) -> tuple[bytes, dict[str, Array]]:
    """Return `model` serialized with all `names` among its outputs, and its large weights, which are left out.

    The IR version is one that onnxruntime reads; a new output carries no type: onnxruntime infers it.
    """
    copy, weights = lightened(model)
    copy.ir_version = min(copy.ir_version, MAX_IR_VERSION)
    present = {info.name for info in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    try:
        data = bytes(copy.SerializeToString())
    except Exception as error:  # protobuf raises its own classes, and ValueError over 2 GB
        raise ModelError(f"the model cannot be serialized: {one_line(error)}") from error
    return data, {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in weights}


def lightened(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Return a copy of a model in which large weights have no numbers, as if in another file, and these weights."""
    graph, weights = model.graph, list[onnx.TensorProto]()
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    copy.graph.name, inputs = graph.name, {info.name for info in graph.input}
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(copy.graph, field).extend(getattr(graph, field))
    for tensor in graph.initializer:
        large = tensor.data_type == onnx.TensorProto.FLOAT and prod(tensor.dims) >= _LARGE
        if large and tensor.HasField("raw_data") and tensor.name not in inputs:
            weights.append(tensor)
            place = [onnx.StringStringEntryProto(key="location", value="given")]
            tensor = onnx.TensorProto(
                name=tensor.name,
                data_type=tensor.data_type,
                dims=tensor.dims,
                data_location=onnx.TensorProto.EXTERNAL,
                external_data=place,
            )
        copy.graph.initializer.append(tensor)
    return copy, weights


def _start(model: bytes, weights: Mapping[str, Array], optimized: bool) -> tuple[Any, list[Any]]:
    """Return an onnxruntime session, and the weights, whose memory it reads. onnxruntime has no types.

    It has one thread, is silent, and runs the model as written unless optimized.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.log_severity_level = _LOG_FATAL
    held = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), held)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]), held
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load the model: {one_line(error)}") from error


def _feed(info: onnx.ValueInfoProto, value: Array) -> Array:
    """Return `value` as the array that the graph input `info` wants.

    Raises:
        ModelError: without the input's name, which the caller adds.
    """
    if not info.type.HasField("tensor_type"):
        raise ModelError(f"is a {info.type.WhichOneof('value')} in the model, only tensors can be given")
    array = _cast(value, _dtype(info.type.tensor_type.elem_type))
    _check_shape(array.shape, info.type.tensor_type)
    return array


def _dtype(elem_type: int) -> np.dtype[Any]:
    """Return the numpy dtype of an ONNX element type."""
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except Exception as error:
        raise ModelError(f"has the unknown ONNX element type {elem_type} in the model") from error


def _cast(value: Array, dtype: np.dtype[Any]) -> Array:
    """Return `value` as a row-major array of `dtype`: numbers become floats, everything else must match exactly."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ModelError(f"is no array: {one_line(error)}") from error
    if dtype.kind != "f" and array.dtype.newbyteorder("=") != dtype:
        raise ModelError(f"found dtype {array.dtype}, expected {dtype}")
    if dtype.kind == "f" and array.dtype.kind not in "fiu":
        raise ModelError(f"found dtype {array.dtype}, expected {dtype} (or numbers to cast to it)")
    with np.errstate(over="ignore"):
        array = array.astype(dtype, order="C", copy=False)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ModelError(f"found NaN or infinite values (as {dtype}), expected finite ones")
    return array


def _check_shape(found: tuple[int, ...], declared: onnx.TypeProto.Tensor) -> None:
    """Raise ModelError when `found` is not the declared shape; symbolic dimensions and absent shapes take anything."""
    if not declared.HasField("shape"):
        return
    dims = declared.shape.dim
    fits = [not dim.HasField("dim_value") or dim.dim_value == size for dim, size in zip(dims, found, strict=False)]
    if len(dims) == len(found) and all(fits):
        return
    sizes = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]
    raise ModelError(f"found shape {list(found)}, expected [{', '.join(sizes)}]")


def _tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor: initializers and node attributes, in subgraphs and functions too."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        while graphs:
            graph = graphs.pop()
            yield from graph.initializer
            yield from (part for each in graph.sparse_initializer for part in (each.values, each.indices))
            nodes.extend(graph.node)
        for attribute in (attribute for node in nodes for attribute in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            graphs.extend([attribute.g] if attribute.HasField("g") else [])
            graphs.extend(attribute.graphs)
        nodes.clear()


def _listed(names: Iterable[str]) -> str:
    """Return the names for an error message."""
    return ", ".join(map(repr, names)) or "none"
