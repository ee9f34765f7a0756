"""GPT-Neo (Black et al. 2021): GPT-2 with unscaled scores and a window in every other layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size, alias
from ..nn import MLP, Block, Decoder, LayerNorm, LearnedPositions
from .decoders import decoder_family, decoder_names, full_attention


@dataclass(frozen=True, kw_only=True)
class GPTNeoConfig(CommonFields):
    """The keys of a GPT-Neo `config.json`. `attention_types` lists `[[kinds of layers], how many times]`; `attention_layers`,
    the same layer by layer, wins."""

    model_type: ClassVar[str] = "gpt_neo"
    classifier_dropout: float | int = 0.1
    vocab_size: Size
    hidden_size: Size
    num_layers: int
    num_heads: Size
    attention_types: tuple[tuple[Any, ...], ...] | None = ((("global", "local"), 12),)
    attention_layers: tuple[str, ...] | None = None
    intermediate_size: Size | None = None
    max_position_embeddings: Size = 2048
    window_size: Size = 256
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    resid_dropout: float | int = 0.0
    embed_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    tie_word_embeddings: bool = True
    num_attention_heads = alias("num_heads")
    num_hidden_layers = alias("num_layers")


def windows(c: GPTNeoConfig) -> list[int | None]:
    """The window of each layer, `None` in those that see everything."""
    said = c.attention_types or ((("global", "local"), 12),)
    kinds = c.attention_layers or [kind for each, times in said for kind in each * times]
    if len(kinds) != c.num_layers or not set(kinds) <= {"global", "local"}:
        raise ValueError(
            f"gpt_neo: attention_layers={c.attention_layers}, attention_types={c.attention_types} must say 'global' or "
            f"'local' of {c.num_layers} layers (num_layers), and say {len(kinds)}"
        )
    return [c.window_size if kind == "local" else None for kind in kinds]


def gpt_neo(c: GPTNeoConfig) -> Decoder:
    """The decoder: learned positions, pre-norm layers, local and global attention in turn."""
    layers = [
        Block(
            full_attention(c, out_bias=True, scale=1.0, window=window, dropout=c.attention_dropout),
            MLP(c.hidden_size, c.intermediate_size or 4 * c.hidden_size, c.activation_function, bias=True),
            LayerNorm(c.hidden_size, c.layer_norm_epsilon),
            LayerNorm(c.hidden_size, c.layer_norm_epsilon),
            dropout=c.resid_dropout,
        )
        for window in windows(c)
    ]
    positions = LearnedPositions(c.max_position_embeddings, c.hidden_size)
    final = LayerNorm(c.hidden_size, c.layer_norm_epsilon)
    return Decoder(c, layers, final, positions=positions, dropout=c.embed_dropout, padding=False)


NAMES = decoder_names(
    "transformer",
    {
        "embed_tokens": "wte",
        "embed_positions": "wpe",
        "layers.{i}.self_attn.o_proj": "h.{i}.attn.attention.out_proj",
        "layers.{i}.self_attn": "h.{i}.attn.attention",
        "layers.{i}.input_layernorm": "h.{i}.ln_1",
        "layers.{i}.post_attention_layernorm": "h.{i}.ln_2",
        "layers.{i}.mlp.up_proj": "h.{i}.mlp.c_fc",
        "layers.{i}.mlp.down_proj": "h.{i}.mlp.c_proj",
        "norm": "ln_f",
    },
)

decoder_family(
    "GPTNeo",
    GPTNeoConfig,
    gpt_neo,
    tags="classifier",
    answers="transformer",
    names=NAMES,
    prefix="transformer",
    ignore=(
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    ),
    ignore_tensors=(r"attn\.attention\.(bias|masked_bias)$",),
)
