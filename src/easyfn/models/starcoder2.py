"""StarCoder 2 (Lozhkov et al. 2024, arXiv 2402.19173): LayerNorm, a plain MLP and biases under rotary attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import RotaryFields, Size
from ..names.rules import rename
from ..nn import MLP, Block, Decoder, LayerNorm
from .decoders import attention, decoder, decoder_family


@dataclass(frozen=True, kw_only=True)
class Starcoder2Config(RotaryFields):
    """The keys of a StarCoder 2 `config.json`."""

    model_type: ClassVar[str] = "starcoder2"
    num_key_value_heads: Size = 2
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: Size = 4096
    norm_epsilon: float = 1e-5
    sliding_window: Size | None = None
    residual_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    use_bias: bool = True
    tie_word_embeddings: bool = True


def starcoder2(c: Starcoder2Config) -> Decoder:
    """The decoder: pre-norm layers; `use_bias` is for every projection."""
    norm = lambda: LayerNorm(c.hidden_size, c.norm_epsilon)
    return decoder(
        c,
        lambda _: Block(
            attention(c, qkv_bias=c.use_bias, out_bias=c.use_bias, window=c.sliding_window),
            MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=c.use_bias),
            norm(),
            norm(),
            dropout=float(c.residual_dropout),
        ),
        norm(),
        dropout=float(c.embedding_dropout),
    )


NAMES = (
    rename("{rest}.mlp.up_proj.{tail}", "{rest}.mlp.c_fc.{tail}"),
    rename("{rest}.mlp.down_proj.{tail}", "{rest}.mlp.c_proj.{tail}"),
)


decoder_family("Starcoder2", Starcoder2Config, starcoder2, tags="score", names=NAMES)
