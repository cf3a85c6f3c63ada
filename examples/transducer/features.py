"""Log-mel features of 8 kHz speech as a stream: three frames of 10 ms by 32 bands make one step of 30 ms.

Frame n ends with sample 80 (n + 1): what it needs has been heard by then, and nothing later. A value is
(ln(power + POWER_FLOOR) - LOG_MEAN) / LOG_DEVIATION; no scaling by a clip's peak or mean, which a stream does not know.
"""

import wave
from os import PathLike
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

SAMPLE_RATE: Final = 8000  # Hz
FRAME_LENGTH: Final = 256  # samples: 32 ms
FRAME_STEP: Final = 80  # samples: 10 ms
BANDS: Final = 32
STACK: Final = 3
STEP: Final = STACK * FRAME_STEP  # samples of one step of the encoder: 30 ms
STEP_MS: Final = 1000 * STEP / SAMPLE_RATE
WIDTH: Final = STACK * BANDS
POWER_FLOOR: Final = 1e-7
LOG_MEAN: Final = -12.8  # of the training utterances, rounded, as data.py prints them
LOG_DEVIATION: Final = 2.1


def mel_filters() -> NDArray[np.float64]:
    """Triangles on the mel axis from 60 to 3800 Hz, (bins, BANDS), each with weights that sum to one."""
    position = np.log1p(np.fft.rfftfreq(FRAME_LENGTH, 1 / SAMPLE_RATE) / 700)
    edges = np.linspace(np.log1p(60 / 700), np.log1p(3800 / 700), BANDS + 2)
    filters = np.maximum(0, 1 - np.abs(position[:, None] - edges[None, 1:-1]) / (edges[1] - edges[0]))
    return np.asarray(filters / filters.sum(0), dtype=np.float64)


_WINDOW: Final = np.hanning(FRAME_LENGTH + 1)[:-1]
_FILTERS: Final = mel_filters()


def log_mel(samples: FloatArray) -> FloatArray:
    """Features (steps, 1, 1, WIDTH) of samples, float32 in [-1, 1]; what is left behind the last whole step is cut."""
    steps = samples.size // STEP
    heard = np.concatenate([np.zeros(FRAME_LENGTH - FRAME_STEP, np.float32), samples[: steps * STEP]])
    frames = np.lib.stride_tricks.sliding_window_view(heard, FRAME_LENGTH)[::FRAME_STEP]
    spectrum = np.fft.rfft(frames * _WINDOW) / (_WINDOW.sum() / 2)
    power = (spectrum.real**2 + spectrum.imag**2) @ _FILTERS
    return ((np.log(power + POWER_FLOOR) - LOG_MEAN) / LOG_DEVIATION).astype(np.float32).reshape(steps, 1, 1, WIDTH)


def read_features(path: str | PathLike[str]) -> FloatArray:
    """Features of a mono 16-bit 8 kHz wav file.

    Raises:
        ValueError: the file has another rate, width or channel count.
    """
    with wave.open(str(path), "rb") as clip:
        found = (clip.getframerate(), clip.getsampwidth(), clip.getnchannels())
        if found != (SAMPLE_RATE, 2, 1):
            raise ValueError(f"{path}: found {found} (Hz, bytes, channels), allowed is ({SAMPLE_RATE}, 2, 1)")
        data = clip.readframes(clip.getnframes())
    return log_mel(np.frombuffer(data, dtype="<i2").astype(np.float32) / np.float32(32768))
