"""Transducers: decoding against plain loops over onnxruntime and the emulator, time by hand, words counted."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import nnac
from examples.transducer import data, picture, table
from examples.transducer import features as digits
from examples.transducer_size import generate
from nnac.compiled import CompiledModel
from nnac.errors import ModelError
from nnac.pipeline import Call, Cost, Costs, Part, Pipeline, play
from nnac.transducer import (
    PARTS,
    Decoding,
    Transducer,
    Utterance,
    as_if,
    beam_decode,
    edit_distance,
    evaluate,
    greedy_decode,
    percentiles,
    waiting,
    word_error_rate,
)
from nnac.types import Array

SIZE = generate.Size(6, ((8,), (8,)), 2, 5, (8,), 8, 4)
"""Two frames per step of the encoder; tokens 0 (blank) to 3."""
STEPS = 6
Values = dict[str, Array]
Engine = Callable[[str, Mapping[str, Array]], Values]
"""Runs a part on inputs and states, and returns its outputs."""


@cache
def nets() -> dict[str, onnx.ModelProto]:
    return {net.name: net.model() for net in generate.transducer(SIZE, seed=3)}


@cache
def compiled() -> dict[str, CompiledModel]:
    shapes = {"encoder": {"frames": (2, 1, SIZE.features)}}
    return {name: nnac.compile(net, "nna8", "random", shapes=shapes.get(name)) for name, net in nets().items()}


def embedding() -> Array:
    return np.asarray(generate.embedding(SIZE) * 2)


def features(seed: int, steps: int = STEPS) -> Array:
    return np.random.default_rng(seed).normal(size=(steps, 2, 1, SIZE.features)).astype(np.float32) * 2


def parts() -> tuple[CompiledModel, CompiledModel, CompiledModel]:
    encoder, predictor, joiner = (compiled()[name] for name in PARTS)
    return encoder, predictor, joiner


def model(**options: Any) -> Transducer:
    return Transducer(*parts(), **{"embedding": embedding(), "max_symbols": 2, **options})


# -- plain loops ---------------------------------------------------------------------------------------------------


@cache
def _float_session(name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(nets()[name].SerializeToString(), providers=["CPUExecutionProvider"])


def in_float(name: str, inputs: Mapping[str, Array]) -> Values:
    session = _float_session(name)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def in_integers(name: str, inputs: Mapping[str, Array]) -> Values:
    return compiled()[name].run(inputs)


def zeros(name: str) -> Values:
    return {
        i.name: np.zeros(i.shape, np.float32) for i in _float_session(name).get_inputs() if i.name[-2:] in ("_h", "_c")
    }


def call(engine: Engine, name: str, inputs: Mapping[str, Array], states: Values) -> tuple[Values, Values]:
    found = engine(name, {**inputs, **states})
    return found, {state: found[f"{state}_out"] for state in states}


def rows(engine: Engine, x: Array) -> list[Array]:
    states, found = zeros("encoder"), []
    for step in x:
        outputs, states = call(engine, "encoder", {"frames": step}, states)
        found += list(outputs["encoded"])
    return found


def predicted(engine: Engine, tokens: Sequence[int]) -> Array:
    """Return what the predictor makes of blank and tokens, from the beginning."""
    states, outputs = zeros("predictor"), dict[str, Array]()
    for token in (0, *tokens):
        outputs, states = call(engine, "predictor", {"token": embedding()[token : token + 1]}, states)
    return outputs["predicted"]


def scores(engine: Engine, row: Array, tokens: Sequence[int]) -> Array:
    joined = engine("joiner", {"encoded": row[None], "predicted": predicted(engine, tokens)})["logits"][0].astype(float)
    return np.asarray(joined - np.log(np.exp(joined).sum()))


def plain_greedy(engine: Engine, x: Array, most: int) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    for row in rows(engine, x):
        for _ in range(most):
            token = int(scores(engine, row, tokens).argmax())
            if token == 0:
                break
            tokens = (*tokens, token)
    return tokens


def every_alignment(engine: Engine, x: Array, most: int) -> dict[tuple[int, ...], float]:
    """Return the log-probability of every sequence of tokens, over all ways to spread it over the rows."""
    beam: dict[tuple[int, ...], float] = {(): 0.0}
    for row in rows(engine, x):
        left: dict[tuple[int, ...], list[float]] = {}
        for tokens, score in beam.items():
            ways = [(tokens, score)]
            for grown in range(most + 1):
                for now, total in ways:
                    left.setdefault(now, []).append(total + scores(engine, row, now)[0])
                if grown < most:
                    ways = [
                        ((*now, t), total + scores(engine, row, now)[t]) for now, total in ways for t in range(1, 4)
                    ]
        beam = {tokens: float(np.logaddexp.reduce(found)) for tokens, found in left.items()}
    return beam


class FloatNet:
    """A part in onnxruntime, with states."""

    def __init__(self, name: str) -> None:
        self.name, self.states = name, zeros(name)

    def step(self, inputs: Mapping[str, Array]) -> Values:
        found, self.states = call(in_float, self.name, inputs, self.states)
        return found

    def state(self) -> Values:
        return self.states

    def load_state(self, state: Values) -> None:
        self.states = state

    def reset(self) -> None:
        self.states = zeros(self.name)


def in_float_model() -> Transducer:
    found = model()
    found.nets |= {name: FloatNet(name) for name in PARTS}
    return found


# -- decoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_the_plain_loop(seed: int) -> None:
    """Tokens are those of a loop that keeps no state but runs the predictor from the beginning, in both engines."""
    x = features(seed)
    assert in_float_model().greedy(x).tokens == plain_greedy(in_float, x, 2)
    assert model().greedy(x).tokens == plain_greedy(in_integers, x, 2)


def test_greedy_says_something() -> None:
    """The nets of these tests are not silent, nor do they always talk: they would show nothing otherwise."""
    said = [len(model().greedy(features(seed)).tokens) for seed in range(4)]
    assert len(set(said)) > 1
    assert 0 < sum(said) < 4 * 2 * STEPS


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("engine", [in_float, in_integers])
def test_a_wide_beam_finds_the_most_probable_tokens(seed: int, engine: Engine) -> None:
    """With room for all hypotheses the score is the sum over all alignments."""
    x, net = features(seed, 2), in_float_model() if engine is in_float else model()
    exact = every_alignment(engine, x, 2)
    best = max(exact, key=lambda tokens: exact[tokens])
    found = net.beam(x, 10_000)
    assert found.tokens == best
    assert found.score == pytest.approx(exact[best], abs=1e-9 if engine is in_integers else 1e-5)


def test_a_narrow_beam_knows_fewer_alignments() -> None:
    """Its score is never above the sum over all of them."""
    x = features(1, 2)
    exact, found = every_alignment(in_integers, x, 2), model().beam(x, 2)
    assert found.score <= exact[found.tokens] + 1e-9
    assert found.count()["joiner"] <= 2 * 2 * 3 * 2


def test_calls_are_counted() -> None:
    """One call of the encoder per step, one of the predictor per token and one before, a joiner's per decision."""
    found = model().greedy(features(0))
    decided = {(c.frames, n) for n, c in enumerate(found.calls) if c.part == "joiner"}
    assert found.count() == {"encoder": STEPS, "predictor": len(found.tokens) + 1, "joiner": len(decided)}
    assert found.calls[0] == Call("predictor", 0)
    assert found.calls[1] == Call("encoder", 1)
    assert [c.frames for c in found.calls] == sorted(c.frames for c in found.calls)
    assert found.calls[found.last_token].part == "joiner"


def test_functions_take_the_parts() -> None:
    """The functions decode as the class does; a second utterance starts from zeros."""
    net, options = model(max_symbols=3), dict[str, Any](embedding=embedding(), max_symbols=3)
    net.greedy(features(1))
    assert greedy_decode(*parts(), features(0), **options) == net.greedy(features(0))
    assert beam_decode(*parts(), features(0), 3, **options) == net.beam(features(0), 3)


def test_a_pipeline_names_the_parts() -> None:
    """Wires say which input of the joiner takes what."""
    wires = {"encoded": ("predictor", "predicted"), "predicted": ("encoder", "encoded")}
    shapes = {"encoder": {"frames": (1, 1, SIZE.features)}}
    single = replace(SIZE, stack=1, encoder=((8,), ()))
    made = {
        n.name: nnac.compile(n.model(), "nna8", "random", shapes=shapes.get(n.name))
        for n in generate.transducer(single)
    }
    joined = {name: Part(made[name].program, wires=wires if name == "joiner" else {}) for name in PARTS}
    crossed = Transducer.of(Pipeline(30, joined), embedding=embedding())
    straight = Transducer(made["encoder"], made["predictor"], made["joiner"], embedding=embedding())
    x = np.random.default_rng(0).normal(size=(3, 1, 1, 6)).astype(np.float32)
    assert crossed.greedy(x).score != straight.greedy(x).score
    with pytest.raises(ModelError, match="no 'joiner'"):
        Transducer.of(Pipeline(30, {name: joined[name] for name in PARTS[:2]}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"embedding": np.zeros((4, 3))}, "the embedding has shape"),
        ({"embedding": None}, "the embedding has shape"),
        ({"blank": 4}, "the joiner scores tokens 0 to 3"),
    ],
)
def test_parts_that_do_not_fit(options: dict[str, Any], words: str) -> None:
    """An embedding of other sides and a blank that does not exist are refused."""
    with pytest.raises(ModelError, match=words):
        model(**options)


def test_parts_in_the_wrong_order() -> None:
    """A joiner where the encoder belongs has two inputs."""
    with pytest.raises(ModelError, match="encoder: it has one input"):
        Transducer(compiled()["joiner"], compiled()["predictor"], compiled()["encoder"])


# -- time ----------------------------------------------------------------------------------------------------------

TABLE = {
    "encoder": Costs(Cost(10, 100), Cost(4, 10), Cost(1, 2)),
    "predictor": Costs(Cost(6, 60), Cost(2, 6), Cost(0.5, 1)),
    "joiner": Costs(Cost(3, 30), Cost(1, 3), Cost(0, 0)),
}


def test_turns_on_one_machine_by_hand() -> None:
    """Cold behind another part, with its states; warm behind itself; other states are swapped; frames awaited."""
    calls = [
        Call("predictor", 0),  # the first of all: cold, nothing to swap: 0..6
        Call("encoder", 1),  # frame 1 is there at 20: 10 + 1: 20..31
        Call("joiner", 1),  # 3: 31..34
        Call("joiner", 1),  # warm: 34..35
        Call("encoder", 2),  # at 40: 40..51
        Call("predictor", 2, swaps=True),  # 6 + 0.5: 51..57.5
        Call("predictor", 2, swaps=True),  # 2 + 0.5: 57.5..60
        Call("predictor", 2),  # 2: 60..62
        Call("encoder", 3),  # frame 3 was there at 60: late: 62..73
    ]
    played = play(calls, TABLE, 20)
    assert played.ends_ms == (6, 31, 34, 35, 51, 57.5, 60, 62, 73)
    assert played.busy_ms == {"encoder": 33, "predictor": 17, "joiner": 4}
    assert played.nbytes == 60 + 102 + 30 + 3 + 102 + 61 + 7 + 6 + 102


def test_a_user_waits_by_hand() -> None:
    """Latency counts to the last call, emission to the joiner's that chose the last token; neither is below zero."""
    decoding = as_if(3, [0, 2])
    assert "".join(c.part[0] for c in decoding.calls) == "p" + "ejpj" + "ej" + "ejpj"
    assert decoding.calls[decoding.last_token] == Call("joiner", 3)
    # step 3 is there at 60: encoder ..71, joiner ..74 (the last token), predictor ..80.5, joiner ..83.5
    found = waiting(decoding, TABLE, 20)
    assert (found.latency_ms, found.emission_ms) == (23.5, 14)
    assert waiting(decoding, TABLE, 10, frames=2).latency_ms == 23.5
    early = waiting(decoding, TABLE, 20, end_of_speech_ms=80)
    assert (early.latency_ms, early.emission_ms) == (3.5, 0)


def test_falling_behind_adds_up() -> None:
    """Where a step takes longer than its frame, every step makes the user wait longer."""
    waits = [waiting(as_if(n, [n - 1]), TABLE, 12).latency_ms for n in range(1, 6)]
    # each step without a token: 11 + 3 = 14 of 12 ms; the very first one starts at 12, when the predictor is long done;
    # behind the last token the predictor's 6.5 and the joiner's 3
    assert waits == list(accumulate([2] * 4, initial=14 + 9.5))


def test_silence_has_no_last_token() -> None:
    """That nothing was said is known when the last step is done."""
    found = waiting(as_if(2, []), TABLE, 20)
    assert (found.latency_ms, found.emission_ms) == (14, 0)


def test_rows_of_a_step() -> None:
    """An encoder that gives two rows per step has the joiner called for each."""
    assert as_if(2, [1], rows=2).count() == {"encoder": 2, "predictor": 2, "joiner": 5}


# -- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("ab", "ba", 2), ("flaw", "lawn", 2)],
)
def test_edit_distance(one: str, other: str, edits: int) -> None:
    """Known distances."""
    assert edit_distance(one, other) == edits


def test_word_error_rate() -> None:
    """Errors of all utterances over words of all utterances; there has to be a word."""
    assert word_error_rate([[1, 2, 3], [4]], [[1, 3], [5]]) == 0.5
    with pytest.raises(ModelError, match="no word"):
        word_error_rate([[]], [[1]])


def test_evaluation() -> None:
    """What all utterances come to is what each comes to."""
    net, spoken = model(), [Utterance(features(n), [1, 2]) for n in range(3)]
    found = evaluate(net, spoken, 10, frames=2)
    assert found.decodings == tuple(net.greedy(u.features) for u in spoken)
    assert found.word_error_rate == word_error_rate([[1, 2]] * 3, [d.tokens for d in found.decodings])
    assert found.calls["encoder"] == 3 * STEPS
    waits = [waiting(d, net.costs(), 10, 2).latency_ms for d in found.decodings]
    assert found.latency_ms == percentiles(waits)
    assert evaluate(net, spoken, 10, frames=2, width=2).calls["joiner"] > found.calls["joiner"]


def test_percentiles() -> None:
    """Linear between neighbours; of something."""
    assert percentiles([0.0, 10.0]) == {50: 5.0, 90: 9.0, 99: pytest.approx(9.9)}
    with pytest.raises(ModelError, match="no utterance"):
        percentiles([])


def test_a_decoding_of_nothing() -> None:
    """No step of features: the predictor alone has run."""
    found = model().greedy(features(0, 0))
    assert found == Decoding((), 0.0, (Call("predictor", 0),), -1, 0)


@pytest.mark.parametrize(("size", "millions"), [("typical", 58.4), ("mlperf", 45.3)])
def test_full_sizes_have_their_parameters(size: str, millions: float) -> None:
    """The examples' shapes come to the published counts, by their formula."""
    s = generate.SIZES[size]
    count, width = 0, s.features
    for layers, factor in ((s.encoder[0], 1), (s.encoder[1], s.stack)):
        width *= factor
        for hidden in layers:
            count, width = count + 4 * hidden * (width + hidden + 2), hidden
    inner = s.embedding
    for hidden in s.predictor:
        count, inner = count + 4 * hidden * (inner + hidden + 2), hidden
    count += (width + inner + 1) * s.joint + (s.joint + 1) * s.outputs + s.outputs * s.embedding
    assert round(count / 1e6, 1) == millions


# -- examples/transducer -------------------------------------------------------------------------------------------


def test_features_need_nothing_later() -> None:
    """Steps of a beginning are those of the whole."""
    samples = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    whole = digits.log_mel(samples)
    assert whole.shape == (100, 1, 1, digits.WIDTH)
    np.testing.assert_array_equal(digits.log_mel(samples[: 40 * digits.STEP + 7]), whole[:40])


def test_utterances_end_where_their_digits_do() -> None:
    """Whole steps, as many ends as digits, the last one in the last step; a pool gives back what it was made of."""
    rng = np.random.default_rng(1)
    voice = [(rng.normal(0, 0.1, 2000 + 100 * digit).astype(np.float32), digit) for digit in range(10)]
    made = [data.utterance([voice], np.random.default_rng(seed)) for seed in range(20)]
    for each in made:
        assert len(each.digits) == len(each.ends) and each.ends[-1] == len(each.features) - 1
        assert all(8 <= b - a for a, b in itertools.pairwise(each.ends))
    pool = data.Pool.of(made)
    assert sorted(tuple(each.digits) for each in pool) == sorted(tuple(each.digits) for each in made)
    assert [len(each.features) for each in pool] == sorted(len(each.features) for each in made)


def test_the_table_of_results(tmp_path: Path) -> None:
    """Means over seeds, figures over the seeds that both rows have, "not yet" where there is none."""

    def result(row: str, seed: int, wer: float, nbytes: int) -> None:
        costs = {name: 1.0 for name in ("blob_bytes", "weight_bits", "engine_ms_per_frame", "bytes_per_second")}
        waits = {"latency_ms": {"50": 1.0, "90": 2.0}, "host_ops": 0, "footprint_bytes": nbytes}
        hosted = {"hosted": {"engine_ms_per_frame": 1.25}}
        machines = {target: {**costs, **waits, **hosted} for target in (table.TINY, table.FAST)}
        errors = {"wer": wer, "float_wer": wer - 0.01, "validation_wer": wer}
        size = "deep" if row.startswith("deep-") else "base"
        entry = {"row": row, "title": row, "size": size, "seed": seed, **errors, **machines}
        (tmp_path / f"{row}-{seed}").mkdir()
        (tmp_path / f"{row}-{seed}" / table.RESULT).write_text(json.dumps(entry), "utf-8")

    result("qat8", 0, 0.05, 1000)
    result("qat8", 1, 0.07, 1000)
    result("ptq8", 0, 0.06, 1000)
    result("gq5", 0, 0.04, 600)
    result("emu8", 0, 0.05, 1000)
    result("deep-gq5", 0, 0.05, 1000)
    every = table.load(tmp_path, ["gq5", "float", "qat8", "ptq8", "emu8"])
    found, deep = (table.of_size(every, deep) for deep in (False, True))
    assert list(found) == ["gq5", "qat8", "ptq8", "emu8"] and list(deep) == ["deep-gq5"]
    lines = table.table(found, table.TINY, table.FAST).splitlines()
    assert "6.00 ± 1.41" in lines[3] and lines[3].count("|") == lines[0].count("|")
    figures = list(table.figures(found))
    assert "| GQ 5-bit: footprint below 8-bit QAT | 30.73 % | 40.0% | 1 |" in figures
    assert "| GQ 5-bit: WER below 8-bit QAT | about 0 | 20.0% | 1 |" in figures
    assert any("fragile operators" in line and "| 20.0% | 1 |" in line for line in figures)
    assert any("not yet" in line for line in figures)
    assert list(table.gaps(found))[2:] == ["| 8-bit | 1.00 | 1.00 | 1.00 | 1 |"]
    cost, errors = table.points(found, table.FOOTPRINT, 1e-3)["qat8"]
    assert cost == 1 and errors == pytest.approx([5, 7])


def test_the_picture_of_results() -> None:
    """A dot per row, left of what costs more and above what errs less; no name stands on another."""
    drawn = picture.picture({"kB": {"gq5": (100, [5, 6]), "qat8": (200, [5, 6]), "gq4": (100, [5, 6.1])}})
    dots = re.findall(r'<circle cx="(.*?)" cy="(.*?)"', drawn)
    names = re.findall(r'<text x="(.*?)" y="(.*?)" fill="#......">(.*?)<', drawn)
    assert [name for *_, name in names] == ["gq4", "gq5", "qat8"]
    assert dots[0][0] == dots[1][0] < dots[2][0] and float(dots[0][1]) < float(dots[1][1])
    assert float(names[1][1]) - float(names[0][1]) >= picture.LINE
    assert "<circle" not in picture.picture({"kB": {}})


def test_no_errors_at_all_lie_at_the_bottom() -> None:
    """A logarithmic axis has no zero."""
    drawn = picture.picture({"kB": {"gq5": (100, [0, 0]), "qat8": (200, [5, 6])}})
    heights = [float(y) for y in re.findall(r'<circle cx=".*?" cy="(.*?)"', drawn)]
    assert max(heights) == picture.SIDE - picture.EDGE > min(heights)
