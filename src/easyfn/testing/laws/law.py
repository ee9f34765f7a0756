"""What a law is, which laws there are, and `parametrize`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..case import Case


@dataclasses.dataclass(frozen=True)
class Law:
    """A sentence that holds for a model, as a function that raises `AssertionError` where it does not.

    Call it with a [`Case`][easyfn.testing.Case]. `applies` says of which cases it speaks at all.
    """

    name: str
    holds: Callable[[Case], None]
    applies: Callable[[Case], bool]

    def __call__(self, case: Case) -> None:
        self.holds(case)

    def __repr__(self) -> str:
        return f"<law {self.name}>"


_laws: dict[str, Law] = {}


def law(applies: Callable[[Case], bool] = lambda case: True) -> Callable[[Callable[[Case], None]], Law]:
    """Makes a law of a function, and adds it to those that `parametrize` runs.

    ```python
    from easyfn.testing import laws

    @laws.law()
    def weights_are_few(case):
        assert len(__import__("easyfn").params(case.model)) < 10_000

    assert laws.known()["weights_are_few"] is weights_are_few
    ```
    """

    def decorate(function: Callable[[Case], None]) -> Law:
        made = Law(function.__name__, function, applies)
        _laws[made.name] = made
        return made

    return decorate


def known() -> dict[str, Law]:
    """Every law by its name, in the order in which they run."""
    return dict(_laws)


def applicable(case: Case) -> list[Law]:
    """The laws that speak of a case."""
    return [law for law in _laws.values() if law.applies(case)]


def parametrize(*cases: Case, only: Sequence[str] = (), without: Sequence[str] = ()) -> Callable[[Any], Any]:
    """A pytest decorator: the test is run once for each law of each case, with `law` bound to the case.

    `only` and `without` choose laws by name. A law in a case's `expected_failures` must fail.

    ```python
    import easyfn as ef
    from easyfn.testing import Case, laws

    config = ef.testing.tiny().config

    @laws.parametrize(Case(make=lambda key: ef.init(config, key=key), name="tiny"), only=["jit_is_eager"])
    def test_tiny(law):
        law()
    ```
    """
    import pytest

    _check_names([*only, *without, *(name for case in cases for name in case.expected_failures)])
    params = []
    for n, case in enumerate(cases):
        names = [law.name for law in applicable(case) if (not only or law.name in only) and law.name not in without]
        if lost := set(case.expected_failures) - {law.name for law in applicable(case)}:
            raise ValueError(f"expected_failures names {sorted(lost)[0]!r}, a law that does not speak of this case")
        for name in names:
            reason = case.expected_failures.get(name)
            marks = () if reason is None else pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)
            params.append(pytest.param(_Bound(_laws[name], case), id=f"{case.name or f'case{n}'}-{name}", marks=marks))
    return pytest.mark.parametrize("law", params)


@dataclasses.dataclass(frozen=True)
class _Bound:
    law: Law
    case: Case

    def __call__(self) -> None:
        self.law(self.case)

    def __repr__(self) -> str:
        return f"{self.law.name}({self.case.name})"


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if name not in _laws:
            close = difflib.get_close_matches(name, _laws, n=3, cutoff=0.3)
            raise ValueError(f"there is no law {name!r}. Near misses: {', '.join(close) or ', '.join(_laws)}")
