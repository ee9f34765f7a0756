"""`generate`: prompt in, tokens out, one compiled function from the prefill to the last token."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._forward import accepted, check_ids, forward, init_cache, rectangular
from ._generation_config import GenerationConfig, resolve, with_defaults
from ._sample import draw, initial, process, processors_of
from ._task import task
from ._verb import verb
from .nn.context import Runtime
from .nn.heads import max_positions

Tracer = jax.core.Tracer


class Generation(eqx.Module):
    """What [`easyfn.generate`][] returns.

    - `sequences`: int32 `(rows, columns)`: the prompt as given, then the new tokens; after a row's end
      `pad_token_id`. (Of an encoder-decoder: the decoder's tokens, its start token first.)
    - `lengths`: int32 `(rows,)`: the columns of each row up to its end: `sequences[i, :lengths[i]]`.
    - `scores`, `logits`: float32 `(steps, rows, vocab)` after and before the processors, if asked for.
    - `cache`: with `return_cache=True`, what the model remembers: all columns but the last.
    - `prompt_length`: the columns of the prompt.
    """

    sequences: Any
    lengths: Any
    scores: Any = None
    logits: Any = None
    cache: Any = None
    prompt_length: int = eqx.field(static=True, default=0)

    @property
    def new_tokens(self) -> Any:
        """The columns after the prompt."""
        return self.sequences[:, self.prompt_length :]


# --- what a model must answer: the defaults are those of a decoder


@verb
def can_generate(model: Any) -> bool:
    """Whether [`easyfn.generate`][] works on a model: by default, if its task is a language model's.

    ```python
    import easyfn as ef
    assert not ef.can_generate("a string")
    ```
    """
    return task(model) in ("causal-lm", "seq2seq-lm")


@verb
def decoder_prompt(model: Any, ids: Any, attention_mask: Any, start: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """The tokens that the new ones follow, and their mask. A decoder continues `ids`; an encoder-decoder starts from
    its `start` id, `(batch, 1)`, or from `inputs["decoder_input_ids"]`."""
    return ids, attention_mask


@verb
def prefill(
    model: Any, ids: Any, *, attention_mask: Any = None, max_length: int | None = None, cache: Any = None, **inputs: Any
) -> tuple[jax.Array, Any]:
    """Runs the prompt: `(logits, cache)`, the logits `(batch, vocab)` being those of each row's last column.

    `cache` is from [`easyfn.init_cache`][], or made here with `max_length` slots. Prompts are padded on the left
    (`generate` moves padding there). An encoder-decoder runs its encoder on `ids` once, and its decoder on
    `decoder_input_ids`.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    model = ef.init(ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2), key=jax.random.key(0))
    logits, cache = ef.prefill(model, jnp.array([[1, 2, 3]]), max_length=8)
    logits, cache = ef.decode_step(model, jnp.argmax(logits, -1), cache)
    assert logits.shape == (1, 64) and int(cache.length) == 4
    ```
    """
    fresh = cache is None
    if cache is None:
        if max_length is None:
            raise ValueError("prefill needs a cache, or max_length= (prompt and new tokens) to make one")
        cache = init_cache(model, ids.shape[0], max_length)
    if "logits_to_keep" in accepted(model):
        inputs["logits_to_keep"] = 1
    out = forward(model, ids, attention_mask=attention_mask, cache=cache, fresh=fresh, **inputs)
    return out.logits[:, -1], out.cache


@verb
def decode_step(model: Any, token: Any, cache: Any, **inputs: Any) -> tuple[jax.Array, Any]:
    """Runs one more token per row, `(batch,)`, after what `cache` holds: `(logits, cache)`, the logits `(batch,
    vocab)`."""
    out = forward(model, token[:, None], cache=cache, **inputs)
    return out.logits[:, -1], out.cache


# --- the loop


@dataclasses.dataclass(frozen=True)
class Plan:
    """The facts of a call that shape its program; everything else (ids, keys, temperatures) is data."""

    prompt_length: int
    max_length: int
    eos: tuple[int, ...]
    pad: int
    infer_mask: bool
    start: Any
    copies: int
    sample: bool
    scores: bool
    logits: bool
    cache: bool
    runtime: Runtime
    processors: tuple[Any, tuple[Any, ...]]  # treedef and what in it is no number

    @property
    def inputs(self) -> dict[str, Any]:
        return {} if self.runtime == Runtime() else {"runtime": self.runtime}


class Carry(NamedTuple):
    """The loop's state. `ids` has -1 wherever there is no token."""

    length: jax.Array  # [] columns written
    token: jax.Array  # [batch] the newest column, to be run next
    done: jax.Array  # [batch]
    lengths: jax.Array  # [batch] columns up to the end of each row
    ids: jax.Array  # [batch, max_length]
    cache: Any
    memories: tuple[Any, ...]
    scores: jax.Array | None  # [new, batch, vocab]
    logits: jax.Array | None


def is_one_of(token: jax.Array, ids: tuple[int, ...]) -> jax.Array:
    hit = jnp.zeros(token.shape, bool)
    for i in ids:
        hit = hit | (token == i)
    return hit


def start(
    model: Any, ids: jax.Array, mask: Any, keys: Any, numbers: Sequence[Any], inputs: dict[str, Any], plan: Plan
) -> tuple[Carry, Any, jax.Array]:
    """Prefill and the first token: the carry, the row keys and the prompt as the caller gave it."""
    tree, fixed = plan.processors
    if plan.copies > 1:
        ids, mask, inputs = jax.tree.map(lambda x: jnp.repeat(x, plan.copies, axis=0), (ids, mask, inputs))
    if mask is None:
        mask = ids != plan.pad if plan.infer_mask else jnp.ones(ids.shape, bool)
    prompt, prompt_mask = decoder_prompt(model, ids, mask, plan.start, inputs)
    given = prompt
    if prompt is ids:
        prompt, prompt_mask = ids, mask = align(ids, mask)
    else:  # an encoder-decoder: ids are its source
        inputs = {**inputs, "decoder_input_ids": prompt}
    if prompt_mask is None:
        prompt_mask = jnp.ones(prompt.shape, bool)
    logits, cache = prefill(
        model, ids, attention_mask=mask.astype(jnp.int32), max_length=plan.max_length, **inputs, **plan.inputs
    )
    batch, vocab = logits.shape
    history = jnp.full((batch, plan.max_length), -1, jnp.int32)
    history = history.at[:, : plan.prompt_length].set(jnp.where(prompt_mask != 0, prompt, -1).astype(jnp.int32))
    processors = join(tree, fixed, numbers)
    empty = jnp.zeros((plan.max_length - plan.prompt_length, batch, vocab), jnp.float32)
    carry = Carry(
        length=jnp.asarray(plan.prompt_length, jnp.int32),
        token=jnp.zeros((batch,), jnp.int32),
        done=jnp.zeros((batch,), bool),
        lengths=jnp.full((batch,), plan.prompt_length, jnp.int32),
        ids=history,
        cache=cache,
        memories=initial(processors, history, vocab),
        scores=empty if plan.scores else None,
        logits=empty if plan.logits else None,
    )
    row_keys = spread(keys, batch, plan.copies) if plan.sample else None
    return choose(carry, logits, row_keys, processors, plan), row_keys, given


def step(model: Any, carry: Carry, row_keys: Any, numbers: Sequence[Any], plan: Plan) -> Carry:
    """One more token."""
    logits, cache = decode_step(model, carry.token, carry.cache, **plan.inputs)
    return choose(carry._replace(cache=cache), logits, row_keys, join(*plan.processors, numbers), plan)


def choose(carry: Carry, logits: jax.Array, row_keys: Any, processors: tuple[Any, ...], plan: Plan) -> Carry:
    """From logits to the next column."""
    logits = logits.astype(jnp.float32)
    index = carry.length - plan.prompt_length
    scores, memories = process(processors, carry.memories, carry.ids, logits, carry.length, plan.prompt_length)
    token = draw(row_keys, index, scores) if plan.sample else jnp.argmax(scores, axis=-1).astype(jnp.int32)
    token = jnp.where(carry.done, plan.pad, token)

    def kept(buffer: Any, value: jax.Array) -> Any:
        return None if buffer is None else jax.lax.dynamic_update_index_in_dim(buffer, value, index, 0)

    return Carry(
        length=carry.length + 1,
        token=token,
        done=carry.done | is_one_of(token, plan.eos),
        lengths=jnp.where(carry.done, carry.lengths, carry.length + 1),
        ids=jax.lax.dynamic_update_slice_in_dim(
            carry.ids, jnp.where(carry.done, -1, token)[:, None], carry.length, axis=1
        ),
        cache=carry.cache,
        memories=memories,
        scores=kept(carry.scores, scores),
        logits=kept(carry.logits, logits),
    )


@functools.partial(jax.jit, static_argnames="plan")
def run(
    model: Any, ids: jax.Array, mask: Any, keys: Any, numbers: Sequence[Any], inputs: dict[str, Any], *, plan: Plan
) -> Generation:
    """The whole generation: compiled once for each shape and plan."""
    carry, row_keys, prompt = start(model, ids, mask, keys, numbers, inputs, plan)
    carry = jax.lax.while_loop(
        lambda c: (c.length < plan.max_length) & ~jnp.all(c.done),
        lambda c: step(model, c, row_keys, numbers, plan),
        carry,
    )
    new = carry.ids[:, plan.prompt_length :]
    return Generation(
        sequences=jnp.concatenate([prompt.astype(jnp.int32), jnp.where(new < 0, plan.pad, new)], axis=1),
        lengths=carry.lengths,
        scores=carry.scores,
        logits=carry.logits,
        cache=carry.cache if plan.cache else None,
        prompt_length=plan.prompt_length,
    )


def align(ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Prompts with their padding moved to the left, so that every row's last column is a token."""
    length = ids.shape[1]
    column = jnp.arange(length)[None]
    last = jnp.max(jnp.where(mask != 0, column, -1), axis=1, keepdims=True)
    source = (column + last + 1) % length
    return jnp.take_along_axis(ids, source, axis=1), jnp.take_along_axis(mask, source, axis=1)


def spread(keys: jax.Array, rows: int, copies: int) -> jax.Array:
    """One key per row: the caller's own, or the row's number folded into the only one; and the copy's number."""
    fold = jax.vmap(jax.random.fold_in)
    own = fold(jnp.broadcast_to(keys, (rows // copies,)), jnp.arange(rows // copies)) if keys.ndim == 0 else keys
    if copies == 1:
        return own
    return fold(jnp.repeat(own, copies), jnp.tile(jnp.arange(copies), rows // copies))


def part(processors: tuple[Any, ...]) -> tuple[list[Any], tuple[Any, tuple[Any, ...]]]:
    """The numbers of processors, which are data, and the rest, which is program."""
    leaves, tree = jax.tree.flatten(processors)
    number = [isinstance(x, (int, float, np.ndarray, np.generic, jax.Array)) for x in leaves]
    fixed = tuple(None if n else x for n, x in zip(number, leaves, strict=True))
    return [x for n, x in zip(number, leaves, strict=True) if n], (tree, fixed)


def join(tree: Any, fixed: tuple[Any, ...], numbers: Sequence[Any]) -> tuple[Any, ...]:
    rest = iter(numbers)
    return jax.tree.unflatten(tree, [next(rest) if x is None else x for x in fixed])


# --- the public face


def generate(
    model: Any,
    ids: Any,
    *,
    attention_mask: Any = None,
    key: Any = None,
    config: Any = None,
    processors: Sequence[Any] = (),
    return_cache: bool = False,
    runtime: Runtime = Runtime(),
    **options: Any,
) -> Generation:
    """Generates tokens after each prompt, greedily or by sampling, as transformers does.

    **Arguments**

    - `ids`: integers `(batch, seq)`; `attention_mask`: 0 for padding, on either side. Without a mask, `pad_token_id` in
      the prompt is padding (unless it also ends a row): transformers' rule.
    - `key`: a PRNG key, needed for sampling. Row `i` draws from `fold_in(key, i)`; with a vector of keys each row
      has its own, and gives the same tokens alone and in any batch.
    - `config`, `options`: see [`easyfn.GenerationConfig`][]: `max_new_tokens=`, `do_sample=`, `temperature=`, ...; a
      mapping or transformers' own `GenerationConfig` is a config too.
      Options win over `config`, which wins over the checkpoint's own. An unknown or unsupported option is refused.
      Other names that the model takes (`decoder_input_ids`, ...) go to the model.
    - `processors`: functions `(state, ids, logits) -> (logits, state)`, see [`easyfn.State`][]; they run after the
      penalties and before temperature and the like, inside the compiled loop. Define them once: a new function is a
      new program.
    - `return_cache`: keep the cache in the result. `runtime`: see `easyfn.Runtime`.

    **Returns** a [`easyfn.Generation`][]. Outside `jit` its rows are as wide as the longest of them; inside `jit`
    they are always `max_length` wide. **Raises** `ValueError` for options that are refused or contradict each other,
    empty prompts, rows of padding only, and lengths beyond a model's learned positions.

    Penalties and n-gram rules never count padding, and never what follows a row's end.

    The second call with the same shapes compiles nothing, whatever the temperature or other numbers. Works inside
    your own `jax.jit` and under `jax.vmap` over keys.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    model = ef.init(ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2), key=jax.random.key(0))
    prompt = jnp.array([[5, 6, 7]])
    assert ef.generate(model, prompt, max_new_tokens=4).sequences.shape == (1, 7)

    def no_sevens(state, ids, logits):
        return logits.at[:, 7].set(-jnp.inf), state

    out = ef.generate(model, prompt, max_new_tokens=4, do_sample=True, key=jax.random.key(1), processors=(no_sevens,))
    assert not jnp.any(out.new_tokens == 7)
    ```
    """
    call = prepare(model, ids, attention_mask, key, config, processors, return_cache, runtime, options)
    out = run(model, *call.data, plan=call.plan)
    if isinstance(out.lengths, Tracer):
        return out
    longest = int(np.max(np.asarray(out.lengths)))
    steps = longest - call.plan.prompt_length
    if longest == call.plan.max_length:
        return out
    cut = lambda x, at, axis: None if x is None else jnp.asarray(np.take(np.asarray(x), np.arange(at), axis))
    return dataclasses.replace(
        out,
        sequences=cut(out.sequences, longest, 1),
        scores=cut(out.scores, steps, 0),
        logits=cut(out.logits, steps, 0),
    )


class Call(NamedTuple):
    plan: Plan
    data: tuple[Any, ...]  # ids, mask, keys, numbers of the processors, inputs of the model


def prepare(
    model: Any,
    ids: Any,
    attention_mask: Any,
    key: Any,
    config: Any,
    processors: Sequence[Any],
    return_cache: bool,
    runtime: Runtime,
    options: Mapping[str, Any],
) -> Call:
    """Everything that is checked and decided before a program runs."""
    if not can_generate(model):
        raise can_generate.missing(
            model, "generate continues token ids, so it needs a language model with a head over them."
        )
    ids, attention_mask = _checked(model, ids, attention_mask)
    takes = accepted(model) - {"input_ids", "inputs_embeds", "logits_to_keep", "token_type_ids"}
    inputs = {name: value for name, value in options.items() if name in takes and value is not None}
    if "decoder_input_ids" in inputs:
        inputs["decoder_input_ids"], _ = check_ids(model, inputs["decoder_input_ids"], None, prefix="decoder_")
    inputs = {name: jnp.asarray(v) if isinstance(v, (list, np.ndarray)) else v for name, v in inputs.items()}
    options = {name: value for name, value in options.items() if name not in takes}
    c = resolve(getattr(model, "config", None), config, options)

    start_id = c.decoder_start_token_id if c.decoder_start_token_id is not None else c.bos_token_id
    shape = lambda: decoder_prompt(model, jnp.zeros(ids.shape, jnp.int32), None, start_id, inputs)[0]
    prompt = jax.eval_shape(shape)
    encodes = prompt is not None and "decoder_input_ids" in takes
    length = prompt.shape[1]
    infer_mask = c.pad_token_id is not None and c.pad_token_id not in c.eos
    mask = attention_mask
    if mask is None and infer_mask and not isinstance(ids, Tracer):
        mask = np.asarray(ids) != c.pad_token_id
        _no_empty_rows(mask, f"nothing but pad_token_id={c.pad_token_id}")
    max_length = _max_length(model, c, length, None if encodes else mask)
    c = with_defaults(c)
    beams, copies = c.num_beams or 1, c.num_return_sequences or 1
    _check_vocabulary(model, c)
    if beams > 1:
        raise ValueError(
            f"generate: num_beams={beams} is not supported: easyfn has no beam search yet; pass num_beams=1"
        )
    if copies > 1 and not c.do_sample:
        raise ValueError(f"num_return_sequences={copies}: greedy decoding has one answer; add do_sample=True")
    if c.do_sample:
        key = _keys(key, ids.shape[0])
    elif key is not None:
        key = None  # greedy: a key changes nothing, so that it does not make a second program either

    encoder_ids = None
    if c.encoder_no_repeat_ngram_size or c.encoder_repetition_penalty != 1.0:
        if mask is None:
            mask = ids != c.pad_token_id if infer_mask else jnp.ones_like(ids)
        encoder_ids = jnp.repeat(jnp.where(mask != 0, ids, -1), copies, axis=0)
    chain = processors_of(
        c, prompt_length=length, max_length=max_length, encoder_ids=encoder_ids, extra=tuple(processors)
    )
    numbers, fixed = part(chain)
    plan = Plan(
        prompt_length=length,
        max_length=max_length,
        eos=c.eos,
        pad=c.pad if c.pad is not None else 0,
        infer_mask=infer_mask,
        start=start_id,
        copies=copies,
        sample=bool(c.do_sample),
        scores=bool(c.output_scores),
        logits=bool(c.output_logits),
        cache=return_cache,
        runtime=runtime,
        processors=fixed,
    )
    return Call(plan, (ids, attention_mask, key, numbers, inputs))


def _checked(model: Any, ids: Any, mask: Any) -> tuple[Any, Any]:
    """Ids and mask of the right shape, inside the vocabulary, with something in every row."""
    ids = ids if isinstance(ids, jax.Array) else rectangular(ids)
    if ids.ndim != 2:
        raise ValueError(
            f"generate: ids must have shape (batch, seq), not {ids.shape}; add a batch axis with ids[None]"
        )
    if 0 in ids.shape:
        raise ValueError(f"generate: the prompt is empty (shape {ids.shape}); start it with the model's bos_token_id")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"generate: ids must be integers, not {ids.dtype}")
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if size is not None and not isinstance(ids, Tracer):
        held = np.asarray(ids)
        if held.min() < 0 or held.max() >= size:
            wrong = held.min() if held.min() < 0 else held.max()
            raise ValueError(f"generate: ids hold {wrong}, outside the vocabulary of {size} (0 to {size - 1})")
    if mask is not None:
        mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
        if mask.shape != ids.shape:
            raise ValueError(f"generate: attention_mask has shape {mask.shape} and ids {ids.shape}")
        if not isinstance(mask, Tracer):
            _no_empty_rows(np.asarray(mask) != 0, "an attention_mask of zeros only")
    return ids, mask


def _no_empty_rows(mask: np.ndarray, what: str) -> None:
    empty = np.flatnonzero(~mask.any(axis=1))
    if empty.size:
        raise ValueError(f"generate: row {int(empty[0])} holds {what}: there is no prompt to continue; drop the row")


def _keys(key: Any, rows: int) -> jax.Array:
    if key is None:
        raise ValueError(
            "generate: sampling (do_sample=True, perhaps from the checkpoint's generation_config.json) needs "
            "key=jax.random.key(seed), or one key per row; for greedy decoding pass do_sample=False"
        )
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise TypeError(f"generate: key must be a PRNG key, jax.random.key(seed), not {key!r}")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(jnp.asarray(key))
    if key.shape not in ((), (rows,)):
        raise ValueError(f"generate: key must be one key or one per row ({rows},), not of shape {key.shape}")
    return key


def _max_length(model: Any, c: GenerationConfig, prompt: int, mask: Any) -> int:
    """The columns of the result, as transformers counts them, within the model's positions."""
    limit = max_positions(model)
    if c.max_new_tokens is not None:
        length = prompt + c.max_new_tokens
    elif c.max_length is not None:
        length = c.max_length
        if length <= prompt:
            raise ValueError(
                f"generate: max_length={length} leaves no room after a prompt of {prompt}; "
                "max_new_tokens= counts new tokens only"
            )
    else:
        length = prompt + 20  # transformers' default
        known = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        length = max(prompt + 1, min(length, known)) if known is not None else length
    used = length
    if mask is not None and not isinstance(mask, Tracer):
        used = length - prompt + int((np.asarray(mask) != 0).sum(axis=1).max())
    if limit is not None and used - 1 > limit:  # the last token is never run
        raise ValueError(
            f"generate: prompt and new tokens are {used} long, and {type(model).__name__} has learned "
            f"{limit} positions; shorten the prompt, or "
            f"set max_new_tokens to at most {max(0, limit + 1 - used + length - prompt)}"
        )
    return length


def _check_vocabulary(model: Any, c: GenerationConfig) -> None:
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if size is None:
        return
    for name in (
        "suppress_tokens",
        "begin_suppress_tokens",
        "bad_words_ids",
        "sequence_bias",
        "forced_bos_token_id",
        "forced_eos_token_id",
    ):
        value = getattr(c, name)
        words = [w for w, _ in value] if name == "sequence_bias" and value else [value]
        for i in jax.tree.leaves(words):
            if not -1 <= i < size:
                raise ValueError(f"generate: {name} holds {i}, outside the vocabulary of {size}")
