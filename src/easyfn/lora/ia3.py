"""`IA3`: one trained factor per input or output of a weight (Liu et al. 2022, arXiv 2205.05638)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.slots import Found
from ..core.tree import Pattern, matches
from ..core.weight import Weight, affine, dense, dot, shape_of
from .adapter import choose, fresh, gain, register_adapter, scaled
from .apply import put

ROLES = ("linear", "head", "router", "experts")


class IA3(eqx.Module):
    """The weight `base * scale`: `scale` of shape `(..., 1, in)` with `inputs`, else `(..., out, 1)`.

    On outputs it scales the bias of the layer too, as in PEFT. A fresh one is all ones.
    """

    base: Weight
    scale: Any
    inputs: bool = eqx.field(static=True, default=False)


def apply_ia3(
    model: Any,
    pattern: Pattern = "all-linear",
    *,
    feedforward: Pattern | None = None,
    layers: int | Sequence[int] | None = None,
    exclude: Pattern | None = None,
    dtype: Any = None,
) -> Any:
    """`model` with an [`IA3`][easyfn.IA3] in every weight slot that the pattern selects; a fresh one changes nothing.

    **Arguments**

    - `feedforward`: the slots that are scaled on their inputs; the others are on their outputs. By default those that
      take the inner activations of a feedforward layer (`down_proj`, `wo`, ...), as in the paper and in PEFT. The paper
      adapts these, the keys and the values: `"k_proj|v_proj|down_proj"`.
    - `pattern`, `layers`, `exclude`, `dtype`: as for [`easyfn.apply_lora`][].

    All else is as with LoRA: `ef.trainable`, `ef.split_lora`, `ef.merge_lora`, `ef.save_adapter`.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    tuned = ef.apply_ia3(model, "k_proj|v_proj|down_proj")
    mlp = tuned.model.layers[0].mlp
    assert mlp.down_proj.weight.scale.shape == (1, 64) and mlp.down_proj.weight.inputs
    ```
    """
    chosen = choose("apply_ia3", model, pattern, layers, exclude, ROLES)
    number = jnp.dtype(dtype or jnp.float32)

    def adapter(f: Found) -> IA3:
        inner = f.slot.axes[-1] == "mlp" if feedforward is None else matches(feedforward, f.path, f.weight)

        def make(w: Weight, key: None) -> IA3:
            *lead, out, into = shape_of(w)
            return IA3(w, jnp.ones((*lead, 1, into) if inner else (*lead, out, 1), number), inputs=inner)

        return fresh(f, None, make)

    return put(model, {f.path: adapter(f) for f in chosen})


def _vector(w: IA3) -> jax.Array:
    return w.scale[..., 0, :] if w.inputs else w.scale[..., 0]


@dot.register(IA3)
def _(w: IA3, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    if w.inputs:
        return dot(w.base, scaled(x, _vector(w)), dtype=dtype)
    return scaled(dot(w.base, x, dtype=dtype), _vector(w))


@affine.register(IA3)
def _(w: IA3, x: jax.Array, bias: Any, *, dtype: Any = None) -> jax.Array:
    if w.inputs:
        return affine(w.base, scaled(x, _vector(w)), bias, dtype=dtype)
    return scaled(affine(w.base, x, bias, dtype=dtype), _vector(w))


@gain.register(IA3)
def _(w: IA3) -> Any:
    return None if w.inputs else w.scale


@dense.register(IA3)
def _(w: IA3) -> jax.Array:
    base = dense(w.base)
    return (base.astype(jnp.float32) * w.scale.astype(jnp.float32)).astype(base.dtype)


def _axes(w: IA3, lead: tuple[Any, ...], out: Any, into: Any) -> dict[str, Any]:
    return {"scale": (*lead, None, into) if w.inputs else (*lead, out, None)}


register_adapter(IA3, _axes)
