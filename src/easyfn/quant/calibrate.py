"""`calibrate`: quantization that looks at data, for any model: what enters each weight is observed, then it is rounded."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..core.slots import Found, find_slots
from ..core.tree import expand, is_abstract, replace
from ..core.weight import Weight, format_of, shape_of
from ..inspect.observe import observe, second_moment
from ..tasks.seq2seq_lm import decoder_inputs
from ..tasks.task import task
from .awq_search import awq_scales, smooth_scales
from .config import CALIBRATIONS, QuantConfig
from .gptq_solve import gptq_codes
from .grouped import Grouped
from .quantize import REACHED, Config, assign, check, encode_checked

Statistics = dict[str, jax.Array]


class Calibration(NamedTuple):
    """What a calibration observes (as `ef.observe` takes it), and how it makes a weight of what was seen."""

    encode: Callable[[jax.Array, Statistics, QuantConfig], Weight]
    statistic: Callable[[jax.Array, jax.Array], Statistics]
    combine: Callable[[jax.Array, jax.Array], jax.Array]


def calibration(
    name: str,
    statistic: Callable[[jax.Array, jax.Array], Statistics] = second_moment,
    combine: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
) -> Callable[[Any], Any]:
    """Names a calibration for `QuantConfig.calibration`; decorates `encode(w, seen, cfg) -> weight`.

    `w` is one dense matrix `(out, in)`, traced; `seen` the statistic of its inputs (see [`easyfn.observe`][]). Layers and
    experts come one by one. `cfg.encode(w)` is what the method makes of `w` without data.

    ```python
    import easyfn as ef, jax, jax.numpy as jnp
    from easyfn.quant import CALIBRATIONS, calibration

    @calibration("only_what_is_used")
    def encode(w, seen, cfg):
        return cfg.encode(jnp.where(jnp.diagonal(seen["square"])[None] > 0, w, 0.0))

    assert ef.QuantConfig("8bit", calibration="only_what_is_used")
    del CALIBRATIONS["only_what_is_used"]
    ```
    """

    def decorate(encode: Any) -> Any:
        if name in CALIBRATIONS:
            raise ValueError(f"the calibration {name!r} is registered already")
        CALIBRATIONS[name] = Calibration(encode, statistic, combine)
        return encode

    return decorate


def largest(rows: jax.Array, counts: jax.Array) -> Statistics:
    """The statistic `{"peak": the largest magnitude of each input}`, `(in,)`; combined by `jnp.maximum`."""
    return {"peak": jnp.max(jnp.where(counts[:, None] > 0, jnp.abs(rows.astype(jnp.float32)), 0.0), axis=0)}


@calibration("gptq")
def _(w: jax.Array, seen: Statistics, cfg: QuantConfig) -> Weight:
    like = cfg.encode(w)
    if not isinstance(like, Grouped):
        raise ValueError(
            f"gptq chooses integer codes in groups (int4, a4q, ...), and {cfg.method} stores {format_of(like)}"
        )
    return gptq_codes(w, seen["square"], like, act_order=cfg.act_order)


@calibration("awq")
def _(w: jax.Array, seen: Statistics, cfg: QuantConfig) -> Weight:
    return awq_scales(w, seen["square"], _smoothed(cfg, w))


@calibration("smooth", largest, jnp.maximum)
def _(w: jax.Array, seen: Statistics, cfg: QuantConfig) -> Weight:
    like = _smoothed(cfg, w)
    if getattr(like, "activations", None) is None:
        raise ValueError(
            f"smooth helps methods that round activations (a8bit, a8q, a4q), and {cfg.method} does not; use awq"
        )
    return smooth_scales(w, seen["peak"], like)


def _smoothed(cfg: QuantConfig, w: jax.Array) -> Any:
    like = cfg.encode(w)
    if not hasattr(like, "smooth"):
        raise ValueError(
            f"{cfg.calibration} needs a format that keeps a scale for each input (int4, a4q, a8bit, ...), and "
            f"{cfg.method} stores {format_of(like)}"
        )
    return like


def calibrate(model: Any, batches: Iterable[Any], cfg: Config, *, sequential: bool = False, memory: int = 2**32) -> Any:
    """`model` quantized as `ef.quantize(model, cfg)` does, with the codes chosen on data.

    **Arguments**

    - `batches`: dicts as [`easyfn.compute_loss`][] takes (labels are not needed, but where a decoder reads them), or
      arrays of token ids `(batch, seq)`. A hundred rows of a few hundred tokens are usual. Padding never counts, nor does
      anything that the outputs do not depend on.
    - `cfg`: as for `quantize`. `QuantConfig.calibration` names how: `"gptq"` (default for integer codes in groups),
      `"awq"`, or `"smooth"` (default for `a8bit`). Where a list has methods that know no calibration (`nf4`, `8bit`), their
      weights are quantized as ever.
    - `sequential`: layer by layer, each seeing what the layers before it, quantized already, put out, as GPTQ's authors
      do. One pass over the data for each layer; a stacked model must be unstacked.
    - `memory`: bytes that the statistics may take, `4 * in * in` for a weight of `in` inputs. More than fits at once
      takes several passes over the data. A pass itself needs what one training step with `remat="full"` needs, without
      the gradients of the weights.

    A weight (or an expert) that no row reached is rounded to nearest. Raises `ValueError`, the model untouched, where
    `quantize` does, without batches, and where the data make NaN or infinite inputs.

    ```python
    import easyfn as ef, jax
    model = ef.testing.tiny(hidden_size=64, intermediate_size=128)
    ids = jax.random.randint(jax.random.key(1), (4, 32), 0, 64)
    small = ef.calibrate(model, [ids], ef.QuantConfig("int4", 32, calibration="gptq"))
    assert ef.format_of(small.model.layers[0].mlp.up_proj.weight) == "int4/32"
    ```
    """
    if is_abstract(model):
        raise ValueError("calibrate: the model is abstract: there are no numbers to run data through; use ef.quantize")
    data = [_inputs(model, batch) for batch in batches]
    if not data:
        raise ValueError("calibrate: there are no batches; give token ids (batch, seq), or dicts of inputs")
    chosen = assign(model, cfg)
    check(model, chosen, "calibrate")
    found = {f.path: f for f in find_slots(model, REACHED) if f.path in chosen}
    configs = {path: _settled(chosen[path], f) for path, f in found.items()}
    mine = [f for path, f in found.items() if configs[path].calibration is not None]
    if not mine:
        methods = ", ".join(sorted({c.method for c in configs.values()}))
        raise ValueError(
            f"calibrate: {methods} cannot be chosen on data; use ef.quantize(model, cfg), or int4 or a8bit"
        )
    new = {p: encode_checked(c, p, found[p].weight) for p, c in configs.items() if c.calibration is None}
    current = model
    for group in _passes(mine, sequential, memory):
        for name in dict.fromkeys(str(configs[f.path].calibration) for f in group):
            here = [f for f in group if configs[f.path].calibration == name]
            seen = _observe(current, data, CALIBRATIONS[name], {f.path for f in here})
            new |= {f.path: _encode(configs[f.path], f, seen.pop(f.path)) for f in here}
        if sequential:
            current = replace(current, {f.path: new[f.path] for f in group})
    return replace(model, new)


def _inputs(model: Any, batch: Any) -> dict[str, Any]:
    """A batch as `forward` takes it: a decoder without input of its own reads the labels, as in `compute_loss`."""
    given = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    labels = given.pop("labels", None)
    own = any(given.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))
    if labels is not None and not own and task(model) == "seq2seq-lm":
        labels = jnp.asarray(labels)
        given["decoder_input_ids"] = decoder_inputs(model, labels)
        given["decoder_attention_mask"] = lax.cummax((labels != -100).astype(jnp.int32), axis=1, reverse=True)
    return given


def _settled(config: QuantConfig, found: Found) -> QuantConfig:
    """The config with its calibration, and without its pattern: the default is what the format can make use of.

    A weight that the method cannot hold is an error here, before any data is seen.
    """
    try:
        like = jax.eval_shape(config.encode, jax.ShapeDtypeStruct(shape_of(found.weight)[-2:], found.weight.dtype))
    except ValueError as error:
        raise ValueError(f"calibrate: {found.path}: {error}") from None
    if config.calibration is None and config.refine is None:
        if isinstance(like, Grouped) and like.bits < 8:
            return _for(config, "gptq")
        smooth = hasattr(like, "smooth") and getattr(like, "activations", None) is not None
        return _for(config, "smooth" if smooth else None)
    return _for(config, config.calibration)


def _for(config: QuantConfig, name: str | None) -> QuantConfig:
    return dataclasses.replace(config, pattern="all-linear", calibration=name)


def _passes(found: list[Found], sequential: bool, memory: int) -> list[list[Found]]:
    """What is observed in one pass over the data."""
    passes: list[list[Found]] = []
    room, last = 0, None
    for f in found:
        if sequential and expand(f.path) != [f.path]:
            raise ValueError(
                f"calibrate: {f.path} is a stacked run, of which sequential sees no single layer: ef.unstack"
            )
        *lead, _, width = shape_of(f.weight)
        size = 4 * math.prod(lead) * width * width
        layer = next((i for i, part in enumerate(f.path.split(".")) if part.isdigit()), None)
        place = None if layer is None else f.path.split(".")[: layer + 1]
        if not passes or size > room or (sequential and place != last):
            passes.append([])
            room = memory
        passes[-1].append(f)
        room, last = room - size, place
    return passes


def _observe(model: Any, data: list[Any], how: Calibration, paths: set[str]) -> dict[str, Any]:
    singles = {single for path in paths for single in expand(path)}
    which = lambda path, _: path in singles
    return observe(model, data, how.statistic, pattern=which, roles=REACHED, combine=how.combine, reached=True)


def _encode(config: QuantConfig, found: Found, seen: Statistics) -> Weight:
    if not all(bool(jnp.all(jnp.isfinite(part))) for part in jax.tree.leaves(seen)):
        raise ValueError(f"calibrate: NaN or infinite numbers enter {found.path} on these batches")
    try:
        return jax.block_until_ready(_encode_array(config, found.weight, seen))
    except ValueError as error:
        raise ValueError(f"calibrate: {found.path}: {error}") from None


@functools.partial(jax.jit, static_argnums=0)
def _encode_array(config: QuantConfig, w: jax.Array, seen: Statistics) -> Weight:
    encode = CALIBRATIONS[config.calibration or ""].encode
    lead = w.shape[:-2]
    flat = jax.tree.map(lambda part: part.reshape(-1, *part.shape[len(lead) :]), (w, seen))
    if not lead:
        return encode(w, seen, config)
    each = lax.map(lambda one: encode(*one, config), flat)
    return jax.tree.map(lambda part: part.reshape(*lead, *part.shape[1:]), each)
