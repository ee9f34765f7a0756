"""The feed-forward part of a plan: a dense layer, experts, or both, as the modules of the reference show them."""

from __future__ import annotations

import inspect
import re
from typing import Any

from .reference import CHOSEN, COUNTS, GROUPED, LAYERS, MLPS, ROUTES, stored

CORRECTION = "e_score_correction_bias"
_SHARED = ("shared_experts", "shared_expert", "shared_mlp")


def feed(reader: Any) -> str:
    """The code of a block's second part; `reader` is the `Reader` of blueprint.py."""
    modules = reader.parts("mlp")
    sparse = [hasattr(module, "experts") for module in modules]
    plain = next((module for module, experts in zip(modules, sparse, strict=True) if not experts), None)
    reader.placed |= {f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj", "gate_up_proj")}
    dense = "" if plain is None else _dense(reader, plain)
    if not any(sparse):
        return dense
    return _experts(reader, modules[sparse.index(True)], sparse, dense)


def _dense(reader: Any, module: Any) -> str:
    names = tuple(sorted(name for name, child in module.named_children() if hasattr(child, "weight")))
    if "intermediate_size" not in reader.keys:
        size = next((child.weight.shape[0] for _, child in module.named_children() if hasattr(child, "weight")), 0)
        reader.unplaced.append(
            f"mlp: c.intermediate_size is no key of the config; it is {size} by default, find where from"
        )
    for ours, name in LAYERS.get(names, {}).items():
        reader.renames.append((f".mlp.{ours}.", f".mlp.{name}."))
        reader.placed.add(f"mlp.{name}")
    names = tuple(sorted(LAYERS.get(names, names)))
    if names not in MLPS:
        reader.unplaced.append(f"mlp: layers named {', '.join(names)}; ef.nn has {', '.join(map('/'.join, MLPS))}")
        return "mlp(c)"
    if MLPS[names] == "mlp(c)":
        reader.use("decoders", "mlp")
    bias = any(getattr(child, "bias", None) is not None for _, child in module.named_children())
    return MLPS[names].format(bias=", bias=True" if bias else "")


def _experts(reader: Any, module: Any, sparse: list[bool], dense: str) -> str:
    reader.placed |= {f"mlp.{name}" for name in ("experts", "gate", "shared_experts", "shared_expert_gate")}
    _files(reader)
    keys, parts = reader.keys, dict(module.named_children())
    if all(key in keys for key in GROUPED):
        reader.use("mixtures", "grouped")
        return "grouped(c, i)"
    gate = parts.get("gate", parts.get("router"))
    if "gate" not in parts and getattr(gate, "weight", None) is not None:
        reader.renames.append((".mlp.gate.", ".mlp.router."))
        reader.placed.add("mlp.router.weight")
    code = inspect.getsource(type(gate)) if gate is not None else ""
    count, chosen = (next((key for key in names if key in keys), names[0]) for names in (COUNTS, CHOSEN))
    width = "moe_intermediate_size" if "moe_intermediate_size" in keys else "intermediate_size"
    corrected = [part for part in (gate, module) if hasattr(part, CORRECTION)]
    args = {"correction": "True"} if corrected else {}
    if corrected and corrected[0] is module:
        reader.renames.append((f".mlp.gate.{CORRECTION}", f".mlp.{CORRECTION}"))
        reader.placed.add(f"mlp.{CORRECTION}")
    if "sigmoid" in code:
        args["score"] = '"sigmoid"'
    for key in keys:
        if (name := ROUTES.get(key)) is not None:
            args[name] = f"c.{key} or None" if name == "softcap" else f"c.{key}"
    given = "".join(f", {key}={value}" for key, value in args.items())
    router = f"ef.nn.Router(c.hidden_size, c.{count}, c.{chosen}{given})"
    experts = f"ef.nn.Experts(c.{count}, c.hidden_size, c.{width}, c.hidden_act)"
    made = f"ef.nn.SparseMoE({router}, {experts}{_shared(reader, parts, width)})"
    if all(sparse) and "mlp_layer_types" not in keys:
        return made
    front = sparse.index(True)
    first = next((key for key in keys if "dense" in key and getattr(reader.config, key, None) == front), None)
    if {"decoder_sparse_step", "mlp_only_layers"} <= set(keys):
        reader.use("mixtures", "is_sparse")
        return f"{made} if is_sparse(c, i) else {dense}"
    if not all(sparse[front:]):
        reader.unplaced.append("mlp: which layers have experts is in the reference's file")
    reader.use("mixtures", "mlp_kinds")
    said = "c.mlp_layer_types" if "mlp_layer_types" in keys else "None"
    reader.before.append(f"feeds = mlp_kinds(c, {said}, {f'c.{first}' if first else front})")
    if not dense:
        reader.use("decoders", "mlp")
    return f'{made} if feeds[i] == "sparse" else {dense or "mlp(c)"}'


def _files(reader: Any) -> None:
    """What files call experts that they hold one by one."""
    pattern = re.compile(r"(\w+)\\?\.experts\\?\.\*\\?\.(\w+)\\?\.weight")
    found = [
        [match for name in names if (match := pattern.search(name))] for names, _, _ in stored(reader.theirs.model_type)
    ]
    both, down = (next((each for each in found if len(each) == number), None) for number in (2, 1))
    if both is None or down is None:
        return
    reader.use("mixtures", "per_expert")
    names = [match[2] for match in (*both, *down)]
    own = [] if names == ["gate_proj", "up_proj", "down_proj"] else [f'"{name}"' for name in names]
    own += [f'theirs="{both[0][1]}"'] if both[0][1] != "mlp" else []
    reader.family["names"] = f"per_expert({', '.join(own)})"


def _shared(reader: Any, parts: dict[str, Any], width: str) -> str:
    """The experts that every token goes to, as an argument of `SparseMoE`."""
    name = next((name for name in _SHARED if name in parts), None)
    if name is None:
        return ""
    if name != "shared_experts":
        reader.renames.append((".mlp.shared_experts.", f".mlp.{name}."))
        reader.placed.add(f"mlp.{name}")
    if (size := _width(reader, parts[name], width)) is None:
        reader.unplaced.append(f"mlp.{name}: how wide they are is in the reference's file")
        return ""
    kind = "FusedGatedMLP" if hasattr(parts[name], "gate_up_proj") else "GatedMLP"
    gate = (
        ', shared_expert_gate=ef.nn.Linear(c.hidden_size, 1, axes=(None, "embed"))'
        if "shared_expert_gate" in parts
        else ""
    )
    return f", shared_experts=ef.nn.{kind}(c.hidden_size, {size}, c.hidden_act){gate}"


def _width(reader: Any, shared: Any, width: str) -> str | None:
    """The keys whose value is the width of a shared expert, or whose product."""
    down = getattr(shared, "down_proj", None)
    if down is None:
        return None
    said = {key: value for key in reader.keys if type(value := getattr(reader.config, key, None)) is int}
    some = [key for key in said if "shared" in key]
    if key := next((key for key in some if "size" in key and said[key] == down.weight.shape[1]), None):
        return f"c.{key}"
    each = next((key for key in (width, "intermediate_size") if key in said), None)
    if each is None:
        return None
    number = next((key for key in some if said[key] * said[each] == down.weight.shape[1]), None)
    return f"c.{each} * c.{number}" if number else f"c.{each}" if said[each] == down.weight.shape[1] else None
