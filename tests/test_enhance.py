"""Networks for speech, step by step on short recordings: near to float, and as long as they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.enhance import keywords, streams
from examples.enhance.quality import si_sdr
from examples.enhance.signals import blocks, from_spectra, overlap_add, read_wav, spectra, write_wav


def test_spectra_and_back() -> None:
    """The window and its overlap reconstruct every sample."""
    sound = np.random.default_rng(0).normal(0, 0.1, 256 * 20).astype(np.float32)
    assert spectra(sound).shape == (21, 257, 2)
    np.testing.assert_allclose(from_spectra(spectra(sound)), sound, atol=1e-6)


def test_blocks_add_up() -> None:
    """A sound's blocks of two hops, halved, add up to it but at its ends."""
    sound = np.arange(64, dtype=np.float32)
    added = overlap_add(blocks(sound / np.float32(2), 16, 8), 8)
    assert np.array_equal(added[8:-8], sound[8:-8])


def test_si_sdr_ignores_scale() -> None:
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(size=(2, 100_000)).astype(np.float32)
    assert si_sdr(3 * (truth + 0.1 * noise), truth) == pytest.approx(20.0, abs=0.1)


def test_wav_round_trip(tmp_path: Path) -> None:
    sound = np.array([0.0, 0.5, -1.0, 0.25], np.float32)
    write_wav(tmp_path / "x.wav", sound)
    assert np.array_equal(read_wav(tmp_path / "x.wav"), sound)


@pytest.mark.parametrize(
    ("name", "seconds", "least"),
    [("dtln", 2.0, 20.0), pytest.param("gtcrn_simple", 2.0, 25.0, marks=pytest.mark.slow)],
)
def test_denoisers_are_near_to_float(name: str, seconds: float, least: float, assets: Path) -> None:
    """Enhanced sound against float's, dB; calibrated along other recordings."""
    _, denoised = streams.denoise(assets, name, seconds, activations="auto")
    assert denoised.si_sdr > least


@pytest.mark.parametrize(("name", "seconds"), [("silero_vad_v5_static", 10.0), ("silero_vad_v3", None)])
def test_detectors_decide_as_float(name: str, seconds: float | None, assets: Path) -> None:
    """Speech or not, chunk by chunk; calibrated on another recording."""
    run, same = streams.detect(assets, name, seconds, activations="auto")
    assert same >= 0.98
    assert 0.1 < float(np.mean(run.truth >= streams.THRESHOLD)) < 0.9


@pytest.mark.parametrize("name", keywords.FEATURES)
def test_recurrent_keywords(name: str, assets: Path) -> None:
    """The word that float is sure of is heard; features of very different power are int16."""
    heard = keywords.hear(assets, name, activations="auto")
    assert heard.sure >= 40
    assert heard.sure_clips >= 0.97
