"""Log-mel features of a spoken digit in plain numpy: a mono 8 kHz clip in, float32 of 64 frames by 32 bands out.

The chain: read the wav, place it in a window of 1.04 s, scale its peak to one, power spectrum of Hann-windowed frames
(32 ms every 16 ms), mel bands, natural logarithm above a floor, then one subtraction and one division by constants.
No clip's features depend on another clip.
"""

import math
import wave
from os import PathLike
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

SAMPLE_RATE: Final = 8000  # Hz
FRAME_LENGTH: Final = 256  # samples: 32 ms, and the length of the transform
FRAME_STEP: Final = 128  # samples: 16 ms
FRAMES: Final = 64
BANDS: Final = 32
CLIP_LENGTH: Final = FRAME_LENGTH + (FRAMES - 1) * FRAME_STEP  # 8320 samples, 1.04 s
LOWEST_BAND: Final = 60.0  # Hz
HIGHEST_BAND: Final = 3800.0  # Hz
POWER_FLOOR: Final = 1e-6  # 60 dB under a full-scale tone; what is quieter is silence
# Mean and deviation of ln(power + POWER_FLOOR) over the training clips, as train.py prints them, rounded.
LOG_MEAN: Final = -12.4
LOG_DEVIATION: Final = 2.6


def read_wav(path: str | PathLike[str]) -> FloatArray:
    """Samples of a mono 16-bit 8 kHz wav file, float32 in [-1, 1), shape (samples,).

    Raises:
        ValueError: the file has another rate, width or channel count.
    """
    with wave.open(str(path), "rb") as clip:
        found = (clip.getframerate(), clip.getsampwidth(), clip.getnchannels())
        if found != (SAMPLE_RATE, 2, 1):
            raise ValueError(f"{path}: found {found} (Hz, bytes, channels), allowed is ({SAMPLE_RATE}, 2, 1)")
        data = clip.readframes(clip.getnframes())
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / np.float32(32768)


def place(samples: FloatArray) -> FloatArray:
    """The clip at its fixed length: padded with zeros on both sides, or cut to its loudest CLIP_LENGTH samples."""
    missing = CLIP_LENGTH - samples.size
    if missing >= 0:
        return np.pad(samples, (missing // 2, missing - missing // 2))
    energy = np.concatenate(([0.0], np.cumsum(samples.astype(np.float64) ** 2)))
    start = int(np.argmax(energy[CLIP_LENGTH:] - energy[:-CLIP_LENGTH]))
    return samples[start : start + CLIP_LENGTH]


def mel(hertz: float) -> float:
    """Mel of a frequency (O'Shaughnessy's formula, natural logarithm)."""
    return 1127.0 * math.log1p(hertz / 700.0)


def mel_filters() -> NDArray[np.float64]:
    """Triangular filters on the mel axis, shape (FRAME_LENGTH // 2 + 1, BANDS), each with weights that sum to one."""
    bins = np.arange(FRAME_LENGTH // 2 + 1) * (SAMPLE_RATE / FRAME_LENGTH)
    position = 1127.0 * np.log1p(bins / 700.0)
    edges = np.linspace(mel(LOWEST_BAND), mel(HIGHEST_BAND), BANDS + 2)
    width = edges[1] - edges[0]
    filters = np.maximum(0.0, 1.0 - np.abs(position[:, None] - edges[None, 1:-1]) / width)
    return np.asarray(filters / filters.sum(axis=0), dtype=np.float64)


_WINDOW: Final = np.hanning(FRAME_LENGTH + 1)[:-1]
_FILTERS: Final = mel_filters()


def log_mel(clips: FloatArray) -> FloatArray:
    """Features of placed clips: (N, CLIP_LENGTH) float32 samples -> (N, 1, FRAMES, BANDS) float32.

    A value is (ln(power + POWER_FLOOR) - LOG_MEAN) / LOG_DEVIATION, where a full-scale tone has a power of one.
    The peak of each clip is scaled to one first, so loudness does not matter; a clip of zeros stays zeros.
    """
    peak = np.abs(clips).max(axis=1, keepdims=True)
    scaled = clips / np.maximum(peak, np.float32(1e-6))
    frames = np.lib.stride_tricks.sliding_window_view(scaled, FRAME_LENGTH, axis=1)[:, ::FRAME_STEP]
    spectrum = np.fft.rfft(frames * _WINDOW, axis=2) / (_WINDOW.sum() / 2)
    power = (spectrum.real**2 + spectrum.imag**2) @ _FILTERS
    features = (np.log(power + POWER_FLOOR) - LOG_MEAN) / LOG_DEVIATION
    return np.asarray(features[:, None], dtype=np.float32)


def read_features(path: str | PathLike[str]) -> FloatArray:
    """Features of one wav file, shape (1, 1, FRAMES, BANDS) float32: what the network takes."""
    return log_mel(place(read_wav(path))[None])
