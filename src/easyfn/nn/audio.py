"""What models of sound are made of: frames that see each other, and a classifier of whole recordings."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, slots
from .cache.cache import order_of
from .context import Context
from .linear import Linear, declare
from .output import Output
from .seq2seq import source_segments


def frame_context(context: Context, segments: jax.Array) -> Context:
    """The context of layers over frames of sound that all see each other; `segments` `(batch, frames)`, 0 for padding."""
    order = order_of(segments)
    return context.replace(
        position_ids=order,
        segment_ids=segments,
        slots=jnp.arange(segments.shape[1], dtype=jnp.int32),
        order=order,
        cached_segment_ids=None,
        table=None,
        rope=None,
        bias=None,
        encoder=None,
        causal=False,
    )


class AudioClassifier(eqx.Module):
    """One answer for each recording: `logits` `(batch, num_labels)`, from the mean over its frames of a projection of the
    hidden states, or (`weighted`) of a learned mean of those of all layers.

    `config` has `classifier_proj_size`, `use_weighted_layer_sum` and `num_hidden_layers`.
    """

    model: Any
    layer_weights: Weight | None
    projector: Linear
    classifier: Linear
    config: Any = eqx.field(static=True)

    def __init__(self, model: Any) -> None:
        c = model.config
        self.model = model
        self.layer_weights = declare(c.num_hidden_layers + 1) if c.use_weighted_layer_sum else None
        self.projector = Linear(c.hidden_size, c.classifier_proj_size, True, axes=(None, "embed"))
        self.classifier = Linear(c.classifier_proj_size, c.num_labels, True, role="head")
        self.config = c

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        asked = context.outputs
        if self.layer_weights is not None:
            context = context.replace(outputs=asked | {"hidden_states"})
        out = self.model(context, cache, **inputs)
        hidden = out.last_hidden_state
        if self.layer_weights is not None:
            share = jax.nn.softmax(dense(self.layer_weights).astype(jnp.float32))
            hidden = sum(share[i] * x for i, x in enumerate(out.hidden_states)).astype(hidden.dtype)
        hidden = self.projector(hidden).astype(jnp.float32)
        real = source_segments(self.model, context.segment_ids, hidden.shape[1])[..., None] > 0
        mean = jnp.sum(jnp.where(real, hidden, 0.0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
        logits = self.classifier(mean.astype(out.last_hidden_state.dtype))
        return out.replace(logits=logits, hidden_states=out.hidden_states if "hidden_states" in asked else None)


@slots.register(AudioClassifier)
def _(model: AudioClassifier) -> dict[str, Slot]:
    even = lambda key, shape, dtype: jnp.full(shape, 1.0 / shape[0], dtype)
    return {"layer_weights": Slot("other", (None,), even)}
