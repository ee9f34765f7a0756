"""Where a model's arrays are."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from .tree import leaves


def mesh_of(model: Any) -> Mesh | None:
    """The mesh that a model's arrays (or its abstract leaves) are placed on, `None` if they are on single devices.

    Raises `ValueError` if they are on more than one mesh.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    mesh = ef.make_mesh()
    assert ef.mesh_of(model) is None and ef.mesh_of(ef.fully_shard(model, mesh)) == mesh
    ```
    """
    found: dict[Mesh, str] = {}
    for path, leaf in leaves(model).items():
        sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            found.setdefault(sharding.mesh, path)
    if len(found) > 1:
        listed = "; ".join(f"{path}: {dict(mesh.shape)}" for mesh, path in found.items())
        raise ValueError(f"mesh_of: the model lies on {len(found)} meshes ({listed}); ef.gather it, or shard all of it")
    return next(iter(found), None)
