"""Sound as numbers: reading, frames, spectra and back; one scale, [-1, 1], and one rate, 16 kHz, everywhere."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RATE = 16_000
WINDOW, HOP = 512, 256
"""Of the spectra that GTCRN takes."""


def read_wav(path: Path) -> Floats:
    """Return the samples of a 16-bit mono file of 16 kHz, in [-1, 1].

    Raises:
        ValueError: the file has another format.
    """
    with wave.open(str(path)) as file:
        found = file.getframerate(), file.getsampwidth(), file.getnchannels()
        if found != (RATE, 2, 1):
            raise ValueError(f"{path}: rate, bytes and channels are {found}, expected {(RATE, 2, 1)}")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / np.float32(32768)


def write_wav(path: Path, sound: Floats) -> None:
    """Write samples as a 16-bit mono file of 16 kHz; what lies outside [-1, 1] is clipped."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.clip(np.rint(sound * 32768), -32768, 32767).astype("<i2").tobytes())


def blocks(sound: Floats, length: int, hop: int) -> Floats:
    """Return every block of `length` samples, `hop` apart: (blocks, length)."""
    return np.lib.stride_tricks.sliding_window_view(sound, length)[::hop]


def overlap_add(parts: Floats, hop: int) -> Floats:
    """Return the sum of blocks (blocks, length), each `hop` samples later than the one before."""
    length = parts.shape[1]
    sound = np.zeros((len(parts) - 1) * hop + length, np.float32)
    for start, part in zip(range(0, len(sound), hop), parts, strict=False):
        sound[start : start + length] += part
    return sound


def spectra(sound: Floats) -> Floats:
    """Return the short-time spectra (frames, bins, 2) as torch.stft has them: centered, reflected, root of Hann."""
    padded = np.pad(sound, WINDOW // 2, mode="reflect")
    found = np.fft.rfft(blocks(padded, WINDOW, HOP) * _root_hann(), axis=1)
    return np.stack([found.real, found.imag], axis=2).astype(np.float32)


def from_spectra(frames: Floats) -> Floats:
    """Return the sound of short-time spectra (frames, bins, 2), the inverse of `spectra`."""
    parts = np.fft.irfft(frames[..., 0] + 1j * frames[..., 1], axis=1) * _root_hann()
    sound = overlap_add(parts.astype(np.float32), HOP)
    weight = overlap_add(np.tile(_root_hann() ** 2, (len(frames), 1)), HOP)
    inner = slice(WINDOW // 2, -WINDOW // 2)
    return (sound[inner] / weight[inner]).astype(np.float32)


def _root_hann() -> Floats:
    return np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
