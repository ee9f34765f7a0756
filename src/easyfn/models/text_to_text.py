"""What T5 and its kin say in the same words: config keys, the model and its heads, names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..config.fields import CommonFields, Size, alias
from ..names.rules import Rule, rename
from ..nn import (
    T5MLP,
    Embedding,
    LastMarkClassifier,
    QuestionAnswering,
    Seq2Seq,
    Seq2SeqLM,
    T5Block,
    T5Encoder,
    T5Stack,
    TokenClassifier,
)
from ..registry.family import Family, family
from ..tasks.task import task
from .translation import Ids


@task.register(T5Encoder)
def _(model: T5Encoder) -> str:
    return "encoder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Fields(CommonFields):
    """T5's keys. What names tokens is for `generate`, where no `generation_config.json` does."""

    vocab_size: Size = 32128
    d_model: Size = 512
    d_kv: Size = 64
    d_ff: Size = 2048
    num_layers: Size = 6
    num_decoder_layers: Size | None = None
    num_heads: Size = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    classifier_dropout: float | int = 0.0
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    eos_token_id: Ids = 1
    decoder_start_token_id: int | None = None
    hidden_size = alias("d_model")


def gated(data: dict[str, Any], default: str) -> dict[str, Any]:
    """The content of a `config.json`; what it derives from `feed_forward_proj` must be what that means."""
    said = data.get("feed_forward_proj") or default
    act, is_gated = activation_of(said)
    for key, derived in (("dense_act_fn", act), ("is_gated_act", is_gated)):
        if data.get(key) not in (None, derived):
            raise ValueError(f"t5: {key}={data[key]!r} contradicts feed_forward_proj={said!r}, which means {derived!r}")
    return data


def scaled(data: dict[str, Any]) -> dict[str, Any]:
    """The content of a `config.json`, with what it leaves out.

    T5 scales the decoder's output, v1.1 does not. Files told it by tie_word_embeddings; transformers 5 writes
    tie_word_embeddings=true for all, and scale_decoder_outputs. Whether an unscaled one is tied, its tensors say.
    """
    tied, said = data.get("tie_word_embeddings") is not False, data.get("scale_decoder_outputs")
    scale = tied if said is None else said
    return {**data, "scale_decoder_outputs": scale, "tie_word_embeddings": tied and scale}


def settle(config: Any, names: Collection[str]) -> Any:
    """The config that tensors of these `names` mean: a head of its own if there is one (the hub's v1.1, flan-t5, mt5), and
    else the embeddings (transformers 5 makes and saves no other)."""
    if getattr(config, "scale_decoder_outputs", False) or not names:
        return config
    return dataclasses.replace(config, tie_word_embeddings="lm_head.weight" not in names)


def activation_of(name: str) -> tuple[str, bool]:
    """The activation that a `feed_forward_proj` names, and whether it is gated."""
    kind, _, act = name.rpartition("-")
    if kind not in ("", "gated"):
        raise ValueError(f"t5: feed_forward_proj={name!r} is neither an activation nor 'gated-' and an activation")
    return ("gelu_new" if name == "gated-gelu" else act), bool(kind)


def dense_mlp(config: Any) -> T5MLP:
    """The MLP that `feed_forward_proj` names."""
    act, is_gated = activation_of(config.feed_forward_proj)
    return T5MLP(config, act, gated=is_gated)


MLPs = Callable[[Any, int, bool], Any]  # (config, number of the layer, whether in the decoder) -> its MLP


def stack(c: Any, mlps: MLPs, *, decoder: bool, own_tables: bool) -> T5Stack:
    """The encoder or the decoder."""
    depth = (c.num_layers if c.num_decoder_layers is None else c.num_decoder_layers) if decoder else c.num_layers
    blocks = [T5Block(c, mlps(c, i, decoder), decoder=decoder, own_table=own_tables) for i in range(depth)]
    return T5Stack(c, blocks, decoder=decoder, own_tables=own_tables)


def _names(model: Any, layers: Sequence[Rule]) -> list[Rule]:
    ours = "model." if hasattr(model, "model") else ""
    theirs = "transformer." if isinstance(model, (LastMarkClassifier, TokenClassifier)) else ""
    table = "relative_attention_bias.weight"
    return [
        *layers,
        *(
            rename(f"{ours}{stack}.{table}", f"{theirs}{stack}.block.0.layer.0.SelfAttention.{table}")
            for stack in ("encoder", "decoder")
        ),
        rename("model.{rest}", f"{theirs}{{rest}}"),
    ]


def text_to_text_family(
    name: str,
    config: Any,
    *,
    scale: Callable[[Any], bool],
    mlps: MLPs = lambda c, i, decoder: dense_mlp(c),
    own_tables: bool = False,
    layers: Sequence[Rule] = (),
    architectures: Sequence[str] = (),
    classifies: bool = False,
    ignore: Sequence[str] = (),
    **facts: Any,
) -> Family:
    """Registers T5 or one of its kin under transformers' classes, and the names `architectures` of the language model.

    - `scale(config)`: whether the decoder's output is multiplied by `d_model ** -0.5` before the head.
    - `own_tables`: every layer has a table of position biases of its own.
    - `layers`: rules for names inside the layers.
    - `classifies`: transformers has classifiers of texts and of tokens, and question answering.
    """

    def side(c: Any, decoder: bool) -> T5Stack:
        return stack(c, mlps, decoder=decoder, own_tables=own_tables)

    def both(c: Any, restores: bool = False) -> Seq2Seq:
        table = Embedding(c.vocab_size, c.d_model, std=c.initializer_factor)
        return Seq2Seq(c, table, side(c, False), side(c, True), restores=restores)

    def encoder(c: Any) -> T5Encoder:
        return T5Encoder(c, side(c, False))

    def language(c: Any) -> Seq2SeqLM:
        return Seq2SeqLM(both(c), tied=c.tie_word_embeddings, scale=c.d_model**-0.5 if scale(c) else 1.0)

    def answers(c: Any) -> QuestionAnswering:
        if c.num_labels != 2:
            raise ValueError(
                f"{c.model_type}: an answer has a start and an end, so num_labels is 2, not {c.num_labels}"
            )
        return QuestionAnswering(both(c, True))

    # The decoder of these reads what the encoder does, as BART's.
    heads = {
        "sequence-classification": lambda c: LastMarkClassifier(both(c, True), dropout=c.classifier_dropout),
        "token-classification": lambda c: TokenClassifier(encoder(c), dropout=c.classifier_dropout),
        "question-answering": answers,
    }
    ends = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    lm = (f"{name}ForConditionalGeneration", *architectures)
    classes = {**dict.fromkeys(lm, "seq2seq-lm"), f"{name}Model": "base", f"{name}EncoderModel": "encoder"}
    if classifies:
        classes |= {name + end: head for end, head in zip(ends, heads, strict=True)}
    return family(
        config.model_type,
        config=config,
        tasks={"seq2seq-lm": language, "base": both, "encoder": encoder, **(heads if classifies else {})},
        architectures=classes,
        names=lambda model: _names(model, layers),
        # Files that were thinned out kept one of three names of one table.
        aliases={"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")},
        # n_positions was never read; the others say what feed_forward_proj says.
        ignore=("n_positions", "dense_act_fn", "is_gated_act", *ignore),
        # A table that transformers does not read either.
        ignore_tensors=(r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
        prefix="",
        **facts,
    )
