"""Images and videos of any size as one row of patches, as Qwen2-VL reads them: rotary positions of height and width, each
frame a segment of its own, patches merged in squares.

`grid_thw` `(images, 3)` says how many patches an image has in time, height and width; its patches come square by square
(those that will be merged side by side), as the processor puts them out. All of it is arithmetic on arrays, so that the
grids may be data of a compiled program.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, dot, shape_of, slots
from .activation import activation, gated
from .attention.attention import attend
from .attention.core import merge_heads, split_heads
from .attention.rope import rotate
from .context import Context, Mask
from .conv import Conv
from .fold import fold
from .grid_places import cubic, patches, stretched, windows
from .linear import Embedding, Linear, declare
from .norm import LayerNorm
from .output import Output
from .places import check_places, embed, place
from .vision import image_context


class GridAttention(eqx.Module):
    """Attention with one matrix for queries, keys and values, within frames, or within the windows of a frame. `qk_norm` are
    norms of the queries and keys of each head, `bias` is whether each of the two matrices has one."""

    qkv: Linear
    proj: Linear
    q_norm: Any
    k_norm: Any
    heads: int = eqx.field(static=True)
    windowed: bool = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        heads: int,
        *,
        windowed: bool = False,
        bias: tuple[bool, bool] = (True, True),
        qk_norm: tuple[Any, Any] = (None, None),
        dropout: float = 0.0,
    ) -> None:
        self.qkv = Linear(size, 3 * size, bias[0], axes=("heads", "embed"))
        self.proj = Linear(size, size, bias[1], axes=("embed", "heads"))
        self.q_norm, self.k_norm = qk_norm
        self.heads, self.windowed, self.dropout = heads, windowed, dropout

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        assert context.rope is not None
        q, k, v = (split_heads(part, self.heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        q, k = q if self.q_norm is None else self.q_norm(q), k if self.k_norm is None else self.k_norm(k)
        q, k = rotate(q, context.rope["image"]), rotate(k, context.rope["image"])
        seen = (context.groups or {})["window"] if self.windowed else context.segment_ids
        out, weights = attend(
            q,
            k,
            v,
            Mask(context.slots, seen, context.slots, seen, False),
            scale=q.shape[-1] ** -0.5,
            runtime=context.runtime,
            weights=context.wants("attentions"),
            dropout_rate=self.dropout,
            key=None if context.key is None else jax.random.fold_in(context.key, 0),
        )
        return self.proj(merge_heads(out)), weights


class GridBlock(eqx.Module):
    """A pre-norm block under Qwen2-VL's names."""

    norm1: Any
    attn: GridAttention
    norm2: Any
    mlp: Any

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h, attentions = self.attn(self.norm1(x), context)
        x = x + h
        return x + self.mlp(self.norm2(x), context), cache, {"attentions": attentions}


class Merger(eqx.Module):
    """Squares of patches, side by side, through an MLP: one vector for each. The norm is of each patch or, where it is as wide
    as a square, of the square. `layer` is that whose states it reads, where it is not the last."""

    ln_q: Any
    up_proj: Linear
    down_proj: Linear
    square: int = eqx.field(static=True)
    layer: int | None = eqx.field(static=True)

    def __init__(self, norm: Any, size: int, out: int, merge: int, *, layer: int | None = None) -> None:
        self.layer = layer
        self.square = merge * merge
        self.ln_q = norm
        self.up_proj = Linear(size * self.square, size * self.square, True, axes=("mlp", "embed"))
        self.down_proj = Linear(size * self.square, out, True, axes=("embed", "mlp"))

    def __call__(self, x: jax.Array) -> jax.Array:
        squares = lambda x: x.reshape(x.shape[0] // self.square, -1)
        x = squares(self.ln_q(x)) if shape_of(self.ln_q.weight)[-1] == x.shape[-1] else self.ln_q(squares(x))
        return self.down_proj(activation("gelu")(self.up_proj(x)))


class Downsampler(eqx.Module):
    """Squares of patches through a convolution that covers one, and a gated MLP behind a norm (GLM-4.1V): one vector for each."""

    post_layernorm: Any
    downsample: Conv
    proj: Linear
    post_projection_norm: LayerNorm
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    act: str = eqx.field(static=True)

    def __init__(self, norm: Any, size: int, out: int, merge: int, wide: int, act: str) -> None:
        activation(act)
        self.post_layernorm, self.act = norm, act
        self.downsample = Conv(size, out, (merge, merge), stride=merge)
        self.proj = Linear(out, out, axes=("mlp", "embed"))
        self.post_projection_norm = LayerNorm(out, 1e-5)
        self.gate_proj, self.up_proj = (Linear(out, wide, axes=("mlp", "embed")) for _ in range(2))
        self.down_proj = Linear(wide, out, axes=("embed", "mlp"))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.post_layernorm(x)
        side = shape_of(self.downsample.weight)[-1]
        x = self.downsample(x.reshape(-1, side, side, x.shape[-1]))
        x = activation("gelu")(self.post_projection_norm(self.proj(x.reshape(x.shape[0], -1))))
        return self.down_proj(gated(self.act, self.gate_proj(x), self.up_proj(x)))


class GridTower(eqx.Module):
    """Rows of patches `(patches, channels * time * height * width)` to vectors `(patches / merge^2, out)`.

    `positions` is a table of learned positions on a square grid, stretched over every image: from corner to corner, or `cubic`.
    `patch_norm` is of the patches before them. `deepstack_mergers` read the states of layers before the last (Meng et al. 2024,
    arXiv 2406.04334).
    """

    patch_embed: Weight
    patch_bias: Weight | None
    patch_norm: Any
    pos_embed: Embedding | None
    blocks: tuple[Any, ...]
    merger: Merger | Downsampler
    deepstack_mergers: tuple[Merger, ...]
    config: Any = eqx.field(static=True)
    merge: int = eqx.field(static=True)
    window: int | None = eqx.field(static=True)  # in patches
    theta: float = eqx.field(static=True)
    cubic: bool = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        patch: tuple[int, ...],
        blocks: tuple[Any, ...],
        merger: Merger | Downsampler,
        *,
        merge: int,
        window: int | None = None,
        theta: float = 10000.0,
        bias: bool = False,
        positions: Embedding | None = None,
        cubic: bool = False,
        patch_norm: Any = None,
        deepstack_mergers: tuple[Merger, ...] = (),
    ) -> None:
        deep = [merger.layer for merger in deepstack_mergers]
        if len(set(deep)) != len(deep) or not set(deep) <= set(range(len(blocks))):
            raise ValueError(f"deepstack_visual_indexes={deep} are to name some of the {len(blocks)} layers, each once")
        self.patch_embed, self.patch_bias = declare(*patch), declare(patch[0]) if bias else None
        self.pos_embed, self.deepstack_mergers = positions, deepstack_mergers
        self.patch_norm, self.cubic = patch_norm, cubic
        self.blocks, self.merger, self.config = blocks, merger, config
        self.merge, self.window, self.theta = merge, window, theta

    def __call__(
        self, context: Context, cache: Any = None, *, pixel_values: jax.Array, image_grid_thw: jax.Array
    ) -> Output:
        """`pooler_output` `(patches / merge^2, out)`; where there is deepstack `(1 + layers, patches / merge^2, out)`, those of
        its layers behind."""
        weight = dense(self.patch_embed)
        x = dot(weight.reshape(weight.shape[0], -1), pixel_values.astype(weight.dtype))[None]
        x = x if self.patch_bias is None else x + dense(self.patch_bias)[None, None].astype(x.dtype)
        x = x if self.patch_norm is None else self.patch_norm(x)
        count = x.shape[1]
        at = patches(image_grid_thw, count, self.merge)
        if self.pos_embed is not None:
            places = (cubic if self.cubic else stretched)(dense(self.pos_embed.weight), at)
            x = x + places[None].astype(x.dtype)
        quarter = x.shape[-1] // self.blocks_heads() // 4
        inv = self.theta ** -(jnp.arange(quarter, dtype=jnp.float32) / quarter)
        angles = jnp.concatenate([place.astype(jnp.float32)[:, None] * inv[None] for place in (at.y, at.x)], axis=-1)
        groups = None if self.window is None else {"window": windows(at, self.window)[None]}
        context = image_context(context).replace(
            segment_ids=at.frame[None] + 1,
            slots=jnp.arange(count, dtype=jnp.int32),
            rope={"image": (jnp.cos(angles)[None], jnp.sin(angles)[None])},
            groups=groups,
        )
        if not self.deepstack_mergers:
            x, _, trace = fold(self.blocks, x, context)
            return Output(last_hidden_state=x, pooler_output=self.merger(x[0]), **trace)
        asked = context.outputs
        x, _, trace = fold(self.blocks, x, context.replace(outputs=asked | {"hidden_states"}))
        states = (*trace["hidden_states"][1:], x)
        mergers = {merger.layer: merger for merger in self.deepstack_mergers}
        deep = [mergers[i](state[0]) for i, state in enumerate(states) if i in mergers]
        trace = {name: value for name, value in trace.items() if name in asked}
        return Output(last_hidden_state=x, pooler_output=jnp.stack([self.merger(x[0]), *deep]), **trace)

    def blocks_heads(self) -> int:
        return self.config.num_heads


@slots.register(GridTower)
def _(tower: GridTower) -> dict[str, Slot]:
    return {
        "patch_embed": Slot("conv", ("embed", None, None, None, None)),
        "patch_bias": Slot("bias", ("embed",), "zeros"),
    }


class GridImageText(eqx.Module):
    """A language model whose images and videos are of any size, with positions of time, height and width.

    `video_step` is how far two frames lie apart in time, by the seconds of `second_per_grid_ts` (1 without). `framed`: the
    prompt tells the frames of a video apart by text, and each has its positions as an image has. `video_token` stands for a
    patch of a video, by default that of the config.
    """

    visual: GridTower
    language_model: Any
    config: Any = eqx.field(static=True)
    video_step: float = eqx.field(static=True)
    framed: bool = eqx.field(static=True)
    video_token: int = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        visual: GridTower,
        text: Any,
        *,
        video_step: float = 1.0,
        framed: bool = False,
        video_token: int | None = None,
    ) -> None:
        self.framed = framed
        self.video_token = config.video_token_id if video_token is None else video_token
        self.visual, self.language_model, self.config, self.video_step = visual, text, config, video_step

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        pixel_values: jax.Array | None = None,
        image_grid_thw: jax.Array | None = None,
        pixel_values_videos: jax.Array | None = None,
        video_grid_thw: jax.Array | None = None,
        second_per_grid_ts: Any = None,
        mm_token_type_ids: Any = None,
    ) -> Output:
        kinds = [
            ("image", self.config.image_token_id, pixel_values, image_grid_thw),
            ("video", self.video_token, pixel_values_videos, video_grid_thw),
        ]
        if self.video_token == self.config.image_token_id and all(pixels is not None for _, _, pixels, _ in kinds):
            raise ValueError(
                f"images and videos have one token here, {self.video_token}: give one of pixel_values and pixel_values_videos"
            )
        if all(pixels is None for _, _, pixels, _ in kinds):
            return self.language_model(context, cache, input_ids=input_ids, inputs_embeds=inputs_embeds)
        if input_ids is None:
            raise ValueError("pixels take the places of image tokens: give input_ids with them, not inputs_embeds")
        x = embed(self.language_model, input_ids)
        added = [jnp.zeros_like(x) for _ in self.visual.deepstack_mergers]
        for what, token, pixels, grid in kinds:
            if pixels is None:
                continue
            if grid is None:
                raise ValueError(f"the patches of {what}s need {what}_grid_thw, which says where they lie")
            found: Any = self.visual(context, pixel_values=pixels, image_grid_thw=grid).pooler_output
            found, deep = (found[0], found[1:]) if added else (found, ())
            check_places(input_ids, token, found.shape[0], what)
            here = input_ids == token
            x = place(x, found, here)
            added = [place(old, new, here) for old, new in zip(added, deep, strict=True)]
        if added:
            context = context.replace(added=jnp.stack(added, axis=1))
        return self.language_model(context, cache, inputs_embeds=x)


def grid_positions_of(
    ids: jax.Array,
    segments: jax.Array,
    start: Any,
    merge: int,
    kinds: list[tuple[int, Any, Any]],
    *,
    framed: bool = False,
) -> jax.Array:
    """Positions `(3, batch, seq)` of text with images in it (Qwen2-VL, section 2.1): text counts in all three axes; an
    image's patches count time, height and width from where it begins, and what follows begins after its longer side.

    `kinds`: for images and videos the token that stands for a patch, the grids `(images, 3)`, and how far its frames lie
    apart in time (`(images,)`). `framed`: each frame is an image of its own.
    """
    seen = segments > 0
    step = seen.astype(jnp.int32)  # how far a token moves what comes after it
    inside = jnp.zeros((3, *ids.shape), jnp.int32)
    for token, grid, interval in kinds:
        if grid is None:
            continue
        grid = jnp.asarray(grid, jnp.int32) // jnp.array([[1, merge, merge]], jnp.int32)
        here = (ids == token) & seen
        at = patches(grid, ids.size)
        number = jnp.clip(jnp.cumsum(here.reshape(-1)) - 1, 0).reshape(ids.shape)
        side = jnp.maximum(at.height, at.width)[number]
        first = at.first + at.t * at.height * at.width if framed else at.first
        begins = first[number] == number
        step = jnp.where(here, jnp.where(begins, side, 0), step)
        t = jnp.zeros_like(at.t) if framed else (at.t * interval[at.image]).astype(jnp.int32)
        own = jnp.stack([axis[number] for axis in (t, at.y, at.x)])
        back = jnp.where(begins, 0, side)  # the image has moved on already when its later patches are counted
        inside = jnp.where(here[None], own - back[None], inside)
    before = jnp.cumsum(step, axis=1) - step
    changed = jnp.concatenate([jnp.ones_like(seen[:, :1]), segments[:, 1:] != segments[:, :-1]], axis=1)
    before = before - jax.lax.cummax(jnp.where(changed, before, 0), axis=1)
    return jnp.where(seen[None], before[None] + inside + jnp.asarray(start, jnp.int32).reshape(1, -1, 1), 0)
