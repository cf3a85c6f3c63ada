"""Streams: calls once per period, chunks of frames, pipelines of programs, and all of it on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import nnac
from examples.transducer_size import generate
from nnac.chunks import chunks
from nnac.cli import cli
from nnac.compiled import CompiledModel
from nnac.errors import ModelError, NnacError
from nnac.isa import Space
from nnac.pipeline import Part, Pipeline, PipelineSession, costs, load_pipeline, schedule
from nnac.streaming import queue, stream
from nnac.targets import load_target, with_settings
from nnac.timing import is_resident, simulate, transfer_cycles

FEATURES, HIDDEN = 6, 8


def recurrent(seed: int = 0, hidden: int = HIDDEN) -> onnx.ModelProto:
    """Return an LSTM over `frames` (T, 1, 6) with its states, and `encoded` (T, hidden)."""
    size = generate.Size(FEATURES, ((hidden,), ()), 1, 4, (4,), 4, 4)
    return generate.encoder(size, np.random.default_rng(seed)).model()


@cache
def stepper(frames: int = 1) -> CompiledModel:
    return nnac.compile(recurrent(), "nna8", "random", shapes={"frames": (frames, 1, FEATURES)})


def large() -> CompiledModel:
    """Return a net whose weights do not stay: a weight buffer of 4 KiB for 32 KiB."""
    small = with_settings(load_target("nna8"), {"memory.weights.bytes": 4096})
    return nnac.compile(recurrent(hidden=80), small, "random", shapes={"frames": (1, 1, FEATURES)})


# -- one program ---------------------------------------------------------------------------------------------------


def test_queue_by_hand() -> None:
    """Calls wait for their arrival and for each other."""
    assert queue([(0, 5), (3, 2), (4, 1), (10, 1)]) == [5, 7, 8, 11]


def test_weights_that_stay_are_loaded_once() -> None:
    """The first call is a cold inference, the later ones are warm, and only it may be late."""
    program = stepper().program
    cold, warm = simulate(program).milliseconds, simulate(program, warm=True).milliseconds
    assert is_resident(program)
    assert warm < cold
    period = (warm + cold) / 2
    found = stream(program, period, 20)
    assert found.resident
    assert (found.first.milliseconds, found.steady.milliseconds) == (cold, warm)
    assert found.waits_ms[0] == cold
    assert found.waits_ms[1] == pytest.approx(cold - period + warm)
    assert found.waits_ms[-1] == pytest.approx(warm)
    assert 1 <= found.misses < 20
    assert found.real_time_factor == warm / period
    assert found.microwatts == pytest.approx(sum(found.steady.energy.values()) / 1e6 / (period / 1e3))


def test_weights_that_do_not_stay_are_loaded_by_every_call() -> None:
    """Bytes per call do not fall; a period below the call is never kept, and the queue grows by the difference."""
    program = large().program
    found = stream(program, simulate(program).milliseconds / 2, 10)
    assert not found.resident
    assert found.first.traffic == found.steady.traffic
    assert found.misses == 10
    assert found.waits_ms[9] - found.waits_ms[8] == pytest.approx(found.period_ms)


@pytest.mark.parametrize(("period", "steps"), [(0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1, 0)])
def test_periods_are_positive(period: float, steps: int) -> None:
    """Nothing else is a stream."""
    with pytest.raises(NnacError, match="positive period"):
        stream(stepper().program, period, steps)


# -- chunks --------------------------------------------------------------------------------------------------------


def test_chunks_share_what_is_not_recurrent() -> None:
    """More frames per call: fewer bytes per frame, longer to wait; the call of one is the stream of one."""
    found = chunks(recurrent(), {"frames": (None, 1, FEATURES)}, [1, 2, 4], 0.5)
    assert [c.frames for c in found] == [1, 2, 4]
    assert found[0].streaming.steady.cycles == stream(stepper().program, 0.5).steady.cycles
    assert found[2].delay_ms == pytest.approx(3 * 0.5 + found[2].streaming.steady.milliseconds)
    assert found[2].streaming.period_ms == 2
    assert found[0].frame_bytes >= found[1].frame_bytes >= found[2].frame_bytes
    assert found[2].frame_ms < found[0].frame_ms


@pytest.mark.parametrize("place", [{}, {"frames": (1, 1, 6)}, {"frames": (None, None, 6)}])
def test_chunks_need_a_place(place: dict[str, tuple[int | None, ...]]) -> None:
    """One open dimension per input that is named."""
    with pytest.raises(ModelError, match="one open dimension"):
        chunks(recurrent(), place, [1], 1)


# -- pipelines -----------------------------------------------------------------------------------------------------


@cache
def behind() -> CompiledModel:
    """Return an LSTM on what `stepper` gives."""
    size = generate.Size(HIDDEN, ((4,), ()), 1, 4, (4,), 4, 4)
    net = generate.encoder(size, np.random.default_rng(5))
    net.inputs = [i for i in net.inputs if i.name != "frames"]
    net.nodes = [n for n in net.nodes if n.output[0] != "frames3"]
    net.input("encoded_before", 1, HIDDEN)
    net.nodes.insert(0, onnx.helper.make_node("Reshape", ["encoded_before", "three"], ["frames"]))
    net.constant("three", np.array([1, 1, HIDDEN], np.int64))
    return nnac.compile(net.model(), "nna8", "random")


def pair(rate: float = 1.0) -> Pipeline:
    wires = {"encoded_before": ("first", "encoded")}
    return Pipeline(0.5, {"first": Part(stepper().program), "second": Part(behind().program, rate, wires)})


def test_a_pipeline_is_its_parts_by_hand() -> None:
    """Values flow along the wires, parts with half the rate run every other frame, states live on."""
    x = np.random.default_rng(1).normal(size=(6, 1, 1, FEATURES)).astype(np.float32)
    joined, one, two = PipelineSession(pair(0.5)), stepper().session(), behind().session()
    for frame in range(6):
        found = joined.step({"first": {"frames": x[frame]}})
        encoded = one.step({"frames": x[frame]})
        assert set(found) == ({"first", "second"} if frame % 2 else {"first"})
        if frame % 2:
            expected = two.step({"encoded_before": encoded["encoded"]})
            np.testing.assert_array_equal(found["second"]["encoded"], expected["encoded"])
    assert joined.calls == {"first": 6, "second": 3}
    joined.reset()
    assert joined.calls == {"first": 0, "second": 0}
    with pytest.raises(ModelError, match="which has not run yet"):
        joined.call("second", {})


def test_the_schedule_follows_the_rates() -> None:
    """Calls are spread evenly and add up to the rate."""
    names = [[c.part for c in schedule(pair(rate), 8)] for rate in (0.25, 1.0, 2.5)]
    assert [n.count("second") for n in names] == [2, 8, 20]
    assert names[0][:6] == ["first"] * 4 + ["second", "first"]


def test_a_swap_moves_the_states_in_the_scratchpad() -> None:
    """In and out, through the port of the memory outside the chip."""
    program = stepper().program
    found, states = costs(program), [program.tensor(source) for source, _ in program.states]
    moved = [t.type.nbytes for t in states if t.space == Space.SRAM]
    assert len(moved) == 2
    cycles = 2 * sum(transfer_cycles(program.target.memory["dram"], [(n, n)]) for n in moved)
    assert found.swap.nbytes == 2 * sum(moved)
    assert found.swap.ms == pytest.approx(cycles / program.target.clock_mhz / 1e3)
    assert found.of(True, True).ms == found.warm.ms + found.swap.ms
    assert found.of(False, False) == found.cold


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: {"first": replace(p["first"], rate=0)}, "part 'first' runs 0 times per frame"),
        (lambda p: p | {"second": replace(p["second"], wires={"x": ("first", "encoded")})}, "second.x is no input"),
        (
            lambda p: p | {"second": replace(p["second"], wires={"encoded_before": ("third", "y")})},
            "takes third.y, which does not exist",
        ),
        (
            lambda p: p | {"first": replace(p["first"], wires={"frames": ("second", "encoded")})},
            r"first.frames has shape \(1, 1, 6\), second.encoded has \(1, 4\)",
        ),
        (lambda p: {}, "there is no part"),
        (lambda p: p | {"other": Part(large().program)}, "compiled for different machines"),
    ],
)
def test_pipelines_that_do_not_hold_together(change: Callable[[dict[str, Part]], dict[str, Part]], words: str) -> None:
    """Every fault is named."""
    with pytest.raises(ModelError, match=words):
        Pipeline(1, change(dict(pair().parts)))


def test_a_period_is_positive() -> None:
    """Nothing else is a frame."""
    with pytest.raises(ModelError, match="period_ms is 0"):
        Pipeline(0, pair().parts)


TOML = """
period_ms = 0.5
[parts.first]
program = "first.nna"
[parts.second]
program = "second.nna"
rate = 0.5
inputs = { encoded_before = "first.encoded" }
"""


def test_a_pipeline_from_a_file(tmp_path: Path) -> None:
    """The file says what the classes do."""
    stepper().save(tmp_path / "first.nna")
    behind().save(tmp_path / "second.nna")
    (tmp_path / "both.toml").write_text(TOML)
    found, expected = load_pipeline(tmp_path / "both.toml"), pair(0.5)
    assert found.period_ms == expected.period_ms
    for name, part in expected.parts.items():
        mine = found.parts[name]
        assert (mine.program.digest(), mine.rate, mine.wires) == (part.program.digest(), part.rate, dict(part.wires))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("period_ms = 1", "the file: parts is missing"),
        ("period_ms = true\n[parts.a]\nprogram = 'a'", "period_ms is True, expected int or float"),
        ("period_ms = 1\nparts = 3", "parts is 3, expected dict"),
        ("period_ms = 1\nspeed = 2\n[parts.a]\nprogram = 'a'", "speed is unknown; allowed: period_ms, parts"),
        ("period_ms = 1\n[parts.a]\nrate = 2", "part 'a': program is missing"),
        ("period_ms = 1\n[parts]\na = 2", "part 'a' is not a section"),
        ("period_ms = 1\n[parts.a]\nprogram = 'a'\ninputs = { x = 'y' }", "input 'x' takes 'y'; expected part.output"),
        ("period_ms = ", "cannot be read"),
    ],
)
def test_pipeline_files_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    """One clear message each, before any program is opened."""
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ModelError, match=words):
        load_pipeline(tmp_path / "p.toml")


# -- command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a model, its program and six steps of input."""
    monkeypatch.chdir(tmp_path)
    onnx.save(recurrent(), "net.onnx")
    stepper().save("net.nna")
    np.savez("x.npz", frames=np.random.default_rng(2).normal(size=(6, 1, 1, FEATURES)).astype(np.float32))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


COMPILE = ("compile", "net.onnx", "--calibrate", "random", "--shape", "frames=1,1,6", "-o", "out.nna")


def test_states_by_name(here: Path) -> None:
    """States are found, or named, or there are none; `inspect` shows them."""
    assert run(*COMPILE).exit_code == 0
    found = nnac.load("out.nna").program.states
    shown = run("inspect", "out.nna").stdout
    assert "states" in shown
    assert "first0_c_out" in shown
    pairs = ("--state", "first0_h=first0_h_out", "--state", "first0_c=first0_c_out")
    assert run(*COMPILE, *pairs).exit_code == 0
    assert nnac.load("out.nna").program.states == found
    assert run(*COMPILE, "--state", "none").exit_code == 0
    assert nnac.load("out.nna").program.states == ()
    assert "states" not in run("inspect", "out.nna").stdout


@pytest.mark.parametrize(
    ("states", "code", "words"),
    [
        (("h",), 2, "'h' is not an input and an output (such as h_in=h_out), nor `none`"),
        (("none", "a=b"), 2, "--state none does not go together with other states"),
        (("a=b", "a=c"), 2, "input 'a' is given more than once"),
        (("a=first0_h_out",), 1, "'a' is no input"),
    ],
)
def test_states_that_are_wrong(here: Path, states: tuple[str, ...], code: int, words: str) -> None:
    """Wrong usage is 2, a model that does not fit is 1."""
    found = run(*COMPILE, *(part for state in states for part in ("--state", state)))
    assert found.exit_code == code
    assert words in " ".join(found.stderr.replace("│", " ").split())


def test_run_goes_along_the_steps(here: Path) -> None:
    """All steps at once, or two halves with the states in a file: the same bits, those of a session."""
    x = dict(np.load("x.npz"))
    expected = stepper().session().run(x, raw=True)["encoded"]
    np.savez("a.npz", frames=x["frames"][:3])
    np.savez("b.npz", frames=x["frames"][3:])
    assert run("run", "net.nna", "--input", "x.npz", "--raw", "-o", "y.npz").exit_code == 0
    np.testing.assert_array_equal(np.load("y.npz")["encoded"], expected)
    assert run("run", "net.nna", "--input", "a.npz", "--raw", "-o", "ya.npz", "--save-state", "s.npz").exit_code == 0
    assert run("run", "net.nna", "--input", "b.npz", "--raw", "-o", "yb.npz", "--load-state", "s.npz").exit_code == 0
    np.testing.assert_array_equal(np.concatenate([np.load(f"y{n}.npz")["encoded"] for n in "ab"]), expected)


def test_files_of_a_folder_are_sequences(here: Path) -> None:
    """Each starts from zeros."""
    x = dict(np.load("x.npz"))
    Path("all").mkdir()
    for name in "ab":
        np.savez(f"all/{name}.npz", **x)
    assert run("run", "net.nna", "--input", "all", "--raw", "-o", "y.npz").exit_code == 0
    found = np.load("y.npz")["encoded"]
    np.testing.assert_array_equal(found[:6], found[6:])


def test_states_of_others(here: Path) -> None:
    """A state file of another program, no state file, and a program without states: one line each."""
    behind().save("other.nna")
    behind().session().state().save("other.npz")
    found = run("run", "net.nna", "--input", "x.npz", "--load-state", "other.npz")
    assert (found.exit_code, "the state belongs to another program" in found.stderr) == (1, True)
    found = run("run", "net.nna", "--input", "x.npz", "--load-state", "x.npz")
    assert (found.exit_code, "holds no state of a program" in found.stderr) == (1, True)
    run(*COMPILE, "--state", "none")
    found = run("run", "out.nna", "--input", "x.npz", "--save-state", "s.npz")
    assert (found.exit_code, "this one has none" in found.stderr) == (1, True)
    assert not Path("s.npz").exists()


def test_diff_goes_along_the_steps(here: Path) -> None:
    """Samples hold the inputs that are no states."""
    found = run("diff", "net.onnx", "net.nna", "--input", "x.npz", "--shape", "frames=1,1,6")
    assert found.exit_code == 0, found.stderr
    assert "6 samples" in found.stdout


def test_simulate_a_stream(here: Path) -> None:
    """Screen, JSON and contract; the JSON says what the API says."""
    found = run("simulate", "net.nna", "--stream", "--period-ms", "0.5", "--explain")
    assert found.exit_code == 0, found.stderr
    for words in ("states       2 kept between calls", "stay in the weight buffer", "real-time factor", "Contract."):
        assert words in found.stdout
    data = json.loads(run("simulate", "net.nna", "--stream", "--period-ms", "0.5", "--json", "-").stdout)
    expected = stream(stepper().program, 0.5)
    assert data["real_time_factor"] == expected.real_time_factor
    assert data["later"]["cycles"] == expected.steady.cycles
    assert data["late_calls"] == expected.misses
    slower = run("simulate", "net.nna", "--stream", "--period-ms", "0.0001", "--steps", "7").stdout
    assert "7 of 7 calls late; each call falls" in slower


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--stream",), "--stream needs --period-ms"),
        (("--period-ms", "1"), "belong to --stream"),
        (("--stream", "--period-ms", "1", "--warm"), "about one inference"),
    ],
)
def test_stream_options_that_do_not_fit(here: Path, options: tuple[str, ...], words: str) -> None:
    """Wrong usage is 2."""
    found = run("simulate", "net.nna", *options)
    assert (found.exit_code, words in found.stderr) == (2, True)


def test_chunks_on_the_command_line(here: Path) -> None:
    """One row per size."""
    found = run("chunks", "net.onnx", "--along", "frames=k,1,6", "--sizes", "1,2,4", "--period-ms", "0.5")
    assert found.exit_code == 0, found.stderr
    assert [line.split()[0] for line in found.stdout.splitlines()[-3:]] == ["1", "2", "4"]
    for wrong in ("frames=1,1,6", "frames"):
        assert run("chunks", "net.onnx", "--along", wrong, "--sizes", "1", "--period-ms", "1").exit_code == 2
    assert run("chunks", "net.onnx", "--along", "frames=k,1,6", "--sizes", "0", "--period-ms", "1").exit_code == 2


def test_a_pipeline_on_the_command_line(here: Path) -> None:
    """Parts with their calls, and the whole."""
    stepper().save("first.nna")
    behind().save("second.nna")
    Path("both.toml").write_text(TOML)
    found = run("pipeline", "both.toml", "--frames", "8")
    assert found.exit_code == 0, found.stderr
    assert "8 frames of 0.5 ms" in found.stdout
    rows = {line.split()[0]: line.split() for line in found.stdout.splitlines() if line}
    assert (rows["first"][1], rows["second"][1]) == ("8", "4")
