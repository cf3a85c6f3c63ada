"""Compare: where the program's integers part from the float model, layer by layer.

The float model runs in onnxruntime with every tensor visible. The program runs twice on the emulator: once as it is
(*cumulative*: each layer sees the errors of those before it), once with every layer's inputs replaced by the quantized
float truth (*local*: the layer's own error alone).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf, log10
from typing import TYPE_CHECKING

import numpy as np

from nnac.border import present, quantized, signed
from nnac.calibration import count
from nnac.emulator import Emulator
from nnac.errors import ModelError
from nnac.floatmodel import FloatModel
from nnac.program import Layer, Program, Tensor
from nnac.types import Array, First

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor against its float twin, over all samples.

    Attributes:
        layer, op: the node that makes it ("" for a graph input).
        tensor: its ONNX name.
        sqnr: cumulative signal-to-quantization-noise ratio, dB (inf: no difference).
        local_sqnr: the same with the layer's inputs taken from float.
        max_steps: largest cumulative difference in units of the tensor's scale.
        saturated: float elements outside what the tensor can represent.
        elements: float elements compared.
        output: whether the tensor is an output of the model.
    """

    layer: str
    op: str
    tensor: str
    sqnr: float
    local_sqnr: float
    max_steps: float
    saturated: int
    elements: int
    output: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows in the order of execution."""

    rows: tuple[Row, ...]
    samples: int

    def worst(self) -> list[Row]:
        """Return the rows, lowest local SQNR first."""
        return sorted(self.rows, key=lambda row: (row.local_sqnr, row.sqnr))

    def outputs(self) -> dict[str, float]:
        """Return the cumulative SQNR in dB of every model output, by ONNX name."""
        return {row.tensor: row.sqnr for row in self.rows if row.output}

    def first_below(self, sqnr_db: float) -> Row | None:
        """Return the first layer whose output has a cumulative SQNR below `sqnr_db`."""
        return next((row for row in self.rows if row.sqnr < sqnr_db), None)


@dataclass(slots=True)
class _Tally:
    """Sums over samples for one tensor."""

    signal: float = 0.0
    noise: float = 0.0
    local: float = 0.0
    steps: float = 0.0
    saturated: int = 0
    elements: int = 0

    def add(self, tensor: Tensor, truth: Array, found: Array, alone: Array) -> None:
        quant = tensor.type.quant
        assert quant is not None
        exact = truth.astype(np.float64)
        self.signal += float((exact**2).sum())
        self.noise += float(((present(tensor, found) - exact) ** 2).sum())
        self.local += float(((present(tensor, alone) - exact) ** 2).sum())
        self.steps = max(self.steps, float(np.abs(present(tensor, found) - exact).max(initial=0.0)) / quant.scale)
        scaled = exact / quant.scale + quant.zero_point
        self.saturated += int(((scaled < quant.low - 0.5) | (scaled > quant.high + 0.5)).sum())
        self.elements += truth.size

    def row(self, tensor: Tensor, layer: Layer | None, output: bool) -> Row:
        return Row(
            layer.name if layer else "",
            layer.op if layer else "input",
            tensor.onnx_name,
            decibel(self.signal, self.noise),
            decibel(self.signal, self.local),
            self.steps,
            self.saturated,
            self.elements,
            output,
        )


def decibel(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise): inf without noise, -inf without signal."""
    if noise == 0.0:
        return inf
    return 10 * log10(signal / noise) if signal > 0.0 else -inf


def compare(
    model: onnx.ModelProto,
    program: Program,
    samples: Iterable[Mapping[str, Array]],
    progress: Callable[[str, int, int | None], None] | None = None,
    threads: int = 1,
) -> Comparison:
    """Compare `program` with the float `model` on every sample.

    Raises:
        ModelError: the model is not the one that the program was compiled from, or there are no samples.
    """
    tensors = _comparable(program)
    twin = _twin(model, program, tensors)
    pair, tallies, done = (
        (Emulator(program, threads), Emulator(program, threads)),
        {t.name: _Tally() for t in tensors},
        0,
    )
    for done, sample in enumerate(samples, 1):
        _one(pair, twin, tensors, sample, tallies)
        if progress is not None:
            progress("comparing", done, count(samples))
    if not done:
        raise ModelError("no samples to compare on")
    makers = {_place(program.tensor(name)): layer for layer in program.layers for name in layer.outputs}
    ends = {program.tensor(name).onnx_name for name in program.outputs}
    rows = tuple(tallies[t.name].row(t, makers.get(_place(t)), t.onnx_name in ends) for t in tensors)
    return Comparison(rows, done)


def _comparable(program: Program) -> list[Tensor]:
    """Return inputs and layers' outputs that have a float twin, in order of completion; of moved copies the first."""
    shown = {*program.inputs, *(name for layer in program.layers for name in layer.outputs), *program.outputs}
    views = {_place(t): t for t in program.tensors if t.name in program.outputs}
    tensors = [t for t in program.tensors if t.name in shown and views.get(_place(t), t) is t]
    first: dict[str, Tensor] = {}
    for tensor in sorted((t for t in tensors if t.origin is not None), key=lambda t: t.ready):
        first.setdefault(tensor.onnx_name, tensor)
    return list(first.values())


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Return what a tensor and its reshapes have in common."""
    return tensor.space, tensor.address, tensor.ready, tensor.pieces


def _twin(model: onnx.ModelProto, program: Program, tensors: list[Tensor]) -> FloatModel:
    states = {program.tensor(source).onnx_name: program.tensor(result).onnx_name for source, result in program.states}
    try:
        return FloatModel(model, [t.onnx_name for t in tensors], states)
    except ModelError as error:
        raise ModelError(f"the model does not belong to the program: {error}") from None


def _one(
    pair: tuple[Emulator, Emulator],
    twin: FloatModel,
    tensors: list[Tensor],
    sample: Mapping[str, Array],
    tallies: dict[str, _Tally],
) -> None:
    """Add one sample; the first emulator keeps its own states, the second takes the float model's."""
    program = pair[0].program
    truth, inputs = _reals(twin.run(sample), tensors), quantized(program, sample)
    if isinstance(sample, First):
        for emulator in pair:
            emulator.clear_states()
    found = pair[0].trace(inputs)
    alone = pair[1].trace(inputs, _truths(program, truth))
    for tensor in tensors:
        tallies[tensor.name].add(tensor, truth[tensor.onnx_name], found[tensor.name], alone[tensor.name])


def _reals(truth: Mapping[str, Array], tensors: list[Tensor]) -> dict[str, Array]:
    """Return what tensors that the model itself has as integers of 8 or 16 bits stand for."""
    quants = {t.onnx_name: t.type.quant for t in tensors if t.type.quant is not None and not t.type.quant.is_whole}
    return {
        name: quants[name].dequantize(signed(array)) if name in quants and array.dtype.kind in "iu" else array
        for name, array in truth.items()
    }


def _truths(program: Program, truth: Mapping[str, Array]) -> dict[str, Array]:
    """Return the quantized float truth of every tensor that has one, in device layout."""
    exact = {}
    for tensor in program.tensors:
        if tensor.origin is not None and tensor.type.quant is not None and tensor.origin.name in truth:
            array = tensor.type.quant.quantize(truth[tensor.origin.name])
            exact[tensor.name] = tensor.origin.from_onnx(array, tensor.type.shape)
    return exact
