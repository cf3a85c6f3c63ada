"""Cycles of MAC arrays: closed forms for one convolution on an R x C array.

A convolution is M output pixels by N output channels by K taps. What is stationary is cut into folds of the array's
size and the third axis streams through:

- weight-stationary: ceil(K/R) * ceil(N/C) folds, M streams; input-stationary: ceil(K/R) * ceil(M/C) folds, N streams.
  A fold alone takes 2R + C + stream - 2 cycles (fill R, stream skewed over R + C - 2, drain R).
- output-stationary: ceil(M/R) * ceil(N/C) folds, K streams; a fold alone takes R + C + stream - 2.
- dot-product: no systolic skew; each cycle R input channels of one tap for C output channels at `pixels` neighbouring
  output columns. Input arrives in steps of `step` cycles: either `step` * R channels of one tap (depth first) or R
  channels of `step` taps (part of the kernel first), whichever takes fewer cycles; what is left of a step idles. In a
  depthwise convolution R - 1 of R products idle, and its taps come in steps, too.

With `preload` the next fold fills while this one streams, so a fold costs max(stream, R), the last one its stream, and
fill, skew and drain are paid once. The closed forms without preload are those of SCALE-Sim v3 (which counts its last
cycle from 0, one less); with preload, of Gemmini and ONNXim.

A group is a convolution of its own, folded after the others. A depthwise convolution has N = 1 per group: with
`depthwise = "columns"` C channels lie side by side, each column fed with its own input, and only the taps' rows work;
with "single" the array takes one channel at a time. Neither can fill the array.

Partial sums of a fold along K stay in the accumulators (`accumulators` bytes, 4 per sum): a weight-stationary array
cuts the pixels into pieces that fit and folds each piece on its own.

Activations of 16 bits make every cycle of the array `int16` ones; a machine without 16-bit products has `int16` = 0.

Sums leave through the output stage, which requantizes `outputs` of them per cycle beside the array: whichever of the
two takes longer is the time.
With `zero_skip` a weight-stationary array leaves out folds of zero weights; the compiler counts what remains
(`taken_folds`) and the instruction carries the count.
"""

from __future__ import annotations

from math import ceil

import numpy as np

from nnac import isa
from nnac.errors import TargetError
from nnac.targets import Mac
from nnac.types import Array

NO_INT16 = "the machine's array takes no 16-bit activations (mac.int16 = 0)"


def over(amount: int, rate: int) -> int:
    """Return ceil(amount / rate)."""
    return -(-amount // rate)


def array_cycles(i: isa.Conv, mac: Mac) -> int:
    """Return the cycles of one convolution on the array and its output stage, without its issue cost.

    Raises:
        TargetError: the input has 16 bits, and the array takes 8 only.
    """
    if i.in_bits == 16 and not mac.int16:
        raise TargetError(NO_INT16)
    leaving = ceil(i.out_h * i.out_w * i.out_c / mac.outputs) if mac.outputs else 0
    taken = _dot_product(i, mac) if mac.dataflow == "dot_product" else _systolic(i, mac)
    return max(leaving, taken * (mac.int16 if i.in_bits == 16 else 1))


def matmul_cycles(i: isa.MatMul, mac: Mac) -> int:
    """Return the cycles of a product of two matrices of activations; each operand of 16 bits costs `int16` passes.

    Raises:
        TargetError: an operand has 16 bits, and the array takes 8 only.
    """
    if i.wide and not mac.int16:
        raise TargetError(NO_INT16)
    leaving = ceil(i.rows * i.columns / mac.outputs) if mac.outputs else 0
    if mac.dataflow == "dot_product":
        steps = over(i.depth, mac.rows * mac.step) * mac.step
        taken = over(i.rows, mac.pixels) * over(i.columns, mac.cols) * steps
    else:
        taken = gemm_cycles(i.rows, i.columns, i.depth, mac)
    return int(max(leaving, taken * mac.int16**i.wide))


def _systolic(i: isa.Conv, mac: Mac) -> int:
    """Return the cycles of a convolution as products of matrices on a systolic array."""
    pixels, taps, per_group = i.out_h * i.out_w, i.kernel_h * i.kernel_w * i.depth, i.channels // i.groups
    if i.depth == 1 and per_group == 1 and mac.depthwise == "columns":
        return gemm_cycles(pixels, i.out_c, taps, mac)
    groups, channels = over(i.out_c, per_group), min(i.out_c, per_group)
    return gemm_cycles(pixels, channels, taps, mac, groups, i.taps)


def gemm_cycles(m: int, n: int, k: int, mac: Mac, repeats: int = 1, taken: int = 0) -> int:
    """Return the cycles of `repeats` products of M x K by K x N on a systolic array.

    `taken` are the folds that a weight-stationary array does not skip; 0: all.
    """
    rows, cols, limit = mac.rows, mac.cols, 0
    match mac.dataflow:
        case "weight_stationary":
            folds, stream, fill = taken or over(k, rows) * over(n, cols), m, 2 * rows + cols - 2
            limit = _piece(m, k, mac)
        case "input_stationary":
            folds, stream, fill = over(k, rows) * over(m, cols), n, 2 * rows + cols - 2
        case _:
            folds, stream, fill = over(m, rows) * over(n, cols), k, rows + cols - 2
    whole, rest = divmod(stream, limit or stream)
    limit, last = limit or stream, rest or limit or stream
    if mac.preload:
        streamed = whole * max(limit, rows) + (max(rest, rows) if rest else 0)
        return repeats * folds * streamed - max(0, rows - last) + fill
    return repeats * folds * (stream + (whole + bool(rest)) * fill)


def _piece(m: int, k: int, mac: Mac) -> int:
    """Return the most pixels whose partial sums fit the accumulators."""
    return m if k <= mac.rows or not mac.accumulators else max(1, mac.accumulators // (4 * mac.cols))


def taken_folds(weights: Array, mac: Mac) -> int:
    """Return the folds that an array which skips zero weights takes for int8 weights (O, K) of one instruction.

    Output channels without any weight take no column. The columns of a fold work in step, so a block of columns takes
    as many folds as its fullest column needs: "row" leaves out taps that are zero in the whole block; "row_group" packs
    the non-zero taps of each column together; "2:4" halves the taps of a block in which no aligned four of any column
    have more than two non-zeros.
    """
    kept = (weights != 0)[(weights != 0).any(axis=1)]
    blocks = [kept[at : at + mac.cols] for at in range(0, len(kept), mac.cols)]
    return max(1, sum(over(_fullest(block, mac.zero_skip), mac.rows) for block in blocks))


def _fullest(block: Array, skip: str) -> int:
    if skip == "row":
        return int(block.any(axis=0).sum())
    if skip == "row_group":
        return int(block.sum(axis=1).max())
    taps = block.shape[1]
    padded = np.pad(block, ((0, 0), (0, -taps % 4))).reshape(len(block), -1, 4)
    return over(taps, 2) if padded.sum(axis=2).max() <= 2 else taps


def _dot_product(i: isa.Conv, mac: Mac) -> int:
    """Return the cycles of an array of dot products: blocks of outputs, each walking over its taps."""
    positions = i.out_h * over(i.out_w, mac.pixels) if i.out_w > 1 else over(i.out_h, mac.pixels)
    per_group, taps = i.channels // i.groups, i.kernel_h * i.kernel_w
    if i.depth == 1 and per_group == 1:
        return positions * over(i.out_c, mac.cols) * over(taps, mac.step) * mac.step
    groups, channels = over(i.out_c, per_group), min(i.out_c, per_group)
    depth_first = taps * over(i.depth, mac.rows * mac.step)
    kernel_first = over(taps, mac.step) * over(i.depth, mac.rows)
    return positions * groups * over(channels, mac.cols) * min(depth_first, kernel_first) * mac.step
