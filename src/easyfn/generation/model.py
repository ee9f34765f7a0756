"""What a model must answer to generate: by default as a decoder does."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ..core.arrays import Host
from ..core.verb import verb
from ..forward.forward import forward, init_cache
from ..inputs.statement import accepted, inputs as inputs_of
from ..nn.output import Output
from ..nn.seq2seq import Seq2SeqLM
from ..tasks.cross_entropy import as_array
from ..tasks.seq2seq_lm import decoder_start
from ..tasks.task import task


@verb
def can_generate(model: Any) -> bool:
    """Whether [`easyfn.generate`][] works on a model: by default, if its task is a language model's.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert ef.can_generate(model) and not ef.can_generate(model.model)
    ```
    """
    return task(model) in ("causal-lm", "seq2seq-lm")


@verb
def decoder_prompt(
    model: Any,
    ids: Int[Array, "batch seq"] | Float[Array, "*source"] | Host | None,
    attention_mask: Shaped[Array, "rows keys"] | Host | None,
    start: Int[Array, "*rows"] | Host | None,
    inputs: dict[str, Any],
) -> tuple[Int[Array, "rows seq"] | Float[Array, "*source"] | Host | None, Shaped[Array, "rows keys"] | Host | None]:
    """The tokens that the new ones follow, and their mask. A decoder continues `ids`; an encoder-decoder starts from
    its `start` id, `(batch, 1)`, or from `inputs["decoder_input_ids"]`."""
    return ids, attention_mask


@decoder_prompt.register(Seq2SeqLM)
def _(model: Seq2SeqLM, ids: Any, attention_mask: Any, start: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    if inputs.get("decoder_input_ids") is not None:
        return as_array(inputs["decoder_input_ids"]), inputs.get("decoder_attention_mask")
    start = decoder_start(model.config) if start is None else start
    return jnp.full((ids.shape[0], 1), start, jnp.int32), None


@verb
def prefill(
    model: Any,
    ids: Int[Array, "batch seq"] | Float[Array, "*source"] | Host | None,
    *,
    attention_mask: Shaped[Array, "rows keys"] | Host | None = None,
    max_length: int | None = None,
    cache: Any = None,
    **inputs: Any,
) -> tuple[Float[Array, "batch vocab"], Any]:
    """Runs the prompt: `(logits, cache)`, the logits `(batch, vocab)` being those of each row's last column.

    `cache` is from [`easyfn.init_cache`][], or made here with `max_length` slots. Prompts are padded on the left
    (`generate` moves padding there). An encoder-decoder runs its encoder on `ids` once, and its decoder on
    `decoder_input_ids`.

    ```python
    import jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    logits, cache = ef.prefill(model, jnp.array([[1, 2, 3]]), max_length=8)
    logits, cache = ef.decode_step(model, jnp.argmax(logits, -1), cache)
    assert logits.shape == (1, 64) and int(cache.length) == 4
    ```
    """
    out = run_prompt(model, ids, attention_mask=attention_mask, max_length=max_length, cache=cache, **inputs)
    assert out.logits is not None
    return out.logits[:, -1], out.cache


def run_prompt(
    model: Any, ids: Any, *, max_length: int | None = None, cache: Any = None, fresh: bool | None = None, **inputs: Any
) -> Output:
    """[`prefill`][easyfn.prefill] with all that the model says. `fresh` promises that a cache that is given is empty."""
    fresh = cache is None if fresh is None else fresh
    if cache is None:
        if max_length is None:
            raise ValueError("prefill needs a cache, or max_length= (prompt and new tokens) to make one")
        cache = init_cache(model, np.shape(ids)[0], max_length)
    if "logits_to_keep" in accepted(model):
        inputs["logits_to_keep"] = 1
    return forward(model, cache=cache, fresh=fresh, **{source_name(model): ids}, **inputs)


@verb
def decode_step(
    model: Any, token: Int[Array, " batch"] | Host, cache: Any, **inputs: Any
) -> tuple[Float[Array, "batch vocab"], Any]:
    """Runs one more token per row, `(batch,)`, after what `cache` holds: `(logits, cache)`, the logits `(batch,
    vocab)`."""
    token = np.asarray(token) if isinstance(token, list | tuple) else token
    out = run_tokens(model, token[:, None], cache, **inputs)
    assert out.logits is not None
    return out.logits[:, -1], out.cache


def run_tokens(model: Any, tokens: Any, cache: Any, **inputs: Any) -> Output:
    """Several more tokens per row, `(batch, count)`, after what `cache` holds."""
    name = "decoder_input_ids" if encodes(model) else "input_ids"
    return forward(model, **{name: tokens}, cache=cache, **inputs)


def source_name(model: Any) -> str:
    """What a prompt is called: `input_ids`, or what else a model's encoder reads."""
    main = inputs_of(model).main
    return "input_ids" if "input_ids" in main or not main else main[0]


def encodes(model: Any) -> bool:
    """Whether a model has an encoder, so that the tokens it continues are its second sequence."""
    return "decoder_input_ids" in accepted(model)
