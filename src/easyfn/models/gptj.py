"""GPT-J (Wang and Komatsuzaki 2021): attention and MLP beside each other on one norm, neighbours rotated in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import GPTFields, Size
from ..nn import MLP, Decoder, LayerNorm, ParallelBlock
from .decoders import decoder_family, decoder_names, full_attention


@dataclass(frozen=True, kw_only=True)
class GPTJConfig(GPTFields):
    """The keys of a GPT-J `config.json`. `rotary_dim` entries of each head are rotated."""

    model_type: ClassVar[str] = "gptj"
    rotary_dim: Size = 64
    tie_word_embeddings: bool = False


def gptj(c: GPTJConfig) -> Decoder:
    """The decoder: parallel layers, rotary attention without biases, an MLP with them."""
    layers = [
        ParallelBlock(
            full_attention(c, rope="default", interleaved=True, dropout=c.attn_pdrop),
            MLP(c.n_embd, c.n_inner or 4 * c.n_embd, c.activation_function, bias=True),
            LayerNorm(c.n_embd, c.layer_norm_epsilon),
            dropout=c.resid_pdrop,
        )
        for _ in range(c.n_layer)
    ]
    final, rope = LayerNorm(c.n_embd, c.layer_norm_epsilon), {"default": {"rope_theta": 10000.0}}
    return Decoder(c, layers, final, head_dim=c.rotary_dim, rope=rope, dropout=c.embd_pdrop, padding=False)


NAMES = {
    "embed_tokens": "wte",
    "layers.{i}.self_attn": "h.{i}.attn",
    "layers.{i}.input_layernorm": "h.{i}.ln_1",
    "layers.{i}.mlp.up_proj": "h.{i}.mlp.fc_in",
    "layers.{i}.mlp.down_proj": "h.{i}.mlp.fc_out",
    "norm": "ln_f",
}
# Switches that change nothing, and heads that are none of ours.
IGNORED = (
    "rotary",
    "scale_attn_weights",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
    "n_ctx",
)

decoder_family(
    "GPTJ",
    GPTJConfig,
    gptj,
    answers="transformer",
    head={"bias": lambda c: True},
    names=decoder_names("transformer", {"layers.{i}.self_attn.o_proj": "h.{i}.attn.out_proj", **NAMES}),
    prefix="transformer",
    ignore=IGNORED,
    ignore_tensors=(r"attn\.(bias|masked_bias)$", r"embed_positions$"),
)
