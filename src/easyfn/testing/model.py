"""`tiny`: a model small enough for examples and tests."""

from __future__ import annotations

from typing import Any

import jax

import easyfn as ef


def tiny(*, seed: int = 0, task: str | None = None, **config: Any) -> Any:
    """A random Llama of two layers, in float32: 64 tokens, width 32, four heads on two key heads.

    `config` are keys of `ef.models.LlamaConfig` that replace these or add to them; `task` names another head, as in
    [`easyfn.init`][].

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert ef.num_params(model) == 22_688
    assert ef.num_params(ef.testing.tiny(num_hidden_layers=4)) > ef.num_params(model)
    ```
    """
    small = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return ef.init(ef.models.LlamaConfig(**{**small, **config}), key=jax.random.key(seed), task=task)
