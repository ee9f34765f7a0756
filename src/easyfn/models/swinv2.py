"""Swin V2 (Liu et al. 2021, arXiv 2111.09883): Swin with norms behind its parts, and cosines for scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..config.config import labels, only
from ..core.weight import Slot, Weight, dense, slots, take
from ..names.rules import rename
from ..nn import Context, LayerNorm, Linear, declare, dropout
from ..nn.attention.core import merge_heads, split_heads
from ..nn.mlp import MLP
from ..nn.vision import attend_all, drop_path, pair
from .swin import EMBEDDINGS, Swin, SwinFields, in_windows, offsets, squares, swin_family
from .vision import block_names, head_names


@dataclass(frozen=True, kw_only=True)
class Swinv2Config(SwinFields):
    """The keys of a Swin V2 `config.json`. Its absolute positions run nowhere: the reference has one row too many of them."""

    model_type: ClassVar[str] = "swinv2"
    ignored: ClassVar[tuple[str, ...]] = ("hidden_size", "num_layers", "path_norm", "use_absolute_embeddings")
    pretrained_window_sizes: tuple[int, ...] | None = (0, 0, 0, 0)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "use_absolute_embeddings", False)
        return labels(data)


def distances(size: int, pretrained: int) -> np.ndarray:
    """All `(2 * size - 1)^2` offsets in a window, `(offsets, 2)`: by the size of the window (of pretraining, where that was
    another), to the logarithm."""
    whole = (pretrained if pretrained > 0 else size) - 1
    if pretrained == 1:
        raise ValueError("swinv2: a window of 1 in pretrained_window_sizes has no distances to measure others by")
    one = np.arange(1 - size, size, dtype=np.float32)
    both = np.stack(np.meshgrid(one, one, indexing="ij"), -1).reshape(-1, 2)
    both = both * np.float32(8) / np.float32(whole or 1)
    return np.sign(both) * np.log2(np.abs(both) + 1) / np.float32(math.log2(8))


class CosineAttention(eqx.Module):
    """Attention within a window by cosines, on which each head has a scale; and a bias that a small network makes of the
    distance of two places."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    logit_scale: Weight  # [heads, 1, 1], a logarithm
    continuous_position_bias_mlp: tuple[Linear, Linear]
    heads: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    pretrained: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, c: Swinv2Config, size: int, heads: int, window: int, pretrained: int) -> None:
        if size % heads:
            raise ValueError(f"swinv2: {size} channels are no multiple of {heads} heads (num_heads)")
        linear = lambda bias: Linear(size, size, bias, axes=("heads", "embed"))
        self.query, self.key, self.value = linear(c.qkv_bias), linear(False), linear(c.qkv_bias)
        self.output = Linear(size, size, True, axes=("embed", "heads"))
        self.logit_scale = declare(heads, 1, 1)
        self.continuous_position_bias_mlp = Linear(2, 512, True), Linear(512, heads, axes=("heads", None))
        self.heads, self.window, self.pretrained = heads, window, pretrained
        self.dropout = c.attention_probs_dropout_prob
        distances(window, pretrained)

    def bias(self) -> jax.Array:
        first, last = self.continuous_position_bias_mlp
        table = jnp.asarray(distances(self.window, self.pretrained)).astype(dense(first.weight).dtype)
        rows = take(last(jax.nn.relu(first(table))), jnp.asarray(offsets(self.window)))
        return 16 * jax.nn.sigmoid(jnp.moveaxis(rows, -1, 0)[None])

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.query, self.key, self.value))
        scale = jnp.exp(jnp.minimum(dense(self.logit_scale).astype(jnp.float32), math.log(100)))[None]
        q, k = (_unit(q) * scale).astype(x.dtype), _unit(k).astype(x.dtype)
        out, weights = attend_all(q, k, v, context, dropout_rate=self.dropout, scale=1.0)
        return dropout(self.output(merge_heads(out)), self.dropout, context, 1), weights


def _unit(x: jax.Array) -> jax.Array:
    h = x.astype(jnp.float32)
    return h * jax.lax.rsqrt(jnp.maximum(jnp.sum(h * h, axis=-1, keepdims=True), 1e-24))


@slots.register(CosineAttention)
def _(attention: CosineAttention) -> dict[str, Slot]:
    full = lambda key, shape, dtype: jnp.full(shape, math.log(10), dtype)
    return {"logit_scale": Slot("other", ("heads", None, None), full)}


class Swinv2Layer(eqx.Module):
    """Attention within windows, then an MLP, a norm behind each."""

    attention: CosineAttention
    norm1: LayerNorm
    mlp: MLP
    norm2: LayerNorm
    window: int = eqx.field(static=True)
    shift: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    rate: float = eqx.field(static=True)

    def __init__(self, c: Swinv2Config, stage: int, index: int, size: int, rate: float) -> None:
        # By the height of the image that the config says, whichever comes: as transformers has it.
        places = pair(c.image_size)[0] // pair(c.patch_size)[0] // 2**stage
        self.window = min(places, c.window_size)
        if self.window < 1:
            raise ValueError(
                f"swinv2: an image_size of {c.image_size} leaves nothing to stage {stage + 1} of {len(c.depths)}"
            )
        self.shift = c.window_size // 2 if index % 2 and places > self.window else 0
        sizes = c.pretrained_window_sizes or (0,) * len(c.depths)
        self.attention = CosineAttention(c, size, c.num_heads[stage], self.window, sizes[stage])
        self.norm1, self.norm2 = LayerNorm(size, c.layer_norm_eps), LayerNorm(size, c.layer_norm_eps)
        self.mlp = MLP(size, int(c.mlp_ratio * size), c.hidden_act, bias=True)
        self.dropout, self.rate = c.hidden_dropout_prob, rate

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        bias = self.attention.bias()
        h, attentions = in_windows(x, self.window, self.shift, bias, context, self.attention)
        x = x + drop_path(self.norm1(h), self.rate, context, 2)
        h = dropout(self.mlp(x, context), self.dropout, context, 3)
        return x + drop_path(self.norm2(h), self.rate, context, 4), cache, {"attentions": attentions}


class Swinv2Merging(eqx.Module):
    """Squares of two by two places become one of twice as many channels, normed."""

    reduction: Linear
    norm: LayerNorm

    def __init__(self, size: int) -> None:
        self.reduction = Linear(4 * size, 2 * size, axes=("embed", None))
        self.norm = LayerNorm(2 * size, 1e-5)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.reduction(squares(x)))


def swinv2(c: Swinv2Config, *, masked: bool = False) -> Swin:
    if len(c.pretrained_window_sizes or c.depths) < len(c.depths):
        raise ValueError(f"swinv2: pretrained_window_sizes={c.pretrained_window_sizes} for {len(c.depths)} stages")
    layer = lambda stage, index, size, rate: Swinv2Layer(c, stage, index, size, rate)
    return Swin(c, layer, Swinv2Merging, masked=masked)


PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.output": "attention.output.dense",
    "attention": "attention.self",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
}
RULES = [
    EMBEDDINGS,
    # The network of distances has an activation between its layers, which torch counts.
    *(
        rename(
            f"stages.{{i}}.blocks.{{j}}.attention.continuous_position_bias_mlp.{ours}.{{rest}}",
            f"encoder.layers.{{i}}.blocks.{{j}}.attention.self.continuous_position_bias_mlp.{theirs}.{{rest}}",
        )
        for ours, theirs in ((1, 2), (0, 0))
    ),
    *block_names("stages.{j}.blocks", "encoder.layers.{j}.blocks", PARTS),
    rename("stages.{rest}", "encoder.layers.{rest}"),
]
swin_family("Swinv2", Swinv2Config, swinv2, names=lambda model: head_names(model, Swin, RULES, "swinv2"))
