"""Accelerator-aware training: a model's twin, whose forward pass is the accelerator's own integers.

A reconstruction of accelerator-aware training (Shakiah et al., arXiv 2305.07778: training replicates the accelerator's
operators, not only the rounding of weights); formats and rules are those of this compiler, bit by bit.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from nnac.errors import ModelError, TargetError
from nnac.numerics import Rounding
from nnac.targets import Target, load_target
from nnac.train import steps
from nnac.train.integers import enter, leave
from nnac.train.plan import Plan, plan
from nnac.train.scales import Scale

DEVICE, FAKE, FLOAT = MODES = ("device", "fake", "float")


class _Tracer(fx.Tracer):
    """Layers of torch are leaves, with parametrizations or without."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, nn.Sequential) and type(m).__module__.startswith("torch.nn")


class Twin(nn.Module):
    """A model on the accelerator, in training: same parameters, same arguments, the accelerator's outputs.

    Inside `computing("float")` it is the float model, inside `computing("fake")` that model with every activation
    rounded to its int8 step and back, which is what quantization-aware training usually does: the baseline. Parameters
    are the model's own, so that an optimizer of either trains both.

    Attributes:
        model: the float model as traced, BatchNorm folded.
        target: the machine.
        scales: of the groups of values, by name.
    """

    def __init__(self, model: nn.Module, target: Target, learned: bool) -> None:
        super().__init__()
        graph = _Tracer().trace(model)
        _fold_norms(model, graph)
        self.model, self.target = fx.GraphModule(model, graph), target
        self.plan: Plan = plan(self.model, target.arithmetic, learned)
        self.scales = nn.ModuleDict({_key(name): scale for name, scale in self.plan.scales.items()})
        self._mode = DEVICE

    @property
    def power_of_two(self) -> bool:
        """Whether the machine's scales are powers of two."""
        return self.target.arithmetic.power_of_two_scales

    def forward(self, *inputs: Any) -> Any:
        if self._mode != DEVICE:
            return self.model(*inputs) if self._mode == FLOAT else _Fake(self).run(*inputs)
        known = self.values(*inputs)
        out = next(node for node in self.plan.nodes if node.op == "output")
        return fx.map_arg(out.args[0], lambda node: _left(known[node], self.plan.kinds[node]))

    def values(self, *inputs: Any) -> dict[fx.Node, Any]:
        """Return every value of the traced graph: integers less their zero point, float32."""
        known: dict[fx.Node, Any] = {}
        rest = iter(inputs)
        for node in self.plan.nodes:
            if node.op == "output":
                continue
            step = self.plan.steps.get(node)
            if node.op == "placeholder":
                given = next(rest)
                known[node] = step(self.target.arithmetic, given) if step is not None else given
            else:
                args, kwargs = fx.map_arg(self.plan.arguments(node), known.__getitem__)
                known[node] = step(self.target.arithmetic, *args, **kwargs)  # type: ignore[misc]
        return known

    def integers(self, *inputs: Any) -> dict[str, Tensor]:
        """Return the accelerator's integers, zero points included, by the names that `export` gives the tensors."""
        with torch.no_grad():
            known = self.values(*inputs)
        found = {}
        for node, kind in self.plan.kinds.items():
            if isinstance(kind, Scale) and isinstance(known.get(node), Tensor) and node not in self.plan.inside:
                found[node.name] = (known[node] + kind.quant.zero_point).to(torch.int64)
        return found

    @contextmanager
    def computing(self, mode: str) -> Iterator[None]:
        """Compute in another way inside this context: "device" (as always outside), "fake" or "float".

        Raises:
            ModelError: there is no such mode.
        """
        if mode not in MODES:
            raise ModelError(f"mode {mode!r}: unknown; allowed: {', '.join(MODES)}")
        before, self._mode = self._mode, mode
        try:
            yield
        finally:
            self._mode = before

    @torch.no_grad()
    def observe(self, samples: Iterable[Any], momentum: float = 0.0) -> None:
        """Let the scales see what the float model's values reach.

        Args:
            samples: inputs of the model, one tensor or a tuple of them per call.
            momentum: 0 widens the ranges to all that is seen; else the share of a range that each sample leaves, for
                ranges that follow the training.
        """
        training = self.training
        self.eval()
        for sample in samples:
            inputs = sample if isinstance(sample, tuple | list) else (sample,)
            _Observer(self, momentum).run(*inputs)
        self.train(training)


def _key(name: str) -> str:
    return name.replace(".", "_")


def _left(value: Any, kind: Any) -> Any:
    """Return the reals of a result, which may be a tuple."""
    if isinstance(value, tuple):
        return tuple(_left(v, k) for v, k in zip(value, kind, strict=True))
    return leave(value, kind.quant if isinstance(kind, Scale) else kind)


class _Observer(fx.Interpreter):
    """The float model, watched."""

    def __init__(self, twin: Twin, momentum: float) -> None:
        super().__init__(twin.model)
        self.plan, self.momentum = twin.plan, momentum

    def run_node(self, n: fx.Node) -> Any:
        result, step = super().run_node(n), self.plan.steps.get(n)
        kind = self.plan.kinds.get(n)
        if isinstance(step, steps.Recurrent):
            args, _ = self.fetch_args_kwargs_from_env(n)
            step.observe(args[0], args[1] if len(args) > 1 else None, self.momentum)
        elif n in self.plan.observed and isinstance(kind, Scale) and isinstance(result, Tensor):
            kind.observe(result, self.momentum)
        return result


class _Fake(fx.Interpreter):
    """The float model with activations on their int8 grids."""

    def __init__(self, twin: Twin) -> None:
        super().__init__(twin.model)
        self.plan = twin.plan

    def run_node(self, n: fx.Node) -> Any:
        result, kind = super().run_node(n), self.plan.kinds.get(n)
        if not isinstance(kind, Scale) or n in self.plan.inside or not self.plan.makes(n):
            return result
        return leave(enter(result, kind.quant, kind.stretch), kind.quant)


def emulate(
    model: nn.Module,
    target: str | Path | Target = "nna8",
    samples: Iterable[Any] | None = None,
    *,
    learned: bool = False,
) -> Twin:
    """Return the twin of a model, which shares its parameters.

    BatchNorm is folded into the layer in front of it, in place, with its running statistics: train with it first.
    Dropout works in training, on integers that it scales; the result then is no longer one of the accelerator's.

    Args:
        model: of `nnac.train.plan.SUPPORTED`; its `forward` is traced symbolically, so that control flow must not
            depend on values. Parts that run apart on the accelerator (encoder, predictor, joint) are twins apart.
        target: name of a shipped target, path of a TOML, or a `Target`.
        samples: inputs whose ranges decide the scales; without them call `Twin.observe`.
        learned: train the steps of activations (LSQ, Esser et al. 2020); not where scales are powers of two.

    Raises:
        ModelError: the model has something that the accelerator, or this twin, has not; all such places are listed.
        TargetError: the target does not exist, is wrong, or has the arithmetic "onnx".
    """
    machine = load_target(target)
    if machine.arithmetic.mode == Rounding.ONNX:
        raise TargetError(f"target {machine.name!r} computes as onnxruntime does, in float32; a twin is of a machine")
    twin = Twin(model, machine, learned)
    twin.train(model.training)
    if samples is not None:
        twin.observe(samples)
    return twin


def _fold_norms(model: nn.Module, graph: fx.Graph) -> None:
    """Fold BatchNorm into the convolution or dense layer in front of it."""
    modules = dict(model.named_modules())
    for node in list(graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        before = node.args[0]
        layer = modules.get(str(before.target)) if before.op == "call_module" else None
        if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) or len(before.users) > 1:
            raise ModelError(f"{node.target!r}: a BatchNorm stands behind a layer whose result nothing else reads")
        _fold(layer, norm)
        node.replace_all_uses_with(before)
        graph.erase_node(node)
        _replace(model, str(node.target))
    graph.lint()


def _fold(layer: Any, norm: Any) -> None:
    if norm.running_mean is None:
        raise ModelError("a BatchNorm without running statistics cannot be folded")
    parts = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *parts)
    layer.weight, layer.bias = weight, bias


def _replace(model: nn.Module, path: str) -> None:
    """Put an identity where a folded module stood."""
    owner, _, name = path.rpartition(".")
    setattr(operator.attrgetter(owner)(model) if owner else model, name, nn.Identity())
