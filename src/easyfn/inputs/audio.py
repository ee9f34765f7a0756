"""What models of sound take: recordings in one array, spectrograms, normed samples. All but the padding is pure JAX."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ..core.arrays import Host


def pad_sound(
    recordings: Sequence[Any], *, length: int | None = None, multiple_of: int = 1
) -> tuple[Float[np.ndarray, "batch samples"], Int[np.ndarray, "batch samples"]]:
    """Recordings of different lengths as one array, zeros behind them, and the mask that says which samples are real.

    `recordings` are one-dimensional. The array has `length` samples (longer recordings are cut), or else as many as the
    longest, rounded up to `multiple_of`.

    ```python
    import numpy as np, easyfn as ef
    sound, mask = ef.pad_sound([np.ones(300), np.ones(500)], multiple_of=160)
    assert sound.shape == (2, 640) and mask.sum(axis=1).tolist() == [300, 500]
    ```
    """
    rows = [np.asarray(one, np.float32) for one in recordings]
    if not rows or any(row.ndim != 1 for row in rows):
        raise ValueError(
            "pad_sound takes a list of recordings of one channel, each an array (samples,); mix the channels first: "
            "recording.mean(axis=channels)"
        )
    longest = max(len(row) for row in rows) if length is None else length
    size = -(-longest // multiple_of) * multiple_of
    sound, mask = np.zeros((len(rows), size), np.float32), np.zeros((len(rows), size), np.int32)
    for i, row in enumerate(rows):
        count = min(len(row), longest)
        sound[i, :count], mask[i, :count] = row[:count], 1
    return sound, mask


def log_mel(
    sound: Float[Array, "batch samples"] | Float[np.ndarray, "batch samples"],
    *,
    num_mel_bins: int = 80,
    sampling_rate: int = 16000,
    n_fft: int = 400,
    hop_length: int = 160,
) -> Float[Array, "batch bins frames"]:
    """Whisper's log-mel spectrogram of recordings, float32 `(batch, num_mel_bins, samples // hop_length)`.

    Powers of the short-time Fourier transform (periodic Hann window, frames centred, the sound mirrored at its ends; the
    last frame is left out), summed by Slaney's mel filters; the logarithm to base 10, no less than 8 below the largest of
    the recording; then `(x + 4) / 4`. The numbers are those of transformers' `WhisperFeatureExtractor`.

    A window of 30 seconds is `ef.pad_sound(recordings, length=480000)`; longer ones are for [`easyfn.transcribe`][].

    ```python
    import numpy as np, easyfn as ef
    sound, _ = ef.pad_sound([np.sin(np.arange(8000) / 5)], length=16000)
    assert ef.log_mel(sound).shape == (1, 80, 100)
    ```
    """
    sound = jnp.asarray(sound, jnp.float32)
    if sound.ndim != 2 or sound.shape[1] <= n_fft // 2:
        raise ValueError(
            f"log_mel takes recordings (batch, samples) of more than {n_fft // 2} samples, not {sound.shape}; "
            "ef.pad_sound makes one array of several"
        )
    count = sound.shape[1] // hop_length
    padded = jnp.pad(sound, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    places = np.arange(count)[:, None] * hop_length + np.arange(n_fft)[None]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = padded[:, places] * window.astype(np.float32)[None, None]
    spectrum = jnp.fft.rfft(frames, axis=-1)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    filters = mel_filters(num_mel_bins, n_fft // 2 + 1, sampling_rate)
    mel = jnp.einsum("mf,btf->bmt", filters, power, precision=jax.lax.Precision.HIGHEST)
    logs = jnp.log10(jnp.maximum(mel, 1e-10))
    return (jnp.maximum(logs, jnp.max(logs, axis=(1, 2), keepdims=True) - 8.0) + 4.0) / 4.0


@functools.cache
def mel_filters(num_mel_bins: int, bins: int, sampling_rate: int = 16000) -> np.ndarray:
    """Slaney's filters, float32 `(num_mel_bins, bins)`: triangles of equal area, equally far apart in mels up to 8 kHz."""
    step = 27.0 / math.log(6.4)  # mels by logarithm above 1000 Hz, which are 15 mels
    top = 15.0 + math.log(8.0) * step
    mels = np.linspace(0.0, top, num_mel_bins + 2)
    edges = np.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * np.exp((np.maximum(mels, 15.0) - 15.0) / step))
    places = np.linspace(0.0, sampling_rate // 2, bins)
    away = edges[:, None] - places[None]
    wide = np.diff(edges)[:, None]
    triangles = np.maximum(0.0, np.minimum(-away[:-2] / wide[:-1], away[2:] / wide[1:]))
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def normalize_sound(
    sound: Float[Array, "batch samples"] | Float[np.ndarray, "batch samples"],
    mask: Shaped[Array, "rows samples"] | Host | None = None,
) -> Float[Array, "batch samples"]:
    """Recordings of zero mean and unit variance each, as `Wav2Vec2FeatureExtractor` makes them: `(x - mean) /
    sqrt(variance + 1e-7)` over the samples that `mask` `(batch, samples)` says are real, and zeros elsewhere.

    ```python
    import numpy as np, easyfn as ef
    sound, mask = ef.pad_sound([np.arange(300.0), np.arange(500.0)])
    assert abs(float(ef.normalize_sound(sound, mask)[0].sum())) < 1e-2
    ```
    """
    sound = jnp.asarray(sound, jnp.float32)
    real = jnp.ones(sound.shape, bool) if mask is None else jnp.asarray(mask) != 0
    if real.shape != sound.shape:
        raise ValueError(f"normalize_sound: the mask has shape {real.shape} and the sound {sound.shape}")
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(real, sound, 0.0), axis=1, keepdims=True) / count
    apart = jnp.where(real, sound - mean, 0.0)
    return apart * jax.lax.rsqrt(jnp.sum(jnp.square(apart), axis=1, keepdims=True) / count + 1e-7)
