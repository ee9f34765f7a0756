"""PEFT's adapter files onto a model: see `easyfn.io.peft.save` for the way out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax

from ...core.habits import taught
from ...core.schema import problems, read_json
from ...core.slots import find_slots
from ...core.tree import expand, near, replace
from ...core.weight import shape_of
from ...lora import LoRA, join_lora
from ...lora.inits import CHANGES_BASE, start
from ...registry.family import family_of
from ..checkpoint import LoadError, one_version
from ..safetensors import Info, read_header
from . import prompt, slots  # noqa: F401  (they register their methods)
from .fields import FIELDS
from .methods import METHODS, Method
from .read import Reader
from .save import CONFIG, PREFIX, WEIGHTS
from .uses import used_alike

# Keys of adapter_config.json that change what the adapter computes, and what they are when they do not.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "layer_replication": (None, []),
    "monteclora_config": (None,),
    "use_bdlora": (None, False),
    "use_qalora": (None, False),
    "velora_config": (None,),
}
# Starts that change the base, by how their names begin.
_CHANGED = ("corda", "kasa", "loftq", "lora_ga", "olora", "pissa")
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
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "merge_weights",
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
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    ]
)


def read_adapter_config(path: Any, **options: Any) -> dict[str, Any]:
    """The `adapter_config.json` of a folder or a hub repository, as it is."""
    folder = _locate(path, (CONFIG,), options)
    data = read_json(folder / CONFIG, LoadError)
    if wrong := problems(data, FIELDS):
        raise LoadError(folder / CONFIG, wrong)
    return data


@taught
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
    if isinstance(model, str | Path):
        raise TypeError("load_adapter takes the model first: ef.load_adapter(model, path)")
    options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = _locate(path, (CONFIG, WEIGHTS), options)
    config, (infos, _) = one_version(folder, lambda: (read_adapter_config(folder), read_header(folder / WEIGHTS)))
    method = METHODS.get(config.get("peft_type", "LORA"))
    _refuse(folder, config, method)
    left = {_plain(name): info for name, info in infos.items()}
    if len(left) != len(infos):
        raise LoadError(folder, [f"{WEIGHTS} holds more than one adapter"])
    apart = used_alike(model, left)
    if method is not None:
        made, errors = method.read(model, config, left, dtype)
        if errors := [*apart, *errors, *_unused(folder, left, model)]:
            raise LoadError(folder, errors)
        return made
    reader = Reader(model, config, left, dtype)
    adapter: dict[str, Any] = {}
    for f in find_slots(model):
        for single in expand(f.path):
            shape = tuple(shape_of(f.weight))
            shape = shape if expand(f.path) == [f.path] else shape[1:]
            if (one := reader.adapter(single, f, shape)) is not None:
                adapter[single] = one
    reader.tied(adapter)
    ignored = family_of(model).ignore_tensors(model.config)
    for name in [n for n in left if any(re.search(p, n) for p in ignored)]:
        del left[name]
    errors = [*apart, *reader.errors, *_unused(folder, left, model)]
    if not errors and not any(isinstance(w, LoRA) for w in adapter.values()):
        errors.append(f"{WEIGHTS} holds no LoRA tensors that fit the model")
    if errors:
        raise LoadError(folder, errors)
    init = str(config.get("init_lora_weights")).lower()
    if init in CHANGES_BASE:
        model = _with_changed_base(model, adapter, init)
        adapter = {p: dataclasses.replace(w, start=init) if isinstance(w, LoRA) else w for p, w in adapter.items()}
    return join_lora(model, adapter)


def _with_changed_base(model: Any, adapter: dict[str, LoRA], init: str) -> Any:
    """PiSSA and OLoRA take out of the weight what the adapter started with: done again, as PEFT does on loading."""
    new = {}
    for f in find_slots(model):
        names = expand(f.path)
        mine = [adapter[n] for n in names if isinstance(adapter.get(n), LoRA)]
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
    if (how := str(init).lower()).startswith(_CHANGED) and how not in CHANGES_BASE:
        errors.append(
            f"{CONFIG}: init_lora_weights={init!r} changed the base weights in a way that the file does not tell. Convert it "
            "to a plain LoRA with PEFT; or, if the model has that base, set it to true"
        )
    if config.get("bias", "none") not in ("none", "all", "lora_only", None):
        errors.append(f"{CONFIG}: bias={config['bias']!r} is none of 'none', 'all' and 'lora_only'")
    if errors:
        raise LoadError(folder, errors)


def _plain(name: str) -> str:
    """A tensor's name without PEFT's prefix, once or twice, and without the adapter's name that some tools leave in it."""
    name = name.removeprefix(PREFIX).removeprefix(PREFIX)
    return re.sub(r"(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.default(?=\.|$)", r"\1", name)


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
