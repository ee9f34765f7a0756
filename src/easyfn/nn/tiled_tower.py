"""The image tower of Llama 3.2 Vision: tiles of an image with their place among the others, read one by one and then all
together (Grattafiori et al. 2024, arXiv 2407.21783, section 7)."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, slots
from .attention.attention import attend
from .attention.core import merge_heads, split_heads
from .context import Context, Mask
from .conv import Conv
from .fold import fold
from .linear import Embedding, Linear, declare
from .mlp import MLP
from .norm import LayerNorm
from .vision import channels_last, image_context, pair

WHOLE = 8  # the patches of a tile are padded to a multiple of it


class TileAttention(eqx.Module):
    """Attention among the patches of all tiles. `context.groups["padding"]` `(images, patches)` is 1 for padding, which does not
    see padding; all else sees everything, as the reference has it."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, size: int, heads: int) -> None:
        self.q_proj, self.k_proj, self.v_proj = (Linear(size, size, axes=("heads", "embed")) for _ in range(3))
        self.o_proj = Linear(size, size, axes=("embed", "heads"))
        self.heads = heads

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.q_proj, self.k_proj, self.v_proj))
        padding = (context.groups or {})["padding"]
        one = jnp.ones_like(padding)
        sees = jnp.stack([one, 1 - padding], axis=-1)
        mask = Mask(context.slots, one, context.slots, one, False, query_sees=sees, key_groups=padding)
        wants = context.wants("attentions")
        out, weights = attend(q, k, v, mask, scale=q.shape[-1] ** -0.5, runtime=context.runtime, weights=wants)
        return self.o_proj(merge_heads(out)), weights


class TileBlock(eqx.Module):
    """A pre-norm block; what is added is multiplied by the tanh of a number, if `gated`."""

    input_layernorm: LayerNorm
    self_attn: TileAttention
    post_attention_layernorm: LayerNorm
    mlp: MLP
    gate_attn: Weight | None
    gate_ffn: Weight | None

    def __init__(self, c: Any, *, gated: bool) -> None:
        self.input_layernorm, self.post_attention_layernorm = (LayerNorm(c.hidden_size, c.norm_eps) for _ in range(2))
        self.self_attn = TileAttention(c.hidden_size, c.attention_heads)
        self.mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True)
        self.gate_attn, self.gate_ffn = (declare(1) if gated else None for _ in range(2))

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h, attentions = self.self_attn(self.input_layernorm(x), context)
        x = x + gated(h, self.gate_attn)
        return (
            x + gated(self.mlp(self.post_attention_layernorm(x), context), self.gate_ffn),
            cache,
            {"attentions": attentions},
        )


def gated(x: jax.Array, gate: Weight | None) -> jax.Array:
    """`x` times the tanh of a number `(1,)`, if there is one."""
    return x if gate is None else x * jnp.tanh(dense(gate)).astype(x.dtype).reshape((1,) * x.ndim)


@slots.register(TileBlock)
def _(block: TileBlock) -> dict[str, Slot]:
    start = lambda key, shape, dtype: jnp.full(shape, math.pi / 4, dtype)
    return {"gate_attn": Slot("other", (None,), start), "gate_ffn": Slot("other", (None,), start)}


class TilePlaces(eqx.Module):
    """A vector for each tile of each aspect ratio, added to its patches, times the tanh of `gate`."""

    embedding: Embedding
    gate: Weight
    tiles: int = eqx.field(static=True)

    def __init__(self, c: Any) -> None:
        self.embedding = Embedding(ratios(c), c.max_num_tiles * c.hidden_size, axes=(None, None))
        self.gate = declare(1)
        self.tiles = c.max_num_tiles

    def __call__(self, x: jax.Array, ratio: jax.Array) -> jax.Array:
        return x + gated(self.embedding(ratio).reshape(-1, self.tiles, 1, x.shape[-1]), self.gate)


class PatchPlaces(eqx.Module):
    """Positions of patches `(patches, embed)` and of patches in their tile by aspect ratio, mixed by the tanh of `gate`."""

    embedding: Weight
    tile_embedding: Embedding
    gate: Weight

    def __init__(self, c: Any, patches: int) -> None:
        self.embedding = declare(patches, c.hidden_size)
        self.tile_embedding = Embedding(ratios(c), c.max_num_tiles * patches * c.hidden_size, axes=(None, None))
        self.gate = declare(1)

    def __call__(self, x: jax.Array, ratio: jax.Array) -> jax.Array:
        own = dense(self.embedding)[None, None].astype(x.dtype)
        x = x + own - gated(own, self.gate)
        return x + gated(self.tile_embedding(ratio).reshape(x.shape), self.gate)


def ratios(c: Any) -> int:
    """How many aspect ratios there are, 0 being none."""
    return len(c.supported_aspect_ratios) + 1


@slots.register(TilePlaces)
def _(places: TilePlaces) -> dict[str, Slot]:
    return {"gate": Slot("other", (None,), "zeros")}


@slots.register(PatchPlaces)
def _(places: PatchPlaces) -> dict[str, Slot]:
    return {"gate": Slot("other", (None,), "zeros"), "embedding": Slot("other", (None, "embed"))}


class TiledTower(eqx.Module):
    """`(images, tiles, channels, height, width)` to `(images, tiles, patches, wide)`: the last states, and behind them those of
    some layers before, channel by channel."""

    class_embedding: Weight
    patch_embedding: Conv
    gated_positional_embedding: PatchPlaces
    pre_tile_positional_embedding: TilePlaces
    post_tile_positional_embedding: TilePlaces
    layernorm_pre: LayerNorm
    layernorm_post: LayerNorm
    layers: tuple[Any, ...]
    global_layers: tuple[Any, ...]
    config: Any = eqx.field(static=True)

    def __init__(self, c: Any) -> None:
        size, patch = c.hidden_size, pair(c.patch_size)
        count = (pair(c.image_size)[0] // patch[0]) ** 2 + 1
        if c.vision_output_dim != size * (1 + len(c.intermediate_layers_indices)):
            raise ValueError(
                f"vision_output_dim={c.vision_output_dim} is not hidden_size={size} for the last layer and each of "
                f"intermediate_layers_indices={c.intermediate_layers_indices}"
            )
        if max(c.intermediate_layers_indices, default=0) >= c.num_hidden_layers:
            raise ValueError(
                f"intermediate_layers_indices={c.intermediate_layers_indices}: the tower has {c.num_hidden_layers} layers"
            )
        self.class_embedding = declare(size)
        self.patch_embedding = Conv(c.num_channels, size, patch, False, stride=patch)
        self.gated_positional_embedding = PatchPlaces(c, count)
        self.pre_tile_positional_embedding, self.post_tile_positional_embedding = TilePlaces(c), TilePlaces(c)
        self.layernorm_pre, self.layernorm_post = LayerNorm(size), LayerNorm(size)
        self.layers = tuple(TileBlock(c, gated=False) for _ in range(c.num_hidden_layers))
        self.global_layers = tuple(TileBlock(c, gated=True) for _ in range(c.num_global_layers))
        self.config = c

    def __call__(self, context: Context, pixels: jax.Array, ratio: jax.Array, tile_mask: jax.Array) -> jax.Array:
        """`ratio` `(images,)` is the number of each image's aspect ratio, `tile_mask` `(images, tiles)` 1 for real tiles."""
        images, tiles = pixels.shape[:2]
        x = self.patch_embedding(
            channels_last(pixels.reshape(-1, *pixels.shape[2:]), dense(self.patch_embedding.weight))
        )
        x = x.reshape(images, tiles, -1, x.shape[-1])
        x = self.pre_tile_positional_embedding(x, ratio)
        first = dense(self.class_embedding).astype(x.dtype).reshape(1, 1, 1, -1)
        x = jnp.concatenate([jnp.broadcast_to(first, (images, tiles, 1, x.shape[-1])), x], axis=2)
        x = self.layernorm_pre(self.gated_positional_embedding(x, ratio))
        count = x.shape[2]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -count % WHOLE), (0, 0)))
        long = x.shape[2]
        real = (tile_mask[:, :, None] > 0) & (jnp.arange(long)[None, None] < count)
        context = image_context(context).replace(
            groups={"padding": 1 - real.reshape(images, -1).astype(jnp.int32)},
            slots=jnp.arange(tiles * long, dtype=jnp.int32),
            outputs=frozenset({"hidden_states"}),
        )
        x, _, trace = fold(self.layers, x.reshape(images, tiles * long, -1), context)
        states = (*trace["hidden_states"][1:], x)
        x = self.layernorm_post(x).reshape(images, tiles, long, -1)
        x = self.post_tile_positional_embedding(x, ratio).reshape(images, tiles * long, -1)
        x, _, _ = fold(self.global_layers, x, context.replace(outputs=frozenset()))
        between = jnp.stack([states[i] for i in self.config.intermediate_layers_indices], axis=-1)
        x = jnp.concatenate([x, between.reshape(*x.shape[:2], -1)], axis=-1)
        return x.reshape(images, tiles, long, -1)[:, :, :count]


@slots.register(TiledTower)
def _(tower: TiledTower) -> dict[str, Slot]:
    return {"class_embedding": Slot("other", ("embed",))}
