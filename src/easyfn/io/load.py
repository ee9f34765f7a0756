"""`load`: from the files of a checkpoint to a model; and from tensors in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core.frozen import Frozen
from ..core.habits import taught
from ..core.schema import mapping, maybe, problems, word
from ..names.part import Index
from ..registry.family import Family, abstract_config, family_of, task_of
from ..registry.init import fill
from .arrays import put
from .checkpoint import DAMAGE, LOCAL, LoadError, Source, one_version, open_checkpoint
from .configs import read_config
from .dtypes import dtype_of, float_dtype, to_numpy
from .fill import assemble, match
from .formats import disk_format
from .gguf.models import open_gguf
from .hub import is_gguf, locate
from .remote import is_url, opened, plain
from .safetensors import Info
from .sentence import sentence_settings
from .sizes import believe
from .tied import table_of


@taught
def load(
    name_or_path: Any,
    *,
    dtype: Any = None,
    task: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    rules: Any = None,
    quantize: Any = None,
    stack: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Any = None,
    local_files_only: bool = False,
    config_overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
    key: jax.Array | None = None,
    gguf_file: str | None = None,
    mmap: bool = False,
) -> Any:
    """A model from a folder in Hugging Face's layout, from a hub repository, or from a `.gguf` file.

    **Arguments**

    - `name_or_path`: a folder with `config.json` and safetensors files, or `"user/name"`, or a file `"model.gguf"`; or
      the URL of such a folder, `"gs://bucket/model"`, `"s3://..."`, any that fsspec knows (extra `remote`), which is read
      by ranges of bytes.
    - `gguf_file`: the name of a `.gguf` file in the folder or repository (extra `gguf`). Its quantized tensors stay packed.
    - `dtype`: of the floating point arrays; `None` keeps each tensor's own.
    - `task`: `causal-lm`, `base`, ...; `None` takes what the checkpoint was saved as (a folder of sentence-transformers:
      `sentence-embedding`). Heads that the task does not
      have are dropped.
    - `key`: a PRNG key. A head that the checkpoint lacks is drawn at random with it; without one it is an error.
    - `mesh`, `rules`: load every array sharded, as [`easyfn.shard`][] would. The mesh may span many processes: each reads
      the bytes of its own shards and no others, straight to its devices. (Weights that are quantized, in the file or by
      `quantize`, and those of `.gguf` files are read whole by each.)
    - `quantize`: a `QuantConfig`: each weight is quantized as soon as it is read, so the dense model is never in
      memory.
    - `stack`: runs of alike layers are read straight into stacked arrays (see [`easyfn.stack`][]).
    - `revision`, `token`, `cache_dir`, `local_files_only`: huggingface_hub's. What is in its cache loads offline.
    - `config_overrides`: keys of `config.json` to replace.
    - `progress`: a bar, if standard error is a terminal.
    - `mmap`: on CPU, arrays are the pages of the file itself as far as they lie in it as XLA needs them, which they do in
      files that [`easyfn.save`][] wrote: nothing is read before it is used. Whoever writes into such a file in place (a
      save of easyfn does not) changes the model, or crashes the process.

    **Raises** [`easyfn.LoadError`][] with everything that is wrong at once: missing, unexpected and misshapen tensors,
    unreadable files. [`easyfn.UnknownConfigKey`][] for a config key that is not implemented.

    ```python
    import tempfile, jax, easyfn as ef
    config = ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                   num_attention_heads=4, num_key_value_heads=2)
    with tempfile.TemporaryDirectory() as folder:
        ef.save(ef.init(config, key=jax.random.key(0)), folder)
        model = ef.load(folder, dtype="bfloat16")
    assert ef.dtype_of(model) == "bfloat16"
    ```
    """
    options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    name_or_path = plain(name_or_path)
    with contextlib.ExitStack() as until_read:
        if is_url(name_or_path):
            remote = until_read.enter_context(opened(name_or_path))
            folder, files, where = remote.folder, remote.files, remote.url
        else:
            folder = locate(name_or_path, progress=progress, gguf_file=gguf_file, **options)
            files, where = LOCAL, str(folder)

        def read() -> tuple[Any, Source]:
            config = read_config(folder, config_overrides=config_overrides)
            if (sentence := sentence_settings(folder)) is not None:
                config = dataclasses.replace(config, extra=Frozen({**config.extra, "_sentence_transformers": sentence}))
            if is_gguf(folder):
                return config, open_gguf(folder, config)
            return config, open_checkpoint(folder, files, where=where, mmap=mmap)

        config, source = one_version(folder, read)
        sentence = (getattr(config, "extra", None) or {}).get("_sentence_transformers")
        if task is None and sentence and not sentence["other"] and "sentence-embedding" in family_of(config).tasks:
            task = "sentence-embedding"  # what such a folder was saved as
        return _build(
            config,
            source,
            dtype=dtype,
            task=task,
            mesh=mesh,
            rules=rules,
            quantize=quantize,
            stack=stack,
            key=key,
            progress=progress,
            untie=(config_overrides or {}).get("tie_word_embeddings") is False,
        )


def from_state_dict(
    config: Any, tensors: Mapping[str, Any], *, task: str | None = None, dtype: Any = None, **more: Any
) -> Any:
    """A model from tensors under Hugging Face's names: numpy, JAX or torch, the names of `save_pretrained`'s files.

    `config` is a config or the content of a `config.json`. JAX arrays are taken as they are, others are copied.
    `more` are arguments of [`easyfn.load`][] (`key`, `mesh`, `rules`, `quantize`, `stack`); errors are the same.

    ```python
    import jax, easyfn as ef
    config = ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                   num_attention_heads=4, num_key_value_heads=2)
    model = ef.init(config, key=jax.random.key(0))
    same = ef.from_state_dict(config, ef.to_state_dict(model))
    ```
    """
    if isinstance(config, Mapping):
        config = read_config(config)

    def read_into(name: str, out: np.ndarray, start: int) -> None:
        raw = np.ascontiguousarray(to_numpy(tensors[name])).reshape(-1).view(np.uint8)
        out.reshape(-1).view(np.uint8)[:] = raw[start : start + out.nbytes]

    def value(name: str) -> Any:
        return tensors[name] if isinstance(tensors[name], jax.Array) else None

    def read_part(name: str, out: np.ndarray, index: Index) -> None:
        np.copyto(out, to_numpy(tensors[name])[index])

    infos = {n: Info(dtype_of(t.dtype), tuple(t.shape), Path(), 0, 0) for n, t in tensors.items()}
    source = Source("from_state_dict", infos, read_into, value, [], read_part=read_part)
    return _build(config, source, task=task, dtype=dtype, progress=False, **more)


def _build(
    config: Any,
    source: Source,
    *,
    dtype: Any = None,
    task: str | None = None,
    mesh: Any = None,
    rules: Any = None,
    quantize: Any = None,
    stack: bool = False,
    key: jax.Array | None = None,
    progress: bool = False,
    untie: bool = False,
) -> Any:
    known = family_of(config)
    task = task_of(known, config, task)
    dtype = None if dtype is None else float_dtype(dtype)
    reader, config = _reader(config, source.where)
    if source.names is None:  # the names are Hugging Face's, which may tell what the config does not
        config = known.settle(config, source.tensors.keys())
    believe(config, source.where, len(source.tensors))
    model = abstract_config(config, task, None)
    sources = match(model, config, known, task, source, reader, untie)
    if sources.missing and key is None:
        tied = bool(table_of(config, known, task, sources.of, model).keys() & set(sources.missing))
        sources.problems.append(_say_missing(sources.missing, config, known, task, tied))
    if sources.problems:
        raise LoadError(source.where, sources.problems)
    encoders = None
    if quantize is not None:
        from ..quant import encoder

        encoders = encoder(abstract_config(config, task, dtype), quantize)
        if held := [path for path in encoders if path in sources.packed]:
            raise ValueError(
                f"load: quantize= selects {held[0]}{', ...' if len(held) > 1 else ''}, which the checkpoint holds "
                "quantized already. Load it as it is, or quantize the model that ef.dequantize makes of it"
            )
    shardings: Callable[[Any], Any] | None = None
    if mesh is not None or rules is not None:
        from ..sharding import named_shardings

        shardings = functools.partial(named_shardings, rules=rules, mesh=mesh)
    stacker: Callable[[Any], Any] | None = None
    if stack:
        from ..core.stack import stack as stacker
    total = sum(math.prod(i.shape) * np.dtype(i.dtype).itemsize for i in source.tensors.values())
    with _bar(total, progress) as bar:
        model = assemble(
            model, sources, source, dtype=dtype, encoders=encoders, stack=stacker, shardings=shardings, progress=bar
        )
    if sources.missing and key is not None:
        std = getattr(config, "initializer_range", None) or (getattr(config, "extra", None) or {}).get(
            "initializer_range", 0.02
        )
        model = fill(model, key, std=float(std), only=_abstract_paths(model))
        if shardings is not None:
            model = jax.tree.map(put, model, shardings(model))
    return model


def _abstract_paths(model: Any) -> set[str]:
    from ..core.tree import leaves

    return {path for path, leaf in leaves(model).items() if isinstance(leaf, jax.ShapeDtypeStruct)}


def _reader(config: Any, where: str) -> tuple[Any, Any]:
    """The reader of a checkpoint that is quantized already, or `None`; and the config without what told so.

    From there on the weights say it themselves: a model that was quantized here and one that was read have one structure.
    """
    extra = getattr(config, "extra", None) or {}
    settings = extra.get("quantization_config")
    if not settings:
        return None, config
    if wrong := problems({"quantization_config": settings}, {"quantization_config": mapping}):
        raise LoadError(where, wrong)
    if wrong := problems(settings, {"quant_method": maybe(word)}, "quantization_config"):
        raise LoadError(where, wrong)
    config = dataclasses.replace(config, extra=Frozen({k: v for k, v in extra.items() if k != "quantization_config"}))
    method = settings.get("quant_method") or (
        "bitsandbytes" if settings.get("load_in_4bit") or settings.get("load_in_8bit") else "?"
    )
    found = disk_format(method)
    if found.reader is None:
        raise ValueError(f"easyfn writes checkpoints quantized with {method!r}, but does not read them")

    def read(model: Any, sources: Any, held: Any) -> Any:
        try:
            return found.reader(model, settings, sources, held)  # type: ignore[misc]
        except DAMAGE as error:
            why = f"{type(error).__name__}: {error}"
            raise LoadError(where, [f"quantization_config is not what {method} writes ({why})"]) from error

    return read, config


def _say_missing(missing: list[str], config: Any, known: Family, task: str, tied: bool) -> str:
    shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
    saved = ", ".join((getattr(config, "extra", None) or {}).get("architectures") or ()) or "of no named class"
    if tied:
        return (
            f"the checkpoint ({saved}) has nothing for {shown}: its config says tie_word_embeddings=false, and its file "
            "holds no head. If the head is the table of embeddings, load with "
            "config_overrides={'tie_word_embeddings': True}; if it shall start as a copy of it, say False there"
        )
    return (
        f"the checkpoint ({saved}) has nothing for {shown}, which task={task!r} needs. To draw "
        f"{'them' if len(missing) > 1 else 'it'} at random, pass key=jax.random.key(0); otherwise choose a task of "
        f"{known.model_type}: {', '.join(known.tasks)}"
    )


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="load", unit="B", unit_scale=True, disable=None if progress else True, leave=False)
