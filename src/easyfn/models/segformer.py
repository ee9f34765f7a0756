"""SegFormer (Xie et al. 2021, arXiv 2105.15203): attention to fewer places than ask, in stages, without positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import CommonFields, Size, alias
from ..core.stack import one_by_one
from ..core.weight import dense
from ..inputs.image import image_inputs
from ..inputs.statement import Inputs, inputs
from ..names.rules import rename
from ..nn import BatchNorm, Context, Conv, LayerNorm, Linear, Output, dropout, fold
from ..nn.activation import activation
from ..nn.attention.core import merge_heads, split_heads
from ..nn.image_heads import ImageClassifier, SemanticSegmenter
from ..nn.resize import resize_images
from ..nn.vision import EncoderBlock, attend_all, channels_last, image_context
from ..registry.family import family
from .vision import batches_tracked, head_names


@dataclass(frozen=True, kw_only=True)
class SegformerConfig(CommonFields):
    """The keys of a SegFormer `config.json`. Its norms have an epsilon of 1e-5 whatever `layer_norm_eps` says."""

    model_type: ClassVar[str] = "segformer"
    num_channels: Size = 3
    num_encoder_blocks: Size = 4
    depths: tuple[int, ...] = (2, 2, 2, 2)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    hidden_sizes: tuple[int, ...] = (32, 64, 160, 256)
    patch_sizes: tuple[int, ...] = (7, 3, 3, 3)
    strides: tuple[int, ...] = (4, 2, 2, 2)
    num_attention_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[int | float, ...] = (4, 4, 4, 4)
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    classifier_dropout_prob: float | int = 0.1
    drop_path_rate: float | int = 0.1
    decoder_hidden_size: Size = 256
    semantic_loss_ignore_index: int = 255
    reshape_last_stage: bool = True
    num_hidden_layers: ClassVar = alias("num_encoder_blocks")


class Reduction(eqx.Module):
    """Squares of places become one, normed: `(batch, height, width, channels)`; what is left at the ends is not read."""

    sequence_reduction: Conv
    layer_norm: LayerNorm

    def __init__(self, size: int, ratio: int) -> None:
        self.sequence_reduction = Conv(size, size, (ratio, ratio), stride=ratio)
        self.layer_norm = LayerNorm(size, 1e-5)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer_norm(self.sequence_reduction(x))


class ReducedAttention(eqx.Module):
    """Every place of `(batch, height, width, channels)` asks, and squares of `ratio` by `ratio` places answer as one."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    reduction: Reduction | None
    heads: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, size: int, heads: int, ratio: int, dropout: float) -> None:
        if size % heads:
            raise ValueError(f"segformer: {size} channels are no multiple of {heads} heads (num_attention_heads)")
        self.q_proj, self.k_proj, self.v_proj = (Linear(size, size, True, axes=("heads", "embed")) for _ in range(3))
        self.o_proj = Linear(size, size, True, axes=("embed", "heads"))
        self.reduction = Reduction(size, ratio) if ratio > 1 else None
        self.heads, self.dropout = heads, dropout

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        flat = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])
        few = flat(x if self.reduction is None else self.reduction(x))
        q, k, v = self.q_proj(flat(x)), self.k_proj(few), self.v_proj(few)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        out, weights = attend_all(q, k, v, context, dropout_rate=self.dropout)
        return self.o_proj(merge_heads(out)).reshape(x.shape), weights


class MixMLP(eqx.Module):
    """An MLP with a depthwise convolution in its middle, by which places learn where they are."""

    fc1: Linear
    dwconv: Conv
    fc2: Linear
    act: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, size: int, inner: int, act: str, dropout: float) -> None:
        activation(act)
        self.fc1 = Linear(size, inner, True, axes=("mlp", "embed"))
        self.dwconv = Conv(inner, inner, (3, 3), padding=1, groups=inner)
        self.fc2 = Linear(inner, size, True, axes=("embed", "mlp"))
        self.act, self.dropout = act, dropout

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        h = activation(self.act)(self.dwconv(self.fc1(x)))
        return self.fc2(dropout(h, self.dropout, context, 5))


class SegformerStage(eqx.Module):
    """Patches that overlap, normed; layers; a norm."""

    proj: Conv
    first_norm: LayerNorm
    blocks: tuple[EncoderBlock, ...]
    layer_norm: LayerNorm


class Segformer(eqx.Module):
    """Pixels to `last_hidden_state` `(batch, channels, height, width)`; the hidden states are those of stages."""

    stages: tuple[SegformerStage, ...]
    config: SegformerConfig = eqx.field(static=True)

    def __init__(self, c: SegformerConfig) -> None:
        count, total = c.num_encoder_blocks, max(sum(c.depths) - 1, 1)
        names = ("depths", "sr_ratios", "hidden_sizes", "patch_sizes", "strides", "num_attention_heads", "mlp_ratios")
        if short := [name for name in names if len(getattr(c, name)) < count]:
            raise ValueError(f"segformer: {short[0]}={getattr(c, short[0])} for num_encoder_blocks={count}")

        def block(i: int, j: int) -> EncoderBlock:
            size, rate = c.hidden_sizes[i], c.hidden_dropout_prob
            attention = ReducedAttention(size, c.num_attention_heads[i], c.sr_ratios[i], c.attention_probs_dropout_prob)
            mlp = MixMLP(size, int(size * c.mlp_ratios[i]), c.hidden_act, rate)
            path = c.drop_path_rate * (sum(c.depths[:i]) + j) / total
            return EncoderBlock(size, attention, mlp, 1e-5, dropout=rate, drop_path=path)

        def stage(i: int) -> SegformerStage:
            size, patch = c.hidden_sizes[i], c.patch_sizes[i]
            before = c.hidden_sizes[i - 1] if i else c.num_channels
            proj = Conv(before, size, (patch, patch), stride=c.strides[i], padding=patch // 2)
            blocks = tuple(block(i, j) for j in range(c.depths[i]))
            return SegformerStage(proj, LayerNorm(size, 1e-5), blocks, LayerNorm(size, 1e-5))

        self.stages = tuple(stage(i) for i in range(count))
        self.config = c

    def __call__(self, context: Context, cache: Any = None, *, pixel_values: jax.Array) -> Output:
        context = image_context(context)
        inner = context.replace(outputs=context.outputs - {"hidden_states"})  # of stages, not of layers
        states: list[jax.Array] = []
        attentions, index, stages = (), 0, one_by_one(self.stages)
        x = channels_last(pixel_values, dense(stages[0].proj.weight))
        for stage in stages:
            x, _, trace = fold(stage.blocks, stage.first_norm(stage.proj(x)), inner, index=index)
            attentions += trace.get("attentions", ())
            index += len(stage.blocks)
            x = stage.layer_norm(x)
            states.append(jnp.moveaxis(x, -1, 1))
        if not self.config.reshape_last_stage:
            states[-1] = x.reshape(x.shape[0], -1, x.shape[-1])
        return Output(
            last_hidden_state=states[-1],
            hidden_states=tuple(states) if context.wants("hidden_states") else None,
            attentions=attentions or None,
        )


@inputs.register(Segformer)
def _(model: Segformer) -> Inputs:
    return image_inputs(model.config, settings=())


class Projection(eqx.Module):
    proj: Linear


class SegformerDecodeHead(eqx.Module):
    """All stages at the size of the first, made one: `logits` of each place, `(batch, num_labels, height, width)`."""

    linear_projections: tuple[Projection, ...]
    linear_fuse: Conv
    batch_norm: BatchNorm
    classifier: Conv
    dropout: float = eqx.field(static=True)

    def __init__(self, c: SegformerConfig) -> None:
        if not c.reshape_last_stage:
            raise ValueError(
                "segformer: reshape_last_stage=False leaves a row of places to the head for segmentation, of which "
                "transformers takes the number of channels for their number: set it true"
            )
        size, count = c.decoder_hidden_size, c.num_encoder_blocks
        self.linear_projections = tuple(
            Projection(Linear(wide, size, True, axes=("mlp", "embed"))) for wide in c.hidden_sizes[:count]
        )
        self.linear_fuse = Conv(count * size, size, (1, 1), False)
        self.batch_norm = BatchNorm(size)
        self.classifier = Conv(size, c.num_labels, (1, 1))
        self.dropout = c.classifier_dropout_prob

    def __call__(self, states: tuple[jax.Array, ...], context: Context) -> jax.Array:
        size, parts = states[0].shape[2:], []
        for state, layer in zip(states, one_by_one(self.linear_projections), strict=True):
            parts.append(resize_images(layer.proj(jnp.moveaxis(state, 1, -1)), size))
        h = jax.nn.relu(self.batch_norm(self.linear_fuse(jnp.concatenate(parts[::-1], axis=-1))))
        return jnp.moveaxis(self.classifier(dropout(h, self.dropout, context, 1_000_004)), -1, 1)


PARTS = {
    "norm1": "layer_norm_1",
    "norm2": "layer_norm_2",
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention.reduction.sequence_reduction": "attention.self.sr",
    "attention.reduction.layer_norm": "attention.self.layer_norm",
    "mlp.fc1": "mlp.dense1",
    "mlp.fc2": "mlp.dense2",
    "mlp.dwconv": "mlp.dwconv.dwconv",
}
MODULES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.reduction": "attention.sequence_reduction",
    "mlp.dwconv": "mlp.dwconv.dwconv",
}
STAGE = "stages.{i}."
FILES = [
    *(rename(f"{STAGE}blocks.{{j}}.{a}.{{rest}}", f"encoder.block.{{i}}.{{j}}.{b}.{{rest}}") for a, b in PARTS.items()),
    rename(STAGE + "proj.{rest}", "encoder.patch_embeddings.{i}.proj.{rest}"),
    rename(STAGE + "first_norm.{rest}", "encoder.patch_embeddings.{i}.layer_norm.{rest}"),
    rename(STAGE + "layer_norm.{rest}", "encoder.layer_norm.{i}.{rest}"),
]
INSIDE = [
    *(rename(f"{STAGE}blocks.{{j}}.{a}.{{rest}}", f"{STAGE}blocks.{{j}}.{b}.{{rest}}") for a, b in MODULES.items()),
    rename(STAGE + "proj.{rest}", STAGE + "patch_embeddings.proj.{rest}"),
    rename(STAGE + "first_norm.{rest}", STAGE + "patch_embeddings.layer_norm.{rest}"),
]
HEAD = rename("decode_head.linear_projections.{rest}", "decode_head.linear_c.{rest}")
family(
    "segformer",
    config=SegformerConfig,
    tasks={
        "base": Segformer,
        "image-classification": lambda c: ImageClassifier(
            Segformer(c),
            pooling="places" if c.reshape_last_stage else "mean",
            size=c.hidden_sizes[c.num_encoder_blocks - 1],
            extra=0,
        ),
        "semantic-segmentation": lambda c: SemanticSegmenter(Segformer(c), SegformerDecodeHead(c)),
    },
    architectures={
        "SegformerModel": "base",
        "SegformerForImageClassification": "image-classification",
        "SegformerForSemanticSegmentation": "semantic-segmentation",
    },
    names=lambda model: [HEAD, *head_names(model, Segformer, FILES, "segformer")],
    modules=lambda model: head_names(model, Segformer, INSIDE, "segformer"),
    constants=batches_tracked,
    ignore=("layer_norm_eps", "image_size", "downsampling_rates"),  # the last two of old files, which nobody reads
    ignore_tensors=(r"\.num_batches_tracked$",),
    prefix="segformer",
)
