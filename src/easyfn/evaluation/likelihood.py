"""Log likelihoods: of continuations, of whole texts (perplexity), of the answers to choose from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from ..forward.forward import forward

IGNORED = -100


@jax.jit
def _score(model: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Of each row the log probability of its labels, float32, and whether each of them is the likeliest token."""
    logits = forward(model, batch["input_ids"], attention_mask=batch["attention_mask"]).logits.astype(jnp.float32)
    counted = batch["labels"] != IGNORED
    labels = jnp.where(counted, batch["labels"], 0)[..., None]
    found = jnp.take_along_axis(logits, labels, axis=-1)[..., 0]
    each = jnp.where(counted, found - jax.nn.logsumexp(logits, axis=-1), 0.0)
    best = found >= jnp.max(logits, axis=-1)
    return jnp.sum(each, axis=1), jnp.all(best | ~counted, axis=1)


def loglikelihoods(
    model: Any,
    pairs: Sequence[tuple[Any, Any]],
    *,
    max_length: int | None = None,
    batch_size: int = 8,
    round_to: int = 32,
) -> tuple[Float[np.ndarray, " pairs"], Bool[np.ndarray, " pairs"]]:
    """Of each pair `(context, continuation)` of token ids: the log probability of the continuation (float64 `(pairs,)`, a
    sum over its tokens), and whether greedy decoding would write it.

    A context has at least one token. `max_length`: only so many of the last tokens are read. Rows of like length run
    together, with lengths rounded up to a multiple of `round_to`, so that few programs are compiled.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    found, greedy = ef.loglikelihoods(model, [([1, 2], [3]), ([1], [2, 3, 4])])
    assert found.shape == (2,) and (found < 0).all()
    ```
    """
    rows: list[tuple[list[int], int]] = []
    for context, continuation in pairs:
        if not len(context) or not len(continuation):
            raise ValueError("loglikelihoods: a context and a continuation have at least one token each")
        whole = [*map(int, context), *map(int, continuation)]
        if max_length is not None:
            if len(continuation) > max_length:
                raise ValueError(f"loglikelihoods: a continuation has {len(continuation)} tokens, over {max_length}")
            whole = whole[-(max_length + 1) :]
        rows.append((whole, min(len(continuation), len(whole) - 1)))
    sums, greedy = np.zeros(len(rows)), np.zeros(len(rows), bool)
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n][0]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = -(-(len(rows[chosen[0]][0]) - 1) // round_to) * round_to
        width = width if max_length is None else min(width, max_length)
        batch = {name: np.zeros((batch_size, width), np.int32) for name in ("input_ids", "attention_mask")}
        batch["labels"] = np.full((batch_size, width), IGNORED, np.int32)
        batch["attention_mask"][len(chosen) :, 0] = 1  # rows that fill the last batch
        for row, n in enumerate(chosen):
            whole, count = rows[n]
            size = len(whole) - 1
            batch["input_ids"][row, :size] = whole[:-1]
            batch["attention_mask"][row, :size] = 1
            batch["labels"][row, size - count : size] = whole[-count:]
        found, best = _score(model, batch)
        sums[chosen], greedy[chosen] = np.asarray(found)[: len(chosen)], np.asarray(best)[: len(chosen)]
    return sums, greedy


def perplexity(
    model: Any,
    ids: Sequence[int] | Integer[Array, " tokens"] | Integer[np.ndarray, " tokens"],
    *,
    length: int,
    stride: int | None = None,
    num_bytes: int | None = None,
    batch_size: int = 8,
) -> dict[str, float]:
    """How well a model predicts one text: each token but the first counts once.

    Windows of `length` tokens move by `stride`, so that a token is predicted from at least `length - stride` before it,
    where the text has them. By default `stride` is half of `length`; with `stride=length` it is faster and worse.

    Returns `loss` (nats a token), `perplexity`, `num_tokens`, and, given `num_bytes` of the text, `bits_per_byte`, which
    compares models of different tokenizers (that of the whole text, the first token taken as free).

    ```python
    import numpy as np, easyfn as ef
    model = ef.testing.tiny()
    found = ef.perplexity(model, np.arange(50), length=16, stride=8, num_bytes=120)
    assert found["num_tokens"] == 49 and abs(found["perplexity"] - 64) < 10
    ```
    """
    ids = [int(i) for i in np.asarray(ids).reshape(-1)]
    stride = max(1, length // 2) if stride is None else stride
    if length < 2 or not 1 <= stride <= length:
        raise ValueError(f"perplexity: length={length} is 2 or more, and stride={stride} lies between 1 and it")
    if len(ids) < 2:
        raise ValueError(f"perplexity: a text of {len(ids)} tokens has none to predict")
    pairs, done = [], 1
    while done < len(ids):
        end = min(done + (length - 1 if done == 1 else min(stride, length - 1)), len(ids))
        pairs.append((ids[max(0, end - length) : done], ids[done:end]))
        done = end
    sums, _ = loglikelihoods(model, pairs, batch_size=batch_size, round_to=length)
    total = -float(sums.sum())
    found = {"loss": total / (len(ids) - 1), "num_tokens": float(len(ids) - 1)}
    found["perplexity"] = math.exp(min(found["loss"], 700.0))
    if num_bytes is not None:
        found["bits_per_byte"] = total / math.log(2) / num_bytes
    return found


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """A text and what follows it as token ids, cut where the text's own tokens end, as lm_eval does: spaces at the end of
    the text belong to what follows."""
    cut = len(context.rstrip())
    context, continuation = context[:cut], context[cut:] + continuation
    whole = tokenizer.encode(context + continuation, add_special_tokens=False).ids
    first = tokenizer.encode(context, add_special_tokens=False).ids
    return whole[: len(first)], whole[len(first) :]


def multiple_choice(
    model: Any, tokenizer: Any, questions: Sequence[Mapping[str, Any]], *, batch_size: int = 8, separator: str = " "
) -> dict[str, Any]:
    """Questions answered by the likeliest of their choices.

    Each is `{"question", "choices", "answer"}`, `answer` the number of the right one. A choice is scored behind the question
    and `separator`. Returns `accuracy` (by the log probability of each choice), `accuracy_norm` (by that over its letters, so
    that long ones are not at a loss), and the numbers picked, `picked` and `picked_norm`: lm_eval's `acc` and `acc_norm`.
    """
    pairs, where = [], []
    for n, row in enumerate(questions):
        for text in row["choices"]:
            pairs.append(encode_pair(tokenizer, row["question"], separator + text))
            where.append(n)
    sums, _ = loglikelihoods(model, pairs, batch_size=batch_size)
    sizes = np.asarray([len(text) for row in questions for text in row["choices"]])
    places = np.asarray(where)
    right = np.asarray([int(row["answer"]) for row in questions])
    found: dict[str, Any] = {}
    for end, scores in (("", sums), ("_norm", sums / sizes)):
        picked = np.asarray([int(np.argmax(scores[places == n])) for n in range(len(questions))])
        found |= {f"accuracy{end}": float(np.mean(picked == right)), f"picked{end}": picked.tolist()}
    return found
