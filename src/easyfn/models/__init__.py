"""The architectures, each in a file of its own, which is imported when it or one of its names is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..registry.family import Family as Family

if TYPE_CHECKING:
    from .bert import BertConfig as BertConfig
    from .gemma3 import Gemma3Config as Gemma3Config
    from .gpt2 import GPT2 as GPT2, GPT2Config as GPT2Config
    from .llama import LlamaConfig as LlamaConfig
    from .mamba2 import Mamba2 as Mamba2, Mamba2Config as Mamba2Config
    from .mistral import MistralConfig as MistralConfig
    from .mixtral import MixtralConfig as MixtralConfig
    from .qwen2 import Qwen2Config as Qwen2Config
    from .qwen3 import Qwen3Config as Qwen3Config
    from .t5 import T5Config as T5Config

_FILES = {
    "BertConfig": "bert",
    "GPT2": "gpt2",
    "GPT2Config": "gpt2",
    "Gemma3Config": "gemma3",
    "LlamaConfig": "llama",
    "Mamba2": "mamba2",
    "Mamba2Config": "mamba2",
    "MistralConfig": "mistral",
    "MixtralConfig": "mixtral",
    "Qwen2Config": "qwen2",
    "Qwen3Config": "qwen3",
    "T5Config": "t5",
}


def __getattr__(name: str) -> Any:
    if name in _FILES.values():
        return importlib.import_module(f".{name}", __name__)
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_FILES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FILES, *_FILES.values()})
