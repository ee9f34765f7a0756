"""InternVL 3 (Zhu et al. 2025, arXiv 2504.10479): a tower of its own, squares of patches side by side, and any decoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.fields import Integer
from ..nn import CausalLM
from ..nn.image_text import ImageText
from ..nn.projectors import SquareProjector
from ..registry.family import family
from .image_text import TWO_HALVES, ImageTextFields, in_model, part, sub_config, two_halves
from .internvl_vision import InternVLVisionConfig, internvl_vision

QWEN2 = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


@dataclass(frozen=True, kw_only=True)
class InternVLConfig(ImageTextFields):
    """The keys of an InternVL `config.json`, as transformers writes it."""

    model_type: ClassVar[str] = "internvl"
    text_config: sub_config("qwen2", **QWEN2)  # type: ignore[valid-type]
    vision_config: InternVLVisionConfig = field(default_factory=InternVLVisionConfig)
    image_token_id: int = 151667
    downsample_ratio: float = 0.5
    projector_hidden_act: str = "gelu"
    vision_feature_layer: Integer | tuple[Integer, ...] = -1
    vision_feature_select_strategy: str = "default"
    tie_word_embeddings: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "text_config": data.get("text_config") or {}}


def internvl(c: InternVLConfig) -> ImageText:
    layer = c.vision_feature_layer
    if not isinstance(layer, int):
        raise ValueError(f"internvl: vision_feature_layer={layer} is one layer; transformers reads no more either")
    if c.vision_feature_select_strategy not in ("default", "full"):
        raise ValueError(
            f"vision_feature_select_strategy={c.vision_feature_select_strategy!r} is no 'default' or 'full'"
        )
    if not 0 < c.downsample_ratio <= 1:
        raise ValueError(
            f"internvl: downsample_ratio={c.downsample_ratio} is to be above 0 and at most 1, a half as a rule"
        )
    square, size = int(1 / c.downsample_ratio), c.vision_config.hidden_size
    return ImageText(
        c,
        internvl_vision(c.vision_config),
        SquareProjector(size, c.hidden_size, square, c.projector_hidden_act),
        part(c.text_config),
        image_token=c.image_token_id,
        feature_layers=None if layer == -1 else (layer,),
        drop_first=c.vision_feature_select_strategy == "default",
    )


family(
    "internvl",
    config=InternVLConfig,
    tasks={"causal-lm": lambda c: CausalLM(internvl(c), tied=c.tie_word_embeddings), "base": internvl},
    architectures={"InternVLForConditionalGeneration": "causal-lm", "InternVLModel": "base"},
    names=two_halves(),
    modules=in_model(),
    ignore=("image_seq_length",),  # of the processor
    ignore_tensors=(r"rotary_emb\.inv_freq$",),
    aliases=TWO_HALVES,
)
