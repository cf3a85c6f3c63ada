"""Pipelines: several programs that take turns on one machine, how often each runs, and what flows between them.

Contract. One machine runs one call at a time, in the order in which calls are asked for; a call starts when what it
waits for has arrived and the call before it has ended. Weight buffer and scratchpad belong to the part that runs: a
part whose constants stay there from call to call finds them only if it ran last, else it loads them again; and a part
that takes over from another one first brings its states in from outside the chip and, when the next one takes over,
they are brought out again (both are charged to its call). States that live outside the chip stay where they are, as do
all constants: their memory holds all parts side by side. Values go from part to part as reals: each part quantizes
what it is given. What the host does in between (features, choosing a token) takes no time.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from nnac.border import free_inputs
from nnac.errors import ModelError, raise_all
from nnac.isa import Space
from nnac.program import Program
from nnac.session import Session
from nnac.targets import target_digest
from nnac.timing import OUTSIDE, simulate, transfer_cycles
from nnac.types import Array
from nnac.validate import load

Wire = tuple[str, str]
"""A part and the ONNX name of one of its outputs."""


@dataclass(frozen=True, slots=True)
class Part:
    """One program of a pipeline.

    Attributes:
        rate: calls per frame; 0.5 is every other frame, 3 is three in a row.
        wires: ONNX input -> the output of another part that it takes; inputs without a wire come from outside.
    """

    program: Program
    rate: float = 1.0
    wires: Mapping[str, Wire] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Parts in the order in which they run in a frame.

    Attributes:
        period_ms: milliseconds of one frame of the signal.

    Raises:
        ModelError: a rate or the period is not positive, a wire leads nowhere, shapes differ, or the parts were
            compiled for different machines.
    """

    period_ms: float
    parts: Mapping[str, Part]

    def __post_init__(self) -> None:
        raise_all(ModelError, "the pipeline does not hold together:", list(self._problems()))

    def _problems(self) -> Iterator[str]:
        if not (isfinite(self.period_ms) and self.period_ms > 0):
            yield f"period_ms is {self.period_ms:g}; it is positive"
        if not self.parts:
            yield "there is no part"
        if len({target_digest(part.program.target) for part in self.parts.values()}) > 1:
            yield "the parts were compiled for different machines; one machine runs them all"
        for name, part in self.parts.items():
            if not (isfinite(part.rate) and part.rate > 0):
                yield f"part {name!r} runs {part.rate:g} times per frame; it is positive"
            inputs = free_inputs(part.program)
            for input_, wire in part.wires.items():
                yield from self._wire_problems(f"{name}.{input_}", inputs.get(input_), wire)

    def _wire_problems(self, where: str, wanted: tuple[int, ...] | None, wire: Wire) -> Iterator[str]:
        source = self.parts.get(wire[0])
        outputs = outputs_of(source.program) if source else {}
        if wanted is None:
            yield f"{where} is no input that can be wired"
        elif wire[1] not in outputs:
            yield f"{where} takes {'.'.join(wire)}, which does not exist"
        elif outputs[wire[1]] != wanted:
            yield f"{where} has shape {wanted}, {'.'.join(wire)} has {outputs[wire[1]]}"


def outputs_of(program: Program) -> dict[str, tuple[int, ...]]:
    """Return ONNX names and shapes of the outputs that are no states' next values."""
    kept = {result for _, result in program.states}
    return {t.onnx_name: t.onnx_shape for t in map(program.tensor, program.outputs) if t.name not in kept}


# -- time ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds, and bytes through the memories outside the chip.

    Attributes:
        ms: milliseconds.
        nbytes: bytes.
    """

    ms: float
    nbytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.ms + other.ms, self.nbytes + other.nbytes)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a call of one part takes.

    Attributes:
        cold: with all constants loaded.
        warm: right behind a call of the same part.
        swap: bringing the part's states in and out, once each.
    """

    cold: Cost
    warm: Cost
    swap: Cost

    def of(self, again: bool, swaps: bool) -> Cost:
        """Return what a call takes, behind the same part or not, with other states than before or not."""
        cost = self.warm if again else self.cold
        return cost + self.swap if swaps else cost


def costs(program: Program) -> Costs:
    """Return what a call of a program takes on a machine that it shares."""
    machine, outside = program.target, {space.label for space in OUTSIDE}
    states = [t.type.nbytes for t in (program.tensor(s) for s, _ in program.states) if t.space == Space.SRAM]
    memory = machine.memory[machine.memory_mode.spill]
    cycles = 2 * sum(transfer_cycles(memory, [(nbytes, nbytes)]) for nbytes in states)
    cold, warm = (
        Cost(t.milliseconds, sum(n for (m, _), n in t.traffic.items() if m in outside))
        for t in (simulate(program), simulate(program, warm=True))
    )
    return Costs(cold, warm, Cost(cycles / machine.clock_mhz / 1e3, 2 * sum(states)))


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a part that waits for `frames` frames of the signal (0: none).

    Attributes:
        swaps: it takes up other states than those that the part left (a hypothesis of a beam).
    """

    part: str
    frames: int
    swaps: bool = False


@dataclass(frozen=True, slots=True)
class Played:
    """Calls on the machine's timeline.

    Attributes:
        ends_ms: per call, from the beginning of the signal.
        busy_ms: milliseconds per part.
        nbytes: through the memories outside the chip.
    """

    ends_ms: tuple[float, ...]
    busy_ms: Mapping[str, float]
    nbytes: int


def play(calls: Sequence[Call], table: Mapping[str, Costs], period_ms: float) -> Played:
    """Return when calls end that one machine runs in order, frames arriving every period (see the contract)."""
    ends, busy, nbytes, free, last = list[float](), dict.fromkeys(table, 0.0), 0, 0.0, ""
    for call in calls:
        cost = table[call.part].of(call.part == last, call.swaps or last not in ("", call.part))
        free = max(free, call.frames * period_ms) + cost.ms
        busy[call.part] += cost.ms
        nbytes, last = nbytes + cost.nbytes, call.part
        ends.append(free)
    return Played(tuple(ends), busy, nbytes)


def schedule(pipeline: Pipeline, frames: int) -> list[Call]:
    """Return the calls of so many frames: in every frame each part, in order, as often as its rate has come round."""
    return [
        Call(name, frame + 1)
        for frame in range(frames)
        for name, part in pipeline.parts.items()
        for _ in range(_due(part, frame))
    ]


def _due(part: Part, frame: int) -> int:
    """Return the calls that fall due with this frame."""
    return int((frame + 1) * part.rate + 1e-9) - int(frame * part.rate + 1e-9)


# -- values --------------------------------------------------------------------------------------------------------


class PipelineSession:
    """A pipeline on the emulator, frame by frame. Not thread-safe."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.sessions = {name: Session(part.program) for name, part in pipeline.parts.items()}
        self.calls = dict.fromkeys(pipeline.parts, 0)
        self._frame = 0
        self._latest: dict[Wire, Array] = {}

    def call(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one part: on `inputs`, and on the latest values of its wires where those are left out.

        Raises:
            ModelError: a wire carries nothing yet, or as for `Session.step`.
        """
        given, wires = dict(inputs), self.pipeline.parts[name].wires
        for input_, wire in ((i, w) for i, w in wires.items() if i not in given):
            if wire not in self._latest:
                raise ModelError(f"{name}.{input_} takes {'.'.join(wire)}, which has not run yet; give its first value")
            given[input_] = self._latest[wire]
        outputs = self.sessions[name].step(given)
        self._latest |= {(name, output): array for output, array in outputs.items()}
        self.calls[name] += 1
        return outputs

    def step(self, inputs: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, Array]]:
        """Run the parts that fall due with the next frame; return the outputs of those by part.

        Args:
            inputs: by part, what comes from outside.
        """
        due = [name for name, part in self.pipeline.parts.items() for _ in range(_due(part, self._frame))]
        self._frame += 1
        return {name: self.call(name, inputs.get(name, {})) for name in due}

    def reset(self) -> None:
        """Forget all states, all values and all calls."""
        self._frame, self._latest = 0, {}
        self.calls = dict.fromkeys(self.pipeline.parts, 0)
        for session in self.sessions.values():
            session.reset()


# -- file ----------------------------------------------------------------------------------------------------------


def load_pipeline(path: str | os.PathLike[str]) -> Pipeline:
    """Return the pipeline of a TOML file.

        period_ms = 30
        [parts.encoder]
        program = "encoder.nna"                     # beside this file
        rate = 1                                    # calls per frame; 1 if left out
        [parts.joiner]
        program = "joiner.nna"
        inputs = { encoded = "encoder.encoded" }    # input = part.output

    Raises:
        ModelError: the file cannot be read, an entry is unknown or missing, or the parts do not hold together.
        ProgramError: a part is not a valid program.
    """
    try:
        raw = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"pipeline {str(path)!r} cannot be read: {error}") from None
    raise_all(ModelError, f"pipeline {str(path)!r}:", list(_wrong(raw)))
    parts = {name: _part(Path(path).parent, entry) for name, entry in raw["parts"].items()}
    return Pipeline(float(raw["period_ms"]), parts)


def _wrong(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the file should not say, or not so."""
    yield from _fields("the file", raw, {"period_ms": (int, float), "parts": (dict,)}, {"period_ms", "parts"})
    parts = raw.get("parts")
    for name, entry in parts.items() if isinstance(parts, dict) else ():
        if not isinstance(entry, dict):
            yield f"part {name!r} is not a section"
            continue
        kinds = {"program": (str,), "rate": (int, float), "inputs": (dict,)}
        yield from _fields(f"part {name!r}", entry, kinds, {"program"})
        wires = entry.get("inputs", {})
        for input_, wire in wires.items() if isinstance(wires, dict) else ():
            if not isinstance(wire, str) or "." not in wire:
                yield f"part {name!r}: input {input_!r} takes {wire!r}; expected part.output"


def _fields(
    where: str, entry: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]], needed: set[str]
) -> Iterable[str]:
    for name in needed - entry.keys():
        yield f"{where}: {name} is missing"
    for name, value in entry.items():
        if name not in kinds:
            yield f"{where}: {name} is unknown; allowed: {', '.join(kinds)}"
        elif not isinstance(value, kinds[name]) or isinstance(value, bool):
            yield f"{where}: {name} is {value!r}, expected {' or '.join(kind.__name__ for kind in kinds[name])}"


def _part(folder: Path, entry: Mapping[str, Any]) -> Part:
    wires = {}
    for input_, wire in entry.get("inputs", {}).items():
        part, _, output = wire.partition(".")
        wires[input_] = (part, output)
    return Part(load(folder / entry["program"]), float(entry.get("rate", 1.0)), wires)
