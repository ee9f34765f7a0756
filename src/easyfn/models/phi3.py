"""Phi-3 and Phi-4 (Abdin et al. 2024, arXiv 2404.14219): Llama with fused projections, longrope for long contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import LlamaFields, Size, rope
from ..core.frozen import Frozen
from ..nn import Block, Decoder, FusedGatedMLP
from .decoders import attention, decoder, decoder_family, norm


@dataclass(frozen=True, kw_only=True)
class Phi3Config(LlamaFields):
    """The keys of a Phi-3 `config.json`. Past `original_max_position_embeddings`, longrope takes its long factors."""

    model_type: ClassVar[str] = "phi3"
    max_position_embeddings: Size = 4096
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(10000.0, partial_rotary_factor=1.0)
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    original_max_position_embeddings: Size = 4096
    sliding_window: Size | None = None
    pad_token_id: int | None = 32000

    @property
    def rope_bound(self) -> int | None:
        """The number of tokens beyond which a cache of fewer is of no use: all of them turn by other factors."""
        return self.original_max_position_embeddings if self.rope_parameters.get("rope_type") == "longrope" else None

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        kinds = {"yarn": "longrope", "su": "longrope"}  # its first names
        for key in ("rope_scaling", "rope_parameters"):
            if isinstance(said := data.get(key), dict):
                kind = said.get("rope_type") or said.get("type") or "default"
                data = {**data, key: {**said, "rope_type": kinds.get(kind, kind)}}
                if kinds.get(kind, kind) not in ("default", "longrope"):
                    raise ValueError(f"config.json: phi3 has the rope_type 'default' or 'longrope', not {kind!r}")
        # Its default wins over what rope_parameters say, as in transformers.
        return {"original_max_position_embeddings": 4096, **data}


def phi3(c: Phi3Config) -> Decoder:
    """The decoder: one matrix for queries, keys and values, and one for gate and up."""
    return decoder(
        c,
        lambda _: Block(
            attention(c, fused="rows", window=c.sliding_window),
            FusedGatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act),
            norm(c),
            norm(c),
            dropout=c.resid_pdrop,
        ),
        partial=True,
    )


decoder_family("Phi3", Phi3Config, phi3, tags="score")
