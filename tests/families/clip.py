"""CLIP: two towers, each alone with and without its projection, and a classifier."""

from typing import Any

from cases import VOCAB, images, reference

from .vit import SIZES

TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}


def _clip(head: str, **more: Any) -> Any:
    import transformers.models.clip.modeling_clip as clip
    from transformers import CLIPConfig

    text = {**TEXT, "eos_token_id": 5, "projection_dim": 20, **more.pop("text", {})}
    vision = {**SIZES, "projection_dim": 20}
    whole = CLIPConfig(text_config=text, vision_config=vision, projection_dim=20, **more)
    part = {"Text": whole.text_config, "Visi": whole.vision_config}.get(head[4:8], whole)
    return reference(getattr(clip, head), part)


@images("clip", task="contrastive")
def _():
    return _clip("CLIPModel", text={"eos_token_id": 2})  # the old config: the highest id ends a text


@images("clip-classifier", task="image-classification", variant=True)
def _():
    return _clip("CLIPForImageClassification", num_labels=4)


@images("clip-text", task="base", variant=True)
def _():
    return _clip("CLIPTextModel")


@images("clip-text-projection", task="text-projection", variant=True)
def _():
    return _clip("CLIPTextModelWithProjection")


@images("clip-vision", task="base", variant=True)
def _():
    return _clip("CLIPVisionModel")


@images("clip-vision-projection", task="image-projection", variant=True)
def _():
    return _clip("CLIPVisionModelWithProjection")
