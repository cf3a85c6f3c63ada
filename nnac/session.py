"""A session: a program whose states live on from call to call, as on the device."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnac.border import present, quantized
from nnac.emulator import Emulator
from nnac.errors import ModelError, ProgramError, one_line, raise_all
from nnac.program import Program, write_file
from nnac.types import Array

OWNER = "nnac program"
"""The entry of a state file that names the program."""


@dataclass(frozen=True, slots=True)
class State:
    """The states of a program at one time, which only this program can take up again.

    Attributes:
        program: the program's digest.
        arrays: the integers, in ONNX shape, by ONNX input name.
    """

    program: str
    arrays: Mapping[str, Array]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.npz` file; the path then holds the whole file, or what it held before."""
        data, owner = io.BytesIO(), np.frombuffer(bytes.fromhex(self.program), np.uint8)
        np.savez(data, allow_pickle=False, **{OWNER: owner, **self.arrays})
        write_file(path, data.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> State:
        """Return the state that `save` wrote.

        Raises:
            ProgramError: the file cannot be read, or holds no state.
        """
        try:
            with zipfile.ZipFile(Path(path)), np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except Exception as error:  # zipfile and numpy raise about anything on a damaged file
            raise ProgramError(f"state {str(path)!r} cannot be read: {one_line(error)}") from None
        if OWNER not in arrays:
            raise ProgramError(f"{str(path)!r} holds no state of a program; `State.save` writes one")
        return cls(arrays.pop(OWNER).tobytes().hex(), arrays)


class Session:
    """One program, step by step. Not thread-safe; one per thread. Its own `threads` change no bit.

    The states keep their integers between calls; they start from zeros.
    """

    def __init__(self, program: Program, threads: int = 1) -> None:
        self.program, self.threads = program, threads
        self._emulator = Emulator(program, threads)
        self._states = {t.onnx_name: t for t in (program.tensor(source) for source, _ in program.states)}
        self._digest = ""
        self.reset()

    def step(self, inputs: Mapping[str, Array], raw: bool = False) -> dict[str, Array]:
        """Run the program once and keep its states.

        Args:
            inputs: one array per model input, of its ONNX shape: reals, or the tensor's integers as they are. States
                may be left out; one that is given replaces what the session holds.
            raw: return integers instead of float32 reals.

        Raises:
            ModelError: an input is missing, unknown, has another shape or dtype, or is not finite; the states are then
                what they were before.
        """
        outputs = self._emulator.run(quantized(self.program, inputs))
        return {t.onnx_name: present(t, outputs[t.name], raw) for t in map(self.program.tensor, self.program.outputs)}

    def run(self, inputs: Mapping[str, Array], raw: bool = False) -> dict[str, Array]:
        """Run one step per entry of the first axis of every array; return the outputs stacked along a first axis.

        Raises:
            ModelError: the arrays differ in their number of steps, there is none, or as for `step`.
        """
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        counts = {array.shape[:1] for array in arrays.values()}
        if len(counts) != 1 or counts in ({()}, {(0,)}):
            shapes = ", ".join(f"{name!r} {array.shape}" for name, array in arrays.items())
            raise ModelError(
                f"the first axis of every array counts the steps, one or more; found {shapes or 'nothing'}"
            )
        count = next(iter(counts))[0]
        steps = [self.step({name: array[n] for name, array in arrays.items()}, raw) for n in range(count)]
        return {name: np.stack([step[name] for step in steps]) for name in steps[0]}

    def reset(self) -> None:
        """Set all states to real zero."""
        self._emulator.clear_states()

    def state(self) -> State:
        """Return a copy of the states."""
        self._digest = self._digest or self.program.digest()
        arrays = {name: present(t, self._emulator.read(t), raw=True) for name, t in self._states.items()}
        return State(self._digest, arrays)

    def load_state(self, state: State) -> None:
        """Take up states that `state` returned earlier, here or in another session of the same program.

        Raises:
            ProgramError: the state is of another program, or does not fit; the session's own is then unharmed.
        """
        self._digest = self._digest or self.program.digest()
        if state.program != self._digest:
            raise ProgramError(
                f"the state belongs to another program ({state.program[:12]}..., this one is {self._digest[:12]}...); "
                "scales and addresses may differ, so it cannot be taken up"
            )
        raise_all(ProgramError, "the state does not fit the program:", self._misfits(state.arrays))
        for name, tensor in self._states.items():
            array = state.arrays[name]
            self._emulator.write(tensor, tensor.origin.from_onnx(array, tensor.type.shape) if tensor.origin else array)

    def _misfits(self, arrays: Mapping[str, Array]) -> list[str]:
        problems = [f"state {name!r} is missing" for name in self._states if name not in arrays]
        for name, array in arrays.items():
            tensor = self._states.get(name)
            if tensor is None:
                problems.append(f"state {name!r} is unknown")
            elif array.dtype != tensor.type.dtype or array.shape != tensor.onnx_shape:
                wanted = f"{tensor.type.dtype} {tensor.onnx_shape}"
                problems.append(f"state {name!r} is {array.dtype} {array.shape}, expected {wanted}")
        return problems
