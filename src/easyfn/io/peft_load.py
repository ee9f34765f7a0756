"""PEFT's adapter files onto a model: see `easyfn.io.peft` for the way out."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._slots import Found, find_slots
from .._tree import expand, is_abstract, is_leaf, near, replace
from .._weight import shape_of
from ..lora import LoRA, join_lora
from ..lora.inits import CHANGES_BASE, start
from ..models.family import family_of
from . import peft_slots  # noqa: F401  (registers its methods)
from .checkpoint import LoadError
from .names import Tensors, file_name, tensors_for
from .peft import CONFIG, PREFIX, WEIGHTS, shared
from .peft_methods import METHODS, Method
from .safetensors import Info, read, read_header

_EXPECTED = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}
_TABLE = {"lora_embedding_B": "a", "lora_embedding_A": "b", "lora_magnitude_vector": "magnitude"}  # transposed both

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
    [
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "target_parameters",
        "task_type",
        "use_dora",
        "use_rslora",
    ]
)


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

    Works on dense, quantized, stacked and sharded models. `dtype` is that of the adapters; `None` keeps the file's.
    `revision`, `token`, `cache_dir` and `local_files_only` are huggingface_hub's.

    Raises [`easyfn.LoadError`][] with everything that is wrong at once: a method other than LoRA, settings that
    change the mathematics and are not implemented, tensors that fit no weight of the model, ranks that disagree. The
    example is at [`easyfn.save_adapter`][].
    """
    options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = _locate(path, (CONFIG, WEIGHTS), options)
    config = read_adapter_config(folder)
    method = METHODS.get(config.get("peft_type", "LORA"))
    _refuse(folder, config, method)
    infos, _ = read_header(folder / WEIGHTS)
    left = {_plain(name): info for name, info in infos.items()}
    if len(left) != len(infos):
        raise LoadError(folder, [f"{WEIGHTS} holds more than one adapter"])
    if method is not None:
        made, errors = method.read(model, config, left, dtype)
        if errors := [*errors, *_unused(folder, left, model)]:
            raise LoadError(folder, errors)
        return made
    errors = []
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
    errors += _tied(model, config, adapter, left)
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
    new = {}
    for f in find_slots(model):
        names = expand(f.path)
        mine = [adapter[n] for n in names if n in adapter]
        if not mine:
            continue
        take_out = lambda weight, w=mine[0], role=f.slot.role: start(
            init, weight, role, w.rank, w.scale, jax.random.key(0)
        )[2]
        new[f.path] = take_out(f.weight) if names == [f.path] else jax.vmap(take_out)(f.weight)
    return replace(model, new)


def _refuse(folder: Path, config: dict[str, Any], method: Method | None) -> None:
    errors = []
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        if method is None:
            errors.append(f"{CONFIG}: peft_type is {kind!r}; easyfn reads {', '.join(['LORA', *METHODS])}")
        else:
            for key, value in config.items():
                if key not in _KNOWN and key not in method.known and value not in (None, False, [], {}):
                    errors.append(
                        f"{CONFIG}: {key}={value!r} is unknown to easyfn and might change the result; set it to null to insist"
                    )
        if errors:
            raise LoadError(folder, errors)
        return
    for key, neutral in _REFUSED.items():
        if key in config and config[key] not in neutral:
            errors.append(f"{CONFIG}: {key}={config[key]!r} changes the result, and easyfn does not implement it")
    for key, value in config.items():
        if key not in _KNOWN and key not in _REFUSED and value not in (None, False, [], {}):
            errors.append(
                f"{CONFIG}: {key}={value!r} is unknown to easyfn and might change the result; set it to null to insist"
            )
    init = config.get("init_lora_weights")
    if (isinstance(init, str) and init in CHANGES_BASE) or str(init).startswith("pissa_niter"):
        if init not in ("pissa", "olora"):
            errors.append(
                f"{CONFIG}: init_lora_weights={init!r} changed the base weights in a way that the file does not tell"
            )
    elif init in ("corda", "kasa", "lora_ga"):
        errors.append(
            f"{CONFIG}: init_lora_weights={init!r} changed the base weights; convert it to a plain LoRA with PEFT first"
        )
    if config.get("bias", "none") not in ("none", None):
        errors.append(f"{CONFIG}: bias={config['bias']!r} is not implemented")
    if errors:
        raise LoadError(folder, errors)


def _plain(name: str) -> str:
    """A tensor's name without PEFT's prefix and without the adapter's name that some tools leave in it."""
    name = name.removeprefix(PREFIX)
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
    return _made(path, module, got["a"].shape[0], got["a"], got["b"], magnitude, scale, config, shape, errors, dtype)


def _tied(model: Any, config: dict[str, Any], adapter: dict[str, LoRA], left: dict[str, Info]) -> list[str]:
    """An adapter on a table that is the head as well: one weight of ours, so it acts on both, as with PEFT's
    `ensure_weight_tying`.
    """
    tables = [adapter[path] for path in shared(model) if path in adapter]
    if not tables:
        return []
    if not config.get("ensure_weight_tying"):
        return [
            f"{CONFIG}: the adapter is on the input embeddings, which are the head as well, and acts on the "
            "input alone "
            "(ensure_weight_tying is not set). Untie the two to load it: "
            "config_overrides={'tie_word_embeddings': False}."
        ]
    for name in [n for n in left if n.endswith(".lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        a, b = read(left[name]), left.get(f"{module}.lora_B.weight")
        if b is not None and any(np.array_equal(a, w.a) and np.array_equal(read(b), w.b) for w in tables):
            for part in ("lora_A.weight", "lora_B.weight", "base_layer.weight"):
                left.pop(f"{module}.{part}", None)
    return []


def _differs(module: str, info: Info, weight: Any) -> list[str]:
    """PEFT writes the frozen weight itself beside an adapter on a vocabulary: it must be ours, or PEFT would use
    another one.
    """
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
        pick = lambda patterns, default: next(
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
    cast = lambda x: jnp.asarray(x if dtype is None else x.astype(jnp.dtype(dtype)))
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
                why = (
                    f"it has {pickle[0]}, a pickle, which can run code: save it as safetensors with PEFT"
                    if pickle
                    else "it is no PEFT adapter"
                )
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
        raise FileNotFoundError(
            f"{text!r} is no local folder, not in the hub's cache, and the hub could not be asked: {error}"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{text!r} is neither a local folder nor a repository that the hub shows to you: {error}"
        ) from error
    except EntryNotFoundError as error:
        raise LoadError(text, [f"the repository lacks one of {', '.join(names)}: {error}"]) from error
    return first
