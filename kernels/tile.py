"""The register tile of matrix products, in LLVM's vector types: the one place where numba's loops do not get there.

Numba's loop vectorizer sums along the reduction axis and adds up the lanes afterwards, which costs more than the
products where that axis is short. Here a lane is an output channel. The vectors are LLVM's portable ones; where the
machine has an instruction for sums of pairs of int16 products (vpmaddwd, vpdpwssd), LLVM finds it.
"""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.core import cgutils as typed_cgutils
from numba.extending import intrinsic

from nnac.kernels.jit import Int8, Int16, inner

LANES = 16
VECTORS = 2
CHANNELS = LANES * VECTORS
"""Output channels of a tile."""
PIXELS = 4
"""Patches of a tile: times two vectors, the eight sums that hide the latency of a product."""

cgutils: Any = typed_cgutils
_WORD, _INDEX = ir.IntType(32), ir.IntType(64)
_SUMS = ir.VectorType(_WORD, LANES)
_PAIRS = ir.VectorType(ir.IntType(16), 2 * LANES)
_PRODUCTS = ir.VectorType(_WORD, 2 * LANES)


@inner
def pack(weights: Int8) -> Int16:
    """(N, K) weights as (blocks of CHANNELS, pairs of K, CHANNELS, 2); zero where N or K end early."""
    count, depth = weights.shape
    packed = np.zeros((-(-count // CHANNELS), (depth + 1) // 2, CHANNELS, 2), np.int16)
    for n in range(count):
        block, lane = n // CHANNELS, n % CHANNELS
        for k in range(depth):
            packed[block, k // 2, lane, k % 2] = weights[n, k]
    return packed


def _multiply_tile(typing: Any, panel: Any, m: Any, packed: Any, block: Any, acc: Any) -> Any:
    """``acc[m : m + PIXELS, block * CHANNELS : ...] = panel[m : m + PIXELS] @ packed[block]``.

    Args:
        typing: numba's own; a kernel does not pass it.
        panel: int16 (rows, 2 * pairs), C-contiguous.
        m: first row; all rows of the tile exist.
        packed: from `pack`.
        block: of packed.
        acc: int32 (rows, blocks * CHANNELS), C-contiguous; the tile is overwritten.
    """
    return types.void(panel, m, packed, block, acc), _generate


multiply_tile: Any = intrinsic(_multiply_tile)
"""`_multiply_tile`, for kernels to call without its first argument."""


def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """The tile in LLVM: all sums in registers, one step per pair of the reduction axis."""
    panel, packed, acc = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 4))
    pairs = cgutils.unpack_tuple(builder, packed.shape)[1]
    width = cgutils.unpack_tuple(builder, acc.shape)[1]
    tile = [(i, j) for i in range(PIXELS) for j in range(VECTORS)]
    sums = {at: cgutils.alloca_once_value(builder, ir.Constant(_SUMS, None)) for at in tile}
    rows = [builder.mul(builder.add(arguments[1], _INDEX(i)), pairs) for i in range(PIXELS)]  # in words of a pair
    first = builder.mul(builder.mul(arguments[3], pairs), _INDEX(CHANNELS))
    with cgutils.for_range(builder, pairs) as loop:
        step = builder.add(first, builder.mul(loop.index, _INDEX(CHANNELS)))
        weights = [_load(builder, packed, builder.add(step, _INDEX(j * LANES)), _PAIRS) for j in range(VECTORS)]
        patches = [_spread(builder, _load(builder, panel, builder.add(row, loop.index), _WORD)) for row in rows]
        for i, j in tile:
            products = _add_pairs(builder, _multiply(builder, patches[i], weights[j]))
            builder.store(builder.add(builder.load(sums[i, j]), products), sums[i, j])
    for i, j in tile:
        row = builder.mul(builder.add(arguments[1], _INDEX(i)), width)
        column = builder.add(builder.mul(arguments[3], _INDEX(CHANNELS)), _INDEX(j * LANES))
        builder.store(builder.load(sums[i, j]), _address(builder, acc, builder.add(row, column), _SUMS), align=4)
    return context.get_dummy_value()


def _address(builder: Any, array: Any, word: Any, kind: Any) -> Any:
    """Where the array's 32-bit word of that number lies, to be read as `kind`."""
    words = builder.bitcast(array.data, _WORD.as_pointer())
    return builder.bitcast(builder.gep(words, [word]), kind.as_pointer())


def _load(builder: Any, array: Any, word: Any, kind: Any) -> Any:
    """`kind` from the array's word of that number."""
    return builder.load(_address(builder, array, word, kind), align=4)


def _spread(builder: Any, word: Any) -> Any:
    """One pair of values in all lanes."""
    lanes = ir.Constant(_SUMS, ir.Undefined)
    single = builder.insert_element(lanes, word, _WORD(0))
    return builder.bitcast(builder.shuffle_vector(single, lanes, ir.Constant(_SUMS, [0] * LANES)), _PAIRS)


def _multiply(builder: Any, a: Any, b: Any) -> Any:
    """The 32-bit products of 16-bit values."""
    return builder.mul(builder.sext(a, _PRODUCTS), builder.sext(b, _PRODUCTS))


def _add_pairs(builder: Any, products: Any) -> Any:
    """Even plus odd lanes."""
    even, odd = (ir.Constant(_SUMS, list(range(start, 2 * LANES, 2))) for start in (0, 1))
    return builder.add(
        builder.shuffle_vector(products, products, even), builder.shuffle_vector(products, products, odd)
    )
