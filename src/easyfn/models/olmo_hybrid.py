"""OLMo Hybrid (Ai2 2026): three gated delta nets to one attention, each kind with its norms in another place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import LlamaFields, Size
from ..names.rules import Rule, concatenated, rename
from ..nn import Decoder, GatedDeltaNet, PostNormBlock, RecurrentBlock
from .decoders import attention, decoder, decoder_family, mlp, norm, row_norms
from .hybrids import kinds_of_layers, mixer_is


@dataclass(frozen=True, kw_only=True)
class OlmoHybridConfig(LlamaFields):
    """The keys of an OLMo Hybrid `config.json`. Where `rope_theta` is null there are no rotary positions; where it is left out
    there are, as in transformers."""

    model_type: ClassVar[str] = "olmo_hybrid"
    vocab_size: Size = 100352
    hidden_size: Size = 3840
    intermediate_size: Size = 11008
    num_hidden_layers: int = 32
    num_attention_heads: Size = 30
    max_position_embeddings: Size = 65536
    attention_bias: bool = False
    layer_types: tuple[str, ...] | None = None
    linear_num_key_heads: Size | None = None
    linear_num_value_heads: Size | None = None
    linear_key_head_dim: Size | None = None
    linear_value_head_dim: Size | None = None
    linear_a_log_min: float | int = 0.0
    linear_a_log_max: float | int = 16.0
    linear_dt_min: float = 0.001
    linear_dt_max: float = 0.1
    linear_dt_init_floor: float = 1e-4
    linear_conv_kernel_dim: Size = 4
    linear_allow_neg_eigval: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        if "rope_theta" in data and data["rope_theta"] is None:
            data["rope_parameters"] = {"rope_theta": None, **(data.get("rope_parameters") or {})}
        return data


def widths(c: OlmoHybridConfig) -> tuple[int, int, int, int]:
    """Of the delta nets the heads of keys and of values, and how wide each is."""
    key_heads = c.linear_num_key_heads or c.num_attention_heads
    key_dim = c.linear_key_head_dim or int(0.75 * c.hidden_size / key_heads)
    value_heads = c.linear_num_value_heads or c.num_attention_heads
    return key_heads, value_heads, key_dim, c.linear_value_head_dim or 2 * key_dim


def olmo_hybrid(c: OlmoHybridConfig) -> Decoder:
    """The decoder: delta nets behind a norm, attention with norms behind it, of all queries and keys of a token too."""
    layers = c.num_hidden_layers
    last = lambda i: i % 4 == 3 or (layers < 4 and i == layers - 1)  # at least one attends
    kinds = kinds_of_layers(
        c, ("linear_attention", "full_attention"), lambda i: "full_attention" if last(i) else "linear_attention"
    )
    key_heads, value_heads, key_dim, value_dim = widths(c)
    turns = c.rope_parameters.get("rope_theta") is not None

    def block(i: int) -> Any:
        if kinds[i] == "full_attention":
            own = attention(c, qk_norm=row_norms(c), normed="rows", rope="default" if turns else None)
            return PostNormBlock(own, mlp(c), norm(c), norm(c))
        delta = GatedDeltaNet(
            c.hidden_size,
            key_heads=key_heads,
            value_heads=value_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            kernel=c.linear_conv_kernel_dim,
            act=c.hidden_act,
            eps=1e-5,
            projections="all",
            beta=2.0 if c.linear_allow_neg_eigval else 1.0,
            decays=(c.linear_a_log_min, c.linear_a_log_max),
            steps=(c.linear_dt_min, c.linear_dt_max, c.linear_dt_init_floor),
        )
        return RecurrentBlock(delta, mlp(c), norm(c), norm(c))

    return decoder(c, block, rope={"default": c.rope_parameters} if turns else {})


_LAYER = "{rest}layers.{i}."
_PARTS = (
    ("in_proj_z", "g_proj"),
    ("in_proj_b", "b_proj"),
    ("in_proj_a", "a_proj"),
    ("norm", "o_norm"),
    ("out_proj", "o_proj"),
)
# As transformers' modules have them.
MODULES = [
    *(rename(f"{_LAYER}mixer.{ours}.{{tail}}", f"{_LAYER}linear_attn.{theirs}.{{tail}}") for ours, theirs in _PARTS),
    mixer_is("linear_attn"),
]


def names(model: Any) -> list[Rule]:
    """The convolutions of queries, keys and values are apart in files, and the norms of a delta net's layer have names of
    their own."""
    base = model if isinstance(model, Decoder) else model.model
    key_heads, value_heads, key_dim, value_dim = widths(base.config)
    keys = key_heads * key_dim
    parts = (f"{_LAYER}linear_attn.{part}_conv1d.weight" for part in "qkv")
    return [
        concatenated(f"{_LAYER}mixer.conv1d.weight", *parts, widths=(keys, keys, value_heads * value_dim)),
        *MODULES,
        rename(f"{_LAYER}input_layernorm.{{tail}}", f"{_LAYER}attention_layer_norm.{{tail}}"),
        rename(f"{_LAYER}post_attention_layernorm.{{tail}}", f"{_LAYER}feedforward_layer_norm.{{tail}}"),
    ]


decoder_family(
    "OlmoHybrid",
    OlmoHybridConfig,
    olmo_hybrid,
    classifies=False,
    names=names,
    modules=lambda model: MODULES,
    aliases={  # as transformers' modules have them
        "{rest}.attention_layer_norm.{tail}": ("{rest}.input_layernorm.{tail}",),
        "{rest}.feedforward_layer_norm.{tail}": ("{rest}.post_attention_layernorm.{tail}",),
    },
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"^mtp"),
)
