"""The twin against the compiler: every tensor of the integer graph, bit by bit, on every kind of layer and machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training companions need the extra `train` (make test-train)")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import nnac  # noqa: E402
from nnac.calibration import Range  # noqa: E402
from nnac.compiler import float_graph, integer_graph  # noqa: E402
from nnac.errors import ModelError  # noqa: E402
from nnac.frontend import prepare  # noqa: E402
from nnac.norms import encode_gains, encode_offsets  # noqa: E402
from nnac.numerics import Rounding, encode_ratio  # noqa: E402
from nnac.ops import exact  # noqa: E402
from nnac.targets import Target, load_target  # noqa: E402
from nnac.train import CSP, GQ, S8BQAT, Twin, compress, emulate, export, verify  # noqa: E402
from nnac.train.law import Ratio, channel_ratios, normalized, requantized  # noqa: E402
from nnac.train.scales import Scale  # noqa: E402


class Pictures(nn.Module):
    """Convolutions of all kinds, clamps, functions, sums and products, pools, concatenation, slices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, stride=2)
        self.point, self.grouped = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(16, 16, 3, groups=2)
        self.largest, self.mean = nn.MaxPool2d(2), nn.AvgPool2d(3, stride=2, padding=1)
        self.silu, self.leaky, self.gelu, self.swish = nn.SiLU(), nn.LeakyReLU(0.1), nn.GELU(), nn.Hardswish()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm(self.first(x)))
        y = F.relu(self.largest(self.depthwise(x)))
        z = self.silu(self.point(y)) - y
        z = torch.cat([z, self.leaky(self.point(y))], 1) * torch.sigmoid(torch.cat([y, y], 1))
        z = self.gelu(self.grouped(F.relu6(self.mean(z)) + self.swish(self.mean(z))))
        return torch.sigmoid(self.head(self.pool(z[:, 4:12]).flatten(1))), z


class Sounds(nn.Module):
    """Convolutions along time, transposition, split."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(5, 12, 5, padding=2, stride=2)
        self.dilated = nn.Conv1d(12, 12, 3, groups=12, padding=2, dilation=2)
        self.mean, self.largest, self.dense, self.elu = nn.AvgPool1d(2), nn.MaxPool1d(2), nn.Linear(12, 9), nn.ELU()

    def forward(self, x: Any) -> Any:
        y = F.relu(self.first(x))
        y = self.largest(self.mean(self.dilated(y) + y)).transpose(1, 2)
        a, b = self.dense(y).split([4, 5], -1)
        return torch.tanh(a), self.elu(b)


class Sequences(nn.Module):
    """An LSTM of two layers and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 9, 2, batch_first=True), nn.GRU(9, 7, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.gru(self.lstm(x)[0])[0])


class Both(nn.Module):
    """Recurrent layers of two directions."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 9, 2, bidirectional=True), nn.GRU(18, 7, bidirectional=True)
        self.head = nn.Linear(14, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.gru(self.lstm(x)[0])[0][-1])


class Predictor(nn.Module):
    """An embedding and an LSTM with states given and returned."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(11, 6), nn.LSTM(6, 9)

    def forward(self, ids: Any, hidden: Any, cell: Any) -> Any:
        y, (h, c) = self.lstm(self.embedding(ids), (hidden, cell))
        return y, h, c


class Joint(nn.Module):
    """A transducer's joint network."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.predictor, self.out = nn.Linear(9, 16), nn.Linear(7, 16), nn.Linear(16, 11)

    def forward(self, encoded: Any, predicted: Any) -> Any:
        return self.out(torch.tanh(self.encoder(encoded).unsqueeze(2) + self.predictor(predicted).unsqueeze(1)))


class Rows(nn.Module):
    """Layer norms of all kinds, softmax along two axes, functions of functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        self.norm, self.bare, self.plane = nn.LayerNorm(16), nn.LayerNorm(16, 1e-3, False), nn.LayerNorm((5, 16))
        self.softmax = nn.Softmax(1)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        y = torch.relu(self.norm(x)) + self.bare(x)
        z = torch.tanh(torch.sigmoid(self.plane(y)))
        z = z * torch.sigmoid(z)
        y = F.relu6(1 - y / 3).mul(0.7) + F.gelu(-y, approximate="tanh")
        return torch.softmax(self.last(z - 0.1), dim=-1), self.softmax(y)


class Residual(nn.Module):
    """A residual stream of int16: an embedding of frames, two blocks with a norm each, and a norm behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(3))
        self.wide, self.narrow = (nn.ModuleList(nn.Linear(*s) for _ in range(2)) for s in ((12, 20), (20, 12)))

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=False):
            x = x + narrow(torch.relu(wide(norm(x))))
        return self.head(self.norms[2](x))


PIECES: dict[str, Callable[[int], tuple[nn.Module, ...]]] = {
    "dense": lambda n: (nn.Linear(n, n),),
    "norm": lambda n: (nn.LayerNorm(n),),
    "softmax": lambda n: (nn.Softmax(-1),),
    "relu": lambda n: (nn.ReLU(),),
    "tanh": lambda n: (nn.Tanh(),),
    "swish": lambda n: (nn.SiLU(),),
    "convolution": lambda n: (nn.Conv1d(n, n, 3, padding=1),),
    "depthwise": lambda n: (nn.Conv1d(n, n, 3, padding=1, groups=n),),
    "largest": lambda n: (nn.MaxPool1d(3, 1, 1),),
    "lstm": lambda n: (nn.LSTM(n, n, batch_first=True),),
    "gru": lambda n: (nn.GRU(n, n, batch_first=True),),
    "gate": lambda n: (nn.Linear(n, n),),
    "both": lambda n: (nn.Linear(2 * n, n),),
    "block": lambda n: (nn.LayerNorm(n), nn.Linear(n, n)),
    "numbers": lambda n: (),
}


class Chain(nn.Module):
    """Pieces behind each other, on (batch, time, n)."""

    def __init__(self, names: Sequence[str], n: int) -> None:
        super().__init__()
        self.names, self.pieces = names, nn.ModuleList(nn.ModuleList(PIECES[name](n)) for name in names)

    def forward(self, x: Any) -> Any:
        for name, parts in zip(self.names, self.pieces, strict=True):
            match name:
                case "convolution" | "depthwise" | "largest":
                    x = parts[0](x.transpose(1, 2)).transpose(1, 2)
                case "lstm" | "gru":
                    x = parts[0](x)[0]
                case "gate":
                    x = x * torch.sigmoid(parts[0](x))
                case "both":
                    x = parts[0](torch.cat([x, torch.tanh(x)], -1))
                case "block":
                    x = x + parts[1](torch.relu(parts[0](x)))
                case "numbers":
                    x = 0.25 - x * 3
                case _:
                    x = parts[0](x)
        return x


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], int]] = {
    "pictures": (Pictures, ((2, 3, 22, 22),), 25),
    "sounds": (Sounds, ((2, 5, 40),), 12),
    "sequences": (Sequences, ((2, 9, 6),), 2),
    "both": (Both, ((8, 2, 6),), 4),
    "rows": (Rows, ((2, 5, 6),), 21),
    "residual": (Residual, ((2, 5, 6),), 12),
    "joint": (Joint, ((2, 5, 9), (2, 4, 7)), 9),
}
"""Makers, shapes of the inputs, and how many tensors are compared at least (others vanish in the compiler)."""

MODES = [mode for mode in Rounding if mode != Rounding.ONNX]
LAWS: dict[str, dict[str, Any]] = {
    **{mode.label: {"rounding": mode.label} for mode in MODES},
    **{f"{mode.label}, shifts": {"rounding": mode.label, "power_of_two_scales": True} for mode in MODES},
    "a scale per tensor": {"per_channel": False},
    "16 bits, wrapping": {"accumulator_bits": 16, "accumulator_overflow": "wrap"},
    "16 bits, saturating": {"accumulator_bits": 16, "accumulator_overflow": "saturate"},
}


def machine(**law: Any) -> Target:
    """Return nna8 with another arithmetic."""
    target = load_target("nna8")
    return replace(target, arithmetic=replace(target.arithmetic, **law))


def twin_of(name: str, target: Target, seed: int = 0, **options: Any) -> tuple[Twin, tuple[Any, ...]]:
    """Return the observed twin of a net with random weights, and inputs."""
    torch.manual_seed(seed)
    make, shapes, _ = NETS[name]
    inputs = tuple(torch.randn(shape) for shape in shapes)
    return emulate(make().eval(), target, [inputs], **options), inputs


# -- bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", NETS)
def test_every_tensor_equals_the_compiled_graphs(name: str, law: str, tmp_path: Path) -> None:
    """Export, read with the written scales, quantize: each tensor has the twin's integers."""
    twin, inputs = twin_of(name, machine(**LAWS[law]), seed=len(law))
    exported = export(twin, tmp_path / "net.onnx", inputs, check=False)
    assert verify(twin, exported, inputs) >= NETS[name][2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("name", NETS)
def test_a_gpu_computes_the_same_integers(name: str) -> None:
    """Every tensor of a twin that was moved there, and gradients that end."""
    twin, inputs = twin_of(name, machine())
    expected = twin.integers(*inputs)
    inputs = tuple(x.cuda() for x in inputs)
    for tensor, found in twin.cuda().integers(*inputs).items():
        assert torch.equal(found.cpu(), expected[tensor]), tensor
    out = twin(*inputs)
    (out[0] if isinstance(out, tuple) else out).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in twin.model.parameters())


@pytest.mark.parametrize("seed", range(20))
def test_random_chains_equal_their_compiled_graphs(seed: int, tmp_path: Path) -> None:
    """Whatever follows what, on machines of all kinds."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    names, n = rng.choice(list(PIECES), int(rng.integers(3, 10))).tolist(), int(rng.integers(3, 9))
    x, law = torch.randn(2, 7, n), str(rng.choice(list(LAWS)))
    twin = emulate(Chain(names, n).eval(), machine(**LAWS[law]), [x])
    assert verify(twin, export(twin, tmp_path / "net.onnx", x, check=False), (x,)) >= 2


def test_residual_streams_are_wide(tmp_path: Path) -> None:
    """What is added up is int16, just what the compiler makes int16 when nobody tells it."""
    twin, inputs = twin_of("residual", machine())
    kinds = {node.name: kind for node, kind in twin.plan.kinds.items() if isinstance(kind, Scale)}
    wide = {name for name, kind in kinds.items() if kind.quant.bits == 16}
    assert wide == {"first", "narrow_0", "add", "narrow_1", "add_1"}
    exported = export(twin, tmp_path / "net.onnx", inputs, check=False)
    ranges = {name: Range(float(kind.low), float(kind.high)) for name, kind in kinds.items()}
    graph = integer_graph(float_graph(prepare(exported.model)), ranges, twin.target)
    made = [value for value in graph.values.values() if value.type.dtype == "int16" and value.origin is not None]
    assert {value.origin.name for value in made if value.origin is not None} == wide


class Skipping(nn.Module):
    """An LSTM whose hidden values a norm and a sum read."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.norm = nn.LSTM(6, 9), nn.LayerNorm(9)

    def forward(self, x: Any) -> Any:
        y = self.lstm(x)[0]
        return y + self.norm(y)


def test_hidden_values_stay_narrow(tmp_path: Path) -> None:
    """The hidden values of a layer are int8, whoever reads them."""
    torch.manual_seed(0)
    x = torch.randn(5, 2, 6)
    twin = emulate(Skipping(), machine(), [x])
    assert {kind.quant.bits for kind in twin.plan.kinds.values() if isinstance(kind, Scale)} == {8}
    assert verify(twin, export(twin, tmp_path / "net.onnx", x), (x,)) >= 3


def test_verify_finds_a_wrong_bit(tmp_path: Path) -> None:
    """A weight that changed behind the export shows."""
    twin, inputs = twin_of("joint", machine())
    exported = export(twin, tmp_path / "net.onnx", inputs)
    with torch.no_grad():
        twin.model.encoder.weight[0] *= 1.05
    with pytest.raises(ModelError, match="integers differ"):
        verify(twin, exported, inputs)


@pytest.mark.parametrize("name", ["pictures", "sounds", "sequences", "rows", "residual", "joint"])
def test_blob_equals_twin_without_calibration(name: str, tmp_path: Path) -> None:
    """The compiled program, run on the emulator, gives the twin's outputs."""
    twin, inputs = twin_of(name, machine())
    inputs = tuple(x[:1] for x in inputs)
    exported = export(twin, tmp_path / "net.onnx", inputs)
    compiled = nnac.compile(exported.model, "nna8", encodings=exported.encodings, check=True)
    found = compiled.run({n: x.numpy() for n, x in zip(exported.inputs, inputs, strict=True)})
    wanted = twin(*inputs)
    for output, value in zip(exported.outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        np.testing.assert_array_equal(found[output], value.detach().numpy())


def test_states_live_on_the_device(tmp_path: Path) -> None:
    """A session that sees one frame per call gives what the twin gives for the whole sequence."""
    twin, (x,) = twin_of("sequences", machine())
    exported = export(twin, tmp_path / "net.onnx", x[:1, :1], states=True)
    assert len(exported.states) == 5
    session = nnac.compile(exported.model, "nna8", encodings=exported.encodings, states=exported.states).session()
    frames = [session.step({"x": x[:1, t : t + 1].numpy()})[exported.outputs[0]] for t in range(x.shape[1])]
    np.testing.assert_array_equal(np.concatenate(frames, 1), twin(x[:1]).detach().numpy())


def test_states_that_are_given(tmp_path: Path) -> None:
    """An embedding is an input of the graph; hidden values and cells come in and go out."""
    torch.manual_seed(3)
    inputs = torch.randint(0, 11, (5, 2)), torch.randn(1, 2, 9) * 0.3, torch.randn(1, 2, 9)
    twin = emulate(Predictor(), machine(), [inputs])
    exported = export(twin, tmp_path / "net.onnx", inputs, check=False)
    assert exported.inputs == ("hidden", "cell", "embedding")
    assert verify(twin, exported, inputs) >= 3


CLUSTERED: dict[str, Any] = {
    "S8BQAT": lambda w: S8BQAT(w, 4),
    "GQ": lambda w: GQ(w, 3),
    "CSP and GQ": lambda w: [CSP(w, 0.5), GQ(w, 3, zero=True)],
}


@pytest.mark.parametrize("make", CLUSTERED.values(), ids=CLUSTERED)
def test_clustered_weights_are_found_again(make: Any, tmp_path: Path) -> None:
    """Hardened codebooks come through export, folding and quantization in every bit."""
    torch.manual_seed(1)
    net, x = Sequences(), torch.randn(2, 9, 6)
    compression = compress(net, {"head.*": lambda w: None, "*": make})
    compression.harden()
    twin = emulate(net.eval(), machine(), [x])
    exported = export(twin, tmp_path / "net.onnx", x[:1])
    program = nnac.compile(exported.model, "nna8", encodings=exported.encodings).program
    levels = [layer.encoding.levels for layer in program.layers if layer.encoding is not None]
    assert sum(2 < count <= 16 for count in levels) >= 4


def test_requantization_is_the_law() -> None:
    """Float64 products and int64 agree with the law on ties, extremes and every shift."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        law = machine(rounding=str(rng.choice([mode.label for mode in MODES]))).arithmetic
        multiplier = int(rng.choice([1, 2**30, 2**31 - 1, int(rng.integers(2**30, 2**31))]))
        shift = int(rng.integers(0 if multiplier == 1 else 22, 60))
        near = (rng.integers(-300, 300, 400) * 2.0**shift / multiplier / 2).clip(-(2**31) + 1, 2**31 - 1)
        acc = np.concatenate([np.rint(near), rng.integers(-(2**31), 2**31, 100)]).astype(np.int64)
        factor = torch.tensor(multiplier * 2.0**-shift, dtype=torch.float64)
        ratio = Ratio(torch.tensor(multiplier), torch.tensor(shift), factor, shift)
        found = requantized(torch.from_numpy(acc).double(), ratio, law, -128, 127).clamp(-128, 127)
        wanted = exact.requantize(acc, multiplier, shift, 0, law.mode)
        np.testing.assert_array_equal(found.numpy().astype(np.int64), wanted)


def test_ratios_are_the_laws() -> None:
    """Multipliers and shifts of many channels at once are those of `encode_ratio`."""
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [2.0 ** rng.uniform(-70, 20, 500), 2.0 ** rng.integers(-62, 30, 50), 1 - 2.0 ** -np.arange(30.0, 54)]
    )
    found = channel_ratios(torch.from_numpy(values))
    wanted = [encode_ratio(float(value)) for value in values]
    assert list(zip(found.multiplier.tolist(), found.shift.tolist(), strict=True)) == wanted


def test_normalization_is_the_law() -> None:
    """Small and large groups, gains and epsilons: what numpy's twin of the law gives."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, mode = int(rng.integers(1, 40)), MODES[rng.integers(len(MODES))]
        x = rng.integers(-255, 256, (3, n)) if rng.random() < 0.7 else np.full((3, n), rng.integers(-255, 256))
        gains, gain_shift = encode_gains((rng.normal(size=n) * 10.0 ** rng.integers(-3, 6)).tolist())
        offsets, shift = encode_offsets((rng.normal(size=n) * 10.0 ** rng.integers(-3, 6)).tolist(), gain_shift)
        epsilon = int(10.0 ** rng.uniform(0, 18))
        parts = torch.tensor(gains), gain_shift, torch.tensor(offsets), shift
        found = normalized(torch.from_numpy(x), epsilon, *parts, mode).clamp(-(2**31), 2**31)
        wanted = exact.normalize(
            x, 0, True, epsilon, np.array(gains), gain_shift, np.array(offsets), shift, 0, mode, -(2**31), 2**31
        )
        np.testing.assert_array_equal(found.numpy(), wanted)


# -- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_gradients_follow_the_float_nets(name: str) -> None:
    """Straight through: nearly the direction and size of the float gradient."""
    twin, inputs = twin_of(name, machine(), seed=4)
    twin.observe([tuple(1.1 * x for x in inputs)])  # room, so that extremes do not saturate by half a step

    def gradient(mode: str) -> Any:
        twin.zero_grad()
        with twin.computing(mode):
            out = twin(*inputs)
        sum(part.square().sum() for part in (out if isinstance(out, tuple) else (out,))).backward()
        return torch.cat([p.grad.flatten() for p in twin.model.parameters()])

    float_, device, fake = (gradient(mode) for mode in ("float", "device", "fake"))
    for found in (device, fake):
        assert F.cosine_similarity(float_, found, 0) > 0.97
        assert 0.9 < found.norm() / float_.norm() < 1.1


def test_no_gradient_where_a_value_saturates() -> None:
    """What lies outside of the representable range stops."""
    torch.manual_seed(0)
    twin = emulate(nn.Sequential(nn.Linear(4, 4)), machine(), [torch.randn(8, 4)])
    x = torch.full((1, 4), 1e3, requires_grad=True)
    twin(x).sum().backward()
    assert x.grad is not None and not x.grad.any()


def test_learned_steps_get_gradients() -> None:
    """With `learned`, steps are parameters; they change the quantization, and the export follows."""
    twin, inputs = twin_of("joint", machine(), learned=True)
    twin(*inputs).square().sum().backward()
    steps = [scale.stretch for scale in twin.scales.values()]
    assert all(step is not None for step in steps)
    assert sum(bool(step.grad != 0) for step in steps if step is not None and step.grad is not None) >= 3
    before = [scale.quant.scale for scale in twin.scales.values()]
    with torch.no_grad():
        for step in steps:
            step += 0.1
    assert [scale.quant.scale for scale in twin.scales.values()] == pytest.approx([b * np.exp(0.1) for b in before])


def test_training_lowers_the_device_loss() -> None:
    """Two dozen steps through the twin fit a small target better than before."""
    twin, inputs = twin_of("sequences", machine())
    target = torch.randn(2, 9, 3) * 0.2
    optimizer = torch.optim.Adam(twin.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.mse_loss(twin(*inputs), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# -- refusals ------------------------------------------------------------------------------------------------------


class _Refused(nn.Module):
    """A net with one thing that a twin has not."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.dense, self.lstm, self.run = nn.Linear(4, 4), nn.LSTM(4, 4), run

    def forward(self, x: Any) -> Any:
        return self.run(self, x)


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (lambda m, x: torch.log_softmax(m.dense(x), -1), "log_softmax"),
        (lambda m, x: (lambda y: y + y)(m.dense(x)), "with itself"),
        (lambda m, x: torch.add(m.dense(x), x, alpha=2), "alpha"),
        (lambda m, x: m.dense(m.lstm(x)[1][1]), "last states"),
    ],
)
def test_refusals_say_what_and_where(run: Any, word: str) -> None:
    """What the accelerator, or the twin, has not is named before training starts."""
    with pytest.raises(ModelError, match=word):
        emulate(_Refused(run), machine())


def test_scales_must_be_known() -> None:
    """A twin that saw no sample says so."""
    with pytest.raises(ModelError, match="observe"):
        emulate(nn.Sequential(nn.Linear(4, 4)), machine())(torch.randn(1, 4))
