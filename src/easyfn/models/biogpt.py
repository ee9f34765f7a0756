"""BioGPT (Luo et al. 2022, arXiv 2210.10341): fairseq's pre-norm decoder with learned positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import CommonFields, Size
from ..nn import Decoder, LearnedPositions
from .decoders import FAIRSEQ, decoder_family, decoder_names, fairseq_decoder


@dataclass(frozen=True, kw_only=True)
class BioGptConfig(CommonFields):
    """The keys of a BioGPT `config.json`."""

    model_type: ClassVar[str] = "biogpt"
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: int
    num_attention_heads: Size
    hidden_act: str = "gelu"
    max_position_embeddings: Size = 1024
    scale_embedding: bool = True
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    pad_token_id: int | None = 1
    tie_word_embeddings: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "activation_dropout", 0.0)
        only(data, "layerdrop", 0.0)
        return data


def biogpt(c: BioGptConfig) -> Decoder:
    """The decoder, with learned positions from row 2."""
    positions = LearnedPositions(c.max_position_embeddings, c.hidden_size, offset=2)
    dropouts = {"dropout": c.hidden_dropout_prob, "attention_dropout": c.attention_probs_dropout_prob}
    return fairseq_decoder(c, positions, **dropouts)


decoder_family(
    "BioGpt",
    BioGptConfig,
    biogpt,
    tags="classifier",
    names=decoder_names("biogpt", {**FAIRSEQ, "norm": "layer_norm"}, lm_head="output_projection"),
    prefix="biogpt",
    ignore=("activation_dropout", "layerdrop", "layer_norm_eps"),  # transformers' norms have eps 1e-5 whatever it says
)
