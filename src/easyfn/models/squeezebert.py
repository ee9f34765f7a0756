"""SqueezeBERT (Iandola et al. 2020, arXiv 2006.11316): BERT whose linear layers are convolutions in groups of channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import Size
from ..nn import (
    Conv,
    EncoderLayer,
    EncoderLayers,
    MaskedLM,
    MultipleChoice,
    PooledClassifier,
    QuestionAnswering,
    TextEncoder,
    TokenClassifier,
)
from ..nn.encoder import AddNorm, Dense, SelfAttention
from .encoders import PREDICTIONS, EncoderFields, encoder_family


@dataclass(frozen=True, kw_only=True)
class SqueezeBertConfig(EncoderFields):
    """The keys of a SqueezeBERT `config.json`."""

    model_type: ClassVar[str] = "squeezebert"
    unsaid: ClassVar[tuple[str, ...]] = ("classifier_dropout",)
    embedding_size: Size = 768
    q_groups: Size = 4
    k_groups: Size = 4
    v_groups: Size = 4
    post_attention_groups: Size = 1
    intermediate_groups: Size = 4
    output_groups: Size = 4
    head_dropout = property(lambda c: c.hidden_dropout_prob)


def pointwise(size_in: int, size: int, groups: int, axes: tuple[str, str]) -> Conv:
    """A linear layer of `groups` blocks, each of which reads channels of its own."""
    if size_in % groups or size % groups:
        raise ValueError(f"squeezebert: {size_in} and {size} channels do not fall into {groups} groups")
    return Conv(size_in, size, (1,), groups=groups, axes=axes)


def squeezed_layer(c: SqueezeBertConfig) -> EncoderLayer:
    """A layer of BERT's; its norms have an epsilon of 1e-12 whatever the config says, as in transformers."""
    size, inner, rate = c.hidden_size, c.intermediate_size, c.hidden_dropout_prob
    project = lambda groups: pointwise(size, size, groups, ("heads", "embed"))
    groups = (c.q_groups, c.k_groups, c.v_groups)
    attention = SelfAttention(
        size, c.num_attention_heads, c.attention_probs_dropout_prob, projections=tuple(map(project, groups))
    )
    last = ("embed", "mlp")
    after = pointwise(size, size, c.post_attention_groups, ("embed", "heads"))
    up, down = (
        pointwise(size, inner, c.intermediate_groups, ("mlp", "embed")),
        pointwise(inner, size, c.output_groups, last),
    )
    parts = (
        AddNorm(size, size, 1e-12, rate, axes=last, dense=after),
        Dense(size, inner, c.hidden_act, axes=last, dense=up),
        AddNorm(inner, size, 1e-12, rate, axes=last, dense=down),
    )
    return EncoderLayer(c, attention=attention, parts=parts)


def squeezebert(c: SqueezeBertConfig, *, pooler: bool) -> TextEncoder:
    if c.embedding_size != c.hidden_size:
        raise ValueError(
            f"squeezebert: embedding_size={c.embedding_size} is not hidden_size={c.hidden_size}, and nothing is between them"
        )
    layers = EncoderLayers(tuple(squeezed_layer(c) for _ in range(c.num_hidden_layers)))
    return TextEncoder(c, pooler=pooler, layers=layers)


LAYER, THEIRS = "encoder.layer.{i}.", "encoder.layers.{i}."
encoder_family(
    "SqueezeBert",
    SqueezeBertConfig,
    squeezebert,
    prefix="transformer",
    # All heads hold a pooler, those that do not read it too.
    lm_head=lambda c: MaskedLM(squeezebert(c, pooler=True), tied=c.tie_word_embeddings),
    classifier=lambda c: PooledClassifier(squeezebert(c, pooler=True), dropout=c.head_dropout),
    choice=lambda c: MultipleChoice(squeezebert(c, pooler=True), dropout=c.head_dropout),
    tasks={
        "token-classification": lambda c: TokenClassifier(squeezebert(c, pooler=True), dropout=c.head_dropout),
        "question-answering": lambda c: QuestionAnswering(squeezebert(c, pooler=True)),
    },
    layers=[
        *(
            (f"{LAYER}{ours}.{{rest}}", f"{THEIRS}{theirs}.{{rest}}")
            for ours, theirs in (
                ("attention.self", "attention"),
                ("attention.output.dense", "post_attention.conv1d"),
                ("attention.output.LayerNorm", "post_attention.layernorm"),
                ("intermediate.dense", "intermediate.conv1d"),
                ("output.dense", "output.conv1d"),
                ("output.LayerNorm", "output.layernorm"),
            )
        ),
    ],
    heads=PREDICTIONS,
)
