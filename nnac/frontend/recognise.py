"""What exporters write out in small operators and the machine does as one: norms, and choices by a comparison.

A pattern is found from its last node upwards, and that node is replaced by a use with a row of its own here; what
nothing reads any more is dropped. The ONNX model stays as it is, so that calibration sees the same tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, prod

import numpy as np

from nnac.frontend.rows_norm import WRITTEN_OUT, fits
from nnac.frontend.rows_pairs import CHOICE
from nnac.frontend.use import Row, Use
from nnac.types import Array

NORM, CHOOSE = "Norm written out", "Choice"
PATTERNS: dict[str, Row] = {NORM: WRITTEN_OUT, CHOOSE: CHOICE}
KEEPING = ("Reshape", "Unsqueeze", "Squeeze", "Identity", "Cast")
RELATIONS = {"Less": (0, False), "Greater": (0, True), "LessOrEqual": (1, False), "GreaterOrEqual": (1, True)}
"""Comparisons as (index into `isa.RELATIONS`, whether the operands change sides)."""
SOFTMAX_ALONG_AXIS = 13
"""Opset since which a Softmax has one axis."""
COMPARING = ("Equal", "Not", *RELATIONS)
COMPARED = "what it gives is the condition of a Where, or is cast to numbers"


@dataclass(frozen=True, slots=True)
class _Moments:
    """What a norm divides by: the root of the mean square over `axes` of `x` (of its deviation) plus epsilon."""

    x: str
    axes: tuple[int, ...]
    centered: bool
    epsilon: float = 0.0


def recognise(uses: Sequence[Use], outputs: Iterable[str], apart: Collection[str] = ()) -> list[Use]:
    """Return the uses with patterns joined (but for those that end at a node of `apart`), without what nobody needs."""
    finder = _Finder(uses)
    found = [use if use.name in apart else finder.join(use) for use in uses]
    needed = set(outputs)
    for use in reversed(found):
        if not needed.isdisjoint(use.outputs):
            needed.update(use.inputs)
    return [use for use in found if not needed.isdisjoint(use.outputs)]


class _Finder:
    """Looks at what makes a tensor."""

    def __init__(self, uses: Sequence[Use]) -> None:
        self.made: dict[str, Use] = {name: use for use in uses for name in use.outputs[:1]}
        self.readers: dict[str, int] = {}
        for use in uses:
            for name in use.inputs:
                self.readers[name] = self.readers.get(name, 0) + 1

    def join(self, use: Use) -> Use:
        """Return the use that stands for all of the pattern that ends here, or the use itself."""
        return self._norm(use) or self._softmax(use) or self._choice(use) or use

    def _maker(self, name: str, *kinds: str) -> Use | None:
        use = self.made.get(name)
        return use if use is not None and use.op_type in kinds else None

    def _bare(self, name: str) -> str:
        """Return a tensor in front of operators that keep its values in order."""
        while (use := self._maker(name, *KEEPING)) is not None:
            name = use.inputs[0]
        return name

    # -- norms -----------------------------------------------------------------------------------------------------

    def _norm(self, use: Use) -> Use | None:
        """Match a norm that ends with its offset, with its gain, or with the quotient."""
        offset = gain = None
        inner = use
        if (split := self._with_constant(inner, "Add")) is not None:
            inner, offset = split
        if (split := self._with_constant(inner, "Mul")) is not None:
            inner, gain = split
        found = self._quotient(inner)
        if found is None:
            return None
        moments, early = found
        gain = early if gain is None else gain if early is None else early * gain
        shape = use.tensors.shapes[moments.x]
        if use.out() != shape or not all(a is None or fits(shape, moments.axes, a) for a in (gain, offset)):
            return None
        attributes = {
            "axes": moments.axes,
            "epsilon": moments.epsilon,
            "centered": moments.centered,
            "gain": gain,
            "offset": offset,
        }
        return replace(use, op_type=NORM, inputs=(moments.x,), outputs=use.outputs[:1], attributes=attributes)

    def _with_constant(self, use: Use, kind: str) -> tuple[Use, Array] | None:
        """Return what a constant is added to (or multiplied with) here only, and the constant."""
        side = next((i for i in range(len(use.inputs)) if use.constant(i) is not None), None)
        if use.op_type != kind or side is None:
            return None
        above = self.made.get(use.inputs[1 - side])
        if above is None or self.readers[above.outputs[0]] > 1:
            return None
        return above, use.array(side).astype(np.float64)

    def _quotient(self, use: Use) -> tuple[_Moments, Array | None] | None:
        """Match the deviation (or x) over the root; with it comes a gain that the inverse root has met before."""
        if use.op_type == "Div":
            moments, gain = self._root(use.inputs[1]), None
            found = moments is not None and self._is_quotient(use, use.inputs[0], use.inputs[1], moments)
            return (moments, gain) if moments is not None and found else None
        if use.op_type != "Mul":
            return None
        for side in (0, 1):
            inverse, gain = use.inputs[side], None
            scaled = self._maker(inverse, "Mul")
            if scaled is not None and (split := self._with_constant(scaled, "Mul")) is not None:
                inverse, gain = split[0].outputs[0], split[1]
            moments = self._inverse_root(inverse)
            if moments is not None and self._is_quotient(use, use.inputs[1 - side], inverse, moments):
                return moments, gain
        return None

    def _is_quotient(self, use: Use, name: str, root: str, moments: _Moments) -> bool:
        """Tell whether a tensor is what belongs above the root, which meets the right entries of it."""
        if not _aligned(use, root, moments.x, moments.axes):
            return False
        if not moments.centered:
            return name == moments.x
        return self._deviation(name) == (moments.x, moments.axes)

    def _inverse_root(self, name: str) -> _Moments | None:
        use = self._maker(name, "Reciprocal", "Div", "Pow")
        if use is None:
            return None
        if use.op_type == "Reciprocal":
            return self._root(use.inputs[0])
        if use.op_type == "Div":
            return self._root(use.inputs[1]) if _number(use, 0) == 1 else None
        return self._shifted(use.inputs[0]) if _number(use, 1) == -0.5 else None

    def _root(self, name: str) -> _Moments | None:
        use = self._maker(self._bare(name), "Sqrt", "Pow")
        if use is None or (use.op_type == "Pow" and _number(use, 1) != 0.5):
            return None
        return self._shifted(use.inputs[0])

    def _shifted(self, name: str) -> _Moments | None:
        """Match a variance plus epsilon, or alone."""
        use = self._maker(self._bare(name), "Add")
        if use is None:
            return self._variance(name)
        side = next((i for i in (0, 1) if _number(use, i) is not None), None)
        moments = None if side is None else self._variance(use.inputs[1 - side])
        epsilon = None if side is None else _number(use, side)
        if moments is None or epsilon is None or epsilon < 0:
            return None
        return replace(moments, epsilon=epsilon)

    def _variance(self, name: str) -> _Moments | None:
        """Match the mean of squared deviations, mean square minus squared mean, or the mean square."""
        name = self._not_negative(self._bare(name))
        if (use := self._maker(name, "Sub")) is not None:
            square, mean = self._mean(use.inputs[0]), self._squared(self._bare(use.inputs[1]))
            x = self._squared(square[0]) if square is not None else None
            if x is None or mean is None or square is None or self._mean(mean) != (x, square[1]):
                return None
            return _Moments(x, square[1], True)
        mean_square = self._mean(name)
        root = self._squared(mean_square[0]) if mean_square is not None else None
        if root is None or mean_square is None:
            return None
        deviation = self._deviation(root)
        if deviation is None:
            return _Moments(root, mean_square[1], False)
        return _Moments(*deviation, True) if deviation[1] == mean_square[1] else None

    def _not_negative(self, name: str) -> str:
        """Return a tensor in front of what limits it from below by 0."""
        use = self._maker(name, "Clip", "Max", "Relu")
        if use is None or (use.op_type == "Clip" and (_number(use, 1) != 0 or use.given(2))):
            return name
        if use.op_type == "Max" and 0.0 not in (_number(use, 0), _number(use, 1)):
            return name
        return self._bare(next(each for i, each in enumerate(use.inputs) if use.constant(i) is None))

    def _deviation(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """Match x minus its mean; return x and the axes."""
        use = self._maker(name, "Sub")
        mean = self._mean(use.inputs[1]) if use is not None else None
        if use is None or mean is None or mean[0] != use.inputs[0]:
            return None
        return mean if _aligned(use, use.inputs[1], *mean) else None

    def _squared(self, name: str) -> str | None:
        use = self._maker(name, "Mul", "Pow")
        if use is None:
            return None
        if use.op_type == "Pow":
            return use.inputs[0] if _number(use, 1) == 2 else None
        return use.inputs[0] if use.inputs[0] == use.inputs[1] else None

    def _mean(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """Match a mean, also as a sum times 1 / n; return what it is of, and the axes."""
        use = self._maker(self._bare(name), "ReduceMean", "Mul", "Div")
        if use is None:
            return None
        if use.op_type == "ReduceMean":
            return use.inputs[0], _axes(use)
        side = next((i for i in (0, 1) if _number(use, i) is not None), None)
        if side is None or (use.op_type == "Div" and side == 0):
            return None
        total = self._maker(self._bare(use.inputs[1 - side]), "ReduceSum")
        factor = _number(use, side)
        if total is None or factor is None:
            return None
        axes = _axes(total)
        count = prod(total.shape()[axis] for axis in axes)
        factor = 1 / factor if use.op_type == "Div" and factor else factor
        return (total.inputs[0], axes) if abs(factor * count - 1) < 1e-5 else None

    # -- softmax ---------------------------------------------------------------------------------------------------

    def _softmax(self, use: Use) -> Use | None:
        """Match exponentials over their sum along one axis; what is subtracted from all of them has no influence."""
        total = self._maker(self._bare(use.inputs[1]), "ReduceSum") if use.op_type == "Div" else None
        power = self._maker(use.inputs[0], "Exp")
        if total is None or power is None or total.inputs[0] != use.inputs[0] or len(_axes(total)) != 1:
            return None
        x, axes = power.inputs[0], _axes(total)
        if (distance := self._maker(x, "Sub")) is not None:
            peak = self._peak(distance.inputs[1])
            x = distance.inputs[0] if peak == (distance.inputs[0], axes) else x
        attributes = {"axis": axes[0]}
        return replace(use, op_type="Softmax", inputs=(x,), attributes=attributes, opset=SOFTMAX_ALONG_AXIS)

    def _peak(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """Match a largest value, also limited from below by minus infinity; return what it is of, and the axes."""
        name = self._bare(name)
        while (use := self._maker(name, "Clip", "Max")) is not None and -inf in (_number(use, 0), _number(use, 1)):
            name = self._bare(next(each for i, each in enumerate(use.inputs) if _number(use, i) is None))
        use = self._maker(name, "ReduceMax")
        return (use.inputs[0], _axes(use)) if use is not None else None

    # -- choices ---------------------------------------------------------------------------------------------------

    def _choice(self, use: Use) -> Use | None:
        """Match Where, or a cast to numbers, of a comparison of two tensors."""
        if use.op_type == "Where":
            names: tuple[str | float, ...] = use.inputs[1:]
        elif use.op_type == "Cast" and use.tensors.dtypes.get(use.inputs[0]) == "bool":
            names = (1.0, 0.0)
        else:
            return None
        compared = self._comparison(use.inputs[0])
        if compared is None:
            return None
        first, second, relation, inverted = compared
        operands = (first, second, *(reversed(names) if inverted else names))
        inputs = tuple(each for each in operands if isinstance(each, str))
        attributes = {"operands": operands, "relation": relation}
        return replace(use, op_type=CHOOSE, inputs=inputs, attributes=attributes)

    def _comparison(self, name: str) -> tuple[str, str, int, bool] | None:
        """Return both sides, the relation, and whether it is negated."""
        inverted = False
        while (use := self._maker(name, "Not")) is not None:
            name, inverted = use.inputs[0], not inverted
        use = self._maker(name, *COMPARING)
        if use is None:
            return None
        if use.op_type == "Equal":
            return use.inputs[0], use.inputs[1], 2, inverted
        relation, turned = RELATIONS[use.op_type]
        first, second = reversed(use.inputs) if turned else use.inputs
        return first, second, relation, inverted


def _aligned(use: Use, name: str, x: str, axes: tuple[int, ...]) -> bool:
    """Tell whether a value per group of `x` broadcasts to that group: its shape is that of x with ones for `axes`."""
    shape, found = use.tensors.shapes[x], use.tensors.shapes[name]
    return (1,) * (len(shape) - len(found)) + found == tuple(1 if i in axes else n for i, n in enumerate(shape))


def _number(use: Use, index: int) -> float | None:
    """Return a constant input of one entry."""
    constant = use.constant(index)
    return float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None


def _axes(use: Use) -> tuple[int, ...]:
    """Return the axes of a reduction, sorted."""
    rank = len(use.shape())
    found = use.numbers("axes", 1)
    return tuple(sorted(axis % rank for axis in found)) if found else tuple(range(rank))
