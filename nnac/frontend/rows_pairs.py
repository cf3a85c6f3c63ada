"""Rows that work on several activations, entry by entry: Min, Max, Where, and choices by a comparison."""

from __future__ import annotations

from functools import partial
from math import inf

import numpy as np

from nnac.frontend import views
from nnac.frontend.builder import Builder
from nnac.frontend.use import Refused, Row, Rule, Use, real
from nnac.ops import Activation, Extreme, Reshape, Select

EQUAL = 2


def extreme(b: Builder, use: Use, least: bool) -> None:
    """Import Min or Max: constant numbers are a limit of the result."""
    numbers = [float(use.array(i).reshape(-1)[0]) for i in range(len(use.inputs)) if _is_number(use, i)]
    tensors = [name for i, name in enumerate(use.inputs) if not _is_number(use, i)]
    if any(np.isnan(numbers)):
        raise Refused("no constant is NaN")
    limits = (-inf, min(numbers, default=inf)) if least else (max(numbers, default=-inf), inf)
    if len(tensors) > 1:
        b.put(use, Extreme(limits, least), [b.value(name) for name in tensors])
        return
    source = b.view(tensors[0], views.reshape(use.tensors.shapes[tensors[0]], use.out()))
    b.put(use, Activation("clip", limits) if numbers else Reshape(use.out()), [source])


def _is_number(use: Use, index: int) -> bool:
    constant = use.constant(index)
    return constant is not None and constant.size == 1


def where(b: Builder, use: Use) -> None:
    """Import Where with a constant condition: 0 and 1 are compared with 0."""
    mask = b.constant(f"{use.name}.mask", real(use.array(0)))
    zero = b.constant(f"{use.name}.zero", np.zeros(1))
    _, yes, no = use.inputs
    if any((c := use.constant(i)) is not None and not np.isfinite(c).all() for i in (1, 2)):
        raise Refused("what is chosen from is finite")
    b.put(use, Select(relation=EQUAL), [mask, zero, b.value(no), b.value(yes)])


def choice(b: Builder, use: Use) -> None:
    """Import what `recognise` has found: the inputs are compared, compared with, taken if so, taken if not."""
    names = [
        b.constant(f"{use.name}.number", np.full(1, each)) if isinstance(each, float) else b.value(each)
        for each in use.attributes["operands"]
    ]
    b.put(use, Select(relation=use.attributes["relation"]), names)


ROWS = {
    "Max": Row(partial(extreme, least=False), (Extreme, Activation, Reshape), limits=Extreme.constraints),
    "Min": Row(partial(extreme, least=True), (Extreme, Activation, Reshape), limits=Extreme.constraints),
    "Where": Row(
        where,
        (Select,),
        (),
        (Rule(lambda u: u.constant(0) is not None, "the condition is a constant, or a comparison of two tensors"),),
        Select.constraints[:2],
    ),
}
CHOICE = Row(choice, (Select,), ("operands", "relation"))
