"""Rows whose elements lie side by side: numba has to know, or LLVM makes no vectors of elements of two bytes."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from nnac.kernels.jit import inner
from nnac.kernels.vectors import LONG, Builder, advance, cgutils

_types: Any = types


def _dense(typing: Any, row: Any) -> Any:
    """The same array of one axis, as one whose elements lie side by side (`is_dense`)."""
    kind = _types.Array(row.dtype, 1, "C", readonly=not row.mutable, aligned=row.aligned)

    def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
        given = context.make_array(signature.args[0])(context, builder, values[0])
        found = context.make_array(kind)(context, builder)
        parts = {name: getattr(given, name) for name in ("data", "shape", "itemsize")}
        context.populate_array(found, **parts, strides=[given.itemsize], meminfo=None)
        return found._getvalue()

    return kind(row), generate


def _piece(typing: Any, array: Any, place: Any, first: Any, last: Any) -> Any:
    """Elements from `first` to before `last` of one row of an array, which lie side by side (`is_dense`).

    A slice would count its references, which takes as long as dozens of values.

    Args:
        typing: numba's own; a kernel does not pass it.
        array: of several axes.
        place: index of the row: a tuple of all axes but the last.
        first, last: as of a slice; nothing is checked.
    """
    kind = _types.Array(array.dtype, 1, "C", readonly=not array.mutable, aligned=array.aligned)

    def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
        given = context.make_array(signature.args[0])(context, builder, values[0])
        strides = cgutils.unpack_tuple(builder, given.strides)
        at = advance(builder, builder.ptrtoint(given.data, LONG), values[2], given.itemsize)
        for index, stride in zip(cgutils.unpack_tuple(builder, values[1]), strides[:-1], strict=True):
            at = advance(builder, at, index, stride)
        found = context.make_array(kind)(context, builder)
        data, count = builder.inttoptr(at, given.data.type), builder.sub(values[3], values[2])
        parts = {"data": data, "shape": [count], "itemsize": given.itemsize, "strides": [given.itemsize]}
        context.populate_array(found, **parts, meminfo=None)
        return found._getvalue()

    return kind(array, _types.UniTuple(_types.int64, array.ndim - 1), _types.int64, _types.int64), generate


dense: Any = intrinsic(_dense)
"""`_dense`, for kernels to call without its first argument; the array has to outlive what it gives."""
piece: Any = intrinsic(_piece)
"""`_piece`, for kernels to call without its first argument; the array has to outlive what it gives."""


@inner
def is_dense(array: Any) -> bool:
    """Whether the elements of each row lie side by side."""
    return bool(array.strides[array.ndim - 1] == array.itemsize)
