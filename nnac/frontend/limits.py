"""What a model may ask for at most, and text that is safe to print."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that a model is checked against before anything of that size is allocated.

    Attributes:
        file_bytes: model file, external data included.
        nodes: nodes of all graphs together, after functions are inlined.
        tensors: stored tensors.
        rank: axes of a tensor.
        elements: entries of one tensor, and of one axis.
        folded_bytes: all constants that folding may make from nodes, beside `folds` times those that the model stores.
        name_length: characters of a name.
    """

    file_bytes: int = (1 << 31) - 1
    nodes: int = 100_000
    tensors: int = 1_000_000
    rank: int = 8
    elements: int = 1 << 27
    folded_bytes: int = 1 << 28
    folds: int = 4
    name_length: int = 1024


LIMITS = Limits()
