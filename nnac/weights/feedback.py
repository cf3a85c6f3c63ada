"""Assignment with error feedback: GPTQ for any codebook.

Frantar et al., "GPTQ", ICLR 2023, quantize weights column by column and move the columns that remain so as to undo the
output error, by rows of the Cholesky factor of the inverse Hessian. The same levels come from the factor of the Hessian
itself, H = (U + I) D (U + I)^T with U strictly upper: the target of column j is w_j + sum over i < j of
(w_i - decoded_i) U[i, j] (Chee et al., "QuIP", NeurIPS 2023, theorem 6). That needs no inverse.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnac.errors import ModelError
from nnac.kernels.cluster import feedback_block
from nnac.types import Array

Int8 = NDArray[np.int8]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

DAMPING = 0.01
"""Part of the mean diagonal that is added to the diagonal."""
BLOCK = 128


def assign_with_feedback(rows: Float32, hessian: Array, scales: Float64, tables: Int8, nearest: Int8) -> Int8:
    """Return levels of small output error; never of a larger one than the nearest levels, row by row.

    Args:
        rows: (O, K) weights.
        hessian: (K, K), or (G, K, K) for equal runs of rows: symmetric, positive semidefinite.
        scales: (O,), positive.
        tables: (O, 512), as `Codebook.nearest_levels`.
        nearest: (O, K), the levels to beat.

    Raises:
        ModelError: the Hessian has another shape, is not finite, or no such matrix.
    """
    parts = np.asarray(hessian, np.float64)
    parts = parts[None] if parts.ndim == 2 else parts
    columns = rows.shape[1]
    if parts.ndim != 3 or parts.shape[1:] != (columns, columns) or len(rows) % len(parts):
        raise ModelError(
            f"Hessian of shape {np.shape(hessian)}: weights of {len(rows)} output channels and {columns} "
            f"inputs take ({columns}, {columns}), or one for each equal run of channels"
        )
    step = len(rows) // len(parts)
    runs = [slice(i * step, (i + 1) * step) for i in range(len(parts))]
    return np.concatenate(
        [
            _assign(rows[run], part, scales[run], tables[run], nearest[run])
            for run, part in zip(runs, parts, strict=True)
        ]
    )


def output_errors(errors: Float64, hessian: Float64) -> Float64:
    """Return e H e^T of each row e of weight errors (O, K): the squared output error, up to the Hessian's factor."""
    return np.asarray(np.einsum("rk,rk->r", errors @ hessian, errors))


def _assign(rows: Float32, hessian: Float64, scales: Float64, tables: Int8, nearest: Int8) -> Int8:
    """Choose levels in the order of falling diagonals, and in the given order; keep the better ones of each row."""
    weights = rows.astype(np.float64)
    best = nearest.copy()
    least = output_errors(weights - nearest * scales[:, None], hessian)
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    levels = np.empty_like(nearest)
    levels[:, order] = _in_order(np.ascontiguousarray(weights[:, order]), hessian[np.ix_(order, order)], scales, tables)
    error = output_errors(weights - levels * scales[:, None], hessian)
    best[error < least] = levels[error < least]
    return best


def _in_order(weights: Float64, hessian: Float64, scales: Float64, tables: Int8) -> Int8:
    """Return levels chosen column by column: products of blocks outside, the kernel inside a block."""
    feedback = _feedback(hessian)
    levels, error = np.empty(weights.shape, np.int8), np.empty(weights.shape)
    for first in range(0, weights.shape[1], BLOCK):
        block = slice(first, first + BLOCK)
        target = weights[:, block] + error[:, :first] @ feedback[:first, block]
        feedback_block(
            target,
            weights[:, block],
            np.ascontiguousarray(feedback[block, block]),
            scales,
            tables,
            levels[:, block],
            error[:, block],
        )
    return levels


def _feedback(hessian: Float64) -> Float64:
    """Return U + I of the damped Hessian: its Cholesky factor from the last column back, over the diagonal."""
    if not np.isfinite(hessian).all() or np.diagonal(hessian).min() < 0:
        raise ModelError("the Hessian is not finite, or has a negative diagonal")
    damping = DAMPING * float(np.diagonal(hessian).mean()) or 1.0
    damped = hessian[::-1, ::-1].copy()
    damped[np.diag_indices_from(damped)] += damping
    try:
        factor = np.linalg.cholesky(damped)[::-1, ::-1]
    except np.linalg.LinAlgError as error:
        raise ModelError("the Hessian is not positive semidefinite: is it a sum of x x^T?") from error
    return np.asarray(factor / np.diagonal(factor))
