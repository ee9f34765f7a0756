"""Recurrent layers that a program runs whole, as the families do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ....core.weight import dot
from ....nn.recurrent.delta import delta_chunks
from ....nn.recurrent.kda import channel_delta_chunks
from ....nn.recurrent.state import Documents
from .table import drawn, torch_op


@torch_op.register("easyfn.delta_rule.default")
def delta_rule(q: Any, k: Any, v: Any, g: Any, beta: Any) -> Any:
    """From an empty state, each row one document: a module has set to zero what its padding says."""
    batch, length = q.shape[:2]
    if not v.size:
        return v
    real = jnp.ones((batch, length), bool)
    documents = Documents(real, jnp.zeros((batch, length), jnp.int32), jnp.ones((batch,), jnp.int32))
    state = jnp.zeros((batch, *k.shape[2:], v.shape[-1]), jnp.float32)
    rule = delta_chunks if g.ndim == 3 else channel_delta_chunks
    return rule(q, k, v, g, beta, documents, state)[0]


# ---- the recurrent layers of torch: the inputs of all steps as one product, then a scan over the steps


def _lstm(given: Any, state: Any, by_state: Callable[[Any], Any]) -> tuple[Any, ...]:
    h, c = state
    i, f, g, o = jnp.split(given + by_state(h), 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru(given: Any, state: Any, by_state: Callable[[Any], Any]) -> tuple[Any, ...]:
    (h,) = state
    (r, z, n), (hr, hz, hn) = (jnp.split(v, 3, axis=-1) for v in (given, by_state(h)))
    z = jax.nn.sigmoid(z + hz)
    return ((1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn) + z * h,)


def _one_direction(
    cell: Callable[..., Any], x: Any, state: Any, weights: Sequence[Any], biased: bool, back: bool
) -> Any:
    """`x` of shape `(time, batch, in)`; the weights of torch in their order, of which the last may project the state."""
    w_in, w_state, b_in, b_state = (*weights[:4], None, None)[:4] if biased else (*weights[:2], None, None)
    narrow = weights[-1] if len(weights) == (5 if biased else 3) else None
    plus = lambda y, bias: y if bias is None else y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))

    def step(state: Any, given: Any) -> Any:
        new = cell(given, state, lambda h: plus(dot(w_state, h), b_state))
        new = new if narrow is None else (dot(narrow, new[0]), *new[1:])
        return new, new[0]

    last, out = lax.scan(step, state, plus(dot(w_in, x), b_in), reverse=back)
    return out, last


def _layers(cell: Callable[..., Any], x: Any, states: Sequence[Any], weights: Sequence[Any], biased: bool, layers: int,
            dropout: float, train: bool, both_ways: bool, batch_first: bool) -> tuple[Any, ...]:  # fmt: skip
    """The outputs, and the last state of every layer and direction."""
    drawn(bool(train and dropout and layers > 1))
    ways = 2 if both_ways else 1
    each = len(weights) // (layers * ways)
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    ends = []
    for layer in range(layers):
        outs = []
        for n in range(layer * ways, (layer + 1) * ways):
            first = tuple(state[n].astype(x.dtype) for state in states)
            own = weights[n * each : (n + 1) * each]
            out, last = _one_direction(cell, x, first, own, biased, n % ways == 1)
            outs.append(out)
            ends.append(last)
        x = jnp.concatenate(outs, axis=-1)
    return (jnp.swapaxes(x, 0, 1) if batch_first else x, *(jnp.stack(s) for s in zip(*ends, strict=True)))


@torch_op.register("aten.lstm.input", "easyfn.lstm.default")
def lstm(x: Any, states: Sequence[Any], weights: Sequence[Any], *options: Any) -> tuple[Any, ...]:
    return _layers(_lstm, x, states, weights, *options)


@torch_op.register("aten.gru.input", "easyfn.gru.default")
def gru(x: Any, state: Any, weights: Sequence[Any], *options: Any) -> tuple[Any, ...]:
    return _layers(_gru, x, (state,), weights, *options)


for _name, _squash in {"tanh": jnp.tanh, "relu": jax.nn.relu}.items():
    torch_op.register(f"aten.rnn_{_name}.input", f"easyfn.rnn_{_name}.default")(
        lambda x, state, weights, *options, _s=_squash: _layers(
            lambda given, state, by_state: (_s(given + by_state(state[0])),), x, (state,), weights, *options
        )
    )
