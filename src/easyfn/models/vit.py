"""ViT (Dosovitskiy et al. 2020, arXiv 2010.11929): an image is a sequence of patches, read by a pre-norm encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import ViTFields
from ..nn.image_heads import ImageClassifier, MaskedPixels
from ..nn.mlp import MLP
from ..nn.vision import ClassTokens, EncoderBlock, FirstToken, ImageEncoder, SelfAttention
from ..registry.family import family
from .vision import LEGACY, MODULES, block_names, head_names


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ViTFields):
    """The keys of a ViT `config.json`."""

    model_type: ClassVar[str] = "vit"


def vit_block(c: Any) -> EncoderBlock:
    bias = (c.qkv_bias, c.qkv_bias, c.qkv_bias, True)
    attention = SelfAttention(c.hidden_size, c.num_attention_heads, bias=bias, dropout=c.attention_probs_dropout_prob)
    mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True)
    return EncoderBlock(c.hidden_size, attention, mlp, c.layer_norm_eps, dropout=c.hidden_dropout_prob)


def vit(c: Any, *, pooler: bool = True, distilled: bool = False, masked: bool = False) -> ImageEncoder:
    """An encoder of patches, with a class token (and DeiT's distillation token, and one for masked patches)."""
    pooled = FirstToken((c.hidden_size, c.pooler_output_size or c.hidden_size), c.pooler_act) if pooler else None
    layers = [vit_block(c) for _ in range(c.num_hidden_layers)]
    tokens = ClassTokens(c, distilled=distilled, mask_token=(1, 1, c.hidden_size) if masked else None)
    return ImageEncoder(c, tokens, layers, pooler=pooled)


family(
    "vit",
    config=ViTConfig,
    tasks={
        "base": vit,
        "image-classification": lambda c: ImageClassifier(vit(c, pooler=False)),
        "masked-image-modeling": lambda c: MaskedPixels(vit(c, pooler=False, masked=True), c.hidden_size),
    },
    architectures={
        "ViTModel": "base",
        "ViTForImageClassification": "image-classification",
        "ViTForMaskedImageModeling": "masked-image-modeling",
    },
    names=lambda model: head_names(model, ImageEncoder, block_names("layers", "encoder.layer", LEGACY), "vit"),
    modules=lambda model: head_names(model, ImageEncoder, block_names("layers", "layers", MODULES), "vit"),
    prefix="vit",
)
