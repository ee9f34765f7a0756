"""Idefics3 (Laurençon et al. 2024, arXiv 2408.12637): SigLIP on images in tiles, squares of patches side by side, and Llama."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import CommonFields, Size
from ..names.rules import Rule, rename
from ..nn import CausalLM
from ..nn.image_text import ImageText
from ..nn.native_tower import NativeTower
from ..nn.packing import RealImages
from ..nn.projectors import SquareLinear
from ..registry.family import Family, family
from .image_text import LLAMA, ImageTextFields, part, part_names, sub_config, with_and_without_head
from .siglip_vision_model import SIGLIP_NAMES
from .vision import under


@dataclass(frozen=True, kw_only=True)
class Idefics3VisionConfig(CommonFields):
    """The keys of Idefics3's `vision_config`."""

    model_type: ClassVar[str] = "idefics3_vision"
    ignored: ClassVar = ("size", "max_image_size", "use_base_siglip", "tie_word_embeddings")  # of the processor
    hidden_size: Size = 1152
    intermediate_size: Size = 3072
    num_hidden_layers: int = 12
    num_attention_heads: Size = 16
    num_channels: Size = 3
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 32
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0


@dataclass(frozen=True, kw_only=True)
class Idefics3Config(ImageTextFields):
    """The keys of an Idefics3 `config.json`."""

    model_type: ClassVar[str] = "idefics3"
    text_config: sub_config("llama", **LLAMA, rms_norm_eps=1e-5)  # type: ignore[valid-type]
    vision_config: Idefics3VisionConfig = field(default_factory=Idefics3VisionConfig)
    image_token_id: int = 128257
    scale_factor: Size = 2
    tie_word_embeddings: bool = False

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        text = dict(data.get("text_config") or {})
        for key in ("qk_layer_norms", "use_resampler", "rope_interleaved"):  # of the training code, never on
            only(text, key, False)
        for key in (*UNREAD, "qk_layer_norms", "use_resampler", "rope_interleaved"):
            text.pop(key, None)
        return {**data, "text_config": text}


# What the checkpoints' text configs carry along of the code they were trained with.
UNREAD = (
    "neftune_noise_alpha",
    "perceiver_config",
    "pixel_shuffle_factor",
    "is_llama_config",
    "transformers.js_config",
)


def idefics3(c: Any, pack: RealImages = RealImages()) -> ImageText:
    return ImageText(
        c,
        NativeTower(c.vision_config),
        SquareLinear(c.vision_config.hidden_size, c.hidden_size, c.scale_factor),
        part(c.text_config),
        image_token=c.image_token_id,
        pack=pack,
    )


def names(model: Any) -> list[Rule]:
    """The rules of Idefics3's parts, in the names of its files."""
    return [
        *under(part_names(model.model.language_model), "model.language_model", "model.text_model"),
        *under(SIGLIP_NAMES, "model.vision_tower", "model.vision_model"),
        rename("model.multi_modal_projector.proj.{rest}", "model.connector.modality_projection.proj.{rest}"),
    ]


def idefics_family(name: str, config: type, model: Callable[[Any], Any]) -> Family:
    """Registers Idefics3, or what has its form under another name."""
    return family(
        config.model_type,  # type: ignore[attr-defined]
        config=config,
        tasks={"causal-lm": lambda c: CausalLM(model(c), tied=c.tie_word_embeddings), "base": model},
        architectures={f"{name}ForConditionalGeneration": "causal-lm", f"{name}Model": "base"},
        names=with_and_without_head(names),
        ignore=("image_seq_len", "freeze_config", "vocab_size", "use_reentrant_checkpointing"),
        ignore_tensors=(r"rotary_emb\.inv_freq$", r"embeddings\.position_ids$"),
    )


idefics_family("Idefics3", Idefics3Config, idefics3)
