"""Calls of kernels that are prepared once and run many times, one after the other, without Python in between.

A call is a kernel with its arguments. `Prepared` keeps, per call, the address of the kernel's machine code and the
words of its arguments: an array is what numba hands over for it (two empty pointers, elements, bytes of an element,
address, shape, strides), an integer is itself, a tuple its integers. One compiled loop goes through them; where calls
may run at once (`Together`), it shares them among numba's threads.
"""

import functools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from nnac.kernels.jit import Int64, Kernel, kernel, sink, source
from nnac.kernels.vectors import LONG, WORD, address, call_address, load


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel and what it gets: arrays, which the call keeps alive, integers and tuples of them; or a function of
    Python's."""

    kernel: Any
    arguments: tuple[Any, ...]

    def run(self) -> None:
        """Call it now."""
        self.kernel(*self.arguments)


@dataclass(frozen=True, slots=True)
class Together:
    """Calls of kernels that do not touch what another one of them writes."""

    calls: tuple[Call, ...]

    def run(self) -> None:
        """Call them now, at once."""
        Prepared([self]).run()


_FORM = (source(types.int64, 1), source(types.int64, 1), sink(types.int64, 1, "C"), sink(types.int64, 1, "C"))


@kernel(*_FORM)
def _run(entries: Int64, starts: Int64, words: Int64, failed: Int64) -> None:
    """Each entry on its words; counts those that failed."""
    failed[0] = 0
    for n in range(entries.size):
        call_address(entries[n], (address(words) + 8 * starts[n], 0))
        failed[0] += words[starts[n]] != 0


_numba: Any = numba  # typed loosely, as in `nnac.kernels.jit`
_prange = _numba.prange
_one_at_a_time = threading.Lock()
"""Numba's own threads serve one thread of Python at a time."""


@kernel(*_FORM, source(types.int64, 1), parallel=True)
def _shared(entries: Int64, starts: Int64, words: Int64, failed: Int64, turns: Int64) -> None:
    """`_run` with threads: what lies between two turns runs at once."""
    failed[0] = 0
    for turn in range(turns.size - 1):
        first, last = turns[turn], turns[turn + 1]
        if last - first == 1:
            call_address(entries[first], (address(words) + 8 * starts[first], 0))
            continue
        for n in _prange(first, last):
            call_address(entries[n], (address(words) + 8 * starts[n], 0))
    for n in range(entries.size):
        failed[0] += words[starts[n]] != 0


class Prepared:
    """Calls in a row. The arrays are where they were when it was made; what is in them may change."""

    def __init__(self, calls: Sequence[Call | Together]) -> None:
        turns = [call.calls if isinstance(call, Together) else (call,) for call in calls]
        self._calls = tuple(call for turn in turns for call in turn)
        blocks = [[0, *(word for value in call.arguments for word in _words(value))] for call in self._calls]
        entries = [_entry(call.kernel, len(block) - 1) for call, block in zip(self._calls, blocks, strict=True)]
        starts, words = np.cumsum([0, *map(len, blocks)])[: len(blocks)], [word for block in blocks for word in block]
        self._state = (*(np.array(part, np.int64) for part in (entries, starts, words)), np.zeros(1, np.int64))
        self._turns = np.cumsum([0, *map(len, turns)])
        self._most = max(map(len, turns), default=1)

    def __len__(self) -> int:
        return len(self._calls)

    def run(self) -> None:
        """Call them all.

        Raises:
            MemoryError: a kernel did not get its working memory.
        """
        if self._most == 1:
            _run(*self._state)
        else:
            with _one_at_a_time:
                _numba.set_num_threads(min(self._most, _numba.config.NUMBA_NUM_THREADS))
                _shared(*self._state, self._turns)
        if self._state[-1][0]:
            raise MemoryError("a kernel did not get its working memory")


def prepare(calls: Iterable[Call | Together]) -> tuple[Prepared | Call, ...]:
    """Returns what to run, in order: calls of kernels together, those of Python's functions as they are."""
    parts: list[Prepared | Call] = []
    for _, group in groupby(calls, _is_compiled):
        row = list(group)
        parts += [Prepared(row)] if _is_compiled(row[0]) else [call for call in row if isinstance(call, Call)]
    return tuple(parts)


def _is_compiled(call: Call | Together) -> bool:
    return isinstance(call, Together) or isinstance(call.kernel, Kernel)


def _words(value: Any) -> tuple[int, ...]:
    """Return an argument as numba's compiled functions take it, in words of 64 bits."""
    if isinstance(value, tuple):
        return tuple(map(int, value))
    if not isinstance(value, np.ndarray):
        return (int(value),)
    return (0, 0, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides)


@functools.cache
def _entry(called: Kernel, count: int) -> int:
    """Return the address of a function of the address of a block: a status, and behind it the kernel's words.

    numba's functions take the places of their result and of an error first, and return a status other than 0 where they
    failed, which goes to the block.
    """
    with global_compiler_lock:
        (overload,) = called.compiled.overloads.values()
        return _compiled_entry(overload, count)


def _compiled_entry(overload: Any, count: int) -> int:
    """Return the address of what `_entry` describes."""
    native = overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name)
    library = cpu_target.target_context.codegen().create_library("entry")
    module = library.create_ir_module("entry")
    name = f"nnac_entry_{native:x}"
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [LONG]), name)
    builder = ir.IRBuilder(function.append_basic_block())
    unused = [builder.ptrtoint(builder.alloca(LONG), LONG) for _ in range(2)]
    block = builder.inttoptr(load(builder, function.args[0], LONG), LONG.as_pointer())
    words = [load(builder, builder.add(builder.ptrtoint(block, LONG), LONG(8 * n + 8)), LONG) for n in range(count)]
    kind = ir.FunctionType(WORD, [LONG] * (count + 2)).as_pointer()
    status = builder.call(builder.inttoptr(LONG(native), kind), [*unused, *words])
    builder.store(builder.zext(status, LONG), block)
    builder.ret_void()
    library.add_ir_module(module)
    library.finalize()
    _KEPT.append(library)
    found: int = library.get_pointer_to_function(name)
    return found


_KEPT: list[Any] = []
"""What holds the machine code of the entries."""
