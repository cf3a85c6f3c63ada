"""QuantizeLinear and DequantizeLinear: they make no nodes but pin the quantization of the value between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
import onnx

from nnac.errors import ModelError
from nnac.frontend.builder import Builder
from nnac.frontend.integers import layer_bias, layer_weights
from nnac.frontend.qonnx import limits
from nnac.frontend.use import Refused, Row, Rule, Stored, Tensors, Use
from nnac.graph import Origin, Value
from nnac.ops import Activation, Concat, Reshape, exact
from nnac.types import Array, Quant, TensorType

ACTIVATIONS = {"int8": (8, 0), "uint8": (8, 128), "int16": (16, 0), "uint16": (16, 1 << 15)}
"""Types of computed integer tensors: bits, and what their integers are less on the machine, which has none unsigned."""

INTEGER_OPS = frozenset(
    "QuantizeLinear DequantizeLinear Identity Reshape Flatten Squeeze Unsqueeze Transpose Concat Split Slice MaxPool"
    " Dropout".split()
)
"""Operators that may stand on the integer tensors themselves: they change no value."""

LIMITS = {f"{sign}int{bits}": limits(bits, not sign) for sign in ("", "u") for bits in (2, 4, 8, 16)}
"""Smallest and largest integer of the types that constants are quantized to."""

_MOVES: dict[str, Callable[[Use, Array], Array]] = {
    "Identity": lambda use, x: x,
    "Transpose": lambda use, x: x.transpose(use.ints("perm", reversed(range(x.ndim)))),
    "Reshape": lambda use, x: x.reshape(use.out()),
    "Squeeze": lambda use, x: x.reshape(use.out()),
    "Unsqueeze": lambda use, x: x.reshape(use.out()),
    "Flatten": lambda use, x: x.reshape(use.out()),
}


# -- constants -----------------------------------------------------------------------------------------------------


def evaluated(use: Use) -> bool:
    """Compute a node that quantizes, dequantizes or moves a stored constant; tell if it is one."""
    tensors = use.tensors
    source = use.inputs[0] if use.inputs else ""
    if source not in tensors.constants or not all(use.fixed(i) for i in range(len(use.inputs))):
        return False
    if use.op_type == "DequantizeLinear":
        _keep(tensors, use.outputs[0], _stored(use))
    elif use.op_type == "QuantizeLinear":
        tensors.constants[use.outputs[0]] = _quantized(use)
    elif use.op_type in _MOVES and source in tensors.stored:
        move = _MOVES[use.op_type]
        _keep(tensors, use.outputs[0], tensors.stored[source].mapped(lambda x: np.ascontiguousarray(move(use, x))))
    else:
        return False
    return True


def _keep(tensors: Tensors, name: str, stored: Stored) -> None:
    tensors.stored[name], tensors.constants[name] = stored, stored.real()


def _stored(use: Use) -> Stored:
    """Return the operands of a DequantizeLinear on a constant, each in the shape of the whole."""
    integers = use.array(0).astype(np.int64)
    zero = use.array(2).astype(np.int64) if use.given(2) else np.zeros((), np.int64)
    scale = use.array(1).astype(np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise Refused("scales are positive and finite")
    return Stored(integers, _spread(use, zero), _spread(use, scale))


def _spread(use: Use, parameter: Array) -> Array:
    """Return a scale or zero point in the shape of input 0: one, one per entry of `axis`, or one per block along it."""
    shape, block = use.shape(), int(use.get("block_size", 0))
    if parameter.size == 1:
        return np.broadcast_to(parameter.reshape(()), shape)
    axis = use.axis(1, len(shape))
    if parameter.ndim == 1 and not block:
        return np.broadcast_to(parameter.reshape(-1, *(1,) * (len(shape) - axis - 1)), shape)
    if not block:
        raise Refused("scales are one, one per channel, or one per block")
    return np.repeat(parameter, block, axis).take(range(shape[axis]), axis)


def _quantized(use: Use) -> Array:
    """Return the integers of a QuantizeLinear on a constant, as `numerics.quantize` defines them."""
    zero, low, high = use.constant(2), 0, 255
    if zero is None:
        code = use.get("output_dtype", 0) or onnx.TensorProto.UINT8
        zero = np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(code))
    if zero.dtype.name not in LIMITS:
        raise Refused(f"constants are quantized to {', '.join(LIMITS)}")
    low, high = LIMITS[zero.dtype.name]
    scale = _spread(use, use.array(1).astype(np.float32))
    found = exact.quantize(use.array(0), scale, _spread(use, zero.astype(np.int64)), low, high)
    return found.astype(zero.dtype)


def evaluate(node: onnx.NodeProto, arrays: Mapping[str, Array], opset: int) -> Array:
    """Return what a QuantizeLinear or DequantizeLinear gives for arrays.

    Raises:
        ModelError: its parameters are not supported.
    """
    tensors = Tensors({n: a.shape for n, a in arrays.items()}, {}, dict(arrays))
    try:
        evaluated(Use.of(node, node.name, opset, tensors))
    except Refused as refused:
        raise ModelError(f"{node.op_type}: {refused}") from None
    return tensors.constants[node.output[0]]


# -- activations ---------------------------------------------------------------------------------------------------


def quantize_linear(b: Builder, use: Use) -> None:
    """Pin the input where nothing else reads it; else, and where it is pinned otherwise, requantize a copy."""
    name, quant = b.value(use.inputs[0]), _quant(use, use.tensors.dtypes[use.outputs[0]])
    value = b.draft.values[name]
    if value.type.quant == quant:
        b.alias(use.outputs[0], name)
    elif value.type.quant is None and use.inputs[0] in use.tensors.private:
        b.pin(name, quant)
        b.alias(use.outputs[0], name)
    else:
        copy = Value(use.outputs[0], TensorType(value.shape, quant=quant), Origin(use.outputs[0]))
        b.draft.add_node(use.name, Activation(), [name], copy)


def dequantize_linear(b: Builder, use: Use) -> None:
    """Let the real tensor be the value that the integers stand for."""
    name, quant = b.value(use.inputs[0]), _quant(use, use.tensors.dtypes[use.inputs[0]])
    found = b.draft.values[name].type.quant
    if found not in (None, quant):
        raise Refused(f"integers are dequantized as they were quantized, found {found} before")
    b.pin(name, quant)
    b.alias(use.outputs[0], name)


def _quant(use: Use, dtype: str) -> Quant:
    """Return the quantization of a computed tensor; uint8 is int8 with everything 128 lower, uint16 likewise."""
    scale, zero = use.array(1).astype(np.float32), use.array(2) if use.given(2) else np.zeros((), np.int64)
    if scale.size != 1 or zero.size != 1:
        raise Refused("a computed tensor has one scale and one zero point")
    if dtype not in ACTIVATIONS:
        raise Refused(f"computed integers are {' or '.join(ACTIVATIONS)}, found {dtype}")
    step = float(scale.reshape(-1)[0])
    if not (np.isfinite(step) and step > 0):
        raise Refused("scales are positive and finite")
    bits, shift = ACTIVATIONS[dtype]
    offset = int(zero.reshape(-1)[0]) - shift
    if bits == 16 and offset:
        raise Refused(
            f"the zero point of {dtype} is {shift}, found {offset + shift}: 16 bits are symmetric on the machine, "
            "which has no more to hold what lies farther off; quantize symmetrically, or to 8 bits"
        )
    return Quant(step, offset, bits, dtype == "uint8")


def _fixed_parameters(use: Use) -> bool:
    return use.given(1) and use.fixed(1) and use.fixed(2)


# -- layers --------------------------------------------------------------------------------------------------------


def layer(
    b: Builder,
    use: Use,
    x: str,
    weight: tuple[int, Callable[[Array], Array]],
    bias: int | None,
    groups: int = 1,
    factor: float = 1.0,
) -> list[str] | None:
    """Return the inputs of a layer whose weights the model stores as integers, or None if it does not.

    Args:
        b: the graph.
        use: the node.
        x: the graph value that the layer reads, channels last.
        weight: input index of the weights, and their move to the device's axis order.
        bias: input index of the bias, if there is one.
        groups: of the layer.
        factor: a number that the weights are multiplied by.
    """
    stored = use.tensors.stored.get(use.inputs[weight[0]])
    found = layer_weights(stored, weight[1], factor) if stored is not None else None
    if found is None:
        return None
    pieces, scale = found
    stem = use.inputs[weight[0]]
    names = [b.integers(f"{stem}.int8", np.concatenate(pieces, axis=-1)), _bias(b, use, x, bias, scale)]
    return [_repeated(b, use, x, len(pieces), groups), *names, b.integers(f"{stem}.scale", scale)]


def _bias(b: Builder, use: Use, x: str, index: int | None, scale: Array) -> str:
    """Return the bias as the model's int32 where its units are the layer's, else as reals."""
    if index is None or not use.given(index):
        return b.constant(f"{use.name}.bias", np.zeros(len(scale)))
    quant, stored = b.draft.values[x].type.quant, use.tensors.stored.get(use.inputs[index])
    if quant is not None and stored is not None:
        integers = layer_bias(stored, scale.astype(np.float64) * quant.scale)
        if integers is not None:
            return b.integers(f"{use.inputs[index]}.int32", integers)
    return b.constant(use.inputs[index], np.broadcast_to(use.array(index).reshape(-1), (len(scale),)))


def _repeated(b: Builder, use: Use, x: str, count: int, groups: int) -> str:
    """Return the input with the channels of each group `count` times, for weights in as many pieces."""
    if count == 1:
        return x
    shape, quant = b.draft.values[x].shape, b.draft.values[x].type.quant
    split = (prod(shape[:-1]), groups, shape[-1] // groups)
    wide = (*split[:2], count * split[2])
    for op, inputs, out in (
        (Reshape(split), [x], split),
        (Concat(2), None, wide),
        (Reshape((*shape[:-1], count * shape[-1])), None, (*shape[:-1], count * shape[-1])),
    ):
        name = b.emit(use, op, inputs or [x] * (count if isinstance(op, Concat) else 1), f"{x}.repeated", None, out)
        if quant is not None:
            b.pin(name, quant)
        x = name
    return x


_RULES = (
    Rule(_fixed_parameters, "scale and zero point are constants"),
    Rule(lambda u: not u.get("block_size", 0), "a computed tensor has one scale, no blocks"),
)

ROWS = {
    "QuantizeLinear": Row(
        quantize_linear, (Activation,), ("axis", "saturate", "block_size", "output_dtype", "precision"), _RULES
    ),
    "DequantizeLinear": Row(dequantize_linear, (Activation,), ("axis", "block_size", "output_dtype"), _RULES),
}
