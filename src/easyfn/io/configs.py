"""`read_config`: the config of a checkpoint, and the model without numbers that it describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import config as configs
from ..core.frozen import Frozen
from ..core.schema import read_json
from ..registry.family import abstract_config, family_of
from .checkpoint import CONFIG, GENERATION, LoadError
from .dtypes import float_dtype
from .hub import is_gguf, locate
from .remote import is_url, opened, plain
from .sizes import believe
from .torch import PROGRAM


def read_config(
    path: Any,
    *,
    config_overrides: Mapping[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Any = None,
    local_files_only: bool = False,
    generation: Mapping[str, Any] | None = None,
    gguf_file: str | None = None,
) -> Any:
    """The config of a checkpoint: of a folder, a hub repository, a `config.json`, its content, or transformers' object;
    or of a `.gguf` file (`gguf_file` names one in a folder or repository), whose own metadata it is made of.

    The class is that of the family that its `model_type` names. `config_overrides` replace keys of the file. The
    content of a `generation_config.json` beside it (or `generation`) goes into `config.generation`.

    Raises [`easyfn.UnknownConfigKey`][] for keys that could change the mathematics and are not implemented, and
    `ValueError`
    for an unknown architecture.

    ```python
    import easyfn as ef
    config = ef.read_config({"model_type": "gpt2", "vocab_size": 64, "n_positions": 32, "n_embd": 32,
                             "n_layer": 2, "n_head": 4})
    assert config.n_layer == 2
    ```
    """
    if hasattr(path, "to_dict"):  # a config of transformers
        path = path.to_dict()
    if is_url(path := plain(path)):
        with opened(path) as remote:
            return read_config(remote.folder, config_overrides=config_overrides, generation=generation)
    if isinstance(path, Mapping):
        data, where = dict(path), "config.json"
    else:
        file = Path(path)
        if not file.is_file():
            options = {
                "revision": revision,
                "token": token,
                "cache_dir": cache_dir,
                "local_files_only": local_files_only,
            }
            found = locate(path, weights=False, gguf_file=gguf_file, **options)
            file = found if is_gguf(found) else found / CONFIG
        where = str(file)
        if is_gguf(file):
            from .gguf.models import config_data
            from .gguf.read import read_gguf

            data, said = config_data(read_gguf(file), file)
            generation = said if generation is None else generation
        else:
            data = _json(file)
        if generation is None and (beside := file.with_name(GENERATION)).exists():
            generation = _json(beside)
    data = configs.common(data | dict(config_overrides or {}), where)
    if len(Path(where).parts) > 1 and (program := Path(where).with_name(PROGRAM)).is_file():
        from .torch.files import program_config

        return program_config(program, data, generation)
    if not isinstance(data.get("model_type"), str):
        raise ValueError(f"{where}: it has no model_type, so there is no telling the architecture")
    believe(data, where)
    known = family_of(data["model_type"])
    named = [known.architectures.get(a) for a in data.get("architectures") or ()]
    if named == [next(iter(known.tasks))]:  # what it is unless somebody says otherwise
        data = {k: v for k, v in data.items() if k != "architectures"}
    config = configs.read(known.config, data, known.ignore, where)
    if generation and any(f.name == "generation" for f in dataclasses.fields(config)):
        config = dataclasses.replace(config, generation=Frozen(generation))
    return config


def _adapter(folder: Path) -> str:
    """What is said where a folder holds an adapter and a checkpoint is asked for."""
    try:
        base = read_json(folder / "adapter_config.json", LoadError).get("base_model_name_or_path")
    except (OSError, LoadError, AttributeError):
        return ""
    base = repr(base) if isinstance(base, str) and base else "base"
    return f": it is an adapter, and goes on its base: ef.load_adapter(ef.load({base}), {str(folder)!r}) (--adapter of easyfn)"


def _json(file: Path) -> dict[str, Any]:
    try:
        data = read_json(file, LoadError)
    except FileNotFoundError:
        raise LoadError(file.parent, [f"there is no {file.name}{_adapter(file.parent)}"]) from None
    if not isinstance(data, dict):
        raise LoadError(file, ["it is no JSON object"])
    return data


def abstract(config_or_path: Any, *, dtype: Any = None, task: str | None = None, gguf_file: str | None = None) -> Any:
    """A model without numbers: every array is a `jax.ShapeDtypeStruct`. Takes a config, or what `read_config` takes.

    Plan, shard, quantize, show and count a model of any size before a byte of it is read.

    ```python
    import easyfn as ef
    config = ef.models.LlamaConfig(vocab_size=128256, hidden_size=16384, intermediate_size=53248, num_hidden_layers=126,
                                   num_attention_heads=128, num_key_value_heads=8)
    model = ef.abstract(config, dtype="bfloat16")
    ```
    """
    config = (
        config_or_path if dataclasses.is_dataclass(config_or_path) else read_config(config_or_path, gguf_file=gguf_file)
    )
    return abstract_config(config, task, None if dtype is None else float_dtype(dtype))
