"""`load`: from the files of a checkpoint to a model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ..core.frozen import Frozen
from ..core.habits import taught
from ..registry.family import family_of
from .build import build
from .checkpoint import LOCAL, Source, one_version, open_checkpoint
from .configs import read_config
from .hub import is_gguf, locate
from .remote import is_url, opened, plain
from .sentence import sentence_settings


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
    via: str | None = None,
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
    - `via`: `"torch"` for a type that has no family here: transformers reads the folder into its own class, and
      `torch.export` makes an [`easyfn.Program`][] of it (extra `torch`; see docs/torch.md). Saved by [`easyfn.save`][], it
      loads without torch and without `via`.
    - `mmap`: on CPU, arrays are the pages of the file itself as far as they lie in it as XLA needs them, which they do in
      files that [`easyfn.save`][] wrote: nothing is read before it is used. Whoever writes into such a file in place (a
      save of easyfn does not) changes the model, or crashes the process.

    **Raises** [`easyfn.LoadError`][] with everything that is wrong at once: missing, unexpected and misshapen tensors,
    unreadable files. [`easyfn.UnknownConfigKey`][] for a config key that is not implemented.

    ```python
    import tempfile, easyfn as ef
    with tempfile.TemporaryDirectory() as folder:
        ef.save(ef.testing.tiny(), folder)
        model = ef.load(folder, dtype="bfloat16")
    assert ef.dtype_of(model) == "bfloat16"
    ```
    """
    options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    name_or_path = plain(name_or_path)
    if via is not None:
        from .torch.via import load_via_torch

        refused = {"key": key, "gguf_file": gguf_file, "mmap": mmap, "config_overrides": config_overrides}
        given = {"dtype": dtype, "mesh": mesh, "rules": rules, "quantize": quantize, "stack": stack}
        return load_via_torch(via, name_or_path, task, refused, progress=progress, **options, **given)
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
                from .gguf.models import open_gguf

                return config, open_gguf(folder, config)
            return config, open_checkpoint(folder, files, where=where, mmap=mmap)

        config, source = one_version(folder, read)
        sentence = (getattr(config, "extra", None) or {}).get("_sentence_transformers")
        if task is None and sentence and not sentence["other"] and "sentence-embedding" in family_of(config).tasks:
            task = "sentence-embedding"  # what such a folder was saved as
        return build(
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
