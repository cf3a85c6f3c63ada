"""What every operator answers: shapes, its integer meaning, its work, its stripes, its instructions, a random sample.

Device tensors are row-major with channels last: (N, H, W, C) for pictures, (N, L, 1, C) for sequences of 1-D
convolutions, any rank for elementwise work. For tiling a tensor is seen as `rows` of equal length: a stripe is a range
of rows, contiguous in memory.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, prod
from typing import Any, ClassVar

import numpy as np

from nnac.graph import Graph, Node
from nnac.isa import AnyInstruction
from nnac.numerics import Rounding
from nnac.targets import Arithmetic
from nnac.types import Array, Quant, TensorType, aligned

Shape = tuple[int, ...]
Rows = tuple[int, int]
UNBOUNDED = (-inf, inf)


@dataclass(frozen=True, slots=True)
class Constraint:
    """One condition that a supported use of the operator meets, with the sentence that a user reads."""

    holds: Callable[[Any, Sequence[Shape]], bool]
    sentence: str

    def met(self, op: Any, shapes: Sequence[Shape]) -> bool:
        """Tell whether the condition holds; attributes that it cannot even compute with break it."""
        try:
            return self.holds(op, shapes)
        except (ArithmeticError, LookupError, ValueError):
            return False


@dataclass(frozen=True, slots=True)
class Work:
    """What one execution costs in principle: multiply-accumulates, and elements through the vector unit."""

    macs: int = 0
    elements: int = 0


@dataclass(frozen=True, slots=True)
class Slab:
    """Rows [lo, hi) of a tensor, contiguous at a byte address of the scratchpad."""

    address: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class Block:
    """Constants that travel together through the weight buffer: channels [lo, hi) of an operator's output.

    Attributes:
        params: bytes that are loaded as they are (bias, multipliers, shifts, tables); may be empty.
        weights: int8 weights of the block, which may be encoded; may be empty.
    """

    lo: int
    hi: int
    params: bytes
    weights: Array

    @property
    def nbytes(self) -> int:
        return aligned(len(self.params)) + aligned(self.weights.size)


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of work to lower: stripes of the inputs to a stripe of the output, with one block of constants.

    Attributes:
        inputs: a slab per scratchpad operand, in the node's order.
        output: the slab to fill.
        more: scratchpad addresses of the other outputs, which are never cut.
        scratch: scratchpad address of the operator's working memory.
        block: the constants, or None for an operator without any.
        params: weight-buffer address of the block's params.
        weights: weight-buffer address of the block's decoded weights.
    """

    inputs: tuple[Slab, ...]
    output: Slab
    more: tuple[int, ...] = ()
    scratch: int = 0
    block: Block | None = None
    params: int = 0
    weights: int = 0


Fetch = Callable[[int], tuple[tuple[AnyInstruction, ...], tuple[int, int]]]
"""Brings a block of constants into the weight buffer: the loads that it takes, and the addresses of params, weights."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Instructions of one stripe that belong together.

    Attributes:
        part: index into the operator's `parts`.
        step: of a sequence: turns of equal `step` form one round of its loop.
    """

    instructions: tuple[AnyInstruction, ...]
    part: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Bound:
    """An operator bound to its place in a typed integer graph.

    Attributes:
        inputs: types of all inputs, constants included.
        output: type of the output.
        constants: the constant inputs by position.
        law: the machine's arithmetic.
        more: types of the other outputs.
        ratios: multipliers and shifts of a layer, once they are known.
    """

    inputs: tuple[TensorType, ...]
    output: TensorType
    constants: dict[int, Array]
    law: Arithmetic
    more: tuple[TensorType, ...] = ()
    ratios: list[tuple[Array, Array]] = field(init=False, default_factory=list, compare=False, repr=False)

    @property
    def quant(self) -> Quant:
        """Quantization of the output."""
        assert self.output.quant is not None
        return self.output.quant

    @property
    def single(self) -> bool:
        """Whether the float32 forms of `nnac.float32` hold here: arithmetic onnx, and all activations int8."""
        quants = [kind.quant for kind in (*self.inputs, self.output) if kind.quant is not None]
        return self.law.mode == Rounding.ONNX and all(quant.bits == 8 for quant in quants)

    @property
    def lifted(self) -> int:
        """What float32 forms have in the place of the shift (see `nnac.float32`)."""
        return 7 if self.quant.unsigned else 0

    def result(self, values: Array) -> Array:
        """Return exact integers, which are inside its range, in the output's dtype."""
        return np.asarray(values).astype(self.output.dtype)

    def input_quant(self, index: int) -> Quant:
        """Quantization of input `index`."""
        quant = self.inputs[index].quant
        assert quant is not None
        return quant


def bind(graph: Graph, node: Node, law: Arithmetic) -> Bound:
    """Return the node's operator bound to its place in an integer graph."""
    constants = {i: graph.constants[name] for i, name in enumerate(node.inputs) if name in graph.constants}
    output, *more = graph.types(node.outputs)
    return Bound(graph.types(node.inputs), output, constants, law, tuple(more))


def layer_constants(node: Node) -> tuple[str, ...]:
    """Return the names of a layer's weights (O, ...), bias (O,) and, once the weights are integers, scales (O,)."""
    return node.inputs[node.op.operands :] if node.op.weighted else ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A random legal use of an operator: what the registry-driven tests run."""

    op: Any
    inputs: tuple[TensorType, ...]
    output: TensorType
    constants: dict[int, Array]
    more: tuple[TensorType, ...] = ()


EITHER = (8, 16)
"""Bits of an activation that may be int8 or int16."""


class Op:
    """Base of the operators; a concrete one is a frozen dataclass of its attributes.

    Not an `ABC`, for the reason of `isa.Instruction`.
    """

    name: ClassVar[str]
    constraints: ClassVar[tuple[Constraint, ...]] = ()
    layout: ClassVar[str] = "any"
    operands: ClassVar[int | None] = None
    """How many leading inputs are tensors in the scratchpad (None: all); the rest travels through the weight buffer."""
    parts: ClassVar[tuple[str, ...]] = ("",)
    """Labels of what reports list apart from each other."""
    weighted: ClassVar[bool] = False
    """Whether weights, bias and, once the weights are integers, their scales stand behind the operands."""

    @abstractmethod
    def infer(self, shapes: Sequence[Shape]) -> Shape:
        """Return the output's shape for the inputs' shapes."""

    def shapes(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """Return the shapes of all outputs."""
        return (self.infer(shapes),)

    def problems(self, shapes: Sequence[Shape]) -> list[str]:
        """Return the sentence of the first constraint that this use breaks (later ones may rely on it)."""
        return next(([c.sentence] for c in self.constraints if not c.met(self, shapes)), [])

    @abstractmethod
    def reference(self, bound: Bound, inputs: Sequence[Array]) -> Array:
        """Return the exact integer output for integer inputs (all of them, constants included), in numpy int64."""

    def results(self, bound: Bound, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """Return the exact integers of all outputs (see `reference`)."""
        return (self.reference(bound, inputs),)

    def pins(self, node: Node) -> dict[str, Quant]:
        """Return the values of `node` that have one quantization and no other."""
        return {}

    def ties(self, node: Node) -> tuple[tuple[str, str], ...]:
        """Return pairs of values of `node` that share a quantization."""
        return ()

    def stepped(self, node: Node) -> tuple[str, ...]:
        """Return the values of `node` that are int16 in steps of a power of two."""
        return ()

    def widths(self, operands: int) -> tuple[tuple[int, ...], ...]:
        """Return the bits that are allowed for each of the scratchpad operands and, behind them, for the output.

        What allows 16 only makes `passes.quantize` choose int16; where a tensor's bits are not allowed, it inserts a
        requantization.
        """
        return (EITHER,) * (operands + 1)

    def work(self, bound: Bound) -> Work:
        """Return the work of one execution."""
        return Work(elements=bound.output.elements)

    def rows(self, bound: Bound) -> tuple[int, int]:
        """Return (rows of the output, period): a stripe must not cross a multiple of the period."""
        return bound.output.elements, bound.output.elements

    def input_rows(self, bound: Bound, rows: Rows) -> tuple[Rows | None, ...]:
        """Return, per scratchpad operand, the rows needed for output `rows`; None asks for the whole tensor."""
        return tuple(rows for _ in bound.inputs[: self.operands])

    def most_rows(self, bound: Bound, rows: int) -> tuple[int | None, ...]:
        """Return, per scratchpad operand, the most rows that any stripe of `rows` output rows needs; None: all."""
        return tuple(None if span is None else rows for span in self.input_rows(bound, (0, 1)))

    def operand_rows(self, bound: Bound) -> tuple[int, ...]:
        """Return, per scratchpad operand, how many equal rows it has (1 for an operand that is taken whole)."""
        total = self.rows(bound)[0]
        wanted = self.input_rows(bound, (0, total))
        return tuple(1 if rows is None else total for rows in wanted)

    def blocks(self, bound: Bound, limit: int, granule: int) -> list[Block]:
        """Return the constants in blocks of at most `limit` bytes, cut at `granule` channels if possible."""
        return []

    def kept(self, bound: Bound) -> int:
        """Return the bytes of blocks without weights that stay in the weight buffer while others pass."""
        return 0

    def scratch(self, bound: Bound) -> int:
        """Return the bytes of scratchpad that a stripe needs as working memory."""
        return 0

    def lower(self, bound: Bound, step: Step) -> Iterator[AnyInstruction]:
        """Yield the instructions of one step; none for what costs nothing or is not cut into stripes."""
        return iter(())

    def turns(self, bound: Bound, step: Step, blocks: Sequence[Block], fetch: Fetch) -> Iterator[Turn]:
        """Yield the work of one stripe: its blocks of constants one after the other."""
        if not blocks:
            yield Turn(tuple(self.lower(bound, step)))
        for index, block in enumerate(blocks):
            loads, (params, weights) = fetch(index)
            one = Step(step.inputs, step.output, step.more, step.scratch, block, params, weights)
            yield Turn((*loads, *self.lower(bound, one)))

    @classmethod
    @abstractmethod
    def sample(cls, rng: np.random.Generator) -> Sample:
        """Return a random legal use, extremes included."""


@functools.lru_cache(maxsize=1024)
def clamp_limits(clamp: tuple[float, float], quant: Quant) -> tuple[int, int]:
    """Return the integer limits that a real-valued clamp means under `quant`."""
    low, high = clamp
    lowest = quant.low if low == -inf else int(quant.quantize(np.array([low]))[0])
    highest = quant.high if high == inf else int(quant.quantize(np.array([high]))[0])
    return lowest, max(lowest, highest)


def collapse(shape: Shape, keep: int) -> Shape:
    """Return `shape` with its leading axes merged so that `keep` axes remain after the first."""
    cut = max(len(shape) - keep, 0)
    return (prod(shape[:cut]), *shape[cut:])


def random_pair(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    """Return two random integers in [low, high)."""
    first, second = rng.integers(low, high, 2)
    return int(first), int(second)


def random_quant(rng: np.random.Generator, spread: float = 1.0, bits: int | None = None) -> Quant:
    """Return a random quantization, one in three of 16 bits; zero points at both ends of int8 come often."""
    scale = spread * 2.0 ** rng.uniform(-6, 0)
    if bits == 16 or (bits is None and rng.random() < 1 / 3):
        return Quant(float(np.float32(scale / 256)), bits=16)
    zero = int(rng.choice([-128, 127, 0, int(rng.integers(-128, 128))]))
    return Quant(float(np.float32(scale)), zero, unsigned=bool(rng.integers(2)))


def random_type(rng: np.random.Generator, shape: Shape, spread: float = 1.0, bits: int | None = None) -> TensorType:
    """Return an activation of a random quantization."""
    return activation(shape, random_quant(rng, spread, bits))


def activation(shape: Shape, quant: Quant) -> TensorType:
    """Return the type of an activation of that quantization."""
    return TensorType(shape, quant.dtype, quant)
