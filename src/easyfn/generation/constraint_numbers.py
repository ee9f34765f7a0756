"""Expressions of the numbers within bounds."""

from __future__ import annotations

import math

_FRACTION = r"(?:\.[0-9]+)"
_POSITIVE = "[1-9][0-9]*"


def integers(
    minimum: int | float | None = None,
    maximum: int | float | None = None,
    exclusiveMinimum: int | float | None = None,
    exclusiveMaximum: int | float | None = None,
) -> str | None:
    """The whole numbers within bounds, `None` if there are none. The names are JSON schema's."""
    least = [math.ceil(minimum)] if minimum is not None else []
    least += [math.floor(exclusiveMinimum) + 1] if exclusiveMinimum is not None else []
    most = [math.floor(maximum)] if maximum is not None else []
    most += [math.ceil(exclusiveMaximum) - 1] if exclusiveMaximum is not None else []
    return _whole(max(least, default=None), min(most, default=None))


def numbers(
    minimum: int | float | None = None,
    maximum: int | float | None = None,
    exclusiveMinimum: int | float | None = None,
    exclusiveMaximum: int | float | None = None,
) -> str | None:
    """The decimal numbers within bounds that are whole, `None` if there are none; with an exponent where there is no
    bound."""
    bounds = (minimum, maximum, exclusiveMinimum, exclusiveMaximum)
    if bounds == (None,) * 4:
        return rf"-?(?:0|{_POSITIVE}){_FRACTION}?(?:[eE][+-]?[0-9]{{1,2}})?"
    low, open_low = _tighter(minimum, exclusiveMinimum, 1)
    high, open_high = _tighter(maximum, exclusiveMaximum, -1)
    found: list[str | None] = []
    if high is None or high > 0 or (high == 0 and not open_high and (low is None or low <= 0)):
        found.append(_magnitude(*((low, open_low) if low is not None and low >= 0 else (0, False)), high, open_high))
    if low is None or low < 0:
        # The same mirrored; zero is written without a sign.
        upper = (-high, open_high) if high is not None and high < 0 else (0, True)
        below = _magnitude(*upper, None if low is None else -low, open_low)
        found.append(None if below is None else f"-{below}")
    some = [text for text in found if text is not None]
    return f"(?:{'|'.join(some)})" if some else None


def _tighter(closed: int | float | None, open_: int | float | None, sign: int) -> tuple[int | None, bool]:
    if closed is None and open_ is None:
        return None, False
    if closed is None or (open_ is not None and sign * open_ >= sign * closed):
        return int(open_), True  # type: ignore[arg-type]
    return int(closed), False


def _magnitude(low: int, open_low: bool, high: int | None, open_high: bool) -> str | None:
    """Decimals from `low` >= 0 to `high`, both whole, with or without the bounds themselves."""
    if high is not None and (high < low or (high == low and (open_low or open_high))):
        return None
    found: list[str | None] = []
    inner = None if high is None else high - 1
    if high != low:
        # With the whole part of the lower bound, then those above it.
        found.append(rf"{low}\.[0-9]*[1-9][0-9]*" if open_low else f"{low}{_FRACTION}?")
        more = _whole(low + 1, inner)
        found.append(None if more is None else f"{more}{_FRACTION}?")
    if high is not None and not open_high:
        found.append(rf"{high}(?:\.0+)?")
    return f"(?:{'|'.join(text for text in found if text is not None)})"


def _whole(least: int | None, most: int | None) -> str | None:
    if least is not None and most is not None and least > most:
        return None
    found = []
    if least is None or least < 0:
        low = max(1, -most) if most is not None else 1
        high = None if least is None else -least
        if high is None or high >= low:
            found.append(f"-{_natural(low, high)}")
    if most is None or most >= 0:
        low = max(0, least) if least is not None else 0
        found.append(_natural(low, most))
    return f"(?:{'|'.join(found)})"


def _natural(low: int, high: int | None) -> str:
    """The numbers from `low` >= 0 to `high`."""
    if high is None:
        if low == 0:
            return f"(?:0|{_POSITIVE})"
        digits = len(str(low))
        longer = rf"[1-9][0-9]{{{digits},}}"
        return f"(?:{_natural(low, 10**digits - 1)}|{longer})"
    found = []
    while low <= high:  # those of one length at a time
        top = min(high, 10 ** len(str(low)) - 1)
        found.append(_digits(str(low), str(top)))
        low = top + 1
    return f"(?:{'|'.join(found)})"


def _digits(low: str, high: str) -> str:
    """The numbers from `low` to `high`, which are equally long."""
    if low == high:
        return low
    rest = len(low) - 1
    if rest == 0:
        return f"[{low}-{high}]"
    if low[0] == high[0]:
        return low[0] + _digits(low[1:], high[1:])
    first, last, found = int(low[0]), int(high[0]), []
    if low[1:] != "0" * rest:
        found.append(low[0] + _digits(low[1:], "9" * rest))
        first += 1
    after = None
    if high[1:] != "9" * rest:
        after = high[0] + _digits("0" * rest, high[1:])
        last -= 1
    if first <= last:
        found.append(f"[{first}-{last}][0-9]{{{rest}}}")
    return f"(?:{'|'.join([*found, *([after] if after else [])])})"
