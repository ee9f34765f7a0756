"""The arrays of any pytree in one safetensors file, under their dotted paths, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.atomic import beside, sync
from ..core.multihost import first, on_host, spans
from ..core.tree import leaves, near, replace
from .checkpoint import LoadError, one_version
from .safetensors import order, read, read_header, write


def save_params(model: Any, path: Any) -> Path:
    """What `ef.save(model, "weights.safetensors")` does: every array by its path, in whatever format it is."""
    target = Path(path).expanduser()
    arrays = {name: leaf for name, leaf in leaves(model).items() if hasattr(leaf, "dtype")}
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in arrays.values()):
        raise ValueError("save: the model is abstract: it has shapes and no numbers. Fill it with ef.init")
    if keys := [n for n, leaf in arrays.items() if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]:
        raise ValueError(f"save: {keys[0]} is a PRNG key, which a safetensors file cannot hold; write its key_data")
    if not arrays:
        raise ValueError(f"save: a {type(model).__name__} holds no arrays")
    shapes = {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in arrays.items()}
    shapes = {name: shapes[name] for name in order(shapes)}
    alone = not spans(model)
    with beside(target.resolve(), "save", alone) as folder:
        brought = map(on_host, (arrays[name] for name in shapes))
        if not alone:
            brought = iter(list(brought))  # type: ignore[assignment]  # all processes take part

        def put() -> None:
            write(folder / target.name, shapes, brought)
            os.replace(folder / target.name, target.resolve())
            sync(target.resolve().parent)

        first(put, "save", alone)
    return target


def load_params(like: Any, path: Any) -> Any:
    """`like` with the arrays of a `.safetensors` file that [`easyfn.save`][] wrote under their paths.

    `like` is any pytree of the same structure, concrete or abstract, such as `eqx.filter_eval_shape(make, key)`.
    Arrays keep the file's dtype. Raises [`easyfn.LoadError`][] with all that is missing, unexpected or of another shape.

    ```python
    import os, tempfile, equinox as eqx, jax, easyfn as ef
    mlp = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    with tempfile.TemporaryDirectory() as folder:
        path = ef.save(mlp, os.path.join(folder, "mlp.safetensors"))
        again = ef.load_params(eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(1)), path)
    assert (again.layers[0].weight == mlp.layers[0].weight).all()
    ```
    """
    file = Path(path).expanduser()
    infos, _ = one_version(file, lambda: read_header(file))
    wanted = {name: leaf for name, leaf in leaves(like).items() if hasattr(leaf, "dtype")}
    problems = [f"missing tensor {name!r}. {near(name, infos)}" for name in wanted.keys() - infos.keys()]
    problems += [f"unexpected tensor {name!r}" for name in infos.keys() - wanted.keys()]
    problems += [
        f"{name}: the model has {tuple(wanted[name].shape)}, the file {infos[name].shape}"
        for name in wanted.keys() & infos.keys()
        if tuple(wanted[name].shape) != infos[name].shape
    ]
    if problems:
        raise LoadError(file, sorted(problems))
    return replace(like, {name: jax.device_put(read(infos[name])) for name in wanted})
