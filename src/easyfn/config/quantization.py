"""The `quantization_config` of a `config.json`: which keys there are and what they hold, whatever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from .check import AtLeast, Integer, check

Bits = Annotated[int, AtLeast(1)]
_Names = tuple[str, ...]
_KEYS: dict[str, Any] = {
    "quant_method": str | None,
    "format": str | None,
    "config_groups": Mapping | None,
    "ignore": _Names | None,
    "modules_to_not_convert": _Names | None,
    "llm_int8_skip_modules": _Names | None,
    "bits": Bits | None,
    "w_bit": Bits | None,
    "group_size": Integer | None,
    "q_group_size": Integer | None,
    "weight_block_size": tuple[Bits, ...] | None,
    "load_in_4bit": bool | None,
    "load_in_8bit": bool | None,
    "bnb_4bit_quant_type": str | None,
    "bnb_4bit_use_double_quant": bool | None,
    "desc_act": bool | None,
    "sym": bool | None,
    "zero_point": bool | None,
    "version": str | int | float | None,
    "quantization_status": str,
    "checkpoint_format": str | None,
    "kv_cache_scheme": Mapping | None,
    "sparsity_config": Mapping | None,
}
_GROUP: dict[str, Any] = {
    "targets": _Names,
    "weights": Mapping | None,
    "input_activations": Mapping | None,
    "output_activations": Mapping | None,
    "format": str | None,
}
_SCHEME: dict[str, Any] = {
    "num_bits": Bits,
    "type": str,
    "strategy": str | None,
    "group_size": Integer | None,
    "symmetric": bool | None,
    "dynamic": bool | str | None,
    "block_structure": Any,
}
MOST_BITS = 64


def quantization(data: Any, where: str) -> None:
    """Raises `ValueError` that names the key unless everything is of the type that its readers take it for."""
    if data.get("quantization_config"):  # the first versions of compressed-tensors nested it
        where = f"{where}: quantization_config"
        data = check("quantization_config", data["quantization_config"], Mapping, where)
    _checked(data, _KEYS, where)
    for name, group in (data.get("config_groups") or {}).items():
        inside = f"{where}: config_groups"
        check(name, group, Mapping | _Names, inside)
        if not isinstance(group, Mapping):
            continue  # the targets of a preset, which `schemes.py` refuses by name
        if "targets" not in group:
            raise ValueError(f"{inside}: {name} needs targets, which the file does not give")
        _checked(group, _GROUP, f"{inside}: {name}")
        for part in ("weights", "input_activations", "output_activations"):
            scheme = group.get(part) or {}
            _checked(scheme, _SCHEME, f"{inside}: {name}: {part}")
            if scheme.get("num_bits", 1) > MOST_BITS:
                raise ValueError(f"{inside}: {name}: {part}: num_bits must be an integer of at most {MOST_BITS}")


def _checked(data: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> None:
    for key, hint in schema.items():
        if key in data:
            check(key, data[key], hint, where)
