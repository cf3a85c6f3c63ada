"""The fence: everything that emulator, kernels, timing and reports take for granted about a program is checked here.

Kernels have no bounds checks, so only a validated program may run. What holds afterwards:

1. every record has its types, names are unique, printable and short, shapes are positive, addresses lie in memory;
2. every instruction's values fit their fields, keep the kernels' contracts (`nnac.contracts`), touch used bytes only;
3. constants never change, and weight-buffer bytes are read only after a Load of this program has filled them, with
   multipliers, shifts and exponentials of legal value;
4. no instruction overwrites what it still reads; in place, byte for byte, work only tables, sums, products and the
   states of recurrent cells;
5. host segments are models that the host may run (`nnac.frontend.hosted`), called with tensors of their sizes;
6. no wait can block for ever, no two accesses to the same bytes are left without an order when one writes, and the
   whole program is a bounded amount of work.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from nnac.errors import ProgramError, raise_all
from nnac.program import Limits, Program, loads
from nnac.validate.records import frame_problems, record_problems, tensor_problems
from nnac.validate.stream import Stream

SHOWN = 10
"""Problems that an error lists; the rest is counted."""


def load(path: str | os.PathLike[str], limits: Limits | None = None, runs: bool = True) -> Program:
    """Return the program of a `.nna` file, which is read once, into memory, validated (see `validate`).

    Raises:
        ProgramError: not a regular file, unreadable, too large, damaged, or not valid (see `validate`).
    """
    limits = limits or Limits()
    return validate(loads(_read(path, limits), repr(os.fspath(path)), limits), limits, runs)


def _read(path: str | os.PathLike[str], limits: Limits) -> bytes:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ProgramError(f"{str(path)!r} is not a regular file")
            if found.st_size > limits.file_bytes:
                raise ProgramError(f"{str(path)!r}: {found.st_size:,} bytes, allowed {limits.file_bytes:,}")
            return file.read(limits.file_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ProgramError(f"{str(Path(path))!r} cannot be read: {reason}") from None


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for a writer, should the path be a FIFO."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def validate(program: Program, limits: Limits | None = None, runs: bool = True) -> Program:
    """Return the program, which is safe to emulate and to time.

    Args:
        program: all of it is checked.
        limits: what is accepted at most.
        runs: False where it is timed only: weights that time does not depend on are not decoded, and what is in the
            weight buffer is not looked at.

    Raises:
        ProgramError: it is not; all problems are collected, one per instruction.
    """
    limits = limits or Limits()
    _raise(program, frame_problems(program, limits))
    _raise(program, tensor_problems(program, limits))
    _raise(program, record_problems(program, limits))
    _raise(program, Stream(program, limits, runs).problems())
    return program


def _raise(program: Program, found: Iterator[str]) -> None:
    problems = list(islice(found, 1 << 16))
    listed = problems[:SHOWN]
    if len(problems) > SHOWN:
        listed.append(f"and {len(problems) - SHOWN:,} more")
    raise_all(ProgramError, f"program {str(program.name)[:80]!r} cannot be run:", listed)
