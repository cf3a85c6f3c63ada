"""The rows of the table: what each does to the weights, and how its training computes activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from nnac.train import CSP, GQ, L1, S8BQAT, FakeQuant
from nnac.train.compressors import Compressor, Factory
from nnac.train.emulate import DEVICE, FAKE, FLOAT
from nnac.train.pruning import Pruner

Rules = Mapping[str, Factory]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to the accelerator.

    Attributes:
        title: in the table.
        size: of the network, a name of `network.SIZES`.
        mode: how activations compute while it trains: in float, rounded to int8 ("fake"), or as the device does.
        rules: compressors of the weights; those that no rule names become int8 when they are exported.
        origin: the row whose weights it takes as they are, without training; "" fine-tunes the float baseline.
    """

    title: str
    size: str = "base"
    mode: str = FAKE
    rules: Rules = field(default_factory=dict)
    origin: str = ""


def int8(weight: Tensor) -> Compressor:
    """Return the usual 8-bit quantization-aware training."""
    return FakeQuant(8)


def none(weight: Tensor) -> None:
    """Leave a weight alone."""


def on_all(rule: Factory) -> Rules:
    """Return rules that take all weights of the device; the logits' few keep eight bits."""
    return {"predictor.embedding*": none, "joiner.logits*": int8, "*": rule}


def gq(bits: int) -> Rules:
    """Return GQ with an index width for all layers."""
    return on_all(lambda w: GQ(w, bits))


def s8bqat(bits: int) -> Rules:
    """Return S8BQAT with its regularizer, which is turned on here (see `nnac.train.mracos` on patents)."""
    return on_all(lambda w: S8BQAT(w, bits, strength=1e-5 * w.numel()))


def csp(sparsity: float, bits: int = 8) -> Rules:
    """Return compressed-sensing pruning, of int8 weights or of those of GQ."""
    return on_all(lambda w: [CSP(w, sparsity, strength=0.003), FakeQuant(8) if bits == 8 else GQ(w, bits, zero=True)])


def gradual(sparsity: float) -> Rules:
    """Return gradual magnitude pruning of int8 weights."""
    return on_all(lambda w: [Pruner(w, sparsity), FakeQuant(8)])


def l1(sparsity: float) -> Rules:
    """Return pruning by a penalty on magnitudes, of int8 weights."""
    return on_all(lambda w: [L1(w, sparsity, strength=1e-2 * w.numel()), FakeQuant(8)])


MIXED: Final = {
    "predictor.embedding*": none,
    "joiner.logits*": int8,
    "predictor.lstm*": lambda w: GQ(w, 1),
    "encoder.lstm.weight_ih_l0": lambda w: GQ(w, 5),
    "encoder.lstm.weight_hh_l1": lambda w: GQ(w, 3),
    "*": lambda w: GQ(w, 4),
}
"""Digits follow each other by chance, so that the predictor has little to say: it gets one bit."""

ROWS: Final[Mapping[str, Row]] = {
    "float": Row("float", mode=FLOAT),
    "ptq8": Row("8-bit PTQ", origin="float"),
    "qat8": Row("8-bit QAT (fake-quant)", rules=on_all(int8)),
    "emu8": Row("8-bit, accelerator emulated", mode=DEVICE),
    "s8bqat5": Row("S8BQAT 5-bit", rules=s8bqat(5)),
    "gq5": Row("GQ 5-bit", rules=gq(5)),
    "gq4": Row("GQ 4-bit", rules=gq(4)),
    "gqmix": Row("GQ mixed, 5 to 1 bit", rules=MIXED),
    "csp50": Row("CSP 50 %", rules=csp(0.5)),
    "csp75": Row("CSP 75 %", rules=csp(0.75)),
    "csp90": Row("CSP 90 %", rules=csp(0.9)),
    "gradual50": Row("gradual magnitude 50 %", rules=gradual(0.5)),
    "gradual75": Row("gradual magnitude 75 %", rules=gradual(0.75)),
    "gradual90": Row("gradual magnitude 90 %", rules=gradual(0.9)),
    "l1-50": Row("L1 50 %", rules=l1(0.5)),
    "l1-75": Row("L1 75 %", rules=l1(0.75)),
    "l1-90": Row("L1 90 %", rules=l1(0.9)),
    "csp75-gq5": Row(
        "CSP 75 % + GQ 5-bit", rules=on_all(lambda w: [CSP(w, 0.75, strength=0.003), GQ(w, 5, zero=True)])
    ),
    "large-float": Row("larger, float", "large", FLOAT),
    "large-s8bqat5": Row("larger, S8BQAT 5-bit", "large", rules=s8bqat(5)),
    "large-gq5": Row("larger, GQ 5-bit", "large", rules=gq(5)),
    "small-float": Row("small, float", "small", FLOAT),
    "small-ptq8": Row("small, 8-bit PTQ", "small", origin="small-float"),
    "small-qat8": Row("small, 8-bit QAT", "small", rules=on_all(int8)),
    "small-emu8": Row("small, 8-bit, accelerator emulated", "small", DEVICE),
    "small-gq5": Row("small, GQ 5-bit", "small", rules=gq(5)),
    "small-gq3": Row("small, GQ 3-bit", "small", rules=gq(3)),
    "small-gq3-emu": Row("small, GQ 3-bit, accelerator emulated", "small", DEVICE, gq(3)),
    "micro-float": Row("micro, float", "micro", FLOAT),
    "micro-ptq8": Row("micro, 8-bit PTQ", "micro", origin="micro-float"),
    "micro-qat8": Row("micro, 8-bit QAT", "micro", rules=on_all(int8)),
    "micro-emu8": Row("micro, 8-bit, accelerator emulated", "micro", DEVICE),
    "deep-float": Row("4 x 512, float", "deep", FLOAT),
    "deep-ptq8": Row("4 x 512, 8-bit PTQ", "deep", origin="deep-float"),
    "deep-qat8": Row("4 x 512, 8-bit QAT", "deep", rules=on_all(int8)),
    "deep-emu8": Row("4 x 512, 8-bit, accelerator emulated", "deep", DEVICE),
    "deep-gq5": Row("4 x 512, GQ 5-bit", "deep", rules=gq(5)),
}

if __name__ == "__main__":
    print(*ROWS)
