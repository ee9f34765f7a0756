"""Hunyuan dense (Tencent 2025): Llama with norms on queries and keys after the rotation, and a stretched base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, head_dim
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Block, Decoder, RMSNorm
from .decoders import attention, decoder, decoder_family, mlp, norm


@dataclass(frozen=True, kw_only=True)
class HunYuanDenseV1Config(LlamaFields):
    """The keys of a Hunyuan `config.json`."""

    model_type: ClassVar[str] = "hunyuan_v1_dense"
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    pad_token_id: int | None = 0


def hunyuan_v1_dense(c: HunYuanDenseV1Config) -> Decoder:
    """The decoder: pre-norm layers. Rotary positions of the type `dynamic` with an `alpha` are static, of a higher base."""
    rope, dim = c.rope_parameters, head_dim(c)
    if rope["rope_type"] == "dynamic" and rope.get("alpha"):
        rope = Frozen(rope_type="default", rope_theta=rope["rope_theta"] * rope["alpha"] ** (dim / (dim - 2)))
    own = {"qk_norm": RMSNorm(dim, c.rms_norm_eps), "normed": "rotated"}
    return decoder(c, lambda _: Block(attention(c, **own), mlp(c), norm(c), norm(c)), rope={"default": rope})


NAMES = (
    rename("{rest}.self_attn.q_norm.weight", "{rest}.self_attn.query_layernorm.weight"),
    rename("{rest}.self_attn.k_norm.weight", "{rest}.self_attn.key_layernorm.weight"),
)


decoder_family("HunYuanDenseV1", HunYuanDenseV1Config, hunyuan_v1_dense, names=NAMES, ignore=("eod_token_id",))
