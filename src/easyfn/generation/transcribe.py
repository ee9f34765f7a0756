"""`transcribe`: Whisper on recordings of any length, window after window, as the timestamps say how far each went."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ..core.arrays import Host
from ..forward.forward import forward
from ..inputs.statement import inputs as inputs_of
from ..nn.context import Runtime
from .config import GenerationConfig
from .generate import generate
from .options import resolve
from .speech import Timestamps, facts_of, prompt_tokens

STEP = 0.02  # seconds between two timestamps: two frames of the encoder's input
FRAMES = 2


class Segment(NamedTuple):
    """A stretch of a recording and its tokens, the times among them: `start` and `end` in seconds."""

    start: float
    end: float
    tokens: np.ndarray


class Transcription(NamedTuple):
    """What [`easyfn.transcribe`][] returns.

    - `sequences`: int32 `(rows, columns)`: the tokens of all segments of each recording, without the prompt and without
      the end token, `pad_token_id` behind them: what transformers' `generate` returns for Whisper.
    - `segments`: for each recording its [`Segment`][easyfn.Segment]s.
    """

    sequences: np.ndarray
    segments: tuple[tuple[Segment, ...], ...]


@dataclasses.dataclass(frozen=True)
class _Call:
    """What does not change from window to window."""

    model: Any
    config: GenerationConfig
    options: dict[str, Any]
    facts: dict[str, Any]
    processors: tuple[Any, ...]
    init: np.ndarray  # [rows, tokens], of the prompt that names language and task
    first_time: int
    positions: int
    temperatures: tuple[float | None, ...]
    compression: float | None
    logprob: float | None
    silence: float | None
    key: Any
    runtime: Runtime


def transcribe(
    model: Any,
    input_features: Float[Array, "batch bins frames"] | Host,
    *,
    attention_mask: Shaped[Array, "batch frames"] | Host | None = None,
    language: str | Sequence[str] | None = None,
    task: str | None = None,
    return_timestamps: bool | None = None,
    prompt_ids: Int[Array, " prompt"] | Host | None = None,
    prompt_condition_type: str = "first-segment",
    condition_on_prev_tokens: bool | None = None,
    temperature: float | Sequence[float] | None = None,
    compression_ratio_threshold: float | None = None,
    logprob_threshold: float | None = None,
    no_speech_threshold: float | None = None,
    key: Any = None,
    config: Any = None,
    processors: Sequence[Any] = (),
    runtime: Runtime = Runtime(),
    **options: Any,
) -> Transcription:
    """The text of recordings, as token ids: transformers' `generate` of Whisper, with its options and its tokens.

    A recording of up to 30 seconds is one window. A longer one is read window by window, and each begins where the
    timestamps of the one before say that its last whole segment ended.

    **Arguments**

    - `input_features`: from [`easyfn.log_mel`][] or transformers' extractor, `(batch, num_mel_bins, frames)`, of any
      number of frames; `attention_mask` `(batch, frames)` says how long each of several long recordings is.
    - `language`: `"en"`, `"<|en|>"` or `"english"`, or one for each recording; without it the checkpoint's own, or
      else what the model hears. `task`: `"transcribe"` or `"translate"` (to English).
    - `return_timestamps`: whether times are among the tokens. Long recordings need them.
    - `prompt_ids`: tokens of a text that the transcription is to go on from, in the style of the first window only, or of
      all of them (`prompt_condition_type="all-segments"`); `condition_on_prev_tokens`: each window also reads what was said
      in those before.
    - `temperature`: one, or several that are tried in turn while a window's text is too repetitive
      (`compression_ratio_threshold`) or too unlikely (`logprob_threshold`); above 0 it needs a `key`. A window that is
      likely silent (`no_speech_threshold`) and unlikely is skipped.
    - `config`, `processors`, `options`: as of [`easyfn.generate`][]: `max_new_tokens=`, `num_beams=`, ...

    Where transformers takes the limit of a window from `max_length`, a window that reads the previous text writes at most
    as many tokens as the decoder's positions leave beside half of them. **Raises** `ValueError` for options that contradict
    each other or need what the checkpoint's `generation_config.json` does not say.

    ```python
    import jax, numpy as np, easyfn as ef
    config = ef.models.WhisperConfig(vocab_size=64, d_model=32, num_mel_bins=8, max_source_positions=10, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32,
        decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, generation=ef.Frozen(no_timestamps_token_id=40))
    model = ef.init(config, key=jax.random.key(0))
    heard = ef.transcribe(model, np.zeros((1, 8, 50), np.float32), max_new_tokens=5)
    assert len(heard.segments) == len(heard.sequences) == 1
    ```
    """
    stated = inputs_of(model).fields.get("input_features")
    if stated is None or stated.shape is None or not isinstance(stated.shape[-1], int):
        raise TypeError(f"transcribe takes Whisper, which reads windows of sound, not {type(model).__name__}")
    size = stated.shape[-1]
    features = np.asarray(input_features, np.float32)
    if features.ndim != 3 or features.shape[1] != stated.shape[1] or 0 in features.shape:
        raise ValueError(
            f"transcribe: input_features must have shape (batch, {stated.shape[1]}, frames), not {features.shape}; "
            "ef.log_mel makes them of sound"
        )
    rows, total = features.shape[0], features.shape[2]
    long = total > size
    facts = facts_of(model.config)
    stamps = facts.get("return_timestamps", False) if return_timestamps is None else return_timestamps
    if long and return_timestamps is False:
        raise ValueError(
            f"transcribe: {total} frames are more than a window of {size}, and where the next one begins the timestamps "
            "say: leave return_timestamps out"
        )
    stamps = bool(stamps) or long
    silent = facts.get("no_timestamps_token_id")
    if stamps and silent is None:
        raise ValueError(
            "transcribe: timestamps need no_timestamps_token_id, which the checkpoint's generation_config.json does not say"
        )
    if prompt_condition_type not in ("first-segment", "all-segments"):
        raise ValueError(f"prompt_condition_type={prompt_condition_type!r} is 'first-segment' or 'all-segments'")
    chosen = lambda given, name: facts.get(name) if given is None else given
    conditioned = bool(chosen(condition_on_prev_tokens, "condition_on_prev_tokens"))
    if prompt_condition_type == "all-segments" and not conditioned:
        raise ValueError("transcribe: prompt_condition_type='all-segments' needs condition_on_prev_tokens=True")
    logprob, silence = (
        chosen(logprob_threshold, "logprob_threshold"),
        chosen(no_speech_threshold, "no_speech_threshold"),
    )
    if silence is not None and (logprob is None or silent is None):
        raise ValueError("transcribe: no_speech_threshold needs logprob_threshold, and a checkpoint with timestamps")
    for name in ("do_sample", "num_return_sequences", "return_cache", "decoder_input_ids"):
        if options.get(name):
            raise ValueError(
                f"transcribe: {name} is not its own to choose; temperature= samples, ef.generate does the rest"
            )
    c = resolve(model.config, config, options)
    if logprob is not None and (c.num_beams or 1) > 1:
        raise ValueError("transcribe: logprob_threshold judges the scores of single sequences: leave num_beams out")
    temperatures = tuple(temperature) if isinstance(temperature, (list, tuple)) else (temperature,)
    if key is None and any(t for t in temperatures):
        raise ValueError("transcribe: a temperature above 0 samples, which needs key=jax.random.key(seed)")
    ends = np.full(rows, total)
    if rows > 1 and long:
        if attention_mask is None:
            raise ValueError("transcribe: several long recordings need an attention_mask, which says how long each is")
        ends = np.asarray(attention_mask).sum(axis=1)
    start = c.decoder_start_token_id
    if start is None:
        raise ValueError("transcribe: the checkpoint names no decoder_start_token_id")
    init = prompt_tokens(facts, start, rows, language=language, task=task, timestamps=stamps)
    if any(token is None for row in init for token in row):
        heard = _languages(model, _window(features, np.zeros(rows, int), np.minimum(ends, size), size), start, facts)
        init = [[int(heard[i]) if token is None else token for token in row] for i, row in enumerate(init)]
    eos = c.eos[0] if c.eos else c.bos_token_id
    if stamps:
        by_probability = facts.get("_detect_timestamp_from_logprob", True)
        rules = Timestamps(silent, eos, facts.get("max_initial_timestamp_index"), bool(by_probability))
        processors = (rules, *processors)
    call = _Call(
        model=model,
        config=c,
        options={"config": config, **options},
        facts=facts,
        processors=tuple(processors),
        init=np.asarray(init, np.int32),
        first_time=silent + 1 if silent is not None else model.config.vocab_size + 1,
        positions=model.config.max_target_positions,
        temperatures=temperatures,
        compression=chosen(compression_ratio_threshold, "compression_ratio_threshold"),
        logprob=logprob,
        silence=silence,
        key=key,
        runtime=runtime,
    )
    said = _read(call, features, ends, size, conditioned, prompt_ids, prompt_condition_type)
    pad = c.pad if c.pad is not None else 0
    tokens = [np.concatenate([s.tokens for s in row]) if row else np.zeros(0, np.int32) for row in said]
    sequences = np.full((rows, max(map(len, tokens))), pad, np.int32)
    for i, row in enumerate(tokens):
        sequences[i, : len(row)] = row
    return Transcription(sequences, tuple(map(tuple, said)))


def _read(
    call: _Call, features: np.ndarray, ends: np.ndarray, size: int, conditioned: bool, prompt_ids: Any, kind: str
) -> list[list[Segment]]:
    """The segments of every recording."""
    rows = len(features)
    given = None if prompt_ids is None else np.asarray(prompt_ids, np.int32).reshape(-1)
    opening = call.facts.get("prev_sot_token_id")
    if opening is None and len(call.config.suppress_tokens or ()) >= 2:
        opening = call.config.suppress_tokens[-2]  # where older checkpoints have it
    before: list[list[np.ndarray]] = [[] for _ in range(rows)]
    if given is not None and kind == "first-segment":
        bare = given[1:] if given[0] == call.facts.get("prev_sot_token_id") else given
        before = [[bare] for _ in range(rows)]
    said: list[list[Segment]] = [[] for _ in range(rows)]
    seek, reads = np.zeros(rows, int), [conditioned] * rows
    number = 0
    while (alive := seek < ends).any():
        counts = np.clip(ends - seek, 0, size)
        window = _window(features, seek, counts, size)
        if any(r for r, a in zip(reads, alive, strict=True) if a) and before[0]:
            first = given if given is not None and kind == "all-segments" else opening
            past = [texts if read and ok else None for texts, read, ok in zip(before, reads, alive, strict=True)]
            prompt, mask = _with_past(call, past, first)
        elif given is not None:
            prompt, mask = np.concatenate([np.tile(given, (rows, 1)), call.init], axis=1), None
        else:
            prompt, mask = call.init, None
        tokens, skip, temperature = _heard(call, window, prompt, mask, alive, number)
        number += 1
        for i in np.flatnonzero(alive):
            warm = (temperature[i] or 0.0) >= 0.5
            reads[i] = conditioned and not warm
            if skip[i]:
                seek[i] += counts[i]
                continue
            segments, moved = _segments(tokens[i], seek[i] * STEP / FRAMES, int(counts[i]), call.first_time)
            said[i] += segments
            before[i] += [_without_double_end(s.tokens, call.first_time) for s in segments]
            seek[i] += moved or counts[i]  # a window that ends where it began would be read for ever
    return said


def _window(features: np.ndarray, seek: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """The next frames of each recording, zeros behind them."""
    window = np.zeros((*features.shape[:2], size), np.float32)
    for i, (at, count) in enumerate(zip(seek, counts, strict=True)):
        window[i, :, :count] = features[i, :, at : at + count]
    return window


def _with_past(call: _Call, past: list[list[np.ndarray] | None], opening: Any) -> tuple[np.ndarray, np.ndarray]:
    """Prompts with the newest half of the text before them, padded on the left to one width, and their mask."""
    room = call.positions // 2 - 1
    first = np.zeros(0, np.int32) if opening is None else np.asarray(opening, np.int32).reshape(-1)
    width = room + len(first)
    prompt = np.zeros((len(past), width + call.init.shape[1]), np.int32)
    mask = np.zeros_like(prompt)
    for i, texts in enumerate(past):
        text = np.concatenate([first, *([np.concatenate(texts)[-room:]] if texts else [])])
        row = np.concatenate([text, call.init[i]])
        prompt[i, -len(row) :], mask[i, -len(row) :] = row, 1
    return prompt, mask


def _without_double_end(tokens: np.ndarray, first_time: int) -> np.ndarray:
    """A segment that ends in two times is read without the second, which opens the next."""
    return tokens[:-1] if len(tokens) > 2 and tokens[-2] >= first_time else tokens


def _heard(
    call: _Call, window: np.ndarray, prompt: np.ndarray, mask: np.ndarray | None, alive: np.ndarray, number: int
) -> tuple[list[Any], np.ndarray, list[float | None]]:
    """The tokens of a window (`None` for a row that has ended), whether it is to be skipped, and the temperature that each
    row ended with."""
    c, rows, length = call.config, len(window), prompt.shape[1]
    new = c.max_new_tokens
    if new is not None and new + length > call.positions:
        raise ValueError(
            f"transcribe: a prompt of {length} tokens and max_new_tokens={new} are more than the decoder's "
            f"{call.positions} positions"
        )
    limit = {}
    if new is None and c.max_length is not None:
        limit["max_length"] = min(c.max_length + min(call.positions // 2 - 1, length), call.positions)
    given: dict[str, Any] = {"decoder_input_ids": prompt}
    if mask is not None:
        given["decoder_attention_mask"] = mask
    silence = None
    if call.silence is not None:
        place = length - call.init.shape[1]
        logits = _scores(call.model, {"input_features": window, **given})[:, place]
        silence = np.asarray(jax.nn.softmax(logits, axis=-1))[:, call.first_time - 2]
    tokens: list[Any] = [None] * rows
    skip, used = np.zeros(rows, bool), [call.temperatures[0]] * rows
    pending = [int(i) for i in np.flatnonzero(alive)]
    for n, temperature in enumerate(call.temperatures):
        options: dict[str, Any] = {**call.options, **limit, "do_sample": False}
        if temperature:
            key = jax.random.fold_in(jax.random.fold_in(call.key, number), n)
            options |= {"do_sample": True, "temperature": float(temperature), "num_beams": 1, "key": key}
        if call.logprob is not None:
            options["output_scores"] = True
        out = generate(call.model, window, processors=call.processors, runtime=call.runtime, **given, **options)
        ends, ids, again = np.asarray(out.lengths), np.asarray(out.sequences), []
        for i in pending:
            text = ids[i, length : ends[i]]
            retry, skip[i] = _judged(call, text, out.scores, i, temperature, silence)
            tokens[i] = text[:-1] if len(text) and text[-1] in c.eos else text
            used[i] = temperature
            again += [i] if retry else []
        pending = again
        if not pending:
            break
    return tokens, skip, used


def _judged(
    call: _Call, text: np.ndarray, scores: Any, row: int, temperature: float | None, silence: Any
) -> tuple[bool, bool]:
    """Whether a text is to be tried again at another temperature, and whether its window is to be skipped."""
    retry = call.compression is not None and _compression(text, call.model.config.vocab_size) > call.compression
    if call.logprob is None:
        return retry, False
    steps = np.asarray(scores[: len(text), row], np.float32) * (temperature or 1.0)
    each = np.asarray(jax.nn.log_softmax(jnp.asarray(steps), axis=-1))[np.arange(len(text)), text]
    mean = float(each.sum() / max(len(text), 1))
    skip = call.silence is not None and mean < call.logprob and float(silence[row]) > call.silence
    return (retry or mean < call.logprob) and not skip, skip


def _compression(tokens: np.ndarray, vocab_size: int) -> float:
    """How many times smaller zlib makes the tokens, as bytes."""
    width = int(math.log2(vocab_size) / 8) + 1
    data = b"".join(int(token).to_bytes(width, "little") for token in tokens)
    return len(data) / len(zlib.compress(data))


def _segments(tokens: np.ndarray, offset: float, count: int, first_time: int) -> tuple[list[Segment], int]:
    """The segments of a window's tokens, and how many frames of the `count` are done with.

    Two times in a row end one segment and begin the next. What follows the last pair is cut off in the middle, and read
    again, unless the text ends in a single time: after it there is nothing to hear.
    """
    times = tokens >= first_time
    cuts = [i + 1 for i in range(len(tokens) - 1) if times[i] and times[i + 1]]
    if not cuts:
        length: float = int(count / FRAMES)
        stamped = np.flatnonzero(times)
        if len(stamped) and tokens[stamped[-1]] != first_time:
            length = int(tokens[stamped[-1]]) - first_time
        return [Segment(offset, offset + length * STEP, tokens)], count
    single = len(tokens) >= 2 and bool(times[-1]) and not times[-2]
    if single:
        cuts.append(len(tokens))
    else:
        cuts[-1] += 1  # the second of the last pair stays, to show that it was one
    found, last = [], 0
    for n, cut in enumerate(cuts):
        part = tokens[last:cut]
        end = part[-1] if single or n < len(cuts) - 1 else part[-2]
        start = offset + (int(part[0]) - first_time) * STEP
        found.append(Segment(start, offset + (int(end) - first_time) * STEP, part))
        last = cut
    return found, count if single else (int(tokens[last - 2]) - first_time) * FRAMES


@jax.jit
def _scores(model: Any, inputs: dict[str, Any]) -> Any:
    return forward(model, **inputs).logits


def _languages(model: Any, window: np.ndarray, start: int, facts: dict[str, Any]) -> np.ndarray:
    """The likeliest language of each recording's first window: its token."""
    ids = np.asarray(list(facts["lang_to_id"].values()))
    prompt = np.full((len(window), 1), start, np.int32)
    logits = _scores(model, {"input_features": window, "decoder_input_ids": prompt})[:, -1]
    return ids[np.argmax(np.asarray(logits)[:, ids], axis=1)]
