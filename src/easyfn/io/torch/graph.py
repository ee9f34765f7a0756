"""The program of a module as data: operators by name, numbered values, sizes by symbol. JSON there and back, no code."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .ops.table import dtype_named, torch_op

FORMAT = "easyfn-program"
VERSION = 1
MAX_NODES = 2_000_000
MAX_DEPTH = 12
MAX_CONSTANT = 1 << 30  # bytes
DTYPES = frozenset(
    """bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64
    complex128""".split()  # noqa: SIM905
)
ROLES = frozenset(["linear", "head", "embedding", "conv", "bias", "norm", "experts", "other", "buffer"])
# How the names of torch's operators begin that draw random numbers.
RANDOM = frozenset(
    """rand randn randint randperm bernoulli normal exponential uniform multinomial poisson geometric""".split()  # noqa: SIM905
)


class BadProgram(ValueError):
    """The JSON of a program is not what it should be: the message says where, what was found and what would do."""


@dataclasses.dataclass(frozen=True)
class Ref:
    """A value by its number: inputs first, then weights, constants and the results of the nodes."""

    number: int


@dataclasses.dataclass(frozen=True)
class DType:
    """A dtype as torch calls it, among the arguments of a node."""

    name: str


@dataclasses.dataclass(frozen=True)
class Input:
    """An argument of the module: `shape` has integers, or names of sizes; the same name is the same size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class WeightOf:
    """A parameter or buffer: the module's own name, its shape there, what it is for; `turned` if the model holds it
    as `(out, in)` and the module as `(in, out)`."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    turned: bool = False


@dataclasses.dataclass(frozen=True)
class Node:
    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    where: str  # the part of the module and the line of its source


class Graph:
    """A program: hashable, compared by content, so that it may be a static part of a pytree."""

    __slots__ = ("_digest", "aliases", "constants", "info", "inputs", "nodes", "result", "sizes", "weights")

    def __init__(
        self,
        inputs: tuple[Input, ...],
        weights: tuple[WeightOf, ...],
        constants: tuple[np.ndarray, ...],
        nodes: tuple[Node, ...],
        result: Any,
        *,
        sizes: Mapping[str, tuple[int, int | None]],
        aliases: Mapping[str, str],
        info: Mapping[str, Any],
    ) -> None:
        self.inputs, self.weights, self.constants, self.nodes = inputs, weights, constants, nodes
        self.result, self.sizes, self.aliases, self.info = result, dict(sizes), dict(aliases), dict(info)
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        if self._digest is None:
            self._digest = hashlib.sha256(json.dumps(write_graph(self), sort_keys=True).encode()).hexdigest()
        return self._digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Graph) and self.digest == other.digest)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{i.name}{list(i.shape)}" for i in self.inputs)
        return f"Graph({sizes}: {len(self.nodes)} operators, {len(self.weights)} weights)"

    def operators(self) -> dict[str, int]:
        """How often each operator occurs."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            counts[node.op] = counts.get(node.op, 0) + 1
        return counts


# ---- to JSON


def _encode(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"value": value.number}
    if isinstance(value, DType):
        return {"dtype": value.name}
    if isinstance(value, (list, tuple)):
        return [_encode(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return value


def write_graph(graph: Graph) -> dict[str, Any]:
    """The JSON of a program."""
    places = list(dict.fromkeys(node.where for node in graph.nodes))
    number = {where: n for n, where in enumerate(places)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "info": graph.info,
        "sizes": {name: list(bounds) for name, bounds in graph.sizes.items()},
        "inputs": [{"name": i.name, "dtype": i.dtype, "shape": list(i.shape)} for i in graph.inputs],
        "weights": [
            {
                "name": w.path,
                "dtype": w.dtype,
                "shape": list(w.shape),
                "role": w.role,
                **({"turned": True} if w.turned else {}),
            }
            for w in graph.weights
        ],
        "aliases": graph.aliases,
        "constants": [_write_array(array) for array in graph.constants],
        "places": places,
        "nodes": [
            [node.op, _encode(node.args), {k: _encode(v) for k, v in node.kwargs}, number[node.where]]
            for node in graph.nodes
        ],
        "result": _encode_result(graph.result),
    }


def _write_array(array: np.ndarray) -> dict[str, Any]:
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes() if array.size else b""
    data = base64.b64encode(zlib.compress(raw, 6)).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "zlib": data}


def _encode_result(result: Any) -> Any:
    kind, *rest = result
    if kind == "value":
        return {"kind": kind, "value": _encode(rest[0])}
    if kind == "tuple":
        return {"kind": kind, "items": [_encode_result(r) for r in rest[0]]}
    return {"kind": kind, "items": {name: _encode_result(r) for name, r in rest[0]}}


# ---- from JSON, which comes from strangers


def read_graph(data: Any) -> Graph:
    """A program from its JSON. Raises [`easyfn.BadProgram`][] with the place and what was found there."""
    _check(data, Mapping, "the program", "an object")
    if data.get("format") != FORMAT:
        raise BadProgram(f"format is {data.get('format')!r}, not {FORMAT!r}: this is no program of easyfn")
    if data.get("version") != VERSION:
        raise BadProgram(
            f"version is {data.get('version')!r}; this easyfn reads version {VERSION}. Convert the module again with "
            "ef.from_torch, or take the easyfn that wrote it"
        )
    part = lambda name, kind, word: _check(data.get(name), kind, name, word)
    inputs = tuple(_read_input(i, n) for n, i in enumerate(part("inputs", list, "a list")))
    weights = tuple(_read_weight(w, n) for n, w in enumerate(part("weights", list, "a list")))
    if len({w.path for w in weights}) != len(weights):
        raise BadProgram("weights: a name occurs twice")
    total = [0]
    constants = tuple(_read_array(c, n, total) for n, c in enumerate(part("constants", list, "a list")))
    places = [_check(p, str, "places", "a list of strings") for p in part("places", list, "a list")]
    listed = part("nodes", list, "a list")
    if len(listed) > MAX_NODES:
        raise BadProgram(f"nodes: {len(listed)} of them; at most {MAX_NODES}")
    first = len(inputs) + len(weights) + len(constants)
    nodes = tuple(_read_node(node, n, first + n, places) for n, node in enumerate(listed))
    unknown = sorted({node.op for node in nodes if node.op not in torch_op})
    if unknown:
        raise BadProgram(missing_operators(nodes, unknown))
    sizes = {}
    for name, bounds in part("sizes", Mapping, "an object").items():
        at = f"sizes.{name}"
        if not (
            isinstance(bounds, list)
            and len(bounds) == 2
            and _whole(bounds[0])
            and (bounds[1] is None or _whole(bounds[1]))
        ):
            raise BadProgram(f"{at} is {_short(bounds)}; it should be [smallest, largest or null]")
        sizes[name] = (bounds[0], bounds[1])
    aliases = part("aliases", Mapping, "an object")
    for name, path in aliases.items():
        if path not in {w.path for w in weights}:
            raise BadProgram(f"aliases.{name} is {_short(path)}, which is no weight of the program")
    return Graph(
        inputs,
        weights,
        constants,
        nodes,
        _read_result(data.get("result"), first + len(nodes), 0),
        sizes=sizes,
        aliases=aliases,
        info=part("info", Mapping, "an object"),
    )


def missing_operators(nodes: Any, unknown: list[str]) -> str:
    """The error for operators that nobody has taught: each with its count and where it comes from."""
    lines = []
    for op in unknown:
        users = [node for node in nodes if node.op == op]
        lines.append(f"  {op}: {len(users)} times, first in {users[0].where or 'an unknown place'}")
    if any(op.split(".")[1].split("_")[0] in RANDOM for op in unknown if "." in op):
        lines.append("A program draws no random numbers: let the module take its noise as an input")
    return (
        f"{len(unknown)} operator{'s' if len(unknown) > 1 else ''} of torch that easyfn does not know:\n"
        + "\n".join(lines)
        + f'\nTo teach one:\n    @ef.torch_op.register("{unknown[0]}")\n    def _(*args, **kwargs): ...   # the same in JAX'
        "\nSee docs/torch.md."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def _check(value: Any, kind: Any, where: str, word: str) -> Any:
    if not isinstance(value, kind):
        raise BadProgram(f"{where} is {_short(value)}; it should be {word}")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _read_dtype(value: Any, where: str) -> str:
    if not isinstance(value, str) or value not in DTYPES:
        raise BadProgram(f"{where} is {_short(value)}; it should be one of {', '.join(sorted(DTYPES))}")
    return value


def _read_shape(value: Any, where: str, symbols: bool = False) -> tuple[Any, ...]:
    fits = lambda v: _whole(v) or (symbols and isinstance(v, str))
    if not isinstance(value, list) or len(value) > 64 or not all(fits(v) for v in value):
        raise BadProgram(f"{where} is {_short(value)}; it should be a list of sizes")
    return tuple(value)


def _read_input(value: Any, n: int) -> Input:
    at = f"inputs[{n}]"
    _check(value, Mapping, at, "an object")
    name = _check(value.get("name"), str, f"{at}.name", "a string")
    return Input(
        name, _read_dtype(value.get("dtype"), f"{at}.dtype"), _read_shape(value.get("shape"), f"{at}.shape", True)
    )


def _read_weight(value: Any, n: int) -> WeightOf:
    at = f"weights[{n}]"
    _check(value, Mapping, at, "an object")
    path = _check(value.get("name"), str, f"{at}.name", "a string")
    if not path or not all(path.split(".")):
        raise BadProgram(f"{at}.name is {path!r}; it should be a dotted path")
    role = value.get("role")
    if role not in ROLES:
        raise BadProgram(f"{at}.role is {_short(role)}; it should be one of {', '.join(sorted(ROLES))}")
    shape = _read_shape(value.get("shape"), f"{at}.shape")
    turned = _check(value.get("turned", False), bool, f"{at}.turned", "true or false")
    if (turned or role in ("linear", "head", "embedding")) and len(shape) != 2:
        raise BadProgram(f"{at}.shape is {list(shape)}; a {role} weight has two sizes")
    return WeightOf(path, _read_dtype(value.get("dtype"), f"{at}.dtype"), shape, role, turned)


def _read_array(value: Any, n: int, total: list[int]) -> np.ndarray:
    at = f"constants[{n}]"
    _check(value, Mapping, at, "an object")
    shape = _read_shape(value.get("shape"), f"{at}.shape")
    import ml_dtypes

    name = _read_dtype(value.get("dtype"), f"{at}.dtype")
    dtype = np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)
    size = math.prod(shape) * dtype.itemsize
    total[0] += size
    if total[0] > MAX_CONSTANT:
        raise BadProgram(f"{at}: the constants have more than {MAX_CONSTANT} bytes")
    text = _check(value.get("zlib"), str, f"{at}.zlib", "a string")
    try:
        raw = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise BadProgram(f"{at}.zlib: {error}") from None
    if len(raw) != size:
        raise BadProgram(
            f"{at}.zlib holds {'more' if len(raw) > size else len(raw)} bytes; its shape and dtype say {size}"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _decode(value: Any, limit: int, at: str, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise BadProgram(f"{at}: nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return tuple(_decode(v, limit, at, depth + 1) for v in value)
    if isinstance(value, Mapping) and len(value) == 1:
        key, inner = next(iter(value.items()))
        if key == "value" and _whole(inner):
            if inner >= limit:
                raise BadProgram(f"{at} refers to value {inner}, and only {limit} come before it")
            return Ref(inner)
        if key == "dtype":
            return DType(_read_dtype(inner, at))
        if key == "float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if key == "complex" and isinstance(inner, list) and len(inner) == 2:
            return complex(*(float(v) for v in inner if isinstance(v, (int, float))))
    raise BadProgram(f"{at} is {_short(value)}; it should be a number, a string, a list, a dtype or a value's number")


def _read_node(value: Any, n: int, limit: int, places: list[str]) -> Node:
    at = f"nodes[{n}]"
    if not isinstance(value, list) or len(value) != 4 or not isinstance(value[0], str):
        raise BadProgram(f"{at} is {_short(value)}; it should be [operator, arguments, named arguments, place]")
    op, args, kwargs, where = value
    _check(args, list, f"{at} ({op}): its arguments", "a list")
    _check(kwargs, Mapping, f"{at} ({op}): its named arguments", "an object")
    if not _whole(where) or where >= len(places):
        raise BadProgram(f"{at} ({op}): its place is {_short(where)}, of {len(places)} places")
    read = lambda v: _decode(v, limit, f"{at} ({op})")
    return Node(op, tuple(read(a) for a in args), tuple((k, read(v)) for k, v in kwargs.items()), places[where])


def _read_result(value: Any, limit: int, depth: int) -> Any:
    at = "result"
    _check(value, Mapping, at, "an object")
    kind = value.get("kind")
    if depth > MAX_DEPTH or kind not in ("value", "tuple", "dict", "output"):
        raise BadProgram(f"{at}: kind is {_short(kind)}; it should be value, tuple, dict or output")
    if kind == "value":
        return kind, _decode(value.get("value"), limit, at)
    if kind == "tuple":
        items = _check(value.get("items"), list, f"{at}.items", "a list")
        return kind, tuple(_read_result(v, limit, depth + 1) for v in items)
    items = _check(value.get("items"), Mapping, f"{at}.items", "an object")
    return kind, tuple((k, _read_result(v, limit, depth + 1)) for k, v in items.items())


def computed_dtype(name: str) -> Any:
    """The dtype that JAX computes with for one of torch's."""
    return dtype_named(name)
