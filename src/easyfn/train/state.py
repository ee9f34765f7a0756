"""`save_state`, `load_state`, `Checkpoints`: a training state on disk, through Orbax (`pip install easyfn[train]`).

A step is a folder named by its number: `state`, Orbax's, and `data_state`, a JSON file. It is written under another name
and renamed when every process is done, so a step is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from ..core import atomic
from ..core.multihost import first, same_number
from ..core.tree import is_array
from .leaves import by_path, compare, is_key, key_impl, library, target

_ONE_AT_A_TIME = threading.Lock()  # Orbax counts its operations by process: two threads would take each other's
_UNFINISHED = re.compile(r"\d+(\.new-\w+)?\.orbax-checkpoint-tmp.*|\d+\.(removed|new-\w+)")


def save_state(
    state: Any,
    directory: str | Path,
    *,
    step: int | None = None,
    keep: int | None = None,
    overwrite: bool = False,
    data_state: Any = None,
) -> Path:
    """Writes a training state (or any pytree of arrays) as one step of a directory; returns the step's path.

    - `step`: by default the state's own count.
    - `keep`: how many of the latest steps stay, by default all.
    - `overwrite`: a step that exists, or that another process has saved first, is a `FileExistsError` without it; with it,
      the old one stays until the new is whole, and of several that save at once the last one stays.
    - `data_state`: anything that JSON holds, such as where the data's iterator stands; see [`easyfn.load_data_state`][].
      That of process 0 is written.

    The write is atomic: a step is there whole or not at all, and what saves that were killed have left is removed. Each
    device writes what it holds, on many processes too, into a `directory` that they share. [`easyfn.Checkpoints`][] writes
    while training goes on.

    ```python
    import tempfile, jax.numpy as jnp, easyfn as ef
    with tempfile.TemporaryDirectory() as folder:
        ef.save_state({"x": jnp.arange(3)}, folder, step=1, data_state={"row": 128})
        state = ef.load_state({"x": jnp.zeros(3, int)}, folder)
        assert ef.load_data_state(folder) == {"row": 128}
    ```
    """
    orbax = library("save_state")
    root, number = _folder(directory), _number(state, step)
    _check_keep(keep, "save_state")
    path = _free(root, number, "save_state", overwrite)
    # Each writer's own, since several may save one step at once.
    beside = path.with_name(f"{number}.new-{same_number(secrets.randbits(31)):08x}")
    with _ONE_AT_A_TIME, _writing(root, "save_state"):
        with atomic.naming(path), orbax.Checkpointer(_handler(orbax)) as checkpointer:
            checkpointer.save(beside, args=_args(orbax, state, data_state))
        first(lambda: (_take if overwrite else _put)(beside, path), "save_state")
        _prune(root, number, keep)
    return path


class Checkpoints:
    """Steps of a training run, written while it goes on: a `with` block around the loop.

    **Arguments**

    - `directory`: as for [`easyfn.save_state`][], whose files these are: [`easyfn.load_state`][] reads them. What saves
      that were killed have left in it is removed.
    - `keep`: how many of the latest steps stay, by default all.
    - `every`: `save` writes the steps whose number it divides, and does nothing for others.

    `save(state, *, step=None, data_state=None)` copies the state to the host, starts writing, and returns whether it
    did: the arrays may be donated to the next step at once. It waits for the save before it. Give `step` where you
    know it: to read the state's own count waits for the device. `wait()` waits until all is written, and so does the end
    of the block; both raise what went wrong.

    On many processes all of them make the same calls. A process that is killed at any moment leaves the last complete
    step.

    ```python
    import tempfile, jax, jax.numpy as jnp, easyfn as ef
    with tempfile.TemporaryDirectory() as folder:
        state = {"x": jnp.zeros(3)}
        with ef.Checkpoints(folder, keep=2, every=10) as checkpoints:
            for step in range(1, 41):
                state = jax.tree.map(lambda x: x + 1, state)
                checkpoints.save(state, step=step, data_state={"row": 32 * step})
        assert ef.saved_steps(folder) == (30, 40)
        assert ef.load_state(state, folder)["x"][0] == 40
    ```
    """

    def __init__(self, directory: str | Path, *, keep: int | None = None, every: int = 1) -> None:
        orbax = self._orbax = library("Checkpoints")
        _check_keep(keep, "Checkpoints")
        if every < 1:
            raise ValueError(f"Checkpoints: every={every}; it is a number of steps, 1 or more")
        self.directory, self.keep, self.every = _folder(directory), keep, every
        self._saver = orbax.AsyncCheckpointer(_handler(orbax))
        self._writing: int | None = None
        self._held = contextlib.ExitStack()  # while it writes
        with _writing(self.directory, "Checkpoints"):
            pass

    def save(self, state: Any, *, step: int | None = None, data_state: Any = None) -> bool:
        number = _number(state, step)
        if number % self.every:
            return False
        self.wait()
        path = _free(self.directory, number, "Checkpoints.save", False)
        self._held.enter_context(_writing(self.directory, "Checkpoints.save"))
        with atomic.naming(path):
            self._saver.save(path, args=_args(self._orbax, state, data_state))
        self._writing = number
        return True

    def wait(self) -> None:
        with self._held:
            with atomic.naming(self.directory / str(self._writing)):
                self._saver.wait_until_finished()
            if self._writing is not None:
                _prune(self.directory, self._writing, self.keep)
            self._writing = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            if kind is None:
                self.wait()
            else:  # perhaps on this process alone: what has begun is finished, and nothing is asked of the others
                self._saver.wait_until_finished()
        finally:
            self._saver.close()
            self._held.close()


def load_state(like: Any, directory: str | Path, *, step: int | None = None) -> Any:
    """A saved state, in the structure and shardings of `like`: a fresh `ef.to_state(...)`, concrete or abstract.

    `step` is by default the latest. Training goes on exactly where it was, on another mesh and another number of
    processes too. A step that another process replaces or removes meanwhile is read again. Raises `FileNotFoundError` if
    there is no such step, and `ValueError` naming arrays that are missing, unexpected, or of another shape or dtype.
    """
    orbax = library("load_state")
    wanted = {name: target(leaf) for name, leaf in by_path(like).items()}

    def read(path: Path) -> Any:
        with orbax.Checkpointer(_handler(orbax)) as checkpointer:
            with _reading(path, "load_state"):
                saved = checkpointer.metadata(path).item_metadata["state"]
                saved = dict(getattr(saved, "tree", saved))
                for there in saved.values():
                    tuple(there.shape), there.dtype
            compare(wanted, saved, path)
            with _reading(path, "load_state"):
                how = orbax.checkpoint_utils.construct_restore_args(wanted)
                args = orbax.args.Composite(state=orbax.args.PyTreeRestore(item=wanted, restore_args=how))
                return checkpointer.restore(path, args=args)["state"]

    found = _one_step(directory, step, "load_state", read)
    names = iter(wanted)

    def fill(leaf: Any) -> Any:
        if not is_array(leaf):
            return leaf
        name = next(names)
        return jax.random.wrap_key_data(found[name], impl=key_impl(leaf)) if is_key(leaf) else found[name]

    return jax.tree.map(fill, like)


def load_data_state(directory: str | Path, *, step: int | None = None) -> Any:
    """What was given as `data_state` when a step was saved, by default the latest; `None` if nothing was.

    Raises `FileNotFoundError` if there is no such step. The example is at [`easyfn.save_state`][].
    """
    orbax = library("load_data_state")

    def read(path: Path) -> Any:
        if not (path / "data_state").exists():
            return None
        with orbax.Checkpointer(_handler(orbax)) as checkpointer, _reading(path / "data_state", "load_data_state"):
            args = orbax.args.Composite(data_state=orbax.args.JsonRestore())
            return checkpointer.restore(path, args=args)["data_state"]

    return _one_step(directory, step, "load_data_state", read)


def saved_steps(directory: str | Path) -> tuple[int, ...]:
    """The steps that are saved in a directory, whole, from the first to the latest; none if there is no directory.

    The example is at [`easyfn.Checkpoints`][].
    """
    root = _folder(directory)
    names = [p.name.removesuffix(".old") for p in root.iterdir()] if root.is_dir() else []
    return tuple(sorted({int(name) for name in names if name.isdigit()}))


def _handler(orbax: Any) -> Any:
    return orbax.CompositeCheckpointHandler(
        state=orbax.PyTreeCheckpointHandler(), data_state=orbax.JsonCheckpointHandler()
    )


def _folder(directory: str | Path) -> Path:
    if "://" in str(directory):
        raise ValueError(
            f"training states are saved in folders, and {directory} is a URL: mount the bucket (gcsfuse, ...)"
        )
    return Path(directory).absolute()


def _number(state: Any, step: int | None) -> int:
    return int(state.step) if step is None else step


def _check_keep(keep: int | None, who: str) -> None:
    if keep is not None and keep < 1:
        raise ValueError(f"{who}: keep={keep} would keep nothing")


def _free(root: Path, number: int, who: str, overwrite: bool) -> Path:
    path = root / str(number)
    if path.exists() and not overwrite:
        way = "choose another step=, or say overwrite=True" if who == "save_state" else "choose another step="
        raise FileExistsError(f"{who}: {path} exists; {way}")
    return path


def _step(directory: str | Path, step: int | None, who: str) -> Path:
    root = _folder(directory)
    steps = saved_steps(root)
    if not steps or (step is not None and step not in steps):
        asked = "no steps" if step is None else f"no step {step}"
        raise FileNotFoundError(f"{who}: {asked} in {root}; there are {', '.join(map(str, steps)) or 'none'}")
    path = root / str(steps[-1] if step is None else step)
    return path if path.exists() else path.with_name(f"{path.name}.old")


def _one_step(directory: str | Path, step: int | None, who: str, read: Callable[[Path], Any]) -> Any:
    """What `read` brings of a step's folder, read again if that was replaced or removed meanwhile: never parts of two.

    Among many processes once: they would have to agree on a second time.
    """
    for _ in range(1 if jax.process_count() > 1 else 20):
        path = _step(directory, step, who)
        before, error = _stamp(path), None
        try:
            found = read(path)
        except ValueError as raised:
            error = raised
        if before is not None and _stamp(path) == before:
            if error is not None:
                raise error
            return found
    raise ValueError(
        f"{who}: {path} changes while it is read: another process saves into it. Read it when that is done"
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What tells whether a folder is the one of before; nothing if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def _args(orbax: Any, state: Any, data_state: Any) -> Any:
    more = {} if data_state is None else {"data_state": orbax.args.JsonSave(data_state)}
    return orbax.args.Composite(state=orbax.args.PyTreeSave(by_path(state)), **more)


def _prune(root: Path, latest: int, keep: int | None) -> None:
    """Removes steps so that `keep` stay, `latest` among them. A step goes at once: by another name."""
    if keep is None:
        return

    def remove() -> None:
        for old in [n for n in saved_steps(root) if n != latest][: -(keep - 1) or None]:
            with contextlib.suppress(FileNotFoundError):  # another process removes it, too
                shutil.rmtree((root / str(old)).rename(root / f"{old}.removed"))

    first(remove, "save_state")


@contextlib.contextmanager
def _writing(root: Path, who: str) -> Iterator[None]:
    """Around what writes into a directory; at its start, what is left of saves that were killed goes."""

    def clean() -> None:
        root.mkdir(parents=True, exist_ok=True)
        with atomic.if_free(root) as free:  # nobody else is in this block
            if free:
                _clean(root)

    first(clean, who)
    with atomic.locked(root, shared=True) if jax.process_index() == 0 else contextlib.nullcontext():
        yield


def _clean(root: Path) -> None:
    for path in list(root.iterdir()):
        if path.suffix == ".old" and path.stem.isdigit():
            there = path.with_name(path.stem).exists()
            shutil.rmtree(path) if there else path.rename(path.with_name(path.stem))
        elif _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path)


def _put(new: Path, path: Path) -> None:
    """Gives a whole step its name, which is free unless another process was first."""
    try:
        new.rename(path)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if not path.exists():
            raise
        raise FileExistsError(f"save_state: {path} exists: another process was first with this step") from error
    atomic.sync(path.parent)


def _take(new: Path, path: Path) -> None:
    """Puts a whole step in the place of another. Where the two cannot be exchanged at once, the old one has a name of its
    own for a moment, by which it is found if that moment is the last."""
    if path.exists() and not atomic.exchange(new, path):
        path.rename(path.with_name(f"{path.name}.old"))
    if not path.exists():
        new.rename(path)
    atomic.sync(path.parent)
    for old in (new, path.with_name(f"{path.name}.old")):
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _reading(path: Path, who: str) -> Iterator[None]:
    """Around what reads files that may be damaged: Orbax has no error of its own for that."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{who}: {path} is damaged ({type(error).__name__}: {error}). Load another step with step=, of those that "
            "ef.saved_steps lists"
        ) from error
