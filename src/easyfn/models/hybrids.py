"""What decoders of recurrent and attention layers say in the same words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..names.rules import Rule, rename
from ..nn import Block, Decoder, GatedAttention, GatedDeltaNet, RecurrentBlock, RMSNorm


def mixer_is(name: str) -> Rule:
    """The name that a family's files give the `mixer` of a `RecurrentBlock`."""
    return rename("{rest}.mixer.{tail}", "{rest}." + name + ".{tail}")


def kinds_of_layers(config: Any, kinds: Sequence[str], derived: Callable[[int], str]) -> tuple[str, ...]:
    """The kind of each layer: `layer_types`, or what is `derived` of its number.

    Raises `ValueError` for another number of layers, and for a kind that is none of `kinds`.
    """
    found = config.layer_types or tuple(derived(i) for i in range(config.num_hidden_layers))
    if len(found) != config.num_hidden_layers:
        raise ValueError(
            f"{config.model_type}: layer_types names {len(found)} layers and num_hidden_layers is "
            f"{config.num_hidden_layers}; change both together, or set layer_types to None to derive it"
        )
    if unknown := sorted(set(found) - set(kinds)):
        raise ValueError(
            f"{config.model_type}: layer_types holds {unknown[0]!r}; this family has {' and '.join(kinds)}"
        )
    return tuple(found)


def qwen_hybrid(config: Any, mlp: Callable[[int], Any], *, fused: bool) -> Decoder:
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
            fused=fused,
        )
        layers.append(RecurrentBlock(delta, mlp(i), norm(), norm()))
    return Decoder(c, layers, norm(), head_dim=c.head_dim, rope={"default": c.rope_parameters}, partial=True)
