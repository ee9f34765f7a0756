"""What families of images and text say in the same words: configs of their halves, tensor names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

from ..config.check import Reader, short
from ..config.config import read
from ..config.fields import CommonFields
from ..names.rules import Rule, rename
from ..registry.family import family_of
from .vision import under

LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def sub_config(default: str, **given: Any) -> Any:
    """The annotation of a nested config whose `model_type` says of which family it is, by default `default`.

    `given` are the values that the reference has where the file leaves keys out.
    """

    def make(value: Any, where: str) -> Any:
        if dataclasses.is_dataclass(value):
            return value
        if not isinstance(value, Mapping) or not isinstance(name := value.get("model_type", default), str):
            raise ValueError(f"{where}={short(value)} must be an object, and its model_type a string")
        known = family_of(name)
        return read(known.config, {**given, **value}, known.ignore, where)

    return Annotated[Any, Reader(make)]


def part(config: Any) -> Any:
    """The base model of a nested config."""
    return family_of(config).tasks["base"](config)


def part_names(model: Any) -> list[Rule]:
    """The rules of a part, as its own family has them."""
    return list(family_of(model).names(model))


def with_and_without_head(rules: Any) -> Callable[[Any], list[Rule]]:
    """The rules of a model with a head, a list or a function of it, and of the same without one, where nothing is in `model`."""
    given = rules if callable(rules) else lambda model: rules
    short = lambda name: name.removeprefix("model.")

    def names(model: Any) -> list[Rule]:
        if hasattr(model, "model"):
            return list(given(model))
        return [
            rule._replace(ours=short(rule.ours), theirs=tuple(map(short, rule.theirs)))
            for rule in given(SimpleNamespace(model=model))
            if rule.theirs != ("model.{rest}",)  # of files that call the text alone `model`
        ]

    return names


# Other spellings of what `two_halves` names: of transformers' modules, and of towers before transformers 5.
TWO_HALVES = {
    "language_model.model.{rest}": ("model.language_model.{rest}",),
    "language_model.lm_head.{rest}": ("lm_head.{rest}",),
    "vision_tower.{rest}": (
        "vision_tower.vision_model.{rest}",
        "model.vision_tower.{rest}",
        "model.vision_tower.vision_model.{rest}",
    ),
    "multi_modal_projector.{rest}": ("model.multi_modal_projector.{rest}",),
}


def two_halves(first: Sequence[Rule] = (), tower: str = "vision_tower") -> Callable[[Any], list[Rule]]:
    """The rules of a language model with images, in the names of its files: `language_model.model.`, `vision_tower.`; before
    them the `first`, of what lies between."""

    def names(model: Any) -> list[Rule]:
        return [
            *first,
            rename("lm_head.{rest}", "language_model.lm_head.{rest}"),
            *under(part_names(model.model.language_model), "model.language_model", "language_model.model"),
            *under(part_names(model.model.vision_tower), "model.vision_tower", tower),
            rename("model.{rest}", "{rest}"),
        ]

    return with_and_without_head(names)


def in_model(first: Sequence[Rule] = (), *, files: bool = False) -> Callable[[Any], list[Rule]]:
    """The same of transformers' module, where both halves are in `model`; or of its `files`, where they have those names."""

    def modules(model: Any) -> list[Rule]:
        halves = {name: getattr(model.model, name) for name in ("language_model", "vision_tower")}
        of = part_names if files else lambda half: family_of(half).modules(half)
        rules = {f"model.{name}": of(half) for name, half in halves.items()}
        return [*first, *(rule for place, own in rules.items() for rule in under(own, place, place))]

    return with_and_without_head(modules)


class of_text:
    """A fact of the nested `text_config` under the same name: `hidden_size = of_text()`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, cls: type | None = None) -> Any:
        return self if config is None else getattr(config.text_config, self.name, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTextFields(CommonFields):
    """What every config with a nested `text_config` answers of it."""

    vocab_size: ClassVar = of_text()
    hidden_size: ClassVar = of_text()
    max_position_embeddings: ClassVar = of_text()
