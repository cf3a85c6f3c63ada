"""Chunks: one model compiled for several frames per call, waiting against weight traffic.

Contract. A call of k frames begins when its last frame has arrived, so that its first frame waits k - 1 periods, and
then for the call. Weights that do not stay on the chip are loaded per call, or, those of a recurrent product, per step:
only the former are shared by the frames of a chunk. Figures are those of a later call of the stream, not the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnac.compiler import compile
from nnac.errors import ModelError
from nnac.streaming import Streaming, stream
from nnac.timing import OUTSIDE

Place = Mapping[str, tuple[int | None, ...]]
"""Shapes of inputs by name; None where the frames of a chunk stand."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One number of frames per call.

    Attributes:
        frames: of a call.
        streaming: a call once per `frames` periods.
    """

    frames: int
    streaming: Streaming

    @property
    def frame_ms(self) -> float:
        """Milliseconds of the machine per frame."""
        return self.streaming.steady.milliseconds / self.frames

    @property
    def delay_ms(self) -> float:
        """Milliseconds from the arrival of a chunk's first frame to the chunk's end, without a queue."""
        period = self.streaming.period_ms / self.frames
        return (self.frames - 1) * period + self.streaming.steady.milliseconds

    @property
    def frame_bytes(self) -> float:
        """Bytes through the ports of the memories outside the chip, per frame."""
        outside = {space.label for space in OUTSIDE}
        traffic = self.streaming.steady.traffic
        return sum(n for (memory, _), n in traffic.items() if memory in outside) / self.frames


def chunks(model: Any, place: Place, sizes: Sequence[int], period_ms: float, **options: Any) -> list[Chunk]:
    """Return one row per number of frames, each compiled on its own.

    Args:
        model: as for `nnac.compile`, with an open time dimension.
        place: shapes of inputs, None where that dimension is.
        sizes: frames per call.
        period_ms: milliseconds of one frame.
        options: of `nnac.compile`; "random" calibration and the target nna8 by default.

    Raises:
        ModelError: no input is named, or a shape has no place for the frames; and as for `nnac.compile`.
    """
    if not place or any(shape.count(None) != 1 for shape in place.values()):
        raise ModelError("chunks need the shapes of the inputs with frames, each with one open dimension for them")
    options = {"calibration": "random"} | options
    fixed = dict(options.pop("shapes", None) or {})
    return [_chunk(model, fixed | _filled(place, size), size, period_ms, options) for size in sizes]


def _filled(place: Place, size: int) -> dict[str, tuple[int, ...]]:
    return {name: tuple(size if side is None else side for side in shape) for name, shape in place.items()}


def _chunk(model: Any, shapes: Mapping[str, tuple[int, ...]], size: int, period_ms: float, options: Any) -> Chunk:
    program = compile(model, shapes=shapes, **options).program
    return Chunk(size, stream(program, size * period_ms))
