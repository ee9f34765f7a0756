"""What an architecture of `.gguf` files is, and what several of them share: keys of the metadata, rotary scalings, rows that
llama.cpp keeps in another order (facts of its convert_hf_to_gguf.py)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...names.rules import Rule
from ...nn.attention.rope import llama3_frequencies
from ..safetensors import read
from .read import GGUF

Data = dict[str, Any]


class Change(NamedTuple):
    """A tensor that a file holds in another form. `pattern` is searched in its name in the file.

    `read(tensor, config)` and `write(tensor, config)` are inverse; `shape` is the shape that `read` gives to one of a
    given shape. Where only rows move (`moves`), tensors may be packed, and are read a few rows at a time.
    """

    pattern: str
    read: Callable[[np.ndarray, Any], np.ndarray]
    write: Callable[[np.ndarray, Any], np.ndarray]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple
    moves: bool = False
    counts: Callable[[Any], bool] = lambda config: True  # for which configs there is a difference


@dataclasses.dataclass(frozen=True)
class Architecture:
    """`general.architecture`, the family that it is here, and how they differ.

    - `keys`: keys of the metadata, without the architecture's name in front, by their names in `config.json`.
    - `read(keys, data, file)`: takes what it understands out of `keys`, the metadata that is left, into `data`;
      `write(config)`: the other way, as metadata (and tensors, which are arrays).
    - `ignored`: keys that say nothing more. Any other key is refused.
    - `names`: our (Hugging Face's) names, as patterns, that the `gguf` package does not know, by one that it does.
    - `own(config)`: rules for arrays of ours that a file holds as several tensors; they count where it has these tensors.
    - `fits(metadata)`: whether a file of the architecture is of this family; the first that fits reads it.
    - `writes(config)`: whether a model of the family is written as this one; the first that does writes it.
    - `said(config)`: the config with what a file says in one way only said in that way.
    """

    name: str
    model_type: str
    keys: Mapping[str, str]
    read: Callable[[Data, Data, GGUF], None] = lambda keys, data, file: None
    write: Callable[[Any], Data] = lambda config: {}
    changes: tuple[Change, ...] = ()
    ignored: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    own: Callable[[Any], tuple[Rule, ...]] = lambda config: ()
    fits: Callable[[Mapping[str, Any]], bool] = lambda metadata: True
    writes: Callable[[Any], bool] = lambda config: True
    said: Callable[[Any], Any] = lambda config: config


DECODER = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
LAYER_NORM = {key: ours for key, ours in DECODER.items() if not key.endswith("rms_epsilon")}  # each adds its own name
BASE, LOCAL = "rope.freq_base", "rope.freq_base_swa"


def has(file: GGUF, name: str) -> bool:
    return name in file.tensors


def value_of(file: GGUF, name: str) -> np.ndarray:
    info = file.tensors[name]
    return file.values[name] if name in file.values else read(info)


def read_head_dim(keys: Data, data: Data) -> int:
    """`head_dim`, from what says it; keys that say something else stay, and are refused."""
    said = [keys.get(k) for k in ("attention.key_length", "attention.value_length", "rope.dimension_count")]
    found = said[0] or said[2] or data["hidden_size"] // data["num_attention_heads"]
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if keys.get(key) == found:
            del keys[key]
    return int(found)


def read_decoder(keys: Data, data: Data, file: GGUF) -> None:
    data["head_dim"] = read_head_dim(keys, data)
    data["rope_parameters"] = read_rope(keys, data, file)
    if has(file, "blk.0.attn_q.bias"):
        data["attention_bias"] = True


def write_decoder(config: Any) -> Data:
    dim = dim_of(config)
    lengths = {"attention.key_length": dim, "attention.value_length": dim, "rope.dimension_count": dim}
    return {**lengths, **write_rope(config.rope_parameters, dim)}


def dim_of(config: Any) -> int:
    return config.head_dim if getattr(config, "head_dim", None) else config.hidden_size // config.num_attention_heads


def read_rope(keys: Data, data: Data, file: GGUF) -> Data:
    rope: Data = {"rope_type": "default", "rope_theta": float(keys.pop(BASE, 10000.0))}
    keys.pop("rope.scaling.finetuned", None)
    kind = keys.pop("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": keys.pop("rope.scaling.factor", 1.0)}
    elif kind != "none":
        keys["rope.scaling.type"] = kind
    if kind == "yarn":
        names = {
            "rope.scaling.original_context_length": "original_max_position_embeddings",
            "rope.scaling.yarn_beta_fast": "beta_fast",
            "rope.scaling.yarn_beta_slow": "beta_slow",
        }
        rope |= {ours: keys.pop(theirs) for theirs, ours in names.items() if theirs in keys}
    if has(file, "rope_freqs.weight"):
        rope |= _read_factors(value_of(file, "rope_freqs.weight"), rope["rope_theta"], data)
    return rope


def _llama3_factors(rope: Mapping[str, Any], dim: int) -> np.ndarray:
    """By what Llama 3.1 divides its frequencies (convert_hf_to_gguf.py writes it as a tensor)."""
    inv = rope["rope_theta"] ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    return inv / llama3_frequencies(inv, rope)


def _read_factors(factors: np.ndarray, base: float, data: Data) -> Data:
    """Factors of the frequencies as Llama 3's parameters, if they are such, or else as they are."""
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": float(factors.max())}
    for trained in (8192, data["max_position_embeddings"] // max(int(factors.max()), 1)):
        found = {"rope_type": "llama3", "rope_theta": base, "original_max_position_embeddings": trained, **llama3}
        if np.allclose(_llama3_factors(found, 2 * factors.size), factors, rtol=1e-5):
            return found
    each = [float(f) for f in factors]
    return {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, "short_factor": each, "long_factor": each}


def write_rope(rope: Mapping[str, Any], dim: int) -> Data:
    kind = rope.get("rope_type", "default")
    out: Data = {BASE: float(rope["rope_theta"])}
    if kind in ("linear", "yarn"):
        out |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        out["rope.scaling.original_context_length"] = rope.get("original_max_position_embeddings")
        out |= {f"rope.scaling.yarn_{k}": float(rope[k]) for k in ("beta_fast", "beta_slow") if rope.get(k) is not None}
    if kind == "llama3":
        out["rope_freqs.weight"] = _llama3_factors(rope, dim).astype(np.float32)
    return {k: v for k, v in out.items() if v is not None}


def read_partial(keys: Data, data: Data, file: GGUF, width: int | None = None) -> None:
    """Heads, `width` numbers wide, of which a part is rotated."""
    data["rope_parameters"] = rope = read_rope(keys, data, file)
    width = width or data["hidden_size"] // data["num_attention_heads"]
    rope["partial_rotary_factor"] = keys.pop("rope.dimension_count", width) / width


def write_partial(config: Any) -> Data:
    dim, rope = dim_of(config), config.rope_parameters
    return {**write_rope(rope, dim), "rope.dimension_count": int(dim * rope.get("partial_rotary_factor", 1.0))}


def _half_to_pairs(heads: Callable[[Any], int]) -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """llama.cpp rotates neighbouring rows where Hugging Face rotates halves: `(undo, do)` for queries or keys."""

    def undo(tensor: np.ndarray, config: Any) -> np.ndarray:
        count = heads(config)
        cut = tensor.reshape(count, tensor.shape[0] // count // 2, 2, *tensor.shape[1:])
        return cut.swapaxes(1, 2).reshape(tensor.shape)

    def do(tensor: np.ndarray, config: Any) -> np.ndarray:
        count = heads(config)
        cut = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
        return cut.swapaxes(1, 2).reshape(tensor.shape)

    return undo, do


PAIRS = (
    Change(r"\.attn_q\.(weight|bias)$", *_half_to_pairs(lambda c: c.num_attention_heads), moves=True),
    Change(
        r"\.attn_k\.(weight|bias)$",
        *_half_to_pairs(lambda c: c.num_key_value_heads or c.num_attention_heads),
        moves=True,
    ),
)


def float32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)


NORM_PLUS_ONE = Change(
    r"norm\.weight$", lambda x, _: (float32(x) - 1).astype(x.dtype), lambda x, _: float32(x) + np.float32(1)
)


def flat(pattern: str, back: Callable[[np.ndarray, Any], np.ndarray]) -> Change:
    """A vector of ours that a file holds in another shape, which `back` makes."""
    return Change(pattern, lambda x, _: x.reshape(-1), back, lambda s: (math.prod(s),))


def one_row(pattern: str) -> Change:
    """A matrix of one row, which llama.cpp has as a vector."""
    return Change(pattern, lambda x, _: x.reshape(1, -1), lambda x, _: x.reshape(-1), lambda s: (1, s[-1]))


CONV = Change(  # a filter for each channel, without the axis of length one
    r"\.(ssm_conv1d|shortconv\.conv)\.weight$",
    lambda x, _: x.reshape(x.shape[0], 1, -1),
    lambda x, _: x.reshape(x.shape[0], -1),
    lambda s: (s[0], 1, s[-1]),
)
LOG_A = Change(r"\.ssm_a$", lambda x, _: np.log(-float32(x)), lambda x, _: -np.exp(float32(x)))
MAMBA2 = (  # `A_log` and `D` of heads are columns
    Change(
        r"\.ssm_a$",
        lambda x, _: np.log(-float32(x)).reshape(-1),
        lambda x, _: -np.exp(float32(x))[:, None],
        lambda s: (math.prod(s),),
    ),
    flat(r"\.ssm_d$", lambda x, _: x[:, None]),
    CONV,
)
DT_BIAS = (r"(.*)\.dt_bias", r"\1.dt_proj.bias")
CORRECTION = (r"(.*)\.e_score_correction_bias", r"\1.e_score_correction.bias")


def groups_apart(heads: Callable[[Any], tuple[int, int]]) -> Change:
    """Queries, keys and values in one matrix: ours by key head, `(queries, key, value)` of each; the file's one kind after
    the other. `heads(config)` are how many query and key heads there are."""

    def read(tensor: np.ndarray, config: Any) -> np.ndarray:
        count, keys = heads(config)
        rows = tensor.reshape(count + 2 * keys, -1, *tensor.shape[1:])
        parts = (rows[:count], rows[count : count + keys], rows[count + keys :])
        return np.concatenate([p.reshape(keys, -1, *tensor.shape[1:]) for p in parts], 1).reshape(tensor.shape)

    def write(tensor: np.ndarray, config: Any) -> np.ndarray:
        count, keys = heads(config)
        rows = tensor.reshape(keys, count // keys + 2, -1, *tensor.shape[1:])
        parts = (rows[:, :-2], rows[:, -2], rows[:, -1])
        return np.concatenate([p.reshape(-1, *tensor.shape[1:]) for p in parts]).reshape(tensor.shape)

    return Change(r"\.attn_qkv\.(weight|bias)$", read, write, moves=True)
