"""One example of a file as token ids and labels: texts, answers to prompts, chats, pairs of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from .pack import IGNORED

Messages = Sequence[Mapping[str, Any]]
FORMS = "{'text'}, {'prompt', 'completion'}, {'messages'}, {'prompt', 'chosen', 'rejected'} or {'input_ids'}"


def tokenize(
    example: Any, tokenizer: Any, *, template: Callable[..., str] | None = None, eos: int | None = None
) -> dict[str, Int[np.ndarray, " tokens"]]:
    """An example as int32 arrays of one dimension: `input_ids`, and `labels`, -100 where nothing is to be learned.

    - a text, or `{"text"}`: all of it is learned.
    - `{"prompt", "completion"}`: the completion is learned, and the prompt's tokens are those of the prompt alone, as they
      are when the model answers.
    - `{"messages"}`: what the assistant says is learned: what stands in the template's `{% generation %}` blocks, or, of a
      template that has none, what each of its messages adds to the text. `template` is that of
      [`easyfn.chat_template`][].
    - `{"prompt", "chosen", "rejected"}`: `chosen_input_ids`, `chosen_labels`, ... for [`easyfn.dpo_loss`][]; all three texts,
      or all three lists of messages.
    - `{"input_ids"}`, with or without `"labels"`, is kept.

    `tokenizer` is that of [`easyfn.tokenizer`][]; `eos` is put behind texts and completions (a chat template says itself
    where it ends). Raises `ValueError` for another form, and for a chat of which nothing would be learned.

    ```python
    import easyfn as ef
    from tokenizers import Tokenizer, models, pre_tokenizers
    words = Tokenizer(models.WordLevel({"what": 0, "is": 1, "it": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    found = ef.tokenize({"prompt": "what is", "completion": "it"}, words, eos=3)
    assert found["input_ids"].tolist() == [0, 1, 2, 3] and found["labels"].tolist() == [-100, -100, 2, 3]
    ```
    """
    if isinstance(example, str):
        example = {"text": example}
    if not isinstance(example, Mapping):
        raise ValueError(f"tokenize: an example is a text or {FORMS}, not {type(example).__name__}")
    if "input_ids" in example:
        ids = np.asarray(example["input_ids"], np.int32)
        return {"input_ids": ids, "labels": np.asarray(example.get("labels", ids), np.int32)}
    if "messages" in example:
        return chat(example["messages"], tokenizer, template, example.get("tools"))
    if "chosen" in example and "rejected" in example:
        found: dict[str, np.ndarray] = {}
        for side in ("chosen", "rejected"):
            each = _answered(example.get("prompt", ""), example[side], tokenizer, template, eos)
            found |= {f"{side}_{name}": value for name, value in each.items()}
        return found
    if "completion" in example:
        return _answered(example.get("prompt", ""), example["completion"], tokenizer, template, eos)
    if "text" in example:
        ids = np.asarray([*tokenizer.encode(example["text"]).ids, *_end(eos)], np.int32)
        return {"input_ids": ids, "labels": ids}
    raise ValueError(
        f"tokenize: an example is a text or {FORMS}; this one has {', '.join(map(repr, example)) or 'nothing'}"
    )


def _answered(prompt: Any, answer: Any, tokenizer: Any, template: Any, eos: int | None) -> dict[str, np.ndarray]:
    if not isinstance(prompt, str) or not isinstance(answer, str):
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and prompt else list(prompt)
        said = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)
        return chat([*asked, *said], tokenizer, template, answers=said)
    before = tokenizer.encode(prompt).ids
    after = [*tokenizer.encode(answer, add_special_tokens=False).ids, *_end(eos)]
    labels = [IGNORED] * len(before) + after
    return {"input_ids": np.asarray([*before, *after], np.int32), "labels": np.asarray(labels, np.int32)}


def _end(eos: int | None) -> list[int]:
    return [] if eos is None else [eos]


def chat(
    messages: Messages, tokenizer: Any, template: Any, tools: Any = None, answers: Messages | None = None
) -> dict[str, np.ndarray]:
    """A chat as tokens, of which the assistant's count; `answers`: only of the last messages, as many as those."""
    if template is None:
        raise ValueError(
            "tokenize: messages need a chat template: template=ef.chat_template(path), of a checkpoint that has one"
        )
    text, spans = spoken(messages, template, tools, 0 if answers is None else len(messages) - len(answers))
    found = tokenizer.encode(text, add_special_tokens=False)
    labels = np.full(len(found.ids), IGNORED, np.int32)
    for n, (token, (start, end)) in enumerate(zip(found.ids, found.offsets, strict=True)):
        if any(first <= start and end <= last and start < end for first, last in spans):
            labels[n] = token
    if (labels == IGNORED).all():
        raise ValueError("tokenize: nothing of this chat is the assistant's, so nothing would be learned")
    return {"input_ids": np.asarray(found.ids, np.int32), "labels": labels}


def spoken(messages: Messages, template: Any, tools: Any = None, first: int = 0) -> tuple[str, list[tuple[int, int]]]:
    """A chat's text, and the places of what the assistant says in it, in characters; of messages from `first` on."""
    text = template(messages, tools=tools, add_generation_prompt=False)
    begin = 0
    if first:
        begin = len(_prefix(text, template(messages[:first], tools=tools, add_generation_prompt=False)))
    marked = getattr(template, "spans", None)
    if marked is not None and (found := marked(messages, tools=tools)):
        return text, [(start, end) for start, end in found if start >= begin]
    spans = []
    for n, message in enumerate(messages):
        if n < first or message.get("role") != "assistant":
            continue
        before = template(messages[:n], tools=tools, add_generation_prompt=True)
        until = template(messages[: n + 1], tools=tools, add_generation_prompt=False)
        spans.append((len(_prefix(text, before)), len(_prefix(text, until))))
    return text, spans


def _prefix(text: str, part: str) -> str:
    if not text.startswith(part):
        raise ValueError(
            "tokenize: this chat template writes earlier messages in another way when more follow, so it does not say where "
            "the assistant speaks: put {% generation %} ... {% endgeneration %} around it in the template"
        )
    return part
