"""Small facts of a model: its type, and which verbs work on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.habits import no_path
from ..core.tree import near, nodes
from ..core.verb import NodeVerb, NotSupported, Verb
from ..core.weight import slots
from ..forward.forward import init_cache
from ..inputs.statement import accepted
from ..nn.heads import input_embeddings
from ..tasks.embeddings import decoder, encoder, output_embeddings
from ..tasks.task import task


def model_type(model: Any) -> str:
    """The `model_type` of a model's family: `llama`, `gpt2`, ..., or the name of its class if it is of none."""
    from ..registry.family import family_of

    no_path(model)
    if named := getattr(getattr(model, "config", None), "model_type", None):
        return named
    try:
        return family_of(model).model_type
    except ValueError:
        return type(model).__name__


def supports(model: Any, what: Callable[..., Any] | str) -> bool:
    """Whether a verb (`ef.generate`) or its name (`"generate"`) works on a model.

    Yes where the model's type is registered with the verb; for a node verb where a layer is, or has weights. Otherwise
    the verb's default is asked, on shapes only.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert ef.supports(model, "generate") and not ef.supports(model.model, "compute_loss")
    ```
    """
    import easyfn

    no_path(model)
    name = what if isinstance(what, str) else getattr(what, "__name__", repr(what))
    function = getattr(easyfn, name, None) or getattr(easyfn.nn, name, None) if isinstance(what, str) else what
    if function is None:
        raise ValueError(f"supports: easyfn has no verb {name!r}. {near(name, dir(easyfn))}")
    if isinstance(function, NodeVerb):
        return any(function.knows(type(node)) or slots(node) for _, node in nodes(model))
    if isinstance(function, Verb) and function.knows(type(model)):
        return True
    try:
        _QUESTIONS.get(name, lambda model: None)(model)
    except (NotSupported, ValueError, TypeError):
        return False
    return True


def _ask_for_tokens(model: Any) -> None:
    if task(model) not in ("causal-lm", "seq2seq-lm"):
        raise NotSupported("it predicts no tokens")


def _ask_for_cache(model: Any) -> None:
    jax.eval_shape(lambda: init_cache(model, 1, 8))


def _ask_to_generate(model: Any) -> None:
    _ask_for_tokens(model)
    _ask_for_cache(model)


def _ask_to_encode(model: Any) -> None:
    from ..forward.seq2seq import encode

    jax.eval_shape(encode, model, jax.ShapeDtypeStruct((1, 1), jnp.int32))


_QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "compute_loss": _ask_for_tokens,
    "train_step": _ask_for_tokens,
    "init_cache": _ask_for_cache,
    "generate": _ask_to_generate,
    "stream": _ask_to_generate,
    "prefill": _ask_to_generate,
    "decode_step": _ask_to_generate,
    "input_embeddings": input_embeddings,
    "with_input_embeddings": input_embeddings,
    "output_embeddings": output_embeddings,
    "with_output_embeddings": output_embeddings,
    "encode": _ask_to_encode,
    "encoder": encoder,
    "decoder": decoder,
    "with_decoder": decoder,
    "forward": lambda model: accepted(model),
}
