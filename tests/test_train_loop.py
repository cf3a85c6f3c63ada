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
from nnac.train import CSP, GQ, Schedule, compress, emulate, train, transducer_loss  # noqa: E402
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


def run(folder: Path | None, steps: int = 12, stop: int | None = None, **options: Any) -> tuple[Any, Any, Any]:
    """Train a small twin with CSP and GQ; `stop` breaks off as a crash would."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8))
    teacher = torch.randn(8, 8) * 0.5
    rules = {"*": lambda w: [CSP(w, 0.5, strength=0.1, every=2), GQ(w, 3, zero=True)]}
    compression = compress(net, rules)
    twin = emulate(net, "nna8", [torch.randn(64, 8)])
    optimizer = torch.optim.Adam(twin.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)

    def loss(step: int, rng: np.random.Generator) -> Any:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.normal(size=(16, 8)).astype(np.float32))
        return F.mse_loss(twin(x), x @ teacher)

    schedule = Schedule(steps, seed=5, folder=folder, save_every=4)
    history = train(
        twin, loss, optimizer, schedule, compression=compression, scheduler=scheduler, evaluate=lambda: {"wer": 0.5}
    )
    return history, net, compression


def test_resumed_training_is_the_same_training(tmp_path: Path) -> None:
    """Broken off behind a checkpoint and taken up again, every weight and metric is the same."""
    whole, net, compression = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop=10)
    parts, other, _ = run(tmp_path / "parts")
    for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert [row["loss"] for row in whole.rows] == [row["loss"] for row in parts.rows]
    assert all((each.owner.weight == 0).float().mean() >= 0.5 for each in compression.weights)


def test_metrics_are_written(tmp_path: Path) -> None:
    """A table, a summary and a picture, readable by others."""
    run(tmp_path)
    rows = list(csv.DictReader((tmp_path / TABLE).open(encoding="utf-8")))
    assert len(rows) == 12 and rows[3]["wer"] == "0.5" and rows[0]["wer"] == ""
    summary = json.loads((tmp_path / SUMMARY).read_text("utf-8"))
    assert summary["steps"] == 12 and summary["last"]["wer"] == 0.5
    assert (tmp_path / PICTURE).read_text("utf-8").count("<polyline") == 3


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
