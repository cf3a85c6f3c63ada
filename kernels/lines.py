"""Rows whose elements lie side by side: numba has to know, or LLVM makes no vectors of elements of two bytes."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from nnac.kernels.jit import inner
from nnac.kernels.vectors import Builder

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


dense: Any = intrinsic(_dense)
"""`_dense`, for kernels to call without its first argument; the array has to outlive what it gives."""


@inner
def is_dense(array: Any) -> bool:
    """Whether the elements of each row lie side by side."""
    return bool(array.strides[array.ndim - 1] == array.itemsize)
