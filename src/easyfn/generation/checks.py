"""The checks of a call, each with an error that says what to write instead."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..inputs.checks import rectangular
from ..inputs.statement import inputs
from ..nn.cache.cache import Cache, layer_cache, rewindable
from ..nn.heads import max_positions
from .config import GenerationConfig

Tracer = jax.core.Tracer


def prompt(model: Any, ids: Any, mask: Any, name: str = "ids") -> tuple[Any, Any]:
    """Ids and mask of the right shape, inside the vocabulary, with something in every row."""
    ids = ids if isinstance(ids, jax.Array) else rectangular(ids)
    if ids.ndim != 2:
        raise ValueError(
            f"generate: {name} must have shape (batch, seq), not {ids.shape}; add a batch axis with ids[None]"
        )
    if 0 in ids.shape:
        raise ValueError(f"generate: the prompt is empty (shape {ids.shape}); start it with the model's bos_token_id")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"generate: {name} must be integers, not {ids.dtype}")
    stated = inputs(model).fields.get("input_ids")
    size = None if stated is None else stated.below
    if size is not None and not isinstance(ids, Tracer):
        held = np.asarray(ids)
        if held.min() < 0 or held.max() >= size:
            wrong = held.min() if held.min() < 0 else held.max()
            raise ValueError(f"generate: {name} hold {wrong}, outside the vocabulary of {size} (0 to {size - 1})")
    if mask is not None:
        mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
        if mask.shape != ids.shape:
            raise ValueError(f"generate: attention_mask has shape {mask.shape} and {name} {ids.shape}")
        if not isinstance(mask, Tracer):
            no_empty_rows(np.asarray(mask) != 0, "an attention_mask of zeros only")
    return ids, mask


def no_empty_rows(mask: np.ndarray, what: str) -> None:
    empty = np.flatnonzero(~mask.any(axis=1))
    if empty.size:
        raise ValueError(f"generate: row {int(empty[0])} holds {what}: there is no prompt to continue; drop the row")


def negative(model: Any, rows: int, ids: Any, mask: Any) -> tuple[Any, Any] | None:
    """The prompt to be guided away from: by default (`None`) the last token of the prompt, as in transformers."""
    if ids is None:
        if mask is not None:
            raise ValueError(
                "generate: negative_prompt_attention_mask belongs to negative_prompt_ids, which are not given"
            )
        return None
    ids, mask = prompt(model, ids, mask, "negative_prompt_ids")
    if ids.shape[0] not in (1, rows):
        raise ValueError(f"generate: negative_prompt_ids have {ids.shape[0]} rows and the prompt {rows}")
    mask = jnp.ones(ids.shape, jnp.int32) if mask is None else jnp.asarray(mask, jnp.int32)
    wide = lambda x: jnp.broadcast_to(x, (rows, x.shape[1]))
    return wide(jnp.asarray(ids, jnp.int32)), wide(mask)


def keys(key: Any, rows: int) -> jax.Array:
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


def longest(model: Any, c: GenerationConfig, prompt: int, mask: Any, in_pieces: bool = False) -> int:
    """The columns of the result, as transformers counts them, within the model's positions. `in_pieces`: the prompt is not
    run in one pass."""
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
    bound = getattr(getattr(model, "config", None), "rope_bound", None)
    if bound is not None and length - 1 > bound and (in_pieces or prompt <= bound):
        raise ValueError(
            f"generate: beyond {bound} tokens (original_max_position_embeddings) longrope turns or scales every token by other "
            "factors, and what was cached before is of no use: transformers runs the past again there, easyfn does not. Stay "
            f"within max_length={bound + 1}, or give a prompt of more than {bound} tokens, to ef.generate and in one piece"
        )
    return length


def vocabulary(model: Any, c: GenerationConfig) -> None:
    config = getattr(model, "config", None)
    size = getattr(config, "decoder_vocab_size", None) or getattr(config, "vocab_size", None)
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


def drafts(model: Any, c: GenerationConfig, draft: Any) -> tuple[int, int]:
    """How many tokens a round drafts, and the longest run that is looked up; zeros without drafts."""
    if draft is None and c.prompt_lookup_num_tokens is None:
        return 0, 0
    if draft is not None and c.prompt_lookup_num_tokens is not None:
        raise ValueError("generate: assistant_model and prompt_lookup_num_tokens both draft; give one")
    for name, m in (("model", model), ("assistant_model", draft)):
        if m is not None and not can_forget(m):
            raise ValueError(
                f"generate: the {name}, {type(m).__name__} ({getattr(m.config, 'model_type', 'of its own')}), keeps a "
                "recurrent state, which cannot take back the drafted tokens that are refused; generate without drafts"
            )
    if draft is None:
        return c.prompt_lookup_num_tokens or 0, c.max_matching_ngram_size or 2
    sizes = [getattr(getattr(m, "config", None), "vocab_size", None) for m in (model, draft)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"generate: assistant_model has a vocabulary of {sizes[1]} and the model one of {sizes[0]}: a draft must be "
            "made of the model's own tokens"
        )
    return c.num_assistant_tokens or 5, 0


def can_forget(model: Any) -> bool:
    """Whether every layer keeps its past by slots, so that the newest can be dropped."""
    found = jax.eval_shape(lambda: layer_cache(model, 1, 8, jnp.float32))
    kind = lambda node: rewindable.knows(type(node))
    return all(kind(part) and rewindable(part) for part in jax.tree.leaves(found, is_leaf=kind))


# What does not go together, and why.
_APART: tuple[tuple[str, str, str], ...] = (
    ("beams", "drafts", "a draft continues one sequence for each prompt"),
    ("beams", "guided", "transformers, whose second prompt does not follow its beams, has no answer to compare with"),
    ("drafts", "guided", "the drafts would need a guided model of their own"),
    ("drafts", "cache", "rows advance at their own speeds, and a given cache at one"),
    ("drafts", "second", "drafts continue decoders only"),
    ("drafts", "inner", "a round runs tokens that are not kept"),
    ("drafts", "scores", "a round scores tokens that are not kept"),
    ("drafts", "return_cache", "it would be of rows of different lengths"),
    ("drafts", "encoder", "each row is scored on its own"),
    ("guided", "second", "transformers guides decoders only"),
    ("guided", "inner", "the model runs two prompts at once"),
    ("guided", "cache", "the cache of the second prompt is not given"),
    ("cache", "quantized", "a given cache has its dtype, ef.init_cache(model, rows, slots, dtype='int8')"),
    ("cache", "second", "an encoder-decoder keeps its source in the cache; give encoder_outputs instead"),
    ("cache", "inner", "of the columns in the cache nothing is known"),
    ("chunks", "inner", "the prompt is not run at once"),
    ("images", "guided", "the second prompt has no places for their features"),
    ("images", "cache", "their features would have to be told from those that it holds"),
    ("images", "chunks", "their features enter with the whole prompt"),
    ("images", "drafts", "a draft model of text knows nothing of them"),
    ("chunks", "second", "the prompt of a decoder after an encoder is short; leave it out"),
)


def together(**asked: Any) -> None:
    for one, other, why in _APART:
        if asked[one] and asked[other]:
            raise ValueError(f"generate: {asked[one]} and {asked[other]} do not go together: {why}")


def resumed(cache: Cache | None, rows: int, prompt: int, max_length: int, mask: Any) -> int:
    """How many columns of the prompt a given cache holds."""
    if cache is None:
        return 0
    if isinstance(cache.length, Tracer) or cache.length.ndim:
        raise ValueError(
            "generate: how many columns cache= holds must be one known number; inside jit, prefill and decode by hand"
        )
    held, (cached_rows, size) = int(cache.length), cache.segment_ids.shape
    if cached_rows != rows:
        raise ValueError(
            f"generate: cache has {cached_rows} rows and the prompt {rows}; ef.fork(cache, copies) repeats its rows"
        )
    if held >= prompt:
        raise ValueError(
            f"generate: cache holds {held} columns and ids have {prompt}: give the whole prompt, cached columns first, and "
            "at least one column more"
        )
    if size < max_length - 1:  # the last token is never run
        raise ValueError(
            f"generate: cache has {size} slots, and prompt and new tokens need {max_length - 1}; make it longer: "
            "ef.prefill(model, ids, max_length=...)"
        )
    if mask is not None and not isinstance(mask, Tracer):
        rest = np.asarray(mask)[:, held:] != 0
        if not rest[:, -1].all():
            raise ValueError("generate: with cache= the columns after it must be padded on the left")
    return held
