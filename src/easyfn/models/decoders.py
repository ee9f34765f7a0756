"""What decoder-only families say in the same words: their parts, tasks, transformers classes, windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..config.fields import head_dim
from ..nn import Attention, CausalLM, Decoder, RMSNorm, SequenceClassifier
from ..registry.family import Family, family


def decoder_family(
    name: str | None,
    config: Any,
    decoder: Callable[[Any], Any],
    *,
    head: Mapping[str, Callable[[Any], Any]] | None = None,
    architectures: Mapping[str, str] | None = None,
    ignore_tensors: Callable[[Any], Sequence[str]] | Sequence[str] = (r"rotary_emb\.inv_freq$",),
    **facts: Any,
) -> Family:
    """Registers a decoder-only family: its language model, its hidden states, its sequence classifier.

    - `name` is what transformers' classes begin with: `"Llama"` of `LlamaForCausalLM`, `LlamaModel` and
      `LlamaForSequenceClassification`. `architectures` are all of them, where one word does not tell.
    - `decoder(config)` builds the `Decoder`; `head` are arguments of `nn.CausalLM` as functions of the config.
    - `facts` (`names`, `ignore`, `prefix`, ...) are those of [`easyfn.family`][].
    """
    return family(
        config.model_type,
        config=config,
        tasks=decoder_tasks(decoder, **(head or {})),
        architectures=architectures or decoder_classes(name or ""),
        ignore_tensors=ignore_tensors,
        **facts,
    )


def attention(config: Any, **own: Any) -> Attention:
    """The attention of a config with `DecoderFields`; `own` are the family's further arguments of `nn.Attention`."""
    c = config
    kv_heads = c.num_key_value_heads or c.num_attention_heads
    given = {"dropout": c.attention_dropout or 0.0, **own}
    return Attention(c.hidden_size, c.num_attention_heads, kv_heads, head_dim(c), **given)


def norm(config: Any) -> RMSNorm:
    """The RMSNorm of a config, as wide as its hidden states."""
    return RMSNorm(config.hidden_size, config.rms_norm_eps)


def decoder(config: Any, block: Callable[[int], Any], **own: Any) -> Decoder:
    """The decoder of a config with `DecoderFields`, whose layer `i` is `block(i)`, with one rotary table.

    `own` are further arguments of `nn.Decoder`.
    """
    given = {"head_dim": head_dim(config), "rope": {"default": config.rope_parameters}, **own}
    return Decoder(config, [block(i) for i in range(config.num_hidden_layers)], norm(config), **given)


def decoder_tasks(decoder: Callable[[Any], Any], **head: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    """The tasks of a decoder built by `decoder(config)`: language model, hidden states, classification.

    `head` are further arguments of `nn.CausalLM`, as functions of the config:
    `softcap=lambda c: c.final_logit_softcapping`.
    """

    def causal_lm(config: Any) -> CausalLM:
        return CausalLM(decoder(config), tied=config.tie_word_embeddings, **{k: f(config) for k, f in head.items()})

    return {
        "causal-lm": causal_lm,
        "base": decoder,
        "sequence-classification": lambda config: SequenceClassifier(decoder(config)),
    }


def decoder_classes(name: str) -> dict[str, str]:
    """The tasks by the names of transformers' classes: `"LlamaForCausalLM"` of `"Llama"` is `"causal-lm"`."""
    return {
        f"{name}ForCausalLM": "causal-lm",
        f"{name}Model": "base",
        f"{name}ForSequenceClassification": "sequence-classification",
    }


def layer_windows(config: Any, layer_types: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    """The attention window of every layer, `None` where it sees everything before it.

    Raises `ValueError` unless every layer has a kind, `full_attention` or `sliding_attention`, and those that slide
    a window.
    """
    if len(layer_types) != config.num_hidden_layers:
        raise ValueError(
            f"{config.model_type}: layer_types names {len(layer_types)} layers and num_hidden_layers is "
            f"{config.num_hidden_layers}; change both together, or set layer_types to None to derive it"
        )
    kinds = {"full_attention": None, "sliding_attention": window}
    for kind in layer_types:
        if kind not in kinds:
            raise ValueError(f"{config.model_type}: layer_types holds {kind!r}; this family has {' and '.join(kinds)}")
    if window is None and "sliding_attention" in layer_types:
        raise ValueError(f"{config.model_type}: layer_types holds 'sliding_attention', but there is no sliding_window")
    return tuple(kinds[kind] for kind in layer_types)


def qwen_windows(config: Any) -> tuple[int | None, ...]:
    """The windows of Qwen's layers: with `use_sliding_window`, those from `max_window_layers` on slide."""
    window = config.sliding_window if config.use_sliding_window else None
    first = config.num_hidden_layers if window is None else config.max_window_layers
    derived = ["sliding_attention" if i >= first else "full_attention" for i in range(config.num_hidden_layers)]
    return layer_windows(config, config.layer_types or derived, window)
