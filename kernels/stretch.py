"""Stretches: loads of weights and dense products of few rows, many in one call.

A step of a recurrent net is thousands of them, each so small that calling it from Python takes longer than its work.
"""

import numpy as np
from numba import types

from nnac.kernels.jit import INT, Int8, Int16, Int32, Int64, inner, kernel, sink
from nnac.kernels.jit import source as read
from nnac.kernels.requantize import TFLITE, lift, saturate, scale_once, scale_twice
from nnac.kernels.vectors import address, copy_bytes
from nnac.kernels.wide import narrow

LOAD, DENSE = range(2)
FIELDS = 16
"""Of a line; a load has the first five."""
KIND, SOURCE, COUNT, TARGET, PACKED = range(5)
"""A load: bytes `COUNT` from `SOURCE`, of the decoded weights where `PACKED`, to `TARGET` of the weight buffer."""
X, ROWS, DEPTH, CHANNELS, WEIGHTS, PARAMS, Y, PITCH, BYTES, X_ZERO, Y_ZERO, LOW, HIGH = range(1, 14)
"""A product: `ROWS` of `DEPTH` int8 at `X`, weights (CHANNELS, DEPTH) and biases, multipliers, shifts in the weight
buffer, results of `BYTES` each at `Y`, from row to row `PITCH` results."""
DEEPEST = 1 << 16
"""Products of int8 less a zero point with int8 whose sum stays inside 32 bits."""


@inner
def _sums(values: Int16, weights: Int8, sums: Int32) -> None:
    """One row of int16 against all channels of flat weights."""
    for n in range(sums.size):
        row = weights[n * values.size : (n + 1) * values.size]
        total = np.int32(0)
        for k in range(row.size):
            total = np.int32(total + np.int32(values[k]) * np.int32(row[k]))
        sums[n] = total


@inner
def _finish(sums: Int32, params: Int8, line: Int64, bits: int, wraps: int, rounding: int) -> None:
    """Bias, accumulator and requantization, in place."""
    channels = sums.size
    biases, multipliers = params[: 4 * channels].view(np.int32), params[4 * channels : 8 * channels].view(np.int32)
    shifts = params[8 * channels : 9 * channels]
    for n in range(channels):
        total = narrow(np.int64(biases[n]) + sums[n], bits, wraps)
        factor, places = lift(multipliers[n], shifts[n], rounding)
        if rounding == TFLITE:
            scaled = scale_twice(total, factor, places)
        else:
            scaled = scale_once(total, factor, places, rounding)
        sums[n] = saturate(scaled + line[Y_ZERO], line[LOW], line[HIGH])


@inner
def _dense(line: Int64, sram: Int8, buffer: Int8, bits: int, wraps: int, rounding: int) -> None:
    """All rows and channels of a product; see `conv.conv2d`."""
    depth, channels, size = line[DEPTH], line[CHANNELS], line[BYTES]
    values, sums = np.empty(depth, np.int16), np.empty(channels, np.int32)
    weights, params = buffer[line[WEIGHTS] : line[WEIGHTS] + channels * depth], buffer[line[PARAMS] :]
    for row in range(line[ROWS]):
        x, first = sram[line[X] + row * depth :], line[Y] + row * line[PITCH] * size
        for k in range(depth):
            values[k] = np.int16(x[k]) - np.int16(line[X_ZERO])
        _sums(values, weights, sums)
        _finish(sums, params, line, bits, wraps, rounding)
        y = sram[first : first + channels * size]
        if size == 1:
            for n in range(channels):
                y[n] = sums[n]
        else:
            wide = y.view(np.int16)
            for n in range(channels):
                wide[n] = sums[n]


@kernel(
    read(types.int64, 2),
    read(types.int8, 1),
    read(types.int8, 1),
    sink(types.int8, 1, "C"),
    sink(types.int8, 1, "C"),
    *[INT] * 3,
)
def run_stretch(
    lines: Int64, constants: Int8, decoded: Int8, buffer: Int8, sram: Int8, bits: int, wraps: int, rounding: int
) -> None:
    """Execute lines in their order.

    Args:
        lines: (N, FIELDS), as said above.
        constants: their memory.
        decoded: weights that were packed there.
        buffer: the weight buffer.
        sram: the scratchpad.
        bits: of the accumulator.
        wraps: whether a narrower accumulator wraps (else it saturates).
        rounding: as `nnac.numerics.Rounding`.
    """
    for n in range(lines.shape[0]):
        line = lines[n]
        if line[KIND] == LOAD:
            source = decoded if line[PACKED] else constants
            copy_bytes(address(buffer) + line[TARGET], address(source) + line[SOURCE], line[COUNT])
        else:
            _dense(line, sram, buffer, bits, wraps, rounding)
