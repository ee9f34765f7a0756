"""What decoders of recurrent and attention layers say in the same words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..names.rules import Rule, rename
from ..nn import (
    Attention,
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
from .decoders import check_layer_types
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


def qwen_hybrid(config: Any, mlp: Callable[[int], Any], *, projections: str) -> Decoder:
    """Qwen's decoder of gated delta nets with gated attention at every fourth layer; `mlp` makes that of a layer's number."""
    c = config
    norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps, offset=1.0)
    layers: list[Any] = []
    derived = lambda i: "linear_attention" if (i + 1) % c.full_attention_interval else "full_attention"
    for i, kind in enumerate(kinds_of_layers(c, ("linear_attention", "full_attention"), derived)):
        if kind == "full_attention":
            attention = GatedAttention(
                c.hidden_size,
                c.num_attention_heads,
                c.num_key_value_heads,
                c.head_dim,
                qk_norm=RMSNorm(c.head_dim, c.rms_norm_eps, offset=1.0),
                bias=c.attention_bias,
                dropout=c.attention_dropout,
            )
            layers.append(Block(attention, mlp(i), norm(), norm()))
            continue
        delta = GatedDeltaNet(
            c.hidden_size,
            key_heads=c.linear_num_key_heads,
            value_heads=c.linear_num_value_heads,
            key_dim=c.linear_key_head_dim,
            value_dim=c.linear_value_head_dim,
            kernel=c.linear_conv_kernel_dim,
            act=c.hidden_act,
            eps=c.rms_norm_eps,
            projections=projections,
        )
        layers.append(RecurrentBlock(delta, mlp(i), norm(), norm()))
    return Decoder(c, layers, norm(), head_dim=c.head_dim, rope={"default": c.rope_parameters}, partial=True)


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


def lfm2_decoder(config: Any, kinds: Sequence[str], mlp: Callable[[int], Any]) -> Decoder:
    """Liquid AI's decoder of short convolutions and attention; `mlp` makes that of a layer's number."""
    c = config
    head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
    norm = lambda: RMSNorm(c.hidden_size, c.norm_eps)
    layers: list[Any] = []
    for i, kind in enumerate(kinds):
        if kind == "conv":
            layers.append(RecurrentBlock(ShortConv(c.hidden_size, c.conv_L_cache, c.conv_bias), mlp(i), norm(), norm()))
            continue
        attention = Attention(
            c.hidden_size,
            c.num_attention_heads,
            c.num_key_value_heads,
            head_dim,
            qk_norm=RMSNorm(head_dim, c.norm_eps),
        )
        layers.append(Block(attention, mlp(i), norm(), norm()))
    return Decoder(c, layers, norm(), head_dim=head_dim, rope={"default": c.rope_parameters})


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
