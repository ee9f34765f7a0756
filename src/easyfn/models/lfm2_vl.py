"""LFM2-VL (Liquid AI 2025, arXiv 2511.23404): SigLIP 2 on images of any shape, blocks of patches side by side, and LFM2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import Size
from ..nn import CausalLM, LayerNorm
from ..nn.image_text import ImageText
from ..nn.packing import PatchBlocks
from ..nn.projectors import Projector
from ..registry.family import family
from .image_text import ImageTextFields, in_model, part, sub_config

LFM2 = {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


@dataclass(frozen=True, kw_only=True)
class Lfm2VlConfig(ImageTextFields):
    """The keys of an LFM2-VL `config.json`."""

    model_type: ClassVar[str] = "lfm2_vl"
    text_config: sub_config("lfm2", **LFM2)  # type: ignore[valid-type]
    vision_config: sub_config("siglip2_vision_model")  # type: ignore[valid-type]
    image_token_id: int = 396
    projector_hidden_act: str = "gelu"
    projector_hidden_size: Size = 2560
    projector_bias: bool = True
    projector_use_layernorm: bool = True
    downsample_factor: Size = 2
    tie_word_embeddings: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        data = {**data, **{key: data.get(key) or {} for key in ("text_config", "vision_config")}}
        if "tie_embedding" in data:  # its first files' word; it wins
            data["tie_word_embeddings"] = data.pop("tie_embedding")
        # Of LLaVA's config; transformers reads none of them.
        only(data, "image_token_index", data.get("image_token_id", 396))
        only(data, "vision_feature_layer", -1)
        return data


def lfm2_vl(c: Lfm2VlConfig) -> ImageText:
    wide = c.vision_config.hidden_size * c.downsample_factor**2
    projector = Projector(
        wide,
        c.hidden_size,
        c.projector_hidden_act,
        bias=c.projector_bias,
        hidden=c.projector_hidden_size,
        norm=LayerNorm(wide) if c.projector_use_layernorm else None,
    )
    return ImageText(
        c,
        part(c.vision_config),
        projector,
        part(c.text_config),
        image_token=c.image_token_id,
        pack=PatchBlocks(c.downsample_factor),
    )


# Of the processor.
IGNORED = (
    "do_image_splitting",
    "encoder_patch_size",
    "max_image_tokens",
    "max_num_patches",
    "max_pixels_tolerance",
    "max_tiles",
    "min_image_tokens",
    "min_tiles",
    "tile_size",
    "use_image_special_tokens",
    "use_thumbnail",
)

family(
    "lfm2_vl",
    config=Lfm2VlConfig,
    tasks={"causal-lm": lambda c: CausalLM(lfm2_vl(c), tied=c.tie_word_embeddings), "base": lfm2_vl},
    architectures={"Lfm2VlForConditionalGeneration": "causal-lm", "Lfm2VlModel": "base"},
    names=in_model(files=True),
    modules=in_model(),
    ignore=(*IGNORED, "image_token_index", "vision_feature_layer", "vision_feature_select_strategy"),
    ignore_tensors=(r"rotary_emb\.inv_freq$",),
    aliases={"model.vision_tower.{rest}": ("model.vision_tower.vision_model.{rest}",)},
)
