"""Adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, both ways."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .._slots import find_slots
from .._trainable import is_adapter
from .._tree import at, expand
from ..lora import LoRA
from ..models.family import family_of
from ..nn import head_logits, input_embeddings
from .names import Rule, file_name, tensors_for
from .peft_methods import method_of
from .safetensors import write

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_TASKS = {"causal-lm": "CAUSAL_LM", "seq2seq-lm": "SEQ_2_SEQ_LM"}


class Part(NamedTuple):
    """One adapter of one layer: `module` as PEFT names it, and for experts the parameter inside the module."""

    module: str
    parameter: str | None
    kind: str  # linear, embedding, experts
    weight: LoRA

    @property
    def name(self) -> str:
        return f"{self.module}.{self.parameter}" if self.parameter else self.module


def save_adapter(model: Any, directory: Any, *, config: Mapping[str, Any] | None = None) -> Path:
    """Writes the adapters of a model as PEFT does, for `peft.PeftModel.from_pretrained`; returns the folder.

    **Arguments**

    - `directory`: made if need be; its other files are kept.
    - `config`: more keys for `adapter_config.json` (`base_model_name_or_path`, `task_type`, or all of what
      [`easyfn.read_adapter_config`][] gave). They never replace what the model says.

    Stacked layers are written one by one; the base model is not written. Raises `ValueError` for a model without
    adapters, and for what PEFT's file cannot say.

    ```python
    import tempfile, jax, easyfn as ef
    config = ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                   num_attention_heads=4, num_key_value_heads=2)
    base = ef.init(config, key=jax.random.key(0))
    model = ef.apply_lora(base, "q_proj|v_proj", key=jax.random.key(1))
    with tempfile.TemporaryDirectory() as folder:
        ef.save_adapter(model, folder)
        again = ef.load_adapter(base, folder)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    ```
    """
    if (other := method_of(model)) is not None:
        kind, method = other
        settings, tensors = method.write(model, config or {})
        data = {**_common(model), **(config or {}), **settings, "peft_type": kind}
    else:
        found = parts(model)
        if not found:
            raise ValueError(
                "save_adapter: the model has no adapter. Put one on with ef.apply_lora or ef.load_adapter."
            )
        data = {**_defaults(model), **(config or {}), **_describe(model, found)}
        tensors = {name: array for part in found for name, array in _tensors(part, found).items()}
    return _write(directory, data, {f"{PREFIX}{name}": array for name, array in tensors.items()})


def _write(directory: Any, data: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    folder = Path(directory).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {name: (tuple(array.shape), array.dtype) for name, array in sorted(tensors.items())}
    temporary = folder / f".{WEIGHTS}.part"
    write(temporary, shapes, (tensors[name] for name in shapes), {"format": "pt"})
    settings = folder / f".{CONFIG}.part"
    settings.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", "utf-8")
    os.replace(temporary, folder / WEIGHTS)
    os.replace(settings, folder / CONFIG)
    return folder


def parts(model: Any) -> list[Part]:
    """The adapters of a model, one per layer, with PEFT's names."""
    rules = family_of(model).names(model)
    found = []
    for f in find_slots(model):
        if not is_adapter(f.weight):
            continue
        if not isinstance(f.weight, LoRA) or is_adapter(f.weight.base):
            raise ValueError(f"save_adapter: {f.path} holds a {type(f.weight).__name__}, which PEFT's files cannot say")
        names = expand(f.path)
        alone = dataclasses.replace(f.weight, base=None, key=None)
        for i, path in enumerate(names):
            one = alone if names == [f.path] else jax.tree.map(lambda leaf, i=i: leaf[i], alone)
            kind = f.slot.role if f.slot.role in ("embedding", "experts") else "linear"
            module, parameter = _module(path, kind, one, rules)
            found.append(Part(module, parameter, kind, one))
    return found


def _module(path: str, kind: str, w: LoRA | None, rules: Sequence[Rule]) -> tuple[str, str | None]:
    """The module of a path as transformers names it, and the parameter if it is no module's `weight`."""
    if kind == "experts":
        module, _, parameter = file_name(path, rules).rpartition(".")
        return module, parameter
    shape = (0, 0) if w is None else (w.b.shape[-2], w.a.shape[-1])
    source = tensors_for(path, shape, rules)
    if len(source.names) != 1:
        raise ValueError(f"save_adapter: {path} is several modules in transformers ({', '.join(source.names)})")
    return source.names[0].removesuffix(".weight"), None


def _tensors(part: Part, found: list[Part]) -> dict[str, np.ndarray]:
    w = part.weight
    a, b = np.asarray(w.a), np.asarray(w.b)
    module = part.module
    if part.kind == "embedding":
        made = {"lora_embedding_A": b.T, "lora_embedding_B": a.T}
    elif part.kind == "experts":
        # PEFT wraps a module once per parameter, in their order: all but the last are inside.
        order = sorted({p.parameter for p in found if p.module == module}, key=lambda n: (n != "gate_up_proj", n or ""))
        module += ".base_layer" * (len(order) - 1 - order.index(part.parameter))
        experts, rank = a.shape[0], a.shape[1]
        made = {
            "lora_A.weight": a.reshape(experts * rank, -1),  # experts one after the other
            "lora_B.weight": np.transpose(b, (1, 2, 0)).reshape(b.shape[1], -1),  # the expert is the fastest
        }
    else:
        made = {"lora_A.weight": a, "lora_B.weight": b}
    if w.magnitude is not None:
        if part.kind == "experts":
            raise ValueError(f"save_adapter: {module} is DoRA on experts, which PEFT does not have")
        made["lora_magnitude_vector"] = np.asarray(w.magnitude)[:, 0]
    return {f"{module}.{name}": array for name, array in made.items()}


def _common(model: Any) -> dict[str, Any]:
    """What every method's settings have."""
    from .._task import task

    return {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "revision": None,
        "task_type": _TASKS.get(task(model)),
    }


def _defaults(model: Any) -> dict[str, Any]:
    return {
        **_common(model),
        "exclude_modules": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
    }


def _describe(model: Any, found: list[Part]) -> dict[str, Any]:
    """What the adapters themselves say; the commonest rank and alpha, and the others by name."""
    pairs = Counter((p.weight.rank, _round(p.weight.alpha)) for p in found)
    rank, alpha = pairs.most_common(1)[0][0]
    one: dict[str, set[Any]] = {
        "dropout": {p.weight.dropout for p in found},
        "use_dora": {p.weight.magnitude is not None for p in found if p.kind != "experts"},
        "init": {p.weight.start for p in found},
    }
    for what, values in one.items():
        if len(values) > 1:
            raise ValueError(
                f"save_adapter: PEFT's file has one {what} for all layers, the model has {sorted(map(str, values))}"
            )
    init = next(iter(one["init"]))
    if init is not None and init not in ("pissa", "olora"):
        raise ValueError(
            f"save_adapter: the adapters started from the weight with {init!r}, at random, so the changed "
            "base cannot be made again "
            "from the file. Save ef.merge_lora(model) as a whole instead."
        )
    modules = [p.module for p in found if p.parameter is None]
    dense_dropout = next(iter(one["dropout"]))
    return {
        "alpha_pattern": {p.name: _round(p.weight.alpha) for p in found if _round(p.weight.alpha) != alpha},
        "bias": "none",
        "ensure_weight_tying": any(is_adapter(at(model, path)) for path in shared(model)),
        "fan_in_fan_out": _transposed(model),
        "init_lora_weights": True if init is None else init,
        "lora_alpha": alpha,
        "lora_dropout": dense_dropout,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {p.name: p.weight.rank for p in found if p.weight.rank != rank},
        "target_modules": _targets(model, modules),
        "target_parameters": sorted({p.name for p in found if p.parameter}) or None,
        "use_dora": next(iter(one["use_dora"]), False),
        "use_rslora": False,
    }


def _round(alpha: float) -> float | int:
    """`scale * rank` may miss the integer that it was by a bit."""
    return round(alpha) if abs(alpha - round(alpha)) < 1e-6 * max(1.0, abs(alpha)) else alpha


def _transposed(model: Any) -> bool:
    rules = family_of(model).names(model)
    return any(
        tensors_for(expand(f.path)[0], (0, 0), rules).kind == "transposed"
        for f in find_slots(model)
        if is_adapter(f.weight) and f.slot.role == "linear"
    )


def _targets(model: Any, modules: list[str]) -> list[str]:
    """The shortest list that PEFT expands to these modules: last names where all of that name are adapted, else
    whole paths.
    """
    rules = family_of(model).names(model)
    every = Counter(
        _module(path, f.slot.role, None, rules)[0].rsplit(".", 1)[-1]
        for f in find_slots(model, ("linear", "head", "router", "embedding"))
        for path in expand(f.path)
        if _simple(path, rules)
    )
    mine = Counter(m.rsplit(".", 1)[-1] for m in modules)
    whole = {last for last, count in mine.items() if count == every[last] and not last.isdigit()}
    return sorted(whole | {m for m in modules if m.rsplit(".", 1)[-1] not in whole})


def _simple(path: str, rules: Sequence[Rule]) -> bool:
    return len(tensors_for(path, (1, 1), rules).names) == 1


def shared(model: Any) -> list[str]:
    """The paths of tables that are the output head as well."""
    if not getattr(model.config, "tie_word_embeddings", False) or not head_logits.knows(type(model)):
        return []
    table = input_embeddings(model)
    return [f.path for f in find_slots(model, ("embedding",)) if f.weight is table.weight]
