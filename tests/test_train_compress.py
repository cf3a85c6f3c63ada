"""Compressors: what the methods promise, gradients, and that hardened weights are what the compiler finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training companions need the extra `train` (make test-train)")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from nnac.errors import ModelError  # noqa: E402
from nnac.train import (  # noqa: E402
    CSP,
    GQ,
    L1,
    S8BQAT,
    Centroids,
    DoubleRounding,
    FakeQuant,
    Pruner,
    Ternary,
    compress,
    distillation_loss,
    lloyd_max,
    mracos,
    random_sensing,
)
from nnac.train.compressors import nearest  # noqa: E402
from nnac.train.gq import KNOTS, compand, expand, lloyd, pull, read  # noqa: E402
from nnac.train.pruning import sparse_copy  # noqa: E402
from nnac.weights.folding import distinct_levels, lossless_scale  # noqa: E402


def gaussian(*shape: int, seed: int = 0) -> Any:
    """Return N(0, 1) weights."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- Lloyd-Max and MRACos ------------------------------------------------------------------------------------------

MAX_1960 = {
    1: ([0.7979], 0.36338),
    2: ([0.4528, 1.5104], 0.11748),
    3: ([0.2451, 0.7560, 1.3439, 2.1519], 0.03455),
    4: ([0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.618, 2.069, 2.7326], 0.00950),
    5: ([0.0659, 0.1981, 0.3314, 0.4667], 0.00250),
}
"""Positive levels of N(0, 1), the first ones, and the mean squared error, by bits."""


@pytest.mark.parametrize("bits", MAX_1960)
def test_lloyd_max_levels_of_a_gaussian(bits: int) -> None:
    """Levels and error are those of Max (1960), as far as the int8 grid and 200 000 quantiles let them."""
    positive, error = MAX_1960[bits]
    weight = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).float().reshape(400, 500)
    table, step = lloyd_max(weight, bits)
    half, count = 1 << bits - 1, len(positive)
    torch.testing.assert_close(table[half : half + count], torch.tensor(positive), atol=step.item(), rtol=0)
    assert torch.equal((table / step).round() * step, table)
    found = (weight - table[nearest(weight, table)]).square().mean()
    assert found.item() == pytest.approx(error, rel=0.03)
    torch.testing.assert_close(
        lloyd(weight, 2**bits)[half : half + count].float(), torch.tensor(positive), atol=0.01, rtol=0
    )


def test_mracos_basins() -> None:
    """Zero at levels, one half-way, straight outside, growing from each level to the middle."""
    table = torch.tensor([-1.5, -0.5, 0.25, 2.0])
    middles = (table[1:] + table[:-1]) / 2
    assert mracos(table, table).abs().max() < 1e-6
    torch.testing.assert_close(mracos(middles, table), torch.ones(3))
    outside = torch.tensor([-1.75, -2.0, 2.5, 3.0])
    torch.testing.assert_close(mracos(outside, table), np.pi * torch.tensor([0.25, 0.5, 0.5 / 1.75, 1 / 1.75]))


def test_mracos_gradients() -> None:
    """Analytic gradients, inside and outside."""
    table = torch.tensor([-1.0, -0.2, 0.5, 1.0], dtype=torch.float64)
    weight = torch.tensor([-1.7, -0.8, -0.4, 0.1, 0.3, 0.9, 1.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: mracos(w, table), weight)


def test_mracos_brings_weights_to_levels() -> None:
    """400 steps on the regularizer alone: weights come near, and none leaves its cell."""
    weight = gaussian(4000).requires_grad_(True)
    table, _ = lloyd_max(weight, 2)
    before = torch.bucketize(weight.detach(), (table[1:] + table[:-1]) / 2)
    optimizer = torch.optim.SGD([weight], 2.0)
    for _ in range(400):
        optimizer.zero_grad()
        mracos(weight, table).mean().backward()
        optimizer.step()
    after = torch.bucketize(weight.detach(), (table[1:] + table[:-1]) / 2)
    assert (after == before).float().mean() > 0.999
    assert (weight.detach() - table[after]).abs().mean() < 0.12


# -- GQ ------------------------------------------------------------------------------------------------------------


def test_companding_is_undone() -> None:
    """The map and its inverse; the ends stay."""
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(expand(compand(x, 5.0), 5.0), x)
    assert compand(torch.tensor([1.0]), 5.0).item() == pytest.approx(1.0)


@pytest.mark.parametrize("bits", range(1, 9))
def test_gq_at_the_hard_end_is_its_codebook(bits: int) -> None:
    """Hardened weights take at most 2**bits values, all of them levels, and nearly minimize the error."""
    weight = gaussian(64, 64)
    gq = GQ(weight, bits)
    gq.step(weight, 1.0, 1)
    found = gq(weight)
    assert torch.isin(found, gq.levels()).all()
    assert len(found.unique()) <= 2**bits
    if bits <= 5:
        table, _ = lloyd_max(weight, bits)
        best = (weight[..., None] - table).abs().amin(-1).square().mean()
        assert (found - weight).square().mean() < 1.3 * best


def annealed(gq: Any, y: Any) -> Any:
    """Return the weights that companded values become by the softmax over all centroids, as the method says."""
    share = torch.softmax(-gq.alpha() * (y[:, None] - gq.table()).abs(), -1)
    return expand(share @ gq.table(), gq.mu) * gq.size


def on_knots(gq: Any, count: int) -> Any:
    """Return weights at places where the function is known."""
    return (
        gq.size
        * torch.linspace(-1, 1, KNOTS)[torch.randperm(KNOTS, generator=torch.Generator().manual_seed(0))][:count]
    )


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.6])
def test_gq_is_the_softmax(progress: float) -> None:
    """Two neighbours are the whole softmax, but for what lies a spacing farther: exp(-alpha * spacing)."""
    gq = GQ(gaussian(500), 3)
    gq.step(gaussian(500), progress, 1)
    weight, alpha = on_knots(gq, 500), gq.alpha()
    assert alpha is not None
    dropped = torch.exp(-alpha * gq.table().diff().min())
    whole = annealed(gq, compand(weight / gq.size, gq.mu))
    assert (gq(weight) - whole).abs().max() <= 4 * dropped * gq.size + 1e-4


def test_gq_anneals_to_single_levels() -> None:
    """Weights between two places take the nearer one; the mixtures become levels, and stay so."""
    weight = gaussian(500)
    gq = GQ(weight, 3)
    reach, step = float(gq.size), 2 * float(gq.size) / (KNOTS - 1)
    places = ((weight + reach) / step).round() * step - reach
    found = []
    for progress in (0.0, 0.3, 0.6, 0.8):
        gq.step(weight, progress, 1)
        assert torch.equal(gq(weight), gq(places))
        found.append((gq(weight)[:, None] - gq.levels()).abs().amin(-1).mean().item())
    assert gq.alpha() is None
    assert found == sorted(found, reverse=True) and found[0] > 0.05 and found[-1] == 0


def test_gq_gradients() -> None:
    """The soft phase's gradients, of weights and of centroids, are those of the softmax."""
    gq = GQ(gaussian(500), 2)
    gq.step(gaussian(500), 0.2, 1)
    weight, force = on_knots(gq, 500)[1:].requires_grad_(True), gaussian(499, seed=2)
    wanted = torch.autograd.grad(annealed(gq, compand(weight / gq.size, gq.mu)), (weight, gq.centroids), force)
    found = torch.autograd.grad(gq(weight), (weight, gq.centroids), force)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def test_gq_gradients_at_the_hard_end() -> None:
    """Weights get what their levels get; a centroid gets what its weights get, through the companding."""
    gq = GQ(gaussian(500), 3)
    gq.step(gaussian(500), 1.0, 1)
    weight, force = on_knots(gq, 500).requires_grad_(True), gaussian(500, seed=2)
    owner = (compand(weight.detach() / gq.size, gq.mu)[:, None] - gq.table()).abs().argmin(-1)
    wanted = torch.autograd.grad(expand(gq.table()[owner], gq.mu) * gq.size, gq.centroids, force)[0]
    passed, found = torch.autograd.grad(gq(weight), (weight, gq.centroids), force)
    assert torch.equal(passed, force)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("shape", [(600,), (20, 30)])
def test_gq_reads_alike_in_a_loop_and_in_passes(shape: tuple[int, ...]) -> None:
    """float32 on a CPU takes the loop, other types and devices torch's passes; values outside stand at the ends."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(-3, 68, shape, generator=generator) + 0.8 * torch.rand(shape, generator=generator) - 0.4
    x, force, knots = (places / 32 - 1) * 0.3, gaussian(*shape, seed=2), gaussian(65, seed=3)
    wide = knots.double()
    torch.testing.assert_close(read(x, knots, 0.3), read(x.double(), wide, 0.3).float())
    assert torch.equal(read(x.t(), knots, 0.3), read(x, knots, 0.3).t())
    for one, other in zip(pull(x, force, knots, 0.3), pull(x.double(), force.double(), wide, 0.3), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-5)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [part for part in (out if isinstance(out, tuple | list) else (out,)) if isinstance(part, torch.Tensor)]
        self.size = max([self.size, *(part.numel() for part in made)])
        return out


@pytest.mark.parametrize("progress", [0.1, 1.0])
@pytest.mark.parametrize("bits", [1, 8])
def test_gq_takes_memory_for_weights_not_for_pairs(bits: int, progress: float) -> None:
    """No tensor of a step is larger than the weight, and what is kept for the way back is not twice as large."""
    weight, kept = gaussian(128, 128).requires_grad_(True), []
    gq = GQ(weight.detach(), bits)
    gq.step(weight.detach(), progress, 1)

    def keep(part: Any) -> Any:
        kept.append(part)
        return part

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda part: part):
        gq(weight).sum().backward()
    assert largest.size == weight.numel()
    assert (
        sum(part.numel() for part in {part.data_ptr(): part for part in kept}.values())
        < 2 * weight.numel() + 12 * KNOTS
    )


def test_gq_trains_centroids_in_both_phases() -> None:
    """The task loss moves the centroids, and weights get finite gradients."""
    weight = gaussian(32, 32).requires_grad_(True)
    gq = GQ(weight.detach(), 3)
    for progress in (0.0, 1.0):
        gq.step(weight.detach(), progress, 1)
        weight.grad, gq.centroids.grad = None, None
        (gq(weight) - 0.1).square().sum().backward()
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.any()
        assert gq.centroids.grad is not None and gq.centroids.grad.abs().min() > 0


def test_gq_frequency_and_zero() -> None:
    """Between its steps weights are float; a pinned centroid keeps pruned weights at zero."""
    weight = gaussian(32, 32)
    gq = GQ(weight, 3, every=4, zero=True)
    gq.step(weight, 0.9, 3)
    assert torch.equal(gq(weight), weight)
    gq.step(weight, 0.9, 4)
    assert not torch.equal(gq(weight), weight)
    assert 0.0 in gq.levels()


# -- pruning -------------------------------------------------------------------------------------------------------


def sensing() -> dict[str, Any]:
    """Return the kinds of A."""
    return {"identity": None, "random": random_sensing(48, 40), "activations": gaussian(300, 48, seed=5).abs()}


@pytest.mark.parametrize("kind", sensing())
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
def test_csp_reaches_the_sparsity(kind: str, sparsity: float) -> None:
    """The final mask leaves out just that share, whatever A is, and the penalty draws to the copy before."""
    weight = gaussian(32, 48)
    csp = CSP(weight, sparsity, sensing=sensing()[kind], every=1)
    for count in range(1, 11):
        csp.step(weight, count / 16, count)
    penalty = csp.penalty(weight.requires_grad_(True))
    assert penalty is not None and penalty >= 0
    with torch.no_grad():
        csp.step(weight, 0.7, 10)
    assert (~csp.mask).float().mean().item() == pytest.approx(sparsity, abs=1e-3)
    assert torch.equal(csp(weight) != 0, csp.mask & (weight != 0))
    assert csp.penalty(weight) is None


def test_csp_solves_its_problem() -> None:
    """ISTA's fixed point meets the conditions of the lasso: the force is gamma where theta is, less elsewhere."""
    weight, a = gaussian(4, 24).double(), gaussian(96, 24, seed=1).double()
    gram = a.T @ a
    gram = gram / torch.linalg.eigvalsh(gram)[-1]
    theta = sparse_copy(weight, 0.5, gram, iterations=3000)
    force = (weight - theta) @ gram
    gamma = force[theta != 0].abs()
    assert gamma.std() < 1e-3 * gamma.mean()
    assert force[theta == 0].abs().max() <= gamma.mean() * 1.001
    torch.testing.assert_close(force[theta != 0].sign(), theta[theta != 0].sign())


def test_schedule_is_cubic() -> None:
    """s (1 - (1 - t)**3) between begin and end."""
    pruner = Pruner(gaussian(10, 10), 0.8, begin=0.2, end=0.6)
    assert [pruner.wanted(p) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0.8 * 0.875, 0.8, 0.8])


@pytest.mark.parametrize("make", [lambda w: Pruner(w, 0.7), lambda w: L1(w, 0.7)])
def test_baselines_prune_the_smallest(make: Any) -> None:
    """At the end the smallest weights are gone, and stay so."""
    weight = gaussian(20, 30)
    pruner = make(weight)
    pruner.step(weight, 1.0, 10)
    found = pruner(weight)
    assert (found == 0).sum() == 420
    assert found[found != 0].abs().min() >= weight[found == 0].abs().max()


# -- the rest, and all together ------------------------------------------------------------------------------------

TABLES: dict[str, Any] = {
    "S8BQAT": lambda w, power: S8BQAT(w, 4, power_of_two=power),
    "GQ": lambda w, power: GQ(w, 4, power_of_two=power),
    "GQ, 1 bit": lambda w, power: GQ(w, 1, power_of_two=power),
    "centroids": lambda w, power: Centroids(w, 3, power_of_two=power),
    "ternary": lambda w, power: Ternary(w, power_of_two=power),
    "ternary, median": lambda w, power: Ternary(w, median=True, power_of_two=power),
    "double rounding": lambda w, power: DoubleRounding(w, 4, power_of_two=power),
    "CSP and GQ": lambda w, power: [CSP(w, 0.75), GQ(w, 4, zero=True, power_of_two=power)],
}


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_hardened_weights_stand_on_an_int8_grid(name: str, power: bool) -> None:
    """Few distinct values, on the grid that the compiler finds, and hardening again changes nothing."""
    net = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 3))
    torch.manual_seed(0)

    compression = compress(net, {"0.*": lambda w: TABLES[name](w, power)})
    compression.step(1.0)
    compression.harden()
    weight = net[0].weight.detach().clone()
    levels = distinct_levels(weight.numpy(), 16)
    assert levels is not None
    step = compression.weights[0].chain[-1].scale()
    assert step is not None and step.item() == lossless_scale(levels, power)
    compression.harden()
    assert torch.equal(net[0].weight, weight)
    if name == "CSP and GQ":
        assert (weight == 0).float().mean() >= 0.75


def test_double_rounding_nests() -> None:
    """The 4-bit view is the 8-bit view rounded once more: multiples of 16 of its step."""
    weight = gaussian(20, 20)
    step = weight.abs().max() / 127
    levels = (DoubleRounding(weight, 4)(weight) / step).round()
    assert (levels % 16 == 0).all() and levels.abs().max() <= 112


def test_fake_quantization_rounds_to_its_steps() -> None:
    """Every channel has 255 levels of its own, none farther from its weight than half a step."""
    weight = gaussian(6, 40) * torch.arange(1.0, 7)[:, None]
    step = weight.abs().amax(1, keepdim=True) / 127
    found = FakeQuant()(weight)
    assert ((found / step) - (found / step).round()).abs().max() < 1e-4
    assert ((found - weight).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("median", [False, True])
def test_ternary_is_bitnets(median: bool) -> None:
    """round(clip(w / unit, -1, 1)) * unit, where the unit is the mean magnitude, or the median one."""
    weight = gaussian(8, 9)
    unit = weight.abs().median() if median else weight.abs().mean()
    torch.testing.assert_close(Ternary(weight, median)(weight), (weight / unit).clamp(-1, 1).round() * unit)


def test_centroids_are_trained_and_their_weights_follow() -> None:
    """A level's gradient is the sum of its weights' gradients, and who belongs to whom stays."""
    weight = gaussian(20, 20)
    part = Centroids(weight, 3)
    places = part.places.long()
    force = gaussian(20, 20, seed=1)
    (gradient,) = torch.autograd.grad(part(weight), part.table, force)
    torch.testing.assert_close(gradient, torch.stack([force[places == i].sum() for i in range(8)]))
    with torch.no_grad():
        part.table += 0.1
    assert torch.equal(part(weight), part.table[places])


def test_straight_through_gradients() -> None:
    """Rounded weights pass gradients on as they are."""
    weight = gaussian(8, 8).requires_grad_(True)
    for part in (FakeQuant(8), DoubleRounding(weight.detach(), 5), Ternary(weight.detach())):
        weight.grad = None
        (part(weight) * torch.arange(8.0)).sum().backward()
        torch.testing.assert_close(weight.grad, torch.arange(8.0).expand(8, 8))


def test_recurrent_layers_see_their_compressed_weights() -> None:
    """torch keeps a list of an LSTM's weights: it must follow the compressor, or training would not know of it."""
    torch.manual_seed(0)
    net, x = nn.LSTM(6, 8), torch.randn(5, 2, 6)
    before = net(x)[0]
    compression = compress(net, {"weight*": Ternary})
    assert (net(x)[0] - before).abs().max() > 1e-2
    net(x)[0].square().sum().backward()
    assert all(each.original.grad is not None and each.original.grad.any() for each in compression.weights)


def test_s8bqat_compresses_periodically() -> None:
    """Every so many steps weights are levels; the regularizer is there only if its user wants it."""
    weight = gaussian(30, 30)
    plain, pulled = S8BQAT(weight, 3, every=2), S8BQAT(weight, 3, strength=0.1, warm=0.5)
    assert plain.penalty(weight) is None
    plain.step(weight, 0.1, 1)
    assert len(weight.unique()) > 8
    pulled.step(weight, 0.25, 1)
    found = pulled.penalty(weight)
    assert found is not None and found.item() == pytest.approx(0.05 * mracos(weight, pulled.table).mean().item())
    plain.step(weight, 0.2, 2)
    assert len(weight.unique()) <= 8


def test_distillation_is_zero_between_equals() -> None:
    """No loss for the teacher's own logits, some for others, none for the teacher's gradient."""
    student = gaussian(6, 5).requires_grad_(True)
    teacher = gaussian(6, 5, seed=1).requires_grad_(True)
    assert abs(distillation_loss(student, student.detach()).item()) < 1e-6
    loss = distillation_loss(student, teacher, 3.0)
    loss.backward()
    assert loss.item() > 0 and teacher.grad is None and student.grad is not None
    wanted = F.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean") * 9
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_quantized_distillation_brings_a_student_to_its_teacher() -> None:
    """A student of 3-bit levels comes nearer to the float teacher's predictions."""
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in range(2))
    student.load_state_dict(teacher.state_dict())
    compress(student, {"*": lambda w: GQ(w, 3, anneal=0.0) if w.numel() > 100 else Ternary(w)})
    optimizer, x, losses = torch.optim.Adam(student.parameters(), 1e-2), gaussian(256, 8), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = distillation_loss(student(x), teacher(x))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_rules_that_fit_nothing_are_named() -> None:
    """A pattern without a weight, a table larger than its weight, widths that are none, a sensing matrix of another."""
    with pytest.raises(ModelError, match="no weight has a name"):
        compress(nn.Linear(3, 3), {"encoder.*": lambda w: None})
    with pytest.raises(ModelError, match="too small for a table"):
        GQ(gaussian(3, 3), 5)
    with pytest.raises(ModelError, match="1 to 8 bits"):
        GQ(gaussian(99, 99), 9)
    with pytest.raises(ModelError, match="2 to 8 bits"):
        DoubleRounding(gaussian(9, 9), 1)
    with pytest.raises(ModelError, match="has 4 columns"):
        CSP(gaussian(3, 4), 0.5, sensing=gaussian(8, 5))
