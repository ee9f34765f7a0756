"""The `quantization_config` of compressed-tensors: which scheme each layer has, and what weight of ours a scheme means.

A config has groups; a group has `targets` (names of layers, `re:` and a regular expression, or classes as `Linear`) and a
scheme: how `weights` and `input_activations` are rounded. Whatever of it is not understood is refused by name: a newer
layout would be read wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..core.weight import Weight
from .fp8 import FP8
from .grouped import Grouped, group_of
from .int8 import Int8
from .micro import KINDS, Micro

FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
)
TOKEN = {"num_bits": 8, "strategy": "token", "symmetric": True, "dynamic": True}
# Keys that say nothing about the numbers; of the others a value that is not empty must be understood.
_IDLE = {
    "config": {"quant_method", "version", "global_compression_ratio", "quantization_status", "run_compressed"}
    | {"dequantize", "use_optimized_inference"},
    "scheme": set(),
    "args": {"observer", "observer_kwargs", "zp_dtype", "scale_dtype", "actorder"},
}
_KNOWN = {
    "config": {"config_groups", "format", "ignore"},
    "scheme": {"targets", "weights", "input_activations", "format"},
    "args": {"num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "block_structure"},
}
WAY_OUT = (
    "Load a checkpoint in another layout, or the unquantized one with ef.load(..., quantize=...); config_overrides="
    "{'quantization_config': {...}} replaces the config"
)


class Scheme(NamedTuple):
    """How a layer is quantized."""

    targets: tuple[str, ...]
    weights: dict[str, Any]
    activations: dict[str, Any] | None


class Rules(NamedTuple):
    """The schemes of a checkpoint, and the layers that have none."""

    schemes: tuple[Scheme, ...]
    ignore: tuple[str, ...]

    def of(self, names: tuple[str, ...], kind: str) -> Scheme | None:
        """The scheme of a layer of torch's class `kind`, known by any of `names`: by name, by pattern, by class."""
        if any(_matches(name, kind, pattern) for name in names for pattern in self.ignore):
            return None
        each = [(target, scheme) for scheme in self.schemes for target in scheme.targets]
        for wanted in (lambda t: t in names, lambda t: t.startswith("re:"), lambda t: True):
            for target, scheme in each:
                if wanted(target) and any(_matches(name, kind, target) for name in names):
                    return scheme
        return None


def _matches(name: str, kind: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    return pattern in (name, kind)


def read_settings(settings: Mapping[str, Any]) -> Rules:
    """The rules of a `quantization_config`, whose types were checked when it was read (`config.quantization`).

    Raises `ValueError` for all that is not understood, by name.
    """
    settings = settings.get("quantization_config") or settings  # as the first versions nested it
    _refuse_unknown("config", settings)
    if int(str(settings.get("version") or "0").partition(".")[0] or 0) > 0:
        raise _refusal(f"version {settings['version']!r}", "easyfn knows the layouts of versions 0.x")
    _check_format(settings.get("format"), also=("mixed-precision",))
    if settings.get("quantization_status", "compressed") != "compressed":
        raise _refusal(f"quantization_status {settings['quantization_status']!r}", "only compressed weights are read")
    schemes = []
    for name, group in (settings.get("config_groups") or {}).items():
        if not isinstance(group, Mapping):
            raise _refusal(f"the preset {name!r} in config_groups", "it must be written out")
        _refuse_unknown("scheme", group)
        _check_format(group.get("format"))
        for key in ("weights", "input_activations"):
            _refuse_unknown("args", group.get(key) or {})
        if group.get("weights"):
            inputs = group.get("input_activations")
            schemes.append(Scheme(tuple(group["targets"]), dict(group["weights"]), dict(inputs) if inputs else None))
    return Rules(tuple(schemes), tuple(settings.get("ignore") or ()))


def _refuse_unknown(level: str, data: Mapping[str, Any]) -> None:
    for key, value in data.items():
        empty = value is None or value is False or (hasattr(value, "__len__") and len(value) == 0)
        if key not in _KNOWN[level] | _IDLE[level] and not empty:
            raise _refusal(f"{key}={value!r}", "easyfn does not know it")


def _check_format(format: Any, also: tuple[str, ...] = ()) -> None:
    if format is not None and format not in (*FORMATS, *also):
        raise _refusal(f"the format {format!r}", f"easyfn reads {', '.join(FORMATS)}")


def _refusal(what: str, why: str) -> ValueError:
    return ValueError(f"the checkpoint is quantized with compressed-tensors and has {what}: {why}. {WAY_OUT}")


def group_size(scheme: Scheme, width: int) -> int:
    """How many entries of a row share a scale."""
    return int(scheme.weights["group_size"]) if scheme.weights.get("strategy") in ("group", "tensor_group") else width


def block_of(scheme: Scheme) -> tuple[int, int]:
    """The rows and columns that share a scale, as `FP8` has them."""
    weights = scheme.weights
    strategy = weights.get("strategy") or ("group" if (weights.get("group_size") or -1) > 0 else "tensor")
    if strategy == "block":
        rows, columns = weights["block_structure"]
        return int(rows), int(columns)
    return {"tensor": (0, 0), "channel": (1, 0), "group": (1, int(weights.get("group_size") or 0))}[strategy]


def activations_of(scheme: Scheme) -> str | None:
    """What the weight's `activations` says for the `input_activations` of a scheme; refused if no product of ours does."""
    inputs = scheme.activations
    if inputs is None:
        return None
    kind = tuple(inputs.get(k, d) for k, d in (("type", "int"), ("num_bits", 8), ("strategy", None)))
    dynamic, group = inputs.get("dynamic", False), inputs.get("group_size")
    weights = (scheme.weights.get("type", "int"), scheme.weights.get("num_bits", 8))
    known: dict[Any, str] = {
        (("int", 8, "token"), True, None): "int8",
        (("int", 8, "group"), True, 32): "int8/32",
        (("float", 8, "token"), True, None): "token",
        (("float", 8, "group"), True, 128): "token/128",
        (("float", 8, "tensor"), False, None): "static",
    }
    found = known.get((kind, dynamic, group if kind[2] == "group" else None))
    fits = kind[0] == weights[0] and (kind[0] == "int" or weights[1] == 8)
    micro = scheme.weights.get("group_size") == 32 and weights[0] == "float"
    if found is None or not fits or micro or not inputs.get("symmetric", True):
        raise _refusal(
            f"input_activations {kind[0]}{kind[1]} by {kind[2]} ({'dynamic' if dynamic else 'static'})"
            f" beside {weights[0]}{weights[1]} weights",
            "no product of easyfn rounds its input so; without that key of its config it is read weight-only",
        )
    return found


def why_not(weight: Weight) -> str | None:
    """Why compressed-tensors cannot hold a weight."""
    if isinstance(weight, (Grouped, Int8)) and weight.smooth is not None:
        return "has no place for the scales of a smoothed input"
    if isinstance(weight, Grouped):
        if weight.order is not None:
            return "has no act-order any more (since 0.20)"
        if weight.zeros is not None and not np.issubdtype(weight.zeros.dtype, np.integer):
            return "has integer zeros only"
    return None


def write_scheme(weight: Weight) -> dict[str, Any]:
    """The scheme of a weight, without its targets."""
    inputs: dict[str, Any] | None = None
    args: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
    if isinstance(weight, (Grouped, Int8)):
        args |= {"type": "int", "strategy": "channel"}
        if isinstance(weight, Grouped):
            args |= {"num_bits": weight.bits, "symmetric": weight.zeros is None, "strategy": "group"}
            args["group_size"] = group_of(weight)
        if weight.activations is not None:
            inputs = {**TOKEN, "type": "int"}
        if weight.activations == "int8/32":
            inputs = {**TOKEN, "type": "int", "strategy": "group", "group_size": 32}
        format = "int-quantized" if inputs is not None and args["num_bits"] == 8 else "pack-quantized"
    elif isinstance(weight, FP8):
        args |= _block_args(weight.block)
        format = "naive-quantized"
        if weight.activations is not None:
            format, inputs = "float-quantized", {**TOKEN, "type": "float"}
        if weight.activations == "token/128":
            inputs = {**TOKEN, "type": "float", "strategy": "group", "group_size": 128}
        elif weight.activations == "static":
            inputs = {**TOKEN, "type": "float", "strategy": "tensor", "dynamic": False}
    else:
        assert isinstance(weight, Micro)
        bits, group, _ = KINDS[weight.kind]
        strategy, scale = ("tensor_group", "float8_e4m3fn") if weight.kind == "nvfp4" else ("group", "uint8")
        args |= {"num_bits": bits, "strategy": strategy, "group_size": group}
        args |= {"scale_dtype": f"torch.{scale}", "zp_dtype": f"torch.{scale}"}
        format = f"{weight.kind}-quantized" if bits == 8 else f"{weight.kind}-pack-quantized"
    return {"weights": args, "input_activations": inputs, "output_activations": None, "format": format}


def _block_args(block: tuple[int, int]) -> dict[str, Any]:
    if block in ((0, 0), (1, 0)):
        return {"strategy": "channel" if block[0] else "tensor"}
    if block[0] == 1:
        return {"strategy": "group", "group_size": block[1]}
    return {"strategy": "block", "block_structure": list(block)}
