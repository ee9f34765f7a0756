"""A new family's page beside its reference, as it was written: tensors, keys that nothing reads, hidden states by layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from .blueprint import Plan

# A model of the reference that a laptop holds, where the config has fields of these names.
SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# The same of keys that the repository's own `SMALL` leaves to a case.
OWN: dict[str, Any] = {
    "head_dim": 16,
    "attention_bias": True,
    "sliding_window": 5,
    "use_sliding_window": True,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}


def sizes(theirs: Any) -> dict[str, Any]:
    """The small settings that this config class has fields for, and of those of kinds of layers only what it knows."""
    names, second = {f.name for f in dataclasses.fields(theirs)}, theirs.attribute_map
    both = SMALL | OWN
    if "kv_lora_rank" in names:  # latent attention has a key for each head
        both["num_key_value_heads"] = both["num_attention_heads"]
    if "sliding_window" not in names or set(getattr(theirs(), "layer_types", None) or ()) - set(OWN["layer_types"]):
        del both["layer_types"]
    return {second.get(key, key): value for key, value in both.items() if second.get(key, key) in names}


def compared(text: str, name: str, title: str, theirs: Any, plan: Plan) -> list[str]:
    """What is left to do, one line each: the page is built, and run on the numbers of a small random reference."""
    page: dict[str, Any] = {"__name__": f"easyfn_new_{name}"}
    import sys
    import types

    module = sys.modules[page["__name__"]] = types.ModuleType(
        page["__name__"]
    )  # dataclasses look their fields up there
    try:
        exec(compile(text.partition("\ndecoder_family(")[0], f"{name}.py", "exec"), module.__dict__)
        page = module.__dict__
        return _compared(page[f"{title}Config"], page[name], theirs, plan)
    except Exception as error:
        return [f"the plan does not build as it stands: {type(error).__name__}: {str(error).splitlines()[0]}"]
    finally:
        del sys.modules[f"easyfn_new_{name}"]


def _compared(ours: Any, build: Any, theirs: Any, plan: Plan) -> list[str]:
    import easyfn as ef

    small = sizes(theirs)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in small.items()}
    config = ours(**{key: value for key, value in given.items() if key in {f.name for f in dataclasses.fields(ours)}})
    said, read = [], _read(config, build)
    own = {f.name for f in dataclasses.fields(ours)} - {f.name for f in dataclasses.fields(ours.__mro__[1])}
    elsewhere = (
        ({"logits_scaling"} if "logits_scale" in plan.family.get("head", "") else set())
        | {"tie_word_embeddings", "router_aux_loss_coef", "pad_token_id"}
        | {key for key in own if any(f"c.{key}" in value for value in plan.family.values())}
    )
    if unread := sorted(own - read - elsewhere):
        said.append(f"keys that nothing of the plan reads: {', '.join(unread)}")
    try:
        base = _reference(theirs(**small))
    except Exception as error:
        why = str(error).splitlines()[0]
        return [*said, f"not compared: the reference refuses {small}: {type(error).__name__}: {why}"]
    model = build(config)
    held = {key: value.detach().numpy() for key, value in base.state_dict().items()}
    named = {path: _renamed(path, plan) for path in ef.params(model)}
    lacks = sorted(set(named.values()) - set(held))
    more = sorted(set(held) - set(named.values()))
    wrong = [
        f"{theirs_} {held[theirs_].shape}, ours {tuple(ef.params(model)[path].shape)}"
        for path, theirs_ in named.items()
        if theirs_ in held and held[theirs_].shape != tuple(ef.params(model)[path].shape)
    ]
    for what, names in (("the reference has no", lacks), ("the plan has no", more), ("other shapes:", wrong)):
        if names:
            said.append(f"{what} {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}")
    if lacks or wrong:
        return [*said, "so nothing was computed: run the case when these have a place"]
    model = ef.with_params(model, {path: held[theirs_] for path, theirs_ in named.items()})
    return [*said, _hidden(model, base)]


def _renamed(path: str, plan: Plan) -> str:
    return next((path.replace(ours, theirs) for ours, theirs in plan.renames if ours in path), path)


def _read(config: Any, build: Any) -> set[str]:
    """The fields that are read while the layers are made."""
    read: set[str] = set()

    class Watched(type(config)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    build(Watched(**fields))
    return read | {"vocab_size", "max_position_embeddings"}


def _reference(config: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    config._attn_implementation = "eager"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for weight in model.parameters():
            weight.add_((0.05 if weight.ndim > 1 else 0.2) * torch.randn_like(weight))
    return getattr(model, model.base_model_prefix)


def _hidden(model: Any, base: Any) -> str:
    """Where hidden states are the reference's, and where they cease to be."""
    import jax
    import numpy as np
    import torch

    import easyfn as ef

    ids = np.random.RandomState(0).randint(3, SMALL["vocab_size"], (2, 11))
    with torch.no_grad():
        want = base(torch.tensor(ids), output_hidden_states=True, use_cache=False).hidden_states
    have = jax.jit(lambda model: ef.forward(model, ids, output_hidden_states=True).hidden_states)(model)
    if len(have) != len(want):
        return f"hidden states: the reference has {len(want)}, the plan {len(have)}: its layers are run otherwise"
    apart = [float(abs(np.asarray(a) - b.numpy()).max()) for a, b in zip(have, want, strict=True)]
    bad = next((i for i, each in enumerate(apart) if not each < 1e-4), None)
    if bad is None:
        return f"hidden states are the reference's: {max(apart):.0e} apart at most, on a small random model"
    where = (
        "embeddings" if bad == 0 else f"layer {bad - 1}" if bad < len(apart) - 1 else "the last layer or the last norm"
    )
    return f"hidden states are the reference's up to {where}, which is {apart[bad]:.0e} apart: read what it does"
