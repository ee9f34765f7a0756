"""What chat templates run in: Jinja's immutable sandbox, with bounds on what a template may do and write.

A template comes with a checkpoint, from a stranger. The sandbox keeps it from reaching anything; nothing in it keeps a
template from counting to 10^10, or from a string of gigabytes. So every pass through a block is a step, and what can be made
large by one expression (products, powers, widths, joined strings) is measured first.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import jinja2.compiler
import jinja2.sandbox
from jinja2.exceptions import SecurityError

STEPS = 1_000_000  # blocks that a rendering may pass; the longest template there is takes some hundreds per message
SIZE = 50_000_000  # characters, or entries of a list, that one value may have, and the whole text
NUMBER = 1_000_000  # what a width or a count may be
BITS = 10_000  # of a whole number

_left: contextvars.ContextVar[int] = contextvars.ContextVar("steps that are left", default=STEPS)


class Blocks(jinja2.compiler.CodeGenerator):
    """Jinja's compiler; the body of each loop, branch and macro takes a step, and `~` measures what it joins."""

    def blockvisit(self, nodes: Any, frame: Any) -> None:
        self.writeline("environment.step()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: Any, frame: Any) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with those bounds; what passes one is a `SecurityError`."""

    code_generator_class = Blocks
    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals["range"] = self._range
        self.globals.pop("lipsum", None)
        self.filters = {name: _guarded(found) for name, found in self.filters.items()}

    def step(self) -> None:
        _step(1)

    def _range(self, *bounds: int) -> range:
        found = jinja2.sandbox.safe_range(*bounds)
        _step(len(found))
        return found

    def joined(self, parts: Any) -> str:
        texts = [str(part) for part in parts]
        _measure(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > BITS:
                raise SecurityError(f"a number of more than {BITS} bits")
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int):
                    _measure(len(one) * other)
        if operator == "%" and isinstance(left, str):
            _fits(_numbers(left))
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, Sized):
            _measure(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **named: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | list | tuple):
            _fits((*args, *named.values()))
            if getattr(__obj, "__name__", "") in ("format", "format_map"):
                _fits(_numbers(str(owner)))
            if getattr(__obj, "__name__", "") == "replace" and len(args) > 1:
                _measure(len(owner) * len(str(args[1])))
        return super().call(__context, __obj, *args, **named)


@contextmanager
def bounded() -> Iterator[None]:
    """Around one rendering: its steps are counted from none."""
    token = _left.set(STEPS)
    try:
        yield
    finally:
        _left.reset(token)


def measured(pieces: Any) -> str:
    """The text of a template's pieces; `SecurityError` where there is too much."""
    texts, total = [], 0
    for piece in pieces:
        total += len(piece)
        _measure(total)
        texts.append(piece)
    return "".join(texts)


def _step(count: int) -> None:
    left = _left.get() - count
    _left.set(left)
    if left < 0:
        raise SecurityError(f"it takes more than {STEPS} steps")


def _measure(size: int) -> None:
    if size > SIZE:
        raise SecurityError(f"a value of {size} characters or entries, more than {SIZE}")


def _fits(values: Any) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > NUMBER:
            raise SecurityError(f"a width or count of {value:.3g}, more than {NUMBER}")


def _numbers(text: str) -> list[int]:
    """The whole numbers in a format; of endless ones, the first digits tell enough."""
    return [int(word[:20]) for word in "".join(c if c in "0123456789" else " " for c in text).split()]


def _guarded(found: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose counts fit, and which takes steps where its value is long."""
    given = 2 if hasattr(found, "jinja_pass_arg") else 1  # the value stands behind what Jinja passes

    @functools.wraps(found)
    def run(*args: Any, **named: Any) -> Any:
        more = (*args[given:], *named.values())
        _fits(more)
        value = args[given - 1] if len(args) >= given else None
        if isinstance(value, Sized):
            _step(len(value) // 64)
            if getattr(found, "__name__", "") == "do_replace" and len(more) > 1:
                _measure(len(value) * len(str(more[1])))
            if getattr(found, "__name__", "") == "do_format":
                _fits(_numbers(str(value)))
        return found(*args, **named)

    return run
