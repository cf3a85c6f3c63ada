"""How near two sounds are (SI-SDR), and how well one sounds (DNSMOS)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from examples.enhance.signals import RATE, Floats

SECONDS = 9.01
POLYNOMIALS = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)
"""Signal, background, overall: what DNS-Challenge's `dnsmos_local.py` does to the network's outputs."""


def si_sdr(sound: Floats, truth: Floats) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB (Le Roux and others, 2019)."""
    target = truth.astype(np.float64) - truth.mean(dtype=np.float64)
    found = sound.astype(np.float64) - sound.mean(dtype=np.float64)
    target *= (found @ target) / (target @ target)
    return float(10 * np.log10((target**2).sum() / ((found - target) ** 2).sum()))


@dataclass(frozen=True, slots=True)
class Opinion:
    """Mean opinion scores, 1 to 5, as DNSMOS P.835 estimates them."""

    signal: float
    background: float
    overall: float

    def apart(self, other: Opinion) -> float:
        """Return the largest difference of the three scores."""
        pairs = zip(
            (self.signal, self.background, self.overall),
            (other.signal, other.background, other.overall),
            strict=True,
        )
        return max(abs(a - b) for a, b in pairs)


def opinion(assets: Path, sound: Floats) -> Opinion:
    """Return the opinion of a sound: the mean over windows of 9.01 s, one second apart; a shorter one is repeated."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = assets / "models/dnsmos_sig_bak_ovr/dnsmos_sig_bak_ovr.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    length = int(SECONDS * RATE)
    long = np.tile(sound, -(-length // len(sound)))
    windows = [long[start : start + length] for start in range(0, len(long) - length + 1, RATE)]
    raw = np.mean([session.run(None, {"input_1": window[None]})[0][0] for window in windows], axis=0)
    return Opinion(*(float(np.polyval(p, x)) for p, x in zip(POLYNOMIALS, raw, strict=True)))
