"""The transducer loss against all alignments, and the training loop: resuming, metrics, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training companions need the extra `train` (make test-train)")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from nnac.errors import ModelError  # noqa: E402
from nnac.train import (  # noqa: E402
    CSP,
    GQ,
    L1,
    S8BQAT,
    Centroids,
    DoubleRounding,
    Schedule,
    Ternary,
    compress,
    emulate,
    export,
    train,
    transducer_loss,
)
from nnac.train.trainer import CHECKPOINT, PICTURE, SUMMARY, TABLE, curves  # noqa: E402


def brute_force(log_probs: Any, labels: Any, time: int, length: int) -> Any:
    """Return minus the logarithm of the sum over all alignments, one by one."""
    totals = []

    def walk(t: int, u: int, total: Any) -> None:
        if (t, u) == (time - 1, length):
            totals.append(total + log_probs[t, u, 0])
        if t < time - 1:
            walk(t + 1, u, total + log_probs[t, u, 0])
        if u < length:
            walk(t, u + 1, total + log_probs[t, u, labels[u]])

    walk(0, 0, 0.0)
    return -torch.logsumexp(torch.stack(totals), 0)


class Listening(nn.Module):
    """An encoder: a dense layer and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.lstm = nn.Linear(6, 16), nn.LSTM(16, 24, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.lstm(torch.relu(self.dense(x)))[0]


class Speaking(nn.Module):
    """A predictor: an embedding and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(5, 8), nn.LSTM(8, 16, batch_first=True)

    def forward(self, labels: Any) -> Any:
        return self.lstm(self.embedding(labels))[0]


class Joining(nn.Module):
    """A joint network."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.predictor, self.out = nn.Linear(24, 20), nn.Linear(16, 20), nn.Linear(20, 5)

    def forward(self, encoded: Any, predicted: Any) -> Any:
        return self.out(torch.tanh(self.encoder(encoded).unsqueeze(2) + self.predictor(predicted).unsqueeze(1)))


def test_a_transducer_learns_on_the_accelerator() -> None:
    """Three twins, one loss: labels that stand in the features are found, in integers from end to end."""
    torch.manual_seed(0)
    listening, speaking, joining = Listening(), Speaking(), Joining()
    x, y = torch.randn(8, 12, 6), torch.randint(1, 5, (8, 3))
    for i in range(3):  # label i shows as a large feature at times 4 i and 4 i + 1
        rows = torch.arange(8)
        x[rows, 4 * i, y[:, i]] += 3
        x[rows, 4 * i + 1, y[:, i]] += 3
    seen = torch.cat([torch.zeros_like(y[:, :1]), y], 1)
    encoder, predictor = emulate(listening, "nna8", [x]), emulate(speaking, "nna8", [seen])
    joint = emulate(joining, "nna8", [(encoder(x), predictor(seen))])
    twins = nn.ModuleList([encoder, predictor, joint])
    times, lengths = torch.full((8,), 12), torch.full((8,), 3)

    def loss(step: int, rng: np.random.Generator) -> Any:
        if step == 20:  # ranges follow what training has made of the values
            encoder.observe([x])
            predictor.observe([seen])
            joint.observe([(encoder(x).detach(), predictor(seen).detach())])
        log_probs = joint(encoder(x), predictor(seen)).log_softmax(-1)
        return transducer_loss(log_probs, y, times, lengths).mean()

    history = train(twins, loss, torch.optim.Adam(twins.parameters(), 2e-2), Schedule(60))
    _, losses = history.column("loss")
    assert losses[-1] < 0.35 * losses[0]


@pytest.mark.parametrize("seed", range(8))
def test_loss_is_the_sum_over_alignments(seed: int) -> None:
    """Values and gradients, lengths of all kinds in one batch, labels none at all included."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    time, width, classes, batch = int(rng.integers(1, 6)), int(rng.integers(1, 5)), 5, 3
    logits = torch.randn(batch, time, width, classes, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(1, classes, (batch, width - 1))
    times, lengths = torch.randint(1, time + 1, (batch,)), torch.randint(0, width, (batch,))
    found = transducer_loss(logits.log_softmax(-1), labels, times, lengths)
    lp = logits.log_softmax(-1)
    wanted = torch.stack([brute_force(lp[b], labels[b], int(times[b]), int(lengths[b])) for b in range(batch)])
    torch.testing.assert_close(found, wanted)
    (gradient,) = torch.autograd.grad(found.sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(wanted.sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_loss_gradcheck() -> None:
    """The analytic gradient, without the softmax in front."""
    log_probs = torch.randn(2, 4, 3, 4, dtype=torch.float64).log_softmax(-1).requires_grad_(True)
    labels, times, lengths = torch.tensor([[1, 2], [3, 1]]), torch.tensor([4, 2]), torch.tensor([2, 1])
    assert torch.autograd.gradcheck(lambda lp: transducer_loss(lp, labels, times, lengths), log_probs)


def test_loss_of_long_sequences_is_finite() -> None:
    """Hundreds of frames neither underflow nor overflow."""
    logits = (torch.randn(2, 300, 21, 11) * 5).requires_grad_(True)
    loss = transducer_loss(
        logits.log_softmax(-1), torch.randint(1, 11, (2, 20)), torch.tensor([300, 170]), torch.tensor([20, 0])
    )
    loss.sum().backward()
    assert torch.isfinite(loss).all() and logits.grad is not None and torch.isfinite(logits.grad).all()
    assert not logits.grad[1, 170:].any() and not logits.grad[1, :, 1:].any()


def test_loss_refuses_lengths_that_do_not_fit() -> None:
    """One message for shapes and lengths."""
    lp = torch.zeros(1, 3, 2, 4)
    with pytest.raises(ModelError, match=r"times in 1\.\.T"):
        transducer_loss(lp, torch.ones(1, 1), torch.tensor([4]), torch.tensor([1]))


# -- the loop ------------------------------------------------------------------------------------------------------


CHAINS: dict[str, Any] = {
    "CSP and GQ": lambda w: [CSP(w, 0.5, strength=0.1, every=2), GQ(w, 3, zero=True, every=2)],
    "S8BQAT": lambda w: S8BQAT(w, 4, every=5, strength=0.1, warm=0.5),
    "L1 and centroids": lambda w: [L1(w, 0.5, end=0.5), Centroids(w, 3)],
    "rounding": lambda w: DoubleRounding(w, 5),
    "ternary": Ternary,
}


def run(
    folder: Path | None, steps: int = 12, stop: int | None = None, chain: str = "CSP and GQ", device: str = "cpu"
) -> tuple[Any, Any]:
    """Train a small twin with dropout and learned scales; `stop` breaks off as a crash would."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 8)).to(device)
    teacher = (torch.randn(8, 8) * 0.5).to(device)
    compression = compress(net, {"*": CHAINS[chain]})
    twin = emulate(net, "nna8", [torch.randn(64, 8).to(device)], learned=True)
    optimizer = torch.optim.Adam(twin.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)

    def loss(step: int, rng: np.random.Generator) -> Any:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.normal(size=(16, 8)).astype(np.float32)).to(device)
        return F.mse_loss(twin(x), x @ teacher)

    schedule = Schedule(steps, seed=5, folder=folder, save_every=4)
    history = train(
        twin, loss, optimizer, schedule, compression=compression, scheduler=scheduler, evaluate=lambda: {"wer": 0.5}
    )
    return history, twin


@pytest.mark.parametrize("chain", CHAINS)
def test_resumed_training_is_the_same_training(chain: str, tmp_path: Path) -> None:
    """Broken off behind a checkpoint and taken up again, every weight, scale and metric is the same."""
    whole, one = run(tmp_path / "whole", chain=chain)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop=10, chain=chain)
    parts, other = run(tmp_path / "parts", chain=chain)
    assert one.state_dict().keys() == other.state_dict().keys()
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert [row["loss"] for row in whole.rows] == [row["loss"] for row in parts.rows]
    seconds = [row["seconds"] for row in parts.rows]
    assert seconds == sorted(seconds)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("chain", CHAINS)
def test_training_on_a_gpu(chain: str, tmp_path: Path) -> None:
    """It is taken up again there, and what it leaves is exported and compiled like any other."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=10, chain=chain, device="cuda")
    history, twin = run(tmp_path, chain=chain, device="cuda")
    assert len(history.rows) == 12
    export(twin.eval(), tmp_path / "net.onnx", torch.randn(4, 8).cuda())


def test_pruning_and_centroids_on_the_accelerator(tmp_path: Path) -> None:
    """CSP, GQ and a twin together: zeros as asked, few levels, and the compiled integers are the twin's."""
    _, twin = run(None)
    for layer in (twin.model.get_submodule("0"), twin.model.get_submodule("3")):
        assert (layer.weight == 0).float().mean() >= 0.5 and len(layer.weight.unique()) <= 8
    export(twin.eval(), tmp_path / "net.onnx", torch.randn(4, 8))


def test_metrics_are_written(tmp_path: Path) -> None:
    """A table, a summary and a picture, readable by others."""
    run(tmp_path)
    rows = list(csv.DictReader((tmp_path / TABLE).open(encoding="utf-8")))
    assert len(rows) == 12 and rows[3]["wer"] == "0.5" and rows[0]["wer"] == ""
    summary = json.loads((tmp_path / SUMMARY).read_text("utf-8"))
    assert summary["steps"] == 12 and summary["last"]["wer"] == 0.5
    assert (tmp_path / PICTURE).read_text("utf-8").count("<polyline") == 2


def test_checkpoints_of_other_trainings_are_refused(tmp_path: Path) -> None:
    """Another length, another model, a damaged file: one clear error each."""
    run(tmp_path)
    with pytest.raises(ModelError, match="12 steps with seed 5"):
        run(tmp_path, steps=20)
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(ModelError, match="cannot be resumed"):
        run(tmp_path)


def test_a_loss_that_is_not_finite_stops() -> None:
    """The step is named."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    with pytest.raises(ModelError, match="step 0: the loss is nan"):
        train(net, lambda step, rng: net.weight.sum() * float("nan"), optimizer, Schedule(3))


def test_curves_of_one_value() -> None:
    """Flat curves and single points make a picture too."""
    assert "<polyline" in curves({"flat": ([1, 2], [3, 3])})
    assert "<polyline" not in curves({"point": ([1], [3])})
