"""`.gguf` files as models: metadata as a config and back, tensors by our paths."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...core.tree import near
from ...names.rules import Rule, concatenated, rename, template, tensors
from ..checkpoint import Source
from ..safetensors import memory, read_into
from .architectures import ARCHITECTURES
from .facts import Architecture, Change, Data, has, value_of
from .read import GGUF, read_gguf

_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def config_data(file: GGUF, where: Any, model_type: str | None = None) -> tuple[Data, Data]:
    """The content of a `config.json` and of a `generation_config.json` for a file, as `model_type` if it is of that family.

    Keys of its architecture that are not understood come under their own names, so that reading the config refuses
    them. Raises `ValueError` for an architecture that is not known.
    """
    meta = file.metadata
    name = meta.get("general.architecture")
    if name is None:
        raise ValueError(f"{where}: it has no general.architecture: it holds no model (an adapter, or a vocabulary?)")
    fitting = [a for a in ARCHITECTURES if a.name == name and a.fits(meta)]
    found = next((a for a in fitting if a.model_type == model_type), fitting[0] if fitting else None)
    if found is None:
        known = [a.name for a in ARCHITECTURES]
        raise ValueError(
            f"{where}: easyfn does not know the architecture {name!r} of .gguf files. {near(str(name), known)} "
            f"It knows {', '.join(dict.fromkeys(known))}; take the model's safetensors, if they are of a family of ours"
        )
    keys = {k.removeprefix(f"{name}."): _one(v) for k, v in meta.items() if k.startswith(f"{name}.")}
    data: Data = {"model_type": found.model_type}
    for key, ours in found.keys.items():
        if key in keys:
            data[ours] = keys.pop(key)
    try:
        found.read(keys, data, file)
    except KeyError as error:
        raise ValueError(f"{where}: the metadata of {name} lack {error}") from None
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{where}: there is no token_embd.weight")
    data["vocab_size"] = embedding.shape[0]
    data["tie_word_embeddings"] = not has(file, "output.weight")
    data |= {f"{name}.{k}": v for k, v in keys.items() if k not in (*found.ignored, "vocab_size") and v not in (0, 0.0)}
    data["quantization_config"] = {"quant_method": "gguf"}
    generation = {ours: meta[theirs] for ours, theirs in _IDS.items() if theirs in meta}
    data |= generation
    ends = dict.fromkeys(meta[k] for k in (_IDS["eos_token_id"], "tokenizer.ggml.eot_token_id") if k in meta)
    if len(ends) > 1:
        generation["eos_token_id"] = list(ends)
    return data, generation


def _one(value: Any) -> Any:
    """One number for all layers, where a list says it for each."""
    return (
        value[0]
        if isinstance(value, list) and value and not isinstance(value[0], bool) and len(set(value)) == 1
        else value
    )


def architecture_of(config: Any) -> Architecture:
    """The architecture in which a model is written."""
    kind = getattr(config, "model_type", None)
    for found in ARCHITECTURES:
        if found.model_type == kind and found.writes(config):
            return found
    raise ValueError(
        f"save: easyfn writes no .gguf files of {kind}; it writes {', '.join(a.model_type for a in ARCHITECTURES)}"
    )


def config_metadata(config: Any) -> tuple[Data, dict[str, np.ndarray]]:
    """The metadata that say a config, and the tensors (of rotary factors): the inverse of `config_data`."""
    kind = architecture_of(config)
    meta: Data = {"general.architecture": kind.name}
    tensors: dict[str, np.ndarray] = {}
    said = {key: getattr(config, ours, None) for key, ours in kind.keys.items()}
    if "attention.head_count_kv" in said and said["attention.head_count_kv"] is None:
        said["attention.head_count_kv"] = config.num_attention_heads
    for key, value in {**said, "vocab_size": config.vocab_size, **kind.write(config)}.items():
        if isinstance(value, np.ndarray):
            tensors[key] = value
        elif value is not None:
            meta[f"{kind.name}.{key}"] = value
    for ours, theirs in _IDS.items():
        for facts in (config.generation, config.extra):
            value = (facts or {}).get(ours)
            value = value[0] if isinstance(value, tuple) else value
            if isinstance(value, int):
                meta.setdefault(theirs, value)
    return meta, tensors


def rules(model: Any, *, strict: bool = False, held: Collection[str] | None = None) -> list[Rule]:
    """The names of a model's tensors in a `.gguf` file, as those of Hugging Face's files are given by a family.

    A matrix that Hugging Face's file holds as `(in, out)` is `(out, in)` here, and experts are stacked as ours are.
    What has no name in such files keeps Hugging Face's, or with `strict` is a `ValueError`. `held` are the names of a file
    that is read.
    """
    from ...registry.family import family_of

    known = family_of(model)
    kind = architecture_of(model.config)
    table = _table(kind.name, model.config)

    def name_of(theirs: str) -> str:
        for pattern, other in kind.names:
            theirs = re.sub(f"^{pattern}$", other, theirs)
        theirs = re.sub(r"\.experts\.\d+\.", ".experts.", theirs)
        stem, _, last = theirs.rpartition(".")
        for base in (stem, f"{known.prefix}.{stem}"):
            if last in ("weight", "bias") and (found := table.get_name(base)) is not None:
                return f"{found}.{last}"
        if (found := table.get_name(theirs)) is None and strict:
            raise ValueError(f"save: a .gguf file of {kind.name} has no name for {theirs}")
        return found or theirs

    own = [
        rule
        for rule in kind.own(model.config)
        if held is None or any(template(rule.theirs[0]).fullmatch(name) for name in held)
    ]
    out: dict[Rule, None] = dict.fromkeys(own)
    for each in tensors(model, known.names(model)).values():
        for t in each:
            if any(template(rule.ours).fullmatch(t.path) for rule in own):
                continue
            ours, names = t.path, list(dict.fromkeys(map(name_of, t.names)))
            found = re.search(r"blk\.(\d+)\.", names[0])
            if found and f".{found[1]}." in ours:  # one rule for all layers
                ours = ours.replace(f".{found[1]}.", ".{i}.", 1)
                names = [name.replace(found[0], "blk.{i}.") for name in names]
            out[rename(ours, names[0]) if len(names) == 1 else concatenated(ours, *names, axis=t.axis)] = None
    return list(out)


def _table(name: str, config: Any) -> Any:
    gguf = package()
    arch = next(number for number, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    return gguf.get_tensor_name_map(arch, _depth(config))


def _depth(config: Any) -> int:
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
    return max(n for n in (getattr(config, name, None) for name in names) if n)


def package() -> Any:
    """The `gguf` package, or an error that names the extra."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            'easyfn needs the package gguf for .gguf files (its tables of names): pip install "easyfn[gguf]"'
        ) from error
    return gguf


def change_of(name: str, config: Any) -> Change | None:
    """How a tensor of a file differs from ours, if it does."""
    changes = architecture_of(config).changes
    return next((c for c in changes if re.search(c.pattern, name) and c.counts(config)), None)


def open_gguf(path: Path, config: Any) -> Source:
    """The tensors of a file in the shapes and with the values that ours have; packed ones as the bytes of their rows."""
    package()
    file = read_gguf(path)
    held = {}
    for name, info in file.tensors.items():
        change = change_of(name, config)
        held[name] = info if change is None else info._replace(shape=tuple(change.shape(info.shape)))
    for name in ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"):
        held.pop(name, None)  # is in the config
    held = {name: info for name, info in held.items() if not _beyond(name, config)}

    def fill(name: str, out: np.ndarray, start: int) -> None:
        change = change_of(name, config)
        if change is None:
            read_into(held[name], out, start=start)
            return
        target = out.reshape(-1).view(np.uint8)
        if change.moves:
            info, rows = file.tensors[name], file.tensors[name].shape[0]
            table = memory(info, np.uint8, (rows, info.nbytes // rows))
            first, some = start // table.shape[1], target.reshape(-1, table.shape[1])
            order = change.read(np.arange(rows), config)[first : first + len(some)]
            np.take(table, order, axis=0, out=some, mode="clip")
            return
        whole = np.ascontiguousarray(change.read(value_of(file, name), config)).reshape(-1).view(np.uint8)
        target[:] = whole[start : start + out.nbytes]

    return Source(str(path), held, fill, lambda name: None, [], partial(rules, held=frozenset(held)))


def _beyond(name: str, config: Any) -> bool:
    """Whether a tensor is of a layer after the last, which predict further tokens."""
    found = re.match(r"blk\.(\d+)\.", name)
    return found is not None and int(found[1]) >= _depth(config)
