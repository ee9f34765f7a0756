"""What a model is for."""

from __future__ import annotations

import functools
import importlib
import importlib.resources
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..core.habits import no_path
from ..core.verb import verb


class Task(NamedTuple):
    """What others call a task. A file of this room has one, the words of its heads, and their loss: to add a task is to
    add a file, and the head where it is a new layer."""

    name: str
    hub: str | None = None  # the `pipeline_tag` of a model card
    auto: str | None = None  # transformers' auto class
    classes: tuple[str, ...] = ()  # how transformers' classes for it end
    peft: str | None = None  # PEFT's `task_type`
    heads: tuple[str, ...] = ()  # the modules that PEFT saves by itself for that type
    labels: Mapping[str, str] = {"labels": "token"}  # key of a batch -> one label per "token" or per "row"


BASE = Task("base", hub="feature-extraction", auto="AutoModel", labels={})


@functools.cache
def tasks() -> Mapping[str, Task]:
    """Every task that others have a word for, by ours."""
    inside = sorted(f.name for f in importlib.resources.files(__package__).iterdir() if f.name.endswith(".py"))
    modules = (importlib.import_module(f"{__package__}.{name.removesuffix('.py')}") for name in inside)
    found = [fact for module in modules for fact in vars(module).values() if isinstance(fact, Task)]
    return {each.name: each for each in found}


def facts(name: str) -> Task:
    """What others call the task of this name; nothing, where they have no word for it."""
    return tasks().get(name, Task(name))


@verb(example='@ef.task.register({type})\ndef _(model): return "causal-lm"')
def task(model: Any) -> str:
    """What a model is for: `causal-lm`, `sequence-classification`, `base`, ..., the words of `ef.load(task=...)`.

    Heads are registered. Any other model has the only task of its family, or the one that is built by its class, or
    else is `base`.

    ```python
    import easyfn as ef
    assert ef.task(ef.testing.tiny()) == "causal-lm"
    ```
    """
    from ..registry.family import family_of

    no_path(model)
    try:
        tasks = family_of(model).tasks
    except ValueError:
        return "base"
    if len(tasks) == 1:
        return next(iter(tasks))
    return next((name for name, builder in tasks.items() if builder is type(model)), "base")
