"""K-EXAONE (LG AI Research 2026): rotary positions where a window slides, none where attention is global."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size, alias, head_dim
from ..names.rules import rename
from ..nn import Block, Decoder, RMSNorm
from .decoders import attention, decoder, decoder_family, layer_windows, norm
from .mixtures import GroupedFields, grouped, per_expert


@dataclass(frozen=True, kw_only=True)
class ExaoneMoeConfig(GroupedFields):
    """The keys of a K-EXAONE `config.json`. Without `layer_types`, every `sliding_window_pattern`-th layer is global."""

    model_type: ClassVar[str] = "exaone_moe"
    unsaid: ClassVar[tuple[str, ...]] = ("attention_bias",)
    num_experts = alias("n_routed_experts")
    num_shared_experts = alias("n_shared_experts")
    num_key_value_heads: Size | None = 32
    rms_norm_eps: float = 1e-5
    moe_intermediate_size: Size = 1024
    n_routed_experts: Size = 64
    routed_scaling_factor: float | int = 2.5
    first_k_dense_replace: int | None = 1
    mlp_layer_types: tuple[str, ...] | None = None
    sliding_window: Size | None = 4096
    sliding_window_pattern: Any = 4
    layer_types: tuple[str, ...] | None = None

    @staticmethod
    def denormalize(data: dict[str, Any]) -> dict[str, Any]:
        data["num_experts"] = data.pop("n_routed_experts")
        data["num_shared_experts"] = data.pop("n_shared_experts", None)
        return data


def exaone_moe(c: ExaoneMoeConfig) -> Decoder:
    """The decoder: pre-norm blocks of attention with normed queries and keys and of DeepSeek-V3's experts."""
    kinds = c.layer_types
    if kinds is None:
        pattern = c.sliding_window_pattern
        if c.sliding_window is not None and (not isinstance(pattern, int) or pattern < 1):
            raise ValueError(f"exaone_moe: without layer_types, sliding_window_pattern is a number, not {pattern!r}")
        slides = [c.sliding_window is not None and (i + 1) % pattern != 0 for i in range(c.num_hidden_layers)]
        kinds = tuple("sliding_attention" if s else "full_attention" for s in slides)
    windows = layer_windows(c, kinds, c.sliding_window)
    rotates = [c.sliding_window is None or kind == "sliding_attention" for kind in kinds]
    return decoder(
        c,
        lambda i: Block(
            attention(
                c,
                qk_norm=RMSNorm(head_dim(c), c.rms_norm_eps),
                window=windows[i],
                rope="default" if rotates[i] else None,
            ),
            grouped(c, i),
            norm(c),
            norm(c),
        ),
    )


_BIAS = "{rest}layers.{i}.mlp.%se_score_correction_bias"

decoder_family(
    "ExaoneMoe",
    ExaoneMoeConfig,
    exaone_moe,
    classifies=False,
    names=(*per_expert(), rename(_BIAS % "gate.", _BIAS % "")),
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"^mtp\."),
)
