"""The decoder that Llama, Mistral, Qwen, Mixtral, Gemma and their kin share: embed, fold the layers, norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.fields import needs
from ..core.frozen import Frozen
from ..core.weight import shape_of
from .attention.rope import checked_rope, rope_table
from .context import Context, called, dropout
from .fold import fold
from .heads import max_positions
from .linear import Embedding, Linear, pad_token
from .output import Output
from .positions import Alibi, LearnedPositions


class Decoder(eqx.Module):
    """Token ids to hidden states.

    - `rope`: the parameters of each rotary table that layers name; `head_dim`: the width of the heads it is for, one number
      or one by table. `partial`: heads of this family are rotated in part, as `partial_rotary_factor` says; without it
      they are whole, as in transformers, whatever a config says.
    - `embed_scale` multiplies embeddings; those that the caller gives as well (`inputs_embeds`) if `scale_inputs`.
    - `dropout` is the rate on embeddings in training; `norm` is the last norm, or `None`.
    - `positions` are added to embeddings (`LearnedPositions`, `SinusoidalPositions`), `alibi` to the scores of attention;
      `embed_norm` is a norm of the embeddings (Bloom).
    - `width` is that of the embeddings, and of what comes out, where it is not `hidden_size`: projections without bias lead
      there and back (OPT 350m).
    - `per_layer(input_ids, embeddings)` is what each layer is given beside the hidden states, `(batch, layers, seq, dim)`: a
      layer finds its own in `context.by_layer` (Gemma 4). With it ids are needed beside `inputs_embeds`.
    - `shared`: layers that several of `layers` call (Zamba 2). Those find `(shared, embeddings)` in `context.shared`.
    - `padding`: the row of the config's `pad_token_id` does not learn from being looked up, as in most of transformers.
    """

    embed_tokens: Embedding
    layers: tuple[Any, ...]
    norm: Any
    embed_positions: Any
    embed_norm: Any
    project_in: Linear | None
    project_out: Linear | None
    per_layer: Any
    shared: tuple[Any, ...]
    config: Any = eqx.field(static=True)
    width: int = eqx.field(static=True)
    alibi: Alibi | None = eqx.field(static=True)
    head_dim: int | Frozen = eqx.field(static=True)
    rope: Frozen = eqx.field(static=True)
    embed_scale: float | None = eqx.field(static=True)
    scale_inputs: bool = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        layers: Sequence[Any],
        norm: Any,
        *,
        head_dim: int | Mapping[str, int] = 0,
        rope: Mapping[str, Any] = Frozen(),
        partial: bool = False,
        embed_scale: float | None = None,
        scale_inputs: bool = False,
        dropout: float = 0.0,
        positions: Any = None,
        alibi: Alibi | None = None,
        embed_norm: Any = None,
        width: int | None = None,
        shared: Sequence[Any] = (),
        per_layer: Any = None,
        padding: bool = True,
    ) -> None:
        needs("nn.Decoder", config, "vocab_size", "hidden_size", *(["max_position_embeddings"] if rope else []))
        self.width = width or config.hidden_size
        apart = self.width != config.hidden_size
        self.embed_tokens = Embedding(config.vocab_size, self.width, padding=pad_token(config) if padding else None)
        self.embed_positions = positions
        self.embed_norm = embed_norm
        self.project_in = Linear(self.width, config.hidden_size) if apart else None
        self.project_out = Linear(config.hidden_size, self.width) if apart else None
        self.shared = tuple(shared)
        self.per_layer = per_layer
        self.alibi = alibi
        self.layers = tuple(layers)
        self.norm = norm
        self.config = config
        self.head_dim = head_dim if isinstance(head_dim, int) else Frozen(head_dim)
        self.rope = checked_rope(rope, head_dim, partial=partial)
        self.embed_scale = embed_scale
        self.scale_inputs = scale_inputs
        self.dropout = dropout

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
    ) -> Output:
        called(self, context)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.embed_scale is not None and (inputs_embeds is None or self.scale_inputs):
            x = x * jnp.asarray(self.embed_scale, x.dtype)  # rounded to the dtype, as the checkpoint was trained
        x = x if self.project_in is None else self.project_in(x)
        x = x if self.embed_positions is None else x + self.embed_positions(context).astype(x.dtype)
        x = x if self.embed_norm is None else self.embed_norm(x)
        x = dropout(x, self.dropout, context, 3)
        if self.per_layer is not None:
            context = context.replace(by_layer=self.per_layer(input_ids, x))
        if self.shared:
            context = context.replace(shared=(self.shared, x))
        if self.alibi is not None:
            context = context.replace(bias=self.alibi(context, cached=cache is not None))
        positions, limit = context.position_ids, getattr(self.config, "max_position_embeddings", 0)
        width = lambda name: self.head_dim if isinstance(self.head_dim, int) else self.head_dim[name]
        tables = {name: rope_table(p, width(name), limit, positions) for name, p in self.rope.items()}
        x, cache, trace = fold(self.layers, x, context.replace(rope=tables), cache)
        x = x if self.norm is None else self.norm(x)
        x = x if self.project_out is None else self.project_out(x)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return Output(last_hidden_state=x, cache=cache, **trace)


@max_positions.register(Decoder)
def _(model: Decoder) -> int | None:
    table = model.embed_positions
    return shape_of(table.weight)[0] - table.offset if isinstance(table, LearnedPositions) else None
