"""HyperCLOVA X Think (NAVER 2025, arXiv 2506.22403): Granite with norms behind the parts, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import head_dim
from ..names.rules import Rule, rename
from ..nn import Block, Decoder, SandwichBlock
from .decoders import attention, decoder, decoder_family, mlp, norm
from .granite import GraniteConfig


@dataclass(frozen=True, kw_only=True)
class HyperCLOVAXConfig(GraniteConfig):
    """The keys of a HyperCLOVA X `config.json`. Logits are multiplied by `logits_scaling`, which divides Granite's."""

    model_type: ClassVar[str] = "hyperclovax"
    attention_multiplier: float | int | None = None  # type: ignore[assignment]
    use_post_norm: bool = True


def hyperclovax(c: HyperCLOVAXConfig) -> Decoder:
    """The decoder: layers whose results are normed and multiplied before they are added."""
    scale = head_dim(c) ** -0.5 if c.attention_multiplier is None else float(c.attention_multiplier)
    residual = float(c.residual_multiplier)

    def block(_: int) -> Block | SandwichBlock:
        parts = attention(c, scale=scale), mlp(c), norm(c), norm(c)
        if c.use_post_norm:
            return SandwichBlock(*parts, norm(c), norm(c), residual=residual)
        return Block(*parts, residual=residual)

    return decoder(
        c,
        block,
        embed_scale=float(c.embedding_multiplier),
        scale_inputs=True,
    )


NAMES = (
    rename("{rest}.post_attention_layernorm.weight", "{rest}.post_norm1.weight"),
    rename("{rest}.pre_feedforward_layernorm.weight", "{rest}.post_attention_layernorm.weight"),
    rename("{rest}.post_feedforward_layernorm.weight", "{rest}.post_norm2.weight"),
)


def names(model: Any) -> tuple[Rule, ...]:
    base = model if isinstance(model, Decoder) else model.model
    return NAMES if base.config.use_post_norm else ()


decoder_family(
    "HyperCLOVAX",
    HyperCLOVAXConfig,
    hyperclovax,
    head={"scale": lambda c: float(c.logits_scaling)},
    names=names,
    classifies=False,
)
