"""Zamba2 (Zyphra 2024, arXiv 2411.15242): Mamba-2 layers, some fed by one of a few transformer blocks that they share.

A shared block reads the hidden states beside the embeddings. What each of its uses has for itself are low-rank additions to
its projections, and the matrix that leads back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import CommonFields, Size, alias, rope
from ..core.frozen import Frozen
from ..names.rules import Rule, rename
from ..nn import (
    Context,
    Decoder,
    GatedRMSNorm,
    Linear,
    Mamba2Mixer,
    RMSNorm,
    activation,
    empty_kv,
    hands_on,
    layer_cache,
    rotate,
    self_attention,
    split_heads,
)
from .decoders import check_layer_types, decoder_family, norm

OLDER = {"mamba": "linear_attention"}
DEFAULT = (1, 5, -1, 5, -1, 5, -1, 5, -1, 5, -1, 5, -1, 5, -1, 4, -1, 3, -1, 2)  # Mamba layers, and -1 for a hybrid


@dataclass(frozen=True, kw_only=True)
class Zamba2Config(CommonFields):
    """The keys of a Zamba2 `config.json`. `layers_block_type` says which layers are `hybrid`: fed by a shared block."""

    model_type: ClassVar[str] = "zamba2"
    layer_types = alias("layers_block_type")
    vocab_size: Size = 32000
    max_position_embeddings: Size = 4096
    hidden_size: Size = 2560
    num_hidden_layers: int = 54
    layers_block_type: tuple[str, ...] | None = None
    mamba_d_state: Size = 64
    mamba_d_conv: Size = 4
    mamba_expand: float | int = 2
    mamba_ngroups: Size = 1
    n_mamba_heads: Size = 8
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    chunk_size: Size = 256
    add_bias_linear: bool = False
    intermediate_size: Size | None = None
    hidden_act: str = "gelu"
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = None
    attention_dropout: float | int = 0.0
    num_mem_blocks: Size = 1
    use_shared_attention_adapter: bool = False
    adapter_rank: Size = 128
    use_mem_rope: bool = False
    use_long_context: bool = False
    rope_parameters: Frozen = rope()
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        kinds = data.pop("layers_block_type", None) or data.pop("layer_types", None)
        data = {k: v for k, v in data.items() if k != "layer_types"}
        ids, hybrid = data.get("hybrid_layer_ids"), [i for i, kind in enumerate(kinds or ()) if kind == "hybrid"]
        if (
            kinds and ids is not None and list(ids) != hybrid
        ):  # transformers counts adapters by one, layers by the other
            raise ValueError(
                f"zamba2: hybrid_layer_ids={list(ids)} are not the hybrid layers of layers_block_type, {hybrid}; leave "
                "hybrid_layer_ids out, or null in config_overrides"
            )
        if data.get("use_long_context"):
            data["max_position_embeddings"] = 16384
        return {**data, "layers_block_type": [OLDER.get(kind, kind) for kind in kinds]} if kinds else data


class LowRank(eqx.Module):
    """Two matrices, one after the other."""

    down: Linear
    up: Linear

    def __init__(self, into: int, out: int, rank: int, axis: str) -> None:
        self.down = Linear(into, rank, axes=(None, "embed"))
        self.up = Linear(rank, out, axes=(axis, None))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.up(self.down(x))


class Adapters(eqx.Module):
    """What one use of a shared block adds to its projections; queries, keys and values may have none."""

    q: LowRank | None
    k: LowRank | None
    v: LowRank | None
    gate_up: LowRank

    def __init__(self, c: Zamba2Config) -> None:
        both, own = 2 * c.hidden_size, c.use_shared_attention_adapter
        attention = lambda axis: LowRank(both, both, c.adapter_rank, axis) if own else None
        self.q, self.k, self.v = attention("heads"), attention("kv_heads"), attention("kv_heads")
        self.gate_up = LowRank(c.hidden_size, 2 * _inner(c), c.adapter_rank, "mlp")


class SharedAttention(eqx.Module):
    """Attention of the width of hidden states and embeddings together; scores are scaled as for heads half as wide."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    heads: int = eqx.field(static=True)
    kv_heads: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    rope: str | None = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, c: Zamba2Config) -> None:
        both, dim = 2 * c.hidden_size, _head_dim(c)
        self.heads, self.kv_heads = c.num_attention_heads, c.num_key_value_heads or c.num_attention_heads
        if self.heads % self.kv_heads:
            raise ValueError(f"num_attention_heads={self.heads} is no multiple of num_key_value_heads={self.kv_heads}")
        if c.use_shared_attention_adapter and self.kv_heads * dim != both:
            raise ValueError(
                f"zamba2: use_shared_attention_adapter adds to keys of all heads, and num_key_value_heads={self.kv_heads} are "
                f"fewer than num_attention_heads={self.heads}; set both alike"
            )
        self.q_proj = Linear(both, self.heads * dim, axes=("heads", "embed"))
        self.k_proj = Linear(both, self.kv_heads * dim, axes=("kv_heads", "embed"))
        self.v_proj = Linear(both, self.kv_heads * dim, axes=("kv_heads", "embed"))
        self.o_proj = Linear(self.heads * dim, c.hidden_size, axes=("embed", "heads"))
        self.scale = (dim / 2) ** -0.5
        self.rope = "default" if c.use_mem_rope else None
        self.dropout = float(c.attention_dropout)

    def __call__(self, x: jax.Array, adapters: Adapters, context: Context, cache: Any) -> tuple[jax.Array, Any, Any]:
        def made(proj: Linear, adapter: LowRank | None, heads: int, turn: bool) -> jax.Array:
            y = split_heads(proj(x) if adapter is None else proj(x) + adapter(x), heads)
            if self.rope is None or not turn:
                return y
            assert context.rope is not None
            return rotate(y, context.rope[self.rope])

        q = made(self.q_proj, adapters.q, self.heads, True)
        k = made(self.k_proj, adapters.k, self.kv_heads, True)
        v = made(self.v_proj, adapters.v, self.kv_heads, False)
        y, cache, weights = self_attention(q, k, v, context, cache, scale=self.scale, dropout=self.dropout)
        return self.o_proj(y), cache, weights


class SharedMLP(eqx.Module):
    """A gated MLP, gate and values from one projection."""

    gate_up_proj: Linear
    down_proj: Linear
    act: str = eqx.field(static=True)

    def __init__(self, c: Zamba2Config) -> None:
        activation(c.hidden_act)
        self.gate_up_proj = Linear(c.hidden_size, 2 * _inner(c), c.add_bias_linear, axes=("mlp", "embed"))
        self.down_proj = Linear(_inner(c), c.hidden_size, c.add_bias_linear, axes=("embed", "mlp"))
        self.act = c.hidden_act

    def __call__(self, x: jax.Array, adapters: Adapters) -> jax.Array:
        gate, up = jnp.split(self.gate_up_proj(x) + adapters.gate_up(x), 2, axis=-1)
        return self.down_proj(activation(self.act)(gate) * up)


class SharedBlock(eqx.Module):
    """Attention, then an MLP, each behind a norm and without a residual."""

    self_attn: SharedAttention
    feed_forward: SharedMLP
    input_layernorm: RMSNorm
    pre_ff_layernorm: RMSNorm

    def __init__(self, c: Zamba2Config) -> None:
        self.self_attn = SharedAttention(c)
        self.feed_forward = SharedMLP(c)
        self.input_layernorm = RMSNorm(2 * c.hidden_size, c.rms_norm_eps)
        self.pre_ff_layernorm = norm(c)

    def __call__(
        self, x: jax.Array, embeds: jax.Array, adapters: Adapters, context: Context, cache: Any
    ) -> tuple[jax.Array, Any, Any]:
        h = self.input_layernorm(jnp.concatenate([x, embeds], axis=-1))
        h, cache, weights = self.self_attn(h, adapters, context, cache)
        return self.feed_forward(self.pre_ff_layernorm(h), adapters), cache, weights


class MambaLayer(eqx.Module):
    """`x + mamba(norm(x))`."""

    mamba: Mamba2Mixer
    input_layernorm: RMSNorm

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        y, cache = self.mamba(self.input_layernorm(x), context, cache)
        return x + y, cache, {}


class HybridLayer(eqx.Module):
    """`x + mamba(norm(x + linear(shared(x, embeddings))))`, with the `block`-th of the model's shared blocks."""

    adapters: Adapters
    linear: Linear
    mamba_decoder: MambaLayer
    block: int = eqx.field(static=True)
    heads: tuple[int, int] = eqx.field(static=True)  # of keys: how many, how wide

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        blocks, embeds = context.shared
        kept = cache or {"attention": None, "mamba": None}
        h, keys, weights = blocks[self.block](x, embeds, self.adapters, context, kept["attention"])
        mamba = self.mamba_decoder
        y, state = mamba.mamba(mamba.input_layernorm(x + self.linear(h)), context, kept["mamba"])
        return x + y, None if cache is None else {"attention": keys, "mamba": state}, {"attentions": weights}


@layer_cache.register(HybridLayer)
def _(layer: HybridLayer, batch_size: int, max_length: int, dtype: Any) -> dict[str, Any]:
    mamba = layer_cache(layer.mamba_decoder.mamba, batch_size, max_length, dtype)
    return {"attention": empty_kv(batch_size, *layer.heads, max_length, None, dtype), "mamba": mamba}


@hands_on.register(HybridLayer)
def _(layer: HybridLayer) -> bool:
    return True  # what layers share is no stage's of a pipeline


def _inner(c: Zamba2Config) -> int:
    return c.intermediate_size or 4 * c.hidden_size


def _head_dim(c: Zamba2Config) -> int:
    dim, rest = divmod(2 * c.hidden_size, c.num_attention_heads)
    if rest:
        raise ValueError(
            f"zamba2: twice hidden_size={c.hidden_size} is no multiple of num_attention_heads={c.num_attention_heads}"
        )
    return dim


def kinds_of(c: Zamba2Config) -> tuple[str, ...]:
    """The kind of each layer, `linear_attention` or `hybrid`."""
    kinds = c.layers_block_type
    if kinds is None:
        kinds = tuple(k for n in DEFAULT for k in (("hybrid",) if n < 0 else ("linear_attention",) * n))
    check_layer_types(c, kinds, ("linear_attention", "hybrid"))
    return kinds


def mixer(c: Zamba2Config) -> Mamba2Mixer:
    """The state space of a layer."""
    inner = int(c.mamba_expand * c.hidden_size)
    if inner % c.n_mamba_heads:
        raise ValueError(f"zamba2: {inner} channels (mamba_expand) do not divide into n_mamba_heads={c.n_mamba_heads}")
    return Mamba2Mixer(
        c.hidden_size,
        heads=c.n_mamba_heads,
        head_dim=inner // c.n_mamba_heads,
        state=c.mamba_d_state,
        groups=c.mamba_ngroups,
        kernel=c.mamba_d_conv,
        chunk=c.chunk_size,
        bias=c.add_bias_linear,
        norm=GatedRMSNorm(inner, c.mamba_ngroups, 1e-5),
        limit=(c.time_step_min, math.inf),
        steps=(c.time_step_min, c.time_step_max, c.time_step_floor),
    )


def zamba2(c: Zamba2Config) -> Decoder:
    """The decoder. The shared blocks take turns."""
    kinds, dim = kinds_of(c), _head_dim(c)
    heads = (c.num_key_value_heads or c.num_attention_heads, dim)
    layers: list[Any] = []
    for kind in kinds:
        mamba = MambaLayer(mixer(c), norm(c))
        if kind == "hybrid":
            turn = sum(isinstance(layer, HybridLayer) for layer in layers) % c.num_mem_blocks
            linear = Linear(c.hidden_size, c.hidden_size, axes=("embed", None))
            layers.append(HybridLayer(Adapters(c), linear, mamba, turn, heads))
        else:
            layers.append(mamba)
    blocks = tuple(SharedBlock(c) for _ in range(min(c.num_mem_blocks, kinds.count("hybrid"))))
    table = {"default": c.rope_parameters} if c.use_mem_rope else {}
    return Decoder(c, layers, norm(c), head_dim=dim, rope=table, shared=blocks)


def names(model: Any) -> list[Rule]:
    """Files hold a shared block, and the adapters of all its uses, in the first layer that it feeds."""
    bare = isinstance(model, Decoder)
    base = "" if bare else "model."
    c: Zamba2Config = (model if bare else model.model).config
    hybrids = [i for i, kind in enumerate(kinds_of(c)) if kind == "hybrid"]
    found = [rename(f"{base}norm.{{tail}}", f"{base}final_layernorm.{{tail}}")]
    for block, layer in enumerate(hybrids[: c.num_mem_blocks]):
        found.append(rename(f"{base}shared.{block}.{{tail}}", f"{base}layers.{layer}.shared_transformer.{{tail}}"))
    for use, layer in enumerate(hybrids):
        ours = f"{base}layers.{layer}.adapters."
        theirs = f"{base}layers.{hybrids[use % c.num_mem_blocks]}.shared_transformer."
        places = {name: f"self_attn.linear_{name}_adapter_list" for name in "qkv"}
        for name, place in {**places, "gate_up": "feed_forward.gate_up_proj_adapter_list"}.items():
            for part, number in (("down", 0), ("up", 1)):
                tail = f"{place}.{use}.{number}.{{tail}}"
                found.append(rename(f"{ours}{name}.{part}.{{tail}}", theirs + tail))
    return found


def uses(model: Any) -> dict[str, tuple[str, ...]]:
    """The layers of a shared block, the first and the others."""
    bare = isinstance(model, Decoder)
    c: Zamba2Config = (model if bare else model.model).config
    hybrids = [i for i, kind in enumerate(kinds_of(c)) if kind == "hybrid"]
    places = [f"{'' if bare else 'model.'}layers.{i}.shared_transformer." for i in hybrids]
    return {
        place: tuple(places[n + c.num_mem_blocks :: c.num_mem_blocks])
        for n, place in enumerate(places[: c.num_mem_blocks])
    }


decoder_family(
    "Zamba2",
    Zamba2Config,
    zamba2,
    names=names,
    uses=uses,
    ignore=(
        # Made of other keys, or about kernels; the convolution has a bias whatever `use_conv_bias` says.
        *(
            "attention_hidden_size",
            "attention_head_dim",
            "head_dim",
            "mamba_headdim",
            "kv_channels",
            "num_query_groups",
        ),
        *("hybrid_layer_ids", "use_mamba_kernels", "use_mem_eff_path", "use_conv_bias", "num_logits_to_keep"),
    ),
)
