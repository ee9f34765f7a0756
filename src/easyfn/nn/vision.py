"""What encoders of images are made of: patches, positions on a grid, pre-norm blocks, classifiers.

Arrays are channels-last inside; `pixel_values` come as `(batch, channels, height, width)`, as processors make them.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, shape_of, slots
from .activation import activation
from .attention.attention import attend
from .attention.core import merge_heads, split_heads
from .attention.rope import rotate
from .context import Context, Mask, dropout
from .conv import Conv
from .fold import fold
from .linear import Linear, along_last, declare
from .norm import LayerNorm
from .output import Output
from .resize import resize_grid


def pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """A size as `(height, width)`, whichever way a config writes it; `ValueError` for what is none."""
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2 or min(both) < 1:
        raise ValueError(
            f"an image or a patch of size {size}: it must be one number of at least 1, or height and width"
        )
    return both


def image_context(context: Context) -> Context:
    """The context of a tower of images: all its tokens are real and see each other, whatever the text beside it does."""
    text = ("segment_ids", "cached_segment_ids", "table", "rope", "bias", "blocks", "added", "encoder")
    return context.replace(**dict.fromkeys(text), causal=False)


def channels_last(pixel_values: jax.Array, like: Any) -> jax.Array:
    """`(batch, channels, height, width)` to `(batch, height, width, channels)`, in the dtype of the weight `like`."""
    return jnp.moveaxis(pixel_values, 1, -1).astype(like.dtype)


class ClassTokens(eqx.Module):
    """Learned tokens and positions that stand before and on the patches of an image.

    `cls_token` and the other tokens have shape `(1, 1, embed)`, `position_embeddings` `(1, tokens + patches, embed)`; a model
    that was pretrained with masked patches has a `mask_token` that replaces those of `bool_masked_pos`. `registers` are so
    many tokens without a position, behind the first. Without `first` there are patches alone.
    """

    cls_token: Weight | None
    distillation_token: Weight | None
    register_tokens: Weight | None
    mask_token: Weight | None
    patch_embeddings: Any
    position_embeddings: Weight | None
    grid: tuple[int, int] = eqx.field(static=True)
    patch: tuple[int, int] = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    antialias: bool = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        *,
        first: bool = True,
        distilled: bool = False,
        registers: int | None = None,
        mask_token: tuple[int, ...] | None = None,
        positions: bool = True,
        antialias: bool = False,
    ) -> None:
        size = config.hidden_size
        image, self.patch = pair(config.image_size), pair(config.patch_size)
        self.grid = (image[0] // self.patch[0], image[1] // self.patch[1])
        self.cls_token = declare(1, 1, size) if first else None
        self.distillation_token = declare(1, 1, size) if distilled else None
        self.register_tokens = None if registers is None else declare(1, registers, size)
        self.mask_token = declare(*mask_token) if mask_token else None
        self.patch_embeddings = Projected(Conv(config.num_channels, size, self.patch, stride=self.patch))
        count = first + distilled + self.grid[0] * self.grid[1]
        self.position_embeddings = declare(1, count, size) if positions else None
        self.dropout, self.antialias = config.hidden_dropout_prob, antialias

    def __call__(
        self, context: Context, pixel_values: jax.Array, bool_masked_pos: Any = None, interpolate: bool = False
    ) -> tuple[jax.Array, Context]:
        x = self.patch_embeddings.projection(
            channels_last(pixel_values, dense(self.patch_embeddings.projection.weight))
        )
        grid = x.shape[1:3]
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = masked_patches(self.mask_token, x, bool_masked_pos)
        extra = [dense(t) for t in (self.cls_token, self.distillation_token) if t is not None]
        first = [jnp.broadcast_to(t.reshape(1, 1, -1), (x.shape[0], 1, x.shape[-1])).astype(x.dtype) for t in extra]
        x = jnp.concatenate([*first, x], axis=1)
        if self.position_embeddings is not None:
            table = dense(self.position_embeddings)[0]
            table = grid_positions(
                table, self.grid, grid, len(extra), interpolate=interpolate, antialias=self.antialias
            )
            x = x + table[None].astype(x.dtype)
        if self.register_tokens is not None:
            rows = dense(self.register_tokens).astype(x.dtype)
            x = jnp.concatenate([x[:, :1], jnp.broadcast_to(rows, (x.shape[0], *rows.shape[1:])), x[:, 1:]], axis=1)
        return dropout(x, self.dropout, context, 1_000_003), context


@slots.register(ClassTokens)
def _(tokens: ClassTokens) -> dict[str, Slot]:
    other = Slot("other", (None, None, "embed"))
    shape = () if tokens.mask_token is None else shape_of(tokens.mask_token)
    zero = Slot("other", (*(None for _ in shape[1:]), "embed"), "zeros")
    names = ("cls_token", "distillation_token", "register_tokens", "position_embeddings")
    return {**dict.fromkeys(names, other), "mask_token": zero}


def masked_patches(mask_token: Any, x: jax.Array, bool_masked_pos: Any) -> jax.Array:
    """`x` `(batch, patches, embed)` with the mask token where `bool_masked_pos` `(batch, patches)` is true."""
    if bool_masked_pos is None:
        return x
    if mask_token is None:
        raise ValueError("bool_masked_pos masks patches, and this model has no mask_token: it was not pretrained so")
    token = dense(mask_token).reshape(1, 1, -1).astype(x.dtype)
    return jnp.where(jnp.asarray(bool_masked_pos).astype(bool)[..., None], token, x)


def grid_positions(
    table: jax.Array,
    old: tuple[int, int],
    new: tuple[int, int],
    extra: int,
    *,
    interpolate: bool,
    method: str = "bicubic",
    antialias: bool = False,
) -> jax.Array:
    """Learned positions `(extra + patches, embed)` for a grid of patches, the first `extra` being those of other tokens.

    An image of another size than the model's is a `ValueError` unless `interpolate`.
    """
    if old == new:
        return table
    if not interpolate:
        raise ValueError(
            f"the image has {new[0]} x {new[1]} patches and the model learned positions for {old[0]} x {old[1]}: resize "
            "it, or pass interpolate_pos_encoding=True"
        )
    return jnp.concatenate([table[:extra], resize_grid(table[extra:], old, new, method=method, antialias=antialias)])


class Projected(eqx.Module):
    """Hugging Face's wrapper of a patch embedding: `projection`."""

    projection: Conv


class SelfAttention(eqx.Module):
    """Attention among all tokens of an encoder, or of those before in a text tower (`context.causal`). `qk_norm` are norms of all
    queries and of all keys of a token; `interleaved` turns each number against its neighbour."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    q_norm: Any
    k_norm: Any
    heads: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    interleaved: bool = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        *,
        head_dim: int | None = None,
        bias: tuple[bool, bool, bool, bool] = (True, True, True, True),
        qk_norm: tuple[Any, Any] = (None, None),
        dropout: float = 0.0,
        interleaved: bool = False,
    ) -> None:
        if hidden_size % heads and head_dim is None:
            raise ValueError(f"hidden_size={hidden_size} is no multiple of num_attention_heads={heads}")
        width = heads * (head_dim or hidden_size // heads)
        self.q_proj, self.k_proj, self.v_proj = (
            Linear(hidden_size, width, b, axes=("heads", "embed")) for b in bias[:3]
        )
        self.o_proj = Linear(width, hidden_size, bias[3], axes=("embed", "heads"))
        self.q_norm, self.k_norm = qk_norm
        self.heads = heads
        self.dropout = dropout
        self.interleaved = interleaved

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k = q if self.q_norm is None else self.q_norm(q), k if self.k_norm is None else self.k_norm(k)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        if context.rope is not None:
            q, k = (rotate(part, context.rope["image"], self.interleaved) for part in (q, k))
        out, weights = attend_all(q, k, v, context, dropout_rate=self.dropout)
        return self.o_proj(merge_heads(out)), weights


def attend_all(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    context: Context,
    *,
    bias: Any = None,
    dropout_rate: float = 0.0,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Attention without a cache over heads `(batch, heads, seq, dim)`, with the context's mask, if anything is masked."""
    seen, places = context.segment_ids, context.slots
    # Padding that is read both ways asks like a token, as in transformers: some towers pool it.
    asks = seen if seen is None or context.causal else jnp.where(seen == 0, 1, seen)
    return attend(
        q,
        k,
        v,
        None if seen is None else Mask(places, asks, places, seen, context.causal),
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        bias=context.bias if bias is None else bias,
        runtime=context.runtime,
        weights=context.wants("attentions"),
        dropout_rate=dropout_rate,
        key=None if context.key is None else jax.random.fold_in(context.key, 0),
    )


class LayerScale(eqx.Module):
    """`x * lambda1`, one learned factor for each channel (Touvron et al. 2021)."""

    lambda1: Weight
    value: float = eqx.field(static=True)

    def __init__(self, size: int, value: float = 1.0) -> None:
        self.lambda1 = declare(size)
        self.value = value

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * along_last(dense(self.lambda1).astype(x.dtype), x)


@slots.register(LayerScale)
def _(scale: LayerScale) -> dict[str, Slot]:
    full = lambda key, shape, dtype: jnp.full(shape, scale.value, dtype)
    return {"lambda1": Slot("norm", ("norm",), full)}


class EncoderBlock(eqx.Module):
    """A pre-norm block: `x + scale(attention(norm(x)))`, then `x + scale(mlp(norm(x)))`.

    `drop_path` is the rate at which a whole branch of a row is left out in training (stochastic depth).
    """

    norm1: Any
    attention: Any
    layer_scale1: LayerScale | None
    norm2: Any
    mlp: Any
    layer_scale2: LayerScale | None
    dropout: float = eqx.field(static=True)
    drop_path: float = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        attention: Any,
        mlp: Any,
        eps: float,
        *,
        scale: float | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        norm: Any = LayerNorm,
    ) -> None:
        self.norm1, self.norm2 = norm(hidden_size, eps), norm(hidden_size, eps)
        self.attention, self.mlp = attention, mlp
        self.layer_scale1 = self.layer_scale2 = None if scale is None else LayerScale(hidden_size, scale)
        self.dropout, self.drop_path = dropout, drop_path

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h, attentions = self.attention(self.norm1(x), context)
        x = x + self._branch(h, self.layer_scale1, context, 1)
        x = x + self._branch(self.mlp(self.norm2(x), context), self.layer_scale2, context, 3)
        return x, cache, {"attentions": attentions}

    def _branch(self, h: jax.Array, scale: Any, context: Context, site: int) -> jax.Array:
        h = dropout(h if scale is None else scale(h), self.dropout, context, site)
        return drop_path(h, self.drop_path, context, site + 1)


def drop_path(h: jax.Array, rate: float, context: Context, site: int) -> jax.Array:
    """A branch that is left out of whole rows at `rate` (stochastic depth); nothing happens without `context.key`."""
    if context.key is None or not rate:
        return h
    shape = (h.shape[0],) + (1,) * (h.ndim - 1)
    keep = jax.random.bernoulli(jax.random.fold_in(context.key, site), 1.0 - rate, shape)
    return jnp.where(keep, h / (1.0 - rate), jnp.zeros_like(h))


class ImageEncoder(eqx.Module):
    """Pixels to hidden states of patches: embeddings, layers, a last norm.

    `embeddings` answer the patches, and the context with what layers need of their places (`rope["image"]`).

    `pooler` makes `pooler_output` of the first token (`None`: there is none); `hidden_states` end with what the last layer
    says, before the norm, as transformers has it. `interpolate` is whether images of other sizes are taken without
    being told.
    """

    embeddings: Any
    layers: tuple[Any, ...]
    layernorm: Any
    pooler: Any
    config: Any = eqx.field(static=True)
    interpolate: bool = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        embeddings: Any,
        layers: Any,
        *,
        pooler: Any = None,
        norm: Any = None,
        interpolate: bool = False,
    ) -> None:
        self.embeddings = embeddings
        self.layers = tuple(layers)
        self.layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps) if norm is None else norm
        self.pooler = pooler
        self.config = config
        self.interpolate = interpolate

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        pixel_values: jax.Array,
        bool_masked_pos: Any = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> Output:
        context = image_context(context)
        interpolate = self.interpolate if interpolate_pos_encoding is None else interpolate_pos_encoding
        x, context = self.embeddings(context, pixel_values, bool_masked_pos, interpolate)
        x, _, trace = fold(self.layers, x, context)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        x = self.layernorm(x)
        pooled = None if self.pooler is None else self.pooler(x)
        return Output(last_hidden_state=x, pooler_output=pooled, **trace)


class FirstToken(eqx.Module):
    """A pooler: the first token, through a linear layer and an activation if there is one."""

    dense: Linear | None
    act: str = eqx.field(static=True)

    def __init__(self, sizes: tuple[int, int] | None = None, act: str = "linear") -> None:
        activation(act)
        self.dense = None if sizes is None else Linear(*sizes, True, axes=("mlp", "embed"))
        self.act = act

    def __call__(self, x: jax.Array) -> jax.Array:
        first = x[:, 0]
        return first if self.dense is None else activation(self.act)(self.dense(first))
