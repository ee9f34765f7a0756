"""`model_card`: what a model is, in Markdown, for the README of a repository."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..core.placement import mesh_of
from ..tasks.task import facts, task
from .facts import model_type
from .show import amount, num_bytes, num_params, show, size_of


def model_card(model: Any, *, name: str | None = None) -> str:
    """Markdown with the front matter that a hub reads: the facts, the formats, how to load it, and the config.

    ```python
    import easyfn as ef, jax
    config = ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                   num_attention_heads=4, num_key_value_heads=2)
    card = ef.model_card(ef.init(config, key=jax.random.key(0)), name="tiny")
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
    rows = [f"| {key} | {value} |" for key, value in about.items() if value is not None]
    formats = [f"| {key} | {amount(p)} | {size_of(b)} |" for key, (p, b) in table.totals().items()]
    parts = [
        f"---\nlibrary_name: easyfn\n{pipeline}tags:{tags}\n---",
        f"# {title}",
        "\n".join(["| | |", "|---|---|", *rows]),
        "\n".join(["| format | parameters | size |", "|---|---|---|", *formats]),
        "## Use\n\n```python\nimport easyfn as ef\n\n"
        f'model = ef.load("{name or "path/or/name"}")\nprint(ef.show(model))\n```',
    ]
    config = getattr(model, "config", None)
    if dataclasses.is_dataclass(config):
        settings = [
            f"| {f.name} | `{getattr(config, f.name)!r}` |"
            for f in dataclasses.fields(config)
            if f.name not in ("extra", "generation")
        ]
        parts.append("\n".join(["## Config", "", "| key | value |", "|---|---|", *settings]))
    return "\n\n".join(parts) + "\n"
