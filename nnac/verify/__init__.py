"""Verify: a quantized model on the emulator against the same model in onnxruntime, integer by integer.

onnxruntime runs the model as it was given, without graph optimizations, with every integer tensor visible; a QDQ model
then computes in float32. As "onnxruntime-integer" its convolutions, matrix products, sums and products become the
integer operators first (`frontend.integer_form`): that is what machines of arithmetic onnx reproduce. As
"onnxruntime-optimized" its own optimizer rewrites the graph. The program runs operator by operator on onnxruntime's
own integers (each tensor is replaced by the oracle's once it is made; one that the model gives no integers, by the
quantized real one, which is compared as well), so that no difference is carried on.

An element that differs is a fault unless three things hold. Ours is what the operator's integer reference makes of
the same integers; ours is as near to the exact rational value (`rationals`) as the machine's law promises; theirs is
as near as float32, in which onnxruntime computes, allows. Then it is

- *tie*: both integers are nearest to the exact value, as far as float32 can tell;
- *rule*: one of them is not nearest, since its rule is coarser there (our table or two roundings, the cut-off scale of
  QLinearSoftmax), since an operand was rounded that onnxruntime keeps real (a tensor without a scale of its own, a
  bias in float), or since the reals have no value (0 / 0).

Of an operator without an exact value (recurrent cells, choices, moves of what was rounded first) a neighbour counts as
another rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from nnac.border import quantized, signed
from nnac.calibration import Range, load_samples
from nnac.compiler import OWN_SCALES, executed_graph, float_graph, input_shapes, integer_graph, lower, measured_ranges
from nnac.emulator import Emulator
from nnac.errors import ModelError
from nnac.floatmodel import FloatModel
from nnac.frontend import as_given, integer_form, prepare
from nnac.graph import Graph, Node
from nnac.numerics import Rounding
from nnac.ops.base import Bound, bind
from nnac.program import Program, Tensor
from nnac.stages import SHARING
from nnac.targets import Arithmetic, Target, load_target
from nnac.types import Array, Quant
from nnac.verify.rationals import Exact, exact

ORACLES = ("onnxruntime", "onnxruntime-integer", "onnxruntime-optimized")
HALF = Fraction(1, 2)
TWO_STEPS = Fraction(3, 4)
"""What gemmlowp's rounding may be off: half a step, and half of at most half a step before it."""
OWN_RULE = "QLinearSoftmax"
"""onnxruntime's integer operator that is not nearest to the exact value."""
LISTED = 20
"""Differing elements of a tensor that are kept."""
_DOMAINS = ("", "ai.onnx", "com.microsoft", "ai.onnx.ml")
"""Domains that onnxruntime has; a model with others (QONNX) runs as `prepare` writes it."""


class Verdict(Enum):
    """Why an element differs."""

    TIE = "tie"
    RULE = "rule"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Difference:
    """One element that differs.

    Attributes:
        index: in the ONNX tensor.
        ours, theirs: the integers, as the machine has them (uint8 is 128 lower).
        verdict: why.
        value: the exact value in the same steps; None where there is none.
    """

    index: tuple[int, ...]
    ours: int
    theirs: int
    verdict: Verdict
    value: float | None = None


@dataclass(slots=True)
class Row:
    """One integer tensor over all samples.

    Attributes:
        tensor: its name in the model.
        layer, op: the node that makes it ("" and "input" for a graph input).
        elements: compared.
        counts: elements that differ, by verdict.
        examples: the first `LISTED` of each verdict.
    """

    tensor: str
    layer: str
    op: str
    elements: int = 0
    counts: Counter[Verdict] = field(default_factory=Counter)
    examples: list[Difference] = field(default_factory=list)

    @property
    def differing(self) -> int:
        return self.counts.total()

    @property
    def faults(self) -> int:
        return self.counts[Verdict.FAULT]

    @property
    def gravest(self) -> Difference:
        """The first fault; if there is none, the first by another rule, or tie."""
        return max(self.examples, key=lambda found: list(Verdict).index(found.verdict))

    def add(self, found: Difference) -> None:
        """Count one element."""
        self.counts[found.verdict] += 1
        if self.counts[found.verdict] <= LISTED:
            self.examples.append(found)


@dataclass(frozen=True, slots=True)
class Verification:
    """Rows in the order of execution.

    Attributes:
        rows: the tensors that both know.
        samples: how many were run.
        calibration: how tensors got scales that the model does not give.
    """

    rows: tuple[Row, ...]
    samples: int
    calibration: str

    @property
    def first(self) -> Row | None:
        """The first tensor that differs."""
        return next((row for row in self.rows if row.differing), None)

    @property
    def faults(self) -> int:
        return sum(row.faults for row in self.rows)


def verify(
    model: Any,
    samples: Any,
    target: str | Target = "nna8",
    *,
    against: str = "onnxruntime",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Verification:
    """Compare a quantized model on a machine with an oracle, tensor by tensor.

    Args:
        model: path, bytes or `onnx.ModelProto`.
        samples: as `calibration` of `nnac.compile`; tensors without scales are calibrated on them.
        target: the machine.
        against: the oracle, one of `ORACLES`.
        shapes: of inputs with open dimensions.

    Raises:
        ModelError: the model or the samples cannot be used, or no tensor of the model is quantized.
    """
    if against not in ORACLES:
        raise ModelError(f"oracle {against!r}: unknown; allowed: {', '.join(ORACLES)}")
    machine, prepared = load_target(target), prepare(model, shapes)
    graph = float_graph(prepared)
    loaded = list(load_samples(samples, input_shapes(graph)))
    ranges, note = measured_ranges(prepared, graph, loaded)
    given = as_given(model, shapes)
    if not all(node.domain in _DOMAINS for node in given.graph.node):
        given = prepared
    source = integer_form(given) if against == "onnxruntime-integer" else given
    pair = _Pair.of(prepared, (source, against == "onnxruntime-optimized"), graph, ranges, machine, note)
    for sample in loaded:
        pair.run(sample)
    if not loaded:
        raise ModelError("no samples to verify on")
    return Verification(tuple(pair.rows.values()), len(loaded), "" if note == OWN_SCALES else note)


@dataclass(slots=True)
class _Pair:
    """The two executions, and the rows that they fill.

    Attributes:
        program: ours.
        oracle: theirs.
        names: tensors of the program, and the oracle's integers.
        reals: tensors of the program, and the oracle's real ones, which have no integers.
        judge: of what differs.
        rows: by tensor of the program.
    """

    program: Program
    oracle: FloatModel
    names: dict[str, str]
    reals: dict[str, str]
    judge: _Judge
    rows: dict[str, Row]

    @classmethod
    def of(
        cls,
        prepared: onnx.ModelProto,
        oracle: tuple[onnx.ModelProto, bool],
        graph: Graph,
        ranges: Mapping[str, Range],
        machine: Target,
        note: str,
    ) -> _Pair:
        """Compile, and find the integer tensors that both executions have."""
        legal = executed_graph(integer_graph(graph, ranges, machine), machine)
        program = lower(graph, ranges, machine, note)
        source, optimized = oracle
        names = _common(program, prepared, source)
        if not names:
            raise ModelError("the model has no quantized tensors: `nnac diff` compares with float")
        reals = _real_tensors(program, source, names)
        own_rule = optimized or any(node.op_type == OWN_RULE for node in source.graph.node)
        judge = _Judge(legal, machine.arithmetic, _stored_integers(graph, legal), own_rule)
        rows, both = {}, names | reals
        for tensor in sorted((t for t in program.tensors if t.name in both), key=lambda t: t.ready):
            node = judge.makers.get(tensor.name)
            rows[tensor.name] = Row(both[tensor.name], node.name if node else "", node.op.name if node else "input")
        theirs = FloatModel(source, list(dict.fromkeys(both.values())), optimized=optimized)
        return cls(program, theirs, names, reals, judge, rows)

    def run(self, sample: Mapping[str, Array]) -> None:
        """Run one sample through both and judge what differs."""
        theirs = self.oracle.run(sample)
        truth = {name: self._device(name, theirs[tensor]) for name, tensor in self.names.items()}
        rounded = {name: self._quantized(name, theirs[tensor]) for name, tensor in self.reals.items()}
        found = Emulator(self.program).trace(quantized(self.program, sample), truth | rounded)
        self.judge.start(found, truth, rounded)
        for name, row in self.rows.items():
            row.elements += found[name].size
            places = _places(self.program.tensor(name))
            for difference in self.judge.differences(name):
                row.add(replace(difference, index=places(difference.index)))

    def _device(self, name: str, integers: Array) -> Array:
        """Return an oracle's integers as the machine has them."""
        tensor, array = self.program.tensor(name), signed(integers)
        return tensor.origin.from_onnx(array, tensor.type.shape) if tensor.origin else array

    def _quantized(self, name: str, reals: Array) -> Array:
        """Return a real tensor in the integers that the machine has it in."""
        quant = self.program.tensor(name).type.quant
        assert quant is not None
        return self._device(name, quant.quantize(reals))


class _Judge:
    """Gives each differing element of a run its verdict.

    Args:
        graph: what the machine executes.
        law: its arithmetic.
        stored: constants that are the model's own integers; all others were rounded.
        own_rule: whether the oracle may have its integer softmax.
    """

    def __init__(self, graph: Graph, law: Arithmetic, stored: Set[str], own_rule: bool) -> None:
        self.graph, self.law, self.stored, self.own_rule = graph, law, stored, own_rule
        self.makers = {name: node for node in graph.nodes for name in node.outputs}

    def start(self, found: Mapping[str, Array], truth: Mapping[str, Array], rounded: Mapping[str, Array]) -> None:
        """Take the tensors of one run: ours; the oracle's integers; and its reals, rounded."""
        self.found = found
        self.truth = {**truth, **rounded}
        self.given: dict[str, Array] = {**self.truth, **self.graph.constants}
        self.known = {*truth, *self.stored}
        for node in self.graph.nodes:
            if node.op.name in SHARING and all(name in self.known for name in node.inputs):
                self.known.update(node.outputs)

    def differences(self, name: str) -> Iterator[Difference]:
        """Yield the elements of a tensor that differ, with indices of the device."""
        found, truth, node = self.found[name], self.truth[name], self.makers.get(name)
        wrong = np.argwhere(found != truth)
        lawful = self._made(node)[name] if node is not None and len(wrong) else truth
        for index in map(tuple, wrong.tolist()):
            ours, theirs = int(found[index]), int(truth[index])
            if node is None or ours != lawful[index]:  # inputs: both follow ONNX's own definition of QuantizeLinear
                yield Difference(index, ours, theirs, Verdict.FAULT)
            else:
                yield self._difference(node, index, ours, theirs)

    def _made(self, node: Node) -> dict[str, Array]:
        """Return what the integer references make of the oracle's tensors."""
        results = node.op.results(bind(self.graph, node, self.law), self._inputs(node))
        return dict(zip(node.outputs, results, strict=True))

    def _inputs(self, node: Node) -> list[Array]:
        """Return a node's inputs: the oracle's; those that it does not have as they follow from others."""
        for name in node.inputs:
            if name not in self.given:
                self.given.update(self._made(self.makers[name]) if name in self.makers else {name: self.found[name]})
        return [self.given[name] for name in node.inputs]

    def _difference(self, node: Node, index: tuple[int, ...], ours: int, theirs: int) -> Difference:
        """Judge an element that our law made."""
        bound = bind(self.graph, node, self.law)
        element = exact(node, bound, self._inputs(node), index)
        if element is None:
            moved = node.op.name in SHARING and all(name in self.known for name in node.inputs)
            near = abs(ours - theirs) <= 1 and not moved
            return Difference(index, ours, theirs, Verdict.RULE if near else Verdict.FAULT)
        value = _saturated(element.value, bound.quant)
        return Difference(index, ours, theirs, self._verdict(node, bound, element, ours, theirs), float(value))

    def _verdict(self, node: Node, bound: Bound, element: Exact, ours: int, theirs: int) -> Verdict:
        """Return the verdict on two integers of which ours is the law's."""
        value, nearest = _saturated(element.value, bound.quant), HALF + element.blur
        single = element.blur if bound.single else 0
        lawful = (TWO_STEPS if self.law.mode == Rounding.TFLITE else HALF) + max(element.coarse, single)
        real = [gain / 2 for name, gain in zip(node.inputs, element.gains, strict=False) if name not in self.known]
        off = abs(theirs - value)
        if self.own_rule and element.other is not None:
            off = min(off, abs(theirs - _saturated(element.other, bound.quant)))
        if not element.defined:
            return Verdict.RULE
        if abs(ours - value) > lawful or off > nearest + sum(real):
            return Verdict.FAULT
        return Verdict.TIE if max(abs(ours - value), abs(theirs - value)) <= nearest else Verdict.RULE


def _saturated(value: Fraction, quant: Quant) -> Fraction:
    return min(max(value, Fraction(quant.low)), Fraction(quant.high))


def _places(tensor: Tensor) -> Any:
    """Return the function from a device index to the index in the ONNX tensor."""
    shape = tensor.type.shape
    order = np.arange(int(np.prod(shape))).reshape(shape)
    shown = tensor.origin.to_onnx(order) if tensor.origin else order
    back = np.argsort(shown, axis=None)
    return lambda index: tuple(int(v) for v in np.unravel_index(back[order[index]], shown.shape))


# -- names ---------------------------------------------------------------------------------------------------------


def _common(program: Program, prepared: onnx.ModelProto, source: onnx.ModelProto) -> dict[str, str]:
    """Return the oracle's integer tensor of each program tensor that has one, one program tensor per integer tensor."""
    integers, aliases = _integers(prepared), _aliases(prepared)
    present = {name for node in source.graph.node for name in node.output}
    present |= {info.name for info in source.graph.input}
    found: dict[str, str] = {}
    for tensor in program.tensors:
        if tensor.origin is None:
            continue
        name = aliases.get(tensor.origin.name, tensor.origin.name)
        if name in integers and name in present:
            found[tensor.name] = name
    return found


def _stored_integers(graph: Graph, legal: Graph) -> set[str]:
    """Return the constants of the integer graph that the model itself stores as integers (`quantize` adds a suffix)."""
    found = {
        name
        for name, array in graph.constants.items()
        if array.dtype.kind == "i" or graph.values[name].type.quant is not None
    }
    return {name for name in legal.constants if name in found or name.rpartition(".")[0] in found}


def _real_tensors(program: Program, source: onnx.ModelProto, names: Mapping[str, str]) -> dict[str, str]:
    """Return the oracle's real tensor of each computed tensor of the program that has no integers there."""
    made = {name for node in source.graph.node for name in node.output}
    others = {t.name: t.origin.name for t in program.tensors if t.name not in names and t.origin is not None}
    return {name: real for name, real in others.items() if real in made}


def _integers(prepared: onnx.ModelProto) -> set[str]:
    """Return the computed tensors of 8 and 16 bits."""
    kinds = [getattr(onnx.TensorProto, name) for name in ("INT8", "UINT8", "INT16", "UINT16")]
    graph = prepared.graph
    infos: Iterable[onnx.ValueInfoProto] = (*graph.input, *graph.value_info, *graph.output)
    return {info.name for info in infos if info.type.tensor_type.elem_type in kinds}


def _aliases(prepared: onnx.ModelProto) -> dict[str, str]:
    """Return the integer tensor behind the real ones in front of and behind it."""
    found: dict[str, str] = {}
    for node in prepared.graph.node:
        if node.op_type == "QuantizeLinear":
            found.setdefault(node.input[0], node.output[0])
        elif node.op_type == "DequantizeLinear":
            found[node.output[0]] = node.input[0]
    return found
