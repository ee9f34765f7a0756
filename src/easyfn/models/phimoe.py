"""Phi-3.5-MoE (Abdin et al. 2024, arXiv 2404.14219): LayerNorms, and two experts chosen one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.config import only
from ..config.fields import LlamaFields, Size, head_dim, rope
from ..core.frozen import Frozen
from ..core.weight import Slot, Weight, dot, slots
from ..names.rules import rename
from ..nn import Block, Decoder, Experts, LayerNorm, Routing, Runtime, SparseMoE, declare, experts_per_token
from ..nn.parallel.experts import by_token
from .decoders import attention, decoder_family
from .mixtures import module, per_expert


@dataclass(frozen=True, kw_only=True)
class PhimoeConfig(LlamaFields):
    """The keys of a Phi-3.5-MoE `config.json`. `router_jitter_noise` bounds how far from the best a score still counts."""

    model_type: ClassVar[str] = "phimoe"
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(1000000.0)
    sliding_window: Size | None = None
    num_local_experts: Size = 16
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.01
    input_jitter_noise: float = 0.0
    attention_bias: bool = False
    lm_head_bias: bool = False
    ignored: ClassVar[tuple[str, ...]] = ("num_experts_per_tok", "original_max_position_embeddings")

    @property
    def rope_bound(self) -> int | None:
        """The number of tokens beyond which a cache of fewer is of no use, as for Phi-3: here they are scaled by another
        number, where the file says two."""
        said = self.rope_parameters
        if said.get("rope_type") != "longrope" or said.get("short_mscale") == said.get("long_mscale"):
            return None
        return said.get("original_max_position_embeddings")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "num_experts_per_tok", 2)  # as transformers routes, whatever is said
        said = data.get("rope_parameters") or data.get("rope_scaling") or {}
        kind = said.get("rope_type") or said.get("type") or "default"
        if kind not in ("default", "longrope", "su"):
            raise ValueError(f"config.json: phimoe has the rope_type 'default' or 'longrope', not {kind!r}")
        return data

    @staticmethod
    def denormalize(data: dict[str, Any]) -> dict[str, Any]:
        if (trained := data["rope_parameters"].get("original_max_position_embeddings")) is not None:
            data["original_max_position_embeddings"] = trained
        return data


class SparseMixer(eqx.Module):
    """The router of Liu et al. 2024 (arXiv 2409.12136): the best expert, weighed among those that are nearly as good, and
    then the best of the others in the same way. Weights of the two do not add up to 1.

    While training, transformers draws the experts; here they are the best ones then too, and the gradient is plain.
    """

    weight: Weight
    jitter: float = eqx.field(static=True)

    def __call__(self, x: jax.Array, runtime: Runtime = Runtime()) -> Routing:
        logits = dot(self.weight, x)
        return Routing(logits, *by_token(lambda scores: _two(scores.astype(jnp.float32), self.jitter), logits, runtime))


def _two(scores: jax.Array, jitter: float) -> tuple[jax.Array, jax.Array]:
    weights, chosen, left = [], [], scores
    for _ in range(2):
        best = jnp.argmax(left, axis=-1, keepdims=True)
        top = jnp.take_along_axis(left, best, axis=-1)
        far = (top - scores) / jnp.maximum(jnp.abs(scores), top) > 2 * jitter
        among = jax.nn.softmax(jnp.where(far, -jnp.inf, left), axis=-1)
        weights.append(jnp.take_along_axis(among, best, axis=-1))
        chosen.append(best)
        left = jnp.where(jax.nn.one_hot(best[..., 0], scores.shape[-1], dtype=bool), -jnp.inf, left)
    return jnp.concatenate(weights, axis=-1), jnp.concatenate(chosen, axis=-1)


@slots.register(SparseMixer)
def _(router: SparseMixer) -> dict[str, Slot]:
    return {"weight": Slot("router", (None, "embed"))}


@experts_per_token.register(SparseMixer)
def _(router: SparseMixer) -> int:
    return 2


def phimoe(c: PhimoeConfig) -> Decoder:
    """The decoder: pre-norm blocks, with LayerNorm, of attention and two experts a token."""
    norm = lambda: LayerNorm(c.hidden_size, c.rms_norm_eps)
    positions = dict(c.rope_parameters)
    if positions.get("short_factor") is not None:  # transformers takes no other for this family, however long a text is
        positions["long_factor"] = positions["short_factor"]

    def block() -> Block:
        bias, count = c.attention_bias, c.num_local_experts
        return Block(
            attention(c, qkv_bias=bias, out_bias=bias, window=c.sliding_window),
            SparseMoE(
                SparseMixer(declare(count, c.hidden_size), c.router_jitter_noise),
                Experts(count, c.hidden_size, c.intermediate_size, c.hidden_act),
                jitter=c.input_jitter_noise,
            ),
            norm(),
            norm(),
        )

    layers = [block() for _ in range(c.num_hidden_layers)]
    return Decoder(c, layers, norm(), head_dim=head_dim(c), rope={"default": positions})


decoder_family(
    "Phimoe",
    PhimoeConfig,
    phimoe,
    head={"bias": lambda c: c.lm_head_bias},
    names=(
        *per_expert("w1", "w3", "w2", theirs="block_sparse_moe"),
        rename("{rest}layers.{i}.mlp.gate.weight", "{rest}layers.{i}.block_sparse_moe.gate.weight"),
        *module("mlp.gate", "mlp.router"),
    ),
)
