"""What decoders of recurrent and attention layers say in the same words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ..config.fields import CommonFields, LlamaFields, Size, head_dim, rope
from ..core.frozen import Frozen
from ..names.rules import Rule, rename
from ..nn import (
    Block,
    Decoder,
    Experts,
    GatedAttention,
    GatedDeltaNet,
    GatedMLP,
    Linear,
    Mamba2Mixer,
    RecurrentBlock,
    RMSNorm,
    Router,
    ShortConv,
    SparseMoE,
)
from .decoders import attention, check_layer_types, decoder, norm as config_norm
from .mixtures import per_expert


def mixer_is(name: str) -> Rule:
    """The name that a family's files give the `mixer` of a `RecurrentBlock`."""
    return rename("{rest}.mixer.{tail}", "{rest}." + name + ".{tail}")


def kinds_of_layers(config: Any, kinds: Sequence[str], derived: Callable[[int], str]) -> tuple[str, ...]:
    """The kind of each layer: `layer_types`, or what is `derived` of its number.

    Raises `ValueError` for another number of layers, and for a kind that is none of `kinds`.
    """
    found = config.layer_types or tuple(derived(i) for i in range(config.num_hidden_layers))
    check_layer_types(config, found, kinds)
    return tuple(found)


def hybrid_decoder(
    config: Any,
    kinds: Sequence[str],
    mixers: Mapping[str, Callable[[], Any]],
    mlp: Callable[[int], Any],
    norm: Callable[[], Any] | None = None,
    *,
    residual: float = 1.0,
    **own: Any,
) -> Decoder:
    """The decoder of pre-norm layers of several kinds: `mixers` makes the first part of a layer of each kind, attention where
    that is `full_attention`, and `mlp` the second, of its number. `own` are further arguments of `decoders.decoder`."""
    normed = norm or (lambda: config_norm(config))

    def block(i: int) -> Block | RecurrentBlock:
        layer = Block if kinds[i] == "full_attention" else RecurrentBlock
        return layer(mixers[kinds[i]](), mlp(i), normed(), normed(), residual=residual)

    return decoder(config, block, normed(), **own)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaFields(CommonFields):
    """The keys of Qwen's decoders of gated delta nets; `layer_types`, or else `full_attention_interval`, says which attend."""

    unsaid: ClassVar[tuple[str, ...]] = ("full_attention_interval",)
    vocab_size: Size = 248320
    hidden_size: Size = 2048
    num_hidden_layers: int
    num_attention_heads: Size = 16
    num_key_value_heads: Size = 2
    head_dim: Size = 256
    hidden_act: str = "silu"
    max_position_embeddings: Size = 32768
    rms_norm_eps: float = 1e-6
    rope_parameters: Frozen = rope(partial_rotary_factor=0.25)
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    full_attention_interval: Size = 4
    layer_types: tuple[str, ...] | None = None
    linear_conv_kernel_dim: Size = 4
    linear_key_head_dim: Size = 128
    linear_value_head_dim: Size = 128
    linear_num_key_heads: Size = 16
    linear_num_value_heads: Size = 32
    tie_word_embeddings: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedExpertFields(DeltaFields):
    """`DeltaFields` with experts beside one that answers every token."""

    moe_intermediate_size: Size = 512
    shared_expert_intermediate_size: Size = 512
    num_experts: int
    num_experts_per_tok: Size
    router_aux_loss_coef: float = 0.001


def qwen_delta(config: Any, **own: Any) -> GatedDeltaNet:
    """The gated delta net of a config with Qwen's keys."""
    c = config
    return GatedDeltaNet(
        c.hidden_size,
        key_heads=c.linear_num_key_heads,
        value_heads=c.linear_num_value_heads,
        key_dim=c.linear_key_head_dim,
        value_dim=c.linear_value_head_dim,
        kernel=c.linear_conv_kernel_dim,
        act=c.hidden_act,
        eps=c.rms_norm_eps,
        **own,
    )


def qwen_hybrid(config: Any, mlp: Callable[[int], Any], *, projections: str, **own: Any) -> Decoder:
    """Qwen's decoder of gated delta nets with gated attention at every fourth layer; `mlp` makes that of a layer's number.
    `own` are further arguments of `decoders.decoder`."""
    c = config
    norm = lambda dim=c.hidden_size: RMSNorm(dim, c.rms_norm_eps, offset=1.0)
    derived = lambda i: "linear_attention" if (i + 1) % c.full_attention_interval else "full_attention"
    gated = lambda: GatedAttention(
        c.hidden_size,
        c.num_attention_heads,
        c.num_key_value_heads,
        c.head_dim,
        qk_norm=norm(c.head_dim),
        bias=c.attention_bias,
        dropout=c.attention_dropout,
    )
    delta = lambda: qwen_delta(c, projections=projections)
    kinds = kinds_of_layers(c, ("linear_attention", "full_attention"), derived)
    return hybrid_decoder(
        c, kinds, {"full_attention": gated, "linear_attention": delta}, mlp, norm, partial=True, **own
    )


def text_rope(data: dict[str, Any]) -> dict[str, Any]:
    """Without what tells the axes of image positions apart, which are alike for text: `mrope_section`, `mrope_interleaved`."""
    found = dict(data)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(found.get(name), dict):
            found[name] = {k: v for k, v in found[name].items() if k not in ("mrope_section", "mrope_interleaved")}
    return found


def shared_expert_moe(config: Any) -> SparseMoE:
    """Experts beside one that answers every token, as much as a gate says."""
    c = config
    return SparseMoE(
        Router(c.hidden_size, c.num_experts, c.num_experts_per_tok, normalize=getattr(c, "norm_topk_prob", True)),
        Experts(c.num_experts, c.hidden_size, c.moe_intermediate_size, c.hidden_act),
        shared_experts=GatedMLP(c.hidden_size, c.shared_expert_intermediate_size, c.hidden_act),
        shared_expert_gate=Linear(c.hidden_size, 1, axes=(None, "embed")),
    )


EXPERT_NAMES = (*per_expert(), rename("{rest}.shared_experts.{tail}", "{rest}.shared_expert.{tail}"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lfm2Fields(CommonFields):
    """The keys of Liquid AI's decoders."""

    vocab_size: Size = 65536
    hidden_size: Size = 2560
    num_hidden_layers: int = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size = 8
    head_dim: Size | None = None
    max_position_embeddings: Size = 128000
    norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(1000000.0)
    conv_bias: bool = False
    conv_L_cache: Size = 3
    tie_word_embeddings: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        if "tie_embedding" in data:  # the first files' word; it wins
            data = {**data, "tie_word_embeddings": data.pop("tie_embedding")}
        return data


def lfm2_decoder(config: Any, kinds: Sequence[str], mlp: Callable[[int], Any]) -> Decoder:
    """Liquid AI's decoder of short convolutions and attention; `mlp` makes that of a layer's number."""
    c = config
    norm = lambda dim=c.hidden_size: RMSNorm(dim, c.norm_eps)
    mixers = {
        "full_attention": lambda: attention(c, dropout=0.0, qk_norm=norm(head_dim(c))),
        "conv": lambda: ShortConv(c.hidden_size, c.conv_L_cache, c.conv_bias),
    }
    return hybrid_decoder(c, kinds, mixers, mlp, norm)


_FEED = "{rest}.feed_forward."
LFM2_NAMES = (
    *per_expert("w1", "w3", "w2", theirs="feed_forward"),
    mixer_is("conv"),
    rename("{tail}.mlp.experts.{rest}", "{tail}.feed_forward.experts.{rest}"),
    rename("{rest}.mlp.gate.e_score_correction_bias", _FEED + "expert_bias"),
    rename("{tail}.mlp.gate.{rest}", "{tail}.feed_forward.gate.{rest}"),
    rename("{rest}.mlp.gate_proj.{tail}", _FEED + "w1.{tail}"),
    rename("{rest}.mlp.up_proj.{tail}", _FEED + "w3.{tail}"),
    rename("{rest}.mlp.down_proj.{tail}", _FEED + "w2.{tail}"),
    rename("{rest}.self_attn.o_proj.{tail}", "{rest}.self_attn.out_proj.{tail}"),
    rename("{rest}.self_attn.q_norm.{tail}", "{rest}.self_attn.q_layernorm.{tail}"),
    rename("{rest}.self_attn.k_norm.{tail}", "{rest}.self_attn.k_layernorm.{tail}"),
    rename("{rest}.input_layernorm.{tail}", "{rest}.operator_norm.{tail}"),
    rename("{rest}.post_attention_layernorm.{tail}", "{rest}.ffn_norm.{tail}"),
    rename("model.norm.{tail}", "model.embedding_norm.{tail}"),
    rename("norm.{tail}", "embedding_norm.{tail}"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaFields(LlamaFields):
    """The keys of a decoder with Mamba-2's state space, beside attention or in its place."""

    attention_bias: bool = False
    mamba_n_heads: Size = 128
    mamba_d_head: str | int = "auto"
    mamba_n_groups: Size = 1
    mamba_d_state: Size = 256
    mamba_d_conv: Size = 4
    mamba_expand: Size = 2
    mamba_chunk_size: Size = 256
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: tuple[float, float] = (0.0, math.inf)


def mamba_width(config: Any) -> int:
    """The channels of the state space: `mamba_d_ssm`, or the hidden size expanded; heads divide them.

    Raises `ValueError` where `mamba_n_heads` and `mamba_d_head` say otherwise.
    """
    c = config
    inner = getattr(c, "mamba_d_ssm", None) or int(c.mamba_expand * c.hidden_size)
    heads = c.mamba_n_heads
    if inner % heads or c.mamba_d_head not in ("auto", inner // heads):
        raise ValueError(
            f"{c.model_type}: mamba_n_heads={heads} of mamba_d_head={c.mamba_d_head} are not the {inner} channels that "
            "mamba_expand (or mamba_d_ssm) and hidden_size say"
        )
    return inner


def mamba2_mixer(config: Any, norm: Any, **more: Any) -> Mamba2Mixer:
    """The state space that a hybrid's `mamba_*` keys describe."""
    c = config
    return Mamba2Mixer(
        c.hidden_size,
        heads=c.mamba_n_heads,
        head_dim=mamba_width(c) // c.mamba_n_heads,
        state=c.mamba_d_state,
        groups=c.mamba_n_groups,
        kernel=c.mamba_d_conv,
        chunk=c.mamba_chunk_size,
        bias=c.mamba_proj_bias,
        conv_bias=c.mamba_conv_bias,
        act=c.hidden_act,
        norm=norm,
        limit=c.time_step_limit,
        **more,
    )
