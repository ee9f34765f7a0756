"""Texts as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ..forward.forward import forward
from ..tasks.task import task


def embed(
    model: Any, texts: str | Sequence[str], *, tokenizer: Any, batch_size: int = 32, length: int | None = None
) -> Float[np.ndarray, "*texts embed"]:
    """One vector for each text, `(texts, embed)` in float32; for one string one vector. As sentence-transformers' `encode`.

    - `model`: of the task `"sentence-embedding"`: what `ef.load` makes of a sentence-transformers checkpoint.
    - `tokenizer`: of [`easyfn.tokenizer`][], or of transformers.
    - `length`: tokens that a text is cut to, the special ones among them: by default what the checkpoint says to
      sentence-transformers (`max_seq_length`), else the tokenizer's own limit, else the model's.
    - Texts are sorted by length and padded to widths that double, so that a few programs serve all.

    ```python
    import easyfn as ef, jax
    from tokenizers import Tokenizer, models, pre_tokenizers
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = ef.models.BertConfig(vocab_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    model = ef.init(config, task="sentence-embedding", key=jax.random.key(0))
    vectors = ef.embed(model, ["a b", "b"], tokenizer=tokenizer)
    assert vectors.shape == (2, 32)
    ```
    """
    check_embeds(model, "ef.embed")
    reader = Reader(tokenizer, model, length)
    if isinstance(texts, str):
        return vectors(model, [reader.ids(texts)], batch_size)[0]
    return vectors(model, [reader.ids(text) for text in texts], batch_size)


def check_embeds(model: Any, who: str) -> None:
    """Raises `TypeError` for a model of another task."""
    if task(model) != "sentence-embedding":
        raise TypeError(
            f"{who} reads texts with a model of the task 'sentence-embedding', and this one's is {task(model)!r}: "
            "ef.load(path, task='sentence-embedding')"
        )


def vectors(model: Any, rows: Sequence[Sequence[int]], batch_size: int) -> np.ndarray:
    """One vector for each row of token ids."""
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    found: list[Any] = [None] * len(rows)
    for start in range(0, len(rows), batch_size):
        part = order[start : start + batch_size]
        size = min(batch_size, 1 << (len(part) - 1).bit_length())
        width = max(8, 1 << (max(len(rows[n]) for n in part) - 1).bit_length())
        width = min(width, getattr(model.config, "max_position_embeddings", None) or width)
        ids, mask = np.zeros((2, size, width), np.int32)
        mask[len(part) :, 0] = 1
        for place, n in enumerate(part):
            ids[place, : len(rows[n])], mask[place, : len(rows[n])] = rows[n], 1
        made = np.asarray(_vectors(model, ids, mask))
        for place, n in enumerate(part):
            found[n] = made[place]
    return np.stack(found) if found else np.zeros((0, model.config.hidden_size), np.float32)


@jax.jit
def _vectors(model: Any, ids: Any, mask: Any) -> Any:
    return forward(model, ids, attention_mask=mask).embeddings


class Reader:
    """A tokenizer beside the caller's own, which neither cuts nor pads, and the most tokens of a text: `limit`."""

    def __init__(self, tokenizer: Any, model: Any, length: int | None = None) -> None:
        if isinstance(tokenizer, str | Path):
            raise TypeError(f"ef.embed: tokenizer is a tokenizer, not its place: ef.tokenizer({str(tokenizer)!r})")
        self._lower = model.lower
        own = getattr(model.config, "max_position_embeddings", None)
        limits = [length, None if model.length is None else min(model.length, own or model.length), own]
        if hasattr(tokenizer, "no_truncation"):
            limits.insert(2, (tokenizer.truncation or {}).get("max_length"))
            tokenizer = type(tokenizer).from_str(tokenizer.to_str())
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.limit: int | None = next((limit for limit in limits if limit), None)

    def ids(self, text: str, *, cut: bool = True) -> list[int]:
        """The tokens of a text, cut so that the special ones stay."""
        found = self._tokenizer.encode(text.lower() if self._lower else text)
        if hasattr(found, "ids"):
            ids, special = found.ids, found.special_tokens_mask
        else:
            ids = list(found)
            special = self._tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        if not ids:
            raise ValueError(f"ef.embed: the tokenizer makes no token of {text!r}")
        if not cut or self.limit is None or len(ids) <= self.limit:
            return ids
        behind = next(n for n, mark in enumerate(reversed(special)) if not mark)  # special tokens at the end
        return ids[: self.limit - behind] + ids[len(ids) - behind :]
