"""Llama, with every kind of rotary positions."""

from collections.abc import Callable
from typing import Any

from cases import SMALL, case, reference


@case("llama")
def _():
    from transformers import LlamaConfig, LlamaForCausalLM

    return reference(LlamaForCausalLM, LlamaConfig(**SMALL, head_dim=16, attention_bias=True, mlp_bias=True))


@case("llama-tied", variant=True)
def _():
    from transformers import LlamaConfig, LlamaForCausalLM

    return reference(LlamaForCausalLM, LlamaConfig(**{**SMALL, "num_hidden_layers": 2}, tie_word_embeddings=True))


@case("llama-base", task="base", variant=True)
def _():
    from transformers import LlamaConfig, LlamaModel

    return reference(LlamaModel, LlamaConfig(**SMALL))


@case("llama-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    return reference(LlamaForSequenceClassification, LlamaConfig(**SMALL, num_labels=3))


# Rotary variants: sequences of the tests pass the trained length of 8.

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "beta_slow": 1, "truncate": False},
    "yarn-mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.5 * i for i in range(8)],
    },
}


def _rope(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {**SMALL, "head_dim": 16, "num_hidden_layers": 2, "max_position_embeddings": 8}
        parameters = {"rope_theta": 500.0, **ROPES[kind]}
        if kind in ("llama3", "yarn", "yarn-mscale", "longrope"):
            parameters["original_max_position_embeddings"] = 8
        return reference(LlamaForCausalLM, LlamaConfig(**sizes, rope_parameters=parameters))

    return make


for _kind in ROPES:
    case(f"llama-{_kind}", variant=True)(_rope(_kind))


@case("llama-tokens", task="token-classification", variant=True)
def _():
    from transformers import LlamaConfig, LlamaForTokenClassification

    return reference(LlamaForTokenClassification, LlamaConfig(**{**SMALL, "num_hidden_layers": 2}, num_labels=5))


@case("llama-answers", task="question-answering", variant=True)
def _():
    from transformers import LlamaConfig, LlamaForQuestionAnswering

    return reference(LlamaForQuestionAnswering, LlamaConfig(**{**SMALL, "num_hidden_layers": 2}))
