"""`save_gguf`: a model as one `.gguf` file, as llama.cpp and transformers read it."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...config import config as configs
from ...core.atomic import beside, sync
from ...core.frozen import thaw
from ...core.tree import is_abstract
from ...core.weight import dense
from ...names.rules import Tensors
from ...quant.kquant import to_blocks
from ...quant.kround import to_q4_k
from ...registry.family import build, family_of
from ...tasks.task import task
from ..described import as_described
from ..dtypes import float_dtype
from ..formats import disk_format
from ..safetensors import Info
from ..weights import Layer, each_weight, to_host
from ..words import gguf_words
from .models import architecture_of, change_of, config_data, config_metadata, package, rules
from .read import FLOATS, GGUF, KINDS, Blocks, Written, write_gguf

# `general.file_type`, by the kind that most of the entries have.
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15,
    "Q5_K": 17, "Q6_K": 18, "BF16": 32, "MXFP4": 38,
}  # fmt: skip
ROUNDED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K")  # the gguf package rounds to all but the last
# Fields of configs that matter in training only, or say what others say.
_IDLE = frozenset(
    """extra generation num_labels router_aux_loss_coef router_jitter_noise initializer_range initializer_factor
    chunk_size residual_in_fp32 time_step_min time_step_max time_step_floor max_window_layers layer_types
    scale_decoder_outputs pad_token_id bos_token_id eos_token_id decoder_start_token_id""".split()  # noqa: SIM905
)


def save_gguf(
    model: Any,
    path: Any,
    *,
    dtype: Any = None,
    kind: str | None = None,
    tokenizer: Any = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a language model as one `.gguf` file (extra `gguf`).

    **Arguments**

    - `path`: of the file.
    - `dtype`: of the plain matrices: float32, float16 or bfloat16; `None` keeps each array's own. Vectors are written in
      float32, as llama.cpp wants them.
    - `kind`: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q4_K: what matrices are rounded to, by llama.cpp's own rule, plain ones and those
      in formats that such a file has not (nf4, int4, ...). Below 8 bits embedding and head are Q8_0; rows that 256 do not divide
      are Q5_0 instead of Q4_K, and rows that no block divides stay as they are.
    - `tokenizer`: which llama.cpp needs: a hub id, a folder, a `.gguf` file or a tokenizer, as [`easyfn.save`][] takes it.
    - `metadata`: more keys, or other values: `general.name`, ... A value of `None` leaves a key out.

    **Returns** the path. The file is written beside and renamed.

    Weights that were read from a `.gguf` file, and those of the method `a8q` (Q8_0), are written byte for byte: nothing
    is rounded. Raises `ValueError` for weights in other formats without `kind`, for models of families that such files do not
    know, and for a config that they cannot say (a sliding window of Mistral, ...).

    ```python
    import os, tempfile, easyfn as ef
    model = ef.quantize(ef.testing.tiny(), "a8q")
    with tempfile.TemporaryDirectory() as folder:
        path = ef.save_gguf(model, os.path.join(folder, "tiny.gguf"), metadata={"general.name": "tiny"})
        again = ef.load(path)
    assert ef.format_of(again.model.layers[0].mlp.up_proj.weight) == "q8_0/32"
    ```
    """
    if is_abstract(model):
        raise ValueError("save: the model is abstract: it has shapes and no numbers. Fill it with ef.init or ef.load")
    if task(model) not in ("causal-lm", "seq2seq-lm"):
        raise ValueError(f"save: a .gguf file holds a language model, and this is one for {task(model)}")
    floats = None if dtype is None else float_dtype(dtype)
    if floats is not None and floats not in FLOATS.values():
        raise ValueError(f"save: a .gguf file has no {floats}; write {', '.join(str(d) for d in FLOATS.values())}")
    if kind is not None and kind not in ROUNDED:
        raise ValueError(f"save: kind is one of {', '.join(ROUNDED)}, not {kind!r}")
    package()
    as_described(model, family_of(model))
    said, extra = config_metadata(model.config)
    plan = {name: Written("F32", value.shape, value.nbytes) for name, value in extra.items()}
    # Twice: once for what the header says, once for the bytes, so that one array at a time is in the host's memory.
    plan |= {name: written for name, written, _ in _tensors(model, floats, kind)}
    _check(model.config, said, extra, plan)
    counts: Counter[str] = Counter()
    for each, shape, _ in plan.values():
        counts[each] += int(np.prod(shape)) if len(shape) > 1 else 0
    target = Path(path).expanduser()
    keys = {
        **said,
        "general.name": target.stem,
        "general.file_type": FILE_TYPES[counts.most_common(1)[0][0]],
        "general.quantization_version": 2,
        **({} if tokenizer is None else gguf_words(tokenizer, model.config.vocab_size)),
        **(metadata or {}),
    }
    keys = {key: value for key, value in keys.items() if value is not None and not key.startswith("split.")}

    def arrays() -> Iterator[np.ndarray]:
        yield from extra.values()
        for _, _, array in _tensors(model, floats, kind):
            yield array

    with beside(target, "save") as folder:
        write_gguf(folder / target.name, keys, plan, arrays())
        os.replace(folder / target.name, target)
        sync(target.parent)
    return target


def _tensors(model: Any, floats: Any, rounded: str | None) -> Iterator[tuple[str, Written, np.ndarray]]:
    """Every tensor of the file to be, by its name: what the header says of it, and its bytes."""
    disk, config = disk_format("gguf"), model.config
    names = rules(build(config, task(model)), strict=True)
    for source, weight, packed in each_weight(model, Layer, names, disk):
        host = jax.tree.map(to_host, weight, is_leaf=lambda x: isinstance(x, Layer))
        pieces = _packed(source, host, rounded) if packed is not None else _split(source, host)
        for name, piece in pieces.items():
            change = change_of(name, config)
            if isinstance(piece, Blocks) and change is not None and not change.moves:
                raise ValueError(
                    f"save: {name} is another matrix than {source.path}, whose blocks would be rounded again: make it "
                    "dense first, ef.dequantize(model)"
                )
            kind, value = piece if isinstance(piece, Blocks) else ("", piece)
            value = np.ascontiguousarray(value if change is None else change.write(value, config))
            if kind:
                _, block, nbytes = KINDS[kind]
                shape = (*value.shape[:-1], value.shape[-1] // nbytes * block)
            elif kind := _rounded_kind(name, value, rounded):
                value, shape = _round(value, kind), value.shape
            else:
                value, shape = _plain(name, value, floats), value.shape
                kind = next(k for k, d in FLOATS.items() if d == value.dtype)
            yield name, Written(kind, tuple(shape), value.nbytes), value


def _split(source: Tensors, host: Any) -> dict[str, Any]:
    return dict(zip(source.names, source.split(host), strict=True))


def _packed(source: Tensors, host: Any, rounded: str | None) -> dict[str, Any]:
    """The tensors of a weight in a format of its own: blocks as they are; what they do not hold, dense if it may be rounded."""
    try:
        return disk_format("gguf").writer(source, host)  # type: ignore[misc]
    except ValueError:
        if rounded is None:
            raise
        return _split(source, np.asarray(dense(host)))


def _plain(name: str, value: np.ndarray, floats: Any) -> np.ndarray:
    """In the dtype of the file."""
    wanted = np.dtype(np.float32) if _stays(name, value) else np.dtype(floats or value.dtype)
    if wanted not in FLOATS.values() or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"save: {name} holds {value.dtype}, which a .gguf file has not")
    return value.astype(wanted)


def _stays(name: str, value: np.ndarray) -> bool:
    """Vectors, positions, routers and what belongs to states: float32, as llama.cpp has it."""
    small = value.ndim < 2 or any(
        part in name for part in ("position_embd", "token_types", "ffn_gate_inp.", "ssm_conv1d", "shortconv.conv.")
    )
    return small or name.endswith(("ssm_a", "ssm_d", "ssm_norm.weight", ".bias"))


def _check(config: Any, said: Mapping[str, Any], extra: Mapping[str, Any], plan: Mapping[str, Written]) -> None:
    """Raises unless the file will say the config that the model has."""
    infos = {n: Info(np.dtype(np.float32), w.shape, Path(), 0, w.nbytes, w.kind) for n, w in plan.items()}
    kind = architecture_of(config)
    config = kind.said(config)
    data, _ = config_data(GGUF(said, infos, extra), "save", kind.model_type)
    known = family_of(data["model_type"])
    again = kind.said(configs.read(known.config, data, known.ignore))
    lost = []
    for field in dataclasses.fields(config):
        mine = getattr(config, field.name)
        theirs = getattr(again, field.name, field.default)
        idle = (field.name in _IDLE and field.name not in data) or "drop" in field.name or mine is None
        off = field.name == "sliding_window" and getattr(config, "use_sliding_window", None) is False
        if not idle and not off and not _same(thaw(mine), thaw(theirs)):
            lost.append(f"{field.name}={thaw(mine)!r}")
    if lost:
        raise ValueError(
            f"save: a .gguf file of {kind.name} has no place for {', '.join(lost)} of "
            f"{type(config).__name__}: llama.cpp would compute something else"
        )


_UNSAID = {"partial_rotary_factor": 1.0}  # what a key says that is left out


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return all(_same(a.get(k, _UNSAID.get(k)), b.get(k, _UNSAID.get(k))) for k in {*a, *b})
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return bool(np.float32(a) == np.float32(b))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _rounded_kind(name: str, value: np.ndarray, wanted: str | None) -> str:
    """The kind of blocks that a plain matrix is rounded to, or none."""
    if wanted is None or _stays(name, value):
        return ""
    if name in ("token_embd.weight", "output.weight"):
        wanted = "Q8_0"
    if wanted == "Q4_K" and value.shape[-1] % KINDS[wanted][1]:
        wanted = "Q5_0"
    return "" if value.shape[-1] % KINDS[wanted][1] else wanted


def _round(value: np.ndarray, kind: str) -> np.ndarray:
    from gguf import GGMLQuantizationType, quants

    if kind == "Q4_K":
        return to_blocks(to_q4_k(value))
    return quants.quantize(value.astype(np.float32), GGMLQuantizationType[kind])
