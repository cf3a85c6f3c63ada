"""Host: a segment of the model that the NNA cannot run, executed in float by onnxruntime (see `nnac.segment`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nnac import isa, segment
from nnac.ops.base import Bound, Constraint, Op, Sample, Shape, Work, random_type
from nnac.ops.move import Home
from nnac.types import Array, Quant

WHOLE_NUMBERS = Quant(1.0, bits=16)
"""Of ONNX's integers that cross a border: they stand for themselves."""
MOST = 255
"""Tensors on one side of a segment's border."""


@dataclass(frozen=True, slots=True)
class Host(Op):
    """A host segment; it reads and writes whole tensors in their homes.

    Attributes:
        model: the bytes of its ONNX model.
    """

    model: bytes = b""

    name: ClassVar[str] = "Host"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        Constraint(
            lambda op, s: 1 <= len(s) <= MOST and 1 <= len(segment.ports(op.model).outputs) <= MOST,
            f"a host segment reads and makes 1 to {MOST} tensors",
        ),
        Constraint(lambda op, s: tuple(s) == segment.ports(op.model).inputs, "the operands have the segment's shapes"),
    )

    def infer(self, shapes: Sequence[Shape]) -> Shape:
        return segment.ports(self.model).outputs[0]

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        return segment.ports(self.model).outputs

    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        return self.results(bound, inputs)[0]

    def results(self, bound: Bound, inputs: Sequence[Array]) -> tuple[Array, ...]:
        taken, made = self._quants(bound)
        return tuple(segment.execute(self.model, inputs, taken, made))

    def work(self, bound: Bound) -> Work:
        return Work()

    def _quants(self, bound: Bound) -> tuple[list[Quant], list[Quant]]:
        found = [[t.quant for t in types] for types in (bound.inputs, (bound.output, *bound.more))]
        taken, made = ([quant for quant in quants if quant is not None] for quants in found)
        return taken, made

    def call(self, bound: Bound, index: int, sources: Sequence[Home], targets: Sequence[Home]) -> isa.Host:
        """Return the instruction that runs segment `index` of the program from home to home."""
        taken, made = self._quants(bound)
        cost = segment.ports(self.model)
        return isa.Host(
            model=index,
            macs=cost.macs,
            elements=cost.elements,
            source_spaces=tuple(int(space) for space, _ in sources),
            sources=tuple(address for _, address in sources),
            source_counts=tuple(kind.elements for kind in bound.inputs),
            source_scales=tuple(isa.scale_bits(q.scale) for q in taken),
            source_zeros=tuple(q.zero_point for q in taken),
            source_bits=tuple(q.bits for q in taken),
            target_spaces=tuple(int(space) for space, _ in targets),
            targets=tuple(address for _, address in targets),
            target_counts=tuple(kind.elements for kind in (bound.output, *bound.more)),
            target_scales=tuple(isa.scale_bits(q.scale) for q in made),
            target_zeros=tuple(q.zero_point for q in made),
            target_bits=tuple(q.bits for q in made),
        )

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        shape = tuple(int(v) for v in rng.integers(1, 6, int(rng.integers(1, 4))))
        lines = ("y = Erf (x)", "y = CumSum (x, axis)", "y = Max (x, z)\nw = Log (z)")
        text = str(rng.choice(lines))
        inputs, outputs = ("x", "z") if "z" in text else ("x",), ("y", "w") if "w" in text else ("y",)
        model = _sample_model(text, inputs, outputs, shape)
        first, *more = (random_type(rng, shape) for _ in outputs)
        return Sample(cls(model), tuple(random_type(rng, shape) for _ in inputs), first, {}, tuple(more))


def _sample_model(text: str, inputs: Sequence[str], outputs: Sequence[str], shape: Shape) -> bytes:
    import onnx

    def described(names: Sequence[str]) -> Iterator[onnx.ValueInfoProto]:
        return (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in names)

    nodes = [onnx.parser.parse_node(line) for line in text.splitlines()]
    axis = [onnx.numpy_helper.from_array(np.array(0), "axis")] if "axis" in text else []
    graph = onnx.helper.make_graph(nodes, "sample", [*described(inputs)], [*described(outputs)], axis)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString(deterministic=True))
