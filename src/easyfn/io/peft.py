"""Adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, both ways."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._slots import Found, find_slots
from .._trainable import is_adapter
from .._tree import expand, is_abstract, is_leaf, near
from .._weight import shape_of
from ..lora import LoRA, join_lora
from ..lora.inits import CHANGES_BASE, start
from ..models.family import family_of
from .checkpoint import LoadError
from .names import Rule, Tensors, file_name, tensors_for
from .safetensors import Info, read, read_header, write

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_EXPECTED = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}
_TABLE = {"lora_embedding_B": "a", "lora_embedding_A": "b", "lora_magnitude_vector": "magnitude"}  # transposed both
_TASKS = {"causal-lm": "CAUSAL_LM", "seq2seq-lm": "SEQ_2_SEQ_LM"}

# Keys of adapter_config.json that change what the adapter computes, and what they are when they do not.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "layer_replication": (None, []),
    "lora_bias": (None, False),
    "monteclora_config": (None,),
    "trainable_token_indices": (None, [], {}),
    "use_bdlora": (None, False),
    "use_qalora": (None, False),
    "velora_config": (None,),
}
# Keys that say how the adapter was made, where it may go, or what we read above.
_KNOWN = frozenset(
    """alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config exclude_modules
    fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config lora_alpha lora_dropout
    lora_ga_config megatron_config megatron_core modules_to_save peft_type peft_version qalora_group_size r rank_pattern
    revision runtime_config target_modules target_parameters task_type use_dora use_rslora""".split()
)


class Part(NamedTuple):
    """One adapter of one layer: `module` as PEFT names it, and for experts the parameter inside the module."""

    module: str
    parameter: str | None
    kind: str  # linear, embedding, experts
    weight: LoRA

    @property
    def name(self) -> str:
        return f"{self.module}.{self.parameter}" if self.parameter else self.module


# --- writing


def save_adapter(model: Any, directory: Any, *, config: Mapping[str, Any] | None = None) -> Path:
    """Writes the adapters of a model as PEFT does, for `peft.PeftModel.from_pretrained`; returns the folder.

    **Arguments**

    - `directory`: made if need be; its other files are kept.
    - `config`: more keys for `adapter_config.json` (`base_model_name_or_path`, `task_type`, or all of what
      [`easyfn.read_adapter_config`][] gave). They never replace what the model says.

    Stacked layers are written one by one; the base model is not written. Raises `ValueError` for a model without adapters, and
    for what PEFT's file cannot say.

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
    found = parts(model)
    if not found:
        raise ValueError("save_adapter: the model has no adapter. Put one on with ef.apply_lora or ef.load_adapter.")
    data = {**_defaults(model), **(config or {}), **_describe(model, found)}
    tensors = {name: array for part in found for name, array in _tensors(part, found).items()}
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
    return {f"{_PREFIX}{module}.{name}": array for name, array in made.items()}


def _defaults(model: Any) -> dict[str, Any]:
    from .._task import task

    return {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "exclude_modules": None,
        "inference_mode": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "revision": None,
        "task_type": _TASKS.get(task(model)),
    }


def _describe(model: Any, found: list[Part]) -> dict[str, Any]:
    """What the adapters themselves say; the commonest rank and alpha, and the others by name."""
    pairs = Counter((p.weight.rank, _round(p.weight.alpha)) for p in found)
    rank, alpha = pairs.most_common(1)[0][0]
    one = {
        "dropout": {p.weight.dropout for p in found},
        "use_dora": {p.weight.magnitude is not None for p in found if p.kind != "experts"},
        "init": {p.weight.start for p in found},
    }
    for what, values in one.items():
        if len(values) > 1:
            raise ValueError(f"save_adapter: PEFT's file has one {what} for all layers, the model has {sorted(map(str, values))}")
    init = next(iter(one["init"]))
    if init is not None and init not in ("pissa", "olora"):
        raise ValueError(
            f"save_adapter: the adapters started from the weight with {init!r}, at random, so the changed base cannot be made again "
            "from the file. Save ef.merge_lora(model) as a whole instead."
        )
    modules = [p.module for p in found if p.parameter is None]
    dense_dropout = next(iter(one["dropout"]))
    return {
        "alpha_pattern": {p.name: _round(p.weight.alpha) for p in found if _round(p.weight.alpha) != alpha},
        "bias": "none",
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
    """The shortest list that PEFT expands to these modules: last names where all of that name are adapted, else whole paths."""
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


# --- reading


def read_adapter_config(path: Any, **options: Any) -> dict[str, Any]:
    """The `adapter_config.json` of a folder or a hub repository, as it is."""
    folder = _locate(path, (CONFIG,), options)
    try:
        data = json.loads((folder / CONFIG).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LoadError(folder, [f"{CONFIG} is no JSON ({error})"]) from None
    if not isinstance(data, dict):
        raise LoadError(folder, [f"{CONFIG} is no JSON object"])
    return data


def load_adapter(
    model: Any,
    path: Any,
    *,
    dtype: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Any = None,
    local_files_only: bool = False,
) -> Any:
    """`model` with the adapters of a PEFT folder or hub repository on it.

    Works on dense, quantized, stacked and sharded models. `dtype` is that of the adapters; `None` keeps the file's. `revision`, `token`,
    `cache_dir` and `local_files_only` are huggingface_hub's.

    Raises [`easyfn.LoadError`][] with everything that is wrong at once: a method other than LoRA, settings that change the
    mathematics and are not implemented, tensors that fit no weight of the model, ranks that disagree. The example is at
    [`easyfn.save_adapter`][].
    """
    options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = _locate(path, (CONFIG, WEIGHTS), options)
    config = read_adapter_config(folder)
    _refuse(folder, config)
    infos, _ = read_header(folder / WEIGHTS)
    left = {_plain(name): info for name, info in infos.items()}
    if len(left) != len(infos):
        raise LoadError(folder, [f"{WEIGHTS} holds more than one adapter"])
    errors: list[str] = []
    adapter: dict[str, LoRA] = {}
    for f in find_slots(model):
        if f.slot.role in ("bias", "norm", "other"):
            continue
        for single in expand(f.path):
            shape = tuple(shape_of(f.weight))
            shape = shape if expand(f.path) == [f.path] else shape[1:]
            made = _read_one(model, single, f, shape, config, left, errors, dtype)
            if made is not None:
                adapter[single] = made
    errors += _unused(folder, left, model)
    if not errors and not adapter:
        errors.append(f"{WEIGHTS} holds no LoRA tensors that fit the model")
    if errors:
        raise LoadError(folder, errors)
    init = config.get("init_lora_weights")
    if init in ("pissa", "olora"):
        model = _with_changed_base(model, adapter, init)
        adapter = {p: dataclasses.replace(w, start=init) for p, w in adapter.items()}
    return join_lora(model, adapter)


def _with_changed_base(model: Any, adapter: dict[str, LoRA], init: str) -> Any:
    """PiSSA and OLoRA take out of the weight what the adapter started with: done again, as PEFT does on loading."""
    from .._tree import replace

    new = {}
    for f in find_slots(model):
        names = expand(f.path)
        mine = [adapter[n] for n in names if n in adapter]
        if not mine:
            continue
        take_out = lambda weight, w=mine[0], role=f.slot.role: start(  # noqa: E731
            init, weight, role, w.rank, w.scale, jax.random.key(0)
        )[2]
        new[f.path] = take_out(f.weight) if names == [f.path] else jax.vmap(take_out)(f.weight)
    return replace(model, new)


def _refuse(folder: Path, config: dict[str, Any]) -> None:
    errors = []
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        errors.append(f"{CONFIG}: peft_type is {kind!r}; easyfn reads LORA")
    for key, neutral in _REFUSED.items():
        if key in config and config[key] not in neutral:
            errors.append(f"{CONFIG}: {key}={config[key]!r} changes the result, and easyfn does not implement it")
    for key, value in config.items():
        if key not in _KNOWN and key not in _REFUSED and value not in (None, False, [], {}):
            errors.append(f"{CONFIG}: {key}={value!r} is unknown to easyfn and might change the result; set it to null to insist")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init in CHANGES_BASE or str(init).startswith("pissa_niter"):
        if init not in ("pissa", "olora"):
            errors.append(f"{CONFIG}: init_lora_weights={init!r} changed the base weights in a way that the file does not tell")
    elif init in ("corda", "kasa", "lora_ga"):
        errors.append(f"{CONFIG}: init_lora_weights={init!r} changed the base weights; convert it to a plain LoRA with PEFT first")
    if config.get("bias", "none") not in ("none", None):
        errors.append(f"{CONFIG}: bias={config['bias']!r} is not implemented")
    if errors:
        raise LoadError(folder, errors)


def _plain(name: str) -> str:
    """A tensor's name without PEFT's prefix and without the adapter's name that some tools leave in it."""
    name = name.removeprefix(_PREFIX)
    return re.sub(r"(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.default(?=\.|$)", r"\1", name)


def _read_one(
    model: Any,
    path: str,
    f: Found,
    shape: tuple[int, ...],
    config: dict[str, Any],
    left: dict[str, Info],
    errors: list[str],
    dtype: Any,
) -> LoRA | None:
    """The adapter of one weight, if the file has one; what was read is taken out of `left`."""
    known = family_of(model)
    rules = known.names(model)
    source = tensors_for(path, shape, rules)
    scale = _Scale(config)
    if len(source.names) > 1 and (several := _modules(source.names, left, known.prefix)):
        read_parts = [_pair(module, left) for module in several]
        a, b = _combine(source, [p["a"] for p in read_parts], [p["b"] for p in read_parts])
        rank = read_parts[0]["a"].shape[0]
        return _made(path, several[0], rank, a, b, None, scale, config, shape, errors, dtype)
    if f.slot.role == "experts":
        container, _, parameter = file_name(path, rules).rpartition(".")
        return _read_experts(path, container, parameter, shape, left, scale, config, errors, dtype, known.prefix)
    found = _modules(source.names[:1], left, known.prefix)
    if not found and source.names[0] != path:
        found = _modules([path], left, known.prefix)
    if not found:
        return None
    module = found[0]
    got = _pair(module, left)
    if (info := left.pop(f"{module}.base_layer.weight", None)) is not None:  # beside an adapter on a table or a head
        errors += _differs(module, info, f.weight)
    if set(got) not in ({"a", "b"}, {"a", "b", "magnitude"}):
        errors.append(f"{module}: the file has only {', '.join(sorted(got))} of the adapter")
        return None
    magnitude = got.get("magnitude")
    return _made(
        path, module, got["a"].shape[0], got["a"], got["b"], magnitude, scale, config, shape, errors, dtype
    )


def _differs(module: str, info: Info, weight: Any) -> list[str]:
    """PEFT writes the frozen weight itself beside an adapter on a vocabulary: it must be ours, or PEFT would use another one."""
    if tuple(info.shape) != tuple(shape_of(weight)):
        return [
            f"{module}: the adapter was made for a base weight {info.shape}, the model has {tuple(shape_of(weight))}; "
            "ef.resize_embeddings the model first"
        ]
    concrete = is_leaf(weight) and not is_abstract(weight)
    if concrete and not np.allclose(read(info).astype(np.float32), np.asarray(weight, np.float32), atol=1e-2):
        return [f"{module}: the file brings a base weight of its own, which is not the model's"]
    return []


def _modules(names: Sequence[str], left: dict[str, Info], prefix: str) -> list[str]:
    """The modules of tensors, as the file spells them: with or without the prefix of the base model."""
    found = []
    for name in names:
        module = name.removesuffix(".weight")
        for spelling in (module, f"{prefix}.{module}", module.removeprefix(f"{prefix}.")):
            if f"{spelling}.lora_A.weight" in left or f"{spelling}.lora_embedding_A" in left:
                found.append(spelling)
                break
    return found if len(found) == len(names) else []


def _pair(module: str, left: dict[str, Info]) -> dict[str, np.ndarray]:
    """What the file has of a module's adapter: `a` `(rank, in)`, `b` `(out, rank)`, `magnitude` `(out,)`."""
    got = {}
    for name, field in _EXPECTED.items():
        if (info := left.pop(f"{module}.{name}", None)) is not None:
            got[field] = read(info)
    if (info := left.pop(f"{module}.lora_magnitude_vector.weight", None)) is not None:  # PEFT before 0.12
        got["magnitude"] = read(info)
    for name, field in _TABLE.items():
        if field != "magnitude" and (info := left.pop(f"{module}.{name}", None)) is not None:
            got[field] = read(info).T
    return got


def _combine(source: Tensors, a: list[np.ndarray], b: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One adapter of several modules that are one weight of ours: ranks add up, `b` is block diagonal."""

    def fused(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        out, rank = [x.shape[0] for x in b], [x.shape[1] for x in b]
        whole = np.zeros((sum(out), sum(rank)), b[0].dtype)
        row = column = 0
        for x in b:
            whole[row : row + x.shape[0], column : column + x.shape[1]] = x
            row, column = row + x.shape[0], column + x.shape[1]
        return np.concatenate(a), whole

    if source.kind != "experts":
        return fused(a, b)
    per = len(source.names) // source.shape[0]
    pairs = [fused(a[e * per : (e + 1) * per], b[e * per : (e + 1) * per]) for e in range(source.shape[0])]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])


def _read_experts(path, container, parameter, shape, left, scale, config, errors, dtype, prefix) -> LoRA | None:
    """PEFT's `target_parameters`: one wrapper per parameter, the first of them inside."""
    for module in (container, f"{prefix}.{container}", container.removeprefix(f"{prefix}.")):
        wanted = [w.rpartition(".")[2] for w in config.get("target_parameters") or ()]
        if parameter not in wanted:
            return None
        # The first of the module's parameters is wrapped first, so it is inside if there is a second.
        inside = parameter == "gate_up_proj" and "down_proj" in wanted
        where = f"{module}.base_layer" if inside else module
        if f"{where}.lora_A.weight" not in left:
            continue
        got = _pair(where, left)
        experts = shape[0]
        a = got["a"].reshape(experts, -1, got["a"].shape[-1])
        b = np.transpose(got["b"].reshape(got["b"].shape[0], -1, experts), (2, 0, 1))
        return _made(path, f"{module}.{parameter}", a.shape[1], a, b, None, scale, config, shape, errors, dtype)
    return None


class _Scale:
    """The scale of a module as PEFT computes it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.rank = config.get("r", 8)
        self.alpha = config.get("lora_alpha", 8)
        self.ranks = config.get("rank_pattern") or {}
        self.alphas = config.get("alpha_pattern") or {}
        self.rslora = bool(config.get("use_rslora"))

    def of(self, module: str) -> tuple[int, float]:
        pick = lambda patterns, default: next(  # noqa: E731
            (v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), default
        )
        rank = pick(self.ranks, self.rank)
        alpha = pick(self.alphas, self.alpha)
        return rank, alpha / (rank**0.5 if self.rslora else rank)


def _made(path, module, rank, a, b, magnitude, scale, config, shape, errors, dtype) -> LoRA | None:
    said, factor = scale.of(module)
    *lead, out, into = shape
    if rank != said:
        errors.append(f"{module}: the tensors have rank {rank}, {CONFIG} says {said}")
    total = a.shape[-2]
    if a.shape != (*lead, total, into) or b.shape != (*lead, out, total):
        errors.append(f"{module}: lora_A {a.shape} and lora_B {b.shape} do not fit the weight {shape} at {path}")
        return None
    cast = lambda x: jnp.asarray(x if dtype is None else x.astype(jnp.dtype(dtype)))  # noqa: E731
    if magnitude is not None:
        magnitude = cast(magnitude.reshape(out, 1))
    dropout = float(config.get("lora_dropout") or 0.0)
    return LoRA(None, cast(a), cast(b), magnitude, scale=float(factor), dropout=dropout)


def _unused(folder: Path, left: dict[str, Info], model: Any) -> list[str]:
    if not left:
        return []
    known = [f.layer for f in find_slots(model)]
    shown = sorted(left)[:8]
    hint = near(re.sub(r"\.(base_layer\.)?(lora_\w+|weight|bias)(\.weight)?$", "", shown[0]), known)
    return [f"{WEIGHTS}: no weight of the model takes {', '.join(shown)}{', ...' if len(left) > 8 else ''}. {hint}"]


def _locate(path: Any, names: tuple[str, ...], options: dict[str, Any]) -> Path:
    """The folder that holds an adapter: a local one, or a hub repository fetched into the cache."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        for name in names:
            if not (folder / name).is_file():
                pickle = [p.name for p in folder.glob("adapter_model.*") if p.suffix in (".bin", ".pt")]
                why = f"it has {pickle[0]}, a pickle, which can run code: save it as safetensors with PEFT" if pickle else "it is no PEFT adapter"
                raise LoadError(folder, [f"there is no {name}: {why}"])
        return folder
    text = str(path)
    if text.startswith((".", "/", "~", "\\")) or text.count("/") != 1:
        raise FileNotFoundError(f"there is no folder {text!r} (a hub repository would be written as 'user/name')")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        first = Path(hf_hub_download(text, names[0], **options)).parent
        for name in names[1:]:
            hf_hub_download(text, name, **{**options, "revision": first.name})
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{text!r} is no local folder, not in the hub's cache, and the hub could not be asked: {error}") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{text!r} is neither a local folder nor a repository that the hub shows to you: {error}") from error
    except EntryNotFoundError as error:
        raise LoadError(text, [f"the repository lacks one of {', '.join(names)}: {error}"]) from error
    return first
