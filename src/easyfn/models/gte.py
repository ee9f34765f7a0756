"""GTE (Zhang et al. 2024, arXiv 2407.19669): BERT with rotary positions and a gated MLP, for long texts in many languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size, rope
from ..core.frozen import Frozen
from ..nn import FusedGatedMLP, MaskedLM, TextEncoder
from .encoders import (
    BUFFERS,
    IGNORED,
    RotaryEncoderFields,
    encoder_family,
    rotary_encoder,
    rotary_modules,
    rotary_tasks,
)


@dataclass(frozen=True, kw_only=True)
class GteConfig(RotaryEncoderFields):
    """The keys of a GTE `config.json` as transformers writes it."""

    model_type: ClassVar[str] = "gte"
    unsaid: ClassVar[tuple[str, ...]] = ("head_dim",)
    vocab_size: Size = 250048
    max_position_embeddings: Size = 8192
    type_vocab_size: int = 1
    attention_probs_dropout_prob: float | int = 0.0
    rope_parameters: Frozen = rope(160000.0)


def gte(c: Any, *, pooler: bool) -> TextEncoder:
    """The encoder: of its MLP only the last layer has a bias, and what goes into it is dropped out."""
    bias, rate = (False, True), c.hidden_dropout_prob
    given = {"bias": bias, "up_first": True, "inner_dropout": rate}
    mlp = lambda: FusedGatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, **given)
    return rotary_encoder(c, pooler=pooler, bias=True, mlp=mlp)


HEADS = [
    ("dense.{rest}", "lm_head.dense.{rest}"),
    ("norm.{rest}", "lm_head.norm.{rest}"),
    ("decoder.{rest}", "lm_head.decoder.{rest}"),
    ("bias", "lm_head.decoder.bias"),
]

encoder_family(
    "Gte",
    GteConfig,
    gte,
    prefix="gte",
    lm_head=lambda c: MaskedLM(gte(c, pooler=False), tied=c.tie_word_embeddings, act="gelu", bias="own"),
    layers=[
        (f"encoder.layer.{{i}}.{ours}.{{rest}}", f"encoder.layer.{{i}}.{theirs}.{{rest}}")
        for ours, theirs in (
            ("self_attn", "attention"),
            ("mlp.gate_up_proj", "mlp.up_gate_proj"),
            ("input_layernorm", "attn_ln"),
            ("post_attention_layernorm", "mlp_ln"),
        )
    ],
    heads=HEADS,
    modules=rotary_modules("gte", [], [("norm.{rest}", "lm_head.layer_norm.{rest}"), *HEADS], ("up", "gate")),
    ignore=IGNORED,
    ignore_tensors=(BUFFERS[0], r"rotary_emb\."),
    **rotary_tasks(gte),
)
