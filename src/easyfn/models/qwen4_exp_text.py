"""Qwen4-Exp, its text model (Qwen team 2026): Qwen3.5-MoE with several residual streams, attention to chosen blocks of keys and
embeddings of n-grams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import Size, rope
from ..core.frozen import Frozen
from ..core.tree import nodes
from ..names.rules import Rule, concatenated, rename
from ..nn import (
    BlockIndexer,
    CausalConv1d,
    Context,
    Decoder,
    Documents,
    GatedAttention,
    GatedDeltaNet,
    HyperConnection,
    Linear,
    RMSNorm,
    StreamNorm,
    Streams,
    TokenIds,
    cache_axes,
    layer_cache,
    rewindable,
)
from ..nn.recurrent.conv import before_first
from ..nn.recurrent.ngram import NGramEmbedding
from ..registry.family import family
from .decoders import check_layer_types, decoder_tasks
from .hybrids import EXPERT_NAMES, SharedExpertFields, qwen_delta, shared_expert_moe, text_rope


@dataclass(frozen=True, kw_only=True)
class Qwen4ExpTextConfig(SharedExpertFields):
    """The keys of the text part of a Qwen4-Exp `config.json`. `ple_layer_ids` counts layers from 1."""

    model_type: ClassVar[str] = "qwen4_exp_text"
    num_hidden_layers: int = 40
    num_experts: int = 512
    num_experts_per_tok: Size = 10
    norm_topk_prob: bool = True
    rope_parameters: Frozen = rope()
    hc_count: Size = 4
    hc_lowrank: Size = 320
    ple_layer_ids: tuple[int, ...] = ()
    ple_embed_dim: Size | None = None
    ple_conv_kernel_size: Size = 4
    ngram_size: Size = 3
    heads_per_ngram: Size = 8
    ngram_vocab_size_base: Size = 20000000
    make_ngram_vocab_size_divisible_by: Size = 128
    seed: int = 1234
    split_ngram_parts: Size = 512
    indexer_n_heads: Size | None = None
    indexer_kv_heads: Size | None = None
    indexer_head_dim: Size | None = None
    indexer_budget: Size | None = None
    indexer_compress_ratio: Size | None = None
    output_gate_type: str | None = None

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        data = text_rope(data)
        if data.get("layer_types") is not None:
            data["layer_types"] = ["indexed_attention" if k == "full_attention" else k for k in data["layer_types"]]
        if data.get("ple_layer_ids") is None:
            data.pop("ple_layer_ids", None)
        else:
            data["ple_layer_ids"] = sorted(set(data["ple_layer_ids"]))
        if data.get("ple_embed_dim") is None and data.get("hidden_size") is not None:
            data["ple_embed_dim"] = data["hidden_size"]
        return data


class NGramState(eqx.Module):
    """The last inputs of a layer's convolution, zeros where there were none, and the last ids."""

    conv: jax.Array  # [batch, inputs, channels]
    ids: jax.Array  # [batch, size - 1]
    segment_ids: jax.Array  # [batch]


@cache_axes.register(NGramState)
def _(cache: NGramState) -> tuple[str, ...]:
    return "batch inputs channels", "batch inputs", "batch"


@rewindable.register(NGramState)
def _(cache: NGramState) -> bool:
    return False


class NGramLayer(eqx.Module):
    """What n-grams say to every stream, as much as the stream's likeness to their key, and a convolution of that."""

    ple_embedding: NGramEmbedding
    key_proj: Linear
    value_proj: Linear
    norm_key: StreamNorm
    norm_query: StreamNorm
    norm_conv: StreamNorm
    conv1d: CausalConv1d
    count: int = eqx.field(static=True)

    def __init__(self, c: Qwen4ExpTextConfig, layer: int) -> None:
        wide, width = c.hc_count * c.hidden_size, c.ple_embed_dim or c.hidden_size
        end = c.extra.get("eos_token_id")
        end = end[0] if isinstance(end, tuple | list) and end else end
        if not isinstance(end, int):
            raise ValueError("qwen4_exp_text: ple_layer_ids needs eos_token_id, which ends n-grams")
        self.ple_embedding = NGramEmbedding(
            c.vocab_size,
            width,
            size=c.ngram_size,
            heads=c.heads_per_ngram,
            base=c.ngram_vocab_size_base,
            divisor=c.make_ngram_vocab_size_divisible_by,
            layer=layer,
            seed=c.seed,
            end=end,
        )
        self.key_proj = Linear(width, wide, axes=("embed", None))
        self.value_proj = Linear(width, c.hidden_size, axes=("embed", None))
        self.norm_key, self.norm_query, self.norm_conv = (
            StreamNorm(c.hc_count, c.hidden_size, c.rms_norm_eps) for _ in range(3)
        )
        axes = ("embed", None, None)
        self.conv1d = CausalConv1d(wide, c.ple_conv_kernel_size, False, axes=axes, dilation=c.ngram_size)
        self.count = c.hc_count

    def __call__(self, x: jax.Array, ids: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any]:
        state = empty_ngrams(self, x.shape[0], x.dtype) if cache is None else cache
        documents = Documents.of(context.segment_ids, state.segment_ids)
        vectors, last = self.ple_embedding(ids, documents, state.ids)
        apart = lambda h: h.reshape(*x.shape[:-1], self.count, -1)
        likeness = apart(self.norm_key(self.key_proj(vectors))) * apart(self.norm_query(x))
        gate = jnp.sum(likeness.astype(jnp.float32), axis=-1, keepdims=True) * likeness.shape[-1] ** -0.5
        gate = jnp.sqrt(jnp.maximum(jnp.abs(gate), 1e-6)) * jnp.sign(gate)
        value = (jax.nn.sigmoid(gate) * self.value_proj(vectors)[..., None, :]).astype(x.dtype).reshape(x.shape)
        real = documents.real[..., None]
        value, normed = (jnp.where(real, part, jnp.zeros_like(part)) for part in (value, self.norm_conv(value)))
        y, conv = self.conv1d(normed, documents, state.conv)
        y = value + jax.nn.silu(y.astype(x.dtype))
        return y, None if cache is None else NGramState(conv, last, documents.last)


def empty_ngrams(layer: NGramLayer, batch_size: int, dtype: Any) -> NGramState:
    """The state before the first token."""
    embedding = layer.ple_embedding
    ids = jnp.full((batch_size, embedding.size - 1), embedding.end, jnp.int32)
    state = before_first(layer.conv1d, batch_size, dtype)
    assert state.conv is not None
    return NGramState(state.conv, ids, state.segment_ids)


@layer_cache.register(NGramLayer)
def _(layer: NGramLayer, batch_size: int, max_length: int, dtype: Any) -> NGramState:
    return empty_ngrams(layer, batch_size, dtype)


class HyperBlock(eqx.Module):
    """A gated delta net or attention to chosen blocks, and then experts, each between the streams; n-grams before them."""

    linear_attn: GatedDeltaNet | None
    self_attn: GatedAttention | None
    mlp: Any
    ple: NGramLayer | None
    attn_hyper_connection: HyperConnection
    mlp_hyper_connection: HyperConnection

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        kept = {"mixer": None, "ngrams": None} if cache is None else cache
        new, attentions = {}, None
        if self.ple is not None:
            assert context.by_layer is not None
            said, new["ngrams"] = self.ple(x, context.by_layer, context, kept["ngrams"])
            x = x + said
        h, normed = self.attn_hyper_connection.mixed(x)
        if self.linear_attn is not None:
            h, new["mixer"] = self.linear_attn(h, context, kept["mixer"])
        else:
            assert self.self_attn is not None
            h, new["mixer"], attentions = self.self_attn(h, context, kept["mixer"])
        x = self.attn_hyper_connection.taken(x, normed, h)
        h, normed = self.mlp_hyper_connection.mixed(x)
        h, router_logits = self.mlp(h, context)
        x = self.mlp_hyper_connection.taken(x, normed, h)
        return x, None if cache is None else new, {"attentions": attentions, "router_logits": router_logits}


@layer_cache.register(HyperBlock)
def _(block: HyperBlock, batch_size: int, max_length: int, dtype: Any) -> dict[str, Any]:
    mixer = block.self_attn if block.linear_attn is None else block.linear_attn
    found = {"mixer": layer_cache(mixer, batch_size, max_length, dtype)}
    if block.ple is not None:
        found["ngrams"] = layer_cache(block.ple, batch_size, max_length, dtype)
    return found


def qwen4_exp(c: Qwen4ExpTextConfig) -> Decoder:
    """The decoder: every layer reads a mixture of the streams, and what comes out is one more."""
    derived = lambda i: "linear_attention" if (i + 1) % c.full_attention_interval else "indexed_attention"
    kinds = c.layer_types or tuple(derived(i) for i in range(c.num_hidden_layers))
    check_layer_types(c, kinds, ("linear_attention", "indexed_attention"))
    gate = c.output_gate_type or c.hidden_act
    if gate not in ("sigmoid", "silu") or c.hc_count < 2:
        raise ValueError(
            f"qwen4_exp_text: output_gate_type={gate!r} is sigmoid or silu, and hc_count={c.hc_count} above 1"
        )
    if wrong := [i for i in c.ple_layer_ids if not 0 < i <= len(kinds) or kinds[i - 1] != "linear_attention"]:
        raise ValueError(f"qwen4_exp_text: ple_layer_ids={wrong} are no layers of linear attention, counted from 1")

    def connection(last: bool = False) -> HyperConnection:
        return HyperConnection(c.hc_count, c.hidden_size, c.hc_lowrank, c.rms_norm_eps, last=last)

    def delta() -> GatedDeltaNet:
        return qwen_delta(c, gate=gate, projections="four")

    def attention() -> GatedAttention:
        heads, dim, budget, ratio = (
            c.indexer_n_heads,
            c.indexer_head_dim,
            c.indexer_budget,
            c.indexer_compress_ratio,
        )
        if heads is None or dim is None or budget is None or ratio is None or c.indexer_kv_heads != 1:
            raise ValueError(
                "qwen4_exp_text: attention needs indexer_n_heads, indexer_head_dim, indexer_budget and "
                f"indexer_compress_ratio, and indexer_kv_heads=1, not {c.indexer_kv_heads}"
            )
        indexer = BlockIndexer(
            c.hidden_size,
            heads=heads,
            dim=dim,
            budget=budget,
            ratio=ratio,
            eps=c.rms_norm_eps,
            rope_parameters=c.rope_parameters,
            rope_dim=c.head_dim,
            limit=c.max_position_embeddings,
        )
        return GatedAttention(
            c.hidden_size,
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
            qk_norm=RMSNorm(c.head_dim, c.rms_norm_eps, offset=1.0),
            bias=c.attention_bias,
            dropout=c.attention_dropout,
            indexer=indexer,
        )

    def block(i: int) -> HyperBlock:
        linear = kinds[i] == "linear_attention"
        ngrams = NGramLayer(c, c.ple_layer_ids.index(i + 1)) if i + 1 in c.ple_layer_ids else None
        return HyperBlock(
            delta() if linear else None,
            None if linear else attention(),
            shared_expert_moe(c),
            ngrams,
            connection(),
            connection(),
        )

    return Decoder(
        c,
        [block(i) for i in range(c.num_hidden_layers)],
        connection(last=True),
        head_dim=c.head_dim,
        rope={"default": c.rope_parameters},
        partial=True,
        embed_norm=Streams(c.hc_count),
        per_layer=TokenIds(c.num_hidden_layers, "looks up n-grams") if c.ple_layer_ids else None,
    )


TABLE = "{rest}.ple_embedding.ngram_embedding."


def modules(model: Any) -> list[Rule]:
    base = "" if isinstance(model, Decoder) else "model."
    return [*EXPERT_NAMES, rename(f"{base}norm.{{tail}}", f"{base}hyper_connection_mixer.{{tail}}")]


def names(model: Any) -> list[Rule]:
    """Files hold the tables of n-grams in pieces."""
    found = modules(model)
    tables = [node for _, node in nodes(model) if isinstance(node, NGramEmbedding)]
    if tables:
        rows, parts = tables[0].ngram_embedding.weight.shape[-2], model.config.split_ngram_parts
        size = -(-rows // parts)
        widths = [min(size, rows - start) for start in range(0, rows, size)]
        pieces = [f"{TABLE}shard_{i}.weight" for i in range(len(widths))]
        equal = () if len(set(widths)) == 1 else widths
        found.append(concatenated(TABLE + "weight", *pieces, widths=equal))
    return found


def constants(model: Any) -> dict[str, np.ndarray]:
    """The numbers of the hash, which transformers keeps as buffers."""
    found: dict[str, np.ndarray] = {}
    for path, node in nodes(model):
        if isinstance(node, NGramEmbedding):
            values = {
                "layer_multipliers": node.factors,
                "ngram_heads_vocab_sizes": node.sizes,
                "ngram_heads_offsets": node.offsets,
            }
            found |= {f"{path}.{name}": np.array(value, np.int64) for name, value in values.items()}
    return found


family(
    "qwen4_exp_text",
    config=Qwen4ExpTextConfig,
    tasks=decoder_tasks(qwen4_exp),
    architectures={"Qwen4ExpForCausalLM": "causal-lm", "Qwen4ExpTextModel": "base"},
    names=names,
    modules=modules,
    constants=constants,
    ignore=("number_of_conv_states",),  # made of other keys
    ignore_tensors=(
        r"rotary_emb\.inv_freq$",
        r"^mtp\.",
        r"^model\.visual\.",
        r"ple_embedding\.(layer_multipliers|ngram_heads_vocab_sizes|ngram_heads_offsets)$",
    ),
)
