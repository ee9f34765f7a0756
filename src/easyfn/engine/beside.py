"""What a request brings beside its token ids, images as a rule: it enters once, with the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..inputs.checks import aligned, checked, fits
from ..inputs.context import make_context, positions
from ..inputs.statement import inputs as inputs_of
from ..nn.cache.cache import CrossKV, layer_cache

_TOKENS = ("input_ids", "inputs_embeds", "logits_to_keep")


def reads_images(model: Any) -> bool:
    """Whether a model takes images with its tokens."""
    stated = inputs_of(model)
    return stated.main[:1] == ("input_ids",) and any(one.kind == "image" for one in stated.fields.values())


def apart(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The model's own inputs among the `options`, which keep the rest: of a model that reads images."""
    if not reads_images(model):
        return {}
    names = inputs_of(model).fields
    given = {name: options.pop(name) for name in list(options) if name in names and name not in _TOKENS}
    return {name: value for name, value in given.items() if value is not None}


def _reads_across(model: Any) -> bool:
    """Whether layers keep what images say in a cache beside that of the tokens (Llama 3.2 Vision)."""
    across = lambda node: isinstance(node, CrossKV)
    kept = jax.eval_shape(lambda: layer_cache(model, 1, 1, jnp.float32))
    return any(map(across, jax.tree.leaves(kept, is_leaf=across)))


def held(model: Any, ids: np.ndarray, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inputs as arrays, that fit the prompt `ids` `(tokens,)`. `ValueError` for those that do not: a step of the engine is
    for all requests, and must not fail for one."""
    if not given:
        return {}
    if _reads_across(model):
        raise ValueError(
            f"submit: layers of this model read {', '.join(sorted(given))} apart from its tokens, and an engine has no room for "
            "their keys; use ef.generate(model, ids, pixel_values=...), or submit text alone"
        )
    stated = inputs_of(model)
    try:
        found = checked(stated, {"input_ids": ids[None], **given}, model)
    except TypeError as error:
        raise ValueError(str(error)) from error
    aligned(stated, found)
    fits(model, found)
    return {name: np.asarray(value) for name, value in found.items() if name != "input_ids"}


def moved(model: Any, ids: np.ndarray, given: Mapping[str, Any]) -> int:
    """How much larger the position of the token after a prompt is than the number of its tokens: an image counts as many as
    its longer side is long (Qwen2-VL)."""
    inner = model
    while not positions.knows(type(inner)) and hasattr(inner, "model"):
        inner = inner.model
    if not positions.knows(type(inner)):
        return 0
    context, _ = make_context((1, len(ids)), position_axes=inputs_of(model).position_axes)
    shown = {name: jnp.asarray(value) for name, value in given.items()}
    found = positions(inner, context, {"input_ids": jnp.asarray(ids)[None], **shown}, 0)
    return int(jnp.max(found)) + 1 - len(ids)


def padded(model: Any, given: Mapping[str, np.ndarray], ids: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """The inputs for a piece of `size` tokens: those that go with the tokens `ids` end with zeros, as the tokens do."""
    by_token = aligned(inputs_of(model), {"input_ids": ids[None], **given}) if given else set()
    more = lambda x: np.pad(x, [(0, 0), (0, size - len(ids)), *[(0, 0)] * (x.ndim - 2)])
    return {name: more(value) if name in by_token else value for name, value in given.items()}
