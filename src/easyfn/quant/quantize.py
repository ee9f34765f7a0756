"""`quantize` and `dequantize`: weight formats into the slots of a model, and out again."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.habits import no_path, taught
from ..core.slots import Found, find_slots, map_slots, select_slots
from ..core.trainable import is_adapter
from ..core.tree import is_abstract, is_leaf, join, lift, nodes, rebuild
from ..core.verb import node_verb
from ..core.weight import Weight, dense, format_of
from .config import METHODS, QuantConfig
from .fake import Fake

REACHED = ("linear", "experts", "head", "embedding", "router")  # by some pattern; "all-linear" is the first two
NAMED = ("head", "embedding", "router")  # only by a pattern that needs their name

Config = QuantConfig | str | Sequence[QuantConfig | str]


@node_verb
@taught
def quantize(model: Any, cfg: Config) -> Any:
    """`model` with the selected weights in a smaller format.

    `cfg` is a `QuantConfig`, the name of a method (`"8bit"`, `"nf4"`, ...), or a list of them: each slot goes to the
    first whose pattern selects it. Works on dense, stacked, sharded and abstract models, eagerly and under `jit`.

    Raises `ValueError`, the model untouched, for a pattern that selects nothing or nothing that an earlier config
    has left, for a weight that is quantized already, for NaN or infinite weights (of concrete models), and for a
    `group_size` that does not fit. Under an adapter its base is quantized, as if it had been before the adapter came. The
    weights of `ef.fake_quantize` are rounded for good, with the config that they were trained for.

    ```python
    import easyfn as ef
    model = ef.testing.tiny(hidden_size=64, intermediate_size=128)
    small = ef.quantize(model, [ef.QuantConfig("8bit", pattern="q_proj|k_proj"), ef.QuantConfig("nf4")])
    assert ef.is_quantized(small) and not ef.is_quantized(model)
    assert ef.format_of(small.model.layers[0].mlp.up_proj.weight) == "nf4/64"
    ```
    """
    chosen = assign(model, cfg)
    check(model, chosen)

    def how(path: str, slot: Any, weight: Any) -> Any:
        if path not in chosen:
            return weight
        config = chosen[path]

        def encode(base: Any) -> Weight:
            return _encode(config, path, _trained(path, base, config) if isinstance(base, Fake) else base)

        return _on_base(weight, encode)

    return map_slots(quantize, model, how)


def _on_base(weight: Any, change: Callable[[Any], Any]) -> Any:
    """`weight` with `change(base)` in the place of what lies under all of its adapters."""
    if not is_adapter(weight):
        return change(weight)
    return dataclasses.replace(weight, base=_on_base(weight.base, change))


@node_verb
def fake_quantize(model: Any, cfg: Config) -> Any:
    """`model` for quantization-aware training: the selected weights stay floats, and products see them rounded.

    `cfg` is what `ef.quantize` takes. The float weights are trainable (`ef.trainable`), the gradient passes straight through
    the rounding, and so training finds weights that lose less when they are rounded for good:
    `ef.quantize(model, cfg)`, with the same `cfg`, is the quantized model and answers as this one did.
    `ef.dequantize(model)` has the rounded weights as plain arrays. Methods that round activations (`a8bit`, `a8q`, `a4q`)
    round them here too.

    Raises what `ef.quantize` raises.

    ```python
    import easyfn as ef, jax
    model = ef.testing.tiny(hidden_size=64, intermediate_size=128)
    aware = ef.fake_quantize(model, "int4")
    weight = aware.model.layers[0].mlp.up_proj.weight
    assert ef.describe(weight) == "fake int4" and ef.trainable(aware).model.layers[0].mlp.up_proj.weight.base
    small = ef.quantize(aware, "int4")                         # after training
    ids = jax.numpy.array([[1, 2, 3]])
    assert jax.numpy.allclose(ef.forward(small, ids).logits, ef.forward(aware, ids).logits, atol=1e-5)
    ```
    """
    chosen = assign(model, cfg)
    check(model, chosen, "fake_quantize")
    if late := [c for c in chosen.values() if c.calibration is not None]:
        raise ValueError(
            f"fake_quantize: training chooses the codes, not {late[0].calibration!r}: leave calibration out"
        )

    def how(path: str, slot: Any, weight: Any) -> Any:
        if path not in chosen:
            return weight
        config = _method_only(chosen[path])
        try:
            jax.eval_shape(config.encode, jax.ShapeDtypeStruct(weight.shape, weight.dtype))
        except ValueError as error:
            raise ValueError(f"fake_quantize: {path}: {error}") from None
        return Fake(weight, config)

    return map_slots(fake_quantize, model, how)


def assign(model: Any, cfg: Config) -> dict[str, QuantConfig]:
    """Which config each slot's path gets. A config that gets none is an error: a typo must not pass for a choice."""
    each: Sequence[Any] = cfg if isinstance(cfg, (list, tuple)) else [cfg]
    if wrong := [c for c in each if not isinstance(c, (str, QuantConfig))]:
        raise TypeError(
            f"quantize takes an ef.QuantConfig, the name of a method ({', '.join(METHODS)}), or a list of these, "
            f"not {wrong[0]!r}"
        )
    configs = [QuantConfig(c) if isinstance(c, str) else c for c in each]
    if not configs:
        raise ValueError("quantize: an empty list of configs")
    chosen: dict[str, QuantConfig] = {}
    for config in configs:
        found = _select(model, config)
        new = [f.path for f in found if f.path not in chosen]
        if not new:
            raise ValueError(
                f"quantize: {config} is unused: all {len(found)} weights that it selects, {found[0].path} first, "
                "are taken by configs before it. The first match wins: put the special ones first."
            )
        chosen.update(dict.fromkeys(new, config))
    return chosen


def _select(model: Any, config: QuantConfig) -> list[Found]:
    pattern = config.pattern
    found = select_slots("quantize", model, pattern, REACHED)
    if callable(pattern) or pattern == "all-linear":
        return found
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    kept = [f for f in found if f.slot.role not in NAMED or any(_names(p, f) for p in patterns)]
    if not kept:
        name = found[0].layer.rpartition(".")[2]
        raise ValueError(
            f"quantize: the pattern {pattern!r} reaches only {', '.join(f.path for f in found[:4])}: heads, "
            f"embeddings and routers lose much to save little: they must be named. To insist, write pattern={name!r}."
        )
    return kept


def _names(pattern: str, found: Found) -> bool:
    """Whether a pattern asks for this very layer: it no longer matches when the layer's own name is struck out."""
    above = found.layer.rpartition(".")[0]
    field = found.path[len(found.layer) :]
    anonymous = join(above, "q7x") + field
    return bool(re.search(pattern, found.path)) and not re.search(pattern, anonymous)


def check(model: Any, chosen: dict[str, QuantConfig], verb: str = "quantize") -> None:
    """Raises for weights that cannot be quantized: quantized already, adapted, NaN or infinite."""
    broken: list[str] = []
    for path, slot, weight in ((f.path, f.slot, f.weight) for f in find_slots(model, REACHED)):
        if path not in chosen:
            continue
        while is_adapter(weight) and verb == "quantize":
            weight = weight.base
        if isinstance(weight, Fake) and verb == "quantize":
            weight = _trained(path, weight, chosen[path])
        if is_quantized(weight):
            raise ValueError(
                f"{verb}: {path} is quantized already ({_format(weight)}); call ef.dequantize(model) first"
            )
        if not is_leaf(weight) or not jnp.issubdtype(weight.dtype, jnp.floating):
            raise ValueError(
                f"{verb}: {path} ({slot.role}) holds a {type(weight).__name__}, not a plain floating point array. "
                f"Call ef.{verb} before you add adapters: ef.apply_lora(ef.{verb}(model, ...), ...)."
            )
        concrete = not is_abstract(weight) and not isinstance(weight, jax.core.Tracer)
        if concrete and not bool(_all_finite(weight)):
            broken.append(path)
    if broken:
        raise ValueError(
            f"{verb}: NaN or infinite values in {', '.join(broken[:8])}{', ...' if len(broken) > 8 else ''}; "
            "a scale made of them would spoil whole rows"
        )


def _trained(path: str, weight: Fake, config: QuantConfig) -> Any:
    """The float array under a weight of quantization-aware training, which `config` must be that of."""
    if weight.cfg != _method_only(config):
        raise ValueError(
            f"quantize: {path} was trained for {weight.cfg}, not for {config}. Quantize with the config of "
            "ef.fake_quantize, or start from the rounded weights: ef.dequantize(model)"
        )
    return weight.base


@jax.jit
def _all_finite(weight: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(weight))


def _format(weight: Any) -> str:
    return next(name for _, node in nodes(weight) if (name := format_of(node)) is not None)


@functools.partial(jax.jit, static_argnums=0)
def _encode_array(config: QuantConfig, weight: Any) -> Weight:
    return config.encode(weight)


def _encode(config: QuantConfig, path: str, weight: Any) -> Weight:
    if config.calibration is not None:
        raise ValueError(
            f"quantize: {path}: calibration={config.calibration!r} needs data: ef.calibrate(model, batches, cfg)"
        )
    try:
        run: Callable[..., Any] = functools.partial(_encode_array, _method_only(config))
        return lift(run)(weight)
    except ValueError as error:
        raise ValueError(f"quantize: {path}: {error}") from None


def _method_only(config: QuantConfig) -> QuantConfig:
    """The config without its pattern, which may not be hashable and would compile one format many times."""
    return dataclasses.replace(config, pattern="all-linear")


def encoder(model: Any, cfg: Config) -> dict[str, Callable[[Any], Weight]]:
    """For `ef.load(quantize=cfg)`: by path, the function from dense array to weight of every slot that gets one.

    Stacked or not: a function takes the array of one layer or of many.
    """
    return {path: functools.partial(encode_checked, config, path) for path, config in assign(model, cfg).items()}


def encode_checked(config: QuantConfig, path: str, array: Any) -> Weight:
    """One dense array in the format of `config`; NaN or infinite entries are an error that names `path`."""
    if not is_abstract(array) and not isinstance(array, jax.core.Tracer) and not bool(_all_finite(array)):
        raise ValueError(f"quantize: NaN or infinite values in {path}")
    return _encode(config, path, array)


def dequantize(model: Any, dtype: Any = None) -> Any:
    """`model` with every quantized weight as a plain array, in the dtype it had, or in `dtype`. Adapters stay.

    Raises `ValueError` if nothing is quantized.

    ```python
    import easyfn as ef, jax, jax.numpy as jnp
    linear = ef.init(ef.nn.Linear(64, 8), key=jax.random.key(0))
    again = ef.dequantize(ef.quantize(linear, "8bit"))
    assert jnp.abs(again.weight - linear.weight).max() < 1e-3
    ```
    """
    no_path(model)
    count = 0

    def plain(weight: Any) -> Any:
        return dense(weight) if dtype is None else dense(weight).astype(dtype)

    def go(node: Any) -> Any:
        nonlocal count
        if format_of(node) is not None:
            count += 1
            return lift(plain)(node)
        return rebuild(node, lambda _, child: go(child))

    new = go(model)
    if not count:
        raise ValueError("dequantize: no weight of this model is quantized")
    return new


def is_quantized(model: Any) -> bool:
    """Whether any weight of a model (or a weight itself) is in a quantized format."""
    return any(format_of(node) is not None for _, node in nodes(model))
