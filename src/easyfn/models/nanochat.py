"""nanochat (Karpathy 2025): norms without weights, heads turned the other way and then normed, a squared ReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields
from ..names.rules import rename
from ..nn import MLP, Block, Decoder, RMSNorm
from .decoders import attention, decoder, decoder_family


@dataclass(frozen=True, kw_only=True)
class NanoChatConfig(LlamaFields):
    """The keys of a nanochat `config.json`."""

    model_type: ClassVar[str] = "nanochat"
    hidden_act: str = "relu2"
    final_logit_softcapping: float | int | None = 15.0
    attention_bias: bool = False
    pad_token_id: int | None = 1


def nanochat(c: NanoChatConfig) -> Decoder:
    """The decoder: pre-norm layers on normed embeddings."""
    norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps, affine=False)
    own = {"qk_norm": norm(), "normed": "rotated"}
    return decoder(
        c,
        lambda _: Block(attention(c, **own), MLP(c.hidden_size, c.intermediate_size, c.hidden_act), norm(), norm()),
        norm(),
        embed_norm=norm(),
        rope={"default": {**c.rope_parameters, "direction": -1}},
    )


NAMES = (
    rename("{rest}.mlp.up_proj.weight", "{rest}.mlp.fc1.weight"),
    rename("{rest}.mlp.down_proj.weight", "{rest}.mlp.fc2.weight"),
)


decoder_family(
    "NanoChat",
    NanoChatConfig,
    nanochat,
    head={"softcap": lambda c: c.final_logit_softcapping},
    names=NAMES,
    classifies=False,
)
