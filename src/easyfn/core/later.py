"""What is imported when it is asked for: the public names of a package, and files that teach verbs about types of others.

A class of Equinox costs a millisecond to define and there are hundreds of them, so that `import easyfn` reads none.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import weakref
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, NoReturn

from .habits import elsewhere


class Later(ModuleType):
    """A package whose names are imported when they are first asked for, and its rooms like them."""

    _homes: dict[str, tuple[str, str]]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            self._lacks(name)
        if home := self._homes.get(name):
            module, inside = home
            if module == ".":
                return importlib.import_module(f".{inside}", self.__name__)
            found = getattr(importlib.import_module(module, self.__name__), inside)
            vars(self)[name] = found
            return found
        if name.startswith("_") or importlib.util.find_spec(f"{self.__name__}.{name}") is None:
            self._lacks(name)
        return importlib.import_module(f".{name}", self.__name__)

    def _lacks(self, name: str) -> NoReturn:
        raise elsewhere(self.__name__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Python binds a file that was imported to its package: where a function has the file's name, the function stays.
        if isinstance(value, ModuleType) and self._homes.get(name, (".",))[0] != ".":
            return
        super().__setattr__(name, value)

    def __dir__(self) -> Iterable[str]:
        return sorted({*vars(self), *self._homes} - {"_homes", "TYPE_CHECKING"})


def later(package: str) -> None:
    """Makes what a package imports under `if TYPE_CHECKING:` come when it is asked for. The last line of its `__init__.py`.

    Type checkers, editors and readers see plain imports; so does this function, which reads them from the source.
    """
    module = sys.modules[package]
    source = module.__spec__.loader.get_source(package)  # type: ignore[union-attr]
    blocks = [
        n for n in ast.parse(source).body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"
    ]
    imports = [n for block in blocks for n in block.body if isinstance(n, ast.ImportFrom)]
    homes = {a.asname or a.name: ("." * n.level + (n.module or ""), a.name) for n in imports for a in n.names}
    vars(module).update(
        _homes=homes, __all__=sorted({*homes, *(n for n in vars(module) if n[0] != "_")} - {"TYPE_CHECKING"})
    )
    module.__class__ = Later


_teachers: dict[str, tuple[str, ...]] = {}
_met: weakref.WeakSet[type] = weakref.WeakSet()


def teachers(table: Mapping[str, tuple[str, ...]]) -> None:
    """Says which files teach verbs about a type that is neither theirs nor in the file of the verb: its full name to theirs."""
    _teachers.update(table)


def meet(cls: type) -> None:
    """Before a verb first looks for a type's implementation: imports the files that teach it."""
    if cls in _met:
        return
    _met.add(cls)
    for kind in cls.__mro__:
        taught(f"{kind.__module__}.{kind.__qualname__}")


def taught(name: str) -> None:
    """Imports the files that teach what has this name in the table of `teachers`."""
    for file in _teachers.get(name, ()):
        importlib.import_module(file)


def all_taught() -> None:
    """Imports every file that teaches: where somebody asks for all that a verb knows."""
    for name in _teachers:
        taught(name)
