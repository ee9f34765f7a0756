"""`save_state` and `load_state`: a training state on disk, through Orbax (`pip install easyfn[train]`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax

from ._tree import is_leaf, near, nodes


def save_state(
    state: Any, directory: str | Path, *, step: int | None = None, keep: int | None = None, overwrite: bool = False
) -> Path:
    """Writes a training state (or any pytree of arrays) as one step of a directory; returns the step's path.

    `step` is by default the state's own count. `keep`: how many of the latest steps stay, by default all. The write is
    atomic: a step is there whole or not at all. Each device writes what it holds. A step that exists is a
    `FileExistsError`, unless `overwrite` is set.
    """
    orbax = _orbax("save_state")
    number = int(state.step) if step is None else step
    root = Path(directory).absolute()
    path = root / str(number)
    if path.exists() and not overwrite:
        raise FileExistsError(f"save_state: {path} exists; choose another step=, or say overwrite=True")
    with orbax.Checkpointer(orbax.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=orbax.args.PyTreeSave(_flat(state)), force=overwrite)
    if keep is not None and jax.process_index() == 0:
        if keep < 1:
            raise ValueError(f"save_state: keep={keep} would keep nothing")
        for old in [n for n in _steps(root) if n != number][: -(keep - 1) or None]:
            shutil.rmtree(root / str(old))
    return path


def load_state(like: Any, directory: str | Path, *, step: int | None = None) -> Any:
    """A saved state, in the structure and shardings of `like`: a fresh `ef.to_state(...)`, concrete or abstract.

    `step` is by default the latest. Training goes on exactly where it was. Raises `FileNotFoundError` if there is no
    such step, and `ValueError` naming arrays that are missing, unexpected, or of another shape or dtype.
    """
    orbax = _orbax("load_state")
    root = Path(directory).absolute()
    steps = _steps(root)
    if not steps or (step is not None and step not in steps):
        asked = "no steps" if step is None else f"no step {step}"
        raise FileNotFoundError(f"load_state: {asked} in {root}; there are {', '.join(map(str, steps)) or 'none'}")
    path = root / str(steps[-1] if step is None else step)
    wanted = {name: _target(leaf) for name, leaf in _flat(like).items()}
    with orbax.Checkpointer(orbax.PyTreeCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(path)
        saved = getattr(getattr(metadata, "item_metadata", metadata), "tree", None) or metadata.item_metadata
        _compare(wanted, saved, path)
        how = orbax.checkpoint_utils.construct_restore_args(wanted)
        found = checkpointer.restore(path, args=orbax.args.PyTreeRestore(item=wanted, restore_args=how))
    leaves = [
        jax.random.wrap_key_data(found[name], impl=_impl(leaf)) if _is_key(leaf) else found[name]
        for name, leaf in zip(wanted, jax.tree.leaves(like), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _orbax(who: str) -> Any:
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise ImportError(f"{who} needs orbax-checkpoint: pip install 'easyfn[train]'") from error
    return orbax


def _steps(root: Path) -> list[int]:
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit()) if root.is_dir() else []


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _impl(key: Any) -> Any:
    found: list[Any] = []
    jax.eval_shape(lambda k: found.append(jax.random.key_impl(k)), key)  # of an abstract key too
    return found[0]


def _data(leaf: Any) -> Any:
    """The numbers of a PRNG key, for a file."""
    if not _is_key(leaf):
        return leaf
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    return jax.eval_shape(jax.random.key_data, leaf) if abstract else jax.random.key_data(leaf)


def _flat(tree: Any) -> dict[str, Any]:
    """Every array by its path, in the order of the tree."""
    found = {path: _data(leaf) for path, leaf in nodes(tree) if is_leaf(leaf)}
    if len(found) != len(jax.tree.leaves(tree)):
        raise ValueError("two arrays of this tree have one path: give its containers names")
    return found


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _compare(wanted: dict[str, Any], saved: Any, path: Path) -> None:
    errors = []
    for name in wanted.keys() - saved.keys():
        errors.append(f"missing: {name}. {near(name, saved)}")
    for name in saved.keys() - wanted.keys():
        errors.append(f"unexpected: {name}")
    for name in wanted.keys() & saved.keys():
        here, there = wanted[name], saved[name]
        if tuple(here.shape) != tuple(there.shape) or here.dtype != there.dtype:
            errors.append(f"{name} is {there.dtype}{list(there.shape)}, asked for {here.dtype}{list(here.shape)}")
    if errors:
        listed = "\n  ".join(sorted(errors)[:20])
        raise ValueError(f"load_state: {path} holds another model or optimizer than `like`:\n  {listed}")
