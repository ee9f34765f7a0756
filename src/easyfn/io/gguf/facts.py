"""What `.gguf` files say of each architecture: keys of their metadata, and how their tensors differ from ours.

Facts of llama.cpp's convert_hf_to_gguf.py, one table per architecture; the names of tensors are the `gguf` package's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

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


@dataclasses.dataclass(frozen=True)
class Architecture:
    """`general.architecture`, the family that it is here, and how they differ.

    - `keys`: keys of the metadata, without the architecture's name in front, by their names in `config.json`.
    - `read(keys, data, file)`: takes what it understands out of `keys`, the metadata that is left, into `data`;
      `write(config)`: the other way, as metadata (and tensors, which are arrays).
    - `ignored`: keys that say nothing more. Any other key is refused.
    - `names`: our (Hugging Face's) names, as patterns, that the `gguf` package does not know, by one that it does.
    """

    name: str
    model_type: str
    keys: Mapping[str, str]
    read: Callable[[Data, Data, GGUF], None] = lambda keys, data, file: None
    write: Callable[[Any], Data] = lambda config: {}
    changes: tuple[Change, ...] = ()
    ignored: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()


# --- what several architectures share

_DECODER = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_BASE, _LOCAL = "rope.freq_base", "rope.freq_base_swa"


def has(file: GGUF, name: str) -> bool:
    return name in file.tensors


def value_of(file: GGUF, name: str) -> np.ndarray:
    info = file.tensors[name]
    return file.values[name] if name in file.values else read(info)


def _head_dim(keys: Data, data: Data) -> int:
    """`head_dim`, from what says it; keys that say something else stay, and are refused."""
    said = [keys.get(k) for k in ("attention.key_length", "attention.value_length", "rope.dimension_count")]
    found = said[0] or said[2] or data["hidden_size"] // data["num_attention_heads"]
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if keys.get(key) == found:
            del keys[key]
    return int(found)


def _read_decoder(keys: Data, data: Data, file: GGUF) -> None:
    data["head_dim"] = _head_dim(keys, data)
    data["rope_parameters"] = _read_rope(keys, data, file)
    if has(file, "blk.0.attn_q.bias"):
        data["attention_bias"] = True


def _write_decoder(config: Any) -> Data:
    dim = _dim(config)
    lengths = {"attention.key_length": dim, "attention.value_length": dim, "rope.dimension_count": dim}
    return {**lengths, **_write_rope(config.rope_parameters, dim)}


def _dim(config: Any) -> int:
    return config.head_dim if getattr(config, "head_dim", None) else config.hidden_size // config.num_attention_heads


def _read_rope(keys: Data, data: Data, file: GGUF) -> Data:
    rope: Data = {"rope_type": "default", "rope_theta": float(keys.pop(_BASE, 10000.0))}
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
    wavelength = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    low, high, trained = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    smooth = (trained / wavelength - low) / (high - low)
    blended = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return np.where(wavelength < trained / high, 1.0, np.where(wavelength > trained / low, rope["factor"], blended))


def _read_factors(factors: np.ndarray, base: float, data: Data) -> Data:
    """Factors of the frequencies as Llama 3's parameters, if they are such, or else as they are."""
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": float(factors.max())}
    for trained in (8192, data["max_position_embeddings"] // max(int(factors.max()), 1)):
        found = {"rope_type": "llama3", "rope_theta": base, "original_max_position_embeddings": trained, **llama3}
        if np.allclose(_llama3_factors(found, 2 * factors.size), factors, rtol=1e-5):
            return found
    each = [float(f) for f in factors]
    return {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, "short_factor": each, "long_factor": each}


def _write_rope(rope: Mapping[str, Any], dim: int) -> Data:
    kind = rope.get("rope_type", "default")
    out: Data = {_BASE: float(rope["rope_theta"])}
    if kind in ("linear", "yarn"):
        out |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        out["rope.scaling.original_context_length"] = rope.get("original_max_position_embeddings")
        out |= {f"rope.scaling.yarn_{k}": float(rope[k]) for k in ("beta_fast", "beta_slow") if rope.get(k) is not None}
    if kind == "llama3":
        out["rope_freqs.weight"] = _llama3_factors(rope, dim).astype(np.float32)
    return {k: v for k, v in out.items() if v is not None}


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


_PAIRS = (
    Change(r"\.attn_q\.(weight|bias)$", *_half_to_pairs(lambda c: c.num_attention_heads), moves=True),
    Change(
        r"\.attn_k\.(weight|bias)$",
        *_half_to_pairs(lambda c: c.num_key_value_heads or c.num_attention_heads),
        moves=True,
    ),
)


def _float32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)


_NORM_PLUS_ONE = Change(
    r"norm\.weight$", lambda x, _: (_float32(x) - 1).astype(x.dtype), lambda x, _: _float32(x) + np.float32(1)
)

# --- one after the other


def _read_llama(keys: Data, data: Data, file: GGUF) -> None:
    _read_decoder(keys, data, file)
    if has(file, "blk.0.ffn_up.bias"):
        data["mlp_bias"] = True


def _read_mixtral(keys: Data, data: Data, file: GGUF) -> None:
    _read_decoder(keys, data, file)
    data |= {"num_local_experts": keys.pop("expert_count"), "num_experts_per_tok": keys.pop("expert_used_count")}
    data["sliding_window"] = None


def _write_mixtral(config: Any) -> Data:
    counts = {"expert_count": config.num_local_experts, "expert_used_count": config.num_experts_per_tok}
    return {**_write_decoder(config), **counts}


def _read_qwen2(keys: Data, data: Data, file: GGUF) -> None:
    if _head_dim(keys, data) * data["num_attention_heads"] != data["hidden_size"]:
        raise ValueError("qwen2: the heads of this file are not hidden_size / num_attention_heads wide")
    data["rope_parameters"] = _read_rope(keys, data, file)


def _read_gemma3(keys: Data, data: Data, file: GGUF) -> None:
    data["head_dim"] = dim = _head_dim(keys, data)
    heads, layers = data["num_attention_heads"], data["num_hidden_layers"]
    # The file does not say it; llama.cpp knows the one of 27 billion by its depth.
    data["query_pre_attn_scalar"] = data["hidden_size"] // heads if layers == 62 else dim
    local = {"rope_type": "default", "rope_theta": float(keys.pop(_LOCAL, 10000.0))}
    keys.setdefault(_BASE, 1000000.0)
    data["rope_parameters"] = {"sliding_attention": local, "full_attention": _read_rope(keys, data, file)}
    pattern = keys.pop("attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        data["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    else:
        data["sliding_window_pattern"] = pattern
    data["final_logit_softcapping"] = keys.pop("final_logit_softcapping", None)
    if has(file, "blk.0.attn_q.bias"):
        data["attention_bias"] = True


def _write_gemma3(config: Any) -> Data:
    ropes, dim = config.rope_parameters, _dim(config)
    out = {
        "attention.key_length": dim,
        "attention.value_length": dim,
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
        _LOCAL: float(ropes["sliding_attention"]["rope_theta"]),
        **_write_rope(ropes["full_attention"], dim),
    }
    if config.final_logit_softcapping is not None:
        out["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return out


def _read_mamba2(keys: Data, data: Data, file: GGUF) -> None:
    inner = keys.pop("ssm.inner_size")
    data |= {"expand": inner // data["hidden_size"], "head_dim": inner // data["num_heads"]}
    data |= {"use_bias": has(file, "blk.0.ssm_in.bias"), "use_conv_bias": has(file, "blk.0.ssm_conv1d.bias")}


def _write_mamba2(config: Any) -> Data:
    idle = {"context_length": 1 << 20, "feed_forward_length": 0, "attention.head_count": 0}  # llama.cpp wants them
    return {**idle, "ssm.inner_size": config.expand * config.hidden_size}


def _flat(pattern: str, back: Callable[[np.ndarray, Any], np.ndarray]) -> Change:
    return Change(pattern, lambda x, _: x.reshape(-1), back, lambda s: (math.prod(s),))


_MAMBA2_CHANGES = (
    Change(
        r"\.ssm_a$",
        lambda x, _: np.log(-_float32(x)).reshape(-1),
        lambda x, _: -np.exp(_float32(x))[:, None],
        lambda s: (math.prod(s),),
    ),
    _flat(r"\.ssm_d$", lambda x, _: x[:, None]),
    _flat(r"\.ssm_norm\.weight$", lambda x, c: x.reshape(c.n_groups, -1)),
    Change(
        r"\.ssm_conv1d\.weight$",
        lambda x, _: x.reshape(x.shape[0], 1, -1),
        lambda x, _: x.reshape(x.shape[0], -1),
        lambda s: (s[0], 1, s[-1]),
    ),
)


def _read_t5(keys: Data, data: Data, file: GGUF) -> None:
    gated = has(file, "enc.blk.0.ffn_gate.weight")
    data["feed_forward_proj"] = "gated-gelu" if gated else "relu"
    keys.setdefault("decoder_block_count", data["num_layers"])
    data["num_decoder_layers"] = keys.pop("decoder_block_count")
    if keys.get("attention.value_length") == data["d_kv"]:
        del keys["attention.value_length"]


def _write_t5(config: Any) -> Data:
    decoder = config.num_layers if config.num_decoder_layers is None else config.num_decoder_layers
    start = (config.generation or {}).get("decoder_start_token_id", config.extra.get("decoder_start_token_id", 0))
    return {
        "context_length": 512,
        "attention.value_length": config.d_kv,
        "attention.layer_norm_rms_epsilon": float(config.layer_norm_epsilon),
        "decoder_block_count": decoder,
        "decoder_start_token_id": start,
    }


ARCHITECTURES = (
    Architecture("llama", "llama", _DECODER, _read_llama, _write_decoder, _PAIRS),
    Architecture("llama", "mistral", _DECODER, _read_llama, _write_decoder, _PAIRS),
    Architecture("llama", "mixtral", _DECODER, _read_mixtral, _write_mixtral, _PAIRS),
    Architecture(
        "qwen2",
        "qwen2",
        _DECODER,
        _read_qwen2,
        lambda c: _write_rope(c.rope_parameters, _dim(c)),
        ignored=("rope.dimension_count",),
    ),
    Architecture("qwen3", "qwen3", _DECODER, _read_decoder, _write_decoder),
    Architecture(
        "gemma3",
        "gemma3_text",
        {**_DECODER, "attention.sliding_window": "sliding_window"},
        _read_gemma3,
        _write_gemma3,
        (_NORM_PLUS_ONE,),
        ignored=("rope.dimension_count",),
    ),
    Architecture(
        "gpt2",
        "gpt2",
        {
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        write=lambda c: {} if c.n_inner else {"feed_forward_length": 4 * c.n_embd},
    ),
    Architecture(
        "mamba2",
        "mamba2",
        {
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "ssm.conv_kernel": "conv_kernel",
            "ssm.state_size": "state_size",
            "ssm.time_step_rank": "num_heads",
            "ssm.group_count": "n_groups",
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        },
        _read_mamba2,
        _write_mamba2,
        _MAMBA2_CHANGES,
        ("context_length", "feed_forward_length", "attention.head_count"),
        ((r"(.*)\.dt_bias", r"\1.dt_proj.bias"), (r"backbone\.embeddings\.(.*)", r"backbone.embedding.\1")),
    ),
    Architecture(
        "t5",
        "t5",
        {
            "embedding_length": "d_model",
            "block_count": "num_layers",
            "feed_forward_length": "d_ff",
            "attention.head_count": "num_heads",
            "attention.key_length": "d_kv",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "attention.relative_buckets_count": "relative_attention_num_buckets",
            "decoder_start_token_id": "decoder_start_token_id",
        },
        _read_t5,
        _write_t5,
        ignored=("context_length", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    ),
)
