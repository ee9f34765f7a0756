"""Qwen3.5 with a mixture of experts, its text model (Qwen team 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import Decoder
from ..registry.family import family
from .decoders import decoder_tasks
from .hybrids import EXPERT_NAMES, SharedExpertFields, mixer_is, qwen_hybrid, shared_expert_moe, text_rope


@dataclass(frozen=True, kw_only=True)
class Qwen3_5MoeTextConfig(SharedExpertFields):
    """The keys of the text part of a Qwen3.5-MoE `config.json`."""

    model_type: ClassVar[str] = "qwen3_5_moe_text"
    num_hidden_layers: int = 40
    num_experts: int = 256
    num_experts_per_tok: Size = 8

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return text_rope(data)


def qwen3_5_moe(config: Qwen3_5MoeTextConfig, **own: Any) -> Decoder:
    """The decoder: as Qwen3.5, with experts beside a shared one in every layer; `own` as in `decoders.decoder`."""
    return qwen_hybrid(config, lambda i: shared_expert_moe(config), projections="four", **own)


family(
    "qwen3_5_moe_text",
    config=Qwen3_5MoeTextConfig,
    tasks=decoder_tasks(qwen3_5_moe),
    architectures={"Qwen3_5MoeForCausalLM": "causal-lm", "Qwen3_5MoeTextModel": "base"},
    names=(mixer_is("linear_attn"), *EXPERT_NAMES),
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"^mtp\.", r"^model\.visual\."),
)
