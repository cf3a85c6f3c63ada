"""From a traced model to steps of a twin: fusion, shared quantizations, natural ranges, as the compiler has them.

Rules, those of `nnac.passes.fuse` and `nnac.passes.quantize` as far as a twin's operators need them:

1. a ReLU or clamp behind a layer, norm, sum, product, mean or largest value that nothing else reads becomes its clamp;
2. values joined by what changes no value share a scale, and so do an LSTM's hidden values, coming in and going out;
3. sigmoid, tanh and softmax have the range of their function;
4. residual streams are int16, as `nnac.passes.accumulated` says: what only norms and sums read, and is no result, at
   least one of each; with it go what is added to it and their sums, as far as all that shares their scales is so too.

Every other value has a scale of its own, which the export pins: the compiler then joins nothing across it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from nnac.calibration import Range
from nnac.errors import ModelError, raise_all
from nnac.ops.activation import FIXED_RANGES
from nnac.ops.recurrent import UNIT
from nnac.ops.softmax import FIXED_RANGE
from nnac.targets import Arithmetic
from nnac.train import steps
from nnac.train.scales import CELL, INT8, INT16, Scale
from nnac.types import Quant

Params = tuple[float, ...]

FUNCTIONS: dict[Any, Callable[..., tuple[str, Params]]] = {
    torch.relu: lambda: ("relu", ()),
    F.relu: lambda inplace=False: ("relu", ()),
    "relu": lambda: ("relu", ()),
    F.relu6: lambda inplace=False: ("clip", (0.0, 6.0)),
    torch.clamp: lambda min=-inf, max=inf: ("clip", (min, max)),
    "clamp": lambda min=-inf, max=inf: ("clip", (min, max)),
    torch.sigmoid: lambda: ("sigmoid", ()),
    F.sigmoid: lambda: ("sigmoid", ()),
    "sigmoid": lambda: ("sigmoid", ()),
    torch.tanh: lambda: ("tanh", ()),
    F.tanh: lambda: ("tanh", ()),
    "tanh": lambda: ("tanh", ()),
    F.leaky_relu: lambda negative_slope=0.01, inplace=False: ("leaky_relu", (negative_slope,)),
    F.gelu: lambda approximate="none": ("gelu" if approximate == "none" else "gelu_tanh", ()),
    F.silu: lambda inplace=False: ("swish", (1.0,)),
    F.hardswish: lambda inplace=False: ("hard_swish", ()),
    F.hardsigmoid: lambda inplace=False: ("hard_sigmoid", (1 / 6, 0.5)),
    F.mish: lambda inplace=False: ("mish", ()),
    F.elu: lambda alpha=1.0, inplace=False: ("elu", (alpha,)),
    F.softsign: lambda: ("softsign", ()),
}
"""Functions of one value, by torch function or method name: from their other arguments to kind and parameters."""

MODULES: dict[type[nn.Module], Callable[[Any], tuple[str, Params]]] = {
    nn.ReLU: lambda m: ("relu", ()),
    nn.ReLU6: lambda m: ("clip", (0.0, 6.0)),
    nn.Hardtanh: lambda m: ("clip", (m.min_val, m.max_val)),
    nn.Sigmoid: lambda m: ("sigmoid", ()),
    nn.Tanh: lambda m: ("tanh", ()),
    nn.LeakyReLU: lambda m: ("leaky_relu", (m.negative_slope,)),
    nn.GELU: lambda m: ("gelu" if m.approximate == "none" else "gelu_tanh", ()),
    nn.SiLU: lambda m: ("swish", (1.0,)),
    nn.Hardswish: lambda m: ("hard_swish", ()),
    nn.Hardsigmoid: lambda m: ("hard_sigmoid", (1 / 6, 0.5)),
    nn.Mish: lambda m: ("mish", ()),
    nn.ELU: lambda m: ("elu", (m.alpha,)),
    nn.Softsign: lambda m: ("softsign", ()),
}

MOVES = frozenset(
    (
        torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.unsqueeze, torch.squeeze, torch.cat,
        torch.chunk, torch.split, operator.getitem,
        "view", "reshape", "flatten", "transpose", "permute", "unsqueeze", "squeeze", "contiguous", "chunk", "split",
    )
)  # fmt: skip
MOVING = nn.Identity | nn.Dropout | nn.Flatten | nn.MaxPool1d | nn.MaxPool2d
SUMS = {operator.add: 1, operator.iadd: 1, torch.add: 1, "add": 1, operator.sub: -1, torch.sub: -1, "sub": -1}
PRODUCTS = frozenset((operator.mul, operator.imul, torch.mul, "mul"))
QUOTIENTS = frozenset((operator.truediv, operator.itruediv, torch.div, "div"))
NEGATIONS = frozenset((operator.neg, torch.neg, "neg"))
MEANS = nn.AvgPool1d | nn.AvgPool2d | nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d
AFFINE = nn.Linear | nn.Conv1d | nn.Conv2d
SOFTMAX = frozenset((torch.softmax, F.softmax, "softmax"))
POOLS = nn.MaxPool1d | nn.MaxPool2d

SUPPORTED = (
    "Linear, Conv1d, Conv2d (any groups), LSTM, GRU, Embedding, LayerNorm, Softmax, BatchNorm behind a layer, MaxPool, "
    "AvgPool, AdaptiveAvgPool to 1, Dropout, add, sub, mul (and div by a number), cat, views, and "
    + ", ".join(module.__name__ for module in MODULES)
)


@dataclass(slots=True)
class Plan:
    """A traced model on the accelerator.

    Attributes:
        nodes: in order.
        steps: by node; sizes and the output have none.
        kinds: by node, the scale of its values; a tuple for results that are tuples; None for what is no activation.
        observed: nodes whose float values decide their group's range.
        inside: nodes that are fused into the one behind them.
        clamps: of nodes with a fused clamp, and of the clamps that are fused.
        scales: by name.
    """

    nodes: list[fx.Node]
    steps: dict[fx.Node, Any] = field(default_factory=dict)
    kinds: dict[fx.Node, Any] = field(default_factory=dict)
    observed: set[fx.Node] = field(default_factory=set)
    inside: set[fx.Node] = field(default_factory=set)
    clamps: dict[fx.Node, tuple[float, float]] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)

    def makes(self, node: fx.Node) -> bool:
        """Tell whether a node makes values, rather than moves those of another one."""
        fused = node in self.clamps and node not in self.inside
        return not isinstance(self.steps.get(node), steps.Move) or fused

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments that a node's step takes: those of what is moved, else values alone."""
        if isinstance(self.steps[node], steps.Move | steps.Recurrent):
            return node.args, node.kwargs
        return tuple(node.all_input_nodes), {}


def plan(model: fx.GraphModule, law: Arithmetic, learned: bool) -> Plan:
    """Return the plan of a traced model.

    Raises:
        ModelError: something is not supported; all such places are listed.
    """
    return _Planner(model, law, learned).plan


def module_of(model: nn.Module, node: fx.Node) -> Any:
    """Return the module that a node calls, or None."""
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def function(model: nn.Module, node: fx.Node) -> tuple[str, Params] | None:
    """Return kind and parameters of a node that is a function of one value, or None."""
    module = module_of(model, node)
    if type(module) in MODULES:
        kind, params = MODULES[type(module)](module)
    elif node.op in ("call_function", "call_method") and node.target in FUNCTIONS:
        kind, params = FUNCTIONS[node.target](*node.args[1:], **node.kwargs)
    elif (found := _with_number(node)) is not None:
        kind, params = "affine", found
    else:
        return None
    return kind, tuple(float(np.float32(value)) for value in params)  # as ONNX's attributes hold them


def _with_number(node: fx.Node) -> Params | None:
    """Return scale and offset of a node that computes with one value and one number, or None."""
    if node.op not in ("call_function", "call_method") or node.kwargs or len(node.all_input_nodes) != 1:
        return None
    if node.target in NEGATIONS:
        return -1.0, 0.0
    numbers = [arg for arg in node.args if isinstance(arg, int | float)]
    if len(node.args) != 2 or len(numbers) != 1:
        return None
    number, leads, sign = float(numbers[0]), node.args[0] is numbers[0], SUMS.get(node.target)
    if sign is not None:
        return (sign, number) if leads else (1.0, sign * number)
    if node.target in QUOTIENTS and number and not leads:
        return 1 / number, 0.0
    return (number, 0.0) if node.target in PRODUCTS else None


def softmax_axis(model: nn.Module, node: fx.Node) -> int | None:
    """Return the axis of a node that is a softmax, or None."""
    module = module_of(model, node)
    if isinstance(module, nn.Softmax):
        return module.dim
    if node.op not in ("call_function", "call_method") or node.target not in SOFTMAX:
        return None
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return axis


class _Planner:
    """Builds a plan: shared scales first, steps then."""

    def __init__(self, model: fx.GraphModule, law: Arithmetic, learned: bool) -> None:
        self.model, self.law, self.learned = model, law, learned
        self.plan = Plan(list(model.graph.nodes))
        self.parent: dict[str, str] = {}
        self.names: dict[fx.Node, Any] = {}
        self.clamps = self.plan.clamps
        self.wide: set[str] = set()
        self.problems: list[str] = []
        self._fuse()
        for node in self.plan.nodes:
            self._name(node)
        raise_all(ModelError, f"the twin has no such operators (it has {SUPPORTED}):", self.problems)
        self.wide = self._wide()
        self._scales()
        for node in self.plan.nodes:
            self._step(node)

    # -- fusion ----------------------------------------------------------------------------------------------------

    def _fuse(self) -> None:
        """Find the clamps that go into the operator in front of them (rule 1)."""
        for node in self.plan.nodes:
            clamp = self._clamp(node)
            chain = list(self._before(node)) if clamp is not None else []
            maker = chain[-1] if chain else None
            if clamp is None or maker is None or not self._clamps(maker):
                continue
            low, high = self.clamps.get(maker, (-inf, inf))
            low, high = max(low, clamp[0]), min(high, clamp[1])
            if low <= high:
                self.clamps[maker] = (low, high)
                self.clamps[node] = (low, high)
                self.plan.inside |= set(chain)
                for part in chain:
                    self._join(part.name, node.name)

    def _clamp(self, node: fx.Node) -> tuple[float, float] | None:
        match function(self.model, node):
            case ("relu", _):
                return 0.0, inf
            case ("clip", (low, high)):
                return low, high
        return None

    def _before(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield what stands before a node up to what makes the value, as long as nothing else reads it."""
        source = node.args[0]
        while isinstance(source, fx.Node) and len(source.users) == 1:
            yield source
            if source in self.clamps or not self._moves(source) or self._pools(source):
                return
            source = source.args[0]

    def _pools(self, node: fx.Node) -> bool:
        return isinstance(module_of(self.model, node), POOLS)

    def _clamps(self, node: fx.Node) -> bool:
        module = module_of(self.model, node)
        computes = _arithmetic(node) and len(node.all_input_nodes) == 2
        return isinstance(module, AFFINE | MEANS | nn.LayerNorm) or computes or self._pools(node)

    def _moves(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(module_of(self.model, node), MOVING)
        return node.op in ("call_function", "call_method") and node.target in MOVES

    # -- scales ----------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> str:
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def _join(self, one: str, other: str) -> None:
        self.parent[self._find(one)] = self._find(other)

    def _name(self, node: fx.Node) -> None:
        """Give a node's values names of groups, those that share one joined (rule 2)."""
        module = module_of(self.model, node)
        if node.op == "output" or self._plain(node):
            self.names[node] = None
        elif node.target is not operator.getitem and any(map(self._state, node.all_input_nodes)):
            self._refuse(node, "a layer reads the last states of an LSTM or GRU; take the last hidden values instead")
        elif isinstance(module, nn.LSTM | nn.GRU):
            self._name_recurrent(node, module)
        elif node.op == "get_attr":
            self._refuse(node, "a tensor of the model itself; compute with layers, or make it an input")
        elif node.target is operator.getitem and isinstance(self.names[node.args[0]], tuple):
            self.names[node] = self.names[node.args[0]][node.args[1]]
        elif self._moves(node):
            self._name_move(node)
        else:
            self.names[node] = node.name
            self._check(node, module)

    def _plain(self, node: fx.Node) -> bool:
        """Tell whether a node computes with sizes only."""
        if node.op == "placeholder":
            users = [module_of(self.model, user) for user in node.users]
            return bool(users) and all(isinstance(user, nn.Embedding) for user in users)
        known = [self.names.get(arg) for arg in node.all_input_nodes]
        if node.target in ("size", "dim") or (node.target is getattr and node.args[1] == "shape"):
            return True
        return node.op in ("call_function", "call_method") and bool(known) and not any(known)

    def _state(self, node: fx.Node) -> bool:
        """Tell whether a node's values are what only an output, or a next call, can take."""
        name = self.names[node]
        return isinstance(name, _Mixed | Quant) or (isinstance(name, str) and name.endswith(".c"))

    def _name_move(self, node: fx.Node) -> None:
        sources = [arg for arg in node.all_input_nodes if self.names[arg] is not None]
        for source in sources:
            self._join(node.name, str(self.names[source]))
        several = node.target in (torch.chunk, torch.split, "chunk", "split")
        self.names[node] = _Everywhere((node.name,)) if several else node.name

    def _name_recurrent(self, node: fx.Node, module: Any) -> None:
        if getattr(module, "proj_size", 0):
            self._refuse(node, "an LSTM with projections")
        if module.dropout:
            self._refuse(node, "dropout between the layers of an LSTM or GRU; use one module per layer and Dropout")
        count, last = module.num_layers * (1 + module.bidirectional), ""
        for layer in range(module.num_layers):
            hidden = [f"{node.name}.{suffix}" for suffix in suffixes(module, layer)]
            for name in hidden[1:]:
                self._join(name, hidden[0])
            last = hidden[0]
        self._join(node.name, last)
        single = node.name if count == 1 else _Mixed()
        if isinstance(module, nn.GRU):
            self.names[node] = (node.name, UNIT)
            return
        cell = f"{node.name}.l0.c" if count == 1 else _Mixed()
        self.names[node] = (node.name, (single, cell))
        if len(node.args) > 1:
            self._tie_states(node, single, cell)

    def _tie_states(self, node: fx.Node, hidden: Any, cell: Any) -> None:
        """Let given initial states share the scales of the states."""
        given = node.args[1]
        if isinstance(hidden, _Mixed) or not isinstance(given, tuple | list):
            return self._refuse(node, "initial states of several layers; use one module per layer")
        for source, name in zip(given, (hidden, cell), strict=True):
            self._join(str(self.names[source]), name)

    def _check(self, node: fx.Node, module: Any) -> None:
        """Refuse what no step does."""
        if node.op == "placeholder" or isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding):
            return
        if function(self.model, node) is not None or softmax_axis(self.model, node) is not None:
            return
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                self._refuse(node, "padding other than zeros, given as numbers")
            return
        if isinstance(module, MEANS):
            return self._check_mean(node, module)
        if not _arithmetic(node):
            self._refuse(node, f"{type(module).__name__ if module is not None else node.target}")
        elif len(node.all_input_nodes) != 2 or any(isinstance(self.names[n], tuple) for n in node.all_input_nodes):
            self._refuse(
                node, "a sum or product of two different tensors, or with a number, is possible; with itself not"
            )
        elif node.kwargs:
            self._refuse(node, f"{', '.join(node.kwargs)} of a sum; write a product with a number in front of it")

    def _check_mean(self, node: fx.Node, module: Any) -> None:
        if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d):
            sides = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,)
            if any(side != 1 for side in sides):
                self._refuse(node, "an adaptive mean to more than one place")
        elif module.ceil_mode or getattr(module, "divisor_override", None):
            self._refuse(node, "a mean with ceil_mode or divisor_override")

    def _refuse(self, node: fx.Node, what: str) -> None:
        self.names.setdefault(node, None)
        self.problems.append(f"{node.target if node.op == 'call_module' else node.name!s}: {what}")

    # -- residual streams ------------------------------------------------------------------------------------------

    def _wide(self) -> set[str]:
        """Return the groups that are int16 (rule 4)."""
        made = [node for node in self.plan.nodes if isinstance(self.names[node], str)]
        readers = {node: list(self._readers(node)) for node in made}
        private = {node for node in made if self._widens(node) and all(map(self._accumulates, readers[node]))}
        wide: set[str] = set()
        for node in private:
            sums = [reader for reader in readers[node] if reader is not None and self._sums(reader)]
            if 0 < len(sums) < len(readers[node]):
                added = [arg for each in sums for arg in each.all_input_nodes if self._added(arg, readers)]
                wide |= {self._find(self.names[each]) for each in (node, *sums, *added)}
        rest = [name for node in self.plan.nodes if node not in private for name in _strings(self.names[node])]
        return wide - set(map(self._find, rest))

    def _readers(self, node: fx.Node) -> Iterator[fx.Node | None]:
        """Yield who reads a value, perhaps through moves and fused clamps; None stands for the world outside."""
        for user in node.users:
            if user.op == "output":
                yield None
            elif self._moves(user) or node in self.plan.inside:
                yield from self._readers(user)
            else:
                yield user

    def _sums(self, node: fx.Node) -> bool:
        return _arithmetic(node) and node.target in SUMS and len(node.all_input_nodes) == 2

    def _accumulates(self, node: fx.Node | None) -> bool:
        return node is not None and (self._sums(node) or isinstance(module_of(self.model, node), nn.LayerNorm))

    def _added(self, node: fx.Node, readers: Mapping[fx.Node, Sequence[fx.Node | None]]) -> bool:
        """Tell whether a layer makes a value, perhaps through moves, for one sum only."""
        if len(readers.get(node, ())) != 1:
            return False
        while self._moves(node) or (node in self.clamps and function(self.model, node) is not None):
            node = node.all_input_nodes[0]
        return isinstance(module_of(self.model, node), AFFINE)

    def _widens(self, node: fx.Node) -> bool:
        """Tell whether a node can make int16."""
        module, clamp = module_of(self.model, node), node in self.clamps and function(self.model, node) is not None
        makes = isinstance(module, AFFINE | nn.LayerNorm | nn.Embedding) or node.op == "placeholder" or clamp
        return makes or self._moves(node) or self._sums(node)

    # -- scales ----------------------------------------------------------------------------------------------------

    def _scales(self) -> None:
        """Make one scale per group, with natural ranges where functions have one (rule 3)."""
        for node in self.plan.nodes:
            self.plan.kinds[node] = self._kinds(self.names[node])
            natural = self._natural(node)
            if natural is not None and isinstance(scale := self.plan.kinds[node], Scale):
                scale.set(Range(min(natural[0], float(scale.low)), max(natural[1], float(scale.high))))
            elif node not in self.plan.inside and isinstance(self.plan.kinds[node], Scale):
                self.plan.observed.add(node)

    def _natural(self, node: fx.Node) -> tuple[float, float] | None:
        if softmax_axis(self.model, node) is not None:
            return FIXED_RANGE
        found = function(self.model, node)
        return FIXED_RANGES.get(found[0]) if found is not None else None

    def _kinds(self, name: Any) -> Any:
        if isinstance(name, _Everywhere):
            return _Everywhere((self._kinds(name[0]),))
        if isinstance(name, tuple):
            return tuple(self._kinds(part) for part in name)
        return self.scale(name) if isinstance(name, str) else name

    def scale(self, name: str) -> Scale:
        """Return the scale of a group of values by the name of one of them."""
        root = self._find(name)
        if root not in self.plan.scales:
            cell = any(name.endswith(".c") for name in (root, *self.parent) if self._find(name) == root)
            kind = CELL if cell else INT16 if root in self.wide else INT8
            self.plan.scales[root] = Scale(root, self.law.power_of_two_scales, kind, self.learned)
        return self.plan.scales[root]

    # -- steps -----------------------------------------------------------------------------------------------------

    def _step(self, node: fx.Node) -> None:
        if node.op == "output":
            return
        module, kinds = module_of(self.model, node), self.plan.kinds
        result = kinds[node]
        sources = tuple(kinds[arg] for arg in node.all_input_nodes)
        clamp = self.clamps.get(node, (-inf, inf))
        kind = function(self.model, node)
        step: Any = None
        if node.op == "placeholder":
            step = steps.Enter(result) if result is not None else None
        elif result is None:
            step = steps.Move(_runner(self.model, node))
        elif isinstance(module, nn.Embedding):
            step = steps.Embed(module, result)
        elif isinstance(module, AFFINE):
            step = steps.Affine(module, sources[0], result, clamp)
        elif isinstance(module, nn.LSTM | nn.GRU):
            step = self._recurrent(node, module, sources[0])
        elif isinstance(module, MEANS):
            step = _mean(module, sources[0], result, clamp)
        elif node in self.clamps and kind is not None:
            step = steps.Move(lambda c, *args, **kwargs: c)
        elif kind is not None:
            step = steps.Function(*kind, sources[0], result)
        elif isinstance(module, nn.LayerNorm):
            step = steps.Norm(module, sources[0], result, clamp)
        elif (axis := softmax_axis(self.model, node)) is not None:
            step = steps.Softmax(axis, sources[0], result)
        elif self._moves(node):
            step = self._move(node, result, clamp)
        elif node.target in SUMS:
            step = steps.Sum((1, SUMS[node.target]), sources, result, clamp)
        else:
            step = steps.Product(sources, result, clamp)
        if step is not None:
            self.plan.steps[node] = step

    def _move(self, node: fx.Node, result: Any, clamp: tuple[float, float]) -> Any:
        run = _runner(self.model, node)
        if node not in self.clamps:
            return steps.Move(run)
        clip = steps.Clip(result, clamp)
        return steps.Move(lambda *args, **kwargs: clip(self.law, run(*args, **kwargs)))

    def _recurrent(self, node: fx.Node, module: Any, source: Scale) -> steps.Recurrent:
        layers = []
        for index in range(module.num_layers):
            names = [f"{node.name}.{suffix}" for suffix in suffixes(module, index)]
            cells = [self.scale(f"{name}.c") if isinstance(module, nn.LSTM) else None for name in names]
            ends = suffixes(module, index)
            parts = zip(ends, names, cells, strict=True)
            layers.append(tuple(steps.Layer(end, source, self.scale(name), cell) for end, name, cell in parts))
            source = self.scale(names[0])
        return steps.Recurrent(module, tuple(layers))


def _arithmetic(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and (node.target in SUMS or node.target in PRODUCTS)


class _Everywhere(tuple[Any, ...]):
    """A tuple of any length whose entries are all alike: the parts of a split."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(0)


class _Mixed:
    """The states of several layers side by side, each in its own scale: of no use as one tensor."""


def _strings(name: Any) -> Iterator[str]:
    """Yield the names of groups among a node's."""
    if isinstance(name, str):
        yield name
    for part in name if isinstance(name, tuple) else ():
        yield from _strings(part)


def suffixes(module: Any, layer: int) -> list[str]:
    """Return the endings of the parameters of a recurrent module's layer, one per direction."""
    return [f"l{layer}", f"l{layer}_reverse"][: 1 + module.bidirectional]


def _mean(module: Any, source: Scale, result: Scale, clamp: tuple[float, float]) -> steps.Mean:
    rank = 1 if isinstance(module, nn.AvgPool1d | nn.AdaptiveAvgPool1d) else 2
    if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d):
        return steps.Mean((), (), (), False, rank, source, result, clamp)

    def sides(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, tuple | list) else (int(value),) * rank

    parts = sides(module.kernel_size), sides(module.stride), sides(module.padding)
    return steps.Mean(*parts, bool(module.count_include_pad), rank, source, result, clamp)


def _runner(model: nn.Module, node: fx.Node) -> Any:
    """Return a node's operator as a function."""
    if node.op == "call_module":
        return module_of(model, node)
    if node.op == "call_method":
        return operator_of(str(node.target))
    return node.target


def operator_of(name: str) -> Any:
    """Return a function that calls a method of its first argument."""
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)
