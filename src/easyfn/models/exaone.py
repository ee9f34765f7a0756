"""EXAONE 3 and 3.5 (LG AI Research 2024, arXiv 2408.03541): Llama, under GPT-2's names in its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size, alias, rope
from ..core.frozen import Frozen
from ..names.rules import Rule, rename
from ..nn import Decoder
from .decoders import decoder_classes, decoder_family, decoder_names
from .llama import LlamaConfig, llama


@dataclass(frozen=True, kw_only=True)
class ExaoneConfig(LlamaConfig):
    """The keys of an EXAONE `config.json`."""

    model_type: ClassVar[str] = "exaone"
    num_layers = alias("num_hidden_layers")
    layer_norm_epsilon = alias("rms_norm_eps")
    activation_function = alias("hidden_act")
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 4096
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(500000.0)


NAMES = {
    "embed_tokens": "wte",
    "layers.{i}.self_attn.o_proj": "h.{i}.attn.attention.out_proj",
    "layers.{i}.self_attn": "h.{i}.attn.attention",
    "layers.{i}.input_layernorm": "h.{i}.ln_1",
    "layers.{i}.post_attention_layernorm": "h.{i}.ln_2",
    "layers.{i}.mlp.gate_proj": "h.{i}.mlp.c_fc_0",
    "layers.{i}.mlp.up_proj": "h.{i}.mlp.c_fc_1",
    "layers.{i}.mlp.down_proj": "h.{i}.mlp.c_proj",
    "norm": "ln_f",
}

WITH_HEAD = decoder_names("transformer", NAMES)


def names(model: Any) -> list[Rule]:
    """Files are of models with a head. Of a base model transformers writes the layers' names, and under ours."""
    if not isinstance(model, Decoder):
        return WITH_HEAD(model)
    layers = {ours: theirs for ours, theirs in NAMES.items() if ours.startswith("layers")}
    return [rename(f"{a}.{{rest}}", f"{b.replace('h.', 'layers.', 1)}.{{rest}}") for a, b in layers.items()]


decoder_family(
    None,
    ExaoneConfig,
    llama,
    architectures={**decoder_classes("Llama"), **decoder_classes("Exaone")},  # transformers has Llama's for it
    names=names,
    aliases={
        "layers.{rest}": ("transformer.h.{rest}",),
        **{f"{name}.weight": (f"transformer.{NAMES[name]}.weight",) for name in ("embed_tokens", "norm")},
    },
    modules=(),
    ignore_tensors=(r"rotary\w*\.inv_freq$",),
)
