"""Whisper's way with tokens: the prompt that names language and task, and the rules of its timestamps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .processors import OFF
from .state import Logits, State

# What a generation_config.json says of speech; `generate` reads none of it, but for the prompt.
FACTS = frozenset(
    [
        *("alignment_heads", "forced_decoder_ids", "is_multilingual", "lang_to_id", "language", "median_filter_width"),
        *("max_initial_timestamp_index", "no_timestamps_token_id", "prev_sot_token_id", "return_timestamps", "task"),
        *("task_to_id", "condition_on_prev_tokens", "compression_ratio_threshold", "logprob_threshold"),
        *("no_speech_threshold", "prompt_condition_type", "return_token_timestamps", "_detect_timestamp_from_logprob"),
    ]
)


def facts_of(config: Any) -> dict[str, Any]:
    """What a checkpoint says of speech: its `generation_config.json`, or (old files) its `config.json`."""
    extra = getattr(config, "extra", None) or {}
    generation = getattr(config, "generation", None) or {}
    found = {name: extra[name] for name in FACTS if extra.get(name) is not None}
    return found | {name: generation[name] for name in FACTS if generation.get(name) is not None}


def prompt_tokens(
    facts: Mapping[str, Any],
    start: int,
    rows: int,
    *,
    language: str | Sequence[str] | None = None,
    task: str | None = None,
    timestamps: bool = False,
) -> list[list[int | None]]:
    """The tokens that a transcription of each row starts from: the start, a language, a task, and, without timestamps,
    the token that says so. `None` stands for a language that must be found out from the sound."""
    language = facts.get("language") if language is None else language
    task = facts.get("task") if task is None else task
    if facts.get("is_multilingual") is False and (language is not None or task is not None):
        raise ValueError("transcribe: this checkpoint knows English only: it takes no language and no task")
    one: list[int | None] = [start]
    if language is None and task is None:
        forced = [tuple(pair) for pair in facts.get("forced_decoder_ids") or ()]
        if forced and forced[0][0] == 1:
            if [place for place, _ in forced] != list(range(1, len(forced) + 1)):
                raise ValueError(f"forced_decoder_ids={forced} leave places of the prompt open")
            one += [token for _, token in forced]
    codes = facts.get("lang_to_id")
    named: list[int | None] = [None] * rows
    if language is not None:
        if codes is None:
            raise ValueError("transcribe: the checkpoint's generation_config.json has no lang_to_id, so no language=")
        several = [language] * rows if isinstance(language, str) else list(language)
        if len(several) != rows:
            raise ValueError(f"transcribe: {len(several)} languages for {rows} recordings")
        named = [language_token(each, codes) for each in several]
    found = []
    for i in range(rows):
        row = list(one)
        if language is not None or (codes is not None and (len(row) < 2 or row[1] is None)):
            row[1:2] = [named[i]]
        else:
            row = [token for token in row if token is not None]
        tasks = facts.get("task_to_id")
        if task is not None:
            if tasks is None or task not in tasks:
                known = ", ".join(tasks or ()) or "none"
                raise ValueError(
                    f"transcribe: task={task!r} is unknown; generation_config.json's task_to_id has {known}"
                )
            row.append(tasks[task])
        elif language is not None and tasks is not None and not set(row) & set(tasks.values()):
            row.append(tasks["transcribe"])
        silent = facts.get("no_timestamps_token_id")
        if not timestamps and silent is not None and row[-1] != silent:
            row.append(silent)
        elif timestamps and row[-1] == silent:
            row.pop()
        found.append(row)
    return found


def language_token(language: str, codes: Mapping[str, int]) -> int:
    """The token of a language: `en`, `<|en|>`, or its English name."""
    from .languages import LANGUAGES

    name = language.lower()
    for key in (name, f"<|{name}|>", f"<|{LANGUAGES.get(name, '')}|>"):
        if key in codes:
            return codes[key]
    known = ", ".join(code.strip("<|>") for code in codes)
    raise ValueError(f"transcribe: language={language!r} is none of this checkpoint's: {known}")


class Timestamps(eqx.Module):
    """Whisper's rules for times in text (Radford et al. 2022, section 2.3; transformers' `WhisperTimeStampLogitsProcessor`).

    Times come in pairs (the end of a segment and the start of the next), never run backwards, and open the text, no later
    than `latest` steps of 20 ms; and where all times together are likelier than every word, a time is due.
    """

    silent: Any  # the token that says that there are no times; those of times follow it
    eos: Any
    latest: int | None = eqx.field(static=True)
    by_probability: bool = eqx.field(static=True, default=True)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        begin = self.silent + 1
        token = jnp.arange(logits.shape[1])[None]
        time = token >= begin
        column = jnp.arange(ids.shape[1])[None]
        ours = (column >= state.prompt_length) & (column < state.length)
        newest = jnp.max(jnp.where(ours & (ids >= begin), column, -1), axis=1, keepdims=True)
        last_time = jnp.take_along_axis(ids, jnp.maximum(newest, 0), axis=1)  # [batch, 1]
        at = lambda back: jax.lax.dynamic_slice_in_dim(ids, jnp.maximum(state.length - back, 0), 1, axis=1)
        last = (at(1) >= begin) & (state.new >= 1)
        before = (at(2) >= begin) | (state.new < 2)

        off = (token == self.silent) | (last & before & time) | (last & ~before & (token < self.eos))
        open_end = last & ~before
        floor = jnp.where(newest < 0, begin, last_time + ~open_end)
        off = off | (time & (token < floor))
        first = state.new == 0
        off = off | (first & ~time)
        if self.latest is not None:
            off = off | (first & (token > begin + self.latest))
        logits = jnp.where(off, OFF, logits)
        if self.by_probability:
            scores = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
            times = jax.nn.logsumexp(jnp.where(time, scores, OFF), axis=-1)
            words = jnp.max(jnp.where(time, OFF, scores), axis=-1)
            logits = jnp.where((times > words)[:, None] & ~time, OFF, logits)
        return logits, state


def default_prompt(config: Any, start: int, rows: int) -> jax.Array:
    """What a decoder of speech starts from when nobody says: the start token, or the prompt of the checkpoint's files."""
    found = prompt_tokens(facts_of(config), start, rows)
    if any(token is None for row in found for token in row):
        raise ValueError(
            "generate: the prompt of this model names a language, and nobody said which: ef.transcribe finds it out (or takes "
            "language=); here give decoder_input_ids"
        )
    return jnp.asarray(found, jnp.int32)
