"""A pattern brought into the form of which the automaton is made: without anchors at its ends, and without the character
NUL, which then marks where a match begins and ends (`constraint_tables.py`)."""

from __future__ import annotations

import re

_NEGATIVE = re.compile(r"\\(?:[DWS]|[pP](?:\{[^}]*\}|.))")
_GROUP = re.compile(r"\(\?(:|P?<|[a-zA-Z-]+[:)])")


def bare(pattern: str) -> str:
    """`pattern` without anchors and NUL. Raises `ValueError` for brackets without their other half, and for what the
    library does not know."""
    head = re.match(r"(?:\(\?[a-zA-Z]+\))?", pattern)
    flags = head.group() if head else ""
    if "x" in flags:
        raise ValueError(f"regex: the pattern {pattern!r} has the flag x; write it without spaces and comments")
    rest = _without_anchors(pattern[len(flags) :])
    text, level, at = "", 0, 0
    any_character = r"[^\x00]" if "s" in flags else r"[^\n\x00]"
    while at < len(rest):
        letter = rest[at]
        if letter == "\\":
            wide = _NEGATIVE.match(rest, at)
            piece = wide.group() if wide else rest[at : at + 2]
            text += rf"[{piece}&&[^\x00]]" if wide else piece
            at += len(piece)
            continue
        if letter == "[":
            end = _class_end(rest, at)
            text, at = rf"{text}[{rest[at:end]}&&[^\x00]]", end
            continue
        if letter == "(":
            level += 1
            group = _GROUP.match(rest, at)
            if rest.startswith("(?", at) and group is None:
                raise ValueError(_odd(pattern, f"{rest[at : at + 3]} is look-around or unknown"))
            if group and set(group.group(1)) & set("sx"):
                raise ValueError(_odd(pattern, "flags stand at its start, as in (?s)"))
        level -= letter == ")"
        if level < 0:
            raise ValueError(_odd(pattern, "a bracket is closed that was not opened"))
        text += any_character if letter == "." else letter
        at += 1
    if level:
        raise ValueError(_odd(pattern, "a bracket is not closed"))
    return flags + text


def _without_anchors(pattern: str) -> str:
    """A pattern matches whole texts anyway, and the library knows no anchors."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2:
        pattern = pattern[:-1]
    return pattern


def _class_end(pattern: str, at: int) -> int:
    """Behind the class that begins `at`; classes may hold classes."""
    level, end = 0, at
    while end < len(pattern):
        if pattern[end] == "\\":
            end += 2
            continue
        if pattern[end] == "[":
            level += 1
            end += 1 + pattern.startswith("^", end + 1)
            end += pattern.startswith("]", end)  # the first of a class is a letter
            continue
        level -= pattern[end] == "]"
        end += 1
        if level == 0:
            return end
    raise ValueError(_odd(pattern, "a [ is not closed; one that is meant as a letter is \\["))


def _odd(pattern: str, why: str) -> str:
    return f"regex: cannot make an automaton of the pattern {pattern!r}: {why}"
