"""Families: how a `config.json` finds its classes. One call of `family(...)` gives an architecture every verb."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.resources
import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax

from ..config.check import short
from ..core.dtype import cast
from ..core.tree import near
from ..names.rules import Rule

Builder = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """What easyfn knows of an architecture; made by [`easyfn.family`][]."""

    model_type: str
    config: type
    tasks: Mapping[str, Builder]
    architectures: Mapping[str, str]  # name of the transformers class -> task
    names: Callable[[Any], Sequence[Rule]]  # of a model, which may be of any task
    ignore: frozenset[str]  # keys of config.json without influence on the mathematics
    ignore_tensors: Callable[[Any], Sequence[str]]  # of a config: patterns of tensors that hold no weights
    prefix: str  # transformers' base_model_prefix
    aliases: Mapping[str, tuple[str, ...]]  # name of a tensor -> its names in older files
    optional: tuple[str, ...]  # patterns of our paths that begin as `init` makes them where a file has no such tensor
    settle: Callable[[Any, Collection[str]], Any]  # (config, names of a checkpoint's tensors) -> the config they mean
    modules: Callable[[Any], Sequence[Rule]]  # `names` of the tensors of transformers' module, which adapters have
    constants: Callable[[Any], Mapping[str, Any]] = lambda model: {}  # tensors of files whose numbers the config says
    uses: Callable[[Any], Mapping[str, tuple[str, ...]]] = lambda model: {}  # of shared weights: first prefix -> others


_families: dict[str, Family] = {}
_MODELS = "easyfn.models"


@functools.cache
def files() -> frozenset[str]:
    """The modules of `easyfn.models`, by name; nothing is imported."""
    inside = importlib.resources.files(_MODELS).iterdir()
    return frozenset(f.name.removesuffix(".py") for f in inside if f.name.endswith(".py")) - {"__init__"}


def _import(model_type: str) -> None:
    """Imports the file of a built-in `model_type`, which registers it, if there is one."""
    file = re.sub("[-.]", "_", model_type)
    if file in files():
        importlib.import_module(f"{_MODELS}.{file}")


def family(
    model_type: str,
    *,
    config: type,
    tasks: Mapping[str, Builder] | None = None,
    model: Builder | None = None,
    architectures: Mapping[str, str] | None = None,
    names: Callable[[Any], Sequence[Rule]] | Sequence[Rule] = (),
    ignore: Sequence[str] = (),
    ignore_tensors: Callable[[Any], Sequence[str]] | Sequence[str] = (),
    prefix: str = "model",
    aliases: Mapping[str, Sequence[str]] | None = None,
    optional: Sequence[str] = (),
    settle: Callable[[Any, Collection[str]], Any] | None = None,
    constants: Callable[[Any], Mapping[str, Any]] | None = None,
    modules: Callable[[Any], Sequence[Rule]] | Sequence[Rule] | None = None,
    uses: Callable[[Any], Mapping[str, tuple[str, ...]]] | None = None,
    override: bool = False,
) -> Family:
    """Registers an architecture, so that `ef.load` finds it by the `model_type` of its `config.json`.

    **Arguments**

    - `config`: a frozen dataclass with the fields of `config.json` that matter.
    - `tasks`: builders `config -> model` by task (`causal-lm`, `base`, ...); `model=f` is short for `{"causal-lm": f}`. A
      builder may also have the signature `(config, *, key)`, as Equinox modules do.
    - `architectures`: which transformers class is which task, as in `config.json`'s `architectures`.
    - `names`: rules (or a function of the model giving rules) where our paths differ from the file's.
    - `ignore`, `ignore_tensors`: config keys and patterns of tensor names that do not matter (or a function of the config
      giving such patterns).
    - `prefix`: transformers' `base_model_prefix`.
    - `aliases`: other names under which files hold a tensor, tried in turn where it is missing.
    - `optional`: patterns of our paths. Where a file has no such tensor (a bias of zeros), the array is what `init` makes.
    - `settle(config, names)`: the config that a checkpoint with tensors of these names means, where its `config.json`
      leaves that open (whether a T5 has a head of its own).
    - `constants(model)`: tensors that are written beside the model's by their names, NumPy arrays, and not read: what they hold
      the config says already. Name them in `ignore_tensors`, too.
    - `modules`: the same as `names` for the parameters of transformers' module, where files hold them under older names:
      PEFT's adapters are saved under those of the module.
    - `uses(model)`: where layers share weights, the prefix of their names in the first layer that uses them, and those in the
      others: transformers has a module for each use, and so has PEFT.

    Raises `ValueError` if the `model_type` is taken, by a family of easyfn's own or by an earlier call, and `override`
    is not set.
    """
    if model_type not in _families:
        _import(model_type)  # returns at once where it is the file itself that calls
    if model_type in _families and not override:
        first = _families[model_type].config
        raise ValueError(
            f"the family {model_type!r} is registered already, with {first.__module__}.{first.__qualname__}; "
            "pass override=True to replace it"
        )
    if (tasks is None) == (model is None):
        raise ValueError("family: give tasks={...} or model=..., not both and not neither")
    all_tasks = dict(tasks) if tasks is not None else {"causal-lm": model}
    rules = names if callable(names) else (lambda _: tuple(names))
    ignored = ignore_tensors if callable(ignore_tensors) else (lambda _: tuple(ignore_tensors))
    made = Family(
        model_type,
        config,
        all_tasks,  # type: ignore[arg-type]
        dict(architectures or {}),
        rules,
        frozenset(ignore),
        ignored,
        prefix,
        {name: tuple(others) for name, others in (aliases or {}).items()},
        tuple(optional),
        settle or (lambda config, names: config),
        rules if modules is None else modules if callable(modules) else (lambda _: tuple(modules)),
        constants or (lambda model: {}),
        uses or (lambda model: {}),
    )
    _families[model_type] = made
    return made


def families() -> dict[str, Family]:
    """Every registered family by its `model_type`.

    ```python
    import easyfn as ef
    assert ef.families()["gpt2"].config is ef.models.GPT2Config
    ```
    """
    for file in sorted(files()):
        _import(file)
    return dict(_families)


def family_of(what: Any) -> Family:
    """The family of a `model_type`, a config, or a model."""
    if isinstance(what, str):
        if what not in _families:
            _import(what)
        if what not in _families:
            _load_entry_points()
        if what not in _families:
            known = families()
            raise ValueError(
                f"unknown architecture {short(what)}. {near(what, known)} easyfn knows {len(known)}, see ef.families(). A type "
                "that transformers has, but no family here: ef.load(path, via='torch'). "
                f"Register your own with ef.family({short(what)}, config=..., model=...)."
            )
        return _families[what]
    config = getattr(what, "config", what)
    if isinstance(own := getattr(config, "family", None), Family):  # a converted module brings its own
        return own
    for entry in _families.values():
        if entry.config is type(config):
            return entry
    name = type(config).__name__
    if hasattr(config, "to_dict") or isinstance(config, Mapping):
        raise ValueError(f"a {name} is not yet a config of easyfn: ef.read_config makes one of it")
    if isinstance(what, eqx.Module) and config is what:
        raise ValueError(
            f"{name} is the model of no registered family, so neither Hugging Face nor PEFT has a layout for it. Its arrays "
            "alone: ef.params(model), ef.save(model, 'weights.safetensors'). A family of your own: ef.family(...)"
        )
    raise ValueError(f"{name} is the config of no registered family: register it with ef.family(...)")


def _load_entry_points() -> None:
    for entry in importlib.metadata.entry_points(group="easyfn.families"):
        entry.load()


def task_of(known: Family, config: Any, task: str | None) -> str:
    """The task to build: the one asked for, or what the checkpoint's `architectures` say."""
    if task is None:
        for name in (getattr(config, "extra", None) or {}).get("architectures") or ():
            if name in known.architectures:
                return known.architectures[name]
            raise ValueError(
                f"{known.model_type}: easyfn has no {name}; it has {', '.join(known.architectures)}. "
                f"Choose one with task=, of {', '.join(known.tasks)}."
            )
        return next(iter(known.tasks))
    if task not in known.tasks:
        raise ValueError(f"{known.model_type} has no task {task!r}; it has {', '.join(known.tasks)}")
    return task


def check_config(config: Any) -> None:
    """Raises `TypeError` for a name, a path or a model where a config belongs."""
    if isinstance(config, (str, os.PathLike, eqx.Module)):
        what = f"{os.fspath(config)!r}" if isinstance(config, (str, os.PathLike)) else f"a {type(config).__name__}"
        raise TypeError(
            f"a config belongs here, not {what}: ef.read_config(path) reads one, and a model's is model.config"
        )


def build(config: Any, task: str | None = None, key: jax.Array | None = None) -> Any:
    """The abstract model of a config; with a `key`, whatever its builder makes (our builders ignore it)."""
    check_config(config)
    known = family_of(config)
    builder = known.tasks[task_of(known, config, task)]
    parameters = inspect.signature(builder).parameters
    if "key" in parameters:
        if key is None:
            return eqx.filter_eval_shape(lambda k: builder(config, key=k), jax.random.key(0))
        return builder(config, key=key)
    return builder(config)


def abstract_config(config: Any, task: str | None, dtype: Any) -> Any:
    """The model of a config with `jax.ShapeDtypeStruct` leaves in `dtype` (as declared, if `None`)."""
    model = build(config, task)
    return model if dtype is None else cast(model, dtype)
