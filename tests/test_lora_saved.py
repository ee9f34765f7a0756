"""What PEFT trains besides `a` and `b`: whole weights, biases, rows of a table; and a pytree in any slot."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import easyfn as ef
from cases import CASES, tokens
from easyfn._tree import replace


class Wrapped(eqx.Module):
    """A weight that only says what it stands for: it has no `shape`, no `dtype`, no `astype`."""

    inner: ef.Weight


@ef.dense.register(Wrapped)
def _(w):
    return w.inner


@ef.dot.register(Wrapped)
def _(w, x, *, dtype=None):
    return ef.dot(w.inner, x, dtype=dtype)


@ef.take.register(Wrapped)
def _(w, ids):
    return ef.take(w.inner, ids)


@ef.ragged_dot.register(Wrapped)
def _(w, x, group_sizes):
    return ef.ragged_dot(w.inner, x, group_sizes)


@ef.shape_of.register(Wrapped)
def _(w):
    return ef.shape_of(w.inner)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c.variant or c.task != "causal-lm"])
def test_a_pytree_may_sit_in_every_slot(name):
    """The program is the same one, whatever role the slot has: `dense` of an array costs nothing."""
    case = CASES[name]
    ids = jnp.asarray(tokens(pad=False)[0])
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if case.encoder_decoder else {})}
    model = case.model()
    found = ef.find_slots(model)
    wrapped = replace(model, {f.path: Wrapped(f.weight) for f in found})
    assert {"norm"} < {f.slot.role for f in ef.find_slots(wrapped)} and len(ef.find_slots(wrapped)) == len(found)
    program = lambda m: str(jax.make_jaxpr(lambda m: eqx.filter(ef.forward(m, **inputs), eqx.is_array))(m))
    assert program(wrapped) == program(model)
