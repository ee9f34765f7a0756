"""DPR (Karpukhin et al. 2020, arXiv 2004.04906): one BERT makes a vector of a question, another of a passage that answers it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..names.rules import Rule, rename
from ..nn import Context, Linear, Output, TextEncoder
from ..nn.pooling import first_token
from ..registry.family import family
from ..tasks.task import task
from .encoders import BUFFERS, IGNORED, BertFields, encoder_only


@dataclass(frozen=True, kw_only=True)
class DPRConfig(BertFields):
    """The keys of a DPR `config.json`. A `projection_dim` of 0 is no projection."""

    model_type: ClassVar[str] = "dpr"
    pad_token_id: int | None = 0
    projection_dim: int = 0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return encoder_only(data)


class DPREncoder(eqx.Module):
    """A text as one vector, `pooler_output` `(batch, embed)`: its first token's hidden state, projected where the config says so.

    `side` is what it reads, a `"question"` or a `"context"`. Tokens of the config's `pad_token_id` are padding without a mask,
    too, as in transformers.
    """

    model: TextEncoder
    encode_proj: Linear | None
    config: Any = eqx.field(static=True)
    side: str = eqx.field(static=True)

    def __init__(self, c: DPRConfig, side: str) -> None:
        self.model = TextEncoder(c, pooler=False)
        size = c.projection_dim
        self.encode_proj = Linear(c.hidden_size, size, True, axes=("mlp", "embed")) if size > 0 else None
        self.config, self.side = c, side

    def __call__(
        self, context: Context, cache: Any = None, *, input_ids: jax.Array | None = None, **inputs: Any
    ) -> Output:
        if input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
            context = context.replace(segment_ids=jnp.where(real, context.segment_ids, 0))
        out = self.model(context, cache, input_ids=input_ids, **inputs)
        hidden: Any = out.last_hidden_state
        x = first_token(hidden, context)
        return out.replace(pooler_output=x if self.encode_proj is None else self.encode_proj(x))


@task.register(DPREncoder)
def _(model: DPREncoder) -> str:
    return f"{model.side}-encoder"


def _names(model: DPREncoder) -> list[Rule]:
    place = "question_encoder" if model.side == "question" else "ctx_encoder"
    return [rename("model.{rest}", f"{place}.bert_model.{{rest}}"), rename("{rest}", f"{place}.{{rest}}")]


family(
    "dpr",
    config=DPRConfig,
    tasks={
        "question-encoder": lambda c: DPREncoder(c, "question"),
        "context-encoder": lambda c: DPREncoder(c, "context"),
    },
    architectures={"DPRQuestionEncoder": "question-encoder", "DPRContextEncoder": "context-encoder"},
    names=_names,
    ignore=IGNORED,
    ignore_tensors=(*BUFFERS, r"bert_model\.pooler\."),  # a pooler that nobody reads
    prefix="question_encoder",
)
