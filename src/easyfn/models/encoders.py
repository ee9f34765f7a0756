"""What encoders say in the same words: their config keys, tasks, transformers classes and names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..config.config import labels, only
from ..config.fields import CommonFields, Size, head_dim, rope
from ..core.frozen import Frozen
from ..names.rules import Rule, concatenated, rename
from ..nn import (
    MLP,
    AddNormBlock,
    Block,
    ClassificationHead,
    EncoderEmbeddings,
    EncoderLayers,
    LayerNorm,
    MaskedLM,
    MultipleChoice,
    PooledClassifier,
    QuestionAnswering,
    SentenceEmbedding,
    TextEncoder,
    TokenClassifier,
    sentence_embedding,
)
from ..registry.family import Family, family
from .decoders import full_attention

Builder = Callable[[Any], Any]
Pairs = Sequence[tuple[str, str]]
Rules = Sequence[tuple[str, str] | Rule]

# Ours of a layer -> the end of theirs: the heads of a masked language model as most files name them.
LM_HEAD: Pairs = (
    ("dense.{rest}", "lm_head.dense.{rest}"),
    ("norm.{rest}", "lm_head.layer_norm.{rest}"),
    ("decoder.{rest}", "lm_head.decoder.{rest}"),
    ("bias", "lm_head.bias"),
)
# The same as BERT's files name them.
PREDICTIONS: Pairs = (
    ("dense.{rest}", "cls.predictions.transform.dense.{rest}"),
    ("norm.{rest}", "cls.predictions.transform.LayerNorm.{rest}"),
    ("decoder.{rest}", "cls.predictions.decoder.{rest}"),
    ("bias", "cls.predictions.bias"),
)
# Buffers that older files hold; and the twin of the tied bias.
BUFFERS = (r"embeddings\.(position|token_type)_ids$", r"decoder\.bias$")
IGNORED = ("position_embedding_type", "add_cross_attention", "is_decoder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertFields(CommonFields):
    """The keys of BERT's encoder."""

    vocab_size: Size = 30522
    hidden_size: Size = 768
    num_hidden_layers: int = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: Size = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFields(BertFields):
    """BERT's keys, with the defaults that its kin share."""

    classifier_dropout: float | int | None = None
    tie_word_embeddings: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return encoder_only(data)

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryEncoderFields(EncoderFields):
    """`EncoderFields` of BERT with rotary positions."""

    head_dim: Size | None = None
    rope_parameters: Frozen = rope()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "position_embedding_type", "rope", "rotary")
        only(data, "is_decoder", False)
        only(data, "add_cross_attention", False)
        return labels(data)


def rotary_encoder(config: Any, *, pooler: bool, bias: bool, mlp: Any) -> TextEncoder:
    """BERT with rotary positions and a gated MLP, `mlp()`; `bias` is that of the projections of attention (nomic_bert, gte)."""
    c = config
    norm = lambda: LayerNorm(c.hidden_size, c.layer_norm_eps)

    def block() -> AddNormBlock:
        rate = c.attention_probs_dropout_prob
        attention = full_attention(c, fused="rows", rope="default", qkv_bias=bias, out_bias=bias, dropout=rate)
        return AddNormBlock(attention, mlp(), norm(), norm(), dropout=c.hidden_dropout_prob)

    return TextEncoder(
        c,
        pooler=pooler,
        embeddings=EncoderEmbeddings(c, positions=False),
        rope={"default": c.rope_parameters},
        head_dim=head_dim(c),
        layers=EncoderLayers(tuple(block() for _ in range(c.num_hidden_layers))),
    )


def rotary_modules(
    prefix: str, layers: Pairs, heads: Rules | Callable[[Any], Rules], gate_up: Sequence[str] = ()
) -> Callable[[Any], list[Rule]]:
    """The modules of transformers' rotary encoders, after which adapters are named: queries, keys and values apart, and the
    parts of the MLP, `gate_up` in the order of our rows."""
    inside = [
        (f"encoder.layer.{{i}}.{ours}.{{rest}}", f"layers.{{i}}.{theirs}.{{rest}}")
        for ours, theirs in (
            ("self_attn", "self_attn"),
            ("mlp", "mlp"),
            ("input_layernorm", "post_attention_layernorm"),
            ("post_attention_layernorm", "post_mlp_layernorm"),
        )
    ]
    renamed = encoder_names(prefix, [*layers, *inside], heads)
    apart = [
        concatenated(f"{{rest}}.self_attn.qkv_proj.{kind}", *(f"{{rest}}.self_attn.{p}_proj.{kind}" for p in "qkv"))
        for kind in ("weight", "bias")
    ]
    if gate_up:
        apart.append(
            concatenated("{rest}.mlp.gate_up_proj.weight", *(f"{{rest}}.mlp.{p}_proj.weight" for p in gate_up))
        )
    return lambda model: [*apart, *renamed(model)]


def rotary_tasks(encoder: Callable[..., Any]) -> dict[str, Any]:
    """What transformers has for such an encoder: no pooler but under the classifier of rows, and three heads."""
    bare = lambda c: encoder(c, pooler=False)
    return {
        "classifier": lambda c: PooledClassifier(encoder(c, pooler=True), dropout=c.head_dropout),
        "tasks": {"base": bare, "sentence-embedding": lambda c: sentence_embedding(bare(c))},
        "lacks": ("question-answering", "multiple-choice"),
    }


def encoder_only(data: dict[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` of an encoder; what would make it a decoder, or its positions others, is refused."""
    only(data, "position_embedding_type", "absolute")
    only(data, "is_decoder", False)
    only(data, "add_cross_attention", False)
    return labels(data)


def encoder_names(
    prefix: str, layers: Pairs = (), heads: Rules | Callable[[Any], Rules] = ()
) -> Callable[[Any], list[Rule]]:
    """The names of an encoder and of all its heads: `layers` and `heads` are pairs of our path and the file's.

    The encoder alone, and inside a sentence embedding, is named without the `prefix` that it has under a head.
    """

    def names(model: Any) -> list[Rule]:
        if not hasattr(model, "model"):
            return [rename(ours, theirs) for ours, theirs in layers]
        outer = "" if isinstance(model, SentenceEmbedding) or not prefix else f"{prefix}."
        inner = [rename(f"model.{ours}", outer + theirs) for ours, theirs in (*layers, ("{rest}", "{rest}"))]
        outer_names = heads(model) if callable(heads) else heads
        return [*(one if isinstance(one, Rule) else rename(*one) for one in outer_names), *inner]

    return names


def pre_norm_layer(c: Any, *, act: str, rope: str | None = None, mlp_dropout: float | None = None) -> Block:
    """A layer of BERT's parts with the norms before them (ESM, XLM-RoBERTa-XL)."""
    rate = c.attention_probs_dropout_prob
    attention = full_attention(c, qkv_bias=True, out_bias=True, dropout=rate, rope=rope)
    mlp = MLP(c.hidden_size, c.intermediate_size, act, bias=True)
    norm = lambda: LayerNorm(c.hidden_size, c.layer_norm_eps)
    return Block(attention, mlp, norm(), norm(), dropout=c.hidden_dropout_prob, mlp_dropout=mlp_dropout)


def pre_norm_names(first: str, second: str) -> Pairs:
    """Such layers in files, where the norms are `first` and `second` of a layer."""
    parts = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.o_proj": "attention.output.dense",
        "input_layernorm": first,
        "mlp.up_proj": "intermediate.dense",
        "mlp.down_proj": "output.dense",
        "post_attention_layernorm": second,
    }
    layer = "encoder.layer.{i}."
    return [(f"{layer}{ours}.{{rest}}", f"{layer}{theirs}.{{rest}}") for ours, theirs in parts.items()]


def first_token_head(config: Any, *, act: str = "tanh") -> ClassificationHead:
    """The classifier of RoBERTa and its kin: a layer and its activation on the first token, and the scores."""
    return ClassificationHead(config.hidden_size, config.num_labels, act=act, dropout=config.head_dropout)


def encoder_family(
    name: str,
    config: Any,
    encoder: Callable[..., Any],
    *,
    prefix: str,
    lm_head: Builder | None = None,
    classifier: Builder | None = None,
    choice: Builder | None = None,
    tasks: Mapping[str, Builder] | None = None,
    architectures: Mapping[str, str] | None = None,
    lacks: Sequence[str] = (),
    layers: Pairs = (),
    heads: Rules | Callable[[Any], Rules] = LM_HEAD,
    ignore: Sequence[str] = IGNORED,
    ignore_tensors: Sequence[str] = BUFFERS,
    **facts: Any,
) -> Family:
    """Registers an encoder with all the heads that transformers has for it.

    - `name` is what transformers' classes begin with, `prefix` the name of the encoder under a head.
    - `encoder(config, pooler=...)` builds it, with or without a pooler.
    - `lm_head`, `classifier` (of rows) and `choice` build those tasks where they are not the usual ones; `tasks` are
      further ones, and `architectures` their transformers classes. `lacks` are tasks that transformers has no class for.
    - `layers`, `heads`: pairs of our path and the file's, of the encoder and of its heads (or a function of the model).
    """
    bare = lambda c: encoder(c, pooler=False)
    all_tasks: dict[str, Builder] = {
        "base": lambda c: encoder(c, pooler=True),
        "masked-lm": lm_head or (lambda c: MaskedLM(bare(c), tied=c.tie_word_embeddings, act="gelu")),
        "sequence-classification": classifier
        or (lambda c: PooledClassifier(bare(c), dropout=c.head_dropout, classifier=first_token_head(c))),
        "token-classification": lambda c: TokenClassifier(bare(c), dropout=c.head_dropout),
        "question-answering": lambda c: QuestionAnswering(bare(c)),
        "multiple-choice": choice or (lambda c: MultipleChoice(encoder(c, pooler=True), dropout=c.hidden_dropout_prob)),
        "sentence-embedding": lambda c: sentence_embedding(encoder(c, pooler=True)),
        **(tasks or {}),
    }
    classes = {
        f"{name}Model": "base",
        f"{name}ForMaskedLM": "masked-lm",
        f"{name}ForSequenceClassification": "sequence-classification",
        f"{name}ForTokenClassification": "token-classification",
        f"{name}ForQuestionAnswering": "question-answering",
        f"{name}ForMultipleChoice": "multiple-choice",
        **(architectures or {}),
    }
    return family(
        config.model_type,
        config=config,
        tasks={task: build for task, build in all_tasks.items() if task not in lacks},
        architectures={name: task for name, task in classes.items() if task not in lacks},
        names=encoder_names(prefix, layers, heads),
        ignore=ignore,
        ignore_tensors=ignore_tensors,
        prefix=prefix,
        **facts,
    )
