"""The hub: checkpoints by the name of their repository, fetched into huggingface_hub's cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .checkpoint import CONFIG, GENERATION, INDEX, PICKLES, SINGLE, LoadError, inside, read_index, refuse_pickles
from .sentence import MODULES, settings_files


def locate(
    name_or_path: Any, *, weights: bool = True, progress: bool = True, gguf_file: str | None = None, **options: Any
) -> Path:
    """The local folder of a checkpoint: a folder as it is, or a hub repository fetched into the cache.

    Or a `.gguf` file: one that is given, the `gguf_file` of the folder or repository, or the only one of a folder that
    holds no safetensors. `options` are huggingface_hub's: `revision`, `token`, `cache_dir`, `local_files_only`. Only the
    files that easyfn reads are fetched, all of one commit.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _gguf_in(path, gguf_file)
    text = str(name_or_path)
    if is_gguf(path) and gguf_file is None:
        return path
    if path.exists():
        raise LoadError(text, ["this is a file: give the folder of the checkpoint, with its config.json"])
    if text.startswith((".", "/", "~", "\\")) or text.count("/") > 1 or not text:
        raise FileNotFoundError(f"there is no folder {text!r} (a hub repository would be written as 'user/name')")
    if gguf_file is not None:
        return _fetch_gguf(text, gguf_file, options)
    return _fetch(text, weights, progress, options)


def is_gguf(path: Path) -> bool:
    """Whether a checkpoint is a `.gguf` file."""
    return path.suffix == ".gguf" and path.is_file()


def _gguf_in(folder: Path, name: str | None) -> Path:
    if name is not None:
        inside(folder, name)
        if not is_gguf(folder / name):
            there = ", ".join(sorted(p.name for p in folder.glob("*.gguf"))) or "none"
            raise LoadError(folder, [f"there is no file {name!r}; its .gguf files: {there}"])
        return folder / name
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        return folder
    files = sorted(folder.glob("*.gguf"))
    models = [f for f in files if "-of-" not in f.name or "-00001-of-" in f.name]  # the first file of a split model
    if len(models) > 1:
        names = ", ".join(f.name for f in models)
        raise LoadError(folder, [f"it holds several .gguf files: choose one of them with gguf_file=: {names}"])
    return models[0] if models else folder


def _fetch_gguf(repo: str, name: str, options: dict[str, Any]) -> Path:
    """A `.gguf` file of a repository, with the others of a split model."""
    from huggingface_hub import hf_hub_download

    found = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", name)
    names = [name] if found is None else [f"{found[1]}-{n:05d}-of-{found[2]}.gguf" for n in range(1, int(found[2]) + 1)]
    _reach(repo, names[0], options)
    files = []
    for each in names:
        files.append(Path(hf_hub_download(repo, each, **options)))
        options = {**options, "revision": _commit(files[0], name)}
    return files[names.index(name)]


def _commit(file: Path, name: str) -> str:
    """The folder of a snapshot is named by its commit."""
    return file.parents[len(Path(name).parts) - 1].name


def _fetch(repo: str, weights: bool, progress: bool, options: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    _reach(repo, CONFIG, options)
    try:
        folder = Path(hf_hub_download(repo, CONFIG, **options)).parent
    except LocalEntryNotFoundError as error:
        raise _not_reached(repo, error) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{repo!r} is neither a local folder nor a repository that the hub shows to you (a private or gated one "
            f"needs token=): {error}"
        ) from error
    except EntryNotFoundError as error:
        raise LoadError(
            repo,
            [
                "the repository has no config.json: it is not a checkpoint that easyfn can read. If it holds .gguf "
                "files, name one with gguf_file="
            ],
        ) from error
    options = {**options, "revision": folder.name}  # the commit: what follows belongs to the same one

    def optional(name: str) -> bool:
        try:
            hf_hub_download(repo, name, **options)
        except EntryNotFoundError:  # and its subclass for a cache that lacks it
            return False
        return True

    optional(GENERATION)
    if optional(MODULES):
        for name in settings_files(folder):
            inside(folder, name)
            optional(name)
    if not weights or optional(SINGLE):
        return folder
    if optional(INDEX):
        names = sorted(set(read_index(folder / INDEX).values()))
        for name in names:
            inside(folder, name)
        bar = {} if progress else {"tqdm_class": _silent()}
        snapshot_download(repo, allow_patterns=names, **options, **bar)
        return folder
    raise LoadError(repo, [_instead(repo, options)])


def _reach(repo: str, name: str, options: dict[str, Any]) -> None:
    """Asks the hub once for a file that no cache has: huggingface_hub would try for 23 s where there is no network."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    revision = options.get("revision")
    try:
        if options.get("local_files_only") or try_to_load_from_cache(
            repo, name, cache_dir=options.get("cache_dir"), revision=revision
        ):
            return
        get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), token=options.get("token"))
    except (HfHubHTTPError, HFValidationError):  # it answers: what it says is read below
        return
    except OSError as error:  # offline by a switch
        raise _not_reached(repo, error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2"):  # the client of the installed version
            return
        raise _not_reached(repo, error) from error


def _not_reached(repo: str, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"{repo!r} is no local folder, it is not in the cache of the hub, and the hub could not be asked "
        f"(offline, or local_files_only=True): {error}"
    )


def _silent() -> Any:
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


def _instead(repo: str, options: dict[str, Any]) -> str:
    """What the repository holds in the place of safetensors."""
    from fnmatch import fnmatch

    from huggingface_hub import HfApi

    message = f"the repository has no {SINGLE} and no {INDEX}"
    try:
        names = HfApi(token=options.get("token")).list_repo_files(repo, revision=options["revision"])
    except Exception:  # offline: the cache does not tell
        return f"{message} (as far as the cache tells)"
    pickles = [n for n in names if any(fnmatch(n, pattern) for pattern in PICKLES)]
    return refuse_pickles(pickles) if pickles else f"{message}; it holds {', '.join(sorted(names)[:12]) or 'nothing'}"
