"""The methods `int4`, `a4q` and `a8q`: integer codes in groups, by rounding alone."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from .config import QuantConfig, method
from .grouped import Grouped, grouped
from .rounding import default_group, inverse, round_groups, split_groups


def to_int4(w: Any, group: int | None = None, *, activations: str | None = None, name: str = "int4") -> Grouped:
    """Rounds a dense array `(..., out, in)` to symmetric 4-bit integers, one float32 scale for each `group` columns.

    By default a group is 128 columns, or 64 or 32 where 128 do not divide the row, or else the largest even divisor of the
    row from 16 to 128. Raises `ValueError` for a group that is odd or does not divide the row.

    ```python
    import jax, easyfn as ef
    w = ef.quant.to_int4(jax.random.normal(jax.random.key(0), (8, 192)))
    assert ef.format_of(w) == "int4/64" and w.codes.shape == (8, 96) and w.scales.shape == (8, 3)
    ```
    """
    group = default_group(w.shape[-1]) if group is None else group
    if group % 2:
        raise ValueError(f"{name} packs two entries of a group in a byte: group_size must be even, not {group}")
    codes, scales, _ = round_groups(w, 4, group)
    return grouped(codes, scales, bits=4, dtype=w.dtype, activations=activations, name=name)


def to_q8_0(w: Any) -> Grouped:
    """Rounds a dense array `(..., out, in)` to 8-bit integers in blocks of 32 columns with float16 scales.

    Codes and scales are those of GGUF's Q8_0, bit for bit (ggml-quants.c, `quantize_row_q8_0_ref`).
    Raises `ValueError` where 32 does not divide the row.

    ```python
    import jax, easyfn as ef
    w = ef.quant.to_q8_0(jax.random.normal(jax.random.key(0), (8, 64)))
    assert ef.format_of(w) == "a8q/32" and w.codes.dtype == "int8" and w.scales.dtype == "float16"
    ```
    """
    if w.shape[-1] % 32:
        raise ValueError(
            f"a8q has blocks of 32 entries, as GGUF's Q8_0, which do not divide rows of {w.shape[-1]}: leave such weights "
            "out by the pattern, or choose a8bit"
        )
    cut = split_groups(w, 32)
    scales = jnp.max(jnp.abs(cut), axis=-1, keepdims=True) / 127
    scaled = cut * inverse(scales)
    whole = jnp.floor(jnp.abs(scaled))
    codes = jnp.sign(scaled) * (whole + jnp.floor(2 * (jnp.abs(scaled) - whole)))  # halves away from zero
    codes = codes.astype(jnp.int8).reshape(w.shape)
    return grouped(codes, scales[..., 0].astype(jnp.float16), bits=8, dtype=w.dtype, activations="int8/32", name="a8q")


@method("int4")
def _(w: Any, cfg: QuantConfig) -> Grouped:
    cfg.refuse("double_quant", "block")
    return to_int4(w, cfg.group_size)


@method("a4q")
def _(w: Any, cfg: QuantConfig) -> Grouped:
    cfg.refuse("double_quant", "block")
    return to_int4(w, cfg.group_size, activations="int8", name="a4q")


@method("a8q")
def _(w: Any, cfg: QuantConfig) -> Grouped:
    cfg.refuse("double_quant", "block")
    if cfg.group_size not in (None, 32):
        raise ValueError(f"a8q has blocks of 32 entries, as GGUF's Q8_0: leave group_size out, not {cfg.group_size}")
    return to_q8_0(w)
