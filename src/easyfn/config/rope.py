"""The rotary settings of a config in all their spellings, as `rope_parameters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .check import Size, check
from .errors import UnknownConfigKey

# What each kind cannot do without; transformers needs the same.
_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
# What `nn.inverse_frequencies` reads (and `finetuned`, a remark). Another key (`mrope_section`, ...) would change the rotation.
_KEYS: dict[str, Any] = {
    **dict.fromkeys(
        ("rope_theta", "partial_rotary_factor", "factor", "attention_factor", "beta_fast", "beta_slow"),
        float | int | None,
    ),
    **dict.fromkeys(("low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim"), float | int | None),
    **dict.fromkeys(("short_mscale", "long_mscale", "llama_4_scaling_beta"), float | int | None),
    **dict.fromkeys(("short_factor", "long_factor"), tuple[float | int, ...] | None),
    "rope_type": str,
    "original_max_position_embeddings": Size | None,
    "truncate": bool | None,
    "finetuned": bool | None,
    # Read by the families that have them only, here as in transformers: Hunyuan's stretched base, Ministral 3's temperature.
    "alpha": float | int | None,
    "llama_4_scaling_beta": float | int | None,
    "max_position_embeddings": Size | None,
}


def rope_parameters(
    data: dict[str, Any], *, theta: float = 10000.0, partial: float | None = None, where: str = "config.json"
) -> dict[str, Any]:
    """Rewrites older spellings of the rotary settings (`rope_theta`, `rope_scaling`) as `rope_parameters`.

    Follows transformers `PreTrainedConfig.standardize_rope_params`. Parameters may be nested by kind of layer.
    `theta` and `partial` are the base and the rotated part of heads of a family whose file gives none. Raises
    [`easyfn.UnknownConfigKey`][] for a parameter that is not implemented, `ValueError` for one of the wrong type.
    """
    data = dict(data)
    scaling = _object(data.pop("rope_scaling", None), "rope_scaling", where)
    parameters = dict(scaling or _object(data.get("rope_parameters"), "rope_parameters", where) or {})
    nested = any(isinstance(value, Mapping) for value in parameters.values())
    base = data.pop("rope_theta", None)
    rotated = data.pop("partial_rotary_factor", None)
    rotated = partial if rotated is None else rotated

    def one(part: Any, name: str) -> dict[str, Any]:
        part = dict(_object(part, name, where) or {})
        kind = part.pop("type", None)
        part["rope_type"] = part.get("rope_type") or kind or "default"
        if part["rope_type"] == "su":  # the first name of longrope
            part["rope_type"] = "longrope"
        part.setdefault("rope_theta", theta if base is None else base)
        if rotated is not None:
            part.setdefault("partial_rotary_factor", rotated)
        part = {k: check(f"{name}.{k}", v, _KEYS[k], where) if k in _KEYS else v for k, v in part.items()}
        if part["rope_type"] in ("llama3", "yarn", "longrope"):
            # Phi-3's place for it; it wins, where there is one table only.
            outer = (
                None
                if nested
                else check(
                    "original_max_position_embeddings", data.get("original_max_position_embeddings"), Size | None, where
                )
            )
            if outer is not None:
                part["original_max_position_embeddings"] = outer
            elif data.get("max_position_embeddings") is not None:
                part.setdefault("original_max_position_embeddings", data["max_position_embeddings"])
        if unknown := sorted(k for k, v in part.items() if k not in _KEYS and v is not None):
            raise UnknownConfigKey(f"{where}: rotary positions with {', '.join(unknown)} are not implemented")
        if lost := [k for k in _NEEDS.get(part["rope_type"], ()) if part.get(k) is None]:
            raise ValueError(f"{where}: rope_type {part['rope_type']!r} needs {', '.join(lost)}; it has {part}")
        return part

    if nested:
        data["rope_parameters"] = {
            kind: None if part is None else one(part, f"rope_parameters.{kind}") for kind, part in parameters.items()
        }
    else:
        data["rope_parameters"] = one(parameters, "rope_parameters")
    return data


def _object(value: Any, name: str, where: str) -> Mapping[str, Any] | None:
    return check(name, value, Mapping | None, where)
