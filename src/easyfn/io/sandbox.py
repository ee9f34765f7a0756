"""What chat templates run in: Jinja's immutable sandbox, with bounds on what a template may do and write.

A template comes with a checkpoint, from a stranger. The sandbox keeps it from reaching anything; nothing in it keeps a
template from counting to 10^10, or from a string of gigabytes. So:

- Every pass through a block, every operator, slice, comparison, method, filter and test is a step, and more steps where its
  values are long (`_weight`). A rendering has `STEPS` of them.
- What an expression makes is estimated before it is made (`_GROWTH`, `call_binop`, `_length` for what becomes a text) and
  measured after. An estimate leaves out escapes: for a moment, a text may be 12 times (`\\ud83d\\ude00`) as long as `SIZE`.
- Filters for HTML and for debugging, which no chat needs and whose time cannot be told ahead, are not there.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jinja2.compiler
import jinja2.nodes
import jinja2.sandbox
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

STEPS = 1_000_000  # that a rendering may take; the longest template there is takes some hundreds per message
SIZE = 2_000_000  # characters or entries of a value, and of the text: half a million tokens, no prompt here is longer
BITS = 10_000  # of a whole number
DIGITS = 1_000  # that a number may be rounded to

_left: contextvars.ContextVar[int] = contextvars.ContextVar("steps that are left", default=STEPS)


class Blocks(jinja2.compiler.CodeGenerator):
    """Jinja's compiler; it writes calls of the environment where Jinja computes without one."""

    def blockvisit(self, nodes: Any, frame: Any) -> None:
        self.writeline("environment.step()")
        super().blockvisit(nodes, frame)

    def buffer(self, frame: Any) -> None:
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = environment.written()")

    def visit_For(self, node: Any, frame: Any) -> None:
        if node.test is not None:  # what it passes over enters no block
            node.iter = jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute("each"), [node.iter], [], None, None)
        super().visit_For(node, frame)

    def visit_Concat(self, node: Any, frame: Any) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: Any, frame: Any) -> None:
        if not isinstance(node.arg, jinja2.nodes.Slice):
            return super().visit_Getitem(node, frame)
        self._call("taken", node.node, frame)
        self.write("[")
        self.visit(node.arg, frame)
        self.write("]")

    def visit_Compare(self, node: Any, frame: Any) -> None:
        sides = (node.expr, node.ops[0].expr)  # beside a constant, no entry is read to its end
        short = len(node.ops) == 1 and any(isinstance(side, jinja2.nodes.Const) for side in sides)
        self.write("(")
        self._call("taken" if short else "compared", node.expr, frame)
        for one in node.ops:
            self.write(f" {jinja2.compiler.operators[one.op]} ")
            method = "searched" if one.op in ("in", "notin") else "compared"
            self._call("taken" if short else method, one.expr, frame)
        self.write(")")

    def _call(self, method: str, node: Any, frame: Any) -> None:
        self.write(f"environment.{method}(")
        self.visit(node, frame)
        self.write(")")


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with those bounds; what passes one is a `SecurityError`.

    `filters` are the caller's own, which are bounded as Jinja's are.
    """

    code_generator_class = Blocks
    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self, *, filters: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(finalize=shown, **options)
        self.written = Written
        self.globals["range"] = self._range
        self.globals.pop("lipsum", None)
        known: dict[str, Any] = {name: found for name, found in self.filters.items() if name not in _DROPPED}
        self.filters = {name: _guarded(name, found) for name, found in {**known, **filters}.items()}
        tests: dict[str, Any] = {**self.tests}
        self.tests = {name: _guarded(f"is.{name}", found) for name, found in tests.items()}

    def step(self) -> None:
        _step(1)

    def each(self, values: Any) -> Any:
        _step(len(values) if isinstance(values, Collection) else 1)
        return values

    def taken(self, value: Any) -> Any:
        _step(1 + _weight(value))
        return value

    def compared(self, value: Any) -> Any:
        _compared(value)
        return value

    def searched(self, value: Any) -> Any:
        return self.taken(value) if isinstance(value, Mapping) else self.compared(value)

    def concat(self, pieces: Any) -> str:
        return measured(pieces)

    def joined(self, parts: Any) -> str:
        _measure(_length(parts))
        return "".join(map(str, parts))

    def _range(self, *bounds: int) -> range:
        found = jinja2.sandbox.safe_range(*bounds)
        _step(len(found))
        return found

    def getitem(self, obj: Any, argument: Any) -> Any:
        _measure(_length(argument))  # an error would show it
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Any:
        if super().wrap_str_format(value) is None:
            return None
        text, name = value.__self__, value.__name__

        def run(*args: Any, **named: Any) -> str:
            said = ((), *args) if name == "format_map" else (args, named)
            return type(text)(Fields(self, escape=getattr(text, "escape", str)).vformat(text, *said))

        return functools.update_wrapper(run, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _step(1 + _weight(left) + _weight(right))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            _whole(left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length())
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, Collection) and isinstance(other, int):
                    _measure(len(one) * other)
        elif operator == "%" and isinstance(left, str | bytes):
            _measure(_percent(left, *right) if isinstance(right, tuple) else _percent(left, right))
        elif operator == "+" and isinstance(left, Collection) and isinstance(right, Collection):
            _measure(len(left) + len(right))
        return _made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **named: Any) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | bytes) and name == "join":
            args = tuple(map(_still, args))
        _ahead(f".{name}" if isinstance(owner, Collection | int) else "", owner, args, named)
        return _made(super().call(__context, __obj, *args, **named))


class Fields(jinja2.sandbox.SandboxedEscapeFormatter):
    """Jinja's `str.format`, one for each call; fields are measured before they are written, and all together."""

    total = 0

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        found = super().get_field(field_name, args, kwargs)
        _measure(_length(found[0]))
        return found

    def format_field(self, value: Any, format_spec: str) -> str:
        _measure(self.total + _length(value) + sum(_numbers(format_spec)))
        text = super().format_field(value, format_spec)
        self.total += len(text)
        return text


class Written(list[str]):
    """Pieces of a text, such as a macro writes them; `SecurityError` where there is too much."""

    total = 0

    def append(self, piece: str) -> None:
        self.total += len(piece)
        _step(len(piece) // 64)
        if self.total > SIZE:
            _measure(self.total)
        super().append(piece)

    def extend(self, pieces: Any) -> None:
        for piece in pieces:
            self.append(piece)


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
    text = Written()
    text.extend(pieces)
    return "".join(text)


def shown(value: Any) -> str:
    """What `{{ value }}` writes, measured before it becomes a text."""
    _measure(_length(value))
    return value if isinstance(value, str) else str(value)


def _step(count: int) -> None:
    left = _left.get() - max(count, 0)
    _left.set(left)
    if left < 0:
        raise SecurityError(f"it takes more than {STEPS} steps")


def _measure(size: int) -> None:
    if size > SIZE:
        raise SecurityError(f"a value of more than {SIZE} characters or entries")
    _step(size // 64)


def _made(value: Any) -> Any:
    """A value that an expression made, once it is found to be small enough."""
    if isinstance(value, Collection):
        _measure(len(value))
        _step(_weight(value))
    elif isinstance(value, int):
        _whole(value.bit_length())
    return value


def _whole(bits: int) -> None:
    if bits > BITS:
        raise SecurityError(f"a number of more than {BITS} bits")


def _weight(value: Any) -> int:
    """The steps of going through a value once."""
    return len(value) // (64 if isinstance(value, str) else 8) if isinstance(value, Collection) else 0


def _length(value: Any, indent: int = 0, depth: int = 1, limit: int | None = None) -> int:
    """The characters of a value as a text or as JSON, but for escapes; it counts little further than `limit`, or `SIZE`."""
    limit = SIZE if limit is None else limit
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 3 + 2
    if isinstance(value, Namespace):
        raise SecurityError("a namespace is no text and no value to compare")
    if not isinstance(value, Collection) or isinstance(value, range):
        return 32
    total = 2 + indent * depth
    for part in itertools.chain.from_iterable(value.items()) if isinstance(value, Mapping) else value:
        total += 4 + indent * depth + _length(part, indent, depth + 1, limit)
        if total > limit:
            break
    return total


def _numbers(form: str) -> list[int]:
    """The whole numbers in a format; of endless ones, the first digits tell enough."""
    return [int(digits[:20]) for digits in re.findall(r"[0-9]+", form)]


def _percent(form: Any, /, *values: Any, **named: Any) -> int:
    """Of `form % values`: names may be said again and again, and `*` takes a width from the values."""
    form = shown(form)
    widths = _numbers(form)
    if "*" in form:
        widths += [abs(v) for v in values if isinstance(v, int)]
    often = form.count("%") if named or any(isinstance(v, Mapping) for v in values) else 1
    return len(form) + sum(widths) + often * _length(named or values)


def _all(*values: Any, **named: Any) -> int:
    return _length((*values, *named.values()))


def _padded(*values: Any, **named: Any) -> int:
    """Of what is filled up to a width."""
    values = (*values, *named.values())
    return _length(values) + sum(abs(v) for v in values if isinstance(v, int))


def _parts(value: Any, *more: Any, **named: Any) -> int:
    """Of what is cut into parts, each a list: the count of parts, or of what is in one, comes first."""
    count = (*more, *named.values())[0]
    _step(count + (len(value) if isinstance(value, Collection) else 0))
    return count


def _lines(value: Any, *more: Any, **named: Any) -> int:
    """Of what is put before every line, or instead of every tab."""
    often = 1 + value.count("\t") + len(value.splitlines()) if isinstance(value, str) else len(value)
    return _length(value) + often * max(8, _padded(*more, **named))


def _replaced(value: Any, old: Any = "", new: Any = "", count: Any = None, **named: Any) -> int:
    value, old, new = (v if isinstance(v, bytes) else shown(v) for v in (value, old, new))
    return len(value) + value.count(old) * len(new)


def _joined(parts: Any, d: Any = "", attribute: Any = None) -> int:
    return _length(parts) + (len(parts) if isinstance(parts, Collection) else 1) * _length(d)


def _json(value: Any, ensure: Any = False, indent: Any = None, separators: Any = None, *_: Any, **named: Any) -> int:
    width = max(indent, 0) if isinstance(indent, int) else _length(indent or "")
    return _length(value, width + _length(separators or ""))


def _compared(*values: Any) -> int:
    _step(1 + _length(values, limit=64 * STEPS) // 64)
    return 0


def _tried(value: Any, *more: Any, **named: Any) -> int:
    """Of what Python may try at every place of a text: some microseconds for a step."""
    _step(_length(value) * _length((*more, *named.values())) // 4096)
    return _length(value)


# How long the outcome may be, of the filters and methods (`.name`) that make much of little or a text of a list.
# Tests (`is.name`) make nothing, but take steps.
_GROWTH: dict[str, Callable[..., int]] = {
    name: estimate
    for estimate, names in (
        (_all, "capitalize e escape filesizeformat forceescape lower safe string title upper urlencode wordcount"),
        (_all, "dictsort groupby max min sort unique .index .startswith .endswith is.lower is.upper"),
        (_padded, "center truncate .center .ljust .rjust .to_bytes .zfill"),
        (_tried, "trim .strip .lstrip .rstrip .rfind .rindex .rpartition .rsplit"),
        (_lines, "indent .expandtabs"),
        (_parts, "batch slice"),
        (_replaced, "replace .replace"),
        (lambda text, table="", *_: _length(text) * (1 if isinstance(table, str) else _length(table)), ".translate"),
        (_percent, "format"),
        (_joined, "join"),
        (lambda between, parts=(): _joined(parts, between), ".join"),
        (lambda value, name="": _length(name), "attr"),
        (lambda value, precision=0, method="": 0 if abs(precision or 0) <= DIGITS else SIZE + 1, "round"),
        (lambda value, attribute=None, start=0: SIZE + 1 if isinstance(start, Collection) else 0, "sum"),
        (_json, "tojson"),
        (_compared, ".count is.in is.== is.!= is.< is.<= is.> is.>= is.eq is.ne is.equalto"),
        (_compared, "is.lt is.le is.gt is.ge is.lessthan is.greaterthan"),
    )
    for name in names.split()
}
_FREE = frozenset(["count", "d", "default", "first", "last", "length"])  # they look at no entry, or at one
_DROPPED = frozenset(["pprint", "striptags", "urlize", "wordwrap", "xmlattr"])


def _ahead(name: str, value: Any, args: Any, named: Mapping[str, Any]) -> None:
    """The steps and the estimate of a method, filter or test, before it runs."""
    _step(1 + sum(map(_weight, (value, *args, *named.values()))) * (name not in _FREE))
    if name in _GROWTH:
        _measure(_GROWTH[name](value, *args, **named))


def _still(value: Any) -> Any:
    """A list of what a generator has, which can be measured."""
    lazy = isinstance(value, Iterator) and not hasattr(value, "__len__")
    return list(itertools.islice(value, SIZE + 1)) if lazy else value


def _guarded(name: str, found: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that takes steps and is measured."""
    given = 1 if hasattr(found, "jinja_pass_arg") else 0  # what Jinja passes stands before the value

    @functools.wraps(found)
    def run(*args: Any, **named: Any) -> Any:
        value = args[given] if name in _FREE or name.startswith("is.") else _still(args[given])
        _ahead(name, value, args[given + 1 :], named)
        return _made(found(*args[:given], value, *args[given + 1 :], **named))

    return run
