"""Two towers, one of text and one of images, whose outputs are compared: CLIP, SigLIP and their kin."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, affine, dense, dot, shape_of, slots
from .activation import activation
from .attention.attention import attend
from .attention.core import merge_heads, split_heads
from .context import Context, Mask
from .conv import Conv
from .encoder import learned_positions
from .fold import fold
from .linear import Embedding, Linear, declare
from .mlp import MLP
from .norm import LayerNorm
from .output import Output
from .vision import EncoderBlock, SelfAttention, channels_last, grid_positions, image_context, pair


def tower_blocks(c: Any) -> tuple[EncoderBlock, ...]:
    """The blocks of a tower, from CLIP's keys."""

    def one() -> EncoderBlock:
        attention = SelfAttention(c.hidden_size, c.num_attention_heads, dropout=c.attention_dropout)
        mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True)
        return EncoderBlock(c.hidden_size, attention, mlp, c.layer_norm_eps)

    return tuple(one() for _ in range(c.num_hidden_layers))


def run_tower(layers: Any, x: jax.Array, context: Context) -> tuple[jax.Array, dict[str, Any]]:
    """What the blocks say, and with the hidden states, if wanted, that of the last."""
    x, _, trace = fold(layers, x, context)
    if context.wants("hidden_states"):
        trace["hidden_states"] = (*trace["hidden_states"], x)
    return x, trace


class GridEmbeddings(eqx.Module):
    """Patches of an image with learned positions, after a class token if there is one. `bias` is the projection's."""

    class_embedding: Weight | None
    patch_embedding: Conv
    position_embedding: Embedding
    grid: tuple[int, int] = eqx.field(static=True)

    def __init__(self, config: Any, *, class_token: bool, bias: bool) -> None:
        size, patch = config.hidden_size, pair(config.patch_size)
        height, width = pair(config.image_size)
        self.grid = (height // patch[0], width // patch[1])
        self.class_embedding = declare(size) if class_token else None
        self.patch_embedding = Conv(config.num_channels, size, patch, bias, stride=patch)
        self.position_embedding = Embedding(self.grid[0] * self.grid[1] + class_token, size, axes=(None, "embed"))

    def __call__(self, pixel_values: jax.Array, interpolate: bool = False) -> jax.Array:
        x = self.patch_embedding(channels_last(pixel_values, dense(self.patch_embedding.weight)))
        grid = (x.shape[1], x.shape[2])
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        if self.class_embedding is not None:
            first = dense(self.class_embedding).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, x.shape[-1])), x], axis=1)
        extra = 0 if self.class_embedding is None else 1
        table = dense(self.position_embedding.weight)
        return x + grid_positions(table, self.grid, grid, extra, interpolate=interpolate)[None].astype(x.dtype)


@slots.register(GridEmbeddings)
def _(embeddings: GridEmbeddings) -> dict[str, Slot]:
    return {"class_embedding": Slot("other", ("embed",))}


class ImageTower(eqx.Module):
    """Pixels to hidden states. CLIP's (`class_token=True`) has a class token and pools it through `post_layernorm`; SigLIP's
    norms all tokens, and its `head`, if there is one, asks them with a learned probe."""

    embeddings: GridEmbeddings
    pre_layrnorm: LayerNorm | None
    layers: tuple[Any, ...]
    post_layernorm: LayerNorm
    head: Any
    config: Any = eqx.field(static=True)

    def __init__(self, config: Any, *, class_token: bool, head: Any = None) -> None:
        self.embeddings = GridEmbeddings(config, class_token=class_token, bias=not class_token)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.layer_norm_eps) if class_token else None
        self.layers = tower_blocks(config)
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head = head
        self.config = config

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        pixel_values: jax.Array,
        interpolate_pos_encoding: bool | None = None,
    ) -> Output:
        x = self.embeddings(pixel_values, bool(interpolate_pos_encoding))
        x = x if self.pre_layrnorm is None else self.pre_layrnorm(x)
        x, trace = run_tower(self.layers, x, image_context(context))
        if self.embeddings.class_embedding is not None:
            return Output(last_hidden_state=x, pooler_output=self.post_layernorm(x[:, 0]), **trace)
        x = self.post_layernorm(x)
        return Output(last_hidden_state=x, pooler_output=None if self.head is None else self.head(x), **trace)


class ProbeAttention(eqx.Module):
    """torch's `MultiheadAttention` under its names: one matrix for queries, keys and values."""

    in_proj_weight: Weight
    in_proj_bias: Weight
    out_proj: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, size: int, heads: int) -> None:
        self.in_proj_weight, self.in_proj_bias = declare(3 * size, size), declare(3 * size)
        self.out_proj = Linear(size, size, True, axes=("embed", "heads"))
        self.heads = heads

    def __call__(self, query: jax.Array, x: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        """`seen`, `(batch, seq)`: 0 for what of `x` is padding."""
        every = affine(self.in_proj_weight, jnp.concatenate([query, x], axis=1), self.in_proj_bias)
        q, k, v = (split_heads(part, self.heads) for part in jnp.split(every, 3, axis=-1))
        asked, mask = query.shape[1], None
        if seen is not None:
            asks, places = jnp.arange(asked, dtype=jnp.int32), jnp.arange(x.shape[1], dtype=jnp.int32)
            ones = jnp.ones(query.shape[:2], jnp.int32)
            mask = Mask(asks, ones, places, (seen != 0).astype(jnp.int32), False)
        out, _ = attend(q[:, :, :asked], k[:, :, asked:], v[:, :, asked:], mask, scale=q.shape[-1] ** -0.5)
        return self.out_proj(merge_heads(out))


@slots.register(ProbeAttention)
def _(attention: ProbeAttention) -> dict[str, Slot]:
    return {
        "in_proj_weight": Slot("linear", ("heads", "embed")),
        "in_proj_bias": Slot("bias", ("heads",), "zeros"),
    }


class ProbeHead(eqx.Module):
    """SigLIP's pooler: a learned query attends to all tokens that are `seen`, then an MLP."""

    probe: Weight
    attention: ProbeAttention
    layernorm: LayerNorm
    mlp: MLP

    def __init__(self, c: Any) -> None:
        self.probe = declare(1, 1, c.hidden_size)
        self.attention = ProbeAttention(c.hidden_size, c.num_attention_heads)
        self.layernorm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True)

    def __call__(self, x: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        probe = jnp.broadcast_to(dense(self.probe).astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x = self.attention(probe, x, seen)
        h = self.layernorm(x)
        h = self.mlp.down_proj(activation(self.mlp.act)(self.mlp.up_proj(h)))
        return (x + h)[:, 0]


@slots.register(ProbeHead)
def _(head: ProbeHead) -> dict[str, Slot]:
    return {"probe": Slot("other", (None, None, "embed"))}


class TextTower(eqx.Module):
    """Token ids to hidden states, and one vector for each row.

    CLIP's (`causal`) reads left to right and pools the first `eos_token_id` (the highest id, where the config has the old
    2); SigLIP's reads both ways and pools the last column, padding or not, through `head`.
    """

    token_embedding: Embedding
    position_embedding: Embedding
    layers: tuple[Any, ...]
    final_layer_norm: LayerNorm
    head: Linear | None
    config: Any = eqx.field(static=True)
    causal: bool = eqx.field(static=True)

    def __init__(self, config: Any, *, causal: bool, head: Linear | None = None) -> None:
        self.token_embedding = Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = Embedding(config.max_position_embeddings, config.hidden_size, axes=(None, "embed"))
        self.layers = tower_blocks(config)
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head = head
        self.config = config
        self.causal = causal

    def __call__(self, context: Context, cache: Any = None, *, input_ids: jax.Array) -> Output:
        if cache is not None:
            raise ValueError(f"{type(self.config).__name__} is an encoder: it keeps no cache")
        places = context.position_ids
        if not self.causal:  # the last column is pooled, padding or not, and stands where it stands
            places = jnp.where(context.segment_ids == 0, context.slots[None], places)
            context = context.replace(causal=False)
        x = self.token_embedding(input_ids)
        x = x + learned_positions(self.position_embedding, places)
        x, trace = run_tower(self.layers, x, context)
        x = self.final_layer_norm(x)
        if not self.causal:
            pooled = x[:, -1]
        else:
            eos = self.config.eos_token_id
            end = jnp.argmax(input_ids if eos == 2 else input_ids == eos, axis=1)
            pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return Output(last_hidden_state=x, pooler_output=pooled if self.head is None else self.head(pooled), **trace)


class Projected(eqx.Module):
    """A tower with its projection into the space that both share: `text_embeds` or `image_embeds`, not normalised."""

    model: Any
    projection: Linear
    config: Any = eqx.field(static=True)
    output: str = eqx.field(static=True)

    def __init__(self, model: Any, output: str) -> None:
        c = model.config
        self.model = model
        self.projection = Linear(c.hidden_size, c.projection_dim, axes=(None, "embed"), role="head")
        self.config = c
        self.output = output

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        return out.replace(**{self.output: self.projection(out.pooler_output), "pooler_output": None})


class TwoTowers(eqx.Module):
    """Text and images in one space: `logits_per_image` `(images, texts)`, its transpose, and the unit vectors
    `image_embeds`, `text_embeds` that they are the scaled products of.

    With one of `input_ids` and `pixel_values` the output has that side only. `text_model_output` and `vision_model_output`
    are the towers' own, `pooler_output` being the features before they are normalised.
    """

    text_model: Any
    vision_model: Any
    text_projection: Linear | None
    visual_projection: Linear | None
    logit_scale: Weight
    logit_bias: Weight | None
    config: Any = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        text: Any,
        vision: Any,
        *,
        size: int | None = None,
        scale: tuple[int, ...] = (),
        bias: bool = False,
    ) -> None:
        self.text_model, self.vision_model = text, vision
        self.text_projection = self.visual_projection = None
        if size is not None:
            self.text_projection, self.visual_projection = (
                Linear(tower.config.hidden_size, size, axes=(None, "embed"), role="head") for tower in (text, vision)
            )
        self.logit_scale = declare(*scale)
        self.logit_bias = declare(*scale) if bias else None
        self.config = config

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        pixel_values: jax.Array | None = None,
        token_type_ids: Any = None,
        interpolate_pos_encoding: bool | None = None,
        spatial_shapes: Any = None,
        pixel_attention_mask: Any = None,
    ) -> Output:
        found: dict[str, Any] = {}
        if input_ids is not None:
            more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            out = self.text_model(context, cache, input_ids=input_ids, **more)
            found["text_model_output"], found["text_embeds"] = _features(out, self.text_projection)
        if pixel_values is not None:
            companions = {
                "interpolate_pos_encoding": interpolate_pos_encoding,
                "spatial_shapes": spatial_shapes,
                "pixel_attention_mask": pixel_attention_mask,
            }
            given = {name: value for name, value in companions.items() if value is not None}
            out = self.vision_model(context, pixel_values=pixel_values, **given)
            found["vision_model_output"], found["image_embeds"] = _features(out, self.visual_projection)
        if input_ids is None or pixel_values is None:
            return Output(**found)
        logits = dot(found["image_embeds"], found["text_embeds"])  # [texts, images]
        logits = logits * jnp.exp(dense(self.logit_scale)).astype(logits.dtype).reshape(1, 1)
        if self.logit_bias is not None:
            logits = logits + dense(self.logit_bias).astype(logits.dtype).reshape(1, 1)
        return Output(logits_per_text=logits, logits_per_image=logits.T, **found)


def _features(out: Output, projection: Linear | None) -> tuple[Output, jax.Array]:
    """A tower's output with its features, and these as unit vectors."""
    assert out.last_hidden_state is not None
    x: Any = out.last_hidden_state[:, 0] if out.pooler_output is None else out.pooler_output  # BERT's first token
    x = x if projection is None else projection(x)
    length = jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True))
    return out.replace(pooler_output=x), (x / length.astype(x.dtype))


@slots.register(TwoTowers)
def _(model: TwoTowers) -> dict[str, Slot]:
    start = lambda name: lambda key, shape, dtype: jnp.full(shape, getattr(model.config, name, 0.0), dtype)
    return {
        "logit_scale": Slot("other", (None,) * len(shape_of(model.logit_scale)), start("logit_scale_init_value")),
        "logit_bias": Slot("other", (None,), "zeros"),
    }
