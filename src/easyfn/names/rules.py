"""Names: which tensors of a Hugging Face file hold which arrays of a model, in both directions from one rule.

Our paths are Hugging Face's, so most rules are the empty one. What remains are renames of a prefix, transposed
matrices (GPT-2's Conv1D) and experts that the file holds one by one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..core.tree import expand, leaves
from .part import Index

Reader = Callable[[tuple[slice, ...]], np.ndarray]


class Rule(NamedTuple):
    """`ours` is a template of a path (`{i}` is a number, `{rest}` and `{tail}` are anything), `theirs` of a tensor's name.

    `kind`: `rename` applies to what other rules produce; `transposed` swaps the last two axes; `experts` gathers one
    tensor per expert `{e}` along a new leading axis; `concatenated` joins several tensors along an axis.
    """

    kind: str
    ours: str
    theirs: tuple[str, ...]
    axis: int = 0


def rename(ours: str, theirs: str) -> Rule:
    """Our path is their name: `rename("model.{rest}", "transformer.{rest}")`. The first rename that fits is applied."""
    return Rule("rename", ours, (theirs,))


def transposed(ours: str, theirs: str | None = None) -> Rule:
    """The file holds `(in, out)`."""
    return Rule("transposed", ours, (theirs or ours,))


def experts(ours: str, *theirs: str, axis: int = 1) -> Rule:
    """The file holds one tensor per expert: `theirs` with `{e}` for its number. Several join along `axis` of ours."""
    return Rule("experts", ours, theirs, axis)


def concatenated(ours: str, *theirs: str, axis: int = 0) -> Rule:
    """The file holds the parts of our array as several tensors, joined along `axis`."""
    return Rule("concatenated", ours, theirs, axis)


class Tensors(NamedTuple):
    """Where one array of a model (or one layer of a stacked array) comes from: the names, and how they combine."""

    path: str
    names: tuple[str, ...]
    kind: str
    axis: int
    shape: tuple[int, ...]  # of ours, one layer

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each tensor in the file."""
        if self.kind == "transposed":
            return ((*self.shape[:-2], self.shape[-1], self.shape[-2]),)
        if self.kind == "experts":
            parts = len(self.names) // self.shape[0]
            one = list(self.shape[1:])
            one[self.axis - 1] //= parts
            return (tuple(one),) * len(self.names)
        if self.kind == "concatenated":
            one = list(self.shape)
            one[self.axis] //= len(self.names)
            return (tuple(one),) * len(self.names)
        return (self.shape,)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Our array from the tensors of the file."""
        if self.kind == "transposed":
            return np.swapaxes(parts[0], -1, -2)
        if self.kind == "experts":
            count = self.shape[0]
            per = len(parts) // count
            return np.stack([np.concatenate(parts[e * per : (e + 1) * per], self.axis - 1) for e in range(count)])
        if self.kind == "concatenated":
            return np.concatenate(parts, self.axis)
        return parts[0]

    def split(self, ours: Any) -> list[Any]:
        """The tensors of the file from our array: the inverse of `join`. Works on numpy and JAX arrays."""
        if self.kind == "transposed":
            return [ours.swapaxes(-1, -2)]
        if self.kind == "experts":
            per = len(self.names) // self.shape[0]
            width = self.shape[self.axis] // per
            cut = [(slice(None),) * (self.axis - 1) + (slice(p * width, (p + 1) * width),) for p in range(per)]
            return [ours[e][c] for e in range(self.shape[0]) for c in cut]
        if self.kind == "concatenated":
            width = self.shape[self.axis] // len(self.names)
            return [
                ours[(slice(None),) * self.axis + (slice(p * width, (p + 1) * width),)] for p in range(len(self.names))
            ]
        return [ours]

    def cut(self, out: np.ndarray, index: Index) -> Iterator[tuple[str, Index, np.ndarray]]:
        """What of the file belongs into `out`, the part of our array at `index`: for every tensor that has any of it,
        its name, which part of it, and where in `out` that goes (a view)."""
        if self.kind == "transposed":
            yield self.names[0], (*index[:-2], index[-1], index[-2]), np.swapaxes(out, -1, -2)
        elif self.kind == "experts":
            per = len(self.names) // self.shape[0]
            for row, e in enumerate(range(index[0].start, index[0].stop)):
                each = slice(e * per, (e + 1) * per)
                yield from _joined(self.names[each], self.axis - 1, self.shape[1:], out[row, ...], index[1:])
        elif self.kind == "concatenated":
            yield from _joined(self.names, self.axis, self.shape, out, index)
        else:
            yield self.names[0], index, out


def _joined(
    names: Sequence[str], axis: int, shape: Sequence[int], out: np.ndarray, index: Index
) -> Iterator[tuple[str, Index, np.ndarray]]:
    """`Tensors.cut` for tensors that are joined along an axis."""
    width, asked = shape[axis] // len(names), index[axis]
    for n, name in enumerate(names):
        low, high = max(asked.start, n * width), min(asked.stop, (n + 1) * width)
        if low < high:
            theirs = slice(low - n * width, high - n * width)
            here = (slice(None),) * axis + (slice(low - asked.start, high - asked.start),)
            yield name, (*index[:axis], theirs, *index[axis + 1 :]), out[here]


@functools.cache
def template(text: str) -> re.Pattern[str]:
    """The expression that a template of a name stands for."""
    parts = re.split(r"\{(\w+)\}", text)
    out = ""
    for n, part in enumerate(parts):
        if n % 2 == 0:
            out += re.escape(part)
        else:
            out += f"(?P<{part}>.*)" if part in ("rest", "tail") else f"(?P<{part}>\\d+)"
    return re.compile(out)


def _apply(rule: Rule, path: str) -> dict[str, str] | None:
    match = template(rule.ours).fullmatch(path)
    return None if match is None else match.groupdict()


def file_name(path: str, rules: Iterable[Rule]) -> str:
    """The name in the file of a path that no other rule changes: the first rename that fits, or the path itself."""
    for rule in rules:
        if rule.kind == "rename" and (found := _apply(rule, path)) is not None:
            return rule.theirs[0].format(**found)
    return path


def tensors_for(path: str, shape: tuple[int, ...], rules: Sequence[Rule]) -> Tensors:
    """Where the array at `path` (of a single layer) comes from."""
    for rule in rules:
        if rule.kind == "rename" or (found := _apply(rule, path)) is None:
            continue
        if rule.kind == "experts":
            names = [t.format(**found, e=e) for e in range(shape[0]) for t in rule.theirs]
        else:
            names = [t.format(**found) for t in rule.theirs]
        return Tensors(path, tuple(file_name(n, rules) for n in names), rule.kind, rule.axis, shape)
    return Tensors(path, (file_name(path, rules),), "same", 0, shape)


def tensors(model: Any, rules: Sequence[Rule]) -> dict[str, list[Tensors]]:
    """For every array of a model, by its path, the tensors it comes from: one entry, or one per stacked layer."""
    found: dict[str, list[Tensors]] = {}
    for path, leaf in leaves(model).items():
        single = expand(path)
        shape = tuple(leaf.shape) if len(single) == 1 and single[0] == path else tuple(leaf.shape[1:])
        found[path] = [tensors_for(p, shape, rules) for p in single]
    return found
