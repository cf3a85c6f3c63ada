"""How kernels are compiled: one place for numba's options, the types of arguments and the cache folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from nnac.kernels import cache_folder

Function = TypeVar("Function", bound=Callable[..., Any])
Int8 = npt.NDArray[np.int8]
Int16 = npt.NDArray[np.int16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Integer = Any
"""A number of 64 bits inside a kernel, where Python's int and numpy's int64 are one."""

INT = types.int64
_numba: Any = numba  # typed loosely: whether numba brings types depends on its version
_OPTIONS = {"nogil": True, "boundscheck": False, "fastmath": False, "error_model": "numpy"}


def source(dtype: Any, ndim: int, layout: str = "C") -> Any:
    """The type of an array that a kernel reads, read-only and unaligned ones too; layout "A" takes any strides."""
    return _numba.types.Array(dtype, ndim, layout, readonly=True, aligned=False)


def sink(dtype: Any, ndim: int, layout: str = "A") -> Any:
    """The type of an array that a kernel writes; layout "A" takes any strides."""
    return _numba.types.Array(dtype, ndim, layout)


def kernel(*arguments: Any, parallel: bool = False) -> Callable[[Function], Function]:
    """Compiles a function for exactly these argument types, now, or loads it from the cache folder.

    One form per name (see `also`): an array of another type is a TypeError instead of seconds of hidden compilation.
    Kernels return nothing. A parallel one shares `numba.prange` among threads.
    """

    def compiled(function: Function) -> Function:
        with _our_cache():
            wrapped: Function = _numba.njit(types.void(*arguments), cache=True, parallel=parallel, **_OPTIONS)(function)
        return wrapped

    return compiled


def also(compiled: Any, *arguments: Any) -> Any:
    """A kernel's second form, for other argument types."""
    return kernel(*arguments)(compiled.py_func)


def inner(function: Function) -> Function:
    """A function for kernels to call; it is compiled into each of them."""
    wrapped: Function = _numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)
    return wrapped


def microkernel(function: Callable[[int], None]) -> Any:
    """Compiles a function of the address of its arguments, for kernels to call by its own `address`."""
    with _our_cache():
        return _numba.cfunc(types.void(INT), cache=True)(function)


@contextmanager
def _our_cache() -> Iterator[None]:
    """Points numba's cache at our folder, for our kernels only: others in this process keep theirs."""
    before = _numba.config.CACHE_DIR
    _numba.config.CACHE_DIR = str(cache_folder())
    try:
        yield
    finally:
        _numba.config.CACHE_DIR = before
