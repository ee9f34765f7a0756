"""From the tensors of a checkpoint, wherever they are, to a model: what `load` and `from_state_dict` share."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core.frozen import Frozen
from ..names.part import Index
from ..registry.family import Family, abstract_config, check_config, family_of, task_of
from ..registry.init import fill
from .arrays import put
from .checkpoint import DAMAGE, LoadError, Source
from .configs import read_config
from .dtypes import dtype_of, float_dtype, to_numpy
from .fill import assemble, match
from .formats import disk_format
from .safetensors import Info
from .sizes import believe
from .tied import table_of


def from_state_dict(
    config: Any, tensors: Mapping[str, Any], *, task: str | None = None, dtype: Any = None, **more: Any
) -> Any:
    """A model from tensors under Hugging Face's names: numpy, JAX or torch, the names of `save_pretrained`'s files.

    `config` is a config or the content of a `config.json`. JAX arrays are taken as they are, others are copied.
    `more` are arguments of [`easyfn.load`][] (`key`, `mesh`, `rules`, `quantize`, `stack`); errors are the same.

    ```python
    import jax, easyfn as ef
    config = ef.testing.tiny().config
    model = ef.init(config, key=jax.random.key(0))
    same = ef.from_state_dict(config, ef.to_state_dict(model))
    ```
    """
    if isinstance(config, Mapping):
        config = read_config(config)

    check_config(config)

    def read_into(name: str, out: np.ndarray, start: int) -> None:
        raw = np.ascontiguousarray(to_numpy(tensors[name])).reshape(-1).view(np.uint8)
        out.reshape(-1).view(np.uint8)[:] = raw[start : start + out.nbytes]

    def value(name: str) -> Any:
        return tensors[name] if isinstance(tensors[name], jax.Array) else None

    def read_part(name: str, out: np.ndarray, index: Index) -> None:
        np.copyto(out, to_numpy(tensors[name])[index])

    infos = {n: Info(dtype_of(t.dtype), tuple(t.shape), Path(), 0, 0) for n, t in tensors.items()}
    source = Source("from_state_dict", infos, read_into, value, [], read_part=read_part)
    return build(config, source, task=task, dtype=dtype, progress=False, **more)


def build(
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
    lost = [path for path in sources.missing if not any(re.search(p, path) for p in known.optional)]
    if lost and key is None:
        tied = bool(table_of(config, known, task, sources.of, model).keys() & set(lost))
        sources.problems.append(_say_missing(lost, config, known, task, tied))
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
    if sources.missing:
        key = jax.random.key(0) if key is None else key  # of arrays that draw no numbers
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
