"""What a model is for."""

from __future__ import annotations

from typing import Any

from ..core.verb import verb
from ..nn.heads import CausalLM, SequenceClassifier


@verb(example='@ef.task.register({type})\ndef _(model): return "causal-lm"')
def task(model: Any) -> str:
    """What a model is for: `causal-lm`, `sequence-classification`, `base`, ..., the words of `ef.load(task=...)`.

    Heads are registered. Any other model has the only task of its family, or the one that is built by its class, or
    else is `base`.

    ```python
    import easyfn as ef
    config = ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                   num_attention_heads=4)
    assert ef.task(ef.init(config, key=__import__("jax").random.key(0))) == "causal-lm"
    ```
    """
    from ..registry.family import family_of

    try:
        tasks = family_of(model).tasks
    except ValueError:
        return "base"
    if len(tasks) == 1:
        return next(iter(tasks))
    return next((name for name, builder in tasks.items() if builder is type(model)), "base")


@task.register(CausalLM)
def _(model: CausalLM) -> str:
    return "causal-lm"


@task.register(SequenceClassifier)
def _(model: SequenceClassifier) -> str:
    return "sequence-classification"
