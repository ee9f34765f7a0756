"""What decoder-only families say in the same words: their parts, tasks, transformers classes, windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..config.check import check
from ..config.config import UnknownConfigKey
from ..config.fields import head_dim
from ..names.rules import Rule, rename
from ..nn import (
    MLP,
    Attention,
    Block,
    CausalLM,
    Decoder,
    GatedMLP,
    LayerNorm,
    QuestionAnswering,
    RMSNorm,
    SequenceClassifier,
    TokenClassifier,
)
from ..registry.family import Family, family
from .vision import under


def decoder_family(
    name: str | None,
    config: Any,
    decoder: Callable[[Any], Any],
    *,
    head: Mapping[str, Callable[[Any], Any]] | None = None,
    architectures: Mapping[str, str] | None = None,
    classifies: bool = True,
    tags: str | None = None,
    answers: str | None = None,
    ignore_tensors: Callable[[Any], Sequence[str]] | Sequence[str] = (r"rotary_emb\.inv_freq$",),
    **facts: Any,
) -> Family:
    """Registers a decoder-only family: its language model, its hidden states, its sequence classifier.

    - `name` is what transformers' classes begin with: `"Llama"` of `LlamaForCausalLM`, `LlamaModel` and
      `LlamaForSequenceClassification` (if it `classifies`). `architectures` are all of them, where one word does not tell.
    - `tags`: what files call the classifier of tokens (`"score"`), where transformers has one; `answers`: what they call the
      decoder under the head of question answering (`"model"`, `"transformer"`), where it has that. Both heads are there for
      every decoder; these say under which class they are saved.
    - `decoder(config)` builds the `Decoder`; `head` are arguments of `nn.CausalLM` as functions of the config.
    - `facts` (`names`, `ignore`, `prefix`, ...) are those of [`easyfn.family`][].
    """
    if "bias" in (head or {}):  # a tied head keeps its own
        facts["names"] = _with_head_bias(facts.get("names", ()))
    classes = dict(architectures or decoder_classes(name or "", classifies))
    first = name or next(n for n, kind in classes.items() if kind == "causal-lm").removesuffix("ForCausalLM")
    if tags:
        classes[f"{first}ForTokenClassification"] = "token-classification"
    if answers:
        classes[f"{first}ForQuestionAnswering"] = "question-answering"
    other = answers if answers != facts.get("prefix", "model") else None
    facts["names"] = head_rules(facts.get("names", ()), tags, other)
    if "modules" in facts:
        facts["modules"] = head_rules(facts["modules"], tags, other)
    return family(
        config.model_type,
        config=config,
        tasks=decoder_tasks(decoder, **(head or {})),
        architectures=classes,
        ignore_tensors=ignore_tensors,
        **facts,
    )


def _with_head_bias(names: Any) -> Callable[[Any], list[Rule]]:
    """The rules, and where the file has the `bias` of a tied `CausalLM`."""
    return lambda model: [rename("bias", "lm_head.bias"), *(names(model) if callable(names) else names)]


def head_rules(rules: Any, tags: str | None, answers: str | None) -> Callable[[Any], list[Rule]]:
    """The rules of a decoder under every head: `rules` are those of the family, which stands under the name `answers` in
    the head of question answering; see `decoder_family`."""
    given = rules if callable(rules) else lambda model: rules

    def names(model: Any) -> list[Rule]:
        if isinstance(model, QuestionAnswering) and answers is not None:
            return under(given(model.model), "model", answers)
        scores = isinstance(model, TokenClassifier) and tags == "score"
        return [*([rename("classifier.{rest}", "score.{rest}")] if scores else []), *given(model)]

    return names


def attention(config: Any, **own: Any) -> Attention:
    """The attention of a config with `RotaryFields`; `own` are the family's further arguments of `nn.Attention`.

    A config's `attention_bias` is for all four projections, as in Llama.
    """
    c, bias = config, getattr(config, "attention_bias", False)
    rate = getattr(c, "attention_dropout", 0.0) or 0.0
    given = {"qkv_bias": bias, "out_bias": bias, "dropout": rate, **own}
    return Attention(c.hidden_size, c.num_attention_heads, key_heads(c), head_dim(c), **given)


def key_heads(config: Any) -> int:
    """The number of key heads: as many as there are query heads, where a config does not say."""
    return config.num_key_value_heads or config.num_attention_heads


def mlp(config: Any, **own: Any) -> GatedMLP:
    """The gated MLP of a config with `hidden_act`; its `mlp_bias` is for all three projections, as in Llama."""
    c = config
    given = {"bias": getattr(c, "mlp_bias", False), **own}
    return GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, **given)


def full_attention(config: Any, **own: Any) -> Attention:
    """Attention with a key head for every query head, without rotary positions unless `own` names some."""
    c = config
    given = {"rope": None, **own}
    return Attention(c.hidden_size, c.num_attention_heads, c.num_attention_heads, head_dim(c), **given)


# The layers of fairseq's decoders (OPT, XGLM, BioGPT) in their files.
FAIRSEQ = {
    "layers.{i}.self_attn.o_proj": "layers.{i}.self_attn.out_proj",
    "layers.{i}.input_layernorm": "layers.{i}.self_attn_layer_norm",
    "layers.{i}.post_attention_layernorm": "layers.{i}.final_layer_norm",
    "layers.{i}.mlp.up_proj": "layers.{i}.fc1",
    "layers.{i}.mlp.down_proj": "layers.{i}.fc2",
}


def fairseq_decoder(c: Any, positions: Any, *, dropout: float, attention_dropout: float) -> Decoder:
    """fairseq's pre-norm decoder (XGLM, BioGPT): scaled embeddings, attention with biases, a plain MLP."""
    layers = [
        Block(
            full_attention(c, qkv_bias=True, out_bias=True, dropout=attention_dropout),
            MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True),
            LayerNorm(c.hidden_size),
            LayerNorm(c.hidden_size),
            dropout=dropout,
        )
        for _ in range(c.num_hidden_layers)
    ]
    scale = c.hidden_size**0.5 if c.scale_embedding else None
    return Decoder(c, layers, LayerNorm(c.hidden_size), embed_scale=scale, positions=positions, dropout=dropout)


def norm(config: Any) -> RMSNorm:
    """The RMSNorm of a config, as wide as its hidden states."""
    return RMSNorm(config.hidden_size, config.rms_norm_eps)


def row_norms(config: Any) -> tuple[RMSNorm, RMSNorm]:
    """RMSNorms of all queries and of all keys of a token, for `attention(..., normed="rows")`."""
    queries, keys = (heads * head_dim(config) for heads in (config.num_attention_heads, key_heads(config)))
    return RMSNorm(queries, config.rms_norm_eps), RMSNorm(keys, config.rms_norm_eps)


def decoder(config: Any, block: Callable[[int], Any], last: Any = None, **own: Any) -> Decoder:
    """The decoder of a config with `RotaryFields`, whose layer `i` is `block(i)`, with one rotary table.

    `last` is the last norm, by default that of the config; `own` are further arguments of `nn.Decoder`.
    """
    given = dict(own)
    if "head_dim" not in own:
        given["head_dim"] = head_dim(config)
    if "rope" not in own:
        given["rope"] = {"default": config.rope_parameters}
    blocks = [block(i) for i in range(config.num_hidden_layers)]
    return Decoder(config, blocks, norm(config) if last is None else last, **given)


def decoder_names(
    prefix: str, table: Mapping[str, str], *, inner: str = "", **head: str
) -> Callable[[Any], list[Rule]]:
    """The rules of a decoder whose files have names of their own.

    `prefix` is transformers' `base_model_prefix`, `table` holds our paths inside the decoder and theirs
    (`{"layers.{i}.self_attn": "h.{i}.attn"}`), of which the first that fits counts; `head` the same of what is around it
    (`lm_head="output_projection"`). `inner` is where in the base model the decoder is (`"decoder."`).
    """

    def names(model: Any) -> list[Rule]:
        bare = isinstance(model, Decoder)
        ours, theirs = ("", inner) if bare else ("model.", f"{prefix}.{inner}")
        inside = [rename(f"{ours}{mine}.{{rest}}", f"{theirs}{their}.{{rest}}") for mine, their in table.items()]
        around = [rename(f"{mine}.{{rest}}", f"{their}.{{rest}}") for mine, their in head.items()]
        rest = [rename(f"{ours}{{rest}}", f"{theirs}{{rest}}")] if ours != theirs else []
        return [*inside, *around, *rest]

    return names


def decoder_tasks(decoder: Callable[[Any], Any], **head: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    """The tasks of a decoder built by `decoder(config)`: language model, hidden states, classes of texts and of tokens,
    answers.

    `head` are further arguments of `nn.CausalLM`, as functions of the config:
    `softcap=lambda c: c.final_logit_softcapping`.
    """

    def causal_lm(config: Any) -> CausalLM:
        return CausalLM(decoder(config), tied=config.tie_word_embeddings, **{k: f(config) for k, f in head.items()})

    return {
        "causal-lm": causal_lm,
        "base": decoder,
        "sequence-classification": lambda config: SequenceClassifier(decoder(config)),
        "token-classification": lambda config: TokenClassifier(decoder(config), dropout=head_dropout(config)),
        "question-answering": lambda config: QuestionAnswering(decoder(config)),
    }


def head_dropout(config: Any) -> float:
    """The rate before a classifier of tokens: the first of these keys that a config has, or 0.1."""
    found = (getattr(config, key, None) for key in ("classifier_dropout", "hidden_dropout", "hidden_dropout_prob"))
    return float(next((rate for rate in found if rate is not None), 0.1))


def decoder_classes(name: str, classifies: bool = True) -> dict[str, str]:
    """The tasks by the names of transformers' classes: `"LlamaForCausalLM"` of `"Llama"` is `"causal-lm"`.

    `classifies`: transformers has a `...ForSequenceClassification` of the family.
    """
    found = {f"{name}ForCausalLM": "causal-lm", f"{name}Model": "base"}
    return {**found, f"{name}ForSequenceClassification": "sequence-classification"} if classifies else found


def logits_scale(config: Any) -> float:
    """What Granite's logits are multiplied by."""
    if not config.logits_scaling:
        raise ValueError(
            f"{config.model_type}: logits_scaling={config.logits_scaling!r} divides the logits, so it is a number other than 0"
        )
    return float(1.0 / config.logits_scaling)


def alternate(
    layers: int, every: int, first: str = "sliding_attention", last: str = "full_attention"
) -> tuple[str, ...]:
    """Kinds of attention where the last of `every` so many layers is of the kind `last`, and the others of `first`."""
    return tuple(last if (i + 1) % every == 0 else first for i in range(layers))


def rope_by_kind(
    data: dict[str, Any], *, sliding: float, full: float, scaled: Sequence[str] = ("full_attention",)
) -> dict[str, Any]:
    """Rotary settings with one entry per kind of layer, also from older spellings (`rope_theta`, `rope_local_base_freq`).

    `sliding` and `full` are the bases of a family whose file gives none. `rope_scaling` is for the layers of the kinds
    `scaled` and `rope_theta` for the full ones only, as in transformers.
    """
    data = dict(data)
    bases = {
        "sliding_attention": data.pop("rope_local_base_freq", None) or sliding,
        "full_attention": data.pop("rope_theta", None) or full,
    }
    given = _object(data.pop("rope_parameters", None), "rope_parameters")
    if flat := sorted(set(given) - set(bases)):
        raise UnknownConfigKey(
            f"config.json: rope_parameters has an entry for each of {', '.join(bases)}, not {', '.join(flat)}"
        )
    scaling = dict.fromkeys(scaled, _object(data.pop("rope_scaling", None), "rope_scaling"))
    nested = {
        kind: {"rope_theta": base, **_object(given.get(kind), f"rope_parameters.{kind}"), **scaling.get(kind, {})}
        for kind, base in bases.items()
    }
    for kind, table in nested.items():
        if not table.get("truncate", True):
            raise UnknownConfigKey(
                f"config.json: rope_parameters.{kind}.truncate={table['truncate']!r}: transformers does not read it of one "
                "kind of layers, and others may, so it is not known which frequencies are meant; leave it out for "
                "transformers' (truncate=True)"
            )
    return {**data, "rope_parameters": nested}


def _object(value: Any, name: str) -> Mapping[str, Any]:
    return check(name, value, Mapping | None, "config.json") or {}


def check_layer_types(config: Any, layer_types: Sequence[str], kinds: Sequence[str]) -> None:
    """Raises `ValueError` unless every layer of the config has a kind, and each is one of `kinds`."""
    if len(layer_types) != config.num_hidden_layers:
        raise ValueError(
            f"{config.model_type}: layer_types names {len(layer_types)} layers and num_hidden_layers is "
            f"{config.num_hidden_layers}; change both together, or set layer_types to None to derive it"
        )
    for kind in layer_types:
        if kind not in kinds:
            raise ValueError(f"{config.model_type}: layer_types holds {kind!r}; this family has {' and '.join(kinds)}")


def layer_windows(config: Any, layer_types: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    """The attention window of every layer, `None` where it sees everything before it.

    Raises `ValueError` unless every layer has a kind, `full_attention` or `sliding_attention`, and those that slide
    a window.
    """
    kinds = {"full_attention": None, "sliding_attention": window}
    check_layer_types(config, layer_types, tuple(kinds))
    if window is None and "sliding_attention" in layer_types:
        raise ValueError(f"{config.model_type}: layer_types holds 'sliding_attention', but there is no sliding_window")
    return tuple(kinds[kind] for kind in layer_types)


def qwen_windows(config: Any) -> tuple[int | None, ...]:
    """The windows of Qwen's layers: with `use_sliding_window`, those from `max_window_layers` on slide."""
    window = config.sliding_window if config.use_sliding_window else None
    first = config.num_hidden_layers if window is None else config.max_window_layers
    derived = ["sliding_attention" if i >= first else "full_attention" for i in range(config.num_hidden_layers)]
    return layer_windows(config, config.layer_types or derived, window)
