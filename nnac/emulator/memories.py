"""The memories of a machine with a program in it: one byte array each, and views of them as kernels take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nnac import isa
from nnac.isa import Space
from nnac.program import Program
from nnac.types import Array

if TYPE_CHECKING:
    from nnac.kernels.calls import Call

POISON = 0xA5
"""Every memory starts full of this byte, so that reading what nobody wrote gives noise, not zeros."""
SLACK = 64
"""Bytes behind the scratchpad that vector loads may touch, without influence; loads and copies keep to theirs."""


class Memories:
    """One byte array per memory, and working memory of kernels."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.memory = {space: _memory(program, space) for space in program.used}
        self.signed = {space: array.view(np.int8) for space, array in self.memory.items()}
        self._rooms: dict[str, Array] = {}

    def _behind(self, space: Space, address: int, width: int) -> Array:
        """Return what lies behind an address as signed elements of `width` bytes, a view."""
        if width == 1:
            return self.signed[space][address:]
        rest = self.memory[space][address:]
        return rest[: rest.size // width * width].view(f"<i{width}")

    def _tile(self, address: int, *shape: int, bits: int = 8) -> Array:
        return self._behind(Space.SRAM, address, bits // 8)[: isa.volume(shape)].reshape(shape)

    def _words(self, address: int, count: int) -> Array:
        return self.memory[Space.WEIGHTS][address : address + 4 * count].view(np.int32)

    def _room(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return working memory of a kernel; the same for all instructions, so that it holds nothing for long."""
        from nnac.kernels.panels import room

        count = isa.volume(shape) * np.dtype(dtype).itemsize
        if name not in self._rooms or self._rooms[name].size < count:
            self._rooms[name] = room(max(count, 2 * self._rooms[name].size if name in self._rooms else 0))
        found: Array = self._rooms[name][:count].view(dtype).reshape(shape)
        return found

    def _operand(self, x: Array, name: str, wide: bool) -> tuple[Array, tuple[Call, ...]]:
        """Return an operand as the kernels of one width take it, and the calls that make it so."""
        if not wide or x.dtype == np.int16:
            return x, ()
        widened = self._room(name, x.shape, np.int16)
        return widened, (moved(x, widened),)

    def _result(self, target: Array, wide: bool) -> tuple[Array, tuple[Call, ...]]:
        """Return what a kernel of one width fills, and the calls that narrow it into the target afterwards."""
        if not wide or target.dtype == np.int16:
            return target, ()
        filled = self._room("result", target.shape, np.int16)
        return filled, (moved(filled, target),)


def _memory(program: Program, space: Space) -> Array:
    """Return the bytes of a memory; the constants, which never change, are the program's own where they are alone."""
    size, constants = program.used[space], program.constants
    if space == program.constants_space and size == constants.size:
        return constants
    found = np.full(size + SLACK, POISON, np.uint8)[:size]
    if space == program.constants_space:
        found[: constants.size] = constants
    return found


def call_of(kernel: Any, *arguments: Any) -> Call:
    """Return a call; numba is not imported before there is one."""
    from nnac.kernels.calls import Call

    return Call(kernel, arguments)


def moved(source: Array, target: Array) -> Call:
    """Return the call that copies one array into another of its shape, int8 or int16 each."""
    from nnac.kernels.move import copy, views

    kernel: Any = copy
    if max(source.itemsize, target.itemsize) == 2:
        from nnac.kernels.wide import copies

        kernel = copies[source.itemsize, target.itemsize]
    return call_of(kernel, *views(source, target))


def raw(array: Array) -> Array:
    """Return the bytes of an array in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
