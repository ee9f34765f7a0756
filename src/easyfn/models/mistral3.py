"""Mistral Small 3.1 and Ministral 3 with images (Mistral AI 2025): Pixtral's tower, whose patches are merged in squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Integer, Size, alias
from ..names.rules import rename
from ..nn import CausalLM, RMSNorm
from ..nn.image_text import ImageText
from ..nn.packing import PatchSquares
from ..nn.projectors import NormedSquares
from ..nn.vision import pair
from ..registry.family import family
from .image_text import TWO_HALVES, ImageTextFields, in_model, part, sub_config, two_halves
from .llava import IGNORED, feature_layers

TEXT = {
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e9,
    "sliding_window": None,
    "vocab_size": 131072,
}
VISION = {"patch_size": 14, "image_size": 1540}


@dataclass(frozen=True, kw_only=True)
class Mistral3Config(ImageTextFields):
    """The keys of a Mistral 3 `config.json`."""

    model_type: ClassVar[str] = "mistral3"
    text_config: sub_config("mistral")  # type: ignore[valid-type]
    vision_config: sub_config("pixtral")  # type: ignore[valid-type]
    image_token_index: int = 10
    projector_hidden_act: str = "gelu"
    vision_feature_layer: Integer | tuple[Integer, ...] = -1
    multimodal_projector_bias: bool = False
    spatial_merge_size: Size = 2
    tie_word_embeddings: bool = True

    image_token_id = alias("image_token_index")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        halves = {"text_config": data.get("text_config") or TEXT, "vision_config": data.get("vision_config") or VISION}
        return {**data, **halves}


def mistral3(c: Mistral3Config) -> ImageText:
    layers = feature_layers(c)
    if len(layers) != 1:
        raise ValueError(f"mistral3: vision_feature_layer={list(layers)}: the projector's norm is as wide as one layer")
    norm = RMSNorm(c.vision_config.hidden_size, c.text_config.rms_norm_eps)
    sizes = (c.vision_config.hidden_size, c.hidden_size, c.spatial_merge_size)
    return ImageText(
        c,
        part(c.vision_config),
        NormedSquares(norm, *sizes, c.projector_hidden_act, bias=c.multimodal_projector_bias),
        part(c.text_config),
        image_token=c.image_token_index,
        feature_layers=layers,
        pack=PatchSquares(pair(c.vision_config.patch_size), c.spatial_merge_size),
    )


def _merger(ours: str, theirs: str) -> Any:
    return rename(f"{ours}.patch_merger.{{rest}}", f"{theirs}.patch_merger.merging_layer.{{rest}}")


_OURS = "model.multi_modal_projector"

family(
    "mistral3",
    config=Mistral3Config,
    tasks={"causal-lm": lambda c: CausalLM(mistral3(c), tied=c.tie_word_embeddings), "base": mistral3},
    architectures={"Mistral3ForConditionalGeneration": "causal-lm", "Mistral3Model": "base"},
    names=two_halves([_merger(_OURS, "multi_modal_projector")]),
    modules=in_model([_merger(_OURS, _OURS)]),
    ignore=IGNORED,
    ignore_tensors=(r"patch_positional_embedding\.", r"rotary_emb\.inv_freq$"),
    aliases=TWO_HALVES,
)
