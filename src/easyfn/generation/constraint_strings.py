"""Expressions of what stands between the quotes of a JSON string."""

from __future__ import annotations

import json
import re

_UNSAFE = r'"\\\x00-\x1f\x7f-\x9f'  # what JSON does not hold as it is, and what nobody wants
CHARACTER = rf'(?:[^{_UNSAFE}]|\\["\\/bfnrt])'  # one, plain or with its backslash

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_DAY = (
    "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|"
    "02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,4}}"
FORMATS = {
    "date": _DAY,
    "time": _TIME,
    "date-time": f"{_DAY}T{_TIME}",
    "duration": "P(?:[0-9]+D(?:T[0-9]+H)?|T[0-9]+[HMS]|[0-9]+[WMY])",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "hostname": _HOST,
    "email": rf"[a-zA-Z0-9_+-]+(?:\.[a-zA-Z0-9_+-]+)*@{_LABEL}(?:\.{_LABEL}){{1,4}}",
    "uri": rf"https?://{_HOST}(?:/[a-zA-Z0-9._~%-]*)*",
}
# ECMA's classes are of ASCII and Python's of Unicode: what is written is of both. (A string holds no line's end as it is.)
_CLASSES = {"d": "[0-9]", "w": "[A-Za-z0-9_]", "s": "[ ]"}
_CONTROL = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}


def inside(pattern: str, place: str) -> str:
    """The strings that hold a match of `pattern`, as JSON writes them: a quote, a backslash or a line's end in the
    pattern is written with its backslash, and a class leaves such characters out. As in JSON schema a match may be
    anywhere unless `^` and `$` say where."""
    branches = _branches(pattern, place)
    return f"(?:{'|'.join(branches)})"


def _branches(pattern: str, place: str) -> list[str]:
    """The alternatives of a pattern, each from the first character of a string to the last."""
    found: list[str] = []
    text, level, begins, ends = "", 0, False, False
    at = 0

    def close() -> None:
        found.append(f"{'' if begins else f'{CHARACTER}*'}(?:{text}){'' if ends else f'{CHARACTER}*'}")

    while at < len(pattern):
        letter = pattern[at]
        if ends and not (letter == "|" and level == 0):
            raise _odd("$ before the end", pattern, place)
        if letter == "\\":
            piece, at = _escaped(pattern, at, place)
            text += piece
        elif letter == "[":
            end = _class_end(pattern, at, place)
            text += f"[{_class(pattern[at:end], place)}&&[^{_UNSAFE}]]"
            at = end
        elif letter == ".":
            text, at = f"{text}[^{_UNSAFE}]", at + 1
        elif letter == "^":
            if text or level or begins:
                raise _odd("^ after the start", pattern, place)
            begins, at = True, at + 1
        elif letter == "$":
            if level:
                raise _odd("$ within a group", pattern, place)
            ends, at = True, at + 1
        elif letter == "|" and level == 0:
            close()
            text, begins, ends, at = "", False, False, at + 1
        else:
            if letter == "(" and pattern.startswith("(?", at) and not re.match(r"\(\?(:|P?<[A-Za-z_])", pattern[at:]):
                raise _odd(f"{pattern[at : at + 3]}...", pattern, place)
            level += (letter == "(") - (letter == ")")
            text += letter if letter in "()|*+?{}," or letter.isalnum() else _written(letter)
            if letter == "(" and (name := re.match(r"\((\?(?::|P?<\w+>))", pattern[at:])):
                text += "?:"
                at += len(name.group(1))
            at += 1
    close()
    return found


def _written(letter: str) -> str:
    """A character as a JSON string holds it, as a pattern."""
    return f"(?:{re.escape(json.dumps(letter, ensure_ascii=False)[1:-1])})"


def _escaped(pattern: str, at: int, place: str) -> tuple[str, int]:
    """What a backslash says, and where it ends."""
    letter = pattern[at + 1 : at + 2]
    if letter in _CLASSES:
        return _CLASSES[letter], at + 2
    if letter.lower() in _CLASSES and letter:
        number = r"\p{N}" if letter == "W" else ""  # a letter of a word for Python, and for Rust not
        return rf"[^\{letter.lower()}{number}{_UNSAFE}]", at + 2
    if letter in _CONTROL:
        return _written(_CONTROL[letter]), at + 2
    if code := re.match(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))", pattern[at:]):
        return _written(chr(int(code.group(1) or code.group(2), 16))), at + len(code.group())
    if not letter or letter.isalnum():
        raise _odd(f"\\{letter}", pattern, place)
    return _written(letter), at + 2


def _class_end(pattern: str, at: int, place: str) -> int:
    end = at + 1 + pattern.startswith("^", at + 1)
    end += pattern.startswith("]", end)
    while end < len(pattern) and pattern[end] != "]":
        end += 1 + (pattern[end] == "\\")
    if end >= len(pattern):
        raise _odd("[ without ]", pattern, place)
    return end + 1


def _class(text: str, place: str) -> str:
    """A class in the library's syntax, where brackets, `&`, `~` and `-` may mean something within one."""
    text = re.sub(r"\\([dw])", lambda m: _CLASSES[m.group(1)][1:-1], text)
    text = re.sub(r"\\s", r" \\t\\n\\r\\f", text)
    negated, body = text.startswith("[^"), text[1:-1].removeprefix("^")
    body = re.sub(r"(?<!\\)([\[&~])", r"\\\1", body)
    return f"[{'^' if negated else ''}{body}]"


def _odd(what: str, pattern: str, place: str) -> ValueError:
    return ValueError(
        f"json_schema: {place}/pattern {pattern!r}: {what} is not supported; supported are groups, classes, repeats, "
        "alternatives, and ^ and $ at the two ends of an alternative"
    )
