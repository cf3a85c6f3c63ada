"""BLAS while a model is compiled."""

from __future__ import annotations

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
