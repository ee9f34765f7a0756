"""`generate`: prompt in, tokens out, one compiled function from the prefill to the last token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ..core.arrays import Host
from ..core.habits import taught
from ..core.multihost import unbound
from ..core.rows import by_row
from ..nn.context import Runtime
from .assisted import run_assisted
from .beams import run_beams
from .loop import run
from .plan import Plan, prepare
from .result import Generation

Tracer = jax.core.Tracer


@taught
def generate(
    model: Any,
    ids: Int[Array, "batch seq"] | Float[Array, "*source"] | Host | None = None,
    *,
    attention_mask: Shaped[Array, "rows keys"] | Host | None = None,
    key: Any = None,
    config: Any = None,
    processors: Sequence[Any] = (),
    cache: Any = None,
    return_cache: bool = False,
    tokenizer: Any = None,
    assistant_model: Any = None,
    negative_prompt_ids: Int[Array, "rows seq"] | Host | None = None,
    negative_prompt_attention_mask: Shaped[Array, "rows seq"] | Host | None = None,
    runtime: Runtime = Runtime(),
    adapter_ids: Int[Array, " rows"] | Host | None = None,
    **options: Any,
) -> Generation:
    """Generates tokens after each prompt, greedily, by sampling or with beams, as transformers does.

    **Arguments**

    - `ids`: integers `(batch, seq)`; `attention_mask`: 0 for padding, on either side. Without a mask, `pad_token_id` in
      the prompt is padding (unless it also ends a row): transformers' rule. Of a model whose encoder reads something else,
      that, here or by its name (`input_features=`); Whisper's prompt, and long recordings, are for [`easyfn.transcribe`][].
    - `key`: a PRNG key, needed for sampling. Row `i` draws from `fold_in(key, i)`; with a vector of keys each row
      has its own, and gives the same tokens alone and in any batch.
    - `config`, `options`: see [`easyfn.GenerationConfig`][]: `max_new_tokens=`, `do_sample=`, `num_beams=`, ...; a
      mapping or transformers' own `GenerationConfig` is a config too.
      Options win over `config`, which wins over the checkpoint's own. An unknown or unsupported option is refused.
      Other names that the model takes (`decoder_input_ids`, ...) go to the model.
    - `processors`: functions `(state, ids, logits) -> (logits, state)`, see [`easyfn.State`][]; they run after the
      penalties and before temperature and the like, inside the compiled loop. Define them once: a new function is a
      new program. An [`easyfn.Constraint`][] is one: text that matches a JSON schema or an expression; a list of them
      within the list gives each row its own.
    - `cache`: what the model remembers of the first columns of `ids`, from [`easyfn.prefill`][], [`easyfn.fork`][] or a
      generation with `return_cache=True`, which keeps the cache in the result; or an empty one of a dtype of its own.
      `ids` are the whole prompt all the same.
    - `tokenizer`: for `stop_strings=`, one of transformers or a `tokenizers.Tokenizer`.
    - `assistant_model`: a smaller model with the same vocabulary that drafts `num_assistant_tokens` tokens at a time,
      which the model keeps as far as they are its own: the same tokens when greedy, the same distribution when
      sampling. `prompt_lookup_num_tokens=` drafts from what was said before.
    - `negative_prompt_ids`, `negative_prompt_attention_mask`: with `guidance_scale=`, the prompt to be guided away
      from, by default the last token of each.
    - `runtime`: see `easyfn.Runtime`.
    - `adapter_ids`: the adapter of each prompt, as in [`easyfn.forward`][]; its copies and beams take the same.

    **Returns** a [`easyfn.Generation`][]. Outside `jit` its rows are as wide as the longest of them; inside `jit`
    they are always `max_length` wide. **Raises** `ValueError` for options that are refused or contradict each other,
    empty prompts, rows of padding only, and lengths beyond a model's learned positions.

    Prompt and loop are one program, compiled at the first call of a shape; numbers (`temperature=0.7`, ...) are data.
    It may stand inside the caller's own `jit` or `vmap`.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    prompt = jnp.array([[0, 5, 6], [7, 8, 9]])
    mask = jnp.array([[0, 1, 1], [1, 1, 1]])
    out = ef.generate(model, prompt, attention_mask=mask, max_new_tokens=4)
    assert out.sequences.shape == (2, 7)

    best = ef.generate(model, prompt, attention_mask=mask, max_new_tokens=4, num_beams=3, num_return_sequences=2)
    assert best.sequences.shape == (4, 7) and best.sequences_scores[0] >= best.sequences_scores[1]

    def no_sevens(state, ids, logits):
        return logits.at[:, 7].set(-jnp.inf), state

    out = ef.generate(model, prompt, max_new_tokens=4, do_sample=True, key=jax.random.key(1), processors=(no_sevens,))
    assert not (out.new_tokens == 7).any()
    ```
    """
    ids, attention_mask = unbound(ids), unbound(attention_mask)
    plan, data = prepare(
        model,
        ids,
        attention_mask,
        key,
        config,
        processors,
        runtime,
        options,
        return_cache=return_cache,
        cache=cache,
        tokenizer=tokenizer,
        negative_prompt_ids=negative_prompt_ids,
        negative_prompt_attention_mask=negative_prompt_attention_mask,
        assistant_model=assistant_model,
    )
    if adapter_ids is not None:
        model = by_row(model, adapter_ids, data.ids.shape[0])
    if plan.drafted:
        return cut(here(run_assisted(model, data, plan=plan)), plan.max_length, plan)
    out, first, length = (run_beams if plan.beams else run)(model, data, plan=plan)
    return cut(by_step(here(out), jax.tree.map(unbound, first), plan), unbound(length), plan)


def here(out: Generation) -> Generation:
    """The whole result on every process, where there are many; the cache stays where it is."""
    return dataclasses.replace(jax.tree.map(unbound, dataclasses.replace(out, cache=None)), cache=out.cache)


def cut(out: Generation, length: Any, plan: Plan) -> Generation:
    """Concrete results as wide as their longest row, and with as many steps as were taken up to `length` columns: beams
    may go on after the best of them ended."""
    if isinstance(out.lengths, Tracer):
        return out
    longest, steps = int(np.max(np.asarray(out.lengths))), int(length) - plan.prompt_length
    if longest == int(length) == plan.max_length:
        return out
    first = lambda x, at, axis: None if x is None else jnp.asarray(np.take(np.asarray(x), np.arange(at), axis))
    return dataclasses.replace(
        out,
        sequences=first(out.sequences, longest, 1),
        beam_indices=first(out.beam_indices, longest - plan.prompt_length, 1),
        scores=first(out.scores, steps, 0),
        logits=first(out.logits, steps, 0),
        **{name: x[:steps] for name in _INNER if (x := getattr(out, name)) is not None},
    )


_INNER = ("hidden_states", "attentions", "cross_attentions")


def by_step(out: Generation, first: dict[str, Any], plan: Plan) -> Generation:
    """The model's outputs as transformers returns them: of every step, the prompt's first, of every layer."""
    fields: dict[str, Any] = {name: value for name, value in first.items() if name.startswith("encoder_")}
    for name in _INNER:
        later = getattr(out, name)
        if later is None:
            continue
        if not isinstance(out.lengths, Tracer):
            later = tuple(np.asarray(layer) for layer in later)
        steps = [first[name]]
        for i in range(plan.max_length - plan.prompt_length - 1):
            keys = plan.prompt_length + i + 1 if name == "attentions" else None
            steps.append(tuple(jnp.asarray(layer[i][..., :keys]) for layer in later))
        fields[name] = tuple(steps)
    return dataclasses.replace(out, **fields)
