"""Batches in an order that a seed decides and that resumes at the exact example, by Grain (extra `train`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from .pack import best_fit, packed_row, padded, pieces


def batches(
    examples: Sequence[Mapping[str, Any]] | Integer[np.ndarray, " tokens"],
    *,
    batch_size: int,
    length: int,
    pack: bool = False,
    buckets: Sequence[int] = (),
    pad: int = 0,
    seed: int | None = 0,
    epochs: int | None = None,
    process: int = 0,
    processes: int = 1,
) -> Any:
    """Batches of numpy arrays for `ef.train_step`: a Grain `IterDataset`.

    - `examples`: what [`easyfn.tokenize`][] makes; or one array of token ids, which is cut into rows of `length`.
    - `pack`: several documents to a row, by [`easyfn.best_fit`][], with `segment_ids`; longer ones are cut. Else each is a
      row of its own, padded on the right and cut at `length`.
    - `buckets`: lengths, all that is compiled for: each batch has examples of like lengths, and the columns of the
      smallest bucket that holds them.
    - `seed`: of the order, another one in each epoch; `None` keeps the order of the examples.
    - `epochs`: how many; without end by default. What does not fill a batch at the end of an epoch is dropped.
    - `process` of `processes` gets its share of each batch: `batch_size / processes` rows, none of them twice.

    `iter(...)` has Grain's `get_state()`, a small dict for JSON, and `set_state(state)`, after which the next batch is the
    very one that would have come: give it to [`easyfn.Checkpoints`][] as `data_state`.

    ```python
    import numpy as np, easyfn as ef
    documents = [{"input_ids": np.arange(3, 3 + n)} for n in (5, 9, 2, 7, 4, 4)]
    stream = iter(ef.batches(documents, batch_size=2, length=12, pack=True))
    first, state, second = next(stream), stream.get_state(), next(stream)
    assert first["input_ids"].shape == (2, 12) and first["segment_ids"].max() > 1
    stream.set_state(state)
    assert (next(stream)["input_ids"] == second["input_ids"]).all()
    ```
    """
    grain = _grain()
    if batch_size < 1 or length < 2 or batch_size % processes or not 0 <= process < processes:
        raise ValueError(
            f"batches: batch_size={batch_size}, length={length}, process {process} of {processes}: at least one row of two "
            "tokens, and as many rows for every process"
        )
    if pack and buckets:
        raise ValueError("batches: packed rows have one length, so pack=True needs no buckets")
    rows = _rows(examples, length)
    if pack:
        if "input_ids" not in rows[0]:
            raise ValueError("batches: pairs of answers are not packed: pack=False")
        rows = [part for row in rows for part in pieces(row, length)]
        plan: list[list[int]] = best_fit([len(row["input_ids"]) for row in rows], length)
    else:
        plan = [[n] for n in range(len(rows))]
    widths = [length] * len(plan)
    if buckets:
        sizes = sorted(set(buckets))
        if _longest(rows) > sizes[-1]:
            raise ValueError(f"batches: an example has {_longest(rows)} tokens, and the widest bucket {sizes[-1]}")
        widths = [next(size for size in sizes if size >= _size(row)) for row in rows]
    kinds = [[n for n, width in enumerate(widths) if width == size] for size in sorted(set(widths))]
    if not any(len(kind) >= batch_size for kind in kinds):
        raise ValueError(f"batches: {len(plan)} rows of {length} tokens are fewer than one batch of {batch_size}")

    def whole(numbers: Sequence[int]) -> dict[str, np.ndarray]:
        width = widths[numbers[0]]
        share = numbers[process * (batch_size // processes) : (process + 1) * (batch_size // processes)]
        if pack:
            each = [packed_row([rows[n] for n in plan[number]], width, pad) for number in share]
            return {name: np.stack([row[name] for row in each]) for name in each[0]}
        each = [{n: v[:width] if v.ndim else v for n, v in rows[number].items()} for number in share]
        return padded(each, width, pad)

    # Each kind of row is shuffled and cut into batches by itself; then the batches are.
    parts = []
    for n, kind in enumerate(kinds):
        if len(kind) < batch_size:
            continue
        part = grain.MapDataset.source(kind)
        part = part if seed is None else part.shuffle(seed=seed + n)
        parts.append(part.batch(batch_size, drop_remainder=True))
    together = parts[0] if len(parts) == 1 else grain.MapDataset.concatenate(parts)
    if len(parts) > 1 and seed is not None:
        together = together.shuffle(seed=seed)
    together = together.repeat(epochs).map(lambda numbers: whole([int(n) for n in numbers]))
    return together.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def _rows(examples: Any, length: int) -> list[Any]:
    if isinstance(examples, np.ndarray):
        if examples.ndim != 1:
            raise ValueError(f"batches: token ids are one array of one dimension, not of shape {examples.shape}")
        whole = examples[: len(examples) // length * length].reshape(-1, length)
        return [{"input_ids": row, "labels": row} for row in whole]
    if wrong := [each for each in examples if not isinstance(each, Mapping)]:
        raise TypeError(
            "batches takes examples of token ids, [ef.tokenize(text, tokenizer) for text in texts], or one array of them, not "
            f"a list of {type(wrong[0]).__name__}"
        )
    rows = [{name: np.asarray(value) for name, value in each.items()} for each in examples]
    if not rows:
        raise ValueError("batches: there are no examples")
    return rows


def _size(row: Mapping[str, np.ndarray]) -> int:
    return max(len(value) for value in row.values() if value.ndim == 1)


def _longest(rows: Sequence[Mapping[str, np.ndarray]]) -> int:
    return max(map(_size, rows))


def _grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise ImportError("ef.batches needs grain: pip install 'easyfn[train]'") from error
    return grain
