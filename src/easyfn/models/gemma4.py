"""Gemma 4 with images and videos (Google DeepMind 2026), of any size: patches of any number, pooled by where they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.config import only
from ..config.fields import CommonFields, Size
from ..core.frozen import Frozen
from ..core.weight import Slot, Weight, dense, slots
from ..inputs.checks import fits
from ..inputs.statement import Input, Inputs, inputs
from ..names.rules import rename
from ..nn import CausalLM, GatedMLP, Linear, Output, RMSNorm, SandwichBlock, declare
from ..nn.attention.core import merge_heads, split_heads
from ..nn.attention.rope import rope_table, rotate
from ..nn.context import Context
from ..nn.fold import fold
from ..nn.image_text import by_column, runs
from ..nn.places import check_places, embed, place
from ..nn.vision import attend_all, image_context
from ..registry.family import family
from .gemma4_text import PARTS, without_shared_keys
from .image_text import ImageTextFields, part, sub_config, with_and_without_head


@dataclass(frozen=True, kw_only=True)
class Gemma4VisionConfig(CommonFields):
    """The keys of Gemma 4's `vision_config`. Refused by name: linear layers that clip (`use_clipped_linears`)."""

    model_type: ClassVar[str] = "gemma4_vision"
    ignored: ClassVar = ("use_clipped_linears", "max_position_embeddings", "attention_bias")  # one value, or unread
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: int = 16
    num_attention_heads: Size = 12
    num_key_value_heads: Size = 12
    head_dim: Size = 64
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    attention_dropout: float | int | None = 0.0
    rope_parameters: Frozen = Frozen(rope_type="axial", rope_theta=100.0)
    pooling_kernel_size: Size = 3
    patch_size: Size = 16
    position_embedding_size: Size = 10240
    standardize: bool = False

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "use_clipped_linears", False)
        only(data.get("rope_parameters") or {}, "rope_type", "axial")
        only(data, "attention_bias", False)
        return data


@dataclass(frozen=True, kw_only=True)
class Gemma4Config(ImageTextFields):
    """The keys of a Gemma 4 `config.json` with images. Refused by name: `audio_config`."""

    model_type: ClassVar[str] = "gemma4"
    text_config: sub_config("gemma4_text")  # type: ignore[valid-type]
    vision_config: Gemma4VisionConfig = field(default_factory=Gemma4VisionConfig)
    image_token_id: int = 258880
    video_token_id: int = 258884
    audio_token_id: int = 258881
    tie_word_embeddings: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "audio_config")
        if data.get("vision_config") is None:
            raise ValueError("gemma4 without vision_config is a language model alone: gemma4_text")
        return data


class AxialAttention(eqx.Module):
    """Attention of patches: one half of a head turns with where a patch lies across, the other with where down. Queries, keys
    and values are normed, scores not scaled."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    q_norm: RMSNorm
    k_norm: RMSNorm
    v_norm: RMSNorm
    heads: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, c: Gemma4VisionConfig) -> None:
        self.heads, self.groups, self.dropout = c.num_attention_heads, c.num_key_value_heads, c.attention_dropout or 0.0
        self.q_proj = Linear(c.hidden_size, self.heads * c.head_dim, axes=("heads", "embed"))
        self.k_proj, self.v_proj = (
            Linear(c.hidden_size, self.groups * c.head_dim, axes=("kv_heads", "embed")) for _ in range(2)
        )
        self.o_proj = Linear(self.heads * c.head_dim, c.hidden_size, axes=("embed", "heads"))
        self.q_norm, self.k_norm = (RMSNorm(c.head_dim, c.rms_norm_eps) for _ in range(2))
        self.v_norm = RMSNorm(c.head_dim, c.rms_norm_eps, affine=False)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, jax.Array | None]:
        assert context.rope is not None
        across, down = context.rope["across"], context.rope["down"]
        q, k = (
            self.q_norm(split_heads(self.q_proj(x), self.heads)),
            self.k_norm(split_heads(self.k_proj(x), self.groups)),
        )
        v = self.v_norm(split_heads(self.v_proj(x), self.groups))

        def turned(h: jax.Array) -> jax.Array:
            first, second = jnp.split(h, 2, axis=-1)
            return jnp.concatenate([rotate(first, across), rotate(second, down)], axis=-1)

        out, weights = attend_all(turned(q), turned(k), v, context, dropout_rate=self.dropout, scale=1.0)
        return self.o_proj(merge_heads(out)), cache, weights


class PatchTower(eqx.Module):
    """Patches `(images, patches, channels * height * width)` with their places `(images, patches, 2)`, across and down (-1:
    padding), to vectors `(images, patches / kernel^2, embed)`, of which those of an image come first."""

    input_proj: Linear
    position_embedding_table: Weight
    layers: tuple[Any, ...]
    std_bias: Weight | None
    std_scale: Weight | None
    config: Any = eqx.field(static=True)

    def __init__(self, c: Gemma4VisionConfig) -> None:
        norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.input_proj = Linear(3 * c.patch_size**2, c.hidden_size, axes=("embed", None))
        self.position_embedding_table = declare(2, c.position_embedding_size, c.hidden_size)
        self.layers = tuple(
            SandwichBlock(
                AxialAttention(c),
                GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_activation),
                *(norm() for _ in range(4)),
            )
            for _ in range(c.num_hidden_layers)
        )
        self.std_bias, self.std_scale = (declare(c.hidden_size) if c.standardize else None for _ in range(2))
        self.config = c

    def __call__(self, context: Context, *, pixel_values: jax.Array, positions: jax.Array) -> jax.Array:
        c = self.config
        real, at = jnp.all(positions >= 0, axis=-1), jnp.maximum(positions, 0)
        table = dense(self.position_embedding_table)
        x = self.input_proj((2 * (pixel_values - 0.5)).astype(table.dtype))
        learned = jnp.take(table[0], at[..., 0], axis=0) + jnp.take(table[1], at[..., 1], axis=0)
        x = x + jnp.where(real[..., None], learned, 0).astype(x.dtype)
        turn = {"rope_theta": c.rope_parameters["rope_theta"]}
        rope = {
            name: rope_table(turn, c.head_dim // 2, 0, at[..., axis]) for axis, name in enumerate(("across", "down"))
        }
        context = image_context(context).replace(
            rope=rope,
            segment_ids=real.astype(jnp.int32),
            slots=jnp.arange(x.shape[1], dtype=jnp.int32),
            outputs=frozenset(),
        )
        x, _, _ = fold(self.layers, x, context)
        size, count = c.pooling_kernel_size, x.shape[1] // c.pooling_kernel_size**2
        columns = jnp.max(at[..., 0], axis=1, keepdims=True) // size + 1
        square = jnp.where(real, at[..., 0] // size + columns * (at[..., 1] // size), count)
        total = jax.vmap(lambda x, square: jax.ops.segment_sum(x, square, count))(x.astype(jnp.float32), square)
        mean = total / size**2 * c.hidden_size**0.5
        if self.std_bias is not None and self.std_scale is not None:
            bias, scale = (dense(w).astype(jnp.float32)[None, None] for w in (self.std_bias, self.std_scale))
            mean = (mean - bias) * scale
        return mean.astype(x.dtype)


@slots.register(PatchTower)
def _(tower: PatchTower) -> dict[str, Slot]:
    buffer = lambda start: Slot("buffer", ("norm",), start)
    return {
        "position_embedding_table": Slot("other", (None, None, "embed"), "ones"),
        "std_bias": buffer("zeros"),
        "std_scale": buffer("ones"),
    }


def tokens_of(positions: jax.Array, kernel: int) -> jax.Array:
    """How many vectors each image has `(images,)`, by the places of its patches."""
    return jnp.sum(jnp.all(positions >= 0, axis=-1), axis=1, dtype=jnp.int32) // kernel**2


class Gemma4(eqx.Module):
    """A tower of patches, a norm and a projection, and a decoder. In layers with a window an image, or a frame, reads itself
    both ways, if the text config says `use_bidirectional_attention="vision"`."""

    vision_tower: PatchTower
    norm: RMSNorm
    embedding_projection: Linear
    language_model: Any
    config: Any = eqx.field(static=True)

    def __init__(self, c: Gemma4Config) -> None:
        v = c.vision_config
        self.vision_tower = PatchTower(v)
        self.norm = RMSNorm(v.hidden_size, v.rms_norm_eps, affine=False)
        self.embedding_projection = Linear(v.hidden_size, c.hidden_size, axes=("embed", None))
        self.language_model = part(c.text_config)
        self.config = c

    def features(self, context: Context, pixels: jax.Array, positions: Any, count: int) -> tuple[jax.Array, jax.Array]:
        """`(count, embed)` in the order of their tokens, and how many of them count."""
        if positions is None:
            raise ValueError("patches need image_position_ids (video_position_ids), which say where each lies")
        positions = jnp.asarray(positions)
        x = self.embedding_projection(self.norm(self.vision_tower(context, pixel_values=pixels, positions=positions)))
        lengths = tokens_of(positions, self.config.vision_config.pooling_kernel_size)
        ends = jnp.cumsum(lengths)
        number = jnp.arange(count, dtype=jnp.int32)
        image = jnp.clip(jnp.searchsorted(ends, number, side="right"), 0, x.shape[0] - 1)
        rows = image * x.shape[1] + number - (ends - lengths)[image]
        return jnp.take(x.reshape(-1, x.shape[-1]), rows, axis=0, mode="clip"), ends[-1]

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        pixel_values: jax.Array | None = None,
        image_position_ids: jax.Array | None = None,
        pixel_values_videos: jax.Array | None = None,
        video_position_ids: jax.Array | None = None,
        num_frames_per_video: Any = None,
        mm_token_type_ids: jax.Array | None = None,
    ) -> Output:
        c = self.config
        if mm_token_type_ids is not None and c.text_config.extra.get("use_bidirectional_attention") == "vision":
            types = by_column("mm_token_type_ids", mm_token_type_ids, context)
            seen = (types == 1) | (types == 2)
            context = context.replace(blocks=runs(seen), block_rule="windowed")
        kinds = (
            ("image", c.image_token_id, pixel_values, image_position_ids),
            ("video", c.video_token_id, pixel_values_videos, video_position_ids),
        )
        if input_ids is None:
            if any(pixels is not None for _, _, pixels, _ in kinds):
                raise ValueError("pixels take the places of image tokens: give input_ids with them, not inputs_embeds")
            return self.language_model(context, cache, inputs_embeds=inputs_embeds)
        apart = jnp.isin(input_ids, jnp.array([c.image_token_id, c.video_token_id, c.audio_token_id]))
        text = jnp.where(apart, c.text_config.pad_token_id or 0, input_ids)
        x = embed(self.language_model, text)
        for what, token, pixels, positions in kinds:
            if pixels is None:
                continue
            found, total = self.features(context, pixels, positions, input_ids.size)
            check_places(input_ids, token, total, what)
            x = place(x, found, input_ids == token, total)
        return self.language_model(context, cache, input_ids=text, inputs_embeds=x)


@inputs.register(Gemma4)
def _(model: Gemma4) -> Inputs:
    text, c = inputs(model.language_model), model.config
    wide = 3 * c.vision_config.patch_size**2
    below = max(c.vocab_size, c.image_token_id + 1, c.video_token_id + 1, c.audio_token_id + 1)
    fields = {
        **text.fields,
        "input_ids": dataclasses.replace(text.fields["input_ids"], below=below),
        "pixel_values": Input("image", ("images", "patches", wide)),
        "image_position_ids": Input("index", ("images", "patches", 2)),
        "pixel_values_videos": Input("image", ("frames", "patches", wide)),
        "video_position_ids": Input("index", ("frames", "patches", 2)),
        "num_frames_per_video": Input("setting", None),  # the frames follow each other in any case
        "mm_token_type_ids": Input("mask"),
    }
    return text.replace(fields=fields)


@fits.register(Gemma4)
def _(model: Gemma4, given: Mapping[str, Any]) -> None:
    c = model.config
    for what, pixels, token in (
        ("image", "pixel_values", c.image_token_id),
        ("video", "pixel_values_videos", c.video_token_id),
    ):
        positions = given.get(f"{what}_position_ids")
        if given.get(pixels) is not None and positions is not None:
            count = jnp.sum(tokens_of(jnp.asarray(positions), c.vision_config.pooling_kernel_size))
            check_places(given["input_ids"], token, count, what)


LINEAR = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
TOWER = "model.vision_tower"

family(
    "gemma4",
    config=Gemma4Config,
    tasks={
        "causal-lm": lambda c: CausalLM(
            Gemma4(c), tied=c.tie_word_embeddings, softcap=c.text_config.final_logit_softcapping
        ),
        "base": Gemma4,
    },
    architectures={"Gemma4ForConditionalGeneration": "causal-lm", "Gemma4Model": "base"},
    names=with_and_without_head(
        [
            *PARTS,
            rename("model.embedding_projection.{rest}", "model.embed_vision.embedding_projection.{rest}"),
            rename(f"{TOWER}.input_proj.{{rest}}", f"{TOWER}.patch_embedder.input_proj.{{rest}}"),
            rename(f"{TOWER}.position_embedding_table", f"{TOWER}.patch_embedder.position_embedding_table"),
            *(
                rename(f"{TOWER}.layers.{{i}}.{part}.weight", f"{TOWER}.encoder.layers.{{i}}.{part}.linear.weight")
                for part in LINEAR
            ),
            rename(f"{TOWER}.layers.{{i}}.{{rest}}", f"{TOWER}.encoder.layers.{{i}}.{{rest}}"),
        ]
    ),
    ignore=("boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_index", "eoa_token_id", "audio_config"),
    ignore_tensors=lambda c: without_shared_keys(c.text_config),
)
