"""What language models with images of any size say in the same words: keys of their configs, tensor names, registering."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import CommonFields, Size
from ..core.frozen import Frozen
from ..names.rules import Rule, rename
from ..nn import CausalLM
from ..registry.family import Family, family
from .image_text import ImageTextFields, with_and_without_head


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridVisionFields(CommonFields):
    """The keys of every tower of patches."""

    # Other names of what is here, or one value.
    ignored: ClassVar = ("in_chans", "spatial_patch_size")
    depth: int = 32
    num_heads: Size = 16
    in_channels: Size = 3
    patch_size: Size = 14
    spatial_merge_size: Size = 2
    temporal_patch_size: Size = 2
    rope_parameters: Frozen = Frozen(rope_type="axial", rope_theta=10000.0)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        """Files before transformers 5 do not say how the places of patches turn."""
        only(said := {"rope_type": "axial", **(data.get("rope_parameters") or {})}, "rope_type", "axial")
        return {**data, "rope_parameters": said}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridFields(ImageTextFields):
    """The keys of the whole, whose `text_config` and `vision_config` the family adds."""

    image_token_id: int = 151655
    video_token_id: int = 151656
    tie_word_embeddings: bool = False

    text_ties: ClassVar[bool] = False  # whether the text may say that the head is the embeddings

    @classmethod
    def normalize(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Older files hold the keys of the text at the top."""
        if data.get("text_config") is None:
            text = next(f.default_factory for f in dataclasses.fields(cls) if f.name == "text_config")
            apart = {"extra", "generation", "num_labels", "tie_word_embeddings"}
            own = {f.name for f in dataclasses.fields(text)} - apart | {"rope_scaling", "rope_theta"}  # type: ignore[arg-type]
            data["text_config"] = {key: data.pop(key) for key in list(data) if key in own}
        if cls.text_ties and data["text_config"].get("tie_word_embeddings"):
            data["tie_word_embeddings"] = True
        return data


def section_apart(data: dict[str, Any]) -> dict[str, Any]:
    """A text config with `mrope_section` beside its `rope_parameters`, not in them, also from older spellings."""
    rope = dict(data.pop("rope_scaling", None) or data.get("rope_parameters") or {})
    if "mrope_section" in rope:
        data["mrope_section"] = rope.pop("mrope_section")
    if "mrope" in (rope.get("type"), rope.get("rope_type")):
        rope = {**rope, "type": None, "rope_type": "default"}
    return {**data, "rope_parameters": {k: v for k, v in rope.items() if v is not None}}


def section_inside(data: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `section_apart`."""
    section = data.pop("mrope_section")
    return {**data, "rope_parameters": {**data["rope_parameters"], "mrope_section": section}}


def turns_apart(data: dict[str, Any]) -> dict[str, Any]:
    """`section_apart` of a family whose axes always turn in turns: what `mrope_interleaved` says is not read."""
    for key in ("rope_scaling", "rope_parameters"):
        if data.get(key):
            data[key] = {name: value for name, value in data[key].items() if name != "mrope_interleaved"}
    return section_apart(data)


def turns_inside(data: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `turns_apart`."""
    data = section_inside(data)
    return {**data, "rope_parameters": {**data["rope_parameters"], "mrope_interleaved": True}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurnFields:
    """The keys of a text config whose positions have three axes that turn in turns: a group beside the decoder's own keys."""

    mrope_section: tuple[int, ...] = (24, 20, 20)
    normalize: ClassVar = staticmethod(turns_apart)
    denormalize: ClassVar = staticmethod(turns_inside)


def mrope(config: Any, **more: Any) -> dict[str, Any]:
    """The rotary table of a text config whose positions have three axes."""
    return {"default": {**config.rope_parameters, "mrope_section": config.mrope_section, **more}}


def grid_family(
    name: str,
    config: type,
    model: Callable[[Any], Any],
    *,
    names: Sequence[Rule],
    modules: Sequence[Rule] | None = None,
    ignore: Sequence[str] = (),
    ignore_tensors: Sequence[str] | Callable[[Any], Sequence[str]] = (),
    aliases: Mapping[str, tuple[str, ...]] | None = None,
    **facts: Any,
) -> Family:
    """Registers a language model with images of any size. `name` is what its class begins with, `"Qwen2VL"`."""
    alone = {  # of a base model, in the file of one with its head
        "visual.{rest}": ("model.visual.{rest}",),
        "language_model.{rest}": ("model.language_model.{rest}", "model.{rest}"),
    }
    buffers = (r"rotary_emb\.inv_freq$", r"rotary_pos_emb\.inv_freq$")
    own = ignore_tensors if callable(ignore_tensors) else lambda config: ignore_tensors
    return family(
        config.model_type,  # type: ignore[attr-defined]
        config=config,
        tasks={"causal-lm": lambda c: CausalLM(model(c), tied=c.tie_word_embeddings), "base": model},
        architectures={f"{name}ForConditionalGeneration": "causal-lm", f"{name}Model": "base"},
        names=with_and_without_head(names),
        modules=with_and_without_head(names if modules is None else modules),
        ignore=("vision_start_token_id", "vision_end_token_id", "vision_token_id", *ignore),  # of the processor
        ignore_tensors=lambda c: (*buffers, *own(c)),
        aliases={**(aliases or {}), **alone},
        prefix="",
        **facts,
    )


# The files of Qwen2-VL and 2.5: the tower beside the language model, which is called `model`.
GRID_NAMES: list[Rule] = [
    rename("model.visual.patch_embed", "visual.patch_embed.proj.weight"),
    rename("model.visual.merger.up_proj.{rest}", "visual.merger.mlp.0.{rest}"),
    rename("model.visual.merger.down_proj.{rest}", "visual.merger.mlp.2.{rest}"),
]
PLACES: list[Rule] = [
    rename("model.visual.{rest}", "visual.{rest}"),
    rename("model.language_model.{rest}", "model.{rest}"),
]
# And their spelling in transformers' modules, which files may have, too.
MODULES = {"visual.{rest}": ("model.visual.{rest}",), "model.{rest}": ("model.language_model.{rest}",)}


def in_modules(rules: Sequence[Rule]) -> list[Rule]:
    """The rules of transformers' module, where both halves are in `model`, from those of the files."""
    return [r._replace(theirs=tuple(f"model.{name}" for name in r.theirs)) for r in rules]
