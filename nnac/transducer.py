"""Transducers: encoder, predictor and joiner on the emulator, what they say, and how long a user waits for it.

The encoder runs on every step of the features. For every row that it gives, the joiner scores the tokens from that row
and from what the predictor made of the tokens so far, until it prefers the blank (Graves, "Sequence transduction with
recurrent neural networks", 2012).

Contract of the waiting time. Step n of the encoder starts when its last frame has arrived, at (n + 1) * frames periods;
the calls that decoding asked for run in their order on one machine (see `nnac.pipeline`), so frames queue and decoding
falls behind where the calls of a step last longer than its frames. User-perceived latency is the time from the end of
speech until the tokens are final: the end of the last call, behind which nothing can follow. The last token itself may
have come earlier; `emission_ms` is the time to the joiner's call that chose it, 0 where that lay before the end of
speech. A beam search knows its tokens at its last call. That speech has ended is known at once: what finds that out (an
endpointer) is not part of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from nnac.border import free_inputs
from nnac.compiled import CompiledModel
from nnac.errors import ModelError
from nnac.pipeline import Call, Costs, Pipeline, costs, outputs_of, play
from nnac.program import Program
from nnac.session import Session
from nnac.types import Array

ENCODER, PREDICTOR, JOINER = PARTS = ("encoder", "predictor", "joiner")
MAX_SYMBOLS = 10
PERCENTILES = (50, 90, 99)
Words = Callable[[Sequence[int]], Sequence[object]]


class Net(Protocol):
    """What decoding needs of a part: a `Session`, or another engine that keeps states."""

    def step(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of one call and keep the states."""

    def state(self) -> Any:
        """Return a copy of the states."""

    def load_state(self, state: Any) -> None:
        """Take up states that `state` returned."""

    def reset(self) -> None:
        """Set all states to zeros."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """What was said.

    Attributes:
        tokens: without blanks.
        score: natural logarithm of the probability of the tokens, over the alignments that the search has seen.
        calls: of the parts, in order; their `frames` are steps of the encoder.
        last_token: index of the call that chose the last token; -1 without tokens.
        steps: of the encoder.
    """

    tokens: tuple[int, ...]
    score: float
    calls: tuple[Call, ...]
    last_token: int
    steps: int

    def count(self) -> dict[str, int]:
        """Return the number of calls by part."""
        return {part: sum(call.part == part for call in self.calls) for part in PARTS}


@dataclass(frozen=True, slots=True)
class _Hypothesis:
    """Tokens so far, their log-probability, what the predictor made of them, and its states behind them."""

    tokens: tuple[int, ...]
    score: float
    predicted: Array
    state: Any


class Transducer:
    """Three programs that decode together on the emulator. Not thread-safe."""

    def __init__(
        self,
        encoder: CompiledModel | Program,
        predictor: CompiledModel | Program,
        joiner: CompiledModel | Program,
        *,
        blank: int = 0,
        embedding: Array | None = None,
        max_symbols: int = MAX_SYMBOLS,
        joiner_inputs: tuple[str, str] | None = None,
    ) -> None:
        """Take the parts.

        Args:
            encoder: one input besides its states, one step of features; one output, rows of encoded values.
            predictor: one input, a token's row of `embedding`; one output.
            joiner: two inputs, a row of the encoder and the predictor's output; one output, logits of all tokens.
            blank: the token that ends a row; it stands before the first token, too.
            embedding: (tokens, E) reals; without it a token is one-hot.
            max_symbols: tokens per row of the encoder.
            joiner_inputs: names of the joiner's inputs; found by the names of what they take, or by their widths.

        Raises:
            ModelError: the parts do not fit together.
        """
        given = [p.program if isinstance(p, CompiledModel) else p for p in (encoder, predictor, joiner)]
        self.programs = dict(zip(PARTS, given, strict=True))
        self.blank, self.max_symbols = blank, max_symbols
        ends = [_only(name, "output", outputs_of(program)) for name, program in self.programs.items()]
        self._outputs = dict(zip(PARTS, ends, strict=True))
        self._frames = _only(ENCODER, "input", free_inputs(given[0]))
        self._token = _only(PREDICTOR, "input", free_inputs(given[1]))
        self._joined = joiner_inputs or self._joiner_inputs()
        self._rows = self._checked_rows(embedding)
        self.nets: dict[str, Net] = {name: Session(program) for name, program in self.programs.items()}

    @classmethod
    def of(cls, pipeline: Pipeline, **options: Any) -> Transducer:
        """Return the transducer of a pipeline's parts `encoder`, `predictor` and `joiner`; options as for the class."""
        missing = [name for name in PARTS if name not in pipeline.parts]
        if missing:
            raise ModelError(f"a transducer has the parts {', '.join(PARTS)}; the pipeline has no {missing[0]!r}")
        wires = {wire[0]: input_ for input_, wire in pipeline.parts[JOINER].wires.items()}
        if ENCODER in wires and PREDICTOR in wires:
            options = {"joiner_inputs": (wires[ENCODER], wires[PREDICTOR])} | options
        return cls(*(pipeline.parts[name].program for name in PARTS), **options)

    def _joiner_inputs(self) -> tuple[str, str]:
        """Return the joiner's inputs that take the encoder's and the predictor's values."""
        inputs, ends = free_inputs(self.programs[JOINER]), (self._outputs[ENCODER], self._outputs[PREDICTOR])
        if set(ends) == set(inputs):
            return ends
        widths = [outputs_of(self.programs[part])[end][-1] for part, end in zip(PARTS, ends, strict=False)]
        found = [[name for name, shape in inputs.items() if shape[-1] == width] for width in widths]
        if len(inputs) == 2 and [len(names) for names in found] == [1, 1] and found[0] != found[1]:
            return found[0][0], found[1][0]
        raise ModelError(
            f"joiner: its inputs {', '.join(map(repr, inputs))} shall take {ends[0]!r} of the encoder and {ends[1]!r} "
            "of the predictor, and neither names nor widths say which takes which; give joiner_inputs"
        )

    def _checked_rows(self, embedding: Array | None) -> Array:
        """Return the predictor's input by token: (tokens, *shape)."""
        shape = free_inputs(self.programs[PREDICTOR])[self._token]
        tokens, width = outputs_of(self.programs[JOINER])[self._outputs[JOINER]][-1], int(np.prod(shape))
        rows = np.eye(tokens, dtype=np.float32) if embedding is None else np.asarray(embedding)
        if rows.shape != (tokens, width):
            raise ModelError(
                f"the predictor takes {width} values per token and the joiner scores {tokens} tokens; the embedding "
                f"has shape {rows.shape}"
            )
        if not 0 <= self.blank < tokens:
            raise ModelError(f"blank is {self.blank}; the joiner scores tokens 0 to {tokens - 1}")
        return rows.reshape(tokens, *shape)

    # -- calls -----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Set the states of all parts to zeros."""
        for net in self.nets.values():
            net.reset()

    def encode(self, features: Array) -> Array:
        """Return the rows (n, width) of one step."""
        found = self.nets[ENCODER].step({self._frames: features})[self._outputs[ENCODER]]
        return found.reshape(-1, found.shape[-1])

    def predict(self, token: int) -> Array:
        """Return what the predictor makes of one more token."""
        return self.nets[PREDICTOR].step({self._token: self._rows[token]})[self._outputs[PREDICTOR]]

    def join(self, encoded: Array, predicted: Array) -> Array:
        """Return the natural logarithms of the probabilities of all tokens, float64."""
        shapes, (first, second) = free_inputs(self.programs[JOINER]), self._joined
        given = {first: encoded.reshape(shapes[first]), second: predicted.reshape(shapes[second])}
        logits = self.nets[JOINER].step(given)[self._outputs[JOINER]].ravel().astype(np.float64)
        return np.asarray(logits - np.logaddexp.reduce(logits))

    # -- search ----------------------------------------------------------------------------------------------------

    def greedy(self, features: Array) -> Decoding:
        """Return the tokens of one utterance, the best one at a time.

        Args:
            features: (steps, *shape of the encoder's input).
        """
        self.reset()
        tokens, score, last, calls = list[int](), 0.0, -1, [Call(PREDICTOR, 0)]
        predicted = self.predict(self.blank)
        for step, row, new in self._rows_of(features):
            calls += [Call(ENCODER, step)] * new
            for _ in range(self.max_symbols):
                scores = self.join(row, predicted)
                calls.append(Call(JOINER, step))
                token = int(scores.argmax())
                score += float(scores[token])
                if token == self.blank:
                    break
                tokens, last = [*tokens, token], len(calls) - 1
                predicted = self.predict(token)
                calls.append(Call(PREDICTOR, step))
        return Decoding(tuple(tokens), score, tuple(calls), last, len(features))

    def beam(self, features: Array, width: int) -> Decoding:
        """Return the most probable tokens of one utterance among `width` hypotheses.

        Time-synchronous: in every row of the encoder, hypotheses grow by one token at a time and leave by the blank;
        those that leave with equal tokens are added up (Saon et al., "Alignment-length synchronous decoding for RNN
        transducer", ICASSP 2020, which describes both).

        Args:
            features: (steps, *shape of the encoder's input).
            width: hypotheses that survive a row, and that grow by a token.
        """
        if width < 1:
            raise ModelError(f"the width of a beam is {width}; it is at least 1")
        self.reset()
        calls = [Call(PREDICTOR, 0)]
        beam = [_Hypothesis((), 0.0, self.predict(self.blank), self.nets[PREDICTOR].state())]
        for step, row, new in self._rows_of(features):
            calls += [Call(ENCODER, step)] * new
            beam = self._row(row, beam, width, step, calls)
        best = beam[0]
        last = len(calls) - 1 if best.tokens else -1
        return Decoding(best.tokens, best.score, tuple(calls), last, len(features))

    def _rows_of(self, features: Array) -> Iterator[tuple[int, Array, bool]]:
        """Yield (steps that must have arrived, a row of the encoder, whether it is the first of its step)."""
        for step, each in enumerate(features, 1):
            for number, row in enumerate(self.encode(each)):
                yield step, row, number == 0

    def _row(self, row: Array, beam: list[_Hypothesis], width: int, step: int, calls: list[Call]) -> list[_Hypothesis]:
        """Return the hypotheses behind one row of the encoder, the best first."""
        left: dict[tuple[int, ...], _Hypothesis] = {}
        for symbols in range(self.max_symbols + 1):
            grown = []
            for h in beam:
                scores = self.join(row, h.predicted)
                calls.append(Call(JOINER, step))
                _leave(left, replace(h, score=h.score + float(scores[self.blank])))
                grown += [(h.score + float(s), h, token) for token, s in enumerate(scores) if token != self.blank]
            if symbols == self.max_symbols:
                break
            kept = sorted(grown, key=lambda each: -each[0])[:width]
            beam = [self._grown(score, h, token) for score, h, token in kept]
            calls += [Call(PREDICTOR, step, swaps=width > 1)] * len(beam)
        return sorted(left.values(), key=lambda h: -h.score)[:width]

    def _grown(self, score: float, h: _Hypothesis, token: int) -> _Hypothesis:
        predictor = self.nets[PREDICTOR]
        predictor.load_state(h.state)
        predicted = self.predict(token)
        return _Hypothesis((*h.tokens, token), score, predicted, predictor.state())

    def costs(self) -> dict[str, Costs]:
        """Return what a call of each part takes on the machine that they share."""
        return {name: costs(program) for name, program in self.programs.items()}


def greedy_decode(
    encoder: CompiledModel | Program,
    predictor: CompiledModel | Program,
    joiner: CompiledModel | Program,
    features: Array,
    **options: Any,
) -> Decoding:
    """Return what `Transducer.greedy` does, for one utterance; options as for `Transducer`."""
    return Transducer(encoder, predictor, joiner, **options).greedy(features)


def beam_decode(
    encoder: CompiledModel | Program,
    predictor: CompiledModel | Program,
    joiner: CompiledModel | Program,
    features: Array,
    width: int,
    **options: Any,
) -> Decoding:
    """Return what `Transducer.beam` does, for one utterance; options as for `Transducer`."""
    return Transducer(encoder, predictor, joiner, **options).beam(features, width)


def _only(part: str, what: str, found: Mapping[str, object]) -> str:
    if len(found) != 1:
        raise ModelError(f"{part}: it has one {what} besides its states; found {', '.join(map(repr, found)) or 'none'}")
    return next(iter(found))


def _leave(left: dict[tuple[int, ...], _Hypothesis], h: _Hypothesis) -> None:
    """Enter a hypothesis that took the blank; equal tokens are one hypothesis of both probabilities."""
    twin = left.get(h.tokens)
    left[h.tokens] = h if twin is None else replace(twin, score=float(np.logaddexp(twin.score, h.score)))


# -- time ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """How long a user waits for one utterance.

    Attributes:
        latency_ms: user-perceived: from the end of speech until the tokens are final.
        emission_ms: from the end of speech to the call that chose the last token; 0 without tokens.
        busy_ms: milliseconds of the machine by part.
        nbytes: through the memories outside the chip.
    """

    latency_ms: float
    emission_ms: float
    busy_ms: Mapping[str, float]
    nbytes: int


def waiting(
    decoding: Decoding,
    table: Mapping[str, Costs],
    period_ms: float,
    frames: int = 1,
    end_of_speech_ms: float | None = None,
) -> Waiting:
    """Return how long a user waits.

    Args:
        table: as `Transducer.costs` gives it.
        period_ms: milliseconds of one frame.
        frames: of one step of the encoder.
        end_of_speech_ms: from the beginning of the features; their end if left out.
    """
    step_ms = frames * period_ms
    played = play(decoding.calls, table, step_ms)
    end = decoding.steps * step_ms if end_of_speech_ms is None else end_of_speech_ms
    last = played.ends_ms[decoding.last_token] - end if decoding.last_token >= 0 else 0.0
    return Waiting(max(0.0, played.ends_ms[-1] - end), max(0.0, last), played.busy_ms, played.nbytes)


def as_if(steps: int, token_steps: Sequence[int], rows: int = 1) -> Decoding:
    """Return a greedy decoding whose tokens come at the given steps (0, 1, ...): for time without trained weights.

    Args:
        steps: of the encoder; `rows`: that each gives; tokens come at the first one.
    """
    calls, last, tokens = [Call(PREDICTOR, 0)], -1, 0
    for step in range(steps):
        calls.append(Call(ENCODER, step + 1))
        for _ in range(token_steps.count(step)):
            last, tokens = len(calls), tokens + 1
            calls += [Call(JOINER, step + 1), Call(PREDICTOR, step + 1)]
        calls += [Call(JOINER, step + 1)] * rows
    return Decoding(tuple(range(tokens)), 0.0, tuple(calls), last, steps)


# -- many utterances -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording.

    Attributes:
        features: (steps, *shape of the encoder's input).
        words: what was said.
        end_of_speech_ms: from the beginning; the end of the features if left out.
    """

    features: Array
    words: Sequence[object]
    end_of_speech_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Many utterances.

    Attributes:
        word_error_rate: see the function of that name.
        calls: by part, over all utterances.
        latency_ms: user-perceived, by percentile.
        decodings: one per utterance.
    """

    word_error_rate: float
    calls: Mapping[str, int]
    latency_ms: Mapping[int, float]
    decodings: tuple[Decoding, ...]


def evaluate(
    model: Transducer,
    utterances: Iterable[Utterance],
    period_ms: float,
    *,
    frames: int = 1,
    width: int = 1,
    words: Words = list,
) -> Evaluation:
    """Return what the transducer makes of many utterances.

    Args:
        period_ms, frames: as for `waiting`.
        width: of the beam; 1 is greedy decoding.
        words: what tokens become to be compared with an utterance's words.
    """
    spoken, table = list(utterances), model.costs()
    found = [model.greedy(u.features) if width == 1 else model.beam(u.features, width) for u in spoken]
    waits = [
        waiting(decoding, table, period_ms, frames, u.end_of_speech_ms).latency_ms
        for decoding, u in zip(found, spoken, strict=True)
    ]
    errors = word_error_rate([u.words for u in spoken], [words(d.tokens) for d in found])
    calls = {part: sum(d.count()[part] for d in found) for part in PARTS}
    return Evaluation(errors, calls, percentiles(waits), tuple(found))


def percentiles(values: Sequence[float]) -> dict[int, float]:
    """Return the percentiles 50, 90 and 99, linear between neighbours."""
    if not values:
        raise ModelError("there is no utterance to take percentiles of")
    return {p: float(np.percentile(values, p)) for p in PERCENTILES}


def word_error_rate(references: Sequence[Sequence[object]], found: Sequence[Sequence[object]]) -> float:
    """Return substitutions, deletions and insertions over the words of the references, all utterances together."""
    words = sum(map(len, references))
    if not words:
        raise ModelError("the references hold no word")
    return sum(edit_distance(a, b) for a, b in zip(references, found, strict=True)) / words


def edit_distance(one: Sequence[object], other: Sequence[object]) -> int:
    """Return the fewest substitutions, deletions and insertions between two sequences (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]
