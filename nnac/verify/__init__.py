"""Verify: a quantized model on the emulator against the same model in onnxruntime, integer by integer.

onnxruntime runs the model as it was given, without graph optimizations, with every integer tensor visible; a QDQ model
then computes in float32. As "onnxruntime-integer" its convolutions, matrix products, sums and products become the
integer operators first (`frontend.integer_form`): that is what machines of arithmetic onnx reproduce. The program
runs operator by operator on onnxruntime's own integers (each tensor is replaced by the oracle's once it is made), so
that no difference is carried on. Every element that differs is judged by its exact rational value:

- *tie*: both integers are nearest to the exact value, as far as float32, which onnxruntime computes in, can tell;
- *rule*: ours follows the machine's law, theirs is a neighbour of the exact value: another rule of rounding; or a
  tensor between has no scale of its own, so that ours is rounded twice;
- *fault*: anything else. One of the two is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from nnac.border import quantized
from nnac.calibration import Range, load_samples
from nnac.compiler import OWN_SCALES, float_graph, input_shapes, integer_graphs, lower, measured_ranges
from nnac.emulator import Emulator
from nnac.errors import ModelError
from nnac.floatmodel import FloatModel
from nnac.frontend import as_given, integer_form, prepare
from nnac.graph import Graph, Node
from nnac.numerics import Rounding
from nnac.ops.base import bind
from nnac.program import Program, Tensor
from nnac.stages import SHARING
from nnac.targets import Arithmetic, Target, load_target
from nnac.types import Array
from nnac.verify.rationals import Exact, exact

ORACLES = ("onnxruntime", "onnxruntime-integer")
HALF = Fraction(1, 2)
_DOMAINS = ("", "ai.onnx", "com.microsoft", "ai.onnx.ml")
"""Domains that onnxruntime has; a model with others (QONNX) runs as `prepare` writes it."""


class Verdict(Enum):
    """Why an element differs."""

    TIE = "tie"
    RULE = "rule"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Example:
    """One element that differs.

    Attributes:
        index: in the ONNX tensor.
        ours, theirs: the integers, as the machine has them (uint8 is 128 lower).
        value: the exact value in the same steps; None where there is no rule for it.
    """

    index: tuple[int, ...]
    ours: int
    theirs: int
    value: float | None


@dataclass(slots=True)
class Row:
    """One integer tensor over all samples.

    Attributes:
        tensor: its name in the model.
        layer, op: the node that makes it ("" and "input" for a graph input).
        elements: compared.
        ties, rules, faults: elements that differ, by verdict.
        example: the first of the gravest verdict.
    """

    tensor: str
    layer: str
    op: str
    elements: int = 0
    ties: int = 0
    rules: int = 0
    faults: int = 0
    example: Example | None = None

    @property
    def differing(self) -> int:
        return self.ties + self.rules + self.faults

    def add(self, verdict: Verdict, example: Example) -> None:
        """Count one element."""
        graver = self.faults == 0 and (verdict == Verdict.FAULT or (verdict == Verdict.RULE and self.rules == 0))
        if self.example is None or graver:
            self.example = example
        match verdict:
            case Verdict.TIE:
                self.ties += 1
            case Verdict.RULE:
                self.rules += 1
            case Verdict.FAULT:
                self.faults += 1


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
    pair = _Pair.of(prepared, source, graph, ranges, machine, note)
    for sample in loaded:
        pair.run(sample)
    if not loaded:
        raise ModelError("no samples to verify on")
    return Verification(tuple(pair.rows.values()), len(loaded), "" if note == OWN_SCALES else note)


@dataclass(slots=True)
class _Pair:
    """The two executions, and the rows that they fill."""

    legal: Graph
    program: Program
    oracle: FloatModel
    names: dict[str, str]
    rows: dict[str, Row]
    law: Arithmetic

    @classmethod
    def of(
        cls,
        prepared: onnx.ModelProto,
        source: onnx.ModelProto,
        graph: Graph,
        ranges: Mapping[str, Range],
        machine: Target,
        note: str,
    ) -> _Pair:
        """Compile, and find the integer tensors that both executions have."""
        legal = integer_graphs(graph, ranges, machine)[1]
        program = lower(graph, ranges, machine, note)
        names = _common(program, prepared, source)
        if not names:
            raise ModelError("the model has no quantized tensors: `nnac diff` compares with float")
        makers = {node.output: node for node in legal.nodes}
        rows = {}
        for tensor in sorted((t for t in program.tensors if t.name in names), key=lambda t: t.ready):
            node = makers.get(tensor.name)
            rows[tensor.name] = Row(names[tensor.name], node.name if node else "", node.op.name if node else "input")
        oracle = FloatModel(source, list(dict.fromkeys(names.values())))
        return cls(legal, program, oracle, names, rows, machine.arithmetic)

    def run(self, sample: Mapping[str, Array]) -> None:
        """Run one sample through both and judge what differs."""
        integers = self.oracle.run(sample)
        truth = {name: self._device(name, integers[tensor]) for name, tensor in self.names.items()}
        found = Emulator(self.program).trace(quantized(self.program, sample), truth)
        nodes = {node.output: node for node in self.legal.nodes}
        known: set[str] = {*truth, *self.legal.constants}
        for node in self.legal.nodes:
            if node.op.name in SHARING and all(name in known for name in node.inputs):
                known.add(node.output)
        for name, row in self.rows.items():
            row.elements += truth[name].size
            wrong = np.argwhere(found[name] != truth[name])
            if len(wrong):
                self._judge(row, name, nodes.get(name), found, truth, known, wrong)

    def _device(self, name: str, integers: Array) -> Array:
        """Return an oracle's integers as the machine has them."""
        tensor = self.program.tensor(name)
        array = integers
        if integers.dtype.kind == "u":
            array = (integers ^ (1 << 8 * integers.itemsize - 1)).view(f"int{8 * integers.itemsize}")
        return tensor.origin.from_onnx(array, tensor.type.shape) if tensor.origin else array

    def _judge(
        self,
        row: Row,
        name: str,
        node: Node | None,
        found: Mapping[str, Array],
        truth: Mapping[str, Array],
        known: set[str],
        wrong: Array,
    ) -> None:
        """Give each differing element its verdict."""
        places = _places(self.program.tensor(name))
        inputs = [] if node is None else [self._input(n, found, truth) for n in node.inputs]
        direct = node is not None and all(n in known for n in self.legal.operands(node))
        for index in map(tuple, wrong.tolist()):
            ours, theirs = int(found[name][index]), int(truth[name][index])
            if node is None:  # a graph input: both follow ONNX's own definition of QuantizeLinear
                verdict, value = Verdict.FAULT, None
            elif not direct:
                verdict, value = Verdict.RULE, None
            else:
                verdict, value = self._verdict(node, inputs, index, ours, theirs)
            row.add(verdict, Example(places(index), ours, theirs, value))

    def _input(self, name: str, found: Mapping[str, Array], truth: Mapping[str, Array]) -> Array:
        if name in self.legal.constants:
            return self.legal.constants[name]
        return truth[name] if name in truth else found[name]

    def _verdict(
        self, node: Node, inputs: Sequence[Array], index: tuple[int, ...], ours: int, theirs: int
    ) -> tuple[Verdict, float | None]:
        bound = bind(self.legal, node, self.law)
        element = exact(node, bound, inputs, index)
        if element is None:  # moved bytes differ: a fault; of any other operator only neighbours can be told apart
            moved = node.op.name in SHARING
            return (Verdict.RULE if not moved and abs(ours - theirs) <= 1 else Verdict.FAULT), None
        value = min(max(element.value, Fraction(bound.quant.low)), Fraction(bound.quant.high))
        off = [abs(value - integer) for integer in (ours, theirs)]
        if max(off) <= HALF + element.blur:
            return Verdict.TIE, float(value)
        lawful = off[0] <= (1 if self.law.mode == Rounding.TFLITE else HALF + element.coarse + self._blur(element))
        return (Verdict.RULE if lawful and off[1] < 1 else Verdict.FAULT), float(value)

    def _blur(self, element: Exact) -> Fraction:
        """Return what float32 may lose on our side: nothing but for machines of arithmetic onnx."""
        return element.blur if self.law.mode == Rounding.ONNX else Fraction()


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
