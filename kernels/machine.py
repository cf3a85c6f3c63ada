"""Which of the innermost loops this machine runs: chosen at first use by what its processor has.

All make the same bits. $NNAC_PROCESSOR names one of PROCESSORS instead, as `forced` does for a while.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from numba.core.registry import cpu_target

from nnac.kernels.finish import finish_rows, keep_rows
from nnac.kernels.jit import microkernel
from nnac.kernels.tile import (
    AVX512,
    AVXVNNI,
    avx2_own,
    avx2_tile,
    avx512_own,
    avx512_tile,
    avxvnni_own,
    avxvnni_tile,
    neon_own,
    neon_tile,
    portable_own,
    portable_tile,
)

NEEDS = {
    "avx512": ("avx512f", "avx512bw", "avx512vnni"),
    "avxvnni": ("avx2", "avxvnni"),
    "avx2": ("avx2",),
    "neon": ("neon", "dotprod"),
    "portable": (),
}
"""What a processor must have, fastest first; the names are LLVM's."""
PROCESSORS = tuple(NEEDS)

_forced: ContextVar[str | None] = ContextVar("processor", default=None)


def runnable() -> tuple[str, ...]:
    """The names of PROCESSORS that this machine runs, fastest first."""
    return tuple(name for name, needs in NEEDS.items() if _features().issuperset(needs) or _has_wide_vnni(name))


def processor() -> str:
    """The one in use.

    Raises:
        ValueError: $NNAC_PROCESSOR is none that this machine runs.
    """
    name = _forced.get() or os.environ.get("NNAC_PROCESSOR") or runnable()[0]
    if name not in runnable():
        raise ValueError(f"processor {name!r}: this machine runs {', '.join(runnable())}")
    return name


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Uses the loops of that processor in this thread."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def tile() -> int:
    """The address of the tile function (`Tile.multiply`) of the processor in use, compiled at its first use."""
    return _TILES[processor()][0]()


def own_tile() -> int:
    """The address of the same for depthwise layers (`Tile.depthwise`)."""
    return _TILES[processor()][1]()


def has(feature: str) -> bool:
    """Whether the processor has that, by LLVM's name."""
    return feature in _features()


@microkernel
def finish(arguments: int) -> None:
    """Ends sums (`finish.finish`)."""
    finish_rows(arguments)


@microkernel
def keep(arguments: int) -> None:
    """Leaves sums as they are (`finish.keep`)."""
    keep_rows(arguments)


def flip() -> int:
    """The bits of x's bytes that are turned over before the tiles read them: the highest adds `Tile.offset`."""
    return {"avx512": AVX512, "avxvnni": AVXVNNI}[processor()].offset if processor() in ("avx512", "avxvnni") else 0


def width() -> int:
    """Channels of a panel of packed weights (`nnac.kernels.panels`) for the processor in use."""
    return 64 if processor() == "avx512" else 16


@functools.cache
def _features() -> frozenset[str]:
    """What numba compiles for, which may be less than what the processor has (NUMBA_CPU_NAME)."""
    features: str = cpu_target.target_context.codegen().magic_tuple()[2]
    return frozenset(feature[1:] for feature in features.split(",") if feature.startswith("+"))


def _has_wide_vnni(name: str) -> bool:
    """Whether the form for AVX-VNNI runs as AVX-512's instruction of the same width."""
    return name == "avxvnni" and _features().issuperset(("avx512vl", "avx512vnni"))


@microkernel
def _avx512_tile(arguments: int) -> None:
    avx512_tile(arguments)


@microkernel
def _avxvnni_tile(arguments: int) -> None:
    avxvnni_tile(arguments)


@microkernel
def _avx2_tile(arguments: int) -> None:
    avx2_tile(arguments)


@microkernel
def _neon_tile(arguments: int) -> None:
    neon_tile(arguments)


@microkernel
def _portable_tile(arguments: int) -> None:
    portable_tile(arguments)


@microkernel
def _avx512_own(arguments: int) -> None:
    avx512_own(arguments)


@microkernel
def _avxvnni_own(arguments: int) -> None:
    avxvnni_own(arguments)


@microkernel
def _avx2_own(arguments: int) -> None:
    avx2_own(arguments)


@microkernel
def _neon_own(arguments: int) -> None:
    neon_own(arguments)


@microkernel
def _portable_own(arguments: int) -> None:
    portable_own(arguments)


_TILES: dict[str, tuple[Callable[[], int], Callable[[], int]]] = {
    "avx512": (_avx512_tile, _avx512_own),
    "avxvnni": (_avxvnni_tile, _avxvnni_own),
    "avx2": (_avx2_tile, _avx2_own),
    "neon": (_neon_tile, _neon_own),
    "portable": (_portable_tile, _portable_own),
}
"""For layers and for depthwise layers."""
