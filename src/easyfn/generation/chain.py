"""From options to processors: which ones a config asks for, and their numbers apart from their program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from .config import GenerationConfig, ids_of
from .processors import (
    EncoderRepetitionPenalty,
    ExponentialDecay,
    ForcedTokens,
    FrequencyPenalty,
    MinLength,
    NoRepeatNGram,
    RemoveInvalid,
    RepetitionPenalty,
    SequenceBias,
    SuppressTokens,
    id_array,
)
from .sampling import EpsilonCutoff, EtaCutoff, MinP, Renormalize, Temperature, TopH, TopK, TopP, Typical


def processors_of(
    config: GenerationConfig,
    *,
    prompt_length: int,
    max_length: int,
    encoder_ids: Any,
    extra: tuple[Any, ...] = (),
) -> tuple[Any, ...]:
    """The processors that a complete config asks for, in transformers' order; inert options add none.

    `encoder_ids`: the model's input with -1 in its padding. `extra`: the caller's own, which come after the
    constraints and before what shapes the distribution.
    """
    c, eos = config, config.eos
    found: list[Any] = []

    def on(value: Any, *inert: Any) -> bool:
        return value is not None and (isinstance(value, jax.Array) or value not in inert)

    if c.sequence_bias:
        found.append(SequenceBias(c.sequence_bias))
    if on(c.encoder_repetition_penalty, 1.0):
        found.append(EncoderRepetitionPenalty(c.encoder_repetition_penalty, encoder_ids))
    if on(c.repetition_penalty, 1.0):
        found.append(RepetitionPenalty(c.repetition_penalty))
    if on(c.frequency_penalty, 0.0) or on(c.presence_penalty, 0.0):
        found.append(FrequencyPenalty(c.frequency_penalty, c.presence_penalty))
    if c.no_repeat_ngram_size:
        found.append(NoRepeatNGram(c.no_repeat_ngram_size))
    if c.encoder_no_repeat_ngram_size:
        found.append(NoRepeatNGram(c.encoder_no_repeat_ngram_size, encoder_ids))
    if c.bad_words_ids:
        words = [w for w in c.bad_words_ids if w not in {(e,) for e in eos}]
        if words:
            found.append(SequenceBias([(w, -np.inf) for w in words]))
    least = prompt_length + c.min_new_tokens if c.min_new_tokens else c.min_length or 0
    if eos and least > prompt_length:
        found.append(MinLength(least, id_array(eos)))
    if c.forced_bos_token_id is not None:
        found.append(ForcedTokens(1, id_array([c.forced_bos_token_id])))
    if c.forced_eos_token_id is not None:
        found.append(ForcedTokens(max_length - 1, id_array(ids_of(c.forced_eos_token_id))))
    if c.remove_invalid_values:
        found.append(RemoveInvalid())
    if c.exponential_decay_length_penalty is not None and eos:
        begin, factor = c.exponential_decay_length_penalty
        found.append(ExponentialDecay(begin, factor, id_array(eos)))
    if c.suppress_tokens:
        found.append(SuppressTokens(id_array(c.suppress_tokens)))
    if c.begin_suppress_tokens:
        first = prompt_length + (prompt_length <= 1 and c.forced_bos_token_id is not None)
        found.append(SuppressTokens(id_array(c.begin_suppress_tokens), first))
    found.extend(extra)
    if c.do_sample:
        keep = 1 if (c.num_beams or 1) == 1 else len(eos) + 1 if eos else 2
        if on(c.temperature, 1.0):
            found.append(Temperature(c.temperature))
        if on(c.top_h):
            found.append(TopH(c.top_h))
        if c.top_k:
            found.append(TopK(max(c.top_k, keep)))
        if on(c.top_p, 1.0):
            found.append(TopP(c.top_p, keep))
        if on(c.min_p):
            found.append(MinP(c.min_p, keep))
        if on(c.typical_p, 1.0):
            found.append(Typical(c.typical_p, keep))
        if on(c.epsilon_cutoff, 0.0):
            found.append(EpsilonCutoff(c.epsilon_cutoff, keep))
        if on(c.eta_cutoff, 0.0):
            found.append(EtaCutoff(c.eta_cutoff, keep))
    if c.renormalize_logits:
        found.append(Renormalize())
    return tuple(found)


def part(processors: tuple[Any, ...]) -> tuple[list[Any], tuple[Any, tuple[Any, ...]]]:
    """The numbers of processors, which are data, and the rest, which is program."""
    leaves, tree = jax.tree.flatten(processors)
    number = [isinstance(x, (int, float, np.ndarray, np.generic, jax.Array)) for x in leaves]
    fixed = tuple(None if n else x for n, x in zip(number, leaves, strict=True))
    return [x for n, x in zip(number, leaves, strict=True) if n], (tree, fixed)


def join(tree: Any, fixed: tuple[Any, ...], numbers: Sequence[Any]) -> tuple[Any, ...]:
    rest = iter(numbers)
    return jax.tree.unflatten(tree, [next(rest) if x is None else x for x in fixed])
