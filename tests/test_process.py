"""What compiling a model does to the process: threads of BLAS, and what it leaves behind."""

from __future__ import annotations

import gc

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import nnac
from nnac.errors import ModelError
from tests.test_compiler import ONE, SMALL


def test_blas_has_one_thread_while_a_model_is_compiled() -> None:
    """And as many as before afterwards, if compiling fails as well."""
    seen = list[int]()

    def step(*_: object) -> None:
        seen.extend(_blas_threads())

    with threadpool_limits(2, "blas"):
        before = _blas_threads()
        nnac.compile(SMALL, "nna8", ONE, progress=step)
        assert set(seen) <= {1} and _blas_threads() == before
        with pytest.raises(ModelError):
            nnac.compile(SMALL, "nna8")
        assert _blas_threads() == before


def _blas_threads() -> list[int]:
    """Return the threads of numpy's BLAS; scipy, which numba loads where it is installed, has one of its own."""
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return [library["num_threads"] for library in libraries if "scipy.libs" not in library["filepath"]]


def test_a_compilation_leaves_nothing_for_the_collector() -> None:
    """What refers to itself would keep its weights until Python's collector comes by."""
    nnac.compile(SMALL, "nna8", ONE)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        nnac.compile(SMALL, "nna8", ONE)
        gc.collect()
        left = [type(each) for each in gc.garbage if type(each).__module__.startswith("nnac")]
        assert not left
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()
