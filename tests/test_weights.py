"""Weights below eight bits, end to end: clustered, encoded, pruned, packed networks; budgets, rules, bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import nnac
from nnac import compiler, report
from nnac.cli import cli
from nnac.compiled import CompiledModel
from nnac.emulator import Emulator
from nnac.errors import ModelError, ProgramError
from nnac.floatmodel import FloatModel
from nnac.frontend import prepare
from nnac.graph import Graph
from nnac.isa import Engine, Load
from nnac.ops.conv import WEIGHT
from nnac.passes.centroid_folding import weighted_layers
from nnac.passes.codebook_encoding import codebook_encoding
from nnac.program import Program, dumps, loads
from nnac.reference import seeded
from nnac.report.account import WeightRow, blob_account, to_json, weight_account
from nnac.targets import Target, load_target, with_settings
from nnac.types import Array
from nnac.validate import validate
from nnac.weights.choice import ASSIGNERS, GENERATORS, Choice, WeightPlan, parse_weights
from nnac.weights.codebooks import encode
from nnac.weights.feedback import output_errors
from nnac.weights.moments import second_moments
from tests.nets import net
from tests.test_models import path_of
from tests.test_models import samples_of as samples_in

DIGITS = Path(nnac.__file__).parent.parent / "examples" / "digits"
DECODERS = ("fixed", "bitmap", "runs", "entropy")
GRID = np.float32(1 / 512)
SHAPES = {"w": (32, 8, 3, 3), "v": (64, 32, 3, 3), "u": (10, 64)}
Weights = dict[str, Array]


# -- nets ----------------------------------------------------------------------------------------------------------


def model_of(weights: Mapping[str, Any]) -> onnx.ModelProto:
    """Return two convolutions and a dense layer with these weights."""
    return net(
        """
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        b = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (b, v)
        d = Relu (c)
        e = GlobalAveragePool (d)
        f = Flatten (e)
        y = Gemm <transB = 1> (f, u)
        """,
        {"x": (1, 8, 16, 16)},
        **weights,
    )


def samples_of(count: int = 3) -> list[dict[str, Array]]:
    """Return inputs whose channels share factors, as real features do."""
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(8, 3))
    return [
        {"x": np.einsum("ij,jhw->ihw", mix, rng.normal(size=(3, 16, 16)))[None].astype(np.float32)}
        for _ in range(count)
    ]


def clustered(values: int) -> dict[str, Array]:
    """Return weights of so many values on the int8 grid; every channel has the largest one."""
    rng = np.random.default_rng(values)
    levels = np.unique(np.rint(np.linspace(-127, 127, values))).astype(np.int8)
    found = {}
    for name, shape in SHAPES.items():
        steps = np.clip(np.rint(rng.normal((values - 1) / 2, values / 5, shape)), 0, len(levels) - 1).astype(int)
        steps.reshape(shape[0], -1)[:, 0] = len(levels) - 1
        found[name] = levels[steps] * GRID
    return found


def gaussian() -> dict[str, Array]:
    """Return weights that nobody has clustered."""
    rng = np.random.default_rng(5)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}


def pruned(share: float) -> dict[str, Array]:
    """Return Gaussian weights, those of the smallest magnitude zero."""
    return {name: np.where(np.abs(w) < np.quantile(np.abs(w), share), 0, w) for name, w in gaussian().items()}


def two_of_four() -> dict[str, Array]:
    """Return weights with two non-zeros at most in any four neighbouring input channels."""
    found = {}
    for name, w in gaussian().items():
        fours = np.moveaxis(w, 1, -1).reshape(-1, 4).copy()
        np.put_along_axis(fours, np.abs(fours).argsort(axis=1)[:, :2], 0, axis=1)
        last = (w.shape[0], *w.shape[2:], w.shape[1])
        found[name] = np.ascontiguousarray(np.moveaxis(fours.reshape(last), -1, 1))
    return found


def decoding(*packers: str, **settings: Any) -> Target:
    """Return nna8 whose decoder knows only these packers."""
    rates = {f"decoder.{name}": 16 if name in packers else 0 for name in DECODERS}
    return with_settings(load_target("nna8"), rates | settings)


def compiled(weights: Weights, target: str | Target = "nna8", spec: Any = None, check: bool = True) -> CompiledModel:
    return nnac.compile(model_of(weights), target, samples_of(), weights=spec, check=check)


def rows_of(model: CompiledModel) -> list[WeightRow]:
    return weight_account(model.program)


def outputs(model: CompiledModel) -> Array:
    """Return int8 outputs for noise over the whole range."""
    program = model.program
    types = {name: program.tensor(name).type for name in program.inputs}
    return np.stack([Emulator(program).run(seeded(types, seed))[program.outputs[0]] for seed in range(4)])


# -- clustered weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "bits"), [(32, 5), (16, 4), (2, 1)])
def test_clustered_weights_change_no_bit_and_reach_the_entropy(values: int, bits: int) -> None:
    """Against the raw int8 form: the same outputs; the bytes are those of the entropy and a header."""
    packed, raw = compiled(clustered(values)), compiled(clustered(values), decoding())
    np.testing.assert_array_equal(outputs(packed), outputs(raw))
    for row, plain in zip(rows_of(packed), rows_of(raw), strict=True):
        assert (row.levels, row.bits, row.sqnr_db) == (values, bits, None)
        assert (plain.packer, plain.encoded_bytes) == ("raw", row.raw_bytes)
        blocks = 4
        assert 8 * row.encoded_bytes <= row.raw_bytes * row.entropy_bits * 1.02 + 8 * (row.table_bytes + 9 * blocks)
        assert row.encoded_bytes <= dict(row.runners_up)["raw"]
    assert packed.simulate().cycles < raw.simulate().cycles


@pytest.mark.parametrize("values", [32, 16, 2])
def test_folding_gives_the_int8_weights_of_plain_quantization(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every channel has the largest value, plain int8 quantization has the same bits without any folding."""
    folded = compiled(clustered(values))
    monkeypatch.setattr(compiler, "centroid_folding", lambda graph, plan, law: graph)
    np.testing.assert_array_equal(outputs(folded), outputs(compiled(clustered(values))))


def test_centroids_on_no_grid_cost_what_the_account_says() -> None:
    """Sixteen real values: at most sixteen int8 levels, and the loss in dB."""
    rng = np.random.default_rng(3)
    values = np.sort(rng.normal(0, 0.1, 16)).astype(np.float32)
    weights = {name: values[rng.integers(0, 16, shape)] for name, shape in SHAPES.items()}
    for row in rows_of(compiled(weights)):
        assert row.levels <= 16 and row.bits == 4
        assert row.sqnr_db is not None and 35 < row.sqnr_db < inf


def test_layers_that_should_be_clustered_and_are_not(tmp_path: Path) -> None:
    weights = clustered(32) | {"v": gaussian()["v"]}
    rules = tmp_path / "w.toml"
    rules.write_text("bits = 5\nclustered = true\n")
    with pytest.raises(ModelError, match=r"'c': 18,\d\d\d distinct values, allowed 32 for 5 bits") as caught:
        compiled(weights, spec=rules)
    assert "'a'" not in str(caught.value) and "'y'" not in str(caught.value)
    assert [row.levels for row in rows_of(compiled(clustered(32), spec=rules))] == [32] * 3


# -- packers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packer", DECODERS)
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_every_packer_runs_bit_for_bit(packer: str, bits: int) -> None:
    """Reference, emulator and adversarial orders, where the decoder knows one packer only and uses it."""
    model = compiled(pruned(0.8), decoding(packer), bits)
    large = max(rows_of(model), key=lambda row: row.raw_bytes)
    assert large.packer == packer and large.encoded_bytes < large.raw_bytes and large.levels <= 2**bits
    np.testing.assert_array_equal(outputs(model), outputs(compiled(pruned(0.8), decoding(), bits)))


def test_no_layer_takes_more_than_raw() -> None:
    for spec in (None, 7, 2):
        for row in rows_of(compiled(gaussian(), "nna8-tiny", spec, check=False)):
            assert row.encoded_bytes <= row.raw_bytes + 64  # a byte per block


@pytest.mark.parametrize("target", ["nna8", "nna8-tiny", "nna8-pow2"])
@pytest.mark.parametrize("generator", GENERATORS)
def test_every_generator_compiles_bit_for_bit(generator: str, target: str) -> None:
    bits = {"ternary": 2, "binary": 1}.get(generator, 4)
    for assigner in ASSIGNERS:
        model = compiled(gaussian(), target, f"{bits}:{generator}:{assigner}", check=assigner == "gptq")
        assert all(row.levels <= 2**bits and row.sqnr_db is not None for row in rows_of(model))


# -- zeros ---------------------------------------------------------------------------------------------------------


def array_cycles(model: CompiledModel) -> int:
    return model.simulate().busy[Engine.MAC]


def test_an_array_that_skips_zeros_takes_fewer_cycles() -> None:
    """Cycles fall with the density where the array skips, and only bytes where it does not."""
    skipping = with_settings(load_target("nna8"), {"mac.zero_skip": "row_group"})
    models = [(compiled(pruned(share), skipping), compiled(pruned(share))) for share in (0.0, 0.5, 0.75, 0.9)]
    skipped, dense = [[array_cycles(pair[i]) for pair in models] for i in range(2)]
    assert skipped == sorted(skipped, reverse=True) and len(set(skipped)) == 4
    assert skipped[0] == dense[0] and len(set(dense)) == 1 and skipped[3] < 0.5 * dense[3]
    latencies = [pair[0].simulate().cycles for pair in models]
    assert latencies == sorted(latencies, reverse=True) and len(set(latencies)) == 4
    sizes = [[sum(row.encoded_bytes for row in rows_of(pair[i])) for pair in models] for i in range(2)]
    assert sizes[0] == sizes[1] == sorted(sizes[0], reverse=True)
    for one, other in models:
        np.testing.assert_array_equal(outputs(one), outputs(other))


def test_two_of_four() -> None:
    """Two zeros in every four halve the folds; one four with three non-zeros undoes that for its columns."""
    skipping = with_settings(load_target("nna8"), {"mac.zero_skip": "2:4"})
    weights = two_of_four()
    spoilt = weights | {"v": weights["v"].copy()}
    spoilt["v"][40, :4, 1, 1] = 0.2
    full, half, most = (array_cycles(compiled(w, skipping)) for w in (gaussian(), weights, spoilt))
    assert half < 0.65 * full and half < most < full


def test_a_pinned_zero_stays_zero() -> None:
    """Codebooks keep exact zeros, so that pruning and clustering combine."""
    for row in rows_of(compiled(pruned(0.75), spec=4)):
        assert row.zeros >= 0.74 and row.levels <= 16


# -- the account ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [None, 5, 3])
def test_the_account_adds_up(spec: int | None) -> None:
    program = compiled(pruned(0.5), spec=spec).program
    rows, size = weight_account(program), len(dumps(program))
    assert [row.name for row in rows] == [layer.name for layer in program.layers if layer.encoding]
    for row, layer in zip(rows, [layer for layer in program.layers if layer.encoding], strict=True):
        assert layer.encoding is not None
        assert (row.raw_bytes, row.encoded_bytes) == (layer.weight_bytes, layer.encoding.nbytes)
        assert (row.levels, row.packer) == (layer.encoding.levels, layer.encoding.packer)
        assert row.raw_bytes == np.prod(row.shape) and 0 <= row.entropy_bits <= row.bits <= 8
    blob = blob_account(program, rows, size)
    assert sum(blob.parts().values()) == blob.blob == size and all(part >= 0 for part in blob.parts().values())
    assert blob.all_int8 >= blob.blob and json.loads(json.dumps(to_json(program, size)))["raw_bytes"] == sum(
        row.raw_bytes for row in rows
    )


def test_shapes_in_the_account() -> None:
    assert [row.shape for row in rows_of(compiled(gaussian()))] == [(32, 3, 3, 8), (64, 3, 3, 32), (10, 1, 1, 64)]


# -- rules ---------------------------------------------------------------------------------------------------------


def test_the_narrower_rule_wins(tmp_path: Path) -> None:
    """Name over operator over all."""
    rules = tmp_path / "w.toml"
    rules.write_text('bits = 6\n[op.Conv]\nbits = 4\ngenerator = "uniform"\n[node."c*"]\nbits = 3\n')
    assert [row.levels for row in rows_of(compiled(gaussian(), spec=rules))] == [16, 8, 64]
    choice = parse_weights(rules).choice("c", "Conv")
    assert choice == Choice(3, "uniform") and parse_weights("4:mu_law:gptq") == WeightPlan(Choice(4, "mu_law", "gptq"))


def test_groups_of_channels_have_a_table_each(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text("bits = 2\n[node.c]\ngroups = 8\n")
    plain, grouped = (rows_of(compiled(gaussian(), spec=spec))[1] for spec in (2, tmp_path / "w.toml"))
    assert plain.levels == 4 < grouped.levels <= 32
    assert plain.sqnr_db is not None and grouped.sqnr_db is not None and grouped.sqnr_db > plain.sqnr_db


RULES = {
    "bits = 0": "bits: found 0, allowed 1 to 8",
    "bits = 9": "bits: found 9, allowed 1 to 8",
    "bits = true": "bits: found True",
    'generator = "kmeans"': "generator: found 'kmeans', allowed lloyd_max",
    'assigner = "far"': "assigner: found 'far', allowed nearest, gptq",
    "bit = 5": "bit: unknown; allowed: bits",
    '[node."conv*"]\nbits = 4': "[node.'conv*'] matches no layer",
    "[op.Gru]\nbits = 4": "[op.Gru] matches no layer",
    "[node]\nc = 5": "expected a section",
    "bits = [": "cannot be read",
    'bits = 5\ngenerator = "ternary"': "node 'a': generator 'ternary' has no table of 5 bits",
    "bits = 4\ngroups = 11": "node 'y': groups = 11",
}


@pytest.mark.parametrize("text", RULES)
def test_bad_rules_are_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(text)
    with pytest.raises(ModelError) as caught:
        compiled(gaussian(), spec=tmp_path / "w.toml", check=False)
    assert RULES[text] in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        "0",
        "9",
        "-1",
        "five",
        "5:kmeans",
        "5:uniform:far",
        "auto",
        "auto:",
        "auto:x",
        "auto:dB",
        "auto:nandB",
        "5:uniform:gptq:1",
        "missing.toml",
    ],
)
def test_bad_specifications_are_one_message(spec: str) -> None:
    with pytest.raises(ModelError, match=r"^(--weights|weights)"):
        compiled(gaussian(), spec=spec, check=False)


def test_a_pattern_may_name_a_clustered_layer(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text('[node."c"]\nbits = 4\nclustered = true\n')
    assert [row.levels for row in rows_of(compiled(clustered(16), spec=tmp_path / "w.toml"))] == [16] * 3


# -- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["nna8", "nna8-tiny"])
@pytest.mark.parametrize("limit", [20_000, 12_000, 6_000])
def test_a_budget_of_bytes_is_kept(limit: int, target: str) -> None:
    model = compiled(gaussian(), target, f"auto:{limit}", check=False)
    assert sum(row.encoded_bytes for row in rows_of(model)) <= limit


def noise_at_outputs(graph: Graph, encoded: Graph, moments: Mapping[str, Array]) -> float:
    """Return the noise that the weights of all layers make at their outputs, each relative to its signal."""
    total = 0.0
    nodes = {node.name: node for node in encoded.nodes}
    for node in weighted_layers(graph):
        real = graph.constants[node.inputs[WEIGHT]].astype(np.float64)
        inputs = nodes[node.name].inputs
        if len(inputs) > 3:
            scale = encoded.constants[inputs[3]].astype(np.float64).reshape(-1, *(1,) * (real.ndim - 1))
            decoded = encoded.constants[inputs[WEIGHT]] * scale
            hessian = moments[node.name][0]
            flat = real.reshape(len(real), -1)
            error = (real - decoded).reshape(flat.shape)
            total += float(output_errors(error, hessian).sum() / output_errors(flat, hessian).sum())
    return total


@pytest.fixture(scope="module")
def measured() -> tuple[Graph, dict[str, Array]]:
    """Return the float graph of the unclustered net and its layers' second moments."""
    prepared = prepare(model_of(gaussian()))
    graph = compiler.float_graph(prepared)
    names = [node.name for node in weighted_layers(graph)]
    return graph, second_moments(prepared, graph, samples_of(), names)


@pytest.mark.parametrize("decibel", [10.0, 20.0, 30.0])
def test_a_budget_of_decibels_is_kept(decibel: float, measured: tuple[Graph, dict[str, Array]]) -> None:
    """The noise of all weights at their layers' outputs stays below, and fewer dB take fewer bytes."""
    graph, moments = measured
    law = load_target("nna8").arithmetic
    encoded = codebook_encoding(graph, parse_weights(f"auto:{decibel}dB"), law, moments)
    assert -10 * np.log10(noise_at_outputs(graph, encoded, moments)) >= decibel
    sizes = [
        sum(row.encoded_bytes for row in rows_of(compiled(gaussian(), spec=f"auto:{db}dB", check=False)))
        for db in (decibel, decibel + 8)
    ]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("spec", "words"), [("auto:100", "the smallest that 2 bits everywhere give is"), ("auto:99dB", "the closest is")]
)
def test_a_budget_that_cannot_be_met_says_the_closest(spec: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        compiled(gaussian(), spec=spec, check=False)


def test_a_budget_without_a_decoder_says_the_closest() -> None:
    with pytest.raises(ModelError, match=r"the closest that nna8.* can pack them into is 21376 bytes"):
        compiled(gaussian(), decoding(), "auto:20000", check=False)


# -- GPTQ ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("generator", ["lloyd_max", "uniform"])
def test_gptq_beats_nearest_on_every_layer(generator: str, bits: int) -> None:
    """Output error, by the second moments of real features, of each layer of the digits network."""
    prepared = prepare(DIGITS / "digits.onnx")
    graph = compiler.float_graph(prepared)
    with np.load(DIGITS / "calibration.npz") as archive:
        samples = [{"features": x[None]} for x in archive["features"][:16]]
    layers = weighted_layers(graph)
    moments = second_moments(prepared, graph, samples, [node.name for node in layers])
    for node in layers:
        weights, hessian = graph.constants[node.inputs[WEIGHT]], moments[node.name]
        found = [
            encode(weights, bits, generator, assigner, hessian=hessian if assigner == "gptq" else None)
            for assigner in ASSIGNERS
        ]
        errors = [_output_error(weights - one.dequantized(), hessian) for one in found]
        assert errors[1] < errors[0], node.name


@pytest.mark.parametrize("name", ["arm_kws_ds_cnn_s", "ultraface_slim_320"])
def test_gptq_beats_nearest_on_every_layer_of_real_networks(name: str, assets: Path) -> None:
    prepared = prepare(path_of(assets, name))
    graph = compiler.float_graph(prepared)
    layers = weighted_layers(graph)
    moments = second_moments(prepared, graph, samples_in(assets, name)[:12], [node.name for node in layers])
    for node in layers:
        weights, hessian = graph.constants[node.inputs[WEIGHT]], moments[node.name]
        for bits in (5, 3):
            near, fed = encode(weights, bits), encode(weights, bits, assigner="gptq", hessian=hessian)
            errors = [_output_error(weights - one.dequantized(), hessian) for one in (near, fed)]
            assert errors[1] < errors[0], (node.name, bits)


def _output_error(error: Array, hessian: Array) -> float:
    flat = error.reshape(len(hessian), -1, hessian.shape[1]).astype(np.float64)
    return float(np.einsum("gok,gkl,gol->", flat, hessian, flat, optimize=True))


def test_gptq_is_closer_to_float_at_the_output() -> None:
    samples, model = samples_of(8), model_of(gaussian())
    truth = [FloatModel(model).run(sample)["y"] for sample in samples]
    errors = []
    for assigner in ASSIGNERS:
        found = nnac.compile(model, "nna8", samples, weights=f"3:lloyd_max:{assigner}")
        errors.append(sum(float(((found.run(s)["y"] - t) ** 2).sum()) for s, t in zip(samples, truth, strict=True)))
    assert errors[1] < errors[0]


# -- damage --------------------------------------------------------------------------------------------------------


def damaged(program: Program, address: int, value: int) -> Program:
    """Return the program with one byte of its constants changed, and every digest right."""
    constants = program.constants.copy()
    constants[address] = value
    return loads(dumps(replace(program, constants=constants)))


def packed_load(program: Program, packer: int) -> Load:
    return next(i for i in program.instructions if isinstance(i, Load) and i.packer == packer)


def test_a_damaged_file_is_refused() -> None:
    program = compiled(clustered(16), check=False).program
    data = bytearray(dumps(program))
    data[-5] ^= 1
    with pytest.raises(ProgramError, match=r"does not match its digest|damaged"):
        loads(bytes(data))


@pytest.mark.parametrize("packer", DECODERS)
def test_a_damaged_block_of_weights_is_one_message(packer: str) -> None:
    """Even where the digests are right: the first byte of a block says packed or stored, and nothing else."""
    program = compiled(pruned(0.8), decoding(packer), 4, check=False).program
    load = packed_load(program, 1 + DECODERS.index(packer))
    with pytest.raises(ProgramError, match=rf"packed weights \({packer}\) are damaged: the first byte is 7"):
        validate(damaged(program, load.source, 7))
    validate(damaged(program, load.source, 7), runs=False)  # time asks what weights take, not what they are
    skipping = replace(program.target, mac=replace(program.target.mac, zero_skip="row"))
    with pytest.raises(ProgramError, match="damaged: the first byte is 7"):
        validate(replace(damaged(program, load.source, 7), target=skipping), runs=False)


def test_an_index_outside_the_table_is_one_message() -> None:
    """Three values take two bits; the fourth index means nothing."""
    rng = np.random.default_rng(0)
    weights = {name: rng.integers(-1, 2, shape).astype(np.float32) for name, shape in SHAPES.items()}
    program = compiled(weights, decoding("fixed"), check=False).program
    load = packed_load(program, 1)
    assert load.table_bytes == 3
    with pytest.raises(ProgramError, match=r"packed weights \(fixed\) are damaged"):
        validate(damaged(program, load.source + 1, 0xFF))


def test_a_hostile_record_of_an_encoding_is_refused() -> None:
    program = compiled(clustered(16), check=False).program
    layer = next(layer for layer in program.layers if layer.encoding)
    assert layer.encoding is not None
    for changes in ({"packer": "x\x1b"}, {"levels": "many"}, {"sqnr_db": "loud"}, {"sizes": (("fixed", -1),)}):
        wrong = replace(layer, encoding=replace(layer.encoding, **changes))
        layers = tuple(wrong if one is layer else one for one in program.layers)
        with pytest.raises(ProgramError):
            loads(dumps(replace(program, layers=layers)))


# -- screens -------------------------------------------------------------------------------------------------------


def test_the_screen_tells_packing_from_skipping() -> None:
    """Packing is fewer bytes, skipping is fewer cycles: a line each, where it happens."""
    skipping = with_settings(load_target("nna8"), {"mac.zero_skip": "row_group"})
    screens = []
    for target, spec in ((skipping, 4), (load_target("nna8"), 4), (decoding(), None)):
        model = compiled(pruned(0.75), target, spec, check=False)
        text = report.text(report.screen(model.simulate(), 1, "m.nna"))
        assert len(text.splitlines()) <= 24 and all(len(line) <= 80 for line in text.splitlines())
        screens.append(text)
    packed = r"\nweights  +21,376 bytes packed into [\d,]+ \(\d\.\d\d bits each\); constants [\d,]+\n"
    assert [bool(re.search(packed, text)) for text in screens] == [True, True, False]
    skipped = r"\nzeros  +the array skips \d\d% of its cycles: [\d,]+ of [\d,]+\n"
    assert [bool(re.search(skipped, text)) for text in screens] == [True, False, False]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a model and its samples, and work there."""
    onnx.save(model_of(gaussian()), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.stack([sample["x"] for sample in samples_of()]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="nnac")


COMPILE = ("compile", "m.onnx", "--calibrate", "x.npz", "-o", "m.nna")


def test_the_command_line_encodes_and_accounts(folder: Path) -> None:
    """`compile --weights`, then `inspect --weights` as tables and as JSON."""
    done = command(*COMPILE, "--weights", "5:lloyd_max:gptq", "--check")
    assert done.exit_code == 0 and " packed into " in done.stdout
    text = command("inspect", "m.nna", "--weights", "--json", "w.json")
    assert text.exit_code == 0
    lines = text.stdout.splitlines()
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    for words in ("weights of", "entropy", "SQNR", "with int8 weights", "float32 weights, bias", "others, bytes"):
        assert words in text.stdout
    data = json.loads((folder / "w.json").read_text())
    assert [entry["name"] for entry in data["tensors"]] == ["a", "c", "y"]
    assert {"name", "shape", "raw_bytes", "encoded_bytes", "entropy_bits", "packer"} <= set(data["tensors"][0])
    assert sum(data["blob"].values()) == data["blob_bytes"] == (folder / "m.nna").stat().st_size
    alone = command("inspect", "m.nna", "--weights", "--json", "-")
    assert json.loads(alone.stdout) == data


def test_wrong_uses_of_the_command_line(folder: Path) -> None:
    for spec, words in (("9", "found 9, allowed 1 to 8"), ("auto:100", "the smallest"), ("no.toml", "cannot be read")):
        failed = command(*COMPILE, "--weights", spec)
        assert failed.exit_code == 1 and words in failed.stderr and "Traceback" not in failed.stderr
    assert not (folder / "m.nna").exists()
    assert command(*COMPILE).exit_code == 0
    assert command("inspect", "m.nna", "--json", "w.json").exit_code == 2
