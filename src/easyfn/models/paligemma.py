"""PaliGemma (Beyer et al. 2024, arXiv 2407.07726; 2 in arXiv 2412.03555): SigLIP and Gemma; image and prompt are read both
ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import Size, alias
from ..nn import CausalLM
from ..nn.image_text import ImageText
from ..nn.projectors import LinearProjector
from ..registry.family import family
from .image_text import TWO_HALVES, ImageTextFields, in_model, part, sub_config, two_halves

GEMMA = {
    "vocab_size": 257152,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
}
SIGLIP = {
    "intermediate_size": 4096,
    "hidden_size": 1152,
    "patch_size": 14,
    "image_size": 224,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "vision_use_head": False,
}


@dataclass(frozen=True, kw_only=True)
class PaliGemmaConfig(ImageTextFields):
    """The keys of a PaliGemma `config.json`."""

    model_type: ClassVar[str] = "paligemma"
    text_config: sub_config("gemma")  # type: ignore[valid-type]
    vision_config: sub_config("siglip_vision_model")  # type: ignore[valid-type]
    image_token_index: int = 256000
    projection_dim: Size = 2048
    tie_word_embeddings: bool = True

    image_token_id = alias("image_token_index")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        text, vision = dict(data.get("text_config") or GEMMA), dict(data.get("vision_config") or SIGLIP)
        # What the reference fills in on its own: Gemma's flag says what the prefix is, and the counts follow from sizes.
        only(text, "use_bidirectional_attention", True, False)
        for key in ("use_bidirectional_attention", "num_image_tokens"):
            text.pop(key, None)
        for key in ("projection_dim", "num_image_tokens", "num_positions", "projector_hidden_act", "vocab_size"):
            vision.pop(key, None)
        return {**data, "text_config": text, "vision_config": vision}


def paligemma(c: PaliGemmaConfig) -> ImageText:
    return ImageText(
        c,
        part(c.vision_config),
        LinearProjector(c.vision_config.hidden_size, c.projection_dim),
        part(c.text_config),
        image_token=c.image_token_index,
        blocks="prefix",
        first_position=1,
    )


family(
    "paligemma",
    config=PaliGemmaConfig,
    tasks={
        "causal-lm": lambda c: CausalLM(
            paligemma(c),
            tied=c.tie_word_embeddings,
            softcap=getattr(c.text_config, "final_logit_softcapping", None),
        ),
        "base": paligemma,
    },
    architectures={"PaliGemmaForConditionalGeneration": "causal-lm", "PaliGemmaModel": "base"},
    names=two_halves(),
    modules=in_model(),
    ignore=("vocab_size", "hidden_size", "num_hidden_layers", "ignore_index", "num_image_tokens"),
    ignore_tensors=(r"embeddings\.position_ids$", r"rotary_emb\.", r"embed_tokens\.embed_scale$"),
    aliases=TWO_HALVES,
)
