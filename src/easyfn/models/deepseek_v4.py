"""DeepSeek-V4 (DeepSeek-AI 2026): attention to a short window and to compressed entries of what is before, several residual
streams that mix on a manifold, experts that the first layers choose by the token alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax

from ..config.config import only
from ..config.fields import CommonFields, Size, alias
from ..core.frozen import Frozen
from ..core.weight import HALF
from ..names.rules import Rule, rename
from ..nn import (
    ClampedGate,
    CompressedAttention,
    Compressor,
    Context,
    Decoder,
    EntryIndexer,
    Experts,
    GatedMLP,
    HashRouter,
    ManifoldConnection,
    ManifoldHead,
    RMSNorm,
    Router,
    SparseMoE,
    Streamed,
    TokenIds,
)
from .decoders import check_layer_types, decoder_family
from .mixtures import per_expert

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
RATIOS = {0: SLIDING, 4: SPARSE, 128: HEAVY}
ROPE = Frozen(
    main=Frozen(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.125),
    compress=Frozen(rope_type="default", rope_theta=160000.0, partial_rotary_factor=0.125),
)


@dataclass(frozen=True, kw_only=True)
class DeepseekV4Config(CommonFields):
    """The keys of a DeepSeek-V4 `config.json`. `rope_parameters` has a table `main`, of layers that only slide a window, and a
    table `compress`, of all others."""

    model_type: ClassVar[str] = "deepseek_v4"
    num_local_experts = alias("n_routed_experts")
    intermediate_size = alias("moe_intermediate_size")
    vocab_size: Size = 129280
    hidden_size: Size = 4096
    moe_intermediate_size: Size = 2048
    num_hidden_layers: int = 43
    num_attention_heads: Size = 64
    num_key_value_heads: Size = 1
    head_dim: Size = 512
    q_lora_rank: Size = 1024
    num_experts_per_tok: Size = 6
    n_routed_experts: Size = 256
    scoring_func: str = "sqrtsoftplus"
    routed_scaling_factor: float | int = 1.5
    max_position_embeddings: Size = 1048576
    layer_types: tuple[str, ...] | None = None
    mlp_layer_types: tuple[str, ...] | None = None
    compress_rates: Frozen = Frozen({SPARSE: 4, HEAVY: 128})
    hc_mult: Size = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    swiglu_limit: float | int = 10.0
    sliding_window: Size = 128
    o_groups: Size = 8
    o_lora_rank: Size = 1024
    index_n_heads: Size = 64
    index_head_dim: Size = 128
    index_topk: Size = 512
    router_aux_loss_coef: float | int = 0.001
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_parameters: Frozen = ROPE
    mlp_bias: bool = False
    attention_dropout: float | int = 0.0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "topk_method", "noaux_tc")
        for key, value in (("n_shared_experts", 1), ("norm_topk_prob", True), ("attention_bias", False)):
            only(data, key, value)
        only(data, "hidden_act", "silu")
        experts, quantized = data.pop("expert_dtype", None), data.get("quantization_config")
        if experts is not None and quantized:  # older files say it beside the other keys of this config
            data["quantization_config"] = {"expert_dtype": experts, **quantized}
        return _tables(_kinds(data))

    @staticmethod
    def denormalize(data: dict[str, Any]) -> dict[str, Any]:
        """transformers says of its tables in keys of their own, too."""
        main, far = data["rope_parameters"]["main"], data["rope_parameters"]["compress"]
        bases = {"rope_theta": main["rope_theta"], "compress_rope_theta": far["rope_theta"]}
        part = main.get("partial_rotary_factor", 1.0)
        return {**data, **bases, "partial_rotary_factor": part, "qk_rope_head_dim": int(data["head_dim"] * part)}


def _kinds(data: dict[str, Any]) -> dict[str, Any]:
    """The kinds of all layers, which older files say in numbers."""
    layers = data.get("num_hidden_layers", DeepseekV4Config.num_hidden_layers)
    ratios, hashed = data.pop("compress_ratios", None), data.pop("num_hash_layers", None)
    if ratios is not None and data.get("layer_types") is None:
        if unknown := sorted(set(ratios) - set(RATIOS)):
            raise ValueError(f"deepseek_v4: compress_ratios={unknown} are none of {sorted(RATIOS)}; say layer_types")
        data["layer_types"] = [RATIOS[r] for r in ratios]
    if hashed is not None and data.get("mlp_layer_types") is None:
        data["mlp_layer_types"] = ["hash_moe"] * min(layers, hashed) + ["moe"] * max(0, layers - hashed)
    for key in ("layer_types", "mlp_layer_types"):  # files count layers that predict further tokens, too
        if data.get(key) is not None:
            data[key] = list(data[key])[:layers]
    rates = dict(data.get("compress_rates") or DeepseekV4Config.compress_rates)
    for key, kind in (("compress_rate_csa", SPARSE), ("compress_rate_hca", HEAVY)):
        if (rate := data.pop(key, None)) is not None:
            rates[kind] = rate
    return {**data, "compress_rates": rates}


def _tables(data: dict[str, Any]) -> dict[str, Any]:
    """The two rotary tables, of which older files say one: scaled positions are of the compressed layers only, and yarn has no
    factor of its own there."""
    width = data.pop("qk_rope_head_dim", None)
    partial = data.pop("partial_rotary_factor", None)
    if partial is None:
        partial = 0.125 if width is None else width / data.get("head_dim", DeepseekV4Config.head_dim)
    base, far = data.pop("rope_theta", None), data.pop("compress_rope_theta", None)
    given = dict(data.pop("rope_scaling", None) or data.get("rope_parameters") or {})
    if isinstance(given.get("main"), Mapping) and isinstance(given.get("compress"), Mapping):
        return {**data, "rope_parameters": {"main": given["main"], "compress": given["compress"]}}
    main = {"rope_type": "default", "rope_theta": 10000.0 if base is None else base, "partial_rotary_factor": partial}
    scaled = {k: v for k, v in given.items() if k not in ("main", "compress", "type")}
    scaled |= {"rope_theta": 160000.0 if far is None else far, "partial_rotary_factor": partial}
    scaled.setdefault("rope_type", given.get("type", "default"))
    if scaled["rope_type"] == "yarn":
        scaled.setdefault("attention_factor", 1.0)
    return {**data, "rope_parameters": {"main": main, "compress": scaled}}


class StreamBlock(eqx.Module):
    """Attention and then experts, each between the streams."""

    self_attn: CompressedAttention
    mlp: SparseMoE
    input_layernorm: RMSNorm
    post_attention_layernorm: RMSNorm
    attn_hc: ManifoldConnection
    ffn_hc: ManifoldConnection

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h, taken = self.attn_hc(x)
        h, cache, attentions = self.self_attn(self.input_layernorm(h), context, cache)
        x = taken(h)
        h, taken = self.ffn_hc(x)
        h, router_logits = self.mlp(self.post_attention_layernorm(h), context)
        return taken(h), cache, {"attentions": attentions, "router_logits": router_logits}


def kinds_of(c: DeepseekV4Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of every layer the kinds of its attention and of its experts."""
    layers = c.num_hidden_layers
    rest = (SPARSE if i % 2 else HEAVY for i in range(max(layers - 2, 0)))
    kinds = c.layer_types or (*(HEAVY,) * min(layers, 2), *rest)
    check_layer_types(c, kinds, (SLIDING, SPARSE, HEAVY))
    experts = c.mlp_layer_types or ("hash_moe",) * min(layers, 3) + ("moe",) * max(0, layers - 3)
    if len(experts) != layers or set(experts) - {"hash_moe", "moe"}:
        raise ValueError(
            f"deepseek_v4: mlp_layer_types says hash_moe or moe of each of {layers} layers, not {', '.join(experts)}"
        )
    return kinds, experts


def deepseek_v4(c: DeepseekV4Config) -> Decoder:
    """The decoder: `hc_mult` streams from the embeddings to the last norm."""
    kinds, experts = kinds_of(c)
    if c.num_key_value_heads != 1:
        raise ValueError(f"deepseek_v4: num_key_value_heads={c.num_key_value_heads}, and all heads read one key: say 1")
    far = c.rope_parameters["compress"]
    if far.get("rope_type") in ("dynamic", "longrope"):
        raise ValueError(
            f"deepseek_v4: rope_parameters.compress has rope_type {far['rope_type']!r}, whose table grows with the pass, and "
            "entries keep the place that they were turned to; default, linear, llama3 and yarn are known"
        )
    norm = lambda width=c.hidden_size: RMSNorm(width, c.rms_norm_eps, float32=HALF)
    gate = ClampedGate(c.swiglu_limit)

    def compressor(dim: int, kind: str) -> Compressor:
        rate = c.compress_rates.get(kind)
        if not isinstance(rate, int) or rate < 1:
            raise ValueError(f"deepseek_v4: compress_rates says of {kind} {rate!r}, which is no number of tokens")
        return Compressor(
            c.hidden_size,
            dim,
            rate,
            overlapping=kind == SPARSE,
            eps=c.rms_norm_eps,
            rope_parameters=far,
            rope_dim=c.head_dim,
            limit=c.max_position_embeddings,
        )

    def attention(kind: str) -> CompressedAttention:
        indexer = None
        if kind == SPARSE:
            own = compressor(c.index_head_dim, kind)
            indexer = EntryIndexer(
                c.hidden_size, c.q_lora_rank, own, heads=c.index_n_heads, topk=c.index_topk, rope="compress"
            )
        return CompressedAttention(
            c.hidden_size,
            c.num_attention_heads,
            c.head_dim,
            q_lora_rank=c.q_lora_rank,
            o_groups=c.o_groups,
            o_lora_rank=c.o_lora_rank,
            window=c.sliding_window,
            rope="main" if kind == SLIDING else "compress",
            eps=c.rms_norm_eps,
            compressor=None if kind == SLIDING else compressor(c.head_dim, kind),
            indexer=indexer,
            dropout=c.attention_dropout,
        )

    def mixture(kind: str) -> SparseMoE:
        counts = c.n_routed_experts, c.num_experts_per_tok
        options: dict[str, Any] = {"score": c.scoring_func, "scale": c.routed_scaling_factor}
        hashed = kind == "hash_moe"
        if hashed:
            router: Any = HashRouter(c.vocab_size, c.hidden_size, *counts, **options)
        else:
            router = Router(c.hidden_size, *counts, correction=True, wide=("e_score_correction_bias",), **options)
        shared = GatedMLP(c.hidden_size, c.moe_intermediate_size, gate, bias=c.mlp_bias)
        answering = Experts(c.n_routed_experts, c.hidden_size, c.moe_intermediate_size, gate)
        return SparseMoE(router, answering, shared_experts=shared, hashed=hashed)

    def connection() -> ManifoldConnection:
        return ManifoldConnection(
            c.hc_mult, c.hidden_size, steps=c.hc_sinkhorn_iters, eps=c.hc_eps, norm_eps=c.rms_norm_eps
        )

    layers = [
        StreamBlock(attention(kind), mixture(mlp), norm(), norm(), connection(), connection())
        for kind, mlp in zip(kinds, experts, strict=True)
    ]
    return Decoder(
        c,
        layers,
        ManifoldHead(c.hc_mult, c.hidden_size, norm(), eps=c.hc_eps),
        head_dim=c.head_dim,
        rope=c.rope_parameters,
        partial=True,
        embed_norm=Streamed(c.hc_mult),
        per_layer=TokenIds(c.num_hidden_layers, "chooses experts") if "hash_moe" in experts else None,
    )


_COMPRESSOR = {"position_bias": "ape", "kv_proj": "wkv", "gate_proj": "wgate", "kv_norm": "norm"}
# The layers in files: DeepSeek's own names, which transformers writes, too.
_LAYER = {
    **{f"self_attn.compressor.{ours}": f"attn.compressor.{theirs}" for ours, theirs in _COMPRESSOR.items()},
    **{
        f"self_attn.indexer.compressor.{ours}": f"attn.indexer.compressor.{theirs}"
        for ours, theirs in _COMPRESSOR.items()
    },
    "self_attn.indexer.q_b_proj": "attn.indexer.wq_b",
    "self_attn.indexer.weights_proj": "attn.indexer.weights_proj",
    "self_attn.sinks": "attn.attn_sink",
    "self_attn.q_a_proj": "attn.wq_a",
    "self_attn.q_a_norm": "attn.q_norm",
    "self_attn.q_b_proj": "attn.wq_b",
    "self_attn.kv_proj": "attn.wkv",
    "self_attn.kv_norm": "attn.norm",
    "self_attn.o_a_proj": "attn.wo_a",
    "self_attn.o_b_proj": "attn.wo_b",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"{part}_hc.{name}": f"hc_{part}_{name}" for part in ("attn", "ffn") for name in ("fn", "base", "scale")},
    "mlp.gate.e_score_correction_bias": "ffn.gate.bias",
    "mlp.gate": "ffn.gate",
    "mlp.shared_experts.gate_proj": "ffn.shared_experts.w1",
    "mlp.shared_experts.up_proj": "ffn.shared_experts.w3",
    "mlp.shared_experts.down_proj": "ffn.shared_experts.w2",
}
_LEAVES = ("position_bias", "sinks", "fn", "base", "scale", "e_score_correction_bias")


def names(model: Any) -> list[Rule]:
    """transformers writes the base model's own tensors in DeepSeek's words where it is the whole model, and in its own where it
    has a head."""
    bare = isinstance(model, Decoder)
    base = "" if bare else "model."
    found = list(per_expert("w1", "w3", "w2", theirs="ffn"))
    for ours, theirs in _LAYER.items():
        tail = "" if ours.rpartition(".")[2] in _LEAVES else ".{tail}"
        found.append(rename(f"{base}layers.{{i}}.{ours}{tail}", f"{base}layers.{{i}}.{theirs}{tail}"))
    head = "hc_head_" if bare else "model.hc_head.hc_"
    found += [
        rename(f"{base}norm.hc_{{tail}}", head + "{tail}"),
        rename(f"{base}norm.norm.{{tail}}", f"{base}norm.{{tail}}"),
    ]
    return [*found, rename("embed_tokens.{tail}", "embed.{tail}") if bare else rename("lm_head.{tail}", "head.{tail}")]


def modules(model: Any) -> list[Rule]:
    base = "" if isinstance(model, Decoder) else "model."
    ours, theirs = f"{base}layers.{{i}}.self_attn.indexer.", f"{base}layers.{{i}}.self_attn.compressor.indexer."
    return [
        rename(ours + "compressor.{tail}", theirs + "{tail}"),
        rename(ours + "weights_proj.{tail}", theirs + "scorer.weights_proj.{tail}"),
        rename(ours + "{tail}", theirs + "{tail}"),
        rename(f"{base}norm.hc_{{tail}}", f"{base}hc_head.hc_{{tail}}"),
        rename(f"{base}norm.norm.{{tail}}", f"{base}norm.{{tail}}"),
    ]


decoder_family(
    "DeepseekV4",
    DeepseekV4Config,
    deepseek_v4,
    classifies=False,
    names=names,
    modules=modules,
    # Said by the model type already, or read nowhere.
    ignore=(
        *("n_shared_experts", "norm_topk_prob", "attention_bias", "hidden_act"),
        *("num_nextn_predict_layers", "router_jitter_noise", "topk_method"),
    ),
    ignore_tensors=(r"rotary_emb\.", r"(^|\.)mtp\."),
    # DeepSeek's own files.
    aliases={
        "model.embed_tokens.weight": ("embed.weight",),
        "{rest}.attn.norm.weight": ("{rest}.attn.kv_norm.weight",),
        **{f"model.hc_head.hc_{name}": (f"hc_head_{name}",) for name in ("fn", "base", "scale")},
        **{f"hc_head_{name}": (f"model.hc_head.hc_{name}",) for name in ("fn", "base", "scale")},  # of a base model
    },
)
