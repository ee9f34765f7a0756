"""Gemma 4, text (Google DeepMind 2026): Gemma 3 with wider heads and values from keys on global layers. The E models add
embeddings for each layer and let the last layers read earlier ones' keys; the expert models add experts beside the MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    attend,
    attend_to,
    declare,
    empty_kv,
    hands_on,
    layer_cache,
    merge_heads,
    rotate,
    split_heads,
)
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


class SharingAttention(eqx.Module):
    """Attention with a norm of each head of queries, keys and values, whose scores are not scaled; without a `v_proj` values
    are the keys before norm and rotation.

    `gives`: later layers of the kind `rope` read its keys and values. A layer without a `k_proj` is one of those: it has
    queries only, and keeps nothing in a cache.
    """

    q_proj: Linear
    k_proj: Linear | None
    v_proj: Linear | None
    o_proj: Linear
    q_norm: RMSNorm
    k_norm: RMSNorm | None
    v_norm: RMSNorm | None
    heads: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    window: int | None = eqx.field(static=True)
    rope: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    gives: bool = eqx.field(static=True)

    def __init__(
        self, c: Gemma4TextConfig, kind: str, window: int | None, head_dim: int, groups: int, sharing: str | None
    ) -> None:
        if c.num_attention_heads % groups:
            raise ValueError(
                f"gemma4_text: num_attention_heads={c.num_attention_heads} is no multiple of num_key_value_heads={groups}"
            )
        self.heads, self.groups, self.head_dim = c.num_attention_heads, groups, head_dim
        wide = lambda heads, axis: Linear(c.hidden_size, heads * head_dim, c.attention_bias, axes=(axis, "embed"))
        norm = lambda affine=True: RMSNorm(head_dim, c.rms_norm_eps, affine=affine)
        own = sharing != "reuse"
        self.q_proj, self.q_norm = wide(self.heads, "heads"), norm()
        self.k_proj, self.k_norm = (wide(groups, "kv_heads"), norm()) if own else (None, None)
        self.v_proj = wide(groups, "kv_heads") if own and not (c.attention_k_eq_v and window is None) else None
        self.v_norm = norm(affine=False) if own else None
        self.o_proj = Linear(self.heads * head_dim, c.hidden_size, c.attention_bias, axes=("embed", "heads"))
        self.window, self.rope, self.dropout = window, kind, c.attention_dropout or 0.0
        self.gives = sharing == "store"

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, Any, Any]:
        """Also returns what later layers read: keys, values and their mask, by the kind of layer; `None` for nothing."""
        assert context.rope is not None
        q = rotate(self.q_norm(split_heads(self.q_proj(x), self.heads)), context.rope[self.rope])
        if self.k_proj is None:
            assert context.handed_on is not None
            keys, values, mask = context.handed_on[self.rope]
        else:
            assert self.k_norm is not None and self.v_norm is not None
            k = split_heads(self.k_proj(x), self.groups)
            v = self.v_norm(k if self.v_proj is None else split_heads(self.v_proj(x), self.groups))
            k = rotate(self.k_norm(k), context.rope[self.rope])
            cache, keys, values, mask = attend_to(cache, k, v, context, self.window)
        out, weights = attend(
            q,
            keys,
            values,
            mask,
            scale=1.0,
            runtime=context.runtime,
            weights=context.wants("attentions"),
            dropout_rate=self.dropout,
            key=None if context.key is None else jax.random.fold_in(context.key, 0),
        )
        given = {self.rope: (keys, values, mask)} if self.gives else None
        return self.o_proj(merge_heads(out)), cache, weights, given


@layer_cache.register(SharingAttention)
def _(layer: SharingAttention, batch_size: int, max_length: int, dtype: Any) -> Any:
    if layer.k_proj is None:
        return None
    return empty_kv(batch_size, layer.groups, layer.head_dim, max_length, layer.window, dtype)


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
        self.embed_tokens_per_layer = Embedding(c.vocab_size_per_layer_input, wide, axes=("vocab", None))
        self.per_layer_model_projection = Linear(c.hidden_size, wide, axes=(None, "embed"))
        self.per_layer_projection_norm = RMSNorm(self.width, c.rms_norm_eps)

    def __call__(self, input_ids: jax.Array | None, x: jax.Array) -> jax.Array:
        if input_ids is None:
            raise ValueError(
                "this Gemma 4 looks up something for each layer by the id of a token: give input_ids, not inputs_embeds"
            )
        apart = lambda h: h.reshape(*h.shape[:-1], -1, self.width)
        looked_up = self.embed_tokens_per_layer(input_ids)
        looked_up = apart(looked_up * jnp.asarray(self.width**0.5, looked_up.dtype))
        made = self.per_layer_model_projection(x) * jnp.asarray(x.shape[-1] ** -0.5, x.dtype)
        both = (self.per_layer_projection_norm(apart(made)) + looked_up) * jnp.asarray(2**-0.5, x.dtype)
        return jnp.moveaxis(both, 2, 1)


def sharing(c: Gemma4TextConfig, kinds: Sequence[str]) -> list[str | None]:
    """Of every layer whether it reads another's keys (`reuse`): the last layers do, each those of the last layer of its kind
    before them (`store`)."""
    first = c.num_hidden_layers - c.num_kv_shared_layers
    if not c.num_kv_shared_layers:
        return [None] * len(kinds)
    if first < 1 or set(kinds[first:]) - set(kinds[:first]):
        raise ValueError(
            f"gemma4_text: num_kv_shared_layers={c.num_kv_shared_layers}: before the last layers there must be one of each "
            f"of their kinds, and there are {', '.join(kinds[: max(first, 0)]) or 'none'}"
        )
    stores = {max(i for i in range(first) if kinds[i] == kind) for kind in set(kinds[first:])}
    return ["reuse" if i >= first else "store" if i in stores else None for i in range(len(kinds))]


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
        return Gemma4Block(c, SharingAttention(c, kinds[i], windows[i], dim, groups, modes[i]))

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
