"""`load(via="torch")`: a checkpoint of a type that has no family here, read by transformers and converted."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...tasks.task import facts, tasks
from ..checkpoint import LoadError
from ..hub import locate
from ..remote import is_url
from .modules import from_torch


def load_via_torch(
    via: str, name_or_path: Any, task: str | None, refused: Mapping[str, Any], *, progress: bool, **options: Any
) -> Any:
    """The `Program` of a checkpoint's own class in transformers: of its `architectures`, or the auto class of `task`."""
    if via != "torch":
        raise ValueError(f"load: via is 'torch' or None, not {via!r}")
    if wrong := [name for name, value in refused.items() if value not in (None, False)]:
        raise ValueError(f"load(via='torch') takes no {', '.join(wrong)}: transformers reads the folder as it is")
    if is_url(name_or_path):
        raise ValueError("load(via='torch') reads a folder or a repository of the hub, not a URL")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError("load(via='torch') needs torch and transformers: pip install 'easyfn[torch]'") from error
    hub = {name: options.pop(name) for name in ("revision", "token", "cache_dir", "local_files_only")}
    folder = Path(locate(name_or_path, progress=progress, **hub))
    cls = _class_of(transformers, folder, task)
    # float32: what the program rounds to is part of it, so a dtype is what the weights are cast to afterwards.
    # trust_remote_code is said, or transformers asks the terminal whether to run the checkpoint's code.
    try:
        module = cls.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="eager",
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise LoadError(str(folder), [f"transformers cannot read it as {cls.__name__}: {error}"]) from error
    return from_torch(module.eval(), example_inputs(module), **options)


def _class_of(transformers: Any, folder: Path, task: str | None) -> Any:
    """The class to read a folder with."""
    if task is not None:
        if (auto := facts(task).auto) is None:
            known = ", ".join(name for name, each in tasks().items() if each.auto)
            raise ValueError(f"load(via='torch'): task is one of {known}, not {task!r}")
        return getattr(transformers, auto)
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in data.get("architectures") or ():
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel


def example_inputs(module: Any, rows: int = 2, length: int = 7) -> dict[str, Any]:
    """Inputs of a transformers module by its own statement of what it takes: tokens, pixels, features of sound."""
    import torch

    names = inspect.signature(module.forward).parameters
    main = getattr(module, "main_input_name", "input_ids")
    config = module.config
    if main == "pixel_values":
        vision = getattr(config, "vision_config", None) or config
        size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", 3)
        height, width = size if isinstance(size, (list, tuple)) else (size or 224,) * 2
        found = {"pixel_values": torch.zeros(rows, channels, height, width)}
    elif main == "input_ids":
        found = {"input_ids": torch.full((rows, length), 3)}
        if "attention_mask" in names:
            found["attention_mask"] = torch.ones(rows, length, dtype=torch.long)
    else:
        raise ValueError(
            f"load(via='torch'): a {type(module).__name__} takes {main}, whose sizes its config does not tell. Read it with "
            f"transformers and give an example: ef.from_torch(module, {{{main!r}: ...}})"
        )
    if "decoder_input_ids" in names:
        found["decoder_input_ids"] = torch.full((rows, length - 2), 3)
    return found
