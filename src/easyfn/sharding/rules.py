"""Rules: from the logical axes of weights to the axes of a mesh, as data."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from ..core.habits import no_path, taught
from ..core.tree import near
from ..core.verb import verb

MESH_AXES = ("pp", "dp", "fsdp", "ep", "tp", "sp")  # the slowest links first: stages send the least, and seldom
MeshAxes = str | tuple[str, ...] | None


class ShardingError(ValueError):
    """Rules, a mesh and the shapes of a model do not fit together."""


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Which mesh axes each logical axis is split over.

    - `axes`: logical name -> mesh axis, several, or `None` for replicated. A name that is not listed is replicated.
    - `paths`: regular expression searched in the dotted path -> `PartitionSpec` of the single layer's weight; the first that
      matches wins over `axes`.
    - `indivisible`: what happens to an axis that the mesh does not divide: `"error"`, or `"replicate"`, which
      `shard(..., report=True)` and `show` tell.

    ```python
    import easyfn as ef
    rules = ef.ShardingRules({"mlp": "tp", "embed": ("fsdp", "sp")}, {r"lm_head": ef.P(None, "tp")})
    ```
    """

    axes: Mapping[str, MeshAxes] = dataclasses.field(default_factory=dict)
    paths: Mapping[str, PartitionSpec] = dataclasses.field(default_factory=dict)
    indivisible: str = "error"

    def __post_init__(self) -> None:
        if self.indivisible not in ("error", "replicate"):
            raise ValueError(f"ShardingRules.indivisible is 'error' or 'replicate', not {self.indivisible!r}")

    def mesh_axes(self, name: str | None) -> tuple[str, ...]:
        found = self.axes.get(name) if name is not None else None
        return () if found is None else (found,) if isinstance(found, str) else tuple(found)

    def for_path(self, path: str) -> PartitionSpec | None:
        return next((spec for pattern, spec in self.paths.items() if re.search(pattern, path)), None)


_TP: dict[str, MeshAxes] = {"vocab": "tp", "heads": "tp", "kv_heads": "tp", "mlp": "tp"}

PRESETS: dict[str, ShardingRules] = {
    "replicated": ShardingRules({}),
    "fsdp": ShardingRules({"embed": "fsdp"}),
    "tp": ShardingRules(_TP),
    "fsdp_tp": ShardingRules({"embed": "fsdp", **_TP}),
    "tp_sp": ShardingRules(_TP),  # sp splits the sequence of the batch, not a weight
    "ep": ShardingRules({"experts": "ep"}),
    "all": ShardingRules({"embed": "fsdp", "experts": "ep", **_TP}),
}


@verb
def default_rules(model: Any) -> ShardingRules:
    """The rules that `shard` uses when none are given: `embed` over `fsdp`, the wide axes over `tp`, `experts` over `ep`.

    A family has rules of its own where its config's type is registered, for models of every task; or a model's type.

    ```python
    import dataclasses, easyfn as ef

    @dataclasses.dataclass(frozen=True)
    class MyConfig:
        hidden_size: int = 64

    @ef.default_rules.register(MyConfig)
    def _(config):
        return ef.ShardingRules({"embed": "fsdp"}, indivisible="replicate")
    ```
    """
    no_path(model)
    config = getattr(model, "config", None)
    if config is not None and default_rules.knows(type(config)):
        return default_rules(config)
    return PRESETS["all"]


def resolve_rules(model: Any, rules: ShardingRules | str | None) -> ShardingRules:
    if rules is None:
        return default_rules(model)
    if isinstance(rules, Mapping):
        raise TypeError(
            "rules are an object: ef.ShardingRules({'mlp': 'tp'}, {path: ef.P(...)}), or the name of a preset"
        )
    if isinstance(rules, Mesh):
        raise TypeError("rules come before the mesh: ef.shard(model, mesh=mesh), or ef.shard(model, 'fsdp', mesh)")
    if isinstance(rules, str):
        if rules not in PRESETS:
            raise ShardingError(f"unknown rules {rules!r}. {near(rules, PRESETS)} Presets: {', '.join(PRESETS)}.")
        return PRESETS[rules]
    return rules


@taught
def make_mesh(
    *, pp: int = 1, dp: int = 1, fsdp: int = -1, ep: int = 1, tp: int = 1, sp: int = 1, devices: Any = None
) -> Mesh:
    """A mesh with the axes `pp dp fsdp ep tp sp`; one size may be -1: whatever devices are left.

    - `pp` holds the stages of [`easyfn.pipeline`][], `dp` replicates weights and splits the batch, `fsdp` splits both,
      `ep` splits experts, `tp` splits the wide axes of weights, `sp` splits the sequence.
    - Neighbours along the last axes are neighbours among the devices, those along `pp` are the farthest apart.
    - `devices`: by default all of them.

    ```python
    import easyfn as ef
    mesh = ef.make_mesh(fsdp=1, tp=-1)
    assert tuple(mesh.shape) == ("pp", "dp", "fsdp", "ep", "tp", "sp")
    ```
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict(pp=pp, dp=dp, fsdp=fsdp, ep=ep, tp=tp, sp=sp)
    if bad := [f"{k}={v}" for k, v in sizes.items() if v == 0 or v < -1]:
        raise ShardingError(f"make_mesh: sizes are positive or -1, not {', '.join(bad)}")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ShardingError(
            f"make_mesh: only one axis may be -1, not {' and '.join(free)}; fsdp is -1 unless you say so"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        if len(devices) % fixed:
            raise ShardingError(f"make_mesh: {len(devices)} devices cannot be split by {fixed} ({_sizes(sizes)})")
        sizes[free[0]] = len(devices) // fixed
    elif fixed != len(devices):
        raise ShardingError(
            f"make_mesh: {_sizes(sizes)} needs {fixed} devices and there are {len(devices)}; "
            "set one axis to -1, or pass devices=jax.devices()[:n]"
        )
    shape = tuple(sizes[name] for name in MESH_AXES)
    # Said explicitly: jax.make_mesh now defaults to Explicit axes, in which a row-parallel product must be annotated.
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sizes.items())
