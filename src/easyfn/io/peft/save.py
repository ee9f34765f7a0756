"""Adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`. The way out; see `peft_load`."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ...core.atomic import beside
from ...core.habits import no_path
from ...core.multihost import first, spans
from ...core.slots import find_slots
from ...core.trainable import is_adapter
from ...core.tree import at, expand, is_leaf
from ...lora import LoRA, Rows, adapter_names
from ...names.rules import file_name
from ...nn import CausalLM, head_logits, input_embeddings
from ...registry.family import family_of
from ..described import as_described
from ..place import put_in_place, write_document
from ..safetensors import write
from .methods import method_of
from .names import (
    ADAPTED,
    by_parameter,
    in_memory,
    is_transposed,
    matches_parameter,
    matches_target,
    module_of,
    modules,
    rank_and_scale,
    short,
    shortest,
    targets,
    tensor_names,
    transposed_targets,
)
from .saved import Saved, saved
from .uses import everywhere

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_OURS = re.compile(rf"{re.escape(CONFIG)}|{re.escape(WEIGHTS)}")
# What PEFT calls embeddings: the names for which it saves the base too, and ties the head.
_EMBEDDINGS = ("embed_tokens", "lm_head")


# The keys that choose modules, ranks and scales, and their defaults in PEFT.
_WORDS: dict[str, Any] = {
    "alpha_pattern": {},
    "exclude_modules": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": 8,
    "r": 8,
    "rank_pattern": {},
    "target_modules": None,
    "target_parameters": None,
    "use_rslora": False,
}


class Part(NamedTuple):
    """One adapter of one layer: `module` as PEFT names it, and the parameter inside where PEFT adapts that."""

    module: str
    parameter: str | None
    kind: str  # the role of the slot
    weight: LoRA

    @property
    def name(self) -> str:
        return f"{self.module}.{self.parameter}" if self.parameter else self.module


def save_adapter(
    model: Any,
    directory: Any,
    *,
    config: Mapping[str, Any] | None = None,
    save_embedding_layers: bool | str = "auto",
) -> Path:
    """Writes the adapters of a model as PEFT does, for `peft.PeftModel.from_pretrained`; returns the folder.

    **Arguments**

    - `directory`: made if need be; its other files are kept. Not that of the merged model, which transformers would give the
      adapter once more: it puts an adapter on the model beside it.
    - `config`: more keys for `adapter_config.json` (`task_type`, or all of what [`easyfn.read_adapter_config`][] gave).
      `{"base_model_name_or_path": path}` says where the base is, which a model does not know: without it
      `peft.PeftModel.from_pretrained(base, directory)` reads the folder, and those that look for the base themselves
      (`peft.AutoPeftModelForCausalLM`, transformers' `from_pretrained(directory)`) ask the hub for one called "None".
      They never replace what the model says; where they say the same in other words (`use_rslora`, patterns,
      `layers_to_transform`), those words are kept.
    - `save_embedding_layers`: whether the base weight of an adapted `embed_tokens` or `lm_head` goes into the file; by
      default as PEFT does, if `target_modules` has one of these names.

    Stacked layers are written one by one; the base model is not written. PiSSA and OLoRA adapters are written as such:
    PEFT and easyfn change the base again when they read them. Others that changed the base (`loftq` of several
    iterations, `pissa_niter_4`) need that base beside: write it with `ef.save(base, folder)`, and the adapter as a plain
    one, `dataclasses.replace(w, start=None)` for each `w` of `base, adapter = ef.split_lora(model)`.

    Raises `ValueError` for a model without adapters, and for what PEFT's file cannot say.

    ```python
    import tempfile, jax, easyfn as ef
    base = ef.testing.tiny()
    model = ef.apply_lora(base, "q_proj|v_proj", key=jax.random.key(1))
    with tempfile.TemporaryDirectory() as folder:
        ef.save_adapter(model, folder)
        again = ef.load_adapter(base, folder)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    ```
    """
    no_path(model)
    config = config or {}
    if (other := method_of(model)) is not None:
        kind, method = other
        settings, tensors = method.write(model, config)
        data = {**_common(model), **config, **settings, "peft_type": kind}
        return _write(directory, *everywhere(model, data, tensors, PREFIX), not spans(model))
    found = parts(model)
    more = saved(model, {part.module for part in found}, config)
    if not found:
        if names := adapter_names(model):
            raise ValueError(
                f"save_adapter: the model holds several by name: {', '.join(names)}. Write all, ef.save_adapters(model, "
                f"directory), or one, ef.save_adapter(ef.single_adapter(model, {names[0]!r}), directory)."
            )
        if more.tensors or any(is_adapter(f.weight) for f in find_slots(model)):
            raise ValueError("save_adapter: PEFT's LoRA files need a LoRA in some layer; this model only saves weights")
        raise ValueError("save_adapter: the model has no adapter. Put one on with ef.apply_lora or ef.load_adapter.")
    as_described(model, family_of(model), "save_adapter")
    data = {**_defaults(model, more), **config, **_describe(model, found, more, config)}
    named = {name: array for part in found for name, array in _tensors(part, found).items()} | more.tensors
    named |= _tied(model, found, more, data)
    named |= _embeddings(model, found, data, save_embedding_layers)
    prefixed = {f"{PREFIX}{name}": array for name, array in named.items()}
    return _write(directory, *everywhere(model, data, prefixed, PREFIX), not spans(model))


def _write(directory: Any, data: Mapping[str, Any], tensors: Mapping[str, np.ndarray], alone: bool) -> Path:
    folder = Path(directory).expanduser()
    shapes = {name: (tuple(array.shape), array.dtype) for name, array in sorted(tensors.items())}
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"save_adapter: {folder} is a file; give a folder")
    with beside(folder.resolve(), "save_adapter", alone) as new:

        def put() -> None:
            write(new / WEIGHTS, shapes, (tensors[name] for name in shapes), {"format": "pt"})
            write_document(new / CONFIG, data)
            put_in_place(new, folder.resolve(), _OURS)

        first(put, "save_adapter", alone)
    return folder


def parts(model: Any) -> list[Part]:
    """The LoRAs of a model, one per layer, with PEFT's names."""
    rules = family_of(model).modules(model)
    found = []
    for f in find_slots(model):
        if not is_adapter(f.weight):
            continue
        if is_adapter(f.weight.base):
            raise ValueError(f"save_adapter: {f.path} holds an adapter on an adapter, which PEFT's files cannot say")
        if not isinstance(f.weight, LoRA):
            continue
        names = expand(f.path)
        alone = dataclasses.replace(f.weight, base=None, key=None)
        for i, path in enumerate(names):
            one = alone if names == [f.path] else jax.tree.map(lambda leaf, i=i: leaf[i], alone)
            shape = (one.b.shape[-2], one.a.shape[-1])
            module, parameter = module_of(path, f.slot.role, shape, rules)
            if parameter and not module:
                raise ValueError(
                    f"save_adapter: {path} is a parameter of the whole model, and PEFT adapts those of its parts alone. Leave it "
                    "out of the pattern, or save the whole model: ef.save(ef.merge_lora(model), directory)"
                )
            if (
                parameter and f.slot.role == "linear" and is_transposed(path, rules)
            ):  # PEFT's change is the parameter's as it is
                one = dataclasses.replace(one, a=one.b.swapaxes(-1, -2), b=one.a.swapaxes(-1, -2))
            found.append(Part(module, parameter, f.slot.role, one))
    return found


def _tensors(part: Part, found: list[Part]) -> dict[str, np.ndarray]:
    w = part.weight
    a, b = np.asarray(w.a), np.asarray(w.b)
    module = part.module
    if part.parameter and part.kind != "router":
        # PEFT wraps a module once per parameter, in their order: all but the last are inside.
        order = [p.parameter for p in found if p.module == module]
        module += ".base_layer" * (len(order) - 1 - order.index(part.parameter))
    if part.kind == "embedding" and not part.parameter:
        made = {"lora_embedding_A": b.T, "lora_embedding_B": a.T}
    elif part.kind == "experts":
        experts, rank = a.shape[0], a.shape[1]
        made = {
            "lora_A.weight": a.reshape(experts * rank, -1),  # experts one after the other
            "lora_B.weight": np.transpose(b, (1, 2, 0)).reshape(b.shape[1], -1),  # the expert is the fastest
        }
    else:
        made = {"lora_A.weight": a, "lora_B.weight": b}
    if w.bias is not None:
        made["lora_B.bias"] = np.asarray(w.bias)[:, 0]
    if w.magnitude is not None:
        made["lora_magnitude_vector"] = np.asarray(w.magnitude).reshape(-1)
    if part.parameter and (w.magnitude is not None or w.bias is not None or w.dropout):
        raise ValueError(
            f"save_adapter: {part.name} has a dropout, a bias or DoRA, which PEFT does not have on parameters"
        )
    return {f"{module}.{name}": array for name, array in made.items()}


def _tied(model: Any, found: list[Part], more: Saved, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """What PEFT holds for the head that is the table of embeddings: the same once more, by the name of the head."""
    tables = [at(model, path) for path in shared(model)]
    if not any(is_adapter(w) and not isinstance(w, Rows) for w in tables):
        return {}
    if not isinstance(model, CausalLM):
        raise ValueError(
            "save_adapter: the adapter is on embeddings that are the head as well, and PEFT ties the two in language "
            "models with a decoder alone. Untie them: config_overrides={'tie_word_embeddings': False}."
        )
    rules = family_of(model).modules(model)
    head = file_name("lm_head.weight", rules).removesuffix(".weight")
    (path,) = shared(model)
    table = in_memory(path, "embedding", (1, 1), rules)[0]
    data["ensure_weight_tying"] = True
    module, last = table.removesuffix(".weight"), table.rsplit(".", 2)[-2]
    where = "modules_to_save" if table in more.tensors else "target_modules"
    if last not in _EMBEDDINGS:  # PEFT looks for tied weights only where one of its names is asked for
        data[where] = [module, *[m for m in data[where] if m not in (module, last)], head]
    if table in more.tensors:
        return {f"{head}.weight": more.tensors[table]}
    (part,) = [p for p in found if p.module == module]
    if part.weight.magnitude is not None:
        raise ValueError(
            "save_adapter: DoRA on embeddings that are the head as well is two weights in PEFT: untie them"
        )
    return {f"{head}.lora_A.weight": np.asarray(part.weight.a), f"{head}.lora_B.weight": np.asarray(part.weight.b)}


def _embeddings(model: Any, found: list[Part], data: Mapping[str, Any], how: bool | str) -> dict[str, np.ndarray]:
    """The base weights of adapted embeddings and heads, which PEFT saves beside their adapters."""
    wanted = data.get("target_modules") or ()
    named = (
        any(p.module.rsplit(".", 1)[-1] in _EMBEDDINGS and matches_target(data, p.module) for p in found)
        if isinstance(wanted, str)
        else any(name in wanted for name in _EMBEDDINGS)
    )
    if how is False or (how == "auto" and (not named or data.get("trainable_token_indices") is not None)):
        return {}
    rules = family_of(model).modules(model)
    bases: dict[str, np.ndarray] = {}
    for f in find_slots(model, ("embedding", "head")):
        if isinstance(f.weight, LoRA) and is_leaf(f.weight.base):
            module, _ = module_of(f.path, f.slot.role, (1, 1), rules)
            if f.slot.role == "head" or f.weight.base is input_embeddings(model).weight.base:
                bases[f"{module}.base_layer.weight"] = np.asarray(f.weight.base)
    if shared(model) and bases:
        head = file_name("lm_head.weight", rules).removesuffix(".weight")
        bases[f"{head}.base_layer.weight"] = next(iter(bases.values()))
    return bases


def _common(model: Any) -> dict[str, Any]:
    """What every method's settings have."""
    from ...tasks.task import facts, task

    known = facts(task(model))
    return {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "revision": None,
        "task_type": None if known.heads else known.peft,
    }


def _defaults(model: Any, more: Saved) -> dict[str, Any]:
    from ...tasks.task import facts, task

    known, common = facts(task(model)), _common(model)
    # Where PEFT saves the head by itself, a file without it cannot say the task.
    if any(name.rsplit(".", 1)[-1] in known.heads for name in more.modules):
        common["task_type"] = known.peft
    return {**common, "loftq_config": {}, "megatron_config": None, "megatron_core": "megatron.core"}


def _describe(model: Any, found: list[Part], more: Saved, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the adapters themselves say; the commonest rank and alpha, and the others by name."""
    pairs = Counter((p.weight.rank, short(p.weight.alpha)) for p in found)
    rank, alpha = pairs.most_common(1)[0][0]
    whole = [p for p in found if p.parameter is None] or found
    one: dict[str, set[Any]] = {
        "dropout": {p.weight.dropout for p in found},
        "use_dora": {p.weight.magnitude is not None for p in whole},
        "lora_bias": {p.weight.bias is not None for p in whole},
        "init": {p.weight.start for p in found},
    }
    for what, values in one.items():
        if len(values) > 1:
            raise ValueError(
                f"save_adapter: PEFT's file has one {what} for all layers, the model has {sorted(map(str, values))}"
            )
    init = next(iter(one["init"]))
    # PEFT makes these again from the file, but not for parameters, and OLoRA not for Conv1D.
    again = init == "pissa" or (init == "olora" and not transposed_targets(model))
    if init is not None and (not again or any(p.parameter for p in found)):
        raise ValueError(
            f"save_adapter: the adapters started by changing the base ({init!r}), in a way that the file cannot say. Write "
            "that base beside: base, adapter = ef.split_lora(model); ef.save(base, folder); and the adapter as a plain one, "
            "which fits no other: ef.save_adapter(ef.join_lora(base, {p: dataclasses.replace(w, start=None) for p, w in "
            "adapter.items()}), directory). Or fold it in: ef.save(ef.merge_lora(model), folder)."
        )
    said = config.get("init_lora_weights", True)
    plain = isinstance(said, bool) or said in ("gaussian", "eva", "orthogonal")
    words = {
        "alpha_pattern": {p.name: short(p.weight.alpha) for p in found if short(p.weight.alpha) != alpha},
        "exclude_modules": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "r": rank,
        "rank_pattern": {p.name: p.weight.rank for p in found if p.weight.rank != rank},
        "target_modules": targets(model, [p.module for p in found if p.parameter is None]),
        "target_parameters": shortest([p.name for p in found if p.parameter], tensor_names(model)) or None,
        "use_rslora": False,
    }
    if _same(model, found, config):
        words = {key: config.get(key, default) for key, default in _WORDS.items()}
    return {
        **words,
        **more.settings,
        "ensure_weight_tying": bool(config.get("ensure_weight_tying", False)),
        "fan_in_fan_out": transposed_targets(model),
        "init_lora_weights": init if init is not None else said if plain else True,
        "lora_bias": next(iter(one["lora_bias"])),
        "lora_dropout": next(iter(one["dropout"])),
        "peft_type": "LORA",
        "use_dora": next(iter(one["use_dora"])),
    }


def _same(model: Any, found: list[Part], config: Mapping[str, Any]) -> bool:
    """Whether the caller's settings give the model's adapters, in whatever words."""
    if "r" not in config or "lora_alpha" not in config or config.get("target_modules") == "all-linear":
        return False
    if any(rank_and_scale(config, p.name) != (p.weight.rank, p.weight.scale) for p in found):
        return False
    every = [m for m in modules(model, ("linear", "head", "embedding")) if matches_target(config, m)]
    if sorted(every) != sorted(p.module for p in found if p.parameter is None):
        return False
    rules = family_of(model).modules(model)
    inside = [
        name
        for f in find_slots(model, ("experts", *ADAPTED))
        for path in expand(f.path)
        if by_parameter(name := in_memory(path, f.slot.role, (1, 1), rules)[0], f.slot.role)
        and matches_parameter(config, name)
    ]
    return sorted(inside) == sorted(p.name for p in found if p.parameter)


def shared(model: Any) -> list[str]:
    """The paths of tables that are the output head as well."""
    if not getattr(model.config, "tie_word_embeddings", False) or not head_logits.knows(type(model)):
        return []
    table = input_embeddings(model)
    return [f.path for f in find_slots(model, ("embedding",)) if f.weight is table.weight]
