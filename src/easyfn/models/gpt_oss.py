"""gpt-oss (OpenAI 2025, arXiv 2508.10925): attention sinks, every other layer sees a window, experts with biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import DecoderFields, Size, alias
from ..core.frozen import Frozen
from ..names.rules import transposed
from ..nn import Block, ClampedGate, Decoder, Experts, RMSNorm, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, layer_windows
from .mixtures import module

YARN = Frozen(
    rope_type="yarn",
    rope_theta=150000.0,
    factor=32.0,
    beta_fast=32.0,
    beta_slow=1.0,
    truncate=False,
    original_max_position_embeddings=4096,
)


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(DecoderFields):
    """The keys of a gpt-oss `config.json`. Without `layer_types`, every second layer is global."""

    model_type: ClassVar[str] = "gpt_oss"
    num_experts = alias("num_local_experts")
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 64
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = YARN
    attention_bias: bool = True
    sliding_window: Size | None = 128
    layer_types: tuple[str, ...] | None = None
    num_local_experts: Size = 128
    num_experts_per_tok: Size = 4
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    router_aux_loss_coef: float = 0.001

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        if data.get("rope_parameters") is None and data.get("rope_scaling") is None:
            data = {**data, "rope_parameters": dict(YARN)}
        return data


def gpt_oss(c: GptOssConfig) -> Decoder:
    """The decoder: pre-norm blocks of windowed or global attention with sinks, and of experts behind a router with a bias."""
    kinds = [("sliding_attention", "full_attention")[i % 2] for i in range(c.num_hidden_layers)]
    windows = layer_windows(c, c.layer_types or kinds, c.sliding_window)
    gate = ClampedGate(c.swiglu_limit, c.swiglu_alpha, 1.0)
    norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps, float32=("float16",))
    return decoder(
        c,
        lambda i: Block(
            attention(c, qkv_bias=c.attention_bias, out_bias=c.attention_bias, sinks=True, window=windows[i]),
            SparseMoE(
                Router(c.hidden_size, c.num_local_experts, c.num_experts_per_tok, bias=True),
                Experts(c.num_local_experts, c.hidden_size, c.intermediate_size, gate, bias=True, interleaved=True),
            ),
            norm(),
            norm(),
        ),
        last=norm(),
    )


decoder_family(
    "GptOss",
    GptOssConfig,
    gpt_oss,
    tags="score",
    # Files hold the experts' matrices as (in, out).
    names=(
        transposed("{rest}layers.{i}.mlp.experts.gate_up_proj"),
        transposed("{rest}layers.{i}.mlp.experts.down_proj"),
        *module("mlp.gate", "mlp.router"),
    ),
    # The gate has its own function; the other two repeat what is said elsewhere.
    ignore=("hidden_act", "experts_per_token", "initial_context_length"),
)
