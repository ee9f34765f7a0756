"""Prompt tuning and prefix tuning in PEFT's files: one tensor, `prompt_embeddings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...lora import has_lora
from ...lora.prompt import Prefix, Prompt, prefix_shape
from ...nn import input_embeddings
from ..safetensors import read
from .methods import Method, Tensors, register_method

NAME = "prompt_embeddings"
KNOWN = frozenset(
    [
        "num_virtual_tokens",
        "token_dim",
        "num_attention_heads",
        "num_layers",
        "num_transformer_submodules",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_name_or_path",
        "tokenizer_kwargs",
        "encoder_hidden_size",
        "init_weights",
        "prefix_projection",  # the file holds what it projects to
        "modules_to_save",
    ]
)


def _settings(model: Any) -> dict[str, Any]:
    if has_lora(model.base):
        raise ValueError(
            "save_adapter: beside its virtual tokens the model has adapters, and a file of PEFT's has one kind. Write those "
            "apart, ef.save_adapter(model.base, another), and the tokens without them: "
            "dataclasses.replace(model, base=ef.split_lora(model.base)[0])"
        )
    layers = getattr(model.config, "num_hidden_layers", None) or getattr(model.config, "n_layer", None)
    return {"num_virtual_tokens": model.count, "num_layers": layers, "num_transformer_submodules": 1}


def _write_prompt(model: Prompt, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    heads = getattr(model.config, "num_attention_heads", None) or getattr(model.config, "n_head", 1)
    more = {"token_dim": model.tokens.shape[1], "num_attention_heads": heads, "prompt_tuning_init": "RANDOM"}
    return {**_settings(model), **more}, {NAME: np.asarray(model.tokens)}


def _write_prefix(model: Prefix, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    layers, heads, count, width = model.k.shape
    both = np.stack([np.asarray(model.k), np.asarray(model.v)], axis=1)  # (layers, 2, heads, count, width)
    flat = np.transpose(both, (3, 0, 1, 2, 4)).reshape(count, -1)
    settings = {"token_dim": heads * width, "num_attention_heads": heads, "num_layers": layers}
    return {**_settings(model), **settings, "prefix_projection": False, "encoder_hidden_size": None}, {NAME: flat}


def _take(config: Mapping[str, Any], left: Tensors, dtype: Any) -> tuple[np.ndarray | None, list[str]]:
    if config.get("num_transformer_submodules") not in (1, None):
        return None, ["num_transformer_submodules=2 is for encoder-decoders, which easyfn does not prompt"]
    if (info := left.pop(NAME, None)) is None:
        return None, [f"the file has no {NAME}"]
    found = read(info)
    return (found if dtype is None else found.astype(jnp.dtype(dtype))), []


def _read_prompt(model: Any, config: Mapping[str, Any], left: Tensors, dtype: Any) -> tuple[Any, list[str]]:
    tokens, errors = _take(config, left, dtype)
    if tokens is None:
        return model, errors
    width = input_embeddings(model).weight.shape[1]
    if tokens.ndim != 2 or tokens.shape[1] != width:
        return model, [f"{NAME} has shape {tokens.shape}, and the model's embeddings are {width} wide"]
    return Prompt(model, jax.device_put(tokens)), []


def _read_prefix(model: Any, config: Mapping[str, Any], left: Tensors, dtype: Any) -> tuple[Any, list[str]]:
    flat, errors = _take(config, left, dtype)
    if flat is None:
        return model, errors
    layers, heads, count, width = prefix_shape(model, flat.shape[0])
    if flat.shape != (count, layers * 2 * heads * width):
        return model, [
            f"{NAME} has shape {flat.shape}, and {layers} layers with keys of {heads} heads of {width} need "
            f"{(count, layers * 2 * heads * width)}"
        ]
    both = np.transpose(flat.reshape(count, layers, 2, heads, width), (1, 2, 3, 0, 4))
    return Prefix(model, jax.device_put(both[:, 0]), jax.device_put(both[:, 1])), []


def _register(name: str, cls: type, write: Any, take: Any) -> None:
    register_method(name, Method(lambda model: isinstance(model, cls), write, take, KNOWN))


_register("PROMPT_TUNING", Prompt, _write_prompt, _read_prompt)
_register("PREFIX_TUNING", Prefix, _write_prefix, _read_prefix)
