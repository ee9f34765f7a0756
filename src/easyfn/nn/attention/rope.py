"""Rotary position embeddings in all of Hugging Face's variants, computed once per forward pass in float32.

The formulas follow transformers `modeling_rope_utils.py`. Nothing is stored: frequencies are a function of the
config and, for `dynamic` and `longrope`, of the largest position of the pass.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.frozen import Frozen

TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")


def inverse_frequencies(
    parameters: Mapping[str, Any], head_dim: int, max_position_embeddings: int, length: jax.Array | int
) -> tuple[jax.Array, float | jax.Array]:
    """Inverse frequencies of shape `(rotary_dim / 2,)` and the factor on cos and sin.

    `parameters` are a config's `rope_parameters`; `length` is the largest position of the pass plus one.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    base = float(parameters.get("rope_theta", 10000.0))
    if kind == "proportional":  # whole heads, of whose pairs the last do not turn (Gemma 4)
        turning = int(parameters.get("partial_rotary_factor", 1.0) * head_dim // 2)
        inv = 1.0 / base ** (np.arange(0, 2 * turning, 2, dtype=np.float64) / head_dim)
        return _f32(np.pad(inv, (0, head_dim // 2 - turning)) / float(parameters.get("factor") or 1.0)), 1.0
    dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    inv = 1.0 / base ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    if kind == "default":
        return _f32(inv), 1.0
    factor = float(parameters.get("factor") or 1.0)
    if kind == "linear":
        return _f32(inv / factor), 1.0
    if kind == "dynamic":
        trained = max_position_embeddings
        ratio = jnp.maximum(length, trained) / trained
        scaled = base * (factor * ratio - (factor - 1)) ** (dim / (dim - 2))
        return 1.0 / scaled ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim), 1.0
    if kind == "llama3":
        return _f32(llama3_frequencies(inv, parameters)), 1.0
    if kind == "yarn":
        return _yarn(inv, parameters, base, dim, max_position_embeddings)
    if kind == "longrope":
        return _longrope(parameters, base, dim, max_position_embeddings, length)
    raise unknown_rope(kind)


def unknown_rope(kind: str) -> ValueError:
    return ValueError(f"unknown rope_type {kind!r}; known: {', '.join(TYPES)}")


def _f32(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def llama3_frequencies(inv: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    """Inverse frequencies as Llama 3.1 has them: slow ones are divided by a factor, fast ones stay."""
    factor = float(parameters.get("factor") or 1.0)
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    trained = parameters["original_max_position_embeddings"]
    wavelength = 2 * math.pi / inv
    smooth = (trained / wavelength - low) / (high - low)
    blended = (1 - smooth) * inv / factor + smooth * inv
    out = np.where(wavelength > trained / low, inv / factor, inv)
    return np.where((wavelength <= trained / low) & (wavelength >= trained / high), blended, out)


def _yarn(
    inv: np.ndarray, parameters: Mapping[str, Any], base: float, dim: int, max_position_embeddings: int
) -> tuple[jax.Array, float]:
    """Peng et al. 2023, arXiv 2309.00071."""
    trained = parameters.get("original_max_position_embeddings") or max_position_embeddings
    factor = parameters.get("factor") or max_position_embeddings / trained
    mscale, mscale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")

    def scale(m: float | int) -> float:
        return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0

    attention = parameters.get("attention_factor")
    if attention is None:
        attention = scale(mscale) / scale(mscale_all) if mscale and mscale_all else scale(1.0)

    def correction(rotations: float | int) -> float:
        return dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = correction(parameters.get("beta_fast") or 32), correction(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / ((high - low) or 0.001), 0, 1)
    return _f32(inv / factor * ramp + inv * (1 - ramp)), float(attention)


def longrope_factor(factor: float, trained: int) -> float:
    """The factor on cos and sin where a config says none: texts are `factor` times as long as those `trained` on."""
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(trained))


def _longrope(
    parameters: Mapping[str, Any], base: float, dim: int, max_position_embeddings: int, length: jax.Array | int
) -> tuple[jax.Array, float | jax.Array]:
    """Ding et al. 2024, arXiv 2402.13753."""
    trained = parameters.get("original_max_position_embeddings") or max_position_embeddings
    factor = parameters.get("factor") or max_position_embeddings / trained
    attention = parameters.get("attention_factor")
    if attention is None:
        attention = longrope_factor(factor, trained)
    exponent = base ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    short = _f32(1.0 / (np.asarray(parameters["short_factor"], np.float64) * exponent))
    long = _f32(1.0 / (np.asarray(parameters["long_factor"], np.float64) * exponent))
    far = jnp.asarray(length) > trained
    if parameters.get("long_mscale") is not None:  # Phi-3.5-MoE says the factors itself
        return jnp.where(far, long, short), jnp.where(far, parameters["long_mscale"], parameters["short_mscale"])
    return jnp.where(far, long, short), float(attention)


def rope_table(
    parameters: Mapping[str, Any], head_dim: int, max_position_embeddings: int, position_ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """cos and sin of shape `(batch, seq, rotary_dim / 2)`, float32, for `position_ids` of shape `(batch, seq)`.

    Positions of three axes (time, height, width), `(3, batch, seq)`, need `mrope_section`: how many frequencies turn with
    each of them, one after the other, or in turns if `mrope_interleaved`. `parameters` may hold a `direction` of -1, set by
    a family and never by a file: heads are turned the other way (nanochat).
    """
    inv, factor = inverse_frequencies(parameters, head_dim, max_position_embeddings, jnp.max(position_ids) + 1)
    if position_ids.ndim == 3:
        position_ids = jnp.moveaxis(position_ids, 0, -1)[..., section_axes(parameters, inv.shape[0])]
    else:
        position_ids = position_ids[..., None]
    return _turns(position_ids, inv, parameters.get("direction", 1), factor)


@functools.partial(jax.jit, inline=True)  # one program where it is called eagerly, nothing of its own inside another
def _turns(position_ids: jax.Array, inv: jax.Array, direction: Any, factor: Any) -> tuple[jax.Array, jax.Array]:
    angles = position_ids.astype(jnp.float32) * inv[None, None, :] * direction
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def section_axes(parameters: Mapping[str, Any], count: int) -> np.ndarray:
    """Which axis of a position each of `count` frequencies turns with."""
    section = parameters.get("mrope_section")
    if section is None:
        raise ValueError(
            "positions of three axes need rope_parameters with mrope_section: how many frequencies each has"
        )
    if not parameters.get("mrope_interleaved"):
        axes = np.repeat(np.arange(len(section)) % 3, section)
    else:
        axes = np.zeros(count, int)
        for axis in (1, 2):
            axes[axis : 3 * section[axis] : 3] = axis
    if len(axes) != count:
        raise ValueError(f"mrope_section={tuple(section)} adds up to {len(axes)}, and there are {count} frequencies")
    return axes


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array], interleaved: bool = False) -> jax.Array:
    """Rotates the first `rotary_dim` entries of each head: halves against halves (Su et al. 2021 in GPT-NeoX's order) or,
    `interleaved`, each entry against its neighbour (in GPT-J's).

    `x`: `(batch, heads, seq, head_dim)`; `table`: cos and sin as [`easyfn.nn.rope_table`][] makes them.
    """
    cos, sin = table[0][:, None], table[1][:, None]
    half = cos.shape[-1]
    h = x.astype(jnp.float32)
    turned, rest = h[..., : 2 * half], h[..., 2 * half :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = turned[..., :half], turned[..., half:]
        out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([out, rest], axis=-1).astype(x.dtype) if rest.shape[-1] else out.astype(x.dtype)


def whole_heads(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a family that rotates whole heads, whatever `partial_rotary_factor` says: transformers has it in the
    formulas of scaled frequencies, but in the default ones only of families that have partial rotation.

    Raises `ValueError` where a scaled kind would give fewer frequencies than such a family's heads need.
    """
    factor = parameters.get("partial_rotary_factor")
    if factor is None or factor == 1.0 or parameters.get("rope_type") == "proportional":
        return parameters
    if (kind := parameters.get("rope_type", "default")) != "default":
        raise ValueError(
            f"partial_rotary_factor={factor} with rope_type {kind!r}: this family rotates whole heads, so its checkpoints "
            "cannot have a factor other than 1.0; load with the rope_parameters it was trained with in config_overrides"
        )
    return {name: value for name, value in parameters.items() if name != "partial_rotary_factor"}


def checked_rope(tables: Mapping[str, Any], head_dim: Mapping[str, int] | int, *, partial: bool = False) -> Frozen:
    """The parameters of each rotary table of a model by name, for whole heads unless they are turned in part (`partial`).

    Raises `ValueError` for an unknown `rope_type`, and for heads that do not turn in pairs: here, and not in the first
    forward pass.
    """
    for parameters in tables.values():
        if (kind := parameters.get("rope_type", "default")) not in TYPES:
            raise unknown_rope(kind)
    found = {name: p if partial else whole_heads(p) for name, p in tables.items()}
    for name, parameters in found.items():
        width = head_dim if isinstance(head_dim, int) else head_dim[name]
        part = parameters.get("partial_rotary_factor")
        turned = width if part is None or parameters.get("rope_type") == "proportional" else int(width * part)
        if turned % 2:
            raise ValueError(
                f"rotary positions turn pairs of a head's values, and {turned} of {width} are an odd number"
            )
    return Frozen(found)
