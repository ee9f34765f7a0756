"""`model_card`: what a model is, in Markdown, for the README of a repository."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Sequence
from typing import Any

from ..core.placement import mesh_of
from ..tasks.task import facts, task
from .facts import model_type
from .notebook import line, page, section, stacked
from .show import amount, num_bytes, num_params, show, size_of


class Card(str):
    """What [`easyfn.model_card`][] returns: Markdown, which a notebook draws as `page`."""

    page: str

    def _repr_html_(self) -> str:
        return self.page


def model_card(model: Any, *, name: str | None = None) -> Card:
    """Markdown with the front matter that a hub reads: the facts, the formats, how to load it, and the config.

    It is a `str`; in a notebook it is drawn.

    ```python
    import easyfn as ef
    card = ef.model_card(ef.testing.tiny(), name="tiny")
    assert card.startswith("---") and "# tiny" in card
    ```
    """
    kind, title = task(model), name or f"{model_type(model)} ({task(model)})"
    table, mesh = show(model), mesh_of(model)
    tags = "".join(f"\n- {tag}" for tag in ("easyfn", "jax", model_type(model)))
    hub = facts(kind).hub
    pipeline = f"pipeline_tag: {hub}\n" if hub else ""
    trains = num_params(model, trainable_only=True)
    about = {
        "architecture": model_type(model),
        "task": kind,
        "parameters": f"{amount(num_params(model))} ({num_params(model):,})",
        "trainable": f"{amount(trains)} ({trains:,})",
        "size": size_of(num_bytes(model)),
        "mesh": None if mesh is None else ", ".join(f"{k}={v}" for k, v in mesh.shape.items()),
    }
    about = {key: value for key, value in about.items() if value is not None}
    totals = table.totals().items()
    use = f'import easyfn as ef\n\nmodel = ef.load("{name or "path/or/name"}")\nprint(ef.show(model))'
    config, settings = getattr(model, "config", None), {}
    if dataclasses.is_dataclass(config):
        names = (f.name for f in dataclasses.fields(config) if f.name not in ("extra", "generation"))
        settings = {key: repr(getattr(config, key)) for key in names}
    parts = [
        f"---\nlibrary_name: easyfn\n{pipeline}tags:{tags}\n---",
        f"# {title}",
        _rows(("", ""), about.items()),
        _rows(("format", "parameters", "size"), ((key, amount(p), size_of(b)) for key, (p, b) in totals)),
        f"## Use\n\n```python\n{use}\n```",
    ]
    if settings:
        parts.append("## Config\n\n" + _rows(("key", "value"), ((key, f"`{said}`") for key, said in settings.items())))
    card = Card("\n\n".join(parts) + "\n")
    memory = [(key, f"{amount(p)} parameters, {size_of(b)}", b) for key, (p, b) in totals]
    drawn = [
        *(line((key, str(value)), _COLUMNS) for key, value in about.items()),
        section("memory", [stacked(memory, 0)]),
        section("use", [f"<pre>{html.escape(use)}</pre>"]),
    ]
    if settings:
        drawn.append(section("config", (line(each, _COLUMNS) for each in settings.items()), unfolded=False))
    card.page = page(title, drawn)
    return card


_COLUMNS = "minmax(180px,240px) minmax(260px,1fr)"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; a `|` inside a cell would end it."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines])
