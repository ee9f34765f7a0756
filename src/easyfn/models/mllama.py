"""Llama 3.2 Vision (Grattafiori et al. 2024, arXiv 2407.21783, section 7): some layers of the decoder read the image, not the
text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.config import only, without_nulls
from ..config.fields import CommonFields, LlamaFields, Size, alias, head_dim, rope
from ..core.frozen import Frozen
from ..core.weight import Slot, Weight, slots
from ..inputs.checks import fits
from ..inputs.statement import Input, Inputs, inputs
from ..names.rules import rename
from ..nn import Attention, Block, CausalLM, Decoder, Embedding, GatedMLP, Linear, Output, RMSNorm, declare
from ..nn.attention.attention import attend_within
from ..nn.attention.core import split_heads
from ..nn.cache.cache import CrossKV, layer_cache, stored
from ..nn.context import Context, Mask
from ..nn.linear import pad_token
from ..nn.seq2seq import empty_cross
from ..nn.tiled_tower import TiledTower, gated
from ..registry.family import family
from .decoders import mlp, norm
from .grids import in_modules
from .image_text import TWO_HALVES, ImageTextFields, with_and_without_head

RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))


@dataclass(frozen=True, kw_only=True)
class MllamaVisionConfig(CommonFields):
    """The keys of Llama 3.2 Vision's `vision_config`."""

    model_type: ClassVar[str] = "mllama_vision_model"
    hidden_size: Size = 1280
    hidden_act: str = "gelu"
    num_hidden_layers: int = 32
    num_global_layers: int = 8
    attention_heads: Size = 16
    num_channels: Size = 3
    intermediate_size: Size = 5120
    vision_output_dim: Size = 7680
    image_size: int | tuple[int, ...] = 448
    patch_size: int | tuple[int, ...] = 14
    norm_eps: float = 1e-5
    max_num_tiles: Size = 4
    intermediate_layers_indices: tuple[int, ...] = (3, 7, 15, 23, 30)
    supported_aspect_ratios: tuple[tuple[Size, Size], ...] = RATIOS

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return without_nulls(data, "intermediate_layers_indices", "supported_aspect_ratios")


@dataclass(frozen=True, kw_only=True)
class MllamaTextConfig(LlamaFields):
    """The keys of Llama 3.2 Vision's `text_config`."""

    model_type: ClassVar[str] = "mllama_text_model"
    unsaid: ClassVar[tuple[str, ...]] = ("attention_dropout",)
    vocab_size: Size = 128256
    hidden_size: Size = 4096
    intermediate_size: Size = 14336
    num_hidden_layers: int = 40
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(500000.0)
    cross_attention_layers: tuple[int, ...] = (3, 8, 13, 18, 23, 28, 33, 38)
    dropout: float | int = 0.0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "tie_word_embeddings", False)  # there are more embeddings than scores
        return without_nulls(data, "cross_attention_layers")


@dataclass(frozen=True, kw_only=True)
class MllamaConfig(ImageTextFields):
    """The keys of a Llama 3.2 Vision `config.json`."""

    model_type: ClassVar[str] = "mllama"
    text_config: MllamaTextConfig = field(default_factory=MllamaTextConfig)
    vision_config: MllamaVisionConfig = field(default_factory=MllamaVisionConfig)
    image_token_index: int = 128256

    image_token_id = alias("image_token_index")


class TileReader(eqx.Module):
    """Attention of text to the tiles of images. `context.encoder` is `(states, sees)`: `(batch, tiles * patches, embed)`, and
    which tiles a token sees `(batch, seq, tiles)`. A cache keeps keys and values, and what the last token saw, which those
    after it see as well."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    q_norm: RMSNorm
    k_norm: RMSNorm
    heads: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, c: MllamaTextConfig) -> None:
        dim, self.heads, self.groups = (
            head_dim(c),
            c.num_attention_heads,
            c.num_key_value_heads or c.num_attention_heads,
        )
        self.q_proj = Linear(c.hidden_size, self.heads * dim, axes=("heads", "embed"))
        self.k_proj, self.v_proj = (
            Linear(c.hidden_size, self.groups * dim, axes=("kv_heads", "embed")) for _ in range(2)
        )
        self.o_proj = Linear(self.heads * dim, c.hidden_size, axes=("embed", "heads"))
        self.q_norm, self.k_norm = RMSNorm(dim, c.rms_norm_eps), RMSNorm(dim, c.rms_norm_eps)
        self.dropout = c.dropout

    def __call__(
        self, x: jax.Array, context: Context, cache: CrossKV | None
    ) -> tuple[jax.Array, CrossKV | None, jax.Array | None, jax.Array]:
        """The last of the results is which tokens see any tile, `(batch, seq)`."""
        if context.encoder is not None:
            states, sees = context.encoder
            k = self.k_norm(split_heads(self.k_proj(states), self.groups))
            v = split_heads(self.v_proj(states), self.groups)
            if cache is not None:
                cache = CrossKV(stored(cache.k, k), stored(cache.v, v), last_seen(context, sees))
        else:
            assert cache is not None
            k, v = cache.k, cache.v
            sees = jnp.broadcast_to(cache.segment_ids[:, None], (*x.shape[:2], cache.segment_ids.shape[1]))
        tiles, keys = sees.shape[2], k.shape[2]
        any_tile = jnp.any(sees > 0, axis=2)
        one = lambda length: jnp.ones((x.shape[0], length), jnp.int32)
        places = jnp.arange(keys, dtype=jnp.int32)
        mask = Mask(
            jnp.arange(x.shape[1], dtype=jnp.int32),
            one(x.shape[1]),
            places,
            one(keys),
            False,
            query_sees=jnp.where(any_tile[..., None], sees, 1),  # who sees none reads all, as in the reference
            key_groups=places // (keys // tiles),
        )
        q = self.q_norm(split_heads(self.q_proj(x), self.heads))
        out, weights = attend_within(context, q, k, v, mask, scale=q.shape[-1] ** -0.5, dropout=self.dropout, site=0)
        return self.o_proj(out), cache, weights, any_tile


def last_seen(context: Context, sees: jax.Array) -> jax.Array:
    """What the last token of each row sees, `(batch, tiles)`; padding is none."""
    seen = context.segment_ids > 0
    last = seen.shape[1] - 1 - jnp.argmax(seen[:, ::-1], axis=1)
    return jnp.take_along_axis(sees, last[:, None, None], axis=1)[:, 0].astype(jnp.int32)


class CrossBlock(eqx.Module):
    """A layer that reads images: both parts are added times the tanh of a number, the second only to tokens that see any tile.
    Without images it says nothing."""

    cross_attn: TileReader
    input_layernorm: RMSNorm
    cross_attn_attn_gate: Weight
    mlp: GatedMLP
    post_attention_layernorm: RMSNorm
    cross_attn_mlp_gate: Weight

    def __init__(self, c: MllamaTextConfig) -> None:
        self.cross_attn, self.mlp = TileReader(c), mlp(c)
        self.input_layernorm, self.post_attention_layernorm = norm(c), norm(c)
        self.cross_attn_attn_gate, self.cross_attn_mlp_gate = declare(1), declare(1)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        if context.encoder is None and (cache is None or cache.k.shape[-2] == 0):
            return x, cache, {}
        h, cache, attentions, any_tile = self.cross_attn(self.input_layernorm(x), context, cache)
        x = x + gated(h, self.cross_attn_attn_gate)
        h = self.mlp(self.post_attention_layernorm(x)) * any_tile[..., None].astype(x.dtype)
        return x + gated(h, self.cross_attn_mlp_gate), cache, {"attentions": attentions}


@slots.register(CrossBlock)
def _(block: CrossBlock) -> dict[str, Slot]:
    zero = Slot("other", (None,), "zeros")
    return {"cross_attn_attn_gate": zero, "cross_attn_mlp_gate": zero}


@layer_cache.register(CrossBlock)
def _(block: CrossBlock, batch_size: int, max_length: int, dtype: Any) -> CrossKV:
    one = block.cross_attn
    return empty_cross(batch_size, one.groups, one.q_proj.weight.shape[0] // one.heads, dtype)


def mllama_text(c: MllamaTextConfig) -> Decoder:
    def block(i: int) -> Any:
        if i in c.cross_attention_layers:
            return CrossBlock(c)
        heads = (c.num_attention_heads, c.num_key_value_heads or c.num_attention_heads, head_dim(c))
        return Block(Attention(c.hidden_size, *heads, dropout=c.dropout), mlp(c), norm(c), norm(c))

    layers = [block(i) for i in range(c.num_hidden_layers)]
    found = Decoder(c, layers, norm(c), head_dim=head_dim(c), rope={"default": c.rope_parameters})
    more = Embedding(c.vocab_size + 8, c.hidden_size, padding=pad_token(c))  # the image token is one of the eight
    return eqx.tree_at(lambda model: model.embed_tokens, found, more)


class Mllama(eqx.Module):
    """A tower of tiles, a projection, and a decoder whose cross attention reads what they say."""

    vision_model: TiledTower
    multi_modal_projector: Linear
    language_model: Decoder
    config: Any = eqx.field(static=True)

    def __init__(self, c: MllamaConfig) -> None:
        self.vision_model = TiledTower(c.vision_config)
        self.multi_modal_projector = Linear(
            c.vision_config.vision_output_dim, c.hidden_size, True, axes=("embed", None)
        )
        self.language_model = mllama_text(c.text_config)
        self.config = c

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        pixel_values: jax.Array | None = None,
        aspect_ratio_ids: jax.Array | None = None,
        aspect_ratio_mask: jax.Array | None = None,
        cross_attention_mask: jax.Array | None = None,
    ) -> Output:
        if pixel_values is not None:
            if aspect_ratio_ids is None or aspect_ratio_mask is None:
                raise ValueError(
                    "pixel_values in tiles need aspect_ratio_ids and aspect_ratio_mask, as the processor makes them"
                )
            batch, images, tiles = pixel_values.shape[:3]
            flat = lambda x, *shape: jnp.asarray(x).reshape(batch * images, *shape)
            pixels = flat(pixel_values, *pixel_values.shape[2:])
            states = self.vision_model(context, pixels, flat(aspect_ratio_ids), flat(aspect_ratio_mask, tiles))
            states = self.multi_modal_projector(states).reshape(batch, -1, self.config.hidden_size)
            length = context.segment_ids.shape[1]
            if cross_attention_mask is None:
                sees = jnp.ones((batch, length, images * tiles), jnp.int32)
            else:
                sees = jnp.asarray(cross_attention_mask).reshape(batch, length, images * tiles)
            context = context.replace(encoder=(states, sees))
        return self.language_model(context, cache, input_ids=input_ids, inputs_embeds=inputs_embeds)


@inputs.register(Mllama)
def _(model: Mllama) -> Inputs:
    text, v = inputs(model.language_model), model.config.vision_config
    tiles = v.max_num_tiles
    fields = {
        **text.fields,
        "input_ids": dataclasses.replace(text.fields["input_ids"], below=model.config.vocab_size + 8),
        "pixel_values": Input("image", ("batch", "images", tiles, v.num_channels, "height", "width")),
        "aspect_ratio_ids": Input("index", ("batch", "images")),
        "aspect_ratio_mask": Input("index", ("batch", "images", tiles)),
        "cross_attention_mask": Input("mask", ("batch", "seq", "images", tiles)),
    }
    return text.replace(fields=fields)


@fits.register(Mllama)
def _(model: Mllama, given: Mapping[str, Any]) -> None:
    pixels, mask = given.get("pixel_values"), given.get("cross_attention_mask")
    if pixels is None or mask is None:
        return
    batch, length = given["input_ids"].shape
    if jnp.shape(mask) != (batch, length, *pixels.shape[1:3]):
        raise ValueError(
            f"cross_attention_mask has shape {jnp.shape(mask)}; {length} tokens and pixel_values of shape {pixels.shape} need "
            f"{(batch, length, *pixels.shape[1:3])}: tokens, images and tiles"
        )


TOWER = "model.vision_model"
TOWER_NAMES = [
    *(
        rename(f"{TOWER}.{ours}.{{i}}.mlp.{a}.{{rest}}", f"vision_model.{theirs}.layers.{{i}}.mlp.{b}.{{rest}}")
        for ours, theirs in (("layers", "transformer"), ("global_layers", "global_transformer"))
        for a, b in (("up_proj", "fc1"), ("down_proj", "fc2"))
    ),
    rename(f"{TOWER}.layers.{{rest}}", "vision_model.transformer.layers.{rest}"),
    rename(f"{TOWER}.global_layers.{{rest}}", "vision_model.global_transformer.layers.{rest}"),
]
NAMES = [
    rename("lm_head.{rest}", "language_model.lm_head.{rest}"),
    rename("model.language_model.{rest}", "language_model.model.{rest}"),
    *TOWER_NAMES,
    rename("model.{rest}", "{rest}"),
]

family(
    "mllama",
    config=MllamaConfig,
    tasks={"causal-lm": lambda c: CausalLM(Mllama(c), tied=False), "base": Mllama},
    architectures={"MllamaForConditionalGeneration": "causal-lm", "MllamaModel": "base"},
    names=with_and_without_head(NAMES),
    modules=with_and_without_head(in_modules(TOWER_NAMES)),
    ignore_tensors=(r"rotary_emb\.inv_freq$",),
    aliases={**TWO_HALVES, "vision_model.{rest}": ("model.vision_model.{rest}",)},
)
