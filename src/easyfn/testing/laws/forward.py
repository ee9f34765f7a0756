"""Laws of the forward pass: compilation, batches, time, padding, documents, caches, generation."""

from __future__ import annotations

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef

from ..case import ROWS, Case, forward, per_token, same
from .law import law


def _decoder_only(case: Case) -> bool:
    return case.tokens == "input_ids"


def _causal(case: Case) -> bool:
    return case.causal and _decoder_only(case)


@law()
def same_config_same_hash(case: Case) -> None:
    """An equal config is the same static value: nothing compiles again for a copy of it."""
    config = case.model.config
    twin = copy.deepcopy(config)
    assert hash(twin) == hash(config) and twin == config, "a copy of the config is another static value"
    first, second = (jax.tree.structure(case.make(case.key)) for _ in range(2)) if case.make else (0, 0)
    assert first == second, "two models of one config have different structures"


@law()
def abstract_is_concrete(case: Case) -> None:
    """A model without numbers has the shapes, dtypes and answers' shapes of the model with numbers."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), case.model)
    built = jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), ef.params(ef.abstract(case.model.config, task=ef.task(case.model)))
    )
    assert built == {k: (v.shape, v.dtype) for k, v in ef.params(case.model).items()}, "the abstract model differs"
    got = eqx.filter_eval_shape(lambda m: forward(m, case.given())[0], shapes)
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in case.answers(case.model).items()}


@law()
def jit_is_eager(case: Case) -> None:
    """Compiled and uncompiled are the same function."""
    same(case, case.answers(case.model), forward(case.model, case.given())[0], "jit against eager")


@law()
def vmap_is_loop(case: Case) -> None:
    """The rows of a batch do not know of each other: `jax.vmap` over single rows is the batch."""
    single = lambda row: forward(case.model, jax.tree.map(lambda a: a[None], row))[0]
    got = jax.tree.map(lambda a: a[:, 0], jax.jit(jax.vmap(single))(case.given()))
    same(case, got, case.answers(case.model), "vmap over rows against the batch")


@law(lambda case: case.causal)
def future_does_not_leak(case: Case) -> None:
    """Changing a token changes nothing before it, and something after."""
    ids = case.given()[case.tokens]
    other = ids.at[:, case.half].set((ids[:, case.half] + 1) % case.model.config.vocab_size)
    got, want = (per_token(case.answers(case.model, **{case.tokens: i})) for i in (other, ids))
    before = lambda answers: {k: v[:, : case.half] for k, v in answers.items()}
    same(case, before(got), before(want), "a token looked into the future")
    assert any(np.any(got[k][:, case.half :] != want[k][:, case.half :]) for k in got), (
        "a changed token changed nothing after it"
    )


@law(_decoder_only)
def padding_is_invisible(case: Case) -> None:
    """A row gives the same answers alone, padded on the right and padded on the left, whatever the padding holds."""
    alone = case.run(case.model, case.moved(slice(0, case.half), slice(0, case.half), case.half))[0]
    for side, place in (("right", slice(0, case.half)), ("left", slice(case.half, case.length))):
        padded = case.run(case.model, case.moved(slice(0, case.half), place, case.length))[0]
        tokens = per_token(padded)
        got = {name: value[:, place] if name in tokens else value for name, value in padded.items()}
        same(case, got, alone, f"padding on the {side} changed the answers")


@law(_decoder_only)
def documents_do_not_see_each_other(case: Case) -> None:
    """Documents packed in a row with `segment_ids` are answered as if each stood alone."""
    segments = jnp.repeat(jnp.array([[1, 2]]), case.half, axis=1).repeat(ROWS, axis=0)
    together = per_token(case.answers(case.model, segment_ids=segments))
    for part in (slice(0, case.half), slice(case.half, case.length)):
        alone = per_token(case.run(case.model, case.moved(part, slice(0, case.half), case.half))[0])
        same(case, {k: v[:, part] for k, v in together.items()}, alone, "a document saw another one")


@law(_causal)
def cache_is_no_cache(case: Case) -> None:
    """Token by token, chunk by chunk or all at once: the same answers."""
    inputs, want = case.given(), per_token(case.answers(case.model))
    for sizes in ([case.half, case.half], [case.half] + [1] * case.half):
        cache, parts, start = ef.init_cache(case.model, ROWS, 2 * case.length), [], 0
        for size in sizes:
            chunk = {name: value[:, start : start + size] for name, value in inputs.items()}
            got, cache = case.run(case.model, chunk, cache)
            parts.append(per_token(got))
            start += size
        joined = {name: np.concatenate([p[name] for p in parts], axis=1) for name in want}
        same(case, joined, want, f"a cache filled in steps of {sizes}")


@law(_causal)
def left_padding_is_invisible_to_the_cache(case: Case) -> None:
    """Tokens decoded after a prompt padded on the left are those decoded after the prompt alone."""
    same(
        case,
        _decoded(case, slice(case.half, case.length), case.length),
        _decoded(case, slice(0, case.half), case.half),
        "decoding after padding",
    )


@law(_causal)
def right_padding_is_invisible_to_the_cache(case: Case) -> None:
    """Tokens decoded after a prompt padded on the right are those decoded after the prompt alone."""
    same(
        case,
        _decoded(case, slice(0, case.half), case.length),
        _decoded(case, slice(0, case.half), case.half),
        "decoding after padding",
    )


def _decoded(case: Case, place: slice, length: int) -> dict[str, np.ndarray]:
    """The answers to the second token after a prompt that takes `place` in rows of `length`."""
    prompt = case.moved(slice(0, case.half), place, length)
    _, cache = case.run(case.model, prompt, ef.init_cache(case.model, ROWS, 2 * case.length))
    for t in (case.half, case.half + 1):
        got, cache = case.run(case.model, {name: value[:, t : t + 1] for name, value in case.given().items()}, cache)
    return per_token(got)


@law(_causal)
def generate_is_step_by_step(case: Case) -> None:
    """Greedy generation is the most likely token, one after the other, by whole forward passes."""
    prompt = case.given()["input_ids"][:, : case.half]
    made = np.asarray(ef.generate(case.model, prompt, max_new_tokens=case.half, do_sample=False).sequences)
    assert made.shape[1] <= case.length and np.array_equal(made[:, : case.half], prompt), (
        "the prompt is not at the front"
    )
    stop = np.zeros(ROWS, bool)
    for length in range(case.half, made.shape[1]):
        row = np.pad(made, ((0, 0), (0, case.length - made.shape[1])))
        best = case.answers(case.model, input_ids=jnp.asarray(row))["logits"][:, length - 1].argmax(-1)
        assert np.all(stop | (best == made[:, length])), (
            f"token {length}: generated {made[:, length]}, likeliest {best}"
        )
        stop |= np.isin(made[:, length], _eos(case))


def _eos(case: Case) -> list[int]:
    config = case.model.config
    found = [(getattr(config, part, None) or {}).get("eos_token_id") for part in ("generation", "extra")]
    return [i for value in found if value is not None for i in (value if isinstance(value, tuple) else (value,))]
