"""What mixtures of experts say in the same words: the names of their files, which layers are dense, latent attention."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import LlamaFields, Size, alias, head_dim, rope
from ..core.frozen import Frozen
from ..names.rules import Rule, experts, rename
from ..nn import Block, Decoder, Experts, GatedMLP, Indexer, LatentAttention, RMSNorm, Router, SparseMoE
from .decoders import attention, decoder, norm


def per_expert(
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    *,
    ours: str = "mlp",
    theirs: str = "mlp",
    idle: int = 0,
) -> tuple[Rule, ...]:
    """Files with three matrices for each expert; in memory they are stacked, as in transformers' modules.

    A bare `state_dict()`, where they are stacked already, is read as well. `idle` more experts have gates that nothing reads.
    """
    here, there = f"{{rest}}layers.{{i}}.{ours}.experts.", f"{{rest}}layers.{{i}}.{theirs}.experts.{{e}}."
    return (
        experts(here + "gate_up_proj", f"{there}{gate}.weight", f"{there}{up}.weight", idle=idle),
        experts(here + "down_proj", f"{there}{down}.weight"),
    )


# Where files hold Mixtral's experts and their router; transformers' modules have our names.
_ROUTER = "{rest}layers.{i}.%s.gate.weight"
MIXTRAL = (
    *per_expert("w1", "w3", "w2", theirs="block_sparse_moe"),
    rename(_ROUTER % "mlp", _ROUTER % "block_sparse_moe"),
)


def module(ours: str, theirs: str) -> tuple[Rule, ...]:
    """A module of every layer under another name, in the model with a head and in the base model."""
    return tuple(
        rename(f"{base}layers.{{i}}.{ours}.{{rest}}", f"{base}layers.{{i}}.{theirs}.{{rest}}")
        for base in ("model.", "")
    )


def is_sparse(config: Any, layer: int) -> bool:
    """Whether a layer of Qwen's has experts: every `decoder_sparse_step`-th, but for those of `mlp_only_layers`."""
    c = config
    return c.num_experts > 0 and layer not in (c.mlp_only_layers or ()) and (layer + 1) % c.decoder_sparse_step == 0


def dense(config: Any) -> GatedMLP:
    """The feed-forward layer of a layer without experts."""
    return GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act)


def row_norms(config: Any) -> tuple[RMSNorm, RMSNorm]:
    """Norms of queries and keys as whole rows, all heads together."""
    c, kv_heads = config, config.num_key_value_heads or config.num_attention_heads
    rows = lambda heads: RMSNorm(heads * head_dim(c), c.rms_norm_eps)
    return rows(c.num_attention_heads), rows(kv_heads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtralFields(LlamaFields):
    """The keys of Mixtral. `router_aux_loss_coef` weighs the load balancing loss in training."""

    num_experts = alias("num_local_experts")
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(1000000.0)
    sliding_window: Size | None = None
    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0


def mixtral_experts(config: Any) -> SparseMoE:
    """The experts of a config with `MixtralFields`."""
    c = config
    return SparseMoE(
        Router(c.hidden_size, c.num_local_experts, c.num_experts_per_tok),
        Experts(c.num_local_experts, c.hidden_size, c.intermediate_size, c.hidden_act),
        jitter=c.router_jitter_noise,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupedFields(LlamaFields):
    """The keys of a mixture with DeepSeek-V3's router, and its first layers dense."""

    moe_intermediate_size: Size
    n_routed_experts: Size
    n_shared_experts: int | None = 1
    num_experts_per_tok: Size | None = 8
    n_group: Size | None = 1
    topk_group: Size | None = 1
    norm_topk_prob: bool | None = True
    routed_scaling_factor: float | int = 1.0
    first_k_dense_replace: int | None = 0
    attention_bias: bool = False
    # Said by the model type already, or of no use without the layers that predict further tokens.
    ignored: ClassVar[tuple[str, ...]] = (
        *("scoring_func", "topk_method", "moe_layer_freq", "ep_size", "aux_loss_alpha", "seq_aux", "qk_head_dim"),
        *("num_nextn_predict_layers", "num_mtp_layers"),
    )

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "scoring_func", "sigmoid")
        only(data, "topk_method", "noaux_tc")
        only(data, "moe_layer_freq", 1)
        return data


def without_next_tokens(config: Any) -> tuple[str, ...]:
    """Patterns of tensors that a decoder does not have: those of the layers after its last, which predict further tokens."""
    return (r"rotary_emb\.inv_freq$", rf"(^|\.)layers\.{config.num_hidden_layers}\.")


def grouped(config: Any, layer: int) -> GatedMLP | SparseMoE:
    """The feed-forward part of a layer of a config with `GroupedFields`: dense in the first layers, then experts that are
    chosen by sigmoid and correction bias from the best groups, and shared ones."""
    c = config
    if mlp_kinds(c, getattr(c, "mlp_layer_types", None), getattr(c, "first_k_dense_replace", 1) or 0)[layer] == "dense":
        return dense(c)
    router = Router(
        c.hidden_size,
        c.n_routed_experts,
        c.num_experts_per_tok,
        correction=True,
        normalize=bool(c.norm_topk_prob),
        score="sigmoid",
        groups=c.n_group,
        topk_groups=c.topk_group,
        scale=c.routed_scaling_factor,
        float32=True,
    )
    width = c.moe_intermediate_size
    shared = GatedMLP(c.hidden_size, width * c.n_shared_experts, c.hidden_act) if c.n_shared_experts else None
    return SparseMoE(router, Experts(c.n_routed_experts, c.hidden_size, width, c.hidden_act), shared_experts=shared)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentFields:
    """The keys of multi-head latent attention."""

    kv_lora_rank: Size = 512
    q_lora_rank: Size | None = 1536
    qk_nope_head_dim: Size = 128
    qk_rope_head_dim: Size = 64
    v_head_dim: Size = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexedFields(LatentFields, GroupedFields):
    """`LatentFields` and `GroupedFields` with the keys of the indexer that chooses what is attended to."""

    num_local_experts = alias("n_routed_experts")
    num_experts = alias("n_routed_experts")
    q_lora_rank: Size = 1536
    index_topk: Size = 2048
    index_head_dim: Size = 128
    index_n_heads: Size = 32
    mlp_layer_types: tuple[str, ...] | None = None

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        """The JSON, if `layer_types` and `rope_interleave` say what these models always are."""
        for kind in data.get("layer_types") or ():
            only({"layer_types": kind}, "layer_types", "indexed_attention")
        only(data, "rope_interleave", True)
        return GroupedFields.normalize(data)


INDEXED = (
    "layer_types",
    "rope_interleave",
    "mlp_bias",
)  # looked at by `IndexedFields.normalize`; the last is read nowhere


def indexer(config: Any, **own: Any) -> Indexer:
    """The indexer of a config with `IndexedFields`; `own` are the family's further arguments of `nn.Indexer`."""
    c = config
    if c.index_head_dim < max(2, c.qk_rope_head_dim):
        raise ValueError(
            f"{c.model_type}: index_head_dim={c.index_head_dim} is too small: its first qk_rope_head_dim="
            f"{c.qk_rope_head_dim} entries are rotated"
        )
    return Indexer(c.hidden_size, c.q_lora_rank, heads=c.index_n_heads, dim=c.index_head_dim, topk=c.index_topk, **own)


def latent_attention(config: Any, **own: Any) -> LatentAttention:
    """The attention of a config with `LatentFields`; `own` are the family's further arguments of `nn.LatentAttention`."""
    c = config
    if (c.num_key_value_heads or c.num_attention_heads) != c.num_attention_heads:
        raise ValueError(
            f"{c.model_type}: num_key_value_heads={c.num_key_value_heads}, but latent attention has a key for each of its "
            f"{c.num_attention_heads} heads; set both alike"
        )
    given: dict[str, Any] = {
        "bias": c.attention_bias,
        "scale": yarn_scale(c.rope_parameters, c.qk_nope_head_dim + c.qk_rope_head_dim),
        "dropout": c.attention_dropout or 0.0,
        **own,
    }
    return LatentAttention(
        c.hidden_size,
        c.num_attention_heads,
        q_lora_rank=c.q_lora_rank,
        kv_lora_rank=c.kv_lora_rank,
        qk_nope_head_dim=c.qk_nope_head_dim,
        qk_rope_head_dim=c.qk_rope_head_dim,
        v_head_dim=c.v_head_dim,
        **given,
    )


def yarn_scale(rope: Any, width: int) -> float:
    """The scale of the scores of heads of `width`: with scaled positions and `mscale_all_dim`, times the square of yarn's
    factor, as DeepSeek's code has it."""
    scale = width**-0.5
    mscale, factor = rope.get("mscale_all_dim"), rope.get("factor") or 1.0
    if rope.get("rope_type", "default") == "default" or not mscale or factor <= 1:
        return scale
    return scale * (0.1 * mscale * math.log(factor) + 1.0) ** 2


def mlp_kinds(config: Any, kinds: tuple[str, ...] | None, first_dense: int = 1) -> tuple[str, ...]:
    """Of every layer `dense` or `sparse`, as `mlp_layer_types` says or else by the number of dense layers in front.

    Raises `ValueError` where a kind is another, or not every layer has one.
    """
    layers = config.num_hidden_layers
    if kinds is None:
        return ("dense",) * min(first_dense, layers) + ("sparse",) * (layers - first_dense)
    if len(kinds) != layers or set(kinds) - {"dense", "sparse"}:
        raise ValueError(
            f"{config.model_type}: mlp_layer_types says dense or sparse of each of {layers} layers, not {', '.join(kinds)}"
        )
    return kinds


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteMoeFields(LlamaFields):
    """The keys of Granite's multipliers and experts."""

    attention_bias: bool = False
    embedding_multiplier: float | int | None = 1.0
    logits_scaling: float | int | None = 1.0
    residual_multiplier: float | int | None = 1.0
    attention_multiplier: float | int | None = 1.0
    num_local_experts: Size | None = 8
    num_experts_per_tok: Size | None = 2
    router_aux_loss_coef: float | None = 0.001


def granite_moe(config: Any, shared: Callable[[], Any] = lambda: None) -> Decoder:
    """The decoder of a config with `GraniteMoeFields`; `shared()` is what every token goes to beside the experts."""
    c, bias = config, config.attention_bias
    return decoder(
        c,
        lambda i: Block(
            attention(c, qkv_bias=bias, out_bias=bias, scale=c.attention_multiplier),
            SparseMoE(
                Router(c.hidden_size, c.num_local_experts, c.num_experts_per_tok),
                Experts(c.num_local_experts, c.hidden_size, c.intermediate_size, c.hidden_act),
                shared_experts=shared(),
            ),
            norm(c),
            norm(c),
            residual=c.residual_multiplier,
        ),
        embed_scale=c.embedding_multiplier,
        scale_inputs=True,
    )


# Files hold the experts stacked; the modules have yet other names for them, by which PEFT knows them.
_FILE = "{rest}layers.{i}.block_sparse_moe."
GRANITE = (
    rename("{rest}layers.{i}.mlp.experts.gate_up_proj", _FILE + "input_linear.weight"),
    rename("{rest}layers.{i}.mlp.experts.down_proj", _FILE + "output_linear.weight"),
    rename("{rest}layers.{i}.mlp.gate.weight", _FILE + "router.layer.weight"),
    *module("mlp.shared_experts.gate_up_proj", "shared_mlp.input_linear"),
    *module("mlp.shared_experts.down_proj", "shared_mlp.output_linear"),
    *module("mlp.gate", "block_sparse_moe.router"),
    *module("mlp", "block_sparse_moe"),
)
