"""Ministral 3 (Mistral AI 2025): Mistral with yarn, and queries that grow with their position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import LlamaFields, Size
from ..core.frozen import Frozen
from ..nn import Block, Decoder, Temperature
from .decoders import attention, decoder, decoder_family, mlp, norm


@dataclass(frozen=True, kw_only=True)
class Ministral3Config(LlamaFields):
    """The keys of a Ministral 3 `config.json`."""

    model_type: ClassVar[str] = "ministral3"
    num_key_value_heads: Size = 8
    head_dim: Size = 128
    max_position_embeddings: Size = 262144
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = None
    rope_parameters: Frozen = Frozen(
        rope_type="yarn",
        rope_theta=1000000.0,
        factor=16.0,
        original_max_position_embeddings=16384,
        max_position_embeddings=262144,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale_all_dim=1.0,
        mscale=1.0,
        llama_4_scaling_beta=0.1,
    )
    pad_token_id: int | None = 11

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        if data.get("rope_parameters") is None and not data.get("rope_scaling"):
            length = data.get("max_position_embeddings", 262144)
            default = Ministral3Config.rope_parameters
            data = {**data, "rope_parameters": {**default, "max_position_embeddings": length}}
        return data


def temperature(c: Any) -> Temperature | None:
    """What queries grow by past the length of the training, where a config's rotary parameters say it."""
    beta, trained = (c.rope_parameters.get(key) for key in ("llama_4_scaling_beta", "original_max_position_embeddings"))
    return None if beta is None else Temperature(beta, trained or c.max_position_embeddings)


def ministral3(c: Ministral3Config) -> Decoder:
    """The decoder: pre-norm layers with a window on all, or none."""
    own = {"window": c.sliding_window, "temperature": temperature(c)}
    return decoder(c, lambda _: Block(attention(c, **own), mlp(c), norm(c), norm(c)))


decoder_family("Ministral3", Ministral3Config, ministral3, tags="score", answers="model")
