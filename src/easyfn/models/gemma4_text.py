"""Gemma 4, text (Google DeepMind 2026): Gemma 3 with wider heads and values from keys on global layers. The E models add
embeddings for each layer and let the last layers read earlier ones' keys; the expert models add experts beside the MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.config import only
from ..config.fields import DecoderFields, Size, rope
from ..core.frozen import Frozen
from ..core.weight import Slot, Weight, dense, slots
from ..names.rules import rename
from ..nn import (
    Context,
    Decoder,
    Embedding,
    Experts,
    GatedMLP,
    Linear,
    RMSNorm,
    ScaledRouter,
    activation,
    along_last,
    declare,
    hands_on,
)
from ..nn.attention.sharing import SharingAttention, sharing
from ..nn.linear import pad_token
from .decoders import alternate, decoder_family, layer_windows


@dataclass(frozen=True, kw_only=True)
class Gemma4TextConfig(DecoderFields):
    """The keys of a Gemma 4 text `config.json`. `per_layer_config` has what differs of a layer, by its number.

    Refused by name: attention in both directions.
    """

    model_type: ClassVar[str] = "gemma4_text"
    num_key_value_heads: Size = 4
    head_dim: Size = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: Size = 131072
    rope_parameters: Frozen = Frozen(
        sliding_attention=rope(10000.0),
        full_attention={"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    )
    attention_bias: bool = False
    attention_k_eq_v: bool = False
    sliding_window: Size = 512
    layer_types: tuple[str, ...] | None = None
    per_layer_config: Frozen | None = None
    final_logit_softcapping: float | int | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    vocab_size_per_layer_input: Size = 262144
    hidden_size_per_layer_input: int = 256
    num_kv_shared_layers: int = 0
    use_double_wide_mlp: bool = False
    enable_moe_block: bool = False
    num_experts: Size | None = None
    top_k_experts: Size | None = None
    moe_intermediate_size: Size | None = None

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        data = dict(data)
        only(data, "use_bidirectional_attention", "vision")  # of images, which the text model has none of
        wide, groups = data.pop("global_head_dim", 512), data.pop("num_global_key_value_heads", None)
        if "num_hidden_layers" in data:
            kinds = list(data.get("layer_types") or alternate(data["num_hidden_layers"], 6))
            data["layer_types"] = [*kinds[:-1], "full_attention"]
            if data.get("per_layer_config") is None:
                own = {"head_dim": wide}
                if groups is not None and data.get("attention_k_eq_v"):
                    own["num_key_value_heads"] = groups
                data["per_layer_config"] = {str(i): own for i, k in enumerate(data["layer_types"]) if k[0] == "f"}
        if data.get("rope_parameters") is None:
            data["rope_parameters"] = {**Gemma4TextConfig.rope_parameters}
        return data


class ExpertsBeside(eqx.Module):
    """Experts that read what the MLP reads before its norm; each of both answers has a norm before they are added."""

    router: ScaledRouter
    experts: Experts
    pre_feedforward_layernorm_2: RMSNorm
    post_feedforward_layernorm_1: RMSNorm
    post_feedforward_layernorm_2: RMSNorm

    def __init__(self, c: Gemma4TextConfig) -> None:
        if c.num_experts is None or c.top_k_experts is None or c.moe_intermediate_size is None:
            raise ValueError("gemma4_text: enable_moe_block needs num_experts, top_k_experts and moe_intermediate_size")
        self.router = ScaledRouter(c.hidden_size, c.num_experts, c.top_k_experts, c.rms_norm_eps)
        self.experts = Experts(c.num_experts, c.hidden_size, c.moe_intermediate_size, c.hidden_activation)
        self.pre_feedforward_layernorm_2, self.post_feedforward_layernorm_1, self.post_feedforward_layernorm_2 = (
            RMSNorm(c.hidden_size, c.rms_norm_eps) for _ in range(3)
        )

    def __call__(self, x: jax.Array, answer: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        """`x` is the hidden state and `answer` what the MLP made of it."""
        routing = self.router(x, context.runtime)
        y = self.experts(self.pre_feedforward_layernorm_2(x), routing.chosen, routing.weights, context.runtime)
        y = self.post_feedforward_layernorm_1(answer) + self.post_feedforward_layernorm_2(y)
        logits = routing.logits
        return y, logits.reshape(-1, logits.shape[-1]) if context.wants("router_logits") else None


class LayerInput(eqx.Module):
    """`x + norm(projection(act(gate(x)) * own))`, where `own` is what the layer is given for each token."""

    per_layer_input_gate: Linear
    per_layer_projection: Linear
    post_per_layer_input_norm: RMSNorm
    act: str = eqx.field(static=True)

    def __init__(self, c: Gemma4TextConfig) -> None:
        width = c.hidden_size_per_layer_input
        self.per_layer_input_gate = Linear(c.hidden_size, width, axes=(None, "embed"))
        self.per_layer_projection = Linear(width, c.hidden_size, axes=("embed", None))
        self.post_per_layer_input_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.act = c.hidden_activation

    def __call__(self, x: jax.Array, own: jax.Array) -> jax.Array:
        h = activation(self.act)(self.per_layer_input_gate(x)) * own.astype(x.dtype)
        return x + self.post_per_layer_input_norm(self.per_layer_projection(h))


class Gemma4Block(eqx.Module):
    """Norms around attention and MLP, experts beside the MLP and a layer's own input where there are such; all of it times
    `layer_scalar`, a buffer of shape `(1,)`."""

    self_attn: SharingAttention
    mlp: GatedMLP
    input_layernorm: RMSNorm
    post_attention_layernorm: RMSNorm
    pre_feedforward_layernorm: RMSNorm
    post_feedforward_layernorm: RMSNorm
    layer_scalar: Weight
    beside: ExpertsBeside | None
    own: LayerInput | None

    def __init__(self, c: Gemma4TextConfig, attention: SharingAttention) -> None:
        norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps)
        wider = 2 if c.use_double_wide_mlp and attention.k_proj is None else 1
        self.self_attn = attention
        self.mlp = GatedMLP(c.hidden_size, wider * c.intermediate_size, c.hidden_activation)
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()
        self.layer_scalar = declare(1)
        self.beside = ExpertsBeside(c) if c.enable_moe_block else None
        self.own = LayerInput(c) if c.hidden_size_per_layer_input else None

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h, cache, attentions, given = self.self_attn(self.input_layernorm(x), context, cache)
        x = x + self.post_attention_layernorm(h)
        h, router_logits = self.mlp(self.pre_feedforward_layernorm(x), context), None
        if self.beside is not None:
            h, router_logits = self.beside(x, h, context)
        x = x + self.post_feedforward_layernorm(h)
        if self.own is not None:
            assert context.by_layer is not None
            x = self.own(x, context.by_layer)
        x = x * along_last(dense(self.layer_scalar).astype(x.dtype), x)
        return x, cache, {"attentions": attentions, "router_logits": router_logits, "handed_on": given}


@slots.register(Gemma4Block)
def _(block: Gemma4Block) -> dict[str, Slot]:
    return {"layer_scalar": Slot("buffer", (None,), "ones")}


@hands_on.register(Gemma4Block)
def _(block: Gemma4Block) -> bool:
    return block.self_attn.gives or block.self_attn.k_proj is None


class LayerInputs(eqx.Module):
    """What every layer is given for each token: a table's row for its id, and a projection of its embedding."""

    embed_tokens_per_layer: Embedding
    per_layer_model_projection: Linear
    per_layer_projection_norm: RMSNorm
    width: int = eqx.field(static=True)

    def __init__(self, c: Gemma4TextConfig) -> None:
        self.width = c.hidden_size_per_layer_input
        wide = c.num_hidden_layers * self.width
        self.embed_tokens_per_layer = Embedding(
            c.vocab_size_per_layer_input, wide, axes=("vocab", None), padding=pad_token(c)
        )
        self.per_layer_model_projection = Linear(c.hidden_size, wide, axes=(None, "embed"))
        self.per_layer_projection_norm = RMSNorm(self.width, c.rms_norm_eps)

    def __call__(self, input_ids: jax.Array | None, x: jax.Array) -> jax.Array:
        if input_ids is None:
            raise ValueError(
                "this Gemma 4 looks up something for each layer by the id of a token: give input_ids, not inputs_embeds. "
                "(transformers compares every vector with the whole table and raises where none is equal bit for bit, which "
                "a compiled function cannot; vectors of no token, as of a soft prompt, run in neither)"
            )
        apart = lambda h: h.reshape(*h.shape[:-1], -1, self.width)
        looked_up = self.embed_tokens_per_layer(input_ids)
        looked_up = apart(looked_up * jnp.asarray(self.width**0.5, looked_up.dtype))
        made = self.per_layer_model_projection(x) * jnp.asarray(x.shape[-1] ** -0.5, x.dtype)
        both = (self.per_layer_projection_norm(apart(made)) + looked_up) * jnp.asarray(2**-0.5, x.dtype)
        return jnp.moveaxis(both, 2, 1)


def gemma4(c: Gemma4TextConfig) -> Decoder:
    """The decoder: queries, keys and values normed, scores not scaled, each layer multiplied by a number of its own."""
    kinds = c.layer_types or alternate(c.num_hidden_layers, 6)
    windows = layer_windows(c, kinds, c.sliding_window)
    modes = sharing(c, kinds)
    overrides: Mapping[str, Any] = c.per_layer_config or {}
    widths: dict[str, int] = {}

    def block(i: int) -> Gemma4Block:
        own = {"head_dim": c.head_dim, "num_key_value_heads": c.num_key_value_heads, **overrides.get(str(i), {})}
        dim = own.pop("head_dim")
        groups = own.pop("num_key_value_heads")
        if own or widths.setdefault(kinds[i], dim) != dim:
            raise ValueError(
                f"gemma4_text: per_layer_config of layer {i}: only head_dim, one for each kind of layer, and heads"
            )
        attention = SharingAttention(
            c, kinds[i], windows[i], modes[i], dim, groups, v_proj=not (c.attention_k_eq_v and windows[i] is None)
        )
        return Gemma4Block(c, attention)

    blocks = [block(i) for i in range(c.num_hidden_layers)]  # which fills the widths
    tables = {kind: c.rope_parameters[kind] for kind in sorted(set(kinds))}
    return Decoder(
        c,
        blocks,
        RMSNorm(c.hidden_size, c.rms_norm_eps),
        head_dim=widths,
        rope=tables,
        embed_scale=c.hidden_size**0.5,
        per_layer=LayerInputs(c) if c.hidden_size_per_layer_input else None,
    )


# The parts that are modules of ours only; transformers has what is in them beside the rest. Of the model with a head, of the
# base model and of one in `gemma4`.
PARTS = [
    rename(f"{base}{ours}.{{tail}}", f"{base}{theirs}{{tail}}")
    for base in ("{rest}.", "")
    for ours, theirs in (
        *((f"layers.{{i}}.{part}", "layers.{i}.") for part in ("beside", "own")),
        ("per_layer", ""),
    )
]


def without_shared_keys(c: Gemma4TextConfig) -> list[str]:
    """Patterns of tensors that nothing reads: keys and values of layers that read those of others."""
    modes = sharing(c, c.layer_types or alternate(c.num_hidden_layers, 6))
    shared = "|".join(str(i) for i, mode in enumerate(modes) if mode == "reuse")
    found = [r"rotary_emb\.", r"embed_scale$"]
    return [*found, rf"(^|\.)layers\.({shared})\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\."] if shared else found


decoder_family(
    None,
    Gemma4TextConfig,
    gemma4,
    head={"softcap": lambda c: c.final_logit_softcapping},
    architectures={"Gemma4ForCausalLM": "causal-lm", "Gemma4TextModel": "base"},
    names=PARTS,
    ignore=("use_bidirectional_attention",),
    ignore_tensors=without_shared_keys,
)
