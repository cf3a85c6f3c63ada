"""The compiler: from an ONNX model to a program, as one function that reads from top to bottom."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnac import reference, stages
from nnac.blas import on_one_thread
from nnac.border import free_inputs
from nnac.calibration import METHODS, Range, calibrate, count, load_samples, random_samples
from nnac.compare import Comparison, compare, decibel
from nnac.compiled import CompiledModel
from nnac.emulator import Emulator
from nnac.errors import CapacityError, ModelError, NnacError, one_line
from nnac.frontend import find_states, import_graph, input_dtypes, prepare, unpack_states, with_encodings
from nnac.graph import Graph, onnx_states
from nnac.innerstates import inner_states
from nnac.isa import Space
from nnac.ops import Recurrent
from nnac.ops.base import layer_constants
from nnac.orders import adversarial_order, completion_order
from nnac.passes.centroid_folding import centroid_folding
from nnac.passes.codebook_encoding import codebook_encoding, needs_moments
from nnac.passes.collapse import collapse
from nnac.passes.compose import compose
from nnac.passes.fit import fit
from nnac.passes.fold import fold
from nnac.passes.fuse import fuse
from nnac.passes.layout import layout
from nnac.passes.legalize import legalize
from nnac.passes.logarithms import through
from nnac.passes.magnitude import magnitude
from nnac.passes.order import order
from nnac.passes.quantize import quantize, unpinned
from nnac.program import KnownAnswer, Program
from nnac.search import best_program
from nnac.targets import Target, load_target
from nnac.timing import latency, simulate
from nnac.types import Array
from nnac.validate import load as load_program
from nnac.validate import validate
from nnac.weights.choice import WeightPlan, parse_weights
from nnac.weights.moments import second_moments

if TYPE_CHECKING:
    import onnx

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how far it is, and the total if it is known."""

Pass = Callable[[Graph], Graph]
FLOAT_PASSES: tuple[Pass, ...] = (collapse, layout, collapse, fold, fuse, magnitude, compose, magnitude)

RANDOM = "random"
HOSTS = ("allow", "forbid")
OWN_SCALES = "the model's own scales"
LISTED = 8
"""Names of tensors that a note shows."""
NO_CALIBRATION = (
    "no calibration: pass samples (--calibrate samples.npz, one array per input, first axis = samples; a folder of "
    "such files; in Python also an iterable of dicts), or --calibrate random, for shape and timing studies only"
)
TIGHTER = 8
"""Compilations until a budget of weight bytes is kept, each aiming lower."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits that the finished program must keep; None is no limit.

    Attributes:
        sram: bytes of scratchpad at the peak.
        flash: bytes of constants (weights, tables) in the blob.
        cycles: of one inference.
    """

    sram: int | None = None
    flash: int | None = None
    cycles: int | None = None


@on_one_thread
def compile(
    model: Any,
    target: str | Path | Target = "nna8",
    calibration: Any = None,
    *,
    method: str = "minmax",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    states: Mapping[str, str] | None = None,
    freeze: Mapping[str, Any] | None = None,
    weights: str | int | Path | WeightPlan | None = None,
    activations: str | Iterable[str] = "int8",
    host: str | Iterable[str] = "allow",
    check: bool = False,
    budgets: Budgets | None = None,
    progress: Progress | None = None,
    encodings: str | Path | None = None,
    quick: bool = False,
) -> CompiledModel:
    """Compile an ONNX model for a machine; a quantized model keeps its integers and scales.

    Args:
        model: path, bytes, or `onnx.ModelProto` of a float model.
        target: name of a shipped target, path of a TOML, or a `Target`.
        calibration: path of an `.npz` (one array per input, first axis = samples) or of a folder of them, an iterable
            of dicts from input name to array, or "random" (for shape and timing studies; the program is marked so).
            Not needed where the model itself has a scale for every tensor.
        method: "minmax", "percentile" or "mse".
        shapes: full shapes of inputs with dynamic dimensions.
        states: inputs that the device keeps between calls, and the outputs that become them; found by their names if
            left out. One that is packed of others is kept apart (see `nnac.frontend.unpack`). A model with states is
            calibrated along sequences: consecutive samples of a file, or of the iterable, are consecutive steps; the
            samples hold the other inputs only.
        freeze: numbers or arrays for inputs that become constants, such as a sample rate.
        weights: bits below eight, per layer if wanted (`nnac.weights.choice`); clustered weights are found without it.
        activations: "int8", "int16", "auto" (int16 what int8 keeps too little of, by calibration), or the ONNX names of
            the tensors that shall be int16 (as those become that an operator has in int16 only).
        host: "allow" lets the processor beside the machine run what the NNA cannot, in float; "forbid" refuses that;
            names or types of ONNX operators go there though the NNA has them.
        check: run the reference after every integer pass, and the emulator in several orders that the tokens allow, on
            a probe, and compare every tensor.
        budgets: limits on the result.
        progress: called while calibrating.
        encodings: path of an AIMET `.encodings` file that belongs to the float model.
        quick: take the first plan that fits instead of the fastest that the search finds: the outputs are the same, an
            inference may take longer.

    Raises:
        ModelError: the model or the calibration cannot be used; names each node or tensor.
        TargetError: the target does not exist or is wrong.
        CapacityError: the network does not fit the machine, or the result a budget.
    """
    machine, plan = load_target(target), parse_weights(weights) if weights is not None else WeightPlan()
    if isinstance(host, str) and host not in HOSTS:
        raise ModelError(f"host {host!r}: unknown; allowed: {', '.join(HOSTS)}")
    if encodings is not None:
        model = with_encodings(model, encodings)
    prepared, graph, samples = _open(model, calibration, method, shapes, states, freeze, host)
    ranges, note = _calibrate(prepared, graph, samples, calibration, method, progress)
    wanted = needs_moments(graph, plan)
    if wanted and samples is None:
        raise ModelError(f"{NO_CALIBRATION}; error feedback weighs weights by what their inputs are")
    moments = second_moments(prepared, graph, samples or (), wanted) if wanted else {}
    lowered = _within if plan.budget and plan.budget[0] == "bytes" else lower
    chosen = activations if isinstance(activations, str) else tuple(activations)
    program = lowered(graph, ranges, machine, note, check, plan, moments, chosen, quick)
    _keep(program, budgets or Budgets())
    return CompiledModel(program)


@on_one_thread
def measured_graph(
    model: Any,
    calibration: Any,
    method: str,
    shapes: Mapping[str, tuple[int, ...]] | None,
    freeze: Mapping[str, Any] | None,
    progress: Progress | None,
    states: Mapping[str, str] | None = None,
) -> tuple[Graph, dict[str, Range], str]:
    """Return what does not depend on the machine: the float graph, its ranges, and the note on how they were found."""
    prepared, graph, samples = _open(model, calibration, method, shapes, states, freeze)
    return graph, *_calibrate(prepared, graph, samples, calibration, method, progress)


def _open(
    model: Any,
    calibration: Any,
    method: str,
    shapes: Mapping[str, tuple[int, ...]] | None,
    states: Mapping[str, str] | None = None,
    freeze: Mapping[str, Any] | None = None,
    host: str | Iterable[str] = "allow",
) -> tuple[onnx.ModelProto, Graph, Iterable[Mapping[str, Array]] | None]:
    """Return the prepared model, its float graph, and the samples, if any, which can be read more than once."""
    if method not in METHODS:
        raise ModelError(f"calibration method {method!r}: unknown; allowed: {', '.join(METHODS)}")
    prepared = prepare(model, shapes, frozen=freeze)
    kept = unpack_states(prepared, find_states(prepared.graph, states))
    graph = float_graph(prepared, kept, host=host != "forbid", forced=_forced(prepared, host))
    if calibration is None:
        return prepared, graph, None
    inputs = input_shapes(graph)
    random = isinstance(calibration, str) and calibration == RANDOM
    samples = random_samples(inputs, dtypes=input_dtypes(prepared)) if random else load_samples(calibration, inputs)
    return prepared, graph, list(samples) if isinstance(calibration, Iterator) else samples


def _forced(prepared: onnx.ModelProto, host: str | Iterable[str]) -> Callable[[Any], bool] | None:
    """Return what tells the operators that shall run on the host, if some are named."""
    if isinstance(host, str):
        return None
    names = set(host)
    unknown = names - {known for node in prepared.graph.node for known in (node.name, node.op_type)}
    if unknown:
        raise ModelError(f"host: the model has no operator {', '.join(map(repr, sorted(unknown)))}, by name or type")
    return lambda use: bool(names & {use.name, use.op_type})


def float_graph(
    prepared: onnx.ModelProto,
    states: Mapping[str, str] | None = None,
    passes: Iterable[Pass] = FLOAT_PASSES,
    host: bool = False,
    forced: Callable[[Any], bool] | None = None,
) -> Graph:
    """Return the float graph of a prepared model after the float passes (arguments as for `import_graph`)."""
    graph = stages.check(import_graph(prepared, states, host, forced), stages.FLOAT)
    for step in passes:
        graph = stages.check(step(graph), stages.FLOAT, known=graph)
    return graph


@on_one_thread
def lower(
    graph: Graph,
    ranges: Mapping[str, Range],
    machine: Target,
    note: str,
    check: bool = False,
    weights: WeightPlan | None = None,
    moments: Mapping[str, Array] | None = None,
    activations: str | tuple[str, ...] = "int8",
    quick: bool = False,
) -> Program:
    """Return the validated program of a float graph with known ranges."""
    law = machine.arithmetic
    integer = integer_graph(graph, ranges, machine, weights, moments, activations)
    probe = reference.probe(integer)
    expected = reference.run(integer, probe, law)
    digests = {name: hashlib.sha256(expected[name].tobytes()).hexdigest() for name in integer.outputs}
    answer, sqnr = KnownAnswer(0, digests), weight_sqnr(graph, integer)
    program = validate(best_program(integer, machine, note, answer, sqnr, quick))
    if check:
        _check_program(program, probe, expected)
    return program


def integer_graph(
    graph: Graph,
    ranges: Mapping[str, Range],
    machine: Target,
    weights: WeightPlan | None = None,
    moments: Mapping[str, Array] | None = None,
    activations: str | tuple[str, ...] = "int8",
) -> Graph:
    """Return the integer graph of a float graph with known ranges."""
    law, plan = machine.arithmetic, weights or WeightPlan()
    folded = centroid_folding(graph, plan, law)
    encoded = codebook_encoding(folded, plan, law, moments or {})
    return stages.check(fit(quantize(encoded, ranges, law, activations, machine.mac.int16 > 0), law), stages.INTEGER)


def executed_graph(integer: Graph, machine: Target) -> Graph:
    """Return what a machine executes of an integer graph."""
    return stages.check(order(legalize(integer, machine)), stages.INTEGER, known=integer)


def _within(
    graph: Graph,
    ranges: Mapping[str, Range],
    machine: Target,
    note: str,
    check: bool,
    plan: WeightPlan,
    moments: Mapping[str, Array],
    activations: str | tuple[str, ...],
    quick: bool,
) -> Program:
    """Return the program whose packed weights keep the plan's budget of bytes, which the passes only estimate.

    Raises:
        ModelError: it cannot be kept; says the closest.
    """
    assert plan.budget is not None
    limit, closest = plan.budget[1], inf
    aim = limit
    for _ in range(TIGHTER):
        try:
            tighter = replace(plan, budget=("bytes", aim))
            program = lower(graph, ranges, machine, note, check, tighter, moments, activations, quick)
        except ModelError:
            if closest == inf:
                raise
            break
        packed = sum(layer.encoding.nbytes for layer in program.layers if layer.encoding)
        if packed <= limit:
            return program
        closest = min(closest, packed)
        aim -= packed - limit + limit / 64
    raise ModelError(
        f"weights auto:{limit:.0f}: the closest that {machine.name} can pack them into is {closest:.0f} bytes"
    )


def weight_sqnr(graph: Graph, integer: Graph) -> dict[str, float]:
    """Return the dB of every layer's int8 weights against those of the float graph; inf where they are equal."""
    exact = {
        node.name: graph.constants[layer_constants(node)[0]]
        for node in graph.nodes
        if node.op.weighted and len(layer_constants(node)) == 2
    }
    found = {}
    for node in integer.nodes:
        if node.name in exact and node.op.weighted:
            real = exact[node.name].astype(np.float64).reshape(len(exact[node.name]), -1)
            levels, _, scale = (integer.constants[name] for name in layer_constants(node))
            signal = float((real**2).sum())
            real -= levels.reshape(real.shape) * scale.astype(np.float32)[:, None]
            found[node.name] = decibel(signal, float(np.square(real, out=real).sum()))
    return found


def _check_program(program: Program, probe: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Compare every tensor in program order, and the outputs in completion order and in adversarial orders."""
    _same("lowering", expected, Emulator(program).trace(probe))
    orders = {"completion order": completion_order(simulate(program))}
    orders |= {f"adversarial order {seed}": adversarial_order(program.instructions, seed) for seed in range(2)}
    for name, turns in orders.items():
        _same(f"execution in {name}", expected, Emulator(program).run(probe, order=turns))


def _calibrate(
    prepared: onnx.ModelProto,
    graph: Graph,
    samples: Iterable[Mapping[str, Array]] | None,
    source: Any,
    method: str,
    progress: Progress | None,
) -> tuple[dict[str, Range], str]:
    """Return ranges by ONNX tensor name, and the note that the program carries."""
    total, seen = count(samples or ()), [0]

    def step(done: int) -> None:
        seen[0] = done
        if progress is not None:
            progress("calibrating", done, total)

    names, known = unpinned(graph), any(value.type.quant is not None for value in graph.values.values())
    if not names:
        return {}, OWN_SCALES
    if samples is None:
        listed = f"; the model gives these no scale: {_some(names)}" if known else ""
        raise ModelError(f"{NO_CALIBRATION}{listed}")
    inner = partial(inner_states, graph) if any(isinstance(node.op, Recurrent) for node in graph.nodes) else None
    kept, heard = onnx_states(graph), through(graph)
    ranges = calibrate(prepared, samples, names, method, step, states=kept, derive=inner, through=heard)
    if isinstance(source, str) and source == RANDOM:
        return ranges, RANDOM
    only = f" for tensors without scales of their own: {_some(names)}" if known else ""
    return ranges, f"{method}, {seen[0]} samples{only}"


def _some(names: Sequence[str]) -> str:
    """Return names in a text of bounded length."""
    shown = ", ".join(repr(one_line(name, 60)) for name in names[:LISTED])
    return shown + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def measured_ranges(
    prepared: onnx.ModelProto, graph: Graph, samples: Iterable[Mapping[str, Array]]
) -> tuple[dict[str, Range], str]:
    """Return the extremes of the tensors that need ranges, and the note that the program carries."""
    return _calibrate(prepared, graph, samples, None, "minmax", None)


def input_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Return the ONNX shape of every graph input that is no state."""
    shapes = {}
    for name in (name for name in graph.inputs if name not in dict(graph.states)):
        value = graph.values[name]
        assert value.origin is not None
        shapes[value.origin.name] = value.origin.onnx_shape(value.shape)
    return shapes


def _same(step: str, expected: Mapping[str, Array], found: Mapping[str, Array]) -> None:
    """Raise when a tensor that both executions know differs in any bit."""
    for name in expected.keys() & found.keys():
        wrong = int((expected[name] != found[name]).sum())
        if wrong:
            raise NnacError(
                f"check: {step} changed {wrong} of {expected[name].size} elements of tensor {name!r}; "
                f"this is a fault of nnac, please report it"
            )


def _keep(program: Program, budgets: Budgets) -> None:
    """Raise when a budget is exceeded."""
    cycles = latency(program) if budgets.cycles is not None else 0
    needs = (
        ("--max-sram", program.used[Space.SRAM], budgets.sram, "bytes"),
        ("--max-flash", int(program.constants.size), budgets.flash, "bytes"),
        ("--max-cycles", cycles, budgets.cycles, "cycles"),
    )
    errors = [
        CapacityError(f"budget {name}", need, limit, unit)
        for name, need, limit, unit in needs
        if limit is not None and need > limit
    ]
    if len(errors) > 1:
        errors[0].args = ("\n".join(str(error) for error in errors),)
    if errors:
        raise errors[0]


def load(path: str | os.PathLike[str]) -> CompiledModel:
    """Return the compiled model of a `.nna` file.

    Raises:
        ProgramError: the file is not a valid program.
    """
    return CompiledModel(load_program(path))


def diff(
    model: Any,
    program: CompiledModel | Program,
    samples: Any,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Progress | None = None,
    freeze: Mapping[str, Any] | None = None,
    states: Mapping[str, str] | None = None,
    threads: int = 1,
) -> Comparison:
    """Compare a program with its float model in onnxruntime, layer by layer (see `nnac.compare`).

    Args:
        model: the ONNX model that the program was compiled from.
        program: the compiled model.
        samples: as `calibration` of `compile` (but not "random"); along sequences where the program has states.
        shapes, freeze, states: as for `compile`.
        progress: called after every sample.
        threads: of the emulator; they change no bit.
    """
    blob = program.program if isinstance(program, CompiledModel) else program
    given = free_inputs(blob)
    prepared = prepare(model, shapes or given, frozen=freeze)
    unpack_states(prepared, find_states(prepared.graph, states))
    return compare(prepared, blob, load_samples(samples, given), progress, threads)
