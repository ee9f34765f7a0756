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
    import jax, easyfn as ef
    config = ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                   num_attention_heads=4, num_key_value_heads=2)
    model = ef.init(config, key=jax.random.key(0))
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
