"""Cells that exporters wrote out as single operators: found in a list of nodes, whatever made their gates.

An LSTM cell is c' = sigmoid(f) * c + sigmoid(i) * tanh(g), h' = sigmoid(o) * tanh(c'); its gates are affine in some
tensors ("leaves"), through any number of products with constants, sums, splits and concatenations. A GRU cell is
n = tanh(a + sigmoid(r) * b), h' = (h - n) * sigmoid(z) + n, as torch's GRUCell has it, with z and r affine in x and h,
a in x and b in h. From that follow the weights of ONNX's LSTM and GRU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnac.types import Array

GATES = ("i", "o", "f", "g")
"""In ONNX's order."""


@dataclass(frozen=True, slots=True)
class Affine:
    """Rows (B, n) as a sum of leaves times matrices, leaves times diagonals, and a bias.

    Attributes:
        matrices: (K, n) by leaf of rows (B, K).
        diagonals: (n,) by leaf of rows (B, n).
        bias: (n,).
    """

    matrices: Mapping[str, Array]
    diagonals: Mapping[str, Array]
    bias: Array

    def plus(self, other: Affine) -> Affine:
        """Return the sum of two."""
        return Affine(
            _merged(self.matrices, other.matrices), _merged(self.diagonals, other.diagonals), self.bias + other.bias
        )

    def part(self, lo: int, hi: int) -> Affine | None:
        """Return columns [lo, hi); None where a diagonal would be cut."""
        if self.diagonals:
            return None
        return Affine({leaf: m[:, lo:hi] for leaf, m in self.matrices.items()}, {}, self.bias[lo:hi])


def _merged(a: Mapping[str, Array], b: Mapping[str, Array]) -> dict[str, Array]:
    return {name: a[name] + b[name] if name in a and name in b else {**a, **b}[name] for name in {**a, **b}}


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell that was found.

    Attributes:
        hidden, cell: names of what it makes, h' and c'.
        before: name of c.
        gates: pre-activations by letter.
    """

    hidden: str
    cell: str
    before: str
    gates: Mapping[str, Affine]

    @property
    def leaves(self) -> list[str]:
        """Names of the rows that matrices multiply."""
        return list(dict.fromkeys(leaf for gate in self.gates.values() for leaf in gate.matrices))

    @property
    def width(self) -> int:
        """Units of the cell."""
        return len(self.gates["i"].bias)

    def weights(self, leaf: str) -> Array:
        """Return (4 H, K) weights on a leaf."""
        return np.concatenate([gate.matrices.get(leaf, np.zeros((0, 0))).T for gate in self._ordered(leaf)])

    def bias(self) -> Array:
        """Return the (4 H,) bias."""
        return np.concatenate([self.gates[letter].bias for letter in GATES])

    def peepholes(self) -> Array | None:
        """Return (3 H,) weights of i, o, f on the cell; None without."""
        looks = [self.gates[letter].diagonals for letter in GATES[:3]]
        none = np.zeros(self.width)
        return np.concatenate([next(iter(look.values()), none) for look in looks]) if any(looks) else None

    def _ordered(self, leaf: str) -> Iterator[Affine]:
        size = next(gate.matrices[leaf].shape[0] for gate in self.gates.values() if leaf in gate.matrices)
        zeros = Affine({leaf: np.zeros((size, self.width))}, {}, np.zeros(self.width))
        return (self.gates[letter].plus(zeros) for letter in GATES)


@dataclass(frozen=True, slots=True)
class GruCell:
    """A GRU cell that was found.

    Attributes:
        hidden, before: names of h' and h.
        x: name of its input.
        update, reset, own, inner: z, r, a and b.
    """

    hidden: str
    before: str
    x: str
    update: Affine
    reset: Affine
    own: Affine
    inner: Affine

    def arrays(self) -> tuple[Array, Array, Array]:
        """Return ONNX's W (3 H, I), R (3 H, H) and B (6 H,)."""
        weights = [gate.matrices[self.x].T for gate in (self.update, self.reset, self.own)]
        recurrent = [gate.matrices[self.before].T for gate in (self.update, self.reset, self.inner)]
        zeros = np.zeros_like(self.own.bias)
        bias = (self.update.bias, self.reset.bias, self.own.bias, zeros, zeros, self.inner.bias)
        return np.concatenate(weights), np.concatenate(recurrent), np.concatenate(bias)


class Scope:
    """Nodes in order, with the constants that they see, and the last sides of tensors as far as they are known."""

    def __init__(
        self, nodes: Iterable[onnx.NodeProto], constants: Mapping[str, Array], widths: Mapping[str, int]
    ) -> None:
        self.nodes, self.widths = list(nodes), widths
        self.made = {name: node for node in self.nodes for name in node.output if name}
        self.constants = {**constants, **_stored(self.nodes)}

    def cells(self) -> Iterator[Cell]:
        """Yield the cells in the order of their hidden values."""
        for node in self.nodes:
            found = self._cell(node)
            if found is not None:
                yield found

    def gru_cells(self) -> Iterator[GruCell]:
        """Yield the GRU cells in the order of their hidden values."""
        for node in self.nodes:
            found = next(self._gru(node), None)
            if found is not None:
                yield found

    def plain(self, name: str) -> str:
        """Return the tensor that `name` is the same as."""
        while (node := self.made.get(name)) is not None and node.op_type == "Identity":
            name = node.input[0]
        return name

    # -- the pattern -----------------------------------------------------------------------------------------------

    def _cell(self, node: onnx.NodeProto) -> Cell | None:
        out = self._factors(node, "Sigmoid", "Tanh")
        total = self.made.get(self.plain(out[1])) if out else None
        if out is None or total is None or total.op_type != "Add":
            return None
        terms = [self.made.get(self.plain(name)) for name in total.input]
        for entry, kept in (terms, terms[::-1]):
            fresh, old = self._factors(entry, "Sigmoid", "Tanh"), self._factors(kept, "Sigmoid", "")
            if fresh and old and self.plain(old[1]) not in self.constants:
                names = {"i": fresh[0], "g": fresh[1], "f": old[0], "o": out[0]}
                return self._read(node.output[0], total.output[0], self.plain(old[1]), names)
        return None

    def _factors(self, node: onnx.NodeProto | None, first: str, second: str) -> tuple[str, str] | None:
        """Return what goes into the functions of a product; `second` may be empty: any other tensor."""
        if node is None or node.op_type != "Mul":
            return None
        for a, b in (node.input, reversed(node.input)):
            left, right = self.made.get(self.plain(a)), self.made.get(self.plain(b))
            if left is None or left.op_type != first:
                continue
            if not second:
                return left.input[0], b
            if right is not None and right.op_type == second:
                return left.input[0], right.input[0]
        return None

    def _read(self, hidden: str, cell: str, before: str, names: Mapping[str, str]) -> Cell | None:
        """Return the cell if its gates are affine, of one width, and peepholes look at nothing but the cell."""
        gates = {letter: gate for letter, name in names.items() if (gate := self.affine(name)) is not None}
        if len(gates) < len(GATES) or len({len(gate.bias) for gate in gates.values()}) > 1:
            return None
        looks = {"i": {before}, "f": {before}, "o": {cell}, "g": set[str]()}
        if any(not gate.diagonals.keys() <= looks[letter] for letter, gate in gates.items()):
            return None
        return Cell(hidden, cell, before, gates)

    def _pairs(self, name: str, op_type: str) -> Iterator[tuple[str, str]]:
        """Yield the operands of the node that makes a tensor, in either order, if it is of that type."""
        node = self.made.get(self.plain(name))
        if node is not None and node.op_type == op_type:
            first, second = (self.plain(each) for each in node.input)
            yield from ((first, second), (second, first))

    def _inside(self, name: str, op_type: str) -> str:
        """Return what goes into the function that makes a tensor, empty if it is another one."""
        node = self.made.get(self.plain(name))
        return node.input[0] if node is not None and node.op_type == op_type else ""

    def _gru(self, node: onnx.NodeProto) -> Iterator[GruCell]:
        for kept, new in self._pairs(node.output[0], "Add"):
            candidate = self._inside(new, "Tanh")
            for difference, gate in self._pairs(kept, "Mul") if candidate else ():
                sides, update = self.made.get(difference), self._inside(gate, "Sigmoid")
                if update and sides is not None and sides.op_type == "Sub" and self.plain(sides.input[1]) == new:
                    yield from self._read_gru(node.output[0], self.plain(sides.input[0]), update, candidate)

    def _read_gru(self, hidden: str, before: str, update: str, candidate: str) -> Iterator[GruCell]:
        """Yield the cell if its gates are affine in the hidden values and one input, of one width."""
        for own, gated in self._pairs(candidate, "Add"):
            for inner, gate in self._pairs(gated, "Mul"):
                reset = self._inside(gate, "Sigmoid")
                parts = [self.affine(name) for name in (update, reset, own, inner)] if reset else []
                z, r, a, b = parts or [None] * 4
                if z is None or r is None or a is None or b is None or len(a.matrices) != 1:
                    continue
                (x,) = a.matrices
                leaves = [set(part.matrices) for part in (z, r, b)]
                plain = not any(part.diagonals for part in (z, r, a, b))
                if plain and leaves == [{x, before}] * 2 + [{before}] and len({len(p.bias) for p in (z, r, a, b)}) == 1:
                    yield GruCell(hidden, before, x, z, r, a, b)

    # -- gates -----------------------------------------------------------------------------------------------------

    def affine(self, name: str) -> Affine | None:
        """Return rows as an affine function of leaves, or None where they are not."""
        node = self.made.get(self.plain(name))
        if node is None:
            return None
        match node.op_type:
            case "Add":
                return self._sum(node)
            case "MatMul":
                return self._product(node.input[0], self.constants.get(node.input[1]))
            case "Gemm":
                return self._gemm(node)
            case "Split":
                return self._split(node, self.plain(name))
            case "Mul":
                return self._look(node)
        return None

    def _sum(self, node: onnx.NodeProto) -> Affine | None:
        held = [self.constants[name] for name in node.input if name in self.constants]
        parts = [part for name in node.input if name not in self.constants and (part := self.affine(name)) is not None]
        if not parts or len(parts) + len(held) < len(node.input):
            return None
        total = parts[0]
        for part in (*parts[1:], *(_row(array, len(total.bias)) for array in held)):
            if part is None or len(part.bias) != len(total.bias):
                return None
            total = total.plus(part)
        return total

    def _product(self, x: str, weight: Array | None) -> Affine | None:
        if weight is None or weight.ndim != 2:
            return None
        x, bias = self.plain(x), np.zeros(weight.shape[1])
        node = self.made.get(x)
        if node is None or node.op_type != "Concat":
            return Affine({x: weight.astype(np.float64)}, {}, bias)
        return self._concatenated(node, weight)

    def _concatenated(self, node: onnx.NodeProto, weight: Array) -> Affine | None:
        """Return a product with rows that were put together; the width of one part may be unknown."""
        names = [self.plain(name) for name in node.input]
        widths = [self.widths.get(name, 0) for name in names]
        if attributes(node).get("axis") not in (1, -1) or widths.count(0) > 1 or len({*names}) < len(names):
            return None
        widths = [width or len(weight) - sum(widths) for width in widths]
        if min(widths) < 1 or sum(widths) != len(weight):
            return None
        ends = np.cumsum(widths)
        parts = np.split(weight.astype(np.float64), ends[:-1])
        return Affine(dict(zip(names, parts, strict=True)), {}, np.zeros(weight.shape[1]))

    def _gemm(self, node: onnx.NodeProto) -> Affine | None:
        given, weight = attributes(node), self.constants.get(node.input[1])
        if given.get("transA", 0) or weight is None or weight.ndim != 2:
            return None
        weight = (weight.T if given.get("transB", 0) else weight) * given.get("alpha", 1.0)
        product = self._product(node.input[0], weight)
        if product is None or len(node.input) < 3 or not node.input[2]:
            return product
        held = self.constants.get(node.input[2])
        row = None if held is None else _row(held * given.get("beta", 1.0), weight.shape[1])
        return None if row is None else product.plus(row)

    def _split(self, node: onnx.NodeProto, name: str) -> Affine | None:
        whole = self.affine(node.input[0])
        if whole is None or attributes(node).get("axis", 0) not in (1, -1):
            return None
        given = attributes(node).get("split")
        if given is None and len(node.input) > 1 and node.input[1]:
            given = self.constants.get(node.input[1])
        count, index = len(node.output), list(node.output).index(name)
        if given is None and len(whole.bias) % count:
            return None
        ends = np.cumsum([len(whole.bias) // count] * count if given is None else given)
        return whole.part(int(ends[index - 1]) if index else 0, int(ends[index]))

    def _look(self, node: onnx.NodeProto) -> Affine | None:
        """Return a product with one number per unit: a peephole."""
        for a, b in (node.input, reversed(node.input)):
            held = self.constants.get(b)
            if held is not None and held.ndim and held.size == held.shape[-1]:
                row = held.reshape(-1).astype(np.float64)
                return Affine({}, {self.plain(a): row}, np.zeros(len(row)))
        return None


def _row(array: Array, count: int) -> Affine | None:
    """Return a constant that broadcasts to rows of `count`, or None where it has several rows."""
    if array.size not in (1, count) or (array.ndim and array.size != array.shape[-1]):
        return None
    return Affine({}, {}, np.broadcast_to(array.astype(np.float64).reshape(-1), (count,)))


def _stored(nodes: Iterable[onnx.NodeProto]) -> dict[str, Array]:
    """Return the tensors of Constant nodes."""
    given = {node.output[0]: attributes(node).get("value") for node in nodes if node.op_type == "Constant"}
    return {name: numpy_helper.to_array(value) for name, value in given.items() if value is not None}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
