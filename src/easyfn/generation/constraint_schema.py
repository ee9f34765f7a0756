"""A JSON schema as a regular expression of the JSON texts that it allows.

What is written is always valid; not all that is valid is written: properties come in the schema's order, numbers and
strings in their plain forms, and what refers to itself is unrolled to a depth. A keyword is honoured, or has no effect
on the type at hand, or is refused by name with the place where it stands. (The builder of `outlines_core` passes over
`minimum`, `uniqueItems`, `multipleOf` and others in silence, and closes recursion with objects that lack what is
required; so this is our own.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .constraint_kinds import TYPES, apart, kinds_of, types_of
from .constraint_numbers import integers, numbers
from .constraint_strings import CHARACTER, FORMATS, inside

# Said about a schema, not about what it allows.
_NOTES = {
    *("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title", "description", "default", "example"),
    *("examples", "deprecated", "readOnly", "writeOnly", "discriminator"),
    *("contentEncoding", "contentMediaType", "contentSchema"),
}
# What is honoured, by the type it is about; it says nothing about values of other types.
_HONOURED = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
}
# What is not, by the type it is about.
_REFUSED = {
    "object": {
        *("patternProperties", "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties"),
        *("dependentRequired", "dependentSchemas", "dependencies"),
    },
    "array": {"uniqueItems", "contains", "minContains", "maxContains", "additionalItems", "unevaluatedItems"},
    "string": set(),
    "number": {"multipleOf"},
}


def pattern_of(schema: Any, *, whitespace: str = "[ ]?", max_depth: int = 3) -> str:
    """The expression of a schema: a dict, JSON text, or a pydantic model class. Raises `ValueError` for what it cannot
    say, by name and place."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except json.JSONDecodeError as error:
            raise ValueError(f"json_schema: the text of the schema is no JSON: {error}") from error
    elif hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if not isinstance(schema, (Mapping, bool)):
        raise TypeError(
            f"json_schema: a schema is a dict, its JSON text or a pydantic model class, not {type(schema).__name__}"
        )
    found = _Writer(schema, whitespace).value(schema, "#", max_depth)
    if found is None:
        raise ValueError("json_schema: nothing at all is valid under this schema")
    return found


class _Writer:
    """Writes patterns; `None` stands for a schema that allows nothing."""

    def __init__(self, root: Any, whitespace: str) -> None:
        self.root, self.space = root, f"(?:{whitespace})"
        self.open: list[str] = []  # the references that are being written

    def value(self, schema: Any, place: str, depth: int) -> str | None:
        """What a schema allows. `depth`: how many times more it may refer to itself."""
        if schema is True:
            return self.anything(depth)
        if schema is False:
            return None
        if not isinstance(schema, Mapping):
            raise ValueError(f"json_schema: {place} is {schema!r}, where a schema stands")
        said = {name: value for name, value in schema.items() if name not in _NOTES and not name.startswith("x-")}
        if not said:
            return self.anything(depth)
        for name in ("$ref", "allOf", "enum", "const", "anyOf", "oneOf"):
            if name in said:
                return getattr(self, name.lstrip("$").lower())(said, schema, place, depth)
        kinds = self.kinds(said, place)
        return _either(getattr(self, kind)(said, place, depth) for kind in kinds)

    def kinds(self, said: Mapping[str, Any], place: str) -> Sequence[str]:
        """The types that a schema allows, all of its keywords being known for each."""
        kinds = said.get("type")
        if kinds is None:  # a keyword of a type allows other types as well; those we leave out
            kinds = [kind for kind, names in _HONOURED.items() if (names | _REFUSED[kind]) & set(said)]
        kinds = [kinds] if isinstance(kinds, str) else kinds
        for kind in kinds:
            if kind not in TYPES:
                raise ValueError(f"json_schema: {place}/type is {kind!r}, which is none of {', '.join(TYPES)}")
        known = {"type"}.union(*_HONOURED.values(), *_REFUSED.values())
        own = [_of_numbers(kind) for kind in kinds]
        wrong = [n for n in said if n not in known or any(n in _REFUSED.get(kind, ()) for kind in own)]
        inert = {"uniqueItems": False, "multipleOf": 1 if kinds == ["integer"] else None, "additionalItems": True}
        wrong = [n for n in wrong if n not in inert or said[n] != inert[n]]
        if wrong:
            raise ValueError(
                f"json_schema: {place}/{wrong[0]} is not supported; say it in other words, or leave it out and check what "
                "was generated"
            )
        return [kind for kind in kinds if not (kind == "integer" and "number" in kinds)]

    # --- what is made of other schemas

    def ref(self, said: Mapping[str, Any], schema: Any, place: str, depth: int) -> str | None:
        others = sorted(set(said) - {"$ref"})
        if others:
            raise ValueError(
                f"json_schema: {place}/{others[0]} beside a $ref is not supported; put it where the $ref points"
            )
        path = said["$ref"]
        target = self.target(path, place)
        again = path in self.open  # it stands within itself
        if again and depth <= 0:
            return None
        self.open.append(path)
        found = self.value(target, path, depth - again)
        self.open.pop()
        return found

    def target(self, path: str, place: str) -> Any:
        where = self.root
        if not path.startswith("#"):
            raise ValueError(
                f"json_schema: {place} refers to {path!r}; only places within the schema (#/...) are supported"
            )
        for part in path[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            try:
                where = where[int(part)] if isinstance(where, list) else where[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise ValueError(f"json_schema: {place} refers to {path!r}, which is not in the schema") from None
        return where

    def allof(self, said: Mapping[str, Any], schema: Any, place: str, depth: int) -> str | None:
        if len(said) > 1 or len(said["allOf"]) != 1:
            raise ValueError(f"json_schema: {place}/allOf of several schemas is not supported; write them as one")
        return self.value(said["allOf"][0], f"{place}/allOf/0", depth)

    def anyof(self, said: Mapping[str, Any], schema: Any, place: str, depth: int, name: str = "anyOf") -> str | None:
        others = sorted(set(said) - {name, "type"})
        if others:
            raise ValueError(
                f"json_schema: {place}/{others[0]} beside {name} is not supported; write it into the branches of {name}"
            )
        for n, one in enumerate(said[name]):
            if "type" in said and not types_of(self.resolved(one, place)) <= types_of(said):
                raise ValueError(
                    f"json_schema: {place}/type beside {name} is supported if each branch has a type; {n} has not"
                )
        return _either(self.value(one, f"{place}/{name}/{n}", depth) for n, one in enumerate(said[name]))

    def oneof(self, said: Mapping[str, Any], schema: Any, place: str, depth: int) -> str | None:
        branches = [self.resolved(one, place) for one in said["oneOf"]]
        for n, one in enumerate(branches):
            for m, other in enumerate(branches[:n]):
                if not apart(one, other):
                    raise ValueError(
                        f"json_schema: {place}/oneOf: what branch {n} allows branch {m} may allow too; anyOf says that this "
                        "does not matter, and a required property with a const of its own in each branch that it never happens"
                    )
        return self.anyof(said, schema, place, depth, "oneOf")

    def resolved(self, schema: Any, place: str) -> Any:
        seen: set[str] = set()
        while isinstance(schema, Mapping) and "$ref" in schema and schema["$ref"] not in seen:
            seen.add(schema["$ref"])
            schema = self.target(schema["$ref"], place)
        return schema

    def enum(self, said: Mapping[str, Any], schema: Any, place: str, depth: int) -> str | None:
        values = said["enum"] if "enum" in said else [said["const"]]
        others = sorted(set(said) - {"enum", "const", "type"})
        if others or len({"enum", "const"} & set(said)) == 2:
            raise ValueError(
                f"json_schema: {place}/{[*others, 'const'][0]} beside enum is not supported; leave out what it forbids"
            )
        kinds = said.get("type", TYPES)
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return _either(self.constant(value) for value in values if kinds_of(value) & set(kinds))

    const = enum

    def constant(self, value: Any) -> str:
        """The texts of one value."""
        if isinstance(value, Mapping):
            pairs = [f"{self.key(name)}{self.constant(one)}" for name, one in value.items()]
            return self.within(r"\{", self.comma().join(pairs), r"\}")
        if isinstance(value, (list, tuple)):
            return self.within(r"\[", self.comma().join(map(self.constant, value)), r"\]")
        return re.escape(json.dumps(value, ensure_ascii=False))

    # --- types

    def boolean(self, said: Mapping[str, Any], place: str, depth: int) -> str:
        return "(?:true|false)"

    def null(self, said: Mapping[str, Any], place: str, depth: int) -> str:
        return "null"

    def integer(self, said: Mapping[str, Any], place: str, depth: int) -> str | None:
        return self.bounded(integers, said, place)

    def number(self, said: Mapping[str, Any], place: str, depth: int) -> str | None:
        return self.bounded(numbers, said, place)

    def bounded(self, write: Callable[..., str | None], said: Mapping[str, Any], place: str) -> str | None:
        names = sorted(_HONOURED["number"] & set(said))
        for name in names:
            if isinstance(said[name], bool) or not isinstance(said[name], (int, float)):
                raise ValueError(f"json_schema: {place}/{name} is {said[name]!r}, where a number stands")
            if write is numbers and said[name] != int(said[name]):
                raise ValueError(
                    f"json_schema: {place}/{name} of a number is supported if it is whole, not {said[name]}"
                )
        return write(**{name: said[name] for name in names})

    def string(self, said: Mapping[str, Any], place: str, depth: int) -> str | None:
        given = [name for name in ("format", "pattern") if name in said]
        lengths = [name for name in ("minLength", "maxLength") if name in said]
        if len(given + lengths[:1]) > 1:
            raise ValueError(
                f"json_schema: {place}: {' and '.join([*given, *lengths])} together are not supported; a "
                "pattern can say all of it"
            )
        if "pattern" in said:
            return f'"{inside(said["pattern"], place)}"'
        if "format" in said:
            if said["format"] not in FORMATS:
                raise ValueError(
                    f"json_schema: {place}/format {said['format']!r} is not supported; supported are {', '.join(FORMATS)}, and "
                    "pattern says any other"
                )
            return f'"{FORMATS[said["format"]]}"'
        count = _count(said, "Length", place)
        return None if count is None else f'"{CHARACTER}{count}"'

    def array(self, said: Mapping[str, Any], place: str, depth: int) -> str | None:
        fixed = said.get("prefixItems", [])
        least, most = said.get("minItems", 0), said.get("maxItems")
        _count(said, "Items", place)
        if most is not None and most < least:
            return None
        first = [self.value(one, f"{place}/prefixItems/{n}", depth) for n, one in enumerate(fixed)]
        if None in first:  # an array ends before what is impossible
            first = first[: first.index(None)]
            most = len(first) if most is None else min(most, len(first))
        more = None
        if most is None or most > len(first):
            more = self.value(said.get("items", True), f"{place}/items", self.deeper("items" in said, depth))
        if more is None:
            most = len(first) if most is None else min(most, len(first))
        if most is not None and most < least:
            return None
        # From the back: each place with all that may follow it.
        rest = ""
        if more is not None:
            low, high = max(0, least - len(first)), "" if most is None else most - len(first)
            rest = f"(?:{self.comma()}{more}){{{low},{high}}}"
        if not first:
            if more is None:
                return self.within(r"\[", "", r"\]")
            high = "" if most is None else most - 1
            some = f"{more}(?:{self.comma()}{more}){{{max(0, least - 1)},{high}}}"
            return self.within(r"\[", some if least else f"(?:{some})?", r"\]")
        for n in range(len(first) - 1, -1, -1):
            if most is not None and n >= most:
                continue
            rest = f"{self.comma() if n else ''}{first[n]}{rest}"
            if n >= least:
                rest = f"(?:{rest})?"
        return self.within(r"\[", rest, r"\]")

    def object(self, said: Mapping[str, Any], place: str, depth: int) -> str | None:
        named, required = said.get("properties", {}), said.get("required", [])
        extra = said.get("additionalProperties", True)
        if not named and not required:
            one = self.value(extra, f"{place}/additionalProperties", self.deeper("additionalProperties" in said, depth))
            if one is None:
                return self.within(r"\{", "", r"\}")
            pair = f'"{CHARACTER}*"{self.colon()}{one}'
            return self.within(r"\{", f"(?:{pair}(?:{self.comma()}{pair})*)?", r"\}")
        schemas = {**named, **{name: extra for name in required if name not in named}}
        pairs: list[tuple[str, bool]] = []
        for name, schema in schemas.items():
            one = self.value(schema, f"{place}/properties/{name}", self.deeper(name in named, depth))
            if one is not None:
                pairs.append((f"{self.key(name)}{one}", name in required))
            elif name in required:
                return None
        return self.within(r"\{", self.members(pairs), r"\}")

    def members(self, pairs: Sequence[tuple[str, bool]]) -> str:
        """Members in order, with commas between those that are there."""
        must = next((n for n, (_, required) in enumerate(pairs) if required), None)
        optional = lambda text, required: text if required else f"(?:{text})?"
        if must is not None:  # before the first that is always there the commas follow, after it they lead
            before = [f"(?:{text}{self.comma()})?" for text, _ in pairs[:must]]
            after = [optional(f"{self.comma()}{text}", required) for text, required in pairs[must + 1 :]]
            return "".join([*before, pairs[must][0], *after])
        starts = []
        for n, (text, _) in enumerate(pairs):
            starts.append(text + "".join(f"(?:{self.comma()}{other})?" for other, _ in pairs[n + 1 :]))
        return f"(?:{'|'.join(starts)})?" if starts else ""

    def anything(self, depth: int) -> str:
        """Any value, to a depth."""
        plain = [self.string({}, "", 0), numbers(), "true", "false", "null"]
        inner = [] if depth <= 0 else [self.array({}, "", depth), self.object({}, "", depth)]
        return _either([*plain, *inner]) or ""

    @staticmethod
    def deeper(said: bool, depth: int) -> int:
        """The depth of what stands within: of what the schema spells out, the same."""
        return depth if said else depth - 1

    # --- punctuation

    def comma(self) -> str:
        return f",{self.space}"

    def colon(self) -> str:
        return f":{self.space}"

    def key(self, name: str) -> str:
        return f"{re.escape(json.dumps(name, ensure_ascii=False))}{self.colon()}"

    def within(self, left: str, text: str, right: str) -> str:
        return f"{left}{self.space}{text}{self.space}{right}" if text else f"{left}{self.space}{right}"


def _either(patterns: Iterable[str | None]) -> str | None:
    """One of the patterns that allow something."""
    found = list(dict.fromkeys(p for p in patterns if p is not None))
    return None if not found else found[0] if len(found) == 1 else f"(?:{'|'.join(found)})"


def _count(said: Mapping[str, Any], what: str, place: str) -> str | None:
    """A pattern's repeat of what `min...` and `max...` say, `None` if they contradict each other."""
    least, most = said.get(f"min{what}", 0), said.get(f"max{what}")
    for value in (least, most):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ValueError(f"json_schema: {place}: {value!r} is no {what.lower()}")
    if most is not None and most < least:
        return None
    return f"{{{least},{'' if most is None else most}}}"


def _of_numbers(kind: str) -> str:
    return "number" if kind == "integer" else kind
