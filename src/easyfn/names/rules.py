"""Names: which tensors of a Hugging Face file hold which arrays of a model, in both directions from one rule.

Our paths are Hugging Face's, so most rules are the empty one. What remains are renames of a prefix, transposed
matrices (GPT-2's Conv1D) and experts that the file holds one by one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..core.tree import expand, leaves
from .layout import Beside, Joined, Layout, Plain, Stacked, StackedInFront, StackedModules, Transposed, Turned
from .part import Index


class Rule(NamedTuple):
    """`ours` is a template of a path (`{i}` is a number, `{rest}` and `{tail}` are anything), `theirs` of the names of tensors
    (`{e}` is the number of an expert).

    Without a layout it only renames, and applies to what the other rules produce, too.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: Layout | None = None


def rename(ours: str, theirs: str) -> Rule:
    """Our path is their name: `rename("model.{rest}", "transformer.{rest}")`. The first rename that fits is applied."""
    return Rule(ours, (theirs,))


def transposed(ours: str, theirs: str | None = None) -> Rule:
    """The file holds `(in, out)`."""
    return Rule(ours, (theirs or ours,), Transposed())


def turned(ours: str) -> Rule:
    """The file holds the array as it is or, an older one, `(in, out)`: its shape tells."""
    return Rule(ours, (ours,), Turned())


def experts(ours: str, *theirs: str, axis: int = 1, idle: int = 0, modules: bool = False) -> Rule:
    """The file holds one tensor per expert: `theirs` with `{e}` for its number. Several join along `axis` of ours.

    `idle`: so many more behind ours are in files of some writers, and hold nothing. `modules`: transformers has a module for
    each expert in memory, too.
    """
    one: Layout = Joined(axis - 1, len(theirs)) if len(theirs) > 1 else Plain()
    return Rule(ours, theirs, StackedInFront(one, idle) if idle else (StackedModules if modules else Stacked)(one))


def concatenated(ours: str, *theirs: str, axis: int = 0, widths: Sequence[int] = ()) -> Rule:
    """The file holds the parts of our array as several tensors, joined along `axis`: of equal widths, or of `widths`."""
    return Rule(ours, theirs, Beside(axis, tuple(widths)) if widths else Joined(axis, len(theirs)))


class Tensors(NamedTuple):
    """Where one array of a model (or one layer of a stacked array) comes from: the names, and how they combine."""

    path: str
    names: tuple[str, ...]
    layout: Layout
    shape: tuple[int, ...]  # of ours, one layer

    @property
    def plain(self) -> bool:
        """Whether the array is a tensor of the file as it is."""
        return isinstance(self.layout, Plain)

    @property
    def transposed(self) -> bool:
        """Whether the array is one tensor of the file, turned."""
        return self.layout == Transposed()

    @property
    def experts(self) -> bool:
        """Whether the file holds the entries of the first axis one by one."""
        return isinstance(self.layout, Stacked)

    @property
    def together(self) -> int:
        """How many tensors are one matrix of ours: of each expert's, where there are experts."""
        return len(self.names) // self.shape[0] if self.experts else len(self.names)

    @property
    def axis(self) -> int:
        """The axis of our array along which these are joined."""
        inner = self.layout.of if isinstance(self.layout, Stacked) else self.layout
        return (inner.axis if isinstance(inner, Joined | Beside) else 0) + self.experts

    @property
    def busy(self) -> Tensors:
        """Without the tensors that hold nothing."""
        if not isinstance(self.layout, StackedInFront):
            return self
        layout = Stacked(self.layout.of)
        return self._replace(names=self.names[: layout.number(self.shape)], layout=layout)

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each tensor in the file."""
        return self.layout.shapes(self.shape)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Our array from the tensors of the file."""
        return self.layout.join(parts, self.shape)

    def split(self, ours: Any) -> list[Any]:
        """The tensors of the file from our array: the inverse of `join`. Works on NumPy's and JAX's arrays."""
        return self.layout.split(ours)

    def cut(self, out: np.ndarray, index: Index) -> Iterator[tuple[str, Index, np.ndarray]]:
        """What of the file belongs into `out`, the part of our array at `index`: for every tensor that has any of it,
        its name, which part of it, and where in `out` that goes (a view)."""
        for number, theirs, view in self.layout.cut(out, index, self.shape):
            yield self.names[number], theirs, view


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
        if rule.layout is None and (found := _apply(rule, path)) is not None:
            return rule.theirs[0].format(**found)
    return path


def tensors_for(path: str, shape: tuple[int, ...], rules: Sequence[Rule]) -> Tensors:
    """Where the array at `path` (of a single layer) comes from."""
    for rule in rules:
        if rule.layout is None or (found := _apply(rule, path)) is None:
            continue
        rows = rule.layout.number(shape) // len(rule.theirs)
        names = [t.format(**found, e=e) for e in range(rows) for t in rule.theirs]
        return Tensors(path, tuple(file_name(n, rules) for n in names), rule.layout, shape)
    return Tensors(path, (file_name(path, rules),), Plain(), shape)


def tensors(model: Any, rules: Sequence[Rule]) -> dict[str, list[Tensors]]:
    """For every array of a model, by its path, the tensors it comes from: one entry, or one per stacked layer."""
    found: dict[str, list[Tensors]] = {}
    for path, leaf in leaves(model).items():
        single = expand(path)
        shape = tuple(leaf.shape) if len(single) == 1 and single[0] == path else tuple(leaf.shape[1:])
        found[path] = [tensors_for(p, shape, rules) for p in single]
    return found
