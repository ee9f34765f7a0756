"""IQuest-Coder (IQuest Lab 2026): Llama, under a name of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import Size
from .decoders import decoder_classes, decoder_family
from .llama import LlamaConfig, llama


@dataclass(frozen=True, kw_only=True)
class IQuestCoderConfig(LlamaConfig):
    """The keys of an IQuest-Coder `config.json`, of which no checkpoint has windows or clipped queries, keys and values."""

    model_type: ClassVar[str] = "iquestcoder"
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "use_sliding_window", False)
        only(data, "clip_qkv", None)
        return data


decoder_family(
    None,
    IQuestCoderConfig,
    llama,
    architectures={**decoder_classes("Llama"), **decoder_classes("IQuestCoder")},  # transformers has Llama's for it
    ignore=("use_sliding_window", "sliding_window", "max_window_layers", "layer_types", "clip_qkv"),
)
