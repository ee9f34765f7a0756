"""DBRX (Databricks 2024): grouped queries held within bounds, LayerNorms without biases, sixteen experts, four per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import UnknownConfigKey, only, without_nulls
from ..config.fields import CommonFields, Size, alias, rope
from ..core.frozen import Frozen
from ..names.layout import Flattened, Joined, Transposed
from ..names.rules import Rule
from ..nn import Block, Decoder, Experts, LayerNorm, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, decoder_names


@dataclass(frozen=True, kw_only=True)
class DbrxAttentionConfig:
    """The keys of `attn_config`. The base of its rotation, `rope_theta`, is in the config's `rope_parameters`."""

    attn_pdrop: float | int = 0.0
    clip_qkv: float | int | None = None
    kv_n_heads: Size = 1
    extra: Frozen = Frozen()


@dataclass(frozen=True, kw_only=True)
class DbrxFFNConfig:
    """The keys of `ffn_config`. `moe_normalize_expert_weights`: the chosen experts' weights add up to 1, or (`null`) are as
    softmax over all has them."""

    ffn_act_fn: Frozen | None = Frozen(name="silu")
    ffn_hidden_size: Size = 3584
    moe_num_experts: Size = 4
    moe_top_k: Size = 1
    moe_jitter_eps: float | int | None = None
    moe_loss_weight: float = 0.01
    moe_normalize_expert_weights: float | None = 1.0
    extra: Frozen = Frozen()
    ignored: ClassVar[tuple[str, ...]] = ("hidden_size", "uniform_expert_assignment")  # the first is always `d_model`

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "moe_normalize_expert_weights", 1.0)
        only(data, "uniform_expert_assignment", False)
        if more := sorted(set(data.get("ffn_act_fn") or ()) - {"name"}):
            raise UnknownConfigKey(
                f"config.json: ffn_config.ffn_act_fn has a name, and {', '.join(more)} is not implemented"
            )
        return data


@dataclass(frozen=True, kw_only=True)
class DbrxConfig(CommonFields):
    """The keys of a DBRX `config.json`."""

    model_type: ClassVar[str] = "dbrx"
    vocab_size: Size = 32000
    d_model: Size = 2048
    n_heads: Size = 16
    n_layers: int = 24
    max_seq_len: Size = 2048
    resid_pdrop: float | int = 0.0
    attn_config: DbrxAttentionConfig = DbrxAttentionConfig()
    ffn_config: DbrxFFNConfig = DbrxFFNConfig()
    rope_parameters: Frozen = rope()
    tie_word_embeddings: ClassVar[bool] = False
    ignored: ClassVar[tuple[str, ...]] = ("tie_word_embeddings",)
    hidden_size = alias("d_model")
    num_attention_heads = alias("n_heads")
    num_hidden_layers = alias("n_layers")
    max_position_embeddings = alias("max_seq_len")

    @property
    def num_key_value_heads(self) -> int:
        return self.attn_config.kv_n_heads

    @property
    def router_aux_loss_coef(self) -> float:
        return self.ffn_config.moe_loss_weight

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        """The base of the rotation from `attn_config`, where DBRX's own files have it.

        transformers reads it there and rotates by `rope_parameters` all the same: by 10000 with those files. We rotate by
        what the file says, and refuse one that says two things.
        """
        data = without_nulls(data, "attn_config", "ffn_config")
        only(data, "tie_word_embeddings", False)
        inner = dict(data.get("attn_config", {}))
        theta, given = inner.pop("rope_theta", None), data.get("rope_parameters") or data.get("rope_scaling") or {}
        if theta is not None:
            said = given.get("rope_theta", data.get("rope_theta", theta))
            if said != theta:
                raise UnknownConfigKey(
                    f"config.json: attn_config.rope_theta={theta!r} and rope_parameters.rope_theta={said!r} are two bases of "
                    "one rotation. DBRX was trained with that of attn_config; transformers 5 rotates by the other. Say "
                    'which: config_overrides={"rope_parameters": {"rope_theta": ...}, "attn_config": {...}} with one of them'
                )
            data = {**data, "attn_config": inner, "rope_theta": theta}
        return data

    @staticmethod
    def denormalize(data: dict[str, Any]) -> dict[str, Any]:
        """With the base in `attn_config` too: without one there transformers does not build the model."""
        return {**data, "attn_config": {**data["attn_config"], "rope_theta": data["rope_parameters"]["rope_theta"]}}


def dbrx(c: DbrxConfig) -> Decoder:
    """The decoder: pre-norm blocks of clipped grouped-query attention and of gated experts."""
    a, f = c.attn_config, c.ffn_config
    norm = lambda: LayerNorm(c.d_model, 1e-5, bias=False)
    return decoder(
        c,
        lambda i: Block(
            attention(
                c, fused="rows", clip=None if a.clip_qkv is None else float(a.clip_qkv), dropout=float(a.attn_pdrop)
            ),
            SparseMoE(
                Router(c.d_model, f.moe_num_experts, f.moe_top_k, normalize=f.moe_normalize_expert_weights is not None),
                Experts(
                    f.moe_num_experts, c.d_model, f.ffn_hidden_size, (f.ffn_act_fn or Frozen()).get("name", "silu")
                ),
                jitter=float(f.moe_jitter_eps or 0.0),
            ),
            norm(),
            norm(),
            dropout=float(c.resid_pdrop),
        ),
        last=norm(),
    )


# The experts' matrices lie in the file as one, row after row; that which leads out is (in, out).
_OURS, _THEIRS = "{rest}layers.{i}.mlp.experts.", "{rest}layers.{i}.mlp.experts.mlp."
_EXPERTS = (
    Rule(_OURS + "gate_up_proj", (_THEIRS + "w1", _THEIRS + "v1"), Joined(1, 2, Flattened())),
    Rule(_OURS + "down_proj", (_THEIRS + "w2",), Transposed(Flattened())),
)
_NAMES = decoder_names(
    "transformer",
    {
        "embed_tokens": "wte",
        "layers.{i}.self_attn.qkv_proj": "blocks.{i}.norm_attn_norm.attn.Wqkv",
        "layers.{i}.self_attn.o_proj": "blocks.{i}.norm_attn_norm.attn.out_proj",
        "layers.{i}.input_layernorm": "blocks.{i}.norm_attn_norm.norm_1",
        "layers.{i}.post_attention_layernorm": "blocks.{i}.norm_attn_norm.norm_2",
        "layers.{i}.mlp.gate": "blocks.{i}.ffn.router.layer",
        "layers.{i}.mlp": "blocks.{i}.ffn",
        "norm": "norm_f",
    },
)

decoder_family(
    "Dbrx",
    DbrxConfig,
    dbrx,
    classifies=False,
    names=lambda model: [*_EXPERTS, *_NAMES(model)],
    prefix="transformer",
    ignore=("emb_pdrop", "num_key_value_heads"),  # kept by transformers without a use; said by attn_config
)
