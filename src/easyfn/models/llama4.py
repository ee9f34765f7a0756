"""Llama 4 with images (Meta 2025): tiles of an image through a tower of its own, one matrix, and Llama 4's text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.fields import alias
from ..names.rules import rename
from ..nn import CausalLM
from ..nn.image_text import ImageText
from ..nn.projectors import LinearProjector
from ..registry.family import family
from .image_text import ImageTextFields, part, sub_config, two_halves
from .llama4_vision_model import Llama4Tower, Llama4VisionConfig

LLAMA4 = {
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
}


@dataclass(frozen=True, kw_only=True)
class Llama4Config(ImageTextFields):
    """The keys of a Llama 4 `config.json`."""

    model_type: ClassVar[str] = "llama4"
    text_config: sub_config("llama4_text", **LLAMA4)  # type: ignore[valid-type]
    vision_config: Llama4VisionConfig = field(default_factory=Llama4VisionConfig)
    image_token_index: int = 200092

    image_token_id = alias("image_token_index")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "text_config": data.get("text_config") or {}}


def llama4(c: Llama4Config) -> ImageText:
    return ImageText(
        c,
        Llama4Tower(c.vision_config),
        LinearProjector(c.vision_config.vision_output_dim, c.hidden_size, bias=False),
        part(c.text_config),
        image_token=c.image_token_index,
    )


family(
    "llama4",
    config=Llama4Config,
    tasks={"causal-lm": lambda c: CausalLM(llama4(c), tied=c.text_config.tie_word_embeddings), "base": llama4},
    architectures={"Llama4ForConditionalGeneration": "causal-lm"},
    names=two_halves(
        [rename("model.multi_modal_projector.linear.{rest}", "multi_modal_projector.linear_1.{rest}")], "vision_model"
    ),
    # Of the processor; whether the head is the embeddings its text says.
    ignore=("boi_token_index", "eoi_token_index", "boi_token_id", "eoi_token_id", "tie_word_embeddings"),
    ignore_tensors=(r"rotary_emb\.inv_freq$",),
)
