"""Keywords by recurrent nets: how often the word that is heard is the one that float hears."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.enhance.steps import Part
from nnac.compiled import CompiledModel

FEATURES = {"arm_kws_gru_s_native": "mfcc_w640_s640", "arm_kws_basic_lstm_s_native": "mfcc_w640_s320"}
"""By network, the features of `data/kws_mfcc` that it takes."""
SURE = 0.6
"""Probability over which float is sure: most clips are digits, which these networks never learnt."""
SECOND = 1.0
"""Sound that one inference hears, in seconds."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Agreement of the words on all clips, and on those of which float is sure."""

    compiled: CompiledModel
    all_clips: float
    sure_clips: float
    sure: int


def hear(assets: Path, name: str, **options: Any) -> Heard:
    """Calibrate on every other clip and compare on the rest."""
    with np.load(assets / "data/kws_mfcc/kws_mfcc_calib.npz") as data:
        samples = [{"mfcc": row[None]} for row in data[FEATURES[name]]]
    part, measured = Part(name), samples[1::2]
    compiled = part.compiled(assets, [dict(sample) for sample in samples[::2]], **options)
    exact = part.float_step(assets)
    truth, found = (np.stack([run(s)["probs"][0] for s in measured]) for run in (exact, compiled.run))
    same = truth.argmax(axis=1) == found.argmax(axis=1)
    sure = truth.max(axis=1) > SURE
    return Heard(compiled, float(same.mean()), float(same[sure].mean()), int(sure.sum()))
