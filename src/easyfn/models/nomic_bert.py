"""Nomic BERT (Nussbaum et al. 2024, arXiv 2402.01613): BERT with rotary positions and a gated MLP, without biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size, rope
from ..core.frozen import Frozen
from ..nn import GatedMLP, MaskedLM, TextEncoder
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
class NomicBertConfig(RotaryEncoderFields):
    """The keys of a Nomic BERT `config.json` as transformers writes it; those of the first code (`n_embd`) are refused."""

    model_type: ClassVar[str] = "nomic_bert"
    unsaid: ClassVar = ("tie_word_embeddings",)
    vocab_size: Size = 30528
    hidden_act: str = "silu"
    max_position_embeddings: Size = 2048
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    rope_parameters: Frozen = rope(1000.0)


def nomic_bert(c: Any, *, pooler: bool) -> TextEncoder:
    """The encoder."""
    mlp = lambda: GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act)
    return rotary_encoder(c, pooler=pooler, bias=False, mlp=mlp)


HEADS = [
    ("dense.{rest}", "cls.predictions.transform.dense.{rest}"),
    ("norm.{rest}", "cls.predictions.transform.layer_norm.{rest}"),
    ("decoder.{rest}", "cls.predictions.decoder.{rest}"),
    ("bias", "cls.predictions.bias"),
]

encoder_family(
    "NomicBert",
    NomicBertConfig,
    nomic_bert,
    prefix="nomic_bert",
    lm_head=lambda c: MaskedLM(nomic_bert(c, pooler=False), tied=c.tie_word_embeddings),
    layers=[
        ("embeddings.LayerNorm.{rest}", "emb_ln.{rest}"),
        *(
            (f"encoder.layer.{{i}}.{ours}.{{rest}}", f"encoder.layers.{{i}}.{theirs}.{{rest}}")
            for ours, theirs in (
                ("self_attn.qkv_proj", "attn.Wqkv"),
                ("self_attn.o_proj", "attn.out_proj"),
                ("mlp.up_proj", "mlp.fc11"),
                ("mlp.gate_proj", "mlp.fc12"),
                ("mlp.down_proj", "mlp.fc2"),
                ("input_layernorm", "norm1"),
                ("post_attention_layernorm", "norm2"),
            )
        ),
    ],
    heads=HEADS,
    modules=rotary_modules("nomic_bert", [], HEADS),
    ignore=IGNORED,
    ignore_tensors=(*BUFFERS, r"rotary_emb\."),
    **rotary_tasks(nomic_bert),
)
