"""Kimi Linear (Kimi Team 2025, arXiv 2510.26692): delta attention with channel decays, latent attention at every fourth
layer, without positions; experts in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import CommonFields, Size, alias
from ..core.frozen import Frozen
from ..names.rules import concatenated, rename
from ..nn import Decoder, KimiDeltaAttention
from .decoders import decoder_family
from .hybrids import hybrid_decoder, kinds_of_layers, mixer_is
from .mixtures import LatentFields, grouped, latent_attention, per_expert

NAMES = {  # of its own files
    "num_experts": "num_local_experts",
    "n_routed_experts": "num_local_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
    "num_expert_group": "n_group",
    "moe_renormalize": "norm_topk_prob",
    "model_max_length": "max_position_embeddings",
}


@dataclass(frozen=True, kw_only=True)
class KimiLinearConfig(LatentFields, CommonFields):
    """The keys of a Kimi Linear `config.json`. Without `layer_types` every fourth layer attends, from the fifth on; without
    `mlp_layer_types` the first is dense."""

    model_type: ClassVar[str] = "kimi_linear"
    n_routed_experts = alias("num_local_experts")
    vocab_size: Size = 163840
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    moe_intermediate_size: Size = 1024
    num_hidden_layers: int = 27
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 32
    n_shared_experts: Size = 1
    routed_scaling_factor: float | int = 2.446
    q_lora_rank: Size | None = None
    n_group: Size = 1
    topk_group: Size | None = 1
    num_experts_per_tok: Size | None = 8
    norm_topk_prob: bool = True
    hidden_act: str = "silu"
    max_position_embeddings: Size = 1048576
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_dropout: float | int | None = 0.0
    num_local_experts: Size = 256
    mlp_layer_types: tuple[str, ...] | None = None
    layer_types: tuple[str, ...] | None = None
    linear_head_dim: Size = 128
    linear_num_heads: Size = 32
    linear_conv_kernel_dim: Size = 4
    rope_parameters: ClassVar[Frozen] = Frozen(rope_type="default")
    ignored: ClassVar[tuple[str, ...]] = (
        # What these models always are, and what belongs to positions, of which they have none.
        *(
            "mla_use_nope",
            "use_grouped_topk",
            "moe_router_activation_func",
            "moe_layer_freq",
            "qk_head_dim",
            "head_dim",
        ),
        *("rope_theta", "rope_scaling", "rope_parameters", "num_nextn_predict_layers"),
    )

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "mla_use_nope", True)
        only(data, "moe_router_activation_func", "sigmoid")
        only(data, "moe_layer_freq", 1)
        for older, name in NAMES.items():
            if older in data:
                data[name] = data.pop(older)
        layers, linear = data.get("num_hidden_layers", 27), data.pop("linear_attn_config", None) or {}
        for ours, theirs in (
            ("head_dim", "head_dim"),
            ("num_heads", "num_heads"),
            ("conv_kernel_dim", "short_conv_kernel_size"),
        ):
            if theirs in linear:
                data[f"linear_{ours}"] = linear[theirs]
        if data.get("layer_types") is None and {"full_attn_layers", "kda_layers"} <= set(linear):  # counted from one
            attends = set(linear["full_attn_layers"])
            data["layer_types"] = ["full_attention" if i + 1 in attends else "linear_attention" for i in range(layers)]
        first = data.pop("first_k_dense_replace", None)
        if data.get("mlp_layer_types") is None and first is not None:
            data["mlp_layer_types"] = ["dense" if i < first else "sparse" for i in range(layers)]
        return data

    @staticmethod
    def denormalize(data: dict[str, Any]) -> dict[str, Any]:
        own = {name: older for older, name in NAMES.items() if older != "n_routed_experts"}
        return {own.get(name, name): value for name, value in data.items()}


def kimi_linear(c: KimiLinearConfig) -> Decoder:
    """The decoder: pre-norm blocks of one or the other attention, the first of them dense."""
    kinds = kinds_of_layers(
        c, ("linear_attention", "full_attention"), lambda i: "linear_attention" if i % 4 or not i else "full_attention"
    )

    delta = lambda: KimiDeltaAttention(
        c.hidden_size,
        heads=c.linear_num_heads,
        head_dim=c.linear_head_dim,
        kernel=c.linear_conv_kernel_dim,
        act=c.hidden_act,
        eps=c.rms_norm_eps,
    )
    mixers = {"full_attention": lambda: latent_attention(c, rope=None), "linear_attention": delta}
    return hybrid_decoder(c, kinds, mixers, lambda i: grouped(c, i), head_dim=c.qk_rope_head_dim, rope={})


# As transformers' modules have them.
MODULES = [
    *(
        rename(f"{{rest}}.mixer.{part}{end}", f"{{rest}}.self_attn.forget_gate.{part}{end}")
        for part, end in (("f_a_proj", ".{tail}"), ("f_b_proj", ".{tail}"), ("dt_bias", ""), ("A_log", ""))
    ),
    mixer_is("self_attn"),
]

decoder_family(
    "KimiLinear",
    KimiLinearConfig,
    kimi_linear,
    classifies=False,
    modules=lambda model: MODULES,
    names=(
        concatenated("{rest}.mixer.conv1d.weight", *(f"{{rest}}.self_attn.{part}_conv1d.weight" for part in "qkv")),
        *per_expert("w1", "w3", "w2", theirs="block_sparse_moe"),
        mixer_is("self_attn"),
        # On the hub dense layers are `mlp`, which is read, too; transformers saves all of them under this name.
        rename("{rest}.mlp.{tail}", "{rest}.block_sparse_moe.{tail}"),
    ),
)
