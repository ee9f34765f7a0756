"""`inputs`: what a model takes, said once, so that no verb assumes token ids."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from ..core.habits import no_path
from ..core.verb import verb

TOKENS = ("batch", "seq")


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a model.

    - `kind`: `tokens` (ids of the vocabulary), `embeddings`, `index` (small integers), `mask`, `image`, `audio`,
      `features` (other floats), or `setting` (no array, or one that only the model reads).
    - `shape`: its axes, a number where the size is fixed and a name where it is free. `batch` and `seq` are the rows and
      the tokens of the main sequence; `None` where the shape is not stated.
    - `below`: integers lie in `[0, below)`.
    - `optional`: samples leave it out; others are what a full answer needs.
    """

    kind: str
    shape: tuple[str | int, ...] | None = TOKENS
    below: int | None = None
    optional: bool = True

    @property
    def floating(self) -> bool:
        return self.kind in ("embeddings", "image", "audio", "features")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a model takes: the answer of [`easyfn.inputs`][].

    - `fields`: every input that the model itself reads, by transformers' name.
    - `main`: the inputs that say the batch and, where they have an axis `seq`, the length: the first of them that is
      given. One of them must be.
    - `sizes`: usual sizes of free axes (`{"height": 224, ...}`), for samples.
    - `position_axes`: how many numbers a position has, 1 or 3 (time, height and width): `position_ids` may then have
      shape `(axes, batch, seq)`.
    """

    fields: Mapping[str, Input]
    main: tuple[str, ...] = ("input_ids", "inputs_embeds")
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    position_axes: int = 1

    @property
    def sequence(self) -> bool:
        """Whether the main input is a sequence of tokens, of which `attention_mask` and the like speak."""
        return any("seq" in (self.fields[name].shape or ()) for name in self.main if name in self.fields)

    def replace(self, **changes: Any) -> Inputs:
        return dataclasses.replace(self, **changes)

    def __str__(self) -> str:
        rows = [("input", "kind", "shape", "")]
        for name, one in self.fields.items():
            shape = "" if one.shape is None else f"({', '.join(map(str, one.shape))})"
            note = "" if one.below is None else f"below {one.below}"
            rows.append((name + ("*" if name in self.main else ""), one.kind, shape, note))
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ("  ".join([*(cell.ljust(w) for cell, w in zip(row, wide, strict=False)), row[3]]) for row in rows)
        return "\n".join([*(line.rstrip() for line in lines), "* says the batch and the length"])


@verb
def accepted(model: Any) -> set[str]:
    """The names of the inputs that a model takes, those of the model it wraps included."""
    no_path(model)
    parameters = inspect.signature(type(model).__call__).parameters.values()
    names = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    if any(p.kind is p.VAR_KEYWORD for p in parameters) and hasattr(model, "model"):
        names |= accepted(model.model)
    return names


@verb(
    example="@ef.inputs.register({type})\n"
    'def _(model): return ef.Inputs({{"pixel_values": ef.Input("image", ("batch", 3, 32, 32))}}, main=("pixel_values",))'
)
def inputs(model: Any) -> Inputs:
    """What a model takes: names, kinds, shapes, and which input says the batch and the length.

    [`easyfn.forward`][], `generate`, `compute_loss`, `flops` and the laws ask it. By default the keyword arguments of the
    model's `__call__`, with the meaning that transformers gives these names and the sizes of the config; a head
    answers what the model under it does.

    ```python
    import easyfn as ef
    stated = ef.inputs(ef.testing.tiny())
    assert stated.fields["input_ids"].below == 64 and stated.main == ("input_ids", "inputs_embeds")
    ```
    """
    names, inner = accepted(model), getattr(model, "model", None)
    under = set() if inner is None else accepted(inner)
    config = getattr(model, "config", None)
    unread = set() if hasattr(config, "max_2d_position_embeddings") else {"bbox"}  # of encoders those that read layouts
    own = {name: by_custom(name, config) for name in sorted(names - under - unread)}
    if under:
        below = inputs(inner)
        return below.replace(fields={**{n: one for n, one in below.fields.items() if n in names}, **own})
    fields = own
    main = tuple(name for name in ("input_ids", "inputs_embeds") if name in fields) or tuple(
        name for name in ("pixel_values", "input_features", "input_values") if name in fields
    )
    return Inputs(fields, main)


def by_custom(name: str, config: Any) -> Input:
    """What an input of this name is in transformers."""
    side, plain = ("decoder_seq", name.removeprefix("decoder_")) if name.startswith("decoder_") else ("seq", name)
    if plain == "input_ids":
        own = getattr(config, "decoder_vocab_size", None) if side != "seq" else None
        return Input("tokens", ("batch", side), own or getattr(config, "vocab_size", None), side == "seq")
    if plain == "inputs_embeds":
        width = getattr(config, "embedding_size", None) or getattr(config, "hidden_size", None) or "embed"
        return Input("embeddings", ("batch", side, width))
    if plain == "token_type_ids":
        return Input("index", ("batch", side), getattr(config, "type_vocab_size", None))
    if plain == "bbox":
        return Input("index", ("batch", side, 4), getattr(config, "max_2d_position_embeddings", None))
    if plain == "position_ids":
        return Input("index", ("batch", side))
    if plain in ("attention_mask", "segment_ids"):
        return Input("mask", ("batch", side))
    if plain == "pixel_values":
        size = getattr(config, "image_size", None)
        tall, wide = size if isinstance(size, tuple) else (size or "height", size or "width")
        return Input("image", ("batch", getattr(config, "num_channels", 3), tall, wide), optional=False)
    return Input("setting", None)
