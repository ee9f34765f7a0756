"""From logits to the next token of each row, with each row's own numbers: those of `generation/processors.py` and
`generation/sampling.py`, one row at a time under `vmap`. A step that no row asks for is skipped when the program runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..generation.config import GenerationConfig
from ..generation.options import SAMPLING
from ..generation.processors import (
    OFF,
    EncoderRepetitionPenalty,
    ExponentialDecay,
    FrequencyPenalty,
    RemoveInvalid,
    RepetitionPenalty,
)
from ..generation.sampling import EpsilonCutoff, EtaCutoff, MinP, Renormalize, Temperature, TopH, TopP, Typical, draw
from ..generation.state import State, process

# The numbers of a row, and the value of each that changes nothing.
NUMBERS: dict[str, float] = {
    "do_sample": 0.0,
    "temperature": 1.0,
    "top_h": -1.0,
    "top_k": 0.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "decay_start": -1.0,
    "decay_factor": 1.0,
    "remove_invalid_values": 0.0,
    "renormalize_logits": 0.0,
    "logprobs": 0.0,  # one more than the likeliest tokens whose scores are told
    "prompt_logprobs": 0.0,  # the same of the prompt's own
}
INDEX = {name: i for i, name in enumerate(NUMBERS)}
EOS = 8  # ids that `exponential_decay_length_penalty` can raise
MOST_SCORES = 20  # of the likeliest tokens, as OpenAI's API has it
FEW = 128  # `top_k` up to here needs no sorted vocabulary


def numbers_of(c: GenerationConfig) -> np.ndarray:
    """float32 `(len(NUMBERS),)`: what a complete config says."""
    said: dict[str, Any] = {name: getattr(c, name, None) for name in NUMBERS}
    if c.exponential_decay_length_penalty is not None and c.eos:
        said["decay_start"], said["decay_factor"] = c.exponential_decay_length_penalty
    if not c.do_sample:
        said |= dict.fromkeys(SAMPLING)
    return np.asarray([inert if said[n] is None else float(said[n]) for n, inert in NUMBERS.items()], np.float32)


class Scores(NamedTuple):
    """Log-probabilities of what the model itself says of a token, whatever was done to its logits afterwards."""

    own: jax.Array  # [rows] of the token that was chosen
    best: jax.Array  # [rows, MOST_SCORES] the highest
    ids: jax.Array  # [rows, MOST_SCORES] whose they are


def scores_of(logits: jax.Array, token: jax.Array, asked: jax.Array) -> Scores:
    """Of logits `(rows, vocab)`; zeros where none of the rows is `asked`."""
    few = min(MOST_SCORES, logits.shape[-1])

    def make(logits: jax.Array) -> Scores:
        scores = jax.nn.log_softmax(logits.astype(jnp.float32))
        own = jnp.take_along_axis(scores, token[:, None], axis=-1)[:, 0]
        best, ids = lax.top_k(scores, few)
        return Scores(own, best, ids.astype(jnp.int32))

    def nothing(logits: jax.Array) -> Scores:
        rows = logits.shape[0]
        return Scores(jnp.zeros((rows,)), jnp.zeros((rows, few)), jnp.zeros((rows, few), jnp.int32))

    return lax.cond(jnp.any(asked), make, nothing, logits)


class Asked(NamedTuple):
    """The data of each row that its next token depends on."""

    numbers: jax.Array  # [rows, len(NUMBERS)]
    eos: jax.Array  # [rows, EOS], -1 = none
    keys: jax.Array  # [rows] PRNG keys
    bias: jax.Array  # [rows, vocab], of `controls.py`
    biased: jax.Array  # [rows] bool: whether there is any


def next_tokens(
    logits: jax.Array,
    asked: Asked,
    ids: jax.Array,
    length: jax.Array,
    prompt_length: jax.Array,
    processors: tuple[Any, ...],
    memories: tuple[Any, ...],
) -> tuple[jax.Array, tuple[Any, ...]]:
    """int32 `(rows,)`, and the new memories of `processors`. `ids` `(rows, columns)` are the tokens so far, of which
    `length` `(rows,)` are written and `prompt_length` the prompt's; -1 where there is none."""
    logits = logits.astype(jnp.float32)
    n = {name: asked.numbers[:, i] for name, i in INDEX.items()}
    on = {name: n[name] != inert for name, inert in NUMBERS.items()}
    rows = (ids, length, prompt_length, n, asked.eos)

    def some(logits: jax.Array, active: jax.Array, change: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return lax.cond(jnp.any(active), lambda x: jnp.where(active[:, None], change(x), x), lambda x: x, logits)

    def each(one: Callable[..., jax.Array]) -> Callable[[jax.Array], jax.Array]:
        return lambda logits: jax.vmap(one)(logits, *rows)

    constrained = asked.biased | on["remove_invalid_values"] | on["decay_factor"]
    for name in ("repetition_penalty", "encoder_repetition_penalty", "frequency_penalty", "presence_penalty"):
        constrained = constrained | on[name]

    def constrain(logits: jax.Array) -> jax.Array:
        logits = logits + jnp.where(asked.biased[:, None], asked.bias, 0.0)
        logits = some(logits, on["encoder_repetition_penalty"], each(_encoder_repetition))
        logits = some(logits, on["repetition_penalty"], each(_repetition))
        logits = some(logits, on["frequency_penalty"] | on["presence_penalty"], each(_frequency))
        logits = some(logits, on["remove_invalid_values"], each(_plain(lambda n: RemoveInvalid())))
        return some(logits, on["decay_factor"], each(_decay))

    logits = lax.cond(jnp.any(constrained), constrain, lambda x: x, logits)
    if processors:
        own = lambda ids, logits, length, prompt, memory: process(
            processors, memory, ids[None], logits[None], length, prompt
        )
        logits, memories = jax.vmap(own)(ids, logits, length, prompt_length, memories)
        logits = logits[:, 0]
    renormalized = lambda x: some(x, on["renormalize_logits"], each(_plain(lambda n: Renormalize())))

    def sample(logits: jax.Array) -> jax.Array:
        x = some(logits, on["temperature"], each(_plain(lambda n: Temperature(n["temperature"]))))
        x = some(x, on["top_h"], each(_plain(lambda n: TopH(n["top_h"]))))
        x = some(x, on["top_k"], lambda x: _top_k(x, n["top_k"]))
        x = some(x, on["top_p"], each(_plain(lambda n: TopP(n["top_p"]))))
        x = some(x, on["min_p"], each(_plain(lambda n: MinP(n["min_p"]))))
        x = some(x, on["typical_p"], each(_plain(lambda n: Typical(n["typical_p"]))))
        x = some(x, on["epsilon_cutoff"], each(_plain(lambda n: EpsilonCutoff(n["epsilon_cutoff"]))))
        x = some(x, on["eta_cutoff"], each(_plain(lambda n: EtaCutoff(n["eta_cutoff"]))))
        one = jax.vmap(lambda key, step, row: draw(key[None], step, row[None])[0])
        drawn = one(asked.keys, length - prompt_length, renormalized(x))
        return jnp.where(on["do_sample"], drawn, best(logits))

    def best(logits: jax.Array) -> jax.Array:
        return jnp.argmax(renormalized(logits), axis=-1).astype(jnp.int32)

    return lax.cond(jnp.any(on["do_sample"]), sample, best, logits), memories


def _plain(make: Callable[[dict[str, Any]], Any]) -> Callable[..., jax.Array]:
    """One row through a processor that looks at its logits only."""
    return lambda logits, ids, length, prompt, n, eos: make(n)(State(length, prompt), ids[None], logits[None])[0][0]


def _repetition(logits, ids, length, prompt, n, eos):
    processor = RepetitionPenalty(n["repetition_penalty"])
    memory = processor.init(ids[None], logits.shape[0])
    return processor(State(length, prompt, memory), ids[None], logits[None])[0][0]


def _encoder_repetition(logits, ids, length, prompt, n, eos):
    own = jnp.where(jnp.arange(ids.shape[0]) < prompt, ids, -1)
    processor = EncoderRepetitionPenalty(n["encoder_repetition_penalty"], own[None])
    return processor(State(length, prompt), ids[None], logits[None])[0][0]


def _frequency(logits, ids, length, prompt, n, eos):
    column = jnp.arange(ids.shape[0])
    before = jnp.where((column >= prompt) & (column < length - 1) & (ids >= 0), ids, logits.shape[0])
    count = jnp.zeros_like(logits).at[before].add(1.0, mode="drop")
    processor = FrequencyPenalty(n["frequency_penalty"], n["presence_penalty"])
    return processor(State(length, prompt, count[None]), ids[None], logits[None])[0][0]


def _decay(logits, ids, length, prompt, n, eos):
    processor = ExponentialDecay(n["decay_start"], n["decay_factor"], jnp.where(eos < 0, logits.shape[0], eos))
    return processor(State(length, prompt), ids[None], logits[None])[0][0]


def _top_k(logits: jax.Array, k: jax.Array) -> jax.Array:
    """`TopK` with a `k` of each row: the same threshold, read from the few best, or else from all in order."""
    few = min(FEW, logits.shape[1])
    place = jnp.clip(k.astype(jnp.int32), 1, logits.shape[1])[:, None] - 1
    nth = lambda best: jnp.take_along_axis(best, jnp.minimum(place, best.shape[1] - 1), axis=1)
    threshold = lax.cond(
        jnp.all(place < few), lambda x: nth(lax.top_k(x, few)[0]), lambda x: nth(-jnp.sort(-x, axis=1)), logits
    )
    return jnp.where(logits < threshold, OFF, logits)
