"""Images and videos of any size as one row of patches, as Qwen2-VL reads them: rotary positions of height and width, each
frame a segment of its own, patches merged in squares.

`grid_thw` `(images, 3)` says how many patches an image has in time, height and width; its patches come square by square
(those that will be merged side by side), as the processor puts them out. All of it is arithmetic on arrays, so that the
grids may be data of a compiled program.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, dot, shape_of, slots
from .activation import activation
from .attention.attention import attend
from .attention.core import merge_heads, split_heads
from .attention.rope import rotate
from .context import Context, Mask
from .fold import fold
from .linear import Embedding, Linear, declare
from .output import Output
from .places import check_places, embed, place
from .vision import image_context


class Patches(NamedTuple):
    """Where each of `count` patches (or merged squares, with `merge=1` and a smaller grid) lies, all `(count,)`."""

    image: jax.Array  # its number
    first: jax.Array  # the number of its image's first patch
    frame: jax.Array  # the number of its frame, over all images
    t: jax.Array
    y: jax.Array
    x: jax.Array
    height: jax.Array  # of its image
    width: jax.Array


def patches(grid_thw: jax.Array, count: int, merge: int = 1) -> Patches:
    """The places of `count` patches of images of the sizes `grid_thw`, in squares of `merge` by `merge`."""
    grid = jnp.asarray(grid_thw, jnp.int32)
    sizes, frames = jnp.prod(grid, axis=1), grid[:, 0]
    ends = jnp.cumsum(sizes)
    number = jnp.arange(count, dtype=jnp.int32)
    image = jnp.clip(jnp.searchsorted(ends, number, side="right"), 0, grid.shape[0] - 1).astype(jnp.int32)
    first = (ends - sizes)[image]
    height, width = grid[image, 1], grid[image, 2]
    t, rest = jnp.divmod(number - first, height * width)
    square, inner = jnp.divmod(rest, merge * merge)
    row, column = jnp.divmod(square, width // merge)
    y, x = row * merge + inner // merge, column * merge + inner % merge
    return Patches(image, first, (jnp.cumsum(frames) - frames)[image] + t, t, y, x, height, width)


def windows(at: Patches, size: int) -> jax.Array:
    """The number, from 1, of the window of `size` by `size` patches that each patch lies in."""
    down, across = -(-at.height // size), -(-at.width // size)
    inside = (at.y // size) * across + at.x // size
    per_frame = down * across
    changed = jnp.concatenate([jnp.ones((1,), bool), at.frame[1:] != at.frame[:-1]])
    before = jnp.cumsum(jnp.where(changed, per_frame, 0)) - per_frame  # windows of the frames before
    return before + inside + 1


class GridAttention(eqx.Module):
    """Attention with one matrix for queries, keys and values, within frames, or within the windows of a frame."""

    qkv: Linear
    proj: Linear
    heads: int = eqx.field(static=True)
    windowed: bool = eqx.field(static=True)

    def __init__(self, size: int, heads: int, *, windowed: bool = False) -> None:
        self.qkv = Linear(size, 3 * size, True, axes=("heads", "embed"))
        self.proj = Linear(size, size, True, axes=("embed", "heads"))
        self.heads = heads
        self.windowed = windowed

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        assert context.rope is not None
        q, k, v = (split_heads(part, self.heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        q, k = rotate(q, context.rope["image"]), rotate(k, context.rope["image"])
        seen = (context.groups or {})["window"] if self.windowed else context.segment_ids
        mask = Mask(context.slots, seen, context.slots, seen, False)
        wants = context.wants("attentions")
        out, weights = attend(q, k, v, mask, scale=q.shape[-1] ** -0.5, runtime=context.runtime, weights=wants)
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


class GridTower(eqx.Module):
    """Rows of patches `(patches, channels * time * height * width)` to vectors `(patches / merge^2, out)`.

    `positions` is a table of learned positions on a square grid, stretched over every image. `deepstack_mergers` read the
    states of layers before the last (Meng et al. 2024, arXiv 2406.04334).
    """

    patch_embed: Weight
    patch_bias: Weight | None
    pos_embed: Embedding | None
    blocks: tuple[Any, ...]
    merger: Merger
    deepstack_mergers: tuple[Merger, ...]
    config: Any = eqx.field(static=True)
    merge: int = eqx.field(static=True)
    window: int | None = eqx.field(static=True)  # in patches
    theta: float = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        patch: tuple[int, ...],
        blocks: tuple[Any, ...],
        merger: Merger,
        *,
        merge: int,
        window: int | None = None,
        theta: float = 10000.0,
        bias: bool = False,
        positions: Embedding | None = None,
        deepstack_mergers: tuple[Merger, ...] = (),
    ) -> None:
        deep = [merger.layer for merger in deepstack_mergers]
        if len(set(deep)) != len(deep) or not set(deep) <= set(range(len(blocks))):
            raise ValueError(f"deepstack_visual_indexes={deep} are to name some of the {len(blocks)} layers, each once")
        self.patch_embed, self.patch_bias = declare(*patch), declare(patch[0]) if bias else None
        self.pos_embed, self.deepstack_mergers = positions, deepstack_mergers
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
        count = x.shape[1]
        at = patches(image_grid_thw, count, self.merge)
        if self.pos_embed is not None:
            x = x + stretched(dense(self.pos_embed.weight), at)[None].astype(x.dtype)
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


def stretched(table: jax.Array, at: Patches) -> jax.Array:
    """Learned positions `(side * side, embed)` for every patch `(patches, embed)`: the grid's corners lie on the image's, and
    what lies between is bilinear."""
    side = math.isqrt(table.shape[0])

    def along(place: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        exact = place.astype(jnp.float32) * (side - 1) / jnp.maximum(size - 1, 1)
        low = jnp.floor(exact).astype(jnp.int32)
        return jnp.clip(low, 0, side - 1), jnp.clip(low + 1, 0, side - 1), exact - low

    top, bottom, down = along(at.y, at.height)
    left, right, across = along(at.x, at.width)
    row = lambda y, x: table[y * side + x].astype(jnp.float32)
    mix = lambda a, b, share: a + (b - a) * share[:, None]
    return mix(mix(row(top, left), row(top, right), across), mix(row(bottom, left), row(bottom, right), across), down)


class GridImageText(eqx.Module):
    """A language model whose images and videos are of any size, with positions of time, height and width.

    `video_step` is how far two frames lie apart in time, by the seconds of `second_per_grid_ts` (1 without). `framed`: the
    prompt tells the frames of a video apart by text, and each has its positions as an image has.
    """

    visual: GridTower
    language_model: Any
    config: Any = eqx.field(static=True)
    video_step: float = eqx.field(static=True)
    framed: bool = eqx.field(static=True)

    def __init__(
        self, config: Any, visual: GridTower, text: Any, *, video_step: float = 1.0, framed: bool = False
    ) -> None:
        self.framed = framed
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
            ("video", self.config.video_token_id, pixel_values_videos, video_grid_thw),
        ]
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
