"""Layout: sink transposes and reshapes until they meet their inverse or the graph's border.

The frontend brackets every spatial operator with a transpose to channels last and one back. Rules, applied in
topological order until nothing changes (no rule computes anything, so the pass is exact):

1. a transpose of a transpose is one transpose, a reshape of a reshape one reshape, an identity of either nothing;
2. a transpose that only moves axes of length one is a reshape;
3. an elementwise operator over moved operands moves its result instead (a constant or a one-axis operand is moved
   the other way, at no cost);
4. concat, slice, pad, take and insert go below a transpose, and below a reshape that drops a trailing axis of one;
5. a dense layer behind a flattened transpose reads the tensor as it lies: its weight columns are permuted;
6. a move at a graph input or output becomes part of that tensor's `Origin` (the host writes and reads it moved); an
   input that comes to a spatial operator through elementwise ones, concats, slices or pads, or has other readers too,
   is made channels last and moved back; that move then sinks by the rules above;
7. a state keeps ONNX's order of axes, going out and coming in, so that its bytes are copied as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from nnac.graph import Draft, Graph, Node, Value, sort_nodes
from nnac.ops import (
    Activation,
    Concat,
    Dense,
    Div,
    Extreme,
    Insert,
    Mul,
    Pad,
    Reshape,
    Select,
    Slice,
    Sum,
    Take,
    Transpose,
)
from nnac.types import Array

Shape = tuple[int, ...]
ELEMENTWISE = Sum | Mul | Div | Extreme | Select
PASSING = Activation | ELEMENTWISE | Concat | Slice | Pad | Take | Insert


def layout(graph: Graph) -> Graph:
    """Return the graph with as few moves as the rules reach."""
    for _ in range(8 + len(graph.nodes)):
        sweep = _Sweep(graph.draft())
        graph = sweep.run()
        if not sweep.changed:
            break
    return graph


class _Sweep:
    """One walk in topological order; every rule looks at what stands above a node."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.made = draft.producers()
        self.changed = False

    def run(self) -> Graph:
        for name in [node.name for node in sort_nodes(list(self.draft.nodes.values()))]:
            self._visit(self.draft.nodes[name])
        self._borders()
        return self.draft.freeze()

    def _visit(self, node: Node) -> None:
        match node.op:
            case Transpose():
                self._transpose(node)
            case Reshape():
                self._reshape(node)
            case Activation() if len(node.inputs) == 1:
                self._sink(node, node.inputs)
            case Sum() | Mul() | Div() | Extreme() | Select():
                self._sink(node, node.inputs)
            case Concat() | Insert() | Slice() | Pad() | Take():
                self._sink(node, node.inputs)
            case Dense():
                self._dense(node)

    # -- moves over moves ------------------------------------------------------------------------------------------

    def _transpose(self, node: Node) -> None:
        shape = self._shape(node.inputs[0])
        above = self._above(node.inputs[0])
        if above is not None and isinstance(above.op, Transpose):
            perm = tuple(above.op.perm[i] for i in node.op.perm)
            return self._change(node, Transpose(perm), above.inputs[0])
        if [i for i in node.op.perm if shape[i] != 1] == [i for i in range(len(shape)) if shape[i] != 1]:
            self._change(node, Reshape(self._shape(node.output)), node.inputs[0])

    def _reshape(self, node: Node) -> None:
        above = self._above(node.inputs[0])
        if above is not None and isinstance(above.op, Reshape):
            return self._change(node, node.op, above.inputs[0])
        if self._shape(node.inputs[0]) == self._shape(node.output):
            self._drop(node)

    def _drop(self, node: Node) -> None:
        """Let readers of an identity read its input; an output, and what has no origin yet, keep the known name."""
        source, target = self.draft.values[node.inputs[0]], self.draft.values[node.output]
        result = node.output in self.draft.outputs
        if result and any(
            source.name in names for names in (self.draft.inputs, self.draft.outputs, self.draft.constants)
        ):
            return
        if result or source.origin is None:
            self.draft.values[source.name] = replace(source, origin=target.origin)
        self.draft.redirect(node.output, source.name)
        del self.draft.nodes[node.name]
        self.changed = True

    # -- operators over moves --------------------------------------------------------------------------------------

    def _sink(self, node: Node, inputs: Sequence[str]) -> None:
        moves = [self._above(name) for name in inputs]
        lead = next((m for m in moves if m is not None and isinstance(m.op, Transpose)), None)
        lead = lead or next((m for m in moves if m is not None and isinstance(m.op, Reshape)), None)
        if lead is None:
            return
        below = self._below(node, lead)
        moved = [self._unmoved(name, lead) for name in inputs] if below is not None else [None]
        if below is None or any(name is None for name in moved):
            return
        self._rewrite(node, below, [name for name in moved if name is not None], lead)

    def _below(self, node: Node, lead: Node) -> object | None:
        """Return the operator that does the same on the unmoved operands, or None."""
        op, source, target = node.op, self._shape(lead.inputs[0]), self._shape(lead.output)
        if isinstance(op, Activation | ELEMENTWISE):
            same_rank = len(self._shape(node.output)) == len(target)
            return op if same_rank or isinstance(lead.op, Reshape) else None
        if isinstance(lead.op, Transpose):
            return _retarget(op, lead.op.perm)
        return _append_axis(op) if source == (*target, 1) else None

    def _unmoved(self, name: str, lead: Node) -> str | None:
        """Return a value that `lead`'s move turns into value `name`, making one if that is free."""
        above = self._above(name)
        if above is not None and isinstance(above.op, type(lead.op)) and self._same_move(above, lead):
            return above.inputs[0]
        if isinstance(lead.op, Reshape):
            return self._unmoved_constant(name, lead)
        inverse = _inverse(lead.op.perm)
        shape = self._shape(name)
        if prod(shape) == 1:
            return name
        if len(shape) != len(inverse):
            return None
        if name in self.draft.constants:
            return self._constant(name, self.draft.constants[name].transpose(inverse))
        if sum(side != 1 for side in shape) > 1:
            return None
        return self._move(name, Reshape(tuple(shape[i] for i in inverse)), "transpose", lead.op.perm)

    def _unmoved_constant(self, name: str, lead: Node) -> str | None:
        if name not in self.draft.constants:
            return None
        array, source, target = self.draft.constants[name], self._shape(lead.inputs[0]), self._shape(lead.output)
        if array.size == 1:
            return self._constant(name, array.reshape((1,) * len(source)))
        return self._constant(name, array.reshape(source)) if array.shape == target else None

    def _constant(self, name: str, array: Array) -> str:
        """Return a moved constant, pinned as it was."""
        return self.draft.add_constant(name, array, self.draft.values[name].type.quant)

    def _same_move(self, a: Node, b: Node) -> bool:
        if isinstance(a.op, Transpose):
            return bool(a.op == b.op)
        sa, ta, sb, tb = (self._shape(n) for n in (a.inputs[0], a.output, b.inputs[0], b.output))
        return (sa == sb and ta == tb) or (sa == (*ta, 1) and sb == (*tb, 1) and len(sa) == len(sb))

    def _rewrite(self, node: Node, op: object, inputs: list[str], lead: Node) -> None:
        """Let `node` work on unmoved operands and move its result into the old output value."""
        old = self.draft.values[node.output]
        shape = op.infer([self._shape(name) for name in inputs])  # type: ignore[attr-defined]
        step, arg = ("transpose", lead.op.perm) if isinstance(lead.op, Transpose) else ("reshape", old.shape)
        if step == "reshape" and prod(shape) != prod(old.shape):
            return
        origin = old.origin.after(step, arg) if old.origin else None
        new = Value(self.draft.fresh(old.name), replace(old.type, shape=shape), origin)
        self.draft.values[new.name] = new
        changed = self.draft.update(node, op=op, inputs=tuple(inputs), output=new.name)
        self.made[new.name] = changed
        move = Transpose(lead.op.perm) if isinstance(lead.op, Transpose) else Reshape(old.shape)
        self.made[old.name] = self.draft.add_node(f"{node.name}.{step}", move, [new.name], old)
        self.changed = True

    def _move(self, name: str, op: Reshape, step: str, arg: Shape) -> str:
        value = self.draft.values[name]
        origin = value.origin.after(step, arg) if value.origin else None
        new = Value(self.draft.fresh(name), replace(value.type, shape=op.shape), origin)
        self.made[new.name] = self.draft.add_node(f"{name}.reshape", op, [name], new)
        return new.name

    def _dense(self, node: Node) -> None:
        """Permute weight columns instead of the activation: Dense(Reshape(Transpose(x))) = Dense'(Reshape(x))."""
        flat = self._above(node.inputs[0])
        turn = flat and isinstance(flat.op, Reshape) and self._above(flat.inputs[0])
        if not flat or not turn or not isinstance(turn.op, Transpose):
            return
        perm, turned, depth = turn.op.perm, self._shape(turn.output), self._shape(node.inputs[0])[-1]
        lead = next((i for i in range(len(perm)) if prod(turned[i:]) == depth), None)
        if lead is None or perm[:lead] != tuple(range(lead)):
            return
        weight = self.draft.constants[node.inputs[1]]
        inverse = np.argsort(perm[lead:])
        columns = weight.reshape(-1, *turned[lead:]).transpose(0, *(1 + int(i) for i in inverse))
        name = self.draft.add_constant(node.inputs[1], np.ascontiguousarray(columns.reshape(weight.shape)))
        source = self.draft.values[turn.inputs[0]]
        shape = self._shape(node.inputs[0])
        origin = source.origin.after("reshape", source.shape) if source.origin else None
        new = Value(self.draft.fresh(flat.output), replace(source.type, shape=shape), origin)
        self.made[new.name] = self.draft.add_node(f"{flat.name}.flat", Reshape(shape), [source.name], new)
        self.draft.update(node, inputs=(new.name, name, *node.inputs[2:]))
        self.changed = True

    # -- the border ------------------------------------------------------------------------------------------------

    def _borders(self) -> None:
        for name in list(self.draft.inputs):
            self._absorb_input(self.draft.values[name], self.draft.users())
        users = self.draft.users()
        made = self.draft.producers()
        for name in list(self.draft.outputs):
            node = made.get(name)
            if node is not None and isinstance(node.op, Transpose | Reshape) and not users[name]:
                self._absorb_output(node)

    def _absorb_input(self, value: Value, users: Mapping[str, list[Node]]) -> None:
        """Let the host write an input as a move makes it: the only move, or the one to channels last."""
        op = self._input_move(value, users)
        taken = [reader for reader in users[value.name] if reader.op == op]
        if op is None or any(name in self.draft.outputs for name in (value.name, *(r.output for r in taken))):
            return
        assert value.origin is not None
        back = Transpose(_inverse(op.perm)) if isinstance(op, Transpose) else Reshape(value.shape)
        step = ("reshape", back.shape) if isinstance(back, Reshape) else ("transpose", back.perm)
        self._read_back(value, [reader for reader in users[value.name] if reader.op != op], back)
        self.draft.values[value.name] = replace(
            value, type=replace(value.type, shape=op.infer([value.shape])), origin=value.origin.after(*step)
        )
        for reader in taken:
            self.draft.redirect(reader.output, value.name)
            del self.draft.nodes[reader.name]
        self.changed = True

    def _input_move(self, value: Value, users: Mapping[str, list[Node]]) -> Transpose | Reshape | None:
        """Return the move that all readers of an input make; else the one to channels last if a reader comes to it."""
        readers = users[value.name]
        moves = dict.fromkeys(reader.op for reader in readers if isinstance(reader.op, Transpose | Reshape))
        state = value.name in self.draft.states
        if len(moves) == 1 and all(reader.op in moves for reader in readers):
            move = next(iter(moves))
            return None if state and isinstance(move, Transpose) else move
        if state:
            return None
        steps = value.origin.steps if value.origin is not None else ()
        fresh = not any(step == "transpose" for step, _ in steps)
        return _channels_last(value.shape) if fresh and self._comes_to_channels_last(value.name, users) else None

    def _comes_to_channels_last(self, name: str, users: Mapping[str, list[Node]]) -> bool:
        """Tell whether a value, or what operators that let moves pass make of it, is read channels last."""
        waiting, seen = [name], {name}
        while waiting:
            name = waiting.pop()
            wanted = _channels_last(self._shape(name))
            if any(reader.op == wanted for reader in users[name]):
                return True
            passing = [r.output for r in users[name] if isinstance(r.op, PASSING)]
            waiting += [output for output in passing if output not in seen]
            seen.update(passing)
        return False

    def _read_back(self, value: Value, readers: list[Node], back: Transpose | Reshape) -> None:
        """Let `readers` of an input that is about to be moved read it moved back."""
        if not readers:
            return
        old = replace(value, name=self.draft.fresh(value.name))
        self.draft.add_node(f"{value.name}.back", back, [value.name], old)
        for reader in readers:
            names = tuple(old.name if name == value.name else name for name in reader.inputs)
            self.draft.update(reader, inputs=names)

    def _absorb_output(self, node: Node) -> None:
        source, target = self.draft.values[node.inputs[0]], self.draft.values[node.output]
        taken = (*self.draft.inputs, *self.draft.outputs, *self.draft.constants)
        if source.name in taken or target.origin is None:
            return
        if target.name in self.draft.states.values() and isinstance(node.op, Transpose):
            return
        step = ("transpose", node.op.perm) if isinstance(node.op, Transpose) else ("reshape", target.shape)
        self.draft.values[source.name] = replace(source, origin=target.origin.after(*step))
        self.draft.redirect(node.output, source.name)
        del self.draft.nodes[node.name]
        self.changed = True

    # -- looking around --------------------------------------------------------------------------------------------

    def _shape(self, name: str) -> Shape:
        return self.draft.values[name].shape

    def _above(self, name: str) -> Node | None:
        """Return the move that makes value `name`, if one does."""
        node = self.made.get(name)
        node = self.draft.nodes.get(node.name) if node is not None else None
        return node if node is not None and isinstance(node.op, Transpose | Reshape) and node.output == name else None

    def _change(self, node: Node, op: object, source: str) -> None:
        self.made[node.output] = self.draft.update(node, op=op, inputs=(source,))
        self.changed = True
        if isinstance(op, Transpose) and op.perm == tuple(range(len(op.perm))):
            self._change(self.made[node.output], Reshape(self._shape(node.output)), source)
        elif isinstance(op, Reshape):
            self._reshape(self.made[node.output])


def _inverse(perm: Shape) -> Shape:
    """Return the permutation that undoes `perm`."""
    return tuple(int(i) for i in np.argsort(perm))


def _channels_last(shape: Shape) -> Transpose | Reshape | None:
    """Return the frontend's move from (N, C, H, W) to channels last, or its first step from (N, C, L)."""
    if len(shape) == 4:
        return Transpose((0, 2, 3, 1))
    return Reshape((*shape, 1)) if len(shape) == 3 else None


def _retarget(op: object, perm: Shape) -> object | None:
    """Return a mover for operands before a transpose by `perm`."""
    inverse = _inverse(perm)

    def back(values: Shape) -> Shape:
        return tuple(values[i] for i in inverse)

    match op:
        case Concat(axis):
            return Concat(perm[axis])
        case Slice(starts, steps, sizes):
            return Slice(back(starts), back(steps), back(sizes))
        case Pad(before, after, value):
            return Pad(back(before), back(after), value)
        case Take(picks):
            return Take(tuple(picks[i] for i in inverse))
        case Insert(boxes):
            return Insert(tuple((back(starts), back(steps)) for starts, steps in boxes))
    return None


def _append_axis(op: object) -> object | None:
    """Return a mover for operands with one more trailing axis of length one."""
    match op:
        case Concat(axis):
            return Concat(axis)
        case Slice(starts, steps, sizes):
            return Slice((*starts, 0), (*steps, 1), (*sizes, 1))
        case Pad(before, after, value):
            return Pad((*before, 0), (*after, 0), value)
        case Take(picks):
            return Take((*picks, ()))
        case Insert(boxes):
            return Insert(tuple(((*starts, 0), (*steps, 1)) for starts, steps in boxes))
    return None
