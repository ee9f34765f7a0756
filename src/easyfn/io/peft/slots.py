"""IA3, VeRA, LoHa and LoKr in PEFT's files: methods that are one small weight per module, as LoRA is."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core.slots import find_slots
from ...core.trainable import is_adapter
from ...core.tree import expand
from ...core.weight import shape_of
from ...lora import IA3, LoHa, LoKr, VeRA, join_lora
from ...lora.adapter import arrays
from ...lora.lokr import layout
from ...lora.vera import parts, projections
from ...names.rules import tensors_for
from ...registry.family import family_of
from ..safetensors import read
from .methods import Method, Tensors, register_method
from .names import module_of, short, targets, transposed_targets
from .save import PREFIX

LOHA = {"hada_w1_a": "w1_a", "hada_w1_b": "w1_b", "hada_w2_a": "w2_a", "hada_w2_b": "w2_b"}
LOKR = {f"lokr_{name}": name for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}
VERA = {"vera_lambda_b": "lambda_b", "vera_lambda_d": "lambda_d"}
# What acts in training alone, and what says how adapters were made or chosen.
TRAINING = ("rank_dropout", "module_dropout", "rank_dropout_scale")
CHOICE = frozenset(["init_weights", "init_ia3_weights", "d_initial", "use_effective_conv2d", "decompose_both"])


class Part(NamedTuple):
    """One adapter of one layer, without its base, and the module as PEFT names it."""

    module: str
    weight: Any


class Read(NamedTuple):
    """What is known of a module when its adapter is read: its tensors, `(out, in)`, the file's config."""

    module: str
    got: dict[str, np.ndarray]
    shape: tuple[int, ...]
    config: Mapping[str, Any]


def _parts(model: Any, cls: Any) -> list[Part]:
    rules = family_of(model).modules(model)
    found = []
    for f in find_slots(model):
        if not is_adapter(f.weight):
            continue
        if type(f.weight) is not cls or is_adapter(f.weight.base):
            raise ValueError(
                f"save_adapter: {f.path} holds a {type(f.weight).__name__} beside adapters of the kind {cls.__name__}; "
                "a file of PEFT's has one kind"
            )
        if f.slot.role in ("experts", "router"):
            raise ValueError(
                f"save_adapter: {f.path} is of the kind {f.slot.role!r}, which PEFT has no {cls.__name__} for"
            )
        names = expand(f.path)
        if cls in (LoHa, LoKr) and tensors_for(names[0], (0, 0), rules).transposed:
            raise ValueError(
                f"save_adapter: {f.path} is a Conv1D in transformers, which PEFT has no {cls.__name__} for"
            )
        alone = dataclasses.replace(f.weight, base=None, **({"key": None} if hasattr(f.weight, "key") else {}))
        for i, path in enumerate(names):
            one = alone if names == [f.path] else jax.tree.map(lambda leaf, i=i: leaf[i], alone)
            found.append(Part(module_of(path, f.slot.role, (1, 1), rules)[0], one))
    return found


def _tensors(found: list[Part], fields: Mapping[str, str], flat: bool = False) -> dict[str, np.ndarray]:
    return {
        f"{PREFIX}{p.module}.{name}": np.asarray(leaf).reshape(-1) if flat else np.asarray(leaf)
        for p in found
        for name, field in fields.items()
        if (leaf := getattr(p.weight, field)) is not None
    }


def _settings(model: Any, found: list[Part]) -> dict[str, Any]:
    return {"target_modules": targets(model, [p.module for p in found]), "modules_to_save": None}


def _ranks(found: list[Part]) -> dict[str, Any]:
    """The commonest rank and alpha, and the others by name."""
    pairs = {p.module: (p.weight.rank, short(p.weight.scale * p.weight.rank)) for p in found}
    rank, alpha = Counter(pairs.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "alpha": alpha,
        "rank_pattern": {m: r for m, (r, _) in pairs.items() if r != rank},
        "alpha_pattern": {m: a for m, (_, a) in pairs.items() if a != alpha},
        "rank_dropout": 0.0,
        "module_dropout": 0.0,
        "use_effective_conv2d": False,
        "init_weights": True,
    }


def _write_ia3(model: Any, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    found = _parts(model, IA3)
    settings = _settings(model, found)
    inner = {p.module: p.weight.inputs for p in found}
    of = lambda target: [inner[m] for m in inner if m == target or m.endswith(f".{target}")]
    forward = [t for t in settings["target_modules"] if all(of(t))]
    if any(any(m.endswith(t) for t in forward) != inputs for m, inputs in inner.items()):  # as PEFT asks
        settings["target_modules"] = sorted(inner)
        forward = sorted(m for m, inputs in inner.items() if inputs)
    more = {"feedforward_modules": forward, "fan_in_fan_out": transposed_targets(model), "init_ia3_weights": True}
    return {**settings, **more}, _tensors(found, {"ia3_l": "scale"})


def _write_vera(model: Any, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    found = _parts(model, VeRA)
    facts = {(p.weight.a.shape[0], p.weight.seed, p.weight.dropout) for p in found}
    if len(facts) > 1:
        raise ValueError(f"save_adapter: PEFT's file has one rank, key and dropout for all VeRA, the model {facts}")
    rank, seed, dropout = facts.pop()
    a = np.asarray(max((p.weight.a for p in found), key=lambda x: x.shape[1]))
    b = np.asarray(max((p.weight.b for p in found), key=lambda x: x.shape[0]))
    for x in {id(p.weight.a): p.weight.a for p in found}.values():
        if not np.array_equal(a[:, : x.shape[1]], np.asarray(x)):
            raise ValueError("save_adapter: the projections of the VeRA are not one for all, as PEFT has them")
    settings = {
        **_settings(model, found),
        "r": rank,
        "projection_prng_key": seed,
        "save_projection": True,
        "vera_dropout": dropout,
        "fan_in_fan_out": transposed_targets(model),
        "bias": "none",
    }
    return settings, {"base_model.vera_A": a, "base_model.vera_B": b, **_tensors(found, VERA, flat=True)}


def _write_loha(model: Any, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    found = _parts(model, LoHa)
    return {**_settings(model, found), **_ranks(found)}, _tensors(found, LOHA)


def _write_lokr(model: Any, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    found = _parts(model, LoKr)
    shapes = {p.module: {name: tuple(x.shape) for name, x in arrays(p.weight).items()} for p in found}
    sizes = {p.module: _size(p.weight) for p in found}
    sides = sorted({side for s in shapes.values() for side in s.get("w1", (*s.get("w1_a", ()), *s.get("w1_b", ())))})
    for both in (False, True):
        for factor in (-1, *reversed(sides)):
            if all(layout(*sizes[p.module], p.weight.rank, both, factor) == shapes[p.module] for p in found):
                how = {"decompose_both": both, "decompose_factor": factor, "rank_dropout_scale": False}
                return {**_settings(model, found), **_ranks(found), **how}, _tensors(found, LOKR)
    raise ValueError("save_adapter: no decompose_factor of PEFT's gives all of these LoKr their shapes")


def _size(w: LoKr) -> tuple[int, int]:
    """`(out, in)` of the weight that the factors are for."""
    sides = [(a.shape[0], b.shape[1]) for a, b in ((w.w1_a, w.w1_b), (w.w2_a, w.w2_b)) if a is not None]
    sides += [whole.shape for whole in (w.w1, w.w2) if whole is not None]
    return sides[0][0] * sides[1][0], sides[0][1] * sides[1][1]


def _reader(
    fields: Mapping[str, str], make: Callable[[Read], Any], *, shared: Callable[..., Any] | None = None
) -> Callable[..., tuple[Any, list[str]]]:
    """`Method.read`: `make` gives the adapter of a module, of numpy arrays; `shared` finishes those of all modules."""

    def run(model: Any, config: Mapping[str, Any], left: Tensors, dtype: Any) -> tuple[Any, list[str]]:
        errors = [
            f"{key}={config[key]!r} acts in training alone, and easyfn does not implement it"
            for key in TRAINING
            if config.get(key)
        ]
        if config.get("use_effective_conv2d"):
            errors.append("use_effective_conv2d=True is for convolutions, which easyfn does not adapt this way")
        if config.get("bias", "none") not in ("none", None):
            errors.append(f"bias={config['bias']!r} is not implemented for {config['peft_type']}")
        known, adapter = family_of(model), {}
        rules = known.modules(model)
        for f in find_slots(model, ("linear", "head", "router")):
            for path in expand(f.path):
                shape = tuple(shape_of(f.weight))[-2:]
                source = tensors_for(path, shape, rules)
                names = [n.removesuffix(".weight") for n in (*source.names[:1], path)]
                spellings = [s for n in names for s in (n, f"{known.prefix}.{n}", n.removeprefix(f"{known.prefix}."))]
                module = next((s for s in spellings if any(f"{s}.{name}" in left for name in fields)), None)
                if module is None:
                    continue
                if len(source.names) > 1:
                    errors.append(f"{module}: {path} is several modules in the file, which easyfn does not join")
                got = {
                    field: read(left.pop(f"{module}.{name}"))
                    for name, field in fields.items()
                    if f"{module}.{name}" in left
                }
                try:
                    adapter[path] = make(Read(module, got, shape, config))
                except (TypeError, ValueError) as error:
                    errors.append(f"{module}: {error}")
        if shared is not None and adapter and not errors:
            adapter, more = shared(adapter, config, left)
            errors += more
        if not adapter and not errors:
            errors.append(f"the file holds no {config['peft_type']} tensors that fit the model")
        if errors:
            return model, errors
        cast = lambda x: jax.device_put(x if dtype is None else x.astype(jnp.dtype(dtype)))
        once = {id(x): cast(x) for w in adapter.values() for x in arrays(w).values()}  # what is shared stays so
        placed = {
            p: dataclasses.replace(w, **{n: once[id(x)] for n, x in arrays(w).items()}) for p, w in adapter.items()
        }
        try:
            return join_lora(model, placed), []
        except ValueError as error:
            return model, [str(error)]

    return run


def _scale(of: Read) -> tuple[int, float]:
    """The rank and the scale of a module, as PEFT finds them."""
    pick = lambda patterns, default: next(
        (v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", of.module)), default
    )
    rank = pick(of.config.get("rank_pattern"), of.config.get("r", 8))
    return rank, float(pick(of.config.get("alpha_pattern"), of.config.get("alpha", 8)) / rank)


def _fits(of: Read, wanted: Mapping[str, tuple[int, ...]]) -> None:
    found = {name: tuple(x.shape) for name, x in of.got.items()}
    if found != dict(wanted):
        raise ValueError(f"the file has {found}, and a weight {of.shape} needs {dict(wanted)}")


def _make_ia3(of: Read) -> IA3:
    out, into = of.shape
    inputs = of.got["scale"].shape[0] == 1 and out != 1
    _fits(of, {"scale": (1, into) if inputs else (out, 1)})
    return IA3(None, of.got["scale"], inputs=inputs)


def _make_vera(of: Read) -> VeRA:
    _fits(of, {"lambda_b": of.shape[:1], "lambda_d": (of.config.get("r", 256),)})
    dropout, seed = float(of.config.get("vera_dropout") or 0.0), int(of.config.get("projection_prng_key") or 0)
    d, b = (of.got[name][:, None] for name in ("lambda_d", "lambda_b"))
    return VeRA(None, np.empty((0, of.shape[1])), np.empty((of.shape[0], 0)), d, b, dropout=dropout, seed=seed)


def _share(adapter: dict[str, VeRA], config: Mapping[str, Any], left: Tensors) -> tuple[dict[str, VeRA], list[str]]:
    """The projections of the file, or those that PEFT would draw again, cut for every slot."""
    out = max(w.b.shape[0] for w in adapter.values())
    into = max(w.a.shape[1] for w in adapter.values())
    rank = config.get("r", 256)
    a, b = (left.pop(f"base_model.vera_{name}", None) for name in "AB")
    if a is not None and b is not None:
        whole = (read(a), read(b))
    elif config.get("save_projection", True):
        return adapter, ["the file lacks vera_A and vera_B, which save_projection=true promises"]
    else:
        whole = projections(rank, out, into, int(config.get("projection_prng_key") or 0))
    (high, wide), (tall, low) = whole[0].shape, whole[1].shape
    if high < rank or low < rank or wide < into or tall < out:
        return adapter, [f"vera_A {whole[0].shape} and vera_B {whole[1].shape} are too small for the model's weights"]
    cut = {(w.b.shape[0], w.a.shape[1]): None for w in adapter.values()}
    pairs = {
        size: [np.asarray(x) for x in parts((whole[0][:rank], whole[1][:, :rank]), *size, whole[0].dtype)]
        for size in cut
    }
    full: Callable[[VeRA], dict[str, Any]] = lambda w: dict(
        zip(("a", "b"), pairs[w.b.shape[0], w.a.shape[1]], strict=True)
    )
    return {path: dataclasses.replace(w, **full(w)) for path, w in adapter.items()}, []


def _make_loha(of: Read) -> LoHa:
    (rank, scale), (out, into) = _scale(of), of.shape
    _fits(of, {"w1_a": (out, rank), "w1_b": (rank, into), "w2_a": (out, rank), "w2_b": (rank, into)})
    return LoHa(None, **of.got, scale=scale)


def _make_lokr(of: Read) -> LoKr:
    rank, scale = _scale(of)
    both, factor = bool(of.config.get("decompose_both")), int(of.config.get("decompose_factor") or -1)
    out, into = of.shape
    _fits(of, layout(out, into, rank, both, factor))
    return LoKr(None, **of.got, scale=scale, rank=rank)


def _holds(cls: type) -> Callable[[Any], bool]:
    return lambda model: any(type(f.weight) is cls for f in find_slots(model))


def _register(name: str, cls: type, write: Any, read: Any, *known: str) -> None:
    register_method(name, Method(_holds(cls), write, read, CHOICE | {*TRAINING, *known}))


_register("IA3", IA3, _write_ia3, _reader({"ia3_l": "scale"}, _make_ia3), "feedforward_modules")
_register(
    "VERA",
    VeRA,
    _write_vera,
    _reader(VERA, _make_vera, shared=_share),
    *("projection_prng_key", "save_projection", "vera_dropout"),
)
_register("LOHA", LoHa, _write_loha, _reader(LOHA, _make_loha), "alpha")
_register("LOKR", LoKr, _write_lokr, _reader(LOKR, _make_lokr), "alpha", "decompose_factor")
