"""A compiled model in the hands of a user: run it, time it, save it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from nnac.program import Program, dumps, write_file
from nnac.session import Session
from nnac.timing import Timeline, simulate
from nnac.types import Array


@dataclass(slots=True)
class CompiledModel:
    """A program with real-valued inputs and outputs under their ONNX names and shapes."""

    program: Program
    _session: Session | None = field(default=None, repr=False)

    def run(self, inputs: Mapping[str, Array], raw: bool = False, threads: int = 1) -> dict[str, Array]:
        """Run one inference on the emulator; states that are not given are zero (`session` keeps them).

        Args:
            inputs: one array per model input, of its ONNX shape: reals (quantized half to even, saturated), or
                integers of the input's dtype, int8 or int16, taken as they are.
            raw: return the integer outputs instead of float32 reals.
            threads: that share large layers; they change no bit.

        Raises:
            ModelError: an input is missing, unknown, has another shape or dtype, or is not finite.
        """
        if self._session is None or self._session.threads != threads:
            self._session = self.session(threads)
        self._session.reset()
        return self._session.step(inputs, raw)

    def session(self, threads: int = 1) -> Session:
        """Return a new session, in which states live on from step to step; `threads` share its large layers."""
        return Session(self.program, threads)

    def simulate(self) -> Timeline:
        """Return the timeline of one inference."""
        return simulate(self.program)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the `.nna` file; the path then holds the whole file, or what it held before."""
        write_file(path, dumps(self.program))
