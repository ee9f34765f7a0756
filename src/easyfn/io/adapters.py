"""Several named adapters in PEFT's files: a folder for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..lora import adapter_names, join_lora, split_adapters, split_lora, with_adapters
from .peft.load import load_adapter
from .peft.save import CONFIG, save_adapter


def load_adapters(model: Any, paths: Any, **options: Any) -> Any:
    """`model` with the LoRA adapters of several PEFT folders, by name: see [`easyfn.with_adapters`][].

    - `paths`: folders or hub repositories by name; or one folder as PEFT saves a model of several adapters: each in a
      folder of its name, and the one called `default` beside them.
    - `options`: those of [`easyfn.load_adapter`][].

    **Raises** what `load_adapter` and `with_adapters` raise, and `FileNotFoundError` for a folder without adapters.

    ```python
    import tempfile, jax, easyfn as ef
    base = ef.testing.tiny()
    _, adapter = ef.split_lora(ef.apply_lora(base, "q_proj", rank=2, key=jax.random.key(1)))
    model = ef.with_adapters(base, {"fr": adapter, "de": adapter})
    with tempfile.TemporaryDirectory() as folder:
        ef.save_adapters(model, folder)
        again = ef.load_adapters(base, folder)
    assert ef.adapter_names(again) == ("de", "fr")
    ```
    """
    if not isinstance(paths, Mapping):
        paths = _inside(Path(paths))
    # Each is read onto the base alone, which is shared: nothing but the adapters is copied.
    base = split_adapters(model)[0] if adapter_names(model) else model
    return with_adapters(model, {name: split_lora(load_adapter(base, p, **options))[1] for name, p in paths.items()})


def _inside(folder: Path) -> dict[str, Path]:
    found = {p.parent.name: p.parent for p in sorted(folder.glob(f"*/{CONFIG}"))}
    if (folder / CONFIG).exists():
        found = {"default": folder, **found}
    if not found:
        raise FileNotFoundError(f"load_adapters: {folder} holds no {CONFIG}, nor does a folder in it")
    return found


def save_adapters(
    model: Any, directory: Any, *, config: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Path]:
    """Writes each of a model's named adapters as PEFT does, in a folder of its name; returns the folders.

    `config` are more keys for the `adapter_config.json` of some, by name. The example is at
    [`easyfn.load_adapters`][].
    """
    base, adapters = split_adapters(model)
    more = config or {}
    return {
        name: save_adapter(join_lora(base, adapter), Path(directory) / name, config=more.get(name))
        for name, adapter in adapters.items()
    }
