"""`save`: a model as a folder that transformers reads, written beside and put in place at once."""

from __future__ import annotations

import json
import logging
import math
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..config import config as configs
from ..core.atomic import beside
from ..core.dtype import cast
from ..core.frozen import thaw
from ..core.habits import no_path, taught
from ..core.multihost import first, spans
from ..core.tree import is_abstract
from ..core.weight import format_of
from ..names.rules import tensors
from ..registry.family import Family, build, family_of
from ..tasks.task import task
from .another import another, going
from .checkpoint import CONFIG, GENERATION, INDEX, SINGLE
from .described import as_described
from .dtypes import float_dtype
from .formats import layout_of, writer_for
from .place import MODEL, put_in_place, write_document
from .plain import save_params
from .remote import is_url, plain, save_remote
from .safetensors import write
from .sentence import READING, sentence_files
from .torch.files import program_files
from .weights import Layer, each_weight, entries
from .words import words_of
from .writing import Entry, Shapes, index_of, nbytes, write_all


@taught
def save(
    model: Any,
    directory: Any,
    *,
    dtype: Any = None,
    max_shard_size: int | str = "5GB",
    step: int | None = None,
    tokenizer: Any = None,
    overwrite: bool | None = None,
) -> Path | str:
    """Writes a model in Hugging Face's layout: what `transformers` reads, key for key and byte for byte.

    **Arguments**

    - `directory`: made if need be. Files in it that a model does not consist of (a tokenizer, a README) are kept. Or a
      URL, `"gs://bucket/model"`, any that fsspec knows (extra `remote`). What a model consists of is
      replaced, as transformers does.
    - `dtype`: of the floating point tensors, and of those that quantized weights stand for; `None` keeps each array's own.
    - `max_shard_size`: bytes per file, as a number or `"5GB"`, `"500MB"`; a larger model becomes several files.
    - `step`: write into `directory/checkpoint-{step}` instead, the name that transformers' Trainer uses.

    - `tokenizer`: whose files are written beside: `"org/name"`, the folder, URL or `.gguf` file that the model came from
      (tokenizer, chat template, preprocessor), a `tokenizers.Tokenizer`, or a tokenizer or processor of transformers. A
      model is its weights and its config, so it does not know them by itself.
    - `overwrite`: of a folder that holds another checkpoint (another `model_type` or width, or an adapter). `None` replaces its
      weights and config, as transformers does, and logs that its other files stay: a tokenizer, or an adapter, which
      transformers puts on the new model. `True` takes them away, `False` refuses.

    **Returns** the folder written (a URL as it was given), or the file: to a `directory` that ends in `.gguf` the model is
    written as one file for llama.cpp (see [`easyfn.save_gguf`][]); to one that ends in `.safetensors`, any pytree is, each
    array under its path (see [`easyfn.load_params`][]).

    The files are written and synced in a hidden folder beside, which then takes the place of the old one: a crash
    leaves the old model or the new one. (Where the system cannot exchange two folders at once, and if `directory` is
    a mount point or the working directory, the files are moved one by one, the config last: a crash among these moves
    can leave files of both.) Stacked and sharded models are written tensor by tensor, without a second copy of the whole;
    tied weights once; quantized weights in the disk format that holds them all: `easyfn.io.formats.layout_of(model)` tells
    which, and so does a record of level INFO of the logger `easyfn`.

    A model that lies on several processes is saved by all of them together, into a folder that they share: each writes
    some of the files, and process 0 puts them in place when all are done.

    **Raises** `FileExistsError` as `overwrite` says; `ValueError` for an abstract model, for one whose layers are no
    longer those of its config (see [`easyfn.prune_layers`][]), and for one with LoRA adapters: fold them in with
    `ef.merge_lora`, or write them with `ef.save_adapter`.

    ```python
    import tempfile, jax, easyfn as ef
    config = ef.testing.tiny().config
    with tempfile.TemporaryDirectory() as folder:
        path = ef.save(ef.init(config, key=jax.random.key(0)), folder, step=100)
        assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors"]
    ```
    """
    if isinstance(model, str | Path):
        raise TypeError("save takes the model first: ef.save(model, directory)")
    limit = _bytes(max_shard_size)
    if Path(directory).suffix == ".gguf" and not Path(directory).is_dir():
        from .gguf.save import save_gguf

        if step is not None:
            raise ValueError("save: a .gguf file has no step; write the step into its name")
        return save_gguf(model, directory, dtype=dtype, tokenizer=tokenizer)
    if Path(directory).suffix == ".safetensors" and not Path(directory).is_dir():
        if step is not None or dtype is not None or tokenizer is not None:
            raise ValueError(
                "save: a single file takes no step=, dtype= or tokenizer=; ef.cast the model, and name the step in it"
            )
        return save_params(model, directory)
    if step is not None and operator.index(step) < 0:
        raise ValueError(f"save: step={step} is negative")
    if is_abstract(model):
        raise ValueError("save: the model is abstract: it has shapes and no numbers. Fill it with ef.init or ef.load")
    known = family_of(model)
    if dtype is not None and writer_for(model) is not None:  # what quantized weights stand for
        model = cast(model, float_dtype(dtype), lambda path, node: format_of(node) is not None)
    found = entries(model, dtype)
    as_described(model, known)
    shards = _shards(found, limit)
    words, documents = {} if tokenizer is None else words_of(tokenizer), _documents(model, known, found, shards)
    if READING in words and READING in documents:  # what else it says stays
        documents[READING] = {**json.loads(words[READING]), **documents[READING]}
    documents = {**words, **documents}
    alone = not spans(model)
    directory = plain(directory)
    if is_url(directory):
        url = directory.rstrip("/") if step is None else f"{directory.rstrip('/')}/checkpoint-{step}"
        save_remote(url, shards, documents, alone, overwrite)
        _tell(model, url)
        return url
    target = Path(directory).expanduser() if step is None else Path(directory).expanduser() / f"checkpoint-{step}"
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"save: {target} is a file; give a folder")
    there, goes = another(target, documents[CONFIG]), MODEL

    def look() -> None:
        nonlocal goes
        goes = going(there, target, overwrite)

    first(look, "save", alone)
    with beside(target, "save", alone) as folder:

        def write_one(name: str, shapes: Shapes, arrays: Iterator[np.ndarray]) -> None:
            write(folder / name, shapes, arrays, {"format": "pt"})

        def finish() -> None:
            if lost := [name for name in shards if not (folder / name).exists()]:
                raise OSError(
                    f"save: {lost[0]}, which another process wrote, is not in {target.parent}: give a folder that all "
                    "processes share, or the URL of a bucket"
                )
            for name, data in documents.items():
                (folder / name).parent.mkdir(exist_ok=True)
                write_document(folder / name, data)
            put_in_place(folder, target, goes)

        write_all(shards, write_one, finish, alone)
    _tell(model, target)
    return target


def _documents(
    model: Any, known: Family, found: Sequence[Entry], shards: Mapping[str, Sequence[Entry]]
) -> dict[str, Any]:
    """The JSON files of a model, the config last."""
    documents: dict[str, Any] = {}
    if len(shards) > 1:
        documents[INDEX] = index_of(shards)
    if generation := thaw(getattr(model.config, "generation", {})):
        documents[GENERATION] = generation
    return {**documents, **sentence_files(model), **program_files(model), CONFIG: config_json(model, known, found)}


def _tell(model: Any, where: Any) -> None:
    if (layout := layout_of(model)) is not None:
        logging.getLogger("easyfn").info("save: %s holds quantized weights in the layout of %s", where, layout)


def config_json(model: Any, known: Family | None = None, found: Sequence[Entry] | None = None) -> dict[str, Any]:
    """The `config.json` of a model: its config, the transformers class that it is, the dtype of its tensors."""
    known = known or family_of(model)
    written = {"model_type": known.model_type, **configs.write(model.config)}
    data = {k: v for k, v in written.items() if not k.startswith("_") and k != "torch_dtype"}
    if (architecture := architecture_of(model, known)) is not None:
        data["architectures"] = [architecture]
    counts: Counter[str] = Counter()
    for entry in entries(model) if found is None else found:
        if jnp.issubdtype(entry.dtype, jnp.floating) and entry.dtype.itemsize > 1:
            counts[str(entry.dtype)] += math.prod(entry.shape)
    if counts:
        data["dtype"] = counts.most_common(1)[0][0]
    labels = data.get("id2label")
    if data.get("num_labels") == (2 if labels is None else len(labels)):
        data.pop("num_labels")  # what transformers derives by itself
    elif "num_labels" in data:
        data.pop("id2label", None), data.pop("label2id", None)
    data.pop("quantization_config", None)
    if (disk := writer_for(model)) is not None and disk.settings is not None:
        if not hasattr(model.config, "extra"):
            raise ValueError(
                f"save: {type(model.config).__name__} has no field for what quantized weights need to be read back; "
                "give it `extra: ef.Frozen = ef.Frozen()`"
            )
        data["quantization_config"] = {**disk.settings(model), "quant_method": disk.method}
    return data


def architecture_of(model: Any, known: Family) -> str | None:
    """The name of the transformers class of a model: of its task, and the one it was loaded as if that fits."""
    before = [
        a for a in (getattr(model.config, "extra", None) or {}).get("architectures") or () if a in known.architectures
    ]
    names = {name for source, _, _ in each_weight(model, Layer) for name in source.names}
    built: dict[str, bool] = {}
    for architecture in (*before, *known.architectures):
        kind = known.architectures[architecture]
        if kind not in built:
            other = build(model.config, kind)
            found = tensors(other, known.names(other)).values()
            built[kind] = type(other) is type(model) and {n for each in found for t in each for n in t.names} == names
        if built[kind]:
            return architecture
    kind = task(model)
    return next((name for name, t in known.architectures.items() if t == kind), None)


def to_state_dict(model: Any) -> dict[str, Any]:
    """The tensors of a model under Hugging Face's names, as `save` writes them: JAX arrays (quantized: their parts).

    The inverse of [`easyfn.from_state_dict`][]. Works under `jit` and on abstract models. Tied weights are there once.

    ```python
    import easyfn as ef
    config = ef.testing.tiny().config
    tensors = ef.to_state_dict(ef.abstract(config))
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (16, 32)
    ```
    """

    no_path(model)

    def everything(model: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for source, weight, disk in each_weight(model, lambda leaf, index: leaf[index]):
            if disk is None:
                found.update(zip(source.names, source.split(weight), strict=True))
            else:
                found.update(disk.writer(source, weight))  # type: ignore[misc]
        return found

    return jax.eval_shape(everything, model) if is_abstract(model) else everything(model)


def _bytes(size: int | str) -> int:
    if isinstance(size, int | np.integer) and not isinstance(size, bool) and size > 0:
        return int(size)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", str(size), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"max_shard_size is a number of bytes or like '5GB' or '500MiB', not {size!r}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))


def _shards(found: Sequence[Entry], limit: int) -> dict[str, list[Entry]]:
    """Files of at most `limit` bytes, in the order of the model; a tensor is never cut."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in found:
        if groups[-1] and size + nbytes(entry) > limit:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += nbytes(entry)
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{n + 1:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups)}
