"""Documents put together in rows of one length."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Integer, Shaped

IGNORED = -100


def best_fit(lengths: Sequence[int] | Integer[np.ndarray, " documents"], capacity: int) -> list[list[int]]:
    """Which documents share a row: the longest first, each into the row it fills best (best fit decreasing).

    Rows of indices into `lengths`; no row is longer than `capacity`. Where documents are cut only if one is longer than a
    row, training is on far fewer fragments (Ding et al. 2024, arXiv 2404.10830, section 3.1).

    ```python
    import easyfn as ef
    assert ef.best_fit([5, 3, 8, 2], 10) == [[2], [0, 1, 3]]
    ```
    """
    if capacity < 1:
        raise ValueError(f"best_fit: capacity={capacity}; it is a number of tokens, 1 or more")
    if len(lengths) and max(lengths) > capacity:
        raise ValueError(
            f"best_fit: a document of {max(lengths)} tokens is longer than a row of {capacity}: cut it first"
        )
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # space left -> the rows that have it
    spaces: list[int] = []  # its keys, sorted
    for index in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        size = int(lengths[index])
        at = bisect.bisect_left(spaces, size)
        if at < len(spaces):
            space = spaces[at]
            row = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[at]
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        left = space - size
        if left not in by_space:
            bisect.insort(spaces, left)
            by_space[left] = []
        by_space[left].append(row)
    return rows


def pieces(example: Mapping[str, np.ndarray], length: int) -> Iterable[dict[str, np.ndarray]]:
    """An example in parts of at most `length` tokens."""
    for start in range(0, len(example["input_ids"]), length):
        yield {name: value[start : start + length] for name, value in example.items()}


def packed_row(
    documents: Sequence[Mapping[str, Any]], length: int, pad: int = 0
) -> dict[str, Int[np.ndarray, " length"]]:
    """One row of `length` tokens: `input_ids`, `labels` (-100 on padding) and `segment_ids` (1, 2, ... and 0 for padding).

    Documents do not see each other, positions begin anew with each, and the first token of one is no label for the last of
    another: all that `segment_ids` mean to [`easyfn.forward`][] and [`easyfn.compute_loss`][].
    """
    row = {
        "input_ids": np.full(length, pad, np.int32),
        "labels": np.full(length, IGNORED, np.int32),
        "segment_ids": np.zeros(length, np.int32),
    }
    start = 0
    for number, document in enumerate(documents, 1):
        ids = np.asarray(document["input_ids"], np.int32)
        end = start + len(ids)
        if end > length:
            raise ValueError(f"packed_row: the documents have {end} tokens and more, and the row {length}")
        row["input_ids"][start:end] = ids
        row["labels"][start:end] = document.get("labels", ids)
        row["segment_ids"][start:end] = number
        start = end
    return row


def padded(
    examples: Sequence[Mapping[str, Any]], length: int, pad: int = 0
) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
    """Examples as the rows of a batch of `length` columns, padded on the right, with the `attention_mask` of each
    `input_ids`: `chosen_input_ids` has a `chosen_attention_mask`. Names that are no sequences are kept as they are."""
    batch: dict[str, np.ndarray] = {}
    for name in examples[0]:
        values = [np.asarray(example[name]) for example in examples]
        if values[0].ndim == 0:
            batch[name] = np.stack(values)
            continue
        filling = pad if name.endswith("input_ids") else IGNORED if name.endswith("labels") else 0
        rows = np.full((len(values), length), filling, np.int32)
        mask = np.zeros((len(values), length), np.int32)
        for row, value in enumerate(values):
            if len(value) > length:
                raise ValueError(
                    f"padded: {name} of an example has {len(value)} tokens, and the batch {length} columns"
                )
            rows[row, : len(value)] = value
            mask[row, : len(value)] = 1
        batch[name] = rows
        if name.endswith("input_ids"):
            batch[name.removesuffix("input_ids") + "attention_mask"] = mask
    return batch
