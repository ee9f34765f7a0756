"""What families of images say in the same words: tensor names of their blocks, their config's keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.stack import one_by_one, unstack
from ..core.tree import nodes
from ..names.rules import Rule, file_name, rename
from ..nn.context import Context
from ..nn.fold import fold
from ..nn.norm import BatchNorm
from ..nn.output import Output
from ..registry.family import family_of

# How transformers' files call the parts of a block since ViT, whatever its modules call them today.
LEGACY = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
}

# And the modules, after which PEFT's adapters are named.
MODULES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}

# Keys of a backbone for detection and segmentation, and of one that a ViT is; no family reads them.
BACKBONE = ("out_features", "out_indices", "stage_names")
VIT_BACKBONE = (*BACKBONE, "apply_layernorm", "reshape_hidden_states")


def block_names(ours: str, theirs: str, parts: Mapping[str, str]) -> list[Rule]:
    """Rules for numbered blocks: `parts` of ours by the names of a file."""
    named = [rename(f"{ours}.{{i}}.{a}.{{rest}}", f"{theirs}.{{i}}.{b}.{{rest}}") for a, b in parts.items()]
    return [*named, rename(f"{ours}.{{i}}.{{rest}}", f"{theirs}.{{i}}.{{rest}}")]


def under(rules: Sequence[Rule], ours: str, theirs: str) -> list[Rule]:
    """Rules of a model for where it is a part of another: our prefix `ours`, the file's prefix `theirs`. What a layout names the
    renames read, too, so that it stays ours."""
    place = lambda rule: theirs if rule.layout is None else ours
    inner = [r._replace(ours=f"{ours}.{r.ours}", theirs=tuple(f"{place(r)}.{t}" for t in r.theirs)) for r in rules]
    return [*inner, rename(f"{ours}.{{rest}}", f"{theirs}.{{rest}}")]


def head_names(model: Any, base: type, rules: Sequence[Rule], prefix: str) -> list[Rule]:
    """Rules of a base model, or of a head that holds it in its field `model`, which files call `prefix`."""
    return list(rules) if isinstance(model, base) else under(rules, "model", prefix)


def batches_tracked(model: Any) -> dict[str, np.ndarray]:
    """How many batches made the numbers of a norm, which torch's files say beside them: nobody reads it, and it is 0."""
    rules = family_of(model).names(model)
    norms = [path for path, node in nodes(unstack(model)) if isinstance(node, BatchNorm)]
    files = (file_name(f"{path}.running_mean", rules).removesuffix("running_mean") for path in norms)
    return {f"{name}num_batches_tracked": np.zeros((), np.int64) for name in files}


# The blocks of CLIP's towers, and of all that came after.
TOWER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention.o_proj": "self_attn.out_proj",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}


def run_stages(
    stages: tuple[Any, ...], x: jax.Array, context: Context, before: Callable[[Any, jax.Array], jax.Array] | None = None
) -> tuple[jax.Array, Output]:
    """`x` `(batch, height, width, channels)` after the `layers` of all stages, each behind what `before(stage, x)` makes; and
    the output, channels first, whose hidden states are those of stages, not of layers."""
    inner = context.replace(outputs=context.outputs - {"hidden_states"})
    states, index = [x], 0
    for stage in one_by_one(stages):
        x, _, _ = fold(stage.layers, x if before is None else before(stage, x), inner, index=index)
        index += len(stage.layers)
        states.append(x)
    first = lambda x: jnp.moveaxis(x, -1, 1)
    hidden = tuple(map(first, states)) if context.wants("hidden_states") else None
    return x, Output(last_hidden_state=first(x), hidden_states=hidden)
