"""The four networks with seeded weights, exported by both of torch's exporters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from examples.architectures.codec import Codec
from examples.architectures.conformer import Conformer
from examples.architectures.convrnnt import ConvRNNT
from examples.architectures.enhancer import Enhancer

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "conformer": Conformer,
    "convrnnt": ConvRNNT,
    "codec": Codec,
    "enhancer": Enhancer,
}
EXPORTERS = {"dynamo": True, "torchscript": False}
SEED = 1


def build(name: str, kept: bool = False) -> nn.Module:
    """Return a network with random weights, the same in every run.

    Args:
        name: one of `NETWORKS`.
        kept: draw normal weights that keep the variance of what they multiply, instead of torch's own, which shrink it.
    """
    torch.manual_seed(SEED)
    network = NETWORKS[name]().eval()
    for weight in network.parameters() if kept else ():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    for name, weight in network.named_parameters() if kept else ():
        if "weight_ih" in name:  # gates halve what they let through, and again
            weight.data *= 3
    for module in network.modules():  # no batch norm at its trivial start
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network


def parameters(module: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(each.numel() for each in module.parameters())


def export(network: nn.Module, exporter: str, path: Path) -> None:
    """Write a network's ONNX: states are inputs `NAME_in` and outputs `NAME_out`."""
    given = {**network.inputs(), **{f"{name}_in": shape for name, shape in network.states().items()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(torch.zeros(shape) for shape in given.values()),
            path,
            input_names=list(given),
            output_names=[*network.outputs(), *(f"{name}_out" for name in network.states())],
            dynamo=EXPORTERS[exporter],
            external_data=False,
            verbose=False,
        )
