"""Switch Transformers (Fedus et al. 2021, arXiv 2101.03961): T5 with layers in which each token goes to one expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.config import only
from ..config.fields import Size
from ..names.rules import experts, rename
from ..nn import T5MLP, Context, Linear, PlainExperts, experts_per_token
from .text_to_text import T5Fields, text_to_text_family
from .translation import one_table


@dataclass(frozen=True, kw_only=True)
class SwitchTransformersConfig(T5Fields):
    """The keys of a Switch Transformer's `config.json`."""

    model_type: ClassVar[str] = "switch_transformers"
    unsaid: ClassVar[tuple[str, ...]] = ("classifier_dropout",)
    d_model: Size = 768
    num_layers: Size = 12
    num_decoder_layers: Size | None = 12
    num_heads: Size = 12
    dense_act_fn: str = "relu"
    num_experts: Size = 8
    expert_capacity: int = 64
    num_sparse_encoder_layers: int = 3
    num_sparse_decoder_layers: int = 3
    encoder_sparse_step: int | None = None
    decoder_sparse_step: int | None = None
    router_bias: bool = False
    router_jitter_noise: float | int = 0.01
    router_z_loss_coef: float = 0.001
    router_aux_loss_coef: float = 0.001

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "router_dtype", "float32")
        return data


class SwitchMLP(eqx.Module):
    """The expert that scores best answers a token, times its probability (equation 2); and the logits of all experts.

    An expert answers the first `capacity` tokens that choose it in each row of a pass, and adds nothing to the others
    (section 2.2). Padding takes no room. In training noise from `1 - jitter` to `1 + jitter` multiplies what is scored.
    """

    classifier: Linear
    experts: PlainExperts
    capacity: int = eqx.field(static=True)
    jitter: float = eqx.field(static=True)

    def __init__(self, config: SwitchTransformersConfig) -> None:
        c = config
        self.classifier = Linear(c.d_model, c.num_experts, c.router_bias, axes=(None, "embed"), role="router", std=1.0)
        self.experts = PlainExperts(c.num_experts, c.d_model, c.d_ff, c.dense_act_fn)
        self.capacity = c.expert_capacity
        self.jitter = c.router_jitter_noise

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        scored = x.astype(jnp.float32)
        if self.jitter and context.key is not None:
            noise = jax.random.uniform(jax.random.fold_in(context.key, 17), x.shape, minval=-1.0, maxval=1.0)
            scored = scored * (1.0 + self.jitter * noise)
        logits = self.classifier(scored)
        probabilities = jax.nn.softmax(logits, axis=-1)
        chosen = jnp.argmax(probabilities, axis=-1, keepdims=True)
        here = jax.nn.one_hot(chosen[..., 0], logits.shape[-1], dtype=jnp.int32) * (context.segment_ids > 0)[..., None]
        turn = jnp.take_along_axis(jnp.cumsum(here, axis=1), chosen, axis=-1)  # 1 for the first that chose this expert
        best = jnp.take_along_axis(probabilities, chosen, axis=-1)
        y = self.experts(x, chosen, jnp.where(turn <= self.capacity, best, 0.0), context.runtime)
        return y, logits.reshape(-1, logits.shape[-1]) if context.wants("router_logits") else None


@experts_per_token.register(SwitchMLP)
def _(mlp: SwitchMLP) -> int:
    return 1


def switch_mlp(c: SwitchTransformersConfig, number: int, decoder: bool) -> SwitchMLP | T5MLP:
    """The MLP of a layer: experts in every `step`th, beginning with the second, a dense one in the others."""
    said, sparse, depth = (
        (c.decoder_sparse_step, c.num_sparse_decoder_layers, c.num_decoder_layers or c.num_layers)
        if decoder
        else (c.encoder_sparse_step, c.num_sparse_encoder_layers, c.num_layers)
    )
    step = said if said is not None else depth // sparse if sparse else depth
    is_sparse = step == 1 or (step > 0 and number % step == 1)
    return SwitchMLP(c) if is_sparse else T5MLP(c, c.dense_act_fn)


_OURS, _THEIRS = "{rest}.DenseReluDense", "{rest}.mlp"

text_to_text_family(
    "SwitchTransformers",
    SwitchTransformersConfig,
    scale=lambda c: c.tie_word_embeddings,
    mlps=switch_mlp,
    settle=one_table,
    layers=[
        experts(f"{_OURS}.experts.up_proj", f"{_THEIRS}.experts.expert_{{e}}.wi.weight", modules=True),
        experts(f"{_OURS}.experts.down_proj", f"{_THEIRS}.experts.expert_{{e}}.wo.weight", modules=True),
        rename(f"model.{_OURS}.classifier.{{tail}}", f"{_THEIRS}.router.classifier.{{tail}}"),
        rename(f"{_OURS}.classifier.{{tail}}", f"{_THEIRS}.router.classifier.{{tail}}"),
        rename(f"model.{_OURS}.{{tail}}", f"{_THEIRS}.{{tail}}"),
        rename(f"{_OURS}.{{tail}}", f"{_THEIRS}.{{tail}}"),
    ],
    # Of these transformers reads nothing either.
    ignore=(
        "router_dtype",
        "router_ignore_padding_tokens",
        "add_router_probs",
        "router_type",
        "batch_prioritized_routing",
        "feed_forward_proj",
        "add_cross_attention",
    ),
)
