"""Gemma 3 with images (Gemma Team 2025, arXiv 2503.19786): pooled features of a SigLIP tower; an image reads itself both
ways."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size, alias
from ..names.rules import transposed
from ..nn import CausalLM, RMSNorm, SequenceClassifier
from ..nn.image_text import ImageText
from ..nn.projectors import PooledProjector
from ..nn.vision import pair
from ..registry.family import family
from .image_text import TWO_HALVES, ImageTextFields, in_model, of_text, part, sub_config, two_halves

GEMMA3 = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(ImageTextFields):
    """The keys of a Gemma 3 `config.json` with images."""

    model_type: ClassVar[str] = "gemma3"
    text_config: sub_config("gemma3_text", **GEMMA3)  # type: ignore[valid-type]
    vision_config: sub_config("siglip_vision_model")  # type: ignore[valid-type]
    mm_tokens_per_image: Size = 256
    image_token_index: int = 262144
    tie_word_embeddings: bool = True

    image_token_id = alias("image_token_index")
    pad_token_id: ClassVar = of_text()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, **{key: data.get(key) or {} for key in ("text_config", "vision_config")}}


def gemma3(c: Gemma3Config) -> ImageText:
    v = c.vision_config
    side = pair(v.image_size)[0] // pair(v.patch_size)[0]
    norm = RMSNorm(v.hidden_size, v.layer_norm_eps, offset=1.0)
    square = side // math.isqrt(c.mm_tokens_per_image)
    if square < 1:
        raise ValueError(
            f"gemma3: mm_tokens_per_image={c.mm_tokens_per_image} are more than the {side**2} patches of an image"
        )
    projector = PooledProjector(v.hidden_size, c.hidden_size, norm, side=side, square=square)
    return ImageText(c, part(v), projector, part(c.text_config), image_token=c.image_token_index, blocks="images")


PROJECTION = "model.multi_modal_projector.mm_input_projection"
NAMES = [transposed(f"{PROJECTION}.weight", f"{PROJECTION}_weight")]

family(
    "gemma3",
    config=Gemma3Config,
    tasks={
        "causal-lm": lambda c: CausalLM(gemma3(c), tied=c.tie_word_embeddings),
        "base": gemma3,
        "sequence-classification": lambda c: SequenceClassifier(gemma3(c)),
    },
    architectures={
        "Gemma3ForConditionalGeneration": "causal-lm",
        "Gemma3Model": "base",
        "Gemma3ForSequenceClassification": "sequence-classification",
    },
    names=two_halves(NAMES),
    modules=in_model(NAMES),
    ignore=("boi_token_index", "eoi_token_index", "boi_token_id", "eoi_token_id"),  # of the processor
    ignore_tensors=(r"embeddings\.position_ids$", r"rotary_emb\.", r"embed_tokens\.embed_scale$"),
    aliases=TWO_HALVES,
)
