"""The post-norm encoder of BERT, under BERT's names: RoBERTa, ELECTRA and their kin are built of the same layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.frozen import Frozen
from ..core.stack import unstack
from ..core.tree import layers_in
from .activation import activation
from .attention.attention import attend_within
from .attention.core import split_heads
from .attention.rope import checked_rope, rope_table, rotate
from .cache.cache import layer_cache
from .context import Context, dropout, encoder_mask
from .fold import fold
from .linear import Embedding, Linear, pad_token
from .norm import LayerNorm
from .output import Output
from .pooling import first_token
from .relative import RelativeBias


def chosen_rows(table: Embedding, ids: Any, name: str) -> jax.Array:
    """Rows of a small table by the caller's `ids`, called `name`; concrete ids that it does not have are a `ValueError`."""
    from ..core.weight import shape_of

    held = None if isinstance(ids, jax.core.Tracer) else np.asarray(ids)
    if held is not None and held.size and not 0 <= held.min() <= held.max() < (size := shape_of(table.weight)[0]):
        raise ValueError(
            f"{name} hold {held.min() if held.min() < 0 else held.max()}, and this model has {size} of them"
        )
    return table(jnp.asarray(ids))


def learned_positions(table: Any, positions: jax.Array, *, offset: int = 0) -> jax.Array:
    """Rows `positions + offset` of a table of learned positions, shape `(batch, seq, embed)`.

    A position that the table does not have is a `ValueError`; in a compiled function, where nobody can raise, its
    embedding is NaN: a clamped position would be a silent wrong answer.
    """
    from ..core.weight import shape_of

    there = within(positions, shape_of(table.weight)[0] - offset)
    x = table(positions + offset)
    return jnp.where(there[..., None], x, jnp.asarray(jnp.nan, x.dtype))


def within(positions: jax.Array, size: int) -> jax.Array:
    """Which of `positions` are among the `size` that a model knows; concrete ones that are not are a `ValueError`."""
    if not isinstance(positions, jax.core.Tracer) and positions.size:
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"position {low if low < 0 else high} is beyond the {size} learned positions of this model "
                f"(0 to {size - 1}): shorten the input"
            )
    return (positions >= 0) & (positions < size)


class Dense(eqx.Module):
    """A linear layer and an activation, under the name `dense`. The layer is by default a `Linear`."""

    dense: Any
    act: str = eqx.field(static=True)

    def __init__(
        self, in_features: int, out_features: int, act: str, *, axes: tuple[str | None, ...], dense: Any = None
    ) -> None:
        activation(act)
        self.dense = dense or Linear(in_features, out_features, True, axes=axes)
        self.act = act

    def __call__(self, x: jax.Array) -> jax.Array:
        return activation(self.act)(self.dense(x))


class AddNorm(eqx.Module):
    """`norm(residual + dropout(dense(x)))`: how BERT ends its attention and its feed-forward layer. `dense` and `norm` are by
    default a `Linear` and a `LayerNorm`."""

    dense: Any
    LayerNorm: Any
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float,
        dropout: float,
        *,
        axes: tuple[str | None, ...],
        dense: Any = None,
        norm: Any = None,
    ) -> None:
        self.dense = dense or Linear(in_features, out_features, True, axes=axes)
        self.LayerNorm = norm or LayerNorm(out_features, eps)
        self.dropout = dropout

    def __call__(self, x: jax.Array, residual: jax.Array, context: Context, site: int) -> jax.Array:
        return self.LayerNorm(residual + dropout(self.dense(x), self.dropout, context, site))


class SelfAttention(eqx.Module):
    """Multi-head attention of an encoder, without its output projection.

    `rotated`: the parts, of `"qkv"`, whose neighbours are rotated by the table `"default"` of `context.rope`. `projections`
    of queries, keys and values are by default `Linear`s.
    """

    query: Any
    key: Any
    value: Any
    heads: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    rotated: str = eqx.field(static=True)

    def __init__(
        self, hidden_size: int, heads: int, dropout: float, *, rotated: str = "", projections: tuple[Any, ...] = ()
    ) -> None:
        if hidden_size % heads:
            raise ValueError(f"hidden_size={hidden_size} is no multiple of num_attention_heads={heads}")
        self.query, self.key, self.value = projections or (
            Linear(hidden_size, hidden_size, True, axes=("heads", "embed")) for _ in range(3)
        )
        self.heads = heads
        self.dropout = dropout
        self.rotated = rotated

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.query, self.key, self.value))
        if self.rotated:
            assert context.rope is not None
            table = context.rope["default"]
            turn = lambda name, part: rotate(part, table, True) if name in self.rotated else part
            q, k, v = turn("q", q), turn("k", k), turn("v", v)
        mask, scale = encoder_mask(context), q.shape[-1] ** -0.5
        return attend_within(context, q, k, v, mask, dropout=self.dropout, scale=scale, bias=context.bias)


class EncoderAttention(eqx.Module):
    """Attention with its output projection, residual and norm."""

    self: Any  # the name is Hugging Face's, so that paths and files agree; hence `this` below
    output: AddNorm

    def __init__(
        this,
        hidden_size: int,
        heads: int,
        eps: float,
        dropout: tuple[float, float],
        inner: Any = None,
        output: AddNorm | None = None,
    ) -> None:
        this.self = inner or SelfAttention(hidden_size, heads, dropout[0])
        this.output = output or AddNorm(hidden_size, hidden_size, eps, dropout[1], axes=("embed", "heads"))

    def __call__(this, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        h, weights = this.self(x, context)
        return this.output(h, x, context, 1), weights


class EncoderLayer(eqx.Module):
    """Attention, then feed-forward, each followed by its norm.

    `config` has BERT's keys: `hidden_size`, `num_attention_heads`, `intermediate_size`, `hidden_act`, `layer_norm_eps`,
    `attention_probs_dropout_prob`, `hidden_dropout_prob`. `attention` is by default a `SelfAttention`; `parts` are what
    ends the attention, the `Dense` and what ends the feed-forward layer, where they are others.
    """

    attention: EncoderAttention
    intermediate: Dense
    output: AddNorm

    def __init__(
        self, config: Any, *, attention: Any = None, parts: tuple[AddNorm, Dense, AddNorm] | None = None
    ) -> None:
        c = config
        size, inner, eps, rate = c.hidden_size, c.intermediate_size, c.layer_norm_eps, c.hidden_dropout_prob
        rates = (c.attention_probs_dropout_prob, rate)
        ends, middle, last = parts or (
            None,
            Dense(size, inner, c.hidden_act, axes=("mlp", "embed")),
            AddNorm(inner, size, eps, rate, axes=("embed", "mlp")),
        )
        self.attention = EncoderAttention(size, c.num_attention_heads, eps, rates, attention, ends)
        self.intermediate, self.output = middle, last

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        x, attentions = self.attention(x, context)
        return self.output(self.intermediate(x), x, context, 2), cache, {"attentions": attentions}


class EncoderLayers(eqx.Module):
    """The layers of an encoder, under the name `layer`."""

    layer: tuple[Any, ...]

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict[str, Any]]:
        x, _, trace = fold(self.layer, x, context)
        return x, trace


class SharedLayers(eqx.Module):
    """Layers that run several times (ALBERT): `depth` passes over the groups, each an equal share of them in a row."""

    group: tuple[EncoderLayers, ...]
    depth: int = eqx.field(static=True)

    def __init__(self, config: Any) -> None:
        """`config` also has `num_hidden_groups` and `inner_group_num`, the layers of a group."""
        inner = range(config.inner_group_num)
        self.group = tuple(
            EncoderLayers(tuple(EncoderLayer(config) for _ in inner)) for _ in range(config.num_hidden_groups)
        )
        self.depth = config.num_hidden_layers

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict[str, Any]]:
        trace: dict[str, Any] = {}
        done, group = (
            0,
            unstack(self.group),
        )  # layers come more than once: a scan over the groups would be another model
        for n in range(self.depth):
            layers = group[int(n / (self.depth / len(group)))].layer
            x, _, one = fold(layers, x, context, None, done)
            trace = {name: trace.get(name, ()) + values for name, values in one.items()}
            done += sum(layers_in(layer) for layer in layers)
        return x, trace


class EncoderEmbeddings(eqx.Module):
    """`norm(word + token type + position)`.

    - With a `padding` (RoBERTa), the id of padding, positions that the caller does not give begin at row `padding + 1` of
      their table and count the tokens of other ids only, masked or not; padding has row `padding`.
    - Without `positions` there is no table of them; token types are left out where the config has none.
    - Embeddings that are narrower than the layers go through `project` before the norm, where it is given (DeBERTa).
    - `norm` is by default a `LayerNorm`, and `None` for none.
    - `layout` makes of the boxes that tokens stand in, `bbox`, what is added for them (LayoutLM).
    """

    word_embeddings: Embedding
    position_embeddings: Embedding | None
    token_type_embeddings: Embedding | None
    layout: Any
    embed_proj: Linear | None
    LayerNorm: Any
    dropout: float = eqx.field(static=True)
    padding: int | None = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        *,
        padding: int | None = None,
        positions: bool = True,
        project: Linear | None = None,
        norm: Any = "default",
        layout: Any = None,
    ) -> None:
        size = getattr(config, "embedding_size", None) or config.hidden_size
        table = lambda rows: Embedding(rows, size, axes=(None, "embed")) if rows else None
        self.word_embeddings = Embedding(
            config.vocab_size, size, padding=pad_token(config) if padding is None else padding
        )
        self.position_embeddings = table(config.max_position_embeddings if positions else 0)
        self.token_type_embeddings = table(config.type_vocab_size)
        self.layout = layout
        self.embed_proj = project
        width = size if project is None else config.hidden_size
        self.LayerNorm = LayerNorm(width, config.layer_norm_eps) if isinstance(norm, str) else norm
        self.dropout = config.hidden_dropout_prob
        self.padding = padding

    def __call__(
        self,
        context: Context,
        input_ids: Any,
        inputs_embeds: jax.Array | None,
        token_type_ids: Any,
        bbox: Any = None,
    ) -> jax.Array:
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.token_type_embeddings is not None:
            types = np.zeros(x.shape[:2], np.int32) if token_type_ids is None else token_type_ids
            x = x + chosen_rows(self.token_type_embeddings, types, "token_type_ids")
        if self.position_embeddings is not None:
            x = x + learned_positions(self.position_embeddings, context.position_ids)
        if self.layout is not None:
            x = x + self.layout(np.zeros((*x.shape[:2], 4), np.int32) if bbox is None else bbox)
        x = x if self.embed_proj is None else self.embed_proj(x)
        x = x if self.LayerNorm is None else self.LayerNorm(x)
        return dropout(x, self.dropout, context, 1_000_003)


class TextEncoder(eqx.Module):
    """Token ids to hidden states in which every token sees every other.

    - `embeddings` are by default `EncoderEmbeddings` with that `padding`; those that are narrower than the layers go
      through `embeddings_project`.
    - `relative` positions are a bias on all scores; `rope` are the parameters of each rotary table that layers name, for
      heads of the width `head_dim`.
    - `layers` are by default `EncoderLayer`s, and `norm` comes after the last.
    - With a `pooler` the output has `pooler_output`, `(batch, embed)`: the first token, through a linear layer and tanh, or
      through the `pooler` itself where that is a layer; `pooled_dropout` is at which rate it drops in training.
    """

    embeddings: Any
    embeddings_project: Linear | None
    relative_attention_bias: RelativeBias | None
    encoder: Any
    norm: Any
    pooler: Any
    config: Any = eqx.field(static=True)
    rope: Frozen = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    pooled_dropout: float = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        *,
        pooler: Any = True,
        padding: int | None = None,
        embeddings: Any = None,
        project: Linear | None = None,
        relative: RelativeBias | None = None,
        rope: Mapping[str, Any] = Frozen(),
        head_dim: int = 0,
        layers: Any = None,
        norm: Any = None,
        pooled_dropout: float = 0.0,
    ) -> None:
        size = config.hidden_size
        self.embeddings = embeddings or EncoderEmbeddings(config, padding=padding)
        narrow = getattr(config, "embedding_size", None) or size
        if project is None and embeddings is None and narrow != size:
            project = Linear(narrow, size, True, axes=("mlp", "embed"))
        self.embeddings_project = project
        self.relative_attention_bias = relative
        self.encoder = layers or EncoderLayers(tuple(EncoderLayer(config) for _ in range(config.num_hidden_layers)))
        self.norm = norm
        self.pooler = Dense(size, size, "tanh", axes=("mlp", "embed")) if pooler is True else pooler or None
        self.config = config
        self.rope = checked_rope(rope, head_dim)
        self.head_dim = head_dim
        self.pooled_dropout = pooled_dropout

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: Any = None,
        inputs_embeds: jax.Array | None = None,
        token_type_ids: Any = None,
        bbox: Any = None,
    ) -> Output:
        if cache is not None:
            raise ValueError(f"{type(self.config).__name__} is an encoder: it keeps no cache")
        context = context.replace(causal=False)
        boxes = {} if bbox is None else {"bbox": bbox}
        x = self.embeddings(context, input_ids, inputs_embeds, token_type_ids, **boxes)
        if self.embeddings_project is not None:
            x = self.embeddings_project(x)
        if self.relative_attention_bias is not None:
            context = context.replace(bias=self.relative_attention_bias(context))
        if self.rope:
            limit, places = self.config.max_position_embeddings, context.position_ids
            tables = {name: rope_table(p, self.head_dim, limit, places) for name, p in self.rope.items()}
            context = context.replace(rope=tables)
        x, trace = self.encoder(x, context)
        x = x if self.norm is None else self.norm(x)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        pooled = None if self.pooler is None else self.pooler(first_token(x, context))
        if pooled is not None:
            pooled = dropout(pooled, self.pooled_dropout, context, 1_000_006)
        return Output(last_hidden_state=x, pooler_output=pooled, **trace)


@layer_cache.register(TextEncoder)
def _(model: TextEncoder, batch_size: int, max_length: int, dtype: Any) -> None:
    return None  # its layers could keep keys, and have no use for them
