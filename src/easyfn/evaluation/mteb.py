"""A sentence-embedding model of ours for mteb (extra `mteb`): its tasks on a model of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .embed import check_embeds, embed


def mteb_model(
    model: Any,
    tokenizer: Any,
    *,
    name: str = "easyfn/model",
    revision: str = "none",
    prompts: Mapping[str, str] | None = None,
    batch_size: int = 32,
    length: int | None = None,
) -> Any:
    """A model as mteb takes it: `mteb.evaluate(ef.mteb_model(model, tokenizer), tasks=[...])`.

    - `model`, `tokenizer`, `batch_size`, `length` as [`easyfn.embed`][] has them; similarity is the cosine.
    - `name` (of the form `organization/model`) and `revision` are those under which mteb files the results.
    - `prompts`: what stands before a text, by the keys that mteb has for it: a task (`"STS12"`), its type (`"Retrieval"`), a side
      (`"query"`, `"document"`) or both (`"Retrieval-query"`). mteb says which goes first.

    Raises `ImportError` without mteb, `TypeError` for a model that embeds no sentences, and mteb's `KeyError` for a prompt that
    belongs to no task.
    """
    try:
        from mteb.models import ModelMeta
        from mteb.models.abs_encoder import AbsEncoder
        from mteb.models.model_meta import ScoringFunction
    except ImportError as error:
        raise ImportError("ef.mteb_model needs mteb: pip install 'easyfn[mteb]'") from error
    check_embeds(model, "ef.mteb_model")
    facts = {"name": name, "revision": revision, "similarity_fn_name": ScoringFunction.COSINE, "framework": []}

    class Model(AbsEncoder):  # type: ignore[misc]
        """The verbs of mteb, in those of easyfn."""

        mteb_model_meta = ModelMeta.create_empty(overwrites=facts)
        model_prompts = AbsEncoder.validate_task_to_prompt_name(dict(prompts or {}))

        def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> np.ndarray:
            key = self.get_prompt_name(task_metadata, prompt_type)
            before = (self.model_prompts or {}).get(key, "") if key else ""
            texts = [before + text for batch in inputs for text in batch["text"]]
            return np.asarray(embed(model, texts, tokenizer=tokenizer, batch_size=batch_size, length=length))

    return Model()
