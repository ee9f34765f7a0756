"""Qwen3.5, its text model (Qwen team 2026): three gated delta nets to one gated attention, dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import Decoder, GatedMLP
from ..registry.family import family
from .decoders import decoder_tasks
from .hybrids import DeltaFields, mixer_is, qwen_hybrid, text_rope


@dataclass(frozen=True, kw_only=True)
class Qwen3_5TextConfig(DeltaFields):
    """The keys of the text part of a Qwen3.5 `config.json`. Its rotary positions have three axes for images, alike for text."""

    model_type: ClassVar[str] = "qwen3_5_text"
    hidden_size: Size = 4096
    intermediate_size: Size = 12288
    num_hidden_layers: int = 32
    num_key_value_heads: Size = 4

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return text_rope(data)


def qwen3_5(config: Qwen3_5TextConfig, **own: Any) -> Decoder:
    """The decoder: gated delta nets with four projections each, gated attention, gated MLPs; `own` as in `decoders.decoder`."""
    c = config
    mlp = lambda i: GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act)
    return qwen_hybrid(c, mlp, projections="four", **own)


family(
    "qwen3_5_text",
    config=Qwen3_5TextConfig,
    tasks=decoder_tasks(qwen3_5),
    architectures={
        "Qwen3_5ForCausalLM": "causal-lm",
        "Qwen3_5TextModel": "base",
        "Qwen3_5TextForSequenceClassification": "sequence-classification",
    },
    names=(mixer_is("linear_attn"),),
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"^mtp\.", r"^model\.visual\."),
)
