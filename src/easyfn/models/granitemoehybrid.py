"""Granite 4 (IBM 2025): Mamba-2 layers, a few of attention without positions, experts beside an MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..names.rules import rename
from ..nn import Decoder, Experts, FusedGatedMLP, GatedRMSNorm, Router, SparseMoE
from .decoders import attention, decoder_family, logits_scale
from .hybrids import MambaFields, hybrid_decoder, kinds_of_layers, mamba2_mixer, mamba_width, mixer_is
from .mixtures import GRANITE, GraniteMoeFields

OLDER = {"mamba": "linear_attention", "attention": "full_attention"}


@dataclass(frozen=True, kw_only=True)
class GraniteMoeHybridConfig(GraniteMoeFields, MambaFields):
    """The keys of a Granite 4 `config.json`: with `num_local_experts` of 0 it is dense."""

    model_type: ClassVar[str] = "granitemoehybrid"
    num_local_experts: int | None = 8
    shared_intermediate_size: int = 1024
    position_embedding_type: str | None = None
    layer_types: tuple[str, ...] | None = None
    ignored: ClassVar[tuple[str, ...]] = ("normalization_function", "init_method")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        kinds = data.pop("layer_types", None) or data.pop("layers_block_type", None)
        data = {k: v for k, v in data.items() if k != "layers_block_type"}
        return {**data, "layer_types": [OLDER.get(k, k) for k in kinds]} if kinds else data


def granitemoehybrid(c: GraniteMoeHybridConfig) -> Decoder:
    """The decoder: a state space or attention, then experts and an MLP that every token goes to."""
    kinds = kinds_of_layers(c, ("linear_attention", "full_attention"), lambda i: "linear_attention")
    rope = "default" if c.position_embedding_type == "rope" else None
    residual = 1.0 if c.residual_multiplier is None else float(c.residual_multiplier)

    def mlp(i: int) -> Any:
        shared = FusedGatedMLP(c.hidden_size, c.shared_intermediate_size, c.hidden_act)
        if not c.num_local_experts:
            return shared
        router = Router(c.hidden_size, c.num_local_experts, c.num_experts_per_tok)
        experts = Experts(c.num_local_experts, c.hidden_size, c.intermediate_size, c.hidden_act)
        return SparseMoE(router, experts, shared_experts=shared)

    mixers = {
        "full_attention": lambda: attention(c, scale=c.attention_multiplier, rope=rope),
        "linear_attention": lambda: mamba2_mixer(c, GatedRMSNorm(mamba_width(c), c.mamba_n_groups, c.rms_norm_eps)),
    }
    scale = c.embedding_multiplier
    return hybrid_decoder(c, kinds, mixers, mlp, residual=residual, embed_scale=scale, scale_inputs=True)


decoder_family(
    "GraniteMoeHybrid",
    GraniteMoeHybridConfig,
    granitemoehybrid,
    classifies=False,
    head={"scale": logits_scale},
    names=(
        mixer_is("mamba"),
        rename("{rest}.mlp.gate_up_proj.{tail}", "{rest}.shared_mlp.input_linear.{tail}"),
        rename("{rest}.mlp.down_proj.{tail}", "{rest}.shared_mlp.output_linear.{tail}"),
        *GRANITE,
    ),
)
