"""Reference cases of an encoder: one for each head that transformers has for it."""

from __future__ import annotations

import sys
from typing import Any

from cases import SMALL, case, reference

HEADS = {
    "base": "Model",
    "masked-lm": "ForMaskedLM",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "multiple-choice": "ForMultipleChoice",
}
ROTARY = tuple(HEADS)[:4]  # those of the encoders that transformers took in last
NAMES: list[str] = []  # of all cases that are made here
_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "pad_token_id")


def encoder_cases(
    name: str, config: str, *, heads: Any = tuple(HEADS), own: bool = False, facts: Any = None, **settings: Any
) -> None:
    """Registers `<family>`, its masked language model, and a variant for each other head and for an untied one.

    `settings` are keys of transformers' class `config` beside BERT's small ones; with `own` there are no others.
    `facts` are those of `Case` that hold for all.
    """
    small = {} if own else {**{k: SMALL[k] for k in _KEYS}, "max_position_embeddings": 40}

    def make(head: str, **more: Any) -> Any:
        import transformers

        labels = {"token-classification": 5, "sequence-classification": 3}
        keys = {**small, **settings, **({"num_labels": labels[head]} if head in labels else {}), **more}
        cls = getattr(transformers, name + {**HEADS, "pretraining": "ForPreTraining"}[head])
        return reference(cls, getattr(transformers, config)(**keys))

    family = config.removesuffix("Config").lower()
    module = sys._getframe(1).f_globals["__name__"]

    def add(label: str, task: str, build: Any) -> None:
        build.__module__ = module  # `Case.family` is the file that a builder was made in
        case(label, task=task, causal=False, variant=label != family, **(facts or {}))(build)
        NAMES.append(label)

    for head in heads:
        label = family if head == "masked-lm" else f"{family}-{head}"
        add(label, head, lambda head=head: make(head))
    if "masked-lm" in heads:
        add(f"{family}-untied", "masked-lm", lambda: make("masked-lm", tie_word_embeddings=False))
