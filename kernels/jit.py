"""How kernels are compiled: one place for numba's options, the types of arguments and the cache folder."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.core.compiler_lock import global_compiler_lock

from nnac import kernels

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


def integers(count: int) -> Any:
    """The type of a tuple of so many integers."""
    return _numba.types.UniTuple(INT, count)


class Kernel:
    """A function that is compiled for exactly these argument types, or loaded from the cache folder, at its first use.

    An array of another type is a TypeError instead of seconds of hidden compilation.
    """

    def __init__(self, function: Callable[..., None], arguments: tuple[Any, ...], parallel: bool) -> None:
        self.function, self._arguments, self._parallel = function, arguments, parallel
        self._compiled: Any = None
        KERNELS.append(self)

    def __call__(self, *arguments: Any) -> None:
        self.compiled(*arguments)

    @property
    def compiled(self) -> Any:
        """What numba makes of it."""
        if self._compiled is None:
            with _our_cache(self.function.__name__):
                form = _numba.njit(types.void(*self._arguments), cache=True, parallel=self._parallel, **_OPTIONS)
                self._compiled = form(self.function)
        return self._compiled


KERNELS: list[Kernel] = []
"""All kernels of the modules that are loaded."""


def kernel(*arguments: Any, parallel: bool = False) -> Callable[[Callable[..., None]], Kernel]:
    """Makes a function a `Kernel`, its only one (see `also`). A parallel one shares `numba.prange` among threads."""
    return lambda function: Kernel(function, arguments, parallel)


def also(first: Kernel, *arguments: Any) -> Kernel:
    """A kernel's second form, for other argument types."""
    return kernel(*arguments)(first.function)


def inner(function: Function) -> Function:
    """A function for kernels to call; it is compiled into each of them."""
    wrapped: Function = _numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)
    return wrapped


def microkernel(function: Callable[[int], None]) -> Callable[[], int]:
    """Makes a function of the address of its arguments one that returns an address, where kernels call it.

    It is compiled, or loaded from the cache folder, when the address is first asked for.
    """

    @functools.cache
    def compiled() -> int:
        with _our_cache(function.__name__):
            found: int = _numba.cfunc(types.void(INT), cache=True)(function).address
        return found

    return compiled


@contextmanager
def _our_cache(name: str) -> Iterator[None]:
    """Points numba's cache at our folder, for a kernel of ours only: others in this process keep theirs."""
    with global_compiler_lock, kernels.compiling(name):
        before = _numba.config.CACHE_DIR
        _numba.config.CACHE_DIR = str(kernels.cache_folder())
        try:
            yield
        finally:
            _numba.config.CACHE_DIR = before
