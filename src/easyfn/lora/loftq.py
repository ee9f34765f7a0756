"""LoftQ: adapters that start as what quantization lost (Li et al. 2023, arXiv 2310.08659)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..core.slots import find_slots, map_slots
from ..core.tree import Pattern, expand, lift, near
from ..core.weight import Weight, dense, format_of, requantize, shape_of
from .adapter import place
from .apply import apply_lora
from .inits import roots
from .weight import LoRA


def loftq(
    quantized: Any,
    original: Any,
    pattern: Pattern = "all-linear",
    *,
    key: jax.Array,
    iterations: int = 1,
    **options: Any,
) -> Any:
    """`ef.apply_lora(quantized, pattern, key=key, **options)`, with adapters that give back what quantizing lost.

    In turn, `iterations` times: the weight minus the adapter is quantized, in the format that it has (`nf4`, int8, any
    that knows [`easyfn.requantize`][]), and the adapter becomes the best approximation of its rank of what that loses,
    by a singular value decomposition. With one iteration the base stays `quantized`'s, bit for bit; with more it is
    another, which a file of the adapter needs beside it ([`easyfn.save_adapter`][] says how).

    `original` is the model before it was quantized, of the same structure (stacked or not, alike). Slots whose weight
    is not quantized start as usual. Unlike PEFT's, the sum counts `alpha / rank`, so any alpha starts as well.

    Raises `ValueError` if no selected weight is quantized, or `original` has no such weights.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    small = ef.quantize(model, "nf4")
    tuned = ef.loftq(small, model, rank=4, key=jax.random.key(1), iterations=3)
    lost = [jnp.linalg.norm(ef.dense(m.model.layers[0].mlp.up_proj.weight) - model.model.layers[0].mlp.up_proj.weight)
            for m in (small, tuned)]
    assert lost[1] < lost[0]
    ```
    """
    if iterations < 1:
        raise ValueError(f"loftq: iterations must be at least 1, not {iterations}")
    if "init" in options or options.get("dora"):
        raise ValueError("loftq: it is an init of its own, and for plain LoRA: leave init and dora out")
    tuned = apply_lora(quantized, pattern, key=key, **options)
    whole = {f.path: f.weight for f in find_slots(original)}
    count = 0

    def how(path: str, slot: Any, w: Any) -> Any:
        nonlocal count
        if not isinstance(w, LoRA) or format_of(w.base) is None:
            return w
        if path not in whole or tuple(shape_of(whole[path])) != tuple(shape_of(w)):
            raise ValueError(f"loftq: the original has no weight like that at {path!r}. {near(path, whole)}")
        count += 1
        one = lambda w, full: _alternate(w, full, iterations)
        made = lift(jax.vmap(one) if expand(path) != [path] else one)(w, whole[path])
        return place(made if made.start else dataclasses.replace(made, base=w.base))

    new = map_slots(apply_lora, tuned, how)
    if not count:
        raise ValueError("loftq: none of the selected weights is quantized: ef.quantize(model, 'nf4') first")
    return new


def _alternate(w: LoRA, full: Weight, iterations: int) -> LoRA:
    """The adapter of one weight, or of all experts of one."""
    exact = dense(full).astype(jnp.float32)
    base, a, b = w.base, w.a, w.b
    for n in range(iterations):
        if n:
            base = requantize(w.base, exact - w.scale * jnp.matmul(b, a, precision=jax.lax.Precision.HIGHEST))
        u, s, vh = jnp.linalg.svd(exact - dense(base).astype(jnp.float32), full_matrices=False)
        a, b = roots(u[..., : w.rank], s[..., : w.rank], vh[..., : w.rank, :], w.scale)
    a, b = a.astype(w.a.dtype), b.astype(w.b.dtype)
    return dataclasses.replace(w, base=base, a=a, b=b, start="loftq" if iterations > 1 else None)
