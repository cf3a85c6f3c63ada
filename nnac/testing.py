"""Helpers for users' own tests of their models on a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nnac.compiled import CompiledModel
from nnac.compiler import diff
from nnac.errors import NnacError

if TYPE_CHECKING:
    import onnx


def assert_close_to_float(model: Any, program: CompiledModel, inputs: Any, min_sqnr_db: float = 20.0) -> None:
    """Assert that every output of `program` is within `min_sqnr_db` of the float `model` in onnxruntime.

    Args:
        model: the ONNX model (path, bytes or proto) that the program was compiled from.
        program: the compiled model.
        inputs: one dict of arrays, or an iterable of them.
        min_sqnr_db: smallest signal-to-quantization-noise ratio of an output, dB.

    Raises:
        AssertionError: names the outputs that are too far, and the first layer that parts from float.
    """
    comparison = diff(model, program, [inputs] if isinstance(inputs, dict) else inputs)
    far = {name: sqnr for name, sqnr in comparison.outputs().items() if sqnr < min_sqnr_db}
    if not far:
        return
    first = comparison.first_below(min_sqnr_db)
    worst = comparison.worst()[0]
    listing = ", ".join(f"{name!r} {sqnr:.1f} dB" for name, sqnr in far.items())
    where = (
        f"; first layer below: {first.layer!r} ({first.op}), tensor {first.tensor!r}, {first.sqnr:.1f} dB"
        if first
        else ""
    )
    raise AssertionError(
        f"outputs below {min_sqnr_db:g} dB: {listing}{where}; largest own error: layer "
        f"{worst.layer!r} ({worst.op}), {worst.local_sqnr:.1f} dB"
    )


def with_random_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Return a copy of a prepared model whose float weights of rank 2 and more are seeded He-normal values.

    For published topologies whose weights are stubs: shapes and timing are real, values are noise that keeps its scale.

    Raises:
        NnacError: the model has no float initializer of rank 2 or more.
    """
    from onnx import numpy_helper

    rng, copy, changed = np.random.default_rng(seed), type(model)(), 0
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == 1 and len(tensor.dims) >= 2:
            spread = (2.0 / max(1, int(np.prod(tensor.dims[1:])))) ** 0.5
            values = rng.normal(0.0, spread, tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            changed += 1
    if not changed:
        raise NnacError("the model has no float weights of rank 2 or more to randomize")
    return copy
