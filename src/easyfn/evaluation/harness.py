"""An easyfn model for EleutherAI's lm_eval (extra `eval`): its tasks on a model of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..generation.generate import generate
from .likelihood import loglikelihoods


def lm_eval_model(
    model: Any,
    tokenizer: Any,
    *,
    max_length: int,
    prefix_token_id: int,
    eos_token_id: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 256,
) -> Any:
    """A model as lm_eval takes it: `lm_eval.simple_evaluate(model=ef.lm_eval_model(...), tasks=[...])`.

    - `tokenizer`: of [`easyfn.tokenizer`][].
    - `max_length`: how many tokens the model reads at once.
    - `prefix_token_id`: stands before a text that has nothing before it; lm_eval takes the token that begins a text, or, of
      tokenizers without one, that which ends it. `eos_token_id`, by default that, ends what is generated.

    Raises `ImportError` without lm_eval.
    """
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError as error:
        raise ImportError("ef.lm_eval_model needs lm_eval: pip install 'easyfn[eval]'") from error
    ends = prefix_token_id if eos_token_id is None else eos_token_id

    class Model(TemplateLM):  # type: ignore[misc]
        """The verbs of lm_eval, in those of easyfn."""

        @property
        def eot_token_id(self) -> int:
            return ends

        @property
        def prefix_token_id(self) -> int:
            return prefix_token_id

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            if add_special_tokens is None:  # a text that begins with the token already gets no second one
                begins = tokenizer.id_to_token(prefix_token_id)
                add_special_tokens = not (begins and string.startswith(begins))
            return tokenizer.encode(string, add_special_tokens=add_special_tokens).ids

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            pairs = [(context, continuation) for _, context, continuation in requests]
            sums, greedy = loglikelihoods(model, pairs, max_length=max_length, batch_size=batch_size)
            return [(float(value), bool(best)) for value, best in zip(sums, greedy, strict=True)]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            pairs, owner = [], []
            for n, request in enumerate(requests):
                windows = get_rolling_token_windows(self.tok_encode(request.args[0]), prefix_token_id, max_length, 1)
                for window in windows:
                    pairs.append(make_disjoint_window(window))
                    owner.append(n)
            sums, _ = loglikelihoods(model, pairs, max_length=max_length, batch_size=batch_size)
            return np.bincount(owner, weights=sums, minlength=len(requests)).tolist()

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            groups: dict[str, list[int]] = {}
            for n, request in enumerate(requests):
                groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(n)
            found = [""] * len(requests)
            for said, numbers in groups.items():
                for start in range(0, len(numbers), batch_size):
                    chosen = numbers[start : start + batch_size]
                    for n, text in zip(
                        chosen, self._texts([requests[n].args[0] for n in chosen], json.loads(said)), strict=True
                    ):
                        found[n] = text
            return found

        def _texts(self, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
            until = options.pop("until", None) or []
            until = [until] if isinstance(until, str) else list(until)
            new = int(options.pop("max_gen_toks", max_new_tokens))
            rows = [self.tok_encode(text)[-(max_length - new) :] for text in contexts]
            width = max(map(len, rows))
            ids, mask = np.full((len(rows), width), ends, np.int32), np.zeros((len(rows), width), np.int32)
            for n, row in enumerate(rows):
                ids[n, width - len(row) :], mask[n, width - len(row) :] = row, 1
            sample = bool(options.get("do_sample")) and float(options.get("temperature", 1.0)) > 0
            more: dict[str, Any] = {}
            if sample:
                more = {"temperature": float(options.get("temperature", 1.0)), "key": jax.random.key(0)}
            if until:
                more |= {"stop_strings": until, "tokenizer": tokenizer}
            out = generate(
                model, ids, attention_mask=mask, max_new_tokens=new, do_sample=sample, eos_token_id=ends, **more
            )
            texts = []
            for row, length in zip(np.asarray(out.sequences), np.asarray(out.lengths), strict=True):
                text = tokenizer.decode(row[out.prompt_length : length].tolist())
                for stop in until:
                    text = text.split(stop)[0]
                texts.append(text)
            return texts

    return Model()
