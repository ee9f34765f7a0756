"""LLaVA (Liu et al. 2023, arXiv 2304.08485): features of a CLIP tower, projected, are words of a language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Integer, alias
from ..nn import CausalLM
from ..nn.image_text import ImageText
from ..nn.packing import PatchSquares
from ..nn.projectors import Projector
from ..nn.vision import pair
from ..registry.family import family
from .image_text import LLAMA, TWO_HALVES, ImageTextFields, in_model, part, sub_config, two_halves
from .pixtral import PixtralVisionConfig

CLIP = {
    "intermediate_size": 4096,
    "hidden_size": 1024,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
}


@dataclass(frozen=True, kw_only=True)
class LlavaConfig(ImageTextFields):
    """The keys of a LLaVA `config.json`."""

    model_type: ClassVar[str] = "llava"
    text_config: sub_config("llama", **LLAMA)  # type: ignore[valid-type]
    vision_config: sub_config("clip_vision_model")  # type: ignore[valid-type]
    image_token_index: int = 32000
    projector_hidden_act: str = "gelu"
    vision_feature_select_strategy: str = "default"
    vision_feature_layer: Integer | tuple[Integer, ...] = -2
    multimodal_projector_bias: bool = True
    tie_word_embeddings: bool = False

    image_token_id = alias("image_token_index")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        vision = data.get("vision_config") or CLIP
        if isinstance(vision, dict):
            vision = {key: value for key, value in vision.items() if key != "vocab_size"}
        return {**data, "text_config": data.get("text_config") or {}, "vision_config": vision}


def feature_layers(c: Any) -> tuple[int, ...]:
    """The layers of the tower that are read: a config names one, or several."""
    said = c.vision_feature_layer
    return (said,) if isinstance(said, int) else tuple(said)


def llava(c: LlavaConfig, **own: Any) -> ImageText:
    if c.vision_feature_select_strategy not in ("default", "full"):
        raise ValueError(
            f"vision_feature_select_strategy={c.vision_feature_select_strategy!r} is no 'default' or 'full'"
        )
    layers = feature_layers(c)
    if isinstance(c.vision_config, PixtralVisionConfig):
        own = {"pack": PatchSquares(pair(c.vision_config.patch_size), 1), **own}
    wide = len(layers) * c.vision_config.hidden_size
    projector = Projector(wide, c.text_config.hidden_size, c.projector_hidden_act, bias=c.multimodal_projector_bias)
    return ImageText(
        c,
        part(c.vision_config),
        projector,
        part(c.text_config),
        image_token=c.image_token_index,
        feature_layers=layers,
        drop_first=c.vision_feature_select_strategy == "default",
        **own,
    )


# Of the processor, or what the text says itself.
IGNORED = ("image_seq_length", "ignore_index", "vocab_size")


def tied(config: Any) -> bool:
    """Whether the head is the embeddings: the file may say so of the whole or of the text."""
    return config.tie_word_embeddings or bool(getattr(config.text_config, "tie_word_embeddings", False))


family(
    "llava",
    config=LlavaConfig,
    tasks={"causal-lm": lambda c: CausalLM(llava(c), tied=tied(c)), "base": llava},
    architectures={"LlavaForConditionalGeneration": "causal-lm", "LlavaModel": "base"},
    names=two_halves(),
    modules=in_model(),
    ignore=IGNORED,
    ignore_tensors=(r"embeddings\.position_ids$", r"rotary_emb\.inv_freq$"),
    aliases=TWO_HALVES,
)
