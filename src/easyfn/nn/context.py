"""What all layers of one forward pass share: positions, visibility, randomness and runtime choices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Choices of a run that are no facts of a checkpoint: never in a config, never a global.

    - `remat`: `None` keeps activations, `"full"` recomputes each layer in the backward pass, `"dots"` keeps only
      the results of matrix products without batch dimensions.
    - `attention_chunk`: attention works in slices of queries once a score matrix has more entries than this; `None` is
      2**24, and on a CPU less, down to the 2**21 that its cache holds.
    - `batch_axes`, `sequence_axes`: the axes of the mesh, as far as it has them, over which activations between layers
      are split: their rows and their tokens. Where a model lies on a mesh they are held to it, see
      [`easyfn.nn.along_batch`][]; empty leaves the choice to XLA.
    - `head_axes`: those over which the heads of attention are split, if they divide.
    - `context_parallel`: attention over a sequence that is split between devices. `"ring"` passes keys from device to
      device, so that none ever holds all of them; `"all_to_all"` trades the split of the sequence for one of heads, where
      they divide; `None` leaves it to XLA, which gathers keys.
    - `expert_axes`, `expert_parallel`: the axes over which experts are split, and how tokens reach theirs.
      `"all_to_all"` sends them there and back, none dropped; `None` leaves it to XLA, which moves weights.
    """

    remat: str | None = None
    attention_chunk: int | None = None
    batch_axes: tuple[str, ...] = ("dp", "fsdp", "ep", "pp")  # outside of its stages pp has nothing else to split
    sequence_axes: tuple[str, ...] = ("sp",)
    head_axes: tuple[str, ...] = ("tp",)
    context_parallel: str | None = "ring"
    expert_axes: tuple[str, ...] = ("ep",)
    expert_parallel: str | None = "all_to_all"

    def __post_init__(self) -> None:
        if self.remat not in (None, "full", "dots"):
            raise ValueError(f"Runtime.remat is None, 'full' or 'dots', not {self.remat!r}")
        if self.context_parallel not in (None, "ring", "all_to_all"):
            raise ValueError(f"Runtime.context_parallel is None, 'ring' or 'all_to_all', not {self.context_parallel!r}")


MANY_SCORES = 2**24


def scores_at_once(runtime: Runtime, by_query: int = 0) -> int:
    """The entries that a score matrix may have in one piece; `by_query` of them belong to one query, in all rows and heads.

    Unless `runtime` says it: on a CPU 8 MB, since scores that leave its cache take up to four times as long (1024 tokens
    in 8 heads), or more for 256 queries, below which products of a quarter of them are slow.
    """
    if runtime.attention_chunk is not None:
        return runtime.attention_chunk
    return min(MANY_SCORES, max(2**21, 256 * by_query)) if jax.default_backend() == "cpu" else MANY_SCORES


def held_axes(mesh: Any, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The axes of `wanted` over which the mesh splits anything."""
    return tuple(a for a in wanted if a in mesh.auto_axes and mesh.shape[a] > 1)


def divisible(mesh: Any, wanted: tuple[str, ...], size: int) -> tuple[str, ...]:
    """The axes of `wanted` that the mesh has, as far as `size` divides by them: the last are left out first."""
    axes = held_axes(mesh, wanted)
    while size % math.prod(mesh.shape[a] for a in axes):
        axes = axes[:-1]
    return axes


def along_batch(x: jax.Array, runtime: Runtime = Runtime()) -> jax.Array:
    """`x`, `(batch, seq, ...)`, held to the mesh that the model lies on: rows over `dp`, `fsdp`, `ep` and `pp`,
    tokens over `sp`.

    Without it XLA carries the split of the weights over to the activations, and a model under `fsdp` adds up partial
    products of every activation instead of gathering a layer's weights. A pass of one token (decoding) is left to XLA,
    since there the activations are the smaller. Axes that do not divide are left out, the last ones first. The identity
    outside of `jit` and without a mesh.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    weight = jax.device_put(jnp.ones((8, 4, 2)), jax.NamedSharding(ef.make_mesh(), jax.P(None, None, None)))
    assert jax.jit(ef.nn.along_batch)(weight).shape == (8, 4, 2)
    ```
    """
    if x.ndim < 2 or x.shape[1] == 1 or not isinstance(x, jax.core.Tracer):
        return x
    mesh = jax.typeof(x).sharding.mesh  # under jit every array says which mesh its program is for
    spec: list[Any] = []
    for size, wanted in zip(x.shape, (runtime.batch_axes, runtime.sequence_axes), strict=False):
        spec.append(divisible(mesh, wanted, size) or None)
    if not any(spec):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def called(model: Any, context: Any) -> None:
    """Raises `TypeError` for who calls a model with token ids: what a pass needs is made by `forward`."""
    if not isinstance(context, Context):
        name = type(model).__name__
        if isinstance(context, eqx.Module):
            raise TypeError(
                f"{name} was called with a {type(context).__name__}: optax calls masks and labels that can be called, and a "
                "tree like the model can: give optax.masked, optax.multi_transform, ... `lambda params: labels` in its place"
            )
        raise TypeError(
            f"{name} is called with what ef.forward makes of a batch, not with {type(context).__name__}: write "
            "ef.forward(model, ids, attention_mask=mask), or ef.generate(model, ids)"
        )


# What a layer's window does to blocks whose tokens see each other both ways: it cuts them as it cuts all else (Gemma 3), it
# does not (PaliGemma 2), or it is what they are for: layers that have none are causal (Gemma 4).
BLOCK_RULES = ("cut", "whole", "windowed")


class Context(eqx.Module):
    """Shared by all layers of a pass. Padding and packing are one thing: `segment_ids`, 0 for padding.

    A query sees a key of its own segment, not after it in the sequence (if `causal`, unless both are of one block of
    `blocks`), and within the layer's window. `slots` count places in the sequence (padding included), `order` the tokens
    before a token in its row (padding left out: windows are measured by it), `position_ids` are what rotary and learned
    positions read.
    """

    position_ids: jax.Array  # [batch, seq], or [axes, batch, seq] where positions have several
    segment_ids: Any  # [batch, seq], 0 = padding; None in a tower of images, which has none and asks for none
    slots: jax.Array  # [seq], place of each query in the sequence; [batch, seq] where each row is at its own
    order: jax.Array  # [seq] or [batch, seq], the number of tokens before each in its row
    cached_segment_ids: jax.Array | None = None  # [batch, max_length], with a cache: of every slot
    table: jax.Array | None = None  # [batch, pages], with a paged cache: the pages of each row
    rope: Mapping[str, tuple[jax.Array, jax.Array]] | None = None  # name -> (cos, sin), each [batch, seq, dim]
    bias: jax.Array | None = None  # [1 or batch, heads, seq, keys], added to the scores of self attention
    relative: jax.Array | None = None  # [rows, embed], embeddings of relative positions that layers project themselves
    groups: Mapping[str, jax.Array] | None = None  # other segments by name, [batch, seq]: the windows of an image
    blocks: jax.Array | None = None  # [batch, seq], 0 = none: tokens of one block see each other both ways
    added: jax.Array | None = None  # [batch, layers, seq, embed], added to what the first layers of `fold` say
    by_layer: jax.Array | None = (
        None  # [batch, layers, seq, dim], what each layer is given; in it [batch, seq, dim], its own
    )
    encoder: Any = None  # for decoders with cross attention: (hidden states, segment ids), or None once cached
    shared: Any = None  # layers that several layers call, and the embeddings: of a decoder that has such
    layer: Any = None  # the number of the layer that is called, from 0; traced in a stacked run
    handed_on: Mapping[str, Any] | None = None  # what earlier layers gave to later ones, by name; see `fold`
    key: jax.Array | None = None  # PRNG key; with one, dropout is on
    causal: bool = eqx.field(static=True, default=True)
    block_rule: str = eqx.field(static=True, default="cut")  # what a layer's window does to blocks, see `BLOCK_RULES`
    fresh: bool = eqx.field(static=True, default=False)  # the cache is empty: attend to the new keys only
    outputs: frozenset[str] = eqx.field(static=True, default=frozenset())  # optional outputs that were asked for
    runtime: Runtime = eqx.field(static=True, default=Runtime())

    def replace(self, **changes: Any) -> Context:
        return dataclasses.replace(self, **changes)

    def wants(self, output: str) -> bool:
        return output in self.outputs

    def with_window(self, window: int | None) -> Context:
        """The context of a layer with this window: without blocks, where its kind has none."""
        return self.replace(blocks=None) if self.block_rule == "windowed" and window is None else self


def in_chunks(context: Context, size: int) -> Context:
    """The context of a layer whose tokens see only those of their own chunk: every document is cut into chunks of `size`
    tokens, and each chunk is a document of its own (Llama 4). Padding is counted in none.

    In rows with several documents their `segment_ids` must grow along the row.
    """

    def cut(segments: jax.Array) -> jax.Array:
        real = segments > 0
        number = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1  # of a token in its row
        newest = jax.lax.cummax(segments, axis=1)
        begins = newest != jnp.pad(newest[:, :-1], ((0, 0), (1, 0)))
        first = jax.lax.cummax(jnp.where(begins, number, 0), axis=1)
        return jnp.where(real, segments * (segments.shape[1] // size + 1) + (number - first) // size, 0)

    if context.cached_segment_ids is None:
        return context.replace(segment_ids=cut(context.segment_ids))
    held = cut(context.cached_segment_ids)
    slots = jnp.broadcast_to(context.slots, context.segment_ids.shape)
    return context.replace(segment_ids=jnp.take_along_axis(held, slots, axis=1), cached_segment_ids=held)


class Mask(eqx.Module):
    """Which keys each query may see, kept as its causes so that a slice of queries can be made on demand."""

    query_slots: jax.Array  # [t], or [b, t]
    query_segments: jax.Array  # [b, t]
    key_slots: jax.Array  # [s], or [b, s]; negative: nothing there
    key_segments: jax.Array  # [b, s]
    causal: bool = eqx.field(static=True)
    window: int | None = eqx.field(static=True, default=None)  # keys with query - key < window are visible
    query_blocks: jax.Array | None = None  # [b, t]; keys of the same block (0: none) are visible from before, too
    key_blocks: jax.Array | None = None  # [b, s]
    whole_blocks: bool = eqx.field(static=True, default=False)  # the window does not cut blocks
    query_sees: jax.Array | None = None  # [b, t, g], which groups of keys a query may see
    key_groups: jax.Array | None = None  # [s], or [b, s]: the group of each key
    everywhere: jax.Array | None = None  # [b, s], keys that no window hides from their own segment

    def rows(self, start: Any, size: int) -> Mask:
        """The mask of `size` queries from `start`."""

        def part(x: Any) -> Any:
            return None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)

        return dataclasses.replace(
            self,
            query_slots=jax.lax.dynamic_slice_in_dim(self.query_slots, start, size, axis=-1),
            query_segments=part(self.query_segments),
            query_blocks=part(self.query_blocks),
            query_sees=part(self.query_sees),
        )

    def keys(self, start: Any, size: int) -> Mask:
        """The mask of `size` keys from `start`."""

        def part(x: Any) -> Any:
            return None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, axis=x.ndim - 1)

        names = ("key_slots", "key_segments", "key_blocks", "key_groups", "everywhere")
        return dataclasses.replace(self, **{name: part(getattr(self, name)) for name in names})

    def of_itself(self) -> bool:
        """Whether the queries are the keys, column by column, and nothing but order, window and segments decides."""
        more = (self.query_blocks, self.query_sees, self.everywhere)
        return self.query_slots is self.key_slots and all(x is None for x in more)

    def padded(self, pad: int) -> Mask:
        """The mask with `pad` queries more, which see nothing but padding."""

        def behind(x: Any) -> Any:
            return None if x is None else jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, pad),))

        return dataclasses.replace(
            self,
            query_slots=behind(self.query_slots),
            query_segments=behind(self.query_segments),
            query_blocks=behind(self.query_blocks),
            query_sees=None if self.query_sees is None else jnp.pad(self.query_sees, ((0, 0), (0, pad), (0, 0))),
        )

    def visible(self) -> jax.Array:
        """Boolean, shape `(batch, queries, keys)`."""
        seen = self.query_segments[:, :, None] == self.key_segments[:, None, :]
        queries, keys = (s if s.ndim == 2 else s[None] for s in (self.query_slots, self.key_slots))
        distance = queries[:, :, None] - keys[:, None, :]
        seen = seen & (keys[:, None, :] >= 0)
        allowed = distance >= 0 if self.causal else jnp.ones_like(seen)
        together = None
        if self.query_blocks is not None and self.key_blocks is not None:
            here = self.query_blocks[:, :, None]
            together = (here == self.key_blocks[:, None, :]) & (here > 0)
            allowed = allowed | together
        if self.window is not None:
            allowed = allowed & (distance < self.window)
            if not self.causal:
                allowed = allowed & (-distance < self.window)
            if together is not None and self.whole_blocks:
                allowed = allowed | together
        if self.everywhere is not None:
            allowed = allowed | self.everywhere[:, None, :]
        if self.query_sees is not None and self.key_groups is not None:
            groups = jnp.broadcast_to(self.key_groups, self.key_segments.shape)
            allowed = allowed & jax.vmap(lambda sees, group: sees[:, group])(self.query_sees > 0, groups)
        return seen & allowed


def encoder_mask(context: Context) -> Mask:
    """The mask of a pass without a cache: padding and other documents are invisible, and what is later if `causal`."""
    return Mask(context.slots, context.segment_ids, context.slots, context.segment_ids, context.causal)


def dropout(x: jax.Array, rate: float, context: Context, site: int) -> jax.Array:
    """Inverted dropout; nothing happens without `context.key`. `site` tells the places of one layer apart."""
    if context.key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(jax.random.fold_in(context.key, site), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
