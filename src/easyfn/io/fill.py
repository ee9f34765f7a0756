"""From tensors to a model: which tensor goes where, and every array read once into the memory where it stays."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.params import abstract_of
from ..core.slots import dtype_in
from ..core.tree import expand, is_leaf, join, leaves, nodes, rebuild, replace
from ..names.layout import Beside, Joined, Plain, Transposed, Turned
from ..names.part import whole
from ..names.rules import Tensors, template, tensors
from ..registry.family import Family, abstract_config
from .arrays import dense, put, read_part
from .checkpoint import DAMAGE, LoadError, Source
from .encode import encode_into, reader
from .formats import Packed
from .safetensors import BadFile, aligned
from .tied import head_of, table_of

Encoders = Mapping[str, Callable[[Any], Any]]


@dataclasses.dataclass
class Sources:
    """What every array of a model is read from: the outcome of comparing a model with a checkpoint."""

    of: dict[str, Tensors]  # by the path in the unstacked model; the names are those of the checkpoint
    packed: dict[str, Packed]
    missing: list[str]  # paths without a tensor
    problems: list[str]


def find_name(name: str, held: Mapping[str, Any], known: Family) -> str | None:
    """How a checkpoint calls a tensor: as asked, with or without a head model's prefix, or in an older spelling."""
    head = f"{known.prefix}."
    each = (name, *older_names(name, known))
    for candidate in (c for n in each for c in (n, n.removeprefix(head) if n.startswith(head) else head + n)):
        if candidate in held:
            return candidate
        if "LayerNorm." in candidate:  # TensorFlow's names, still in the oldest checkpoints
            old = candidate.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            if old in held:
                return old
    return None


def older_names(name: str, known: Family) -> list[str]:
    """The other names of a tensor in a family's `aliases`, whose names may be templates: `"tower.{rest}"`."""
    found = list(known.aliases.get(name, ()))
    for ours, theirs in known.aliases.items():
        if "{" in ours and (match := template(ours).fullmatch(name)) is not None:
            found += [t.format(**match.groupdict()) for t in theirs]
    return found


def _in_its_layer(name: str, layers: set[str], known: Family) -> str:
    """As `find_name`, for a tensor that the file holds under other names, beside which its layer's name tells the way."""
    head = f"{known.prefix}."
    swapped = name.removeprefix(head) if name.startswith(head) else head + name
    return next((n for n in (name, swapped) if n.rpartition(".")[0] in layers), name)


def match(
    model: Any, config: Any, known: Family, task: str, source: Source, reader: Any, untie: bool = False
) -> Sources:
    """Compares an abstract, unstacked model with a checkpoint: every difference becomes a problem. `untie`: the head of
    a tied file is a copy of the embeddings."""
    held = source.tensors
    rules = (source.names or known.names)(model)
    wanted = {path: found[0] for path, found in tensors(model, rules).items()}
    out = Sources({}, {}, [], list(source.problems))
    used: set[str] = set()
    if reader is not None:
        layers = {name.rpartition(".")[0] for name in held}
        renamed = {
            p: t._replace(names=tuple(find_name(n, held, known) or _in_its_layer(n, layers, known) for n in t.names))
            for p, t in ((p, t.busy) for p, t in wanted.items())
        }
        out.packed = reader(model, renamed, held)
        for path, packed in out.packed.items():
            used |= set(packed.names)
            out.problems += [
                f"{path} needs {name!r}, which is not in the checkpoint" for name in packed.names if name not in held
            ]
    floating = {path: jnp.issubdtype(leaf.dtype, jnp.floating) for path, leaf in leaves(model).items()}
    absent: list[tuple[str, list[str]]] = []
    twins: Mapping[str, Tensors] | None = None
    for path, t in wanted.items():
        if path in out.packed:
            continue
        used |= {n for n in map(partial(find_name, held=held, known=known), t.names) if n is not None}
        t = t.busy
        found = [find_name(n, held, known) for n in t.names]
        if not any(found) and (own := find_name(path, held, known)) and tuple(held[own].shape) == t.shape:
            # Our path is the name in transformers' modules: a bare `state_dict()`, where experts are joined already.
            t, found = Tensors(path, (own,), Plain(), t.shape), [own]
        if not any(found):
            if twins is None:
                twins = head_of(config, known, wanted, model, held)
                twins = twins or (table_of(config, known, task, wanted, model) if untie else {})
            t = twins.get(path, t)
            found = [find_name(n, held, known) for n in t.names]
        names = [n for n in found if n is not None]
        used |= set(names)
        if lost := [n for n, f in zip(t.names, found, strict=True) if f is None]:
            absent.append((path, lost))
            continue
        t = t._replace(names=tuple(names))
        if isinstance(t.layout, Turned) and tuple(held[names[0]].shape) != t.shape:
            t = t._replace(layout=Transposed())
        t = out.of[path] = _as_written(t, held)
        for name, shape in zip(names, t.shapes(), strict=True):
            info = held[name]
            if tuple(info.shape) != tuple(shape):
                out.problems.append(
                    f"{path}: the model has {shape}, tensor {name!r} {tuple(info.shape)}{_why(path, config)}"
                )
            if jnp.issubdtype(info.dtype, jnp.floating) != floating[path] or _is_float8(info.dtype):
                out.problems.append(
                    f"{path}: tensor {name!r} holds {info.dtype}, which is not what the model computes with"
                )
    if not source.problems:
        _absences(absent, out, wanted)
        _leftovers(sorted(set(held) - used), used, out, config, known, task, source)
    return out


def _as_written(t: Tensors, held: Mapping[str, Any]) -> Tensors:
    """Parts that are joined in other widths than those of the first files: transformers writes equal ones, whatever they
    were (OLMo Hybrid), and joins whatever it finds."""
    if not (isinstance(t.layout, Beside) or (isinstance(t.layout, Joined) and t.layout.of == Plain())):
        return t
    axis = t.layout.axis
    widths = tuple(held[name].shape[axis] for name in t.names if len(held[name].shape) == len(t.shape))
    right = len(widths) == len(t.names) and sum(widths) == t.shape[axis]
    return t._replace(layout=Beside(axis, widths)) if right else t


def _is_float8(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating)) and np.dtype(dtype).itemsize == 1


def _absences(absent: list[tuple[str, list[str]]], out: Sources, wanted: Mapping[str, Tensors]) -> None:
    """A head that a checkpoint lacks altogether may be drawn at random; a layer that its siblings have may not."""
    kind = lambda path: re.sub(r"(?<![^.])\d+(?![^.])", "*", path)
    there = {kind(path) for path in (*out.of, *out.packed)}
    for path, lost in absent:
        if len(lost) < len(wanted[path].names) or kind(path) in there or not there:
            shown = ", ".join(map(repr, lost[:3])) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
            out.problems.append(f"missing tensor {shown} (for {path} of shape {wanted[path].shape})")
        else:
            out.missing.append(path)


def _leftovers(
    names: list[str], used: set[str], out: Sources, config: Any, known: Family, task: str, source: Source
) -> None:
    """Tensors that nothing asked for: buffers, tied twins and heads of other tasks are dropped, the rest is wrong."""
    names = [n for n in names if not any(re.search(p, n) for p in known.ignore_tensors(config))]
    if not names:
        return
    other: set[str] = set()
    for each in known.tasks:
        if each != task:
            model = abstract_config(config, each, None)
            rules = (source.names or known.names)(model)
            other |= {n for found in tensors(model, rules).values() for t in found for n in t.names}
    for name in names:
        info = source.tensors[name]
        if 0 in info.shape:
            continue  # of no shared experts, say: nothing is lost
        mine = (name.removeprefix(f"{known.prefix}."), f"{known.prefix}.{name}")
        today = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if today in other and not any(n in used for n in mine if n != name):
            continue
        twins = [n for n in used if (t := source.tensors.get(n)) and t.shape == info.shape and t.dtype == info.dtype]
        if len(info.shape) > 1 and any(_equal(source, name, twin) for twin in twins):
            continue
        hint = ""
        if (
            getattr(config, "tie_word_embeddings", False)
            and len(info.shape) > 1
            and twins
            and not _same_pattern(name, used)
        ):
            hint = "; if it is an untied head, load with config_overrides={'tie_word_embeddings': False}"
        out.problems.append(f"unexpected tensor {name!r} of shape {tuple(info.shape)}: no part of the model{hint}")


def _same_pattern(name: str, used: set[str]) -> bool:
    star = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
    return any(re.sub(r"(?<![^.])\d+(?![^.])", "*", n) == star for n in used)


def _equal(source: Source, a: str, b: str) -> bool:
    return np.array_equal(_raw(source, a).view(np.uint8), _raw(source, b).view(np.uint8))


def _raw(source: Source, name: str) -> np.ndarray:
    info = source.tensors[name]
    out = aligned(tuple(info.shape), info.dtype)
    source.read_into(name, out, 0)
    return out.reshape(-1)


def _why(path: str, config: Any) -> str:
    return (
        f" (the config has vocab_size={config.vocab_size})"
        if re.search("embed|wte|lm_head|shared", path) and hasattr(config, "vocab_size")
        else ""
    )


def dtypes(sources: Sources, source: Source, model: Any, dtype: Any) -> dict[str, np.dtype[Any]]:
    """The dtype of every array: the one asked for (floating point only), or the file's, as far as JAX has it."""
    out = {}
    wanted = dtype_in(model, np.float32 if dtype is None else dtype)
    for path, t in sources.of.items():
        stored = [np.dtype(source.tensors[n].dtype) for n in t.names]
        kept = stored[0] if len(set(stored)) == 1 else jnp.result_type(*stored)
        floating = jnp.issubdtype(kept, jnp.floating)
        out[path] = np.dtype(jax.dtypes.canonicalize_dtype(wanted(path) if dtype is not None and floating else kept))
    return out


def assemble(
    model: Any,
    sources: Sources,
    source: Source,
    *,
    dtype: Any = None,
    encoders: Encoders | None = None,
    stack: Callable[[Any], Any] | None = None,
    shardings: Callable[[Any], Any] | None = None,
    progress: Any = None,
) -> Any:
    """The model, filled. Missing paths stay abstract. `stack` and `shardings` are functions of the abstract model."""
    encoders = encoders or {}
    wanted = dtypes(sources, source, model, dtype)
    common = max(set(wanted.values()), key=list(wanted.values()).count) if wanted else jnp.dtype(jnp.float32)
    weigh: Callable[[str], Any] = lambda path: _unpack(sources.packed[path], source, dtype)
    if shardings is None:
        packed = {path: weigh(path) for path in sources.packed}
        weigh = packed.pop
        formats = {path: abstract_of(weight) for path, weight in packed.items()}
    else:  # read twice, to know what they are and to keep a part of each: all of them would be the whole model
        formats = {path: abstract_of(weigh(path)) for path in sources.packed}
    arrays = leaves(model)
    new: dict[str, Any] = {p: jax.ShapeDtypeStruct(t.shape, wanted[p]) for p, t in sources.of.items()}
    for path in sources.missing:
        new[path] = jax.ShapeDtypeStruct(arrays[path].shape, common)
    for path, encode in encoders.items():
        if path in sources.of:
            new[path] = jax.eval_shape(encode, new[path])
    new |= formats
    model = replace(model, new)
    if stack is not None:
        model = stack(model)
    places = dict(nodes(shardings(model))) if shardings is not None else {}
    special = {*formats, *(p for p in encoders if p in sources.of)}
    skip = set(sources.missing)

    def in_place(path: str, node: Any) -> Any:
        """A weight that is encoded, or stacked of packed ones: every part is written where it stays."""
        leaves, treedef = jax.tree.flatten(node)
        parts = [aligned(leaf.shape, leaf.dtype) for leaf in leaves]
        for i, single in enumerate(expand(path)):
            mine = parts if single == path else [part[i] for part in parts]
            if single in formats:
                for part, value in zip(mine, jax.tree.leaves(weigh(single)), strict=True):
                    np.copyto(part, value)
                continue
            t, dtype = sources.of[single], wanted[single]

            def all_of(t: Tensors, dtype: Any = dtype) -> jax.Array:
                return dense(t.shape, dtype, [t], source, None)

            read = reader(t, dtype, source, all_of, _rows)
            encode_into(mine, t, dtype, read, encoders[single])
        return jax.tree.unflatten(treedef, parts)

    def one(path: str, node: Any) -> Any:
        singles = expand(path)
        if singles[0] in special:
            weight = weigh(path) if path in formats else in_place(path, node)
            return jax.tree.map(put, weight, places[path]) if places else jax.tree.map(put, weight)
        return dense(
            node.shape, node.dtype, [sources.of[s] for s in singles], source, places.get(path), path != singles[0]
        )

    work = [(p, n) for p, n in units(model, special) if not set(expand(p)) & skip]
    filled: dict[str, Any] = {}
    problems: list[str] = []
    options: Any = jax.config  # whose attributes are made as it runs, out of sight of type checkers
    device = options.jax_default_device  # `with jax.default_device(...)` speaks of its own thread only

    def run(item: tuple[str, Any]) -> None:
        path, node = item
        try:
            with jax.default_device(device):
                filled[path] = jax.block_until_ready(one(path, node))  # or what was read would pile up on the host
        except (BadFile, OSError) as error:
            problems.append(f"{path}: {error}")
        if progress is not None:
            progress.update(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(node)))

    with ThreadPoolExecutor(source.workers) as pool:
        for _ in pool.map(run, work):
            pass
    if problems:
        raise LoadError(source.where, problems)
    return replace(model, filled)


def units(model: Any, special: set[str]) -> list[tuple[str, Any]]:
    """What is read at once: the plain arrays of a model, and the weights at the `special` paths whole."""
    found: list[tuple[str, Any]] = []

    def go(path: str, node: Any) -> Any:
        if (path and expand(path)[0] in special) or (is_leaf(node) and hasattr(node, "shape")):
            found.append((path, node))
            return node
        return rebuild(node, lambda name, child: go(join(path, name), child))

    go("", model)
    return found


def _rows(out: np.ndarray, source: Source, name: str, start: int) -> None:
    """Fills `out` with the rows of a tensor from `start` on."""
    read_part(out, source, name, (slice(start, start + len(out)), *whole(out.shape[1:])))


def _unpack(packed: Packed, source: Source, dtype: Any) -> Any:
    parts = []
    for name in packed.names:
        out = aligned(tuple(source.tensors[name].shape), source.tensors[name].dtype)
        source.read_into(name, out, 0)
        parts.append(out)
    try:
        return packed.make(parts, dtype)
    except DAMAGE as error:
        raise LoadError(
            source.where, [f"{packed.names[0]} and what belongs to it are damaged ({type(error).__name__}: {error})"]
        ) from error
