"""From a twin to files that `nnac compile` takes as they are: a float ONNX model and the twin's scales beside it.

The model holds the real weights, from which the compiler makes the twin's integers by the same rules (clustered weights
keep their levels: `nnac.passes.centroid_folding`); the scales of activations and states stand in an AIMET-style
`.encodings` file. `nnac compile model.onnx --encodings model.encodings` needs no calibration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from nnac.compiler import executed_graph, float_graph, integer_graph
from nnac.errors import ModelError, raise_all
from nnac.frontend import prepare, with_encodings
from nnac.graph import Graph
from nnac.ops.recurrent import UNIT
from nnac.passes.quantize import unpinned
from nnac.program import write_file
from nnac.reference import run as run_reference
from nnac.train import steps
from nnac.train.emulate import Twin
from nnac.train.plan import POOLS, function, module_of
from nnac.train.scales import Scale
from nnac.types import Array, Quant

OPSET, IR = 20, 9
GATE_ORDER = {4: (0, 3, 1, 2), 3: (1, 0, 2)}
"""ONNX's gates (i, o, f, c and z, r, h) as places in torch's order."""
FUNCTION_OPS = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "hard_swish": "HardSwish",
    "mish": "Mish",
    "softsign": "Softsign",
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export` wrote.

    Attributes:
        model: the ONNX file.
        encodings: the scales.
        inputs: names of the graph's inputs for the twin's arguments; what an Embedding makes is such an input.
        outputs: names of the graph's outputs for the twin's results.
        states: pairs of inputs and outputs that the device keeps between calls.
    """

    model: Path
    encodings: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    states: dict[str, str]


def export(
    twin: Twin, path: str | os.PathLike[str], example: Any, *, states: bool = False, check: bool = True
) -> Exported:
    """Write a twin as ONNX with its scales beside it.

    An Embedding is looked up by the host: its rows are an input of the exported graph, named after its node.

    Args:
        twin: in evaluation mode; its scales are known.
        path: of the `.onnx` file; the scales go to the same name with the ending `.encodings`.
        example: inputs of the twin (a tensor or a tuple) whose shapes the exported graph has.
        states: make the states of LSTMs and GRUs inputs and outputs, kept by the device from call to call.
        check: compile to integers and compare every tensor with the twin's on the example, bit by bit.

    Raises:
        ModelError: a tensor differs, or something cannot be written.
    """
    inputs = tuple(example) if isinstance(example, tuple | list) else (example,)
    training = twin.training
    twin.eval()
    writer = _Writer(twin, states)
    writer.run(*inputs)
    file = Path(path)
    scales = file.with_suffix(".encodings")
    write_file(file, writer.model().SerializeToString())
    write_file(scales, (json.dumps(writer.encodings(), indent=1) + "\n").encode())
    found = Exported(file, scales, tuple(writer.inputs), tuple(writer.results), writer.states)
    if check:
        verify(twin, found, inputs)
    twin.train(training)
    return found


def verify(twin: Twin, exported: Exported, inputs: Sequence[Any]) -> int:
    """Compare all tensors of the compiled integer graph with the twin's; return how many there are.

    Raises:
        ModelError: one differs in any bit, or the compiler would have to calibrate one.
    """
    graph, values = reference_values(twin, exported, inputs)
    expected = twin.integers(*inputs)
    problems, compared = [], 0
    for name, array in values.items():
        origin = graph.values[name].origin
        if origin is None or origin.name not in expected:
            continue
        wanted = expected[origin.name].cpu().numpy()
        found = origin.to_onnx(array).astype(np.int64)
        compared += 1
        if found.shape != wanted.shape or (found != wanted).any():
            wrong = int((found != wanted).sum()) if found.shape == wanted.shape else found.size
            problems.append(f"{origin.name!r}: {wrong} of {found.size} integers differ")
    raise_all(ModelError, "the compiled graph is not the twin:", problems)
    return compared


def reference_values(twin: Twin, exported: Exported, inputs: Sequence[Any]) -> tuple[Graph, dict[str, Array]]:
    """Return the integer graph that the compiler makes of an export, and its tensors for the twin's inputs."""
    graph = float_graph(prepare(with_encodings(exported.model, exported.encodings)), exported.states)
    open_ = unpinned(graph)
    if open_:
        raise ModelError(f"these tensors have no scale: {', '.join(map(repr, open_))}")
    legal = executed_graph(integer_graph(graph, {}, twin.target), twin.target)
    known, given = twin.integers(*inputs), {}
    for name in legal.inputs:
        value = legal.values[name]
        assert value.origin is not None
        shape = value.origin.onnx_shape(value.shape)
        array = known[value.origin.name].cpu().numpy() if value.origin.name in known else _rest(value.type.quant, shape)
        given[name] = value.origin.from_onnx(np.asarray(array), value.shape).astype(value.type.dtype)
    return legal, run_reference(legal, given, twin.target.arithmetic)


def _rest(quant: Quant | None, shape: tuple[int, ...]) -> Array:
    """Return a state of zeros."""
    return np.full(shape, quant.zero_point if quant is not None else 0)


# -- the writer ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Parts:
    """An ONNX graph under construction."""

    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)


class _Writer(fx.Interpreter):
    """Runs the float model for the shapes and writes each node."""

    def __init__(self, twin: Twin, stateful: bool) -> None:
        super().__init__(twin.model)
        self.twin, self.stateful, self.parts = twin, stateful, _Parts()
        self.names: dict[fx.Node, Any] = {}
        self.scales: dict[str, Quant] = {}
        self.inputs: list[str] = []
        self.results: list[str] = []
        self.states: dict[str, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and write it."""
        with torch.no_grad():
            result = super().run_node(n)
        self._write(n, result)
        return result

    def model(self) -> onnx.ModelProto:
        """Return the model."""
        parts = self.parts
        graph = helper.make_graph(parts.nodes, "twin", parts.inputs, parts.outputs, parts.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        made.producer_name = "nnac.train"
        return made

    def encodings(self) -> dict[str, Any]:
        """Return the scales as AIMET writes them: real = scale * (q + offset), q from zero."""

        def entry(quant: Quant) -> dict[str, Any]:
            offset = quant.low - quant.zero_point
            return {
                "bitwidth": quant.bits,
                "dtype": "int",
                "is_symmetric": str(quant.bits == 16),
                "min": quant.scale * offset,
                "max": quant.scale * (quant.high - quant.zero_point),
                "offset": offset,
                "scale": quant.scale,
            }

        found = {name: [entry(quant)] for name, quant in sorted(self.scales.items())}
        return {"version": "0.6.1", "activation_encodings": found, "param_encodings": {}}

    # -- pieces ----------------------------------------------------------------------------------------------------

    def _op(self, kind: str, inputs: Sequence[str], outputs: str | Sequence[str], **attributes: Any) -> None:
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        self.parts.nodes.append(
            helper.make_node(kind, list(inputs), outputs, next(o for o in outputs if o), **attributes)
        )

    def _constant(self, name: str, value: Tensor | Array) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        self.parts.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _shape(self, name: str, shape: Sequence[int]) -> str:
        return self._constant(f"{name}.shape", np.array(shape, np.int64))

    def _input(self, name: str, shape: Sequence[int]) -> None:
        self.parts.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def _output(self, name: str, shape: Sequence[int]) -> None:
        if all(info.name != name for info in self.parts.outputs):
            self.parts.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _write(self, node: fx.Node, result: Any) -> None:
        """Write one node; its values get its name."""
        plan = self.twin.plan
        step, kind = plan.steps.get(node), plan.kinds.get(node)
        self.names[node] = node.name
        if isinstance(kind, Scale) and node not in plan.inside and plan.makes(node):
            self.scales[node.name] = kind.quant
        if node.op == "output":
            return self._outputs(node, result)
        if kind is None:
            return
        if isinstance(step, steps.Enter | steps.Embed):
            self._input(node.name, result.shape)
            self.inputs.append(node.name)
            return
        sources = [self.names[arg] for arg in _operands(node) if plan.kinds[arg] is not None]
        match step:
            case steps.Affine(module=nn.Linear()):
                self._linear(node, step.module, sources[0], result)
            case steps.Affine():
                self._convolution(node, step.module, sources[0])
            case steps.Sum(signs=signs):
                self._op("Add" if signs[1] > 0 else "Sub", sources, node.name)
            case steps.Product():
                self._op("Mul", sources, node.name)
            case steps.Function(kind=name, params=params):
                self._function(node, name, params, sources[0])
            case steps.Norm():
                self._norm(node, step.module, sources[0])
            case steps.Softmax():
                self._op("Softmax", [sources[0]], node.name, axis=step.axis)
            case steps.Mean():
                self._mean(node, step, sources[0])
            case steps.Recurrent():
                self._recurrent(node, step, sources[0], result)
            case _:
                self._move(node, sources, result)

    def _outputs(self, node: fx.Node, result: Any) -> None:
        def deliver(name: Any, value: Any) -> None:
            if isinstance(name, tuple):
                for part, inner in zip(name, value, strict=True):
                    deliver(part, inner)
                return
            self._output(name, value.shape)
            self.results.append(name)

        deliver(fx.map_arg(node.args[0], self.names.__getitem__), result)

    def _linear(self, node: fx.Node, module: nn.Linear, source: str, result: Tensor) -> None:
        weight = self._constant(f"{node.name}.weight", module.weight.T)
        if module.bias is None:
            return self._op("MatMul", [source, weight], node.name)
        bias = self._constant(f"{node.name}.bias", module.bias)
        if result.dim() == 2:
            return self._op("Gemm", [source, weight, bias], node.name)
        self._op("MatMul", [source, weight], f"{node.name}.product")
        self._op("Add", [f"{node.name}.product", bias], node.name)

    def _convolution(self, node: fx.Node, module: Any, source: str) -> None:
        names = [source, self._constant(f"{node.name}.weight", module.weight)]
        if module.bias is not None:
            names.append(self._constant(f"{node.name}.bias", module.bias))
        self._op(
            "Conv",
            names,
            node.name,
            kernel_shape=list(module.kernel_size),
            strides=list(module.stride),
            pads=[*module.padding, *module.padding],
            dilations=list(module.dilation),
            group=module.groups,
        )

    def _function(self, node: fx.Node, kind: str, params: tuple[float, ...], source: str) -> None:
        name = node.name
        match kind:
            case "clip":
                ends = [self._constant(f"{name}.{i}", np.float32(v)) for i, v in enumerate(params)]
                self._op("Clip", [source, *ends], name)
            case "affine":
                scale, offset = params
                number = self._constant(f"{name}.number", np.float32(offset if abs(scale) == 1 else scale))
                inputs = [number, source] if scale == -1 else [source, number]
                self._op("Mul" if abs(scale) != 1 else "Add" if scale == 1 else "Sub", inputs, name)
            case "leaky_relu" | "elu":
                self._op("LeakyRelu" if kind == "leaky_relu" else "Elu", [source], name, alpha=params[0])
            case "hard_sigmoid":
                self._op("HardSigmoid", [source], name, alpha=params[0], beta=params[1])
            case "gelu" | "gelu_tanh":
                self._op("Gelu", [source], name, approximate="tanh" if kind == "gelu_tanh" else "none")
            case "swish":
                self._op("Sigmoid", [source], f"{name}.gate")
                self._op("Mul", [source, f"{name}.gate"], name)
            case _:
                self._op(FUNCTION_OPS[kind], [source], name)

    def _norm(self, node: fx.Node, module: nn.LayerNorm, source: str) -> None:
        gain = torch.ones(module.normalized_shape) if module.weight is None else module.weight
        names = [source, self._constant(f"{node.name}.gain", gain)]
        if module.bias is not None:
            names.append(self._constant(f"{node.name}.offset", module.bias))
        axis = -len(module.normalized_shape)
        self._op("LayerNormalization", names, node.name, axis=axis, epsilon=module.eps)

    def _mean(self, node: fx.Node, step: steps.Mean, source: str) -> None:
        if not step.kernel:
            return self._op("GlobalAveragePool", [source], node.name)
        pads = step.padding
        self._op(
            "AveragePool",
            [source],
            node.name,
            kernel_shape=list(step.kernel),
            strides=list(step.stride),
            pads=[*pads, *pads],
            count_include_pad=int(step.count_pads),
        )

    # -- moves -----------------------------------------------------------------------------------------------------

    def _move(self, node: fx.Node, sources: Sequence[str], result: Any) -> None:
        """Write what changes no value: as a slice, a transposition or a reshape of what torch does to indices."""
        module, name = module_of(self.twin.model, node), node.name
        if isinstance(module, POOLS):
            return self._largest(node, module, sources[0])
        called = function(self.twin.model, node)
        if called is not None:
            return self._function(node, *called, sources[0])
        if node.target is torch.cat:
            axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            return self._op("Concat", sources, name, axis=axis)
        source = self.env[node.all_input_nodes[0]]
        if isinstance(source, tuple) and isinstance(self.names[node.all_input_nodes[0]], tuple):
            self.names[node] = self.names[node.all_input_nodes[0]][node.args[1]]
            return
        if isinstance(result, tuple):
            self.names[node] = tuple(f"{name}.{i}" for i in range(len(result)))
            axis = next(i for i in range(result[0].dim()) if result[0].shape[i] != source.shape[i] or len(result) == 1)
            sizes = self._constant(f"{name}.sizes", np.array([part.shape[axis] for part in result], np.int64))
            return self._op("Split", [sources[0], sizes], self.names[node], axis=axis)
        self._view(node, sources[0], source, result)

    def _view(self, node: fx.Node, name: str, source: Tensor, result: Tensor) -> None:
        """Write a view from what it does to the places of the values."""
        places = torch.arange(source.numel(), dtype=torch.float64).reshape(source.shape)
        with torch.no_grad():
            args, kwargs = fx.map_arg(
                (node.args, node.kwargs), lambda n: places if n is node.all_input_nodes[0] else self.env[n]
            )
            moved = self.twin.plan.steps[node](self.twin.target.arithmetic, *args, **kwargs)
        if torch.equal(moved.flatten(), places.flatten()):
            return self._op("Reshape", [name, self._shape(node.name, result.shape)], node.name)
        for perm in _permutations(source, result):
            if torch.equal(places.permute(perm), moved):
                return self._op("Transpose", [name], node.name, perm=perm)
        self._op(
            "Gather",
            [f"{name}.flat.{node.name}", self._constant(f"{node.name}.places", moved.long().numpy())],
            node.name,
        )
        self.parts.nodes.insert(
            -1,
            helper.make_node(
                "Reshape", [name, self._shape(node.name, (-1,))], [f"{name}.flat.{node.name}"], f"{node.name}.flatten"
            ),
        )

    def _largest(self, node: fx.Node, module: Any, source: str) -> None:
        rank = 1 if isinstance(module, nn.MaxPool1d) else 2

        def sides(value: Any) -> list[int]:
            return list(value) if isinstance(value, tuple | list) else [int(value)] * rank

        pads = sides(module.padding)
        self._op(
            "MaxPool",
            [source],
            node.name,
            kernel_shape=sides(module.kernel_size),
            strides=sides(module.stride),
            pads=[*pads, *pads],
            dilations=sides(module.dilation),
            ceil_mode=int(module.ceil_mode),
        )

    # -- recurrent layers ------------------------------------------------------------------------------------------

    def _recurrent(self, node: fx.Node, step: steps.Recurrent, source: str, result: Any) -> None:
        module, shape = step.module, result[0].shape
        if module.batch_first:
            self._op("Transpose", [source], f"{node.name}.x", perm=[1, 0, 2])
            source, shape = f"{node.name}.x", (shape[1], shape[0], shape[2])
        given = [self.names[arg] for arg in _states_of(node)]
        ends: list[tuple[str, str]] = []
        for layers in step.layers:
            made = [self._layer(node, step, layer, source, shape, given, ends) for layer in layers]
            source = made[0]
            if len(made) > 1:
                source = f"{node.name}.{layers[0].suffix}.both"
                self._op("Concat", made, source, axis=2)
        if module.batch_first:
            self._op("Transpose", [source], node.name, perm=[1, 0, 2])
        else:
            self._op("Identity", [source], node.name)
        last, inner = (tuple(end[i] for end in ends) for i in (0, 1))
        self.names[node] = (node.name, (last[0], inner[0]) if step.lstm else last[0])

    def _layer(
        self,
        node: fx.Node,
        step: steps.Recurrent,
        layer: steps.Layer,
        source: str,
        shape: Sequence[int],
        given: Sequence[str],
        ends: list[tuple[str, str]],
    ) -> str:
        """Write one direction of one layer; return the name of its hidden values (T, B, H)."""
        name, size = f"{node.name}.{layer.suffix}", step.module.hidden_size
        time, batch = shape[0], shape[1]
        w_x, w_h, b_x, b_h = (_gates(part, 4 if step.lstm else 3) for part in layer.weights(step.module))
        names = [source, self._constant(f"{name}.W", w_x[None]), self._constant(f"{name}.R", w_h[None])]
        names += [self._constant(f"{name}.B", torch.cat([b_x, b_h])[None]), ""]
        state = (1, batch, size)
        results = [f"{name}.h.n", f"{name}.c.n"] if step.lstm else [f"{name}.h.n"]
        names += given or self._initial(results, state)
        self._op(
            "LSTM" if step.lstm else "GRU",
            names if names[-1] else names[:4],
            [f"{name}.y", *results],
            hidden_size=size,
            direction="reverse" if layer.reverse else "forward",
            **({} if step.lstm else {"linear_before_reset": 1}),
        )
        self._op("Reshape", [f"{name}.y", self._shape(name, (time, batch, size))], name)
        self.scales[f"{name}.y"] = layer.hidden.quant
        self.scales[results[0]] = layer.hidden.quant if step.lstm else UNIT
        if layer.cell is not None:
            self.scales[results[1]] = layer.cell.quant
            self._output(results[1], state)
        ends.append((results[0], results[-1]))
        return name

    def _initial(self, results: Sequence[str], shape: Sequence[int]) -> list[str]:
        """Return the names of states that become inputs, if that is wanted."""
        if not self.stateful:
            return []
        found = []
        for result in results:
            source = result.removesuffix("n") + "0"
            self._input(source, shape)
            self._output(result, shape)
            self.states[source] = result
            found.append(source)
        return found


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the nodes among a node's arguments, in order, each as often as it stands there."""
    found: list[fx.Node] = []
    fx.map_arg(node.args, found.append)
    return found


def _gates(part: Tensor, count: int) -> Tensor:
    """Return a layer's parameter with the gates in ONNX's order."""
    chunks = part.detach().chunk(count)
    return torch.cat([chunks[i] for i in GATE_ORDER[count]])


def _states_of(node: fx.Node) -> list[fx.Node]:
    """Return the nodes of given initial states."""
    if len(node.args) < 2 or node.args[1] is None:
        return []
    given = node.args[1]
    return list(given) if isinstance(given, tuple | list) else [given]  # type: ignore[arg-type, list-item]


def _permutations(source: Tensor, result: Tensor) -> list[tuple[int, ...]]:
    """Return the orders of axes that could lead from one shape to the other."""
    if source.dim() != result.dim() or source.dim() > 6:
        return []
    orders = permutations(range(source.dim()))
    return [perm for perm in orders if tuple(source.shape[i] for i in perm) == tuple(result.shape)]
