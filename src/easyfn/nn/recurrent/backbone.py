"""A decoder of mixers alone: no attention, no MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import dense
from ..context import Context
from ..fold import fold
from ..heads import input_embeddings
from ..linear import Embedding
from ..norm import RMSNorm
from ..output import Output


class MixerBlock(eqx.Module):
    """`x + mixer(norm(x))`; the residual stream may be wider in dtype than the weights."""

    norm: RMSNorm
    mixer: Any

    def __init__(self, config: Any, mixer: Any) -> None:
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = mixer

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h, cache = self.mixer(self.norm(x.astype(dense(self.norm.weight).dtype)), context, cache)
        return x + h.astype(x.dtype), cache, {}


class MixerModel(eqx.Module):
    """Embeddings, blocks of what `mixer` makes, a final norm: the model of Mamba and Mamba-2."""

    embeddings: Embedding
    layers: tuple[Any, ...]
    norm_f: RMSNorm
    config: Any = eqx.field(static=True)

    def __init__(self, config: Any, mixer: Callable[[], Any]) -> None:
        self.embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.layers = tuple(MixerBlock(config, mixer()) for _ in range(config.num_hidden_layers))
        self.norm_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.config = config

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
    ) -> Output:
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        dtype = dense(self.norm_f.weight).dtype
        x = x.astype(jnp.float32 if self.config.residual_in_fp32 else dtype)
        out, cache, trace = fold(self.layers, x, context, cache)
        x = self.norm_f(out).astype(dtype)
        if context.wants("hidden_states"):  # as transformers lists them: what each layer gives, not what it takes
            trace["hidden_states"] = (*trace["hidden_states"][1:], out, x)
        return Output(last_hidden_state=x, cache=cache, **trace)


@input_embeddings.register(MixerModel)
def _(model: MixerModel) -> Embedding:
    return model.embeddings
