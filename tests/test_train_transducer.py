"""The digits transducer from training to the blob: rows of the table, and every bit of three programs that decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training companions need the extra `train` (make test-train)")

from examples.transducer import measure, train  # noqa: E402
from examples.transducer.data import Pool, Utterance  # noqa: E402
from examples.transducer.features import WIDTH  # noqa: E402
from examples.transducer.network import Encoder, Joiner, Network, Predictor, Size, Twins, greedy  # noqa: E402
from examples.transducer.rows import MIXED, ROWS  # noqa: E402
from nnac.train import compress  # noqa: E402

SIZE = Size(24, 16, 16)


def network() -> Network:
    """Return a network that says something: random weights, larger than usual."""
    torch.manual_seed(0)
    made = Network(Encoder(SIZE), Predictor(SIZE), Joiner(SIZE))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.5)
        made.joiner.logits.bias[0] += 0.7
    return made


def made_up(count: int) -> Pool:
    """Return utterances of noise."""
    rng = np.random.default_rng(0)
    return Pool.of(
        [Utterance(rng.normal(size=(int(rng.integers(9, 16)), WIDTH)), [3, 0, 7], [2, 5, 8]) for _ in range(count)]
    )


@pytest.mark.parametrize("rules", [{}, MIXED], ids=["int8", "mixed"])
@pytest.mark.parametrize("target", measure.TARGETS)
def test_the_blob_is_the_twin(rules: Any, target: str, tmp_path: Path) -> None:
    """Rows of the encoder, of the predictor and logits are equal in every bit; so are the tokens."""
    net, pool = network(), made_up(6)
    if rules:
        compress(net, rules).harden()
    batch = train.Batch.of(pool, range(len(pool)))
    twins = Twins(net.eval(), target)
    twins.observe(batch.x, batch.tokens)
    train.write_parts(twins, tmp_path)
    model, heard = measure.transducer(tmp_path, target), greedy(twins, batch.x, batch.times)
    found = [model.greedy(each.features) for each in measure.spoken(pool)]
    assert [each.tokens for each in found] == heard and sum(map(len, heard)) > 6
    with torch.no_grad():
        logits = twins(batch.x, batch.tokens)[0].log_softmax(-1, torch.float64).numpy()
    model.reset()
    predicted = [model.predict(token) for token in (0, *batch.tokens[0].tolist())]
    for t, frame in enumerate(measure.spoken(pool)[0].features):
        row = model.encode(frame)
        for u, each in enumerate(predicted):
            np.testing.assert_allclose(model.join(row, each), logits[t, u], rtol=0, atol=1e-12)


def test_a_row_from_training_to_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of a row leave a baseline, the parts, and a result that the same command finds again."""
    for split in ("train", "validation", "test"):
        made_up(8).save(tmp_path / f"{split}.npz")
    course = train.Course(4, row_steps=3)
    result = train.run("small-gq5", 0, tmp_path, course)
    assert result["nna8-tiny"]["weight_bits"] < 5.2 and result["nna8-tiny"]["host_ops"] == 0
    assert (tmp_path / "small-gq5-0" / measure.RESULT).exists()
    before = (tmp_path / "baseline-small-0" / "checkpoint.pt").read_bytes()
    assert train.run("small-ptq8", 0, tmp_path, course)["wer"] >= 0
    assert (tmp_path / "baseline-small-0" / "checkpoint.pt").read_bytes() == before


def test_many_layers_begin_with_orthogonal_weights() -> None:
    """Each gate's recurrent weights turn the state without changing its length, and the forget gates stand open."""
    encoder = Encoder(Size(24, 8, 8, layers=4))
    for layer in range(4):
        for part in getattr(encoder.lstm, f"weight_hh_l{layer}").chunk(4):
            torch.testing.assert_close(part @ part.T, torch.eye(24), rtol=0, atol=1e-5)
        biases = getattr(encoder.lstm, f"bias_ih_l{layer}") + getattr(encoder.lstm, f"bias_hh_l{layer}")
        assert [float(part.unique()) for part in biases.chunk(4)] == [0, 1, 0, 0]


def test_a_baseline_learns_framewise_first() -> None:
    """The first loss wants digits where they are spoken, whatever was said before."""
    net, batch = network(), train.Batch.of(made_up(4), range(4))
    assert batch.said[0].tolist()[:9] == [4, 4, 4, 1, 1, 1, 8, 8, 8]
    first: list[float] = []
    last: list[float] = []
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = batch.framewise_loss(net)
        loss.backward()
        optimizer.step()
        (last if first else first).append(loss.item())
    assert last[-1] < 0.5 * first[0]


@pytest.mark.parametrize("name", ROWS)
def test_every_rows_rules_fit_the_network(name: str) -> None:
    """Each pattern names a weight, and no weight is too small for its table."""
    compress(Network.of(ROWS[name].size), ROWS[name].rules)
