"""The emulator: executes a program's instructions (`nnac.emulator.meanings`) on one byte array per memory.

It knows addresses and nothing of the graph: a planner's mistake shows as a wrong bit. Kernels have no bounds checks;
only validated programs may come here (`nnac.validate`).

There are two ways through a program. `execute` does what one instruction says with the bytes that lie in the memories
at that moment: a missing wait or a wrong address in a Load shows. Watched runs, traces, and runs in any given order go
this way. A run in program order without a watcher is prepared at its first time (`nnac.emulator.replay`): it reads the
weights of a convolution where the Loads before it found them, packs them once for good, joins neighbouring
convolutions, and leaves out the Loads that nobody else reads; the weight buffer does not hold those then. Every
activation still goes through the memories. Both ways make the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nnac.emulator.meanings import Meanings
from nnac.emulator.memories import raw
from nnac.emulator.replay import Replay
from nnac.isa import AnyInstruction
from nnac.program import Piece, Program, Tensor
from nnac.types import DTYPES, Array

if TYPE_CHECKING:
    from nnac.kernels.calls import Call, Prepared

Watch = Callable[[int], None]


class Emulator(Meanings):
    """A machine with a program in it. Not thread-safe; one per thread. Its own `threads` share large products."""

    def __init__(self, program: Program, threads: int = 1) -> None:
        super().__init__(program, threads)
        self._tensors = {t.name: t for t in program.tensors}
        self._homes: dict[str, Array] = {}
        self._prepared: tuple[Prepared | Call, ...] | None = None

    def run(
        self,
        inputs: Mapping[str, Array],
        before: Watch | None = None,
        after: Watch | None = None,
        order: Sequence[int] | None = None,
    ) -> dict[str, Array]:
        """Execute the program once.

        Args:
            inputs: integer arrays in device layout, one per program input.
            before, after: called with the index of each instruction around its execution; `before` first with -1, when
                the inputs are in place.
            order: all instructions in an order that the tokens allow (`nnac.orders`); program order by default.

        Returns:
            integer arrays in device layout, one per program output.
        """
        for name, array in inputs.items():
            self.write(self._tensors[name], array)
        if before is None and after is None and order is None:
            if self._prepared is None:
                self._prepared = self._prepare()
            for part in self._prepared:
                part.run()
        else:
            self._execute_all(before or _ignore, after or _ignore, order)
        return {name: self.read(self._tensors[name]) for name in self.program.outputs}

    def _execute_all(self, before: Watch, after: Watch, order: Sequence[int] | None) -> None:
        before(-1)
        instructions = self.program.instructions
        for index in range(len(instructions)) if order is None else order:
            before(index)
            self.execute(instructions[index])
            after(index)

    def execute(self, instruction: AnyInstruction) -> None:
        """Do what one instruction says."""
        for call in self.calls(instruction):
            call.run()

    def trace(self, inputs: Mapping[str, Array], truth: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Return every tensor of the program as its instructions made it.

        Args:
            inputs: as for `run`.
            truth: by tensor name, in device layout; once such a tensor (or a piece of it) has been made and seen, it is
                overwritten with this, so that what comes after starts from the truth.
        """
        done: dict[int, list[tuple[Tensor, Piece]]] = {}
        for tensor in self.program.tensors:
            for piece in tensor.pieces or (Piece(tensor.ready, tensor.address, 0, tensor.type.nbytes),):
                done.setdefault(piece.ready, []).append((tensor, piece))
        seen = {t.name: np.empty(t.type.nbytes, np.uint8) for t in self.program.tensors}
        known = {name: raw(array) for name, array in (truth or {}).items()}

        def look(index: int) -> None:
            for tensor, piece in done.get(index, ()):
                here = self.memory[tensor.space][piece.address : piece.address + piece.nbytes]
                there = slice(piece.offset, piece.offset + piece.nbytes)
                seen[tensor.name][there] = here
                if tensor.name in known:
                    here[:] = known[tensor.name][there]

        self.run(inputs, lambda index: look(index) if index < 0 else None, look)
        return {t.name: seen[t.name].view(DTYPES[t.type.dtype]).reshape(t.type.shape) for t in self.program.tensors}

    def _home(self, tensor: Tensor) -> Array:
        """Return a tensor where it lives, a view."""
        if tensor.name not in self._homes:
            there = self.memory[tensor.space][tensor.address : tensor.address + tensor.type.nbytes]
            self._homes[tensor.name] = there.view(DTYPES[tensor.type.dtype]).reshape(tensor.type.shape)
        return self._homes[tensor.name]

    def read(self, tensor: Tensor) -> Array:
        """Return a copy of a tensor from its home."""
        return self._home(tensor).copy()

    def clear_states(self) -> None:
        """Set all states to real zero."""
        for tensor in (self.program.tensor(source) for source, _ in self.program.states):
            quant = tensor.type.quant
            assert quant is not None
            self.write(tensor, np.full(tensor.type.shape, quant.zero_point, tensor.type.dtype))

    def write(self, tensor: Tensor, array: Array) -> None:
        """Put a tensor into its home, or as many bytes of another shape or type."""
        home = self._home(tensor)
        if array.shape == home.shape and array.dtype == home.dtype:
            home[...] = array
        else:
            raw(home)[:] = raw(array)

    # -- program order -----------------------------------------------------------------------------------------------

    def _prepare(self) -> tuple[Prepared | Call, ...]:
        """Return what a run in program order executes."""
        from nnac.kernels.calls import prepare

        return prepare(Replay(self, self.program).calls())


def _ignore(index: int) -> None:
    """Watch nothing."""
