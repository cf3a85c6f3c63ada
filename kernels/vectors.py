"""LLVM's vectors for numba kernels: loads, stores, loops and calls, where numba's own loops do not get there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.core import cgutils as typed_cgutils
from numba.extending import intrinsic

cgutils: Any = typed_cgutils
_types: Any = types
Builder = Any
"""An `llvmlite.ir.IRBuilder`."""
Value = Any
"""An `llvmlite.ir.Value`."""

BYTE, HALF, WORD, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
SINGLE = ir.FloatType()
RUN = 32
"""Bytes that `move` moves together."""


WINDOW = 32
"""Channels that `add_window` adds up together."""


def vector(kind: Any, lanes: int) -> Any:
    """The type of so many lanes."""
    return ir.VectorType(kind, lanes)


def splat(kind: Any, value: float) -> Value:
    """A constant vector of equal lanes."""
    return ir.Constant(kind, [value] * kind.count)


def load(builder: Builder, address: Value, kind: Any) -> Value:
    """`kind` from an address without alignment."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def store(builder: Builder, value: Value, address: Value) -> None:
    """A value to an address without alignment."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def store_first(builder: Builder, value: Value, address: Value, count: Value) -> None:
    """The first `count` lanes."""
    kind = value.type
    lanes = ir.Constant(vector(LONG, kind.count), list(range(kind.count)))
    mask = builder.icmp_signed("<", lanes, spread(builder, count, kind.count))
    name = f"llvm.masked.store.v{kind.count}i{kind.element.width}.p0"
    target = builder.inttoptr(address, kind.as_pointer())
    call(builder, name, ir.VoidType(), value, target, WORD(1), mask)


def move(builder: Builder, target: Value, source: Value, count: Value, flip: Value) -> None:
    """So many bytes with the bits of `flip` turned over, and up to RUN - 1 of what lies behind them."""
    blocks = builder.udiv(builder.add(count, LONG(RUN - 1)), LONG(RUN))
    turned = spread(builder, builder.trunc(flip, BYTE), RUN)
    with loop(builder, blocks) as block:
        here, there = (advance(builder, at, block, RUN) for at in (source, target))
        store(builder, builder.xor(load(builder, here, turned.type), turned), there)


def advance(builder: Builder, address: Value, index: Value, stride: int | Value) -> Value:
    """``address + index * stride``, in bytes."""
    return builder.add(address, builder.mul(index, LONG(stride) if isinstance(stride, int) else stride))


def spread(builder: Builder, value: Value, lanes: int) -> Value:
    """One value in all lanes."""
    undefined = ir.Constant(vector(value.type, lanes), ir.Undefined)
    single = builder.insert_element(undefined, value, WORD(0))
    return shuffle(builder, single, single, [0] * lanes)


def shuffle(builder: Builder, a: Value, b: Value, lanes: list[int]) -> Value:
    """The lanes of a, then b, of those numbers."""
    return builder.shuffle_vector(a, b, ir.Constant(vector(WORD, len(lanes)), lanes))


def zipped(builder: Builder, a: Value, b: Value) -> list[Value]:
    """The lanes of a and b in turns, in two vectors of their type."""
    lanes = a.type.count
    order = [n // 2 + n % 2 * lanes for n in range(2 * lanes)]
    return [shuffle(builder, a, b, order[:lanes]), shuffle(builder, a, b, order[lanes:])]


def call(builder: Builder, name: str, kind: Any, *arguments: Value) -> Value:
    """LLVM's intrinsic of that name, which returns `kind`."""
    known = builder.module.globals.get(name)
    signature = ir.FunctionType(kind, [argument.type for argument in arguments])
    return builder.call(known or ir.Function(builder.module, signature, name), arguments)


def variables(builder: Builder, kind: Any, count: int) -> list[Value]:
    """So many variables that start at zero; LLVM keeps them in registers."""
    return [cgutils.alloca_once_value(builder, ir.Constant(kind, None)) for _ in range(count)]


@contextmanager
def loop(builder: Builder, count: Value) -> Iterator[Value]:
    """Counts from zero."""
    with cgutils.for_range(builder, count) as state:
        yield state.index


def fetch(builder: Builder, base: Value, places: Value, count: Value) -> None:
    """Puts in the place of each of so many int32 the 32 bits that lie so many bytes behind `base`.

    LLVM makes no such loads by itself.
    """
    lanes, words = 16, vector(WORD, 16)
    blocks, all_of_them = builder.udiv(count, LONG(lanes)), ir.Constant(vector(ir.IntType(1), lanes), [1] * lanes)
    with loop(builder, blocks) as block:
        at = advance(builder, places, block, 4 * lanes)
        where = builder.add(spread(builder, base, lanes), builder.zext(load(builder, at, words), vector(LONG, lanes)))
        found = builder.inttoptr(where, vector(WORD.as_pointer(), lanes))
        nothing = ir.Constant(words, ir.Undefined)
        name = f"llvm.masked.gather.v{lanes}i32.v{lanes}p0"
        store(builder, call(builder, name, words, found, WORD(1), all_of_them, nothing), at)
    done = builder.mul(blocks, LONG(lanes))
    with loop(builder, builder.sub(count, done)) as n:
        at = advance(builder, places, builder.add(done, n), 4)
        place = builder.zext(load(builder, at, WORD), LONG)
        store(builder, load(builder, builder.add(base, place), WORD), at)


def add_up(builder: Builder, x: Value, rows: Value, columns: Value, pitches: list[Value], kinds: Any, y: Value) -> None:
    """Sums of so many lanes over rows and columns of pixels; `kinds` are the types of lanes, `pitches` bytes."""
    total = cgutils.alloca_once(builder, kinds[1])
    builder.store(ir.Constant(kinds[1], None), total)
    with loop(builder, rows) as row, loop(builder, columns) as column:
        at = advance(builder, advance(builder, x, row, pitches[0]), column, pitches[1])
        value = builder.sext(load(builder, at, kinds[0]), kinds[1])
        builder.store(builder.add(builder.load(total), value), total)
    store(builder, builder.load(total), y)


def choose(builder: Builder, value: Value, cases: range, emit: Callable[[int], None]) -> None:
    """Code for each of the values; the value is one of them."""
    if len(cases) == 1:
        emit(cases[0])
        return
    after = builder.append_basic_block("chosen")
    switch = builder.switch(value, after)
    for case in cases:
        block = builder.append_basic_block(f"case{case}")
        switch.add_case(LONG(case), block)
        builder.position_at_end(block)
        emit(case)
        builder.branch(after)
    builder.position_at_end(after)


def routine(builder: Builder, name: str, emit: Callable[..., None], *arguments: Value) -> None:
    """Calls ``emit(builder, *arguments)``, which becomes a function of its own: LLVM takes ages over one large one."""
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        function = ir.Function(builder.module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        inside = ir.IRBuilder(function.append_basic_block("entry"))
        emit(inside, *function.args)
        inside.ret_void()
    builder.call(function, arguments)


def microkernel(emit: Callable[..., None], count: int) -> Any:
    """``emit(builder, *arguments)`` for kernels to call with the address of so many 64-bit integers."""

    def typed(typing: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
            emit(builder, *(load(builder, builder.add(values[0], LONG(8 * i)), LONG) for i in range(count)))
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return intrinsic(typed)


def _call_address(typing: Any, function: Any, arguments: Any) -> Any:
    """Calls a microkernel that was compiled on its own (`nnac.kernels.jit.microkernel`).

    Args:
        typing: numba's own; a kernel does not pass it.
        function: its address.
        arguments: a tuple of integers.
    """

    def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
        block = cgutils.alloca_once(builder, ir.ArrayType(LONG, len(arguments)))
        builder.store(values[1], block)
        pointer = ir.FunctionType(ir.VoidType(), [LONG]).as_pointer()
        builder.call(builder.inttoptr(values[0], pointer), [builder.ptrtoint(block, LONG)])
        return context.get_dummy_value()

    return types.void(types.int64, _types.UniTuple(types.int64, len(arguments))), generate


def _address(typing: Any, array: Any) -> Any:
    """Where the first element of an array lies.

    The array has to outlive the address: pass arrays that are arguments of the kernel that asks.
    """

    def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
        return builder.ptrtoint(context.make_array(signature.args[0])(context, builder, values[0]).data, LONG)

    return types.int64(array), generate


def _fetch_words(typing: Any, base: Any, places: Any, count: Any) -> Any:
    """`fetch` at addresses."""

    def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
        fetch(builder, *values)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _add_window(typing: Any, x: Any, start: Any, size: Any, totals: Any) -> Any:
    """Sums of each channel of a window.

    Args:
        typing: numba's own; a kernel does not pass it.
        x: (H, W, C), C side by side, with bytes of WINDOW values behind it that can be read.
        start: row and column of its first pixel.
        size: rows and columns.
        totals: (C,), with room for WINDOW more; integers wide enough.
    """
    kinds = [vector(ir.IntType(array.dtype.bitwidth), WINDOW) for array in (x, totals)]

    def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
        given, found = (context.make_array(signature.args[n])(context, builder, values[n]) for n in (0, 3))
        (*pitches, _), shape = (cgutils.unpack_tuple(builder, part) for part in (given.strides, given.shape))
        (top, left), (rows, columns) = (cgutils.unpack_tuple(builder, part) for part in values[1:3])
        first = advance(builder, builder.ptrtoint(given.data, LONG), top, pitches[0])
        first, target = advance(builder, first, left, pitches[1]), builder.ptrtoint(found.data, LONG)
        with loop(builder, builder.udiv(builder.add(shape[2], LONG(WINDOW - 1)), LONG(WINDOW))) as block:
            here = advance(builder, first, block, kinds[0].element.width // 8 * WINDOW)
            there = advance(builder, target, block, kinds[1].element.width // 8 * WINDOW)
            add_up(builder, here, rows, columns, pitches, kinds, there)
        return context.get_dummy_value()

    pair = _types.UniTuple(_types.int64, 2)
    return types.void(x, pair, pair, totals), generate


def _word_at(typing: Any, where: Any) -> Any:
    """The int32 at an address without alignment."""

    def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
        return load(builder, values[0], WORD)

    return types.int32(types.int64), generate


def _move_run(typing: Any, target: Any, source: Any, count: Any, flip: Any) -> Any:
    """`move` of so many bytes from an address to an address: a short run costs one load and one store."""

    def generate(context: Any, builder: Builder, signature: Any, values: Any) -> Any:
        move(builder, *values)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


call_address: Any = intrinsic(_call_address)
"""`_call_address`, for kernels to call without its first argument."""
address: Any = intrinsic(_address)
"""`_address`, for kernels to call without its first argument."""
move_run: Any = intrinsic(_move_run)
"""`_move_run`, for kernels to call without its first argument."""
fetch_words: Any = intrinsic(_fetch_words)
"""`_fetch_words`, for kernels to call without its first argument."""
add_window: Any = intrinsic(_add_window)
"""`_add_window`, for kernels to call without its first argument."""
word_at: Any = intrinsic(_word_at)
"""`_word_at`, for kernels to call without its first argument."""
