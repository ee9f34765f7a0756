"""`shard`: every array of a model to its place on a mesh, and an account of what could not be split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..core.habits import no_path, taught
from ..core.multihost import local
from ..core.slots import Found, find_slots
from ..core.tree import Pipelined, expand, is_array, is_leaf, join, leaves, near, nodes
from ..core.weight import AXES, axes_of, shape_of
from ..nn.context import Runtime
from .rules import ShardingError, ShardingRules, make_mesh, resolve_rules


class Placement(NamedTuple):
    """Where one array goes, and why any of its axes stay whole."""

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    why: str = ""  # why it is replicated, wholly or where a rule wanted otherwise


class Report(NamedTuple):
    """What `shard(..., report=True)` did: one placement per array."""

    placements: tuple[Placement, ...]

    @property
    def replicated(self) -> tuple[Placement, ...]:
        """The arrays that every device holds whole, and those where a rule could not be followed."""
        return tuple(p for p in self.placements if p.why)

    def __str__(self) -> str:
        if not self.replicated:
            return f"all {len(self.placements)} arrays are split as the rules say"
        lines = [f"{len(self.replicated)} of {len(self.placements)} arrays are replicated, wholly or in part:"]
        return "\n".join(lines + [f"  {p.path} {p.shape} {p.spec}: {p.why}" for p in self.replicated])


def place(model: Any, rules: ShardingRules | str | None, mesh: Mesh) -> dict[str, Placement]:
    """The placement of every array of a model. All misfits are raised together as [`easyfn.ShardingError`][]."""
    rules = resolve_rules(model, rules)
    found = find_slots(model)
    names = set(AXES) | {name for f in found for name in f.slot.axes if name}
    if unknown := set(rules.axes) - names:
        word = sorted(unknown)[0]
        raise ShardingError(f"shard: the rules name {word!r}, an axis that no weight has. {near(word, sorted(names))}")
    wanted = {axis for name in rules.axes for axis in rules.mesh_axes(name)}
    if unknown := wanted - set(mesh.axis_names):
        raise ShardingError(
            f"shard: the rules use the mesh axis {sorted(unknown)[0]!r}; the mesh has {', '.join(mesh.axis_names)}"
        )
    used_paths: set[str] = set()
    errors: list[str] = []
    placed: dict[str, Placement] = {}
    staged = _stages(model, mesh)
    for f in found:
        placed.update(_place_slot(f, _stage_of(f.path, staged), rules, mesh, used_paths, errors))
    if lost := [p for p in rules.paths if p not in used_paths]:
        errors.append(f"the path pattern {lost[0]!r} matches no weight. {near(lost[0], [f.path for f in found])}")
    if errors:
        raise ShardingError("shard: " + "\n  ".join(errors))
    for path, leaf in leaves(model).items():
        spec = PartitionSpec(*_stage_of(path, staged))
        placed.setdefault(path, Placement(path, tuple(leaf.shape), spec, "no layer says what its axes are"))
    return placed


def _stages(model: Any, mesh: Mesh) -> dict[str, str]:
    """The paths of the runs that a pipeline holds, each with the mesh axis of its stages."""
    staged = {}
    for path, node in nodes(model):
        if isinstance(node, Pipelined) and (size := mesh.shape.get(node.axis, 1)) > 1:
            if size != node.stages:
                raise ShardingError(
                    f"shard: the layers are in {node.stages} stages and the mesh has {node.axis}={size}: "
                    f"ef.pipeline(model, {size}, microbatches={node.microbatches}), or another mesh"
                )
            staged.update({join(path, name): node.axis for run in node.rounds for name in run.names()})
    return staged


def _stage_of(path: str, staged: Mapping[str, str]) -> tuple[str, ...]:
    """The mesh axis of the leading axis of what lies at `path`, if that is in a pipeline."""
    return next(((axis,) for run, axis in staged.items() if path.startswith(f"{run}.")), ())


def _place_slot(
    f: Found, stage: tuple[str, ...], rules: ShardingRules, mesh: Mesh, used: set[str], errors: list[str]
) -> dict[str, Placement]:
    override = next((spec for p in expand(f.path) if (spec := rules.for_path(p)) is not None), None)
    shape = shape_of(f.weight)
    lead = len(shape) - len(f.slot.axes)  # the axis of a stacked run
    dense: list[tuple[str, ...]] = [stage] * lead
    why: list[str] = []
    for n, name in enumerate(f.slot.axes):
        if override is not None:
            part = override[n] if n < len(override) else None
            axes = () if part is None else (part,) if isinstance(part, str) else tuple(part)
        else:
            axes = rules.mesh_axes(name)
        axes = tuple(a for a in axes if mesh.shape[a] > 1)
        taken = [a for a in axes if any(a in other for other in dense)]
        if taken:
            errors.append(
                f"{f.path}: the mesh axis {taken[0]!r} would split two axes of one weight {f.slot.axes}; map one elsewhere"
            )
            axes = ()
        size = math.prod(mesh.shape[a] for a in axes)
        if shape[lead + n] % size:
            text = f"axis {n} ({name}) of size {shape[lead + n]} does not divide by {'x'.join(axes)}={size}"
            if rules.indivisible == "error":
                fix = 'another mesh, a rule for this axis, or ShardingRules(..., indivisible="replicate")'
                errors.append(f"{f.path} {shape}: {text}. Use {fix}.")
            why.append(text)
            axes = ()
        dense.append(axes)
    used.update(p for p in rules.paths if any(rules.for_path(q) is rules.paths[p] for q in expand(f.path)))
    by_name = dict(zip(f.slot.axes, dense[lead:], strict=True)) if override is None else None
    tree = axes_of(f.weight, tuple(f.slot.axes))
    parts = [("", f.weight, tree)] if is_leaf(f.weight) else _parts(f.weight, tree)
    return {
        join(f.path, sub): _place_part(join(f.path, sub), leaf, axes, f, dense, by_name, mesh, list(why))
        for sub, leaf, axes in parts
    }


def _parts(weight: Any, tree: Any) -> list[tuple[str, Any, tuple[str | None, ...]]]:
    """The arrays inside a weight format, each with its logical axes."""
    flat = leaves(weight)
    axes = jtu.tree_leaves(tree, is_leaf=lambda a: type(a) is tuple and all(x is None or isinstance(x, str) for x in a))
    if len(axes) != len(flat):
        axes = [tree] * len(flat)
    return [(path, leaf, part) for (path, leaf), part in zip(flat.items(), axes, strict=True)]


def _place_part(path, leaf, axes, f, dense, by_name, mesh, why) -> Placement:
    lead = leaf.ndim - len(axes)
    main = tuple(leaf.shape) == tuple(shape_of(f.weight))
    entries: list[Any] = [axes[0] if axes else None for axes in dense[:lead]]
    for n, name in enumerate(axes):
        if main or by_name is None:
            split = dense[n + len(dense) - len(axes)]
        else:
            split = by_name.get(name, ()) if name is not None else ()
        size = math.prod(mesh.shape[a] for a in split)
        if leaf.shape[lead + n] % size:  # a scale with fewer entries than devices: each keeps them all
            why.append(f"axis {n} of size {leaf.shape[lead + n]} does not divide by {'x'.join(split)}={size}")
            split = ()
        entries.append(None if not split else split[0] if len(split) == 1 else split)
    while entries and entries[-1] is None:
        entries.pop()
    spec = PartitionSpec(*entries)
    if not entries and not why:
        why.append(f"no rule splits {tuple(n for n in axes if n) or 'it'} on this mesh")
    return Placement(path, tuple(leaf.shape), spec, "; ".join(why))


def _mesh_for(mesh: Mesh | None) -> Mesh:
    return make_mesh() if mesh is None else mesh


def partition_specs(model: Any, rules: ShardingRules | str | None = None, mesh: Mesh | None = None) -> Any:
    """A tree like the model with a `PartitionSpec` for every array.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    specs = ef.partition_specs(model, "fsdp", ef.make_mesh())
    ```
    """
    return replace_leaves(model, {p: placement.spec for p, placement in place(model, rules, _mesh_for(mesh)).items()})


def named_shardings(model: Any, rules: ShardingRules | str | None = None, mesh: Mesh | None = None) -> Any:
    """A tree like the model with a `NamedSharding` for every array: what `jax.jit`'s `in_shardings` takes.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    places = ef.named_shardings(model, "fsdp", ef.make_mesh())
    model = jax.device_put(model, places)
    ```
    """
    mesh = _mesh_for(mesh)
    placed = place(model, rules, mesh)
    return replace_leaves(model, {p: NamedSharding(mesh, placement.spec) for p, placement in placed.items()})


def replace_leaves(model: Any, new: Mapping[str, Any]) -> Any:
    """A tree with the model's structure and `new[path]` in the place of every array; functions in it stay."""
    flat, treedef = jtu.tree_flatten(model)
    paths = iter(leaves(model))
    return jtu.tree_unflatten(treedef, [new[next(paths)] if hasattr(leaf, "shape") else leaf for leaf in flat])


@taught
def shard(
    model: Any, rules: ShardingRules | str | None = None, mesh: Mesh | None = None, *, report: bool = False
) -> Any:
    """`model` with every array on the mesh, split as the rules say; the numbers stay the same.

    **Arguments**

    - `rules`: [`easyfn.ShardingRules`][], the name of a preset (`fsdp`, `tp`, `fsdp_tp`, `ep`, `replicated`, ...), or `None`
      for `embed` over `fsdp`, `vocab`, `heads`, `kv_heads` and `mlp` over `tp`, `experts` over `ep`.
    - `mesh`: by default `ef.make_mesh()`, all devices on `fsdp`.
    - `report`: return `(model, report)`, where `report.replicated` lists what is not split, and why.

    Abstract models get abstract arrays with shardings. Raises [`easyfn.ShardingError`][] for unknown axes, two axes of one
    weight on one mesh axis, and sizes that do not divide: all of them in one message, with the fix.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    model, report = ef.shard(model, "fsdp", ef.make_mesh(), report=True)
    ```
    """
    mesh = _mesh_for(mesh)
    placed = place(model, rules, mesh)
    new = {p: _put(leaf, NamedSharding(mesh, placed[p].spec)) for p, leaf in leaves(model).items()}
    sharded = replace_leaves(model, new)
    return (sharded, Report(tuple(placed.values()))) if report else sharded


def _put(leaf: Any, sharding: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    if isinstance(leaf, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(leaf, sharding)
    if not sharding.is_fully_addressable and getattr(leaf, "is_fully_addressable", True):
        # Every process has all of it and keeps its part; device_put would send all of it around, to compare.
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.asarray(leaf[index]))
    return jax.device_put(leaf, sharding)


def gather(model: Any) -> Any:
    """The inverse of [`easyfn.shard`][]: every array whole on every device of the mesh it is on.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    model = ef.gather(ef.shard(model, "fsdp", ef.make_mesh()))
    assert model.model.norm.weight.is_fully_replicated
    ```
    """

    no_path(model)

    def one(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None)
        return (
            _put(leaf, NamedSharding(sharding.mesh, PartitionSpec())) if isinstance(sharding, NamedSharding) else leaf
        )

    return jax.tree.map(one, model)


def fully_shard(model: Any, mesh: Mesh | None = None) -> Any:
    """`model` with every array split over all devices at once, along its largest axis that divides; the rest whole.

    The least memory per device, whatever the layers say of their axes (ZeRO-3).

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    model = ef.fully_gather(ef.fully_shard(model, ef.make_mesh()))
    ```
    """
    no_path(model)
    mesh = _mesh_for(mesh)
    names = tuple(n for n in mesh.axis_names if mesh.shape[n] > 1)
    count = math.prod(mesh.shape[n] for n in names)

    def one(leaf: Any) -> Any:
        if not is_array(leaf):
            return leaf
        sizes = [(size, -n) for n, size in enumerate(leaf.shape) if count > 1 and size % count == 0]
        entries: list[Any] = [None] * leaf.ndim
        if sizes:
            entries[-max(sizes)[1]] = names
        return _put(leaf, NamedSharding(mesh, PartitionSpec(*entries)))

    return jax.tree.map(one, model)


def fully_gather(model: Any, device: Any = None) -> Any:
    """`model` with every array whole on one device (the first, unless another is given): of many processes, on one of each."""
    no_path(model)
    single = jax.sharding.SingleDeviceSharding(device or jax.local_devices()[0])
    return jax.tree.map(lambda leaf: _put(local(leaf), single) if is_array(leaf) else leaf, model)


def shard_fns(model: Any, rules: ShardingRules | str | None = None, mesh: Mesh | None = None) -> Any:
    """A tree like the model with, for every array, the function that puts such an array in its place.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    model = jax.tree.map(lambda put, x: put(x), ef.shard_fns(model, "fsdp", ef.make_mesh()), model)
    ```
    """
    shardings = named_shardings(model, rules, mesh)
    return jax.tree.map(_to, shardings, is_leaf=lambda s: isinstance(s, NamedSharding))


def gather_fns(model: Any, rules: ShardingRules | str | None = None, mesh: Mesh | None = None) -> Any:
    """A tree like the model with, for every array, the function that makes such an array whole again."""
    mesh = _mesh_for(mesh)
    place(model, rules, mesh)  # the same errors as shard_fns
    return jax.tree.map(lambda _: _to(NamedSharding(mesh, PartitionSpec())), model)


def _to(sharding: NamedSharding) -> Callable[[Any], Any]:
    return lambda leaf: _put(leaf, sharding)


def _over(mesh: Mesh) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The axes of a mesh over which rows and tokens of a batch are split: what a pass holds its activations to."""
    some = lambda wanted: tuple(a for a in wanted if mesh.shape.get(a, 1) > 1)
    return some(Runtime().batch_axes), some(Runtime().sequence_axes)


def data_sharding(mesh: Mesh) -> NamedSharding:
    """Where a batch `(batch, seq)` goes: rows over `dp`, `fsdp`, `ep` and `pp`, tokens over `sp`.

    ```python
    import easyfn as ef
    assert ef.data_sharding(ef.make_mesh()).mesh == ef.make_mesh()
    ```
    """
    rows, tokens = _over(mesh)
    return NamedSharding(mesh, PartitionSpec(rows or None, tokens or None))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch (a tree of arrays with rows first) on the mesh. Raises if the rows, or the sequence under `sp`, do not divide.

    ```python
    import jax, numpy as np, easyfn as ef
    batch = ef.shard_batch({"input_ids": np.ones((jax.device_count(), 4), int)}, ef.make_mesh())
    ```
    """
    rows, tokens = _over(mesh)
    number, parts = (math.prod(mesh.shape[a] for a in axes) for axes in (rows, tokens))

    def one(path: Any, leaf: Any) -> Any:
        name = jtu.keystr(path)
        if not leaf.ndim:
            return _put(leaf, NamedSharding(mesh, PartitionSpec()))
        if leaf.shape[0] % number:
            raise ShardingError(
                f"shard_batch: {name} has {leaf.shape[0]} rows, which {' x '.join(rows)} = {number} does not divide"
            )
        split = leaf.ndim > 1 and parts > 1
        if split and leaf.shape[1] % parts:
            raise ShardingError(
                f"shard_batch: {name} has {leaf.shape[1]} tokens, which {' x '.join(tokens)} = {parts} does not divide; "
                "pad them"
            )
        return _put(
            leaf, NamedSharding(mesh, PartitionSpec(rows or None, tokens) if split else PartitionSpec(rows or None))
        )

    return jtu.tree_map_with_path(one, batch)
