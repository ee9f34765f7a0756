"""Verbs: free functions that dispatch on the type of their first argument.

Why not methods: a user who wants one more operation on a model cannot edit our classes, so our own
operations shall have no privilege over theirs. A verb is open on both sides: anyone may teach an
existing verb a new type, or write a new verb over existing types.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import jax
import numpy as np

from .habits import no_path, refuse
from .later import all_taught, meet

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

DOCS = "docs/extend.md"


class NotSupported(TypeError):
    """A verb was asked of a type that nobody has taught it."""


class Verb(Generic[P, R]):
    """A function dispatched on the type of its first argument.

    Made with [`easyfn.verb`][]. The decorated function is the default implementation: it runs for
    every type that has none of its own, so arrays, tracers and `jax.ShapeDtypeStruct` belong to it.
    """

    def __init__(self, default: Callable[P, R], example: str | None = None) -> None:
        self.__name__: str
        functools.update_wrapper(self, default)
        self._default = default
        self._example = example
        self._dispatch = functools.singledispatch(default)
        self.__signature__ = inspect.signature(default)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs:
            refuse(self.__name__, kwargs)
        if not args:
            return self._default(*args, **kwargs)  # Python's own message names the missing argument
        return self.which(type(args[0]))(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<verb {self.__module__}.{self.__name__}: {len(self._dispatch.registry) - 1} types>"

    def register(self, *types: type, override: bool = False) -> Callable[[F], F]:
        """Teaches this verb one or more types; use as a decorator.

        Raises `TypeError` for an array type (a tracer is no subclass of `jax.Array`, so the rule
        would hold eagerly and vanish under `jit`; arrays are the verb's default), and `ValueError` if
        a type already has an implementation and `override` is not set.
        """
        for cls in types:
            if not isinstance(cls, type):
                raise TypeError(f"{self.__name__}.register expects types, got {cls!r}")
            if cls is object or issubclass(cls, (jax.Array, jax.core.Tracer, jax.ShapeDtypeStruct)):
                raise TypeError(
                    f"{self.__name__}.register({cls.__name__}): arrays are the default of every verb. A rule "
                    "for jax.Array would run eagerly and be skipped under jit, because tracers are not "
                    "subclasses of it. Wrap the array in an eqx.Module of your own and register that."
                )

        def decorate(function: F) -> F:
            for cls in types:
                if not function.__module__.startswith("easyfn."):
                    meet(cls)  # ours first, so that it is found
                first = self._dispatch.registry.get(cls)
                if first is not None and not override:
                    code = getattr(first, "__code__", None)
                    where = f"{code.co_filename}:{code.co_firstlineno}" if code else repr(first)
                    raise ValueError(
                        f"{self.__name__} already has an implementation for {cls.__module__}.{cls.__qualname__} "
                        f"({where}). Pass override=True to replace it."
                    )
            for cls in types:
                self._dispatch.register(cls, function)
            return function

        return decorate

    def which(self, cls: type) -> Callable[..., R]:
        """The implementation that a value of type `cls` would run (the default if none is registered)."""
        meet(cls)
        return self._dispatch.dispatch(cls)

    def knows(self, cls: type) -> bool:
        """Whether `cls`, or a class it derives from, was registered: false where only the default answers."""
        return self.which(cls) is not self._default

    def implementations(self) -> dict[type, Callable[..., R]]:
        """Every registered type with its implementation, in the order of registration."""
        all_taught()
        return {cls: f for cls, f in self._dispatch.registry.items() if cls is not object}

    def missing(self, value: Any, why: str = "") -> NotSupported:
        """The error for a value that this verb has not been taught: raise what this returns."""
        no_path(value)
        cls = type(value)
        name = f"{cls.__module__}.{cls.__qualname__}"
        if isinstance(value, (jax.Array, np.ndarray)):
            return NotSupported(
                f"ef.{self.__name__}: the first argument is an array of shape {value.shape}: the model comes first, and "
                f"arrays after it, as in ef.{self.__name__}(model, ids)."
            )
        known = [k.__name__ for k in self.implementations()]
        lines = [f"easyfn.{self.__name__}: no implementation for `{name}`."]
        if why:
            lines.append(f"  {why}")
        if known:
            lines.append(f"  Known: {', '.join(known)}.   {_nearest(cls, self.implementations())}".rstrip())
        example = self._example or (
            f"@ef.{self.__name__}.register({cls.__name__})\ndef _({cls.__name__.lower()}, *args, **kwargs): ..."
        )
        lines.append("  To teach it:")
        lines += ["      " + line for line in example.format(type=cls.__name__).splitlines()]
        lines.append(f"  See {DOCS}.")
        return NotSupported("\n".join(lines))


def _nearest(cls: type, known: dict[type, Any]) -> str:
    """Which known type shares the most fields with `cls`."""
    fields = set(getattr(cls, "__dataclass_fields__", {}))
    best, shared = None, set[str]()
    for other in known:
        common = fields & set(getattr(other, "__dataclass_fields__", {}))
        if len(common) > len(shared):
            best, shared = other, common
    return f"Nearest by fields: {best.__name__} ({', '.join(sorted(shared))})." if best else ""


def verb(default: Callable[P, R] | None = None, *, example: str | None = None) -> Any:
    """Makes a [`Verb`][easyfn.Verb] of a function; the function becomes the default implementation.

    `example` is the code that the verb's error shows to whoever brings an unknown type (`{type}` stands
    for its name).

    ```python
    import easyfn as ef

    @ef.verb
    def describe(node) -> str:
        return "something"

    @describe.register(ef.nn.Linear)
    def _(linear) -> str:
        return "a linear layer"

    assert describe(3) == "something"
    ```
    """
    if default is None:
        return lambda function: Verb(function, example)
    return Verb(default, example)


class NodeVerb(Verb[P, R]):
    """A verb that changes a whole model by visiting its nodes.

    Calling it always runs the walk that was decorated. What is registered for a layer's type is asked for that layer alone,
    as `implementation(layer, how)`, where `how(weight, name="weight")` is the change to one weight slot, already
    bound to the layer's path and to the caller's choices: it returns the new weight, or the same one.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._default(*args, **kwargs)


def node_verb(default: Callable[P, R]) -> NodeVerb[P, R]:
    """Makes a [`NodeVerb`][easyfn.NodeVerb] of a function that walks a model (see `easyfn.map_slots`)."""
    return NodeVerb(default)
